//! A GGUF file as the folder that it was made from: `DIR.partial/source`, from which work goes on like from any other.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_model::checkpoint::writer;
use bantam_model::gguf::restore::Restored as Restoring;
use bantam_model::source::Source;
use serde_json::{Value, json};

use crate::blueprint::BASE_BYTES;
use crate::error::{QuantizeError, at, refused};
use crate::run::{Event, SHARD_BYTES, check_apart, files_of};
use crate::work::{Begin, Claim};

/// Beside the weights: what they were made of.
const ORIGIN: &str = "origin.json";

/// The folder, held until it is dropped.
#[derive(Debug)]
pub struct Restored {
    claim: Claim,
    folder: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// The model is in no GGUF file.
    NotNeeded,
    /// What was to be made of it is there since an earlier start.
    Finished,
    /// The folder is there.
    Ready(Restored),
}

/// A model that is in a GGUF file as it will be written out: without numbers, for all that can be refused before.
#[derive(Debug)]
pub struct Outlined {
    /// It.
    pub source: Source,
    /// The most memory that writing it out takes at once.
    pub memory_bytes: u64,
    /// What is written.
    pub bytes: u64,
}

/// Looks at the headers of a GGUF file; `None` for any other model.
pub fn outline(source: &Source) -> Result<Option<Outlined>, QuantizeError> {
    let Some(restoring) = Restoring::new(source)? else { return Ok(None) };
    let (memory_bytes, bytes) = (restoring.memory_bytes(), restoring.bytes());
    Ok(Some(Outlined { source: restoring.outline()?, memory_bytes: memory_bytes + BASE_BYTES as u64, bytes }))
}

/// Writes out a model that is in a GGUF file, as far as an earlier start has not. `later` is how many bytes will be
/// written after it.
pub fn restore(
    source: &Source,
    output: &Path,
    begin: Begin,
    later: u64,
    tell: &mut dyn FnMut(Event),
) -> Result<Outcome, QuantizeError> {
    let Some(restoring) = Restoring::new(source)? else { return Ok(Outcome::NotNeeded) };
    check_apart(source, output)?;
    let Some(claim) = Claim::open(output, begin)? else { return Ok(Outcome::Finished) };
    let folder = claim.source();
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let origin = json!({ "version": 1, "files": files_of(source)? });
    let path = folder.join(ORIGIN);
    match fs::read(&path) {
        Ok(found) if serde_json::from_slice::<Value>(&found).is_ok_and(|found| found == origin) => {}
        Ok(_) => {
            return Err(refused(format!(
                "{}: expected what was made of {} as it is now, found another model or an older one: begin anew \
                 with --restart, or remove the folder",
                folder.display(),
                source.folder().display()
            )));
        }
        Err(_) => writer::write_file(&path, format!("{origin:#}\n").as_bytes())?,
    }
    claim.check_room(restoring.bytes() + later)?;
    let all = restoring.bytes();
    restoring.write(&folder, SHARD_BYTES, &mut |done| tell(Event::Writing { bytes: [done, all] }))?;
    Ok(Outcome::Ready(Restored { claim, folder }))
}

/// Why text cannot be read with what is written out, and which file mends it; `None` where it can.
pub fn lacks(source: &Source) -> Result<Option<String>, QuantizeError> {
    let Some(restoring) = Restoring::new(source)? else { return Ok(None) };
    let reason = match restoring.tokenizer() {
        Ok(true) => return Ok(None),
        Ok(false) => "the file has no vocabulary".to_owned(),
        Err(error) => error.to_string(),
    };
    Ok(Some(format!(
        "{}: {reason}; put the original model's tokenizer.json beside the result, it cannot be made here",
        source.folder().display()
    )))
}

impl Restored {
    /// The model there.
    pub fn open(&self) -> Result<Source, QuantizeError> {
        Ok(Source::open(&self.folder)?)
    }

    /// Removes it once what was made of it has its name.
    pub fn remove(self) -> Result<(), QuantizeError> {
        self.claim.remove()
    }
}
