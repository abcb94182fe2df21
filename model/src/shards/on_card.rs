//! What of a plan stands on a card: arithmetic over slots, before any of its memory is taken.
//!
//! What every layer needs comes first, then attention with its keys and values, where not all has room as many heads of
//! every layer (`heads.rs`), then the head, then the feed-forward blocks: of dense ones the same share of every matrix,
//! so that both sides compute on every layer at once; of experts as many as have room (`stacks.rs`). A share is so many
//! tiles of rows from the first on: tiles lie one after another in every layout, so that nothing is repacked. The host
//! keeps all weights, and so goes on alone where the card fails.
//!
//! Of several cards each has whole layers in a row, and is filled with these as one card is with all (`ranges.rs`).
//! Where something stands is counted over all of them, one card's behind the other's.

use bantam_core::arena::Layouter;
use std::{iter, ops::Range};

use bantam_core::{KvCache, Matrix, Norm, Product, Region, Rope, Slot};

use super::heads::{Divided, shared};
use super::kept;
use super::passing::{linears, slot_bytes};
use super::ranges::ranges;
use super::stacks::Stacks;
use crate::card::{Manner, Passage, RING_SLOTS};
use crate::plan::{LayerWeights, Linear, Plan};

/// Bytes of a region of the host that stand on the card too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    from: usize,
    bytes: usize,
    to: usize,
}

/// Pieces of a region in the host's order.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    region: Region,
    list: Vec<Piece>,
    layouter: Layouter,
    /// Where each card's ends.
    ends: Vec<usize>,
}

/// What of a plan stands on a card, or on several, and where there.
#[derive(Debug, Clone)]
pub(crate) struct OnCard {
    weights: Pieces,
    caches: Pieces,
    /// Key heads of all layers that it has, and all.
    pub(crate) attention: [usize; 2],
    /// Where matrices begin whose results stay divided by heads, ascending.
    by_heads: Vec<usize>,
    /// Where experts stand that are there one by one, card by card.
    pub(super) stacks: Vec<Stacks>,
    /// Bytes of feed-forward blocks that it has, and all.
    pub(crate) blocks: [usize; 2],
    is_whole: bool,
    /// The layers of each card.
    pub(crate) layers: Vec<Range<usize>>,
    /// Bytes of a slot of the ring that other weights pass through.
    pub(super) ring: Option<usize>,
    /// Bytes that are set aside for steps that are kept.
    pub(crate) kept: usize,
}

/// Where a product is computed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Host,
    /// The product in the card's slots.
    Card(Product),
    /// Rows up to a number there, the others here. Both parts stand close together in what they give.
    Both(Product, Product),
}

impl Pieces {
    fn new(region: Region) -> Self {
        Pieces { region, list: Vec::new(), layouter: Layouter::new(region), ends: Vec::new() }
    }

    /// Bytes on all cards.
    fn bytes(&self) -> usize {
        self.layouter.bytes()
    }

    /// What is taken from here on stands on the next card.
    fn end_card(&mut self) {
        self.ends.push(self.layouter.bytes());
    }

    /// Which card has a slot, if one has any of it.
    fn card(&self, slot: Slot) -> Option<usize> {
        self.find(slot).map(|there| self.ends.partition_point(|&end| end <= there.offset))
    }

    /// Adds what is not there yet, if all of it has room; says whether it had.
    fn take(&mut self, slots: &[Slot], left: &mut usize) -> bool {
        let aligned = |slot: &&Slot| slot.bytes.next_multiple_of(bantam_core::arena::ALIGNMENT);
        let new =
            || slots.iter().filter(|slot| self.find(**slot).is_none_or(|there| there.bytes < slot.bytes));
        let bytes: usize = new().map(|slot| aligned(&slot)).sum();
        if bytes > *left {
            return false;
        }
        let new: Vec<Slot> = new().copied().collect();
        for slot in new {
            // A slot may be named twice: a head that is the embedding, a low matrix of several projections.
            if self.find(slot).is_some() {
                continue;
            }
            *left -= slot.bytes.next_multiple_of(bantam_core::arena::ALIGNMENT);
            let to = self.layouter.slot(slot.bytes).expect("less than the host's own region").offset;
            let at = self.list.partition_point(|piece| piece.from < slot.offset);
            self.list.insert(at, Piece { from: slot.offset, bytes: slot.bytes, to });
        }
        true
    }

