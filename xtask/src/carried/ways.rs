//! The same question as other people would type it: `ways.txt` says what may stand for what, and the rest are slips of
//! the hand.

use anyhow::{Context, Result, ensure};

use super::chance::Chance;
use super::lessons::tidy;

/// Times in a hundred.
const ASKED_OTHERWISE: usize = 50;
const SAME: usize = 25;
const LEFT_OUT: usize = 12;
const AROUND: usize = 8;
const SLIP: usize = 8;

#[derive(Default)]
pub(super) struct Ways {
    same: Vec<Vec<String>>,
    ask: Vec<String>,
    verbs: Vec<String>,
    before: Vec<String>,
    after: Vec<String>,
    small: Vec<String>,
}

impl Ways {
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut ways = Self::default();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let place = || format!("line {}: {line}", number + 1);
            let (kind, rest) =
                line.split_once(": ").context("expected a kind and `: `").with_context(place)?;
            let phrases = rest.split('|').map(|phrase| phrase.trim().to_owned());
            let words = rest.split_whitespace().map(str::to_owned);
            match kind {
                "same" => ways.same.push(phrases.collect()),
                "ask" => ways.ask.extend(phrases),
                "before" => ways.before.extend(phrases),
                "after" => ways.after.extend(phrases),
                "verbs" => ways.verbs.extend(words),
                "small" => ways.small.extend(words),
                _ => Err(anyhow::anyhow!(
                    "expected same, ask, verbs, before, after or small, found {kind}; {}",
                    place()
                ))?,
            }
        }
        let filled = [&ways.ask, &ways.verbs, &ways.before, &ways.after, &ways.small];
        ensure!(filled.iter().all(|list| !list.is_empty()), "expected ask, verbs, before, after and small");
        Ok(ways)
    }

    /// The question in some other way, or as it is.
    pub(super) fn vary(&self, question: &str, chance: &mut Chance) -> String {
        let mut text = question.trim_end_matches('?').trim_end().to_owned();
        if text.is_empty() {
            return question.to_owned();
        }
        text = self.asked(&text, chance);
        text = self.renamed(text, chance);
        if chance.is(LEFT_OUT) {
            text = self.shortened(&text, chance);
        }
        if chance.is(SLIP) {
            text = slip(&text, chance);
        }
        if chance.is(AROUND) {
            text = format!("{} {text}", chance.of(&self.before));
        }
        if chance.is(AROUND) {
            text = format!("{text} {}", chance.of(&self.after));
        }
        written(&tidy(&text), chance)
    }

    /// With other words before what is asked for.
    fn asked(&self, text: &str, chance: &mut Chance) -> String {
        let rest = self.ask.iter().find_map(|ask| text.strip_prefix(ask.as_str())?.strip_prefix(' '));
        let first = text.split(' ').next().unwrap_or_default();
        let is_verb = self.verbs.iter().any(|verb| verb == first);
        match rest.or(is_verb.then_some(text)) {
            Some(rest) if rest.contains(' ') && chance.is(ASKED_OTHERWISE) => {
                format!("{} {rest}", chance.of(&self.ask))
            }
            _ => text.to_owned(),
        }
    }

    fn renamed(&self, mut text: String, chance: &mut Chance) -> String {
        for group in &self.same {
            for phrase in group {
                let Some(at) = whole(&text, phrase) else { continue };
                if chance.is(SAME) {
                    text.replace_range(at..at + phrase.len(), chance.of(group).as_str());
                    break;
                }
            }
        }
        text
    }

    /// Without one of the words that say little, where enough remain.
    fn shortened(&self, text: &str, chance: &mut Chance) -> String {
        let mut words: Vec<&str> = text.split(' ').collect();
        let little: Vec<usize> =
            (0..words.len()).filter(|&at| self.small.iter().any(|small| small == words[at])).collect();
        if words.len() > 3 && !little.is_empty() {
            words.remove(*chance.of(&little));
        }
        words.join(" ")
    }
}

