//! Who has which model for how long: carries out what the policy in `residency/` decides. One lock around the policy
//! and its owner's notes, held for no longer than a step of the policy; engines come and go on threads of their own.

mod vram;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use bantam_core::Cpu;
use bantam_model::engine::Engine;
use bantam_model::native::Store;
use bantam_model::plan::Plan;
use bantam_proto::v1::DeviceBytes;
use bantam_proto::v1::watch_residency_response::Event as Told;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::Instant;

use super::catalog::{Known, NotFound};
use super::opened::{Opened, Unusable};
use super::recipe::{Asked, Recipe};
use super::resident::{Resident, desk_options};
use super::views;
use crate::hands::Hands;
use crate::metrics::{ByModel, ByReason, Meters};
use crate::residency::{
    Action, Bytes, Device, Event, ModelId, Note, Refusal, Residency, Snapshot, State as Phase, Ticket, Want,
    Why,
};
use crate::scheduler::Resting;
use crate::scheduler::paced::Pace;
use crate::settings::Settings;
pub(crate) use vram::{Card, NoBudget, ReservedVram, bytes_of};

/// Changes that a watcher may be behind before it loses some.
const NOTES: usize = 256;
/// There is nothing to pin or unload.
const NOT_LOADED: Unavailable = Unavailable::Room { why: Refusal::NotLoaded, line: None };

/// Why a model cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unavailable {
    /// Nobody knows it.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// It cannot be opened or loaded.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// There is no room.
    #[error("{why}")]
    Room {
        /// Why, with the numbers.
        why: Refusal,
        /// The line of its plan that takes the most, and its bytes.
        line: Option<(String, u64)>,
    },
    /// It is resident in another way than was asked for.
    #[error(
        "the model is resident with other options: {}; unload it first, or leave these out", .fields.join(", ")
    )]
    Differs {
        /// Fields of the options.
        fields: Vec<&'static str>,
    },
    /// Its load ended without a word.
    #[error(
        "the thread that loaded the model ended without a result; please report this, with the daemon's log"
    )]
    Lost,
}

/// A change, with its number and time.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) time: SystemTime,
    pub(crate) sequence: u64,
    pub(crate) event: Told,
}

/// A model with the options that it is loaded with: what the policy counts as one model.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(super) known: Arc<Known>,
    pub(super) opened: Arc<Opened>,
    pub(super) recipe: Recipe,
    pub(super) plan: Arc<Plan>,
    /// See [`Keeper::beside`].
    pub(super) beside: u64,
    bytes: Bytes,
    pub(super) ttl: Option<Duration>,
    pub(super) progress: Arc<AtomicUsize>,
    is_cancelled: Arc<AtomicBool>,
    pub(super) resident: Option<Arc<Resident>>,
    failure: Option<Unusable>,
    is_faulty: bool,
}

/// What all models may take together.
fn budget_of(settings: &Settings, ram: u64) -> Bytes {
    Bytes::ram(ram).places(settings.max_models as u64)
}

#[derive(Debug)]
enum Waiting {
    Lease(oneshot::Sender<Result<Lease, Unavailable>>),
    Done(oneshot::Sender<Result<(), Unavailable>>),
    Nobody,
}

/// The policy, and what its owner has to remember.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) residency: Residency,
    pub(super) variants: HashMap<ModelId, Variant>,
    /// Of every model, by its number, the variant that was asked for last.
    pub(super) current: HashMap<u64, ModelId>,
    /// How a model was loaded last: how it is loaded again.
    pub(super) remembered: HashMap<u64, (Recipe, Option<Duration>)>,
    pub(super) last_used: HashMap<u64, SystemTime>,
    /// The cards, once they were found.
    pub(super) cards: Vec<Card>,
    waiting: HashMap<Ticket, (ModelId, Waiting)>,
    next: u64,
    sequence: u64,
}

/// What is done once the lock is open again.
enum Job {
    Load(ModelId),
    Free(ModelId, Arc<Resident>),
    Lease(oneshot::Sender<Result<Lease, Unavailable>>, Result<(Ticket, ModelId, Arc<Resident>), Unavailable>),
    Done(oneshot::Sender<Result<(), Unavailable>>, Result<(), Unavailable>),
}

