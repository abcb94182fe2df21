//! What a model thinks of tokens: logarithms of probabilities, from its raw logits. Penalties and temperature are the
//! sampler's and do not show here.

use crate::sampler::exp;

/// Alternatives that can be asked for at most.
pub const ALTERNATIVES_MAX: usize = 64;

/// The logarithm of a row's softmax: each logit less one number, which is kept in two parts for its precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogSoftmax {
    largest: f32,
    log_sum: f64,
}

impl LogSoftmax {
    /// Of a row of logits. Sums run in the order of ids.
    pub fn of(logits: &[f32]) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let below = |logit: f32| if logit == largest { 0.0 } else { f64::from(logit) - f64::from(largest) };
        let sum: f64 = logits.iter().map(|&logit| exp(below(logit))).sum();
        LogSoftmax { largest, log_sum: sum.ln() }
    }

    /// The logarithm of the probability of a token with this logit, in nats.
    pub fn log_probability(&self, logit: f32) -> f64 {
        // Two infinities have no difference.
        let below = if logit == self.largest { 0.0 } else { f64::from(logit) - f64::from(self.largest) };
        below - self.log_sum
    }
}

/// The most probable tokens of a row. Allocates once.
#[derive(Debug, Clone)]
pub struct Alternatives {
    list: Vec<(u32, f32)>,
    most: usize,
}

impl Alternatives {
    /// Room for `most` of them.
    pub fn new(most: usize) -> Self {
        Alternatives { list: Vec::with_capacity(most), most }
    }

    /// Takes a row: its most probable tokens with their log-probabilities, of equal ones the lower id first.
    pub fn take(&mut self, logits: &[f32], softmax: &LogSoftmax) {
        self.list.clear();
        for (id, &logit) in (0_u32..).zip(logits) {
            let is_full = self.list.len() == self.most;
            let least = if is_full { self.list.last().map(|last| last.1) } else { Some(f32::NEG_INFINITY) };
            if least.is_some_and(|least| logit > least) {
                if is_full {
                    self.list.pop();
                }
                let place = self.list.partition_point(|&(_, other)| other >= logit);
                self.list.insert(place, (id, logit));
            }
        }
        for (_, value) in &mut self.list {
            *value = softmax.log_probability(*value) as f32;
        }
    }

    /// The last row's.
    pub fn list(&self) -> &[(u32, f32)] {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alternatives(logits: &[f32], most: usize) -> Vec<u32> {
        let mut alternatives = Alternatives::new(most);
        alternatives.take(logits, &LogSoftmax::of(logits));
        assert!(alternatives.list.capacity() <= most.max(4), "it grew");
        alternatives.list().iter().map(|&(id, _)| id).collect()
    }

    #[test]
    fn log_probabilities_are_the_logarithm_of_the_softmax() {
        let of = |logits: &[f32], id: usize| LogSoftmax::of(logits).log_probability(logits[id]);
        assert!((of(&[1.0; 8], 3) + 8f64.ln()).abs() < 1e-12);
        assert!((of(&[2f32.ln(), 0.0], 1) + 3f64.ln()).abs() < 1e-6);
        assert!((of(&[1000.0, 0.0], 1) + 1000.0).abs() < 1e-9);
        assert_eq!(of(&[f32::NEG_INFINITY, 0.0], 0), f64::NEG_INFINITY);
        assert_eq!(of(&[f32::INFINITY, 0.0], 0), 0.0);
        assert_eq!(of(&[f32::INFINITY, 0.0], 1), f64::NEG_INFINITY);
    }

    #[test]
    fn alternatives_go_down_by_probability_and_up_by_id() {
        let logits = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY, 1.0];
        assert_eq!(alternatives(&logits, 0), [0_u32; 0]);
        assert_eq!(alternatives(&logits, 1), [1]);
        assert_eq!(alternatives(&logits, 4), [1, 3, 2, 0]);
        assert_eq!(alternatives(&logits, 64), [1, 3, 2, 0, 5]);
    }

    #[test]
    fn alternatives_are_those_of_a_full_sort() {
        let mut seed = 7_u32;
        let mut noise = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 26) as f32
        };
        for most in [1, 5, 64] {
            let logits: Vec<f32> = (0..500).map(|_| noise()).collect();
            let mut ids: Vec<u32> = (0..500).collect();
            ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            assert_eq!(alternatives(&logits, most), ids[..most]);
        }
    }
}
