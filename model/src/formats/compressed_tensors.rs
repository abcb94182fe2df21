//! compressed-tensors: whole numbers of four or eight bits with a scale per output and group of inputs.
//!
//! ```text
//! pack-quantized  M.weight_packed      int32 [outputs, inputs * bits / 32]   code + 2^(bits-1), low bits first
//!                 M.weight_scale       [outputs, groups]
//!                 M.weight_zero_point  int32 [outputs * bits / 32, groups]   packed along outputs, + 2^(bits-1)
//!                 M.weight_g_idx       int32 [inputs]                        the group of every input, if mixed
//! int-quantized   M.weight             int8 [outputs, inputs]
//!                 M.weight_scale       [outputs, groups]
//!                 M.weight_zero_point  int8 [outputs, groups]
//! ```
//!
//! value = (code - zero) * scale. Where the strategy is "tensor", there is one scale and one zero point.

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
struct Settings {
    bits: usize,
    /// `None` is one group of all inputs.
    group: Option<usize>,
    /// Whether one scale is for the whole matrix.
    whole: bool,
}

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    let groups = config.object("config_groups")?;
    // One scheme for all matrices is what tools write.
    let group = groups.and_then(|groups| match groups.0.values().next() {
        Some(Value::Object(group)) if groups.0.len() == 1 => Some(Config(group)),
        _ => None,
    });
    let Some(weights) = group.map(|group| group.object("weights")).transpose()?.flatten() else {
        return config.wrong("config_groups", "one group with weights");
    };
    if weights.text("type")?.unwrap_or("int") != "int" {
        return weights.wrong("type", "int");
    }
    let bits = weights.needed_size("num_bits", 8)?;
    if ![4, 8].contains(&bits) {
        return weights.wrong("num_bits", "4 or 8");
    }
    let strategy = weights.text("strategy")?;
    let group = match strategy {
        Some("tensor" | "channel") => None,
        Some("group") => Some(weights.needed_size("group_size", 1 << 20)?),
        None => group_size(weights, None)?,
        Some(_) => return weights.wrong("strategy", "tensor, channel or group"),
    };
    Ok(Arc::new(Settings { bits, group, whole: strategy == Some("tensor") }))
}

impl Reader for Settings {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("weight_scale")).is_none() {
            return Ok(None);
        }
        let Shape { rows: outputs, columns: inputs } = shape;
        let words = |count: usize| (count * self.bits).div_ceil(32);
        let packed = tensors.get(&name("weight_packed")).is_some();
        let weight = match packed {
            true => {
                tensors.need(&name("weight_packed"), &[Dtype::I32], &[outputs, words(inputs)])?;
                name("weight_packed")
            }
            false => {
                tensors.need(&name("weight"), &[Dtype::I8], &[outputs, inputs])?;
                name("weight")
            }
        };
        let groups = self.group.map_or(1, |group| inputs.div_ceil(group));
        let scales: &[usize] = if self.whole { &[1] } else { &[outputs, groups] };
        let scales = tensors.need(&name("weight_scale"), FLOATS, scales)?;
        let mut names = vec![weight, name("weight_scale")];
        let zeros = tensors.get(&name("weight_zero_point")).is_some();
        if zeros && self.whole && !packed {
            tensors.need(&name("weight_zero_point"), &[Dtype::I8], &[1])?;
            names.push(name("weight_zero_point"));
        } else if zeros {
            let (dtype, rows) = if packed { (Dtype::I32, words(outputs)) } else { (Dtype::I8, outputs) };
            tensors.need(&name("weight_zero_point"), &[dtype], &[rows, groups])?;
            names.push(name("weight_zero_point"));
        }
        let mixed = tensors.get(&name("weight_g_idx")).is_some();
        if mixed {
            tensors.need(&name("weight_g_idx"), &[Dtype::I32], &[inputs])?;
            names.push(name("weight_g_idx"));
        }
        let decode = Decoder { settings: *self, groups, packed, zeros, mixed, scales: scales.dtype };
        let notes: &[(&str, Option<&[usize]>)] = &[("weight_shape", Some(&[outputs, inputs]))];
        Ok(Some(Packed::new(module, shape, names, decode).noted(tensors, notes)))
    }
}

