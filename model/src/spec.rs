//! What a decoder is made of, as plain data: read once from `config.json` through a family's table entry, checked here,
//! and from then on free of names.

use bantam_core::{Activation, NormKind};
use serde_json::Value;

use crate::config::{Config, ConfigError, kind};

use crate::families::{FAMILIES, Family, Names};
use crate::rope::RopeSpec;

/// A norm without its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Its statistic.
    pub kind: NormKind,
    /// Added under the root.
    pub epsilon: f32,
    /// Added to the weight.
    pub weight_shift: f32,
    /// Whether it has a bias.
    pub bias: bool,
}

/// How a layer's two blocks are added to the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// Attention first; the feed-forward block sees its result.
    Sequential,
    /// Both see the layer's input.
    Parallel,
}

/// Attention of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_width: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Positions that a token sees; all where `None`.
    pub window: Option<usize>,
    /// Which of the model's rotary tables.
    pub rope: usize,
    /// Biases of query, key, value.
    pub input_bias: bool,
    /// Bias of the output projection.
    pub output_bias: bool,
}

/// Feed-forward block of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpSpec {
    /// Hidden units.
    pub width: usize,
    /// Their bend.
    pub activation: Activation,
    /// Whether a second projection multiplies it.
    pub gated: bool,
    /// Biases of its projections.
    pub bias: bool,
}

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// How its blocks are added.
    pub residual: Residual,
    /// Norm before each block.
    pub norm: NormSpec,
    /// Attention.
    pub attention: AttentionSpec,
    /// Feed-forward.
    pub mlp: MlpSpec,
}

/// A whole decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// For reports.
    pub family: &'static str,
    /// Where its tensors are.
    pub names: &'static Names,
    /// Channels of the stream.
    pub hidden: usize,
    /// Rows of embedding and head.
    pub vocab: usize,
    /// Positions that it was made for.
    pub context: usize,
    /// Its layers.
    pub layers: Vec<LayerSpec>,
    /// Norm before the head.
    pub final_norm: NormSpec,
    /// Rotary tables.
    pub ropes: Vec<RopeSpec>,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Ends of text that the configuration names.
    pub eos: Vec<u32>,
}

impl ModelSpec {
    /// Reads `config.json`.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| ConfigError::NotAnObject { found: crate::foreign::clipped(error) })?;
        let Value::Object(map) = value else {
            return Err(ConfigError::NotAnObject { found: kind(&value).to_owned() });
        };
        let config = Config(&map);
        config.build(config.family()?)
    }

    /// Parameters of all matrices and vectors, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        let norm = |n: &NormSpec| (self.hidden * (1 + usize::from(n.bias))) as u64;
        let matrix =
            |rows: usize, columns: usize, bias: bool| (rows * columns + rows * usize::from(bias)) as u64;
        let heads = if self.tied { 1 } else { 2 };
        let layers = self.layers.iter().map(|layer| {
            let (a, m) = (&layer.attention, &layer.mlp);
            let (q, kv) = (a.heads * a.head_width, a.kv_heads * a.head_width);
            2 * norm(&layer.norm)
                + matrix(q, self.hidden, a.input_bias)
                + 2 * matrix(kv, self.hidden, a.input_bias)
                + matrix(self.hidden, q, a.output_bias)
                + (1 + u64::from(m.gated)) * matrix(m.width, self.hidden, m.bias)
                + matrix(self.hidden, m.width, m.bias)
        });
        heads * matrix(self.vocab, self.hidden, false) + norm(&self.final_norm) + layers.sum::<u64>()
    }
}

