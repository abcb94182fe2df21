//! Factors of columns: `weight = column's factor * row's scale * trit`, all fitted to the outputs.
//!
//! Divided by factors, a matrix is one of other columns, with a Hessian that is multiplied by them. Trits and scales
//! are found there as always; then, with those given, all factors at once by least squares, and so on in turns.

use bantam_core::layouts::Shape;

use super::{Settings, Stages, quantize};
use crate::calibrated::feedback::Hessian;
use crate::calibrated::linear::Work;
use crate::calibrated::relative_loss;
use crate::matrix::Trits;

/// Turns of trits and factors.
const TURNS: usize = 3;
/// What holds a factor where it is: a share of its own square.
const HOLD: f32 = 1e-3;

/// Trits with factors; the last stage's loss is that of the result.
pub(in crate::calibrated) fn fitted(
    work: Work,
    settings: &Settings,
    hessian: &Hessian,
    shape: Shape,
    planes: usize,
    values: &[f32],
) -> (Trits, Stages) {
    let mut factors = vec![1.0; shape.columns];
    let mut best: Option<(Trits, Stages)> = None;
    for _ in 0..TURNS {
        let divided: Vec<f32> = values
            .chunks_exact(shape.columns)
            .flat_map(|row| row.iter().zip(&factors).map(|(value, by)| value / by))
            .collect();
        let scaled = scaled(hessian, &factors);
        let (trits, mut stages) = quantize(work, settings, &scaled, shape, planes, &divided);
        factors = refit(work, hessian, values, &trits, &factors);
        let trits = Trits { columns: Some(factors.clone()), ..trits };
        let loss = relative_loss(work, hessian, values, &trits.values());
        stages.push(("columns", loss));
        let last = |(_, stages): &(Trits, Stages)| stages.last().map_or(f64::INFINITY, |stage| stage.1);
        if best.as_ref().is_none_or(|best| loss < last(best)) {
            best = Some((trits, stages));
        }
        factors = together(&factors);
    }
    best.expect("there was a turn")
}

/// Factors around one: their common size is the scales' matter.
fn together(factors: &[f32]) -> Vec<f32> {
    let mean = factors.iter().map(|&factor| f64::from(factor.ln())).sum::<f64>() / factors.len() as f64;
    let by = mean.exp() as f32;
    factors.iter().map(|factor| factor / by).collect()
}

/// The Hessian of a matrix whose columns were divided by factors.
pub(in crate::calibrated) fn scaled(hessian: &Hessian, factors: &[f32]) -> Hessian {
    let mut scaled = hessian.clone();
    let factors: Vec<f32> = hessian.order.iter().map(|&column| factors[column]).collect();
    let rows = scaled.values.chunks_exact_mut(hessian.width);
    for (row, by) in rows.zip(&factors) {
        row.iter_mut().zip(&factors).for_each(|(value, factor)| *value *= factor * by);
    }
    for row in scaled.upper.chunks_exact_mut(hessian.width) {
        row.iter_mut().zip(&factors).for_each(|(value, factor)| *value /= factor);
    }
    scaled
}

/// The factors that leave the smallest error with trits and scales as they are; where that is none above zero, what it
/// was. With M the rows' scaled trits, `(H o M^T M) f = diag(M^T W H)`.
fn refit(work: Work, hessian: &Hessian, values: &[f32], trits: &Trits, before: &[f32]) -> Vec<f32> {
    let width = hessian.width;
    let ordered = |rows: &[f32]| -> Vec<f32> {
        rows.chunks_exact(width).flat_map(|row| hessian.ordered(row)).collect()
    };
    let made = ordered(&trits.values());
    let aims = work.times(&ordered(values), &hessian.values, width);
    let mut along = vec![0.0f64; width];
    for (made, aims) in made.chunks_exact(width).zip(aims.chunks_exact(width)) {
        let pairs = made.iter().zip(aims);
        along.iter_mut().zip(pairs).for_each(|(sum, (made, aim))| *sum += f64::from(*made) * f64::from(*aim));
    }
    let mut squares = vec![0.0; width * width];
    work.add_cross(&made, width, &made, width, &mut squares);
    squares.iter_mut().zip(&hessian.values).for_each(|(square, h)| *square *= h);
    for (place, &column) in hessian.order.iter().enumerate() {
        let own = &mut squares[place * width + place];
        let hold = if *own > 0.0 { *own * HOLD } else { 1.0 };
        *own += hold;
        along[place] += f64::from(hold) * f64::from(before[column]);
    }
    let mut factors = before.to_vec();
    if let Some(lower) = work.cholesky(&squares, width) {
        let found = solve(&lower, along);
        for (&column, found) in hessian.order.iter().zip(found) {
            // Far from the others it would bend what rounds the next time.
            if found > 0.05 * f64::from(before[column]) && found < 20.0 * f64::from(before[column]) {
                factors[column] = found as f32;
            }
        }
    }
    factors
}

/// `l * l^T * x = along`.
fn solve(l: &[f32], along: Vec<f64>) -> Vec<f64> {
    let (n, mut x) = (along.len(), along);
    for row in 0..n {
        let known: f64 = (0..row).map(|at| f64::from(l[row * n + at]) * x[at]).sum();
        x[row] = (x[row] - known) / f64::from(l[row * n + row]);
    }
    for row in (0..n).rev() {
        x[row] /= f64::from(l[row * n + row]);
        let value = x[row];
        (0..row).for_each(|at| x[at] -= f64::from(l[row * n + at]) * value);
    }
    x
}
