//! A run: epochs of batches, steps over some of them together, a log, checkpoints, and what is left at the end.
//!
//! It knows no terminal: a [`Watch`] is told of every step, and says when to stop. How many steps there are, in which
//! order examples come, what a loss is a mean of and when rates change is as in the Trainer of transformers 4.57.

mod bend;
mod choices;
mod continued;
mod forecast;
mod freeze;
mod hold;
mod machine;
mod measure;
mod output;
mod picture;
mod rates;
mod recipe;
mod report;
mod scratch;
mod shards;
mod start;
mod state;
mod svd;
mod targets;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bantam_core::Cpu;
use bantam_model::card::NoCard;
use bantam_model::checkpoint::Dtype;
use bantam_model::checkpoint::writer::WriteError;
use bantam_model::merge::cascade::Way;
use bantam_model::merge::trained::Trained;
use bantam_model::merge::{Merge, MergeError, Place};
use bantam_model::source::{Source, SourceError};
use serde_json::{Map, Value, json};

use crate::data::{
    Batch, Collation, DataError, Example, IGNORED, Prepared, Spoken, epoch_order, grouped, prepare,
};
use crate::optimizer::{Optimizer, clip, schedule::Schedule};
use crate::settings::{Settings, SettingsError, Stage};
use crate::step::{Flat, TrainError, Training};
pub use choices::vram;
use choices::{Choices, Doing, Every, Lora, Method};
pub use forecast::{Forecast, Share, forecast};
use hold::Hold;
pub use machine::Machine;
use output::Output;
use recipe::Recipe;
use report::Reports;
use state::State;
use targets::Maker;

/// Where in the output a new adapter, or a model's first weights, stand until they are read.
const START: &str = ".start";
/// Where the model with the adapters that became part of it stands until it is read.
const BASE: &str = ".base";
/// The same of one that began as parts of the model: what was taken off that.
const PISSA: &str = "pissa_init";

/// Why a run did not come to its end.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum RunError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Source(Box<SourceError>),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Train(Box<TrainError>),
    #[error(transparent)]
    Merge(#[from] Box<MergeError>),
    #[error(
        "adapter_name_or_path: expected one adapter over a quantized model, found others to merge into it; merge them \
         beforehand (`bantam merge`)"
    )]
    Quantized,
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{}: {source}; check space and permissions", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "lora_target: expected linear layers of the model ({known}), found {found}; name some of them, or all"
    )]
    Target { found: String, known: String },
    #[error(
        "finetuning_type: expected lora over a GGUF file, found {found}; train an adapter, or use the model's \
         safetensors"
    )]
    Gguf { found: &'static str },
    #[error("target_parameters: expected tensors of experts ({known}), found {found}; name some of them")]
    Parameter { found: String, known: String },
    #[error(
        "additional_target: expected modules of the model in floating point, {why} at {found}; name others"
    )]
    Whole { found: String, why: &'static str },
    #[error("{key}: expected {known}, found {found}; name some of them")]
    Frozen { key: &'static str, found: String, known: String },
    #[error(
        "pissa_init: expected the tensor {tensor} of shape {shape:?} with a shorter side of at least {rank}, found \
         another or none; lower lora_rank, name other modules in lora_target, or leave pissa_init out"
    )]
    Pissa { tensor: String, rank: usize, shape: [usize; 2] },
    #[error(
        "{}: expected an empty folder, found a trained model or checkpoints of an earlier run; give another output_dir, \
         or overwrite_output_dir: true",
        .folder.display()
    )]
    Taken { folder: PathBuf },
    #[error("{}: expected nobody else to train there, found a run that does; wait for it, or give another output_dir", .folder.display())]
    Busy { folder: PathBuf },
    #[error(
        "{}: expected a checkpoint of the last run there, found {found}; leave resume_from_checkpoint out to begin, or \
         name a checkpoint",
        .folder.display()
    )]
    NoCheckpoint { folder: PathBuf, found: &'static str },
    #[error(
        "{}: expected a checkpoint of this very run, found one with {found}; set them as they were, name it in \
         resume_from_checkpoint to go on from it all the same, or begin anew (overwrite_output_dir: true)",
        .checkpoint.display()
    )]
    Differs { checkpoint: PathBuf, found: String },
    #[error(
        "{}: expected a whole checkpoint, found a damaged one ({found}); name an earlier one in \
         resume_from_checkpoint, or begin anew (overwrite_output_dir: true)",
        .checkpoint.display()
    )]
    Damaged { checkpoint: PathBuf, found: String },
    #[error(
        "{}: expected a checkpoint of this very run, found {found}; resume from another, or set \
         overwrite_output_dir: true and resume_from_checkpoint: null", .checkpoint.display()
    )]
    Checkpoint { checkpoint: PathBuf, found: String },
    #[error(
        "ram_budget: expected a run of at most {:.2} MB, found one that takes {:.2} MB ({parts}); lower cutoff_len or \
         per_device_train_batch_size, quantize the model (quantization_bit: 4), or allow more", *.budget as f64 / 1e6,
        *.needed as f64 / 1e6
    )]
    Budget { needed: u64, budget: u64, parts: String },
    #[error("device: {0}; give it more (vram), or compute with device: cpu")]
    Card(NoCard),
    #[error(
        "step {step}: expected a loss, found {loss}; lower learning_rate, or look at the data of that step"
    )]
    Loss { step: u64, loss: f64 },
    #[error(
        "step {step}: expected gradients, found a length of {length}; nothing was changed by them: lower learning_rate, or \
         look at the data of that step"
    )]
    Gradient { step: u64, length: f64 },
}

