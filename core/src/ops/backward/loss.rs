//! Cross-entropy, of logits that come in chunks of the vocabulary and are never all there.
//!
//! The chunks are gone through twice: first [`Entropy::see`] adds up their exponentials, from which the loss follows;
//! then [`Entropy::gradient`] turns each chunk into its gradient. With [`Smooth`] labels the mean of the logits counts
//! as well, which [`Entropy::add_up`] takes note of.

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
    /// The sum of all, where somebody asks for their mean.
    sum: f64,
}

/// Labels of which a share goes to all the vocabulary, in equal parts: `(1 - share)` times the loss of the label, and
/// `share` times the mean of the losses of all.
#[derive(Clone, Copy, Debug)]
pub struct Smooth {
    /// The share; 0 leaves labels as they are.
    pub share: f32,
    /// How many logits a row has in all.
    pub vocab: usize,
}

impl Smooth {
    /// Labels as they are.
    pub const NONE: Smooth = Smooth { share: 0.0, vocab: 1 };
}

impl Default for Entropy {
    fn default() -> Self {
        Entropy { most: f32::NEG_INFINITY, total: 0.0, own: f32::NAN, sum: 0.0 }
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

    /// Takes note of what smooth labels need of a chunk beside that.
    pub fn add_up(&mut self, cpu: Cpu, logits: &[f32]) {
        self.sum += launch(cpu, Sum { logits });
    }

    /// The logarithm of the sum of all exponentials.
    fn log_total(&self) -> f64 {
        f64::from(self.most) + libm::log(self.total)
    }

    /// The loss of the row, in nats.
    pub fn loss(&self, smooth: Smooth) -> f64 {
        let own = f64::from(self.own);
        let aim = if smooth.share == 0.0 {
            own
        } else {
            own + f64::from(smooth.share) * (self.sum / smooth.vocab as f64 - own)
        };
        self.log_total() - aim
    }

    /// Whether no logit is larger than the label's.
    pub fn is_hit(&self) -> bool {
        self.own >= self.most
    }

    /// Turns a chunk's logits into the gradient of `scale * loss`.
    pub fn gradient(
        &self,
        cpu: Cpu,
        (first, label): (usize, usize),
        smooth: Smooth,
        scale: f32,
        logits: &mut [f32],
    ) {
        let less = scale * smooth.share / smooth.vocab as f32;
        // The exponent of the difference: near the label it is the whole of the gradient.
        launch(cpu, Shares { most: self.log_total() as f32, scale, less, logits });
        if let Some(own) = label.checked_sub(first).and_then(|at| logits.get_mut(at)) {
            *own -= scale * (1.0 - smooth.share);
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

struct Sum<'a> {
    logits: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f64 {
        // SAFETY: launched with a proven vector; pieces are whole vectors or copied into one.
        unsafe {
            let mut total = 0.0;
            for piece in self.logits.chunks(V::LANES) {
                let mut lanes = [0.0; 16];
                lanes[..piece.len()].copy_from_slice(piece);
                total += f64::from(sum(V::load(lanes.as_ptr())));
            }
            total
        }
    }
}

struct Shares<'a> {
    most: f32,
    scale: f32,
    less: f32,
    logits: &'a mut [f32],
}

impl Kernel for Shares<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Shares { most, scale, less, .. } = self;
        // SAFETY: launched with a proven vector.
        unsafe { map_in_place::<V>(self.logits, &Share { most, scale, less }) }
    }
}

struct Share {
    most: f32,
    scale: f32,
    less: f32,
}

impl Lanewise for Share {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
        // SAFETY: lane arithmetic.
        unsafe { exp(x.sub(V::splat(self.most))).mul(V::splat(self.scale)).sub(V::splat(self.less)) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::ops::backward::tests::{check, noise};
    use std::vec::Vec;

    /// Loss and gradient as they are defined, in float64: of the logarithms of all shares, the label's and the mean.
    fn defined(logits: &[f32], label: usize, share: f64) -> (f64, Vec<f64>) {
        let total: f64 = logits.iter().map(|x| libm::exp(f64::from(*x))).sum();
        let shares: Vec<f64> = logits.iter().map(|x| libm::exp(f64::from(*x)) / total).collect();
        let losses: Vec<f64> = shares.iter().map(|share| -libm::log(*share)).collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let wanted = |at| share / losses.len() as f64 + if at == label { 1.0 - share } else { 0.0 };
        let d = shares.iter().enumerate().map(|(at, found)| found - wanted(at)).collect();
        ((1.0 - share) * losses[label] + share * mean, d)
    }

    #[test]
    fn loss_and_gradient_do_not_depend_on_chunks_and_are_as_defined() {
        for cpu in Cpu::detect().variants() {
            for (vocab, label, share) in
                [(1, 0, 0.0), (1, 0, 0.3), (5, 4, 0.0), (5, 4, 1.0), (67, 20, 0.0), (67, 20, 0.1)]
            {
                let logits: Vec<f32> = noise(vocab as u64, vocab).iter().map(|x| x * 5.0).collect();
                let smooth = Smooth { share, vocab };
                let (exact, wanted) = defined(&logits, label, f64::from(share));
                for chunk in [1, 16, 30, 67] {
                    let of = |logits: &[f32]| {
                        let mut entropy = Entropy::default();
                        for (number, part) in logits.chunks(chunk).enumerate() {
                            entropy.see(cpu, number * chunk, label, part);
                            entropy.add_up(cpu, part);
                        }
                        entropy
                    };
                    let entropy = of(&logits);
                    let loss = entropy.loss(smooth);
                    assert!((loss - exact).abs() < 1e-5, "{share} of {vocab}: {loss} is not {exact}");
                    let mut d = logits.clone();
                    for (number, part) in d.chunks_mut(chunk).enumerate() {
                        entropy.gradient(cpu, (number * chunk, label), smooth, 0.5, part);
                    }
                    for (found, wanted) in d.iter().zip(&wanted) {
                        assert!(
                            (f64::from(*found) - 0.5 * wanted).abs() < 1e-6,
                            "{found}, not half of {wanted}"
                        );
                    }
                    let again = |logits: &[f32]| [of(logits).loss(smooth) as f32].to_vec();
                    check("logits", &logits, &[0.5], &d, again);
                }
            }
        }
    }
}
