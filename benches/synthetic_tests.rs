//! Made-up checkpoints in every format, at a tiny shape: they open, they run, and what cannot be had is refused.

use std::fs;
use std::path::PathBuf;

use bantam_benches::synthetic::{FORMATS, Format, Request};
use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Engine, StepError};
use bantam_model::plan::Options;
use bantam_model::spec::ModelSpec;

const PLAIN: &str = r#"{"model_type":"llama","hidden_size":256,"intermediate_size":384,"num_hidden_layers":2,
    "num_attention_heads":8,"num_key_value_heads":2,"vocab_size":96,"max_position_embeddings":64}"#;
const UNGATED: &str = r#"{"model_type":"gpt_neox","hidden_size":128,"intermediate_size":256,"num_hidden_layers":2,
    "num_attention_heads":4,"vocab_size":96,"max_position_embeddings":64,"hidden_act":"gelu"}"#;
const EXPERTS: &str = r#"{"model_type":"gpt_oss","hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,
    "num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"vocab_size":96,"max_position_embeddings":64,
    "num_local_experts":4,"num_experts_per_tok":2,"rope_scaling":null}"#;

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("bantam-synthetic-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn request(config: &str, format: Format) -> Request<'_> {
    Request { config, layers: None, format, seed: 1 }
}

/// Logits after a few tokens.
fn logits(folder: &std::path::Path) -> Vec<f32> {
    let config = fs::read(folder.join("config.json")).expect("it was written");
    let spec = ModelSpec::parse(&config).expect("it is sound");
    let checkpoint = Checkpoint::open(folder).expect("it opens");
    let options = Options {
        context: 16,
        sequences: 1,
        chunk: 8,
        logits_rows: 8,
        kv: KvKind::F32,
        precision: Precision::Exact,
        quantization: None,
        head: None,
        cache_positions: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    };
    let mut engine = Engine::load(spec, &checkpoint, options, Cpu::detect(), 1).expect("it loads");
    let sequence = engine.open().expect("a free sequence");
    engine.prefill::<StepError>(sequence, &[1, 50, 7, 95], |_, _, _| Ok(())).expect("it fits");
    engine.logits(&[3]).to_vec()
}

#[test]
fn every_format_runs_where_its_tool_has_it() {
    for (shape, config) in [("plain", PLAIN), ("ungated", UNGATED), ("experts", EXPERTS)] {
        for &(name, format) in FORMATS {
            let what = format!("{shape}-{name}");
            let folder = folder(&what);
            let together = matches!(format, Format::Bf16 | Format::Mxfp4);
            let is_had = if shape == "experts" { together } else { format != Format::Mxfp4 };
            let written = request(config, format).write(&folder);
            if !is_had {
                let message = written.expect_err(&what).to_string();
                assert!(message.contains("experts"), "{what}: {message}");
                assert!(!folder.exists(), "{what}: nothing is left");
                continue;
            }
            written.unwrap_or_else(|error| panic!("{what}: {error}"));
            let logits = logits(&folder);
            let mean = logits.iter().sum::<f32>() / logits.len() as f32;
            let deviation = logits.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / logits.len() as f32;
            println!("{what}: mean {mean}, variance {deviation}");
            assert!((0.01..100.0).contains(&deviation), "{what}: {logits:?}");
            fs::remove_dir_all(folder).expect("it is ours");
        }
    }
}

#[test]
fn a_seed_is_a_checkpoint_and_layers_can_be_fewer() {
    let weights = |seed, layers| {
        let folder = folder(&format!("seed-{seed}-{layers}"));
        let request = Request { seed, layers: Some(layers), ..request(PLAIN, Format::Nf4 { nested: true }) };
        request.write(&folder).expect("it is written");
        let bytes = fs::read(folder.join("model.safetensors")).expect("it was written");
        fs::remove_dir_all(folder).expect("it is ours");
        bytes
    };
    let first = weights(1, 2);
    assert_eq!(first, weights(1, 2));
    assert_ne!(first, weights(2, 2));
    assert!(weights(1, 1).len() < first.len());
    let none = Request { layers: Some(3), ..request(PLAIN, Format::Bf16) };
    let message = none.write(&folder("layers")).expect_err("it has two").to_string();
    assert!(message.contains("choose 1 to 2"), "{message}");
}

#[test]
fn what_is_there_is_kept_and_what_cannot_be_is_refused() {
    let folder = folder("taken");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("mine"), "kept").expect("a file");
    let message = request(PLAIN, Format::Bf16).write(&folder).expect_err("it is taken").to_string();
    assert!(message.contains("new folder"), "{message}");
    assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 1);
    let message = request(PLAIN, Format::Bf16).write(&folder.join("mine")).expect_err("a file").to_string();
    assert!(message.contains("mine"), "{message}");
    let fast = UNGATED.replace("\"gelu\"", "\"gelu_fast\"");
    let message = request(&fast, Format::Awq).write(&folder.join("new")).expect_err("refused").to_string();
    assert!(message.contains("gelu_fast"), "{message}");
    let odd = PLAIN.replace("384", "320");
    let gptq = Format::Gptq { by_activation: false };
    let message = request(&odd, gptq).write(&folder.join("new")).expect_err("refused").to_string();
    assert!(message.contains("320 inputs") && message.contains("128"), "{message}");
    fs::remove_dir_all(folder).expect("it is ours");
}
