//! What a card would have of a step of training, in bytes: arithmetic over sites, before any weight is read.
//!
//! Of the matrices that are not trained those that are met by most rows stand there, as many as have room; the others
//! pass through a ring. A router is left out: it is small, and what it chooses should not hang on how sums are made.

use std::collections::BTreeMap;

use bantam_core::arena::{ALIGNMENT, Layouter};
use bantam_core::layouts::TILE_ROWS;
use bantam_core::{Precision, Region, Slot};
use bantam_model::card::{BACK_ROWS, Needs, Passage, RING_SLOTS};
use bantam_model::placement::RING_BYTES;
use bantam_model::spec::ModelSpec;

use super::super::head::{CHUNK, EndSites};
use super::super::outline::{Load, Part};
use super::super::sites::{LayerSites, Site};

/// Tiles that come together at least: sums that go backwards are made of blocks of so many.
const BLOCK_TILES: usize = BACK_ROWS / TILE_ROWS;
/// Bytes of results that are brought back at a time.
const RESULT_BYTES: usize = 8 << 20;
/// Of what a card may give, so much at most is for rows on their way, and for the ring.
const ROWS_SHARE: usize = 4;
const RING_SHARE: usize = 16;

/// A matrix that the card can multiply with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) site: Site,
    /// How many rows meet it in a step, every time counted.
    met: u64,
    /// Where it stands there.
    pub(super) stands: Option<Slot>,
    /// Whether it comes by the ring otherwise.
    pub(super) passes: bool,
}

impl Entry {
    pub(super) fn tile_bytes(&self) -> usize {
        self.site.matrix.layout.tile_bytes(self.site.matrix.width())
    }

    pub(super) fn bytes(&self) -> usize {
        self.tile_bytes() * self.site.shape().tiles()
    }

    /// Bytes of a ring's slot that it needs.
    fn least_bytes(&self) -> usize {
        self.tile_bytes() * self.site.shape().tiles().min(BLOCK_TILES)
    }

    /// The longest row that goes there, and that comes back: results have whole tiles.
    fn widths(&self) -> [usize; 2] {
        let (rows, width) = (self.site.shape().rows, self.site.matrix.width());
        [width.max(rows), width.max(rows.next_multiple_of(TILE_ROWS))]
    }

    /// Whether it takes its input as it is.
    pub(super) fn is_plain(&self) -> bool {
        let matrix = &self.site.matrix;
        matrix.order.is_none() && matrix.factors.is_none() && matrix.times == 1
    }
}

/// What stands on the card, and the memory for what passes.
#[derive(Debug, Clone)]
pub(crate) struct CardPlan {
    /// By their offsets.
    pub(super) entries: Vec<Entry>,
    /// Rows that go there at a time.
    pub(super) rows: usize,
    /// Rows that go there, those that come back, a block of a matrix as numbers.
    pub(super) x: Slot,
    pub(super) out: Slot,
    pub(super) unpacked: Slot,
    work_bytes: usize,
    /// Bytes of weights that stand there.
    weight_bytes: usize,
    /// Bytes of each slot of the ring; 0 where there is none.
    pub(super) slot_bytes: usize,
    /// Pinned bytes for what comes back.
    results: usize,
    /// Floats of inputs in another order, here.
    pub(super) taken: usize,
}

impl CardPlan {
    /// What there would be in so many bytes of a card; `None` where these are too few, or nothing is left for it to do.
    pub(crate) fn new(
        spec: &ModelSpec,
        sites: (&EndSites, &[LayerSites], usize),
        load: &Load,
        budget: usize,
        passage: Passage,
    ) -> Option<CardPlan> {
        let entries = entries(spec, sites, load);
        let longest = load.forward().tokens.max(load.forward().labelled);
        let widths = |at: usize| entries.iter().map(|entry| entry.widths()[at]).max();
        let widest = [widths(0)?, widths(1)?];
        let mut plan = CardPlan::without_weights(entries, widest, longest.max(1));
        // Fewer rows at a time cost little where weights stand; more of these pay more than that.
        while plan.work_bytes > budget / ROWS_SHARE && plan.rows > TILE_ROWS {
            plan = CardPlan::without_weights(plan.entries, widest, plan.rows.div_ceil(2));
        }
        let left = budget.checked_sub(plan.bytes())?;
        let all: usize = plan.entries.iter().map(aligned).sum();
        if all > left {
            let slot = plan.ring(budget, passage);
            plan.slot_bytes = if RING_SLOTS * slot <= left { slot } else { 0 };
        }
        plan.fill(left - RING_SLOTS * plan.slot_bytes);
        let slot = plan.slot_bytes;
        for entry in &mut plan.entries {
            entry.passes = entry.stands.is_none() && entry.least_bytes() <= slot;
        }
        let does_something = plan.entries.iter().any(|entry| entry.stands.is_some() || entry.passes);
        does_something.then_some(plan)
    }

    fn without_weights(entries: Vec<Entry>, [sent, back]: [usize; 2], rows: usize) -> CardPlan {
        let mut work = Layouter::new(Region::Work);
        let mut floats = |count: usize| work.slot(4 * count).expect("rows were planned");
        let widest = entries.iter().map(|entry| entry.site.matrix.width()).max().unwrap_or(0);
        let (x, out, unpacked) = (floats(rows * sent), floats(rows * back), floats(BACK_ROWS * widest));
        let is_plain = entries.iter().all(Entry::is_plain);
        // At least a row: what comes back is handed out by rows.
        let results = RESULT_BYTES.min(4 * rows * back).max(4 * back).next_multiple_of(64);
        CardPlan {
            entries,
            rows,
            x,
            out,
            unpacked,
            work_bytes: work.bytes(),
            weight_bytes: 0,
            slot_bytes: 0,
            results,
            taken: if is_plain { 0 } else { rows * widest },
        }
    }

