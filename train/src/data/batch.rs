//! Examples side by side: rows of one width, filled up at the right.

use super::{Example, IGNORED};
use crate::settings::{DataSettings, Stage};

/// Rows of conversations are this much wider than need be, in LLaMA-Factory as well.
const MULTIPLE_OF_SFT: usize = 8;

/// How rows are filled up.
#[derive(Debug, Clone, Copy)]
pub struct Collation {
    /// The id that fills.
    pub pad: u32,
    /// The width is a multiple of this.
    pub multiple: usize,
    /// Whether what fills is learnt nevertheless (`ignore_pad_token_for_loss: false`).
    pub learns_padding: bool,
}

impl Collation {
    /// How the original fills the rows of a stage.
    pub fn new(settings: &DataSettings, stage: Stage, pad: u32) -> Self {
        let is_sft = stage == Stage::Sft;
        let multiple = if is_sft { MULTIPLE_OF_SFT } else { 1 };
        Self { pad, multiple, learns_padding: is_sft && !settings.ignore_pad }
    }
}

/// A batch of `rows` by `columns`, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// How many examples.
    pub rows: usize,
    /// Their common width.
    pub columns: usize,
    /// Token ids.
    pub ids: Vec<u32>,
    /// What is to be learnt at each, or `IGNORED`; nothing is shifted.
    pub labels: Vec<i32>,
    /// The position of each in its piece.
    pub positions: Vec<u32>,
    /// The piece that each belongs to, from 1 in every row; 0 for what fills. Attention stays within a piece.
    pub segments: Vec<u32>,
}

impl Batch {
    /// Puts examples together; without any, the batch has no columns.
    pub fn of(examples: &[&Example], collation: &Collation) -> Self {
        let longest = examples.iter().map(|example| example.ids.len()).max().unwrap_or(0);
        let columns = longest.next_multiple_of(collation.multiple.max(1));
        let rows = examples.len();
        let mut batch = Batch {
            rows,
            columns,
            ids: Vec::with_capacity(rows * columns),
            labels: Vec::with_capacity(rows * columns),
            positions: Vec::with_capacity(rows * columns),
            segments: Vec::with_capacity(rows * columns),
        };
        for (row, example) in (1..).zip(examples) {
            let end = row * columns;
            batch.ids.extend(&example.ids);
            batch.ids.resize(end, collation.pad);
            batch.labels.extend(&example.labels);
            batch.labels.resize(end, if collation.learns_padding { collation.pad as i32 } else { IGNORED });
            batch.positions.extend(example.positions());
            batch.positions.resize(end, 0);
            // What fills a packed row says nothing to anybody, whoever may look at it.
            let packed = example.pieces.iter().sum::<u32>() as usize;
            batch.segments.extend(example.segments().take(packed));
            batch.segments.resize(end, 0);
        }
        batch
    }

    /// How many tokens are learnt: those whose label is read by the token before.
    pub fn learnt(&self) -> usize {
        self.learnt_by_row().sum()
    }

    /// The same of each row.
    pub fn learnt_by_row(&self) -> impl Iterator<Item = usize> + '_ {
        let rows = self.labels.chunks(self.columns.max(1));
        rows.map(|row| row.iter().skip(1).filter(|&&label| label != IGNORED).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_filled_to_a_multiple() {
        let short = Example::alone(vec![1, 2], vec![IGNORED, 2]);
        let packed = Example {
            ids: vec![3, 4, 5, 0],
            labels: vec![3, 4, 5, IGNORED],
            pieces: vec![2, 1],
            is_apart: true,
        };
        let collation = Collation { pad: 9, multiple: 3, learns_padding: false };
        let batch = Batch::of(&[&short, &packed], &collation);
        assert_eq!((batch.rows, batch.columns, batch.learnt()), (2, 6, 3));
        assert_eq!(batch.ids, [1, 2, 9, 9, 9, 9, 3, 4, 5, 0, 9, 9]);
        const X: i32 = IGNORED;
        assert_eq!(batch.labels, [X, 2, X, X, X, X, 3, 4, 5, X, X, X]);
        assert_eq!(batch.positions, [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(batch.segments, [1, 1, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0]);
        let learning = Batch::of(&[&short], &Collation { learns_padding: true, ..collation });
        assert_eq!(learning.labels, [X, 2, 9]);
        assert_eq!(Batch::of(&[], &collation).columns, 0);
    }
}
