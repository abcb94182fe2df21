//! The table of every byte of a run, made before any of it exists.
//!
//! A plan is computed from a model's specification and the headers of its tensors; loading takes exactly the regions
//! that it adds up to. [`Fill`]s say what is to be put where.

mod low;
mod planner;

use bantam_core::layouts::coded::Coding;
use bantam_core::layouts::page::POSITIONS;
use bantam_core::{Cpu, KvCache, KvKind, Matrix, Norm, Precision, Region, Rope, Slot, Trits};

use crate::adapter::{Adapter, Used};
use crate::checkpoint::Dtype;
use crate::formats::Packed;
use crate::formats::on_load::OnLoad;
use crate::sampler::Sampler;
use crate::spec::ModelSpec;
pub(crate) use low::wrapped;
pub use low::{GUEST_RANK_MAX, Low, LowFill, LowSide};
use planner::Planner;
pub(crate) use planner::cut;

/// Choices that decide how much memory a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Positions per sequence.
    pub context: usize,
    /// Sequences that can be open at once.
    pub sequences: usize,
    /// Positions that the cache holds for all sequences together, up to whole pages; `None` is the context for each.
    pub cache_positions: Option<usize>,
    /// Tokens in a step at most.
    pub chunk: usize,
    /// Rows of logits that can be asked for at once.
    pub logits_rows: usize,
    /// How keys and values are stored.
    pub kv: KvKind,
    /// How floating point is done.
    pub precision: Precision,
    /// How matrices of layers are quantized that are not yet.
    pub quantization: Option<&'static OnLoad>,
    /// The same for the head.
    pub head: Option<&'static OnLoad>,
    /// The same for experts; `None` is as `quantization` says.
    pub experts: Option<&'static OnLoad>,
    /// How ternary codes are held.
    pub trits: Trits,
    /// Bytes for adapters that come and go while the model is loaded, all of them together.
    pub adapter_bytes: usize,
}

impl Options {
    /// For a plan that is only looked at: how weights lie, and where they come from.
    pub const SMALLEST: Options = Options {
        context: 1,
        sequences: 1,
        cache_positions: None,
        chunk: 1,
        logits_rows: 1,
        kv: KvKind::F32,
        precision: Precision::Exact,
        quantization: None,
        head: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    };
}

/// How a tensor stands in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
}

/// Why a plan cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A tensor that the model needs is not there.
    #[error(
        "tensor {tensor}: not in the checkpoint; expected shape {expected:?}: is a shard missing, or is this another model's config.json?"
    )]
    MissingTensor {
        /// Its name.
        tensor: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "tensor {tensor}: expected shape {expected:?} from config.json, found {found:?}: the two are not from the same model"
    )]
    Shape {
        /// Its name.
        tensor: String,
        /// From the configuration.
        expected: Vec<usize>,
        /// From the checkpoint.
        found: Vec<usize>,
    },
    /// A tensor's type cannot be computed with.
    #[error(
        "tensor {tensor}: expected {expected}, found {found}: is the checkpoint quantized in another way than its config.json says?"
    )]
    Dtype {
        /// Its name.
        tensor: String,
        /// Types that would do.
        expected: String,
        /// Its type.
        found: &'static str,
    },
    /// An adapter that does not go with the model.
    #[error("adapter: tensor {tensor}: {reason}")]
    Adapter {
        /// Its tensor.
        tensor: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// An adapter that is larger than the room for those that come after loading.
    #[error(
        "expected an adapter of at most {room} bytes, the room that the model has for adapters that come after \
         loading, found one that takes {needed}; raise models.adapter_bytes (`bantam serve --models-adapter-bytes`) to \
         {needed} or more, and load the model again"
    )]
    AdapterRoom {
        /// Bytes that it takes.
        needed: usize,
        /// Bytes that there are.
        room: usize,
    },
    /// A longer context than the model knows.
    #[error(
        "expected a --context of at most the model's {most} positions, found {asked}; choose {most} or less"
    )]
    Context {
        /// Asked for.
        asked: usize,
        /// Possible.
        most: usize,
    },
    /// A cache that does not hold one sequence.
    #[error(
        "expected a cache of at least the context's {context} positions, found {asked}; give it more, or choose a \
         shorter --context"
    )]
    Cache {
        /// Positions asked for.
        asked: usize,
        /// Positions of a sequence.
        context: usize,
    },
    /// An option that must not be zero.
    #[error("{what} is 0; choose 1 or more")]
    Zero {
        /// Which.
        what: &'static str,
    },
    /// The sum of a line is beyond any machine.
    #[error("{what}: its size does not fit into {} bits", usize::BITS)]
    TooLarge {
        /// The line.
        what: String,
    },
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What it is for.
    pub name: String,
    /// Where it lives.
    pub region: Region,
    /// How long it lives.
    pub lifetime: &'static str,
    /// Shape and type, for people.
    pub shape: String,
    /// Bytes, alignment included.
    pub bytes: usize,
}

