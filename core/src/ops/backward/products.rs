//! Products backwards: of `y = x * W^T`, the gradients `dx = dy * W` and `dW = dy^T * x`. Both are products again, so
//! the forward kernel makes them; what is here turns one operand over into float32 tiles for it, a block at a time.
//!
//! A tile holds a word of each of its 32 rows side by side. A row of `W` therefore lies, cut into pieces of 32, as it
//! is in the tiles of the turned matrix: turning over is copying.

use super::halves::Lying;
use crate::cpu::Cpu;
use crate::layouts::panels::Taken;
use crate::layouts::{FLOAT32, Layout, Precision, Shape, TILE_ROWS};
use crate::ops::crew::Pool;
use crate::ops::matmul::{IN_ORDER, Input, Output, multiply};
use crate::ops::share::{Shared, each_row};

/// Rows of a matrix that are turned over at once.
const BLOCK: usize = 128;
/// Rows of activations that are turned over at once.
const ROWS: usize = 512;

/// A matrix whose rows are read: one in a layout, or plain rows one after another.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// In tiles.
    Tiles {
        /// How it is stored.
        layout: &'static dyn Layout,
        /// Its tiles.
        tiles: &'a [u8],
        /// How it takes its input.
        taken: Taken<'a>,
    },
    /// As it is.
    Plain(&'a [f32]),
    /// In a file.
    Lying(Lying<'a>),
}

impl Rows<'_> {
    /// Floats that [`read`](Self::read) needs for a matrix of so many columns.
    fn room(&self, columns: usize) -> usize {
        match self {
            Rows::Tiles { taken, .. } if !is_plain(taken) => (1 + taken.times) * columns,
            _ => columns,
        }
    }

    /// What a row does to its input, in the input's order, into the first `columns` of `out`.
    pub fn read(&self, row: usize, columns: usize, out: &mut [f32]) {
        let (tiles, layout, taken) = match self {
            Rows::Plain(rows) => return out[..columns].copy_from_slice(&rows[row * columns..][..columns]),
            Rows::Lying(rows) => return rows.read(row, &mut out[..columns]),
            Rows::Tiles { layout, tiles, taken } => (tiles, layout, taken),
        };
        let width = taken.times * columns;
        let bytes = layout.tile_bytes(width);
        let tile = &tiles[row / TILE_ROWS * bytes..][..bytes];
        if is_plain(taken) {
            return layout.unpack(columns, tile, row % TILE_ROWS, &mut out[..columns]);
        }
        let (out, held) = out.split_at_mut(columns);
        layout.unpack(width, tile, row % TILE_ROWS, &mut held[..width]);
        out.fill(0.0);
        let order = taken.order.filter(|order| order[0] != IN_ORDER);
        for time in held[..width].chunks_exact(columns) {
            for (column, x) in time.iter().enumerate() {
                let input = order.map_or(column, |order| order[column] as usize);
                out[input] += x * taken.factors.map_or(1.0, |factors| factors[input]);
            }
        }
    }
}

fn is_plain(taken: &Taken) -> bool {
    taken.order.is_none() && taken.factors.is_none() && taken.times == 1
}

/// Floats of float32 tiles.
pub fn tile_floats(shape: Shape) -> usize {
    shape.tiles() * TILE_ROWS * shape.columns
}

/// Packs plain rows, times a factor, into float32 tiles.
pub fn pack(rows: &[f32], columns: usize, factor: f32, tiles: &mut [f32]) {
    tiles.fill(0.0);
    for (row, values) in rows.chunks_exact(columns).enumerate() {
        let tile = &mut tiles[row / TILE_ROWS * TILE_ROWS * columns..];
        for (column, value) in values.iter().enumerate() {
            tile[column * TILE_ROWS + row % TILE_ROWS] = value * factor;
        }
    }
}

/// Scratch floats of [`transposed`].
pub fn transposed_floats(matrix: &Rows, shape: Shape, rows: usize) -> usize {
    let turned = Shape { rows: shape.columns, columns: BLOCK };
    tile_floats(turned) + BLOCK * matrix.room(shape.columns) + 2 * BLOCK * rows
}

