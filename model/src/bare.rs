//! A model's weights in memory, and nothing that runs them: for training, which has functions and buffers of its own.

use bantam_core::{Arena, Cpu};
use memmap2::MmapMut;

use crate::engine::{LoadError, stored};
use crate::formats::on_load::OnLoad;
use crate::memory;
use crate::plan::{Options, Plan};
use crate::pool::Threads;
use crate::source::{Source, SourceError};
use crate::spec::ModelSpec;
use crate::weights;

/// A model's memory.
pub type Memory = Arena<MmapMut>;

/// How matrices are held.
#[derive(Clone, Copy)]
pub enum Held<'a> {
    /// As they are stored, with room for what the adapter adds; those of layers that are not quantized are, by a way.
    Stored(Option<&'static OnLoad>),
    /// As they are stored, but for those that will be changed, which are float32: by the names of their tensors.
    Floats(&'a dyn Fn(&str) -> bool),
}

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
    /// Reads the weights.
    pub fn load(source: &Source, held: Held, cpu: Cpu, threads: usize) -> Result<Bare, SourceError> {
        let (plan, adapter) = match held {
            Held::Floats(is_float) => {
                let stored = stored(&source.checkpoint);
                let plan = Plan::in_floats(&source.spec, stored, is_float, Options::SMALLEST, cpu);
                let folder = source.folder();
                (plan.map_err(|plan| SourceError::Plan { folder: folder.into(), source: plan })?, None)
            }
            Held::Stored(quantization) => {
                let options = Options { quantization, ..Options::SMALLEST };
                (source.plan(options, cpu)?, source.adapter.as_deref())
            }
        };
        let system = |what: String, source| LoadError::System { what, source };
        let mut arena = memory::region(plan.weight_bytes)
            .and_then(|weights| memory::arena(weights, 0, 0))
            .map_err(|source| system(format!("{} bytes of memory", plan.weight_bytes), source))?;
        let pool = Threads::start(threads).map_err(|source| system("threads".to_owned(), source))?;
        weights::load(&plan, &source.checkpoint, adapter, &mut arena, &pool, &mut |_| {})
            .map_err(LoadError::from)?;
        Ok(Bare { spec: source.spec.clone(), plan, arena, cpu, pool })
    }
}
