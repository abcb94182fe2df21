//! Products of training, forwards and backwards: of `y = x * W^T`, the gradients `dx = dy * W` and `dW = dy^T * x`. All
//! are products of rows with a matrix, of which tiles are made where it does not lie so.
//!
//! Sums are float32. In bfloat16, operands are rounded where the processor multiplies in it; elsewhere nothing is.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::numbers::{Matrix, Numbers, Rows};
use crate::cpu::Cpu;
use crate::layouts::panels::{Form, Panels, Taken};
use crate::layouts::{BFLOAT16, FLOAT32, Layout, Precision, Shape, Sink, TILE_ROWS};
use crate::ops::crew::Pool;
use crate::ops::matmul::{Input, prepare};
use crate::ops::share::{Shared, each_row};

/// Rows of a gradient that are made at once.
pub const BLOCK: usize = 512;
/// Rows of codes that are numbers at once.
const READ: usize = 256;
/// Products of one input.
const PARTS: usize = 2;

/// What products are made in: bfloat16, if that is asked for and this processor multiplies so, or float32.
pub fn form(cpu: Cpu, halves: bool) -> Form {
    BFLOAT16.form(if halves { Precision::Fast } else { Precision::Exact }, cpu)
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

/// Words of a tile, at most.
fn tile_words(form: Form, columns: usize) -> usize {
    let layout: &dyn Layout = if form == Form::Bf16 { BFLOAT16 } else { FLOAT32 };
    layout.tile_bytes(columns) / 4
}

/// Scratch floats of [`multiply`], for so many columns of the input, rows of it, and threads.
pub fn floats(form: Form, columns: usize, rows: usize, threads: usize) -> usize {
    form.memory_words(columns, rows) + threads * tile_words(form, columns)
}

/// All products of `x`.
pub fn multiply<P: Pool>(
    (cpu, form): (Cpu, Form),
    pool: &P,
    x: &[f32],
    parts: &mut [Part],
    scratch: &mut [f32],
) {
    assert!(!parts.is_empty(), "there is something to multiply with");
    let columns = parts[0].matrix.taken().columns;
    let tokens = x.len() / columns;
    let scratch: &mut [u32] = bytemuck::cast_slice_mut(scratch);
    let (memory, rest) = scratch.split_at_mut(form.memory_words(columns, tokens));
    let input = Input { x, columns, order: None };
    prepare(cpu, pool, form, &input, Taken::PLAIN, &[[0, 0, tokens as u32]], memory);
    let panels = Panels::new(form, cpu, columns, tokens, memory);
    let mut goals: heapless::Vec<(Matrix, Sink), PARTS> = heapless::Vec::new();
    for Part { matrix, bias, out, add } in parts {
        let Shape { rows, columns: taken } = matrix.taken();
        assert!(taken == columns && out.len() == tokens * rows, "rows of products");
        let sink = Sink { out: Shared::new(out), stride: rows, rows, bias: *bias, add: *add };
        assert!(goals.push((*matrix, sink)).is_ok(), "as many products as there may be");
    }
    let tiles_of = |matrix: &Matrix| matrix.taken().tiles();
    let total = goals.iter().map(|(matrix, _)| tiles_of(matrix)).sum();
    let (places, words) = (pool.threads().min(total), tile_words(form, columns));
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
            let tile = matrix.tile(cpu, form, number, made);
            // SAFETY: tiles have rows of their own, and the counter gives each to one task.
            unsafe { matrix.layout(form).multiply(cpu, columns, tile, &panels, sink, number * TILE_ROWS) };
        }
    });
}

/// Scratch floats of [`transposed`], for a matrix that is read and so many rows and threads.
pub fn transposed_floats(form: Form, matrix: &Rows, shape: Shape, rows: usize, threads: usize) -> usize {
    let block = READ.min(shape.rows);
    block * (matrix.room(shape.columns) + rows) + floats(form, block, rows, threads)
}

