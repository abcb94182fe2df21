//! EETQ: eight bits with a scale per output, in the order in which a tensor-core kernel reads them.
//!
//! ```text
//! M.weight         int8 [inputs, outputs] by its shape; in truth, from the plain matrix of the same shape:
//!                    1. of every 16 inputs the order 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15
//!                    2. output after output, each with all its inputs
//!                    3. of every two outputs, 64 inputs of the one and 64 of the other by turns
//!                    4. plus 128, and of every four bytes the second and the third change places
//! M.weight_scales  [outputs]
//! ```
//!
//! value = code * scale.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::{AROUND_128, Coding};

use super::{CodeRow, Decode, FLOATS, Packed, Reader, Refusal, Rows, Tensors, WHOLE_ROW, floats};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

#[derive(Debug)]
struct Eetq;

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    match config.text("weights")?.unwrap_or("int8") {
        "int8" => Ok(Arc::new(Eetq)),
        _ => config.wrong("weights", "int8"),
    }
}

impl Reader for Eetq {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("weight_scales")).is_none() {
            return Ok(None);
        }
        let Shape { rows: outputs, columns: inputs } = shape;
        if !inputs.is_multiple_of(64) || !outputs.is_multiple_of(2) {
            let (tensor, expected) = (name("weight"), vec![inputs.next_multiple_of(64), outputs]);
            return Err(PlanError::Shape { tensor, expected, found: vec![inputs, outputs] });
        }
        tensors.need(&name("weight"), &[Dtype::I8], &[inputs, outputs])?;
        let scales = tensors.need(&name("weight_scales"), FLOATS, &[outputs])?.dtype;
        let names = vec![name("weight"), name("weight_scales")];
        Ok(Some(Packed::new(module, shape, names, Decoder { scales })))
    }
}

#[derive(Debug)]
struct Decoder {
    /// The type of the scales.
    scales: Dtype,
}

impl Decode for Decoder {
    fn coding(&self, _: Shape) -> Option<Coding> {
        Some(Coding { book: &AROUND_128, bits: 8, run: WHOLE_ROW })
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let scales = floats(1, self.scales, bytes[1])?;
        Ok(Box::new(Matrix { codes: bytes[0], inputs: shape.columns, scales }))
    }
}

struct Matrix<'a> {
    codes: &'a [u8],
    inputs: usize,
    scales: Vec<f32>,
}

/// Where each of 16 inputs went.
const PLACES: [usize; 16] = [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15];
/// Where each of four bytes went.
const SWAPPED: [usize; 4] = [0, 2, 1, 3];

impl Matrix<'_> {
    /// A code, counted from 128.
    #[inline(always)]
    fn code(&self, row: usize, input: usize) -> u8 {
        let input = input / 16 * 16 + PLACES[input % 16];
        let at = row / 2 * 2 * self.inputs + input / 64 * 128 + row % 2 * 64 + input % 64;
        self.codes[at / 4 * 4 + SWAPPED[at % 4]]
    }
}

impl Rows for Matrix<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        for (input, value) in out.iter_mut().enumerate() {
            *value = f32::from(self.code(row, input).wrapping_sub(128) as i8) * self.scales[row];
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        out.fill(|input| self.code(row, input), |_| (self.scales[row], 128.0));
    }
}
