//! `bantam score`: the logits of given tokens, into a file.

use std::path::PathBuf;

use bantam_core::Cpu;
use bantam_model::checkpoint::Dtype;
use bantam_model::checkpoint::writer::write_safetensors;
use bantam_model::memory;
use bantam_model::score;
use bantam_model::source::Source;
use clap::Args;
use serde_json::json;

use crate::adapter_flag::AdapterFlag;
use crate::chosen_model::ChosenModel;
use crate::daemon::DaemonFlags;
use crate::device_flags::DeviceFlags;
use crate::engine_flags::EngineFlags;
use crate::failure::{Failure, refused};
use crate::progress::Progress;
use crate::token_ids::{self, TokenIds};
use crate::{output, written_file};

/// Positions whose logits are computed together.
const LOGITS_ROWS: usize = 64;

/// Writes the logits of every position of a sequence to a file
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam score ./my-model --ids 1,2,3 --logits logits.safetensors\n  \
                        bantam score ./my-model --text \"Once upon a time\" --logits logits.safetensors")]
pub(crate) struct Score {
    #[command(flatten)]
    model: ChosenModel,
    /// Token ids, taken as they are
    #[arg(long, value_name = "IDS", required_unless_present = "text")]
    ids: Option<TokenIds>,
    /// A text instead of ids; special tokens are added as the tokenizer does
    #[arg(long, conflicts_with = "ids", allow_hyphen_values = true)]
    text: Option<String>,
    /// The file to write: one tensor `logits`, float32, tokens x vocabulary
    #[arg(long, value_name = "OUT.safetensors")]
    logits: PathBuf,
    /// Writes a JSON object about what was written
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    adapter: AdapterFlag,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Score {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(link) = self.daemon.find()? {
            link.cannot::<()>("it gives log-probabilities of tokens and not all logits")?;
        }
        let source = self.adapter.beside(self.model.open()?)?;
        let ids = self.ids(&source)?;
        token_ids::check(&source, &ids)?;
        check_length(&source, ids.len())?;
        let options = self.engine.options(&source.spec, || self.device.has_card(), ids.len(), 1, LOGITS_ROWS);
        let plan = source.plan(options, Cpu::detect())?;
        written_file::check(&self.logits, &source.checkpoint, Some(&source.files))?;
        let shape = [ids.len(), source.spec.vocab];
        let mut bytes = room(shape, plan.bytes() as u64)?;
        let mut engine = self.engine.load(&source, options, &self.device)?;
        let progress = Progress::counting("scoring".to_owned(), ids.len());
        score::logits::<Failure>(&mut engine, &ids, |values, done| {
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            progress.at(done);
            Ok(())
        })?;
        write_safetensors(&self.logits, &[("logits", Dtype::F32, &shape, &bytes)], &[])?;
        drop(progress);
        if self.json {
            let file = self.logits.display().to_string();
            output::json(&json!({ "logits": file, "dtype": "F32", "shape": shape, "bytes": bytes.len() }))?;
        }
        Ok(())
    }

    fn ids(&self, source: &Source) -> Result<Vec<u32>, Failure> {
        let ids = match (&self.ids, &self.text) {
            (Some(ids), _) => return Ok(ids.0.clone()),
            (None, text) => {
                let text = text.as_deref().unwrap_or_default();
                let ids = source.text()?.tokenizer.encode(text, true);
                ids.map_err(|error| source.tokenizer_error(error))?
            }
        };
        match ids.is_empty() {
            true => Err(refused("the text has no tokens, so there are no logits: give a longer one")),
            false => Ok(ids),
        }
    }
}

fn check_length(source: &Source, tokens: usize) -> Result<(), Failure> {
    let context = source.spec.context;
    match tokens <= context {
        true => Ok(()),
        false => Err(refused(format!(
            "{tokens} tokens are given, the context of {} has room for {context}: give fewer",
            source.folder().display()
        ))),
    }
}

/// Memory for the logits, which are written when all of them are there.
fn room(shape: [usize; 2], plan_bytes: u64) -> Result<Vec<u8>, Failure> {
    let needed = shape[0] as u64 * shape[1] as u64 * 4;
    let refusal = || {
        refused(format!(
            "the logits of {} tokens take {}, which does not fit into memory beside the model's {}: give fewer tokens",
            shape[0],
            output::bytes(needed),
            output::bytes(plan_bytes),
        ))
    };
    if memory::available().is_some_and(|available| needed.saturating_add(plan_bytes) > available) {
        return Err(refusal());
    }
    let mut bytes = Vec::new();
    let needed = usize::try_from(needed).map_err(|_| refusal())?;
    bytes.try_reserve_exact(needed).map_err(|_| refusal())?;
    Ok(bytes)
}
