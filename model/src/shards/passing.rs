//! Weights of the host's that pass through a card while many rows are read at once, so that the card computes all of a
//! product; and from how many rows on that pays, which is measured with the model's own matrices.
//!
//! Only matrices pass: keys and values stay where they are, with the attention over them.

use std::sync::Mutex;
use std::time::Instant;

use bantam_core::arena::disjoint;
use bantam_core::layouts::TILE_ROWS;
use bantam_core::ops::experts::{CHOSEN_MAX, Choice, Routing};
use bantam_core::{Arena, Backend, Matrix, Pool, Product, Routed, RowPer, Slot};
use memmap2::MmapMut;

use super::Host;
use super::fresh::Fresh;
use super::on_card::{OnCard, behind};
use super::shard::{Few, Shard};
use crate::card::{Card, Passage, Passing, RING_SLOTS};
use crate::placement::RING_BYTES;
use crate::plan::{LayerWeights, Linear, Plan};
use crate::pool::Threads;

/// Bytes that one thread copies at a time.
const COPY_BYTES: usize = 1 << 18;

/// What takes so long is measured once.
const LONG_SECONDS: f64 = 0.2;

/// The ring, as this side sees it.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) slot_bytes: usize,
    /// Rows of a step from which on weights pass.
    pub(super) from: usize,
    /// Whether all experts fit, or none may pass: what one product of a layer leaves on the card, the next one takes
    /// there.
    has_experts: bool,
    /// The rows of an expert.
    rows: Vec<u32>,
}

/// What of a product passes, and what of it stands on the card before that.
pub(super) struct Passed {
    pub(super) list: [Option<Passing>; 2],
    /// Rows there, and rows that pass.
    pub(super) there: usize,
    pub(super) here: usize,
    pub(super) is_by_heads: bool,
}

/// Bytes of a ring's slots for a plan and what it may take of a card; `None` where there is no ring. It takes at most a
/// sixteenth, since whatever stands there is worth more, unless somebody wants it anyway.
pub(super) fn slot_bytes(plan: &Plan, budget: usize, passage: Passage) -> Option<usize> {
    let matrices = || plan.weights.layers.iter().flat_map(linears).map(|linear| linear.matrix);
    let tile = |matrix: &Matrix| matrix.layout.tile_bytes(matrix.width());
    let least = matrices().map(|matrix| tile(&matrix)).max()?;
    let largest = matrices().map(|matrix| tile(&matrix) * matrix.shape.tiles()).max()?;
    let most = largest.min(RING_BYTES as usize / RING_SLOTS).min(budget / (16 * RING_SLOTS));
    match passage {
        Passage::Never => None,
        Passage::Measured => Some(most).filter(|&bytes| bytes >= least),
        Passage::Always | Passage::From(_) => Some(most.max(least)),
    }
}

/// The matrices of a layer but the router's, which is small.
pub(super) fn linears(layer: &LayerWeights) -> impl Iterator<Item = Linear> + use<> {
    let LayerWeights { query, key, value, output, .. } = *layer;
    [query, key, value, output].into_iter().chain(experts(layer))
}

/// Those of its feed-forward block.
fn experts(layer: &LayerWeights) -> impl Iterator<Item = Linear> + use<> {
    layer.gate.into_iter().chain([layer.up, layer.down])
}

impl Ring {
    /// Not in use yet.
    pub(super) fn new(plan: &Plan, on_card: &OnCard, slot_bytes: usize) -> Ring {
        let mixed = plan.weights.layers.iter().filter(|layer| layer.router.is_some());
        let has_experts = mixed.flat_map(experts).all(|Linear { matrix, bias, .. }| {
            on_card.can_pass_expert(&Product { matrix, bias, out: matrix.slot, add: false }, slot_bytes)
        });
        Ring { slot_bytes, from: usize::MAX, has_experts, rows: Vec::with_capacity(plan.options.chunk) }
    }
}

