//! The backend of an engine: the processor, and a card beside it where one takes part.
//!
//! Every operation runs where its weights or its cache are, and where it has none, where its input is; what the other
//! side needs is copied first, and nothing else is ([`fresh::Fresh`]). Of a matrix that stands on the card in part both
//! compute their rows at the same time: the card's work is queued, the processor's is done, then both are put together.
//! So a model may stand on the card whole, by layers, by parts of layers or by rows, and the decoder knows nothing of
//! it. Weights are never moved.

mod fresh;
mod on_card;

use std::ops::Range;

use bantam_core::arena::disjoint;
use bantam_core::{
    Activation, Attention, Backend, Batch, CpuBackend, Heads, KvCache, Matrix, Norm, Product, Region, Rope,
    Routed, RowPer, Slot,
};
use memmap2::MmapMut;

use crate::card::{Card, CardFault, Found, Needs, NoCard};
use crate::memory;
use crate::plan::Plan;
use crate::pool::Threads;
use fresh::{At, Fresh};
pub(crate) use on_card::OnCard;
use on_card::Side;

/// Bytes of results that are copied back at a time.
const RESULTS_BYTES: usize = 1 << 20;

/// Memory, threads and kernels of one machine.
#[derive(Debug)]
pub(crate) struct Shards {
    pub(crate) host: CpuBackend<MmapMut, Threads>,
    shard: Option<Shard>,
}

/// What stands on a card.
#[derive(Debug)]
struct Shard {
    card: Box<dyn Card>,
    on_card: OnCard,
    fresh: Fresh,
    /// Where results lie that are yet to be added, on both sides.
    scratch: Slot,
    /// Whether somebody looks at who goes where, which is done here then.
    routes_here: bool,
}

/// One to three products.
#[derive(Debug, Clone, Copy)]
struct Few {
    list: [Product; 3],
    count: usize,
}

impl Few {
    fn none(like: &Product) -> Self {
        Few { list: [*like; 3], count: 0 }
    }

    fn push(&mut self, product: Product) {
        self.list[self.count] = product;
        self.count += 1;
    }

    fn all(&self) -> &[Product] {
        &self.list[..self.count]
    }
}

/// The slot behind the plan's own activations.
fn scratch(plan: &Plan) -> Slot {
    let rows = plan.weights.layers.iter().map(|layer| layer.down.matrix.shape.rows).max().unwrap_or(0);
    Slot { region: Region::Work, offset: plan.work_bytes, bytes: 4 * rows * plan.options.chunk }
}

/// Pages of the caches that stand on a card: where they are here and there.
fn pieces(on_card: &OnCard, caches: &[KvCache], pages: &[Range<usize>]) -> Vec<(Slot, Slot)> {
    let there = caches.iter().filter_map(|cache| Some((cache, on_card.cache(cache.slot)?)));
    let of = |(cache, there): (&KvCache, Slot)| {
        let part = |slot: Slot, pages: &Range<usize>| {
            let bytes = cache.page_bytes();
            Slot { offset: slot.offset + pages.start * bytes, bytes: pages.len() * bytes, ..slot }
        };
        pages.iter().map(|pages| (part(cache.slot, pages), part(there, pages))).collect::<Vec<_>>()
    };
    there.flat_map(of).collect()
}

impl Shards {
    pub(crate) fn new(host: CpuBackend<MmapMut, Threads>) -> Self {
        Shards { host, shard: None }
    }

    /// Bytes that a card takes for a plan beside weights and cache.
    pub(crate) fn needs(plan: &Plan, weights: usize, cache: usize) -> Needs {
        let work = plan.work_bytes + scratch(plan).bytes;
        let (rows, tables) = (plan.options.chunk, plan.options.sequences * plan.pages_per_sequence);
        let (panels, precision) = (plan.work.panels, plan.options.precision);
        Needs { weights, cache, work, rows, tables, results: RESULTS_BYTES, panels, precision }
    }

