//! A daemon that says what a test wants it to say: the client's side alone is looked at.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bantam_proto::v1;
use bantam_proto::v1::generation_service_server::{GenerationService, GenerationServiceServer};
use bantam_proto::v1::model_service_server::{ModelService, ModelServiceServer};
use bantam_proto::v1::watch_residency_response::Event as Watched;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::Folder;

/// What it answers, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    /// What `Load` is refused with.
    pub(crate) refuses_load: Option<(Code, &'static str)>,
    /// Whether answers go on until somebody ends them.
    pub(crate) endless: bool,
    pub(crate) loads: Vec<v1::LoadRequest>,
    pub(crate) chats: Vec<v1::ChatRequest>,
    pub(crate) generations: Vec<v1::GenerateRequest>,
    pub(crate) unloads: Vec<String>,
    pub(crate) budgets: Vec<v1::DeviceBudget>,
    /// Streams that were ended by their clients.
    pub(crate) ended: usize,
}

#[derive(Clone, Default)]
struct Service(Arc<Mutex<Script>>);

/// The daemon; it is gone with the value.
pub(crate) struct Fake {
    _runtime: Runtime,
    folder: Folder,
    service: Service,
}

impl Fake {
    pub(crate) fn start(script: Script) -> Self {
        let folder = Folder::new();
        let service = Service(Arc::new(Mutex::new(script)));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(async { UnixListener::bind(folder.path("bantam.sock")).unwrap() });
        let (health, health_service) = tonic_health::server::health_reporter();
        drop(health);
        let server = tonic::transport::Server::builder()
            .add_service(health_service)
            .add_service(ModelServiceServer::new(service.clone()))
            .add_service(GenerationServiceServer::new(service.clone()));
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Fake { _runtime: runtime, folder, service }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path("bantam.sock").into()
    }

    /// What it was asked so far.
    pub(crate) fn asked<T>(&self, look: impl FnOnce(&Script) -> T) -> T {
        look(&self.service.0.lock().unwrap())
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn all<T: Send + 'static>(messages: Vec<T>) -> Response<Answers<T>> {
    Response::new(Box::pin(tokio_stream::iter(messages.into_iter().map(Ok))))
}

fn model() -> v1::Model {
    let options =
        v1::LoadOptions { context: Some(512), slots: Some(8), pin: Some(true), ..Default::default() };
    let bytes = v1::DeviceBytes {
        device: "ram".to_owned(),
        weight_bytes: 4,
        cache_bytes: 3,
        work_bytes: 2,
        generation_bytes: 1,
        total_bytes: 10,
        adapter_bytes: 0,
    };
    v1::Model {
        id: "m1".to_owned(),
        state: v1::ModelState::Resident.into(),
        options: Some(options),
        bytes: vec![bytes],
        can_chat: true,
        ..Default::default()
    }
}

fn device() -> v1::DeviceUse {
    let (budget_bytes, used_bytes, pinned_bytes) = (100, 10, 10);
    v1::DeviceUse { device: "ram".to_owned(), budget_bytes, used_bytes, pinned_bytes, referenced_bytes: 0 }
}

fn started() -> v1::Started {
    v1::Started { model_id: "m1".to_owned(), prompt_tokens: 3, seed: 7, ..Default::default() }
}

fn token(at: u32) -> v1::Token {
    let begins =
        (at == 0).then(|| v1::MessageHead { channel: v1::Channel::Final.into(), ..Default::default() });
    v1::Token { id: at, text: format!("<{at}>"), begins, ..Default::default() }
}

fn finished() -> v1::Finished {
    v1::Finished { reason: v1::FinishReason::Length.into(), ..Default::default() }
}

impl Service {
    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    /// Three tokens, or tokens for as long as somebody reads them.
    fn tell<T: Send + 'static>(&self, started: T, token: fn(u32) -> T, finished: T) -> Response<Answers<T>> {
        if !self.script().endless {
            return all(vec![started, token(0), token(1), token(2), finished]);
        }
        let (sender, receiver) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            let mut at = 0;
            while sender.send(Ok(token(at))).await.is_ok() {
                at += 1;
            }
            service.script().ended += 1;
        });
        Response::new(Box::pin(tokio_stream::once(Ok(started)).chain(ReceiverStream::new(receiver))))
    }
}

