//! Adapters merged into their models, against the weights that PEFT leaves in float32, and what must hold of the files:
//! whole or not there, the same by every way, readable by the house like any other model.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::checkpoint::{Checkpoint, Dtype};
use bantam_model::engine::{Chunk, Engine};
use bantam_model::merge::cascade::Way;
use bantam_model::merge::trained::Trained;
use bantam_model::merge::{Merge, Place};
use bantam_model::source::Source;
use bantam_tests::{floats, ids, options, repository};

/// Adapter, model, whether the weights were in four bits, and rows that PEFT has otherwise: it leaves a head and an
/// embedding that share a tensor one, though the adapter was for one of them.
const ADAPTERS: &[(&str, &str, bool, &str)] = &[
    ("lora/lora-llama", "models/llama-tied", false, ""),
    ("lora/lora-rslora-llama", "models/llama-tied", false, ""),
    ("lora/lora-dora-llama", "models/llama-tied", false, ""),
    ("lora/lora-modules_to_save-llama", "models/llama-untied", false, ""),
    ("lora/lora-embed-llama", "models/llama-untied", false, ""),
    ("lora/lora-patterns-qwen2", "models/qwen2", false, ""),
    ("lora/lora-layers-qwen3", "models/qwen3", false, ""),
    ("lora/lora-gpt_neox", "models/gpt_neox", false, ""),
    ("lora/lora-dora-rslora-gpt_neox", "models/gpt_neox", false, ""),
    ("lora/lora-gpt_oss", "models/gpt_oss-bf16", false, ""),
    ("lora/qlora-nf4-llama", "quant/bnb-nf4-dq-llama", true, ""),
    ("lora/qlora-nf4-llama", "models/llama-tied", true, ""),
    ("lora-made/experts-gpt_oss", "models/gpt_oss-bf16", false, ""),
    ("lora-made/down-gpt_oss", "models/gpt_oss-bf16", false, ""),
    ("lora-made/experts-mixtral", "models/mixtral", false, ""),
    ("lora-made/some-mixtral", "models/mixtral", false, ""),
    ("lora-made/dora-embed-gemma2", "models/gemma2", false, "lm_head.weight"),
    ("lora-made/embed-gemma3", "models/gemma3", false, "lm_head.weight"),
    ("lora-made/head-llama", "models/llama-tied", false, "model.embed_tokens.weight"),
    ("lora-made/saved-embed-qwen2", "models/qwen2", false, ""),
    ("lora-made/saved-norms-mistral", "models/mistral", false, ""),
    ("lora-made/fused-phi3", "models/phi3", false, ""),
    ("lora-made/bias-qwen2", "models/qwen2", false, ""),
    ("lora-made/lora_bias-gpt_neox", "models/gpt_neox", false, ""),
];

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("bantam-merged-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn golden(path: &str) -> PathBuf {
    repository("tests/goldens").join(path)
}

fn open(model: &str, adapter: &str) -> Source {
    let source = Source::open(&golden(model)).expect("the golden model opens");
    source.adapted(&golden(adapter)).expect("the golden adapter opens")
}

fn merge(source: &Source, output: &Path, way: Way, threads: usize) {
    let adapter = source.adapter.as_deref().expect("it was put there");
    let config = source.files.require_config().expect("a model has one");
    let merge = Merge::new(source, Trained::find(adapter, &config)).expect("the two go together");
    let place = Place::new(output, false, &[]).expect("a new folder");
    let (mut told, counts) = (0, merge.counts());
    merge.write(place, way, threads, &mut |done| told = done).expect("it is written");
    assert_eq!(told, counts.bytes, "{}", output.display());
}

/// The numbers below the least exponent of a float16 are so far apart.
const F16_STEP: f32 = 1.0 / (1 << 24) as f32;

/// A unit in the last place of a bfloat16.
fn ulp(x: f32) -> f32 {
    f32::from_bits((x.abs().max(f32::MIN_POSITIVE).to_bits() & 0x7f80_0000).max(0x0400_0000)) / 128.0
}

