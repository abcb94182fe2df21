//! What the tests of the running server share: a private folder, a server in this process, and clients.
#![allow(dead_code, reason = "every test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

pub(crate) mod served;

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bantam_daemon::doors::Inherited;
use bantam_daemon::metrics::Meters;
use bantam_daemon::server::{Drain, Server, ServerError};
use bantam_daemon::settings::Settings;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// More than anything here takes on the slowest machine: a test that waits for so long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A folder of one test's own.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bantam-doors-{}-{count}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self(path)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("bantam.sock")
    }

    /// Settings with a socket here, and nothing else that is special.
    pub(crate) fn settings(&self) -> Settings {
        Settings { socket: self.socket(), ..Settings::default() }
    }

    /// A private file.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        mode(&path, 0o600);
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) async fn open(settings: Settings) -> Result<Server, ServerError> {
    Server::open(Arc::new(settings), Inherited::default(), Arc::new(Meters::default())).await
}

pub(crate) struct Running {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) drain: Drain,
    pub(crate) meters: Arc<Meters>,
    task: tokio::task::JoinHandle<Result<(), ServerError>>,
}

impl Running {
    pub(crate) async fn start(settings: Settings) -> Self {
        Self::with(settings, Inherited::default()).await
    }

    pub(crate) async fn with(settings: Settings, inherited: Inherited) -> Self {
        let meters = Arc::new(Meters::default());
        let server = Server::open(Arc::new(settings), inherited, meters.clone()).await.unwrap();
        let (socket, addresses) =
            (server.doors().socket().map(Path::to_owned), server.doors().addresses().to_vec());
        let drain = server.drain();
        let task = tokio::spawn(server.serve(Routes::default(), &["bantam.v1.Test"], &[]));
        Self { socket, addresses, drain, meters, task }
    }

    /// Over the unix socket.
    pub(crate) async fn channel(&self) -> Channel {
        channel(self.socket.as_ref().unwrap()).await.unwrap()
    }

    /// Over the first TCP address.
    pub(crate) async fn tcp(&self) -> Channel {
        let target = format!("http://127.0.0.1:{}", self.addresses[0].port());
        Endpoint::from_shared(target).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn ended(self) {
        tokio::time::timeout(LONG, self.task).await.expect("it ends in time").unwrap().unwrap();
    }

    pub(crate) async fn end(self) {
        self.drain.ask();
        self.drain.ask();
        self.ended().await;
    }
}

pub(crate) async fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    endpoint(socket).connect().await
}

/// Takes so few bytes before they have been read that the daemon soon has to wait: a reply that nobody reads does
/// not end by itself.
pub(crate) async fn narrow_channel(socket: &Path) -> Channel {
    endpoint(socket).initial_stream_window_size(Some(64)).connect().await.unwrap()
}

fn endpoint(socket: &Path) -> Endpoint {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap()
}

/// Asks for health, with one header more.
pub(crate) async fn ask_with(channel: Channel, header: Option<(&'static str, &str)>) -> Result<(), Status> {
    let mut request = Request::new(HealthCheckRequest { service: String::new() });
    if let Some((name, value)) = header {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let asked = tokio::time::timeout(LONG, async move { HealthClient::new(channel).check(request).await });
    asked.await.expect("it answers in time").map(drop)
}

pub(crate) async fn ask(channel: Channel) -> Result<(), Status> {
    ask_with(channel, None).await
}

pub(crate) fn code(result: &Result<(), Status>) -> Code {
    result.as_ref().map_or_else(Status::code, |()| Code::Ok)
}

/// A stream that goes on while its sender lives, and has answered once.
pub(crate) struct Stream {
    pub(crate) from: Streaming<ServerReflectionResponse>,
    pub(crate) to: tokio::sync::mpsc::Sender<ServerReflectionRequest>,
}

fn list() -> ServerReflectionRequest {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    ServerReflectionRequest { host: String::new(), message_request }
}

impl Stream {
    pub(crate) async fn start(channel: Channel) -> Result<Self, Status> {
        let (to, requests) = tokio::sync::mpsc::channel(1);
        to.send(list()).await.unwrap();
        let mut client = ServerReflectionClient::new(channel);
        let mut from = client.server_reflection_info(ReceiverStream::new(requests)).await?.into_inner();
        from.message().await?.expect("an answer");
        Ok(Self { from, to })
    }

    pub(crate) async fn again(&mut self) -> Result<Option<ServerReflectionResponse>, Status> {
        self.to.send(list()).await.unwrap();
        tokio::time::timeout(LONG, self.from.message()).await.expect("it answers in time")
    }
}

/// Waits for a condition that somebody else brings about.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("it comes to hold in time");
}
