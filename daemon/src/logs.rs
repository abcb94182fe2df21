//! Log lines on standard error, as text or JSON. Prompts, tokens (of both kinds) and generated text are never logged,
//! at any level: what a line needs is a request's number, a model's name, counts and times.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, Settings};

/// What to log, from a level or directives; nothing where the text is neither.
pub(crate) fn filter(text: &str) -> Option<EnvFilter> {
    // The library takes an unknown word for a target's name, which then logs nothing.
    let known = |part: &str| {
        let level = part.rsplit('=').next().unwrap_or(part).trim().to_lowercase();
        matches!(level.as_str(), "off" | "error" | "warn" | "info" | "debug" | "trace")
    };
    if !text.split(',').all(known) {
        return None;
    }
    EnvFilter::builder().parse(text).ok()
}

/// Starts logging for the whole process; where something already does, that goes on.
pub fn start(settings: &Settings) {
    let filter = filter(&settings.log_level).unwrap_or_else(|| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let started = match settings.log_format {
        LogFormat::Text => lines.with_ansi(stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    };
    if let Err(error) = started {
        tracing::warn!(%error, "log lines go where they went before");
    }
}
