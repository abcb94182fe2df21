//! The harmony format: a reply in messages with channels, read token by token.
//!
//! `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`, and a call of a
//! tool: `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>`. The prompt ends within the
//! first header, with `<|start|>assistant`.
//!
//! Marks are known by their ids alone: the same characters in ordinary tokens are text. Models get headers wrong, about
//! once in a hundred turns, and then no text may be lost and no mark shown. So:
//!
//! - Text in a message is text, whatever marks it lacks or has too many: `<|start|>` and `<|channel|>` end the message
//!   (`End::Cut`), `<|message|>` and `<|constrain|>` mean nothing there.
//! - Text outside of messages is a header if it can be one (`header.rs`). Words of a whole header that have no place
//!   become a message of their own before it, in the same channel, to nobody. A header that `<|message|>` does not end
//!   begins a message with what is left of it, if anything is: `<|channel|>final Yes.<|return|>` says "Yes.".
//! - Text after a message where no header was begun is shown at once, as an answer.
//!
//! It reads tokens of one reply. It does not check the arguments of calls, and it does not render prompts.

mod header;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

pub use self::header::HEADER_BYTES_MAX;
use self::header::{Head, Header, Judged, STRAY_BYTES_MAX, Section};
use crate::detokenizer::{ByteTable, Detokenizer};
use crate::reply::part::{Channel, End, Part, Piece, Step};
use crate::tokenizer::Tokenizer;

/// The ids of the format's marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Harmony {
    start: u32,
    channel: u32,
    message: u32,
    constrain: u32,
    end: u32,
    returns: u32,
    call: u32,
    end_of_text: Option<u32>,
}

/// A mark's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Start,
    Channel,
    Message,
    Constrain,
    End(End),
}

impl Harmony {
    /// The marks of a vocabulary, where it has them all and means them as marks.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let mark = |name: &str| tokenizer.id(name).filter(|&id| tokenizer.is_special(id));
        Some(Harmony {
            start: mark("<|start|>")?,
            channel: mark("<|channel|>")?,
            message: mark("<|message|>")?,
            constrain: mark("<|constrain|>")?,
            end: mark("<|end|>")?,
            returns: mark("<|return|>")?,
            call: mark("<|call|>")?,
            end_of_text: mark("<|endoftext|>"),
        })
    }

    /// Whether the token ends a reply, whatever the model's files say of it.
    pub fn ends_reply(&self, id: u32) -> bool {
        id == self.returns || id == self.call || Some(id) == self.end_of_text
    }

    fn mark(&self, id: u32) -> Option<Mark> {
        let marks = [
            (self.start, Mark::Start),
            (self.channel, Mark::Channel),
            (self.message, Mark::Message),
            (self.constrain, Mark::Constrain),
            (self.end, Mark::End(End::Closed)),
            (self.returns, Mark::End(End::Return)),
            (self.call, Mark::End(End::Call)),
        ];
        let known = marks.into_iter().find(|(mark, _)| *mark == id).map(|(_, mark)| mark);
        known.or_else(|| (Some(id) == self.end_of_text).then_some(Mark::End(End::Cut)))
    }
}

/// Reads one reply. Allocates nothing after `new`.
#[derive(Debug, Clone)]
pub struct Parser {
    harmony: Harmony,
    detokenizer: Detokenizer,
    messages: Messages,
}

impl Parser {
    /// Begins where a prompt ends with `<|start|>assistant`.
    pub fn new(harmony: Harmony, table: Arc<ByteTable>) -> Self {
        // The last piece of a stream is that of a token and of the bytes held back.
        let piece_bytes = 2 * table.piece_bytes_max() + STRAY_BYTES_MAX;
        Parser { harmony, detokenizer: Detokenizer::new(table, true), messages: Messages::new(piece_bytes) }
    }

    /// Begins where `prompt` ends, be that within a header or a message.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.detokenizer.reset();
        self.messages.reset();
        let start = prompt.iter().rposition(|&id| self.harmony.mark(id) == Some(Mark::Start));
        for &id in start.map_or(&[][..], |start| &prompt[start..]) {
            self.step(id);
        }
        // The detokenizer keeps an incomplete character: the reply completes it.
        self.messages.seal();
    }

    /// Takes one token.
    pub fn push(&mut self, id: u32) -> Piece<'_> {
        let step = self.step(id);
        self.piece(step)
    }

    /// The tokens are over: what was held back, and the end of a message that has none.
    pub fn finish(&mut self) -> Piece<'_> {
        let step = self.finish_step();
        self.piece(step)
    }

    pub(crate) fn harmony(&self) -> &Harmony {
        &self.harmony
    }

    /// As `push`; the text is `text`.
    pub(crate) fn step(&mut self, id: u32) -> Option<Step> {
        self.messages.next();
        match self.harmony.mark(id) {
            None => self.messages.text(self.detokenizer.push(id)),
            Some(mark) => {
                self.flush();
                self.messages.mark(mark);
            }
        }
        self.messages.step
    }

    pub(crate) fn finish_step(&mut self) -> Option<Step> {
        self.messages.next();
        self.flush();
        self.messages.end(End::Cut, Section::Open);
        self.messages.step
    }

    /// A character that is incomplete before a mark stays so.
    fn flush(&mut self) {
        let held = self.detokenizer.finish();
        if !held.is_empty() {
            self.messages.text(held);
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.messages.piece
    }

    pub(crate) fn part(&self, step: Step) -> Part<'_> {
        let head = &self.messages.head;
        let word = |word| Some(word).filter(|word: &&str| !step.bare && !word.is_empty());
        Part {
            message: step.message,
            channel: step.channel,
            channel_name: &head.channel,
            role: &head.role,
            recipient: word(&head.recipient),
            content_type: word(&head.content_type),
            begins: step.begins,
            ends: step.ends,
        }
    }

    fn piece(&self, step: Option<Step>) -> Piece<'_> {
        Piece { part: step.map(|step| self.part(step)), text: self.text() }
    }

    /// The longest text of one step.
    pub(crate) fn piece_bytes_max(&self) -> usize {
        self.messages.piece_bytes
    }
}

