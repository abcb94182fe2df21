//! Whole runs from settings to files: losses fall, the same bytes come again, also of a run that was ended and resumed,
//! and what was written is a model.

// Helpers of a test may unwrap: a failure is a failed test.
#![allow(clippy::unwrap_used)]

mod cards;
mod refused;
mod resumed;
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::checkpoint::Checkpoint;
use bantam_model::source::Source;
use bantam_tests::{model_folder, trained};
use bantam_train::run;
use scratch::{LORA, Run, Scratch, check, logits};
use serde_json::Value;

#[test]
fn adapters_are_trained() {
    check("llama-tied", "lora", LORA, "adapter_model.safetensors");
}

#[test]
fn smooth_labels_noise_and_the_arguments_of_a_schedule_are_resumed_to_the_bit() {
    let yaml = format!(
        "{LORA}label_smoothing_factor: 0.1\nneftune_noise_alpha: 5\nlr_scheduler_type: cosine_with_min_lr\n\
         lr_scheduler_kwargs: {{min_lr_rate: 0.5}}\n"
    );
    check("llama-tied", "smooth", &yaml, "adapter_model.safetensors");
    let scratch = Scratch::new("plain");
    let first = |yaml: &str| scratch.train("llama-tied", "run", yaml, None).unwrap();
    let short = "max_steps: 1\noverwrite_output_dir: true\n";
    let [plain, smooth, noisy] = ["", "label_smoothing_factor: 0.1\n", "neftune_noise_alpha: 5\n"]
        .map(|more| first(&format!("{LORA}{short}{more}")).seen.losses[0]);
    assert!(plain != smooth && plain != noisy, "{plain} {smooth} {noisy}");
    let run = first(&format!("{yaml}overwrite_output_dir: true\n"));
    let rates: Vec<f64> = run.log().iter().map(|line| line["lr"].as_f64().unwrap()).collect();
    assert!(rates.iter().skip(1).all(|rate| *rate > 0.005), "{rates:?}");
}

/// LLaMA-Factory's rule: the factor is how often the context goes into `cutoff_len`, rounded up.
#[test]
fn positions_are_bent_as_the_configuration_would_say() {
    let scratch = Scratch::new("bent");
    let folder = scratch.0.join("short");
    fs::create_dir_all(&folder).unwrap();
    let place = model_folder("llama-tied");
    fs::copy(place.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(place.join("config.json")).unwrap()).unwrap();
    let write = |context: usize, scaling: Value| {
        let mut config = config.clone();
        config["max_position_embeddings"] = context.into();
        config["rope_scaling"] = scaling;
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
    };
    let full = "finetuning_type: full\nmax_steps: 2\noverwrite_output_dir: true\ncutoff_len: 12\n";
    let run = |yaml: &str| scratch.train_over(&folder, "run", &format!("{full}{yaml}"), None).unwrap();
    let plain = || {
        write(5, Value::Null);
        run("").seen.losses
    };
    let unbent = plain();
    for (kind, more) in [
        ("linear", serde_json::json!({})),
        ("dynamic", serde_json::json!({ "original_max_position_embeddings": 5 })),
        ("yarn", serde_json::json!({ "original_max_position_embeddings": 5 })),
        (
            "llama3",
            serde_json::json!({
                "original_max_position_embeddings": 5, "low_freq_factor": 1.0, "high_freq_factor": 4.0
            }),
        ),
    ] {
        let mut told = more;
        told["rope_type"] = kind.into();
        told["factor"] = 3.0.into();
        write(15, told.clone());
        let wanted = run("").seen.losses;
        write(5, serde_json::json!({ "type": "linear", "factor": 7.0 }));
        let found = run(&format!("rope_scaling: {kind}\n"));
        assert_eq!(found.seen.losses, wanted, "{kind}");
        assert_eq!(wanted == unbent, kind == "dynamic", "{kind}");
        let config = found.json("config.json");
        assert_eq!((&config["rope_scaling"], &config["max_position_embeddings"]), (&told, &15.into()));
        assert!(
            found.seen.notes.iter().any(|note| note.contains("new config.json")),
            "{:?}",
            found.seen.notes
        );
    }
    write(512, Value::Null);
    let note = &run("rope_scaling: yarn\n").seen.notes;
    assert!(note.iter().any(|note| note.contains("rope_scaling changes nothing")), "{note:?}");
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
    // Some of whose tensors have three dimensions, and biases two.
    check("gpt_oss-bf16", "muon-experts", yaml, "model.safetensors");
}

