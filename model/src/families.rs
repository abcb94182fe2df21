//! The table of model families: what each calls things, and which of the house's enums it uses.
//!
//! This is the only file that names a family. A new family is a new entry here and a golden; a new *behaviour* is a
//! variant of an enum in `spec/` and an operation in `bantam-core`.

use bantam_core::{Activation, KvKind, NormKind};

use crate::config::{Config, ConfigError};
use crate::rope::Scaling;

/// How a family's configuration and checkpoint are to be read. A key with a value beside it has that default.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type`.
    pub name: &'static str,
    /// Keys that tell an entry apart where files of one family are spelled in two ways, and some have no `model_type`.
    pub told_by: &'static [&'static str],
    /// Positions where `max_position_embeddings` is absent.
    pub context: usize,
    /// Norm of every place.
    pub norm: NormKind,
    /// Its epsilon.
    pub epsilon: (&'static str, f64),
    /// Added to norm weights.
    pub weight_shift: f32,
    /// Flag that makes both blocks see the layer's input.
    pub parallel: Option<(&'static str, bool)>,
    /// The feed-forward bend.
    pub activation: Bend,
    /// The choice of a feed-forward block among several.
    pub experts: Option<ExpertRule>,
    /// Keys of the rotary base.
    pub rope_base: (&'static [&'static str], f64),
    /// Base of a second rotary table, of windowed layers alone, which nothing bends.
    pub rope_base_windowed: Option<(&'static str, f64)>,
    /// How rotary frequencies are bent where no key says it; `null` is not at all.
    pub rope_scaling: Option<&'static Scaling>,
    /// YaRN's numbers where they are keys beside all others; the context is then their product.
    pub yarn: Option<YarnKeys>,
    /// Default of `original_max_position_embeddings`.
    pub original_context: Option<usize>,
    /// Keys of the share of a head's channels that is turned.
    pub rope_fraction: (&'static [&'static str], f64),
    /// How a window over positions is asked for.
    pub window: Option<WindowRule>,
    /// Default of `tie_word_embeddings`.
    pub tied: bool,
    /// Key and value heads.
    pub kv_heads: KvHeads,
    /// How they are stored beside a card by a run that computes fast, where nobody says: in eight bits where every
    /// query head has its own, and a small card would hold little else; attention averages over what is rounded.
    pub kv_beside_card: KvKind,
    /// Channels of a head where `head_dim` is absent; `None`, as `null` there, divides the stream among the heads.
    pub head_width: Option<usize>,
    /// Scores are divided by the root of this; by that of a head's channels where there is no key.
    pub score_scale: Option<(&'static str, f64)>,
    /// Bends scores towards a limit.
    pub score_cap: Option<(&'static str, Option<f64>)>,
    /// The same for logits.
    pub logits_cap: Option<(&'static str, Option<f64>)>,
    /// Whether embeddings are multiplied by the root of their width.
    pub scaled_embedding: bool,
    /// Flags that change what is computed, and are not supported.
    pub refused: &'static [&'static str],
    /// Numbers that change what is computed, and the one value that is supported.
    pub fixed: &'static [(&'static str, f64)],
    /// Bias of query, key and value.
    pub input_bias: Bias,
    /// Bias of the attention's output.
    pub output_bias: Bias,
    /// Bias of the feed-forward block.
    pub mlp_bias: Bias,
    /// How matrices are quantized where no `quantization_config` says it, as far as they are.
    pub quant_method: Option<&'static str>,
    /// Tensor names.
    pub names: Names,
    /// How it stands in GGUF files.
    pub gguf: Gguf,
}

/// How a family stands in GGUF files. Norm weights have their shift added there.
#[derive(Debug, PartialEq, Eq)]
pub struct Gguf {
    /// `general.architecture`; where families share one, the last of the table whose `mark` is there is meant.
    pub architecture: &'static str,
    /// A key, without the architecture, that is there and neither 0 nor false.
    pub mark: Option<&'static str>,
    /// Names for the house, where matrices are put together otherwise than in `Family::names`.
    pub names: Option<Names>,
    /// Names in the file of what those name, role by role.
    pub stored: Names,
    /// Layers of the size whose heads are scaled by the stream's share of a head, not by their own width.
    pub odd_scale: Option<usize>,
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

/// Where the feed-forward bend is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bend {
    /// A key and its default.
    Key(&'static str, &'static str),
    /// Nowhere: the family has but one.
    Always(Activation),
}

