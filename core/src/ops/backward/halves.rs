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
use crate::ops::vector::{Kernel, Vector, launch};

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
    /// In a file.
    Lying(Lying<'a>),
}

/// Rows in bfloat16 as files have them: low byte first, one after another, some of many.
#[derive(Clone, Copy, Debug)]
pub struct Lying<'a> {
    /// All rows.
    pub bytes: &'a [u8],
    /// Numbers of a row.
    pub columns: usize,
    /// Row `r` is row `first + (skip + r) / run * every + (skip + r) % run` of all.
    pub first: usize,
    /// See `first`.
    pub skip: usize,
    /// See `first`.
    pub run: usize,
    /// See `first`.
    pub every: usize,
}

impl<'a> Lying<'a> {
    fn place(&self, row: usize) -> usize {
        let row = self.skip + row;
        self.first + row / self.run * self.every + row % self.run
    }

    fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[self.place(row) * 2 * self.columns..][..2 * self.columns]
    }

    /// A row as float32.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        let halves = self.row(row).as_chunks::<2>().0;
        out.iter_mut()
            .zip(halves)
            .for_each(|(out, half)| *out = f32::from_bits(u32::from(number(half)) << 16));
    }

    /// A tile of rows. The first words of whole rows are done by the vector unit.
    #[inline(always)]
    fn tile(&self, rows: usize, number: usize, out: &mut [u32]) {
        let first = number * TILE_ROWS;
        let count = TILE_ROWS.min(rows - first);
        let mut all: [&[u8]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (at, row) in all[..count].iter_mut().enumerate() {
            *row = self.row(first + at);
        }
        let done = if count == TILE_ROWS { lines::tile(&all, out) } else { 0 };
        for (word, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate().skip(done) {
            for (out, row) in out.iter_mut().zip(&all) {
                let halves = row.as_chunks().0.iter().skip(2 * word).take(2).rev();
                *out = halves.fold(0, |word, half| word << 16 | u32::from(self::number(half)));
            }
        }
    }

    /// Columns from `32 * number` on: pairs of rows in words.
    #[inline(always)]
    fn turned(&self, rows: usize, number: usize, out: &mut [u32]) {
        let first = number * TILE_ROWS;
        let count = TILE_ROWS.min(self.columns - first);
        for (word, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
            let mut two: [&[u8]; 2] = [&[]; 2];
            for (row, of) in (2 * word..rows).zip(&mut two) {
                *of = &self.row(row)[2 * first..][..2 * count];
            }
            // Rows lie far apart: what comes soon is asked for.
            for row in 2 * word + AHEAD..rows.min(2 * word + AHEAD + 2) {
                lines::ask_for(&self.row(row)[2 * first..]);
            }
            if let [Some(upper), Some(lower)] = [two[0].first_chunk(), two[1].first_chunk()] {
                lines::pairs(upper, lower, out);
                continue;
            }
            for (column, out) in out.iter_mut().enumerate() {
                *out = 0;
                for (at, row) in two.iter().enumerate() {
                    let half = row.as_chunks().0.get(column).map_or(0, self::number);
                    *out |= u32::from(half) << (16 * at);
                }
            }
        }
    }
}

/// Rows that are asked for before they are read.
const AHEAD: usize = 32;

fn number(half: &[u8; 2]) -> u16 {
    u16::from_le_bytes(*half)
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
}

/// Makes a tile of a product's matrix.
struct Make<'a, 'o> {
    matrix: &'a Matrix<'a>,
    number: usize,
    out: &'o mut [u32],
}

impl Kernel for Make<'_, '_> {
    type Output = ();

    /// Plain loops, of which the compiler makes the level's vectors.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Make { matrix, number, out } = self;
        let Shape { rows, columns } = matrix.shape;
        match (matrix.numbers, matrix.turned) {
            (Numbers::Tiles(layout, tiles), false) => {
                let bytes = layout.tile_bytes(columns);
                layout.halve(columns, &tiles[number * bytes..][..bytes], out);
            }
            (Numbers::Tiles(layout, tiles), true) => {
                let tiles = tiles.chunks_exact(layout.tile_bytes(columns));
                for (out, tile) in out.chunks_mut(PIECE).zip(tiles) {
                    layout.turn(columns, tile, number, out);
                }
            }
            (Numbers::Lying(x), false) => x.tile(rows, number, out),
            (Numbers::Lying(x), true) => x.turned(rows, number, out),
            (Numbers::Rows(x), true) => turned_rows(x, matrix.shape, number, out),
            (Numbers::Rows(x), false) => rows_tile(x, matrix.shape, number, out),
        }
    }
}

