//! Why data cannot be used, with the place.

use std::io;
use std::path::PathBuf;

use bantam_model::tokenizer::TokenizerError;

/// What ends the reading of data. Single rows that are no good are dropped and counted instead.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum DataError {
    #[error("{}: expected {expected}, found {found}; {advice}", .path.display())]
    File { path: PathBuf, expected: &'static str, found: String, advice: String },
    #[error("{}:{line}: expected {expected}, found {found}; {advice}", .path.display())]
    Line { path: PathBuf, line: usize, expected: &'static str, found: String, advice: &'static str },
    #[error("{}: {source}; expected {expected}", .path.display())]
    Read { path: PathBuf, expected: &'static str, source: io::Error },
    #[error("data set {name}: expected {expected}, found {found}; {advice}")]
    Set { name: String, expected: &'static str, found: String, advice: String },
    #[error("template: expected {expected}, found {found}; {advice}")]
    Template { expected: &'static str, found: String, advice: String },
    #[error("{place}: {source}")]
    Text { place: String, source: TokenizerError },
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
}

impl DataError {
    /// Something about a data set as it is described.
    pub(super) fn set(name: &str, expected: &'static str, found: String, advice: impl Into<String>) -> Self {
        DataError::Set { name: name.to_owned(), expected, found, advice: advice.into() }
    }
}
