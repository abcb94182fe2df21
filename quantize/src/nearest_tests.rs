//! Methods without calibration: what they promise, and what they must survive.
use super::*;
use crate::noise::noise;

fn dense(seed: u64, rows: usize, columns: usize) -> Dense {
    Dense { name: "m".to_owned(), shape: Shape { rows, columns }, values: noise(seed, rows * columns, 3) }
}

fn error(values: &[f32], trits: &[i8], scale: f32) -> f64 {
    values.iter().zip(trits).map(|(value, trit)| f64::from(value - f32::from(*trit) * scale).powi(2)).sum()
}

#[test]
fn no_threshold_is_better_than_the_optimal_one() {
    for seed in 1..50 {
        let values = noise(seed, 64, 3);
        let mut trits = [0; 64];
        let scale = ternary_group(&values, Fit::Optimal, &mut trits);
        let found = error(&values, &trits, scale);
        let mut sorted: Vec<f32> = values.iter().map(|value| value.abs()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for count in 1..=64 {
            let best = sorted[..count].iter().sum::<f32>() / count as f32;
            let trits: Vec<i8> = values
                .iter()
                .map(|value| if value.abs() >= sorted[count - 1] { value.signum() as i8 } else { 0 })
                .collect();
            assert!(found <= error(&values, &trits, best) * 1.001, "seed {seed}, {count} of 64");
        }
        let absmean = ternary_group(&values, Fit::Absmean, &mut trits);
        assert!(found <= error(&values, &trits, absmean), "seed {seed}");
    }
}

#[test]
fn zeros_and_extremes_stay_finite() {
    let forms = [
        Form::FourBit { normal: true, nested: true },
        Form::FourBit { normal: false, nested: false },
        Form::Int8,
        Form::Mxfp4,
        Form::Hqq { bits: 4, group: 64 },
        Form::Gptq { bits: 4, group: Some(64), symmetric: true, act_order: false },
        Form::Gptq { bits: 3, group: None, symmetric: false, act_order: false },
        Form::Awq { group: Some(64), zero_point: true },
        Form::Ternary { group: Some(64), planes: 2, fit: Fit::Optimal },
        Form::Ternary { group: None, planes: 1, fit: Fit::Absmean },
    ];
    for form in forms {
        for value in [0.0, 1e-30, 1e30, -1e30, f32::MIN_POSITIVE] {
            let mut dense = dense(1, 32, 64);
            dense.values.fill(value);
            dense.values[64..].iter_mut().step_by(3).for_each(|value| *value *= -0.5);
            let made = quantize(form, &dense, Dtype::F32, 2);
            assert!(
                made.values().iter().all(|made| made.is_finite() || value.abs() > 1e20),
                "{form:?} {value}"
            );
            if value == 0.0 {
                assert!(made.values().iter().all(|made| *made == 0.0), "{form:?}");
            }
        }
    }
}

#[test]
fn threads_make_no_difference() {
    for form in [
        Form::FourBit { normal: true, nested: true },
        Form::Hqq { bits: 3, group: 64 },
        Form::Ternary { group: Some(64), planes: 2, fit: Fit::Optimal },
    ] {
        let dense = dense(7, 96, 2048);
        let one = quantize(form, &dense, Dtype::Bf16, 1);
        assert!(one == quantize(form, &dense, Dtype::Bf16, 5), "{form:?}");
    }
}

#[test]
fn more_bits_and_planes_lose_less() {
    let dense = dense(3, 64, 256);
    let loss = |form: Form| {
        let made = quantize(form, &dense, Dtype::F32, 2).values();
        made.iter().zip(&dense.values).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let gptq = |bits| loss(Form::Gptq { bits, group: Some(64), symmetric: false, act_order: false });
    assert!(gptq(8) < gptq(4) && gptq(4) < gptq(3) && gptq(3) < gptq(2));
    let hqq = |bits| loss(Form::Hqq { bits, group: 64 });
    assert!(hqq(8) < hqq(4) && hqq(4) < hqq(3) && hqq(3) < hqq(2));
    let ternary = |planes, fit| loss(Form::Ternary { group: Some(64), planes, fit });
    assert!(ternary(2, Fit::Optimal) < ternary(1, Fit::Optimal));
    assert!(ternary(1, Fit::Optimal) < ternary(1, Fit::Absmean));
}
