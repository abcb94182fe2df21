//! What stands on a card, beside the processor: copies of activations, and products that one side or both compute.

use std::ops::Range;

use bantam_core::arena::disjoint;
use bantam_core::{Backend, KvCache, Matrix, Product, Region, Routed, RowPer, Slot};

use super::Host;
use super::fresh::{At, Fresh, Split};
use super::hot::Hot;
use super::on_card::{OnCard, Side};
use super::passing::{Passed, Ring, pass};
use crate::card::{Card, Passing};

/// What stands on a card.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) card: Box<dyn Card>,
    pub(super) on_card: OnCard,
    pub(super) fresh: Fresh,
    /// Where results lie that are yet to be added, on both sides.
    pub(super) scratch: Slot,
    /// Where experts stand there one by one, as in [`OnCard::stacks`].
    pub(super) hot: Vec<Hot>,
    /// Whether somebody looks at who goes where, which is done here then.
    pub(super) routes_here: bool,
    /// Where weights pass while prompts are read.
    pub(super) ring: Option<Ring>,
}

/// One to three products, or twice as many parts of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Few<T> {
    list: [T; 6],
    count: usize,
}

impl<T: Copy> Few<T> {
    pub(super) fn none(like: &T) -> Self {
        Few { list: [*like; 6], count: 0 }
    }

    pub(super) fn push(&mut self, product: T) {
        self.list[self.count] = product;
        self.count += 1;
    }

    pub(super) fn all(&self) -> &[T] {
        &self.list[..self.count]
    }
}

impl Shard {
    /// Puts the parts of a slot together, here, where each side has one.
    fn join(&mut self, host: &mut Host, slot: Slot) {
        let Some(Split { rows, there, here }) = self.fresh.split(slot) else { return };
        let all = there + here;
        let slot = slot.first(rows * all);
        let out = host.arena_mut().floats_mut(slot);
        spread(out, rows, [there, here]);
        if there > 0 {
            self.card.fetch(slot.first(rows * there), &mut |first, piece| {
                for (at, &x) in (first..).zip(piece) {
                    out[at / there * all + at % there] = x;
                }
            });
        }
        self.fresh.set(slot, rows * all, At::Host);
    }

    /// Makes the first values of a slot be there.
    pub(super) fn need(&mut self, host: &mut Host, slot: Slot, count: usize, at: At) {
        self.join(host, slot);
        if !self.fresh.lacks(slot, count, at) {
            return;
        }
        let slot = slot.first(count);
        match at {
            At::Card => self.card.upload(slot, host.arena().read(slot)),
            At::Host => {
                let values = host.arena_mut().floats_mut(slot);
                self.card
                    .fetch(slot, &mut |first, piece| values[first..][..piece.len()].copy_from_slice(piece));
            }
        }
    }

    /// Products of rows, or of the places that they were sent to.
    pub(super) fn products(
        &mut self,
        host: &mut Host,
        rows: usize,
        routed: Option<(&Routed, RowPer)>,
        x: Slot,
        products: &[Product],
    ) {
        match products[0].matrix.slot.region {
            Region::Adapters => self.here(host, rows, routed, x, products),
            _ => self.of_model(host, rows, routed, x, products),
        }
    }

