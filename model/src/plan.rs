//! The table of every byte of a run, made before any of it exists.
//!
//! A plan is computed from a model's specification and the headers of its tensors; loading takes exactly the regions
//! that it adds up to. [`Fill`]s say what is to be put where.

use bantam_core::arena::Layouter;
use bantam_core::layouts::page::{POSITIONS, PageShape};
use bantam_core::layouts::{BFLOAT16, FLOAT16, FLOAT32, INT8_ROWS, Layout, Shape};
use bantam_core::ops::matmul::panel_bytes;
use bantam_core::{Cpu, KvCache, KvKind, Matrix, Norm, Precision, Region, Rope, Slot};

use crate::checkpoint::Dtype;
use crate::families::{Part, Rows};
use crate::sampler::Sampler;
use crate::spec::{LayerSpec, ModelSpec, NormSpec};

/// Choices that decide how much memory a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Positions per sequence.
    pub context: usize,
    /// Sequences that can be open at once.
    pub sequences: usize,
    /// Tokens in a step at most.
    pub chunk: usize,
    /// Rows of logits that can be asked for at once.
    pub logits_rows: usize,
    /// How keys and values are stored.
    pub kv: KvKind,
    /// How floating point is done.
    pub precision: Precision,
    /// Whether matrices of layers are stored as int8 with a scale per row.
    pub int8: bool,
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
        "tensor {tensor}: expected F32, F16, BF16 or F64, found {found}; quantized checkpoints are not supported yet"
    )]
    Dtype {
        /// Its name.
        tensor: String,
        /// Its type.
        found: &'static str,
    },
    /// A longer context than the model knows.
    #[error("--context {asked} is more than the model's {most} positions; choose {most} or less")]
    Context {
        /// Asked for.
        asked: usize,
        /// Possible.
        most: usize,
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
}

/// Weights of a layer.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names of families.rs")]
pub struct LayerWeights {
    pub attention_norm: Norm,
    pub mlp_norm: Norm,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
}

/// Weights of a model.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names of families.rs")]
pub struct Weights {
    pub embedding: Matrix,
    pub head: Matrix,
    pub final_norm: Norm,
    pub layers: Vec<LayerWeights>,
    pub ropes: Vec<Rope>,
}

/// What a slot of the weights region is filled with.
#[derive(Debug, Clone)]
pub enum Fill {
    /// A matrix from a tensor's rows.
    Matrix {
        /// Where to.
        matrix: Matrix,
        /// Where from.
        tensor: String,
        /// Which rows.
        rows: Rows,
        /// Rows of a head, for those that alternate.
        head_width: usize,
    },
    /// A float32 vector from a tensor's elements, chosen like rows.
    Vector {
        /// Where to.
        slot: Slot,
        /// Where from.
        tensor: String,
        /// Which elements.
        rows: Rows,
        /// See above.
        head_width: usize,
    },
    /// Values that are computed.
    Values {
        /// Where to.
        slot: Slot,
        /// The values.
        values: Vec<f32>,
    },
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
    pub gate: Slot,
    pub up: Slot,
    pub angles: Slot,
    pub chosen: Slot,
    pub chosen_normed: Slot,
    pub logits: Slot,
    pub panels: Slot,
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
    /// Bytes that every generation under way keeps on the heap, beside the regions.
    pub generation_bytes: usize,
    /// Bytes of the weights region.
    pub weight_bytes: usize,
    /// Bytes of the cache region.
    pub cache_bytes: usize,
    /// Bytes of the work region.
    pub work_bytes: usize,
    /// Weight bytes that are read for one token: everything but the rows of an untied embedding that are not asked for.
    pub bytes_per_token: usize,
}

