//! A file that the user has a verb write: whether it may be, asked before the work is done.

use std::fs;
use std::path::Path;

use bantam_model::checkpoint::Checkpoint;
use bantam_model::checkpoint::writer;
use bantam_model::files::ModelFiles;

use crate::failure::{Failure, refused};

/// Refuses a place where no file can be written, and one where a file of the model itself would be lost.
pub(crate) fn check(
    file: &Path,
    checkpoint: &Checkpoint,
    beside: Option<&ModelFiles>,
) -> Result<(), Failure> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(refused(format!(
            "{}: expected a file in a folder that exists, but {} does not: create it first",
            file.display(),
            folder.display()
        )));
    }
    writer::check_place(file)?;
    let Ok(place) = fs::canonicalize(file) else {
        return Ok(());
    };
    let is_place = |own: &Path| fs::canonicalize(own).is_ok_and(|own| own == place);
    let beside = beside.into_iter().flat_map(ModelFiles::paths);
    match checkpoint.files().any(is_place) || beside.into_iter().any(|own| is_place(&own)) {
        true => Err(refused(format!(
            "{}: expected a file to write, found one of the model's own files: give another name",
            file.display()
        ))),
        false => Ok(()),
    }
}
