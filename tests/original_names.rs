//! Checkpoints as their makers spell them: the goldens renamed, and the same bits computed.

use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::checkpoint::{Checkpoint, Dtype, writer::write_safetensors};
use bantam_model::engine::{Engine, StepError};
use bantam_model::spec::ModelSpec;
use bantam_tests::{check_close, floats, ids, load, model_folder, options};
use serde_json::{Value, json};

/// A tensor of its own: name, type, shape, bytes.
type Owned = (String, Dtype, Vec<usize>, Vec<u8>);

/// Ends of names within a layer, ours and the makers'.
const LAYER: &[(&str, &str)] = &[
    ("input_layernorm.weight", "attn.norm.scale"),
    ("post_attention_layernorm.weight", "mlp.norm.scale"),
    ("self_attn.sinks", "attn.sinks"),
    ("self_attn.o_proj.weight", "attn.out.weight"),
    ("self_attn.o_proj.bias", "attn.out.bias"),
    ("mlp.router.weight", "mlp.gate.weight"),
    ("mlp.router.bias", "mlp.gate.bias"),
    ("mlp.experts.gate_up_proj_blocks", "mlp.mlp1_weight.blocks"),
    ("mlp.experts.gate_up_proj_scales", "mlp.mlp1_weight.scales"),
    ("mlp.experts.gate_up_proj", "mlp.mlp1_weight"),
    ("mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias"),
    ("mlp.experts.down_proj_blocks", "mlp.mlp2_weight.blocks"),
    ("mlp.experts.down_proj_scales", "mlp.mlp2_weight.scales"),
    ("mlp.experts.down_proj", "mlp.mlp2_weight"),
    ("mlp.experts.down_proj_bias", "mlp.mlp2_bias"),
];
const WHOLE: &[(&str, &str)] = &[
    ("model.embed_tokens.weight", "embedding.weight"),
    ("model.norm.weight", "norm.scale"),
    ("lm_head.weight", "unembedding.weight"),
];

/// Inputs x outputs become outputs x inputs, for each expert.
fn turn(shape: &mut [usize], bytes: &[u8], element: usize) -> Vec<u8> {
    let (inputs, outputs) = (shape[1], shape[2]);
    shape.swap(1, 2);
    let mut turned = Vec::with_capacity(bytes.len());
    for expert in bytes.chunks_exact(inputs * outputs * element) {
        for output in 0..outputs {
            for input in 0..inputs {
                let at = (input * outputs + output) * element;
                turned.extend_from_slice(&expert[at..at + element]);
            }
        }
    }
    turned
}

fn renamed(checkpoint: &Checkpoint, layers: usize) -> Vec<Owned> {
    let own = |name: &str, new: String| {
        let tensor = checkpoint.tensor(name)?;
        Some((new, tensor.dtype, tensor.shape.to_vec(), tensor.data.to_vec()))
    };
    let mut tensors: Vec<Owned> =
        WHOLE.iter().filter_map(|(ours, theirs)| own(ours, (*theirs).into())).collect();
    for layer in 0..layers {
        let ours = |end: &str| format!("model.layers.{layer}.{end}");
        let theirs = |end: &str| format!("block.{layer}.{end}");
        for (end, new) in LAYER {
            let Some((name, dtype, mut shape, mut bytes)) = own(&ours(end), theirs(new)) else { continue };
            if dtype != Dtype::U8 && shape.len() == 3 {
                bytes = turn(&mut shape, &bytes, dtype.bytes());
            }
            tensors.push((name, dtype, shape, bytes));
        }
        for kind in ["weight", "bias"] {
            let part =
                |which| own(&ours(&format!("self_attn.{which}_proj.{kind}")), String::new()).expect("a part");
            let (name, [q, k, v]) = (theirs(&format!("attn.qkv.{kind}")), ["q", "k", "v"].map(part));
            let mut shape = q.2.clone();
            shape[0] += k.2[0] + v.2[0];
            tensors.push((name, q.1, shape, [q.3, k.3, v.3].concat()));
        }
    }
    tensors
}

