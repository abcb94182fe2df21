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
use super::choices::{Choices, Measuring, Method};
use super::output::failed;
use crate::data::{Example, Prepared};

/// Keys that no weight depends on: where things are (models and examples are told by what is in them), what is shown
/// and kept, and how the model is measured.
const FREE: &[&str] = &[
    "adapter_name_or_path",
    "create_new_adapter",
    // Who computes makes last bits, as another processor does: a run may go on elsewhere.
    "device",
    "disable_gradient_checkpointing",
    "model_name_or_path",
    "ram_budget",
    "vram",
    // What examples are made with.
    "append_eos",
    "cutoff_len",
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
    // It stands in the model's configuration.
    "rope_scaling",
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
/// Keys that say something together, or one thing in several ways: [`together`] tells it under one of them.
const TOGETHER: &[&str] = &[
    "bf16",
    "data_seed",
    "double_quantization",
    "finetuning_type",
    "lora_alpha",
    "lr_scheduler_kwargs",
    "optim",
    "pure_bf16",
    "quantization_bit",
    "quantization_method",
    "quantization_type",
];
/// Keys that a checkpoint has settled: others would change nothing, or go on with what was never trained so.
const SETTLED: &[&str] = &[
    "additional_target",
    "finetuning_type",
    "freeze_extra_modules",
    "freeze_trainable_layers",
    "freeze_trainable_modules",
    "lora_alpha",
    "lora_rank",
    "lora_target",
    "muon_variant",
    "optim",
    "pissa_init",
    "pissa_iter",
    "quantization_bit",
    "target_parameters",
    "train_from_scratch",
    "use_dora",
    "use_muon",
    "use_rslora",
];
/// Keys that say something only where a new adapter is made; where some layers are trained; with Muon; and where
/// weights are trained whole.
const OF_ADAPTERS: &[&str] = &[
    "additional_target",
    "lora_dropout",
    "lora_rank",
    "lora_target",
    "pissa_init",
    "pissa_iter",
    "target_parameters",
    "use_dora",
    "use_rslora",
];
const OF_FREEZE: &[&str] = &["freeze_extra_modules", "freeze_trainable_layers", "freeze_trainable_modules"];
const OF_MUON: &[&str] = &["muon_variant", "adamw_learning_rate"];
const OF_WHOLE: &[&str] = &["embedding_lr_ratio", "head_lr_ratio"];
/// Of a tensor, as many bytes of its begin, middle and end as tell it from another.
const SAMPLE: usize = 256;
/// What a configuration says of the tools that wrote it.
const OF_TOOLS: [&str; 4] =
    ["transformers_version", "_name_or_path", "peft_version", "base_model_name_or_path"];

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Recipe {
    /// Values by key, spelled as JSON: numbers that went through a file are compared by their words.
    settings: Map<String, Value>,
    model: String,
    data: String,
    /// How the best is found, and by which examples, where it is looked for.
    measured: String,
}

/// How a run differs from another, in words.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Differences {
    pub(super) settled: Vec<String>,
    pub(super) others: Vec<String>,
    pub(super) length: Vec<String>,
    /// Whether what was the best need not be it any more.
    pub(super) is_measured_otherwise: bool,
}

impl Recipe {
    pub(super) fn new(
        choices: &Choices<'_>,
        source: &Source,
        prepared: &Prepared,
    ) -> Result<Recipe, RunError> {
        let keys = choices.settings().in_force();
        let is_alone = |key: &str| !FREE.contains(&key) && !TOGETHER.contains(&key);
        let keys = keys.filter(|(key, _)| is_alone(key) && says_something(choices, key));
        let keys = keys.map(|(key, value)| (key, value.to_string()));
        let settings = keys.chain(together(choices)).map(|(key, value)| (key.to_owned(), Value::from(value)));
        let mut model = Xxh3::new();
        let config = source.files.config().map_err(SourceError::Files)?;
        model.update(essence(&config.unwrap_or_default()).as_bytes());
        sample(&source.checkpoint, &mut model).map_err(|error| failed(source.folder(), error))?;
        let continued = match &choices.method {
            Method::Adapter(folder) => Some(folder),
            _ => None,
        };
        for folder in choices.merged.iter().chain(continued) {
            sample_adapter(folder, &mut model)?;
        }
        let Measuring { metric, best, .. } = choices.measuring;
        let measured = best.map(|more| format!("{metric} {more} {:032x}", told_apart(&prepared.eval)));
        Ok(Recipe {
            settings: settings.collect(),
            model: format!("{:032x}", model.digest128()),
            data: format!("{:032x}", told_apart(&prepared.train)),
            measured: measured.unwrap_or_default(),
        })
    }

    /// How `self` differs from what stood before. Keys that were not known then are passed over.
    pub(super) fn differences(&self, before: &Recipe) -> Differences {
        let mut found = Differences::default();
        if self.measured != before.measured && !before.measured.is_empty() {
            found.is_measured_otherwise = true;
            if !self.measured.is_empty() {
                found.others.push("another way to find the best".to_owned());
            }
        }
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
        json!({ "settings": self.settings, "model": self.model, "data": self.data, "measured": self.measured })
    }

