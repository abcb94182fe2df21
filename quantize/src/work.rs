//! The folder in which a checkpoint grows, `DIR.partial` beside `DIR`, and how it gets its final name.
//!
//! ```text
//! DIR.partial/settings.json   what is made of what: another start goes on only where it is the same
//!             lock            held while a process works here
//!             parts/          a file for every matrix that is done, whole or not there
//!             source/         what a GGUF file was written out as
//!             state           what a method that goes by layers needs to go on
//!             native/         the same in its native form, where that is wanted instead
//!             result/         the checkpoint; renamed to DIR as the last act
//!             done            result/ is complete; removed as the last file once it has its name
//! ```
//!
//! Files are written beside their names and renamed, so that whatever stops the process, each is whole or absent.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use bantam_model::checkpoint::writer;
use bantam_model::merge::stranger;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{QuantizeError, at, refused};

/// The state while it is written.
pub(crate) const STATE_ASIDE: &str = ".state.tmp";

/// What a start does with what an earlier one left.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begin {
    /// Whether a checkpoint that stands at `DIR` is replaced.
    pub force: bool,
    /// Whether unfinished work is thrown away.
    pub restart: bool,
}

/// The folder, locked.
#[derive(Debug)]
pub struct Work {
    output: PathBuf,
    folder: PathBuf,
    /// Of the settings.
    digest: String,
    /// Released when it is dropped.
    _lock: File,
}

impl Work {
    /// Begins work, or goes on with what was begun. `None`: it was finished, and stands at `output`.
    pub fn open(output: &Path, settings: &Value, begin: Begin) -> Result<Option<Work>, QuantizeError> {
        let folder = partial(output)?;
        let digest = format!("{:016x}", xxh3_64(settings.to_string().as_bytes()));
        if let Some(made_with) = named(&folder, output) {
            tidy(&folder)?;
            if made_with == digest && !begin.restart {
                return Ok(None);
            }
        }
        take(&folder, output, begin.force)?;
        let lock = lock(&folder)?;
        let work = Work { output: output.to_owned(), folder, digest, _lock: lock };
        if begin.restart {
            work.clear()?;
        }
        work.agree(settings)?;
        for folder in [work.parts(), work.result()] {
            fs::create_dir_all(&folder).map_err(at(&folder))?;
            remove_leftovers(&folder)?;
        }
        Ok(Some(work))
    }

