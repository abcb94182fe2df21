//! The head of a GGUF file: metadata by key, and where each tensor's bytes lie. Every claim is checked against the
//! size of the file; what keys and names mean is not known here.
//!
//! ```text
//! "GGUF" | version u32, 2 or 3 | tensors u64 | keys u64       integers are little-endian
//! keys:     name | type u32 | value                           texts are a length u64 and UTF-8
//! tensors:  name | dimensions u32 | sizes u64, fastest first | type u32 | offset u64
//! padding to a multiple of `general.alignment`, 32 where that is absent; from there on offsets count
//! ```
//!
//! A value is a number, a flag, a text, or an array: element type u32, count u64, elements, which are no arrays.

use std::collections::HashSet;
use std::ops::Range;

use thiserror::Error;

use crate::checkpoint::Dtype;
use crate::checkpoint::header::{NAME_BYTES_MAX, TENSORS_MAX};
use crate::checkpoint::json::quote;
use crate::formats::gguf::Kind;

/// Longest head. A published vocabulary of 260,000 tokens has 17 MB with its merges.
pub const HEAD_BYTES_MAX: u64 = 32 << 20;
/// Most keys.
const KEYS_MAX: u64 = 1 << 14;
/// Most dimensions of a tensor.
const DIMS_MAX: usize = 4;
const ALIGNMENT_MAX: u64 = 1 << 16;
const MAGIC: [u8; 4] = *b"GGUF";

/// Why a head was refused. Words of the file are quoted and clipped.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum GgufError {
    #[error("expected the head of a GGUF file, found the end of the file in it, at byte {at}, in {place}")]
    Cut { at: u64, place: Box<str> },
    #[error("expected a head of at most {HEAD_BYTES_MAX} bytes, found more, in {place}")]
    TooLong { place: Box<str> },
    #[error("expected \"GGUF\" at the start, found {found}")]
    Magic { found: Box<str> },
    #[error("expected version 2 or 3, little-endian, found {found}")]
    Version { found: u32 },
    #[error("expected at most {limit} {what}, found {found}")]
    TooMany { what: &'static str, limit: u64, found: u64 },
    #[error("{place}: expected UTF-8, found another byte at {at} of the text")]
    NotUtf8 { place: Box<str>, at: usize },
    #[error("{what} {name}: expected a name of 1 to {NAME_BYTES_MAX} bytes, found {found}")]
    NameLength { what: &'static str, name: Box<str>, found: usize },
    #[error("{what} {name}: expected it once, found it twice")]
    Twice { what: &'static str, name: Box<str> },
    #[error("key {key}: expected a value of type 0 to 12, found type {found}")]
    ValueType { key: Box<str>, found: u32 },
    #[error("key {key}: expected an array of numbers or texts, found an array of arrays")]
    Nested { key: Box<str> },
    #[error("key {key}: expected 0 or 1 for a flag, found {found}")]
    Flag { key: Box<str>, found: u8 },
    #[error("key {key}: expected {expected}, found {found}")]
    Value { key: Box<str>, expected: Box<str>, found: Box<str> },
    #[error("key {key}: not there; expected {expected}")]
    Missing { key: Box<str>, expected: Box<str> },
    #[error("tensor {tensor}: expected 1 to {DIMS_MAX} dimensions, found {found}")]
    Dimensions { tensor: Box<str>, found: u32 },
    #[error("tensor {tensor}: expected a size below 2^63 bytes, found dimensions {found:?}")]
    Overflow { tensor: Box<str>, found: Vec<u64> },
    #[error("tensor {tensor}: expected one of the types {}, found {found}", type_names())]
    TensorType { tensor: Box<str>, found: Box<str> },
    #[error("tensor {tensor}: expected rows of a multiple of {expected} values, as blocks of {} have, found \
        {found}", .dtype.name())]
    Blocks { tensor: Box<str>, dtype: Dtype, expected: u64, found: u64 },
    #[error("tensor {tensor}: expected an offset that is a multiple of {expected}, found {found}")]
    Misaligned { tensor: Box<str>, expected: u64, found: u64 },
    #[error(
        "tensor {tensor}: expected its data to end at byte {expected}, found a file of {found} bytes: it is cut \
        short"
    )]
    PastEnd { tensor: Box<str>, expected: u64, found: u64 },
    #[error("tensor {tensor}: expected its data after that of tensor {before}, found that the two overlap")]
    Overlap { tensor: Box<str>, before: Box<str> },
    #[error("{0}")]
    Meaning(Box<str>),
}