impl From<SourceError> for RunError {
    fn from(error: SourceError) -> Self {
        RunError::Source(Box::new(error))
    }
}

impl From<TrainError> for RunError {
    fn from(error: TrainError) -> Self {
        RunError::Train(Box::new(error))
    }
}

/// How far a run is, after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps taken, counted from 1.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// Epochs, with a fraction.
    pub epoch: f64,
    /// The mean loss of this step.
    pub loss: f64,
    /// How long its gradient was before it was clipped.
    pub gradient: f64,
    /// Its rate.
    pub rate: f64,
    /// Tokens a second, since this process began.
    pub tokens_per_second: f64,
    /// Seconds that are left if it goes on so.
    pub seconds_left: f64,
}

/// Who looks on.
pub trait Watch {
    /// Something to know, once.
    fn note(&mut self, words: &str);
    /// A step was taken.
    fn step(&mut self, progress: &Progress);
    /// The model was measured after a step.
    fn measured(&mut self, step: u64, loss: f64) {
        let _ = (step, loss);
    }
    /// Whether to save and end.
    fn is_ended(&self) -> bool;
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Steps taken, those before a resumption included.
    pub steps: u64,
    /// Of these, those that this call took.
    pub taken: u64,
    /// The mean loss of all steps.
    pub loss: f64,
    /// The folder with the result, or the checkpoint where it was ended before.
    pub folder: PathBuf,
    /// Whether all steps were taken.
    pub is_done: bool,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { steps, taken, loss, is_done, .. } = *self;
        let folder = self.folder.display();
        match (is_done, taken) {
            (true, 0) => {
                write!(f, "nothing was left to train: {steps} steps before, mean loss {loss:.4}: {folder}")
            }
            (true, _) => write!(f, "{steps} steps, mean loss {loss:.4}: {folder}"),
            (false, _) => {
                write!(f, "ended after {steps} steps, saved; go on with resume_from_checkpoint={folder}")
            }
        }
    }
}

/// Refuses what no run does yet, before anything is read.
pub fn check(settings: &Settings) -> Result<(), SettingsError> {
    Choices::new(settings).map(drop)
}

/// Opens the model that is trained. Where that begins from nothing, no weights need be there.
pub fn open(settings: &Settings, path: &Path) -> Result<Source, SourceError> {
    let source = match settings.flag("train_from_scratch") {
        true => Source::without_weights(path),
        false => Source::open(path),
    };
    bend::bent(settings, source?)
}

/// Reads the data of the settings, as a model spells it.
pub fn prepared(settings: &Settings, source: &Source) -> Result<Prepared, RunError> {
    let text = source.text_if_any()?;
    let config = source.files.tokenizer_config().map_err(SourceError::Files)?;
    let spoken = match &text {
        Some(text) => Some(Spoken::new(&text.tokenizer, source.chat_template()?, config.as_deref())),
        None => None,
    };
    let seed = settings.count("seed").and_then(|seed| u64::try_from(seed).ok()).unwrap_or_default();
    let id_end = u32::try_from(source.spec.vocab).unwrap_or(u32::MAX);
    Ok(prepare(&settings.data, settings.stage, seed, id_end, spoken.as_ref())?)
}

