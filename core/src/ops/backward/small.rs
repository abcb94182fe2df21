//! Products of small float32 matrices that lie row by row, such as those of one head.

use crate::ops::vector::{Vector, unroll};

/// Columns of results are whole vectors of every kind.
pub(super) const MULTIPLE: usize = 32;

/// The left operand: its element of row `i` and step `k` stands at `i * row + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) x: &'a [f32],
    pub(super) row: usize,
    pub(super) step: usize,
}

/// Rows and vectors of the result that registers hold beside operands.
const HELD: usize = 4;

/// `out = a * b`, or added to it, of `[rows, columns, steps]`; `b` and `out` come with the floats of a row.
///
/// # Safety
/// The processor must have `V`'s instruction set.
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector>(
    [rows, columns, steps]: [usize; 3],
    a: Left,
    (b, b_row): (&[f32], usize),
    (out, out_row): (&mut [f32], usize),
    add: bool,
) {
    if rows == 0 || columns == 0 || steps == 0 {
        return;
    }
    assert!(columns.is_multiple_of(MULTIPLE), "whole vectors");
    assert!((rows - 1) * a.row + (steps - 1) * a.step < a.x.len(), "the left operand is too short");
    assert!((steps - 1) * b_row + columns <= b.len(), "the right operand is too short");
    assert!((rows - 1) * out_row + columns <= out.len(), "the result is too short");
    let whole = rows / HELD * HELD;
    for column in (0..columns).step_by(2 * V::LANES) {
        // SAFETY: by the assertions, all rows, columns and steps lie within the slices.
        unsafe {
            let (b, out) = (b.as_ptr().add(column), out.as_mut_ptr().add(column));
            for row in (0..whole).step_by(HELD) {
                let (a, out) = ((a.x.as_ptr().add(row * a.row), a.row, a.step), out.add(row * out_row));
                tile::<V, HELD>(steps, a, (b, b_row), (out, out_row), add);
            }
            for row in whole..rows {
                let (a, out) = ((a.x.as_ptr().add(row * a.row), a.row, a.step), out.add(row * out_row));
                tile::<V, 1>(steps, a, (b, b_row), (out, out_row), add);
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
    (out, out_row): (*mut f32, usize),
    add: bool,
) {
    // SAFETY: the caller's pointers are valid for `N` rows and `steps` steps of two vectors.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; N];
        if add {
            unroll!(4: n < N, {
                sums[n] = [V::load(out.add(n * out_row)), V::load(out.add(n * out_row + V::LANES))];
            });
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
            sums[n][0].store(out.add(n * out_row));
            sums[n][1].store(out.add(n * out_row + V::LANES));
        });
    }
}
