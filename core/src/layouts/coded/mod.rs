//! Codes of two, four or eight bits in blocks that share a scale: `code2`, `code4` and `code8`; and ternary ones of
//! five in a byte: `trit`.
//!
//! A row is cut into blocks of columns, blocks into units that share side words, one word of each of the 32 rows:
//!
//! ```text
//! unit    side words   scales (and zeros) of the unit's blocks; of five trits in a byte, one word for all blocks
//!         code words   block after block
//! ...                  the last unit has as many blocks as are left
//! 32 x f32             what the scales of a row are multiples of, a power of two; of rows with one scale, that scale
//!
//! code word, 8 bits    byte j                column 4w + j
//! code word, 4 bits    byte j, low half      column 8w + j         high half   column 8w + 4 + j
//! code word, 2 bits    byte j, bits 2k       column 16w + 4k + j
//! code word, trits     see `trits.rs`
//!
//! side words           scale                 zero
//!   Float              float32               float32 in a second word
//!   Pair               float16 of block 2u in the low half, of 2u + 1 in the high half
//!   Zero               float16, low half     float16, high half
//!   Exponents          byte k is block 4u + k's power of two, 127 for the row's largest
//!   Quarters           like Pair, blocks 4u and 4u + 1 in the first word, 4u + 2 and 4u + 3 in a second
//!   Halves             like Pair, each for two blocks
//!   Row                none
//! ```
//!
//! A weight is `(value of the code - zero) * scale`. Codes stand for values by a [`Book`].
//!
//! In fast precision the book is one of bytes, activations are int8, and a block's dot product is exact in integers,
//! hence the same on every processor; then `sum += (dot - zero * sum of activations) * scale`, block by block, in plain
//! unfused float32.

mod float;
mod integer;
mod nearest;
mod quads;
mod trits;

use super::panels::{Form, Panels};
use super::{Layout, NotFinite, Precision, Sink, TILE_ROWS, check_rows};
use crate::cpu::Cpu;
use crate::cuda::{Codes, Kernel, Stored};
use half::f16;
use integer::Job;

/// What codes stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Book {
    /// Values of sixteen codes, and the bytes that stand for them in integers; none where a code is its own byte.
    table: Option<(&'static [f32; 16], &'static [u8; 16])>,
    /// The byte that stands for zero.
    bias: u8,
    /// The value of one step of a byte.
    unit: f32,
    /// Whether codes are 0, 1 and 2 alone.
    trits: bool,
}

impl Book {
    /// The largest magnitude of a value.
    fn largest(&self) -> f32 {
        let most = |values: &[f32; 16]| values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        self.table.map_or(255.0, |(values, _)| most(values))
    }

    /// The value of a code.
    pub fn value(&self, code: u8) -> f32 {
        match self.table {
            Some((values, _)) => values[usize::from(code)],
            None => f32::from(code) - f32::from(self.bias),
        }
    }
}

/// bitsandbytes' NF4: quantiles of a normal distribution.
pub static NF4_VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
/// To the nearest of 127 steps.
static NF4_BYTES: [u8; 16] = [1, 40, 61, 78, 92, 105, 116, 128, 138, 148, 159, 171, 184, 199, 220, 255];
/// bitsandbytes' FP4, the largest value being one.
pub static FP4_VALUES: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];
/// In steps of 1/96 all but the second are exact; that one is half a step.
static FP4_BYTES: [u8; 16] = [96, 96, 160, 192, 128, 144, 112, 120, 96, 96, 32, 0, 64, 48, 80, 72];
/// MXFP4's and NVFP4's E2M1.
pub static E2M1_VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// Twice the value, exactly.
static E2M1_BYTES: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// See [`NF4_VALUES`].
pub static NF4: Book =
    Book { table: Some((&NF4_VALUES, &NF4_BYTES)), bias: 128, unit: 1.0 / 127.0, trits: false };
/// See [`FP4_VALUES`].
pub static FP4: Book =
    Book { table: Some((&FP4_VALUES, &FP4_BYTES)), bias: 96, unit: 1.0 / 96.0, trits: false };
