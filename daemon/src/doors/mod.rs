//! The doors: ways into the daemon. All give one stream of connections, each with who is behind it; the gate judges
//! every request by that. A unix socket belongs to one user; TCP needs a token or a certificate, unless it is this
//! machine alone and was opened on purpose.

mod connection;
mod folder;
mod gate;
mod porter;
mod systemd;
pub(crate) mod timeout;
mod tls;
mod tokens;
mod unix;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::metrics::Meters;
use crate::server::Drain;
use crate::settings::Settings;

pub use connection::{Arrival, Connection, Door, Peer, Who};
pub use folder::FolderError;
pub use gate::RequestId;
pub(crate) use gate::{Gate, host_is_loopback};
use porter::{Entry, Listener, Porter};
pub(crate) use systemd::notify;
pub use systemd::{Inherited, InheritedError};
pub use tls::TlsError;
use tokens::Tokens;
pub use tokens::TokensError;
pub use unix::{UnixDoor, UnixDoorError};

/// Connections that were greeted and wait for the server, which takes them at once.
const GREETED: usize = 16;

/// Why the daemon cannot open its doors.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The unix socket.
    #[error(transparent)]
    Unix(#[from] UnixDoorError),
    /// The tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address that would let anybody in.
    #[error(
        "tcp.listen: {at}: expected tcp.tokens or tls.client_ca, found neither, so that anybody could come in; \
         set one, or for an address of this machine tcp.open_loopback"
    )]
    Open {
        /// The address.
        at: SocketAddr,
    },
    /// An address that cannot be had.
    #[error("tcp.listen: {at}: {source}; choose another address, or end the program that has it")]
    Address {
        /// The address, or what is known of an inherited one.
        at: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A socket of the service manager that cannot be used.
    #[error("a socket of the service manager cannot be used: {0}; see the unit's ListenStream=")]
    Passed(std::io::Error),
}

/// Open doors, before anybody is let in.
pub struct Doors {
    unix: Option<UnixDoor>,
    listeners: Vec<(Listener, Entry)>,
    addresses: Vec<SocketAddr>,
    tokens: Option<Arc<Tokens>>,
}

impl std::fmt::Debug for Doors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doors")
            .field("unix", &self.unix)
            .field("tcp", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Doors {
    /// Opens all that the settings name, or none. Call it within a runtime.
    ///
    /// # Errors
    /// The first that is unsafe or cannot be had.
    pub fn open(settings: &Settings, inherited: Inherited) -> Result<Self, DoorError> {
        let tokens = match settings.tcp_tokens.as_os_str().is_empty() {
            true => None,
            false => Some(Arc::new(Tokens::read(&settings.tcp_tokens)?)),
        };
        let mut doors = Self { unix: None, listeners: Vec::new(), addresses: Vec::new(), tokens };
        doors.open_tcp(settings, inherited.tcp)?;
        let uid = rustix::process::geteuid().as_raw();
        for socket in &inherited.unix {
            socket.set_nonblocking(true).map_err(DoorError::Passed)?;
        }
        for socket in inherited.unix {
            let listener = UnixListener::from_std(socket).map_err(DoorError::Passed)?;
            doors.listeners.push((Listener::Unix(listener), Entry::User(uid)));
        }
        let passed = doors.listeners.iter().any(|(listener, _)| matches!(listener, Listener::Unix(_)));
        if !passed {
            let (door, listener) = UnixDoor::open(&settings.socket)?;
            doors.unix = Some(door);
            doors.listeners.push((Listener::Unix(listener), Entry::User(uid)));
        }
        Ok(doors)
    }

    /// Every address is judged before any is bound.
    fn open_tcp(&mut self, settings: &Settings, passed: Vec<std::net::TcpListener>) -> Result<(), DoorError> {
        let tls = tls::acceptor(settings, self.tokens.is_some())?;
        let mut judged = Vec::new();
        for socket in &passed {
            judged.push(socket.local_addr().map_err(DoorError::Passed)?);
        }
        judged.extend(&settings.tcp_listen);
        for at in &judged {
            self.judge(*at, settings)?;
        }
        let bound = settings.tcp_listen.iter().map(|at| {
            let failed = |source| DoorError::Address { at: at.to_string(), source };
            std::net::TcpListener::bind(at).map_err(failed)
        });
        let sockets = passed.into_iter().map(Ok).chain(bound).collect::<Result<Vec<_>, _>>()?;
        for (socket, at) in sockets.into_iter().zip(&judged) {
            let failed = |source| DoorError::Address { at: at.to_string(), source };
            socket.set_nonblocking(true).map_err(failed)?;
            let listener = TcpListener::from_std(socket).map_err(failed)?;
            self.addresses.push(listener.local_addr().map_err(failed)?);
            let open = settings.tcp_open_loopback && at.ip().is_loopback();
            let entry = Entry::Tcp { tls: tls.clone(), tokens: self.tokens.is_some(), open };
            self.listeners.push((Listener::Tcp(listener), entry));
        }
        Ok(())
    }

    fn judge(&self, at: SocketAddr, settings: &Settings) -> Result<(), DoorError> {
        let by_certificate = !settings.tls_client_ca.as_os_str().is_empty();
        let open = settings.tcp_open_loopback && at.ip().is_loopback();
        if !(by_certificate || self.tokens.is_some() || open) {
            return Err(DoorError::Open { at });
        }
        let plain = settings.tls_certificate.as_os_str().is_empty();
        if plain && !at.ip().is_loopback() {
            tracing::warn!(%at, "tokens and texts cross the network unencrypted; set tls.certificate and tls.key");
        }
        Ok(())
    }

    /// Where the unix socket is, links resolved, unless a service manager gave it.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.unix.as_ref().map(UnixDoor::path)
    }

    /// The TCP addresses that were bound.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(crate) fn gate(&self, settings: &Settings, meters: &Arc<Meters>, drain: &Drain) -> Gate {
        Gate::new(self.tokens.clone(), settings, meters.clone(), drain.clone())
    }

    /// Lets connections in until the drain begins. The unix socket's file goes when the guard does.
    pub(crate) fn connections(
        self,
        settings: &Settings,
        meters: &Arc<Meters>,
        drain: &Drain,
    ) -> (ReceiverStream<Connection>, Option<UnixDoor>) {
        let (inside, greeted) = mpsc::channel(GREETED);
        let numbers = Arc::new(AtomicU64::new(0));
        for (listener, entry) in self.listeners {
            let porter = Porter {
                entry,
                most: settings.connections,
                room: Arc::new(Semaphore::new(settings.connections)),
                porch: Porter::porch(),
                handshake: settings.handshake,
                meters: meters.clone(),
                numbers: numbers.clone(),
                closing: drain.closing(),
                inside: inside.clone(),
            };
            tokio::spawn(Arc::new(porter).stand(listener, drain.begun()));
        }
        if let Some(tokens) = self.tokens {
            tokio::spawn(tokens.follow(drain.begun()));
        }
        (ReceiverStream::new(greeted), self.unix)
    }
}
