//! Tokens of a reply to text, in messages: plainly, with thinking set apart, or in the harmony format.
//!
//! Who begins a generation chooses: `plain` for the continuation of a text, `for_chat` where a chat template has made
//! the prompt. It knows nothing of stop strings (`generate.rs` does) and keeps no text (`Reply` does).

use std::sync::Arc;

use crate::detokenizer::{ByteTable, Detokenizer};
use crate::reply::harmony::{Harmony, Parser};
use crate::reply::part::{ASSISTANT, Channel, End, Part, Step};
use crate::tokenizer::Tokenizer;

/// The state of one reply. Allocates nothing after it was made.
#[derive(Debug, Clone)]
pub struct Reader(Format);

#[derive(Debug, Clone)]
enum Format {
    /// Plain text is a reply in which nothing was ever thought.
    Spoken(Spoken),
    Harmony(Box<Parser>),
}

impl Reader {
    /// All text is one message, an answer.
    pub fn plain(table: Arc<ByteTable>) -> Self {
        Reader(Format::Spoken(Spoken::new(table, None)))
    }

    /// As the vocabulary shows that the model replies: in harmony, with its thinking between marks, or plainly.
    pub fn for_chat(tokenizer: &Tokenizer, table: Arc<ByteTable>) -> Self {
        match Harmony::of(tokenizer) {
            Some(harmony) => Reader(Format::Harmony(Box::new(Parser::new(harmony, table)))),
            None => Reader(Format::Spoken(Spoken::new(table, Thoughts::of(tokenizer)))),
        }
    }

    /// Begins where `prompt` ends.
    pub(crate) fn begin(&mut self, prompt: &[u32]) {
        match &mut self.0 {
            Format::Spoken(spoken) => spoken.begin(prompt),
            Format::Harmony(parser) => parser.begin(prompt),
        }
    }

    /// Whether the format itself says that nothing follows this token.
    pub(crate) fn ends_reply(&self, id: u32) -> bool {
        match &self.0 {
            Format::Spoken(_) => false,
            Format::Harmony(parser) => parser.harmony().ends_reply(id),
        }
    }

    pub(crate) fn push(&mut self, id: u32) -> Option<Step> {
        match &mut self.0 {
            Format::Spoken(spoken) => spoken.push(id),
            Format::Harmony(parser) => parser.step(id),
        }
    }

    /// `end` is how a message ends that has no mark for that.
    pub(crate) fn finish(&mut self, end: End) -> Option<Step> {
        match &mut self.0 {
            Format::Spoken(spoken) => Some(spoken.finish(end)),
            Format::Harmony(parser) => parser.finish_step(),
        }
    }

    /// The text of the last step.
    pub(crate) fn text(&self) -> &str {
        match &self.0 {
            Format::Spoken(spoken) => &spoken.piece,
            Format::Harmony(parser) => parser.text(),
        }
    }

    /// The whole of a step, while it is the last.
    pub(crate) fn part(&self, step: Step) -> Part<'_> {
        let Step { message, channel, begins, ends, .. } = step;
        match &self.0 {
            Format::Spoken(_) => {
                let channel_name = channel.name();
                let (recipient, content_type) = (None, None);
                Part {
                    message,
                    channel,
                    channel_name,
                    role: ASSISTANT,
                    recipient,
                    content_type,
                    begins,
                    ends,
                }
            }
            Format::Harmony(parser) => parser.part(step),
        }
    }

    /// The longest text of one step.
    pub(crate) fn piece_bytes_max(&self) -> usize {
        match &self.0 {
            Format::Spoken(spoken) => spoken.piece_bytes,
            Format::Harmony(parser) => parser.piece_bytes_max(),
        }
    }
}

/// The marks around a model's thinking.
#[derive(Debug, Clone, Copy)]
struct Thoughts {
    open: u32,
    close: u32,
}

impl Thoughts {
    fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let mark = |name: &str| tokenizer.id(name).filter(|&id| tokenizer.is_added(id));
        Some(Thoughts { open: mark("<think>")?, close: mark("</think>")? })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Nothing has come that can be seen: only here thinking may begin. Later its mark is text like any other, because
    /// a reply may be about the mark.
    Undecided,
    Thinking,
    Answering,
}

/// Text, the beginning of which may be thinking. Line breaks that only set the two apart belong to neither.
#[derive(Debug, Clone)]
struct Spoken {
    table: Arc<ByteTable>,
    detokenizer: Detokenizer,
    thoughts: Option<Thoughts>,
    mood: Mood,
    /// Line breaks fall away until something else comes.
    at_start: bool,
    message: usize,
    is_told: bool,
    piece: String,
    piece_bytes: usize,
}

impl Spoken {
    fn new(table: Arc<ByteTable>, thoughts: Option<Thoughts>) -> Self {
        // Before a mark, what was held back comes in the same step.
        let piece_bytes = 2 * table.piece_bytes_max();
        let detokenizer = Detokenizer::new(table.clone(), true);
        let piece = String::with_capacity(piece_bytes);
        let mut spoken = Spoken {
            table,
            detokenizer,
            thoughts,
            mood: Mood::Undecided,
            at_start: false,
            message: 0,
            is_told: false,
            piece,
            piece_bytes,
        };
        spoken.begin(&[]);
        spoken
    }

    fn begin(&mut self, prompt: &[u32]) {
        self.detokenizer.reset();
        self.piece.clear();
        (self.message, self.is_told) = (0, false);
        let is_space = |id: u32| {
            let bytes = self.table.bytes(id);
            !bytes.is_empty() && bytes.iter().all(u8::is_ascii_whitespace)
        };
        // Some templates begin the thinking, or end it.
        let last = prompt.iter().rev().find(|&&id| !is_space(id));
        self.mood = match self.thoughts {
            None => Mood::Answering,
            Some(thoughts) if last == Some(&thoughts.open) => Mood::Thinking,
            Some(thoughts) if last == Some(&thoughts.close) => Mood::Answering,
            Some(_) => Mood::Undecided,
        };
        self.at_start = self.thoughts.is_some();
    }

