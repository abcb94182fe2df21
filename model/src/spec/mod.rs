//! What a decoder is made of, as plain data: read once from `config.json` through a family's table entry
//! (`read.rs`), checked there, and from then on free of names.

mod read;

use bantam_core::{Activation, Choice, KvKind, NormKind, Precision};
use serde_json::Value;

use crate::config::{Config, ConfigError, kind};
use crate::families::Names;
use crate::formats::Format;
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
    /// Bends scores towards this limit.
    pub cap: Option<f32>,
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
    /// Hidden units, of each expert where there are several.
    pub width: usize,
    /// Their bend.
    pub activation: Activation,
    /// Whether a second projection multiplies it.
    pub gated: bool,
    /// Biases of its projections.
    pub bias: bool,
    /// Where it is one of several: how they are chosen.
    pub experts: Option<ExpertsSpec>,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsSpec {
    /// How many there are, and how many a token is sent to.
    pub choice: Choice,
    /// Bias of the router.
    pub router_bias: bool,
}

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// How its blocks are added.
    pub residual: Residual,
    /// Every norm: before each block, and where the names have them, after it and of heads.
    pub norm: NormSpec,
    /// Attention.
    pub attention: AttentionSpec,
    /// Feed-forward.
    pub mlp: MlpSpec,
}

/// A whole decoder.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// For reports.
    pub family: &'static str,
    /// Where its tensors are.
    pub names: &'static Names,
    /// Where they were when it was trained, and adapters know them.
    pub trained: &'static Names,
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
    /// Bends logits towards this limit.
    pub logits_cap: Option<f32>,
    /// How keys and values are stored beside a card; see [`ModelSpec::usual_kv`].
    pub kv_beside_card: KvKind,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Ends of text that the configuration names.
    pub eos: Vec<u32>,
    /// How its matrices are quantized.
    pub format: Format,
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

    /// How keys and values are stored where nobody says. Whether a card will compute is asked only where it matters.
    pub fn usual_kv(&self, precision: Precision, has_card: impl FnOnce() -> bool) -> KvKind {
        match precision {
            Precision::Exact => KvKind::F32,
            Precision::Fast if self.kv_beside_card != KvKind::F16 && has_card() => self.kv_beside_card,
            Precision::Fast => KvKind::F16,
        }
    }

    /// Parameters of all matrices and vectors, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        let heads = if self.tied { 1 } else { 2 };
        let layers: u64 = self.layers.iter().map(|layer| self.layer_parameters(layer)).sum();
        heads * linear(self.vocab, self.hidden, false) + self.norm_parameters(&self.final_norm) + layers
    }

    fn norm_parameters(&self, norm: &NormSpec) -> u64 {
        (self.hidden * (1 + usize::from(norm.bias))) as u64
    }

    fn layer_parameters(&self, layer: &LayerSpec) -> u64 {
        let (a, m, names) = (&layer.attention, &layer.mlp, self.names);
        let (q, kv) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        let norms = if names.post_norms.is_some() { 4 } else { 2 };
        let of_heads = if names.head_norms.is_some() { 2 * a.head_width } else { 0 };
        let sinks = if names.sinks.is_some() { a.heads } else { 0 };
        let block = (1 + u64::from(m.gated)) * linear(m.width, self.hidden, m.bias)
            + linear(self.hidden, m.width, m.bias);
        let blocks = match m.experts {
            Some(ExpertsSpec { choice, router_bias }) => {
                choice.experts as u64 * block + linear(choice.experts, self.hidden, router_bias)
            }
            None => block,
        };
        norms * self.norm_parameters(&layer.norm)
            + (of_heads + sinks) as u64
            + linear(q, self.hidden, a.input_bias)
            + 2 * linear(kv, self.hidden, a.input_bias)
            + linear(self.hidden, q, a.output_bias)
            + blocks
    }
}

