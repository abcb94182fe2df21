//! Activations in the form and order in which the matrix kernels read them.
//!
//! Tokens are taken in groups (as many as a kernel's registers hold; the last group may be smaller). A group is a
//! *panel*: for each word along the columns, the words of its tokens side by side:
//!
//! ```text
//! panel 0: word 0 [t0 t1 .. t11] word 1 [t0 t1 .. t11] ...     panel 1: word 0 [t12 t13 ..] ...
//! ```
//!
//! so that a kernel reads one ascending stream, and tokens whose rows are a power of two apart do not fight for the
//! same cache lines. One token alone is simply its row.

use crate::cpu::Cpu;
use crate::ops::share::Shared;
use crate::ops::vector::{Kernel, Vector, group, launch};

/// What a 32-bit word of a panel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One float32.
    Float,
    /// Two bfloat16, the lower column in the low half.
    Bf16,
    /// Four int8, with a scale per token and the sum of codes per token and block.
    Int8 {
        /// Columns per block, a multiple of four; `usize::MAX` for one block per row.
        block: usize,
    },
}

impl Form {
    /// Columns in a word.
    pub fn per_word(self) -> usize {
        match self {
            Form::Float => 1,
            Form::Bf16 => 2,
            Form::Int8 { .. } => 4,
        }
    }

    /// Words of one token. For int8, blocks are padded to whole blocks.
    pub fn words(self, columns: usize) -> usize {
        match self {
            Form::Float => columns,
            Form::Bf16 => columns.div_ceil(2),
            Form::Int8 { block: usize::MAX } => columns.div_ceil(4),
            Form::Int8 { block } => columns.div_ceil(block) * block / 4,
        }
    }

    fn blocks(self, columns: usize) -> usize {
        match self {
            Form::Int8 { block } => columns.div_ceil(block),
            _ => 0,
        }
    }

    /// 32-bit words of memory for `tokens` tokens: panels, then scales, then sums.
    pub fn memory_words(self, columns: usize, tokens: usize) -> usize {
        let extra = match self {
            Form::Int8 { .. } => 1 + self.blocks(columns),
            _ => 0,
        };
        tokens * (self.words(columns) + extra)
    }
}

/// Prepared activations.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    /// What a word holds.
    pub(crate) form: Form,
    /// Tokens.
    pub(crate) tokens: usize,
    /// Tokens in a full group.
    pub(crate) group: usize,
    /// Words of one token.
    pub(crate) words: usize,
    /// All panels.
    pub(crate) data: &'a [u32],
    /// Per token: value = code * scale (int8).
    pub(crate) scales: &'a [f32],
    /// Sums of a block's codes (int8), group by group: a block's for all tokens of the group, then the next block's.
    pub(crate) sums: &'a [i32],
}

impl<'a> Panels<'a> {
    /// Looks at memory that [`fill_group`] has filled.
    pub fn new(form: Form, cpu: Cpu, columns: usize, tokens: usize, memory: &'a [u32]) -> Self {
        let words = form.words(columns);
        let blocks = form.blocks(columns);
        let (data, rest) = memory[..form.memory_words(columns, tokens)].split_at(tokens * words);
        let (scales, sums) = rest.split_at(if blocks > 0 { tokens } else { 0 });
        let (scales, sums) = (bytemuck::cast_slice(scales), bytemuck::cast_slice(sums));
        Panels { form, tokens, group: group(cpu), words, data, scales, sums }
    }

    /// Groups of tokens.
    pub fn groups(&self) -> usize {
        self.tokens.div_ceil(self.group)
    }

    /// The first token of a group, how many it has, and its panel.
    pub fn group(&self, index: usize) -> (usize, usize, &'a [u32]) {
        let first = index * self.group;
        let count = self.group.min(self.tokens - first);
        (first, count, &self.data[first * self.words..(first + count) * self.words])
    }
}

