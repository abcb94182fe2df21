//! What no run does, and the files that people have.

use std::fs;

use bantam_core::Cpu;
use bantam_model::source::Source;
use bantam_tests::model_folder;
use bantam_train::run::{Outcome, RunError, check as check_settings, prepared, train};
use bantam_train::settings::Settings;
use serde_json::Value;

use crate::scratch::{Scratch, Seen};

#[test]
fn what_no_run_does_is_refused_with_its_line() {
    let scratch = Scratch::new("refused");
    for (yaml, word) in [
        ("finetuning_type: freeze\nfreeze_trainable_modules: attention\n", "self_attn"),
        ("finetuning_type: freeze\nfreeze_trainable_layers: 0\n", "freeze_trainable_layers"),
        ("target_parameters: mlp.experts.down_proj\n", "expected tensors of experts (none)"),
        ("target_parameters: x\nlora_dropout: 0.1\n", "test.yaml:12: lora_dropout"),
        ("additional_target: nothing\n", "additional_target"),
        ("pissa_init: true\nlora_rank: 4000\n", "pissa_init"),
        ("lora_target: mamba_only\n", "no state spaces"),
        ("report_to: comet_ml\n", "tensorboard, wandb, swanlab, mlflow"),
        ("use_swanlab: true\nswanlab_mode: cloud\n", "swanlab sync"),
        ("ram_budget: much\n", "20GiB"),
        ("ram_budget: 100 kB\n", "at most 0.10 MB"),
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

/// What the files for training of LLaMA-Factory 0.9.3 have in common (`examples/train_lora`, `examples/train_full`).
const COMMON: &str = include_str!("../goldens/train-data/llama3_lora_sft.yaml");

/// Each of them: what it has of its own, keys that it leaves out, and why it is refused where it is.
const FILES: &[(&str, &str, &[&str], Option<&str>)] = &[
    ("llama3_lora_sft", "", &[], None),
    (
        "llama3_lora_sft, measured",
        "val_size: 0.1\nper_device_eval_batch_size: 1\neval_strategy: steps\neval_steps: 500\n",
        &[],
        None,
    ),
    (
        "llama3_lora_sft_otfq",
        "quantization_bit: 4\nquantization_method: bnb\ndouble_quantization: false\n",
        &[],
        None,
    ),
    ("llama3_lora_pretrain", "stage: pt\ndataset: c4_demo\n", &["template"], None),
    (
        "llama3_full_sft",
        "finetuning_type: full\ndeepspeed: examples/deepspeed/ds_z3_config.json\ngradient_accumulation_steps: 2\n\
         learning_rate: 1.0e-5\n",
        &["lora_rank", "lora_target"],
        None,
    ),
    (
        "qwen2_full_sft (muon)",
        "model_name_or_path: Qwen/Qwen2-1.5B-Instruct\ntemplate: qwen\nfinetuning_type: full\nuse_muon: true\n\
         learning_rate: 1.0e-5\n",
        &["lora_rank", "lora_target"],
        None,
    ),
    (
        "llama3_lora_dpo",
        "stage: dpo\ndataset: dpo_en_demo\npref_beta: 0.1\npref_loss: sigmoid\n",
        &[],
        Some("pt or sft"),
    ),
    ("llama3_lora_kto", "stage: kto\ndataset: kto_en_demo\npref_beta: 0.1\n", &[], Some("pt or sft")),
    ("llama3_lora_reward", "stage: rm\ndataset: dpo_en_demo\n", &[], Some("pt or sft")),
    (
        "llama3_lora_ppo",
        "stage: ppo\nreward_model: saves/llama3-8b/lora/reward\nmax_new_tokens: 512\ntop_k: 0\ntop_p: 0.9\n",
        &[],
        Some("pt or sft"),
    ),
    ("llama3_preprocess", "tokenized_path: saves/llama3-8b/dataset/sft\n", &[], None),
    ("llama3_preprocess, what it kept", "tokenized_path: saves/llama3-8b/dataset/sft\n", &["dataset"], None),
    (
        "llama3_lora_predict",
        "adapter_name_or_path: saves/llama3-8b/lora/sft\ndo_predict: true\npredict_with_generate: true\n\
         eval_dataset: identity,alpaca_en_demo\nper_device_eval_batch_size: 1\n",
        &["do_train"],
        Some("bantam run"),
    ),
];

impl Scratch {
    /// Data sets under the names of those files.
    fn data_sets(&self) {
        let write = |name: &str, text: String| fs::write(self.0.join(name), text).unwrap();
        let row = |row: usize| {
            serde_json::json!({
                "instruction": format!("What is {row} and one?"), "input": "", "output": format!("It is {}.", row + 1),
            })
        };
        let rows: Vec<Value> = (0..20).map(row).collect();
        write("identity.json", serde_json::json!(rows).to_string());
        let texts =
            (0..40).map(|row| format!("{{\"text\": \"{}\"}}\n", format!("Line {row} of a text. ").repeat(9)));
        write("c4_demo.jsonl", texts.collect());
        let info = serde_json::json!({
            "identity": { "file_name": "identity.json" },
            "alpaca_en_demo": { "file_name": "identity.json" },
            "c4_demo": { "file_name": "c4_demo.jsonl", "columns": { "prompt": "text" } },
        });
        write("dataset_info.json", info.to_string());
    }

    /// One step by such a file, with its paths re-pointed.
    fn run_file(&self, own: &str, without: &[&str]) -> Result<Outcome, RunError> {
        let key = |line: &str| line.split_once(':').map(|(key, _)| key.to_owned());
        let kept = COMMON.lines().filter(|line| {
            let found = key(line).unwrap_or_default();
            !without.contains(&found.as_str()) && !own.lines().any(|own| key(own).as_ref() == Some(&found))
        });
        let yaml = kept.chain(own.lines()).map(|line| format!("{line}\n")).collect::<String>();
        let model = if own.contains("template: qwen") { "qwen2" } else { "llama-tied" };
        let mut paths = vec![
            format!("model_name_or_path={}", model_folder(model).display()),
            format!("dataset_dir={}", self.0.display()),
            format!("output_dir={}", self.0.join("saves").display()),
            "max_steps=1".to_owned(),
        ];
        if own.contains("tokenized_path") {
            paths.push(format!("tokenized_path={}", self.0.join("kept").display()));
        }
        let settings = Settings::of_text("file.yaml", &yaml, &paths)?;
        check_settings(&settings)?;
        let source = Source::open(&model_folder(model)).unwrap();
        let prepared = prepared(&settings, &source)?;
        let mut seen = Seen { losses: Vec::new(), measured: Vec::new(), notes: Vec::new(), end: None };
        train(&settings, source, &prepared, (Cpu::detect(), 2), &mut seen)
    }
}

#[test]
fn the_files_of_llama_factory_run_unchanged_or_say_why_not() {
    let scratch = Scratch::new("files");
    scratch.data_sets();
    for (name, own, without, refusal) in FILES {
        match (scratch.run_file(own, without), refusal) {
            (Ok(outcome), None) => {
                assert!(
                    (outcome.steps, outcome.is_done) == (1, true) && outcome.loss > 1.0,
                    "{name}: {outcome:?}"
                );
            }
            (Err(error), Some(words)) => {
                assert!(error.to_string().contains(words), "{name}: {error}");
            }
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
}
