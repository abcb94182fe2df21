//! Where a run begins: anew, or at a checkpoint of its own.

use std::path::{Path, PathBuf};

use super::choices::{Choices, Start};
use super::recipe::Recipe;
use super::state::State;
use super::{RunError, Watch, hold, output};

/// More differences than a message needs.
const TOLD: usize = 8;

/// The checkpoint to go on from, if any, and how far the run is there.
pub(super) fn find(
    choices: &Choices<'_>,
    recipe: &Recipe,
    watch: &mut dyn Watch,
) -> Result<(Option<PathBuf>, State), RunError> {
    let Some(checkpoint) = checkpoint(choices)? else { return Ok((None, State::new())) };
    watch.note(&format!("goes on from {}", checkpoint.display()));
    let state = output::read_state(&checkpoint)
        .map_err(|found| RunError::Checkpoint { checkpoint: checkpoint.clone(), found })?;
    match &state.recipe {
        Some(before) => compare(choices, recipe, before, &checkpoint, watch)?,
        None => watch.note("it does not say with which settings it was trained: they are not compared"),
    }
    Ok((Some(checkpoint), state))
}

fn checkpoint(choices: &Choices<'_>) -> Result<Option<PathBuf>, RunError> {
    let folder = &choices.output;
    let is_asked = match &choices.start {
        Start::Anew => return Ok(None),
        Start::Named(checkpoint) if output::is_whole(checkpoint) => return Ok(Some(checkpoint.clone())),
        Start::Named(checkpoint) => {
            let found =
                "no optimizer.safetensors and bantam_state.json (save_only_model writes none)".to_owned();
            return Err(RunError::Checkpoint { checkpoint: checkpoint.clone(), found });
        }
        Start::Found => false,
        Start::Last => true,
    };
    if let Some(checkpoint) = output::latest(folder, hold::begun(folder)) {
        return Ok(Some(checkpoint));
    }
    let has_others = !output::checkpoints(folder).is_empty();
    match is_asked {
        true => {
            let found =
                if has_others { "only those of an earlier run, or without what goes on" } else { "none" };
            Err(RunError::NoCheckpoint { folder: folder.clone(), found })
        }
        false if has_others || output::is_taken(folder) => Err(RunError::Taken { folder: folder.clone() }),
        false => Ok(None),
    }
}

/// Refuses what would not be this run: always, what a checkpoint has settled; all else, where nobody named it.
fn compare(
    choices: &Choices<'_>,
    recipe: &Recipe,
    before: &Recipe,
    checkpoint: &Path,
    watch: &mut dyn Watch,
) -> Result<(), RunError> {
    let differences = recipe.differences(before);
    let told = |words: &[String]| {
        let more = if words.len() > TOLD { ", and more" } else { "" };
        format!("{}{more}", words[..words.len().min(TOLD)].join(", "))
    };
    if !differences.settled.is_empty() {
        let found = format!("one with {}", told(&differences.settled));
        return Err(RunError::Checkpoint { checkpoint: checkpoint.into(), found });
    }
    let others = &differences.others;
    let is_named = matches!(choices.start, Start::Named(_));
    match (others.is_empty(), is_named) {
        (false, false) => {
            return Err(RunError::Differs { checkpoint: checkpoint.into(), found: told(others) });
        }
        (false, true) => watch.note(&format!("before, it was trained with {}", told(others))),
        _ => {}
    }
    if !differences.length.is_empty() {
        let words = told(&differences.length);
        watch.note(&format!("{words}: from here on rates are those of the new length"));
    }
    Ok(())
}
