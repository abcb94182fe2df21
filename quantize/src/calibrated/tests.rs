//! What the methods claim, on small random matrices: GPTQ equals a plain implementation of the paper's algorithm, each
//! stage lowers the loss that it is there to lower, and threads change nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bantam_core::Cpu;
use bantam_core::layouts::Shape;
use bantam_model::pool::Threads;

use super::feedback::{Hessian, Order};
use super::linear::Work;
use super::{awq, gptq, ternary};
use crate::matrix::{Grouped, Quantized, as_f16};
use crate::nearest::gptq_scale;
use crate::noise::noise;

/// Inputs whose columns depend on one another and differ in size, as those of a model do.
fn inputs(seed: u64, rows: usize, width: usize) -> Vec<f32> {
    let mixed = noise(seed, rows * width, 2);
    let mut x = mixed.clone();
    for row in 0..rows {
        for column in 0..width {
            let neighbour = mixed[row * width + (column * 7 + 3) % width];
            x[row * width + column] += 0.8 * neighbour + 0.3 * mixed[row * width];
            x[row * width + column] *= 1.0 + (column % 5) as f32;
        }
    }
    x
}

fn with_work<T>(threads: usize, run: impl FnOnce(Work) -> T) -> T {
    let pool = Threads::start(threads).unwrap();
    run(Work { cpu: Cpu::detect(), pool: &pool })
}

fn squares(work: Work, seed: u64, width: usize) -> Vec<f32> {
    let x = inputs(seed, 4 * width, width);
    let mut squares = vec![0.0; width * width];
    work.add_cross(&x, width, &x, width, &mut squares);
    squares
}

/// Gauss and Jordan, in float64.
fn inverse(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut a = matrix.to_vec();
    let mut b: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    for pivot in 0..n {
        let by = a[pivot * n + pivot];
        (0..n).for_each(|k| {
            (a[pivot * n + k], b[pivot * n + k]) = (a[pivot * n + k] / by, b[pivot * n + k] / by)
        });
        for row in (0..n).filter(|&row| row != pivot) {
            let by = a[row * n + pivot];
            for k in 0..n {
                a[row * n + k] -= by * a[pivot * n + k];
                b[row * n + k] -= by * b[pivot * n + k];
            }
        }
    }
    b
}

/// The algorithm as its authors wrote it down: the inverse of the remaining columns' Hessian, from which a column is
/// taken out after another.
fn plain_gptq(settings: gptq::Settings, squares: &[f32], shape: Shape, values: &[f32]) -> Grouped {
    let Shape { rows, columns: n } = shape;
    let group = settings.group.unwrap_or(n);
    let mut order: Vec<usize> = (0..n).collect();
    if settings.act_order {
        order.sort_by(|&a, &b| squares[b * n + b].partial_cmp(&squares[a * n + a]).unwrap());
    }
    let mean = (0..n).map(|k| f64::from(squares[k * n + k])).sum::<f64>() / n as f64;
    let h = |i: usize, j: usize| {
        f64::from(squares[order[i] * n + order[j]])
            + if i == j { f64::from(settings.damp) * mean } else { 0.0 }
    };
    let mut w: Vec<f64> = (0..rows * n).map(|at| f64::from(values[at / n * n + order[at % n]])).collect();
    let most = f64::from((1u32 << settings.bits) - 1);
    let (mut codes, mut scales, mut zeros) =
        (vec![0; rows * n], vec![0.0; rows * n.div_ceil(group)], Vec::new());
    zeros.resize(scales.len(), 0);
    for at in 0..n {
        let left = n - at;
        let rest: Vec<f64> = (0..left * left).map(|k| h(at + k / left, at + k % left)).collect();
        let rest = inverse(&rest, left);
        for row in 0..rows {
            let number = row * n.div_ceil(group) + at / group;
            if at % group == 0 {
                let of = &w[row * n + at..row * n + (at + group).min(n)];
                let (mut least, mut largest) =
                    of.iter().fold((0.0f64, 0.0f64), |(a, b), &v| (a.min(v), b.max(v)));
                if settings.symmetric {
                    largest = largest.max(-least);
                    least = if least < 0.0 { -largest } else { least };
                }
                scales[number] = as_f16(((largest - least) / most) as f32);
                let zero = (-least / f64::from(scales[number])).round_ties_even();
                zeros[number] = if settings.symmetric { (most as u8).div_ceil(2) } else { zero as u8 };
            }
            let (scale, zero) = (f64::from(scales[number]), f64::from(zeros[number]));
            let code = ((w[row * n + at] / scale).round_ties_even() + zero).clamp(0.0, most);
            codes[row * n + order[at]] = code as u8;
            let error = (w[row * n + at] - (code - zero) * scale) / rest[0];
            (0..left).for_each(|k| w[row * n + at + k] -= error * rest[k]);
        }
    }
    let mut group_of = vec![0; n];
    order.iter().enumerate().for_each(|(place, &column)| group_of[column] = (place / group) as u32);
    let group_of = settings.act_order.then_some(group_of);
    Grouped { shape, bits: settings.bits, group, codes, scales, zeros, group_of }
}

