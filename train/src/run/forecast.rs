//! What a run will take, from headers and data alone: the same table before a run, and at its start.
//!
//! An adapter or a model that is yet to be made is outlined in a folder for the time being: files with headers, whose
//! numbers take no disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::adapter::{Adapter, CONFIG, WEIGHTS};
use bantam_model::card::{NoCard, Passage};
use bantam_model::checkpoint::writer::write_file;
use bantam_model::source::{Source, SourceError};
use serde_json::{Map, Value, json};

use super::choices::{Choices, Lora, Method, Wanted};
use super::machine::{self, Aid, Machine};
use super::output::failed;
use super::targets::{self, Shaped};
use super::{RunError, absolute, check_form, continued, freeze, scratch};
use crate::data::{Collation, Example, Prepared};
use crate::optimizer::Optimizer;
use crate::settings::Settings;
use crate::step::CardPlan;
use crate::step::outline::{Load, Measured, Outline, Part};

/// The memory of a run.
#[derive(Debug)]
pub struct Forecast {
    /// The largest batch.
    pub load: Load,
    /// What is held at once, in bytes, beside the program and its tokenizer.
    pub parts: Vec<Part>,
    /// What it may be at most, where somebody said so.
    pub budget: Option<u64>,
    /// The card beside the processor, and what is held there.
    pub card: Option<(String, Share)>,
    /// Why none takes part, where somebody may want to know.
    pub no_card: Option<String>,
    outline: Outline,
}

/// What a card has of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What is held there, in bytes, all of it from the start.
    pub parts: Vec<Part>,
    /// Bytes of matrices that are not trained: all, and those that stand there. The others pass through, or stay here.
    pub frozen: [u64; 2],
    /// Bytes of main memory that it takes, pinned for the most part.
    pub host_bytes: u64,
}

impl Share {
    pub(super) fn of(plan: &CardPlan) -> Share {
        Share { parts: plan.parts(), frozen: plan.frozen_bytes(), host_bytes: plan.host_bytes() as u64 }
    }

    /// Bytes of the card.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Forecast {
    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Refuses a run that would take more than it may.
    pub fn check(&self) -> Result<(), RunError> {
        match self.budget.filter(|budget| self.bytes() > *budget) {
            None => Ok(()),
            Some(budget) => Err(RunError::Budget { needed: self.bytes(), budget, parts: words(&self.parts) }),
        }
    }

    /// What a card that may give so many bytes would have of this run; nothing where these are too few, or everything
    /// is trained.
    pub fn on_card(&self, bytes: u64) -> Option<Share> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.outline.on_card(&self.load, bytes, Passage::Measured).as_ref().map(Share::of)
    }
}

/// Parts for people, in one line.
pub(super) fn words(parts: &[Part]) -> String {
    let words = parts.iter().map(|(what, bytes)| format!("{what} {:.2} MB", *bytes as f64 / 1e6));
    words.collect::<Vec<_>>().join(", ")
}

/// Adds up what a run will take. No weight is read, and nothing is taken of a card.
pub fn forecast<'a>(
    settings: &Settings,
    source: &Source,
    prepared: &Prepared,
    machine: impl Into<Machine<'a>>,
) -> Result<Forecast, RunError> {
    let (choices, machine) = (Choices::new(settings)?, machine.into());
    let aid = machine::ready(&machine, &choices, None)?;
    forecast_with(settings, source, prepared, &machine, &aid)
}

/// The same with a card that was found, or none.
pub(super) fn forecast_with(
    settings: &Settings,
    source: &Source,
    prepared: &Prepared,
    machine: &Machine<'_>,
    aid: &Aid,
) -> Result<Forecast, RunError> {
    let (choices, Machine { cpu, threads, passage, .. }) = (Choices::new(settings)?, *machine);
    check_form(&choices, source)?;
    let outline = outline(&choices, source, cpu)?;
    let collation = Collation::new(&settings.data, settings.stage, prepared.pad);
    let mut load = load(&prepared.train, choices.batch, &collation);
    load.measured = measured(&choices, &prepared.eval, &collation);
    (load.halves, load.drops, load.threads) =
        (choices.is_half(), continued::dropout(&choices) > 0.0, threads);
    load.layers = choices.flag("disable_gradient_checkpointing");
    load.short_gradients = choices.has_short_gradients();
    let [means, step] =
        Optimizer::bytes_for(outline.parameters(), threads, |parameter| choices.group(parameter));
    let mut parts = outline.memory(&load);
    parts.extend([("optimizer", means), ("optimizer's step", step)]);
    parts.push(("data", data(&choices, prepared, &collation)));
    let (card, no_card) = match aid {
        Err(why) => (None, why.as_ref().map(machine::without)),
        Ok(ready) => match outline.on_card(&load, ready.budget, passage) {
            Some(plan) => (Some((ready.told(), Share::of(&plan))), None),
            None if choices.card == Wanted::Must => return Err(RunError::Card(nothing_to_do(&ready.told()))),
            None => (None, Some(machine::without(&nothing_to_do(&ready.told())))),
        },
    };
    parts.extend(card.iter().map(|(_, share)| ("beside the card", share.host_bytes)));
    Ok(Forecast { load, parts, budget: choices.ram, card, no_card, outline })
}

fn nothing_to_do(card: &str) -> NoCard {
    NoCard::TooSmall(format!(
        "what may be taken of {card} has no room for rows and a matrix that is not trained, or everything is trained"
    ))
}

