//! What can be asked of a model: a reply, the probabilities of given tokens, or a text as a vector. All three read tokens
//! in the same way; they differ in what they take from the rows.

use bantam_model::generate::GenerateError;
use bantam_model::likelihood::LogSoftmax;
use bantam_model::turn::Turn;

use super::steps::{StepLimits, Steps};

/// A request's work, and later its result: what is asked for goes in and comes back with what was found. It is made by
/// whoever asks, with all memory that it will need.
#[derive(Debug)]
pub enum Work {
    /// A reply, token by token.
    Generate(Turn),
    /// Probabilities of given tokens, all at once.
    Score(Score),
    /// A vector.
    Embed(Embed),
}

/// Why given tokens are not to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// Too few.
    #[error("expected at least {least} tokens, found {found}; give more text")]
    TooFew {
        /// That would do.
        least: usize,
        /// That came.
        found: usize,
    },
    /// More than the context holds.
    #[error("expected at most {most} tokens, the model's context here, found {found}; cut the text")]
    TooMany {
        /// That fit.
        most: usize,
        /// That came.
        found: usize,
    },
    /// No token of this model.
    #[error("expected ids below {vocab}, found {found} at place {place}; use this model's tokenizer")]
    Unknown {
        /// Size of the vocabulary.
        vocab: usize,
        /// The id.
        found: u32,
        /// Which token, from 0.
        place: usize,
    },
    /// A first token to score that is not there, or that has none before it.
    #[error(
        "expected the first token to score from 1 to {most}, found {found}: a probability needs a token before"
    )]
    First {
        /// The last possible.
        most: usize,
        /// What came.
        found: usize,
    },
}

fn check(limits: &StepLimits, tokens: &[u32], least: usize, most: usize) -> Result<(), WorkError> {
    let found = tokens.len();
    if found < least {
        return Err(WorkError::TooFew { least, found });
    }
    if found > most {
        return Err(WorkError::TooMany { most, found });
    }
    match tokens.iter().position(|&token| token as usize >= limits.vocab) {
        None => Ok(()),
        Some(place) => Err(WorkError::Unknown { vocab: limits.vocab, found: tokens[place], place }),
    }
}

/// The log-probability of each token from some place on, given those before it.
#[derive(Debug)]
pub struct Score {
    tokens: Vec<u32>,
    first: usize,
    found: Vec<f32>,
}

impl Score {
    /// Scores `tokens[first..]`.
    pub fn new(limits: &StepLimits, tokens: Vec<u32>, first: usize) -> Result<Self, WorkError> {
        // The last one is not read.
        check(limits, &tokens, 2, limits.context + 1)?;
        if first == 0 || first >= tokens.len() {
            return Err(WorkError::First { most: tokens.len() - 1, found: first });
        }
        let found = Vec::with_capacity(tokens.len() - first);
        Ok(Score { tokens, first, found })
    }

    /// In nats, one for each token that was to be scored.
    pub fn log_probabilities(&self) -> &[f32] {
        &self.found
    }

    /// Takes the logits after the token at `position`.
    fn take(&mut self, position: usize, logits: &[f32]) -> Result<(), Failure> {
        if position + 1 < self.first {
            return Ok(());
        }
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(Failure::NotFinite { position });
        }
        let id = self.tokens[position + 1] as usize;
        self.found.push(LogSoftmax::of(logits).log_probability(logits[id]) as f32);
        Ok(())
    }
}

/// How the hidden states of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last token's.
    Last,
}

/// A text as a vector.
#[derive(Debug)]
pub struct Embed {
    tokens: Vec<u32>,
    pooling: Pooling,
    sum: Vec<f64>,
    vector: Vec<f32>,
}

impl Embed {
    /// Reads all of `tokens`.
    pub fn new(limits: &StepLimits, tokens: Vec<u32>, pooling: Pooling) -> Result<Self, WorkError> {
        check(limits, &tokens, 1, limits.context)?;
        let sum = vec![0.0; if pooling == Pooling::Mean { limits.hidden } else { 0 }];
        Ok(Embed { tokens, pooling, sum, vector: vec![0.0; limits.hidden] })
    }

    /// As long as the model is wide; not normed.
    pub fn vector(&self) -> &[f32] {
        &self.vector
    }

