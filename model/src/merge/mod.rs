//! An adapter added up with its model, as a checkpoint that other tools load.
//!
//! What is written is a list of `Output`s, one for each tensor of the result: copied from the model as it stands,
//! taken from the adapter, or made row by row (`rows`). Nothing is ever held but a tensor or some of its rows. The
//! folder appears under its name when all of it is on the disk.

pub mod cascade;
mod folder;
mod rows;
pub mod trained;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_core::layouts::Shape;

use crate::adapter::{Adapter, Asked, Change, Used};
use crate::checkpoint::writer::WriteError;
use crate::checkpoint::{CheckpointError, Dtype};
use crate::families::{Names, Stack};
use crate::files::FilesError;
use crate::formats::Packed;
use crate::plan::{Fill, Options, PlanError, wrapped};
use crate::source::{Source, SourceError};
use crate::weights::WeightsError;
use cascade::{Needs, Way};
pub use folder::{Place, stranger};
use trained::Trained;

/// Why an adapter is not merged.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum MergeError {
    #[error(transparent)]
    Source(#[from] Box<SourceError>),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: {reason}", .model.display())]
    Model { model: PathBuf, reason: String },
    #[error("{}: {reason}", .folder.display())]
    Output { folder: PathBuf, reason: String },
    #[error(
        "tensor {tensor}: expected numbers that {dtype} can hold, found {value} at row {row} of the merged weights: \
         the adapter is damaged, or its scale is another one"
    )]
    Overflow { tensor: String, dtype: &'static str, value: f32, row: usize },
}

/// Bytes of a file at most, where a tensor is not larger: as transformers has it.
const SHARD_BYTES: u64 = 5_000_000_000;
/// Rows of a tensor that are made together where memory is short. A multiple of every block of four bits.
const ROWS: usize = 64;

/// Where the elements of a tensor come from.
#[derive(Debug)]
enum Taken {
    /// The model's tensor of that name.
    Base(String),
    /// The adapter's.
    Whole(String),
    /// Quantized matrices of the model, one or one for each expert.
    Packed(Vec<Packed>),
}

/// What becomes of them.
#[derive(Debug)]
enum Made {
    /// Bytes as they are.
    Copied,
    /// Numbers, of another type or changed.
    Rows(Vec<Option<Change>>),
    /// A vector to which something is added.
    Vector(Change),
}

/// A tensor of the result.
#[derive(Debug)]
struct Output {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    from: Taken,
    made: Made,
    /// Whether it is rounded to four bits first.
    rounded: bool,
}

impl Output {
    fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bytes() as u64
    }
}

/// A model and an adapter, about to become one.
#[derive(Debug)]
pub struct Merge<'a> {
    source: &'a Source,
    adapter: &'a Adapter,
    trained: Trained,
    outputs: Vec<Output>,
    /// Whether the result is no longer quantized.
    unpacked: bool,
    /// Whether head and embedding were one and are two.
    parted: bool,
}

/// What a merge comes to.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Tensors of the result.
    pub tensors: usize,
    /// Those that are not the model's as they were.
    pub changed: usize,
    /// Bytes of all.
    pub bytes: u64,
    /// Files of weights.
    pub shards: usize,
}

