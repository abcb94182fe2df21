//! The operations that a decoder is made of, as a device offers them, and the plain values that they take.
//!
//! All operands are [`Slot`]s: nothing here allocates or returns memory. Rows are tokens; `rows` says how many of a
//! slot's rows take part. A backend that only records what it is asked is enough to print a model's graph.

use crate::arena::Slot;
use crate::layouts::page::PageShape;
use crate::layouts::{Layout, Shape};
use crate::ops::experts::Choice;

/// A matrix in the weights region, tile after tile in its layout, or a stack of matrices of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// How it is stored.
    pub layout: &'static dyn Layout,
    /// Output rows and input columns; of one matrix, where it is a stack.
    pub shape: Shape,
    /// Where.
    pub slot: Slot,
    /// Where its columns stand in another order than its input's: for each of them the input's, as `u32`;
    /// [`IN_ORDER`](crate::ops::matmul::IN_ORDER) first where they do not.
    pub order: Option<Slot>,
    /// Where every input is multiplied by a factor first: one float32 for each.
    pub factors: Option<Slot>,
    /// How often it takes its input: so many matrices stand side by side in it, and their products are added.
    pub times: usize,
}

impl Matrix {
    /// A matrix that takes its input as it is.
    pub fn plain(layout: &'static dyn Layout, shape: Shape, slot: Slot) -> Matrix {
        Matrix { layout, shape, slot, order: None, factors: None, times: 1 }
    }

    /// Columns that are stored.
    pub fn width(&self) -> usize {
        self.times * self.shape.columns
    }

    /// Bytes that a matrix of so many rows and stored columns takes.
    pub fn bytes(layout: &dyn Layout, shape: Shape) -> Option<usize> {
        shape.tiles().checked_mul(layout.tile_bytes(shape.columns))
    }
}

/// One product of a [`Backend::matmul`]: several matrices may share an input.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The matrix.
    pub matrix: Matrix,
    /// A float32 vector in the weights region, one value per output row (of each matrix of a stack).
    pub bias: Option<Slot>,
    /// Where the result goes, `rows x shape.rows`.
    pub out: Slot,
    /// Whether it is added to what is there.
    pub add: bool,
}

/// The statistic that a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Mean and standard deviation.
    Layer,
}

/// A normalization with its parameters in the weights region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Channels.
    pub width: usize,
    /// Added under the root.
    pub epsilon: f32,
    /// Added to the weight.
    pub weight_shift: f32,
    /// float32.
    pub weight: Slot,
    /// float32.
    pub bias: Option<Slot>,
}

/// The bend of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x)
    Silu,
    /// x * Phi(x), with the error function.
    Gelu,
    /// Its approximation with tanh.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// x * sigmoid(1.702 x), x at most 7; where gated, times (up + 1), up within -7 and 7.
    ClampedSwish,
}

/// Heads of a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// How many.
    pub count: usize,
    /// Channels of one.
    pub width: usize,
}

impl Heads {
    /// Channels of all.
    pub fn channels(self) -> usize {
        self.count * self.width
    }
}

/// Rotary positions: one frequency per pair of channels, in the weights region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// float32, radians per position.
    pub frequencies: Slot,
    /// Multiplies cosines and sines (YaRN's attention factor; 1 elsewhere).
    pub scale: f32,
    /// Sequences longer than so many positions have other frequencies.
    pub longer: Option<(usize, Slot)>,
}

impl Feed {
    /// Position of a row in the sequence.
    pub fn position(&self, row: usize) -> usize {
        self.first_position + row - self.first_row
    }
}

impl Rope {
    /// The table for a sequence of so many positions.
    pub fn frequencies_at(&self, length: usize) -> Slot {
        match self.longer {
            Some((positions, frequencies)) if length > positions => frequencies,
            _ => self.frequencies,
        }
    }

    /// Pairs of channels.
    pub fn pairs(&self) -> usize {
        self.frequencies.bytes / 4
    }
}

/// The cache of one layer: `pages` pages, each with all key heads side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// In the cache region.
    pub slot: Slot,
    /// Key and value heads.
    pub heads: usize,
    /// A head's part of a page.
    pub shape: PageShape,
}

impl KvCache {
    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.heads * self.shape.bytes()
    }
}

/// Consecutive tokens of one sequence within a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feed {
    /// Row of the first of them.
    pub first_row: usize,
    /// How many.
    pub rows: usize,
    /// Position of the first of them in its sequence.
    pub first_position: usize,
    /// Which page table.
    pub sequence: usize,
    /// How long the sequence will be once all is read that is being read now, later feeds included.
    pub length: usize,
}

