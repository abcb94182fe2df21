//! Adapters beside a model, against logits of PEFT in float32; and what has to hold of a model with one: the same bits
//! in any batch, on any number of threads, over any layout, and a plan that says every byte.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::{Cpu, KvKind, Precision, Region};
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Chunk, Engine, StepError};
use bantam_model::formats::on_load::way;
use bantam_model::plan::Options;
use bantam_model::source::Source;
use bantam_tests::{Noise, check_close, floats, ids, model_folder, options, repository};

/// Every adapter with goldens, the folder that it is in, and the model that it is for.
const ADAPTERS: &[(&str, &str, &str)] = &[
    ("lora", "lora-llama", "llama-tied"),
    ("lora", "lora-rslora-llama", "llama-tied"),
    ("lora", "lora-dora-llama", "llama-tied"),
    ("lora", "lora-modules_to_save-llama", "llama-untied"),
    ("lora", "lora-embed-llama", "llama-untied"),
    ("lora", "lora-patterns-qwen2", "qwen2"),
    ("lora", "lora-layers-qwen3", "qwen3"),
    ("lora", "lora-gpt_neox", "gpt_neox"),
    ("lora", "lora-dora-rslora-gpt_neox", "gpt_neox"),
    ("lora", "lora-gpt_oss", "gpt_oss-bf16"),
    ("lora-made", "experts-gpt_oss", "gpt_oss-bf16"),
    ("lora-made", "down-gpt_oss", "gpt_oss-bf16"),
    ("lora-made", "experts-mixtral", "mixtral"),
    ("lora-made", "some-mixtral", "mixtral"),
    ("lora-made", "dora-embed-gemma2", "gemma2"),
    ("lora-made", "embed-gemma3", "gemma3"),
    ("lora-made", "head-llama", "llama-tied"),
    ("lora-made", "saved-embed-qwen2", "qwen2"),
    ("lora-made", "saved-norms-mistral", "mistral"),
    ("lora-made", "fused-phi3", "phi3"),
    ("lora-made", "bias-qwen2", "qwen2"),
    ("lora-made", "lora_bias-gpt_neox", "gpt_neox"),
];

fn adapter_folder(group: &str, name: &str) -> PathBuf {
    repository("tests/goldens").join(group).join(name)
}

fn open(model: &Path, adapter: &Path) -> Source {
    let source = Source::open(model).expect("the golden model opens");
    source.adapted(adapter).expect("the golden adapter opens")
}

fn load(source: &Source, options: Options, cpu: Cpu, threads: usize) -> Engine {
    source.load(options, cpu, threads, None, &mut |_| {}).expect("the golden loads")
}

/// Logits of the last tokens of a prompt, which is read in pieces.
fn tail(engine: &mut Engine, tokens: &[u32], piece: usize, count: usize) -> Vec<f32> {
    let sequence = engine.open().expect("a free sequence");
    let mut logits = Vec::new();
    for tokens in tokens.chunks(piece) {
        engine.step(&[Chunk { sequence, tokens }]).expect("the prompt fits");
        let rows: Vec<usize> = (0..tokens.len()).collect();
        logits.extend_from_slice(engine.logits(&rows));
    }
    engine.close(sequence);
    let vocab = engine.spec().vocab;
    logits.split_off(logits.len() - count * vocab)
}

fn check_golden(model: &Path, adapter: &Path) {
    let golden = Checkpoint::open(&adapter.join("golden.safetensors")).expect("golden.safetensors");
    let tokens = ids(&golden, "input_ids");
    let wanted = floats(&golden, "logits_tail");
    let source = open(model, adapter);
    for cpu in Cpu::detect().variants() {
        let mut engine = load(&source, options(), cpu, 2);
        assert_eq!(engine.memory_bytes(), engine.plan().bytes(), "{}", adapter.display());
        let count = wanted.len() / engine.spec().vocab;
        let found = tail(&mut engine, &tokens, tokens.len(), count);
        check_close(&format!("{} on {}", adapter.display(), cpu.name()), &found, &wanted);
        let plain = source_without(model, cpu, &tokens, count);
        assert_ne!(found, plain, "{}: the adapter changes nothing", adapter.display());
    }
}

fn source_without(model: &Path, cpu: Cpu, tokens: &[u32], count: usize) -> Vec<f32> {
    let source = Source::open(model).expect("the golden model opens");
    tail(&mut load(&source, options(), cpu, 2), tokens, tokens.len(), count)
}

#[test]
fn logits_with_an_adapter_match_peft() {
    for &(group, adapter, model) in ADAPTERS {
        check_golden(&model_folder(model), &adapter_folder(group, adapter));
    }
}

#[test]
fn an_adapter_trained_in_four_bits_matches_over_the_quantized_model() {
    let model = repository("tests/goldens/quant/bnb-nf4-dq-llama");
    check_golden(&model, &adapter_folder("lora", "qlora-nf4-llama"));
}

