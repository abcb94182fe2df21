//! Asking a server: one request at a time, redirects followed by hand, every way that it can fail named.
//!
//! It knows nothing of hubs. The token goes to the server that it is for and to no other, wherever that one sends us.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bantam_model::foreign::clipped;
use ureq::http::{HeaderName, Request, Response, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, BodyReader, Proxy};

use super::error::PullError;
use super::hub::{Hub, Token, Variable};

/// More than any hub needs.
const REDIRECTS_MAX: usize = 10;
/// A server that asks for a longer pause is not waited for.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Pauses double up to this.
const OWN_PAUSE_MAX: Duration = Duration::from_secs(30);
/// What a refusal says in its body is not read; this much of its headers is passed on.
const USER_AGENT: &str = concat!("bantam/", env!("CARGO_PKG_VERSION"));

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub(crate) enum WebError {
    #[error(
        "{host}: cannot be reached: {cause}; check the network; HTTPS_PROXY names a proxy, HF_ENDPOINT another hub"
    )]
    Unreachable { host: String, cause: String },
    #[error(
        "{host}: expected an answer, found silence for {seconds} s; start again later: what is here already stays"
    )]
    Silent { host: String, seconds: u64 },
    #[error("{host}: the connection broke: {cause}; start again: what is here already stays")]
    Broken { host: String, cause: String },
    #[error(
        "{host}: expected a certificate that this machine trusts, found: {cause}; check the clock, and where a proxy \
         reads along, have SSL_CERT_FILE name its certificate"
    )]
    Untrusted { host: String, cause: String },
    #[error("{url}: expected at most {REDIRECTS_MAX} redirects, found more; check HF_ENDPOINT")]
    Redirects { url: String },
    #[error("{host}: expected a redirect to an http address, found {found:?}; check HF_ENDPOINT")]
    Location { host: String, found: String },
    #[error(
        "{host}: expected to be sent on to https, found {found:?}, where anybody could read along; check HF_ENDPOINT"
    )]
    Downgrade { host: String, found: String },
    #[error("{host}: too many requests (429){}; try again later{}", after(*.wait), unnamed(*.is_named))]
    Busy { host: String, wait: Option<Duration>, is_named: bool },
    #[error("{host}: the server failed (status {status}); try again later")]
    Failed { host: String, status: u16, wait: Option<Duration> },
    /// Anything else that is not 200, for somebody who knows what was asked for.
    #[error("{host}: expected status 200, found {status}{}", said(.code, .words))]
    Refused { host: String, status: u16, code: String, words: String },
}

fn after(wait: Option<Duration>) -> String {
    wait.map(|wait| format!("; it asks for a pause of {} s", wait.as_secs())).unwrap_or_default()
}

fn unnamed(is_named: bool) -> &'static str {
    if is_named { "" } else { ", or set HF_TOKEN: who is known may ask more often" }
}

fn said(code: &str, words: &str) -> String {
    let said = [code, words].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ");
    if said.is_empty() { said } else { format!(" ({said})") }
}

impl WebError {
    /// What happened, without what to do: for when something is being done.
    pub(super) fn brief(&self) -> String {
        match self {
            WebError::Unreachable { cause, .. } => format!("cannot be reached: {cause}"),
            WebError::Silent { seconds, .. } => format!("silence for {seconds} s"),
            WebError::Broken { cause, .. } => format!("the connection broke: {cause}"),
            WebError::Busy { .. } => "too many requests (429)".to_owned(),
            WebError::Failed { status, .. } => format!("the server failed (status {status})"),
            other => other.to_string(),
        }
    }

    /// Whether the same may go well in a moment.
    fn is_passing(&self) -> bool {
        matches!(
            self,
            WebError::Unreachable { .. }
                | WebError::Silent { .. }
                | WebError::Broken { .. }
                | WebError::Busy { .. }
                | WebError::Failed { .. }
        )
    }
}

/// How long to wait for servers, and how often to ask again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For one sign of life.
    pub(super) silence: Duration,
    /// Before the second attempt; it doubles.
    pub(super) pause: Duration,
    pub(super) attempts: u32,
}