/// The largest batch that can come, whatever the order of examples.
fn load(examples: &[Example], batch: usize, collation: &Collation) -> Load {
    let most = |count: &dyn Fn(&Example) -> usize| {
        let mut counts: Vec<usize> = examples.iter().map(count).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.into_iter().take(batch).sum::<usize>()
    };
    let length = |example: &Example| example.ids.len();
    let longest = examples.iter().map(length).max().unwrap_or_default();
    if collation.learns_padding {
        let columns = longest.next_multiple_of(collation.multiple.max(1));
        let tokens = columns * batch.min(examples.len());
        return Load { tokens, labelled: tokens, longest: columns, ..Load::default() };
    }
    Load { tokens: most(&length), labelled: most(&Example::learnt), longest, ..Load::default() }
}

/// The largest of the batches that the model is measured with, which come in their order.
fn measured(choices: &Choices<'_>, examples: &[Example], collation: &Collation) -> Measured {
    let mut most = Measured::default();
    if !choices.measuring.at_start && !choices.measuring.at_end {
        return most;
    }
    for batch in examples.chunks(choices.measuring.batch) {
        let Load { tokens, labelled, longest, .. } = load(batch, batch.len(), collation);
        most.tokens = most.tokens.max(tokens);
        most.labelled = most.labelled.max(labelled);
        most.longest = most.longest.max(longest);
    }
    most
}

/// Bytes of all examples, of their order, and of the batches that are there at once: those of a step, or the one that
/// the model is measured with.
fn data(choices: &Choices<'_>, prepared: &Prepared, collation: &Collation) -> u64 {
    let of = |example: &Example| size_of::<Example>() + 8 * example.ids.len() + 4 * example.pieces.len();
    let all: usize = prepared.train.iter().chain(&prepared.eval).map(of).sum();
    let wide = |examples: &[Example], rows: usize| {
        let longest = examples.iter().map(|example| example.ids.len()).max().unwrap_or_default();
        longest.next_multiple_of(collation.multiple.max(1)) * rows.min(examples.len())
    };
    let together = choices.batch.saturating_mul(choices.accumulation);
    let [one, step] = [choices.batch, together].map(|rows| wide(&prepared.train, rows));
    let measured = wide(&prepared.eval, choices.measuring.batch);
    // Ids, labels, positions and pieces of rows; ids and labels of documents, in vectors that grow by doubling.
    let batches = 16 * step.max(measured) + 16 * one.max(measured);
    (all + size_of::<usize>() * prepared.train.len() + batches) as u64
}

fn outline(choices: &Choices<'_>, source: &Source, cpu: Cpu) -> Result<Outline, RunError> {
    let quantization = choices.quantization.filter(|_| !source.spec.format.is_quantized());
    let beside = |adapter: &Adapter| Ok(Outline::adapter(source, adapter, quantization, cpu)?);
    match &choices.method {
        Method::Full if choices.flag("train_from_scratch") => {
            let folder = Passing::new()?;
            let config = source.files.require_config().map_err(SourceError::Files)?;
            write_file(&folder.0.join("config.json"), &config)?;
            outlined(&folder.0.join("model.safetensors"), &scratch::shapes(source, cpu)?)?;
            Ok(Outline::some(&Source::open(&folder.0)?, &|_| true, cpu)?)
        }
        Method::Full => Ok(Outline::some(source, &|_| true, cpu)?),
        Method::Freeze(freeze) => {
            let names = freeze::trained(source, freeze)?;
            Ok(Outline::some(source, &|name| names.contains(name), cpu)?)
        }
        Method::Adapter(folder) => beside(&Adapter::open(folder).map_err(SourceError::from)?),
        Method::Lora(lora) => {
            let folder = Passing::new()?;
            let adapter = new_adapter(source, lora, &folder.0)?;
            let mut outline = beside(&adapter)?;
            if lora.pissa.is_some() {
                outline.hold_changes();
            }
            Ok(outline)
        }
    }
}

/// The adapter that a run would begin with, without its numbers.
fn new_adapter(source: &Source, lora: &Lora, folder: &Path) -> Result<Adapter, RunError> {
    let (named, tensors) = targets::shapes(source, lora)?;
    let config = targets::config(lora, &named, &absolute(source.folder()));
    write_file(&folder.join(CONFIG), config.as_bytes())?;
    outlined(&folder.join(WEIGHTS), &tensors)?;
    Ok(Adapter::open(folder).map_err(SourceError::from)?)
}

/// Writes a file with a header for tensors in float32, and nothing behind it.
fn outlined(path: &Path, tensors: &[Shaped]) -> Result<(), RunError> {
    let (mut header, mut end) = (Map::new(), 0u64);
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>() as u64;
        let tensor = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), tensor);
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let put = || {
        let mut file = File::create_new(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        file.set_len(8 + header.len() as u64 + end)
    };
    put().map_err(|error| failed(path, error))
}

/// A folder of our own that is gone afterwards.
struct Passing(PathBuf);

impl Passing {
    fn new() -> Result<Passing, RunError> {
        let (all, process) = (std::env::temp_dir(), std::process::id());
        let named = (0..1000).map(|number| all.join(format!("bantam-outline-{process}-{number}")));
        let mut last = None;
        for folder in named {
            match fs::create_dir(&folder) {
                Ok(()) => return Ok(Passing(folder)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => last = Some(error),
                Err(error) => return Err(failed(&folder, error)),
            }
        }
        Err(failed(&all, last.expect("none of them could be made")))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