/// A matrix and its bias.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// The matrix.
    pub matrix: Matrix,
    /// float32, one value per row.
    pub bias: Option<Slot>,
    /// What an adapter adds.
    pub low: Option<Low>,
}

/// Weights of a layer.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names of families.rs")]
pub struct LayerWeights {
    pub attention_norm: Norm,
    pub mlp_norm: Norm,
    /// After attention, after the feed-forward block.
    pub post_norms: Option<[Norm; 2]>,
    /// Of query heads, of key heads.
    pub head_norms: Option<[Norm; 2]>,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub sinks: Option<Slot>,
    pub output: Linear,
    /// Where the block is one of several: then the next three are stacks.
    pub router: Option<Linear>,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
}

/// Weights of a model.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names of families.rs")]
pub struct Weights {
    pub embedding: Matrix,
    /// What an adapter adds to the embedding.
    pub embedding_low: Option<Low>,
    pub head: Linear,
    pub final_norm: Norm,
    pub layers: Vec<LayerWeights>,
    pub ropes: Vec<Rope>,
}

/// What a layer's experts are to become.
#[derive(Debug, Clone, Copy)]
pub struct Replaced {
    /// How their codes lie.
    pub coding: Coding,
    /// How many matrices of codes stand side by side, whose sum each is.
    pub times: usize,
}

/// Which elements of a tensor make up a matrix or a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Elements before the part of the tensor that is looked at.
    pub start: usize,
    /// Row `r` is that part's row `first + r / run * every + r % run`.
    pub first: usize,
    /// See `first`.
    pub run: usize,
    /// See `first`.
    pub every: usize,
    /// Where rows stand as columns: the elements from one row of the tensor to the next.
    pub turned: Option<usize>,
    /// Of so many rows, those of the first half and those of the second alternate in the tensor.
    pub pairs: Option<usize>,
}

impl Cut {
    /// The tensor as it is.
    pub const WHOLE: Cut = Cut { start: 0, first: 0, run: 1, every: 1, turned: None, pairs: None };

    /// The row of the tensor's part that becomes row `row` of the matrix.
    pub fn source_row(&self, row: usize) -> usize {
        let row = match self.pairs {
            None => row,
            Some(all) => row / all * all + row % all % (all / 2) * 2 + row % all / (all / 2),
        };
        self.first + row / self.run * self.every + row % self.run
    }
}

/// For people: nothing for a whole tensor.
impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.start > 0 {
            write!(f, "[{}..]", self.start)?;
        }
        if let Some(all) = self.pairs {
            write!(f, "[pairs of {all}]")?;
        }
        let rows = if self.turned.is_some() { "columns" } else { "rows" };
        match (self.run == self.every, self.first) {
            (true, 0) if self.turned.is_none() => Ok(()),
            (true, first) => write!(f, "[{rows} {first}..]"),
            (false, first) => write!(f, "[{rows} {first}.., {} of every {}]", self.run, self.every),
        }
    }
}

