//! Packed bytes, unpacked to a size that is known before.

use std::io::Read;

use super::bytes::Bytes;
use super::{Fallible, broken, unknown};

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Snappy,
    Gzip,
    Zstd,
    /// Blocks without a frame.
    Lz4,
    Lz4Frame,
}

impl Packing {
    /// By parquet's numbers.
    pub(super) fn of_parquet(codec: i64) -> Fallible<Packing> {
        Ok(match codec {
            0 => Packing::None,
            1 => Packing::Snappy,
            2 => Packing::Gzip,
            6 => Packing::Zstd,
            7 => Packing::Lz4,
            3 => return Err(unknown("pages packed with lzo")),
            4 => return Err(unknown("pages packed with brotli")),
            5 => return Err(unknown("pages packed with Hadoop's lz4")),
            other => return Err(broken(format!("pages packed in the way {other}"))),
        })
    }

    /// The bytes, which must be `size`; that many were taken from the budget.
    pub(super) fn unpacked(self, packed: &[u8], size: usize) -> Fallible<Vec<u8>> {
        let unpacked = match self {
            Packing::None => packed.to_vec(),
            Packing::Snappy => snappy(packed, size)?,
            Packing::Lz4 => {
                let mut out = Vec::with_capacity(size);
                lz4(packed, size, &mut out)?;
                out
            }
            Packing::Lz4Frame => lz4_frame(packed, size)?,
            Packing::Gzip => read(flate2::read::MultiGzDecoder::new(packed), size)?,
            Packing::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
                read(decoder.map_err(|error| broken(format!("broken zstd: {error}")))?, size)?
            }
        };
        match unpacked.len() == size {
            true => Ok(unpacked),
            false => Err(broken(format!("{} bytes in place of {size}", unpacked.len()))),
        }
    }
}

fn read(from: impl Read, size: usize) -> Fallible<Vec<u8>> {
    let mut out = Vec::with_capacity(size);
    from.take(size as u64 + 1).read_to_end(&mut out)?;
    Ok(out)
}

/// Appends what stands `back` bytes before the end once more; it may reach into itself.
fn again(out: &mut Vec<u8>, back: usize, count: usize, most: usize) -> Fallible<()> {
    let start = out.len().checked_sub(back).filter(|_| back > 0);
    let start = start.ok_or_else(|| broken("packed bytes that point before their beginning"))?;
    if count > most - out.len().min(most) {
        return Err(broken("packed bytes that are more than they say"));
    }
    let mut left = count;
    while left > 0 {
        let piece = left.min(out.len() - start);
        out.extend_from_within(start..start + piece);
        left -= piece;
    }
    Ok(())
}

fn literal(bytes: &mut Bytes<'_>, count: usize, most: usize, out: &mut Vec<u8>) -> Fallible<()> {
    let taken = bytes.take(count)?;
    if count > most - out.len().min(most) {
        return Err(broken("packed bytes that are more than they say"));
    }
    out.extend_from_slice(taken);
    Ok(())
}

/// Snappy without a frame: a length, then runs of bytes and of what was there before.
fn snappy(packed: &[u8], size: usize) -> Fallible<Vec<u8>> {
    let mut bytes = Bytes { rest: packed };
    if bytes.size()? != size {
        return Err(broken("packed bytes of another length than their page"));
    }
    let mut out = Vec::with_capacity(size);
    while !bytes.rest.is_empty() {
        let tag = usize::from(bytes.byte()?);
        let (kind, high) = (tag & 3, tag >> 2);
        match kind {
            0 => {
                let count = match high {
                    60.. => number(bytes.take(high - 59)?),
                    _ => high,
                };
                literal(&mut bytes, count + 1, size, &mut out)?;
            }
            1 => {
                let back = (tag >> 5) << 8 | usize::from(bytes.byte()?);
                again(&mut out, back, (high & 7) + 4, size)?;
            }
            kind => {
                let back = number(bytes.take(if kind == 2 { 2 } else { 4 })?);
                again(&mut out, back, high + 1, size)?;
            }
        }
    }
    Ok(out)
}

/// At most four bytes, the lowest first.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// A block of LZ4: by turns bytes as they are and bytes that were there before, the former last.
fn lz4(packed: &[u8], most: usize, out: &mut Vec<u8>) -> Fallible<()> {
    let mut bytes = Bytes { rest: packed };
    let length = |bytes: &mut Bytes<'_>, nibble: usize| -> Fallible<usize> {
        let mut length = nibble;
        let mut goes_on = nibble == 15;
        while goes_on {
            let more = bytes.byte()?;
            length = length.saturating_add(usize::from(more));
            goes_on = more == 255;
        }
        Ok(length)
    };
    while !bytes.rest.is_empty() {
        let token = usize::from(bytes.byte()?);
        let count = length(&mut bytes, token >> 4)?;
        literal(&mut bytes, count, most, out)?;
        if bytes.rest.is_empty() {
            break;
        }
        let back = usize::from(u16::from_le_bytes(bytes.array()?));
        let count = length(&mut bytes, token & 15)?.saturating_add(4);
        again(out, back, count, most)?;
    }
    Ok(())
}

/// LZ4's frame, whose checksums are passed over.
fn lz4_frame(packed: &[u8], size: usize) -> Fallible<Vec<u8>> {
    const MAGIC: usize = 0x184d_2204;
    const AS_IT_IS: usize = 1 << 31;
    let mut bytes = Bytes { rest: packed };
    if bytes.length()? != MAGIC {
        return Err(broken("packed bytes without LZ4's mark"));
    }
    let flags = bytes.byte()?;
    let has = |bit: u8| flags & 1 << bit != 0;
    if flags >> 6 != 1 || has(0) {
        return Err(unknown("LZ4 of another version or with a dictionary"));
    }
    // Sizes of blocks, the size of all, and a checksum of these.
    bytes.take(if has(3) { 10 } else { 2 })?;
    let mut out = Vec::with_capacity(size);
    loop {
        let block = bytes.length()?;
        if block == 0 {
            return Ok(out);
        }
        let data = bytes.take(block & !AS_IT_IS)?;
        match block & AS_IT_IS {
            0 => lz4(data, size, &mut out)?,
            _ => literal(&mut Bytes { rest: data }, data.len(), size, &mut out)?,
        }
        if has(4) {
            bytes.take(4)?;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn runs_reach_into_themselves() {
        // Four letters, then eight that repeat the last two.
        let snappy = [12, 3 << 2, b'a', b'b', b'c', b'd', 7 << 2 | 2, 2, 0];
        assert_eq!(Packing::Snappy.unpacked(&snappy, 12).unwrap(), b"abcdcdcdcdcd");
        let lz4 = [0x44, b'a', b'b', b'c', b'd', 2, 0, 0];
        assert_eq!(Packing::Lz4.unpacked(&lz4, 12).unwrap(), b"abcdcdcdcdcd");
    }

    #[test]
    fn what_points_beyond_is_refused() {
        for packed in
            [&[4, 0, b'a', 2, 9, 0][..], &[4, 0, b'a', 2, 0, 0], &[1, 3 << 2, 1, 2, 3, 4], &[4, 240], &[]]
        {
            assert!(Packing::Snappy.unpacked(packed, 4).is_err(), "{packed:?}");
            assert!(Packing::Lz4.unpacked(packed, 4).is_err(), "{packed:?}");
            for packing in [Packing::Gzip, Packing::Zstd, Packing::Lz4Frame] {
                assert!(packing.unpacked(packed, 4).is_err(), "{packing:?} {packed:?}");
            }
        }
    }
}
