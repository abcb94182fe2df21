//! Which models live in memory: a state machine of events in and actions out. No I/O, no clock, no threads.
//!
//! One owner calls [`Residency::step`] with what happened and when, and does what comes back:
//!
//! ```text
//! loop {
//!     let event = select! { next message, load or eviction ended, deadline passed => Event::Tick };
//!     for action in residency.step(started.elapsed(), event) {
//!         match action {
//!             StartLoad { id, bytes } => on a thread of its own: load, then send Loaded(id) or LoadFailed(id)
//!             CancelLoad { id } => raise the load's flag; it sends LoadFailed(id), or Loaded(id) if it was too late
//!             StartEvict { id } => drop the engine on a thread of its own, then send Evicted(id)
//!             Granted { ticket, id } => answer the waiter; if it has gone, step(Release(ticket))
//!             Refused { ticket, why, .. } => answer it; Done { ticket, .. } => answer it
//!             SetDeadline(at) => the timer
//!             Note(note) => broadcast to those who watch
//!         }
//!     }
//! }
//! ```
//!
//! A waiter that goes sends `Cancel(ticket)`; the guard of a granted reference sends `Release(ticket)` when dropped.
//!
//! **Order.** Those who wait for memory are served first come, first served. The first of them may claim models in
//! use: these take no new references, so that no stream of hits can hold it off. Others may overtake it only with
//! bytes that it does not need. A load under way is joined by all who want it. Idle models leave least recently used
//! first, and only as many as are needed.
//! **Budget.** Bytes count from the start of a load until the eviction has ended. Where the budget becomes smaller
//! than what is in use, idle models and loads that do not fit go at once, models in use when their references end,
//! pinned ones stay, and until then nothing new starts.
//!
//! What the owner gets wrong (an answer nobody asked for, a ticket used twice) is a panic: no request can cause it.

mod bytes;
mod invariants;
mod room;
mod terms;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use bytes::{Bytes, Device};
pub use terms::{
    Account, Action, Counters, Event, ModelId, Note, Refusal, Snapshot, State, Ticket, View, Want, Why,
};

/// What an entry does; `Stopping` is a load that was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Loading,
    Resident,
    Stopping(Why),
    Evicting(Why),
}

/// A model that has bytes.
#[derive(Debug)]
struct Entry {
    bytes: Bytes,
    phase: Phase,
    pinned: bool,
    ttl: Option<Duration>,
    references: usize,
    /// Those who get a reference when it is loaded.
    waiters: Vec<Want>,
    /// Those who are told when it is gone; while there are any, it takes no new references.
    unloads: Vec<Ticket>,
    /// Its bytes are meant for others as soon as its references end. Decided anew in each step.
    claimed: bool,
    /// When it was last granted, or its load began, as a number in the order of events. A release does not change
    /// it: what is claimed must stay the oldest.
    granted: u64,
    /// When its last user left, in the same order.
    idle: u64,
    idle_since: Duration,
}

impl Entry {
    fn leaves(&self) -> bool {
        matches!(self.phase, Phase::Stopping(_) | Phase::Evicting(_))
    }

    /// It takes new users.
    fn is_open(&self) -> bool {
        !self.leaves() && !self.claimed && self.unloads.is_empty()
    }

    fn is_busy(&self) -> bool {
        self.references > 0 || !self.waiters.is_empty()
    }

    fn leaves_at(&self) -> Option<Duration> {
        let idles = self.phase == Phase::Resident && !self.is_busy() && !self.pinned;
        self.ttl.filter(|_| idles).and_then(|ttl| self.idle_since.checked_add(ttl))
    }

    fn state(&self) -> State {
        match self.phase {
            _ if self.leaves() => State::Leaving,
            Phase::Loading => State::Loading,
            _ if self.is_open() => State::Resident,
            _ => State::Draining,
        }
    }
}

