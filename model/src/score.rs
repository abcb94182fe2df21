//! Logits of given tokens, and what a model thinks of a text: perplexity. Nothing here chooses tokens.

use crate::engine::{Chunk, Engine, StepError};

/// Hands the logits of every position of `tokens` to `each`, in order, some rows at a time: the values, and how many
/// positions are done.
pub fn logits<E: From<StepError>>(
    engine: &mut Engine,
    tokens: &[u32],
    mut each: impl FnMut(&[f32], usize) -> Result<(), E>,
) -> Result<(), E> {
    let options = engine.plan().options;
    let sequence = engine.open().ok_or(StepError::Sequence(options.sequences))?;
    let result = engine.prefill(sequence, tokens, |engine, first, count| {
        let rows: Vec<usize> = (0..count).collect();
        for rows in rows.chunks(options.logits_rows) {
            let done = first + rows[rows.len() - 1] + 1;
            each(engine.logits(rows), done)?;
        }
        Ok(())
    });
    engine.close(sequence);
    result
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
) -> Result<Perplexity, StepError> {
    let mut sum = Perplexity { nats: 0.0, tokens: 0, windows: 0 };
    let windows: Vec<&[u32]> = tokens.chunks_exact(width).collect();
    for batch in windows.chunks(engine.plan().options.sequences) {
        sum.nats += score_windows(engine, batch)?;
        sum.tokens += batch.len() * (width - 1);
        sum.windows += batch.len();
        each(sum.windows);
    }
    Ok(sum)
}

/// Sums the surprise of some windows of equal width, which advance together.
fn score_windows(engine: &mut Engine, windows: &[&[u32]]) -> Result<f64, StepError> {
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
        // Row and the token that follows it; a window's last position has none.
        let targets: Vec<(usize, u32)> = windows
            .iter()
            .enumerate()
            .flat_map(|(i, window)| {
                let row = move |position| i * (end - first) + position - first;
                (first..end.min(width - 1)).map(move |position| (row(position), window[position + 1]))
            })
            .collect();
        for targets in targets.chunks(options.logits_rows) {
            let rows: Vec<usize> = targets.iter().map(|&(row, _)| row).collect();
            let logits = engine.logits(&rows);
            let vocab = logits.len() / rows.len();
            nats += logits
                .chunks_exact(vocab)
                .zip(targets)
                .map(|(row, &(_, token))| surprise(row, token))
                .sum::<f64>();
        }
    }
    sequences.iter().for_each(|&sequence| engine.close(sequence));
    Ok(nats)
}

/// Minus the logarithm of a token's probability.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_minus_the_logarithm_of_the_softmax() {
        assert!((surprise(&[1.0; 8], 3) - 8f64.ln()).abs() < 1e-12);
        assert!((surprise(&[2f32.ln(), 0.0], 1) - 3f64.ln()).abs() < 1e-6);
        assert!((surprise(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
    }
}
