//! The linear algebra of calibration over the kernels of `core`: products of large matrices, sums of squares of inputs,
//! triangular factors. Everything is float32 and the same on any number of threads.
//!
//! A matrix here is a slice of rows. The one product that everything is made of is `a * b^T`: rows of both are read
//! along.

use bantam_core::Cpu;
use bantam_core::layouts::panels::Taken;
use bantam_core::layouts::{FLOAT32, Precision, Shape, TILE_ROWS};
use bantam_core::ops::matmul::{Input, Output, multiply, panel_bytes};
use bantam_core::ops::share::each_row;
use bantam_model::pool::Threads;

/// Columns that are factored at once: small enough for the nearest cache.
const BLOCK: usize = 64;
/// Rows of `a` that are prepared at once.
const ROWS: usize = 512;

/// Who computes.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// With which instructions.
    pub cpu: Cpu,
    /// On which threads.
    pub pool: &'a Threads,
}

/// A matrix of one width, packed for products.
#[derive(Debug)]
pub struct Packed {
    shape: Shape,
    tiles: Vec<f32>,
}

impl Work<'_> {
    /// Packs a matrix; `row` fills in one of its rows.
    pub fn pack(&self, rows: usize, columns: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> Packed {
        let shape = Shape { rows, columns };
        let tile = FLOAT32.tile_bytes(columns) / 4;
        let mut tiles = vec![0.0f32; shape.tiles() * tile];
        each_row(self.pool, &mut tiles, tile, 1, |number, out| {
            let first = number * TILE_ROWS;
            let mut values = vec![0.0; TILE_ROWS.min(rows - first) * columns];
            values.chunks_exact_mut(columns).enumerate().for_each(|(at, out)| row(first + at, out));
            FLOAT32
                .pack(columns, &values, bytemuck::cast_slice_mut(out))
                .expect("numbers were finite before");
        });
        Packed { shape, tiles }
    }

    /// `out = a * b^T`, or added to it.
    fn product(&self, a: &[f32], b: &Packed, out: &mut [f32], add: bool) {
        let Shape { rows, columns } = b.shape;
        let form = FLOAT32.form(Precision::Exact, self.cpu);
        let mut panels = vec![0.0; panel_bytes(form, columns, ROWS.min(a.len() / columns)) / 4];
        for (x, out) in a.chunks(ROWS * columns).zip(out.chunks_mut(ROWS * rows)) {
            let tiles = bytemuck::cast_slice(&b.tiles);
            let taken = Taken::PLAIN;
            let output = Output { layout: FLOAT32, shape: b.shape, tiles, taken, bias: None, out, add };
            let segments = [[0, 0, (x.len() / columns) as u32]];
            let input = Input { x, columns, order: None };
            multiply(self.cpu, Precision::Exact, self.pool, input, &segments, &mut panels, &mut [output]);
        }
    }

    /// `a * b^T` of rows of `columns` values each.
    pub fn times(&self, a: &[f32], b: &[f32], columns: usize) -> Vec<f32> {
        let rows = b.len() / columns;
        let packed = self.pack(rows, columns, |at, out| out.copy_from_slice(&b[at * columns..][..columns]));
        self.times_packed(a, &packed)
    }

    /// `a * b^T`, where `b` is packed already: worth it where it is met more than once.
    pub fn times_packed(&self, a: &[f32], b: &Packed) -> Vec<f32> {
        let mut out = vec![0.0; a.len() / b.shape.columns * b.shape.rows];
        self.product(a, b, &mut out, false);
        out
    }

    /// `a` times the rows `first..end` of `b`, of which only columns from `end` on are wanted.
    pub fn times_columns(
        &self,
        a: &[f32],
        a_width: usize,
        b: &[f32],
        b_width: usize,
        first: usize,
        end: usize,
    ) -> Vec<f32> {
        let rows = b_width - end;
        let packed = self.pack(rows, a_width, |column, out| {
            let column = b[first * b_width + end + column..].iter().step_by(b_width);
            out.iter_mut().zip(column).for_each(|(out, value)| *out = *value);
        });
        let mut out = vec![0.0; a.len() / a_width * rows];
        self.product(a, &packed, &mut out, false);
        out
    }

    /// Adds `x^T * y` to `out`: `x` and `y` have as many rows.
    pub fn add_cross(&self, x: &[f32], x_width: usize, y: &[f32], y_width: usize, out: &mut [f32]) {
        let count = x.len() / x_width;
        let mut turned = vec![0.0; x.len()];
        each_row(self.pool, &mut turned, count, 8, |column, out| {
            out.iter_mut().zip(x[column..].iter().step_by(x_width)).for_each(|(out, value)| *out = *value);
        });
        let packed = self.pack(y_width, count, |column, out| {
            out.iter_mut().zip(y[column..].iter().step_by(y_width)).for_each(|(out, value)| *out = *value);
        });
        self.product(&turned, &packed, out, true);
    }

    /// The lower triangular `l` with `l * l^T` equal to the matrix; `None` where it is not positive definite.
    pub fn cholesky(&self, matrix: &[f32], width: usize) -> Option<Vec<f32>> {
        let mut l = vec![0.0; width * width];
        for first in (0..width).step_by(BLOCK) {
            let block = BLOCK.min(width - first);
            // Columns of the block, from its first row down, less what earlier columns make of them.
            let rows = width - first;
            let mut panel: Vec<f32> =
                (first..width).flat_map(|row| &matrix[row * width + first..][..block]).copied().collect();
            if first > 0 {
                let left: Vec<f32> =
                    (first..width).flat_map(|row| &l[row * width..][..first]).copied().collect();
                let mut sum = vec![0.0; rows * block];
                let top =
                    self.pack(block, first, |at, out| out.copy_from_slice(&left[at * first..][..first]));
                self.product(&left, &top, &mut sum, false);
                panel.iter_mut().zip(&sum).for_each(|(value, sum)| *value -= sum);
            }
            let (head, rest) = panel.split_at_mut(block * block);
            factor(head, block)?;
            let head = &*head;
            each_row(self.pool, rest, block, 64, |_, row| solve_row(head, block, row));
            for (at, row) in panel.chunks_exact(block).enumerate() {
                let kept = block.min(at + 1);
                l[(first + at) * width + first..][..kept].copy_from_slice(&row[..kept]);
            }
        }
        Some(l)
    }

    /// The inverse of a lower triangular matrix.
    pub fn invert_lower(&self, l: &[f32], width: usize) -> Vec<f32> {
        // Columns of the inverse stand as rows while it grows, since products read along them.
        let mut turned = vec![0.0; width * width];
        for first in (0..width).step_by(BLOCK) {
            let block = BLOCK.min(width - first);
            let mut head: Vec<f32> =
                (first..first + block).flat_map(|row| &l[row * width + first..][..block]).copied().collect();
            invert_block(&mut head, block);
            let mut sums = vec![0.0; block * first];
            if first > 0 {
                let left: Vec<f32> =
                    (first..first + block).flat_map(|row| &l[row * width..][..first]).copied().collect();
                let above =
                    self.pack(first, first, |at, out| out.copy_from_slice(&turned[at * width..][..first]));
                self.product(&left, &above, &mut sums, false);
            }
            each_row(self.pool, &mut turned, width, 64, |column, out| {
                for row in 0..block {
                    let inverse = &head[row * block..][..=row];
                    out[first + row] = match column.checked_sub(first) {
                        None => -(0..=row).map(|k| inverse[k] * sums[k * first + column]).sum::<f32>(),
                        Some(at) if at <= row => inverse[at],
                        Some(_) => 0.0,
                    };
                }
            });
        }
        turned_over(&turned, width)
    }
}

