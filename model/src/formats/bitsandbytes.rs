//! bitsandbytes: four bits by a code book with a scale per block (NF4, FP4), or eight bits with a scale per row.
//!
//! Four bits, of a matrix taken as one row of values after another, in blocks that may span rows:
//!
//! ```text
//! M.weight                 two codes a byte, the first in the high half; in bytes or under any other type
//! M.weight.absmax          a scale per block: float32, or a byte where scales are quantized again:
//!   .nested_quant_map        256 values; scale = map[byte] * nested_absmax[block / nested_blocksize] + nested_offset
//!   .nested_absmax
//! M.weight.quant_map       16 values; value = map[code] * scale
//! M.weight.quant_state.*   JSON: blocksize, shape, nested_blocksize, nested_offset
//! ```
//!
//! Where blocks of 256 and more do not divide a row, the CPU kernel of bitsandbytes 0.49.2 takes wrong scales (its
//! portable one does not); here they are the ones that the matrix was quantized with.
//!
//! Eight bits: `M.weight` int8 and `M.SCB`, the largest magnitude of every row; value = code *
//! (SCB / 127), the quotient rounded first.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::{AROUND_128, Book, Coding, FP4, NF4};
use serde_json::Value;

use super::{CodeRow, Decode, Packed, Reader, Refusal, Rows, Tensors, WHOLE_ROW, floats, run_of_flat};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::foreign::clipped;
use crate::plan::{PlanError, Stored};

/// A block is no longer than this; the tool allows 4096.
const BLOCK_MAX: u64 = 1 << 16;

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    let four = config.flag("load_in_4bit", false)? || config.flag("_load_in_4bit", false)?;
    let eight = config.flag("load_in_8bit", false)? || config.flag("_load_in_8bit", false)?;
    if four && eight {
        return config.wrong("load_in_8bit", "false beside load_in_4bit");
    }
    Ok(Arc::new(Bitsandbytes { four: !eight, eight: !four }))
}

/// What matrices may be; beyond that, a module's own tensors tell.
#[derive(Debug)]
struct Bitsandbytes {
    four: bool,
    eight: bool,
}

impl Reader for Bitsandbytes {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if self.eight && tensors.get(&name("SCB")).is_some() {
            tensors.need(&name("weight"), &[Dtype::I8], &[shape.rows, shape.columns])?;
            tensors.need(&name("SCB"), &[Dtype::F32], &[shape.rows])?;
            let packed = Packed::new(module, shape, vec![name("weight"), name("SCB")], Int8);
            // 0 is row by row; others are orders that a GPU's kernels once wanted.
            return Ok(Some(packed.noted(tensors, &[("weight_format", Some(&[0]))])));
        }
        match tensors.get(&name("weight.absmax")) {
            Some(absmax) if self.four => find_codes(tensors, module, shape, &absmax).map(Some),
            _ => Ok(None),
        }
    }
}