fn check_rows(what: &str, merged: &Checkpoint, wanted: &Checkpoint, left_out: &str) {
    let mut seen = 0;
    for tensor in wanted.tensors() {
        let Some(name) = tensor.name.strip_prefix("merged_rows.").filter(|name| *name != left_out) else {
            continue;
        };
        // An embedding's own tensor says the same as a head that shares it.
        let found = merged.tensor(name).or_else(|| merged.tensor("model.embed_tokens.weight"));
        let found = found.unwrap_or_else(|| panic!("{what}: no {name}"));
        let rows = floats(wanted, tensor.name);
        // Of experts in one tensor, rows of the last.
        let start = match found.shape {
            [count, rows, columns] => (count - 1) * rows * columns,
            _ => 0,
        };
        let mut values = vec![0.0; rows.len()];
        found.read_f32(start, &mut values);
        let step = if found.dtype == Dtype::F16 { F16_STEP } else { 0.0 };
        for (at, (a, b)) in values.iter().zip(&rows).enumerate() {
            assert!((a - b).abs() <= ulp(*b).max(step), "{what}: {name}, element {at}: {a}, PEFT has {b}");
        }
        seen += 1;
    }
    assert!(seen > 0, "{what}: nothing was compared");
}

fn tail(engine: &mut Engine, tokens: &[u32], count: usize) -> Vec<f32> {
    let sequence = engine.open().expect("a free sequence");
    engine.step(&[Chunk { sequence, tokens }]).expect("the prompt fits");
    let rows: Vec<usize> = (tokens.len() - count..tokens.len()).collect();
    let logits = engine.logits(&rows).to_vec();
    engine.close(sequence);
    logits
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| f64::from(a - b) * f64::from(a - b);
    let size: f64 = b.iter().map(|b| f64::from(*b) * f64::from(*b)).sum();
    (a.iter().zip(b).map(square).sum::<f64>() / size).sqrt()
}

#[test]
fn merged_weights_are_those_of_peft() {
    let folder = Folder::new("goldens");
    for (number, &(adapter, model, four_bits, left_out)) in ADAPTERS.iter().enumerate() {
        let what = format!("{adapter} over {model}");
        let source = open(model, adapter);
        let found = Trained::find(
            source.adapter.as_deref().expect("it was put there"),
            &source.files.require_config().expect("a model has one"),
        );
        assert_eq!(found.in_four_bits, four_bits, "{what}: {}", found.because);
        let output = folder.0.join(number.to_string());
        merge(&source, &output, Way::Whole, 2);
        let wanted = Checkpoint::open(&golden(adapter).join("golden.safetensors")).expect("a golden");
        check_rows(&what, &Checkpoint::open(&output).expect("it opens"), &wanted, left_out);
        // All other tensors are there, in their types.
        let merged = Source::open(&output).expect("the merged model opens");
        let mut engine =
            merged.load(options(), Cpu::detect(), 2, None, &mut |_| {}).expect("the merged model loads");
        let (tokens, wanted) = (ids(&wanted, "input_ids"), floats(&wanted, "logits_tail"));
        let apart = distance(&tail(&mut engine, &tokens, 8), &wanted);
        println!("{what}: logits differ by {apart:.1e}");
        assert!(apart < 0.03, "{what}: the logits of the merged model are {apart} apart");
    }
}

#[test]
fn every_way_writes_the_same_bytes() {
    let folder = Folder::new("ways");
    for (adapter, model) in [
        ("lora/lora-dora-llama", "models/llama-tied"),
        ("lora/qlora-nf4-llama", "models/llama-tied"),
        ("lora-made/experts-gpt_oss", "models/gpt_oss-mxfp4"),
        ("lora-made/dora-embed-gemma2", "models/gemma2"),
    ] {
        let source = open(model, adapter);
        let bytes = |name: &str, way, threads| {
            let output = folder.0.join(name);
            merge(&source, &output, way, threads);
            let bytes = fs::read(output.join("model.safetensors")).expect("one file");
            fs::remove_dir_all(&output).expect("it was written");
            bytes
        };
        let whole = bytes("whole", Way::Whole, 3);
        assert!(whole == bytes("rows", Way::Rows, 1), "{adapter}");
    }
}

#[test]
fn what_is_not_changed_stays_quantized() {
    let folder = Folder::new("kept");
    let output = folder.0.join("merged");
    let source = open("models/gpt_oss-mxfp4", "lora/lora-gpt_oss");
    merge(&source, &output, Way::Rows, 1);
    let merged = Checkpoint::open(&output).expect("it opens");
    let name = "model.layers.0.mlp.experts.down_proj_blocks";
    let before = source.checkpoint.tensor(name).expect("the golden is in MXFP4");
    assert_eq!(merged.tensor(name).expect("it is kept").data, before.data);
    let config = fs::read_to_string(output.join("config.json")).expect("a configuration");
    assert!(config.contains("quantization_config"));
    assert!(output.join("tokenizer.json").is_file() && output.join("generation_config.json").is_file());
}

