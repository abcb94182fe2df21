//! Streams spelled out, read token by token over a vocabulary of single bytes.
#![allow(clippy::unwrap_used)] // A failure is a failed test.

use std::fmt::Write as _;
use std::sync::Arc;

use super::{HEADER_BYTES_MAX, Harmony, Parser};
use crate::detokenizer::ByteTable;
use crate::reply::part::Piece;
use crate::tokenizer::Tokenizer;

pub(crate) const MARKS: [&str; 8] =
    ["return", "constrain", "channel", "start", "end", "message", "call", "endoftext"];

/// Every byte is a token, and behind them the marks, spelled with `<|` and `|>`: the original without its merges.
pub(crate) fn tokenizer(marks: &[&str], special: bool) -> Tokenizer {
    let marks: Vec<String> = marks.iter().map(|name| format!("<|{name}|>")).collect();
    with_added(&marks, special)
}

/// The same with any added tokens.
pub(crate) fn with_added(added: &[impl AsRef<str>], special: bool) -> Tokenizer {
    let mut later = 0x100..;
    let mut spell = |byte: u32| match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from_u32(byte).unwrap(),
        _ => char::from_u32(later.next().unwrap()).unwrap(),
    };
    let vocabulary: serde_json::Map<_, _> =
        (0..256).map(|byte| (spell(byte).to_string(), byte.into())).collect();
    let added: Vec<_> = added
        .iter()
        .zip(256..)
        .map(|(content, id)| {
            serde_json::json!({ "id": id, "content": content.as_ref(), "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    let byte_level = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false });
    let file = serde_json::json!({ "version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level,
        "decoder": byte_level, "model": { "type": "BPE", "vocab": vocabulary, "merges": [] } });
    Tokenizer::from_bytes(file.to_string().as_bytes(), None, None).unwrap()
}

struct Stage {
    tokenizer: Tokenizer,
    parser: Parser,
}

impl Stage {
    fn new() -> Self {
        let tokenizer = tokenizer(&MARKS, true);
        let table = Arc::new(ByteTable::new(&tokenizer).unwrap());
        let parser = Parser::new(Harmony::of(&tokenizer).unwrap(), table);
        Stage { tokenizer, parser }
    }

    /// The messages of a reply to a prompt, one a line: channel, role, recipient, type, text, end.
    fn read(&mut self, prompt: &str, reply: &str) -> String {
        let ids = |text: &str| self.tokenizer.encode(text, false).unwrap();
        let (prompt, reply) = (ids(prompt), ids(reply));
        self.parser.begin(&prompt);
        let mut told = String::new();
        let mut next = 0;
        for id in reply {
            tell(&mut told, &mut next, self.parser.push(id));
        }
        tell(&mut told, &mut next, self.parser.finish());
        told
    }
}

fn tell(told: &mut String, next: &mut usize, piece: Piece<'_>) {
    let Some(part) = piece.part else {
        assert_eq!(piece.text, "");
        return;
    };
    if part.begins {
        assert_eq!(part.message, *next);
        *next += 1;
        assert!(told.is_empty() || told.ends_with('\n'), "{told:?}");
        let is_plain = part.channel.name() == part.channel_name;
        told.push_str(part.channel.name());
        if !is_plain {
            write!(told, "({})", part.channel_name).unwrap();
        }
        if part.role != "assistant" {
            write!(told, " of {}", part.role).unwrap();
        }
        for (before, word) in [(" to ", part.recipient), (" as ", part.content_type)] {
            if let Some(word) = word {
                write!(told, "{before}{word}").unwrap();
            }
        }
        told.push_str(": ");
    }
    assert_eq!(part.message + 1, *next);
    told.push_str(&piece.text.replace('\n', "/"));
    if let Some(end) = part.ends {
        writeln!(told, " {end:?}").unwrap();
    }
}

/// Replies to a prompt that ends as templates end it.
#[track_caller]
fn check(cases: &[(&str, &str)]) {
    let mut stage = Stage::new();
    for (reply, expected) in cases {
        let found = stage.read("<|start|>user<|message|>Hi<|end|><|start|>assistant", reply);
        let expected: String = expected.split_inclusive(';').map(|line| line.replace(';', "\n")).collect();
        assert_eq!(found, expected, "{reply}");
    }
}

#[test]
fn sound_replies_are_read() {
    check(&[
        (
            "<|channel|>analysis<|message|>Greet.<|end|><|start|>assistant<|channel|>final<|message|>Hé, ☀!<|return|>",
            "analysis: Greet. Closed;final: Hé, ☀! Return;",
        ),
        (
            "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\":\"Paris\"}<|call|>",
            "commentary to functions.get_weather as json: {\"city\":\"Paris\"} Call;",
        ),
        (
            " to=functions.x<|channel|>commentary json<|message|>{}<|call|>",
            "commentary to functions.x as json: {} Call;",
        ),
        (
            "<|channel|>commentary to=functions.x<|constrain|>json<|message|>{}<|call|>",
            "commentary to functions.x as json: {} Call;",
        ),
        ("<|channel|>analysis to=python code<|message|>1+1<|call|>", "analysis to python as code: 1+1 Call;"),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=browser.search<|channel|>commentary\
             <|message|> {} <|call|>",
            "commentary: I look. Closed;commentary to browser.search:  {}  Call;",
        ),
        ("<|channel|>final<|message|><|return|>", "final:  Return;"),
        ("<|channel|>final<|message|> \n a\n\n<|return|>", "final:  / a// Return;"),
        // The limit of tokens.
        ("<|channel|>final<|message|>Half", "final: Half Cut;"),
        ("<|channel|>final<|message|>", "final:  Cut;"),
        ("<|channel|>final", ""),
        ("", ""),
    ]);
}

#[test]
fn marks_in_ordinary_characters_are_text() {
    let mut stage = Stage::new();
    let spelled: Vec<u32> = "<|end|><|call|>".bytes().map(u32::from).collect();
    stage.parser.begin(&[]);
    let begin = stage.tokenizer.encode("<|channel|>final<|message|>", false).unwrap();
    let spell = |byte: u32| stage.tokenizer.id(&char::from_u32(byte).unwrap().to_string()).unwrap();
    let ids: Vec<u32> = begin.into_iter().chain(spelled.into_iter().map(spell)).collect();
    let mut text = String::new();
    for id in ids {
        text.push_str(stage.parser.push(id).text);
    }
    assert_eq!(text, "<|end|><|call|>");
}

#[test]
fn headers_that_are_none_lose_no_text() {
    check(&[
        // No `<|message|>`.
        ("<|channel|>final Yes, it is.<|return|>", "final: Yes, it is. Return;"),
        (
            "<|channel|>We think <|end|><|start|>assistant<|channel|>final<|message|>A<|return|>",
            "final(): We think  Closed;final: A Return;",
        ),
        (
            "<|channel|>commentary to=functions.x <|constrain|>json{\"a\":1}<|call|>",
            "commentary to functions.x as json: {\"a\":1} Call;",
        ),
        (
            "<|channel|>commentary to=functions.x {\"a\": \"b c\"}<|call|>",
            "commentary to functions.x: {\"a\": \"b c\"} Call;",
        ),
        ("<|channel|>commentary to=functions.now<|call|>", "commentary to functions.now:  Call;"),
        // No header at all.
        ("Hello there", "final(): Hello there Cut;"),
        ("<|message|>Hello<|return|>", "final(): Hello Return;"),
        ("<|channel|><|message|>Hello<|return|>", "final(): Hello Return;"),
        (
            "<|channel|>final<|message|>A<|end|> 364 <|start|>assistant<|channel|>final<|message|>B<|return|>",
            "final: A Closed;final(): 364  Cut;final: B Return;",
        ),
        (
            "<|channel|>analysis<|message|>A<|end|>assistant<|channel|>final<|message|>B<|return|>",
            "analysis: A Closed;final: B Return;",
        ),
        (
            "<|channel|>analysis<|message|>A<|end|>\n<|channel|>final<|message|>B<|return|>",
            "analysis: A Closed;final: B Return;",
        ),
    ]);
}

#[test]
fn marks_and_names_in_wrong_places_lose_no_text() {
    check(&[
        // Marks in a message.
        (
            "<|channel|>analysis<|message|>A<|start|>assistant<|channel|>final<|message|>B<|return|>",
            "analysis: A Cut;final: B Return;",
        ),
        (
            "<|channel|>analysis<|message|>A<|channel|>final<|message|>B<|message|>C<|constrain|>D<|return|>",
            "analysis: A Cut;final: BCD Return;",
        ),
        (
            "<|channel|>analysis<|message|>A<|return|><|start|>assistant<|channel|>final<|message|>B<|return|>",
            "analysis: A Return;final: B Return;",
        ),
        ("<|channel|>final<|message|>A<|endoftext|>", "final: A Cut;"),
        // Marks twice, names that nobody knows, and names twice.
        ("<|end|><|start|><|start|>assistant<|channel|>final<|message|>A<|return|>", "final: A Return;"),
        ("<|channel|>finalx<|message|>A<|return|>", "other(finalx): A Return;"),
        ("<|channel|>analysis––commentary<|message|>A<|end|>", "other(analysis––commentary): A Closed;"),
        (
            "<|channel|>commentary to=assistant<|channel|>commentary to=functions.x<|message|>{}<|call|>",
            "commentary: to=assistant  Cut;commentary to functions.x: {} Call;",
        ),
        (
            "<|channel|>commentary to=functions.x to=functions.x<|message|>{}<|call|>",
            "commentary to functions.x: {} Call;",
        ),
        ("<|channel|>thoughts<|channel|>final<|message|>A<|return|>", "final: thoughts Cut;final: A Return;"),
        (
            "<|channel|>final The answer<|message|> is 42<|return|>",
            "final: The answer Cut;final:  is 42 Return;",
        ),
        ("<|channel|>final A b<|message|>", "final: A b Cut;final:  Cut;"),
        // Others' words.
        (
            "<|channel|>final<|message|>A<|end|><|start|>user<|message|>B<|end|>",
            "final: A Closed;other() of user: B Closed;",
        ),
        (
            "<|end|><|start|>functions.x to=assistant<|channel|>commentary<|message|>B<|end|>",
            "other(commentary) of functions.x to assistant: B Closed;",
        ),
        ("<|end|><|start|>assistantfinal<|message|>A<|return|>", "final() of assistantfinal: A Return;"),
    ]);
}

#[test]
fn characters_that_a_mark_breaks_are_replaced() {
    let mut stage = Stage::new();
    let mut ids = stage.tokenizer.encode("<|channel|>final<|message|>☀<|end|>", false).unwrap();
    let last_byte = ids.len() - 2;
    ids.remove(last_byte);
    let mut text = String::new();
    stage.parser.begin(&[]);
    for id in ids {
        text.push_str(stage.parser.push(id).text);
    }
    assert_eq!(text, "\u{FFFD}");
}

#[test]
fn a_header_without_end_becomes_text() {
    let long = "word ".repeat(HEADER_BYTES_MAX / 5 * 3);
    let name = "n".repeat(HEADER_BYTES_MAX * 2);
    let marks = "<|channel|>a b".repeat(20);
    let mut stage = Stage::new();
    let text = |told: String| {
        told.lines().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    let found = stage.read("<|start|>assistant", &format!("<|channel|>final {long}<|return|>"));
    assert_eq!(text(found), [format!("{long} Return")]);
    let found =
        stage.read("<|start|>assistant", &format!("<|channel|>commentary to={name}<|message|>{{}}<|call|>"));
    assert_eq!(found, format!("commentary: to={name}{{}} Call\n"));
    let found = stage.read("<|start|>assistant", &format!("{marks}<|message|>c<|return|>"));
    // The last header is a whole one: `a` is its channel, `b` its type.
    assert_eq!(found.matches("a b").count(), 19, "{found}");
}

#[test]
fn a_prompt_may_end_anywhere() {
    let mut stage = Stage::new();
    let mut read = |prompt: &str, reply: &str| stage.read(prompt, reply);
    assert_eq!(read("<|start|>assistant<|channel|>final<|message|>A", "B<|return|>"), "final: B Return\n");
    assert_eq!(read("<|start|>assistant<|channel|>final", "<|message|>B<|return|>"), "final: B Return\n");
    assert_eq!(
        read("<|start|>assistant<|channel|>commentary to=functions.x", " json<|message|>{}<|call|>"),
        "commentary to functions.x as json: {} Call\n"
    );
    assert_eq!(read("<|start|>", "assistant<|channel|>final<|message|>B"), "final: B Cut\n");
    assert_eq!(
        read("<|start|>user<|message|>A<|end|>", "<|start|>assistant<|message|>B"),
        "final(): B Cut\n"
    );
    assert_eq!(read("Once upon", " a time"), "final(): a time Cut\n");
}

#[test]
fn a_vocabulary_shows_whether_it_is_used() {
    assert!(Harmony::of(&tokenizer(&MARKS, true)).is_some());
    assert!(Harmony::of(&tokenizer(&MARKS, false)).is_none());
    assert!(Harmony::of(&tokenizer(&MARKS[1..], true)).is_none());
    // The end of text is not the format's own.
    let harmony = Harmony::of(&tokenizer(&MARKS[..7], true)).unwrap();
    assert!(harmony.ends_reply(256) && harmony.ends_reply(262) && !harmony.ends_reply(260));
}
