//! Ids to text, one id at a time, without allocating: the path of generated text.
//!
//! `ByteTable` holds what every id stands for and is built once per model; a `Detokenizer` is the small state of
//! one stream. What a stream emits in all equals `Tokenizer::decode` of the same ids, and every piece is whole
//! UTF-8. This is not the tokenizer: it cannot encode, and it knows only the decoders listed at `Rule`.

use std::sync::Arc;

use tokenizers::{Decoder as _, DecoderWrapper};

use crate::foreign::clipped;
use crate::tokenizer::Tokenizer;

/// A run of single-byte tokens (`<0xE6>` of vocabularies with byte fallback) longer than this is settled early.
///
/// Hugging Face decodes such a run as a whole: text if all of it is UTF-8, else one U+FFFD per byte. So nothing of
/// a run can be shown before it ends. At this length its whole characters are shown, and only the rest is judged.
pub const RUN_BYTES_MAX: usize = 256;

const REPLACEMENT: &str = "\u{FFFD}";

/// Why a tokenizer's decoder cannot be streamed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DetokenizerError {
    /// A decoder that streaming does not know.
    #[error(
        "tokenizer.json: expected a decoder of type ByteLevel, Metaspace, null, or a Sequence of Replace, ByteFallback, Fuse and one leading Strip, found {found}; this model's text cannot be streamed yet, please report it"
    )]
    UnknownDecoder {
        /// The decoder's type, and where in a sequence it stands.
        found: String,
    },
    /// A decoder that fails on a token of its own vocabulary.
    #[error(
        "tokenizer.json: expected a decoder that can decode its own tokens, found an error at id {id}: {reason}; fetch the file again"
    )]
    Token {
        /// The token.
        id: u32,
        /// The library's words.
        reason: String,
    },
    /// More than 4 GiB of token text.
    #[error("tokenizer.json: expected less than 4 GiB of token text, found more; fetch the file again")]
    TooLarge,
}

/// How the tokens of a list become one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// `ByteLevel`: bytes of all tokens in a row; each maximal invalid part becomes one U+FFFD.
    Bytes,
    /// Texts in a row, runs of byte tokens judged as a whole; up to `count` leading `strip` characters fall away.
    Fallback { strip: char, count: usize },
    /// `Metaspace`: a character that stands for a space, except in the first token, where it falls away.
    Metaspace { space: char, drop_first: bool },
    /// No decoder: tokens with a space between them.
    Spaced,
}

/// What an entry of the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A hole in the vocabulary: decodes to nothing at all.
    Unknown,
    Text,
    /// One raw byte under `Rule::Fallback`.
    Byte,
}

/// For every id its bytes, in one block of memory.
#[derive(Debug)]
pub struct ByteTable {
    bytes: Vec<u8>,
    /// `starts[id]..starts[id + 1]` in `bytes`.
    starts: Vec<u32>,
    kinds: Vec<Kind>,
    special: Vec<bool>,
    rule: Rule,
    token_bytes_max: usize,
}

impl ByteTable {
    /// Reads the whole vocabulary once.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, DetokenizerError> {
        let plan = Plan::new(tokenizer.decoder())?;
        let ids = tokenizer.id_end();
        let mut table = ByteTable {
            bytes: Vec::new(),
            starts: vec![0],
            kinds: Vec::with_capacity(ids as usize),
            special: (0..ids).map(|id| tokenizer.is_special(id)).collect(),
            rule: plan.rule,
            token_bytes_max: 0,
        };
        for id in 0..ids {
            let start = table.bytes.len();
            let kind = match tokenizer.token(id) {
                None => Kind::Unknown,
                Some(token) => plan.append(id, token, &mut table.bytes)?,
            };
            table.kinds.push(kind);
            table.starts.push(u32::try_from(table.bytes.len()).map_err(|_| DetokenizerError::TooLarge)?);
            table.token_bytes_max = table.token_bytes_max.max(table.bytes.len() - start);
        }
        Ok(table)
    }

    /// The raw bytes of a token, or nothing for an id that has none.
    ///
    /// Under `Metaspace` these still spell the space's stand-in; all other rules are applied already.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Whether the token is left out of text on request.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The longest piece that one `push` can return.
    pub fn piece_bytes_max(&self) -> usize {
        // Each byte of a held run and of the token can become a replacement character of three bytes.
        (RUN_BYTES_MAX + self.token_bytes_max + 4) * REPLACEMENT.len()
    }

    fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unknown)
    }
}

