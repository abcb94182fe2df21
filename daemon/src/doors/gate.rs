//! The gate that every request passes before a service sees it: who asks, whether it may, whether it asks too much at
//! once, and how it ended. Refusals cost no work behind it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::codegen::http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Body as HttpBody, Bytes};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use super::connection::{Arrival, Claim, Door, Peer, Who};
use super::timeout;
use super::tokens::Tokens;
use crate::metrics::{ByCode, ByReason, Meters};
use crate::server::Drain;
use crate::settings::Settings;
use crate::status::{Refusal, Trouble, unread};

/// Counts requests since the start; in the extensions of every request, and in its log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(pub u64);

/// The gate as a tower layer.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Rules>);

struct Rules {
    tokens: Option<Arc<Tokens>>,
    most: usize,
    arrival: Duration,
    open: Mutex<HashMap<Who, usize>>,
    meters: Arc<Meters>,
    drain: Drain,
    numbers: AtomicU64,
}

impl Gate {
    pub(super) fn new(
        tokens: Option<Arc<Tokens>>,
        settings: &Settings,
        meters: Arc<Meters>,
        drain: Drain,
    ) -> Self {
        let (most, arrival, open) = (settings.requests, settings.arrival, Mutex::default());
        Self(Arc::new(Rules { tokens, most, arrival, open, meters, drain, numbers: AtomicU64::new(0) }))
    }
}

impl Rules {
    /// Who asks, or why it may not. What a connection is told at all comes before what its request says.
    fn judge(&self, request: &Request<Body>) -> Result<Peer, Refusal> {
        let arrival = request.extensions().get::<Arrival>().ok_or(Refusal::NoDoor)?;
        if self.drain.has_begun() {
            return Err(Refusal::Draining);
        }
        let headers = request.headers();
        if let (Door::Tcp, Some(header)) = (arrival.door, browser(headers)) {
            return Err(Refusal::Browser { header });
        }
        let who = match &arrival.claim {
            Claim::Refused(refusal) => return Err(refusal.clone()),
            Claim::Known(Who::Local) if !asks_for_loopback(request) => return Err(Refusal::Host),
            Claim::Known(who) => who.clone(),
            Claim::NeedsToken => Who::Token(self.token(headers)?),
        };
        arrival.proven.cancel();
        let Arrival { pid, door, address, number: connection, .. } = *arrival;
        Ok(Peer { who, pid, door, address, connection })
    }

    fn token(&self, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
        let given = headers.get(AUTHORIZATION).ok_or(Refusal::NoToken)?.as_bytes();
        let (scheme, token) = given.split_at_checked(7).ok_or(Refusal::NoToken)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(Refusal::NoToken);
        }
        self.tokens.as_ref().and_then(|tokens| tokens.holder(token)).ok_or(Refusal::WrongToken)
    }

    fn enter(self: &Arc<Self>, who: &Who) -> Result<Place, Refusal> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(who.clone()).or_default();
        if *count >= self.most {
            return Err(Refusal::Requests { most: self.most });
        }
        *count += 1;
        self.meters.streams.inc();
        Ok(Place { rules: self.clone(), who: who.clone(), code: None })
    }
}

/// A request's place while it is open; knows how it ended.
struct Place {
    rules: Arc<Rules>,
    who: Who,
    code: Option<Code>,
}

impl Place {
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.rules.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.who);
            }
        }
        drop(open);
        let code = self.code.map_or("Dropped".to_owned(), |code| format!("{code:?}"));
        tracing::debug!(%code, "a request ended");
        self.rules.meters.streams.dec();
        self.rules.meters.requests.get_or_create(&ByCode { code }).inc();
    }
}

/// The header that only browsers send. A script cannot leave these out, and a program has no use for them.
fn browser(headers: &HeaderMap) -> Option<&'static str> {
    const FETCH: [&str; 3] = ["sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"];
    if headers.contains_key(ORIGIN) {
        return Some("origin");
    }
    FETCH.into_iter().find(|name| headers.contains_key(*name))
}

/// A name that somebody made point here (DNS rebinding) still stands in the request.
fn asks_for_loopback(request: &Request<Body>) -> bool {
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let host = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    (authority.is_some() || host.is_some())
        && authority.is_none_or(host_is_loopback)
        && host.is_none_or(host_is_loopback)
}

