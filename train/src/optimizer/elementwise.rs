//! Rules for every number by itself, as torch has them.

use super::{AdamW, Sgd};

/// One step of `torch.optim.AdamW`; `steps` counts from 1.
#[allow(clippy::too_many_arguments, reason = "a rule with its constants and its memory")]
pub(super) fn adamw(
    constants: &AdamW,
    rate: f64,
    decay: f64,
    steps: u64,
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    values: &mut [f32],
) {
    let AdamW { betas: [one, two], epsilon, is_early } = *constants;
    let power = i32::try_from(steps).unwrap_or(i32::MAX);
    let (shrink, follow) = ((1.0 - rate * decay) as f32, (1.0 - one) as f32);
    let (keep, take) = (two as f32, (1.0 - two) as f32);
    let step = (rate / (1.0 - one.powi(power))) as f32;
    let root = (1.0 - two.powi(power)).sqrt();
    let epsilon = if is_early { epsilon / root } else { epsilon } as f32;
    let root = root as f32;
    for (((value, gradient), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second) {
        *first += follow * (gradient - *first);
        *second = *second * keep + take * gradient * gradient;
        *value = *value * shrink - step * (*first / (second.sqrt() / root + epsilon));
    }
}

/// One step of `torch.optim.SGD`.
pub(super) fn sgd(
    constants: &Sgd,
    rate: f64,
    decay: f64,
    steps: u64,
    gradient: &[f32],
    momentum: &mut [f32],
    values: &mut [f32],
) {
    let (keep, decay, rate) = (constants.momentum as f32, decay as f32, rate as f32);
    for ((value, gradient), momentum) in values.iter_mut().zip(gradient).zip(momentum) {
        let gradient = gradient + decay * *value;
        if keep == 0.0 {
            *value -= rate * gradient;
            continue;
        }
        *momentum = if steps == 1 { gradient } else { *momentum * keep + gradient };
        let step = if constants.nesterov { gradient + keep * *momentum } else { *momentum };
        *value -= rate * step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `p -= lr / scale * m / (eps + sqrt(v))` with `scale = (1 - b1^t) / sqrt(1 - b2^t)`.
    #[test]
    fn moonlights_constant_is_added_before_the_root_is_corrected() {
        let constants = AdamW { betas: [0.9, 0.95], epsilon: 0.1, is_early: true };
        let (mut first, mut second, mut value) = ([0.0f32], [0.0f32], [1.0f32]);
        let (mut m, mut v, mut p) = (0.0f64, 0.0f64, 1.0f64);
        for (steps, g) in [(1, 0.5f64), (2, -0.25), (3, 0.125)] {
            adamw(&constants, 0.01, 0.1, steps, &[g as f32], &mut first, &mut second, &mut value);
            (m, v) = (0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g);
            let scale = (1.0 - 0.9f64.powi(steps as i32)) / (1.0 - 0.95f64.powi(steps as i32)).sqrt();
            p = p * (1.0 - 0.01 * 0.1) - 0.01 / scale * m / (0.1 + v.sqrt());
            assert!((f64::from(value[0]) - p).abs() < 1e-6, "step {steps}: {} {p}", value[0]);
        }
    }

    /// Numbers of torch 2.9.1: three steps over the same two weights.
    #[test]
    fn steps_are_those_of_torch() {
        let gradients = [[0.5f32, -2.0], [0.25, 1.0], [-1.0, 0.125]];
        let (mut values, mut first, mut second) = ([1.0f32, -3.0], [0.0; 2], [0.0; 2]);
        let constants = AdamW { betas: [0.9, 0.95], epsilon: 1e-8, is_early: false };
        for (step, gradient) in gradients.iter().enumerate() {
            let steps = step as u64 + 1;
            adamw(&constants, 0.1, 0.1, steps, gradient, &mut first, &mut second, &mut values);
        }
        for (found, wanted) in values.iter().zip(ADAMW) {
            assert!((found - wanted).abs() < 1e-6, "{found}, not {wanted}");
        }
        for (nesterov, wanted) in [(false, MOMENTUM), (true, NESTEROV)] {
            let (mut values, mut momentum) = ([1.0f32, -3.0], [0.0; 2]);
            let constants = Sgd { momentum: 0.9, nesterov };
            for (step, gradient) in gradients.iter().enumerate() {
                sgd(&constants, 0.1, 0.1, step as u64 + 1, gradient, &mut momentum, &mut values);
            }
            for (found, wanted) in values.iter().zip(wanted) {
                assert!((found - wanted).abs() < 1e-6, "{found}, not {wanted}");
            }
        }
    }

    const ADAMW: [f32; 2] = [0.799_641_1, -2.768_983_4];
    const MOMENTUM: [f32; 2] = [0.863_523_96, -2.500_217];
    const NESTEROV: [f32; 2] = [0.877_211_15, -2.386_480_6];
}
