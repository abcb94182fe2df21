//! Servers on a unix socket, each with a runtime of its own in this process, and the client that reads replies.

use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Instant;

use bantam_daemon::Daemon;
use bantam_daemon::doors::Inherited;
use bantam_daemon::scheduler::paced::Pace;
use bantam_daemon::settings::{self, Flags, Surroundings};
use bantam_proto::v1::generate_request::Input;
use bantam_proto::v1::generate_response::Event;
use bantam_proto::v1::generation_service_client::GenerationServiceClient;
use bantam_proto::v1::generation_service_server::GenerationServiceServer;
use bantam_proto::v1::{GenerateRequest, GenerateResponse, GenerationOptions, TokenIds};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

use crate::Failed;
use crate::bare::Bare;

pub(crate) type Client = GenerationServiceClient<Channel>;

/// A private folder for sockets, gone with the bench.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Result<Self, Failed> {
        let path = std::env::temp_dir().join(format!("bantam-bench-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder(path))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sock"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that runs until this is dropped.
pub(crate) struct Served {
    _runtime: Runtime,
    socket: PathBuf,
}

/// As many threads as `bantamd` takes on a machine of two cores.
fn start<T>(
    socket: PathBuf,
    open: impl Future<Output = Result<T, Failed>>,
    serve: impl FnOnce(T),
) -> Result<Served, Failed> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let opened = runtime.block_on(open)?;
    runtime.block_on(async { serve(opened) });
    Ok(Served { _runtime: runtime, socket })
}

/// The real daemon, with settings as its command line takes them.
pub(crate) fn daemon(
    folder: &Folder,
    pace: Option<Pace>,
    values: Vec<(String, Vec<String>)>,
) -> Result<Served, Failed> {
    let socket = folder.socket("bantam");
    let flags = Flags { config: Some("/dev/null".into()), values };
    let mut settings = settings::read(&flags, &Surroundings::default())?.settings;
    settings.socket = socket.clone();
    let opened = async {
        let daemon = Daemon::open(settings, Inherited::default(), None).await?;
        pace.into_iter().for_each(|pace| daemon.pace(pace));
        Ok(daemon)
    };
    start(socket, opened, |daemon| drop(tokio::spawn(daemon.serve())))
}

/// The bare server.
pub(crate) fn bare(folder: &Folder, bare: Bare) -> Result<Served, Failed> {
    let socket = folder.socket("bare");
    let opened = async { Ok(UnixListener::bind(&socket)?) };
    start(socket.clone(), opened, |listener| {
        let serving = Server::builder().add_service(GenerationServiceServer::new(bare));
        tokio::spawn(serving.serve_with_incoming(UnixListenerStream::new(listener)));
    })
}

impl Served {
    pub(crate) async fn client(&self) -> Result<Client, Failed> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display()))?;
        Ok(GenerationServiceClient::new(endpoint.connect().await?))
    }
}

/// So many new tokens, whatever the model would rather do.
pub(crate) fn request(model: &str, ids: Vec<u32>, tokens: u32) -> GenerateRequest {
    let options =
        GenerationOptions { do_sample: Some(false), ignore_eos: true, ..GenerationOptions::default() };
    GenerateRequest {
        model: model.to_owned(),
        input: Some(Input::PromptIds(TokenIds { ids })),
        max_new_tokens: Some(tokens),
        options: Some(options),
    }
}

/// A reply, and when it came.
pub(crate) struct Reply {
    pub(crate) sent: Instant,
    pub(crate) tokens: Vec<Instant>,
    pub(crate) messages: Vec<GenerateResponse>,
}

/// Asks and reads to the end.
pub(crate) async fn ask(mut client: Client, request: GenerateRequest) -> Result<Reply, tonic::Status> {
    let mut reply = Reply { sent: Instant::now(), tokens: Vec::new(), messages: Vec::new() };
    let mut stream = client.generate(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        if matches!(message.event, Some(Event::Token(_))) {
            reply.tokens.push(Instant::now());
        }
        reply.messages.push(message);
    }
    Ok(reply)
}

/// The same for many at once, over one connection.
pub(crate) async fn ask_all(client: &Client, requests: Vec<GenerateRequest>) -> Result<Vec<Reply>, Failed> {
    let mut asked = JoinSet::new();
    requests.into_iter().for_each(|request| drop(asked.spawn(ask(client.clone(), request))));
    let mut replies = Vec::new();
    while let Some(reply) = asked.join_next().await {
        replies.push(reply??);
    }
    Ok(replies)
}
