//! What is refused: with which exit status, in which words, and never with a panic.

use std::fs;
use std::path::Path;

use bantam_model::checkpoint::writer::write_safetensors;
use bantam_model::checkpoint::{Checkpoint, Dtype, TensorView};

use crate::{Folder, bantam, bantam_with, golden, repository};

/// Refused with this status, nothing on standard output, and each of `words` in the message.
#[track_caller]
fn check(arguments: &[&str], status: i32, words: &[&str]) {
    let output = bantam(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {message}");
    assert!(message.starts_with("error: "), "{arguments:?}: {message}");
    assert!(!message.contains("panicked"), "{arguments:?}: {message}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{arguments:?}");
    for word in words {
        assert!(message.contains(word), "{arguments:?}: expected {word:?} in: {message}");
    }
}

#[test]
fn a_command_that_makes_no_sense_ends_with_status_2() {
    let model = repository("tests/goldens/real/llama");
    let model = model.as_str();
    let cases: [(&[&str], &[&str]); 27] = [
        (&["fly"], &["fly"]),
        (&["run", "x", "--wings"], &["--wings"]),
        (&["run"], &["PROMPT is missing"]),
        (&["run", "--model", model], &["PROMPT is missing"]),
        (&["run", "./modelz"], &["./modelz", "no model there", "--prompt"]),
        (&["run", "../my models/x"], &["no model there"]),
        (&["run", "models/x"], &["no model there"]),
        (&["run", "a", "b", "--model", model], &["one MODEL and one PROMPT"]),
        (&["run", "a", "b", "--prompt", "c"], &["one MODEL and one PROMPT"]),
        (&["run", model, "--model", model, "--ids", "1"], &["one MODEL"]),
        (&["run", "--ids", "1", "--prompt", "x"], &["--prompt"]),
        (&["run", "--ids", "1;2"], &["1,2,3", "1;2"]),
        (&["run", "x", "--temperature", "-1"], &["temperature", "0 or more", "-1"]),
        (&["run", "x", "--temperature", "warm"], &["warm"]),
        (&["run", "x", "--top-p", "1.5"], &["top_p", "1.5"]),
        (&["run", "x", "--greedy", "--temperature", "1"], &["--greedy"]),
        (&["run", "x", "--max-new-tokens", "0"], &["max_new_tokens", "0"]),
        (&["run", "x", "--stop", ""], &["stop strings", "empty"]),
        (&["run", "x", "--threads", "0"], &["--threads"]),
        (&["run", "x", "--kv", "int4"], &["int4", "int8"]),
        (&["run", "x", "--precision", "rough"], &["rough", "exact, fast"]),
        (&["tokenize"], &["--text"]),
        (&["score", model, "--logits", "x.safetensors"], &["--ids"]),
        (&["score", model, "--ids", "1"], &["--logits"]),
        (&["inspect", "--out", "x.safetensors"], &["--tensor"]),
        (&["eval", "perplexity"], &["--text-file"]),
        (&["plan", "--synthetic", "elephant"], &["elephant", "--synthetic list"]),
    ];
    for (arguments, words) in cases {
        check(arguments, 2, words);
    }
    assert_eq!(bantam(&[]).status.code(), Some(2));
}

#[test]
fn what_is_not_a_model_is_refused() {
    let folder = Folder::new();
    check(&["run", &folder.path("none"), "x"], 1, &["none", "no model there"]);
    check(&["run", &folder.path(""), "x"], 1, &["config.json", "found none"]);
    let pickle = folder.write("pytorch_model.bin", "x");
    check(&["inspect", &pickle], 1, &["pytorch_model.bin", ".safetensors"]);
    let text = folder.write("notes.txt", "x");
    check(&["plan", &text], 1, &["notes.txt"]);
}

#[test]
fn configurations_have_their_own_errors() {
    let folder = Folder::model("qwen2");
    let model = folder.path("");
    let config = fs::read_to_string(folder.path("config.json")).unwrap();
    folder.write("config.json", config.replace("\"qwen2\"", "\"zebra\""));
    check(&["run", &model, "x"], 1, &[&model, "config.json", "zebra", "this build knows"]);
    folder.write("config.json", "{");
    check(&["run", &model, "x"], 1, &["config.json", "JSON object"]);
    folder.write("config.json", config.replace("\"hidden_size\"", "\"ignored\""));
    check(&["plan", &model], 1, &["hidden_size", "missing"]);
    folder.write("config.json", config.replace("\"vocab_size\": ", "\"vocab_size\": 1"));
    check(&["plan", &model], 1, &["tensor", "expected shape", "found"]);
    folder.remove("config.json");
    check(&["score", &model, "--ids", "1", "--logits", &folder.path("o")], 1, &["config.json"]);
    folder.write("config.json", config);
    folder.write("generation_config.json", r#"{"temperature": "warm"}"#);
    check(&["run", &model, "x"], 1, &["generation_config.json", "temperature", "warm"]);
}

#[test]
fn a_tokenizer_is_missed_only_where_text_is_needed() {
    let folder = Folder::model("qwen2");
    let model = folder.path("");
    folder.remove("tokenizer.json");
    check(&["run", &model, "x"], 1, &[&model, "tokenizer.json", "found none"]);
    check(&["tokenize", &model, "--text", "x"], 1, &["tokenizer.json"]);
    check(&["run", &model, "--ids", "1", "--stop", "x"], 1, &["tokenizer.json"]);
    assert!(bantam(&["run", &model, "--ids", "1", "--max-new-tokens", "1"]).status.success());
    folder.write("tokenizer.json", "{}");
    check(&["run", &model, "x"], 1, &["tokenizer.json"]);
}

#[test]
fn prompts_that_do_not_fit_say_both_numbers() {
    let long = "word ".repeat(600);
    check(&["run", &long], 1, &["tokens", "room for 512", "up to 512"]);
    check(&["run", "one two three four five", "--context", "4"], 1, &["room for 4", "--context"]);
    let ids = vec!["1"; 513].join(",");
    let model = repository("tests/goldens/real/llama");
    check(&["run", "--ids", &ids], 1, &["513", "512"]);
    check(&["score", &model, "--ids", &ids, "--logits", "x"], 1, &["513", "512"]);
    check(&["run", "x", "--context", "600"], 1, &["found 600", "512"]);
}

#[test]
fn a_piped_prompt_is_taken_whole_or_refused() {
    let said = |prompt: &str| {
        let output = bantam_with(prompt, &["run"]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        String::from_utf8(output.stderr).unwrap()
    };
    // Two bytes to a letter, so that the limit falls between them.
    let message = said(&("x".to_owned() + &"é".repeat(2 << 20)));
    assert!(message.contains("4194305 bytes") && message.contains("at most 4194304"), "{message}");
    let message = said(&"a\n".repeat(10_000));
    assert!(message.contains("tokens, the context has room for 512"), "{message}");
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let model = repository("tests/goldens/real/llama");
    check(&["run", "--ids", "1,2048"], 1, &["token 2048", "from 0 to 2047"]);
    check(&["score", &model, "--ids", "9999", "--logits", "x"], 1, &["9999", "4095"]);
}

/// A copy of a golden model in which the bfloat16 values of one tensor were changed.
fn changed(name: &str, mut change: impl FnMut(&[usize], &mut [u8])) -> Folder {
    let folder = Folder::model("qwen2");
    let original = Checkpoint::open(Path::new(&golden("qwen2"))).unwrap();
    let mut change_one = |tensor: TensorView| {
        let mut data = tensor.data.to_vec();
        if tensor.name == name {
            assert_eq!(tensor.dtype, Dtype::Bf16);
            change(tensor.shape, &mut data);
        }
        data
    };
    let tensors: Vec<_> = original.tensors().map(|tensor| (tensor, change_one(tensor))).collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(tensor, data)| (tensor.name, tensor.dtype, tensor.shape, data.as_slice()))
        .collect();
    write_safetensors(Path::new(&folder.path("model.safetensors")), &tensors, &[]).unwrap();
    folder
}

#[test]
fn logits_that_are_no_numbers_are_not_passed_on() {
    // Finite as they stand, but not when they are multiplied and added.
    let folder = changed("model.norm.weight", |_, data| {
        data.chunks_exact_mut(2).for_each(|value| value.copy_from_slice(&[0x7F, 0x7F]));
    });
    let (model, out) = (folder.path(""), folder.path("logits.safetensors"));
    let words =
        ["position 0: expected numbers as logits, found", "the weights or the computation are broken"];
    check(&["score", &model, "--ids", "1,2,3", "--logits", &out], 1, &words);
    assert!(!Path::new(&out).exists());
    let text = folder.write("text.txt", "Some words, some more words, and a few at the end of them.");
    check(&["eval", "perplexity", &model, "--text-file", &text, "--context", "4"], 1, &words);
}

#[test]
fn weights_that_are_no_numbers_are_found_while_loading() {
    let name = "model.layers.1.mlp.down_proj.weight";
    let folder = changed(name, |shape, data| {
        data[2 * shape[1] + 6..][..2].copy_from_slice(&[0xC0, 0x7F]);
    });
    let words = ["model.safetensors", name, "NaN", "row 1, column 3"];
    check(&["run", &folder.path(""), "x"], 1, &words);
    let values = bantam(&["inspect", &folder.path(""), "--tensor", name]);
    assert!(String::from_utf8(values.stdout).unwrap().contains("1 values are NaN"));
}

#[test]
fn damaged_weights_are_refused_before_anything_is_read() {
    let folder = Folder::model("qwen2");
    let bytes = fs::read(folder.path("model.safetensors")).unwrap();
    // The tokenizer comes later: a broken one does not hide what is wrong with the weights.
    folder.write("tokenizer.json", "{}");
    for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        folder.write("model.safetensors", &bytes[..length]);
        check(&["run", &folder.path(""), "x"], 1, &["model.safetensors"]);
    }
    folder.write("model.safetensors", [&[0xFF; 8], &bytes[8..]].concat());
    check(&["inspect", &folder.path("")], 1, &["model.safetensors"]);
    folder.remove("model.safetensors");
    check(&["plan", &folder.path("")], 1, &["no weights"]);
}

#[test]
fn what_is_no_adapter_says_so() {
    let model = repository("tests/goldens/real/llama");
    let score = ["score", &model, "--ids", "1", "--logits", "x", "--adapter", "y"];
    check(&score, 1, &["adapter_config.json", "nothing there"]);
    let run = ["run", &model, "--ids", "1", "--adapter", &model];
    check(&run, 1, &["adapter_config.json", "no adapter_config.json"]);
}

#[test]
fn what_files_say_does_not_steer_a_terminal() {
    let folder = Folder::model("qwen2");
    let model = folder.path("");
    let (clear, name) = ("\u{1b}[2J", "\u{1b}[2Jname");
    let original = Checkpoint::open(Path::new(&golden("qwen2"))).unwrap();
    let mut tensors: Vec<_> =
        original.tensors().map(|tensor| (tensor.name, tensor.dtype, tensor.shape, tensor.data)).collect();
    tensors.push((name, Dtype::F32, &[2], &[0; 8]));
    write_safetensors(Path::new(&folder.path("model.safetensors")), &tensors, &[]).unwrap();
    let template = folder.write("chat_template.jinja", format!("{{{{ raise_exception('a{clear}') }}}}"));
    assert!(fs::read_to_string(template).unwrap().contains(clear));
    for arguments in [
        &["inspect", &model, "--tensors"][..],
        &["inspect", &model],
        &["inspect", &model, "--tensor", name],
        &["inspect", &model, "--tensor", "none"],
        &["tokenize", &model, "--chat", &folder.write("chat.json", "[]")],
    ] {
        let output = bantam(arguments);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains("\u{fffd}[2J") && !said.contains('\u{1b}'), "{arguments:?}: {said}");
    }
}

