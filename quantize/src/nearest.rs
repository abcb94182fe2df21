//! Methods that need nothing but the weights: every value goes to the nearest that its form has.

use bantam_core::layouts::Shape;
use bantam_model::checkpoint::Dtype;
use bantam_model::formats::encode::{self, FOUR_BIT_BLOCK, MX_BLOCK, Scale};
use half::{bf16, f16};

use crate::form::{Fit, Form, Head};
use crate::hqq;
use crate::matrix::{Dense, Flat, Grouped, Quantized, Told, Trits, as_f16};
use crate::share::share;

/// Values that a thread takes at a time: whole blocks of every form that has blocks.
const STEP: usize = 1 << 16;

/// Quantizes a matrix whose weights were stored as `dtype`.
pub fn quantize(form: Form, dense: &Dense, dtype: Dtype, threads: usize) -> Quantized {
    match form {
        Form::FourBit { normal: true, nested } => {
            Quantized::Flat(four_bits(dense, dtype, threads, &encode::NF4, encode::nf4, nested))
        }
        Form::FourBit { normal: false, nested } => {
            Quantized::Flat(four_bits(dense, dtype, threads, &encode::FP4, encode::fp4, nested))
        }
        Form::Int8 => Quantized::Flat(int8(dense, threads)),
        Form::Mxfp4 => {
            let mut flat = flat(dense.shape, MX_BLOCK, Some(&encode::MXFP4));
            blocks(threads, &dense.values, &mut flat, encode::mxfp4);
            Quantized::Flat(flat)
        }
        Form::Hqq { bits, group } => Quantized::Flat(hqq::quantize(dense, bits, group, threads)),
        Form::Gptq { bits, group, symmetric, .. } => {
            Quantized::Grouped(grouped(dense, bits, group, threads, |values| {
                gptq_scale(values, bits, symmetric)
            }))
        }
        Form::Awq { group, zero_point } => {
            Quantized::Grouped(grouped(dense, 4, group, threads, |values| awq_scale(values, zero_point)))
        }
        Form::Ternary { group, planes, fit } => Quantized::Trits(ternary(dense, group, planes, fit, threads)),
    }
}

/// A head, or some rows of it.
pub fn head(head: Head, dense: &Dense, threads: usize) -> Quantized {
    // Eight bits are plenty around zero; of four, a zero where it fits best saves nearly one.
    let scale = |values: &[f32]| gptq_scale(values, head.bits(), head == Head::Int8);
    Quantized::Grouped(grouped(dense, head.bits(), head.group(), threads, scale))
}

fn flat(shape: Shape, block: usize, book: Option<&'static [f32; 16]>) -> Flat {
    let count = shape.rows * shape.columns;
    let scales = count.div_ceil(block);
    let zeros = if book.is_some() { 0 } else { scales };
    let (codes, scales, zeros) = (vec![0; count], vec![0.0; scales], vec![0.0; zeros]);
    Flat { shape, block, book, codes, scales, zeros, told: Told::Scales }
}

/// Fills in codes and scales block by block.
fn blocks(threads: usize, values: &[f32], flat: &mut Flat, encode: fn(&[f32], &mut [u8]) -> Scale) {
    let block = flat.block;
    let step = STEP.next_multiple_of(block);
    let parts =
        values.chunks(step).zip(flat.codes.chunks_mut(step)).zip(flat.scales.chunks_mut(step / block));
    share(threads, parts, |((values, codes), scales)| {
        for ((values, codes), scale) in values.chunks(block).zip(codes.chunks_mut(block)).zip(scales) {
            *scale = encode(values, codes).scale;
        }
    });
}

