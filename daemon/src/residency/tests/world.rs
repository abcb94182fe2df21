//! An owner for the policy that loads nothing, keeps its own books, and compares them with every action.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Loading,
    Stopping,
    Resident,
    Evicting,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Reference { pin: bool },
    Unload,
    Pin(bool),
}

#[derive(Debug)]
pub(super) struct World {
    pub residency: Residency,
    pub now: Duration,
    pub budget: Bytes,
    pub memory: BTreeMap<ModelId, (Place, Bytes)>,
    pub references: BTreeMap<Ticket, ModelId>,
    pub deadline: Option<Duration>,
    pub steps: u64,
    /// The longest that anybody waited for an answer, in steps.
    pub waited_max: u64,
    pinned: BTreeSet<ModelId>,
    open: BTreeMap<Ticket, (ModelId, Asked, u64)>,
    tickets: u64,
    moved: (Bytes, Bytes),
}

impl World {
    pub(super) fn new(budget: Bytes, waiting_max: usize) -> Self {
        World {
            residency: Residency::new(budget, waiting_max),
            now: Duration::ZERO,
            budget,
            memory: BTreeMap::new(),
            references: BTreeMap::new(),
            deadline: None,
            steps: 0,
            waited_max: 0,
            pinned: BTreeSet::new(),
            open: BTreeMap::new(),
            tickets: 0,
            moved: (Bytes::ZERO, Bytes::ZERO),
        }
    }

    fn ask(&mut self, id: ModelId, asked: Asked) -> Ticket {
        self.tickets += 1;
        self.open.insert(Ticket(self.tickets), (id, asked, self.steps));
        Ticket(self.tickets)
    }

    pub(super) fn acquire(&mut self, id: ModelId, bytes: Bytes, ttl: Option<Duration>, pin: bool) -> Ticket {
        let ticket = self.ask(id, Asked::Reference { pin });
        self.feed(Event::Acquire(Want { ticket, id, bytes, ttl, pin }));
        ticket
    }

    pub(super) fn unload(&mut self, id: ModelId) {
        let ticket = self.ask(id, Asked::Unload);
        self.feed(Event::Unload { ticket, id });
    }

    pub(super) fn pin(&mut self, id: ModelId, pinned: bool) {
        let ticket = self.ask(id, Asked::Pin(pinned));
        self.feed(Event::Pin { ticket, id, pinned });
    }

    pub(super) fn set_budget(&mut self, budget: Bytes) {
        self.budget = budget;
        self.feed(Event::SetBudget(budget));
    }

    pub(super) fn release(&mut self, ticket: Ticket) {
        self.references.remove(&ticket).unwrap();
        self.feed(Event::Release(ticket));
    }

    /// Whatever a model does ends, a load perhaps badly.
    pub(super) fn finish(&mut self, id: ModelId, fails: bool) {
        match self.memory[&id].0 {
            Place::Loading | Place::Stopping if fails => {
                self.memory.remove(&id);
                self.pinned.remove(&id);
                self.feed(Event::LoadFailed(id));
            }
            Place::Loading | Place::Stopping => {
                let (place, bytes) = self.memory.get_mut(&id).unwrap();
                *place = Place::Resident;
                self.moved.0 = self.moved.0.plus(*bytes);
                self.feed(Event::Loaded(id));
            }
            Place::Evicting => {
                let (_, bytes) = self.memory.remove(&id).unwrap();
                self.moved.1 = self.moved.1.plus(bytes);
                self.feed(Event::Evicted(id));
            }
            Place::Resident => panic!("{id:?} does nothing that could end"),
        }
    }

    pub(super) fn under_way(&self) -> Vec<ModelId> {
        let moves =
            |(id, (place, _)): (&ModelId, &(Place, Bytes))| (*place != Place::Resident).then_some(*id);
        self.memory.iter().filter_map(moves).collect()
    }

    /// Those who wait for a reference.
    pub(super) fn waiting(&self) -> Vec<Ticket> {
        let waits = |(ticket, (_, asked, _)): (&Ticket, &(ModelId, Asked, u64))| {
            matches!(asked, Asked::Reference { .. }).then_some(*ticket)
        };
        self.open.iter().filter_map(waits).collect()
    }