impl Patience {
    pub(super) fn new(silence: Duration) -> Self {
        Patience { silence, pause: Duration::from_secs(1), attempts: 5 }
    }
}

/// Attempts at one thing.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    failed: u32,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Self {
        Tries { patience, failed: 0 }
    }

    /// Something was gained: what failed before counts no more.
    pub(super) fn succeeded(&mut self) {
        self.failed = 0;
    }

    /// How long to wait before another attempt; nothing where none is left or it would be in vain.
    pub(super) fn pause(&mut self, error: &WebError) -> Option<Duration> {
        let own = (self.patience.pause * 2_u32.saturating_pow(self.failed)).min(OWN_PAUSE_MAX);
        self.failed += 1;
        let asked = match error {
            WebError::Busy { wait, .. } | WebError::Failed { wait, .. } => *wait,
            _ => None,
        };
        let pause = asked.unwrap_or(own);
        let is_worth_it = error.is_passing() && self.failed < self.patience.attempts && pause <= PAUSE_MAX;
        is_worth_it.then_some(pause)
    }
}

/// What asks.
#[derive(Debug)]
pub(super) struct Web {
    roads: Roads,
    /// Of the server that the token is for.
    home: String,
    token: Option<Token>,
    pub(super) patience: Patience,
}

impl Web {
    pub(super) fn new(hub: Hub, patience: Patience, variable: Variable<'_>) -> Result<Self, PullError> {
        let home = origin(&hub.endpoint).to_owned();
        let roads = Roads::new(home.starts_with("https"), patience, variable)?;
        Ok(Web { roads, home, token: hub.token, patience })
    }

    /// Where the token comes from, if there is one.
    pub(super) fn token_origin(&self) -> Option<&str> {
        self.token.as_ref().map(|token| token.origin.as_str())
    }

    pub(super) fn get(&self, url: &str, headers: &[(HeaderName, String)]) -> Result<Answer, WebError> {
        self.ask("GET", url, headers)
    }

    /// What the first server says of a file, though another one may have it.
    pub(super) fn head(&self, url: &str) -> Result<Answer, WebError> {
        self.ask("HEAD", url, &[])
    }

    /// The same until it goes well or there is no hope. Whoever cannot reach a server at all is told so at once.
    pub(super) fn patiently<T>(&self, mut work: impl FnMut() -> Result<T, WebError>) -> Result<T, WebError> {
        let mut tries = Tries::new(self.patience);
        loop {
            let error = match work() {
                Ok(done) => return Ok(done),
                Err(error @ WebError::Unreachable { .. }) => return Err(error),
                Err(error) => error,
            };
            match tries.pause(&error) {
                Some(pause) => std::thread::sleep(pause),
                None => return Err(error),
            }
        }
    }

    fn ask(&self, method: &str, url: &str, headers: &[(HeaderName, String)]) -> Result<Answer, WebError> {
        let mut at = url.to_owned();
        // Who has been sent away once is not trusted when he is sent back.
        let mut is_home = true;
        for _ in 0..=REDIRECTS_MAX {
            is_home &= origin(&at) == self.home;
            let answer = self.ask_once(method, &at, headers, is_home)?;
            let status = answer.response.status();
            if !status.is_redirection() || !answer.response.headers().contains_key(header::LOCATION) {
                return answer.judged(self.token.is_some());
            }
            let next = answer.next(&at)?;
            if method == "HEAD" && origin(&next) != self.home {
                return Ok(answer);
            }
            at = next;
        }
        Err(WebError::Redirects { url: url.to_owned() })
    }

    fn ask_once(
        &self,
        method: &str,
        url: &str,
        headers: &[(HeaderName, String)],
        with_token: bool,
    ) -> Result<Answer, WebError> {
        let host = origin(url).to_owned();
        let mut request = Request::builder().method(method).uri(url);
        // Lengths and hashes are those of the bytes as they are.
        request = request.header(header::ACCEPT_ENCODING, "identity").header(header::USER_AGENT, USER_AGENT);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(token) = self.token.as_ref().filter(|_| with_token) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.text));
        }
        let located = |found: &str| WebError::Location { host: host.clone(), found: clipped(found) };
        let request = request.body(()).map_err(|_| located(url))?;
        match self.roads.to(url, request.uri()).run(request) {
            Ok(response) => Ok(Answer { response, host, silence: self.patience.silence }),
            Err(error) => Err(named(host, self.patience.silence, error)),
        }
    }
}

