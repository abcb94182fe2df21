//! The backend of an engine: the processor, and a card beside it where one takes part, or several that are seen as one
//! ([`chain`]).
//!
//! Every operation runs where its weights or its cache are, and where it has none, where its input is; what the other
//! side needs is copied first, and nothing else is ([`fresh::Fresh`]). Of a matrix that stands on the card in part both
//! compute their rows at the same time: the card's work is queued, the processor's is done, then both are put together.
//! Of attention that is divided by heads, and of experts of which the card has some, each side keeps what it made until
//! somebody needs it together. So a model may stand on the card whole, by heads, by rows or by experts, and the decoder
//! knows nothing of it. Weights are moved while a layer waits for them only where many rows are read at once
//! ([`passing`]).

mod chain;
mod fresh;
mod heads;
mod hot;
pub(crate) mod kept;
mod on_card;
mod passing;
mod ranges;
mod shard;
mod stacks;

use std::ops::Range;

use bantam_core::arena::ALIGNMENT;
use bantam_core::{
    Activation, Attention, Backend, Batch, CpuBackend, Heads, KvCache, Matrix, Norm, Product, Region, Rope,
    Routed, RowPer, Slot,
};
use memmap2::MmapMut;

use crate::card::{Card, CardFault, Found, Needs, NoCard, Passage, RING_SLOTS};
use crate::engine::ExpertsMet;
use crate::memory;
use crate::plan::Plan;
use crate::pool::Threads;
use chain::Chain;
use fresh::{At, Fresh, Split};
use hot::Hot;
pub(crate) use on_card::OnCard;
use on_card::behind;
use passing::Ring;
use shard::{Moves, Shard};

/// Bytes of results that are copied back at a time.
const RESULTS_BYTES: usize = 1 << 20;

/// Memory, threads and kernels of one machine.
#[derive(Debug)]
pub(crate) struct Shards {
    pub(crate) host: CpuBackend<MmapMut, Threads>,
    shard: Option<Shard>,
}

type Host = CpuBackend<MmapMut, Threads>;

/// The slot behind the plan's own activations.
fn scratch(plan: &Plan) -> Slot {
    let rows = plan.weights.layers.iter().map(|layer| layer.down.matrix.shape.rows).max().unwrap_or(0);
    let bytes = (4 * rows * plan.options.chunk).next_multiple_of(ALIGNMENT);
    Slot { region: Region::Work, offset: plan.work_bytes, bytes }
}

/// The slot behind that: who goes to the host's experts.
fn routing(plan: &Plan) -> Slot {
    let Slot { region, offset, bytes } = scratch(plan);
    Slot { region, offset: offset + bytes, bytes: plan.work.routing.bytes }
}