impl<'a> Merge<'a> {
    /// Looks at headers alone, and refuses what does not go together.
    pub fn new(source: &'a Source, trained: Trained) -> Result<Self, MergeError> {
        let adapter = source.adapter.as_deref().expect("the caller has put an adapter beside the model");
        let refused = |reason: &str| {
            let (model, reason) = (source.folder().to_owned(), reason.to_owned());
            MergeError::Model { model, reason }
        };
        if source.spec.format.is_gguf() || !std::ptr::eq(source.spec.names, source.spec.trained) {
            return Err(refused(
                "expected a model in Hugging Face's safetensors, where an adapter's modules have their names; run the \
                 adapter beside this one with --adapter, or merge it into the original",
            ));
        }
        if source.checkpoint.native().is_some() {
            return Err(refused(crate::checkpoint::GONE));
        }
        check_saved(source, adapter)?;
        let plan = source.plan(Options::SMALLEST, Cpu::detect()).map_err(Box::new)?;
        let packed = packed(plan.fills.iter().filter_map(Fill::packed));
        let planned: BTreeSet<&str> = plan
            .fills
            .iter()
            .flat_map(|fill| match fill {
                Fill::Matrix { origin, .. } => origin.tensors(),
                _ => &[],
            })
            .map(String::as_str)
            .collect();
        let mut lister = Lister { source, adapter, packed, used: Used::default(), outputs: Vec::new() };
        let unpacked = lister.changes_packed();
        lister.base_tensors(unpacked)?;
        if unpacked {
            lister.packed_tensors()?;
        }
        let parted = lister.part_tables()?;
        let Lister { mut outputs, .. } = lister;
        if trained.in_four_bits && plan.fills.iter().all(|fill| fill.packed().is_none()) {
            let prefix = source.spec.names.layer.split("{}").next().unwrap_or_default();
            for output in &mut outputs {
                let name = output.name.as_str();
                let is_linear = planned.contains(name) && output.shape.len() == 2 && name.starts_with(prefix);
                if is_linear && !is_router(source.spec.names, name) && matches!(output.from, Taken::Base(_)) {
                    output.rounded = true;
                    if matches!(output.made, Made::Copied) {
                        output.made = Made::Rows(vec![None]);
                    }
                }
            }
        }
        outputs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Merge { source, adapter, trained, outputs, unpacked, parted })
    }

    /// What it comes to.
    pub fn counts(&self) -> Counts {
        let is_changed =
            |output: &&Output| !matches!((&output.made, &output.from), (Made::Copied, Taken::Base(_)));
        Counts {
            tensors: self.outputs.len(),
            changed: self.outputs.iter().filter(is_changed).count(),
            bytes: self.outputs.iter().map(Output::bytes).sum(),
            shards: self.shards().len(),
        }
    }

    /// Whether the weights are rounded to four bits before the adapter is added.
    pub fn rounds(&self) -> bool {
        self.outputs.iter().any(|output| output.rounded)
    }

    /// What the ways to do it need.
    pub fn needs(&self) -> Needs {
        let adapter = self.outputs.iter().map(|output| self.change_bytes(output)).max().unwrap_or(0);
        let most = |rows: &dyn Fn(usize) -> usize| {
            let of = |output: &Output| {
                let (count, columns) = rows::rows_of(&output.shape);
                // Rows as they are read, as float32, and as they are written.
                let made = (rows(count) * columns) as u64 * (4 + 2 * output.dtype.bytes() as u64);
                made + self.packed_bytes(output)
            };
            self.outputs.iter().map(of).max().unwrap_or(0)
        };
        Needs {
            whole: most(&|rows| rows) + adapter,
            rows: most(&|rows| rows.min(ROWS)) + adapter,
            disk: self.counts().bytes + folder::SMALL_BYTES,
        }
    }

    /// An adapter's own numbers for one tensor.
    fn change_bytes(&self, output: &Output) -> u64 {
        let change = |change: &Change| {
            let Shape { rows, columns } = change.shape;
            (change.rank * (rows + columns) * 4) as u64
        };
        match &output.made {
            // Experts share their tensors, which are read whole.
            Made::Rows(changes) => changes.iter().flatten().map(change).sum(),
            _ => 0,
        }
    }

    /// The tensors of a quantized matrix are read whole; of a stack they become numbers at once.
    fn packed_bytes(&self, output: &Output) -> u64 {
        let Taken::Packed(packed) = &output.from else { return 0 };
        let bytes = |packed: &Packed| {
            let part = |(at, name): (usize, &String)| {
                let all = self.source.checkpoint.tensor(name).map_or(0, |tensor| tensor.data.len());
                packed.parts.get(at).map_or(all, std::ops::Range::len) as u64
            };
            packed.tensors.iter().enumerate().map(part).sum::<u64>()
        };
        let stack = match output.shape.as_slice() {
            [_, inputs, outputs] => (inputs * outputs * 4) as u64,
            _ => 0,
        };
        packed.iter().map(bytes).max().unwrap_or(0) + stack
    }

    /// Which outputs stand in which file.
    fn shards(&self) -> Vec<Vec<usize>> {
        let mut shards: Vec<Vec<usize>> = vec![Vec::new()];
        let mut bytes = 0;
        for (at, output) in self.outputs.iter().enumerate() {
            let last = shards.last_mut().expect("there is one");
            if !last.is_empty() && bytes + output.bytes() > SHARD_BYTES {
                shards.push(vec![at]);
                bytes = output.bytes();
            } else {
                last.push(at);
                bytes += output.bytes();
            }
        }
        shards
    }

    /// Writes the folder, and tells how many bytes of weights are written.
    pub fn write(
        &self,
        place: Place,
        way: Way,
        threads: usize,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), MergeError> {
        let folder = place.begin()?;
        let written = self.write_weights(folder.path(), way, threads, tell)?;
        folder.write_small_files(self.source, &self.config()?, written.as_deref())?;
        self.source.checkpoint.check_unchanged()?;
        folder.finish()
    }

    /// The weights, and an index where they are in several files.
    fn write_weights(
        &self,
        folder: &Path,
        way: Way,
        threads: usize,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Option<String>, MergeError> {
        let shards = self.shards();
        let mut maker = rows::Maker::new(self.source, self.adapter, &self.trained, way, threads, tell)?;
        let mut places = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            let outputs: Vec<&Output> = shard.iter().map(|&at| &self.outputs[at]).collect();
            maker.write(&folder.join(&name), &outputs)?;
            places.extend(outputs.iter().map(|output| (output.name.clone(), name.clone())));
        }
        Ok((shards.len() > 1).then(|| {
            let index = serde_json::json!({
                "metadata": { "total_size": self.counts().bytes },
                "weight_map": places,
            });
            format!("{index:#}\n")
        }))
    }

    /// The configuration of the result.
    fn config(&self) -> Result<Vec<u8>, MergeError> {
        let bytes = self.source.files.require_config()?;
        if !self.unpacked && !self.parted {
            return Ok(bytes.into_owned());
        }
        let config = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes);
        let mut config = config.expect("it was read before");
        if self.unpacked {
            config.remove("quantization_config");
        }
        if self.parted {
            config.insert("tie_word_embeddings".to_owned(), false.into());
        }
        let text = serde_json::to_string_pretty(&config).expect("JSON as it was read");
        Ok((text + "\n").into_bytes())
    }
}

