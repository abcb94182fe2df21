//! A GGUF file as the folder of safetensors that it was made from, for work that begins with such a folder: names,
//! matrices put together and rows in an order as the family's own files have them.
//!
//! Plain numbers stay what they are; those in 32 bits get the 16 of the other tensors where that loses nothing, as they
//! had them before. Blocks become float16, which holds their values to a two-thousandth, or what holds them exactly.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bantam_core::Cpu;
use half::{bf16, f16};
use serde_json::json;

use super::{GgufError, Metadata, settings};
use crate::checkpoint::writer::{self, Outline, WriteError};
use crate::checkpoint::{Checkpoint, CheckpointError, Dtype, TensorView};
use crate::families::{Names, Part, Stack};
use crate::files::FilesError;
use crate::formats::gguf::Kind;
use crate::plan::{Fill, Options, cut};
use crate::source::{Source, SourceError};
use crate::spec::LayerSpec;
use crate::weights::{WeightsError, quantized, unreadable};

/// Why a folder was not made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum RestoreError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{}: {source}; if others read the file, report it; if not, it is damaged: download it again", .file.display())]
    Gguf { file: PathBuf, source: GgufError },
}

/// Bytes of a file that are read at once.
const STEP: usize = 1 << 20;

/// What a tensor's name and place take in lists and plans.
const LISTED_BYTES: usize = 2048;
/// What a vocabulary takes of memory while a tokenizer is made of it, for each of its tokens, at most.
const TOKEN_BYTES: usize = 600;

/// Rows of a tensor of the file that follow one another there.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Which of the tensors it is.
    part: usize,
    first: usize,
    rows: usize,
}

/// The rows of a tensor of the folder. A stack has those of its first matrix as often as it has matrices: a list of all
/// would be longer than the weights of some models are large.
#[derive(Debug, Clone)]
struct Runs {
    /// Tensors of the file, and how many rows of each belong to a matrix.
    parts: Vec<(String, usize)>,
    of_one: Arc<[Run]>,
    matrices: usize,
}

impl Runs {
    fn new(parts: Vec<(String, usize)>, of_one: Vec<Run>, matrices: usize) -> Runs {
        Runs { parts, of_one: of_one.into(), matrices }
    }

    /// Each with the name of its tensor.
    fn all(&self) -> impl Iterator<Item = (&str, Run)> {
        (0..self.matrices).flat_map(move |matrix| {
            self.of_one.iter().map(move |run| {
                let (tensor, rows) = &self.parts[run.part];
                (tensor.as_str(), Run { first: matrix * rows + run.first, ..*run })
            })
        })
    }
}

/// What becomes of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Made {
    /// Numbers, less this.
    Numbers(f32),
    /// The codes of blocks of four bits, as gpt-oss has them.
    Codes,
    /// Their exponents.
    Exponents,
}

/// A tensor of the folder.
#[derive(Debug)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    runs: Runs,
    /// Values of a row; one of a vector.
    columns: usize,
    made: Made,
    /// So many rows stand as columns.
    turned: Option<usize>,
}

impl Tensor {
    fn outline(&self) -> Outline<'_> {
        (&self.name, self.dtype, &self.shape)
    }

    fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bytes() as u64
    }
}

/// A GGUF file about to be written out.
#[derive(Debug)]
pub struct Restored<'a> {
    source: &'a Source,
    metadata: &'a Metadata,
    tensors: Vec<Tensor>,
}

