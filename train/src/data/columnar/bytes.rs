//! Bytes that are read from the front, never beyond their end.

use super::{Fallible, broken};

/// What is left of some bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, count: usize) -> Fallible<&'a [u8]> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or_else(|| broken("the end of a part within a value"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Fallible<[u8; N]> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("as many were taken"))
    }

    pub(super) fn byte(&mut self) -> Fallible<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes that say how much follows.
    pub(super) fn length(&mut self) -> Fallible<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// A number of any length, seven bits to a byte.
    pub(super) fn varint(&mut self) -> Fallible<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(broken("a number without an end"))
    }

    /// The same as a size.
    pub(super) fn size(&mut self) -> Fallible<usize> {
        usize::try_from(self.varint()?).map_err(|_| broken("a size beyond all memory"))
    }

    /// The same with the sign in the last bit.
    pub(super) fn zigzag(&mut self) -> Fallible<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}