/// A matrix of four bits.
fn find_codes(tensors: &Tensors, module: &str, shape: Shape, absmax: &Stored) -> Result<Packed, PlanError> {
    let name = |suffix: &str| format!("{module}.{suffix}");
    let state = ["nf4", "fp4"].map(|kind| name(&format!("weight.quant_state.bitsandbytes__{kind}")));
    let found = state.iter().find_map(|state| Some((state, tensors.get(state)?)));
    let Some((state, json)) = found else {
        return Err(PlanError::MissingTensor { tensor: state[0].clone(), expected: Vec::new() });
    };
    let json_is_nf4 = state.ends_with("nf4");
    tensors.need(state, &[Dtype::U8], &[json.shape.first().map_or(1, |&len| len.min(STATE_MAX))])?;
    let weight = name("weight");
    let stored = tensors.get(&weight);
    let bytes = stored.as_ref().map(|stored| stored.shape.iter().product::<usize>() * stored.dtype.bytes());
    let wanted = (shape.rows * shape.columns).div_ceil(2);
    // Under a wider type, the last element may have bytes to spare.
    let is_right = |stored: &Stored| bytes == Some(wanted.next_multiple_of(stored.dtype.bytes()));
    if !stored.as_ref().is_some_and(is_right) {
        let found = stored.map_or(Vec::new(), |stored| stored.shape);
        return Err(PlanError::Shape { tensor: weight, expected: vec![wanted, 1], found });
    }
    if let Some(stored) = stored {
        tensors.typed(&weight, &stored, STORAGE)?;
    }
    tensors.need(&name("weight.quant_map"), &[Dtype::F32], &[16])?;
    tensors.typed(&name("weight.absmax"), absmax, &[Dtype::F32, Dtype::U8])?;
    let mut names = vec![weight, name("weight.absmax"), name("weight.quant_map"), state.clone()];
    let nested = absmax.dtype == Dtype::U8;
    if nested {
        let (map, scales) = (name("weight.nested_quant_map"), name("weight.nested_absmax"));
        tensors.need(&map, &[Dtype::F32], &[256])?;
        let blocks = tensors.get(&scales).map_or(0, |scales| scales.shape.iter().product());
        tensors.need(&scales, &[Dtype::F32], &[blocks])?;
        names.extend([map, scales]);
    }
    let book = if json_is_nf4 { &NF4 } else { &FP4 };
    // The length of blocks, a power of two, before the JSON can be read.
    let blocks = absmax.shape.iter().product::<usize>().max(1);
    let block = (shape.rows * shape.columns).div_ceil(blocks).next_power_of_two();
    Ok(Packed::new(module, shape, names, Codes { nested, book, block }))
}

/// What codes may be disguised as.
const STORAGE: &[Dtype] = &[Dtype::U8, Dtype::I8, Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64];
/// The JSON beside a matrix has a few hundred bytes.
const STATE_MAX: usize = 1 << 14;

/// Four bits.
#[derive(Debug)]
struct Codes {
    /// Whether scales are quantized again.
    nested: bool,
    book: &'static Book,
    /// Values under one scale.
    block: usize,
}

/// Places among the tensors.
const WEIGHT: usize = 0;
const ABSMAX: usize = 1;
const QUANT_MAP: usize = 2;
const STATE: usize = 3;
const NESTED_MAP: usize = 4;
const NESTED_ABSMAX: usize = 5;

impl Decode for Codes {
    fn coding(&self, shape: Shape) -> Option<Coding> {
        Some(Coding { book: self.book, bits: 4, run: run_of_flat(self.block, shape.columns) })
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let state = State::read(bytes[STATE], shape)?;
        let blocks = (shape.rows * shape.columns).div_ceil(state.block);
        if blocks > 1 && state.block != self.block {
            let (wanted, found) = (self.block, state.block);
            let reason = format!("expected blocksize {wanted}, as many scales there are, found {found}");
            return Err(Refusal { tensor: STATE, reason });
        }
        let wrong = |tensor, found: usize, wanted: usize| {
            let reason = format!("expected {wanted} values, one per block, found {found}");
            Err(Refusal { tensor, reason })
        };
        let scales = match self.nested {
            false => floats(ABSMAX, Dtype::F32, bytes[ABSMAX])?,
            true => {
                let map = floats(NESTED_MAP, Dtype::F32, bytes[NESTED_MAP])?;
                let outer = floats(NESTED_ABSMAX, Dtype::F32, bytes[NESTED_ABSMAX])?;
                let wanted = bytes[ABSMAX].len().div_ceil(state.nested_block);
                if outer.len() != wanted || map.len() != 256 {
                    return wrong(NESTED_ABSMAX, outer.len(), wanted);
                }
                let scale = |(i, code): (usize, &u8)| {
                    map[usize::from(*code)] * outer[i / state.nested_block] + state.offset
                };
                bytes[ABSMAX].iter().enumerate().map(scale).collect()
            }
        };
        if scales.len() != blocks {
            return wrong(ABSMAX, scales.len(), blocks);
        }
        let map = floats(QUANT_MAP, Dtype::F32, bytes[QUANT_MAP])?;
        let map: [f32; 16] = match map.try_into() {
            Ok(map) => map,
            Err(map) => return wrong(QUANT_MAP, map.len(), 16),
        };
        let far = |code: u8| (map[usize::from(code)] - self.book.value(code)).abs() > 1e-6;
        if let Some(code) = (0..16).find(|&code| far(code)) {
            let (wanted, found) = (self.book.value(code), map[usize::from(code)]);
            let reason = format!("expected the tool's code book, {wanted} for code {code}, found {found}");
            return Err(Refusal { tensor: QUANT_MAP, reason });
        }
        Ok(Box::new(Blocks { codes: bytes[WEIGHT], columns: shape.columns, block: state.block, scales, map }))
    }
}

