//! What a tokenizer's own patterns may cost, asked before the library runs them.
//!
//! The library takes any regular expression from `tokenizer.json`. One that backtracks too often ends its search
//! early and without a word, so the rest of the text would be split wrongly; others take time with the square of the
//! text; and replacements can make a text grow without end. The patterns of the published tokenizers do neither and
//! are known by their spelling. Every other one is first run over the text here, against the clock.

use std::time::{Duration, Instant};

use fancy_regex::Regex;
use serde_json::Value;

use crate::foreign::clipped;

/// Patterns whose time is linear: the shapes of published byte-level tokenizers.
/// `tests/immunity.rs` measures that.
const LINEAR: [&str; 5] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    // A newer one knows capitals and marks.
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    r"\s+",
];
/// A pattern may take this long, and as long again for each `PART_BYTES` of text: a hundred times what those take.
const PATIENCE: Duration = Duration::from_secs(1);
const PART_BYTES: usize = 256 << 10;
const WINDOW_BYTES: usize = 4 << 10;
/// What the text may have grown to after all replacements.
const GROWN_BYTES_MAX: usize = 256 << 20;

/// The patterns of one tokenizer that are not known to be linear, and how much its normalizer lets a text grow.
#[derive(Debug)]
pub(crate) struct PatternGuard {
    patterns: Vec<(String, Regex)>,
    growth: usize,
}

impl PatternGuard {
    /// Reads the parts of a tokenizer that hold patterns.
    pub(crate) fn new(normalizer: &Value, pre_tokenizer: &Value) -> Result<Self, String> {
        let mut found = Vec::new();
        collect(normalizer, &mut found);
        collect(pre_tokenizer, &mut found);
        let mut patterns = Vec::new();
        for pattern in found.into_iter().filter(|pattern| !LINEAR.contains(pattern)) {
            let regex = Regex::new(pattern).map_err(clipped)?;
            patterns.push((pattern.to_owned(), regex));
        }
        Ok(Self { patterns, growth: growth(normalizer) })
    }

    /// Whether the library may split `text`; the reason where it may not.
    pub(crate) fn check(&self, text: &str) -> Result<(), String> {
        if text.len().saturating_mul(self.growth) > GROWN_BYTES_MAX && self.growth > 1 {
            return Err(format!(
                "a text of {} bytes, which the normalizer can make {} times as long",
                text.len(),
                self.growth
            ));
        }
        for (pattern, regex) in &self.patterns {
            try_out(regex, text)
                .map_err(|what| format!("the tokenizer's pattern {:?} {what}", clipped(pattern)))?;
        }
        Ok(())
    }
}

/// Runs a pattern over the text in pieces, small ones first: one search cannot be interrupted, and one that takes the
/// square of its text shows it in a small piece.
fn try_out(regex: &Regex, text: &str) -> Result<(), &'static str> {
    let patience = PATIENCE * (1 + text.len() / PART_BYTES) as u32;
    let mut window = WINDOW_BYTES;
    loop {
        let begin = Instant::now();
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.ceil_char_boundary(window));
            rest = after;
            for found in regex.find_iter(piece) {
                if found.is_err() {
                    return Err("gives up on this text");
                }
                if begin.elapsed() > patience {
                    return Err("takes too long on this text");
                }
            }
            if begin.elapsed() > patience {
                return Err("takes too long on this text");
            }
        }
        if window >= text.len() {
            return Ok(());
        }
        window *= 4;
        // The square of the text would take four times as long.
        if begin.elapsed() * 5 > patience {
            return Err("takes too long on this text");
        }
    }
}

/// Every `{"Regex": "…"}`.
fn collect<'v>(part: &'v Value, found: &mut Vec<&'v str>) {
    match part {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("Regex", Value::String(pattern)) => found.push(pattern),
                    (_, value) => collect(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// How many times longer the replacements of a normalizer can make a text, one after the other.
fn growth(normalizer: &Value) -> usize {
    let parts = normalizer.get("normalizers").and_then(Value::as_array);
    if let Some(parts) = parts {
        return parts.iter().map(growth).fold(1, usize::saturating_mul);
    }
    let Some(content) = normalizer.get("content").and_then(Value::as_str) else { return 1 };
    let pattern = normalizer.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
    match pattern {
        Some(pattern) => content.len().div_ceil(pattern.len().max(1)).max(1),
        // A regular expression may match nothing, between any two bytes.
        None => content.len() + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn split(pattern: &str) -> PatternGuard {
        let part =
            json!({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}]});
        PatternGuard::new(&Value::Null, &part).unwrap()
    }

    #[test]
    fn patterns_that_give_up_are_found() {
        let text = "a".repeat(100_000) + "!";
        for pattern in [r"(a+)+\1$", r"(?:(a|aa)+)\1$", r"(?=(a+)+$)b"] {
            let message = split(pattern).check(&text);
            assert!(message.is_err_and(|message| message.contains("on this text")), "{pattern}");
        }
        for pattern in ["(a+)+$", r"\p{N}{1,3}(?=(?:\p{N}{3})*$)", LINEAR[0]] {
            assert_eq!(split(pattern).check("12345 aaa"), Ok(()), "{pattern}");
        }
        assert_eq!(split(LINEAR[1]).patterns.len(), 0);
    }

    #[test]
    fn patterns_that_take_the_square_of_the_text_are_stopped() {
        let begin = Instant::now();
        let message = split(".*[^A-Z]|[A-Z]").check(&"A".repeat(1 << 20));
        assert!(message.is_err_and(|message| message.contains("too long")));
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn replacements_that_multiply_are_counted() {
        let replace = |pattern: Value, content: &str| {
            let kind = "Replace";
            json!({"type": kind, "pattern": pattern, "content": content})
        };
        let bomb = replace(json!({"String": "a"}), &"a".repeat(1000));
        let parts = json!({"type": "Sequence", "normalizers": [bomb, bomb, {"type": "NFC"}]});
        let guard = PatternGuard::new(&parts, &Value::Null).unwrap();
        assert_eq!(guard.growth, 1_000_000);
        assert!(guard.check("aaa").is_ok() && guard.check(&"a".repeat(1000)).is_err());
        assert_eq!(growth(&replace(json!({"String": " "}), "\u{2581}")), 3);
    }
}
