//! Files as people have them, and what is said of wrong ones.
#![allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use super::*;

/// As LLaMA-Factory 0.9.3 has it (`examples/train_lora`).
const SFT: &str = include_str!("../../../tests/goldens/train-data/llama3_lora_sft.yaml");

fn read(text: &str, overrides: &[&str]) -> Result<Settings, String> {
    let overrides: Vec<String> = overrides.iter().map(|given| (*given).to_owned()).collect();
    Settings::of_text("x.yaml", text, &overrides).map_err(|error| error.to_string())
}

#[test]
fn a_file_of_llama_factory_is_read() {
    let settings = read(SFT, &[]).unwrap();
    assert_eq!((settings.stage, settings.data.cutoff_len), (Stage::Sft, 2048));
    assert_eq!(settings.data.datasets, ["identity", "alpaca_en_demo"]);
    assert_eq!((settings.data.packing, settings.data.max_samples), (false, Some(1000)));
    assert_eq!(settings.number("learning_rate"), Some(1e-4));
    assert_eq!((settings.count("lora_rank"), settings.count("lora_alpha")), (Some(8), None));
    assert_eq!((settings.flag("bf16"), settings.text("resume_from_checkpoint")), (true, None));
    assert!(settings.notes.iter().any(|note| note.starts_with("trust_remote_code changes nothing")));
}

#[test]
fn overrides_win() {
    let given = ["learning_rate=1e-5", "logging_steps=1", "bf16=false", "dataset=[a, b]", "template=null"];
    let settings = read(SFT, &given).unwrap();
    assert_eq!(settings.number("learning_rate"), Some(1e-5));
    assert_eq!((settings.flag("bf16"), settings.data.datasets.len()), (false, 2));
    assert_eq!(settings.data.template, None);
    let power = |settings: Settings| settings.table("lr_scheduler_kwargs").unwrap();
    let block = "lr_scheduler_kwargs={power: 2, lr_end: 1e-7}";
    let mut parts = power(read(SFT, &[block, "lr_scheduler_kwargs.power=3"]).unwrap());
    parts.sort();
    assert_eq!(
        parts,
        [("lr_end", "1e-7"), ("power", "3")].map(|(name, of)| (name.to_owned(), of.to_owned()))
    );
    assert_eq!(power(read(SFT, &["lr_scheduler_kwargs.power=2"]).unwrap()).len(), 1);
    assert_eq!(power(read(SFT, &[block, "lr_scheduler_kwargs.power=null"]).unwrap()).len(), 1);
    let error = read(SFT, &["learning_rates=1", "bf16"]).unwrap_err();
    assert!(error.contains("did you mean learning_rate?") && error.contains("key=value"), "{error}");
}

#[test]
fn packing_takes_a_token_where_it_is_asked_for() {
    let cutoff = |stage: &str, given: &[&str]| {
        let settings = read(&SFT.replace("stage: sft", stage), given).unwrap();
        (settings.data.packing, settings.data.cutoff_len)
    };
    assert_eq!(cutoff("stage: sft", &["packing=true"]), (true, 2047));
    assert_eq!(cutoff("stage: sft", &["neat_packing=true"]), (true, 2047));
    assert_eq!(cutoff("stage: pt", &[]), (true, 2048));
    assert_eq!(cutoff("stage: pt", &["packing=true"]), (true, 2047));
    assert_eq!(cutoff("stage: pt", &["packing=false"]), (false, 2048));
}

