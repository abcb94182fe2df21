//! An engine that computes nothing: it takes the time it is told to take, and its logits follow from all tokens of the
//! sequence, as far as its cache has them. Tests and the bench of the scheduler's own cost run on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bantam_core::layouts::page::POSITIONS;
use bantam_model::card::CardFault;
use bantam_model::engine::{Chunk, StepError};
use bantam_model::sequences::Sequences;

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

/// A row of the last step.
#[derive(Debug, Clone, Copy)]
struct Row {
    token: u32,
    position: usize,
    sum: u64,
}

/// The engine.
#[derive(Debug)]
pub struct Paced {
    limits: StepLimits,
    pace: Pace,
    sequences: Sequences,
    pages_per_sequence: usize,
    /// In pages, at each position: what all tokens up to there come to.
    cache: Vec<u64>,
    rows: Vec<Row>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    fault_at: Option<u64>,
    lost_at: Option<u64>,
    steps: u64,
}

/// What tokens come to, where those before the last come to `sum`. Of none it is 0.
pub fn summed(sum: u64, token: u32) -> u64 {
    // Knuth's multipliers: neighbours come out far from each other.
    let mixed = (sum ^ (u64::from(token) + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.rotate_left(29).wrapping_mul(0x5851_f42d_4c95_7f2d)
}

/// The token that follows tokens that come to `sum`.
pub fn next_token(sum: u64, vocab: usize) -> u32 {
    (sum >> 33) as u32 % vocab as u32
}

impl Paced {
    /// An engine of these sizes.
    pub fn new(limits: StepLimits, pace: Pace) -> Self {
        let (pages, pages_per_sequence) =
            (limits.positions.div_ceil(POSITIONS), limits.context.div_ceil(POSITIONS));
        Paced {
            limits,
            pace,
            sequences: Sequences::new(limits.sequences, pages_per_sequence, pages),
            pages_per_sequence,
            cache: vec![0; pages * POSITIONS],
            rows: Vec::with_capacity(limits.chunk),
            logits: vec![0.0; limits.logits_rows * limits.vocab],
            hidden: vec![0.0; limits.logits_rows * limits.hidden],
            fault_at: None,
            lost_at: None,
            steps: 0,
        }
    }

    /// The same, the weights of which are lost at step number `step`.
    pub fn failing_at(mut self, step: u64) -> Self {
        self.fault_at = Some(step);
        self
    }

    /// The same, which loses its card, and with it what all sequences hold, at step number `step`.
    pub fn losing_at(mut self, step: u64) -> Self {
        self.lost_at = Some(step);
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
        self.sequences.admit(chunks)
    }

    /// Where in the cache a position of a sequence stands.
    fn spot(&self, sequence: usize, position: usize) -> usize {
        let page = self.sequences.tables()[sequence * self.pages_per_sequence + position / POSITIONS];
        page as usize * POSITIONS + position % POSITIONS
    }
}

impl Steps for Paced {
    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn free_positions(&self) -> usize {
        self.sequences.free_positions()
    }

    fn resting_positions(&self) -> usize {
        self.sequences.resting_positions()
    }

    fn open_for(&mut self, positions: usize) -> Option<usize> {
        self.sequences.open(positions)
    }

    fn branch(&mut self, source: usize, length: usize, positions: usize) -> Option<usize> {
        self.sequences.branch(source, length, positions)
    }

    fn rest(&mut self, sequence: usize) {
        self.sequences.rest(sequence);
    }

    fn resume(&mut self, sequence: usize, length: usize, positions: usize) -> Option<usize> {
        self.sequences.resume(sequence, length, positions)
    }

    fn close(&mut self, sequence: usize) {
        self.sequences.close(sequence);
    }

    fn rewind(&mut self, sequence: usize, length: usize) {
        self.sequences.rewind(sequence, length);
    }

    fn length(&self, sequence: usize) -> usize {
        self.sequences.length(sequence)
    }

    fn must_restart(&self, sequence: usize, length: usize) -> bool {
        self.sequences.is_across(sequence, length, std::iter::empty())
    }

    fn announce(&mut self, sequence: usize, length: usize) -> Result<(), StepError> {
        self.sequences.announce(sequence, length)
    }

    fn step(&mut self, chunks: &[Chunk]) -> Result<(), StepError> {
        self.admit(chunks)?;
        self.steps += 1;
        if self.fault_at.is_some_and(|step| self.steps >= step) {
            return Err(StepError::Fault);
        }
        if self.lost_at == Some(self.steps) {
            self.sequences.lose();
            self.cache.fill(0);
            return Err(StepError::Card(CardFault { what: "a step", code: "of a test" }));
        }
        self.rows.clear();
        for chunk in chunks {
            let mut position = self.sequences.length(chunk.sequence);
            let before = position.checked_sub(1).map(|last| self.spot(chunk.sequence, last));
            let mut sum = before.map_or(0, |at| self.cache[at]);
            for &token in chunk.tokens {
                sum = summed(sum, token);
                let at = self.spot(chunk.sequence, position);
                self.cache[at] = sum;
                self.rows.push(Row { token, position, sum });
                position += 1;
            }
            self.sequences.set_length(chunk.sequence, position);
        }
        self.wait(self.rows.len());
        Ok(())
    }

    fn logits(&mut self, rows: &[usize]) -> Result<&mut [f32], StepError> {
        let vocab = self.limits.vocab;
        let all = &mut self.logits[..rows.len() * vocab];
        all.fill(0.0);
        for (values, &row) in all.chunks_exact_mut(vocab).zip(rows) {
            values[next_token(self.rows[row].sum, vocab) as usize] = 30.0;
        }
        Ok(all)
    }

    fn hidden(&mut self, rows: &[usize]) -> Result<&[f32], StepError> {
        let width = self.limits.hidden;
        let all = &mut self.hidden[..rows.len() * width];
        for (values, &row) in all.chunks_exact_mut(width).zip(rows) {
            let Row { token, position, .. } = self.rows[row];
            values.fill(token as f32);
            values[0] = position as f32;
        }
        Ok(all)
    }
}
