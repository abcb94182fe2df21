//! The kinds of blocks, bit by bit: where codes, scales and minima of each lie. What is made of them is in `mod.rs`.
//!
//! `half` is a little-endian 16-bit float. A byte of codes that holds several values holds values that lie a *stride*
//! apart, the first in the low bits: strides are written as "lanes x fields", for each field all lanes in turn.

use super::{GROUPS_MAX, Kind, Level, Parts, f16_to_f32};
use crate::checkpoint::Dtype;

/// MXFP4's scale that is no number.
pub(super) const NAN_EXPONENT: u8 = 255;

/// Twice the values of a four-bit float.
const BOOK: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A kind whose block is one group of 32.
const SMALL: Kind = Kind {
    dtype: Dtype::Q4x0,
    values: 32,
    bytes: 18,
    group: 32,
    bits: 4,
    level: Level::Less(8),
    has_minima: false,
    halves: &[0],
    split: q4_0,
};

/// Every kind.
pub(super) static KINDS: &[Kind] = &[
    SMALL,
    Kind {
        dtype: Dtype::Q4x1,
        bytes: 20,
        level: Level::Less(0),
        has_minima: true,
        halves: &[0, 2],
        split: q4_1,
        ..SMALL
    },
    Kind { dtype: Dtype::Q5x0, bits: 8, bytes: 22, level: Level::Less(16), split: q5_0, ..SMALL },
    Kind {
        dtype: Dtype::Q5x1,
        bits: 8,
        bytes: 24,
        level: Level::Less(0),
        has_minima: true,
        halves: &[0, 2],
        split: q5_1,
        ..SMALL
    },
    Kind { dtype: Dtype::Q8x0, bits: 8, bytes: 34, level: Level::Less(128), split: q8_0, ..SMALL },
    Kind { dtype: Dtype::Mxfp4, bytes: 17, level: Level::Book(&BOOK), halves: &[], split: mxfp4, ..SMALL },
    Kind {
        dtype: Dtype::Q2K,
        bits: 4,
        values: 256,
        bytes: 84,
        group: 16,
        level: Level::Less(0),
        has_minima: true,
        halves: &[80, 82],
        split: q2_k,
    },
    Kind {
        dtype: Dtype::Q3K,
        bits: 4,
        values: 256,
        bytes: 110,
        group: 16,
        level: Level::Less(4),
        has_minima: false,
        halves: &[108],
        split: q3_k,
    },
    Kind {
        dtype: Dtype::Q4K,
        values: 256,
        bytes: 144,
        level: Level::Less(0),
        has_minima: true,
        halves: &[0, 2],
        split: q4_k,
        ..SMALL
    },
    Kind {
        dtype: Dtype::Q5K,
        bits: 8,
        values: 256,
        bytes: 176,
        level: Level::Less(0),
        has_minima: true,
        halves: &[0, 2],
        split: q5_k,
        ..SMALL
    },
    Kind {
        dtype: Dtype::Q6K,
        bits: 8,
        values: 256,
        bytes: 210,
        group: 16,
        level: Level::Less(32),
        halves: &[208],
        split: q6_k,
        ..SMALL
    },
    Kind {
        dtype: Dtype::Tq1x0,
        bits: 2,
        values: 256,
        bytes: 54,
        group: 256,
        level: Level::Less(1),
        halves: &[52],
        split: tq1_0,
        ..SMALL
    },
    Kind {
        dtype: Dtype::Tq2x0,
        bits: 2,
        values: 256,
        bytes: 66,
        group: 256,
        level: Level::Less(1),
        halves: &[64],
        split: tq2_0,
        ..SMALL
    },
];

/// The 16-bit float at a place.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Takes fields of `bits` out of bytes: for every `lanes` of these, the first field of all, then the second of all.
fn fields(bytes: &[u8], lanes: usize, bits: usize, out: &mut [u8]) {
    let mask = ((1u16 << bits) - 1) as u8;
    let count = 8 / bits;
    for (bytes, out) in bytes.chunks_exact(lanes).zip(out.chunks_exact_mut(lanes * count)) {
        for (field, out) in out.chunks_exact_mut(lanes).enumerate() {
            for (code, byte) in out.iter_mut().zip(bytes) {
                *code = byte >> (field * bits) & mask;
            }
        }
    }
}

