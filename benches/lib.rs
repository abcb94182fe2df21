//! The kernel benches: what is measured, how, and how it is printed. `kernels.rs` runs them at full size, `tiny.rs`
//! inside `cargo test`. Everything runs on one thread; `bantam bench` measures whole models on all of them, and
//! `synthetic.rs` writes checkpoints for it and for other programs.
#![forbid(unsafe_code)]

pub mod attention;
pub mod case;
pub mod ceilings;
mod lookup;
pub mod matrix;
pub mod synthetic;
pub mod table;

/// Values in -1..1 that depend on the seed alone.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
    }
}

/// `count` values of [`noise`].
fn noises(seed: u64, count: usize) -> Vec<f32> {
    let mut next = noise(seed);
    (0..count).map(|_| next()).collect()
}
