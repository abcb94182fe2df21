//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! It is not a list of files to open: it is checked text, and the names in it are plain file names. The checkpoint
//! compares it with what the shards themselves say.

use super::header::{NAME_BYTES_MAX, TENSORS_MAX};
use super::json::{JsonError, Reader, Text, Texts, quote};
use std::collections::{HashMap, HashSet};
use thiserror::Error;

/// Largest index file.
pub const INDEX_BYTES_MAX: u64 = 32 << 20;
/// Most shards. The largest published models have under 200, and each costs an open file and a map.
pub const SHARDS_MAX: usize = 1000;
/// The name of the index in a model folder.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// Why a shard index was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum IndexError {
    #[error("expected at most {INDEX_BYTES_MAX} bytes, found {found}")]
    TooLong { found: u64 },
    #[error("expected UTF-8, found another byte at {at}")]
    NotUtf8 { at: usize },
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("expected the key weight_map with a shard for every tensor, found none")]
    NoWeightMap,
    #[error("expected every key once, found {key} twice")]
    Duplicate { key: Box<str> },
    #[error("expected at most {limit} tensors, found more")]
    TooManyTensors { limit: usize },
    #[error("expected at most {SHARDS_MAX} shards, found more")]
    TooManyShards,
    #[error("tensor name {tensor} has {found} bytes; expected 1 to {NAME_BYTES_MAX}")]
    NameLength { tensor: Box<str>, found: usize },
    #[error(
        "tensor {tensor}: expected a shard that is the plain name of a .safetensors file in the same \
            folder, found {found}"
    )]
    ShardName { tensor: Box<str>, found: Box<str> },
}

/// A checked shard index.
#[derive(Debug)]
pub struct ShardIndex {
    texts: Texts,
    shards: Vec<Text>,
    rows: Vec<(Text, u16)>,
}

impl ShardIndex {
    /// Names of the shard files, in the order in which the index first names them.
    pub fn shards(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|&shard| self.texts.get(shard))
    }

    /// Every tensor with the number of its shard.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, usize)> {
        self.rows.iter().map(|&(name, shard)| (self.texts.get(name), usize::from(shard)))
    }
}

/// Reads the bytes of an index.
pub fn parse(bytes: &[u8]) -> Result<ShardIndex, IndexError> {
    if bytes.len() as u64 > INDEX_BYTES_MAX {
        return Err(IndexError::TooLong { found: bytes.len() as u64 });
    }
    from_vec(bytes.to_vec())
}

/// [`parse`] without a copy; the caller has checked the length.
pub(crate) fn from_vec(bytes: Vec<u8>) -> Result<ShardIndex, IndexError> {
    let text =
        String::from_utf8(bytes).map_err(|e| IndexError::NotUtf8 { at: e.utf8_error().valid_up_to() })?;
    let mut parser =
        Parser { reader: Reader::new(&text), numbers: HashMap::new(), shards: Vec::new(), rows: Vec::new() };
    parser.document()?;
    parser.check_unique()?;
    let Parser { reader, shards, rows, .. } = parser;
    let decoded = reader.into_decoded();
    Ok(ShardIndex { texts: Texts { document: text.into(), decoded }, shards, rows })
}

struct Parser<'a> {
    reader: Reader<'a>,
    numbers: HashMap<Box<str>, u16>,
    shards: Vec<Text>,
    rows: Vec<(Text, u16)>,
}