    /// As much of a slot as stands on the card from its first byte on, as a slot there.
    fn find(&self, slot: Slot) -> Option<Slot> {
        // What came after the model was placed is nowhere but here.
        if slot.region != self.region {
            return None;
        }
        let after = self.list.partition_point(|piece| piece.from <= slot.offset);
        let piece = self.list.get(after.checked_sub(1)?)?;
        let inside = slot.offset - piece.from;
        let bytes = slot.bytes.min(piece.bytes.checked_sub(inside).filter(|&bytes| bytes > 0)?);
        Some(Slot { region: self.region, offset: piece.to + inside, bytes })
    }

    /// The whole of a slot.
    fn whole(&self, slot: Slot) -> Option<Slot> {
        self.find(slot).filter(|there| there.bytes == slot.bytes)
    }
}

impl OnCard {
    /// What stands on cards with so many bytes each, put there in some manner.
    pub(crate) fn in_manner(plan: &Plan, budgets: &[usize], manner: Manner) -> Option<OnCard> {
        match budgets {
            [budget] if manner.whole_layers => OnCard::whole_layers(plan, *budget),
            // A second card would hold something for good.
            [_, _, ..] if !manner.stays => None,
            _ => OnCard::with_ring(plan, budgets, manner),
        }
    }

    /// As other programs do it that divide no layer: the head where it has room, then layers from the last on, each
    /// with its cache and whatever else it needs.
    fn whole_layers(plan: &Plan, budget: usize) -> Option<OnCard> {
        let (of, count) = (&plan.weights, plan.weights.layers.len());
        let all =
            OnCard::with_ring(plan, &[budget], Manner { passage: Passage::Never, ..Manner::default() })?;
        if all.is_whole {
            return Some(all);
        }
        let (mut weights, mut caches) = (Pieces::new(Region::Weights), Pieces::new(Region::Cache));
        let (mut left, mut taken) = (budget, 0);
        weights.take(&slots(&of.head).collect::<Vec<Slot>>(), &mut left);
        for (at, layer) in of.layers.iter().enumerate().rev() {
            let cache = plan.caches[at].slot;
            let slots: Vec<Slot> =
                small(plan, &(at..at + 1)).into_iter().chain(linears(layer).flat_map(slots_of)).collect();
            if !caches.take(&[cache], &mut left) {
                break;
            }
            if !weights.take(&slots, &mut left) {
                caches.drop_last(cache);
                break;
            }
            taken += 1;
        }
        weights.end_card();
        caches.end_card();
        let first = count - taken;
        let block = |layer: &LayerWeights| {
            let linears = [layer.gate, Some(layer.up), Some(layer.down)].into_iter().flatten();
            linears.map(|linear| linear.matrix.slot.bytes).sum::<usize>()
        };
        let blocks = [first, 0].map(|first| of.layers[first..].iter().map(block).sum());
        let attention = [first, 0].map(|first| plan.caches[first..].iter().map(|cache| cache.heads).sum());
        let (by_heads, stacks) = (Vec::new(), Vec::new());
        let layers = iter::once(first..count).collect();
        Some(OnCard {
            weights,
            caches,
            attention,
            by_heads,
            stacks,
            blocks,
            is_whole: false,
            layers,
            ring: None,
            kept: 0,
        })
    }

