//! What a service manager gives and is told: sockets that it listens at for us, and when we are ready.
//! The protocol is a few variables and datagrams; without a manager nothing happens here.

use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixListener};

use listenfd::ListenFd;

/// More sockets than anybody passes; the count comes from the environment.
const SOCKETS_MAX: usize = 64;

/// Sockets that were listening before this process began.
#[derive(Debug, Default)]
pub struct Inherited {
    /// In place of the settings' socket.
    pub unix: Vec<UnixListener>,
    /// Beside the settings' addresses, and under their rules.
    pub tcp: Vec<TcpListener>,
}

/// A socket of another kind.
#[derive(Debug, thiserror::Error)]
#[error(
    "$LISTEN_FDS: socket {at} ({name:?}) is neither a stream of unix nor of TCP ({source}); \
     give ListenStream= in the unit, and nothing else"
)]
pub struct InheritedError {
    at: usize,
    name: String,
    source: std::io::Error,
}

impl Inherited {
    /// Takes them out of the environment. Call it first of all, before there are other threads.
    ///
    /// # Errors
    /// Where one is no listening stream.
    pub fn take() -> Result<Self, InheritedError> {
        let mut taken = Self::default();
        // Without a pid the variables may be those of a parent; the library would take them.
        if std::env::var_os("LISTEN_PID").is_none() {
            return Ok(taken);
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = ListenFd::from_env();
        for at in 0..sockets.len().min(SOCKETS_MAX) {
            if let Ok(Some(socket)) = sockets.take_unix_listener(at) {
                taken.unix.push(socket);
                names.next();
                continue;
            }
            let name = names.next().unwrap_or_default();
            match sockets.take_tcp_listener(at) {
                Ok(Some(socket)) => taken.tcp.push(socket),
                Ok(None) => {}
                Err(source) => return Err(InheritedError { at, name: name.to_owned(), source }),
            }
        }
        Ok(taken)
    }
}

/// Tells the manager, where there is one: `READY=1`, `STOPPING=1`. That it does not hear is no reason to stop.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state) {
        tracing::warn!(%error, "the service manager ($NOTIFY_SOCKET) cannot be told {state}");
    }
}

fn send(path: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = std::os::unix::ffi::OsStrExt::as_bytes(path).strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(state.as_bytes(), &address).map(drop);
    }
    socket.send_to(state.as_bytes(), path).map(drop)
}