/// How many key and value heads there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvHeads {
    /// As many as query heads; a stray key is ignored, as the reference does.
    All,
    /// As `num_key_value_heads` says; where it is absent, this many, or as many as query heads.
    Grouped(Option<usize>),
}

/// Keys of YaRN's numbers and their defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnKeys {
    /// The context before bending.
    pub original: (&'static str, f64),
    /// Divisor of low frequencies.
    pub factor: (&'static str, f64),
    /// Turns above which a frequency is kept.
    pub fast: (&'static str, f64),
    /// Turns below which it is divided.
    pub slow: (&'static str, f64),
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertRule {
    /// Key of how many there are.
    pub count: &'static str,
    /// Key of how many a token is sent to.
    pub chosen: (&'static str, usize),
    /// Bias of the router.
    pub router_bias: bool,
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
    /// Whether `layer_types`, where it is given, names the windowed layers.
    pub listed: bool,
    /// The windowed layers where no list counts.
    pub layers: Windowed,
}

/// Layers that see only a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windowed {
    /// All.
    All,
    /// From the one that a key names.
    From(&'static str, usize),
    /// All but the last of every so many, as a key or the family says.
    AllBut(Option<&'static str>, usize),
}

/// Names of tensors. `.weight` and `.bias` are appended, to norms what `norm_weight` says.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// Embedding table.
    pub embedding: &'static str,
    /// Head.
    pub head: &'static str,
    /// Norm before the head.
    pub final_norm: &'static str,
    /// What a norm's weight is called.
    pub norm_weight: &'static str,
    /// Before every name of a layer; `{}` is its number.
    pub layer: &'static str,
    /// Norm before attention.
    pub attention_norm: &'static str,
    /// Norm before the feed-forward block.
    pub mlp_norm: &'static str,
    /// Norms after attention and after the feed-forward block, before they are added to the stream.
    pub post_norms: Option<[&'static str; 2]>,
    /// Norms of every query head and every key head.
    pub head_norms: Option<[&'static str; 2]>,
    /// Queries.
    pub query: Part,
    /// Keys.
    pub key: Part,
    /// Values.
    pub value: Part,
    /// Attention's output.
    pub output: Part,
    /// Whether that comes first among the modules where models are trained: new numbers are drawn in their order.
    pub output_first: bool,
    /// A score per query head that every token sees, and that leads nowhere; the whole name.
    pub sinks: Option<&'static str>,
    /// First projection of a gated block.
    pub gate: Option<Part>,
    /// Projection to the hidden units.
    pub up: Part,
    /// Projection back.
    pub down: Part,
    /// Where a feed-forward block is one of several: the projection to their logits, and how the others lie.
    pub experts: Option<(&'static str, Stack)>,
}

/// How the matrices of experts are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// A tensor for each; `{}` in a name is its number.
    Apart,
    /// All in one tensor; `_bias` is appended for the biases.
    Together {
        /// Appended for the matrices.
        matrix: &'static str,
        /// Whether they are inputs x outputs and not outputs x inputs.
        turned: bool,
    },
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
    Heads {
        /// Which of them.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// Single rows alternate.
    Single {
        /// Which of them.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// Projections follow one another; this is its number.
    Section(usize),
    /// In every head, the rows of its two halves alternate: those that are turned together stand together.
    Pairs,
}

/// How rotary frequencies are bent; the arithmetic is in `rope.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopeKind {
    Plain,
    Linear,
    ByWavelength,
    Yarn,
    ByPair,
}

/// What configurations call the kinds. Dynamic scaling changes nothing up to the configured context, and Bantam goes
/// no further than that.
pub(crate) static ROPE_TYPES: &[(&str, RopeKind)] = &[
    ("default", RopeKind::Plain),
    ("dynamic", RopeKind::Plain),
    ("linear", RopeKind::Linear),
    ("llama3", RopeKind::ByWavelength),
    ("yarn", RopeKind::Yarn),
    ("longrope", RopeKind::ByPair),
    ("su", RopeKind::ByPair),
];

/// The same for an error message.
pub(crate) const ROPE_TYPE_NAMES: &str = "default, linear, dynamic, llama3, yarn, longrope";

const fn whole(module: &'static str) -> Part {
    Part { module, rows: Rows::All }
}

const fn heads(module: &'static str, index: usize) -> Part {
    Part { module, rows: Rows::Heads { index, of: 3 } }
}

const fn single(module: &'static str, index: usize) -> Part {
    Part { module, rows: Rows::Single { index, of: 2 } }
}

const fn pairs(module: &'static str) -> Part {
    Part { module, rows: Rows::Pairs }
}

const fn section(module: &'static str, index: usize) -> Part {
    Part { module, rows: Rows::Section(index) }
}

/// Names that most families share.
const USUAL_NAMES: Names = Names {
    embedding: "model.embed_tokens",
    head: "lm_head",
    final_norm: "model.norm",
    norm_weight: "weight",
    layer: "model.layers.{}.",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    post_norms: None,
    head_norms: None,
    query: whole("self_attn.q_proj"),
    key: whole("self_attn.k_proj"),
    value: whole("self_attn.v_proj"),
    output: whole("self_attn.o_proj"),
    output_first: false,
    sinks: None,
    gate: Some(whole("mlp.gate_proj")),
    up: whole("mlp.up_proj"),
    down: whole("mlp.down_proj"),
    experts: None,
};

/// Names of the family that was first here.
const NEOX_NAMES: Names = Names {
    embedding: "gpt_neox.embed_in",
    head: "embed_out",
    final_norm: "gpt_neox.final_layer_norm",
    layer: "gpt_neox.layers.{}.",
    query: heads("attention.query_key_value", 0),
    key: heads("attention.query_key_value", 1),
    value: heads("attention.query_key_value", 2),
    output: whole("attention.dense"),
    output_first: false,
    gate: None,
    up: whole("mlp.dense_h_to_4h"),
    down: whole("mlp.dense_4h_to_h"),
    ..USUAL_NAMES
};

/// Names of a mixture whose experts are stored apart.
const MIXTRAL_NAMES: Names = Names {
    gate: Some(whole("block_sparse_moe.experts.{}.w1")),
    up: whole("block_sparse_moe.experts.{}.w3"),
    down: whole("block_sparse_moe.experts.{}.w2"),
    experts: Some(("block_sparse_moe.gate", Stack::Apart)),
    ..USUAL_NAMES
};

/// Names of a mixture whose experts are stored together, with sinks.
const SINK_NAMES: Names = Names {
    sinks: Some("self_attn.sinks"),
    gate: Some(single("mlp.experts.gate_up_proj", 0)),
    up: single("mlp.experts.gate_up_proj", 1),
    down: whole("mlp.experts.down_proj"),
    experts: Some(("mlp.router", Stack::Together { matrix: "", turned: true })),
    ..USUAL_NAMES
};

/// Names in GGUF files, which are the same for all families.
const GGUF_NAMES: Names = Names {
    embedding: "token_embd",
    head: "output",
    final_norm: "output_norm",
    norm_weight: "weight",
    layer: "blk.{}.",
    attention_norm: "attn_norm",
    mlp_norm: "ffn_norm",
    post_norms: Some(["post_attention_norm", "post_ffw_norm"]),
    head_norms: Some(["attn_q_norm", "attn_k_norm"]),
    query: whole("attn_q"),
    key: whole("attn_k"),
    value: whole("attn_v"),
    output: whole("attn_output"),
    output_first: false,
    sinks: Some("attn_sinks.weight"),
    gate: Some(whole("ffn_gate")),
    up: whole("ffn_up"),
    down: whole("ffn_down"),
    experts: None,
};

/// The same where query, key and value are one matrix.
const GGUF_FUSED: Names =
    Names { query: whole("attn_qkv"), key: whole("attn_qkv"), value: whole("attn_qkv"), ..GGUF_NAMES };

/// The same of mixtures.
const GGUF_EXPERTS: Names = Names {
    gate: Some(whole("ffn_gate_exps")),
    up: whole("ffn_up_exps"),
    down: whole("ffn_down_exps"),
    experts: Some(("ffn_gate_inp", Stack::Together { matrix: "", turned: false })),
    ..GGUF_NAMES
};

/// A family that stands in GGUF files as in others.
const fn gguf(architecture: &'static str) -> Gguf {
    Gguf { architecture, mark: None, names: None, stored: GGUF_NAMES, odd_scale: None }
}

/// Queries and keys of the first family that GGUF files were made for, and of those like it.
const PAIRED: Names =
    Names { query: pairs("self_attn.q_proj"), key: pairs("self_attn.k_proj"), ..USUAL_NAMES };

/// What most families share.
const USUAL: Family = Family {
    name: "",
    told_by: &[],
    context: 2048,
    norm: NormKind::Rms,
    epsilon: ("rms_norm_eps", 1e-6),
    weight_shift: 0.0,
    parallel: None,
    activation: Bend::Key("hidden_act", "silu"),
    experts: None,
    rope_base: (&["rope_theta"], 10_000.0),
    rope_base_windowed: None,
    rope_scaling: None,
    yarn: None,
    original_context: None,
    rope_fraction: (&[], 1.0),
    window: None,
    tied: false,
    kv_heads: KvHeads::Grouped(None),
    kv_beside_card: KvKind::F16,
    head_width: None,
    score_scale: None,
    score_cap: None,
    logits_cap: None,
    scaled_embedding: false,
    refused: &[],
    fixed: &[],
    input_bias: Bias::No,
    output_bias: Bias::No,
    mlp_bias: Bias::No,
    quant_method: None,
    names: USUAL_NAMES,
    gguf: gguf(""),
};

/// A window of `sliding_window` positions in all layers.
const fn window(width: Option<usize>) -> Option<WindowRule> {
    Some(WindowRule { key: "sliding_window", width, flag: None, listed: false, layers: Windowed::All })
}

/// The same in the layers that `layer_types` names; in some, where it is absent.
const fn listed(width: usize, flag: Option<&'static str>, layers: Windowed) -> Option<WindowRule> {
    Some(WindowRule { key: "sliding_window", width: Some(width), flag, listed: true, layers })
}

/// Every family.
pub static FAMILIES: &[Family] = &[
    Family {
        name: "gpt_neox",
        norm: NormKind::Layer,
        epsilon: ("layer_norm_eps", 1e-5),
        parallel: Some(("use_parallel_residual", true)),
        activation: Bend::Key("hidden_act", "gelu"),
        rope_base: (&["rotary_emb_base", "rope_theta"], 10_000.0),
        rope_fraction: (&["rotary_pct", "partial_rotary_factor"], 0.25),
        kv_heads: KvHeads::All,
        kv_beside_card: KvKind::Int8,
        input_bias: Bias::Key("attention_bias", true),
        output_bias: Bias::Key("attention_bias", true),
        mlp_bias: Bias::Yes,
        names: NEOX_NAMES,
        gguf: Gguf {
            names: Some(Names {
                query: section("attention.query_key_value", 0),
                key: section("attention.query_key_value", 1),
                value: section("attention.query_key_value", 2),
                ..NEOX_NAMES
            }),
            stored: GGUF_FUSED,
            ..gguf("gptneox")
        },
        ..USUAL
    },
    Family {
        name: "llama",
        rope_fraction: (&["partial_rotary_factor"], 1.0),
        input_bias: Bias::Key("attention_bias", false),
        output_bias: Bias::Key("attention_bias", false),
        mlp_bias: Bias::Key("mlp_bias", false),
        gguf: Gguf { names: Some(PAIRED), ..gguf("llama") },
        ..USUAL
    },
    Family {
        name: "qwen2",
        context: 32_768,
        window: listed(4096, Some("use_sliding_window"), Windowed::From("max_window_layers", 28)),
        input_bias: Bias::Yes,
        gguf: gguf("qwen2"),
        ..USUAL
    },
    Family {
        name: "qwen3",
        context: 32_768,
        window: listed(4096, Some("use_sliding_window"), Windowed::From("max_window_layers", 28)),
        kv_heads: KvHeads::Grouped(Some(32)),
        head_width: Some(128),
        input_bias: Bias::Key("attention_bias", false),
        output_bias: Bias::Key("attention_bias", false),
        names: Names { head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..USUAL_NAMES },
        gguf: gguf("qwen3"),
        ..USUAL
    },
    Family {
        name: "mistral",
        context: 131_072,
        window: window(Some(4096)),
        kv_heads: KvHeads::Grouped(Some(8)),
        gguf: Gguf { mark: Some("attention.sliding_window"), names: Some(PAIRED), ..gguf("llama") },
        ..USUAL
    },
    Family {
        name: "mixtral",
        context: 131_072,
        epsilon: ("rms_norm_eps", 1e-5),
        experts: Some(ExpertRule {
            count: "num_local_experts",
            chosen: ("num_experts_per_tok", 2),
            router_bias: false,
        }),
        rope_base: (&["rope_theta"], 1e6),
        window: window(None),
        kv_heads: KvHeads::Grouped(Some(8)),
        names: MIXTRAL_NAMES,
        gguf: Gguf {
            mark: Some("expert_count"),
            names: Some(Names {
                query: pairs("self_attn.q_proj"),
                key: pairs("self_attn.k_proj"),
                ..MIXTRAL_NAMES
            }),
            stored: GGUF_EXPERTS,
            ..gguf("llama")
        },
        ..USUAL
    },
    Family {
        name: "phi3",
        context: 4096,
        epsilon: ("rms_norm_eps", 1e-5),
        original_context: Some(4096),
        rope_fraction: (&["partial_rotary_factor"], 1.0),
        window: window(None),
        names: Names {
            query: section("self_attn.qkv_proj", 0),
            key: section("self_attn.qkv_proj", 1),
            value: section("self_attn.qkv_proj", 2),
            output_first: true,
            gate: Some(section("mlp.gate_up_proj", 0)),
            up: section("mlp.gate_up_proj", 1),
            ..USUAL_NAMES
        },
        gguf: Gguf { stored: Names { gate: Some(whole("ffn_up")), ..GGUF_FUSED }, ..gguf("phi3") },
        ..USUAL
    },
    Family {
        name: "gemma2",
        context: 8192,
        weight_shift: 1.0,
        activation: Bend::Key("hidden_activation", "gelu_pytorch_tanh"),
        window: listed(4096, None, Windowed::AllBut(None, 2)),
        tied: true,
        kv_heads: KvHeads::Grouped(Some(4)),
        head_width: Some(256),
        score_scale: Some(("query_pre_attn_scalar", 256.0)),
        score_cap: Some(("attn_logit_softcapping", Some(50.0))),
        logits_cap: Some(("final_logit_softcapping", Some(30.0))),
        scaled_embedding: true,
        refused: &["use_bidirectional_attention"],
        input_bias: Bias::Key("attention_bias", false),
        output_bias: Bias::Key("attention_bias", false),
        names: Names {
            mlp_norm: "pre_feedforward_layernorm",
            post_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
            ..USUAL_NAMES
        },
        gguf: Gguf { odd_scale: Some(46), ..gguf("gemma2") },
        ..USUAL
    },
    Family {
        name: "gemma3_text",
        context: 131_072,
        weight_shift: 1.0,
        activation: Bend::Key("hidden_activation", "gelu_pytorch_tanh"),
        rope_base: (&["rope_theta"], 1e6),
        rope_base_windowed: Some(("rope_local_base_freq", 10_000.0)),
        window: listed(4096, None, Windowed::AllBut(Some("sliding_window_pattern"), 6)),
        tied: true,
        kv_heads: KvHeads::Grouped(Some(4)),
        head_width: Some(256),
        score_scale: Some(("query_pre_attn_scalar", 256.0)),
        logits_cap: Some(("final_logit_softcapping", None)),
        scaled_embedding: true,
        refused: &["use_bidirectional_attention"],
        input_bias: Bias::Key("attention_bias", false),
        output_bias: Bias::Key("attention_bias", false),
        names: Names {
            mlp_norm: "pre_feedforward_layernorm",
            post_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
            head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
            ..USUAL_NAMES
        },
        gguf: Gguf { odd_scale: Some(62), ..gguf("gemma3") },
        ..USUAL
    },
    Family {
        name: "gpt_oss",
        context: 131_072,
        epsilon: ("rms_norm_eps", 1e-5),
        activation: Bend::Always(Activation::ClampedSwish),
        experts: Some(ExpertRule {
            count: "num_local_experts",
            chosen: ("num_experts_per_tok", 4),
            router_bias: true,
        }),
        rope_base: (&["rope_theta"], 150_000.0),
        rope_scaling: Some(&Scaling::Yarn {
            factor: 32.0,
            fast: 32.0,
            slow: 1.0,
            original: 4096.0,
            attention: 1.346_573_6,
            truncate: false,
        }),
        window: listed(128, None, Windowed::AllBut(None, 2)),
        kv_heads: KvHeads::Grouped(Some(8)),
        head_width: Some(64),
        fixed: &[("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)],
        input_bias: Bias::Key("attention_bias", true),
        output_bias: Bias::Key("attention_bias", true),
        mlp_bias: Bias::Yes,
        names: SINK_NAMES,
        gguf: Gguf {
            names: Some(Names {
                gate: Some(whole("mlp.experts.gate_proj")),
                up: whole("mlp.experts.up_proj"),
                experts: Some(("mlp.router", Stack::Together { matrix: "", turned: false })),
                ..SINK_NAMES
            }),
            stored: Names { mlp_norm: "post_attention_norm", ..GGUF_EXPERTS },
            ..gguf("gpt-oss")
        },
        ..USUAL
    },
    // The same as its makers publish it: other keys and names, queries, keys and values in one tensor.
    Family {
        name: "gpt_oss",
        told_by: &["num_experts", "experts_per_token", "rope_scaling_factor"],
        epsilon: ("rms_norm_eps", 1e-5),
        activation: Bend::Always(Activation::ClampedSwish),
        experts: Some(ExpertRule {
            count: "num_experts",
            chosen: ("experts_per_token", 4),
            router_bias: true,
        }),
        rope_base: (&["rope_theta"], 150_000.0),
        yarn: Some(YarnKeys {
            original: ("initial_context_length", 4096.0),
            factor: ("rope_scaling_factor", 32.0),
            fast: ("rope_ntk_beta", 32.0),
            slow: ("rope_ntk_alpha", 1.0),
        }),
        window: listed(128, None, Windowed::AllBut(None, 2)),
        kv_heads: KvHeads::Grouped(Some(8)),
        head_width: Some(64),
        fixed: &[("swiglu_limit", 7.0)],
        input_bias: Bias::Yes,
        output_bias: Bias::Yes,
        mlp_bias: Bias::Yes,
        quant_method: Some("mxfp4"),
        names: Names {
            embedding: "embedding",
            head: "unembedding",
            final_norm: "norm",
            norm_weight: "scale",
            layer: "block.{}.",
            attention_norm: "attn.norm",
            mlp_norm: "mlp.norm",
            query: section("attn.qkv", 0),
            key: section("attn.qkv", 1),
            value: section("attn.qkv", 2),
            output: whole("attn.out"),
            output_first: false,
            sinks: Some("attn.sinks"),
            gate: Some(single("mlp.mlp1", 0)),
            up: single("mlp.mlp1", 1),
            down: whole("mlp.mlp2"),
            experts: Some(("mlp.gate", Stack::Together { matrix: "_weight", turned: false })),
            ..USUAL_NAMES
        },
        ..USUAL
    },
];

/// What GGUF files call a vocabulary with merges, and one with scores.
pub(crate) const MERGED: &str = "gpt2";
pub(crate) const SCORED: &str = "llama";

/// Spellings of tokens that end a reply, and whether they do so where one of [`ENDS_UNLESS`] is there, too: then they
/// end one of several messages of a reply.
pub(crate) static ENDS: &[(&str, bool)] = &[
    ("<|eot_id|>", true),
    ("<|eom_id|>", true),
    ("<|im_end|>", true),
    ("<end_of_turn>", true),
    ("<|return|>", true),
    ("<|call|>", true),
    ("<|end|>", false),
];
pub(crate) static ENDS_UNLESS: &[&str] = &["<|return|>"];

/// How text is split before a vocabulary with merges is applied.
pub(crate) struct Split {
    /// What GGUF files call it.
    pub(crate) names: &'static [&'static str],
    /// One after another, each splitting what the one before has left.
    pub(crate) patterns: &'static [&'static str],
    /// Whether characters are composed first (NFC).
    pub(crate) composed: bool,
    /// Whether a piece that is a token stays one, whatever the merges make of it.
    pub(crate) ignore_merges: bool,
    /// Whether a text begins with a token of its own where the file does not say.
    pub(crate) bos: bool,
}

/// The first of all such patterns.
pub(crate) const SPLIT_PLAIN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const SPLIT_DIGITS_3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const SPLIT_DIGITS_1: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const SPLIT_CAPITALS: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const SPLIT_CAPITALS_DIGITS_1: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const SPLIT: Split =
    Split { names: &[], patterns: &[SPLIT_PLAIN], composed: false, ignore_merges: false, bos: false };

/// Every such way.
pub(crate) static SPLITS: &[Split] = &[
    Split {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", SPLIT_PLAIN, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..SPLIT
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        patterns: &[SPLIT_DIGITS_3],
        ignore_merges: true,
        bos: true,
        ..SPLIT
    },
    Split { names: &["dbrx", "smaug-bpe"], patterns: &[SPLIT_DIGITS_3], ..SPLIT },
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"],
        patterns: &[SPLIT_DIGITS_1],
        composed: true,
        ..SPLIT
    },
    Split { names: &["gpt-4o"], patterns: &[SPLIT_CAPITALS], ignore_merges: true, ..SPLIT },
    Split {
        names: &["tekken"],
        patterns: &[SPLIT_CAPITALS_DIGITS_1],
        ignore_merges: true,
        bos: true,
        ..SPLIT
    },
    Split { names: &["gpt-2", "phi-2", "mpt", "exaone4"], ..SPLIT },
    Split { names: &["olmo", "gptneox", "gpt-neox"], composed: true, ..SPLIT },
    Split {
        names: &["smollm", "starcoder", "refact", "codeshell", "minerva-7b"],
        patterns: &[r"\p{N}", SPLIT_PLAIN],
        ..SPLIT
    },
    Split {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            concat!(
                "\\s?[",
                "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-\u{293}\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}",
                "\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-",
                "\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}",
                "-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}",
                "\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}",
                "-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-",
                "\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}",
                "\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}",
                "\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-",
                "\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}",
                "\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-",
                "\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-",
                "\u{1e943}",
                "]+",
            ),
            "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+",
            r"\s+$",
            "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+",
            r"\p{N}",
        ],
        ..SPLIT
    },
    Split {
        names: &["deepseek-coder"],
        patterns: &[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+",
            r"\p{N}",
        ],
        ..SPLIT
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
    (
        "gpt-oss-20b",
        r#"{"model_type":"gpt_oss","hidden_size":2880,"intermediate_size":2880,"num_hidden_layers":24,
        "num_attention_heads":64,"num_key_value_heads":8,"head_dim":64,"vocab_size":201088,
        "max_position_embeddings":131072,"num_local_experts":32,"num_experts_per_tok":4,"sliding_window":128,
        "rope_scaling":{"rope_type":"yarn","factor":32.0,"beta_fast":32.0,"beta_slow":1.0,"truncate":false,
        "original_max_position_embeddings":4096}}"#,
    ),
    (
        "mixtral-8x7b",
        r#"{"model_type":"mixtral","hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,
        "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":32000,"max_position_embeddings":32768,
        "num_local_experts":8,"num_experts_per_tok":2}"#,
    ),
];
