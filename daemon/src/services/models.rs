//! `ModelService`: what there is, what it would take, what comes and goes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bantam_core::Cpu;
use bantam_model::card::CARDS_MOST;
use bantam_model::inspect::Inspection;
use bantam_model::native::Native;
use bantam_model::plan::{Options, Plan};
use bantam_proto::v1;
use bantam_proto::v1::model_service_server::ModelService;
use bantam_proto::v1::watch_residency_response::Event as Told;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Caller, Services, request};
use crate::models::keeper::NoBudget;
use crate::models::views::{self, RAM};
use crate::models::{Asked, Known, Opened, Unusable};
use crate::status::Trouble;

/// How often a load tells how far it is.
const PROGRESS: Duration = Duration::from_millis(100);
const FIGURES_MIN: Duration = Duration::from_millis(100);
const DAY: Duration = Duration::from_secs(86_400);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How the weights will lie in memory is all that is asked of a plan to inspect by.
fn smallest(options: Options) -> Options {
    Options { context: 1, sequences: 1, chunk: 1, logits_rows: 1, cache_positions: None, ..options }
}

fn plan(opened: &Opened, options: Options) -> Result<Plan, Trouble> {
    Ok(opened.source.plan(options, Cpu::detect()).map_err(Unusable::from)?)
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn inspected(opened: &Opened, plan: &Plan, with_tensors: bool) -> v1::InspectResponse {
    let (spec, checkpoint) = (&opened.source.spec, &opened.source.checkpoint);
    let inspection = Inspection::new(checkpoint, plan);
    let layer = spec.layers.first();
    let attention = layer.map(|layer| layer.attention);
    let experts = layer.and_then(|layer| layer.mlp.experts);
    let tensor = |tensor: bantam_model::checkpoint::TensorView<'_>| v1::Tensor {
        name: tensor.name.to_owned(),
        dtype: tensor.dtype.name().to_owned(),
        shape: tensor.shape.iter().map(|&n| n as u64).collect(),
        bytes: tensor.data.len() as u64,
    };
    let share = |share: &bantam_model::inspect::DtypeShare| v1::DtypeShare {
        dtype: share.dtype.name().to_owned(),
        tensors: share.tensors as u64,
        elements: share.elements,
        bytes: share.bytes,
    };
    v1::InspectResponse {
        family: spec.family.to_string(),
        layers: small(spec.layers.len()),
        hidden: small(spec.hidden),
        heads: attention.map_or(0, |attention| small(attention.heads)),
        kv_heads: attention.map_or(0, |attention| small(attention.kv_heads)),
        head_width: attention.map_or(0, |attention| small(attention.head_width)),
        feed_forward: layer.map_or(0, |layer| small(layer.mlp.width)),
        experts: experts.map_or(0, |experts| small(experts.choice.experts)),
        experts_per_token: experts.map_or(0, |experts| small(experts.choice.chosen)),
        vocab: small(spec.vocab),
        context: spec.context as u64,
        tied_head: spec.tied,
        parameters: inspection.parameters,
        weight_bytes: inspection.weight_bytes,
        file_bytes: checkpoint.file_bytes(),
        bits_per_weight: inspection.bits_per_weight(),
        bytes_per_token: plan.bytes_per_token as u64,
        dtypes: inspection.dtypes.iter().map(share).collect(),
        unused_tensors: inspection.unused.clone(),
        tensors: if with_tensors { checkpoint.tensors().map(tensor).collect() } else { Vec::new() },
    }
}

impl Services {
    async fn inspected(
        &self,
        caller: &Caller,
        request: v1::InspectRequest,
    ) -> Result<v1::InspectResponse, Trouble> {
        let known = self.find(request.model, caller).await?;
        let keeper = self.keeper.clone();
        let inspected = self.work(move || {
            let opened = known.open()?;
            let recipe = keeper.recipe(&known, &Asked::default(), &opened);
            let plan = plan(
                &opened,
                smallest(Options { quantization: None, head: None, experts: None, ..recipe.options }),
            )?;
            Ok(inspected(&opened, &plan, request.tensors))
        });
        inspected.await?
    }

