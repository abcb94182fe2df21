//! What the bytes of a file must be: the hub names every file by its hash.

use std::io::{self, Read};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// The name of a file's content, as the hub, the cache and HTTP have it. It is a plain word and goes into file names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Etag(String);

impl Etag {
    const BYTES_MAX: usize = 128;

    /// `W/"…"` and quotes are taken off, as huggingface_hub does.
    pub(super) fn new(text: &str) -> Option<Self> {
        let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_sound = !text.is_empty()
            && text.len() <= Self::BYTES_MAX
            && !text.starts_with('.')
            && !text.ends_with(".incomplete")
            && text.bytes().all(is_plain);
        is_sound.then(|| Etag(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// What the name says of the content; nothing where it is no hash that we know.
    pub(super) fn kind(&self) -> Option<Kind> {
        let is_hex = self.0.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        match self.0.len() {
            64 if is_hex => Some(Kind::Sha256),
            40 if is_hex => Some(Kind::GitBlob),
            _ => None,
        }
    }
}

/// How a file's hash is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of large files (LFS): SHA-256 of the bytes.
    Sha256,
    /// Of all others: git's, SHA-1 of a header with the length and the bytes.
    GitBlob,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Sha256 => "sha256",
            Kind::GitBlob => "git's sha1",
        }
    }

    /// A hash of a file of that length, before its first byte.
    pub(super) fn begin(self, bytes: u64) -> Running {
        let mut context = Context::new(match self {
            Kind::Sha256 => &SHA256,
            Kind::GitBlob => &SHA1_FOR_LEGACY_USE_ONLY,
        });
        if self == Kind::GitBlob {
            context.update(format!("blob {bytes}\0").as_bytes());
        }
        Running(context)
    }

    /// The hash of a file of that length.
    pub(super) fn of(self, bytes: u64, file: &mut impl Read) -> io::Result<String> {
        let mut running = self.begin(bytes);
        running.read(file)?;
        Ok(running.finish())
    }
}

/// A hash in the making.
#[derive(Clone)]
pub(super) struct Running(Context);

impl Running {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Takes in the rest of a file, and says how much that was.
    pub(super) fn read(&mut self, file: &mut impl Read) -> io::Result<u64> {
        let mut piece = vec![0; 1 << 18];
        let mut total = 0;
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(total),
                Ok(read) => {
                    self.update(&piece[..read]);
                    total += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn finish(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The beginning of an unfinished file's name in a plain folder: what huggingface_hub makes of the file's own.
pub(super) fn short_hash(name: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digest = ring::digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, name.as_bytes());
    let mut text = String::new();
    for three in digest.as_ref().chunks(3) {
        let word =
            three.iter().enumerate().fold(0_u32, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
        for digit in 0..4 {
            match digit <= three.len() {
                true => text.push(char::from(DIGITS[(word >> (18 - 6 * digit)) as usize & 63])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_lfs() {
        let of = |kind: Kind, bytes: &[u8]| kind.of(bytes.len() as u64, &mut { bytes }).unwrap();
        assert_eq!(of(Kind::GitBlob, b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(of(Kind::GitBlob, b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of(Kind::Sha256, b"abc"), expected);
    }

    #[test]
    fn names_of_contents_are_plain_words() {
        let (git, sha) = ("ce013625030ba8dba906f756967f9e9ca394464a", "ab".repeat(32));
        let kind = |text: &str| Etag::new(text).map(|etag| etag.kind());
        assert_eq!(kind(&format!("\"{git}\"")), Some(Some(Kind::GitBlob)));
        assert_eq!(kind(&format!("W/\"{sha}\"")), Some(Some(Kind::Sha256)));
        assert_eq!(kind("\"d41d8cd9-2\""), Some(None));
        for bad in ["", "\"\"", "../x", "a/b", ".x", "a b", "x.incomplete", &"a".repeat(129)] {
            assert_eq!(Etag::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn short_hashes_are_those_of_huggingface_hub() {
        // base64.urlsafe_b64encode(hashlib.sha1(b"config.json.metadata").digest())
        assert_eq!(short_hash("config.json.metadata"), EXPECTED);
    }

    const EXPECTED: &str = "8_PA_wEVGiVa2goH2H4KQOQpvVY=";
}
