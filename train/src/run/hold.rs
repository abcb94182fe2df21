//! One run at a time in a folder, and which run's checkpoints are gone on from there.

use std::fs::{self, File, TryLockError};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::RunError;
use super::output::failed;

/// When the run began that the folder belongs to: checkpoints of others in it are older.
const NAME: &str = "bantam_run.json";

/// A folder that nobody else trains in while this lives.
#[derive(Debug)]
pub(super) struct Hold {
    file: File,
    path: PathBuf,
}

impl Hold {
    pub(super) fn take(folder: &Path) -> Result<Hold, RunError> {
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        let path = folder.join(NAME);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| failed(&path, error))?;
        // Some file systems know no locks: there, nobody is told.
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(RunError::Busy { folder: folder.into() }),
            _ => Ok(Hold { file, path }),
        }
    }

    /// From now on the folder is that of the run that began then.
    pub(super) fn belongs(&mut self, begun: u64) -> Result<(), RunError> {
        // As long as before, and in one piece: whoever reads it after a kill finds the one or the other.
        let text = format!("{{\"begun\": {begun:<20}}}\n");
        let written = self.file.rewind().and_then(|()| self.file.write_all(text.as_bytes()));
        written.map_err(|error| failed(&self.path, error))
    }
}

/// When the run began that a folder belongs to, where that is known.
pub(super) fn begun(folder: &Path) -> Option<u64> {
    let json: Value = serde_json::from_slice(&fs::read(folder.join(NAME)).ok()?).ok()?;
    json["begun"].as_u64()
}
