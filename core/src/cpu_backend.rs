//! The backend that computes on the processor: finds the slots' memory and hands it to the operations.

use core::ops::DerefMut;

use crate::arena::{Arena, Fixed, Region, Slot, disjoint};
use crate::backend::{
    Activation, Attention, Backend, Batch, Heads, KvCache, Matrix, Norm, Product, Rope, Routed, RowPer,
};
use crate::cpu::Cpu;
use crate::layouts::panels::Taken;
use crate::layouts::{Precision, TILE_ROWS};
use crate::ops::crew::Pool;
use crate::ops::experts::{Routing, add};
use crate::ops::matmul::{self, Input, Output};
use crate::ops::norm::{RowNorm, norm_row};
use crate::ops::share::each_row;
use crate::ops::{activation, attention, rope};

/// Kernels, memory and threads of one processor.
#[derive(Debug)]
pub struct CpuBackend<M, P> {
    cpu: Cpu,
    precision: Precision,
    pool: P,
    arena: Arena<M>,
    /// Where a product's input is prepared: see [`matmul::panel_bytes`].
    panels: Slot,
}

impl<M: DerefMut<Target = [u8]>, P: Pool> CpuBackend<M, P> {
    /// Takes over memory and threads. `panels` is a slot of the work region for prepared inputs.
    pub fn new(cpu: Cpu, precision: Precision, pool: P, arena: Arena<M>, panels: Slot) -> Self {
        CpuBackend { cpu, precision, pool, arena, panels }
    }

    /// The memory, to be filled while loading.
    pub fn arena_mut(&mut self) -> &mut Arena<M> {
        &mut self.arena
    }

    /// Memory and threads together, for filling the one with the other.
    pub fn parts_mut(&mut self) -> (&mut Arena<M>, &P) {
        (&mut self.arena, &self.pool)
    }

    /// The memory.
    pub fn arena(&self) -> &Arena<M> {
        &self.arena
    }

    /// The threads.
    pub fn pool(&self) -> &P {
        &self.pool
    }

    /// Products of `tokens` rows of `x`, or of the places that rows of `x` were sent to.
    fn products(&mut self, rows: usize, routed: Option<(&Routed, RowPer)>, x: Slot, products: &[Product]) {
        let (fixed, _, work) = self.arena.parts();
        let columns = products[0].matrix.shape.columns;
        let places = routed.map_or(rows, |(routed, _)| routed.places(rows));
        let x_rows = match routed {
            Some((_, RowPer::Place)) => places,
            _ => rows,
        };
        let routing = routed.map_or(NOWHERE, |(routed, _)| routed.slot);
        let place = |i: usize| {
            let out = |product: &Product| product.out.first(places * product.matrix.shape.rows);
            products.get(i).map_or(NOWHERE, out)
        };
        assert!(
            (1..=3).contains(&products.len()),
            "a product of one to three matrices, not {}",
            products.len()
        );
        let slots = [x.first(x_rows * columns), self.panels, routing, place(0), place(1), place(2)];
        let [x, panels, routing, a, b, c] = disjoint(work, slots);
        let output = |(product, out)| output(fixed, product, out);
        let mut outputs: heapless::Vec<Output, 3> = products.iter().zip([a, b, c]).map(output).collect();
        let (all, x) = ([[0, 0, rows as u32]], &*x);
        let routing = routed.map(|(routed, per)| (Routing::over(routed.choice, rows, routing), per));
        let (segments, order) = match &routing {
            None => (&all[..], None),
            Some((routing, RowPer::Token)) => (routing.segments(), Some(routing.rows())),
            Some((routing, RowPer::Place)) => (routing.segments(), None),
        };
        let input = Input { x, columns, order };
        matmul::multiply(self.cpu, self.precision, &self.pool, input, segments, panels, &mut outputs);
    }
}

/// No memory: apart from every other slot.
const NOWHERE: Slot = Slot { region: Region::Work, offset: 0, bytes: 0 };

