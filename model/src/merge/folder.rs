//! The folder of a merged model: written under a name that nobody looks for, and renamed when all of it is there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::MergeError;
use crate::checkpoint::index::INDEX_NAME;
use crate::checkpoint::writer::{left_of, write_file};
use crate::prepared::NOTE;
use crate::source::Source;

/// What the small files may take.
pub(super) const SMALL_BYTES: u64 = 64 << 20;

/// Where a merged model is to be.
#[derive(Debug)]
pub struct Place {
    output: PathBuf,
    /// Files beside the model's own, with their names.
    notes: Vec<(&'static str, Vec<u8>)>,
}

/// The same while it is written; removed unless it is finished.
pub(super) struct Pending {
    output: PathBuf,
    notes: Vec<(&'static str, Vec<u8>)>,
    temporary: PathBuf,
    is_done: bool,
}

fn refused(folder: &Path, reason: impl Into<String>) -> MergeError {
    MergeError::Output { folder: folder.into(), reason: reason.into() }
}

fn failed(folder: &Path, error: &io::Error) -> MergeError {
    refused(folder, format!("{error}; nothing was written under that name: check space and permissions"))
}

/// Refuses a folder that holds what is read.
fn check_apart(output: &Path, kept: &[&Path]) -> Result<(), MergeError> {
    let Ok(place) = fs::canonicalize(output) else { return Ok(()) };
    let is_in = |kept: &&&Path| fs::canonicalize(kept).is_ok_and(|kept| kept.starts_with(&place));
    match kept.iter().find(is_in) {
        None => Ok(()),
        Some(kept) => {
            let kept = kept.display();
            Err(refused(output, format!("expected another folder than that of {kept}: give another name")))
        }
    }
}

/// Names of files that models have beside their weights, as their makers, the hub and the tools leave them.
const KNOWN: [&str; 30] = [
    ".gitattributes",
    "added_tokens.json",
    "adapter_config.json",
    "bantam_report.json",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "image_processor_config.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "merges.txt",
    "modules.json",
    "NOTICE",
    "preprocessor_config.json",
    "processor_config.json",
    "quant_config.json",
    "quantization_config.json",
    "quantize_config.json",
    "README.md",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "USE_POLICY.md",
    "vocab.json",
    "vocab.txt",
];
/// Ends of names of weights, their indices and templates.
const KNOWN_ENDS: [&str; 6] =
    [".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json", ".gguf", ".jinja"];
/// Folders that models have, with templates.
const KNOWN_FOLDER: &str = "additional_chat_templates";

/// Whether models have such a file.
fn is_known(name: &str) -> bool {
    name == NOTE || KNOWN.contains(&name) || KNOWN_ENDS.iter().any(|end| name.ends_with(end))
}

/// Something in a folder that no model has: who replaces the model would lose it.
pub fn stranger(folder: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_known = match entry.file_type()?.is_dir() {
            true if name == KNOWN_FOLDER => match stranger(&entry.path())? {
                None => true,
                Some(inner) => return Ok(Some(format!("{name}/{inner}"))),
            },
            true => false,
            false => is_known(left_of(&name).unwrap_or(&name)),
        };
        if !is_known {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Refuses to replace a folder with something of its owner in it.
fn check_model_alone(output: &Path) -> Result<(), MergeError> {
    match stranger(output).map_err(|error| failed(output, &error))? {
        None => Ok(()),
        Some(name) => Err(refused(
            output,
            format!(
                "expected a model alone to replace, found {name:?}, which no model has: move it away first"
            ),
        )),
    }
}

/// Refuses what would be lost.
fn check_free(output: &Path, force: bool) -> Result<(), MergeError> {
    match fs::symlink_metadata(output) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(output, &error)),
        Ok(metadata) if !metadata.is_dir() => {
            let reason = "expected the name of a new folder, found something else there: give another name";
            return Err(refused(output, reason));
        }
        Ok(_) => {}
    }
    let is_empty = fs::read_dir(output).map_err(|error| failed(output, &error))?.next().is_none();
    let is_model = output.join("config.json").is_file();
    let reason = match (force, is_model) {
        _ if is_empty => return Ok(()),
        (true, true) => return check_model_alone(output),
        (true, false) => "expected a model to replace, found a folder without config.json: give another name",
        (false, _) => "expected a new folder, found one with files: --force replaces the model in it",
    };
    Err(refused(output, reason))
}

/// The folder that a path is in.
fn parent(output: &Path) -> &Path {
    output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Place {
    /// The folder that is to be.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// A folder that is not there yet, or is empty; with `force` one that holds a model, which is replaced. Folders
    /// that are `kept` are none of these.
    pub fn new(output: &Path, force: bool, kept: &[&Path]) -> Result<Place, MergeError> {
        if output.file_name().is_none() {
            return Err(refused(output, "expected the name of a folder"));
        }
        if !parent(output).is_dir() {
            let parent = parent(output).display();
            let reason =
                format!("expected a folder in one that exists, but {parent} does not: create it first");
            return Err(refused(output, reason));
        }
        check_apart(output, kept)?;
        check_free(output, force)?;
        Ok(Place { output: output.into(), notes: Vec::new() })
    }

    /// With one more file in it.
    pub fn noted(mut self, name: &'static str, bytes: Vec<u8>) -> Place {
        self.notes.push((name, bytes));
        self
    }

    /// Bytes that are free where it is to be; `None` where it cannot be told.
    pub fn free_bytes(&self) -> Option<u64> {
        #[cfg(unix)]
        if let Ok(disk) = rustix::fs::statvfs(parent(&self.output)) {
            return Some(disk.f_bavail.saturating_mul(disk.f_frsize));
        }
        None
    }

    fn hidden(&self, end: &str) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = self.name();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        self.output.with_file_name(format!(".{name}.{}.{number}.{end}", std::process::id()))
    }

    /// Removes what processes that were killed have left of this very folder.
    fn sweep(&self) {
        let name = self.name();
        let Ok(entries) = fs::read_dir(parent(&self.output)) else { return };
        let process = |found: &str| {
            let rest = found.strip_prefix(&format!(".{name}."))?.strip_suffix(".merge")?;
            rest.split_once('.')?.0.parse::<u32>().ok()
        };
        let is_dead =
            |id: u32| Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{id}")).exists();
        for entry in entries.filter_map(Result::ok) {
            if entry.file_name().to_str().and_then(process).is_some_and(is_dead) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn name(&self) -> String {
        self.output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(super) fn begin(self) -> Result<Pending, MergeError> {
        self.sweep();
        // A name that is taken belongs to a killed process with our own id.
        for _ in 0..1000 {
            let temporary = self.hidden("merge");
            match fs::create_dir(&temporary) {
                Ok(()) => {
                    let Place { output, notes } = self;
                    return Ok(Pending { output, notes, temporary, is_done: false });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&self.output, &error)),
            }
        }
        Err(refused(
            &self.output,
            "expected a free name beside it for what is not finished: remove old .merge folders",
        ))
    }
}

impl Pending {
    pub(super) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Everything but the weights.
    pub(super) fn write_small_files(
        &self,
        source: &Source,
        config: &[u8],
        index: Option<&str>,
    ) -> Result<(), MergeError> {
        let write = |name: &str, bytes: &[u8]| write_file(&self.temporary.join(name), bytes);
        write("config.json", config)?;
        self.notes.iter().try_for_each(|(name, bytes)| write(name, bytes))?;
        if let Some(index) = index {
            write(INDEX_NAME, index.as_bytes())?;
        }
        let files = &source.files;
        for (name, bytes) in [
            ("generation_config.json", files.generation_config()?),
            ("tokenizer.json", files.tokenizer()?),
            ("tokenizer_config.json", files.tokenizer_config()?),
            ("special_tokens_map.json", files.special_tokens_map()?),
            ("chat_template.jinja", files.chat_template()?),
        ] {
            if let Some(bytes) = bytes {
                write(name, &bytes)?;
            }
        }
        let templates = files.additional_chat_templates()?;
        if !templates.is_empty() {
            let folder = self.temporary.join("additional_chat_templates");
            fs::create_dir(&folder).map_err(|error| failed(&self.output, &error))?;
            for (name, bytes) in templates {
                write_file(&folder.join(format!("{name}.jinja")), &bytes)?;
            }
        }
        Ok(())
    }

    /// Gives it its name. What stood there goes when the new one is in its place.
    pub(super) fn finish(mut self) -> Result<(), MergeError> {
        let error = |error: io::Error| failed(&self.output, &error);
        let old = self.temporary.with_extension("old.merge");
        let had = self.output.exists();
        if had {
            // Somebody may have put something there meanwhile.
            check_model_alone(&self.output)?;
            fs::rename(&self.output, &old).map_err(error)?;
        }
        if let Err(failure) = fs::rename(&self.temporary, &self.output) {
            if had {
                // It stood there before, so it can stand there again.
                let _ = fs::rename(&old, &self.output);
            }
            return Err(error(failure));
        }
        self.is_done = true;
        if cfg!(unix) {
            File::open(parent(&self.output)).and_then(|folder| folder.sync_all()).map_err(error)?;
        }
        if had {
            fs::remove_dir_all(&old).map_err(error)?;
        }
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_done {
            // The merge has failed already; a second failure has nobody to tell.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}
