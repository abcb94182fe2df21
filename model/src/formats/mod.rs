//! Quantized checkpoints: a file for every tool's format, with its bits drawn, and the table of them.
//!
//! The configuration names the format. For a module it says which tensors hold its matrix, and once their bytes are
//! there, what they are as float32 rows: exactly the numbers that the tool itself computes with, before any rounding
//! to 16 bits. How a matrix then lies in memory is a layout's business, not a format's.

mod aqlm;
mod awq;
mod bitnet;
mod bitsandbytes;
mod compressed_tensors;
mod eetq;
pub mod encode;
pub(crate) mod gguf;
mod gptq;
mod hqq;
mod mxfp4;
pub mod on_load;
pub mod ternary;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use bantam_core::layouts::Shape;
pub(crate) use bantam_core::layouts::coded::WHOLE_ROW;
use bantam_core::layouts::coded::{COUNT, Coding};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Dtype, TensorView};
use crate::config::{Config, ConfigError};
use crate::plan::{PlanError, Stored};

/// How the matrices of a checkpoint are quantized.
#[derive(Debug, Clone, Default)]
pub struct Format(Option<Arc<dyn Reader>>);

/// What a configuration's `quant_method` stands for.
type Read = fn(Config) -> Result<Arc<dyn Reader>, ConfigError>;

/// Every format.
static METHODS: &[(&str, Read)] = &[
    ("aqlm", aqlm::read),
    ("awq", awq::read),
    (ternary::METHOD, ternary::read),
    ("bitnet", bitnet::read),
    ("bitsandbytes", bitsandbytes::read),
    ("compressed-tensors", compressed_tensors::read),
    ("eetq", eetq::read),
    ("gguf", gguf::read),
    ("gptq", gptq::read),
    ("hqq", hqq::read),
    ("mxfp4", mxfp4::read),
];

/// The same for an error message.
const METHOD_NAMES: &str =
    "aqlm, awq, bantam-ternary, bitnet, bitsandbytes, compressed-tensors, eetq, gguf, gptq, hqq, mxfp4";

impl Format {
    /// Reads `quantization_config`, where there is one; else it is the family's method, if that has one.
    pub(crate) fn read(config: Config, default: Option<&str>) -> Result<Format, ConfigError> {
        let none = serde_json::Map::new();
        let (settings, method) = match (config.object("quantization_config")?, default) {
            (Some(settings), _) => (settings, settings.text("quant_method")?.unwrap_or("")),
            (None, Some(method)) => (Config(&none), method),
            (None, None) => return Ok(Format(None)),
        };
        match METHODS.iter().find(|(name, _)| *name == method) {
            Some((_, read)) => Ok(Format(Some(read(settings)?))),
            None => Err(ConfigError::Unsupported {
                key: "quantization_config.quant_method".to_owned(),
                found: format!("\"{method}\"").chars().take(64).collect(),
                supported: METHOD_NAMES.to_owned(),
            }),
        }
    }

    /// Whether a tool quantized the checkpoint. A GGUF file may hold floating point alone.
    pub fn is_quantized(&self) -> bool {
        self.0.is_some() && !self.is_gguf()
    }

    /// Whether all is as in a GGUF file: see `families::Gguf`.
    pub fn is_gguf(&self) -> bool {
        self.0.as_ref().is_some_and(|reader| reader.is_gguf())
    }

    /// The matrix of a module, `shape.rows` outputs of `shape.columns` inputs; `None` where it stands as it is.
    pub(crate) fn find(
        &self,
        tensors: &Tensors,
        module: &str,
        shape: Shape,
    ) -> Result<Option<Packed>, PlanError> {
        match &self.0 {
            Some(reader) => reader.find(tensors, module, shape),
            None => Ok(None),
        }
    }

