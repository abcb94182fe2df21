//! Flags that decide which tokens come: each overrides the model's own file, which overrides the program's defaults.

use std::time::{SystemTime, UNIX_EPOCH};

use bantam_model::generation::GenerationFlags;
use clap::Args;

use crate::engine_flags::size;

/// How to choose tokens.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingFlags {
    /// New tokens at most [default: the model's, or 256]
    #[arg(long, value_name = "N", alias = "max-tokens")]
    max_new_tokens: Option<u64>,
    /// 0 takes the likeliest token [default: the model's, or 0.7]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Only the K likeliest tokens; 0 is off
    #[arg(long, value_name = "K")]
    top_k: Option<u64>,
    /// Only the likeliest tokens that add up to P [default: the model's, or 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Only tokens at least P times as likely as the likeliest; 0 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Only the most typical tokens that add up to P; 1 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    typical_p: Option<f64>,
    /// Makes tokens that have occurred less likely; 1 is off [default: the model's, or 1.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,
    /// Subtracted from tokens that were generated; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f64>,
    /// Subtracted for every time that a token was generated; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f64>,
    /// Repeats a run [default: from the clock]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Takes the likeliest token always, as --temperature 0 does
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// Ends the text before STR; may be repeated
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Goes on past the model's end of text
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingFlags {
    /// The flags as the model crate takes them, the seed always filled in.
    pub(crate) fn flags(&self) -> GenerationFlags {
        GenerationFlags {
            max_new_tokens: self.max_new_tokens.map(size),
            do_sample: self.greedy.then_some(false),
            temperature: self.temperature,
            top_k: self.top_k.map(size),
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: Some(self.seed.unwrap_or_else(seed_of_the_clock)),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            ..GenerationFlags::default()
        }
    }

    /// Whether text is needed to know when to stop.
    pub(crate) fn has_stop_strings(&self) -> bool {
        !self.stop.is_empty()
    }
}

/// A seed that differs from run to run, short enough to be typed again.
fn seed_of_the_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 % 1_000_000_000
}
