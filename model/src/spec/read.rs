//! From `config.json` to a [`ModelSpec`], as a family's table entry says.

use bantam_core::ops::attention::HEAD_WIDTH_MAX;
use bantam_core::ops::experts::CHOSEN_MAX;
use bantam_core::{Activation, Choice, NormKind};
use serde_json::Value;

use crate::config::{Config, ConfigError};
use crate::families::{Bend, FAMILIES, Family, KvHeads, Windowed};
use crate::formats::Format;
use crate::rope::{RopeSpec, Scaling};
use crate::spec::{AttentionSpec, ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, Residual};

/// Sizes beyond these are no model's.
const WIDTH_MAX: usize = 1 << 20;
const CONTEXT_MAX: usize = 1 << 24;
const EXPERTS_MAX: usize = 1 << 12;
/// Of all layers together: a plan has a line for each in its lists, and is to be refused within 100 ms.
const ALL_EXPERTS_MAX: usize = 1 << 15;

impl Config<'_> {
    pub(crate) fn family(self) -> Result<&'static Family, ConfigError> {
        let found = self.text("model_type")?;
        let is_told = |family: &&Family| {
            let is_named = found.is_none_or(|found| found == family.name);
            let all = family.told_by.iter().all(|key| self.get(key).is_some());
            is_named && all && !family.told_by.is_empty()
        };
        if let Some(family) = FAMILIES.iter().find(is_told) {
            return Ok(family);
        }
        let found = found
            .ok_or(ConfigError::Missing { key: "model_type".to_owned(), expected: "the family's name" })?;
        FAMILIES.iter().find(|family| family.name == found).ok_or_else(|| ConfigError::UnknownFamily {
            found: found.chars().take(64).collect(),
            known: FAMILIES
                .iter()
                .filter(|family| family.told_by.is_empty())
                .map(|family| family.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    pub(crate) fn build(self, family: &'static Family) -> Result<ModelSpec, ConfigError> {
        self.refuse_what_is_not_there(family)?;
        let hidden = self.needed_size("hidden_size", WIDTH_MAX)?;
        let layers = self.needed_size("num_hidden_layers", 4096)?;
        let format = Format::read(self, family.quant_method)?;
        let (names, weight_shift) = match format.is_gguf() {
            true => (family.gguf.names.as_ref().unwrap_or(&family.names), 0.0),
            false => (&family.names, family.weight_shift),
        };
        // Of files that are spelled in two ways, adapters follow the first.
        let trained = FAMILIES.iter().find(|first| first.name == family.name).unwrap_or(family);
        let vocab = self.needed_size("vocab_size", 1 << 24)?;
        let context = self.context(family)?;
        let norm = NormSpec {
            kind: family.norm,
            epsilon: self.first_number(&[family.epsilon.0], family.epsilon.1)? as f32,
            weight_shift,
            bias: family.norm == NormKind::Layer,
        };
        let attention = self.attention(family, hidden)?;
        let mlp = self.mlp(family, layers)?;
        let parallel = match family.parallel {
            Some((key, default)) => self.flag(key, default)?,
            None => false,
        };
        let residual = if parallel { Residual::Parallel } else { Residual::Sequential };
        let layers = (0..layers)
            .map(|layer| {
                let window = self.window(family, layer)?;
                let rope = usize::from(window.is_some() && family.rope_base_windowed.is_some());
                let attention = AttentionSpec { window: window.flatten(), rope, ..attention };
                Ok(LayerSpec { residual, norm, attention, mlp })
            })
            .collect::<Result<_, ConfigError>>()?;
        Ok(ModelSpec {
            family: family.name,
            names,
            trained: &trained.names,
            hidden,
            vocab,
            context,
            layers,
            final_norm: norm,
            ropes: self.ropes(family, attention.head_width, context)?,
            embedding_scale: if family.scaled_embedding { (hidden as f64).sqrt() as f32 } else { 1.0 },
            logits_cap: self.cap(family.logits_cap)?,
            kv_beside_card: family.kv_beside_card,
            tied: self.flag("tie_word_embeddings", family.tied)?,
            eos: self.eos()?,
            format,
        })
    }

    fn context(self, family: &Family) -> Result<usize, ConfigError> {
        let told = self.size("max_position_embeddings", CONTEXT_MAX)?;
        match (told, family.yarn) {
            (Some(told), _) => Ok(told),
            (None, None) => Ok(family.context),
            (None, Some(keys)) => {
                let original = self.first_number(&[keys.original.0], keys.original.1)?;
                let factor = self.first_number(&[keys.factor.0], keys.factor.1)?.max(1.0);
                match (original * factor) as usize {
                    context @ 1..=CONTEXT_MAX => Ok(context),
                    _ => self.wrong(
                        keys.original.0,
                        format!("1 to {CONTEXT_MAX} positions with {}", keys.factor.0),
                    ),
                }
            }
        }
    }

    fn refuse_what_is_not_there(self, family: &Family) -> Result<(), ConfigError> {
        for key in family.refused {
            if self.flag(key, false)? {
                return Err(ConfigError::Unsupported {
                    key: (*key).to_owned(),
                    found: "true".to_owned(),
                    supported: "false".to_owned(),
                });
            }
        }
        for &(key, supported) in family.fixed {
            if self.first_number(&[key], supported)? != supported {
                return Err(ConfigError::Unsupported {
                    key: key.to_owned(),
                    found: self.get(key).map(Value::to_string).unwrap_or_default(),
                    supported: supported.to_string(),
                });
            }
        }
        Ok(())
    }

    fn attention(self, family: &Family, hidden: usize) -> Result<AttentionSpec, ConfigError> {
        let heads = self.needed_size("num_attention_heads", 1 << 14)?;
        let kv_heads = match family.kv_heads {
            KvHeads::All => heads,
            KvHeads::Grouped(Some(count)) if !self.0.contains_key("num_key_value_heads") => count,
            KvHeads::Grouped(_) => self.size("num_key_value_heads", 1 << 14)?.unwrap_or(heads),
        };
        if !heads.is_multiple_of(kv_heads) {
            return self.wrong("num_key_value_heads", format!("a divisor of num_attention_heads, {heads}"));
        }
        // `null` is a division, also where the family has a default.
        let default = if self.0.contains_key("head_dim") { None } else { family.head_width };
        let head_width = match self.size("head_dim", HEAD_WIDTH_MAX)?.or(default) {
            Some(width) => width,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return self.wrong("hidden_size", format!("a multiple of num_attention_heads, {heads}"));
            }
        };
        if head_width > HEAD_WIDTH_MAX {
            return self.wrong("num_attention_heads", "heads of at most 512 channels");
        }
        let scaled_by = match family.score_scale {
            Some((key, default)) => self.first_number(&[key], default)?,
            None => head_width as f64,
        };
        Ok(AttentionSpec {
            heads,
            kv_heads,
            head_width,
            scale: (1.0 / scaled_by.sqrt()) as f32,
            cap: self.cap(family.score_cap)?,
            window: None,
            rope: 0,
            input_bias: family.input_bias.of(self)?,
            output_bias: family.output_bias.of(self)?,
        })
    }

    fn mlp(self, family: &Family, layers: usize) -> Result<MlpSpec, ConfigError> {
        let experts = match family.experts {
            None => None,
            Some(rule) => {
                let experts = self.needed_size(rule.count, EXPERTS_MAX.min(ALL_EXPERTS_MAX / layers))?;
                let (key, default) = rule.chosen;
                let chosen = self.size(key, CHOSEN_MAX)?.unwrap_or(default);
                if chosen > experts {
                    return self.wrong(key, format!("at most {}, {experts}", rule.count));
                }
                let choice = Choice { experts, chosen };
                Some(ExpertsSpec { choice, router_bias: rule.router_bias })
            }
        };
        Ok(MlpSpec {
            width: self.needed_size("intermediate_size", 1 << 22)?,
            activation: self.activation(family.activation)?,
            gated: family.names.gate.is_some(),
            bias: family.mlp_bias.of(self)?,
            experts,
        })
    }

    fn activation(self, bend: Bend) -> Result<Activation, ConfigError> {
        let (key, default) = match bend {
            Bend::Always(activation) => return Ok(activation),
            Bend::Key(key, default) => (key, default),
        };
        let found = self.text(key)?.unwrap_or(default);
        match found {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            _ => Err(ConfigError::Unsupported {
                key: key.to_owned(),
                found: format!("\"{found}\"").chars().take(64).collect(),
                supported: "silu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu".to_owned(),
            }),
        }
    }

    /// A limit: the key's, none where it is `null`, the family's where it is absent.
    fn cap(self, rule: Option<(&str, Option<f64>)>) -> Result<Option<f32>, ConfigError> {
        let cap = match rule {
            None => None,
            Some((key, _)) if self.0.contains_key(key) => self.number(key)?,
            Some((_, default)) => default,
        };
        Ok(cap.map(|cap| cap as f32))
    }

    /// Whether a layer is windowed, and its width, of which there may be none.
    fn window(self, family: &Family, layer: usize) -> Result<Option<Option<usize>>, ConfigError> {
        let Some(rule) = &family.window else {
            return Ok(None);
        };
        let width = match self.0.contains_key(rule.key) {
            true => self.size(rule.key, usize::MAX)?,
            false => rule.width,
        };
        if let Some(flag) = rule.flag
            && !self.flag(flag, false)?
        {
            return Ok(None);
        }
        if rule.listed
            && let Some(Value::Array(types)) = self.get("layer_types")
        {
            return match types.get(layer).and_then(Value::as_str) {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(width)),
                _ => self.wrong("layer_types", "full_attention or sliding_attention for every layer"),
            };
        }
        let is_windowed = match rule.layers {
            Windowed::All => true,
            Windowed::From(key, default) => layer >= self.count(key, default)?,
            Windowed::AllBut(key, default) => {
                let every = match key {
                    Some(key) => self.size(key, 4096)?.unwrap_or(default),
                    None => default,
                };
                !(layer + 1).is_multiple_of(every)
            }
        };
        Ok(is_windowed.then_some(width))
    }

    /// A number that may be zero; one beyond all sizes is as good as the largest.
    fn count(self, key: &str, default: usize) -> Result<usize, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_u64() {
                Some(count) => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
                None => self.wrong(key, "a whole number"),
            },
        }
    }

    /// The rotary tables: one, and where windowed layers have their own, that.
    fn ropes(self, family: &Family, head_width: usize, context: usize) -> Result<Vec<RopeSpec>, ConfigError> {
        let told = ["rope_parameters", "rope_scaling"].iter().any(|key| self.0.contains_key(*key));
        let settings = match self.get("rope_parameters").or_else(|| self.get("rope_scaling")) {
            None => None,
            Some(Value::Object(map)) => Some(Config(map)),
            Some(_) => return self.wrong("rope_scaling", "an object"),
        };
        // The newest files have settings by kind of layer.
        let of_kind = |kind: &str| match settings.and_then(|settings| settings.get(kind)) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config(map))),
            Some(_) => self.wrong("rope_parameters", format!("an object as its \"{kind}\"")),
        };
        let base = self.first_number(family.rope_base.0, family.rope_base.1)?;
        let usual = of_kind("full_attention")?.or(settings);
        let mut first = self.rope(family, usual, base, head_width, context)?;
        match (family.rope_scaling, family.yarn) {
            (Some(scaling), _) if !told => first.scaling = scaling.clone(),
            (_, Some(keys)) if !told => first.scaling = Scaling::beside(self, &keys)?,
            _ => {}
        }
        let mut ropes = vec![first];
        if let Some((key, default)) = family.rope_base_windowed {
            let base = self.first_number(&[key], default)?;
            ropes.push(self.rope(family, of_kind("sliding_attention")?, base, head_width, context)?);
        }
        Ok(ropes)
    }

    /// Rotary settings: `rope_parameters` (newer files) or `rope_scaling` beside top-level keys.
    fn rope(
        self,
        family: &Family,
        settings: Option<Config>,
        base: f64,
        head_width: usize,
        context: usize,
    ) -> Result<RopeSpec, ConfigError> {
        let nested = |keys: &[&str], default: f64| match settings {
            Some(settings) => settings.first_number(keys, default),
            None => Ok(default),
        };
        let base = nested(&["rope_theta"], base)?;
        let fraction = nested(
            &["partial_rotary_factor"],
            self.first_number(family.rope_fraction.0, family.rope_fraction.1)?,
        )?;
        // Rounded down, as the reference rounds; pairs need an even number.
        let width = (head_width as f64 * fraction) as usize;
        if fraction > 1.0 || width == 0 || !width.is_multiple_of(2) {
            let expected = format!(
                "a fraction of the {head_width} channels of a head that is an even number of channels"
            );
            let nested = settings.filter(|settings| settings.get("partial_rotary_factor").is_some());
            let mut keys = family.rope_fraction.0.iter().copied();
            return match nested {
                Some(settings) => settings.wrong("partial_rotary_factor", expected),
                None => self.wrong(keys.find(|key| self.get(key).is_some()).unwrap_or("head_dim"), expected),
            };
        }
        RopeSpec::read(self, settings, family.original_context, base, width, context)
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