impl Config<'_> {
    fn family(self) -> Result<&'static Family, ConfigError> {
        let found = self
            .text("model_type")?
            .ok_or(ConfigError::Missing { key: "model_type".to_owned(), expected: "the family's name" })?;
        FAMILIES.iter().find(|family| family.name == found).ok_or_else(|| ConfigError::UnknownFamily {
            found: found.chars().take(64).collect(),
            known: FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "),
        })
    }

    fn build(self, family: &'static Family) -> Result<ModelSpec, ConfigError> {
        if let Some(quantization) = self.get("quantization_config") {
            let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("some method");
            return Err(ConfigError::Unsupported {
                key: "quantization_config".to_owned(),
                found: format!("a checkpoint quantized by {method}").chars().take(80).collect(),
                supported: "float32, bfloat16 and float16 weights",
            });
        }
        const WIDE: usize = 1 << 20;
        let hidden = self.needed_size("hidden_size", WIDE)?;
        let layers = self.needed_size("num_hidden_layers", 4096)?;
        let vocab = self.needed_size("vocab_size", 1 << 24)?;
        let context = self.size("max_position_embeddings", 1 << 24)?.unwrap_or(family.context);
        let norm = NormSpec {
            kind: family.norm,
            epsilon: self.first_number(&[family.epsilon.0], family.epsilon.1)? as f32,
            weight_shift: family.weight_shift,
            bias: family.norm == NormKind::Layer,
        };
        let attention = self.attention(family, hidden)?;
        let mlp = MlpSpec {
            width: self.needed_size("intermediate_size", 1 << 22)?,
            activation: self.activation(family.activation)?,
            gated: family.names.gate.is_some(),
            bias: family.mlp_bias.of(self)?,
        };
        let parallel = match family.parallel {
            Some((key, default)) => self.flag(key, default)?,
            None => false,
        };
        let residual = if parallel { Residual::Parallel } else { Residual::Sequential };
        let layers = (0..layers)
            .map(|layer| {
                let window = self.window(family, layer)?;
                Ok(LayerSpec { residual, norm, attention: AttentionSpec { window, ..attention }, mlp })
            })
            .collect::<Result<_, ConfigError>>()?;
        Ok(ModelSpec {
            family: family.name,
            names: &family.names,
            hidden,
            vocab,
            context,
            layers,
            final_norm: norm,
            ropes: vec![self.rope(family, attention.head_width, context)?],
            embedding_scale: 1.0,
            tied: self.flag("tie_word_embeddings", family.tied)?,
            eos: self.eos()?,
        })
    }

    fn attention(self, family: &Family, hidden: usize) -> Result<AttentionSpec, ConfigError> {
        let heads = self.needed_size("num_attention_heads", 1 << 14)?;
        // A family without groups ignores a stray key, as the reference does.
        let kv_heads = match family.grouped {
            true => self.size("num_key_value_heads", 1 << 14)?.unwrap_or(heads),
            false => heads,
        };
        if !heads.is_multiple_of(kv_heads) {
            return self.wrong("num_key_value_heads", format!("a divisor of num_attention_heads, {heads}"));
        }
        let head_width = match self.size("head_dim", bantam_core::ops::attention::HEAD_WIDTH_MAX)? {
            Some(width) => width,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return self.wrong("hidden_size", format!("a multiple of num_attention_heads, {heads}"));
            }
        };
        if head_width > bantam_core::ops::attention::HEAD_WIDTH_MAX {
            return self.wrong("num_attention_heads", "heads of at most 512 channels");
        }
        Ok(AttentionSpec {
            heads,
            kv_heads,
            head_width,
            scale: (1.0 / (head_width as f64).sqrt()) as f32,
            window: None,
            rope: 0,
            input_bias: family.input_bias.of(self)?,
            output_bias: family.output_bias.of(self)?,
        })
    }

    fn activation(self, (key, default): (&str, &'static str)) -> Result<Activation, ConfigError> {
        let found = self.text(key)?.unwrap_or(default);
        match found {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            _ => Err(ConfigError::Unsupported {
                key: key.to_owned(),
                found: format!("\"{found}\"").chars().take(64).collect(),
                supported: "silu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu",
            }),
        }
    }

    /// The window of one layer: `layer_types` decides where it is given, otherwise the family's own flags.
    fn window(self, family: &Family, layer: usize) -> Result<Option<usize>, ConfigError> {
        let Some(rule) = &family.window else {
            return Ok(None);
        };
        let width = match self.0.contains_key(rule.key) {
            true => self.size(rule.key, usize::MAX)?,
            false => rule.width,
        };
        let Some(width) = width else {
            return Ok(None);
        };
        if let Some(flag) = rule.flag
            && !self.flag(flag, false)?
        {
            return Ok(None);
        }
        if let Some(Value::Array(types)) = self.get("layer_types") {
            return match types.get(layer).and_then(Value::as_str) {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(width)),
                _ => self.wrong("layer_types", "full_attention or sliding_attention for every layer"),
            };
        }
        let first = match rule.first_layer {
            Some((key, default)) => match self.get(key) {
                None => default,
                Some(value) => match value.as_u64() {
                    Some(first) => usize::try_from(first).unwrap_or(usize::MAX),
                    None => return self.wrong(key, "a whole number"),
                },
            },
            None => 0,
        };
        Ok((layer >= first).then_some(width))
    }

    /// Rotary settings: `rope_parameters` (newer files) or `rope_scaling` beside top-level keys.
    fn rope(self, family: &Family, head_width: usize, context: usize) -> Result<RopeSpec, ConfigError> {
        let scaling = match self.get("rope_parameters").or_else(|| self.get("rope_scaling")) {
            None => None,
            Some(Value::Object(map)) => Some(Config(map)),
            Some(_) => return self.wrong("rope_scaling", "an object"),
        };
        let nested = |keys: &[&str], default: f64| match scaling {
            Some(scaling) => scaling.first_number(keys, default),
            None => Ok(default),
        };
        let base = nested(&["rope_theta"], self.first_number(family.rope_base.0, family.rope_base.1)?)?;
        let fraction = nested(
            &["partial_rotary_factor"],
            self.first_number(family.rope_fraction.0, family.rope_fraction.1)?,
        )?;
        // Rounded down, as the reference rounds; pairs need an even number.
        let width = (head_width as f64 * fraction) as usize;
        if fraction > 1.0 || width == 0 || !width.is_multiple_of(2) {
            let mut keys = family.rope_fraction.0.iter().copied();
            return self.wrong(
                keys.find(|key| self.get(key).is_some()).unwrap_or("head_dim"),
                format!(
                    "a fraction of the {head_width} channels of a head that is an even number of channels"
                ),
            );
        }
        RopeSpec::read(scaling, base, width, context)
    }

    fn eos(self) -> Result<Vec<u32>, ConfigError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get("eos_token_id") {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) if ids.len() <= 64 => match ids.iter().map(id).collect() {
                Some(ids) => Ok(ids),
                None => self.wrong("eos_token_id", "token ids"),
            },
            Some(value) => match id(value) {
                Some(id) => Ok(vec![id]),
                None => self.wrong("eos_token_id", "a token id or a list of them"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: &str) -> String {
        ModelSpec::parse(json.as_bytes()).map_or_else(|error| error.to_string(), |_| "accepted".to_owned())
    }

    #[test]
    fn errors_name_the_key_what_was_found_and_what_was_expected() {
        let base = r#"{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"vocab_size":10,
            "intermediate_size":32,"num_attention_heads":4"#;
        let with = |extra: &str| message(&format!("{base}{extra}}}"));
        assert_eq!(with(""), "accepted");
        assert!(message("[]").contains("an array"));
        assert!(message("{}").contains("model_type"));
        assert!(message(r#"{"model_type":"zebra"}"#).contains("zebra"));
        for (extra, word) in [
            (r#","num_key_value_heads":3"#, "divisor"),
            (r#","num_key_value_heads":0"#, "num_key_value_heads"),
            (r#","rms_norm_eps":0"#, "rms_norm_eps"),
            (r#","rope_theta":-1"#, "rope_theta"),
            (r#","head_dim":100000"#, "head_dim"),
            (r#","hidden_act":"wiggle""#, "wiggle"),
            (r#","rope_scaling":{"rope_type":"spiral"}"#, "spiral"),
            (r#","rope_scaling":7"#, "rope_scaling"),
            (r#","head_dim":7"#, "\"head_dim\" is 7"),
            (r#","quantization_config":{"quant_method":"gptq"}"#, "quantized by gptq"),
            (r#","eos_token_id":"x""#, "eos_token_id"),
        ] {
            let found = with(extra);
            assert!(found.contains(word), "{extra}: {found}");
        }
    }
}
