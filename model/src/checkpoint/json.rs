//! A strict pull reader of JSON, for the safetensors header and the shard index.
//!
//! It is not a JSON library: it builds no tree, recurses nowhere and reads only what those two files may hold. Two
//! reasons not to use serde here: a tree of a hostile 32 MiB header costs ten times its size, and serde keeps the
//! last of two duplicate keys in silence.

use thiserror::Error;

/// How deep a value that is read over may nest.
pub const DEPTH_MAX: u32 = 32;

/// How many values may be read over: what we do not use may not cost more than what we do.
const SKIPPED_MAX: u32 = 100_000;

/// How many bytes of strings may be spelled with escapes. Decoding is the slowest and only growing part of reading,
/// and honest files have kilobytes of it.
const DECODED_BYTES_MAX: usize = 4 << 20;

/// How many bytes of foreign text an error message quotes.
const QUOTE_MAX: usize = 120;

/// Where and why text is not the JSON that was expected.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum JsonError {
    /// Another character stands where the grammar, or the format, wants something else.
    #[error("JSON at byte {at}: expected {expected}, found {found}")]
    Unexpected {
        /// Byte offset in the text.
        at: usize,
        /// What had to stand there.
        expected: &'static str,
        /// What stands there.
        found: Box<str>,
    },
    /// Nested deeper than is worth following.
    #[error("JSON at byte {at}: expected at most {DEPTH_MAX} levels of nesting, found more")]
    Depth {
        /// Byte offset in the text.
        at: usize,
    },
    /// More values than are worth reading over.
    #[error("JSON at byte {at}: expected at most {SKIPPED_MAX} values that mean nothing here, found more")]
    Skipped {
        /// Byte offset in the text.
        at: usize,
    },
    /// More escapes than any honest file has.
    #[error(
        "JSON at byte {at}: expected at most {DECODED_BYTES_MAX} bytes in strings with escapes, found more"
    )]
    Escapes {
        /// Byte offset in the text.
        at: usize,
    },
    /// A number too large for 64 bits.
    #[error("JSON at byte {at}: expected a whole number below 2^64, found {found}")]
    Number {
        /// Byte offset in the text.
        at: usize,
        /// The digits, clipped.
        found: Box<str>,
    },
}

/// Foreign text made fit for a message: clipped, and with control characters escaped so that a file cannot write
/// to the terminal.
pub(crate) fn quote(text: &str) -> Box<str> {
    let mut end = text.len().min(QUOTE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let more = if end < text.len() { "…" } else { "" };
    format!("{:?}{more}", &text[..end]).into()
}

/// A string of the document: a span of its text or, where it had escapes, of the decoded strings.
///
/// Offsets, not slices, so that a table of a hundred thousand names costs 12 bytes each and owns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    start: u32,
    len: u32,
    decoded: bool,
}

impl Text {
    fn new(start: usize, end: usize, decoded: bool) -> Self {
        let narrow = |n: usize| u32::try_from(n).expect("Reader::new refuses documents of 4 GiB");
        Self { start: narrow(start), len: narrow(end - start), decoded }
    }
}

/// Texts one after another as a document, which is read by nobody.
#[derive(Debug, Default)]
pub(crate) struct Joined(String);

impl Joined {
    pub(crate) fn push(&mut self, text: &str) -> Text {
        let start = self.0.len();
        self.0.push_str(text);
        Text::new(start, self.0.len(), false)
    }

    pub(crate) fn into_texts(self) -> Texts {
        Texts { document: self.0.into(), decoded: Box::default() }
    }
}

/// The document and the decoded strings, kept together for as long as a [`Text`] of them is in use.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    pub(crate) document: Box<str>,
    pub(crate) decoded: Box<str>,
}

impl Texts {
    /// The characters of `text`.
    pub(crate) fn get(&self, text: Text) -> &str {
        get(&self.document, &self.decoded, text)
    }
}

fn get<'a>(document: &'a str, decoded: &'a str, text: Text) -> &'a str {
    let from = if text.decoded { decoded } else { document };
    &from[text.start as usize..][..text.len as usize]
}

