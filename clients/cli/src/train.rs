//! `bantam train`: trains what a file says, or shows what would be trained.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bantam_core::Cpu;
use bantam_daemon::cards::Device;
use bantam_model::card::Cards;
use bantam_model::pool::Threads;
use bantam_model::source::{Source, Text};
use bantam_train::data::{Example, IGNORED, Prepared};
use bantam_train::run::{self, Forecast, Machine, RunError, Watch};
use bantam_train::settings::{Fate, Settings, keys};
use clap::Args;
use serde_json::json;

use crate::chosen_model;
use crate::failure::{Failure, refused, usage};
use crate::interrupt::{Interrupt, without_file_size_signal};
use crate::models;
use crate::output;
use crate::progress::Progress;
use crate::train_needs::Needs;

/// How often who reads no terminal is told how far it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Trains what a file says: an adapter, or all weights
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam train llama3_lora_sft.yaml\n  \
                        bantam train sft.yaml model_name_or_path=./my-model cutoff_len=512 --dry-run --json\n  \
                        bantam train qlora.yaml --dry-run --ram 20GiB --simulate-vram 4GiB\n  \
                        bantam train --keys\n\n\
                        Ctrl-C and SIGTERM save a checkpoint after the step that is being taken, and end; the same \
                        command with resume_from_checkpoint=true goes on from there.")]
pub(crate) struct Train {
    /// YAML or JSON as LLaMA-Factory has it, or with the sections model, lora, dataset and training
    #[arg(value_name = "FILE", required_unless_present = "keys")]
    file: Option<PathBuf>,
    /// Values that win over the file's, such as learning_rate=1e-5
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Reads settings and data, and shows the memory of the run and the first examples
    #[arg(long)]
    dry_run: bool,
    /// The most memory that the run may take, such as 20GiB: as the key ram_budget
    #[arg(long, value_name = "BYTES", value_parser = models::bytes)]
    ram: Option<u64>,
    /// What computes beside the processor: cpu (nothing), cuda or cuda:N (a card), auto (one where it is found): as the
    /// key device
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    device: Option<Device>,
    /// Memory of the card that the run may take, such as 4GiB: as the key vram
    #[arg(long, value_name = "BYTES", value_parser = models::bytes)]
    vram: Option<u64>,
    /// Shows what a card of so many bytes would hold of the run
    #[arg(long, value_name = "BYTES", value_parser = models::bytes, requires = "dry_run")]
    simulate_vram: Option<u64>,
    /// How many examples it shows
    #[arg(long, value_name = "N", default_value_t = 2, requires = "dry_run")]
    examples: usize,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    /// Threads that compute; without it as many as there are cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Lists all keys, with their defaults and what becomes of them
    #[arg(long, conflicts_with_all = ["file", "dry_run"])]
    keys: bool,
}

impl Train {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if self.keys {
            return Ok(output::line(&key_table())?);
        }
        let Some(file) = &self.file else {
            return Err(usage("FILE is missing; write: bantam train FILE.yaml"));
        };
        let mut overrides = self.overrides.clone();
        overrides.extend(self.ram.map(|bytes| format!("ram_budget={bytes}")));
        overrides.extend(self.device.map(|device| format!("device={device}")));
        overrides.extend(self.vram.map(|bytes| format!("vram={bytes}")));
        let settings = Settings::read(file, &overrides).map_err(|error| refused(error.to_string()))?;
        if !self.dry_run {
            // Reading data takes long, and what follows would be for nothing.
            run::check(&settings).map_err(|error| refused(error.to_string()))?;
        }
        let model = settings.text("model_name_or_path").unwrap_or_default();
        let source = run::open(&settings, &chosen_model::found(Path::new(&model)))?;
        let prepared = run::prepared(&settings, &source).map_err(|error| refused(error.to_string()))?;
        settings.notes.iter().for_each(|note| output::say(&format!("note: {note}")));
        let card = Device::parse(&settings.text("device").unwrap_or_default()).and_then(Device::card);
        if !self.dry_run {
            output::say(output::harmless(&prepared.summary.to_string()).trim_end());
            return self.train(&settings, source, &prepared, card.as_deref());
        }
        let text = source.text_if_any()?;
        let shown = Shown { source: &source, prepared: &prepared, text: text.as_ref(), count: self.examples };
        self.show(&shown, run::forecast(&settings, &source, &prepared, self.machine(card.as_deref())))
    }

    /// Data may be looked at before everything else is settled: then the memory is not known, and why.
    fn show(&self, shown: &Shown, forecast: Result<Forecast, RunError>) -> Result<(), Failure> {
        let forecast = forecast.map_err(|error| error.to_string());
        let needs = Needs { forecast: forecast.as_ref(), card: self.simulate_vram };
        match self.json {
            true => {
                let mut shown = shown.json();
                shown["memory"] = needs.json();
                output::json(&shown)?;
            }
            false => output::line(&output::harmless(&format!("{}\n\n{}", shown.text(), needs.text())))?,
        }
        match &forecast {
            Ok(forecast) => forecast.check().map_err(|error| refused(error.to_string())),
            Err(_) => Ok(()),
        }
    }

    /// With what is computed.
    fn machine<'a>(&self, card: Option<&'a dyn Cards>) -> Machine<'a> {
        let threads = self.threads.map_or_else(Threads::available, |threads| threads as usize);
        Machine::from((Cpu::detect(), threads)).beside(card)
    }

    fn train(
        &self,
        settings: &Settings,
        source: Source,
        prepared: &Prepared,
        card: Option<&dyn Cards>,
    ) -> Result<(), Failure> {
        let interrupt = Interrupt::install_for_long()?;
        interrupt.note();
        let mut screen = Screen { interrupt, bar: None, told: Instant::now() };
        let outcome = without_file_size_signal(|| {
            run::train(settings, source, prepared, self.machine(card), &mut screen)
        });
        screen.bar = None;
        let outcome = outcome.map_err(|error| refused(error.to_string()))?;
        match self.json {
            true => output::json(&json!({
                "steps": outcome.steps,
                "new_steps": outcome.taken,
                "train_loss": outcome.loss,
                "done": outcome.is_done,
                "folder": outcome.folder.display().to_string(),
            }))?,
            false => output::line(&outcome.to_string())?,
        }
        match outcome.is_done {
            true => Ok(()),
            // So that a shell sees 130 or 143, and starts nothing that needs the result.
            false => Ok(screen.interrupt.end_by_signal()?),
        }
    }
}

