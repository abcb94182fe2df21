//! Arrow's IPC: a schema, then batches of rows, each a description and a body of buffers. A file is a stream between
//! two marks, and read as one.

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::ops::Range;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::compression::Packing;
use super::flat::Table;
use super::{Budget, Fallible, Rows, broken, key, text, unknown};

const MARK: &[u8; 8] = b"ARROW1\0\0";
const GOES_ON: u32 = u32::MAX;
const DESCRIPTION_BYTES_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 32;

const SCHEMA: u8 = 1;
const DICTIONARY: u8 = 2;
const BATCH: u8 = 3;

/// The rows of a file or stream, batch by batch.
pub(super) fn rows(file: &mut (impl Read + Seek), length: u64, rows: &mut Rows<'_>) -> Fallible<()> {
    let mut stream = Stream { file, left: length };
    let mut head = stream.take(length.min(8))?;
    if head == MARK {
        head.clear();
    } else if head.starts_with(b"FEA1") {
        return Err(unknown("Feather's first version"));
    } else {
        stream.file.rewind()?;
        stream.left = length;
    }
    let mut fields = None;
    let mut books = HashMap::new();
    while !rows.is_full()
        && let Some(described) = stream.description(&mut rows.budget)?
    {
        let message = Table::root(&described)?;
        let told = message.table(2)?.ok_or_else(|| broken("a message without a description"))?;
        let body = message.long(3)?.unwrap_or(0);
        let body = u64::try_from(body).map_err(|_| broken("a body of negative length"))?;
        rows.budget.take(body.min(stream.left))?;
        let body = stream.take(body)?;
        match (message.byte(1)?.unwrap_or(0), &fields) {
            (SCHEMA, None) => fields = Some(schema(&told)?),
            (DICTIONARY, Some(fields)) => dictionary(&told, &body, fields, &mut books, &mut rows.budget)?,
            (BATCH, Some(fields)) => read_batch(&told, &body, fields, &books, rows)?,
            (SCHEMA, Some(_)) => return Err(broken("a second schema")),
            (BATCH | DICTIONARY, None) => return Err(broken("rows before any schema")),
            (other, _) => return Err(unknown(format!("a message of the kind {other}"))),
        }
    }
    match fields {
        Some(_) => Ok(()),
        None => Err(broken("no schema")),
    }
}

struct Stream<'f, F> {
    file: &'f mut F,
    left: u64,
}

impl<F: Read> Stream<'_, F> {
    fn take(&mut self, count: u64) -> Fallible<Vec<u8>> {
        self.left =
            self.left.checked_sub(count).ok_or_else(|| broken("the end of the file within a message"))?;
        let mut bytes = vec![0; count as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn length(&mut self) -> Fallible<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four were taken")))
    }

    /// The next message's description; `None` where there is none behind the last.
    fn description(&mut self, budget: &mut Budget) -> Fallible<Option<Vec<u8>>> {
        if self.left < 4 {
            return Ok(None);
        }
        // Before version 0.15 there was no mark in front of a length.
        let length = match self.length()? {
            GOES_ON if self.left < 4 => return Ok(None),
            GOES_ON => self.length()?,
            length => length,
        };
        if length == 0 {
            return Ok(None);
        }
        let length = u64::from(length);
        if length > DESCRIPTION_BYTES_MAX {
            return Err(broken(format!("a description of {length} bytes")));
        }
        budget.take(length)?;
        self.take(length).map(Some)
    }
}

/// A column, or a part of one, as the schema has it.
#[derive(Debug)]
struct Field {
    name: String,
    kind: Kind,
    /// The dictionary that numbers of this column stand for places in, and what those are.
    dictionary: Option<(i64, Kind)>,
    children: Vec<Field>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Whole {
        width: usize,
        is_signed: bool,
    },
    Float(usize),
    Truth,
    Words {
        width: usize,
        is_text: bool,
    },
    View {
        is_text: bool,
    },
    List {
        width: usize,
    },
    FixedList {
        size: usize,
    },
    Struct,
    Map,
    /// Bytes of one length, of which nothing is made.
    Fixed,
}

