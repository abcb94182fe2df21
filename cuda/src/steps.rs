//! What the host tells a card in every step: tokens, rows, where each row stands and in which pages. Small, and sent
//! only when it has changed.

use bantam_core::Batch;

use crate::driver::{Card, Fault, Memory};

/// Words of a row, see `Row` in `kernel.cuh`.
const ROW_WORDS: usize = 4;

/// Memory for one step's words, on both sides.
#[derive(Debug)]
pub(crate) struct Steps {
    memory: Memory,
    /// Rows of a step, and words of all page tables.
    rows: usize,
    tables: usize,
    /// What the card has of the batch; what it should have.
    sent: Vec<u32>,
    next: Vec<u32>,
}

impl Steps {
    /// Room for steps of so many rows, over page tables of so many words.
    pub(crate) fn new(card: &Card, rows: usize, tables: usize) -> Result<Self, Fault> {
        let batch = rows * ROW_WORDS + tables;
        let memory = card.allocate("the words of a step", 4 * (rows + batch))?;
        Ok(Steps { memory, rows, tables, sent: Vec::with_capacity(batch), next: Vec::with_capacity(batch) })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Sends tokens or rows; returns their address.
    pub(crate) fn list(
        &mut self,
        card: &Card,
        list: impl ExactSizeIterator<Item = u32>,
    ) -> Result<u64, Fault> {
        let count = list.len();
        assert!(count <= self.rows, "a step of {count} rows, planned for {}", self.rows);
        // The words of the batch may be on the card: what stands behind them is kept apart.
        self.next.clear();
        self.next.extend(list);
        card.write(&self.memory, 0, &self.next)?;
        Ok(self.memory.at(0, 4 * count))
    }

    /// Sends a batch, if the card has another; returns the addresses of its rows and of its page tables.
    pub(crate) fn batch(&mut self, card: &Card, batch: &Batch) -> Result<(u64, u64), Fault> {
        batch.check();
        assert!(
            batch.rows() <= self.rows && batch.tables.len() <= self.tables,
            "a batch larger than planned"
        );
        self.next.clear();
        for feed in batch.feeds {
            let table = (feed.sequence * batch.pages_per_sequence) as u32;
            let row = |row| [feed.position(row) as u32, table, feed.length as u32, 0];
            self.next.extend((feed.first_row..feed.first_row + feed.rows).flat_map(row));
        }
        self.next.resize(self.rows * ROW_WORDS, 0);
        self.next.extend_from_slice(batch.tables);
        let first = 4 * self.rows;
        if self.next != self.sent {
            card.write(&self.memory, first, &self.next)?;
            std::mem::swap(&mut self.next, &mut self.sent);
        }
        let tables = first + 4 * ROW_WORDS * self.rows;
        Ok((self.memory.at(first, 4 * ROW_WORDS * self.rows), self.memory.at(tables, 4 * self.tables)))
    }
}
