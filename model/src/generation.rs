//! How to generate: the program's defaults, under the model's `generation_config.json`, under the user's flags.
//!
//! Each layer wins over the one before, value by value. The result is plain numbers; nothing here runs a model.

use serde_json::{Map, Value};

use crate::foreign::clipped;
use crate::sampler::{SamplerError, SamplingParams};
use crate::stop::{StopError, StopStrings};

/// The largest number of tokens that a file or flag may ask for.
pub const TOKENS_MAX: usize = 1 << 31;

/// Why settings are refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerationError {
    /// The file is not a JSON object.
    #[error("{file}: expected a JSON object, found {reason}; fetch the file again")]
    NotJson {
        /// The file's name.
        file: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// A value of a file has the wrong type or range.
    #[error("{file}: expected `{key}` {expected}, found {found}; correct or remove the key")]
    Value {
        /// The file's name.
        file: &'static str,
        /// The key.
        key: &'static str,
        /// What may stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A count of tokens given by flag is out of range.
    #[error("expected max_new_tokens from 1 to {TOKENS_MAX}, found {found}; correct the flag")]
    MaxNewTokens {
        /// What was given.
        found: usize,
    },
    /// A sampling parameter given by flag is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplerError),
    /// The stop strings are not usable.
    #[error(transparent)]
    Stop(#[from] StopError),
}

/// What holds when no flag is given.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDefaults {
    /// False is greedy decoding.
    pub do_sample: bool,
    /// See `SamplingParams`, as for the next five.
    pub temperature: f64,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f64,
    /// 0 is off.
    pub min_p: f64,
    /// 1 is off.
    pub typical_p: f64,
    /// `None` where the model's file says nothing: the program's own penalty, or none when decoding is greedy.
    pub repetition_penalty: Option<f64>,
    /// Counts new tokens.
    pub max_new_tokens: usize,
    /// Counts prompt and new tokens; takes the place of `max_new_tokens` where the model's file has only this.
    pub max_length: Option<usize>,
    /// Tokens that end the text, from `generation_config.json`.
    pub eos: Vec<u32>,
    /// From `generation_config.json`.
    pub pad: Option<u32>,
    /// From `generation_config.json`.
    pub bos: Option<u32>,
}

/// The penalty of a sampled text where neither the model nor a flag names one.
pub const REPETITION_PENALTY: f64 = 1.1;

impl Default for GenerationDefaults {
    fn default() -> Self {
        GenerationDefaults {
            do_sample: true,
            temperature: 0.7,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: None,
            max_new_tokens: 256,
            max_length: None,
            eos: Vec::new(),
            pad: None,
            bos: None,
        }
    }
}

/// What the user asked for; `None` leaves the choice to the layers below.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationFlags {
    /// How many new tokens at most.
    pub max_new_tokens: Option<usize>,
    /// False is greedy, true samples even where the model's file says greedy.
    pub do_sample: Option<bool>,
    /// 0 is the plain argmax; anything else samples.
    pub temperature: Option<f64>,
    /// See `SamplingParams`, as for all up to `logit_bias`.
    pub top_k: Option<usize>,
    /// 1 is off.
    pub top_p: Option<f64>,
    /// 0 is off.
    pub min_p: Option<f64>,
    /// 1 is off.
    pub typical_p: Option<f64>,
    /// 1 is off.
    pub repetition_penalty: Option<f64>,
    /// 0 is off.
    pub presence_penalty: Option<f64>,
    /// 0 is off.
    pub frequency_penalty: Option<f64>,
    /// 0 is off.
    pub no_repeat_ngram: Option<usize>,
    /// Added to single logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None` is seed 0: the program is repeatable unless the caller brings its own randomness.
    pub seed: Option<u64>,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Go on past the end-of-text tokens.
    pub ignore_eos: bool,
}

/// Where else end-of-text tokens are named.
#[derive(Debug, Clone, Copy, Default)]
pub struct EosSources<'a> {
    /// `eos_token_id` of `config.json`, see `eos_of_config`.
    pub config: &'a [u32],
    /// The tokenizer's; counts only if no file names any.
    pub tokenizer: Option<u32>,
}

/// Everything that one generation needs to know besides model and prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationSettings {
    /// How many new tokens at most, unless `max_length` is set.
    pub max_new_tokens: usize,
    /// How many tokens prompt and answer may have together.
    pub max_length: Option<usize>,
    /// How to choose each token.
    pub sampling: SamplingParams,
    /// Tokens that end the text, ascending; empty to go on until the number is reached.
    pub eos: Vec<u32>,
    /// Go on past the end, also where the model's format says that a reply is over.
    pub ignore_eos: bool,
    /// Strings that end the text, checked.
    pub stop: Vec<String>,
}

