//! How rates change over a run, as the schedulers of transformers have it: a factor for every step.

use std::f64::consts::PI;

/// The form of a way up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bend {
    /// Straight.
    Linear,
    /// Along a cosine.
    Cosine,
    /// One less a root.
    Root,
}

/// The stages of a run that stays at its rate for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stages {
    /// Steps at the full rate.
    pub stable: u64,
    /// Steps on the way down.
    pub decay: u64,
    /// The way up.
    pub rise: Bend,
    /// The way down.
    pub fall: Bend,
    /// The share of the rate that it begins and ends with.
    pub least: f64,
    /// Waves of a cosine on the way down; half a wave ends at the least.
    pub waves: f64,
}

/// What becomes of the rate after the warmup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// It stays.
    Constant,
    /// Straight down to zero.
    Linear,
    /// Along so many waves of a cosine, half of one as a rule, to a share of the rate.
    Cosine {
        /// Waves.
        waves: f64,
        /// The share.
        least: f64,
    },
    /// Along half a cosine to zero, so many times.
    Restarts {
        /// How many times.
        times: f64,
    },
    /// As the cosine, a step ahead: the first step has a rate, and the last one is at the least.
    CosineAhead {
        /// Waves.
        waves: f64,
        /// The share.
        least: f64,
        /// The share that the warmup begins with; without, that of one step.
        start: Option<f64>,
    },
    /// Down to a share of the rate, where it stays.
    Polynomial {
        /// The share.
        end: f64,
        /// The power of what is left of the way.
        power: f64,
    },
    /// Down as one over the root of the steps; without a warmup, from the ten thousandth.
    InverseRoot,
    /// It stays for so many steps, then goes down over so many.
    WarmupStableDecay(Stages),
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
            return self.warming(step);
        }
        let rest = steps.saturating_sub(warmup).max(1) as f64;
        let done = (step - warmup) as f64 / rest;
        match shape {
            Shape::Constant => 1.0,
            Shape::Linear => (steps.saturating_sub(step) as f64 / rest).max(0.0),
            Shape::Cosine { waves, least } => lifted(wave(waves, done), least),
            Shape::Restarts { .. } if done >= 1.0 => 0.0,
            Shape::Restarts { times } => wave(0.5, (times * done).fract()).max(0.0),
            Shape::CosineAhead { waves, least, .. } => {
                lifted(wave(waves, (step - warmup + 1) as f64 / rest), least)
            }
            Shape::Polynomial { end, power } => (1.0 - done).max(0.0).powf(power) * (1.0 - end) + end,
            Shape::InverseRoot => {
                let scale = if warmup > 0 { warmup } else { 10_000 };
                (scale as f64 / (step + scale - warmup) as f64).sqrt()
            }
            Shape::WarmupStableDecay(stages) => stages.factor(step - warmup),
        }
    }

    /// The factor of a step of the warmup.
    fn warming(&self, step: u64) -> f64 {
        let (step, warmup) = (step as f64, self.warmup as f64);
        match self.shape {
            Shape::CosineAhead { start: None, .. } => (step + 1.0) / warmup,
            Shape::CosineAhead { start: Some(start), .. } => {
                start + (1.0 - start) * step / (warmup - 1.0).max(1.0)
            }
            Shape::WarmupStableDecay(Stages { rise, least, .. }) => {
                let done = step / warmup;
                let factor = match rise {
                    Bend::Linear => done,
                    Bend::Cosine => 0.5 * (1.0 - (PI * done).cos()),
                    Bend::Root => 1.0 - (1.0 - done).sqrt(),
                };
                lifted(factor, least)
            }
            _ => step / warmup,
        }
    }
}

impl Stages {
    /// The factor of a step, counted from the end of the warmup.
    fn factor(&self, step: u64) -> f64 {
        let Some(falling) = step.checked_sub(self.stable) else { return 1.0 };
        if falling >= self.decay {
            return self.least;
        }
        let done = falling as f64 / self.decay as f64;
        let factor = match self.fall {
            Bend::Linear => 1.0 - done,
            Bend::Cosine => wave(self.waves, done),
            Bend::Root => 1.0 - done.sqrt(),
        };
        lifted(factor, self.least)
    }
}

/// A cosine between 1 and 0, of which so many waves fit into the whole way.
fn wave(waves: f64, done: f64) -> f64 {
    0.5 * (1.0 + (PI * waves * 2.0 * done).cos())
}

/// Between a share of the rate and all of it.
fn lifted(factor: f64, least: f64) -> f64 {
    (factor * (1.0 - least) + least).max(0.0)
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
        let half = 0.5_f64.sqrt();
        let [high, low] = [0.5 * (1.0 + half), 0.5 * (1.0 - half)];
        check(of(Shape::Cosine { waves: 0.5, least: 0.0 }), &[0.0, 0.5, 1.0, high, 0.5, low, 0.0]);
        check(of(Shape::Cosine { waves: 1.0, least: 0.0 }), &[0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 1.0]);
        let of_least = [0.0, 0.5, 1.0, 0.2 + 0.8 * high, 0.6, 0.2 + 0.8 * low, 0.2];
        check(of(Shape::Cosine { waves: 0.5, least: 0.2 }), &of_least);
        check(of(Shape::Restarts { times: 1.0 }), &[0.0, 0.5, 1.0, high, 0.5, low, 0.0, 0.0]);
        check(of(Shape::Restarts { times: 2.0 }), &[0.0, 0.5, 1.0, 0.5, 1.0, 0.5, 0.0, 0.0]);
        let ahead = |start| of(Shape::CosineAhead { waves: 0.5, least: 0.2, start });
        check(ahead(None), &[0.5, 1.0, 0.2 + 0.8 * high, 0.6, 0.2 + 0.8 * low, 0.2]);
        check(ahead(Some(0.3)), &[0.3, 1.0, 0.2 + 0.8 * high, 0.6, 0.2 + 0.8 * low, 0.2]);
        let polynomial = |power| of(Shape::Polynomial { end: 0.1, power });
        check(polynomial(1.0), &[0.0, 0.5, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]);
        check(polynomial(2.0), &[0.0, 0.5, 1.0, 0.606_25, 0.325, 0.156_25, 0.1, 0.1]);
        check(of(Shape::InverseRoot), &[0.0, 0.5, 1.0, (2.0_f64 / 3.0).sqrt(), half]);
        let stages =
            Stages { stable: 2, decay: 4, rise: Bend::Linear, fall: Bend::Cosine, least: 0.0, waves: 0.5 };
        let of = |stages| of(Shape::WarmupStableDecay(stages));
        check(of(stages), &[0.0, 0.5, 1.0, 1.0, 1.0, high, 0.5, low, 0.0]);
        let straight = Stages { fall: Bend::Linear, least: 0.2, ..stages };
        check(of(straight), &[0.2, 0.6, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]);
        let rooted = Stages { rise: Bend::Root, fall: Bend::Root, ..stages };
        let quarter = 0.75_f64.sqrt();
        check(of(rooted), &[0.0, 1.0 - half, 1.0, 1.0, 1.0, 0.5, 1.0 - half, 1.0 - quarter, 0.0]);
        let bent = Stages { rise: Bend::Cosine, waves: 1.0, ..stages };
        check(of(bent), &[0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.5, 0.0]);
    }
}
