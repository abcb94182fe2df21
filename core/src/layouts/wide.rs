//! Unquantized weights: float32, bfloat16, float16. A word holds one float32 or two 16-bit values of a row.
//!
//! ```text
//! bits 31..16   column 2w + 1
//! bits 15..0    column 2w            (float32: the word is column w)
//! ```
//!
//! In exact precision all three are computed in float32. In fast precision, bfloat16 weights meet activations rounded
//! to bfloat16 where the processor has a dot product for them; elsewhere fast and exact are the same.

use super::panels::{Form, Panels, bf16};
use super::tile::{Decode, multiply_float};
use super::{Layout, NotFinite, Precision, Sink, TILE_ROWS, check_rows};
use crate::cpu::Cpu;
use crate::cuda::{Kernel, Stored};
use crate::ops::vector::Vector;

/// One of the unquantized layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wide {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// float32.
pub static F32: Wide = Wide::F32;
/// bfloat16.
pub static BF16: Wide = Wide::Bf16;
/// float16.
pub static F16: Wide = Wide::F16;

impl Wide {
    /// Columns in a word.
    pub(crate) fn per_word(self) -> usize {
        if self == Wide::F32 { 1 } else { 2 }
    }

    fn words(self, columns: usize) -> usize {
        columns.div_ceil(self.per_word())
    }

    /// The bits of a value, in the low end.
    fn encode(self, x: f32) -> u32 {
        match self {
            Wide::F32 => x.to_bits(),
            Wide::Bf16 => u32::from(half::bf16::from_f32(x).to_bits()),
            Wide::F16 => u32::from(half::f16::from_f32(x).to_bits()),
        }
    }

    #[inline(always)]
    fn decode(self, word: u32, part: usize) -> f32 {
        let half_word = (word >> (16 * part)) as u16;
        match self {
            Wide::F32 => f32::from_bits(word),
            Wide::Bf16 => half::bf16::from_bits(half_word).to_f32(),
            Wide::F16 => half::f16::from_bits(half_word).to_f32(),
        }
    }
}

impl Wide {
    /// Rounds a tile to bfloat16: a tile of [`BF16`] into `out`.
    #[inline(always)]
    pub fn halve(self, columns: usize, tile: &[u8], out: &mut [u32]) {
        let words: &[u32] = bytemuck::cast_slice(tile);
        assert!(words.len() == self.words(columns) * TILE_ROWS);
        assert!(out.len() == BF16.words(columns) * TILE_ROWS);
        for (number, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
            let low = self.column(words, columns, 2 * number);
            pair(&low, &self.column(words, columns, 2 * number + 1), out);
        }
    }

    /// A column of a tile, zeros past the last.
    #[inline(always)]
    pub(crate) fn column(self, words: &[u32], columns: usize, column: usize) -> [f32; TILE_ROWS] {
        if column >= columns {
            return [0.0; TILE_ROWS];
        }
        let at = column / self.per_word() * TILE_ROWS;
        let mut out = [0.0; TILE_ROWS];
        for (out, word) in out.iter_mut().zip(&words[at..at + TILE_ROWS]) {
            *out = self.decode(*word, column % self.per_word());
        }
        out
    }
}

/// Words of two values each.
#[inline(always)]
pub(crate) fn pair(low: &[f32; TILE_ROWS], high: &[f32; TILE_ROWS], out: &mut [u32; TILE_ROWS]) {
    for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
        *out = bf16(*low) | bf16(*high) << 16;
    }
}

/// From words of two columns with rows in lanes to words of two rows with columns in lanes: four values of two rows and
/// two columns are two words either way, of which those in the middle change places.
#[inline(always)]
pub(crate) fn turn_pairs(words: &[[u32; TILE_ROWS]], out: &mut [[u32; TILE_ROWS]]) {
    for (rows, out) in out.iter_mut().enumerate() {
        let (lanes, past) = out.as_chunks_mut::<2>().0.split_at_mut(words.len());
        for (word, lanes) in words.iter().zip(lanes) {
            let [upper, lower] = [word[2 * rows], word[2 * rows + 1]];
            *lanes = [upper & 0xffff | lower << 16, upper >> 16 | lower & 0xffff_0000];
        }
        past.fill([0; 2]);
    }
}

