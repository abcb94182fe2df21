//! Logits of given tokens, and what a model thinks of a text: log-probabilities of its tokens, and perplexity. Nothing
//! here chooses tokens.

use std::ops::Range;

use crate::engine::{Chunk, Engine, StepError};
use crate::likelihood::LogSoftmax;

/// Why a text was not scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The step itself failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A logit is not a number; what came of it would not be one either.
    #[error(
        "position {position}: expected numbers as logits, found {found} for id {id}; the weights or the computation \
         are broken"
    )]
    NotFinite {
        /// Where in the given tokens.
        position: usize,
        /// The first such token of the vocabulary.
        id: usize,
        /// NaN or an infinity.
        found: f32,
    },
}

impl ScoreError {
    /// The same in a text that begins so many tokens before.
    fn moved(self, by: usize) -> Self {
        match self {
            ScoreError::NotFinite { position, id, found } => {
                ScoreError::NotFinite { position: position + by, id, found }
            }
            other => other,
        }
    }
}

/// Hands the logits of every position of `tokens` to `each`, in order, some rows at a time: the values, all finite,
/// and how many positions are done.
pub fn logits<E: From<ScoreError>>(
    engine: &mut Engine,
    tokens: &[u32],
    mut each: impl FnMut(&[f32], usize) -> Result<(), E>,
) -> Result<(), E> {
    let options = engine.plan().options;
    let sequence = engine.open().ok_or(ScoreError::Step(StepError::Sequence(options.sequences)))?;
    let result = engine.prefill(sequence, tokens, |engine, first, count| {
        let rows: Vec<usize> = (0..count).collect();
        for rows in rows.chunks(options.logits_rows) {
            let done = first + rows[rows.len() - 1] + 1;
            let values = engine.try_logits(rows)?;
            for (row, values) in rows.iter().zip(values.chunks_exact(values.len() / rows.len())) {
                check_finite(values, first + row).map_err(Stop::Here)?;
            }
            each(values, done).map_err(Stop::Caller)?;
        }
        Ok(())
    });
    engine.close(sequence);
    result.map_err(|stop| match stop {
        Stop::Here(error) => error.into(),
        Stop::Caller(error) => error,
    })
}

/// Who ended the scoring.
enum Stop<E> {
    Here(ScoreError),
    Caller(E),
}

impl<E> From<StepError> for Stop<E> {
    fn from(error: StepError) -> Self {
        Stop::Here(error.into())
    }
}

fn check_finite(logits: &[f32], position: usize) -> Result<(), ScoreError> {
    match logits.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(id) => Err(ScoreError::NotFinite { position, id, found: logits[id] }),
    }
}

/// Log-probabilities of a text's tokens in the making, fed with logits while the text is read, some rows at a time.
/// Allocates nothing once it is made.
#[derive(Debug, Clone)]
pub struct Scoring {
    tokens: Vec<u32>,
    /// The first token that is scored.
    from: usize,
    vocab: usize,
    log_probabilities: Vec<f64>,
}

impl Scoring {
    /// Scores the tokens from number `from` on, all before being what they continue. The very first token has nothing
    /// before it and is never scored.
    pub fn new(tokens: &[u32], from: usize, vocab: usize) -> Result<Self, StepError> {
        // Also the last one, which no step will see.
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(StepError::UnknownToken { token, vocab });
        }
        let from = from.clamp(1, tokens.len().max(1));
        let log_probabilities = Vec::with_capacity(tokens.len().saturating_sub(from));
        Ok(Scoring { tokens: tokens.to_vec(), from, vocab, log_probabilities })
    }

    /// What a sequence has to read: all but the last token, after which nothing is asked.
    pub fn history(&self) -> &[u32] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }

    /// Of the `count` positions from `first` on, those whose logits are to be taken.
    pub fn positions(&self, first: usize, count: usize) -> Range<usize> {
        let end = (first + count).min(self.history().len());
        first.max(self.from - 1).min(end)..end
    }

    /// Takes the logits of the next of these, one row after another.
    pub fn take(&mut self, rows: &[f32]) -> Result<(), ScoreError> {
        for row in rows.chunks_exact(self.vocab) {
            let position = self.from - 1 + self.log_probabilities.len();
            check_finite(row, position)?;
            let logit = row[self.tokens[position + 1] as usize];
            self.log_probabilities.push(LogSoftmax::of(row).log_probability(logit));
        }
        Ok(())
    }

    /// Whether every token has its score.
    pub fn is_over(&self) -> bool {
        self.from + self.log_probabilities.len() >= self.tokens.len()
    }

    /// Logarithms of the probabilities of the tokens from the first that is scored, in nats.
    pub fn log_probabilities(&self) -> &[f64] {
        &self.log_probabilities
    }
}