    pub(super) fn of_json(json: &Value) -> Option<Recipe> {
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        Some(Recipe {
            settings: json["settings"].as_object()?.clone(),
            model: text("model")?,
            data: text("data")?,
            measured: text("measured")?,
        })
    }
}

/// Whether a key changes anything, as others are.
fn says_something(choices: &Choices<'_>, key: &str) -> bool {
    let is_new = matches!(choices.method, Method::Lora(_));
    let is_adapter = is_new || matches!(choices.method, Method::Adapter(_));
    let has_wholes = matches!(&choices.method, Method::Lora(lora) if !lora.saved.is_empty());
    let of = |keys: &[&str]| keys.contains(&key);
    match key {
        _ if of(OF_ADAPTERS) => is_new,
        _ if of(OF_FREEZE) => matches!(choices.method, Method::Freeze(_)),
        _ if of(OF_MUON) => choices.flag("use_muon"),
        _ if of(OF_WHOLE) => !is_adapter || has_wholes,
        "loraplus_lr_ratio" => is_adapter,
        "train_from_scratch" => matches!(choices.method, Method::Full),
        "num_train_epochs" => choices.settings().count("max_steps").is_none_or(|steps| steps <= 0),
        _ => true,
    }
}

/// What the keys of [`TOGETHER`] say.
fn together(choices: &Choices<'_>) -> [(&'static str, String); 7] {
    let settings = choices.settings();
    let (method, alpha) = match &choices.method {
        Method::Full => ("full", None),
        Method::Freeze(_) => ("freeze", None),
        Method::Adapter(_) => ("lora of adapter_name_or_path", None),
        Method::Lora(lora) => ("lora", Some(lora.alpha)),
    };
    let optim = match settings.text("optim").unwrap_or_default() {
        optim if optim.contains("8bit") => "adamw_8bit",
        optim if optim == "sgd" => "sgd",
        _ => "adamw_torch",
    };
    let mut bends = settings.table("lr_scheduler_kwargs").unwrap_or_default();
    bends.sort();
    let bends: Vec<String> = bends.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    [
        ("finetuning_type", method.to_owned()),
        ("lora_alpha", alpha.map_or_else(|| "null".to_owned(), |alpha| alpha.to_string())),
        ("optim", optim.to_owned()),
        ("quantization_bit", choices.quantization.map_or("null", |way| way.name).to_owned()),
        ("bf16", choices.is_half().to_string()),
        ("data_seed", choices.data_seed.to_string()),
        ("lr_scheduler_kwargs", format!("{{{}}}", bends.join(", "))),
    ]
}

/// A configuration however it is spaced, without what tools say of themselves.
fn essence(config: &[u8]) -> String {
    let Ok(Value::Object(mut config)) = serde_json::from_slice(config) else {
        return String::from_utf8_lossy(config).into_owned();
    };
    config.retain(|key, _| !OF_TOOLS.contains(&key.as_str()));
    config.sort_keys();
    Value::Object(config).to_string()
}

/// Names, types, shapes and some bytes of all tensors.
fn sample(checkpoint: &Checkpoint, hash: &mut Xxh3) -> io::Result<()> {
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    // However they are divided into files.
    tensors.sort_by_key(|tensor| tensor.name);
    for tensor in tensors {
        hash.update(format!("{} {:?} {:?}", tensor.name, tensor.dtype, tensor.shape).as_bytes());
        let (bytes, middle) = (tensor.data.len(), tensor.data.len() / 2);
        for first in [0, middle, bytes.saturating_sub(SAMPLE)] {
            hash.update(&tensor.load(first..bytes.min(first + SAMPLE))?);
        }
    }
    Ok(())
}

fn sample_adapter(folder: &Path, hash: &mut Xxh3) -> Result<(), RunError> {
    let config = folder.join(CONFIG);
    hash.update(essence(&std::fs::read(&config).map_err(|error| failed(&config, error))?).as_bytes());
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
        for key in [OF_ADAPTERS, OF_FREEZE, OF_MUON, OF_WHOLE].concat() {
            assert!(keys().any(|known| known.name == key) && !FREE.contains(&key), "{key}");
        }
        for (at, key) in TOGETHER.iter().enumerate() {
            assert!(keys().any(|known| known.name == *key && known.fate == Fate::Done), "{key}");
            assert!(!TOGETHER[..at].contains(key) && !FREE.contains(key), "{key} stands twice");
        }
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
            Recipe { settings: settings.into_iter().collect(), data: data.to_owned(), ..Recipe::default() }
        };
        let (before, now) = (recipe("0.1", "8", "5", "a"), recipe("0.2", "4", "6", "b"));
        assert_eq!(now.differences(&now), Differences::default());
        let words = |words: &[&str]| words.iter().map(|words| (*words).to_owned()).collect();
        let expected = Differences {
            settled: words(&["lora_rank: 8 (here 4)"]),
            others: words(&["other examples", "learning_rate: 0.1 (here 0.2)"]),
            length: words(&["max_steps: 5 (here 6)"]),
            is_measured_otherwise: false,
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
