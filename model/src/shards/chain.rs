//! Several cards as one: each has whole layers, one card's after the other's, and activations go along. What stands
//! where is counted over all of them, as if their regions lay one behind another; activations have the same slots on
//! all. Every operation runs on the card that has its weights or its cache, or where its input is, and what that card
//! lacks another one hands to it: so everything around this sees a single card.

use bantam_core::{
    Activation, Attention, Backend, Batch, Heads, KvCache, Matrix, Norm, Product, Region, Rope, Routed,
    RowPer, Slot,
};

use super::shard::Few;
use crate::card::{CARDS_MOST, Card, CardFault, Fill, NoCard, Passing, Stretch};
use crate::plan::WorkSlots;

/// Values of a slot of activations that are the latest on each card, from the slot's first on.
#[derive(Debug, Clone, Copy)]
struct Known {
    offset: usize,
    counts: [usize; CARDS_MOST],
}

/// Cards, one behind another.
#[derive(Debug)]
pub(super) struct Chain {
    cards: Vec<Box<dyn Card>>,
    /// Where the weights and the cache of each end, counted over all.
    ends: Vec<[usize; 2]>,
    /// By where they begin.
    known: Vec<Known>,
    /// Who was asked last.
    now: usize,
}

impl Chain {
    /// Cards that have taken their memory, with the ends of what stands there.
    pub(super) fn new(
        mut cards: Vec<Box<dyn Card>>,
        ends: &[[usize; 2]],
        work: &WorkSlots,
        scratch: Slot,
    ) -> Result<Chain, (usize, NoCard)> {
        for at in 1..cards.len() {
            let (before, rest) = cards.split_at_mut(at);
            for card in before {
                card.meet(rest[0].as_mut(), work.stream).map_err(|error| (at, error))?;
            }
        }
        let slots = work.named().map(|(_, slot)| slot).into_iter().chain([scratch]);
        let known = |slot: Slot| Known { offset: slot.offset, counts: [0; CARDS_MOST] };
        let mut known: Vec<Known> = slots.map(known).collect();
        known.sort_by_key(|known| known.offset);
        known.dedup_by_key(|known| known.offset);
        Ok(Chain { cards, ends: ends.to_vec(), known, now: 0 })
    }

    /// Which card has a slot of weights or of the cache.
    fn home(&self, slot: Slot) -> usize {
        let of = match slot.region {
            Region::Weights => 0,
            Region::Cache => 1,
            Region::Work | Region::Adapters => return self.now,
        };
        self.ends.partition_point(|ends| ends[of] <= slot.offset).min(self.cards.len() - 1)
    }

    /// Such a slot as the card itself counts.
    fn own(&self, slot: Slot) -> Slot {
        let before = self.home(slot).checked_sub(1).map_or([0, 0], |at| self.ends[at]);
        match slot.region {
            Region::Weights => Slot { offset: slot.offset - before[0], ..slot },
            Region::Cache => Slot { offset: slot.offset - before[1], ..slot },
            Region::Work | Region::Adapters => slot,
        }
    }

    fn optional(&self, slot: Option<Slot>) -> Option<Slot> {
        slot.map(|slot| self.own(slot))
    }

    fn matrix(&self, matrix: &Matrix) -> Matrix {
        let (order, factors) = (self.optional(matrix.order), self.optional(matrix.factors));
        Matrix { slot: self.own(matrix.slot), order, factors, ..*matrix }
    }

    fn product(&self, product: &Product) -> Product {
        Product { matrix: self.matrix(&product.matrix), bias: self.optional(product.bias), ..*product }
    }

    fn cache(&self, cache: &KvCache) -> KvCache {
        KvCache { slot: self.own(cache.slot), ..*cache }
    }

    /// What is known of the slot that this one is, or is within; and how many values come before it there.
    fn known(&self, slot: Slot) -> (usize, usize) {
        let after = self.known.partition_point(|known| known.offset <= slot.offset);
        let at = after.checked_sub(1).expect("activations stand in the slots of the plan");
        (at, (slot.offset - self.known[at].offset) / 4)
    }

