//! `--adapter`: an adapter beside the model of a verb.

use std::path::PathBuf;

use bantam_model::source::Source;
use clap::Args;

use crate::chosen_model;
use crate::daemon::{DaemonFlags, Link};
use crate::failure::Failure;

/// What stands beside a model.
#[derive(Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct AdapterFlag {
    /// A PEFT adapter (LoRA, rsLoRA, DoRA) to use beside the model, which stays as it is: a folder, or the name of one
    /// that was pulled
    #[arg(long = "adapter", value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl AdapterFlag {
    /// The model, with the adapter if one was given.
    pub(crate) fn beside(&self, source: Source) -> Result<Source, Failure> {
        match &self.folder {
            Some(folder) => Ok(source.adapted(&chosen_model::found(folder))?),
            None => Ok(source),
        }
    }

    /// A daemon that can do it: none does where an adapter is given here.
    pub(crate) fn find(&self, daemon: &DaemonFlags) -> Result<Option<Link>, Failure> {
        match (daemon.find()?, &self.folder) {
            (Some(link), Some(_)) => {
                link.cannot::<()>(
                    "here an adapter is put beside the model by this program itself; requests of other clients name \
                     one in options.adapter",
                )?;
                Ok(None)
            }
            (link, _) => Ok(link),
        }
    }
}
