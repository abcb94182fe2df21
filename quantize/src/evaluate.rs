//! A model before and after: perplexity of a text, and how far the second's predictions are from the first's.
//!
//! The two are never in memory together. What the first predicts is kept on the disk in between, of as many windows as
//! there is room for.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use bantam_model::engine::Engine;
use bantam_model::likelihood::LogSoftmax;
use bantam_model::score::{self, ScoreError};
use serde_json::{Value, json};

use crate::error::{QuantizeError, at};

/// Bytes of predictions on the disk at most.
pub const KEPT_BYTES_MAX: u64 = 1 << 30;

/// What a model makes of a text in windows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Tokens that were scored.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// The sum of their negative log-probabilities.
    pub nats: f64,
}

impl Measured {
    /// Perplexity.
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.tokens.max(1) as f64).exp()
    }
}

/// How far two models are from one another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// Positions that were compared.
    pub positions: usize,
    /// The sum of the divergences of the second's predictions from the first's, in nats.
    pub divergence: f64,
    /// Positions at which both have the same most probable token.
    pub agreed: usize,
}

/// A text in windows of tokens; each window scores all its tokens but the first.
#[derive(Debug, Clone)]
pub struct Text<'t> {
    /// Its tokens.
    pub ids: &'t [u32],
    /// Of a window.
    pub width: usize,
}

impl Text<'_> {
    /// How many there are.
    pub fn windows(&self) -> usize {
        self.ids.len() / self.width
    }

    /// Of how many windows the predictions are kept.
    fn kept(&self, vocab: usize) -> usize {
        let bytes = ((self.width - 1) * vocab * 4) as u64;
        ((KEPT_BYTES_MAX / bytes.max(1)) as usize).clamp(1, self.windows())
    }
}

/// Measures the model as it was, and keeps what it predicts.
pub fn before(
    engine: &mut Engine,
    text: &Text,
    kept: &Path,
    tell: &mut dyn FnMut(usize),
) -> Result<Measured, QuantizeError> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(kept).map_err(at(kept))?);
    let windows = text.kept(engine.spec().vocab);
    let measured = each_position(engine, text, tell, &mut |window, row, _| match window < windows {
        true => row.iter().try_for_each(|logit| out.write_all(&logit.to_le_bytes())).map_err(at(kept)),
        false => Ok(()),
    })?;
    out.flush().map_err(at(kept))?;
    Ok(measured)
}

/// Measures the model as it is now, and compares.
pub fn after(
    engine: &mut Engine,
    text: &Text,
    kept: &Path,
    tell: &mut dyn FnMut(usize),
) -> Result<(Measured, Distance), QuantizeError> {
    let vocab = engine.spec().vocab;
    let mut input = BufReader::with_capacity(1 << 20, File::open(kept).map_err(at(kept))?);
    let windows = text.kept(vocab);
    let (mut distance, mut first) = (Distance::default(), vec![0.0; vocab]);
    let measured = each_position(engine, text, tell, &mut |window, row, softmax| {
        if window < windows {
            read_row(&mut input, &mut first).map_err(at(kept))?;
            distance.add(&first, row, softmax);
        }
        Ok(())
    })?;
    Ok((measured, distance))
}

fn read_row(input: &mut impl Read, row: &mut [f32]) -> io::Result<()> {
    let mut bytes = vec![0; row.len() * 4];
    input.read_exact(&mut bytes)?;
    for (logit, bytes) in row.iter_mut().zip(bytes.chunks_exact(4)) {
        *logit = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Ok(())
}

impl Distance {
    fn add(&mut self, first: &[f32], second: &[f32], of_second: &LogSoftmax) {
        let of_first = LogSoftmax::of(first);
        let mut sum = 0.0;
        for (a, b) in first.iter().zip(second) {
            let a = of_first.log_probability(*a);
            sum += a.exp() * (a - of_second.log_probability(*b));
        }
        self.divergence += sum;
        self.agreed += usize::from(largest(first) == largest(second));
        self.positions += 1;
    }
}

/// The first of the largest.
fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (at, logit) in row.iter().enumerate() {
        if *logit > row[best] {
            best = at;
        }
    }
    best
}

/// Takes a window's number, its logits at a position, and their softmax.
type Each<'e> = &'e mut dyn FnMut(usize, &[f32], &LogSoftmax) -> Result<(), QuantizeError>;

/// Goes over all positions that predict a token of the text.
fn each_position(
    engine: &mut Engine,
    text: &Text,
    tell: &mut dyn FnMut(usize),
    each: Each,
) -> Result<Measured, QuantizeError> {
    let vocab = engine.spec().vocab;
    let mut measured = Measured::default();
    for (number, window) in text.ids.chunks_exact(text.width).enumerate() {
        let mut position = 0;
        score::logits(engine, &window[..window.len() - 1], |rows, _| {
            for row in rows.chunks_exact(vocab) {
                position += 1;
                let softmax = LogSoftmax::of(row);
                measured.nats -= softmax.log_probability(row[window[position] as usize]);
                each(number, row, &softmax).map_err(Stop)?;
            }
            Ok(())
        })
        .map_err(|Stop(error)| error)?;
        measured.tokens += window.len() - 1;
        measured.windows += 1;
        tell(measured.windows);
    }
    Ok(measured)
}

struct Stop(QuantizeError);

impl From<ScoreError> for Stop {
    fn from(error: ScoreError) -> Self {
        Stop(error.into())
    }
}

/// What a report says about it.
pub fn json(before: Measured, after: Measured, distance: Distance, width: usize) -> Value {
    let positions = distance.positions.max(1) as f64;
    json!({
        "context": width,
        "tokens": after.tokens,
        "perplexity_before": before.perplexity(),
        "perplexity_after": after.perplexity(),
        "perplexity_ratio": after.perplexity() / before.perplexity(),
        "compared_positions": distance.positions,
        // Fewer than tokens where more predictions than these would have to be kept.
        "kept_predictions_bytes_max": KEPT_BYTES_MAX,
        "kl_divergence": distance.divergence / positions,
        "top1_agreement": distance.agreed as f64 / positions,
    })
}
