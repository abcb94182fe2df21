//! Which files of a path are its checkpoint.
//!
//! It opens none of them. Pickles are recognised only to say that they are never read.

use super::CheckpointError;
use super::index::INDEX_NAME;
use std::fs;
use std::path::{Path, PathBuf};

const SINGLE_NAME: &str = "model.safetensors";

/// A hostile folder may hold millions of names; the first thousands are enough to say what is wrong.
const NAMES_MAX: usize = 10_000;

/// Endings of weight files that are not read: pickles can run code.
const FOREIGN: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    Single(PathBuf),
    Sharded(PathBuf),
    /// The first file of one or several.
    Gguf(PathBuf),
}

/// The GGUF file that is the model at `path`, if one is.
pub(crate) fn gguf(path: &Path) -> Option<PathBuf> {
    match find(path) {
        Ok(Weights::Gguf(file)) => Some(file),
        _ => None,
    }
}

/// Finds the checkpoint at `path`, a folder or one file.
pub(super) fn find(path: &Path) -> Result<Weights, CheckpointError> {
    // A symlinked model folder is followed; symlinked files are judged where they are opened.
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(CheckpointError::NoPath { path: path.into() });
        }
        Err(source) => {
            return Err(CheckpointError::Folder { path: path.into(), source });
        }
    };
    if metadata.is_dir() { find_in_folder(path) } else { find_file(path) }
}

fn find_file(path: &Path) -> Result<Weights, CheckpointError> {
    if has_extension(path, &["safetensors"]) {
        return Ok(Weights::Single(path.into()));
    }
    if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".safetensors.index.json")) {
        return Ok(Weights::Sharded(path.into()));
    }
    if has_extension(path, &["gguf"]) {
        return Ok(Weights::Gguf(path.into()));
    }
    if has_extension(path, &FOREIGN) {
        let found = path.file_name().map(|name| name.to_string_lossy().into_owned()).into_iter().collect();
        return Err(CheckpointError::Foreign { path: path.into(), found });
    }
    Err(CheckpointError::NotSafetensors { path: path.into() })
}

/// Like transformers, `model.safetensors` comes before an index.
fn find_in_folder(folder: &Path) -> Result<Weights, CheckpointError> {
    for (name, weights) in
        [(SINGLE_NAME, Weights::Single as fn(PathBuf) -> Weights), (INDEX_NAME, Weights::Sharded)]
    {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_ok() {
            return Ok(weights(path));
        }
    }
    let names = names(folder)?;
    let ending = |endings: &[&str]| -> Vec<String> {
        names.iter().filter(|name| has_extension(Path::new(name), endings)).cloned().collect()
    };
    let (safetensors, foreign) = (ending(&["safetensors"]), ending(&FOREIGN));
    let gguf: Vec<String> = ending(&["gguf"]).into_iter().filter(|name| !is_later_part(name)).collect();
    match safetensors.as_slice() {
        [name] => Ok(Weights::Single(folder.join(name))),
        [] if gguf.len() == 1 => Ok(Weights::Gguf(folder.join(&gguf[0]))),
        [] if !gguf.is_empty() => Err(CheckpointError::Ambiguous { folder: folder.into(), found: gguf }),
        [] if !foreign.is_empty() => Err(CheckpointError::Foreign { path: folder.into(), found: foreign }),
        [] => Err(CheckpointError::NoWeights { folder: folder.into() }),
        _ => Err(CheckpointError::Ambiguous { folder: folder.into(), found: safetensors }),
    }
}

/// `…-00002-of-00003.gguf`: a part that is found through the first.
fn is_later_part(name: &str) -> bool {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let Some((rest, count)) = stem.rsplit_once("-of-") else { return false };
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = rest.rsplit_once('-').map_or("", |(_, number)| number);
    is_number(count) && is_number(number) && number != "00001"
}

fn has_extension(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|found| endings.iter().any(|ending| found.eq_ignore_ascii_case(ending)))
}

/// Names in a folder, sorted; hidden ones are left out, as are those that no checkpoint has: not UTF-8, or with
/// control characters, which would drive the terminal they are shown on.
fn names(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let failed = |source| CheckpointError::Folder { path: folder.into(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)?.take(NAMES_MAX) {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && !name.starts_with('.')
            && !name.chars().any(char::is_control)
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
