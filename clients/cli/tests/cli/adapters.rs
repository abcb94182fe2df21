//! Adapters as scripts use them: beside a model, merged into it, prepared and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use bantam_model::checkpoint::Checkpoint;
use bantam_model::prepared::NOTE;
use bantam_model::source::Source;

use crate::{Folder, answer, bantam, golden, json, list, program, repository};

fn adapter(name: &str) -> String {
    repository(&format!("tests/goldens/lora/{name}"))
}

/// The last rows of the logits that `score` writes, and those of PEFT.
fn tails(model: &str, golden_of: &str, flags: &[&str]) -> (Vec<f32>, Vec<f32>) {
    let file = Checkpoint::open(Path::new(&adapter(golden_of)).join("golden.safetensors").as_path()).unwrap();
    let values = |file: &Checkpoint, name: &str| {
        let tensor = file.tensor(name).unwrap();
        let mut values = vec![0.0; tensor.elements()];
        tensor.read_f32(0, &mut values);
        values
    };
    let ids: Vec<String> = values(&file, "input_ids").iter().map(|id| id.to_string()).collect();
    let wanted = values(&file, "logits_tail");
    let folder = Folder::new();
    let (ids, out) = (ids.join(","), folder.path("logits.safetensors"));
    let score = ["score", model, "--ids", &ids, "--precision", "exact", "--logits", &out];
    answer(bantam(&[&score, flags].concat()));
    let mut found = values(&Checkpoint::open(Path::new(&out)).unwrap(), "logits");
    let found = found.split_off(found.len() - wanted.len());
    (found, wanted)
}

