//! The header of a safetensors file: names, shapes, dtypes and where each tensor's bytes lie.
//!
//! It is not a reader of files: it takes the header's text and the size of the file, and returns tables in which
//! every offset has been proved. The format's rules are the ones of the reference implementation, read strictly:
//! tensors cover the data section without gap or overlap, so a file has one meaning only.

use super::dtype::Dtype;
use super::json::{Joined, JsonError, Reader, Text, Texts, quote};
use std::collections::HashSet;
use thiserror::Error;

/// Longest header. Twice this, and the tables, stay below the 64 MiB that refusing a file may cost.
pub const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Most tensors of one checkpoint.
pub const TENSORS_MAX: usize = 50_000;
/// Longest tensor name in bytes.
pub const NAME_BYTES_MAX: usize = 1024;
/// Most dimensions of one tensor.
pub const DIMS_MAX: usize = 8;
/// Bytes of the length that stands before the header.
pub const PREFIX_BYTES: u64 = 8;

/// Why a header was refused. Names of tensors are quoted and clipped.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum HeaderError {
    #[error("expected 8 bytes of header length and at least 2 of header, found a file of {found} bytes")]
    NoLength { found: u64 },
    #[error(
        "the header length is {declared}; expected 2 to {available}, as many bytes as the file has after it"
    )]
    Length { declared: u64, available: u64 },
    #[error(
        "the header has {declared} bytes; expected at most {limit} (one header, or all of a checkpoint together)"
    )]
    TooLong { declared: u64, limit: u64 },
    #[error("expected UTF-8 in the header, found another byte at {at}")]
    NotUtf8 { at: usize },
    #[error("header{}: {source}", of(.tensor))]
    Json { tensor: Option<Box<str>>, source: JsonError },
    #[error("expected at most {limit} tensors in the checkpoint, found more")]
    TooMany { limit: usize },
    #[error("tensor name {tensor} has {found} bytes; expected 1 to {NAME_BYTES_MAX}")]
    NameLength { tensor: Box<str>, found: usize },
    #[error("expected every key once, found {key} twice{}", of(.tensor))]
    Duplicate { key: Box<str>, tensor: Option<Box<str>> },
    #[error("tensor {tensor}: expected the keys dtype, shape and data_offsets, found {found}")]
    UnknownKey { tensor: Box<str>, found: Box<str> },
    #[error("tensor {tensor}: expected the key {expected}, found none")]
    MissingKey { tensor: Box<str>, expected: &'static str },
    #[error(
        "tensor {tensor}: expected one of the dtypes F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, \
            U16, U8, BOOL, F8_E4M3, F8_E5M2, found {found}"
    )]
    UnknownDtype { tensor: Box<str>, found: Box<str> },
    #[error("tensor {tensor}: expected at most {DIMS_MAX} dimensions, found more")]
    TooManyDims { tensor: Box<str> },
    #[error("tensor {tensor}: expected a size below 2^63 bytes, found shape {shape:?} of {}", .dtype.name())]
    Overflow { tensor: Box<str>, shape: Vec<u64>, dtype: Dtype },
    #[error("tensor {tensor}: expected {expected} bytes for shape {shape:?} of {}, found \
        {found}", .dtype.name())]
    Size { tensor: Box<str>, expected: u64, found: u64, shape: Vec<u64>, dtype: Dtype },
    #[error("tensor {tensor}: expected data_offsets in order, found {start} before {end}")]
    Reversed { tensor: Box<str>, start: u64, end: u64 },
    #[error("tensor {tensor}: expected an offset that is a multiple of {expected} bytes, found {found}")]
    Misaligned { tensor: Box<str>, expected: usize, found: u64 },
    #[error(
        "tensor {tensor}: expected its data to end at byte {expected} of the data section, found only \
            {found} bytes there: the file is cut short"
    )]
    PastEnd { tensor: Box<str>, expected: u64, found: u64 },
    #[error(
        "tensor {tensor}: expected its data to start at byte {expected}, found {found}: it overlaps \
            tensor {before}"
    )]
    Overlap { tensor: Box<str>, before: Box<str>, expected: u64, found: u64 },
    #[error(
        "tensor {tensor}: expected its data to start at byte {expected}, found {found}: a gap that no \
            tensor covers"
    )]
    Gap { tensor: Box<str>, expected: u64, found: u64 },
    #[error("expected the data section to end with the last tensor at byte {expected}, found {found} bytes")]
    Uncovered { expected: u64, found: u64 },
}

