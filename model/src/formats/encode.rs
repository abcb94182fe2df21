//! Codes from values, the other direction of this folder's decoders, for weights that are quantized while they are
//! loaded. Where codes then lie is a layout's business.
//!
//! Every function takes the values of one block, writes a code for each and says what codes stand for, which is
//! `(code - zero) * scale`, or `book[code] * scale` where there is a book. Values must be finite, and blocks as long as
//! their codes: callers refuse or see to it. NF4, FP4, nested scales and LLM.int8 are bit by bit what bitsandbytes
//! 0.49.2 makes on a CPU; but a block of zeros stays one, where that version takes the lowest code.

/// Values of codes.
pub use bantam_core::layouts::coded::{E2M1_VALUES as MXFP4, FP4_VALUES as FP4, NF4_VALUES as NF4};

/// What the codes of a block stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Codes, or their values by a book, are multiplied by this.
    pub scale: f32,
    /// Subtracted from codes first; 0 where there is a book or a sign.
    pub zero: u8,
}

/// Values under one scale in [`nf4`] and [`fp4`], of a matrix taken as one row after another.
pub const FOUR_BIT_BLOCK: usize = 64;
/// Inputs under one scale in [`mxfp4`].
pub const MX_BLOCK: usize = 32;
/// Inputs under one scale and zero in [`int4`].
pub const INT4_GROUP: usize = 128;
/// Inputs under one scale in [`ternary`].
pub const TERNARY_GROUP: usize = 128;
/// Scales under one scale in [`nest`].
pub const NESTED_BLOCK: usize = 256;

/// Different values in a book.
const STEPS: usize = 16;

/// A book with its values in ascending order, for finding the nearest by counting.
struct Book {
    /// The codes; of codes with the same value, the first.
    codes: [u8; STEPS],
    /// The least numbers that are nearer to a value than to the one before it.
    bounds: [f32; STEPS - 1],
}

static NF4_BOOK: Book = Book::new(&NF4);
/// The tool searches a table of four digits and decodes by another.
static FP4_BOOK: Book = Book::new(&FP4_SEARCHED);
const FP4_SEARCHED: [f32; 16] = [
    0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25, 0.0, -0.0052, -0.6667, -1.0, -0.3333, -0.5, -0.1667,
    -0.25,
];

impl Book {
    const fn new(values: &[f32; 16]) -> Book {
        let (mut codes, mut count, mut code) = ([0u8; STEPS], 0, 0);
        while code < values.len() {
            let (mut at, mut is_new) = (0, true);
            while at < count && values[codes[at] as usize] <= values[code] {
                is_new &= values[codes[at] as usize] != values[code];
                at += 1;
            }
            let mut last = count;
            while is_new && last > at {
                codes[last] = codes[last - 1];
                last -= 1;
            }
            if is_new {
                codes[at] = code as u8;
                count += 1;
            }
            code += 1;
        }
        let (mut bounds, mut at) = ([f32::INFINITY; STEPS - 1], 1);
        while at < count {
            bounds[at - 1] = bound(values, codes[at - 1], codes[at]);
            at += 1;
        }
        Book { codes, bounds }
    }

    /// Codes of values that are first multiplied.
    fn encode(&self, values: &[f32], factor: f32, codes: &mut [u8]) {
        count_bounds(&self.bounds, values, factor, codes);
        codes.iter_mut().for_each(|code| *code = self.codes[usize::from(*code) % STEPS]);
    }
}

/// The least number between two neighbours that goes to the upper one: it is nearer, or as near and its code comes
/// first. Distances are rounded as the tool rounds them, so it need not be the middle.
const fn bound(values: &[f32; 16], lower: u8, upper: u8) -> f32 {
    let (a, b) = (values[lower as usize], values[upper as usize]);
    let mut x = (a + b) / 2.0;
    while goes_up(x, a, b, upper < lower) {
        x = x.next_down();
    }
    while !goes_up(x, a, b, upper < lower) {
        x = x.next_up();
    }
    x
}

