//! Regular files of a model folder: opened without being led astray, and mapped read-only.
//!
//! It knows nothing of what the files hold. It is the crate's only file with `unsafe`.
#![allow(unsafe_code)]

use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Why a file was not opened.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum MapError {
    #[error("{}: no such file", .path.display())]
    Missing { path: PathBuf },
    #[error("{}: expected a regular file, found {found}", .path.display())]
    NotRegular { path: PathBuf, found: &'static str },
    #[error("{}: a symbolic link to {target:?}, which is not in the blobs of the same Hugging Face \
        cache repository; put the file itself there, or give the folder it lies in", .path.display())]
    Symlink { path: PathBuf, target: PathBuf },
    #[error("{}: a symbolic link to {target:?}, which does not exist: finish the download", .path.display())]
    Broken { path: PathBuf, target: PathBuf },
    #[error("{}: expected at most {limit} bytes, found {found}", .path.display())]
    TooLarge { path: PathBuf, limit: u64, found: u64 },
    #[error("{}: {source}; check the permissions and the disk", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Opens a regular file for reading; returns it with its length.
///
/// A FIFO would block, a device may act on being opened, and a link may lead out of the folder: each is refused
/// before it is opened, and the opened file is looked at again in case the name was exchanged in between.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64), MapError> {
    let named = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => MapError::Missing { path: path.into() },
        _ => MapError::Io { path: path.into(), source },
    };
    let metadata = fs::symlink_metadata(path).map_err(named)?;
    let target = if metadata.is_symlink() { hub_blob(path)? } else { path.into() };
    require_regular(path, &fs::symlink_metadata(&target).map_err(named)?)?;
    let file = open_without_following(&target).map_err(named)?;
    let metadata = file.metadata().map_err(named)?;
    require_regular(path, &metadata)?;
    Ok((file, metadata.len()))
}

#[cfg(unix)]
fn open_without_following(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

#[cfg(not(unix))]
fn open_without_following(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

fn require_regular(path: &Path, metadata: &Metadata) -> Result<(), MapError> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(MapError::NotRegular { path: path.into(), found: kind(metadata) })
}

/// What stands in the place of a regular file.
pub(crate) fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        return "a directory";
    }
    if metadata.is_symlink() {
        return "a symbolic link";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let t = metadata.file_type();
        let device = t.is_char_device() || t.is_block_device();
        let kinds = [(t.is_fifo(), "a FIFO"), (t.is_socket(), "a socket"), (device, "a device")];
        if let Some(&(_, name)) = kinds.iter().find(|k| k.0) {
            return name;
        }
    }
    "something else"
}

/// Where a link of the Hugging Face cache leads: `models--a--b/snapshots/<revision>/name` may point to a file in
/// `models--a--b/blobs`, and no other link is followed.
fn hub_blob(path: &Path) -> Result<PathBuf, MapError> {
    let io_error = |source| MapError::Io { path: path.into(), source };
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let target = fs::read_link(path).map_err(io_error)?;
            return Err(MapError::Broken { path: path.into(), target });
        }
        Err(e) => return Err(io_error(e)),
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = fs::canonicalize(folder).map_err(io_error)?;
    match hub_repository(&folder) {
        Some(repository) if target.parent() == Some(&repository.join("blobs")) => Ok(target),
        _ => Err(MapError::Symlink { path: path.into(), target }),
    }
}

/// The `models--*` folder whose `snapshots` hold `folder`, at whatever depth.
fn hub_repository(folder: &Path) -> Option<&Path> {
    let snapshots = folder.ancestors().find(|a| a.file_name().is_some_and(|name| name == "snapshots"))?;
    let repository = snapshots.parent()?;
    repository.file_name()?.to_str()?.starts_with("models--").then_some(repository)
}

/// Reads a whole regular file of at most `limit` bytes.
pub(crate) fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>, MapError> {
    let (file, length) = open_regular(path)?;
    let too_large = |found| MapError::TooLarge { path: path.into(), limit, found };
    if length > limit {
        return Err(too_large(length));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // One byte above the limit: the file may have grown since it was measured.
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|source| MapError::Io { path: path.into(), source })?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// What tells a file from another, or from itself after a change.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    len: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            len: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: (metadata.dev(), metadata.ino()),
        }
    }
}

/// Since 1970. Files from before, or after 2262, have no time.
pub(crate) fn nanoseconds(time: SystemTime) -> Option<i64> {
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}

/// A regular file, mapped read-only.
#[derive(Debug)]
pub(crate) struct Map {
    map: Mmap,
    path: PathBuf,
    identity: Identity,
}

impl Map {
    /// Opens and maps `path`; returns the file as well, for what must be read rather than mapped.
    pub(crate) fn open(path: &Path) -> Result<(Self, File), MapError> {
        let io_error = |source| MapError::Io { path: path.into(), source };
        let (file, _) = open_regular(path)?;
        let identity = Identity::of(&file.metadata().map_err(io_error)?);
        // SAFETY: `Mmap::map` asks that the file is not changed while it is mapped. The map is private and
        // read-only, so this process does not change it. Nobody can forbid another process to: then the bytes may
        // change or, past a new end, raise SIGBUS. No bounds, lengths or UTF-8 are taken from the map after they
        // were checked (headers are read into memory of our own); tensor data is plain numbers, valid in any
        // bit pattern; and `unchanged` lets callers notice an exchange.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        Ok((Self { map, path: path.into(), identity }, file))
    }

    /// A part of the file as memory that is ours: what is written to it stays in this process. Nothing is read or
    /// copied before it is touched.
    pub(crate) fn image(&self, file: &File, offset: u64, bytes: usize) -> Result<MmapMut, MapError> {
        let end = offset.checked_add(bytes as u64);
        assert!(end.is_some_and(|end| end <= self.identity.len), "a part of the file");
        // SAFETY: as above. These are weights and nothing else: numbers of any bit pattern, and no bounds.
        unsafe { MmapOptions::new().offset(offset).len(bytes).map_copy(file) }
            .map_err(|source| MapError::Io { path: self.path.clone(), source })
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// When the file was last changed, in nanoseconds since 1970; `None` where the system does not tell.
    pub(crate) fn modified_ns(&self) -> Option<i64> {
        self.identity.modified.and_then(nanoseconds)
    }

    /// The path as it was given.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still names the same file, of the same size and time of change.
    pub(crate) fn unchanged(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|now| Identity::of(&now) == self.identity)
    }
}
