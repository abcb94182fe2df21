//! Byte pairs, as byte-level tokenizers have them: bytes become signs, and the pair of signs that stands side by side
//! most often becomes a sign of its own, again and again. For a text of a few hundred kilobytes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The sign of a byte: itself where it can be seen, else one above 255.
fn sign(byte: u8) -> char {
    let is_seen = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let hidden = (0..byte).filter(|&byte| !is_seen(byte)).count() as u32;
    let code = if is_seen(byte) { u32::from(byte) } else { 256 + hidden };
    char::from_u32(code).expect("codes up to 323 are characters")
}

/// A text cut as GPT-2's pattern cuts it: short forms, words, numbers and signs with a space before them, space. For
/// ASCII alone.
fn words(text: &str) -> Vec<&str> {
    let class = |byte: u8| match byte {
        b if b.is_ascii_alphabetic() => 0,
        b if b.is_ascii_digit() => 1,
        b if b.is_ascii_whitespace() || b == 0x0b => 2,
        _ => 3,
    };
    let bytes = text.as_bytes();
    let run = |from: usize| bytes[from..].iter().take_while(|&&b| class(b) == class(bytes[from])).count();
    let (mut all, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let short = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
        let length = if let Some(short) = short.iter().find(|short| text[at..].starts_with(**short)) {
            short.len()
        } else if class(bytes[at]) != 2 {
            run(at)
        } else if bytes[at] == b' ' && bytes.get(at + 1).is_some_and(|&next| class(next) != 2) {
            1 + run(at + 1)
        } else {
            // The last of it belongs to what follows.
            let space = run(at);
            if at + space < bytes.len() && space > 1 { space - 1 } else { space }
        };
        all.push(&text[at..at + length]);
        at += length;
    }
    all
}

/// A `tokenizer.json` of `size` tokens; the special ones come first.
pub(super) fn tokenizer(texts: &[String], specials: &[&str], size: usize) -> Value {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for text in texts {
        assert!(text.is_ascii(), "texts are made ASCII before");
        words(text).into_iter().for_each(|word| *counts.entry(word).or_default() += 1);
    }
    let mut known: Vec<(Vec<String>, usize)> = counts
        .into_iter()
        .map(|(word, count)| (word.bytes().map(|byte| sign(byte).to_string()).collect(), count))
        .collect();
    let mut vocabulary: Vec<String> = specials.iter().map(|&special| special.to_owned()).collect();
    vocabulary.extend((0..=255).map(|byte| sign(byte).to_string()));
    let mut merges = Vec::new();
    while vocabulary.len() < size {
        let Some((left, right)) = commonest(&known) else { break };
        known.iter_mut().for_each(|(signs, _)| join(signs, &left, &right));
        vocabulary.push(format!("{left}{right}"));
        merges.push(json!([left, right]));
    }
    let ids: serde_json::Map<String, Value> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added = specials.iter().enumerate().map(|(id, content)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "post_processor": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": ids, "merges": merges,
        },
    })
}

/// The commonest pair that stands twice at least, of several the first in their order.
fn commonest(known: &[(Vec<String>, usize)]) -> Option<(String, String)> {
    let mut pairs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (signs, count) in known {
        for pair in signs.windows(2) {
            *pairs.entry((&pair[0], &pair[1])).or_default() += count;
        }
    }
    let (pair, count) = pairs.into_iter().min_by_key(|&(pair, count)| (Reverse(count), pair))?;
    (count > 1).then(|| (pair.0.to_owned(), pair.1.to_owned()))
}

fn join(signs: &mut Vec<String>, left: &str, right: &str) {
    let mut at = 0;
    while at + 1 < signs.len() {
        if signs[at] == left && signs[at + 1] == right {
            signs[at].push_str(right);
            signs.remove(at + 1);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{sign, tokenizer, words};

    #[test]
    fn a_text_is_cut_as_the_pattern_cuts_it() {
        assert_eq!(
            words("it's 123ab (x);\n  y \tz \n"),
            ["it", "'s", " 123", "ab", " (", "x", ");", "\n ", " y", " ", "\t", "z", " \n"]
        );
    }

    #[test]
    fn signs_are_those_of_byte_level_tokenizers() {
        assert_eq!((sign(b' '), sign(b'\n'), sign(b'a'), sign(0x7f)), ('Ġ', 'Ċ', 'a', 'ġ'));
    }

    #[test]
    fn the_commonest_pair_is_joined_first() {
        let made = tokenizer(&["low low lower".to_owned()], &["<end>"], 1 + 256 + 3);
        let merges = made["model"]["merges"].to_string();
        assert_eq!(merges, r#"[["l","o"],["lo","w"],["Ġ","low"]]"#);
        assert_eq!(made["model"]["vocab"]["<end>"], 0);
    }
}
