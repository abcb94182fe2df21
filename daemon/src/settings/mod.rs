//! What the daemon is told: a file, then the environment, then flags; the last that names a key decides.
//! `table.rs` describes every key once. No clock and no socket here; files that settings name are opened elsewhere.

mod file;
mod print;
mod table;
mod value;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

pub use table::{KEYS, Key, Settings};
pub use value::{Budget, Bytes, KvName, LogFormat, MetricsAt, PrecisionName};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the settings' file.
    File(PathBuf, usize),
    /// This environment variable.
    Variable(String),
    /// This flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
            Self::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is not there or cannot be read.
    #[error("{}: {source}; name another with --config", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}, line {line}: expected TOML, found: {what}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// In the parser's words.
        what: String,
    },
    /// A value is neither text, a whole number, true or false, nor a list of those.
    #[error(
        "{}, line {line}: {name}: expected text, a whole number, true, false or a list of those; put others in quotes",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// The key.
        name: String,
    },
    /// Nobody knows the key.
    #[error(
        "{origin}: there is no setting {name:?}; did you mean {nearest:?}? (`serve --print-config` lists all)"
    )]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// What was found.
        name: String,
        /// The known name that is spelled most like it.
        nearest: String,
    },
    /// A value is not what its key needs.
    #[error("{origin}: {name}: expected {expected}, found {found:?}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The key.
        name: &'static str,
        /// What the table says.
        expected: &'static str,
        /// What was found, cut short.
        found: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Together(&'static str),
}

/// What a command line said: keys of the table with their values. The command line makes its flags from `KEYS`.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The file to read instead of the usual one, which then must be there.
    pub config: Option<PathBuf>,
    /// Keys (`limits.streams`) and their values.
    pub values: Vec<(String, Vec<String>)>,
}

/// What the process was started with, as values, so that tests need not change the environment.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// The user.
    pub uid: u32,
}

impl Surroundings {
    /// Those of this process. Variables that are not UTF-8 are none of ours.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: std::env::vars_os().filter_map(text).collect(),
            uid: rustix::process::getuid().as_raw(),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(known, value)| known == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    fn folder(&self, name: &str) -> Option<&Path> {
        self.get(name).map(Path::new).filter(|path| path.is_absolute())
    }

    /// Where settings are looked for when no flag says.
    fn usual_file(&self) -> Option<PathBuf> {
        let folder = self.folder("XDG_CONFIG_HOME").map(Path::to_owned);
        let folder = folder.or_else(|| self.folder("HOME").map(|home| home.join(".config")))?;
        Some(folder.join("bantam").join("bantam.toml"))
    }

    /// Where native files are kept; nothing where no variable says.
    #[must_use]
    pub fn cache_folder(&self) -> Option<PathBuf> {
        let folder = self.folder("XDG_CACHE_HOME").map(Path::to_owned);
        let folder = folder.or_else(|| self.folder("HOME").map(|home| home.join(".cache")))?;
        Some(folder.join("bantam"))
    }

    /// Where the socket is when no setting says.
    #[must_use]
    pub fn usual_socket(&self) -> PathBuf {
        let folder = self.folder("XDG_RUNTIME_DIR").map(Path::to_owned);
        // Not $TMPDIR: a client must find the same place, whatever its shell says.
        folder.unwrap_or_else(|| Path::new("/tmp").join(format!("bantam-{}", self.uid))).join("bantam.sock")
    }
}

/// Settings with the origin of each, in the table's order.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The values.
    pub settings: Settings,
    origins: Vec<Origin>,
}

/// Variables with our prefix that are no settings.
const OTHER_VARIABLES: &[&str] = &[
    "BANTAM_CONFIG",
    "BANTAM_LOCAL",
    "BANTAM_CONNECT",
    "BANTAM_TOKEN_FILE",
    "BANTAM_BLESS",
    "BANTAM_SHOW",
    "BANTAM_MORE_FORMATS",
    "BANTAM_MORE_GGUF",
    "BANTAM_CACHE",
];

/// Reads the file, the environment and the flags, in that order.
///
/// # Errors
/// The first key that is unknown or wrong, by its place.
pub fn read(flags: &Flags, around: &Surroundings) -> Result<Effective, SettingsError> {
    let mut read = Effective { settings: Settings::default(), origins: vec![Origin::Default; KEYS.len()] };
    let named = flags.config.clone().or_else(|| around.get("BANTAM_CONFIG").map(PathBuf::from));
    let usual = || around.usual_file().filter(|path| path.exists());
    if let Some(path) = named.or_else(usual) {
        for entry in file::entries(&path, &file::read(&path)?)? {
            read.put(&entry.name, &entry.items, Origin::File(path.clone(), entry.line))?;
        }
    }
    for (name, value) in &around.variables {
        if name.starts_with("BANTAM_") && !OTHER_VARIABLES.contains(&name.as_str()) {
            read.put_variable(name, value)?;
        }
    }
    for (name, items) in &flags.values {
        read.put(name, items, Origin::Flag(name.replace(['.', '_'], "-")))?;
    }
    read.finish(around)
}

impl Effective {
    fn put(&mut self, name: &str, items: &[String], origin: Origin) -> Result<(), SettingsError> {
        let Some(at) = KEYS.iter().position(|key| key.name == name) else {
            let names = KEYS.iter().map(|key| key.name.to_owned());
            return Err(unknown(name, names, origin));
        };
        let key = &KEYS[at];
        if !(key.put)(&mut self.settings, items) {
            let found = items.join(", ").chars().take(100).collect();
            return Err(SettingsError::Value { origin, name: key.name, expected: key.expected, found });
        }
        self.origins[at] = origin;
        Ok(())
    }

    fn put_variable(&mut self, name: &str, value: &str) -> Result<(), SettingsError> {
        let origin = Origin::Variable(name.to_owned());
        let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
            return Err(unknown(name, KEYS.iter().map(Key::variable), origin));
        };
        let items: Vec<String> = match (key.list, value.is_empty()) {
            (true, true) => Vec::new(),
            (true, false) => value.split(',').map(|item| item.trim().to_owned()).collect(),
            (false, _) => vec![value.to_owned()],
        };
        self.put(key.name, &items, origin)
    }

    /// Puts in what depends on the user, and judges what only shows in several values.
    fn finish(mut self, around: &Surroundings) -> Result<Self, SettingsError> {
        let settings = &mut self.settings;
        if settings.socket.as_os_str().is_empty() {
            settings.socket = around.usual_socket();
        }
        let has = |path: &PathBuf| !path.as_os_str().is_empty();
        if has(&settings.tls_certificate) != has(&settings.tls_key) {
            return Err(SettingsError::Together(
                "tls.certificate and tls.key: expected both or neither, found one; set the other too",
            ));
        }
        if has(&settings.tls_client_ca) && !has(&settings.tls_certificate) {
            return Err(SettingsError::Together(
                "tls.client_ca: clients' certificates need TLS, which has no tls.certificate and tls.key; set both",
            ));
        }
        Ok(self)
    }
}

fn unknown(name: &str, known: impl Iterator<Item = String>, origin: Origin) -> SettingsError {
    let name: String = name.chars().take(60).collect();
    let nearest = known.min_by_key(|known| distance(known, &name)).unwrap_or_default();
    SettingsError::Unknown { origin, name, nearest }
}

/// How many letters must be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
