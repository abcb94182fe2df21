//! Eight-bit weights with a scale per row, which is one block. Four columns in a word:
//!
//! ```text
//! bits 31..24  column 4w + 3   ...   bits 7..0  column 4w        byte = code + 128, code in -127..=127
//! after the words of a block:  32 x f32, the scale of each row    weight = code * scale
//! ```
//!
//! In fast precision, activations are int8 with one scale per token. A block's dot product is exact in integers,
//! hence the same on every processor; then `sum += dot * weight scale` block by block, and once the token's scale.
//! Bytes carry a bias of 128, so that they are the unsigned side of the processor's dot products; the bias is taken
//! out with the block's sum of activations.

use super::panels::{Form, Panels};
use super::tile::{Decode, emit, multiply_float, with_group};
use super::{Layout, NotFinite, Precision, Sink, TILE_ROWS, check_rows};
use crate::cpu::{Cpu, Level};
use crate::cuda::Stored;
use crate::ops::vector::{Kernel, Vector, launch};

/// Int8 with scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code8 {
    name: &'static str,
}

/// One scale per row.
pub static ROW: Code8 = Code8 { name: "code8-row" };

impl Code8 {
    /// Columns of a block, a multiple of four.
    fn block(&self, columns: usize) -> usize {
        columns.next_multiple_of(4)
    }

    fn blocks(&self, columns: usize) -> usize {
        columns.div_ceil(self.block(columns))
    }

    /// Words of a block with its scales.
    fn stride(&self, columns: usize) -> usize {
        (self.block(columns) / 4 + 1) * TILE_ROWS
    }
}