/// Trains what the settings say.
pub fn train<'m>(
    settings: &Settings,
    source: Source,
    prepared: &Prepared,
    machine: impl Into<Machine<'m>>,
    watch: &mut dyn Watch,
) -> Result<Outcome, RunError> {
    train_on(settings, source, prepared, &machine.into(), watch)
}

fn train_on(
    settings: &Settings,
    source: Source,
    prepared: &Prepared,
    machine: &Machine<'_>,
    watch: &mut dyn Watch,
) -> Result<Outcome, RunError> {
    let Machine { cpu, threads, passage, .. } = *machine;
    let choices = Choices::new(settings)?;
    choices::notes(settings).iter().for_each(|words| watch.note(words));
    bend::notes(settings, &source).iter().for_each(|words| watch.note(words));
    continued::notes(&choices).iter().for_each(|words| watch.note(words));
    let recipe = Recipe::new(&choices, &source, prepared)?;
    let (checkpoint, mut state) = start::find(&choices, &recipe, watch)?;
    state.recipe = Some(recipe);
    if choices.quantization.is_some() && source.spec.format.is_quantized() {
        watch.note("quantization_bit: the model is quantized already, and stays as it is");
    }
    let aid = machine::ready(machine, &choices, state.card.as_ref())?;
    let forecast = forecast::forecast_with(settings, &source, prepared, machine, &aid)?;
    let (mega, words) = (forecast.bytes() as f64 / 1e6, forecast::words(&forecast.parts));
    watch.note(&format!("memory: {words}: {mega:.2} MB in all"));
    forecast.no_card.iter().for_each(|words| watch.note(words));
    forecast.check()?;
    let load = forecast.load;
    drop(forecast);
    for adapter in &choices.merged {
        watch.note(&format!("{} becomes part of the model first", adapter.display()));
    }
    let mut hold = Hold::take(&choices.output)?;
    // What a killed run began with is in the way of none.
    sweep(&choices);
    let (source, mut training) = model(&choices, source, checkpoint.as_deref(), cpu, threads)?;
    set(&choices, &mut training);
    if let Ok(ready) = aid {
        let known = state.card.take();
        state.card = machine::take(ready, &mut training, &load, (&choices, passage), known.as_ref(), watch)?;
    }
    let mut optimizer = Optimizer::new(&training, |parameter| choices.group(parameter));
    if let Some(checkpoint) = &checkpoint {
        output::resume(checkpoint, state.step, &mut optimizer)?;
    }
    let output = Output::new(source, &choices)?;
    sweep(&choices);
    hold.belongs(state.begun)?;
    output.keep_log(state.step)?;
    let collation = Collation::new(&settings.data, settings.stage, prepared.pad);
    let reports = Reports::new(settings, &choices.output, state.step)?;
    reports.notes().iter().for_each(|words| watch.note(words));
    let run = Run {
        examples: &prepared.train,
        eval: &prepared.eval,
        collation,
        flat: Flat::default(),
        is_pretraining: settings.stage == Stage::Pretrain,
        choices,
        training,
        optimizer,
        state,
        output,
        reports,
        begun: Begun::now(),
        _hold: hold,
    };
    run.all(watch)
}

/// How steps are taken.
fn set(choices: &Choices<'_>, training: &mut Training) {
    training.drop_inputs(continued::dropout(choices), choices.seed);
    training.disturb(choices.noise, choices.seed);
    training.smooth_labels(choices.smoothing);
    if choices.is_half() {
        training.in_halves();
    }
    if choices.has_short_gradients() {
        training.shorten_gradients();
    }
    if choices.flag("disable_gradient_checkpointing") {
        training.keep_layers();
    }
}

/// Removes what a run begins with: of no use once it is read.
fn sweep(choices: &Choices<'_>) {
    [START, BASE].iter().for_each(|name| drop(fs::remove_dir_all(choices.output.join(name))));
}

