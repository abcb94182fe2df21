//! Fills the weights region as a plan says: from a checkpoint, or with noise for measuring.

use std::sync::Mutex;

use bantam_core::layouts::coded::{Coded, CodedRows};
use bantam_core::layouts::{Layout, NotFinite, TILE_ROWS};
use bantam_core::ops::matmul::IN_ORDER;
use bantam_core::ops::share::each_row;
use bantam_core::{Arena, Matrix, Pool};
use memmap2::MmapMut;

use crate::adapter::{self, Adapter};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::formats::encode::nest;
use crate::formats::on_load::OnLoad;
use crate::formats::{CodeRow, Packed, Refusal, Rows};
use crate::plan::{Cut, Fill, Origin, Plan};

/// Why weights could not be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// A weight that is no number.
    #[error(
        "{file}: tensor {tensor}: expected finite numbers, found NaN or infinity at row {row}, column {column}: the file is damaged, or its training went wrong"
    )]
    NotFinite {
        /// The checkpoint's file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// Quantized weights that mean nothing.
    #[error(
        "{file}: tensor {tensor}: {reason}: the file is damaged, or made by a tool that does it otherwise"
    )]
    Quantized {
        /// The checkpoint's file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The file cannot be read any more.
    #[error("{file}: tensor {tensor}: {reason}; was the file changed or cut while it was being loaded?")]
    Read {
        /// The checkpoint's file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What the system said.
        reason: String,
    },
}

/// Copies and repacks every tensor of the plan, and tells how many bytes of the weights are there.
pub fn load(
    plan: &Plan,
    checkpoint: &Checkpoint,
    adapter: Option<&Adapter>,
    arena: &mut Arena<MmapMut>,
    pool: &impl Pool,
    tell: &mut dyn FnMut(usize),
) -> Result<(), WeightsError> {
    load_some(&mut plan.fills.iter(), checkpoint, adapter, arena, pool, tell)
}

/// The same for some of them.
pub(crate) fn load_some(
    fills: &mut dyn Iterator<Item = &Fill>,
    checkpoint: &Checkpoint,
    adapter: Option<&Adapter>,
    arena: &mut Arena<MmapMut>,
    pool: &impl Pool,
    tell: &mut dyn FnMut(usize),
) -> Result<(), WeightsError> {
    let buffers = Buffers::default();
    let mut bytes = 0;
    let tensor = |name: &str, whole: bool| {
        let found =
            if whole { adapter.and_then(|adapter| adapter.whole(name)) } else { checkpoint.tensor(name) };
        found.expect("the plan was made from this checkpoint and adapter")
    };
    for fill in fills {
        match fill {
            Fill::Values { slot, values } => arena.floats_mut(*slot).copy_from_slice(values),
            Fill::Low(low) => {
                let adapter = adapter.expect("the plan was made with this adapter");
                adapter::fill(low, adapter, arena, pool)?;
            }
            Fill::Vector { slot, tensor: name, cut, whole } => {
                let source = tensor(name, *whole);
                let mut values = vec![0.0; source.elements()];
                source
                    .load_f32(0, &mut values, &mut Vec::new())
                    .map_err(|error| unreadable(&source, error))?;
                for (i, x) in arena.floats_mut(*slot).iter_mut().enumerate() {
                    let at = cut.source_row(i);
                    *x = values[at];
                    if !x.is_finite() {
                        return Err(not_finite(&source, 0, at));
                    }
                }
            }
            Fill::Matrix { matrix, origin, cut, encode } => {
                let to = To { matrix, encode: *encode, pool, buffers: &buffers };
                let whole = matches!(origin, Origin::Whole(_));
                match (origin, cut.turned) {
                    (Origin::Tensor(name) | Origin::Whole(name), None) => {
                        to.pack_rows(&tensor(name, whole), cut, arena.write(matrix.slot))?;
                    }
                    (Origin::Tensor(name) | Origin::Whole(name), Some(pitch)) => {
                        to.pack_columns(&tensor(name, whole), cut, pitch, arena.write(matrix.slot))?;
                    }
                    (Origin::Packed(packed), _) => {
                        check_notes(packed, checkpoint)?;
                        // What is quantized on the way is decoded first: its layout is for other codes.
                        match matrix.layout.coded().filter(|_| encode.is_none()) {
                            Some(layout) => to.pack_codes(layout, packed, checkpoint, cut, arena)?,
                            None => {
                                to.pack_quantized(packed, checkpoint, cut, arena.write(matrix.slot))?;
                            }
                        }
                    }
                }
            }
        }
        bytes += fill.slot().bytes;
        tell(bytes);
    }
    Ok(())
}

