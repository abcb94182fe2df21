//! Rotary frequencies: one per pair of channels, bent for contexts longer than a model was first made for.
//!
//! Arithmetic is float32 in the reference's order, because a frequency's last bit counts after some thousand positions.

use serde_json::Value;

use crate::config::{Config, ConfigError};
use crate::families::{ROPE_TYPE_NAMES, ROPE_TYPES, RopeKind, YarnKeys};

/// Rotary positions of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies' geometric series.
    pub base: f64,
    /// Channels that are turned, an even number.
    pub width: usize,
    /// How the series is bent.
    pub scaling: Scaling,
    /// Sequences longer than so many positions have another bend.
    pub longer: Option<(usize, Scaling)>,
}

/// How frequencies are bent.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Low frequencies divided, high ones kept, the rest interpolated by wavelength.
    ByWavelength {
        /// Divisor of low frequencies.
        factor: f32,
        /// Bounds of the interpolation: original context over wavelength.
        low: f32,
        /// See `low`.
        high: f32,
        /// The context before bending.
        original: f32,
    },
    /// YaRN: interpolated by the number of turns within the original context; attention is rescaled.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Turns above which a frequency is kept.
        fast: f64,
        /// Turns below which it is divided.
        slow: f64,
        /// The context before bending.
        original: f64,
        /// Multiplies cosines and sines.
        attention: f32,
        /// Whether the interpolation's bounds are rounded to whole pairs.
        truncate: bool,
    },
    /// Each divided by a factor of its own; attention is rescaled.
    ByPair {
        /// The factors.
        factors: Vec<f32>,
        /// Multiplies cosines and sines.
        attention: f32,
    },
}

impl Scaling {
    /// YaRN whose numbers stand beside a configuration's other keys.
    pub(crate) fn beside(config: Config, keys: &YarnKeys) -> Result<Scaling, ConfigError> {
        let number = |(key, default)| config.first_number(&[key], default);
        let factor = number(keys.factor)?;
        if factor <= 1.0 {
            return Ok(Scaling::None);
        }
        Ok(Scaling::Yarn {
            factor,
            fast: number(keys.fast)?,
            slow: number(keys.slow)?,
            original: number(keys.original)?,
            attention: natural_attention(factor, 1.0) as f32,
            truncate: false,
        })
    }
}

impl RopeSpec {
    /// Reads `rope_scaling` or `rope_parameters`, which stand in `config`. `original` is the family's first context.
    pub(crate) fn read(
        config: Config,
        settings: Option<Config>,
        original: Option<usize>,
        base: f64,
        width: usize,
        context: usize,
    ) -> Result<RopeSpec, ConfigError> {
        let plain = RopeSpec { base, width, scaling: Scaling::None, longer: None };
        let Some(settings) = settings else {
            return Ok(plain);
        };
        // Older files say "type"; where both stand, the reference lets that one win.
        let name = match settings.text("type")? {
            Some(name) => name,
            None => settings.text("rope_type")?.unwrap_or("default"),
        };
        match ROPE_TYPES.iter().find(|(known, _)| *known == name).map(|(_, kind)| kind) {
            Some(RopeKind::ByPair) => {
                let original = config.size(ORIGINAL, 1 << 24)?.or(original);
                by_pair(settings, original, plain, context)
            }
            Some(kind) => Ok(RopeSpec { scaling: read_scaling(settings, *kind, context)?, ..plain }),
            None => Err(ConfigError::Unsupported {
                key: "rope_scaling.rope_type".to_owned(),
                found: format!("\"{name}\"").chars().take(64).collect(),
                supported: ROPE_TYPE_NAMES.to_owned(),
            }),
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            Scaling::Yarn { attention, .. } | Scaling::ByPair { attention, .. } => attention,
            _ => 1.0,
        }
    }

    /// Radians per position, for each pair of channels.
    pub fn frequencies(&self) -> Vec<f32> {
        self.bent(&self.scaling)
    }

    /// The same for sequences longer than so many positions, where those have their own.
    pub fn longer_frequencies(&self) -> Option<(usize, Vec<f32>)> {
        self.longer.as_ref().map(|(positions, scaling)| (*positions, self.bent(scaling)))
    }

