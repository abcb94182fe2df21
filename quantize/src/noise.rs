//! Numbers for tests that are the same in every run.

/// Numbers between -1 and 1, each the product of `factors` drawn ones: the more factors, the more of them are small.
pub(crate) fn noise(seed: u64, count: usize, factors: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| (0..factors).map(|_| next()).product()).collect()
}