impl<'a> Restored<'a> {
    /// Looks at headers and small tensors. `None` where the model is in no GGUF file.
    pub fn new(source: &'a Source) -> Result<Option<Self>, RestoreError> {
        let Some(metadata) = source.files.gguf() else { return Ok(None) };
        let family = metadata.family().map_err(|error| refused(metadata, error))?;
        let plan = source.plan(Options::SMALLEST, Cpu::detect())?;
        let mut lister = Lister::new(source, family.weight_shift);
        for (number, layer) in source.spec.layers.iter().enumerate() {
            lister.layer(number, layer);
        }
        let mut others: Vec<&str> = Vec::new();
        for fill in &plan.fills {
            match fill {
                Fill::Matrix { origin, .. } => others.extend(origin.tensors().iter().map(String::as_str)),
                Fill::Vector { tensor, .. } => others.push(tensor),
                Fill::Values { .. } | Fill::Low(_) => {}
            }
        }
        others.sort_unstable();
        others.dedup();
        for name in others {
            lister.alone(name);
        }
        let Lister { tensors, .. } = lister;
        Ok(Some(Restored { source, metadata, tensors }))
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// The folder as far as names and sizes go, for what can be said before it is there. It has no numbers.
    pub fn outline(&self) -> Result<Source, RestoreError> {
        let tensors: Vec<Outline<'_>> = self.tensors.iter().map(Tensor::outline).collect();
        let checkpoint = Checkpoint::outlined(self.source.folder(), &tensors)?;
        Ok(Source::outlined(self.source.files.clone(), self.config()?, checkpoint)?)
    }

    /// The most memory that is taken at once, beside what the file's own headers take.
    pub fn memory_bytes(&self) -> u64 {
        let lists = |tensor: &Tensor| {
            let names: usize = tensor.runs.parts.iter().map(|(name, _)| name.len() + 64).sum();
            LISTED_BYTES + names + size_of_val(&*tensor.runs.of_one)
        };
        let lists: usize = self.tensors.iter().map(lists).sum();
        let writing = self.tensors.iter().map(|tensor| self.writing_bytes(tensor)).max().unwrap_or(0);
        let tokenizer = TOKEN_BYTES * self.source.spec.vocab;
        // Beside a tensor, the buffer of its file; before that, what finds out whether numbers lose anything.
        (lists + (writing + STEP).max(2 * STEP).max(tokenizer)) as u64
    }

    /// What a tensor takes on its way.
    fn writing_bytes(&self, tensor: &Tensor) -> usize {
        let Runs { parts, of_one, .. } = &tensor.runs;
        let of_part = |(part, (name, _)): (usize, &(String, usize))| {
            let view = self.source.checkpoint.tensor(name).expect("it was listed from this checkpoint");
            let row_bytes = row_bytes(&view, tensor.columns);
            let longest = of_one.iter().filter(|run| run.part == part).map(|run| run.rows).max().unwrap_or(0);
            // As they are read; as float32, where they become other numbers; and as they are written, in a vector that
            // grows by doubling.
            let made = match tensor.made {
                Made::Numbers(_) if view.dtype == tensor.dtype => 2 * row_bytes,
                Made::Numbers(_) => tensor.columns * (4 + 2 * tensor.dtype.bytes()),
                Made::Codes | Made::Exponents => 2 * row_bytes,
            };
            (STEP / row_bytes.max(1)).max(1).min(longest) * (row_bytes + made)
        };
        let most = parts.iter().enumerate().map(of_part).max().unwrap_or(0);
        let turned = tensor.turned.map_or(0, |rows| 2 * rows * tensor.columns * tensor.dtype.bytes());
        most + turned
    }

    /// Whether a tokenizer can be made of the file's vocabulary; else, why not.
    pub fn tokenizer(&self) -> Result<bool, GgufError> {
        self.metadata.tokenizer().map(|found| found.is_some())
    }

    /// Writes the folder and tells of bytes. Files that are there already are whole; `config.json` comes last.
    pub fn write(
        &self,
        folder: &Path,
        shard_bytes: u64,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), RestoreError> {
        let shards = self.shards(shard_bytes);
        let (mut done, mut map) = (0, serde_json::Map::new());
        for (number, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            let path = folder.join(&name);
            if Checkpoint::open(&path).is_err() {
                self.write_shard(shard, &path, &mut |more| tell(done + more))?;
            }
            done += shard.iter().map(Tensor::bytes).sum::<u64>();
            tell(done);
            map.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(name))));
        }
        self.source.checkpoint.check_unchanged()?;
        if shards.len() > 1 {
            let index = json!({ "metadata": { "total_size": done }, "weight_map": map });
            let path = folder.join("model.safetensors.index.json");
            writer::write_file(&path, format!("{index:#}\n").as_bytes())?;
        }
        self.write_small_files(folder)
    }

    /// Tensors in stretches of at most so many bytes, or of one.
    fn shards(&self, shard_bytes: u64) -> Vec<&[Tensor]> {
        let (mut shards, mut first, mut bytes) = (Vec::new(), 0, 0);
        for (at, tensor) in self.tensors.iter().enumerate() {
            if at > first && bytes + tensor.bytes() > shard_bytes {
                shards.push(&self.tensors[first..at]);
                (first, bytes) = (at, 0);
            }
            bytes += tensor.bytes();
        }
        shards.push(&self.tensors[first..]);
        shards
    }

    fn write_shard(
        &self,
        shard: &[Tensor],
        path: &Path,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), RestoreError> {
        let outlines: Vec<Outline<'_>> = shard.iter().map(Tensor::outline).collect();
        let (mut written, mut failed) = (0, None);
        let result = writer::write_streamed(path, &outlines, &[("format", "pt")], |index, out| {
            let mut out = |bytes: &[u8]| {
                written += bytes.len() as u64;
                tell(written);
                out.write_all(bytes)
            };
            let copying = Copying { checkpoint: &self.source.checkpoint, tensor: &shard[index] };
            match copying.write(&mut out) {
                Ok(()) => Ok(()),
                Err(Failed::Out(error)) => Err(error),
                Err(Failed::In(error)) => {
                    failed = Some(error);
                    Err(io::ErrorKind::InvalidData.into())
                }
            }
        });
        match failed {
            // What the reading said is nearer to the cause.
            Some(error) => Err(error.into()),
            None => Ok(result?),
        }
    }

    fn write_small_files(&self, folder: &Path) -> Result<(), RestoreError> {
        let (metadata, made) = (self.metadata, |error| refused(self.metadata, error));
        // Where it cannot be made, the caller has said so.
        if let Ok(Some(tokenizer)) = metadata.tokenizer() {
            writer::write_file(&folder.join("tokenizer.json"), &tokenizer)?;
        }
        let config = metadata.folder_tokenizer_config().map_err(made)?;
        writer::write_file(&folder.join("tokenizer_config.json"), &config)?;
        Ok(writer::write_file(&folder.join("config.json"), &self.config()?)?)
    }

    fn config(&self) -> Result<Vec<u8>, RestoreError> {
        let has_codes = self.tensors.iter().any(|tensor| tensor.made == Made::Codes);
        settings::folder_config(self.metadata, self.source, self.dtype(), has_codes)
            .map_err(|error| refused(self.metadata, error))
    }

    /// What tools had best compute with: float16 has too small a range for some, so it is chosen where the file did.
    fn dtype(&self) -> Dtype {
        let mut dtypes = self.source.checkpoint.tensors().map(|tensor| tensor.dtype);
        if dtypes.any(|dtype| dtype.is_blocks() || dtype == Dtype::Bf16) {
            return Dtype::Bf16;
        }
        let has = |dtype| self.tensors.iter().any(|tensor| tensor.dtype == dtype && tensor.columns > 1);
        if has(Dtype::F16) { Dtype::F16 } else { Dtype::F32 }
    }
}

