//! What the verbs answer, beside goldens of the original tools and beside one another.

use std::path::Path;
use std::process::Stdio;

use bantam_model::checkpoint::writer::write_safetensors;
use bantam_model::checkpoint::{Checkpoint, Dtype};
use bantam_model::source::Source;
use serde_json::Value;

use crate::{
    Folder, MODELS, answer, bantam, bantam_with, golden, ids, joined, json, list, program, repository,
};

fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    let mut out = vec![0.0; tensor.elements()];
    tensor.read_f32(0, &mut out);
    out
}

fn golden_ids(file: &Checkpoint, name: &str) -> Vec<u32> {
    floats(file, name).into_iter().map(|id| id as u32).collect()
}

#[test]
pub(crate) fn greedy_ids_are_those_of_transformers() {
    for model in MODELS {
        let folder = golden(model);
        let goldens = Checkpoint::open(&Path::new(&folder).join("golden.safetensors")).unwrap();
        let tokenizer = Source::open(Path::new(&folder)).unwrap().text().unwrap().tokenizer;
        for prompt in 0..3 {
            let prompt_ids = golden_ids(&goldens, &format!("prompt{prompt}.input_ids"));
            let wanted = golden_ids(&goldens, &format!("prompt{prompt}.greedy"));
            let count = wanted.len().to_string();
            let found = json(&[
                "run",
                &folder,
                "--ids",
                &joined(&prompt_ids),
                "--temperature",
                "0",
                "--ignore-eos",
                "--max-new-tokens",
                &count,
                "--json",
                "--precision",
                "exact",
            ]);
            assert_eq!(ids(&found["ids"]), wanted, "{model} prompt {prompt}");
            assert_eq!(found["finish_reason"], "length");
            assert_eq!(found["prompt_tokens"].as_u64(), Some(prompt_ids.len() as u64));
            let text = tokenizer.decode(&wanted, true);
            assert_eq!(found["text"].as_str(), Some(text.as_str()), "{model} prompt {prompt}");
        }
    }
}

#[test]
fn scores_are_the_logits_of_transformers_and_need_configuration_and_weights_only() {
    let out = Folder::new();
    let file = out.path("logits.safetensors");
    for model in MODELS {
        let folder = Folder::model(model);
        for name in
            ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
        {
            folder.remove(name);
        }
        let goldens = Checkpoint::open(&Path::new(&golden(model)).join("golden.safetensors")).unwrap();
        for (prompt, chunk) in [(0, "512"), (2, "40")] {
            let prompt_ids = golden_ids(&goldens, &format!("prompt{prompt}.input_ids"));
            let said = answer(bantam(&[
                "score",
                &folder.path(""),
                "--ids",
                &joined(&prompt_ids),
                "--precision",
                "exact",
                "--chunk",
                chunk,
                "--logits",
                &file,
            ]));
            assert_eq!(said, "");
            let written = Checkpoint::open(Path::new(&file)).unwrap();
            let name = format!("prompt{prompt}.logits");
            let (logits, wanted) = (written.tensor("logits").unwrap(), goldens.tensor(&name).unwrap());
            assert_eq!((logits.dtype.name(), logits.shape), ("F32", wanted.shape), "{model}");
            for (a, b) in floats(&written, "logits").iter().zip(floats(&goldens, &name)) {
                assert!((a - b).abs() <= 1e-3, "{model} prompt {prompt}: {a} for {b}");
            }
        }
    }
}

#[test]
pub(crate) fn a_model_without_a_tokenizer_runs_on_ids() {
    let folder = Folder::model("llama-tied");
    folder.remove("tokenizer.json");
    let arguments =
        ["run", &folder.path(""), "--ids", "5,6,7", "--greedy", "--ignore-eos", "--max-new-tokens", "3"];
    let object = json(&[&arguments[..], &["--json"]].concat());
    assert_eq!(object["text"], Value::Null);
    let shown = answer(bantam(&arguments));
    let numbers: Vec<u32> = shown.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(numbers, ids(&object["ids"]));
}