/// Where a matrix comes from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A tensor of floating point.
    Tensor(String),
    /// The adapter's tensor in the place of that one.
    Whole(String),
    /// Tensors that hold it quantized. Fills are many, and most are of the other kind.
    Packed(Box<Packed>),
}

impl Origin {
    /// Names of the tensors; the first gives the matrix its name.
    pub fn tensors(&self) -> &[String] {
        match self {
            Origin::Tensor(name) | Origin::Whole(name) => std::slice::from_ref(name),
            Origin::Packed(packed) => &packed.tensors,
        }
    }
}

/// What a slot of the weights region is filled with.
#[derive(Debug, Clone)]
pub enum Fill {
    /// A matrix from a tensor's rows.
    Matrix {
        /// Where to: one matrix, also where its slot is part of a stack.
        matrix: Matrix,
        /// Where from.
        origin: Origin,
        /// Which rows.
        cut: Cut,
        /// How it is quantized on the way.
        encode: Option<&'static OnLoad>,
    },
    /// A float32 vector from a tensor's elements, chosen like rows.
    Vector {
        /// Where to.
        slot: Slot,
        /// Where from.
        tensor: String,
        /// Which elements.
        cut: Cut,
        /// Whether the adapter has it in the model's place.
        whole: bool,
    },
    /// What an adapter adds to a matrix that stands before in the list.
    Low(Box<LowFill>),
    /// Values that are computed.
    Values {
        /// Where to.
        slot: Slot,
        /// The values.
        values: Vec<f32>,
    },
}

impl Fill {
    /// Where to.
    pub fn slot(&self) -> Slot {
        match self {
            Fill::Matrix { matrix, .. } => matrix.slot,
            Fill::Vector { slot, .. } | Fill::Values { slot, .. } => *slot,
            Fill::Low(low) => low.slot,
        }
    }

    /// The quantized matrix that it is filled with, if it is.
    pub fn packed(&self) -> Option<&Packed> {
        match self {
            Fill::Matrix { origin: Origin::Packed(packed), .. } => Some(packed),
            _ => None,
        }
    }
}

/// Slots of the work region, named after what they hold.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "each is the activation of that name, one row per token")]
pub struct WorkSlots {
    pub stream: Slot,
    pub normed: Slot,
    pub normed_for_mlp: Slot,
    pub query: Slot,
    pub key: Slot,
    pub value: Slot,
    pub attended: Slot,
    /// Logits of experts, then who goes where, then what they made, one row per place.
    pub router: Slot,
    pub routing: Slot,
    pub expert: Slot,
    pub gate: Slot,
    pub up: Slot,
    pub angles: Slot,
    pub chosen: Slot,
    pub chosen_normed: Slot,
    pub logits: Slot,
    /// Of as many channels as an adapter's largest rank.
    pub low: Slot,
    pub panels: Slot,
}

impl WorkSlots {
    /// Each with its name.
    pub fn named(&self) -> [(&'static str, Slot); 18] {
        [
            ("stream", self.stream),
            ("normed", self.normed),
            ("normed_for_mlp", self.normed_for_mlp),
            ("query", self.query),
            ("key", self.key),
            ("value", self.value),
            ("attended", self.attended),
            ("router", self.router),
            ("routing", self.routing),
            ("expert", self.expert),
            ("gate", self.gate),
            ("up", self.up),
            ("angles", self.angles),
            ("chosen", self.chosen),
            ("chosen_normed", self.chosen_normed),
            ("logits", self.logits),
            ("low", self.low),
            ("panels", self.panels),
        ]
    }
}

/// What an adapter adds to a model that is loaded.
#[derive(Debug)]
pub(crate) struct GuestPlan {
    /// The model's weights with what is added to them.
    pub(crate) weights: Weights,
    /// How that is filled.
    pub(crate) fills: Vec<LowFill>,
    /// Bytes of it.
    pub(crate) bytes: usize,
    /// Bytes of the weights that it was planned beside.
    pub(crate) base_bytes: usize,
}

/// Every buffer of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The options that it was made for, the context filled in.
    pub options: Options,
    /// The table.
    pub lines: Vec<Line>,
    /// Where weights are.
    pub weights: Weights,
    /// What they are filled with.
    pub fills: Vec<Fill>,
    /// Caches by layer.
    pub caches: Vec<KvCache>,
    /// Where activations are.
    pub work: WorkSlots,
    /// Pages that a sequence may own.
    pub pages_per_sequence: usize,
    /// Pages of the cache, for all sequences.
    pub pages: usize,
    /// Bytes that every generation under way keeps on the heap, beside the regions.
    pub generation_bytes: usize,
    /// Bytes of the weights region.
    pub weight_bytes: usize,
    /// Bytes of the cache region.
    pub cache_bytes: usize,
    /// Bytes of the work region.
    pub work_bytes: usize,
    /// Bytes of the region for adapters that come and go.
    pub adapter_bytes: usize,
    /// Weight bytes that are read for one token: everything but the rows of an untied embedding that are not asked for,
    /// and the experts that are not chosen.
    pub bytes_per_token: usize,
}

