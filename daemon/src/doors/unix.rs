//! The unix socket: one daemon per socket, by a lock beside it; mode 0600 from its first moment; removed at the end if
//! it is still ours.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use tokio::net::UnixListener;

use super::folder::{self, FolderError};

/// Connections that the system keeps until they are accepted.
const BACKLOG: i32 = 128;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UnixDoorError {
    /// The folder will not do.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Another daemon has it.
    #[error(
        "{}: another daemon serves this socket ({}); use that one, end it, or choose another socket",
        path.display(), holder(*pid)
    )]
    Taken {
        /// The socket.
        path: PathBuf,
        /// The other's process, where it wrote it down.
        pid: Option<u32>,
    },
    /// Something else stands where the socket should.
    #[error("{}: expected nothing or an old socket of this user, found {found}; move it away or choose another socket",
        path.display())]
    Occupied {
        /// The socket.
        path: PathBuf,
        /// What stands there.
        found: &'static str,
    },
    /// The path is no path of a socket.
    #[error("{}: expected an absolute path of at most 107 bytes; choose another socket", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: cannot {doing}: {source}; choose another socket", path.display())]
    System {
        /// The socket or its lock.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or("whose process is not known".to_owned(), |pid| format!("process {pid}"))
}

/// A socket that is ours while this lives.
#[derive(Debug)]
pub struct UnixDoor {
    path: PathBuf,
    lock: File,
    /// Device and node of the socket that was made.
    made: (u64, u64),
}

impl UnixDoor {
    /// Takes the lock, replaces a socket that nobody answers at, and listens. Call it within a runtime.
    ///
    /// # Errors
    /// Where the folder is unsafe, another daemon is there, or the system refuses.
    pub fn open(path: &Path) -> Result<(Self, UnixListener), UnixDoorError> {
        let bad = || UnixDoorError::Path { path: path.to_owned() };
        let (folder, name) =
            path.parent().zip(path.file_name()).filter(|_| path.is_absolute()).ok_or_else(bad)?;
        let uid = rustix::process::geteuid().as_raw();
        let path = folder::checked(folder, uid)?.join(name);
        let address = SocketAddrUnix::new(&path).map_err(|_| bad())?;
        let lock = locked(&path)?;
        clear(&path, &address, uid)?;
        let listener = listening(&path, &address)?;
        let system = |source| UnixDoorError::System { path: path.clone(), doing: "listen", source };
        let found = std::fs::symlink_metadata(&path).map_err(system)?;
        let listener = UnixListener::from_std(listener).map_err(system)?;
        Ok((Self { made: (found.dev(), found.ino()), path, lock }, listener))
    }

    /// Where it is, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        let ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.made);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
        // The lock's file stays: removing it would let two daemons lock two files of one name.
        let _ = self.lock.set_len(0);
    }
}

fn locked(socket: &Path) -> Result<File, UnixDoorError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let system = |doing| {
        let path = path.clone();
        move |source| UnixDoorError::System { path, doing, source }
    };
    let flags =
        i32::try_from(OFlags::NOFOLLOW.bits() | OFlags::NONBLOCK.bits()).expect("flags are an int of C");
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).mode(0o600).custom_flags(flags).open(&path);
    let mut lock = opened.map_err(system("open the lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = lock.take(20).read_to_string(&mut pid);
            return Err(UnixDoorError::Taken { path: socket.to_owned(), pid: pid.trim().parse().ok() });
        }
        Err(TryLockError::Error(source)) => return Err(system("lock")(source)),
    }
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    written.map_err(system("write the lock"))?;
    Ok(lock)
}

/// Removes the socket of a daemon that is no more. The lock is held, so no daemon of ours comes in between.
fn clear(path: &Path, address: &SocketAddrUnix, uid: u32) -> Result<(), UnixDoorError> {
    let occupied = |found| Err(UnixDoorError::Occupied { path: path.to_owned(), found });
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if found.is_symlink() {
        return occupied("a link");
    }
    if !found.file_type().is_socket() {
        return occupied("a file");
    }
    if found.uid() != uid {
        return occupied("a socket of another user");
    }
    let system =
        |doing, source: std::io::Error| UnixDoorError::System { path: path.to_owned(), doing, source };
    // Not waiting: a daemon that is too busy to accept answers with EAGAIN, and is alive.
    let probe = new_socket().map_err(|errno| system("make a socket", errno.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            std::fs::remove_file(path).map_err(|source| system("remove the old socket", source))
        }
        Err(Errno::NOENT) => Ok(()),
        _ => Err(UnixDoorError::Taken { path: path.to_owned(), pid: None }),
    }
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// The file takes its mode from the socket, so it is narrowed before there is a file; the mask of the process plays no
/// part. Where a system ignores that, the folder's check and the mode that is set afterwards hold.
fn listening(
    path: &Path,
    address: &SocketAddrUnix,
) -> Result<std::os::unix::net::UnixListener, UnixDoorError> {
    let system =
        |doing, source: std::io::Error| UnixDoorError::System { path: path.to_owned(), doing, source };
    let socket = new_socket().map_err(|errno| system("make a socket", errno.into()))?;
    let _ = fchmod(&socket, Mode::RUSR | Mode::WUSR);
    bind(&socket, address).map_err(|errno| system("bind", errno.into()))?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, private).map_err(|source| system("set the mode", source))?;
    listen(&socket, BACKLOG).map_err(|errno| system("listen", errno.into()))?;
    Ok(socket.into())
}