impl Plan {
    /// Bytes of the whole run.
    pub fn bytes(&self) -> usize {
        self.weight_bytes + self.cache_bytes + self.work_bytes
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
        let mut planner = Planner {
            spec,
            stored: &stored,
            options,
            cpu,
            lines: Vec::new(),
            fills: Vec::new(),
            weights: Layouter::new(Region::Weights),
            cache: Layouter::new(Region::Cache),
            work: Layouter::new(Region::Work),
            panel_bytes: 0,
        };
        let weights = planner.weights()?;
        let pages_per_sequence = options.context.div_ceil(POSITIONS);
        let caches = planner.caches(pages_per_sequence)?;
        let work = planner.work()?;
        let untied = if spec.tied { 0 } else { weights.embedding.slot.bytes };
        Ok(Plan {
            options,
            bytes_per_token: planner.weights.bytes() - untied,
            generation_bytes: generation_bytes(spec.vocab, options.context),
            weight_bytes: planner.weights.bytes(),
            cache_bytes: planner.cache.bytes(),
            work_bytes: planner.work.bytes(),
            lines: planner.lines,
            fills: planner.fills,
            weights,
            caches,
            work,
            pages_per_sequence,
        })
    }
}

struct Planner<'a> {
    spec: &'a ModelSpec,
    stored: &'a dyn Fn(&str, &[usize]) -> Option<Stored>,
    options: Options,
    cpu: Cpu,
    lines: Vec<Line>,
    fills: Vec<Fill>,
    weights: Layouter,
    cache: Layouter,
    work: Layouter,
    panel_bytes: usize,
}

