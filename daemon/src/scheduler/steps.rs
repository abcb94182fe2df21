//! What the scheduler needs of an engine.

use std::sync::Arc;

use bantam_core::layouts::page::POSITIONS;
use bantam_model::adapter::Guest;
use bantam_model::card::NoCard;
use bantam_model::engine::{Chunk, Engine, Placed, Seated, StepError};
use bantam_model::weights::WeightsError;

use crate::cards::Device;

/// The sizes that an engine was planned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens in a step at most.
    pub chunk: usize,
    /// Positions of one sequence at most.
    pub context: usize,
    /// Positions of all sequences together.
    pub positions: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Sequences that can be open at once.
    pub sequences: usize,
    /// Rows of logits that can be asked for at once.
    pub logits_rows: usize,
    /// Numbers of a hidden state.
    pub hidden: usize,
}

/// An engine, seen from its scheduler.
pub trait Steps: Send + 'static {
    /// What it was planned with.
    fn limits(&self) -> StepLimits;
    /// Positions that no sequence has.
    fn free_positions(&self) -> usize;
    /// Positions that only resting sequences have.
    fn resting_positions(&self) -> usize;
    /// Begins a sequence of at most so many positions; `None` while there is no room.
    fn open_for(&mut self, positions: usize) -> Option<usize>;
    /// The same with up to `length` tokens of another, which goes on as it is.
    fn branch(&mut self, source: usize, length: usize, positions: usize) -> Option<usize>;
    /// Lets a sequence rest with what it holds: of its positions it keeps these.
    fn rest(&mut self, sequence: usize);
    /// Goes on with a resting sequence of which up to `length` tokens are kept. Says how many; `None`, and nothing has
    /// changed, while there is no room.
    fn resume(&mut self, sequence: usize, length: usize, positions: usize) -> Option<usize>;
    /// Whether an adapter that is opened for this engine is there, or has room beside those in use.
    fn has_room_for(&self, _: &Arc<Guest>) -> bool {
        true
    }
    /// Has a sequence computed with an adapter, for which there is room.
    fn attach(&mut self, _sequence: usize, _: &Arc<Guest>) {}
    /// Reads the adapter of a sequence, unless it is there. Where it fails, the sequence can only be closed.
    fn seat(&mut self, _sequence: usize) -> Result<(), WeightsError> {
        Ok(())
    }
    /// What a sequence is computed with: 0 is the model alone. Sequences of one step have one number.
    fn set_of(&self, _sequence: usize) -> usize {
        0
    }
    /// Adapters that are there.
    fn adapters(&self) -> Vec<Seated> {
        Vec::new()
    }
    /// Ends a sequence and frees its positions.
    fn close(&mut self, sequence: usize);
    /// Forgets all tokens from `length` on.
    fn rewind(&mut self, sequence: usize, length: usize);
    /// Tokens of a sequence so far.
    fn length(&self, sequence: usize) -> usize;
    /// Whether it is to be read again from its start before it becomes `length` tokens long.
    fn must_restart(&self, sequence: usize, length: usize) -> bool;
    /// Tells how long a sequence will be when all is read that is about to be read, in however many steps.
    fn announce(&mut self, sequence: usize, length: usize) -> Result<(), StepError>;
    /// Appends tokens to sequences, all together. Where it fails, nothing has changed.
    fn step(&mut self, chunks: &[Chunk]) -> Result<(), StepError>;
    /// Logits of some rows of the last step, the caller's to overwrite.
    fn logits(&mut self, rows: &[usize]) -> Result<&mut [f32], StepError>;
    /// Hidden states, after the last norm, of some rows of the last step; as many at once as logits.
    fn hidden(&mut self, rows: &[usize]) -> Result<&[f32], StepError>;
    /// Moves what stands on a device to where so many bytes of each of its cards hold it: open sequences go on. Where
    /// it fails, the processor computes.
    fn place(&mut self, _: Device, _: &[Option<u64>]) -> Result<(), NoCard> {
        Ok(())
    }
    /// What stands on a card.
    fn placed(&self) -> Option<&Placed> {
        None
    }
}

impl Steps for Engine {
    fn limits(&self) -> StepLimits {
        let options = self.plan().options;
        StepLimits {
            chunk: options.chunk,
            context: options.context,
            positions: self.plan().pages * POSITIONS,
            vocab: self.spec().vocab,
            sequences: options.sequences,
            logits_rows: options.logits_rows,
            hidden: self.spec().hidden,
        }
    }

    fn free_positions(&self) -> usize {
        Engine::free_positions(self)
    }

    fn resting_positions(&self) -> usize {
        Engine::resting_positions(self)
    }

    fn open_for(&mut self, positions: usize) -> Option<usize> {
        Engine::open_for(self, positions)
    }

    fn branch(&mut self, source: usize, length: usize, positions: usize) -> Option<usize> {
        Engine::branch(self, source, length, positions)
    }

    fn rest(&mut self, sequence: usize) {
        Engine::rest(self, sequence);
    }

    fn resume(&mut self, sequence: usize, length: usize, positions: usize) -> Option<usize> {
        Engine::resume(self, sequence, length, positions)
    }

    fn has_room_for(&self, adapter: &Arc<Guest>) -> bool {
        Engine::has_room_for(self, adapter)
    }

    fn attach(&mut self, sequence: usize, adapter: &Arc<Guest>) {
        Engine::attach(self, sequence, adapter);
    }

    fn seat(&mut self, sequence: usize) -> Result<(), WeightsError> {
        Engine::seat(self, sequence)
    }

    fn set_of(&self, sequence: usize) -> usize {
        Engine::set_of(self, sequence)
    }

    fn adapters(&self) -> Vec<Seated> {
        self.guests().collect()
    }

    fn close(&mut self, sequence: usize) {
        Engine::close(self, sequence);
    }

    fn rewind(&mut self, sequence: usize, length: usize) {
        Engine::rewind(self, sequence, length);
    }

    fn length(&self, sequence: usize) -> usize {
        Engine::length(self, sequence)
    }

    fn must_restart(&self, sequence: usize, length: usize) -> bool {
        Engine::must_restart(self, sequence, length)
    }

    fn announce(&mut self, sequence: usize, length: usize) -> Result<(), StepError> {
        Engine::announce(self, sequence, length)
    }

    fn step(&mut self, chunks: &[Chunk]) -> Result<(), StepError> {
        Engine::step(self, chunks)
    }

    fn logits(&mut self, rows: &[usize]) -> Result<&mut [f32], StepError> {
        Engine::try_logits(self, rows)
    }

    fn hidden(&mut self, rows: &[usize]) -> Result<&[f32], StepError> {
        Engine::try_hidden(self, rows)
    }

    fn place(&mut self, device: Device, bytes: &[Option<u64>]) -> Result<(), NoCard> {
        if bytes.iter().all(|bytes| *bytes == Some(0)) {
            self.leave_card();
            return Ok(());
        }
        device.place(self, &|card| bytes.get(card).copied().flatten()).map(|_| ())
    }

    fn placed(&self) -> Option<&Placed> {
        Engine::placed(self)
    }
}