/// Bit by bit what bitsandbytes makes.
fn four_bits(
    dense: &Dense,
    dtype: Dtype,
    threads: usize,
    book: &'static [f32; 16],
    encode: fn(&[f32], &mut [u8]) -> Scale,
    nested: bool,
) -> Flat {
    let mut flat = flat(dense.shape, FOUR_BIT_BLOCK, Some(book));
    blocks(threads, &dense.values, &mut flat, encode);
    let rest = dense.values.len() % FOUR_BIT_BLOCK;
    if rest > 0 {
        // The tool scales the values of a last block that is not full in the type that they are stored as.
        let (values, codes) = (&dense.values[dense.values.len() - rest..], flat.codes.len() - rest);
        let scale = flat.scales.last().copied().unwrap_or_default().max(1e-38);
        let scaled: Vec<f32> = values.iter().map(|value| rounded(dtype, value * (1.0 / scale))).collect();
        encode(&scaled, &mut flat.codes[codes..]);
    }
    // It divides nothing by nothing, and takes the first code for what comes of it.
    for (codes, scale) in flat.codes.chunks_mut(FOUR_BIT_BLOCK).zip(&flat.scales) {
        if *scale == 0.0 {
            codes.fill(0);
        }
    }
    if nested {
        let nested = encode::nested(&flat.scales);
        flat.scales = nested.values();
        flat.told = Told::Nested(nested);
    }
    flat
}

fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Codes are stored plus 128, so that they count from zero.
fn int8(dense: &Dense, threads: usize) -> Flat {
    let Shape { columns, .. } = dense.shape;
    let mut flat = flat(dense.shape, columns, None);
    flat.zeros.fill(128.0);
    let mut largest = vec![0.0; dense.shape.rows];
    let parts = dense.values.chunks(columns).zip(flat.codes.chunks_mut(columns));
    let parts = parts.zip(flat.scales.iter_mut().zip(&mut largest));
    share(threads, parts, |((values, codes), (scale, largest))| {
        let values: Vec<f32> = values.iter().map(|value| as_f16(*value)).collect();
        *largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        *scale = encode::int8(&values, codes).scale;
        codes.iter_mut().for_each(|code| *code = code.wrapping_add(128));
    });
    flat.told = Told::Largest(largest);
    flat
}

/// Rounds in groups of a row's inputs; `scale` gives a group's scale and zero.
fn grouped(
    dense: &Dense,
    bits: usize,
    group: Option<usize>,
    threads: usize,
    scale: impl Fn(&[f32]) -> (f32, u8) + Sync,
) -> Grouped {
    let Shape { rows, columns } = dense.shape;
    let group = group.unwrap_or(columns).min(columns);
    let groups = columns.div_ceil(group);
    let most = ((1usize << bits) - 1) as f32;
    let (mut codes, mut scales) = (vec![0; rows * columns], vec![0.0; rows * groups]);
    let mut zeros = vec![0; rows * groups];
    let parts = dense.values.chunks(columns).zip(codes.chunks_mut(columns));
    let parts = parts.zip(scales.chunks_mut(groups).zip(zeros.chunks_mut(groups)));
    share(threads, parts, |((values, codes), (scales, zeros))| {
        for (at, (values, codes)) in values.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
            let (factor, zero) = scale(values);
            (scales[at], zeros[at]) = (factor, zero);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = ((value / factor).round_ties_even() + f32::from(zero)).clamp(0.0, most) as u8;
            }
        }
    });
    Grouped { shape: dense.shape, bits, group, codes, scales, zeros, group_of: None }
}

/// The smallest scale that float16 holds: a group of zeros still has one.
const SCALE_MIN: f32 = 5.960_464_5e-8;

fn extremes(values: &[f32]) -> (f32, f32) {
    let least = values.iter().fold(f32::INFINITY, |least, value| least.min(*value));
    let most = values.iter().fold(f32::NEG_INFINITY, |most, value| most.max(*value));
    (least, most)
}

/// Scales are float16 in the file, and codes are found with what stands there.
fn stored_scale(scale: f32) -> f32 {
    as_f16(scale.min(65504.0)).max(SCALE_MIN)
}