    pub(super) fn in_use(&self) -> Bytes {
        self.memory.values().map(|&(_, bytes)| bytes).sum()
    }

    pub(super) fn feed(&mut self, event: Event) {
        self.steps += 1;
        for action in self.residency.step(self.now, event) {
            self.obey(action);
        }
        if matches!(event, Event::Cancel(ticket) if self.open.contains_key(&ticket)) {
            panic!("{event:?} was not answered");
        }
    }

    fn obey(&mut self, action: Action) {
        match action {
            Action::StartLoad { id, bytes } => {
                assert!(self.in_use().plus(bytes).fits(self.budget), "{action:?} above the budget");
                assert!(self.memory.insert(id, (Place::Loading, bytes)).is_none(), "{action:?} twice");
            }
            Action::CancelLoad { id } => {
                assert!(!self.pinned.contains(&id), "{action:?} of a pinned model");
                self.turn(id, Place::Loading, Place::Stopping);
            }
            Action::StartEvict { id } => {
                assert!(!self.pinned.contains(&id), "{action:?} of a pinned model");
                assert!(!self.references.values().any(|&used| used == id), "{action:?} of a model in use");
                self.turn(id, Place::Resident, Place::Evicting);
            }
            Action::Granted { ticket, id } => {
                let (asked_id, asked) = self.answered(ticket);
                let Asked::Reference { pin } = asked else { panic!("{action:?} for {asked:?}") };
                assert_eq!(asked_id, id);
                assert_eq!(self.memory[&id].0, Place::Resident, "{action:?}");
                if pin {
                    self.pinned.insert(id);
                }
                self.references.insert(ticket, id);
            }
            Action::Refused { ticket, id, .. } => assert_eq!(self.answered(ticket).0, id),
            Action::Done { ticket, id } => match self.answered(ticket).1 {
                Asked::Unload => assert!(!self.memory.contains_key(&id), "{action:?} while it is there"),
                Asked::Pin(true) => assert!(self.pinned.insert(id) || self.memory.contains_key(&id)),
                Asked::Pin(false) => {
                    self.pinned.remove(&id);
                }
                asked => panic!("{action:?} for {asked:?}"),
            },
            Action::SetDeadline(deadline) => self.deadline = deadline,
            Action::Note(_) => {}
        }
    }

    fn turn(&mut self, id: ModelId, from: Place, to: Place) {
        let place = &mut self.memory.get_mut(&id).unwrap().0;
        assert_eq!(*place, from, "{id:?} cannot become {to:?}");
        *place = to;
    }

    fn answered(&mut self, ticket: Ticket) -> (ModelId, Asked) {
        let (id, asked, since) = self.open.remove(&ticket).expect("a ticket is answered once");
        self.waited_max = self.waited_max.max(self.steps - since);
        (id, asked)
    }

    /// Ends everything: afterwards nobody waits, nothing is referenced, and memory is as it was at the start.
    pub(super) fn close(&mut self, roomy: Bytes) {
        self.set_budget(roomy);
        while !self.under_way().is_empty() || !self.references.is_empty() {
            for id in self.under_way() {
                if self.memory.get(&id).is_some_and(|(place, _)| *place != Place::Resident) {
                    self.finish(id, false);
                }
            }
            let held: Vec<_> = self.references.keys().copied().collect();
            held.into_iter().for_each(|ticket| self.release(ticket));
        }
        assert!(self.open.is_empty(), "never answered: {:?}", self.open);
        for id in self.pinned.clone() {
            self.pin(id, false);
        }
        self.set_budget(Bytes::ZERO);
        while let Some(&id) = self.under_way().first() {
            self.finish(id, false);
        }
        let snapshot = self.residency.snapshot();
        assert_eq!((snapshot.in_use, snapshot.models.len(), snapshot.waiting), (Bytes::ZERO, 0, 0));
        assert_eq!((self.in_use(), self.open.len()), (Bytes::ZERO, 0));
        assert_eq!((snapshot.counters.loaded, snapshot.counters.evicted), self.moved);
        assert_eq!(self.moved.0, self.moved.1, "what came in went out");
    }
}