    /// The same with the model's own matrices.
    fn of_model(
        &mut self,
        host: &mut Host,
        rows: usize,
        routed: Option<(&Routed, RowPer)>,
        x: Slot,
        products: &[Product],
    ) {
        let first = &products[0].matrix;
        if let Some((routed, per)) = routed {
            if let Some(which) = self.on_card.stacks.iter().position(|stacks| stacks.has(first)) {
                return self.experts(host, rows, which, routed, per, x, products);
            }
        } else {
            self.begin_layer(first);
        }
        if let Some((routed, per)) = routed.filter(|_| self.all_pass(rows, products)) {
            return self.pass_routed(host, rows, routed, per, x, products);
        }
        let places = routed.map_or(rows, |(routed, _)| routed.choice.places(rows));
        let x_rows = if matches!(routed, Some((_, RowPer::Place))) { places } else { rows };
        let (mut here, mut there) = (Few::none(&products[0]), Few::none(&products[0]));
        let mut passing = Few::none(&Passing::plain(&products[0]));
        for product in products {
            let whole = |shard: &mut Self, host: &mut Host, at| {
                let count = places * product.matrix.shape.rows;
                if product.add {
                    shard.need(host, product.out, count, at);
                }
                shard.fresh.set(product.out, count, at);
            };
            if let Some(passed) = self.passed(rows, product).filter(|_| routed.is_none()) {
                if !passed.is_by_heads {
                    whole(self, host, At::Card);
                }
                passed.list.iter().flatten().for_each(|part| passing.push(*part));
                continue;
            }
            match self.on_card.side(product) {
                Side::Host => {
                    whole(self, host, At::Host);
                    here.push(*product);
                }
                Side::Card(mapped) => {
                    whole(self, host, At::Card);
                    there.push(mapped);
                }
                Side::Both(mapped, rest) => {
                    assert!(routed.is_none(), "stacks stand somewhere as a whole");
                    whole(self, host, At::Host);
                    let out = if product.add { self.scratch } else { product.out };
                    there.push(Product { out, add: false, ..mapped });
                    here.push(Product { out, add: false, ..rest });
                }
            }
        }
        let sides = [(here.count, At::Host), (there.count + passing.count, At::Card)];
        for (_, at) in sides.into_iter().filter(|(count, _)| *count > 0) {
            self.need(host, x, x_rows * products[0].matrix.shape.columns, at);
            if let Some((routed, _)) = routed {
                self.need_routing(host, routed, rows, at);
            }
        }
        // Queued first: the card computes while the processor does.
        send(self.card.as_mut(), rows, routed, x, there.all());
        pass(self.card.as_mut(), host, rows, x, passing.all());
        send(host, rows, routed, x, here.all());
        products.iter().for_each(|product| self.finish(host, rows, routed.is_some(), product));
    }

    /// Products with what an adapter brought that came after the model was placed: the processor's.
    fn here(
        &mut self,
        host: &mut Host,
        rows: usize,
        routed: Option<(&Routed, RowPer)>,
        x: Slot,
        products: &[Product],
    ) {
        let places = routed.map_or(rows, |(routed, _)| routed.choice.places(rows));
        let x_rows = if matches!(routed, Some((_, RowPer::Place))) { places } else { rows };
        self.need(host, x, x_rows * products[0].matrix.shape.columns, At::Host);
        if let Some((routed, _)) = routed {
            self.need_routing(host, routed, rows, At::Host);
        }
        for product in products {
            let count = places * product.matrix.shape.rows;
            if product.add {
                self.need(host, product.out, count, At::Host);
            }
            self.fresh.set(product.out, count, At::Host);
        }
        send(host, rows, routed, x, products);
    }

    /// Tells the experts of a layer that they come next, if this is its router.
    fn begin_layer(&mut self, router: &Matrix) {
        for (hot, stacks) in self.hot.iter_mut().zip(&self.on_card.stacks) {
            stacks.routed_by(router).into_iter().for_each(|layer| hot.begin_layer(layer));
        }
    }

    /// Whether all of these are experts of the host's that pass.
    fn all_pass(&self, rows: usize, products: &[Product]) -> bool {
        let Some(ring) = self.ring.as_ref().filter(|_| self.passes(rows)) else { return false };
        let passes = |product: &Product| {
            matches!(self.on_card.side(product), Side::Host)
                && self.on_card.can_pass_expert(product, ring.slot_bytes)
        };
        products.iter().all(passes)
    }