/// As GPTQ fits a group before anything is known of its inputs.
pub fn gptq_scale(values: &[f32], bits: usize, symmetric: bool) -> (f32, u8) {
    let steps = ((1usize << bits) - 1) as f32;
    let (mut least, mut most) = extremes(values);
    (least, most) = (least.min(0.0), most.max(0.0));
    if symmetric {
        most = most.max(-least);
        least = if least < 0.0 { -most } else { least };
    }
    if least == 0.0 && most == 0.0 {
        (least, most) = (-1.0, 1.0);
    }
    if symmetric {
        return (stored_scale((most - least) / steps), ((steps + 1.0) / 2.0) as u8);
    }
    let scale = stored_scale((most - least) / steps);
    let zero = (-least / scale).round_ties_even().clamp(0.0, steps);
    if zero >= ZERO_MIN {
        return (scale, zero as u8);
    }
    // All values are of one sign, or nearly: the codes above the zero have to reach as far.
    (stored_scale(most / (steps - ZERO_MIN)), ZERO_MIN as u8)
}

/// The smallest zero that GPTQ's tools all read alike: the first version of the form stores one less, and some of them
/// take what becomes of 0 for the largest zero, others for one that borrows from its neighbours.
const ZERO_MIN: f32 = 1.0;

/// As AutoAWQ does it; without a zero point, codes from -8 to 7 lie around 8.
pub fn awq_scale(values: &[f32], zero_point: bool) -> (f32, u8) {
    let (least, most) = extremes(values);
    if !zero_point {
        return (stored_scale(most.max(-least).max(1e-5) / 7.0), 8);
    }
    let scale = stored_scale((most - least).max(1e-5) / 15.0);
    let zero = (-(least / scale).round_ties_even()).clamp(0.0, 15.0);
    (scale, zero as u8)
}

fn ternary(dense: &Dense, group: Option<usize>, planes: usize, fit: Fit, threads: usize) -> Trits {
    let Shape { rows, columns } = dense.shape;
    let group = group.unwrap_or(columns).min(columns);
    let groups = columns.div_ceil(group);
    let mut trits = vec![0i8; rows * planes * columns];
    let mut scales = vec![0.0; rows * planes * groups];
    let parts = dense.values.chunks(columns).zip(trits.chunks_mut(planes * columns));
    let parts = parts.zip(scales.chunks_mut(planes * groups));
    share(threads, parts, |((values, trits), scales)| {
        let mut rest = values.to_vec();
        for (trits, scales) in trits.chunks_mut(columns).zip(scales.chunks_mut(groups)) {
            for ((rest, trits), scale) in rest.chunks_mut(group).zip(trits.chunks_mut(group)).zip(scales) {
                *scale = ternary_group(rest, fit, trits);
                rest.iter_mut().zip(trits).for_each(|(rest, trit)| *rest -= f32::from(*trit) * *scale);
            }
        }
    });
    Trits { shape: dense.shape, planes, group, trits, scales, columns: None }
}

/// The trits of a group, and their scale as it is stored.
pub fn ternary_group(values: &[f32], fit: Fit, trits: &mut [i8]) -> f32 {
    let scale = match fit {
        Fit::Absmean => {
            let sum: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
            as_f16((sum / values.len() as f64).min(65504.0) as f32)
        }
        Fit::Optimal => as_f16(optimal_scale(values).min(65504.0)),
    };
    if scale == 0.0 {
        trits.fill(0);
        return 0.0;
    }
    for (trit, value) in trits.iter_mut().zip(values) {
        *trit = (value / scale).round().clamp(-1.0, 1.0) as i8;
    }
    scale
}

/// The mean of the `k` largest magnitudes, with the `k` for which the squared error is least: there the error is the
/// sum of all squares less `(sum of the k largest)^2 / k`. Rounding by that scale chooses the same `k`.
fn optimal_scale(values: &[f32]) -> f32 {
    let mut sorted: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let (mut sum, mut best, mut scale) = (0.0f64, 0.0f64, 0.0f64);
    for (count, value) in sorted.iter().enumerate() {
        sum += f64::from(*value);
        let count = (count + 1) as f64;
        if sum * sum / count > best {
            (best, scale) = (sum * sum / count, sum / count);
        }
    }
    scale as f32
}

#[cfg(test)]
#[path = "nearest_tests.rs"]
mod tests;