/// Fills a piece with the host's weights, by all threads.
fn copy(arena: &Arena<MmapMut>, pool: &Threads, at: usize, to: &mut [u8]) {
    let from = &arena.weights[at..at + to.len()];
    let pieces = Mutex::new(to.chunks_mut(COPY_BYTES).zip(from.chunks(COPY_BYTES)));
    pool.run(from.len().div_ceil(COPY_BYTES), &|_| {
        let piece = pieces.lock().expect("no holder panics").next();
        let (to, from) = piece.expect("a task has a piece");
        to.copy_from_slice(from);
    });
}

/// Hands products to the card, and the host's weights to its ring.
pub(super) fn pass(card: &mut dyn Card, host: &mut Host, rows: usize, x: Slot, list: &[Passing]) {
    if !list.is_empty() {
        let (arena, pool) = host.parts_mut();
        card.pass(rows, x, list, &mut |at, to| copy(arena, pool, at, to));
    }
}

impl OnCard {
    /// The rows of a product that do not stand there, with all else in the card's slots; and how many do.
    fn rest(&self, product: &Product) -> Option<(Product, usize)> {
        let matrix = product.matrix;
        let there = self.part(product).map_or(0, |part| part.matrix.shape.rows);
        let (order, factors) = (self.optional(matrix.order)?, self.optional(matrix.factors)?);
        let bias = self.optional(product.bias)?.map(|bias| behind(bias, 4 * there));
        let bytes = there / TILE_ROWS * matrix.layout.tile_bytes(matrix.width());
        let mut rest = Matrix { slot: behind(matrix.slot, bytes), order, factors, ..matrix };
        rest.shape.rows -= there;
        Some((Product { matrix: rest, bias, ..*product }, there))
    }

    /// A product with one matrix of a host's stack.
    fn of_expert(&self, product: &Product, expert: usize) -> Option<Product> {
        let matrix = product.matrix;
        let bytes = matrix.layout.tile_bytes(matrix.width()) * matrix.shape.tiles();
        let nth = |slot: Slot, bytes: usize| Slot { bytes, ..behind(slot, expert * bytes) };
        let of = |slot: Option<Slot>, count: usize| slot.map(|slot| nth(slot, 4 * count));
        let (order, factors) = (self.optional(matrix.order)?, self.optional(matrix.factors)?);
        let columns = matrix.shape.columns;
        let (order, factors) = (of(order, columns), of(factors, columns));
        let bias = of(self.optional(product.bias)?, matrix.shape.rows);
        let matrix = Matrix { slot: nth(matrix.slot, bytes), order, factors, ..matrix };
        Some(Product { matrix, bias, ..*product })
    }

    /// Whether each matrix of a host's stack can pass.
    pub(super) fn can_pass_expert(&self, product: &Product, slot_bytes: usize) -> bool {
        let one = self.of_expert(product, 0).map(|one| Passing { stands: false, ..Passing::plain(&one) });
        one.is_some_and(|one| one.fits(slot_bytes))
    }
}

impl Shard {
    /// Whether weights pass in a step of so many rows.
    pub(super) fn passes(&self, rows: usize) -> bool {
        self.ring.as_ref().is_some_and(|ring| rows >= ring.from)
    }

    /// A product of rows, as the card computes all of it; `None` where it does not in this step, or cannot.
    pub(super) fn passed(&self, rows: usize, product: &Product) -> Option<Passed> {
        let ring = self.ring.as_ref().filter(|_| self.passes(rows))?;
        let (rest, there) = self.on_card.rest(product)?;
        let here = rest.matrix.shape.rows;
        let is_by_heads = there > 0 && self.on_card.is_by_heads(&product.matrix);
        // Each side's heads stand close together: here those that go back to the host, behind the card's own.
        let (first, width) = if is_by_heads { (rows * there, here) } else { (there, there + here) };
        let rest = Passing { product: rest, stands: false, first, width };
        let part = self.on_card.part(product).map(|product| {
            let width = if is_by_heads { there } else { there + here };
            Passing { product, stands: true, first: 0, width }
        });
        let passes = here > 0 && rest.fits(ring.slot_bytes);
        passes.then_some(Passed { list: [part, Some(rest)], there, here, is_by_heads })
    }

