//! Examples on their way to batches: data sets, templates, masks, packing.
//!
//! Files become rows (`rows.rs`, `columnar/`), rows become conversations by what `dataset_info.json` says of their
//! columns (`info.rs`, `conversation.rs`), a template makes token ids of them (`template.rs`, `spoken.rs`), and rules
//! cut, mask and pack these (`encode.rs`, `packing.rs`); `prepare.rs` leads through all of it, `batch.rs` fills batches
//! and `order.rs` says in which order. Rules and their odd corners are those of LLaMA-Factory 0.9.3, so that the same
//! files give the same ids. It knows no model, only a tokenizer.

mod batch;
mod columnar;
mod conversation;
mod csv;
mod encode;
mod error;
mod hub;
mod info;
mod order;
mod packing;
mod parsed;
mod pcg;
mod prepare;
mod rows;
mod spoken;
mod summary;
mod template;
mod tokenized;
mod tools;

pub use batch::{Batch, Collation};
pub use error::DataError;
pub use order::epoch_order;
pub(crate) use order::{Twister, grouped};
pub use prepare::{Prepared, prepare};
pub use spoken::Spoken;
pub use summary::{SetSummary, Summary};
pub use template::template_names;

/// The label of a token that is read and not learnt.
pub const IGNORED: i32 = -100;

/// Token ids with what is to be learnt of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The ids; those behind the last piece are padding.
    pub ids: Vec<u32>,
    /// For every id the token to be learnt there, or `IGNORED`. Nothing is shifted.
    pub labels: Vec<i32>,
    /// How many ids each packed conversation has; one piece where nothing is packed.
    pub pieces: Vec<u32>,
    /// Whether a piece sees the others (`neat_packing` says no).
    pub is_apart: bool,
}

impl Example {
    /// One conversation.
    pub(crate) fn alone(ids: Vec<u32>, labels: Vec<i32>) -> Self {
        let pieces = vec![ids.len() as u32];
        Self { ids, labels, pieces, is_apart: false }
    }

    /// The position of every id, which begins anew in every piece; padding has 0.
    pub fn positions(&self) -> impl Iterator<Item = u32> {
        self.spread(|_, position| position)
    }

    /// What stands in the attention mask: the number of the piece from 1, and 0 for padding, where pieces are apart;
    /// 1 for all where they are not.
    pub fn segments(&self) -> impl Iterator<Item = u32> {
        let is_apart = self.is_apart;
        self.spread(move |piece, _| match (is_apart, piece) {
            (false, _) => 1,
            (true, piece) => piece,
        })
    }

    /// One value for every id: of its piece (from 1, and 0 behind the last) and its place therein.
    fn spread(&self, value: impl Fn(u32, u32) -> u32) -> impl Iterator<Item = u32> {
        let packed: u32 = self.pieces.iter().sum();
        let padding = self.ids.len() as u32 - packed;
        let pieces = (1..).zip(self.pieces.iter().copied()).chain([(0, padding)]);
        let places = pieces.flat_map(|(piece, length)| {
            (0..length).map(move |place| (piece, if piece == 0 { 0 } else { place }))
        });
        places.map(move |(piece, place)| value(piece, place))
    }

    /// How many tokens are learnt: the first has nothing before it that could foretell it.
    pub fn learnt(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORED).count()
    }
}
