//! What a hub says of a repository: the commit that a revision stands for, and its files with sizes and hashes.
//!
//! All of it is a stranger's word. Paths become names on this disk, so each is looked at here, once.

use std::collections::HashSet;

use bantam_model::foreign::clipped;
use serde::Deserialize;

use super::checksum::Etag;
use super::error::PullError;
use super::web::{Answer, Web, WebError};
use crate::output;

/// A list of 50,000 files with their hashes is no longer.
const LISTING_BYTES_MAX: usize = 16 << 20;
const FILES_MAX: usize = 50_000;
/// What file systems take.
const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 1024;

/// A repository at a hub.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    pub(super) endpoint: String,
    /// `owner/name`, or a name alone.
    pub(super) name: String,
}

/// A file that a hub lists.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) path: String,
    pub(super) bytes: Option<u64>,
    pub(super) etag: Option<Etag>,
}

/// The same with all that is needed to fetch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) etag: Etag,
}

/// A repository at one moment.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Told {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl From<Sibling> for Listed {
    fn from(told: Sibling) -> Self {
        // Of a large file the blob is the pointer that git keeps, and not the file.
        let (bytes, name) = match told.lfs {
            Some(lfs) => (lfs.size, lfs.sha256),
            None => (told.size, told.blob),
        };
        Listed { path: told.rfilename, bytes, etag: name.as_deref().and_then(Etag::new) }
    }
}

impl Repository {
    /// Asks for the files of a revision.
    pub(super) fn list(&self, web: &Web, revision: &str) -> Result<Listing, PullError> {
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.endpoint,
            self.name,
            quoted(revision, "")
        );
        let body = web.patiently(|| {
            let answer = web.get(&url, &[])?;
            Ok(match answer.is_web_page() {
                true => {
                    Err(PullError::WebPage { url: url.clone(), expected: "the list of a repository's files" })
                }
                false => read(answer)?.ok_or_else(|| PullError::LongListing {
                    url: url.clone(),
                    limit: output::bytes(LISTING_BYTES_MAX as u64),
                }),
            })
        });
        let body = body.map_err(|error| self.refusal(error, web, Some(revision), None))??;
        let told: Told = serde_json::from_slice(&body)
            .map_err(|error| PullError::NotAListing { url: url.clone(), found: clipped(error) })?;
        if told.siblings.len() > FILES_MAX {
            return Err(PullError::LongListing { url, limit: format!("{FILES_MAX} files") });
        }
        let is_commit =
            (7..=64).contains(&told.sha.len()) && told.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_commit {
            let found = format!("{:?} for a commit", clipped(told.sha));
            return Err(PullError::NotAListing { url, found });
        }
        let files: Vec<Listed> = told.siblings.into_iter().map(Listed::from).collect();
        self.check(&files)?;
        Ok(Listing { commit: told.sha, files })
    }

    /// Refuses paths that lead out of a folder or stand in each other's way.
    fn check(&self, files: &[Listed]) -> Result<(), PullError> {
        let bad =
            |path: &str, found| PullError::BadPath { repo: self.name.clone(), path: clipped(path), found };
        let mut seen = HashSet::new();
        for file in files {
            if let Some(found) = fault(&file.path) {
                return Err(bad(&file.path, found));
            }
            if !seen.insert(file.path.as_str()) {
                return Err(bad(&file.path, "twice"));
            }
        }
        for file in files {
            let mut folders = file.path.match_indices('/').map(|(at, _)| &file.path[..at]);
            if folders.any(|folder| seen.contains(folder)) {
                return Err(bad(&file.path, "whose folder is a file of that list too"));
            }
        }
        Ok(())
    }

    /// Fills in what the list has left out, from the file's own address.
    pub(super) fn detail(&self, web: &Web, commit: &str, file: Listed) -> Result<File, PullError> {
        let Listed { path, bytes, etag } = file;
        if let (Some(bytes), Some(etag)) = (bytes, etag) {
            return Ok(File { path, bytes, etag });
        }
        let url = self.address(commit, &path);
        let answer = web.patiently(|| web.head(&url));
        let answer = answer.map_err(|error| self.refusal(error, web, None, Some(&path)))?;
        let none = |expected| PullError::NoDetails { repo: self.name.clone(), path: path.clone(), expected };
        let etag = answer.header("x-linked-etag").or(answer.header("etag")).and_then(Etag::new);
        let own = if answer.status() == 200 { answer.number("content-length") } else { None };
        let bytes = answer.number("x-linked-size").or(own);
        let etag = etag.ok_or_else(|| none("the hash (ETag)"))?;
        Ok(File { bytes: bytes.ok_or_else(|| none("the size"))?, etag, path })
    }

    /// Where a file is to be had.
    pub(super) fn address(&self, commit: &str, path: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.name, quoted(path, "/"))
    }

    /// What a refusal means here.
    pub(super) fn refusal(
        &self,
        error: WebError,
        web: &Web,
        revision: Option<&str>,
        path: Option<&str>,
    ) -> PullError {
        let WebError::Refused { status, code, words, .. } = &error else {
            return match path {
                Some(path) => PullError::File { file: path.to_owned(), source: error },
                None => PullError::Web(error),
            };
        };
        let (repo, endpoint) = (self.name.clone(), self.endpoint.clone());
        let token = web.token_origin().map(str::to_owned);
        let (status, words) = (*status, words.clone());
        match (status, code.as_str(), token.as_ref()) {
            (_, "GatedRepo", _) => PullError::Gated { repo, status, token, endpoint },
            (404, "RevisionNotFound", _) => {
                PullError::NoRevision { repo, revision: revision.unwrap_or_default().to_owned(), endpoint }
            }
            // A hub says 401 for whatever it will not show, so that nobody can find out names.
            (401, "RepoNotFound" | "", _) | (404, "RepoNotFound", _) => {
                PullError::NotFound { repo, words, token, endpoint }
            }
            (401, _, Some(origin)) => PullError::BadToken { repo, endpoint, origin: origin.clone() },
            (401, _, None) => PullError::NotFound { repo, words, token, endpoint },
            (403, ..) => {
                let words = if words.is_empty() { words } else { format!(": {words}") };
                PullError::Forbidden { repo, words, token, endpoint }
            }
            (404, ..) => match (path, revision) {
                (Some(path), _) => PullError::NoFile { file: path.to_owned() },
                (None, Some(revision)) if revision != "main" => {
                    PullError::NoRevision { repo, revision: revision.to_owned(), endpoint }
                }
                _ => PullError::NotFound { repo, words, token, endpoint },
            },
            _ => PullError::Web(error),
        }
    }
}