/// What all may take, and how much of it is for something else than models.
#[derive(Debug, Clone, Copy)]
struct Budget {
    bytes: u64,
    reserved: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    budget: Mutex<Budget>,
    /// Held while anything is put on the card, or moves there.
    card_turn: Mutex<()>,
    changes: broadcast::Sender<Change>,
    deadline: watch::Sender<Option<Duration>>,
    began: Instant,
    settings: Arc<Settings>,
    store: Option<Store>,
    meters: Arc<Meters>,
    hands: Hands,
    pace: OnceLock<Pace>,
}

/// Hands out models. Clones are the same keeper.
#[derive(Debug, Clone)]
pub(crate) struct Keeper(Arc<Shared>);

/// The right to use a loaded model, which stays for as long.
#[derive(Debug)]
pub(crate) struct Lease {
    shared: Arc<Shared>,
    ticket: Ticket,
    id: ModelId,
    known: u64,
    resident: Arc<Resident>,
}

impl std::ops::Deref for Lease {
    type Target = Resident;
    fn deref(&self) -> &Resident {
        &self.resident
    }
}

impl Lease {
    /// The engine has failed for good: the model leaves, and the next request loads it again.
    pub(crate) fn broke(&self) {
        let mut state = self.shared.lock();
        let Some(variant) = state.variants.get_mut(&self.id) else { return };
        if std::mem::replace(&mut variant.is_faulty, true) {
            return;
        }
        tracing::error!(model = variant.known.label(), "the engine failed for good: the model is unloaded");
        drop(state);
        self.shared.dismiss(self.id, Waiting::Nobody);
    }

    /// What clients call the model.
    pub(crate) fn handle(&self) -> String {
        format!("@{}", self.known)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.lock().last_used.insert(self.known, SystemTime::now());
        self.shared.act(Event::Release(self.ticket));
    }
}

/// Gives up the place in the queue when whoever waits has gone.
struct Wait {
    shared: Arc<Shared>,
    ticket: Ticket,
    is_answered: bool,
}

impl Drop for Wait {
    fn drop(&mut self) {
        if !self.is_answered {
            self.shared.act(Event::Cancel(self.ticket));
        }
    }
}

/// Reports a load that ended by a panic.
struct Loading(Arc<Shared>, ModelId, bool);

impl Drop for Loading {
    fn drop(&mut self) {
        if !self.2 {
            self.0.act(Event::LoadFailed(self.1));
        }
    }
}

/// Whether what is in memory is within the budget.
fn fits(snapshot: &Snapshot) -> bool {
    snapshot.in_use.on(Device::Ram) <= snapshot.budget.on(Device::Ram)
}

/// Bytes of the budget that no model gets for as long as this is there.
#[derive(Debug)]
pub(crate) struct Reserved {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.change_budget(|budget| budget.reserved -= self.bytes);
    }
}

impl Keeper {
    /// A keeper of no models yet. Call it within a runtime, which keeps the time.
    pub(crate) fn start(
        settings: Arc<Settings>,
        budget: u64,
        store: Option<Store>,
        meters: Arc<Meters>,
        hands: Hands,
    ) -> Self {
        meters.budget_bytes.set(budget);
        let state = State {
            residency: Residency::new(budget_of(&settings, budget), settings.queue.max(1)),
            variants: HashMap::new(),
            current: HashMap::new(),
            remembered: HashMap::new(),
            last_used: HashMap::new(),
            cards: Vec::new(),
            waiting: HashMap::new(),
            next: 0,
            sequence: 0,
        };
        let (changes, deadline) = (broadcast::channel(NOTES).0, watch::channel(None).0);
        let (state, began) = (Mutex::new(state), Instant::now());
        let pace = OnceLock::new();
        let budget = Mutex::new(Budget { bytes: budget, reserved: 0 });
        let shared = Arc::new(Shared {
            state,
            budget,
            card_turn: Mutex::default(),
            changes,
            deadline,
            began,
            settings,
            store,
            meters,
            hands,
            pace,
        });
        tokio::spawn(keep_time(Arc::downgrade(&shared), shared.deadline.subscribe()));
        Keeper(shared)
    }

