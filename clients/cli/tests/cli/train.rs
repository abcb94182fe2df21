//! `bantam train`: what a file says to train, what is wrong with it, and what becomes of a run that is ended or killed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Folder, answer, bantam, golden, json, list, program, repository};

#[test]
fn a_dry_run_shows_examples_and_trains_nothing() {
    let (folder, model) = (Folder::new(), golden("llama-tied"));
    let data = repository("tests/goldens/train-data");
    let yaml = format!("model_name_or_path: {model}\nstage: sft\ndataset: plain\ndataset_dir: {data}\n");
    let file = folder.write("sft.yaml", yaml + "template: llama3\nlearning_rate: 1.0e-4\n");
    let file = file.as_str();
    let shown = json(&["train", file, "learning_rate=1e-5", "--dry-run", "--json", "--examples", "1"]);
    assert_eq!((&shown["data"][0]["kept"], &shown["train"]["examples"]), (&2.into(), &2.into()));
    let example = &shown["examples"][0];
    assert_eq!(list(&example["input_ids"]).len(), list(&example["labels"]).len());
    assert!(example["text"].as_str().unwrap().contains("Say \"hi\", twice"), "{example}");
    for (more, words) in [
        (&["lora_rnk=3", "--dry-run"][..], "did you mean lora_rank?"),
        (&["cutoff_len=none", "--dry-run"], "expected a whole number"),
        (&["dataset=x", "--dry-run"], "expected a name in dataset_info.json"),
        (&[], "expected output_dir"),
    ] {
        let output = bantam(&[&["train", file][..], more].concat());
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && message.contains(words), "{message}");
    }
}

/// Settings that train an adapter over rows of ids.
fn settings(folder: &Folder) -> String {
    let row = |row: usize| {
        let ids: Vec<usize> = (0..24).map(|at| 5 + (row * 31 + at * 7) % 90).collect();
        format!("{{\"input_ids\": {ids:?}}}\n")
    };
    let rows = folder.write("rows.jsonl", (0..8).map(row).collect::<String>());
    let model = golden("llama-tied");
    let yaml = format!(
        "model_name_or_path: {model}\ndataset_path: {rows}\ndataset_type: tokenized\nlearning_rate: 0.01\n\
         per_device_train_batch_size: 1\ngradient_accumulation_steps: 2\nsave_steps: 1\nlogging_steps: 1\n\
         lr_scheduler_type: constant\nplot_loss: true\nbf16: true\nreport_to: none\n"
    );
    folder.write("train.yaml", yaml)
}

/// Waits for a file that a run writes.
fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn memory_is_told_beforehand_and_held_to() {
    let folder = Folder::new();
    let (file, output) = (settings(&folder), format!("output_dir={}", folder.path("out")));
    let arguments = ["train", &file, &output, "--dry-run", "--json"];
    let shown = json(&[&arguments[..], &["--simulate-vram", "1GiB"]].concat());
    let (memory, card) = (&shown["memory"], &shown["memory"]["card"]);
    let parts = memory["parts"].as_object().unwrap();
    let all: u64 = parts.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!((&memory["bytes"], &memory["tokens"]), (&all.into(), &24.into()), "{memory}");
    assert_eq!((&card["fits"], &card["is_plan_only"]), (&true.into(), &true.into()), "{card}");
    let share = &card["share"];
    let there: u64 = share["parts"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(
        (&share["bytes"], &share["standing_bytes"]),
        (&there.into(), &share["frozen_bytes"]),
        "{card}"
    );
    assert_eq!(share["parts"]["weights that pass"], 0, "{card}");
    // Nothing was made, and less is refused with the same numbers.
    assert!(!Path::new(&folder.path("out")).exists());
    let refused = bantam(&[&arguments[..], &["--ram", "100000"]].concat());
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && message.contains("0.10 MB"), "{message}");
    let text = answer(bantam(&["train", &file, &output, "--dry-run"]));
    assert!(text.contains("inputs of layers") && text.contains("largest batch 24 tokens"), "{text}");
}

