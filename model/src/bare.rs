//! A model's weights in memory, and nothing that runs them: for training, which has functions and buffers of its own.
//!
//! Matrices that are read as their files have them need no memory at all: they stay in their files, which are mapped,
//! and are forgotten once a layer is done with them.

use std::collections::HashMap;
use std::sync::Arc;

use bantam_core::layouts::BFLOAT16;
use bantam_core::ops::backward::numbers::Lying;
use bantam_core::{Arena, Cpu};
use memmap2::MmapMut;

use crate::checkpoint::map::Watch;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::engine::{LoadError, stored};
use crate::formats::on_load::OnLoad;
use crate::memory;
use crate::plan::{Cut, Fill, Options, Origin, Plan};
use crate::pool::Threads;
use crate::source::{Source, SourceError};
use crate::spec::ModelSpec;
use crate::weights::{self, WeightsError};

/// A model's memory.
pub type Memory = Arena<MmapMut>;

/// How matrices are held. Those that are not changed and bfloat16 in their files stay there.
#[derive(Clone, Copy)]
pub enum Held<'a> {
    /// As they are stored; those of layers that are not quantized are, by a way. Nothing of the adapter is there.
    Stored(Option<&'static OnLoad>),
    /// As they are stored, but for those that will be changed, which are float32: by the names of their tensors.
    Floats(&'a dyn Fn(&str) -> bool),
}

/// Where a matrix is in a checkpoint, in bfloat16, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    shard: usize,
    /// The tensor's bytes.
    start: usize,
    end: usize,
    columns: usize,
    cut: Cut,
    /// Rows before the first.
    skip: usize,
}

impl Place {
    /// The same from a row on.
    pub fn starting_at(self, row: usize) -> Place {
        Place { skip: self.skip + row, ..self }
    }

    /// The bytes of so many rows, with those between them.
    fn bytes(&self, rows: usize) -> std::ops::Range<usize> {
        let [first, last] = [0, rows - 1].map(|row| self.cut.source_row(self.skip + row));
        let row = 2 * self.columns;
        self.start + first * row..self.start + (last + 1) * row
    }
}

/// Places of matrices, by the offsets of their slots, which stay empty.
pub type Places = HashMap<usize, Place>;

/// The matrices of a plan that can stay where they are; the table of embeddings, of which rows are read, does not.
pub fn places(plan: &Plan, checkpoint: &Checkpoint) -> Places {
    let find = |fill: &Fill| {
        let Fill::Matrix { matrix, origin: Origin::Tensor(name), cut, encode: None } = fill else {
            return None;
        };
        let is_plain = matrix.order.is_none() && matrix.factors.is_none() && matrix.times == 1;
        let is_cut = cut.turned.is_some() || cut.pairs.is_some() || cut.start > 0;
        let tensor = checkpoint.tensor(name)?;
        let is_so =
            matrix.layout.name() == BFLOAT16.name() && tensor.dtype == Dtype::Bf16 && is_plain && !is_cut;
        let is_same = matches!(tensor.shape, [_, columns] if *columns == matrix.shape.columns);
        if !is_so || !is_same || matrix.slot.offset == plan.weights.embedding.slot.offset {
            return None;
        }
        let (shard, std::ops::Range { start, end }) = checkpoint.place(name)?;
        let columns = matrix.shape.columns;
        Some((matrix.slot.offset, Place { shard, start, end, columns, cut: *cut, skip: 0 }))
    };
    plan.fills.iter().filter_map(find).collect()
}

/// Of a file's numbers, how many bytes are checked before they are given back.
const CHECKED_BYTES: usize = 16 << 20;

/// Row and column of the first bfloat16 that is none, in rows of so many bytes.
fn no_number(bytes: &[u8], width: usize) -> Option<(usize, usize)> {
    let is_number = |half: &[u8; 2]| u16::from_le_bytes(*half) & 0x7f80 != 0x7f80;
    let rows = bytes.chunks_exact(width).map(|row| row.as_chunks().0);
    let mut wrong = rows.enumerate().filter(|(_, row)| !row.iter().fold(true, |all, x| all & is_number(x)));
    let (number, row) = wrong.next()?;
    Some((number, row.iter().position(|half| !is_number(half))?))
}

/// Whether a slot of a plan is filled for training.
pub fn is_filled(fill: &Fill, places: &Places) -> bool {
    !matches!(fill, Fill::Low(_)) && !places.contains_key(&fill.slot().offset)
}