impl Layout for Code8 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tile_bytes(&self, columns: usize) -> usize {
        self.blocks(columns) * self.stride(columns) * 4
    }

    fn pack(&self, columns: usize, rows: &[f32], tile: &mut [u8]) -> Result<(), NotFinite> {
        check_rows(columns, rows)?;
        assert_eq!(tile.len(), self.tile_bytes(columns));
        let block = self.block(columns);
        let codes = block / 4 * TILE_ROWS;
        let words: &mut [u32] = bytemuck::cast_slice_mut(tile);
        for (b, words) in words.chunks_exact_mut(self.stride(columns)).enumerate() {
            let (words, scales) = words.split_at_mut(codes);
            words.fill(0x8080_8080);
            scales.fill(0);
            for (r, row) in rows.chunks_exact(columns).enumerate() {
                let row = &row[b * block..columns.min((b + 1) * block)];
                let peak = row.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
                let scale = peak / 127.0;
                scales[r] = scale.to_bits();
                for (slot, columns) in words[r..].iter_mut().step_by(TILE_ROWS).zip(row.chunks(4)) {
                    let mut bytes = [0x80u8; 4];
                    for (byte, x) in bytes.iter_mut().zip(columns) {
                        let code = if scale > 0.0 { libm::rintf(x / scale) as i32 } else { 0 };
                        *byte = (code.clamp(-127, 127) + 128) as u8;
                    }
                    *slot = u32::from_le_bytes(bytes);
                }
            }
        }
        Ok(())
    }

    fn unpack(&self, columns: usize, tile: &[u8], row: usize, out: &mut [f32]) {
        assert!(row < TILE_ROWS && out.len() == columns);
        let block = self.block(columns);
        let words: &[u32] = bytemuck::cast_slice(tile);
        for (words, out) in words.chunks_exact(self.stride(columns)).zip(out.chunks_mut(block)) {
            let scale = f32::from_bits(words[block / 4 * TILE_ROWS + row]);
            for (word, out) in words[row..].iter().step_by(TILE_ROWS).zip(out.chunks_mut(4)) {
                for (byte, x) in word.to_le_bytes().into_iter().zip(out) {
                    *x = f32::from(i16::from(byte) - 128) * scale;
                }
            }
        }
    }

    fn stored(&self) -> Stored {
        Stored::Rows
    }

    fn form(&self, precision: Precision, _: Cpu) -> Form {
        match precision {
            Precision::Exact => Form::Float,
            // A whole row is one block, whatever its length; the panel pads it to whole words.
            Precision::Fast => Form::Int8 { block: usize::MAX },
        }
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
        let block_words = self.block(columns) / 4;
        let tile: &[u32] = bytemuck::cast_slice(tile);
        // SAFETY: passed on from the caller.
        unsafe {
            match x.form {
                Form::Float => multiply_float::<ByteWords>(cpu, block_words, tile, x, sink, first_row),
                Form::Int8 { .. } => {
                    let blocks = self.blocks(columns);
                    assert!(x.words == blocks * block_words && tile.len() == blocks * self.stride(columns));
                    multiply_int8(cpu, &Blocks { tile, block_words, blocks, x, sink, first_row });
                }
                Form::Bf16 => panic!("{} does not take activations as bfloat16", self.name),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct ByteWords;
impl Decode for ByteWords {
    const PER_WORD: usize = 4;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn decode<V: Vector>(word: *const u32) -> [V; 4] {
        // SAFETY: the caller's pointer is valid for the lanes.
        unsafe {
            let ([a, b, c, d], bias) = (V::u8_words(word), V::splat(128.0));
            [a.sub(bias), b.sub(bias), c.sub(bias), d.sub(bias)]
        }
    }
}

/// A tile and panels in blocks, sizes checked.
struct Blocks<'a> {
    tile: &'a [u32],
    block_words: usize,
    blocks: usize,
    x: &'a Panels<'a>,
    sink: &'a Sink<'a>,
    first_row: usize,
}

/// The integer dot of one block: 32 rows for `G` tokens.
trait Dot {
    /// # Safety
    /// `tile` is valid for `words` words of 32 rows, `panel` for `words` words of `G` tokens.
    unsafe fn dot<const G: usize>(words: usize, tile: *const u32, panel: *const u32)
    -> [[i32; TILE_ROWS]; G];
}

#[allow(unused_unsafe)] // Only the x86 variants are unsafe to call.
unsafe fn multiply_int8(cpu: Cpu, blocks: &Blocks) {
    // SAFETY: each arm's instruction set is proven by the level; passed on otherwise.
    unsafe {
        match cpu.level() {
            #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
            Level::Avx512 if cpu.vnni() => x86::vnni(blocks),
            #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
            Level::Avx512 | Level::Avx2 => x86::avx2(cpu, blocks),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => launch(cpu, Tokens::<neon::Neon>::new(blocks)),
            _ => launch(cpu, Tokens::<Plain>::new(blocks)),
        }
    }
}

/// Runs a [`Dot`] block by block, for groups of any size.
struct Tokens<'a, D> {
    blocks: &'a Blocks<'a>,
    dot: core::marker::PhantomData<D>,
}

impl<'a, D> Tokens<'a, D> {
    fn new(blocks: &'a Blocks<'a>) -> Self {
        Tokens { blocks, dot: core::marker::PhantomData }
    }
}

impl<D: Dot> Kernel for Tokens<'_, D> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for index in 0..self.blocks.x.groups() {
            let (first, count, panel) = self.blocks.x.group(index);
            // SAFETY: launched with a proven vector.
            unsafe {
                with_group!(count, G => tokens::<V, D, G>(self.blocks, first, panel));
            }
        }
    }
}