/// How a matrix takes its input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken<'a> {
    /// Which column of the input is which of the matrix's.
    pub order: Option<&'a [u32]>,
    /// What every column is multiplied by, in the input's order.
    pub factors: Option<&'a [f32]>,
    /// How often it is taken, once after another.
    pub times: usize,
}

impl Taken<'_> {
    /// As it is.
    pub const PLAIN: Taken<'static> = Taken { order: None, factors: None, times: 1 };

    /// The values from column `at` on, of those that stand within one time.
    #[inline(always)]
    fn values(&self, row: &[f32], at: usize, out: &mut [f32]) {
        let from = at % row.len();
        match self.order {
            None => out.copy_from_slice(&row[from..from + out.len()]),
            Some(order) => {
                let columns = &order[from..from + out.len()];
                out.iter_mut().zip(columns).for_each(|(value, &i)| *value = row[i as usize]);
            }
        }
        match (self.factors, self.order) {
            (None, _) => {}
            (Some(factors), None) => {
                out.iter_mut().zip(&factors[from..]).for_each(|(value, factor)| *value *= factor);
            }
            (Some(factors), Some(order)) => {
                let factors = order[from..].iter().map(|&i| factors[i as usize]);
                out.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
            }
        }
    }
}

/// Prepares group `index` of `tokens` tokens, whose rows of `columns` values `row` gives, into `memory`, which has room
/// for `taken.times` as many columns.
///
/// # Safety
/// No other thread may touch this group's part of `memory`.
#[allow(clippy::too_many_arguments, reason = "the form, the rows, the group, the memory")]
pub unsafe fn fill_group<'x>(
    form: Form,
    cpu: Cpu,
    columns: usize,
    tokens: usize,
    row: impl Fn(usize) -> &'x [f32],
    taken: Taken,
    index: usize,
    memory: &Shared<'_, u32>,
) {
    assert!(taken.times == 1 || columns.is_multiple_of(ROUNDED), "each time ends where a rounding does");
    let all = taken.times * columns;
    let words = form.words(all);
    let first = index * group(cpu);
    let count = group(cpu).min(tokens - first);
    // SAFETY: groups have disjoint panels, scales and sums; the caller gave this group to us alone.
    let panel = unsafe { memory.part(first * words, count * words) };
    for member in 0..count {
        let token = first + member;
        let row = &row(token)[..columns];
        match form {
            Form::Float => {
                let mut slots = panel[member..].iter_mut().step_by(count);
                for at in (0..all).step_by(ROUNDED) {
                    let mut values = [0.0; ROUNDED];
                    let values = &mut values[..ROUNDED.min(all - at)];
                    taken.values(row, at, values);
                    values.iter().zip(&mut slots).for_each(|(x, word)| *word = x.to_bits());
                }
            }
            Form::Bf16 => {
                assert!(taken == Taken::PLAIN, "only codes take their input otherwise");
                launch(cpu, FillBf16 { row, slots: &mut panel[member..], count });
            }
            Form::Int8 { block } => {
                let blocks = form.blocks(all);
                let sums_at = tokens * words + tokens + first * blocks;
                // SAFETY: as above.
                let (scale, sums) =
                    unsafe { (memory.part(tokens * words + token, 1), memory.part(sums_at, count * blocks)) };
                let (slots, sums) = (&mut panel[member..], &mut sums[member..]);
                scale[0] = launch(cpu, FillInt8 { row, taken, block, slots, sums, count }).to_bits();
            }
        }
    }
}

/// Pairs of one token, `count` words apart.
struct FillBf16<'a, 'p> {
    row: &'a [f32],
    slots: &'p mut [u32],
    count: usize,
}

impl Kernel for FillBf16<'_, '_> {
    type Output = ();

