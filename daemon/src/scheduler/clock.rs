//! Where the time comes from. Nothing else in the scheduler asks a clock, so that simulations own theirs.

use std::time::{Duration, Instant};

/// A time that only grows.
pub trait Clock: std::fmt::Debug + Send + Sync + 'static {
    /// How long it has been running.
    fn now(&self) -> Duration;
}

/// The system's: not moved by changes of the date.
#[derive(Debug, Clone, Copy)]
pub struct Monotonic(Instant);

impl Default for Monotonic {
    fn default() -> Self {
        Monotonic(Instant::now())
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}
