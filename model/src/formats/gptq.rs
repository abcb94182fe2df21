//! GPTQ: 2, 3, 4 or 8 bits with a scale and a zero point for every output and group of inputs.
//!
//! ```text
//! M.qweight  int32 [inputs * bits / 32, outputs]   a word holds inputs of one output, the first in the low bits
//! M.qzeros   int32 [groups, outputs * bits / 32]   the same, outputs of one group
//! M.scales   [groups, outputs]
//! M.g_idx    int32 [inputs]                        the group of every input; i / group_size where it is absent
//! ```
//!
//! value = scale * (code - zero). Three bits are a stream over three words: ten codes, one cut 2+1, ten, one cut 1+2,
//! ten. In the first version of the format (`gptq`, not `gptq_v2`) zeros are stored one too small, subtracted from
//! whole words: the borrow of a zero goes to its neighbour, so the one is added to whole words again. For three bits
//! GPTQModel does it with the constants of the first and the last word exchanged, and AutoGPTQ code by code; the
//! configuration says who wrote the file.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::Coding;
use serde_json::Value;

use super::{
    CodeRow, Decode, FLOATS, Packed, Reader, Refusal, Rows, Tensors, WHOLE_ROW, code, counting, floats,
    group_size, in_groups, word,
};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

#[derive(Debug, Clone, Copy)]
struct Gptq {
    bits: usize,
    /// `None` is one group of all inputs.
    group: Option<usize>,
    /// What is added to the words of zeros, by their place in a unit of bits.
    zeros_plus: [u32; 3],
    /// What is added to every zero.
    zero_plus: f32,
}

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    let bits = config.needed_size("bits", 8)?;
    if ![2, 3, 4, 8].contains(&bits) {
        return config.wrong("bits", "2, 3, 4 or 8");
    }
    let group = group_size(config, Some(128))?;
    if config.flag("is_marlin_format", false)? {
        return config.wrong("is_marlin_format", "false");
    }
    let form = config.text("checkpoint_format")?.unwrap_or("gptq");
    let quantizer = config.get("meta").and_then(|meta| meta.get("quantizer")).map(Value::to_string);
    let by_gptqmodel = quantizer.is_some_and(|quantizer| quantizer.contains("gptqmodel"));
    let zeros_plus = match (form, bits) {
        ("gptq_v2", _) => [0; 3],
        ("gptq", 2) => [0x5555_5555; 3],
        ("gptq", 3) if by_gptqmodel => [0x2492_4924, 0x9249_2492, 0x4924_9249],
        ("gptq", 3) => [0; 3],
        ("gptq", 4) => [0x1111_1111; 3],
        ("gptq", _) => [0x0101_0101; 3],
        _ => return config.wrong("checkpoint_format", "gptq or gptq_v2"),
    };
    let zero_plus = if form == "gptq" && zeros_plus == [0; 3] { 1.0 } else { 0.0 };
    Ok(Arc::new(Gptq { bits, group, zeros_plus, zero_plus }))
}

impl Reader for Gptq {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("qweight")).is_none() {
            return Ok(None);
        }
        let Shape { rows: outputs, columns: inputs } = shape;
        let groups = self.group.map_or(1, |group| inputs.div_ceil(group));
        let words = |count: usize| (count * self.bits).div_ceil(32);
        tensors.need(&name("qweight"), &[Dtype::I32], &[words(inputs), outputs])?;
        tensors.need(&name("qzeros"), &[Dtype::I32], &[groups, words(outputs)])?;
        let scales = tensors.need(&name("scales"), FLOATS, &[groups, outputs])?.dtype;
        let mut names = vec![name("qweight"), name("qzeros"), name("scales")];
        let indexed = tensors.get(&name("g_idx")).is_some();
        if indexed {
            tensors.need(&name("g_idx"), &[Dtype::I32], &[inputs])?;
            names.push(name("g_idx"));
        }
        Ok(Some(Packed::new(module, shape, names, Decoder { settings: *self, scales, indexed })))
    }
}

#[derive(Debug)]
struct Decoder {
    settings: Gptq,
    /// The type of the scales.
    scales: Dtype,
    /// Whether every input says which group is its.
    indexed: bool,
}

/// Places among the tensors.
const QWEIGHT: usize = 0;
const QZEROS: usize = 1;
const SCALES: usize = 2;
const G_IDX: usize = 3;

impl Decode for Decoder {
    fn coding(&self, _: Shape) -> Option<Coding> {
        Some(counting(self.settings.bits, self.settings.group.unwrap_or(WHOLE_ROW)))
    }

    fn ordered(&self) -> bool {
        self.indexed
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let Gptq { bits, group, zeros_plus, zero_plus } = self.settings;
        let Shape { rows: outputs, columns: inputs } = shape;
        let scales = floats(SCALES, self.scales, bytes[SCALES])?;
        let groups = scales.len() / outputs;
        let group_of = match bytes.get(G_IDX) {
            None => (0..inputs).map(|input| group.map_or(0, |group| input / group)).collect(),
            Some(indices) => {
                let group_of = (0..inputs).map(|input| word(indices, input) as usize);
                let group_of: Vec<usize> = group_of.collect();
                if let Some(input) = group_of.iter().position(|&group| group >= groups) {
                    let found = group_of[input] as u32 as i32;
                    let reason =
                        format!("expected groups from 0 to {}, found {found} at input {input}", groups - 1);
                    return Err(Refusal { tensor: G_IDX, reason });
                }
                group_of
            }
        };
        let words = (outputs * bits).div_ceil(32);
        let mut zeros = Vec::with_capacity(groups * outputs);
        for group in 0..groups {
            let stored = |at: usize| word(bytes[QZEROS], group * words + at).wrapping_add(zeros_plus[at % 3]);
            zeros.extend((0..outputs).map(|output| code(bits, output, stored) as f32 + zero_plus));
        }
        let order = in_groups(G_IDX.min(bytes.len() - 1), &group_of, group)?;
        Ok(Box::new(Matrix { bits, words: bytes[QWEIGHT], outputs, group_of, order, zeros, scales }))
    }
}

struct Matrix<'a> {
    bits: usize,
    words: &'a [u8],
    outputs: usize,
    group_of: Vec<usize>,
    order: Option<Vec<u32>>,
    /// By group and output, as the scales.
    zeros: Vec<f32>,
    scales: Vec<f32>,
}

impl Rows for Matrix<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let stored = |at: usize| word(self.words, at * self.outputs + row);
        for (input, value) in out.iter_mut().enumerate() {
            let at = self.group_of[input] * self.outputs + row;
            *value = self.scales[at] * (code(self.bits, input, stored) as f32 - self.zeros[at]);
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let stored = |at: usize| word(self.words, at * self.outputs + row);
        let at = |input: usize| self.group_of[input] * self.outputs + row;
        let code = |input: usize| code(self.bits, input, stored) as u8;
        out.fill(code, |input| (self.scales[at(input)], self.zeros[at(input)]));
    }

    fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }
}