pub(crate) fn not_finite(source: &TensorView, row: usize, column: usize) -> WeightsError {
    let (file, tensor) = (source.file.display().to_string(), source.name.to_owned());
    WeightsError::NotFinite { file, tensor, row, column }
}

pub(crate) fn unreadable(source: &TensorView, error: std::io::Error) -> WeightsError {
    let (file, tensor) = (source.file.display().to_string(), source.name.to_owned());
    WeightsError::Read { file, tensor, reason: error.to_string() }
}

/// A matrix that is packed, and with what.
struct To<'a, P> {
    matrix: &'a Matrix,
    /// How it is quantized on the way.
    encode: Option<&'static OnLoad>,
    pool: &'a P,
    buffers: &'a Buffers,
}

impl<P: Pool> To<'_, P> {
    fn columns(&self) -> usize {
        self.matrix.shape.columns
    }

    /// Packs a matrix whose rows are rows of the tensor.
    fn pack_rows(&self, source: &TensorView, cut: &Cut, out: &mut [u8]) -> Result<(), WeightsError> {
        let columns = self.columns();
        let nested = self.nested_scales(source)?;
        let blocks = nested.len() / (source.elements() / columns).max(1);
        let read = |first: usize, count: usize, rows: &mut [f32], bytes: &mut Vec<u8>| {
            let (from, to) = (cut.source_row(first), cut.source_row(first + count - 1));
            // Rows that follow one another in the file are read at once.
            let run = if to - from == count - 1 && cut.pairs.is_none() { count } else { 1 };
            for (i, rows) in rows.chunks_exact_mut(run * columns).enumerate() {
                let at = cut.start + cut.source_row(first + i * run) * columns;
                source.load_f32(at, rows, bytes).map_err(|error| unreadable(source, error))?;
            }
            Ok(())
        };
        let place = |NotFinite { row, column }| (cut.source_row(row), column);
        let scales = |row: usize| nested.get(cut.source_row(row) * blocks..).filter(|of| !of.is_empty());
        self.pack(source, out, read, place, scales)
    }

    /// Scales that are quantized again, of all rows of a tensor; none where they are not.
    fn nested_scales(&self, source: &TensorView) -> Result<Vec<f32>, WeightsError> {
        let mut scales = Vec::new();
        let Some(way) = self.encode.filter(|way| way.nested) else { return Ok(scales) };
        let (mut row, mut bytes) = (vec![0.0; self.columns()], Vec::new());
        for at in (0..source.elements()).step_by(self.columns()) {
            source.load_f32(at, &mut row, &mut bytes).map_err(|error| unreadable(source, error))?;
            way.scales(&row, &mut scales);
        }
        nest(&mut scales);
        Ok(scales)
    }

    /// Packs a matrix whose rows are columns of the tensor. Its elements lie far apart in the file, so all of it is
    /// read at first.
    fn pack_columns(
        &self,
        source: &TensorView,
        cut: &Cut,
        pitch: usize,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let columns = self.columns();
        let mut slab = self.buffers.slab.lock().expect("no holder panics");
        let (values, bytes) = &mut *slab;
        let all = room(values, columns * pitch);
        source.load_f32(cut.start, all, bytes).map_err(|error| unreadable(source, error))?;
        let all = &*all;
        let read = |first: usize, count: usize, rows: &mut [f32], _: &mut Vec<u8>| {
            for (column, stored) in all.chunks_exact(pitch).enumerate() {
                for row in 0..count {
                    rows[row * columns + column] = stored[cut.source_row(first + row)];
                }
            }
            Ok(())
        };
        let place = |NotFinite { row, column }| (cut.start / pitch + column, cut.source_row(row));
        self.pack(source, out, read, place, |_| None)
    }

    /// Packs a matrix that is quantized as numbers. Its tensors are read whole; rows are made of them tile by tile.
    fn pack_quantized(
        &self,
        packed: &Packed,
        checkpoint: &Checkpoint,
        cut: &Cut,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let sources = packed.sources(checkpoint);
        let unpacked = Unpacked::read(packed, &sources)?;
        let columns = self.columns();
        let rows = unpacked.rows()?;
        let factors = divisors(packed, checkpoint)?;
        let read = |first: usize, count: usize, out: &mut [f32], _: &mut Vec<u8>| {
            for (row, out) in (first..first + count).zip(out.chunks_exact_mut(columns)) {
                rows.row(cut.source_row(row), out);
                out.iter_mut().zip(&factors).for_each(|(value, factor)| *value /= factor);
            }
            Ok(())
        };
        let place = |NotFinite { row, column }| (cut.source_row(row), column);
        self.pack(&sources[0], out, read, place, |_| None)
    }

    /// Packs a matrix in the codes that it is stored in.
    fn pack_codes(
        &self,
        layout: &Coded,
        packed: &Packed,
        checkpoint: &Checkpoint,
        cut: &Cut,
        arena: &mut Arena<MmapMut>,
    ) -> Result<(), WeightsError> {
        let sources = packed.sources(checkpoint);
        let unpacked = Unpacked::read(packed, &sources)?;
        let rows = unpacked.rows()?;
        let columns = self.matrix.width();
        if let (Some(slot), Some(factors)) = (self.matrix.factors, rows.factors()) {
            arena.floats_mut(slot).copy_from_slice(factors);
        }
        let order = rows.order();
        if let Some(slot) = self.matrix.order {
            let stored: &mut [u32] = bytemuck::cast_slice_mut(arena.write(slot));
            match order {
                Some(order) => stored.copy_from_slice(order),
                None => stored.fill(IN_ORDER),
            }
        }
        let (block, blocks) = (layout.block(), layout.blocks(columns));
        let place = |NotFinite { row, column }| (cut.source_row(row), column);
        let tiles = arena.write(self.matrix.slot);
        self.pack_tiles(&sources[0], tiles, place, |first, count, out| {
            let mut codes = vec![0; count * columns];
            let (mut scales, mut zeros) = (vec![0.0; count * blocks], vec![0.0; count * blocks]);
            for row in 0..count {
                let (codes, of_row) =
                    (&mut codes[row * columns..][..columns], row * blocks..(row + 1) * blocks);
                let (scales, zeros) = (&mut scales[of_row.clone()], &mut zeros[of_row]);
                rows.codes(cut.source_row(first + row), &mut CodeRow { block, codes, scales, zeros, order });
            }
            let rows = CodedRows { codes: &codes, scales: &scales, zeros: &zeros };
            Ok(layout.pack_codes(columns, rows, out))
        })
    }

    /// Packs tile by tile. `read` gets rows of the matrix, `place` says where in the tensor a weight stands, `scales`
    /// gives those of a row's blocks where they are quantized again.
    fn pack<'s>(
        &self,
        source: &TensorView,
        out: &mut [u8],
        read: impl Fn(usize, usize, &mut [f32], &mut Vec<u8>) -> Result<(), WeightsError> + Sync,
        place: impl Fn(NotFinite) -> (usize, usize) + Sync,
        scales: impl Fn(usize) -> Option<&'s [f32]> + Sync,
    ) -> Result<(), WeightsError> {
        let (columns, layout) = (self.columns(), self.matrix.layout);
        let (encode, buffers) = (self.encode, self.buffers);
        self.pack_tiles(source, out, place, |first, count, out| {
            buffers.lend(count * columns, |rows, bytes| {
                read(first, count, rows, bytes)?;
                Ok(match (encode, layout.coded()) {
                    (Some(way), Some(layout)) => {
                        way.pack(layout, columns, rows, |row| scales(first + row), out)
                    }
                    _ => layout.pack(columns, rows, out),
                })
            })
        })
    }

    /// Packs tile by tile: `pack` gets the first row of a tile, how many it has, and where it goes.
    fn pack_tiles(
        &self,
        source: &TensorView,
        out: &mut [u8],
        place: impl Fn(NotFinite) -> (usize, usize) + Sync,
        pack: impl Fn(usize, usize, &mut [u8]) -> Result<Result<(), NotFinite>, WeightsError> + Sync,
    ) -> Result<(), WeightsError> {
        let Matrix { layout, shape, .. } = *self.matrix;
        let width = self.matrix.width();
        // The first place in the matrix, whichever thread finds one first.
        let failed: Mutex<Option<(usize, WeightsError)>> = Mutex::new(None);
        each_row(self.pool, out, layout.tile_bytes(width), 2, |tile, out| {
            let first = tile * TILE_ROWS;
            let count = TILE_ROWS.min(shape.rows - first);
            let packed = pack(first, count, out).and_then(|packed| {
                packed.map_err(|NotFinite { row, column }| {
                    let (row, column) = place(NotFinite { row: first + row, column });
                    not_finite(source, row, column)
                })
            });
            if let Err(error) = packed {
                let mut failed = failed.lock().expect("no holder panics");
                if failed.as_ref().is_none_or(|(earlier, _)| first < *earlier) {
                    *failed = Some((first, error));
                }
            }
        });
        match failed.into_inner().expect("no holder panics") {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// What the columns of a quantized matrix are divided by, where they are.
pub(crate) fn divisors(packed: &Packed, checkpoint: &Checkpoint) -> Result<Vec<f32>, WeightsError> {
    let Some(name) = &packed.divisors else { return Ok(Vec::new()) };
    let divisors = checkpoint.tensor(name).expect("the plan was made from this checkpoint");
    let mut factors = vec![0.0; packed.shape.columns];
    divisors.load_f32(0, &mut factors, &mut Vec::new()).map_err(|error| unreadable(&divisors, error))?;
    match factors.iter().position(|factor| !factor.is_finite() || *factor == 0.0) {
        None => Ok(factors),
        Some(at) => {
            let reason = format!("expected numbers to divide by, found {} at element {at}", factors[at]);
            Err(quantized(&divisors, reason))
        }
    }
}

/// Notes that say something else than the configuration are a sign that it is another checkpoint's.
pub(crate) fn check_notes(packed: &Packed, checkpoint: &Checkpoint) -> Result<(), WeightsError> {
    for (name, numbers) in &packed.notes {
        let (Some(tensor), Some(wanted)) = (checkpoint.tensor(name), numbers) else { continue };
        let mut found = vec![0.0; wanted.len()];
        if tensor.elements() == wanted.len() {
            tensor.load_f32(0, &mut found, &mut Vec::new()).map_err(|error| unreadable(&tensor, error))?;
        }
        // Sizes are far below what float32 cannot hold exactly.
        if tensor.elements() != wanted.len() || found.iter().zip(wanted).any(|(a, &b)| *a != b as f32) {
            return Err(quantized(
                &tensor,
                format!("expected {wanted:?} as in config.json, found {found:?}"),
            ));
        }
    }
    Ok(())
}

pub(crate) fn quantized(source: &TensorView, reason: String) -> WeightsError {
    let (file, tensor) = (source.file.display().to_string(), source.name.to_owned());
    WeightsError::Quantized { file, tensor, reason }
}

/// The bytes of a quantized matrix's tensors.
pub(crate) struct Unpacked<'a> {
    packed: &'a Packed,
    sources: &'a [TensorView<'a>],
    bytes: Vec<Vec<u8>>,
}