/// See [`E2M1_VALUES`].
pub static E2M1: Book = Book { table: Some((&E2M1_VALUES, &E2M1_BYTES)), bias: 12, unit: 0.5, trits: false };
/// Codes count from zero.
pub static COUNT: Book = Book { table: None, bias: 0, unit: 1.0, trits: false };
/// Four bits around eight.
pub static AROUND_8: Book = Book { table: None, bias: 8, unit: 1.0, trits: false };
/// Two bits around one.
pub static AROUND_1: Book = Book { table: None, bias: 1, unit: 1.0, trits: false };
/// Trits plus one.
pub static TRITS: Book = Book { trits: true, ..AROUND_1 };
/// Six bits around 32.
pub static AROUND_32: Book = Book { table: None, bias: 32, unit: 1.0, trits: false };
/// Eight bits around 128.
pub static AROUND_128: Book = Book { table: None, bias: 128, unit: 1.0, trits: false };

/// What stands beside the codes of a unit, numbered as in `coded.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Float,
    Pair,
    Zero,
    Exponents,
    Quarters,
    Halves,
    Row,
}

impl Side {
    /// Blocks of a unit.
    const fn blocks(self) -> usize {
        match self {
            Side::Float | Side::Zero => 1,
            Side::Pair => 2,
            Side::Exponents | Side::Quarters | Side::Halves | Side::Row => 4,
        }
    }

    /// Side words of a unit.
    const fn words(self) -> usize {
        match self {
            Side::Float | Side::Quarters => 2,
            Side::Row => 0,
            _ => 1,
        }
    }

    /// Where the float16 of a unit's block stands among the side words: the word, the lowest bit.
    const fn half(self, member: usize) -> (usize, u32) {
        match self {
            Side::Halves => (0, 16 * (member as u32 / 2)),
            Side::Zero => (0, 0),
            _ => (member / 2, 16 * (member as u32 % 2)),
        }
    }
}

/// A layout of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coded {
    name: &'static str,
    /// Of a code.
    bits: usize,
    /// Columns under one scale, a multiple of 16.
    block: usize,
    book: &'static Book,
    side: Side,
}

/// Up to [`TILE_ROWS`] rows as formats hand them over, whole rows one after another.
#[derive(Clone, Copy, Debug)]
pub struct CodedRows<'a> {
    /// One byte per column.
    pub codes: &'a [u8],
    /// One per block, ragged last blocks included.
    pub scales: &'a [f32],
    /// The same; not looked at where the layout has none.
    pub zeros: &'a [f32],
}

macro_rules! layouts {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $bits:literal, $block:literal, $book:ident, $side:ident;)*) => {
        $($(#[$doc])* pub static $id: Coded =
            Coded { name: $name, bits: $bits, block: $block, book: &$book, side: Side::$side };)*
        /// Every layout of codes.
        static ALL: &[&Coded] = &[$(&$id),*];
    };
}