    /// As much as so many bytes of each card can be, with a ring for the rest where that is wanted and has room.
    pub(crate) fn with_ring(plan: &Plan, budgets: &[usize], manner: Manner) -> Option<OnCard> {
        let mut without = OnCard::fill(plan, budgets)?;
        if without.has_all_layers() {
            if without.is_whole && budgets.len() == 1 {
                // Of what is left: a model that stands there whole is worth more than one call for its step.
                without.kept =
                    kept::bytes(plan).min(budgets[0] - without.weight_bytes() - without.cache_bytes());
            }
            return Some(without);
        }
        let least = budgets.iter().copied().min()?;
        let with = slot_bytes(plan, least, manner.passage).and_then(|slot| {
            let left = budgets.iter().map(|budget| budget.checked_sub(RING_SLOTS * slot));
            // What a product needs beside its matrix stands there for all.
            let filled = OnCard::fill_with(plan, &left.collect::<Option<Vec<_>>>()?, true, manner.stays)?;
            (filled.is_worth_it() || !manner.stays).then_some(OnCard { ring: Some(slot), ..filled })
        });
        // Who wants all else to pass is not served without a ring.
        with.or(Some(without).filter(|_| manner.passage != Passage::Always))
    }

    /// As much as so many bytes of weights and cache can be; `None` where not even what every layer needs has room.
    fn fill(plan: &Plan, budgets: &[usize]) -> Option<OnCard> {
        OnCard::fill_with(plan, budgets, false, true)
    }

    /// The same, with or without what products need beside their matrices, wherever these stand, and with or without
    /// attention and blocks.
    fn fill_with(plan: &Plan, budgets: &[usize], with_beside: bool, with_layers: bool) -> Option<OnCard> {
        let (mut weights, mut caches) = (Pieces::new(Region::Weights), Pieces::new(Region::Cache));
        let of = &plan.weights;
        let layers = ranges(plan, budgets)?;
        let mut found = OnCard {
            weights: weights.clone(),
            caches: caches.clone(),
            attention: [0, plan.caches.iter().map(|cache| cache.heads).sum()],
            by_heads: Vec::new(),
            stacks: Vec::new(),
            blocks: [0, 0],
            is_whole: false,
            layers: layers.clone(),
            ring: None,
            kept: 0,
        };
        for (range, &budget) in layers.iter().zip(budgets) {
            let (mut left, is_last) = (budget, range.end == of.layers.len());
            if plan.weight_bytes + plan.cache_bytes <= budget && budgets.len() == 1 {
                let all = |region, bytes| Slot { region, offset: 0, bytes };
                weights.take(&[all(Region::Weights, plan.weight_bytes)], &mut left);
                caches.take(&[all(Region::Cache, plan.cache_bytes)], &mut left);
            }
            let must = of.layers[range.clone()].iter().flat_map(linears).flat_map(beside);
            let must: Vec<Slot> = if with_beside { must.collect() } else { Vec::new() };
            let has_small = weights.take(&small(plan, range), &mut left);
            if !(has_small && must.iter().all(|slot| weights.take(&[*slot], &mut left))) {
                return None;
            }
            let withheld = if with_layers { 0 } else { left };
            left -= withheld;
            let (heads, by_heads) = weights.take_attention(&mut caches, plan, range, &mut left);
            left += withheld;
            found.attention[0] += heads;
            found.by_heads.extend(by_heads);
            let head: Vec<Slot> = slots(&of.head).collect();
            if is_last && !weights.take(&head, &mut left) {
                let share = left as f64 / of.head.matrix.slot.bytes.max(1) as f64;
                weights.take_rows(&of.head, share, &mut left);
            }
            left = if with_layers { left } else { 0 };
            let (blocks, stacks) = weights.take_blocks(plan, &of.layers[range.clone()], &mut left);
            (0..2).for_each(|i| found.blocks[i] += blocks[i]);
            if budgets.len() > 1 && heads == 0 && blocks[0] == 0 {
                return None;
            }
            found.stacks.extend(stacks);
            // A head that is the embedding stands where the last layer does.
            if is_last || of.embedding.slot != of.head.matrix.slot {
                weights.take(&[of.embedding.slot], &mut left);
            }
            weights.end_card();
            caches.end_card();
        }
        found.by_heads.sort_unstable();
        let has_ends =
            [of.embedding.slot, of.head.matrix.slot].iter().all(|slot| weights.whole(*slot).is_some());
        found.is_whole = has_ends && found.has_all_layers();
        (found.weights, found.caches) = (weights, caches);
        found.is_together(plan).then_some(found)
    }