    fn push(&mut self, id: u32) -> Option<Step> {
        self.piece.clear();
        match (self.thoughts, self.mood) {
            (Some(thoughts), Mood::Undecided) if id == thoughts.open => {
                self.mood = Mood::Thinking;
                Some(self.step(None))
            }
            (Some(thoughts), Mood::Thinking) if id == thoughts.close => {
                let step = self.finish(End::Closed);
                (self.mood, self.at_start) = (Mood::Answering, true);
                self.message += 1;
                self.is_told = false;
                Some(step)
            }
            _ => {
                take(self.detokenizer.push(id), &mut self.piece, &mut self.at_start);
                if self.mood == Mood::Undecided {
                    if self.at_start {
                        return None;
                    }
                    self.mood = Mood::Answering;
                }
                Some(self.step(None))
            }
        }
    }

    fn finish(&mut self, end: End) -> Step {
        self.piece.clear();
        take(self.detokenizer.finish(), &mut self.piece, &mut self.at_start);
        self.step(Some(end))
    }

    fn step(&mut self, ends: Option<End>) -> Step {
        let channel = if self.mood == Mood::Thinking { Channel::Analysis } else { Channel::Final };
        let begins = !std::mem::replace(&mut self.is_told, true);
        Step { message: self.message, channel, bare: false, begins, ends }
    }
}

fn take(text: &str, piece: &mut String, at_start: &mut bool) {
    let text = if *at_start { text.trim_start_matches(['\n', '\r']) } else { text };
    *at_start &= text.is_empty();
    piece.push_str(text);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;
    use crate::reply::Reply;
    use crate::reply::harmony::tests::{MARKS, tokenizer, with_added};

    fn said(tokenizer: &Tokenizer, prompt: &str, reply: &str) -> Vec<(Channel, String)> {
        let table = Arc::new(ByteTable::new(tokenizer).unwrap());
        let mut reader = Reader::for_chat(tokenizer, table);
        let ids = |text: &str| tokenizer.encode(text, false).unwrap();
        reader.begin(&ids(prompt));
        let mut said = Reply::default();
        let mut take = |reader: &Reader, step: Option<Step>| match step {
            Some(step) => said.push_part(&reader.part(step), reader.text()),
            None => assert_eq!(reader.text(), ""),
        };
        for id in ids(reply) {
            let step = reader.push(id);
            take(&reader, step);
        }
        let step = reader.finish(End::Return);
        take(&reader, step);
        said.messages().iter().map(|message| (message.channel, message.text.clone())).collect()
    }

    #[test]
    fn thinking_is_set_apart_where_the_vocabulary_has_marks_for_it() {
        let tokenizer = with_added(&["<think>", "</think>"], false);
        let said = |prompt: &str, reply: &str| said(&tokenizer, prompt, reply);
        let thought = |text: &str| (Channel::Analysis, text.to_owned());
        let spoken = |text: &str| (Channel::Final, text.to_owned());
        let both = [thought("Hm, é.\n"), spoken("Yes.\n")];
        assert_eq!(said("A:", "<think>\nHm, é.\n</think>\n\nYes.\n"), both);
        assert_eq!(said("A:", "\n<think>\nHm, é.\n</think>\n\nYes.\n"), both);
        assert_eq!(said("A:<think>\n", "Hm, é.\n</think>\n\nYes.\n"), both);
        assert_eq!(said("A:", "Yes."), [spoken("Yes.")]);
        assert_eq!(said("A:<think>\n\n</think>\n\n", "Yes."), [spoken("Yes.")]);
        assert_eq!(said("A:", "  code"), [spoken("  code")]);
        assert_eq!(said("A:", "<think>\nHm"), [thought("Hm")]);
        assert_eq!(said("A:", "<think></think>Yes."), [thought(""), spoken("Yes.")]);
        assert_eq!(said("A:", "\n"), [spoken("")]);
        // Later the marks are what the reply is about.
        let about = "It is <think> and </think>.";
        assert_eq!(said("A:", about), [spoken(about)]);
        assert_eq!(
            said("A:", "<think>a<think>b</think>c</think>d"),
            [thought("a<think>b"), spoken("c</think>d")]
        );
        assert_eq!(said("What is <think>? A:", "Yes."), [spoken("Yes.")]);
    }

    #[test]
    fn the_vocabulary_decides() {
        let harmony = tokenizer(&MARKS, true);
        assert_eq!(
            said(&harmony, "<|start|>assistant", "<|channel|>analysis<|message|>A<|end|>"),
            [(Channel::Analysis, "A".to_owned())]
        );
        let plain = tokenizer(&[], true);
        assert_eq!(said(&plain, "", "\n<think>A"), [(Channel::Final, "\n<think>A".to_owned())]);
    }

    #[test]
    fn plain_is_plain_whatever_the_vocabulary() {
        let tokenizer = tokenizer(&MARKS, true);
        let mut reader = Reader::plain(Arc::new(ByteTable::new(&tokenizer).unwrap()));
        let ids = tokenizer.encode("<|channel|>final<|message|>\nA<|return|>", false).unwrap();
        let mut text = String::new();
        for id in ids {
            assert!(reader.push(id).is_some() && !reader.ends_reply(id));
            text.push_str(reader.text());
        }
        assert_eq!(text, "final\nA");
    }
}