fn largest(found: &[f32], wanted: &[f32]) -> f32 {
    found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn verbs_take_an_adapter() {
    let (model, lora) = (golden("llama-tied"), adapter("lora-llama"));
    let (found, wanted) = tails(&model, "lora-llama", &["--adapter", &lora]);
    assert!(largest(&found, &wanted) < 1e-3);
    let run = |extra: &[&str]| {
        let run = ["run", &model, "--ids", "5,6,7", "--temperature", "0", "--ignore-eos", "--json"];
        json(&[&run[..], &["--max-new-tokens", "8"], extra].concat())["ids"].clone()
    };
    assert_ne!(run(&[]), run(&["--adapter", &lora]), "the adapter says something else");
    let plan = json(&["plan", &model, "--adapter", &lora, "--json"]);
    assert!(list(&plan["lines"]).iter().any(|line| line["name"] == "adapter"));
    let text = Folder::new();
    let file = text.write("text.txt", "Some words, and more of them. ".repeat(30));
    let eval = ["eval", "perplexity", &model, "--text-file", &file, "--context", "32", "--json"];
    let of = |extra: &[&str]| json(&[&eval, extra].concat())["perplexity"].as_f64().unwrap();
    assert_ne!(of(&[]), of(&["--adapter", &lora]));
}

#[test]
fn a_merge_tells_its_decisions_and_what_it_wrote() {
    let folder = Folder::new();
    let output = folder.path("merged");
    let (model, lora) = (golden("llama-tied"), adapter("lora-llama"));
    let merge = ["merge", &model, &lora, "--output", &output];
    let done = bantam(&merge);
    let told = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{told}");
    for word in ["not trained in four bits", "graphics card", "tensor by tensor", "taken", "needed", "free"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let (found, wanted) = tails(&output, "lora-llama", &[]);
    assert!(largest(&found, &wanted) < 0.5, "{}", largest(&found, &wanted));
    refused(&bantam(&merge), "--force");
    let object = json(&[&merge[..], &["--force", "--json", "--method", "streamed"]].concat());
    assert_eq!(object["trained_in_4bit"], false);
    assert!(object["changed"].as_u64().unwrap() == 21 && list(&object["decisions"]).len() == 3, "{object}");
    refused(&bantam(&["merge", &model, &lora, "--output", &model, "--force"]), "another folder");
}

#[track_caller]
fn refused(output: &Output, word: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains(word), "{told}");
}

#[test]
fn four_bits_are_found_and_overruled() {
    let folder = Folder::new();
    let (model, qlora) = (golden("llama-tied"), adapter("qlora-nf4-llama"));
    let merge = |name: &str, extra: &[&str]| {
        let output = folder.path(name);
        let merge = ["merge", &model, &qlora, "--output", &output, "--json"];
        (json(&[&merge[..], extra].concat()), tails(&output, "qlora-nf4-llama", &[]))
    };
    let (found, (logits, wanted)) = merge("auto", &[]);
    assert_eq!(found["trained_in_4bit"], true, "{found}");
    let near = largest(&logits, &wanted);
    let (overruled, (logits, wanted)) = merge("no", &["--trained-in-4bit", "no"]);
    assert_eq!(overruled["trained_in_4bit"], false, "{overruled}");
    let far = largest(&logits, &wanted);
    assert!(near < far / 3.0, "{near} where the weights were rounded first, {far} where not");
}

#[test]
fn a_prepared_model_is_made_once_shown_and_removed() {
    let cache = Folder::new();
    let run = |arguments: &[&str]| {
        let output = program(arguments).env("XDG_CACHE_HOME", &cache.0).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{told}");
        (String::from_utf8(output.stdout).unwrap(), told)
    };
    let (model, lora) = (golden("qwen2"), adapter("lora-patterns-qwen2"));
    let object = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let (path, told) = run(&["prepare", &model, &lora]);
    assert!(told.contains("taken"), "{told}");
    let path = path.trim();
    assert!(Source::open(Path::new(path)).is_ok());
    // The same content under another name is the same model.
    let copy = Folder::copy(&lora);
    for adapter in [&lora, &copy.path("")] {
        let again = object(&run(&["prepare", &model, adapter, "--json"]).0);
        assert_eq!(
            (again["path"].as_str(), again["steps"][0]["was_there"].as_bool()),
            (Some(path), Some(true))
        );
    }
    let forced = object(&run(&["prepare", &model, &lora, "--force", "--json"]).0);
    assert_eq!(forced["steps"][0]["was_there"], false);
    // Another setting makes another one.
    let other = run(&["prepare", &model, &lora, "--trained-in-4bit", "yes"]).0;
    assert_ne!(other.trim(), path);
    let listed = object(&run(&["cache", "ls", "--json"]).0);
    assert_eq!(list(&listed["prepared"]).len(), 2, "{listed}");
    assert!(run(&["cache", "ls"]).0.contains("qwen2_merged-"));
    assert_eq!(object(&run(&["cache", "du", "--json"]).0)["prepared"], 2);
    run(&["cache", "rm", Path::new(path).file_name().unwrap().to_str().unwrap()]);
    assert!(!Path::new(path).exists());
    run(&["cache", "rm", "--all"]);
    assert!(list(&object(&run(&["cache", "ls", "--json"]).0)["prepared"]).is_empty());
    refused(&program(&["prepare", &model]).output().unwrap(), "nothing to do");
}

/// Whenever it is killed, there is a whole model under the name, or nothing.
#[test]
fn a_killed_merge_leaves_nothing_under_its_name() {
    let folder = Folder::new();
    let output = folder.path("merged");
    for wait in 0..12 {
        let merge =
            ["merge", &golden("llama-untied"), &adapter("lora-embed-llama"), "--output", &output, "--force"];
        let mut child = program(&merge).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait * 3));
        let _ = child.kill();
        child.wait().unwrap();
        if Path::new(&output).exists() {
            Source::open(Path::new(&output)).unwrap();
            let merged = Checkpoint::open(Path::new(&output)).unwrap();
            assert!(merged.tensor("model.embed_tokens.weight").is_some());
        }
    }
    answer_of_last(&folder, &output);
}

/// Every file below a folder; of notes, nothing that tells the time.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            if path.ends_with(NOTE) {
                let mut note: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                note["made"] = 0.into();
                bytes = note.to_string().into_bytes();
            }
            all.insert(path.strip_prefix(folder).unwrap().display().to_string(), bytes);
        }
    }
    all
}