impl Layout for Wide {
    fn name(&self) -> &'static str {
        match self {
            Wide::F32 => "f32",
            Wide::Bf16 => "bf16",
            Wide::F16 => "f16",
        }
    }

    fn tile_bytes(&self, columns: usize) -> usize {
        self.words(columns) * TILE_ROWS * 4
    }

    fn pack(&self, columns: usize, rows: &[f32], tile: &mut [u8]) -> Result<(), NotFinite> {
        check_rows(columns, rows)?;
        let words: &mut [u32] = bytemuck::cast_slice_mut(tile);
        assert_eq!(words.len(), self.words(columns) * TILE_ROWS);
        words.fill(0);
        for (r, row) in rows.chunks_exact(columns).enumerate() {
            for (slot, columns) in words[r..].iter_mut().step_by(TILE_ROWS).zip(row.chunks(self.per_word())) {
                *slot = columns.iter().enumerate().fold(0, |word, (j, &x)| word | self.encode(x) << (16 * j));
            }
        }
        Ok(())
    }

    fn unpack(&self, columns: usize, tile: &[u8], row: usize, out: &mut [f32]) {
        assert!(row < TILE_ROWS && out.len() == columns);
        let words: &[u32] = bytemuck::cast_slice(tile);
        for (&word, out) in words[row..].iter().step_by(TILE_ROWS).zip(out.chunks_mut(self.per_word())) {
            out.iter_mut().enumerate().for_each(|(j, x)| *x = self.decode(word, j));
        }
    }

    fn wide(&self) -> Option<Wide> {
        Some(*self)
    }

    fn stored(&self) -> Stored {
        let (float, kind) = match self {
            Wide::F32 => ([Kernel::wide_f32_1, Kernel::wide_f32_8], 0),
            Wide::Bf16 => ([Kernel::wide_bf16_1, Kernel::wide_bf16_8], 1),
            Wide::F16 => ([Kernel::wide_f16_1, Kernel::wide_f16_8], 2),
        };
        let many = (*self == Wide::Bf16).then_some(Kernel::wide_bf16_64);
        Stored::Plain { float, many, kind }
    }

    fn form(&self, precision: Precision, cpu: Cpu) -> Form {
        let dots = *self == Wide::Bf16 && precision == Precision::Fast && cpu.bf16();
        if dots { Form::Bf16 } else { Form::Float }
    }

    unsafe fn multiply(
        &self,
        cpu: Cpu,
        columns: usize,
        tile: &[u8],
        x: &Panels,
        sink: &Sink,
        first_row: usize,
    ) {
        let block = self.words(columns);
        let tile: &[u32] = bytemuck::cast_slice(tile);
        // SAFETY: passed on from the caller.
        unsafe {
            match (self, x.form) {
                (Wide::Bf16, Form::Bf16) => multiply_bf16(cpu, tile, x, sink, first_row),
                (Wide::F32, Form::Float) => multiply_float::<F32Words>(cpu, block, tile, x, sink, first_row),
                (Wide::Bf16, Form::Float) => {
                    multiply_float::<Bf16Words>(cpu, block, tile, x, sink, first_row)
                }
                (Wide::F16, Form::Float) => multiply_float::<F16Words>(cpu, block, tile, x, sink, first_row),
                (layout, form) => panic!("{} does not take activations as {form:?}", layout.name()),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct F32Words;
impl Decode for F32Words {
    const PER_WORD: usize = 1;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn decode<V: Vector>(word: *const u32) -> [V; 4] {
        // SAFETY: the caller's pointer is valid for the lanes.
        unsafe { [V::load(word.cast()), V::splat(0.0), V::splat(0.0), V::splat(0.0)] }
    }
}

#[derive(Clone, Copy)]
struct Bf16Words;
impl Decode for Bf16Words {
    const PER_WORD: usize = 2;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn decode<V: Vector>(word: *const u32) -> [V; 4] {
        // SAFETY: the caller's pointer is valid for the lanes.
        unsafe {
            let [low, high] = V::bf16_words(word);
            [low, high, V::splat(0.0), V::splat(0.0)]
        }
    }
}

#[derive(Clone, Copy)]
struct F16Words;
impl Decode for F16Words {
    const PER_WORD: usize = 2;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn decode<V: Vector>(word: *const u32) -> [V; 4] {
        // SAFETY: the caller's pointer is valid for the lanes.
        unsafe {
            let [low, high] = V::f16_words(word);
            [low, high, V::splat(0.0), V::splat(0.0)]
        }
    }
}

/// bfloat16 dots. Panels of this form are only made where the processor has them.
#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
unsafe fn multiply_bf16(cpu: Cpu, tile: &[u32], x: &Panels, sink: &Sink, first_row: usize) {
    assert!(cpu.bf16(), "panels of bfloat16 on a processor without its dot product");
    // SAFETY: the assertion proves AVX-512 BF16; the rest is the caller's.
    unsafe { avx512::multiply(tile, x, sink, first_row) }
}

#[cfg(not(all(target_arch = "x86_64", not(target_os = "none"))))]
unsafe fn multiply_bf16(_: Cpu, _: &[u32], _: &Panels, _: &Sink, _: usize) {
    unreachable!("no processor of this architecture asks for bfloat16 panels");
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod avx512 {
    use super::super::tile::{emit, with_group};
    use super::{Panels, Sink, TILE_ROWS};
    use crate::ops::vector::unroll;
    use crate::ops::vector::x86::Avx512;
    use core::arch::x86_64::*;

    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ, VL and BF16; the tile's rows in the sink are the caller's alone.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub(super) unsafe fn multiply(tile: &[u32], x: &Panels, sink: &Sink, first_row: usize) {
        assert!(x.words * TILE_ROWS <= tile.len(), "the tile is shorter than the panel");
        for index in 0..x.groups() {
            let (first, count, panel) = x.group(index);
            // SAFETY: the tile has the words of the panel by the assertion; the rest is the caller's.
            unsafe {
                with_group!(count, G => group::<G>(tile, panel, sink, first, first_row));
            }
        }
    }

    /// One panel of `G` tokens. Each accumulator is one row of one token, summed word by word.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn group<const G: usize>(
        tile: &[u32],
        panel: &[u32],
        sink: &Sink,
        first: usize,
        first_row: usize,
    ) {
        let words = panel.len() / G;
        let mut acc = [[_mm512_setzero_ps(); 2]; G];
        let mut rows = tile.as_ptr();
        let mut x = panel.as_ptr();
        // SAFETY: `words` words of 32 rows in the tile and of G tokens in the panel; prefetching may pass the end.
        unsafe {
            for _ in 0..words {
                if G == 1 {
                    // A tile is read once here: 2 KiB ahead keeps the memory busy.
                    _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add(512).cast());
                    _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add(528).cast());
                }
                let low: __m512bh = core::mem::transmute(_mm512_loadu_si512(rows.cast()));
                let high: __m512bh = core::mem::transmute(_mm512_loadu_si512(rows.add(16).cast()));
                unroll!(12: g < G, {
                    let pair: __m512bh = core::mem::transmute(_mm512_set1_epi32(*x.add(g) as i32));
                    acc[g][0] = _mm512_dpbf16_ps(acc[g][0], low, pair);
                    acc[g][1] = _mm512_dpbf16_ps(acc[g][1], high, pair);
                });
                rows = rows.add(TILE_ROWS);
                x = x.add(G);
            }
            // A copy, so that the loop's changing index does not keep the accumulators out of registers.
            let done = acc;
            for (g, rows) in done.into_iter().enumerate() {
                emit(sink, first + g, first_row, rows.map(Avx512::from));
            }
        }
    }
}