    /// Products with experts that all pass.
    fn pass_routed(
        &mut self,
        host: &mut Host,
        rows: usize,
        routed: &Routed,
        per: RowPer,
        x: Slot,
        products: &[Product],
    ) {
        let places = routed.choice.places(rows);
        let x_rows = if per == RowPer::Place { places } else { rows };
        self.need(host, x, x_rows * products[0].matrix.shape.columns, At::Card);
        for product in products {
            self.fresh.set(product.out, places * product.matrix.shape.rows, At::Card);
        }
        self.pass_experts(host, rows, routed, 0, per, x, products);
    }

    /// Puts the parts of a product together, or says that it is in two.
    fn finish(&mut self, host: &mut Host, rows: usize, is_routed: bool, product: &Product) {
        if let Some(passed) = self.passed(rows, product).filter(|_| !is_routed) {
            let Passed { there, here, is_by_heads, .. } = passed;
            if is_by_heads {
                self.bring_heads(host, rows, product, [there, here]);
                self.fresh.set_split(product.out, Split { rows, there, here });
            }
            return;
        }
        if let Side::Both(mapped, rest) = self.on_card.side(product) {
            let [there, here] = [mapped, rest].map(|part| part.matrix.shape.rows);
            match self.on_card.is_by_heads(&product.matrix) {
                true => self.fresh.set_split(product.out, Split { rows, there, here }),
                false => self.merge(host, rows, product, there),
            }
        }
    }

    /// Puts both parts of a product together, of which the card's has so many channels.
    fn merge(&mut self, host: &mut Host, rows: usize, product: &Product, there: usize) {
        let all = product.matrix.shape.rows;
        let (slot, here) = (product.out.first(rows * all), all - there);
        let memory = host.arena_mut();
        if product.add {
            let [part, out] = disjoint(&mut memory.work, [self.scratch.first(rows * here), slot]);
            for (out, part) in out.chunks_exact_mut(all).zip(part.chunks_exact(here)) {
                out[there..].iter_mut().zip(part).for_each(|(out, x)| *out += x);
            }
        } else {
            spread(memory.floats_mut(slot), rows, [there, here]);
        }
        let (out, add) = (memory.floats_mut(slot), product.add);
        let part = if add { self.scratch } else { product.out };
        self.card.fetch(part.first(rows * there), &mut |first, piece| {
            for (at, &x) in (first..).zip(piece) {
                let out = &mut out[at / there * all + at % there];
                *out = if add { *out + x } else { x };
            }
        });
    }

    /// Products of places whose experts stand on either side, in one of the cards' stacks.
    #[allow(clippy::too_many_arguments, reason = "a product of experts, and whose they are")]
    fn experts(
        &mut self,
        host: &mut Host,
        rows: usize,
        which: usize,
        routed: &Routed,
        per: RowPer,
        x: Slot,
        products: &[Product],
    ) {
        let passes = self.experts_pass(rows);
        let hot = &mut self.hot[which];
        let [there, here] = hot.places(host, self.card.as_mut(), routed, rows);
        let mine = hot.here(routed, here);
        let columns = products[0].matrix.shape.columns;
        for (places, at) in [(there, At::Card), (here, if passes { At::Card } else { At::Host })] {
            // Places have their rows where they are.
            if places > 0 && per == RowPer::Token {
                self.need(host, x, rows * columns, at);
            }
        }
        let mut few = Few::none(&products[0]);
        for product in products {
            let stacks = &self.on_card.stacks[which];
            few.push(stacks.product(product).expect("experts stand there in all their parts"));
            let width = product.matrix.shape.rows;
            match passes {
                true => self.fresh.set(product.out, (there + here) * width, At::Card),
                false => {
                    let split = Split { rows: 1, there: there * width, here: here * width };
                    self.fresh.set_split(product.out, split);
                }
            }
        }
        // Queued first: the card computes while the processor does.
        if there > 0 {
            let routed = Routed { part: Some(there), ..*routed };
            self.card.matmul_experts(&routed, rows, per, x, few.all());
        }
        if here > 0 && passes {
            self.pass_experts(host, rows, &mine, there, per, x, products);
        } else if here > 0 {
            host.matmul_experts(&mine, rows, per, x, products);
        }
        if per == RowPer::Place {
            self.hot[which].end_layer();
        }
    }