/// All blocks of `G` tokens: exact integers inside a block, then one multiplication and one addition per block, as
/// plain unfused float32 so that every processor rounds alike.
#[inline(always)]
unsafe fn tokens<V: Vector, D: Dot, const G: usize>(of: &Blocks, first: usize, panel: &[u32]) {
    let mut sums = [[0.0f32; TILE_ROWS]; G];
    let stride = (of.block_words + 1) * TILE_ROWS;
    for b in 0..of.blocks {
        // SAFETY: the sizes were checked when `Blocks` was made.
        let (dots, scales) = unsafe {
            let block = of.tile.as_ptr().add(b * stride);
            let dots = D::dot::<G>(of.block_words, block, panel.as_ptr().add(b * of.block_words * G));
            (dots, block.add(of.block_words * TILE_ROWS).cast::<[f32; TILE_ROWS]>().read())
        };
        for g in 0..G {
            let bias = 128 * of.x.sums[(first + g) * of.blocks + b];
            for r in 0..TILE_ROWS {
                sums[g][r] += (dots[g][r] - bias) as f32 * scales[r];
            }
        }
    }
    for (g, sums) in sums.iter_mut().enumerate() {
        let scale = of.x.scales[first + g];
        sums.iter_mut().for_each(|sum| *sum *= scale);
        for lane in (0..TILE_ROWS).step_by(V::LANES) {
            // SAFETY: `lane + LANES` stays inside the 32 sums; the sink's rows are the caller's.
            unsafe {
                emit::<V, 1>(of.sink, first + g, of.first_row + lane, [V::load(sums.as_ptr().add(lane))])
            };
        }
    }
}

/// The definition, in plain Rust.
struct Plain;
impl Dot for Plain {
    #[inline(always)]
    unsafe fn dot<const G: usize>(
        words: usize,
        tile: *const u32,
        panel: *const u32,
    ) -> [[i32; TILE_ROWS]; G] {
        let mut dots = [[0i32; TILE_ROWS]; G];
        for w in 0..words {
            // SAFETY: valid by the trait's contract.
            let rows = unsafe { tile.add(w * TILE_ROWS).cast::<[[u8; 4]; TILE_ROWS]>().read() };
            for (g, dots) in dots.iter_mut().enumerate() {
                // SAFETY: as above.
                let x = unsafe { panel.add(w * G + g).cast::<[i8; 4]>().read() };
                for (dot, row) in dots.iter_mut().zip(&rows) {
                    *dot += (0..4).map(|j| i32::from(row[j]) * i32::from(x[j])).sum::<i32>();
                }
            }
        }
        dots
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{Dot, TILE_ROWS};
    use core::arch::aarch64::*;

    /// Widening multiplies of the baseline; processors with the dot-product extension get a variant of their own
    /// together with the four-bit layouts.
    pub(super) struct Neon;
    impl Dot for Neon {
        #[inline(always)]
        unsafe fn dot<const G: usize>(
            words: usize,
            tile: *const u32,
            panel: *const u32,
        ) -> [[i32; TILE_ROWS]; G] {
            let mut dots = [[0i32; TILE_ROWS]; G];
            // SAFETY: valid by the trait's contract; NEON is part of the architecture.
            unsafe {
                for (g, dots) in dots.iter_mut().enumerate() {
                    // Four rows to a register; byte - 128 is the signed code, and the bias is put back at the end.
                    let mut acc = [vdupq_n_s32(0); 8];
                    let mut total = 0i32;
                    for w in 0..words {
                        let word = *panel.add(w * G + g);
                        let x = vreinterpret_s8_u32(vdup_n_u32(word));
                        total += word.to_le_bytes().into_iter().map(|b| i32::from(b as i8)).sum::<i32>();
                        for (v, acc) in acc.iter_mut().enumerate() {
                            let bytes = vld1q_u8(tile.add(w * TILE_ROWS + v * 4).cast());
                            let codes = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
                            let low = vpaddlq_s16(vmull_s8(vget_low_s8(codes), x));
                            let high = vpaddlq_s16(vmull_s8(vget_high_s8(codes), x));
                            *acc = vaddq_s32(*acc, vpaddq_s32(low, high));
                        }
                    }
                    for (v, acc) in acc.into_iter().enumerate() {
                        vst1q_s32(dots.as_mut_ptr().add(v * 4), vaddq_s32(acc, vdupq_n_s32(128 * total)));
                    }
                }
            }
            dots
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod x86 {
    use super::{Blocks, Cpu, Dot, Kernel, Level, TILE_ROWS, Tokens};
    use crate::ops::vector::unroll;
    use crate::ops::vector::x86::{Avx2, Avx512};
    use core::arch::x86_64::*;

    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ, VL and VNNI; otherwise as for `Layout::multiply`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn vnni(blocks: &Blocks) {
        // SAFETY: the features of this function are those that the kernel needs.
        unsafe { Tokens::<Vnni>::new(blocks).run::<Avx512>() }
    }

    /// # Safety
    /// The processor must have AVX2, FMA and F16C; otherwise as for `Layout::multiply`.
    pub(super) unsafe fn avx2(cpu: Cpu, blocks: &Blocks) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn run(blocks: &Blocks) {
            // SAFETY: the features of this function are those that the kernel needs.
            unsafe { Tokens::<SignTrick>::new(blocks).run::<Avx2>() }
        }
        assert!(cpu.level() >= Level::Avx2);
        // SAFETY: the assertion proves AVX2.
        unsafe { run(blocks) }
    }

    struct Vnni;
    impl Dot for Vnni {
        #[inline(always)]
        unsafe fn dot<const G: usize>(
            words: usize,
            tile: *const u32,
            panel: *const u32,
        ) -> [[i32; TILE_ROWS]; G] {
            // SAFETY: pointers are valid by the trait's contract; `vnni` proves the instructions.
            unsafe {
                let mut acc = [[_mm512_setzero_si512(); 2]; G];
                for w in 0..words {
                    let rows = tile.add(w * TILE_ROWS);
                    if G == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add(512).cast());
                        _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add(528).cast());
                    }
                    let low = _mm512_loadu_si512(rows.cast());
                    let high = _mm512_loadu_si512(rows.add(16).cast());
                    unroll!(12: g < G, {
                        let x = _mm512_set1_epi32(*panel.add(w * G + g) as i32);
                        acc[g][0] = _mm512_dpbusd_epi32(acc[g][0], low, x);
                        acc[g][1] = _mm512_dpbusd_epi32(acc[g][1], high, x);
                    });
                }
                core::mem::transmute_copy(&acc)
            }
        }
    }

