//! What the host tells a card in every step: tokens, rows, where each row stands and in which pages. Small, and kept
//! here in pinned memory as it lies there, so that a graph can send it too.

use bantam_core::Batch;

use crate::driver::{Card, Memory, Pinned};
use crate::fault::Fault;

/// Words of a row, see `Row` in `kernel.cuh`.
const ROW_WORDS: usize = 4;

/// Memory for one step's words, on both sides: a list, rows, page tables.
#[derive(Debug)]
pub(crate) struct Steps {
    memory: Memory,
    words: Pinned,
    /// Rows of a step, and words of all page tables.
    rows: usize,
    tables: usize,
    /// How often the card had been waited for when the list and the batch were last sent: as long as this is so, they
    /// may be under way.
    sent: [u64; 2],
    /// Whether the card has, or is about to have, the batch that stands here.
    has_batch: bool,
}

impl Steps {
    /// Room for steps of so many rows, over page tables of so many words.
    pub(crate) fn new(card: &Card, rows: usize, tables: usize) -> Result<Self, Fault> {
        let bytes = 4 * (rows * (1 + ROW_WORDS) + tables);
        let memory = card.allocate("the words of a step", bytes)?;
        match card.pin(bytes) {
            Ok(words) => Ok(Steps { memory, words, rows, tables, sent: [u64::MAX; 2], has_batch: false }),
            Err(fault) => {
                card.free(&memory);
                Err(fault)
            }
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Gives all of it back.
    pub(crate) fn free(&self, card: &Card) {
        card.free(&self.memory);
        card.unpin(&self.words);
    }

    /// The card no longer has the batch.
    pub(crate) fn forget(&mut self) {
        self.has_batch = false;
    }

    /// Puts tokens or rows down, not to be sent by us.
    pub(crate) fn set_list(
        &mut self,
        card: &Card,
        list: impl ExactSizeIterator<Item = u32> + Clone,
    ) -> Result<(), Fault> {
        let count = list.len();
        assert!(count <= self.rows, "a step of {count} rows, planned for {}", self.rows);
        if !list.clone().eq(self.words.words()[..count].iter().copied()) {
            self.settle(card, 0)?;
            self.words.words_mut().iter_mut().zip(list).for_each(|(word, new)| *word = new);
        }
        self.sent[0] = card.waits();
        Ok(())
    }

    /// Sends tokens or rows; returns their address.
    pub(crate) fn list(
        &mut self,
        card: &Card,
        list: impl ExactSizeIterator<Item = u32> + Clone,
    ) -> Result<u64, Fault> {
        let count = list.len();
        self.set_list(card, list)?;
        card.send(&self.memory, &self.words, 0..count)?;
        Ok(self.memory.at(0, 4 * count))
    }

    /// Puts a batch down, which is about to be sent; whether the card has it already.
    pub(crate) fn set_batch(&mut self, card: &Card, batch: &Batch) -> Result<bool, Fault> {
        batch.check();
        assert!(
            batch.rows() <= self.rows && batch.tables.len() <= self.tables,
            "a batch larger than planned"
        );
        let rows = batch.feeds.iter().flat_map(|feed| {
            let table = (feed.sequence * batch.pages_per_sequence) as u32;
            let row = move |row| [feed.position(row) as u32, table, feed.length as u32, 0];
            (feed.first_row..feed.first_row + feed.rows).flat_map(row)
        });
        let (first, behind) = (self.rows, self.rows * (1 + ROW_WORDS));
        let now = self.words.words();
        let is_same = rows.clone().eq(now[first..first + ROW_WORDS * batch.rows()].iter().copied())
            && *batch.tables == now[behind..behind + batch.tables.len()];
        if !is_same {
            self.settle(card, 1)?;
            let (words, tables) = self.words.words_mut().split_at_mut(behind);
            words[first..].iter_mut().zip(rows).for_each(|(word, new)| *word = new);
            tables[..batch.tables.len()].copy_from_slice(batch.tables);
        }
        self.sent[1] = card.waits();
        Ok(std::mem::replace(&mut self.has_batch, true) && is_same)
    }

    /// Sends a batch, if the card has another; returns the addresses of its rows and of its page tables.
    pub(crate) fn batch(&mut self, card: &Card, batch: &Batch) -> Result<(u64, u64), Fault> {
        let (first, tables) = (self.rows, self.rows * (1 + ROW_WORDS));
        if !self.set_batch(card, batch)? {
            card.send(&self.memory, &self.words, first..tables + self.tables)?;
        }
        let rows = self.memory.at(4 * first, 4 * ROW_WORDS * self.rows);
        Ok((rows, self.memory.at(4 * tables, 4 * self.tables)))
    }

    /// Waits until words that were sent have left.
    fn settle(&self, card: &Card, part: usize) -> Result<(), Fault> {
        if self.sent[part] == card.waits() { card.wait() } else { Ok(()) }
    }
}
