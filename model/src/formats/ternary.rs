//! Ternary weights as the house stores them: every weight is -1, 0 or 1 times a scale, or the sum of two such.
//!
//! ```text
//! M.weight_trits    uint8 [outputs, planes, inputs / 64 * 13]   one plane or two, of any width that 64 divides
//! M.weight_scales   float16 [outputs, planes, groups]           a group is `group_size` inputs, the last may have less
//! M.weight_columns  float32 [inputs]                            a factor for every input; need not be there
//!
//! 13 bytes    64 trits of a row: byte i has inputs 5i to 5i + 4, byte 12 has inputs 60 to 63 and a last trit of 0
//! byte        ceil(v * 256 / 243), where v has five digits to the base of 3, trits plus 1, the first the highest:
//!             byte * 3 / 256 is the first digit, and what remains of byte * 3 holds the others in the same way
//! ```
//!
//! value = column's factor * sum over planes of trit * scale. Experts that stand together have the same tensors with
//! one more dimension before all others.
//!
//! A matrix that trits are too coarse for, such as the head, has eight bits or four instead:
//!
//! ```text
//! M.weight_codes    uint8 [outputs, inputs]       eight bits: the value is (code - 128) * scale
//!                   uint8 [outputs, inputs / 2]   four bits, the first of two in the low half: (code - zero) * scale
//! M.weight_scales   float16 [outputs, groups]     a group is the row, of four bits 64 inputs
//! M.weight_zeros    uint8 [outputs, groups]       of four bits alone, 0 to 15
//! ```
//!
//! `quantization_config`: `quant_method` "bantam-ternary", `version` 1, `group_size` (a multiple of 64, or -1 for whole
//! rows), `modules_to_not_convert`.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::{AROUND_128, Coding, TRITS as BOOK};
use serde_json::{Value, json};

use super::{
    CodeRow, Decode, Packed, Reader, Refusal, Rows, Tensors, WHOLE_ROW, counting, floats, group_size,
    run_of_flat,
};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

/// The name of the format.
pub const METHOD: &str = "bantam-ternary";
/// Trits of a row that stand together.
pub const BLOCK: usize = 64;
/// Bytes that they take.
pub const BLOCK_BYTES: usize = 13;
/// What is appended to a module's name: trits.
pub const TRITS: &str = ".weight_trits";
/// Scales.
pub const SCALES: &str = ".weight_scales";
/// Factors of columns.
pub const COLUMNS: &str = ".weight_columns";
/// Codes of eight bits or four.
pub const CODES: &str = ".weight_codes";
/// Zeros of those of four.
pub const ZEROS: &str = ".weight_zeros";
/// Inputs under one scale of four bits.
pub const CODES_GROUP: usize = 64;

const VERSION: u64 = 1;
/// Trits of a byte.
const OF_BYTE: usize = 5;

/// The `quantization_config` of a checkpoint. Without a group size a group is a row.
pub fn settings(group_size: Option<usize>, not_converted: &[String]) -> Value {
    let group = group_size.map_or(json!(-1), |group| json!(group));
    json!({
        "quant_method": METHOD,
        "version": VERSION,
        "group_size": group,
        "modules_to_not_convert": not_converted,
    })
}

/// Appends trits as bytes.
///
/// # Panics
/// Where they are not whole blocks.
pub fn pack(trits: &[i8], out: &mut Vec<u8>) {
    assert!(trits.len().is_multiple_of(BLOCK), "{} trits are not whole blocks of {BLOCK}", trits.len());
    let digit = |value: i8| (value + 1).clamp(0, 2).cast_unsigned();
    for block in trits.chunks_exact(BLOCK) {
        for trits in block.chunks(OF_BYTE) {
            let digits = trits.iter().copied().chain([0; OF_BYTE]).take(OF_BYTE).map(digit);
            out.push(byte(digits.fold(0, |value, digit| value * 3 + u16::from(digit))));
        }
    }
}

/// The byte of a value below 243.
const fn byte(value: u16) -> u8 {
    ((value * 256).div_ceil(243)) as u8
}

/// Digits of all bytes; of those that no value has, [`NONE`].
static DIGITS: [[u8; OF_BYTE]; 256] = {
    let (mut table, mut value) = ([[NONE; OF_BYTE]; 256], 0);
    while value < 243 {
        let (mut at, mut rest) = (0, byte(value) as u16);
        while at < OF_BYTE {
            table[byte(value) as usize][at] = ((rest * 3) >> 8) as u8;
            rest = (rest * 3) & 0xff;
            at += 1;
        }
        value += 1;
    }
    table
};
const NONE: u8 = 3;

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    if config.get("version").and_then(Value::as_u64) != Some(VERSION) {
        return config.wrong("version", format!("{VERSION}: a newer build may know others"));
    }
    let group = group_size(config, Some(BLOCK))?;
    if group.is_some_and(|group| !group.is_multiple_of(BLOCK)) {
        return config.wrong("group_size", format!("a multiple of {BLOCK}, or -1"));
    }
    Ok(Arc::new(Ternary { group }))
}

