//! A model hub on loopback that does as a test wants: it serves files with ranges as the real one does, and every
//! request can be answered with something else.
#![allow(dead_code, reason = "two test programs use it, each in part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(super) const REPOSITORY: &str = "owner/model";

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    headers: Vec<(String, String)>,
    /// How often this was asked before.
    pub(super) before: usize,
}

impl Asked {
    /// The same at another place.
    pub(super) fn at(self, path: String) -> Self {
        Asked { path, ..self }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Whether this is for the content of a file.
    pub(super) fn is_for(&self, file: &str) -> bool {
        self.path.ends_with(&format!("/resolve/{COMMIT}/{file}"))
    }

    pub(super) fn is_listing(&self) -> bool {
        self.path.starts_with("/api/")
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Closes after so many bytes of the body.
    pub(super) cut: Option<usize>,
    /// Says nothing for a while after so many bytes.
    pub(super) stall: Option<(usize, Duration)>,
    /// Sends the body in chunks, without its length.
    pub(super) is_chunked: bool,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let (headers, body) = (Vec::new(), body.into());
        Reply { status, headers, body, cut: None, stall: None, is_chunked: false }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    fn send(&self, stream: &mut TcpStream, is_head: bool) -> std::io::Result<bool> {
        let mut head = format!("HTTP/1.1 {} Whatever\r\n", self.status);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let is_told = self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let (begin, end): (&str, &[u8]) = match self.is_chunked {
            true => ("transfer-encoding: chunked\r\n", b"0\r\n\r\n"),
            false => ("", b""),
        };
        head += begin;
        if !self.is_chunked && !is_told {
            let _ = write!(head, "content-length: {}\r\n", self.body.len());
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        if is_head {
            return Ok(true);
        }
        let body = &self.body[..self.cut.unwrap_or(self.body.len()).min(self.body.len())];
        let pause = self.stall.map_or(body.len(), |(at, _)| at.min(body.len()));
        for (part, pause) in [(&body[..pause], self.stall), (&body[pause..], None)] {
            if self.is_chunked && !part.is_empty() {
                stream.write_all(format!("{:x}\r\n", part.len()).as_bytes())?;
            }
            stream.write_all(part)?;
            if self.is_chunked && !part.is_empty() {
                stream.write_all(b"\r\n")?;
            }
            stream.flush()?;
            if let Some((_, pause)) = pause {
                thread::sleep(pause);
            }
        }
        stream.write_all(end)?;
        Ok(self.cut.is_none() && self.stall.is_none())
    }
}

/// A file of the repository.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) bytes: Vec<u8>,
    is_large: bool,
}

impl Stored {
    pub(super) fn hash(&self) -> String {
        let digest = match self.is_large {
            true => digest(&SHA256, &self.bytes),
            false => {
                let mut blob = format!("blob {}\0", self.bytes.len()).into_bytes();
                blob.extend(&self.bytes);
                digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob)
            }
        };
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The repository.
#[derive(Debug, Clone, Default)]
pub(super) struct Files(pub(super) BTreeMap<String, Stored>);

impl Files {
    pub(super) fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let stored = files.iter().map(|(path, bytes)| {
            let is_large = path.ends_with(".safetensors") || path.ends_with(".bin");
            ((*path).to_owned(), Stored { bytes: bytes.clone(), is_large })
        });
        Files(stored.collect())
    }

    /// As `GET /api/models/…?blobs=true` has it.
    pub(super) fn listing(&self) -> String {
        let entries = self.0.iter().map(|(path, file)| {
            let (hash, bytes) = (file.hash(), file.bytes.len());
            match file.is_large {
                true => format!(
                    r#"{{"rfilename":{path:?},"size":{bytes},"blobId":"{COMMIT}",
                        "lfs":{{"sha256":"{hash}","size":{bytes},"pointerSize":130}}}}"#
                ),
                false => format!(r#"{{"rfilename":{path:?},"size":{bytes},"blobId":"{hash}"}}"#),
            }
        });
        let entries = entries.collect::<Vec<_>>().join(",");
        format!(r#"{{"id":"{REPOSITORY}","sha":"{COMMIT}","private":false,"siblings":[{entries}]}}"#)
    }

    /// What an honest hub answers.
    pub(super) fn reply(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap_or_default();
        if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPOSITORY}/revision/")) {
            return match ["main", "v1", COMMIT].contains(&revision) {
                true => {
                    Reply::new(200, self.listing()).with("content-type", "application/json; charset=utf-8")
                }
                false => Reply::new(404, "").with("x-error-code", "RevisionNotFound"),
            };
        }
        if path.starts_with("/api/") {
            return Reply::new(401, "")
                .with("x-error-code", "RepoNotFound")
                .with("x-error-message", "Repository not found");
        }
        let file =
            path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/")).and_then(|path| self.0.get(path));
        let Some(file) = file else { return Reply::new(404, "").with("x-error-code", "EntryNotFound") };
        let (total, etag) = (file.bytes.len(), format!("\"{}\"", file.hash()));
        let whole = |status, body: &[u8]| {
            Reply::new(status, body)
                .with("etag", etag.clone())
                .with("x-linked-etag", etag.clone())
                .with("x-linked-size", total.to_string())
                .with("content-type", "application/octet-stream")
        };
        let begin = asked
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let is_same = asked.header("if-range").is_none_or(|known| known == etag);
        match begin.filter(|_| is_same) {
            Some(begin) if begin >= total => {
                Reply::new(416, "").with("content-range", format!("bytes */{total}"))
            }
            Some(begin) => whole(206, &file.bytes[begin..])
                .with("content-range", format!("bytes {begin}-{}/{total}", total - 1)),
            None => whole(200, &file.bytes),
        }
    }
}

type Answer = dyn Fn(&Asked) -> Option<Reply> + Send + Sync;

/// The running server; it lives as long as the test's process.
pub(super) struct StandIn {
    pub(super) address: String,
    seen: Arc<Mutex<Vec<Asked>>>,
}

impl StandIn {
    /// Serves files.
    pub(super) fn honest(files: Files) -> Self {
        StandIn::new(files, |_| None)
    }

    /// Serves files, but for what is answered otherwise.
    pub(super) fn new(
        files: Files,
        otherwise: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (known, files, otherwise) =
            (seen.clone(), Arc::new(files), Arc::<Answer>::from(Box::new(otherwise) as Box<Answer>));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (known, files, otherwise) = (known.clone(), files.clone(), otherwise.clone());
                // A client that goes away is none of its business.
                thread::spawn(move || serve(stream, &known, &files, &*otherwise));
            }
        });
        StandIn { address, seen }
    }

    /// All that was asked so far.
    pub(super) fn seen(&self) -> Vec<Asked> {
        self.seen.lock().expect("nobody panics with it").clone()
    }

    /// What was asked for the contents of files.
    pub(super) fn downloads(&self) -> Vec<Asked> {
        self.seen().into_iter().filter(|asked| asked.path.contains("/resolve/")).collect()
    }
}

fn serve(
    stream: TcpStream,
    seen: &Mutex<Vec<Asked>>,
    files: &Files,
    otherwise: &Answer,
) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim().split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None => break,
            }
        }
        let asked = {
            let mut seen = seen.lock().expect("nobody panics with it");
            let before = seen.iter().filter(|known| known.path == path && known.method == method).count();
            let asked = Asked { method, path, headers, before };
            seen.push(asked.clone());
            asked
        };
        let reply = otherwise(&asked).unwrap_or_else(|| files.reply(&asked));
        if !reply.send(&mut writer, asked.method == "HEAD")? {
            return Ok(());
        }
    }
}
