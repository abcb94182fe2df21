//! Normalization of rows: root mean square, or mean and variance.

use super::math::{Lanewise, load_padded, map_in_place, sum};
use super::vector::{Kernel, Vector, launch};
use crate::backend::NormKind;
use crate::cpu::Cpu;

/// A norm with its parameters at hand.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// Its statistic; the mean is taken as zero for [`NormKind::Rms`].
    pub kind: NormKind,
    /// Added under the root.
    pub epsilon: f32,
    /// Added to the weight: 1 where a checkpoint stores weights around zero.
    pub weight_shift: f32,
    /// One value per channel.
    pub weight: &'a [f32],
    /// One value per channel.
    pub bias: Option<&'a [f32]>,
}

/// Normalizes one row: `x = (x - mean) / deviation * (weight + shift) + bias`.
pub fn norm_row(cpu: Cpu, norm: &RowNorm, x: &mut [f32]) {
    assert_eq!(x.len(), norm.weight.len(), "a norm's weight has one value per channel");
    launch(cpu, Row { norm: *norm, x });
}

struct Row<'a> {
    norm: RowNorm<'a>,
    x: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let width = self.x.len() as f32;
        // SAFETY: launched with a proven vector; `map` and the totals stay inside their slices.
        unsafe {
            let mean = match self.norm.kind {
                NormKind::Rms => 0.0,
                NormKind::Layer => total::<V>(self.x) / width,
            };
            let variance = total_of_squares::<V>(self.x, mean) / width;
            let scale = 1.0 / libm::sqrtf(variance + self.norm.epsilon);
            map_in_place::<V>(self.x, &Normalized { mean, scale, norm: self.norm });
        }
    }
}

struct Normalized<'a> {
    mean: f32,
    scale: f32,
    norm: RowNorm<'a>,
}

impl Lanewise for Normalized<'_> {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, at: usize) -> V {
        // SAFETY: `load_padded` stays inside the slices.
        unsafe {
            let weight = load_padded::<V>(self.norm.weight, at).add(V::splat(self.norm.weight_shift));
            let y = x.sub(V::splat(self.mean)).mul(V::splat(self.scale)).mul(weight);
            match self.norm.bias {
                Some(bias) => y.add(load_padded(bias, at)),
                None => y,
            }
        }
    }
}

/// The sum of a row, lane by lane and then across lanes: a fixed order for a given width.
#[inline(always)]
unsafe fn total<V: Vector>(x: &[f32]) -> f32 {
    // SAFETY: `load_padded` stays inside the slice; its padding adds nothing.
    unsafe {
        let mut lanes = V::splat(0.0);
        for at in (0..x.len()).step_by(V::LANES) {
            lanes = lanes.add(load_padded(x, at));
        }
        sum(lanes)
    }
}

/// The sum of squares around a mean. Padding would count as far from the mean, so it is set to zero again.
#[inline(always)]
unsafe fn total_of_squares<V: Vector>(x: &[f32], mean: f32) -> f32 {
    let whole = x.len() / V::LANES * V::LANES;
    // SAFETY: whole vectors stay inside the slice; the array holds the widest vector.
    unsafe {
        let center = V::splat(mean);
        let mut lanes = V::splat(0.0);
        for at in (0..whole).step_by(V::LANES) {
            let d = V::load(x.as_ptr().add(at)).sub(center);
            lanes = d.mul_add(d, lanes);
        }
        if whole < x.len() {
            let mut rest = [0.0f32; 16];
            let tail = x.len() - whole;
            load_padded::<V>(x, whole).sub(center).store(rest.as_mut_ptr());
            rest[tail..].fill(0.0);
            let d = V::load(rest.as_ptr());
            lanes = d.mul_add(d, lanes);
        }
        sum(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_match_the_definition_on_every_level_and_width() {
        for cpu in Cpu::detect().variants() {
            for width in [1, 3, 16, 31, 64, 100] {
                let mut x = [0.0f32; 100];
                let mut weight = [0.0f32; 100];
                for i in 0..width {
                    x[i] = libm::sinf(i as f32 * 1.7) * 3.0 + 0.5;
                    weight[i] = 1.0 + i as f32 * 0.01;
                }
                for kind in [NormKind::Rms, NormKind::Layer] {
                    let mut out = x;
                    let (x, weight, out) = (&x[..width], &weight[..width], &mut out[..width]);
                    let norm = RowNorm { kind, epsilon: 1e-5, weight_shift: 1.0, weight, bias: Some(weight) };
                    norm_row(cpu, &norm, out);
                    let n = width as f64;
                    let mean = match kind {
                        NormKind::Rms => 0.0,
                        NormKind::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
                    };
                    let variance =
                        x.iter().map(|&v| (f64::from(v) - mean) * (f64::from(v) - mean)).sum::<f64>() / n;
                    for i in 0..width {
                        let w = f64::from(weight[i]);
                        let want = (f64::from(x[i]) - mean) / libm::sqrt(variance + 1e-5) * (w + 1.0) + w;
                        assert!((f64::from(out[i]) - want).abs() < 1e-5, "{} {width} {i}", cpu.name());
                    }
                }
            }
        }
    }
}