fn refused(metadata: &Metadata, source: GgufError) -> RestoreError {
    RestoreError::Gguf { file: metadata.path().into(), source }
}

/// The type of the folder's tensor: numbers keep theirs.
fn widened(dtype: Dtype) -> Dtype {
    match dtype {
        Dtype::Mxfp4 => Dtype::Bf16,
        dtype if dtype.is_blocks() => Dtype::F16,
        dtype => dtype,
    }
}

/// A projection as a part of a tensor here and there.
#[derive(Clone, Copy)]
struct Projection<'s> {
    theirs: Part,
    ours: Part,
    rows: usize,
    columns: usize,
    sections: &'s [usize],
}

/// Makes the list of tensors.
struct Lister<'a> {
    source: &'a Source,
    /// Taken away from the weights of norms.
    shift: f32,
    /// The type of most numbers.
    usual: Dtype,
    tensors: Vec<Tensor>,
    /// Tensors of the file that went into others.
    used: BTreeSet<String>,
}

impl<'a> Lister<'a> {
    fn new(source: &'a Source, shift: f32) -> Self {
        let names = source.spec.names;
        let embedding = source.checkpoint.tensor(&format!("{}.weight", names.embedding));
        let usual = embedding.map_or(Dtype::F32, |view| widened(view.dtype));
        Lister { source, shift, usual, tensors: Vec::new(), used: BTreeSet::new() }
    }