    /// Throws away everything but the lock.
    fn clear(&self) -> Result<(), QuantizeError> {
        // The settings go last: while they are there, the folder is known as ours.
        for name in ["parts", "result", "native"] {
            let path = self.folder.join(name);
            if path.exists() {
                fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        for name in ["state", "done", "settings.json"] {
            let path = self.folder.join(name);
            if path.exists() {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    /// Writes the settings down, or compares them with those that are there.
    fn agree(&self, settings: &Value) -> Result<(), QuantizeError> {
        let path = self.folder.join("settings.json");
        let Ok(found) = fs::read(&path) else {
            let text = format!("{settings:#}\n");
            return Ok(writer::write_file(&path, text.as_bytes())?);
        };
        let found: Value = serde_json::from_slice(&found).unwrap_or_default();
        if found == *settings {
            return Ok(());
        }
        let words = difference("", settings, &found);
        Err(refused(format!(
            "{}: expected work that was begun with the same model and settings, found other ones ({words}): finish it \
             with those, or begin anew with --restart",
            self.folder.display()
        )))
    }

    /// Refuses a disk that has no room for all that is still to be written.
    pub(crate) fn check_room(&self, bytes: u64) -> Result<(), QuantizeError> {
        let own = [self.parts(), self.result()].iter().map(|folder| folder_bytes(folder)).sum();
        check_free(&self.folder, bytes.saturating_sub(own), "the result and one shard twice")
    }

    /// Where matrices are kept until all are done.
    pub(crate) fn parts(&self) -> PathBuf {
        self.folder.join("parts")
    }

    /// Where the checkpoint grows.
    pub fn result(&self) -> PathBuf {
        self.folder.join("result")
    }

    /// Where a folder grows that is published in the checkpoint's place.
    pub(crate) fn native(&self) -> PathBuf {
        self.folder.join("native")
    }

    /// Where a method keeps its state.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Gives the result its final name.
    pub fn publish(self) -> Result<(), QuantizeError> {
        let result = self.result();
        self.publish_as(&result)
    }

    /// The same for another folder of the work.
    pub(crate) fn publish_as(self, result: &Path) -> Result<(), QuantizeError> {
        sync_folder(result)?;
        let replaced =
            self.output.exists() && fs::read_dir(&self.output).is_ok_and(|mut all| all.next().is_some());
        if replaced {
            // Somebody may have put something there meanwhile.
            check_model_alone(&self.output)?;
        }
        let done = format!("{}\n{}", identity(result), self.digest);
        writer::write_file(&self.folder.join("done"), done.as_bytes())?;
        match replaced {
            false => fs::rename(result, &self.output).map_err(at(&self.output))?,
            // From here on the folder of the unfinished holds the old model.
            true => exchange(result, &self.output).map_err(at(&self.output))?,
        }
        let parent = self.output.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))?;
        remove(&self.folder)
    }
}

/// The folder before work on a checkpoint can begin, locked: for a model that must be written out first.
#[derive(Debug)]
pub(crate) struct Claim {
    output: PathBuf,
    folder: PathBuf,
    /// Released when it is dropped.
    _lock: File,
}

impl Claim {
    /// `None`: an earlier start has finished the work, and the model that was written out is gone.
    pub(crate) fn open(output: &Path, begin: Begin) -> Result<Option<Claim>, QuantizeError> {
        let folder = partial(output)?;
        let is_named = named(&folder, output).is_some();
        let is_finished = is_named && !begin.restart && folder.join("source/config.json").is_file();
        if is_named && !is_finished {
            tidy(&folder)?;
            if !begin.restart {
                return Ok(None);
            }
        }
        match is_finished {
            // Whether by the same settings is found out with the model.
            true => check_ours(&folder)?,
            false => take(&folder, output, begin.force)?,
        }
        let claim = Claim { _lock: lock(&folder)?, output: output.to_owned(), folder };
        let source = claim.source();
        if begin.restart && source.exists() {
            fs::remove_dir_all(&source).map_err(at(&source))?;
        }
        if source.exists() {
            remove_leftovers(&source)?;
        }
        Ok(Some(claim))
    }

    /// Where the model is written out.
    pub(crate) fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    /// Refuses a disk that has no room for it, and for what is made of it.
    pub(crate) fn check_room(&self, bytes: u64) -> Result<(), QuantizeError> {
        let own = ["source", "parts", "result"].map(|name| folder_bytes(&self.folder.join(name)));
        let needed = bytes.saturating_sub(own.iter().sum());
        check_free(&self.folder, needed, "the model written out as safetensors, and the result")
    }

    /// Removes everything, now that the output is there; what a kill leaves of it, the next start knows as done.
    pub(crate) fn remove(self) -> Result<(), QuantizeError> {
        let done = format!("{}\n", identity(&self.output));
        writer::write_file(&self.folder.join("done"), done.as_bytes())?;
        remove(&self.folder)
    }
}

/// `DIR.partial`.
fn partial(output: &Path) -> Result<PathBuf, QuantizeError> {
    let name = output.file_name().ok_or_else(|| {
        refused(format!("{}: expected the name of a new folder; give one", output.display()))
    })?;
    let mut partial = name.to_owned();
    partial.push(".partial");
    Ok(output.with_file_name(partial))
}

/// Removes what a killed process has left of its work on a model that is there whole, and known to be.
pub fn discard(output: &Path) -> Result<(), QuantizeError> {
    let folder = partial(output)?;
    match folder.is_dir() {
        true => tidy(&folder),
        false => Ok(()),
    }
}

/// Ends what was cut short after everything was done.
fn tidy(folder: &Path) -> Result<(), QuantizeError> {
    check_ours(folder)?;
    let _lock = lock(folder)?;
    remove(folder)
}

/// Makes the folder of unfinished work where there is none and where there may be one.
fn take(folder: &Path, output: &Path, force: bool) -> Result<(), QuantizeError> {
    // A kill between the last file and its folder leaves an empty one; others stay.
    let _ = fs::remove_dir(folder);
    check_output(output, force)?;
    match fs::symlink_metadata(folder) {
        Ok(found) if !found.is_dir() => Err(refused(format!(
            "{}: expected a folder of unfinished work, or none, found another file: remove it",
            folder.display()
        ))),
        Ok(_) => check_ours(folder),
        Err(_) => fs::create_dir(folder).map_err(at(folder)),
    }
}

/// Refuses a disk that has fewer free bytes.
fn check_free(folder: &Path, needed: u64, what: &str) -> Result<(), QuantizeError> {
    #[cfg(unix)]
    if let Ok(disk) = rustix::fs::statvfs(folder) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < needed {
            return Err(refused(format!(
                "{}: expected {needed} free bytes on the disk, for {what}, found {free}: make room, or give a folder \
                 on another disk",
                folder.display()
            )));
        }
    }
    let _ = (folder, needed, what);
    Ok(())
}

/// The digest of the settings that `output` was made with, where the work in `folder` has given it its name.
fn named(folder: &Path, output: &Path) -> Option<String> {
    let done = fs::read_to_string(folder.join("done")).ok()?;
    let (result, digest) = done.split_once('\n')?;
    // Where folders have no identity, the result has left.
    let is_there = result == identity(output) && (cfg!(unix) || !folder.join("result").exists());
    (is_there && output.is_dir()).then(|| digest.to_owned())
}

/// Removes the folder. What tells that the work was finished goes last, so that a kill changes nothing of that.
fn remove(folder: &Path) -> Result<(), QuantizeError> {
    const LAST: [&str; 2] = ["lock", "done"];
    // A model that was written out is whole or not there.
    let (source, gone) = (folder.join("source"), folder.join("source.gone"));
    if source.exists() && !gone.exists() {
        fs::rename(&source, &gone).map_err(at(&source))?;
    }
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(at(&path))?;
        } else if LAST.iter().all(|last| !path.ends_with(last)) {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    for path in LAST.map(|last| folder.join(last)) {
        if path.exists() {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    fs::remove_dir(folder).map_err(at(folder))
}

/// What stays the same when a folder is renamed.
fn identity(folder: &Path) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if let Ok(metadata) = fs::metadata(folder) {
            return format!("{} {}", metadata.dev(), metadata.ino());
        }
    }
    let _ = folder;
    "unknown".to_owned()
}

/// Puts each in the place of the other, at once where the system can.
fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    let aside = one.with_extension("old");
    fs::rename(other, &aside)?;
    fs::rename(one, other)
}

fn check_output(output: &Path, force: bool) -> Result<(), QuantizeError> {
    let shown = output.display();
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        return Err(refused(format!(
            "{shown}: expected a folder in a folder that exists, but {} does not: create it first",
            parent.display()
        )));
    }
    let Ok(metadata) = fs::symlink_metadata(output) else { return Ok(()) };
    if !metadata.is_dir() {
        return Err(refused(format!(
            "{shown}: expected a new folder, found another file of that name: give another one"
        )));
    }
    let mut entries = fs::read_dir(output).map_err(at(output))?;
    match (entries.next().is_none(), force) {
        (true, _) => Ok(()),
        (false, false) => Err(refused(format!(
            "{shown}: expected a new folder, found one with files in it: give another one, or --force to replace it"
        ))),
        // What is replaced is removed: a model may be, somebody's home may not.
        (false, true) if output.join("config.json").is_file() => check_model_alone(output),
        (false, true) => Err(refused(format!(
            "{shown}: expected a model to replace, found a folder without config.json: give another one"
        ))),
    }
}

