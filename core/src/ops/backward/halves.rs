//! The products of training in bfloat16: operands rounded, sums in float32. Of a matrix that does not lie as a product
//! reads it, a tile is made, meets all rows, and is forgotten; the matrix never stands whole twice.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::cpu::Cpu;
use crate::layouts::panels::{Form, Panels, Taken};
use crate::layouts::wide::{Wide, pair};
use crate::layouts::{BFLOAT16, Layout, Precision, Shape, Sink, TILE_ROWS};
use crate::ops::crew::Pool;
use crate::ops::matmul::{Input, prepare};
use crate::ops::share::{Shared, each_row};

/// Rows of a gradient that are made at once.
const BLOCK: usize = 512;
/// Words of a turned tile that a tile fills.
const PIECE: usize = TILE_ROWS / 2 * TILE_ROWS;
/// Products of one input.
const PARTS: usize = 2;

/// Whether this processor multiplies in bfloat16. Others do it in float32.
pub fn exist(cpu: Cpu) -> bool {
    BFLOAT16.form(Precision::Fast, cpu) == Form::Bf16
}

/// Numbers of a matrix.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// In tiles of a layout that is not quantized.
    Tiles(Wide, &'a [u8]),
    /// Row by row.
    Rows(&'a [f32]),
}

/// A matrix as a product takes it.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// As it is stored.
    pub shape: Shape,
    /// What it holds.
    pub numbers: Numbers<'a>,
    /// Whether rows are its columns: the product is `x * W`, and otherwise `x * W^T`.
    pub turned: bool,
}

/// One product of an input.
#[derive(Debug)]
pub struct Part<'a> {
    /// By which.
    pub matrix: Matrix<'a>,
    /// Added to every row.
    pub bias: Option<&'a [f32]>,
    /// Rows of the product.
    pub out: &'a mut [f32],
    /// Whether to add to them.
    pub add: bool,
}

impl<'a> Matrix<'a> {
    /// Of the product.
    fn taken(&self) -> Shape {
        let Shape { rows, columns } = self.shape;
        if self.turned { Shape { rows: columns, columns: rows } } else { self.shape }
    }

    /// A tile of the product's, where it lies so.
    fn lying(&self, number: usize) -> Option<&'a [u8]> {
        let bytes = BFLOAT16.tile_bytes(self.shape.columns);
        match (self.numbers, self.turned) {
            (Numbers::Tiles(Wide::Bf16, tiles), false) => Some(&tiles[number * bytes..][..bytes]),
            _ => None,
        }
    }

    /// Makes it.
    fn make(&self, number: usize, out: &mut [u32]) {
        let Shape { rows, columns } = self.shape;
        match (self.numbers, self.turned) {
            (Numbers::Tiles(layout, tiles), false) => {
                let bytes = layout.tile_bytes(columns);
                layout.halve(columns, &tiles[number * bytes..][..bytes], out);
            }
            (Numbers::Tiles(layout, tiles), true) => {
                let tiles = tiles.chunks_exact(layout.tile_bytes(columns));
                let parts = out.chunks_mut(PIECE).zip(tiles);
                parts.for_each(|(out, tile)| layout.turn(columns, tile, number, out));
            }
            (Numbers::Rows(x), true) => turned_rows(x, self.shape, number, out),
            (Numbers::Rows(x), false) => {
                let first = number * TILE_ROWS;
                let count = TILE_ROWS.min(rows - first);
                let value = |row: usize, column: usize| match row < count && column < columns {
                    true => x[(first + row) * columns + column],
                    false => 0.0,
                };
                for (word, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    let [low, high] =
                        [2 * word, 2 * word + 1].map(|column| core::array::from_fn(|row| value(row, column)));
                    pair(&low, &high, out);
                }
            }
        }
    }
}

/// Columns of rows from `32 * number` on: pairs of rows in words.
fn turned_rows(x: &[f32], Shape { rows, columns }: Shape, number: usize, out: &mut [u32]) {
    let lanes = |row: usize| -> [f32; TILE_ROWS] {
        let row = if row < rows { &x[row * columns..][..columns] } else { &[] };
        let row = row.get(number * TILE_ROWS..).unwrap_or(&[]);
        let whole = row.first_chunk().copied();
        whole.unwrap_or_else(|| core::array::from_fn(|at| row.get(at).copied().unwrap_or(0.0)))
    };
    for (word, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        pair(&lanes(2 * word), &lanes(2 * word + 1), out);
    }
}

fn tile_words(columns: usize) -> usize {
    BFLOAT16.tile_bytes(columns) / 4
}

