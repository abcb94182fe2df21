//! One run at a time in a folder, and which run's checkpoints are gone on from there.

use std::fs::{self, File, TryLockError};
use std::io::{Seek, Write};
use std::path::Path;

use serde_json::Value;

use super::RunError;
use super::output::failed;

/// When the run began that the folder belongs to: checkpoints of others in it are older.
const NAME: &str = "bantam_run.json";

/// A folder that nobody else trains in while this lives.
#[derive(Debug)]
pub(super) struct Hold {
    _file: File,
}

impl Hold {
    /// For a run that began then.
    pub(super) fn take(folder: &Path, begun: u64) -> Result<Hold, RunError> {
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        let path = folder.join(NAME);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let mut file = file.map_err(|error| failed(&path, error))?;
        // Some file systems know no locks: there, nobody is told.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(RunError::Busy { folder: folder.into() });
        }
        // As long as before, and in one piece: whoever reads it after a kill finds the one or the other.
        let text = format!("{{\"begun\": {begun:<20}}}\n");
        let written = file.rewind().and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(|error| failed(&path, error))?;
        Ok(Hold { _file: file })
    }
}

/// When the run began that a folder belongs to, where that is known.
pub(super) fn begun(folder: &Path) -> Option<u64> {
    let json: Value = serde_json::from_slice(&fs::read(folder.join(NAME)).ok()?).ok()?;
    json["begun"].as_u64()
}