/// Whether a host, with or without its port, is this machine by its own address.
pub(crate) fn host_is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, rules: self.0.clone() }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    inner: S,
    rules: Arc<Rules>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        let rules = self.rules.clone();
        let number = rules.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let entered =
            rules.judge(&request).and_then(|peer| rules.enter(&peer.who).map(|place| (peer, place)));
        let (peer, place) = match entered {
            Ok(entered) => entered,
            Err(refusal) => {
                tracing::debug!(request = number, reason = refusal.reason(), "a request was refused");
                rules.meters.refusals.get_or_create(&ByReason { reason: refusal.reason() }).inc();
                return Box::pin(std::future::ready(Ok(refusal.status().into_http())));
            }
        };
        let span = tracing::info_span!("request", id = number, path = %request.uri().path(), who = ?peer.who);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(RequestId(number));
        let request = Arriving::around(request, rules.arrival);
        // The service that was asked whether it is ready must be the one that is called.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let over = rules.drain.over();
        let late = late(request.headers());
        let answer = async move {
            let response = tokio::select! {
                biased;
                () = over.cancelled() => Refusal::Draining.status().into_http(),
                response = inner.call(request) => {
                    let response = response?;
                    unread(response.headers()).map_or(response, Status::into_http)
                }
                () = late => Status::from(Trouble::Deadline).into_http(),
            };
            Ok(Held::around(response, place, over))
        };
        Box::pin(answer.instrument(span))
    }
}

/// Ends when the client's time is over, at once where there is less of it than a timer counts in.
fn late(headers: &HeaderMap) -> impl Future<Output = ()> + Send + 'static {
    let left = headers.get(timeout::HEADER).and_then(|value| timeout::of_gate(value.as_bytes()));
    let timer = left.filter(|left| left.as_millis() > 0).map(tokio::time::sleep);
    async move {
        match (left, timer) {
            (None, _) => std::future::pending().await,
            (Some(_), None) => {}
            (Some(_), Some(timer)) => timer.await,
        }
    }
}

/// Of what clients send in a stream that may stay open: reflection's questions, an editor's session.
const LONG: [&str; 2] = ["/grpc.reflection.", "/bantam.v1.GenerationService/Session"];

/// The body of a request, which has to come in its time: until then it has a place, and nobody can look at it.
struct Arriving {
    inner: Body,
    limit: Duration,
    late: Pin<Box<tokio::time::Sleep>>,
}

impl Arriving {
    fn around(request: Request<Body>, limit: Duration) -> Request<Body> {
        if LONG.iter().any(|prefix| request.uri().path().starts_with(prefix)) {
            return request;
        }
        let late = Box::pin(tokio::time::sleep(limit));
        request.map(|inner| Body::new(Self { inner, limit, late }))
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Pending if self.late.as_mut().poll(context).is_ready() => {
                Poll::Ready(Some(Err(Refusal::Late { seconds: self.limit.as_secs() }.status())))
            }
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// A body that keeps the request's place until its end, and has an end when the daemon has.
struct Held {
    inner: Body,
    place: Option<Place>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Held {
    fn around(response: Response<Body>, mut place: Place, over: CancellationToken) -> Response<Body> {
        place.note(response.headers());
        let over = Box::pin(over.cancelled_owned());
        response.map(|inner| Body::new(Self { inner, place: Some(place), over }))
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        if this.place.is_none() {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending if this.over.as_mut().poll(context).is_ready() => {
                // The stream behind is dropped, which tells its service.
                this.inner = Body::empty();
                let trailers = Refusal::Draining.status().into_http::<Body>().into_parts().0.headers;
                Some(Ok(http_body::Frame::trailers(trailers)))
            }
            Poll::Pending => return Poll::Pending,
        };
        if let (Some(Ok(frame)), Some(place)) = (&frame, &mut this.place)
            && let Some(trailers) = frame.trailers_ref()
        {
            place.note(trailers);
        }
        let ended =
            frame.as_ref().is_none_or(|frame| frame.as_ref().map_or(true, http_body::Frame::is_trailers));
        if ended {
            this.place = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_own_names_are_loopback() {
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.8.9.1:7421", "[::1]", "[::1]:7421"] {
            assert!(host_is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "[::1",
        ] {
            assert!(!host_is_loopback(host), "{host}");
        }
    }
}
