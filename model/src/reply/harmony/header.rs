//! The header of a harmony message: the words between `<|start|>` and `<|message|>`, kept until they can be judged.
//!
//! It sees text and marks, no token ids; what follows from a header is decided in `mod.rs`.
//!
//! A header is *whole* when `<|message|>` ends it, else *broken*. A whole one may use any names, and of each section
//! the only word without a place is its content type. In a broken one only what cannot be meant as text counts: known
//! roles and channels, `to=` and what follows `<|constrain|>`; from the first other word on, a section is text. Words
//! without a place are never dropped: they are handed over as text. Space between words is part of the syntax.

use crate::reply::part::{ASSISTANT, Channel};

/// A header longer than this is none, and what it holds is text. Names of tools have 64 characters at most.
pub const HEADER_BYTES_MAX: usize = 512;
/// A header of more sections than this is none. The format has three.
const SECTIONS_MAX: usize = 8;
/// What handing over can add: a separating space for each section.
pub(super) const STRAY_BYTES_MAX: usize = HEADER_BYTES_MAX + 4 * SECTIONS_MAX;

const ROLES: [&str; 5] = [ASSISTANT, "user", "system", "developer", "tool"];
const TOOLS: &str = "functions.";
const TO: &str = "to=";

/// What a stretch of header began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    /// `<|start|>`: a role comes first.
    Role,
    /// Nothing: after the prompt or after another message. Only `assistant` and `to=` are no text here.
    Open,
    /// `<|channel|>`: its name comes first.
    Channel,
    /// `<|constrain|>`: the content type comes first.
    Constrain,
    /// What the prompt began and the model goes on with.
    Rest,
}

/// Why a header is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// `<|message|>` came.
    Whole,
    /// Something else came.
    Broken,
    /// It cannot be a header any more, and its last word may go on.
    Overflow,
}

/// The words of a header that have a place. Each has room for a whole header, so nothing grows.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) role: String,
    pub(super) channel: String,
    pub(super) recipient: String,
    pub(super) content_type: String,
}

impl Head {
    pub(super) fn new() -> Self {
        let word = || String::with_capacity(HEADER_BYTES_MAX);
        let mut head = Head { role: word(), channel: word(), recipient: word(), content_type: word() };
        head.clear();
        head
    }

    pub(super) fn clear(&mut self) {
        set(&mut self.role, ASSISTANT);
        self.channel.clear();
        self.recipient.clear();
        self.content_type.clear();
    }

    /// Words that are missing are those of `other`.
    fn fill(&mut self, other: &Head) {
        for (word, other) in [
            (&mut self.role, &other.role),
            (&mut self.channel, &other.channel),
            (&mut self.recipient, &other.recipient),
            (&mut self.content_type, &other.content_type),
        ] {
            if word.is_empty() {
                word.push_str(other);
            }
        }
    }

    /// A header without a channel begins an answer; so does one with an unknown role, which is a slip.
    pub(super) fn kind(&self) -> Channel {
        let other = self.role.starts_with(TOOLS) || ROLES[1..].contains(&self.role.as_str());
        match (other, self.channel.as_str()) {
            (true, _) => Channel::Other,
            (false, "") => Channel::Final,
            (false, name) => known_channel(name).unwrap_or(Channel::Other),
        }
    }
}

fn set(word: &mut String, text: &str) {
    word.clear();
    word.push_str(text);
}

fn known_channel(name: &str) -> Option<Channel> {
    [Channel::Analysis, Channel::Commentary, Channel::Final].into_iter().find(|known| known.name() == name)
}

/// A header as far as it has come.
#[derive(Debug, Clone)]
pub(super) struct Header {
    text: String,
    /// Each with its beginning in `text`.
    sections: Vec<(Section, usize)>,
    /// What the prompt says already.
    given: Head,
}

impl Header {
    pub(super) fn new() -> Self {
        let text = String::with_capacity(HEADER_BYTES_MAX);
        let mut header = Header { text, sections: Vec::with_capacity(SECTIONS_MAX), given: Head::new() };
        header.begin(Section::Open);
        header
    }

    /// Forgets everything and begins with `section`.
    pub(super) fn begin(&mut self, section: Section) {
        self.given.clear();
        self.text.clear();
        self.sections.clear();
        self.sections.push((section, 0));
    }

    /// Whether it holds nothing that could be told.
    pub(super) fn is_blank(&self) -> bool {
        self.text.is_empty() && self.given.recipient.is_empty() && self.given.content_type.is_empty()
    }

    /// Begins another section; false where there are too many.
    pub(super) fn add(&mut self, section: Section) -> bool {
        let has_room = self.sections.len() < SECTIONS_MAX;
        if has_room {
            self.sections.push((section, self.text.len()));
        }
        has_room
    }

    /// What has come so far came from the prompt: it holds, and is no text of the reply.
    pub(super) fn seal(&mut self, head: &mut Head, stray: &mut String) {
        self.judge(Judged::Whole, head, stray);
        stray.clear();
        let is_named = self.sections.iter().any(|(section, _)| *section == Section::Channel);
        self.begin(if is_named { Section::Rest } else { Section::Open });
        self.given.role.clear();
        self.given.fill(head);
    }