/// Experts in MXFP4 are near those that the adapter was made over, which have the same values before rounding; the
/// router and a GGUF file's rows in pairs are where names of modules and of tensors part.
#[test]
fn names_of_modules_lead_to_tensors_that_are_stored_otherwise() {
    for (model, adapter, group) in [
        ("quant/gguf-llama/model-Q8_0.gguf", "lora-llama", "lora"),
        ("quant/gguf-llama/model-Q8_0.gguf", "lora-dora-llama", "lora"),
        ("models/gpt_oss-mxfp4", "experts-gpt_oss", "lora-made"),
    ] {
        let adapter = adapter_folder(group, adapter);
        let golden = Checkpoint::open(&adapter.join("golden.safetensors")).expect("golden.safetensors");
        let (tokens, wanted) = (ids(&golden, "input_ids"), floats(&golden, "logits_tail"));
        let model = repository("tests/goldens").join(model);
        let found = tail(&mut load(&open(&model, &adapter), options(), Cpu::detect(), 2), &tokens, 33, 8);
        let plain = source_without(&model, Cpu::detect(), &tokens, 8);
        let [near, far] = [&found, &plain].map(|found| distance(found, &wanted));
        println!("{}: {near:.3}, without the adapter {far:.3}", model.display());
        assert!(near < far / 2.5, "{}: {near}, without the adapter {far}", model.display());
    }
}

/// The logits of a prompt do not depend on how it was cut, on threads, or on what stood beside it.
#[test]
fn bits_do_not_depend_on_batches_and_threads() {
    for &(group, adapter, model) in ADAPTERS {
        let source = open(&model_folder(model), &adapter_folder(group, adapter));
        for (precision, quantization) in
            [(Precision::Exact, None), (Precision::Fast, None), (Precision::Fast, way("int8"))]
        {
            let options = Options { sequences: 3, precision, quantization, ..options() };
            let tokens = Noise::new(7).tokens(75, source.spec.vocab);
            let mut one = load(&source, options, Cpu::detect(), 1);
            let wanted = tail(&mut one, &tokens, 75, 75);
            let mut three = load(&source, options, Cpu::detect(), 3);
            // What nobody has written must not be read.
            three.poison(Region::Work);
            three.poison(Region::Cache);
            for piece in [75, 1, 7, 33] {
                let found = tail(&mut three, &tokens, piece, 75);
                assert_eq!(found, wanted, "{adapter}, {precision:?}, pieces of {piece}");
            }
            let found = beside(&mut three, &tokens);
            assert_eq!(
                found,
                wanted[wanted.len() - found.len()..],
                "{adapter}, {precision:?}, beside another"
            );
        }
    }
}

/// The logits of the last token, read beside another sequence.
fn beside(engine: &mut Engine, tokens: &[u32]) -> Vec<f32> {
    let other = engine.open().expect("a free sequence");
    let sequence = engine.open().expect("a free sequence");
    let mine = Chunk { sequence, tokens: &tokens[..40] };
    engine.step(&[Chunk { sequence: other, tokens: &tokens[3..50] }, mine]).expect("both fit");
    let mine = Chunk { sequence, tokens: &tokens[40..] };
    engine.step(&[mine, Chunk { sequence: other, tokens: &tokens[50..60] }]).expect("both fit");
    let logits = engine.logits(&[tokens.len() - 41]).to_vec();
    engine.close(other);
    engine.close(sequence);
    logits
}

