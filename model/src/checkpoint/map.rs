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
    pub(crate) fn image(&self, file: &File, offset: u64, bytes: usize) -> Result<Image, MapError> {
        let end = offset.checked_add(bytes as u64);
        assert!(end.is_some_and(|end| end <= self.identity.len), "a part of the file");
        // SAFETY: as in `open`. These are weights and nothing else: numbers of any bit pattern, and no bounds.
        let map = unsafe { MmapOptions::new().offset(offset).len(bytes).map_copy(file) };
        let map = map.map_err(|source| MapError::Io { path: self.path.clone(), source })?;
        Ok(Image { watch: Watch::over(&map), map })
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// When the file was last changed, in nanoseconds since 1970; `None` where the system does not tell.
    pub(crate) fn modified_ns(&self) -> Option<i64> {
        self.identity.modified.and_then(nanoseconds)
    }

    /// Whether the file that was opened is as it was, whatever its path names by now.
    pub(crate) fn is_unwritten(&self, file: &File) -> bool {
        file.metadata().is_ok_and(|now| Identity::of(&now) == self.identity)
    }

    /// Has zeros read where the file can no longer be, and tells of it, as long as the map is there.
    pub(crate) fn watch(&self) -> Watch {
        Watch(faults::watch(self.map.as_ptr() as usize, self.map.len()))
    }

    /// Asks the system to read a part ahead.
    pub(crate) fn ask_for(&self, part: std::ops::Range<usize>) {
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, part.start, part.len());
        let _ = part;
    }

    /// Gives back the memory of a part, which is read from the file again when it is next touched.
    pub(crate) fn forget(&self, part: std::ops::Range<usize>) {
        #[cfg(unix)]
        {
            let unneeded = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: of a map of a file that is never written to, what comes back is what was there.
            let _ = unsafe { self.map.unchecked_advise_range(unneeded, part.start, part.len()) };
        }
        let _ = part;
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

/// A part of a file, mapped as private memory.
#[derive(Debug)]
pub(crate) struct Image {
    /// Whether the file has failed since. It stands before the memory, to be dropped first.
    pub(crate) watch: Watch,
    /// The memory.
    pub(crate) map: MmapMut,
}

impl Image {
    /// Asks the system to read ahead, `step` bytes at a time, and tells how many were asked for. It costs nothing
    /// where the file is in memory already; where not, the first user waits for a few long reads instead of a million
    /// short ones.
    pub(crate) fn ask_for(&self, step: usize, tell: &mut dyn FnMut(usize)) {
        #[cfg(target_os = "linux")]
        {
            // Large pages where the file system has them.
            let _ = self.map.advise(memmap2::Advice::HugePage);
            for start in (0..self.map.len()).step_by(step) {
                let bytes = step.min(self.map.len() - start);
                let _ = self.map.advise_range(memmap2::Advice::WillNeed, start, bytes);
                tell(start + bytes);
            }
        }
        let _ = step;
        tell(self.map.len());
    }
}

/// Notices when mapped memory can no longer be read, because its file was cut or the disk fails. The system then raises
/// SIGBUS, which would end the process; here whoever reads gets zeros, and the owner can ask.
#[derive(Debug)]
pub(crate) struct Watch(Option<&'static faults::Range>);

impl Watch {
    fn over(map: &MmapMut) -> Watch {
        Watch(faults::watch(map.as_ptr() as usize, map.len()))
    }

    /// Whether zeros were read in the place of what the file had.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.is_some_and(|range| range.has_failed())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(range) = self.0 {
            range.free();
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod faults {
    //! Elsewhere faults end the process.

    #[derive(Debug)]
    pub(super) struct Range;

    impl Range {
        pub(super) fn has_failed(&self) -> bool {
            false
        }

        pub(super) fn free(&self) {}
    }

    pub(super) fn watch(_: usize, _: usize) -> Option<&'static Range> {
        None
    }
}

#[cfg(target_os = "linux")]
mod faults {
    //! The handler of SIGBUS. It touches atomics and makes one system call, as a handler may.

    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    /// Memory that is watched, from `start` to `end`; `end` is 0 while it is not.
    #[derive(Debug)]
    pub(super) struct Range {
        taken: AtomicBool,
        start: AtomicUsize,
        end: AtomicUsize,
        failed: AtomicBool,
    }

    /// Ranges that are there once and for all, and more of them once those are taken. None is ever given back: the
    /// handler may look at any of them at any time.
    #[derive(Debug)]
    struct Block {
        ranges: [Range; 64],
        next: OnceLock<Box<Block>>,
    }

    static BLOCKS: Block = Block::new();

    impl Block {
        const fn new() -> Block {
            let ranges = [const {
                Range {
                    taken: AtomicBool::new(false),
                    start: AtomicUsize::new(0),
                    end: AtomicUsize::new(0),
                    failed: AtomicBool::new(false),
                }
            }; 64];
            Block { ranges, next: OnceLock::new() }
        }

        /// This block and those behind it. It takes no lock, as a handler may not.
        fn all(&'static self) -> impl Iterator<Item = &'static Range> {
            let blocks = std::iter::successors(Some(self), |block| block.next.get().map(|next| &**next));
            blocks.flat_map(|block| &block.ranges)
        }

        /// A range that nobody has, from now on taken.
        fn take(&'static self) -> &'static Range {
            let mut block = self;
            loop {
                let free = |range: &&Range| range.taken.compare_exchange(false, true, SeqCst, SeqCst).is_ok();
                match block.ranges.iter().find(free) {
                    Some(range) => return range,
                    None => block = block.next.get_or_init(|| Box::new(Block::new())),
                }
            }
        }
    }

    /// What was done about the signal before: the standard library tells an overflowing stack by it.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    impl Range {
        pub(super) fn has_failed(&self) -> bool {
            self.failed.load(SeqCst)
        }

        pub(super) fn free(&self) {
            self.end.store(0, SeqCst);
            self.taken.store(false, SeqCst);
        }
    }

    pub(super) fn watch(start: usize, bytes: usize) -> Option<&'static Range> {
        let is_there = BEFORE.get().is_some() || install();
        let range = is_there.then(|| BLOCKS.take())?;
        range.failed.store(false, SeqCst);
        range.start.store(start, SeqCst);
        range.end.store(start + bytes, SeqCst);
        Some(range)
    }

    fn install() -> bool {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the first call only asks, and writes a whole `sigaction` when it succeeds. The second installs a
        // function of the type that SA_SIGINFO asks for, with an empty mask; all-zero is a valid `sigaction`. What was
        // there before is stored first, so the handler always finds it. Two threads that come here at once install the
        // same handler; the one that comes second keeps what the first has stored.
        unsafe {
            if libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) != 0 {
                return false;
            }
            let before = before.assume_init();
            let handler = on_fault as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            if before.sa_sigaction == handler as usize {
                return true;
            }
            let _ = BEFORE.set(before);
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) == 0
        }
    }

    extern "C" fn on_fault(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: the system passes a valid `siginfo_t` to a handler with SA_SIGINFO, with an address for SIGBUS.
        let at = unsafe { (*info).si_addr() } as usize;
        let holding = BLOCKS.all().find_map(|range| {
            let (start, end) = (range.start.load(SeqCst), range.end.load(SeqCst));
            (start..end).contains(&at).then_some((range, end))
        });
        if let Some((range, end)) = holding
            && zeros(at, end)
        {
            range.failed.store(true, SeqCst);
        } else if let Some(before) = BEFORE.get() {
            // SAFETY: `before` came from `sigaction`. The fault is raised again and goes where it went before us.
            unsafe { libc::sigaction(libc::SIGBUS, before, ptr::null_mut()) };
        }
    }

    /// Puts zeros in the place of a map from the page of `at` to the end: what lies behind a hole is of no use either,
    /// and one by one the pages would be more maps than a process may have.
    fn zeros(at: usize, end: usize) -> bool {
        // SAFETY: `at` was touched, so it lies in memory that is mapped; `watch` was given the whole of a private map
        // whose owner frees the range before the map, so all pages from there to the end are that map's and are
        // replaced by pages of the same length and protection. References into it stay valid, and weights are numbers
        // of any bit pattern.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let start = at / page * page;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(start as *mut c_void, end - start, protection, flags, -1, 0) != libc::MAP_FAILED
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn however_many_files_are_watched_a_cut_one_reads_as_zeros() {
        let path = std::env::temp_dir().join(format!("bantam-watched-{}", std::process::id()));
        fs::write(&path, vec![7u8; 1 << 20]).expect("it can be written");
        let all: Vec<(Map, Watch)> = (0..200)
            .map(|_| {
                let (map, _) = Map::open(&path).expect("a regular file");
                let watch = map.watch();
                (map, watch)
            })
            .collect();
        assert!(all.iter().all(|(map, watch)| map.bytes()[1_000_000] == 7 && !watch.has_failed()));
        OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(10)).expect("it is ours");
        for (map, watch) in &all {
            // A page that is cut off; the optimizer is not to know what stood there.
            assert_eq!(std::hint::black_box(map.bytes())[1_000_000], 0);
            assert!(watch.has_failed());
        }
        drop(all);
        fs::remove_file(&path).expect("it is ours");
    }
}
