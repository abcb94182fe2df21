//! The only file that makes a `tonic::Status`: a refusal's canonical code and its `google.rpc` details.

use std::time::Duration;

use bantam_model::engine::{LoadError, StepError};
use bantam_model::generate::GenerateError;
use bantam_model::plan::PlanError;
use bantam_model::sampler::SamplerError;
use bantam_model::source::SourceError;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::models::{NotFound, Unavailable, Unusable};
use crate::residency;
use crate::scheduler::{self, Failure};

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
    /// A request was begun and did not come.
    #[error(
        "expected the whole request within {seconds} seconds of its start (limits.arrival), found an end missing; \
         send it at once"
    )]
    Late {
        /// The setting.
        seconds: u64,
    },
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
            Self::Late { .. } => "LATE",
            Self::Draining => "DRAINING",
            Self::NoDoor => "NO_DOOR",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Connections { .. } | Self::Requests { .. } => Code::ResourceExhausted,
            Self::User { .. } | Self::Browser { .. } | Self::Host => Code::PermissionDenied,
            Self::NoToken | Self::WrongToken => Code::Unauthenticated,
            Self::Late { .. } => Code::DeadlineExceeded,
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

/// A message that no service saw: the library calls it a mistake of ours (INTERNAL) or has a code that no other refusal
/// here has (OUT_OF_RANGE). It is the client's, in our words; our own refusals are known by their details.
pub(crate) fn unread(headers: &HeaderMap) -> Option<Status> {
    let found = Status::from_header_map(headers).filter(|status| status.details().is_empty())?;
    if !matches!(found.code(), Code::Internal | Code::OutOfRange) {
        return None;
    }
    let words: String = found.message().chars().take(200).collect();
    let why = format!(
        "expected one message of the service's, within limits.message_bytes, found: {words}; correct it, or shorten it"
    );
    let mut details = ErrorDetails::with_error_info("MESSAGE", DOMAIN, []);
    details.add_bad_request_violation("", &why);
    Some(Status::with_error_details(Code::InvalidArgument, why, details))
}

