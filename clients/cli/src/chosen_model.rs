//! Which model a verb works on: a path, or the one that the program carries.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use bantam_daemon::carried;
use bantam_model::source::{Source, SourceError};
use clap::Args;

use crate::failure::Failure;
use crate::pull;

/// MODEL, by place or by name.
#[derive(Args)]
pub(crate) struct ChosenModel {
    /// Folder or .safetensors file in Hugging Face form, or the name of a model that was pulled; without it, the small
    /// model that bantam carries
    #[arg(value_name = "MODEL")]
    place: Option<PathBuf>,
    /// MODEL by name
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "place")]
    named: Option<PathBuf>,
}

impl ChosenModel {
    /// The path that was given.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.place.as_deref().or(self.named.as_deref())
    }

    pub(crate) fn open(&self) -> Result<Source, Failure> {
        Ok(open(self.path())?)
    }
}

/// Opens the model at a path, or the carried one.
pub(crate) fn open(path: Option<&Path>) -> Result<Source, SourceError> {
    match path {
        Some(path) => Source::open(&found(path)),
        None => carried::open(),
    }
}

/// A path as it stands, where there is something; or else what `bantam pull` has fetched by that name. Nothing is
/// fetched here.
pub(crate) fn found(path: &Path) -> Cow<'_, Path> {
    match path.exists() {
        true => Cow::Borrowed(path),
        false => pull::snapshot(path).map_or(Cow::Borrowed(path), Cow::Owned),
    }
}
