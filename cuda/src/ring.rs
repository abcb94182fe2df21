//! Weights that pass through a card: a ring of slots, each with memory here and there. A piece of a matrix is copied
//! into a slot here, from there on a second stream to the card, and multiplied while the next piece is on its way. What
//! computes is the same kernels as for a matrix that stands there, a piece being some of its tiles.

use bantam_core::cuda::Kernel;
use bantam_core::layouts::TILE_ROWS;
use bantam_core::{Matrix, Slot};
use bantam_model::card::{BACK_ROWS, Fill, Passing, RING_SLOTS};

use crate::backend::{CudaBackend, GRID_MOST};
use crate::driver::{Card, Staging, Stream};
use crate::fault::Fault;
use crate::product::{Rows, Taken, Target};

/// Tiles of a block of rows that goes backwards.
const BLOCK: usize = BACK_ROWS / TILE_ROWS;

/// The slots, and the stream of their copies.
#[derive(Debug)]
pub(crate) struct Ring {
    copies: Stream,
    slots: Vec<Staging>,
    next: usize,
    /// Of each slot, which of the host's bytes were sent there before they were asked for: from where, and how many.
    ahead: [Option<[usize; 2]>; RING_SLOTS],
}

impl Ring {
    fn new(card: &Card, slot_bytes: usize) -> Result<Ring, Fault> {
        let (copies, ahead) = (card.second_stream()?, [None; RING_SLOTS]);
        let mut ring = Ring { copies, slots: Vec::new(), next: 0, ahead };
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

    /// The pieces in which a matrix comes: which bytes of the host's, and the first tile with how many.
    fn pieces(&self, matrix: &Matrix) -> impl Iterator<Item = ([usize; 2], [usize; 2])> + use<> {
        let (tiles, tile_bytes) = (matrix.shape.tiles(), matrix.layout.tile_bytes(matrix.width()));
        let most = (self.slots[0].bytes() / tile_bytes).min(GRID_MOST);
        // Whole blocks of what goes backwards, where these have room.
        let most = if most < BLOCK { most } else { most / BLOCK * BLOCK };
        let start = matrix.slot.offset;
        (0..tiles).step_by(most).map(move |first| {
            let count = most.min(tiles - first);
            ([start + first * tile_bytes, count * tile_bytes], [first, count])
        })
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

    /// Sends the first pieces of a matrix that will pass next, as many as there are slots, while what was queued before
    /// is computed. Where another comes after all, they were sent for nothing.
    pub fn send_ahead(&mut self, matrix: &Matrix, fill: Fill) {
        let Some(mut ring) = self.ring.take() else { return };
        for (at, (bytes, _)) in ring.pieces(matrix).take(RING_SLOTS).enumerate() {
            let slot = (ring.next + at) % RING_SLOTS;
            if ring.ahead[slot] == Some(bytes) {
                continue;
            }
            ring.ahead[slot] = None;
            if self.send(&mut ring, slot, bytes, fill).is_none() {
                break;
            }
            ring.ahead[slot] = Some(bytes);
        }
        self.ring = Some(ring);
    }

    fn pass_pieces(&self, ring: &mut Ring, passing: &Passing, taken: &Taken, rows: &Rows, fill: Fill) {
        assert!(passing.fits(ring.slots[0].bytes()), "a product that does not fit the ring");
        self.each_piece(ring, &passing.product.matrix, fill, &mut |first, piece| {
            self.pass_tiles(passing, taken, rows, first, Some(piece));
        });
    }

    /// Brings a matrix piece by piece: the number of the first tile, the address, how many tiles.
    pub(crate) fn each_piece(
        &self,
        ring: &mut Ring,
        matrix: &Matrix,
        fill: Fill,
        each: &mut dyn FnMut(usize, (u64, usize)),
    ) {
        for (bytes, [first, count]) in ring.pieces(matrix) {
            let slot = ring.next;
            ring.next = (slot + 1) % RING_SLOTS;
            let is_there = ring.ahead[slot].take() == Some(bytes);
            if !is_there && self.send(ring, slot, bytes, fill).is_none() {
                break;
            }
            let come = self.card.sent_has_come(&ring.slots[slot], bytes[1]);
            let Some(address) = self.noted(come) else { break };
            each(first, (address, count));
            let marked = self.card.sent_is_used(&mut ring.slots[slot]);
            self.note(marked);
        }
    }

    /// Fills a slot with so many bytes from a place on and queues their copy; nothing after a fault.
    fn send(&self, ring: &mut Ring, slot: usize, [at, bytes]: [usize; 2], fill: Fill) -> Option<()> {
        if !self.is_sound() {
            return None;
        }
        let Ring { copies, slots, .. } = ring;
        let slot = &mut slots[slot];
        fill(at, &mut self.noted(self.card.room(slot))?[..bytes]);
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
