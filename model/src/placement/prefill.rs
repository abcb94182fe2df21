//! How long a prompt takes: every side computes what it has, or the card computes all and the rest passes through it.
//! From which number of tokens on the second is faster follows from the machine.

use super::machine::{Card, Machine};
use super::parts::{Block, LayerParts, Parts};
use super::shares::{LayerShare, Shares};
use super::time::{card_seconds, step_seconds, touched};

/// A prompt's forecast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prefill {
    /// Tokens that are read together.
    pub tokens: usize,
    /// Seconds for them.
    pub seconds: f64,
    /// Whether weights pass through the card for it.
    pub is_streamed: bool,
    /// The fewest tokens for which they do; `None` where that never pays.
    pub streams_from: Option<usize>,
}

/// Chunks are not longer.
const TOKENS_MAX: usize = 1 << 16;

impl Prefill {
    /// Of `tokens` tokens in one step.
    pub fn of(parts: &Parts, shares: &Shares, machine: &Machine, tokens: usize) -> Prefill {
        let in_place = step_seconds(parts, shares, machine, tokens, None);
        let streamed = streamed_seconds(parts, shares, machine, tokens);
        Prefill {
            tokens,
            seconds: streamed.map_or(in_place, |streamed| streamed.min(in_place)),
            is_streamed: streamed.is_some_and(|streamed| streamed < in_place),
            streams_from: streams_from(parts, shares, machine),
        }
    }

    /// Tokens per second.
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

/// Copies run beside the card's work, so the longer of the two counts; `None` where there is nothing to copy.
fn streamed_seconds(parts: &Parts, shares: &Shares, machine: &Machine, tokens: usize) -> Option<f64> {
    let card: Card = machine.card?;
    let missing = |(layer, share): (&LayerParts, &LayerShare)| {
        let attention = (1.0 - share.attention.part()) * layer.attention.held;
        let block = 1.0 - share.block.part();
        attention
            + block
                * match layer.block {
                    Block::Dense(part) => part.held,
                    Block::Experts { count, chosen, .. } => {
                        touched(count, chosen, tokens as f64) * layer.block.held()
                    }
                }
    };
    let bytes: f64 = parts.layers.iter().zip(&shares.layers).map(missing).sum();
    let copying = bytes / card.upload.min(machine.read);
    (bytes > 0.0).then(|| copying.max(card_seconds(parts, &card, tokens)))
}

/// By doubling, then by halving what is between: streaming gains on the other with every token.
fn streams_from(parts: &Parts, shares: &Shares, machine: &Machine) -> Option<usize> {
    let pays = |tokens: usize| {
        let streamed = streamed_seconds(parts, shares, machine, tokens);
        streamed.is_some_and(|streamed| streamed < step_seconds(parts, shares, machine, tokens, None))
    };
    let mut most = 1;
    while !pays(most) {
        most *= 2;
        if most > TOKENS_MAX {
            return None;
        }
    }
    let mut least = most / 2;
    while most - least > 1 {
        let middle = (least + most) / 2;
        if pays(middle) { most = middle } else { least = middle }
    }
    Some(most)
}
