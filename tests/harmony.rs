//! Replies in channels over a real vocabulary: random conversations, cut into random tokens, come out as they went in;
//! random tokens lose nothing and show no mark.

// Helpers of a test may unwrap: a failure is a failed test.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;

use bantam_model::detokenizer::ByteTable;
use bantam_model::reply::harmony::{HEADER_BYTES_MAX, Harmony, Parser};
use bantam_model::reply::part::{Channel, End, Piece};
use bantam_model::reply::{Message, Reply};
use bantam_model::tokenizer::Tokenizer;
use bantam_tests::model_folder;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;

struct Vocabulary {
    tokenizer: Tokenizer,
    table: Arc<ByteTable>,
    /// Tokens by their bytes; marks left out.
    by_bytes: HashMap<Vec<u8>, u32>,
    longest: usize,
}

impl Vocabulary {
    fn new() -> Self {
        let read = |name: &str| std::fs::read(model_folder("gpt_oss-bf16").join(name)).unwrap();
        let (config, map) = (read("tokenizer_config.json"), read("special_tokens_map.json"));
        let tokenizer = Tokenizer::from_bytes(&read("tokenizer.json"), Some(&config), Some(&map)).unwrap();
        let table = Arc::new(ByteTable::new(&tokenizer).unwrap());
        let texts = (0..tokenizer.id_end()).filter(|&id| !tokenizer.is_special(id));
        let by_bytes: HashMap<_, _> = texts.map(|id| (table.bytes(id).to_vec(), id)).collect();
        let longest = by_bytes.keys().map(Vec::len).max().unwrap();
        Vocabulary { tokenizer, table, by_bytes, longest }
    }

    fn parser(&self) -> Parser {
        Parser::new(Harmony::of(&self.tokenizer).unwrap(), self.table.clone())
    }

    fn mark(&self, name: &str) -> u32 {
        self.tokenizer.id(&format!("<|{name}|>")).unwrap()
    }

    /// Cuts text at random: any token that continues it will do, single bytes included. What models write.
    fn cut(&self, text: &str, random: &mut dyn FnMut() -> usize) -> Vec<u32> {
        let (mut ids, mut rest) = (Vec::new(), text.as_bytes());
        while !rest.is_empty() {
            let most = self.longest.min(rest.len());
            let fitting: Vec<_> = (1..=most)
                .filter_map(|length| Some((length, *self.by_bytes.get(&rest[..length])?)))
                .collect();
            let (length, id) = fitting[random() % fitting.len()];
            ids.push(id);
            rest = &rest[length..];
        }
        ids
    }

    /// Reads with the longest tokens, or one byte a token, or anything between.
    fn ids(&self, stream: &[Bit], random: &mut dyn FnMut() -> usize) -> Vec<u32> {
        let cut = |bit: &Bit| match bit {
            Bit::Mark(name) => vec![self.mark(name)],
            Bit::Text(text) => self.cut(text, random),
        };
        stream.iter().flat_map(cut).collect()
    }

    fn read(&self, ids: &[u32]) -> Vec<Message> {
        self.read_with_strays(ids).0
    }

    /// Also says which messages are words without a place: they show the channel of the header that follows.
    fn read_with_strays(&self, ids: &[u32]) -> (Vec<Message>, Vec<usize>) {
        let message = self.mark("message");
        let mut parser = self.parser();
        let mut reply = Reply::default();
        let (mut told, mut strays) = (0, Vec::new());
        let mut take = |id: Option<u32>, piece: Piece<'_>| match piece.part {
            None => assert_eq!(piece.text, ""),
            Some(part) => {
                told += usize::from(part.begins);
                assert_eq!(part.message + 1, told, "every message begins once, in order");
                if id == Some(message) && part.ends.is_some() {
                    strays.push(part.message);
                }
                reply.push_part(&part, piece.text);
            }
        };
        ids.iter().for_each(|&id| take(Some(id), parser.push(id)));
        take(None, parser.finish());
        assert!(reply.messages().iter().all(|message| message.end.is_some()), "every message ends");
        assert_eq!(reply.messages().len(), told);
        (reply.messages().to_vec(), strays)
    }
}

