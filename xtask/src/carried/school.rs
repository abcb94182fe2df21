//! What is learnt: of every lesson questions as people would type them, in conversations.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use serde_json::json;

use super::chance::Chance;
use super::lessons::{Lesson, bare};
use super::ways::Ways;

/// Questions that are learnt.
const QUESTIONS: usize = 45_000;
/// A lesson's share of them: so much, and as much for every question of one form that it has; of many forms the root.
const SHARE: f64 = 30.0;
/// Times in a hundred that a lesson's first question is asked.
const FIRST: usize = 8;
/// Times in a hundred that a question is as it is written.
const AS_WRITTEN: usize = 35;
/// Turns of a conversation at most, and how often, of a hundred, one goes on before that.
const TURNS: usize = 3;
const GOES_ON: usize = 35;

/// Questions and their answers, in any order; none of them is one that is asked at the end.
pub(super) fn questions<'a>(lessons: &'a [Lesson], ways: &Ways) -> Result<Vec<(String, &'a str)>> {
    let kept: HashSet<String> =
        lessons.iter().flat_map(|lesson| &lesson.kept).map(|kept| bare(kept)).collect();
    let chance = &mut Chance::new(1);
    let weights = |lesson: &Lesson| -> Vec<f64> {
        lesson.patterns.iter().map(|pattern| (pattern.size() as f64).sqrt()).collect()
    };
    let share = |lesson: &Lesson| SHARE + weights(lesson).iter().sum::<f64>();
    let whole: f64 = lessons.iter().map(share).sum();
    let mut all = Vec::new();
    for lesson in lessons {
        let weights = weights(lesson);
        let count = (QUESTIONS as f64 * share(lesson) / whole).round() as usize;
        let mut refused = 0;
        for _ in 0..count {
            let written = match chance.is(FIRST) {
                true => lesson.patterns[0].first(),
                false => lesson.patterns[chosen(&weights, chance)].question(|choices| chance.below(choices)),
            };
            let question = if chance.is(AS_WRITTEN) { written } else { ways.vary(&written, chance) };
            if kept.contains(&bare(&question)) {
                refused += 1;
            } else {
                all.push((question, lesson.answer.as_str()));
            }
        }
        ensure!(refused * 10 < count, "what is asked at the end is all that is learnt: {}", lesson.answer);
    }
    chance.shuffle(&mut all);
    Ok(all)
}

/// One of them, the heavier the likelier.
fn chosen(weights: &[f64], chance: &mut Chance) -> usize {
    const PARTS: usize = 1 << 20;
    let mut left = chance.below(PARTS) as f64 / PARTS as f64 * weights.iter().sum::<f64>();
    for (at, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return at;
        }
    }
    weights.len() - 1
}

/// A conversation a line, of one turn or some.
pub(super) fn conversations(questions: &[(String, &str)]) -> String {
    let chance = &mut Chance::new(2);
    let (mut rows, mut rest) = (String::new(), questions);
    while !rest.is_empty() {
        let mut turns = 1;
        while turns < TURNS.min(rest.len()) && chance.is(GOES_ON) {
            turns += 1;
        }
        let (these, others) = rest.split_at(turns);
        let (last, history) = these.split_last().expect("one turn at least");
        rows += &format!("{}\n", json!({ "instruction": last.0, "output": last.1, "history": history }));
        rest = others;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::lessons;
    use super::super::ways::Ways;
    use super::{QUESTIONS, conversations, questions};

    const WAYS: &str = "ask: how to\nverbs: run\nbefore: hi,\nafter: now\nsmall: a";

    #[test]
    fn every_lesson_is_learnt_and_nothing_that_is_asked() {
        let lessons = lessons::read("= A.\n[run|start] it\n? now run it\n\n= B.\nwhat\nwho\n").unwrap();
        let all = questions(&lessons, &Ways::read(WAYS).unwrap()).unwrap();
        let of = |answer: &str| all.iter().filter(|row| row.1 == answer).count();
        assert!(of("A.") > QUESTIONS / 3 && of("B.") > QUESTIONS / 3);
        assert!(all.iter().any(|row| row.0.starts_with("hi, run it")));
        assert!(!all.iter().any(|row| lessons::bare(&row.0) == "now run it"));
        let rows = conversations(&all);
        assert_eq!(rows.matches("\"A.\"").count() + rows.matches("\"B.\"").count(), all.len());
        assert!(rows.lines().any(|row| row.contains("\"history\":[]")));
        assert!(rows.lines().any(|row| row.contains("\"history\":[[")));
    }
}
