//! Weights that pass through a card: a ring of slots, each with memory here and there. A piece of a matrix is copied
//! into a slot here, from there on a second stream to the card, and multiplied while the next piece is on its way. What
//! computes is the same kernels as for a matrix that stands there, a piece being some of its tiles.

use bantam_core::Slot;
use bantam_core::cuda::Kernel;
use bantam_core::layouts::TILE_ROWS;
use bantam_model::card::{Fill, Passing, RING_SLOTS};

use crate::backend::{CudaBackend, GRID_MOST};
use crate::driver::{Card, Fault, Staging, Stream};
use crate::product::{Rows, Taken, Target};

/// The slots, and the stream of their copies.
#[derive(Debug)]
pub(crate) struct Ring {
    copies: Stream,
    slots: Vec<Staging>,
    next: usize,
}

impl Ring {
    fn new(card: &Card, slot_bytes: usize) -> Result<Ring, Fault> {
        let mut ring = Ring { copies: card.second_stream()?, slots: Vec::new(), next: 0 };
        for _ in 0..RING_SLOTS {
            match card.staging(slot_bytes) {
                Ok(slot) => ring.slots.push(slot),
                Err(fault) => {
                    ring.end(card);
                    return Err(fault);
                }
            }
        }
        Ok(ring)
    }

    /// Bytes of the card.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.iter().map(Staging::bytes).sum()
    }

    fn end(&self, card: &Card) {
        self.slots.iter().for_each(|slot| card.end_staging(slot));
        card.end_stream(&self.copies);
    }
}

impl CudaBackend {
    /// Takes memory of slots that hold so many bytes each; without success none is kept, and nothing else has changed.
    pub fn take_ring(&mut self, slot_bytes: usize) -> bool {
        self.drop_ring();
        self.ring = Ring::new(&self.card, slot_bytes).ok();
        self.ring.is_some()
    }

    /// Gives that memory back.
    pub fn drop_ring(&mut self) {
        if let Some(ring) = self.ring.take() {
            ring.end(&self.card);
        }
    }

    /// Brings rows of a step together. The list is copied as it is sent: that of a step is not written again before the
    /// card has it, which would hold up whatever passes.
    pub fn gather_again(&mut self, rows: &[u32], width: usize, x: Slot, out: Slot) {
        assert!(rows.len() <= self.step_rows(), "{} rows of a step of {}", rows.len(), self.step_rows());
        let sent = self.card.write(self.steps.memory(), 0, rows);
        self.note(sent);
        let last = rows.iter().max().map_or(0, |&last| last as usize + 1);
        let (x, out) = (self.floats(x, last * width), self.floats(out, rows.len() * width));
        let list = self.steps.memory().at(0, 4 * rows.len());
        self.by_row(Kernel::gather, rows.len(), (list, width as u32, x, out));
    }

    /// Products of rows with matrices that stand here or pass through; `fill` has the host's bytes.
    pub fn pass(&mut self, rows: usize, x: Slot, products: &[Passing], fill: Fill) {
        let rows = Rows::plain(rows);
        let mut ring = self.ring.take().expect("weights pass through a ring that was taken");
        for alike in products.chunk_by(|a, b| self.takes_alike(&a.product.matrix, &b.product.matrix)) {
            let taken = self.taken(&alike[0].product.matrix, &rows, x);
            for passing in alike {
                match passing.stands {
                    true => self.pass_tiles(passing, &taken, &rows, 0, None),
                    false => self.pass_pieces(&mut ring, passing, &taken, &rows, fill),
                }
            }
        }
        self.ring = Some(ring);
    }

    fn pass_pieces(&self, ring: &mut Ring, passing: &Passing, taken: &Taken, rows: &Rows, fill: Fill) {
        let matrix = &passing.product.matrix;
        let (tiles, tile_bytes) = (matrix.shape.tiles(), matrix.layout.tile_bytes(matrix.width()));
        let most = (ring.slots[0].bytes() / tile_bytes).min(GRID_MOST);
        assert!(passing.fits(ring.slots[0].bytes()), "a product that does not fit the ring");
        for first in (0..tiles).step_by(most) {
            let (count, at) = (most.min(tiles - first), matrix.slot.offset + first * tile_bytes);
            let slot = &mut ring.slots[ring.next];
            ring.next = (ring.next + 1) % RING_SLOTS;
            let sent = self.send(slot, count * tile_bytes, &ring.copies, &mut |to| fill(at, to));
            let Some(address) = sent else { break };
            self.pass_tiles(passing, taken, rows, first, Some((address, count)));
            let marked = self.card.sent_is_used(slot);
            self.note(marked);
        }
    }

    /// Fills a slot and queues its copy; nothing after a fault.
    fn send(
        &self,
        slot: &mut Staging,
        bytes: usize,
        copies: &Stream,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Option<u64> {
        if !self.is_sound() {
            return None;
        }
        fill(&mut self.noted(self.card.room(slot))?[..bytes]);
        self.noted(self.card.send_staged(slot, bytes, copies))
    }

    /// Queues the product of tiles from a number on: so many at an address, or all where they stand.
    fn pass_tiles(
        &self,
        passing: &Passing,
        taken: &Taken,
        rows: &Rows,
        first: usize,
        piece: Option<(u64, usize)>,
    ) {
        let (product, skipped) = (&passing.product, first * TILE_ROWS);
        let matrix = &product.matrix;
        let (tiles, count) = piece.unwrap_or_else(|| (self.address(matrix.slot), matrix.shape.tiles()));
        let target = Target {
            tiles,
            bias: product.bias.map_or(0, |bias| self.address(bias) + 4 * skipped as u64),
            out: self.address(product.out) + 4 * (passing.first + skipped) as u64,
            count,
            width: passing.width,
        };
        let written = passing.first + rows.count().saturating_sub(1) * passing.width + matrix.shape.rows;
        assert!(4 * written <= product.out.bytes, "{written} values into {} bytes", product.out.bytes);
        self.multiply_tiles(product, &target, taken, rows);
    }
}
