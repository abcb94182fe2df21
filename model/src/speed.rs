//! How fast this machine is, and how fast a model runs on it, measured side by side so that the ratio means something
//! on a machine whose speed drifts.

use std::time::Instant;

use bantam_core::ops::ceiling;
use bantam_core::{Cpu, Pool};
use memmap2::MmapMut;
use std::sync::Mutex;

use crate::engine::{Chunk, Engine, StepError};
use crate::memory;
use crate::pool::Threads;

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Spread { median: values[values.len() / 2], least: values[0], most: values[last] }
    }
}

/// Threads and a block of memory to measure this machine with.
#[derive(Debug)]
pub struct Machine {
    cpu: Cpu,
    pool: Threads,
    block: MmapMut,
}

impl Machine {
    /// Takes `bytes` of memory, more than any cache holds, and touches them.
    pub fn new(cpu: Cpu, threads: usize, bytes: usize) -> std::io::Result<Self> {
        let mut block = memory::region(bytes)?;
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        Ok(Machine { cpu, pool: Threads::start(threads)?, block })
    }

    /// Bytes per second that all threads read together, each its own part in order.
    pub fn read_bandwidth(&self) -> f64 {
        let threads = self.pool.threads();
        let part = self.block.len() / threads;
        self.timed(self.block.len() as f64, |thread| {
            ceiling::read(self.cpu, &self.block[thread * part..][..part])
        })
    }

    /// Float32 operations per second.
    pub fn float32(&self) -> f64 {
        let (_, operations) = ceiling::multiply_add(self.cpu, ROUNDS);
        self.timed(operations as f64 * self.pool.threads() as f64, |_| {
            ceiling::multiply_add(self.cpu, ROUNDS).0
        })
    }

    /// bfloat16 dot operations per second, where the processor has them.
    pub fn bfloat16(&self) -> Option<f64> {
        let (_, operations) = ceiling::dot_bf16(self.cpu, ROUNDS)?;
        let all = operations as f64 * self.pool.threads() as f64;
        Some(self.timed(all, |_| ceiling::dot_bf16(self.cpu, ROUNDS).map_or(0.0, |(check, _)| check)))
    }

    /// int8 dot operations per second, where the processor has them.
    pub fn int8(&self) -> Option<f64> {
        let (_, operations) = ceiling::dot_int8(self.cpu, ROUNDS)?;
        let all = operations as f64 * self.pool.threads() as f64;
        Some(self.timed(all, |_| ceiling::dot_int8(self.cpu, ROUNDS).map_or(0.0, |(check, _)| check as f32)))
    }

    /// What a planner asks of a processor and its memory.
    pub fn rates(&self) -> Rates {
        // The first round wakes the threads.
        let rounds = |rate: &dyn Fn() -> f64| {
            let found: Vec<f64> = (0..=ROUNDS_COUNTED).map(|_| rate()).collect();
            Spread::of(&found[1..]).median
        };
        Rates {
            read: rounds(&|| self.read_bandwidth()),
            compute: rounds(&|| self.int8().unwrap_or_else(|| self.float32())),
        }
    }

    fn timed(&self, amount: f64, work: impl Fn(usize) -> f32 + Sync) -> f64 {
        let check = Mutex::new(0.0f32);
        let start = Instant::now();
        self.pool.run(self.pool.threads(), &|thread| {
            let found = work(thread);
            *check.lock().expect("no holder panics") += found;
        });
        let seconds = start.elapsed().as_secs_f64();
        std::hint::black_box(check);
        amount / seconds
    }
}

/// Of a machine without its cards; medians.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Bytes per second that all threads read of main memory.
    pub read: f64,
    /// Operations per second of all threads, on int8 where the processor has dot products of them.
    pub compute: f64,
}

/// Rounds that a median is of.
const ROUNDS_COUNTED: usize = 5;
/// Long enough to outlast a scheduler's slice: about 30 ms.
const ROUNDS: usize = 4_000_000;

/// Tokens per second of reading a prompt of `tokens` tokens.
pub fn prefill(engine: &mut Engine, tokens: usize) -> Result<f64, StepError> {
    let prompt: Vec<u32> = (0..tokens).map(|i| (i * 7919 % engine.spec().vocab) as u32).collect();
    let Some(sequence) = engine.open() else {
        return Err(StepError::Sequence(0));
    };
    let start = Instant::now();
    engine.prefill::<StepError>(sequence, &prompt, |_, _, _| Ok(()))?;
    let last = engine.rows() - 1;
    std::hint::black_box(engine.logits(&[last]));
    let seconds = start.elapsed().as_secs_f64();
    engine.close(sequence);
    Ok(tokens as f64 / seconds)
}

/// Tokens per second of writing `tokens` tokens after one.
pub fn decode(engine: &mut Engine, tokens: usize) -> Result<f64, StepError> {
    let Some(sequence) = engine.open() else {
        return Err(StepError::Sequence(0));
    };
    engine.step(&[Chunk { sequence, tokens: &[1] }])?;
    let start = Instant::now();
    for i in 0..tokens {
        let token = (i * 7919 % engine.spec().vocab) as u32;
        engine.step(&[Chunk { sequence, tokens: &[token] }])?;
        std::hint::black_box(engine.logits(&[0]));
    }
    let seconds = start.elapsed().as_secs_f64();
    engine.close(sequence);
    Ok(tokens as f64 / seconds)
}