/// A body of bounded length; nothing where it is longer.
fn read(answer: Answer) -> Result<Option<Vec<u8>>, WebError> {
    let (mut reader, mut body) = (answer.into_reader(), Vec::new());
    let mut piece = vec![0; 1 << 16];
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(Some(body)),
            read if body.len() + read > LISTING_BYTES_MAX => return Ok(None),
            read => body.extend_from_slice(&piece[..read]),
        }
    }
}

/// What is wrong with a path that is to become a name on this disk.
fn fault(path: &str) -> Option<&'static str> {
    let parts = || path.split('/');
    let is_git = |part: &str| part.eq_ignore_ascii_case(".git");
    if path.is_empty() || path.len() > PATH_BYTES_MAX || parts().any(|part| part.len() > NAME_BYTES_MAX) {
        Some("which is too long or empty")
    } else if path.starts_with('/') {
        Some("which is an absolute path")
    } else if parts().any(|part| part == "..") {
        Some("which leads out of the folder")
    } else if parts().any(|part| part.is_empty() || part == ".") {
        Some("which is no plain path")
    } else if path.chars().any(char::is_control) || path.contains(['\\', ':']) {
        Some("which holds characters that no file name should")
    } else if parts().any(is_git) || path.starts_with(".cache/") {
        Some("which is a place of other programs")
    } else {
        None
    }
}

/// A part of an address; bytes that are not plain or kept are escaped.
fn quoted(text: &str, kept: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || kept.as_bytes().contains(&byte) {
            true => quoted.push(char::from(byte)),
            false => quoted += &format!("%{byte:02X}"),
        }
    }
    quoted
}

/// Whether this can be the name of a repository: as the hub itself takes them.
pub(super) fn is_repository(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let ends = part.as_bytes().first().into_iter().chain(part.as_bytes().last());
        !part.is_empty()
            && part.len() <= 96
            && part.bytes().all(is_plain)
            && !part.contains("--")
            && !part.contains("..")
            && !ends.into_iter().any(|byte| b"-.".contains(byte))
    };
    name.split('/').count() <= 2 && name.split('/').all(is_part)
}

/// Whether this can be a revision: a branch, a tag, a commit, `refs/pr/1`.
pub(super) fn is_revision(name: &str) -> bool {
    fault(name).is_none() && !name.starts_with('-') && !name.contains([' ', '~', '^', '?', '*', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_within_their_folder() {
        for good in ["config.json", "a/b.c", ".gitattributes", "ä.txt", "a b", "...", "1_Pooling/config.json"]
        {
            assert_eq!(fault(good), None, "{good}");
        }
        let long = "a".repeat(256);
        let deep = "a/".repeat(600) + "b";
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\\..\\b",
            "c:x",
            "a\nb",
            "\u{7f}",
            ".git/hooks/post-checkout",
            "a/.GIT/x",
            ".cache/huggingface/x",
            &long,
            &deep,
        ] {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn names_and_addresses_are_checked_and_quoted() {
        for good in ["gpt2", "openai/gpt-oss-20b", "a_b/c.d"] {
            assert!(is_repository(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/b/c",
            "a//b",
            "../b",
            "a/..",
            "-a/b",
            "a/b.",
            "a--b/c",
            "a b/c",
            "https://x/y",
            "ä/b",
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
        assert!(is_revision("main") && is_revision("refs/pr/1") && is_revision("v1.0"));
        assert!(!is_revision("../x") && !is_revision("") && !is_revision("--x") && !is_revision("a b"));
        assert_eq!(quoted("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(quoted("a b/ä#?%.json", "/"), "a%20b/%C3%A4%23%3F%25.json");
    }
}
