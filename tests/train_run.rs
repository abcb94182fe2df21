//! Whole runs from settings to files: losses fall, the same bytes come again, also of a run that was ended and resumed,
//! and what was written is a model.

// Helpers of a test may unwrap: a failure is a failed test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::engine::Chunk;
use bantam_model::source::Source;
use bantam_tests::{model_folder, options};
use bantam_train::data::prepare;
use bantam_train::run::{Outcome, Progress, RunError, Watch, train};
use bantam_train::settings::Settings;
use serde_json::Value;

/// A folder that is gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    /// With rows of ids, so that any model can learn them.
    fn new(label: &str) -> Scratch {
        let folder = std::env::temp_dir().join(format!("bantam-train-run-{}-{label}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let row = |row: u32| {
            let ids: Vec<u32> = (0..9 + row % 4).map(|at| 5 + (row * 31 + at * 7) % 90).collect();
            let labels: Vec<i64> =
                ids.iter().enumerate().map(|(at, &id)| if at < 3 { -100 } else { id.into() }).collect();
            format!("{}\n", serde_json::json!({ "input_ids": ids, "labels": labels }))
        };
        fs::write(folder.join("rows.jsonl"), (0..7).map(row).collect::<String>()).unwrap();
        Scratch(folder)
    }

    /// Trains into a folder of that name.
    fn train(&self, model: &str, output: &str, yaml: &str, end: Option<u64>) -> Result<Run, RunError> {
        self.train_over(&model_folder(model), output, yaml, end)
    }

    /// The same over the model in a folder.
    fn train_over(&self, model: &Path, output: &str, yaml: &str, end: Option<u64>) -> Result<Run, RunError> {
        let (rows, output) = (self.0.join("rows.jsonl"), self.0.join(output));
        let yaml = format!(
            "model_name_or_path: {}\ndataset_path: {}\ndataset_type: tokenized\noutput_dir: {}\n\
             per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\nlogging_steps: 2\nsave_steps: 3\n\
             lr_scheduler_type: cosine\nwarmup_ratio: 0.1\n{yaml}",
            model.display(),
            rows.display(),
            output.display()
        );
        let settings = Settings::of_text("test.yaml", &yaml, &[]).unwrap_or_else(|error| panic!("{error}"));
        let source = match settings.flag("train_from_scratch") {
            true => Source::without_weights(model).unwrap(),
            false => Source::open(model).unwrap(),
        };
        let vocab = u32::try_from(source.spec.vocab).unwrap();
        let prepared = prepare(&settings.data, settings.stage, 42, vocab, None).unwrap();
        let mut seen = Seen { losses: Vec::new(), notes: Vec::new(), end };
        let outcome = train(&settings, source, &prepared, (Cpu::detect(), 2), &mut seen)?;
        Ok(Run { outcome, seen, output })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
struct Run {
    outcome: Outcome,
    seen: Seen,
    output: PathBuf,
}

impl Run {
    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.output.join(name)).unwrap()
    }

    fn log(&self) -> Vec<Value> {
        let text = String::from_utf8(self.bytes("trainer_log.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[derive(Debug)]
struct Seen {
    losses: Vec<f64>,
    notes: Vec<String>,
    end: Option<u64>,
}

impl Watch for Seen {
    fn note(&mut self, words: &str) {
        self.notes.push(words.to_owned());
    }

    fn step(&mut self, progress: &Progress) {
        self.losses.push(progress.loss);
    }

    fn is_ended(&self) -> bool {
        self.end.is_some_and(|end| self.losses.len() as u64 == end)
    }
}

/// Logits of some tokens, through the engine that serves.
fn logits(source: &Source) -> Vec<f32> {
    let mut engine = source.load(options(), Cpu::detect(), 1, None, &mut |_| {}).unwrap();
    let sequence = engine.open().unwrap();
    engine.step(&[Chunk { sequence, tokens: &[5, 12, 19, 26] }]).unwrap();
    engine.logits(&[3]).to_vec()
}

const LORA: &str = "learning_rate: 0.01\nlora_rank: 4\nnum_train_epochs: 5\n";

/// What a kind of training must hold.
fn check(model: &str, label: &str, yaml: &str, weights: &str) {
    let scratch = Scratch::new(label);
    let whole = scratch.train(model, "whole", yaml, None).unwrap();
    let losses = &whole.seen.losses;
    assert_eq!((losses.len(), whole.outcome.steps, whole.outcome.is_done), (10, 10, true), "{label}");
    assert!(losses[9] < losses[0] - 0.1, "{label}: {losses:?}");
    let told: Vec<u64> = whole.log().iter().map(|line| line["current_steps"].as_u64().unwrap()).collect();
    assert_eq!(told, [1, 2, 4, 6, 8, 10], "{label}");
    // serde_json reads numbers but for their last bit.
    let first = whole.log()[0]["loss"].as_f64().unwrap();
    assert!((first - losses[0]).abs() < 1e-14 * first, "{label}: {first}, not {}", losses[0]);

    let again = scratch.train(model, "again", yaml, None).unwrap();
    assert!(whole.bytes(weights) == again.bytes(weights), "{label}: two runs differ");

    let ended = scratch.train(model, "parts", yaml, Some(5)).unwrap();
    assert!(!ended.outcome.is_done && ended.outcome.folder.ends_with("checkpoint-5"), "{label}");
    let resumed = scratch.train(model, "parts", yaml, None).unwrap();
    assert!(resumed.seen.notes.iter().any(|note| note.contains("checkpoint-5")), "{:?}", resumed.seen.notes);
    assert_eq!(resumed.seen.losses, losses[5..], "{label}");
    assert!(whole.bytes(weights) == resumed.bytes(weights), "{label}: a resumed run differs");
    let told = |run: &Run| run.log().iter().map(|line| line["loss"].to_string()).collect::<Vec<_>>();
    assert_eq!(told(&whole), told(&resumed), "{label}");

    let base = Source::open(&model_folder(model)).unwrap();
    let before = logits(&base);
    let trained = match weights {
        "model.safetensors" => Source::open(&whole.output).unwrap(),
        _ => base.adapted(&whole.output).unwrap(),
    };
    assert!(before != logits(&trained), "{label}: the result changes nothing");
}

#[test]
fn adapters_are_trained() {
    check("llama-tied", "lora", LORA, "adapter_model.safetensors");
}

#[test]
fn adapters_with_lengths_are_trained() {
    check(
        "gpt_neox",
        "dora",
        &format!("{LORA}use_dora: true\nuse_rslora: true\n"),
        "adapter_model.safetensors",
    );
}

#[test]
fn adapters_of_experts_are_trained() {
    check("mixtral", "experts", &format!("{LORA}lora_target: mlp_only\n"), "adapter_model.safetensors");
}

#[test]
fn all_weights_are_trained() {
    let yaml = "finetuning_type: full\nlearning_rate: 0.001\nnum_train_epochs: 5\n";
    check("qwen2", "full", yaml, "model.safetensors");
}

#[test]
fn all_weights_are_trained_with_muon() {
    let yaml =
        "finetuning_type: full\nlearning_rate: 0.001\nnum_train_epochs: 5\nuse_muon: true\nbf16: true\n";
    check("llama-untied", "muon", yaml, "model.safetensors");
}

#[test]
fn a_new_adapter_changes_nothing_and_its_checkpoints_are_counted() {
    let scratch = Scratch::new("kept");
    let yaml = "learning_rate: 0.0\nuse_dora: true\nmax_steps: 7\nsave_total_limit: 2\n";
    let run = scratch.train("llama-tied", "kept", yaml, None).unwrap();
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("checkpoint") || name.starts_with('.'));
        names.sort();
        names
    };
    assert_eq!(names(&run.output), ["checkpoint-6", "checkpoint-7"]);
    let base = Source::open(&model_folder("llama-tied")).unwrap();
    let before = logits(&base);
    let worst = before
        .iter()
        .zip(logits(&base.adapted(&run.output).unwrap()))
        .map(|(before, after)| (before - after).abs())
        .fold(0.0, f32::max);
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn what_no_run_does_is_refused_with_its_line() {
    let scratch = Scratch::new("refused");
    for (yaml, word) in [
        ("create_new_adapter: true\n", "test.yaml:11: create_new_adapter"),
        ("finetuning_type: freeze\nfreeze_trainable_modules: attention\n", "self_attn"),
        ("finetuning_type: freeze\nfreeze_trainable_layers: 0\n", "freeze_trainable_layers"),
        ("target_parameters: mlp.experts.down_proj\n", "expected tensors of experts (none)"),
        ("target_parameters: x\nlora_dropout: 0.1\n", "test.yaml:12: lora_dropout"),
        ("additional_target: nothing\n", "additional_target"),
        ("pissa_init: true\nlora_rank: 4000\n", "pissa_init"),
        ("lora_target: mamba_only\n", "no state spaces"),
        ("report_to: wandb\n", "trainer_log.jsonl"),
        ("ram_budget: much\n", "20GiB"),
        ("ram_budget: 100 kB\n", "at most 0.10 MB"),
        ("packing: true\n", "neat_packing"),
        ("lora_target: nothing\n", "q_proj"),
        ("resume_from_checkpoint: nowhere\n", "checkpoint"),
        ("use_muon: true\n", "finetuning_type: full"),
    ] {
        let found = scratch.train("llama-tied", "refused", yaml, None).unwrap_err().to_string();
        assert!(found.contains(word), "{yaml}: {found}");
    }
    scratch.train("llama-tied", "taken", "max_steps: 1\nsave_strategy: no\n", None).unwrap();
    let found = scratch.train("llama-tied", "taken", "max_steps: 1\n", None).unwrap_err().to_string();
    assert!(found.contains("overwrite_output_dir"), "{found}");
    scratch.train("llama-tied", "taken", "max_steps: 1\noverwrite_output_dir: true\n", None).unwrap();
}

#[test]
fn adapters_over_four_and_eight_bits_are_trained_with_dropout() {
    let scratch = Scratch::new("told");
    let told = scratch.train("qwen2", "told", "max_steps: 1\nquantization_bit: 4\n", None).unwrap();
    let adapter = bantam_model::adapter::Adapter::open(&told.output).unwrap();
    let told = bantam_model::merge::trained::Trained::find(&adapter, b"{}");
    assert!(told.in_four_bits && told.nested && !told.fp4, "{}", told.because);
    let nested = format!("{LORA}quantization_bit: 4\nlora_dropout: 0.2\nbf16: true\n");
    check("llama-untied", "nested", &nested, "adapter_model.safetensors");
    let short =
        "learning_rate: 0.01\nlora_rank: 64\nnum_train_epochs: 5\nquantization_bit: 8\noptim: adamw_8bit\n";
    check("qwen2", "int8", short, "adapter_model.safetensors");
    // What layers see takes half of the memory, and the optimizer a quarter and its scales.
    let memory = |run: &Run| -> Vec<f64> {
        let line = run.seen.notes.iter().find(|note| note.starts_with("memory: ")).unwrap();
        let of = |what: &str| {
            let (_, rest) = line.split_once(&format!("{what} ")).unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        };
        ["inputs of layers", "optimizer"].map(of).to_vec()
    };
    let scratch = Scratch::new("memory");
    let run = |name: &str, yaml: &str| {
        let yaml = format!("finetuning_type: full\nmax_steps: 1\nsave_strategy: no\n{yaml}");
        memory(&scratch.train("qwen2", name, &yaml, None).unwrap())
    };
    let (plain, short) = (run("plain", ""), run("short", "bf16: true\noptim: adamw_8bit\n"));
    assert!((plain[0] / short[0] - 2.0).abs() < 1.0 && plain[1] > 2.0 * short[1], "{plain:?} {short:?}");
    for quantization in [
        "finetuning_type: qlora\ndouble_quantization: false\n",
        "quantization_bit: 4\nquantization_type: fp4\n",
    ] {
        let scratch = Scratch::new("four");
        let run =
            scratch.train("llama-tied", "four", &format!("max_steps: 1\n{quantization}"), None).unwrap();
        let plain = scratch.train("llama-tied", "plain", "max_steps: 1\n", None).unwrap();
        assert!(run.seen.losses[0] != plain.seen.losses[0], "{quantization}: nothing was quantized");
    }
}

#[test]
fn a_model_that_is_quantized_stays_as_it_is() {
    let scratch = Scratch::new("quantized");
    let run = |model: &str, yaml: &str| {
        let folder = bantam_tests::repository("tests/goldens/quant").join(model);
        scratch
            .train_over(&folder, model, &format!("max_steps: 2\noverwrite_output_dir: true\n{yaml}"), None)
            .unwrap()
    };
    for model in [
        "gptq-4b-g128-desc-llama",
        "awq-gemm-g128-gpt_neox",
        "bnb-int8-llama",
        "hqq-3b-g64-llama",
        "gguf-llama/model-Q4_K.gguf",
    ] {
        assert!(run(model, "").outcome.loss.is_finite(), "{model}");
    }
    let file = bantam_tests::repository("tests/goldens/quant/gguf-llama/model-Q8_0.gguf");
    let found = scratch.train_over(&file, "full", "finetuning_type: full\n", None).unwrap_err().to_string();
    assert!(found.contains("GGUF"), "{found}");
    let (plain, asked) = (run("bnb-nf4-llama", ""), run("bnb-nf4-llama", "quantization_bit: 8\n"));
    assert_eq!(plain.seen.losses, asked.seen.losses);
    assert!(asked.seen.notes.iter().any(|note| note.contains("quantized already")), "{:?}", asked.seen.notes);
}

#[test]
fn some_weights_are_trained_and_the_others_stay() {
    let yaml = "finetuning_type: freeze\nfreeze_trainable_layers: 1\nfreeze_extra_modules: norm\n\
                freeze_trainable_modules: mlp\nlearning_rate: 0.01\nnum_train_epochs: 5\noptim: adamw_8bit\n";
    check("qwen2", "freeze", yaml, "model.safetensors");
    let scratch = Scratch::new("frozen");
    let run = scratch.train("qwen2", "frozen", &format!("{yaml}max_steps: 1\n"), None);
    let run = run.unwrap_or_else(|error| panic!("{error}"));
    let (before, after) = (Source::open(&model_folder("qwen2")).unwrap(), Source::open(&run.output).unwrap());
    let last = before.spec.layers.len() - 1;
    for tensor in before.checkpoint.tensors() {
        let now = after.checkpoint.tensor(tensor.name).unwrap();
        // `norm` is a part of the names of all norms, there as here.
        let is_trained = tensor.name.contains(&format!("layers.{last}.mlp")) || tensor.name.contains("norm");
        let is_same = now.dtype == tensor.dtype && now.data == tensor.data;
        assert_eq!(is_same, !is_trained, "{}", tensor.name);
    }
}

#[test]
fn modules_beside_the_adapter_are_trained_whole() {
    let yaml = format!("{LORA}additional_target: lm_head,norm\n");
    check("llama-untied", "whole", &yaml, "adapter_model.safetensors");
}

#[test]
fn experts_in_one_tensor_are_trained() {
    let yaml = format!(
        "{LORA}lora_target: none\ntarget_parameters: mlp.experts.gate_up_proj,mlp.experts.down_proj\n"
    );
    check("gpt_oss-mxfp4", "experts", &yaml, "adapter_model.safetensors");
}

/// Of an adapter: what it adds to a module's matrix.
fn change(folder: &Path, module: &str, scale: f32) -> Vec<f32> {
    let adapter = bantam_model::adapter::Adapter::open(folder).unwrap();
    let side = |side: &str| adapter.read(&format!("base_model.model.{module}.lora_{side}.weight")).unwrap();
    let ((down_shape, down), (_, up)) = (side("A"), side("B"));
    let (rank, inputs) = (down_shape[0], down_shape[1]);
    let row = |row: &[f32], input: usize| -> f32 {
        row.iter().zip(down[input..].iter().step_by(inputs)).map(|(up, down)| up * down).sum()
    };
    up.chunks_exact(rank)
        .flat_map(|up| (0..inputs).map(move |at| (up, at)))
        .map(|(up, at)| scale * row(up, at))
        .collect()
}

#[test]
fn an_adapter_that_begins_as_parts_of_the_model_goes_as_pefts() {
    let golden = fs::read(bantam_tests::repository("tests/goldens/train-pissa/golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let yaml = "learning_rate: 0.01\nlora_rank: 4\nmax_steps: 4\npissa_init: true\npissa_iter: -1\n\
                pissa_convert: true\ndisable_shuffling: true\n\
                lora_target: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj\n";
    let scratch = Scratch::new("pissa");
    let whole = scratch.train("llama-tied", "whole", yaml, None).unwrap();
    for (found, wanted) in whole.seen.losses.iter().zip(golden["losses"].as_array().unwrap()) {
        let wanted = wanted.as_f64().unwrap();
        assert!((found - wanted).abs() < 1e-4 * wanted, "{found}, not {wanted}: {:?}", whole.seen.losses);
    }
    for (module, wanted) in golden["changes"].as_object().unwrap() {
        let found = change(&whole.output.join("pissa_converted"), module, 2.0);
        let length = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let wanted_length = wanted["l2"].as_f64().unwrap();
        assert!(
            (length - wanted_length).abs() < 1e-3 * wanted_length,
            "{module}: {length}, not {wanted_length}"
        );
        for (found, wanted) in found.iter().zip(wanted["first"].as_array().unwrap()) {
            let error = (f64::from(*found) - wanted.as_f64().unwrap()).abs();
            assert!(error < 1e-3 * wanted_length, "{module}: {found}, not {wanted}");
        }
    }
    // The adapter itself is for the model without what was taken off it.
    let base = Source::open(&model_folder("llama-tied")).unwrap();
    let found = base.adapted(&whole.output).unwrap_err().to_string();
    assert!(found.contains("init_lora_weights"), "{found}");
    let ended = scratch.train("llama-tied", "parts", yaml, Some(2)).unwrap();
    assert!(!ended.outcome.is_done);
    let resumed = scratch.train("llama-tied", "parts", yaml, None).unwrap();
    assert_eq!(resumed.seen.losses, whole.seen.losses[2..]);
    assert!(whole.bytes("adapter_model.safetensors") == resumed.bytes("adapter_model.safetensors"));
    let powers = scratch
        .train("llama-tied", "powers", &yaml.replace("pissa_iter: -1", "pissa_iter: 8"), None)
        .unwrap();
    assert!((powers.seen.losses[3] - whole.seen.losses[3]).abs() < 0.05, "{:?}", powers.seen.losses);
}

#[test]
fn a_model_is_trained_from_its_configuration_alone() {
    let yaml = "finetuning_type: full\ntrain_from_scratch: true\nlearning_rate: 0.003\nnum_train_epochs: 5\n";
    for model in ["gemma2", "gpt_oss-bf16"] {
        check(model, "scratch", yaml, "model.safetensors");
    }
    let scratch = Scratch::new("first");
    let folder = scratch.0.join("bare");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(model_folder("mixtral").join("config.json"), folder.join("config.json")).unwrap();
    let run = |name: &str, more: &str| {
        scratch.train_over(&folder, name, &format!("{yaml}max_steps: 1\n{more}"), None).unwrap()
    };
    let (one, again, other) = (run("one", ""), run("again", ""), run("other", "seed: 7\n"));
    assert!(one.bytes("model.safetensors") == again.bytes("model.safetensors"));
    assert!(one.bytes("model.safetensors") != other.bytes("model.safetensors"));
    // A model that knows nothing holds every token for as likely.
    let vocab = Source::open(&one.output).unwrap().spec.vocab as f64;
    assert!((one.seen.losses[0] - vocab.ln()).abs() < 0.5, "{:?} of {}", one.seen.losses, vocab.ln());
    let found =
        scratch.train_over(&folder, "lora", "train_from_scratch: true\n", None).unwrap_err().to_string();
    assert!(found.contains("finetuning_type: full"), "{found}");
}
