//! A card's memory laid out to be measured: matrices in the region of weights, floats to be copied and read in that of
//! the cache, inputs and results in that of activations.

use bantam_core::layouts::{Layout, Shape, TILE_ROWS};
use bantam_core::{Backend, Matrix, Precision, Product, Region, Slot};
use bantam_model::card::{Card, Stretch};

use crate::backend::{CudaBackend, Sizes};
use crate::driver;
use crate::fault::{Absent, Fault};

/// Why a card is not measured.
#[derive(Debug, thiserror::Error)]
pub enum Unmeasured {
    /// It is not there, or cannot be used.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// It failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Bytes of matrices: copies that take turns.
    pub weights: usize,
    /// Bytes that are copied to as many beside them.
    pub copied: usize,
    /// Tokens at most.
    pub tokens: usize,
    /// Columns of matrices.
    pub columns: usize,
    /// Floats of a result at most.
    pub out: usize,
}

/// A card ready to be measured.
#[derive(Debug)]
pub struct Desk {
    backend: CudaBackend,
    extent: Extent,
    x: Slot,
    out: Slot,
}

/// Rows of floats that are read at once: as many as blocks of threads.
const READ_ROWS: usize = 1 << 12;

impl Desk {
    /// Takes the memory of the card with this number, and fills what is copied.
    pub fn new(number: usize, extent: Extent) -> Result<Desk, Unmeasured> {
        let mut work = 0;
        let mut slot = |floats: usize| {
            let offset = work;
            work += (4 * floats).next_multiple_of(256);
            Slot { region: Region::Work, offset, bytes: 4 * floats }
        };
        let x = slot(extent.tokens * extent.columns);
        let panels = slot(extent.tokens * (extent.columns + 64));
        let out = slot(extent.out.max(READ_ROWS));
        let sizes = Sizes {
            weights: extent.weights,
            cache: 2 * extent.copied,
            work,
            rows: extent.tokens,
            tables: 64,
            results: 1 << 16,
        };
        let mut backend = CudaBackend::new(driver::Card::open(number)?, Precision::Fast, sizes, panels)?;
        let values: Vec<f32> = noise(extent.tokens * extent.columns);
        backend.upload(Region::Work, 0, bytemuck::cast_slice(&values));
        let values = noise(extent.copied / 4);
        backend.upload(Region::Cache, 0, bytemuck::cast_slice(&values));
        Ok(Desk { backend, extent, x, out })
    }

    /// What drives it.
    pub fn backend(&mut self) -> &mut CudaBackend {
        &mut self.backend
    }

    /// Fails if the card did.
    pub fn check(&self) -> Result<(), Unmeasured> {
        self.backend.fault().map_or(Ok(()), |fault| Err(fault.into()))
    }

    /// Copies of a matrix, as many as fit side by side or one.
    pub fn matrices(&mut self, layout: &'static dyn Layout, rows: usize) -> Vec<Matrix> {
        let shape = Shape { rows, columns: self.extent.columns };
        let tile_bytes = layout.tile_bytes(shape.columns);
        let bytes = shape.tiles() * tile_bytes;
        // The nearest codes of noise are slow to find, and no kernel asks what they are: one tile stands for all.
        let mut tile = vec![0; tile_bytes];
        layout.pack(shape.columns, &noise(TILE_ROWS * shape.columns), &mut tile).expect("noise is finite");
        let all = tile.repeat(shape.tiles());
        let count = (self.extent.weights / bytes).max(1);
        let matrix = |at: usize| {
            self.backend.upload(Region::Weights, at * bytes, &all);
            let slot = Slot { region: Region::Weights, offset: at * bytes, bytes };
            Matrix::plain(layout, shape, slot)
        };
        (0..count).map(matrix).collect()
    }

    /// A product of the first rows of the input.
    pub fn queue(&mut self, tokens: usize, matrix: &Matrix) {
        let out = self.out.first(tokens * matrix.shape.rows);
        let product = Product { matrix: *matrix, bias: None, out, add: false };
        self.backend.matmul(tokens, self.x, &[product]);
    }

    /// Keeps products with one token as a graph, as decoding does; whether the card can.
    pub fn keep(&mut self, matrices: &[Matrix]) -> bool {
        Card::begin(&mut self.backend);
        matrices.iter().for_each(|matrix| self.queue(1, matrix));
        Card::keep(&mut self.backend, Stretch::Logits { rows: &[0] }, usize::MAX).is_ok()
    }

    /// Seconds of what was kept.
    pub fn kept_seconds(&mut self) -> Result<f64, Unmeasured> {
        let mut was_kept = true;
        let seconds = self.backend.seconds(|card| {
            was_kept &= Card::again(card, Stretch::Logits { rows: &[0] });
        })?;
        match was_kept {
            true => Ok(seconds),
            false => Err(Fault::Lost { what: "a graph", code: "nothing was kept" }.into()),
        }
    }

    /// Seconds of products that are queued one by one.
    pub fn seconds(&mut self, tokens: usize, matrices: &[Matrix]) -> Result<f64, Unmeasured> {
        let (x, out) = (self.x, self.out);
        let seconds = self.backend.seconds(|card| {
            for matrix in matrices {
                let out = out.first(tokens * matrix.shape.rows);
                card.matmul(tokens, x, &[Product { matrix: *matrix, bias: None, out, add: false }]);
            }
        });
        Ok(seconds?)
    }

    /// Bytes per second of a copy within the card: every byte is read once and written once, and counted twice.
    pub fn copy_rate(&mut self) -> Result<f64, Unmeasured> {
        let bytes = self.extent.copied;
        let slot = |offset| Slot { region: Region::Cache, offset, bytes };
        let seconds = self.backend.seconds(|card| card.copy(slot(0), slot(bytes)))?;
        Ok(2.0 * bytes as f64 / seconds)
    }

    /// Bytes per second of a kernel that reads floats and writes next to nothing: the search for rows' largest.
    pub fn read_rate(&mut self) -> Result<f64, Unmeasured> {
        let floats = self.extent.copied / 4;
        let rows = READ_ROWS.min(floats / 1024).max(1);
        let bytes = floats / rows * rows * 4;
        let x = Slot { region: Region::Cache, offset: 0, bytes };
        let out = self.out;
        let seconds = self.backend.seconds(|card| card.argmax(rows, floats / rows, x, out))?;
        Ok(bytes as f64 / seconds)
    }
}

/// Numbers around zero that look random and are the same in every run.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 44) as f32 / (1 << 19) as f32 - 1.0
    };
    (0..count).map(|_| number()).collect()
}
