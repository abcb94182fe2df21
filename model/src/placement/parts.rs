//! A model as a placement sees it: what stands in memory, how much of that one token reads, and in which pieces it
//! can be divided. All of it comes from a plan; no weights are read.

use bantam_core::layouts::TILE_ROWS;
use bantam_core::layouts::page::POSITIONS;
use bantam_core::{KvCache, Matrix};

use crate::plan::{LayerWeights, Linear, Plan};
use crate::shards::kept;
use crate::spec::{LayerSpec, ModelSpec, Residual};

/// Tokens that a sequence is taken to have when decoding is predicted, where the context is not shorter.
pub const POSITIONS_READ: usize = 1024;

/// Something that stands in memory as a whole or in equal pieces.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Part {
    /// Bytes that it takes.
    pub held: f64,
    /// Bytes of it that a token reads.
    pub read: f64,
    /// Multiplications and additions for a token.
    pub ops: f64,
    /// Pieces that it can be divided into.
    pub units: usize,
}

/// The feed-forward block of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Block {
    /// Rows of it are divided.
    Dense(Part),
    /// Whole experts are.
    Experts {
        /// How many there are.
        count: usize,
        /// How many a token is sent to.
        chosen: usize,
        /// One of them.
        each: Part,
    },
}

/// A layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerParts {
    /// Weights of attention, divided by heads.
    pub attention: Part,
    /// Keys and values, which stand beside the weights of their heads.
    pub cache: Part,
    /// Feed-forward.
    pub block: Block,
    /// Whether both are computed side by side and added at once.
    pub parallel: bool,
}

/// A model.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    /// Its layers.
    pub layers: Vec<LayerParts>,
    /// The head.
    pub head: Part,
    /// The table of embeddings, where it is not the head: a token reads one row of it.
    pub embedding: u64,
    /// Norms, routers, biases and tables: too small to be divided, so every side that computes has them.
    pub small: u64,
    /// Activations of a step.
    pub work: u64,
    /// What a card that computes everything keeps of the steps of replies.
    pub kept: u64,
}

impl Part {
    fn of(linears: &[&Linear], units: usize) -> Part {
        let bytes = linears.iter().map(|linear| linear_bytes(linear)).sum::<usize>() as f64;
        let ops = linears.iter().map(|linear| ops(&linear.matrix)).sum();
        Part { held: bytes, read: bytes, ops, units }
    }

    /// Bytes of a piece.
    pub fn unit(&self) -> f64 {
        self.held / self.units.max(1) as f64
    }

    fn plus(self, other: Part) -> Part {
        Part {
            held: self.held + other.held,
            read: self.read + other.read,
            ops: self.ops + other.ops,
            units: self.units,
        }
    }
}

impl Parts {
    /// Of a model as it is planned.
    pub fn new(spec: &ModelSpec, plan: &Plan) -> Parts {
        let weights = &plan.weights;
        let layers = spec.layers.iter().zip(&weights.layers).zip(&plan.caches);
        let layers: Vec<LayerParts> = layers.map(|((spec, w), cache)| layer(spec, w, cache, plan)).collect();
        let head = Part::of(&[&weights.head], weights.head.matrix.shape.rows.div_ceil(TILE_ROWS));
        let is_tied = weights.head.matrix.slot == weights.embedding.slot;
        let embedding = if is_tied { 0 } else { weights.embedding.slot.bytes as u64 };
        let divided: f64 = layers.iter().map(|layer| layer.attention.held + layer.block.held()).sum();
        let small = (plan.weight_bytes as f64 - divided - head.held - embedding as f64).max(0.0) as u64;
        let (work, kept) = (plan.work_bytes as u64, kept::bytes(plan) as u64);
        Parts { layers, head, embedding, small, work, kept }
    }

    /// Bytes of all weights and of the cache.
    pub fn held(&self) -> f64 {
        let layers: f64 = self.layers.iter().map(LayerParts::held).sum();
        layers + self.head.held + (self.embedding + self.small) as f64
    }

    /// Experts of all layers; none where no layer has any.
    pub fn experts(&self) -> usize {
        self.layers.iter().map(|layer| layer.block.experts()).sum()
    }

    /// Bytes of an expert, the largest if layers differ.
    pub fn expert_bytes(&self) -> f64 {
        let each = |layer: &LayerParts| match layer.block {
            Block::Dense(_) => 0.0,
            Block::Experts { each, .. } => each.held,
        };
        self.layers.iter().map(each).fold(0.0, f64::max)
    }
}

impl LayerParts {
    /// Bytes that it takes.
    pub fn held(&self) -> f64 {
        self.attention.held + self.cache.held + self.block.held()
    }

    /// Attention with its cache, which are divided alike.
    pub fn attention_and_cache(&self) -> Part {
        self.attention.plus(self.cache)
    }
}

