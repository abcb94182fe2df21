//! Everything that can end a verb, with the exit status that scripts see.

use std::io;
use std::path::PathBuf;

use bantam_model::checkpoint::CheckpointError;
use bantam_model::checkpoint::writer::WriteError;
use bantam_model::engine::StepError;
use bantam_model::generate::GenerateError;
use bantam_model::generation::GenerationError;
use bantam_model::merge::MergeError;
use bantam_model::score::ScoreError;
use bantam_model::source::SourceError;
use bantam_quantize::error::QuantizeError;

use crate::pull::PullError;

/// Why a verb did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command makes no sense: said without looking at any model.
    #[error("{0}")]
    Usage(String),
    /// Something about the model or the input, in our own words.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Score(#[from] ScoreError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Quantize(Box<QuantizeError>),
    /// Sampling flags out of range.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Merge(Box<MergeError>),
    /// A repository was not fetched.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A file that the user named cannot be read.
    #[error("{}: {source}; expected {expected}", .path.display())]
    Read { path: PathBuf, expected: &'static str, source: io::Error },
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

/// Boxed, or every result would be as large as these.
impl From<QuantizeError> for Failure {
    fn from(error: QuantizeError) -> Self {
        Failure::Quantize(Box::new(error))
    }
}

impl From<MergeError> for Failure {
    fn from(error: MergeError) -> Self {
        Failure::Merge(Box::new(error))
    }
}

impl Failure {
    /// 2 for a command that makes no sense, 1 for one that failed.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Failure::Usage(_) | Failure::Generation(_) => 2,
            _ => 1,
        }
    }

    /// Whether the reader of our output has simply had enough, as `head` has.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A command that makes no sense.
pub(crate) fn usage(message: impl Into<String>) -> Failure {
    Failure::Usage(message.into())
}

/// A model or input that cannot be used as asked.
pub(crate) fn refused(message: impl Into<String>) -> Failure {
    Failure::Refused(message.into())
}
