//! AWQ: four bits with a scale and a zero point for every output and group of inputs.
//!
//! ```text
//! gemm   M.qweight int32 [inputs, outputs / 8]   a word holds outputs 0 2 4 6 1 3 5 7 of eight, low bits first
//!        M.qzeros  int32 [groups, outputs / 8]   the same
//!        M.scales  [groups, outputs]
//! ```
//!
//! value = scale * (code - zero); zeros are stored as they are. Where the search scaled a bend's outputs, these are
//! divided by the values of `act.scales` beside the next matrix.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use serde_json::Value;

use super::{Decode, FLOATS, Packed, Reader, Refusal, Rows, Tensors, floats, word};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

#[derive(Debug, Clone, Copy)]
struct Awq {
    /// `None` is one group of all inputs.
    group: Option<usize>,
}

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    if config.size("bits", 64)?.unwrap_or(4) != 4 {
        return config.wrong("bits", "4");
    }
    if !config.text("version")?.unwrap_or("gemm").eq_ignore_ascii_case("gemm") {
        return config.wrong("version", "gemm");
    }
    let group = match config.get("group_size").and_then(Value::as_i64) {
        Some(-1) => None,
        _ => Some(config.size("group_size", 1 << 20)?.unwrap_or(128)),
    };
    Ok(Arc::new(Awq { group }))
}

impl Reader for Awq {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("qweight")).is_none() {
            return Ok(None);
        }
        let Shape { rows: outputs, columns: inputs } = shape;
        let groups = self.group.map_or(1, |group| inputs.div_ceil(group));
        let words = outputs.div_ceil(8);
        tensors.need(&name("qweight"), &[Dtype::I32], &[inputs, words])?;
        tensors.need(&name("qzeros"), &[Dtype::I32], &[groups, words])?;
        let scales = tensors.need(&name("scales"), FLOATS, &[groups, outputs])?.dtype;
        let names = vec![name("qweight"), name("qzeros"), name("scales")];
        let group = self.group.unwrap_or(inputs);
        let mut packed = Packed::new(module, shape, names, Decoder { group, scales });
        let parent = module.rsplit_once('.').map_or("", |(parent, _)| parent);
        let divisors = format!("{parent}.act.scales");
        if tensors.get(&divisors).is_some_and(|divisors| divisors.shape == [inputs]) {
            packed.divisors = Some(divisors);
        }
        Ok(Some(packed))
    }
}

#[derive(Debug)]
struct Decoder {
    group: usize,
    /// The type of the scales.
    scales: Dtype,
}

/// Where in a word an output's code stands, in steps of four bits.
const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Decode for Decoder {
    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let scales = floats(2, self.scales, bytes[2])?;
        let (outputs, group) = (shape.rows, self.group);
        Ok(Box::new(Matrix { words: bytes[0], zeros: bytes[1], outputs, group, scales }))
    }
}

struct Matrix<'a> {
    words: &'a [u8],
    zeros: &'a [u8],
    outputs: usize,
    group: usize,
    scales: Vec<f32>,
}

impl Rows for Matrix<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let (width, shift) = (self.outputs.div_ceil(8), 4 * PLACES[row % 8]);
        let code = |words: &[u8], line: usize| (word(words, line * width + row / 8) >> shift & 15) as f32;
        for (input, value) in out.iter_mut().enumerate() {
            let group = input / self.group;
            let scale = self.scales[group * self.outputs + row];
            *value = scale * (code(self.words, input) - code(self.zeros, group));
        }
    }
}