/// Why a service does not answer, or stops.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// A field is not what it must be.
    #[error("{field}: {why}")]
    Field {
        /// Its path in the request.
        field: String,
        /// What was expected, what was found, what to do.
        why: String,
    },
    /// It has its place, but does nothing yet.
    #[error("{0}")]
    NotYet(&'static str),
    /// The model cannot be had.
    #[error(transparent)]
    Model(#[from] Unavailable),
    /// Something has to be changed first.
    #[error("{0}")]
    Precondition(String),
    /// The scheduler did not take it.
    #[error(transparent)]
    Refused(#[from] scheduler::Refusal),
    /// It came to nothing.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// There is no such job.
    #[error("there is no job {0}; JobService.List tells all")]
    NoJob(String),
    /// Only the user of this machine may.
    #[error("{0}")]
    FromAfar(&'static str),
    /// Its time was over before a model had it.
    #[error("the deadline came while the request waited for its model or for a processor; allow more time")]
    Deadline,
    /// What the model computes is no number.
    #[error("{0}")]
    Broken(String),
    /// Code of ours stopped half way.
    #[error("the daemon stopped in the middle of this request, by a mistake of its own; please report this")]
    Panicked,
}

impl Trouble {
    /// A field that is refused.
    pub(crate) fn field(field: impl Into<String>, why: impl ToString) -> Self {
        Trouble::Field { field: field.into(), why: why.to_string() }
    }
}

impl From<Unusable> for Trouble {
    fn from(error: Unusable) -> Self {
        Trouble::Model(error.into())
    }
}

impl From<NotFound> for Trouble {
    fn from(error: NotFound) -> Self {
        Trouble::Model(error.into())
    }
}

/// A code with its details, and when to try again.
type Judged = (Code, ErrorDetails);

fn plain(code: Code, reason: &'static str) -> Judged {
    (code, ErrorDetails::with_error_info(reason, DOMAIN, []))
}

fn field(field: &str, why: String) -> Judged {
    let mut judged = plain(Code::InvalidArgument, "FIELD");
    judged.1.add_bad_request_violation(field, why);
    judged
}

fn exhausted(subject: &str, why: String, retry: Option<Duration>) -> Judged {
    let mut judged = plain(Code::ResourceExhausted, "NO_ROOM");
    judged.1.add_quota_failure_violation(subject, why);
    // An empty one would say: at once.
    if retry.is_some() {
        judged.1.set_retry_info(retry);
    }
    judged
}

fn unavailable() -> Judged {
    let mut judged = plain(Code::Unavailable, "DRAINING");
    judged.1.set_retry_info(Some(RETRY));
    judged
}

fn not_found(name: &str, why: String) -> Judged {
    let mut judged = plain(Code::NotFound, "NO_SUCH_MODEL");
    judged.1.set_resource_info("bantam.v1.Model", name, "", why);
    judged
}

impl From<Trouble> for Status {
    fn from(trouble: Trouble) -> Self {
        let message = trouble.to_string();
        let (code, details) = match &trouble {
            Trouble::Field { field: name, why } => field(name, why.clone()),
            Trouble::NotYet(_) => plain(Code::Unimplemented, "NOT_YET"),
            Trouble::Model(error) => of_model(error),
            Trouble::Precondition(_) => plain(Code::FailedPrecondition, "PRECONDITION"),
            Trouble::Refused(refusal) => of_refusal(refusal),
            Trouble::Failed(failure) => of_failure(failure),
            Trouble::NoJob(id) => {
                let mut judged = plain(Code::NotFound, "NO_SUCH_JOB");
                judged.1.set_resource_info("bantam.v1.Job", id, "", message.clone());
                judged
            }
            Trouble::FromAfar(_) => plain(Code::PermissionDenied, "PATH"),
            Trouble::Deadline => plain(Code::DeadlineExceeded, "DEADLINE"),
            Trouble::Broken(_) => plain(Code::DataLoss, "MODEL_BROKE"),
            Trouble::Panicked => plain(Code::Internal, "PANIC"),
        };
        Status::with_error_details(code, message, details)
    }
}

fn of_model(error: &Unavailable) -> Judged {
    match error {
        Unavailable::NotFound(NotFound::Malformed { .. }) => field("model", error.to_string()),
        Unavailable::NotFound(NotFound::Adapter { .. }) => field("options.adapter", error.to_string()),
        Unavailable::NotFound(NotFound::PathFromAfar) => plain(Code::PermissionDenied, "PATH"),
        Unavailable::NotFound(NotFound::Unknown { name } | NotFound::Outside { name }) => {
            not_found(name, error.to_string())
        }
        Unavailable::Unusable(Unusable(error)) => of_source(error),
        Unavailable::Room { why, line } => of_room(why, line.as_ref()),
        Unavailable::Differs { .. } => plain(Code::FailedPrecondition, "OTHER_OPTIONS"),
        Unavailable::Lost => plain(Code::Internal, "LOAD_LOST"),
    }
}

fn of_source(error: &SourceError) -> Judged {
    match error {
        SourceError::Load(LoadError::DoesNotFit { line, .. }) => exhausted(line, error.to_string(), None),
        SourceError::Load(LoadError::System { what, .. }) => exhausted(what, error.to_string(), None),
        SourceError::Plan { source, .. } | SourceError::Load(LoadError::Plan(source)) => match source {
            PlanError::Context { .. } => field("options.context", source.to_string()),
            PlanError::Cache { .. } => field("options.cache_positions", source.to_string()),
            PlanError::TooLarge { what } => exhausted(what, source.to_string(), None),
            _ => plain(Code::FailedPrecondition, "CHECKPOINT"),
        },
        _ => plain(Code::FailedPrecondition, "CHECKPOINT"),
    }
}

fn of_room(why: &residency::Refusal, line: Option<&(String, u64)>) -> Judged {
    use residency::Refusal;
    let is_about_places = match why {
        Refusal::TooLarge(account) | Refusal::Pinned(account) | Refusal::OverBudget(account) => {
            account.device == residency::Device::Places
        }
        _ => false,
    };
    let line = line.filter(|_| !is_about_places);
    let subject = if is_about_places { "models.max" } else { line.map_or("ram", |(name, _)| name.as_str()) };
    let told = match line {
        Some((name, bytes)) => format!("{why}; the largest line of its plan is {name:?} with {bytes} bytes"),
        None => why.to_string(),
    };
    match why {
        Refusal::TooLarge(_) | Refusal::Pinned(_) => exhausted(subject, told, None),
        Refusal::OverBudget(_) => exhausted(subject, told, Some(RETRY)),
        Refusal::QueueFull { .. } => exhausted("schedule.queue", told, Some(RETRY)),
        Refusal::Unloaded => unavailable(),
        Refusal::NotLoaded => not_found("", told),
        Refusal::StaysPinned | Refusal::Leaving => plain(Code::FailedPrecondition, "STATE"),
        Refusal::Cancelled => plain(Code::Cancelled, "CANCELLED"),
        Refusal::LoadFailed => plain(Code::Internal, "LOAD_LOST"),
    }
}

fn of_refusal(refusal: &scheduler::Refusal) -> Judged {
    use scheduler::Refusal;
    match refusal {
        Refusal::QueueFull { retry_after, .. } | Refusal::ClientFull { retry_after, .. } => {
            exhausted("schedule.queue", refusal.to_string(), Some(*retry_after))
        }
        Refusal::TooLong { .. } => field("max_new_tokens", refusal.to_string()),
        Refusal::UnknownToken { .. } => field("prompt_ids", refusal.to_string()),
        Refusal::Draining => unavailable(),
        Refusal::Gone => unavailable(),
        Refusal::Broken(_) => plain(Code::DataLoss, "MODEL_BROKE"),
    }
}

fn of_failure(failure: &Failure) -> Judged {
    match failure {
        Failure::Deadline { .. } => plain(Code::DeadlineExceeded, "DEADLINE"),
        Failure::SlowReader { .. } => exhausted("schedule.slow_reader", failure.to_string(), None),
        Failure::Draining => unavailable(),
        Failure::Step(StepError::Fault) | Failure::Score(_) => plain(Code::DataLoss, "MODEL_BROKE"),
        Failure::Adapter(_) => field("options.adapter", failure.to_string()),
        Failure::Step(StepError::Card(_)) => plain(Code::Unavailable, "CARD_LOST"),
        Failure::Generate(GenerateError::Sampler(SamplerError::NotANumber { .. })) => {
            plain(Code::DataLoss, "MODEL_BROKE")
        }
        Failure::Generate(GenerateError::Sampler(SamplerError::NothingLeft)) => {
            field("options.logit_bias", failure.to_string())
        }
        Failure::Gone | Failure::Step(_) | Failure::Generate(_) => plain(Code::Internal, "ENGINE"),
    }
}
