//! The backend that computes on the processor: finds the slots' memory and hands it to the operations.

use core::ops::DerefMut;

use crate::arena::{Arena, Slot, disjoint};
use crate::backend::{Activation, Attention, Backend, Batch, Heads, KvCache, Matrix, Norm, Product, Rope};
use crate::cpu::Cpu;
use crate::layouts::{Precision, TILE_ROWS};
use crate::ops::crew::Pool;
use crate::ops::matmul::{self, Output};
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

    fn output<'a>(weights: &'a [u8], product: &Product, out: &'a mut [f32]) -> Output<'a> {
        Output {
            layout: product.matrix.layout,
            shape: product.matrix.shape,
            tiles: &weights[product.matrix.slot.range()],
            bias: product.bias.map(|slot| bytemuck::cast_slice(&weights[slot.range()])),
            out,
            add: product.add,
        }
    }
}

fn floats(region: &[u8], slot: Slot) -> &[f32] {
    bytemuck::cast_slice(&region[slot.range()])
}

impl<M: DerefMut<Target = [u8]>, P: Pool> Backend for CpuBackend<M, P> {
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: Slot) {
        let Arena { weights, work, .. } = &mut self.arena;
        let columns = table.shape.columns;
        let tile_bytes = table.layout.tile_bytes(columns);
        let tiles = &weights[table.slot.range()];
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
        let Arena { weights, work, .. } = &mut self.arena;
        let size = rows * norm.width;
        let of_row = RowNorm {
            kind: norm.kind,
            epsilon: norm.epsilon,
            weight_shift: norm.weight_shift,
            weight: floats(weights, norm.weight),
            bias: norm.bias.map(|slot| floats(weights, slot)),
        };
        let [x, out] = disjoint(work, [x.first(size), out.first(size)]);
        let (cpu, x) = (self.cpu, &*x);
        each_row(&self.pool, out, norm.width, 16, |row, out| {
            norm_row(cpu, &of_row, &x[row * norm.width..][..norm.width], out);
        });
    }

    fn matmul(&mut self, rows: usize, x: Slot, products: &[Product]) {
        let Arena { weights, work, .. } = &mut self.arena;
        let x = x.first(rows * products[0].matrix.shape.columns);
        let place = |i: usize| {
            let product: &Product = &products[i];
            product.out.first(rows * product.matrix.shape.rows)
        };
        let view = |i: usize, out| Self::output(weights, &products[i], out);
        let (cpu, precision, pool) = (self.cpu, self.precision, &self.pool);
        match products.len() {
            1 => {
                let [x, panels, a] = disjoint(work, [x, self.panels, place(0)]);
                matmul::multiply(cpu, precision, pool, rows, x, panels, &mut [view(0, a)]);
            }
            2 => {
                let [x, panels, a, b] = disjoint(work, [x, self.panels, place(0), place(1)]);
                matmul::multiply(cpu, precision, pool, rows, x, panels, &mut [view(0, a), view(1, b)]);
            }
            3 => {
                let [x, panels, a, b, c] = disjoint(work, [x, self.panels, place(0), place(1), place(2)]);
                let outputs = &mut [view(0, a), view(1, b), view(2, c)];
                matmul::multiply(cpu, precision, pool, rows, x, panels, outputs);
            }
            n => panic!("a product of one to three matrices, not {n}"),
        }
    }

    fn angles(&mut self, rope: &Rope, batch: &Batch, out: Slot) {
        let Arena { weights, work, .. } = &mut self.arena;
        let frequencies = floats(weights, rope.frequencies);
        let width = 2 * rope.pairs();
        let [out] = disjoint(work, [out.first(batch.rows() * width)]);
        each_row(&self.pool, out, width, 64, |row, out| {
            rope::angles(frequencies, batch.position(row) as u32, rope.scale, out);
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
        let Arena { weights, cache: memory, work } = &mut self.arena;
        let size = batch.rows() * attention.heads.channels();
        let sinks = attention.sinks.map(|slot| floats(weights, slot));
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
