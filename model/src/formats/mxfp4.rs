//! MXFP4: blocks of 32 inputs, four bits each by a fixed code book, under one power of two. Experts alone have it.
//!
//! ```text
//! M_blocks  uint8 [experts, outputs, inputs / 32, 16]   two codes a byte, the first in the low half
//! M_scales  uint8 [experts, outputs, inputs / 32]       value = book[code] * 2^(scale - 127)
//! ```
//!
//! Its makers spell it `M.blocks` and `M.scales`, and no configuration then says so.
//!
//! The book: 0, 0.5, 1, 1.5, 2, 3, 4, 6, then the same negative.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::{Coding, E2M1, E2M1_VALUES as BOOK};

use super::encode::MX_BLOCK as BLOCK;
use super::{CodeRow, Decode, Packed, Reader, Refusal, Rows, Tensors};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

/// The scale that is no number.
const NAN: u8 = 255;

pub(super) fn read(_: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    Ok(Arc::new(Mxfp4))
}

#[derive(Debug)]
struct Mxfp4;

/// How the tensors' names end.
const SPELLINGS: [[&str; 2]; 2] = [["_blocks", "_scales"], [".blocks", ".scales"]];

impl Reader for Mxfp4 {
    fn find(&self, _: &Tensors, _: &str, _: Shape) -> Result<Option<Packed>, PlanError> {
        Ok(None)
    }

    fn find_stack(
        &self,
        tensors: &Tensors,
        name: &str,
        experts: usize,
        shape: Shape,
    ) -> Result<Option<Vec<Packed>>, PlanError> {
        let spelled = SPELLINGS.map(|endings| endings.map(|ending| format!("{name}{ending}")));
        let Some(names) = spelled.into_iter().find(|names| tensors.get(&names[0]).is_some()) else {
            return Ok(None);
        };
        let blocks = shape.columns / BLOCK;
        tensors.need(&names[0], &[Dtype::U8], &[experts, shape.rows, blocks, BLOCK / 2])?;
        tensors.need(&names[1], &[Dtype::U8], &[experts, shape.rows, blocks])?;
        if blocks * BLOCK != shape.columns {
            let expected = vec![experts, shape.rows, shape.columns.div_ceil(BLOCK), BLOCK / 2];
            let found = vec![experts, shape.rows, blocks, BLOCK / 2];
            return Err(PlanError::Shape { tensor: names[0].clone(), expected, found });
        }
        let scales = shape.rows * blocks;
        let codes = scales * BLOCK / 2;
        let expert = |expert: usize| {
            let parts = vec![expert * codes..(expert + 1) * codes, expert * scales..(expert + 1) * scales];
            let module = format!("{name}.{expert}");
            Packed { parts, ..Packed::new(&module, shape, names.to_vec(), Decoder) }
        };
        Ok(Some((0..experts).map(expert).collect()))
    }
}

#[derive(Debug)]
struct Decoder;

impl Decode for Decoder {
    fn coding(&self, _: Shape) -> Option<Coding> {
        Some(Coding { book: &E2M1, bits: 4, run: BLOCK })
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        if let Some(at) = bytes[1].iter().position(|&scale| scale == NAN) {
            let reason = format!("expected scales from 0 to 254, found {NAN} at element {at} of an expert");
            return Err(Refusal { tensor: 1, reason });
        }
        Ok(Box::new(Blocks { codes: bytes[0], scales: bytes[1], columns: shape.columns }))
    }
}

struct Blocks<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    columns: usize,
}

impl Rows for Blocks<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let codes = &self.codes[row * self.columns / 2..];
        let scales = &self.scales[row * self.columns / BLOCK..];
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let scale = power_of_two(scales[block]);
            for (pair, byte) in out.chunks_exact_mut(2).zip(&codes[block * BLOCK / 2..]) {
                pair[0] = BOOK[usize::from(byte & 15)] * scale;
                pair[1] = BOOK[usize::from(byte >> 4)] * scale;
            }
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let codes = &self.codes[row * self.columns / 2..];
        let scales = &self.scales[row * self.columns / BLOCK..];
        let code = |input: usize| codes[input / 2] >> (4 * (input % 2)) & 15;
        out.fill(code, |input| (power_of_two(scales[input / BLOCK]), 0.0));
    }
}

/// 2^(scale - 127). The smallest is below the normal numbers.
fn power_of_two(scale: u8) -> f32 {
    if scale == 0 { f32::from_bits(1 << 22) } else { f32::from_bits(u32::from(scale) << 23) }
}
