//! The table of model families: what each calls things, and which of the house's enums it uses.
//!
//! This is the only file that names a family. A new family is a new entry here and a golden; a new *behaviour* is a
//! variant of an enum in `spec.rs` and an operation in `bantam-core`.

use bantam_core::NormKind;

use crate::config::{Config, ConfigError};

/// How a family's configuration and checkpoint are to be read.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type`.
    pub name: &'static str,
    /// Positions where `max_position_embeddings` is absent.
    pub context: usize,
    /// Norm of every place.
    pub norm: NormKind,
    /// Key and default of its epsilon.
    pub epsilon: (&'static str, f64),
    /// Added to norm weights.
    pub weight_shift: f32,
    /// Flag that makes both blocks see the layer's input, and its default.
    pub parallel: Option<(&'static str, bool)>,
    /// Key and default of the feed-forward bend.
    pub activation: (&'static str, &'static str),
    /// Keys and default of the rotary base.
    pub rope_base: (&'static [&'static str], f64),
    /// Keys and default of the share of a head's channels that is turned.
    pub rope_fraction: (&'static [&'static str], f64),
    /// How a window over positions is asked for.
    pub window: Option<WindowRule>,
    /// Default of `tie_word_embeddings`.
    pub tied: bool,
    /// Whether several query heads may share a key head.
    pub grouped: bool,
    /// Bias of query, key and value.
    pub input_bias: Bias,
    /// Bias of the attention's output.
    pub output_bias: Bias,
    /// Bias of the feed-forward block.
    pub mlp_bias: Bias,
    /// Tensor names.
    pub names: Names,
}

/// Whether projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// Never.
    No,
    /// Always.
    Yes,
    /// As a key says, with its default.
    Key(&'static str, bool),
}

impl Bias {
    pub(crate) fn of(self, config: Config) -> Result<bool, ConfigError> {
        match self {
            Bias::No => Ok(false),
            Bias::Yes => Ok(true),
            Bias::Key(key, default) => config.flag(key, default),
        }
    }
}

/// Which layers see only a window.
#[derive(Debug, PartialEq, Eq)]
pub struct WindowRule {
    /// Key of the width, and its value where the key is absent; `null` is no window.
    pub key: &'static str,
    /// See `key`.
    pub width: Option<usize>,
    /// Flag without which it does not count (default false).
    pub flag: Option<&'static str>,
    /// Key and default of the first windowed layer, where no list of layer types is given.
    pub first_layer: Option<(&'static str, usize)>,
}

/// Names of tensors. `.weight` and `.bias` are appended.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// Embedding table.
    pub embedding: &'static str,
    /// Head.
    pub head: &'static str,
    /// Norm before the head.
    pub final_norm: &'static str,
    /// Before every name of a layer; `{}` is its number.
    pub layer: &'static str,
    /// Norm before attention.
    pub attention_norm: &'static str,
    /// Norm before the feed-forward block.
    pub mlp_norm: &'static str,
    /// Queries.
    pub query: Part,
    /// Keys.
    pub key: Part,
    /// Values.
    pub value: Part,
    /// Attention's output.
    pub output: Part,
    /// First projection of a gated block.
    pub gate: Option<Part>,
    /// Projection to the hidden units.
    pub up: Part,
    /// Projection back.
    pub down: Part,
}

/// A matrix that is a tensor, or some rows of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The tensor's module.
    pub module: &'static str,
    /// Which rows.
    pub rows: Rows,
}

/// Rows of a tensor that make up a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All.
    All,
    /// Heads of several projections alternate: of every `of` heads, number `index`.
    Alternate {
        /// Which of them.
        index: usize,
        /// How many there are.
        of: usize,
    },
}

/// How rotary frequencies are bent; the arithmetic is in `rope.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopeKind {
    Plain,
    Linear,
    ByWavelength,
    Yarn,
}

/// What configurations call the kinds. Dynamic scaling changes nothing up to the configured context, and Bantam goes
/// no further than that.
pub(crate) static ROPE_TYPES: &[(&str, RopeKind)] = &[
    ("default", RopeKind::Plain),
    ("dynamic", RopeKind::Plain),
    ("linear", RopeKind::Linear),
    ("llama3", RopeKind::ByWavelength),
    ("yarn", RopeKind::Yarn),
];

/// The same for an error message.
pub(crate) const ROPE_TYPE_NAMES: &str = "default, linear, dynamic, llama3, yarn";

const fn whole(module: &'static str) -> Part {
    Part { module, rows: Rows::All }
}

const fn alternate(module: &'static str, index: usize) -> Part {
    Part { module, rows: Rows::Alternate { index, of: 3 } }
}