fn none<T>() -> Result<T, Status> {
    Err(Status::unimplemented("this daemon is of another version"))
}

#[tonic::async_trait]
impl ModelService for Service {
    async fn list(
        &self,
        _: Request<v1::ModelServiceListRequest>,
    ) -> Result<Response<v1::ModelServiceListResponse>, Status> {
        Ok(Response::new(v1::ModelServiceListResponse { models: vec![model()] }))
    }

    async fn inspect(&self, _: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        none()
    }

    async fn plan(&self, _: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        none()
    }

    type LoadStream = Answers<v1::LoadResponse>;
    async fn load(&self, request: Request<v1::LoadRequest>) -> Result<Response<Self::LoadStream>, Status> {
        let mut script = self.script();
        script.loads.push(request.into_inner());
        match script.refuses_load {
            Some((code, words)) => Err(Status::new(code, words)),
            None => {
                Ok(all(vec![v1::LoadResponse { event: Some(v1::load_response::Event::Loaded(model())) }]))
            }
        }
    }

    async fn unload(
        &self,
        request: Request<v1::UnloadRequest>,
    ) -> Result<Response<v1::UnloadResponse>, Status> {
        self.script().unloads.push(request.into_inner().model);
        Ok(Response::new(v1::UnloadResponse { model: Some(model()), freed: model().bytes }))
    }

    async fn set_budget(
        &self,
        request: Request<v1::SetBudgetRequest>,
    ) -> Result<Response<v1::SetBudgetResponse>, Status> {
        self.script().budgets.extend(request.into_inner().budgets);
        Ok(Response::new(v1::SetBudgetResponse { devices: vec![device()] }))
    }

    type WatchResidencyStream = Answers<v1::WatchResidencyResponse>;
    async fn watch_residency(
        &self,
        request: Request<v1::WatchResidencyRequest>,
    ) -> Result<Response<Self::WatchResidencyStream>, Status> {
        assert!(request.into_inner().figures_every.is_some());
        let snapshot = v1::ResidencySnapshot { models: vec![model()], devices: vec![device()] };
        let figures =
            v1::ModelFigures { model_id: "m1".to_owned(), running: 2, slots: 8, ..Default::default() };
        let figures = v1::Figures { models: vec![figures], devices: vec![device()] };
        let (sender, receiver) = mpsc::unbounded_channel();
        for event in
            [Watched::Snapshot(snapshot), Watched::Figures(figures.clone()), Watched::Figures(figures)]
        {
            sender
                .send(Ok(v1::WatchResidencyResponse { time: None, sequence: 5, event: Some(event) }))
                .unwrap();
        }
        // A real one goes on for ever.
        tokio::spawn(async move { sender.closed().await });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl GenerationService for Service {
    type GenerateStream = Answers<v1::GenerateResponse>;
    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        use v1::generate_response::Event;
        self.script().generations.push(request.into_inner());
        let of = |event| v1::GenerateResponse { event: Some(event) };
        let token = |at| v1::GenerateResponse { event: Some(Event::Token(token(at))) };
        Ok(self.tell(of(Event::Started(started())), token, of(Event::Finished(finished()))))
    }

    type ChatStream = Answers<v1::ChatResponse>;
    async fn chat(&self, request: Request<v1::ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        use v1::chat_response::Event;
        self.script().chats.push(request.into_inner());
        let of = |event| v1::ChatResponse { event: Some(event) };
        let token = |at| v1::ChatResponse { event: Some(Event::Token(token(at))) };
        Ok(self.tell(of(Event::Started(started())), token, of(Event::Finished(finished()))))
    }

    type SessionStream = Answers<v1::SessionResponse>;
    async fn session(
        &self,
        _: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        none()
    }

    async fn tokenize(
        &self,
        _: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        none()
    }

    async fn detokenize(
        &self,
        _: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        none()
    }

    async fn score(&self, _: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        none()
    }

    async fn embed(&self, _: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        none()
    }
}