    /// Takes the state after the token at `position`. Sums run in the order of tokens, whatever the chunks.
    fn take(&mut self, position: usize, state: &[f32]) -> Result<(), Failure> {
        if !state.iter().all(|value| value.is_finite()) {
            return Err(Failure::NotFinite { position });
        }
        self.sum.iter_mut().zip(state).for_each(|(sum, &value)| *sum += f64::from(value));
        if position + 1 == self.tokens.len() {
            match self.pooling {
                Pooling::Last => self.vector.copy_from_slice(state),
                Pooling::Mean => {
                    let count = self.tokens.len() as f64;
                    self.vector.iter_mut().zip(&self.sum).for_each(|(out, sum)| *out = (sum / count) as f32);
                }
            }
        }
        Ok(())
    }
}

impl Work {
    /// The tokens that a sequence must hold before there is anything more to say.
    pub fn wanted(&self) -> &[u32] {
        match self {
            Work::Generate(turn) => turn.history(),
            Work::Score(score) => &score.tokens[..score.tokens.len() - 1],
            Work::Embed(embed) => &embed.tokens,
        }
    }

    /// Positions that its sequence needs at most.
    pub fn positions_max(&self) -> usize {
        match self {
            Work::Generate(turn) => turn.positions_max(),
            _ => self.wanted().len(),
        }
    }

    /// Tokens that were given.
    pub fn prompt_tokens(&self) -> usize {
        match self {
            Work::Generate(turn) => turn.prompt_tokens(),
            Work::Score(score) => score.tokens.len(),
            Work::Embed(embed) => embed.tokens.len(),
        }
    }

    /// Tokens that were chosen.
    pub fn new_tokens(&self) -> usize {
        match self {
            Work::Generate(turn) => turn.ids().len(),
            _ => 0,
        }
    }

    /// How many tokens a sequence that was handed out may hold already.
    pub(super) fn reusable(&self) -> usize {
        match self {
            // The last token is read in any case: its logits are needed.
            Work::Generate(turn) => turn.history().len() - 1,
            // Every row is looked at, or none may be missing from the mean.
            Work::Score(score) => score.first - 1,
            Work::Embed(embed) if embed.pooling == Pooling::Last => embed.tokens.len() - 1,
            Work::Embed(_) => 0,
        }
    }

    /// Takes what `count` rows of the last step say, from `first_row` on, the first of which is of `position`. Nothing
    /// for a reply, whose rows are taken together with other replies'.
    pub(super) fn take_rows(
        &mut self,
        steps: &mut impl Steps,
        (first_row, count): (usize, usize),
        position: usize,
        rows: &mut Vec<usize>,
    ) -> Result<(), Failure> {
        let StepLimits { vocab, hidden, logits_rows, .. } = steps.limits();
        for begin in (0..count).step_by(logits_rows) {
            let some = logits_rows.min(count - begin);
            rows.clear();
            rows.extend(first_row + begin..first_row + begin + some);
            let position = position + begin;
            match self {
                Work::Generate(_) => {}
                // Rows that nobody asked for are not multiplied with the head.
                Work::Score(score) if position + some < score.first => {}
                Work::Score(score) => {
                    let values = steps.logits(rows).chunks_exact(vocab);
                    values.enumerate().try_for_each(|(i, values)| score.take(position + i, values))?;
                }
                Work::Embed(embed) => {
                    let values = steps.hidden(rows).chunks_exact(hidden);
                    values.enumerate().try_for_each(|(i, values)| embed.take(position + i, values))?;
                }
            }
        }
        Ok(())
    }
}

/// Why a request that had been accepted came to nothing, or to no end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its time is over.
    #[error("the deadline came after {waited:.1?}, {state}; allow more time, or ask for less")]
    Deadline {
        /// Since it arrived.
        waited: std::time::Duration,
        /// How far it was.
        state: &'static str,
    },
    /// Nobody took its tokens.
    #[error(
        "{tokens} tokens waited for {waited:.1?} and none was taken; read the stream, or ask for less at once"
    )]
    SlowReader {
        /// That wait.
        tokens: usize,
        /// Since the last was taken.
        waited: std::time::Duration,
    },
    /// The daemon, or this model, is about to end.
    #[error("the model is being taken down; try again later, or elsewhere")]
    Draining,
    /// The engine's thread has ended without a word.
    #[error(
        "the model's thread has ended; load the model again, and look for the reason in the daemon's log"
    )]
    Gone,
    /// The engine refused a step.
    #[error(transparent)]
    Step(#[from] bantam_model::engine::StepError),
    /// No token could be chosen.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// What was computed is no number.
    #[error(
        "position {position}: expected finite numbers, found others; the weights or the computation are broken"
    )]
    NotFinite {
        /// In the given tokens.
        position: usize,
    },
}
