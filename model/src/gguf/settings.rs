//! From a head's keys to `config.json`, as a family's table entry says. The values are checked where that file is read;
//! here only what has no counterpart there is refused.

use serde_json::{Map, Value as Json, json};

use super::container::Value;
use super::parts::RopeFactors;
use super::vocabulary;
use super::{Container, GgufError, Metadata};
use crate::checkpoint::Dtype;
use crate::families::{Bias, FAMILIES, Family, ROPE_TYPES, RopeKind, Rows};
use crate::rope::Scaling;
use crate::source::Source;

/// Whole numbers: the key of `config.json`, and the file's without its architecture. `null` where it is not there: as
/// many heads of keys as of queries, the stream divided among the heads.
const SIZES: &[(&str, &str)] = &[
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("sliding_window", "attention.sliding_window"),
];

/// Other numbers. Those of the first two are needed by the families that know them.
const NUMBERS: &[(&str, &str)] = &[
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// What would change the computation, and the values that do not.
const REFUSED: &[(&str, &[f64])] = &[
    ("attention.causal", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attention.temperature_scale", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
    ("expert_shared_count", &[0.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("leading_dense_block_count", &[0.0]),
    ("nextn_predict_layers", &[0.0]),
];

/// Layers that a pattern is spelled out for; more are refused later.
const LAYERS_MAX: u64 = 4096;

/// The family that a file's architecture stands for.
pub(super) fn family(head: &Container) -> Result<&'static Family, GgufError> {
    let key = "general.architecture";
    let Some(found) = head.text(key)? else {
        return Err(GgufError::Missing { key: key.into(), expected: architectures().into() });
    };
    let is_marked = |family: &Family| match family.gguf.mark {
        None => true,
        Some(mark) => match head.get(&format!("{found}.{mark}")) {
            None => false,
            Some(value) => !matches!(value, Value::Whole(0) | Value::Flag(false)),
        },
    };
    let mut families = FAMILIES.iter().rev();
    match families.find(|family| family.gguf.architecture == found && !found.is_empty() && is_marked(family))
    {
        Some(family) => Ok(family),
        None => head.wrong(key, &architectures()),
    }
}

fn architectures() -> String {
    let mut names: Vec<&str> = FAMILIES.iter().map(|family| family.gguf.architecture).collect();
    names.retain(|name| !name.is_empty());
    names.dedup();
    format!("one of the architectures {}", names.join(", "))
}

/// The key that a key of `config.json` was made of.
pub(super) fn origin(head: &Container, key: &str) -> Option<String> {
    let architecture = head.text("general.architecture").ok()??;
    let (_, own) = SIZES.iter().chain(NUMBERS).find(|(known, _)| *known == key)?;
    Some(format!("{architecture}.{own}"))
}

/// A head with its family and the names of its tensors at hand.
struct Reading<'a> {
    heads: &'a [Container],
    head: &'a Container,
    family: &'static Family,
}

/// `config.json`.
pub(super) fn config(heads: &[Container], factors: &RopeFactors) -> Result<Vec<u8>, GgufError> {
    let family = family(&heads[0])?;
    let reading = Reading { heads, head: &heads[0], family };
    let mut config = Map::new();
    config.insert("model_type".to_owned(), json!(family.name));
    config.insert("quantization_config".to_owned(), json!({"quant_method": "gguf"}));
    reading.refuse_what_is_not_there()?;
    reading.numbers(&mut config)?;
    reading.flags(&mut config)?;
    reading.attention(&mut config)?;
    config.insert("rope_scaling".to_owned(), reading.rope_scaling(factors, &config)?);
    config.insert("eos_token_id".to_owned(), json!(vocabulary::ends(reading.head)?));
    Ok(Json::Object(config).to_string().into_bytes())
}

/// `config.json` of a folder that holds the same model, for all tools: without what only the house reads.
pub(super) fn folder_config(
    metadata: &Metadata,
    source: &Source,
    dtype: Dtype,
    has_codes: bool,
) -> Result<Vec<u8>, GgufError> {
    let (family, head) = (metadata.family()?, &metadata.heads[0]);
    let made: Json = serde_json::from_slice(&metadata.config()?).expect("it was written as JSON");
    let Json::Object(mut config) = made else { unreachable!("a configuration is an object") };
    if let Some(layer) = source.spec.layers.first() {
        config.insert("head_dim".to_owned(), json!(layer.attention.head_width));
        config.insert("num_key_value_heads".to_owned(), json!(layer.attention.kv_heads));
    }
    let base = config.get("rope_theta").cloned();
    if let (Some(base), Some(name)) = (base, family.rope_base.0.first()) {
        config.insert((*name).to_owned(), base);
    }
    if let Some(scaling) =
        config.get("rope_scaling").and_then(|scaling| folder_scaling(scaling, &config, family))
    {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    // Where a key is absent tools have a width of their own.
    config.retain(|key, value| !value.is_null() || key == "sliding_window");
    for (key, id) in vocabulary::ids(head)? {
        config.insert(key.to_owned(), json!(id));
    }
    config.insert("torch_dtype".to_owned(), json!(dtype.python_name()));
    match has_codes {
        true => {
            config.insert("quantization_config".to_owned(), json!({ "quant_method": "mxfp4" }));
        }
        false => {
            config.remove("quantization_config");
        }
    }
    Ok(format!("{:#}\n", Json::Object(config)).into_bytes())
}

/// How rotary frequencies are bent, as other tools read it.
fn folder_scaling(scaling: &Json, config: &Map<String, Json>, family: &Family) -> Option<Json> {
    let mut scaling = scaling.as_object()?.clone();
    scaling.retain(|_, value| !value.is_null());
    let (Some(short), Some(long)) = (scaling.get("short_factor"), scaling.get("long_factor")) else {
        return Some(Json::Object(scaling));
    };
    if family.original_context.is_some() {
        // These three and no more; the factor of attention then follows from the two contexts.
        return Some(json!({ "type": "longrope", "short_factor": short, "long_factor": long }));
    }
    let numbers = |list: &Json| list.as_array()?.iter().map(Json::as_f64).collect::<Option<Vec<f64>>>();
    let base = config.get("rope_theta").and_then(Json::as_f64)?;
    let found = numbers(short).filter(|_| short == long).and_then(|factors| by_wavelength(&factors, base));
    Some(found.unwrap_or(Json::Object(scaling)))
}

/// The numbers that a list of divisors was made of, where frequencies were divided by their wavelength.
fn by_wavelength(divisors: &[f64], base: f64) -> Option<Json> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let length = |pair: usize| std::f64::consts::TAU * base.powf(pair as f64 / divisors.len() as f64);
    let divisor = |pair: usize, original: f64| {
        let part = ((original / length(pair) - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - part) / factor + part)
    };
    // A pair between the ends tells the context.
    let (pair, between) =
        divisors.iter().enumerate().find(|(_, by)| **by > 1.001 && **by < factor * 0.999)?;
    let part = (1.0 / between - 1.0 / factor) / (1.0 - 1.0 / factor);
    let original = (length(pair) * (LOW + part * (HIGH - LOW))).round();
    let is_so = |(pair, by): (usize, &f64)| (divisor(pair, original) / by - 1.0).abs() < 1e-4;
    let (name, _) = ROPE_TYPES.iter().find(|(_, kind)| *kind == RopeKind::ByWavelength)?;
    divisors.iter().enumerate().all(is_so).then(|| {
        json!({
            "rope_type": name, "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
            "original_max_position_embeddings": original as u64,
        })
    })
}

impl Reading<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.gguf.architecture)
    }

    fn dims(&self, name: &str) -> Option<&[u64]> {
        let mut tensors = self.heads.iter().flat_map(Container::tensors);
        tensors.find(|tensor| tensor.name == name).map(|tensor| tensor.dims)
    }

    fn refuse_what_is_not_there(&self) -> Result<(), GgufError> {
        for (name, neutral) in REFUSED {
            let key = self.key(name);
            let found = match self.head.get(&key) {
                None => continue,
                Some(Value::Flag(flag)) => f64::from(u8::from(flag)),
                Some(_) => self.head.number(&key)?.unwrap_or(0.0),
            };
            if !neutral.contains(&found) {
                let neutral: Vec<String> = neutral.iter().map(f64::to_string).collect();
                let expected = format!("{}, since nothing else is supported yet", neutral.join(" or "));
                return self.head.wrong(&key, &expected);
            }
        }
        Ok(())
    }

    fn numbers(&self, config: &mut Map<String, Json>) -> Result<(), GgufError> {
        for (name, own) in SIZES {
            let size = self.head.common_size(&self.key(own))?;
            // Files say "none" by a zero.
            let size = size.filter(|&size| size > 0 || *name != "sliding_window");
            config.insert((*name).to_owned(), json!(size));
        }
        if let Some(size) = self.head.size(&self.key("expert_feed_forward_length"))?
            && self.family.experts.is_some()
        {
            config.insert("intermediate_size".to_owned(), json!(size));
        }
        for (name, own) in NUMBERS {
            if let Some(number) = self.head.number(&self.key(own))? {
                config.insert((*name).to_owned(), json!(number));
            } else if *name == self.family.epsilon.0 {
                let expected = "a small positive number".into();
                return Err(GgufError::Missing { key: self.key(own).into(), expected });
            }
        }
        let embedding = format!("{}.weight", self.family.gguf.stored.embedding);
        config.insert("vocab_size".to_owned(), json!(self.dims(&embedding).map(|dims| dims[0])));
        Ok(())
    }

    fn flags(&self, config: &mut Map<String, Json>) -> Result<(), GgufError> {
        let (family, stored) = (self.family, &self.family.gguf.stored);
        let first = stored.layer.replace("{}", "0");
        let has = |name: String| json!(self.dims(&name).is_some());
        if let Bias::Key(key, _) = family.input_bias {
            config.insert(key.to_owned(), has(format!("{first}{}.bias", stored.query.module)));
        }
        if let Bias::Key(key, _) = family.mlp_bias {
            config.insert(key.to_owned(), has(format!("{first}{}.bias", stored.up.module)));
        }
        let is_tied = self.dims(&format!("{}.weight", stored.head)).is_none();
        config.insert("tie_word_embeddings".to_owned(), json!(is_tied));
        if let Some((key, default)) = family.parallel {
            let flag = self.head.flag(&self.key("use_parallel_residual"))?;
            config.insert(key.to_owned(), json!(flag.unwrap_or(default)));
        }
        Ok(())
    }

    /// Widths of heads and of what is turned of them, their scale, and which layers are windowed.
    fn attention(&self, config: &mut Map<String, Json>) -> Result<(), GgufError> {
        let size = |name: &str| config.get(name).and_then(Json::as_u64);
        let (Some(heads @ 1..), Some(hidden)) = (size("num_attention_heads"), size("hidden_size")) else {
            // That they are missing is said where the configuration is read.
            return Ok(());
        };
        let head = size("head_dim").unwrap_or(hidden / heads);
        let layers = size("num_hidden_layers").unwrap_or(0);
        let value = self.key("attention.value_length");
        if self.head.size(&value)?.is_some_and(|value| value != head) {
            return self
                .head
                .wrong(&value, &format!("{head}, the width of keys: others are not supported yet"));
        }
        if let Some((key, _)) = self.family.score_scale {
            let is_odd = Some(layers as usize) == self.family.gguf.odd_scale;
            config.insert(key.to_owned(), json!(if is_odd { hidden / heads } else { head }));
        }
        self.turned(head, config)?;
        match self.layer_types(layers)? {
            Some(types) => config.insert("layer_types".to_owned(), types),
            None => None,
        };
        Ok(())
    }

    /// The share of a head's channels that is turned.
    fn turned(&self, head: u64, config: &mut Map<String, Json>) -> Result<(), GgufError> {
        let key = self.key("rope.dimension_count");
        let turned = self.head.size(&key)?.unwrap_or(head);
        let names = self.family.gguf.names.as_ref().unwrap_or(&self.family.names);
        let name = self.family.rope_fraction.0.first().filter(|_| names.query.rows != Rows::Pairs);
        match name {
            // Half a channel more, so that no rounding takes one away.
            Some(name) if turned < head => {
                config.insert((*name).to_owned(), json!((turned as f64 + 0.5) / head as f64));
            }
            Some(name) if turned == head => {
                config.insert((*name).to_owned(), json!(1.0));
            }
            None if turned == head => {}
            _ => return self.head.wrong(&key, &format!("{head}, the width of a head")),
        }
        Ok(())
    }

    /// Which layers are windowed, where the file says it.
    fn layer_types(&self, layers: u64) -> Result<Option<Json>, GgufError> {
        let key = self.key("attention.sliding_window_pattern");
        if !self.family.window.as_ref().is_some_and(|rule| rule.listed) || layers > LAYERS_MAX {
            return Ok(None);
        }
        let name = |windowed: bool| if windowed { "sliding_attention" } else { "full_attention" };
        let types: Vec<&str> = match self.head.get(&key) {
            None => return Ok(None),
            Some(Value::Array(array)) if array.count as u64 == layers => array
                .values()
                .map(|value| name(!matches!(value, Value::Flag(false) | Value::Whole(0))))
                .collect(),
            Some(Value::Whole(every)) if every >= 0 => {
                (1..=i128::from(layers)).map(|layer| name(every == 0 || layer % every != 0)).collect()
            }
            Some(_) => return self.head.wrong(&key, "a whole number, or a flag for every layer"),
        };
        Ok(Some(json!(types)))
    }

    fn rope_scaling(&self, factors: &RopeFactors, config: &Map<String, Json>) -> Result<Json, GgufError> {
        let key = self.key("rope.scaling.type");
        let number = |name: &str| self.head.number(&self.key(name));
        let kind = self.head.text(&key)?.unwrap_or("none");
        if let (Some(short), Some(long)) = (&factors.short, &factors.long) {
            let attention = number("rope.scaling.attn_factor")?;
            return Ok(json!({
                "rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": attention,
            }));
        }
        let original = config.get("original_max_position_embeddings");
        match (kind, &factors.all) {
            // One list for all lengths: what the settings of the original came to.
            ("none", Some(all)) => Ok(json!({
                "rope_type": "longrope", "short_factor": all, "long_factor": all, "attention_factor": 1.0,
            })),
            ("none", None) => match number("rope.scale_linear")?.filter(|&factor| factor != 1.0) {
                Some(factor) => Ok(json!({"rope_type": "linear", "factor": factor})),
                None => Ok(Json::Null),
            },
            ("linear", None) => Ok(json!({"rope_type": "linear", "factor": number("rope.scaling.factor")?})),
            ("yarn", None) => Ok(json!({
                "rope_type": "yarn",
                "factor": number("rope.scaling.factor")?,
                "original_max_position_embeddings": original,
                "beta_fast": number("rope.scaling.yarn_beta_fast")?,
                "beta_slow": number("rope.scaling.yarn_beta_slow")?,
                "attention_factor": number("rope.scaling.yarn_attn_factor")?,
                "truncate": !matches!(self.family.rope_scaling, Some(Scaling::Yarn { truncate: false, .. })),
            })),
            ("longrope", None) => {
                let what = "tensors rope_factors_short.weight and rope_factors_long.weight: expected both beside \
                    rope.scaling.type longrope";
                Err(GgufError::Meaning(what.into()))
            }
            (_, Some(_)) => self.head.wrong(&key, "none beside the tensor rope_freqs.weight"),
            _ => self.head.wrong(&key, "none, linear, yarn or longrope"),
        }
    }
}