/// What a stream is made of.
#[derive(Debug, Clone, PartialEq)]
enum Bit {
    Mark(&'static str),
    Text(String),
}

/// A message as it is meant, and where its recipient and type are written.
#[derive(Debug, Clone)]
struct Meant {
    channel: Channel,
    recipient: Option<String>,
    content_type: Option<String>,
    text: String,
    end: End,
    recipient_first: bool,
    is_constrained: bool,
}

impl Meant {
    /// Everything after `<|start|>assistant`.
    fn bits(&self) -> Vec<Bit> {
        let to = self.recipient.as_ref().map_or(String::new(), |name| format!(" to={name}"));
        let (before, after) = if self.recipient_first { (to, String::new()) } else { (String::new(), to) };
        let mut header = format!("{}{after}", self.channel.name());
        let mut bits = vec![Bit::Text(before), Bit::Mark("channel")];
        match &self.content_type {
            Some(name) if self.is_constrained => {
                header.push(' ');
                bits.extend([Bit::Text(header), Bit::Mark("constrain"), Bit::Text(name.clone())]);
            }
            Some(name) => bits.push(Bit::Text(format!("{header} {name}"))),
            None => bits.push(Bit::Text(header)),
        }
        let end = match self.end {
            End::Closed => "end",
            End::Return => "return",
            End::Call => "call",
            End::Cut => unreachable!("nothing is meant to be cut off"),
        };
        bits.extend([Bit::Mark("message"), Bit::Text(self.text.clone()), Bit::Mark(end)]);
        bits
    }
}

/// Text with everything that could confuse: marks spelled out, words of headers, characters of many bytes.
fn texts() -> impl Strategy<Value = String> {
    let bits = prop_oneof![
        Just("<|channel|>final<|message|>".to_owned()),
        Just("<|end|><|start|>assistant".to_owned()),
        Just(" to=functions.x".to_owned()),
        Just("analysis".to_owned()),
        Just("日本語 ☀️ é\u{0301}".to_owned()),
        Just("{\"city\": \"Paris\", \"n\": [1, 2]}".to_owned()),
        Just("\n\n  ".to_owned()),
        ".{0,12}",
    ];
    proptest::collection::vec(bits, 0..6).prop_map(|bits| bits.concat())
}

fn meant() -> impl Strategy<Value = Meant> {
    let channel = prop_oneof![Just(Channel::Analysis), Just(Channel::Commentary), Just(Channel::Final)];
    let tool = prop_oneof![
        Just("functions.get_weather".to_owned()),
        Just("python".to_owned()),
        "functions\\.[a-zA-Z_-]{1,64}",
    ];
    let kind = prop_oneof![Just("json".to_owned()), Just("code".to_owned()), Just("text/plain".to_owned())];
    let end = prop_oneof![Just(End::Closed), Just(End::Return), Just(End::Call)];
    let head = (channel, proptest::option::of(tool), proptest::option::of(kind));
    (head, texts(), end, any::<(bool, bool)>()).prop_map(
        |((channel, recipient, content_type), text, end, (recipient_first, is_constrained))| Meant {
            channel,
            recipient,
            content_type,
            text,
            end,
            recipient_first,
            is_constrained,
        },
    )
}

fn run<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = ProptestConfig { failure_persistence: None, cases, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(strategy, |value| {
        test(value);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// A generator that `cut` can ask: the seed is proptest's.
fn random(seed: u64) -> impl FnMut() -> usize {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize
    }
}

#[test]
fn conversations_come_out_as_they_went_in() {
    let vocabulary = Vocabulary::new();
    let conversations = (proptest::collection::vec(meant(), 1..6), any::<u64>());
    run(1000, &conversations, |(conversation, seed)| {
        let mut bits = Vec::new();
        for (index, message) in conversation.iter().enumerate() {
            if index > 0 {
                bits.extend([Bit::Mark("start"), Bit::Text("assistant".to_owned())]);
            }
            bits.extend(message.bits());
        }
        let found = vocabulary.read(&vocabulary.ids(&bits, &mut random(seed)));
        assert_eq!(found.len(), conversation.len());
        for (found, meant) in found.iter().zip(&conversation) {
            assert_eq!(found.text, meant.text);
            assert_eq!(
                (found.channel, &found.recipient, &found.content_type, found.end),
                (meant.channel, &meant.recipient, &meant.content_type, Some(meant.end))
            );
            assert_eq!(
                (found.role.as_str(), found.channel_name.as_str()),
                ("assistant", meant.channel.name())
            );
            assert_eq!(found.tool(), meant.recipient.as_deref());
        }
    });
}

/// What the original template writes of a message is read back as that message.
#[test]
fn rendered_messages_are_read_back() {
    let vocabulary = Vocabulary::new();
    let golden = std::fs::read(model_folder("gpt_oss-bf16").join("golden_text.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let (mut read_back, mut calls) = (0, 0);
    for case in golden["chat"].as_array().unwrap() {
        let ids = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        let mut parser = vocabulary.parser();
        let mut replies: Vec<(bool, Reply)> = Vec::new();
        for id in ids {
            let piece = parser.push(id);
            if let Some(part) = piece.part {
                if part.begins {
                    replies.push((part.role == "assistant", Reply::default()));
                }
                replies.last_mut().unwrap().1.push_part(&part, piece.text);
            }
        }
        assert!(parser.finish().part.is_none(), "the prompt ends within a header");
        let found: Vec<Value> =
            replies.iter().filter(|(is_own, _)| *is_own).map(|(_, reply)| reply.message()).collect();
        let messages = case["messages"].as_array().unwrap().iter();
        let expected: Vec<Value> =
            messages.filter(|message| message["role"] == "assistant").cloned().collect();
        assert_eq!(found, expected, "{}", case["name"]);
        read_back += found.len();
        calls += replies.iter().map(|(_, reply)| reply.tool_calls().count()).sum::<usize>();
    }
    assert!(read_back >= 5 && calls == 1, "{read_back} messages, {calls} calls");
}

/// Marks and header words in any order, with texts between them.
fn streams() -> impl Strategy<Value = Vec<Bit>> {
    let mark = |name| Just(Bit::Mark(name));
    let word = |text: &str| Just(Bit::Text(text.to_owned()));
    let bit = prop_oneof![
        mark("start"),
        mark("channel"),
        mark("message"),
        mark("constrain"),
        mark("end"),
        mark("return"),
        mark("call"),
        mark("endoftext"),
        word("assistant"),
        word("assist"),
        word("analysis"),
        word(" final "),
        word(" to=functions.x"),
        word("to="),
        word("json"),
        word(" ??"),
        texts().prop_map(Bit::Text),
        (1..600_usize).prop_map(|count| Bit::Text("word ".repeat(count))),
        // About as long as a header may be.
        (0..40_usize).prop_map(|less| Bit::Text(format!(" to={}", "n".repeat(HEADER_BYTES_MAX - less)))),
        (0..40_usize).prop_map(|less| Bit::Text(format!("analysis{}", " ".repeat(HEADER_BYTES_MAX - less)))),
    ];
    proptest::collection::vec(bit, 0..30)
}

#[test]
fn borders_of_tokens_mean_nothing() {
    let vocabulary = Vocabulary::new();
    run(600, &(streams(), any::<u64>()), |(stream, seed)| {
        let bytes = vocabulary.read(&vocabulary.ids(&stream, &mut || 0));
        let any = vocabulary.read(&vocabulary.ids(&stream, &mut random(seed)));
        assert_eq!(bytes, any);
    });
}

#[test]
fn no_stream_loses_text() {
    let vocabulary = Vocabulary::new();
    run(600, &(streams(), any::<u64>()), |(stream, seed)| {
        let (found, strays) = vocabulary.read_with_strays(&vocabulary.ids(&stream, &mut random(seed)));
        // What came in a message came out of one, whole.
        let all: String = found.iter().map(|message| message.text.as_str()).collect();
        let mut open = false;
        for bit in &stream {
            match bit {
                Bit::Mark("message") => open = true,
                Bit::Mark("constrain") => {}
                Bit::Mark(_) => open = false,
                Bit::Text(text) if open => assert!(all.contains(text.as_str()), "{text:?} is not in {all:?}"),
                Bit::Text(_) => {}
            }
        }
        // Elsewhere, text is in a message or a word of its header, and only a word that came twice is there once.
        // The letters counted are in no name that a header without message may drop.
        let given: String =
            stream.iter().map(|bit| if let Bit::Text(text) = bit { text } else { "" }).collect();
        let own = found.iter().enumerate().filter(|(index, _)| !strays.contains(index));
        let heads = own.flat_map(|(_, message)| {
            let role = (message.role != "assistant").then_some(&message.role);
            [role, Some(&message.channel_name), message.recipient.as_ref(), message.content_type.as_ref()]
        });
        let heads: String = heads.flatten().map(String::as_str).collect();
        let is_twice = stream.iter().filter(|bit| matches!(bit, Bit::Mark("constrain"))).count() > 1
            || given.matches("to=").count() > 1;
        for letter in ['w', '?', 'P', '☀', '{', '|', 'x', 'j'] {
            let count = |text: &str| text.matches(letter).count();
            let (given, found) = (count(&given), count(&all) + count(&heads));
            assert!(found == given || (is_twice && found < given), "{letter}: {found} of {given}");
        }
    });
}

#[test]
fn any_tokens_end_well_and_show_no_mark() {
    let vocabulary = Vocabulary::new();
    let end = vocabulary.tokenizer.id_end();
    // Half of them marks; the pipe would have to come from a token of text.
    let token = prop_oneof![0..9_u32, 9..end + 3];
    run(600, &proptest::collection::vec(token, 0..300), |ids| {
        let ids: Vec<u32> =
            ids.into_iter().filter(|id| !vocabulary.table.bytes(*id).contains(&b'|') || *id < 9).collect();
        for message in vocabulary.read(&ids) {
            let words = [&message.role, &message.channel_name, &message.text];
            let words = words.into_iter().chain(&message.recipient).chain(&message.content_type);
            assert!(words.into_iter().all(|word| !word.contains('|')), "{message:?}");
        }
    });
}

#[test]
fn a_header_is_shown_as_text_in_time() {
    let vocabulary = Vocabulary::new();
    let mut parser = vocabulary.parser();
    let text = format!("final {}", "all of this is the answer ".repeat(40));
    parser.push(vocabulary.mark("channel"));
    let mut held = 0;
    for id in vocabulary.cut(&text, &mut || 0) {
        held += 1;
        if !parser.push(id).text.is_empty() {
            break;
        }
    }
    assert_eq!(held, HEADER_BYTES_MAX + 1);
}