impl GenerationSettings {
    /// How many tokens may follow a prompt of this length.
    pub fn new_tokens(&self, prompt_tokens: usize) -> usize {
        match self.max_length {
            Some(length) => length.saturating_sub(prompt_tokens),
            None => self.max_new_tokens,
        }
    }
}

impl GenerationDefaults {
    /// The program's defaults overlaid by the model's `generation_config.json`, if it has one.
    pub fn of_model(generation_config: Option<&[u8]>) -> Result<Self, GenerationError> {
        let mut defaults = Self::default();
        if let Some(bytes) = generation_config {
            defaults.overlay(&File::parse("generation_config.json", bytes)?)?;
        }
        Ok(defaults)
    }

    fn overlay(&mut self, file: &File) -> Result<(), GenerationError> {
        file.boolean("do_sample", &mut self.do_sample)?;
        file.number("temperature", "as a number of 0 or more", |x| x >= 0.0, &mut self.temperature)?;
        file.count("top_k", 0, &mut self.top_k)?;
        file.number("top_p", "as a number from 0 to 1", |x| (0.0..=1.0).contains(&x), &mut self.top_p)?;
        file.number("min_p", "as a number from 0 to 1", |x| (0.0..=1.0).contains(&x), &mut self.min_p)?;
        file.number(
            "typical_p",
            "as a number above 0 and up to 1",
            |x| x > 0.0 && x <= 1.0,
            &mut self.typical_p,
        )?;
        let mut penalty = f64::NAN;
        file.number("repetition_penalty", "as a number above 0", |x| x > 0.0, &mut penalty)?;
        if !penalty.is_nan() {
            self.repetition_penalty = Some(penalty);
        }
        let mut max_length = 0;
        file.count("max_length", 1, &mut max_length)?;
        // As in transformers, a number of new tokens has precedence over a length.
        if file.get("max_new_tokens").is_some() {
            file.count("max_new_tokens", 1, &mut self.max_new_tokens)?;
        } else if max_length > 0 {
            self.max_length = Some(max_length);
        }
        self.eos = file.ids("eos_token_id")?;
        self.pad = file.ids("pad_token_id")?.first().copied();
        self.bos = file.ids("bos_token_id")?.first().copied();
        Ok(())
    }

    /// Lays the flags over these defaults.
    pub fn settings(
        &self,
        flags: &GenerationFlags,
        eos: EosSources<'_>,
    ) -> Result<GenerationSettings, GenerationError> {
        let sampling = self.sampling(flags);
        sampling.check()?;
        StopStrings::new(&flags.stop)?;
        let (max_new_tokens, max_length) = match flags.max_new_tokens {
            Some(found) if found == 0 || found > TOKENS_MAX => {
                return Err(GenerationError::MaxNewTokens { found });
            }
            Some(count) => (count, None),
            None => (self.max_new_tokens, self.max_length),
        };
        let eos = if flags.ignore_eos { Vec::new() } else { self.eos_with(eos) };
        let (ignore_eos, stop) = (flags.ignore_eos, flags.stop.clone());
        Ok(GenerationSettings { max_new_tokens, max_length, sampling, eos, ignore_eos, stop })
    }

    fn sampling(&self, flags: &GenerationFlags) -> SamplingParams {
        // The nearest layer that speaks decides whether to sample: a temperature flag does, too.
        let temperature = flags.temperature.unwrap_or(self.temperature);
        let sample = flags.do_sample.unwrap_or(flags.temperature.is_some() || self.do_sample);
        let temperature = if sample { temperature } else { 0.0 };
        // `--temperature 0` is the plain argmax: only a flag brings a penalty back. Where the model's own file asks
        // for greedy decoding, a penalty in that file holds, as in transformers; the program's own never does.
        let asked_by_flag = flags.temperature == Some(0.0) || flags.do_sample == Some(false);
        let unasked_penalty = match (temperature == 0.0, asked_by_flag) {
            (true, true) => 1.0,
            (true, false) => self.repetition_penalty.unwrap_or(1.0),
            (false, _) => self.repetition_penalty.unwrap_or(REPETITION_PENALTY),
        };
        SamplingParams {
            temperature,
            top_k: flags.top_k.unwrap_or(self.top_k),
            top_p: flags.top_p.unwrap_or(self.top_p),
            min_p: flags.min_p.unwrap_or(self.min_p),
            typical_p: flags.typical_p.unwrap_or(self.typical_p),
            repetition_penalty: flags.repetition_penalty.unwrap_or(unasked_penalty),
            presence_penalty: flags.presence_penalty.unwrap_or(0.0),
            frequency_penalty: flags.frequency_penalty.unwrap_or(0.0),
            no_repeat_ngram: flags.no_repeat_ngram.unwrap_or(0),
            logit_bias: flags.logit_bias.clone(),
            seed: flags.seed.unwrap_or(0),
            ..SamplingParams::default()
        }
    }