/// ```text
/// half scale | 16 bytes of codes, four bits, lanes 16 x 2
/// ```
fn q4_0(block: &[u8], parts: &mut Parts) {
    parts.scales[0] = half(block, 0);
    fields(&block[2..], 16, 4, &mut parts.codes[..32]);
}

/// ```text
/// half scale | half minimum | 16 bytes of codes, four bits, lanes 16 x 2
/// ```
fn q4_1(block: &[u8], parts: &mut Parts) {
    (parts.scales[0], parts.minima[0]) = (half(block, 0), half(block, 2));
    fields(&block[4..], 16, 4, &mut parts.codes[..32]);
}

/// Fifth bits of 32 codes, the first in the lowest bit.
fn fifth_bits(bits: &[u8], codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (bits[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// ```text
/// half scale | 4 bytes: a fifth bit of each code | 16 bytes: the other four, lanes 16 x 2
/// ```
fn q5_0(block: &[u8], parts: &mut Parts) {
    parts.scales[0] = half(block, 0);
    fields(&block[6..], 16, 4, &mut parts.codes[..32]);
    fifth_bits(&block[2..6], &mut parts.codes[..32]);
}

/// ```text
/// half scale | half minimum | 4 bytes: a fifth bit of each code | 16 bytes: the other four, lanes 16 x 2
/// ```
fn q5_1(block: &[u8], parts: &mut Parts) {
    (parts.scales[0], parts.minima[0]) = (half(block, 0), half(block, 2));
    fields(&block[8..], 16, 4, &mut parts.codes[..32]);
    fifth_bits(&block[4..8], &mut parts.codes[..32]);
}

/// ```text
/// half scale | 32 signed bytes; here, plus 128
/// ```
fn q8_0(block: &[u8], parts: &mut Parts) {
    parts.scales[0] = half(block, 0);
    for (code, byte) in parts.codes.iter_mut().zip(&block[2..]) {
        *code = byte ^ 0x80;
    }
}

/// ```text
/// exponent: scale = 2^(exponent - 128) | 16 bytes of codes, four bits, lanes 16 x 2; levels are twice the values
/// ```
fn mxfp4(block: &[u8], parts: &mut Parts) {
    let exponent = u32::from(block[0]);
    // The two smallest are below the normal numbers.
    parts.scales[0] = f32::from_bits(if exponent < 2 { 1 << 21 << exponent } else { (exponent - 1) << 23 });
    fields(&block[1..], 16, 4, &mut parts.codes[..32]);
}

/// ```text
/// 16 bytes: by group, scale in the low half, minimum in the high | 64 bytes of codes, two bits, lanes 32 x 4
///   | half for scales | half for minima, which are taken away
/// ```
fn q2_k(block: &[u8], parts: &mut Parts) {
    let (scale, minimum) = (half(block, 80), half(block, 82));
    for (group, byte) in block[..GROUPS_MAX].iter().enumerate() {
        parts.scales[group] = scale * f32::from(byte & 15);
        parts.minima[group] = -(minimum * f32::from(byte >> 4));
    }
    fields(&block[16..80], 32, 2, &mut parts.codes);
}

/// ```text
/// 32 bytes: a third bit of each code, lanes 32 x 8 | 64 bytes: the other two, lanes 32 x 4
///   | 12 bytes of scales plus 32: 8 of low four bits, lanes 8 x 2, 4 of high two, lanes 4 x 4 | half for scales
/// ```
fn q3_k(block: &[u8], parts: &mut Parts) {
    let (mut low, mut high) = ([0; GROUPS_MAX], [0; GROUPS_MAX]);
    fields(&block[96..104], 8, 4, &mut low);
    fields(&block[104..108], 4, 2, &mut high);
    let scale = half(block, 108);
    for (group, (low, high)) in low.into_iter().zip(high).enumerate() {
        parts.scales[group] = scale * f32::from(i16::from(low | high << 4) - 32);
    }
    fields(&block[32..96], 32, 2, &mut parts.codes);
    let mut third = [0; 256];
    fields(&block[..32], 32, 1, &mut third);
    parts.codes.iter_mut().zip(third).for_each(|(code, third)| *code |= third << 2);
}

/// ```text
/// 12 bytes for 8 groups: 4 with the low six bits of scales 0..4, 4 with those of minima 0..4, 4 with the low four bits
/// of scales 4..8 (low half) and of minima 4..8 (high half), whose high two bits are on top of the first eight
/// ```
fn six_bits(bytes: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (bytes[group] & 63, bytes[group + 4] & 63);
    }
    let (scale, minimum, low) = (bytes[group - 4], bytes[group], bytes[group + 4]);
    (low & 15 | scale >> 6 << 4, low >> 4 | minimum >> 6 << 4)
}

/// Scales and minima of the two kinds that have them in six bits.
fn six_bit_scales(block: &[u8], parts: &mut Parts) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for group in 0..8 {
        let (scales, minima) = six_bits(&block[4..16], group);
        parts.scales[group] = scale * f32::from(scales);
        parts.minima[group] = -(minimum * f32::from(minima));
    }
}

/// ```text
/// half for scales | half for minima, which are taken away | 12 bytes: six bits of each
///   | 128 bytes of codes, four bits, lanes 32 x 2
/// ```
fn q4_k(block: &[u8], parts: &mut Parts) {
    six_bit_scales(block, parts);
    fields(&block[16..], 32, 4, &mut parts.codes);
}

/// ```text
/// half for scales | half for minima, which are taken away | 12 bytes: six bits of each
///   | 32 bytes: a fifth bit of each code, lanes 32 x 8 | 128 bytes: the other four, lanes 32 x 2
/// ```
fn q5_k(block: &[u8], parts: &mut Parts) {
    six_bit_scales(block, parts);
    fields(&block[48..], 32, 4, &mut parts.codes);
    let mut fifth = [0; 256];
    fields(&block[16..48], 32, 1, &mut fifth);
    parts.codes.iter_mut().zip(fifth).for_each(|(code, fifth)| *code |= fifth << 4);
}

/// ```text
/// 128 bytes: the low four bits of codes, lanes 64 x 2 | 64 bytes: the high two, lanes 32 x 4 | 16 signed bytes: scales
///   | half for scales
/// ```
fn q6_k(block: &[u8], parts: &mut Parts) {
    let scale = half(block, 208);
    for (group, &byte) in block[192..208].iter().enumerate() {
        parts.scales[group] = scale * f32::from(byte as i8);
    }
    fields(&block[..128], 64, 4, &mut parts.codes);
    let mut high = [0; 256];
    fields(&block[128..192], 32, 2, &mut high);
    parts.codes.iter_mut().zip(high).for_each(|(code, high)| *code |= high << 4);
}

/// A digit of base three, the first being 0; a byte is the number that they make, over 243, times 256, rounded up.
fn digit(byte: u8, place: usize) -> u8 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    ((u16::from(byte.wrapping_mul(POWERS[place])) * 3) >> 8) as u8
}

/// ```text
/// 48 bytes of five digits of base three, lanes 32 x 5, then 16 x 5 | 4 bytes of four digits, lanes 4 x 4 | half scale
/// ```
fn tq1_0(block: &[u8], parts: &mut Parts) {
    parts.scales[0] = half(block, 52);
    let mut at = 0;
    for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for place in 0..digits {
            for &byte in bytes {
                parts.codes[at] = digit(byte, place);
                at += 1;
            }
        }
    }
}

/// ```text
/// 64 bytes of codes, two bits, lanes 32 x 4 | half scale
/// ```
fn tq2_0(block: &[u8], parts: &mut Parts) {
    parts.scales[0] = half(block, 64);
    fields(&block[..64], 32, 2, &mut parts.codes);
}
