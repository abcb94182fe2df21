//! [`Backend`] on a card: finds the slots' memory and queues kernels, in order, on one stream.
//!
//! Operations return nothing, so what goes wrong is kept: from the first fault on nothing more is queued, results read
//! as zeros, and whoever drives the model asks [`CudaBackend::fault`] after each step, before it believes them.

use std::cell::Cell;

use bantam_core::cuda::Kernel;
use bantam_core::layouts::Precision;
use bantam_core::layouts::page::KvKind;
use bantam_core::{
    Activation, Attention, Backend, Batch, Heads, KvCache, Matrix, Norm, NormKind, Product, Region, Rope,
    Routed, RowPer, Slot,
};
use bytemuck::Pod;

use crate::driver::{Argument, Card, Mark, Memory, Pinned, Shape};
use crate::fault::Fault;
use crate::kept::Kept;
use crate::product::TENSOR_FROM;
use crate::ring::Ring;
use crate::steps::Steps;

/// Bytes of a backend's memory.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// The three regions of the plan.
    pub weights: usize,
    /// See `weights`.
    pub cache: usize,
    /// See `weights`.
    pub work: usize,
    /// Rows of a step at most.
    pub rows: usize,
    /// Words of all page tables.
    pub tables: usize,
    /// Bytes of results that are looked at beside one another.
    pub results: usize,
}

/// Threads of a block that goes along a row.
pub(crate) const THREADS: usize = 256;
/// Threads of a block of attention: as many as positions of its step.
const ATTEND_THREADS: usize = 128;
/// Blocks of a launch's second dimension at most.
pub(crate) const GRID_MOST: usize = 65_535;

/// Kernels and memory of one card.
#[derive(Debug)]
pub struct CudaBackend {
    pub(crate) card: Card,
    pub(crate) precision: Precision,
    /// In the order of [`Region`].
    regions: [Memory; 3],
    /// Where a product's input is prepared, as for the processor.
    pub(crate) panels: Slot,
    pub(crate) steps: Steps,
    results: Pinned,
    /// Where weights pass that do not stand here.
    pub(crate) ring: Option<Ring>,
    fault: Cell<Option<Fault>>,
    pub(crate) kept: Kept,
    /// Where there are other cards to copy to.
    pub(crate) mark: Option<Mark>,
    /// Rows of a product from which tensor cores are asked.
    pub(crate) tensor_from: usize,
}

impl CudaBackend {
    /// Takes all memory that will be needed. `panels` is a slot of the work region for prepared inputs.
    pub fn new(card: Card, precision: Precision, sizes: Sizes, panels: Slot) -> Result<Self, Fault> {
        let mut taken: Vec<Memory> = Vec::new();
        let memory = Self::take(&card, sizes, &mut taken);
        let (steps, results) = match memory {
            Ok(memory) => memory,
            Err(fault) => {
                taken.iter().for_each(|memory| card.free(memory));
                return Err(fault);
            }
        };
        let regions = <[Memory; 3]>::try_from(taken).expect("three regions were taken");
        let (ring, fault, kept, mark) = (None, Cell::new(None), Kept::default(), None);
        let tensor_from = TENSOR_FROM;
        Ok(CudaBackend {
            card,
            precision,
            regions,
            panels,
            steps,
            results,
            ring,
            fault,
            kept,
            mark,
            tensor_from,
        })
    }

    fn take(card: &Card, sizes: Sizes, taken: &mut Vec<Memory>) -> Result<(Steps, Pinned), Fault> {
        let parts = [("weights", sizes.weights), ("the cache", sizes.cache), ("activations", sizes.work)];
        for (what, bytes) in parts {
            taken.push(card.allocate(what, bytes)?);
        }
        let steps = Steps::new(card, sizes.rows, sizes.tables)?;
        let results = card.pin(sizes.results);
        if results.is_err() {
            steps.free(card);
        }
        Ok((steps, results?))
    }

    /// Bytes that it holds on the card.
    pub fn memory_bytes(&self) -> usize {
        let ring = self.ring.as_ref().map_or(0, Ring::bytes);
        let steps = self.steps.memory().bytes() + self.kept.bytes();
        self.regions.iter().map(Memory::bytes).sum::<usize>() + steps + ring
    }

    /// The card.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Puts bytes into a region, to fill it while loading.
    pub fn upload(&mut self, region: Region, offset: usize, bytes: &[u8]) {
        self.refuse_to_keep();
        let done = self.card.write(&self.regions[region as usize], offset, bytes);
        self.note(done);
    }

