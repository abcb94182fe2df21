//! `bantam prepare`: makes of a model and an adapter what is to be served, once, and says where it is.

use std::path::{Path, PathBuf};
use std::{fs, io};

use bantam_model::checkpoint::writer::write_file;
use bantam_model::merge::Place;
use bantam_model::prepared::{self, NOTE, Note, Prepared};
use bantam_model::source::Source;
use bantam_quantize::form::NAMES;
use bantam_quantize::work;
use clap::Args;
use serde_json::{Value, json};

use crate::failure::{Failure, refused, usage};
use crate::merge::MergeFlags;
use crate::quantize::Quantize;
use crate::{cache, chosen_model, output};

/// What `--to` makes without quantizing.
const MERGED: &str = "merged";

/// Merges an adapter, quantizes, and keeps the result
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam prepare ./my-model ./my-lora\n  \
                        bantam prepare ./my-model ./my-lora --to gptq -- --group-size 64\n  \
                        bantam run \"$(bantam prepare ./my-model ./my-lora)\" \"Once upon a time\"")]
pub(crate) struct Prepare {
    /// A folder in Hugging Face form
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// An adapter to merge: a folder with adapter_config.json
    #[arg(value_name = "ADAPTER")]
    adapter: Option<PathBuf>,
    /// What to make: merged, or a format that `bantam quantize` knows
    #[arg(long, value_name = "FORMAT", default_value = MERGED, value_parser = [&[MERGED], &NAMES[..]].concat())]
    to: String,
    /// Makes it anew where it was made before
    #[arg(long)]
    force: bool,
    /// Removes the merged model that this run made on the way, once the result is there
    #[arg(long)]
    clean: bool,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: MergeFlags,
    /// Arguments for `bantam quantize`
    #[arg(last = true, value_name = "QUANTIZE")]
    quantize: Vec<String>,
}

/// One thing that was made, or was there.
struct Step {
    what: String,
    path: PathBuf,
    was_there: bool,
    /// Whether nothing of that name was there.
    is_new: bool,
    details: Value,
}

