//! From a head's vocabulary to `tokenizer.json` and `tokenizer_config.json`.
//!
//! Two kinds of vocabulary are read: one with merges, whose text is split by a pattern that the file only names, and
//! one with scores, of which merges are made: a pair becomes the piece that it spells, that of the highest score first.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::{Container, GgufError};
use crate::checkpoint::json::quote;
use crate::families::{ENDS, ENDS_UNLESS, MERGED, SCORED, SPLIT_PLAIN, SPLITS, Split};

/// Types of tokens.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// No merge leads to a longer piece: to try all its halves takes time with the square of its length.
const PIECE_CHARACTERS_MAX: usize = 128;

/// What the head says of tokens.
struct Vocabulary<'a> {
    head: &'a Container,
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(head: &'a Container) -> Result<Option<Self>, GgufError> {
        let Some(tokens) = head.texts("tokenizer.ggml.tokens")? else { return Ok(None) };
        let types = match head.numbers("tokenizer.ggml.token_type", tokens.len())? {
            Some(types) => types.into_iter().map(|kind| kind as i64).collect(),
            None => vec![NORMAL; tokens.len()],
        };
        Ok(Some(Vocabulary { head, tokens, types }))
    }

    /// The token that a key names.
    fn named(&self, role: &str) -> Result<Option<(u64, &'a str)>, GgufError> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        // Some tools write -1 where there is none.
        if let Some(super::Value::Whole(..0)) = self.head.get(&key) {
            return Ok(None);
        }
        let Some(id) = self.head.size(&key)? else { return Ok(None) };
        match usize::try_from(id).ok().and_then(|id| self.tokens.get(id)) {
            Some(token) => Ok(Some((id, token))),
            None => self.head.wrong(&key, &format!("an id below {}", self.tokens.len())),
        }
    }

    /// Ids by spelling, of which every one is to be another.
    fn ids(&self, spelled: &'a [String]) -> Result<BTreeMap<&'a str, usize>, GgufError> {
        let mut ids = BTreeMap::new();
        for (id, token) in spelled.iter().enumerate() {
            if ids.insert(token.as_str(), id).is_some() {
                return Err(GgufError::Twice { what: "token", name: quote(token) });
            }
        }
        Ok(ids)
    }

    fn has_control(&self, spelling: &str) -> Option<usize> {
        let mut tokens = self.tokens.iter().zip(&self.types);
        tokens.position(|(token, kind)| *token == spelling && matches!(*kind, CONTROL | USER_DEFINED))
    }
}

/// Ids of the tokens that end a reply.
pub(super) fn ends(head: &Container) -> Result<Vec<u64>, GgufError> {
    let Some(vocabulary) = Vocabulary::read(head)? else { return Ok(Vec::new()) };
    let mut ids = Vec::new();
    for role in ["eos", "eot", "eom"] {
        ids.extend(vocabulary.named(role)?.map(|(id, _)| id));
    }
    let unless = ENDS_UNLESS.iter().any(|token| vocabulary.has_control(token).is_some());
    // Many files name only the end of a text; a reply ends with a token of its own.
    for &(token, always) in ENDS {
        ids.extend(vocabulary.has_control(token).filter(|_| always || !unless).map(|id| id as u64));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Ids that configurations name, `null` where the file names none.
pub(super) fn ids(head: &Container) -> Result<[(&'static str, Option<u64>); 2], GgufError> {
    let vocabulary = Vocabulary::read(head)?;
    let id = |role: &str| -> Result<Option<u64>, GgufError> {
        let Some(vocabulary) = &vocabulary else { return Ok(None) };
        Ok(vocabulary.named(role)?.map(|(id, _)| id))
    };
    Ok([("bos_token_id", id("bos")?), ("pad_token_id", id("padding")?)])
}

/// `tokenizer_config.json` beside a `tokenizer.json` that says all of how text is split.
pub(super) fn folder_config(head: &Container) -> Result<Vec<u8>, GgufError> {
    let mut config = tokenizer_settings(head)?;
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    // A list is for several.
    if let Some([only]) = config.get("chat_template").and_then(Json::as_array).map(Vec::as_slice)
        && only["name"] == "default"
    {
        let template = only["template"].clone();
        config.insert("chat_template".to_owned(), template);
    }
    Ok(format!("{:#}\n", Json::Object(config)).into_bytes())
}

/// `tokenizer_config.json`: named tokens and chat templates.
pub(super) fn tokenizer_config(head: &Container) -> Result<Vec<u8>, GgufError> {
    Ok(Json::Object(tokenizer_settings(head)?).to_string().into_bytes())
}

fn tokenizer_settings(head: &Container) -> Result<Map<String, Json>, GgufError> {
    let mut config = Map::new();
    if let Some(vocabulary) = Vocabulary::read(head)? {
        for (role, own) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
            if let Some((_, token)) = vocabulary.named(own)? {
                config.insert(format!("{role}_token"), json!(token));
            }
        }
    }
    let mut templates = Vec::new();
    if let Some(template) = head.text("tokenizer.chat_template")? {
        templates.push(json!({"name": "default", "template": template}));
    }
    for key in head.keys() {
        if let Some(name) = key.strip_prefix("tokenizer.chat_template.") {
            templates.push(json!({"name": name, "template": head.text(key)?}));
        }
    }
    if !templates.is_empty() {
        config.insert("chat_template".to_owned(), Json::Array(templates));
    }
    Ok(config)
}

#[derive(Serialize)]
struct File<'a> {
    version: &'static str,
    added_tokens: Vec<Json>,
    normalizer: Json,
    pre_tokenizer: Json,
    post_processor: Json,
    decoder: Json,
    model: Model<'a>,
}

#[derive(Serialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    unk_token: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, usize>,
    merges: Vec<(&'a str, &'a str)>,
}

