//! Runs that go on from checkpoints, their own and no other.

use std::fs::{self, File};

use bantam_tests::repository;

use crate::scratch::{LORA, Scratch};

#[test]
fn a_run_goes_on_from_its_own_last_checkpoint() {
    let scratch = Scratch::new("again");
    let yaml = |more: &str| format!("{LORA}save_steps: 1\noverwrite_output_dir: true\n{more}");
    scratch.train("llama-tied", "out", &yaml("max_steps: 4\n"), None).unwrap();
    scratch.train("llama-tied", "out", &yaml("max_steps: 3\n"), Some(2)).unwrap();
    let again = yaml("max_steps: 3\nresume_from_checkpoint: true\n");
    let run = scratch.train("llama-tied", "out", &again, None).unwrap();
    assert_eq!(run.seen.losses.len(), 1, "one step was left: {:?}", run.seen.losses);
}

/// One that ended with an error before its first checkpoint is still the run that the folder belongs to.
#[test]
fn a_run_without_a_checkpoint_takes_none_of_an_earlier_one() {
    let scratch = Scratch::new("earlier");
    let train = |more: &str| scratch.train("llama-tied", "out", &format!("max_steps: 4\n{more}"), None);
    let refused = |more: &str| train(more).unwrap_err().to_string();
    let found = refused("resume_from_checkpoint: true\n");
    assert!(found.contains("found none; leave resume_from_checkpoint out"), "{found}");
    train("save_steps: 2\n").unwrap();
    let found = refused("learning_rate: 1e30\nsave_steps: 9\noverwrite_output_dir: true\n");
    assert!(found.contains("expected a loss") || found.contains("expected gradients"), "{found}");
    let found = refused("overwrite_output_dir: true\nresume_from_checkpoint: true\n");
    assert!(found.contains("only those of an earlier run"), "{found}");
    assert!(refused("").contains("overwrite_output_dir"));
    // Whoever names one means it.
    let named = scratch.0.join("out/checkpoint-2");
    let run = train(&format!("resume_from_checkpoint: {}\n", named.display())).unwrap();
    assert_eq!((run.seen.losses.len(), run.outcome.steps, run.outcome.taken), (2, 4, 2));
    let run = train("").unwrap();
    assert!(
        run.outcome.taken == 0 && run.outcome.to_string().contains("nothing was left"),
        "{}",
        run.outcome
    );
}

#[test]
fn a_checkpoint_of_other_settings_is_taken_by_its_name_alone() {
    let scratch = Scratch::new("other");
    let usual = format!("{LORA}lr_scheduler_type: constant\n");
    scratch.train("llama-tied", "out", &usual, Some(3)).unwrap();
    let checkpoint = scratch.0.join("out/checkpoint-3");
    let named = format!("resume_from_checkpoint: {}\n", checkpoint.display());
    let train = |model: &str, change: &str| {
        let key = |line: &str| line.split_once(':').unwrap().0.to_owned();
        let kept = usual.lines().filter(|line| !change.lines().any(|other| key(other) == key(line)));
        let yaml: String = kept.chain(change.lines()).map(|line| format!("{line}\n")).collect();
        scratch.train(model, "out", &yaml, Some(1))
    };
    for (change, words) in [
        ("learning_rate: 0.02\n", "learning_rate: 0.01 (here 0.02)"),
        ("seed: 7\n", "seed: 42 (here 7)"),
        ("per_device_train_batch_size: 1\n", "per_device_train_batch_size: 2 (here 1)"),
        ("max_samples: 4\n", "other examples"),
    ] {
        let found = train("llama-tied", change).unwrap_err().to_string();
        assert!(found.contains(words) && found.contains("checkpoint-3"), "{change}: {found}");
        let run = scratch.train("llama-tied", "copy", &format!("{usual}{named}"), Some(1)).unwrap();
        assert!(!run.seen.notes.iter().any(|note| note.contains("trained with")), "{:?}", run.seen.notes);
        let run =
            train("llama-tied", &format!("{change}{named}output_dir: {}/{}\n", scratch.0.display(), "named"));
        let notes = run.unwrap().seen.notes;
        assert!(notes.iter().any(|note| note.contains(words)), "{change}: {notes:?}");
    }
    for (model, change, words) in [
        ("llama-tied", "lora_rank: 2\n", "lora_rank: 4 (here 2)"),
        ("llama-tied", "lora_alpha: 64\n", "lora_alpha: 8 (here 64)"),
        ("llama-tied", "optim: sgd\n", "optim: adamw_torch (here sgd)"),
        ("qwen2", "", "another model"),
    ] {
        for named in ["", &named] {
            let found = train(model, &format!("{change}{named}")).unwrap_err().to_string();
            assert!(found.contains(words) && found.contains("checkpoint-3"), "{change}: {found}");
        }
    }
    // Another length, another way to show it: the same run.
    let notes = train("llama-tied", "max_steps: 6\nsave_steps: 1\nlogging_steps: 1\n").unwrap().seen.notes;
    assert!(notes.iter().any(|note| note.contains("max_steps: -1 (here 6)")), "{notes:?}");
}

