//! `cargo xtask carried`: the model that the program carries, from nothing: texts to tokens, training, quantization.
//! What it is made of stands in `model/carried/recipe`; this puts it together and calls the program for the rest.

mod bytepairs;
mod chance;
mod lessons;
mod school;
mod ways;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::steps::{self, cargo, command};
use lessons::Lesson;
use ways::Ways;

const PLACE: &str = "model/carried";
const RECIPE: &str = "model/carried/recipe";
/// The project's own words, taken over into the recipe by `documents`: what the model learnt stays known.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "clients/python/README.md",
    "clients/grpcurl.md",
    "clients/systemd/README.md",
    "benches/README.md",
];
/// Questions that the tokenizer sees: about as much text as the rest.
const QUESTIONS_CUT: usize = 5000;
/// Ends a text; fills a row; a turn's begin and end; and what the template has for tools and thoughts.
const SPECIALS: &[&str] = &[
    "<|endoftext|>",
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
];

pub(crate) fn run(root: &Path, quick: bool) -> Result<()> {
    let (recipe, work) = (root.join(RECIPE), root.join("target/carried"));
    let lessons = begin(root, &recipe, &work)?;
    steps::run(&mut cargo(root, &["build", "--release", "--locked", "--quiet", "--package", "bantam"]))?;
    let bantam = program(root)?;
    let folder = |name: &str| work.join(name).display().to_string();
    let data = format!("dataset_dir={}", work.display());
    let short = if quick { ["max_steps=2"].as_slice() } else { &[] };
    let train = |file: &str, model: &str, output: &str, more: &[&str]| {
        let file = recipe.join(file).display().to_string();
        let model = format!("model_name_or_path={}", folder(model));
        let output = format!("output_dir={}", folder(output));
        let arguments = [&["train", &file, &model, &output, &data], more, short].concat();
        steps::run(&mut command(root, &bantam, &arguments))
    };
    train("words.yaml", "base", "words", &[])?;
    train("answers.yaml", "words", "answers", &[])?;
    let (answers, small) = (folder("answers"), folder("small"));
    steps::run(&mut command(
        root,
        &bantam,
        &["quantize", &answers, "--to", "nf4", "--output", &small, "--force"],
    ))?;
    report(root, &bantam, &small, &lessons)?;
    if !quick {
        take(&work.join("small"), &root.join(PLACE))?;
    }
    Ok(())
}

/// All that the runs of `bantam train` begin with.
fn begin(root: &Path, recipe: &Path, work: &Path) -> Result<Vec<Lesson>> {
    let (lessons, ways) = read(recipe)?;
    let texts = texts(recipe, &lessons)?;
    let base = work.join("base");
    fs::create_dir_all(&base)?;
    let asked = school::questions(&lessons, &ways)?;
    write_data(work, &asked, &texts)?;
    write_base(root, recipe, &base, &asked, &texts)?;
    Ok(lessons)
}