const fn goes_up(x: f32, a: f32, b: f32, or_equal: bool) -> bool {
    let (below, above) = ((x - a).abs(), (b - x).abs());
    above < below || (or_equal && above == below)
}

/// How many bounds every value has reached. There is nothing to branch on, and loops that compilers make vectors of.
fn count_bounds<const BOUNDS: usize>(bounds: &[f32; BOUNDS], values: &[f32], factor: f32, counts: &mut [u8]) {
    const BESIDE: usize = 16;
    for (counts, values) in counts.chunks_mut(BESIDE).zip(values.chunks(BESIDE)) {
        let (mut scaled, mut reached) = ([0.0; BESIDE], [0u32; BESIDE]);
        scaled.iter_mut().zip(values).for_each(|(scaled, value)| *scaled = value * factor);
        for bound in bounds {
            for (reached, value) in reached.iter_mut().zip(&scaled) {
                *reached += u32::from(value >= bound);
            }
        }
        counts.iter_mut().zip(reached).for_each(|(count, reached)| *count = reached as u8);
    }
}

/// The largest magnitude. Bits of numbers without a sign are in the numbers' order, and integers have a fast maximum.
fn largest(values: &[f32]) -> f32 {
    let bits = values.iter().fold(0, |most, value| (value.to_bits() << 1 >> 1).cast_signed().max(most));
    f32::from_bits(bits.cast_unsigned())
}

/// A block of [`FOUR_BIT_BLOCK`] or what is left of it, by the book [`NF4`].
pub fn nf4(values: &[f32], codes: &mut [u8]) -> Scale {
    four_bits(&NF4_BOOK, values, codes)
}

/// The same by the book [`FP4`].
pub fn fp4(values: &[f32], codes: &mut [u8]) -> Scale {
    four_bits(&FP4_BOOK, values, codes)
}

fn four_bits(book: &Book, values: &[f32], codes: &mut [u8]) -> Scale {
    let scale = largest(values);
    // The reciprocal of less is infinite, or nearly.
    book.encode(values, 1.0 / scale.max(1e-38), codes);
    Scale { scale, zero: 0 }
}

/// A row as LLM.int8 has it; codes are signed. The tool makes its values float16 first.
pub fn int8(values: &[f32], codes: &mut [u8]) -> Scale {
    let most = largest(values);
    // torch divides a number by a tensor so.
    let factor = 1.0 / most.max(1e-36) * 127.0;
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value * factor).round_ties_even() as i8).cast_unsigned();
    }
    Scale { scale: most / 127.0, zero: 0 }
}

/// A block of [`MX_BLOCK`] by the book [`MXFP4`]: the scale is the power of two that brings the largest magnitude to 4
/// or more but below 8, values between two codes go to the even one.
pub fn mxfp4(values: &[f32], codes: &mut [u8]) -> Scale {
    const BOUNDS: [f32; 7] =
        [0.25f32.next_up(), 0.75, 1.25f32.next_up(), 1.75, 2.5f32.next_up(), 3.5, 5.0f32.next_up()];
    // Exponents as float32 stores them; the lowest scale is 2^-127, at 0.
    let exponent = (largest(values).to_bits() >> 23).saturating_sub(2);
    let power = |exponent: u32| f32::from_bits(if exponent == 0 { 1 << 22 } else { exponent << 23 });
    let factor = power(254 - exponent);
    for (code, value) in codes.iter_mut().zip(values) {
        let (magnitude, sign) = ((value * factor).abs(), value.to_bits() >> 31);
        let count: u32 = BOUNDS.iter().map(|bound| u32::from(magnitude >= *bound)).sum();
        *code = (count | sign << 3) as u8;
    }
    Scale { scale: power(exponent), zero: 0 }
}

