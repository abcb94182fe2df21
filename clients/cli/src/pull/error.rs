//! Everything that can go wrong while a repository is fetched, in words that say what was expected, what was found and
//! what to do.

use std::io;
use std::path::PathBuf;

use super::web::WebError;
use crate::output;

/// Why a repository was not fetched.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub(crate) enum PullError {
    #[error("HF_HUB_OFFLINE is set: expected to be allowed to ask the hub; unset it")]
    Offline,
    #[error("HF_ENDPOINT: expected an address such as https://huggingface.co, found {found:?}")]
    Endpoint { found: String },
    #[error(
        "{origin}: expected a token in one line of plain characters, found something else; write it again"
    )]
    Token { origin: String },
    #[error("{name}: expected a proxy such as http://host:3128, found something else")]
    Proxy { name: String },
    #[error(
        "expected this machine's certificates, found none{}; install the package ca-certificates, or have \
         SSL_CERT_FILE name a file with them", if .why.is_empty() { String::new() } else { format!(" ({})", .why) }
    )]
    NoCertificates { why: String },
    #[error(transparent)]
    Web(WebError),
    #[error("{file}: {source}")]
    File { file: String, source: WebError },
    #[error("{repo}: {}; {}", missing(.words), who(.token, .endpoint))]
    NotFound { repo: String, words: String, token: Option<String>, endpoint: String },
    #[error(
        "{repo}: expected a token that {endpoint} knows, found another in {origin}; write a new one there"
    )]
    BadToken { repo: String, endpoint: String, origin: String },
    #[error(
        "{repo}: its terms must be accepted first (status {status}): open {endpoint}/{repo} in a browser and accept \
         them; {}", whose(.token, .endpoint)
    )]
    Gated { repo: String, status: u16, token: Option<String>, endpoint: String },
    #[error("{repo}: no access (status 403{words}); {}", whose(.token, .endpoint))]
    Forbidden { repo: String, words: String, token: Option<String>, endpoint: String },
    #[error("{repo}: there is no revision {revision:?}; {endpoint}/{repo} shows its branches and tags")]
    NoRevision { repo: String, revision: String, endpoint: String },
    #[error("{file}: the hub lists it and has it not (status 404); it may just be changing: try again")]
    NoFile { file: String },
    #[error(
        "{url}: expected {expected}, found a web page; check HF_ENDPOINT, and whether this network wants a login"
    )]
    WebPage { url: String, expected: &'static str },
    #[error(
        "{url}: expected the list of a repository's files as JSON, found something else: {found}; check HF_ENDPOINT"
    )]
    NotAListing { url: String, found: String },
    #[error("{url}: expected a list of at most {limit}, found a longer one; this is no model")]
    LongListing { url: String, limit: String },
    #[error(
        "{repo}: the list of files holds {path:?}, {found}; nothing was written: do not trust this server"
    )]
    BadPath { repo: String, path: String, found: &'static str },
    #[error("{repo}: expected {expected} of {path}, found none; check HF_ENDPOINT")]
    NoDetails { repo: String, path: String, expected: &'static str },
    #[error(
        "{repo}: no file is left to fetch of {total}; change --include and --exclude (`--dry-run` lists the files)"
    )]
    NothingChosen { repo: String, total: usize },
    #[error(
        "{file}: expected {expected} bytes as the hub lists it, found {found}; try again, and check HF_ENDPOINT"
    )]
    Length { file: String, expected: u64, found: String },
    #[error(
        "{file}: expected its bytes as they are, found them encoded as {found:?}; a proxy between changes them"
    )]
    Encoded { file: String, found: String },
    #[error(
        "{file}: expected {kind} {expected}, found {found}: somebody between here and the publisher changed it; it was \
         not kept: try again, and check HF_ENDPOINT and proxies"
    )]
    Content { file: String, kind: &'static str, expected: String, found: String },
    #[error(
        "{}: expected {} of free disk, found {}; free some, choose another place with {place}, or leave files out \
         with --exclude", .folder.display(), output::bytes(*.needed), output::bytes(*.free)
    )]
    NoRoom { folder: PathBuf, needed: u64, free: u64, place: &'static str },
    #[error("{}: the disk is full ({source}); free some, and start again: what is here already stays", .path.display())]
    DiskFull { path: PathBuf, source: io::Error },
    #[error("{}: {source}; check the permissions and the disk", .path.display())]
    Disk { path: PathBuf, source: io::Error },
    #[error("{}: expected a folder for the files, found something else; give another --out", .path.display())]
    NotAFolder { path: PathBuf },
    #[error(
        "expected a place for the cache, found none: set HOME, HF_HOME or HF_HUB_CACHE, or give --out DIR"
    )]
    NoCache,
    #[error("stopped")]
    Stopped,
}

impl PullError {
    /// What a disk says.
    pub(super) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                PullError::DiskFull { path, source }
            }
            _ => PullError::Disk { path, source },
        }
    }
}

fn missing(words: &str) -> String {
    let words = if words.is_empty() { String::new() } else { format!(" ({words})") };
    format!("there is no such repository, or it is not for everybody{words}: check the name")
}

fn who(token: &Option<String>, endpoint: &str) -> String {
    match token {
        None => format!("for a private or gated one set HF_TOKEN ({endpoint}/settings/tokens)"),
        Some(origin) => {
            format!("for a private or gated one, {origin} must hold a token of somebody who may read it")
        }
    }
}

fn whose(token: &Option<String>, endpoint: &str) -> String {
    match token {
        None => format!("then set HF_TOKEN to a token of yours ({endpoint}/settings/tokens)"),
        Some(origin) => {
            format!("{origin} must hold a token of that account that may read gated repositories")
        }
    }
}
