//! Parquet files: what stands at their end says where the columns are and how rows are nested.

use std::io::{Read, Seek, SeekFrom};

use super::assembly::{Kind, Node, Repeated, row};
use super::bytes::Bytes;
use super::compression::Packing;
use super::pages::{Leaf, Meaning, Physical, column};
use super::thrift::Fields;
use super::{Fallible, Rows, broken, unknown};

const MARK: &[u8; 4] = b"PAR1";
const SEALED: &[u8; 4] = b"PARE";
const FOOTER_BYTES_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 32;

/// Parquet's numbers of how often something is there.
const OPTIONAL: i64 = 1;
const REPEATED: i64 = 2;

/// The rows of a file, group by group.
pub(super) fn rows(file: &mut (impl Read + Seek), length: u64, rows: &mut Rows<'_>) -> Fallible<()> {
    let footer = footer(file, length)?;
    rows.budget.take(footer.len() as u64)?;
    let told = Fields::read(&mut Bytes { rest: &footer })?;
    let elements = told.structs(2).ok_or_else(|| broken("no schema"))?;
    let mut schema = Schema { elements: &elements, at: 1, leaves: Vec::new() };
    let root = elements.first().ok_or_else(|| broken("an empty schema"))?;
    let nodes = schema.children(root, (0, 0), 0)?;
    if schema.leaves.is_empty() {
        return Err(broken("a schema without columns"));
    }
    for group in told.structs(4).unwrap_or_default() {
        if rows.is_full() {
            break;
        }
        read_group(file, length, group, (&nodes, &schema.leaves), rows)?;
    }
    Ok(())
}

fn footer(file: &mut (impl Read + Seek), length: u64) -> Fallible<Vec<u8>> {
    let (mut head, mut tail) = ([0; 4], [0; 8]);
    if length < 12 {
        return Err(broken(format!("a file of {length} bytes")));
    }
    file.read_exact(&mut head)?;
    file.seek(SeekFrom::Start(length - 8))?;
    file.read_exact(&mut tail)?;
    let (size, mark) = tail.split_at(4);
    if mark == SEALED || &head == SEALED {
        return Err(unknown("an encrypted file"));
    }
    if mark != MARK || &head != MARK {
        return Err(broken("a file without parquet's mark at both ends"));
    }
    let size = u64::from(u32::from_le_bytes(size.try_into().expect("half of eight bytes")));
    if size > FOOTER_BYTES_MAX.min(length - 12) {
        return Err(broken(format!("a description of {size} bytes")));
    }
    part(file, length - 8 - size, size)
}

fn part(file: &mut (impl Read + Seek), start: u64, size: u64) -> Fallible<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_group(
    file: &mut (impl Read + Seek),
    length: u64,
    group: &Fields<'_>,
    (nodes, leaves): (&[Node], &[Leaf]),
    rows: &mut Rows<'_>,
) -> Fallible<()> {
    let count = group.size(3, "the rows of a group")?;
    let chunks = group.structs(1).unwrap_or_default();
    if chunks.len() != leaves.len() {
        return Err(broken(format!("{} columns in place of {}", chunks.len(), leaves.len())));
    }
    let mut columns = Vec::with_capacity(leaves.len());
    for (chunk, leaf) in chunks.into_iter().zip(leaves) {
        let told = chunk.fields(3).ok_or_else(|| match chunk.fields(8) {
            Some(_) => unknown("an encrypted column"),
            None => broken("a column without a description"),
        })?;
        if chunk.bytes(1).is_some() {
            return Err(unknown("columns in other files"));
        }
        let values = told.size(5, "the values of a column")?;
        let size = told.size(7, "the size of a column")? as u64;
        let data = told.size(9, "the place of a column")? as u64;
        // Some writers put 0 where there is no dictionary.
        let dictionary = told.whole(11).and_then(|place| u64::try_from(place).ok());
        let start = dictionary.filter(|place| (4..data).contains(place)).unwrap_or(data);
        if start.checked_add(size).is_none_or(|end| end > length) {
            return Err(broken("a column beyond the end of the file"));
        }
        rows.budget.take(size)?;
        let bytes = part(file, start, size)?;
        let packing = Packing::of_parquet(told.whole(4).unwrap_or(0))?;
        columns.push(column(leaf, packing, &bytes, values, &mut rows.budget)?);
    }
    for _ in 0..count {
        if rows.is_full() {
            return Ok(());
        }
        let values = row(nodes, &mut columns, &mut rows.budget)?;
        rows.push(values);
    }
    match columns.iter().all(|column| column.is_over()) {
        true => Ok(()),
        false => Err(broken("a column with more values than rows")),
    }
}

/// The schema's elements in their order: every group before its children.
struct Schema<'a, 'f> {
    elements: &'a [&'a Fields<'f>],
    at: usize,
    leaves: Vec<Leaf>,
}

impl<'a, 'f> Schema<'a, 'f> {
    fn next(&mut self) -> Fallible<&'a Fields<'f>> {
        let element = self.elements.get(self.at).ok_or_else(|| broken("a schema that breaks off"))?;
        self.at += 1;
        Ok(element)
    }