/// Refuses to train what is only read.
fn check_form(choices: &Choices<'_>, source: &Source) -> Result<(), RunError> {
    let found = match &choices.method {
        Method::Full => Some("full"),
        Method::Freeze(_) => Some("freeze"),
        Method::Adapter(_) | Method::Lora(_) => None,
    };
    match found.filter(|_| source.spec.format.is_gguf()) {
        Some(found) => Err(RunError::Gguf { found }),
        None => Ok(()),
    }
}

/// The model in memory as the run begins, and where what is beside its weights was read.
fn model(
    choices: &Choices<'_>,
    source: Source,
    checkpoint: Option<&Path>,
    cpu: Cpu,
    threads: usize,
) -> Result<(Source, Training), RunError> {
    let base = absolute(source.folder());
    let source = merged(choices, source, threads)?;
    match (&choices.method, checkpoint) {
        (Method::Full, None) if choices.flag("train_from_scratch") => {
            let folder = choices.output.join(START);
            scratch::begin(&folder, &source, choices.seed, cpu)?;
            let training = Training::full(&Source::open(&folder)?, cpu, threads)?;
            Ok((source, training))
        }
        (Method::Full, None) => {
            let training = Training::full(&source, cpu, threads)?;
            Ok((source, training))
        }
        (Method::Full, Some(checkpoint)) => {
            let source = opened(checkpoint)?;
            let training = Training::full(&source, cpu, threads)?;
            Ok((source, training))
        }
        (Method::Freeze(freeze), _) => {
            let names = freeze::trained(&source, freeze)?;
            let is_trained = |name: &str| names.contains(name);
            let trained = checkpoint.map(opened).transpose()?;
            let training = Training::some(trained.as_ref().unwrap_or(&source), &is_trained, cpu, threads)?;
            Ok((source, training))
        }
        (Method::Lora(Lora { pissa: Some(_), .. }), Some(folder)) => {
            let first = output::first_parts(folder);
            let (source, mut training) = adapted_again(choices, source, &first, cpu, threads)?;
            training.hold_changes();
            output::read_parameters(folder, &mut training)?;
            // Only what was read takes the place of what may be another run's.
            output::take_first_parts(&first, &choices.output)?;
            Ok((source, training))
        }
        (_, Some(folder)) => adapted_again(choices, source, folder, cpu, threads),
        (Method::Adapter(folder), None) => adapted(choices, source, folder, cpu, threads),
        (Method::Lora(lora), None) => {
            let start = choices.output.join(START);
            let maker = Maker { source: &source, lora, base: &base, seed: choices.seed, cpu, threads };
            maker.begin(&start)?;
            // What checkpoints need as long as they are there has its name when it is whole.
            let folder = if lora.pissa.is_some() { output::moved(&start, PISSA)? } else { start };
            let (source, mut training) = adapted(choices, source, &folder, cpu, threads)?;
            if lora.pissa.is_some() {
                training.hold_changes();
            }
            training.begin_lengths();
            Ok((source, training))
        }
    }
}

/// The weights of a checkpoint.
fn opened(checkpoint: &Path) -> Result<Source, RunError> {
    Source::open(checkpoint).map_err(|error| output::damaged(checkpoint, &error))
}

/// The same with an adapter that a run has written.
fn adapted_again(
    choices: &Choices<'_>,
    source: Source,
    folder: &Path,
    cpu: Cpu,
    threads: usize,
) -> Result<(Source, Training), RunError> {
    match adapted(choices, source, folder, cpu, threads) {
        Err(RunError::Source(error)) => Err(output::damaged(folder, &error)),
        other => other,
    }
}

fn adapted(
    choices: &Choices<'_>,
    source: Source,
    folder: &Path,
    cpu: Cpu,
    threads: usize,
) -> Result<(Source, Training), RunError> {
    let source = source.adapted(folder)?;
    let quantization = choices.quantization.filter(|_| !source.spec.format.is_quantized());
    let training = Training::adapter(&source, quantization, cpu, threads)?;
    Ok((source, training))
}

/// The model with the adapters that are no longer to be told from it.
fn merged(choices: &Choices<'_>, source: Source, threads: usize) -> Result<Source, RunError> {
    if source.spec.format.is_quantized() && !choices.merged.is_empty() {
        return Err(RunError::Quantized);
    }
    let mut source = source;
    for (number, adapter) in choices.merged.iter().enumerate() {
        let folder = choices.output.join(BASE).join(number.to_string());
        fs::create_dir_all(choices.output.join(BASE))
            .map_err(|error| output::failed(&choices.output, error))?;
        let place = Place::new(&folder, true, &[source.folder(), adapter]).map_err(Box::new)?;
        let whole = source.adapted(adapter)?;
        let merge = Merge::new(&whole, Trained::told(false)).map_err(Box::new)?;
        merge.write(place, Way::Rows, threads, &mut |_| {}).map_err(Box::new)?;
        source = Source::open(&folder)?;
    }
    Ok(source)
}