/// Tensor types by their numbers; those of no name were given up.
const TYPES: &[(u32, Result<Dtype, &str>)] = &[
    (0, Ok(Dtype::F32)),
    (1, Ok(Dtype::F16)),
    (2, Ok(Dtype::Q4x0)),
    (3, Ok(Dtype::Q4x1)),
    (6, Ok(Dtype::Q5x0)),
    (7, Ok(Dtype::Q5x1)),
    (8, Ok(Dtype::Q8x0)),
    (9, Err("Q8_1")),
    (10, Ok(Dtype::Q2K)),
    (11, Ok(Dtype::Q3K)),
    (12, Ok(Dtype::Q4K)),
    (13, Ok(Dtype::Q5K)),
    (14, Ok(Dtype::Q6K)),
    (15, Err("Q8_K")),
    (16, Err("IQ2_XXS")),
    (17, Err("IQ2_XS")),
    (18, Err("IQ3_XXS")),
    (19, Err("IQ1_S")),
    (20, Err("IQ4_NL")),
    (21, Err("IQ3_S")),
    (22, Err("IQ2_S")),
    (23, Err("IQ4_XS")),
    (24, Ok(Dtype::I8)),
    (25, Ok(Dtype::I16)),
    (26, Ok(Dtype::I32)),
    (27, Ok(Dtype::I64)),
    (28, Ok(Dtype::F64)),
    (29, Err("IQ1_M")),
    (30, Ok(Dtype::Bf16)),
    (34, Ok(Dtype::Tq1x0)),
    (35, Ok(Dtype::Tq2x0)),
    (39, Ok(Dtype::Mxfp4)),
    (40, Err("NVFP4")),
];

fn type_names() -> String {
    TYPES.iter().filter_map(|row| Some(row.1.ok()?.name())).collect::<Vec<_>>().join(", ")
}

/// Bytes of a value, by the number of its type: u8, i8, u16, i16, u32, i32, f32, flag, text, array, u64, i64, f64.
/// Texts and arrays have no size of their own.
const VALUE_TYPES: [u64; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const FLAG: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// One value, or an element of an array.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Whole(i128),
    Float(f64),
    Flag(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// An array whose bytes were checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Array<'a> {
    kind: u32,
    pub(crate) count: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    pub(crate) fn values(self) -> impl Iterator<Item = Value<'a>> {
        let mut cursor = Cursor { bytes: self.bytes, at: 0, file_len: 0 };
        (0..self.count).map(move |_| cursor.plain(self.kind).expect("the array was checked"))
    }
}

/// A key and where its value stands.
#[derive(Debug)]
struct Key {
    name: Range<usize>,
    kind: u32,
    value: Range<usize>,
}

/// A tensor of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    /// Slowest first, in values.
    pub(crate) dims: &'a [u64],
    /// Bytes of the file.
    pub(crate) start: u64,
    pub(crate) end: u64,
}

#[derive(Debug)]
struct Row {
    name: Range<usize>,
    dtype: Dtype,
    dims: [u64; DIMS_MAX],
    count: usize,
    start: u64,
    end: u64,
}

/// A checked head.
#[derive(Debug)]
pub struct Container {
    head: Vec<u8>,
    keys: Vec<Key>,
    rows: Vec<Row>,
}