/// Kills preparations at random moments of what one takes until `BANTAM_KILLS` of them are dead; each is taken up again
/// until one comes through. What stands under its name is whole, and in the end nothing else is there.
fn check_killed(model: &str, more: &[&str]) {
    let kills = std::env::var("BANTAM_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let cache = Folder::new();
    let prepared = cache.0.join("bantam/prepared");
    let start = || {
        let mut command = program(&[&["prepare", model][..], more].concat());
        command.env("XDG_CACHE_HOME", &cache.0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let began = Instant::now();
    assert!(start().wait().unwrap().success());
    let (wanted, mut whole_run) = (tree(&prepared), began.elapsed().as_micros() as u64);
    let names = |all: &BTreeMap<String, Vec<u8>>| -> BTreeSet<String> {
        all.keys().filter_map(|path| Some(path.split_once('/')?.0.to_owned())).collect()
    };
    fs::remove_dir_all(&prepared).unwrap();
    let (mut killed, mut runs, mut state) = (0, 0, 7u64);
    while killed < kills {
        // As of a run that was killed while it wrote sums: too short a moment to be met on every machine.
        fs::create_dir(&prepared).unwrap();
        fs::write(prepared.join(".sums.json.1.0.tmp"), "{").unwrap();
        loop {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (mut child, began) = (start(), Instant::now());
            let wait = Duration::from_micros((state >> 33) % (whole_run + whole_run / 4));
            while began.elapsed() < wait && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(500));
            }
            let took = began.elapsed().as_micros() as u64;
            let _ = child.kill();
            let ended = child.wait_with_output().unwrap();
            let (status, words) = (ended.status, String::from_utf8_lossy(&ended.stderr));
            assert!(status.success() || status.code().is_none(), "run {runs}: {words}");
            let found = tree(&prepared);
            for name in names(&wanted) {
                let of = |all: &BTreeMap<String, Vec<u8>>| -> Vec<(String, Vec<u8>)> {
                    let below = format!("{name}/");
                    all.clone().into_iter().filter(|(path, _)| path.starts_with(&below)).collect()
                };
                let found = of(&found);
                assert!(found.is_empty() || found == of(&wanted), "run {runs}: {name} is not whole");
            }
            if status.success() {
                let of = |all: &BTreeMap<String, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
                assert_eq!(of(&found), of(&wanted), "run {runs}: something is left");
                assert!(found == wanted, "run {runs}: other bytes");
                whole_run = took.max(1000);
                break;
            }
            killed += 1;
            // Going on may take longer than a run that nobody disturbed: it gets there in the end.
            whole_run += whole_run / 8;
        }
        fs::remove_dir_all(&prepared).unwrap();
        runs += 1;
    }
    println!("{model}: {killed} killed, {runs} came through");
}

#[test]
fn a_killed_preparation_leaves_whole_models_or_none() {
    check_killed(&golden("llama-tied"), &[&adapter("lora-llama"), "--to", "nf4"]);
}

#[test]
fn a_killed_preparation_from_a_gguf_file_leaves_whole_models_or_none() {
    let model = repository("tests/goldens/quant/gguf-llama/model-Q8_0.gguf");
    check_killed(&model, &[&adapter("lora-llama"), "--to", "ternary"]);
}

/// What does not go together is refused before a model is written out.
#[test]
fn nothing_is_written_out_for_what_is_refused() {
    let (folder, text) = (Folder::new(), Folder::new());
    let model = repository("tests/goldens/quant/gguf-llama/model-Q8_0.gguf");
    let short = text.write("short.txt", "Three words here");
    let output = folder.path("made");
    for (arguments, word) in [
        (&["--to", "mxfp4"][..], "stacked experts"),
        (&["--to", "nf4", "--ram", "1MiB"], "expected at least"),
        (&["--to", "awq", "--method", "nearest", "--group-size", "48"], "divides"),
        (&["--to", "gptq", "--calibration", &short], "at least one sequence"),
        (&["--to", "ternary", "--method", "ptbitnet", "--mean-removal"], "biases"),
        (&["--to", "nf4", "--evaluate", &short], "at least one window"),
    ] {
        refused(&bantam(&[&["quantize", &model, "--output", &output][..], arguments].concat()), word);
    }
    let wrong = adapter("lora-gpt_neox");
    refused(&bantam(&["merge", &model, &wrong, "--output", &output]), "gpt_neox.layers");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0, "nothing was begun");
    let cache = Folder::new();
    let prepare = |arguments: &[&str]| {
        let arguments = [&["prepare", &model][..], arguments].concat();
        program(&arguments).env("XDG_CACHE_HOME", &cache.0).output().unwrap()
    };
    refused(&prepare(&[&adapter("lora-llama"), "--to", "mxfp4"]), "stacked experts");
    refused(&prepare(&[&wrong]), "gpt_neox.layers");
    let weights = tree(&cache.0).into_keys().filter(|path| path.ends_with(".safetensors"));
    assert_eq!(weights.count(), 0, "nothing was made");
}

/// The next run removes what killed ones have left.
fn answer_of_last(folder: &Folder, output: &str) {
    let merge =
        ["merge", &golden("llama-untied"), &adapter("lora-embed-llama"), "--output", output, "--force"];
    json(&[&merge[..], &["--json"]].concat());
    let left: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.len() == 1 || cfg!(not(target_os = "linux")), "{left:?}");
}

#[test]
fn settings_are_recommended() {
    let model = golden("qwen2");
    let found = json(&["doctor", &model, "--recommend", "--json"]);
    assert_eq!(list(&found["models"]).len(), 1);
    assert!(found["models"][0]["flags"].as_str().unwrap().contains("--context"), "{found}");
    let shapes = answer(bantam(&["doctor", "--recommend"]));
    assert!(shapes.contains("llama-7b") && shapes.contains("Memory that is free"), "{shapes}");
}