/// Scratch floats of [`multiply`], for so many columns of the input, rows of it, and threads.
pub fn floats(columns: usize, rows: usize, threads: usize) -> usize {
    Form::Bf16.memory_words(columns, rows) + threads * tile_words(columns)
}

/// All products of `x`.
pub fn multiply<P: Pool>(cpu: Cpu, pool: &P, x: &[f32], parts: &mut [Part], scratch: &mut [f32]) {
    assert!(exist(cpu) && !parts.is_empty(), "there is something to multiply with");
    let columns = parts[0].matrix.taken().columns;
    let tokens = x.len() / columns;
    let scratch: &mut [u32] = bytemuck::cast_slice_mut(scratch);
    let (memory, rest) = scratch.split_at_mut(Form::Bf16.memory_words(columns, tokens));
    let input = Input { x, columns, order: None };
    prepare(cpu, pool, Form::Bf16, &input, Taken::PLAIN, &[[0, 0, tokens as u32]], memory);
    let panels = Panels::new(Form::Bf16, cpu, columns, tokens, memory);
    let mut goals: heapless::Vec<(Matrix, Sink), PARTS> = heapless::Vec::new();
    for Part { matrix, bias, out, add } in parts {
        let Shape { rows, columns: taken } = matrix.taken();
        assert!(taken == columns && out.len() == tokens * rows, "rows of products");
        let sink = Sink { out: Shared::new(out), stride: rows, rows, bias: *bias, add: *add };
        assert!(goals.push((*matrix, sink)).is_ok(), "as many products as there may be");
    }
    let tiles_of = |matrix: &Matrix| matrix.taken().tiles();
    let total = goals.iter().map(|(matrix, _)| tiles_of(matrix)).sum();
    let (places, words) = (pool.threads().min(total), tile_words(columns));
    let (next, rest) = (AtomicUsize::new(0), Shared::new(&mut rest[..places * words]));
    pool.run(places, &|place| {
        // SAFETY: every task has a place of its own.
        let made = unsafe { rest.part(place * words, words) };
        loop {
            let mut number = next.fetch_add(1, Relaxed);
            let goal = goals.iter().find(|(matrix, _)| {
                let is_in = number < tiles_of(matrix);
                number -= if is_in { 0 } else { tiles_of(matrix) };
                is_in
            });
            let Some((matrix, sink)) = goal else { return };
            let tile = matrix.lying(number).unwrap_or_else(|| {
                matrix.make(number, made);
                bytemuck::cast_slice(made)
            });
            // SAFETY: tiles have rows of their own, and the counter gives each to one task.
            unsafe { BFLOAT16.multiply(cpu, columns, tile, &panels, sink, number * TILE_ROWS) };
        }
    });
}

/// `dw += dy^T * x`: `dw` has a row for every output, `columns` values each.
pub fn cross<P: Pool>(
    cpu: Cpu,
    pool: &P,
    dy: &[f32],
    x: &[f32],
    columns: usize,
    dw: &mut [f32],
    scratch: &mut [f32],
) {
    let (tokens, outputs) = (x.len() / columns, dw.len() / columns);
    assert!(x.len() == tokens * columns && dy.len() == tokens * outputs, "gradients of as many rows");
    let shape = Shape { rows: tokens, columns };
    let matrix = Matrix { shape, numbers: Numbers::Rows(x), turned: true };
    for (number, dw) in dw.chunks_mut(BLOCK * columns).enumerate() {
        let (part, scratch) = scratch.split_at_mut(dw.len() / columns * tokens);
        each_row(pool, part, tokens, 32, |output, part| {
            let column = dy[number * BLOCK + output..].iter().step_by(outputs);
            part.iter_mut().zip(column).for_each(|(out, value)| *out = *value);
        });
        multiply(cpu, pool, part, &mut [Part { matrix, bias: None, out: dw, add: true }], scratch);
    }
}

