//! The lanes of x86-64: sixteen of AVX-512 VNNI, eight of AVX-VNNI and of AVX2.
//!
//! SAFETY, for the whole file: the methods may only be called where the instruction set is proven and the pointers
//! are valid for all lanes; that is the trait's contract, and these bodies add no other obligation.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::Quads;
use crate::ops::vector::x86::{Avx2, Avx512};
use core::arch::x86_64::*;

/// What AVX-512 has with VBMI and without.
macro_rules! sixteen_lanes {
    () => {
        type Floats = Avx512;
        type Lanes = __m512i;
        type Table = __m512i;
        const OFFSET: i32 = 0;

        #[inline(always)]
        unsafe fn splat(x: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(lanes: __m512i, to: *mut u32) {
            unsafe { _mm512_storeu_si512(to.cast(), lanes) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
            unsafe { _mm512_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn halves(words: __m512i) -> [__m512i; 2] {
            unsafe {
                let mask = _mm512_set1_epi8(15);
                [_mm512_and_si512(words, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(words), mask)]
            }
        }
        #[inline(always)]
        unsafe fn table(bytes: &[u8; 16]) -> __m512i {
            unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) }
        }
        #[inline(always)]
        unsafe fn product(x: *const i32, factor: i32) -> __m512i {
            unsafe { _mm512_mullo_epi32(_mm512_set1_epi32(x.read()), _mm512_set1_epi32(factor)) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512i, bytes: __m512i, x: *const u32) -> __m512i {
            unsafe { _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(x.read() as i32)) }
        }
        #[inline(always)]
        unsafe fn dot_small(sum: __m512i, bytes: __m512i, x: *const u32) -> __m512i {
            unsafe { Self::dot(sum, bytes, x) }
        }
        #[inline(always)]
        unsafe fn floats(lanes: __m512i) -> Avx512 {
            unsafe { _mm512_cvtepi32_ps(lanes).into() }
        }
        #[inline(always)]
        unsafe fn half(words: __m512i, shift: u32) -> Avx512 {
            unsafe {
                let words = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
                _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)).into()
            }
        }
        #[inline(always)]
        unsafe fn power(words: __m512i, shift: u32) -> Avx512 {
            unsafe {
                let words = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
                let byte = _mm512_and_si512(words, _mm512_set1_epi32(0xff));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(byte)).into()
            }
        }
        #[inline(always)]
        unsafe fn value(table: &[f32; 16], words: __m512i, shift: u32) -> Avx512 {
            unsafe {
                // The permutation looks at the low four bits only.
                let indices = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
                _mm512_permutexvar_ps(indices, _mm512_loadu_ps(table.as_ptr())).into()
            }
        }
        #[inline(always)]
        unsafe fn number(words: __m512i, shift: u32, bits: usize) -> Avx512 {
            unsafe {
                let words = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
                let mask = _mm512_set1_epi32((1 << bits) - 1);
                _mm512_cvtepi32_ps(_mm512_and_si512(words, mask)).into()
            }
        }
    };
}

/// AVX-512 F, BW, DQ, VL and VNNI.
pub(in super::super) struct Vnni512;

impl Quads for Vnni512 {
    sixteen_lanes!();

    #[inline(always)]
    unsafe fn choose(table: __m512i, words: __m512i) -> [__m512i; 2] {
        unsafe {
            let [low, high] = Self::halves(words);
            [_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high)]
        }
    }
}

/// The same and VBMI, whose permutation looks at six bits: a table that is there four times needs no mask.
pub(in super::super) struct Vbmi512;

impl Quads for Vbmi512 {
    sixteen_lanes!();

    #[inline(always)]
    unsafe fn choose(table: __m512i, words: __m512i) -> [__m512i; 2] {
        unsafe {
            let high = _mm512_srli_epi16::<4>(words);
            [_mm512_permutexvar_epi8(words, table), _mm512_permutexvar_epi8(high, table)]
        }
    }
}