impl Plan {
    /// Bytes of the whole run.
    pub fn bytes(&self) -> usize {
        self.weight_bytes + self.cache_bytes + self.work_bytes + self.adapter_bytes
    }

    /// The line that takes the most.
    pub fn largest(&self) -> Option<&Line> {
        self.lines.iter().max_by_key(|line| line.bytes)
    }

    /// Makes the table. `stored` tells how a tensor stands in the checkpoint, given the shape that it should have.
    pub fn new(
        spec: &ModelSpec,
        stored: impl Fn(&str, &[usize]) -> Option<Stored>,
        options: Options,
        cpu: Cpu,
    ) -> Result<Plan, PlanError> {
        Plan::adapted(spec, stored, None, options, cpu)
    }

    /// The same with some matrices in float32, whatever they are stored as: for weights that will be changed.
    /// `is_float` is asked for the names of their tensors.
    pub fn in_floats(
        spec: &ModelSpec,
        stored: impl Fn(&str, &[usize]) -> Option<Stored>,
        is_float: &dyn Fn(&str) -> bool,
        options: Options,
        cpu: Cpu,
    ) -> Result<Plan, PlanError> {
        let mut planner = Planner::new(spec, &stored, None, options, cpu);
        planner.floats = Some(is_float);
        let weights = planner.weights()?;
        Plan::with(planner, weights, options)
    }

    /// The same with an adapter beside the model.
    pub fn adapted(
        spec: &ModelSpec,
        stored: impl Fn(&str, &[usize]) -> Option<Stored>,
        adapter: Option<&Adapter>,
        options: Options,
        cpu: Cpu,
    ) -> Result<Plan, PlanError> {
        let zero =
            [("--context", options.context), ("sequences", options.sequences), ("chunk", options.chunk)];
        if let Some((what, _)) =
            zero.into_iter().chain([("logits_rows", options.logits_rows)]).find(|(_, n)| *n == 0)
        {
            return Err(PlanError::Zero { what });
        }
        if options.context > spec.context {
            return Err(PlanError::Context { asked: options.context, most: spec.context });
        }
        let used = Used::default();
        let adapter = adapter.map(|adapter| (adapter, &used));
        let mut planner = Planner::new(spec, &stored, adapter, options, cpu);
        let weights = planner.weights()?;
        adapter.map_or(Ok(()), |(adapter, used)| adapter.check_used(used))?;
        Plan::with(planner, weights, options)
    }

