//! A connection that came in by a door: the bytes of any of them, who is behind it, and when it must go.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::metrics::{ByDoor, Meters};
use crate::status::Refusal;

/// By which kind of door somebody came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// The unix socket.
    Unix,
    /// TCP, with or without TLS.
    Tcp,
}

impl Door {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
        }
    }
}

/// Who a client is. Limits count by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// A process of this user, by the unix socket.
    User(u32),
    /// The holder of the token with this name.
    Token(Arc<str>),
    /// The holder of a certificate with this subject.
    Certificate(Arc<str>),
    /// Somebody on this machine, by a door that was opened to all of it.
    Local,
}

/// A client whose request was let in; services find it in the request's extensions.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who it is.
    pub who: Who,
    /// Its process, where the door knows.
    pub pid: Option<i32>,
    /// How it came.
    pub door: Door,
    /// From where, by TCP.
    pub address: Option<SocketAddr>,
    /// Which connection, counted from one since the start.
    pub connection: u64,
}

/// What a door knows of a connection before its first request.
#[derive(Debug, Clone)]
pub(super) enum Claim {
    Known(Who),
    NeedsToken,
    Refused(Refusal),
}

/// In the extensions of every request, for the gate.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub(super) door: Door,
    pub(super) address: Option<SocketAddr>,
    pub(super) pid: Option<i32>,
    pub(super) claim: Claim,
    pub(super) number: u64,
    /// Set by the first request that is let in: until then the connection is on trial.
    pub(super) proven: CancellationToken,
}

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Leave = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Counts a connection while it lives.
pub(super) struct Counted(Arc<Meters>, Door);

impl Counted {
    pub(super) fn new(meters: Arc<Meters>, door: Door) -> Self {
        meters.connections.get_or_create(&ByDoor { door: door.name() }).inc();
        Self(meters, door)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.get_or_create(&ByDoor { door: self.1.name() }).dec();
    }
}

/// A connection, greeted.
pub struct Connection {
    pub(super) io: Box<dyn Io>,
    /// What was read while greeting, to be read again.
    pub(super) greeting: &'static [u8],
    pub(super) arrival: Arrival,
    /// Done when the connection must go, whatever the client wants.
    pub(super) leave: Leave,
    pub(super) _place: OwnedSemaphorePermit,
    pub(super) _counted: Counted,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({:?})", self.arrival)
    }
}

impl Connection {
    /// The inner stream, unless its time is over. A client that neither reads nor writes blocks both directions, so
    /// both ask here.
    fn open(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut Box<dyn Io>>> {
        if self.leave.as_mut().poll(context).is_ready() {
            // A future is not polled again after its end.
            self.leave = Box::pin(std::future::ready(()));
            let over = "the connection's time is over";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, over));
        }
        Ok(Pin::new(&mut self.io))
    }
}

impl Connected for Connection {
    type ConnectInfo = Arrival;
    fn connect_info(&self) -> Arrival {
        self.arrival.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.greeting.is_empty() {
            return self.open(cx)?.poll_read(cx, out);
        }
        let (now, later) = self.greeting.split_at(self.greeting.len().min(out.remaining()));
        out.put_slice(now);
        self.greeting = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.open(cx)?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.open(cx)?.poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