    /// The model, loaded first where it is not. Dropping the future gives up the place in the queue.
    pub(crate) async fn acquire(&self, known: &Arc<Known>, asked: &Asked) -> Result<Lease, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let mut sender = Some(sender);
        let mut ticket = self.0.enter(known, asked, None, &mut sender)?;
        if ticket.is_none() {
            // Nobody has it: what it takes is in its files.
            let (shared, of, with) = (self.0.clone(), known.clone(), *asked);
            let planned = self.0.hands.run(move || shared.plan(&of, &with)).await;
            let variant = planned.ok_or(Unavailable::Lost)??;
            ticket = self.0.enter(known, asked, Some(variant), &mut sender)?;
        }
        let ticket = ticket.expect("there is a variant to enter by");
        let mut wait = Wait { shared: self.0.clone(), ticket, is_answered: false };
        let lease = answer.await;
        wait.is_answered = true;
        lease.map_err(|_| Unavailable::Lost)?
    }

    /// Sets whether a resident model stays.
    pub(crate) async fn pin(&self, known: &Known, pinned: bool) -> Result<(), Unavailable> {
        let (sender, done) = oneshot::channel();
        let id = self.0.act_on(|state| {
            let id = state.current.get(&known.number()).copied();
            let event =
                id.map(|id| Event::Pin { ticket: state.ticket(id, Waiting::Done(sender)), id, pinned });
            (event, id)
        });
        id.ok_or(NOT_LOADED)?;
        done.await.map_err(|_| Unavailable::Lost)?
    }

    /// Takes a model out of memory, pinned or not; done when its bytes are free, which are returned.
    pub(crate) async fn unload(&self, known: &Known) -> Result<DeviceBytes, Unavailable> {
        let (id, freed) = self
            .look(|state| {
                let id = *state.current.get(&known.number())?;
                let variant = state.variants.get(&id)?;
                Some((id, views::bytes(&variant.plan, variant.beside)))
            })
            .ok_or(NOT_LOADED)?;
        let (sender, done) = oneshot::channel();
        self.0.dismiss(id, Waiting::Done(sender));
        done.await.map_err(|_| Unavailable::Lost)??;
        Ok(freed)
    }

    /// Changes what models may take together.
    pub(crate) fn set_budget(&self, bytes: u64) {
        self.0.meters.budget_bytes.set(bytes);
        self.0.change_budget(|budget| budget.bytes = bytes);
    }

    /// Takes bytes off what models may take. Idle ones leave for them at once, those in use when their users are gone:
    /// that is waited for, unless it is said to end. The error says why the bytes can never be had.
    pub(crate) fn reserve(
        &self,
        bytes: u64,
        is_ended: &dyn Fn() -> bool,
    ) -> Result<Option<Reserved>, String> {
        self.check_room(bytes, 0)?;
        self.0.change_budget(|budget| budget.reserved += bytes);
        let reserved = Reserved { shared: self.0.clone(), bytes };
        while !self.look(|state| fits(&state.residency.snapshot())) {
            if is_ended() {
                return Ok(None);
            }
            // Models may be pinned meanwhile, and the budget changed.
            self.check_room(bytes, bytes)?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(reserved))
    }

    /// Refuses bytes that could not be had if nothing was in use; of what is reserved, some may be theirs.
    fn check_room(&self, bytes: u64, own: u64) -> Result<(), String> {
        let (budget, pinned) = self.room(own);
        if bytes <= budget.saturating_sub(pinned) {
            return Ok(());
        }
        Err(format!(
            "expected a run of at most {} bytes (the daemon's budget of {budget} without {pinned} of pinned models), \
             found one that takes {bytes}; lower cutoff_len or per_device_train_batch_size, unpin models, or raise \
             memory.budget",
            budget.saturating_sub(pinned)
        ))
    }

    /// What is not reserved by others, and what pinned models take of it.
    fn room(&self, own: u64) -> (u64, u64) {
        let budget = self.0.budget();
        let pinned = self.look(|state| state.residency.snapshot().pinned.on(Device::Ram));
        (budget.bytes.saturating_sub(budget.reserved.saturating_sub(own)), pinned)
    }

    /// What `look` sees of the state, all of one moment.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.lock())
    }

    /// The same, and every change after it.
    pub(crate) fn watch<T>(&self, look: impl FnOnce(&State) -> T) -> (T, broadcast::Receiver<Change>) {
        let state = self.0.lock();
        (look(&state), self.0.changes.subscribe())
    }

    /// How a model would be loaded now, and what it would take. Reads the disk.
    pub(crate) fn recipe(&self, known: &Known, asked: &Asked, opened: &Opened) -> Recipe {
        self.0.recipe(known, asked, opened).0
    }

    /// From now on models are loaded with an engine that computes nothing.
    pub(crate) fn pace(&self, pace: Pace) {
        let _ = self.0.pace.set(pace);
    }

    pub(crate) fn store(&self) -> Option<&Store> {
        self.0.store.as_ref()
    }

    /// Bytes of main memory that the card takes beside a plan, at most: it may have more of the card tomorrow.
    pub(crate) fn beside(&self, plan: &Plan) -> u64 {
        self.0.beside(plan)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Ends all engines, whoever uses them. To be called when no request is left.
    pub(crate) fn end(&self) {
        let residents: Vec<_> = {
            let state = self.0.lock();
            state.variants.values().filter_map(|variant| variant.resident.clone()).collect()
        };
        residents.iter().for_each(|resident| resident.end());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.card_turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn budget(&self) -> Budget {
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what models may take. The policy hears of it before anybody changes it again.
    fn change_budget(self: &Arc<Self>, change: impl FnOnce(&mut Budget)) {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut budget);
        let left = budget.bytes.saturating_sub(budget.reserved);
        self.act(Event::SetBudget(budget_of(&self.settings, left)));
    }

    fn dismiss(self: &Arc<Self>, id: ModelId, waiting: Waiting) {
        self.act_on(|state| {
            (Some(Event::Pin { ticket: state.ticket(id, Waiting::Nobody), id, pinned: false }), ())
        });
        self.act_on(|state| (Some(Event::Unload { ticket: state.ticket(id, waiting), id }), ()));
    }

    /// Asks the policy for a model: as it is, or is being loaded; else by the fresh variant. Without either nothing is
    /// asked.
    fn enter(
        self: &Arc<Self>,
        known: &Known,
        asked: &Asked,
        fresh: Option<Variant>,
        sender: &mut Option<oneshot::Sender<Result<Lease, Unavailable>>>,
    ) -> Result<Option<Ticket>, Unavailable> {
        let mut replaced = None;
        let ticket = self.act_on(|state| {
            let id = match state.usable(known, asked) {
                Err(error) => return (None, Err(error)),
                Ok(Some(id)) => Some(id),
                Ok(None) => fresh.map(|variant| {
                    replaced = state.draining(known);
                    state.put(variant)
                }),
            };
            let (Some(id), Some(sender)) = (id, id.and_then(|_| sender.take())) else {
                return (None, Ok(None));
            };
            let ticket = state.ticket(id, Waiting::Lease(sender));
            (Some(Event::Acquire(state.want(ticket, id, asked))), Ok(Some(ticket)))
        });
        if let Some(id) = replaced {
            // Its bytes may no longer be wanted by the time it is idle; under its name nobody would find it again.
            self.dismiss(id, Waiting::Nobody);
        }
        ticket
    }

    /// How a model that nobody has is loaded, and what it takes. Reads the disk.
    fn plan(&self, known: &Arc<Known>, asked: &Asked) -> Result<Variant, Unavailable> {
        let opened = known.open()?;
        let (recipe, ttl) = self.recipe(known, asked, &opened);
        let plan = opened.source.plan(recipe.options, Cpu::detect()).map_err(Unusable::from)?;
        let beside = self.beside(&plan);
        let bytes = Bytes::ram(total_bytes(&plan, beside)).places(1);
        Ok(Variant {
            known: known.clone(),
            opened,
            recipe,
            plan: Arc::new(plan),
            beside,
            bytes,
            ttl,
            progress: Arc::default(),
            is_cancelled: Arc::default(),
            resident: None,
            failure: None,
            is_faulty: false,
        })
    }

    fn recipe(&self, known: &Known, asked: &Asked, opened: &Opened) -> (Recipe, Option<Duration>) {
        let usual = Some(self.settings.idle).filter(|idle| !idle.is_zero());
        let remembered = self.lock().remembered.get(&known.number()).copied();
        let says_nothing = Asked { pin: None, ttl: None, ..*asked } == Asked::default();
        match remembered.filter(|_| says_nothing) {
            Some((recipe, ttl)) => (recipe, asked.ttl.unwrap_or(ttl)),
            None => {
                let ttl = asked.ttl.unwrap_or(usual);
                (Recipe::new(asked, &self.settings, &opened.source.spec), ttl)
            }
        }
    }

    /// Tells the policy, and does what it says.
    fn act(self: &Arc<Self>, event: Event) {
        self.act_on(|_| (Some(event), ()));
    }

    /// The same where the event follows from the state, of which nothing may change in between.
    fn act_on<T>(self: &Arc<Self>, make: impl FnOnce(&mut State) -> (Option<Event>, T)) -> T {
        let (jobs, made) = {
            let mut state = self.lock();
            let (event, made) = make(&mut state);
            let actions = event.map(|event| state.residency.step(self.began.elapsed(), event));
            let (mut jobs, mut gone) = (Vec::new(), Vec::new());
            for action in actions.unwrap_or_default() {
                match action {
                    Action::Note(note) => self.note(&mut state, note, &mut gone),
                    Action::SetDeadline(at) => {
                        self.deadline.send_replace(at);
                    }
                    _ => jobs.extend(state.job(action)),
                }
            }
            gone.into_iter().for_each(|id| state.forget(id));
            (jobs, made)
        };
        jobs.into_iter().for_each(|job| self.perform(job));
        made
    }

    fn perform(self: &Arc<Self>, job: Job) {
        match job {
            Job::Load(id) => {
                let shared = self.clone();
                let spawned = thread::Builder::new().name("load".to_owned()).spawn(move || shared.load(id));
                if let Err(error) = spawned {
                    tracing::error!(%error, "no thread to load a model with");
                    self.act(Event::LoadFailed(id));
                }
            }
            Job::Free(id, resident) => {
                let (shared, kept) = (self.clone(), resident.clone());
                let free = move |shared: Arc<Self>, resident: Arc<Resident>| {
                    resident.end();
                    drop(resident);
                    shared.act(Event::Evicted(id));
                };
                let spawned =
                    thread::Builder::new().name("free".to_owned()).spawn(move || free(shared, resident));
                if spawned.is_err() {
                    free(self.clone(), kept);
                }
            }
            Job::Lease(sender, result) => {
                let lease = result.map(|(ticket, id, resident)| {
                    let known = self.lock().variants.get(&id).map_or(0, |variant| variant.known.number());
                    Lease { shared: self.clone(), ticket, id, known, resident }
                });
                // Where nobody waits any more, the lease is dropped, which gives it back.
                let _ = sender.send(lease);
            }
            Job::Done(sender, result) => {
                let _ = sender.send(result);
            }
        }
    }

    /// On a thread of its own.
    fn load(self: Arc<Self>, id: ModelId) {
        let mut loading = Loading(self.clone(), id, false);
        let (opened, recipe, progress, is_cancelled) = {
            let state = self.lock();
            let Some(variant) = state.variants.get(&id) else { return };
            let Variant { opened, recipe, progress, is_cancelled, .. } = variant;
            (opened.clone(), *recipe, progress.clone(), is_cancelled.clone())
        };
        let mut tell = |done| progress.store(done, Ordering::Relaxed);
        let options = desk_options(&self.settings);
        // Until the model is known as resident, nobody else looks what is left of the card.
        let mut turn = None;
        let mut place = |engine: &mut Engine| {
            turn = Some(self.turn());
            self.place(engine)
        };
        let loaded = match self.pace.get() {
            Some(pace) => Resident::paced(opened, &recipe, options, pace.clone()),
            None => Resident::load(
                opened,
                &recipe,
                options,
                &self.settings,
                self.store.as_ref(),
                &mut tell,
                &mut place,
            ),
        };
        loading.2 = true;
        let event = match loaded {
            Ok(resident) if is_cancelled.load(Ordering::Acquire) => {
                resident.end();
                Event::LoadFailed(id)
            }
            Ok(resident) => {
                if let Some(variant) = self.lock().variants.get_mut(&id) {
                    variant.resident = Some(Arc::new(resident));
                }
                Event::Loaded(id)
            }
            Err(error) => {
                if let Some(variant) = self.lock().variants.get_mut(&id) {
                    variant.failure = Some(error);
                }
                Event::LoadFailed(id)
            }
        };
        drop(turn);
        self.act(event);
    }

    /// Tells who watches, and counts.
    fn note(&self, state: &mut State, note: Note, gone: &mut Vec<ModelId>) {
        let label = |state: &State, id| ByModel {
            model: state.variants.get(&id).map_or(String::new(), |variant: &Variant| variant.known.label()),
        };
        match note {
            Note::Loading(id, bytes) => {
                let bytes = bytes.on(Device::Ram);
                tracing::info!(model = label(state, id).model, bytes, "loading");
            }
            Note::Loaded(id, bytes) => {
                let label = label(state, id);
                let bytes = bytes.on(Device::Ram);
                tracing::info!(model = label.model, bytes, "loaded");
                self.meters.loads.get_or_create(&label).inc();
                self.meters
                    .resident_bytes
                    .get_or_create(&label)
                    .set(i64::try_from(bytes).unwrap_or(i64::MAX));
                if let Some(variant) = state.variants.get(&id) {
                    let number = variant.known.number();
                    state.remembered.insert(number, (variant.recipe, variant.ttl));
                }
            }
            Note::Evicted(id, _, why) => {
                let label = label(state, id);
                tracing::info!(model = label.model, ?why, "unloaded");
                self.meters.resident_bytes.remove(&label);
                self.meters.evictions.get_or_create(&ByReason { reason: reason(why) }).inc();
                gone.push(id);
            }
            Note::LoadFailed(id) | Note::LoadStopped(id, _) => {
                let error = state.variants.get(&id).and_then(|variant| variant.failure.clone());
                let error = error.map_or("stopped".to_owned(), |error| error.to_string());
                tracing::warn!(model = label(state, id).model, error, "not loaded");
                gone.push(id);
            }
            Note::Hit(_) | Note::Miss(_) | Note::Evicting(..) | Note::Pinned(..) | Note::Budget(_) => {}
        }
        for event in views::told(state, note) {
            state.sequence += 1;
            let change = Change { time: SystemTime::now(), sequence: state.sequence, event };
            // Nobody may be watching.
            let _ = self.changes.send(change);
        }
    }
}

/// What figures call it.
fn reason(why: Why) -> &'static str {
    match why {
        Why::Room => "ROOM",
        Why::Expired => "TTL",
        Why::Asked => "ASKED",
        Why::Budget => "BUDGET",
    }
}

