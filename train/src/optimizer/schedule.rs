//! How rates change over a run, as the schedulers of transformers have it: a factor for every step.

use std::f64::consts::PI;

/// What becomes of the rate after the warmup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// It stays.
    Constant,
    /// Straight down to zero.
    Linear,
    /// Along half a cosine to zero.
    Cosine,
    /// Straight down to a share of the rate, where it stays.
    Polynomial {
        /// The share.
        end: f64,
    },
    /// Down as one over the root of the steps; without a warmup, from the ten thousandth.
    InverseRoot,
    /// It stays for so many steps, then goes down along half a cosine over so many, to zero.
    WarmupStableDecay {
        /// Steps at the full rate.
        stable: u64,
        /// Steps on the way down.
        decay: u64,
    },
}

/// A schedule of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// After the warmup.
    pub shape: Shape,
    /// Steps on the way up from zero.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
}

impl Schedule {
    /// The factor of a step, counted from 0.
    pub fn factor(&self, step: u64) -> f64 {
        let Schedule { shape, warmup, steps } = *self;
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let rest = steps.saturating_sub(warmup).max(1) as f64;
        let done = (step - warmup) as f64 / rest;
        match shape {
            Shape::Constant => 1.0,
            Shape::Linear => (steps.saturating_sub(step) as f64 / rest).max(0.0),
            Shape::Cosine => (0.5 * (1.0 + (PI * done).cos())).max(0.0),
            Shape::Polynomial { end } => (1.0 - done).max(0.0) * (1.0 - end) + end,
            Shape::InverseRoot => {
                let scale = if warmup > 0 { warmup } else { 10_000 };
                (scale as f64 / (step + scale - warmup) as f64).sqrt()
            }
            Shape::WarmupStableDecay { stable, .. } if step < warmup + stable => 1.0,
            Shape::WarmupStableDecay { stable, decay } if step < warmup + stable + decay => {
                let done = (step - warmup - stable) as f64 / decay.max(1) as f64;
                (0.5 * (1.0 + (PI * done).cos())).max(0.0)
            }
            Shape::WarmupStableDecay { .. } => 0.0,
        }
    }

    /// LLaMA-Factory's division of a run: a third of what follows the warmup is stable.
    pub fn warmup_stable_decay(warmup: u64, steps: u64) -> Schedule {
        let rest = steps.saturating_sub(warmup);
        let stable = rest / 3;
        Schedule { shape: Shape::WarmupStableDecay { stable, decay: rest - stable }, warmup, steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_those_of_transformers() {
        let of = |shape| Schedule { shape, warmup: 2, steps: 6 };
        let check = |schedule: Schedule, wanted: &[f64]| {
            for (step, wanted) in wanted.iter().enumerate() {
                let found = schedule.factor(step as u64);
                assert!((found - wanted).abs() < 1e-12, "{schedule:?} {step}: {found}, not {wanted}");
            }
        };
        check(of(Shape::Constant), &[0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        check(of(Shape::Linear), &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        check(
            of(Shape::Cosine),
            &[0.0, 0.5, 1.0, 0.853_553_390_593_273_8, 0.5, 0.146_446_609_406_726_24, 0.0],
        );
        check(of(Shape::Polynomial { end: 0.1 }), &[0.0, 0.5, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]);
        check(of(Shape::InverseRoot), &[0.0, 0.5, 1.0, (2.0_f64 / 3.0).sqrt(), 0.5_f64.sqrt()]);
        let stable = Schedule::warmup_stable_decay(2, 8);
        assert_eq!(stable.shape, Shape::WarmupStableDecay { stable: 2, decay: 4 });
        check(
            stable,
            &[0.0, 0.5, 1.0, 1.0, 1.0, 0.853_553_390_593_273_8, 0.5, 0.146_446_609_406_726_24, 0.0],
        );
    }
}