/// `tokenizer.json`.
pub(super) fn tokenizer(head: &Container) -> Result<Option<Vec<u8>>, GgufError> {
    let key = "tokenizer.ggml.model";
    let Some(vocabulary) = Vocabulary::read(head)? else { return Ok(None) };
    let spell = |(id, token): (usize, &&str)| match token.is_empty() {
        true => format!("[EMPTY_{id}]"),
        false => (*token).to_owned(),
    };
    let spelled: Vec<String> = vocabulary.tokens.iter().enumerate().map(spell).collect();
    let file = match head.text(key)? {
        Some(MERGED) => merged(&vocabulary, &spelled)?,
        Some(SCORED) => scored(&vocabulary, &spelled)?,
        _ => return head.wrong(key, &format!("{MERGED} or {SCORED}: no other tokenizer is read yet")),
    };
    Ok(Some(serde_json::to_vec(&file).expect("texts and numbers can be written")))
}

/// A vocabulary with merges.
fn merged<'a>(vocabulary: &Vocabulary<'a>, spelled: &'a [String]) -> Result<File<'a>, GgufError> {
    let head = vocabulary.head;
    let key = "tokenizer.ggml.pre";
    let name = head.text(key)?.unwrap_or("default");
    let Some(split) = SPLITS.iter().find(|split| split.names.contains(&name)) else {
        let known: Vec<&str> = SPLITS.iter().flat_map(|split| split.names.iter().copied()).collect();
        return head.wrong(key, &format!("one of {}", known.join(", ")));
    };
    let key = "tokenizer.ggml.merges";
    let Some(merges) = head.texts(key)? else {
        return Err(GgufError::Missing { key: key.into(), expected: "the merges of the vocabulary".into() });
    };
    let ids = vocabulary.ids(spelled)?;
    let halves = |merge: &&'a str| {
        // A first half may begin with the space that stands between the two.
        let from = merge.chars().next().map_or(0, char::len_utf8);
        let at = from + merge.get(from..)?.find(' ')?;
        Some((&merge[..at], &merge[at + 1..]))
    };
    let Some(merges) = merges.iter().map(halves).collect() else {
        return head.wrong(key, "two tokens with a space between them in every text");
    };
    Ok(File {
        version: "1.0",
        added_tokens: added(vocabulary, spelled),
        normalizer: if split.composed { json!({"type": "NFC"}) } else { Json::Null },
        pre_tokenizer: pre_tokenizer(split),
        post_processor: post_processor(vocabulary, split.bos)?,
        decoder: byte_level(true),
        model: Model {
            kind: "BPE",
            unk_token: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: split.ignore_merges,
            vocab: ids,
            merges,
        },
    })
}

fn byte_level(with_pattern: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": with_pattern})
}

