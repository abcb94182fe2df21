//! A checkpoint's tokenizer: text to ids, and the reference for ids to text.
//!
//! This wraps the `tokenizers` crate and adds what Hugging Face's Python layer adds to it: the tokens that
//! `tokenizer_config.json` declares, the named tokens (bos, eos, pad), and settings for truncation and padding
//! that are switched off. It is not the path of generated text: that is `detokenizer.rs`, which allocates nothing.
//!
//! Two things of the Python layer are left out on purpose. `clean_up_tokenization_spaces` (which removes spaces
//! before punctuation) is not applied, because it corrupts code and makes decoding depend on later text. Rewriting
//! of the post-processor by a tokenizer *class* (`add_eos_token` of the Llama classes) is not imitated: the
//! post-processor of `tokenizer.json` is taken as it stands.

mod pattern_guard;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use tokenizers::{
    AddedToken, Decoder as _, DecoderWrapper, Model as _, NormalizedString, Normalizer as _, OffsetType,
    PreTokenizer as _, PreTokenizerWrapper,
};

use crate::foreign::clipped;
use pattern_guard::PatternGuard;

/// Ids above this are refused: tables indexed by id (embedding, detokenizer) would otherwise be sized by a typo.
pub const ID_LIMIT: u32 = 1 << 24;

/// What can be wrong with a tokenizer's files or with a text given to it.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is not what its name promises.
    #[error("{file}: expected {expected}, found {found}; {advice}")]
    Malformed {
        /// Which of the tokenizer's files.
        file: &'static str,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
        /// What the reader of the message can do.
        advice: &'static str,
    },
    /// The file is well formed, but the tokenizer library cannot build what it describes.
    #[error(
        "tokenizer.json: expected a tokenizer that can be built, found: {reason}; fetch the file again, or report the model if others load it"
    )]
    Unusable {
        /// The library's own words.
        reason: String,
    },
    /// The text could not be split into known tokens.
    #[error(
        "expected text that this vocabulary can express, found: {reason}; use the tokenizer that belongs to the model"
    )]
    Encode {
        /// The library's own words.
        reason: String,
    },
}

/// Tokens of a text with the place each came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The tokens as the vocabulary spells them.
    pub tokens: Vec<String>,
    /// Half-open ranges of characters (not bytes) of the given text.
    pub offsets: Vec<(usize, usize)>,
}

/// A vocabulary with the rules of splitting text into it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The spelling of every added token. Decoding uses it as written, see `token`.
    added: HashMap<u32, String>,
    special: HashSet<u32>,
    names: Names,
    id_end: u32,
    guard: PatternGuard,
}

/// Ids of the tokens that have a role.
#[derive(Debug, Default, Clone, Copy)]
struct Names {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("id_end", &self.id_end)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a checkpoint from the bytes of its files.
    pub fn from_bytes(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&[u8]>,
        special_tokens_map: Option<&[u8]>,
    ) -> Result<Self, TokenizerError> {
        let tokenizer_json = without_bom(tokenizer_json);
        check_outline(tokenizer_json)?;
        let config = RoleFile::parse("tokenizer_config.json", tokenizer_config)?;
        let map = RoleFile::parse("special_tokens_map.json", special_tokens_map)?;
        // Some builders inside the library assert instead of returning an error (a regular expression of a
        // normalizer, a precompiled character map): a file must not be able to end the process.
        let built = catch_unwind(AssertUnwindSafe(|| build(tokenizer_json, &config, &map)));
        match built {
            Ok(result) => result,
            Err(_) => Err(TokenizerError::Unusable {
                reason: "the tokenizer library stopped while reading it".to_owned(),
            }),
        }
    }

