//! Five trits in a byte, for the layouts that keep ternary weights in 13 bytes of 64.
//!
//! ```text
//! value         five digits to the base of 3, each a trit plus 1, the first the highest
//! byte          ceil(value * 256 / 243), with its highest bit turned: zeros are a byte of 0, and digits come out by
//!               signed comparisons and tripling, which keeps that bit turned
//! code word     byte j, digit k     column 20w + 4k + j of the block
//! shared word   byte j, digit k     column 60 + j of the unit's block k - 1; digit 0 is that of a trit of 0
//! ```

use crate::layouts::TILE_ROWS;

/// Digits of a byte.
pub(super) const DIGITS: usize = 5;
/// Columns of a block that stand in its own words; the others stand in the unit's shared word.
const OWN: usize = 60;
/// The bit that is turned.
const TURNED: u8 = 0x80;
/// The first digit of a byte is 1 where that, as a signed number, is above this, which is 85 / 256 of the way up.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "for vectors")
)]
pub(super) const FIRST: i8 = (85 ^ TURNED).cast_signed();
/// The same for 2.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "for vectors")
)]
pub(super) const SECOND: i8 = (170 ^ TURNED).cast_signed();

/// A byte of digits.
const fn byte(digits: [u8; DIGITS]) -> u8 {
    let (mut value, mut at) = (0u16, 0);
    while at < DIGITS {
        value = value * 3 + digits[at] as u16;
        at += 1;
    }
    (value * 256).div_ceil(243) as u8 ^ TURNED
}

/// Digits of a byte: each is what its tripled fraction has before the point.
pub(super) const fn digits(byte: u8) -> [u8; DIGITS] {
    let (mut digits, mut rest, mut at) = ([0; DIGITS], (byte ^ TURNED) as u16, 0);
    while at < DIGITS {
        digits[at] = ((rest * 3) >> 8) as u8;
        rest = (rest * 3) & 0xff;
        at += 1;
    }
    digits
}

/// All digits but the first as two-bit codes, the second in the low bits, of every byte.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "a table for instructions that others lack")
)]
pub(super) static FIELDS: [u8; 256] = {
    let (mut table, mut at) = ([0; 256], 0);
    while at < table.len() {
        let [_, a, b, c, d] = digits(at as u8);
        table[at] = a | b << 2 | c << 4 | d << 6;
        at += 1;
    }
    table
};

/// Where a block's trits stand: its own words of one row, and the row's word that it shares.
pub(super) struct Place {
    pub(super) own: usize,
    pub(super) shared: usize,
    /// The block's number within the unit.
    pub(super) member: usize,
}

impl Place {
    /// Puts a row's codes there; columns that are not given are zeros.
    pub(super) fn put(&self, codes: &[u8], words: &mut [u32]) {
        let code = |column: usize| codes.get(column).copied().unwrap_or(1).min(2);
        const OF_WORD: usize = 4 * DIGITS;
        for word in 0..OWN / OF_WORD {
            let of = |j: usize| byte(core::array::from_fn(|k| code(OF_WORD * word + 4 * k + j)));
            words[self.own + word * TILE_ROWS] = u32::from_le_bytes(core::array::from_fn(of));
        }
        let shared = &mut words[self.shared];
        let mut bytes = shared.to_le_bytes();
        for (j, at) in bytes.iter_mut().enumerate() {
            let mut all = digits(*at);
            all[self.member + 1] = code(OWN + j);
            *at = byte(all);
        }
        *shared = u32::from_le_bytes(bytes);
    }

    /// Where a column's trit stands.
    pub(super) fn of(&self, column: usize) -> Digit {
        if column < OWN {
            let word = self.own + column / (4 * DIGITS) * TILE_ROWS;
            Digit { word, byte: column % 4, digit: column % (4 * DIGITS) / 4 }
        } else {
            Digit { word: self.shared, byte: column - OWN, digit: self.member + 1 }
        }
    }

    /// The code of a column.
    pub(super) fn get(&self, column: usize, words: &[u32]) -> u8 {
        let Digit { word, byte, digit } = self.of(column);
        digits(words[word].to_le_bytes()[byte])[digit]
    }
}

/// A digit of a byte of a word.
pub(super) struct Digit {
    pub(super) word: usize,
    pub(super) byte: usize,
    pub(super) digit: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_keeps_five_digits() {
        for value in 0..243u16 {
            let wanted = [81, 27, 9, 3, 1].map(|power| (value / power % 3) as u8);
            assert_eq!(digits(byte(wanted)), wanted, "{value}");
        }
        assert_eq!((digits(0), byte([1; DIGITS])), ([1; DIGITS], 0), "zeros are a byte of 0");
    }
}