fn schema(told: &Table<'_>) -> Fallible<Vec<Field>> {
    if told.short(0)?.unwrap_or(0) != 0 {
        return Err(unknown("numbers with their highest byte first"));
    }
    let mut count = 0;
    told.tables(1)?.iter().map(|field| Field::read(field, 0, &mut count)).collect()
}

impl Field {
    fn read(told: &Table<'_>, depth: usize, count: &mut usize) -> Fallible<Field> {
        *count += 1;
        // Tables may be pointed to from several places, so that a short text could be an endless tree.
        if depth > DEPTH_MAX || *count > 10_000 {
            return Err(broken("a schema that is nested too deep or too wide"));
        }
        let name = told.text(0)?.unwrap_or_default().to_owned();
        let kind = kind(told.byte(2)?.unwrap_or(0), told.table(3)?)?;
        let children = told.tables(5)?;
        let children: Vec<Field> =
            children.iter().map(|child| Field::read(child, depth + 1, count)).collect::<Fallible<_>>()?;
        let expected = match kind {
            Kind::List { .. } | Kind::FixedList { .. } | Kind::Map => 1,
            Kind::Struct => children.len(),
            _ => 0,
        };
        let is_pair = kind != Kind::Map || children.first().is_some_and(|pair| pair.children.len() == 2);
        if children.len() != expected || !is_pair {
            return Err(broken(format!("{} parts in the column {name:?}", children.len())));
        }
        let Some(book) = told.table(4)? else { return Ok(Field { name, kind, dictionary: None, children }) };
        let number = match book.table(1)? {
            Some(number) => whole(&number)?,
            None => Kind::Whole { width: 4, is_signed: true },
        };
        // Each would hold the one before it, and so on.
        if children.iter().any(Field::has_dictionary) {
            return Err(unknown("a dictionary within a dictionary"));
        }
        let dictionary = Some((book.long(0)?.unwrap_or(0), kind));
        Ok(Field { name, kind: number, dictionary, children })
    }

    fn has_dictionary(&self) -> bool {
        self.dictionary.is_some() || self.children.iter().any(Field::has_dictionary)
    }

    /// What a dictionary of this column, or of a part of it, holds.
    fn find(&self, id: i64) -> Option<(Kind, &[Field])> {
        match &self.dictionary {
            Some((known, kind)) if *known == id => Some((*kind, &self.children)),
            _ => self.children.iter().find_map(|child| child.find(id)),
        }
    }
}

fn whole(told: &Table<'_>) -> Fallible<Kind> {
    let bits = told.int(0)?.unwrap_or(0);
    match bits {
        8 | 16 | 32 | 64 => {
            let is_signed = told.byte(1)?.unwrap_or(0) != 0;
            Ok(Kind::Whole { width: bits as usize / 8, is_signed })
        }
        _ => Err(broken(format!("whole numbers of {bits} bits"))),
    }
}

/// A type by its number and what is said of it.
fn kind(number: u8, told: Option<Table<'_>>) -> Fallible<Kind> {
    let size = |field: usize, otherwise: i32| -> Fallible<usize> {
        let size = told.map(|told| told.int(field)).transpose()?.flatten().unwrap_or(otherwise);
        usize::try_from(size).map_err(|_| broken("a type of negative size"))
    };
    let unit = |otherwise: i16| -> Fallible<i16> {
        Ok(told.map(|told| told.short(0)).transpose()?.flatten().unwrap_or(otherwise))
    };
    let number_of = |width: usize| Kind::Whole { width, is_signed: true };
    Ok(match number {
        1 => Kind::Null,
        2 => whole(&told.ok_or_else(|| broken("whole numbers of unknown size"))?)?,
        3 => match unit(0)? {
            0 => Kind::Fixed,
            1 => Kind::Float(4),
            _ => Kind::Float(8),
        },
        4 => Kind::Words { width: 4, is_text: false },
        5 => Kind::Words { width: 4, is_text: true },
        6 => Kind::Truth,
        // Days have half the bytes of milliseconds.
        8 => number_of(if unit(1)? == 0 { 4 } else { 8 }),
        9 => number_of(if size(1, 32)? == 32 { 4 } else { 8 }),
        10 | 18 => number_of(8),
        12 => Kind::List { width: 4 },
        13 => Kind::Struct,
        // Decimals, intervals, bytes.
        7 | 11 | 15 => Kind::Fixed,
        16 => Kind::FixedList { size: size(0, 0)? },
        17 => Kind::Map,
        19 => Kind::Words { width: 8, is_text: false },
        20 => Kind::Words { width: 8, is_text: true },
        21 => Kind::List { width: 8 },
        23 => Kind::View { is_text: false },
        24 => Kind::View { is_text: true },
        other => return Err(unknown(format!("a column of arrow's type {other}"))),
    })
}