    /// Whether of every layer there is all.
    pub(crate) fn has_all_layers(&self) -> bool {
        [self.attention, self.blocks].iter().all(|[there, all]| there == all)
    }

    /// Whether what an operation takes at once stands on one card. Tensors that layers share could be elsewhere.
    fn is_together(&self, plan: &Plan) -> bool {
        let mut groups = plan.weights.layers.iter().flat_map(linears).map(|linear| {
            let Matrix { slot, order, factors, .. } = linear.matrix;
            let mut cards = [Some(slot), order, factors, linear.bias].into_iter().flatten();
            let first = cards.find_map(|slot| self.weights.card(slot));
            cards.all(|slot| self.weights.card(slot).is_none_or(|card| Some(card) == first))
        });
        self.layers.len() == 1 || groups.all(|is_together| is_together)
    }

    /// Where the weights and the cache of each card end.
    pub(super) fn ends(&self) -> Vec<[usize; 2]> {
        self.weights.ends.iter().zip(&self.caches.ends).map(|(&weights, &cache)| [weights, cache]).collect()
    }

    /// Bytes of weights and of the cache on each card.
    pub(crate) fn bytes(&self) -> Vec<[usize; 2]> {
        let ends = self.ends();
        let before = |at: usize| at.checked_sub(1).map_or([0; 2], |at| ends[at]);
        (0..ends.len()).map(|at| [0, 1].map(|of| ends[at][of] - before(at)[of])).collect()
    }

