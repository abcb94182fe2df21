//! HQQ: the values of a matrix in one row, cut into groups with a scale and a zero point each.
//!
//! ```text
//! M.W_q             the groups as rows; a row of the tensor holds several, far apart: of R groups of g values,
//!   8 bits  uint8 [R, g]
//!   4 bits  uint8 [R / 2, g]         high half: group r; low half: group r + R / 2
//!   2 bits  uint8 [R / 4, g]         from the high bits: groups r, r + R / 4, r + 2 R / 4, r + 3 R / 4
//!   3 bits  int32 [(R + 9) / 10, g]  the same for ten of three bits, from bit 29; R is rounded up to tens
//! M.scale, M.zero   [R, 1]
//! ```
//!
//! value = (code - zero) * scale.

use std::sync::Arc;

use bantam_core::layouts::Shape;

use super::{Decode, FLOATS, Packed, Reader, Refusal, Rows, Tensors, floats, word};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

#[derive(Debug, Clone, Copy)]
struct Hqq {
    bits: usize,
    group: usize,
}

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    let quant = config.object("quant_config")?.unwrap_or(config);
    for key in ["scale_quant_params", "zero_quant_params"] {
        if quant.get(key).is_some() {
            return quant.wrong(key, "null: scales that are quantized again are not read");
        }
    }
    let weights = quant.object("weight_quant_params")?.unwrap_or(quant);
    let bits = weights.needed_size("nbits", 8)?;
    if ![2, 3, 4, 8].contains(&bits) {
        return weights.wrong("nbits", "2, 3, 4 or 8");
    }
    if weights.get("axis").is_some_and(|axis| axis.as_u64() != Some(1)) {
        return weights.wrong("axis", "1");
    }
    let group = weights.needed_size("group_size", 1 << 20)?;
    Ok(Arc::new(Hqq { bits, group }))
}

impl Hqq {
    /// Groups that a row of the tensor holds.
    fn together(self) -> usize {
        match self.bits {
            8 => 1,
            4 => 2,
            2 => 4,
            _ => 10,
        }
    }
}

impl Reader for Hqq {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("W_q")).is_none() {
            return Ok(None);
        }
        let groups = (shape.rows * shape.columns).div_ceil(self.group);
        let dtype = if self.bits == 3 { Dtype::I32 } else { Dtype::U8 };
        tensors.need(&name("W_q"), &[dtype], &[groups.div_ceil(self.together()), self.group])?;
        let scales = tensors.need(&name("scale"), FLOATS, &[groups, 1])?.dtype;
        let zeros = tensors.need(&name("zero"), FLOATS, &[groups, 1])?.dtype;
        let names = vec![name("W_q"), name("scale"), name("zero")];
        Ok(Some(Packed::new(module, shape, names, Decoder { settings: *self, dtypes: [scales, zeros] })))
    }
}

#[derive(Debug)]
struct Decoder {
    settings: Hqq,
    /// Types of scales and zeros.
    dtypes: [Dtype; 2],
}

impl Decode for Decoder {
    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let scales = floats(1, self.dtypes[0], bytes[1])?;
        let zeros = floats(2, self.dtypes[1], bytes[2])?;
        let (settings, codes) = (self.settings, bytes[0]);
        Ok(Box::new(Groups { settings, codes, columns: shape.columns, scales, zeros }))
    }
}

struct Groups<'a> {
    settings: Hqq,
    codes: &'a [u8],
    columns: usize,
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

impl Rows for Groups<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let Hqq { bits, group } = self.settings;
        let together = self.settings.together();
        let stored_rows = self.scales.len().div_ceil(together);
        for (i, value) in (row * self.columns..).zip(out) {
            let (number, within) = (i / group, i % group);
            let at = number % stored_rows * group + within;
            let shift = bits * (together - 1 - number / stored_rows);
            let stored = if bits == 3 { word(self.codes, at) } else { u32::from(self.codes[at]) };
            let code = stored >> shift & ((1 << bits) - 1);
            *value = (code as f32 - self.zeros[number]) * self.scales[number];
        }
    }
}
