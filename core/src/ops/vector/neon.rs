//! The vector of aarch64: four lanes of Advanced SIMD, present on every aarch64 processor.
//!
//! SAFETY, for the whole file: the methods of `Vector` may only be called where the pointers are valid for all
//! lanes; that is the trait's contract, and these bodies add no other obligation.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::Vector;
use core::arch::aarch64::*;

/// Four lanes.
#[derive(Clone, Copy, Debug)]
pub struct F32x4(float32x4_t);

impl From<float32x4_t> for F32x4 {
    #[inline(always)]
    fn from(lanes: float32x4_t) -> Self {
        F32x4(lanes)
    }
}

impl F32x4 {
    /// Four float16.
    #[inline(always)]
    pub(crate) unsafe fn from_f16(bits: uint16x4_t) -> Self {
        let mut halves = [0u16; 4];
        unsafe {
            vst1_u16(halves.as_mut_ptr(), bits);
            Self::load_f16(halves.as_ptr())
        }
    }
}

impl Vector for F32x4 {
    const LANES: usize = 4;
    const GROUP: usize = 6;
    const BESIDE_GROUP: usize = 4;
    const QUERIES: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { F32x4(vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { F32x4(vld1q_f32(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { F32x4(vaddq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { F32x4(vsubq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { F32x4(vmulq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { F32x4(vdivq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { F32x4(vmaxq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { F32x4(vminq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { F32x4(vfmaq_f32(b.0, self.0, a.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { F32x4(vrndnq_f32(self.0)) }
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(self.0), vdupq_n_s32(127));
            F32x4(vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        unsafe { F32x4(vbslq_f32(vcltq_f32(self.0, bound.0), then.0, otherwise.0)) }
    }
    #[inline(always)]
    unsafe fn bf16_words(from: *const u32) -> [Self; 2] {
        unsafe {
            let words = vld1q_u32(from);
            let high = vandq_u32(words, vdupq_n_u32(0xffff_0000));
            [F32x4(vreinterpretq_f32_u32(vshlq_n_u32::<16>(words))), F32x4(vreinterpretq_f32_u32(high))]
        }
    }
    #[inline(always)]
    unsafe fn f16_words(from: *const u32) -> [Self; 2] {
        // The conversion intrinsics for float16 are not stable; `half` compiles to the same instruction or to code
        // that gives the same value.
        unsafe {
            let words = from.cast::<[u32; 4]>().read_unaligned();
            let wide = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
            let low: [f32; 4] = words.map(|w| wide(w & 0xffff));
            let high: [f32; 4] = words.map(|w| wide(w >> 16));
            [F32x4(vld1q_f32(low.as_ptr())), F32x4(vld1q_f32(high.as_ptr()))]
        }
    }
    #[inline(always)]
    unsafe fn u8_words(from: *const u32) -> [Self; 4] {
        unsafe {
            let words = vld1q_u32(from);
            let byte = vdupq_n_u32(0xff);
            [
                F32x4(vcvtq_f32_u32(vandq_u32(words, byte))),
                F32x4(vcvtq_f32_u32(vandq_u32(vshrq_n_u32::<8>(words), byte))),
                F32x4(vcvtq_f32_u32(vandq_u32(vshrq_n_u32::<16>(words), byte))),
                F32x4(vcvtq_f32_u32(vshrq_n_u32::<24>(words))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            let wide = from.cast::<[u16; 4]>().read_unaligned().map(|b| half::f16::from_bits(b).to_f32());
            F32x4(vld1q_f32(wide.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        unsafe {
            let wide = from.cast::<[i8; 4]>().read_unaligned().map(f32::from);
            F32x4(vld1q_f32(wide.as_ptr()))
        }
    }
}
