//! What goes into the policy and what comes out of it: plain values, no behaviour but their messages.

use std::time::Duration;

use super::bytes::{Amount, Bytes, Device};

/// A model with its options, as the owner numbers them. Other options that cost other bytes are another model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(pub u64);

/// A request that waits for one answer, later perhaps a reference. The owner hands them out in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A reference that is wanted, and what the model costs in case that it must be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Answered by [`Action::Granted`] or [`Action::Refused`].
    pub ticket: Ticket,
    /// The model.
    pub id: ModelId,
    /// From its plan, never zero.
    pub bytes: Bytes,
    /// How long it stays when idle; `None` for as long as there is room. The last one granted counts.
    pub ttl: Option<Duration>,
    /// Pin it when this is granted.
    pub pin: bool,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants to use a model.
    Acquire(Want),
    /// Whoever waits for this reference has gone. Without effect once it was answered: then release it.
    Cancel(Ticket),
    /// A granted reference is given back.
    Release(Ticket),
    /// Somebody wants a model gone. It stays for those who have it and takes no new ones.
    Unload {
        /// Answered by [`Action::Done`] when its bytes are free, or by [`Action::Refused`].
        ticket: Ticket,
        /// The model.
        id: ModelId,
    },
    /// A model in memory, or on its way there, is to stay there or not.
    Pin {
        /// Answered by [`Action::Done`] or [`Action::Refused`].
        ticket: Ticket,
        /// The model.
        id: ModelId,
        /// Whether it is to stay.
        pinned: bool,
    },
    /// Another budget.
    SetBudget(Bytes),
    /// The load that [`Action::StartLoad`] asked for has ended well.
    Loaded(ModelId),
    /// It has not, or [`Action::CancelLoad`] has stopped it; in any case its bytes are free.
    LoadFailed(ModelId),
    /// The bytes of a model are free, as [`Action::StartEvict`] asked.
    Evicted(ModelId),
    /// Time has passed.
    Tick,
}

/// What the owner has to do or to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Load it, then report `Loaded` or `LoadFailed`.
    StartLoad {
        /// The model.
        id: ModelId,
        /// What it may take, and no more.
        bytes: Bytes,
    },
    /// Stop loading if that is still possible; report `LoadFailed`, or `Loaded` if it was too late.
    CancelLoad {
        /// The model.
        id: ModelId,
    },
    /// Free it, then report `Evicted`. Nobody uses it.
    StartEvict {
        /// The model.
        id: ModelId,
    },
    /// The model may be used until the ticket is released.
    Granted {
        /// Of the one who wanted it.
        ticket: Ticket,
        /// The model.
        id: ModelId,
    },
    /// It cannot be.
    Refused {
        /// Of the one who asked.
        ticket: Ticket,
        /// The model.
        id: ModelId,
        /// Why, with the numbers.
        why: Refusal,
    },
    /// An unload or a pin is done.
    Done {
        /// Of the one who asked.
        ticket: Ticket,
        /// The model.
        id: ModelId,
    },
    /// When a `Tick` is due; it replaces the last such time.
    SetDeadline(Option<Duration>),
    /// For those who watch, and for metrics.
    Note(Note),
}

/// What is told to those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// It was in memory when it was wanted.
    Hit(ModelId),
    /// It was not, or it was about to leave.
    Miss(ModelId),
    /// It begins to load.
    Loading(ModelId, Bytes),
    /// It is in memory; so many bytes moved in.
    Loaded(ModelId, Bytes),
    /// It is not, though it was to be.
    LoadFailed(ModelId),
    /// Its load was stopped because of this.
    LoadStopped(ModelId, Why),
    /// It begins to leave, because of this.
    Evicting(ModelId, Why),
    /// Its bytes are free.
    Evicted(ModelId, Bytes, Why),
    /// It stays, or need not any more.
    Pinned(ModelId, bool),
    /// The budget is now this.
    Budget(Bytes),
}

/// Why a model leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Another one needs its bytes, and it was used least recently.
    Room,
    /// It was idle for its time to live.
    Expired,
    /// Somebody asked.
    Asked,
    /// The budget became smaller.
    Budget,
}

