//! Quantized checkpoints: weights bit by bit as the original tools decode them, and the logits that they make.
//!
//! `BANTAM_MORE_FORMATS` names a folder of more checkpoints with goldens, for a run by hand.

use std::path::PathBuf;

use bantam_core::Cpu;
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Engine, StepError, stored};
use bantam_model::inspect::unquantized;
use bantam_model::plan::Plan;
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