/// Cholesky's factor of a small matrix, in place of its lower triangle; sums are float64.
fn factor(a: &mut [f32], width: usize) -> Option<()> {
    for column in 0..width {
        for row in column..width {
            let sum: f64 =
                (0..column).map(|k| f64::from(a[row * width + k]) * f64::from(a[column * width + k])).sum();
            let value = f64::from(a[row * width + column]) - sum;
            a[row * width + column] = if row > column {
                (value / f64::from(a[column * width + column])) as f32
            } else if value > 0.0 {
                value.sqrt() as f32
            } else {
                return None;
            };
        }
    }
    Some(())
}

/// `row * l^-T` for the factor of a block.
fn solve_row(l: &[f32], width: usize, row: &mut [f32]) {
    for column in 0..width {
        let known = &l[column * width..][..column];
        let sum: f32 = known.iter().zip(&*row).map(|(l, x)| l * x).sum();
        row[column] = (row[column] - sum) / l[column * width + column];
    }
}

/// The inverse of a small lower triangular matrix, in its place.
fn invert_block(l: &mut [f32], width: usize) {
    let mut out = vec![0.0f32; width * width];
    for column in 0..width {
        for row in column..width {
            let sum: f32 = (column..row).map(|k| l[row * width + k] * out[k * width + column]).sum();
            let one = if row == column { 1.0 } else { 0.0 };
            out[row * width + column] = (one - sum) / l[row * width + row];
        }
    }
    l.copy_from_slice(&out);
}

/// Rows as columns.
pub fn turned_over(matrix: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; matrix.len()];
    for (row, values) in matrix.chunks_exact(width).enumerate() {
        values.iter().enumerate().for_each(|(column, value)| out[column * width + row] = *value);
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::noise::noise;

    #[test]
    fn factors_multiply_to_the_matrix_and_inverses_to_one_on_any_threads() {
        for width in [1, 63, 64, 65, 200] {
            let x = noise(width as u64, 3 * width * width, 1);
            let mut found = Vec::new();
            for threads in [1, 3] {
                let pool = Threads::start(threads).unwrap();
                let work = Work { cpu: Cpu::detect(), pool: &pool };
                let mut h = vec![0.0; width * width];
                work.add_cross(&x, width, &x, width, &mut h);
                (0..width).for_each(|at| h[at * width + at] += 1.0);
                let l = work.cholesky(&h, width).unwrap();
                let back = work.times(&l, &l, width);
                let inverse = work.invert_lower(&l, width);
                let one = work.times(&l, &turned_over(&inverse, width), width);
                for row in 0..width {
                    for column in 0..width {
                        let at = row * width + column;
                        let sum: f64 = (0..3 * width)
                            .map(|k| f64::from(x[k * width + row] * x[k * width + column]))
                            .sum();
                        let wanted = sum + if row == column { 1.0 } else { 0.0 };
                        let close = |found: f32, wanted: f64| {
                            (f64::from(found) - wanted).abs() < 1e-4 * (1.0 + width as f64)
                        };
                        assert!(close(h[at], wanted) && close(back[at], wanted), "{width}: {row}, {column}");
                        let wanted = if row == column { 1.0 } else { 0.0 };
                        assert!((one[at] - wanted).abs() < 1e-3, "{width}: {row}, {column}: {}", one[at]);
                    }
                }
                found.push((h, l, inverse));
            }
            assert!(found[0] == found[1], "{width}: threads change nothing");
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        let pool = Threads::start(1).unwrap();
        let work = Work { cpu: Cpu::detect(), pool: &pool };
        assert_eq!(work.cholesky(&[1.0, 2.0, 2.0, 1.0], 2), None);
    }
}