/// What stands against each other where a model does not fit: amounts of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The first device where it does not.
    pub device: Device,
    /// What the model needs.
    pub needed: u64,
    /// What all models may have.
    pub budget: u64,
    /// What pinned ones have.
    pub pinned: u64,
    /// What all have that do not leave already.
    pub in_use: u64,
}

impl Account {
    fn needed(&self) -> Amount {
        Amount(self.needed, self.device)
    }

    /// By what the budget is too small beside `others`.
    fn missing(&self, others: u64) -> Amount {
        Amount(self.needed.saturating_add(others).saturating_sub(self.budget), self.device)
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not even alone.
    #[error(
        "the model needs {}, the whole budget is {}: raise the budget by {}, or choose a shorter context, fewer \
         slots or a smaller quantization",
        .0.needed(), .0.budget, .0.missing(0)
    )]
    TooLarge(Account),
    /// Not beside those that stay.
    #[error(
        "the model needs {}, but pinned models hold {} of the budget of {}: unpin some, or raise the budget by {}",
        .0.needed(), .0.pinned, .0.budget, .0.missing(.0.pinned)
    )]
    Pinned(Account),
    /// The budget became smaller than what is in use; nothing new starts until it is met again.
    #[error(
        "the model needs {}, but models in use hold {} ({} pinned), more than the budget of {}: try again when their \
         requests have ended, unload or unpin some, or raise the budget",
        .0.needed(), .0.in_use, .0.pinned, .0.budget
    )]
    OverBudget(Account),
    /// Too many wait.
    #[error("{waiting} requests wait for models already, at most {waiting_max} may: try again later")]
    QueueFull {
        /// How many do.
        waiting: usize,
        /// How many may.
        waiting_max: usize,
    },
    /// The owner knows why.
    #[error("the model could not be loaded")]
    LoadFailed,
    /// It was to be unloaded before it was there.
    #[error("the model was unloaded at someone's request while this one waited for it: ask again")]
    Unloaded,
    /// An unload of a pinned model.
    #[error("the model is pinned: unpin it first")]
    StaysPinned,
    /// A pin of a model that leaves.
    #[error("the model is being unloaded: load it again, pinned")]
    Leaving,
    /// An unload or a pin of what is not in memory.
    #[error("the model is not loaded: load it first")]
    NotLoaded,
    /// The one who waited has gone.
    #[error("cancelled while it waited for the model")]
    Cancelled,
}

/// What a model does in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// On its way in.
    Loading,
    /// There.
    Resident,
    /// There for those who have it, and for nobody else.
    Draining,
    /// On its way out.
    Leaving,
}

/// A model in memory, or on its way in or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The model.
    pub id: ModelId,
    /// What it does.
    pub state: State,
    /// What it takes.
    pub bytes: Bytes,
    /// References that are out.
    pub references: usize,
    /// Those who wait for its load.
    pub waiting: usize,
    /// Whether it stays.
    pub pinned: bool,
    /// How long it stays when idle.
    pub ttl: Option<Duration>,
    /// When it leaves if nobody wants it.
    pub leaves_at: Option<Duration>,
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// [`Note::Hit`]s.
    pub hits: u64,
    /// [`Note::Miss`]es.
    pub misses: u64,
    /// [`Note::Loaded`]s.
    pub loads: u64,
    /// [`Note::Evicted`]s.
    pub evictions: u64,
    /// Refused requests of any kind, cancelled ones included.
    pub refused: u64,
    /// Bytes moved in.
    pub loaded: Bytes,
    /// Bytes moved out.
    pub evicted: Bytes,
}

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What all may have.
    pub budget: Bytes,
    /// What all have, those on their way included.
    pub in_use: Bytes,
    /// What pinned ones have.
    pub pinned: Bytes,
    /// By number.
    pub models: Vec<View>,
    /// Requests that wait for a reference.
    pub waiting: usize,
    /// Since the start.
    pub counters: Counters,
}