/// How many bytes at the front are all in `class`. By blocks, which the compiler turns into SIMD: a search byte by
/// byte takes a third of the time that refusing 32 MiB may take.
fn span(bytes: &[u8], class: impl Fn(u8) -> bool) -> usize {
    const BLOCK: usize = 16;
    // Most strings and nearly all spaces are short; a block would only be tried in vain.
    const SHORT: usize = 4;
    let end = |from: usize, bytes: &[u8]| bytes.iter().position(|&b| !class(b)).map(|i| from + i);
    if let Some(end) = end(0, &bytes[..bytes.len().min(SHORT)]) {
        return end;
    }
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let whole = |block: &&[u8; BLOCK]| block.iter().fold(true, |all, &b| all & class(b));
    let from = blocks.iter().take_while(whole).count() * BLOCK;
    end(from, &bytes[from..]).unwrap_or(bytes.len())
}

/// Reads one document from front to back.
pub(crate) struct Reader<'a> {
    document: &'a str,
    at: usize,
    decoded: String,
}

type Read<T> = Result<T, JsonError>;

impl<'a> Reader<'a> {
    pub(crate) fn new(document: &'a str) -> Self {
        assert!(u32::try_from(document.len()).is_ok(), "the border limits documents far below 4 GiB");
        Self { document, at: 0, decoded: String::new() }
    }

    /// The characters of `text`.
    pub(crate) fn get(&self, text: Text) -> &str {
        get(self.document, &self.decoded, text)
    }

    /// The decoded strings, once the document has been read.
    pub(crate) fn into_decoded(self) -> Box<str> {
        self.decoded.into()
    }

    fn byte(&self) -> Option<u8> {
        self.document.as_bytes().get(self.at).copied()
    }