fn of(tensor: &Option<Box<str>>) -> String {
    tensor.as_ref().map(|name| format!(" of tensor {name}")).unwrap_or_default()
}

impl From<JsonError> for HeaderError {
    fn from(source: JsonError) -> Self {
        Self::Json { tensor: None, source }
    }
}

/// One tensor of a [`Header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its dimensions, slowest first.
    pub shape: &'a [usize],
    /// First byte, counted from the start of the file.
    pub start: u64,
    /// One past the last byte; never past the end of the file.
    pub end: u64,
}

/// Compact, because there may be a hundred thousand.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: Text,
    dims_start: u32,
    dims: u8,
    dtype: Dtype,
    start: u64,
    end: u64,
}

/// A header whose every claim has been checked against the size of its file.
#[derive(Debug)]
pub struct Header {
    texts: Texts,
    rows: Vec<Row>,
    dims: Vec<usize>,
    metadata: Vec<(Text, Text)>,
    data_start: u64,
}

impl Header {
    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the file holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text that it was read from.
    pub(crate) fn text(&self) -> &str {
        &self.texts.document
    }

    /// Length of the header's text in bytes.
    pub fn bytes(&self) -> u64 {
        self.data_start - PREFIX_BYTES
    }

    /// Tensor `i`, in the order of the file's data.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn entry(&self, i: usize) -> Entry<'_> {
        let row = self.rows[i];
        Entry {
            name: self.texts.get(row.name),
            dtype: row.dtype,
            shape: &self.dims[row.dims_start as usize..][..usize::from(row.dims)],
            start: self.data_start + row.start,
            end: self.data_start + row.end,
        }
    }

    /// All tensors, in the order of the file's data.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.len()).map(|i| self.entry(i))
    }

    /// The pairs of `__metadata__`, in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.iter().map(|&(key, value)| (self.texts.get(key), self.texts.get(value)))
    }

    /// Of tensors that another container's head lists, `head_bytes` long, all of which was checked.
    pub(crate) fn from_entries<'a>(head_bytes: u64, entries: impl Iterator<Item = Entry<'a>>) -> Self {
        let (mut names, mut rows, mut dims) = (Joined::default(), Vec::new(), Vec::new());
        for entry in entries {
            let dims_start = u32::try_from(dims.len()).expect("TENSORS_MAX of DIMS_MAX at most");
            dims.extend_from_slice(entry.shape);
            rows.push(Row {
                name: names.push(entry.name),
                dims_start,
                dims: u8::try_from(entry.shape.len()).expect("DIMS_MAX at most"),
                dtype: entry.dtype,
                start: entry.start - head_bytes,
                end: entry.end - head_bytes,
            });
        }
        Self { texts: names.into_texts(), rows, dims, metadata: Vec::new(), data_start: head_bytes }
    }

    /// Reads the header's text. `file_len` is the size of the whole file, `tensors_max` what is left of
    /// [`TENSORS_MAX`].
    pub(crate) fn from_text(text: Vec<u8>, file_len: u64, tensors_max: usize) -> Result<Self, HeaderError> {
        let text =
            String::from_utf8(text).map_err(|e| HeaderError::NotUtf8 { at: e.utf8_error().valid_up_to() })?;
        let data_start = PREFIX_BYTES + text.len() as u64;
        let data_len = file_len.checked_sub(data_start).expect("text_len has checked the length");
        let mut parser = Parser {
            reader: Reader::new(&text),
            tensors_max,
            data_len,
            rows: Vec::new(),
            dims: Vec::new(),
            metadata: None,
        };
        parser.document()?;
        parser.check_cover()?;
        parser.check_unique()?;
        let Parser { reader, rows, dims, metadata, .. } = parser;
        let decoded = reader.into_decoded();
        let texts = Texts { document: text.into(), decoded };
        Ok(Self { texts, rows, dims, metadata: metadata.unwrap_or_default(), data_start })
    }
}