/// `dx = dy * W`, or added to it, of a matrix in codes. No more of it than some rows is ever there as numbers.
#[allow(clippy::too_many_arguments, reason = "who computes, the operands, and the memory")]
pub fn transposed<P: Pool>(
    (cpu, form): (Cpu, Form),
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
    let (room, most) = (matrix.room(columns), READ.min(rows));
    let (numbers, scratch) = scratch.split_at_mut(most * room);
    let (part, scratch) = scratch.split_at_mut(most * tokens);
    for first in (0..rows).step_by(READ) {
        let block = READ.min(rows - first);
        let numbers = &mut numbers[..block * room];
        each_row(pool, numbers, room, 8, |at, row| matrix.read(first + at, columns, row));
        // What reading needed beside numbers is no longer in between.
        if room > columns {
            (1..block).for_each(|at| numbers.copy_within(at * room..at * room + columns, at * columns));
        }
        let x = &mut part[..tokens * block];
        for (out, dy) in x.chunks_exact_mut(block).zip(dy.chunks_exact(rows)) {
            out.copy_from_slice(&dy[first..first + block]);
        }
        let numbers = Numbers::Rows(&numbers[..block * columns]);
        let matrix = Matrix { shape: Shape { rows: block, columns }, numbers, turned: true };
        let part = Part { matrix, bias: None, out: &mut *dx, add: add || first > 0 };
        multiply((cpu, form), pool, x, &mut [part], scratch);
    }
}

/// Scratch floats of [`cross`], for so many outputs, rows and threads.
pub fn cross_floats(form: Form, outputs: usize, rows: usize, threads: usize) -> usize {
    let block = BLOCK.min(outputs);
    block * rows + floats(form, rows, block, threads)
}

