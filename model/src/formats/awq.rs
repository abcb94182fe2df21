//! AWQ: four bits with a scale and a zero point for every output and group of inputs.
//!
//! ```text
//! gemm   M.qweight int32 [inputs, outputs / 8]   a word holds outputs 0 2 4 6 1 3 5 7 of eight, low bits first
//!        M.qzeros  int32 [groups, outputs / 8]   the same
//!        M.scales  [groups, outputs]
//! gemv   M.qweight int32 [outputs, inputs / 8]   a word holds eight inputs, low bits first
//!        M.qzeros  int32 [outputs, width]        the same of groups; width is for groups in eights, made even for
//!                                                groups of 64, a multiple of four for groups of 32
//!        M.scales  [outputs, 8 * width]
//! ```
//!
//! value = scale * (code - zero); zeros are stored as they are. Where the search scaled a bend's outputs, these are
//! divided by the values of `act.scales` beside the next matrix.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::{COUNT, Coding};

use super::{
    CodeRow, Decode, FLOATS, Packed, Reader, Refusal, Rows, Tensors, WHOLE_ROW, code, floats, group_size,
    word,
};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

#[derive(Debug, Clone, Copy)]
struct Awq {
    /// Whether words hold inputs of one output (gemv), not outputs of one input.
    by_output: bool,
    /// `None` is one group of all inputs.
    group: Option<usize>,
}

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    if config.size("bits", 64)?.unwrap_or(4) != 4 {
        return config.wrong("bits", "4");
    }
    let by_output = match config.text("version")?.unwrap_or("gemm") {
        "gemm" | "GEMM" => false,
        "gemv" | "GEMV" => true,
        _ => return config.wrong("version", "gemm or gemv"),
    };
    let group = group_size(config, Some(128))?;
    if by_output && group.is_some_and(|group| ![32, 64].contains(&group) && group < 128) {
        return config.wrong("group_size", "32, 64, or 128 and more");
    }
    Ok(Arc::new(Awq { by_output, group }))
}

impl Reader for Awq {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("qweight")).is_none() {
            return Ok(None);
        }
        let Shape { rows: outputs, columns: inputs } = shape;
        let groups = self.group.map_or(1, |group| inputs.div_ceil(group));
        let even = match self.group.unwrap_or(inputs) {
            32 => 4,
            64 => 2,
            _ => 1,
        };
        let width = groups.div_ceil(8).next_multiple_of(even);
        let [codes, zeros, scales] = match self.by_output {
            false => [[inputs, outputs.div_ceil(8)], [groups, outputs.div_ceil(8)], [groups, outputs]],
            true => [[outputs, inputs.div_ceil(8)], [outputs, width], [outputs, 8 * width]],
        };
        tensors.need(&name("qweight"), &[Dtype::I32], &codes)?;
        tensors.need(&name("qzeros"), &[Dtype::I32], &zeros)?;
        let scales = tensors.need(&name("scales"), FLOATS, &scales)?.dtype;
        let names = vec![name("qweight"), name("qzeros"), name("scales")];
        let group = self.group.unwrap_or(inputs);
        let by_output = self.by_output.then_some(width);
        let mut packed = Packed::new(module, shape, names, Decoder { group, by_output, scales });
        let parent = module.rsplit_once('.').map_or("", |(parent, _)| parent);
        let divisors = format!("{parent}.act.scales");
        if let Some(found) = tensors.get(&divisors) {
            // The matrix before the bend has as many outputs; where both are square, nothing tells them apart.
            if found.shape == [outputs] && inputs == outputs {
                return Err(PlanError::Shape { tensor: divisors, expected: Vec::new(), found: found.shape });
            }
            if found.shape != [outputs] {
                tensors.need(&divisors, FLOATS, &[inputs])?;
                packed.divisors = Some(divisors);
            }
        }
        Ok(Some(packed))
    }
}

#[derive(Debug)]
struct Decoder {
    group: usize,
    /// Words of zeros for an output, where words hold inputs.
    by_output: Option<usize>,
    /// The type of the scales.
    scales: Dtype,
}

/// Where in a word an output's code stands, in steps of four bits.
const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Decode for Decoder {
    fn coding(&self, shape: Shape) -> Option<Coding> {
        let run = if self.group == shape.columns { WHOLE_ROW } else { self.group };
        Some(Coding { book: &COUNT, bits: 4, run })
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let scales = floats(2, self.scales, bytes[2])?;
        let (outputs, group) = (shape.rows, self.group);
        if let Some(width) = self.by_output {
            return Ok(Box::new(ByOutput { words: bytes[0], zeros: bytes[1], width, group, scales }));
        }
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

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let (width, shift) = (self.outputs.div_ceil(8), 4 * PLACES[row % 8]);
        let code = |words: &[u8], line: usize| (word(words, line * width + row / 8) >> shift & 15) as u8;
        let scale = |input: usize| {
            let group = input / self.group;
            (self.scales[group * self.outputs + row], f32::from(code(self.zeros, group)))
        };
        out.fill(|input| code(self.words, input), scale);
    }
}

struct ByOutput<'a> {
    words: &'a [u8],
    zeros: &'a [u8],
    /// Words of zeros for an output.
    width: usize,
    group: usize,
    scales: Vec<f32>,
}

impl Rows for ByOutput<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let words = out.len().div_ceil(8);
        let stored = |at: usize| word(self.words, row * words + at);
        let zeros = |at: usize| word(self.zeros, row * self.width + at);
        for (input, value) in out.iter_mut().enumerate() {
            let group = input / self.group;
            let zero = code(4, group, zeros) as f32;
            *value = self.scales[row * self.width * 8 + group] * (code(4, input, stored) as f32 - zero);
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let words = out.codes.len().div_ceil(8);
        let stored = |at: usize| word(self.words, row * words + at);
        let zeros = |at: usize| word(self.zeros, row * self.width + at);
        let scale = |input: usize| {
            let group = input / self.group;
            (self.scales[row * self.width * 8 + group], code(4, group, zeros) as f32)
        };
        out.fill(|input| code(4, input, stored) as u8, scale);
    }
}
