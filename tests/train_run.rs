//! Whole runs from settings to files: losses fall, the same bytes come again, also of a run that was ended and resumed,
//! and what was written is a model.

// Helpers of a test may unwrap: a failure is a failed test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::engine::Chunk;
use bantam_model::source::Source;
use bantam_tests::{model_folder, options};
use bantam_train::data::prepare;
use bantam_train::run::{Outcome, Progress, RunError, Watch, train};
use bantam_train::settings::Settings;
use serde_json::Value;

/// A folder that is gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    /// With rows of ids, so that any model can learn them.
    fn new(label: &str) -> Scratch {
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

    /// Trains into a folder of that name.
    fn train(&self, model: &str, output: &str, yaml: &str, end: Option<u64>) -> Result<Run, RunError> {
        let (rows, output) = (self.0.join("rows.jsonl"), self.0.join(output));
        let yaml = format!(
            "model_name_or_path: {model}\ndataset_path: {}\ndataset_type: tokenized\noutput_dir: {}\n\
             per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\nlogging_steps: 2\nsave_steps: 3\n\
             lr_scheduler_type: cosine\nwarmup_ratio: 0.1\n{yaml}",
            rows.display(),
            output.display()
        );
        let settings = Settings::of_text("test.yaml", &yaml, &[]).unwrap_or_else(|error| panic!("{error}"));
        let source = Source::open(&model_folder(model)).unwrap();
        let vocab = u32::try_from(source.spec.vocab).unwrap();
        let prepared = prepare(&settings.data, settings.stage, 42, vocab, None).unwrap();
        let mut seen = Seen { losses: Vec::new(), notes: Vec::new(), end };
        let outcome = train(&settings, source, &prepared, (Cpu::detect(), 2), &mut seen)?;
        Ok(Run { outcome, seen, output })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
struct Run {
    outcome: Outcome,
    seen: Seen,
    output: PathBuf,
}

impl Run {
    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.output.join(name)).unwrap()
    }

    fn log(&self) -> Vec<Value> {
        let text = String::from_utf8(self.bytes("trainer_log.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[derive(Debug)]
struct Seen {
    losses: Vec<f64>,
    notes: Vec<String>,
    end: Option<u64>,
}

impl Watch for Seen {
    fn note(&mut self, words: &str) {
        self.notes.push(words.to_owned());
    }

    fn step(&mut self, progress: &Progress) {
        self.losses.push(progress.loss);
    }

    fn is_ended(&self) -> bool {
        self.end.is_some_and(|end| self.losses.len() as u64 == end)
    }
}

/// Logits of some tokens, through the engine that serves.
fn logits(source: &Source) -> Vec<f32> {
    let mut engine = source.load(options(), Cpu::detect(), 1, None, &mut |_| {}).unwrap();
    let sequence = engine.open().unwrap();
    engine.step(&[Chunk { sequence, tokens: &[5, 12, 19, 26] }]).unwrap();
    engine.logits(&[3]).to_vec()
}

const LORA: &str = "learning_rate: 0.01\nlora_rank: 4\nnum_train_epochs: 5\n";

/// What a kind of training must hold.
fn check(model: &str, label: &str, yaml: &str, weights: &str) {
    let scratch = Scratch::new(label);
    let whole = scratch.train(model, "whole", yaml, None).unwrap();
    let losses = &whole.seen.losses;
    assert_eq!((losses.len(), whole.outcome.steps, whole.outcome.is_done), (10, 10, true), "{label}");
    assert!(losses[9] < losses[0] - 0.1, "{label}: {losses:?}");
    let told: Vec<u64> = whole.log().iter().map(|line| line["current_steps"].as_u64().unwrap()).collect();
    assert_eq!(told, [1, 2, 4, 6, 8, 10], "{label}");
    assert_eq!(whole.log()[0]["loss"].as_f64(), Some(losses[0]), "{label}");

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

#[test]
fn adapters_are_trained() {
    check("llama-tied", "lora", LORA, "adapter_model.safetensors");
}

#[test]
fn adapters_with_lengths_are_trained() {
    check(
        "gpt_neox",
        "dora",
        &format!("{LORA}use_dora: true\nuse_rslora: true\n"),
        "adapter_model.safetensors",
    );
}

#[test]
fn adapters_of_experts_are_trained() {
    check("mixtral", "experts", &format!("{LORA}lora_target: mlp_only\n"), "adapter_model.safetensors");
}

#[test]
fn all_weights_are_trained() {
    let yaml = "finetuning_type: full\nlearning_rate: 0.001\nnum_train_epochs: 5\n";
    check("qwen2", "full", yaml, "model.safetensors");
}

#[test]
fn all_weights_are_trained_with_muon() {
    let yaml =
        "finetuning_type: full\nlearning_rate: 0.001\nnum_train_epochs: 5\nuse_muon: true\nbf16: true\n";
    check("llama-untied", "muon", yaml, "model.safetensors");
}

#[test]
fn a_new_adapter_changes_nothing_and_its_checkpoints_are_counted() {
    let scratch = Scratch::new("kept");
    let yaml = "learning_rate: 0.0\nuse_dora: true\nmax_steps: 7\nsave_total_limit: 2\n";
    let run = scratch.train("llama-tied", "kept", yaml, None).unwrap();
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("checkpoint") || name.starts_with('.'));
        names.sort();
        names
    };
    assert_eq!(names(&run.output), ["checkpoint-6", "checkpoint-7"]);
    let base = Source::open(&model_folder("llama-tied")).unwrap();
    let before = logits(&base);
    let worst = before
        .iter()
        .zip(logits(&base.adapted(&run.output).unwrap()))
        .map(|(before, after)| (before - after).abs())
        .fold(0.0, f32::max);
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn what_no_run_does_is_refused_with_its_line() {
    let scratch = Scratch::new("refused");
    for (yaml, word) in [
        ("lora_dropout: 0.1\n", "test.yaml:11: lora_dropout"),
        ("finetuning_type: freeze\n", "finetuning_type"),
        ("optim: adamw_8bit\n", "8 bits"),
        ("report_to: wandb\n", "trainer_log.jsonl"),
        ("packing: true\n", "neat_packing"),
        ("lora_target: nothing\n", "q_proj"),
        ("resume_from_checkpoint: nowhere\n", "checkpoint"),
        ("use_muon: true\n", "finetuning_type: full"),
    ] {
        let found = scratch.train("llama-tied", "refused", yaml, None).unwrap_err().to_string();
        assert!(found.contains(word), "{yaml}: {found}");
    }
    scratch.train("llama-tied", "taken", "max_steps: 1\nsave_strategy: no\n", None).unwrap();
    let found = scratch.train("llama-tied", "taken", "max_steps: 1\n", None).unwrap_err().to_string();
    assert!(found.contains("overwrite_output_dir"), "{found}");
    scratch.train("llama-tied", "taken", "max_steps: 1\noverwrite_output_dir: true\n", None).unwrap();
}
