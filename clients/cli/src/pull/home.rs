//! Where files come to lie: in huggingface_hub's cache, or plainly in a folder. Names, links and locks are that
//! library's own, so that either finds what the other has fetched, finished or not, and neither disturbs the other.

use std::fs::{self, File as DiskFile, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::checksum::{Etag, short_hash};
use super::error::PullError;
use super::listing::File;

/// How often a lock is tried that somebody else holds.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// How long before that is worth a word.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The cache's part for one repository.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    /// Of all repositories.
    root: PathBuf,
    /// `models--owner--name`.
    name: String,
}

/// Where this repository goes.
#[derive(Debug)]
pub(super) enum Home {
    Cache {
        cache: Cache,
        commit: String,
    },
    /// Plain files; what the cache has is taken from there.
    Folder {
        folder: PathBuf,
        cache: Option<Cache>,
        commit: String,
    },
}

/// How much of a file is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// All, in its place.
    There,
    /// All, but elsewhere in the cache.
    InCache(PathBuf),
    /// Its first bytes.
    Begun(u64),
    Absent,
}

/// The names of a file on its way.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) incomplete: PathBuf,
    pub(super) end: PathBuf,
    lock: PathBuf,
}

impl Cache {
    pub(super) fn new(root: PathBuf, repository: &str) -> Self {
        Cache { root, name: format!("models--{}", repository.replace('/', "--")) }
    }

    fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    fn blob(&self, etag: &Etag) -> PathBuf {
        self.folder().join("blobs").join(etag.as_str())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// A file's content, where it is here and has the length that it should have.
    fn has(&self, file: &File) -> Option<PathBuf> {
        Some(self.blob(&file.etag)).filter(|blob| length(blob) == Some(file.bytes))
    }

    /// The snapshot that a revision stood for when it was last fetched.
    pub(super) fn find(&self, revision: &str) -> Option<PathBuf> {
        let named = fs::read_to_string(self.folder().join("refs").join(revision)).ok();
        let commit = named.as_deref().map_or(revision, str::trim);
        let is_plain = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some(self.snapshot(commit)).filter(|folder| is_plain && folder.is_dir())
    }
}

impl Home {
    /// The folder that a model is opened by.
    pub(super) fn folder(&self) -> PathBuf {
        match self {
            Home::Cache { cache, commit } => cache.snapshot(commit),
            Home::Folder { folder, .. } => folder.clone(),
        }
    }

    pub(super) fn place(&self, file: &File) -> Place {
        match self {
            Home::Cache { cache, .. } => {
                let (end, etag) = (cache.blob(&file.etag), file.etag.as_str());
                let locks = cache.root.join(".locks").join(&cache.name);
                Place {
                    incomplete: end.with_file_name(format!("{etag}.incomplete")),
                    lock: locks.join(format!("{etag}.lock")),
                    end,
                }
            }
            Home::Folder { folder, .. } => {
                let metadata = metadata_place(folder, file);
                let name = metadata.file_name().unwrap_or_default().to_string_lossy();
                let incomplete = format!("{}.{}.incomplete", short_hash(&name), file.etag.as_str());
                Place {
                    incomplete: metadata.with_file_name(incomplete),
                    lock: metadata.with_extension("lock"),
                    end: folder.join(&file.path),
                }
            }
        }
    }

    /// Looks at the disk; in a plain folder this may read a file that is there, to see whether it is the one.
    pub(super) fn state(&self, file: &File) -> State {
        let (is_there, cached) = match self {
            Home::Cache { cache, commit } => {
                let linked = length(&cache.snapshot(commit).join(&file.path)) == Some(file.bytes);
                (linked, cache.has(file))
            }
            Home::Folder { folder, cache, .. } => {
                (is_the_one(folder, file), cache.as_ref().and_then(|cache| cache.has(file)))
            }
        };
        match (is_there, cached) {
            (true, _) => State::There,
            (false, Some(blob)) => State::InCache(blob),
            (false, None) => match length(&self.place(file).incomplete) {
                Some(begun) if begun > 0 && begun <= file.bytes && file.etag.kind().is_some() => {
                    State::Begun(begun)
                }
                _ => State::Absent,
            },
        }
    }

    /// Bytes of the disk that a file in this state still needs.
    pub(super) fn needs(&self, file: &File, state: &State) -> u64 {
        match (state, self) {
            (State::There, _) | (State::InCache(_), Home::Cache { .. }) => 0,
            (State::InCache(_), Home::Folder { .. }) | (State::Absent, _) => file.bytes,
            (State::Begun(begun), _) => file.bytes - begun,
        }
    }

    /// Does the last step for a file whose bytes have their final name.
    pub(super) fn settle(&self, file: &File) -> Result<(), PullError> {
        match self {
            Home::Cache { cache, commit } => {
                let link = cache.snapshot(commit).join(&file.path);
                let depth = file.path.matches('/').count() + 2;
                let target: PathBuf = [&*"../".repeat(depth), "blobs", file.etag.as_str()].iter().collect();
                make_link(&target, &cache.blob(&file.etag), &link).map_err(PullError::disk(link))
            }
            Home::Folder { folder, commit, .. } => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                let text = format!("{commit}\n{}\n{now}\n", file.etag.as_str());
                write(&metadata_place(folder, file), &text)
            }
        }
    }

