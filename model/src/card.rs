//! A card beside the processor, as an engine sees it: one more backend, with memory of its own. Who drives cards stands
//! outside of this package and is handed in by whoever opens an engine.

use std::any::Any;

use bantam_core::layouts::TILE_ROWS;
use bantam_core::{Backend, Batch, Matrix, Precision, Product, Slot};

/// What an engine asks of a card when it is loaded; all of it is taken at once.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Bytes of weights.
    pub weights: usize,
    /// Bytes of keys and values.
    pub cache: usize,
    /// Bytes of activations.
    pub work: usize,
    /// Tokens of a step at most.
    pub rows: usize,
    /// Words of all page tables.
    pub tables: usize,
    /// Bytes that are copied back at a time.
    pub results: usize,
    /// Where a product's input is prepared.
    pub panels: Slot,
    /// How floating point is done.
    pub precision: Precision,
}

impl Needs {
    /// Bytes of the card that they come to, up to rounding.
    pub fn bytes(&self) -> usize {
        self.weights + self.cache + self.work + self.words()
    }

    /// Bytes of the host's memory that are pinned for it.
    pub fn pinned(&self) -> usize {
        self.results + self.words()
    }

    fn words(&self) -> usize {
        // Four for where a row stands, one for its token.
        4 * (5 * self.rows + self.tables)
    }
}

/// Why no card takes part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCard {
    /// The machine has none that could.
    #[error("{0}")]
    Absent(String),
    /// What it may be used for holds no part of the model.
    #[error("{0}")]
    TooSmall(String),
    /// It did not give the memory that it had.
    #[error("{0}")]
    Memory(String),
    /// It does not do what it should.
    #[error("{0}")]
    Failed(String),
}

/// How a card failed while a model ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the card failed at {what}: {code}")]
pub struct CardFault {
    /// At what.
    pub what: &'static str,
    /// The driver's word for it.
    pub code: &'static str,
}

/// From how many tokens of a step on weights that do not stand on a card pass through it, so that it computes all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passage {
    /// From where that is faster than the processor, as measured with the model's own matrices when it is placed.
    #[default]
    Measured,
    /// From so many, whatever it costs, with pieces as small as they can be: for tests.
    From(usize),
    /// In every step, whatever it costs.
    Always,
    /// Never: no memory is taken for it.
    Never,
}

/// What of a model stands on a card that does not hold all of it, as people choose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residency {
    /// Shares of every layer, so that card and processor compute side by side; weights pass through the card where
    /// that is faster.
    #[default]
    Auto,
    /// The same shares stay, and all other weights pass through the card in every step.
    Pinned,
    /// Nothing stays that another layer could need the room of. A step needs all layers in their order, so that the one
    /// that was used longest ago is always the next: every weight passes in every step.
    Lru,
}

impl Residency {
    /// By their names.
    pub const ALL: [(&str, Residency); 3] =
        [("auto", Residency::Auto), ("pinned", Residency::Pinned), ("lru", Residency::Lru)];
    /// What one may write.
    pub const EXPECTED: &str = "auto, pinned or lru";

    /// The one of this name.
    pub fn named(text: &str) -> Option<Residency> {
        Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, residency)| *residency)
    }
}

impl From<Residency> for Manner {
    fn from(residency: Residency) -> Manner {
        let always = Manner { passage: Passage::Always, ..Manner::default() };
        match residency {
            Residency::Auto => Manner::default(),
            Residency::Pinned => always,
            Residency::Lru => Manner { stays: false, ..always },
        }
    }
}

/// How a model is put on cards. What no [`Residency`] is, is there to be measured beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// When weights pass through that do not stand there.
    pub passage: Passage,
    /// Whether a layer stands there as a whole or not at all, from the last one on; on one card.
    pub whole_layers: bool,
    /// Whether anything of layers stays there where not all has room.
    pub stays: bool,
    /// Whether a card that has all of a model keeps its steps, see [`Card::keep`].
    pub keeps: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Manner { passage: Passage::Measured, whole_layers: false, stays: true, keeps: true }
    }
}

/// A product, or the rows of one, whose results stand in wider rows.
#[derive(Debug, Clone, Copy)]
pub struct Passing {
    /// The product. All of its slots are the card's, its matrix' only where that stands there.
    pub product: Product,
    /// Whether the matrix does; otherwise its tiles are the host's.
    pub stands: bool,
    /// The first value of the output's slot that is written.
    pub first: usize,
    /// Values from one row of the output to the next.
    pub width: usize,
}

impl Passing {
    /// A product as it is.
    pub fn plain(product: &Product) -> Self {
        Passing { product: *product, stands: true, first: 0, width: product.matrix.shape.rows }
    }

    /// Whether a card can compute it with a ring of such slots: kernels know the end of a row by its width, so rows
    /// that are no whole tiles must be all there are, and come in one piece.
    pub fn fits(&self, slot_bytes: usize) -> bool {
        let Product { matrix, .. } = self.product;
        let is_even = matrix.shape.rows.is_multiple_of(TILE_ROWS);
        let is_all = matrix.shape.rows == self.width && matrix.slot.bytes <= slot_bytes;
        matrix.layout.tile_bytes(matrix.width()) <= slot_bytes && (is_even || is_all)
    }
}

/// So many cards compute one model at most.
pub const CARDS_MOST: usize = 8;

/// Slots of a ring: one is filled, one is copied, one is computed with.
pub const RING_SLOTS: usize = 3;