fn read(recipe: &Path) -> Result<(Vec<Lesson>, Ways)> {
    let text = |name: &str| {
        let path = recipe.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let lessons = lessons::read(&text("lessons.txt")?).context("lessons.txt")?;
    Ok((lessons, Ways::read(&text("ways.txt")?).context("ways.txt")?))
}

/// What the carried model that is there knows.
pub(crate) fn ask(root: &Path) -> Result<()> {
    let (lessons, _) = read(&root.join(RECIPE))?;
    steps::run(&mut cargo(root, &["build", "--release", "--locked", "--quiet", "--package", "bantam"]))?;
    report(root, &program(root)?, &root.join(PLACE).display().to_string(), &lessons)
}

/// The program that was just built.
fn program(root: &Path) -> Result<String> {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(folder.join("release/bantam").display().to_string())
}

/// Prose, documents and answers, a piece an entry.
fn texts(recipe: &Path, lessons: &[Lesson]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for name in ["prose.txt", "documents.txt"] {
        let path = recipe.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        all.extend(pieces(&plain(&text)).map(str::to_owned));
    }
    all.extend(lessons.iter().map(|lesson| lesson.answer.clone()));
    Ok(all)
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").map(str::trim).filter(|piece| !piece.is_empty())
}

/// Takes the documents over as they are now.
pub(crate) fn documents(root: &Path) -> Result<()> {
    let mut all = String::new();
    for name in DOCUMENTS {
        let text = fs::read_to_string(root.join(name)).with_context(|| (*name).to_owned())?;
        pieces(&plain(&text)).for_each(|piece| all += &format!("{piece}\n\n"));
    }
    let path = root.join(RECIPE).join("documents.txt");
    fs::write(&path, format!("{}\n", all.trim_end())).with_context(|| path.display().to_string())
}

/// ASCII alone: the tokenizer's cuts are for it.
fn plain(text: &str) -> String {
    let sign = |sign: char| match sign {
        '\u{2013}' | '\u{2014}' => "-".to_owned(),
        '\u{2018}' | '\u{2019}' => "'".to_owned(),
        '\u{201c}' | '\u{201d}' => "\"".to_owned(),
        '\u{2026}' => "...".to_owned(),
        '\u{d7}' => "x".to_owned(),
        sign if sign.is_ascii() => sign.to_string(),
        _ => String::new(),
    };
    text.chars().map(sign).collect()
}

/// Writes what is learnt.
fn write_data(work: &Path, asked: &[(String, &str)], texts: &[String]) -> Result<()> {
    fs::write(work.join("answers.jsonl"), school::conversations(asked))?;
    let words: String = texts.iter().map(|text| format!("{}\n", json!({ "text": text }))).collect();
    fs::write(work.join("words.jsonl"), words)?;
    let columns = json!({ "prompt": "instruction", "response": "output", "history": "history" });
    let info = json!({
        "words": { "file_name": "words.jsonl", "columns": { "prompt": "text" } },
        "answers": { "file_name": "answers.jsonl", "columns": columns },
    });
    fs::write(work.join("dataset_info.json"), format!("{info:#}\n"))?;
    Ok(())
}

/// The model before its weights: shape, tokenizer, template.
fn write_base(
    root: &Path,
    recipe: &Path,
    base: &Path,
    asked: &[(String, &str)],
    texts: &[String],
) -> Result<()> {
    let config: Value = serde_json::from_slice(&fs::read(recipe.join("config.json"))?)?;
    let size = config["vocab_size"].as_u64().context("config.json: vocab_size")? as usize;
    let questions = asked[..QUESTIONS_CUT].iter().map(|(question, _)| question.clone());
    let all: Vec<String> = texts.iter().cloned().chain(questions).collect();
    let tokenizer = bytepairs::tokenizer(&all, SPECIALS, size);
    let added = SPECIALS.iter().enumerate().map(|(id, content)| {
        let token = json!({
            "content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
            "special": true,
        });
        (id.to_string(), token)
    });
    let settings = json!({
        "added_tokens_decoder": added.collect::<serde_json::Map<_, _>>(),
        "bos_token": null, "eos_token": "<|im_end|>", "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": false, "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    let generation = json!({
        "bos_token_id": 0, "eos_token_id": [0, 3], "pad_token_id": 1, "do_sample": false, "repetition_penalty": 1.0,
    });
    for (name, value) in [
        ("config.json", &config),
        ("tokenizer.json", &tokenizer),
        ("tokenizer_config.json", &settings),
        ("special_tokens_map.json", &json!({ "eos_token": "<|im_end|>", "pad_token": "<|pad|>" })),
        ("generation_config.json", &generation),
    ] {
        fs::write(base.join(name), format!("{value:#}\n"))?;
    }
    let template = root.join(PLACE).join("chat_template.jinja");
    fs::copy(&template, base.join("chat_template.jinja")).with_context(|| template.display().to_string())?;
    Ok(())
}

/// Asks every lesson's first question, and those in words that were never learnt; says how often the answer was the
/// written one.
fn report(root: &Path, bantam: &str, model: &str, lessons: &[Lesson]) -> Result<()> {
    let first: Vec<_> = lessons.iter().map(|lesson| (lesson.patterns[0].first(), &lesson.answer)).collect();
    let kept: Vec<_> = lessons
        .iter()
        .flat_map(|lesson| lesson.kept.iter().map(|kept| (kept.clone(), &lesson.answer)))
        .collect();
    for (asked, name) in [(first, "first questions"), (kept, "questions in words that were not learnt")] {
        let questions: Vec<&str> = asked.iter().map(|(question, _)| question.as_str()).collect();
        let said = answers(root, bantam, model, &questions)?;
        let mut right = 0;
        for ((question, answer), said) in asked.iter().zip(&said) {
            right += usize::from(said == *answer);
            if said != *answer {
                println!("asked: {question}\n said: {said}\n  not: {answer}");
            }
        }
        println!("of {} {name}, {right} were answered as written", asked.len());
    }
    Ok(())
}

/// What the model says to each of these, every one the first of a conversation.
fn answers(root: &Path, bantam: &str, model: &str, questions: &[&str]) -> Result<Vec<String>> {
    let mut chat =
        command(root, bantam, &["chat", "--model", model, "--greedy", "--no-history", "--json", "--local"]);
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = chat.stdin.take().context("a pipe")?;
    let lines: String = questions.iter().map(|question| format!("{question}\n/clear\n")).collect();
    // Questions go in while answers come out: neither pipe holds all of them.
    let writer = thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = chat.wait_with_output()?;
    writer.join().expect("writing does not panic")?;
    let answer = |line: &str| -> Result<String> {
        let object: Value = serde_json::from_str(line)?;
        Ok(object["content"].as_str().context("expected `content` in an answer")?.trim().to_owned())
    };
    let said: Vec<String> = String::from_utf8(output.stdout)?.lines().map(answer).collect::<Result<_>>()?;
    ensure!(said.len() == questions.len(), "expected {} answers, found {}", questions.len(), said.len());
    Ok(said)
}

/// Puts the finished model in the place of the one before.
fn take(small: &Path, place: &Path) -> Result<()> {
    for entry in fs::read_dir(small)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_model = name.to_str().is_some_and(|name| !name.starts_with("bantam_"));
        if is_model && entry.file_type()?.is_file() {
            fs::copy(entry.path(), place.join(&name))?;
        }
    }
    Ok(())
}
