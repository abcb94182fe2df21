//! Logits of given tokens, and what a model thinks of a text: perplexity. Nothing here chooses tokens.

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
            let values = engine.logits(rows);
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
    let options = engine.plan().options;
    let width = windows.first().map_or(0, |window| window.len());
    let sequences = windows.iter().map(|_| engine.open()).collect::<Option<Vec<_>>>();
    let sequences = sequences.ok_or(StepError::Sequence(options.sequences))?;
    let stride = (options.chunk / windows.len()).max(1);
    let mut nats = 0.0;
    for first in (0..width).step_by(stride) {
        let end = (first + stride).min(width);
        let chunks: Vec<Chunk> = windows
            .iter()
            .zip(&sequences)
            .map(|(window, &sequence)| Chunk { sequence, tokens: &window[first..end] })
            .collect();
        engine.step(&chunks)?;
        // Row, position in the text and the token that follows; a window's last position has none.
        let targets: Vec<(usize, usize, u32)> = windows
            .iter()
            .enumerate()
            .flat_map(|(i, window)| {
                let row = move |at| i * (end - first) + at - first;
                (first..end.min(width - 1)).map(move |at| (row(at), begin + i * width + at, window[at + 1]))
            })
            .collect();
        for targets in targets.chunks(options.logits_rows) {
            let rows: Vec<usize> = targets.iter().map(|&(row, ..)| row).collect();
            let logits = engine.logits(&rows);
            let vocab = logits.len() / rows.len();
            for (row, &(_, position, token)) in logits.chunks_exact(vocab).zip(targets) {
                check_finite(row, position)?;
                nats -= LogSoftmax::of(row).log_probability(row[token as usize]);
            }
        }
    }
    sequences.iter().for_each(|&sequence| engine.close(sequence));
    Ok(nats)
}
