//! `bantam train --dry-run`: what a file says to train, and what is wrong with it.

use super::{Folder, bantam, golden, json, list, repository};

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
