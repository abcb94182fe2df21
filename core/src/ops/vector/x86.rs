//! The vectors of x86-64: eight lanes of AVX2, sixteen of AVX-512.
//!
//! SAFETY, for the whole file: the methods of `Vector` may only be called where the instruction set is proven and
//! the pointers are valid for all lanes; that is the trait's contract, and these bodies add no other obligation.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::{Kernel, Vector, unroll};
use core::arch::x86_64::*;

/// Runs a kernel with AVX2.
///
/// # Safety
/// The processor must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn launch_avx2<K: Kernel>(kernel: K) -> K::Output {
    unsafe { kernel.run::<Avx2>() }
}

/// Runs a kernel with AVX-512.
///
/// # Safety
/// The processor must have AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub unsafe fn launch_avx512<K: Kernel>(kernel: K) -> K::Output {
    unsafe { kernel.run::<Avx512>() }
}

/// Eight lanes.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(__m256);

impl From<__m256> for Avx2 {
    #[inline(always)]
    fn from(lanes: __m256) -> Self {
        Avx2(lanes)
    }
}

impl Vector for Avx2 {
    const LANES: usize = 8;
    const GROUP: usize = 6;
    const BESIDE_GROUP: usize = 2;
    const QUERIES: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Avx2(_mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Avx2(_mm256_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Avx2(_mm256_fmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Avx2(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        unsafe { Avx2(_mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0))) }
    }
    #[inline(always)]
    unsafe fn bf16_words(from: *const u32) -> [Self; 2] {
        unsafe {
            let words = _mm256_loadu_si256(from.cast());
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))), Avx2(_mm256_castsi256_ps(high))]
        }
    }
    #[inline(always)]
    unsafe fn f16_words(from: *const u32) -> [Self; 2] {
        unsafe {
            let words = _mm256_loadu_si256(from.cast());
            // Gathers the low 16 bits of eight words into one 128-bit register, in order.
            let narrow = |x: __m256i| {
                let packed = _mm256_packus_epi32(x, x);
                _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed))
            };
            let low = narrow(_mm256_and_si256(words, _mm256_set1_epi32(0xffff)));
            let high = narrow(_mm256_srli_epi32::<16>(words));
            [Avx2(_mm256_cvtph_ps(low)), Avx2(_mm256_cvtph_ps(high))]
        }
    }
    #[inline(always)]
    unsafe fn u8_words(from: *const u32) -> [Self; 4] {
        unsafe {
            let words = _mm256_loadu_si256(from.cast());
            let byte = _mm256_set1_epi32(0xff);
            [
                Avx2(_mm256_cvtepi32_ps(_mm256_and_si256(words, byte))),
                Avx2(_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32::<8>(words), byte))),
                Avx2(_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32::<16>(words), byte))),
                Avx2(_mm256_cvtepi32_ps(_mm256_srli_epi32::<24>(words))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe { Avx2(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        unsafe { Avx2(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn turn_words(from: &[*const u32], to: *mut u32, stride: usize) {
        let from: &[*const u32; 8] = from.first_chunk().expect("a pointer for every lane");
        unsafe {
            let mut x = [_mm256_setzero_si256(); 8];
            unroll!(8: i < 8, { x[i] = _mm256_loadu_si256(from[i].cast()); });
            // Words of neighbours, then pairs of words, then halves of a register.
            let mut y = x;
            unroll!(4: i < 4, {
                y[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
            });
            unroll!(2: i < 2, {
                x[4 * i] = _mm256_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
                x[4 * i + 1] = _mm256_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
                x[4 * i + 2] = _mm256_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
                x[4 * i + 3] = _mm256_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
            });
            unroll!(4: i < 4, {
                let low = _mm256_permute2x128_si256::<0x20>(x[i], x[4 + i]);
                let high = _mm256_permute2x128_si256::<0x31>(x[i], x[4 + i]);
                _mm256_storeu_si256(to.add(i * stride).cast(), low);
                _mm256_storeu_si256(to.add((4 + i) * stride).cast(), high);
            });
        }
    }
    #[inline(always)]
    unsafe fn pair_halves(low: *const u8, high: *const u8, to: *mut u32) {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(low.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(high.cast()));
            _mm256_storeu_si256(to.cast(), _mm256_or_si256(low, _mm256_slli_epi32::<16>(high)));
        }
    }
    #[inline(always)]
    fn ask_for(byte: &u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(byte).cast()) }
    }
}

/// Sixteen lanes.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(__m512);

impl From<__m512> for Avx512 {
    #[inline(always)]
    fn from(lanes: __m512) -> Self {
        Avx512(lanes)
    }
}

impl Vector for Avx512 {
    const LANES: usize = 16;
    const GROUP: usize = 12;
    const BESIDE_GROUP: usize = 2;
    const QUERIES: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Avx512(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Avx512(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Avx512(_mm512_fmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Avx512(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0);
            Avx512(_mm512_mask_blend_ps(less, otherwise.0, then.0))
        }
    }
    #[inline(always)]
    unsafe fn bf16_words(from: *const u32) -> [Self; 2] {
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))), Avx512(_mm512_castsi512_ps(high))]
        }
    }
    #[inline(always)]
    unsafe fn f16_words(from: *const u32) -> [Self; 2] {
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let low = _mm512_cvtepi32_epi16(words);
            let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(words));
            [Avx512(_mm512_cvtph_ps(low)), Avx512(_mm512_cvtph_ps(high))]
        }
    }
    #[inline(always)]
    unsafe fn u8_words(from: *const u32) -> [Self; 4] {
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let byte = _mm512_set1_epi32(0xff);
            [
                Avx512(_mm512_cvtepi32_ps(_mm512_and_si512(words, byte))),
                Avx512(_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(words), byte))),
                Avx512(_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<16>(words), byte))),
                Avx512(_mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(words))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        unsafe { Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn turn_words(from: &[*const u32], to: *mut u32, stride: usize) {
        let from: &[*const u32; 16] = from.first_chunk().expect("a pointer for every lane");
        unsafe {
            let mut x = [_mm512_setzero_si512(); 16];
            unroll!(8: i < 8, {
                x[2 * i] = _mm512_loadu_si512(from[2 * i].cast());
                x[2 * i + 1] = _mm512_loadu_si512(from[2 * i + 1].cast());
            });
            // Words of neighbours, then pairs of words, then quarters of a register.
            let mut y = x;
            unroll!(8: i < 8, {
                y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
            });
            unroll!(4: i < 4, {
                x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
                x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
                x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
                x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
            });
            // Now quarter `q` of `x[4 * i + j]` has word `4 * q + j` of rows `4 * i` to `4 * i + 3`.
            unroll!(4: j < 4, {
                let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(x[j], x[4 + j]);
                let high = _mm512_shuffle_i32x4::<0b11_01_11_01>(x[j], x[4 + j]);
                let later_low = _mm512_shuffle_i32x4::<0b10_00_10_00>(x[8 + j], x[12 + j]);
                let later_high = _mm512_shuffle_i32x4::<0b11_01_11_01>(x[8 + j], x[12 + j]);
                y[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, later_low);
                y[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, later_low);
                y[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high, later_high);
                y[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high, later_high);
            });
            unroll!(8: i < 8, {
                _mm512_storeu_si512(to.add(2 * i * stride).cast(), y[2 * i]);
                _mm512_storeu_si512(to.add((2 * i + 1) * stride).cast(), y[2 * i + 1]);
            });
        }
    }
    #[inline(always)]
    unsafe fn pair_halves(low: *const u8, high: *const u8, to: *mut u32) {
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(high.cast()));
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(low, _mm512_slli_epi32::<16>(high)));
        }
    }
    #[inline(always)]
    fn ask_for(byte: &u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(byte).cast()) }
    }
}