layouts! {
    /// NF4 with a scale per 64.
    NF4_64 = "code4-nf4-64", 4, 64, NF4, Pair;
    /// NF4 with a scale per 32.
    NF4_32 = "code4-nf4-32", 4, 32, NF4, Pair;
    /// FP4 with a scale per 64.
    FP4_64 = "code4-fp4-64", 4, 64, FP4, Pair;
    /// FP4 with a scale per 32.
    FP4_32 = "code4-fp4-32", 4, 32, FP4, Pair;
    /// E2M1 under powers of two.
    MXFP4 = "code4-mxfp4", 4, 32, E2M1, Exponents;
    /// Four bits around eight.
    AROUND_8_32 = "code4-around8-32", 4, 32, AROUND_8, Pair;
    /// Four bits and a zero per 16.
    COUNT4_16 = "code4-zero-16", 4, 16, COUNT, Zero;
    /// Four bits and a zero per 32.
    COUNT4_32 = "code4-zero-32", 4, 32, COUNT, Zero;
    /// Four bits and a zero per 64.
    COUNT4_64 = "code4-zero-64", 4, 64, COUNT, Zero;
    /// Four bits and a zero per 128.
    COUNT4_128 = "code4-zero-128", 4, 128, COUNT, Zero;
    /// Six bits around 32.
    AROUND_32_16 = "code8-around32-16", 8, 16, AROUND_32, Pair;
    /// Eight bits around 128.
    AROUND_128_32 = "code8-around128-32", 8, 32, AROUND_128, Pair;
    /// Eight bits and a zero per 16.
    COUNT8_16 = "code8-zero-16", 8, 16, COUNT, Zero;
    /// Eight bits and a zero per 32.
    COUNT8_32 = "code8-zero-32", 8, 32, COUNT, Zero;
    /// Eight bits and a zero per 128.
    COUNT8_128 = "code8-zero-128", 8, 128, COUNT, Zero;
    /// Two bits around one with a scale per 64.
    AROUND_1_64 = "code2-around1-64", 2, 64, AROUND_1, Quarters;
    /// Two bits around one with a scale per 128.
    AROUND_1_128 = "code2-around1-128", 2, 64, AROUND_1, Halves;
    /// Two bits around one with a scale per row.
    AROUND_1_ROW = "code2-around1-row", 2, 64, AROUND_1, Row;
    /// Trits with a scale per 64.
    TRITS_64 = "trit-64", 2, 64, TRITS, Quarters;
    /// Trits with a scale per 128.
    TRITS_128 = "trit-128", 2, 64, TRITS, Halves;
    /// Trits with a scale per row.
    TRITS_ROW = "trit-row", 2, 64, TRITS, Row;
    /// NF4 for float32 arithmetic.
    NF4_EXACT = "code4-nf4-32-f32", 4, 32, NF4, Float;
    /// FP4 for float32 arithmetic.
    FP4_EXACT = "code4-fp4-32-f32", 4, 32, FP4, Float;
    /// Four bits and a zero per 32, for float32 arithmetic.
    COUNT4_EXACT_32 = "code4-zero-32-f32", 4, 32, COUNT, Float;
    /// Four bits and a zero per 16, for float32 arithmetic.
    COUNT4_EXACT_16 = "code4-zero-16-f32", 4, 16, COUNT, Float;
    /// Two bits and a zero per 64, for float32 arithmetic.
    COUNT2_EXACT_64 = "code2-zero-64-f32", 2, 64, COUNT, Float;
    /// Eight bits and a zero per 32, for float32 arithmetic.
    COUNT8_EXACT_32 = "code8-zero-32-f32", 8, 32, COUNT, Float;
    /// Eight bits and a zero per 16, for float32 arithmetic.
    COUNT8_EXACT_16 = "code8-zero-16-f32", 8, 16, COUNT, Float;
}

/// How the codes of a format lie, as far as a layout must know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coding {
    /// What they stand for.
    pub book: &'static Book,
    /// Of a code: 2, 4 or 8.
    pub bits: usize,
    /// Columns that share a scale, from the first column on; [`WHOLE_ROW`] for all.
    pub run: usize,
}

/// A run that every block divides: a whole row.
pub const WHOLE_ROW: usize = 1 << 20;

/// How ternary codes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Trits {
    /// Five to a byte: the fewest bytes.
    #[default]
    Packed,
    /// Of two bits each, which are ready to be multiplied as they are.
    Spread,
}

impl Trits {
    /// What a step of one token is expected to take less time with. Packed ones have fewer bytes, by a fifth, but take
    /// longer to open: enough threads are needed to open as many as memory brings.
    pub fn of(cpu: Cpu, threads: usize) -> Trits {
        let least = if cpu.vbmi() { 2 } else { 6 };
        if threads < least { Trits::Spread } else { Trits::Packed }
    }
}

impl Coding {
    /// The layout that holds them in the fewest bytes, where one holds them at all.
    pub fn layout(&self, precision: Precision, trits: Trits) -> Option<&'static Coded> {
        let exact = precision == Precision::Exact;
        // What stands around a number may have that number for a zero.
        let counts = self.book.table.is_none();
        let fits = |layout: &&&Coded| {
            let kind = layout.side == Side::Exponents || exact == (layout.side == Side::Float);
            let ternary = self.book.trits && *layout.book == AROUND_1;
            let book = *layout.book == *self.book || counts && *layout.book == COUNT || ternary;
            kind && book && layout.bits == self.bits && self.run.is_multiple_of(layout.run())
        };
        let bits = |layout: &&&Coded| layout.unit_words() * 512 / (layout.side.blocks() * layout.block);
        let is_shunned = |layout: &&&Coded| layout.book.trits && trits == Trits::Spread;
        ALL.iter().filter(fits).min_by_key(|layout| (is_shunned(layout), bits(layout))).copied()
    }
}

/// Where a block lies, and where its unit's side words are; in words from the tile's start.
#[derive(Clone, Copy, Debug)]
struct Place {
    side: usize,
    /// Its number within the unit.
    member: usize,
    codes: usize,
}

