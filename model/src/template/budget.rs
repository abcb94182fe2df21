//! What one rendering may cost: steps of the machine, and bytes it makes or looks at.
//!
//! Bytes are counted as they are made and not given back, so the sum also bounds the time spent on them.

use std::cell::Cell;

use super::Fault;

/// Expressions and statements. A conversation of a thousand messages through a long template takes some 300,000.
const STEPS: u64 = 4_000_000;
/// Bytes. A conversation of 128k tokens is half a megabyte and is copied a few times.
const BYTES: u64 = 128 << 20;
/// Macros, blocks and brackets inside one another while running.
const DEPTH: u32 = 600;

#[derive(Debug)]
pub(super) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    depth: Cell<u32>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { steps: Cell::new(STEPS), bytes: Cell::new(BYTES), depth: Cell::new(DEPTH) }
    }

    /// To be asked before `bytes` are made.
    pub(super) fn take(&self, bytes: usize) -> Result<(), Fault> {
        match self.bytes.get().checked_sub(bytes as u64) {
            Some(left) => {
                self.bytes.set(left);
                Ok(())
            }
            None => Err(Fault::Limit(format!("it makes more than {} MiB of text and lists", BYTES >> 20))),
        }
    }

    pub(super) fn step(&self) -> Result<(), Fault> {
        match self.steps.get().checked_sub(1) {
            Some(left) => {
                self.steps.set(left);
                Ok(())
            }
            None => Err(Fault::Limit(format!("it takes more than {STEPS} steps"))),
        }
    }

    /// One level further in; `leave` undoes it.
    pub(super) fn enter(&self) -> Result<(), Fault> {
        self.step()?;
        match self.depth.get().checked_sub(1) {
            Some(left) => {
                self.depth.set(left);
                Ok(())
            }
            None => Err(Fault::Limit("macros, blocks and brackets nest too deeply".to_owned())),
        }
    }

    pub(super) fn leave(&self) {
        self.depth.set(self.depth.get() + 1);
    }
}