fn absolute(folder: &Path) -> PathBuf {
    fs::canonicalize(folder).unwrap_or_else(|_| folder.into())
}

/// When this process began, and how many tokens and steps there were then.
#[derive(Debug)]
struct Begun {
    at: Instant,
    tokens: u64,
    step: u64,
    seconds: f64,
}

impl Begun {
    fn now() -> Begun {
        Begun { at: Instant::now(), tokens: 0, step: 0, seconds: 0.0 }
    }

    /// Takes time that no step needed out of what tells how fast they are.
    fn set_aside(&mut self, time: Duration) {
        self.at += time;
        self.seconds += time.as_secs_f64();
    }
}

/// A run in progress.
struct Run<'a> {
    examples: &'a [Example],
    eval: &'a [Example],
    collation: Collation,
    flat: Flat,
    is_pretraining: bool,
    choices: Choices<'a>,
    training: Training,
    optimizer: Optimizer,
    state: State,
    output: Output,
    reports: Reports,
    begun: Begun,
    _hold: Hold,
}

impl Run<'_> {
    fn all(mut self, watch: &mut dyn Watch) -> Result<Outcome, RunError> {
        let steps = self.begin()?;
        let schedule = self.choices.schedule(steps);
        let [logging, measuring, saving] =
            [Doing::Log, Doing::Measure, Doing::Save].map(|what| self.choices.every(what, steps));
        let mut order = (u64::MAX, Vec::new());
        // A run that was ended owes what it did not measure.
        let is_owed = match self.state.step {
            0 => self.choices.measuring.at_start,
            step => self.state.measured != Some(step) && self.is_measuring_due(measuring),
        };
        if is_owed {
            self.measure(watch)?;
        }
        while self.state.step < steps && !self.is_given_up() {
            let epoch = self.state.step / self.state.epoch_steps;
            if order.0 != epoch {
                order = (epoch, self.order(epoch));
            }
            let progress = self.step(&order.1, schedule)?;
            self.tell_of_card(watch);
            // The first loss is what a run is compared by.
            if self.is_due(logging) || progress.step == 1 {
                self.log(&progress)?;
            }
            watch.step(&progress);
            let mut is_ended = watch.is_ended() && progress.step < steps;
            if !is_ended && self.is_measuring_due(measuring) {
                is_ended = self.measure(watch)?;
            }
            if self.is_due(saving) || is_ended {
                let folder = self.save(is_ended)?;
                if is_ended {
                    self.reports.end(false)?;
                    self.reports.troubles().for_each(|words| watch.note(&words));
                    return Ok(self.outcome(folder, false));
                }
            }
        }
        self.finish(watch)
    }

    /// Says when a card failed. Nothing of the step is lost: the processor did what was under way.
    fn tell_of_card(&mut self, watch: &mut dyn Watch) {
        if let Some(fault) = self.training.lost_card() {
            watch.note(&format!("{fault}: the processor computes from here on"));
        }
    }

    /// Counts steps, and puts what a state does not keep into it; gives how many steps there are.
    fn begin(&mut self) -> Result<u64, RunError> {
        let (epoch_batches, epoch_steps, steps) = self.choices.steps(self.examples.len());
        if self.state.step > steps {
            let found = format!("one of step {}, beyond the {steps} steps of this run", self.state.step);
            return Err(RunError::Checkpoint { checkpoint: self.choices.output.clone(), found });
        }
        let state = &mut self.state;
        (state.steps, state.epoch_steps, state.batch) = (steps, epoch_steps, self.choices.batch);
        (state.epoch_batches, state.together) = (epoch_batches, self.choices.accumulation as u64);
        state.intervals =
            [Doing::Log, Doing::Measure, Doing::Save].map(|what| match self.choices.every(what, steps) {
                Every::Steps(count) => count,
                _ => 0,
            });
        let State { tokens, step, seconds, .. } = *state;
        self.begun = Begun { at: Instant::now(), tokens, step, seconds };
        Ok(steps)
    }

    /// Whether something is to be done after the step that was taken.
    fn is_due(&self, every: Every) -> bool {
        let (step, is_last) = (self.state.step, self.state.step == self.state.steps);
        match every {
            Every::Never => false,
            Every::Epoch => step.is_multiple_of(self.state.epoch_steps) || is_last,
            Every::Steps(count) => step.is_multiple_of(count) || is_last,
        }
    }

    /// Which examples an epoch reads, in which order.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order = match self.choices.flag("disable_shuffling") {
            true => (0..self.examples.len()).collect(),
            false => epoch_order(self.examples.len(), self.choices.data_seed, epoch),
        };
        if self.choices.flag("group_by_length") && !self.choices.flag("disable_shuffling") {
            let together = self.choices.batch.saturating_mul(self.choices.accumulation);
            order = grouped(order, |at| self.examples[at].ids.len(), together);
        }
        if self.choices.flag("dataloader_drop_last") && order.len() >= self.choices.batch {
            order.truncate(order.len() / self.choices.batch * self.choices.batch);
        }
        order
    }

    /// One step: some batches, their gradients together, and other weights.
    fn step(&mut self, order: &[usize], schedule: Schedule) -> Result<Progress, RunError> {
        let Choices { batch, accumulation, clip: most, rate, .. } = self.choices;
        let group = batch.saturating_mul(accumulation);
        let first = (self.state.step % self.state.epoch_steps) as usize * group;
        let order = order.get(first..).unwrap_or_default();
        let batches = order.chunks(batch).take(accumulation);
        let batches: Vec<Batch> = batches
            .map(|batch| {
                let examples: Vec<&Example> = batch.iter().map(|&at| &self.examples[at]).collect();
                Batch::of(&examples, &self.collation)
            })
            .collect();
        let learnt = match self.choices.smoothing > 0.0 {
            // Its LabelSmoother counts what is predicted; here over all batches of a step.
            true => batches.iter().map(Batch::learnt).sum(),
            // The Trainer counts the first label of a row as well, which nothing predicts.
            false => batches.iter().flat_map(|batch| &batch.labels).filter(|&&of| of != IGNORED).count(),
        };
        let learnt = learnt.max(1) as f64;
        self.training.clear();
        let mut loss = 0.0;
        for (at, batch) in batches.iter().enumerate() {
            self.flat.fill(batch);
            let flat = self.flat.batch();
            let moment = self.state.step * accumulation as u64 + at as u64;
            self.training.at_moment(moment, batch.columns);
            loss += self.training.step(&flat, (1.0 / learnt) as f32)? / learnt;
            self.state.tokens += flat.tokens.len() as u64;
        }
        if !loss.is_finite() {
            return Err(RunError::Loss { step: self.state.step + 1, loss });
        }
        let training = &mut self.training;
        let gradient = if most > 0.0 { clip(training, most) } else { training.length() };
        if !gradient.is_finite() {
            return Err(RunError::Gradient { step: self.state.step + 1, length: gradient });
        }
        let factor = schedule.factor(self.state.step);
        self.optimizer.step(&mut self.training, factor);
        self.state.step += 1;
        self.state.losses += loss;
        self.state.untold += loss;
        self.state.untold_steps += 1;
        let elapsed = self.begun.at.elapsed().as_secs_f64();
        self.state.seconds = self.begun.seconds + elapsed;
        let (done, left) = (self.state.step - self.begun.step, self.state.steps - self.state.step);
        Ok(Progress {
            step: self.state.step,
            steps: self.state.steps,
            epoch: self.state.epoch(),
            loss,
            gradient,
            rate: rate * factor,
            tokens_per_second: (self.state.tokens - self.begun.tokens) as f64 / elapsed.max(1e-9),
            seconds_left: elapsed / done as f64 * left as f64,
        })
    }

    /// Writes the loss since the last line.
    fn log(&mut self, progress: &Progress) -> Result<(), RunError> {
        let Progress { step, epoch, gradient, rate, tokens_per_second, .. } = *progress;
        let loss = self.state.tell();
        let entry = object(json!({
            "epoch": epoch, "grad_norm": gradient, "learning_rate": rate, "loss": loss, "step": step,
        }));
        let more = [("loss", loss), ("lr", rate), ("grad_norm", gradient), ("throughput", tokens_per_second)];
        self.tell(entry, &more)
    }

    /// Puts figures into the history, the log, and what else is told.
    fn tell(&mut self, entry: Map<String, Value>, figures: &[(&str, f64)]) -> Result<(), RunError> {
        let State { step, steps, tokens, seconds, .. } = self.state;
        let mut line = Map::from_iter([
            ("current_steps".to_owned(), Value::from(step)),
            ("total_steps".to_owned(), steps.into()),
        ]);
        line.extend(figures.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
        let share = step as f64 / steps.max(1) as f64;
        let taken = (step - self.begun.step).max(1) as f64;
        let left = self.begun.at.elapsed().as_secs_f64() / taken * (steps - step) as f64;
        line.extend([
            ("epoch".to_owned(), self.state.epoch().into()),
            ("percentage".to_owned(), (100.0 * share).into()),
            ("elapsed_time".to_owned(), clock(seconds).into()),
            ("remaining_time".to_owned(), clock(left).into()),
            ("total_tokens".to_owned(), tokens.into()),
        ]);
        self.output.log(&line.into())?;
        self.reports.log(step, &entry)?;
        self.state.history.push(entry.into());
        Ok(())
    }

    /// Writes a checkpoint. One that somebody will go on from always has everything.
    fn save(&mut self, is_ended: bool) -> Result<PathBuf, RunError> {
        let only_model = self.choices.flag("save_only_model") && !is_ended;
        if let Some(best) = self.state.best {
            let folder = self.output.place(best.step);
            if best.step == self.state.step || folder.is_dir() {
                self.state.best_folder = Some(folder.display().to_string());
            }
        }
        let folder = self.output.checkpoint(&self.training, &self.optimizer, &self.state, only_model)?;
        self.output.forget(&self.state, self.choices.save_limit)?;
        Ok(folder)
    }

    fn outcome(&self, folder: PathBuf, is_done: bool) -> Outcome {
        let loss = self.state.losses / self.state.step.max(1) as f64;
        let taken = self.state.step - self.begun.step;
        Outcome { steps: self.state.step, taken, loss, folder, is_done }
    }

    fn finish(mut self, watch: &mut dyn Watch) -> Result<Outcome, RunError> {
        self.take_best(watch)?;
        let dtype = if self.choices.is_half() { Dtype::Bf16 } else { Dtype::F32 };
        self.output.write_result(&self.training, dtype)?;
        if let Method::Lora(lora) = &self.choices.method
            && lora.pissa.is_some_and(|pissa| pissa.is_converted)
        {
            self.output.write_converted(&self.training, lora.rslora)?;
        }
        let outcome = self.outcome(self.choices.output.clone(), true);
        let seconds = self.state.seconds.max(1e-9);
        let examples = self.state.epoch() * self.examples.len() as f64;
        let mut results = object(json!({
            "epoch": self.state.epoch(),
            "num_input_tokens_seen": self.state.tokens,
            "train_loss": outcome.loss,
            "train_runtime": seconds,
            "train_samples_per_second": examples / seconds,
            "train_steps_per_second": self.state.step as f64 / seconds,
        }));
        if self.choices.flag("include_effective_tokens_per_second") {
            // Every example once an epoch, whatever fills up batches.
            let tokens: usize = self.examples.iter().map(|example| example.ids.len()).sum();
            let speed = tokens as f64 * self.state.epoch() / seconds;
            results.insert("effective_tokens_per_sec".to_owned(), speed.into());
        }
        let told = Value::from(results.clone());
        self.output.results("train", &told, &told)?;
        self.output.trainer_state(&self.state)?;
        if self.choices.flag("plot_loss") {
            self.draw()?;
        }
        self.reports.sum_up(self.state.step, &results)?;
        if self.choices.measuring.at_end {
            self.measure_result(watch, results)?;
        }
        if self.choices.save_limit == Some(1) {
            self.output.keep_best(&self.state)?;
        }
        self.reports.end(true)?;
        self.reports.troubles().for_each(|words| watch.note(&words));
        Ok(outcome)
    }
}

/// The values of what was written as an object.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(values) => values,
        _ => Map::new(),
    }
}

/// Seconds as people read them.
fn clock(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