impl Coded {
    /// Columns that share a scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// What its codes stand for.
    pub fn book(&self) -> &'static Book {
        self.book
    }

    /// Blocks of a row, the last one filled up.
    pub fn blocks(&self, columns: usize) -> usize {
        columns.div_ceil(self.block)
    }

    /// Words of a row's block.
    fn block_words(&self) -> usize {
        // Of a block's trits, four of 64 stand in the unit's shared word.
        if self.book.trits { self.block * self.bits / 32 - 1 } else { self.block * self.bits / 32 }
    }

    /// Words of a row's unit beside those of its blocks.
    fn side_words(&self) -> usize {
        self.side.words() + usize::from(self.book.trits)
    }

    fn unit_words(&self) -> usize {
        self.side_words() + self.side.blocks() * self.block_words()
    }

    /// Columns that must have the same scale.
    pub fn run(&self) -> usize {
        match self.side {
            Side::Row => WHOLE_ROW,
            Side::Halves => 2 * self.block,
            _ => self.block,
        }
    }

    fn place(&self, block: usize) -> Place {
        let (unit, member) = (block / self.side.blocks(), block % self.side.blocks());
        let side = unit * self.unit_words();
        let codes = side + self.side_words() + member * self.block_words();
        Place { side: side * TILE_ROWS, member, codes: codes * TILE_ROWS }
    }

    /// Words of a tile before the row's multiples.
    fn words(&self, columns: usize) -> usize {
        let blocks = self.blocks(columns);
        let units = blocks.div_ceil(self.side.blocks());
        (units * self.side_words() + blocks * self.block_words()) * TILE_ROWS
    }

    /// Where in a row's block the code of a column stands: the word, the lowest bit. Not of trits.
    fn field(&self, column: usize) -> (usize, u32) {
        let per_word = 32 / self.bits;
        (column / per_word, (8 * (column % 4) + self.bits * (column % per_word / 4)) as u32)
    }

    /// Where the trits of a row's block stand.
    fn trits(&self, place: Place, row: usize) -> trits::Place {
        let shared = place.side + self.side.words() * TILE_ROWS + row;
        trits::Place { own: place.codes + row, shared, member: place.member }
    }

    /// The code of a row's column in a block.
    fn code(&self, words: &[u32], place: Place, row: usize, column: usize) -> u8 {
        if self.book.trits {
            return self.trits(place, row).get(column, words);
        }
        let (word, shift) = self.field(column);
        (words[place.codes + word * TILE_ROWS + row] >> shift & ((1 << self.bits) - 1)) as u8
    }

    /// Packs up to [`TILE_ROWS`] rows of codes. Powers of two are taken as given where the layout holds only those.
    pub fn pack_codes(&self, columns: usize, rows: CodedRows, tile: &mut [u8]) -> Result<(), NotFinite> {
        let blocks = self.blocks(columns);
        let count = rows.codes.len() / columns;
        assert!(count <= TILE_ROWS && rows.codes.len() == count * columns, "whole rows, at most one tile");
        assert!(rows.scales.len() == count * blocks && tile.len() == self.tile_bytes(columns));
        let words: &mut [u32] = bytemuck::cast_slice_mut(tile);
        words.fill(0);
        for r in 0..count {
            let scales = &rows.scales[r * blocks..][..blocks];
            let zeros = if self.has_zeros() { &rows.zeros[r * blocks..][..blocks] } else { &[] };
            let bad = |&b: &usize| {
                let zero = zeros.get(b).copied().unwrap_or(0.0);
                !((self.book.largest() + zero.abs()) * scales[b]).is_finite()
            };
            if let Some(bad) = (0..blocks).find(bad) {
                return Err(NotFinite { row: r, column: bad * self.block });
            }
            let row = Row { codes: &rows.codes[r * columns..][..columns], scales, zeros };
            self.pack_row(&row, r, words);
        }
        Ok(())
    }

    fn has_zeros(&self) -> bool {
        matches!(self.side, Side::Float | Side::Zero)
    }

    fn pack_row(&self, row: &Row, r: usize, words: &mut [u32]) {
        let zero = |b: usize| row.zeros.get(b).copied().unwrap_or(0.0);
        let scales = row.scales.iter().enumerate().map(|(b, &scale)| self.storable(scale, zero(b)).0);
        let multiple = match self.side {
            Side::Row => row.scales[0],
            _ => self.multiple(scales.fold(0.0f32, |most, scale| most.max(scale.abs()))),
        };
        let last = words.len() - TILE_ROWS;
        words[last + r] = multiple.to_bits();
        for (b, codes) in row.codes.chunks(self.block).enumerate() {
            let zeros = row.zeros.get(b..=b).unwrap_or(&[]);
            let block = Row { codes, scales: &row.scales[b..=b], zeros };
            self.pack_block_of(&block, b, multiple, r, words);
        }
    }

    /// Packs block `b` of row `r`; `block` is a row of that block alone.
    fn pack_block_of(&self, block: &Row, b: usize, multiple: f32, r: usize, words: &mut [u32]) {
        let place = self.place(b);
        let zero = block.zeros.first().copied().unwrap_or(0.0);
        let (scale, zero, flat) = self.storable(block.scales[0], zero);
        let (word, shift) = self.side.half(place.member);
        let side = &mut words[place.side + r..];
        match self.side {
            Side::Row => {}
            // Of two blocks the first says it.
            Side::Halves if place.member % 2 == 1 => {}
            Side::Float => {
                side[0] = scale.to_bits();
                side[TILE_ROWS] = zero.to_bits();
            }
            Side::Pair | Side::Quarters | Side::Halves => {
                side[word * TILE_ROWS] |= u32::from(half(scale, multiple)) << shift;
            }
            Side::Zero => {
                let zero = f16::from_f32(zero).to_bits();
                side[0] = u32::from(half(scale, multiple)) | u32::from(zero) << 16;
            }
            Side::Exponents => {
                let power = (127 + exponent(scale) - exponent(multiple)).max(0) as u32;
                side[0] |= power << (8 * place.member);
            }
        }
        if self.book.trits {
            self.trits(place, r).put(block.codes, words);
        } else if !flat {
            self.pack_block(block.codes, r, &mut words[place.codes..]);
        }
    }

    fn pack_block(&self, codes: &[u8], r: usize, words: &mut [u32]) {
        let per_word = 32 / self.bits;
        for (word, codes) in words[r..].iter_mut().step_by(TILE_ROWS).zip(codes.chunks(per_word)) {
            for (j, &code) in codes.iter().enumerate() {
                *word |= (u32::from(code) & ((1 << self.bits) - 1)) << self.field(j).1;
            }
        }
    }

    /// Scale and zero of a block. A zero beyond float16 leaves nothing of the codes: the block is one constant.
    fn storable(&self, scale: f32, zero: f32) -> (f32, f32, bool) {
        match self.side {
            Side::Zero if zero.abs() > ZERO_MAX => (scale * zero.abs(), zero.signum(), true),
            _ => (scale, zero, false),
        }
    }

    /// What a row's scales are stored as multiples of, given the largest: so that it uses float16 well, or is 2^0.
    fn multiple(&self, most: f32) -> f32 {
        match self.side {
            Side::Float => 1.0,
            Side::Row => most,
            _ if most == 0.0 => 1.0,
            Side::Exponents => libm::scalbnf(1.0, exponent(most)),
            Side::Pair | Side::Zero | Side::Quarters | Side::Halves => {
                libm::scalbnf(1.0, (exponent(most) - 14).max(-126))
            }
        }
    }

    /// Scale and zero of a row's block, as stored.
    fn scale(&self, words: &[u32], place: Place, row: usize) -> (f32, f32) {
        let (word, shift) = self.side.half(place.member);
        let (side, first) = (words[place.side + row], words[place.side + word * TILE_ROWS + row]);
        let wide = |bits: u32| f16::from_bits(bits as u16).to_f32();
        let (scale, zero) = match self.side {
            Side::Float => (f32::from_bits(side), f32::from_bits(words[place.side + TILE_ROWS + row])),
            Side::Pair | Side::Quarters | Side::Halves => (wide(first >> shift), 0.0),
            Side::Row => (1.0, 0.0),
            Side::Zero => (wide(side), wide(side >> 16)),
            Side::Exponents => (f32::from_bits((side >> (8 * place.member) & 0xff) << 23), 0.0),
        };
        (scale * f32::from_bits(words[words.len() - TILE_ROWS + row]), zero)
    }
}