#[test]
fn gptq_is_the_plain_algorithm() {
    let cases = [
        (4, Some(16), false, false),
        (4, None, true, true),
        (3, Some(32), true, false),
        (2, Some(8), false, true),
    ];
    for (case, (bits, group, act_order, symmetric)) in cases.into_iter().enumerate() {
        let settings = gptq::Settings { bits, group, act_order, symmetric, damp: 0.01 };
        for width in [48, 160] {
            let shape = Shape { rows: 5, columns: width };
            let values = noise(case as u64 + 1, 5 * width, 2);
            let found: Vec<Grouped> = [1, 3]
                .map(|threads| {
                    with_work(threads, |work| {
                        let squares = squares(work, 9 + case as u64, width);
                        let hessian = settings.hessian(work, &squares, width);
                        gptq::quantize(work, settings, &hessian, shape, &values)
                    })
                })
                .into();
            assert_eq!(found[0], found[1], "threads change nothing");
            let squares = with_work(1, |work| squares(work, 9 + case as u64, width));
            let wanted = plain_gptq(settings, &squares, shape, &values);
            assert_eq!(found[0].group_of, wanted.group_of);
            // float32 here and float64 there: a value between two codes may fall to either side, and draw others along.
            let same = found[0].codes.iter().zip(&wanted.codes).filter(|(a, b)| a == b).count();
            assert!(
                same * 100 >= wanted.codes.len() * 98,
                "{settings:?}, {width}: {same} of {}",
                wanted.codes.len()
            );
        }
    }
}

fn loss(squares: &[f32], width: usize, values: &[f32], found: &[f32]) -> f64 {
    let errors = values.iter().zip(found).map(|(a, b)| f64::from(a - b)).collect::<Vec<_>>();
    errors
        .chunks_exact(width)
        .flat_map(|row| {
            (0..width * width).map(move |at| row[at / width] * row[at % width] * f64::from(squares[at]))
        })
        .sum()
}

#[test]
fn feedback_loses_less_than_rounding_to_nearest() {
    with_work(2, |work| {
        let shape = Shape { rows: 24, columns: 128 };
        let values = noise(3, 24 * 128, 2);
        let real = squares(work, 4, 128);
        let alone: Vec<f32> =
            (0..128 * 128).map(|at| if at / 128 == at % 128 { real[at] } else { 0.0 }).collect();
        let settings = gptq::Settings { bits: 3, group: Some(32), ..gptq::Settings::default() };
        let [fed, nearest] = [&real, &alone].map(|squares| {
            let hessian = settings.hessian(work, squares, 128);
            let found = gptq::quantize(work, settings, &hessian, shape, &values);
            loss(&real, 128, &values, &Quantized::Grouped(found).values())
        });
        assert!(fed < 0.8 * nearest, "{fed} against {nearest}");
    });
}

