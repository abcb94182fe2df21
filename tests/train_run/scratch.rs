//! A folder with rows, a run in it, and who looked on.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::engine::Chunk;
use bantam_model::source::Source;
use bantam_tests::{model_folder, options};
use bantam_train::data::{Prepared, prepare};
use bantam_train::run::{self, Machine, Outcome, Progress, RunError, Watch, check as check_settings, train};
use bantam_train::settings::Settings;
use serde_json::Value;

/// A folder that is gone when the test is over.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// With rows of ids, so that any model can learn them.
    pub(crate) fn new(label: &str) -> Scratch {
        let folder = std::env::temp_dir().join(format!("bantam-train-run-{}-{label}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let row = |row: u32| {
            let ids: Vec<u32> = (0..9 + row % 4).map(|at| 5 + (row * 31 + at * 7) % 90).collect();
            let labels: Vec<i64> =
                ids.iter().enumerate().map(|(at, &id)| if at < 3 { -100 } else { id.into() }).collect();
            format!("{}\n", serde_json::json!({ "input_ids": ids, "labels": labels }))
        };
        fs::write(folder.join("rows.jsonl"), (0..7).map(row).collect::<String>()).unwrap();
        Scratch(folder)
    }

    /// What is said against settings.
    pub(crate) fn refused(&self, yaml: &str) -> String {
        let yaml = format!("model_name_or_path: x\ndataset_path: y\noutput_dir: z\nsave_steps: 3\n{yaml}");
        let settings = Settings::of_text("test.yaml", &yaml, &[]);
        settings.and_then(|settings| check_settings(&settings)).unwrap_err().to_string()
    }

    /// Trains into a folder of that name.
    pub(crate) fn train(
        &self,
        model: &str,
        output: &str,
        yaml: &str,
        end: Option<u64>,
    ) -> Result<Run, RunError> {
        self.train_over(&model_folder(model), output, yaml, end)
    }

    /// The same over the model in a folder.
    pub(crate) fn train_over(
        &self,
        model: &Path,
        output: &str,
        yaml: &str,
        end: Option<u64>,
    ) -> Result<Run, RunError> {
        self.train_on(model, output, yaml, end, Machine::from((Cpu::detect(), 2)))
    }

    /// The same on a machine.
    pub(crate) fn train_on(
        &self,
        model: &Path,
        output: &str,
        yaml: &str,
        end: Option<u64>,
        machine: Machine<'_>,
    ) -> Result<Run, RunError> {
        let (settings, source, prepared) = self.begin(model, output, yaml);
        let mut seen = Seen { losses: Vec::new(), measured: Vec::new(), notes: Vec::new(), end };
        let outcome = train(&settings, source, &prepared, machine, &mut seen)?;
        Ok(Run { outcome, seen, output: self.0.join(output) })
    }

    /// What such a run begins with.
    pub(crate) fn begin(&self, model: &Path, output: &str, yaml: &str) -> (Settings, Source, Prepared) {
        let (rows, output) = (self.0.join("rows.jsonl"), self.0.join(output));
        let usual = format!(
            "model_name_or_path: {}\ndataset_path: {}\ndataset_type: tokenized\noutput_dir: {}\n\
             per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\nlogging_steps: 2\nsave_steps: 3\n\
             lr_scheduler_type: cosine\nwarmup_ratio: 0.1\n",
            model.display(),
            rows.display(),
            output.display()
        );
        let key = |line: &str| line.split_once(':').unwrap().0.to_owned();
        let is_usual = |line: &&str| !yaml.lines().any(|other| key(other) == key(line));
        let mut lines: Vec<&str> = usual.lines().filter(is_usual).collect();
        lines.extend(yaml.lines());
        let yaml = lines.join("\n");
        let settings = Settings::of_text("test.yaml", &yaml, &[]).unwrap_or_else(|error| panic!("{error}"));
        let source = run::open(&settings, model).unwrap();
        let vocab = u32::try_from(source.spec.vocab).unwrap();
        let prepared = prepare(&settings.data, settings.stage, 42, vocab, None).unwrap();
        (settings, source, prepared)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    pub(crate) seen: Seen,
    pub(crate) output: PathBuf,
}

impl Run {
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.output.join(name)).unwrap()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).unwrap()
    }

    /// The checkpoints, and what is hidden.
    pub(crate) fn checkpoints(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.output).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("checkpoint") || name.starts_with('.'));
        names.sort();
        names
    }

    pub(crate) fn log(&self) -> Vec<Value> {
        let text = String::from_utf8(self.bytes("trainer_log.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) losses: Vec<f64>,
    pub(crate) measured: Vec<(u64, f64)>,
    pub(crate) notes: Vec<String>,
    pub(crate) end: Option<u64>,
}

impl Watch for Seen {
    fn note(&mut self, words: &str) {
        self.notes.push(words.to_owned());
    }

    fn step(&mut self, progress: &Progress) {
        self.losses.push(progress.loss);
    }

    fn measured(&mut self, step: u64, loss: f64) {
        self.measured.push((step, loss));
    }

    fn is_ended(&self) -> bool {
        self.end.is_some_and(|end| self.losses.len() as u64 == end)
    }
}

/// Logits of some tokens, through the engine that serves.
pub(crate) fn logits(source: &Source) -> Vec<f32> {
    let mut engine = source.load(options(), Cpu::detect(), 1, None, &mut |_| {}).unwrap();
    let sequence = engine.open().unwrap();
    engine.step(&[Chunk { sequence, tokens: &[5, 12, 19, 26] }]).unwrap();
    engine.logits(&[3]).to_vec()
}

pub(crate) const LORA: &str = "learning_rate: 0.01\nlora_rank: 4\nnum_train_epochs: 5\n";

/// What a kind of training must hold.
pub(crate) fn check(model: &str, label: &str, yaml: &str, weights: &str) {
    let scratch = Scratch::new(label);
    let whole = scratch.train(model, "whole", yaml, None).unwrap();
    let losses = &whole.seen.losses;
    assert_eq!((losses.len(), whole.outcome.steps, whole.outcome.is_done), (10, 10, true), "{label}");
    assert!(losses[9] < losses[0] - 0.1, "{label}: {losses:?}");
    let told: Vec<u64> = whole.log().iter().map(|line| line["current_steps"].as_u64().unwrap()).collect();
    assert_eq!(told, [1, 2, 4, 6, 8, 10], "{label}");
    // serde_json reads numbers but for their last bit.
    let first = whole.log()[0]["loss"].as_f64().unwrap();
    assert!((first - losses[0]).abs() < 1e-14 * first, "{label}: {first}, not {}", losses[0]);

    let again = scratch.train(model, "again", yaml, None).unwrap();
    assert!(whole.bytes(weights) == again.bytes(weights), "{label}: two runs differ");

    let ended = scratch.train(model, "parts", yaml, Some(5)).unwrap();
    assert!(!ended.outcome.is_done && ended.outcome.folder.ends_with("checkpoint-5"), "{label}");
    let resumed = scratch.train(model, "parts", yaml, None).unwrap();
    assert!(resumed.seen.notes.iter().any(|note| note.contains("checkpoint-5")), "{:?}", resumed.seen.notes);
    assert_eq!(resumed.seen.losses, losses[5..], "{label}");
    assert!(whole.bytes(weights) == resumed.bytes(weights), "{label}: a resumed run differs");
    let told = |run: &Run| run.log().iter().map(|line| line["loss"].to_string()).collect::<Vec<_>>();
    assert_eq!(told(&whole), told(&resumed), "{label}");

    let base = Source::open(&model_folder(model)).unwrap();
    let before = logits(&base);
    let trained = match weights {
        "model.safetensors" => Source::open(&whole.output).unwrap(),
        _ => base.adapted(&whole.output).unwrap(),
    };
    assert!(before != logits(&trained), "{label}: the result changes nothing");
}
