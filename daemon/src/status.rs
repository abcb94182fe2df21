//! The only file that makes a `tonic::Status`: a refusal's canonical code and its `google.rpc` details.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Why a request is refused before any service sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The door has no room for the connection.
    #[error(
        "expected at most {most} connections at this door (limits.connections), found more; close some and retry"
    )]
    Connections {
        /// The setting.
        most: usize,
    },
    /// The client has too many requests open.
    #[error(
        "expected at most {most} requests of one client at once (limits.requests), found more; wait for some to end"
    )]
    Requests {
        /// The setting.
        most: usize,
    },
    /// The socket was opened by somebody else.
    #[error(
        "expected the user who runs this daemon, found user {uid}; run a daemon of your own, or use TCP with a token"
    )]
    User {
        /// Whoever connected.
        uid: u32,
    },
    /// A web page asks, through somebody's browser.
    #[error(
        "expected a program, found the {header} header of a browser; web pages may not talk to this daemon"
    )]
    Browser {
        /// What gave it away.
        header: &'static str,
    },
    /// The name that the client asked for is not this machine's.
    #[error(
        "expected localhost or a loopback address as the host of the request, found another name; connect by one"
    )]
    Host,
    /// A token is needed.
    #[error(
        "expected \"authorization: Bearer TOKEN\" with a token of this daemon's file, found none; send one"
    )]
    NoToken,
    /// The token is not known.
    #[error("expected a token of this daemon's file (tcp.tokens), found another; ask its owner for one")]
    WrongToken,
    /// The daemon is about to end.
    #[error("the daemon is ending; connect again when it is back")]
    Draining,
    /// The request came by no door: a mistake of ours.
    #[error("the request did not come by a door; please report this")]
    NoDoor,
}

/// When a client may try again whatever made no room.
const RETRY: Duration = Duration::from_secs(1);
/// Whose reasons `ErrorInfo` gives.
const DOMAIN: &str = "bantam";

impl Refusal {
    /// One word for figures and programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connections { .. } => "TOO_MANY_CONNECTIONS",
            Self::Requests { .. } => "TOO_MANY_REQUESTS",
            Self::User { .. } => "OTHER_USER",
            Self::Browser { .. } => "BROWSER",
            Self::Host => "FOREIGN_HOST",
            Self::NoToken => "NO_TOKEN",
            Self::WrongToken => "WRONG_TOKEN",
            Self::Draining => "DRAINING",
            Self::NoDoor => "NO_DOOR",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Connections { .. } | Self::Requests { .. } => Code::ResourceExhausted,
            Self::User { .. } | Self::Browser { .. } | Self::Host => Code::PermissionDenied,
            Self::NoToken | Self::WrongToken => Code::Unauthenticated,
            Self::Draining => Code::Unavailable,
            Self::NoDoor => Code::Internal,
        }
    }

    /// What the client is told.
    pub(crate) fn status(&self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason(), DOMAIN, []);
        match self {
            Self::Connections { .. } => {
                details.add_quota_failure_violation("limits.connections", self.to_string());
                details.set_retry_info(Some(RETRY));
            }
            Self::Requests { .. } => {
                details.add_quota_failure_violation("limits.requests", self.to_string());
                details.set_retry_info(Some(RETRY));
            }
            Self::Draining => {
                details.set_retry_info(Some(RETRY));
            }
            _ => {}
        }
        Status::with_error_details(self.code(), self.to_string(), details)
    }
}