#[test]
fn a_new_adapter_changes_nothing_and_its_checkpoints_are_counted() {
    let scratch = Scratch::new("kept");
    let yaml = "learning_rate: 0.0\nuse_dora: true\nmax_steps: 7\nsave_total_limit: 2\n";
    let run = scratch.train("llama-tied", "kept", yaml, None).unwrap();
    assert_eq!(run.checkpoints(), ["checkpoint-6", "checkpoint-7"]);
    let base = Source::open(&model_folder("llama-tied")).unwrap();
    let before = logits(&base);
    let worst = before
        .iter()
        .zip(logits(&base.adapted(&run.output).unwrap()))
        .map(|(before, after)| (before - after).abs())
        .fold(0.0, f32::max);
    assert!(worst < 1e-5, "{worst}");
}

const MEASURED: &str = "learning_rate: 0.3\nlora_rank: 4\nval_size: 2\nmax_steps: 6\n\
    eval_strategy: steps\neval_steps: 1\nsave_steps: 1\nper_device_eval_batch_size: 1\nplot_loss: true\n";

#[test]
fn the_best_of_what_was_measured_is_kept_and_taken() {
    let scratch = Scratch::new("best");
    let yaml = format!("{MEASURED}load_best_model_at_end: true\nsave_total_limit: 2\neval_on_start: true\n");
    let whole = scratch.train("llama-tied", "whole", &yaml, None).unwrap();
    let measured = &whole.seen.measured;
    let steps: Vec<u64> = measured.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [0, 1, 2, 3, 4, 5, 6, 6], "once more at the end");
    let (best, loss) = measured[..7].iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(best != 6 && best != 0, "the test needs a rate that is too high: {measured:?}");
    assert_eq!(measured[7].1, loss, "the best was taken");
    assert_eq!(whole.json("eval_results.json")["eval_loss"], loss);
    let all = whole.json("all_results.json");
    assert!(all["eval_loss"] == loss && all["train_loss"].is_f64(), "{all}");
    let state = whole.json("trainer_state.json");
    assert_eq!((&state["best_global_step"], &state["best_metric"]), (&best.into(), &loss.into()));
    assert!(state["best_model_checkpoint"].as_str().unwrap().ends_with(&format!("checkpoint-{best}")));
    assert_eq!(
        state["log_history"].as_array().unwrap().iter().filter(|line| line["eval_loss"].is_f64()).count(),
        7
    );
    let told: Vec<f64> = whole.log().iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    assert_eq!(told, measured[..7].iter().map(|(_, loss)| *loss).collect::<Vec<_>>());
    let names = [format!("checkpoint-{best}"), "checkpoint-6".to_owned()];
    assert_eq!(whole.checkpoints(), names);
    let weights = "adapter_model.safetensors";
    assert!(whole.bytes(weights) == whole.bytes(&format!("{}/{weights}", names[0])));
    assert!(whole.bytes(weights) != whole.bytes(&format!("{}/{weights}", names[1])));
    assert!(whole.bytes("training_eval_loss.png").starts_with(b"\x89PNG"));

    for end in 1..6 {
        let name = format!("parts-{end}");
        scratch.train("llama-tied", &name, &yaml, Some(end)).unwrap();
        let resumed = scratch.train("llama-tied", &name, &yaml, None).unwrap();
        assert!(whole.bytes(weights) == resumed.bytes(weights), "ended after {end}");
        let found: Vec<f64> = resumed.log().iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
        assert_eq!(found, told, "ended after {end}");
        assert_eq!(resumed.json("trainer_state.json")["best_global_step"], best, "ended after {end}");
    }
}

