//! The largest singular values of a matrix with their vectors: what PiSSA begins with.
//!
//! Small matrices are turned by Jacobi's rotations until their rows stand at right angles, which is exact. Of larger
//! ones a few directions are followed by powers of the matrix; the small matrix that these leave is then treated so.

use bantam_core::Cpu;
use bantam_core::layouts::Shape;
use bantam_core::ops::backward::numbers::{Matrix as Operand, Numbers};
use bantam_model::pool::Threads;

use crate::data::Twister;
use crate::product::product;

/// The shorter side of a matrix that rotations take seconds for.
const SMALL: usize = 384;
/// Directions that are followed beside those that are wanted.
const BESIDE: usize = 16;
/// Powers at most, and the least change of a singular value that is worth another one.
const POWERS: usize = 400;
const CHANGE: f64 = 1e-7;
/// Turns of all pairs; ten are many.
const TURNS: usize = 60;

/// A matrix, row by row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// `matrix ~ left^T * values * right`; both have a row for every value, the largest first.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) left: Vec<Vec<f64>>,
    pub(super) values: Vec<f64>,
    pub(super) right: Vec<Vec<f64>>,
}

/// The largest `rank`, of which there are as many. Without `powers` they are exact.
pub(super) fn largest(machine: (Cpu, &Threads), matrix: Matrix, rank: usize, powers: Option<usize>) -> Parts {
    let Matrix { values, rows, columns } = matrix;
    let shorter = rows.min(columns);
    let mut parts = match powers {
        None if shorter <= SMALL => {
            let is_wide = rows <= columns;
            let vectors = (0..shorter).map(|at| match is_wide {
                true => values[at * columns..][..columns].iter().map(|x| f64::from(*x)).collect(),
                false => values[at..].iter().step_by(columns).map(|x| f64::from(*x)).collect(),
            });
            let turned = turned(vectors.collect());
            if is_wide { turned } else { Parts { left: turned.right, right: turned.left, ..turned } }
        }
        _ => followed(machine, matrix, (rank + BESIDE).min(shorter), rank, powers),
    };
    parts.left.truncate(rank);
    parts.values.truncate(rank);
    parts.right.truncate(rank);
    parts
}