struct Blocks<'a> {
    codes: &'a [u8],
    columns: usize,
    block: usize,
    scales: Vec<f32>,
    map: [f32; 16],
}

impl Rows for Blocks<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        for (i, value) in (row * self.columns..).zip(out) {
            let byte = self.codes[i / 2];
            let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            *value = self.map[usize::from(code)] * self.scales[i / self.block];
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let first = row * self.columns;
        let code = |input: usize| {
            let i = first + input;
            self.codes[i / 2] >> (4 * ((i + 1) % 2)) & 15
        };
        out.fill(code, |input| (self.scales[(first + input) / self.block], 0.0));
    }
}

/// What the JSON beside a matrix says.
struct State {
    block: usize,
    nested_block: usize,
    offset: f32,
}

impl State {
    fn read(json: &[u8], shape: Shape) -> Result<State, Refusal> {
        let refusal = |found: String| Refusal {
            tensor: STATE,
            reason: format!(
                "expected JSON with blocksize, nested_blocksize, nested_offset and the matrix's shape, found {found}"
            ),
        };
        let value: Value = serde_json::from_slice(json).map_err(|error| refusal(clipped(error)))?;
        if !value.is_object() {
            return Err(refusal(clipped(value)));
        }
        let size = |key: &str, default: u64| {
            let found = value.get(key).filter(|value| !value.is_null());
            match found.map_or(Some(default), Value::as_u64) {
                Some(size @ 1..=BLOCK_MAX) => Ok(size as usize),
                _ => Err(refusal(clipped(format!("{key}: {}", value[key])))),
            }
        };
        let of_matrix = serde_json::json!([shape.rows, shape.columns]);
        if let Some(found) = value.get("shape").filter(|found| **found != of_matrix) {
            return Err(refusal(clipped(format!("shape: {found}"))));
        }
        let offset = value.get("nested_offset").map_or(Some(0.0), Value::as_f64).map(|offset| offset as f32);
        let Some(offset) = offset.filter(|offset| offset.is_finite()) else {
            return Err(refusal(clipped(format!("nested_offset: {}", value["nested_offset"]))));
        };
        Ok(State { block: size("blocksize", 64)?, nested_block: size("nested_blocksize", 256)?, offset })
    }
}

/// Eight bits.
#[derive(Debug)]
struct Int8;

impl Decode for Int8 {
    fn coding(&self, _: Shape) -> Option<Coding> {
        Some(Coding { book: &AROUND_128, bits: 8, run: WHOLE_ROW })
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let mut scales = floats(1, Dtype::F32, bytes[1])?;
        scales.iter_mut().for_each(|scale| *scale /= 127.0);
        Ok(Box::new(ByRow { codes: bytes[0], columns: shape.columns, scales }))
    }
}

struct ByRow<'a> {
    codes: &'a [u8],
    columns: usize,
    scales: Vec<f32>,
}

impl Rows for ByRow<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let scale = self.scales[row];
        for (value, &code) in out.iter_mut().zip(&self.codes[row * self.columns..]) {
            *value = f32::from(code as i8) * scale;
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let codes = &self.codes[row * self.columns..];
        out.fill(|input| codes[input].wrapping_add(128), |_| (self.scales[row], 128.0));
    }
}