#[test]
fn measuring_by_epochs_ends_a_run_that_learns_no_more() {
    let scratch = Scratch::new("patience");
    let yaml = "learning_rate: 0.0\nnum_train_epochs: 9\nval_size: 0.3\neval_strategy: epoch\nsave_strategy: epoch\n\
        load_best_model_at_end: true\nearly_stopping_steps: 2\nsave_total_limit: 1\n";
    let run = scratch.train("llama-tied", "out", yaml, None).unwrap();
    // The first epoch is the best, and the next two are no better: one step each of 4 rows.
    assert_eq!((run.outcome.steps, run.outcome.is_done), (3, true));
    assert_eq!(run.checkpoints(), ["checkpoint-1"], "of one checkpoint, the best is the one");
    let batched =
        scratch.train("llama-tied", "flat", "val_size: 3\nmax_steps: 1\ndo_eval: true\n", None).unwrap();
    let single = "val_size: 3\nmax_steps: 1\ndo_eval: true\nper_device_eval_batch_size: 1\n";
    let single = scratch.train("llama-tied", "single", single, None).unwrap();
    // A mean over all tokens, and one of means of rows: the Trainer's own choice.
    let [together, apart] = [&batched, &single].map(|run| run.seen.measured[0].1);
    assert!(together != apart && (together - apart).abs() < 0.5, "{together} {apart}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let scratch = Scratch::new("unmeasured");
    for (yaml, word) in [
        ("load_best_model_at_end: true\n", "eval_strategy"),
        ("val_size: 2\neval_strategy: epoch\nload_best_model_at_end: true\n", "save_strategy to be the same"),
        ("val_size: 2\neval_strategy: steps\neval_steps: 2\nload_best_model_at_end: true\n", "multiple"),
        ("val_size: 2\neval_strategy: steps\nmetric_for_best_model: rouge\n", "loss"),
        ("early_stopping_steps: 2\n", "eval_strategy"),
        ("eval_on_start: true\n", "val_size or eval_dataset"),
        ("do_eval: true\n", "needs data"),
    ] {
        let found = scratch.refused(yaml);
        assert!(found.contains(word), "{yaml}: {found}");
    }
}

/// Records of an event file, each without its frame.
fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        records.push(&bytes[12..12 + length]);
        bytes = &bytes[16 + length..];
    }
    records
}

#[test]
fn tensorboard_is_told_of_every_step_once() {
    let scratch = Scratch::new("events");
    let logging = scratch.0.join("events");
    let yaml = format!(
        "max_steps: 4\nlogging_strategy: steps\nval_size: 2\neval_strategy: steps\neval_steps: 2\n\
         report_to: tensorboard\nlogging_dir: {}\n",
        logging.display()
    );
    scratch.train("llama-tied", "out", &yaml, Some(3)).unwrap();
    scratch.train("llama-tied", "out", &yaml, None).unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir(&logging).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2, "one for each process");
    let has = |record: &[u8], words: &str| record.windows(words.len()).any(|found| found == words.as_bytes());
    let told = |file: &PathBuf, words: &str| {
        let bytes = fs::read(file).unwrap();
        assert!(has(records(&bytes)[0], "brain.Event:2"));
        records(&bytes).iter().filter(|record| has(record, words)).count()
    };
    // Steps 1, 2 and 4 are logged, 2 and 4 measured, the end sums up and measures once more.
    assert_eq!((told(&files[0], "train/loss"), told(&files[0], "eval/loss")), (2, 1));
    assert_eq!((told(&files[1], "train/loss"), told(&files[1], "eval/loss")), (1, 2));
    assert_eq!((told(&files[0], "train/train_loss"), told(&files[1], "train/train_loss")), (0, 1));
}

