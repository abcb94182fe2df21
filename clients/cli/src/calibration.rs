//! Flags of the methods that see the model at work, and the text that they see it with.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::inventory::{self, Module, Role};
use bantam_model::source::Source;
use bantam_quantize::blueprint::Blueprint;
use bantam_quantize::calibrated::sample::{self, Written};
use bantam_quantize::calibrated::{Calibrated, Method, Planes, Settings, awq, gptq, memory, ternary};
use bantam_quantize::error::QuantizeError;
use bantam_quantize::form::Form;
use bantam_quantize::run::fingerprint;
use clap::Args;
use serde_json::{Value, json};

use crate::failure::{Failure, refused, usage};
use crate::progress::Progress;
use crate::quantize::check_length;
use crate::token_ids;

/// Sequences, and tokens of each.
const SEQUENCES: u64 = 128;
const LENGTH: u64 = 256;
/// Squares of inputs that are gathered at once: more of them, and experts pass by less often.
const SQUARES_BYTES: u64 = 1 << 30;
/// A part of the memory for them where there is little.
const SQUARES_SHARE: u64 = 8;
/// What a tokenizer takes, in sizes of its file.
const TOKENIZER: usize = 4;
/// Share of the mean that is added to the diagonal, as the tools do it.
const DAMP: f32 = 0.01;
/// Any: that it is the same in every run is what counts.
const SEED: u64 = 1;

/// How to calibrate.
#[derive(Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct Calibration {
    /// Text to calibrate with [default: the model writes its own]
    #[arg(long = "calibration", value_name = "FILE")]
    text: Option<PathBuf>,
    /// Sequences of it [default: 128]
    #[arg(long = "calibration-sequences", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    sequences: Option<u64>,
    /// Tokens of a sequence [default: 256]
    #[arg(long = "calibration-length", value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1 << 16))]
    length: Option<u64>,
    /// gptq, ptbitnet: share of the mean that is added to the diagonal of squared inputs [default: 0.01]
    #[arg(long, value_name = "X")]
    damp: Option<f32>,
}

/// What a method is told beside the form.
pub(crate) struct Fitting {
    /// Of ternary weights on average.
    pub(crate) bits: Option<f64>,
    /// AWQ.
    pub(crate) clip_search: bool,
    /// AWQ.
    pub(crate) scale_search: bool,
    /// Ternary: factors of columns.
    pub(crate) columns: bool,
    /// Ternary.
    pub(crate) mean_removal: bool,
    /// Ternary.
    pub(crate) equalise: bool,
}

/// A calibrated method, ready to begin.
pub(crate) struct Ready<'s> {
    /// It.
    pub(crate) method: Calibrated<'s>,
    /// What tells it from another one.
    pub(crate) told: Value,
}

/// Refuses a model whose matrices have no place for what the mean of their inputs makes.
fn check_biases(source: &Source) -> Result<(), Failure> {
    let has_bias = |module: &Module| {
        let bias = format!("{}.bias", module.name);
        module.role == Role::Layer && module.experts.is_none() && source.checkpoint.tensor(&bias).is_some()
    };
    match inventory::modules(source)?.iter().any(has_bias) {
        true => Ok(()),
        false => Err(usage(format!(
            "--mean-removal: expected a model whose matrices have biases, found none in {}: leave it out",
            source.folder().display()
        ))),
    }
}

impl Calibration {
    /// Whether a flag was given that only calibrated methods know.
    pub(crate) fn is_asked(&self) -> bool {
        self.text.is_some() || self.sequences.is_some() || self.length.is_some() || self.damp.is_some()
    }