    /// The matrices of all experts, one after another in the same tensors.
    pub(crate) fn find_stack(
        &self,
        tensors: &Tensors,
        name: &str,
        experts: usize,
        shape: Shape,
    ) -> Result<Option<Vec<Packed>>, PlanError> {
        match &self.0 {
            Some(reader) => reader.find_stack(tensors, name, experts, shape),
            None => Ok(None),
        }
    }
}

/// Decodes the matrix of a module, or of one of its two experts, from tensors in memory: the whole way from a
/// `quantization_config` to rows, for the fuzz target.
#[doc(hidden)]
pub fn decode(
    config: &[u8],
    tensors: &[(&str, Stored, &[u8])],
    module: &str,
    shape: Shape,
) -> Result<Option<Vec<f32>>, String> {
    let config: Value = serde_json::from_slice(config).map_err(|error| error.to_string())?;
    let config = serde_json::Map::from_iter([("quantization_config".to_owned(), config)]);
    let format = Format::read(Config(&config), None).map_err(|error| error.to_string())?;
    let find = |name: &str| tensors.iter().find(|(found, ..)| *found == name);
    let stored = |name: &str| find(name).map(|(_, stored, _)| stored.clone());
    let found = format.find(&Tensors(&stored), module, shape).map_err(|error| error.to_string())?;
    let stack = format.find_stack(&Tensors(&stored), module, 2, shape).map_err(|error| error.to_string())?;
    let Some(packed) = found.or_else(|| stack?.pop()) else {
        return Ok(None);
    };
    let part = |(at, name): (usize, &String)| {
        let bytes = find(name).expect("it was found before").2;
        packed.parts.get(at).map_or(bytes, |part| &bytes[part.clone()])
    };
    let bytes: Vec<&[u8]> = packed.tensors.iter().enumerate().map(part).collect();
    let rows = packed.decode.open(shape, &bytes).map_err(|refusal| refusal.reason)?;
    let mut values = vec![0.0; shape.rows * shape.columns];
    for (row, out) in values.chunks_exact_mut(shape.columns).enumerate() {
        rows.row(row, out);
    }
    Ok(Some(values))
}

/// One format, as a configuration describes it.
pub(crate) trait Reader: Debug + Send + Sync {
    /// See [`Format::find`].
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError>;
    /// See [`Format::is_gguf`].
    fn is_gguf(&self) -> bool {
        false
    }
    /// See [`Format::find_stack`].
    fn find_stack(
        &self,
        _: &Tensors,
        _: &str,
        _experts: usize,
        _: Shape,
    ) -> Result<Option<Vec<Packed>>, PlanError> {
        Ok(None)
    }
}

/// A quantized matrix: the tensors that hold it, all there and of the right shapes, and how they are decoded.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The module; with `.weight` appended, the matrix's name before it was quantized.
    pub module: String,
    /// Outputs and inputs.
    pub shape: Shape,
    /// Names of the tensors, in the order in which `decode` gets them.
    pub tensors: Vec<String>,
    /// Where only a part of every tensor is its: bytes from, bytes to.
    pub(crate) parts: Vec<Range<usize>>,
    /// Small tensors that say once more what the configuration says, or what only the tool needs. Where numbers stand
    /// here, they must stand there.
    pub(crate) notes: Vec<(String, Option<Vec<i64>>)>,
    /// A tensor of float values by which its columns are divided after it is decoded.
    pub divisors: Option<String>,
    pub(crate) decode: Arc<dyn Decode>,
}

impl Packed {
    /// A matrix that has its tensors for itself.
    fn new(module: &str, shape: Shape, tensors: Vec<String>, decode: impl Decode + 'static) -> Self {
        let (module, decode) = (module.to_owned(), Arc::new(decode));
        Packed { module, shape, tensors, parts: Vec::new(), notes: Vec::new(), divisors: None, decode }
    }

    /// With those notes that are there.
    fn noted(mut self, tensors: &Tensors, notes: &[(&str, Option<&[usize]>)]) -> Self {
        for &(suffix, numbers) in notes {
            let name = format!("{}.{suffix}", self.module);
            if tensors.get(&name).is_some() {
                let numbers = numbers.map(|numbers| numbers.iter().map(|&number| number as i64).collect());
                self.notes.push((name, numbers));
            }
        }
        self
    }

