//! `bantam quantize`: what it prints, what it refuses, and that being killed changes nothing of the result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{answer, bantam, golden, program, repository};

/// A folder for one test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("quantize-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Every file of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect()
}

fn refusal(arguments: &[&str], status: i32, words: &[&str]) {
    let output = bantam(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn a_report_says_what_was_lost() {
    let folder = folder("report");
    let output = folder.join("made");
    let (model, output) = (golden("llama-tied"), output.to_str().unwrap());
    let text = folder.join("text.txt");
    std::fs::write(&text, "A small text that is read in windows. ".repeat(20)).unwrap();
    let text = text.to_str().unwrap();
    let measured = ["--evaluate", text, "--context", "32", "--precision", "exact"];
    let lines = answer(bantam(
        &[&["quantize", &model, "--to", "nf4", "--output", output, "--json"][..], &measured].concat(),
    ));
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let report = events.last().unwrap();
    assert_eq!(report["event"], "report");
    assert_eq!(events.len() as u64 - 1, report["quantized"]["matrices"].as_u64().unwrap());
    let bits = report["quantized"]["bits_per_weight"].as_f64().unwrap();
    assert!(bits > 4.1 && bits < 7.0, "{bits}: tables beside small matrices count");
    let evaluation = &report["evaluation"];
    let number = |key: &str| evaluation[key].as_f64().unwrap();
    assert!(number("perplexity_ratio") > 0.5 && number("perplexity_ratio") < 2.0, "{evaluation}");
    assert!(number("kl_divergence") > 0.0 && number("top1_agreement") > 0.05, "{evaluation}");
    let written = std::fs::read(Path::new(output).join("bantam_report.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written["evaluation"], *evaluation);
    assert_eq!(written["seconds"], Value::Null, "the file is the same in every run");
    let told: Value = serde_json::from_str(&answer(bantam(&["inspect", output, "--json"]))).unwrap();
    assert!(told["bits_per_weight"].as_f64().unwrap() < 16.0);
    let tokens = answer(bantam(&["run", output, "Once", "--max-new-tokens", "3", "--ignore-eos"]));
    assert!(!tokens.is_empty());
}

#[test]
fn without_a_text_the_model_writes_one_and_a_head_is_told_apart() {
    let folder = folder("written");
    let output = folder.join("made");
    let (model, output) = (golden("llama-tied"), output.to_str().unwrap());
    let form = ["--to", "ternary", "--head", "int8", "--output", output];
    let lines = answer(bantam(
        &[&["quantize", &model][..], &form, &["--json", "--context", "16", "--evaluate"]].concat(),
    ));
    let report: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    let evaluation = &report["evaluation"];
    assert_eq!(evaluation["text"], "written by the model");
    assert_eq!(evaluation["tokens"], 32 * 15, "windows of 16, of which the first token is given");
    assert!(evaluation["kl_divergence"].as_f64().unwrap() > 0.0, "{evaluation}");
    let head = report["head"]["bits_per_weight"].as_f64().unwrap();
    assert!((8.0..8.6).contains(&head), "{head}");
    let config = std::fs::read(Path::new(output).join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    answer(bantam(&["run", output, "Once", "--max-new-tokens", "2", "--ignore-eos"]));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = folder("refused");
    let output = folder.join("made");
    let (model, output) = (golden("llama-tied"), output.to_str().unwrap());
    let with = |more: &[&str], status, words: &[&str]| {
        refusal(&[&["quantize", &model, "--output", output][..], more].concat(), status, words);
    };
    with(&["--to", "nf5"], 2, &["nf5", "ternary"]);
    with(&["--to", "nf4", "--bits", "4"], 2, &["--bits", "gptq or hqq", "leave it out"]);
    with(&["--to", "gptq", "--bits", "5"], 2, &["--bits", "5"]);
    with(&["--to", "ternary", "--group-size", "32"], 2, &["multiple of 64"]);
    with(&["--to", "gptq", "--method", "ptbitnet"], 2, &["--method", "nearest", "ptbitnet"]);
    with(&["--to", "ternary", "--bits", "2.2"], 2, &["--bits", "ptbitnet"]);
    for bits in ["nan", "9", "1"] {
        with(
            &["--to", "ternary", "--method", "ptbitnet", "--bits", bits],
            2,
            &["--bits", "3.5", "--planes 2"],
        );
    }
    let both = ["--to", "ternary", "--method", "ptbitnet", "--planes", "2", "--bits", "2.2"];
    with(&both, 2, &["--planes", "without --bits"]);
    with(&["--to", "nf4", "--evaluate", "--context", "100000"], 2, &["--context", "at most", "100000"]);
    with(&["--to", "awq", "--calibration-length", "60000"], 2, &["--calibration-length", "at most"]);
    with(&["--to", "awq", "--damp", "0.1"], 2, &["--damp", "leave it out"]);
    with(&["--to", "nf4", "--damp", "0.1"], 2, &["calibrated"]);
    with(&["--to", "nf4", "--ram", "1MiB"], 1, &["--ram", "expected at least"]);
    with(&["--to", "ternary", "--equalise"], 2, &["--equalise", "ptbitnet", "leave it out"]);
    with(&["--to", "ternary", "--scales", "row-column"], 2, &["row-column", "ptbitnet"]);
    with(
        &["--to", "ternary", "--scales", "row", "--group-size", "64"],
        2,
        &["--group-size", "leave one out"],
    );
    let means = ["--to", "ternary", "--method", "ptbitnet", "--mean-removal"];
    with(&means, 2, &["--mean-removal", "biases", "none"]);
    with(&["--to", "nf4", "--zero-point", "no"], 2, &["--zero-point", "awq"]);
    let nearest = ["--to", "awq", "--group-size", "64", "--method", "nearest", "--clip-search", "no"];
    with(&nearest, 2, &["--clip-search", "calibrated"]);
    with(&["--to", "nf4", "--head", "int8"], 2, &["--head", "ternary", "leave it out"]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing was begun");
}

#[test]
fn calibrated_methods_write_what_is_read() {
    let folder = folder("calibrated");
    let model = golden("llama-tied");
    let few = ["--calibration-sequences", "4", "--calibration-length", "32", "--json"];
    for (number, more) in [
        &["--to", "gptq", "--group-size", "32", "--act-order"][..],
        &["--to", "awq", "--group-size", "64"],
        &[
            "--to",
            "awq",
            "--group-size",
            "64",
            "--zero-point",
            "no",
            "--clip-search",
            "no",
            "--scale-search",
            "no",
        ],
        &["--to", "ternary", "--method", "ptbitnet", "--bits", "2.4", "--scales", "row-column", "--equalise"],
        &["--to", "ternary", "--method", "ptbitnet", "--bits", "2.4"],
    ]
    .into_iter()
    .enumerate()
    {
        let output = folder.join(number.to_string());
        let output = output.to_str().unwrap();
        let made = [&["quantize", &model, "--output", output][..], more, &few].concat();
        let lines = answer(bantam(&made));
        let report: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        let error = report["quantized"]["relative_squared_error"].as_f64().unwrap();
        let (method, calibration) = (&report["method"], &report["method"]["calibration"]);
        assert!(["gptq", "awq", "ptbitnet"].contains(&method["name"].as_str().unwrap()), "{method}");
        assert_eq!([&calibration["sequences"], &calibration["length"]], [4, 32]);
        assert_eq!(calibration["tokens_xxh3"].as_str().unwrap().len(), 16);
        assert_eq!(method["bits_asked"].as_f64(), (method["name"] == "ptbitnet").then_some(2.4));
        let config = std::fs::read(Path::new(output).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["bantam_report"]["method"], *method);
        assert_eq!(config["bantam_report"]["settings"], report["settings"]);
        // Of AWQ, whose scales are in the weights, that of the weights without them; without a zero of their own,
        // fifteen codes span what sixteen would.
        let most = match (more.contains(&"awq"), more.contains(&"no")) {
            (true, false) => 0.03,
            (true, true) => 0.05,
            _ => 2.0,
        };
        assert!(error > 0.0 && error < most, "{more:?}: {error}");
        answer(bantam(&["run", output, "Once", "--max-new-tokens", "2", "--ignore-eos"]));
    }
}

#[test]
fn a_gguf_file_is_a_model_like_any_other() {
    let folder = folder("gguf");
    let output = folder.join("made");
    let output = output.to_str().unwrap();
    let model = repository("tests/goldens/quant-made/gguf-families/model-gpt_oss.gguf");
    answer(bantam(&["quantize", &model, "--to", "mxfp4", "--json", "--output", output]));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "what was written out is gone");
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        assert!(Path::new(output).join(file).is_file(), "{file}");
    }
    answer(bantam(&["run", output, "Once", "--max-new-tokens", "2", "--ignore-eos"]));
    // Cut short, and in the way of its own result.
    let cut = folder.join("cut.gguf");
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 7]).unwrap();
    let made = folder.join("other");
    let made = made.to_str().unwrap();
    refusal(&["quantize", cut.to_str().unwrap(), "--to", "mxfp4", "--output", made], 1, &["cut short"]);
    std::fs::write(&cut, &bytes).unwrap();
    let own = folder.to_str().unwrap();
    let within = ["quantize", cut.to_str().unwrap(), "--to", "mxfp4", "--force", "--output", own];
    refusal(&within, 1, &["model's own"]);
    assert!(!Path::new(made).exists() && cut.is_file());
}

#[test]
fn a_native_folder_runs_and_is_nothing_else() {
    let folder = folder("native");
    let (tool, native) = (folder.join("tool"), folder.join("native"));
    let (tool, native) = (tool.to_str().unwrap(), native.to_str().unwrap());
    let model = golden("llama-untied");
    answer(bantam(&["quantize", &model, "--to", "gptq", "--method", "nearest", "--json", "--output", tool]));
    let form = ["--to", "gptq", "--method", "nearest", "--native", "--json", "--output", native];
    answer(bantam(&[&["quantize", &model][..], &form].concat()));
    let names: Vec<String> = files(Path::new(native)).into_keys().collect();
    let weights: Vec<&String> = names.iter().filter(|name| name.ends_with("safetensors")).collect();
    assert_eq!(weights, ["native.safetensors"], "{names:?}");
    let greedy = ["--max-new-tokens", "8", "--ignore-eos", "--temperature", "0"];
    let run = |model: &str| answer(bantam(&[&["run", model, "Once"][..], &greedy].concat()));
    assert_eq!(run(native), run(tool));
    let told: Value = serde_json::from_str(&answer(bantam(&["inspect", native, "--json"]))).unwrap();
    assert!(told["bits_per_weight"].as_f64().unwrap() < 16.0);
    let exact = ["run", native, "Once", "--max-new-tokens", "1", "--precision", "exact"];
    refusal(&exact, 1, &["native.safetensors", "leave those out"]);
    let other = folder.join("other");
    refusal(
        &["quantize", native, "--to", "nf4", "--output", other.to_str().unwrap()],
        1,
        &["native form", "start from the model"],
    );
}

/// Their tensors are of odd sizes, of which the native file's header tells.
#[test]
fn a_native_folder_of_any_form_runs_as_the_tools_does() {
    let folder = folder("native-forms");
    let model = golden("llama-tied");
    for form in ["nf4", "fp4", "int8", "hqq", "ternary"] {
        let [tool, native] = ["tool", "native"].map(|name| folder.join(format!("{form}-{name}")));
        let (tool, native) = (tool.to_str().unwrap(), native.to_str().unwrap());
        let quantize = ["quantize", &model, "--to", form, "--json", "--output"];
        answer(bantam(&[&quantize[..], &[tool]].concat()));
        answer(bantam(&[&quantize[..], &[native, "--native"]].concat()));
        let run = |model: &str| {
            let prompt = ["--ids", "5,9,2", "--max-new-tokens", "8", "--ignore-eos", "--temperature", "0"];
            answer(bantam(&[&["run", model][..], &prompt].concat()))
        };
        assert_eq!(run(native), run(tool), "{form}");
        answer(bantam(&["inspect", native, "--json"]));
    }
}

/// Kills runs at random moments of what one takes until `BANTAM_KILLS` of them are dead; each is taken up again until
/// one comes through.
fn check_killed(name: &str, model: &str, more: &[&str]) {
    let folder = folder(name);
    let kills = std::env::var("BANTAM_KILLS").map_or(8, |kills| kills.parse().unwrap());
    let start = |output: &Path| {
        let arguments = ["quantize", model, "--to", "ternary", "--threads", "2", "--output"];
        let mut command = program(&[&arguments[..], &[output.to_str().unwrap()], more].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let (whole, began) = (folder.join("whole"), Instant::now());
    assert!(start(&whole).wait().unwrap().success());
    let (wanted, whole_run) = (files(&whole), began.elapsed().as_micros() as u64);
    let (mut killed, mut runs, mut state) = (0, 0, 1u64);
    while killed < kills {
        let output = folder.join(format!("killed-{runs}"));
        loop {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut child = start(&output);
            sleep(Duration::from_micros((state >> 33) % (whole_run + whole_run / 4)));
            let _ = child.kill();
            let status = child.wait().unwrap();
            if output.exists() {
                let partial = folder.join(format!("killed-{runs}.partial"));
                if partial.exists() && std::fs::read_dir(&partial).unwrap().count() > 0 {
                    assert!(start(&output).wait().unwrap().success(), "run {runs}: it was finished");
                    assert!(!partial.exists(), "run {runs}: nothing is left");
                }
                assert!(files(&output) == wanted, "run {runs}: under its final name it is complete");
                break;
            }
            assert!(!status.success(), "run {runs}");
            killed += 1;
        }
        std::fs::remove_dir_all(&output).unwrap();
        // Where the kill came between the new name and the end.
        let _ = std::fs::remove_dir_all(folder.join(format!("killed-{runs}.partial")));
        runs += 1;
    }
    println!("{name}: {killed} killed, {runs} came through");
}

#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    check_killed("killed", &golden("llama-tied"), &["--head", "int4"]);
}

#[test]
fn a_killed_calibration_ends_with_the_same_bytes() {
    let few = ["--calibration-sequences", "4", "--calibration-length", "32"];
    let more = [&["--method", "ptbitnet"][..], &few].concat();
    check_killed("killed-calibration", &golden("llama-tied"), &more);
}

#[test]
fn a_killed_run_from_a_gguf_file_ends_with_the_same_bytes() {
    check_killed("killed-gguf", &repository("tests/goldens/quant/gguf-llama/model-Q4_0.gguf"), &["--native"]);
}