fn pre_tokenizer(split: &Split) -> Json {
    // The pattern that the library has built in.
    let built_in = split.patterns.last() == Some(&SPLIT_PLAIN);
    let own = &split.patterns[..split.patterns.len() - usize::from(built_in)];
    let splits = own.iter().map(|pattern| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    });
    let all: Vec<Json> = splits.chain([byte_level(built_in)]).collect();
    json!({"type": "Sequence", "pretokenizers": all})
}

/// Tokens that stand beside the vocabulary proper: their spelling in a text always becomes them.
fn added(vocabulary: &Vocabulary, spelled: &[String]) -> Vec<Json> {
    let kinds = vocabulary.types.iter().enumerate();
    let added = kinds.filter(|(_, kind)| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED));
    let token = |(id, kind): (usize, &i64)| {
        json!({
            "id": id, "content": spelled[id], "special": *kind != USER_DEFINED,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    added.map(token).collect()
}

/// Tokens before and after a text.
fn post_processor(vocabulary: &Vocabulary, bos_by_default: bool) -> Result<Json, GgufError> {
    let mut tokens = Map::new();
    let mut piece = |role: &str, default: bool| -> Result<Option<Json>, GgufError> {
        let wanted = vocabulary.head.flag(&format!("tokenizer.ggml.add_{role}_token"))?.unwrap_or(default);
        let Some((id, token)) = vocabulary.named(role)?.filter(|_| wanted) else { return Ok(None) };
        tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        Ok(Some(json!({"SpecialToken": {"id": token, "type_id": 0}})))
    };
    let (bos, eos) = (piece("bos", bos_by_default)?, piece("eos", false)?);
    if tokens.is_empty() {
        return Ok(Json::Null);
    }
    let text = |name: &str| Some(json!({"Sequence": {"id": name, "type_id": 0}}));
    let single: Vec<Json> = [bos.clone(), text("A"), eos.clone()].into_iter().flatten().collect();
    let pair: Vec<Json> = [bos, text("A"), text("B"), eos].into_iter().flatten().collect();
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}))
}

/// A vocabulary with scores; a space is a character of its own, and bytes stand in for what has no piece.
fn scored<'a>(vocabulary: &Vocabulary<'a>, spelled: &'a [String]) -> Result<File<'a>, GgufError> {
    const SPACE: &str = "\u{2581}";
    let head = vocabulary.head;
    let key = "tokenizer.ggml.scores";
    let Some(scores) = head.numbers(key, spelled.len())? else {
        return Err(GgufError::Missing { key: key.into(), expected: "a score for every token".into() });
    };
    let ids = vocabulary.ids(spelled)?;
    let unknown = match vocabulary.named("unknown")? {
        Some((id, _)) => Some(id as usize),
        None => vocabulary.types.iter().position(|&kind| kind == UNKNOWN),
    };
    let prefixed = head.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let prepend = prefixed.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let normalizers: Vec<Json> = prepend.into_iter().chain([replace(" ", SPACE)]).collect();
    let strip = prefixed.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders = [replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    let decoders: Vec<Json> = decoders.into_iter().chain(strip).collect();
    Ok(File {
        version: "1.0",
        added_tokens: added(vocabulary, spelled),
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Json::Null,
        post_processor: post_processor(vocabulary, true)?,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: Model {
            kind: "BPE",
            unk_token: unknown.map(|id| spelled[id].as_str()),
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            merges: merges_of_scores(vocabulary, spelled, &scores),
            vocab: ids,
        },
    })
}

/// All pairs of pieces that spell a third, the best third first.
fn merges_of_scores<'a>(
    vocabulary: &Vocabulary,
    spelled: &'a [String],
    scores: &[f64],
) -> Vec<(&'a str, &'a str)> {
    let is_normal = |id: &usize| matches!(vocabulary.types[*id], 0 | NORMAL);
    let pieces: HashSet<&str> = (0..spelled.len()).filter(is_normal).map(|id| spelled[id].as_str()).collect();
    let mut found = Vec::new();
    for id in (0..spelled.len()).filter(is_normal) {
        let piece = &spelled[id];
        if piece.chars().nth(PIECE_CHARACTERS_MAX).is_some() {
            continue;
        }
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if pieces.contains(left) && pieces.contains(right) {
                found.push((scores[id], left, right));
            }
        }
    }
    found.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| (b.1.len(), b.2.len()).cmp(&(a.1.len(), a.2.len())))
    });
    found.into_iter().map(|(_, left, right)| (left, right)).collect()
}
