//! Stop strings: ends a stream of text where one of the given strings appears, wherever token borders fall.
//!
//! Not stop *tokens* (those are ids, see `generation.rs`), and no regular expressions.

/// How many stop strings one request may have.
pub const STRINGS_MAX: usize = 64;
/// How long one stop string may be.
pub const STRING_BYTES_MAX: usize = 256;
/// A push of at most this many bytes allocates nothing. A longer one grows the buffer once.
pub const PUSH_BYTES_RESERVED: usize = 8192;

/// Why a list of stop strings is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// Too many strings.
    #[error("expected at most {STRINGS_MAX} stop strings, found {found}; leave some out")]
    TooMany {
        /// How many were given.
        found: usize,
    },
    /// An empty string would stop before the first word.
    #[error(
        "expected stop strings of 1 to {STRING_BYTES_MAX} bytes, found that number {index} is empty; leave it out"
    )]
    Empty {
        /// Which one, from 0.
        index: usize,
    },
    /// One string is too long.
    #[error(
        "expected stop strings of 1 to {STRING_BYTES_MAX} bytes, found {found} bytes in number {index}; shorten it"
    )]
    TooLong {
        /// Which one, from 0.
        index: usize,
        /// Its length in bytes.
        found: usize,
    },
}

/// What a push releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// Text that belongs to the answer for certain.
    pub text: &'a str,
    /// A stop string has appeared: nothing follows, and nothing will be released any more.
    pub stopped: bool,
}

/// Finds the stop string that begins earliest in the whole text, whatever the chunks.
///
/// Each string has a Knuth-Morris-Pratt state, so a byte costs a few steps per string and no byte is read twice.
/// Where one string begins inside another ("bc" in "abcd"), the decision waits until the earlier one is complete
/// or impossible; that is at most `STRING_BYTES_MAX` bytes.
#[derive(Debug, Clone)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// The released text of the last push, then text that is held back.
    buffer: String,
    /// How much of `buffer` the last push released.
    released: usize,
    /// Where a complete stop string begins in `buffer`, while an earlier one is still possible.
    found: Option<usize>,
    stopped: bool,
}

/// One stop string with its matching state.
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Box<[u8]>,
    /// For each length of a matched prefix, the length of its longest proper prefix that is also its suffix.
    fallback: Box<[u16]>,
    /// How many bytes of the string the text ends with.
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes: Box<[u8]> = text.as_bytes().into();
        let mut fallback = vec![0_u16; bytes.len() + 1];
        let mut length = 0_usize;
        for end in 1..bytes.len() {
            while length > 0 && bytes[end] != bytes[length] {
                length = usize::from(fallback[length]);
            }
            length += usize::from(bytes[end] == bytes[length]);
            fallback[end + 1] = u16::try_from(length).expect("strings are at most 256 bytes");
        }
        Pattern { bytes, fallback: fallback.into(), matched: 0 }
    }

    /// Reads one byte; true when the string is complete. `matched` is then its whole length until the next byte.
    fn step(&mut self, byte: u8) -> bool {
        if self.matched == self.bytes.len() {
            self.matched = usize::from(self.fallback[self.matched]);
        }
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = usize::from(self.fallback[self.matched]);
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}

impl StopStrings {
    /// Checks the strings and reserves all memory; an empty list stops never and holds back nothing.
    pub fn new(strings: &[String]) -> Result<Self, StopError> {
        if strings.len() > STRINGS_MAX {
            return Err(StopError::TooMany { found: strings.len() });
        }
        for (index, string) in strings.iter().enumerate() {
            match string.len() {
                0 => return Err(StopError::Empty { index }),
                1..=STRING_BYTES_MAX => {}
                found => return Err(StopError::TooLong { index, found }),
            }
        }
        Ok(StopStrings {
            patterns: strings.iter().map(|string| Pattern::new(string)).collect(),
            buffer: String::with_capacity(STRING_BYTES_MAX + PUSH_BYTES_RESERVED),
            released: 0,
            found: None,
            stopped: false,
        })
    }