/// The length of the header's text, from the first 8 bytes of a file of `file_len` bytes.
pub(crate) fn text_len(prefix: [u8; 8], file_len: u64, limit: u64) -> Result<u64, HeaderError> {
    let declared = u64::from_le_bytes(prefix);
    let available = file_len.saturating_sub(PREFIX_BYTES);
    if available < 2 {
        return Err(HeaderError::NoLength { found: file_len });
    }
    if declared < 2 || declared > available {
        return Err(HeaderError::Length { declared, available });
    }
    if declared > limit {
        return Err(HeaderError::TooLong { declared, limit });
    }
    Ok(declared)
}

/// Reads the header of a file of `file_len` bytes that begins with `bytes`.
pub fn parse(bytes: &[u8], file_len: u64) -> Result<Header, HeaderError> {
    parse_within(bytes, file_len, HEADER_BYTES_MAX, TENSORS_MAX)
}

/// [`parse`] with what other files of the checkpoint have left of the limits.
pub(crate) fn parse_within(
    bytes: &[u8],
    file_len: u64,
    bytes_max: u64,
    tensors_max: usize,
) -> Result<Header, HeaderError> {
    let Some((&prefix, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(HeaderError::NoLength { found: file_len.min(bytes.len() as u64) });
    };
    let available = (rest.len() as u64).saturating_add(PREFIX_BYTES).min(file_len);
    let length = text_len(prefix, available, bytes_max)?;
    // Lossless: the length is at most that of a slice.
    Header::from_text(rest[..length as usize].to_vec(), file_len, tensors_max)
}

struct Parser<'a> {
    reader: Reader<'a>,
    tensors_max: usize,
    data_len: u64,
    rows: Vec<Row>,
    dims: Vec<usize>,
    metadata: Option<Vec<(Text, Text)>>,
}

/// What a tensor's object said, before it is believed.
#[derive(Default)]
struct Fields {
    dtype: Option<Dtype>,
    shape: Option<([u64; DIMS_MAX], usize)>,
    offsets: Option<(u64, u64)>,
}