/// `dw += dy^T * x`: `dw` has a row of `columns` values for every output from the `first` of `outputs` on.
#[allow(clippy::too_many_arguments, reason = "who computes, the operands, and the memory")]
pub fn cross<P: Pool>(
    (cpu, form): (Cpu, Form),
    pool: &P,
    (dy, outputs, first): (&[f32], usize, usize),
    x: &[f32],
    columns: usize,
    dw: &mut [f32],
    scratch: &mut [f32],
) {
    let tokens = x.len() / columns;
    assert!(x.len() == tokens * columns && dy.len() == tokens * outputs, "gradients of as many rows");
    let shape = Shape { rows: tokens, columns };
    let matrix = Matrix { shape, numbers: Numbers::Rows(x), turned: true };
    for (number, dw) in dw.chunks_mut(BLOCK * columns).enumerate() {
        let (part, scratch) = scratch.split_at_mut(dw.len() / columns * tokens);
        each_row(pool, part, tokens, 32, |output, part| {
            let column = dy[first + number * BLOCK + output..].iter().step_by(outputs);
            part.iter_mut().zip(column).for_each(|(out, value)| *out = *value);
        });
        let part_of = Part { matrix, bias: None, out: dw, add: true };
        multiply((cpu, form), pool, part, &mut [part_of], scratch);
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
    use crate::layouts::wide::Wide;
    use crate::ops::backward::numbers::Lying;
    use crate::ops::backward::tests::noise;
    use crate::ops::crew::Serial;
    use crate::ops::matmul::{Output, multiply as multiply_stored};
    use std::vec;
    use std::vec::Vec;

    fn same(x: f32) -> f64 {
        f64::from(x)
    }

    fn half(x: f32) -> f64 {
        half::bf16::from_f32(x).to_f64()
    }

    /// What a form makes of operands.
    fn rounding(form: Form) -> fn(f32) -> f64 {
        if form == Form::Bf16 { half } else { same }
    }

    /// Every level, in every form that it has.
    fn machines() -> Vec<(Cpu, Form)> {
        let both = |cpu: &Cpu| [(*cpu, form(*cpu, false)), (*cpu, form(*cpu, true))];
        Cpu::detect().variants().iter().flat_map(both).collect()
    }

    /// The definition: operands are rounded, if at all, and sums are not.
    fn product(x: &[f64], w: &[f64], shape: Shape, turned: bool) -> Vec<f64> {
        let Shape { rows, columns } = shape;
        let (taken, made) = if turned { (rows, columns) } else { (columns, rows) };
        let at =
            |out: usize, step: usize| if turned { w[step * columns + out] } else { w[out * columns + step] };
        let row = |x: &[f64]| {
            (0..made).map(|out| x.iter().enumerate().map(|(i, x)| x * at(out, i)).sum()).collect()
        };
        x.chunks_exact(taken).flat_map(|x| -> Vec<f64> { row(x) }).collect()
    }

    fn close(what: &str, found: &[f32], wanted: impl Iterator<Item = f64>) {
        let wanted: Vec<f64> = wanted.collect();
        assert_eq!(found.len(), wanted.len(), "{what}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((f64::from(*found) - wanted).abs() < 2e-4, "{what}: {found}, not {wanted}");
        }
    }

    fn tiles_of(layout: &dyn Layout, shape: Shape, weights: &[f32]) -> Vec<u8> {
        let bytes = layout.tile_bytes(shape.columns);
        let mut tiles = vec![0u8; shape.tiles() * bytes];
        let parts = weights.chunks(TILE_ROWS * shape.columns).zip(tiles.chunks_exact_mut(bytes));
        parts.for_each(|(rows, tile)| layout.pack(shape.columns, rows, tile).expect("finite"));
        tiles
    }

    fn stored(layout: &dyn Layout, Shape { rows, columns }: Shape, tiles: &[u8]) -> Vec<f32> {
        let bytes = layout.tile_bytes(columns);
        let row = |row: usize| {
            let mut out = vec![0.0; columns];
            layout.unpack(columns, &tiles[row / TILE_ROWS * bytes..][..bytes], row % TILE_ROWS, &mut out);
            out
        };
        (0..rows).flat_map(row).collect()
    }

    /// One product that is added, and one with a bias that is not.
    fn check(what: &str, (cpu, form): (Cpu, Form), matrix: Matrix, stored: &[f32], tokens: usize) {
        let (taken, round) = (matrix.taken(), rounding(form));
        let x = noise(1, tokens * taken.columns);
        let mut out = [0.5, 0.25].map(|x| vec![x; tokens * taken.rows]);
        let mut scratch = vec![f32::NAN; floats(form, taken.columns, tokens, 1)];
        let bias = noise(5, taken.rows);
        let [first, second] = &mut out;
        let mut parts = [
            Part { matrix, bias: None, out: first, add: true },
            Part { matrix, bias: Some(&bias), out: second, add: false },
        ];
        multiply((cpu, form), &Serial, &x, &mut parts, &mut scratch);
        let [x, w] = [&x[..], stored].map(|all| all.iter().map(|x| round(*x)).collect::<Vec<_>>());
        let wanted = product(&x, &w, matrix.shape, matrix.turned);
        close(what, &out[0], wanted.iter().map(|x| x + 0.5));
        let bias = bias.iter().cycle().map(|x| f64::from(*x));
        close(what, &out[1], wanted.iter().zip(bias).map(|(x, bias)| x + bias));
    }

    #[test]
    fn products_match_their_definition_however_numbers_lie() {
        for machine in machines() {
            for (rows, columns, tokens) in [(1, 1, 1), (33, 40, 5), (130, 31, 17), (64, 96, 30)] {
                let shape = Shape { rows, columns };
                let weights = noise(3, rows * columns);
                let check = |what: &str, numbers: Numbers<'_>, stored: &[f32]| {
                    for turned in [false, true] {
                        let what = std::format!("{} {what} {shape:?} {turned}", machine.0.name());
                        check(&what, machine, Matrix { shape, numbers, turned }, stored, tokens);
                    }
                };
                check("rows", Numbers::Rows(&weights), &weights);
                for layout in [Wide::F32, Wide::Bf16, Wide::F16] {
                    let tiles = tiles_of(&layout, shape, &weights);
                    let numbers = Numbers::Tiles(layout, &tiles);
                    check(layout.name(), numbers, &stored(&layout, shape, &tiles));
                }
                // Two rows of three, behind the first two.
                let every = Lying { bytes: &[], columns, first: 2, skip: 3, run: 2, every: 3 };
                let mut bytes = vec![0xff; 2 * columns * (every.place(rows - 1) + 1)];
                for (at, x) in weights.iter().enumerate() {
                    let at = 2 * (every.place(at / columns) * columns + at % columns);
                    bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(*x).to_le_bytes());
                }
                let halved: Vec<f32> = weights.iter().map(|x| half(*x) as f32).collect();
                check("file", Numbers::Lying(Lying { bytes: &bytes, ..every }), &halved);
            }
        }
    }

    #[test]
    fn gradients_of_matrices_match_their_definition() {
        for (cpu, form) in machines() {
            for (outputs, columns, tokens) in [(1, 1, 1), (33, 40, 5), (700, 31, 18), (64, 96, 30)] {
                let (dy, x) = (noise(1, tokens * outputs), noise(2, tokens * columns));
                let mut dw = vec![1.0; outputs * columns];
                let mut scratch = vec![f32::NAN; cross_floats(form, outputs, tokens, 1)];
                let (upper, lower) = dw.split_at_mut(outputs / 3 * columns);
                cross((cpu, form), &Serial, (&dy, outputs, 0), &x, columns, upper, &mut scratch);
                cross((cpu, form), &Serial, (&dy, outputs, outputs / 3), &x, columns, lower, &mut scratch);
                let round = rounding(form);
                let turned: Vec<f64> =
                    (0..outputs * tokens).map(|i| round(dy[i % tokens * outputs + i / tokens])).collect();
                let x: Vec<f64> = x.iter().map(|x| round(*x)).collect();
                let wanted = product(&turned, &x, Shape { rows: tokens, columns }, true);
                close(cpu.name(), &dw, wanted.iter().map(|x| x + 1.0));
            }
        }
    }

    fn check_transposed(machine: (Cpu, Form), matrix: &Rows, shape: Shape, tokens: usize, what: &str) {
        let Shape { rows, columns } = shape;
        let dy = noise(1, tokens * rows);
        let mut dx = vec![1.0; tokens * columns];
        let mut scratch = vec![f32::NAN; transposed_floats(machine.1, matrix, shape, tokens, 1)];
        transposed(machine, &Serial, matrix, shape, &dy, &mut dx, true, &mut scratch);
        let round = rounding(machine.1);
        let (mut row, mut w) = (vec![0.0; matrix.room(columns)], Vec::new());
        for output in 0..rows {
            matrix.read(output, columns, &mut row);
            w.extend(row[..columns].iter().map(|x| round(*x)));
        }
        let dy: Vec<f64> = dy.iter().map(|x| round(*x)).collect();
        close(what, &dx, product(&dy, &w, shape, true).iter().map(|x| x + 1.0));
    }

    #[test]
    fn every_layout_is_multiplied_transposed() {
        for machine in machines() {
            for &layout in LAYOUTS {
                let shape = Shape { rows: 300, columns: 128 };
                let tiles = tiles_of(layout, shape, &noise(4, shape.rows * shape.columns));
                let rows = Rows::Tiles { layout, tiles: &tiles, taken: Taken::PLAIN };
                check_transposed(machine, &rows, shape, 7, layout.name());
            }
        }
    }

    #[test]
    fn orders_factors_and_repetitions_are_undone() {
        let (shape, times) = (Shape { rows: 40, columns: 128 }, 2);
        let wide = Shape { columns: times * shape.columns, ..shape };
        let tiles = tiles_of(FLOAT32, wide, &noise(5, shape.rows * wide.columns));
        let order: Vec<u32> = (0..128).map(|i| (i * 5) % 128).collect();
        let factors = noise(6, 128);
        let taken = Taken { order: Some(&order), factors: Some(&factors), times };
        let matrix = Rows::Tiles { layout: FLOAT32, tiles: &tiles, taken };
        check_transposed((Cpu::detect(), Form::Float), &matrix, shape, 9, "taken");
        // What is read row by row is what the forward product does.
        let x = noise(7, 3 * 128);
        let (mut out, mut panels) = (vec![0.0; 3 * 40], vec![0.0; 3 * 256]);
        let output =
            Output { layout: FLOAT32, shape, tiles: &tiles, taken, bias: None, out: &mut out, add: false };
        let input = Input { x: &x, columns: 128, order: None };
        let (cpu, segments) = (Cpu::detect(), [[0, 0, 3]]);
        multiply_stored(cpu, Precision::Exact, &Serial, input, &segments, &mut panels, &mut [output]);
        let mut row = vec![0.0; 3 * 128];
        for (at, found) in out.iter().enumerate() {
            matrix.read(at % 40, 128, &mut row);
            let wanted: f32 = row[..128].iter().zip(&x[at / 40 * 128..]).map(|(w, x)| w * x).sum();
            assert!((found - wanted).abs() < 1e-3, "{found}, not {wanted}");
        }
    }
}
