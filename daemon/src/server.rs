//! The server: opens the doors, serves what it is given behind the gate with the settings' limits, and ends in order.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tonic_health::{ServingStatus, pb};

use crate::doors::{DoorError, Doors, Inherited, notify};
use crate::metrics::{Endpoint, EndpointError, Meters};
use crate::settings::Settings;

/// After the streams' time is over they still say so to their clients; then connections are cut.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// What one stream, and one connection, may have sent that nobody took yet: requests are small.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Streams that a client opened and reset before they were looked at, before the connection is ended (rapid reset).
const PENDING_RESETS: usize = 20;
/// Streams that we reset, for a client's mistakes, before the connection is ended.
const OWN_RESETS: usize = 256;

/// How the daemon ends, in three steps: no more requests; streams end; connections are cut. Clones end together.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    begun: CancellationToken,
    over: CancellationToken,
    closing: CancellationToken,
}

impl Drain {
    /// Asks the daemon to end; asked again, it ends at once.
    pub fn ask(&self) {
        if self.begun.is_cancelled() {
            self.over.cancel();
            self.closing.cancel();
        }
        self.begun.cancel();
    }

    /// No new requests from now on. Streams may go on.
    #[must_use]
    pub fn begun(&self) -> CancellationToken {
        self.begun.clone()
    }

    /// Whether new requests are refused.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Streams end now. Those that do not are ended with UNAVAILABLE, and their service sees them dropped.
    #[must_use]
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    pub(crate) fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// The later steps, each in its time.
    async fn go_on(&self, patience: Duration) {
        self.begun.cancelled().await;
        let _ = tokio::time::timeout(patience, self.over.cancelled()).await;
        self.over.cancel();
        let _ = tokio::time::timeout(LAST_WORDS, self.closing.cancelled()).await;
        self.closing.cancel();
    }
}

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A door stays shut.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// Figures cannot be served.
    #[error(transparent)]
    Metrics(#[from] EndpointError),
    /// The descriptions of the services are not sound.
    #[error("reflection: {0}; please report this")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport gave up.
    #[error("the server stopped: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// Signals cannot be heard.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

/// A server whose doors are open, but which lets nobody in yet.
#[derive(Debug)]
pub struct Server {
    settings: Arc<Settings>,
    doors: Doors,
    endpoint: Option<Endpoint>,
    meters: Arc<Meters>,
    drain: Drain,
}

impl Server {
    /// Opens the doors. Call it within a runtime.
    ///
    /// # Errors
    /// Where one cannot be opened.
    pub async fn open(
        settings: Arc<Settings>,
        inherited: Inherited,
        meters: Arc<Meters>,
    ) -> Result<Self, ServerError> {
        let doors = Doors::open(&settings, inherited)?;
        let endpoint = Endpoint::open(&settings.metrics, meters.clone()).await?;
        Ok(Self { settings, doors, endpoint, meters, drain: Drain::default() })
    }

    /// Where the doors are.
    #[must_use]
    pub fn doors(&self) -> &Doors {
        &self.doors
    }

    /// What ends this server, for services and whoever hears signals.
    #[must_use]
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    /// Serves until it was asked to end, and has. `names` are the services for health, `descriptors` their encoded
    /// descriptions for reflection.
    ///
    /// # Errors
    /// Where the descriptions are not sound or the transport gives up.
    pub async fn serve(
        self,
        routes: Routes,
        names: &[&str],
        descriptors: &[&'static [u8]],
    ) -> Result<(), ServerError> {
        let Self { settings, doors, endpoint, meters, drain } = self;
        let (health, service) = tonic_health::server::health_reporter();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        for name in &names {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        let (v1, v1alpha) = (reflection(descriptors).build_v1()?, reflection(descriptors).build_v1alpha()?);
        let routes = routes.add_service(service).add_service(v1).add_service(v1alpha);
        let mut builder = limited(&settings).layer(doors.gate(&settings, &meters, &drain));
        tracing::info!(socket = ?doors.socket(), tcp = ?doors.addresses(), "serving");
        let (connections, unix) = doors.connections(&settings, &meters, &drain);
        if let Some(endpoint) = endpoint {
            tokio::spawn(endpoint.serve(drain.closing()));
        }
        let incoming = connections.map(Ok::<_, std::convert::Infallible>);
        let begun = drain.begun().cancelled_owned();
        let serving = builder.add_routes(routes).serve_with_incoming_shutdown(incoming, begun);
        notify("READY=1");
        let ended = until_ended(serving, &drain, settings.drain, health, names).await;
        drain.closing.cancel();
        drop(unix);
        tracing::info!("ended");
        Ok(ended?)
    }
}

/// Serves while the steps of ending take their time. A task that hangs does not keep the process.
async fn until_ended<E>(
    serving: impl Future<Output = Result<(), E>>,
    drain: &Drain,
    patience: Duration,
    health: HealthReporter,
    names: Vec<String>,
) -> Result<(), E> {
    let ending = async {
        drain.begun.cancelled().await;
        notify("STOPPING=1");
        tracing::info!(?patience, "ending: no new requests, streams may go on for a while");
        tell_watchers(health, names).await;
        drain.go_on(patience).await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        ended = serving => ended,
        () = ending => Ok(()),
    }
}

/// Watchers of health learn that it is over, and their streams, which would go on for ever, end.
async fn tell_watchers(mut health: HealthReporter, mut names: Vec<String>) {
    names.push(String::new());
    for name in names {
        health.set_service_status(&name, ServingStatus::NotServing).await;
        health.clear_service_status(&name).await;
    }
}

fn reflection<'a>(descriptors: &[&'static [u8]]) -> tonic_reflection::server::Builder<'a> {
    let builder = tonic_reflection::server::Builder::configure();
    let builder = builder.register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET);
    descriptors.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set))
}

fn limited(settings: &Settings) -> tonic::transport::Server {
    let header_bytes = u32::try_from(settings.header_bytes.0).unwrap_or(u32::MAX);
    let alive = Some(settings.keep_alive).filter(|span| !span.is_zero());
    tonic::transport::Server::builder()
        .http2_max_header_list_size(header_bytes)
        .max_concurrent_streams(settings.streams)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(OWN_RESETS))
        .http2_keepalive_interval(alive)
        .http2_keepalive_timeout(alive)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Asks the daemon to end at SIGTERM or SIGINT, and again at the second one. Ends with the daemon's doors.
///
/// # Errors
/// Where the system does not let signals be heard.
pub async fn hear_signals(drain: Drain) -> Result<(), ServerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Signals)?;
    // Without tokens nobody else hears it, and it would end the process at once.
    let mut hangup = signal(SignalKind::hangup()).map_err(ServerError::Signals)?;
    loop {
        tokio::select! {
            () = drain.closing.cancelled() => return Ok(()),
            _ = hangup.recv() => continue,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        drain.ask();
    }
}