    /// The text to calibrate with, where one is given.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.text.as_deref()
    }

    /// The share that is added to diagonals.
    pub(crate) fn damp(&self) -> Result<f32, Failure> {
        let damp = self.damp.unwrap_or(DAMP);
        match damp > 0.0 && damp.is_finite() {
            true => Ok(damp),
            false => Err(usage(format!("--damp: expected a number above 0, found {damp}"))),
        }
    }

    fn written(&self, source: &Source, threads: usize) -> Written {
        let length = (self.length.unwrap_or(LENGTH) as usize).min(source.spec.context);
        let sequences = self.sequences.unwrap_or(SEQUENCES) as usize;
        Written { sequences, length, seed: SEED, threads }
    }

    /// The most memory that it takes, and for what: a block, what the text is on its way through the blocks, squares of
    /// inputs; or the model itself, where it writes the text.
    pub(crate) fn memory_bytes(
        &self,
        blueprint: &Blueprint,
        settings: &Settings,
    ) -> Result<(u64, &'static str), Failure> {
        let source = blueprint.source;
        let written = self.written(source, 1);
        let bytes = memory::bytes(source, settings, written.sequences, Cpu::detect())?;
        let tokenizer = if self.text.is_some() { TOKENIZER * blueprint.copied_bytes() } else { 0 };
        let needed = (blueprint.memory_bytes() + bytes + tokenizer) as u64;
        let model = match self.text {
            Some(_) => 0,
            None => source.plan(sample::options(&written), Cpu::detect())?.bytes() as u64,
        };
        Ok(match model > needed {
            true => {
                (model, "the model that writes the text for its calibration, which --calibration FILE spares")
            }
            false => (needed, "calibration, which takes less with fewer --calibration-sequences"),
        })
    }

    /// How it is done, within `limit` bytes of memory as far as that can be chosen.
    pub(crate) fn settings(
        &self,
        source: &Source,
        form: Form,
        fitting: &Fitting,
        threads: usize,
        limit: Option<u64>,
    ) -> Result<Settings, Failure> {
        let damp = self.damp()?;
        check_length("--calibration-length", self.length, source)?;
        if self.damp.is_some() && matches!(form, Form::Awq { .. }) {
            return Err(usage(
                "--damp: expected --to gptq or --method ptbitnet, found --to awq: leave it out",
            ));
        }
        let method = match form {
            Form::Gptq { bits, group, symmetric, act_order } => {
                Method::Gptq(gptq::Settings { bits, group, act_order, symmetric, damp })
            }
            Form::Awq { group, zero_point } => {
                let &Fitting { clip_search, scale_search, .. } = fitting;
                Method::Awq(awq::Settings { group, zero_point, clip_search, scale_search })
            }
            Form::Ternary { group, planes, .. } => {
                let &Fitting { columns, mean_removal, equalise, .. } = fitting;
                if mean_removal {
                    check_biases(source)?;
                }
                let planes = fitting.bits.map_or(Planes::All(planes), Planes::Bits);
                let usual = ternary::Settings::default();
                let settings = ternary::Settings { group, damp, columns, mean_removal, equalise, ..usual };
                Method::Ternary(settings, planes)
            }
            _ => unreachable!("no other form has a calibrated method"),
        };
        let length = self.written(source, threads).length;
        let squares = limit.map_or(SQUARES_BYTES, |limit| SQUARES_BYTES.min(limit / SQUARES_SHARE));
        Ok(Settings { method, length, squares_bytes: squares as usize, correct: true, threads })
    }

    /// Refuses a text that is too short or no text, where one is given.
    pub(crate) fn check_text(&self, source: &Source, threads: usize) -> Result<(), Failure> {
        match &self.text {
            Some(path) => self.read(source, path, self.written(source, threads)).map(drop),
            None => Ok(()),
        }
    }

    /// Reads the text, or lets the model write it.
    pub(crate) fn ready<'s>(&self, source: &'s Source, settings: Settings) -> Result<Ready<'s>, Failure> {
        let written = self.written(source, settings.threads);
        let tokens = match &self.text {
            Some(path) => self.read(source, path, written)?,
            None => {
                let _progress = Progress::waiting("the model writes text to calibrate with".to_owned());
                sample::write(source, &written, Cpu::detect()).map_err(QuantizeError::from)?
            }
        };
        let (name, bits) = match settings.method {
            Method::Gptq(_) => ("gptq", None),
            Method::Awq(_) => ("awq", None),
            Method::Ternary(_, Planes::Bits(bits)) => ("ptbitnet", Some(bits)),
            Method::Ternary(..) => ("ptbitnet", None),
        };
        let told = json!({
            "name": name,
            "bits_asked": bits,
            "settings": format!("{:?}", settings.method),
            "calibration": {
                "text": if self.text.is_some() { "given" } else { "written by the model" },
                "sequences": tokens.len() / written.length,
                "length": written.length,
                "tokens_xxh3": fingerprint(&tokens),
            },
        });
        let method =
            Calibrated::new(source, settings, &tokens, Cpu::detect()).map_err(QuantizeError::from)?;
        Ok(Ready { method, told })
    }

    /// As many whole sequences as there are, and no more than asked for.
    fn read(&self, source: &Source, path: &PathBuf, written: Written) -> Result<Vec<u32>, Failure> {
        let text = fs::read_to_string(path).map_err(|source| Failure::Read {
            path: path.clone(),
            expected: "a text in UTF-8",
            source,
        })?;
        let mut tokens = sample::of_text(source, &text).map_err(QuantizeError::from)?;
        token_ids::check(source, &tokens)?;
        let sequences = (tokens.len() / written.length).min(written.sequences);
        if sequences == 0 {
            return Err(refused(format!(
                "{}: expected at least one sequence of {} tokens, found {}: give a longer text, or a smaller \
                 --calibration-length",
                path.display(),
                written.length,
                tokens.len()
            )));
        }
        tokens.truncate(sequences * written.length);
        Ok(tokens)
    }
}