/// Parameters of a matrix and its bias.
fn linear(rows: usize, columns: usize, bias: bool) -> u64 {
    (rows * columns + rows * usize::from(bias)) as u64
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
            (r#","quantization_config":{"quant_method":"magic"}"#, "magic"),
            (r#","quantization_config":{"quant_method":"gptq","bits":5}"#, "2, 3, 4 or 8"),
            (r#","eos_token_id":"x""#, "eos_token_id"),
            (r#","rope_scaling":{"type":"longrope","short_factor":[1],"long_factor":[1]}"#, "short_factor"),
            (r#","rope_parameters":{"full_attention":7}"#, "full_attention"),
            (r#","rope_parameters":{"partial_rotary_factor":0.2}"#, "\"partial_rotary_factor\" is 0.2"),
        ] {
            let found = with(extra);
            assert!(found.contains(word), "{extra}: {found}");
        }
    }

    #[test]
    fn keys_and_values_are_stored_as_the_family_says() {
        let base = r#""hidden_size":64,"num_hidden_layers":2,"vocab_size":10,"intermediate_size":32,
            "num_attention_heads":4,"num_key_value_heads":4,"num_local_experts":4"#;
        for family in crate::families::FAMILIES.iter().filter(|family| family.told_by.is_empty()) {
            let json = format!(r#"{{"model_type":"{}",{base}}}"#, family.name);
            let spec = ModelSpec::parse(json.as_bytes()).expect("sound");
            let beside_card = if family.name == "gpt_neox" { KvKind::Int8 } else { KvKind::F16 };
            assert_eq!(spec.usual_kv(Precision::Fast, || true), beside_card, "{}", family.name);
            assert_eq!(spec.usual_kv(Precision::Fast, || false), KvKind::F16, "{}", family.name);
            assert_eq!(spec.usual_kv(Precision::Exact, || true), KvKind::F32, "{}", family.name);
        }
    }

    #[test]
    fn errors_of_experts_and_windows_name_the_key() {
        let base = r#"{"hidden_size":64,"num_hidden_layers":4,"vocab_size":10,"intermediate_size":32,
            "num_attention_heads":8"#;
        for (extra, word) in [
            (r#","model_type":"mixtral""#, "num_local_experts"),
            (r#","model_type":"mixtral","num_local_experts":4"#, "accepted"),
            (
                r#","model_type":"mixtral","num_local_experts":4,"num_experts_per_tok":5"#,
                "at most num_local_experts, 4",
            ),
            (
                r#","model_type":"mixtral","num_local_experts":4,"num_experts_per_tok":0"#,
                "num_experts_per_tok",
            ),
            (r#","model_type":"mixtral","num_local_experts":5000"#, "num_local_experts"),
            (r#","model_type":"gemma2","layer_types":["full_attention"]"#, "layer_types"),
            (r#","model_type":"gemma2","layer_types":["a","b","c","d"]"#, "layer_types"),
            (r#","model_type":"gemma2","attn_logit_softcapping":-1"#, "attn_logit_softcapping"),
            (r#","model_type":"gemma3_text","sliding_window_pattern":0"#, "sliding_window_pattern"),
            (
                r#","model_type":"gemma3_text","use_bidirectional_attention":true"#,
                "use_bidirectional_attention",
            ),
            (
                r#","model_type":"gemma2","use_bidirectional_attention":true"#,
                "\"use_bidirectional_attention\" is true",
            ),
            (r#","model_type":"gpt_oss","num_local_experts":2"#, "num_experts_per_tok"),
            (r#","model_type":"gpt_oss","num_local_experts":4,"swiglu_limit":6.5"#, "supported: 7"),
            (r#","model_type":"gpt_oss","num_local_experts":4,"swiglu_limit":7.0"#, "accepted"),
            (r#","model_type":"phi3","sliding_window":0"#, "sliding_window"),
        ] {
            let found = message(&format!("{base}{extra}}}"));
            assert!(found.contains(word), "{extra}: {found}");
        }
    }

    #[test]
    fn what_a_file_leaves_out_is_as_its_family_has_it() {
        let spec = |extra: &str| {
            let base = r#"{"hidden_size":64,"num_hidden_layers":2,"vocab_size":10,"intermediate_size":32,
                "num_attention_heads":8,"num_local_experts":4"#;
            ModelSpec::parse(format!("{base}{extra}}}").as_bytes()).expect("sound")
        };
        let bent = spec(r#","model_type":"gpt_oss""#);
        let told = r#","model_type":"gpt_oss","rope_scaling":{"rope_type":"yarn","factor":32.0,"beta_fast":32.0,
            "beta_slow":1.0,"truncate":false,"original_max_position_embeddings":4096}"#;
        assert_eq!(bent.ropes, spec(told).ropes);
        let plain = spec(r#","model_type":"gpt_oss","rope_scaling":null,"attention_bias":false"#);
        assert_eq!(plain.ropes[0].attention_factor(), 1.0);
        assert_eq!(plain.layers[0].attention.head_width, 64);
        let divided = spec(r#","model_type":"gpt_oss","head_dim":null"#);
        assert_eq!(divided.layers[0].attention.head_width, 64 / 8);
        assert!(bent.layers[0].attention.input_bias && bent.layers[0].attention.output_bias);
        assert!(!plain.layers[0].attention.input_bias && !plain.layers[0].attention.output_bias);

        let long = |extra: &str| {
            let factors = r#""type":"longrope","short_factor":[1,1,1,1],"long_factor":[2,2,2,2]"#;
            let context = r#""max_position_embeddings":65536"#;
            spec(&format!(r#",{context},"rope_scaling":{{{factors}{extra}}}"#)).ropes.remove(0)
        };
        let first = long(r#"},"model_type":"phi3","unread":{"#);
        assert_eq!(first.longer.as_ref().map(|(positions, _)| *positions), Some(4096));
        assert_eq!(first.attention_factor(), (1.0f64 + 16f64.ln() / 4096f64.ln()).sqrt() as f32);
        // Beside the factors, the ratio of contexts may be another than the context's.
        let apart =
            long(r#","factor":4,"original_max_position_embeddings":1024},"model_type":"llama","unread":{"#);
        assert_eq!(apart.longer.as_ref().map(|(positions, _)| *positions), Some(1024));
        assert_eq!(apart.attention_factor(), (1.0f64 + 4f64.ln() / 1024f64.ln()).sqrt() as f32);
    }
}
