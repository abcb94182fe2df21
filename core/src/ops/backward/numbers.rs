//! Matrices as the products of training take them. Of one that does not lie as a product reads it, a tile is made,
//! meets all rows, and is forgotten; the matrix never stands whole twice.

use crate::cpu::Cpu;
use crate::layouts::panels::{Form, Taken};
use crate::layouts::wide::{Wide, pair, turn_pairs};
use crate::layouts::{Layout, Shape, TILE_ROWS};
use crate::ops::matmul::IN_ORDER;
use crate::ops::vector::{Kernel, Vector, launch};

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

/// Bytes that are brought nearer at once.
const LINE: usize = 64;
/// Lines of a row, and rows, that are asked for before they are read.
const AHEAD: [usize; 2] = [4, 32];

impl<'a> Lying<'a> {
    pub(super) fn place(&self, row: usize) -> usize {
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

    /// A tile as a bfloat16 matrix of so many rows has it, into words' bytes.
    pub fn put_tile(&self, cpu: Cpu, rows: usize, number: usize, out: &mut [u8]) {
        let shape = Shape { rows, columns: self.columns };
        let matrix = Matrix { shape, numbers: Numbers::Lying(*self), turned: false };
        let out = bytemuck::cast_slice_mut(out);
        launch(cpu, Make { matrix: &matrix, layout: Wide::Bf16, number, out });
    }

    /// A tile of rows. The first words of whole rows are done by the vector unit.
    #[inline(always)]
    fn tile<V: Vector>(&self, rows: usize, number: usize, out: &mut [u32]) {
        let first = number * TILE_ROWS;
        let count = TILE_ROWS.min(rows - first);
        let mut all: [&[u8]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (at, row) in all[..count].iter_mut().enumerate() {
            *row = self.row(first + at);
        }
        let out = out.as_chunks_mut::<TILE_ROWS>().0;
        let whole = if count == TILE_ROWS { self.columns / 2 / V::LANES * V::LANES } else { 0 };
        for word in (0..whole).step_by(V::LANES) {
            for lane in (0..TILE_ROWS).step_by(V::LANES) {
                let rows = &all[lane..lane + V::LANES];
                if (4 * word).is_multiple_of(LINE) {
                    // Rows are more streams than the processor follows by itself.
                    for row in rows {
                        V::ask_for(&row[(4 * word + AHEAD[0] * LINE).min(row.len() - 1)]);
                    }
                }
                let mut from = [core::ptr::null(); TILE_ROWS];
                for (from, row) in from.iter_mut().zip(rows) {
                    *from = row[4 * word..4 * (word + V::LANES)].as_ptr().cast();
                }
                let to = out[word..word + V::LANES].as_flattened_mut();
                // SAFETY: every row has these words, and each goes to its lane of a word of `to`.
                unsafe { V::turn_words(&from, to[lane..].as_mut_ptr(), TILE_ROWS) };
            }
        }
        for (word, out) in out.iter_mut().enumerate().skip(whole) {
            for (out, row) in out.iter_mut().zip(&all) {
                let halves = row.as_chunks().0.iter().skip(2 * word).take(2).rev();
                *out = halves.fold(0, |word, half| word << 16 | u32::from(self::number(half)));
            }
        }
    }

    /// Columns from `32 * number` on: pairs of rows in words.
    #[inline(always)]
    fn turned<V: Vector>(&self, rows: usize, number: usize, out: &mut [u32]) {
        let first = number * TILE_ROWS;
        let count = TILE_ROWS.min(self.columns - first);
        for (word, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
            let mut two: [&[u8]; 2] = [&[]; 2];
            for (row, of) in (2 * word..rows).zip(&mut two) {
                *of = &self.row(row)[2 * first..][..2 * count];
            }
            // Rows lie far apart: what comes soon is asked for.
            for row in 2 * word + AHEAD[1]..rows.min(2 * word + AHEAD[1] + 2) {
                V::ask_for(&self.row(row)[2 * first]);
            }
            if two[0].len() == 2 * TILE_ROWS && two[1].len() == 2 * TILE_ROWS {
                for lane in (0..TILE_ROWS).step_by(V::LANES) {
                    let [low, high] = [two[0][2 * lane..].as_ptr(), two[1][2 * lane..].as_ptr()];
                    // SAFETY: both rows, and the word, have the lanes from this one on.
                    unsafe { V::pair_halves(low, high, out[lane..].as_mut_ptr()) };
                }
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

impl<'a> Matrix<'a> {
    /// Of the product.
    pub(super) fn taken(&self) -> Shape {
        let Shape { rows, columns } = self.shape;
        if self.turned { Shape { rows: columns, columns: rows } } else { self.shape }
    }

    /// How its tiles are for panels of a form: nothing is rounded that need not be.
    pub(super) fn layout(&self, form: Form) -> Wide {
        match (self.numbers, form) {
            (Numbers::Lying(_), _) | (_, Form::Bf16) => Wide::Bf16,
            (Numbers::Tiles(Wide::F16, _), _) if self.turned => Wide::F32,
            (Numbers::Tiles(layout, _), _) => layout,
            (Numbers::Rows(_), _) => Wide::F32,
        }
    }

    /// A tile of the product's: as it lies, or made in `made`.
    pub(super) fn tile<'m>(&self, cpu: Cpu, form: Form, number: usize, made: &'m mut [u32]) -> &'m [u8]
    where
        'a: 'm,
    {
        let layout = self.layout(form);
        match self.numbers {
            Numbers::Tiles(stored, tiles) if stored == layout && !self.turned => {
                let bytes = layout.tile_bytes(self.shape.columns);
                &tiles[number * bytes..][..bytes]
            }
            _ => {
                let made = &mut made[..layout.tile_bytes(self.taken().columns) / 4];
                launch(cpu, Make { matrix: self, layout, number, out: &mut *made });
                bytemuck::cast_slice(made)
            }
        }
    }
}

/// Makes a tile of a product's matrix.
struct Make<'a, 'o> {
    matrix: &'a Matrix<'a>,
    layout: Wide,
    number: usize,
    out: &'o mut [u32],
}

impl Kernel for Make<'_, '_> {
    type Output = ();

    /// Plain loops, of which the compiler makes the level's vectors.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Make { matrix, layout, number, out } = self;
        let Shape { rows, columns } = matrix.shape;
        match (matrix.numbers, matrix.turned) {
            (Numbers::Tiles(stored, tiles), false) => {
                let bytes = stored.tile_bytes(columns);
                stored.halve(columns, &tiles[number * bytes..][..bytes], out);
            }
            (Numbers::Tiles(stored, tiles), true) => {
                let tiles = tiles.chunks_exact(stored.tile_bytes(columns));
                let piece = TILE_ROWS / layout.per_word() * TILE_ROWS;
                for (out, tile) in out.chunks_mut(piece).zip(tiles) {
                    turned_tile::<V>((stored, columns, tile), number, layout, out);
                }
            }
            (Numbers::Lying(x), false) => x.tile::<V>(rows, number, out),
            (Numbers::Lying(x), true) => x.turned::<V>(rows, number, out),
            (Numbers::Rows(x), true) => turned_rows(x, matrix.shape, number, layout, out),
            (Numbers::Rows(x), false) => {
                let rows = x[number * TILE_ROWS * columns..].chunks_exact(columns).take(TILE_ROWS);
                let mut lanes: [&[f32]; TILE_ROWS] = [&[]; TILE_ROWS];
                for (lane, row) in lanes.iter_mut().zip(rows) {
                    *lane = row;
                }
                side_by_side::<V>(&lanes, layout, out);
            }
        }
    }
}

/// Of a tile, the columns from `32 * number` on, as many words of rows as `out` takes.
#[inline(always)]
fn turned_tile<V: Vector>(
    (stored, columns, tile): (Wide, usize, &[u8]),
    number: usize,
    layout: Wide,
    out: &mut [u32],
) {
    let words: &[u32] = bytemuck::cast_slice(tile);
    let words = words.as_chunks::<TILE_ROWS>().0;
    let first = number * TILE_ROWS;
    if stored == Wide::Bf16 {
        let words = &words[first / 2..words.len().min((first + TILE_ROWS) / 2)];
        return turn_pairs(words, out.as_chunks_mut().0);
    }
    let count = TILE_ROWS.min(columns - first);
    let mut held = [[0.0; TILE_ROWS]; TILE_ROWS];
    let mut lanes: [&[f32]; TILE_ROWS] = [&[]; TILE_ROWS];
    if stored == Wide::F32 {
        for (lane, word) in lanes[..count].iter_mut().zip(&words[first..]) {
            *lane = bytemuck::cast_slice(word);
        }
    } else {
        for (at, column) in held[..count].iter_mut().enumerate() {
            *column = stored.column(words.as_flattened(), columns, first + at);
        }
        for (lane, column) in lanes[..count].iter_mut().zip(&held) {
            *lane = column;
        }
    }
    side_by_side::<V>(&lanes, layout, out);
}

/// Rows in lanes: word `w` has their numbers `w`, or in bfloat16 `2 * w` and the next. Past a row's end are zeros.
#[inline(always)]
fn side_by_side<V: Vector>(lanes: &[&[f32]; TILE_ROWS], layout: Wide, out: &mut [u32]) {
    let columns = out.len() / TILE_ROWS * layout.per_word();
    let mut shortest = usize::MAX;
    for lane in lanes {
        shortest = shortest.min(lane.len());
    }
    let mut block = [[0.0f32; TILE_ROWS]; TILE_ROWS];
    for first in (0..columns).step_by(TILE_ROWS) {
        let count = TILE_ROWS.min(columns - first);
        if first + TILE_ROWS <= shortest {
            for column in (0..TILE_ROWS).step_by(V::LANES) {
                for lane in (0..TILE_ROWS).step_by(V::LANES) {
                    let mut from = [core::ptr::null(); TILE_ROWS];
                    for (from, row) in from.iter_mut().zip(&lanes[lane..lane + V::LANES]) {
                        *from = row[first + column..first + column + V::LANES].as_ptr().cast();
                    }
                    let to = block[column..column + V::LANES].as_flattened_mut();
                    // SAFETY: every row has these numbers, and each goes to its lane of a row of the block.
                    unsafe { V::turn_words(&from, to[lane..].as_mut_ptr().cast(), TILE_ROWS) };
                }
            }
        } else {
            for (column, word) in block[..count].iter_mut().enumerate() {
                for (out, lane) in word.iter_mut().zip(lanes) {
                    *out = if first + column < lane.len() { lane[first + column] } else { 0.0 };
                }
            }
            block[count..].fill([0.0; TILE_ROWS]);
        }
        let words = first / layout.per_word() * TILE_ROWS;
        let words = &mut out[words..][..count / layout.per_word() * TILE_ROWS];
        put(&block, layout, words);
    }
}

/// Columns from `32 * number` on of rows.
#[inline(always)]
fn turned_rows(x: &[f32], Shape { rows, columns }: Shape, number: usize, layout: Wide, out: &mut [u32]) {
    let first = number * TILE_ROWS;
    let count = TILE_ROWS.min(columns - first);
    let words = out.as_chunks_mut::<TILE_ROWS>().0;
    for (word, out) in words.iter_mut().enumerate() {
        let mut two = [[0.0; TILE_ROWS]; 2];
        let wanted = word * layout.per_word()..rows.min((word + 1) * layout.per_word());
        for (row, lanes) in wanted.zip(&mut two) {
            let row = &x[row * columns + first..][..count];
            match row.first_chunk::<TILE_ROWS>() {
                Some(whole) => *lanes = *whole,
                None => lanes[..count].copy_from_slice(row),
            }
        }
        put(&two, layout, out);
    }
}

/// Words of float32, or of pairs.
#[inline(always)]
fn put(block: &[[f32; TILE_ROWS]], layout: Wide, out: &mut [u32]) {
    let out = out.as_chunks_mut::<TILE_ROWS>().0;
    if layout == Wide::F32 {
        for (out, word) in out.iter_mut().zip(block) {
            *out = bytemuck::cast(*word);
        }
        return;
    }
    for (out, two) in out.iter_mut().zip(block.as_chunks::<2>().0) {
        pair(&two[0], &two[1], out);
    }
}

/// A matrix whose rows are read, in whatever layout.
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
    /// In a file.
    Lying(Lying<'a>),
}

impl Rows<'_> {
    /// Floats that [`read`](Self::read) needs for a matrix of so many columns.
    pub fn room(&self, columns: usize) -> usize {
        match self {
            Rows::Tiles { taken, .. } if !is_plain(taken) => (1 + taken.times) * columns,
            _ => columns,
        }
    }

    /// What a row does to its input, in the input's order, into the first `columns` of `out`.
    pub fn read(&self, row: usize, columns: usize, out: &mut [f32]) {
        let (tiles, layout, taken) = match self {
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