    fn view(&self, name: &str) -> Option<TensorView<'a>> {
        self.source.checkpoint.tensor(name)
    }

    fn layer(&mut self, number: usize, layer: &LayerSpec) {
        let (theirs, ours) = (self.source.spec.names, self.source.spec.trained);
        let prefix = ours.layer.replace("{}", &number.to_string());
        let (a, hidden, width) = (&layer.attention, self.source.spec.hidden, layer.mlp.width);
        let (query, kv) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        let (inputs, units) = ([query, kv, kv], [width, width]);
        let of = |[theirs, ours]: [Part; 2], rows, columns, sections| Projection {
            theirs,
            ours,
            rows,
            columns,
            sections,
        };
        let attention = [
            of([theirs.query, ours.query], query, hidden, &inputs[..]),
            of([theirs.key, ours.key], kv, hidden, &inputs),
            of([theirs.value, ours.value], kv, hidden, &inputs),
            of([theirs.output, ours.output], hidden, query, &[]),
        ];
        let gate = theirs.gate.zip(ours.gate);
        let gate = gate.map(|(theirs, ours)| of([theirs, ours], width, hidden, &units[..]));
        let others = [
            of([theirs.up, ours.up], width, hidden, &units[..]),
            of([theirs.down, ours.down], hidden, width, &[]),
        ];
        let mlp: Vec<Projection> = gate.into_iter().chain(others).collect();
        together(&attention).iter().for_each(|parts| self.dense(&prefix, parts, None));
        for parts in together(&mlp) {
            match (layer.mlp.experts, theirs.experts.zip(ours.experts)) {
                (Some(experts), Some((_, (_, Stack::Apart)))) => {
                    let all = 0..experts.choice.experts;
                    all.for_each(|expert| self.dense(&prefix, &parts, Some(expert)));
                }
                (Some(experts), Some(_)) => self.stack(&prefix, &parts, experts.choice.experts),
                _ => self.dense(&prefix, &parts, None),
            }
        }
    }

    /// Rows of a folder's tensor: of which of the parts, and which row of its tensor in the file.
    fn rows(&self, parts: &[Projection]) -> Vec<(usize, usize)> {
        let place = |part: Part, of: &Projection| cut(&self.source.spec, part.rows, of.rows, of.sections);
        let mut rows = vec![(0, 0); place(parts[0].ours, &parts[0]).1];
        for (number, part) in parts.iter().enumerate() {
            let (theirs, ours) = (place(part.theirs, part).0, place(part.ours, part).0);
            (0..part.rows).for_each(|row| rows[ours.source_row(row)] = (number, theirs.source_row(row)));
        }
        rows
    }

    /// A matrix, and its bias where there is one.
    fn dense(&mut self, prefix: &str, parts: &[Projection], expert: Option<usize>) {
        let name = |part: Part, kind: &str| {
            let number = expert.map_or(String::new(), |expert| expert.to_string());
            format!("{prefix}{}.{kind}", part.module.replace("{}", &number))
        };
        let rows = self.rows(parts);
        let of_one = Runs::new(Vec::new(), runs(&rows), 1);
        for (kind, columns) in [("weight", parts[0].columns), ("bias", 1)] {
            let names: Vec<String> = parts.iter().map(|part| name(part.theirs, kind)).collect();
            if names.iter().any(|name| self.view(name).is_none()) {
                continue;
            }
            let shape = if kind == "bias" { vec![rows.len()] } else { vec![rows.len(), columns] };
            let runs = Runs { parts: names.iter().map(|name| (name.clone(), 0)).collect(), ..of_one.clone() };
            let dtype = self.dtype(&names, 0.0);
            let (name, made) = (name(parts[0].ours, kind), Made::Numbers(0.0));
            self.tensors.push(Tensor { name, dtype, shape, runs, columns, made, turned: None });
            self.used.extend(names);
        }
    }

    /// The matrices of all experts in one tensor, and their biases.
    fn stack(&mut self, prefix: &str, parts: &[Projection], experts: usize) {
        let (theirs, ours) = (self.source.spec.names, self.source.spec.trained);
        let [(of_file, _), (ending, turned)] = [theirs, ours].map(stacked);
        let rows = self.rows(parts);
        let files: Vec<usize> =
            parts.iter().map(|of| cut(&self.source.spec, of.theirs.rows, of.rows, of.sections).1).collect();
        let name = format!("{prefix}{}{ending}", parts[0].ours.module);
        let named = |ending: &str| -> Vec<String> {
            parts.iter().map(|part| format!("{prefix}{}{ending}", part.theirs.module)).collect()
        };
        let of_one = Runs::new(Vec::new(), runs(&rows), experts);
        let all = |names: &[String]| Runs {
            parts: names.iter().cloned().zip(files.iter().copied()).collect(),
            ..of_one.clone()
        };
        let (names, columns) = (named(of_file), parts[0].columns);
        let runs = all(&names);
        let is_coded = |name: &String| self.view(name).is_some_and(|view| view.dtype == Dtype::Mxfp4);
        if names.iter().all(is_coded) {
            let kind = Kind::of(Dtype::Mxfp4).expect("it is one");
            let blocks = columns / kind.values;
            let whole = [experts, rows.len(), blocks];
            let codes = [&whole[..], &[kind.values / 2]].concat();
            for (ending, shape, made) in
                [("_blocks", codes, Made::Codes), ("_scales", whole.to_vec(), Made::Exponents)]
            {
                let (name, runs) = (format!("{name}{ending}"), runs.clone());
                self.tensors.push(Tensor {
                    name,
                    dtype: Dtype::U8,
                    shape,
                    runs,
                    columns,
                    made,
                    turned: None,
                });
            }
        } else {
            let sides = if turned { [columns, rows.len()] } else { [rows.len(), columns] };
            let (dtype, shape) = (self.dtype(&names, 0.0), vec![experts, sides[0], sides[1]]);
            let (made, turned) = (Made::Numbers(0.0), turned.then_some(rows.len()));
            self.tensors.push(Tensor { name: name.clone(), dtype, shape, runs, columns, made, turned });
        }
        let biases = named("_bias");
        if biases.iter().all(|name| self.view(name).is_some()) {
            let (dtype, runs) = (self.dtype(&biases, 0.0), all(&biases));
            let (name, shape, made) = (format!("{name}_bias"), vec![experts, rows.len()], Made::Numbers(0.0));
            self.tensors.push(Tensor { name, dtype, shape, runs, columns: 1, made, turned: None });
            self.used.extend(biases);
        }
        self.used.extend(names);
    }

    /// A tensor that is the same there and here, but for what is added to norms.
    fn alone(&mut self, name: &str) {
        let Some(view) = self.view(name).filter(|_| !self.used.contains(name)) else {
            return;
        };
        let shift = if is_norm(self.source.spec.trained, name) { self.shift } else { 0.0 };
        let names = [name.to_owned()];
        let dtype = self.dtype(&names, shift);
        let mut shape = view.shape.to_vec();
        if let (Some(kind), Some(columns)) = (Kind::of(view.dtype), shape.last_mut()) {
            *columns = *columns / kind.bytes * kind.values;
        }
        let columns = if shape.len() > 1 { shape[shape.len() - 1] } else { 1 };
        let [tensor] = names;
        let run = Run { part: 0, first: 0, rows: shape.iter().product::<usize>() / columns.max(1) };
        let runs = Runs::new(vec![(tensor, 0)], vec![run], 1);
        let (name, made) = (name.to_owned(), Made::Numbers(shift));
        self.tensors.push(Tensor { name, dtype, shape, runs, columns, made, turned: None });
    }

    /// One type for what several tensors hold.
    fn dtype(&self, names: &[String], shift: f32) -> Dtype {
        let views: Vec<TensorView> = names.iter().filter_map(|name| self.view(name)).collect();
        let Some(first) = views.first().map(|view| widened(view.dtype)) else { return self.usual };
        match views.iter().all(|view| widened(view.dtype) == first) {
            true if first == Dtype::F32 && self.loses_nothing(&views, shift) => self.usual,
            true => first,
            false => Dtype::F32,
        }
    }

    /// Whether numbers of 32 bits are such of 16.
    fn loses_nothing(&self, views: &[TensorView], shift: f32) -> bool {
        if self.usual == Dtype::F32 {
            return true;
        }
        let mut values = vec![0.0; STEP / 4];
        let mut scratch = Vec::new();
        views.iter().all(|view| {
            (0..view.elements()).step_by(STEP / 4).all(|first| {
                let values = &mut values[..(view.elements() - first).min(STEP / 4)];
                view.load_f32(first, values, &mut scratch).is_ok()
                    && values.iter().all(|value| {
                        let value = value - shift;
                        let mut found = [0.0];
                        let mut bytes = Vec::new();
                        narrow(self.usual, &[value], &mut bytes);
                        self.usual.widen(&bytes, &mut found);
                        found[0].to_bits() == value.to_bits()
                    })
            })
        })
    }
}