/// Names that most families share.
const USUAL_NAMES: Names = Names {
    embedding: "model.embed_tokens",
    head: "lm_head",
    final_norm: "model.norm",
    layer: "model.layers.{}.",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    query: whole("self_attn.q_proj"),
    key: whole("self_attn.k_proj"),
    value: whole("self_attn.v_proj"),
    output: whole("self_attn.o_proj"),
    gate: Some(whole("mlp.gate_proj")),
    up: whole("mlp.up_proj"),
    down: whole("mlp.down_proj"),
};

/// Every family.
pub static FAMILIES: &[Family] = &[
    Family {
        name: "gpt_neox",
        context: 2048,
        norm: NormKind::Layer,
        epsilon: ("layer_norm_eps", 1e-5),
        weight_shift: 0.0,
        parallel: Some(("use_parallel_residual", true)),
        activation: ("hidden_act", "gelu"),
        rope_base: (&["rotary_emb_base", "rope_theta"], 10_000.0),
        rope_fraction: (&["rotary_pct", "partial_rotary_factor"], 0.25),
        window: None,
        tied: false,
        grouped: false,
        input_bias: Bias::Key("attention_bias", true),
        output_bias: Bias::Key("attention_bias", true),
        mlp_bias: Bias::Yes,
        names: Names {
            embedding: "gpt_neox.embed_in",
            head: "embed_out",
            final_norm: "gpt_neox.final_layer_norm",
            layer: "gpt_neox.layers.{}.",
            query: alternate("attention.query_key_value", 0),
            key: alternate("attention.query_key_value", 1),
            value: alternate("attention.query_key_value", 2),
            output: whole("attention.dense"),
            gate: None,
            up: whole("mlp.dense_h_to_4h"),
            down: whole("mlp.dense_4h_to_h"),
            ..USUAL_NAMES
        },
    },
    Family {
        name: "llama",
        context: 2048,
        norm: NormKind::Rms,
        epsilon: ("rms_norm_eps", 1e-6),
        weight_shift: 0.0,
        parallel: None,
        activation: ("hidden_act", "silu"),
        rope_base: (&["rope_theta"], 10_000.0),
        rope_fraction: (&["partial_rotary_factor"], 1.0),
        window: None,
        tied: false,
        grouped: true,
        input_bias: Bias::Key("attention_bias", false),
        output_bias: Bias::Key("attention_bias", false),
        mlp_bias: Bias::Key("mlp_bias", false),
        names: USUAL_NAMES,
    },
    Family {
        name: "qwen2",
        context: 32_768,
        norm: NormKind::Rms,
        epsilon: ("rms_norm_eps", 1e-6),
        weight_shift: 0.0,
        parallel: None,
        activation: ("hidden_act", "silu"),
        rope_base: (&["rope_theta"], 10_000.0),
        rope_fraction: (&[], 1.0),
        window: Some(WindowRule {
            key: "sliding_window",
            width: Some(4096),
            flag: Some("use_sliding_window"),
            first_layer: Some(("max_window_layers", 28)),
        }),
        tied: false,
        grouped: true,
        input_bias: Bias::Yes,
        output_bias: Bias::No,
        mlp_bias: Bias::No,
        names: USUAL_NAMES,
    },
];

/// Shapes of published models, for measuring with weights made up on the spot: name and configuration.
pub static SHAPES: &[(&str, &str)] = &[
    (
        "tinyllama",
        r#"{"model_type":"llama","hidden_size":2048,"intermediate_size":5632,"num_hidden_layers":22,
        "num_attention_heads":32,"num_key_value_heads":4,"vocab_size":32000,"max_position_embeddings":2048,
        "rms_norm_eps":1e-5}"#,
    ),
    (
        "llama-7b",
        r#"{"model_type":"llama","hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,
        "num_attention_heads":32,"vocab_size":32000,"max_position_embeddings":4096,"rms_norm_eps":1e-5}"#,
    ),
    (
        "qwen2-1.5b",
        r#"{"model_type":"qwen2","hidden_size":1536,"intermediate_size":8960,"num_hidden_layers":28,
        "num_attention_heads":12,"num_key_value_heads":2,"vocab_size":151936,"max_position_embeddings":32768,
        "rope_theta":1000000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "pythia-1.4b",
        r#"{"model_type":"gpt_neox","hidden_size":2048,"intermediate_size":8192,"num_hidden_layers":24,
        "num_attention_heads":16,"vocab_size":50304,"max_position_embeddings":2048}"#,
    ),
    (
        "gpt-neox-20b",
        r#"{"model_type":"gpt_neox","hidden_size":6144,"intermediate_size":24576,"num_hidden_layers":44,
        "num_attention_heads":64,"vocab_size":50432,"max_position_embeddings":2048,"hidden_act":"gelu_fast"}"#,
    ),
];
