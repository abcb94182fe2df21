//! Addresses of daemons as the command line spells them.

use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use bantam_daemon::settings::Surroundings;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// A unix socket: the daemon is on this machine and sees the same files.
    Socket(PathBuf),
    /// `http://host:port` or `https://host:port`.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected unix:/path, http://host:port or https://host:port";
        let clip = |text: &str| text.chars().take(80).collect::<String>();
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.starts_with('/') {
                true => Ok(Address::Socket(path.into())),
                false => Err(format!("{expected}, found {:?}, whose path does not begin with /", clip(text))),
            };
        }
        let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let host = host.map(|host| host.strip_suffix('/').unwrap_or(host));
        let has_port = |host: &str| {
            host.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok())
        };
        match host {
            Some(host) if has_port(host) && !host.contains(['/', '@', ' ']) => {
                Ok(Address::Tcp(text.trim_end_matches('/').to_owned()))
            }
            Some(_) => Err(format!("{expected}, found {:?}: write host and port alone", clip(text))),
            None => Err(format!("{expected}, found {:?}", clip(text))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(target) => f.write_str(target),
        }
    }
}

impl Address {
    /// Whether there is something to connect to, as far as files show it. Another user's socket is none: what it
    /// answers is not to be trusted.
    pub(super) fn is_there(&self) -> bool {
        let Address::Socket(path) = self else { return true };
        let uid = Surroundings::of_process().uid;
        std::fs::metadata(path)
            .is_ok_and(|metadata| metadata.file_type().is_socket() && [uid, 0].contains(&metadata.uid()))
    }

    /// Whether anybody listens at the socket.
    pub(super) fn is_listened_at(&self) -> bool {
        match self {
            Address::Socket(path) => UnixStream::connect(path).is_ok(),
            Address::Tcp(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, expected) in [
            ("unix:/a b/c.sock", Address::Socket("/a b/c.sock".into())),
            ("unix:///a", Address::Socket("/a".into())),
            ("http://localhost:7421/", Address::Tcp("http://localhost:7421".to_owned())),
            ("https://[::1]:1", Address::Tcp("https://[::1]:1".to_owned())),
        ] {
            let address: Address = text.parse().expect("it is sound");
            assert_eq!(address, expected);
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        for wrong in ["", "/a", "unix:a", "http://host", "http://:1", "http://h:99999", "http://u@h:1", "h:1"]
        {
            assert!(
                wrong.parse::<Address>().is_err_and(|error| error.contains("expected unix:/path")),
                "{wrong}"
            );
        }
    }
}
