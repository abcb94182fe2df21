//! Rows of a batch without what fills them up, one after another: what a step takes.

use super::{Batch, IGNORED};
use crate::data;

/// Tokens, labels and documents, in memory that is used again.
#[derive(Debug, Default)]
pub struct Flat {
    tokens: Vec<u32>,
    labels: Vec<i32>,
    documents: Vec<usize>,
    pieces: Vec<usize>,
}

impl Flat {
    /// Takes a batch's rows over. A row's labels are shifted as a whole, as transformers does it: the last token of a
    /// piece predicts the first of the next one, where that has a label. What fills goes with the piece before it where
    /// something is to be learnt of it, and else away.
    pub fn fill(&mut self, batch: &data::Batch) {
        self.tokens.clear();
        self.labels.clear();
        self.documents.clear();
        self.pieces.clear();
        for row in 0..batch.rows {
            let range = row * batch.columns..(row + 1) * batch.columns;
            let (labels, segments) = (&batch.labels[range.clone()], &batch.segments[range.clone()]);
            let positions = &batch.positions[range.clone()];
            let mut open = 0;
            for (at, (&id, &segment)) in batch.ids[range].iter().zip(segments).enumerate() {
                if segment == 0 && (labels[at] == IGNORED || open == 0) {
                    continue;
                }
                let is_new = segment != 0 && segment != open;
                if is_new {
                    self.documents.push(0);
                    open = segment;
                }
                if is_new || segment != 0 && positions[at] == 0 {
                    self.pieces.push(0);
                }
                *self.documents.last_mut().expect("a document is open") += 1;
                *self.pieces.last_mut().expect("a piece is open") += 1;
                self.tokens.push(id);
                self.labels.push(labels.get(at + 1).copied().unwrap_or(IGNORED));
            }
        }
    }

    /// What was taken over.
    pub fn batch(&self) -> Batch<'_> {
        Batch { tokens: &self.tokens, labels: &self.labels, documents: &self.documents, pieces: &self.pieces }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lose_what_fills_them_and_labels_move_by_one() {
        const X: i32 = IGNORED;
        let mut batch = data::Batch {
            rows: 2,
            columns: 4,
            ids: vec![1, 2, 9, 9, 3, 4, 5, 9],
            labels: vec![X, 2, X, X, 3, 4, 5, X],
            positions: vec![0, 1, 0, 0, 0, 1, 0, 0],
            segments: vec![1, 1, 0, 0, 1, 1, 2, 0],
        };
        let mut flat = Flat::default();
        flat.fill(&batch);
        assert_eq!(flat.tokens, [1, 2, 3, 4, 5]);
        assert_eq!(flat.labels, [2, X, 4, 5, X]);
        assert_eq!(flat.documents, [2, 2, 1]);
        assert_eq!(flat.batch().labelled(), batch.learnt());
        batch.labels = vec![X, 2, 9, 9, 3, 4, 5, 9];
        flat.fill(&batch);
        assert_eq!((flat.batch().labelled(), batch.learnt()), (6, 6));
        assert_eq!(flat.documents, [4, 2, 2]);
    }
}
