//! Experts of a block that get codes in the place of their weights: beside a stack of originals, a stack of codes fills
//! up expert by expert, and takes the first one's place once it is whole.

use bantam_core::layouts::coded::CodedRows;
use bantam_core::layouts::{Layout, NotFinite, TILE_ROWS};
use bantam_core::{CpuBackend, Matrix, Slot};
use memmap2::MmapMut;

use super::Piece;
use crate::decoder::Decoder;
use crate::formats::CodeRow;
use crate::plan::{Cut, Linear, Plan};
use crate::pool::Threads;

/// The same projection of all experts.
#[derive(Debug)]
pub(super) struct Stack {
    /// Which of gate, up and down.
    kind: usize,
    codes: Matrix,
    /// By expert, which of the block's pieces.
    pieces: Vec<usize>,
    is_done: Vec<bool>,
}

impl Stack {
    /// Those of a plan: gate, up, down.
    pub(super) fn all(plan: &Plan, codes: [Option<Matrix>; 3], pieces: &[Piece]) -> Vec<Stack> {
        let layer = &plan.weights.layers[0];
        let originals = [layer.gate, Some(layer.up), Some(layer.down)];
        let stack = |(kind, (original, codes)): (usize, (Option<Linear>, Option<Matrix>))| {
            let (original, codes) = (original?.matrix.slot, codes?);
            let of_it = |at: &usize| original.range().contains(&pieces[*at].matrix.slot.offset);
            let pieces: Vec<usize> = (0..pieces.len()).filter(of_it).collect();
            Some(Stack { kind, codes, is_done: vec![false; pieces.len()], pieces })
        };
        originals.into_iter().zip(codes).enumerate().filter_map(stack).collect()
    }

    /// Whether a module is one of its experts.
    pub(super) fn holds(&self, pieces: &[Piece], module: usize) -> bool {
        self.pieces.iter().any(|&at| pieces[at].module == module)
    }

    /// Whether all experts have their codes.
    pub(super) fn is_whole(&self) -> bool {
        self.is_done.iter().all(|is_done| *is_done)
    }

    fn expert(&self, number: usize) -> Matrix {
        let slot = self.codes.slot;
        let bytes = slot.bytes / self.pieces.len();
        Matrix { slot: Slot { offset: slot.offset + number * bytes, bytes, ..slot }, ..self.codes }
    }

    /// Packs the codes of a module, as far as it is one of these experts.
    pub(super) fn pack(
        &mut self,
        pieces: &[Piece],
        module: usize,
        codes: &(dyn Fn(usize, &mut CodeRow) + Sync),
        backend: &mut CpuBackend<MmapMut, Threads>,
    ) -> Result<(), NotFinite> {
        for number in 0..self.pieces.len() {
            let piece = &pieces[self.pieces[number]];
            if piece.module == module {
                let to = self.expert(number);
                pack(&to, &piece.cut, codes, backend.arena_mut().write(to.slot))?;
                self.is_done[number] = true;
            }
        }
        Ok(())
    }

    /// Takes the place of the originals.
    pub(super) fn place(&self, pieces: &mut [Piece], decoder: &mut Decoder) {
        for (number, &at) in self.pieces.iter().enumerate() {
            pieces[at].matrix = self.expert(number);
        }
        let matrix = decoder.feed_forward(0)[self.kind].take();
        *matrix.expect("the stack was planned for it") = self.codes;
    }
}

fn pack(
    to: &Matrix,
    cut: &Cut,
    codes_of: &(dyn Fn(usize, &mut CodeRow) + Sync),
    tiles: &mut [u8],
) -> Result<(), NotFinite> {
    let layout = to.layout.coded().expect("a stack of codes");
    let columns = to.width();
    let (block, blocks) = (layout.block(), layout.blocks(columns));
    let (mut codes, mut scales) = (vec![0; TILE_ROWS * columns], vec![0.0; TILE_ROWS * blocks]);
    let mut zeros = scales.clone();
    for (number, tile) in tiles.chunks_exact_mut(layout.tile_bytes(columns)).enumerate() {
        let first = number * TILE_ROWS;
        let count = TILE_ROWS.min(to.shape.rows - first);
        for row in 0..count {
            let of_row = row * blocks..(row + 1) * blocks;
            let mut out = CodeRow {
                block,
                codes: &mut codes[row * columns..][..columns],
                scales: &mut scales[of_row.clone()],
                zeros: &mut zeros[of_row],
                order: None,
            };
            codes_of(cut.source_row(first + row), &mut out);
        }
        let rows = CodedRows {
            codes: &codes[..count * columns],
            scales: &scales[..count * blocks],
            zeros: &zeros[..count * blocks],
        };
        layout.pack_codes(columns, rows, tile)?;
    }
    Ok(())
}
