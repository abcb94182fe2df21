//! The sequences of an engine: how long each one is, how long it may become, and which pages of the cache are its own.
//! Knows neither weights nor what stands in a page.

use std::ops::Range;

use bantam_core::layouts::page::POSITIONS;

use crate::engine::{Chunk, StepError};

/// An open sequence.
#[derive(Debug, Clone, Copy)]
struct Sequence {
    /// Tokens that it holds.
    length: usize,
    /// The greatest length that it was known to reach when its tokens were read.
    reach: usize,
    /// Positions that were reserved.
    room: usize,
    /// Whether what it held is gone.
    is_lost: bool,
}

/// All sequences, and the pages that they share out.
#[derive(Debug)]
pub(crate) struct Sequences {
    list: Vec<Option<Sequence>>,
    /// Page numbers, `pages_per_sequence` for each; [`NOBODYS`] where a sequence has fewer.
    tables: Vec<u32>,
    pages_per_sequence: usize,
    /// Pages that no sequence has. The last is given out first: it is the warmest.
    free: Vec<u32>,
}

/// No page: who reads it has a mistake, and shall not find another sequence's keys.
const NOBODYS: u32 = u32::MAX;

impl Sequences {
    pub(crate) fn new(count: usize, pages_per_sequence: usize, pages: usize) -> Self {
        Sequences {
            list: vec![None; count],
            tables: vec![NOBODYS; count * pages_per_sequence],
            pages_per_sequence,
            free: (0..pages as u32).rev().collect(),
        }
    }

    /// Begins a sequence with pages for so many positions; `None` where a sequence or a page is missing.
    pub(crate) fn open(&mut self, room: usize) -> Option<usize> {
        let pages = room.div_ceil(POSITIONS);
        let sequence = self.list.iter().position(Option::is_none)?;
        let left = self.free.len().checked_sub(pages).filter(|_| pages <= self.pages_per_sequence)?;
        let table = &mut self.tables[sequence * self.pages_per_sequence..][..pages];
        table.iter_mut().zip(self.free.drain(left..).rev()).for_each(|(entry, page)| *entry = page);
        self.list[sequence] = Some(Sequence { length: 0, reach: 0, room, is_lost: false });
        Some(sequence)
    }

    /// Ends a sequence and takes its pages back.
    pub(crate) fn close(&mut self, sequence: usize) {
        self.list[sequence] = None;
        let table = &mut self.tables[sequence * self.pages_per_sequence..][..self.pages_per_sequence];
        for page in table.iter_mut().rev().filter(|page| **page != NOBODYS) {
            self.free.push(std::mem::replace(page, NOBODYS));
        }
    }

    pub(crate) fn free_positions(&self) -> usize {
        self.free.len() * POSITIONS
    }

    pub(crate) fn tables(&self) -> &[u32] {
        &self.tables
    }

    fn get(&self, sequence: usize) -> Option<Sequence> {
        self.list.get(sequence).copied().flatten()
    }

    pub(crate) fn length(&self, sequence: usize) -> usize {
        self.get(sequence).map_or(0, |sequence| sequence.length)
    }

    /// Forgets all tokens from `length` on.
    pub(crate) fn rewind(&mut self, sequence: usize, length: usize) {
        if let Some(Some(sequence)) = self.list.get_mut(sequence) {
            sequence.length = length.min(sequence.length);
            if length == 0 {
                (sequence.reach, sequence.is_lost) = (0, false);
            }
        }
    }

