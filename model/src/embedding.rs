//! Embeddings of texts: one vector from the last hidden states of its tokens. What a model was not trained for this
//! way gives vectors all the same; whether they are of use is not known here.

use std::ops::Range;

use crate::engine::{Engine, StepError};

/// Why a text has no embedding.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The step itself failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Nothing to embed.
    #[error("expected at least one token, found none; give some text")]
    Empty,
    /// All sequences are in use, or the cache is.
    #[error("all {0} sequences are in use, or too little of the cache is free; end one")]
    NoSequence(usize),
    /// Not a number: what would come of it would not be one either.
    #[error("channel {channel}: expected a number, found {found}; the weights or the computation are broken")]
    NotFinite {
        /// The first such channel.
        channel: usize,
        /// NaN or an infinity.
        found: f32,
    },
}

/// How the hidden states of all tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last token's.
    Last,
}

/// One embedding in the making, fed with the hidden states of a text's tokens in their order, some at a time. Allocates
/// nothing once it is made; its result does not depend on how the text was cut.
#[derive(Debug, Clone)]
pub struct Embedding {
    pooling: Pooling,
    tokens: usize,
    sums: Vec<f64>,
    rows: usize,
    values: Vec<f32>,
}

impl Embedding {
    /// For a text of so many tokens and a model's hidden width.
    pub fn new(pooling: Pooling, tokens: usize, hidden: usize) -> Result<Self, EmbedError> {
        match tokens {
            0 => Err(EmbedError::Empty),
            _ => {
                Ok(Embedding { pooling, tokens, sums: vec![0.0; hidden], rows: 0, values: vec![0.0; hidden] })
            }
        }
    }

    /// Of the `count` positions from `first` on, those whose hidden states are to be taken.
    pub fn positions(&self, first: usize, count: usize) -> Range<usize> {
        let end = first + count;
        match self.pooling {
            Pooling::Mean => first..end,
            Pooling::Last => first.max(self.tokens - 1).min(end)..end,
        }
    }

    /// Takes the hidden states of the next of these, one after another.
    pub fn take(&mut self, states: &[f32]) {
        for row in states.chunks_exact(self.sums.len()) {
            self.sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            self.rows += 1;
        }
    }

    /// The vector, once all were taken.
    pub fn finish(&mut self) -> Result<&[f32], EmbedError> {
        let rows = self.rows.max(1) as f64;
        for (channel, (value, sum)) in self.values.iter_mut().zip(&self.sums).enumerate() {
            *value = (sum / rows) as f32;
            if !value.is_finite() {
                return Err(EmbedError::NotFinite { channel, found: *value });
            }
        }
        Ok(&self.values)
    }
}

/// The embedding of one text.
pub fn embed(engine: &mut Engine, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>, EmbedError> {
    let options = engine.plan().options;
    let mut embedding = Embedding::new(pooling, tokens.len(), engine.spec().hidden)?;
    let sequence = engine.open().ok_or(EmbedError::NoSequence(options.sequences))?;
    let read = engine.prefill(sequence, tokens, |engine, first, count| {
        let rows: Vec<usize> = embedding.positions(first, count).map(|position| position - first).collect();
        for rows in rows.chunks(options.logits_rows) {
            embedding.take(engine.try_hidden(rows)?);
        }
        Ok::<(), StepError>(())
    });
    engine.close(sequence);
    read?;
    embedding.finish().map(<[f32]>::to_vec)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    /// Three tokens of two channels, cut at every place.
    fn pooled(pooling: Pooling) -> Vec<Vec<f32>> {
        let states = [[1.0, 2.0], [3.0, -2.0], [5.0, 0.0]];
        let cuts = [vec![3], vec![1, 2], vec![2, 1], vec![1, 1, 1]];
        let pooled = cuts.iter().map(|cut| {
            let mut embedding = Embedding::new(pooling, 3, 2).unwrap();
            let mut first = 0;
            for &count in cut {
                embedding.take(states[embedding.positions(first, count)].as_flattened());
                first += count;
            }
            embedding.finish().unwrap().to_vec()
        });
        pooled.collect()
    }

    #[test]
    fn pooling_does_not_depend_on_cuts() {
        assert_eq!(pooled(Pooling::Mean), vec![vec![3.0, 0.0]; 4]);
        assert_eq!(pooled(Pooling::Last), vec![vec![5.0, 0.0]; 4]);
    }

    #[test]
    fn what_is_no_embedding_is_an_error() {
        assert!(matches!(Embedding::new(Pooling::Mean, 0, 2), Err(EmbedError::Empty)));
        let mut embedding = Embedding::new(Pooling::Last, 1, 2).unwrap();
        embedding.take(&[1.0, f32::NAN]);
        assert!(matches!(embedding.finish(), Err(EmbedError::NotFinite { channel: 1, .. })));
    }
}
