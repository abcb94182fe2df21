//! A whole daemon in this process with a folder of its own, and how it is asked to generate.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bantam_daemon::doors::Inherited;
use bantam_daemon::metrics::Meters;
use bantam_daemon::server::Drain;
use bantam_daemon::settings::{Budget, PrecisionName, Settings};
use bantam_daemon::{Daemon, RunError};
use bantam_model::native::Store;
use bantam_proto::v1;
use bantam_proto::v1::generation_service_client::GenerationServiceClient;
use bantam_proto::v1::model_service_client::ModelServiceClient;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::{ErrorDetails, StatusExt};

use super::{Folder, LONG, channel};

/// A daemon in this process, with a folder of its own.
pub(crate) struct Served {
    pub(crate) folder: Folder,
    pub(crate) drain: Drain,
    pub(crate) meters: Arc<Meters>,
    pub(crate) addresses: Vec<SocketAddr>,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
}

/// Exact precision, no native files, the golden models by their names.
pub(crate) fn settings(folder: &Folder) -> Settings {
    Settings {
        load_precision: PrecisionName::Exact,
        native_files: false,
        threads: 1,
        context: 256,
        ram_budget: Budget::Bytes(1 << 30),
        model_folders: vec![goldens()],
        ..folder.settings()
    }
}

fn store(folder: &Folder) -> Store {
    Store::new(folder.0.join("native"))
}

pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/models").canonicalize().unwrap()
}

impl Served {
    pub(crate) async fn start() -> Self {
        Self::with(|settings| settings).await
    }

    pub(crate) async fn with(change: impl FnOnce(Settings) -> Settings) -> Self {
        Self::open(change, |_| None).await
    }

    /// With a place for native files.
    pub(crate) async fn keeping(change: impl FnOnce(Settings) -> Settings) -> Self {
        Self::open(change, |folder| Some(store(folder))).await
    }

    pub(crate) fn store(&self) -> Store {
        store(&self.folder)
    }

    async fn open(
        change: impl FnOnce(Settings) -> Settings,
        store: impl FnOnce(&Folder) -> Option<Store>,
    ) -> Self {
        let folder = Folder::new();
        let (settings, store) = (change(settings(&folder)), store(&folder));
        let daemon = Daemon::open(settings, Inherited::default(), store).await.unwrap();
        let (drain, meters) = (daemon.drain(), daemon.meters());
        let addresses = daemon.doors().addresses().to_vec();
        Served { folder, drain, meters, addresses, task: tokio::spawn(daemon.serve()) }
    }

    pub(crate) async fn channel(&self) -> Channel {
        channel(&self.folder.socket()).await.unwrap()
    }

    pub(crate) async fn generation(&self) -> GenerationServiceClient<Channel> {
        GenerationServiceClient::new(self.channel().await)
    }

    pub(crate) async fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel().await)
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

/// A reply, as it came.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) started: v1::Started,
    pub(crate) tokens: Vec<v1::Token>,
    pub(crate) finished: v1::Finished,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// `prompt` for so many tokens, sampled with a seed.
pub(crate) fn asked(model: &str, prompt: &str, max_new_tokens: u32, seed: u64) -> v1::GenerateRequest {
    v1::GenerateRequest {
        model: model.to_owned(),
        input: Some(v1::generate_request::Input::Prompt(prompt.to_owned())),
        max_new_tokens: Some(max_new_tokens),
        options: Some(v1::GenerationOptions { seed: Some(seed), ..v1::GenerationOptions::default() }),
    }
}

/// All of a reply; its order is checked.
pub(crate) async fn generate(
    client: &mut GenerationServiceClient<Channel>,
    request: v1::GenerateRequest,
) -> Result<Reply, Status> {
    use v1::generate_response::Event;
    let mut stream = client.generate(request).await?.into_inner();
    let mut reply = Reply::default();
    let mut is_over = false;
    while let Some(response) = stream.message().await? {
        assert!(!is_over, "nothing comes after the end");
        match response.event.unwrap() {
            Event::Started(started) => {
                assert!(reply.tokens.is_empty());
                reply.started = started;
            }
            Event::Token(token) => {
                assert!(!reply.started.model_id.is_empty(), "the beginning comes first");
                reply.tokens.push(token);
            }
            Event::Finished(finished) => (reply.finished, is_over) = (finished, true),
        }
    }
    assert!(is_over, "a reply has an end");
    Ok(reply)
}

/// The fields that a refusal names, and its details.
pub(crate) fn fields(status: &Status) -> (Vec<String>, ErrorDetails) {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    (violations.into_iter().map(|violation| violation.field).collect(), details)
}
