//! A card beside the processor, as an engine sees it: one more backend, with memory of its own. Who drives cards stands
//! outside of this package and is handed in by whoever opens an engine.

use bantam_core::{Backend, Batch, Precision, Slot};

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
        // Four words for where a row stands, one for its token.
        self.weights + self.cache + self.work + 4 * (5 * self.rows + self.tables)
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
pub trait Card: Backend + Send + std::fmt::Debug {
    /// Puts bytes into the beginning of a slot.
    fn upload(&mut self, slot: Slot, bytes: &[u8]);
    /// Hands out a slot's values, piece by piece, each with the place of its first.
    fn fetch(&mut self, slot: Slot, each: &mut dyn FnMut(usize, &[f32]));
    /// What went wrong first.
    fn fault(&self) -> Option<CardFault>;
    /// Bytes of it that were taken.
    fn bytes(&self) -> usize;
    /// From here on operations are written down and not done, until [`Card::keep`].
    fn begin(&mut self);
    /// Keeps what was written down as a stretch, if that can be done again as it is.
    fn keep(&mut self, stretch: Stretch) -> Result<(), CardFault>;
    /// Queues a stretch that was kept; `false` where none of so many rows was.
    fn again(&mut self, stretch: Stretch) -> bool;
}

/// A card that was found, and of which nothing is taken yet.
pub trait Found {
    /// What it calls itself.
    fn name(&self) -> String;
    /// Bytes of it that are free.
    fn free_bytes(&self) -> Result<usize, NoCard>;
    /// Takes its memory; without success none is kept.
    fn take(self: Box<Self>, needs: &Needs) -> Result<Box<dyn Card>, NoCard>;
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
