//! `bantam prepare`: makes of a model and an adapter what is to be served, once, and says where it is.

use std::path::{Path, PathBuf};
use std::{fs, io};

use bantam_model::checkpoint::writer::write_file;
use bantam_model::merge::Place;
use bantam_model::prepared::{NOTE, Prepared};
use bantam_model::source::Source;
use bantam_quantize::form::NAMES;
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
    /// Removes what only stood in between once the result is there
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
        let mut steps = Vec::new();
        let model = chosen_model::found(&self.model);
        if let Some(quantize) = &quantize {
            quantize.check(&Source::open(&model)?)?;
        }
        if let Some(adapter) = &self.adapter {
            steps.push(self.merged(&kept, &model, &chosen_model::found(adapter))?);
        }
        if let Some(quantize) = quantize {
            let model = steps.last().map_or(&*model, |step: &Step| step.path.as_path());
            let step = self.quantized(&kept, model, quantize)?;
            if self.clean
                && let Some(between) = steps.pop()
            {
                let failed =
                    |error| refused(format!("{}: {error}; check its permissions", between.path.display()));
                fs::remove_dir_all(&between.path).map_err(failed)?;
            }
            steps.push(step);
        }
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
        let trained = self.flags.trained(&source)?;
        let settings = format!("{} {} {}", trained.in_four_bits, trained.nested, trained.fp4);
        let failed = |error| refused(format!("{}: {error}", kept.folder().display()));
        let (path, note) = kept.place(&source, Some(adapter), MERGED, &settings).map_err(failed)?;
        let what = format!("{} with {}", model.display(), adapter.display());
        if !self.force && path.join(NOTE).is_file() {
            return Ok(Step { what, path, was_there: true, details: Value::Null });
        }
        let place = Place::new(&path, self.force, &[model, adapter])?.noted(NOTE, note.text());
        let merged = self.flags.merge(model, adapter, place, self.json)?;
        Ok(Step { what, path, was_there: false, details: merged.as_json() })
    }

    /// The same model in another format: made by the verb, which goes on where one before it was ended.
    fn quantized(&self, kept: &Prepared, model: &Path, quantize: Quantize) -> Result<Step, Failure> {
        let failed = |path: &Path, error: io::Error| refused(format!("{}: {error}", path.display()));
        let source = Source::open(model)?;
        let settings = self.quantize.join(" ");
        let placed = kept.place(&source, None, &self.to, &settings);
        let (path, note) = placed.map_err(|error| failed(kept.folder(), error))?;
        let what = format!("{} as {}", model.display(), self.to);
        if !self.force && path.join(NOTE).is_file() {
            return Ok(Step { what, path, was_there: true, details: Value::Null });
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let making = path.with_file_name(format!(".{name}.making"));
        quantize.make(model, &making)?;
        write_file(&making.join(NOTE), &note.text())?;
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|error| failed(&path, error))?;
        }
        fs::rename(&making, &path).map_err(|error| failed(&path, error))?;
        Ok(Step { what, path, was_there: false, details: Value::Null })
    }
}
