//! Questions to a server by HTTP, as those ask them that tell a server of a run.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bantam_model::foreign::clipped;
use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, http};

/// A server that says nothing for so long is not there.
const SILENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A way to one server.
#[derive(Debug)]
pub(super) struct Line {
    agent: Agent,
    /// Who asks, as a header says it.
    pass: Option<String>,
}

impl Line {
    pub(super) fn new(address: &str, pass: Option<String>) -> Line {
        Line { agent: agent(address), pass }
    }

    /// Asks for something.
    pub(super) fn get(&self, address: &str) -> io::Result<http::Response<ureq::Body>> {
        let request = self.signed(http::Request::get(address)).body(()).map_err(io::Error::other)?;
        self.agent.run(request).map_err(io::Error::other)
    }

    /// Posts something, and reads the answer.
    pub(super) fn post(&self, address: &str, body: &Value) -> io::Result<Value> {
        let request = http::Request::post(address).header("content-type", "application/json");
        let request = self.signed(request).body(body.to_string()).map_err(io::Error::other)?;
        read(self.agent.run(request).map_err(io::Error::other)?)
    }

    fn signed(&self, request: http::request::Builder) -> http::request::Builder {
        match &self.pass {
            Some(pass) => request.header("authorization", pass),
            None => request,
        }
    }
}

/// An address without the name and password that may stand in it.
pub(super) fn shown(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let host = rest.split('/').next().unwrap_or(rest);
    match host.rsplit_once('@') {
        Some((own, _)) => format!("{scheme}://{}", &rest[own.len() + 1..]),
        None => address.to_owned(),
    }
}

/// Text as addresses have it.
pub(super) fn percented(text: &str) -> String {
    let letter = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(letter).collect()
}

/// An answer as JSON, or what the server says against it.
pub(super) fn read(mut answer: http::Response<ureq::Body>) -> io::Result<Value> {
    let status = answer.status().as_u16();
    let text =
        answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().map_err(io::Error::other)?;
    match status {
        200 => {
            serde_json::from_str(&text).map_err(|_| io::Error::other("expected JSON, found something else"))
        }
        _ => Err(io::Error::other(format!("expected status 200, found {status}: {}", clipped(text.trim())))),
    }
}

/// Three bytes in four letters.
pub(super) fn in_64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let four = |three: &[u8]| {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        (0..4)
            .map(move |at| match at <= three.len() {
                true => char::from(LETTERS[(bits >> (18 - 6 * at) & 63) as usize]),
                false => '=',
            })
            .collect::<String>()
    };
    bytes.chunks(3).map(four).collect()
}

/// Asks one server, by a proxy where the environment names one; never one on this machine.
fn agent(address: &str) -> Agent {
    let known = rustls_native_certs::load_native_certs().certs;
    let known =
        known.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect::<Vec<_>>();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(known)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(SILENCE))
        .tls_config(tls.build());
    let is_here =
        ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|own| address.starts_with(own));
    let config = if is_here { config.proxy(None) } else { config };
    config.build().new_agent()
}

/// A server for tests, on this machine.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
pub(super) mod stand_in {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::thread::{self, JoinHandle};

    use serde_json::Value;

    /// What came, line by line.
    pub(in super::super) type Heard = Arc<Mutex<Vec<(String, Value)>>>;

    /// What a path is answered with: a status, and JSON.
    type Answer = fn(&str) -> (&'static str, Value);

    /// Answers on one connection until that is closed; gives its address.
    pub(in super::super) fn answering(heard: &Heard, answer: Answer) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let heard = heard.clone();
        let served = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            answered(stream, &heard, answer);
        });
        (address, served)
    }

    fn answered(stream: TcpStream, heard: &Heard, answer: Answer) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let mut first = String::new();
            reader.read_line(&mut first).ok()?;
            let (mut length, mut line) = (0, String::new());
            while reader.read_line(&mut line).ok()? > 2 {
                let lower = line.to_ascii_lowercase();
                length =
                    lower.strip_prefix("content-length:").map_or(length, |text| text.trim().parse().unwrap());
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            let what = first.split(' ').nth(1)?.to_owned();
            let (status, answer) = answer(&what);
            heard.lock().unwrap().push((what, serde_json::from_slice(&body).unwrap_or_default()));
            let answer = answer.to_string();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", answer.len());
            (&stream).write_all(format!("{head}{answer}").as_bytes()).ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_those_of_base64() {
        for (bytes, expected) in [("", ""), ("M", "TQ=="), ("Ma", "TWE="), ("Man", "TWFu"), ("a:b", "YTpi")] {
            assert_eq!(in_64(bytes.as_bytes()), expected);
        }
    }

    #[test]
    fn names_and_passwords_of_addresses_are_not_shown() {
        assert_eq!(shown("http://me:secret@host/x"), "http://host/x");
        assert_eq!(
            (shown("http://host/a@b"), percented("a b/é")),
            ("http://host/a@b".into(), "a%20b%2F%C3%A9".into())
        );
    }
}