/// Refuses an adapter without the whole modules that its configuration names. PEFT adds names of heads that other
/// models have: only what is a module of this one is missed.
fn check_saved(source: &Source, adapter: &Adapter) -> Result<(), MergeError> {
    let is_of = |tensor: &str, saved: &str| {
        let (parts, saved): (Vec<&str>, Vec<&str>) =
            (tensor.split('.').collect(), saved.split('.').collect());
        parts.windows(saved.len()).any(|window| window == saved)
    };
    let names = source.spec.names;
    let tables = [names.embedding, names.head];
    let missing = adapter.settings.saved.iter().find(|&saved| {
        let mut modules = source.checkpoint.tensors().map(|tensor| tensor.name).chain(tables);
        modules.any(|name| is_of(name, saved)) && !adapter.wholes().any(|whole| is_of(whole, saved))
    });
    match missing {
        None => Ok(()),
        Some(saved) => Err(MergeError::Model {
            model: adapter.folder().to_owned(),
            reason: format!(
                "expected the tensors of {saved}, which modules_to_save names, found none: save the adapter again"
            ),
        }),
    }
}

/// Whether a tensor is that of a router that is no matrix for the tools that quantize.
fn is_router(names: &Names, tensor: &str) -> bool {
    match names.experts {
        Some((module, Stack::Together { .. })) => tensor.ends_with(&format!("{module}.weight")),
        _ => false,
    }
}

