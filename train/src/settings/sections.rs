//! Files in sections (model, lora, dataset, training) as flat keys, and other names of keys.

use super::yaml::{Content, Node};

const SECTIONS: &[&str] = &["model", "lora", "dataset", "training"];

/// Section, its key, and what that is called in the table. A key that is not here keeps its own name.
const NAMES: &[(&str, &str, &str)] = &[
    ("model", "path", "model_name_or_path"),
    ("model", "name", "model_name_or_path"),
    ("model", "model_path", "model_name_or_path"),
    ("lora", "r", "lora_rank"),
    ("lora", "rank", "lora_rank"),
    ("lora", "alpha", "lora_alpha"),
    ("lora", "dropout", "lora_dropout"),
    ("lora", "preset", "lora_target"),
    ("lora", "targets", "lora_target"),
    ("lora", "target_modules", "lora_target"),
    ("dataset", "path", "dataset_path"),
    ("dataset", "type", "dataset_type"),
    ("dataset", "max_length", "cutoff_len"),
    ("training", "lr", "learning_rate"),
    ("training", "epochs", "num_train_epochs"),
    ("training", "num_epochs", "num_train_epochs"),
    ("training", "batch_size", "per_device_train_batch_size"),
    ("training", "max_length", "cutoff_len"),
    ("training", "max_seq_length", "cutoff_len"),
    ("training", "scheduler", "lr_scheduler_type"),
    ("training", "lr_scheduler", "lr_scheduler_type"),
    ("training", "grad_accum", "gradient_accumulation_steps"),
    ("training", "accumulate_grad_batches", "gradient_accumulation_steps"),
    ("training", "gradient_clip_val", "max_grad_norm"),
    ("training", "keep_last_n", "save_total_limit"),
    ("training", "wandb_run_name", "run_name"),
];

/// What a file in sections has where it says nothing: the learning rates of its optimizers, its schedule, its eos.
const DEFAULTS: &[(&str, &str)] = &[
    ("embedding_lr_ratio", "2.0"),
    ("head_lr_ratio", "0.1"),
    ("lr_scheduler_type", "cosine"),
    ("append_eos", "true"),
];

/// The name in the table of a key that was written with its section in front.
pub(super) fn own_name(key: &str) -> &str {
    let Some((section, key)) = key.split_once('.') else { return key };
    renamed(section, key)
}

fn renamed<'a>(section: &str, key: &'a str) -> &'a str {
    let known = NAMES.iter().find(|(of, name, _)| *of == section && *name == key);
    known.map_or(key, |(_, _, name)| name)
}

/// Keys of a file without its sections; `complain` is told of what fits neither form.
pub(super) fn flat(
    entries: Vec<(String, Node)>,
    complain: &mut dyn FnMut(usize, String),
) -> Vec<(String, Node)> {
    let is_section =
        |key: &str, node: &Node| SECTIONS.contains(&key) && matches!(node.content, Content::Map(_));
    if !entries.iter().any(|(key, node)| is_section(key, node)) {
        return entries;
    }
    let mut keys: Vec<(String, Node)> = Vec::new();
    for (section, node) in entries {
        match node.content {
            Content::Map(entries) if SECTIONS.contains(&section.as_str()) => {
                entries.into_iter().for_each(|(key, node)| take(&section, &key, node, &mut keys));
            }
            _ if SECTIONS.contains(&section.as_str()) => {
                complain(node.line, format!("expected keys below {section}, found {}", node.content.kind()));
            }
            content => keys.push((section, Node { line: node.line, content })),
        }
    }
    for (key, value) in DEFAULTS {
        if !keys.iter().any(|(known, _)| known == key) {
            let content = Content::Scalar((*value).to_owned(), true);
            keys.push(((*key).to_owned(), Node { line: 1, content }));
        }
    }
    keys
}

/// One key of a section. Some say by a flag what the table says by a word.
fn take(section: &str, key: &str, node: Node, keys: &mut Vec<(String, Node)>) {
    let line = node.line;
    let is_on = matches!(&node.content, Content::Scalar(words, _) if words.eq_ignore_ascii_case("true"));
    let mut word = |key: &str, word: &str| {
        keys.push((key.to_owned(), Node { line, content: Content::Scalar(word.to_owned(), true) }));
    };
    match (section, key) {
        ("model", "train_4bit" | "train_8bit") if is_on => {
            word("quantization_bit", if key == "train_4bit" { "4" } else { "8" });
        }
        ("training", "use_wandb") if is_on => word("report_to", "wandb"),
        ("model", "train_4bit" | "train_8bit")
        | ("training", "use_wandb" | "gpu_devices" | "wandb_project") => {}
        _ => keys.push((renamed(section, key).to_owned(), node)),
    }
}
