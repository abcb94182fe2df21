//! An engine that computes nothing: it takes the time it is told to take, and its logits follow from the last token and
//! its position. Tests and the bench of the scheduler's own cost run on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bantam_model::engine::{Chunk, StepError};

use super::clock::Clock;
use super::steps::{StepLimits, Steps};

/// A clock that stands still until it is told otherwise.
#[derive(Debug, Default)]
pub struct Virtual(AtomicU64);

impl Virtual {
    /// Moves it on.
    pub fn advance(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
    }
}

impl Clock for Virtual {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

/// Whoever is told of every step, and takes the time that the step is to take.
pub trait Beat: std::fmt::Debug + Send + Sync {
    /// A step.
    fn beat(&self);
}

/// How long a step takes.
#[derive(Debug, Clone)]
pub enum Pace {
    /// No time at all.
    Instant,
    /// So much of a simulated time, and so much more per token.
    Simulated(Arc<Virtual>, Duration, Duration),
    /// So much of the real time, spent busily as an engine would.
    Real(Duration),
    /// What it takes.
    Beaten(Arc<dyn Beat>),
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    reserved: usize,
    length: usize,
    last: u32,
}

/// The engine.
#[derive(Debug)]
pub struct Paced {
    limits: StepLimits,
    pace: Pace,
    sequences: Vec<Option<Sequence>>,
    free: usize,
    /// Token and position of each row of the last step.
    rows: Vec<(u32, usize)>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    fault_at: Option<u64>,
    steps: u64,
}

/// The token that follows `token` at `position`.
pub fn next_token(token: u32, position: usize, vocab: usize) -> u32 {
    // Knuth's multiplier: neighbours come out far from each other.
    let mixed = (u64::from(token) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(position as u32 % 64);
    ((mixed ^ position as u64).wrapping_mul(0x5851_f42d_4c95_7f2d) >> 33) as u32 % vocab as u32
}

impl Paced {
    /// An engine of these sizes.
    pub fn new(limits: StepLimits, pace: Pace) -> Self {
        Paced {
            limits,
            pace,
            sequences: vec![None; limits.sequences],
            free: limits.positions,
            rows: Vec::with_capacity(limits.chunk),
            logits: vec![0.0; limits.logits_rows * limits.vocab],
            hidden: vec![0.0; limits.logits_rows * limits.hidden],
            fault_at: None,
            steps: 0,
        }
    }

    /// The same, the weights of which are lost at step number `step`.
    pub fn failing_at(mut self, step: u64) -> Self {
        self.fault_at = Some(step);
        self
    }

    fn wait(&self, tokens: usize) {
        match &self.pace {
            Pace::Instant => {}
            Pace::Simulated(clock, step, token) => clock.advance(*step + *token * tokens as u32),
            Pace::Beaten(beat) => beat.beat(),
            Pace::Real(time) => {
                let begin = Instant::now();
                while begin.elapsed() < *time {
                    std::hint::spin_loop();
                }
            }
        }
    }

    fn admit(&self, chunks: &[Chunk]) -> Result<(), StepError> {
        let asked = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        if asked > self.limits.chunk {
            return Err(StepError::TooManyTokens { asked, most: self.limits.chunk });
        }
        for (i, chunk) in chunks.iter().enumerate() {
            let again = chunks[..i].iter().any(|other| other.sequence == chunk.sequence);
            let open = self.sequences.get(chunk.sequence).copied().flatten().filter(|_| !again);
            let open = open.ok_or(StepError::Sequence(chunk.sequence))?;
            let asked = open.length + chunk.tokens.len();
            if asked > open.reserved {
                return Err(StepError::ContextFull { asked, context: open.reserved });
            }
        }
        Ok(())
    }
}

impl Steps for Paced {
    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn free_positions(&self) -> usize {
        self.free
    }

    fn open_for(&mut self, positions: usize) -> Option<usize> {
        let sequence = self.sequences.iter().position(Option::is_none)?;
        self.free = self.free.checked_sub(positions)?;
        self.sequences[sequence] = Some(Sequence { reserved: positions, length: 0, last: 0 });
        Some(sequence)
    }

    fn close(&mut self, sequence: usize) {
        let closed = self.sequences[sequence].take().expect("only an open sequence is closed");
        self.free += closed.reserved;
    }

    fn rewind(&mut self, sequence: usize, length: usize) {
        if let Some(open) = &mut self.sequences[sequence] {
            open.length = open.length.min(length);
        }
    }

    fn length(&self, sequence: usize) -> usize {
        self.sequences[sequence].map_or(0, |open| open.length)
    }

    fn must_restart(&self, _sequence: usize, _length: usize) -> bool {
        false
    }

    fn announce(&mut self, sequence: usize, length: usize) -> Result<(), StepError> {
        let context = self.sequences[sequence].map_or(0, |open| open.reserved);
        if length > context { Err(StepError::ContextFull { asked: length, context }) } else { Ok(()) }
    }

    fn step(&mut self, chunks: &[Chunk]) -> Result<(), StepError> {
        self.admit(chunks)?;
        self.steps += 1;
        if self.fault_at.is_some_and(|step| self.steps >= step) {
            return Err(StepError::Fault);
        }
        self.rows.clear();
        for chunk in chunks {
            let open = self.sequences[chunk.sequence].as_mut().expect("admitted");
            for &token in chunk.tokens {
                self.rows.push((token, open.length));
                open.length += 1;
                open.last = token;
            }
        }
        self.wait(self.rows.len());
        Ok(())
    }

    fn logits(&mut self, rows: &[usize]) -> Result<&mut [f32], StepError> {
        let vocab = self.limits.vocab;
        let all = &mut self.logits[..rows.len() * vocab];
        all.fill(0.0);
        for (values, &row) in all.chunks_exact_mut(vocab).zip(rows) {
            let (token, position) = self.rows[row];
            values[next_token(token, position, vocab) as usize] = 30.0;
        }
        Ok(all)
    }

    fn hidden(&mut self, rows: &[usize]) -> Result<&[f32], StepError> {
        let width = self.limits.hidden;
        let all = &mut self.hidden[..rows.len() * width];
        for (values, &row) in all.chunks_exact_mut(width).zip(rows) {
            let (token, position) = self.rows[row];
            values.fill(token as f32);
            values[0] = position as f32;
        }
        Ok(all)
    }
}