    /// Brings the host's heads back to it.
    pub(super) fn bring_heads(
        &mut self,
        host: &mut Host,
        rows: usize,
        product: &Product,
        [there, here]: [usize; 2],
    ) {
        let out = product.out.first(rows * (there + here));
        let values = host.arena_mut().floats_mut(out.first(rows * here));
        self.card.fetch(behind(out, 4 * rows * there), &mut |first, piece| {
            values[first..][..piece.len()].copy_from_slice(piece);
        });
    }

    /// Whether experts pass in a step of so many rows.
    pub(super) fn experts_pass(&self, rows: usize) -> bool {
        self.passes(rows) && self.ring.as_ref().is_some_and(|ring| ring.has_experts)
    }

    /// Products of the places that are the host's by `routed`, expert after expert; `before` places come first in what
    /// goes in and out. Rows of places stand on the card, and so does what is made of them.
    #[allow(clippy::too_many_arguments, reason = "a product of experts, and which of their places")]
    pub(super) fn pass_experts(
        &mut self,
        host: &mut Host,
        rows: usize,
        routed: &Routed,
        before: usize,
        per: RowPer,
        x: Slot,
        products: &[Product],
    ) {
        let choice = routed.choice;
        let words = routed.slot.first(choice.bytes(rows).expect("it was planned") / 4);
        let columns = products[0].matrix.shape.columns;
        let Shard { card, on_card, ring, scratch, .. } = self;
        let ring = ring.as_mut().expect("experts pass through a ring");
        for at in 0.. {
            let [memory] = disjoint(&mut host.arena_mut().work, [words]);
            let routing = Routing::over(choice, rows, memory);
            let Some(&[expert, first, count]) = routing.segments().get(at) else { break };
            let (first, count) = (first as usize, count as usize);
            ring.rows.clear();
            ring.rows.extend_from_slice(&routing.rows()[first..first + count]);
            let x = match per {
                RowPer::Token => {
                    card.gather_again(&ring.rows, columns, x, *scratch);
                    *scratch
                }
                RowPer::Place => behind(x, 4 * (before + first) * columns),
            };
            let of = |product: &Product| {
                let width = product.matrix.shape.rows;
                let product = on_card.of_expert(product, expert as usize).expect("experts pass");
                Passing { product, stands: false, first: (before + first) * width, width }
            };
            let mut list = Few::none(&of(&products[0]));
            products.iter().for_each(|product| list.push(of(product)));
            pass(card.as_mut(), host, count, x, list.all());
        }
    }

    /// Says from how many rows on weights pass; the ring goes where they never do.
    pub(super) fn choose(&mut self, host: &mut Host, plan: &Plan, passage: Passage) {
        let from = match passage {
            Passage::From(rows) => Some(rows),
            Passage::Always if self.ring.is_some() => Some(1),
            Passage::Measured if self.ring.is_some() => self.measured(host, plan),
            _ => None,
        };
        // Nothing of what was measured with counts.
        self.fresh = Fresh::new(&plan.work);
        match (from, &mut self.ring) {
            (Some(from), Some(ring)) => ring.from = from,
            _ => {
                self.ring = None;
                self.card.drop_ring();
            }
        }
    }