/// A group of [`INT4_GROUP`], or what is left of it: codes 0 to 15, rounded to the nearest between the extremes, of
/// which one may be zero.
pub fn int4(values: &[f32], codes: &mut [u8]) -> Scale {
    let least = values.iter().fold(0.0f32, |least, value| if *value < least { *value } else { least });
    let most = values.iter().fold(0.0f32, |most, value| if *value > most { *value } else { most });
    let range = most - least;
    let scale = if range.is_finite() { range / 15.0 } else { most / 15.0 - least / 15.0 };
    if scale < f32::MIN_POSITIVE {
        codes.fill(0);
        return Scale { scale: 0.0, zero: 0 };
    }
    let zero = (-least / scale).round_ties_even();
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value / scale).round_ties_even() + zero).clamp(0.0, 15.0) as u8;
    }
    Scale { scale, zero: zero as u8 }
}

/// A group of any length as trits plus one: those that leave the least sum of squared errors under one scale. Of the
/// `k` largest magnitudes, with sum `s`, that is `s * s / k` below the sum of squares, and their mean is the scale.
pub fn ternary(values: &[f32], codes: &mut [u8]) -> Scale {
    let mut sizes: Vec<u32> = values.iter().map(|value| value.abs().to_bits()).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let (mut sum, mut best, mut least, mut scale) = (0.0f64, 0.0, f32::INFINITY, 0.0);
    for (before, &size) in sizes.iter().enumerate() {
        let (size, count) = (f32::from_bits(size), (before + 1) as f64);
        sum += f64::from(size);
        if sum * sum > best * count {
            (best, least, scale) = (sum * sum / count, size, (sum / count) as f32);
        }
    }
    for (code, value) in codes.iter_mut().zip(values) {
        *code = if value.abs() < least { 1 } else { 1 + u8::from(*value > 0.0) - u8::from(*value < 0.0) };
    }
    Scale { scale, zero: 1 }
}

/// Scales that are quantized again: scale = [`dynamic_map`]`[code] * scales[block] + offset`.
#[derive(Debug, Clone, PartialEq)]
pub struct Nested {
    /// One per scale.
    pub codes: Vec<u8>,
    /// One per [`NESTED_BLOCK`].
    pub scales: Vec<f32>,
    /// Their mean.
    pub offset: f32,
}

/// bitsandbytes' double quantization of the scales of a whole matrix: eight bits by [`dynamic_map`] in blocks of
/// [`NESTED_BLOCK`], around their mean.
pub fn nested(scales: &[f32]) -> Nested {
    nested_around(mean(scales), scales)
}

fn nested_around(offset: f32, scales: &[f32]) -> Nested {
    let map = dynamic_map();
    let (mut codes, mut of_blocks) = (Vec::with_capacity(scales.len()), Vec::new());
    for block in scales.chunks(NESTED_BLOCK) {
        let around: Vec<f32> = block.iter().map(|scale| scale - offset).collect();
        let most = largest(&around);
        let factor = 1.0 / most.max(1e-38);
        codes.extend(around.iter().map(|scale| nearest(&map, scale * factor)));
        of_blocks.push(most);
    }
    Nested { codes, scales: of_blocks, offset }
}

impl Nested {
    /// The scales.
    pub fn values(&self) -> Vec<f32> {
        let map = dynamic_map();
        let value =
            |(at, code): (usize, &u8)| map[usize::from(*code)] * self.scales[at / NESTED_BLOCK] + self.offset;
        self.codes.iter().enumerate().map(value).collect()
    }
}

/// Replaces scales by what they are after that.
pub fn nest(scales: &mut [f32]) {
    scales.copy_from_slice(&nested(scales).values());
}

