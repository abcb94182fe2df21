//! Parquet's own descriptions: Thrift's compact protocol, as a tree of numbered fields.

use super::bytes::Bytes;
use super::{Fallible, broken};

const DEPTH_MAX: usize = 16;

/// A value as it was written. Where only room is taken, nothing is kept.
#[derive(Debug)]
pub(super) enum Thrift<'a> {
    Flag(bool),
    Whole(i64),
    Bytes(&'a [u8]),
    List(Vec<Thrift<'a>>),
    Struct(Fields<'a>),
    Skipped,
}

/// The fields of a struct by their numbers.
#[derive(Debug, Default)]
pub(super) struct Fields<'a>(Vec<(i64, Thrift<'a>)>);

impl<'a> Fields<'a> {
    /// Reads a struct from the front.
    pub(super) fn read(bytes: &mut Bytes<'a>) -> Fallible<Fields<'a>> {
        fields(bytes, 0)
    }

    fn find(&self, number: i64) -> Option<&Thrift<'a>> {
        self.0.iter().find(|(known, _)| *known == number).map(|(_, value)| value)
    }

    pub(super) fn whole(&self, number: i64) -> Option<i64> {
        match self.find(number)? {
            Thrift::Whole(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn flag(&self, number: i64) -> Option<bool> {
        match self.find(number)? {
            Thrift::Flag(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn bytes(&self, number: i64) -> Option<&'a [u8]> {
        match self.find(number)? {
            Thrift::Bytes(value) => Some(value),
            _ => None,
        }
    }

    pub(super) fn fields(&self, number: i64) -> Option<&Fields<'a>> {
        match self.find(number)? {
            Thrift::Struct(value) => Some(value),
            _ => None,
        }
    }

    /// The structs of a list.
    pub(super) fn structs(&self, number: i64) -> Option<Vec<&Fields<'a>>> {
        let Thrift::List(values) = self.find(number)? else { return None };
        let one = |value: &'_ Thrift<'a>| matches!(value, Thrift::Struct(_));
        values.iter().all(one).then(|| {
            values
                .iter()
                .filter_map(|value| match value {
                    Thrift::Struct(fields) => Some(fields),
                    _ => None,
                })
                .collect()
        })
    }

    /// The number of the one field of a union.
    pub(super) fn chosen(&self) -> Option<i64> {
        self.0.first().map(|(number, _)| *number)
    }

    /// A number that must be there, and is a size.
    pub(super) fn size(&self, number: i64, what: &str) -> Fallible<usize> {
        let value = self.whole(number).and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| broken(format!("a description without {what}")))
    }
}

fn fields<'a>(bytes: &mut Bytes<'a>, depth: usize) -> Fallible<Fields<'a>> {
    let mut found = Vec::new();
    let mut number = 0_i64;
    loop {
        let head = bytes.byte()?;
        if head == 0 {
            return Ok(Fields(found));
        }
        number = match head >> 4 {
            0 => bytes.zigzag()?,
            more => number.wrapping_add(i64::from(more)),
        };
        let value = match head & 15 {
            1 => Thrift::Flag(true),
            2 => Thrift::Flag(false),
            kind => value(bytes, kind, depth)?,
        };
        found.push((number, value));
    }
}

fn value<'a>(bytes: &mut Bytes<'a>, kind: u8, depth: usize) -> Fallible<Thrift<'a>> {
    if depth > DEPTH_MAX {
        return Err(broken("a description that is nested too deep"));
    }
    Ok(match kind {
        // In lists, truth takes a byte of its own.
        1 | 2 => Thrift::Flag(bytes.byte()? == 1),
        3 => Thrift::Whole(i64::from(bytes.byte()? as i8)),
        4..=6 => Thrift::Whole(bytes.zigzag()?),
        7 => {
            bytes.take(8)?;
            Thrift::Skipped
        }
        8 => {
            let length = bytes.size()?;
            Thrift::Bytes(bytes.take(length)?)
        }
        9 | 10 => list(bytes, depth)?,
        11 => {
            let count = bytes.size()?;
            let kinds = if count > 0 { bytes.byte()? } else { 0 };
            for _ in 0..count {
                value(bytes, kinds >> 4, depth + 1)?;
                value(bytes, kinds & 15, depth + 1)?;
            }
            Thrift::Skipped
        }
        12 => Thrift::Struct(fields(bytes, depth + 1)?),
        other => return Err(broken(format!("a description with a value of kind {other}"))),
    })
}

fn list<'a>(bytes: &mut Bytes<'a>, depth: usize) -> Fallible<Thrift<'a>> {
    let head = bytes.byte()?;
    let count = match head >> 4 {
        15 => bytes.size()?,
        count => usize::from(count),
    };
    // Every element takes a byte at least.
    if count > bytes.rest.len() {
        return Err(broken("a list that is longer than its file"));
    }
    (0..count).map(|_| value(bytes, head & 15, depth + 1)).collect::<Fallible<Vec<_>>>().map(Thrift::List)
}