/// The configuration with the makers' keys alone.
fn config(folder: &Path) -> Value {
    let text = std::fs::read(folder.join("config.json")).expect("the golden has a config.json");
    let ours: Value = serde_json::from_slice(&text).expect("it is JSON");
    let scaling = &ours["rope_scaling"];
    let mut theirs = json!({
        "num_experts": ours["num_local_experts"], "experts_per_token": ours["num_experts_per_tok"],
        "swiglu_limit": 7.0, "initial_context_length": scaling["original_max_position_embeddings"],
        "rope_scaling_factor": scaling["factor"], "rope_ntk_alpha": scaling["beta_slow"],
        "rope_ntk_beta": scaling["beta_fast"],
    });
    for key in [
        "num_hidden_layers",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
        "rope_theta",
    ] {
        theirs[key] = ours[key].clone();
    }
    theirs
}

/// A golden under its makers' names, and what else they put beside it.
fn folder(model: &str) -> PathBuf {
    let golden = model_folder(model);
    let folder = std::env::temp_dir().join(format!("bantam-original-{model}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let config = config(&golden);
    let layers = config["num_hidden_layers"].as_u64().expect("a number") as usize;
    let checkpoint = Checkpoint::open(&golden).expect("the golden opens");
    let tensors = renamed(&checkpoint, layers);
    let lent: Vec<_> =
        tensors.iter().map(|(name, dtype, shape, bytes)| (&**name, *dtype, &**shape, &**bytes)).collect();
    write_safetensors(&folder.join("model.safetensors"), &lent, &[]).expect("room in the temporary folder");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("room");
    std::fs::write(folder.join("dtypes.json"), r#"{"embedding.weight":"BF16"}"#).expect("room");
    folder
}

fn logits(engine: &mut Engine, prompt: &[u32]) -> Vec<f32> {
    let sequence = engine.open().expect("a free sequence");
    let mut logits = Vec::new();
    let all = |engine: &mut Engine, _, rows| {
        let rows: Vec<usize> = (0..rows).collect();
        logits.extend_from_slice(engine.logits(&rows));
        Ok::<(), StepError>(())
    };
    engine.prefill(sequence, prompt, all).expect("the prompt fits");
    engine.close(sequence);
    logits
}

#[test]
fn a_renamed_checkpoint_computes_the_same_bits() {
    for model in ["gpt_oss-mxfp4", "gpt_oss-bf16"] {
        let folder = folder(model);
        let mut engine = load(&folder, options(), Cpu::detect(), 2);
        let mut usual = load(&model_folder(model), options(), Cpu::detect(), 2);
        let golden =
            Checkpoint::open(&model_folder(model).join("golden.safetensors")).expect("golden.safetensors");
        for prompt in 0..3 {
            let tokens = ids(&golden, &format!("prompt{prompt}.input_ids"));
            let found = logits(&mut engine, &tokens);
            check_close(model, &found, &floats(&golden, &format!("prompt{prompt}.logits")));
            assert_eq!(found, logits(&mut usual, &tokens), "{model}, prompt {prompt}");
        }
        std::fs::remove_dir_all(folder).expect("it is ours");
    }
}

#[test]
fn the_makers_keys_are_read_and_refused_by_their_names() {
    let with = |key: &str, value: Value| {
        let mut config = config(&model_folder("gpt_oss-mxfp4"));
        config[key] = value;
        ModelSpec::parse(config.to_string().as_bytes()).map_err(|error| error.to_string())
    };
    let published = with("initial_context_length", json!(4096)).expect("sound");
    assert_eq!(published.context, 4096 * 4);
    assert_eq!(
        (published.layers[0].attention.window, published.layers[1].attention.window),
        (Some(32), None)
    );
    assert_eq!(with("model_type", json!("gpt_oss")).expect("sound").names.embedding, "embedding");
    let plain = with("rope_scaling_factor", json!(1.0)).expect("sound");
    assert_eq!(plain.ropes[0].attention_factor(), 1.0);
    for (key, value, word) in [
        ("num_experts", json!("many"), "\"num_experts\""),
        ("experts_per_token", json!(9), "at most num_experts, 8"),
        ("swiglu_limit", json!(6.0), "supported: 7"),
        ("initial_context_length", json!(1e11), "\"initial_context_length\""),
        ("rope_scaling_factor", json!(-1), "\"rope_scaling_factor\""),
        ("rope_ntk_beta", json!([]), "\"rope_ntk_beta\""),
        ("model_type", json!("zebra"), "zebra"),
    ] {
        let message = with(key, value).map(|_| ()).expect_err(key);
        assert!(message.contains(word), "{key}: {message}");
    }
}
