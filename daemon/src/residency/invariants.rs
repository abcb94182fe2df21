//! What holds after each step, in release builds too: a daemon that overcommits memory or forgets a waiter should say
//! so at once, where the cause is. The costs are those of a walk over the models and over those who wait.

use super::{Bytes, Entry, Phase, Residency};

impl Residency {
    pub(super) fn check(&self) {
        let in_use = self.sum(|_| true);
        assert!(in_use.fits(self.allowance), "{in_use:?} in use, {:?} allowed", self.allowance);
        assert!(self.waiting() <= self.waiting_max, "{} wait, {} may", self.waiting(), self.waiting_max);
        let references: usize = self.entries.values().map(|entry| entry.references).sum();
        assert_eq!(references, self.references.len(), "references counted twice or not at all");
        for (id, entry) in &self.entries {
            assert!(entry.is_sound(), "{id:?}: {entry:?} contradicts itself");
        }
        let staying = self.sum(|entry| !entry.leaves());
        let idles = |entry: &Entry| !entry.leaves() && !entry.is_busy() && !entry.pinned;
        let over = staying.beyond(self.budget);
        let spared = self.entries.values().find(|entry| idles(entry) && entry.bytes.meets(over));
        assert!(spared.is_none(), "{over:?} above the budget, yet {spared:?} stays");
        self.check_progress();
    }

    /// Nobody waits for nothing: where no load and no eviction is under way, those who wait would not fit even if all
    /// idle models left.
    fn check_progress(&self) {
        let moves = |entry: &Entry| entry.leaves() || entry.phase == Phase::Loading;
        if self.entries.values().any(moves) {
            return;
        }
        let held = self.sum(|entry| entry.is_busy() || entry.pinned);
        let kept = self.sum(|entry| entry.is_open() && (entry.is_busy() || entry.pinned));
        let mut promised = Bytes::ZERO;
        for (at, want) in self.queue.iter().enumerate() {
            if let Some(entry) = self.entries.get(&want.id) {
                assert!(!entry.is_open(), "{want:?} waits for what is there");
            } else {
                let physically = held.plus(want.bytes).fits(self.budget);
                let in_turn = kept.plus(want.bytes).plus(promised).fits(self.budget);
                assert!(!(physically && in_turn), "{want:?} waits for nothing");
            }
            if at == 0 {
                promised = want.bytes;
            }
        }
    }
}

impl Entry {
    fn is_sound(&self) -> bool {
        let users = match self.phase {
            Phase::Loading => self.references == 0,
            Phase::Resident => self.waiters.is_empty(),
            Phase::Stopping(_) | Phase::Evicting(_) => !self.is_busy() && !self.pinned,
        };
        let unloads = self.unloads.is_empty() || (!self.pinned && (self.leaves() || self.is_busy()));
        users && unloads && self.bytes != Bytes::ZERO && (!self.claimed || self.is_busy())
    }
}