impl Parser<'_> {
    fn quoted(&self, text: Text) -> Box<str> {
        quote(self.reader.get(text))
    }

    fn document(&mut self) -> Result<(), HeaderError> {
        self.reader.take(b'{', "'{', the start of a safetensors header")?;
        let mut first = true;
        while let Some(name) = self.reader.next_key(&mut first)? {
            if self.reader.get(name) == "__metadata__" {
                self.metadata()?;
            } else {
                self.tensor(name)?;
            }
        }
        Ok(self.reader.end()?)
    }

    fn metadata(&mut self) -> Result<(), HeaderError> {
        if self.metadata.is_some() {
            return Err(HeaderError::Duplicate { key: quote("__metadata__"), tensor: None });
        }
        self.reader.take(b'{', "'{' after __metadata__")?;
        let mut pairs = Vec::new();
        let mut first = true;
        while let Some(key) = self.reader.next_key(&mut first)? {
            let value = self.reader.string("a string as value in __metadata__")?;
            if pairs.len() == TENSORS_MAX {
                return Err(HeaderError::TooMany { limit: TENSORS_MAX });
            }
            pairs.push((key, value));
        }
        self.metadata = Some(pairs);
        Ok(())
    }

    fn tensor(&mut self, name: Text) -> Result<(), HeaderError> {
        let found = self.reader.get(name).len();
        if found == 0 || found > NAME_BYTES_MAX {
            return Err(HeaderError::NameLength { tensor: self.quoted(name), found });
        }
        if self.rows.len() == self.tensors_max {
            return Err(HeaderError::TooMany { limit: TENSORS_MAX });
        }
        let fields = self.fields(name).map_err(|error| match error {
            HeaderError::Json { source, .. } => HeaderError::Json { tensor: Some(self.quoted(name)), source },
            other => other,
        })?;
        let row = self.check_tensor(name, &fields)?;
        self.rows.push(row);
        Ok(())
    }

    fn fields(&mut self, name: Text) -> Result<Fields, HeaderError> {
        self.reader.take(b'{', "'{' after a tensor's name")?;
        let mut fields = Fields::default();
        let mut first = true;
        while let Some(key) = self.reader.next_key(&mut first)? {
            let twice = match self.reader.get(key) {
                "dtype" => fields.dtype.replace(self.dtype(name)?).is_some(),
                "shape" => fields.shape.replace(self.shape(name)?).is_some(),
                "data_offsets" => fields.offsets.replace(self.offsets()?).is_some(),
                _ => {
                    return Err(HeaderError::UnknownKey {
                        tensor: self.quoted(name),
                        found: self.quoted(key),
                    });
                }
            };
            if twice {
                return Err(HeaderError::Duplicate {
                    key: self.quoted(key),
                    tensor: Some(self.quoted(name)),
                });
            }
        }
        Ok(fields)
    }

    fn dtype(&mut self, name: Text) -> Result<Dtype, HeaderError> {
        let dtype = self.reader.string("the name of a dtype")?;
        Dtype::from_name(self.reader.get(dtype))
            .ok_or_else(|| HeaderError::UnknownDtype { tensor: self.quoted(name), found: self.quoted(dtype) })
    }

    fn shape(&mut self, name: Text) -> Result<([u64; DIMS_MAX], usize), HeaderError> {
        self.reader.take(b'[', "'[' before a shape")?;
        let (mut shape, mut dims) = ([0; DIMS_MAX], 0);
        let mut first = true;
        while self.reader.next_item(&mut first)? {
            let size =
                self.reader.integer("a dimension as a whole number without sign, fraction or exponent")?;
            *shape.get_mut(dims).ok_or_else(|| HeaderError::TooManyDims { tensor: self.quoted(name) })? =
                size;
            dims += 1;
        }
        Ok((shape, dims))
    }

    fn offsets(&mut self) -> Result<(u64, u64), HeaderError> {
        const NUMBER: &str = "an offset as a whole number without sign, fraction or exponent";
        self.reader.take(b'[', "'[' before two offsets")?;
        let start = self.reader.integer(NUMBER)?;
        self.reader.take(b',', "',' between two offsets")?;
        let end = self.reader.integer(NUMBER)?;
        self.reader.take(b']', "']' after two offsets")?;
        Ok((start, end))
    }

    /// All that can be said of one tensor without looking at the others.
    fn check_tensor(&mut self, name: Text, fields: &Fields) -> Result<Row, HeaderError> {
        let missing = |expected| HeaderError::MissingKey { tensor: self.quoted(name), expected };
        let dtype = fields.dtype.ok_or_else(|| missing("dtype"))?;
        let (shape, dims) = fields.shape.as_ref().ok_or_else(|| missing("shape"))?;
        let (start, end) = fields.offsets.ok_or_else(|| missing("data_offsets"))?;
        let shape = &shape[..*dims];
        let tensor = || self.quoted(name);
        let overflow = || HeaderError::Overflow { tensor: tensor(), shape: shape.to_vec(), dtype };
        let expected = size_bytes(shape, dtype).ok_or_else(overflow)?;
        let found =
            end.checked_sub(start).ok_or_else(|| HeaderError::Reversed { tensor: tensor(), start, end })?;
        if expected != found {
            return Err(HeaderError::Size {
                tensor: tensor(),
                expected,
                found,
                shape: shape.to_vec(),
                dtype,
            });
        }
        if start % dtype.bytes() as u64 != 0 {
            return Err(HeaderError::Misaligned { tensor: tensor(), expected: dtype.bytes(), found: start });
        }
        if end > self.data_len {
            return Err(HeaderError::PastEnd { tensor: tensor(), expected: end, found: self.data_len });
        }
        if shape.iter().any(|&n| usize::try_from(n).is_err()) {
            return Err(overflow());
        }
        let dims_start = u32::try_from(self.dims.len()).expect("at most 800,000 dimensions");
        self.dims.extend(shape.iter().map(|&n| n as usize));
        Ok(Row { name, dims_start, dims: shape.len() as u8, dtype, start, end })
    }

    /// Sorted by offset, each tensor starts where the one before it ends, and the last ends with the file.
    fn check_cover(&mut self) -> Result<(), HeaderError> {
        self.rows.sort_unstable_by_key(|row| (row.start, row.end));
        let mut expected = 0;
        let mut before = None;
        for row in &self.rows {
            let found = row.start;
            match before {
                Some(before) if found < expected => {
                    let (tensor, before) = (self.quoted(row.name), self.quoted(before));
                    return Err(HeaderError::Overlap { tensor, before, expected, found });
                }
                _ if found > expected => {
                    return Err(HeaderError::Gap { tensor: self.quoted(row.name), expected, found });
                }
                _ => {}
            }
            (expected, before) = (row.end, Some(row.name));
        }
        if expected != self.data_len {
            return Err(HeaderError::Uncovered { expected, found: self.data_len });
        }
        Ok(())
    }

    /// A keyed hash, not a sort: comparing a hundred thousand names that differ only at their ends takes ten times
    /// the time that refusing a file may take.
    fn check_unique(&self) -> Result<(), HeaderError> {
        let mut seen = HashSet::with_capacity(self.rows.len());
        let metadata = self.metadata.iter().flatten();
        for row in &self.rows {
            if !seen.insert(self.reader.get(row.name)) {
                return Err(HeaderError::Duplicate { key: self.quoted(row.name), tensor: None });
            }
        }
        seen.clear();
        for (key, _) in metadata {
            if !seen.insert(self.reader.get(*key)) {
                return Err(HeaderError::Duplicate { key: self.quoted(*key), tensor: None });
            }
        }
        Ok(())
    }
}

