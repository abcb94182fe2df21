//! `cargo xtask carried`: the model that the program carries, from nothing: texts to tokens, training, quantization.
//! What it is made of stands in `model/carried/recipe`; this puts it together and calls the program for the rest.

mod bytepairs;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::steps::{self, cargo, command};

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
/// Of the questions with so many phrasings or more, the last is asked at the end and never learnt.
const PHRASINGS: usize = 5;
/// Which of them: every so many.
const ASKED: usize = 4;

/// Turns of a conversation at most.
const TURNS: usize = 3;

/// A question in several words, and its answer.
struct Lesson {
    questions: Vec<String>,
    answer: String,
}

pub(crate) fn run(root: &Path, quick: bool) -> Result<()> {
    let (recipe, work) = (root.join(RECIPE), root.join("target/carried"));
    let lessons = lessons(&recipe.join("questions.jsonl"))?;
    let texts = texts(&recipe)?;
    let base = work.join("base");
    fs::create_dir_all(&base)?;
    let asked = write_data(&work, &lessons, &texts)?;
    write_base(root, &recipe, &base, &lessons, &texts)?;
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
    // Once more from a high rate: more questions find their answers than in one long fall.
    train("answers.yaml", "answers", "again", &["num_train_epochs=6"])?;
    let (answers, small) = (folder("again"), folder("small"));
    steps::run(&mut command(
        root,
        &bantam,
        &["quantize", &answers, "--to", "nf4", "--output", &small, "--force"],
    ))?;
    report(root, &bantam, &small, &asked)?;
    if !quick {
        take(&work.join("small"), &root.join(PLACE))?;
    }
    Ok(())
}

/// The program that was just built.
fn program(root: &Path) -> Result<String> {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(folder.join("release/bantam").display().to_string())
}

fn lessons(path: &Path) -> Result<Vec<Lesson>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lesson = |(number, line): (usize, &str)| {
        let row: Value = serde_json::from_str(line)?;
        let questions = row["questions"].as_array().into_iter().flatten();
        let questions: Vec<String> = questions.filter_map(Value::as_str).map(str::to_owned).collect();
        let answer = row["answer"].as_str().unwrap_or_default().to_owned();
        ensure!(!questions.is_empty() && !answer.is_empty(), "line {}: a question or its answer", number + 1);
        Ok(Lesson { questions, answer })
    };
    text.lines().enumerate().map(lesson).collect::<Result<_>>().with_context(|| path.display().to_string())
}

/// Prose and documents, a piece an entry.
fn texts(recipe: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for name in ["prose.txt", "documents.txt"] {
        let path = recipe.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        all.extend(pieces(&plain(&text)).map(str::to_owned));
    }
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

/// Writes what is learnt; gives back what is asked in the end: a question and its answer each.
fn write_data(work: &Path, lessons: &[Lesson], texts: &[String]) -> Result<Vec<(String, String)>> {
    let (mut turns, mut asked) = (Vec::new(), Vec::new());
    for (number, lesson) in lessons.iter().enumerate() {
        let is_asked = number % ASKED == 0 && lesson.questions.len() >= PHRASINGS;
        let (learnt, kept) = lesson.questions.split_at(lesson.questions.len() - usize::from(is_asked));
        turns.extend(learnt.iter().map(|question| (question.as_str(), lesson.answer.as_str())));
        asked.extend(kept.iter().map(|question| (question.clone(), lesson.answer.clone())));
    }
    fs::write(work.join("answers.jsonl"), conversations(turns))?;
    let answers = lessons.iter().map(|lesson| lesson.answer.as_str());
    let words = texts.iter().map(String::as_str).chain(answers);
    let words: String = words.map(|text| format!("{}\n", json!({ "text": text }))).collect();
    fs::write(work.join("words.jsonl"), words)?;
    let columns = json!({ "prompt": "instruction", "response": "output", "history": "history" });
    let info = json!({
        "words": { "file_name": "words.jsonl", "columns": { "prompt": "text" } },
        "answers": { "file_name": "answers.jsonl", "columns": columns },
    });
    fs::write(work.join("dataset_info.json"), format!("{info:#}\n"))?;
    Ok(asked)
}

/// Questions and answers in any order, one to [`TURNS`] to a conversation.
fn conversations(mut turns: Vec<(&str, &str)>) -> String {
    // Knuth's linear congruence: the same order everywhere.
    let mut state = 1u64;
    let mut below = |most: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % most
    };
    for at in (1..turns.len()).rev() {
        turns.swap(at, below(at + 1));
    }
    let (mut rows, mut rest) = (String::new(), turns.as_slice());
    while !rest.is_empty() {
        let (these, others) = rest.split_at((1 + below(TURNS)).min(rest.len()));
        let (last, history) = these.split_last().expect("one turn at least");
        rows += &format!("{}\n", json!({ "instruction": last.0, "output": last.1, "history": history }));
        rest = others;
    }
    rows
}

/// The model before its weights: shape, tokenizer, template.
fn write_base(root: &Path, recipe: &Path, base: &Path, lessons: &[Lesson], texts: &[String]) -> Result<()> {
    let config: Value = serde_json::from_slice(&fs::read(recipe.join("config.json"))?)?;
    let size = config["vocab_size"].as_u64().context("config.json: vocab_size")? as usize;
    let mut all = texts.to_vec();
    for lesson in lessons {
        all.extend(lesson.questions.iter().map(|question| plain(question)));
        all.push(plain(&lesson.answer));
    }
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

/// Asks what was never learnt in these words, and says how often the answer was the written one.
fn report(root: &Path, bantam: &str, model: &str, asked: &[(String, String)]) -> Result<()> {
    let mut right = 0;
    for (question, answer) in asked {
        let mut chat = command(root, bantam, &["chat", "--model", model, "--greedy", "--no-history"]);
        let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        writeln!(chat.stdin.take().context("a pipe")?, "{question}")?;
        let output = chat.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let is_right = said.trim() == answer.trim();
        right += usize::from(is_right);
        if !is_right {
            println!("asked: {question}\n said: {}\n  not: {answer}", said.trim());
        }
    }
    println!("of {} questions in words that were not learnt, {right} were answered as written", asked.len());
    Ok(())
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
