//! What makes a run this run and no other: the settings that its weights depend on, its model, its examples.
//! Checkpoints remember it, so that nobody goes on from another run's without knowing.

use std::io;
use std::path::Path;

use bantam_model::adapter::{CONFIG, WEIGHTS};
use bantam_model::checkpoint::Checkpoint;
use bantam_model::source::{Source, SourceError};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::Xxh3;

use super::RunError;
use super::choices::{Choices, Method};
use super::output::failed;
use crate::data::Example;

/// Keys that no weight depends on: where things are (models and examples are told by what is in them), what is shown
/// and kept, and how the model is measured.
const FREE: &[&str] = &[
    "model_name_or_path",
    "adapter_name_or_path",
    "disable_gradient_checkpointing",
    "ram_budget",
    // What examples are made with.
    "append_eos",
    "dataset",
    "dataset_dir",
    "dataset_path",
    "dataset_type",
    "default_system",
    "enable_thinking",
    "eval_dataset",
    "interleave_probs",
    "mask_history",
    "max_samples",
    "mix_strategy",
    "neat_packing",
    "packing",
    "preprocessing_batch_size",
    "template",
    "tokenized_path",
    "tool_format",
    "train_on_prompt",
    "val_size",
    // What is shown and kept.
    "disable_tqdm",
    "include_effective_tokens_per_second",
    "logging_dir",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "output_dir",
    "overwrite_output_dir",
    "pissa_convert",
    "plot_loss",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "save_only_model",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "swanlab_logdir",
    "swanlab_mode",
    "swanlab_project",
    "swanlab_run_name",
    "swanlab_workspace",
    "use_swanlab",
    // How the model is measured.
    "compute_accuracy",
    "do_eval",
    "early_stopping_steps",
    "eval_delay",
    "eval_on_start",
    "eval_steps",
    "eval_strategy",
    "evaluation_strategy",
    "greater_is_better",
    "load_best_model_at_end",
    "metric_for_best_model",
    "per_device_eval_batch_size",
];
/// Keys that only say how long a run is.
const LENGTH: &[&str] = &["max_steps", "num_train_epochs"];
/// Keys that a checkpoint has settled: others would change nothing, or go on with what was never trained so.
const SETTLED: &[&str] = &[
    "additional_target",
    "create_new_adapter",
    "double_quantization",
    "finetuning_type",
    "freeze_extra_modules",
    "freeze_trainable_layers",
    "freeze_trainable_modules",
    "lora_alpha",
    "lora_dropout",
    "lora_rank",
    "lora_target",
    "muon_variant",
    "optim",
    "pissa_init",
    "pissa_iter",
    "quantization_bit",
    "quantization_type",
    "rope_scaling",
    "target_parameters",
    "use_dora",
    "use_muon",
    "use_rslora",
];
/// Of a tensor, as much as tells it from another.
const SAMPLE: usize = 256;

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Recipe {
    /// Values by key, spelled as JSON: numbers that went through a file are compared by their words.
    settings: Map<String, Value>,
    model: String,
    data: String,
}

/// How a run differs from another, in words.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Differences {
    pub(super) settled: Vec<String>,
    pub(super) others: Vec<String>,
    pub(super) length: Vec<String>,
}

impl Recipe {
    pub(super) fn new(
        choices: &Choices<'_>,
        source: &Source,
        examples: &[Example],
    ) -> Result<Recipe, RunError> {
        let settings = choices.settings().in_force().filter(|(key, _)| !FREE.contains(key));
        let settings = settings.map(|(key, value)| (key.to_owned(), Value::from(value.to_string())));
        let mut model = Xxh3::new();
        model.update(&source.files.config().map_err(SourceError::Files)?.unwrap_or_default());
        sample(&source.checkpoint, &mut model).map_err(|error| failed(source.folder(), error))?;
        let continued = match &choices.method {
            Method::Adapter(folder) => Some(folder),
            _ => None,
        };
        for folder in choices.merged.iter().chain(continued) {
            sample_adapter(folder, &mut model)?;
        }
        Ok(Recipe {
            settings: settings.collect(),
            model: format!("{:032x}", model.digest128()),
            data: format!("{:032x}", told_apart(examples)),
        })
    }

