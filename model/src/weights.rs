//! Fills the weights region as a plan says: from a checkpoint, or with noise for measuring.

use std::sync::Mutex;

use bantam_core::layouts::{NotFinite, TILE_ROWS};
use bantam_core::ops::share::each_row;
use bantam_core::{Arena, Matrix, Pool, Slot};
use memmap2::MmapMut;

use crate::checkpoint::{Checkpoint, TensorView};
use crate::families::Rows;
use crate::plan::{Fill, Plan};

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

/// The tensor's row (or element) that becomes row `row` of a matrix.
fn source_row(rows: Rows, head_width: usize, row: usize) -> usize {
    match rows {
        Rows::All => row,
        Rows::Alternate { index, of } => (row / head_width * of + index) * head_width + row % head_width,
    }
}

/// Copies and repacks every tensor of the plan.
pub fn load(
    plan: &Plan,
    checkpoint: &Checkpoint,
    arena: &mut Arena<MmapMut>,
    pool: &impl Pool,
) -> Result<(), WeightsError> {
    let buffers = Buffers::default();
    let tensor = |name: &str| checkpoint.tensor(name).expect("the plan was made from this checkpoint");
    for fill in &plan.fills {
        match fill {
            Fill::Values { slot, values } => arena.floats_mut(*slot).copy_from_slice(values),
            Fill::Vector { slot, tensor: name, rows, head_width } => {
                let source = tensor(name);
                let mut values = vec![0.0; source.elements()];
                source
                    .load_f32(0, &mut values, &mut Vec::new())
                    .map_err(|error| unreadable(&source, error))?;
                for (i, x) in arena.floats_mut(*slot).iter_mut().enumerate() {
                    let at = source_row(*rows, *head_width, i);
                    *x = values[at];
                    if !x.is_finite() {
                        return Err(not_finite(&source, 0, at));
                    }
                }
            }
            Fill::Matrix { matrix, tensor: name, rows, head_width } => {
                let source = tensor(name);
                let row = |row| source_row(*rows, *head_width, row);
                pack(matrix, &source, row, arena.write(matrix.slot), pool, &buffers)?;
            }
        }
    }
    Ok(())
}

fn not_finite(source: &TensorView, row: usize, column: usize) -> WeightsError {
    let (file, tensor) = (source.file.display().to_string(), source.name.to_owned());
    WeightsError::NotFinite { file, tensor, row, column }
}

fn unreadable(source: &TensorView, error: std::io::Error) -> WeightsError {
    let (file, tensor) = (source.file.display().to_string(), source.name.to_owned());
    WeightsError::Read { file, tensor, reason: error.to_string() }
}

fn pack(
    matrix: &Matrix,
    source: &TensorView,
    source_row: impl Fn(usize) -> usize + Sync,
    out: &mut [u8],
    pool: &impl Pool,
    buffers: &Buffers,
) -> Result<(), WeightsError> {
    let columns = matrix.shape.columns;
    // The first place in the matrix, whichever thread finds one first.
    let failed: Mutex<Option<(usize, WeightsError)>> = Mutex::new(None);
    each_row(pool, out, matrix.layout.tile_bytes(columns), 2, |tile, out| {
        let first = tile * TILE_ROWS;
        let count = TILE_ROWS.min(matrix.shape.rows - first);
        let packed = buffers.lend(count * columns, |rows, bytes| {
            let (from, to) = (source_row(first), source_row(first + count - 1));
            // Rows that follow one another in the file are read at once.
            let run = if to - from == count - 1 { count } else { 1 };
            for (i, rows) in rows.chunks_exact_mut(run * columns).enumerate() {
                let read = source.load_f32(source_row(first + i * run) * columns, rows, bytes);
                read.map_err(|error| unreadable(source, error))?;
            }
            matrix
                .layout
                .pack(columns, rows, out)
                .map_err(|NotFinite { row, column }| not_finite(source, source_row(first + row), column))
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

/// Buffers for the rows of a tile, lent to whichever thread packs one: asking the system for one per tile costs more
/// than packing, and a buffer per thread would outlive the loading.
#[derive(Default)]
struct Buffers(Mutex<Vec<(Vec<f32>, Vec<u8>)>>);

impl Buffers {
    /// Lends `len` values, and room for as many as they are stored.
    fn lend<T>(&self, len: usize, work: impl FnOnce(&mut [f32], &mut Vec<u8>) -> T) -> T {
        let free = || self.0.lock().expect("no holder panics");
        let (mut rows, mut bytes) = free().pop().unwrap_or_default();
        if rows.len() < len {
            rows.resize(len, 0.0);
        }
        let result = work(&mut rows[..len], &mut bytes);
        free().push((rows, bytes));
        result
    }
}

/// Fills the weights with small reproducible noise: for measuring speed, where only sizes count.
pub fn synthesize(plan: &Plan, arena: &mut Arena<MmapMut>, pool: &impl Pool) {
    let buffers = Buffers::default();
    for fill in &plan.fills {
        match fill {
            Fill::Values { slot, values } => arena.floats_mut(*slot).copy_from_slice(values),
            Fill::Vector { slot, .. } => noise(7, 1.0, arena.floats_mut(*slot)),
            Fill::Matrix { matrix, .. } => synthesize_matrix(matrix, arena, pool, &buffers),
        }
    }
}

fn synthesize_matrix(matrix: &Matrix, arena: &mut Arena<MmapMut>, pool: &impl Pool, buffers: &Buffers) {
    let columns = matrix.shape.columns;
    let Slot { offset, .. } = matrix.slot;
    let scale = 1.0 / (columns as f32).sqrt();
    let tile_bytes = matrix.layout.tile_bytes(columns);
    each_row(pool, arena.write(matrix.slot), tile_bytes, 2, |tile, out| {
        buffers.lend(TILE_ROWS * columns, |rows, _| {
            noise((offset + tile) as u64, scale, rows);
            matrix.layout.pack(columns, rows, out).expect("noise is finite");
        });
    });
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