    /// Pages that hold anything, as runs of numbers that follow one another.
    pub(crate) fn pages(&self) -> Vec<Range<usize>> {
        let tables = self.tables.chunks_exact(self.pages_per_sequence.max(1));
        let held = self.list.iter().zip(tables).flat_map(|(sequence, table)| {
            &table[..sequence.map_or(0, |sequence| sequence.length.div_ceil(POSITIONS))]
        });
        let mut held: Vec<usize> = held.map(|&page| page as usize).collect();
        held.sort_unstable();
        let mut runs: Vec<Range<usize>> = Vec::new();
        for page in held {
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// What all of them hold is gone: each must be read again from its start.
    pub(crate) fn lose(&mut self) {
        self.list.iter_mut().flatten().for_each(|sequence| sequence.is_lost = sequence.length > 0);
    }

    /// Whether what is stored for a sequence was read for lengths on the other side of a border than this one, or is
    /// gone.
    pub(crate) fn is_across(
        &self,
        sequence: usize,
        length: usize,
        mut borders: impl Iterator<Item = usize>,
    ) -> bool {
        let Some(Sequence { length: 1.., reach, is_lost, .. }) = self.get(sequence) else {
            return false;
        };
        is_lost || borders.any(|border| (reach > border) != (length > border))
    }

    /// Notes how long a sequence is about to become, where there is room for it.
    pub(crate) fn announce(&mut self, sequence: usize, length: usize) -> Result<(), StepError> {
        self.check_room(sequence, length)?;
        if let Some(Some(sequence)) = self.list.get_mut(sequence) {
            sequence.reach = length.max(sequence.reach);
        }
        Ok(())
    }

    /// The length that a sequence is known to reach once it is `length` long.
    pub(crate) fn reach(&self, sequence: usize, length: usize) -> usize {
        self.get(sequence).map_or(length, |sequence| sequence.reach.max(length))
    }

    /// Says how long a sequence is now.
    pub(crate) fn set_length(&mut self, sequence: usize, length: usize) {
        if let Some(Some(sequence)) = self.list.get_mut(sequence) {
            sequence.length = length;
            sequence.reach = length.max(sequence.reach);
            // Of nothing, nothing is lost.
            sequence.is_lost &= length > 0;
        }
    }

    /// Checks that sequences are open, stand once in a step, and have room.
    pub(crate) fn admit(&self, chunks: &[Chunk]) -> Result<(), StepError> {
        for (i, chunk) in chunks.iter().enumerate() {
            if chunks[..i].iter().any(|other| other.sequence == chunk.sequence) {
                return Err(StepError::Sequence(chunk.sequence));
            }
            self.check_room(chunk.sequence, self.length(chunk.sequence) + chunk.tokens.len())?;
        }
        Ok(())
    }

    fn check_room(&self, sequence: usize, asked: usize) -> Result<(), StepError> {
        let context = self.get(sequence).ok_or(StepError::Sequence(sequence))?.room;
        if asked > context { Err(StepError::ContextFull { asked, context }) } else { Ok(()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    #[test]
    fn pages_are_shared_out_and_come_back() {
        let mut sequences = Sequences::new(3, 4, 6);
        assert_eq!(sequences.free_positions(), 6 * POSITIONS);
        let first = sequences.open(2 * POSITIONS).unwrap();
        let second = sequences.open(3 * POSITIONS + 1).unwrap();
        assert_eq!(sequences.tables()[..8], [0, 1, NOBODYS, NOBODYS, 2, 3, 4, 5]);
        assert_eq!(sequences.free_positions(), 0);
        assert_eq!(sequences.open(1), None, "no page is free");
        let empty = sequences.open(0).unwrap();
        assert_eq!(sequences.open(0), None, "no sequence is free");
        sequences.close(empty);
        sequences.close(first);
        sequences.close(first);
        assert_eq!(sequences.free_positions(), 2 * POSITIONS);
        assert_eq!(sequences.open(3 * POSITIONS), None, "two pages are free");
        assert_eq!(sequences.open(2 * POSITIONS), Some(first));
        sequences.close(second);
        sequences.close(first);
        assert_eq!(sequences.open(5 * POSITIONS), None, "a table has four");
        assert_eq!(sequences.free_positions(), 6 * POSITIONS);
        let mut free = sequences.free.clone();
        free.sort_unstable();
        assert_eq!(free, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_sequence_keeps_to_what_was_reserved() {
        let mut sequences = Sequences::new(2, 4, 8);
        let sequence = sequences.open(70).unwrap();
        let chunk = |sequence, tokens| Chunk { sequence, tokens };
        let full = Err(StepError::ContextFull { asked: 71, context: 70 });
        assert_eq!(sequences.admit(&[chunk(sequence, &[1; 71])]), full);
        assert_eq!(sequences.admit(&[chunk(sequence, &[1; 70])]), Ok(()));
        let twice = [chunk(sequence, &[1]), chunk(sequence, &[1])];
        assert_eq!(sequences.admit(&twice), Err(StepError::Sequence(sequence)));
        assert_eq!(sequences.admit(&[chunk(1, &[1])]), Err(StepError::Sequence(1)), "not open");
        assert_eq!(sequences.admit(&[chunk(9, &[1])]), Err(StepError::Sequence(9)), "does not exist");
        sequences.set_length(sequence, 70);
        assert_eq!(sequences.announce(sequence, 71), full);
    }
}
