//! Muon: momentum whose singular values are made equal by Newton and Schulz, in the two forms that people use.

use bantam_core::Cpu;
use bantam_core::layouts::Shape;
use bantam_core::layouts::panels::Form;
use bantam_core::ops::backward::numbers::{Matrix, Numbers};
use bantam_core::ops::backward::products::floats;
use bantam_model::pool::Threads;

use crate::product::{product, sized};

/// Which of its forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Momentum is a mean; steps grow with the root of rows over columns where there are more rows.
    KellerJordan,
    /// Momentum is a sum; steps are 0.2 times the root of the longer side, as long as AdamW's.
    Moonlight,
}

/// Its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Muon {
    /// Which of its forms.
    pub variant: Variant,
    /// What is kept of the momentum.
    pub momentum: f64,
    /// Whether the gradient is looked at where the momentum leads.
    pub nesterov: bool,
    /// Iterations.
    pub iterations: usize,
}

/// Memory for an iteration.
#[derive(Debug, Default)]
pub(super) struct Work {
    update: Vec<f32>,
    turned: Vec<f32>,
    square: Vec<f32>,
    fourth: Vec<f32>,
    words: Vec<f32>,
}

/// Of the polynomial in odd powers: steep at zero, near one where it counts.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Bytes of [`Work`] for matrices of a shape.
pub(super) fn work_bytes(threads: usize, rows: usize, columns: usize) -> usize {
    let (rows, columns) = (rows.min(columns), rows.max(columns));
    4 * (2 * rows * columns + 2 * rows * rows + floats(Form::Float, columns, rows, threads))
}

/// One step of all matrices of a parameter: `(how many, rows, columns)`.
#[allow(clippy::too_many_arguments, reason = "a rule with its constants and its memory")]
pub(super) fn step(
    (cpu, pool): (Cpu, &Threads),
    constants: &Muon,
    rate: f64,
    decay: f64,
    (count, rows, columns): (usize, usize, usize),
    gradient: &[f32],
    momentum: &mut [f32],
    values: &mut [f32],
    work: &mut Work,
) {
    let Muon { variant, momentum: kept, nesterov, iterations } = *constants;
    let (kept, size) = (kept as f32, rows * columns);
    let longer = match variant {
        Variant::KellerJordan => (rows as f64 / columns as f64).max(1.0).sqrt(),
        Variant::Moonlight => 0.2 * (rows.max(columns) as f64).sqrt(),
    };
    let (shrink, step) = ((1.0 - rate * decay) as f32, (rate * longer) as f32);
    for number in 0..count {
        let range = number * size..(number + 1) * size;
        let (gradient, momentum) = (&gradient[range.clone()], &mut momentum[range.clone()]);
        let mut update = std::mem::take(&mut work.update);
        update.clear();
        update.reserve_exact(size);
        for (gradient, momentum) in gradient.iter().zip(momentum) {
            *momentum = match variant {
                Variant::KellerJordan => *momentum + (1.0 - kept) * (gradient - *momentum),
                Variant::Moonlight => kept * *momentum + gradient,
            };
            update.push(match (variant, nesterov) {
                (_, false) => *momentum,
                (Variant::KellerJordan, true) => gradient + kept * (*momentum - gradient),
                (Variant::Moonlight, true) => gradient + kept * *momentum,
            });
        }
        orthogonalize(cpu, pool, iterations, rows, columns, &mut update, work);
        let values = values[range].iter_mut().zip(&update);
        values.for_each(|(value, update)| *value = *value * shrink - step * update);
        work.update = update;
    }
}

/// Makes the singular values of a matrix nearly equal to one.
fn orthogonalize(
    cpu: Cpu,
    pool: &Threads,
    iterations: usize,
    rows: usize,
    columns: usize,
    matrix: &mut [f32],
    work: &mut Work,
) {
    let norm = matrix.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32;
    matrix.iter_mut().for_each(|x| *x /= norm + 1e-7);
    // The shorter side as rows: the products are of its square.
    let Work { turned, square, fourth, words, .. } = work;
    let (rows, columns, is_tall) = (rows.min(columns), rows.max(columns), rows > columns);
    sized(turned, matrix.len());
    if is_tall {
        turn(matrix, rows, turned);
    } else {
        turned.copy_from_slice(matrix);
    }
    sized(square, rows * rows);
    sized(fourth, rows * rows);
    for _ in 0..iterations {
        let shape = Shape { rows, columns };
        product(cpu, pool, turned, as_rows(turned, shape, false), square, words);
        product(cpu, pool, square, as_rows(square, Shape { rows, columns: rows }, false), fourth, words);
        let [first, third, fifth] = COEFFICIENTS;
        fourth
            .iter_mut()
            .zip(&*square)
            .for_each(|(fourth, square)| *fourth = third * square + fifth * *fourth);
        (0..rows).for_each(|at| fourth[at * rows + at] += first);
        product(cpu, pool, fourth, as_rows(turned, shape, true), matrix, words);
        turned.copy_from_slice(matrix);
    }
    if is_tall {
        turn(turned, columns, matrix);
    }
}