    /// Takes memory of a card and puts there what is to stand on it; of the cache the pages that hold anything.
    pub(crate) fn take(
        &mut self,
        plan: &Plan,
        found: Box<dyn Found>,
        on_card: OnCard,
        pages: &[Range<usize>],
    ) -> Result<(), NoCard> {
        let needs = Self::needs(plan, on_card.weight_bytes(), on_card.cache_bytes());
        let mut card = found.take(&needs)?;
        let scratch = scratch(plan);
        let work = memory::region(plan.work_bytes + scratch.bytes);
        let work =
            work.map_err(|error| NoCard::Memory(format!("{} bytes of memory: {error}", scratch.bytes)))?;
        for (from, to) in on_card.copies() {
            card.upload(to, self.host.arena().read(from));
        }
        for (from, to) in pieces(&on_card, &plan.caches, pages) {
            card.upload(to, self.host.arena().read(from));
        }
        if let Some(fault) = card.fault() {
            return Err(NoCard::Failed(fault.to_string()));
        }
        self.host.arena_mut().work = work;
        let fresh = Fresh::new(&plan.work);
        self.shard = Some(Shard { card, on_card, fresh, scratch, routes_here: false });
        Ok(())
    }

    /// Brings keys and values of these pages back and lets the card go.
    pub(crate) fn leave(&mut self, caches: &[KvCache], pages: &[Range<usize>]) -> Result<(), CardFault> {
        let Some(mut shard) = self.shard.take() else { return Ok(()) };
        for (to, from) in pieces(&shard.on_card, caches, pages) {
            let to = self.host.arena_mut().write(to);
            shard.card.fetch(from, &mut |first, piece| {
                let piece: &[u8] = bytemuck::cast_slice(piece);
                to[4 * first..][..piece.len()].copy_from_slice(piece);
            });
        }
        shard.card.fault().map_or(Ok(()), Err)
    }

    /// Bytes of a card that were taken.
    pub(crate) fn card_bytes(&self) -> usize {
        self.shard.as_ref().map_or(0, |shard| shard.card.bytes())
    }

    /// Whether the card has failed; if so it is let go, and the processor has all work from now on.
    pub(crate) fn lost(&mut self) -> Option<CardFault> {
        let fault = self.shard.as_ref()?.card.fault()?;
        self.shard = None;
        Some(fault)
    }

    /// Somebody will look at who goes where.
    pub(crate) fn route_here(&mut self) {
        if let Some(shard) = &mut self.shard {
            shard.routes_here = true;
        }
    }

    /// Brings a result here.
    pub(crate) fn bring(&mut self, slot: Slot) {
        if let Some(shard) = &mut self.shard {
            shard.need(&mut self.host, slot, slot.bytes / 4, At::Host);
        }
    }
}

type Host = CpuBackend<MmapMut, Threads>;

