//! AWQ: four bits rounded to nearest, after columns with large inputs were scaled up against what comes before the
//! matrix, and the ends of every group were cut where that loses less than it gains.
//!
//! Scales are found as the tool finds them: a power between the inputs' mean magnitudes and the weights' own ("duo
//! scaling"), twenty steps. The tool compares what a block's module makes of the inputs; here the matrices' own outputs
//! are compared, by the squares of their inputs, which is why no module has to be run twenty times.

use bantam_core::layouts::Shape;
use bantam_core::ops::share::each_row;

use super::linear::Work;
use crate::matrix::{Grouped, as_f16};

/// How codes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Columns of a group; `None` is all.
    pub group: Option<usize>,
    /// Whether groups have a zero; else they are symmetric.
    pub zero_point: bool,
    /// Whether scales are searched.
    pub scale_search: bool,
    /// Whether ends are searched.
    pub clip_search: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { group: Some(128), zero_point: true, scale_search: true, clip_search: true }
    }
}

/// Of a code.
const BITS: usize = 4;
const MOST: f32 = 15.0;
/// Steps of the search for scales, and of that for ends, of which the first half is looked at.
const STEPS: usize = 20;

/// What is known of the inputs of matrices.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `x^T x`.
    pub squares: &'a [f32],
    /// Mean magnitude of every column.
    pub means: &'a [f32],
}

/// Scale and zero of a group that reaches from `least` to `largest`.
fn grid(settings: &Settings, least: f32, largest: f32) -> (f32, f32) {
    let (scale, zero) = match settings.zero_point {
        true => {
            let scale = (largest - least).max(1e-5) / MOST;
            (scale, (-(least / scale).round_ties_even()).clamp(0.0, MOST))
        }
        // Codes from -8 to 7 around the middle.
        false => (largest.max(-least).max(1e-5) / 7.0, 8.0),
    };
    (as_f16(scale), zero)
}

fn code(value: f32, scale: f32, zero: f32) -> f32 {
    ((value / scale).round_ties_even() + zero).clamp(0.0, MOST)
}

fn ends(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(least, largest), &value| {
        (least.min(value), largest.max(value))
    })
}

/// Factors for the columns of matrices that share their input; their input is to be divided by them.
pub fn scales(work: Work, settings: &Settings, inputs: Inputs, width: usize, modules: &[&[f32]]) -> Vec<f32> {
    let own = magnitudes(settings, width, modules);
    let mut best = (f64::INFINITY, vec![1.0; width]);
    for step in 0..STEPS {
        let ratio = step as f32 / STEPS as f32;
        let scale = |(mean, own): (&f32, &f32)| (mean.powf(ratio) / (own.powf(1.0 - ratio) + 1e-4)).max(1e-4);
        let mut scales: Vec<f32> = inputs.means.iter().zip(&own).map(scale).collect();
        let (least, largest) = ends(&scales);
        let middle = (least * largest).sqrt();
        scales.iter_mut().for_each(|scale| *scale /= middle);
        if scales.iter().any(|scale| !scale.is_finite()) {
            continue;
        }
        let loss =
            modules.iter().map(|values| loss(work, settings, inputs, width, values, &scales)).sum::<f64>();
        if loss < best.0 {
            best = (loss, scales);
        }
    }
    best.1
}

/// Mean over all rows of a column's part of its group's largest magnitude.
fn magnitudes(settings: &Settings, width: usize, modules: &[&[f32]]) -> Vec<f32> {
    let group = settings.group.unwrap_or(width).min(width);
    let (mut sums, mut rows) = (vec![0.0f64; width], 0);
    for row in modules.iter().flat_map(|values| values.chunks_exact(width)) {
        rows += 1;
        for (sums, values) in sums.chunks_mut(group).zip(row.chunks(group)) {
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) + 1e-6;
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value.abs() / largest));
        }
    }
    sums.into_iter().map(|sum| (sum / f64::from(rows.max(1))) as f32).collect()
}

