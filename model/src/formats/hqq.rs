//! HQQ: the values of a matrix in one row, cut into groups with a scale and a zero point each.
//!
//! ```text
//! M.W_q             the row of values cut into R rows of g; a row of the tensor holds several, far apart:
//!   8 bits  uint8 [R, g]             5 and 6 bits too
//!   4 bits  uint8 [R / 2, g]         high half: row r; low half: row r + R / 2
//!   2 bits  uint8 [R / 4, g]         from the high bits: rows r, r + R / 4, r + 2 R / 4, r + 3 R / 4
//!   1 bit   uint8 [R / 8, g]         the same for eight
//!   3 bits  int32 [(R + 9) / 10, g]  the same for ten of three bits, from bit 29; R is rounded up to tens
//! M.scale, M.zero   axis 1: [R, 1], a group is one of the R rows; axis 0: [1, g], it is one of g columns, of R values
//! ```
//!
//! value = (code - zero) * scale.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::Coding;
use serde_json::Value;

use super::{
    CodeRow, Decode, FLOATS, Packed, Reader, Refusal, Rows, Tensors, WHOLE_ROW, counting, floats,
    run_of_flat, word,
};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

#[derive(Debug, Clone, Copy)]
struct Hqq {
    bits: usize,
    /// `None`: of axis 1 every output is a group, of axis 0 every input.
    group: Option<usize>,
    axis: usize,
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
    if bits == 7 {
        return weights.wrong("nbits", "1, 2, 3, 4, 5, 6 or 8");
    }
    let axis = match weights.get("axis").map_or(Some(1), Value::as_u64) {
        Some(axis @ (0 | 1)) => axis as usize,
        _ => return weights.wrong("axis", "0 or 1"),
    };
    let group = weights.size("group_size", 1 << 20)?;
    Ok(Arc::new(Hqq { bits, group, axis }))
}

impl Hqq {
    /// Groups that a row of the tensor holds.
    fn together(self) -> usize {
        match self.bits {
            1 => 8,
            2 => 4,
            3 => 10,
            4 => 2,
            _ => 1,
        }
    }

    /// Rows and columns into which a matrix is cut.
    fn cut(self, shape: Shape) -> [usize; 2] {
        let all = shape.rows * shape.columns;
        match (self.group, self.axis) {
            (None, _) => [shape.rows, shape.columns],
            (Some(group), 0) => [group, all.div_ceil(group)],
            (Some(group), _) => [all.div_ceil(group), group],
        }
    }
}

/// What the tool writes beside every matrix, and what follows from the rest.
const TOLD: [&str; 13] = [
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "offload_meta",
    "optimize",
    "packing",
    "quant_scale",
    "quant_zero",
    "round_zero",
    "stores_quant_config",
    "unpack_view_dtype",
    "view_as_float",
    "dtype",
];

impl Reader for Hqq {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("W_q")).is_none() {
            return Ok(None);
        }
        let [rows, columns] = self.cut(shape);
        let groups = if self.axis == 0 { [1, columns] } else { [rows, 1] };
        let dtype = if self.bits == 3 { Dtype::I32 } else { Dtype::U8 };
        tensors.need(&name("W_q"), &[dtype], &[rows.div_ceil(self.together()), columns])?;
        let scales = tensors.need(&name("scale"), FLOATS, &groups)?.dtype;
        let zeros = tensors.need(&name("zero"), FLOATS, &groups)?.dtype;
        let names = vec![name("W_q"), name("scale"), name("zero")];
        let packed = Packed::new(module, shape, names, Decoder { settings: *self, dtypes: [scales, zeros] });
        let (bits, axis, group) = ([self.bits], [self.axis], self.group.map(|group| [group]));
        let notes = packed.noted(tensors, &TOLD.map(|name| (name, None))).noted(
            tensors,
            &[
                ("nbits", Some(&bits[..])),
                ("axis", Some(&axis[..])),
                ("group_size", group.as_ref().map(|group| &group[..])),
                ("shape", Some(&[shape.rows, shape.columns][..])),
            ],
        );
        Ok(Some(notes))
    }
}

#[derive(Debug)]
struct Decoder {
    settings: Hqq,
    /// Types of scales and zeros.
    dtypes: [Dtype; 2],
}

impl Decode for Decoder {
    fn coding(&self, shape: Shape) -> Option<Coding> {
        let Hqq { bits, group, axis } = self.settings;
        let run = group.map_or(WHOLE_ROW, |group| run_of_flat(group, shape.columns));
        (axis == 1).then_some(counting(bits, run))
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let scales = floats(1, self.dtypes[0], bytes[1])?;
        let zeros = floats(2, self.dtypes[1], bytes[2])?;
        let (settings, codes) = (self.settings, bytes[0]);
        let most = if settings.bits < 8 { 1u8 << settings.bits } else { 0 };
        let wrong = codes.iter().position(|&code| code >= most);
        if let (Some(at), 5 | 6) = (wrong, settings.bits) {
            let reason = format!("expected codes below {most}, found {} at element {at}", codes[at]);
            return Err(Refusal { tensor: 0, reason });
        }
        let cut = settings.cut(shape);
        Ok(Box::new(Groups { settings, codes, cut, columns: shape.columns, scales, zeros }))
    }
}

struct Groups<'a> {
    settings: Hqq,
    codes: &'a [u8],
    /// Rows and columns of the cut matrix, then columns of the whole.
    cut: [usize; 2],
    columns: usize,
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

impl Groups<'_> {
    /// The code of value `i` of the whole matrix.
    #[inline(always)]
    fn code(&self, i: usize) -> u32 {
        let bits = self.settings.bits;
        let [rows, columns] = self.cut;
        let together = self.settings.together();
        let stored_rows = rows.div_ceil(together);
        let (number, within) = (i / columns, i % columns);
        let at = number % stored_rows * columns + within;
        let shift = bits * (together - 1 - number / stored_rows);
        let stored = if bits == 3 { word(self.codes, at) } else { u32::from(self.codes[at]) };
        stored >> shift & ((1 << bits) - 1)
    }
}

impl Rows for Groups<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let (axis, columns) = (self.settings.axis, self.cut[1]);
        for (i, value) in (row * self.columns..).zip(out) {
            let group = if axis == 0 { i % columns } else { i / columns };
            *value = (self.code(i) as f32 - self.zeros[group]) * self.scales[group];
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let group = |input: usize| (row * self.columns + input) / self.cut[1];
        let code = |input: usize| self.code(row * self.columns + input) as u8;
        out.fill(code, |input| (self.scales[group(input)], self.zeros[group(input)]));
    }
}