/// Directly or by a proxy, as the environment has it for the kind of address.
#[derive(Debug)]
struct Roads {
    direct: Agent,
    http: Option<Agent>,
    https: Option<Agent>,
    /// Knows NO_PROXY.
    exceptions: Option<Proxy>,
}

impl Roads {
    fn new(is_tls: bool, patience: Patience, variable: Variable<'_>) -> Result<Self, PullError> {
        let tls = tls(is_tls)?;
        let agent = |proxy| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .proxy(proxy)
                .tls_config(tls.clone())
                .timeout_resolve(Some(patience.silence))
                .timeout_connect(Some(patience.silence))
                .timeout_recv_response(Some(patience.silence))
                .timeout_per_read(Some(patience.silence))
                .timeout_per_write(Some(patience.silence));
            config.build().new_agent()
        };
        let proxied = |names: &[&str]| -> Result<Option<Agent>, PullError> {
            let given = names.iter().find_map(|name| {
                let value = variable(name)?.into_string().ok()?;
                Some((*name, value)).filter(|(_, value)| !value.trim().is_empty())
            });
            let Some((name, value)) = given else { return Ok(None) };
            // The value may hold a password.
            let proxy = Proxy::new(value.trim()).map_err(|_| PullError::Proxy { name: name.to_owned() })?;
            Ok(Some(agent(Some(proxy))))
        };
        Ok(Roads {
            direct: agent(None),
            http: proxied(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?,
            https: proxied(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
            exceptions: Proxy::try_from_env(),
        })
    }

    fn to(&self, url: &str, uri: &ureq::http::Uri) -> &Agent {
        let proxied = if url.starts_with("https") { &self.https } else { &self.http };
        let is_excepted = self.exceptions.as_ref().is_some_and(|known| known.is_no_proxy(uri));
        proxied.as_ref().filter(|_| !is_excepted).unwrap_or(&self.direct)
    }
}

/// The certificates that this machine trusts, so that those of a company's proxy count too.
fn tls(is_needed: bool) -> Result<TlsConfig, PullError> {
    let found = rustls_native_certs::load_native_certs();
    if is_needed && found.certs.is_empty() {
        let why = found.errors.first().map(clipped).unwrap_or_default();
        return Err(PullError::NoCertificates { why });
    }
    let certificates: Vec<_> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

/// A library's error in our words.
fn named(host: String, silence: Duration, error: ureq::Error) -> WebError {
    let cause = clipped(&error);
    let is_tls = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    match error {
        ureq::Error::Timeout(_) => WebError::Silent { host, seconds: silence.as_secs() },
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => {
            WebError::Untrusted { host, cause }
        }
        ureq::Error::HostNotFound => {
            WebError::Unreachable { host, cause: "there is no such host".to_owned() }
        }
        ureq::Error::ConnectProxyFailed(_) | ureq::Error::ConnectionFailed => {
            WebError::Unreachable { host, cause }
        }
        ureq::Error::Io(error) => {
            let cause = clipped(&error);
            match error.kind() {
                _ if is_tls(&error) => WebError::Untrusted { host, cause },
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                    WebError::Silent { host, seconds: silence.as_secs() }
                }
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable => WebError::Unreachable { host, cause },
                _ => WebError::Broken { host, cause },
            }
        }
        _ => WebError::Broken { host, cause },
    }
}

/// A server's answer, its body not read yet.
pub(super) struct Answer {
    response: Response<Body>,
    host: String,
    silence: Duration,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// A header that is a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    /// Whether this is for people: a login page, or a proxy's apology.
    pub(super) fn is_web_page(&self) -> bool {
        self.header("content-type")
            .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
    }

    pub(super) fn into_reader(self) -> Reader {
        Reader { body: self.response.into_body().into_reader(), host: self.host, silence: self.silence }
    }

