//! Data sets as token ids, against what LLaMA-Factory 0.9.3 makes of the same files: `goldens/train-data/make.py`.

// Helpers of a test may unwrap: a failure is a failed test.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use bantam_model::files::ModelFiles;
use bantam_model::template::ChatTemplate;
use bantam_model::tokenizer::Tokenizer;
use bantam_tests::{model_folder, repository};
use bantam_train::data::{DataError, Prepared, Spoken, prepare};
use bantam_train::settings::Settings;
use serde_json::Value;

fn folder() -> PathBuf {
    repository("tests/goldens/train-data")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

/// Prepares data by settings in YAML.
fn prepared(model: &str, yaml: &str) -> Result<Prepared, DataError> {
    let yaml = format!("model_name_or_path: {model}\n{yaml}");
    let settings = Settings::of_text("test.yaml", &yaml, &[]).unwrap_or_else(|error| panic!("{error}"));
    let files = ModelFiles::open(&model_folder(model)).unwrap();
    let config = files.tokenizer_config().unwrap();
    let map = files.special_tokens_map().unwrap();
    let tokenizer = files.tokenizer().unwrap().unwrap();
    let tokenizer = Tokenizer::from_bytes(&tokenizer, config.as_deref(), map.as_deref()).unwrap();
    let own = ChatTemplate::of_model(&files).unwrap();
    let spoken = Spoken::new(&tokenizer, own, config.as_deref());
    prepare(&settings.data, settings.stage, 42, tokenizer.id_end(), Some(&spoken))
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect()
}

#[test]
fn ids_and_labels_are_those_of_llama_factory() {
    let golden = golden();
    for case in golden["cases"].as_array().unwrap() {
        let mut yaml = format!("dataset_dir: {}\ndataset: {}\n", folder().display(), case["dataset"]);
        case["settings"].as_object().unwrap().iter().for_each(|(key, value)| {
            yaml += &format!("{key}: {value}\n");
        });
        let model = case["model"].as_str().unwrap();
        let found = prepared(model, &yaml).unwrap_or_else(|error| panic!("{yaml}{error}"));
        let expected = case["examples"].as_array().unwrap();
        assert_eq!(found.train.len(), expected.len(), "{yaml}{}", found.summary);
        for (example, expected) in found.train.iter().zip(expected) {
            let ids: Vec<i64> = example.ids.iter().map(|&id| i64::from(id)).collect();
            assert_eq!(ids, numbers(&expected["input_ids"]), "{yaml}");
            // Running text has no labels there: the collator makes them.
            if let Some(labels) = expected.get("labels") {
                let found: Vec<i64> = example.labels.iter().map(|&label| i64::from(label)).collect();
                assert_eq!(found, numbers(labels), "{yaml}");
            }
            if let Some(mask) = expected.get("attention_mask") {
                assert_eq!(example.segments().map(i64::from).collect::<Vec<_>>(), numbers(mask), "{yaml}");
            }
            if let Some(positions) = expected.get("position_ids") {
                assert_eq!(
                    example.positions().map(i64::from).collect::<Vec<_>>(),
                    numbers(positions),
                    "{yaml}"
                );
            }
        }
    }
}

/// A file in a folder of this process and test.
fn written(test: &str, name: &str, text: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("bantam-train-data-{}-{test}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), text).unwrap();
    folder.join(name)
}

fn removed(file: &Path) {
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
}

#[test]
fn every_template_spells_as_in_llama_factory() {
    let golden = golden();
    let talk = golden["talk"].as_array().unwrap();
    let file = written("templates", "talk.json", "");
    let mut names = std::collections::BTreeSet::new();
    for spelled in golden["spelled"].as_array().unwrap() {
        let mut messages = talk.clone();
        let system = spelled["system"].as_str().unwrap();
        if !system.is_empty() {
            messages.insert(0, serde_json::json!({ "role": "system", "content": system }));
        }
        std::fs::write(&file, serde_json::json!([{ "messages": messages }]).to_string()).unwrap();
        let template = spelled["template"].as_str().unwrap();
        let yaml = format!("dataset_path: {}\ntemplate: {template}\ncutoff_len: 4096\n", file.display());
        let found = prepared(spelled["model"].as_str().unwrap(), &yaml);
        let found = found.unwrap_or_else(|error| panic!("{template}: {error}"));
        let expected: Vec<i64> = spelled["pairs"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|pair| pair.as_array().unwrap().iter().flat_map(numbers))
            .collect();
        let ids: Vec<i64> = found.train[0].ids.iter().map(|&id| i64::from(id)).collect();
        // Templates without an end of their own have one behind the conversation.
        assert!(ids.len() <= expected.len() + 1, "{template}");
        assert_eq!(ids[..expected.len()], expected, "{template} {system}");
        names.insert(template.to_owned());
    }
    assert!(names.len() > 60, "{names:?}");
    removed(&file);
}

#[test]
fn bad_rows_are_dropped_and_counted_with_their_places() {
    let text = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
{"messages": [{"role": "user", "content": "a"}
{"messages": [{"role": "user", "content": "a"}]}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}
{"messages": [{"role": "user", "content": "a"}]}
"#;
    let file = written("bad", "bad.jsonl", text);
    let found =
        prepared("llama-tied", &format!("dataset_path: {}\ntemplate: llama3\n", file.display())).unwrap();
    assert_eq!(found.train.len(), 1);
    let summary = found.summary.to_string();
    let place = |line: usize| format!("{}:{line}", file.display());
    for expected in [
        "1 of 6 rows".to_owned(),
        format!("1 dropped: is broken JSON ({})", place(2)),
        format!("({}, {})", place(3), place(6)),
        format!("1 dropped: has an empty answer ({})", place(4)),
        place(5),
    ] {
        assert!(summary.contains(&expected), "{expected}\n{summary}");
    }
    removed(&file);
}

#[test]
fn odd_files_are_rows_or_reasons() {
    let row = |answer: &str| format!("{{\"instruction\": \"a\", \"output\": \"{answer}\"}}");
    let long = "word ".repeat(40_000);
    let (deep, twice) =
        ("[".repeat(100_000), "{\"instruction\": \"a\", \"output\": \"b\", \"output\": \"c\"}");
    let lines = [
        "\u{feff}",
        &row("b"),
        "\r\n",
        &row("\\u0000"),
        "\r\n\r\n",
        &deep,
        "\n",
        twice,
        "\n",
        &row(&long),
        "\n",
    ];
    let list = [
        "\u{feff}[",
        &row("b"),
        ",\r\n",
        &row("\\u0000"),
        ",\n\"",
        &deep,
        "\",",
        twice,
        ",",
        &row(&long),
        "]\0",
    ];
    for (name, text, place) in [("odd.jsonl", lines.concat(), 4), ("odd.json", list.concat(), 3)] {
        let file = written("odd", name, &text);
        let yaml = format!(
            "dataset_path: {}\ndataset_type: alpaca\ntemplate: llama3\ncutoff_len: 64\n",
            file.display()
        );
        let found = prepared("llama-tied", &yaml).unwrap();
        let set = &found.summary.sets[0];
        assert_eq!((set.rows, set.kept, set.cut), (5, 4, 1), "{}", found.summary);
        assert_eq!(set.dropped[0].places, [format!("{}:{place}", file.display())]);
        assert_eq!(found.train[3].ids.len(), 64);
        removed(&file);
    }
}

#[test]
fn rows_of_ids_need_no_template() {
    let text = r#"{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
{"input_ids": [1, 2, 3, 4, 5]}
{"input_ids": [1, 2], "labels": [1]}
{"input_ids": [1, 99999999], "labels": [1, 2]}
{"input_ids": [1, 2], "labels": [-100, -100]}
"#;
    let file = written("ids", "ids.jsonl", text);
    let yaml = format!("dataset_path: {}\ndataset_type: tokenized\ncutoff_len: 4\n", file.display());
    let settings = Settings::of_text("x", &format!("model_name_or_path: m\n{yaml}"), &[]).unwrap();
    let found = prepare(&settings.data, settings.stage, 42, 100, None).unwrap();
    assert_eq!((&found.train[0].ids[..], &found.train[0].labels[..]), (&[1, 2, 3][..], &[-100, 2, 3][..]));
    assert_eq!((&found.train[1].ids[..], &found.train[1].labels[..]), (&[1, 2, 3, 4][..], &[1, 2, 3, 4][..]));
    assert_eq!((found.train.len(), found.summary.sets[0].dropped_rows()), (2, 3));
    removed(&file);
}

#[test]
fn tables_are_what_the_same_rows_in_json_are() {
    for form in ["alpaca", "sharegpt"] {
        let [json, parquet, arrow] = ["rows.json", "datasets.parquet", "lz4.arrow"].map(|name| {
            let file = folder().join("tables").join(name);
            let yaml = format!("dataset_path: {}\ndataset_type: {form}\ntemplate: llama3\n", file.display());
            let found = prepared("llama-tied", &yaml).unwrap();
            let dropped: Vec<_> =
                found.summary.sets[0].dropped.iter().map(|set| (set.reason.clone(), set.count)).collect();
            (found.train, dropped)
        });
        assert!(!json.0.is_empty(), "{form}");
        assert!(json == parquet && json == arrow, "{form}: {:?} {:?} {:?}", json.1, parquet.1, arrow.1);
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_its_name() {
    let refused = |yaml: &str, words: &str| {
        let error = prepared("llama-tied", &format!("dataset_dir: {}\n{yaml}", folder().display()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused("dataset: alpacca", "expected a name in dataset_info.json, found none");
    refused("dataset: plain\ntemplate: lama3", "llama3");
    refused("dataset: plain\ntemplate: chatglm3", "choose the template");
    refused("dataset: plain\ntemplate: falcon\ntrain_on_prompt: true", "train_on_prompt");
    refused("dataset: text\nstage: pt\ncutoff_len: 100000", "lower cutoff_len");
    refused("dataset: plain\ntemplate: llama3\nval_size: 2", "fewer rows");
    refused("dataset_path: /nowhere.jsonl\ntemplate: llama3", "/nowhere.jsonl");
    let wrong = folder().join("text.jsonl");
    refused(
        &format!("dataset_path: {}\ndataset_type: alpaca\ntemplate: llama3", wrong.display()),
        "instruction",
    );
}

#[test]
fn sets_are_sampled_split_and_mixed() {
    let info = r#"{"a": {"file_name": "a.jsonl", "num_samples": 7}, "b": {"file_name": "b.csv"}}"#;
    let file = written("mix", "dataset_info.json", info);
    let a: String =
        (0..4).map(|row| format!("{{\"instruction\": \"q{row}\", \"output\": \"a\"}}\n")).collect();
    std::fs::write(file.with_file_name("a.jsonl"), a).unwrap();
    std::fs::write(file.with_file_name("b.csv"), "instruction,output\nx,y\nz,w\n").unwrap();
    let dir = file.parent().unwrap().display();
    let rows = |yaml: &str| {
        let yaml = format!("dataset_dir: {dir}\ndataset: a,b\ntemplate: llama3\n{yaml}");
        let found = prepared("llama-tied", &yaml).unwrap();
        (found.train.len(), found.eval.len())
    };
    assert_eq!(rows(""), (9, 0));
    assert_eq!(rows("val_size: 0.3"), (6, 3));
    assert_eq!(rows("val_size: 2"), (7, 2));
    assert_eq!(rows("max_samples: 3"), (5, 0));
    assert_eq!(rows("mix_strategy: interleave_under"), (4, 0));
    assert_eq!(rows("mix_strategy: interleave_over"), (14, 0));
    let (chosen, _) = rows("mix_strategy: interleave_under\ninterleave_probs: 0.5,0.5");
    assert!((2..=9).contains(&chosen), "{chosen}");
    removed(&file);
}
