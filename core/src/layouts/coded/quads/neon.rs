//! Four lanes of NEON: widening multiplies of the baseline, the dot products of later processors.
//!
//! SAFETY, for the whole file: the methods may only be called where the instruction set is proven and the pointers
//! are valid for all lanes; that is the trait's contract, and these bodies add no other obligation.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::super::trits::{DIGITS, FIRST, SECOND};
use super::Quads;
use crate::ops::vector::neon::F32x4;
use crate::ops::vector::unroll;
use core::arch::aarch64::*;
use core::arch::asm;

/// What all have in common.
macro_rules! four_lanes {
    () => {
        type Floats = F32x4;
        type Lanes = uint32x4_t;
        type Table = uint8x16_t;

        #[inline(always)]
        unsafe fn splat(x: i32) -> uint32x4_t {
            unsafe { vdupq_n_u32(x as u32) }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> uint32x4_t {
            unsafe { vld1q_u32(from) }
        }
        #[inline(always)]
        unsafe fn store(lanes: uint32x4_t, to: *mut u32) {
            unsafe { vst1q_u32(to, lanes) }
        }
        #[inline(always)]
        unsafe fn add(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
            unsafe { vaddq_u32(a, b) }
        }
        #[inline(always)]
        unsafe fn halves(words: uint32x4_t) -> [uint32x4_t; 2] {
            unsafe {
                let bytes = vreinterpretq_u8_u32(words);
                let (low, high) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
                [vreinterpretq_u32_u8(low), vreinterpretq_u32_u8(high)]
            }
        }
        #[inline(always)]
        unsafe fn table(bytes: &[u8; 16]) -> uint8x16_t {
            unsafe { vld1q_u8(bytes.as_ptr()) }
        }
        #[inline(always)]
        unsafe fn choose(table: uint8x16_t, words: uint32x4_t) -> [uint32x4_t; 2] {
            unsafe {
                let [low, high] = Self::halves(words);
                let low = vqtbl1q_u8(table, vreinterpretq_u8_u32(low));
                let high = vqtbl1q_u8(table, vreinterpretq_u8_u32(high));
                [vreinterpretq_u32_u8(low), vreinterpretq_u32_u8(high)]
            }
        }
        #[inline(always)]
        unsafe fn product(x: *const i32, factor: i32) -> uint32x4_t {
            unsafe { vdupq_n_u32(x.read().wrapping_mul(factor) as u32) }
        }
        #[inline(always)]
        unsafe fn floats(lanes: uint32x4_t) -> F32x4 {
            unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(lanes)).into() }
        }
        #[inline(always)]
        unsafe fn half(words: uint32x4_t, shift: u32) -> F32x4 {
            unsafe {
                let words = vshlq_u32(words, vdupq_n_s32(-(shift as i32)));
                F32x4::from_f16(vmovn_u32(words))
            }
        }
        #[inline(always)]
        unsafe fn power(words: uint32x4_t, shift: u32) -> F32x4 {
            unsafe {
                let words = vshlq_u32(words, vdupq_n_s32(-(shift as i32)));
                vreinterpretq_f32_u32(vshlq_n_u32::<23>(vandq_u32(words, vdupq_n_u32(0xff)))).into()
            }
        }
        #[inline(always)]
        unsafe fn value(table: &[f32; 16], words: uint32x4_t, shift: u32) -> F32x4 {
            unsafe {
                let mut lanes = [0u32; 4];
                vst1q_u32(lanes.as_mut_ptr(), words);
                let values = lanes.map(|word| table[(word >> shift & 15) as usize]);
                vld1q_f32(values.as_ptr()).into()
            }
        }
        #[inline(always)]
        unsafe fn number(words: uint32x4_t, shift: u32, bits: usize) -> F32x4 {
            unsafe {
                let words = vshlq_u32(words, vdupq_n_s32(-(shift as i32)));
                vcvtq_f32_u32(vandq_u32(words, vdupq_n_u32((1 << bits) - 1))).into()
            }
        }
        #[inline(always)]
        unsafe fn fields(words: uint32x4_t) -> [uint32x4_t; 4] {
            unsafe {
                let (bytes, mask) = (vreinterpretq_u8_u32(words), vdupq_n_u8(3));
                [
                    vreinterpretq_u32_u8(vandq_u8(bytes, mask)),
                    vreinterpretq_u32_u8(vandq_u8(vshrq_n_u8::<2>(bytes), mask)),
                    vreinterpretq_u32_u8(vandq_u8(vshrq_n_u8::<4>(bytes), mask)),
                    vreinterpretq_u32_u8(vshrq_n_u8::<6>(bytes)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn digits(_: (), words: uint32x4_t) -> [uint32x4_t; DIGITS] {
            unsafe {
                let mut rest = vreinterpretq_s8_u32(words);
                let mut digits = [words; DIGITS];
                unroll!(5: k < DIGITS, {
                    if k > 0 {
                        rest = vaddq_s8(vaddq_s8(rest, rest), rest);
                    }
                    // Comparisons give -1 where they hold.
                    let first = vcgtq_s8(rest, vdupq_n_s8(FIRST));
                    let second = vcgtq_s8(rest, vdupq_n_s8(SECOND));
                    digits[k] = vreinterpretq_u32_s8(vnegq_s8(vreinterpretq_s8_u8(vaddq_u8(first, second))));
                });
                digits
            }
        }
        one_part!();
    };
}

/// The baseline.
pub(in super::super) struct Widening;

impl Quads for Widening {
    four_lanes!();
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn dot(sum: uint32x4_t, bytes: uint32x4_t, x: *const u32) -> uint32x4_t {
        unsafe {
            let codes = veorq_u8(vreinterpretq_u8_u32(bytes), vdupq_n_u8(128));
            Self::dot_small(sum, vreinterpretq_u32_u8(codes), x)
        }
    }
    #[inline(always)]
    unsafe fn dot_small(sum: uint32x4_t, bytes: uint32x4_t, x: *const u32) -> uint32x4_t {
        unsafe {
            let (codes, x) = (vreinterpretq_s8_u32(bytes), vreinterpret_s8_u32(vld1_dup_u32(x)));
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(codes), x));
            let high = vpaddlq_s16(vmull_s8(vget_high_s8(codes), x));
            vaddq_u32(sum, vreinterpretq_u32_s32(vpaddq_s32(low, high)))
        }
    }
}

/// The dot products of signed bytes, and where the second is there too, of unsigned with signed ones. The intrinsics
/// are not stable; the instructions are.
macro_rules! product {
    ($instruction:literal, $sum:expr, $bytes:expr, $x:expr) => {{
        let mut sum = $sum;
        let x = vld1q_dup_u32($x);
        asm!(
            concat!(".arch_extension ", "dotprod"),
            ".arch_extension i8mm",
            concat!($instruction, " {0:v}.4s, {1:v}.16b, {2:v}.16b"),
            inout(vreg) sum, in(vreg) $bytes, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
        sum
    }};
}

/// `sdot`.
pub(in super::super) struct Dotprod;

impl Quads for Dotprod {
    four_lanes!();
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn dot(sum: uint32x4_t, bytes: uint32x4_t, x: *const u32) -> uint32x4_t {
        unsafe {
            let codes = veorq_u8(vreinterpretq_u8_u32(bytes), vdupq_n_u8(128));
            product!("sdot", sum, codes, x)
        }
    }
    #[inline(always)]
    unsafe fn dot_small(sum: uint32x4_t, bytes: uint32x4_t, x: *const u32) -> uint32x4_t {
        unsafe { product!("sdot", sum, bytes, x) }
    }
}

/// `usdot`, of processors with i8mm.
pub(in super::super) struct Mixed;

impl Quads for Mixed {
    four_lanes!();
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn dot(sum: uint32x4_t, bytes: uint32x4_t, x: *const u32) -> uint32x4_t {
        unsafe { product!("usdot", sum, bytes, x) }
    }
    #[inline(always)]
    unsafe fn dot_small(sum: uint32x4_t, bytes: uint32x4_t, x: *const u32) -> uint32x4_t {
        unsafe { Self::dot(sum, bytes, x) }
    }
}