    /// Ids of `text`; `add_special` lets the post-processor add its tokens (mostly a leading bos).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.guarded(text, || self.inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As `encode`, with the tokens' spelling and where in the text they stand.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoding, TokenizerError> {
        let encoding = self.guarded(text, || self.inner.encode_char_offsets(text, add_special))?;
        Ok(Encoding {
            ids: encoding.get_ids().to_vec(),
            tokens: encoding.get_tokens().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }

    /// Ids of a text in which `mark` stands inside of spelled control tokens: without the marks, and those spellings
    /// stay text. (One of a single letter has no inside, and stays what it is.)
    pub(crate) fn encode_quoted(&self, text: &str, mark: char) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.guarded(text, || {
            let normalizer = self.inner.get_normalizer();
            let mut pieces = self.inner.get_added_vocabulary().extract_and_normalize(normalizer, text);
            // Only now: added tokens have been found, and the rest has not been split into words.
            pieces.normalize(|piece| piece.replace(mark, ""))?;
            if let Some(splitter) = self.inner.get_pre_tokenizer() {
                splitter.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
            pieces.into_encoding(None, 0, OffsetType::None)
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// How the control tokens are written.
    pub(crate) fn control_spellings(&self) -> impl Iterator<Item = &str> {
        let added = self.added.iter().filter(|(id, _)| self.is_special(**id));
        added.map(|(_, content)| content.as_str()).filter(|content| !content.is_empty())
    }

    /// Text of `ids`, exactly as Hugging Face decodes the whole list; unknown ids are left out.
    ///
    /// A decoder that fails on a token (only one that `ByteTable` refuses too) leaves the tokens undecoded.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids.iter().filter(|&&id| !(skip_special && self.is_special(id)));
        let tokens: Vec<String> = kept.filter_map(|&id| self.token(id)).collect();
        let Some(decoder) = self.inner.get_decoder() else {
            return tokens.join(" ");
        };
        // `Strip` with a `stop` indexes past the end of short tokens, hence the guard.
        match catch_unwind(AssertUnwindSafe(|| decoder.decode(tokens.clone()))) {
            Ok(Ok(text)) => text,
            Ok(Err(_)) | Err(_) => tokens.concat(),
        }
    }

    /// How many tokens there are, added ones included. Ids may have holes: tables need `id_end` entries.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// One more than the largest id.
    pub fn id_end(&self) -> u32 {
        self.id_end
    }

    /// How the vocabulary spells a token.
    ///
    /// Added tokens are given as written. The library from 0.23 on gives their *normalized* spelling, and then
    /// no longer knows that they are special; goldens come from the version before.
    pub fn token(&self, id: u32) -> Option<String> {
        match self.added.get(&id) {
            Some(content) => Some(content.clone()),
            None => self.inner.get_model().id_to_token(id),
        }
    }

    /// The id of a token by its exact spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.names.bos
    }

    /// The token that ends a text, if the model names one.
    pub fn eos(&self) -> Option<u32> {
        self.names.eos
    }

    /// The token that fills up short rows of a batch; eos where the model names none.
    pub fn pad(&self) -> Option<u32> {
        self.names.pad.or(self.names.eos)
    }

    /// Whether the token is control rather than text, so that `skip_special` leaves it out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Whether the token stands beside the model's own vocabulary, so that its spelling in a text always becomes it.
    pub fn is_added(&self, id: u32) -> bool {
        self.added.contains_key(&id)
    }

    /// Runs one encoding; errors and panics of the library become our error.
    fn guarded(
        &self,
        text: &str,
        encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding, TokenizerError> {
        self.guard.check(text).map_err(|reason| TokenizerError::Encode { reason })?;
        let reason = match catch_unwind(AssertUnwindSafe(encode)) {
            Ok(Ok(encoding)) => return Ok(encoding),
            Ok(Err(error)) => clipped(error),
            Err(_) => "the tokenizer library stopped in this text".to_owned(),
        };
        Err(TokenizerError::Encode { reason })
    }

    pub(crate) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.inner.get_decoder()
    }
}

/// Builds everything. Runs inside `catch_unwind`.
fn build(tokenizer_json: &[u8], config: &RoleFile, map: &RoleFile) -> Result<Tokenizer, TokenizerError> {
    let unusable = |reason: String| TokenizerError::Unusable { reason };
    let mut inner: tokenizers::Tokenizer =
        serde_json::from_slice(tokenizer_json).map_err(|error| unusable(clipped(error)))?;
    // Both settings are leftovers of a training script; transformers resets them before each call as well.
    inner.with_truncation(None).map_err(|error| unusable(clipped(error)))?;
    inner.with_padding(None);
    // The Python layer lets the config overrule the file here, but only for a pre-tokenizer that stands alone.
    if let (Some(prefix), Some(PreTokenizerWrapper::ByteLevel(byte_level))) =
        (config.add_prefix_space, inner.get_pre_tokenizer())
    {
        let byte_level = byte_level.add_prefix_space(prefix);
        inner.with_pre_tokenizer(Some(byte_level));
    }
    let declared = declared_tokens(config, map, &inner);
    inner.add_tokens(declared).map_err(|error| unusable(clipped(error)))?;

    let added = inner.get_added_tokens_decoder();
    check_added(&inner, added.values())?;
    let special_spellings: HashSet<&str> =
        added.values().filter(|token| token.special).map(|token| token.content.as_str()).collect();
    let vocabulary = inner.get_vocab(true);
    let id_end = vocabulary.values().copied().max().map_or(0, |id| id.saturating_add(1));
    if id_end == 0 || id_end > ID_LIMIT {
        return Err(TokenizerError::Malformed {
            file: "tokenizer.json",
            expected: "at least one token, and ids below 16777216",
            found: format!("{} tokens, largest id {}", vocabulary.len(), id_end.saturating_sub(1)),
            advice: "fetch the file again",
        });
    }
    // The library decides by spelling, so a second id with a special token's spelling is special as well.
    let special = vocabulary
        .iter()
        .filter(|(token, _)| special_spellings.contains(token.as_str()))
        .map(|(_, &id)| id)
        .chain(
            added
                .iter()
                .filter(|(_, token)| special_spellings.contains(token.content.as_str()))
                .map(|(&id, _)| id),
        )
        .collect();
    let names = names(config, map, &inner);
    let added = added.into_iter().map(|(id, token)| (id, token.content)).collect();
    let part =
        |part: Result<serde_json::Value, serde_json::Error>| part.map_err(|error| unusable(clipped(error)));
    let normalizer = part(serde_json::to_value(inner.get_normalizer()))?;
    let pre_tokenizer = part(serde_json::to_value(inner.get_pre_tokenizer()))?;
    let guard = PatternGuard::new(&normalizer, &pre_tokenizer).map_err(unusable)?;
    Ok(Tokenizer { inner, added, special, names, id_end, guard })
}

/// Refuses an added token of which the normalizer leaves nothing: the library finds it in a text without end, and takes
/// memory for each.
fn check_added<'t>(
    inner: &tokenizers::Tokenizer,
    added: impl Iterator<Item = &'t AddedToken>,
) -> Result<(), TokenizerError> {
    let Some(normalizer) = inner.get_normalizer() else { return Ok(()) };
    for token in added.filter(|token| token.normalized) {
        let mut spelling = NormalizedString::from(token.content.as_str());
        let normalized = normalizer.normalize(&mut spelling);
        normalized.map_err(|error| TokenizerError::Unusable { reason: clipped(error) })?;
        if spelling.get().is_empty() {
            return Err(TokenizerError::Malformed {
                file: "tokenizer.json",
                expected: "added tokens of which the normalizer leaves something",
                found: format!("{:?}, of which it leaves nothing", clipped(&token.content)),
                advice: "set `normalized` of this token to false",
            });
        }
    }
    Ok(())
}

/// Tokens that the two small files declare and `tokenizer.json` may lack, in the order transformers adds them.
fn declared_tokens(config: &RoleFile, map: &RoleFile, inner: &tokenizers::Tokenizer) -> Vec<AddedToken> {
    let roles = roles_in_force(config, map);
    let spelled: HashSet<&str> = roles.iter().map(|(_, token)| token.content.as_str()).collect();
    let mut tokens: Vec<AddedToken> = config
        .added
        .values()
        .map(|token| token.to_added(token.special || spelled.contains(token.content.as_str())))
        .collect();
    let mut known: HashSet<String> =
        inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    known.extend(tokens.iter().map(|token| token.content.clone()));
    for (_, token) in roles {
        if known.insert(token.content.clone()) {
            tokens.push(token.to_added(true));
        }
    }
    tokens.retain(|token| !token.content.is_empty());
    tokens
}

/// Which file's named tokens count: with `added_tokens_decoder` the config speaks alone, without it (files from
/// before transformers 4.34) the map overrides it. The map also fills what the config does not mention.
fn roles_in_force<'a>(config: &'a RoleFile, map: &'a RoleFile) -> Vec<(&'a str, &'a TokenSpec)> {
    let (first, second) = if config.added.is_empty() { (map, config) } else { (config, map) };
    let mentioned = |role: &str| first.roles.iter().any(|(name, _)| name == role);
    first
        .roles
        .iter()
        .chain(second.roles.iter().filter(|(name, _)| !mentioned(name)))
        .filter_map(|(name, token)| token.as_ref().map(|token| (name.as_str(), token)))
        .collect()
}

