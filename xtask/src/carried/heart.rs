//! `questions.jsonl`: the first lessons, a question in several words and its answer, learnt by heart. From them the
//! model has its words and how to attend to a question; what it says later it learns from `lessons.txt`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::chance::Chance;

/// Of the questions with so many phrasings or more, every so many keep the last one back.
const PHRASINGS: usize = 5;
const KEPT: usize = 4;
/// Turns of a conversation at most.
const TURNS: usize = 3;

/// A question in several words, and its answer.
pub(super) struct Pair {
    pub(super) questions: Vec<String>,
    pub(super) answer: String,
}

pub(super) fn read(path: &Path) -> Result<Vec<Pair>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let pair = |(number, line): (usize, &str)| {
        let row: Value = serde_json::from_str(line)?;
        let questions = row["questions"].as_array().into_iter().flatten();
        let questions: Vec<String> = questions.filter_map(Value::as_str).map(str::to_owned).collect();
        let answer = row["answer"].as_str().unwrap_or_default().to_owned();
        ensure!(!questions.is_empty() && !answer.is_empty(), "line {}: a question or its answer", number + 1);
        Ok(Pair { questions, answer })
    };
    text.lines().enumerate().map(pair).collect::<Result<_>>().with_context(|| path.display().to_string())
}

/// Questions and answers in any order, one to [`TURNS`] to a conversation.
pub(super) fn conversations(pairs: &[Pair]) -> String {
    let mut turns = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        let is_kept = number % KEPT == 0 && pair.questions.len() >= PHRASINGS;
        let learnt = &pair.questions[..pair.questions.len() - usize::from(is_kept)];
        turns.extend(learnt.iter().map(|question| (question.as_str(), pair.answer.as_str())));
    }
    let chance = &mut Chance::new(1);
    chance.shuffle(&mut turns);
    let (mut rows, mut rest) = (String::new(), turns.as_slice());
    while !rest.is_empty() {
        let (these, others) = rest.split_at((1 + chance.below(TURNS)).min(rest.len()));
        let (last, history) = these.split_last().expect("one turn at least");
        rows += &format!("{}\n", json!({ "instruction": last.0, "output": last.1, "history": history }));
        rest = others;
    }
    rows
}
