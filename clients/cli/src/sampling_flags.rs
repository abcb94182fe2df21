//! Flags that decide which tokens come: each overrides the model's own file, which overrides the program's defaults.

use std::time::{SystemTime, UNIX_EPOCH};

use bantam_model::generation::GenerationFlags;
use clap::{Args, Command, FromArgMatches};

use crate::engine_flags::size;
use crate::failure::{Failure, usage};

/// How to choose tokens.
#[derive(Debug, Clone, Args)]
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
            seed: Some(self.seed()),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            ..GenerationFlags::default()
        }
    }

    /// The seed that was given, or one from the clock.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(seed_of_the_clock)
    }

    /// The same flags with one changed, spelled as on the command line but without its dashes.
    pub(crate) fn with(&self, key: &str, value: Option<&str>) -> Result<Self, Failure> {
        let key = key.trim_start_matches('-').replace('_', "-");
        // What a command line has by leaving a flag out.
        let off = match (key.as_str(), value) {
            ("greedy", Some("false")) => Some(SamplingFlags { greedy: false, ..self.clone() }),
            ("ignore-eos", Some("false")) => Some(SamplingFlags { ignore_eos: false, ..self.clone() }),
            ("stop", None) => Some(SamplingFlags { stop: Vec::new(), ..self.clone() }),
            _ => None,
        };
        if let Some(off) = off {
            return Ok(off);
        }
        let flag = match value {
            Some("true") if ["greedy", "ignore-eos"].contains(&key.as_str()) => format!("--{key}"),
            Some(value) => format!("--{key}={value}"),
            None => format!("--{key}"),
        };
        let command = SamplingFlags::augment_args_for_update(Command::new("set").no_binary_name(true));
        let names = command.get_arguments().filter_map(|argument| argument.get_long()).collect::<Vec<_>>();
        if !names.contains(&key.as_str()) {
            return Err(usage(format!("{key} is not a sampling flag; there are: {}", names.join(", "))));
        }
        // Only its first line is about the flag; the rest is about a command line that nobody has written.
        let wrong = |error: clap::Error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            usage(line.strip_prefix("error: ").unwrap_or(line).replace("--", ""))
        };
        let mut matches = command.try_get_matches_from([flag]).map_err(wrong)?;
        let mut changed = self.clone();
        // A temperature takes back what `greedy` said.
        changed.greedy &= key != "temperature";
        changed.update_from_arg_matches_mut(&mut matches).map_err(wrong)?;
        Ok(changed)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flag_can_be_changed() {
        let command = SamplingFlags::augment_args(Command::new("x").no_binary_name(true));
        let matches = command.get_matches_from(["--top-k", "5", "--seed", "9"]);
        let flags = SamplingFlags::from_arg_matches(&matches).expect("the flags are sound");
        let warm = flags.with("temperature", Some("0.25")).expect("a number").flags();
        assert_eq!((warm.temperature, warm.top_k, warm.seed), (Some(0.25), Some(5), Some(9)));
        let greedy = flags.with("greedy", None).expect("it takes no value");
        assert_eq!(greedy.flags().do_sample, Some(false));
        assert_eq!(greedy.with("temperature", Some("1")).expect("a number").flags().do_sample, None);
        let off = greedy.with("greedy", Some("false")).expect("it can be taken back");
        assert_eq!(off.flags().do_sample, None);
        let stops = flags.with("stop", Some("END")).expect("a text");
        assert_eq!(stops.flags().stop, ["END"]);
        assert!(!stops.with("stop", None).expect("none is an answer").has_stop_strings());
        let on = flags.with("ignore_eos", Some("true")).expect("a switch");
        assert!(
            on.flags().ignore_eos && !on.with("ignore_eos", Some("false")).expect("too").flags().ignore_eos
        );
        assert_eq!(
            flags.with("max_new_tokens", Some("7")).expect("a number").flags().max_new_tokens,
            Some(7)
        );
        let said = |key, value| flags.with(key, value).expect_err("wrong").to_string();
        assert!(said("warmth", Some("1")).contains("temperature, "));
        assert!(said("top_k", Some("many")).contains("many"));
        assert!(said("top_k", None).contains("top-k"));
    }
}