#[test]
fn conversations_that_cannot_be_rendered_are_refused() {
    let folder = Folder::new();
    let model = golden("llama-tied");
    let chat = |json: &str, words: &[&str]| {
        check(&["tokenize", &model, "--chat", &folder.write("chat.json", json)], 1, words);
    };
    chat("{}", &["chat.json", "expected a JSON list of messages", "found an object"]);
    chat("[\"Hi\"]", &["expected a list of messages, each an object, found a string"]);
    chat("[{]", &["chat.json", "column 3"]);
    chat("{\"messages\": [], \"tools\": 3}", &["`tools` as a list", "a number"]);
    check(&["tokenize", &model, "--chat", &folder.path("none.json")], 1, &["none.json", "messages"]);
    let file = folder.write("chat.json", "[{\"role\": \"user\", \"content\": \"Hi\"}]");
    let flags = ["tokenize", &model, "--chat", &file];
    let argument = [&flags[..], &["--template-arg", "effort=high"]].concat();
    check(&argument, 2, &["--template-arg", "'effort=\"high\"'"]);
    check(&[&flags[..], &["--template-arg", "messages=[]"]].concat(), 1, &["`messages`", "leave it out"]);
    check(&[&flags[..], &["--now", "noon"]].concat(), 2, &["--now", "2025-01-31T12:34:56"]);
    check(&["tokenize", "--tools", "x", "--text", "y"], 2, &["--chat"]);
    check(&[&flags[..], &["--text", "y"]].concat(), 2, &["--text", "--chat"]);

    let model = Folder::model("llama-tied");
    model.write("chat_template.jinja", "\n{{ raise_exception('only poems, please') }}");
    check(
        &["tokenize", &model.path(""), "--chat", &file],
        1,
        &["refuses this conversation: only poems, please"],
    );
    model.write("chat_template.jinja", "\n{{ messages[0].content.strip( }}");
    check(
        &["tokenize", &model.path(""), "--chat", &file],
        1,
        &["chat_template.jinja, line 2", "closes nothing"],
    );
    model.write(
        "chat_template.jinja",
        "{% for i in range(9999) %}{% for i in range(9999) %}{% endfor %}{% endfor %}",
    );
    check(&["tokenize", &model.path(""), "--chat", &file], 1, &["the template was stopped", "more than"]);
    model.remove("chat_template.jinja");
    let config = std::fs::read_to_string(model.path("tokenizer_config.json")).unwrap();
    assert!(!config.contains("chat_template"));
    check(&["tokenize", &model.path(""), "--chat", &file], 1, &["expected a chat template", "found none"]);
}