/// Refuses to replace a folder with something of its owner in it.
fn check_model_alone(output: &Path) -> Result<(), QuantizeError> {
    match stranger(output).map_err(at(output))? {
        None => Ok(()),
        Some(name) => Err(refused(format!(
            "{}: expected a model alone to replace, found {name:?}, which no model has: move it away first",
            output.display()
        ))),
    }
}

/// Whether everything in a folder is what work leaves there.
fn check_ours(folder: &Path) -> Result<(), QuantizeError> {
    const OURS: [&str; 12] = [
        "settings.json",
        "lock",
        "source",
        "source.gone",
        "parts",
        "state",
        STATE_ASIDE,
        "result",
        "result.old",
        "native",
        "native.old",
        "done",
    ];
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let name = entry.map_err(at(folder))?.file_name();
        let name = name.to_string_lossy();
        let is_ours = OURS.contains(&writer::left_of(&name).unwrap_or(&name));
        if !is_ours {
            return Err(refused(format!(
                "{}: expected a folder of unfinished work, found {name:?} in it: move it away, or give another \
                 --output",
                folder.display()
            )));
        }
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File, QuantizeError> {
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(refused(format!(
            "{}: expected nobody else to work on it, found another process that does: wait for it or end it",
            folder.display()
        ))),
        Err(TryLockError::Error(source)) => Err(at(&path)(source)),
    }
}