/// A tile of rows.
#[inline(always)]
fn rows_tile(x: &[f32], Shape { rows, columns }: Shape, number: usize, out: &mut [u32]) {
    let first = number * TILE_ROWS;
    let count = TILE_ROWS.min(rows - first);
    for (word, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
        let mut two = [[0.0; TILE_ROWS]; 2];
        for (column, lanes) in (2 * word..columns).zip(&mut two) {
            for (row, lane) in lanes[..count].iter_mut().enumerate() {
                *lane = x[(first + row) * columns + column];
            }
        }
        pair(&two[0], &two[1], out);
    }
}

/// Columns of rows from `32 * number` on: pairs of rows in words.
#[inline(always)]
fn turned_rows(x: &[f32], Shape { rows, columns }: Shape, number: usize, out: &mut [u32]) {
    let first = number * TILE_ROWS;
    let count = TILE_ROWS.min(columns - first);
    for (word, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
        let mut two = [[0.0; TILE_ROWS]; 2];
        for (row, lanes) in (2 * word..rows).zip(&mut two) {
            let row = &x[row * columns + first..][..count];
            match row.first_chunk::<TILE_ROWS>() {
                Some(whole) => *lanes = *whole,
                None => lanes[..count].copy_from_slice(row),
            }
        }
        pair(&two[0], &two[1], out);
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
                launch(cpu, Make { matrix, number, out: &mut *made });
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

/// Lines of bytes, where there are products in bfloat16.
#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod lines {
    use super::TILE_ROWS;
    use crate::ops::vector::unroll;
    use core::arch::x86_64::*;

    /// Bytes, and words, of a line.
    const BYTES: usize = 64;
    const WORDS: usize = 16;

    /// Brings the line at the start of some bytes nearer.
    #[inline(always)]
    pub(super) fn ask_for(bytes: &[u8]) {
        // SAFETY: a hint, for an address that is there.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) }
    }

    /// Whether there is AVX-512: [`super::exist`] said so before anything was made.
    macro_rules! with_avx512 {
        ($call:expr) => {
            // SAFETY: products in bfloat16 are made where AVX-512 is (`super::multiply` asserts it).
            unsafe { $call }
        };
    }

    /// Words of two rows: 32 columns of one in the low halves, of the other in the high ones.
    #[inline(always)]
    pub(super) fn pairs(low: &[u8; BYTES], high: &[u8; BYTES], out: &mut [u32; TILE_ROWS]) {
        with_avx512!(pair_lines(low, high, out));
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pair_lines(low: &[u8; BYTES], high: &[u8; BYTES], out: &mut [u32; TILE_ROWS]) {
        // SAFETY: two lines of 64 bytes, and 32 words.
        unsafe {
            let (low, high) =
                (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast()));
            let words = [
                (_mm512_castsi512_si256(low), _mm512_castsi512_si256(high)),
                (_mm512_extracti64x4_epi64::<1>(low), _mm512_extracti64x4_epi64::<1>(high)),
            ];
            unroll!(2: part < 2, {
                let (low, high) = (_mm512_cvtepu16_epi32(words[part].0), _mm512_cvtepu16_epi32(words[part].1));
                let both = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(out.as_mut_ptr().add(WORDS * part).cast(), both);
            });
        }
    }

    /// The first words of rows, a row in each lane; says of how many.
    #[inline(always)]
    pub(super) fn tile(rows: &[&[u8]; TILE_ROWS], out: &mut [u32]) -> usize {
        let whole = (rows.iter().fold(usize::MAX, |least, row| least.min(row.len())) / BYTES)
            .min(out.len() / (WORDS * TILE_ROWS));
        for number in 0..whole {
            let out = &mut out[number * WORDS * TILE_ROWS..][..WORDS * TILE_ROWS];
            for half in 0..TILE_ROWS / WORDS {
                let rows: &[&[u8]; WORDS] = rows[half * WORDS..].first_chunk().expect("a half of the rows");
                with_avx512!(turn(rows, number * BYTES, &mut out[half * WORDS..]));
            }
        }
        whole * WORDS
    }

    /// Turns a line of each of sixteen rows over: their words stand side by side.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn turn(rows: &[&[u8]; WORDS], at: usize, out: &mut [u32]) {
        assert!(
            out.len() > (WORDS - 1) * TILE_ROWS + WORDS - 1,
            "a word of every row for each word of a line"
        );
        let mut x = [_mm512_setzero_si512(); WORDS];
        for (x, row) in x.iter_mut().zip(rows) {
            let line: &[u8; BYTES] = row[at..].first_chunk().expect("rows have this line");
            // Rows are more streams than the processor follows by itself.
            ask_for(&row[(at + 4 * BYTES).min(row.len() - 1)..]);
            // SAFETY: a line of 64 bytes.
            *x = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
        }
        // Words of neighbours, then pairs of words, then quarters of a register.
        let mut y = x;
        unroll!(8: i < 8, {
            y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
        });
        unroll!(4: i < 4, {
            x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
            x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
            x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
            x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
        });
        // Now quarter `q` of `x[4 * i + j]` has word `4 * q + j` of rows `4 * i` to `4 * i + 3`.
        unroll!(4: j < 4, {
            let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(x[j], x[4 + j]);
            let high = _mm512_shuffle_i32x4::<0b11_01_11_01>(x[j], x[4 + j]);
            let later_low = _mm512_shuffle_i32x4::<0b10_00_10_00>(x[8 + j], x[12 + j]);
            let later_high = _mm512_shuffle_i32x4::<0b11_01_11_01>(x[8 + j], x[12 + j]);
            y[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, later_low);
            y[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, later_low);
            y[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high, later_high);
            y[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high, later_high);
        });
        for (word, y) in y.into_iter().enumerate() {
            // SAFETY: sixteen words, by the assertion.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(word * TILE_ROWS).cast(), y) };
        }
    }
}

