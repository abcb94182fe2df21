//! Why an engine is not there, and why it refuses a step. Nothing is decided here.

use crate::card::{CardFault, NoCard};
use crate::plan::PlanError;
use crate::weights::WeightsError;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan cannot be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The weights are damaged.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The system did not give memory or threads.
    #[error("{what}: {source}; see `bantam plan` for what a run takes, and try a shorter --context")]
    System {
        /// What was asked for.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The card that was asked for takes no part.
    #[error(transparent)]
    Card(#[from] NoCard),
    /// The plan is larger than the memory that is free.
    #[error(
        "the plan needs {needed} bytes, {available} are available; its largest line is \"{line}\" with {bytes} bytes: {advice}"
    )]
    DoesNotFit {
        /// Bytes of the plan.
        needed: usize,
        /// Bytes that the system has.
        available: u64,
        /// The largest line.
        line: String,
        /// Its bytes.
        bytes: usize,
        /// What would help.
        advice: &'static str,
    },
}

/// Why a step was refused. Nothing has changed when it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// More positions than the sequence has room for: the context, or what was reserved for it.
    #[error(
        "the sequence would be {asked} tokens long, the context is {context}; shorten the prompt or raise --context"
    )]
    ContextFull {
        /// Length after the step.
        asked: usize,
        /// Positions of a sequence.
        context: usize,
    },
    /// More tokens than a step takes.
    #[error("a step of {asked} tokens, at most {most} fit")]
    TooManyTokens {
        /// In the step.
        asked: usize,
        /// Possible.
        most: usize,
    },
    /// A token outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The file that the weights are mapped from.
    #[error(
        "the model's native file was cut, or the disk fails, while it is in use: load the model again; \
         `bantam cache verify` tells whether the file is sound, --no-cache does without"
    )]
    Fault,
    /// The card that computed.
    #[error("{0}; this reply ends here, and what comes next is computed by the processor")]
    Card(CardFault),
    /// A sequence that grows beyond what its rotary tables are for, or that was lost with a card.
    #[error(
        "sequence {0} would outgrow the rotary tables that it was read with, or was lost with a card; rewind it to \
         its start, announce its length and read it again"
    )]
    MustRestart(usize),
    /// Sequences with different adapters in one step, or one whose adapter was not read.
    #[error(
        "the sequences of a step have one adapter, or none, which was read before it; step others apart, and call \
         Engine::seat when a sequence with an adapter was opened"
    )]
    Adapters,
    /// A sequence that is not open, or twice in a step.
    #[error("sequence {0} is not open, or stands twice in a step")]
    Sequence(usize),
}
