//! Cross-entropy, of logits that come in chunks of the vocabulary and are never all there.
//!
//! The chunks are gone through twice: first [`Entropy::see`] adds up their exponentials, from which the loss follows;
//! then [`Entropy::gradient`] turns each chunk into its gradient.

use crate::cpu::Cpu;
use crate::ops::math::{Lanewise, exp, map_in_place, sum};
use crate::ops::vector::{Kernel, Vector, launch};

/// What is known of a row's logits.
#[derive(Clone, Copy, Debug)]
pub struct Entropy {
    /// The largest.
    most: f32,
    /// The sum of all `exp(logit - most)`.
    total: f64,
    /// The label's.
    own: f32,
}

impl Default for Entropy {
    fn default() -> Self {
        Entropy { most: f32::NEG_INFINITY, total: 0.0, own: f32::NAN }
    }
}

impl Entropy {
    /// Takes note of a chunk that begins at `first`.
    pub fn see(&mut self, cpu: Cpu, first: usize, label: usize, logits: &[f32]) {
        if let Some(own) = label.checked_sub(first).and_then(|at| logits.get(at)) {
            self.own = *own;
        }
        let most = logits.iter().fold(self.most, |most, logit| most.max(*logit));
        if self.total > 0.0 {
            self.total *= libm::exp(f64::from(self.most) - f64::from(most));
        }
        self.most = most;
        self.total += launch(cpu, Total { most, logits });
    }

    /// The logarithm of the sum of all exponentials.
    fn log_total(&self) -> f64 {
        f64::from(self.most) + libm::log(self.total)
    }

    /// The loss of the row, in nats.
    pub fn loss(&self) -> f64 {
        self.log_total() - f64::from(self.own)
    }

    /// Turns a chunk's logits into the gradient of `scale * loss`.
    pub fn gradient(&self, cpu: Cpu, first: usize, label: usize, scale: f32, logits: &mut [f32]) {
        // The exponent of the difference: near the label it is the whole of the gradient.
        launch(cpu, Shares { most: self.log_total() as f32, scale, logits });
        if let Some(own) = label.checked_sub(first).and_then(|at| logits.get_mut(at)) {
            *own -= scale;
        }
    }
}

struct Total<'a> {
    most: f32,
    logits: &'a [f32],
}

impl Kernel for Total<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f64 {
        // SAFETY: launched with a proven vector; pieces are whole vectors or copied into one.
        unsafe {
            let (mut total, most) = (0.0, V::splat(self.most));
            for piece in self.logits.chunks(V::LANES) {
                let mut lanes = [f32::NEG_INFINITY; 16];
                lanes[..piece.len()].copy_from_slice(piece);
                total += f64::from(sum(exp(V::load(lanes.as_ptr()).sub(most))));
            }
            total
        }
    }
}

struct Shares<'a> {
    most: f32,
    scale: f32,
    logits: &'a mut [f32],
}

impl Kernel for Shares<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: launched with a proven vector.
        unsafe { map_in_place::<V>(self.logits, &Share { most: self.most, scale: self.scale }) }
    }
}

struct Share {
    most: f32,
    scale: f32,
}

impl Lanewise for Share {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
        // SAFETY: lane arithmetic.
        unsafe { exp(x.sub(V::splat(self.most))).mul(V::splat(self.scale)) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::ops::backward::tests::{check, noise};
    use std::vec::Vec;

    #[test]
    fn loss_and_gradient_do_not_depend_on_chunks_and_are_differences() {
        for cpu in Cpu::detect().variants() {
            for (vocab, label) in [(1, 0), (5, 4), (67, 20)] {
                let logits: Vec<f32> = noise(vocab as u64, vocab).iter().map(|x| x * 5.0).collect();
                let exact: f64 = logits.iter().map(|x| libm::exp(f64::from(*x))).sum();
                let exact = libm::log(exact) - f64::from(logits[label]);
                for chunk in [1, 16, 30, 67] {
                    let of = |logits: &[f32]| {
                        let mut entropy = Entropy::default();
                        for (number, part) in logits.chunks(chunk).enumerate() {
                            entropy.see(cpu, number * chunk, label, &mut part.to_vec());
                        }
                        entropy
                    };
                    let entropy = of(&logits);
                    assert!((entropy.loss() - exact).abs() < 1e-5, "{} is not {exact}", entropy.loss());
                    let mut d = logits.clone();
                    for (number, part) in d.chunks_mut(chunk).enumerate() {
                        entropy.gradient(cpu, number * chunk, label, 0.5, part);
                    }
                    check("logits", &logits, &[0.5], &d, |logits| [of(logits).loss() as f32].to_vec());
                }
            }
        }
    }
}