#[derive(Debug)]
struct Ternary {
    /// `None` is a whole row.
    group: Option<usize>,
}

impl Ternary {
    /// Names and decoder of a module's matrix, or of a stack's; where it is there, its tensors have the right shapes.
    fn tensors(
        &self,
        tensors: &Tensors,
        module: &str,
        experts: &[usize],
        shape: Shape,
    ) -> Result<Option<(Vec<String>, Decoder)>, PlanError> {
        let name = |suffix: &str| format!("{module}{suffix}");
        let dimensions = experts.len() + 3;
        let Some(stored) = tensors.get(&name(TRITS)).filter(|stored| stored.shape.len() == dimensions) else {
            return Ok(None);
        };
        let of = |dimensions: &[usize]| [experts, dimensions].concat();
        let Shape { rows, columns } = shape;
        let bytes = columns.div_ceil(BLOCK) * BLOCK_BYTES;
        let wrong = |expected: &[usize], found: Vec<usize>| {
            Err(PlanError::Shape { tensor: name(TRITS), expected: of(expected), found })
        };
        let planes = stored.shape[experts.len() + 1];
        if !matches!(planes, 1 | 2) {
            return wrong(&[rows, 1, bytes], stored.shape);
        }
        if !columns.is_multiple_of(BLOCK) {
            return wrong(&[rows, planes, columns.next_multiple_of(BLOCK)], of(&[rows, planes, columns]));
        }
        let groups = self.group.map_or(1, |group| columns.div_ceil(group));
        tensors.need(&name(TRITS), &[Dtype::U8], &of(&[rows, planes, bytes]))?;
        tensors.need(&name(SCALES), &[Dtype::F16], &of(&[rows, planes, groups]))?;
        let mut names = vec![name(TRITS), name(SCALES)];
        let columns_name = name(COLUMNS);
        let factored = tensors.get(&columns_name).is_some();
        if factored {
            tensors.need(&columns_name, &[Dtype::F32], &of(&[columns]))?;
            names.push(columns_name);
        }
        Ok(Some((names, Decoder { planes, group: self.group.unwrap_or(columns), groups, factored })))
    }
}

impl Reader for Ternary {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        match self.tensors(tensors, module, &[], shape)? {
            Some((names, decoder)) => Ok(Some(Packed::new(module, shape, names, decoder))),
            None => find_codes(tensors, module, shape),
        }
    }

    fn find_stack(
        &self,
        tensors: &Tensors,
        name: &str,
        experts: usize,
        shape: Shape,
    ) -> Result<Option<Vec<Packed>>, PlanError> {
        let Some((names, decoder)) = self.tensors(tensors, name, &[experts], shape)? else {
            return Ok(None);
        };
        let Shape { rows, columns } = shape;
        let sizes = [
            rows * decoder.planes * columns / BLOCK * BLOCK_BYTES,
            rows * decoder.planes * decoder.groups * 2,
            columns * 4,
        ];
        let expert = |expert: usize| {
            let part = |bytes: &usize| expert * bytes..(expert + 1) * bytes;
            let parts = sizes[..names.len()].iter().map(part).collect();
            Packed { parts, ..Packed::new(&format!("{name}.{expert}"), shape, names.clone(), decoder) }
        };
        Ok(Some((0..experts).map(expert).collect()))
    }
}

/// A matrix of eight bits or four.
fn find_codes(tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
    let name = |suffix: &str| format!("{module}{suffix}");
    let Some(stored) = tensors.get(&name(CODES)) else { return Ok(None) };
    let Shape { rows, columns } = shape;
    let eight = stored.shape == [rows, columns];
    let (bytes, groups) =
        if eight { (columns, 1) } else { (columns.div_ceil(2), columns.div_ceil(CODES_GROUP)) };
    tensors.need(&name(CODES), &[Dtype::U8], &[rows, bytes])?;
    tensors.need(&name(SCALES), &[Dtype::F16], &[rows, groups])?;
    let mut names = vec![name(CODES), name(SCALES)];
    if !eight {
        tensors.need(&name(ZEROS), &[Dtype::U8], &[rows, groups])?;
        names.push(name(ZEROS));
    }
    Ok(Some(Packed::new(module, shape, names, Codes { eight })))
}

#[derive(Debug, Clone, Copy)]
struct Decoder {
    planes: usize,
    /// Inputs under a scale.
    group: usize,
    /// Scales of a row and plane.
    groups: usize,
    factored: bool,
}

impl Decode for Decoder {
    fn coding(&self, shape: Shape) -> Option<Coding> {
        let run = match (self.planes, self.groups) {
            (1, 1) => WHOLE_ROW,
            (1, _) => self.group,
            // The second plane begins where the first one ends, with a scale of its own.
            _ => run_of_flat(self.group, shape.columns),
        };
        Some(Coding { book: &BOOK, bits: 2, run })
    }

    fn factored(&self) -> bool {
        self.factored
    }

