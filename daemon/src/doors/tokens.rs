//! Who may come in by TCP: a file with a line `name: token` each. Tokens are compared in a time that tells nothing, and
//! appear in no message.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;
use subtle::{ConditionallySelectable, ConstantTimeEq};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const TOKEN_BYTES_MIN: usize = 16;
const TOKEN_BYTES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 64;
const TOKENS_MAX: usize = 1024;
const FILE_BYTES: u64 = 1 << 20;
/// How often the file is looked at, apart from SIGHUP.
const LOOK: Duration = Duration::from_secs(2);

/// Why a file of tokens was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("tcp.tokens: {}: {source}; name a file that this user can read", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others can read it, or it is no file.
    #[error("tcp.tokens: {}: expected {expected}, found {found}; {todo}", path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
        /// What helps.
        todo: &'static str,
    },
    /// A line is wrong. It is not shown, it could be a token.
    #[error("tcp.tokens: {}, line {line}: expected {expected}; change the line", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// What it should be.
        expected: &'static str,
    },
}

/// Equal lengths for all, so that a comparison takes the same time.
struct Padded {
    bytes: [u8; TOKEN_BYTES_MAX],
    length: u64,
}

impl Padded {
    fn new(token: &[u8]) -> Option<Self> {
        let mut bytes = [0; TOKEN_BYTES_MAX];
        bytes.get_mut(..token.len())?.copy_from_slice(token);
        Some(Self { bytes, length: token.len() as u64 })
    }
}

struct Line {
    name: Arc<str>,
    token: Padded,
}

/// Tells whether a file was changed: size, time and node.
type Stamp = (u64, i64, i64, u64);

/// The tokens that hold now.
pub(crate) struct Tokens {
    path: PathBuf,
    lines: Mutex<Arc<[Line]>>,
    stamp: Mutex<Option<Stamp>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.path.display())
    }
}

impl Tokens {
    pub(crate) fn read(path: &Path) -> Result<Self, TokensError> {
        let (lines, stamp) = load(path)?;
        Ok(Self { path: path.to_owned(), lines: Mutex::new(lines), stamp: Mutex::new(Some(stamp)) })
    }

    /// Whose token it is. Every line is compared, whichever fits.
    pub(crate) fn holder(&self, offered: &[u8]) -> Option<Arc<str>> {
        let offered = Padded::new(offered)?;
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = u32::MAX;
        for (at, line) in (0u32..).zip(lines.iter()) {
            let same = line.token.bytes.ct_eq(&offered.bytes) & line.token.length.ct_eq(&offered.length);
            found.conditional_assign(&at, same);
        }
        lines.get(usize::try_from(found).ok()?).map(|line| line.name.clone())
    }

    /// Reads the file again. A file that is gone lets nobody in any more; one with mistakes changes nothing.
    pub(crate) fn reload(&self) {
        let (lines, stamp) = match load(&self.path) {
            Ok((lines, stamp)) => {
                tracing::info!(tokens = lines.len(), "tcp.tokens was read again");
                (lines, Some(stamp))
            }
            Err(TokensError::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                tracing::error!(path = %self.path.display(), "tcp.tokens is gone: nobody comes in by a token");
                (Arc::default(), None)
            }
            Err(error) => {
                tracing::error!(%error, "the tokens stay as they were");
                *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp_of(&self.path);
                return;
            }
        };
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner) = lines;
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }

    fn changed(&self) -> bool {
        stamp_of(&self.path) != *self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the file again on SIGHUP and when it was changed.
    pub(crate) async fn follow(self: Arc<Self>, end: CancellationToken) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        loop {
            let asked = tokio::select! {
                () = end.cancelled() => return,
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            if asked || self.changed() {
                self.reload();
            }
        }
    }
}

fn stamp(found: &std::fs::Metadata) -> Stamp {
    (found.len(), found.mtime(), found.mtime_nsec(), found.ino())
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().as_ref().map(stamp)
}

fn load(path: &Path) -> Result<(Arc<[Line]>, Stamp), TokensError> {
    let system = |source| TokensError::System { path: path.to_owned(), source };
    // Opening a pipe would wait for a writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("flags are an int of C");
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(system)?;
    let found = file.metadata().map_err(system)?;
    private(path, &found)?;
    let text = text_of(file).map_err(system)?;
    Ok((parse(path, &text)?, stamp(&found)))
}

fn text_of(file: File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(std::io::Error::other(format!("longer than {FILE_BYTES} bytes")));
    }
    Ok(text)
}