/// `dx = dy * W`, or added to it. No more of the matrix than a block of rows is ever there in float32.
#[allow(clippy::too_many_arguments, reason = "who computes, the operands, and the memory")]
pub fn transposed<P: Pool>(
    cpu: Cpu,
    pool: &P,
    matrix: &Rows,
    shape: Shape,
    dy: &[f32],
    dx: &mut [f32],
    add: bool,
    scratch: &mut [f32],
) {
    let Shape { rows, columns } = shape;
    let tokens = dx.len() / columns;
    assert!(dx.len() == tokens * columns && dy.len() == tokens * rows, "gradients of as many rows");
    let room = matrix.room(columns);
    let (tiles, scratch) = scratch.split_at_mut(tile_floats(Shape { rows: columns, columns: BLOCK }));
    let (read, scratch) = scratch.split_at_mut(BLOCK * room);
    let (part, scratch) = scratch.split_at_mut(BLOCK * tokens);
    for first in (0..rows).step_by(BLOCK) {
        let block = BLOCK.min(rows - first);
        let turned = Shape { rows: columns, columns: block };
        let tiles = &mut tiles[..tile_floats(turned)];
        let shared = Shared::new(tiles);
        each_row(pool, &mut read[..block * room], room, 8, |at, row| {
            matrix.read(first + at, columns, row);
            for (number, piece) in row[..columns].chunks(TILE_ROWS).enumerate() {
                // SAFETY: this word of the tiles is this row's alone.
                let word = unsafe { shared.part((number * block + at) * TILE_ROWS, TILE_ROWS) };
                word[..piece.len()].copy_from_slice(piece);
                word[piece.len()..].fill(0.0);
            }
        });
        let x = &mut part[..tokens * block];
        for (out, dy) in x.chunks_exact_mut(block).zip(dy.chunks_exact(rows)) {
            out.copy_from_slice(&dy[first..first + block]);
        }
        product(cpu, pool, x, turned, tiles, dx, add || first > 0, scratch);
    }
}

/// `out = x * matrix^T`, or added to it, of a float32 matrix in tiles.
#[allow(clippy::too_many_arguments, reason = "who computes, the operands, and the memory")]
pub fn product<P: Pool>(
    cpu: Cpu,
    pool: &P,
    x: &[f32],
    shape: Shape,
    tiles: &[f32],
    out: &mut [f32],
    add: bool,
    panels: &mut [f32],
) {
    let segments = [[0, 0, (x.len() / shape.columns) as u32]];
    let input = Input { x, columns: shape.columns, order: None };
    let tiles = bytemuck::cast_slice(tiles);
    let output = Output { layout: FLOAT32, shape, tiles, taken: Taken::PLAIN, bias: None, out, add };
    multiply(cpu, Precision::Exact, pool, input, &segments, panels, &mut [output]);
}

/// Scratch floats of [`cross`], for so many rows of activations.
pub fn cross_floats(columns: usize, rows: usize) -> usize {
    let rows = rows.min(ROWS);
    tile_floats(Shape { rows: columns, columns: rows }) + 2 * BLOCK * rows
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
    for first in (0..tokens).step_by(ROWS) {
        let rows = ROWS.min(tokens - first);
        let turned = Shape { rows: columns, columns: rows };
        let (tiles, scratch) = scratch.split_at_mut(tile_floats(turned));
        for (at, row) in x[first * columns..][..rows * columns].chunks_exact(columns).enumerate() {
            for (number, piece) in row.chunks(TILE_ROWS).enumerate() {
                let word = &mut tiles[(number * rows + at) * TILE_ROWS..][..TILE_ROWS];
                word[..piece.len()].copy_from_slice(piece);
                word[piece.len()..].fill(0.0);
            }
        }
        let dy = &dy[first * outputs..][..rows * outputs];
        for (number, dw) in dw.chunks_mut(BLOCK * columns).enumerate() {
            let (part, panels) = scratch.split_at_mut(dw.len() / columns * rows);
            for (output, part) in part.chunks_exact_mut(rows).enumerate() {
                let column = dy[number * BLOCK + output..].iter().step_by(outputs);
                part.iter_mut().zip(column).for_each(|(out, value)| *out = *value);
            }
            product(cpu, pool, part, turned, tiles, dw, true, panels);
        }
    }
}