/// Dictionaries by their numbers.
type Books = HashMap<i64, Rc<Vec<Array>>>;

fn dictionary(
    told: &Table<'_>,
    body: &[u8],
    fields: &[Field],
    books: &mut Books,
    budget: &mut Budget,
) -> Fallible<()> {
    let id = told.long(0)?.unwrap_or(0);
    let Some((kind, children)) = fields.iter().find_map(|field| field.find(id)) else {
        return Err(broken("a dictionary of no column"));
    };
    let batch = told.table(1)?.ok_or_else(|| broken("a dictionary without values"))?;
    let mut batch = Batch::new(&batch, body, books, budget)?;
    let values = batch.plain(kind, children)?;
    let is_more = told.byte(2)?.unwrap_or(0) != 0;
    let mut parts = match (is_more, books.remove(&id)) {
        (true, Some(parts)) => Rc::try_unwrap(parts).map_err(|_| unknown("a dictionary of itself"))?,
        _ => Vec::new(),
    };
    parts.push(values);
    books.insert(id, Rc::new(parts));
    Ok(())
}

fn read_batch(
    told: &Table<'_>,
    body: &[u8],
    fields: &[Field],
    books: &Books,
    rows: &mut Rows<'_>,
) -> Fallible<()> {
    let count = told.long(0)?.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let mut batch = Batch::new(told, body, books, &mut rows.budget)?;
    let columns: Vec<Array> = fields.iter().map(|field| batch.array(field)).collect::<Fallible<_>>()?;
    if columns.is_empty() || columns.iter().any(|column| column.count != count) {
        return Err(broken(format!("columns of other lengths than the {count} rows of their batch")));
    }
    for at in 0..count {
        if rows.is_full() {
            break;
        }
        let mut values = Map::new();
        for (field, column) in fields.iter().zip(&columns) {
            rows.budget.take_entry(&field.name)?;
            values.insert(field.name.clone(), column.value(at, &mut rows.budget)?);
        }
        rows.push(values);
    }
    Ok(())
}

/// Values beside one another, of which any is asked for by its place.
#[derive(Debug)]
struct Array {
    count: usize,
    /// A bit for every value that is there; empty where all are.
    present: Vec<u8>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Null,
    Whole { width: usize, is_signed: bool, bytes: Vec<u8> },
    Float { width: usize, bytes: Vec<u8> },
    Truth(Vec<u8>),
    Words { width: usize, is_text: bool, places: Vec<u8>, bytes: Vec<u8> },
    View { is_text: bool, views: Vec<u8>, parts: Vec<Vec<u8>> },
    List { width: usize, places: Vec<u8>, elements: Box<Array> },
    FixedList { size: usize, elements: Box<Array> },
    Struct(Vec<(String, Array)>),
    Map { places: Vec<u8>, pairs: Box<[Array; 2]> },
    Book(Box<Array>, Rc<Vec<Array>>),
}

