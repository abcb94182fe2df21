//! The lanes of x86-64: sixteen of AVX-512 VNNI, eight of AVX-VNNI and of AVX2.
//!
//! SAFETY, for the whole file: the methods may only be called where the instruction set is proven and the pointers
//! are valid for all lanes; that is the trait's contract, and these bodies add no other obligation.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::super::trits::{DIGITS, FIELDS, FIRST, SECOND};
use super::Quads;
use crate::ops::vector::unroll;
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
        #[inline(always)]
        unsafe fn fields(words: __m512i) -> [__m512i; 4] {
            unsafe {
                let mask = _mm512_set1_epi8(3);
                [
                    _mm512_and_si512(words, mask),
                    _mm512_and_si512(_mm512_srli_epi16::<2>(words), mask),
                    _mm512_and_si512(_mm512_srli_epi16::<4>(words), mask),
                    _mm512_and_si512(_mm512_srli_epi16::<6>(words), mask),
                ]
            }
        }
        /// One for each field of a byte, which stays where it is.
        type Parts = [__m512i; 4];

        #[inline(always)]
        unsafe fn no_parts() -> Self::Parts {
            unsafe { [_mm512_setzero_si512(); 4] }
        }
        #[inline(always)]
        unsafe fn add_fields(mut parts: Self::Parts, words: __m512i, x: *const u32) -> Self::Parts {
            unsafe {
                unroll!(4: k < 4, {
                    let field = _mm512_and_si512(words, _mm512_set1_epi8((3 << (2 * k)) as u8 as i8));
                    parts[k] = Self::dot(parts[k], field, x.add(k));
                });
                parts
            }
        }
        #[inline(always)]
        unsafe fn whole(parts: Self::Parts) -> __m512i {
            unsafe {
                let low = _mm512_add_epi32(parts[0], _mm512_srai_epi32::<2>(parts[1]));
                let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(parts[2]), _mm512_srai_epi32::<6>(parts[3]));
                _mm512_add_epi32(low, high)
            }
        }
    };
}

