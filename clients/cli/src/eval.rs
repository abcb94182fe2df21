//! `bantam eval`: how good a model is at something.

use std::fs;
use std::path::PathBuf;

use bantam_core::Cpu;
use bantam_model::score;
use bantam_model::source::Source;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::adapter_flag::AdapterFlag;
use crate::chosen_model::ChosenModel;
use crate::device_flags::DeviceFlags;
use crate::engine_flags::{ContextFlag, EngineFlags};
use crate::failure::{Failure, refused, usage};
use crate::output;
use crate::progress::Progress;
use crate::token_ids;

/// Positions whose logits are computed together.
const LOGITS_ROWS: usize = 64;
/// Tokens that are computed together, and windows: short windows run side by side.
const STEP_TOKENS: usize = 512;
const WINDOWS_MAX: usize = 16;

/// Measures how good a model is
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam eval perplexity ./my-model --text-file wiki.txt --context 1024")]
pub(crate) struct Eval {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Perplexity(Perplexity),
}

impl Eval {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Perplexity(perplexity) => perplexity.run(),
        }
    }
}

/// Perplexity of a text, in windows side by side; each scores all its tokens but the first
#[derive(Args)]
#[command(
    after_help = "Examples:\n  bantam eval perplexity ./my-model --text-file wiki.txt --context 1024\n  \
                        bantam eval perplexity ./my-model --text-file wiki.txt --precision exact --json"
)]
struct Perplexity {
    #[command(flatten)]
    model: ChosenModel,
    /// The text, in UTF-8; no special tokens are added
    #[arg(long, value_name = "F")]
    text_file: PathBuf,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    context: ContextFlag,
    #[command(flatten)]
    adapter: AdapterFlag,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    device: DeviceFlags,
}

impl Perplexity {
    fn run(self) -> Result<(), Failure> {
        let source = self.adapter.beside(self.model.open()?)?;
        let window = self.context.of(&source.spec);
        if window < 2 {
            return Err(usage(
                "--context 1 leaves nothing to score: a window's first token is not scored; choose 2 or more",
            ));
        }
        let sequences = (STEP_TOKENS / window).clamp(1, WINDOWS_MAX);
        let mut options =
            self.engine.options(&source.spec, || self.device.has_card(), window, sequences, LOGITS_ROWS);
        source.plan(options, Cpu::detect())?;
        let ids = self.ids(&source, window)?;
        options.sequences = options.sequences.min(ids.len() / window);
        let mut engine = self.engine.load(&source, options, &self.device)?;
        let progress = Progress::counting("perplexity".to_owned(), ids.len() / window);
        let result = score::perplexity(&mut engine, &ids, window, |done| progress.at(done))?;
        drop(progress);
        if self.json {
            output::json(&json!({
                "perplexity": result.value(),
                "tokens": result.tokens,
                "windows": result.windows,
                "nats_per_token": result.nats / result.tokens as f64,
                "context": window,
            }))?;
        } else {
            output::line(&format!(
                "perplexity {:.4} over {} tokens in {} windows of {window}",
                result.value(),
                result.tokens,
                result.windows
            ))?;
        }
        Ok(())
    }

    /// The tokens of the text, enough for a window.
    fn ids(&self, source: &Source, window: usize) -> Result<Vec<u32>, Failure> {
        let text = fs::read_to_string(&self.text_file).map_err(|source| Failure::Read {
            path: self.text_file.clone(),
            expected: "a text in UTF-8",
            source,
        })?;
        let progress = Progress::waiting(format!("reading {}", self.text_file.display()));
        let ids = source.text()?.tokenizer.encode(&text, false);
        drop(progress);
        let ids = ids.map_err(|error| source.tokenizer_error(error))?;
        token_ids::check(source, &ids)?;
        match ids.len() >= window {
            true => Ok(ids),
            false => Err(refused(format!(
                "{}: expected at least one window of {window} tokens, found {} tokens: give a longer text or a \
                 smaller --context",
                self.text_file.display(),
                ids.len()
            ))),
        }
    }
}