    /// `vpmaddubsw` saturates its 16-bit pairs, and 255 * 127 * 2 is too much; with |code| <= 128 as the unsigned
    /// side and the activation carrying the code's sign, a pair is at most 128 * 127 * 2 = 32512.
    struct SignTrick;
    impl Dot for SignTrick {
        #[inline(always)]
        unsafe fn dot<const G: usize>(
            words: usize,
            tile: *const u32,
            panel: *const u32,
        ) -> [[i32; TILE_ROWS]; G] {
            // SAFETY: pointers are valid by the trait's contract; `avx2` proves the instructions.
            unsafe {
                let mut acc = [[_mm256_setzero_si256(); 4]; G];
                let ones = _mm256_set1_epi16(1);
                let bias = _mm256_set1_epi8(-128);
                for w in 0..words {
                    let rows = tile.add(w * TILE_ROWS);
                    if G == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add(256).cast());
                        _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add(272).cast());
                    }
                    unroll!(4: v < 4, {
                        let codes = _mm256_xor_si256(_mm256_loadu_si256(rows.add(8 * v).cast()), bias);
                        let magnitudes = _mm256_abs_epi8(codes);
                        unroll!(12: g < G, {
                            let x = _mm256_set1_epi32(*panel.add(w * G + g) as i32);
                            let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, codes));
                            acc[g][v] = _mm256_add_epi32(acc[g][v], _mm256_madd_epi16(pairs, ones));
                        });
                    });
                }
                let mut dots: [[i32; TILE_ROWS]; G] = core::mem::transmute_copy(&acc);
                // The codes were unbiased for the multiplication; the caller expects the biased sum.
                for (g, dots) in dots.iter_mut().enumerate() {
                    let total: i32 = (0..words)
                        .flat_map(|w| (*panel.add(w * G + g)).to_le_bytes())
                        .map(|byte| i32::from(byte as i8))
                        .sum();
                    dots.iter_mut().for_each(|dot| *dot += 128 * total);
                }
                dots
            }
        }
    }
}
