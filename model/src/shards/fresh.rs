//! Which side has the latest values of every activation, and how many of them.

use bantam_core::Slot;

use crate::plan::WorkSlots;

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Host,
    Card,
}

/// A slot that each side has a part of, from the slot's beginning on: of every row the first values stand on the card,
/// the others here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) rows: usize,
    /// Values of a row there.
    pub(super) there: usize,
    /// Values of a row here.
    pub(super) here: usize,
}

/// Values from a slot's first on that are the latest there.
#[derive(Debug, Clone, Copy)]
struct Counts {
    offset: usize,
    host: usize,
    card: usize,
    split: Option<Split>,
}

/// The same for all slots of the work region. A slot is known by where it begins.
#[derive(Debug)]
pub(super) struct Fresh(Vec<Counts>);

impl Fresh {
    pub(super) fn new(work: &WorkSlots) -> Self {
        let counts = |slot: Slot| Counts { offset: slot.offset, host: 0, card: 0, split: None };
        let mut list: Vec<Counts> = work.named().iter().map(|(_, slot)| counts(*slot)).collect();
        list.sort_by_key(|counts| counts.offset);
        // Slots of nothing begin where others do.
        list.dedup_by_key(|counts| counts.offset);
        Fresh(list)
    }

    fn of(&mut self, slot: Slot) -> &mut Counts {
        let at = self.0.binary_search_by_key(&slot.offset, |counts| counts.offset);
        &mut self.0[at.expect("activations stand in the slots of the plan")]
    }

    /// Where the first `count` values are at hand.
    pub(super) fn at(&mut self, slot: Slot, count: usize) -> At {
        match self.of(slot).card >= count {
            true => At::Card,
            false => At::Host,
        }
    }

    /// Whether they must come from the other side first; from now on they need not.
    pub(super) fn lacks(&mut self, slot: Slot, count: usize, at: At) -> bool {
        let counts = self.of(slot);
        assert!(counts.split.is_none(), "parts are put together first");
        let there = if at == At::Host { &mut counts.host } else { &mut counts.card };
        let lacks = *there < count;
        *there = count.max(*there);
        lacks
    }

    /// Values were computed on one side: the other's are old.
    pub(super) fn set(&mut self, slot: Slot, count: usize, at: At) {
        let counts = self.of(slot);
        counts.split = None;
        (counts.host, counts.card) = match at {
            At::Host => (count, 0),
            At::Card => (0, count),
        };
    }

    /// The same values were computed on both.
    pub(super) fn set_both(&mut self, slot: Slot, count: usize) {
        let counts = self.of(slot);
        (counts.host, counts.card, counts.split) = (count, count, None);
    }

    /// Each side has computed its part.
    pub(super) fn set_split(&mut self, slot: Slot, split: Split) {
        let counts = self.of(slot);
        (counts.host, counts.card, counts.split) = (0, 0, Some(split));
    }

    /// Whether a slot is in two parts.
    pub(super) fn split(&mut self, slot: Slot) -> Option<Split> {
        self.of(slot).split
    }
}
