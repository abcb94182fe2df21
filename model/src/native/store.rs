//! The folder of native files: what is in it, whether it is still of use, and how it goes.
//!
//! Files are ours by their names, which end in 32 digits; others are let be. They appear and disappear as a whole:
//! nothing is ever cut or overwritten, so whoever has one mapped keeps it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

use super::form::{self, FORMAT, Origins};
use super::{NativeError, STEP_BYTES, VERSION, is_unchanged, sum_of};
use crate::checkpoint::map::read_regular;
use crate::checkpoint::writer::left_of;
use crate::checkpoint::{Checkpoint, TensorView};

const SUFFIX: &str = ".safetensors";
const KEY_DIGITS: usize = 32;
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const LABEL_CHARACTERS_MAX: usize = 64;
/// A temporary file of this age that nobody holds locked belongs to a process that was killed. A young one may be
/// about to be locked.
pub(super) const ABANDONED: Duration = Duration::from_secs(60);

/// The folder, which need not exist.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// A native file in the folder.
#[derive(Debug)]
pub struct Kept {
    /// Its name, without ending.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What its header says, or what is wrong with it.
    pub details: Result<Details, String>,
}

/// What a native file says of itself.
#[derive(Debug)]
pub struct Details {
    /// The folder of the model.
    pub model: String,
    /// The layouts of its matrices, each with their number.
    pub layouts: Vec<(String, usize)>,
    /// Seconds since 1970.
    pub made: u64,
    /// Whether it is still of use.
    pub state: State,
}

/// Whether a native file is still of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The model is as it was.
    Current,
    /// The model is there, but was changed.
    Changed,
    /// The model is not there any more.
    Gone,
    /// Another version of the program wrote it.
    OtherVersion,
}

/// The name of the file for a model's folder and a key.
pub(super) fn file_name(model: &Path, key: &str) -> String {
    let mut names = model.iter().rev().filter_map(|name| name.to_str());
    let mut name = names.next().unwrap_or_default();
    // `models--a--b/snapshots/<revision>` of the Hugging Face cache: the revision tells nobody anything.
    if let (Some("snapshots"), Some(repository)) = (names.next(), names.next()) {
        name = repository.trim_start_matches("models--");
    }
    let label = name.trim_matches('.').chars().take(LABEL_CHARACTERS_MAX);
    let label = label.map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' });
    format!("{}-{key}{SUFFIX}", label.collect::<String>())
}

/// The name of a native file without its ending, if it is one.
fn native_name(name: &str) -> Option<&str> {
    let name = name.strip_suffix(SUFFIX)?;
    let (_, key) = name.rsplit_once('-')?;
    let is_key = key.len() == KEY_DIGITS && key.bytes().all(|b| b.is_ascii_hexdigit());
    (is_key && !name.starts_with('.')).then_some(name)
}

/// Whether a name is what a native file is written under.
fn is_temporary(name: &str) -> bool {
    left_of(name).is_some_and(|name| native_name(name).is_some())
}

impl Store {
    /// The native files of a folder.
    pub fn new(folder: PathBuf) -> Store {
        Store { folder }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder, for its owner's eyes alone: models may be private.
    pub(super) fn make(&self) -> Result<(), NativeError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let folder_error = |source| NativeError::Folder { folder: self.folder.clone(), source };
        builder.create(&self.folder).map_err(folder_error)
    }

    /// A full disk is worse than a slow start: as much again must stay free.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), NativeError> {
        #[cfg(unix)]
        if let Ok(disk) = rustix::fs::statvfs(&self.folder) {
            let (free, needed) = (disk.f_bavail.saturating_mul(disk.f_frsize), bytes.saturating_mul(2));
            if free < needed {
                return Err(NativeError::Room { folder: self.folder.clone(), needed, free });
            }
        }
        let _ = bytes;
        Ok(())
    }

    /// Regular files of the folder with their names; none where there is no folder.
    fn files(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if let (true, Ok(name)) = (is_file, entry.file_name().into_string()) {
                files.push((name, entry.path()));
            }
        }
        files.sort();
        Ok(files)
    }

    /// Every native file, by name.
    pub fn list(&self) -> io::Result<Vec<Kept>> {
        let kept = |(name, path): (String, PathBuf)| {
            let name = native_name(&name)?.to_owned();
            // One that is gone meanwhile is not there.
            let bytes = fs::symlink_metadata(&path).ok()?.len();
            let details = Details::read(&path);
            Some(Kept { name, path, bytes, details })
        };
        Ok(self.files()?.into_iter().filter_map(kept).collect())
    }

    /// Bytes of all files that are ours, unfinished ones included.
    pub fn bytes(&self) -> io::Result<u64> {
        let files = self.files()?.into_iter();
        let ours = files.filter(|(name, _)| native_name(name).is_some() || is_temporary(name));
        Ok(ours.filter_map(|(_, path)| Some(fs::symlink_metadata(path).ok()?.len())).sum())
    }

    /// Removes what killed processes have left unfinished, if it is of some age.
    pub fn sweep(&self, age: Duration) {
        let is_old = |path: &Path| {
            let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed >= age))
        };
        let files = self.files().unwrap_or_default();
        for (_, path) in files.iter().filter(|(name, path)| is_temporary(name) && is_old(path)) {
            // A living writer holds the lock. One that cannot be removed is no reason not to go on.
            if File::open(path).is_ok_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Removes files that were made from the same model when it was another.
    pub(super) fn remove_outdated(&self, model: &str) {
        for kept in self.list().unwrap_or_default() {
            let is_outdated = |details: &Details| details.model == model && details.state == State::Changed;
            if kept.details.as_ref().is_ok_and(is_outdated) {
                let _ = kept.remove();
            }
        }
    }
}

