//! Quantized checkpoints: weights bit by bit as the original tools decode them, and the logits that they make.
//!
//! `BANTAM_MORE_FORMATS` names a folder of more checkpoints with goldens, for a run by hand.

use std::path::PathBuf;

use bantam_core::Cpu;
use bantam_core::layouts::Shape;
use bantam_model::checkpoint::{Checkpoint, Dtype};
use bantam_model::engine::{Engine, StepError, stored};
use bantam_model::formats::decode;
use bantam_model::formats::encode::FOUR_BIT_BLOCK;
use bantam_model::formats::on_load::way;
use bantam_model::inspect::unquantized;
use bantam_model::plan::{Fill, Options, Plan, Stored};
use bantam_model::spec::ModelSpec;
use bantam_tests::{check_close, floats, ids, model_folder, open, options, repository};

/// Names and places.
fn folders() -> Vec<(String, PathBuf)> {
    let homes = [repository("tests/goldens/quant"), repository("tests/goldens/quant-made")];
    let more = std::env::var_os("BANTAM_MORE_FORMATS").map(PathBuf::from);
    let mut found = Vec::new();
    for home in homes.into_iter().chain(more) {
        for entry in std::fs::read_dir(home).expect("the goldens are there") {
            let entry = entry.expect("a folder");
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    found.sort();
    found.retain(|(_, folder)| folder.is_dir());
    // Other containers have their own test, `gguf.rs`.
    found.retain(|(name, _)| !name.starts_with("gguf"));
    found
}

/// Shape and values of what was a matrix.
fn decoded(checkpoint: &Checkpoint, plan: &Plan, name: &str) -> (Vec<usize>, Vec<f32>) {
    let found = unquantized(checkpoint, plan, name).expect("sound weights");
    let found = found.unwrap_or_else(|| panic!("{name} is not quantized"));
    let view = found.view();
    let mut values = vec![0.0; view.elements()];
    view.read_f32(0, &mut values);
    (view.shape.to_vec(), values)
}

#[test]
fn weights_are_the_originals_bit_by_bit() {
    for (name, folder) in folders() {
        let (spec, checkpoint) = open(&folder);
        let golden = Checkpoint::open(&folder.join("golden.safetensors")).expect("golden.safetensors");
        let plan =
            Plan::new(&spec, stored(&checkpoint), options(), Cpu::detect()).expect("it can be planned");
        let mut seen = 0;
        for tensor in golden.tensors() {
            let Some(module) = tensor.name.strip_prefix("dequant_rows.") else { continue };
            let (shape, values) = decoded(&checkpoint, &plan, &format!("{module}.weight"));
            let wanted = floats(&golden, tensor.name);
            assert_eq!(shape[1], tensor.shape[1], "{name} {module}");
            let differs = values.iter().zip(&wanted).position(|(a, b)| a.to_bits() != b.to_bits());
            if let Some(at) = differs {
                panic!("{name} {module}, element {at}: {}, not {}", values[at], wanted[at]);
            }
            seen += 1;
        }
        assert!(seen >= 2, "{name}: goldens of rows");
    }
}

#[test]
fn experts_are_the_originals_bit_by_bit() {
    let folder = model_folder("gpt_oss-mxfp4");
    let (spec, checkpoint) = open(&folder);
    let golden = Checkpoint::open(&folder.join("golden_dequant.safetensors")).expect("golden_dequant");
    let plan = Plan::new(&spec, stored(&checkpoint), options(), Cpu::detect()).expect("it can be planned");
    for part in ["gate_up_proj", "down_proj"] {
        let wanted = golden.tensor(&format!("model.layers.0.mlp.experts_0_1.{part}")).expect("a golden");
        let name = format!("model.layers.0.mlp.experts.{part}");
        let (shape, values) = decoded(&checkpoint, &plan, &name);
        assert_eq!((&shape[1..], wanted.shape[0]), (&wanted.shape[1..], 2), "{name}");
        let wanted = floats(&golden, wanted.name);
        assert!(values.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
    }
}

#[test]
fn logits_are_those_of_the_decoded_weights() {
    for (name, folder) in folders() {
        let (spec, checkpoint) = open(&folder);
        let golden = Checkpoint::open(&folder.join("golden.safetensors")).expect("golden.safetensors");
        let mut engine = Engine::load(spec, &checkpoint, options(), Cpu::detect(), 2).expect("it loads");
        let sequence = engine.open().expect("a free sequence");
        let tokens = ids(&golden, "input_ids");
        engine.prefill::<StepError>(sequence, &tokens, |_, _, _| Ok(())).expect("the prompt fits");
        let rows: Vec<usize> = (tokens.len() - 8..tokens.len()).collect();
        check_close(&name, engine.logits(&rows), &floats(&golden, "logits_tail"));
    }
}

/// Matrices that no layout holds in their codes: their columns are divided, or are sums of entries.
#[test]
fn what_is_decoded_is_quantized_as_decoded() {
    for (name, way_name, most) in [
        ("awq-gemm-g128-gpt_neox", "nf4", 0.2),
        ("awq-gemm-g128-gpt_neox", "gptq", 0.25),
        ("aqlm-1x10-llama", "nf4", 0.8),
    ] {
        let folder = repository("tests/goldens/quant").join(name);
        let (spec, checkpoint) = open(&folder);
        let golden = Checkpoint::open(&folder.join("golden.safetensors")).expect("golden.safetensors");
        let options = Options { quantization: way(way_name), ..options() };
        let mut engine = Engine::load(spec, &checkpoint, options, Cpu::detect(), 2).expect("it loads");
        let sequence = engine.open().expect("a free sequence");
        let tokens = ids(&golden, "input_ids");
        engine.prefill::<StepError>(sequence, &tokens, |_, _, _| Ok(())).expect("the prompt fits");
        let rows: Vec<usize> = (tokens.len() - 8..tokens.len()).collect();
        let (found, wanted) = (engine.logits(&rows), floats(&golden, "logits_tail"));
        let errors: f32 = found.iter().zip(&wanted).map(|(a, b)| (a - b) * (a - b)).sum();
        let relative = (errors / wanted.iter().map(|x| x * x).sum::<f32>()).sqrt();
        assert!(relative < most, "{name} as {way_name}: {relative}");
    }
}

/// Of a mixture with one quantized expert, the others are quantized beside it, and that one only where they all share
/// another layout.
#[test]
fn every_expert_is_quantized_its_own_way() {
    let (spec, checkpoint) = open(&model_folder("mixtral"));
    let there = stored(&checkpoint);
    let config = std::fs::read(model_folder("mixtral").join("config.json")).expect("it is there");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("it is JSON");
    config["quantization_config"] = serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    let quantized = ModelSpec::parse(config.to_string().as_bytes()).expect("a sound configuration");
    let hidden = spec.hidden;
    let is_first = |name: &str| name.contains("experts.0.w1");
    let some = |name: &str, shape: &[usize]| {
        let Some((matrix, suffix)) = name.split_once("w1.weight").filter(|_| is_first(name)) else {
            return there(name, shape);
        };
        let values: usize = there(&format!("{matrix}w1.weight"), &[])?.shape.iter().product();
        assert!(hidden.is_multiple_of(FOUR_BIT_BLOCK), "blocks lie within rows");
        let (dtype, shape) = match suffix {
            "" => (Dtype::U8, vec![values / 2, 1]),
            ".absmax" => (Dtype::F32, vec![values / FOUR_BIT_BLOCK]),
            ".quant_map" => (Dtype::F32, vec![16]),
            ".quant_state.bitsandbytes__nf4" => (Dtype::U8, vec![90]),
            _ => return None,
        };
        Some(Stored { dtype, shape })
    };
    for (way_name, of_first) in [("nf4", None), ("gptq", way("gptq"))] {
        let options = Options { quantization: way(way_name), ..options() };
        let plan = Plan::new(&quantized, some, options, Cpu::detect()).expect("it can be planned");
        let mut seen = 0;
        for fill in &plan.fills {
            let Fill::Matrix { origin, encode, .. } = fill else { continue };
            let name = origin.tensors()[0].as_str();
            if name.contains(".w1.") {
                assert_eq!(*encode, if is_first(name) { of_first } else { way(way_name) }, "{name}");
                seen += usize::from(is_first(name));
            }
        }
        assert!(seen > 0);
    }
}

/// AutoGPTQ takes one off every zero, also of those that lie in two words.
#[test]
fn zeros_of_three_bits_are_one_too_small_each() {
    let words = |codes: [u8; 32]| {
        let bit = |at: usize| codes[at / 3] >> (at % 3) & 1;
        (0..12).map(|byte| (0..8).map(|i| bit(8 * byte + i) << i).sum()).collect::<Vec<u8>>()
    };
    let zeros: [u8; 32] = std::array::from_fn(|output| 1 + output as u8 % 8);
    let tensors = [
        ("m.qweight", Stored { dtype: Dtype::I32, shape: vec![3, 32] }, vec![0; 3 * 32 * 4]),
        ("m.qzeros", Stored { dtype: Dtype::I32, shape: vec![1, 3] }, words(zeros.map(|zero| zero - 1))),
        ("m.scales", Stored { dtype: Dtype::F32, shape: vec![1, 32] }, 1f32.to_le_bytes().repeat(32)),
    ];
    let tensors = tensors.each_ref().map(|(name, stored, bytes)| (*name, stored.clone(), bytes.as_slice()));
    let config = br#"{"quant_method": "gptq", "bits": 3, "group_size": 32}"#;
    let found = decode(config, &tensors, "m", Shape { rows: 32, columns: 32 });
    let wanted = zeros.iter().flat_map(|zero| [-f32::from(*zero); 32]).collect();
    assert_eq!(found, Ok(Some(wanted)));
}
