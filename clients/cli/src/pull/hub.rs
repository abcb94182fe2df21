//! What the variables of huggingface_hub say: where the hub is, who asks, and where its cache lies. Both tools read the
//! same ones, so that what one fetched the other finds.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bantam_model::hub;

use super::error::PullError;

const ENDPOINT: &str = "https://huggingface.co";
/// A server that says nothing for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(30);
/// No token is longer; a file that is longer is no token.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Looks up a variable of the environment; tests have one of their own.
pub(crate) type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Where to ask, and as whom.
#[derive(Debug)]
pub(super) struct Hub {
    /// Without a slash at its end.
    pub(super) endpoint: String,
    pub(super) token: Option<Token>,
    pub(super) silence: Duration,
}

/// A password: it goes into one header and into no message.
pub(super) struct Token {
    pub(super) text: String,
    /// The variable or file that it comes from.
    pub(super) origin: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.origin)
    }
}

impl Hub {
    pub(super) fn read(variable: Variable<'_>) -> Result<Self, PullError> {
        if is_true(variable, "HF_HUB_OFFLINE") {
            return Err(PullError::Offline);
        }
        let endpoint = text(variable, "HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/');
        let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        // Credentials would stand in every message, and `?` would swallow the path behind it.
        let is_sound = |rest: &str| {
            !rest.starts_with(['/', ':'])
                && !rest.contains(['@', '?', '#', '\\'])
                && rest.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !rest.is_some_and(|rest| !rest.is_empty() && is_sound(rest)) {
            return Err(PullError::Endpoint { found: endpoint.to_owned() });
        }
        let seconds = text(variable, "HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse::<u64>().ok());
        let silence = seconds.filter(|seconds| *seconds > 0).map_or(SILENCE, Duration::from_secs);
        Ok(Hub { endpoint: endpoint.to_owned(), token: token(variable)?, silence })
    }
}

/// The folder `hub` of huggingface_hub's cache; nothing where no variable says where that is.
pub(crate) fn cache(variable: Variable<'_>) -> Option<PathBuf> {
    std::path::absolute(hub::cache(variable)?).ok()
}

fn token(variable: Variable<'_>) -> Result<Option<Token>, PullError> {
    if is_true(variable, "HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return Ok(None);
    }
    let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
    let named = named.into_iter().find_map(|name| Some((name.to_owned(), text(variable, name)?)));
    let file = || {
        let token = || Some(hub::home(variable)?.join("token"));
        let place = hub::path(variable, "HF_TOKEN_PATH").or_else(token)?;
        Some((place.display().to_string(), short_text(&place)?))
    };
    let Some((origin, text)) = named.or_else(file) else { return Ok(None) };
    let text = text.trim().to_owned();
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok((!text.is_empty()).then_some(Token { text, origin })),
        false => Err(PullError::Token { origin }),
    }
}

/// A small text file, as far as there is one.
fn short_text(place: &Path) -> Option<String> {
    let metadata = std::fs::metadata(place).ok()?;
    let is_short = metadata.is_file() && metadata.len() <= TOKEN_BYTES_MAX;
    is_short.then(|| std::fs::read_to_string(place).ok()).flatten()
}

/// A variable that says something.
fn text(variable: Variable<'_>, name: &str) -> Option<String> {
    let text = variable(name)?.into_string().ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn is_true(variable: Variable<'_>, name: &str) -> bool {
    text(variable, name)
        .is_some_and(|text| ["1", "on", "yes", "true"].contains(&text.to_lowercase().as_str()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let pairs: Vec<(String, OsString)> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        move |name| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn endpoints_are_checked_and_tokens_are_not_shown() {
        let hub =
            Hub::read(&with(&[("HF_ENDPOINT", "http://127.0.0.1:80/mirror/"), ("HF_TOKEN", " hf_x\n")]));
        let hub = hub.unwrap();
        assert_eq!(hub.endpoint, "http://127.0.0.1:80/mirror");
        assert_eq!(hub.token.as_ref().unwrap().text, "hf_x");
        assert!(!format!("{hub:?}").contains("hf_x"));
        for bad in
            ["huggingface.co", "ftp://a", "https://", "https://me:pw@host", "https://a b", "https:///x"]
        {
            assert!(Hub::read(&with(&[("HF_ENDPOINT", bad)])).is_err(), "{bad}");
        }
        assert!(Hub::read(&with(&[("HF_TOKEN", "a\nb")])).is_err());
        assert!(Hub::read(&with(&[("HF_HUB_OFFLINE", "1")])).is_err());
        let silent = with(&[("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert!(Hub::read(&silent).unwrap().token.is_none());
    }
}