    /// Who has the first values of a slot; of several, who was asked last.
    fn at(&self, slot: Slot, count: usize) -> usize {
        let (known, before) = self.known(slot);
        let counts = &self.known[known].counts;
        if counts[self.now] >= before + count {
            return self.now;
        }
        // The first of those that have most.
        let most = counts[..self.cards.len()].iter().copied().max().unwrap_or(0);
        counts.iter().position(|&count| count == most).filter(|_| most > 0).unwrap_or(self.now)
    }

    /// Makes the first values of a slot be on a card, as far as anybody has them.
    fn need(&mut self, slot: Slot, count: usize, at: usize) {
        let (known, before) = self.known(slot);
        let wanted = before + count;
        let counts = &mut self.known[known].counts;
        let from = (0..self.cards.len()).max_by_key(|&card| counts[card]).unwrap_or(at);
        let (there, has) = (counts[from].min(wanted), counts[at]);
        if has >= wanted || there <= has {
            return;
        }
        counts[at] = there;
        let slot = Slot { offset: self.known[known].offset, bytes: 4 * there, ..slot };
        let [from, to] = self.cards.get_disjoint_mut([from, at]).expect("two cards of these");
        from.hand(slot, to.as_mut());
    }

    fn need_routing(&mut self, routed: &Routed, rows: usize, at: usize) {
        let bytes = routed.choice.bytes(rows).expect("it was planned");
        self.need(routed.slot, bytes / 4, at);
    }

    /// A card has computed the first values of a slot: those of others are old.
    fn wrote(&mut self, slot: Slot, count: usize, at: usize) {
        let (known, before) = self.known(slot);
        let counts = &mut self.known[known].counts;
        let count = if before == 0 { count } else { counts[at].max(before + count) };
        *counts = [0; CARDS_MOST];
        counts[at] = count;
        self.now = at;
    }

    /// Products of rows or of places, each on the card that has its matrix.
    fn products(&mut self, rows: usize, routed: Option<(&Routed, RowPer)>, x: Slot, products: &[Product]) {
        let places = routed.map_or(rows, |(routed, _)| routed.places(rows));
        let x_rows = if matches!(routed, Some((_, RowPer::Place))) { places } else { rows };
        for at in 0..self.cards.len() {
            let mut list = Few::none(&products[0]);
            for product in products.iter().filter(|product| self.home(product.matrix.slot) == at) {
                list.push(self.product(product));
            }
            if list.all().is_empty() {
                continue;
            }
            self.need(x, x_rows * products[0].matrix.shape.columns, at);
            if let Some((routed, _)) = routed {
                self.need_routing(routed, rows, at);
            }
            for product in list.all().iter().filter(|product| product.add) {
                self.need(product.out, places * product.matrix.shape.rows, at);
            }
            match routed {
                Some((routed, per)) => self.cards[at].matmul_experts(routed, rows, per, x, list.all()),
                None => self.cards[at].matmul(rows, x, list.all()),
            }
            for product in list.all() {
                self.wrote(product.out, places * product.matrix.shape.rows, at);
            }
        }
    }
}

