//! BitNet as transformers stores it: every weight is -1, 0 or 1, with one scale for a matrix.
//!
//! ```text
//! M.weight        uint8 [outputs / 4, inputs]   two bits each, plus 1; from the low bits: outputs r, r + R, r + 2 R,
//!                                               r + 3 R, of a tensor of R rows
//! M.weight_scale  [1]
//! ```
//!
//! value = code / scale; of the class "autobitlinear" code * scale. The tool also rounds activations to eight bits; we
//! do not.

use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::{Coding, TRITS};

use super::{CodeRow, Decode, FLOATS, Packed, Reader, Refusal, Rows, Tensors, WHOLE_ROW, floats};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

#[derive(Debug, Clone, Copy)]
struct Bitnet {
    /// Whether weights are multiplied by their scale, not divided.
    times: bool,
}

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    let times = match config.text("linear_class")? {
        None | Some("bitlinear") => false,
        Some("autobitlinear") => true,
        Some(_) => return config.wrong("linear_class", "bitlinear or autobitlinear"),
    };
    if times && config.text("quantization_mode")?.unwrap_or("offline") != "offline" {
        return config.wrong("quantization_mode", "offline");
    }
    if config.flag("use_rms_norm", false)? {
        return config.wrong("use_rms_norm", "false");
    }
    Ok(Arc::new(Bitnet { times }))
}

impl Reader for Bitnet {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("weight_scale")).is_none() {
            return Ok(None);
        }
        tensors.need(&name("weight"), &[Dtype::U8], &[shape.rows.div_ceil(4), shape.columns])?;
        let scale = tensors.need(&name("weight_scale"), FLOATS, &[1])?.dtype;
        let names = vec![name("weight"), name("weight_scale")];
        Ok(Some(Packed::new(module, shape, names, Decoder { times: self.times, scale })))
    }
}

#[derive(Debug)]
struct Decoder {
    times: bool,
    /// The type of the scale.
    scale: Dtype,
}

impl Decode for Decoder {
    fn coding(&self, _: Shape) -> Option<Coding> {
        Some(Coding { book: &TRITS, bits: 2, run: WHOLE_ROW })
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let scale = floats(1, self.scale, bytes[1])?[0];
        if scale == 0.0 && !self.times {
            let reason = "expected a number to divide by, found 0".to_owned();
            return Err(Refusal { tensor: 1, reason });
        }
        if let Some(at) = bytes[0].iter().position(|byte| byte & byte >> 1 & 0x55 != 0) {
            let reason = format!("expected codes from 0 to 2, found 3 in element {at}");
            return Err(Refusal { tensor: 0, reason });
        }
        let [minus, plus] = if self.times { [-scale, scale] } else { [-1.0 / scale, 1.0 / scale] };
        let lines = shape.rows.div_ceil(4);
        Ok(Box::new(Ternary { codes: bytes[0], lines, columns: shape.columns, values: [minus, 0.0, plus] }))
    }
}

struct Ternary<'a> {
    codes: &'a [u8],
    /// Rows of the tensor.
    lines: usize,
    columns: usize,
    values: [f32; 3],
}

impl Rows for Ternary<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let (line, shift) = (row % self.lines, row / self.lines * 2);
        for (value, byte) in out.iter_mut().zip(&self.codes[line * self.columns..]) {
            *value = self.values[usize::from(byte >> shift & 3)];
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let (line, shift) = (row % self.lines, row / self.lines * 2);
        let codes = &self.codes[line * self.columns..];
        out.fill(|input| codes[input] >> shift & 3, |_| (self.values[2], 1.0));
    }
}