/// Columns of `from`, `width` to a row, as rows.
fn turn(from: &[f32], width: usize, out: &mut [f32]) {
    let height = from.len() / width;
    for (row, values) in from.chunks_exact(width).enumerate() {
        values.iter().enumerate().for_each(|(column, value)| out[column * height + row] = *value);
    }
}

fn as_rows(rows: &[f32], shape: Shape, turned: bool) -> Matrix<'_> {
    Matrix { shape, numbers: Numbers::Rows(rows), turned }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn singular_values_come_near_one_whichever_side_is_longer() {
        let pool = Threads::start(1).unwrap();
        for (rows, columns) in [(1, 1), (4, 9), (9, 4), (40, 33)] {
            let mut matrix: Vec<f32> =
                (0..rows * columns).map(|at| ((at * 37 + 11) as f32 * 0.7).sin()).collect();
            let before = matrix.clone();
            orthogonalize(Cpu::detect(), &pool, 5, rows, columns, &mut matrix, &mut Work::default());
            // Of U S V^T the result is U f(S) V^T: its product with the matrix is the sum of s f(s), which is positive.
            let along: f32 = matrix.iter().zip(&before).map(|(a, b)| a * b).sum();
            let square: f32 = matrix.iter().map(|x| x * x).sum();
            let rank = rows.min(columns) as f32;
            assert!(along > 0.0 && square < 1.5 * rank, "{rows} x {columns}: {square}");
        }
    }

    /// Numbers of both formulas as torch computes them in float32.
    #[test]
    fn two_steps_are_those_of_the_formulas() {
        let pool = Threads::start(1).unwrap();
        let gradients = [[0.5, -1.0, 2.0, 0.25, -0.75, 1.5], [-0.25, 0.5, 1.0, -2.0, 0.125, 0.75]];
        for (variant, wanted) in [(Variant::KellerJordan, KELLER_JORDAN), (Variant::Moonlight, MOONLIGHT)] {
            let constants = Muon { variant, momentum: 0.95, nesterov: true, iterations: 5 };
            let (mut values, mut momentum) = ([1.0f32, 2.0, -1.0, 0.5, 0.25, -2.0], [0.0; 6]);
            let (machine, mut work) = ((Cpu::detect(), &pool), Work::default());
            for gradient in &gradients {
                let shape = (1, 3, 2);
                step(machine, &constants, 0.1, 0.1, shape, gradient, &mut momentum, &mut values, &mut work);
            }
            for (found, wanted) in values.iter().zip(wanted) {
                assert!((found - wanted).abs() < 1e-5, "{variant:?}: {found}, not {wanted}");
            }
        }
    }

    const KELLER_JORDAN: [f32; 6] = [0.948_01, 2.012_885, -1.172_7, 0.526_34, 0.258_329, -2.118_949];
    const MOONLIGHT: [f32; 6] = [0.971_024, 1.975_101, -1.034_576, 0.500_314, 0.248_788, -2.005_101];

    #[test]
    fn a_matrix_of_one_row_gets_the_polynomials_length() {
        let pool = Threads::start(1).unwrap();
        let mut matrix = [3.0, 4.0];
        orthogonalize(Cpu::detect(), &pool, 5, 1, 2, &mut matrix, &mut Work::default());
        let [a, b, c] = COEFFICIENTS;
        let length = (0..5).fold(1.0f32, |s, _| a * s + b * s.powi(3) + c * s.powi(5));
        assert!((matrix[0] - 0.6 * length).abs() < 1e-5 && (matrix[1] - 0.8 * length).abs() < 1e-5);
    }
}
