//! Tables that lie column by column, as `datasets` writes them: parquet and arrow, as rows of named values.
//!
//! The files are of strangers. Whatever they say of sizes is held against a budget, which grows with the file, before
//! memory is taken; every place that a file points to is checked where it is read. Numbers, words, truth, lists and
//! structs become what they are in JSON; dates are the numbers that they are stored as, and what is none of this
//! (bytes, decimals) is null. A row is counted from 1, as a line of text is.

mod arrow;
mod assembly;
mod bytes;
mod compression;
mod encodings;
mod flat;
mod pages;
mod parquet;
mod thrift;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use serde_json::{Map, Value};

use super::error::DataError;

/// What any file may become in memory, and how many times its size on top.
const BUDGET_BYTES: u64 = 256 << 20;
const BUDGET_TIMES: u64 = 256;
/// What an entry of an object takes beside its value and its name.
const ENTRY_BYTES: u64 = 64;

const ANEW: &str = "the file is damaged: fetch or write it anew";
pub(super) const OTHERWISE: &str =
    "write the data set otherwise, with `datasets` for example by `to_json(\"data.jsonl\")`";

/// Which form a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Parquet,
    Arrow,
}

/// The first `limit` rows of a file, each with its number.
pub(super) fn rows(
    form: Form,
    path: &Path,
    limit: usize,
    add: &mut dyn FnMut(usize, Map<String, Value>),
) -> Result<(), DataError> {
    let failed = |source| DataError::Read { path: path.into(), expected: "a file with data", source };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut told = 0;
    let mut rows = Rows {
        limit,
        budget: Budget { left: BUDGET_BYTES.saturating_add(length.saturating_mul(BUDGET_TIMES)) },
        add: &mut |values| {
            told += 1;
            add(told, values);
        },
        count: 0,
    };
    let read = rows.read(form, &mut file, length);
    let line = rows.count + 1;
    read.map_err(|fault| DataError::Line {
        path: path.into(),
        line,
        expected: match form {
            Form::Parquet => "the rows of a parquet file",
            Form::Arrow => "the rows of an arrow file (IPC, as a stream or a file)",
        },
        found: fault.found,
        advice: fault.advice,
    })
}

/// Where rows go, and what they may take.
struct Rows<'a> {
    limit: usize,
    count: usize,
    budget: Budget,
    add: &'a mut dyn FnMut(Map<String, Value>),
}

impl Rows<'_> {
    fn read(&mut self, form: Form, file: &mut (impl Read + Seek), length: u64) -> Fallible<()> {
        match form {
            Form::Parquet => parquet::rows(file, length, self),
            Form::Arrow => arrow::rows(file, length, self),
        }
    }

    fn is_full(&self) -> bool {
        self.count >= self.limit
    }

    fn push(&mut self, values: Map<String, Value>) {
        self.count += 1;
        (self.add)(values);
    }
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    found: String,
    advice: &'static str,
}

type Fallible<T> = Result<T, Fault>;

/// A file that says what cannot be.
fn broken(found: impl Into<String>) -> Fault {
    Fault { found: found.into(), advice: ANEW }
}

/// A file that may be sound, of a kind that is not read.
fn unknown(found: impl Into<String>) -> Fault {
    Fault { found: found.into(), advice: OTHERWISE }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        broken(error.to_string())
    }
}

/// Bytes that a file may still become.
#[derive(Debug)]
struct Budget {
    left: u64,
}

impl Budget {
    fn take(&mut self, bytes: u64) -> Fallible<()> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| unknown("values of far more bytes than a file of this size has"))?;
        Ok(())
    }

    /// Room for values.
    fn take_values(&mut self, count: usize) -> Fallible<()> {
        self.take((count as u64).saturating_mul(size_of::<Value>() as u64))
    }

    /// Room for an entry of an object; its value was taken before.
    fn take_entry(&mut self, name: &str) -> Fallible<()> {
        self.take(ENTRY_BYTES + name.len() as u64)
    }
}

/// A text, or nothing where bytes are no text and nobody said that they are.
fn text(bytes: &[u8], is_text: bool, budget: &mut Budget) -> Fallible<Value> {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            budget.take(bytes.len() as u64)?;
            Ok(Value::from(text))
        }
        Err(_) if !is_text => Ok(Value::Null),
        Err(_) => Err(broken("a text that is no UTF-8")),
    }
}

/// What a map's key is called.
fn key(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