/// The policy. See the module's page.
#[derive(Debug)]
pub struct Residency {
    budget: Bytes,
    /// The budget, or what was in use when it became smaller, as far as that has not ended yet.
    allowance: Bytes,
    waiting_max: usize,
    entries: BTreeMap<ModelId, Entry>,
    /// Those who wait for memory, in the order they came.
    queue: VecDeque<Want>,
    references: BTreeMap<Ticket, ModelId>,
    last_ticket: Option<Ticket>,
    now: Duration,
    order: u64,
    deadline: Option<Duration>,
    counters: Counters,
    actions: Vec<Action>,
}

impl Residency {
    /// Nothing in memory; at most `waiting_max` requests may wait for a model, and as many for one to leave.
    pub fn new(budget: Bytes, waiting_max: usize) -> Self {
        Residency {
            budget,
            allowance: budget,
            waiting_max,
            entries: BTreeMap::new(),
            queue: VecDeque::new(),
            references: BTreeMap::new(),
            last_ticket: None,
            now: Duration::ZERO,
            order: 0,
            deadline: None,
            counters: Counters::default(),
            actions: Vec::new(),
        }
    }

    /// What follows from an event. `now` is the time since a moment of the owner's choice; it does not go back.
    ///
    /// # Panics
    ///
    /// If the owner reports what cannot have happened.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        match event {
            Event::Acquire(want) => self.acquire(want),
            Event::Cancel(ticket) => self.cancel(ticket),
            Event::Release(ticket) => self.release(ticket),
            Event::Unload { ticket, id } => self.unload(ticket, id),
            Event::Pin { ticket, id, pinned } => self.pin(ticket, id, pinned),
            Event::SetBudget(budget) => self.set_budget(budget),
            Event::Loaded(id) => self.loaded(id),
            Event::LoadFailed(id) => self.load_failed(id),
            Event::Evicted(id) => self.evicted(id),
            Event::Tick => {}
        }
        self.settle();
        self.check();
        std::mem::take(&mut self.actions)
    }

    /// Everything at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let view = |(&id, entry): (&ModelId, &Entry)| View {
            id,
            state: entry.state(),
            bytes: entry.bytes,
            references: entry.references,
            waiting: entry.waiters.len(),
            pinned: entry.pinned,
            ttl: entry.ttl,
            leaves_at: entry.leaves_at(),
        };
        Snapshot {
            budget: self.budget,
            in_use: self.sum(|_| true),
            pinned: self.sum(|entry| entry.pinned),
            models: self.entries.iter().map(view).collect(),
            waiting: self.waiting(),
            counters: self.counters,
        }
    }

    fn acquire(&mut self, want: Want) {
        self.take(want.ticket);
        assert!(want.bytes != Bytes::ZERO, "{:?}: a model takes memory", want.id);
        let found = self.entries.get(&want.id).filter(|entry| entry.is_open()).map(|entry| entry.phase);
        if found == Some(Phase::Resident) {
            self.counters.hits += 1;
            self.note(Note::Hit(want.id));
            return self.grant(want);
        }
        if let Some(why) = self.objection(&want, found.is_some()) {
            return self.refuse(want.ticket, want.id, why);
        }
        self.counters.misses += 1;
        self.note(Note::Miss(want.id));
        match found {
            Some(_) => self.entry(want.id).waiters.push(want),
            None => self.queue.push_back(want),
        }
    }

    /// Why somebody cannot wait for a model; `joins` a load that is under way.
    fn objection(&self, want: &Want, joins: bool) -> Option<Refusal> {
        let staying = self.sum(|entry| !entry.leaves());
        let waiting = self.waiting();
        if !joins && let Some(why) = self.hopeless(want) {
            return Some(why);
        }
        if !joins && let Some(device) = first(staying.beyond(self.budget)) {
            return Some(Refusal::OverBudget(self.account(device, want.bytes)));
        }
        (waiting >= self.waiting_max).then_some(Refusal::QueueFull { waiting, waiting_max: self.waiting_max })
    }

    /// Why a model cannot be loaded as long as budget and pins are as they are.
    fn hopeless(&self, want: &Want) -> Option<Refusal> {
        if let Some(device) = first(want.bytes.beyond(self.budget)) {
            return Some(Refusal::TooLarge(self.account(device, want.bytes)));
        }
        let pinned = self.sum(|entry| entry.pinned);
        let device = first(want.bytes.plus(pinned).beyond(self.budget))?;
        Some(Refusal::Pinned(self.account(device, want.bytes)))
    }

    fn cancel(&mut self, ticket: Ticket) {
        let (order, now) = (self.next(), self.now);
        let queued = self.queue.iter().position(|want| want.ticket == ticket);
        let mut found = queued.and_then(|at| self.queue.remove(at));
        for entry in self.entries.values_mut() {
            if let Some(at) = entry.waiters.iter().position(|want| want.ticket == ticket) {
                found = Some(entry.waiters.remove(at));
                (entry.idle, entry.idle_since) = (order, now);
            }
        }
        if let Some(want) = found {
            self.refuse(ticket, want.id, Refusal::Cancelled);
        }
    }

    fn release(&mut self, ticket: Ticket) {
        let id = self.references.remove(&ticket).expect("only granted references are released, once");
        let (order, now) = (self.next(), self.now);
        let entry = self.entry(id);
        assert!(
            entry.phase == Phase::Resident && entry.references > 0,
            "{id:?}: {entry:?} has no references"
        );
        entry.references -= 1;
        (entry.idle, entry.idle_since) = (order, now);
    }

    fn unload(&mut self, ticket: Ticket, id: ModelId) {
        self.take(ticket);
        let (waiting, waiting_max) = (self.unloads(), self.waiting_max);
        let Some(entry) = self.entries.get_mut(&id) else {
            return self.refuse(ticket, id, Refusal::NotLoaded);
        };
        if entry.pinned {
            return self.refuse(ticket, id, Refusal::StaysPinned);
        }
        if waiting >= waiting_max {
            return self.refuse(ticket, id, Refusal::QueueFull { waiting, waiting_max });
        }
        entry.unloads.push(ticket);
        // Resident ones leave when the step settles.
        if entry.phase == Phase::Loading {
            self.stop(id, Why::Asked, Refusal::Unloaded);
        }
    }

    fn pin(&mut self, ticket: Ticket, id: ModelId, pinned: bool) {
        self.take(ticket);
        let Some(entry) = self.entries.get_mut(&id) else {
            return self.refuse(ticket, id, Refusal::NotLoaded);
        };
        if entry.leaves() || !entry.unloads.is_empty() {
            return self.refuse(ticket, id, Refusal::Leaving);
        }
        entry.pinned = pinned;
        self.actions.push(Action::Done { ticket, id });
        self.note(Note::Pinned(id, pinned));
    }

    fn set_budget(&mut self, budget: Bytes) {
        self.budget = budget;
        self.note(Note::Budget(budget));
    }

    fn loaded(&mut self, id: ModelId) {
        let entry = self.entries.get_mut(&id).expect("only a load that was started ends");
        let (bytes, waiters) = (entry.bytes, std::mem::take(&mut entry.waiters));
        let too_late = match entry.phase {
            Phase::Loading => None,
            Phase::Stopping(why) => Some(why),
            _ => panic!("{id:?}: loaded twice"),
        };
        entry.phase = Phase::Resident;
        entry.idle_since = self.now;
        self.counters.loads += 1;
        self.counters.loaded = self.counters.loaded.plus(bytes);
        self.note(Note::Loaded(id, bytes));
        for want in waiters {
            self.grant(want);
        }
        if let Some(why) = too_late {
            self.evict(id, why);
        }
    }

    fn load_failed(&mut self, id: ModelId) {
        let entry = self.entries.remove(&id).expect("only a load that was started fails");
        match entry.phase {
            Phase::Loading => self.note(Note::LoadFailed(id)),
            Phase::Stopping(why) => self.note(Note::LoadStopped(id, why)),
            _ => panic!("{id:?}: failed to load after it was loaded"),
        }
        for want in entry.waiters {
            self.refuse(want.ticket, id, Refusal::LoadFailed);
        }
        self.gone(id, entry.unloads);
    }

    fn evicted(&mut self, id: ModelId) {
        let entry = self.entries.remove(&id).expect("only a model that was there is evicted");
        let Phase::Evicting(why) = entry.phase else { panic!("{id:?}: evicted, but nobody asked for it") };
        self.counters.evictions += 1;
        self.counters.evicted = self.counters.evicted.plus(entry.bytes);
        self.note(Note::Evicted(id, entry.bytes, why));
        self.gone(id, entry.unloads);
    }

    fn gone(&mut self, id: ModelId, unloads: Vec<Ticket>) {
        self.actions.extend(unloads.into_iter().map(|ticket| Action::Done { ticket, id }));
    }

    fn grant(&mut self, want: Want) {
        let order = self.next();
        let entry = self.entry(want.id);
        // It may be claimed: those who joined its load come before the one who claimed it.
        let granted = entry.phase == Phase::Resident && entry.unloads.is_empty();
        assert!(granted, "{:?}: granted, yet {entry:?}", want.id);
        entry.references += 1;
        entry.granted = order;
        entry.ttl = want.ttl;
        let pins = want.pin && !entry.pinned;
        entry.pinned |= want.pin;
        self.references.insert(want.ticket, want.id);
        self.actions.push(Action::Granted { ticket: want.ticket, id: want.id });
        if pins {
            self.note(Note::Pinned(want.id, true));
        }
    }

    fn refuse(&mut self, ticket: Ticket, id: ModelId, why: Refusal) {
        self.counters.refused += 1;
        self.actions.push(Action::Refused { ticket, id, why });
    }

    /// Starts to free an idle model.
    fn evict(&mut self, id: ModelId, why: Why) {
        let entry = self.entry(id);
        assert!(entry.phase == Phase::Resident, "{id:?}: evicted, yet {entry:?}");
        assert!(!entry.pinned && !entry.is_busy(), "{id:?}: evicted, yet {entry:?}");
        entry.phase = Phase::Evicting(why);
        self.note(Note::Evicting(id, why));
        self.actions.push(Action::StartEvict { id });
    }

    /// Stops a load; whoever waits for it is refused.
    fn stop(&mut self, id: ModelId, why: Why, refusal: Refusal) {
        let entry = self.entry(id);
        assert!(entry.phase == Phase::Loading && !entry.pinned, "{id:?}: stopped, yet {entry:?}");
        entry.phase = Phase::Stopping(why);
        let waiters = std::mem::take(&mut entry.waiters);
        self.actions.push(Action::CancelLoad { id });
        for want in waiters {
            self.refuse(want.ticket, id, refusal);
        }
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    fn entry(&mut self, id: ModelId) -> &mut Entry {
        self.entries.get_mut(&id).expect("the caller has just found it")
    }

    fn next(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn take(&mut self, ticket: Ticket) {
        assert!(
            self.last_ticket < Some(ticket),
            "{ticket:?} came after {:?}: tickets ascend",
            self.last_ticket
        );
        self.last_ticket = Some(ticket);
    }

    fn waiting(&self) -> usize {
        self.queue.len() + self.entries.values().map(|entry| entry.waiters.len()).sum::<usize>()
    }

    fn unloads(&self) -> usize {
        self.entries.values().map(|entry| entry.unloads.len()).sum()
    }

    fn sum(&self, which: impl Fn(&Entry) -> bool) -> Bytes {
        self.entries.values().filter(|entry| which(entry)).map(|entry| entry.bytes).sum()
    }

    fn account(&self, device: Device, needed: Bytes) -> Account {
        let pinned = self.sum(|entry| entry.pinned).on(device);
        let in_use = self.sum(|entry| !entry.leaves()).on(device);
        Account { device, needed: needed.on(device), budget: self.budget.on(device), pinned, in_use }
    }
}

/// The first device with any bytes.
fn first(bytes: Bytes) -> Option<Device> {
    Device::ALL.into_iter().find(|&device| bytes.on(device) > 0)
}