    /// Says that all of a revision is here: last, so that whoever looks for a revision finds it whole.
    pub(super) fn conclude(&self, revision: &str) -> Result<(), PullError> {
        match self {
            Home::Cache { cache, commit } if commit != revision => {
                write(&cache.folder().join("refs").join(revision), commit)
            }
            _ => Ok(()),
        }
    }

    /// Makes what surrounds the files.
    pub(super) fn prepare(&self) -> Result<(), PullError> {
        let folder = self.folder();
        if folder.exists() && !folder.is_dir() {
            return Err(PullError::NotAFolder { path: folder });
        }
        fs::create_dir_all(&folder).map_err(PullError::disk(&folder))?;
        if let Home::Folder { .. } = self {
            let ignored = folder.join(".cache/huggingface/.gitignore");
            if !ignored.exists() {
                write(&ignored, "*")?;
            }
        }
        Ok(())
    }

    /// Free bytes of the disk; nothing where the system does not tell.
    pub(super) fn free(&self) -> Option<u64> {
        let folder = self.folder();
        let there = folder.ancestors().find(|folder| folder.is_dir())?;
        let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        let disk = rustix::fs::statvfs(there).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// What the user would choose another place with.
    pub(super) fn choice(&self) -> &'static str {
        match self {
            Home::Cache { .. } => "--out or HF_HUB_CACHE",
            Home::Folder { .. } => "--out",
        }
    }
}

impl Place {
    /// Makes the folders that the names stand in.
    pub(super) fn prepare(&self) -> Result<(), PullError> {
        for path in [&self.incomplete, &self.end, &self.lock] {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(PullError::disk(folder))?;
        }
        Ok(())
    }

    /// Waits until nobody else fetches this file. `waiting` is called once if that takes long, `is_over` says when to
    /// give up.
    pub(super) fn lock(
        &self,
        waiting: impl FnOnce(),
        is_over: impl Fn() -> bool,
    ) -> Result<DiskFile, PullError> {
        let failed = || PullError::disk(&self.lock);
        let file = DiskFile::options().create(true).truncate(false).write(true).open(&self.lock);
        let file = file.map_err(failed())?;
        let (since, mut waiting) = (Instant::now(), Some(waiting));
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                // Some network disks know no locks: then there is only one of us, as far as anybody can tell.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(file);
                }
                Err(TryLockError::Error(error)) => return Err(failed()(error)),
            }
            if is_over() {
                return Err(PullError::Stopped);
            }
            if since.elapsed() >= LOCK_PATIENCE
                && let Some(waiting) = waiting.take()
            {
                waiting();
            }
            std::thread::sleep(LOCK_POLL);
        }
    }
}

/// The length of a regular file, or of the one that a link leads to.
fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// Where huggingface_hub keeps what it knows of a file in a plain folder.
fn metadata_place(folder: &Path, file: &File) -> PathBuf {
    folder.join(".cache/huggingface/download").join(format!("{}.metadata", file.path))
}

/// Whether a file in a plain folder is the one: by what was written down when it was fetched, or else by its hash.
fn is_the_one(folder: &Path, file: &File) -> bool {
    let path = folder.join(&file.path);
    if length(&path) != Some(file.bytes) {
        return false;
    }
    let noted = || {
        let text = fs::read_to_string(metadata_place(folder, file)).ok()?;
        let mut lines = text.lines().skip(1);
        let (etag, time) = (lines.next()?.trim(), lines.next()?.trim().parse::<f64>().ok()?);
        let changed = fs::metadata(&path).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        // Times of files are no more exact than that everywhere.
        (changed.as_secs_f64() - 1.0 <= time).then(|| etag == file.etag.as_str())
    };
    match (noted(), file.etag.kind()) {
        (Some(is_same), _) => is_same,
        (None, Some(kind)) => {
            let hash = DiskFile::open(&path).and_then(|mut content| kind.of(file.bytes, &mut content));
            hash.is_ok_and(|hash| hash == file.etag.as_str())
        }
        (None, None) => false,
    }
}

/// Makes a link, or where the disk knows none, puts the file itself there.
fn make_link(target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    if fs::metadata(link).is_ok_and(|there| fs::metadata(blob).is_ok_and(|blob| same(&there, &blob))) {
        return Ok(());
    }
    if let Some(folder) = link.parent() {
        fs::create_dir_all(folder)?;
    }
    let beside = beside(link);
    match symlink(target, &beside) {
        Ok(()) => fs::rename(&beside, link),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(error),
        Err(_) => fs::rename(blob, link),
    }
}

#[cfg(unix)]
fn same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
fn same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    one.len() == other.len()
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A name that is nobody's yet.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Relaxed)));
    path.with_file_name(name)
}

/// Writes a small file beside its name first.
fn write(path: &Path, text: &str) -> Result<(), PullError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(PullError::disk(folder))?;
    let beside = beside(path);
    let written = DiskFile::create(&beside).and_then(|mut file| file.write_all(text.as_bytes()));
    written.and_then(|()| fs::rename(&beside, path)).map_err(|error| {
        let _ = fs::remove_file(&beside);
        PullError::disk(path)(error)
    })
}