/// What AVX2 and AVX-VNNI have in common.
macro_rules! eight_lanes {
    () => {
        type Floats = Avx2;
        type Lanes = __m256i;
        type Table = __m256i;

        #[inline(always)]
        unsafe fn splat(x: i32) -> __m256i {
            unsafe { _mm256_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m256i {
            unsafe { _mm256_loadu_si256(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(lanes: __m256i, to: *mut u32) {
            unsafe { _mm256_storeu_si256(to.cast(), lanes) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn halves(words: __m256i) -> [__m256i; 2] {
            unsafe {
                let mask = _mm256_set1_epi8(15);
                [_mm256_and_si256(words, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(words), mask)]
            }
        }
        #[inline(always)]
        unsafe fn table(bytes: &[u8; 16]) -> __m256i {
            unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
        }
        #[inline(always)]
        unsafe fn choose(table: __m256i, words: __m256i) -> [__m256i; 2] {
            unsafe {
                let [low, high] = Self::halves(words);
                [_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)]
            }
        }
        #[inline(always)]
        unsafe fn product(x: *const i32, factor: i32) -> __m256i {
            unsafe { _mm256_set1_epi32(x.read().wrapping_mul(factor)) }
        }
        #[inline(always)]
        unsafe fn floats(lanes: __m256i) -> Avx2 {
            unsafe { _mm256_cvtepi32_ps(lanes).into() }
        }
        #[inline(always)]
        unsafe fn half(words: __m256i, shift: u32) -> Avx2 {
            unsafe {
                let words = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
                let words = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
                let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(words, words));
                _mm256_cvtph_ps(_mm256_castsi256_si128(packed)).into()
            }
        }
        #[inline(always)]
        unsafe fn power(words: __m256i, shift: u32) -> Avx2 {
            unsafe {
                let words = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
                let byte = _mm256_and_si256(words, _mm256_set1_epi32(0xff));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(byte)).into()
            }
        }
        #[inline(always)]
        unsafe fn value(table: &[f32; 16], words: __m256i, shift: u32) -> Avx2 {
            unsafe {
                // The permutation looks at the low three bits; the fourth chooses the half of the table.
                let indices = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
                let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), indices);
                let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), indices);
                let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices));
                _mm256_blendv_ps(low, high, fourth).into()
            }
        }
        #[inline(always)]
        unsafe fn number(words: __m256i, shift: u32, bits: usize) -> Avx2 {
            unsafe {
                let words = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
                let mask = _mm256_set1_epi32((1 << bits) - 1);
                _mm256_cvtepi32_ps(_mm256_and_si256(words, mask)).into()
            }
        }
    };
}

/// AVX2 and AVX-VNNI.
pub(in super::super) struct Vnni256;

impl Quads for Vnni256 {
    eight_lanes!();
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn dot(sum: __m256i, bytes: __m256i, x: *const u32) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(sum, bytes, _mm256_set1_epi32(x.read() as i32)) }
    }
    #[inline(always)]
    unsafe fn dot_small(sum: __m256i, bytes: __m256i, x: *const u32) -> __m256i {
        unsafe { Self::dot(sum, bytes, x) }
    }
}

/// AVX2 alone.
pub(in super::super) struct Madd;

impl Quads for Madd {
    eight_lanes!();
    const OFFSET: i32 = 128;

    /// `vpmaddubsw` saturates its 16-bit pairs, and 255 * 127 * 2 is too much; with |code| <= 128 as the unsigned
    /// side and the activation carrying the code's sign, a pair is at most 128 * 127 * 2 = 32512.
    #[inline(always)]
    unsafe fn dot(sum: __m256i, bytes: __m256i, x: *const u32) -> __m256i {
        unsafe {
            let codes = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
            let x = _mm256_sign_epi8(_mm256_set1_epi32(x.read() as i32), codes);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), x);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    unsafe fn dot_small(sum: __m256i, bytes: __m256i, x: *const u32) -> __m256i {
        unsafe {
            let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi32(x.read() as i32));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}