#[test]
fn inputs_and_outputs_that_cannot_be_used_are_named() {
    let folder = Folder::new();
    let model = repository("tests/goldens/real/llama");
    let eval = |file: &str, words: &[&str]| {
        check(&["eval", "perplexity", "--text-file", file, "--context", "64"], 1, words);
    };
    eval(&folder.path("none.txt"), &["none.txt"]);
    eval(&folder.write("bytes.txt", [0xFF, 0xFE]), &["bytes.txt", "UTF-8"]);
    eval(&folder.write("short.txt", "too short"), &["short.txt", "64", "smaller --context"]);
    let out = folder.path("no/such/folder.safetensors");
    check(&["score", &model, "--ids", "1", "--logits", &out], 1, &["folder.safetensors"]);
    check(&["inspect", "--tensor", "model.embed_tokens.weight", "--out", &out], 1, &["folder.safetensors"]);
    let near = ["model.layers.0.self_attn.q_proj.weight"];
    check(&["inspect", "--tensor", "q_proj"], 1, &near);
    let wrong = bantam_with("\n", &["run", "-"]);
    assert_eq!(wrong.status.code(), Some(2), "an empty prompt on standard input");
}

#[test]
fn what_stands_in_the_place_of_a_file_is_not_replaced() {
    let folder = Folder::model("llama-untied");
    let (model, tensor) = (folder.path(""), "model.embed_tokens.weight");
    let refuses = |out: &str, word: &str| {
        let name = Path::new(out).file_name().unwrap().to_str().unwrap();
        check(&["score", &model, "--ids", "1", "--logits", out], 1, &[name, word]);
        check(&["inspect", &model, "--tensor", tensor, "--out", out], 1, &[name, word]);
    };
    let own = [
        "model-00001-of-00005.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "./tokenizer.json",
    ];
    for name in own {
        let before = fs::read(folder.path(name)).unwrap();
        refuses(&folder.path(name), "the model's own files");
        assert_eq!(fs::read(folder.path(name)).unwrap(), before);
    }
    fs::create_dir(folder.path("directory")).unwrap();
    refuses(&folder.path("directory"), "a directory");
    #[cfg(unix)]
    {
        use std::os::unix::fs::{FileTypeExt, symlink};
        symlink(folder.path("config.json"), folder.path("link")).unwrap();
        refuses(&folder.path("link"), "a symbolic link");
        let fifo = folder.path("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        refuses(&fifo, "a FIFO");
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    }
    // An older result is replaced, also one that lies in the model's folder.
    let old = folder.write("old.safetensors", "old");
    assert!(bantam(&["score", &model, "--ids", "1", "--logits", &old]).status.success());
    assert!(Checkpoint::open(Path::new(&old)).is_ok());
}

#[test]
#[cfg(target_os = "linux")]
fn a_bench_judges_its_model_before_it_measures_the_machine() {
    let folder = Folder::new();
    // Measuring takes 1 GiB, which is not to be had here: whoever begins with it refuses in other words.
    let refuses = |status: i32, arguments: &[&str], words: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -v 900000 && exec \"$0\" bench \"$@\"", env!("CARGO_BIN_EXE_bantam")]);
        let output = command.args(arguments).env("XDG_CACHE_HOME", crate::cache()).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    refuses(1, &[], &["1 GiB of memory"]);
    refuses(2, &["--synthetic", "elephant"], &["elephant", "--synthetic list"]);
    refuses(1, &[&folder.path("none")], &["no model there"]);
    refuses(
        1,
        &["--model", &repository("tests/goldens/real/llama"), "--prompt-tokens", "600"],
        &["600", "512"],
    );
    refuses(1, &["--synthetic", "llama-7b", "--prompt-tokens", "1000000"], &["llama-7b", "1000000"]);
}