/// Log-probabilities of the tokens from number `from` on, after those before.
pub fn log_probabilities(engine: &mut Engine, tokens: &[u32], from: usize) -> Result<Vec<f64>, ScoreError> {
    let (options, vocab) = (engine.plan().options, engine.spec().vocab);
    let mut scoring = Scoring::new(tokens, from, vocab)?;
    let history = scoring.history().to_vec();
    let sequence = engine.open().ok_or(StepError::Sequence(options.sequences))?;
    let read = engine.prefill(sequence, &history, |engine, first, count| {
        let rows: Vec<usize> = scoring.positions(first, count).map(|position| position - first).collect();
        rows.chunks(options.logits_rows).try_for_each(|rows| scoring.take(engine.try_logits(rows)?))
    });
    engine.close(sequence);
    read.map(|()| scoring.log_probabilities)
}

/// How surprised a model is by a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Negative log-likelihood of all scored tokens, in nats.
    pub nats: f64,
    /// Scored tokens: of every window all but the first.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
}

impl Perplexity {
    /// `exp` of the mean.
    pub fn value(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }
}

/// Scores windows of `width` tokens, side by side in the text, each from an empty cache; a last window that would be
/// shorter is left out. The engine's context must hold a window; as many windows run at once as it has sequences.
/// `each` is told how many windows are done.
pub fn perplexity(
    engine: &mut Engine,
    tokens: &[u32],
    width: usize,
    mut each: impl FnMut(usize),
) -> Result<Perplexity, ScoreError> {
    let mut sum = Perplexity { nats: 0.0, tokens: 0, windows: 0 };
    let windows: Vec<&[u32]> = tokens.chunks_exact(width).collect();
    for batch in windows.chunks(engine.plan().options.sequences) {
        sum.nats += score_windows(engine, batch, sum.windows * width)?;
        sum.tokens += batch.len() * (width - 1);
        sum.windows += batch.len();
        each(sum.windows);
    }
    Ok(sum)
}

/// Sums the surprise of some windows of equal width, which advance together; the first begins at token `begin`.
fn score_windows(engine: &mut Engine, windows: &[&[u32]], begin: usize) -> Result<f64, ScoreError> {
    let (options, vocab) = (engine.plan().options, engine.spec().vocab);
    let scorings = windows.iter().map(|window| Scoring::new(window, 1, vocab));
    let mut scorings = scorings.collect::<Result<Vec<_>, _>>()?;
    let sequences = windows.iter().map(|_| engine.open()).collect::<Option<Vec<_>>>();
    let sequences = sequences.ok_or(StepError::Sequence(options.sequences))?;
    let width = scorings.first().map_or(0, |scoring| scoring.history().len());
    for &sequence in &sequences {
        engine.announce(sequence, width)?;
    }
    let stride = (options.chunk / windows.len()).max(1);
    for first in (0..width).step_by(stride) {
        let end = (first + stride).min(width);
        let chunks: Vec<Chunk> = windows
            .iter()
            .zip(&sequences)
            .map(|(window, &sequence)| Chunk { sequence, tokens: &window[first..end] })
            .collect();
        engine.step(&chunks)?;
        let rows: Vec<usize> = (0..engine.rows()).collect();
        for rows in rows.chunks(options.logits_rows) {
            let logits = engine.try_logits(rows)?.chunks_exact(vocab);
            for (logits, row) in logits.zip(rows) {
                let window = row / (end - first);
                let taken = scorings[window].take(logits);
                taken.map_err(|error| error.moved(begin + window * windows[window].len()))?;
            }
        }
    }
    sequences.iter().for_each(|&sequence| engine.close(sequence));
    Ok(-scorings.iter().flat_map(Scoring::log_probabilities).sum::<f64>())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    #[test]
    fn scores_do_not_depend_on_cuts() {
        // Position p has the logits of p alone at token p + 1, so that scores tell positions apart.
        let tokens = [0, 1, 2, 3];
        let row = |position: usize| {
            let mut row = [0.0_f32; 4];
            row[position + 1] = position as f32;
            row
        };
        let wanted = |position: usize| LogSoftmax::of(&row(position)).log_probability(position as f32);
        for from in 0..5 {
            for cut in [vec![3], vec![4], vec![1, 1, 1], vec![2, 2], vec![1, 3]] {
                let (mut scoring, mut first) = (Scoring::new(&tokens, from, 4).unwrap(), 0);
                assert_eq!(scoring.history(), &tokens[..3]);
                for count in cut {
                    let positions = scoring.positions(first, count);
                    positions.for_each(|position| scoring.take(&row(position)).unwrap());
                    first += count;
                }
                let wanted: Vec<f64> = (from.max(1)..4).map(|token| wanted(token - 1)).collect();
                assert_eq!(
                    (scoring.log_probabilities(), scoring.is_over()),
                    (&wanted[..], true),
                    "from {from}"
                );
            }
        }
        let scoring = |tokens: &[u32]| Scoring::new(tokens, 1, 4);
        assert!(scoring(&[]).unwrap().is_over() && scoring(&[3]).unwrap().is_over());
        assert_eq!(scoring(&[0, 4]).unwrap_err(), StepError::UnknownToken { token: 4, vocab: 4 });
        let broken = scoring(&tokens).unwrap().take(&[0.0, f32::NAN, 0.0, 0.0]).unwrap_err();
        assert!(matches!(broken.moved(40), ScoreError::NotFinite { position: 40, id: 1, .. }));
    }
}
