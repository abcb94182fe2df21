//! The services, asked by a client over the unix socket of a daemon in this process, with the carried model and small
//! golden ones.
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

#[path = "../support/mod.rs"]
mod support;

mod ends;
mod generation;
mod models;
mod refusals;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bantam_daemon::doors::Inherited;
use bantam_daemon::metrics::Meters;
use bantam_daemon::server::Drain;
use bantam_daemon::settings::{Budget, PrecisionName, Settings};
use bantam_daemon::{Daemon, RunError};
use bantam_proto::v1;
use bantam_proto::v1::generation_service_client::GenerationServiceClient;
use bantam_proto::v1::model_service_client::ModelServiceClient;
use support::{Folder, LONG, channel};
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::{ErrorDetails, StatusExt};

/// A daemon in this process, with a folder of its own.
struct Served {
    folder: Folder,
    drain: Drain,
    meters: Arc<Meters>,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
}

/// Exact precision, no native files, the golden models by their names.
fn settings(folder: &Folder) -> Settings {
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

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/models").canonicalize().unwrap()
}

impl Served {
    async fn start() -> Self {
        Self::with(|settings| settings).await
    }

    async fn with(change: impl FnOnce(Settings) -> Settings) -> Self {
        let folder = Folder::new();
        let settings = change(settings(&folder));
        let daemon = Daemon::open(settings, Inherited::default(), None).await.unwrap();
        let (drain, meters) = (daemon.drain(), daemon.meters());
        Served { folder, drain, meters, task: tokio::spawn(daemon.serve()) }
    }

    async fn channel(&self) -> Channel {
        channel(&self.folder.socket()).await.unwrap()
    }

    async fn generation(&self) -> GenerationServiceClient<Channel> {
        GenerationServiceClient::new(self.channel().await)
    }

    async fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel().await)
    }

    async fn ended(self) {
        tokio::time::timeout(LONG, self.task).await.expect("it ends in time").unwrap().unwrap();
    }

    async fn end(self) {
        self.drain.ask();
        self.drain.ask();
        self.ended().await;
    }
}

/// A reply, as it came.
#[derive(Debug, Default)]
struct Reply {
    started: v1::Started,
    tokens: Vec<v1::Token>,
    finished: v1::Finished,
}

impl Reply {
    fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }

    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// `prompt` for so many tokens, sampled with a seed.
fn asked(model: &str, prompt: &str, max_new_tokens: u32, seed: u64) -> v1::GenerateRequest {
    v1::GenerateRequest {
        model: model.to_owned(),
        input: Some(v1::generate_request::Input::Prompt(prompt.to_owned())),
        max_new_tokens: Some(max_new_tokens),
        options: Some(v1::GenerationOptions { seed: Some(seed), ..v1::GenerationOptions::default() }),
    }
}

/// All of a reply; its order is checked.
async fn generate(
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
fn fields(status: &Status) -> (Vec<String>, ErrorDetails) {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    (violations.into_iter().map(|violation| violation.field).collect(), details)
}
