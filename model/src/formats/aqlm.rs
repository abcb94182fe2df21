//! AQLM: every few inputs of an output are a sum of entries of code books.
//!
//! ```text
//! M.codes      int8 or int16 [outputs, inputs / n, books]   an entry's number, negative ones plus 2^bits
//! M.codebooks  [books, 2^bits, 1, n]
//! M.scales     [outputs, 1, 1, 1]
//! ```
//!
//! n values = scale * the sum over the books.

use std::sync::Arc;

use bantam_core::layouts::Shape;

use super::{Decode, FLOATS, Packed, Reader, Refusal, Rows, Tensors, floats};
use crate::checkpoint::Dtype;
use crate::config::{Config, ConfigError};
use crate::plan::PlanError;

#[derive(Debug, Clone, Copy)]
struct Aqlm {
    /// Inputs that an entry is for.
    together: usize,
    books: usize,
    bits: usize,
}

pub(super) fn read(config: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    if config.size("out_group_size", 1 << 10)?.unwrap_or(1) != 1 {
        return config.wrong("out_group_size", "1");
    }
    Ok(Arc::new(Aqlm {
        together: config.size("in_group_size", 1 << 10)?.unwrap_or(8),
        books: config.size("num_codebooks", 64)?.unwrap_or(1),
        bits: config.size("nbits_per_codebook", 16)?.unwrap_or(16),
    }))
}

impl Reader for Aqlm {
    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        if tensors.get(&name("codes")).is_none() {
            return Ok(None);
        }
        let &Aqlm { together, books, bits } = self;
        let codes = if bits <= 8 { Dtype::I8 } else { Dtype::I16 };
        tensors.need(&name("codes"), &[codes], &[shape.rows, shape.columns.div_ceil(together), books])?;
        let entries = [books, 1 << bits, 1, together];
        let values = tensors.need(&name("codebooks"), FLOATS, &entries)?.dtype;
        let scales = tensors.need(&name("scales"), FLOATS, &[shape.rows, 1, 1, 1])?.dtype;
        let names = vec![name("codes"), name("codebooks"), name("scales")];
        Ok(Some(Packed::new(module, shape, names, Decoder { settings: *self, dtypes: [values, scales] })))
    }
}

#[derive(Debug)]
struct Decoder {
    settings: Aqlm,
    /// Types of code books and scales.
    dtypes: [Dtype; 2],
}

impl Decode for Decoder {
    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let (settings, codes) = (self.settings, bytes[0]);
        let two_bytes = settings.bits > 8;
        let number = |at: usize| match two_bytes {
            true => u32::from(u16::from_le_bytes([codes[2 * at], codes[2 * at + 1]])),
            false => u32::from(codes[at]),
        };
        // Codes of fewer bits than their type has are signed: what is left of the sign must agree.
        let (bits, all) = (settings.bits, if two_bytes { 16 } else { 8 });
        let count = codes.len() * 8 / all;
        let is_wrong = |at: &usize| {
            let signed = (number(*at) << (32 - all)) as i32 >> (32 - all);
            !(-(1 << (bits - 1))..1 << bits).contains(&signed)
        };
        if let Some(at) = (0..count).find(is_wrong) {
            let reason = format!("expected codes of {bits} bits, found {} at element {at}", number(at));
            return Err(Refusal { tensor: 0, reason });
        }
        let books = floats(1, self.dtypes[0], bytes[1])?;
        let scales = floats(2, self.dtypes[1], bytes[2])?;
        Ok(Box::new(Entries { settings, codes, columns: shape.columns, books, scales }))
    }
}

struct Entries<'a> {
    settings: Aqlm,
    codes: &'a [u8],
    columns: usize,
    books: Vec<f32>,
    scales: Vec<f32>,
}

impl Rows for Entries<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let Aqlm { together, books, bits } = self.settings;
        let groups = self.columns.div_ceil(together);
        for (group, out) in out.chunks_mut(together).enumerate() {
            out.fill(0.0);
            for book in 0..books {
                let at = (row * groups + group) * books + book;
                let code = match bits > 8 {
                    true => usize::from(u16::from_le_bytes([self.codes[2 * at], self.codes[2 * at + 1]])),
                    false => usize::from(self.codes[at]),
                } & ((1 << bits) - 1);
                let entry = &self.books[((book << bits) + code) * together..][..out.len()];
                out.iter_mut().zip(entry).for_each(|(value, x)| *value += x);
            }
            out.iter_mut().for_each(|value| *value *= self.scales[row]);
        }
    }
}