impl Shard {
    /// Makes the first values of a slot be there.
    fn need(&mut self, host: &mut Host, slot: Slot, count: usize, at: At) {
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
    fn products(
        &mut self,
        host: &mut Host,
        rows: usize,
        routed: Option<(&Routed, RowPer)>,
        x: Slot,
        products: &[Product],
    ) {
        let places = routed.map_or(rows, |(routed, _)| routed.choice.places(rows));
        let x_rows = if matches!(routed, Some((_, RowPer::Place))) { places } else { rows };
        let (mut here, mut there) = (Few::none(&products[0]), Few::none(&products[0]));
        for product in products {
            let whole = |shard: &mut Self, host: &mut Host, at| {
                let count = places * product.matrix.shape.rows;
                if product.add {
                    shard.need(host, product.out, count, at);
                }
                shard.fresh.set(product.out, count, at);
            };
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
        for (few, at) in [(&here, At::Host), (&there, At::Card)] {
            if few.count > 0 {
                self.need(host, x, x_rows * products[0].matrix.shape.columns, at);
                if let Some((routed, _)) = routed {
                    self.need_routing(host, routed, rows, at);
                }
            }
        }
        // Queued first: the card computes while the processor does.
        send(self.card.as_mut(), rows, routed, x, there.all());
        send(host, rows, routed, x, here.all());
        for product in products {
            if let Side::Both(mapped, _) = self.on_card.side(product) {
                self.merge(host, rows, product, mapped.matrix.shape.rows);
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
            // The last row first: rows move towards the end.
            let out = memory.floats_mut(slot);
            (0..rows).rev().for_each(|row| out.copy_within(row * here..(row + 1) * here, row * all + there));
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

    fn need_routing(&mut self, host: &mut Host, routed: &Routed, rows: usize, at: At) {
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

impl Backend for Shards {
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.embed(table, tokens, scale, out) };
        let count = tokens.len() * table.shape.columns;
        match shard.on_card.matrix(table) {
            Some(mapped) => {
                shard.card.embed(&mapped, tokens, scale, out);
                shard.fresh.set(out, count, At::Card);
            }
            None => {
                self.host.embed(table, tokens, scale, out);
                shard.fresh.set(out, count, At::Host);
            }
        }
    }

    fn norm(&mut self, norm: &Norm, rows: usize, x: Slot, out: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.norm(norm, rows, x, out) };
        let count = rows * norm.width;
        let mapped = shard.on_card.norm(norm).filter(|_| shard.fresh.at(x, count) == At::Card);
        match mapped {
            Some(mapped) => {
                shard.card.norm(&mapped, rows, x, out);
                shard.fresh.set(out, count, At::Card);
            }
            None => {
                shard.need(&mut self.host, x, count, At::Host);
                self.host.norm(norm, rows, x, out);
                shard.fresh.set(out, count, At::Host);
            }
        }
    }

    fn matmul(&mut self, rows: usize, x: Slot, products: &[Product]) {
        match &mut self.shard {
            Some(shard) => shard.products(&mut self.host, rows, None, x, products),
            None => self.host.matmul(rows, x, products),
        }
    }

    fn route(&mut self, routed: &Routed, rows: usize, logits: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.route(routed, rows, logits) };
        let count = rows * routed.choice.experts;
        let at = if shard.routes_here { At::Host } else { shard.fresh.at(logits, count) };
        shard.need(&mut self.host, logits, count, at);
        match at {
            At::Card => shard.card.route(routed, rows, logits),
            At::Host => self.host.route(routed, rows, logits),
        }
        let bytes = routed.choice.bytes(rows).expect("it was planned");
        shard.fresh.set(routed.slot, bytes / 4, at);
    }

    fn matmul_experts(&mut self, routed: &Routed, rows: usize, per: RowPer, x: Slot, products: &[Product]) {
        match &mut self.shard {
            Some(shard) => shard.products(&mut self.host, rows, Some((routed, per)), x, products),
            None => self.host.matmul_experts(routed, rows, per, x, products),
        }
    }

    fn combine(&mut self, routed: &Routed, rows: usize, width: usize, places: Slot, out: Slot) {
        let Some(shard) = &mut self.shard else {
            return self.host.combine(routed, rows, width, places, out);
        };
        let at = shard.fresh.at(places, routed.choice.places(rows) * width);
        shard.need(&mut self.host, out, rows * width, at);
        shard.need_routing(&mut self.host, routed, rows, at);
        match at {
            At::Card => shard.card.combine(routed, rows, width, places, out),
            At::Host => self.host.combine(routed, rows, width, places, out),
        }
        shard.fresh.set(out, rows * width, at);
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
        let Some(shard) = &mut self.shard else {
            return self.host.scale(routed, rows, width, factors, bias, x);
        };
        let count = routed.map_or(rows, |routed| routed.choice.places(rows)) * width;
        let mapped = shard.on_card.weight(factors).zip(shard.on_card.optional(bias));
        let mapped = mapped.filter(|_| shard.fresh.at(x, count) == At::Card);
        let at = if mapped.is_some() { At::Card } else { At::Host };
        shard.need(&mut self.host, x, count, at);
        if let Some(routed) = routed {
            shard.need_routing(&mut self.host, routed, rows, at);
        }
        match mapped {
            Some((factors, bias)) => shard.card.scale(routed, rows, width, factors, bias, x),
            None => self.host.scale(routed, rows, width, factors, bias, x),
        }
        shard.fresh.set(x, count, at);
    }

    fn add(&mut self, rows: usize, width: usize, x: Slot, out: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.add(rows, width, x, out) };
        let at = shard.fresh.at(x, rows * width);
        shard.need(&mut self.host, x, rows * width, at);
        shard.need(&mut self.host, out, rows * width, at);
        match at {
            At::Card => shard.card.add(rows, width, x, out),
            At::Host => self.host.add(rows, width, x, out),
        }
        shard.fresh.set(out, rows * width, at);
    }

    fn cap(&mut self, limit: f32, rows: usize, width: usize, x: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.cap(limit, rows, width, x) };
        let at = shard.fresh.at(x, rows * width);
        match at {
            At::Card => shard.card.cap(limit, rows, width, x),
            At::Host => self.host.cap(limit, rows, width, x),
        }
        shard.fresh.set(x, rows * width, at);
    }

    fn angles(&mut self, rope: &Rope, batch: &Batch, out: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.angles(rope, batch, out) };
        let count = batch.rows() * 2 * rope.pairs();
        // Both sides have the tables, and these are little work.
        if let Some(mapped) = shard.on_card.rope(rope) {
            shard.card.angles(&mapped, batch, out);
            shard.fresh.set(out, count, At::Card);
            if shard.on_card.has_all_caches() {
                return;
            }
            shard.fresh.set_both(out, count);
        } else {
            shard.fresh.set(out, count, At::Host);
        }
        self.host.angles(rope, batch, out);
    }

