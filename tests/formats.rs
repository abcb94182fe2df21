//! Quantized checkpoints: weights bit by bit as the original tools decode them, and the logits that they make.

use bantam_core::Cpu;
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Engine, StepError, stored};
use bantam_model::inspect::unpacked;
use bantam_model::plan::Plan;
use bantam_tests::{floats, ids, model_folder, open, options, repository};

/// Read by nobody yet.
const PENDING: &[&str] = &["gguf"];

fn folders() -> Vec<String> {
    let listing = std::fs::read_dir(repository("tests/goldens/quant")).expect("the goldens are there");
    let names = listing.map(|entry| entry.expect("a folder").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    let is_pending = |name: &String| PENDING.iter().any(|format| name.starts_with(format));
    names.iter().filter(|name| is_pending(name)).for_each(|name| println!("{name}: skipped, not read yet"));
    names.retain(|name| !is_pending(name));
    names
}

#[test]
fn weights_are_the_originals_bit_by_bit() {
    for name in folders() {
        let folder = repository("tests/goldens/quant").join(&name);
        let (spec, checkpoint) = open(&folder);
        let golden = Checkpoint::open(&folder.join("golden.safetensors")).expect("golden.safetensors");
        let plan =
            Plan::new(&spec, stored(&checkpoint), options(), Cpu::detect()).expect("it can be planned");
        let mut seen = 0;
        for tensor in golden.tensors() {
            let Some(module) = tensor.name.strip_prefix("dequant_rows.") else { continue };
            let found = unpacked(&checkpoint, &plan, &format!("{module}.weight")).expect("sound weights");
            let (shape, values) = found.unwrap_or_else(|| panic!("{name}: {module} is not quantized"));
            let wanted = floats(&golden, tensor.name);
            assert_eq!(shape.columns, wanted.len() / 16, "{name} {module}");
            let differs = values.iter().zip(&wanted).position(|(a, b)| a.to_bits() != b.to_bits());
            if let Some(at) = differs {
                panic!("{name} {module}, element {at}: {}, not {}", values[at], wanted[at]);
            }
            seen += 1;
        }
        assert_eq!(seen, 2, "{name}: goldens of rows");
    }
}

/// Experts one by one, as rows of outputs; the golden has inputs by outputs.
#[test]
fn experts_are_the_originals_bit_by_bit() {
    let folder = model_folder("gpt_oss-mxfp4");
    let (spec, checkpoint) = open(&folder);
    let golden = Checkpoint::open(&folder.join("golden_dequant.safetensors")).expect("golden_dequant");
    let plan = Plan::new(&spec, stored(&checkpoint), options(), Cpu::detect()).expect("it can be planned");
    for part in ["gate_up_proj", "down_proj"] {
        let wanted = floats(&golden, &format!("model.layers.0.mlp.experts_0_1.{part}"));
        for expert in 0..2 {
            let name = format!("model.layers.0.mlp.experts.{part}.{expert}");
            let found = unpacked(&checkpoint, &plan, &name).expect("sound weights");
            let (shape, values) = found.expect("an expert");
            let wanted = &wanted[expert * values.len()..];
            for (at, value) in values.iter().enumerate() {
                let (output, input) = (at / shape.columns, at % shape.columns);
                let wanted = wanted[input * shape.rows + output];
                assert_eq!(value.to_bits(), wanted.to_bits(), "{name}, output {output}, input {input}");
            }
        }
    }
}

#[test]
fn logits_are_those_of_the_decoded_weights() {
    for name in folders() {
        let folder = repository("tests/goldens/quant").join(&name);
        let (spec, checkpoint) = open(&folder);
        let golden = Checkpoint::open(&folder.join("golden.safetensors")).expect("golden.safetensors");
        let mut engine = Engine::load(spec, &checkpoint, options(), Cpu::detect(), 2).expect("it loads");
        let sequence = engine.open().expect("a free sequence");
        let tokens = ids(&golden, "input_ids");
        engine.prefill::<StepError>(sequence, &tokens, |_, _, _| Ok(())).expect("the prompt fits");
        let rows: Vec<usize> = (tokens.len() - 8..tokens.len()).collect();
        let (found, wanted) = (engine.logits(&rows), floats(&golden, "logits_tail"));
        let square = |x: f64| x * x;
        let (mut worst, mut error, mut size) = (0.0f64, 0.0, 0.0);
        for (&a, &b) in found.iter().zip(&wanted) {
            let difference = (f64::from(a) - f64::from(b)).abs();
            worst = worst.max(difference);
            error += square(difference);
            size += square(f64::from(b));
        }
        let relative = (error / size).sqrt();
        println!("{name}: worst {worst:.2e}, relative {relative:.2e}");
        assert!(worst <= 1e-3 && relative <= 1e-4, "{name}: worst {worst:.2e}, relative {relative:.2e}");
    }
}