    /// Bytes of a slot of the ring.
    fn ring(&self, budget: usize, passage: Passage) -> usize {
        let largest = self.entries.iter().map(Entry::bytes).max().unwrap_or(0);
        let most = largest.min(RING_BYTES as usize / RING_SLOTS).min(budget / (RING_SHARE * RING_SLOTS));
        match passage {
            Passage::Never => 0,
            Passage::Measured | Passage::Always => most / ALIGNMENT * ALIGNMENT,
            Passage::From(_) => self.entries.iter().map(Entry::least_bytes).max().unwrap_or(0),
        }
    }

    /// Finds places for what is met most, as far as there is room.
    fn fill(&mut self, room: usize) {
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by_key(|&at| std::cmp::Reverse(self.entries[at].met));
        let mut weights = Layouter::new(Region::Weights);
        for at in order {
            let entry = &mut self.entries[at];
            if weights.bytes() + aligned(entry) <= room {
                entry.stands = weights.slot(entry.bytes());
            }
        }
        self.weight_bytes = weights.bytes();
    }

    /// The entry of a matrix.
    pub(super) fn find(&self, site: &Site) -> Option<usize> {
        let offset = |entry: &Entry| entry.site.matrix.slot.offset;
        self.entries.binary_search_by_key(&site.matrix.slot.offset, offset).ok()
    }

    pub(super) fn needs(&self) -> Needs {
        Needs {
            weights: self.weight_bytes,
            cache: 0,
            work: self.work_bytes,
            rows: BACK_ROWS,
            tables: 0,
            results: self.results,
            // Inputs are float32, and in their order before they go there.
            panels: Slot { region: Region::Work, offset: 0, bytes: 0 },
            precision: Precision::Exact,
        }
    }

    /// How many rows of a result, so wide, are brought back at a time.
    pub(super) fn result_rows(&self, width: usize) -> usize {
        self.results / (4 * width)
    }

    /// What is taken of the card.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let Needs { weights, work, .. } = self.needs();
        let ring = RING_SLOTS * self.slot_bytes;
        // A driver gives no piece of no bytes: there is one of the cache's, and may be one of weights.
        let words = self.needs().bytes() - weights - work + 1 + usize::from(weights == 0);
        let parts = [
            ("weights that stand there", weights),
            ("weights that pass", ring),
            ("rows and results", work),
            ("words of a step", words),
        ];
        parts.map(|(what, bytes)| (what, bytes as u64)).to_vec()
    }

    /// Bytes of the card.
    pub(crate) fn bytes(&self) -> usize {
        self.parts().iter().map(|(_, bytes)| *bytes as usize).sum()
    }

    /// Bytes of the host's memory, pinned and otherwise.
    pub(crate) fn host_bytes(&self) -> usize {
        self.needs().pinned() + RING_SLOTS * self.slot_bytes + 4 * self.taken
    }

    /// Bytes of all matrices that the card can multiply with, and of those that stand there.
    pub(crate) fn frozen_bytes(&self) -> [u64; 2] {
        let sum = |entries: &mut dyn Iterator<Item = &Entry>| entries.map(|entry| entry.bytes() as u64).sum();
        let mut stands = self.entries.iter().filter(|entry| entry.stands.is_some());
        [sum(&mut self.entries.iter()), sum(&mut stands)]
    }
}

fn aligned(entry: &Entry) -> usize {
    entry.bytes().next_multiple_of(ALIGNMENT)
}

/// All matrices that nobody trains, by their offsets, and the head in the pieces that a step takes.
fn entries(
    spec: &ModelSpec,
    (ends, layers, lowest): (&EndSites, &[LayerSites], usize),
    load: &Load,
) -> Vec<Entry> {
    let mut all: BTreeMap<usize, Entry> = BTreeMap::new();
    let mut add = |site: Site, met: usize| {
        if site.weight_to.is_none() && site.shape().rows > 0 {
            let entry = Entry { site, met: met as u64, stands: None, passes: false };
            all.entry(site.matrix.slot.offset).or_insert(entry);
        }
    };
    for (number, (layer, spec)) in layers.iter().zip(&spec.layers).enumerate() {
        let times = match number < lowest {
            true => 1,
            // Forward, once more unless it is kept, and back.
            false => 3 - usize::from(load.layers),
        };
        layer.inputs.iter().chain([&layer.output]).for_each(|site| add(*site, times * load.tokens));
        let choice = spec.mlp.experts.map(|experts| experts.choice);
        let rows = choice.map_or(load.tokens, |choice| choice.places(load.tokens) / choice.experts);
        let block = layer.gate.iter().flatten().chain(&layer.up).chain(&layer.down);
        block.for_each(|site| add(*site, times * rows));
    }
    let head = &ends.head;
    let vocab = head.shape().rows;
    for first in (0..vocab).step_by(CHUNK) {
        // For the loss, for its gradient, and back.
        add(head.part(first, CHUNK.min(vocab - first)), 3 * load.labelled);
    }
    all.into_values().collect()
}
