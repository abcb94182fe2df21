//! The pages of one column: unpacked, and their values read in any of parquet's encodings.

use serde_json::Value;

use super::assembly::Column;
use super::bytes::Bytes;
use super::compression::Packing;
use super::encodings::{differences, runs, streams, truths, words_by_difference, words_by_length};
use super::thrift::Fields;
use super::{Budget, Fallible, broken, text, unknown};

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Physical {
    Truth,
    Whole32,
    Whole64,
    Float32,
    Float64,
    Words,
    /// So many bytes, of which nothing is made.
    Fixed(usize),
}

impl Physical {
    /// By parquet's numbers.
    pub(super) fn of(number: i64, length: Option<i64>) -> Fallible<Physical> {
        Ok(match number {
            0 => Physical::Truth,
            1 => Physical::Whole32,
            2 => Physical::Whole64,
            3 => Physical::Fixed(12),
            4 => Physical::Float32,
            5 => Physical::Float64,
            6 => Physical::Words,
            7 => {
                let length = length.and_then(|length| usize::try_from(length).ok());
                Physical::Fixed(length.ok_or_else(|| broken("a column of bytes without a length"))?)
            }
            other => return Err(broken(format!("a column of the type {other}"))),
        })
    }

    fn width(self) -> usize {
        match self {
            Physical::Truth | Physical::Words => 0,
            Physical::Whole32 | Physical::Float32 => 4,
            Physical::Whole64 | Physical::Float64 => 8,
            Physical::Fixed(length) => length,
        }
    }
}

/// What stored values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Plain,
    Text,
    Unsigned,
    /// Something that is null here.
    Nothing,
}

/// A column as the schema has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaf {
    pub(super) physical: Physical,
    pub(super) meaning: Meaning,
    pub(super) depth_max: u8,
    pub(super) level_max: u8,
}

impl Leaf {
    fn whole(&self, value: i64) -> Value {
        match (self.meaning, self.physical) {
            (Meaning::Nothing, _) => Value::Null,
            (Meaning::Unsigned, Physical::Whole32) => Value::from(value as u32),
            (Meaning::Unsigned, _) => Value::from(value as u64),
            (_, Physical::Whole32) => Value::from(value as i32),
            _ => Value::from(value),
        }
    }

    fn word(&self, bytes: &[u8], budget: &mut Budget) -> Fallible<Value> {
        match self.meaning {
            Meaning::Nothing => Ok(Value::Null),
            meaning => text(bytes, meaning == Meaning::Text, budget),
        }
    }

    /// A value of as many bytes as its type has.
    fn fixed(&self, bytes: &[u8]) -> Value {
        let four = || bytes.try_into().expect("a value of four bytes is as wide");
        let eight = || bytes.try_into().expect("a value of eight bytes is as wide");
        match self.physical {
            Physical::Whole32 => self.whole(i64::from(i32::from_le_bytes(four()))),
            Physical::Whole64 => self.whole(i64::from_le_bytes(eight())),
            Physical::Float32 => Value::from(f32::from_le_bytes(four())),
            Physical::Float64 => Value::from(f64::from_le_bytes(eight())),
            Physical::Truth | Physical::Words | Physical::Fixed(_) => Value::Null,
        }
    }

    fn plain(&self, bytes: &mut Bytes<'_>, count: usize, budget: &mut Budget) -> Fallible<Vec<Value>> {
        match self.physical {
            Physical::Truth => Ok(truths(bytes.rest, count)?.map(Value::from).collect()),
            Physical::Words => (0..count)
                .map(|_| {
                    let length = bytes.length()?;
                    self.word(bytes.take(length)?, budget)
                })
                .collect(),
            _ => (0..count).map(|_| Ok(self.fixed(bytes.take(self.physical.width())?))).collect(),
        }
    }

    /// The values of a page; their room was taken.
    fn values(
        &self,
        encoding: i64,
        bytes: &mut Bytes<'_>,
        count: usize,
        (dictionary, budget): (&[Value], &mut Budget),
    ) -> Fallible<Vec<Value>> {
        match (encoding, self.physical) {
            (0, _) => self.plain(bytes, count, budget),
            (2 | 8, _) => {
                budget.take(4 * count as u64)?;
                let width = if count == 0 { 0 } else { bytes.byte()? };
                let places = runs(bytes, u32::from(width), count)?;
                let place = |place: u32| {
                    let value = dictionary.get(place as usize);
                    let value = value.ok_or_else(|| broken("a value that its dictionary does not have"))?;
                    budget.take(value.as_str().map_or(0, str::len) as u64)?;
                    Ok(value.clone())
                };
                places.into_iter().map(place).collect()
            }
            (3, Physical::Truth) => {
                let length = bytes.length()?;
                budget.take(4 * count as u64)?;
                let truths = runs(&mut Bytes { rest: bytes.take(length)? }, 1, count)?;
                Ok(truths.into_iter().map(|truth| Value::from(truth == 1)).collect())
            }
            (5, Physical::Whole32 | Physical::Whole64) => {
                Ok(differences(bytes, count, budget)?.into_iter().map(|value| self.whole(value)).collect())
            }
            (6, Physical::Words) => {
                let words = words_by_length(bytes, count, budget)?;
                words.into_iter().map(|word| self.word(word, budget)).collect()
            }
            (7, Physical::Words) => {
                let words = words_by_difference(bytes, count, budget)?;
                words.into_iter().map(|word| self.word(&word, budget)).collect()
            }
            (7, Physical::Fixed(_)) => {
                words_by_difference(bytes, count, budget)?;
                Ok(vec![Value::Null; count])
            }
            (9, _) if self.physical.width() > 0 => {
                budget.take(bytes.rest.len() as u64)?;
                let values = streams(bytes.rest, self.physical.width(), count)?;
                Ok(values.chunks_exact(self.physical.width()).map(|value| self.fixed(value)).collect())
            }
            (other, _) => Err(unknown(format!("values in the encoding {other}"))),
        }
    }
}

