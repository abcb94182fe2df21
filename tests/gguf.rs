//! GGUF files: weights bit by bit as the `gguf` package decodes them, the logits that they make, and the tokens of their
//! vocabularies. Every file in `goldens/quant/gguf-*`, `goldens/quant-made/gguf-*` is read as it stands.
//!
//! `BANTAM_MORE_GGUF` names a folder of more such folders, for a run by hand.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Engine, StepError, stored};
use bantam_model::inspect::unquantized;
use bantam_model::plan::Plan;
use bantam_model::source::Source;
use bantam_tests::{check_close, floats, ids, model_folder, options, repository};
use serde_json::Value;

/// A file beside the goldens of all kinds of its folder.
struct Case {
    name: String,
    file: PathBuf,
    /// Before the names of its goldens.
    prefix: String,
    golden: Checkpoint,
}

fn cases() -> Vec<Case> {
    let homes = [repository("tests/goldens/quant"), repository("tests/goldens/quant-made")];
    let more = std::env::var_os("BANTAM_MORE_GGUF").map(PathBuf::from);
    let mut found = Vec::new();
    for home in homes.into_iter().chain(more) {
        for folder in listing(&home) {
            if !folder.file_name().unwrap().to_string_lossy().starts_with("gguf") {
                continue;
            }
            for file in listing(&folder).into_iter().filter(|file| file.extension().is_some_and(|end| end == "gguf")) {
                let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
                let kind = stem.strip_prefix("model-").unwrap_or(&stem);
                let golden = Checkpoint::open(&folder.join("golden.safetensors")).unwrap();
                found.push(Case { name: stem.clone(), prefix: format!("{kind}."), file, golden });
            }
        }
    }
    assert!(found.len() >= 6);
    found
}

fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn weights_are_the_originals_bit_by_bit() {
    for case in cases() {
        let source = Source::open(&case.file).unwrap();
        let plan = Plan::new(&source.spec, stored(&source.checkpoint), options(), Cpu::detect()).unwrap();
        let mut seen = 0;
        for tensor in case.golden.tensors() {
            let Some(name) = tensor.name.strip_prefix(&format!("{}dequant_rows.", case.prefix)) else { continue };
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let name = format!("{module}.weight");
            let found = unquantized(&source.checkpoint, &plan, &name).unwrap();
            let found = found.unwrap_or_else(|| panic!("{}: {name} is not quantized", case.name));
            let mut values = vec![0.0; tensor.elements()];
            found.view().read_f32(0, &mut values);
            let wanted = floats(&case.golden, tensor.name);
            let differs = values.iter().zip(&wanted).position(|(a, b)| a.to_bits() != b.to_bits());
            if let Some(at) = differs {
                panic!("{} {module}, element {at}: {}, not {}", case.name, values[at], wanted[at]);
            }
            seen += 1;
        }
        assert!(seen >= 1, "{}: goldens of rows", case.name);
    }
}

#[test]
fn logits_are_those_of_the_decoded_weights() {
    for case in cases() {
        let source = Source::open(&case.file).unwrap();
        let Some(input) = ["input_ids".to_owned(), format!("{}input_ids", case.prefix)]
            .into_iter()
            .find(|name| case.golden.tensor(name).is_some())
        else {
            continue;
        };
        let tokens = ids(&case.golden, &input);
        let mut engine = source.load(options(), Cpu::detect(), 2, &mut |_| {}).unwrap();
        check_close(&case.name, &last(&mut engine, &tokens), &floats(&case.golden, &format!("{}logits_tail", case.prefix)));
    }
}

/// Logits of the last eight of some tokens.
fn last(engine: &mut Engine, tokens: &[u32]) -> Vec<f32> {
    let sequence = engine.open().unwrap();
    engine.prefill::<StepError>(sequence, tokens, |_, _, _| Ok(())).unwrap();
    let rows: Vec<usize> = (tokens.len() - 8..tokens.len()).collect();
    engine.logits(&rows).to_vec()
}

#[test]
fn text_becomes_the_originals_tokens() {
    let golden = std::fs::read(model_folder("llama-tied").join("golden_text.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    for case in cases().into_iter().filter(|case| case.file.to_string_lossy().contains("quant/gguf-llama")) {
        check_text(&case.name, &case.file, &golden);
    }
}

/// All that a golden says of a tokenizer.
fn check_text(name: &str, file: &Path, golden: &Value) {
    let text = Source::open(file).unwrap().text().unwrap();
    let list = |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
    for entry in golden["encode"].as_array().unwrap() {
        let string = entry["text"].as_str().unwrap();
        for (special, key) in [(true, "ids"), (false, "ids_no_special")] {
            let found = text.tokenizer.encode(string, special).unwrap();
            assert_eq!(found, list(&entry[key]), "{name}: {string:?}, {key}");
        }
        let ids = list(&entry["ids"]);
        assert_eq!(text.tokenizer.decode(&ids, false), entry["decoded"].as_str().unwrap(), "{name}: {string:?}");
    }
}