impl<'a> Unpacked<'a> {
    /// Reads them.
    pub(crate) fn read(packed: &'a Packed, sources: &'a [TensorView<'a>]) -> Result<Self, WeightsError> {
        let read = |(at, source): (usize, &TensorView)| {
            let part = packed.parts.get(at).cloned().unwrap_or(0..source.data.len());
            source.load(part).map_err(|error| unreadable(source, error))
        };
        let bytes = sources.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Unpacked { packed, sources, bytes })
    }

    /// The matrix, checked.
    pub(crate) fn rows(&self) -> Result<Box<dyn Rows + '_>, WeightsError> {
        let bytes: Vec<&[u8]> = self.bytes.iter().map(Vec::as_slice).collect();
        self.packed
            .decode
            .open(self.packed.shape, &bytes)
            .map_err(|Refusal { tensor, reason }| quantized(&self.sources[tensor], reason))
    }
}

/// Buffers for the rows of a tile, lent to whichever thread packs one: asking the system for one per tile costs more
/// than packing, and a buffer per thread would outlive the loading.
#[derive(Default)]
struct Buffers {
    tiles: Mutex<Vec<Buffer>>,
    /// For a whole tensor, or one expert's part of it.
    slab: Mutex<Buffer>,
}

/// Values, and room for as many as they are stored.
type Buffer = (Vec<f32>, Vec<u8>);