/// What is spelled otherwise, or says nothing in such a run, makes no other run of it.
#[test]
fn the_same_run_in_other_words_goes_on() {
    let scratch = Scratch::new("words");
    let usual = format!("{LORA}lr_scheduler_type: cosine_with_min_lr\n");
    let bends = "lr_scheduler_kwargs: {min_lr_rate: 0.5, num_cycles: 0.5}\n";
    scratch.train("llama-tied", "out", &format!("{usual}{bends}"), Some(1)).unwrap();
    for (number, (change, bends)) in (2..).zip([
        ("lora_alpha: 8\n", bends),
        ("optim: adamw_torch_fused\ndata_seed: 42\n", bends),
        ("", "lr_scheduler_kwargs: {num_cycles: 0.5, min_lr_rate: 0.5}\n"),
        ("freeze_trainable_layers: 5\nmuon_variant: keller-jordan\nhead_lr_ratio: 3\n", bends),
        ("quantization_type: fp4\npissa_convert: true\ncutoff_len: 99\n", bends),
    ]) {
        let run = scratch.train("llama-tied", "out", &format!("{usual}{bends}{change}"), Some(1)).unwrap();
        assert_eq!((run.outcome.steps, run.outcome.taken), (number, 1), "{change}{bends}");
    }
}

#[test]
fn a_branch_of_a_run_is_gone_on_with_by_itself() {
    let scratch = Scratch::new("branch");
    let yaml = |steps: u64, more: &str| format!("{LORA}save_steps: 2\nmax_steps: {steps}\n{more}");
    scratch.train("llama-tied", "out", &yaml(6, ""), None).unwrap();
    let named = format!("resume_from_checkpoint: {}\n", scratch.0.join("out/checkpoint-2").display());
    let branch = scratch.train("llama-tied", "out", &yaml(12, &named), Some(3)).unwrap();
    assert_eq!((branch.outcome.steps, branch.outcome.taken), (5, 3));
    let run =
        scratch.train("llama-tied", "out", &yaml(12, "resume_from_checkpoint: true\n"), Some(1)).unwrap();
    assert_eq!((run.outcome.steps, run.outcome.taken), (6, 1));
}

#[test]
fn what_a_pissa_began_with_goes_with_its_checkpoints() {
    let scratch = Scratch::new("pissa-again");
    let weights = "adapter_model.safetensors";
    let yaml = |more: &str| {
        format!("learning_rate: 0.01\nlora_rank: 2\npissa_init: true\npissa_iter: -1\nmax_steps: 4\n{more}")
    };
    let whole = scratch.train("llama-tied", "whole", &yaml("save_steps: 2\n"), None).unwrap();
    let checkpoint = scratch.0.join("whole/checkpoint-2");
    let named = format!("save_steps: 1\nresume_from_checkpoint: {}\n", checkpoint.display());
    // Elsewhere, ended, and gone on with by itself; then at home, where another run has been.
    scratch.train("llama-tied", "elsewhere", &yaml(&named), Some(1)).unwrap();
    let elsewhere =
        scratch.train("llama-tied", "elsewhere", &yaml("resume_from_checkpoint: true\n"), None).unwrap();
    assert!(whole.bytes(weights) == elsewhere.bytes(weights) && elsewhere.output.join("pissa_init").is_dir());
    let damaged = scratch.0.join("elsewhere/checkpoint-4/pissa_init").join(weights);
    fs::write(&damaged, "nothing").unwrap();
    let found = scratch.train("llama-tied", "elsewhere", &yaml(""), None).unwrap_err().to_string();
    assert!(found.contains("expected a whole checkpoint") && !found.contains("download"), "{found}");
    assert_ne!(elsewhere.bytes("pissa_init/adapter_model.safetensors"), b"nothing");
    let expected = whole.bytes(weights);
    let other = "overwrite_output_dir: true\nlora_alpha: 40\n";
    scratch.train("llama-tied", "whole", &yaml(other), Some(1)).unwrap();
    let home = scratch.train("llama-tied", "whole", &yaml(&named), None).unwrap();
    assert!(home.bytes(weights) == expected);
    assert_eq!(home.json("adapter_config.json")["lora_alpha"], 4);
}

