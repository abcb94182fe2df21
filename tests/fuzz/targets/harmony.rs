//! Fuzzes replies in the harmony format: any tokens, sound or not, show no mark, lose no text, and where text is cut
//! into tokens does not matter.
#![no_main]

use std::sync::{Arc, OnceLock};

use bantam_model::detokenizer::ByteTable;
use bantam_model::reply::harmony::{Harmony, Parser};
use bantam_model::reply::part::End;
use bantam_model::reply::{Message, Reply};
use bantam_model::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

/// A byte of the input below these numbers is one of them; all else is itself.
const MARKS: [&str; 8] = ["start", "channel", "message", "constrain", "end", "return", "call", "endoftext"];
/// None is a single byte, which would be a token twice.
const WORDS: [&str; 16] = [
    "assistant",
    " to=",
    "functions.x",
    "analysis",
    "commentary",
    "final",
    "json",
    "  ",
    "\n\n",
    "word word word word word word ",
    "{\"a\": 7}",
    "é☀",
    "user",
    "??",
    "to=assistant",
    "Yes, 7.",
];
/// Letters that stand in no word which a header may drop.
const COUNTED: [char; 8] = ['7', '?', '{', 'é', '☀', '\u{FFFD}', 'Q', '\0'];

fuzz_target!(|input: &[u8]| {
    let stage = stage();
    let input: Vec<u8> = input.iter().map(|&byte| if byte == b'|' { b'Q' } else { byte }).collect();
    let (found, strays) = stage.read(&tokens(&input, false));
    let (by_bytes, _) = stage.read(&tokens(&input, true));
    assert_eq!(found, by_bytes);
    check(&runs(&input), &found, &strays);
});

struct Stage {
    harmony: Harmony,
    table: Arc<ByteTable>,
}

/// The words' ids follow the bytes', the marks' follow the words'.
fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let words = WORDS.iter().map(|word| word.bytes().map(spelled).collect::<String>());
        let bytes = (0..=255).map(|byte| spelled(byte).to_string());
        let entry = |(id, token): (usize, String)| format!("{:?}:{id}", token);
        let vocabulary: Vec<String> = bytes.chain(words).enumerate().map(entry).collect();
        let added = MARKS.iter().enumerate().map(|(index, name)| {
            format!(
                r#"{{"id":{},"content":"<|{name}|>","special":true,"single_word":false,"lstrip":false,
                "rstrip":false,"normalized":false}}"#,
                256 + WORDS.len() + index
            )
        });
        let byte_level =
            r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}"#;
        let file = format!(
            r#"{{"version":"1.0","added_tokens":[{}],"pre_tokenizer":{byte_level},"decoder":{byte_level},
            "model":{{"type":"BPE","vocab":{{{}}},"merges":[]}}}}"#,
            added.collect::<Vec<_>>().join(","),
            vocabulary.join(",")
        );
        let tokenizer = Tokenizer::from_bytes(file.as_bytes(), None, None).expect("a sound tokenizer");
        let table = Arc::new(ByteTable::new(&tokenizer).expect("a sound decoder"));
        Stage { harmony: Harmony::of(&tokenizer).expect("all marks"), table }
    })
}

/// How byte-level vocabularies spell a byte.
fn spelled(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    match is_printable(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|&byte| !is_printable(byte)).count();
            char::from_u32(0x100 + before as u32).expect("below 0x144")
        }
    }
}

fn word(byte: u8) -> Option<&'static str> {
    WORDS.get(usize::from(byte).checked_sub(MARKS.len())?).copied()
}

/// Ids of the input, with words as one token or as their bytes.
fn tokens(input: &[u8], in_bytes: bool) -> Vec<u32> {
    let mut ids = Vec::new();
    for &byte in input {
        match word(byte) {
            Some(word) if in_bytes => ids.extend(word.bytes().map(u32::from)),
            Some(_) => ids.push(256 + u32::from(byte) - MARKS.len() as u32),
            None if usize::from(byte) < MARKS.len() => ids.push(256 + WORDS.len() as u32 + u32::from(byte)),
            None => ids.push(u32::from(byte)),
        }
    }
    ids
}

/// The text before each mark, and the mark.
fn runs(input: &[u8]) -> Vec<(String, &'static str)> {
    let mut runs = Vec::new();
    let mut bytes = Vec::new();
    for &byte in input {
        match MARKS.get(usize::from(byte)) {
            Some(mark) => {
                runs.push((String::from_utf8_lossy(&std::mem::take(&mut bytes)).into_owned(), *mark))
            }
            None => bytes.extend_from_slice(word(byte).map_or(&[byte][..], str::as_bytes)),
        }
    }
    runs.push((String::from_utf8_lossy(&bytes).into_owned(), "return"));
    runs
}

impl Stage {
    /// All messages, and which of them are words that had no place in a header.
    fn read(&self, ids: &[u32]) -> (Vec<Message>, Vec<usize>) {
        let message_mark = 256 + WORDS.len() as u32 + 2;
        let mut parser = Parser::new(self.harmony, self.table.clone());
        let (mut reply, mut strays, mut told) = (Reply::default(), Vec::new(), 0);
        for id in ids.iter().copied().map(Some).chain([None]) {
            let piece = id.map(|id| parser.push(id));
            let piece = match piece {
                Some(piece) => piece,
                None => parser.finish(),
            };
            let Some(part) = piece.part else {
                assert_eq!(piece.text, "");
                continue;
            };
            told += usize::from(part.begins);
            assert_eq!(part.message + 1, told);
            if id == Some(message_mark) && part.ends.is_some() {
                assert_eq!(part.ends, Some(End::Cut));
                strays.push(part.message);
            }
            reply.push_part(&part, piece.text);
        }
        assert!(reply.messages().iter().all(|message| message.end.is_some()));
        assert_eq!(reply.messages().len(), told);
        (reply.messages().to_vec(), strays)
    }
}

/// No mark is shown, text of messages is whole, and all other text is in a message or in a header, once.
fn check(runs: &[(String, &str)], found: &[Message], strays: &[usize]) {
    let all: String = found.iter().map(|message| message.text.as_str()).collect();
    let mut heads = String::new();
    for (index, message) in found.iter().enumerate() {
        if !strays.contains(&index) {
            heads.push_str(if message.role == "assistant" { "" } else { &message.role });
            heads.push_str(&message.channel_name);
            heads.push_str(message.recipient.as_deref().unwrap_or_default());
            heads.push_str(message.content_type.as_deref().unwrap_or_default());
        }
    }
    assert!(!all.contains('|') && !heads.contains('|'));
    let mut is_open = false;
    for (text, mark) in runs {
        assert!(!is_open || all.contains(text.as_str()), "{text:?} is not in {all:?}");
        is_open = *mark == "message" || (is_open && *mark == "constrain");
    }
    // A recipient or a type that comes twice is there once.
    let given: String = runs.iter().map(|(text, _)| text.as_str()).collect();
    let may_repeat =
        given.matches("to=").count() > 1 || runs.iter().filter(|(_, mark)| *mark == "constrain").count() > 1;
    for letter in COUNTED {
        let count = |text: &str| text.matches(letter).count();
        let (given, found) = (count(&given), count(&all) + count(&heads));
        assert!(found == given || (may_repeat && found < given), "{letter:?}: {found} of {given}");
    }
}