fn output<'a>(fixed: Fixed<'a>, product: &Product, out: &'a mut [f32]) -> Output<'a> {
    Output {
        layout: product.matrix.layout,
        shape: product.matrix.shape,
        tiles: fixed.read(product.matrix.slot),
        taken: Taken {
            order: product.matrix.order.map(|slot| bytemuck::cast_slice(fixed.read(slot))),
            factors: product.matrix.factors.map(|slot| fixed.floats(slot)),
            times: product.matrix.times,
        },
        bias: product.bias.map(|slot| fixed.floats(slot)),
        out,
        add: product.add,
    }
}

fn floats(region: &[u8], slot: Slot) -> &[f32] {
    bytemuck::cast_slice(&region[slot.range()])
}

impl<M: DerefMut<Target = [u8]>, P: Pool> Backend for CpuBackend<M, P> {
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: Slot) {
        let (fixed, _, work) = self.arena.parts();
        let columns = table.shape.columns;
        assert!(table.times == 1 && table.factors.is_none(), "rows of a table are read as they are");
        let tile_bytes = table.layout.tile_bytes(columns);
        let tiles = fixed.read(table.slot);
        let [out] = disjoint(work, [out.first(tokens.len() * columns)]);
        each_row(&self.pool, out, columns, 64, |row, out| {
            let token = tokens[row] as usize;
            assert!(token < table.shape.rows, "token {token} is outside the vocabulary");
            let tile = &tiles[token / TILE_ROWS * tile_bytes..][..tile_bytes];
            table.layout.unpack(columns, tile, token % TILE_ROWS, out);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        });
    }

    fn norm(&mut self, norm: &Norm, rows: usize, x: Slot, out: Slot) {
        let (fixed, _, work) = self.arena.parts();
        let size = rows * norm.width;
        let of_row = RowNorm {
            kind: norm.kind,
            epsilon: norm.epsilon,
            weight_shift: norm.weight_shift,
            weight: fixed.floats(norm.weight),
            bias: norm.bias.map(|slot| fixed.floats(slot)),
        };
        let (cpu, width) = (self.cpu, norm.width);
        // Jobs below some thousand values cost more than they share.
        let rows_min = 16.max((1 << 15) / width);
        if x.offset == out.offset {
            let [x] = disjoint(work, [x.first(size)]);
            each_row(&self.pool, x, width, rows_min, |_, x| norm_row(cpu, &of_row, x));
            return;
        }
        let [x, out] = disjoint(work, [x.first(size), out.first(size)]);
        let x = &*x;
        each_row(&self.pool, out, width, rows_min, |row, out| {
            out.copy_from_slice(&x[row * width..][..width]);
            norm_row(cpu, &of_row, out);
        });
    }

    fn matmul(&mut self, rows: usize, x: Slot, products: &[Product]) {
        self.products(rows, None, x, products);
    }

    fn route(&mut self, routed: &Routed, rows: usize, logits: Slot) {
        let logits = logits.first(rows * routed.choice.experts);
        let [routing, logits] = disjoint(&mut self.arena.work, [routed.slot, logits]);
        Routing::over(routed.choice, rows, routing).route(routed.choice, logits);
    }

    fn matmul_experts(&mut self, routed: &Routed, rows: usize, per: RowPer, x: Slot, products: &[Product]) {
        self.products(rows, Some((routed, per)), x, products);
    }

    fn combine(&mut self, routed: &Routed, rows: usize, width: usize, places: Slot, out: Slot) {
        let choice = routed.choice;
        let slots = [routed.slot, places.first(choice.places(rows) * width), out.first(rows * width)];
        let [routing, parts, out] = disjoint(&mut self.arena.work, slots);
        let (cpu, parts, routing) = (self.cpu, &*parts, Routing::over(choice, rows, routing));
        each_row(&self.pool, out, width, 16, |row, out| {
            routing.combine(cpu, choice.chosen, row, parts, out);
        });
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
        let (fixed, _, work) = self.arena.parts();
        let (factors, bias) = (fixed.floats(factors), bias.map(|slot| fixed.floats(slot)));
        let places = routed.map_or(rows, |routed| routed.choice.places(rows));
        let [routing, x] =
            disjoint(work, [routed.map_or(NOWHERE, |routed| routed.slot), x.first(places * width)]);
        let routing = routed.map(|routed| Routing::over(routed.choice, rows, routing));
        let all = [[0, 0, places as u32]];
        for &segment in routing.as_ref().map_or(&all[..], Routing::segments) {
            let [expert, first, count] = segment.map(|word| word as usize);
            let factors = &factors[expert * width..][..width];
            let bias = bias.map(|bias| &bias[expert * width..][..width]);
            each_row(&self.pool, &mut x[first * width..][..count * width], width, 16, |_, x| {
                activation::scale(x, factors, bias);
            });
        }
    }

    fn add(&mut self, rows: usize, width: usize, x: Slot, out: Slot) {
        let size = rows * width;
        let [x, out] = disjoint(&mut self.arena.work, [x.first(size), out.first(size)]);
        let (cpu, x) = (self.cpu, &*x);
        each_row(&self.pool, out, width, 16, |row, out| add(cpu, out, &x[row * width..][..width]));
    }

    fn cap(&mut self, limit: f32, rows: usize, width: usize, x: Slot) {
        let [x] = disjoint(&mut self.arena.work, [x.first(rows * width)]);
        let cpu = self.cpu;
        each_row(&self.pool, x, width, 4, |_, x| activation::cap(cpu, limit, x));
    }

    fn angles(&mut self, rope: &Rope, batch: &Batch, out: Slot) {
        let (fixed, _, work) = self.arena.parts();
        let width = 2 * rope.pairs();
        let [out] = disjoint(work, [out.first(batch.rows() * width)]);
        each_row(&self.pool, out, width, 64, |row, out| {
            let feed = batch.feed(row);
            let frequencies = fixed.floats(rope.frequencies_at(feed.length));
            rope::angles(frequencies, feed.position(row) as u32, rope.scale, out);
        });
    }

    fn rotate(&mut self, rows: usize, angles: Slot, heads: Heads, x: Slot) {
        let [angles, x] = disjoint(&mut self.arena.work, [angles, x.first(rows * heads.channels())]);
        let width = angles.len() / rows.max(1);
        let angles = &*angles;
        each_row(&self.pool, x, heads.channels(), 64, |row, x| {
            for head in x.chunks_exact_mut(heads.width) {
                rope::rotate(head, &angles[row * width..][..width]);
            }
        });
    }

    fn store(&mut self, cache: &KvCache, batch: &Batch, keys: Slot, values: Slot) {
        let Arena { cache: memory, work, .. } = &mut self.arena;
        let (keys, values) = (floats(work, keys), floats(work, values));
        attention::store_batch(&self.pool, cache, &mut memory[cache.slot.range()], batch, keys, values);
    }

    fn attend(&mut self, attention: &Attention, cache: &KvCache, batch: &Batch, queries: Slot, out: Slot) {
        let (fixed, memory, work) = self.arena.parts();
        let size = batch.rows() * attention.heads.channels();
        let sinks = attention.sinks.map(|slot| fixed.floats(slot));
        let [queries, out] = disjoint(work, [queries.first(size), out.first(size)]);
        let memory = &memory[cache.slot.range()];
        attention::attend_batch(self.cpu, &self.pool, attention, sinks, cache, memory, batch, queries, out);
    }

    fn activate(&mut self, activation: Activation, rows: usize, width: usize, gate: Slot, up: Option<Slot>) {
        let work = &mut self.arena.work;
        let size = rows * width;
        let (gate, up) = match up {
            Some(up) => {
                let [gate, up] = disjoint(work, [gate.first(size), up.first(size)]);
                (gate, Some(&*up))
            }
            None => {
                let [gate] = disjoint(work, [gate.first(size)]);
                (gate, None)
            }
        };
        let cpu = self.cpu;
        each_row(&self.pool, gate, width, 4, |row, gate| {
            activation::activate(cpu, activation, gate, up.map(|up| &up[row * width..][..width]));
        });
    }

    fn gather(&mut self, rows: &[usize], width: usize, x: Slot, out: Slot) {
        let [x, out] = disjoint(&mut self.arena.work, [x, out.first(rows.len() * width)]);
        for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
            out.copy_from_slice(&x[row * width..][..width]);
        }
    }

    fn read(&self, slot: Slot) -> &[f32] {
        self.arena.floats(slot)
    }
}