    fn bent(&self, scaling: &Scaling) -> Vec<f32> {
        let plain = (0..self.width / 2).map(|i| {
            let exponent = (2 * i) as f32 / self.width as f32;
            self.base.powf(f64::from(exponent)) as f32
        });
        match *scaling {
            Scaling::None => plain.map(|power| 1.0 / power).collect(),
            Scaling::Linear { factor } => plain.map(|power| 1.0 / power / factor).collect(),
            Scaling::ByWavelength { factor, low, high, original } => plain
                .map(|power| {
                    let frequency = 1.0 / power;
                    let turns = original / (2.0 * std::f32::consts::PI / frequency);
                    if turns < low {
                        frequency / factor
                    } else if turns > high {
                        frequency
                    } else {
                        let smooth = (turns - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                })
                .collect(),
            Scaling::Yarn { factor, fast, slow, original, truncate, .. } => {
                let width = self.width as f64;
                // The pair whose frequency makes this many turns within the original context.
                let pair = |turns: f64| {
                    width * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * self.base.ln())
                };
                let (from, to) = (pair(fast), pair(slow));
                let (from, to) = if truncate { (from.floor(), to.ceil()) } else { (from, to) };
                let (from, mut to) = (from.max(0.0), to.min(width - 1.0));
                if from == to {
                    to += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(i, power)| {
                        let ramp = (((i as f64 - from) / (to - from)) as f32).clamp(0.0, 1.0);
                        let keep = 1.0 - ramp;
                        let divided = 1.0 / (factor as f32 * power);
                        divided * (1.0 - keep) + 1.0 / power * keep
                    })
                    .collect()
            }
            Scaling::ByPair { ref factors, .. } => {
                plain.zip(factors).map(|(power, factor)| 1.0 / (factor * power)).collect()
            }
        }
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// Factors pair by pair, one list for sequences up to the context that the model was first made for, one for longer
/// ones.
fn by_pair(
    settings: Config,
    original: Option<usize>,
    plain: RopeSpec,
    context: usize,
) -> Result<RopeSpec, ConfigError> {
    // Only beside the factors do the first context and the ratio of the two stand apart.
    let told = settings.number("factor")?.filter(|_| original.is_none());
    let original = match original {
        Some(original) => Some(original),
        None => settings.size(ORIGINAL, 1 << 24)?,
    };
    let ratio = original.map(|original| context as f64 / original as f64);
    let factor = told.or(ratio).unwrap_or(1.0);
    let original = original.unwrap_or(context);
    let attention = match settings.number("attention_factor")? {
        Some(attention) => attention,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    } as f32;
    let factors = |key: &str| {
        let expected = || format!("{} positive numbers, one per pair of channels", plain.width / 2);
        let Some(Value::Array(list)) = settings.get(key) else {
            return settings.wrong(key, expected());
        };
        let number = |value: &Value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0).map(|x| x as f32);
        match list.iter().map(number).collect::<Option<Vec<f32>>>() {
            Some(factors) if factors.len() == plain.width / 2 => Ok(Scaling::ByPair { factors, attention }),
            _ => settings.wrong(key, expected()),
        }
    };
    let (scaling, longer) = (factors("short_factor")?, factors("long_factor")?);
    Ok(RopeSpec { scaling, longer: (original < context).then_some((original, longer)), ..plain })
}

/// YaRN's own choice of what cosines and sines are multiplied by.
fn natural_attention(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

fn read_scaling(config: Config, kind: RopeKind, context: usize) -> Result<Scaling, ConfigError> {
    let needed = |key: &str| {
        config
            .number(key)?
            .ok_or(ConfigError::Missing { key: format!("rope_scaling.{key}"), expected: "a number" })
    };
    let original = || match config.number(ORIGINAL) {
        Ok(Some(original)) => Ok(original),
        Ok(None) => Ok(context as f64),
        Err(error) => Err(error),
    };
    match kind {
        RopeKind::Plain | RopeKind::ByPair => Ok(Scaling::None),
        RopeKind::Linear => Ok(Scaling::Linear { factor: needed("factor")? as f32 }),
        RopeKind::ByWavelength => {
            let (low, high) = (needed("low_freq_factor")? as f32, needed("high_freq_factor")? as f32);
            if low >= high {
                return config.wrong("high_freq_factor", "more than low_freq_factor");
            }
            let (factor, original) = (needed("factor")? as f32, original()? as f32);
            Ok(Scaling::ByWavelength { factor, low, high, original })
        }
        RopeKind::Yarn => {
            let factor = needed("factor")?;
            let natural = |mscale| natural_attention(factor, mscale);
            // Zero is how some files say "not set".
            let set = |key| match config.get(key).and_then(Value::as_f64) {
                Some(0.0) => Ok(None),
                _ => config.number(key),
            };
            let attention = match (set("attention_factor")?, set("mscale")?, set("mscale_all_dim")?) {
                (Some(attention), ..) => attention,
                (None, Some(mscale), Some(all)) => natural(mscale) / natural(all),
                _ => natural(1.0),
            };
            Ok(Scaling::Yarn {
                factor,
                fast: config.number("beta_fast")?.unwrap_or(32.0),
                slow: config.number("beta_slow")?.unwrap_or(1.0),
                original: original()?,
                attention: attention as f32,
                truncate: config.flag("truncate", true)?,
            })
        }
    }
}