impl Parser<'_> {
    fn quoted(&self, text: Text) -> Box<str> {
        quote(self.reader.get(text))
    }

    fn document(&mut self) -> Result<(), IndexError> {
        self.reader.take(b'{', "'{', the start of a shard index")?;
        let (mut first, mut weight_map, mut metadata) = (true, false, false);
        while let Some(key) = self.reader.next_key(&mut first)? {
            let twice = match self.reader.get(key) {
                "weight_map" => std::mem::replace(&mut weight_map, true),
                "metadata" => std::mem::replace(&mut metadata, true),
                _ => false,
            };
            if twice {
                return Err(IndexError::Duplicate { key: self.quoted(key) });
            }
            if self.reader.get(key) == "weight_map" {
                self.weight_map()?
            } else {
                self.reader.skip_value()?
            }
        }
        self.reader.end()?;
        if weight_map { Ok(()) } else { Err(IndexError::NoWeightMap) }
    }

    fn weight_map(&mut self) -> Result<(), IndexError> {
        self.reader.take(b'{', "'{' after weight_map")?;
        let mut first = true;
        while let Some(name) = self.reader.next_key(&mut first)? {
            let found = self.reader.get(name).len();
            if found == 0 || found > NAME_BYTES_MAX {
                return Err(IndexError::NameLength { tensor: self.quoted(name), found });
            }
            if self.rows.len() == TENSORS_MAX {
                return Err(IndexError::TooManyTensors { limit: TENSORS_MAX });
            }
            let shard = self.reader.string("the name of a shard")?;
            let number = self.number(name, shard)?;
            self.rows.push((name, number));
        }
        Ok(())
    }

    fn number(&mut self, tensor: Text, shard: Text) -> Result<u16, IndexError> {
        let name = self.reader.get(shard);
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        if !is_shard_name(name) {
            return Err(IndexError::ShardName { tensor: self.quoted(tensor), found: self.quoted(shard) });
        }
        if self.shards.len() == SHARDS_MAX {
            return Err(IndexError::TooManyShards);
        }
        let number = u16::try_from(self.shards.len()).expect("SHARDS_MAX fits");
        self.numbers.insert(name.into(), number);
        self.shards.push(shard);
        Ok(number)
    }

    fn check_unique(&self) -> Result<(), IndexError> {
        let mut seen = HashSet::with_capacity(self.rows.len());
        match self.rows.iter().find(|(name, _)| !seen.insert(self.reader.get(*name))) {
            Some(&(name, _)) => Err(IndexError::Duplicate { key: self.quoted(name) }),
            None => Ok(()),
        }
    }
}

/// A plain file name: no separator of any system, no drive letter, nothing a terminal would obey. The ending also
/// keeps an index from naming itself.
fn is_shard_name(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.len() <= 255
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        match parse(text.as_bytes()) {
            Ok(index) => assert_eq!(format!("{:?}", index.tensors().collect::<Vec<_>>()), expected),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    message.contains(expected) && !expected.is_empty(),
                    "{message}\nexpected: {expected}"
                );
            }
        }
    }

    #[test]
    fn an_index_is_read() {
        check(
            concat!(
                r#"{"metadata":{"total_size":7,"x":[{}]},"weight_map":"#,
                r#"{"a":"m1.safetensors","b":"m2.safetensors","c":"m1.safetensors"}}"#
            ),
            r#"[("a", 0), ("b", 1), ("c", 0)]"#,
        );
        check(r#"{"weight_map":{}}"#, "[]");
    }

    #[test]
    fn shards_stay_in_the_folder() {
        for shard in [
            "../x.safetensors",
            "/etc/x.safetensors",
            "a/b.safetensors",
            "..",
            "",
            ".x.safetensors",
            "C:x.safetensors",
            "..\\\\x.safetensors",
            "x\\u0000.safetensors",
            "x.bin",
            INDEX_NAME,
        ] {
            check(&format!(r#"{{"weight_map":{{"w":"{shard}"}}}}"#), "tensor \"w\"");
        }
    }

    #[test]
    fn duplicates_are_refused() {
        check(r#"{"weight_map":{"a":"m.safetensors","a":"m.safetensors"}}"#, "\"a\" twice");
        check(r#"{"weight_map":{"a":"m.safetensors","\u0061":"m.safetensors"}}"#, "\"a\" twice");
        check(r#"{"weight_map":{},"weight_map":{}}"#, "\"weight_map\" twice");
        check(r#"{"metadata":{}}"#, "weight_map");
    }
}