    /// Plain loops, of which the compiler makes the level's vectors.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let FillBf16 { row, slots, count } = self;
        let mut slots = slots.iter_mut().step_by(count);
        let (whole, rest) = row.as_chunks::<32>();
        for values in whole {
            let words: [u32; 16] =
                core::array::from_fn(|i| bf16(values[2 * i]) | bf16(values[2 * i + 1]) << 16);
            words.iter().zip(&mut slots).for_each(|(word, slot)| *slot = *word);
        }
        for (pair, slot) in rest.chunks(2).zip(slots) {
            *slot = pair.iter().rev().fold(0, |word, x| word << 16 | bf16(*x));
        }
    }
}

/// The 16 bits of the nearest bfloat16, ties to even. Activations are finite: a checkpoint with NaN is refused.
#[inline(always)]
pub(crate) fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16
}

/// Codes of one token, the sums of its blocks; returns its scale, the largest magnitude over 127.
struct FillInt8<'a, 'p> {
    row: &'a [f32],
    taken: Taken<'a>,
    block: usize,
    /// The token's words and its blocks' sums, `count` apart.
    slots: &'p mut [u32],
    sums: &'p mut [u32],
    count: usize,
}

/// Columns that are rounded at once.
const ROUNDED: usize = 64;

impl FillInt8<'_, '_> {
    /// The largest magnitude: an order changes nothing about it.
    #[inline(always)]
    fn peak(&self) -> f32 {
        let mut peaks = [0.0f32; 16];
        let mut higher = |values: &[f32; 16]| {
            for (peak, x) in peaks.iter_mut().zip(values) {
                *peak = if x.abs() > *peak { x.abs() } else { *peak };
            }
        };
        // Whole vectors, then what is left, filled up with zeros.
        let (row, rest) = self.row.as_chunks::<16>();
        let filled = |rest: &[f32]| core::array::from_fn(|i| rest.get(i).copied().unwrap_or(0.0));
        match self.taken.factors {
            None => {
                row.iter().for_each(&mut higher);
                higher(&filled(rest));
            }
            Some(factors) => {
                let (factors, last) = factors[..self.row.len()].as_chunks::<16>();
                let product = |x: &[f32; 16], y: &[f32; 16]| core::array::from_fn(|i| x[i] * y[i]);
                row.iter().zip(factors).for_each(|(x, factors)| higher(&product(x, factors)));
                higher(&product(&filled(rest), &filled(last)));
            }
        }
        peaks.into_iter().fold(0.0, f32::max)
    }
}

impl Kernel for FillInt8<'_, '_> {
    type Output = f32;

    /// Plain loops, of which the compiler makes the level's vectors.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        let peak = self.peak();
        let FillInt8 { row, taken, block, slots, sums, count } = self;
        let all = taken.times * row.len();
        let scale = peak / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut slots = slots.iter_mut().step_by(count);
        for (number, sum) in sums.iter_mut().step_by(count).enumerate() {
            let first = number.saturating_mul(block);
            let end = all.min(first.saturating_add(block));
            let mut total = 0i32;
            for at in (first..end).step_by(ROUNDED) {
                let mut values = [0.0f32; ROUNDED];
                let here = ROUNDED.min(end - at);
                taken.values(row, at, &mut values[..here]);
                let codes = values.map(|x| round_even(x * inverse));
                total += codes.iter().map(|&code| i32::from(code)).sum::<i32>();
                let words = here.div_ceil(4);
                for (codes, word) in codes.as_chunks().0.iter().zip(slots.by_ref().take(words)) {
                    *word = u32::from_le_bytes(codes.map(i8::cast_unsigned));
                }
            }
            // Beyond the row there is nothing, up to the block's end.
            if block != usize::MAX {
                let written = (end - first).div_ceil(4);
                slots.by_ref().take(block / 4 - written).for_each(|word| *word = 0);
            }
            *sum = total as u32;
        }
        scale
    }
}