/// What a model takes of the memory: its regions, what belongs to replies in the making, and what a card needs here.
pub(crate) fn total_bytes(plan: &Plan, beside: u64) -> u64 {
    (plan.bytes() as u64).saturating_add(generation_bytes(plan)).saturating_add(beside)
}

/// What belongs to replies in the making, and the tokens of those that rest.
pub(crate) fn generation_bytes(plan: &Plan) -> u64 {
    let sequences = plan.options.sequences;
    let making = (plan.generation_bytes as u64).saturating_mul(sequences as u64);
    making.saturating_add(Resting::bytes(sequences, plan.options.context))
}

impl State {
    /// Changes since the daemon began.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The next ticket. Its event must follow under the same lock: the policy takes them in their order.
    fn ticket(&mut self, id: ModelId, waiting: Waiting) -> Ticket {
        self.next += 1;
        self.waiting.insert(Ticket(self.next), (id, waiting));
        Ticket(self.next)
    }

    /// The variant of a model that is resident or on its way; an error where it is another one than was asked for.
    fn usable(&self, known: &Known, asked: &Asked) -> Result<Option<ModelId>, Unavailable> {
        let Some(&id) = self.current.get(&known.number()) else { return Ok(None) };
        if self.waiting_for(id) == 0 && !matches!(self.phase(id), Some(Phase::Resident | Phase::Loading)) {
            return Ok(None);
        }
        let fields = self.variants[&id].recipe.differences(asked);
        if fields.is_empty() { Ok(Some(id)) } else { Err(Unavailable::Differs { fields }) }
    }

