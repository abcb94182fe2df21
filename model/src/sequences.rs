//! The sequences of an engine: how long each one is, how long it may become, and which pages of the cache it has.
//! Knows neither weights nor what stands in a page.
//!
//! A sequence whose reply is over may rest: it keeps the pages that hold its tokens, and gives back the others. Another
//! may begin with whole pages of it ([`Sequences::branch`]): these are in both tables, and nobody writes to them, since
//! tokens are only ever appended. Where a sequence forgets tokens in the middle of such a page, it forgets all of the
//! page. One that is read again from its start writes what stands there: what is stored for a token follows from it and
//! those before it, and all who have the page have these.

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
    /// Whether it waits for somebody who goes on where it stopped.
    rests: bool,
}

/// How many sequences have a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Holders {
    in_use: u32,
    resting: u32,
}

impl Holders {
    fn of(&mut self, rests: bool) -> &mut u32 {
        if rests { &mut self.resting } else { &mut self.in_use }
    }

    fn all(self) -> u32 {
        self.in_use + self.resting
    }

    fn only_rest(self) -> bool {
        self.in_use == 0 && self.resting > 0
    }
}

/// All sequences, and the pages that they share out.
#[derive(Debug)]
pub struct Sequences {
    list: Vec<Option<Sequence>>,
    /// Page numbers, `pages_per_sequence` for each; [`NOBODYS`] where a sequence has fewer.
    tables: Vec<u32>,
    pages_per_sequence: usize,
    /// Pages that no sequence has. The last is given out first: it is the warmest.
    free: Vec<u32>,
    holders: Vec<Holders>,
    /// Pages that only resting sequences have.
    resting: usize,
}

/// No page: who reads it has a mistake, and shall not find another sequence's keys.
const NOBODYS: u32 = u32::MAX;

impl Sequences {
    /// So many sequences, none of which is open, over so many pages.
    pub fn new(count: usize, pages_per_sequence: usize, pages: usize) -> Self {
        Sequences {
            list: vec![None; count],
            tables: vec![NOBODYS; count * pages_per_sequence],
            pages_per_sequence,
            free: (0..pages as u32).rev().collect(),
            holders: vec![Holders::default(); pages],
            resting: 0,
        }
    }

    /// Begins a sequence with pages for so many positions; `None` where a sequence or a page is missing.
    pub fn open(&mut self, room: usize) -> Option<usize> {
        self.begin(None, 0, room)
    }

    /// The same with whole pages of another, as many as hold no more than `length` of its tokens: these are its
    /// beginning.
    pub fn branch(&mut self, source: usize, length: usize, room: usize) -> Option<usize> {
        let whole = length.min(self.get(source)?.length) / POSITIONS;
        self.begin(Some(source), whole, room)
    }

    fn begin(&mut self, source: Option<usize>, whole: usize, room: usize) -> Option<usize> {
        let pages = room.div_ceil(POSITIONS);
        let sequence = self.list.iter().position(Option::is_none)?;
        let is_room = (whole..=self.pages_per_sequence).contains(&pages);
        if !is_room || pages - whole > self.free.len() {
            return None;
        }
        let length = whole * POSITIONS;
        self.list[sequence] = Some(Sequence { length, reach: length, room, is_lost: false, rests: false });
        let width = self.pages_per_sequence;
        for i in 0..whole {
            let page = self.tables[source? * width + i];
            self.tables[sequence * width + i] = page;
            self.hold(page, false);
        }
        self.take_pages(sequence, whole..pages);
        Some(sequence)
    }

    /// Ends a sequence and takes its pages back.
    pub fn close(&mut self, sequence: usize) {
        self.give_pages(sequence, 0);
        self.list[sequence] = None;
    }

    /// Lets a sequence rest: of its pages it keeps those that hold tokens.
    pub fn rest(&mut self, sequence: usize) {
        let Some(Sequence { length, rests: false, .. }) = self.get(sequence) else { return };
        self.give_pages(sequence, length.div_ceil(POSITIONS));
        self.set_rests(sequence, true);
        self.update(sequence, |sequence| sequence.room = length);
    }