/// Elsewhere nothing is made.
#[cfg(not(all(target_arch = "x86_64", not(target_os = "none"))))]
mod lines {
    use super::TILE_ROWS;

    pub(super) fn ask_for(_: &[u8]) {}

    pub(super) fn pairs(low: &[u8; 64], high: &[u8; 64], out: &mut [u32; TILE_ROWS]) {
        let halves = low.as_chunks().0.iter().zip(high.as_chunks().0);
        for (out, (low, high)) in out.iter_mut().zip(halves) {
            *out = u32::from(super::number(low)) | u32::from(super::number(high)) << 16;
        }
    }

    pub(super) fn tile(_: &[&[u8]; TILE_ROWS], _: &mut [u32]) -> usize {
        0
    }
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
                // Two rows of three, behind the first two.
                let every = Lying { bytes: &[], columns, first: 2, skip: 3, run: 2, every: 3 };
                let mut bytes = vec![0xff; 2 * columns * (every.place(rows - 1) + 1)];
                for row in 0..rows {
                    for (column, x) in stored[row * columns..][..columns].iter().enumerate() {
                        let at = 2 * (every.place(row) * columns + column);
                        bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(*x).to_le_bytes());
                    }
                }
                let lying = Numbers::Lying(Lying { bytes: &bytes, ..every });
                for (turned, numbers) in [(false, numbers), (true, numbers), (false, lying), (true, lying)] {
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