    /// Takes the next text and returns what can be shown.
    pub fn push(&mut self, text: &str) -> Outcome<'_> {
        self.drop_released();
        if self.stopped {
            return Outcome { text: "", stopped: true };
        }
        let start = self.buffer.len();
        self.buffer.push_str(text);
        for (index, &byte) in text.as_bytes().iter().enumerate() {
            if self.step(byte, start + index + 1) {
                return self.stop();
            }
        }
        self.released = self.undecided_from(self.buffer.len());
        Outcome { text: &self.buffer[..self.released], stopped: false }
    }

    /// The text is over: returns what was held back, up to a stop string that had been complete.
    pub fn finish(&mut self) -> Outcome<'_> {
        self.drop_released();
        if self.stopped {
            return Outcome { text: "", stopped: true };
        }
        if self.found.is_some() {
            return self.stop();
        }
        self.stopped = true;
        self.released = self.buffer.len();
        Outcome { text: &self.buffer, stopped: false }
    }

    /// Begins another text with the same strings.
    pub fn reset(&mut self) {
        self.buffer.clear();
        self.released = 0;
        self.found = None;
        self.stopped = false;
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
    }

    /// Reads the byte before `end` in `buffer`; true when the earliest stop string is certain.
    fn step(&mut self, byte: u8, end: usize) -> bool {
        for pattern in &mut self.patterns {
            if pattern.step(byte) {
                let begin = end - pattern.bytes.len();
                self.found = Some(self.found.map_or(begin, |found| found.min(begin)));
            }
        }
        self.found.is_some_and(|found| self.undecided_from(end) >= found)
    }

    /// Where the earliest stop string that may still come begins, given that the text ends at `end`.
    fn undecided_from(&self, end: usize) -> usize {
        self.patterns.iter().map(|pattern| end - pattern.matched).min().unwrap_or(end)
    }

    fn stop(&mut self) -> Outcome<'_> {
        self.stopped = true;
        self.released = self.found.expect("called after a stop string was found");
        Outcome { text: &self.buffer[..self.released], stopped: true }
    }

    fn drop_released(&mut self) {
        self.buffer.drain(..self.released);
        if let Some(found) = &mut self.found {
            *found -= self.released;
        }
        self.released = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    /// Pushes the chunks and returns the shown text and whether a string stopped it.
    fn run(stops: &[String], chunks: &[String]) -> (String, bool) {
        let mut stop = StopStrings::new(stops).unwrap();
        let capacity = stop.buffer.capacity();
        let mut shown = String::new();
        let mut stopped = false;
        for chunk in chunks {
            let outcome = stop.push(chunk);
            shown.push_str(outcome.text);
            stopped = outcome.stopped;
            if stopped {
                break;
            }
        }
        let last = stop.finish();
        shown.push_str(last.text);
        stopped |= last.stopped;
        assert_eq!(stop.buffer.capacity(), capacity);
        (shown, stopped)
    }

    fn naive(stops: &[String], text: &str) -> (String, bool) {
        match stops.iter().filter_map(|s| text.find(s.as_str())).min() {
            Some(at) => (text[..at].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    fn check(stops: &[&str], chunks: &[&str], shown: &str, stopped: bool) {
        assert_eq!(run(&strings(stops), &strings(chunks)), (shown.to_owned(), stopped));
    }

    #[test]
    fn finds_strings_across_chunks() {
        check(&["</s>"], &["hello <", "/", "s", "> rest"], "hello ", true);
        check(&["</s>"], &["a </", "x"], "a </x", false);
        check(&["</s>"], &["a </"], "a </", false);
        check(&[], &["anything"], "anything", false);
    }

    #[test]
    fn the_string_that_begins_first_wins() {
        check(&["bc", "abcd"], &["xab", "c", "d"], "x", true);
        check(&["bc", "abcd"], &["xab", "c", "e"], "xa", true);
        check(&["bc", "abcd"], &["xabc"], "xa", true);
        check(&["aab", "ab"], &["aaab"], "a", true);
    }

    #[test]
    fn holds_back_only_what_may_be_a_beginning() {
        let mut stop = StopStrings::new(&strings(&["\n\nUser"])).unwrap();
        assert_eq!(stop.push("hi\n").text, "hi");
        assert_eq!(stop.push("\n").text, "");
        assert_eq!(stop.push("\n").text, "\n");
        assert_eq!(stop.push("x").text, "\n\nx");
    }

    #[test]
    fn limits_are_named() {
        let error = |list: &[String]| StopStrings::new(list).unwrap_err();
        assert_eq!(error(&strings(&["a", ""])), StopError::Empty { index: 1 });
        assert_eq!(error(&["x".repeat(257)]), StopError::TooLong { index: 0, found: 257 });
        assert_eq!(error(&vec!["x".to_owned(); 65]), StopError::TooMany { found: 65 });
        assert!(StopStrings::new(&["x".repeat(256)]).is_ok());
    }

    proptest! {
        #[test]
        fn equals_a_search_of_the_whole_text(
            stops in proptest::collection::vec("[abé]{1,5}", 0..5),
            chunks in proptest::collection::vec("[abcé]{0,6}", 0..12),
        ) {
            prop_assert_eq!(run(&stops, &chunks), naive(&stops, &chunks.concat()));
        }
    }
}