/// `db += ` the sum of the rows of `dy`, in float64: what cancels in it is to vanish.
pub fn sum_rows(dy: &[f32], db: &mut [f32]) {
    let width = db.len();
    for (number, db) in db.chunks_mut(64).enumerate() {
        let mut sums = [0.0f64; 64];
        for row in dy.chunks_exact(width) {
            let row = &row[number * 64..][..db.len()];
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        db.iter_mut().zip(sums).for_each(|(db, sum)| *db += sum as f32);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::layouts::LAYOUTS;
    use crate::ops::backward::tests::noise;
    use crate::ops::crew::Serial;
    use std::vec;

    fn check(cpu: Cpu, matrix: &Rows, shape: Shape, tokens: usize, name: &str) {
        let Shape { rows, columns } = shape;
        let (dy, x) = (noise(1, tokens * rows), noise(2, tokens * columns));
        let mut dx = vec![1.0; tokens * columns];
        let mut scratch = vec![f32::NAN; transposed_floats(matrix, shape, tokens)];
        transposed(cpu, &Serial, matrix, shape, &dy, &mut dx, true, &mut scratch);
        let mut wanted = vec![1.0f64; tokens * columns];
        let mut row = vec![0.0; matrix.room(columns)];
        for output in 0..rows {
            matrix.read(output, columns, &mut row);
            for token in 0..tokens {
                for column in 0..columns {
                    let step = f64::from(dy[token * rows + output]) * f64::from(row[column]);
                    wanted[token * columns + column] += step;
                }
            }
        }
        for (found, wanted) in dx.iter().zip(&wanted) {
            assert!((f64::from(*found) - wanted).abs() < 1e-3, "{name}: {found}, not {wanted}");
        }
        let mut dw = vec![1.0; rows * columns];
        let mut scratch = vec![f32::NAN; cross_floats(columns, tokens)];
        cross(cpu, &Serial, &dy, &x, columns, &mut dw, &mut scratch);
        for (at, found) in dw.iter().enumerate() {
            let step =
                |t: usize| f64::from(dy[t * rows + at / columns]) * f64::from(x[t * columns + at % columns]);
            let wanted = 1.0 + (0..tokens).map(step).sum::<f64>();
            assert!((f64::from(*found) - wanted).abs() < 1e-3, "{name}: {found}, not {wanted}");
        }
    }

    #[test]
    fn gradients_of_products_match_their_definition_on_every_level() {
        for cpu in Cpu::detect().variants() {
            for (rows, columns, tokens) in [(1, 1, 1), (33, 40, 5), (300, 31, 17), (8, 64, 600)] {
                let shape = Shape { rows, columns };
                let weights = noise(3, rows * columns);
                check(cpu, &Rows::Plain(&weights), shape, tokens, cpu.name());
            }
        }
    }

    #[test]
    fn every_layout_is_multiplied_transposed() {
        for &layout in LAYOUTS {
            let shape = Shape { rows: 150, columns: 128 };
            let weights = noise(4, shape.rows * shape.columns);
            let bytes = layout.tile_bytes(shape.columns);
            let mut tiles = vec![0u8; shape.tiles() * bytes];
            let parts = weights.chunks(TILE_ROWS * shape.columns);
            for (rows, tile) in parts.zip(tiles.chunks_exact_mut(bytes)) {
                layout.pack(shape.columns, rows, tile).expect("finite");
            }
            let taken = Taken::PLAIN;
            check(Cpu::detect(), &Rows::Tiles { layout, tiles: &tiles, taken }, shape, 7, layout.name());
        }
    }

    #[test]
    fn orders_factors_and_repetitions_are_undone() {
        let (shape, times) = (Shape { rows: 40, columns: 128 }, 2);
        let weights = noise(5, shape.rows * times * shape.columns);
        let mut tiles = vec![0.0; tile_floats(Shape { columns: times * shape.columns, ..shape })];
        pack(&weights, times * shape.columns, 1.0, &mut tiles);
        let order: std::vec::Vec<u32> = (0..128).map(|i| (i * 5) % 128).collect();
        let factors = noise(6, 128);
        let taken = Taken { order: Some(&order), factors: Some(&factors), times };
        let tiles = bytemuck::cast_slice(&tiles);
        let matrix = Rows::Tiles { layout: FLOAT32, tiles, taken };
        check(Cpu::detect(), &matrix, shape, 9, "taken");
        // What is read row by row is what the forward product does.
        let x = noise(7, 3 * 128);
        let (mut out, mut panels) = (vec![0.0; 3 * 40], vec![0.0; 3 * 256]);
        let output = Output { layout: FLOAT32, shape, tiles, taken, bias: None, out: &mut out, add: false };
        let input = Input { x: &x, columns: 128, order: None };
        let segments = [[0, 0, 3]];
        multiply(Cpu::detect(), Precision::Exact, &Serial, input, &segments, &mut panels, &mut [output]);
        let mut row = vec![0.0; 3 * 128];
        for (at, found) in out.iter().enumerate() {
            matrix.read(at % 40, 128, &mut row);
            let wanted: f32 = row[..128].iter().zip(&x[at / 40 * 128..]).map(|(w, x)| w * x).sum();
            assert!((found - wanted).abs() < 1e-3, "{found}, not {wanted}");
        }
    }
}
