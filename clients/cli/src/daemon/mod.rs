//! A running daemon instead of this process: which one, how to reach it, and when to go on without it.

mod address;
mod link;
mod messages;
mod options;
mod reply;

use std::env;
use std::path::PathBuf;

use bantam_daemon::settings::{self, Surroundings};
use clap::Args;

use crate::failure::{Failure, usage};
use crate::output;

pub(crate) use address::Address;
pub(crate) use link::{Link, Step};
pub(crate) use messages::{conversation_of, message_of};
pub(crate) use options::generation_options;
pub(crate) use reply::{Words, finish_of, seconds};

/// Where a daemon is, for verbs that are nothing without one.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Daemon")]
pub(crate) struct DaemonPlace {
    /// The daemon to ask: unix:/path, http://host:port or https://host:port (or $BANTAM_CONNECT) [default: this user's]
    #[arg(long, value_name = "ADDR")]
    connect: Option<Address>,
    /// A file with the token that the daemon asks for
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authority of an https daemon's certificate, PEM
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

/// The same for verbs that also work without.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Daemon")]
pub(crate) struct DaemonFlags {
    #[command(flatten)]
    place: DaemonPlace,
    /// Works in this process, whatever daemon runs (as does BANTAM_LOCAL=1)
    #[arg(long, conflicts_with = "connect")]
    local: bool,
}

impl DaemonFlags {
    /// The daemon that was named, or this user's where it answers. One that nobody named and that cannot be used is
    /// no error: the verb works without.
    pub(crate) fn find(&self) -> Result<Option<Link>, Failure> {
        let is_local =
            self.local || env::var_os("BANTAM_LOCAL").is_some_and(|value| !value.is_empty() && value != "0");
        match self.place.named()? {
            _ if self.local => Ok(None),
            Some(address) if self.place.connect.is_some() || !is_local => {
                Ok(Some(self.place.open(&address, true)?))
            }
            _ if is_local => Ok(None),
            _ => {
                let address = usual();
                if !address.is_there() {
                    return Ok(None);
                }
                match self.place.open(&address, false) {
                    Ok(link) => Ok(Some(link)),
                    // A socket that nobody listens at is what a daemon leaves that was killed.
                    Err(_) if !address.is_listened_at() => Ok(None),
                    Err(failure) => {
                        output::warning(&format!(
                            "{failure}; going on without the daemon (--local: do not ask it)"
                        ));
                        Ok(None)
                    }
                }
            }
        }
    }

    /// The daemon, where it was named and its files are not ours.
    pub(crate) fn elsewhere(&self) -> Result<Option<Link>, Failure> {
        match (&self.place.connect, env::var_os("BANTAM_CONNECT")) {
            (None, None) => Ok(None),
            (Some(Address::Socket(_)), _) => Ok(None),
            _ => Ok(self.find()?.filter(|link| !link.shares_files())),
        }
    }
}

impl DaemonPlace {
    /// The daemon, or why there is none and what to do.
    pub(crate) fn need(&self) -> Result<Link, Failure> {
        let address = self.named()?;
        self.open(&address.unwrap_or_else(usual), true)
    }

    fn named(&self) -> Result<Option<Address>, Failure> {
        if let Some(address) = &self.connect {
            return Ok(Some(address.clone()));
        }
        match env::var("BANTAM_CONNECT") {
            Ok(text) if !text.is_empty() => {
                text.parse().map(Some).map_err(|error| usage(format!("BANTAM_CONNECT: {error}")))
            }
            _ => Ok(None),
        }
    }

    fn open(&self, address: &Address, is_named: bool) -> Result<Link, Failure> {
        let token_file =
            self.token_file.clone().or_else(|| env::var_os("BANTAM_TOKEN_FILE").map(PathBuf::from));
        Link::open(address, token_file.as_deref(), self.tls_ca.as_deref(), is_named)
    }
}

/// Where this user's daemon listens: as its settings say, or where it does by itself.
fn usual() -> Address {
    let around = Surroundings::of_process();
    // What is wrong with the settings is told by `bantam serve`.
    let told = settings::read(&settings::Flags::default(), &around);
    Address::Socket(told.map_or_else(|_| around.usual_socket(), |told| told.settings.socket))
}