#[test]
fn every_stage_of_ternary_lowers_its_loss_and_a_second_plane_most() {
    for planes in [1, 2] {
        let found = [1, 3].map(|threads| {
            with_work(threads, |work| {
                let shape = Shape { rows: 40, columns: 192 };
                let values = noise(5, 40 * 192, 2);
                let squares = squares(work, 6, 192);
                let hessian = Hessian::new(work, &squares, 192, Order::LargestFirst, 0.01);
                let settings = ternary::Settings::default();
                let (trits, stages) = ternary::quantize(work, &settings, &hessian, shape, planes, &values);
                assert_eq!(trits.trits.len(), planes * values.len());
                assert_eq!(trits.scales.len(), 40 * planes * 3);
                assert!(trits.scales.iter().all(|&scale| scale >= 0.0 && as_f16(scale) == scale));
                let found = Quantized::Trits(trits);
                let real = loss(&squares, 192, &values, &found.values());
                let whole = loss(&squares, 192, &values, &vec![0.0; values.len()]);
                // The stages' losses are of damped squares.
                let last = stages.last().unwrap().1;
                assert!((real / whole - last).abs() < 0.2 * last, "{real} of {whole}, {stages:?}");
                (found, stages)
            })
        });
        assert_eq!(found[0], found[1], "threads change nothing");
        let losses: Vec<f64> = found[0].1.iter().map(|stage| stage.1).collect();
        assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{:?}", found[0].1);
        assert!(losses[3] < [0.2, 0.03][planes - 1], "{losses:?}");
    }
}

#[test]
fn factors_of_columns_lose_less_than_rows_alone() {
    with_work(2, |work| {
        let shape = Shape { rows: 64, columns: 128 };
        let values: Vec<f32> = noise(9, 64 * 128, 2)
            .into_iter()
            .enumerate()
            .map(|(at, value)| value * (1.0 + (at % 128 % 7) as f32))
            .collect();
        let squares = squares(work, 10, 128);
        let hessian = Hessian::new(work, &squares, 128, Order::LargestFirst, 0.01);
        let settings = ternary::Settings { group: None, ..ternary::Settings::default() };
        let (rows, of_rows) = ternary::quantize(work, &settings, &hessian, shape, 1, &values);
        let (both, of_both) = ternary::columns::fitted(work, &settings, &hessian, shape, 1, &values);
        assert!(rows.columns.is_none() && rows.scales.len() == 64 && both.scales.len() == 64);
        assert!(both.columns.as_ref().is_some_and(|factors| factors.iter().all(|factor| *factor > 0.0)));
        let [of_rows, of_both] = [of_rows, of_both].map(|stages| stages.last().unwrap().1);
        assert!(of_both < 0.8 * of_rows, "{of_both} of both, {of_rows} of rows");
        let whole = loss(&squares, 128, &values, &vec![0.0; values.len()]);
        let real = loss(&squares, 128, &values, &both.values()) / whole;
        assert!((real - of_both).abs() < 0.2 * of_both, "{real} is told as {of_both}");
    });
}

#[test]
fn zeros_of_gptq_are_read_alike_by_all_tools() {
    for bits in [2, 3, 4, 8] {
        let values: Vec<f32> = (0..16).map(|at| 1.0 + at as f32).collect();
        let (scale, zero) = gptq_scale(&values, bits, false);
        assert_eq!(zero, 1, "{bits} bits");
        let most = ((1u32 << bits) - 2) as f32 * scale;
        assert!((most - 16.0).abs() < 0.02, "{bits} bits reach {most}");
    }
}

#[test]
fn awqs_searches_lower_the_loss() {
    with_work(2, |work| {
        let (shape, width) = (Shape { rows: 32, columns: 128 }, 128);
        let values = noise(7, 32 * width, 2);
        let x = inputs(8, 512, width);
        let mut squares = vec![0.0; width * width];
        work.add_cross(&x, width, &x, width, &mut squares);
        let mean = |column: usize| x.iter().skip(column).step_by(width).map(|v| v.abs()).sum::<f32>() / 512.0;
        let means: Vec<f32> = (0..width).map(mean).collect();
        let settings = awq::Settings { group: Some(64), ..awq::Settings::default() };
        let of = |scales: &[f32], clip: bool| {
            let scaled: Vec<f32> =
                values.iter().enumerate().map(|(at, value)| value * scales[at % width]).collect();
            let squares: Vec<f32> = squares
                .iter()
                .enumerate()
                .map(|(at, h)| h / (scales[at / width] * scales[at % width]))
                .collect();
            let found =
                Quantized::Grouped(awq::quantize(work, &settings, &squares, shape, &scaled, clip)).values();
            loss(&squares, width, &scaled, &found)
        };
        let inputs = awq::Inputs { squares: &squares, means: &means };
        let scales = awq::scales(work, &settings, inputs, width, &[&values]);
        let plain = of(&vec![1.0; width], false);
        let (scaled, clipped) = (of(&scales, false), of(&scales, true));
        assert!(scaled < 0.95 * plain && clipped <= scaled, "{plain}, {scaled}, {clipped}");
    });
}