    /// The fewest of 2, 4, 8 rows and so on for which a feed-forward block is faster through the ring.
    fn measured(&mut self, host: &mut Host, plan: &Plan) -> Option<usize> {
        let is_host = |layer: &&LayerWeights| self.on_card.weight(layer.up.matrix.slot).is_none();
        let layer = *plan.weights.layers.iter().find(is_host)?;
        let chunk = plan.options.chunk;
        let steps = (1..usize::BITS).map(|n| 1 << n).take_while(|&rows| rows < chunk).chain([chunk]);
        for (n, rows) in steps.filter(|&rows| rows > 1).enumerate() {
            let mut least = [f64::INFINITY; 2];
            // What is touched for the first time takes longer.
            for _ in 0..if n == 0 { 3 } else { 2 } {
                for (through, least) in [false, true].into_iter().zip(&mut least) {
                    *least = least.min(self.block_seconds(host, plan, &layer, rows, through)?);
                }
                // What takes long differs little from one time to the next.
                if n > 0 && least.iter().sum::<f64>() > LONG_SECONDS {
                    break;
                }
            }
            if least[1] < least[0] {
                return Some(rows);
            }
        }
        None
    }

    /// Seconds of one layer's feed-forward products over whatever numbers are there; `None` where the card fails.
    fn block_seconds(
        &mut self,
        host: &mut Host,
        plan: &Plan,
        layer: &LayerWeights,
        rows: usize,
        through: bool,
    ) -> Option<f64> {
        let work = &plan.work;
        if let Some(ring) = &mut self.ring {
            ring.from = if through { 0 } else { usize::MAX };
        }
        let product =
            |linear: &Linear, out| Product { matrix: linear.matrix, bias: linear.bias, out, add: false };
        let up = product(&layer.up, layer.gate.map_or(work.gate, |_| work.up));
        let mut first = Few::none(&up);
        layer.gate.iter().for_each(|gate| first.push(product(gate, work.gate)));
        first.push(up);
        self.fresh.set_both(work.normed, rows * layer.up.matrix.shape.columns);
        let routed = by_chance(host, plan, layer, rows);
        if let (Some(routed), false) = (&routed, through) {
            return Some(seconds(|| {
                host.matmul_experts(routed, rows, RowPer::Token, work.normed, first.all());
                let down = product(&layer.down, work.expert);
                host.matmul_experts(routed, rows, RowPer::Place, work.gate, &[down]);
            }));
        }
        if let (Some(_), false) = (&routed, self.experts_pass(rows)) {
            return None;
        }
        let taken = seconds(|| match &routed {
            Some(routed) => {
                self.pass_experts(host, rows, routed, 0, RowPer::Token, work.normed, first.all());
                let down = product(&layer.down, work.expert);
                self.pass_experts(host, rows, routed, 0, RowPer::Place, work.gate, &[down]);
                let _ = self.card.fault();
            }
            None => {
                self.products(host, rows, None, work.normed, first.all());
                self.products(host, rows, None, work.gate, &[product(&layer.down, work.normed)]);
                let _ = self.card.fault();
            }
        });
        self.card.fault().is_none().then_some(taken)
    }
}

/// Rows sent to a layer's experts as by chance.
fn by_chance(host: &mut Host, plan: &Plan, layer: &LayerWeights, rows: usize) -> Option<Routed> {
    let (work, experts) = (&plan.work, layer.router?.matrix.shape.rows);
    // As many of each row as the plan has room for.
    let mut choices = (1..=CHOSEN_MAX.min(experts)).rev().map(|chosen| Choice { experts, chosen });
    let has_room =
        |choice: &Choice| choice.bytes(plan.options.chunk).is_some_and(|bytes| bytes <= work.routing.bytes);
    let choice = choices.find(has_room)?;
    let routed = Routed { choice, slot: work.routing, part: None };
    let logits = host.arena_mut().floats_mut(work.router.first(rows * experts));
    for (i, logit) in logits.iter_mut().enumerate() {
        // Knuth's multiplicative hash.
        *logit = (i as u32).wrapping_mul(2_654_435_761) as f32;
    }
    host.route(&routed, rows, work.router);
    Some(routed)
}

/// How long it takes.
fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}
