//! `JobService`: training beside serving. The other kinds of jobs have their place in the protocol and are not there
//! yet.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use bantam_model::pool::Threads;
use bantam_proto::v1;
use bantam_proto::v1::job_service_server::JobService;
use bantam_proto::v1::watch_response::Event;
use bantam_train::run;
use bantam_train::settings::Settings;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::request::unknown as unknown_value;
use super::{Caller, Services};
use crate::doors::Door;
use crate::jobs::{Jobs, Training, Unknown, is_over};
use crate::models::Unusable;
use crate::status::Trouble;

/// More than any file of settings.
const YAML_BYTES_MAX: usize = 1 << 20;
const AFAR: &str = "expected the unix socket, found TCP: training reads and writes files by their paths, which only \
                    the user of this machine may name; ask by the socket";

fn not_yet<T>(what: &'static str) -> Result<Response<T>, Status> {
    Err(Trouble::NotYet(what).into())
}

fn unknown(id: &str) -> impl FnOnce(Unknown) -> Trouble {
    move |Unknown| Trouble::NoJob(bantam_model::foreign::clipped(id))
}

/// Jobs write files of the user whose daemon it is: nobody else hears of them.
fn near(caller: &Caller) -> Result<(), Trouble> {
    match caller.door {
        Door::Unix => Ok(()),
        Door::Tcp => Err(Trouble::FromAfar(AFAR)),
    }
}

/// The settings of a request, with their paths below its folder.
fn settings(request: &v1::TrainRequest) -> Result<Settings, Trouble> {
    let found = request.yaml.len();
    if found > YAML_BYTES_MAX {
        return Err(Trouble::field(
            "yaml",
            format!("expected at most 1 MiB of settings, found {found} bytes"),
        ));
    }
    let folder = Path::new(&request.folder);
    if !folder.is_absolute() {
        let why = "expected an absolute path, which relative paths of the settings begin at, found another; send your \
                   working directory";
        return Err(Trouble::field("folder", why));
    }
    let mut overrides: Vec<String> =
        request.overrides.iter().map(|(key, value)| format!("{key}={value}")).collect();
    overrides.sort();
    let settings = Settings::of_text("yaml", &request.yaml, &overrides);
    let settings = settings.map(|settings| settings.below(folder));
    let settings = settings.and_then(|settings| run::check(&settings).map(|()| settings));
    settings.map_err(|error| Trouble::field("yaml", error))
}

impl Services {
    async fn begun(&self, caller: Caller, request: v1::TrainRequest) -> Result<v1::Job, Trouble> {
        near(&caller)?;
        let (catalog, jobs, usual) = (self.catalog.clone(), self.jobs.clone(), self.settings.threads);
        let keeper = self.keeper.clone();
        let begun = self.work(move || {
            let settings = settings(&request)?;
            let model = settings.text("model_name_or_path").unwrap_or_default();
            let below = Path::new(&request.folder).join(&model);
            // What is there by its path; else what a folder of models has by the name.
            let path: PathBuf = match below.exists() {
                true => below,
                false => catalog.find(&model, caller.door)?.path().map(Path::to_owned).unwrap_or_default(),
            };
            let source = run::open(&settings, &path).map_err(Unusable::from)?;
            let threads = if usual > 0 { usual } else { Threads::available() };
            let begun = jobs.train(Training { settings, source, threads, keeper });
            begun.map_err(|why| Trouble::Precondition(why.to_owned()))
        });
        begun.await?
    }
}

/// Sends what happens to a job, until it is over or nobody listens.
async fn tell(
    jobs: Jobs,
    job: v1::Job,
    mut events: broadcast::Receiver<Event>,
    to: mpsc::Sender<Result<v1::WatchResponse, Status>>,
) {
    let (id, mut event) = (job.id.clone(), Event::Job(job));
    loop {
        let is_last = matches!(&event, Event::Job(job) if is_over(job.state()));
        if to.send(Ok(v1::WatchResponse { event: Some(event) })).await.is_err() || is_last {
            return;
        }
        event = tokio::select! {
            () = to.closed() => return,
            next = events.recv() => match next {
                Ok(event) => event,
                // Whoever is too slow learns how it stands by now.
                Err(RecvError::Lagged(_)) => match jobs.job(&id) {
                    Ok(job) => Event::Job(job),
                    Err(Unknown) => return,
                },
                Err(RecvError::Closed) => return,
            },
        };
    }
}

#[tonic::async_trait]
impl JobService for Services {
    async fn quantize(
        &self,
        _: Request<v1::QuantizeRequest>,
    ) -> Result<Response<v1::QuantizeResponse>, Status> {
        not_yet("quantizing as a job is not yet; a model can be quantized while it is loaded (LoadOptions)")
    }

    async fn merge(&self, _: Request<v1::MergeRequest>) -> Result<Response<v1::MergeResponse>, Status> {
        not_yet("merging an adapter as a job is not yet; use bantam merge")
    }

    async fn train(&self, request: Request<v1::TrainRequest>) -> Result<Response<v1::TrainResponse>, Status> {
        let caller = Caller::of(&request);
        let job = caller.within(self.begun(caller, request.into_inner())).await?;
        Ok(Response::new(v1::TrainResponse { job: Some(job) }))
    }

    async fn evaluate(
        &self,
        _: Request<v1::EvaluateRequest>,
    ) -> Result<Response<v1::EvaluateResponse>, Status> {
        not_yet("evaluating as a job is not yet; use bantam eval, or GenerationService.Score")
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        near(&Caller::of(&request))?;
        let id = request.into_inner().job_id;
        let (job, events) = self.jobs.watch(&id).map_err(unknown(&id))?;
        let (to, told) = mpsc::channel(4);
        tokio::spawn(tell(self.jobs.clone(), job, events, to));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        near(&Caller::of(&request))?;
        let id = request.into_inner().job_id;
        let job = self.jobs.cancel(&id).map_err(unknown(&id))?;
        Ok(Response::new(v1::CancelResponse { job: Some(job) }))
    }

    async fn list(
        &self,
        request: Request<v1::JobServiceListRequest>,
    ) -> Result<Response<v1::JobServiceListResponse>, Status> {
        near(&Caller::of(&request))?;
        let v1::JobServiceListRequest { kinds, states } = request.into_inner();
        if let Some(found) = kinds.iter().find(|kind| v1::JobKind::try_from(**kind).is_err()) {
            return Err(unknown_value("kinds", *found).into());
        }
        if let Some(found) = states.iter().find(|state| v1::JobState::try_from(**state).is_err()) {
            return Err(unknown_value("states", *found).into());
        }
        // 0 is every kind and every state.
        let holds =
            |wanted: &[i32], found: i32| wanted.is_empty() || wanted.contains(&0) || wanted.contains(&found);
        let mut jobs = self.jobs.all();
        jobs.retain(|job| holds(&kinds, job.kind) && holds(&states, job.state));
        Ok(Response::new(v1::JobServiceListResponse { jobs }))
    }
}