impl Container {
    /// Reads the head of a file of `file_len` bytes, given in `bytes` from its start. Where these end before the head
    /// does, the error is [`GgufError::Cut`].
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<Container, GgufError> {
        let mut cursor = Cursor { bytes, at: 0, file_len };
        let (keys, mut rows) = cursor.document()?;
        let alignment = alignment(&keys, bytes)?;
        let head_end = cursor.at;
        let data_start = (head_end as u64).next_multiple_of(alignment);
        for row in &mut rows {
            place(row, bytes, data_start, alignment, file_len)?;
        }
        check_apart(&mut rows, bytes)?;
        let mut head = bytes.to_vec();
        head.truncate(head_end);
        Ok(Container { head, keys, rows })
    }

    /// Bytes before the padding.
    pub(crate) fn head_bytes(&self) -> u64 {
        self.head.len() as u64
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<Value<'_>> {
        let found = self.keys.iter().find(|found| text(&self.head, &found.name) == key)?;
        let mut cursor = Cursor { bytes: &self.head[..found.value.end], at: found.value.start, file_len: 0 };
        Some(cursor.value(found.kind).expect("values were checked"))
    }

    /// All keys, in their order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| text(&self.head, &key.name))
    }

    /// All tensors, in the order of their data.
    pub(crate) fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.rows.iter().map(|row| Tensor {
            name: text(&self.head, &row.name),
            dtype: row.dtype,
            dims: &row.dims[..row.count],
            start: row.start,
            end: row.end,
        })
    }
}

/// A text that was checked.
fn text<'a>(bytes: &'a [u8], range: &Range<usize>) -> &'a str {
    std::str::from_utf8(&bytes[range.clone()]).expect("names were checked")
}

fn alignment(keys: &[Key], bytes: &[u8]) -> Result<u64, GgufError> {
    let Some(key) = keys.iter().find(|key| text(bytes, &key.name) == "general.alignment") else {
        return Ok(32);
    };
    match (Cursor { bytes, at: key.value.start, file_len: 0 }).plain(key.kind) {
        Some(Value::Whole(n))
            if (1..=i128::from(ALIGNMENT_MAX)).contains(&n) && (n as u64).is_power_of_two() =>
        {
            Ok(n as u64)
        }
        found => Err(GgufError::Value {
            key: quote("general.alignment"),
            expected: format!("a power of two up to {ALIGNMENT_MAX}").into(),
            found: found.map_or("something else".into(), |found| format!("{found:?}").into()),
        }),
    }
}

/// Puts a tensor, whose start is an offset so far, into the file.
fn place(
    row: &mut Row,
    bytes: &[u8],
    data_start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<(), GgufError> {
    let tensor = || quote(text(bytes, &row.name));
    let dims = &row.dims[..row.count];
    let (values, block) = match Kind::of(row.dtype) {
        Some(kind) => (kind.values as u64, kind.bytes as u64),
        None => (1, row.dtype.bytes() as u64),
    };
    let columns = dims[row.count - 1];
    if !columns.is_multiple_of(values) {
        return Err(GgufError::Blocks {
            tensor: tensor(),
            dtype: row.dtype,
            expected: values,
            found: columns,
        });
    }
    if !row.start.is_multiple_of(alignment) {
        return Err(GgufError::Misaligned { tensor: tensor(), expected: alignment, found: row.start });
    }
    // Sizes of zero must not hide others that are too large: a shape is multiplied again by whoever reads it.
    let elements = dims.iter().try_fold(1u64, |all, &size| all.checked_mul(size.max(1)));
    let elements = elements
        .filter(|&all| all < 1 << 56)
        .ok_or_else(|| GgufError::Overflow { tensor: tensor(), found: dims.to_vec() })?;
    let length = if dims.contains(&0) { 0 } else { elements / values * block };
    let end = row.start.checked_add(data_start).and_then(|start| start.checked_add(length));
    match end {
        Some(end) if end <= file_len => (row.start, row.end) = (end - length, end),
        _ => {
            let expected = end.unwrap_or(u64::MAX);
            return Err(GgufError::PastEnd { tensor: tensor(), expected, found: file_len });
        }
    }
    Ok(())
}

/// Sorts tensors by place; no two share a byte, and no two a name.
fn check_apart(rows: &mut [Row], bytes: &[u8]) -> Result<(), GgufError> {
    rows.sort_by_key(|row| (row.start, row.end));
    for pair in rows.windows(2) {
        if pair[1].start < pair[0].end {
            let (tensor, before) = (quote(text(bytes, &pair[1].name)), quote(text(bytes, &pair[0].name)));
            return Err(GgufError::Overlap { tensor, before });
        }
    }
    let mut seen = HashSet::with_capacity(rows.len());
    match rows.iter().find(|row| !seen.insert(text(bytes, &row.name))) {
        Some(row) => Err(GgufError::Twice { what: "tensor", name: quote(text(bytes, &row.name)) }),
        None => Ok(()),
    }
}

/// A place in the head.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_len: u64,
}