/// Projections by the folder's tensor that they are parts of.
fn together<'s>(all: &[Projection<'s>]) -> Vec<Vec<Projection<'s>>> {
    let mut found: Vec<Vec<Projection>> = Vec::new();
    for part in all {
        match found.iter_mut().find(|parts| parts[0].ours.module == part.ours.module) {
            Some(parts) => parts.push(*part),
            None => found.push(vec![*part]),
        }
    }
    found
}

/// The ending of a stack's name, and whether inputs come first.
fn stacked(names: &Names) -> (&'static str, bool) {
    match names.experts {
        Some((_, Stack::Together { matrix, turned })) => (matrix, turned),
        _ => ("", false),
    }
}

fn is_norm(names: &Names, tensor: &str) -> bool {
    let Some(module) = tensor.strip_suffix(names.norm_weight).and_then(|name| name.strip_suffix('.')) else {
        return false;
    };
    let of_layer = [Some([names.attention_norm, names.mlp_norm]), names.post_norms, names.head_norms];
    let mut of_layer = of_layer.into_iter().flatten().flatten();
    module == names.final_norm || of_layer.any(|norm| module.ends_with(&format!(".{norm}")))
}

/// Rows one after another as stretches.
fn runs(rows: &[(usize, usize)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &(part, row) in rows {
        match runs.last_mut() {
            Some(run) if run.part == part && run.first + run.rows == row => run.rows += 1,
            _ => runs.push(Run { part, first: row, rows: 1 }),
        }
    }
    runs
}

/// Bytes of a row of so many values in the file.
fn row_bytes(view: &TensorView, columns: usize) -> usize {
    match Kind::of(view.dtype) {
        Some(kind) => columns / kind.values * kind.bytes,
        None => columns * view.dtype.bytes(),
    }
}

/// Rounds to a type of 16 bits, or leaves 32.
fn narrow(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) {
    let each = values.iter();
    match dtype {
        Dtype::F16 => out.extend(each.flat_map(|value| f16::from_f32(*value).to_le_bytes())),
        Dtype::Bf16 => out.extend(each.flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
        _ => out.extend(each.flat_map(|value| value.to_le_bytes())),
    }
}

/// Why a tensor was not written.
enum Failed {
    In(WeightsError),
    Out(io::Error),
}

/// A tensor on its way.
struct Copying<'a> {
    checkpoint: &'a Checkpoint,
    tensor: &'a Tensor,
}

impl Copying<'_> {
    fn write(&self, out: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), Failed> {
        let Some(together) = self.tensor.turned else {
            return self.rows(&mut |bytes| out(bytes).map_err(Failed::Out));
        };
        let (size, columns) = (self.tensor.dtype.bytes(), self.tensor.columns);
        let mut kept = Vec::with_capacity(together * columns * size);
        self.rows(&mut |mut bytes| {
            while !bytes.is_empty() {
                let room = together * columns * size - kept.len();
                let (now, later) = bytes.split_at(room.min(bytes.len()));
                kept.extend_from_slice(now);
                bytes = later;
                if kept.len() == together * columns * size {
                    out(&turned(&kept, columns, size)).map_err(Failed::Out)?;
                    kept.clear();
                }
            }
            Ok(())
        })
    }

    fn rows(&self, out: &mut dyn FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
        let mut made = Vec::new();
        for (name, run) in self.tensor.runs.all() {
            let view = self.checkpoint.tensor(name).expect("it was listed from this checkpoint");
            let (kind, row_bytes) = (Kind::of(view.dtype), row_bytes(&view, self.tensor.columns));
            let together = (STEP / row_bytes.max(1)).max(1);
            for first in (run.first..run.first + run.rows).step_by(together) {
                let rows = together.min(run.first + run.rows - first);
                let part = first * row_bytes..(first + rows) * row_bytes;
                let bytes = view.load(part).map_err(|error| Failed::In(unreadable(&view, error)))?;
                made.clear();
                self.convert(&view, kind, &bytes, &mut made).map_err(Failed::In)?;
                out(&made)?;
            }
        }
        Ok(())
    }

    fn convert(
        &self,
        view: &TensorView,
        kind: Option<&'static Kind>,
        bytes: &[u8],
        made: &mut Vec<u8>,
    ) -> Result<(), WeightsError> {
        let dtype = self.tensor.dtype;
        let shift = match (self.tensor.made, kind) {
            (Made::Codes, Some(kind)) => {
                kind.codes_in_order(bytes, made);
                return Ok(());
            }
            (Made::Exponents, Some(kind)) => {
                kind.exponents(bytes, made);
                return Ok(());
            }
            (Made::Numbers(shift), _) if view.dtype == dtype && shift == 0.0 => {
                made.extend_from_slice(bytes);
                return Ok(());
            }
            (Made::Numbers(shift), _) => shift,
            _ => unreachable!("codes are of blocks"),
        };
        let mut values = vec![0.0; bytes.len() / view.dtype.bytes()];
        match kind {
            None => view.dtype.widen(bytes, &mut values),
            Some(kind) => {
                values.resize(bytes.len() / kind.bytes * kind.values, 0.0);
                let columns = self.tensor.columns;
                kind.decode(bytes, columns, &mut values).map_err(|reason| quantized(view, reason))?;
            }
        }
        values.iter_mut().for_each(|value| *value -= shift);
        if dtype == Dtype::F16 && values.iter().any(|value| value.abs() >= 65_520.0) {
            let reason = "expected values that float16 holds, found larger ones".to_owned();
            return Err(quantized(view, reason));
        }
        narrow(dtype, &values, made);
        Ok(())
    }
}

/// Rows of so many elements as columns.
fn turned(rows: &[u8], columns: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len());
    for column in 0..columns {
        for row in rows.chunks_exact(columns * size) {
            out.extend_from_slice(&row[column * size..][..size]);
        }
    }
    out
}