    /// The variant of a model that still serves its last users.
    fn draining(&self, known: &Known) -> Option<ModelId> {
        let id = self.current.get(&known.number()).copied();
        id.filter(|&id| self.phase(id) == Some(Phase::Draining))
    }

    /// From now on the model is this.
    fn put(&mut self, variant: Variant) -> ModelId {
        self.next += 1;
        let id = ModelId(self.next);
        self.current.insert(variant.known.number(), id);
        self.variants.insert(id, variant);
        id
    }

    pub(super) fn phase(&self, id: ModelId) -> Option<Phase> {
        let snapshot: Snapshot = self.residency.snapshot();
        snapshot.models.iter().find(|view| view.id == id).map(|view| view.state)
    }

    /// How many wait for a variant.
    pub(super) fn waiting_for(&self, id: ModelId) -> usize {
        let waits = |(of, waiting): &&(ModelId, Waiting)| *of == id && matches!(waiting, Waiting::Lease(_));
        self.waiting.values().filter(waits).count()
    }

    pub(super) fn is_faulty(&self, id: ModelId) -> bool {
        self.variants.get(&id).is_some_and(|variant| variant.is_faulty)
    }

    pub(super) fn failure(&self, id: ModelId) -> Option<String> {
        Some(self.variants.get(&id)?.failure.as_ref()?.to_string())
    }