/// Over weights that are quantized on the way the result is near that over the weights themselves, and the base's own
/// bytes are those that it has without an adapter.
#[test]
fn any_layout_takes_an_adapter_and_stays_as_it_is() {
    for &(group, adapter, model) in ADAPTERS {
        let model = model_folder(model);
        let source = open(&model, &adapter_folder(group, adapter));
        let tokens = Noise::new(9).tokens(30, source.spec.vocab);
        let exact = tail(&mut load(&source, options(), Cpu::detect(), 2), &tokens, 30, 8);
        // Random weights make much of little: four bits take as much away as some adapters add.
        for (name, part) in [("int8", 0.5), ("nf4", 1.3)] {
            let options = Options { quantization: way(name), kv: KvKind::F16, ..options() };
            let options = Options { precision: Precision::Fast, ..options };
            let found = tail(&mut load(&source, options, Cpu::detect(), 2), &tokens, 30, 8);
            let plain = Source::open(&model).expect("the golden model opens");
            let plain = tail(&mut load(&plain, options, Cpu::detect(), 2), &tokens, 30, 8);
            let [near, far] = [&found, &plain].map(|found| distance(found, &exact));
            println!("{adapter} over {name}: {near:.3}, without the adapter {far:.3}");
            assert!(near < far * part, "{adapter} over {name}: {near}, without the adapter {far}");
        }
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| f64::from(a - b) * f64::from(a - b);
    let size: f64 = b.iter().map(|b| f64::from(*b) * f64::from(*b)).sum();
    (a.iter().zip(b).map(square).sum::<f64>() / size).sqrt()
}

/// The lines of a plan say what an adapter takes; without one, nothing has changed.
#[test]
fn the_plan_tells_what_an_adapter_takes() {
    let (group, adapter, model) = ADAPTERS[0];
    let with = open(&model_folder(model), &adapter_folder(group, adapter));
    let without = Source::open(&model_folder(model)).expect("the golden model opens");
    let cpu = Cpu::detect();
    let with = with.plan(options(), cpu).expect("a plan");
    let without = without.plan(options(), cpu).expect("a plan");
    let lines = with.lines.iter().filter(|line| line.name == "adapter");
    let taken: usize = lines.map(|line| line.bytes).sum();
    let before = |plan: &bantam_model::plan::Plan| plan.weight_bytes + plan.work_bytes;
    assert!(taken > 0 && before(&with) >= before(&without) + taken);
    assert!(!without.lines.iter().any(|line| line.name == "adapter"));
    assert!(with.bytes_per_token > without.bytes_per_token);
}

/// An adapter of another model is refused, by the tensor that does not fit.
#[test]
fn an_adapter_of_another_model_is_refused() {
    for (adapter, model, word) in [
        ("lora-llama", "llama-untied", "expected shape"),
        ("lora-llama", "gpt_neox", "expected a module that the model has"),
        ("lora-gpt_neox", "llama-tied", "expected a module that the model has"),
        ("lora-modules_to_save-llama", "llama-tied", "expected shape"),
    ] {
        let source = open(&model_folder(model), &adapter_folder("lora", adapter));
        let error = source.plan(options(), Cpu::detect()).expect_err("another model's").to_string();
        assert!(error.contains(word) && error.contains(adapter), "{adapter} over {model}: {error}");
    }
}

/// Whatever happens to an adapter's files, they are an adapter or an error.
#[test]
fn damaged_adapters_are_errors() {
    let folder = std::env::temp_dir().join(format!("bantam-adapter-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary folder");
    let from = adapter_folder("lora", "lora-dora-llama");
    let read = |name: &str| fs::read(from.join(name)).expect("the golden");
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().expect("8 bytes")) as usize;
    let mut noise = Noise::new(5);
    let mut refused = [0; 3];
    for round in 0..600 {
        let (mut config, mut weights) = (config.clone(), weights.clone());
        match round % 3 {
            0 => {
                let at = noise.below(config.len());
                config[at] ^= 1 << noise.below(7);
            }
            1 => {
                let at = noise.below(header);
                weights[at] ^= 1 << noise.below(8);
            }
            _ => weights.truncate(noise.below(weights.len())),
        }
        fs::write(folder.join("adapter_config.json"), config).expect("a temporary file");
        fs::write(folder.join("adapter_model.safetensors"), weights).expect("a temporary file");
        let source = Source::open(&model_folder("llama-tied")).expect("the golden model opens");
        let planned = source.adapted(&folder).and_then(|source| source.plan(options(), Cpu::detect()));
        refused[round % 3] += usize::from(planned.is_err());
    }
    // A number that is no number is found when it is read.
    let mut weights = weights;
    let end = weights.len();
    weights[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(folder.join("adapter_config.json"), config).expect("a temporary file");
    fs::write(folder.join("adapter_model.safetensors"), weights).expect("a temporary file");
    let source = Source::open(&model_folder("llama-tied")).expect("the golden model opens");
    let source = source.adapted(&folder).expect("the numbers are not read yet");
    let error = source.load(options(), Cpu::detect(), 1, None, &mut |_| {}).expect_err("NaN").to_string();
    assert!(error.contains("expected finite numbers"), "{error}");
    println!("refused of 200 each: configuration {}, header {}, cut {}", refused[0], refused[1], refused[2]);
    assert!(refused[1] > 150 && refused[2] == 200, "{refused:?}");
    fs::remove_dir_all(&folder).expect("the folder is ours");
}

/// A step that is refused leaves an engine with an adapter as it was.
#[test]
fn a_refused_step_changes_nothing() {
    let (group, adapter, model) = ADAPTERS[2];
    let source = open(&model_folder(model), &adapter_folder(group, adapter));
    let mut engine = load(&source, options(), Cpu::detect(), 1);
    let sequence = engine.open().expect("a free sequence");
    let tokens = vec![1; 200];
    let refused = engine.step(&[Chunk { sequence, tokens: &tokens }]);
    assert!(matches!(refused, Err(StepError::TooManyTokens { .. })));
    assert_eq!(engine.length(sequence), 0);
}