    /// Bytes of weights there.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Bytes of keys and values there.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.caches.bytes()
    }

    /// Bytes of all cards that other weights pass through.
    pub(crate) fn ring_bytes(&self) -> usize {
        self.layers.len() * RING_SLOTS * self.ring.unwrap_or(0)
    }

    /// Whether everything is.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether anything of the model is computed there.
    pub(crate) fn is_worth_it(&self) -> bool {
        self.attention[0] > 0 || self.blocks[0] > 0 || self.ring.is_some()
    }

    /// Every piece of the weights: where it is in the host's region, and where on the card.
    pub(crate) fn copies(&self) -> impl Iterator<Item = (Slot, Slot)> + '_ {
        self.weights.list.iter().map(|&Piece { from, bytes, to }| {
            let slot = |offset| Slot { region: Region::Weights, offset, bytes };
            (slot(from), slot(to))
        })
    }

    /// Whether the host has any keys and values of its own.
    pub(super) fn has_all_caches(&self) -> bool {
        self.attention[0] == self.attention[1]
    }

    pub(super) fn weight(&self, slot: Slot) -> Option<Slot> {
        self.weights.whole(slot)
    }

    /// A slot that may be none: the outer `None` is one that does not stand there.
    pub(super) fn optional(&self, slot: Option<Slot>) -> Option<Option<Slot>> {
        match slot {
            Some(slot) => self.weight(slot).map(Some),
            None => Some(None),
        }
    }

    /// The part of a layer's cache that stands there, by its first heads.
    pub(super) fn cache(&self, cache: &KvCache) -> Option<KvCache> {
        let slot = self.caches.find(cache.slot)?;
        Some(KvCache { slot, heads: cache.heads * slot.bytes / cache.slot.bytes, ..*cache })
    }

    /// Whether each side keeps what it computes with this matrix.
    pub(super) fn is_by_heads(&self, matrix: &Matrix) -> bool {
        self.by_heads.binary_search(&matrix.slot.offset).is_ok()
    }

    pub(super) fn norm(&self, norm: &Norm) -> Option<Norm> {
        Some(Norm { weight: self.weight(norm.weight)?, bias: self.optional(norm.bias)?, ..*norm })
    }

    pub(super) fn rope(&self, rope: &Rope) -> Option<Rope> {
        let longer = match rope.longer {
            Some((positions, slot)) => Some((positions, self.weight(slot)?)),
            None => None,
        };
        Some(Rope { frequencies: self.weight(rope.frequencies)?, longer, ..*rope })
    }

    /// A whole matrix in the card's slots.
    pub(super) fn matrix(&self, matrix: &Matrix) -> Option<Matrix> {
        let slot = self.weight(matrix.slot)?;
        Some(Matrix {
            slot,
            order: self.optional(matrix.order)?,
            factors: self.optional(matrix.factors)?,
            ..*matrix
        })
    }

    /// Where a product is computed.
    pub(super) fn side(&self, product: &Product) -> Side {
        let Some(there) = self.part(product) else { return Side::Host };
        let rows = there.matrix.shape.rows;
        if rows == product.matrix.shape.rows {
            return Side::Card(there);
        }
        let mut here = *product;
        here.matrix.shape.rows -= rows;
        here.matrix.slot = behind(product.matrix.slot, there.matrix.slot.bytes);
        here.bias = product.bias.map(|bias| behind(bias, 4 * rows));
        Side::Both(there, here)
    }

    /// As many rows of a product as the card has.
    pub(super) fn part(&self, product: &Product) -> Option<Product> {
        let Matrix { layout, mut shape, slot, order, factors, .. } = product.matrix;
        let slot = self.weights.find(slot)?;
        if slot.bytes < product.matrix.slot.bytes {
            shape.rows =
                slot.bytes / layout.tile_bytes(product.matrix.width()) * bantam_core::layouts::TILE_ROWS;
        }
        let bias = self.optional(product.bias)?;
        let is_part = shape.rows < product.matrix.shape.rows;
        let bias = bias.map(|bias| if is_part { bias.first(shape.rows) } else { bias });
        let (order, factors) = (self.optional(order)?, self.optional(factors)?);
        let matrix = Matrix { shape, slot, order, factors, ..product.matrix };
        Some(Product { matrix, bias, ..*product })
    }
}

impl Pieces {
    /// Takes back what was taken last.
    fn drop_last(&mut self, slot: Slot) {
        self.list.retain(|piece| piece.from != slot.offset);
        let mut layouter = Layouter::new(self.region);
        // What is there lies in the order in which it was taken.
        let mut kept: Vec<Piece> = self.list.clone();
        kept.sort_by_key(|piece| piece.to);
        kept.iter().for_each(|piece| {
            layouter.slot(piece.bytes);
        });
        self.layouter = layouter;
    }

    /// A share of a matrix in whole tiles, with what belongs to it.
    fn take_rows(&mut self, linear: &Linear, share: f64, left: &mut usize) {
        let matrix = &linear.matrix;
        let tiles = matrix.shape.tiles();
        let tile_bytes = matrix.layout.tile_bytes(matrix.width());
        let beside: Vec<Slot> = linear.bias.into_iter().chain(matrix.order).chain(matrix.factors).collect();
        // What is added where it was scaled before needs whole rows of both.
        let wanted = (share * tiles as f64) as usize;
        let wanted = if linear.low.is_some_and(|low| low.factors.is_some()) { 0 } else { wanted.min(tiles) };
        let slot = Slot {
            bytes: if wanted == tiles { matrix.slot.bytes } else { wanted * tile_bytes },
            ..matrix.slot
        };
        if wanted > 0 && self.find(matrix.slot).is_none() && self.take(&beside, left) {
            self.take(&[slot], left);
        }
    }