#[test]
fn places_that_hold_something_are_refused() {
    let folder = Folder::new("places");
    let refused = |output: &Path, force, word: &str| {
        let error = Place::new(output, force, &[&golden("models/llama-tied")]).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&golden("models/llama-tied"), true, "another folder");
    refused(&golden("models"), true, "another folder");
    refused(&folder.0.join("no/where"), false, "create it first");
    let full = folder.0.join("full");
    fs::create_dir(&full).expect("a folder");
    fs::write(full.join("notes.txt"), "mine").expect("a file");
    refused(&full, false, "--force");
    refused(&full, true, "without config.json");
    refused(&full.join("notes.txt"), false, "something else");
    fs::write(full.join("config.json"), "{}").expect("a file");
    refused(&full, true, "notes.txt");
    fs::remove_file(full.join("notes.txt")).expect("removed");
    let source = open("models/llama-tied", "lora/lora-llama");
    let merge = Merge::new(&source, Trained::told(false)).expect("the two go together");
    let place = Place::new(&full, true, &[]).expect("a model may be replaced");
    merge.write(place, Way::Rows, 1, &mut |_| {}).expect("it is written");
    assert!(Source::open(&full).is_ok());
    let names = |folder: &Path| fs::read_dir(folder).expect("a folder").count();
    assert_eq!(names(&folder.0), 1, "nothing is left beside it");
}

/// An adapter that would change nothing, or less than it says, is no merge.
#[test]
fn what_an_adapter_promises_must_be_there() {
    let folder = Folder::new("promises");
    let write = |name: &str, change: &dyn Fn(&mut serde_json::Value), is_empty: bool| {
        let (from, to) = (golden("lora/lora-llama"), folder.0.join(name));
        fs::create_dir(&to).expect("a folder");
        let config = fs::read(from.join("adapter_config.json")).expect("the golden has it");
        let mut config = serde_json::from_slice(&config).expect("JSON");
        change(&mut config);
        fs::write(to.join("adapter_config.json"), config.to_string()).expect("written");
        let weights = to.join("adapter_model.safetensors");
        match is_empty {
            true => fs::write(weights, b"\x08\0\0\0\0\0\0\0{}      ").map(|()| 0),
            false => fs::copy(from.join("adapter_model.safetensors"), weights),
        }
        .expect("written");
        let source = Source::open(&golden("models/llama-tied")).expect("the golden opens");
        let adapted = source.adapted(&to).map_err(|error| error.to_string())?;
        Merge::new(&adapted, Trained::told(false)).map(|_| ()).map_err(|error| error.to_string())
    };
    let refused = |name: &str, change: &dyn Fn(&mut serde_json::Value), is_empty, word: &str| {
        let error = write(name, change, is_empty).expect_err(name);
        assert!(error.contains(word), "{error}");
    };
    refused("empty", &|_| (), true, "found none");
    refused("bias", &|config| config["lora_bias"] = true.into(), false, "lora_B.bias");
    let saved = |name: &'static str| {
        move |config: &mut serde_json::Value| config["modules_to_save"] = [name].as_slice().into()
    };
    refused("saved", &saved("lm_head"), false, "lm_head, which modules_to_save");
    write("score", &saved("score"), false).expect("this model has no such module");
}

/// A disk that fails half way is an error, and nothing stands under the name.
#[test]
fn a_merge_that_fails_leaves_nothing() {
    let folder = Folder::new("failed");
    let model = folder.0.join("model");
    fs::create_dir(&model).expect("a folder");
    for entry in fs::read_dir(golden("models/llama-tied")).expect("the golden") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), model.join(entry.file_name())).expect("a copy");
    }
    let source =
        Source::open(&model).expect("it opens").adapted(&golden("lora/lora-llama")).expect("it opens");
    let merge = Merge::new(&source, Trained::told(false)).expect("the two go together");
    let file = fs::OpenOptions::new().write(true).open(model.join("model.safetensors")).expect("a file");
    file.set_len(100_000).expect("it is cut");
    let output = folder.0.join("merged");
    let place = Place::new(&output, false, &[]).expect("a new folder");
    let error = merge.write(place, Way::Whole, 1, &mut |_| {}).expect_err("it was cut").to_string();
    assert!(error.contains("cut while it was being loaded"), "{error}");
    assert_eq!(fs::read_dir(&folder.0).expect("a folder").count(), 1, "nothing but the model is there");
}