    /// The next byte that is not white space, left in place.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        self.at += span(&self.document.as_bytes()[self.at..], |b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
        self.byte()
    }

    /// An error at the present place.
    pub(crate) fn unexpected(&self, expected: &'static str) -> JsonError {
        let found = match self.document.get(self.at..).and_then(|rest| rest.chars().next()) {
            Some(c) => format!("{c:?}").into(),
            None if self.at >= self.document.len() => "the end of the text".into(),
            None => "part of a character".into(),
        };
        JsonError::Unexpected { at: self.at, expected, found }
    }

    /// Steps over one given byte, after white space.
    pub(crate) fn take(&mut self, byte: u8, expected: &'static str) -> Read<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(expected))
    }

    /// The next key of an object whose brace is behind us, its colon included; `None` at the closing brace.
    pub(crate) fn next_key(&mut self, first: &mut bool) -> Read<Option<Text>> {
        if !self.next(first, b'}', "',' or '}'")? {
            return Ok(None);
        }
        let key = self.string("a key in double quotes")?;
        self.take(b':', "':' after a key")?;
        Ok(Some(key))
    }

    /// Whether an array whose bracket is behind us has another item.
    pub(crate) fn next_item(&mut self, first: &mut bool) -> Read<bool> {
        self.next(first, b']', "',' or ']'")
    }

    fn next(&mut self, first: &mut bool, close: u8, expected: &'static str) -> Read<bool> {
        let next = self.peek();
        let started = !std::mem::replace(first, false);
        match next {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if started => {
                self.at += 1;
                // A comma promises another member, and JSON has no trailing commas.
                if self.peek() == Some(close) {
                    Err(self.unexpected("another member after ','"))
                } else {
                    Ok(true)
                }
            }
            Some(_) if !started => Ok(true),
            _ => Err(self.unexpected(expected)),
        }
    }

    /// A string; escapes are decoded, control characters and lone surrogates refused.
    pub(crate) fn string(&mut self, expected: &'static str) -> Read<Text> {
        self.take(b'"', expected)?;
        let start = self.at;
        self.run()?;
        if self.byte() == Some(b'"') {
            self.at += 1;
            return Ok(Text::new(start, self.at - 1, false));
        }
        let decoded_start = self.decoded.len();
        let mut run_start = start;
        while self.byte() == Some(b'\\') {
            self.decoded.push_str(&self.document[run_start..self.at]);
            let c = self.escape()?;
            if self.decoded.len() > DECODED_BYTES_MAX {
                return Err(JsonError::Escapes { at: self.at });
            }
            self.decoded.push(c);
            run_start = self.at;
            self.run()?;
        }
        self.decoded.push_str(&self.document[run_start..self.at]);
        self.at += 1;
        Ok(Text::new(decoded_start, self.decoded.len(), true))
    }

    /// Moves to the next quote or backslash.
    fn run(&mut self) -> Read<()> {
        self.at += span(&self.document.as_bytes()[self.at..], |b| b != b'"' && b != b'\\' && b >= 0x20);
        match self.byte() {
            Some(b'"' | b'\\') => Ok(()),
            _ => Err(self.unexpected("the closing quote of a string")),
        }
    }

    /// One escape, its backslash included.
    fn escape(&mut self) -> Read<char> {
        const EXPECTED: &str = "an escape of JSON after '\\'";
        self.at += 1;
        let plain = match self.byte() {
            Some(b @ (b'"' | b'\\' | b'/')) => char::from(b),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.unexpected(EXPECTED)),
        };
        self.at += 1;
        Ok(plain)
    }

    /// `uXXXX`, or a surrogate pair of two of them; we stand on the `u`.
    fn unicode_escape(&mut self) -> Read<char> {
        let begin = self.at;
        let high = self.four_hex()?;
        let code =
            if (0xD800..0xDC00).contains(&high) && self.document.as_bytes()[self.at..].starts_with(b"\\u") {
                self.at += 1;
                let low = self.four_hex()?;
                // A wrong second half leaves the value out of char's range on purpose.
                if (0xDC00..0xE000).contains(&low) {
                    0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)
                } else {
                    high
                }
            } else {
                high
            };
        let found = &self.document[begin..self.at];
        char::from_u32(code).ok_or_else(|| JsonError::Unexpected {
            at: begin,
            expected: "a pair of surrogates",
            found: quote(found),
        })
    }

    fn four_hex(&mut self) -> Read<u32> {
        self.at += 1;
        let mut value = 0;
        for _ in 0..4 {
            let digit = self.byte().and_then(|b| char::from(b).to_digit(16));
            value = value * 16 + digit.ok_or_else(|| self.unexpected("four hexadecimal digits"))?;
            self.at += 1;
        }
        Ok(value)
    }

    /// A whole number in plain digits: no sign, fraction, exponent or leading zero.
    pub(crate) fn integer(&mut self, expected: &'static str) -> Read<u64> {
        if !self.peek().is_some_and(|b| b.is_ascii_digit()) {
            return Err(self.unexpected(expected));
        }
        let start = self.at;
        let rest = &self.document.as_bytes()[start..];
        self.at += rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        let digits = &self.document[start..self.at];
        if matches!(self.byte(), Some(b'.' | b'e' | b'E')) || (digits.len() > 1 && digits.starts_with('0')) {
            return Err(self.unexpected(expected));
        }
        digits.parse().map_err(|_| JsonError::Number { at: start, found: quote(digits) })
    }

    /// Reads over one value of any kind, checking its grammar.
    pub(crate) fn skip_value(&mut self) -> Read<()> {
        // One bit per open level: set for an object. The loop replaces recursion, so depth costs no stack.
        let (mut depth, mut objects) = (0u32, 0u64);
        for _ in 0..SKIPPED_MAX {
            let mut first = true;
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if depth == DEPTH_MAX {
                        return Err(JsonError::Depth { at: self.at });
                    }
                    self.at += 1;
                    depth += 1;
                    objects = objects << 1 | u64::from(open == b'{');
                }
                _ => {
                    self.skip_scalar()?;
                    first = false;
                }
            }
            // Close every level that ends here, then stand before the next value.
            while depth > 0 && !self.skip_to_value(objects & 1 == 1, &mut first)? {
                depth -= 1;
                objects >>= 1;
                first = false;
            }
            if depth == 0 {
                return Ok(());
            }
        }
        Err(JsonError::Skipped { at: self.at })
    }

    fn skip_to_value(&mut self, object: bool, first: &mut bool) -> Read<bool> {
        let mark = self.decoded.len();
        let more = if object { self.next_key(first)?.is_some() } else { self.next_item(first)? };
        self.decoded.truncate(mark);
        Ok(more)
    }

    fn skip_scalar(&mut self) -> Read<()> {
        const EXPECTED: &str = "a JSON value";
        if self.peek() == Some(b'"') {
            let mark = self.decoded.len();
            self.string(EXPECTED)?;
            self.decoded.truncate(mark);
            return Ok(());
        }
        let rest = &self.document.as_bytes()[self.at..];
        let length =
            rest.iter().position(|b| !matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.' | b'E'));
        let word = &self.document[self.at..][..length.unwrap_or(rest.len())];
        if !matches!(word, "true" | "false" | "null") && !is_number(word.as_bytes()) {
            return Err(self.unexpected(EXPECTED));
        }
        self.at += word.len();
        Ok(())
    }

    /// Only white space may follow.
    pub(crate) fn end(&mut self) -> Read<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("nothing after the closing '}'")),
        }
    }
}