    /// Names of all tensors that are its.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let notes = self.notes.iter().map(|(name, _)| name);
        self.tensors.iter().chain(notes).chain(&self.divisors).map(String::as_str)
    }

    /// Its tensors in the checkpoint that the plan was made from.
    pub(crate) fn sources<'a>(&self, checkpoint: &'a Checkpoint) -> Vec<TensorView<'a>> {
        let tensor = |name: &String| checkpoint.tensor(name).expect("the plan was made from this checkpoint");
        self.tensors.iter().map(tensor).collect()
    }
}

/// How the bytes of a matrix's tensors become rows.
pub(crate) trait Decode: Debug + Send + Sync {
    /// How its codes lie, where its rows are codes with scales: see [`Rows::codes`].
    fn coding(&self, _: Shape) -> Option<Coding> {
        None
    }
    /// Whether its inputs may have to be taken in an order of their own: see [`Rows::order`].
    fn ordered(&self) -> bool {
        false
    }
    /// Whether its codes want their inputs multiplied first: see [`Rows::factors`].
    fn factored(&self) -> bool {
        false
    }
    /// How many matrices of codes stand side by side, whose sum it is: see [`Rows::codes`].
    fn times(&self) -> usize {
        1
    }
    /// Looks at the bytes, and refuses what must not be there: scales that are no numbers, indices that lead nowhere.
    /// The reason says which tensor, by its place among them, what was expected and what was found.
    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal>;
}

/// Why bytes are no matrix.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which of the tensors.
    pub(crate) tensor: usize,
    /// What was expected and what was found.
    pub(crate) reason: String,
}

/// A matrix row by row. Any thread may ask.
pub trait Rows: Sync {
    /// One output row, as many values as there are inputs.
    fn row(&self, row: usize, out: &mut [f32]);
    /// The same as codes, of all matrices whose sum it is one after another. Only asked of formats that say how they
    /// lie.
    fn codes(&self, _: usize, _: &mut CodeRow) {
        unreachable!("a format without a coding has no codes");
    }
    /// What every input is multiplied by before it meets the codes.
    fn factors(&self) -> Option<&[f32]> {
        None
    }
    /// The inputs in the order in which those of a group stand together, where that is not theirs.
    fn order(&self) -> Option<&[u32]> {
        None
    }
}

/// Codes that count from zero: those of less than four bits lie in four, others in eight.
pub(crate) fn counting(bits: usize, run: usize) -> Coding {
    Coding { book: &COUNT, bits: if bits > 4 { 8 } else { 4 }, run }
}

/// The columns under one scale, where blocks of `block` values follow one another over all rows.
pub(crate) fn run_of_flat(block: usize, columns: usize) -> usize {
    let (mut a, mut b) = (block, columns);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// One row of codes, to be filled in.
#[derive(Debug)]
pub struct CodeRow<'a> {
    /// Columns that share a scale.
    pub block: usize,
    /// One per column.
    pub codes: &'a mut [u8],
    /// One per block.
    pub scales: &'a mut [f32],
    /// One per block.
    pub zeros: &'a mut [f32],
    /// Which input is which column, where they have an order.
    pub order: Option<&'a [u32]>,
}

impl CodeRow<'_> {
    /// Fills in the code of every input, and scale and zero of every block's first.
    #[inline(always)]
    pub(crate) fn fill(&mut self, code: impl Fn(usize) -> u8, scale: impl Fn(usize) -> (f32, f32)) {
        match self.order {
            None => self.codes.iter_mut().enumerate().for_each(|(input, out)| *out = code(input)),
            Some(order) => {
                self.codes.iter_mut().zip(order).for_each(|(out, &input)| *out = code(input as usize));
            }
        }
        for (number, out) in self.scales.iter_mut().zip(&mut *self.zeros).enumerate() {
            let column = number * self.block;
            (*out.0, *out.1) = scale(self.order.map_or(column, |order| order[column] as usize));
        }
    }
}

