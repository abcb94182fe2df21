//! Words of four bytes, lane by lane, and their dot products: what differs between instruction sets in the integer
//! kernels.
//!
//! One contract for all methods: the instruction set is proven, pointers are valid for all lanes.

use super::trits::{self, DIGITS};
use crate::ops::vector::{Portable, Vector};

/// Lanes of 32 bits, one output row each.
#[allow(clippy::missing_safety_doc, missing_docs)] // One contract for all, stated above.
pub(super) trait Quads {
    /// The same lanes as float32.
    type Floats: Vector;
    /// Lanes of integers, or of four bytes.
    type Lanes: Copy;
    /// Sixteen bytes to choose from.
    type Table: Copy;
    /// What [`Quads::dot`] takes off every byte.
    const OFFSET: i32;
    /// Whether it is what the others are held to: it has one way for any number of tokens.
    const IS_DEFINITION: bool = false;

    unsafe fn splat(x: i32) -> Self::Lanes;
    unsafe fn load(from: *const u32) -> Self::Lanes;
    unsafe fn store(lanes: Self::Lanes, to: *mut u32);
    unsafe fn add(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The low half of every byte; the high half.
    unsafe fn halves(words: Self::Lanes) -> [Self::Lanes; 2];
    unsafe fn table(bytes: &[u8; 16]) -> Self::Table;
    /// The table's bytes at the low half of every byte; at the high half.
    unsafe fn choose(table: Self::Table, words: Self::Lanes) -> [Self::Lanes; 2];
    /// A number times a factor, in all lanes.
    unsafe fn product(x: *const i32, factor: i32) -> Self::Lanes;
    /// `sum + dot(bytes - OFFSET, x)`, where `x` is four int8, the same for all lanes, none of them -128.
    unsafe fn dot(sum: Self::Lanes, bytes: Self::Lanes, x: *const u32) -> Self::Lanes;
    /// `sum + dot(bytes, x)` of bytes up to 127.
    unsafe fn dot_small(sum: Self::Lanes, bytes: Self::Lanes, x: *const u32) -> Self::Lanes;
    /// The same, of which no more are added up than 16 bits hold before they are widened, where they are
    /// [`Quads::NARROW`].
    unsafe fn dot_narrow(sum: Self::Lanes, bytes: Self::Lanes, x: *const u32) -> Self::Lanes {
        // SAFETY: passed on.
        unsafe { Self::dot_small(sum, bytes, x) }
    }
    unsafe fn widened(sum: Self::Lanes) -> Self::Lanes {
        sum
    }
    /// Integers as float32.
    unsafe fn floats(lanes: Self::Lanes) -> Self::Floats;
    /// The float16 at bit `shift`.
    unsafe fn half(words: Self::Lanes, shift: u32) -> Self::Floats;
    /// Two to the power of the byte at bit `shift`, less 127; zero for zero.
    unsafe fn power(words: Self::Lanes, shift: u32) -> Self::Floats;
    /// The value at the index in the low four bits above bit `shift`.
    unsafe fn value(table: &[f32; 16], words: Self::Lanes, shift: u32) -> Self::Floats;
    /// The number in the `bits` bits above bit `shift`.
    unsafe fn number(words: Self::Lanes, shift: u32, bits: usize) -> Self::Floats;
    /// The two-bit codes of every byte, the lowest first.
    unsafe fn fields(words: Self::Lanes) -> [Self::Lanes; 4];
    /// What finds the digits of a byte.
    type Digits: Copy;
    unsafe fn digit_table() -> Self::Digits;
    /// The digits of every byte, see `trits.rs`.
    unsafe fn digits(table: Self::Digits, words: Self::Lanes) -> [Self::Lanes; DIGITS];

    /// One token's dot product with codes none above 3, in parts: nothing need be shifted or widened until the end.
    type Parts: Copy;
    /// Whether sums that are not widened yet have 16 bits: parts hold no more than a block of 64.
    const NARROW: bool = false;
    unsafe fn no_parts() -> Self::Parts;
    /// Adds the fields of a word; `x` is four words.
    unsafe fn add_fields(parts: Self::Parts, words: Self::Lanes, x: *const u32) -> Self::Parts;
    /// Adds the digits of a word; `x` is five words.
    unsafe fn add_digits(
        parts: Self::Parts,
        table: Self::Digits,
        words: Self::Lanes,
        x: *const u32,
    ) -> Self::Parts;
    /// A word that four blocks share, see `trits.rs`.
    type Shared: Copy;
    unsafe fn share(table: Self::Digits, words: Self::Lanes) -> Self::Shared;
    /// Adds what is a block's of it; `x` is one word.
    unsafe fn add_shared(
        parts: Self::Parts,
        shared: Self::Shared,
        member: usize,
        x: *const u32,
    ) -> Self::Parts;
    unsafe fn whole(parts: Self::Parts) -> Self::Lanes;
}

/// Parts where there is nothing to be won: the sum of all.
macro_rules! one_part {
    () => {
        type Digits = ();
        type Parts = Self::Lanes;
        type Shared = [Self::Lanes; $crate::layouts::coded::trits::DIGITS];

        #[inline(always)]
        unsafe fn digit_table() {}
        #[inline(always)]
        unsafe fn no_parts() -> Self::Lanes {
            // SAFETY: passed on.
            unsafe { Self::splat(0) }
        }
        #[inline(always)]
        unsafe fn add_fields(mut parts: Self::Lanes, words: Self::Lanes, x: *const u32) -> Self::Lanes {
            // SAFETY: passed on.
            unsafe {
                let fields = Self::fields(words);
                $crate::ops::vector::unroll!(4: k < 4, {
                    parts = Self::dot_small(parts, fields[k], x.add(k));
                });
                parts
            }
        }
        #[inline(always)]
        unsafe fn add_digits(mut parts: Self::Lanes, _: (), words: Self::Lanes, x: *const u32) -> Self::Lanes {
            // SAFETY: passed on.
            unsafe {
                let digits = Self::digits((), words);
                $crate::ops::vector::unroll!(5: k < $crate::layouts::coded::trits::DIGITS, {
                    parts = Self::dot_small(parts, digits[k], x.add(k));
                });
                parts
            }
        }
        #[inline(always)]
        unsafe fn share(_: (), words: Self::Lanes) -> Self::Shared {
            // SAFETY: passed on.
            unsafe { Self::digits((), words) }
        }
        #[inline(always)]
        unsafe fn add_shared(
            parts: Self::Lanes,
            shared: Self::Shared,
            member: usize,
            x: *const u32,
        ) -> Self::Lanes {
            // SAFETY: passed on.
            unsafe { Self::dot_small(parts, shared[member + 1], x) }
        }
        #[inline(always)]
        unsafe fn whole(parts: Self::Lanes) -> Self::Lanes {
            parts
        }
    };
}

/// The definition, four lanes of plain Rust.
pub(super) struct Plain;

impl Quads for Plain {
    type Floats = Portable;
    type Lanes = [u32; 4];
    type Table = [u8; 16];
    const OFFSET: i32 = 0;
    const IS_DEFINITION: bool = true;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self::Lanes {
        [x as u32; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self::Lanes {
        // SAFETY: the caller's pointer is valid for four lanes.
        unsafe { from.cast::<[u32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(lanes: Self::Lanes, to: *mut u32) {
        // SAFETY: the caller's pointer is valid for four lanes.
        unsafe { to.cast::<[u32; 4]>().write_unaligned(lanes) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        core::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn halves(words: Self::Lanes) -> [Self::Lanes; 2] {
        [words.map(|w| w & 0x0f0f_0f0f), words.map(|w| w >> 4 & 0x0f0f_0f0f)]
    }
    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> Self::Table {
        *bytes
    }
    #[inline(always)]
    unsafe fn choose(table: Self::Table, words: Self::Lanes) -> [Self::Lanes; 2] {
        let byte = |index: u8| table[usize::from(index & 15)];
        // SAFETY: passed on.
        let halves = unsafe { Self::halves(words) };
        halves.map(|half| half.map(|w| u32::from_le_bytes(w.to_le_bytes().map(byte))))
    }
    #[inline(always)]
    unsafe fn product(x: *const i32, factor: i32) -> Self::Lanes {
        // SAFETY: the caller's pointer is valid.
        [unsafe { x.read() }.wrapping_mul(factor) as u32; 4]
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Lanes, bytes: Self::Lanes, x: *const u32) -> Self::Lanes {
        // SAFETY: the caller's pointer is valid.
        let x = unsafe { x.read() }.to_le_bytes();
        core::array::from_fn(|i| {
            let term = |j: usize| i32::from(bytes[i].to_le_bytes()[j]) * i32::from(x[j] as i8);
            sum[i].wrapping_add((0..4).map(term).sum::<i32>() as u32)
        })
    }
    #[inline(always)]
    unsafe fn dot_small(sum: Self::Lanes, bytes: Self::Lanes, x: *const u32) -> Self::Lanes {
        // SAFETY: passed on.
        unsafe { Self::dot(sum, bytes, x) }
    }
    #[inline(always)]
    unsafe fn floats(lanes: Self::Lanes) -> Self::Floats {
        Portable::from(lanes.map(|x| x as i32 as f32))
    }
    #[inline(always)]
    unsafe fn half(words: Self::Lanes, shift: u32) -> Self::Floats {
        Portable::from(words.map(|w| half::f16::from_bits((w >> shift) as u16).to_f32()))
    }
    #[inline(always)]
    unsafe fn power(words: Self::Lanes, shift: u32) -> Self::Floats {
        Portable::from(words.map(|w| f32::from_bits((w >> shift & 0xff) << 23)))
    }
    #[inline(always)]
    unsafe fn value(table: &[f32; 16], words: Self::Lanes, shift: u32) -> Self::Floats {
        Portable::from(words.map(|w| table[(w >> shift & 15) as usize]))
    }
    #[inline(always)]
    unsafe fn number(words: Self::Lanes, shift: u32, bits: usize) -> Self::Floats {
        Portable::from(words.map(|w| (w >> shift & ((1 << bits) - 1)) as f32))
    }
    #[inline(always)]
    unsafe fn fields(words: Self::Lanes) -> [Self::Lanes; 4] {
        core::array::from_fn(|k| words.map(|w| w >> (2 * k) & 0x0303_0303))
    }
    #[inline(always)]
    unsafe fn digits(_: (), words: Self::Lanes) -> [Self::Lanes; DIGITS] {
        core::array::from_fn(|k| {
            words.map(|w| u32::from_le_bytes(w.to_le_bytes().map(|byte| trits::digits(byte)[k])))
        })
    }
    one_part!();
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
pub(super) mod x86;

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
