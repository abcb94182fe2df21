//! How matrices lie in memory for the kernels: a few layouts that must be fast, for the many formats of files.
//!
//! All layouts share one geometry. A matrix of `rows x columns` (output rows, input columns) is cut into tiles of
//! [`TILE_ROWS`] rows. A tile is a sequence of *words*, 32 bits of one row each, with the rows of the tile side by
//! side, so that a vector lane belongs to one output row and a thread reads one ascending stream:
//!
//! ```text
//!            row 0      row 1            row 31
//! word 0   [ w0 w1.. ] [ w0 w1.. ] ... [ w0 w1.. ]      a word holds 1 f32, 2 bf16 or f16, 4 int8
//! word 1   [ .....   ] [ ....    ] ... [ ....    ]      along the columns
//! ```
//!
//! Rows past the end of a matrix are zero, columns past the end too. Sums along the columns run word by word in one
//! lane, whatever the number of tokens: a token's result does not depend on its neighbours.

pub mod code8;
pub mod coded;
#[doc(hidden)]
pub mod lookup;
pub mod page;
pub mod panels;
pub mod tile;
pub mod wide;

use crate::cpu::Cpu;
use crate::cuda::Stored;
use crate::ops::share::Shared;
use panels::{Form, Panels};

/// How floating point is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// float32 throughout.
    Exact,
    /// int8 activations for quantized layouts, bfloat16 dots for bfloat16 weights.
    Fast,
}

/// Output rows in a tile.
pub const TILE_ROWS: usize = 32;

/// The size of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Output rows.
    pub rows: usize,
    /// Input columns.
    pub columns: usize,
}

impl Shape {
    /// Tiles that hold the rows.
    pub fn tiles(self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }
}

/// Why a tile could not be packed: a weight that is not a finite number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// Row within the tile.
    pub row: usize,
    /// Column.
    pub column: usize,
}

/// Where the product of a matrix goes: `out[token][row]`.
#[derive(Clone, Copy, Debug)]
pub struct Sink<'a> {
    /// The output, `stride` floats per token.
    pub out: Shared<'a, f32>,
    /// Floats from one token to the next.
    pub stride: usize,
    /// Rows of the matrix; rows of the last tile beyond it are dropped.
    pub rows: usize,
    /// Added to every token.
    pub bias: Option<&'a [f32]>,
    /// Whether the product is added to what stands in `out`.
    pub add: bool,
}

/// A way to store matrices. `unpack` is the definition; `multiply` must agree with it.
pub trait Layout: Sync + core::fmt::Debug {
    /// Its name in plans, reports and native files.
    fn name(&self) -> &'static str;
    /// Bytes of a tile of `columns` columns, scales included; a multiple of 64.
    fn tile_bytes(&self, columns: usize) -> usize;
    /// Encodes up to [`TILE_ROWS`] rows (`rows` holds whole rows one after another) into a tile.
    fn pack(&self, columns: usize, rows: &[f32], tile: &mut [u8]) -> Result<(), NotFinite>;
    /// One row of a tile as float32.
    fn unpack(&self, columns: usize, tile: &[u8], row: usize, out: &mut [f32]);
    /// Itself, where it takes codes.
    fn coded(&self) -> Option<&coded::Coded> {
        None
    }
    /// Itself, where it is not quantized.
    fn wide(&self) -> Option<wide::Wide> {
        None
    }
    /// How it lies, for kernels on a card.
    fn stored(&self) -> Stored;
    /// What `multiply` wants its input prepared as.
    fn form(&self, precision: Precision, cpu: Cpu) -> Form;
    /// Multiplies one tile with all tokens of `x`, into rows `first_row..` of the sink.
    ///
    /// # Safety
    /// No other thread may touch those rows of the sink, and `x` must have been prepared for this `cpu`, these
    /// `columns` and the form that the layout asked for.
    unsafe fn multiply(
        &self,
        cpu: Cpu,
        columns: usize,
        tile: &[u8],
        x: &Panels,
        sink: &Sink,
        first_row: usize,
    );
}

/// Every layout, for tests and benches that visit all.
pub static LAYOUTS: &[&dyn Layout] = &[
    &wide::F32,
    &wide::BF16,
    &wide::F16,
    &code8::ROW,
    &coded::NF4_64,
    &coded::NF4_32,
    &coded::FP4_64,
    &coded::FP4_32,
    &coded::MXFP4,
    &coded::AROUND_8_32,
    &coded::COUNT4_16,
    &coded::COUNT4_32,
    &coded::COUNT4_64,
    &coded::COUNT4_128,
    &coded::AROUND_32_16,
    &coded::AROUND_128_32,
    &coded::COUNT8_16,
    &coded::COUNT8_32,
    &coded::COUNT8_128,
    &coded::AROUND_1_64,
    &coded::AROUND_1_128,
    &coded::AROUND_1_ROW,
    &coded::TRITS_64,
    &coded::TRITS_128,
    &coded::TRITS_ROW,
    &coded::COUNT2_EXACT_64,
    &coded::NF4_EXACT,
    &coded::FP4_EXACT,
    &coded::COUNT4_EXACT_32,
    &coded::COUNT4_EXACT_16,
    &coded::COUNT8_EXACT_32,
    &coded::COUNT8_EXACT_16,
];

/// For float32 weights.
pub static FLOAT32: &dyn Layout = &wide::F32;
/// For bfloat16 weights.
pub static BFLOAT16: &dyn Layout = &wide::BF16;
/// For float16 weights.
pub static FLOAT16: &dyn Layout = &wide::F16;
/// For weights in eight bits with a scale per row.
pub static INT8_ROWS: &dyn Layout = &code8::ROW;

/// Checks that whole rows of finite numbers were given, and says where one is not.
fn check_rows(columns: usize, rows: &[f32]) -> Result<(), NotFinite> {
    assert!(
        rows.len().is_multiple_of(columns) && rows.len() / columns <= TILE_ROWS,
        "whole rows, at most one tile of them"
    );
    match rows.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(NotFinite { row: at / columns, column: at % columns }),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
