//! A model's weights in memory, and nothing that runs them: for training, which has functions and buffers of its own.

use bantam_core::{Arena, Cpu};
use memmap2::MmapMut;

use crate::engine::{LoadError, stored};
use crate::memory;
use crate::plan::{Options, Plan};
use crate::pool::Threads;
use crate::source::{Source, SourceError};
use crate::spec::ModelSpec;
use crate::weights;

/// A model's memory.
pub type Memory = Arena<MmapMut>;

/// The weights, where they lie, and who computes with them.
#[derive(Debug)]
pub struct Bare {
    /// What the model is.
    pub spec: ModelSpec,
    /// Where its weights are, and what they were filled with.
    pub plan: Plan,
    /// The weights region; the others are empty.
    pub arena: Memory,
    /// With which instructions.
    pub cpu: Cpu,
    /// On which threads.
    pub pool: Threads,
}

impl Bare {
    /// Reads the weights: in float32 where they will be changed, else as they are stored, with room for the adapter's.
    pub fn load(source: &Source, in_floats: bool, cpu: Cpu, threads: usize) -> Result<Bare, SourceError> {
        let plan = match in_floats {
            true => Plan::in_floats(&source.spec, stored(&source.checkpoint), Options::SMALLEST, cpu)
                .map_err(|plan| SourceError::Plan { folder: source.folder().into(), source: plan })?,
            false => source.plan(Options::SMALLEST, cpu)?,
        };
        let system = |what: String, source| LoadError::System { what, source };
        let mut arena = memory::region(plan.weight_bytes)
            .and_then(|weights| memory::arena(weights, 0, 0))
            .map_err(|source| system(format!("{} bytes of memory", plan.weight_bytes), source))?;
        let pool = Threads::start(threads).map_err(|source| system("threads".to_owned(), source))?;
        let adapter = source.adapter.as_deref().filter(|_| !in_floats);
        weights::load(&plan, &source.checkpoint, adapter, &mut arena, &pool, &mut |_| {})
            .map_err(LoadError::from)?;
        Ok(Bare { spec: source.spec.clone(), plan, arena, cpu, pool })
    }
}