#[derive(Debug)]
struct Decoder {
    settings: Settings,
    groups: usize,
    packed: bool,
    /// Whether there are zero points, and groups of single inputs.
    zeros: bool,
    mixed: bool,
    /// The type of the scales.
    scales: Dtype,
}

impl Decode for Decoder {
    fn coding(&self, _: Shape) -> Option<Coding> {
        Some(counting(self.settings.bits, self.settings.group.unwrap_or(WHOLE_ROW)))
    }

    fn ordered(&self) -> bool {
        self.mixed
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let Settings { bits, group, .. } = self.settings;
        let Shape { rows: outputs, columns: inputs } = shape;
        let groups = self.groups;
        let mut scales = floats(1, self.scales, bytes[1])?;
        if scales.len() < outputs * groups {
            // One for the whole matrix.
            scales = vec![scales[0]; outputs * groups];
        }
        let half = 1 << (bits - 1);
        let mut zeros = vec![0.0; outputs * groups];
        for (at, zero) in zeros.iter_mut().enumerate().filter(|_| self.zeros) {
            let (output, group) = (at / groups, at % groups);
            *zero = match self.packed {
                true => {
                    let stored = |line: usize| word(bytes[2], line * groups + group);
                    (code(bits, output, stored) as i32 - half) as f32
                }
                // One for the whole matrix, or one for every scale.
                false => f32::from(bytes[2][at % bytes[2].len()] as i8),
            };
        }
        let group_of: Vec<usize> = match self.mixed {
            true => (0..inputs).map(|input| word(bytes[bytes.len() - 1], input) as usize).collect(),
            false => (0..inputs).map(|input| group.map_or(0, |group| input / group)).collect(),
        };
        if let Some(input) = group_of.iter().position(|&group| group >= groups) {
            let found = group_of[input] as u32 as i32;
            let reason = format!("expected groups from 0 to {}, found {found} at input {input}", groups - 1);
            return Err(Refusal { tensor: bytes.len() - 1, reason });
        }
        let (codes, packed) = (bytes[0], self.packed);
        let order = in_groups(bytes.len() - 1, &group_of, group)?;
        Ok(Box::new(Matrix { bits, packed, codes, inputs, groups, group_of, order, zeros, scales }))
    }
}

struct Matrix<'a> {
    bits: usize,
    packed: bool,
    codes: &'a [u8],
    inputs: usize,
    groups: usize,
    group_of: Vec<usize>,
    order: Option<Vec<u32>>,
    zeros: Vec<f32>,
    scales: Vec<f32>,
}

impl Rows for Matrix<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let words = (self.inputs * self.bits).div_ceil(32);
        let stored = |at: usize| word(self.codes, row * words + at);
        let half = 1 << (self.bits - 1);
        for (input, value) in out.iter_mut().enumerate() {
            let number = match self.packed {
                true => (code(self.bits, input, stored) as i32 - half) as f32,
                false => f32::from(self.codes[row * self.inputs + input] as i8),
            };
            let at = row * self.groups + self.group_of[input];
            *value = (number - self.zeros[at]) * self.scales[at];
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let words = (self.inputs * self.bits).div_ceil(32);
        let stored = |at: usize| word(self.codes, row * words + at);
        let half = 1u8 << (self.bits - 1);
        let code = |input: usize| match self.packed {
            true => code(self.bits, input, stored) as u8,
            false => self.codes[row * self.inputs + input].wrapping_add(half),
        };
        let at = |input: usize| row * self.groups + self.group_of[input];
        out.fill(code, |input| (self.scales[at(input)], self.zeros[at(input)] + f32::from(half)));
    }

    fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }
}