/// To the nearest integer, ties to even, for magnitudes up to 127: a step in the last place of 1.5 * 2^23 is one.
#[inline(always)]
fn round_even(x: f32) -> i8 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits() as i8
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    const FORMS: [Form; 5] = [
        Form::Float,
        Form::Bf16,
        Form::Int8 { block: usize::MAX },
        Form::Int8 { block: 32 },
        Form::Int8 { block: 4 },
    ];

    /// The 32-bit words of one token, by the definition.
    fn words(form: Form, row: &[f32], scale: f32) -> Vec<u32> {
        let bytes = |x: &[f32]| -> [u8; 4] {
            let code =
                |i: usize| x.get(i).map_or(0, |x| libm::rint(f64::from(x * (1.0 / scale))) as i8 as u8);
            core::array::from_fn(code)
        };
        let half = |x: Option<&f32>| u32::from(half::bf16::from_f32(x.copied().unwrap_or(0.0)).to_bits());
        match form {
            Form::Float => row.iter().map(|x| x.to_bits()).collect(),
            Form::Bf16 => row.chunks(2).map(|x| half(x.first()) | half(x.get(1)) << 16).collect(),
            Form::Int8 { .. } => {
                let mut words: Vec<u32> = row.chunks(4).map(|x| u32::from_le_bytes(bytes(x))).collect();
                words.resize(form.words(row.len()), 0);
                words
            }
        }
    }

    fn check(form: Form, cpu: Cpu, columns: usize, tokens: usize) {
        let x: Vec<f32> = (0..columns * tokens).map(|i| libm::sinf(i as f32 * 0.37) * 2.5).collect();
        let mut memory = vec![0xdead_beef; form.memory_words(columns, tokens)];
        let shared = Shared::new(&mut memory);
        for index in (0..tokens.div_ceil(group(cpu))).rev() {
            // SAFETY: one group after the other.
            unsafe {
                fill_group(form, cpu, columns, tokens, |t| &x[t * columns..], Taken::PLAIN, index, &shared)
            };
        }
        let panels = Panels::new(form, cpu, columns, tokens, &memory);
        for index in 0..panels.groups() {
            let (first, count, panel) = panels.group(index);
            for member in 0..count {
                let row = &x[(first + member) * columns..][..columns];
                let peak = row.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
                let found: Vec<u32> = panel[member..].iter().step_by(count).copied().collect();
                let what = (form, cpu.name(), columns, tokens, first + member);
                assert_eq!(found, words(form, row, peak / 127.0), "{what:?}");
                if let Form::Int8 { block } = form {
                    assert_eq!(panels.scales[first + member], peak / 127.0, "{what:?}");
                    let blocks = found.chunks((block / 4).min(found.len()));
                    let codes = |words: &[u32]| {
                        words.iter().flat_map(|w| w.to_le_bytes()).map(|b| i32::from(b as i8)).sum()
                    };
                    let sums: Vec<i32> = blocks.map(codes).collect();
                    let kept = panels.sums[first * sums.len()..][..count * sums.len()][member..].iter();
                    assert!(kept.step_by(count).eq(&sums), "{what:?}");
                }
            }
        }
    }

    #[test]
    fn panels_hold_every_token_in_its_form() {
        for form in FORMS {
            for cpu in Cpu::detect().variants() {
                for (columns, tokens) in [(1, 1), (32, 1), (33, 5), (64, 12), (70, 13), (7, 27)] {
                    check(form, cpu, columns, tokens);
                }
            }
        }
    }

    #[test]
    fn a_token_of_zeros_has_codes_and_sums_of_zero() {
        let mut memory = vec![1; Form::Int8 { block: 4 }.memory_words(8, 1)];
        let (form, shared) = (Form::Int8 { block: 4 }, Shared::new(&mut memory));
        // SAFETY: the only thread.
        unsafe { fill_group(form, Cpu::PORTABLE, 8, 1, |_| &[0.0; 8], Taken::PLAIN, 0, &shared) };
        assert!(memory.iter().all(|&word| word == 0), "{memory:?}");
    }
}