#[test]
fn what_is_measured_counts_in_the_memory_that_is_said() {
    let scratch = Scratch::new("said");
    let said = |yaml: &str| {
        let yaml = format!("val_size: 5\nper_device_train_batch_size: 1\n{yaml}");
        let (settings, source, prepared) = scratch.begin(&model_folder("llama-tied"), "said", &yaml);
        let forecast = run::forecast(&settings, &source, &prepared, (Cpu::detect(), 2)).unwrap();
        assert_eq!(forecast.bytes(), forecast.parts.iter().map(|(_, bytes)| bytes).sum::<u64>());
        let part = |name: &str| forecast.parts.iter().find(|(what, _)| *what == name).unwrap().1;
        ["a layer forward", "a layer backward", "products", "head and loss", "data"].map(part)
    };
    let never = said("per_device_eval_batch_size: 5\n");
    let one = said("per_device_eval_batch_size: 1\ndo_eval: true\n");
    let all = said("per_device_eval_batch_size: 5\ndo_eval: true\n");
    // Rows have 9 to 12 tokens.
    assert!(one[0] >= never[0] && one[0] < 2 * never[0], "{never:?} {one:?}");
    assert!(all[0] > 3 * never[0] && all[2] > never[2] && all[3] > 2 * never[3], "{never:?} {all:?}");
    assert_eq!((all[1], all[4] > never[4] / 2), (never[1], true), "nothing goes back through it");
}

/// The same where matrices are read in the files of the model that was made of both, which is gone by then.
#[test]
fn a_merged_model_is_trained_on_in_bfloat16() {
    let scratch = Scratch::new("halves");
    let yaml = format!("{LORA}bf16: true\nmax_steps: 3\n");
    let first = scratch.train_over(&trained(), "first", &yaml, None).unwrap();
    let adapter = first.output.display().to_string();
    let yaml = format!("{yaml}adapter_name_or_path: {adapter}\ncreate_new_adapter: true\n");
    let new = scratch.train_over(&trained(), "new", &yaml, None).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(new.seen.losses.len(), 3);
}

#[test]
fn a_new_adapter_begins_where_others_ended_that_become_part_of_the_model() {
    let scratch = Scratch::new("others");
    let first = scratch.train("llama-tied", "first", LORA, None).unwrap();
    let one_step = |output: &str, more: &str| {
        let yaml = format!("{LORA}max_steps: 1\nwarmup_ratio: 0.0\n{more}\n");
        scratch.train("llama-tied", output, &yaml, None).unwrap_or_else(|error| panic!("{error}"))
    };
    let adapter = first.output.display().to_string();
    let goes_on = one_step("same", &format!("adapter_name_or_path: {adapter}"));
    let new = one_step("new", &format!("adapter_name_or_path: {adapter}\ncreate_new_adapter: true"));
    let second = new.output.display().to_string();
    let both = one_step("both", &format!("adapter_name_or_path: {adapter},{second}"));
    let [begun, again] = [&goes_on, &new].map(|run| run.seen.losses[0]);
    // The sum is rounded to the model's own type.
    assert!((begun - again).abs() < 2e-3 && first.seen.losses[0] - begun > 0.1, "{begun} {again}");
    assert!(both.seen.losses[0] < again, "the second adapter learnt a step: {again} {:?}", both.seen.losses);
    assert!(new.checkpoints().iter().all(|name| !name.starts_with('.')), "{:?}", new.checkpoints());
    let base = new.json("adapter_config.json")["base_model_name_or_path"].as_str().unwrap().to_owned();
    assert!(base.ends_with("llama-tied"), "{base}");
}