    fn times(&self) -> usize {
        self.planes
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let refuse = |at: usize, expected: &str| {
            let reason = format!("expected {expected}, found {} at element {at}", bytes[0][at]);
            Err(Refusal { tensor: 0, reason })
        };
        let digits = |byte: &u8| DIGITS[usize::from(*byte)];
        if let Some(at) = bytes[0].iter().position(|byte| digits(byte)[0] == NONE) {
            return refuse(at, "a byte of five trits");
        }
        let mut lasts = bytes[0].iter().skip(BLOCK_BYTES - 1).step_by(BLOCK_BYTES);
        if let Some(block) = lasts.position(|byte| digits(byte)[OF_BYTE - 1] != 1) {
            return refuse((block + 1) * BLOCK_BYTES - 1, "a byte of four trits and a 0");
        }
        let scales = floats(1, Dtype::F16, bytes[1])?;
        let factors = bytes.get(2).map(|bytes| floats(2, Dtype::F32, bytes)).transpose()?;
        Ok(Box::new(Matrix { of: *self, trits: bytes[0], scales, factors, columns: shape.columns }))
    }
}

struct Matrix<'a> {
    of: Decoder,
    trits: &'a [u8],
    scales: Vec<f32>,
    factors: Option<Vec<f32>>,
    columns: usize,
}

impl Matrix<'_> {
    /// Trits plus 1 of a row and plane, and their scales.
    fn plane(&self, row: usize, plane: usize) -> (impl Iterator<Item = u8> + '_, &[f32]) {
        let at = row * self.of.planes + plane;
        let bytes = self.columns / BLOCK * BLOCK_BYTES;
        let blocks = self.trits[at * bytes..][..bytes].chunks_exact(BLOCK_BYTES);
        let digits =
            blocks.flat_map(|block| block.iter().flat_map(|&byte| DIGITS[usize::from(byte)]).take(BLOCK));
        (digits, &self.scales[at * self.of.groups..][..self.of.groups])
    }
}

impl Rows for Matrix<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        out.fill(0.0);
        for plane in 0..self.of.planes {
            let (mut digits, scales) = self.plane(row, plane);
            for (out, scale) in out.chunks_mut(self.of.group).zip(scales) {
                let digits = digits.by_ref().take(out.len());
                out.iter_mut().zip(digits).for_each(|(out, digit)| *out += (f32::from(digit) - 1.0) * scale);
            }
        }
        if let Some(factors) = &self.factors {
            out.iter_mut().zip(factors).for_each(|(out, factor)| *out *= factor);
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        out.zeros.fill(1.0);
        let blocks = self.columns / out.block;
        let planes = out.codes.chunks_exact_mut(self.columns).zip(out.scales.chunks_exact_mut(blocks));
        for (plane, (codes, of_blocks)) in planes.enumerate() {
            let (digits, scales) = self.plane(row, plane);
            codes.iter_mut().zip(digits).for_each(|(code, digit)| *code = digit);
            for (number, scale) in of_blocks.iter_mut().enumerate() {
                *scale = scales[number * out.block / self.of.group];
            }
        }
    }

    fn factors(&self) -> Option<&[f32]> {
        self.factors.as_deref()
    }
}

#[derive(Debug)]
struct Codes {
    /// Eight bits, else four.
    eight: bool,
}

impl Decode for Codes {
    fn coding(&self, _: Shape) -> Option<Coding> {
        Some(match self.eight {
            true => Coding { book: &AROUND_128, bits: 8, run: WHOLE_ROW },
            false => counting(4, CODES_GROUP),
        })
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let zeros = bytes.get(2).copied();
        if let Some(at) = zeros.and_then(|zeros| zeros.iter().position(|zero| *zero > 15)) {
            let found = zeros.map_or(0, |zeros| zeros[at]);
            let reason = format!("expected zeros of four bits, found {found} at element {at}");
            return Err(Refusal { tensor: 2, reason });
        }
        let scales = floats(1, Dtype::F16, bytes[1])?;
        Ok(Box::new(Counted { codes: bytes[0], scales, zeros, columns: shape.columns }))
    }
}

struct Counted<'a> {
    codes: &'a [u8],
    scales: Vec<f32>,
    /// Of four bits.
    zeros: Option<&'a [u8]>,
    columns: usize,
}

impl Counted<'_> {
    fn code(&self, row: usize, input: usize) -> u8 {
        match self.zeros {
            None => self.codes[row * self.columns + input],
            Some(_) => self.codes[row * self.columns.div_ceil(2) + input / 2] >> (4 * (input % 2)) & 15,
        }
    }

    /// Scale and zero of an input.
    fn scale(&self, row: usize, input: usize) -> (f32, f32) {
        match self.zeros {
            None => (self.scales[row], 128.0),
            Some(zeros) => {
                let at = row * self.columns.div_ceil(CODES_GROUP) + input / CODES_GROUP;
                (self.scales[at], f32::from(zeros[at]))
            }
        }
    }
}

impl Rows for Counted<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        for (input, value) in out.iter_mut().enumerate() {
            let (scale, zero) = self.scale(row, input);
            *value = (f32::from(self.code(row, input)) - zero) * scale;
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        out.fill(|input| self.code(row, input), |input| self.scale(row, input));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "ternary_tests.rs"]
mod tests;
