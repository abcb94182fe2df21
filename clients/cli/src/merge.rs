//! `bantam merge`: an adapter and its model as one model, written as a checkpoint that other tools load too.

use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::memory;
use bantam_model::merge::cascade::{Decision, Measured, Way, decide};
use bantam_model::merge::trained::Trained;
use bantam_model::merge::{Merge, Place};
use bantam_model::plan::Plan;
use bantam_model::pool::Threads;
use bantam_model::source::Source;
use bantam_quantize::restored::{Outcome, Restored, outline};
use bantam_quantize::work::Begin;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::chosen_model;
use crate::failure::{Failure, refused};
use crate::output;
use crate::progress::Progress;
use crate::restored::restored;
use crate::{engine_flags, hardware, interrupt};

/// How weights were held in training, where somebody says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrainedIn {
    /// As the files beside the adapter say
    Auto,
    Yes,
    No,
}

/// How to merge, where somebody says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WayName {
    /// The first that fits
    Auto,
    /// Whole tensors in memory
    Memory,
    /// Some rows of a tensor at a time
    Streamed,
}

/// What every merge is asked.
#[derive(Debug, Args)]
#[command(next_help_heading = "Merge")]
pub(crate) struct MergeFlags {
    /// Whether the adapter was trained over weights in four bits (QLoRA): these are then rounded first
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "auto")]
    trained_in_4bit: TrainedIn,
    /// How much is held in memory at once
    #[arg(long, value_enum, value_name = "WAY", default_value = "auto")]
    method: WayName,
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
}

/// Adds an adapter to its model, and writes the sum as a model
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam merge ./my-model ./my-lora --output ./merged\n  \
                        bantam merge ./my-model ./my-qlora --output ./merged --trained-in-4bit yes")]
pub(crate) struct MergeAdapter {
    /// The model that the adapter was trained over, a folder in Hugging Face form or a .gguf file
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The adapter: a folder with adapter_config.json
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replaces a model that is in the folder
    #[arg(long)]
    force: bool,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: MergeFlags,
}

/// What was done.
pub(crate) struct Merged {
    trained: Trained,
    steps: Vec<Decision>,
    counts: bantam_model::merge::Counts,
}

impl MergeAdapter {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let (base, adapter) = (chosen_model::found(&self.base), chosen_model::found(&self.adapter));
        let place = Place::new(&self.output, self.force, &[&base, &adapter])?;
        let merged = self.flags.merge(&base, &adapter, place, self.json)?;
        let output = self.output.display();
        match self.json {
            true => {
                let mut object = merged.as_json();
                object["output"] = output.to_string().into();
                output::json(&object)?;
            }
            false => output::line(&format!(
                "{output}: {} tensors in {} files, {} of them changed, {}",
                merged.counts.tensors,
                merged.counts.shards,
                merged.counts.changed,
                output::bytes(merged.counts.bytes)
            ))?,
        }
        Ok(())
    }
}

impl MergeFlags {
    /// How the adapter was trained, as somebody says or its files do.
    pub(crate) fn trained(&self, source: &Source) -> Result<Trained, Failure> {
        let adapter = source.adapter.as_deref().expect("a merge has an adapter");
        Ok(match self.trained_in_4bit {
            TrainedIn::Yes => Trained::told(true),
            TrainedIn::No => Trained::told(false),
            TrainedIn::Auto => {
                let config =
                    source.files.require_config().map_err(bantam_model::source::SourceError::from)?;
                Trained::find(adapter, &config)
            }
        })
    }

    fn asked(&self) -> Option<Way> {
        match self.method {
            WayName::Auto => None,
            WayName::Memory => Some(Way::Whole),
            WayName::Streamed => Some(Way::Rows),
        }
    }

    /// What is written once a model that is in a GGUF file is written out. Whatever is wrong with it or the adapter is
    /// said before that.
    fn later_bytes(&self, source: &Source, base: &Path, adapter: &Path) -> Result<u64, Failure> {
        let Some(outlined) = outline(source)? else { return Ok(0) };
        let free = memory::available();
        if let Some(free) = free.filter(|free| outlined.memory_bytes > *free) {
            return Err(refused(format!(
                "{}: expected at least {} of memory for writing the model out as safetensors, found {}: close other \
                 programs",
                base.display(),
                output::bytes(outlined.memory_bytes),
                output::bytes(free)
            )));
        }
        let source = outlined.source.adapted(adapter)?;
        let merge = Merge::new(&source, self.trained(&source)?)?;
        let needs = merge.needs();
        // Room on the disk is asked for where what an earlier start has written is known.
        match decide(Measured { card: hardware::card_bytes(), memory: free, disk: None }, needs, self.asked())
        {
            (_, Some(_)) => Ok(needs.disk),
            (_, None) => Err(unmerged(&source, base, adapter)),
        }
    }