/// A row on its way into a tile.
struct Row<'a> {
    codes: &'a [u8],
    scales: &'a [f32],
    zeros: &'a [f32],
}

/// The largest zero, well within float16.
const ZERO_MAX: f32 = 32768.0;

/// The exponent of a positive number, subnormal ones included; far below all others for zero.
fn exponent(x: f32) -> i32 {
    if x == 0.0 { -1000 } else { libm::ilogbf(x) }
}

/// The bits of a scale as a multiple.
fn half(scale: f32, multiple: f32) -> u16 {
    f16::from_f32(scale / multiple).to_bits()
}

impl Layout for Coded {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tile_bytes(&self, columns: usize) -> usize {
        (self.words(columns) + TILE_ROWS) * 4
    }

    fn pack(&self, columns: usize, rows: &[f32], tile: &mut [u8]) -> Result<(), NotFinite> {
        check_rows(columns, rows)?;
        assert_eq!(tile.len(), self.tile_bytes(columns));
        let words: &mut [u32] = bytemuck::cast_slice_mut(tile);
        words.fill(0);
        for (r, row) in rows.chunks_exact(columns).enumerate() {
            nearest::pack_row(self, row, r, words);
        }
        Ok(())
    }

    fn unpack(&self, columns: usize, tile: &[u8], row: usize, out: &mut [f32]) {
        assert!(row < TILE_ROWS && out.len() == columns);
        let words: &[u32] = bytemuck::cast_slice(tile);
        for (b, out) in out.chunks_mut(self.block).enumerate() {
            let place = self.place(b);
            let (scale, zero) = self.scale(words, place, row);
            for (j, x) in out.iter_mut().enumerate() {
                *x = (self.book.value(self.code(words, place, row, j)) - zero) * scale;
            }
        }
    }