/// The named tokens as chat templates are given them, by role; those of a list are named `list[index]`.
pub(crate) fn special_tokens(
    config: Option<&[u8]>,
    map: Option<&[u8]>,
) -> Result<Vec<(String, String)>, TokenizerError> {
    let config = RoleFile::parse("tokenizer_config.json", config)?;
    let map = RoleFile::parse("special_tokens_map.json", map)?;
    let roles = roles_in_force(&config, &map).into_iter();
    let roles = roles.filter(|(_, token)| !token.content.is_empty());
    Ok(roles.map(|(role, token)| (role.to_owned(), token.content.clone())).collect())
}

fn names(config: &RoleFile, map: &RoleFile, inner: &tokenizers::Tokenizer) -> Names {
    let roles = roles_in_force(config, map);
    let find = |role: &str| {
        let spec = roles.iter().find(|(name, _)| *name == role)?.1;
        inner.token_to_id(&spec.content)
    };
    Names { bos: find("bos_token"), eos: find("eos_token"), pad: find("pad_token") }
}

/// A token as the small files write it: a string, or an object with flags.
#[derive(Debug, Clone)]
struct TokenSpec {
    content: String,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
    normalized: bool,
    special: bool,
}

impl TokenSpec {
    fn from_json(value: &serde_json::Value) -> Option<Self> {
        let flag = |name: &str| value.get(name).and_then(serde_json::Value::as_bool);
        let (content, special) = match value {
            serde_json::Value::String(content) => (content.clone(), true),
            serde_json::Value::Object(object) => {
                (object.get("content")?.as_str()?.to_owned(), flag("special").unwrap_or(false))
            }
            _ => return None,
        };
        Some(TokenSpec {
            content,
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            single_word: flag("single_word").unwrap_or(false),
            // As `AddedToken` in Python: special tokens are matched in the raw text unless the file says otherwise.
            normalized: flag("normalized").unwrap_or(!special),
            special,
        })
    }