    /// What an adapter adds that comes to a model of such a plan once that is loaded: weights whose changes stand in
    /// [`Region::Adapters`] from its first byte on, how these are filled, and their bytes. All else is where it was.
    pub(crate) fn guest(
        spec: &ModelSpec,
        stored: impl Fn(&str, &[usize]) -> Option<Stored>,
        adapter: &Adapter,
        options: Options,
        cpu: Cpu,
    ) -> Result<GuestPlan, PlanError> {
        let used = Used::default();
        let mut planner = Planner::new(spec, &stored, Some((adapter, &used)), options, cpu);
        planner.is_guest = true;
        planner.refuse_wholes()?;
        let weights = planner.weights()?;
        adapter.check_used(&used)?;
        let (needed, room) = (planner.guests.bytes(), options.adapter_bytes);
        if needed > room {
            return Err(PlanError::AdapterRoom { needed, room });
        }
        let low = |fill| match fill {
            Fill::Low(low) => Some(*low),
            _ => None,
        };
        let fills = planner.fills.into_iter().filter_map(low).collect();
        Ok(GuestPlan { weights, fills, bytes: needed, base_bytes: planner.weights.bytes() })
    }

    /// [`Plan::new`] for one layer alone, number `number` of its model and the only one of `spec`, with neither
    /// embedding nor head and all matrices in float32; a mixture's experts lie as they are stored where they are to be
    /// `replaced`, and there is room for what they become: gate, up, down.
    pub fn of_layer(
        spec: &ModelSpec,
        number: usize,
        stored: impl Fn(&str, &[usize]) -> Option<Stored>,
        options: Options,
        cpu: Cpu,
        replaced: Option<Replaced>,
    ) -> Result<(Plan, [Option<Matrix>; 3]), PlanError> {
        if options.context > spec.context {
            return Err(PlanError::Context { asked: options.context, most: spec.context });
        }
        let layout = replaced.and_then(|Replaced { coding, times }| {
            Some((coding.layout(options.precision, options.trits)?, times))
        });
        let lean = layout.zip(spec.layers[0].mlp.experts);
        let mut planner = Planner::new(spec, &stored, None, options, cpu);
        let weights = planner.layer_alone(number, lean.is_some())?;
        let stacks = match lean {
            Some(((layout, times), experts)) => {
                planner.stacks(&weights.layers[0], experts.choice, layout, times)?
            }
            None => [None; 3],
        };
        Ok((Plan::with(planner, weights, options)?, stacks))
    }

    fn with(mut planner: Planner, weights: Weights, options: Options) -> Result<Plan, PlanError> {
        let spec = planner.spec;
        let pages_per_sequence = options.context.div_ceil(POSITIONS);
        let pages = pages(&options, pages_per_sequence)?;
        let caches = planner.caches(pages)?;
        let work = planner.work()?;
        planner.room_for_guests()?;
        let is_tied = weights.head.matrix.slot == weights.embedding.slot;
        let untied = if is_tied { 0 } else { weights.embedding.slot.bytes };
        Ok(Plan {
            options,
            bytes_per_token: planner.weights.bytes() - untied - planner.unread_bytes,
            generation_bytes: generation_bytes(spec.vocab, options.context),
            weight_bytes: planner.weights.bytes(),
            cache_bytes: planner.cache.bytes(),
            work_bytes: planner.work.bytes(),
            adapter_bytes: planner.guests.bytes(),
            lines: planner.lines,
            fills: planner.fills,
            weights,
            caches,
            work,
            pages_per_sequence,
            pages,
        })
    }
}

/// Pages of the cache. More than all sequences can own would never be used.
fn pages(options: &Options, pages_per_sequence: usize) -> Result<usize, PlanError> {
    let Options { context, sequences, cache_positions, .. } = *options;
    let most = pages_per_sequence.checked_mul(sequences).filter(|&pages| u32::try_from(pages).is_ok());
    let most = most.ok_or_else(|| PlanError::TooLarge { what: "keys and values".to_owned() })?;
    match cache_positions {
        None => Ok(most),
        Some(asked) if asked < context => Err(PlanError::Cache { asked, context }),
        Some(asked) => Ok(asked.div_ceil(POSITIONS).min(most)),
    }
}

/// Bytes that one generation keeps beside the regions: logits, sampler and history. Text and stop strings add a few
/// kilobytes that depend on the tokenizer.
fn generation_bytes(vocab: usize, context: usize) -> usize {
    let numbers = vocab.saturating_add(context).saturating_add(1).saturating_mul(4);
    numbers.saturating_add(Sampler::heap_bytes(vocab))
}