/// Singular values and vectors of rows, by rotations of pairs.
fn turned(mut rows: Vec<Vec<f64>>) -> Parts {
    let count = rows.len();
    let mut left: Vec<Vec<f64>> =
        (0..count).map(|at| (0..count).map(|other| f64::from(at == other)).collect()).collect();
    for _ in 0..TURNS {
        let mut is_done = true;
        for first in 0..count {
            for second in first + 1..count {
                let (a, b) = (dot(&rows[first], &rows[first]), dot(&rows[second], &rows[second]));
                let along = dot(&rows[first], &rows[second]);
                if along.abs() <= 1e-14 * (a * b).sqrt() || along == 0.0 {
                    continue;
                }
                is_done = false;
                let tilt = (b - a) / (2.0 * along);
                let tangent = tilt.signum() / (tilt.abs() + (1.0 + tilt * tilt).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                for all in [&mut rows, &mut left] {
                    turn(all, first, second, cosine, cosine * tangent);
                }
            }
        }
        if is_done {
            break;
        }
    }
    // Rows of `left` are those of the rotation: its columns belong to the values.
    let mut order: Vec<(f64, usize)> = rows.iter().map(|row| dot(row, row).sqrt()).zip(0..).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let right = order.iter().map(|&(length, at)| {
        let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
        rows[at].iter().map(|x| x * factor).collect()
    });
    Parts {
        right: right.collect(),
        left: order.iter().map(|&(_, at)| left[at].clone()).collect(),
        values: order.iter().map(|&(length, _)| length).collect(),
    }
}

fn turn(all: &mut [Vec<f64>], first: usize, second: usize, cosine: f64, sine: f64) {
    let (before, after) = all.split_at_mut(second);
    for (a, b) in before[first].iter_mut().zip(&mut after[0]) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The same of so many directions that powers of the matrix leave.
fn followed(
    (cpu, pool): (Cpu, &Threads),
    matrix: Matrix,
    count: usize,
    rank: usize,
    powers: Option<usize>,
) -> Parts {
    let Matrix { values, rows, columns } = matrix;
    let mut generator = Twister::new(0);
    let mut draw = || f64::from(generator.bits32()) / f64::from(u32::MAX) - 0.5;
    let mut right: Vec<Vec<f64>> = (0..count).map(|_| (0..columns).map(|_| draw()).collect()).collect();
    upright(&mut right);
    let (mut words, mut before) = (Vec::new(), vec![0.0; rank]);
    for power in 0.. {
        // Images of the directions.
        let (images_of, shape) = (flat(&right), Shape { rows: count, columns });
        let directions = Operand { shape, numbers: Numbers::Rows(&images_of), turned: false };
        let mut images = vec![0.0; rows * count];
        product(cpu, pool, values, directions, &mut images, &mut words);
        let left: Vec<Vec<f64>> = (0..count)
            .map(|at| images[at..].iter().step_by(count).map(|x| f64::from(*x)).collect())
            .collect();
        let lengths = |parts: &Parts| parts.values[..rank].to_vec();
        let is_last = powers.is_some_and(|powers| power >= powers) || power >= POWERS;
        if is_last || powers.is_none() && power % 8 == 7 {
            let Parts { left: turns, values, right: left } = turned(left.clone());
            let mixed = |turn: &Vec<f64>| {
                let mut sum = vec![0.0; columns];
                for (factor, row) in turn.iter().zip(&right) {
                    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
                }
                sum
            };
            let parts = Parts { left, values, right: turns.iter().map(mixed).collect() };
            let now = lengths(&parts);
            let is_near = now.iter().zip(&before).all(|(now, before)| (now - before).abs() <= CHANGE * now);
            if is_last || is_near {
                return parts;
            }
            before = now;
        }
        let mut left = left;
        upright(&mut left);
        let (shape, numbers) = (Shape { rows, columns }, Numbers::Rows(values));
        let mut back = vec![0.0; count * columns];
        product(cpu, pool, &flat(&left), Operand { shape, numbers, turned: true }, &mut back, &mut words);
        right = back.chunks_exact(columns).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
        upright(&mut right);
    }
    unreachable!("the last power returns")
}

fn flat(rows: &[Vec<f64>]) -> Vec<f32> {
    rows.iter().flatten().map(|x| *x as f32).collect()
}

/// Makes rows stand at right angles, each of length one.
fn upright(rows: &mut [Vec<f64>]) {
    for at in 0..rows.len() {
        // Twice is enough.
        for _ in 0..2 {
            let (before, rest) = rows.split_at_mut(at);
            let row = &mut rest[0];
            for other in before {
                let along = dot(other, row);
                row.iter_mut().zip(other).for_each(|(x, other)| *x -= along * *other);
            }
            let length = dot(row, row).sqrt();
            let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|at| ((at * 37 + 11) as f32 * 0.7).sin() + (at as f32 * 0.01).cos()).collect()
    }

    /// What is left of a matrix without its parts.
    fn rest(matrix: Matrix, parts: &Parts) -> f64 {
        let mut square = 0.0;
        for row in 0..matrix.rows {
            for column in 0..matrix.columns {
                let sum = |at: usize| parts.left[at][row] * parts.values[at] * parts.right[at][column];
                let held: f64 = (0..parts.values.len()).map(sum).sum();
                square += (f64::from(matrix.values[row * matrix.columns + column]) - held).powi(2);
            }
        }
        square.sqrt()
    }

    #[test]
    fn all_parts_are_the_matrix_and_the_first_leave_least() {
        let pool = Threads::start(2).unwrap();
        for (rows, columns) in [(5, 9), (9, 5), (40, 33), (1, 4)] {
            let values = matrix(rows, columns);
            let matrix = Matrix { values: &values, rows, columns };
            let of = |rank, powers| largest((Cpu::detect(), &pool), matrix, rank, powers);
            let all = of(rows.min(columns), None);
            assert!(rest(matrix, &all) < 1e-6 * all.values[0].max(1.0), "{rows} x {columns}");
            let rank = 3.min(rows.min(columns));
            // By the theorem of Eckart and Young the rest has the length of the values that are left out.
            let left: f64 = all.values[rank..].iter().map(|x| x * x).sum::<f64>().sqrt();
            for powers in [None, Some(16)] {
                let found = rest(matrix, &of(rank, powers));
                assert!(
                    (found - left).abs() < 1e-4 * all.values[0],
                    "{rows} x {columns}: {found}, not {left}"
                );
            }
        }
    }

    #[test]
    fn large_matrices_have_their_largest_parts_found() {
        let pool = Threads::start(2).unwrap();
        let (rows, columns) = (SMALL + 6, SMALL + 30);
        // Of known values: 100, 50, 25 and little more.
        let axis = |at: usize, size: usize| -> Vec<f64> {
            let mut axis: Vec<f64> =
                (0..size).map(|i| ((i * (at + 2)) as f64 * 0.37 + at as f64).sin()).collect();
            let length = dot(&axis, &axis).sqrt();
            axis.iter_mut().for_each(|x| *x /= length);
            axis
        };
        let mut left: Vec<Vec<f64>> = (0..4).map(|at| axis(at, rows)).collect();
        let mut right: Vec<Vec<f64>> = (0..4).map(|at| axis(at + 7, columns)).collect();
        upright(&mut left);
        upright(&mut right);
        let wanted = [100.0, 50.0, 25.0, 0.1];
        let mut values = vec![0.0f32; rows * columns];
        for (at, x) in values.iter_mut().enumerate() {
            let sum = |i: usize| wanted[i] * left[i][at / columns] * right[i][at % columns];
            *x = (0..4).map(sum).sum::<f64>() as f32;
        }
        let parts = largest((Cpu::detect(), &pool), Matrix { values: &values, rows, columns }, 3, None);
        for (found, wanted) in parts.values.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-4 * wanted, "{found}, not {wanted}");
        }
        for at in 0..3 {
            let same = dot(&parts.left[at], &left[at]) * dot(&parts.right[at], &right[at]);
            assert!((same - 1.0).abs() < 1e-4, "{at}: {same}");
        }
    }
}