    fn to_added(&self, special: bool) -> AddedToken {
        AddedToken::from(self.content.clone(), special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized)
    }
}

/// The roles in transformers' order; the order decides the ids of tokens that are new to the vocabulary.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What `tokenizer_config.json` and `special_tokens_map.json` say about tokens.
#[derive(Debug, Default)]
struct RoleFile {
    /// Roles that the file mentions; `None` where it says null.
    roles: Vec<(String, Option<TokenSpec>)>,
    /// `added_tokens_decoder`, by id.
    added: BTreeMap<u32, TokenSpec>,
    /// Whether a text without a leading space gets one.
    add_prefix_space: Option<bool>,
}

impl RoleFile {
    fn parse(file: &'static str, bytes: Option<&[u8]>) -> Result<Self, TokenizerError> {
        let Some(bytes) = bytes else {
            return Ok(Self::default());
        };
        let malformed = |expected: &'static str, found: String| TokenizerError::Malformed {
            file,
            expected,
            found,
            advice: "fetch the file again, or correct it by hand",
        };
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(without_bom(bytes))
                .map_err(|error| malformed("a JSON object", clipped(error)))?;
        let token = |value: &serde_json::Value| {
            TokenSpec::from_json(value)
                .ok_or_else(|| malformed("a token as a string or as an object with `content`", brief(value)))
        };
        let mut result = RoleFile {
            add_prefix_space: object.get("add_prefix_space").and_then(serde_json::Value::as_bool),
            ..Self::default()
        };
        for role in ROLES {
            match object.get(role) {
                None => {}
                Some(serde_json::Value::Null) => result.roles.push((role.to_owned(), None)),
                Some(value) => result.roles.push((role.to_owned(), Some(token(value)?))),
            }
        }
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            // `extra_special_tokens` may also be an object, which names roles of multimodal models.
            let listed = object.get(key).and_then(serde_json::Value::as_array).into_iter().flatten();
            for (index, value) in listed.enumerate() {
                result.roles.push((format!("{key}[{index}]"), Some(token(value)?)));
            }
        }
        if let Some(added) = object.get("added_tokens_decoder").and_then(serde_json::Value::as_object) {
            for (id, value) in added {
                let id =
                    id.parse().map_err(|_| malformed("ids as keys of added_tokens_decoder", clipped(id)))?;
                result.added.insert(id, token(value)?);
            }
        }
        Ok(result)
    }
}