#[test]
fn all_that_is_wrong_is_said_with_its_line() {
    let check = |from: &str, to: &str, expected: &str| {
        let text = SFT.replace(from, to);
        assert_ne!(text, SFT, "{from}");
        let error = read(&text, &[]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    check(
        "lora_rank: 8",
        "lora_rnk: 8",
        "x.yaml:9: expected a known key, found lora_rnk; did you mean lora_rank?",
    );
    check("1.0e-4", "fast", "x.yaml:33: expected a number from 0 for learning_rate, found fast");
    check("stage: sft", "stage: dpo", "x.yaml:6: expected the stage pt or sft, found dpo");
    check("stage: sft", "stage: pt\nmask_history: true", "x.yaml:7: mask_history is for the stage sft");
    check("bf16: true", "fp16: true", "x.yaml:37: fp16: true is not done here; use bf16: true");
    check("do_train: true", "do_train: false", "x.yaml:7: do_train: false is not done here");
    check("bf16: true", "use_galore: true", "finetuning_type: lora");
    check("lora_target: all", "val_size: 0.1\neval_dataset: x", "x.yaml:10: val_size and eval_dataset");
    check("finetuning_type: lora", "finetuning_type: full\nquantization_bit: 4", "quantization_bit is for");
    check("bf16: true", "quantization_bit: 4\nquantization_method: hqq", "x.yaml:37: expected 4 or 8 bits");
    check("bf16: true", "quantization_bit: 3", "bantam quantize");
    check("bf16: true", "eval_strategy: steps", "x.yaml:37: eval_strategy needs data");
    check("bf16: true", "bf16: true\nbf16: false", "x.yaml:38: expected YAML, found the key bf16");
    check("model_name_or_path: meta", "cache_dir: meta", "expected model_name_or_path, found none");
    let two = read(&SFT.replace("lora_rank", "lora_rnk").replace("1.0e-4", "fast"), &[]).unwrap_err();
    assert_eq!(two.lines().count(), 2, "{two}");
    assert!(read("- a", &[]).unwrap_err().contains("a list"));
}

#[test]
fn sections_are_the_same_keys() {
    let text = "model:\n  path: m\n  train_4bit: true\nlora:\n  rank: 16\n  alpha: 32\n  target_modules: mlp_only\n\
                dataset:\n  path: d.jsonl\n  type: sharegpt\ntraining:\n  lr: 2e-4\n  epochs: 2\n  use_muon: true\n  \
                embedding_lr_ratio: 3\n  gpu_devices: [0]\n";
    let settings = read(text, &["training.lr=1e-3"]).unwrap();
    assert_eq!(settings.text("model_name_or_path").as_deref(), Some("m"));
    assert_eq!((settings.count("quantization_bit"), settings.count("lora_rank")), (Some(4), Some(16)));
    assert_eq!(settings.data.file, Some(("d.jsonl".into(), "sharegpt".to_owned())));
    assert_eq!((settings.number("learning_rate"), settings.number("head_lr_ratio")), (Some(1e-3), Some(0.1)));
    assert!(settings.data.append_eos);
    assert_eq!((settings.flag("use_muon"), settings.number("embedding_lr_ratio")), (true, Some(3.0)));
    assert_eq!(settings.text("lr_scheduler_type").as_deref(), Some("cosine"));
    let error = read(&text.replace("rank: 16", "rnk: 16"), &[]).unwrap_err();
    assert!(error.starts_with("x.yaml:5: expected a known key"), "{error}");
}

#[test]
fn keys_of_other_files_are_known() {
    for more in [
        "deepspeed: examples/deepspeed/ds_z3_config.json\nuse_muon: true",
        "quantization_bit: 4\nquantization_method: bnb\nval_size: 0.1\neval_strategy: steps\neval_steps: 500",
        "per_device_eval_batch_size: 1\neval_strategy: no\nlora_alpha: 16\nfsdp_config: {a: [1, 2]}",
    ] {
        read(&format!("{SFT}{more}\n"), &[]).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn no_text_stops_it() {
    // Letters of the file and of YAML's grammar, put where they do not belong.
    let mut seed: u32 = 7;
    let mut below = |end: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % end
    };
    for _ in 0..2000 {
        let mut text: Vec<char> = SFT.chars().collect();
        for _ in 0..1 + below(4) {
            let letter = "{}[]:,-#&*!|>'\"%@`?\n\t \u{feff}\0é".chars().nth(below(24)).unwrap_or('x');
            let place = below(text.len());
            text.splice(place..place + below(3).min(text.len() - place), [letter]);
        }
        text.truncate(1 + below(text.len()));
        let text: String = text.into_iter().collect();
        if let Err(error) = Settings::of_text("x", &text, &[]) {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// Whatever stands behind a key, it is taken or refused in words, by the settings and by a run.
#[test]
fn no_value_of_any_key_stops_it() {
    const VALUES: &[&str] = &[
        "null",
        "\"\"",
        "true",
        "-1",
        "0",
        "1",
        "3.7",
        "1e300",
        "-1e300",
        ".nan",
        ".inf",
        "99999999999999999999",
        "[]",
        "[1, [2]]",
        "{a: {b: c}}",
        "all",
        "a, b,,",
        "no",
        "\"\\0\\u00e9\"",
        "20GiB",
        "/dev/null",
        "../..",
    ];
    for key in table::keys() {
        for value in VALUES {
            let text =
                format!("model_name_or_path: m\ndataset_path: d\noutput_dir: o\n{}: {value}\n", key.name);
            let found = match read(&text, &[]) {
                Ok(settings) => match crate::run::check(&settings.below(Path::new("/x"))) {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                },
                Err(error) => error,
            };
            assert!(!found.is_empty() && found.len() < 2000, "{text}{found}");
        }
    }
}