impl Backend for Chain {
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: Slot) {
        let (at, own) = (self.home(table.slot), self.matrix(table));
        self.cards[at].embed(&own, tokens, scale, out);
        self.wrote(out, tokens.len() * table.shape.columns, at);
    }

    fn norm(&mut self, norm: &Norm, rows: usize, x: Slot, out: Slot) {
        let at = self.home(norm.weight);
        let own = Norm { weight: self.own(norm.weight), bias: self.optional(norm.bias), ..*norm };
        self.need(x, rows * norm.width, at);
        self.cards[at].norm(&own, rows, x, out);
        self.wrote(out, rows * norm.width, at);
    }

    fn matmul(&mut self, rows: usize, x: Slot, products: &[Product]) {
        self.products(rows, None, x, products);
    }

    fn route(&mut self, routed: &Routed, rows: usize, logits: Slot) {
        let at = self.at(logits, rows * routed.choice.experts);
        self.need(logits, rows * routed.choice.experts, at);
        self.cards[at].route(routed, rows, logits);
        let bytes = routed.choice.bytes(rows).expect("it was planned");
        self.wrote(routed.slot, bytes / 4, at);
    }

    fn matmul_experts(&mut self, routed: &Routed, rows: usize, per: RowPer, x: Slot, products: &[Product]) {
        self.products(rows, Some((routed, per)), x, products);
    }

    fn combine(&mut self, routed: &Routed, rows: usize, width: usize, places: Slot, out: Slot) {
        let count = routed.choice.places(rows) * width;
        let at = self.at(places, count);
        self.need(places, count, at);
        self.need(out, rows * width, at);
        self.need_routing(routed, rows, at);
        self.cards[at].combine(routed, rows, width, places, out);
        self.wrote(out, rows * width, at);
    }

    fn scale(
        &mut self,
        routed: Option<&Routed>,
        rows: usize,
        width: usize,
        factors: Slot,
        bias: Option<Slot>,
        x: Slot,
    ) {
        let count = routed.map_or(rows, |routed| routed.choice.places(rows)) * width;
        let at = self.home(factors);
        self.need(x, count, at);
        if let Some(routed) = routed {
            self.need_routing(routed, rows, at);
        }
        let (factors, bias) = (self.own(factors), self.optional(bias));
        self.cards[at].scale(routed, rows, width, factors, bias, x);
        self.wrote(x, count, at);
    }

    fn add(&mut self, rows: usize, width: usize, x: Slot, out: Slot) {
        let at = self.at(x, rows * width);
        self.need(x, rows * width, at);
        self.need(out, rows * width, at);
        self.cards[at].add(rows, width, x, out);
        self.wrote(out, rows * width, at);
    }

    fn cap(&mut self, limit: f32, rows: usize, width: usize, x: Slot) {
        let at = self.at(x, rows * width);
        self.need(x, rows * width, at);
        self.cards[at].cap(limit, rows, width, x);
        self.wrote(x, rows * width, at);
    }

    fn angles(&mut self, rope: &Rope, batch: &Batch, out: Slot) {
        let at = self.home(rope.frequencies);
        let longer = rope.longer.map(|(positions, slot)| (positions, self.own(slot)));
        let own = Rope { frequencies: self.own(rope.frequencies), longer, ..*rope };
        self.cards[at].angles(&own, batch, out);
        self.wrote(out, batch.rows() * 2 * rope.pairs(), at);
    }

    fn rotate(&mut self, rows: usize, angles: Slot, heads: Heads, x: Slot) {
        let at = self.at(x, rows * heads.channels());
        self.need(angles, angles.bytes / 4, at);
        self.need(x, rows * heads.channels(), at);
        self.cards[at].rotate(rows, angles, heads, x);
        self.wrote(x, rows * heads.channels(), at);
    }

    fn store(&mut self, cache: &KvCache, batch: &Batch, keys: Slot, values: Slot) {
        let (at, own) = (self.home(cache.slot), self.cache(cache));
        let count = batch.rows() * cache.heads * cache.shape.width;
        self.need(keys, count, at);
        self.need(values, count, at);
        self.cards[at].store(&own, batch, keys, values);
        self.now = at;
    }

    fn attend(&mut self, attention: &Attention, cache: &KvCache, batch: &Batch, queries: Slot, out: Slot) {
        let (at, own) = (self.home(cache.slot), self.cache(cache));
        let count = batch.rows() * attention.heads.channels();
        self.need(queries, count, at);
        let attention = Attention { sinks: self.optional(attention.sinks), ..*attention };
        self.cards[at].attend(&attention, &own, batch, queries, out);
        self.wrote(out, count, at);
    }

    fn activate(&mut self, activation: Activation, rows: usize, width: usize, gate: Slot, up: Option<Slot>) {
        let at = self.at(gate, rows * width);
        for slot in [Some(gate), up].into_iter().flatten() {
            self.need(slot, rows * width, at);
        }
        self.cards[at].activate(activation, rows, width, gate, up);
        self.wrote(gate, rows * width, at);
    }

    fn gather(&mut self, rows: &[usize], width: usize, x: Slot, out: Slot) {
        let count = rows.iter().max().map_or(0, |last| last + 1) * width;
        let at = self.at(x, count);
        self.need(x, count, at);
        self.cards[at].gather(rows, width, x, out);
        self.wrote(out, rows.len() * width, at);
    }

    fn read(&self, slot: Slot) -> &[f32] {
        let at = if slot.region == Region::Work { self.at(slot, slot.bytes / 4) } else { self.home(slot) };
        self.cards[at].read(self.own(slot))
    }
}