/// The messages of a reply, from text and marks.
#[derive(Debug, Clone)]
struct Messages {
    /// Outside of messages, what may become the next one's header.
    header: Header,
    in_message: bool,
    /// Of the message that was last begun.
    head: Head,
    kind: Channel,
    /// Its number.
    message: usize,
    /// Whether a step has told of it.
    is_told: bool,
    /// Text and message of the last step.
    piece: String,
    piece_bytes: usize,
    step: Option<Step>,
    stray: String,
}

impl Messages {
    fn new(piece_bytes: usize) -> Self {
        Messages {
            header: Header::new(),
            in_message: false,
            head: Head::new(),
            kind: Channel::Final,
            message: 0,
            is_told: false,
            piece: String::with_capacity(piece_bytes),
            piece_bytes,
            step: None,
            stray: String::with_capacity(STRAY_BYTES_MAX),
        }
    }

    fn reset(&mut self) {
        self.header.begin(Section::Open);
        self.in_message = false;
        self.message = 0;
        self.is_told = false;
        self.next();
    }

    fn next(&mut self) {
        self.piece.clear();
        self.step = None;
    }

    /// All that came so far is the prompt's.
    fn seal(&mut self) {
        self.next();
        self.message = 0;
        self.is_told = false;
        if !self.in_message {
            self.header.seal(&mut self.head, &mut self.stray);
        }
    }

    fn text(&mut self, text: &str) {
        let mut rest = text;
        if !self.in_message {
            let Some(taken) = self.header.take(text) else {
                return;
            };
            self.open(Judged::Overflow);
            self.piece.push_str(&self.stray);
            rest = &text[taken..];
        }
        self.piece.push_str(rest);
        self.tell(None);
    }

    fn mark(&mut self, mark: Mark) {
        match mark {
            Mark::End(end) => self.end(end, Section::Open),
            Mark::Start => self.end(End::Cut, Section::Role),
            Mark::Channel if self.in_message || !self.header.add(Section::Channel) => {
                self.end(End::Cut, Section::Channel);
            }
            Mark::Constrain if !self.in_message && !self.header.add(Section::Constrain) => {
                self.end(End::Cut, Section::Constrain);
            }
            Mark::Message if !self.in_message => {
                self.open(Judged::Whole);
                if self.stray.is_empty() {
                    self.tell(None);
                } else {
                    self.piece.push_str(&self.stray);
                    let (message, channel, ends) = (self.message, self.kind, Some(End::Cut));
                    self.step = Some(Step { message, channel, bare: true, begins: true, ends });
                    // The message itself is told of with the next token.
                    self.message += 1;
                }
            }
            Mark::Channel => {}
            Mark::Message | Mark::Constrain if self.in_message => self.tell(None),
            Mark::Message | Mark::Constrain => {}
        }
    }

    /// The header is over: a message begins.
    fn open(&mut self, judged: Judged) {
        self.header.judge(judged, &mut self.head, &mut self.stray);
        self.kind = self.head.kind();
        self.in_message = true;
        self.is_told = false;
    }

    /// The message is over, or the header is and holds something; what follows is a header that begins with `section`.
    fn end(&mut self, end: End, section: Section) {
        // Nothing came: the last message's words stay as they are, because its end may still be told.
        if !self.in_message && !self.header.is_blank() {
            self.open(Judged::Broken);
            let words = [&self.stray, &self.head.recipient, &self.head.content_type];
            self.in_message = words.iter().any(|words| !words.is_empty());
            self.piece.push_str(&self.stray);
        }
        if self.in_message {
            self.tell(Some(end));
            self.message += 1;
        }
        self.in_message = false;
        self.header.begin(section);
    }

    /// Says of this step that it belongs to the message.
    fn tell(&mut self, ends: Option<End>) {
        let begins = !self.is_told || self.step.is_some_and(|step| step.begins);
        self.is_told = true;
        self.step = Some(Step { message: self.message, channel: self.kind, bare: false, begins, ends });
    }
}
