//! An adapter for a model that is loaded: planned beside it from headers alone, and read once it has a place in the
//! room that the model has for such.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bantam_core::{Arena, Cpu, Pool, Slot};
use memmap2::MmapMut;

use super::{Adapter, fill};
use crate::plan::{GuestPlan, LayerWeights, Low, LowFill, Options, Plan, Weights};
use crate::source::{Source, SourceError};
use crate::weights::WeightsError;

/// An adapter that fits a model, as far as the headers of both tell.
#[derive(Debug)]
pub struct Guest {
    number: u64,
    adapter: Adapter,
    plan: GuestPlan,
}

impl Guest {
    /// Opens the adapter in a folder for a model that is loaded with these options.
    pub fn open(
        folder: &Path,
        source: &Source,
        options: Options,
        cpu: Cpu,
    ) -> Result<Arc<Guest>, SourceError> {
        let adapter = Adapter::open(folder)?;
        let plan = source.guest(&adapter, options, cpu)?;
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let number = 1 + OPENED.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Guest { number, adapter, plan }))
    }

    /// From 1, another each time that one is opened: what was read with it can be told by it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The folder that it was opened from.
    pub fn folder(&self) -> &Path {
        self.adapter.folder()
    }

    /// Bytes that it takes of the room.
    pub fn bytes(&self) -> usize {
        self.plan.bytes
    }

    /// Whether it was planned beside the weights of this plan.
    pub(crate) fn is_for(&self, plan: &Plan) -> bool {
        self.plan.base_bytes == plan.weight_bytes && self.plan.bytes <= plan.adapter_bytes
    }

    /// The model's weights with what is added to them, which begins at a byte of the room.
    pub(crate) fn weights(&self, offset: usize) -> Weights {
        let mut weights = self.plan.weights.clone();
        let own = [weights.embedding_low.as_mut(), weights.head.low.as_mut()];
        own.into_iter().flatten().for_each(|low| move_low(low, offset));
        for layer in &mut weights.layers {
            let LayerWeights { query, key, value, output, router, gate, up, down, .. } = layer;
            let linears = [query, key, value, output, up, down].into_iter().chain(gate).chain(router);
            linears.filter_map(|linear| linear.low.as_mut()).for_each(|low| move_low(low, offset));
        }
        weights
    }

    /// Reads it to where it begins at a byte of the room.
    pub(crate) fn fill(
        &self,
        offset: usize,
        arena: &mut Arena<MmapMut>,
        pool: &impl Pool,
    ) -> Result<(), WeightsError> {
        for low in &self.plan.fills {
            let mut low: LowFill = low.clone();
            low.slot = moved(low.slot, offset);
            low.factors = low.factors.map(|slot| moved(slot, offset));
            fill(&low, &self.adapter, arena, pool)?;
        }
        Ok(())
    }
}

fn moved(slot: Slot, by: usize) -> Slot {
    Slot { offset: slot.offset + by, ..slot }
}

fn move_low(low: &mut Low, by: usize) {
    for matrix in [&mut low.down, &mut low.up] {
        matrix.slot = moved(matrix.slot, by);
    }
    low.bias = low.bias.map(|slot| moved(slot, by));
    low.factors = low.factors.map(|slot| moved(slot, by));
}