    /// What went wrong first. Nothing that was read since the last step without a fault counts.
    pub fn fault(&self) -> Option<Fault> {
        if self.fault.get().is_none() {
            self.note(self.card.wait());
        }
        self.fault.get()
    }

    /// Hands out the values of a slot, as many at a time as results have room for; zeros after a fault.
    pub fn fetch(&mut self, slot: Slot, each: &mut dyn FnMut(usize, &[f32])) {
        let most = self.results.bytes() / 64 * 16;
        for first in (0..slot.bytes / 4).step_by(most) {
            let count = most.min(slot.bytes / 4 - first);
            self.results.renew();
            each(first, self.read(Slot { offset: slot.offset + 4 * first, bytes: 4 * count, ..slot }));
        }
    }

    /// For each row the first of its largest values.
    pub fn argmax(&mut self, rows: usize, width: usize, x: Slot, out: Slot) {
        let shape = Shape { grid: (rows, 1), threads: THREADS, shared: 8 * THREADS };
        let (x, out) = (self.floats(x, rows * width), self.floats(out, rows));
        self.launch(Kernel::argmax, shape, (x, width as u32, out));
    }

    /// The first fault, which is then as if it had not been.
    pub(crate) fn take_fault(&self) -> Option<Fault> {
        self.fault.take()
    }

    /// Whether nothing went wrong so far, as far as is known without waiting.
    pub(crate) fn is_sound(&self) -> bool {
        self.fault.get().is_none()
    }

    /// Keeps a fault, if there is one and none before it.
    pub(crate) fn note(&self, done: Result<(), Fault>) {
        if let (Err(fault), None) = (done, self.fault.get()) {
            self.fault.set(Some(fault));
        }
    }

    /// Takes the value of what may have gone wrong.
    pub(crate) fn noted<T>(&self, done: Result<T, Fault>) -> Option<T> {
        done.map_err(|fault| self.note(Err(fault))).ok()
    }

    /// A region's memory.
    pub(crate) fn region(&self, region: Region) -> &Memory {
        &self.regions[region as usize]
    }

    /// The address of a slot.
    pub(crate) fn address(&self, slot: Slot) -> u64 {
        self.regions[slot.region as usize].at(slot.offset, slot.bytes)
    }

    /// The address of so many float32 values of a slot.
    pub(crate) fn floats(&self, slot: Slot, count: usize) -> u64 {
        self.address(slot.first(count))
    }

    pub(crate) fn optional(&self, slot: Option<Slot>) -> u64 {
        slot.map_or(0, |slot| self.address(slot))
    }

    /// Queues a kernel, unless something went wrong before.
    pub(crate) fn launch(&self, kernel: Kernel, shape: Shape, arguments: impl Arguments) {
        if self.fault.get().is_none() {
            let done = arguments.with(&mut |arguments| self.card.launch(kernel, shape, arguments));
            self.note(done);
        }
    }

    /// Rows of a step at most.
    pub(crate) fn step_rows(&self) -> usize {
        self.steps.rows()
    }

    /// Sends numbers; the address where they are.
    pub(crate) fn list(&mut self, list: impl ExactSizeIterator<Item = u32> + Clone) -> Option<u64> {
        let list = self.steps.list(&self.card, list);
        self.noted(list)
    }

    /// A block for each row.
    pub(crate) fn by_row(&self, kernel: Kernel, rows: usize, arguments: impl Arguments) {
        let shape = Shape { grid: (rows, 1), threads: THREADS, shared: 4 * THREADS / 32 };
        self.launch(kernel, shape, arguments);
    }

    /// A thread for each value.
    pub(crate) fn by_value(&self, kernel: Kernel, count: usize, arguments: impl Arguments) {
        let shape = Shape { grid: (count.div_ceil(THREADS), 1), threads: THREADS, shared: 0 };
        self.launch(kernel, shape, arguments);
    }

    /// What kernels are told of a cache, and where rows stand.
    fn cache(&mut self, cache: &KvCache, batch: &Batch) -> Option<([u64; 5], u64)> {
        let sent = self.steps.batch(&self.card, batch);
        let (rows, tables) = self.noted(sent)?;
        let shape = cache.shape;
        let kind = match shape.kind {
            KvKind::F32 => 0,
            KvKind::F16 => 1,
            KvKind::Int8 => 2,
        };
        let values_at = shape.value_offset();
        let words = [
            self.address(cache.slot),
            tables,
            pair(kind, cache.heads),
            pair(shape.width, shape.padded_width()),
            pair(shape.bytes(), values_at),
        ];
        Some((words, rows))
    }
}