/// Matrices by their module; of experts that share tensors, by what is before their number.
type ByModule = BTreeMap<String, BTreeMap<usize, Packed>>;

fn packed<'p>(found: impl Iterator<Item = &'p Packed>) -> ByModule {
    let mut all = ByModule::new();
    for packed in found {
        let stack = packed.module.rsplit_once('.').filter(|_| !packed.parts.is_empty());
        let numbered = stack.and_then(|(module, number)| Some((module, number.parse().ok()?)));
        let (module, number) = numbered.unwrap_or((packed.module.as_str(), 0));
        all.entry(module.to_owned()).or_default().entry(number).or_insert_with(|| packed.clone());
    }
    all
}

/// Makes the list of outputs.
struct Lister<'a> {
    source: &'a Source,
    adapter: &'a Adapter,
    packed: ByModule,
    used: Used,
    outputs: Vec<Output>,
}

impl Lister<'_> {
    /// Whether the adapter has something for a quantized matrix: then none stays quantized.
    fn changes_packed(&self) -> bool {
        self.packed.keys().any(|module| {
            let wrapped = wrapped(self.source.spec.trained, self.adapter, module);
            self.adapter.changes(wrapped.as_deref().unwrap_or(module))
                || self.adapter.stored(&format!("{module}.weight")).is_some()
                || self.adapter.stored(module).is_some()
        })
    }

    /// All that the model has, but for the tensors of quantized matrices that are to be numbers.
    fn base_tensors(&mut self, unpacked: bool) -> Result<(), MergeError> {
        let of_packed: BTreeSet<&str> = match unpacked {
            true => self.packed.values().flat_map(BTreeMap::values).flat_map(Packed::names).collect(),
            false => BTreeSet::new(),
        };
        for tensor in self.source.checkpoint.tensors() {
            if of_packed.contains(tensor.name) {
                continue;
            }
            let (dtype, shape, name) = (tensor.dtype, tensor.shape.to_vec(), tensor.name.to_owned());
            let (from, made) = match self.adapter.stored(&name) {
                Some(whole) if whole.shape == shape => (Taken::Whole(name.clone()), Made::Rows(vec![None])),
                _ => (Taken::Base(name.clone()), Made::Copied),
            };
            let made = self.change(&name, &shape)?.unwrap_or(made);
            self.outputs.push(Output { name, dtype, shape, from, made, rounded: false });
        }
        Ok(())
    }

    /// What the adapter makes of a tensor of the model.
    fn change(&self, name: &str, shape: &[usize]) -> Result<Option<Made>, MergeError> {
        let names = self.source.spec.names;
        let ask = |asked: Asked| self.adapter.change(&asked, &self.used);
        if let (Some(module), &[rows, columns]) = (name.strip_suffix(".weight"), shape) {
            let is_table = module == names.embedding;
            let asked = Asked { module, part: None, name: module, shape: Shape { rows, columns }, is_table };
            return Ok(ask(asked)?.map(|change| Made::Rows(vec![Some(change)])));
        }
        if let (Some(module), &[len]) = (name.strip_suffix(".bias"), shape) {
            if !self.adapter.has_bias(module) {
                return Ok(None);
            }
            let shape = Shape { rows: len, columns: self.columns(module) };
            let change = ask(Asked { module, part: None, name: module, shape, is_table: false })?;
            return Ok(change.map(Made::Vector));
        }
        if let &[count, inputs, outputs] = shape {
            return Ok(self
                .change_of_stack(name, count, Shape { rows: outputs, columns: inputs })?
                .map(Made::Rows));
        }
        Ok(None)
    }

    /// Inputs of a module.
    fn columns(&self, module: &str) -> usize {
        let packed = self.packed.get(module).and_then(|matrices| matrices.values().next());
        let weight = self.source.checkpoint.tensor(&format!("{module}.weight"));
        packed.map_or_else(
            || weight.and_then(|weight| weight.shape.get(1).copied()).unwrap_or(0),
            |packed| packed.shape.columns,
        )
    }

    /// The same of experts in one tensor.
    fn change_of_stack(
        &self,
        name: &str,
        count: usize,
        shape: Shape,
    ) -> Result<Option<Vec<Option<Change>>>, MergeError> {
        let Some(module) = wrapped(self.source.spec.trained, self.adapter, name) else { return Ok(None) };
        let of = |expert| {
            let part = Some((expert, count));
            self.adapter.change(&Asked { module: &module, part, name, shape, is_table: false }, &self.used)
        };
        Ok(Some((0..count).map(of).collect::<Result<Vec<_>, _>>()?))
    }

    /// Quantized matrices as numbers, in the type of the model's other weights.
    fn packed_tensors(&mut self) -> Result<(), MergeError> {
        let embedding = format!("{}.weight", self.source.spec.names.embedding);
        let dtype = self.source.checkpoint.tensor(&embedding).map(|tensor| tensor.dtype);
        let dtype = dtype.filter(|dtype| matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16));
        let dtype = dtype.unwrap_or(Dtype::Bf16);
        for (module, matrices) in self.packed.clone() {
            let matrices: Vec<Packed> = matrices.into_values().collect();
            let Shape { rows, columns } = matrices[0].shape;
            let is_stack = matrices.len() > 1 || !matrices[0].parts.is_empty();
            let (name, shape) = match is_stack {
                true => (module, vec![matrices.len(), columns, rows]),
                false => (format!("{module}.weight"), vec![rows, columns]),
            };
            let made = match self.change(&name, &shape)? {
                Some(made) => made,
                None => Made::Rows(vec![None; if is_stack { matrices.len() } else { 1 }]),
            };
            let whole = self.adapter.stored(&name).filter(|whole| whole.shape == shape);
            let (from, made) = match whole {
                Some(_) => (Taken::Whole(name.clone()), Made::Rows(vec![None])),
                None => (Taken::Packed(matrices), made),
            };
            self.outputs.push(Output { name, dtype, shape, from, made, rounded: false });
        }
        Ok(())
    }

    /// Where head and embedding are one tensor and the adapter has something for one of them, they are two from now on,
    /// as they are beside the adapter.
    fn part_tables(&mut self) -> Result<bool, MergeError> {
        let spec = &self.source.spec;
        let (embedding, head) =
            (format!("{}.weight", spec.names.embedding), format!("{}.weight", spec.names.head));
        let is_concerned = self.adapter.changes(spec.names.embedding)
            || self.adapter.changes(spec.names.head)
            || self.adapter.stored(&embedding).is_some()
            || self.adapter.stored(&head).is_some();
        if !spec.tied || !is_concerned {
            return Ok(false);
        }
        // A head that old tools have stored beside is not in use.
        self.outputs.retain(|output| output.name != head);
        let table = self.source.checkpoint.tensor(&embedding);
        let table = table.ok_or_else(|| MergeError::Model {
            model: self.source.folder().to_owned(),
            reason: format!("expected a tensor {embedding}, found none: is a shard missing?"),
        })?;
        let (dtype, shape) = (table.dtype, table.shape.to_vec());
        let change = self.change(&head, &shape)?;
        let (from, made) = match self.adapter.stored(&head) {
            Some(_) => (Taken::Whole(head.clone()), Made::Rows(vec![None])),
            None => (Taken::Base(embedding), Made::Copied),
        };
        let made = change.unwrap_or(made);
        self.outputs.push(Output { name: head, dtype, shape, from, made, rounded: false });
        Ok(true)
    }
}