    fn stored(&self) -> Stored {
        let Coded { bits, block, side, book, .. } = *self;
        let integer = match (bits, side, book.table.is_some()) {
            (_, Side::Float, _) => None,
            (4, Side::Pair, true) => Some([Kernel::table4_pair_1, Kernel::table4_pair_8]),
            (4, Side::Pair, false) => Some([Kernel::count4_pair_1, Kernel::count4_pair_8]),
            (4, Side::Exponents, true) => Some([Kernel::table4_powers_1, Kernel::table4_powers_8]),
            (4, Side::Zero, false) => Some([Kernel::count4_zero_1, Kernel::count4_zero_8]),
            (2, ..) if book.trits => Some([Kernel::trits_1, Kernel::trits_8]),
            (2, ..) => Some([Kernel::count2_1, Kernel::count2_8]),
            (8, Side::Pair, false) => Some([Kernel::count8_pair_1, Kernel::count8_pair_8]),
            (8, Side::Zero, false) => Some([Kernel::count8_zero_1, Kernel::count8_zero_8]),
            _ => None,
        };
        Stored::Coded(Codes {
            bits: bits as u32,
            block: block as u32,
            side: side as u32,
            trits: book.trits,
            bias: u32::from(book.bias),
            unit: book.unit,
            table: book.table.map(|(values, bytes)| (*bytes, *values)),
            integer,
        })
    }

    fn form(&self, precision: Precision, _: Cpu) -> Form {
        match (precision, self.side) {
            (Precision::Exact, _) | (_, Side::Float) => Form::Float,
            _ => Form::Int8 { block: self.block },
        }
    }

    fn coded(&self) -> Option<&Coded> {
        Some(self)
    }

    unsafe fn multiply(
        &self,
        cpu: Cpu,
        columns: usize,
        tile: &[u8],
        x: &Panels,
        sink: &Sink,
        first_row: usize,
    ) {
        let tile: &[u32] = bytemuck::cast_slice(tile);
        assert!(tile.len() * 4 == self.tile_bytes(columns), "a tile of {} bytes", tile.len() * 4);
        let job = Job { layout: self, columns, tile, x, sink, first_row };
        // SAFETY: passed on from the caller.
        unsafe {
            match x.form {
                Form::Float => float::multiply(cpu, &job),
                Form::Int8 { block } => {
                    let blocks = self.blocks(columns);
                    assert!(block == self.block && x.words == blocks * block / 4);
                    integer::multiply(cpu, &job);
                }
                Form::Bf16 => panic!("{} does not take activations as bfloat16", self.name),
            }
        }
    }
}