/// The tensors of a checkpoint, as far as headers tell.
pub(crate) struct Tensors<'a>(pub(crate) &'a dyn Fn(&str) -> Option<Stored>);

impl Tensors<'_> {
    pub(crate) fn get(&self, name: &str) -> Option<Stored> {
        (self.0)(name)
    }

    /// A tensor of one of some types and a given shape.
    pub(crate) fn need(&self, name: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<Stored, PlanError> {
        let Some(stored) = self.get(name) else {
            return Err(PlanError::MissingTensor { tensor: name.to_owned(), expected: shape.to_vec() });
        };
        if stored.shape != shape {
            let (expected, found) = (shape.to_vec(), stored.shape);
            return Err(PlanError::Shape { tensor: name.to_owned(), expected, found });
        }
        self.typed(name, &stored, dtypes)?;
        Ok(stored)
    }

    /// Refuses other types.
    pub(crate) fn typed(&self, name: &str, stored: &Stored, dtypes: &[Dtype]) -> Result<(), PlanError> {
        if dtypes.contains(&stored.dtype) {
            return Ok(());
        }
        let expected = dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(" or ");
        Err(PlanError::Dtype { tensor: name.to_owned(), expected, found: stored.dtype.name() })
    }
}

/// `group_size`: `None` is one group of all inputs.
fn group_size(config: Config, default: Option<usize>) -> Result<Option<usize>, ConfigError> {
    match config.get("group_size").map(Value::as_i64) {
        None => Ok(default),
        Some(Some(-1)) => Ok(None),
        Some(_) => config.size("group_size", 1 << 20),
    }
}

/// The inputs sorted by group, where they are not. Groups follow one another, all of one size but for the last.
pub(crate) fn in_groups(
    tensor: usize,
    group_of: &[usize],
    group: Option<usize>,
) -> Result<Option<Vec<u32>>, Refusal> {
    let mut order: Vec<u32> = (0..group_of.len() as u32).collect();
    order.sort_by_key(|&input| group_of[input as usize]);
    let wanted = |place: usize| group.map_or(0, |group| place / group);
    if let Some(place) = (0..order.len()).find(|&place| group_of[order[place] as usize] != wanted(place)) {
        let (group, wanted) = (group.unwrap_or(order.len()), wanted(place));
        let found = group_of.iter().filter(|&&of| of == wanted).count();
        let reason =
            format!("expected {group} inputs in every group but the last, found {found} in group {wanted}");
        return Err(Refusal { tensor, reason });
    }
    Ok((!group_of.is_sorted()).then_some(order))
}

/// Types of scales.
pub(crate) const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Bytes as float32, whatever 16- or 32-bit type they are of. Refuses what is no number.
pub(crate) fn floats(tensor: usize, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, Refusal> {
    let mut values = vec![0.0; bytes.len() / dtype.bytes()];
    dtype.widen(&bytes[..values.len() * dtype.bytes()], &mut values);
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => {
            let reason = format!("expected finite numbers, found {} at element {at}", values[at]);
            Err(Refusal { tensor, reason })
        }
    }
}

/// A code of a stream of little-endian words, the first in the low bits.
#[inline]
pub(crate) fn code(bits: usize, at: usize, word: impl Fn(usize) -> u32) -> u32 {
    let (first, shift) = (at * bits / 32, at * bits % 32);
    let low = word(first) >> shift;
    // Of three bits, some lie in two words.
    let rest = 32 - shift;
    let all = if rest < bits { low | word(first + 1) << rest } else { low };
    all & ((1 << bits) - 1)
}

/// The little-endian 32-bit word at a place.
#[inline]
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    let word = &bytes[at * 4..at * 4 + 4];
    u32::from_le_bytes([word[0], word[1], word[2], word[3]])
}
