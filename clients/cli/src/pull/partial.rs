//! A file that is not all here yet, with the hash of what is.

use std::fs::{self, File as DiskFile};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::checksum::{Kind, Running};
use super::error::PullError;
use super::home::Place;
use super::listing::File;

/// The unfinished file on the disk.
pub(super) struct Partial {
    content: DiskFile,
    path: PathBuf,
    bytes: u64,
    /// Of the whole file.
    total: u64,
    kind: Option<Kind>,
    hash: Option<Running>,
    /// Whether some of it is of an earlier time, and may be of another file.
    is_resumed: bool,
}

impl Partial {
    /// Opens what is there, and reads it for its hash.
    pub(super) fn open(place: &Place, file: &File) -> Result<Self, PullError> {
        let path = place.incomplete.clone();
        let content = DiskFile::options().read(true).write(true).create(true).truncate(false).open(&path);
        let content = content.map_err(PullError::disk(&path))?;
        let kind = file.etag.kind();
        let mut partial =
            Partial { content, path, bytes: 0, total: file.bytes, kind, hash: None, is_resumed: false };
        let there = partial.content.metadata().map_err(PullError::disk(&partial.path))?.len();
        partial.restart_hash();
        match there {
            0 => {}
            // Without a hash nobody would notice that it belongs to something else.
            _ if there > file.bytes || kind.is_none() => partial.restart()?,
            _ => partial.resume(there)?,
        }
        Ok(partial)
    }

    fn resume(&mut self, there: u64) -> Result<(), PullError> {
        if let Some(hash) = &mut self.hash {
            hash.read(&mut self.content).map_err(PullError::disk(&self.path))?;
        }
        self.content.seek(SeekFrom::Start(there)).map_err(PullError::disk(&self.path))?;
        (self.bytes, self.is_resumed) = (there, true);
        Ok(())
    }

    fn restart_hash(&mut self) {
        self.hash = self.kind.map(|kind| kind.begin(self.total));
    }

    /// Forgets all bytes.
    pub(super) fn restart(&mut self) -> Result<(), PullError> {
        self.content.set_len(0).map_err(PullError::disk(&self.path))?;
        self.content.rewind().map_err(PullError::disk(&self.path))?;
        (self.bytes, self.is_resumed) = (0, false);
        self.restart_hash();
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_whole(&self) -> bool {
        self.bytes == self.total
    }

    pub(super) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Adds bytes at the end.
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<(), PullError> {
        self.content.write_all(piece).map_err(PullError::disk(&self.path))?;
        if let Some(hash) = &mut self.hash {
            hash.update(piece);
        }
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// The kind of hash and the one found, where it is not that of the file.
    pub(super) fn fault(&self, file: &File) -> Option<(Kind, String)> {
        let found = (self.kind?, self.hash.clone()?.finish());
        (found.1 != file.etag.as_str()).then_some(found)
    }

    /// Gives the file its name, after all of it has arrived on the disk.
    pub(super) fn finish(self, place: &Place) -> Result<(), PullError> {
        self.content.sync_all().map_err(PullError::disk(&self.path))?;
        drop(self.content);
        fs::rename(&self.path, &place.end).map_err(PullError::disk(&place.end))
    }

    /// Takes it off the disk.
    pub(super) fn remove(self) {
        // What stays behind is found out and replaced the next time.
        let _ = fs::remove_file(&self.path);
    }
}