impl Block {
    /// Bytes that it takes.
    pub fn held(&self) -> f64 {
        match self {
            Block::Dense(part) => part.held,
            Block::Experts { count, each, .. } => *count as f64 * each.held,
        }
    }

    /// Pieces that it is divided into.
    pub fn units(&self) -> usize {
        match self {
            Block::Dense(part) => part.units,
            Block::Experts { count, .. } => *count,
        }
    }

    /// How many experts it has.
    pub fn experts(&self) -> usize {
        match self {
            Block::Dense(_) => 0,
            Block::Experts { count, .. } => *count,
        }
    }
}

fn layer(spec: &LayerSpec, w: &LayerWeights, cache: &KvCache, plan: &Plan) -> LayerParts {
    // What an adapter adds is added to whole rows, whether it is there or may come.
    let is_whole =
        plan.adapter_bytes > 0 || [w.query, w.key, w.value].iter().any(|linear| linear.low.is_some());
    let heads = if is_whole { 1 } else { spec.attention.kv_heads };
    let attention = Part::of(&[&w.query, &w.key, &w.value, &w.output], heads);
    let seen = plan.options.context.min(POSITIONS_READ).min(spec.attention.window.unwrap_or(usize::MAX));
    let read = cache.page_bytes() as f64 * seen as f64 / POSITIONS as f64;
    let cache = Part { held: cache.slot.bytes as f64, read, ops: 0.0, units: heads };
    let linears: Vec<&Linear> = w.gate.iter().chain([&w.up, &w.down]).collect();
    let block = match spec.mlp.experts {
        None => Block::Dense(Part::of(&linears, spec.mlp.width.div_ceil(TILE_ROWS))),
        Some(experts) => {
            let count = experts.choice.experts;
            let all = Part::of(&linears, 1);
            let bytes = all.held / count as f64;
            // The shape of a stack is one expert's.
            let each = Part { held: bytes, read: bytes, ..all };
            Block::Experts { count, chosen: experts.choice.chosen, each }
        }
    };
    LayerParts { attention, cache, block, parallel: spec.residual == Residual::Parallel }
}

fn linear_bytes(linear: &Linear) -> usize {
    let low = linear.low.map_or(0, |low| low.down.slot.bytes + low.up.slot.bytes);
    linear.matrix.slot.bytes + linear.bias.map_or(0, |bias| bias.bytes) + low
}

fn ops(matrix: &Matrix) -> f64 {
    2.0 * matrix.shape.rows as f64 * matrix.width() as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;
    use crate::engine::synthetic_plan;
    use crate::families::SHAPES;
    use crate::formats::on_load::way;
    use crate::placement::{MACHINES, Question, stands};
    use crate::plan::Options;
    use bantam_core::{Cpu, KvKind, Precision};

    #[test]
    fn parts_of_published_shapes_add_up_to_their_plans_and_so_does_what_stands_where() {
        for (name, config) in SHAPES {
            let spec = ModelSpec::parse(config.as_bytes()).unwrap();
            let (context, chunk, quantization) = (1024, 128, way("nf4"));
            let precision = Precision::Fast;
            let kv = KvKind::Int8;
            let options = Options { context, chunk, kv, precision, quantization, ..Options::SMALLEST };
            let plan = synthetic_plan(&spec, Dtype::Bf16, options, Cpu::detect()).unwrap();
            let parts = Parts::new(&spec, &plan);
            let held = (plan.weight_bytes + plan.cache_bytes) as f64;
            assert!((parts.held() - held).abs() < 1.0, "{name}: {} of {held}", parts.held());
            assert!((parts.small as f64) < 0.01 * held, "{name}: {} bytes are small", parts.small);
            for machine in MACHINES {
                let question = Question { parts: &parts, machine, trace: None };
                let auto = question.auto();
                let lines = stands(&parts, &auto, machine);
                let vram: u64 = lines.iter().map(|line| line.vram).sum();
                let ram: u64 = lines.iter().map(|line| line.ram).sum();
                assert!(vram.abs_diff(auto.vram) < 8, "{name}: {vram} in lines, {} in all", auto.vram);
                assert!(
                    ram.abs_diff(auto.ram) < 8 + parts.small,
                    "{name}: {ram} in lines, {} in all",
                    auto.ram
                );
            }
        }
    }

    #[test]
    fn heads_go_together_where_adapters_may_come() {
        let (_, config) = SHAPES[0];
        let spec = ModelSpec::parse(config.as_bytes()).unwrap();
        for (adapter_bytes, units) in [(0, spec.layers[0].attention.kv_heads), (1 << 20, 1)] {
            let options = Options { adapter_bytes, ..Options::SMALLEST };
            let plan = synthetic_plan(&spec, Dtype::Bf16, options, Cpu::detect()).unwrap();
            let parts = Parts::new(&spec, &plan);
            assert!(
                parts.layers.iter().all(|layer| [layer.attention.units, layer.cache.units] == [units; 2])
            );
        }
    }
}
