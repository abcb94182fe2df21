//! Adapters that come to a loaded model and leave it again: a sequence is opened with one, and all of its steps are
//! computed with it. What nobody uses stays until others need its room.

use std::sync::Arc;

use super::{Chunk, Engine, StepError};
use crate::adapter::Guest;
use crate::adapter::room::Room;
use crate::decoder::Decoder;
use crate::weights::WeightsError;

/// Whoever has a place.
#[derive(Debug)]
struct Seat {
    guest: Arc<Guest>,
    /// Whether its numbers are there.
    is_read: bool,
}

/// Adapters in their places, and the sequences that use them.
#[derive(Debug)]
pub(super) struct Guests {
    room: Room,
    seats: Vec<Option<Seat>>,
    /// The place of each sequence's adapter.
    of_sequence: Vec<Option<usize>>,
}

/// An adapter that stands beside a loaded model.
#[derive(Debug, Clone)]
pub struct Seated {
    /// Which.
    pub guest: Arc<Guest>,
    /// Sequences that use it.
    pub uses: usize,
}

impl Guests {
    pub(super) fn new(bytes: usize, sequences: usize) -> Self {
        Guests { room: Room::new(bytes), seats: Vec::new(), of_sequence: vec![None; sequences] }
    }

    fn find(&self, guest: &Arc<Guest>) -> Option<usize> {
        let is_it = |seat: &Option<Seat>| seat.as_ref().is_some_and(|seat| Arc::ptr_eq(&seat.guest, guest));
        self.seats.iter().position(is_it)
    }

    /// A place for an adapter, which is from now on in use once more; nothing while those that are there are in use.
    fn take(&mut self, guest: &Arc<Guest>, decoder: &mut Decoder) -> Option<usize> {
        if let Some(at) = self.find(guest) {
            self.room.hold(at);
            return Some(at);
        }
        let seats = &mut self.seats;
        let leaves = |at: usize| {
            seats[at] = None;
            decoder.set_weights(at, None);
        };
        let at = self.room.take(guest.bytes(), leaves).ok()?;
        if self.seats.len() <= at {
            self.seats.resize_with(at + 1, || None);
        }
        self.seats[at] = Some(Seat { guest: Arc::clone(guest), is_read: false });
        Some(at)
    }

    /// The sequence has ended, or rests.
    pub(super) fn close(&mut self, sequence: usize, decoder: &mut Decoder) {
        let Some(at) = self.of_sequence[sequence].take() else { return };
        self.room.release(at);
        let is_read = self.seats[at].as_ref().is_some_and(|seat| seat.is_read);
        if !is_read && self.room.uses(at) == 0 {
            self.room.leave(at);
            self.seats[at] = None;
            decoder.set_weights(at, None);
        }
    }

    /// The place that a step's sequences share.
    pub(super) fn place(&self, chunks: &[Chunk]) -> Result<Option<usize>, StepError> {
        let mut places = chunks.iter().map(|chunk| self.of_sequence[chunk.sequence]);
        let first = places.next().flatten();
        let is_read = |at: usize| self.seats[at].as_ref().is_some_and(|seat| seat.is_read);
        match places.all(|place| place == first) && first.is_none_or(is_read) {
            true => Ok(first),
            false => Err(StepError::Adapters),
        }
    }
}

impl Engine {
    /// Whether an adapter is there, or has room once those have left that nobody uses.
    ///
    /// # Panics
    /// If the adapter was opened for another model, or for other options.
    pub fn has_room_for(&self, guest: &Arc<Guest>) -> bool {
        assert!(guest.is_for(&self.plan), "an adapter that was opened for this model and these options");
        self.guests.find(guest).is_some() || self.guests.room.has_room(guest.bytes())
    }

    /// Has an open sequence computed with an adapter, for which those leave that nobody uses, the least recently used
    /// first. [`Engine::seat`] comes before its next step. What the sequence holds must have been read with it.
    ///
    /// # Panics
    /// If there is no room for it ([`Engine::has_room_for`]), or the sequence has one already.
    pub fn attach(&mut self, sequence: usize, guest: &Arc<Guest>) {
        assert!(
            self.has_room_for(guest) && self.guests.of_sequence[sequence].is_none(),
            "room was asked for"
        );
        self.guests.of_sequence[sequence] = self.guests.take(guest, &mut self.decoder);
    }

    /// Begins a sequence with room for so many positions, to be computed with an adapter; `None` as for
    /// [`Engine::open_for`], or while the adapters that are there are in use.
    pub fn open_with(&mut self, positions: usize, guest: &Arc<Guest>) -> Option<usize> {
        let sequence = if self.has_room_for(guest) { self.open_for(positions)? } else { return None };
        self.attach(sequence, guest);
        Some(sequence)
    }

    /// Reads the adapter of a sequence, unless that was done. Where it fails, the sequence can only be closed.
    pub fn seat(&mut self, sequence: usize) -> Result<(), WeightsError> {
        let Some(at) = self.guests.of_sequence[sequence] else { return Ok(()) };
        let seat = self.guests.seats[at].as_mut().expect("who is in use has a seat");
        if seat.is_read {
            return Ok(());
        }
        let offset = self.guests.room.offset(at);
        let (arena, pool) = self.backend.host.parts_mut();
        seat.guest.fill(offset, arena, pool)?;
        self.decoder.set_weights(at, Some(Box::new(seat.guest.weights(offset))));
        seat.is_read = true;
        Ok(())
    }

    /// The number of what a sequence is computed with: 0 is the model alone. As long as the sequence is open no other
    /// adapter has the same.
    pub fn set_of(&self, sequence: usize) -> usize {
        self.guests.of_sequence[sequence].map_or(0, |at| at + 1)
    }

    /// Adapters that stand beside the model.
    pub fn guests(&self) -> impl Iterator<Item = Seated> + '_ {
        let seats = self.guests.seats.iter().enumerate();
        seats.filter_map(|(at, seat)| {
            let guest = Arc::clone(&seat.as_ref()?.guest);
            Some(Seated { guest, uses: self.guests.room.uses(at) })
        })
    }
}
