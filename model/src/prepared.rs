//! Models that were made from others, merged or quantized, and are kept to be used again: a folder for each.
//!
//! A folder is named after what it was made from, by content: the same files under other names lead to the same folder,
//! and files that changed to another one. Sums of large files are remembered by place, size and time.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::adapter::{CONFIG, WEIGHTS};
use crate::checkpoint::map;
use crate::checkpoint::writer::{left_of, write_file};
use crate::source::Source;

/// To be raised when the same recipe makes something else.
const VERSION: u32 = 2;
/// What a folder was made from, inside it.
pub const NOTE: &str = "bantam-prepared.json";
const SUMS: &str = "sums.json";
const SUMS_MAX: usize = 4096;
const SMALL_BYTES_MAX: u64 = 4 << 20;
const STEP_BYTES: usize = 4 << 20;
const LABEL_CHARACTERS_MAX: usize = 64;

/// What a kept model was made from, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    version: u32,
    /// The model's folder.
    pub base: String,
    /// The adapter's, where there was one.
    pub adapter: Option<String>,
    /// What was made: `merged`, or a format.
    pub to: String,
    /// Settings that count.
    pub settings: String,
    /// Sum of all that it was made from.
    pub key: String,
    /// Seconds since 1970.
    pub made: u64,
}

/// A kept model.
#[derive(Debug)]
pub struct Entry {
    /// Its name: the folder's.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What it was made from; what is wrong where that cannot be told, or the model not opened.
    pub note: Result<Note, String>,
}

/// The folder of all.
#[derive(Debug, Clone)]
pub struct Prepared {
    folder: PathBuf,
}

impl Prepared {
    /// The kept models of a folder, which need not exist.
    pub fn new(folder: PathBuf) -> Prepared {
        Prepared { folder }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the model is, or would be, that is made of these in this way; and what is to be noted in it. `texts` are
    /// files that the settings name.
    pub fn place(
        &self,
        source: &Source,
        adapter: Option<&Path>,
        to: &str,
        settings: &str,
        texts: &[&Path],
    ) -> io::Result<(PathBuf, Note)> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.folder).map_err(|error| named(&self.folder, &error))?;
        let mut files: Vec<PathBuf> = source.checkpoint.files().map(Path::to_owned).collect();
        files.extend(source.files.paths().filter(|path| path.is_file()));
        files.extend(adapter.into_iter().flat_map(|folder| [CONFIG, WEIGHTS].map(|name| folder.join(name))));
        files.extend(texts.iter().map(|text| text.to_path_buf()));
        let mut sums = Sums::read(&self.folder.join(SUMS));
        let mut all = Xxh3::new();
        for file in &files {
            all.update(file.file_name().unwrap_or_default().as_encoded_bytes());
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
            all.update(sums.of(file).map_err(named)?.as_bytes());
        }
        sums.write();
        all.update(format!("{VERSION} {} {to} {settings}", env!("CARGO_PKG_VERSION")).as_bytes());
        let key = format!("{:032x}", all.digest128());
        let text = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.into()).display().to_string();
        let base = text(source.folder());
        let made = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let path = self.folder.join(format!("{}_{to}-{key}", label(&base)));
        let (to, settings) = (to.to_owned(), settings.to_owned());
        Ok((path, Note { version: VERSION, base, adapter: adapter.map(text), to, settings, key, made }))
    }

    /// Removes what was begun and not finished. Whoever is about to finish it has to begin again.
    pub fn remove_unfinished(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let inner = name.strip_prefix('.').unwrap_or(&name);
            let is_ours = inner.match_indices('.').any(|(at, _)| is_name(&inner[..at]));
            if is_ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Sums::sweep(&self.folder);
    }

    /// Every kept model, by name.
    pub fn list(&self) -> io::Result<Vec<Entry>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_name(&name) && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                found.push(Entry { name, bytes: bytes(&path), note: check(&path), path });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

/// What is noted in a folder, where the model in it has all of its files with the sizes that their headers tell.
pub fn check(folder: &Path) -> Result<Note, String> {
    let note = Note::read(folder)?;
    Source::open(folder).map_err(|error| error.to_string())?;
    Ok(note)
}

impl Note {
    /// As it is written.
    pub fn text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("text and numbers")
    }

    fn read(folder: &Path) -> Result<Note, String> {
        let bytes = map::read_regular(&folder.join(NOTE), SMALL_BYTES_MAX)
            .map_err(|error| format!("{NOTE}: {error}"))?;
        serde_json::from_slice(&bytes).map_err(|error| format!("{NOTE}: {}", crate::foreign::clipped(error)))
    }
}

impl Entry {
    /// Whether it will not be used again: what it was made from is gone, or it cannot be told.
    pub fn is_stale(&self) -> bool {
        let is_there = |path: &String| Path::new(path).exists();
        self.note.as_ref().map_or(true, |note| {
            note.version != VERSION || !is_there(&note.base) || !note.adapter.iter().all(is_there)
        })
    }

    /// Removes it.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

/// An error that says of which file.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The last part of a path, in letters that no shell minds; owner and name of what lies in a cache of a hub.
fn label(base: &str) -> String {
    let mut parts = base.rsplit('/');
    let last = parts.next().unwrap_or_default();
    let name = match (parts.next(), parts.next()) {
        (Some("snapshots"), Some(repository)) => repository.trim_start_matches("models--").replace("--", "_"),
        _ => last.to_owned(),
    };
    let label = name.trim_matches('.').chars().take(LABEL_CHARACTERS_MAX);
    label.map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect()
}

/// Whether a folder is ours by its name.
fn is_name(name: &str) -> bool {
    let key = name.rsplit_once('-').map(|(_, key)| key);
    !name.starts_with('.')
        && key.is_some_and(|key| key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| Some(fs::symlink_metadata(entry.path()).ok()?.len())).sum()
}

/// Sums of files that were read before.
struct Sums {
    path: PathBuf,
    known: BTreeMap<String, String>,
    is_new: bool,
}

impl Sums {
    /// What cannot be read is read again from the files themselves.
    fn read(path: &Path) -> Sums {
        let known = map::read_regular(path, SMALL_BYTES_MAX).ok();
        let known = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Sums { path: path.into(), known, is_new: false }
    }

    /// Removes what was begun of it and not finished. Whoever is at it right now fails, and nothing is lost.
    fn sweep(folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_name().to_str().and_then(left_of) == Some(SUMS) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn write(&mut self) {
        if self.known.len() > SUMS_MAX {
            self.known.clear();
        }
        if self.is_new {
            self.path.parent().into_iter().for_each(Sums::sweep);
            // Without it, the next time takes longer.
            let _ = write_file(&self.path, &serde_json::to_vec(&self.known).expect("text"));
        }
    }

    fn of(&mut self, path: &Path) -> io::Result<String> {
        let path = fs::canonicalize(path)?;
        let metadata = fs::metadata(&path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let place = format!("{} {} {modified}", path.display(), metadata.len());
        if let Some(sum) = self.known.get(&place) {
            return Ok(sum.clone());
        }
        let (mut file, mut sum, mut step) = (File::open(&path)?, Xxh3::new(), vec![0; STEP_BYTES]);
        loop {
            match file.read(&mut step)? {
                0 => break,
                count => sum.update(&step[..count]),
            }
        }
        let sum = format!("{:032x}", sum.digest128());
        self.known.insert(place, sum.clone());
        self.is_new = true;
        Ok(sum)
    }
}
