//! Norms backwards.

use crate::backend::NormKind;
use crate::ops::norm::RowNorm;

/// From `dy`, the gradient of a normalized row, to that of the row `x`; gradients of weight and bias are added up where
/// they are wanted. `dx` is written, or added to.
pub fn norm_row(
    norm: &RowNorm,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    add: bool,
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) {
    let width = x.len() as f64;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|&x| f64::from(x)).sum::<f64>() / width,
    };
    let square = |x: f64| x * x;
    let variance = x.iter().map(|&x| square(f64::from(x) - mean)).sum::<f64>() / width;
    let (mean, scale) = (mean as f32, (1.0 / libm::sqrt(variance + f64::from(norm.epsilon))) as f32);
    // Means of the gradient, and of its product with the row, once both are normalized.
    let (mut flat, mut along) = (0.0f64, 0.0f64);
    for ((x, dy), weight) in x.iter().zip(dy).zip(norm.weight) {
        let d = f64::from(dy * (weight + norm.weight_shift));
        flat += d;
        along += d * f64::from((x - mean) * scale);
    }
    let flat = if norm.kind == NormKind::Layer { (flat / width) as f32 } else { 0.0 };
    let along = (along / width) as f32;
    for (((dx, x), dy), weight) in dx.iter_mut().zip(x).zip(dy).zip(norm.weight) {
        let d = dy * (weight + norm.weight_shift);
        let step = scale * (d - flat - (x - mean) * scale * along);
        *dx = if add { *dx + step } else { step };
    }
    if let Some(dweight) = dweight {
        for ((dweight, x), dy) in dweight.iter_mut().zip(x).zip(dy) {
            *dweight += dy * ((x - mean) * scale);
        }
    }
    if let Some(dbias) = dbias {
        dbias.iter_mut().zip(dy).for_each(|(dbias, dy)| *dbias += dy);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::cpu::Cpu;
    use crate::ops::backward::tests::{check, noise};
    use std::vec;

    #[test]
    fn gradients_of_norms_are_differences() {
        for kind in [NormKind::Rms, NormKind::Layer] {
            for width in [2, 7, 64] {
                let (x, dy) = (noise(1, width), noise(2, width));
                let (weight, bias) = (noise(3, width), noise(4, width));
                let of = |weight: &[f32], bias: &[f32], x: &[f32]| {
                    let norm = RowNorm { kind, epsilon: 1e-2, weight_shift: 0.5, weight, bias: Some(bias) };
                    let mut y = x.to_vec();
                    crate::ops::norm::norm_row(Cpu::detect(), &norm, &mut y);
                    y
                };
                let norm =
                    RowNorm { kind, epsilon: 1e-2, weight_shift: 0.5, weight: &weight, bias: Some(&bias) };
                let [mut dx, mut dw, mut db] = [0; 3].map(|_| vec![0.0; width]);
                norm_row(&norm, &x, &dy, &mut dx, false, Some(&mut dw), Some(&mut db));
                check("x", &x, &dy, &dx, |x| of(&weight, &bias, x));
                check("weight", &weight, &dy, &dw, |weight| of(weight, &bias, &x));
                check("bias", &bias, &dy, &db, |bias| of(&weight, bias, &x));
                let before = dx.clone();
                norm_row(&norm, &x, &dy, &mut dx, true, None, None);
                assert!(dx.iter().zip(&before).all(|(twice, once)| (twice - 2.0 * once).abs() < 1e-5));
            }
        }
    }
}