    /// Goes on with a resting sequence: it keeps `length` of its tokens, or fewer where the next would stand in
    /// another's page, and gets room for so many positions. Says how many it keeps; `None`, and nothing has changed,
    /// where pages are missing, or it does not rest.
    pub fn resume(&mut self, sequence: usize, length: usize, room: usize) -> Option<usize> {
        let found = self.get(sequence).filter(|sequence| sequence.rests)?;
        let length = length.min(found.length);
        let table = &self.tables[sequence * self.pages_per_sequence..][..self.pages_per_sequence];
        let is_own = |&page: &u32| self.holders[page as usize].all() == 1;
        let whole = length / POSITIONS;
        let kept = if length.is_multiple_of(POSITIONS) || is_own(&table[whole]) {
            length
        } else {
            whole * POSITIONS
        };
        let (held, pages) = (kept.div_ceil(POSITIONS), room.div_ceil(POSITIONS));
        let given = table[held..found.length.div_ceil(POSITIONS)].iter().filter(|page| is_own(page)).count();
        let is_room = (held..=self.pages_per_sequence).contains(&pages);
        if !is_room || pages - held > self.free.len() + given {
            return None;
        }
        self.give_pages(sequence, held);
        self.set_rests(sequence, false);
        self.take_pages(sequence, held..pages);
        self.rewind(sequence, kept);
        self.update(sequence, |sequence| sequence.room = room);
        Some(kept)
    }

    fn update(&mut self, sequence: usize, change: impl FnOnce(&mut Sequence)) {
        if let Some(Some(sequence)) = self.list.get_mut(sequence) {
            change(sequence);
        }
    }

    /// Puts free pages to these places of a sequence's table. They are there.
    fn take_pages(&mut self, sequence: usize, places: Range<usize>) {
        for place in places {
            let page = self.free.pop().expect("free pages were counted");
            self.tables[sequence * self.pages_per_sequence + place] = page;
            self.hold(page, false);
        }
    }

    /// Takes pages from this place of a sequence's table on.
    fn give_pages(&mut self, sequence: usize, from: usize) {
        let rests = self.get(sequence).is_some_and(|sequence| sequence.rests);
        for place in (from..self.pages_per_sequence).rev() {
            let entry = &mut self.tables[sequence * self.pages_per_sequence + place];
            let page = std::mem::replace(entry, NOBODYS);
            if page != NOBODYS {
                self.let_go(page, rests);
            }
        }
    }

    fn set_rests(&mut self, sequence: usize, rests: bool) {
        for place in 0..self.pages_per_sequence {
            let page = self.tables[sequence * self.pages_per_sequence + place];
            if page != NOBODYS {
                self.hold(page, rests);
                self.let_go(page, !rests);
            }
        }
        self.update(sequence, |sequence| sequence.rests = rests);
    }

    fn hold(&mut self, page: u32, rests: bool) {
        self.count(page, |holders| *holders.of(rests) += 1);
    }

    fn let_go(&mut self, page: u32, rests: bool) {
        self.count(page, |holders| *holders.of(rests) -= 1);
        if self.holders[page as usize].all() == 0 {
            self.free.push(page);
        }
    }

    fn count(&mut self, page: u32, change: impl FnOnce(&mut Holders)) {
        let holders = &mut self.holders[page as usize];
        self.resting -= usize::from(holders.only_rest());
        change(holders);
        self.resting += usize::from(holders.only_rest());
    }

    /// Positions in pages that no sequence has.
    pub fn free_positions(&self) -> usize {
        self.free.len() * POSITIONS
    }

    /// Positions in pages that only resting sequences have.
    pub fn resting_positions(&self) -> usize {
        self.resting * POSITIONS
    }

    /// Page numbers, as many places for each sequence.
    pub fn tables(&self) -> &[u32] {
        &self.tables
    }

    fn get(&self, sequence: usize) -> Option<Sequence> {
        self.list.get(sequence).copied().flatten()
    }

