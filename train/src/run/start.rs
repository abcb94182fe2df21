//! Where a run begins: anew, or at a checkpoint of its own.

use std::path::{Path, PathBuf};

use super::choices::{Choices, Start};
use super::recipe::{Differences, Recipe};
use super::state::State;
use super::{RunError, Watch, absolute, hold, output};

/// More differences than a message needs.
const TOLD: usize = 8;

/// The checkpoint to go on from, if any, and how far the run is there.
pub(super) fn find(
    choices: &Choices<'_>,
    recipe: &Recipe,
    watch: &mut dyn Watch,
) -> Result<(Option<PathBuf>, State), RunError> {
    let Some(checkpoint) = checkpoint(choices)? else { return Ok((None, State::new())) };
    let mut state = output::read_state(&checkpoint)
        .map_err(|found| RunError::Checkpoint { checkpoint: checkpoint.clone(), found })?;
    let differences = state.recipe.as_ref().map(|before| recipe.differences(before));
    differences.iter().try_for_each(|differences| check(choices, differences, &checkpoint))?;
    watch.note(&format!("goes on from {}", checkpoint.display()));
    match &differences {
        Some(differences) => tell(differences, watch),
        None => watch.note("it does not say with which settings it was trained: they are not compared"),
    }
    let last = output::latest(&choices.output, hold::begun(&choices.output));
    if last.is_none_or(|last| absolute(&last) != absolute(&checkpoint)) {
        // From here on it is a run by itself, beside what went on from there.
        state.begun = State::new().begun;
    }
    let is_of_folder = checkpoint.parent().map(absolute) == Some(absolute(&choices.output));
    if !is_of_folder || differences.is_some_and(|differences| differences.is_measured_otherwise) {
        state.forget_best();
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
fn check(choices: &Choices<'_>, differences: &Differences, checkpoint: &Path) -> Result<(), RunError> {
    let checkpoint = checkpoint.to_owned();
    let Differences { settled, others, .. } = differences;
    match (settled.is_empty(), others.is_empty(), &choices.start) {
        (false, ..) => {
            let found = format!("one with {}", told(settled));
            Err(RunError::Checkpoint { checkpoint, found })
        }
        (_, true, _) | (_, _, Start::Named(_)) => Ok(()),
        _ => Err(RunError::Differs { checkpoint, found: told(others) }),
    }
}

fn tell(differences: &Differences, watch: &mut dyn Watch) {
    let Differences { others, length, .. } = differences;
    if !others.is_empty() {
        watch.note(&format!("before, it was trained with {}", told(others)));
    }
    if !length.is_empty() {
        watch.note(&format!("{}: from here on rates are those of the new length", told(length)));
    }
}

fn told(words: &[String]) -> String {
    let more = if words.len() > TOLD { ", and more" } else { "" };
    format!("{}{more}", words[..words.len().min(TOLD)].join(", "))
}