    /// Attention of some layers: key heads that it has; where matrices begin that are divided by heads.
    fn take_attention(
        &mut self,
        caches: &mut Pieces,
        plan: &Plan,
        range: &Range<usize>,
        left: &mut usize,
    ) -> (usize, Vec<usize>) {
        let layers = plan.weights.layers[range.clone()].iter().zip(&plan.caches[range.clone()]);
        let is_divisible = plan.adapter_bytes == 0;
        let divided = |(layer, cache)| Divided::new(layer, cache, is_divisible);
        let layers: Vec<Divided> = layers.map(divided).collect();
        // Where everything stands there already, this only counts.
        let is_there = layers.iter().all(|of| caches.whole(of.cache.slot).is_some());
        let heads = shared(&layers, if is_there { usize::MAX } else { *left });
        let (mut taken, mut by_heads) = (0, Vec::new());
        for (of, &heads) in layers.iter().zip(&heads).filter(|(_, heads)| **heads > 0) {
            let (slots, cache, before) = (of.parts(heads), of.cache_part(heads), *left);
            // Both or neither.
            if !caches.take(&[cache], left) {
                continue;
            }
            if !self.take(&slots, left) {
                caches.drop_last(cache);
                *left = before;
                continue;
            }
            taken += heads;
            if heads < of.cache.heads {
                self.take_rows(&of.layer.output, of.part(heads), left);
                let inputs = [&of.layer.query, &of.layer.key, &of.layer.value];
                by_heads.extend(inputs.map(|linear| linear.matrix.slot.offset));
            }
        }
        (taken, by_heads)
    }

    /// Room for what has no place of its own in the host's region.
    pub(super) fn room(&mut self, bytes: usize, left: &mut usize) -> Option<Slot> {
        *left = left.checked_sub(bytes.next_multiple_of(bantam_core::arena::ALIGNMENT))?;
        self.layouter.slot(bytes)
    }

    /// Feed-forward blocks: bytes that it has of them, and all; experts that stand there one by one.
    fn take_blocks(
        &mut self,
        plan: &Plan,
        layers: &[LayerWeights],
        left: &mut usize,
    ) -> ([usize; 2], Option<Stacks>) {
        let linears = |layer: &'_ LayerWeights| [layer.gate, Some(layer.up), Some(layer.down)];
        let bytes = |linear: &Linear| linear.matrix.slot.bytes;
        let all: usize = layers.iter().flat_map(linears).flatten().map(|linear| bytes(&linear)).sum();
        let dense = || layers.iter().filter(|layer| layer.router.is_none());
        let total: usize = dense().flat_map(linears).flatten().map(|linear| bytes(&linear)).sum();
        let mixed: Vec<&LayerWeights> = layers.iter().filter(|layer| layer.router.is_some()).collect();
        let of = |layer: &'_ LayerWeights| -> Vec<Slot> {
            linears(layer).into_iter().flatten().flat_map(slots_of).collect()
        };
        let every: Vec<Slot> = mixed.iter().flat_map(|layer| of(layer)).collect();
        // What an adapter adds to experts is added to all places of a row together.
        let is_divisible = plan.adapter_bytes == 0;
        let stacks = match self.take(&every, left) {
            false if is_divisible => Stacks::take(self, &mixed, left),
            _ => None,
        };
        if stacks.is_none() {
            // Those that differ stand there by whole layers.
            for layer in &mixed {
                self.take(&of(layer), left);
            }
        }
        let share = (*left as f64 / total.max(1) as f64).min(1.0);
        for linear in dense().flat_map(linears).flatten() {
            let whole: Vec<Slot> = slots_of(linear).collect();
            if share < 1.0 || !self.take(&whole, left) {
                self.take_rows(&linear, share, left);
            }
        }
        let there = |linear: Linear| self.find(linear.matrix.slot).map_or(0, |slot| slot.bytes);
        let there: usize = layers.iter().flat_map(linears).flatten().map(there).sum();
        ([there + stacks.as_ref().map_or(0, Stacks::matrix_bytes), all], stacks)
    }
}