    fn want(&mut self, ticket: Ticket, id: ModelId, asked: &Asked) -> Want {
        let variant = self.variants.get_mut(&id).expect("a variant is there for as long as it is current");
        if let Some(ttl) = asked.ttl {
            variant.ttl = ttl;
        }
        Want { ticket, id, bytes: variant.bytes, ttl: variant.ttl, pin: asked.pin == Some(true) }
    }

    /// What an action asks of the owner.
    fn job(&mut self, action: Action) -> Option<Job> {
        match action {
            Action::StartLoad { id, .. } => {
                let variant = self.variants.get_mut(&id)?;
                (variant.progress, variant.is_cancelled) = (Arc::default(), Arc::default());
                (variant.failure, variant.is_faulty) = (None, false);
                Some(Job::Load(id))
            }
            Action::CancelLoad { id } => {
                self.variants[&id].is_cancelled.store(true, Ordering::Release);
                None
            }
            Action::StartEvict { id } => {
                let resident = self.variants.get_mut(&id).and_then(|variant| variant.resident.take());
                Some(Job::Free(id, resident.expect("what is evicted was loaded")))
            }
            Action::Granted { ticket, id } => {
                let resident = self.variants[&id].resident.clone().expect("what is granted is loaded");
                match self.waiting.remove(&ticket)?.1 {
                    Waiting::Lease(sender) => Some(Job::Lease(sender, Ok((ticket, id, resident)))),
                    _ => None,
                }
            }
            Action::Refused { ticket, id, why } => {
                let (_, waiting) = self.waiting.remove(&ticket)?;
                let refusal = self.refusal(id, why);
                self.forget(id);
                match waiting {
                    Waiting::Lease(sender) => Some(Job::Lease(sender, Err(refusal))),
                    Waiting::Done(sender) => Some(Job::Done(sender, Err(refusal))),
                    Waiting::Nobody => None,
                }
            }
            Action::Done { ticket, .. } => match self.waiting.remove(&ticket)?.1 {
                Waiting::Done(sender) => Some(Job::Done(sender, Ok(()))),
                _ => None,
            },
            Action::SetDeadline(_) | Action::Note(_) => None,
        }
    }