    fn rotate(&mut self, rows: usize, angles: Slot, heads: Heads, x: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.rotate(rows, angles, heads, x) };
        let count = rows * heads.channels();
        let at = shard.fresh.at(x, count);
        shard.need(&mut self.host, angles, angles.bytes / 4, at);
        match at {
            At::Card => shard.card.rotate(rows, angles, heads, x),
            At::Host => self.host.rotate(rows, angles, heads, x),
        }
        shard.fresh.set(x, count, at);
    }

    fn store(&mut self, cache: &KvCache, batch: &Batch, keys: Slot, values: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.store(cache, batch, keys, values) };
        let count = batch.rows() * cache.heads * cache.shape.width;
        let mapped = shard.on_card.cache(cache.slot);
        let at = if mapped.is_some() { At::Card } else { At::Host };
        shard.need(&mut self.host, keys, count, at);
        shard.need(&mut self.host, values, count, at);
        match mapped {
            Some(slot) => shard.card.store(&KvCache { slot, ..*cache }, batch, keys, values),
            None => self.host.store(cache, batch, keys, values),
        }
    }

    fn attend(&mut self, attention: &Attention, cache: &KvCache, batch: &Batch, queries: Slot, out: Slot) {
        let Some(shard) = &mut self.shard else {
            return self.host.attend(attention, cache, batch, queries, out);
        };
        let count = batch.rows() * attention.heads.channels();
        let mapped = shard.on_card.cache(cache.slot);
        let at = if mapped.is_some() { At::Card } else { At::Host };
        shard.need(&mut self.host, queries, count, at);
        match mapped {
            Some(slot) => {
                let sinks = shard.on_card.optional(attention.sinks).expect("what is small stands there");
                let attention = Attention { sinks, ..*attention };
                shard.card.attend(&attention, &KvCache { slot, ..*cache }, batch, queries, out);
            }
            None => self.host.attend(attention, cache, batch, queries, out),
        }
        shard.fresh.set(out, count, at);
    }

    fn activate(&mut self, activation: Activation, rows: usize, width: usize, gate: Slot, up: Option<Slot>) {
        let Some(shard) = &mut self.shard else {
            return self.host.activate(activation, rows, width, gate, up);
        };
        let count = rows * width;
        let at = shard.fresh.at(gate, count);
        shard.need(&mut self.host, gate, count, at);
        if let Some(up) = up {
            shard.need(&mut self.host, up, count, at);
        }
        match at {
            At::Card => shard.card.activate(activation, rows, width, gate, up),
            At::Host => self.host.activate(activation, rows, width, gate, up),
        }
        shard.fresh.set(gate, count, at);
    }

    fn gather(&mut self, rows: &[usize], width: usize, x: Slot, out: Slot) {
        let Some(shard) = &mut self.shard else { return self.host.gather(rows, width, x, out) };
        let count = rows.iter().max().map_or(0, |last| last + 1) * width;
        let at = shard.fresh.at(x, count);
        match at {
            At::Card => shard.card.gather(rows, width, x, out),
            At::Host => {
                shard.need(&mut self.host, x, count, at);
                self.host.gather(rows, width, x, out);
            }
        }
        shard.fresh.set(out, rows.len() * width, at);
    }

    /// The values as they are here: see [`Shards::bring`].
    fn read(&self, slot: Slot) -> &[f32] {
        self.host.read(slot)
    }
}
