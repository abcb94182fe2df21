//! The second half of a step: who leaves and who may come, given what is there. It is decided anew after each event,
//! so no plan can be out of date.

use super::terms::{Action, ModelId, Note, Refusal, Want, Why};
use super::{Bytes, Entry, Phase, Residency, first};

/// Which models may be asked to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Those that nobody uses.
    Idle,
    /// Also those in use and those awaited, when their references end.
    Busy,
    /// Idle ones, and those awaited, at once.
    Loads,
}

impl Entry {
    /// The order in which models leave; `None` for those out of reach.
    fn rank(&self, reach: Reach) -> Option<(u8, u64)> {
        if self.pinned || !self.is_open() {
            return None;
        }
        match reach {
            _ if !self.is_busy() => Some((0, self.idle)),
            Reach::Idle => None,
            Reach::Busy => Some((1, self.granted)),
            // The youngest load has the least done.
            Reach::Loads => (self.phase == Phase::Loading).then_some((1, u64::MAX - self.granted)),
        }
    }
}

impl Residency {
    pub(super) fn settle(&mut self) {
        self.dismiss_due();
        loop {
            self.entries.values_mut().for_each(|entry| entry.claimed = false);
            self.shrink();
            if !self.serve() {
                break;
            }
        }
        let in_use = self.sum(|_| true);
        self.allowance = self.budget.max(self.allowance.min(in_use));
        let deadline = self.entries.values().filter_map(Entry::leaves_at).min();
        if deadline != self.deadline {
            self.deadline = deadline;
            self.actions.push(Action::SetDeadline(deadline));
        }
    }

    /// Starts the eviction of idle models whose time is over or whose unload was asked for.
    fn dismiss_due(&mut self) {
        let due = |entry: &Entry| match entry.phase {
            Phase::Resident if !entry.unloads.is_empty() && !entry.is_busy() => Some(Why::Asked),
            Phase::Resident if entry.leaves_at().is_some_and(|at| at <= self.now) => Some(Why::Expired),
            _ => None,
        };
        let leaving: Vec<_> =
            self.entries.iter().filter_map(|(&id, entry)| Some((id, due(entry)?))).collect();
        for (id, why) in leaving {
            self.evict(id, why);
        }
    }

    /// Brings what is in use towards a budget that became smaller: what nobody uses goes at once, the others close.
    fn shrink(&mut self) {
        for id in self.victims(self.sum(|entry| !entry.leaves()), Reach::Loads).0 {
            let entry = &self.entries[&id];
            if entry.phase == Phase::Loading {
                let needed = entry.bytes;
                let over = self.sum(|entry| !entry.leaves()).beyond(self.budget);
                let device = first(over).expect("nothing is stopped within the budget");
                let account = self.account(device, needed);
                self.stop(id, Why::Budget, Refusal::OverBudget(account));
            } else {
                self.dismiss(id, Why::Budget);
            }
        }
        for id in self.victims(self.sum(Entry::is_open), Reach::Busy).0 {
            self.dismiss(id, Why::Budget);
        }
    }

    /// Goes through those who wait; whether a pin was granted on the way, which changes what others can have.
    fn serve(&mut self) -> bool {
        let mut pinned = false;
        // What those have been promised who cannot start yet, and their models.
        let (mut promised, mut promises) = (Bytes::ZERO, Vec::new());
        let mut at = 0;
        while let Some(&want) = self.queue.get(at) {
            let found = self.entries.get(&want.id);
            if found.is_some_and(Entry::is_open) {
                self.queue.remove(at);
                pinned |= self.admit(want);
            } else if let Some(why) = self.hopeless(&want) {
                self.queue.remove(at);
                self.refuse(want.ticket, want.id, why);
            } else if promises.contains(&want.id) {
                at += 1; // It joins the load of the one before it.
            } else {
                let (absent, head) = (found.is_none(), promises.is_empty());
                let fits = (absent || head) && self.make_room(want.bytes, promised, head);
                if fits && absent && self.sum(|_| true).plus(want.bytes).fits(self.budget) {
                    self.start(want);
                    // It is open now, and all who want it join it when their turn comes.
                    continue;
                }
                if fits {
                    promised = promised.plus(want.bytes);
                    promises.push(want.id);
                }
                at += 1;
            }
        }
        pinned
    }