/// A value of someone's file, short enough for a message.
fn brief(value: &serde_json::Value) -> String {
    let mut text: String = value.to_string().chars().take(60).collect();
    if text.chars().count() == 60 {
        text.push('…');
    }
    text
}

fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Reads the file once without building anything. The library panics on broken JSON inside `decoder` and names
/// neither the file nor the key in its errors; this pass answers the frequent mistakes in our words.
fn check_outline(bytes: &[u8]) -> Result<(), TokenizerError> {
    let malformed = |expected, found: String, advice| TokenizerError::Malformed {
        file: "tokenizer.json",
        expected,
        found,
        advice,
    };
    if bytes.starts_with(b"version https://git-lfs") {
        let advice = "run `git lfs pull` in the model's folder";
        return Err(malformed("a JSON object", "a Git LFS pointer".to_owned(), advice));
    }
    let outline: Outline = serde_json::from_slice(bytes).map_err(|error| {
        malformed("a JSON object with `model.vocab`", clipped(error), "fetch the file again")
    })?;
    let Some(model) = outline.model else {
        let advice = "give the tokenizer.json that lies beside the model's weights";
        return Err(malformed("the key `model`", "none".to_owned(), advice));
    };
    if let Some(token) = outline.post_processor.as_ref().and_then(undeclared_template_token) {
        let found = format!("{:?}, which its `special_tokens` lack", clipped(token));
        return Err(malformed(
            "declared tokens in the template of `post_processor`",
            found,
            "fetch the file again",
        ));
    }
    match model.vocab {
        None => Err(malformed("the key `model.vocab`", "none".to_owned(), "fetch the file again")),
        Some(Count(0)) => {
            Err(malformed("tokens in `model.vocab`", "none".to_owned(), "fetch the file again"))
        }
        Some(Count(_)) => Ok(()),
    }
}

/// A token that a template uses and does not declare, which the library would only notice by a panic in `encode`.
fn undeclared_template_token(processor: &serde_json::Value) -> Option<&str> {
    let entries = |key: &str| processor.get(key).and_then(serde_json::Value::as_array).into_iter().flatten();
    let declared = &processor["special_tokens"];
    let mut used =
        entries("single").chain(entries("pair")).filter_map(|piece| piece["SpecialToken"]["id"].as_str());
    used.find(|token| declared.get(token).is_none())
        .or_else(|| entries("processors").find_map(undeclared_template_token))
}