impl<'a> Cursor<'a> {
    fn document(&mut self) -> Result<(Vec<Key>, Vec<Row>), GgufError> {
        let found = &self.bytes[..self.bytes.len().min(4)];
        if found != &MAGIC[..found.len()] {
            return Err(GgufError::Magic { found: quote(&String::from_utf8_lossy(found)) });
        }
        let start = "the head's start";
        self.take(4, start)?;
        let version = self.u32(start)?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version { found: version });
        }
        let (tensors, keys) = (self.u64(start)?, self.u64(start)?);
        let limits = [("tensors", TENSORS_MAX as u64, tensors), ("keys", KEYS_MAX, keys)];
        if let Some(&(what, limit, found)) = limits.iter().find(|(_, limit, found)| found > limit) {
            return Err(GgufError::TooMany { what, limit, found });
        }
        let mut seen = HashSet::new();
        let mut list = Vec::new();
        for _ in 0..keys {
            let key = self.key()?;
            if !seen.insert(&self.bytes[key.name.clone()]) {
                return Err(GgufError::Twice { what: "key", name: quote(text(self.bytes, &key.name)) });
            }
            list.push(key);
        }
        let rows = (0..tensors).map(|_| self.tensor()).collect::<Result<_, _>>()?;
        Ok((list, rows))
    }

    /// The next bytes.
    fn take(&mut self, count: u64, place: &str) -> Result<&'a [u8], GgufError> {
        let left = self.file_len.saturating_sub(self.at as u64);
        let within = usize::try_from(count).ok().and_then(|count| self.bytes.get(self.at..)?.get(..count));
        match within {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            // What the file itself cannot hold need not be read further.
            None if count > left => Err(GgufError::Cut { at: self.file_len, place: place.into() }),
            None if self.at as u64 + count > HEAD_BYTES_MAX => {
                Err(GgufError::TooLong { place: place.into() })
            }
            None => Err(GgufError::Cut { at: self.bytes.len() as u64, place: place.into() }),
        }
    }

    fn number<const N: usize>(&mut self, place: &str) -> Result<[u8; N], GgufError> {
        Ok(self.take(N as u64, place)?.try_into().expect("take gives as many as were asked for"))
    }

    fn u32(&mut self, place: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.number(place)?))
    }

    fn u64(&mut self, place: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.number(place)?))
    }

    /// A text's place.
    fn text(&mut self, place: &str) -> Result<Range<usize>, GgufError> {
        let length = self.u64(place)?;
        let bytes = self.take(length, place)?;
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(self.at - bytes.len()..self.at),
            Err(error) => Err(GgufError::NotUtf8 { place: place.into(), at: error.valid_up_to() }),
        }
    }

    fn name(&mut self, what: &'static str) -> Result<Range<usize>, GgufError> {
        let name = self.text(&format!("the name of a {what}"))?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let found = name.len();
            return Err(GgufError::NameLength { what, name: quote(text(self.bytes, &name)), found });
        }
        Ok(name)
    }

    fn key(&mut self) -> Result<Key, GgufError> {
        let name = self.name("key")?;
        let key = quote(text(self.bytes, &name));
        let place = format!("the value of key {key}");
        let kind = self.u32(&place)?;
        let start = self.at;
        if kind == ARRAY {
            let (element, count) = (self.u32(&place)?, self.u64(&place)?);
            match VALUE_TYPES.get(element as usize) {
                None => return Err(GgufError::ValueType { key, found: element }),
                Some(_) if element == ARRAY => return Err(GgufError::Nested { key }),
                Some(_) if element == TEXT => {
                    for _ in 0..count {
                        self.text(&place)?;
                    }
                }
                Some(size) => {
                    self.take(count.saturating_mul(*size), &place)?;
                }
            }
        } else {
            self.checked(kind, key, &place)?;
        }
        Ok(Key { name, kind, value: start..self.at })
    }

    /// Skips a value that is no array.
    fn checked(&mut self, kind: u32, key: Box<str>, place: &str) -> Result<(), GgufError> {
        match VALUE_TYPES.get(kind as usize) {
            None => return Err(GgufError::ValueType { key, found: kind }),
            Some(_) if kind == TEXT => {
                self.text(place)?;
            }
            Some(_) if kind == FLAG => {
                if let [found] = self.number(place)?
                    && found > 1
                {
                    return Err(GgufError::Flag { key, found });
                }
            }
            Some(size) => {
                self.take(*size, place)?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<Row, GgufError> {
        let name = self.name("tensor")?;
        let tensor = quote(text(self.bytes, &name));
        let place = format!("the sizes of tensor {tensor}");
        let count = self.u32(&place)?;
        if !(1..=DIMS_MAX as u32).contains(&count) {
            return Err(GgufError::Dimensions { tensor, found: count });
        }
        let count = count as usize;
        let mut dims = [0; DIMS_MAX];
        // Fastest first in the file, slowest first here.
        for size in dims[..count].iter_mut().rev() {
            *size = self.u64(&place)?;
        }
        let number = self.u32(&place)?;
        let dtype = match TYPES.iter().find(|row| row.0 == number) {
            Some(&(_, Ok(dtype))) => dtype,
            Some((_, Err(name))) => return Err(GgufError::TensorType { tensor, found: (*name).into() }),
            None => return Err(GgufError::TensorType { tensor, found: format!("number {number}").into() }),
        };
        let start = self.u64(&place)?;
        Ok(Row { name, dtype, dims, count, start, end: start })
    }

    /// A value that was checked.
    fn value(&mut self, kind: u32) -> Option<Value<'a>> {
        if kind != ARRAY {
            return self.plain(kind);
        }
        let kind = self.u32("").ok()?;
        let count = usize::try_from(self.u64("").ok()?).ok()?;
        Some(Value::Array(Array { kind, count, bytes: &self.bytes[self.at..] }))
    }

    /// The same of one that is no array.
    fn plain(&mut self, kind: u32) -> Option<Value<'a>> {
        fn whole<'a>(number: impl Into<i128>) -> Option<Value<'a>> {
            Some(Value::Whole(number.into()))
        }
        match kind {
            0 => whole(u8::from_le_bytes(self.number("").ok()?)),
            1 => whole(i8::from_le_bytes(self.number("").ok()?)),
            2 => whole(u16::from_le_bytes(self.number("").ok()?)),
            3 => whole(i16::from_le_bytes(self.number("").ok()?)),
            4 => whole(u32::from_le_bytes(self.number("").ok()?)),
            5 => whole(i32::from_le_bytes(self.number("").ok()?)),
            6 => Some(Value::Float(f64::from(f32::from_le_bytes(self.number("").ok()?)))),
            FLAG => Some(Value::Flag(self.number::<1>("").ok()? != [0])),
            TEXT => {
                let range = self.text("").ok()?;
                Some(Value::Text(text(self.bytes, &range)))
            }
            10 => whole(u64::from_le_bytes(self.number("").ok()?)),
            11 => whole(i64::from_le_bytes(self.number("").ok()?)),
            12 => Some(Value::Float(f64::from_le_bytes(self.number("").ok()?))),
            _ => None,
        }
    }
}
