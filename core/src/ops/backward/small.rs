//! Products of small float32 matrices that lie row by row, such as those of one head, or of few rows.

use crate::cpu::Cpu;
use crate::ops::crew::Pool;
use crate::ops::share::Shared;
use crate::ops::vector::{Kernel, Vector, launch, unroll};

/// Columns of results are whole vectors of every kind.
pub(super) const MULTIPLE: usize = 32;

/// The left operand: its element of row `i` and step `k` stands at `i * row + k * step`.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// All elements.
    pub x: &'a [f32],
    /// From one row to the next.
    pub row: usize,
    /// From one step to the next.
    pub step: usize,
}

/// Rows and vectors of the result that registers hold beside operands.
const HELD: usize = 4;

/// Rows and columns of the result that are a task.
const TASK: [usize; 2] = [64, 512];

/// `out += a * b` of `[rows, columns, steps]`, on all threads; `b` and `out` are whole rows.
pub fn add_product<P: Pool>(
    cpu: Cpu,
    pool: &P,
    [rows, columns, steps]: [usize; 3],
    a: Left,
    b: &[f32],
    out: &mut [f32],
) {
    assert!(b.len() == steps * columns && out.len() == rows * columns, "whole rows");
    let out = Shared::new(out);
    let across = columns.div_ceil(TASK[1]);
    pool.run(rows.div_ceil(TASK[0]) * across, &|task| {
        let [row, column] = [task / across * TASK[0], task % across * TASK[1]];
        let size = [TASK[0].min(rows - row), TASK[1].min(columns - column), steps];
        launch(cpu, Task { row, column, size, a, b, out, columns });
    });
}

/// A part of a result.
struct Task<'a> {
    row: usize,
    column: usize,
    size: [usize; 3],
    a: Left<'a>,
    b: &'a [f32],
    out: Shared<'a, f32>,
    columns: usize,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Task { row, column, size: [rows, columns, steps], a, b, out, columns: all } = self;
        if rows == 0 || columns == 0 || steps == 0 {
            return;
        }
        let a = Left { x: &a.x[row * a.row..], ..a };
        let (b, at) = (&b[column..], row * all + column);
        let out = out.narrow(at, (rows - 1) * all + columns);
        let whole = columns / MULTIPLE * MULTIPLE;
        // SAFETY: launched with a proven vector; these rows and columns are this task's alone.
        unsafe {
            if whole > 0 {
                multiply::<V>([rows, whole, steps], a, (b, all), (&out, all), true);
            }
            for row in 0..rows {
                for column in whole..columns {
                    let mut sum = 0.0;
                    for step in 0..steps {
                        sum += a.x[row * a.row + step * a.step] * b[step * all + column];
                    }
                    out.part(row * all + column, 1)[0] += sum;
                }
            }
        }
    }
}

/// `out = a * b`, or added to it, of `[rows, columns, steps]`; `b` and `out` come with the floats of a row.
///
/// # Safety
/// The processor must have `V`'s instruction set, and these rows and columns of `out` be the caller's alone.
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector>(
    [rows, columns, steps]: [usize; 3],
    a: Left,
    (b, b_row): (&[f32], usize),
    (out, out_row): (&Shared<f32>, usize),
    add: bool,
) {
    if rows == 0 || columns == 0 || steps == 0 {
        return;
    }
    assert!(columns.is_multiple_of(MULTIPLE), "whole vectors");
    assert!((rows - 1) * a.row + (steps - 1) * a.step < a.x.len(), "the left operand is too short");
    assert!((steps - 1) * b_row + columns <= b.len(), "the right operand is too short");
    let whole = rows / HELD * HELD;
    for column in (0..columns).step_by(2 * V::LANES) {
        // SAFETY: by the assertions, all rows, columns and steps lie within the slices.
        unsafe {
            let b = b.as_ptr().add(column);
            for row in (0..whole).step_by(HELD) {
                let a = (a.x.as_ptr().add(row * a.row), a.row, a.step);
                tile::<V, HELD>(steps, a, (b, b_row), (out, row * out_row + column, out_row), add);
            }
            for row in whole..rows {
                let a = (a.x.as_ptr().add(row * a.row), a.row, a.step);
                tile::<V, 1>(steps, a, (b, b_row), (out, row * out_row + column, out_row), add);
            }
        }
    }
}

/// `N` rows of two vectors.
#[inline(always)]
unsafe fn tile<V: Vector, const N: usize>(
    steps: usize,
    (a, row, step): (*const f32, usize, usize),
    (b, b_row): (*const f32, usize),
    (out, first, out_row): (&Shared<f32>, usize, usize),
    add: bool,
) {
    // SAFETY: the caller's pointers are valid for `N` rows and `steps` steps of two vectors; `part` checks its bounds.
    unsafe {
        let mut to = [core::ptr::null_mut::<f32>(); N];
        unroll!(4: n < N, { to[n] = out.part(first + n * out_row, 2 * V::LANES).as_mut_ptr(); });
        let mut sums = [[V::splat(0.0); 2]; N];
        if add {
            unroll!(4: n < N, { sums[n] = [V::load(to[n]), V::load(to[n].add(V::LANES))]; });
        }
        for at in 0..steps {
            let x = [V::load(b.add(at * b_row)), V::load(b.add(at * b_row + V::LANES))];
            unroll!(4: n < N, {
                let factor = V::splat(*a.add(n * row + at * step));
                sums[n][0] = x[0].mul_add(factor, sums[n][0]);
                sums[n][1] = x[1].mul_add(factor, sums[n][1]);
            });
        }
        unroll!(4: n < N, {
            sums[n][0].store(to[n]);
            sums[n][1].store(to[n].add(V::LANES));
        });
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::ops::backward::tests::noise;
    use crate::ops::crew::Serial;
    use std::vec;

    #[test]
    fn small_products_match_their_definition_on_every_level() {
        for cpu in Cpu::detect().variants() {
            for size @ [rows, columns, steps] in
                [[1, 1, 1], [8, 70, 5], [70, 33, 8], [5, 1100, 3], [3, 32, 0]]
            {
                let (x, b) = (noise(1, rows * steps), noise(2, steps * columns));
                for (row, step) in [(steps, 1), (1, rows)] {
                    let mut out = vec![1.0; rows * columns];
                    add_product(cpu, &Serial, size, Left { x: &x, row, step }, &b, &mut out);
                    for (at, found) in out.iter().enumerate() {
                        let (i, j) = (at / columns, at % columns);
                        let product =
                            |k: usize| f64::from(x[i * row + k * step]) * f64::from(b[k * columns + j]);
                        let wanted = 1.0 + (0..steps).map(product).sum::<f64>();
                        assert!((f64::from(*found) - wanted).abs() < 1e-4, "{size:?}: {found}, not {wanted}");
                    }
                }
            }
        }
    }
}