impl Prepare {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if self.to == MERGED && self.adapter.is_none() {
            return Err(usage("there is nothing to do: give an ADAPTER, or a format with --to"));
        }
        if self.to == MERGED && !self.quantize.is_empty() {
            return Err(usage(
                "arguments after --: expected --to FORMAT before them, found none: leave them out",
            ));
        }
        let quantize = match self.to.as_str() {
            MERGED => None,
            to => Some(Quantize::part(to, &self.quantize)?),
        };
        let kept = cache::prepared().ok_or_else(|| {
            refused("no cache: neither XDG_CACHE_HOME nor HOME names a folder; set one of them")
        })?;
        let model = chosen_model::found(&self.model);
        let adapter = self.adapter.as_deref().map(chosen_model::found);
        let adapter = adapter.as_deref();
        let steps = match (quantize, adapter) {
            (Some(quantize), adapter) => self.quantized(&kept, &model, adapter, quantize)?,
            (None, Some(adapter)) => vec![self.merged(&kept, &model, adapter)?],
            (None, None) => Vec::new(),
        };
        self.tell(&steps)
    }

    fn tell(&self, steps: &[Step]) -> Result<(), Failure> {
        let path = steps.last().map_or_else(String::new, |step| step.path.display().to_string());
        for step in steps.iter().filter(|step| step.was_there && !self.json) {
            output::say(&format!("{}: made before, {}", step.what, step.path.display()));
        }
        if !self.json {
            return Ok(output::line(&path)?);
        }
        let steps = steps.iter().map(|step| {
            let path = step.path.display().to_string();
            json!({ "what": step.what, "path": path, "was_there": step.was_there, "details": step.details })
        });
        Ok(output::json(&json!({ "path": path, "steps": steps.collect::<Vec<_>>() }))?)
    }

    /// The model with the adapter in it.
    fn merged(&self, kept: &Prepared, model: &Path, adapter: &Path) -> Result<Step, Failure> {
        let source = Source::open(model)?.adapted(adapter)?;
        let settings = self.merge_settings(&source)?;
        let placed = kept.place(&source, Some(adapter), MERGED, &settings, &[]);
        let (path, note) = placed.map_err(unkept)?;
        let what = format!("{} with {}", model.display(), adapter.display());
        if self.is_made(&path)? {
            return Ok(Step { what, path, was_there: true, is_new: false, details: Value::Null });
        }
        let is_new = !path.exists();
        let place = Place::new(&path, self.force, &[model, adapter])?.noted(NOTE, note.text());
        let merged = self.flags.merge(model, adapter, place, self.json)?;
        Ok(Step { what, path, was_there: false, is_new, details: merged.as_json() })
    }

    /// Whether it was made before and will do. What is damaged goes, for nothing is to be kept of it.
    fn is_made(&self, path: &Path) -> Result<bool, Failure> {
        if !path.exists() {
            return Ok(false);
        }
        if let Err(reason) = prepared::check(path) {
            output::warning(&format!("{}: damaged, so it is made anew: {reason}", path.display()));
            fs::remove_dir_all(path).map_err(|error| failed(path, &error))?;
            return Ok(false);
        }
        if !self.force {
            // Where another process is about to do so, it does.
            let _ = work::discard(path);
        }
        Ok(!self.force)
    }

    /// What decides how an adapter is merged.
    fn merge_settings(&self, source: &Source) -> Result<String, Failure> {
        let trained = self.flags.trained(source)?;
        Ok(format!("{} {} {}", trained.in_four_bits, trained.nested, trained.fp4))
    }

    /// The model, merged where there is an adapter, in another format. What was made before is known by what it was
    /// made from in the first place, for the merged model in between may be gone.
    fn quantized(
        &self,
        kept: &Prepared,
        model: &Path,
        adapter: Option<&Path>,
        quantize: Quantize,
    ) -> Result<Vec<Step>, Failure> {
        let mut source = Source::open(model)?;
        quantize.check(&source)?;
        let (mut settings, mut what) = (json!(self.quantize).to_string(), model.display().to_string());
        if let Some(adapter) = adapter {
            source = source.adapted(adapter)?;
            settings += &self.merge_settings(&source)?;
            what += &format!(" with {}", adapter.display());
        }
        what += &format!(" as {}", self.to);
        let placed = kept.place(&source, adapter, &self.to, &settings, &quantize.texts());
        let (path, note) = placed.map_err(unkept)?;
        if self.is_made(&path)? {
            return Ok(vec![Step { what, path, was_there: true, is_new: false, details: Value::Null }]);
        }
        drop(source);
        let merged = adapter.map(|adapter| self.merged(kept, model, adapter)).transpose()?;
        self.make(quantize, merged.as_ref().map_or(model, |merged| &merged.path), &path, &note)?;
        let is_left = |merged: &Step| !(self.clean && merged.is_new);
        if let Some(between) = merged.iter().find(|merged| !is_left(merged)) {
            fs::remove_dir_all(&between.path).map_err(|error| failed(&between.path, &error))?;
        }
        let made = Step { what, path, was_there: false, is_new: true, details: Value::Null };
        Ok(merged.into_iter().filter(is_left).chain([made]).collect())
    }

    /// Quantizes, going on where an earlier run was ended.
    fn make(&self, quantize: Quantize, model: &Path, path: &Path, note: &Note) -> Result<(), Failure> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let making = path.with_file_name(format!(".{name}.making"));
        quantize.make(model, &making)?;
        write_file(&making.join(NOTE), &note.text())?;
        if path.exists() {
            fs::remove_dir_all(path).map_err(|error| failed(path, &error))?;
        }
        fs::rename(&making, path).map_err(|error| failed(path, &error))
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    refused(format!("{}: {error}; check its permissions", path.display()))
}

/// A place cannot be told; the error names the file.
fn unkept(error: io::Error) -> Failure {
    refused(format!("{error}; check that it is there, and its permissions"))
}