/// Of PEFT 0.18.1 over transformers 4.57.6, after `set_seed(42)`: modules in the order in which they are made.
/// Numbers are drawn in the order in which PEFT meets modules, which is that of a family's own code.
#[test]
fn the_first_numbers_of_adapters_are_those_of_peft() {
    const MIXTRAL: [(&str, [f32; 2]); 4] = [
        ("0.block_sparse_moe.gate", [0.009_372_331, -0.017_922_336]),
        ("0.block_sparse_moe.experts.0.w2", [-0.077_863_24, -0.030_830_398]),
        ("0.block_sparse_moe.experts.0.w3", [0.082_054_146, 0.019_120_233]),
        ("1.self_attn.q_proj", [0.014_355_143, 0.030_420_119]),
    ];
    const PHI3: [(&str, [f32; 2]); 4] = [
        ("0.self_attn.o_proj", [0.049_230_795, -0.013_198_064]),
        ("0.self_attn.qkv_proj", [-0.065_617_58, -0.003_904_926_6]),
        ("0.mlp.gate_up_proj", [0.074_790_254, 0.043_280_788]),
        ("0.mlp.down_proj", [-0.059_985_712, -0.020_708_128]),
    ];
    let scratch = Scratch::new("first");
    let yaml =
        "finetuning_type: lora\nlora_rank: 4\nlora_target: all\nseed: 42\nlearning_rate: 0.0\nmax_steps: 1\n";
    for (model, first) in [("mixtral", MIXTRAL), ("phi3", PHI3)] {
        let run = scratch.train(model, model, yaml, None).unwrap_or_else(|error| panic!("{error}"));
        let adapter = Checkpoint::open(&run.output.join("adapter_model.safetensors")).unwrap();
        for (module, wanted) in first {
            let name = format!("base_model.model.model.layers.{module}.lora_A.weight");
            let mut found = [0.0; 2];
            adapter.tensor(&name).unwrap_or_else(|| panic!("no {name}")).read_f32(0, &mut found);
            assert!(found.iter().zip(wanted).all(|(x, y)| (x - y).abs() < 1e-7), "{module}: {found:?}");
        }
    }
}

#[test]
fn a_step_whose_gradients_are_no_numbers_changes_nothing() {
    let scratch = Scratch::new("far");
    let yaml = "finetuning_type: full\noptim: sgd\nlearning_rate: 1.0e+37\nlr_scheduler_type: constant\n\
                max_grad_norm: 0\nmax_steps: 6\nsave_steps: 1\n";
    let error = scratch.train("llama-tied", "out", yaml, None).unwrap_err().to_string();
    assert!(error.contains("expected gradients") || error.contains("expected a loss"), "{error}");
    for entry in fs::read_dir(scratch.0.join("out")).unwrap() {
        let path = entry.unwrap().path().join("model.safetensors");
        let Ok(checkpoint) = Checkpoint::open(&path) else { continue };
        for tensor in checkpoint.tensors() {
            let mut values = vec![0.0f32; tensor.elements()];
            tensor.read_f32(0, &mut values);
            assert!(values.iter().all(|x| x.is_finite()), "{}: {}", path.display(), tensor.name);
        }
    }
    let found = scratch.refused("adam_beta1: 1.0");
    assert!(found.contains("adam_beta1") && found.contains("from 0 to 0.999999"), "{found}");
}

#[test]
fn accuracy_is_measured_and_may_choose_the_best() {
    let scratch = Scratch::new("accuracy");
    // What is learnt is what the model is measured with.
    let kept = scratch.0.join("kept");
    fs::create_dir_all(&kept).unwrap();
    for name in ["train.jsonl", "validation.jsonl"] {
        fs::copy(scratch.0.join("rows.jsonl"), kept.join(name)).unwrap();
    }
    let yaml = format!(
        "finetuning_type: full\nlearning_rate: 0.01\nmax_steps: 24\nval_size: 2\neval_strategy: steps\neval_steps: 8\n\
         save_steps: 8\nplot_loss: true\ncompute_accuracy: true\nmetric_for_best_model: accuracy\n\
         load_best_model_at_end: true\npure_bf16: true\ntokenized_path: {}\n",
        kept.display()
    );
    let run = scratch.train("llama-tied", "out", &yaml, None).unwrap();
    let state = run.json("trainer_state.json");
    let told: Vec<f64> = state["log_history"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|line| line["eval_accuracy"].as_f64())
        .collect();
    let best = told.iter().copied().fold(0.0, f64::max);
    assert!(told.len() > 2 && best > 0.0 && best <= 1.0, "{told:?}");
    assert_eq!(state["best_metric"], best);
    assert_eq!(run.json("eval_results.json")["eval_accuracy"], best);
    assert!(run.bytes("training_eval_accuracy.png").starts_with(b"\x89PNG"));
    assert!(run.seen.notes.iter().any(|note| note.contains("pure_bf16")), "{:?}", run.seen.notes);
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