    async fn planned(&self, caller: &Caller, request: v1::PlanRequest) -> Result<v1::PlanResponse, Trouble> {
        let asked = request::load_options(request.options)?;
        let known = self.find(request.model, caller).await?;
        let keeper = self.keeper.clone();
        let planned = self.work(move || {
            let opened = known.open()?;
            let recipe = keeper.recipe(&known, &asked, &opened);
            let plan = plan(&opened, recipe.options)?;
            let store = keeper.store().filter(|_| !recipe.no_cache);
            let native = store.and_then(|store| Native::of(&opened.source, &plan, store));
            let native = native.map(|native| v1::NativeFile {
                path: native.path().display().to_string(),
                is_there: native.is_there(),
            });
            let beside = keeper.beside(&plan);
            let bytes = views::bytes(&plan, beside);
            let (fits, leaving, devices) = keeper.look(|state| {
                let (fits, leaving) = views::fits(state, &known, bytes.total_bytes);
                (fits, leaving, views::devices(state))
            });
            let idle = Some(keeper.settings().idle).filter(|idle| !idle.is_zero());
            let options = views::options(&recipe, asked.pin.unwrap_or(false), asked.ttl.unwrap_or(idle));
            Ok(v1::PlanResponse {
                options: Some(options),
                lines: views::lines(&plan, beside),
                bytes: vec![bytes],
                devices,
                fits,
                leaving,
                bytes_per_token: plan.bytes_per_token as u64,
                native,
                tokens_per_second: None,
            })
        });
        planned.await?
    }

    async fn budgeted(&self, budgets: Vec<v1::DeviceBudget>) -> Result<v1::SetBudgetResponse, Trouble> {
        let named =
            |budget: &v1::DeviceBudget| budgets.iter().filter(|of| of.device == budget.device).count();
        if budgets.len() > 1 + CARDS_MOST || budgets.iter().any(|budget| named(budget) > 1) {
            let why = format!("expected each device once, found {} budgets; leave some out", budgets.len());
            return Err(Trouble::field("budgets", why));
        }
        if let Some(at) = budgets.iter().position(|budget| budget.device == RAM && budget.bytes == 0) {
            let why = "expected 1 or more, found 0; unload models instead";
            return Err(Trouble::field(format!("budgets[{at}].bytes"), why));
        }
        // A card that is refused is, before main memory has changed.
        let (cards, rams): (Vec<_>, Vec<_>) =
            budgets.iter().enumerate().partition(|(_, of)| of.device != RAM);
        for (at, v1::DeviceBudget { device, bytes }) in cards {
            let (keeper, device, bytes) = (self.keeper.clone(), device.clone(), *bytes);
            self.work(move || keeper.set_vram(&device, bytes)).await?.map_err(|error| {
                let field = match error {
                    NoBudget::Device { .. } => "device",
                    NoBudget::Bytes { .. } => "bytes",
                };
                Trouble::field(format!("budgets[{at}].{field}"), error.to_string())
            })?;
        }
        rams.iter().for_each(|(_, budget)| self.keeper.set_budget(budget.bytes));
        Ok(v1::SetBudgetResponse { devices: self.keeper.look(views::devices) })
    }

    /// Loads, and tells how far it is. Ends with the client.
    async fn load(
        self,
        known: Arc<Known>,
        asked: Asked,
        tell: mpsc::Sender<Result<v1::LoadResponse, Status>>,
    ) {
        use v1::load_response::Event;
        let say = |event| Ok(v1::LoadResponse { event: Some(event) });
        let mut acquired = Box::pin(self.keeper.acquire(&known, &asked));
        let mut tick = tokio::time::interval(PROGRESS);
        let acquired = loop {
            tokio::select! {
                acquired = &mut acquired => break acquired,
                () = tell.closed() => return,
                _ = tick.tick() => {
                    let progress = self.keeper.look(|state| views::progress(state, &known));
                    // Who does not read is not waited for.
                    progress.into_iter().for_each(|progress| drop(tell.try_send(say(Event::Progress(progress)))));
                }
            }
        };
        let loaded = match acquired {
            Ok(lease) => {
                if asked.pin == Some(false) {
                    let _ = self.keeper.pin(&known, false).await;
                }
                drop(lease);
                say(Event::Loaded(self.keeper.look(|state| views::model(state, &known))))
            }
            Err(error) => Err(Trouble::from(error).into()),
        };
        let _ = tell.send(loaded).await;
    }