/// The weights, where they lie, and who computes with them.
#[derive(Debug)]
pub struct Bare {
    /// What the model is.
    pub spec: ModelSpec,
    /// Where its weights are, and what they were filled with.
    pub plan: Plan,
    /// Those that are in files.
    pub places: Places,
    /// The weights region; the others are empty.
    pub arena: Memory,
    /// With which instructions.
    pub cpu: Cpu,
    /// On which threads.
    pub pool: Threads,
    /// Before the files that are watched, to be dropped first.
    watches: Vec<Watch>,
    checkpoint: Arc<Checkpoint>,
}

impl Bare {
    /// Reads the weights.
    pub fn load(source: &Source, held: Held, cpu: Cpu, threads: usize) -> Result<Bare, SourceError> {
        let checkpoint = Arc::clone(&source.checkpoint);
        let (plan, adapter) = match held {
            Held::Floats(is_float) => {
                let stored = stored(&checkpoint);
                let plan = Plan::in_floats(&source.spec, stored, is_float, Options::SMALLEST, cpu);
                let folder = source.folder();
                (plan.map_err(|plan| SourceError::Plan { folder: folder.into(), source: plan })?, None)
            }
            Held::Stored(quantization) => {
                let options = Options { quantization, ..Options::SMALLEST };
                (source.plan(options, cpu)?, source.adapter.as_deref())
            }
        };
        let places = places(&plan, &checkpoint);
        let system = |what: String, source| LoadError::System { what, source };
        // Pages come when they are first touched: those of slots that stay empty never do, unless they are large.
        let region = if places.is_empty() { memory::region } else { memory::region_of_small_pages };
        let mut arena = region(plan.weight_bytes)
            .and_then(|weights| memory::arena(weights, 0, 0))
            .map_err(|source| system(format!("{} bytes of memory", plan.weight_bytes), source))?;
        let pool = Threads::start(threads).map_err(|source| system("threads".to_owned(), source))?;
        let mut fills = plan.fills.iter().filter(|fill| is_filled(fill, &places));
        weights::load_some(&mut fills, &checkpoint, adapter, &mut arena, &pool, &mut |_| {})
            .map_err(LoadError::from)?;
        let shards = match places.is_empty() {
            true => Vec::new(),
            false => checkpoint.parts().unwrap_or_default(),
        };
        let watches = shards.iter().map(|(_, map, _)| map.watch()).collect();
        let spec = source.spec.clone();
        let bare = Bare { spec, plan, places, arena, cpu, pool, watches, checkpoint };
        bare.check_numbers().map_err(LoadError::from)?;
        Ok(bare)
    }

    /// The numbers that stayed in a file.
    pub fn lying(&self, place: Place) -> Lying<'_> {
        let map = self.checkpoint.map(place.shard).expect("a place is in a mapped file");
        let Cut { first, run, every, .. } = place.cut;
        let bytes = &map.bytes()[place.start..place.end];
        Lying { bytes, columns: place.columns, first, skip: place.skip, run, every }
    }

    /// Asks for rows that come next.
    pub fn ask_for(&self, place: Place, rows: usize) {
        self.checkpoint.map(place.shard).expect("a place is in a mapped file").ask_for(place.bytes(rows));
    }

    /// Gives back the memory of rows that are done with for now.
    pub fn forget(&self, place: Place, rows: usize) {
        self.checkpoint.map(place.shard).expect("a place is in a mapped file").forget(place.bytes(rows));
    }

    /// Whether what stayed in files is still what it was.
    pub fn is_sound(&self) -> bool {
        let is_unwritten = self.places.is_empty() || self.checkpoint.is_unwritten();
        is_unwritten && !self.watches.iter().any(Watch::has_failed)
    }

    /// As weights that are loaded are checked, with as little of the files in memory as steps have.
    fn check_numbers(&self) -> Result<(), WeightsError> {
        for fill in &self.plan.fills {
            let Fill::Matrix { matrix, origin: Origin::Tensor(name), .. } = fill else { continue };
            let Some(place) = self.places.get(&matrix.slot.offset) else { continue };
            let map = self.checkpoint.map(place.shard).expect("a place is in a mapped file");
            let width = 2 * place.columns;
            let step = (CHECKED_BYTES / width).max(1) * width;
            for start in (place.start..place.end).step_by(step) {
                let part = start..place.end.min(start + step);
                if let Some((row, column)) = no_number(&map.bytes()[part.clone()], width) {
                    let tensor = self.checkpoint.tensor(name).expect("it has a place");
                    return Err(weights::not_finite(&tensor, (start - place.start) / width + row, column));
                }
                map.forget(part);
            }
        }
        Ok(())
    }
}
