//! What an adapter does not see of its inputs while it is trained. Which elements that are is computed from their
//! places, so that a layer that is run once more, and a run that is resumed, drop the same ones.

/// Dropout at a moment of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Dropout {
    share: f32,
    seed: u64,
    moment: u64,
}

impl Dropout {
    /// Of so large a share; `None` where nothing is dropped.
    pub(crate) fn new(share: f32, seed: u64) -> Option<Dropout> {
        (share > 0.0).then_some(Dropout { share, seed, moment: 0 })
    }

    /// At the moment of this number.
    pub(crate) fn at(self, moment: u64) -> Dropout {
        Dropout { moment, ..self }
    }

    /// Drops elements of the input of a change, and makes the others larger for it: also of its gradient.
    pub(crate) fn apply(&self, change: usize, x: &mut [f32]) {
        let least = (f64::from(self.share) * f64::from(1u32 << 24)) as u64;
        let factor = if self.share < 1.0 { 1.0 / (1.0 - self.share) } else { 0.0 };
        let key = mixed(mixed(mixed(self.seed) ^ self.moment) ^ change as u64);
        for (at, x) in x.iter_mut().enumerate() {
            *x *= if mixed(key ^ at as u64) >> 40 >= least { factor } else { 0.0 };
        }
    }
}

/// A number that looks random, of any: the end of SplitMix64.
pub(super) fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_dropped_elsewhere_at_every_moment() {
        let dropout = Dropout::new(0.25, 42).expect("something is dropped");
        let ones = |dropout: Dropout, change| {
            let mut x = vec![1.0f32; 10_000];
            dropout.apply(change, &mut x);
            x
        };
        let first = ones(dropout.at(7), 3);
        let dropped = first.iter().filter(|x| **x == 0.0).count();
        assert!((2300..2700).contains(&dropped), "{dropped}");
        assert!(first.iter().all(|x| *x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-6));
        assert_eq!(first, ones(dropout.at(7), 3));
        for other in [ones(dropout.at(8), 3), ones(dropout.at(7), 4)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((5800..6700).contains(&same), "{same}");
        }
        assert!(Dropout::new(0.0, 1).is_none());
        assert!(ones(Dropout::new(1.0, 1).expect("all is"), 0).iter().all(|x| *x == 0.0));
    }
}