/// Files that were being written when a process was killed.
fn remove_leftovers(folder: &Path) -> Result<(), QuantizeError> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        if path.file_name().and_then(|name| name.to_str()).and_then(writer::left_of).is_some() {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

fn folder_bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// Renames and new files are on the disk only when their folder is. Windows has no such call.
fn sync_folder(folder: &Path) -> Result<(), QuantizeError> {
    match cfg!(unix) {
        true => File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder)),
        false => Ok(()),
    }
}

/// Where two values differ first, and how.
fn difference(key: &str, wanted: &Value, found: &Value) -> String {
    if let (Value::Object(wanted), Value::Object(found)) = (wanted, found) {
        let keys = wanted.keys().chain(found.keys());
        let other = keys.clone().find(|name| wanted.get(*name) != found.get(*name));
        if let Some(name) = other {
            let of = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            return difference(&key, &of(wanted), &of(found));
        }
    }
    let [wanted, found] = [wanted, found].map(Value::to_string);
    let same = wanted.chars().zip(found.chars()).take_while(|(a, b)| a == b).count();
    format!("{key}: expected {}, found {}", clipped(&wanted, same), clipped(&found, same))
}

/// A part of a text for a message: what surrounds a character.
fn clipped(text: &str, at: usize) -> String {
    const MOST: usize = 80;
    const BEFORE: usize = 30;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    let first = at.saturating_sub(BEFORE);
    let before = if first > 0 { "\u{2026}" } else { "" };
    let part: String = text.chars().skip(first).take(MOST).collect();
    let after = if text.chars().count() > first + MOST { "\u{2026}" } else { "" };
    format!("{before}{part}{after}")
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use serde_json::json;

    const BEGIN: Begin = Begin { force: false, restart: false };

    #[test]
    fn a_difference_is_shown_where_it_is() {
        let of = |group: usize| {
            let told = format!(
                "Ternary(Settings {{ damp: 0.01, turns: 4, sweeps: 10, columns: false, a: 1, group: {group} }})"
            );
            json!({ "form": "Ternary", "method": { "name": "ptbitnet", "settings": told } })
        };
        let words = difference("", &of(64), &of(128));
        assert!(words.starts_with("method.settings: expected "), "{words}");
        assert!(words.contains("group: 64") && words.contains("group: 128"), "{words}");
        let words = difference("", &json!({ "form": "Nf4" }), &json!({ "form": "Int8", "head": null }));
        assert_eq!(words, r#"form: expected "Nf4", found "Int8""#);
    }

    /// A kill while the folder of the unfinished is removed, at the first moment and at the last.
    #[test]
    fn work_that_has_its_name_is_finished() {
        let folder = std::env::temp_dir().join(format!("bantam-work-{}", std::process::id()));
        let (output, partial) = (folder.join("made"), folder.join("made.partial"));
        fs::create_dir_all(&folder).unwrap();
        let settings = json!({ "form": "nf4" });
        let work = Work::open(&output, &settings, BEGIN).unwrap().unwrap();
        fs::write(work.result().join("config.json"), "new").unwrap();
        let digest = work.digest.clone();
        work.publish().unwrap();
        assert!(!partial.exists());
        let leave = |is_last: bool| {
            fs::create_dir_all(&partial).unwrap();
            fs::write(partial.join("done"), format!("{}\n{digest}", identity(&output))).unwrap();
            if !is_last {
                // The model that was replaced.
                fs::create_dir(partial.join("result")).unwrap();
                fs::write(partial.join("result/config.json"), "old").unwrap();
                fs::write(partial.join("settings.json"), settings.to_string()).unwrap();
            }
        };
        for begin in [BEGIN, Begin { force: true, ..BEGIN }] {
            for is_last in [false, true] {
                leave(is_last);
                assert!(Work::open(&output, &settings, begin).unwrap().is_none() && !partial.exists());
            }
        }
        leave(false);
        let refused = Work::open(&output, &json!({ "form": "fp4" }), BEGIN).unwrap_err();
        assert!(refused.to_string().contains("--force") && !partial.exists(), "{refused}");
        assert_eq!(fs::read_to_string(output.join("config.json")).unwrap(), "new");
        fs::remove_dir_all(&folder).unwrap();
    }
}