/// A decoder taken apart: what can be done to each token alone, done once at construction, and the rest.
struct Plan<'a> {
    each: Vec<&'a DecoderWrapper>,
    byte_fallback: bool,
    rule: Rule,
}

impl<'a> Plan<'a> {
    fn new(decoder: Option<&'a DecoderWrapper>) -> Result<Self, DetokenizerError> {
        let simple = |rule| Ok(Plan { each: Vec::new(), byte_fallback: false, rule });
        match decoder {
            None => simple(Rule::Spaced),
            Some(DecoderWrapper::ByteLevel(_)) => simple(Rule::Bytes),
            Some(DecoderWrapper::Metaspace(metaspace)) => simple(Rule::Metaspace {
                space: metaspace.get_replacement(),
                drop_first: metaspace.prepend_scheme
                    != tokenizers::pre_tokenizers::metaspace::PrependScheme::Never,
            }),
            Some(DecoderWrapper::Sequence(sequence)) => match sequence.get_decoders() {
                [only] => Self::new(Some(only)),
                steps => Self::of_sequence(steps),
            },
            Some(single) => Self::of_sequence(std::slice::from_ref(single)),
        }
    }

    /// Accepts steps on single tokens, then `ByteFallback`, then `Fuse`, then one `Strip` at the beginning.
    fn of_sequence(steps: &'a [DecoderWrapper]) -> Result<Self, DetokenizerError> {
        let mut plan =
            Plan { each: Vec::new(), byte_fallback: false, rule: Rule::Fallback { strip: ' ', count: 0 } };
        let (mut fused, mut stripped) = (false, false);
        for (place, step) in steps.iter().enumerate() {
            let alone = !plan.byte_fallback && !fused;
            match step {
                DecoderWrapper::Replace(_) if alone => plan.each.push(step),
                // `Strip` with a `stop` would need the end of the text, and panics on short tokens.
                DecoderWrapper::Strip(strip) if alone && strip.stop == 0 => plan.each.push(step),
                DecoderWrapper::ByteFallback(_) if alone => plan.byte_fallback = true,
                DecoderWrapper::Fuse(_) => fused = true,
                DecoderWrapper::Strip(strip) if fused && !stripped && strip.stop == 0 => {
                    stripped = true;
                    plan.rule = Rule::Fallback { strip: strip.content, count: strip.start };
                }
                _ => {
                    let found = format!("{} as step {} of {}", type_name(step), place + 1, steps.len());
                    return Err(DetokenizerError::UnknownDecoder { found });
                }
            }
        }
        Ok(plan)
    }

    /// Appends what a token contributes.
    fn append(&self, id: u32, mut token: String, out: &mut Vec<u8>) -> Result<Kind, DetokenizerError> {
        if self.rule == Rule::Bytes {
            append_byte_level(&token, out);
            return Ok(Kind::Text);
        }
        for step in &self.each {
            let tokens = step
                .decode_chain(vec![token])
                .map_err(|error| DetokenizerError::Token { id, reason: clipped(error) })?;
            token = tokens.concat();
        }
        match self.byte_fallback.then(|| byte_of(&token)).flatten() {
            Some(byte) => {
                out.push(byte);
                Ok(Kind::Byte)
            }
            None => {
                out.extend_from_slice(token.as_bytes());
                Ok(Kind::Text)
            }
        }
    }
}