    /// Gives somebody who waited what has become open; whether it was pinned by that.
    fn admit(&mut self, want: Want) -> bool {
        let entry = self.entry(want.id);
        if entry.phase == Phase::Loading {
            entry.waiters.push(want);
            return false;
        }
        let before = entry.pinned;
        self.grant(want);
        !before && want.pin
    }

    fn start(&mut self, want: Want) {
        let order = self.next();
        let entry = Entry {
            bytes: want.bytes,
            phase: Phase::Loading,
            pinned: false,
            ttl: want.ttl,
            references: 0,
            waiters: Vec::new(),
            unloads: Vec::new(),
            claimed: false,
            granted: order,
            idle: order,
            idle_since: self.now,
        };
        assert!(self.entries.insert(want.id, entry).is_none(), "{:?}: it is there already", want.id);
        self.note(Note::Loading(want.id, want.bytes));
        self.actions.push(Action::StartLoad { id: want.id, bytes: want.bytes });
    }

    /// Sees to it that `bytes` will fit beside what stays and what was promised; whether they will. It is best if idle
    /// models leave and that is enough; the first who waits, the head, may otherwise claim models in use.
    fn make_room(&mut self, bytes: Bytes, promised: Bytes, head: bool) -> bool {
        let there = self.sum(|entry| !entry.leaves());
        let planned = self.sum(Entry::is_open).plus(promised);
        let (mut victims, mut fits) = self.victims(there.max(planned).plus(bytes), Reach::Idle);
        if !fits && head {
            (victims, fits) = self.victims(planned.plus(bytes), Reach::Busy);
        }
        assert!(fits || !head, "{bytes:?} for the first who waits: a hopeless one is refused before");
        if fits {
            for id in victims {
                self.dismiss(id, Why::Room);
            }
        }
        fits
    }

    /// Who has to leave so that `sum` comes within the budget, and whether that is enough.
    fn victims(&self, mut sum: Bytes, reach: Reach) -> (Vec<ModelId>, bool) {
        if sum.fits(self.budget) {
            return (Vec::new(), true);
        }
        let rank = |(&id, entry): (&ModelId, &Entry)| Some((entry.rank(reach)?, id));
        let mut candidates: Vec<_> = self.entries.iter().filter_map(rank).collect();
        candidates.sort_unstable();
        let mut chosen = Vec::new();
        for ((class, _), id) in candidates {
            let bytes = self.entries[&id].bytes;
            if bytes.meets(sum.beyond(self.budget)) {
                sum = sum.beyond(bytes);
                chosen.push((class, id));
            }
        }
        let fits = sum.fits(self.budget);
        if fits && reach != Reach::Loads {
            // Some that were chosen first may fit beside the newcomer now that larger ones go: the latest used stay.
            for at in (0..chosen.len()).rev() {
                let (class, id) = chosen[at];
                let with = sum.plus(self.entries[&id].bytes);
                if class == 0 && with.fits(self.budget) {
                    sum = with;
                    chosen.remove(at);
                }
            }
        }
        (chosen.into_iter().map(|(_, id)| id).collect(), fits)
    }

    /// Sends a model away: at once if nobody uses it, else by closing it to new users.
    fn dismiss(&mut self, id: ModelId, why: Why) {
        let entry = self.entry(id);
        match entry.phase {
            _ if entry.is_busy() => entry.claimed = true,
            Phase::Loading => self.stop(id, why, Refusal::Cancelled),
            _ => self.evict(id, why),
        }
    }
}