impl Buffers {
    /// Lends `len` values.
    fn lend<T>(&self, len: usize, work: impl FnOnce(&mut [f32], &mut Vec<u8>) -> T) -> T {
        let free = || self.tiles.lock().expect("no holder panics");
        let mut buffer = free().pop().unwrap_or_default();
        let result = work(room(&mut buffer.0, len), &mut buffer.1);
        free().push(buffer);
        result
    }
}

fn room(values: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if values.len() < len {
        values.resize(len, 0.0);
    }
    &mut values[..len]
}

/// Fills the weights with small reproducible noise: for measuring speed, where only sizes count.
pub fn synthesize(plan: &Plan, arena: &mut Arena<MmapMut>, pool: &impl Pool) {
    let mut models: Vec<(&str, usize, Vec<u32>)> = Vec::new();
    for fill in &plan.fills {
        match fill {
            Fill::Values { slot, values } => arena.floats_mut(*slot).copy_from_slice(values),
            Fill::Low(low) => arena.write(low.slot).fill(0),
            Fill::Vector { slot, .. } => noise(7, 1.0, arena.floats_mut(*slot)),
            Fill::Matrix { matrix, .. } => {
                let Matrix { layout, slot, .. } = matrix;
                let kind = (layout.name(), matrix.width());
                let known = models.iter().position(|(name, columns, _)| (*name, *columns) == kind);
                let at = known.unwrap_or_else(|| {
                    models.push((kind.0, kind.1, model_tile(*layout, kind.1)));
                    models.len() - 1
                });
                let model: &[u8] = bytemuck::cast_slice(&models[at].2);
                let first = slot.offset / slot.bytes.max(1);
                let copy = |tile: usize, out: &mut [u8]| copy_turned(model, first + tile, out);
                each_row(pool, arena.write(*slot), model.len(), 2, copy);
            }
        }
    }
}