/// Rows of a matrix that [`Backwards::back`] has as numbers at a time: whole tiles.
pub const BACK_ROWS: usize = 128;

/// Who fills a piece with the host's weights from a byte of their region on.
pub type Fill<'a> = &'a mut dyn FnMut(usize, &mut [u8]);

/// Steps of up to so many rows can be kept, see [`Card::keep`].
pub const KEPT_ROWS: usize = 8;

/// What of a step a card can keep, by its rows, so as to do it again without being asked for every operation; with what
/// is not the same the next time.
#[derive(Debug, Clone, Copy)]
pub enum Stretch<'a> {
    /// Tokens through all layers.
    Layers {
        /// One for each row.
        tokens: &'a [u32],
        /// Where they stand.
        batch: &'a Batch<'a>,
    },
    /// The logits of some rows.
    Logits {
        /// Which.
        rows: &'a [usize],
    },
}

impl Stretch<'_> {
    /// Rows that it computes.
    pub fn rows(&self) -> usize {
        match self {
            Stretch::Layers { tokens, .. } => tokens.len(),
            Stretch::Logits { rows } => rows.len(),
        }
    }
}

/// A card that a part of a model stands on. Slots are offsets into its own regions.
///
/// Operations are queued, in order; [`Card::fetch`] and [`Card::fault`] wait for them. After a fault nothing is
/// computed, and what is fetched are zeros.
pub trait Card: Backend + Any + Send + std::fmt::Debug {
    /// Puts bytes into the beginning of a slot.
    fn upload(&mut self, slot: Slot, bytes: &[u8]);
    /// Hands out a slot's values, piece by piece, each with the place of its first.
    fn fetch(&mut self, slot: Slot, each: &mut dyn FnMut(usize, &[f32]));
    /// What went wrong first.
    fn fault(&self) -> Option<CardFault>;
    /// Bytes of it that were taken.
    fn bytes(&self) -> usize;
    /// Takes a ring of [`RING_SLOTS`] slots that weights pass through, here and there; `false` where there is no memory
    /// for it, and then none is kept.
    fn take_ring(&mut self, slot_bytes: usize) -> bool;
    /// Gives that back.
    fn drop_ring(&mut self);
    /// Brings rows together as [`Backend::gather`] does, over and over within a step: no list waits for the one
    /// before it.
    fn gather_again(&mut self, rows: &[u32], width: usize, x: Slot, out: Slot);
    /// Products of rows with matrices that stand there or pass through the ring.
    fn pass(&mut self, rows: usize, x: Slot, products: &[Passing], fill: Fill);
    /// From here on operations are written down and not done, until [`Card::keep`].
    fn begin(&mut self);
    /// Keeps what was written down as a stretch, if that can be done again as it is, and if no more than `most` bytes
    /// of the card are gone by it.
    fn keep(&mut self, stretch: Stretch, most: usize) -> Result<(), CardFault>;
    /// Bytes that went with what is kept.
    fn kept_bytes(&self) -> usize;
    /// Queues a stretch that was kept; `false` where none of so many rows was.
    fn again(&mut self, stretch: Stretch) -> bool;
    /// Makes both ready for [`Card::hand`], either way, by the straightest way that brings values over unharmed; what
    /// stands in the slot is lost.
    fn meet(&mut self, _other: &mut dyn Card, _slot: Slot) -> Result<(), NoCard> {
        Err(NoCard::Failed("it copies to no other card".to_owned()))
    }
    /// Queues a copy of a slot's values to the same slot of another card, behind all that either was asked before.
    fn hand(&mut self, _slot: Slot, _to: &mut dyn Card) {
        unreachable!("cards have met before they copy");
    }
}

/// What training asks of a card beside this.
pub trait Backwards: Card {
    /// From `dy`, rows of a product's results, to the gradient of its input, which its `out` gets, or has added. The
    /// matrix stands there or passes through the ring, and takes its input as it is; `unpacked` has room for
    /// [`BACK_ROWS`] of its rows, as many as a step must have.
    fn back(&mut self, rows: usize, dy: Slot, passing: &Passing, unpacked: Slot, fill: Fill);
    /// Sends the first pieces of a matrix that is to pass next into the ring, while what was queued is computed.
    fn send_ahead(&mut self, matrix: &Matrix, fill: Fill);
}

/// A card that was found, and of which nothing is taken yet.
pub trait Found {
    /// What it calls itself.
    fn name(&self) -> String;
    /// Bytes of it that are free.
    fn free_bytes(&self) -> Result<usize, NoCard>;
    /// Takes its memory; without success none is kept.
    fn take(self: Box<Self>, needs: &Needs) -> Result<Box<dyn Card>, NoCard>;
    /// The same for training.
    fn take_backwards(self: Box<Self>, needs: &Needs) -> Result<Box<dyn Backwards>, NoCard>;
}

/// A card that was looked at and not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it calls itself.
    pub name: String,
    /// Bytes of its memory, whoever has them.
    pub bytes: u64,
}

/// One of a machine's cards, which may not be there.
pub trait Cards: Send + Sync + std::fmt::Debug {
    /// Looks whether it is there, and takes nothing of it.
    fn look(&self) -> Result<Seen, NoCard>;
    /// Looks for it and makes it ready.
    fn find(&self) -> Result<Box<dyn Found>, NoCard>;
    /// How it is spelled on a command line, such as `cuda:0`.
    fn label(&self) -> String;
}
