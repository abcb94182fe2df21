//! The parts that a checkpoint is put together from: a file for every matrix that is done.
//!
//! A part is a safetensors file with the matrix's tensors. Its metadata tell what was lost, and a checksum: a part that
//! a power failure has damaged is made again. Once its tensors stand in a shard, it keeps only what it tells.

use std::io;
use std::path::{Path, PathBuf};

use bantam_model::checkpoint::writer::{self, Tensor};
use bantam_model::checkpoint::{Checkpoint, Dtype, TensorView};
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

use crate::error::QuantizeError;
use crate::writers::Piece;

/// How far the matrix is from what it was.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loss {
    /// The sum of the squares of all errors.
    pub error: f64,
    /// The sum of the squares of the weights.
    pub square: f64,
    /// What a method says about its stages.
    pub stages: Vec<(String, f64)>,
}

impl Loss {
    /// The relative squared error.
    pub fn relative(&self) -> f64 {
        if self.square > 0.0 { self.error / self.square } else { 0.0 }
    }
}

/// A tensor of a part, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl Outline {
    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// A part that is there.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its file.
    pub path: PathBuf,
    /// Its tensors.
    pub tensors: Vec<Outline>,
    /// What was lost.
    pub loss: Loss,
}

const SUM: &str = "sum";
/// What a part had, once its tensors are gone.
const HAD: &str = "had";
const ERROR: &str = "error";
const SQUARE: &str = "square";
const STAGE: &str = "stage ";
/// Bytes that are hashed or copied at a time.
pub(crate) const STEP: usize = 4 << 20;

/// Writes a part.
pub(crate) fn write(path: &Path, pieces: &[Piece], loss: Loss) -> Result<Part, QuantizeError> {
    let mut tensors: Vec<Tensor<'_>> =
        pieces.iter().map(|p| (p.name.as_str(), p.dtype, p.shape.as_slice(), p.bytes.as_slice())).collect();
    tensors.sort_by_key(|tensor| tensor.0);
    let mut sum = Xxh3::new();
    tensors.iter().for_each(|tensor| sum.update(tensor.3));
    write_telling(path, &tensors, &loss, (SUM, format!("{:016x}", sum.digest())))?;
    let outline =
        |&(name, dtype, shape, _): &Tensor| Outline { name: name.to_owned(), dtype, shape: shape.to_vec() };
    Ok(Part { path: path.to_owned(), tensors: tensors.iter().map(outline).collect(), loss })
}

fn write_telling(
    path: &Path,
    tensors: &[Tensor<'_>],
    loss: &Loss,
    more: (&str, String),
) -> Result<(), QuantizeError> {
    let mut told = vec![
        (more.0.to_owned(), more.1),
        (ERROR.to_owned(), format!("{:e}", loss.error)),
        (SQUARE.to_owned(), format!("{:e}", loss.square)),
    ];
    told.extend(loss.stages.iter().map(|(stage, loss)| (format!("{STAGE}{stage}"), format!("{loss:e}"))));
    let told: Vec<(&str, &str)> = told.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    Ok(writer::write_safetensors(path, tensors, &told)?)
}

/// Gives the room of a part's tensors back: they stand in a shard.
pub(crate) fn empty(part: &Part) -> Result<(), QuantizeError> {
    let outline = |tensor: &Outline| json!([tensor.name, tensor.dtype.name(), tensor.shape]);
    let had: Vec<Value> = part.tensors.iter().map(outline).collect();
    write_telling(&part.path, &[], &part.loss, (HAD, Value::from(had).to_string()))
}

/// What [`empty`] wrote down.
fn had(told: &str) -> Option<Vec<Outline>> {
    let outline = |value: &Value| {
        let shape = value[2].as_array()?.iter().map(|size| Some(size.as_u64()? as usize));
        Some(Outline {
            name: value[0].as_str()?.to_owned(),
            dtype: Dtype::from_name(value[1].as_str()?)?,
            shape: shape.collect::<Option<_>>()?,
        })
    };
    serde_json::from_str::<Value>(told).ok()?.as_array()?.iter().map(outline).collect()
}

/// The part at a path, if it is there and sound.
pub(crate) fn read(path: &Path) -> Option<Part> {
    if !path.is_file() {
        return None;
    }
    let part = Checkpoint::open(path).ok()?;
    let told = |key: &str| part.metadata().find(|(found, _)| *found == key).map(|(_, value)| value);
    let mut sum = Xxh3::new();
    for tensor in part.tensors() {
        copy(&tensor, &mut |bytes| {
            sum.update(bytes);
            Ok(())
        })
        .ok()?;
    }
    let had = told(HAD).map(had);
    if had.is_none() && told(SUM)? != format!("{:016x}", sum.digest()) {
        return None;
    }
    let stage = |(key, value): (&str, &str)| Some((key.strip_prefix(STAGE)?.to_owned(), value.parse().ok()?));
    let stages = part.metadata().filter_map(stage).collect();
    let loss = Loss { error: told(ERROR)?.parse().ok()?, square: told(SQUARE)?.parse().ok()?, stages };
    let outline = |tensor: TensorView| Outline {
        name: tensor.name.to_owned(),
        dtype: tensor.dtype,
        shape: tensor.shape.to_vec(),
    };
    let tensors = had.unwrap_or_else(|| Some(part.tensors().map(outline).collect()))?;
    Some(Part { path: path.to_owned(), tensors, loss })
}

/// Hands over a tensor's bytes, some at a time.
pub(crate) fn copy(tensor: &TensorView, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    for start in (0..tensor.data.len()).step_by(STEP) {
        to(&tensor.load(start..(start + STEP).min(tensor.data.len()))?)?;
    }
    Ok(())
}
