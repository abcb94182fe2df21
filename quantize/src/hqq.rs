//! HQQ's search: scales stay as the extremes of a group give them, zeros move until the errors are few and large.
//!
//! It alternates between the codes and an error that is shrunk as a p-norm below one wants it, and ends when the mean
//! error of the whole matrix no longer falls. The steps are the tool's, and so is the order in which torch adds up a
//! group; only powers and the sum of all errors may differ in the last bit.

use std::sync::Mutex;

use bantam_model::formats::encode::mean;

use crate::matrix::{Dense, Flat, Told};
use crate::share::share;

/// The tool's settings.
const ROUNDS: usize = 20;
const BETA: f32 = 10.0;
const NORM: f32 = 0.7;

/// Groups that a thread takes at a time.
const STEP: usize = 1024;

/// A group's multiplier and zero: code = value * multiplier + zero.
#[derive(Clone, Copy)]
struct Line {
    multiplier: f32,
    zero: f32,
}

impl Line {
    fn code(self, value: f32, most: f32) -> f32 {
        (value * self.multiplier + self.zero).round_ties_even().clamp(0.0, most)
    }
}

/// Quantizes a matrix whose values divide into groups.
pub fn quantize(dense: &Dense, bits: usize, group: usize, threads: usize) -> Flat {
    let most = ((1usize << bits) - 1) as f32;
    let values = &dense.values;
    let mut lines: Vec<Line> = values.chunks(group).map(|values| first(values, most, bits == 4)).collect();
    let mut best = f32::INFINITY;
    for _ in 0..ROUNDS {
        // The tool compares float32.
        let error = (round(values, group, most, &mut lines, threads) / values.len() as f64) as f32;
        if error >= best {
            break;
        }
        best = error;
    }
    let mut codes = vec![0; values.len()];
    let parts = values.chunks(group).zip(codes.chunks_mut(group)).zip(&lines);
    for ((values, codes), line) in parts {
        codes.iter_mut().zip(values).for_each(|(code, value)| *code = line.code(*value, most) as u8);
    }
    let scales = lines.iter().map(|line| 1.0 / line.multiplier).collect();
    let zeros = lines.iter().map(|line| line.zero).collect();
    Flat { shape: dense.shape, block: group, book: None, codes, scales, zeros, told: Told::Scales }
}

fn first(values: &[f32], most: f32, is_rounded: bool) -> Line {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = largest - least;
    let multiplier = if range <= 1e-4 { 1.0 } else { (most / range).min(2e4) };
    let zero = -least * multiplier;
    Line { multiplier, zero: if is_rounded { zero.round_ties_even() } else { zero } }
}

/// Moves all zeros; gives the sum of all errors before.
fn round(values: &[f32], group: usize, most: f32, lines: &mut [Line], threads: usize) -> f64 {
    let sums = Mutex::new(vec![0.0; lines.len().div_ceil(STEP)]);
    let parts = values.chunks(group * STEP).zip(lines.chunks_mut(STEP)).enumerate();
    share(threads, parts, |(number, (values, lines))| {
        let (mut sum, mut zeros) = (0.0f64, vec![0.0f32; group]);
        for (values, line) in values.chunks(group).zip(lines) {
            for (zero, value) in zeros.iter_mut().zip(values) {
                let code = line.code(*value, most);
                let error = value - (code - line.zero) / line.multiplier;
                sum += f64::from(error.abs());
                *zero = code - (value - shrunk(error)) * line.multiplier;
            }
            line.zero = mean(&zeros[..values.len()]);
        }
        sums.lock().expect("no holder panics")[number] = sum;
    });
    sums.into_inner().expect("no holder panics").into_iter().sum()
}

fn shrunk(error: f32) -> f32 {
    let size = error.abs();
    if size == 0.0 {
        return 0.0;
    }
    (size - size.powf(NORM - 1.0) * (1.0 / BETA)).max(0.0) * error.signum()
}
