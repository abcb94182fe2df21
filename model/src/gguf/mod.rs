//! GGUF files: another project's container, which holds a whole model. Here it becomes what the rest of the house
//! already reads: a checkpoint whose tensors have their usual names, and the small files that lie beside one.
//!
//! `container.rs` reads the head, `parts.rs` the files of a split model and the names of tensors, `settings.rs` makes
//! the configuration, `vocabulary.rs` the tokenizer. What differs from family to family stands in `families.rs`.
//! `restore.rs` writes a file out as the folder that it was made from.

pub mod container;
mod parts;
pub mod restore;
mod settings;
mod vocabulary;

use std::path::{Path, PathBuf};

pub use container::{Container, GgufError};
pub(crate) use parts::{Part, named, open};

use bantam_core::layouts::Shape;

use crate::checkpoint::CheckpointError;
use crate::families::Family;
use crate::formats::{self, gguf::Kind};
use crate::plan::Stored;
use container::{Array, Value};
use parts::RopeFactors;

/// The metadata of a model in the words of Hugging Face's files. They are made when they are asked for: a vocabulary is
/// large, and not every caller wants it.
#[derive(Debug)]
pub(crate) struct Metadata {
    path: PathBuf,
    /// Heads of all files of the model; keys count in the first.
    heads: Vec<Container>,
    factors: RopeFactors,
}

impl Metadata {
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let parts = open(path)?;
        let factors = RopeFactors::read(&parts)?;
        Ok(Metadata { path: path.into(), heads: parts.into_iter().map(|part| part.head).collect(), factors })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file's architecture stands for.
    pub(crate) fn family(&self) -> Result<&'static Family, GgufError> {
        settings::family(&self.heads[0])
    }

    /// `config.json`.
    pub(crate) fn config(&self) -> Result<Vec<u8>, GgufError> {
        settings::config(&self.heads, &self.factors)
    }

    /// The key that a key of `config.json` came from.
    pub(crate) fn origin(&self, key: &str) -> Option<String> {
        settings::origin(&self.heads[0], key)
    }

    /// `tokenizer.json`, where there is a vocabulary.
    pub(crate) fn tokenizer(&self) -> Result<Option<Vec<u8>>, GgufError> {
        vocabulary::tokenizer(&self.heads[0])
    }

    /// `tokenizer_config.json`, the chat template included.
    pub(crate) fn tokenizer_config(&self) -> Result<Vec<u8>, GgufError> {
        vocabulary::tokenizer_config(&self.heads[0])
    }

    /// The same for a folder that other tools load.
    pub(crate) fn folder_tokenizer_config(&self) -> Result<Vec<u8>, GgufError> {
        vocabulary::folder_config(&self.heads[0])
    }
}

/// The small files of a head in memory, as far as they can be made: for the fuzz target.
#[doc(hidden)]
pub fn files_of(head: Container) -> [Result<Option<Vec<u8>>, GgufError>; 3] {
    let heads = [head];
    let config = settings::config(&heads, &RopeFactors::default()).map(Some);
    let config_of_text = vocabulary::tokenizer_config(&heads[0]).map(Some);
    [config, vocabulary::tokenizer(&heads[0]), config_of_text]
}

/// Decodes every small tensor of blocks: for the fuzz target. `file` is what the head was read from.
#[doc(hidden)]
pub fn decoded(head: &Container, file: &[u8]) -> usize {
    const VALUES_MAX: u64 = 1 << 14;
    let mut count = 0;
    for tensor in head.tensors() {
        let &[rows, columns] = tensor.dims else { continue };
        let Some(kind) = Kind::of(tensor.dtype) else { continue };
        if rows == 0 || columns == 0 || rows.saturating_mul(columns) > VALUES_MAX {
            continue;
        }
        let (rows, columns) = (rows as usize, columns as usize);
        let shape = vec![rows, columns / kind.values * kind.bytes];
        let stored = Stored { dtype: tensor.dtype, shape };
        let data = &file[tensor.start as usize..tensor.end as usize];
        let shape = Shape { rows, columns };
        let found = formats::decode(br#"{"quant_method":"gguf"}"#, &[("m.weight", stored, data)], "m", shape);
        count += found.ok().flatten().map_or(0, |values| values.len());
    }
    count
}

/// Values by key, each of a type.
impl Container {
    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T, GgufError> {
        let found = match self.get(key) {
            None => "nothing".to_owned(),
            Some(Value::Text(text)) => crate::checkpoint::json::quote(text).into(),
            Some(Value::Whole(n)) => n.to_string(),
            Some(Value::Float(x)) => x.to_string(),
            Some(Value::Flag(flag)) => flag.to_string(),
            Some(Value::Array(array)) => format!("an array of {}", array.count),
        };
        Err(GgufError::Value { key: key.into(), expected: expected.into(), found: found.into() })
    }

    fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => self.wrong(key, "a text"),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(flag)),
            Some(_) => self.wrong(key, "true or false"),
        }
    }

    /// A whole number from 0.
    fn size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Whole(n)) if u64::try_from(n).is_ok() => Ok(Some(n as u64)),
            Some(_) => self.wrong(key, "a whole number from 0"),
        }
    }

    /// The same where every layer may have its own, but all must have one.
    fn common_size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Some(Value::Array(array)) = self.get(key) else { return self.size(key) };
        let mut values = array.values();
        let first = values.next();
        match first {
            Some(Value::Whole(n)) if u64::try_from(n).is_ok() && values.all(|value| Some(value) == first) => {
                Ok(Some(n as u64))
            }
            _ => self.wrong(key, "a whole number from 0, the same for every layer"),
        }
    }

    /// A finite number.
    fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Whole(n)) => Ok(Some(n as f64)),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(x)),
            Some(_) => self.wrong(key, "a finite number"),
        }
    }

    fn array(&self, key: &str) -> Result<Option<Array<'_>>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(_) => self.wrong(key, "an array"),
        }
    }

    /// An array of texts.
    fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let text = |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        };
        match array.values().map(text).collect() {
            Some(texts) => Ok(Some(texts)),
            None => self.wrong(key, "an array of texts"),
        }
    }

    /// An array of numbers, as many as are expected.
    fn numbers(&self, key: &str, count: usize) -> Result<Option<Vec<f64>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let number = |value| match value {
            Value::Whole(n) => Some(n as f64),
            Value::Float(x) if !x.is_nan() => Some(x),
            _ => None,
        };
        match array.values().map(number).collect::<Option<Vec<_>>>() {
            Some(numbers) if numbers.len() == count => Ok(Some(numbers)),
            _ => self.wrong(key, &format!("an array of {count} numbers")),
        }
    }
}