/// JSON's number grammar, for values that are read over.
fn is_number(word: &[u8]) -> bool {
    fn digits(word: &[u8]) -> Option<&[u8]> {
        let count = word.iter().take_while(|b| b.is_ascii_digit()).count();
        (count > 0).then(|| &word[count..])
    }
    fn tail(word: &[u8]) -> Option<&[u8]> {
        let word = digits(word)?;
        let word = if let [b'.', rest @ ..] = word { digits(rest)? } else { word };
        match word {
            [b'e' | b'E', b'+' | b'-', rest @ ..] | [b'e' | b'E', rest @ ..] => digits(rest),
            _ => Some(word),
        }
    }
    let word = word.strip_prefix(b"-").unwrap_or(word);
    let leading_zero = matches!(word, [b'0', b'0'..=b'9', ..]);
    !leading_zero && tail(word).is_some_and(<[u8]>::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn skips(text: &str) -> bool {
        let mut reader = Reader::new(text);
        reader.skip_value().and_then(|()| reader.end()).is_ok()
    }

    #[test]
    fn strings_decode_as_serde_does() {
        for text in
            [r#""plain""#, r#""a\n\t\"\\\/\b\f\r""#, r#""\u00e9\uD83D\ude00x""#, r#""é\u0000""#, r#""""#]
        {
            let mut reader = Reader::new(text);
            let ours = reader.string("a string").unwrap();
            assert_eq!(reader.get(ours), serde_json::from_str::<String>(text).unwrap());
        }
    }

    #[test]
    fn bad_strings_are_refused() {
        for text in [
            r#"""#,
            r#""\x""#,
            r#""\u12g4""#,
            r#""\uD800""#,
            r#""\uD800\u0041""#,
            r#""\uDC00""#,
            "\"a\nb\"",
            r#""\"#,
            r#""\u1"#,
        ] {
            assert!(Reader::new(text).string("a string").is_err(), "{text}");
        }
    }

    #[test]
    fn integers_are_plain_digits() {
        for (text, expected) in [("0", Some(0)), ("18446744073709551615", Some(u64::MAX)), ("7,", Some(7))] {
            assert_eq!(Reader::new(text).integer("a number").ok(), expected);
        }
        for text in ["-1", "1.0", "1e3", "01", "18446744073709551616", "", "\"1\"", "+1"] {
            assert!(Reader::new(text).integer("a number").is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_used_has_a_limit() {
        let list = |n| format!("[{}]", vec!["1"; n].join(","));
        assert!(skips(&list(99_999)));
        assert!(!skips(&list(100_000)));
        let string = |n| format!("\"{}\"", "\\n".repeat(n));
        assert!(skips(&string(4 << 20)));
        assert!(!skips(&string((4 << 20) + 2)));
    }

    #[test]
    fn spans_end_at_any_place() {
        for end in 0..200 {
            let mut bytes = [b' '; 200];
            bytes[end] = b'x';
            assert_eq!(span(&bytes, |b| b == b' '), end);
            assert_eq!(span(&bytes[..end], |b| b == b' '), end);
        }
    }

    #[test]
    fn depth_has_a_limit() {
        assert!(skips(&("[".repeat(32) + &"]".repeat(32))));
        assert!(!skips(&("[".repeat(33) + &"]".repeat(33))));
        assert!(!skips(&"[{\"a\":".repeat(10_000)));
    }

    const TOKENS: &[&str] =
        &["{", "}", "[", "]", ",", ":", "\"a\"", "\"\\n\"", "1", "-0.5e+3", "01", "1.", "true", "null", " "];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn skipping_agrees_with_serde(
            tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..9)
        ) {
            let text = tokens.concat();
            let serde = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(skips(&text), serde);
        }

        #[test]
        fn any_string_survives(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let mut reader = Reader::new(&json);
            let ours = reader.string("a string").unwrap();
            prop_assert_eq!(reader.get(ours), text);
        }
    }
}