/// The first digit of every byte.
#[inline(always)]
unsafe fn first_digits(words: __m512i) -> __m512i {
    unsafe {
        let one = _mm512_set1_epi8(1);
        let first = _mm512_maskz_mov_epi8(_mm512_cmpgt_epi8_mask(words, _mm512_set1_epi8(FIRST)), one);
        let second = _mm512_cmpgt_epi8_mask(words, _mm512_set1_epi8(SECOND));
        _mm512_mask_add_epi8(first, second, first, one)
    }
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

    type Digits = ();
    type Shared = [__m512i; DIGITS];

    #[inline(always)]
    unsafe fn digit_table() {}
    #[inline(always)]
    unsafe fn digits(_: (), mut words: __m512i) -> [__m512i; DIGITS] {
        unsafe {
            let mut digits = [words; DIGITS];
            unroll!(5: k < DIGITS, {
                if k > 0 {
                    words = _mm512_add_epi8(_mm512_add_epi8(words, words), words);
                }
                digits[k] = first_digits(words);
            });
            digits
        }
    }
    #[inline(always)]
    unsafe fn add_digits(mut parts: Self::Parts, _: (), words: __m512i, x: *const u32) -> Self::Parts {
        unsafe {
            let digits = Self::digits((), words);
            unroll!(5: k < DIGITS, { parts[0] = Self::dot(parts[0], digits[k], x.add(k)); });
            parts
        }
    }
    #[inline(always)]
    unsafe fn share(_: (), words: __m512i) -> Self::Shared {
        unsafe { Self::digits((), words) }
    }
    #[inline(always)]
    unsafe fn add_shared(
        mut parts: Self::Parts,
        shared: Self::Shared,
        member: usize,
        x: *const u32,
    ) -> Self::Parts {
        unsafe {
            parts[0] = Self::dot(parts[0], shared[member + 1], x);
            parts
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

    /// [`FIELDS`]: two permutations of 128 bytes each, of which the highest bit chooses one.
    type Digits = [__m512i; 4];
    /// The fields.
    type Shared = __m512i;

    #[inline(always)]
    unsafe fn digit_table() -> Self::Digits {
        unsafe {
            let from = FIELDS.as_ptr();
            [
                _mm512_loadu_si512(from.cast()),
                _mm512_loadu_si512(from.add(64).cast()),
                _mm512_loadu_si512(from.add(128).cast()),
                _mm512_loadu_si512(from.add(192).cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn digits(table: Self::Digits, words: __m512i) -> [__m512i; DIGITS] {
        unsafe {
            let [a, b, c, d] = Self::fields(Self::share(table, words));
            [first_digits(words), a, b, c, d]
        }
    }
    #[inline(always)]
    unsafe fn share(table: Self::Digits, words: __m512i) -> __m512i {
        unsafe {
            let low = _mm512_permutex2var_epi8(table[0], words, table[1]);
            let high = _mm512_permutex2var_epi8(table[2], words, table[3]);
            _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(words), high)
        }
    }
    #[inline(always)]
    unsafe fn add_digits(
        mut parts: Self::Parts,
        table: Self::Digits,
        words: __m512i,
        x: *const u32,
    ) -> Self::Parts {
        unsafe {
            parts = Self::add_fields(parts, Self::share(table, words), x.add(1));
            parts[0] = Self::dot(parts[0], first_digits(words), x);
            parts
        }
    }
    #[inline(always)]
    unsafe fn add_shared(
        mut parts: Self::Parts,
        shared: __m512i,
        member: usize,
        x: *const u32,
    ) -> Self::Parts {
        unsafe {
            unroll!(4: k < 4, {
                if k == member {
                    let field = _mm512_and_si512(shared, _mm512_set1_epi8((3 << (2 * k)) as u8 as i8));
                    parts[k] = Self::dot(parts[k], field, x);
                }
            });
            parts
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
        #[inline(always)]
        unsafe fn fields(words: __m256i) -> [__m256i; 4] {
            unsafe {
                let mask = _mm256_set1_epi8(3);
                [
                    _mm256_and_si256(words, mask),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(words), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(words), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<6>(words), mask),
                ]
            }
        }
        type Digits = ();
        /// One for codes where they are, one for codes two bits further up.
        type Parts = [__m256i; 2];
        type Shared = [__m256i; DIGITS];

        #[inline(always)]
        unsafe fn digit_table() {}
        #[inline(always)]
        unsafe fn digits(_: (), mut words: __m256i) -> [__m256i; DIGITS] {
            unsafe {
                let (first, second) = (_mm256_set1_epi8(FIRST), _mm256_set1_epi8(SECOND));
                let mut digits = [words; DIGITS];
                unroll!(5: k < DIGITS, {
                    if k > 0 {
                        words = _mm256_add_epi8(_mm256_add_epi8(words, words), words);
                    }
                    // Comparisons give -1 where they hold.
                    let one = _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_cmpgt_epi8(words, first));
                    digits[k] = _mm256_sub_epi8(one, _mm256_cmpgt_epi8(words, second));
                });
                digits
            }
        }
        #[inline(always)]
        unsafe fn no_parts() -> Self::Parts {
            unsafe { [_mm256_setzero_si256(); 2] }
        }
        #[inline(always)]
        unsafe fn add_fields(mut parts: Self::Parts, words: __m256i, x: *const u32) -> Self::Parts {
            unsafe {
                let (low, high) = (_mm256_set1_epi8(3), _mm256_set1_epi8(12));
                let further = _mm256_srli_epi16::<4>(words);
                parts[0] = Self::part(parts[0], _mm256_and_si256(words, low), x);
                parts[1] = Self::part(parts[1], _mm256_and_si256(words, high), x.add(1));
                parts[0] = Self::part(parts[0], _mm256_and_si256(further, low), x.add(2));
                parts[1] = Self::part(parts[1], _mm256_and_si256(further, high), x.add(3));
                parts
            }
        }
        #[inline(always)]
        unsafe fn add_digits(mut parts: Self::Parts, _: (), words: __m256i, x: *const u32) -> Self::Parts {
            unsafe {
                let digits = Self::digits((), words);
                unroll!(5: k < DIGITS, { parts[0] = Self::part(parts[0], digits[k], x.add(k)); });
                parts
            }
        }
        #[inline(always)]
        unsafe fn share(_: (), words: __m256i) -> Self::Shared {
            unsafe { Self::digits((), words) }
        }
        #[inline(always)]
        unsafe fn add_shared(
            mut parts: Self::Parts,
            shared: Self::Shared,
            member: usize,
            x: *const u32,
        ) -> Self::Parts {
            unsafe {
                parts[0] = Self::part(parts[0], shared[member + 1], x);
                parts
            }
        }
        #[inline(always)]
        unsafe fn whole(parts: Self::Parts) -> __m256i {
            unsafe {
                let [low, high] = [Self::widen(parts[0]), Self::widen(parts[1])];
                _mm256_add_epi32(low, _mm256_srai_epi32::<2>(high))
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

impl Vnni256 {
    #[inline(always)]
    unsafe fn part(part: __m256i, bytes: __m256i, x: *const u32) -> __m256i {
        unsafe { Self::dot(part, bytes, x) }
    }
    #[inline(always)]
    unsafe fn widen(part: __m256i) -> __m256i {
        part
    }
}

/// AVX2 alone.
pub(in super::super) struct Madd;

impl Quads for Madd {
    eight_lanes!();
    const OFFSET: i32 = 128;
    const NARROW: bool = true;

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
    #[inline(always)]
    unsafe fn dot_narrow(sum: __m256i, bytes: __m256i, x: *const u32) -> __m256i {
        unsafe { Self::part(sum, bytes, x) }
    }
    #[inline(always)]
    unsafe fn widened(sum: __m256i) -> __m256i {
        unsafe { Self::widen(sum) }
    }
}

impl Madd {
    /// Sums of 16 bits: 16 pairs of digits up to 2, or eight of codes up to 12, are at most 8 * 12 * 127 * 2 = 24384.
    #[inline(always)]
    unsafe fn part(part: __m256i, bytes: __m256i, x: *const u32) -> __m256i {
        unsafe { _mm256_add_epi16(part, _mm256_maddubs_epi16(bytes, _mm256_set1_epi32(x.read() as i32))) }
    }
    #[inline(always)]
    unsafe fn widen(part: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(part, _mm256_set1_epi16(1)) }
    }
}