    /// 200, 206, and 416, which says that there is nothing behind what we have; all else is an error.
    fn judged(self, is_named: bool) -> Result<Self, WebError> {
        let (status, host) = (self.status(), self.host.clone());
        let wait = || self.number("retry-after").map(Duration::from_secs);
        let text = |name| self.header(name).map(clipped).unwrap_or_default();
        match status {
            200 | 206 | 416 => Ok(self),
            429 => Err(WebError::Busy { host, wait: wait(), is_named }),
            408 | 500.. => Err(WebError::Failed { host, status, wait: wait() }),
            _ => Err(WebError::Refused {
                host,
                status,
                code: text("x-error-code"),
                words: text("x-error-message"),
            }),
        }
    }

    /// Where a redirect leads.
    fn next(&self, from: &str) -> Result<String, WebError> {
        let location = self.header("location").unwrap_or_default();
        let found = || clipped(location);
        let next = join(from, location)
            .ok_or_else(|| WebError::Location { host: self.host.clone(), found: found() })?;
        match from.starts_with("https:") && !next.starts_with("https:") {
            true => Err(WebError::Downgrade { host: self.host.clone(), found: found() }),
            false => Ok(next),
        }
    }
}

/// A body, with its errors named.
pub(super) struct Reader {
    body: BodyReader<'static>,
    host: String,
    silence: Duration,
}

impl Reader {
    pub(super) fn read(&mut self, piece: &mut [u8]) -> Result<usize, WebError> {
        self.body
            .read(piece)
            .map_err(|error| named(self.host.clone(), self.silence, ureq::Error::from(error)))
    }

    pub(super) fn silent(&self) -> WebError {
        WebError::Silent { host: self.host.clone(), seconds: self.silence.as_secs() }
    }

    pub(super) fn broken(&self, cause: String) -> WebError {
        WebError::Broken { host: self.host.clone(), cause }
    }
}

/// Scheme, host and port.
pub(super) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// An address that another one refers to.
fn join(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default();
    if location.is_empty() || !location.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let is_one =
        |scheme: &str| location.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    if let Some(scheme) = ["https://", "http://"].into_iter().find(|scheme| is_one(scheme)) {
        return Some(format!("{scheme}{}", &location[scheme.len()..]));
    }
    let home = origin(base);
    if location.starts_with("//") {
        return Some(format!("{}:{location}", home.split(':').next()?));
    }
    if location.starts_with('/') {
        return Some(format!("{home}{location}"));
    }
    let has_scheme = location.find(':').is_some_and(|colon| !location[..colon].contains(['/', '?']));
    let path = base[home.len()..].split('?').next().unwrap_or_default();
    match location.starts_with('?') {
        _ if has_scheme => None,
        true => Some(format!("{home}{path}{location}")),
        false => {
            let folder = path.rfind('/').map_or("/", |slash| &path[..=slash]);
            Some(format!("{home}{folder}{location}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_browsers_go() {
        let base = "https://hub.example:8443/a/b/c?x=1";
        assert_eq!(origin(base), "https://hub.example:8443");
        for (location, expected) in [
            ("/d/e", Some("https://hub.example:8443/d/e")),
            ("d", Some("https://hub.example:8443/a/b/d")),
            ("?y=2", Some("https://hub.example:8443/a/b/c?y=2")),
            ("//cdn.example/f", Some("https://cdn.example/f")),
            ("HTTP://cdn.example/f#g", Some("http://cdn.example/f")),
            ("ftp://cdn.example", None),
            ("file:/etc/passwd", None),
            ("/with space", None),
            ("", None),
        ] {
            assert_eq!(join(base, location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn attempts_end_and_pauses_grow() {
        let broken = || WebError::Broken { host: String::new(), cause: String::new() };
        let mut tries = Tries::new(Patience::new(Duration::from_secs(1)));
        let pauses: Vec<_> =
            std::iter::from_fn(|| tries.pause(&broken())).map(|pause| pause.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8]);
        tries.succeeded();
        let busy = |seconds| WebError::Busy {
            host: String::new(),
            wait: Some(Duration::from_secs(seconds)),
            is_named: true,
        };
        assert_eq!(tries.pause(&busy(77)), Some(Duration::from_secs(77)));
        assert_eq!(tries.pause(&busy(3600)), None);
    }
}
