//! The operations of a decoder, backwards: from the gradient of a result to those of what it was made of. One file for
//! each file of forward operations.
//!
//! Everything is float32, and sums run in one order whatever the threads are. The caller gives all memory, and says
//! which gradients it wants: a frozen weight has none.

pub mod activation;
pub mod attention;
pub mod experts;
pub mod loss;
pub mod norm;
pub mod numbers;
pub mod products;
pub mod small;

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use std::vec::Vec;

    /// Numbers between -1 and 1 that look random.
    pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Compares a gradient with differences of `dy * f(x)`.
    pub(crate) fn check(what: &str, x: &[f32], dy: &[f32], dx: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) {
        const STEP: f32 = 1e-2;
        let value =
            |x: &[f32]| -> f64 { f(x).iter().zip(dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum() };
        let size = dx.iter().fold(1.0f32, |size, dx| size.max(dx.abs()));
        for at in 0..x.len() {
            let at_step = |step: f32| {
                let mut x = x.to_vec();
                x[at] += step;
                value(&x)
            };
            // Of fourth order: what is left of the third derivative is less than rounding.
            let near = at_step(STEP) - at_step(-STEP);
            let far = at_step(2.0 * STEP) - at_step(-2.0 * STEP);
            let wanted = (8.0 * near - far) / (12.0 * f64::from(STEP));
            let error = (f64::from(dx[at]) - wanted).abs();
            assert!(error < 3e-3 * f64::from(size), "{what} {at}: {}, not {wanted}", dx[at]);
        }
    }
}