/// The two small parts are read as values because the library panics where their text is not valid Unicode.
#[derive(Deserialize)]
struct Outline {
    model: Option<ModelOutline>,
    #[serde(rename = "decoder")]
    _decoder: Option<serde_json::Value>,
    post_processor: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct ModelOutline {
    vocab: Option<Count>,
}

/// The number of entries of a list or an object, none of which is kept.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Count;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list or an object of tokens")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Count, E> {
                Err(E::invalid_type(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Counter)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;
    use serde_json::json;

    /// A byte-fallback tokenizer of a few tokens, changed by the test.
    fn file(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "</s>": 2, "ab": 3, "<s>": 4}, "merges": [["a", "b"]]}});
        change(&mut file);
        file.to_string().into_bytes()
    }

    fn built(config: Option<serde_json::Value>, map: Option<serde_json::Value>) -> Tokenizer {
        let bytes = |value: Option<serde_json::Value>| value.map(|value| value.to_string().into_bytes());
        let (config, map) = (bytes(config), bytes(map));
        Tokenizer::from_bytes(&file(|_| {}), config.as_deref(), map.as_deref()).unwrap()
    }

    fn check_refused(bytes: &[u8], message: &str) {
        let error = Tokenizer::from_bytes(bytes, None, None).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn broken_files_are_explained() {
        check_refused(b"", "tokenizer.json: expected a JSON object");
        check_refused(b"[]", "tokenizer.json: expected a JSON object");
        check_refused(b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull");
        check_refused(&file(|f| f["model"] = json!(null)), "expected the key `model`, found none");
        check_refused(
            &file(|f| f["model"]["vocab"] = json!(null)),
            "expected the key `model.vocab`, found none",
        );
        check_refused(&file(|f| f["model"]["vocab"] = json!({})), "expected tokens in `model.vocab`");
        check_refused(&file(|f| f["model"]["vocab"] = json!("a b")), "a list or an object of tokens");
        check_refused(
            &file(|f| f["model"]["vocab"] = json!({"a": 0, "b": 1, "ab": 4_000_000_000_u32})),
            "ids below 16777216",
        );
        check_refused(&file(|f| f["decoder"] = json!({"type": "Magic"})), "can be built");
        let split =
            json!({"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": false});
        check_refused(&file(|f| f["pre_tokenizer"] = split), "can be built");
        let whole = file(|_| {});
        check_refused(&whole[..whole.len() / 2], "tokenizer.json: expected a JSON object");
    }

    #[test]
    fn an_added_token_that_normalizes_to_nothing_is_refused() {
        let of = |normalized: bool| {
            file(|f| {
                f["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": true});
                f["added_tokens"] = json!([{"id": 5, "content": "  ", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": normalized, "special": false}]);
            })
        };
        check_refused(&of(true), "of which it leaves nothing");
        let tokenizer = Tokenizer::from_bytes(&of(false), None, None).unwrap();
        assert_eq!(tokenizer.encode("ab  a", false).unwrap(), [3, 5, 0]);
    }

    #[test]
    fn a_file_is_not_repeated_in_its_message() {
        let long = "x".repeat(100_000);
        let template = json!({"type": "TemplateProcessing", "special_tokens": {}, "pair": [],
            "single": [{"SpecialToken": {"id": long, "type_id": 0}}]});
        let files = [
            file(|f| f["model"] = json!(long)),
            file(|f| f["model"]["vocab"] = json!(long)),
            file(|f| f["model"]["vocab"] = json!({"a": long})),
            file(|f| f["model"]["merges"] = json!([long])),
            file(|f| f["normalizer"] = json!({"type": long})),
            file(|f| f["decoder"] = json!({"type": "Fuse", long.as_str(): 1, "x": long})),
            file(|f| f["post_processor"] = template),
            format!("{{\"model\": {long}}}").into_bytes(),
        ];
        let messages = files.iter().filter_map(|file| Tokenizer::from_bytes(file, None, None).err());
        let small = [json!(long), json!({"eos_token": [long]}), json!({"added_tokens_decoder": {long: "a"}})];
        let small = small.map(|value| value.to_string().into_bytes());
        let small = small.iter().map(|config| {
            Tokenizer::from_bytes(&file(|_| {}), Some(config), None).expect_err("must be refused")
        });
        let messages: Vec<String> = messages.chain(small).map(|error| error.to_string()).collect();
        assert!(messages.len() >= 10, "{messages:?}");
        for message in messages {
            assert!(message.len() < 600, "{} bytes: {}", message.len(), &message[..600]);
        }
    }

    #[test]
    fn an_undeclared_token_of_a_template_is_found_at_once() {
        let template = json!({"type": "Sequence", "processors": [{"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [], "special_tokens": {}}]});
        check_refused(&file(|f| f["post_processor"] = template), "\"<s>\", which its `special_tokens` lack");
    }

    #[test]
    fn a_byte_order_mark_and_leftover_settings_are_ignored() {
        let padding = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "a"});
        let truncation =
            json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
        let mut bytes = b"\xef\xbb\xbf".to_vec();
        bytes.extend(file(|f| {
            f["padding"] = padding;
            f["truncation"] = truncation;
        }));
        let tokenizer = Tokenizer::from_bytes(&bytes, None, None).unwrap();
        assert_eq!(tokenizer.encode("abba", true).unwrap(), [3, 1, 0]);
    }

    #[test]
    fn named_tokens_become_special() {
        let plain = built(None, None);
        assert_eq!((plain.eos(), plain.pad(), plain.is_special(2)), (None, None, false));
        let named =
            built(Some(json!({"eos_token": {"content": "</s>", "lstrip": false}, "bos_token": "<s>"})), None);
        assert_eq!((named.bos(), named.eos(), named.pad()), (Some(4), Some(2), Some(2)));
        assert_eq!(named.encode("ab</s>", false).unwrap(), [3, 2]);
        assert_eq!(named.decode(&[3, 2], true), "ab");
    }

    #[test]
    fn the_map_counts_only_where_the_config_is_silent_or_old() {
        let old = built(Some(json!({"eos_token": "a"})), Some(json!({"eos_token": "</s>"})));
        assert_eq!(old.eos(), Some(2));
        let declared = json!({"2": {"content": "</s>", "special": true}});
        let new = built(
            Some(json!({"added_tokens_decoder": declared, "eos_token": "a", "bos_token": null})),
            Some(json!({"eos_token": "</s>", "bos_token": "<s>", "pad_token": "b"})),
        );
        assert_eq!((new.eos(), new.bos(), new.pad()), (Some(0), None, Some(1)));
    }

    #[test]
    fn wrong_small_files_name_themselves() {
        let error = |config: &[u8], map: &[u8]| {
            Tokenizer::from_bytes(&file(|_| {}), Some(config), Some(map)).unwrap_err().to_string()
        };
        assert!(error(b"{\"eos_token\": 3}", b"{}").starts_with("tokenizer_config.json: expected a token"));
        assert!(error(b"{}", b"nothing").starts_with("special_tokens_map.json: expected a JSON object"));
    }

    #[test]
    fn the_config_decides_about_a_leading_space() {
        let bytes = file(|f| {
            f["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": true,
                "trim_offsets": true, "use_regex": true});
            f["model"]["vocab"]["Ġ"] = json!(5);
        });
        let ids = |config: &[u8]| {
            Tokenizer::from_bytes(&bytes, Some(config), None).unwrap().encode("ab", false).unwrap()
        };
        assert_eq!(ids(b"{}"), [5, 3]);
        assert_eq!(ids(b"{\"add_prefix_space\": false}"), [3]);
    }

    #[test]
    fn a_decoder_that_panics_ends_no_process() {
        let bytes = file(|f| f["decoder"] = json!({"type": "Strip", "content": "a", "start": 1, "stop": 1}));
        let tokenizer = Tokenizer::from_bytes(&bytes, None, None).unwrap();
        assert_eq!(tokenizer.decode(&[0, 1], false), "ab");
    }
}