fn type_name(decoder: &DecoderWrapper) -> &'static str {
    match decoder {
        DecoderWrapper::BPE(_) => "BPEDecoder",
        DecoderWrapper::ByteLevel(_) => "ByteLevel",
        DecoderWrapper::WordPiece(_) => "WordPiece",
        DecoderWrapper::Metaspace(_) => "Metaspace",
        DecoderWrapper::CTC(_) => "CTC",
        DecoderWrapper::Sequence(_) => "Sequence",
        DecoderWrapper::Replace(_) => "Replace",
        DecoderWrapper::Fuse(_) => "Fuse",
        DecoderWrapper::Strip(_) => "Strip",
        DecoderWrapper::ByteFallback(_) => "ByteFallback",
    }
}

/// The byte of a token like `<0x0A>`, by the library's own test (which accepts `<0x+1>`).
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2 spells bytes as printable characters. A token with any other character (an added token) stands for its
/// own UTF-8, as a whole.
fn append_byte_level(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for character in token.chars() {
        match byte_of_character(character) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The inverse of GPT-2's table: printable Latin-1 stands for itself; the other 68 bytes, in ascending order, are
/// U+0100 and on.
fn byte_of_character(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The state of one stream.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    table: Arc<ByteTable>,
    skip_special: bool,
    /// Bytes whose meaning is open: the beginning of a character, or a run of byte tokens.
    held: Vec<u8>,
    /// The run of byte tokens is known not to be UTF-8: each further byte is a replacement character.
    run_broken: bool,
    /// How many characters `Strip` may still remove. Reaches zero at the first other character.
    strip_left: usize,
    /// No token has been taken yet.
    first: bool,
    /// What the last call returned. Never grows.
    piece: String,
}

impl Detokenizer {
    /// Reserves all memory that the stream will use.
    pub fn new(table: Arc<ByteTable>, skip_special: bool) -> Self {
        let piece = String::with_capacity(table.piece_bytes_max());
        let held = Vec::with_capacity(RUN_BYTES_MAX + table.token_bytes_max + 4);
        let mut stream =
            Detokenizer { table, skip_special, held, run_broken: false, strip_left: 0, first: true, piece };
        stream.reset();
        stream
    }

    /// Begins another text.
    pub fn reset(&mut self) {
        self.held.clear();
        self.piece.clear();
        self.run_broken = false;
        self.first = true;
        self.strip_left = match self.table.rule {
            Rule::Fallback { count, .. } => count,
            _ => 0,
        };
    }

    /// Takes one id and returns the text that has become certain, possibly none.
    pub fn push(&mut self, id: u32) -> &str {
        self.piece.clear();
        let kind = self.table.kind(id);
        if kind == Kind::Unknown || (self.skip_special && self.table.is_special(id)) {
            return "";
        }
        match self.table.rule {
            Rule::Bytes => self.push_bytes(id),
            Rule::Fallback { .. } => self.push_fallback(id, kind),
            Rule::Metaspace { space, drop_first } => {
                let as_space = if drop_first && self.first { "" } else { " " };
                for character in text_of(&self.table, id).chars() {
                    if character == space {
                        self.piece.push_str(as_space);
                    } else {
                        self.piece.push(character);
                    }
                }
            }
            Rule::Spaced => {
                self.piece.push_str(if self.first { "" } else { " " });
                self.piece.push_str(text_of(&self.table, id));
            }
        }
        self.first = false;
        self.strip_start();
        &self.piece
    }

    /// The ids are over: returns what was held back.
    pub fn finish(&mut self) -> &str {
        self.piece.clear();
        match self.table.rule {
            Rule::Bytes if !self.held.is_empty() => {
                // What is held is always the beginning of one character.
                self.held.clear();
                self.piece.push_str(REPLACEMENT);
            }
            Rule::Fallback { .. } => self.end_run(),
            _ => {}
        }
        self.strip_start();
        &self.piece
    }

    fn push_bytes(&mut self, id: u32) {
        self.held.extend_from_slice(self.table.bytes(id));
        let (mut read, mut kept) = (0, 0);
        for chunk in self.held.utf8_chunks() {
            self.piece.push_str(chunk.valid());
            let invalid = chunk.invalid();
            read += chunk.valid().len() + invalid.len();
            // Anywhere but at the end, a beginning has already been contradicted by the byte after it.
            if read == self.held.len() && is_beginning(invalid) {
                kept = invalid.len();
            } else if !invalid.is_empty() {
                self.piece.push_str(REPLACEMENT);
            }
        }
        let whole = self.held.len() - kept;
        self.held.drain(..whole);
    }

    fn push_fallback(&mut self, id: u32, kind: Kind) {
        if kind != Kind::Byte {
            self.end_run();
            self.piece.push_str(text_of(&self.table, id));
            return;
        }
        self.held.extend_from_slice(self.table.bytes(id));
        if self.run_broken || std::str::from_utf8(&self.held).is_err_and(|error| error.error_len().is_some())
        {
            self.run_broken = true;
            self.replace_held();
        } else if self.held.len() >= RUN_BYTES_MAX {
            let whole = std::str::from_utf8(&self.held).map_or_else(|error| error.valid_up_to(), str::len);
            for chunk in self.held[..whole].utf8_chunks() {
                self.piece.push_str(chunk.valid());
            }
            self.held.drain(..whole);
        }
    }

    /// A run of byte tokens is over: text if all of it is, else a replacement character per byte.
    fn end_run(&mut self) {
        self.run_broken = false;
        match std::str::from_utf8(&self.held) {
            Ok(text) => self.piece.push_str(text),
            Err(_) => self.replace_held(),
        }
        self.held.clear();
    }

    fn replace_held(&mut self) {
        for _ in 0..self.held.len() {
            self.piece.push_str(REPLACEMENT);
        }
        self.held.clear();
    }

    /// Removes the leading characters of the whole text that the rule names.
    fn strip_start(&mut self) {
        let Rule::Fallback { strip, .. } = self.table.rule else {
            return;
        };
        let mut cut = 0;
        for character in self.piece.chars() {
            if self.strip_left == 0 {
                break;
            }
            if character != strip {
                self.strip_left = 0;
                break;
            }
            self.strip_left -= 1;
            cut += character.len_utf8();
        }
        self.piece.drain(..cut);
    }
}

/// A token's text under the rules whose tables hold text.
fn text_of(table: &ByteTable, id: u32) -> &str {
    std::str::from_utf8(table.bytes(id)).expect("these rules store the strings of the vocabulary")
}

/// Whether these bytes could still become a character.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tokenizer with the given decoder: control, text, all bytes, and odd added tokens.
    fn tokenizer(decoder: &str, byte_level: bool) -> Tokenizer {
        let mut tokens: Vec<String> =
            ["<s>", "<add>", "▁a", "b▁▁", "é", "▁", "日本", " ", "😀x"].map(str::to_owned).into();
        if byte_level {
            tokens.extend(
                (0x21..0x144)
                    .filter_map(char::from_u32)
                    .filter(|c| byte_of_character(*c).is_some() && *c != 'é')
                    .map(String::from),
            );
        } else {
            tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        }
        let vocab: serde_json::Map<String, serde_json::Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        let added = |id: u32, content: &str, special: bool| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": true, "special": special})
        };
        let count = tokens.len() as u32;
        let file = serde_json::json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "<s>", true), added(1, "<add>", false), added(count, "né w", false)],
            "normalizer": {"type": "Prepend", "prepend": "▁"}, "pre_tokenizer": null, "post_processor": null,
            "decoder": serde_json::from_str::<serde_json::Value>(decoder).unwrap(),
            "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        Tokenizer::from_bytes(file.to_string().as_bytes(), None, None).unwrap()
    }

    const LLAMA: &str = r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
        {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#;
    const GEMMA: &str = r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
        {"type":"ByteFallback"},{"type":"Fuse"}]}"#;
    const BYTE_LEVEL: &str =
        r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#;
    const METASPACE: &str =
        r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}"#;
    const BARE_METASPACE: &str =
        r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"never","split":true}"#;

    fn stream(table: &Arc<ByteTable>, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(Arc::clone(table), skip_special);
        let capacities = (detokenizer.held.capacity(), detokenizer.piece.capacity());
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id).to_owned()).collect();
        text.push_str(detokenizer.finish());
        assert_eq!((detokenizer.held.capacity(), detokenizer.piece.capacity()), capacities, "a buffer grew");
        text
    }

    fn check(decoder: &str, ids: &[u32]) {
        let tokenizer = tokenizer(decoder, decoder == BYTE_LEVEL);
        let table = Arc::new(ByteTable::new(&tokenizer).unwrap());
        for skip_special in [false, true] {
            assert_eq!(
                stream(&table, ids, skip_special),
                tokenizer.decode(ids, skip_special),
                "{decoder} {ids:?}"
            );
        }
    }

    #[test]
    fn leading_space_is_stripped_once() {
        for ids in [&[5, 5, 2][..], &[0, 5, 2], &[7, 7], &[3, 2], &[9 + 32, 5]] {
            check(LLAMA, ids);
            check(GEMMA, ids);
            check(METASPACE, ids);
        }
    }

    #[test]
    fn a_skipped_token_does_not_break_a_run_of_bytes() {
        let byte = |byte: u32| 9 + byte;
        check(LLAMA, &[byte(0xC3), 0, byte(0xA9)]);
        check(LLAMA, &[byte(0xC3), 1, byte(0xA9)]);
        check(LLAMA, &[byte(0xC3), byte(0xA9), byte(0xFF), byte(0x41)]);
        check(LLAMA, &[byte(0x41), byte(0xE6), byte(0x97)]);
    }

    #[test]
    fn a_long_run_of_bytes_is_shown_in_time() {
        let table = Arc::new(ByteTable::new(&tokenizer(LLAMA, false)).unwrap());
        let ids: Vec<u32> = "é".repeat(400).bytes().map(|byte| 9 + u32::from(byte)).collect();
        assert_eq!(stream(&table, &ids, false), "é".repeat(400));
        let mut detokenizer = Detokenizer::new(table, false);
        assert!(ids.iter().take(RUN_BYTES_MAX).any(|&id| !detokenizer.push(id).is_empty()));
    }

    #[test]
    fn unknown_decoders_are_named() {
        let refused = |decoder: &str| ByteTable::new(&tokenizer(decoder, false)).unwrap_err().to_string();
        assert!(
            refused(r#"{"type":"WordPiece","prefix":"X","cleanup":true}"#)
                .contains("found WordPiece as step 1 of 1")
        );
        assert!(refused(r#"{"type":"Strip","content":" ","start":0,"stop":1}"#).contains("found Strip"));
    }

    #[test]
    fn the_byte_alphabet_is_complete() {
        let mut seen = [false; 256];
        for character in tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet() {
            seen[usize::from(byte_of_character(character).unwrap())] = true;
        }
        assert!(seen.iter().all(|&seen| seen));
    }

    proptest! {
        #[test]
        fn streams_equal_decode(ids in proptest::collection::vec(0_u32..270, 0..40)) {
            for decoder in [LLAMA, GEMMA, BYTE_LEVEL, METASPACE, BARE_METASPACE, "null"] {
                check(decoder, &ids);
            }
        }

        #[test]
        fn streams_of_whole_characters_equal_decode(text in "[ a-zé日😀]{0,20}", cut in 0_usize..40) {
            let mut ids: Vec<u32> = text.bytes().map(|byte| 9 + u32::from(byte)).collect();
            ids.truncate(cut);
            check(LLAMA, &ids);
        }
    }
}
