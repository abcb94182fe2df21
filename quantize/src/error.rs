//! Why a checkpoint was not made.

use std::io;
use std::path::{Path, PathBuf};

use bantam_model::checkpoint::CheckpointError;
use bantam_model::checkpoint::writer::WriteError;
use bantam_model::engine::LoadError;
use bantam_model::files::FilesError;
use bantam_model::gguf::restore::RestoreError;
use bantam_model::score::ScoreError;
use bantam_model::source::SourceError;
use bantam_model::weights::WeightsError;

use crate::layerwise::MethodError;

/// Why a checkpoint was not made.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The model, the settings and the place do not go together: expected, found, what to do.
    #[error("{0}")]
    Refused(String),
    /// The model cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// One of its small files cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its weights are wrong.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Its headers are wrong, or those of what was written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A GGUF file could not be written out.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A file was not written; what is there already stays for the next start.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The method could not go on.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// A model could not be loaded for measuring.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A text could not be scored.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// The system refused something.
    #[error("{}: {source}; {advice}", .path.display())]
    Io {
        /// What it concerns.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Words for a refusal.
pub(crate) fn refused(words: impl Into<String>) -> QuantizeError {
    QuantizeError::Refused(words.into())
}

/// For `map_err` on what the system says about a path.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> QuantizeError {
    let path = path.to_owned();
    let advice = "check space and permissions, and start again: what is done already is kept";
    move |source| QuantizeError::Io { path, advice, source }
}
