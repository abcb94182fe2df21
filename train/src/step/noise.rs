//! Noise on embeddings while a model is trained (NEFTune, as transformers has it): even within a bound that falls with
//! the root of how many numbers a row of the batch has. What is added is computed from places, so that a resumed run
//! adds the same.

use super::dropout::mixed;

/// Beside the seeds of what is dropped.
const OWN: u64 = 0x4e45_4654;

/// Noise for a batch of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Noise {
    alpha: f32,
    seed: u64,
    moment: u64,
    /// Of the batch's rows.
    columns: usize,
}

impl Noise {
    /// So much; `None` where there is none.
    pub(super) fn new(alpha: f32, seed: u64) -> Option<Noise> {
        (alpha > 0.0).then_some(Noise { alpha, seed, moment: 0, columns: 1 })
    }

    /// For the batch of this number, whose rows are so wide.
    pub(super) fn at(self, moment: u64, columns: usize) -> Noise {
        Noise { moment, columns, ..self }
    }

    /// Adds it to the embeddings of a batch, each `hidden` wide.
    pub(super) fn apply(&self, hidden: usize, x: &mut [f32]) {
        let bound = self.alpha / (self.columns.max(1) as f32 * hidden as f32).sqrt();
        let key = mixed(mixed(self.seed ^ OWN) ^ self.moment);
        for (at, x) in x.iter_mut().enumerate() {
            // From -1 up to 1, in steps of a float's last place.
            let drawn = (mixed(key ^ at as u64) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
            *x += bound * drawn;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_even_within_its_bound_and_another_at_every_moment() {
        let noise = Noise::new(5.0, 42).expect("there is some");
        let added = |noise: Noise| {
            let mut x = vec![0.0f32; 64 * 250];
            noise.apply(64, &mut x);
            x
        };
        let first = added(noise.at(3, 250));
        // 5 / sqrt(250 * 64)
        let bound = 0.039_528_47;
        let most = first.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert!(most <= bound && most > 0.999 * bound, "{most}");
        let (mut sum, mut squares) = (0.0, 0.0);
        for x in first.iter().map(|x| f64::from(x / bound)) {
            (sum, squares) = (sum + x, squares + x * x);
        }
        let count = first.len() as f64;
        assert!((sum / count).abs() < 0.015 && (squares / count - 1.0 / 3.0).abs() < 0.01, "{sum} {squares}");
        assert_eq!(first, added(noise.at(3, 250)));
        let wider = added(noise.at(3, 1000));
        assert!(first.iter().zip(&wider).all(|(a, b)| (a - 2.0 * b).abs() < 1e-7), "a wider row has less");
        let others = [noise.at(4, 250), Noise::new(5.0, 43).expect("there is some").at(3, 250)];
        for other in others.map(added) {
            let near = first.iter().zip(&other).filter(|(a, b)| (*a - *b).abs() < 1e-4).count();
            assert!(near < 100, "{near}");
        }
        assert!(Noise::new(0.0, 1).is_none());
    }
}