    pub(super) fn need_routing(&mut self, host: &mut Host, routed: &Routed, rows: usize, at: At) {
        let bytes = routed.choice.bytes(rows).expect("it was planned");
        self.need(host, routed.slot, bytes / 4, at);
    }
}

/// Hands products to a backend, if there are any.
fn send(
    to: &mut (impl Backend + ?Sized),
    rows: usize,
    routed: Option<(&Routed, RowPer)>,
    x: Slot,
    products: &[Product],
) {
    match routed {
        _ if products.is_empty() => {}
        None => to.matmul(rows, x, products),
        Some((routed, per)) => to.matmul_experts(routed, rows, per, x, products),
    }
}

/// Moves rows that stand close together to where rows of both parts end.
fn spread(out: &mut [f32], rows: usize, [there, here]: [usize; 2]) {
    // The last row first: rows move towards the end.
    let all = there + here;
    (0..rows).rev().for_each(|row| out.copy_within(row * here..(row + 1) * here, row * all + there));
}

/// Pages of the caches that a card has all heads of, or the first ones of. The host's heads of such a page stand close
/// together while the card has the others.
pub(super) struct Moves {
    /// The cache here, that there, and runs of pages that hold anything.
    layers: Vec<(KvCache, KvCache)>,
    pages: Vec<Range<usize>>,
}

impl Moves {
    pub(super) fn of(on_card: &OnCard, caches: &[KvCache], pages: &[Range<usize>]) -> Moves {
        let layers = caches.iter().filter_map(|cache| Some((*cache, on_card.cache(cache)?)));
        Moves { layers: layers.collect(), pages: pages.to_vec() }
    }

    /// What moves: where it is here, with all heads in their places, and there.
    pub(super) fn pieces(&self) -> Vec<(Slot, Slot)> {
        let of = |(here, there): &(KvCache, KvCache)| {
            let (all, part) = (here.page_bytes(), there.page_bytes());
            let slot = |cache: &KvCache, at: usize, bytes: usize| Slot {
                offset: cache.slot.offset + at,
                bytes,
                ..cache.slot
            };
            // Whole pages move together.
            let together = all == part;
            let runs = self.pages.iter().flat_map(move |run| match together {
                true => vec![run.clone()],
                false => run.clone().map(|page| page..page + 1).collect(),
            });
            let pieces = runs.map(|run| {
                let bytes = run.len() * part;
                (slot(here, run.start * all, bytes), slot(there, run.start * part, bytes))
            });
            pieces.collect::<Vec<_>>()
        };
        self.layers.iter().flat_map(of).collect()
    }

    /// Moves the host's heads together, once the others are on the card.
    pub(super) fn close_up(&self, cache: &mut [u8]) {
        for (here, there) in self.divided() {
            let (all, gone) = (here.page_bytes(), there.page_bytes());
            let pages = &mut cache[here.slot.range()];
            for page in self.pages.iter().cloned().flatten() {
                pages.copy_within(page * all + gone..(page + 1) * all, page * (all - gone));
            }
        }
    }

    /// Moves them back to their places, so that the others have room.
    pub(super) fn open_up(&self, cache: &mut [u8]) {
        for (here, there) in self.divided() {
            let (all, gone) = (here.page_bytes(), there.page_bytes());
            let pages = &mut cache[here.slot.range()];
            for page in self.pages.iter().rev().flat_map(|run| run.clone().rev()) {
                let from = page * (all - gone);
                pages.copy_within(from..from + all - gone, page * all + gone);
            }
        }
    }

    fn divided(&self) -> impl Iterator<Item = &(KvCache, KvCache)> {
        self.layers.iter().filter(|(here, there)| there.heads < here.heads)
    }
}