#[test]
fn what_a_killed_run_began_with_is_in_the_way_of_none() {
    let scratch = Scratch::new("begun");
    let adapter = repository("tests/goldens/lora/lora-llama");
    let yaml = format!(
        "{LORA}max_steps: 1\nadapter_name_or_path: {}\ncreate_new_adapter: true\n",
        adapter.display()
    );
    for left in [".base/0/generation_config.json", ".start/adapter_config.json"] {
        let path = scratch.0.join("out").join(left);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{").unwrap();
    }
    let run = scratch.train("llama-tied", "out", &yaml, None).unwrap_or_else(|error| panic!("{error}"));
    assert!(run.checkpoints().iter().all(|name| !name.starts_with('.')), "{:?}", run.checkpoints());
}

/// As when the checkpoint that was named turns out to be damaged.
#[test]
fn a_run_that_does_not_come_to_begin_leaves_the_folder_to_the_last() {
    let scratch = Scratch::new("owner");
    scratch.train("llama-tied", "out", LORA, Some(2)).unwrap();
    scratch.train("llama-tied", "other", LORA, Some(1)).unwrap();
    let other = scratch.0.join("other/checkpoint-1");
    fs::write(other.join("adapter_model.safetensors"), "nothing").unwrap();
    let named = format!("{LORA}resume_from_checkpoint: {}\n", other.display());
    scratch.train("llama-tied", "out", &named, None).unwrap_err();
    assert_eq!(scratch.train("llama-tied", "out", LORA, Some(1)).unwrap().outcome.steps, 3);
}

#[test]
fn a_folder_has_one_run_at_a_time() {
    let scratch = Scratch::new("busy");
    let train =
        || scratch.train("llama-tied", "out", &format!("{LORA}overwrite_output_dir: true\n"), Some(1));
    train().unwrap();
    let held = File::open(scratch.0.join("out/bantam_run.json")).unwrap();
    held.lock().unwrap();
    let found = train().unwrap_err().to_string();
    assert!(found.contains("nobody else to train there"), "{found}");
    drop(held);
    train().unwrap();
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let scratch = Scratch::new("damaged");
    let train = |end| scratch.train("llama-tied", "out", LORA, end);
    train(Some(2)).unwrap();
    for name in ["adapter_model.safetensors", "optimizer.safetensors"] {
        let path = scratch.0.join("out/checkpoint-2").join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let found = train(None).unwrap_err().to_string();
        assert!(found.contains("checkpoint-2: expected a whole checkpoint, found a damaged one"), "{found}");
        assert!(!found.contains("download"), "{found}");
        fs::write(&path, bytes).unwrap();
    }
    train(None).unwrap();
}

/// As with PEFT, whose `PeftModel.from_pretrained` reads all of it from the adapter.
#[test]
fn an_adapter_that_is_trained_on_stays_what_it_is() {
    let scratch = Scratch::new("continued");
    let adapter = scratch.0.join("adapter");
    fs::create_dir_all(&adapter).unwrap();
    let folder = repository("tests/goldens/lora/lora-llama");
    let config = fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let weights = "adapter_model.safetensors";
    fs::copy(folder.join(weights), adapter.join(weights)).unwrap();
    let first = |dropout: f64, more: &str| {
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["lora_dropout"] = dropout.into();
        fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
        let yaml = format!("overwrite_output_dir: true\nadapter_name_or_path: {}\n{more}", adapter.display());
        let seen = scratch.train("llama-tied", "out", &yaml, Some(1)).unwrap().seen;
        (seen.losses[0], seen.notes)
    };
    let [plain, dropped] = [first(0.0, ""), first(0.5, "")];
    assert!(plain.0 != dropped.0, "{} {}", plain.0, dropped.0);
    let (loss, notes) = first(0.0, "lora_rank: 3\nlora_dropout: 0.5\nuse_dora: false\n");
    assert_eq!(loss, plain.0);
    let told: Vec<&String> = notes.iter().filter(|note| note.contains("changes nothing")).collect();
    assert!(told.len() == 2 && told[0].contains("lora_rank: 3"), "{notes:?}");
}