/// The tokens of a step: feeds in ascending rows, without gaps.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The feeds.
    pub feeds: &'a [Feed],
    /// Page tables of all sequences, `pages_per_sequence` numbers each.
    pub tables: &'a [u32],
    /// See `tables`.
    pub pages_per_sequence: usize,
}

impl<'a> Batch<'a> {
    /// Tokens in the step.
    pub fn rows(&self) -> usize {
        self.feeds.last().map_or(0, |feed| feed.first_row + feed.rows)
    }

    /// Panics where feeds are not in ascending rows without gaps: rows of different feeds are written at once.
    pub fn check(&self) {
        let mut end = 0;
        for feed in self.feeds {
            assert!(
                feed.first_row == end,
                "feeds must follow one another: row {} after {end}",
                feed.first_row
            );
            end += feed.rows;
        }
    }

    /// Page numbers of a feed's sequence.
    pub fn pages(&self, feed: &Feed) -> &'a [u32] {
        let start = feed.sequence * self.pages_per_sequence;
        &self.tables[start..start + self.pages_per_sequence]
    }

    /// The feed that a row belongs to.
    pub fn feed(&self, row: usize) -> &'a Feed {
        self.feeds.iter().rev().find(|feed| feed.first_row <= row).expect("feeds begin at row 0")
    }
}

/// What attention does beside dot products and softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: Heads,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Positions that a token sees, its own included.
    pub window: Option<usize>,
    /// Bends scores by `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// One score per query head, in the weights region.
    pub sinks: Option<Slot>,
}

/// Which rows go to which experts: made by [`Backend::route`], for as many rows as that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// How many experts, and how many for a row.
    pub choice: Choice,
    /// In the work region, [`Choice::bytes`].
    pub slot: Slot,
    /// Places that are computed here, where others are elsewhere: the first so many.
    pub part: Option<usize>,
}

impl Routed {
    /// Places of `rows` rows that are computed here.
    pub fn places(&self, rows: usize) -> usize {
        self.part.unwrap_or(self.choice.places(rows))
    }
}

/// What the input of [`Backend::matmul_experts`] has rows for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowPer {
    /// Tokens: every place takes its token's row.
    Token,
    /// Places.
    Place,
}

/// A device that carries out a decoder's operations on its own arena.
pub trait Backend {
    /// `out[i] = scale * table[tokens[i]]`.
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: Slot);
    /// Normalizes rows; `out` may be `x`.
    fn norm(&mut self, norm: &Norm, rows: usize, x: Slot, out: Slot);
    /// Multiplies rows by one to three matrices.
    fn matmul(&mut self, rows: usize, x: Slot, products: &[Product]);
    /// Chooses experts for rows by their logits.
    fn route(&mut self, routed: &Routed, rows: usize, logits: Slot);
    /// Multiplies every place by its expert's matrix of each stack. Results have one row per place.
    fn matmul_experts(&mut self, routed: &Routed, rows: usize, per: RowPer, x: Slot, products: &[Product]);
    /// Adds to every row what its places hold, `width` channels each, by their shares.
    fn combine(&mut self, routed: &Routed, rows: usize, width: usize, places: Slot, out: Slot);
    /// Multiplies the channels of every row, or of every place by its expert's, and adds a bias: `width` float32 values
    /// in the weights region for each, of every expert where rows are places.
    fn scale(
        &mut self,
        routed: Option<&Routed>,
        rows: usize,
        width: usize,
        factors: Slot,
        bias: Option<Slot>,
        x: Slot,
    );
    /// `out += x`.
    fn add(&mut self, rows: usize, width: usize, x: Slot, out: Slot);
    /// `x = limit * tanh(x / limit)`.
    fn cap(&mut self, limit: f32, rows: usize, width: usize, x: Slot);
    /// Cosines and sines for every row of a batch.
    fn angles(&mut self, rope: &Rope, batch: &Batch, out: Slot);
    /// Turns the heads of every row by its angles, in place.
    fn rotate(&mut self, rows: usize, angles: Slot, heads: Heads, x: Slot);
    /// Appends keys and values to the cache.
    fn store(&mut self, cache: &KvCache, batch: &Batch, keys: Slot, values: Slot);
    /// Attention of every row over its sequence's cache.
    fn attend(&mut self, attention: &Attention, cache: &KvCache, batch: &Batch, queries: Slot, out: Slot);
    /// `gate = f(gate)`, times `up` where the block is gated. `width` channels per row.
    fn activate(&mut self, activation: Activation, rows: usize, width: usize, gate: Slot, up: Option<Slot>);
    /// `out[i] = x[rows[i]]`.
    fn gather(&mut self, rows: &[usize], width: usize, x: Slot, out: Slot);
    /// The values of a slot, once all operations before are done.
    fn read(&self, slot: Slot) -> &[f32];
}