/// The mean as torch 2.9 rounds it on one thread; on several, it adds up more than 32768 values in another order, and
/// the last bit may differ.
fn mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    let (rows, rest) = values.split_at(values.len() / LANES * LANES);
    let sum = match rows.is_empty() {
        true => cascade::<1>(rest)[0],
        false => rest.iter().copied().sum::<f32>() + 0.0,
    };
    let lanes = if rows.is_empty() { [0.0; LANES] } else { cascade::<LANES>(rows) };
    lanes.iter().fold(sum, |sum, lane| sum + lane) / values.len().max(1) as f32
}

/// Adds up rows of lanes: four side by side, in steps that are added to sums of steps, and those to sums of these.
fn cascade<const LANES: usize>(values: &[f32]) -> [f32; LANES] {
    const BESIDE: usize = 4;
    const LEVELS: usize = 4;
    let add = |sum: &mut [f32; LANES], row: &[f32]| {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    };
    let (chunks, rest) = values.split_at(values.len() / (BESIDE * LANES) * BESIDE * LANES);
    let size = chunks.len() / (BESIDE * LANES);
    let log = usize::BITS - size.saturating_sub(1).leading_zeros();
    let power = (log / LEVELS as u32).max(4);
    let step = 1 << power;
    let mut levels = [[[0.0f32; LANES]; BESIDE]; LEVELS];
    for (done, chunk) in (1..).zip(chunks.chunks_exact(BESIDE * LANES)) {
        levels[0].iter_mut().zip(chunk.chunks_exact(LANES)).for_each(|(sum, row)| add(sum, row));
        let mut level = 1;
        while done % step == 0 && level < LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; LANES]; BESIDE]);
            levels[level].iter_mut().zip(&below).for_each(|(sum, row)| add(sum, row));
            if done & ((step - 1) << (level as u32 * power)) != 0 {
                break;
            }
            level += 1;
        }
    }
    let [mut sums, higher @ ..] = levels;
    for level in &higher {
        sums.iter_mut().zip(level).for_each(|(sum, row)| add(sum, row));
    }
    let [mut sum, others @ ..] = sums;
    rest.chunks_exact(LANES).for_each(|row| add(&mut sum, row));
    others.iter().for_each(|row| add(&mut sum, row));
    sum
}

/// The code of the nearest of ascending values; of two, the lower.
pub fn nearest(map: &[f32; 256], value: f32) -> u8 {
    let right = map.partition_point(|entry| *entry < value).min(255);
    let left = right.saturating_sub(1);
    (if map[right] - value < value - map[left] { right } else { left }) as u8
}

/// Values of the eight-bit codes of bitsandbytes' nested scales: seven decades with ever finer steps, in ascending
/// order. Its CPU code puts -1 in the place of the lowest.
pub fn dynamic_map() -> [f32; 256] {
    let [mut map, _] = optimizer_maps();
    map[0] = -1.0;
    map
}

/// The same as its optimizers have them: with a sign, and without one and with twice the steps.
pub fn optimizer_maps() -> [[f32; 256]; 2] {
    let [mut signed, mut unsigned] = [[0.0f32; 256]; 2];
    (signed[255], unsigned[255]) = (1.0, 1.0);
    let mut at = 127;
    each_step(1, |value| {
        at += 1;
        signed[at] = value;
        signed[254 - at] = -value;
    });
    let mut at = 0;
    each_step(2, |value| {
        at += 1;
        unsigned[at] = value;
    });
    [signed, unsigned]
}

/// The values of seven decades, of which the first has so many and each other one twice as many as the one before.
fn each_step(first: usize, mut see: impl FnMut(f32)) {
    for decade in 0..7 {
        let count = first << decade;
        let factor = 10f64.powi(decade - 6) as f32;
        // As torch spaces points evenly: from both ends, with fused products.
        let step = 0.9 / count as f32;
        let point = |i: usize| match i <= count / 2 && i * 2 < count + 1 {
            true => step.mul_add(i as f32, 0.1),
            false => (-step).mul_add((count - i) as f32, 1.0),
        };
        (0..count).for_each(|i| see(factor * ((point(i) + point(i + 1)) / 2.0)));
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