/// Scratch floats of [`cross`], for so many outputs, rows and threads.
pub fn cross_floats(outputs: usize, rows: usize, threads: usize) -> usize {
    let block = BLOCK.min(outputs);
    block * rows + floats(rows, block, threads)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::layouts::{FLOAT16, FLOAT32};
    use crate::ops::backward::tests::noise;
    use crate::ops::crew::Serial;
    use std::vec;
    use std::vec::Vec;

    fn rounded(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| half::bf16::from_f32(*x).to_f64()).collect()
    }

    /// The definition: operands are rounded, sums are not.
    fn product(x: &[f32], w: &[f64], shape: Shape, turned: bool) -> Vec<f64> {
        let Shape { rows, columns } = shape;
        let x = rounded(x);
        let (taken, made) = if turned { (rows, columns) } else { (columns, rows) };
        let at =
            |out: usize, step: usize| if turned { w[step * columns + out] } else { w[out * columns + step] };
        let row = |x: &[f64]| {
            (0..made).map(|out| x.iter().enumerate().map(|(i, x)| x * at(out, i)).sum()).collect()
        };
        x.chunks_exact(taken).flat_map(|x| -> Vec<f64> { row(x) }).collect()
    }

    fn close(what: &str, found: &[f32], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len(), "{what}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((f64::from(*found) - wanted).abs() < 1e-4, "{what}: {found}, not {wanted}");
        }
    }

    #[test]
    fn products_are_those_of_rounded_operands() {
        let cpu = Cpu::detect();
        if !exist(cpu) {
            std::println!("skipped: this processor has no products in bfloat16");
            return;
        }
        let wides: [(&dyn Layout, Option<Wide>); 4] = [
            (FLOAT32, None),
            (FLOAT32, Some(Wide::F32)),
            (BFLOAT16, Some(Wide::Bf16)),
            (FLOAT16, Some(Wide::F16)),
        ];
        for (rows, columns, tokens) in [(1, 1, 1), (33, 40, 5), (130, 31, 17), (64, 96, 30)] {
            let shape = Shape { rows, columns };
            let weights = noise(3, rows * columns);
            for (layout, wide) in wides {
                let bytes = layout.tile_bytes(columns);
                let mut tiles = vec![0u8; shape.tiles() * bytes];
                let parts = weights.chunks(TILE_ROWS * columns).zip(tiles.chunks_exact_mut(bytes));
                parts.for_each(|(rows, tile)| layout.pack(columns, rows, tile).expect("finite"));
                let stored: Vec<f32> = (0..rows)
                    .flat_map(|row| {
                        let mut out = vec![0.0; columns];
                        layout.unpack(
                            columns,
                            &tiles[row / TILE_ROWS * bytes..][..bytes],
                            row % 32,
                            &mut out,
                        );
                        out
                    })
                    .collect();
                let numbers = wide.map_or(Numbers::Rows(&weights), |wide| Numbers::Tiles(wide, &tiles));
                for turned in [false, true] {
                    let matrix = Matrix { shape, numbers, turned };
                    let taken = matrix.taken();
                    let x = noise(1, tokens * taken.columns);
                    let mut out = [0.5, 0.25].map(|x| vec![x; tokens * taken.rows]);
                    let mut scratch = vec![f32::NAN; floats(taken.columns, tokens, 1)];
                    let bias = noise(5, taken.rows);
                    let [first, second] = &mut out;
                    let mut parts = [
                        Part { matrix, bias: None, out: first, add: true },
                        Part { matrix, bias: Some(&bias), out: second, add: false },
                    ];
                    multiply(cpu, &Serial, &x, &mut parts, &mut scratch);
                    let wanted = product(&x, &rounded(&stored), shape, turned);
                    let what = std::format!("{} {shape:?} {turned}", layout.name());
                    close(&what, &out[0], &wanted.iter().map(|x| x + 0.5).collect::<Vec<_>>());
                    let bias = bias.iter().cycle().map(|x| f64::from(*x));
                    close(
                        &what,
                        &out[1],
                        &wanted.iter().zip(bias).map(|(x, bias)| x + bias).collect::<Vec<_>>(),
                    );
                }
            }
        }
    }

    #[test]
    fn gradients_of_matrices_are_those_of_rounded_operands() {
        let cpu = Cpu::detect();
        if !exist(cpu) {
            std::println!("skipped: this processor has no products in bfloat16");
            return;
        }
        for (outputs, columns, tokens) in [(1, 1, 1), (33, 40, 5), (700, 31, 18), (64, 96, 30)] {
            let (dy, x) = (noise(1, tokens * outputs), noise(2, tokens * columns));
            let mut dw = vec![1.0; outputs * columns];
            let mut scratch = vec![f32::NAN; cross_floats(outputs, tokens, 1)];
            cross(cpu, &Serial, &dy, &x, columns, &mut dw, &mut scratch);
            let turned: Vec<f32> =
                (0..outputs * tokens).map(|i| dy[i % tokens * outputs + i / tokens]).collect();
            let wanted = product(&turned, &rounded(&x), Shape { rows: tokens, columns }, true);
            close("cross", &dw, &wanted.iter().map(|x| x + 1.0).collect::<Vec<_>>());
        }
    }
}