/// The number of so many bytes at a place among such.
fn number(bytes: &[u8], at: usize, width: usize) -> Fallible<u64> {
    let start = at.checked_mul(width);
    let bytes = start.and_then(|start| bytes.get(start..start.checked_add(width)?));
    let bytes = bytes.ok_or_else(|| broken("a column with fewer values than rows"))?;
    Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// From one place to the next.
fn range(places: &[u8], at: usize, width: usize) -> Fallible<Range<usize>> {
    let [start, end] = [number(places, at, width)?, number(places, at + 1, width)?];
    let size = |place| usize::try_from(place).map_err(|_| broken("a place beyond all memory"));
    let range = size(start)?..size(end)?;
    match range.start <= range.end {
        true => Ok(range),
        false => Err(broken("a value that ends before it begins")),
    }
}

impl Array {
    fn value(&self, at: usize, budget: &mut Budget) -> Fallible<Value> {
        budget.take_values(1)?;
        if at >= self.count {
            return Err(broken("a value beyond the end of its column"));
        }
        if !self.present.is_empty() && number(&self.present, at / 8, 1)? >> (at % 8) & 1 == 0 {
            return Ok(Value::Null);
        }
        match &self.values {
            Values::Null => Ok(Value::Null),
            Values::Whole { width, is_signed, bytes } => {
                let value = number(bytes, at, *width)?;
                let free = 64 - 8 * *width as u32;
                Ok(if *is_signed { Value::from((value << free) as i64 >> free) } else { Value::from(value) })
            }
            Values::Float { width: 4, bytes } => Ok(f32::from_bits(number(bytes, at, 4)? as u32).into()),
            Values::Float { bytes, .. } => Ok(f64::from_bits(number(bytes, at, 8)?).into()),
            Values::Truth(bits) => Ok((number(bits, at / 8, 1)? >> (at % 8) & 1 == 1).into()),
            Values::Words { width, is_text, places, bytes } => {
                let word = bytes.get(range(places, at, *width)?);
                text(word.ok_or_else(|| broken("a text beyond its column"))?, *is_text, budget)
            }
            Values::View { is_text, views, parts } => text(view(views, parts, at)?, *is_text, budget),
            Values::List { width, places, elements } => {
                elements.list(range(places, at, *width)?, budget).map(Value::Array)
            }
            Values::FixedList { size, elements } => {
                let start = at.saturating_mul(*size);
                elements.list(start..start.saturating_add(*size), budget).map(Value::Array)
            }
            Values::Struct(fields) => {
                let mut values = Map::new();
                for (name, field) in fields {
                    budget.take_entry(name)?;
                    values.insert(name.clone(), field.value(at, budget)?);
                }
                Ok(Value::Object(values))
            }
            Values::Map { places, pairs } => {
                let mut values = Map::new();
                for at in range(places, at, 4)? {
                    let name = key(pairs[0].value(at, budget)?);
                    budget.take_entry(&name)?;
                    values.insert(name, pairs[1].value(at, budget)?);
                }
                Ok(Value::Object(values))
            }
            Values::Book(numbers, parts) => {
                let place = numbers.value(at, budget)?.as_u64().and_then(|place| usize::try_from(place).ok());
                let mut place = place.ok_or_else(|| broken("a negative place in a dictionary"))?;
                for part in parts.iter() {
                    if place < part.count {
                        return part.value(place, budget);
                    }
                    place -= part.count;
                }
                Err(broken("a value that its dictionary does not have"))
            }
        }
    }

    fn list(&self, range: Range<usize>, budget: &mut Budget) -> Fallible<Vec<Value>> {
        range.map(|at| self.value(at, budget)).collect()
    }
}

/// A text that stands in its sixteen bytes if it is short, and else in one of several parts.
fn view<'a>(views: &'a [u8], parts: &'a [Vec<u8>], at: usize) -> Fallible<&'a [u8]> {
    let four = |within: usize| Ok::<_, super::Fault>(number(views, 4 * at + within, 4)? as usize);
    let length = four(0)?;
    let found = match length {
        0..=12 => views.get(16 * at + 4..16 * at + 4 + length),
        _ => {
            let start = four(3)?;
            parts.get(four(2)?).and_then(|part| part.get(start..start.checked_add(length)?))
        }
    };
    found.ok_or_else(|| broken("a text beyond its column"))
}

/// A batch whose parts are taken in the order of the schema.
struct Batch<'a> {
    nodes: std::slice::ChunksExact<'a, u8>,
    buffers: std::slice::ChunksExact<'a, u8>,
    variadic: std::slice::ChunksExact<'a, u8>,
    packing: Packing,
    body: &'a [u8],
    books: &'a Books,
    budget: &'a mut Budget,
}