    fn refusal(&self, id: ModelId, why: Refusal) -> Unavailable {
        let variant = self.variants.get(&id);
        match (why, variant.and_then(|variant| variant.failure.clone())) {
            (Refusal::LoadFailed, Some(failure)) => Unavailable::Unusable(failure),
            (Refusal::LoadFailed, None) => Unavailable::Lost,
            _ => {
                let largest = variant.and_then(|variant| variant.plan.largest());
                Unavailable::Room { why, line: largest.map(|line| (line.name.clone(), line.bytes as u64)) }
            }
        }
    }

    /// Drops a variant that is out of memory, unless somebody waits for it again.
    fn forget(&mut self, id: ModelId) {
        if self.phase(id).is_some() || self.waiting_for(id) > 0 {
            return;
        }
        let number = self.variants.remove(&id).map(|variant| variant.known.number());
        if let Some(number) = number
            && self.current.get(&number) == Some(&id)
        {
            self.current.remove(&number);
        }
    }
}

/// Tells the policy when its next deadline is over, for as long as there is a keeper.
async fn keep_time(shared: Weak<Shared>, mut deadline: watch::Receiver<Option<Duration>>) {
    loop {
        let Some(began) = shared.upgrade().map(|shared| shared.began) else { return };
        let at = *deadline.borrow_and_update();
        let over = async {
            match at.and_then(|at| began.checked_add(at)) {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = deadline.changed() => if changed.is_err() { return },
            () = over => match shared.upgrade() {
                Some(shared) => shared.act(Event::Tick),
                None => return,
            },
        }
    }
}
