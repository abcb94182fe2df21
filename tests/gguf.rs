//! GGUF files: weights bit by bit as the `gguf` package decodes them, the logits that they make, and the tokens of
//! their vocabularies. Every file in `goldens/quant/gguf-*`, `goldens/quant-made/gguf-*` is read as it stands.
//!
//! `BANTAM_MORE_GGUF` names a folder of more such folders, for a run by hand.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Engine, StepError, stored};
use bantam_model::gguf::restore::Restored;
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
            for file in
                listing(&folder).into_iter().filter(|file| file.extension().is_some_and(|end| end == "gguf"))
            {
                let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
                // Later parts of a split file are found through the first.
                let (stem, part) = stem.split_once("-0").unwrap_or((&stem, "0001"));
                if !part.starts_with("0001") {
                    continue;
                }
                let stem = stem.to_owned();
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
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
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
            let Some(name) = tensor.name.strip_prefix(&format!("{}dequant_rows.", case.prefix)) else {
                continue;
            };
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
        let has_none = case.file.to_string_lossy().contains("gguf-families");
        assert!(seen >= 1 || has_none, "{}: goldens of rows", case.name);
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
        let mut engine = source.load(options(), Cpu::detect(), 2, None, &mut |_| {}).unwrap();
        check_close(
            &case.name,
            &last(&mut engine, &tokens),
            &floats(&case.golden, &format!("{}logits_tail", case.prefix)),
        );
    }
}

/// Logits of the last eight of some tokens.
fn last(engine: &mut Engine, tokens: &[u32]) -> Vec<f32> {
    let sequence = engine.open().unwrap();
    engine.prefill::<StepError>(sequence, tokens, |_, _, _| Ok(())).unwrap();
    let rows: Vec<usize> = (tokens.len() - 8..tokens.len()).collect();
    engine.logits(&rows).to_vec()
}

/// What a model is, but for how its tensors are called and stored.
fn outline(source: &Source) -> String {
    let spec = &source.spec;
    let layers = format!("{:?} {:?}", spec.layers, spec.final_norm);
    // Norms in these files have their shift in them.
    let layers = layers.replace("weight_shift: 1.0", "weight_shift: 0.0");
    format!("{} {} {} {} {} {layers}", spec.family, spec.hidden, spec.vocab, spec.context, spec.tied)
}

#[test]
fn a_file_written_out_is_the_same_model() {
    for case in cases() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("restored-{}", case.name));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let source = Source::open(&case.file).unwrap();
        let restoring = Restored::new(&source).unwrap().unwrap();
        restoring.write(&folder, 100_000, &mut |_| {}).unwrap();
        let made = Source::open(&folder).unwrap();
        assert_eq!(outline(&made), outline(&source), "{}", case.name);
        let tokens: Vec<u32> = (3..60).collect();
        let last = |source: &Source| {
            let mut engine = source.load(options(), Cpu::detect(), 2, None, &mut |_| {}).unwrap();
            last(&mut engine, &tokens)
        };
        let (found, wanted) = (last(&made), last(&source));
        let is_plain = source.checkpoint.tensors().all(|tensor| tensor.dtype.is_float());
        // A list of divisors may have become the numbers that it was made of.
        let same_ropes = made.spec.ropes == source.spec.ropes;
        let most = match (is_plain, same_ropes) {
            (true, true) => 0.0,
            (true, false) => 1e-4,
            (false, _) => 1e-2,
        };
        let largest = wanted.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let off = found.iter().zip(&wanted).fold(0.0f32, |off, (a, b)| off.max((a - b).abs()));
        println!("{}: {off} of {largest}", case.name);
        assert!(off <= most * largest, "{}: {off} of {largest}", case.name);
        assert_eq!(made.text_if_any().unwrap().is_some(), source.text_if_any().unwrap().is_some());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// Whose tokenizer the files have.
const TOKENIZERS: &[(&str, &str)] = &[
    ("quant/gguf-llama/", "llama-tied"),
    ("model-llama.gguf", "llama-tied"),
    ("model-mistral.gguf", "mistral"),
    ("model-mixtral.gguf", "mixtral"),
    ("model-gpt_neox.gguf", "gpt_neox"),
    ("model-qwen2.gguf", "qwen2"),
    ("model-qwen3-00001-of", "qwen3"),
    ("model-phi3.gguf", "phi3"),
    ("model-gemma2.gguf", "gemma2"),
    ("model-gemma3_text.gguf", "gemma3"),
    ("model-gpt_oss.gguf", "gpt_oss-bf16"),
];

#[test]
fn text_becomes_the_originals_tokens() {
    for case in cases() {
        let path = case.file.to_string_lossy().into_owned();
        if let Some((_, model)) = TOKENIZERS.iter().find(|(part, _)| path.contains(part)) {
            check_text(&case.name, &case.file, &golden_text(model));
        }
    }
}

/// What a model's golden says of its tokenizer.
fn golden_text(model: &str) -> Value {
    let text = std::fs::read(model_folder(model).join("golden_text.json")).unwrap();
    let text: Value = serde_json::from_slice(&text).unwrap();
    match text["same_as"].as_str() {
        Some(other) => golden_text(other),
        None => text,
    }
}

/// All that a golden says of a tokenizer.
fn check_text(name: &str, file: &Path, golden: &Value) {
    let text = Source::open(file).unwrap().text().unwrap();
    let list = |value: &Value| {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>()
    };
    for entry in golden["encode"].as_array().unwrap() {
        let string = entry["text"].as_str().unwrap();
        for (special, key) in [(true, "ids"), (false, "ids_no_special")] {
            let found = text.tokenizer.encode(string, special).unwrap();
            assert_eq!(found, list(&entry[key]), "{name}: {string:?}, {key}");
        }
        let ids = list(&entry["ids"]);
        assert_eq!(
            text.tokenizer.decode(&ids, false),
            entry["decoded"].as_str().unwrap(),
            "{name}: {string:?}"
        );
    }
}
