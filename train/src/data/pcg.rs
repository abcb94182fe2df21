//! NumPy's newer generator (PCG64, as `default_rng` seeds it), with which `datasets` splits and mixes.

const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

pub(super) struct Pcg {
    state: u128,
    increment: u128,
    /// The upper half of a draw of which only the lower was asked for.
    half: Option<u32>,
}

impl Pcg {
    pub(super) fn new(seed: u64) -> Self {
        let words = seed_words(seed);
        let wide = |at: usize| (u128::from(words[at]) << 64) | u128::from(words[at + 1]);
        let mut generator = Self { state: 0, increment: (wide(2) << 1) | 1, half: None };
        generator.step();
        generator.state = generator.state.wrapping_add(wide(0));
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn bits64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn bits32(&mut self) -> u32 {
        self.half.take().unwrap_or_else(|| {
            let bits = self.bits64();
            self.half = Some((bits >> 32) as u32);
            bits as u32
        })
    }

    /// A number from 0 to below 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.bits64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number up to `most`: bits are drawn until they fit.
    fn up_to(&mut self, most: usize) -> usize {
        let mask = most.checked_ilog2().map_or(0, |bits| u32::MAX >> (31 - bits.min(31)));
        loop {
            let drawn = (self.bits32() & mask) as usize;
            if drawn <= most {
                return drawn;
            }
        }
    }

    /// All numbers below `count`, which fits 32 bits, in some order.
    pub(super) fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..count).collect();
        for index in (1..count).rev() {
            numbers.swap(index, self.up_to(index));
        }
        numbers
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_words(seed: u64) -> [u64; 4] {
    let mut constant: u32 = 0x43b0_d7e5;
    let mut hashed = |word: u32| {
        let word = word ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let word = word.wrapping_mul(constant);
        word ^ (word >> 16)
    };
    let mixed = |word: u32, other: u32| {
        let word = word.wrapping_mul(0xca01_f9dd).wrapping_sub(other.wrapping_mul(0x4973_f715));
        word ^ (word >> 16)
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hashed);
    for source in 0..pool.len() {
        for target in (0..pool.len()).filter(|target| *target != source) {
            pool[target] = mixed(pool[target], hashed(pool[source]));
        }
    }
    let mut constant: u32 = 0x8b51_f9dd;
    let mut next = |at: usize| {
        let word = pool[at % pool.len()] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let word = word.wrapping_mul(constant);
        u64::from(word ^ (word >> 16))
    };
    [0, 2, 4, 6].map(|at| next(at) | (next(at + 1) << 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_numpy() {
        // numpy.random.default_rng(seed).permutation(n), .random()
        assert_eq!(Pcg::new(42).permutation(10), [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]);
        assert_eq!(Pcg::new(7).permutation(1000)[..8], [816, 923, 151, 900, 213, 100, 851, 503]);
        let mut generator = Pcg::new(42);
        assert_eq!([generator.unit(), generator.unit()], [0.7739560485559633, 0.4388784397520523]);
    }
}