/// What rounding scaled weights does to the outputs.
fn loss(
    work: Work,
    settings: &Settings,
    inputs: Inputs,
    width: usize,
    values: &[f32],
    scales: &[f32],
) -> f64 {
    let group = settings.group.unwrap_or(width).min(width);
    let mut errors = values.to_vec();
    each_row(work.pool, &mut errors, width, 8, |_, row| {
        for (row, scales) in row.chunks_mut(group).zip(scales.chunks(group)) {
            row.iter_mut().zip(scales).for_each(|(value, scale)| *value *= scale);
            let (least, largest) = ends(row);
            let (step, zero) = grid(settings, least, largest);
            for (value, scale) in row.iter_mut().zip(scales) {
                *value = (*value - (code(*value, step, zero) - zero) * step) / scale;
            }
        }
    });
    let products = work.times(&errors, inputs.squares, width);
    errors.iter().zip(&products).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Codes of a matrix whose columns and inputs were scaled already. `clip` says whether ends may be cut: queries and
/// keys are left as they are, since a softmax is fed by their products.
pub fn quantize(
    work: Work,
    settings: &Settings,
    squares: &[f32],
    shape: Shape,
    values: &[f32],
    clip: bool,
) -> Grouped {
    let width = shape.columns;
    let group = settings.group.unwrap_or(width).min(width);
    let groups = width.div_ceil(group);
    let clip = clip && settings.clip_search;
    let mut rows: Vec<CodedRow> = vec![CodedRow::default(); shape.rows];
    each_row(work.pool, &mut rows, 1, 2, |row, out| {
        let row = &values[row * width..][..width];
        for number in 0..groups {
            let first = number * group;
            let of_group = &row[first..(first + group).min(width)];
            let (mut least, mut largest) = ends(of_group);
            if clip {
                (least, largest) = cut_ends(settings, squares, width, first, of_group);
            }
            let (scale, zero) = grid(settings, least, largest);
            out[0]
                .codes
                .extend(of_group.iter().map(|&value| code(value.clamp(least, largest), scale, zero) as u8));
            out[0].scales.push(scale);
            out[0].zeros.push(zero as u8);
        }
    });
    let mut found = Grouped {
        shape,
        bits: BITS,
        group,
        codes: Vec::new(),
        scales: Vec::new(),
        zeros: Vec::new(),
        group_of: None,
    };
    for row in rows {
        found.codes.extend(row.codes);
        found.scales.extend(row.scales);
        found.zeros.extend(row.zeros);
    }
    found
}

#[derive(Clone, Default)]
struct CodedRow {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

/// The ends of a group, drawn in step by step to half, that leave the smallest error of the group's part of the output.
fn cut_ends(settings: &Settings, squares: &[f32], width: usize, first: usize, values: &[f32]) -> (f32, f32) {
    let most = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let mut best = (f64::INFINITY, ends(values));
    let mut errors = vec![0.0f32; values.len()];
    for step in 0..STEPS / 2 {
        let end = most * (1.0 - step as f32 / STEPS as f32);
        let cut = |value: f32| value.clamp(-end, end);
        let (least, largest) = ends(values);
        let (least, largest) = (cut(least), cut(largest));
        let (scale, zero) = grid(settings, least, largest);
        for (error, &value) in errors.iter_mut().zip(values) {
            *error = value - (code(cut(value), scale, zero) - zero) * scale;
        }
        let mut loss = 0.0;
        for (at, error) in errors.iter().enumerate() {
            let row = &squares[(first + at) * width + first..][..errors.len()];
            let sum: f32 = row.iter().zip(&errors).map(|(h, error)| h * error).sum();
            loss += f64::from(*error) * f64::from(sum);
        }
        if loss < best.0 {
            best = (loss, (least, largest));
        }
    }
    best.1
}