/// A tile of noise. The nearest codes of noise are slow to find, so that one tile is the model of many.
fn model_tile(layout: &dyn Layout, columns: usize) -> Vec<u32> {
    let mut rows = vec![0.0; TILE_ROWS * columns];
    noise(columns as u64, 1.0 / (columns as f32).sqrt(), &mut rows);
    let mut tile = vec![0; layout.tile_bytes(columns) / 4];
    layout.pack(columns, &rows, bytemuck::cast_slice_mut(&mut tile)).expect("noise is finite");
    tile
}

/// Copies a tile, each row to a place `by` further on. In every layout a tile is words with the rows side by side.
fn copy_turned(tile: &[u8], by: usize, out: &mut [u8]) {
    const WORDS: usize = TILE_ROWS * 4;
    let at = by % TILE_ROWS * 4;
    for (from, to) in tile.chunks_exact(WORDS).zip(out.chunks_exact_mut(WORDS)) {
        to[at..].copy_from_slice(&from[..WORDS - at]);
        to[..at].copy_from_slice(&from[WORDS - at..]);
    }
}

/// Uniform values in -scale..scale.
fn noise(seed: u64, scale: f32, out: &mut [f32]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for x in out {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *x = ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale;
    }
}

#[cfg(test)]
mod tests {
    use bantam_core::layouts::LAYOUTS;

    use super::*;

    #[test]
    fn a_turned_tile_holds_the_same_rows() {
        for (&layout, columns) in LAYOUTS.iter().zip([64, 96, 200].into_iter().cycle()) {
            let tile = model_tile(layout, columns);
            let mut turned = vec![0u32; tile.len()];
            copy_turned(bytemuck::cast_slice(&tile), 3, bytemuck::cast_slice_mut(&mut turned));
            let unpacked = |tile: &[u32], row| {
                let mut out = vec![0.0; columns];
                layout.unpack(columns, bytemuck::cast_slice(tile), row, &mut out);
                out
            };
            for row in 0..TILE_ROWS {
                let same = unpacked(&tile, row) == unpacked(&turned, (row + 3) % TILE_ROWS);
                assert!(same, "{}, row {row}", layout.name());
            }
            assert_ne!(unpacked(&tile, 0), unpacked(&tile, 1), "{}", layout.name());
        }
    }
}