    fn children(&mut self, group: &Fields<'f>, levels: (u8, u8), depth: usize) -> Fallible<Vec<Node>> {
        let count = group.size(5, "children")?;
        (0..count).map(|_| self.child(levels, depth + 1)).collect()
    }

    /// The next element, with what it may be: absent, or there several times.
    fn child(&mut self, (mut deep, mut level): (u8, u8), depth: usize) -> Fallible<Node> {
        let element = self.next()?;
        let first = self.leaves.len();
        match element.whole(3).unwrap_or(0) {
            OPTIONAL => deep += 1,
            REPEATED => {
                // Without a list around it, it is one itself.
                (deep, level) = (deep + 1, level + 1);
                let inner = self.body(element, (deep, level), depth)?;
                let columns = first..self.leaves.len();
                if columns.is_empty() {
                    return Err(broken("a group without columns"));
                }
                let inner =
                    Node { name: String::new(), present_at: None, columns: columns.clone(), kind: inner };
                let kind = Kind::List(Repeated { depth: deep, level }, Box::new(inner));
                return Ok(Node { name: name(element)?, present_at: None, columns, kind });
            }
            _ => {}
        }
        let kind = self.body(element, (deep, level), depth)?;
        let columns = first..self.leaves.len();
        if columns.is_empty() {
            return Err(broken("a group without columns"));
        }
        let present_at = (element.whole(3) == Some(OPTIONAL)).then_some(deep);
        Ok(Node { name: name(element)?, present_at, columns, kind })
    }

    fn body(&mut self, element: &'a Fields<'f>, levels: (u8, u8), depth: usize) -> Fallible<Kind> {
        if depth > DEPTH_MAX {
            return Err(broken("a schema that is nested too deep"));
        }
        let Some(physical) = element.whole(1) else {
            let logical = element.fields(10).and_then(Fields::chosen);
            return match (element.whole(6), logical) {
                (Some(3), _) | (_, Some(3)) => self.list(element, levels, depth),
                (Some(1 | 2), _) | (_, Some(2)) => self.map(element, levels, depth),
                _ => Ok(Kind::Struct(self.children(element, levels, depth)?)),
            };
        };
        self.leaves.push(Leaf {
            physical: Physical::of(physical, element.whole(2))?,
            meaning: meaning(element),
            depth_max: levels.0,
            level_max: levels.1,
        });
        Ok(Kind::Value)
    }

    /// The repeated element of a list or map.
    fn repeated(
        &mut self,
        element: &Fields<'f>,
        (deep, level): (u8, u8),
    ) -> Fallible<(&'a Fields<'f>, Repeated)> {
        let inner = self.next()?;
        match element.whole(5) == Some(1) && inner.whole(3) == Some(REPEATED) {
            true => Ok((inner, Repeated { depth: deep + 1, level: level + 1 })),
            false => Err(broken("a list that does not repeat")),
        }
    }

    fn list(&mut self, element: &'a Fields<'f>, levels: (u8, u8), depth: usize) -> Fallible<Kind> {
        let first = self.leaves.len();
        let (inner, repeated) = self.repeated(element, levels)?;
        let levels = (repeated.depth, repeated.level);
        let called = name(inner)?;
        // Older writers repeat the element itself.
        let is_itself = inner.whole(1).is_some()
            || inner.whole(5) != Some(1)
            || called == "array"
            || called == format!("{}_tuple", name(element)?);
        let node = match is_itself {
            false => self.child(levels, depth + 2)?,
            true => {
                let kind = self.body(inner, levels, depth + 1)?;
                let columns = first..self.leaves.len();
                if columns.is_empty() {
                    return Err(broken("a group without columns"));
                }
                Node { name: called, present_at: None, columns, kind }
            }
        };
        Ok(Kind::List(repeated, Box::new(node)))
    }

    fn map(&mut self, element: &'a Fields<'f>, levels: (u8, u8), depth: usize) -> Fallible<Kind> {
        let (inner, repeated) = self.repeated(element, levels)?;
        if inner.whole(5) != Some(2) {
            return Err(broken("a map without keys and values"));
        }
        let levels = (repeated.depth, repeated.level);
        let pair = [self.child(levels, depth + 2)?, self.child(levels, depth + 2)?];
        Ok(Kind::Map(repeated, Box::new(pair)))
    }
}

fn name(element: &Fields<'_>) -> Fallible<String> {
    let name = element.bytes(4).and_then(|name| std::str::from_utf8(name).ok());
    name.map(str::to_owned).ok_or_else(|| broken("a column without a name"))
}

/// By the older and the newer number of what a column means.
fn meaning(element: &Fields<'_>) -> Meaning {
    let logical = element.fields(10);
    let chosen = logical.and_then(Fields::chosen);
    let is_unsigned =
        logical.and_then(|logical| logical.fields(10)).is_some_and(|whole| whole.flag(2) == Some(false));
    match (element.whole(6), chosen) {
        // Words, names of a set, JSON.
        (Some(0 | 4 | 19), _) | (_, Some(1 | 4 | 12)) => Meaning::Text,
        // Decimals and half floats.
        (Some(5), _) | (_, Some(5 | 15)) => Meaning::Nothing,
        (Some(11..=14), _) => Meaning::Unsigned,
        _ if is_unsigned => Meaning::Unsigned,
        _ => Meaning::Plain,
    }
}