/// An activation's number in kernels.
pub(crate) fn kind_of(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::ClampedSwish => 4,
    }
}

/// Two numbers as they lie in a structure of words.
pub(crate) fn pair(low: usize, high: usize) -> u64 {
    low as u64 | (high as u64) << 32
}

/// What a kernel is told of rows and experts: `Routed` of `kernel.cuh`.
pub(crate) const NOT_ROUTED: [u64; 3] = [0; 3];

/// Arguments of different types.
pub(crate) trait Arguments {
    fn with(&self, f: &mut dyn FnMut(&[Argument]) -> Result<(), Fault>) -> Result<(), Fault>;
}

macro_rules! arguments {
    ($($($name:ident)*;)*) => {$(
        impl<$($name: Pod),*> Arguments for ($($name,)*) {
            fn with(&self, f: &mut dyn FnMut(&[Argument]) -> Result<(), Fault>) -> Result<(), Fault> {
                #[allow(non_snake_case, reason = "values named as their types")]
                let ($($name,)*) = self;
                f(&[$(Argument::of($name)),*])
            }
        }
    )*};
}

arguments! {
    A;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
}

impl Backend for CudaBackend {
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: Slot) {
        let outside = tokens.iter().find(|&&token| token as usize >= table.shape.rows);
        assert!(outside.is_none(), "token {outside:?} is outside the vocabulary");
        if let Some(list) = self.list(tokens.iter().copied()) {
            self.embed_rows(table, tokens.len(), list, scale, out);
        }
    }

    fn norm(&mut self, norm: &Norm, rows: usize, x: Slot, out: Slot) {
        let (x, out) = (self.floats(x, rows * norm.width), self.floats(out, rows * norm.width));
        let (weight, bias) = (self.address(norm.weight), self.optional(norm.bias));
        let centered = u32::from(norm.kind == NormKind::Layer);
        let arguments = (x, out, weight, bias, norm.width as u32, norm.epsilon, norm.weight_shift, centered);
        self.by_row(Kernel::norm, rows, arguments);
    }

    fn matmul(&mut self, rows: usize, x: Slot, products: &[Product]) {
        self.products(rows, None, x, products);
    }

    fn route(&mut self, routed: &Routed, rows: usize, logits: Slot) {
        let (choice, memory) = (routed.choice, self.address(routed.slot));
        let logits = self.floats(logits, rows * choice.experts);
        let shape = Shape { grid: (1, 1), threads: THREADS, shared: 8 * choice.experts };
        let numbers = (logits, choice.experts as u32, choice.chosen as u32, rows as u32, memory);
        self.launch(Kernel::route, shape, numbers);
    }

    fn matmul_experts(&mut self, routed: &Routed, rows: usize, per: RowPer, x: Slot, products: &[Product]) {
        self.products(rows, Some((routed, per)), x, products);
    }

    fn combine(&mut self, routed: &Routed, rows: usize, width: usize, places: Slot, out: Slot) {
        let choice = routed.choice;
        let parts = self.floats(places, choice.places(rows) * width);
        let out = self.floats(out, rows * width);
        let memory = self.address(routed.slot);
        let (experts, chosen) = (choice.experts as u32, choice.chosen as u32);
        self.by_row(Kernel::combine, rows, (memory, experts, chosen, rows as u32, width as u32, parts, out));
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
        let places = routed.map_or(rows, |routed| routed.choice.places(rows));
        let words = routed.map_or(NOT_ROUTED, |routed| self.routed(routed, rows, RowPer::Place));
        let (factors, bias, x) = (self.address(factors), self.optional(bias), self.floats(x, places * width));
        self.by_row(Kernel::scale, places, (words, width as u32, factors, bias, x));
    }

    fn add(&mut self, rows: usize, width: usize, x: Slot, out: Slot) {
        let count = rows * width;
        let (x, out) = (self.floats(x, count), self.floats(out, count));
        self.by_value(Kernel::add, count, (count as u64, x, out));
    }

    fn cap(&mut self, limit: f32, rows: usize, width: usize, x: Slot) {
        let count = rows * width;
        let x = self.floats(x, count);
        self.by_value(Kernel::cap, count, (limit, 1.0 / limit, count as u64, x));
    }

    fn angles(&mut self, rope: &Rope, batch: &Batch, out: Slot) {
        let sent = self.steps.batch(&self.card, batch);
        let Some((rows, _)) = self.noted(sent) else { return };
        let (border, longer) = rope.longer.map_or((0, None), |(border, slot)| (border, Some(slot)));
        let out = self.floats(out, batch.rows() * 2 * rope.pairs());
        let tables = (self.address(rope.frequencies), self.optional(longer));
        let border = u32::try_from(border).unwrap_or(u32::MAX);
        let numbers = (tables.0, tables.1, border, rows, rope.pairs() as u32, rope.scale, out);
        self.by_row(Kernel::angles, batch.rows(), numbers);
    }

    fn rotate(&mut self, rows: usize, angles: Slot, heads: Heads, x: Slot) {
        let pairs = angles.bytes / 8 / rows.max(1);
        let (angles, x) = (self.address(angles), self.floats(x, rows * heads.channels()));
        self.by_row(Kernel::rotate, rows, (angles, pairs as u32, heads.count as u32, heads.width as u32, x));
    }

    fn store(&mut self, cache: &KvCache, batch: &Batch, keys: Slot, values: Slot) {
        let Some((words, rows)) = self.cache(cache, batch) else { return };
        let count = batch.rows() * cache.heads * cache.shape.width;
        let (keys, values) = (self.floats(keys, count), self.floats(values, count));
        let shape = Shape { grid: (cache.heads, batch.rows()), threads: 64, shared: 8 };
        self.launch(Kernel::store, shape, (words, rows, keys, values));
    }

    fn attend(&mut self, attention: &Attention, cache: &KvCache, batch: &Batch, queries: Slot, out: Slot) {
        let heads = attention.heads;
        assert!(heads.count.is_multiple_of(cache.heads) && heads.width == cache.shape.width);
        let Some((cache_words, rows)) = self.cache(cache, batch) else { return };
        let window = attention.window.map_or(u32::MAX as usize, |window| window.min(u32::MAX as usize));
        let softcap = attention.softcap.unwrap_or(0.0).to_bits() as usize;
        let words = [
            pair(heads.count, window),
            pair(attention.scale.to_bits() as usize, softcap),
            self.optional(attention.sinks),
        ];
        let kernel = match cache.shape.kind {
            KvKind::F32 => Kernel::attend_f32,
            KvKind::F16 => Kernel::attend_f16,
            KvKind::Int8 => Kernel::attend_int8,
        };
        let size = batch.rows() * heads.channels();
        let (queries, out) = (self.floats(queries, size), self.floats(out, size));
        let shared = 4 * (heads.width + ATTEND_THREADS + ATTEND_THREADS / 32);
        let shape = Shape { grid: (heads.count, batch.rows()), threads: ATTEND_THREADS, shared };
        self.launch(kernel, shape, (words, cache_words, rows, queries, out));
    }

    fn activate(&mut self, activation: Activation, rows: usize, width: usize, gate: Slot, up: Option<Slot>) {
        let kind = kind_of(activation);
        let count = rows * width;
        let up = up.map_or(0, |up| self.floats(up, count));
        let gate = self.floats(gate, count);
        self.by_value(Kernel::activate, count, (kind, count as u64, gate, up));
    }

    fn gather(&mut self, rows: &[usize], width: usize, x: Slot, out: Slot) {
        let Some(list) = self.list(rows.iter().map(|&row| row as u32)) else { return };
        let last = rows.iter().max().map_or(0, |last| last + 1);
        let (x, out) = (self.floats(x, last * width), self.floats(out, rows.len() * width));
        self.by_row(Kernel::gather, rows.len(), (list, width as u32, x, out));
        self.results.renew();
    }

    fn read(&self, slot: Slot) -> &[f32] {
        let floats = slot.bytes / 4;
        self.refuse_to_keep();
        let found = match self.fault.get() {
            Some(_) => None,
            None => {
                let region = &self.regions[slot.region as usize];
                self.noted(self.card.read(region, slot.offset, floats, &self.results))
            }
        };
        found.unwrap_or_else(|| self.results.zeros(floats))
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        self.drop_ring();
        // What is queued may still read pinned words.
        let _ = self.card.wait();
        self.mark.iter().for_each(|mark| self.card.end_mark(mark));
        self.kept.all().for_each(|graph| self.card.free_graph(graph));
        self.regions.iter().for_each(|memory| self.card.free(memory));
        self.steps.free(&self.card);
        self.card.unpin(&self.results);
    }
}