    fn eos_with(&self, sources: EosSources<'_>) -> Vec<u32> {
        let mut ids = self.eos.clone();
        ids.extend_from_slice(sources.config);
        if ids.is_empty() {
            ids.extend(sources.tokenizer);
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// `eos_token_id` of a `config.json`: none, one or several.
pub fn eos_of_config(config_json: &[u8]) -> Result<Vec<u32>, GenerationError> {
    File::parse("config.json", config_json)?.ids("eos_token_id")
}

/// A JSON file whose values are read one by one; a null counts as absent.
struct File {
    name: &'static str,
    object: Map<String, Value>,
}

impl File {
    fn parse(name: &'static str, bytes: &[u8]) -> Result<Self, GenerationError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let object = serde_json::from_slice(bytes)
            .map_err(|error| GenerationError::NotJson { file: name, reason: clipped(error) })?;
        Ok(File { name, object })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn refuse(&self, key: &'static str, expected: &'static str, value: &Value) -> GenerationError {
        let found = value.to_string().chars().take(60).collect();
        GenerationError::Value { file: self.name, key, expected, found }
    }

    fn boolean(&self, key: &'static str, target: &mut bool) -> Result<(), GenerationError> {
        if let Some(value) = self.get(key) {
            *target = value.as_bool().ok_or_else(|| self.refuse(key, "as true or false", value))?;
        }
        Ok(())
    }

    fn number(
        &self,
        key: &'static str,
        expected: &'static str,
        within: impl Fn(f64) -> bool,
        target: &mut f64,
    ) -> Result<(), GenerationError> {
        if let Some(value) = self.get(key) {
            // The logits are float32: a number that is zero or infinite there is out of range as well.
            let fits = |x: &f64| within(*x) && (*x as f32).is_finite() && (*x == 0.0 || (*x as f32) != 0.0);
            *target = value.as_f64().filter(fits).ok_or_else(|| self.refuse(key, expected, value))?;
        }
        Ok(())
    }

    fn count(&self, key: &'static str, least: usize, target: &mut usize) -> Result<(), GenerationError> {
        if let Some(value) = self.get(key) {
            let expected =
                if least == 0 { "as a whole number of 0 or more" } else { "as a whole number of 1 or more" };
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            *target = number
                .filter(|number| (least..=TOKENS_MAX).contains(number))
                .ok_or_else(|| self.refuse(key, expected, value))?;
        }
        Ok(())
    }

    /// One id or a list of ids; -1 is how old files say "none".
    fn ids(&self, key: &'static str) -> Result<Vec<u32>, GenerationError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let single = std::slice::from_ref(value);
        let values = value.as_array().map_or(single, Vec::as_slice);
        let mut ids = Vec::with_capacity(values.len());
        for value in values {
            match value.as_i64() {
                Some(-1) => {}
                Some(id) if u32::try_from(id).is_ok() => ids.extend(u32::try_from(id)),
                _ => return Err(self.refuse(key, "as a token id or a list of token ids", value)),
            }
        }
        Ok(ids)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    fn settings(file: &str, flags: GenerationFlags) -> GenerationSettings {
        let defaults = GenerationDefaults::of_model(Some(file.as_bytes())).unwrap();
        defaults.settings(&flags, EosSources::default()).unwrap()
    }

    fn refused(file: &str) -> String {
        GenerationDefaults::of_model(Some(file.as_bytes())).unwrap_err().to_string()
    }

    #[test]
    fn the_program_has_defaults() {
        let defaults = GenerationDefaults::of_model(None).unwrap();
        let settings = defaults.settings(&GenerationFlags::default(), EosSources::default()).unwrap();
        let expected = SamplingParams {
            temperature: 0.7,
            top_p: 0.95,
            repetition_penalty: 1.1,
            ..SamplingParams::default()
        };
        assert_eq!(settings.sampling, expected);
        assert_eq!(settings.new_tokens(1000), 256);
    }

    #[test]
    fn the_models_file_wins_over_defaults_and_flags_over_both() {
        let file = r#"{"temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 99,
            "new_key": {}, "min_p": null}"#;
        let flags =
            GenerationFlags { top_p: Some(0.5), max_new_tokens: Some(7), ..GenerationFlags::default() };
        let settings = settings(file, flags);
        let s = &settings.sampling;
        assert_eq!((s.temperature, s.top_p, s.top_k, s.repetition_penalty), (0.6, 0.5, 20, 1.1));
        assert_eq!(settings.new_tokens(3), 7);
    }

    #[test]
    fn greedy_has_no_penalty_unless_asked() {
        let of = |file, flags: GenerationFlags| {
            let sampling = settings(file, flags).sampling;
            (sampling.temperature, sampling.repetition_penalty)
        };
        let zero = GenerationFlags { temperature: Some(0.0), ..GenerationFlags::default() };
        let zero_with_penalty = GenerationFlags { repetition_penalty: Some(1.2), ..zero.clone() };
        let warm = GenerationFlags { temperature: Some(0.8), ..GenerationFlags::default() };
        let none = GenerationFlags::default;
        assert_eq!(of("{}", zero.clone()), (0.0, 1.0));
        assert_eq!(of(r#"{"repetition_penalty": 1.3}"#, zero), (0.0, 1.0));
        assert_eq!(of(r#"{"repetition_penalty": 1.3}"#, zero_with_penalty), (0.0, 1.2));
        assert_eq!(of(r#"{"do_sample": false, "temperature": 0.6}"#, none()), (0.0, 1.0));
        assert_eq!(of(r#"{"do_sample": false, "repetition_penalty": 1.3}"#, none()), (0.0, 1.3));
        assert_eq!(of(r#"{"do_sample": false}"#, warm), (0.8, 1.1));
    }

    #[test]
    fn a_length_holds_only_without_a_number_of_new_tokens() {
        assert_eq!(settings(r#"{"max_length": 100}"#, GenerationFlags::default()).new_tokens(30), 70);
        assert_eq!(settings(r#"{"max_length": 100}"#, GenerationFlags::default()).new_tokens(300), 0);
        assert_eq!(
            settings(r#"{"max_length": 9, "max_new_tokens": 5}"#, GenerationFlags::default()).new_tokens(30),
            5
        );
        let flags = GenerationFlags { max_new_tokens: Some(4), ..GenerationFlags::default() };
        assert_eq!(settings(r#"{"max_length": 100}"#, flags).new_tokens(30), 4);
    }

    #[test]
    fn ends_of_text_are_united() {
        let eos = |file: &str, config: &[u32], ignore_eos| {
            let flags = GenerationFlags { ignore_eos, ..GenerationFlags::default() };
            let sources = EosSources { config, tokenizer: Some(9) };
            GenerationDefaults::of_model(Some(file.as_bytes()))
                .unwrap()
                .settings(&flags, sources)
                .unwrap()
                .eos
        };
        assert_eq!(eos(r#"{"eos_token_id": [4, 1]}"#, &[4, 2], false), [1, 2, 4]);
        assert_eq!(eos(r#"{"eos_token_id": 4}"#, &[], false), [4]);
        assert_eq!(eos(r#"{"eos_token_id": -1}"#, &[], false), [9]);
        assert_eq!(eos(r#"{"eos_token_id": 4}"#, &[], true), [0; 0]);
        assert_eq!(eos_of_config(br#"{"eos_token_id": [7, 8]}"#).unwrap(), [7, 8]);
    }

    #[test]
    fn wrong_values_name_file_and_key() {
        let message = refused(r#"{"temperature": "warm"}"#);
        assert_eq!(
            message,
            "generation_config.json: expected `temperature` as a number of 0 or more, found \"warm\"; \
             correct or remove the key"
        );
        for (file, key) in [
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"temperature": 1e-80}"#, "temperature"),
            (r#"{"top_p": 1.5}"#, "top_p"),
            (r#"{"top_k": -3}"#, "top_k"),
            (r#"{"typical_p": 0}"#, "typical_p"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"max_new_tokens": 0}"#, "max_new_tokens"),
            (r#"{"max_length": 1e30}"#, "max_length"),
            (r#"{"eos_token_id": ["a"]}"#, "eos_token_id"),
            (r#"{"eos_token_id": -5}"#, "eos_token_id"),
            (r#"{"do_sample": 1}"#, "do_sample"),
        ] {
            assert!(refused(file).contains(&format!("`{key}`")), "{file}");
        }
        assert!(refused("[1]").contains("generation_config.json: expected a JSON object"));
    }

    #[test]
    fn wrong_flags_are_refused() {
        let refused = |flags: GenerationFlags| {
            GenerationDefaults::default().settings(&flags, EosSources::default()).unwrap_err()
        };
        let flags = GenerationFlags::default;
        assert!(matches!(
            refused(GenerationFlags { top_p: Some(2.0), ..flags() }),
            GenerationError::Sampling(_)
        ));
        assert!(matches!(
            refused(GenerationFlags { stop: vec![String::new()], ..flags() }),
            GenerationError::Stop(_)
        ));
        assert!(matches!(
            refused(GenerationFlags { max_new_tokens: Some(0), ..flags() }),
            GenerationError::MaxNewTokens { found: 0 }
        ));
    }
}