impl<'a> Batch<'a> {
    fn new(
        told: &Table<'a>,
        body: &'a [u8],
        books: &'a Books,
        budget: &'a mut Budget,
    ) -> Fallible<Batch<'a>> {
        let packing = match told.table(3)? {
            None => Packing::None,
            Some(packing) => match packing.byte(0)?.unwrap_or(0) {
                0 => Packing::Lz4Frame,
                1 => Packing::Zstd,
                other => return Err(unknown(format!("buffers packed in the way {other}"))),
            },
        };
        let [nodes, buffers] = [told.pieces(1, 16)?, told.pieces(2, 16)?];
        Ok(Batch { nodes, buffers, variadic: told.pieces(4, 8)?, packing, body, books, budget })
    }

    fn buffer(&mut self) -> Fallible<Vec<u8>> {
        let place = self.buffers.next().ok_or_else(|| broken("fewer buffers than columns"))?;
        let [start, length] = [number(place, 0, 8)?, number(place, 1, 8)?];
        let range = start
            .checked_add(length)
            .and_then(|end| Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?));
        let bytes = range.and_then(|range| self.body.get(range));
        let bytes = bytes.ok_or_else(|| broken("a buffer beyond its message"))?;
        if self.packing == Packing::None || bytes.is_empty() {
            self.budget.take(bytes.len() as u64)?;
            return Ok(bytes.to_vec());
        }
        let (size, packed) =
            bytes.split_first_chunk::<8>().ok_or_else(|| broken("a buffer without its size"))?;
        // A buffer that would have grown stands as it is.
        let (size, packing) = match i64::from_le_bytes(*size) {
            -1 => (packed.len() as u64, Packing::None),
            size => (size as u64, self.packing),
        };
        self.budget.take(size)?;
        packing.unpacked(packed, size as usize)
    }

    fn array(&mut self, field: &Field) -> Fallible<Array> {
        let array = match field.dictionary {
            None => return self.plain(field.kind, &field.children),
            Some(_) => self.plain(field.kind, &[])?,
        };
        let id = field.dictionary.as_ref().map_or(0, |(id, _)| *id);
        let book = self.books.get(&id).cloned().ok_or_else(|| broken("a column without its dictionary"))?;
        let Array { count, present, .. } = &array;
        Ok(Array { count: *count, present: present.clone(), values: Values::Book(Box::new(array), book) })
    }

    fn plain(&mut self, kind: Kind, children: &[Field]) -> Fallible<Array> {
        let node = self.nodes.next().ok_or_else(|| broken("fewer columns than the schema has"))?;
        let count =
            u32::try_from(number(node, 0, 8)?).map_err(|_| broken("a column of impossible length"))?;
        let count = count as usize;
        let absent = number(node, 1, 8)?;
        let mut present = match kind {
            Kind::Null => Vec::new(),
            _ => self.buffer()?,
        };
        if absent == 0 {
            present.clear();
        }
        let values = match kind {
            Kind::Null => Values::Null,
            Kind::Whole { width, is_signed } => Values::Whole { width, is_signed, bytes: self.buffer()? },
            Kind::Float(width) => Values::Float { width, bytes: self.buffer()? },
            Kind::Truth => Values::Truth(self.buffer()?),
            Kind::Fixed => {
                self.buffer()?;
                Values::Null
            }
            Kind::Words { width, is_text } => {
                Values::Words { width, is_text, places: self.buffer()?, bytes: self.buffer()? }
            }
            Kind::View { is_text } => {
                let views = self.buffer()?;
                let parts = self.variadic.next().ok_or_else(|| broken("views without their count"))?;
                let parts = (0..number(parts, 0, 8)?).map(|_| self.buffer()).collect::<Fallible<_>>()?;
                Values::View { is_text, views, parts }
            }
            Kind::List { width } => {
                Values::List { width, places: self.buffer()?, elements: Box::new(self.array(&children[0])?) }
            }
            Kind::FixedList { size } => {
                Values::FixedList { size, elements: Box::new(self.array(&children[0])?) }
            }
            Kind::Struct => {
                let one = |field: &Field| Ok((field.name.clone(), self.array(field)?));
                Values::Struct(children.iter().map(one).collect::<Fallible<_>>()?)
            }
            Kind::Map => {
                let places = self.buffer()?;
                // The pairs are a struct, whose own absence means nothing.
                self.nodes.next();
                self.buffer()?;
                let pair = &children[0].children;
                Values::Map { places, pairs: Box::new([self.array(&pair[0])?, self.array(&pair[1])?]) }
            }
        };
        Ok(Array { count, present, values })
    }
}