/// Where a phrase stands as whole words.
fn whole(text: &str, phrase: &str) -> Option<usize> {
    let is_word = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || b"-_/.'".contains(b));
    let bytes = text.as_bytes();
    let stands = |&at: &usize| {
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        !is_word(before) && !is_word(bytes.get(at + phrase.len()))
    };
    text.match_indices(phrase).map(|(at, _)| at).find(|at| stands(at))
}

/// One slip of the hand in a word of four letters or more: two letters in the wrong order, one missing, twice, or the
/// wrong one.
fn slip(text: &str, chance: &mut Chance) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let long = |word: &String| word.len() > 3 && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let long: Vec<usize> = (0..words.len()).filter(|&at| long(&words[at])).collect();
    if long.is_empty() {
        return text.to_owned();
    }
    let word = &mut words[*chance.of(&long)];
    let at = chance.below(word.len() - 1);
    match chance.below(4) {
        0 => {
            let letter = word.remove(at);
            word.insert(at + 1, letter);
        }
        1 => drop(word.remove(at)),
        2 => word.insert(at, char::from(word.as_bytes()[at])),
        _ => {
            let letter = char::from(b"abcdefghijklmnopqrstuvwxyz"[chance.below(26)]);
            word.replace_range(at..=at, letter.encode_utf8(&mut [0; 4]));
        }
    }
    words.join(" ")
}

/// As it is written: small and large letters, marks at the end.
fn written(text: &str, chance: &mut Chance) -> String {
    let mut text = text.to_owned();
    match chance.below(50) {
        0 => text.make_ascii_uppercase(),
        1..=17 => text[..1].make_ascii_uppercase(),
        _ => {}
    }
    if chance.is(30) {
        text = text.replace("bantam", "Bantam");
    }
    let mark = match chance.below(20) {
        0..=9 => "?",
        10 => ".",
        11 => " ?",
        12 => "!",
        13 => "??",
        _ => "",
    };
    if text.ends_with(['?', '!', '.']) { text } else { format!("{text}{mark}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::chance::Chance;
    use super::{Ways, slip, whole};

    const WAYS: &str =
        "# c\n\nask: how do i | how to\nverbs: run\nsame: model | llm\nbefore: hi,\nafter: now\nsmall: a";

    #[test]
    fn a_question_is_asked_in_many_ways() {
        let ways = Ways::read(WAYS).unwrap();
        let chance = &mut Chance::new(1);
        let all: BTreeSet<String> = (0..2000).map(|_| ways.vary("run a model?", chance)).collect();
        for expected in ["run a model", "how to run a model", "How do i run a llm?", "hi, run a model now"] {
            assert!(all.contains(expected), "{expected:?} of {all:?}");
        }
        assert!(all.iter().any(|question| question.contains("modle")));
        assert_eq!(ways.vary("?", chance), "?");
    }

    #[test]
    fn the_same_chance_asks_the_same() {
        let ways = Ways::read(WAYS).unwrap();
        let all = |seed| -> Vec<String> {
            let chance = &mut Chance::new(seed);
            (0..50).map(|_| ways.vary("how do i run a model", chance)).collect()
        };
        assert_eq!(all(3), all(3));
        assert_ne!(all(3), all(4));
    }

    #[test]
    fn words_are_found_whole() {
        assert_eq!(whole("remodel a model", "model"), Some(10));
        assert_eq!(whole("my-model", "model"), None);
    }

    #[test]
    fn a_slip_changes_a_long_word_alone() {
        let chance = &mut Chance::new(5);
        for _ in 0..200 {
            let slipped = slip("is it GGUF --flag there", chance);
            assert!(slipped.starts_with("is it GGUF --flag "), "{slipped}");
        }
        assert_eq!(slip("is it", chance), "is it");
    }

    #[test]
    fn lines_of_no_kind_are_refused() {
        let said = |text: &str| format!("{:#}", Ways::read(text).err().unwrap());
        assert!(said("other: x").contains("found other"));
        assert!(said("nothing").contains("line 1: nothing: expected a kind"));
        assert!(said("ask: x").contains("expected ask, verbs"));
    }
}
