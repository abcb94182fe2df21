//! The services of `bantam.v1`: a request is checked (`request.rs`), gets its model, and what comes of it is told
//! (`reply.rs`). Nothing here computes, and nothing keeps a processor of the reactor busy.

mod conversation;
mod generation;
mod jobs;
mod measures;
mod models;
mod reply;
mod request;
mod texts;

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bantam_model::adapter::Guest;
use bantam_proto::v1;
use tonic::service::Routes;

use crate::doors::{Door, Peer, Who, timeout};
use crate::hands::Hands;
use crate::jobs::Jobs;
use crate::metrics::Meters;
use crate::models::{Asked, Catalog, Keeper, Known, Lease};
use crate::scheduler::{Answer, ClientId, Desk, Request, Reuse, Work};
use crate::settings::Settings;
use crate::status::Trouble;

/// Their full names, for health.
pub(crate) const NAMES: &[&str] =
    &["bantam.v1.ModelService", "bantam.v1.GenerationService", "bantam.v1.JobService"];

/// What all services share. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) keeper: Keeper,
    pub(crate) hands: Hands,
    pub(crate) jobs: Jobs,
    pub(crate) meters: Arc<Meters>,
    pub(crate) settings: Arc<Settings>,
}

impl Services {
    /// All of them, within the settings' limits.
    pub(crate) fn routes(&self) -> Routes {
        let most = usize::try_from(self.settings.message_bytes.0).unwrap_or(usize::MAX);
        let models = v1::model_service_server::ModelServiceServer::new(self.clone());
        let generation = v1::generation_service_server::GenerationServiceServer::new(self.clone());
        let jobs = v1::job_service_server::JobServiceServer::new(self.clone());
        Routes::new(models.max_decoding_message_size(most))
            .add_service(generation.max_decoding_message_size(most))
            .add_service(jobs.max_decoding_message_size(most))
    }

    /// Work for a processor or a disk.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Trouble> {
        self.hands.run(work).await.ok_or(Trouble::Panicked)
    }

    /// The model that a request means.
    async fn find(&self, model: String, caller: &Caller) -> Result<Arc<Known>, Trouble> {
        let (catalog, door) = (self.catalog.clone(), caller.door);
        if model.is_empty() {
            return Ok(catalog.find(&model, door)?);
        }
        Ok(self.work(move || catalog.find(&model, door)).await??)
    }

    /// The same, in memory.
    async fn lease(&self, model: String, caller: &Caller) -> Result<Arc<Lease>, Trouble> {
        let known = self.find(model, caller).await?;
        Ok(Arc::new(self.keeper.acquire(&known, &Asked::default()).await?))
    }
}

/// Who asks, and how long it will wait.
#[derive(Debug, Clone, Copy)]
struct Caller {
    client: ClientId,
    /// The connection, where several may stand behind one client.
    connection: Option<u64>,
    door: Door,
    arrived: Instant,
    timeout: Option<Duration>,
}

impl Caller {
    fn of<T>(request: &tonic::Request<T>) -> Self {
        let peer = request.extensions().get::<Peer>();
        let mut hasher = DefaultHasher::new();
        peer.map(|peer| &peer.who).hash(&mut hasher);
        // A request without a peer came by no door: the gate refuses it.
        let door = peer.map_or(Door::Tcp, |peer| peer.door);
        let value = request.metadata().get(timeout::HEADER).map(|value| value.as_bytes());
        let timeout = value.and_then(timeout::of_service);
        let connection = peer.filter(|peer| peer.who == Who::Local).map(|peer| peer.connection);
        Caller { client: ClientId(hasher.finish()), connection, door, arrived: Instant::now(), timeout }
    }

    /// The answer of a service, unless its time is over first.
    async fn within<T>(&self, answer: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
        match self.timeout {
            None => answer.await,
            Some(timeout) => tokio::time::timeout(timeout, answer).await.map_err(|_| Trouble::Deadline)?,
        }
    }

    /// What its replies share beginnings with: those of the same client that were read with the same weights and say
    /// the same words.
    fn reuse(&self, scope: &str, adapter: Option<&Guest>) -> Reuse {
        let mut hasher = DefaultHasher::new();
        (self.connection, scope).hash(&mut hasher);
        Reuse { set: adapter.map_or(0, Guest::number), scope: hasher.finish() }
    }

    /// Hands in work, with the time that is left.
    fn submit(
        &self,
        desk: &Desk,
        work: Work,
        adapter: Option<Arc<Guest>>,
        reuse: Option<Reuse>,
    ) -> Result<Answer, Trouble> {
        let timeout = self.timeout.map(|timeout| timeout.saturating_sub(self.arrived.elapsed()));
        Ok(desk.submit(Request { client: self.client, work, adapter, timeout, reuse })?)
    }
}