impl Kept {
    /// Whether it will not be used again.
    pub fn is_stale(&self) -> bool {
        self.details.as_ref().map_or(true, |details| details.state != State::Current)
    }

    /// Removes it. Who has it mapped keeps it until the end.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Reads all of it, tells how many bytes are read, and gives the names of tensors whose bytes are not those that
    /// were written.
    pub fn verify(&self, tell: &mut dyn FnMut(usize)) -> Result<Vec<String>, String> {
        if let Err(reason) = &self.details {
            return Err(reason.clone());
        }
        let file = Checkpoint::open_as_it_is(&self.path).map_err(|error| error.to_string())?;
        let parts = file.parts().unwrap_or_default();
        let (header, ..) = parts.first().ok_or("no file")?;
        let (_, sums) = form::read_written(header).ok_or("its checksums are damaged")?;
        let (mut damaged, mut done) = (Vec::new(), 0);
        for (entry, expected) in header.entries().zip(sums) {
            let tensor = file.tensor(entry.name).ok_or("a tensor is lost")?;
            let found = sum_of_tensor(&tensor, &mut done, tell);
            let found = found.map_err(|error| format!("tensor {:?}: {error}", entry.name))?;
            if found != expected {
                damaged.push(entry.name.to_owned());
            }
        }
        Ok(damaged)
    }
}

/// Through reads: a map would end the process where the disk fails.
fn sum_of_tensor(tensor: &TensorView, done: &mut usize, tell: &mut dyn FnMut(usize)) -> io::Result<u128> {
    let mut sum = Xxh3::new();
    for start in (0..tensor.data.len()).step_by(STEP_BYTES) {
        let bytes = tensor.load(start..tensor.data.len().min(start + STEP_BYTES))?;
        sum.update(&bytes);
        *done += bytes.len();
        tell(*done);
    }
    Ok(sum.digest128())
}

impl Details {
    fn read(path: &Path) -> Result<Details, String> {
        let file = Checkpoint::open_as_it_is(path).map_err(|error| error.to_string())?;
        let metadata: Vec<(&str, &str)> = file.metadata().collect();
        let value = |key: &str| metadata.iter().find(|(found, _)| *found == key).map(|(_, value)| *value);
        let need = |key: &str| {
            value(key)
                .ok_or_else(|| format!("{}: expected {key} in its metadata, found none", path.display()))
        };
        if need("format")? != FORMAT {
            return Err(format!("{}: expected a native file, found another", path.display()));
        }
        let is_ours =
            need("version")? == VERSION.to_string() && need("program")? == env!("CARGO_PKG_VERSION");
        let damaged = |key: &str| format!("{}: expected a sound {key} in its metadata", path.display());
        let made = need("made")?.parse().map_err(|_| damaged("made"))?;
        let origins: Origins = serde_json::from_str(need("origins")?).map_err(|_| damaged("origins"))?;
        let state = if is_ours { origins.state() } else { State::OtherVersion };
        let mut layouts: Vec<(String, usize)> = Vec::new();
        for (_, note) in metadata.iter().filter(|(name, _)| file.tensor(name).is_some()) {
            // Vectors have one number and no `x`.
            let mut words = note.split(' ');
            let (Some(layout), Some(shape)) = (words.next(), words.next()) else { continue };
            match layouts.iter_mut().find(|(found, _)| found == layout) {
                Some((_, count)) => *count += 1,
                None if shape.contains('x') => layouts.push((layout.to_owned(), 1)),
                None => {}
            }
        }
        Ok(Details { model: origins.model, layouts, made, state })
    }

    /// When it was made, by this machine's clock.
    pub fn made_when(&self) -> String {
        let time = i64::try_from(self.made).ok().and_then(|made| jiff::Timestamp::from_second(made).ok());
        let local = time.map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
        local.map_or_else(|| "?".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M").to_string())
    }
}

impl Origins {
    fn state(&self) -> State {
        let config = read_regular(&Path::new(&self.model).join("config.json"), CONFIG_BYTES_MAX);
        let is_there = config.is_ok() && self.files.iter().all(|file| Path::new(&file.path).exists());
        let is_same = config.is_ok_and(|config| sum_of(&config) == self.config)
            && self
                .files
                .iter()
                .all(|file| is_unchanged(Path::new(&file.path), file.bytes, file.modified_ns));
        match (is_same, is_there) {
            (true, _) => State::Current,
            (false, true) => State::Changed,
            (false, false) => State::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let key = "0123456789abcdef0123456789abcdef";
        let name = |model: &str| file_name(Path::new(model), key);
        let expected = |label: &str| format!("{label}-{key}.safetensors");
        assert_eq!(name("/a/my model"), expected("my_model"));
        assert_eq!(name("/hub/models--a--b/snapshots/0f3"), expected("a--b"));
        assert_eq!(name("/"), expected("_"));
        assert_eq!(native_name(&name("/a/b")), Some(format!("b-{key}").as_str()));
        assert!(is_temporary(&format!(".b-{key}.safetensors.17.0.tmp")));
        for other in ["model.safetensors", "b-01.safetensors", &format!(".b-{key}.safetensors"), key] {
            assert!(native_name(other).is_none() && !is_temporary(other), "{other}");
        }
    }
}
