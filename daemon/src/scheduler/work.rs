//! What can be asked of a model: a reply, the probabilities of given tokens, or a text as a vector. All three read
//! tokens in the same way; they differ in what they take from the rows.

use std::time::Duration;

use bantam_model::embedding::{EmbedError, Embedding, Pooling};
use bantam_model::engine::StepError;
use bantam_model::generate::GenerateError;
use bantam_model::score::{ScoreError, Scoring};
use bantam_model::turn::Turn;
use bantam_model::weights::WeightsError;

use super::steps::{StepLimits, Steps};

/// A request's work, and later its result: what is asked for goes in and comes back with what was found. It is made by
/// whoever asks, with all memory that it will need.
#[derive(Debug)]
pub enum Work {
    /// A reply, token by token.
    Generate(Box<Turn>),
    /// Probabilities of given tokens, all at once.
    Score(Score),
    /// A vector.
    Embed(Embed),
}

/// Why given tokens are not to be read.
#[derive(Debug, thiserror::Error)]
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
    /// No vector can be made.
    #[error(transparent)]
    Embed(#[from] EmbedError),
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
    tokens: usize,
    scoring: Scoring,
}

impl Score {
    /// Scores `tokens[first..]`.
    pub fn new(limits: &StepLimits, tokens: &[u32], first: usize) -> Result<Self, WorkError> {
        // The last one is not read.
        check(limits, tokens, 2, limits.context + 1)?;
        if first == 0 || first >= tokens.len() {
            return Err(WorkError::First { most: tokens.len() - 1, found: first });
        }
        let scoring = Scoring::new(tokens, first, limits.vocab).expect("the ids were checked");
        Ok(Score { tokens: tokens.len(), scoring })
    }

    /// In nats, one for each token that was to be scored.
    pub fn log_probabilities(&self) -> &[f64] {
        self.scoring.log_probabilities()
    }
}

/// A text as a vector.
#[derive(Debug)]
pub struct Embed {
    tokens: Vec<u32>,
    embedding: Embedding,
}

impl Embed {
    /// Reads all of `tokens`.
    pub fn new(limits: &StepLimits, tokens: Vec<u32>, pooling: Pooling) -> Result<Self, WorkError> {
        check(limits, &tokens, 1, limits.context)?;
        let embedding = Embedding::new(pooling, tokens.len(), limits.hidden)?;
        Ok(Embed { tokens, embedding })
    }

    /// As long as the model is wide; not normed. To be asked once all was read.
    pub fn vector(&mut self) -> Result<&[f32], EmbedError> {
        self.embedding.finish()
    }
}

impl Work {
    /// The tokens that a sequence must hold before there is anything more to say.
    pub fn wanted(&self) -> &[u32] {
        match self {
            Work::Generate(turn) => turn.history(),
            Work::Score(score) => score.scoring.history(),
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
            Work::Score(score) => score.tokens,
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

    /// How many tokens a sequence that was handed out may hold already: rows that are looked at must be computed.
    pub(super) fn reusable(&self) -> usize {
        match self {
            Work::Generate(turn) => turn.history().len() - 1,
            Work::Score(score) => score.scoring.positions(0, score.tokens).start,
            Work::Embed(embed) => embed.embedding.positions(0, embed.tokens.len()).start,
        }
    }

    /// Takes what `count` rows of the last step say, from `first_row` on, the first of which is of `position`. Nothing
    /// for a reply, whose rows are taken together with other replies'. `rows` is scratch.
    pub(super) fn take_rows(
        &mut self,
        steps: &mut impl Steps,
        (first_row, count): (usize, usize),
        position: usize,
        rows: &mut Vec<usize>,
    ) -> Result<(), Failure> {
        let StepLimits { logits_rows, .. } = steps.limits();
        let positions = match self {
            Work::Generate(_) => return Ok(()),
            Work::Score(score) => score.scoring.positions(position, count),
            Work::Embed(embed) => embed.embedding.positions(position, count),
        };
        rows.clear();
        rows.extend(positions.map(|at| first_row + at - position));
        for rows in rows.chunks(logits_rows) {
            match self {
                Work::Generate(_) => {}
                Work::Score(score) => score.scoring.take(steps.logits(rows)?)?,
                Work::Embed(embed) => embed.embedding.take(steps.hidden(rows)?),
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
        waited: Duration,
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
        waited: Duration,
    },
    /// The daemon, or this model, is about to end.
    #[error("the model is being taken down; try again later, or elsewhere")]
    Draining,
    /// The engine's thread has ended without a word.
    #[error(
        "the model's thread has ended; load the model again, and look for the reason in the daemon's log"
    )]
    Gone,
    /// The adapter that it was to be computed with cannot be read.
    #[error(transparent)]
    Adapter(#[from] WeightsError),
    /// The engine refused a step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// No token could be chosen.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A logit is no number.
    #[error(transparent)]
    Score(#[from] ScoreError),
}
