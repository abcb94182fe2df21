//! `--adapter`: an adapter beside the model of a verb.

use std::path::{Path, PathBuf};

use bantam_model::source::Source;
use clap::Args;

use crate::daemon::{DaemonFlags, Link};
use crate::failure::Failure;

/// What stands beside a model.
#[derive(Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct AdapterFlag {
    /// A PEFT adapter (LoRA, rsLoRA, DoRA) to use beside the model, which stays as it is
    #[arg(long = "adapter", value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl AdapterFlag {
    /// The model, with the adapter if one was given.
    pub(crate) fn beside(&self, source: Source) -> Result<Source, Failure> {
        match &self.folder {
            Some(folder) => Ok(source.adapted(folder)?),
            None => Ok(source),
        }
    }

    /// The folder that was given.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// A daemon that can do it: none takes adapters yet.
    pub(crate) fn find(&self, daemon: &DaemonFlags) -> Result<Option<Link>, Failure> {
        match (daemon.find()?, &self.folder) {
            (Some(link), Some(_)) => {
                link.cannot::<()>("it takes no adapters yet")?;
                Ok(None)
            }
            (link, _) => Ok(link),
        }
    }
}