/// What stands in a slot from a byte on.
pub(super) fn behind(slot: Slot, bytes: usize) -> Slot {
    Slot { offset: slot.offset + bytes, bytes: slot.bytes - bytes, ..slot }
}

/// All slots of a matrix.
pub(super) fn slots_of(linear: Linear) -> impl Iterator<Item = Slot> {
    let Matrix { slot, order, factors, .. } = linear.matrix;
    let low = linear.low.into_iter().flat_map(|low| {
        [Some(low.down.slot), Some(low.up.slot), low.bias, low.factors].into_iter().flatten()
    });
    [Some(slot), order, factors, linear.bias].into_iter().flatten().chain(low)
}

/// Those that are no matrices.
fn beside(linear: Linear) -> impl Iterator<Item = Slot> {
    let low = linear.low.into_iter().flat_map(|low| [low.bias, low.factors].into_iter().flatten());
    [linear.matrix.order, linear.matrix.factors, linear.bias].into_iter().flatten().chain(low)
}

fn slots(linear: &Linear) -> impl Iterator<Item = Slot> + use<> {
    slots_of(*linear)
}

/// What these layers need, whoever computes them: norms, routers, sinks; with the first of all tables of positions,
/// with the last the norm after it.
pub(super) fn small(plan: &Plan, range: &Range<usize>) -> Vec<Slot> {
    let of = &plan.weights;
    let norm = |norm: &Norm| [Some(norm.weight), norm.bias];
    let is_last = range.end == of.layers.len();
    let mut found: Vec<Option<Slot>> = if is_last { norm(&of.final_norm).into() } else { Vec::new() };
    for layer in &of.layers[range.clone()] {
        let pairs = layer.post_norms.iter().chain(&layer.head_norms).flatten();
        found.extend([&layer.attention_norm, &layer.mlp_norm].into_iter().chain(pairs).flat_map(norm));
        found.push(layer.sinks);
        found.extend(layer.router.iter().flat_map(slots).map(Some));
    }
    let rope = |rope: &Rope| [Some(rope.frequencies), rope.longer.map(|(_, slot)| slot)];
    found.extend(of.ropes.iter().flat_map(rope).filter(|_| range.start == 0));
    let mut found: Vec<Slot> = found.into_iter().flatten().collect();
    found.sort_by_key(|slot| slot.offset);
    found.dedup();
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use bantam_core::{Cpu, KvKind, Precision};

    use super::*;
    use crate::checkpoint::Dtype;
    use crate::engine::synthetic_plan;
    use crate::families::SHAPES;
    use crate::formats::on_load::way;
    use crate::plan::Options;
    use crate::spec::ModelSpec;

    fn in_four_bits(config: &str) -> Plan {
        let spec = ModelSpec::parse(config.as_bytes()).unwrap();
        let (precision, kv, quantization) = (Precision::Fast, KvKind::Int8, way("nf4"));
        let options = Options { context: 1024, chunk: 64, precision, kv, quantization, ..Options::SMALLEST };
        synthetic_plan(&spec, Dtype::Bf16, options, Cpu::detect()).unwrap()
    }

    /// Of every layer all is there or nothing, with its cache; more of them for more bytes, with the head or without.
    #[test]
    fn whole_layers_are_whole_and_stay_within_budgets() {
        for (name, config) in SHAPES {
            let plan = in_four_bits(config);
            let all = plan.weight_bytes + plan.cache_bytes;
            let manner = Manner { whole_layers: true, ..Manner::default() };
            let mut before = [0; 2];
            for part in 1..=20 {
                let budget = all / 20 * part;
                let Some(on_card) = OnCard::in_manner(&plan, &[budget], manner) else { continue };
                assert!(on_card.weight_bytes() + on_card.cache_bytes() <= budget, "{name}: {part}");
                let has = |at: usize| {
                    let layer = &plan.weights.layers[at];
                    let slots = linears(layer).flat_map(slots_of).chain(small(&plan, &(at..at + 1)));
                    let there: Vec<bool> = slots.map(|slot| on_card.weights.find(slot).is_some()).collect();
                    let cache = on_card.cache(&plan.caches[at]).map_or(0, |there| there.heads);
                    assert!(cache == 0 || cache == plan.caches[at].heads, "{name}: {part}");
                    let is_there = there.iter().all(|&found| found);
                    // Tables of positions are the first layer's, and may be another's too.
                    assert!(is_there == (cache > 0), "{name}: layer {at} at {part}");
                    is_there
                };
                let layers: Vec<usize> = (0..plan.caches.len()).filter(|&at| has(at)).collect();
                let has_head = on_card.weights.find(plan.weights.head.matrix.slot).is_some();
                let before = &mut before[usize::from(has_head)];
                assert!(layers.len() >= *before, "{name}: {part}");
                assert!(layers.last().is_none_or(|&last| last + 1 == plan.caches.len()), "{name}: {part}");
                *before = layers.len();
            }
            assert!(before[1] * 10 >= plan.caches.len() * 8, "{name}: {before:?} layers");
        }
    }

    /// Published shapes with any budget: never more than it, never less of anything for more of it, and every matrix
    /// somewhere as a whole.
    #[test]
    fn shares_stay_within_budgets_and_grow_with_them() {
        for (name, config) in SHAPES {
            let plan = in_four_bits(config);
            let all = plan.weight_bytes + plan.cache_bytes;
            let (mut before, mut was_divided) = ([0; 2], [false; 2]);
            for thousandths in (0..=1000).step_by(20) {
                let budget = (all as f64 * f64::from(thousandths) / 1000.0) as usize;
                let Some(on_card) = OnCard::fill(&plan, &[budget]) else {
                    assert_eq!(before, [0; 2], "{name}: {thousandths}");
                    continue;
                };
                let taken = on_card.weight_bytes() + on_card.cache_bytes();
                assert!(taken <= budget, "{name}: {taken} of {budget}");
                let now = [on_card.attention[0], on_card.blocks[0]];
                assert!(now[0] >= before[0], "{name}: {now:?} heads and bytes after {before:?}");
                // Experts that all fit are no longer one by one.
                assert!(now[1] + all / 100 >= before[1], "{name}: {now:?} after {before:?}");
                before = now;
                was_divided[0] |= !on_card.by_heads.is_empty();
                was_divided[1] |= !on_card.stacks.is_empty();
                for (layer, cache) in plan.weights.layers.iter().zip(&plan.caches) {
                    let there = on_card.cache(cache).map_or(0, |there| there.heads);
                    for linear in [&layer.query, &layer.key, &layer.value] {
                        let Linear { matrix, bias, .. } = *linear;
                        let product = Product { matrix, bias, out: plan.work.query, add: false };
                        let rows = match on_card.side(&product) {
                            Side::Host => 0,
                            Side::Card(_) => matrix.shape.rows,
                            Side::Both(mapped, rest) => {
                                let [there, here] = [mapped, rest].map(|part| part.matrix.shape.rows);
                                assert_eq!(there + here, matrix.shape.rows, "{name}");
                                there
                            }
                        };
                        assert_eq!(
                            rows * cache.heads,
                            there * matrix.shape.rows,
                            "{name}: heads with their keys"
                        );
                    }
                }
            }
            assert_eq!(before[0], plan.caches.iter().map(|cache| cache.heads).sum::<usize>(), "{name}");
            let has_experts = plan.weights.layers.iter().any(|layer| layer.router.is_some());
            assert_eq!(was_divided, [true, has_experts], "{name}");
        }
    }
}