    /// How `self` differs from what stood before. Keys that were not known then are passed over.
    pub(super) fn differences(&self, before: &Recipe) -> Differences {
        let mut found = Differences::default();
        if self.model != before.model {
            found.settled.push("another model".to_owned());
        }
        if self.data != before.data {
            found.others.push("other examples".to_owned());
        }
        for (key, now) in &self.settings {
            let Some(old) = before.settings.get(key).filter(|old| *old != now) else { continue };
            let words = [old, now].map(|value| value.as_str().unwrap_or_default());
            let words = format!("{key}: {} (here {})", words[0], words[1]);
            let of = |keys: &[&str]| keys.contains(&key.as_str());
            match (of(SETTLED), of(LENGTH)) {
                (true, _) => found.settled.push(words),
                (_, true) => found.length.push(words),
                _ => found.others.push(words),
            }
        }
        found
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "settings": self.settings, "model": self.model, "data": self.data })
    }

    pub(super) fn of_json(json: &Value) -> Option<Recipe> {
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        Some(Recipe {
            settings: json["settings"].as_object()?.clone(),
            model: text("model")?,
            data: text("data")?,
        })
    }
}

/// Names, types, shapes and first bytes of all tensors.
fn sample(checkpoint: &Checkpoint, hash: &mut Xxh3) -> io::Result<()> {
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    // However they are divided into files.
    tensors.sort_by_key(|tensor| tensor.name);
    for tensor in tensors {
        hash.update(format!("{} {:?} {:?}", tensor.name, tensor.dtype, tensor.shape).as_bytes());
        hash.update(&tensor.load(0..tensor.data.len().min(SAMPLE))?);
    }
    Ok(())
}

fn sample_adapter(folder: &Path, hash: &mut Xxh3) -> Result<(), RunError> {
    let config = folder.join(CONFIG);
    hash.update(&std::fs::read(&config).map_err(|error| failed(&config, error))?);
    let weights = Checkpoint::open(&folder.join(WEIGHTS)).map_err(SourceError::from)?;
    sample(&weights, hash).map_err(|error| failed(folder, error))
}

/// A number of examples and their order.
fn told_apart(examples: &[Example]) -> u128 {
    let (mut hash, mut bytes) = (Xxh3::new(), Vec::new());
    for Example { ids, labels, pieces, is_apart } in examples {
        bytes.clear();
        bytes.push(u8::from(*is_apart));
        bytes.extend([ids.len(), pieces.len()].iter().flat_map(|count| (*count as u64).to_le_bytes()));
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend(labels.iter().flat_map(|label| label.to_le_bytes()));
        bytes.extend(pieces.iter().flat_map(|piece| piece.to_le_bytes()));
        hash.update(&bytes);
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Fate, keys};

    #[test]
    fn keys_are_those_of_the_table_and_stand_once() {
        let all: Vec<&str> = [FREE, LENGTH, SETTLED].concat();
        for (at, key) in all.iter().enumerate() {
            assert!(keys().any(|known| known.name == *key && known.fate == Fate::Done), "{key}");
            assert!(!all[..at].contains(key), "{key} stands twice");
        }
    }

    #[test]
    fn differences_are_sorted_by_what_they_mean() {
        let recipe = |rate: &str, rank: &str, steps: &str, data: &str| {
            let settings = [("learning_rate", rate), ("lora_rank", rank), ("max_steps", steps)];
            let settings = settings.map(|(key, value)| (key.to_owned(), Value::from(value)));
            Recipe { settings: settings.into_iter().collect(), model: "m".to_owned(), data: data.to_owned() }
        };
        let (before, now) = (recipe("0.1", "8", "5", "a"), recipe("0.2", "4", "6", "b"));
        assert_eq!(now.differences(&now), Differences::default());
        let words = |words: &[&str]| words.iter().map(|words| (*words).to_owned()).collect();
        let expected = Differences {
            settled: words(&["lora_rank: 8 (here 4)"]),
            others: words(&["other examples", "learning_rate: 0.1 (here 0.2)"]),
            length: words(&["max_steps: 5 (here 6)"]),
        };
        assert_eq!(now.differences(&before), expected);
        assert_eq!(Recipe::of_json(&now.to_json()), Some(now));
        // An older program knew fewer keys.
        let older = Recipe { settings: Map::new(), ..before.clone() };
        assert_eq!(before.differences(&older), Differences::default());
    }

    #[test]
    fn examples_are_told_apart_by_all_that_they_are() {
        let example = Example::alone(vec![1, 2, 3], vec![-100, 2, 3]);
        let other = |change: fn(&mut Example)| {
            let mut other = example.clone();
            change(&mut other);
            told_apart(&[other])
        };
        let first = told_apart(std::slice::from_ref(&example));
        assert_ne!(first, told_apart(&[example.clone(), example.clone()]));
        assert_ne!(first, other(|example| example.ids[0] = 2));
        assert_ne!(first, other(|example| example.labels[1] = -100));
        assert_ne!(first, other(|example| example.pieces = vec![2, 1]));
        assert_ne!(first, other(|example| example.is_apart = true));
    }
}
