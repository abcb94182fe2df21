//! Whether a folder is safe for a socket: nobody but its user (or root) can put another file in the socket's place.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bits of a mode: group or others may write; only owners may remove what lies in it.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// What is wrong with a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system refused to look, or to make it.
    #[error("{}: {source}; make the folder, or choose a socket elsewhere", path.display())]
    System {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others may write to it.
    #[error(
        "{}: expected a folder that nobody else can write to, found mode {mode:03o}; chmod go-w it, or choose another",
        path.display()
    )]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("{}: expected a {what} of user {uid} or root, found user {owner}'s; choose another folder", path.display())]
    Foreign {
        /// The folder, or a link on the way to it.
        path: PathBuf,
        /// Which of the two.
        what: &'static str,
        /// Whose.
        owner: u32,
        /// Who asked.
        uid: u32,
    },
}

/// Makes the folder if it is missing (for its user alone), judges it and what leads to it, and gives its real path.
pub(super) fn checked(folder: &Path, uid: u32) -> Result<PathBuf, FolderError> {
    let failed = |source| FolderError::System { path: folder.to_owned(), source };
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    for step in folder.ancestors() {
        let found = std::fs::symlink_metadata(step).map_err(failed)?;
        if found.is_symlink() {
            owned(step, "link", found.uid(), uid)?;
        }
    }
    let real = folder.canonicalize().map_err(failed)?;
    for (depth, step) in real.ancestors().enumerate() {
        let found = std::fs::symlink_metadata(step).map_err(failed)?;
        owned(step, "folder", found.uid(), uid)?;
        let mode = found.mode() & 0o7777;
        // In a folder like /tmp nobody can rename or remove what is ours, but anybody could take the name first.
        let sticky_will_do = depth > 0 && mode & STICKY != 0;
        if mode & OTHERS_WRITE != 0 && !sticky_will_do {
            return Err(FolderError::Writable { path: step.to_owned(), mode: mode & 0o777 });
        }
    }
    Ok(real)
}

fn owned(path: &Path, what: &'static str, owner: u32, uid: u32) -> Result<(), FolderError> {
    if owner == uid || owner == 0 {
        return Ok(());
    }
    Err(FolderError::Foreign { path: path.to_owned(), what, owner, uid })
}
