//! `lessons.txt`: an answer, the questions that it is for, and those that are asked at the end and never learnt.
//! A question may leave a choice, `[run|start] a model`; what it can become must belong to one answer alone.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

/// A question whose parts are to be chosen: of each part one.
pub(super) struct Pattern {
    parts: Vec<Vec<String>>,
}

/// An answer and what it answers.
pub(super) struct Lesson {
    pub(super) answer: String,
    pub(super) patterns: Vec<Pattern>,
    /// Asked at the end, never learnt.
    pub(super) kept: Vec<String>,
}

impl Pattern {
    fn read(line: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = line;
        while let Some((plain, choice)) = rest.split_once('[') {
            let (choice, after) = choice.split_once(']').context("expected `]` after `[`, found none")?;
            parts.push(vec![plain.to_owned()]);
            parts.push(choice.split('|').map(str::to_owned).collect());
            rest = after;
        }
        ensure!(!rest.contains(']'), "expected `[` before `]`, found none");
        parts.push(vec![rest.to_owned()]);
        Ok(Self { parts })
    }

    /// How many questions it can become.
    pub(super) fn size(&self) -> usize {
        self.parts.iter().map(Vec::len).product()
    }

    /// The question of these choices, `choose` being given how many there are.
    pub(super) fn question(&self, mut choose: impl FnMut(usize) -> usize) -> String {
        let chosen: String = self.parts.iter().map(|part| part[choose(part.len())].as_str()).collect();
        tidy(&chosen)
    }

    /// The one of these that is written first.
    pub(super) fn first(&self) -> String {
        self.question(|_| 0)
    }

    /// All that it can become.
    fn questions(&self) -> impl Iterator<Item = String> {
        (0..self.size()).map(|mut number| {
            self.question(|choices| {
                let chosen = number % choices;
                number /= choices;
                chosen
            })
        })
    }
}

/// Words with one space between them.
pub(super) fn tidy(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ,", ",").replace(" ?", "?")
}

/// What is the same question however it is written: no case, no marks.
pub(super) fn bare(question: &str) -> String {
    let kept = question.to_ascii_lowercase();
    let kept: String = kept.chars().filter(|&c| c.is_ascii_alphanumeric() || " /_.-".contains(c)).collect();
    kept.trim_end_matches('.').trim().to_owned()
}

pub(super) fn read(text: &str) -> Result<Vec<Lesson>> {
    ensure!(text.is_ascii(), "expected ASCII alone: the tokenizer's cuts are for it");
    let mut lessons: Vec<Lesson> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let place = || format!("line {}: {line}", number + 1);
        if let Some(answer) = line.strip_prefix("= ") {
            lessons.push(Lesson { answer: answer.to_owned(), patterns: Vec::new(), kept: Vec::new() });
        } else if !line.trim().is_empty() {
            let lesson =
                lessons.last_mut().context("expected an answer (`= ...`) first").with_context(place)?;
            match line.strip_prefix("? ") {
                Some(kept) => lesson.kept.push(kept.to_owned()),
                None => lesson.patterns.push(Pattern::read(line).with_context(place)?),
            }
        }
    }
    for lesson in &lessons {
        ensure!(!lesson.patterns.is_empty(), "expected questions, found none: {}", lesson.answer);
    }
    check(&lessons)?;
    Ok(lessons)
}

/// A question has one answer, and what is asked at the end is nowhere learnt.
fn check(lessons: &[Lesson]) -> Result<()> {
    let mut owners: HashMap<String, &str> = HashMap::new();
    for lesson in lessons {
        for question in lesson.patterns.iter().flat_map(Pattern::questions) {
            let owner = *owners.entry(bare(&question)).or_insert(&lesson.answer);
            ensure!(
                owner == lesson.answer,
                "{question:?} has two answers:\n{owner}\n{}\nmake the lessons differ",
                lesson.answer
            );
        }
    }
    for kept in lessons.iter().flat_map(|lesson| &lesson.kept) {
        ensure!(!owners.contains_key(&bare(kept)), "{kept:?} is asked at the end and must not be learnt");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{bare, read};

    #[test]
    fn choices_make_questions() {
        let lessons = read("= Yes.\n[can|may] i [really|] ask\nplain\n? could i ask\n").unwrap();
        let all: Vec<String> = lessons[0].patterns[0].questions().collect();
        assert_eq!(all, ["can i really ask", "may i really ask", "can i ask", "may i ask"]);
        assert_eq!(lessons[0].patterns[0].first(), "can i really ask");
        assert_eq!((lessons[0].patterns.len(), lessons[0].patterns[1].size()), (2, 1));
        assert_eq!(lessons[0].kept, ["could i ask"]);
    }

    #[test]
    fn marks_and_case_make_no_other_question() {
        assert_eq!(bare("What is GGUF?"), bare("what is gguf"));
        assert_ne!(bare("/load"), bare("load"));
    }

    #[test]
    fn lessons_that_contradict_are_refused() {
        let said = |text: &str| format!("{:#}", read(text).err().unwrap());
        assert!(said("= A.\n[who|what] is it\n\n= B.\nWhat is it?\n").contains("two answers"));
        assert!(said("= A.\nwho is it\n? Who is it?\n").contains("must not be learnt"));
        assert!(said("= A.\nwho [is it\n").contains("line 2: who [is it: expected `]`"));
        assert!(said("= A.\nwho] is it\n").contains("expected `[`"));
        assert!(said("who is it\n").contains("an answer (`= ...`) first"));
        assert!(said("= A.\n\n= B.\nx\n").contains("expected questions, found none: A."));
    }
}