/// A run on a terminal, or in a log.
struct Screen {
    interrupt: Interrupt,
    bar: Option<Progress>,
    told: Instant,
}

impl Screen {
    /// Says something above the line that rewrites itself.
    fn say(&self, words: &str) {
        match &self.bar {
            Some(bar) => bar.beside(|| output::say(words)),
            None => output::say(words),
        }
    }
}

impl Watch for Screen {
    fn note(&mut self, words: &str) {
        self.say(&format!("note: {}", output::harmless(words)));
    }

    fn measured(&mut self, step: u64, loss: f64) {
        self.say(&format!("step {step}: eval loss {loss:.4}"));
    }

    fn step(&mut self, at: &run::Progress) {
        let run::Progress { step, steps, loss, rate, tokens_per_second, .. } = *at;
        let digits = if tokens_per_second < 10.0 { 2 } else { 0 };
        let words = format!("loss {loss:.4}, rate {rate:.2e}, {tokens_per_second:.digits$} tokens/s");
        if output::is_watched() {
            let bar =
                self.bar.get_or_insert_with(|| Progress::counting("training".to_owned(), steps as usize));
            bar.say(words);
            bar.at(step as usize);
        } else if self.told.elapsed() >= PATIENCE || step == steps || step == 1 {
            let left = at.seconds_left;
            output::say(&format!("step {step} of {steps}: {words}, {left:.0} s left"));
            self.told = Instant::now();
        }
    }

    fn is_ended(&self) -> bool {
        self.interrupt.is_asked()
    }
}

fn device(text: &str) -> Result<Device, String> {
    Device::parse(text).ok_or_else(|| format!("expected {}", Device::EXPECTED))
}

fn key_table() -> String {
    let rows: Vec<Vec<String>> = keys()
        .map(|key| {
            let fate = match key.fate {
                Fate::Done => "done".to_owned(),
                Fate::Idle(why) => format!("changes nothing: {why}"),
                Fate::Refused(instead) => format!("not done: {instead}"),
            };
            vec![key.name.to_owned(), key.default.to_owned(), fate]
        })
        .collect();
    output::table(&rows, &[false, false, false])
}

/// What is shown of prepared data.
struct Shown<'a> {
    source: &'a Source,
    prepared: &'a Prepared,
    text: Option<&'a Text>,
    count: usize,
}

impl Shown<'_> {
    fn tokens(examples: &[Example]) -> (usize, usize) {
        let tokens = examples.iter().map(|example| example.ids.len()).sum();
        (tokens, examples.iter().map(Example::learnt).sum())
    }

    fn words(&self, ids: &[u32]) -> String {
        self.text.map(|text| text.tokenizer.decode(ids, false)).unwrap_or_default()
    }

    fn learnt(example: &Example) -> Vec<u32> {
        let labels = example.labels.iter().filter(|label| **label != IGNORED);
        labels.filter_map(|&label| u32::try_from(label).ok()).collect()
    }

    fn text(&self) -> String {
        let Prepared { train, eval, summary, .. } = self.prepared;
        let mut text = format!("model: {}\n{summary}", self.source.folder().display());
        for (name, examples) in [("train", train), ("eval", eval)] {
            let (tokens, learnt) = Self::tokens(examples);
            if !examples.is_empty() {
                text += &format!("{name}: {} examples, {tokens} tokens, {learnt} learnt\n", examples.len());
            }
        }
        for (index, example) in train.iter().take(self.count).enumerate() {
            text +=
                &format!("\nexample {index}\ninput_ids: {:?}\n{}\n", example.ids, self.words(&example.ids));
            text += &format!("labels: {:?}\n{}\n", example.labels, self.words(&Self::learnt(example)));
        }
        text.trim_end().to_owned()
    }

    fn json(&self) -> serde_json::Value {
        let Prepared { train, eval, summary, .. } = self.prepared;
        let set = |examples: &[Example]| {
            let (tokens, learnt) = Self::tokens(examples);
            json!({ "examples": examples.len(), "tokens": tokens, "learnt": learnt })
        };
        let examples = train.iter().take(self.count).map(|example| {
            json!({
                "input_ids": example.ids,
                "labels": example.labels,
                "position_ids": example.positions().collect::<Vec<_>>(),
                "attention_mask": example.segments().collect::<Vec<_>>(),
                "text": self.words(&example.ids),
            })
        });
        let sets = summary.sets.iter().map(|set| {
            let dropped = set.dropped.iter().map(|dropped| {
                json!({ "reason": dropped.reason, "rows": dropped.count, "places": dropped.places })
            });
            json!({
                "name": set.name, "rows": set.rows, "kept": set.kept, "cut": set.cut,
                "dropped": dropped.collect::<Vec<_>>(),
            })
        });
        json!({
            "data": sets.collect::<Vec<_>>(),
            "notes": summary.notes,
            "train": set(train),
            "eval": set(eval),
            "examples": examples.collect::<Vec<_>>(),
        })
    }
}
