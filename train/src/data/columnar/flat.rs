//! Arrow's own descriptions: tables of flatbuffers, of which every place is checked when it is followed.

use super::{Fallible, broken};

/// A table: a place, and where its fields are from there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
    fields: &'a [u8],
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Fallible<[u8; N]> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().ok_or_else(|| broken("a description that points beyond its end"))
}

/// The place that a place points to.
fn followed(bytes: &[u8], at: usize) -> Fallible<usize> {
    Ok(at.saturating_add(u32::from_le_bytes(array(bytes, at)?) as usize))
}

impl<'a> Table<'a> {
    /// The table that some bytes begin with.
    pub(super) fn root(bytes: &'a [u8]) -> Fallible<Table<'a>> {
        Table::at(bytes, followed(bytes, 0)?)
    }

    fn at(bytes: &'a [u8], at: usize) -> Fallible<Table<'a>> {
        let back = i64::from(i32::from_le_bytes(array(bytes, at)?));
        let start =
            usize::try_from(at as i64 - back).map_err(|_| broken("a description before its beginning"))?;
        let length = usize::from(u16::from_le_bytes(array(bytes, start)?));
        let fields = start.checked_add(length).and_then(|end| bytes.get(start + 4..end));
        let fields = fields.ok_or_else(|| broken("a description that points beyond its end"))?;
        Ok(Table { bytes, at, fields })
    }

    fn place(&self, field: usize) -> Option<usize> {
        let offset = u16::from_le_bytes(array(self.fields, field.checked_mul(2)?).ok()?);
        (offset != 0).then(|| self.at + usize::from(offset))
    }

    fn number<const N: usize>(&self, field: usize) -> Fallible<Option<[u8; N]>> {
        self.place(field).map(|at| array(self.bytes, at)).transpose()
    }

    pub(super) fn byte(&self, field: usize) -> Fallible<Option<u8>> {
        Ok(self.number(field)?.map(u8::from_le_bytes))
    }

    pub(super) fn short(&self, field: usize) -> Fallible<Option<i16>> {
        Ok(self.number(field)?.map(i16::from_le_bytes))
    }

    pub(super) fn int(&self, field: usize) -> Fallible<Option<i32>> {
        Ok(self.number(field)?.map(i32::from_le_bytes))
    }

    pub(super) fn long(&self, field: usize) -> Fallible<Option<i64>> {
        Ok(self.number(field)?.map(i64::from_le_bytes))
    }

    pub(super) fn table(&self, field: usize) -> Fallible<Option<Table<'a>>> {
        let Some(at) = self.place(field) else { return Ok(None) };
        Table::at(self.bytes, followed(self.bytes, at)?).map(Some)
    }

    pub(super) fn text(&self, field: usize) -> Fallible<Option<&'a str>> {
        let Some((_, bytes)) = self.vector(field, 1)? else { return Ok(None) };
        std::str::from_utf8(bytes).map(Some).map_err(|_| broken("a name that is no UTF-8"))
    }

    /// Where a vector begins, and its bytes.
    fn vector(&self, field: usize, width: usize) -> Fallible<Option<(usize, &'a [u8])>> {
        let Some(at) = self.place(field) else { return Ok(None) };
        let at = followed(self.bytes, at)?;
        let count = u32::from_le_bytes(array(self.bytes, at)?) as usize;
        let end = count.checked_mul(width).and_then(|length| length.checked_add(at + 4));
        let bytes = end.and_then(|end| self.bytes.get(at + 4..end));
        Ok(Some((at + 4, bytes.ok_or_else(|| broken("a list that is longer than its description"))?)))
    }

    /// The pieces of a vector, as wide as each of them is.
    pub(super) fn pieces(&self, field: usize, width: usize) -> Fallible<std::slice::ChunksExact<'a, u8>> {
        Ok(self.vector(field, width)?.map_or(&[][..], |(_, bytes)| bytes).chunks_exact(width))
    }

    /// The tables of a vector.
    pub(super) fn tables(&self, field: usize) -> Fallible<Vec<Table<'a>>> {
        let Some((start, bytes)) = self.vector(field, 4)? else { return Ok(Vec::new()) };
        let places = (0..bytes.len() / 4).map(|at| start + 4 * at);
        places.map(|at| Table::at(self.bytes, followed(self.bytes, at)?)).collect()
    }
}