    /// Merges into a place, telling every decision unless somebody else will.
    pub(crate) fn merge(
        &self,
        base: &Path,
        adapter: &Path,
        place: Place,
        is_quiet: bool,
    ) -> Result<Merged, Failure> {
        let say = |text: &str| {
            if !is_quiet {
                output::say(text)
            }
        };
        let mut source = Source::open(base)?;
        let begin = Begin { force: true, restart: false };
        let later = self.later_bytes(&source, base, adapter)?;
        let restore = || {
            interrupt::without_file_size_signal(|| restored(&source, place.output(), begin, later, is_quiet))
        };
        let mut outcome = restore()?;
        if let Outcome::Finished = outcome {
            // It is made again.
            outcome = restore()?;
        }
        let restored = match outcome {
            Outcome::Ready(restored) => {
                source = restored.open()?;
                Some(restored)
            }
            _ => None,
        };
        let source = source.adapted(adapter)?;
        let trained = self.trained(&source)?;
        let merge = Merge::new(&source, trained.clone())?;
        let in_bits = if trained.in_four_bits { "trained in four bits" } else { "not trained in four bits" };
        let rounded = if merge.rounds() { "; the model's weights are rounded to them first" } else { "" };
        say(&format!("{in_bits}: {}{rounded}", trained.because));
        let card = hardware::card_bytes();
        let measured = Measured { card, memory: memory::available(), disk: place.free_bytes() };
        let (steps, way) = decide(measured, merge.needs(), self.asked());
        steps.iter().for_each(|step| say(&told(step)));
        let Some(way) = way else { return Err(unmerged(&source, base, adapter)) };
        let counts = merge.counts();
        let total = usize::try_from(counts.bytes).unwrap_or(usize::MAX);
        let progress = Progress::bytes(format!("merging {}", base.display()), total);
        let threads = self.threads.map_or_else(Threads::available, engine_flags::size);
        interrupt::without_file_size_signal(|| {
            merge.write(place, way, threads, &mut |done| {
                progress.at(usize::try_from(done).unwrap_or(usize::MAX))
            })
        })?;
        restored.map(Restored::remove).transpose()?;
        Ok(Merged { trained, steps, counts })
    }
}

impl Merged {
    pub(crate) fn as_json(&self) -> Value {
        let steps = self.steps.iter().map(|step| {
            json!({ "what": step.what, "needed_bytes": step.needed, "found_bytes": step.found,
                    "verdict": step.verdict })
        });
        json!({
            "tensors": self.counts.tensors,
            "changed": self.counts.changed,
            "files": self.counts.shards,
            "bytes": self.counts.bytes,
            "trained_in_4bit": self.trained.in_four_bits,
            "because": self.trained.because,
            "decisions": steps.collect::<Vec<_>>(),
        })
    }
}

/// A decision with its bytes.
fn told(step: &Decision) -> String {
    let bytes = |what: &str, bytes: Option<u64>| {
        bytes.map_or(String::new(), |bytes| format!(", {} {what}", output::bytes(bytes)))
    };
    format!("{}: {}{}{}", step.what, step.verdict, bytes("needed", step.needed), bytes("free", step.found))
}

/// What is left where no merge fits: the adapter beside the model.
fn unmerged(source: &Source, base: &Path, adapter: &Path) -> Failure {
    let needed = beside(source).map_or(String::new(), |plan| {
        let free =
            memory::available().map_or(String::new(), |free| format!(", {} free", output::bytes(free)));
        format!(" ({} needed{free})", output::bytes(plan.bytes() as u64))
    });
    refused(format!(
        "{}: no way to merge fits; make room on the disk or in memory, or use the adapter unmerged: bantam run {} \
         --adapter {}{needed}",
        base.display(),
        base.display(),
        adapter.display()
    ))
}

/// What running both beside each other takes.
fn beside(source: &Source) -> Option<Plan> {
    let options = engine_flags::usual_options(&source.spec, None);
    source.plan(options, Cpu::detect()).ok()
}