impl Planner<'_> {
    fn layouter(&mut self, region: Region) -> &mut Layouter {
        match region {
            Region::Weights => &mut self.weights,
            Region::Cache => &mut self.cache,
            Region::Work => &mut self.work,
        }
    }

    /// Takes a slot and writes its line; slots of the same name add up in one line.
    fn slot(
        &mut self,
        region: Region,
        name: &str,
        shape: String,
        bytes: Option<usize>,
    ) -> Result<Slot, PlanError> {
        let layouter = self.layouter(region);
        let before = layouter.bytes();
        let slot = bytes
            .and_then(|bytes| layouter.slot(bytes))
            .ok_or_else(|| PlanError::TooLarge { what: name.to_owned() })?;
        let taken = layouter.bytes() - before;
        match self.lines.iter_mut().find(|line| line.name == name && line.region == region) {
            Some(line) => {
                line.bytes += taken;
                if line.shape != shape {
                    line.shape = "several".to_owned();
                }
            }
            None => {
                let lifetime = match region {
                    Region::Weights => "run",
                    Region::Cache => "sequence",
                    Region::Work => "step",
                };
                self.lines.push(Line { name: name.to_owned(), region, lifetime, shape, bytes: taken });
            }
        }
        Ok(slot)
    }

    fn stored_as(&self, tensor: &str, expected: &[usize]) -> Result<Dtype, PlanError> {
        let Some(stored) = (self.stored)(tensor, expected) else {
            return Err(PlanError::MissingTensor { tensor: tensor.to_owned(), expected: expected.to_vec() });
        };
        if stored.shape != expected {
            let (expected, found) = (expected.to_vec(), stored.shape);
            return Err(PlanError::Shape { tensor: tensor.to_owned(), expected, found });
        }
        match stored.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64 => Ok(stored.dtype),
            other => Err(PlanError::Dtype { tensor: tensor.to_owned(), found: other.name() }),
        }
    }

    fn matrix(&mut self, line: &str, tensor: String, rows: Rows, shape: Shape) -> Result<Matrix, PlanError> {
        let head_width = self.spec.layers.first().map_or(1, |layer| layer.attention.head_width);
        let stored_rows = stored_rows(rows, shape.rows);
        let layout: &'static dyn Layout = match self.stored_as(&tensor, &[stored_rows, shape.columns])? {
            Dtype::Bf16 => BFLOAT16,
            Dtype::F16 => FLOAT16,
            _ => FLOAT32,
        };
        // Embedding and head stay as they are; layers may be stored in eight bits, as long as the sum of a row's
        // products (at most 255 * 127 each) fits into 32 bits.
        let int8 = self.options.int8 && line.starts_with("layers") && shape.columns <= 1 << 16;
        let layout = if int8 { INT8_ROWS } else { layout };
        let text = format!("{}x{} {}", shape.rows, shape.columns, layout.name());
        let slot = self.slot(Region::Weights, line, text, Matrix::bytes(layout, shape))?;
        let matrix = Matrix { layout, shape, slot };
        self.fills.push(Fill::Matrix { matrix, tensor, rows, head_width });
        let form = layout.form(self.options.precision, self.cpu);
        let tokens = if line == "head" { self.options.logits_rows } else { self.options.chunk };
        // Prepared input grows by the same for every token.
        let bytes = panel_bytes(form, shape.columns, 1)
            .checked_mul(tokens)
            .ok_or_else(|| PlanError::TooLarge { what: "prepared input".to_owned() })?;
        self.panel_bytes = self.panel_bytes.max(bytes);
        Ok(matrix)
    }

    fn vector(&mut self, line: &str, tensor: String, rows: Rows, len: usize) -> Result<Slot, PlanError> {
        let head_width = self.spec.layers.first().map_or(1, |layer| layer.attention.head_width);
        self.stored_as(&tensor, &[stored_rows(rows, len)])?;
        let slot = self.slot(Region::Weights, line, "f32 vectors".to_owned(), len.checked_mul(4))?;
        self.fills.push(Fill::Vector { slot, tensor, rows, head_width });
        Ok(slot)
    }

    fn norm(&mut self, module: &str, norm: &NormSpec) -> Result<Norm, PlanError> {
        let width = self.spec.hidden;
        let weight = self.vector("norms", format!("{module}.weight"), Rows::All, width)?;
        let bias = match norm.bias {
            true => Some(self.vector("norms", format!("{module}.bias"), Rows::All, width)?),
            false => None,
        };
        let NormSpec { kind, epsilon, weight_shift, .. } = *norm;
        Ok(Norm { kind, width, epsilon, weight_shift, weight, bias })
    }

    fn linear(
        &mut self,
        line: &str,
        prefix: &str,
        part: Part,
        shape: Shape,
        bias: bool,
    ) -> Result<Linear, PlanError> {
        let matrix = self.matrix(line, format!("{prefix}{}.weight", part.module), part.rows, shape)?;
        let name = format!("{prefix}{}.bias", part.module);
        let bias = bias.then(|| self.vector("biases", name, part.rows, shape.rows)).transpose()?;
        Ok(Linear { matrix, bias })
    }

    fn weights(&mut self) -> Result<Weights, PlanError> {
        let spec = self.spec;
        let names = spec.names;
        let table = Shape { rows: spec.vocab, columns: spec.hidden };
        let embedding = self.matrix("embedding", format!("{}.weight", names.embedding), Rows::All, table)?;
        let layers = spec
            .layers
            .iter()
            .enumerate()
            .map(|(i, layer)| self.layer(i, layer))
            .collect::<Result<_, _>>()?;
        let final_norm = self.norm(names.final_norm, &spec.final_norm)?;
        let head = match spec.tied {
            true => embedding,
            false => self.matrix("head", format!("{}.weight", names.head), Rows::All, table)?,
        };
        let ropes = spec.ropes.iter().map(|rope| {
            let values = rope.frequencies();
            let slot =
                self.slot(Region::Weights, "rotary tables", "f32".to_owned(), Some(values.len() * 4))?;
            self.fills.push(Fill::Values { slot, values });
            Ok(Rope { frequencies: slot, scale: rope.attention_factor() })
        });
        let ropes = ropes.collect::<Result<_, PlanError>>()?;
        Ok(Weights { embedding, head, final_norm, layers, ropes })
    }

    fn layer(&mut self, number: usize, layer: &LayerSpec) -> Result<LayerWeights, PlanError> {
        let names = self.spec.names;
        let hidden = self.spec.hidden;
        let prefix = names.layer.replace("{}", &number.to_string());
        let (a, m) = (&layer.attention, &layer.mlp);
        let inputs = Shape { rows: a.heads * a.head_width, columns: hidden };
        let kv = Shape { rows: a.kv_heads * a.head_width, columns: hidden };
        let output = Shape { rows: hidden, columns: a.heads * a.head_width };
        let up = Shape { rows: m.width, columns: hidden };
        let down = Shape { rows: hidden, columns: m.width };
        let (attention, mlp) = ("layers: attention", "layers: feed-forward");
        Ok(LayerWeights {
            attention_norm: self.norm(&format!("{prefix}{}", names.attention_norm), &layer.norm)?,
            query: self.linear(attention, &prefix, names.query, inputs, a.input_bias)?,
            key: self.linear(attention, &prefix, names.key, kv, a.input_bias)?,
            value: self.linear(attention, &prefix, names.value, kv, a.input_bias)?,
            output: self.linear(attention, &prefix, names.output, output, a.output_bias)?,
            mlp_norm: self.norm(&format!("{prefix}{}", names.mlp_norm), &layer.norm)?,
            gate: names.gate.map(|gate| self.linear(mlp, &prefix, gate, up, m.bias)).transpose()?,
            up: self.linear(mlp, &prefix, names.up, up, m.bias)?,
            down: self.linear(mlp, &prefix, names.down, down, m.bias)?,
        })
    }

    fn caches(&mut self, pages: usize) -> Result<Vec<KvCache>, PlanError> {
        let (spec, options) = (self.spec, self.options);
        let pages = pages.checked_mul(options.sequences);
        let caches = spec.layers.iter().map(|layer| {
            let shape = PageShape { width: layer.attention.head_width, kind: options.kv };
            let heads = layer.attention.kv_heads;
            let bytes = pages.and_then(|pages| pages.checked_mul(heads * shape.bytes()));
            let text = format!("{} x {} positions, {:?}", options.sequences, options.context, options.kv);
            Ok(KvCache { slot: self.slot(Region::Cache, "keys and values", text, bytes)?, heads, shape })
        });
        caches.collect()
    }

    fn work(&mut self) -> Result<WorkSlots, PlanError> {
        let spec = self.spec;
        let Options { chunk, logits_rows, .. } = self.options;
        let widest = |f: &dyn Fn(&LayerSpec) -> usize| spec.layers.iter().map(f).max().unwrap_or(0);
        let query = widest(&|layer| layer.attention.heads * layer.attention.head_width);
        let kv = widest(&|layer| layer.attention.kv_heads * layer.attention.head_width);
        let mlp = widest(&|layer| layer.mlp.width);
        let gated = spec.layers.iter().any(|layer| layer.mlp.gated);
        let parallel = spec.layers.iter().any(|layer| layer.residual == crate::spec::Residual::Parallel);
        let angles = spec.ropes.iter().map(|rope| rope.width).max().unwrap_or(0);
        let panel_bytes = self.panel_bytes;
        let mut rows = |name: &str, rows: usize, width: usize| {
            let bytes = rows.checked_mul(width).and_then(|n| n.checked_mul(4));
            self.slot(Region::Work, name, format!("{rows} x {width} f32"), bytes)
        };
        Ok(WorkSlots {
            stream: rows("residual stream", chunk, spec.hidden)?,
            normed: rows("normed", chunk, spec.hidden)?,
            normed_for_mlp: rows("normed for feed-forward", if parallel { chunk } else { 0 }, spec.hidden)?,
            query: rows("queries", chunk, query)?,
            key: rows("keys", chunk, kv)?,
            value: rows("values", chunk, kv)?,
            attended: rows("attended", chunk, query)?,
            gate: rows("feed-forward", chunk, mlp)?,
            up: rows("feed-forward, second", if gated { chunk } else { 0 }, mlp)?,
            angles: rows("rotary angles", chunk, angles)?,
            chosen: rows("rows for the head", logits_rows, spec.hidden)?,
            chosen_normed: rows("rows for the head, normed", logits_rows, spec.hidden)?,
            logits: rows("logits", logits_rows, spec.vocab)?,
            panels: self.slot(Region::Work, "prepared input", "words".to_owned(), Some(panel_bytes))?,
        })
    }
}

/// Bytes that one generation keeps beside the regions: logits, sampler and history. Text and stop strings add a few
/// kilobytes that depend on the tokenizer.
fn generation_bytes(vocab: usize, context: usize) -> usize {
    let numbers = vocab.saturating_add(context).saturating_add(1).saturating_mul(4);
    numbers.saturating_add(Sampler::heap_bytes(vocab))
}

/// Rows that the tensor has from which a matrix of `rows` rows is taken.
fn stored_rows(choice: Rows, rows: usize) -> usize {
    match choice {
        Rows::All => rows,
        Rows::Alternate { of, .. } => rows * of,
    }
}