#[test]
pub(crate) fn tokens_are_those_of_the_original() {
    for model in MODELS {
        let read = |name: &str| -> Value {
            let path = format!("{}/golden_text.json", golden(name));
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let mut goldens = read(model);
        if let Some(other) = goldens["same_as"].as_str() {
            goldens = read(other);
        }
        // The rest is tested below the command line; a NUL cannot be an argument.
        let cases =
            list(&goldens["encode"]).iter().filter(|case| !case["text"].as_str().unwrap().contains('\0'));
        for case in cases.step_by(7) {
            let text = case["text"].as_str().unwrap();
            let arguments = ["tokenize", &golden(model), "--text", text];
            let plain = answer(bantam(&arguments));
            assert_eq!(plain.trim_end().replace(' ', ","), joined(&ids(&case["ids"])));
            let bare = json(&[&arguments[..], &["--json", "--no-special"]].concat());
            assert_eq!(bare["ids"], case["ids_no_special"], "{model} {text:?}");
            assert_eq!(bare["tokens"], case["tokens_no_special"], "{model} {text:?}");
        }
    }
}

#[test]
pub(crate) fn conversations_are_those_of_the_original() {
    let out = Folder::new();
    for model in MODELS {
        let read = |name: &str| -> Value {
            let path = format!("{}/golden_text.json", golden(name));
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let mut goldens = read(model);
        if let Some(other) = goldens["same_as"].as_str() {
            goldens = read(other);
        }
        // Tools are tested below the command line: this test's JSON forgets the order of their keys.
        for case in list(&goldens["chat"]).iter().filter(|case| case["tools"].is_null()) {
            let file = out.write("chat.json", case["messages"].to_string());
            let folder = golden(model);
            let mut arguments = vec!["tokenize", &folder, "--chat", &file, "--now"];
            arguments.push(goldens["frozen_now"].as_str().unwrap());
            if case["add_generation_prompt"] == false {
                arguments.push("--no-generation-prompt");
            }
            let extra = ["enable_thinking", "reasoning_effort"].map(|key| format!("{key}={}", case[key]));
            for argument in extra.iter().filter(|argument| !argument.ends_with("=null")) {
                arguments.extend(["--template-arg", argument]);
            }
            if let Some(error) = case["error"].as_str() {
                let output = bantam(&arguments);
                let said = String::from_utf8(output.stderr).unwrap();
                assert!(said.trim_end().ends_with(error.strip_prefix("TemplateError: ").unwrap()), "{said}");
                assert_eq!(output.status.code(), Some(1));
                continue;
            }
            let plain = answer(bantam(&arguments));
            assert_eq!(plain.trim_end().replace(' ', ","), joined(&ids(&case["ids"])));
            arguments.push("--json");
            let object = json(&arguments);
            assert_eq!((&object["rendered"], &object["ids"]), (&case["rendered"], &case["ids"]), "{model}");
        }
    }
    let folder = golden("llama-tied");
    let piped = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}";
    assert!(!answer(bantam_with(piped, &["tokenize", &folder, "--chat", "-"])).is_empty());
}

#[test]
pub(crate) fn a_newcomer_needs_no_model() {
    let text = answer(bantam(&["run", "The function returns", "--max-new-tokens", "8"]));
    assert!(text.len() > 1 && text.ends_with('\n'), "{text:?}");
    assert!(answer(bantam(&["plan"])).contains("sum of all"));
    assert!(answer(bantam(&["inspect"])).contains("3.28 M"));
    assert!(!answer(bantam(&["tokenize", "--text", "Hello"])).is_empty());
}

#[test]
fn weights_that_the_configuration_does_not_mention_are_told_once() {
    let said = |folder: &Folder| {
        let output = bantam(&["run", &folder.path(""), "--ids", "1", "--max-new-tokens", "1"]);
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let folder = Folder::model("gpt_neox");
    assert_eq!(said(&folder), "", "masks and tables of frequencies are no weights");
    let config = std::fs::read_to_string(folder.path("config.json")).unwrap();
    let fewer = config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
    assert_ne!(fewer, config);
    folder.write("config.json", fewer);
    let message = said(&folder);
    assert!(message.contains("look like weights") && message.contains("gpt_neox.layers.2."), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");

    let folder = Folder::model("llama-tied");
    let original = Checkpoint::open(Path::new(&golden("llama-tied"))).unwrap();
    let mut tensors: Vec<_> =
        original.tensors().map(|tensor| (tensor.name, tensor.dtype, tensor.shape, tensor.data)).collect();
    let name = "model.layers.0.self_attn.q_proj.bias";
    tensors.push((name, Dtype::F32, &[2], &[0; 8]));
    write_safetensors(Path::new(&folder.path("model.safetensors")), &tensors, &[]).unwrap();
    assert!(said(&folder).contains(&format!("1 tensors look like weights and are not used, {name:?}")));
}

#[test]
pub(crate) fn every_way_to_say_a_prompt_says_the_same() {
    let model = repository("model/carried");
    let (prompt, flags) = ("Return the", ["--greedy", "--max-new-tokens", "12"]);
    let of = |arguments: &[&str]| answer(bantam(&[arguments, &flags].concat()));
    let expected = of(&["run", prompt]);
    assert_eq!(of(&["run", &model, prompt]), expected);
    assert_eq!(of(&["run", "--model", &model, "--prompt", prompt]), expected);
    assert_eq!(of(&["run", "--model", &model, prompt]), expected);
    assert_eq!(of(&["run", "// a/b"]), of(&["run", "--prompt", "// a/b"]), "a slash alone makes no path");
    assert_eq!(of(&["run", "--prompt", "./a"]), of(&["run", &model, "./a"]));
    assert_eq!(of(&["run", &model, "--prompt", prompt]), expected);
    let piped = |arguments: &[&str]| answer(bantam_with("Return the\n", &[arguments, &flags].concat()));
    assert_eq!(piped(&["run", "-"]), expected);
    assert_eq!(piped(&["run"]), expected);
    assert_eq!(piped(&["run", &model]), expected);
    assert_eq!(piped(&["run", &model, "-"]), expected);
}

#[test]
fn standard_output_holds_the_text_and_nothing_else() {
    let arguments = ["run", "The value", "--seed", "7", "--max-new-tokens", "24"];
    let object = json(&[&arguments[..], &["--json"]].concat());
    assert_eq!(object["seed"], 7);
    let text = object["text"].as_str().unwrap();
    assert_eq!(answer(bantam(&arguments)), format!("{text}\n"));
    let verbose = bantam(&[&arguments[..], &["--verbose"]].concat());
    assert_eq!(verbose.stdout, format!("{text}\n").into_bytes());
    assert!(String::from_utf8(verbose.stderr).unwrap().contains("per second"));
}

#[test]
fn a_drawn_seed_is_told_and_repeats_the_run() {
    let arguments = ["run", "The value", "--max-new-tokens", "16", "--json"];
    let first = json(&arguments);
    let seed = first["seed"].to_string();
    let second = json(&[&arguments[..], &["--seed", &seed]].concat());
    assert_eq!(first["ids"], second["ids"]);
}

#[test]
pub(crate) fn stop_strings_end_the_text_before_them() {
    let arguments = ["run", "The function", "--greedy", "--max-new-tokens", "24", "--json"];
    let whole = json(&arguments);
    let whole = whole["text"].as_str().unwrap();
    let at = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop: String = whole[at..].chars().take(3).collect();
    let cut = json(&[&arguments[..], &["--stop", &stop]].concat());
    assert_eq!(cut["text"].as_str(), whole.split(&stop).next());
    assert_eq!(cut["finish_reason"], "stop");
}

#[test]
fn a_plan_adds_up_and_is_what_a_run_takes() {
    let flags = ["--context", "100", "--kv", "int8", "--precision", "exact"];
    let plan = json(&[&["plan", "--json"][..], &flags].concat());
    let number = |value: &Value| value.as_u64().unwrap();
    let lines: u64 = list(&plan["lines"]).iter().map(|line| number(&line["bytes"])).sum();
    assert_eq!(lines, number(&plan["bytes"]));
    let regions = ["weight_bytes", "cache_bytes", "work_bytes"].map(|key| number(&plan[key]));
    assert_eq!(regions.iter().sum::<u64>(), lines);
    let run = json(&[&["run", "x", "--json", "--max-new-tokens", "1"][..], &flags].concat());
    assert_eq!(run["memory_bytes"], plan["bytes"]);
    let more = json(&[&["plan", "--json", "--sequences", "2"][..], &flags].concat());
    assert_eq!(number(&more["cache_bytes"]), 2 * regions[1]);
    // Larger than any laptop, so that there is something to advise.
    let large = ["plan", "--synthetic", "mixtral-8x7b", "--dtype", "f32", "--sequences", "64"];
    assert!(answer(bantam(&large)).contains("--context or --kv int8 or --quantization int8"));
    let shown = answer(bantam(&[&large[..], &["--quantization", "int8"]].concat()));
    assert!(shown.contains("--context or --kv int8") && !shown.contains("or --quantization"), "{shown}");
    let shape = json(&["plan", "--synthetic", "llama-7b", "--json"]);
    assert!(number(&shape["weight_bytes"]) > 13_000_000_000);
}

#[test]
fn keys_and_values_are_stored_as_somebody_says_or_suits_the_family_beside_a_card() {
    let kv = |model: &str, flags: &[&str]| {
        let told = json(&[&["plan", &golden(model), "--json"][..], flags].concat());
        (told["options"]["kv"].as_str().unwrap().to_owned(), told["cache_bytes"].as_u64().unwrap())
    };
    // Here no card is asked for; `cards.rs` has one.
    let (usual, bytes) = kv("gpt_neox", &["--kv", "f16"]);
    assert_eq!(usual, "f16");
    assert!(bytes > kv("gpt_neox", &["--kv", "int8"]).1 * 3 / 2);
    assert_eq!(kv("gpt_neox", &["--precision", "exact"]).0, "f32");
    assert_eq!(kv("gpt_neox", &["--precision", "exact", "--kv", "f16"]).0, "f16");
    assert_eq!((kv("llama-tied", &[]).0, kv("gpt_oss-bf16", &[]).0), ("f16".to_owned(), "f16".to_owned()));
}

#[test]
fn an_inspection_tells_the_true_numbers() {
    let tied = json(&["inspect", &golden("llama-tied"), "--json"]);
    assert_eq!(tied["tied_head"], true);
    let legacy = json(&["inspect", &golden("gpt_neox"), "--json"]);
    assert_eq!(legacy["bits_per_weight"], 16.0);
    assert_eq!(legacy["parameters"], 726_144);
    assert_eq!(list(&legacy["unused_tensors"]).len(), 9, "three buffers in each of three layers");
    let plan = json(&["plan", &golden("gpt_neox"), "--json"]);
    assert_eq!(legacy["bytes_per_token"], plan["bytes_per_token"]);
    let mixture = json(&["inspect", &golden("gpt_oss-bf16"), "--json"]);
    assert_eq!((&mixture["experts"], &mixture["experts_per_token"]), (&8.into(), &4.into()));
    assert_eq!(mixture["windows"], serde_json::json!([{ "positions": 32, "layers": 1 }]));
    let shown = answer(bantam(&["inspect", &golden("gpt_oss-bf16")]));
    assert!(shown.contains("8, of which a token takes 4") && shown.contains("in 1 of 2 layers"), "{shown}");
    let shown = answer(bantam(&["inspect", &golden("gemma2")]));
    assert!(shown.contains("of scores, ") && shown.contains("of logits"), "{shown}");
    let sharded = json(&["inspect", &golden("llama-untied"), "--json"]);
    assert_eq!(sharded["tied_head"], false);
}

#[test]
fn a_tensor_is_written_as_float32_in_the_order_of_the_checkpoint() {
    let folder = Folder::new();
    let out = folder.path("tensor.safetensors");
    let name = "gpt_neox.layers.1.attention.query_key_value.weight";
    let model = golden("gpt_neox");
    answer(bantam(&["inspect", &model, "--tensor", name, "--out", &out]));
    let written = Checkpoint::open(Path::new(&out)).unwrap();
    let original = Checkpoint::open(Path::new(&model)).unwrap();
    let (a, b) = (written.tensor(name).unwrap(), original.tensor(name).unwrap());
    assert_eq!((a.dtype.name(), a.shape), ("F32", b.shape));
    assert_eq!(floats(&written, name), floats(&original, name));
    assert_eq!(written.tensors().len(), 1);
    let values = json(&["inspect", &model, "--tensor", name, "--json"]);
    assert!(values["min"].as_f64() < values["mean"].as_f64());
    assert!(values["mean"].as_f64() < values["max"].as_f64());
}

/// Matrices of quantized checkpoints go by the names that they had before; codes never pass for weights.
#[test]
fn a_quantized_matrix_is_written_as_what_it_stands_for() {
    let folder = Folder::new();
    let out = folder.path("tensor.safetensors");
    let quantized = |name: &str| repository(&format!("tests/goldens/quant/{name}"));
    for model in ["bnb-nf4-dq-llama", "bnb-int8-gpt_neox", "gptq-4b-g128-desc-llama", "eetq-int8-llama"] {
        let model = quantized(model);
        let golden = Checkpoint::open(&Path::new(&model).join("golden.safetensors")).unwrap();
        let rows = golden.tensors().find(|tensor| tensor.name.starts_with("dequant_rows.")).unwrap();
        let name = format!("{}.weight", rows.name.strip_prefix("dequant_rows.").unwrap());
        answer(bantam(&["inspect", &model, "--tensor", &name, "--out", &out]));
        let written = Checkpoint::open(Path::new(&out)).unwrap();
        let tensor = written.tensor(&name).unwrap();
        assert_eq!((tensor.dtype.name(), tensor.shape[1]), ("F32", rows.shape[1]), "{model}");
        let wanted = floats(&golden, rows.name);
        assert_eq!(floats(&written, &name)[..wanted.len()], wanted, "{model}");
    }
    let (model, name) = (golden("gpt_oss-mxfp4"), "model.layers.0.mlp.experts.gate_up_proj");
    answer(bantam(&["inspect", &model, "--tensor", name, "--out", &out]));
    let written = Checkpoint::open(Path::new(&out)).unwrap();
    let experts = Checkpoint::open(&Path::new(&model).join("golden_dequant.safetensors")).unwrap();
    let wanted = floats(&experts, "model.layers.0.mlp.experts_0_1.gate_up_proj");
    assert_eq!(floats(&written, name)[..wanted.len()], wanted);
    // Without a configuration there are the tensors of the file, and with one that is wrong no codes.
    let copy = Folder::copy(&quantized("bnb-nf4-dq-llama"));
    let arguments = ["inspect", &copy.path(""), "--tensor", "model.layers.0.mlp.up_proj.weight"];
    let config = std::fs::read_to_string(copy.path("config.json")).unwrap();
    copy.write("config.json", config.replace("\"bitsandbytes\"", "\"unheard of\""));
    let refusal = bantam(&arguments);
    assert!(String::from_utf8(refusal.stderr).unwrap().contains("quant_method"));
    copy.remove("config.json");
    assert!(answer(bantam(&arguments)).contains("U8"));
}

#[test]
fn bits_of_quantized_checkpoints_are_counted_with_their_scales() {
    let of = |name: &str| json(&["inspect", &repository(&format!("tests/goldens/quant/{name}")), "--json"]);
    let plain = json(&["inspect", &golden("gpt_neox-seq"), "--json"]);
    let awq = of("awq-gemm-g128-gpt_neox");
    assert_eq!(awq["parameters"], plain["parameters"]);
    assert!(!list(&awq["unused_tensors"]).iter().any(|name| name.as_str().unwrap().contains("act.scales")));
    let number = |key: &str| awq[key].as_f64().unwrap();
    assert_eq!(number("bits_per_weight"), number("weight_bytes") * 8.0 / number("parameters"));
    for name in ["bnb-nf4-llama", "bnb-int8-llama", "hqq-4b-g64-llama", "ct-int4-g128-sym-llama"] {
        assert_eq!(list(&of(name)["unused_tensors"]).len(), 0, "{name}");
    }
}

/// Enough of the text for three windows of 256.
const PREFIX_BYTES: usize = 2800;

#[test]
fn perplexity_is_that_of_the_original_window_by_window() {
    let text = std::fs::read_to_string(repository("tests/goldens/real/valid.txt")).unwrap();
    let folder = Folder::new();
    let prefix = folder.write("prefix.txt", &text[..text.floor_char_boundary(PREFIX_BYTES)]);
    let golden_file = repository("tests/goldens/real/golden_ppl.safetensors");
    let nats = floats(&Checkpoint::open(Path::new(&golden_file)).unwrap(), "window_nll");
    let of = |precision: &str, threads: &str, windows: usize| {
        let found = json(&[
            "eval",
            "perplexity",
            &repository("tests/goldens/real/llama"),
            "--text-file",
            &prefix,
            "--context",
            "256",
            "--precision",
            precision,
            "--threads",
            threads,
            "--json",
        ]);
        assert_eq!(found["windows"].as_u64(), Some(windows as u64));
        assert_eq!(found["tokens"].as_u64(), Some(windows as u64 * 255));
        let wanted: f64 = nats[..windows].iter().map(|&x| f64::from(x)).sum();
        let wanted = (wanted / (255.0 * windows as f64)).exp();
        let found = found["perplexity"].as_f64().unwrap();
        (found, (found / wanted - 1.0).abs())
    };
    let (exact, error) = of("exact", "2", 3);
    assert!(error < 1e-5, "exact: {error}");
    assert_eq!(of("exact", "1", 3).0, exact, "threads change nothing");
    let (_, error) = of("fast", "2", 3);
    assert!(error < 0.005, "fast: {error}");
}

#[test]
pub(crate) fn a_reader_who_leaves_early_is_no_error() {
    for arguments in [&["inspect", "--tensors"][..], &["run", "The", "--ignore-eos"]] {
        let mut command = program(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}

#[test]
fn help_and_version_succeed() {
    assert!(answer(bantam(&["--version"])).starts_with("bantam "));
    for verb in [
        "run",
        "chat",
        "score",
        "tokenize",
        "inspect",
        "plan",
        "eval",
        "bench",
        "doctor",
        "completions",
        "man",
    ] {
        assert!(answer(bantam(&[verb, "--help"])).contains("Usage"), "{verb}");
        assert!(answer(bantam(&["help", verb])).contains("Examples:\n  bantam "), "{verb}");
    }
}