    /// Takes text, character by character, so that the borders of tokens mean nothing. Where the header cannot be one
    /// any more, returns how much of the text was taken.
    pub(super) fn take(&mut self, text: &str) -> Option<usize> {
        for (at, character) in text.char_indices() {
            let bytes = character.len_utf8();
            if self.text.len() + bytes > HEADER_BYTES_MAX {
                return Some(at);
            }
            let (section, start) = self.last();
            if start == self.text.len() && character.is_whitespace() {
                continue;
            }
            self.text.push(character);
            if section == Section::Open && !may_open(&self.text[start..]) {
                return Some(at + bytes);
            }
        }
        None
    }

    fn last(&self) -> (Section, usize) {
        self.sections.last().copied().unwrap_or((Section::Open, 0))
    }

    /// Sorts the words: into `head` what has a place, into `stray` what has none.
    pub(super) fn judge(&self, judged: Judged, head: &mut Head, stray: &mut String) {
        stray.clear();
        head.clear();
        head.role.clear();
        for (index, &(section, start)) in self.sections.iter().enumerate() {
            let later = &self.sections[index + 1..];
            let end = later.first().map_or(self.text.len(), |(_, start)| *start);
            let is_replaced = later.iter().any(|(section, _)| *section == Section::Channel);
            let sorting = Sorting {
                section,
                // The name of a channel that another one replaces would be lost.
                any_name: judged == Judged::Whole && !(section == Section::Channel && is_replaced),
                is_whole: judged == Judged::Whole,
                may_go_on: judged == Judged::Overflow && later.is_empty(),
            };
            sorting.sort(&self.text[start..end], head, stray);
        }
        head.fill(&self.given);
        if stray.chars().all(char::is_whitespace) {
            stray.clear();
        }
    }
}

/// Whether text where no header was begun may still become one: all else is shown at once.
fn may_open(text: &str) -> bool {
    let mut words = words(text);
    words.all(|(word, full)| {
        let ended = full.len() > word.len();
        word == ASSISTANT
            || word.starts_with(TO)
            || (!ended && (ASSISTANT.starts_with(word) || TO.starts_with(word)))
    })
}

/// How the words of one section are sorted.
#[derive(Debug, Clone, Copy)]
struct Sorting {
    section: Section,
    any_name: bool,
    is_whole: bool,
    /// The last word may not be complete.
    may_go_on: bool,
}

impl Sorting {
    fn sort(self, text: &str, head: &mut Head, stray: &mut String) {
        let mut named = false;
        let mut first = true;
        let mut is_text = false;
        let mut plain_words = words(text).filter(|(word, _)| recipient(word).is_none());
        let named_first = plain_words.next().is_some_and(|(word, _)| self.is_name(word));
        let only_type = self.any_name && plain_words.count() == usize::from(named_first);
        for (word, full) in words(text) {
            let is_complete = full.len() > word.len() || !self.may_go_on;
            let is_first = std::mem::take(&mut first);
            if is_text {
                stray.push_str(full);
            } else if let Some(name) = recipient(word).filter(|_| is_complete) {
                replace(&mut head.recipient, name, TO, stray);
            } else if !named && is_complete && self.is_name(word) {
                named = true;
                self.name(word, head);
            } else if self.section == Section::Constrain && is_first {
                is_text = self.constrain(word, full, is_complete, head, stray);
            } else if only_type && head.content_type.is_empty() {
                set(&mut head.content_type, word);
            } else {
                stray.push_str(full);
                is_text = !self.is_whole;
            }
        }
    }

    fn is_name(self, word: &str) -> bool {
        match self.section {
            Section::Role => self.any_name || ROLES.contains(&word),
            Section::Open => word == ASSISTANT,
            Section::Channel => self.any_name || known_channel(word).is_some(),
            Section::Constrain | Section::Rest => false,
        }
    }

    fn name(self, word: &str, head: &mut Head) {
        match self.section {
            Section::Channel => set(&mut head.channel, word),
            _ => set(&mut head.role, word),
        }
    }

    /// The word after `<|constrain|>`: a type, and what is stuck to it. Says whether text has begun.
    fn constrain(
        self,
        word: &str,
        full: &str,
        is_complete: bool,
        head: &mut Head,
        stray: &mut String,
    ) -> bool {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_./+-".contains(c);
        let length = word.find(|c| !is_part(c)).unwrap_or(word.len());
        let length = if length == word.len() && !is_complete { 0 } else { length };
        if length > 0 {
            replace(&mut head.content_type, &word[..length], "", stray);
        }
        let has_more = length < word.len();
        if has_more {
            stray.push_str(&full[length..]);
        }
        has_more && !self.is_whole
    }
}

/// Puts a word in its place; another word that stood there becomes text again, the same one does not.
fn replace(place: &mut String, word: &str, before: &str, stray: &mut String) {
    if !place.is_empty() && place != word {
        stray.push_str(before);
        stray.push_str(place);
        stray.push(' ');
    }
    set(place, word);
}

fn recipient(word: &str) -> Option<&str> {
    word.strip_prefix(TO).filter(|name| !name.is_empty())
}

/// Words, each also with the space that follows it.
fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text.trim_start();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let word = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let full = rest[word..].find(|c: char| !c.is_whitespace()).map_or(rest.len(), |space| word + space);
        let (this, later) = rest.split_at(full);
        rest = later;
        Some((&this[..word], this))
    })
}