/// Takes memory of one card, or of several that go on as one.
fn taken(
    plan: &Plan,
    found: Vec<Box<dyn Found>>,
    on_card: &OnCard,
) -> Result<Box<dyn Card>, (usize, NoCard)> {
    let mut cards = Vec::new();
    for (at, (found, [weights, cache])) in found.into_iter().zip(on_card.bytes()).enumerate() {
        cards.push(found.take(&Shards::needs(plan, weights, cache)).map_err(|error| (at, error))?);
    }
    match cards.len() {
        1 => Ok(cards.remove(0)),
        _ => Ok(Box::new(Chain::new(cards, &on_card.ends(), &plan.work, scratch(plan))?)),
    }
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

    /// Bytes of this machine that cards of so many take for a plan, at most: activations on the way between both, and
    /// what is pinned.
    pub(crate) fn host_bytes(plan: &Plan, vram: &[usize], passage: Passage) -> usize {
        let slot = |vram| passing::slot_bytes(plan, vram, passage);
        let ring = |vram: &usize| slot(*vram).map_or(0, |bytes| RING_SLOTS * bytes);
        let each = |vram| Self::needs(plan, 0, 0).pinned() + ring(vram);
        scratch(plan).bytes + routing(plan).bytes + vram.iter().map(each).sum::<usize>()
    }

    /// Bytes of this machine that are taken.
    pub(crate) fn bytes(&self, plan: &Plan) -> usize {
        let cards = self.shard.as_ref().map_or(0, |shard| shard.on_card.layers.len());
        let pinned = cards * Self::needs(plan, 0, 0).pinned();
        self.host.arena().bytes() + pinned + self.ring().map_or(0, |(bytes, _)| bytes)
    }

    /// Takes memory of cards and puts there what is to stand on them; of the cache the pages that hold anything.
    /// Returns the bytes of a ring that there is no memory for; where one of them refuses, which.
    pub(crate) fn take(
        &mut self,
        plan: &Plan,
        found: Vec<Box<dyn Found>>,
        on_card: OnCard,
        passage: Passage,
        pages: &[Range<usize>],
    ) -> Result<usize, (usize, NoCard)> {
        let last = found.len() - 1;
        let mut card = taken(plan, found, &on_card)?;
        let (scratch, mine) = (scratch(plan), routing(plan));
        let work = memory::region(mine.offset + mine.bytes);
        let more = mine.offset + mine.bytes - plan.work_bytes;
        let work =
            work.map_err(|error| (last, NoCard::Memory(format!("{more} bytes of memory: {error}"))))?;
        for (from, to) in on_card.copies() {
            card.upload(to, self.host.arena().read(from));
        }
        let moves = Moves::of(&on_card, &plan.caches, pages);
        for (here, there) in moves.pieces() {
            card.upload(there, self.host.arena().read(here));
        }
        let mut hot: Vec<Hot> = on_card.stacks.iter().map(|stacks| Hot::new(stacks, mine)).collect();
        for (hot, stacks) in hot.iter_mut().zip(&on_card.stacks) {
            hot.fill(stacks, &self.host, card.as_mut());
        }
        // Without memory for it, all else goes on.
        let has_room = memory::available().is_none_or(|free| on_card.ring_bytes() as u64 <= free);
        let slot_bytes = on_card.ring.filter(|&bytes| has_room && card.take_ring(bytes));
        let refused = if slot_bytes.is_none() { on_card.ring_bytes() } else { 0 };
        let ring = slot_bytes.map(|bytes| Ring::new(plan, &on_card, bytes));
        let fresh = Fresh::new(&plan.work);
        let mut shard = Shard { card, on_card, fresh, scratch, hot, routes_here: false, ring };
        shard.choose(&mut self.host, plan, passage);
        if let Some(fault) = shard.card.fault() {
            return Err((last, NoCard::Failed(fault.to_string())));
        }
        moves.close_up(&mut self.host.arena_mut().cache);
        self.host.arena_mut().work = work;
        self.shard = Some(shard);
        Ok(refused)
    }

    /// Brings keys and values of these pages back and lets the card go.
    pub(crate) fn leave(&mut self, caches: &[KvCache], pages: &[Range<usize>]) -> Result<(), CardFault> {
        let Some(mut shard) = self.shard.take() else { return Ok(()) };
        let moves = Moves::of(&shard.on_card, caches, pages);
        moves.open_up(&mut self.host.arena_mut().cache);
        for (here, there) in moves.pieces() {
            let to = self.host.arena_mut().write(here);
            shard.card.fetch(there, &mut |first, piece| {
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

    /// Bytes of all cards that weights pass through, and from how many rows of a step on they do.
    pub(crate) fn ring(&self) -> Option<(usize, usize)> {
        let Shard { ring, on_card, .. } = self.shard.as_ref()?;
        Some((on_card.ring_bytes(), ring.as_ref()?.from))
    }

    /// Whether the card has failed; if so it is let go, and the processor has all work from now on.
    pub(crate) fn lost(&mut self) -> Option<CardFault> {
        let fault = self.shard.as_ref()?.card.fault()?;
        self.shard = None;
        Some(fault)
    }

    /// How often experts were met on the card.
    pub(crate) fn experts_met(&self) -> Option<ExpertsMet> {
        let hot = &self.shard.as_ref()?.hot;
        let sum = |of: fn(&ExpertsMet) -> u64| hot.iter().map(|hot| of(&hot.met)).sum();
        let met = ExpertsMet {
            places: sum(|of| of.places),
            on_card: sum(|of| of.on_card),
            moved: sum(|of| of.moved),
        };
        (!hot.is_empty()).then_some(met)
    }

    /// All layers are through.
    pub(crate) fn end_step(&mut self) {
        let Some(Shard { card, on_card, hot, .. }) = &mut self.shard else { return };
        for (hot, stacks) in hot.iter_mut().zip(&on_card.stacks) {
            hot.end_step(stacks, &self.host, card.as_mut());
        }
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
        if let Some(split) = shard.fresh.split(x).filter(|_| x.offset == out.offset) {
            // Heads are rows here, and each side has whole ones.
            let mapped = shard.on_card.norm(norm).expect("what is small stands there");
            shard.card.norm(&mapped, split.rows * split.there / norm.width, x, out);
            return self.host.norm(norm, split.rows * split.here / norm.width, x, out);
        }
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
        let is_here = shard.routes_here || !shard.hot.is_empty() || shard.passes(rows);
        let at = if is_here { At::Host } else { shard.fresh.at(logits, count) };
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
        let count = routed.choice.places(rows) * width;
        let at = shard.fresh.at(places, count);
        shard.need(&mut self.host, places, count, at);
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
        if let Some(Split { there, here, .. }) = shard.fresh.split(x) {
            for at in [At::Host, At::Card] {
                shard.need(&mut self.host, angles, angles.bytes / 4, at);
            }
            let of = |channels: usize| Heads { count: channels / heads.width, ..heads };
            shard.card.rotate(rows, angles, of(there), x);
            return self.host.rotate(rows, angles, of(here), x);
        }
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
        let there = shard.on_card.cache(cache);
        if let Some(there) = there.filter(|there| there.heads < cache.heads) {
            assert!(shard.fresh.split(keys).is_some() && shard.fresh.split(values).is_some());
            shard.card.store(&there, batch, keys, values);
            let here = KvCache { heads: cache.heads - there.heads, ..*cache };
            return self.host.store(&here, batch, keys, values);
        }
        let count = batch.rows() * cache.heads * cache.shape.width;
        let at = if there.is_some() { At::Card } else { At::Host };
        shard.need(&mut self.host, keys, count, at);
        shard.need(&mut self.host, values, count, at);
        match there {
            Some(there) => shard.card.store(&there, batch, keys, values),
            None => self.host.store(cache, batch, keys, values),
        }
    }

    fn attend(&mut self, attention: &Attention, cache: &KvCache, batch: &Batch, queries: Slot, out: Slot) {
        let Some(shard) = &mut self.shard else {
            return self.host.attend(attention, cache, batch, queries, out);
        };
        let Some(there) = shard.on_card.cache(cache) else {
            let count = batch.rows() * attention.heads.channels();
            shard.need(&mut self.host, queries, count, At::Host);
            self.host.attend(attention, cache, batch, queries, out);
            return shard.fresh.set(out, count, At::Host);
        };
        let group = attention.heads.count / cache.heads;
        let part = |key_heads: usize, sinks: Option<Slot>| {
            let heads = Heads { count: key_heads * group, ..attention.heads };
            Attention { heads, sinks, ..*attention }
        };
        let sinks = shard.on_card.optional(attention.sinks).expect("what is small stands there");
        let on_card = part(there.heads, sinks);
        let split = Split {
            rows: batch.rows(),
            there: on_card.heads.channels(),
            here: attention.heads.channels() - on_card.heads.channels(),
        };
        if split.here == 0 {
            shard.need(&mut self.host, queries, split.rows * split.there, At::Card);
            shard.card.attend(&on_card, &there, batch, queries, out);
            return shard.fresh.set(out, split.rows * split.there, At::Card);
        }
        assert_eq!(shard.fresh.split(queries), Some(split), "queries stand with their keys");
        shard.card.attend(&on_card, &there, batch, queries, out);
        let here = KvCache { heads: cache.heads - there.heads, ..*cache };
        let sinks = attention.sinks.map(|sinks| behind(sinks, 4 * on_card.heads.count));
        self.host.attend(&part(here.heads, sinks), &here, batch, queries, out);
        shard.fresh.set_split(out, split);
    }

    fn activate(&mut self, activation: Activation, rows: usize, width: usize, gate: Slot, up: Option<Slot>) {
        let Some(shard) = &mut self.shard else {
            return self.host.activate(activation, rows, width, gate, up);
        };
        if let Some(Split { there, here, .. }) = shard.fresh.split(gate) {
            assert!(up.is_none_or(|up| shard.fresh.split(up) == shard.fresh.split(gate)));
            if there > 0 {
                shard.card.activate(activation, there / width, width, gate, up);
            }
            return self.host.activate(activation, here / width, width, gate, up);
        }
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
