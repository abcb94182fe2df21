//! `bantam train`: what a file says to train. So far it shows what would be trained, and trains nothing.

use std::path::{Path, PathBuf};

use bantam_model::source::Source;
use bantam_train::data::{Example, IGNORED, Prepared, Spoken, prepare};
use bantam_train::settings::{Fate, Settings, keys};
use clap::Args;
use serde_json::json;

use crate::chosen_model;
use crate::failure::{Failure, refused, usage};
use crate::output;

/// Shows what a file says to train
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam train llama3_lora_sft.yaml --dry-run\n  \
                        bantam train sft.yaml model_name_or_path=./my-model cutoff_len=512 --dry-run --json\n  \
                        bantam train --keys")]
pub(crate) struct Train {
    /// YAML or JSON as LLaMA-Factory has it, or with the sections model, lora, dataset and training
    #[arg(value_name = "FILE", required_unless_present = "keys")]
    file: Option<PathBuf>,
    /// Values that win over the file's, such as learning_rate=1e-5
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Reads settings and data, and shows the first examples
    #[arg(long)]
    dry_run: bool,
    /// How many examples it shows
    #[arg(long, value_name = "N", default_value_t = 2, requires = "dry_run")]
    examples: usize,
    /// Writes a JSON object
    #[arg(long, requires = "dry_run")]
    json: bool,
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
            return Err(usage("FILE is missing; write: bantam train FILE.yaml --dry-run"));
        };
        let settings = Settings::read(file, &self.overrides).map_err(|error| refused(error.to_string()))?;
        if !self.dry_run {
            return Err(refused("training is not here yet; --dry-run shows what would be trained"));
        }
        let model = settings.text("model_name_or_path").unwrap_or_default();
        let source = chosen_model::open(Some(Path::new(&model)))?;
        let text = source.text_if_any()?;
        let config = source.files.tokenizer_config().map_err(|error| refused(error.to_string()))?;
        let spoken = match &text {
            Some(text) => Some(Spoken::new(&text.tokenizer, source.chat_template()?, config.as_deref())),
            None => None,
        };
        let seed = settings.count("seed").and_then(|seed| u64::try_from(seed).ok()).unwrap_or_default();
        let id_end = u32::try_from(source.spec.vocab).unwrap_or(u32::MAX);
        let prepared = prepare(&settings.data, settings.stage, seed, id_end, spoken.as_ref());
        let prepared = prepared.map_err(|error| refused(error.to_string()))?;
        let shown =
            Shown { source: &source, prepared: &prepared, spoken: spoken.as_ref(), count: self.examples };
        settings.notes.iter().for_each(|note| output::say(&format!("note: {note}")));
        match self.json {
            true => Ok(output::json(&shown.json())?),
            false => Ok(output::line(&output::harmless(&shown.text()))?),
        }
    }
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
    spoken: Option<&'a Spoken<'a>>,
    count: usize,
}

impl Shown<'_> {
    fn tokens(examples: &[Example]) -> (usize, usize) {
        let tokens = examples.iter().map(|example| example.ids.len()).sum();
        (tokens, examples.iter().map(Example::learnt).sum())
    }

    fn words(&self, ids: &[u32]) -> String {
        self.spoken.map(|spoken| spoken.tokenizer.decode(ids, false)).unwrap_or_default()
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