    /// Tokens that a sequence holds.
    pub fn length(&self, sequence: usize) -> usize {
        self.get(sequence).map_or(0, |sequence| sequence.length)
    }

    /// Forgets all tokens from `length` on.
    pub fn rewind(&mut self, sequence: usize, length: usize) {
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
        held.dedup();
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
    pub fn lose(&mut self) {
        self.list.iter_mut().flatten().for_each(|sequence| sequence.is_lost = sequence.length > 0);
    }

    /// Whether what is stored for a sequence was read for lengths on the other side of a border than this one, or is
    /// gone.
    pub fn is_across(
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
    pub fn announce(&mut self, sequence: usize, length: usize) -> Result<(), StepError> {
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
    pub fn set_length(&mut self, sequence: usize, length: usize) {
        if let Some(Some(sequence)) = self.list.get_mut(sequence) {
            sequence.length = length;
            sequence.reach = length.max(sequence.reach);
            // Of nothing, nothing is lost.
            sequence.is_lost &= length > 0;
        }
    }

    /// Checks that sequences are open, stand once in a step, and have room.
    pub fn admit(&self, chunks: &[Chunk]) -> Result<(), StepError> {
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
    fn a_resting_sequence_keeps_what_it_holds_and_goes_on() {
        let mut sequences = Sequences::new(3, 4, 6);
        let first = sequences.open(4 * POSITIONS).unwrap();
        sequences.set_length(first, POSITIONS + 10);
        assert_eq!(sequences.resume(first, 10, 20), None, "it does not rest");
        sequences.rest(first);
        assert_eq!(
            (sequences.free_positions(), sequences.resting_positions()),
            (4 * POSITIONS, 2 * POSITIONS)
        );
        let full = Err(StepError::ContextFull { asked: POSITIONS + 11, context: POSITIONS + 10 });
        assert_eq!(sequences.admit(&[Chunk { sequence: first, tokens: &[1] }]), full, "nothing is reserved");

        let second = sequences.branch(first, POSITIONS + 5, 2 * POSITIONS).unwrap();
        assert_eq!(sequences.length(second), POSITIONS, "whole pages");
        assert_eq!((sequences.free_positions(), sequences.resting_positions()), (3 * POSITIONS, POSITIONS));
        assert_eq!(sequences.branch(first, 2 * POSITIONS, 5 * POSITIONS), None, "a table has four");
        assert_eq!(sequences.resume(first, POSITIONS - 1, 5 * POSITIONS), None, "a table has four");
        assert_eq!(sequences.resume(first, POSITIONS + 5, 4 * POSITIONS), Some(POSITIONS + 5));
        sequences.rest(first);
        // The first page is the second's too, and the next token would stand in it.
        assert_eq!(sequences.resume(first, POSITIONS - 1, POSITIONS), Some(0));
        assert_eq!(sequences.free_positions(), 3 * POSITIONS);
        sequences.close(second);
        sequences.close(first);
        assert_eq!((sequences.free_positions(), sequences.resting_positions()), (6 * POSITIONS, 0));
    }

    /// What stands for a token: it follows from all up to there, as keys and values do.
    fn stored(tokens: &[u32]) -> u64 {
        tokens.iter().fold(7, |sum: u64, &token| (sum ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    /// Sequences with a cache that holds something, and what each must find there.
    struct Simulation {
        sequences: Sequences,
        cache: Vec<u64>,
        held: Vec<Option<(Vec<u32>, bool)>>,
        random: u64,
    }

    const SEQUENCES: usize = 5;
    const WIDTH: usize = 4;
    const PAGES: usize = 11;

    impl Simulation {
        fn below(&mut self, end: usize) -> usize {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 33) as usize % end
        }

        fn event(&mut self) {
            let (of, room) = (self.below(SEQUENCES), self.below(WIDTH * POSITIONS + 20));
            let held = self.held[of].clone();
            match (self.below(8), held) {
                (0, _) => {
                    if let Some(new) = self.sequences.open(room) {
                        assert!(self.held[new].replace((Vec::new(), false)).is_none(), "it was open");
                    }
                }
                (1, Some(_)) => {
                    self.sequences.close(of);
                    self.held[of] = None;
                }
                (2, Some((tokens, _))) => {
                    self.sequences.rest(of);
                    self.held[of] = Some((tokens, true));
                }
                (3, Some((tokens, rests))) => {
                    let length = self.below(tokens.len() + 1);
                    let kept = self.sequences.resume(of, length, room);
                    if let Some(kept) = kept {
                        assert!(rests && kept <= length && kept + POSITIONS > length);
                        self.held[of] = Some((tokens[..kept].to_vec(), false));
                    }
                }
                (4, Some((tokens, _))) => {
                    let length = self.below(tokens.len() + 1);
                    if let Some(new) = self.sequences.branch(of, length, room) {
                        let shared = tokens[..length / POSITIONS * POSITIONS].to_vec();
                        assert!(self.held[new].replace((shared, false)).is_none(), "it was open");
                    }
                }
                (5.., Some((tokens, false))) => self.append(of, tokens),
                _ => {}
            }
        }

        /// Reads more tokens, of few kinds, as far as there is room.
        fn append(&mut self, of: usize, mut tokens: Vec<u32>) {
            let more: Vec<u32> = (0..self.below(90)).map(|_| self.below(2) as u32).collect();
            if self.sequences.admit(&[Chunk { sequence: of, tokens: &more }]).is_err() {
                return;
            }
            for token in more {
                tokens.push(token);
                let at = self.place(of, tokens.len() - 1);
                self.cache[at] = stored(&tokens);
            }
            self.sequences.set_length(of, tokens.len());
            self.held[of] = Some((tokens, false));
        }

        fn place(&self, of: usize, position: usize) -> usize {
            let page = self.sequences.tables[of * WIDTH + position / POSITIONS];
            page as usize * POSITIONS + position % POSITIONS
        }

        fn check(&self) {
            let mut holders = [Holders::default(); PAGES];
            for (of, held) in self.held.iter().enumerate() {
                let table = &self.sequences.tables[of * WIDTH..][..WIDTH];
                let rests = held.as_ref().is_some_and(|(_, rests)| *rests);
                table
                    .iter()
                    .filter(|page| **page != NOBODYS)
                    .for_each(|&page| *holders[page as usize].of(rests) += 1);
                let Some((tokens, _)) = held else {
                    assert!(table.iter().all(|page| *page == NOBODYS));
                    continue;
                };
                assert_eq!(self.sequences.length(of), tokens.len());
                // The last of each page tells of all before it.
                for position in
                    (0..tokens.len()).filter(|i| i % POSITIONS == POSITIONS - 1 || i + 1 == tokens.len())
                {
                    let found = self.cache[self.place(of, position)];
                    assert_eq!(found, stored(&tokens[..=position]), "another's token");
                }
            }
            assert_eq!(self.sequences.holders, holders);
            let free = holders.iter().filter(|holders| holders.all() == 0).count();
            let resting = holders.iter().filter(|holders| holders.only_rest()).count();
            assert_eq!(self.sequences.free_positions(), free * POSITIONS, "a page is lost");
            assert_eq!(self.sequences.resting_positions(), resting * POSITIONS);
        }
    }

    #[test]
    fn whatever_happens_each_finds_its_own_and_no_page_is_lost() {
        let sequences = Sequences::new(SEQUENCES, WIDTH, PAGES);
        let (cache, held) = (vec![0; PAGES * POSITIONS], vec![None; SEQUENCES]);
        let mut simulation = Simulation { sequences, cache, held, random: 1 };
        let mut shared = 0;
        for _ in 0..40_000 {
            simulation.event();
            simulation.check();
            shared += usize::from(simulation.sequences.holders.iter().any(|holders| holders.all() > 1));
        }
        assert!(shared > 2_000, "pages were shared after {shared} events");
        (0..SEQUENCES).for_each(|of| simulation.sequences.close(of));
        assert_eq!(simulation.sequences.free_positions(), PAGES * POSITIONS);
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