fn private(path: &Path, found: &std::fs::Metadata) -> Result<(), TokensError> {
    let refuse =
        |expected, found, todo| Err(TokensError::Unsafe { path: path.to_owned(), expected, found, todo });
    if !found.is_file() {
        return refuse("a file", "something else".to_owned(), "name a file");
    }
    if found.mode() & 0o077 != 0 {
        let mode = format!("mode {:03o}", found.mode() & 0o777);
        return refuse("a file that its owner alone can read", mode, "chmod 600 it");
    }
    let uid = rustix::process::geteuid().as_raw();
    if found.uid() != uid && found.uid() != 0 {
        return refuse("a file of this user or root", format!("user {}'s", found.uid()), "chown it");
    }
    Ok(())
}

fn parse(path: &Path, text: &str) -> Result<Arc<[Line]>, TokensError> {
    let mut lines: Vec<Line> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |expected| TokensError::Line { path: path.to_owned(), line: at + 1, expected };
        let (name, token) = line.split_once(':').ok_or_else(|| wrong("\"name: token\""))?;
        let (name, token) = (name.trim(), token.trim());
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(letter) {
            return Err(wrong(
                "a name of up to 64 letters, digits, dots, dashes and underscores before the colon",
            ));
        }
        if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len())
            || !token.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(wrong("a token of 16 to 256 visible ASCII characters after the colon"));
        }
        if lines.iter().any(|line| *line.name == *name) {
            return Err(wrong("every name once"));
        }
        if lines.len() == TOKENS_MAX {
            return Err(wrong("at most 1024 tokens"));
        }
        let token = Padded::new(token.as_bytes()).expect("its length was checked");
        lines.push(Line { name: name.into(), token });
    }
    Ok(lines.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]
    use super::*;

    fn tokens(text: &str) -> Tokens {
        let lines = parse(Path::new("tokens"), text).unwrap();
        Tokens { path: PathBuf::new(), lines: Mutex::new(lines), stamp: Mutex::new(None) }
    }

    #[test]
    fn a_token_is_known_whole_or_not_at_all() {
        let known = tokens("# two\n\nann: 0123456789abcdef\nbob:0123456789abcdeX\n");
        assert_eq!(known.holder(b"0123456789abcdef").as_deref(), Some("ann"));
        assert_eq!(known.holder(b"0123456789abcdeX").as_deref(), Some("bob"));
        let long = [b'a'; TOKEN_BYTES_MAX + 1];
        for wrong in
            [&b""[..], b"0123456789abcde", b"0123456789abcdef\0", b"0123456789abcdeff", b"ann", &long]
        {
            assert_eq!(known.holder(wrong), None);
        }
        assert_eq!(tokens("").holder(b""), None, "no line is no empty token");
    }

    #[test]
    fn refusals_name_the_line_and_never_show_it() {
        for (text, part) in [
            ("secretsecretsecret", "line 1: expected \"name: token\""),
            ("\na: short-secret", "line 2: expected a token of 16"),
            ("a: secret secret secret secret", "line 1: expected a token"),
            ("a b: secretsecretsecret", "line 1: expected a name"),
            ("a: secretsecretsecret\na: secretsecretsecret", "line 2: expected every name once"),
        ] {
            let Err(error) = parse(Path::new("tokens"), text) else { panic!("{text} was taken") };
            let error = error.to_string();
            assert!(error.contains(part) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_file_is_private_and_read_again() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("bantam-tokens-{}", std::process::id()));
        std::fs::write(&path, "ann: 0123456789abcdef").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let open = Tokens::read(&path).unwrap_err().to_string();
        assert!(open.contains("mode 640; chmod 600"), "{open}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let tokens = Tokens::read(&path).unwrap();
        assert!(!tokens.changed());
        std::fs::write(&path, "cat: 0123456789abcdefg").unwrap();
        assert!(tokens.changed());
        tokens.reload();
        assert_eq!(tokens.holder(b"0123456789abcdef"), None);
        assert_eq!(tokens.holder(b"0123456789abcdefg").as_deref(), Some("cat"));
        std::fs::write(&path, "no token").unwrap();
        tokens.reload();
        assert!(tokens.holder(b"0123456789abcdefg").is_some(), "mistakes change nothing");
        std::fs::remove_file(&path).unwrap();
        tokens.reload();
        assert_eq!(tokens.holder(b"0123456789abcdefg"), None, "a file that is gone lets nobody in");
    }
}