impl Card for Chain {
    fn upload(&mut self, slot: Slot, bytes: &[u8]) {
        let (at, own) = (self.home(slot), self.own(slot));
        self.cards[at].upload(own, bytes);
        if slot.region == Region::Work {
            self.wrote(slot, bytes.len() / 4, at);
        }
    }

    fn fetch(&mut self, slot: Slot, each: &mut dyn FnMut(usize, &[f32])) {
        let at = if slot.region == Region::Work { self.at(slot, slot.bytes / 4) } else { self.home(slot) };
        let own = self.own(slot);
        self.cards[at].fetch(own, each);
    }

    fn fault(&self) -> Option<CardFault> {
        self.cards.iter().find_map(|card| card.fault())
    }

    fn bytes(&self) -> usize {
        self.cards.iter().map(|card| card.bytes()).sum()
    }

    /// One on every card, or none at all.
    fn take_ring(&mut self, slot_bytes: usize) -> bool {
        let has_all = self.cards.iter_mut().all(|card| card.take_ring(slot_bytes));
        if !has_all {
            self.drop_ring();
        }
        has_all
    }

    fn drop_ring(&mut self) {
        self.cards.iter_mut().for_each(|card| card.drop_ring());
    }

    fn gather_again(&mut self, rows: &[u32], width: usize, x: Slot, out: Slot) {
        let count = rows.iter().max().map_or(0, |&last| last as usize + 1) * width;
        let at = self.at(x, count);
        self.need(x, count, at);
        self.cards[at].gather_again(rows, width, x, out);
        self.wrote(out, rows.len() * width, at);
    }

    /// On the card that has anything beside these matrices, which are one layer's.
    fn pass(&mut self, rows: usize, x: Slot, products: &[Passing], fill: Fill) {
        let there = products.iter().flat_map(|passing| {
            let Product { matrix, bias, .. } = passing.product;
            let stands = Some(matrix.slot).filter(|_| passing.stands);
            [stands, bias, matrix.order, matrix.factors].into_iter().flatten()
        });
        let x_count = rows * products[0].product.matrix.shape.columns;
        let at = there.map(|slot| self.home(slot)).next();
        let at = at.unwrap_or_else(|| self.at(x, x_count));
        self.need(x, x_count, at);
        let written = |passing: &Passing| {
            passing.first + rows.saturating_sub(1) * passing.width + passing.product.matrix.shape.rows
        };
        let mut list = Few::none(&products[0]);
        for passing in products {
            let host = passing.product.matrix.slot;
            let mut product = self.product(&passing.product);
            if !passing.stands {
                // What passes is the host's.
                product.matrix.slot = host;
            }
            list.push(Passing { product, ..*passing });
            // Others may have written beside it.
            self.need(product.out, written(passing), at);
        }
        self.cards[at].pass(rows, x, list.all(), fill);
        for passing in list.all() {
            let (known, _) = self.known(passing.product.out);
            let count = written(passing).max(self.known[known].counts[at]);
            self.wrote(passing.product.out, count, at);
        }
    }

    /// Steps over several cards are not kept.
    fn begin(&mut self) {}

    fn keep(&mut self, _: Stretch, _: usize) -> Result<(), CardFault> {
        Ok(())
    }

    fn kept_bytes(&self) -> usize {
        0
    }

    fn again(&mut self, _: Stretch) -> bool {
        false
    }
}
