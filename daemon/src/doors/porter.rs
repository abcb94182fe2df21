//! Accepting: room for the connection, TLS, the greeting of HTTP/2, and who it is; all in bounded time and number. An
//! accept that fails (no descriptors left, as a rule) is tried again and ends nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection::{Arrival, Claim, Connection, Counted, Door, Io, Who};
use super::tls;
use crate::metrics::{ByReason, Meters};
use crate::status::Refusal;

/// What every client of HTTP/2 says first.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What others, browsers among them, are told.
const NOT_GRPC: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\nconnection: close\r\n\
    content-length: 43\r\n\r\nexpected gRPC over HTTP/2, found something\n";
/// Connections beyond a door's room that are told so at one time; those beyond hear nothing.
const PORCH: usize = 16;
/// So long do they have to ask and hear it.
const PORCH_TIME: Duration = Duration::from_secs(2);
/// After a failed accept: descriptors come back when connections end.
const PAUSE: Duration = Duration::from_millis(50);
/// A connection that needs a token has so many handshakes' time to show one.
const TRIAL: u32 = 6;

/// Something that listens.
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

enum Caller {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Listener {
    async fn accept(&self) -> io::Result<Caller> {
        match self {
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Caller::Unix(stream)),
            Self::Tcp(listener) => listener.accept().await.map(|(stream, from)| Caller::Tcp(stream, from)),
        }
    }
}

/// Whom a door lets in, and how.
pub(super) enum Entry {
    /// Processes of one user.
    User(u32),
    /// By certificate or token, each where it is set up; or everybody on this machine.
    Tcp { tls: Option<TlsAcceptor>, tokens: bool, open: bool },
}

/// Stands at one door.
pub(super) struct Porter {
    pub(super) entry: Entry,
    pub(super) most: usize,
    pub(super) room: Arc<Semaphore>,
    pub(super) porch: Arc<Semaphore>,
    pub(super) handshake: Duration,
    pub(super) meters: Arc<Meters>,
    pub(super) numbers: Arc<AtomicU64>,
    /// Every connection ends when this does.
    pub(super) closing: CancellationToken,
    pub(super) inside: mpsc::Sender<Connection>,
}

impl Porter {
    pub(super) fn porch() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(PORCH))
    }

    /// Accepts until told to stop. The listener is closed then.
    pub(super) async fn stand(self: Arc<Self>, listener: Listener, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(caller) => {
                    failing = false;
                    self.clone().receive(caller);
                }
                // Clients that left before they were accepted are none of our business.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "cannot accept connections; trying again until it works");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Finds a place, or the porch, where a connection only hears that there is none.
    fn receive(self: Arc<Self>, caller: Caller) {
        let full = Refusal::Connections { most: self.most };
        let (place, refusal) = match self.room.clone().try_acquire_owned() {
            Ok(place) => (place, None),
            Err(_) => match self.porch.clone().try_acquire_owned() {
                Ok(place) => (place, Some(full)),
                Err(_) => return self.dropped(full.reason()),
            },
        };
        tokio::spawn(async move {
            let greeted = tokio::time::timeout(self.handshake, self.greet(caller, place, refusal));
            let greeted = tokio::select! {
                () = self.closing.cancelled() => return,
                greeted = greeted => greeted,
            };
            match greeted {
                Ok(Ok(connection)) => {
                    // Nobody takes it once the server has stopped.
                    let _ = self.inside.send(connection).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a connection ended before it began");
                    self.dropped("NO_HANDSHAKE");
                }
                Err(_) => self.dropped("HANDSHAKE_TOO_SLOW"),
            }
        });
    }

    fn dropped(&self, reason: &'static str) {
        self.meters.connections_dropped.get_or_create(&ByReason { reason }).inc();
    }

    async fn greet(
        &self,
        caller: Caller,
        place: OwnedSemaphorePermit,
        refusal: Option<Refusal>,
    ) -> io::Result<Connection> {
        let mut known = self.recognise(caller).await?;
        if let Some(refusal) = refusal {
            known.claim = Claim::Refused(refusal);
        }
        hear_greeting(&mut known.io).await?;
        let proven = CancellationToken::new();
        let patience = match known.claim {
            Claim::Refused(_) => Some(PORCH_TIME),
            Claim::NeedsToken => Some(self.handshake * TRIAL),
            Claim::Known(_) => None,
        };
        let arrival = Arrival {
            door: known.door,
            address: known.address,
            pid: known.pid,
            claim: known.claim,
            number: self.numbers.fetch_add(1, Ordering::Relaxed) + 1,
            proven: proven.clone(),
        };
        tracing::debug!(connection = arrival.number, door = known.door.name(), claim = ?arrival.claim, "came in");
        Ok(Connection {
            io: known.io,
            greeting: GREETING,
            arrival,
            leave: Box::pin(leave(self.closing.clone(), proven, patience)),
            _place: place,
            _counted: Counted::new(self.meters.clone(), known.door),
        })
    }

    async fn recognise(&self, caller: Caller) -> io::Result<Known> {
        match (caller, &self.entry) {
            (Caller::Unix(stream), Entry::User(own)) => {
                let peer = stream.peer_cred()?;
                let claim = if peer.uid() == *own {
                    Claim::Known(Who::User(peer.uid()))
                } else {
                    Claim::Refused(Refusal::User { uid: peer.uid() })
                };
                Ok(Known { io: Box::new(stream), door: Door::Unix, address: None, pid: peer.pid(), claim })
            }
            (Caller::Tcp(stream, from), Entry::Tcp { tls, tokens, open }) => {
                // Tokens are small messages, each of which somebody waits for.
                stream.set_nodelay(true)?;
                let mut claim = match (*open && from.ip().is_loopback(), tokens) {
                    (true, _) => Claim::Known(Who::Local),
                    (false, true) => Claim::NeedsToken,
                    (false, false) => Claim::Refused(Refusal::NoToken),
                };
                let io: Box<dyn Io> = match tls {
                    None => Box::new(stream),
                    Some(tls) => {
                        let stream = tls.accept(stream).await?;
                        if let Some([own, ..]) = stream.get_ref().1.peer_certificates() {
                            claim = Claim::Known(Who::Certificate(tls::subject(own)));
                        }
                        Box::new(stream)
                    }
                };
                Ok(Known { io, door: Door::Tcp, address: Some(from), pid: None, claim })
            }
            _ => Err(io::Error::other("a door of another kind")),
        }
    }
}

/// A caller whose door has told what it can.
struct Known {
    io: Box<dyn Io>,
    door: Door,
    address: Option<SocketAddr>,
    pid: Option<i32>,
    claim: Claim,
}

/// Reads the greeting to its end, or tells whoever speaks otherwise and gives up.
async fn hear_greeting(io: &mut Box<dyn Io>) -> io::Result<()> {
    let mut heard = [0; GREETING.len()];
    let mut length = 0;
    while length < GREETING.len() {
        let more = io.read(&mut heard[length..]).await?;
        if more == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length += more;
        if heard[..length] != GREETING[..length] {
            io.write_all(NOT_GRPC).await?;
            io.shutdown().await?;
            return Err(io::Error::other("expected the greeting of HTTP/2, found something else"));
        }
    }
    Ok(())
}

/// Ends when the connection must: with the daemon, or when it has not proven itself in time.
async fn leave(closing: CancellationToken, proven: CancellationToken, patience: Option<Duration>) {
    let on_trial = async {
        match patience {
            Some(patience) if tokio::time::timeout(patience, proven.cancelled()).await.is_err() => {}
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        () = closing.cancelled() => {}
        () = on_trial => {}
    }
}