    fn snapshot(&self, caller: &Caller) -> impl FnOnce(&crate::models::keeper::State) -> Told {
        let (catalog, door) = (self.catalog.clone(), caller.door);
        move |state| {
            let known = catalog.known(door);
            let models = known.iter().map(|known| views::model(state, known)).collect();
            Told::Snapshot(v1::ResidencySnapshot { models: sorted(models), devices: views::devices(state) })
        }
    }

    /// Whether who came by this door may know of a model.
    fn is_seen(&self, caller: &Caller, handle: &str) -> bool {
        self.catalog.find(handle, caller.door).is_ok()
    }

    /// Tells every change until the client goes.
    async fn watch(
        self,
        caller: Caller,
        every: Option<Duration>,
        tell: mpsc::Sender<Result<v1::WatchResidencyResponse, Status>>,
    ) {
        let say = |time, sequence, event| {
            Ok(v1::WatchResidencyResponse {
                time: Some(views::timestamp(time)),
                sequence,
                event: Some(event),
            })
        };
        let look = |services: &Services| {
            let snapshot = services.snapshot(&caller);
            services.keeper.watch(|state| (state.sequence(), snapshot(state)))
        };
        let ((mut sequence, snapshot), mut changes) = look(&self);
        if tell.send(say(SystemTime::now(), sequence, snapshot)).await.is_err() {
            return;
        }
        let mut tick = tokio::time::interval(every.unwrap_or(DAY));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rates = Rates::default();
        loop {
            let said = tokio::select! {
                () = tell.closed() => return,
                _ = tick.tick() => {
                    if every.is_none() { continue }
                    let mut figures = self.keeper.look(|state| v1::Figures {
                        models: views::figures(state),
                        devices: views::devices(state),
                    });
                    figures.models.retain(|model| self.is_seen(&caller, &model.model_id));
                    vec![say(SystemTime::now(), sequence, Told::Figures(rates.fill(figures)))]
                }
                change = changes.recv() => match change {
                    Ok(change) => {
                        sequence = change.sequence;
                        if about(&change.event).is_some_and(|model| !self.is_seen(&caller, model)) {
                            continue;
                        }
                        vec![say(change.time, change.sequence, change.event)]
                    }
                    Err(RecvError::Lagged(events)) => {
                        let lost = say(SystemTime::now(), sequence, Told::Lost(v1::EventsLost { events }));
                        let ((at, snapshot), fresh) = look(&self);
                        (sequence, changes) = (at, fresh);
                        vec![lost, say(SystemTime::now(), sequence, snapshot)]
                    }
                    Err(RecvError::Closed) => return,
                },
            };
            for one in said {
                if tell.send(one).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The model that a change is of.
fn about(event: &Told) -> Option<&str> {
    fn id(model: &Option<v1::Model>) -> Option<&str> {
        model.as_ref().map(|model| model.id.as_str())
    }
    match event {
        Told::Loading(event) => id(&event.model),
        Told::Loaded(event) => id(&event.model),
        Told::Failed(event) => Some(&event.model_id),
        Told::Evicted(event) => Some(&event.model_id),
        Told::Hit(event) => Some(&event.model_id),
        Told::Moved(event) => Some(&event.model_id),
        Told::Pinned(event) => Some(&event.model_id),
        Told::Snapshot(_) | Told::Budget(_) | Told::Lost(_) | Told::Figures(_) => None,
    }
}

/// Resident ones first, the last used first; then the others by name.
fn sorted(mut models: Vec<v1::Model>) -> Vec<v1::Model> {
    let rank = |model: &v1::Model| {
        let used = model.last_used.map_or((0, 0), |at| (at.seconds, at.nanos));
        let is_there = model.state() == v1::ModelState::Resident;
        (!is_there, is_there.then_some(std::cmp::Reverse(used)))
    };
    models.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
    models
}

/// Tokens per second follow from two figures.
#[derive(Debug, Default)]
struct Rates(std::collections::HashMap<String, (u64, Option<tokio::time::Instant>)>);

impl Rates {
    fn fill(&mut self, mut figures: v1::Figures) -> v1::Figures {
        let now = tokio::time::Instant::now();
        for model in &mut figures.models {
            let before = self.0.insert(model.model_id.clone(), (model.new_tokens, Some(now)));
            if let Some((tokens, Some(at))) = before {
                let seconds = now.saturating_duration_since(at).as_secs_f64();
                let more = model.new_tokens.saturating_sub(tokens) as f64;
                model.tokens_per_second = if seconds > 0.0 { more / seconds } else { 0.0 };
            }
        }
        figures
    }
}

#[tonic::async_trait]
impl ModelService for Services {
    async fn list(
        &self,
        request: Request<v1::ModelServiceListRequest>,
    ) -> Result<Response<v1::ModelServiceListResponse>, Status> {
        let caller = Caller::of(&request);
        let states = request.into_inner().states;
        if let Some(&found) = states.iter().find(|&&state| v1::ModelState::try_from(state).is_err()) {
            let why = format!("expected values of ModelState, found {found}; leave it out");
            return Err(Trouble::field("states", why).into());
        }
        let catalog = self.catalog.clone();
        let known = self.work(move || catalog.list(caller.door)).await?;
        let models = self.keeper.look(|state| known.iter().map(|known| views::model(state, known)).collect());
        let mut models = sorted(models);
        models.retain(|model| states.is_empty() || states.contains(&model.state));
        Ok(Response::new(v1::ModelServiceListResponse { models }))
    }

    async fn inspect(
        &self,
        request: Request<v1::InspectRequest>,
    ) -> Result<Response<v1::InspectResponse>, Status> {
        let caller = Caller::of(&request);
        Ok(Response::new(caller.within(self.inspected(&caller, request.into_inner())).await?))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let caller = Caller::of(&request);
        Ok(Response::new(caller.within(self.planned(&caller, request.into_inner())).await?))
    }

    type LoadStream = Answers<v1::LoadResponse>;

    async fn load(&self, request: Request<v1::LoadRequest>) -> Result<Response<Self::LoadStream>, Status> {
        let caller = Caller::of(&request);
        let v1::LoadRequest { model, options } = request.into_inner();
        let asked = request::load_options(options)?;
        let known = self.find(model, &caller).await?;
        let (tell, told) = mpsc::channel(4);
        tokio::spawn(self.clone().load(known, asked, tell));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    async fn unload(
        &self,
        request: Request<v1::UnloadRequest>,
    ) -> Result<Response<v1::UnloadResponse>, Status> {
        let caller = Caller::of(&request);
        let unloaded = async {
            let known = self.find(request.into_inner().model, &caller).await?;
            let freed = self.keeper.unload(&known).await?;
            let model = self.keeper.look(|state| views::model(state, &known));
            Ok(v1::UnloadResponse { model: Some(model), freed: vec![freed] })
        };
        Ok(Response::new(caller.within(unloaded).await?))
    }

    async fn set_budget(
        &self,
        request: Request<v1::SetBudgetRequest>,
    ) -> Result<Response<v1::SetBudgetResponse>, Status> {
        let caller = Caller::of(&request);
        let budgets = request.into_inner().budgets;
        Ok(Response::new(caller.within(self.budgeted(budgets)).await?))
    }

    type WatchResidencyStream = Answers<v1::WatchResidencyResponse>;

    async fn watch_residency(
        &self,
        request: Request<v1::WatchResidencyRequest>,
    ) -> Result<Response<Self::WatchResidencyStream>, Status> {
        let caller = Caller::of(&request);
        let every = request.into_inner().figures_every;
        let every = every.map(|every| request::span("figures_every", every, DAY)).transpose()?;
        if let Some(found) = every.filter(|every| *every < FIGURES_MIN) {
            let why = format!("expected {FIGURES_MIN:?} or more, found {found:?}; leave it out for none");
            return Err(Trouble::field("figures_every", why).into());
        }
        let (tell, told) = mpsc::channel(4);
        tokio::spawn(self.clone().watch(caller, every, tell));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}