#[test]
fn an_adapter_is_trained_and_used() {
    let folder = Folder::new();
    let (file, output) = (settings(&folder), folder.path("out"));
    let to = format!("output_dir={output}");
    let run = bantam(&["train", &file, &to, "max_steps=4", "--json"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((&found["steps"], &found["done"]), (&4.into(), &true.into()));
    for name in ["adapter_config.json", "trainer_log.jsonl", "train_results.json", "training_loss.png"] {
        assert!(Path::new(&output).join(name).exists(), "{name}");
    }
    let model = golden("llama-tied");
    let score = |name: &str, more: &[&str]| {
        let out = folder.path(name);
        answer(bantam(&[&["score", &model, "--ids", "5,12,19,26,33", "--logits", &out][..], more].concat()));
        fs::read(out).unwrap()
    };
    assert!(score("base", &[]) != score("trained", &["--adapter", &output]));
}

#[test]
fn a_killed_run_goes_on_with_the_same_bits() {
    let folder = Folder::new();
    let file = settings(&folder);
    let train =
        |to: &str| program(&["train", &file, &format!("output_dir={}", folder.path(to)), "max_steps=6"]);
    assert!(train("whole").output().unwrap().status.success());
    let weights = |to: &str| fs::read(Path::new(&folder.path(to)).join("adapter_model.safetensors")).unwrap();
    for step in [1, 3, 5] {
        let to = format!("killed-{step}");
        let mut run = train(&to).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for(&Path::new(&folder.path(&to)).join(format!("checkpoint-{step}")));
        run.kill().unwrap();
        run.wait().unwrap();
        let output = train(&to).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(weights("whole") == weights(&to), "killed after step {step}");
    }
}

/// Kills runs at random moments of what one takes, until `BANTAM_KILLS` of them are dead; each is taken up again until
/// one comes through.
#[test]
fn runs_killed_at_any_moment_end_with_the_same_bits() {
    let folder = Folder::new();
    let file = settings(&folder);
    let kills = std::env::var("BANTAM_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let start = |to: &str| {
        let to = format!("output_dir={}", folder.path(to));
        let more = [
            "max_steps=6",
            "val_size=2",
            "eval_strategy=steps",
            "eval_steps=2",
            "load_best_model_at_end=true",
        ];
        let mut command =
            program(&[&["train", &file, &to, "save_steps=2", "save_total_limit=1"][..], &more].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let of = |to: &str, name: &str| fs::read(Path::new(&folder.path(to)).join(name)).unwrap();
    let losses = |to: &str| {
        let log = String::from_utf8(of(to, "trainer_log.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| (line["loss"].to_string(), line["eval_loss"].to_string())).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    assert!(start("whole").wait().unwrap().success());
    let whole_run = begun.elapsed().as_micros() as u64;
    let (mut killed, mut runs, mut state) = (0, 0, 1u64);
    while killed < kills {
        let to = format!("run-{runs}");
        loop {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut run = start(&to);
            std::thread::sleep(Duration::from_micros((state >> 33) % (whole_run + whole_run / 4)));
            let _ = run.kill();
            if run.wait().unwrap().success() {
                break;
            }
            killed += 1;
        }
        let weights = "adapter_model.safetensors";
        assert!(of("whole", weights) == of(&to, weights), "run {runs}");
        assert_eq!(losses("whole"), losses(&to), "run {runs}");
        let names = fs::read_dir(folder.path(&to)).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_str().unwrap().contains(".tmp")).collect();
        assert!(left.is_empty(), "run {runs}: {left:?}");
        fs::remove_dir_all(folder.path(&to)).unwrap();
        runs += 1;
    }
    println!("{killed} killed, {runs} came through");
}

/// Files of a folder with what they hold.
#[cfg(unix)]
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let folder = Folder::new();
    let (file, output) = (settings(&folder), folder.path("out"));
    let (to, out) = (format!("output_dir={output}"), Path::new(&output).to_owned());
    let arguments = ["train", &file, &to, "save_steps=1"];
    let train = |limit: &str, steps: &str| {
        let mut shell = Command::new("sh");
        let begin = ["-c", &format!("ulimit -f {limit} && exec \"$@\""), "sh", env!("CARGO_BIN_EXE_bantam")];
        let like = program(&[]);
        for (name, value) in like.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            shell.env(name, value);
        }
        shell.args(begin).args(arguments).arg(format!("max_steps={steps}")).output().unwrap()
    };
    assert!(train("unlimited", "2").status.success());
    let kept = files(&out.join("checkpoint-2"));
    // 512 bytes for a file: none of the weights fits.
    let full = train("1", "4");
    let said = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(said.contains("check space and permissions"), "{said}");
    assert!(files(&out.join("checkpoint-2")) == kept);
    let names = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let half: Vec<String> = names
        .filter(|name| name.contains("tmp") || name.contains("partial") || name.contains("-3"))
        .collect();
    assert!(half.is_empty(), "{half:?}");
    let log = fs::read_to_string(out.join("trainer_log.jsonl")).unwrap();
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{log}");
    assert!(train("unlimited", "4").status.success());
    let whole = bantam(&["train", &file, &format!("output_dir={}", folder.path("whole")), "max_steps=4"]);
    assert!(whole.status.success());
    let weights = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(weights(&out) == weights(Path::new(&folder.path("whole"))));
    // Where no folder can be.
    let nowhere = bantam(&["train", &file, &format!("output_dir={file}/out"), "max_steps=1"]);
    let said = String::from_utf8_lossy(&nowhere.stderr);
    assert!(nowhere.status.code() == Some(1) && said.contains("train.yaml/out"), "{said}");
}

#[cfg(unix)]
#[test]
fn signals_save_and_end() {
    use std::os::unix::process::ExitStatusExt;
    let folder = Folder::new();
    let file = settings(&folder);
    for (name, signal) in [("INT", 2), ("TERM", 15)] {
        let output = folder.path(name);
        let arguments =
            ["train", &file, &format!("output_dir={output}"), "max_steps=100000", "save_strategy=no"];
        let run = program(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        wait_for(&Path::new(&output).join("trainer_log.jsonl"));
        let id = run.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
        let run = run.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned();
        // As if the signal had ended it, so that a shell sees 130 or 143.
        assert_eq!(run.status.signal(), Some(signal), "{said}");
        let checkpoint = said.trim().rsplit_once("resume_from_checkpoint=").expect(&said).1;
        assert!(Path::new(checkpoint).join("optimizer.safetensors").exists(), "{said}");
    }
}
