//! What of a plan stands on a card: arithmetic over slots, before any of its memory is taken.
//!
//! What every layer needs comes first, then attention with its keys and values, layer by layer, then the head, then the
//! feed-forward blocks: of dense ones the same share of every matrix, so that both sides compute on every layer at
//! once; experts in whole layers. A share is so many tiles of rows from the first on: tiles lie one after another in
//! every layout, so that nothing is repacked. The host keeps all weights, and so goes on alone where the card fails.

use bantam_core::arena::Layouter;
use bantam_core::{Matrix, Norm, Product, Region, Rope, Slot};

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
struct Pieces {
    region: Region,
    list: Vec<Piece>,
    layouter: Layouter,
}

/// What of a plan stands on a card, and where there.
#[derive(Debug, Clone)]
pub(crate) struct OnCard {
    weights: Pieces,
    caches: Pieces,
    /// Layers whose keys and values it has, and all.
    pub(crate) attention: [usize; 2],
    /// Bytes of feed-forward blocks that it has, and all.
    pub(crate) blocks: [usize; 2],
    is_whole: bool,
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
        Pieces { region, list: Vec::new(), layouter: Layouter::new(region) }
    }

    /// Bytes on the card.
    fn bytes(&self) -> usize {
        self.layouter.bytes()
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
    /// As much as so many bytes of weights and cache can be; `None` where not even what every layer needs has room.
    pub(crate) fn fill(plan: &Plan, budget: usize) -> Option<OnCard> {
        let (mut weights, mut caches) = (Pieces::new(Region::Weights), Pieces::new(Region::Cache));
        let mut left = budget;
        let of = &plan.weights;
        if plan.weight_bytes + plan.cache_bytes <= budget {
            let all = |region, bytes| Slot { region, offset: 0, bytes };
            weights.take(&[all(Region::Weights, plan.weight_bytes)], &mut left);
            caches.take(&[all(Region::Cache, plan.cache_bytes)], &mut left);
        }
        if !weights.take(&small(plan), &mut left) {
            return None;
        }
        let mut attention = 0;
        for (layer, cache) in of.layers.iter().zip(&plan.caches) {
            let slots: Vec<Slot> =
                [&layer.query, &layer.key, &layer.value, &layer.output].into_iter().flat_map(slots).collect();
            // Both or neither.
            let before = left;
            if caches.take(&[cache.slot], &mut left) {
                if !weights.take(&slots, &mut left) {
                    caches.drop_last(cache.slot);
                    left = before;
                    break;
                }
                attention += 1;
            }
        }
        let head: Vec<Slot> = slots(&of.head).collect();
        if !weights.take(&head, &mut left) {
            let share = left as f64 / of.head.matrix.slot.bytes.max(1) as f64;
            weights.take_rows(&of.head, share, &mut left);
        }
        let blocks = weights.take_blocks(&of.layers, &mut left);
        weights.take(&[of.embedding.slot], &mut left);
        let has_ends =
            [of.embedding.slot, of.head.matrix.slot].iter().all(|slot| weights.whole(*slot).is_some());
        let is_whole = has_ends && attention == of.layers.len() && blocks[0] == blocks[1];
        Some(OnCard { weights, caches, attention: [attention, of.layers.len()], blocks, is_whole })
    }

    /// Bytes of weights there.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Bytes of keys and values there.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.caches.bytes()
    }

    /// Whether everything is.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether anything of the model is computed there.
    pub(crate) fn is_worth_it(&self) -> bool {
        self.attention[0] > 0 || self.blocks[0] > 0
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

    pub(super) fn cache(&self, slot: Slot) -> Option<Slot> {
        self.caches.whole(slot)
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
    fn part(&self, product: &Product) -> Option<Product> {
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

    /// Feed-forward blocks: bytes that it has of them, and all.
    fn take_blocks(&mut self, layers: &[LayerWeights], left: &mut usize) -> [usize; 2] {
        let linears = |layer: &'_ LayerWeights| [layer.gate, Some(layer.up), Some(layer.down)];
        let bytes = |linear: &Linear| linear.matrix.slot.bytes;
        let all: usize = layers.iter().flat_map(linears).flatten().map(|linear| bytes(&linear)).sum();
        let dense = || layers.iter().filter(|layer| layer.router.is_none());
        let total: usize = dense().flat_map(linears).flatten().map(|linear| bytes(&linear)).sum();
        for layer in layers.iter().filter(|layer| layer.router.is_some()) {
            let stacks: Vec<Slot> = linears(layer).into_iter().flatten().flat_map(slots_of).collect();
            self.take(&stacks, left);
        }
        let share = (*left as f64 / total.max(1) as f64).min(1.0);
        for linear in dense().flat_map(linears).flatten() {
            let whole: Vec<Slot> = slots_of(linear).collect();
            if share < 1.0 || !self.take(&whole, left) {
                self.take_rows(&linear, share, left);
            }
        }
        let there = |linear: Linear| self.find(linear.matrix.slot).map_or(0, |slot| slot.bytes);
        [layers.iter().flat_map(linears).flatten().map(there).sum(), all]
    }
}

/// What stands in a slot from a byte on.
fn behind(slot: Slot, bytes: usize) -> Slot {
    Slot { offset: slot.offset + bytes, bytes: slot.bytes - bytes, ..slot }
}

/// All slots of a matrix.
fn slots_of(linear: Linear) -> impl Iterator<Item = Slot> {
    let Matrix { slot, order, factors, .. } = linear.matrix;
    let low = linear.low.into_iter().flat_map(|low| {
        [Some(low.down.slot), Some(low.up.slot), low.bias, low.factors].into_iter().flatten()
    });
    [Some(slot), order, factors, linear.bias].into_iter().flatten().chain(low)
}

fn slots(linear: &Linear) -> impl Iterator<Item = Slot> + use<> {
    slots_of(*linear)
}

/// What every layer needs, whoever computes it: norms, routers, sinks, tables of positions.
fn small(plan: &Plan) -> Vec<Slot> {
    let of = &plan.weights;
    let norm = |norm: &Norm| [Some(norm.weight), norm.bias];
    let mut found: Vec<Option<Slot>> = norm(&of.final_norm).into();
    for layer in &of.layers {
        let pairs = layer.post_norms.iter().chain(&layer.head_norms).flatten();
        found.extend([&layer.attention_norm, &layer.mlp_norm].into_iter().chain(pairs).flat_map(norm));
        found.push(layer.sinks);
        found.extend(layer.router.iter().flat_map(slots).map(Some));
    }
    let rope = |rope: &Rope| [Some(rope.frequencies), rope.longer.map(|(_, slot)| slot)];
    found.extend(of.ropes.iter().flat_map(rope));
    let mut found: Vec<Slot> = found.into_iter().flatten().collect();
    found.sort_by_key(|slot| slot.offset);
    found.dedup();
    found
}