/// The pages of a column in one group of rows, put together.
pub(super) fn column(
    leaf: &Leaf,
    packing: Packing,
    chunk: &[u8],
    count: usize,
    budget: &mut Budget,
) -> Fallible<Column> {
    let mut bytes = Bytes { rest: chunk };
    let mut reader = Reader { leaf, packing, dictionary: Vec::new(), column: Column::default(), budget };
    reader.column.depth_max = leaf.depth_max;
    while reader.column.count < count {
        let head = Fields::read(&mut bytes)?;
        let size = head.size(3, "the size of a page")?;
        reader.page(&head, bytes.take(size)?)?;
    }
    match reader.column.count == count {
        true => Ok(reader.column),
        false => Err(broken("a column with more values than it says")),
    }
}

struct Reader<'a> {
    leaf: &'a Leaf,
    packing: Packing,
    dictionary: Vec<Value>,
    column: Column,
    budget: &'a mut Budget,
}

impl Reader<'_> {
    fn page(&mut self, head: &Fields<'_>, packed: &[u8]) -> Fallible<()> {
        let size = head.size(2, "the unpacked size of a page")?;
        match head.size(1, "the kind of a page")? {
            0 => {
                let told = head.fields(5).ok_or_else(|| broken("a page without a description"))?;
                let (count, encoding) = self.told(told, 2)?;
                let page = self.unpacked(packed, size)?;
                let mut bytes = Bytes { rest: &page };
                let levels = self.prefixed(&mut bytes, self.leaf.level_max, (told, 4), count)?;
                let depths = self.prefixed(&mut bytes, self.leaf.depth_max, (told, 3), count)?;
                self.fill(levels, depths, (encoding, count), &mut bytes)
            }
            2 => {
                let told = head.fields(7).ok_or_else(|| broken("a dictionary without a description"))?;
                let count = told.size(1, "the count of a dictionary")?;
                self.budget.take_values(count)?;
                let page = self.unpacked(packed, size)?;
                self.dictionary = self.leaf.plain(&mut Bytes { rest: &page }, count, self.budget)?;
                Ok(())
            }
            3 => {
                let told = head.fields(8).ok_or_else(|| broken("a page without a description"))?;
                let (count, encoding) = self.told(told, 4)?;
                let mut bytes = Bytes { rest: packed };
                let levels = bytes.take(told.size(6, "the length of its levels")?)?;
                let depths = bytes.take(told.size(5, "the length of its depths")?)?;
                let levels = self.numbers(&mut Bytes { rest: levels }, self.leaf.level_max, count)?;
                let depths = self.numbers(&mut Bytes { rest: depths }, self.leaf.depth_max, count)?;
                let before = packed.len() - bytes.rest.len();
                let rest = size.checked_sub(before);
                let rest = rest.ok_or_else(|| broken("a page that is shorter than its levels"))?;
                let page = match told.flag(7).unwrap_or(true) {
                    true if rest > 0 => self.unpacked(bytes.rest, rest)?,
                    _ => bytes.rest.to_vec(),
                };
                self.fill(levels, depths, (encoding, count), &mut Bytes { rest: &page })
            }
            // Indices are for those who search.
            _ => Ok(()),
        }
    }

    /// How many places a page has, and how its values are written.
    fn told(&mut self, told: &Fields<'_>, encoding: i64) -> Fallible<(usize, i64)> {
        let count = told.size(1, "the count of a page")?;
        let encoding = told.whole(encoding).ok_or_else(|| broken("a page without an encoding"))?;
        // Levels as they are read, and as they are kept.
        self.budget.take((count as u64).saturating_mul(10))?;
        Ok((count, encoding))
    }

    fn unpacked(&mut self, packed: &[u8], size: usize) -> Fallible<Vec<u8>> {
        self.budget.take(size as u64)?;
        self.packing.unpacked(packed, size)
    }

    /// Levels behind their length, where there can be any but 0.
    fn prefixed(
        &self,
        bytes: &mut Bytes<'_>,
        most: u8,
        (told, encoding): (&Fields<'_>, i64),
        count: usize,
    ) -> Fallible<Vec<u8>> {
        if most == 0 {
            return Ok(Vec::new());
        }
        if told.whole(encoding) == Some(4) {
            return Err(unknown("levels in the first encoding of parquet"));
        }
        let length = bytes.length()?;
        self.numbers(&mut Bytes { rest: bytes.take(length)? }, most, count)
    }

    fn numbers(&self, bytes: &mut Bytes<'_>, most: u8, count: usize) -> Fallible<Vec<u8>> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let numbers = runs(bytes, u8::BITS - most.leading_zeros(), count)?;
        match numbers.iter().all(|&number| number <= u32::from(most)) {
            true => Ok(numbers.into_iter().map(|number| number as u8).collect()),
            false => Err(broken("a level that the schema does not have")),
        }
    }

    fn fill(
        &mut self,
        levels: Vec<u8>,
        depths: Vec<u8>,
        (encoding, count): (i64, usize),
        bytes: &mut Bytes<'_>,
    ) -> Fallible<()> {
        let filled = match self.leaf.depth_max {
            0 => count,
            most => depths.iter().filter(|&&depth| depth == most).count(),
        };
        self.budget.take_values(filled)?;
        let values = self.leaf.values(encoding, bytes, filled, (&self.dictionary, self.budget))?;
        self.column.levels.extend(levels);
        self.column.depths.extend(depths);
        self.column.values.extend(values);
        self.column.count += count;
        Ok(())
    }
}