/// Size of a tensor, unless it passes what any file can hold.
pub(crate) fn size_bytes(shape: &[u64], dtype: Dtype) -> Option<u64> {
    // A zero anywhere makes the product zero, but not the dimensions around it harmless: multiply those as well.
    let nonzero =
        shape.iter().filter(|&&n| n != 0).try_fold(dtype.bytes() as u64, |size, &n| size.checked_mul(n))?;
    let empty = shape.contains(&0);
    (nonzero < 1 << 63).then_some(if empty { 0 } else { nonzero })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expected`: the tensors as `name start..end`, or part of the message.
    fn check(text: &str, data_len: u64, expected: &str) {
        let bytes = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let base = bytes.len() as u64;
        let found = match parse(&bytes, base + data_len) {
            Ok(header) => header
                .entries()
                .map(|e| format!("{} {}..{};", e.name, e.start - base, e.end - base))
                .collect(),
            Err(error) => error.to_string(),
        };
        assert!(
            found.contains(expected) && (found.is_empty() || !expected.is_empty()),
            "{text}\n{found}\nexpected {expected}"
        );
    }

    /// One tensor named w of four bytes, with one thing changed.
    fn check_w(inner: &str, expected: &str) {
        check(&format!("{{\"w\":{{{inner}}}}}"), 4, expected);
        if !expected.ends_with(';') {
            check(&format!("{{\"w\":{{{inner}}}}}"), 4, "\"w\"");
        }
    }

    #[test]
    fn good_headers_are_read() {
        check("{}", 0, "");
        check("{} ", 0, "");
        check(r#"{"__metadata__":{"a":"b","c":""}}"#, 0, "");
        check_w(r#""dtype":"F32","shape":[],"data_offsets":[0,4]"#, "w 0..4;");
        check_w(r#" "shape" : [ 1 , 4 ] , "data_offsets" : [ 0 , 4 ] , "dtype" : "U8" "#, "w 0..4;");
        check(
            concat!(
                r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},"#,
                r#""a\u0062":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"#,
                r#""e":{"dtype":"I8","shape":[0,9],"data_offsets":[2,2]}}"#
            ),
            4,
            "ab 0..2;e 2..2;b 2..4;",
        );
    }

    #[test]
    fn wrong_tensors_are_refused_by_name() {
        check_w(r#""dtype":"F4","shape":[8],"data_offsets":[0,4]"#, "found \"F4\"");
        check_w(
            r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#,
            "expected 8 bytes for shape [2] of F32, found 4",
        );
        check_w(r#""dtype":"F32","shape":[1],"data_offsets":[4,0]"#, "found 4 before 0");
        check_w(r#""dtype":"U8","shape":[6],"data_offsets":[0,6]"#, "cut short");
        check_w(r#""dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]"#, "at most 8 dimensions");
        check_w(r#""dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]"#, "below 2^63");
        check_w(r#""dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]"#, "below 2^63");
        check_w(r#""dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]"#, "below 2^63");
        check_w(r#""dtype":"F32","shape":[1]"#, "the key data_offsets, found none");
        check_w(r#""dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":1"#, "found \"extra\"");
        check_w(r#""dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]"#, "\"dtype\" twice");
        for number in ["-1", "1.0", "1e0", "01", "18446744073709551616", "\"1\"", "null", "[1]"] {
            check_w(&format!(r#""dtype":"F32","shape":[{number}],"data_offsets":[0,4]"#), "whole number");
        }
        check_w(r#""dtype":"F32","shape":[1],"data_offsets":[0,4,8]"#, "after two offsets");
    }

    #[test]
    fn layouts_that_do_not_cover_the_data_once_are_refused() {
        let two = |a: &str, b: &str| format!(r#"{{"a":{{"dtype":"U8",{a}}},"b":{{"dtype":"F16",{b}}}}}"#);
        let b = r#""shape":[1],"data_offsets":[2,4]"#;
        check(&two(r#""shape":[2],"data_offsets":[0,2]"#, b), 4, "a 0..2;b 2..4;");
        check(
            &two(r#""shape":[2],"data_offsets":[0,2]"#, b),
            5,
            "end with the last tensor at byte 4, found 5",
        );
        check(
            &two(r#""shape":[1],"data_offsets":[0,1]"#, b),
            4,
            "tensor \"b\": expected its data to start at byte 1, found 2: a gap",
        );
        check(
            &two(r#""shape":[1],"data_offsets":[1,2]"#, b),
            4,
            "tensor \"a\": expected its data to start at byte 0, found 1: a gap",
        );
        check(&two(r#""shape":[3],"data_offsets":[0,3]"#, b), 4, "it overlaps tensor \"a\"");
        check(
            &two(r#""shape":[1],"data_offsets":[0,1]"#, r#""shape":[1],"data_offsets":[1,3]"#),
            3,
            "multiple of 2 bytes, found 1",
        );
        check(&two(r#""shape":[2],"data_offsets":[0,2]"#, b).replace("\"b\"", "\"a\""), 4, "\"a\" twice");
    }

    #[test]
    fn wrong_text_is_refused() {
        for text in [
            "  ",
            "[]",
            " {",
            "{\"",
            "{\"a",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":{",
            "{\"a\":1}",
            "{,}",
            "{}x",
            "{}{}",
            "null",
        ] {
            check(text, 0, "JSON at byte");
        }
        check(r#"{"__metadata__":{"a":1}}"#, 0, "a string as value in __metadata__");
        check(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0, "\"a\" twice");
        check(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "\"__metadata__\" twice");
        check(r#"{"":{}}"#, 0, "has 0 bytes");
        check(&format!("{{\"{}\":{{}}}}", "x".repeat(1025)), 0, "has 1025 bytes");
        assert!(matches!(parse(b"\x03\0\0\0\0\0\0\0{\xFF}", 11), Err(HeaderError::NotUtf8 { at: 1 })));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let parse_length = |length: u64| parse(&[&length.to_le_bytes()[..], b"{}"].concat(), 10);
        assert!(parse_length(2).is_ok());
        for length in [0, 1, 3, 1 << 31, 1 << 63, u64::MAX, u64::MAX - 7] {
            assert!(matches!(parse_length(length), Err(HeaderError::Length { .. })), "{length}");
        }
        // A sparse file may be as long as it likes; the header is refused before it is looked at.
        let sparse = parse_within(
            &[&(HEADER_BYTES_MAX + 1).to_le_bytes()[..], &vec![b' '; 17 << 20]].concat(),
            1 << 40,
            HEADER_BYTES_MAX,
            1,
        );
        assert!(matches!(sparse, Err(HeaderError::TooLong { .. })));
        for length in 0..10 {
            let error = parse(&[0; 9][..length], length as u64).unwrap_err();
            assert_eq!(error, HeaderError::NoLength { found: length as u64 });
        }
    }

    #[test]
    fn tensors_are_counted() {
        let tensors: Vec<_> = (0..=TENSORS_MAX)
            .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
            .collect();
        check(&format!("{{{}}}", tensors.join(",")), 0, "at most 50000 tensors");
        check(&format!("{{{}}}", tensors[1..].join(",")), 0, "49999 0..0;");
    }
}
