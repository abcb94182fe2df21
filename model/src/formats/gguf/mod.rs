//! GGUF: matrices as blocks of one of several kinds, one after another, row after row.
//!
//! A row is a whole number of blocks. A tensor's type says of which kind they are; `blocks.rs` draws each. Values of a
//! block lie in groups, each with a scale and for some kinds a value to which a code of zero leads:
//!
//! value = scale * level(code), or scale * level(code) + minimum, rounded after each step. The container that such
//! tensors come in is read in `crate::gguf`.

mod blocks;

use std::fmt;
use std::sync::Arc;

use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::{AROUND_1, AROUND_8, AROUND_32, AROUND_128, COUNT, Coding, E2M1, TRITS};

use super::{CodeRow, Decode, Packed, Reader, Refusal, Rows, Tensors};
use crate::checkpoint::{Dtype, f16_to_f32};
use crate::config::{Config, ConfigError};
use crate::plan::{PlanError, Stored};

/// Values of the largest block, and its groups.
const VALUES_MAX: usize = 256;
const GROUPS_MAX: usize = 16;

/// In units of the scale, minima of this size leave nothing of the codes in float32.
const ZERO_MAX: f32 = 1e8;

/// A block taken apart.
struct Parts {
    codes: [u8; VALUES_MAX],
    /// By group.
    scales: [f32; GROUPS_MAX],
    /// By group, where the kind has them.
    minima: [f32; GROUPS_MAX],
}

/// What a code stands for before it is scaled.
#[derive(Debug)]
enum Level {
    /// Itself less this.
    Less(u8),
    /// An entry of a book.
    Book(&'static [i8; 16]),
}

/// A kind of block.
pub(crate) struct Kind {
    /// The type of tensors that are made of it.
    pub(crate) dtype: Dtype,
    /// Values of a block.
    pub(crate) values: usize,
    /// Its bytes.
    pub(crate) bytes: usize,
    /// Values that share a scale.
    group: usize,
    /// Of a code, or the next of 4 and 8.
    bits: usize,
    level: Level,
    has_minima: bool,
    /// Where in it 16-bit floats stand, all of which must be numbers.
    halves: &'static [usize],
    split: fn(&[u8], &mut Parts),
}

/// Its type says all. The address of a function would be another in every run of the program.
impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.dtype.name())
    }
}

impl Kind {
    /// The kind of a tensor's blocks, unless it is made of plain numbers.
    pub(crate) fn of(dtype: Dtype) -> Option<&'static Kind> {
        blocks::KINDS.iter().find(|kind| kind.dtype == dtype)
    }

    /// Values of rows of so many; an error says what is wrong with their scales.
    pub(crate) fn decode(&'static self, bytes: &[u8], columns: usize, out: &mut [f32]) -> Result<(), String> {
        let shape = Shape { rows: out.len() / columns.max(1), columns };
        let rows = Decoder(self).open(shape, &[bytes]).map_err(|refusal| refusal.reason)?;
        out.chunks_exact_mut(columns).enumerate().for_each(|(row, out)| rows.row(row, out));
        Ok(())
    }

    /// The codes of blocks of four bits, the first of two in the low half of a byte.
    pub(crate) fn codes_in_order(&self, blocks: &[u8], out: &mut Vec<u8>) {
        let mut parts = Parts { codes: [0; _], scales: [0.0; _], minima: [0.0; _] };
        for block in blocks.chunks_exact(self.bytes) {
            (self.split)(block, &mut parts);
            out.extend(parts.codes[..self.values].chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
        }
    }

    /// The exponents that blocks begin with.
    pub(crate) fn exponents(&self, blocks: &[u8], out: &mut Vec<u8>) {
        out.extend(blocks.chunks_exact(self.bytes).map(|block| block[0]));
    }

    fn block(&self, bytes: &[u8], parts: &mut Parts, out: &mut [f32]) {
        (self.split)(bytes, parts);
        for (group, out) in out.chunks_exact_mut(self.group).enumerate() {
            let codes = &parts.codes[group * self.group..];
            let scale = parts.scales[group];
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = scale
                    * match self.level {
                        Level::Less(zero) => f32::from(i16::from(code) - i16::from(zero)),
                        Level::Book(book) => f32::from(book[usize::from(code)]),
                    };
                if self.has_minima {
                    *value += parts.minima[group];
                }
            }
        }
    }

    /// Scale and zero of a group's codes: value = (code - zero) * scale, or level * scale where there is a book.
    fn scale(&self, parts: &Parts, group: usize, codes: &mut [u8]) -> (f32, f32) {
        let (scale, minimum) = (parts.scales[group], parts.minima[group]);
        match self.level {
            Level::Book(_) => (2.0 * scale, 0.0),
            Level::Less(zero) if !self.has_minima => (scale, f32::from(zero)),
            Level::Less(_) if minimum.abs() <= scale.abs() * ZERO_MAX => {
                (scale, if scale == 0.0 { 0.0 } else { -minimum / scale })
            }
            // Beside such a minimum codes are nothing, and all values are the minimum.
            Level::Less(_) => {
                codes.fill(0);
                (minimum.abs(), -minimum.signum())
            }
        }
    }

    /// A scale that is no number: its place in the block and what it is.
    fn flaw(&self, block: &[u8]) -> Option<(usize, f32)> {
        if let Level::Book(_) = self.level {
            return (block[0] == blocks::NAN_EXPONENT).then_some((0, f32::NAN));
        }
        let half = |&at: &usize| (at, blocks::half(block, at));
        self.halves.iter().map(half).find(|(_, scale)| !scale.is_finite())
    }
}

pub(super) fn read(_: Config) -> Result<Arc<dyn Reader>, ConfigError> {
    Ok(Arc::new(Gguf))
}

#[derive(Debug)]
struct Gguf;

/// Refuses blocks that do not make up the rows.
fn check(name: &str, stored: &Stored, kind: &Kind, outer: &[usize], columns: usize) -> Result<(), PlanError> {
    // Where they do not divide a row, there is no shape that would do; the next wider is the nearest.
    let mut expected = outer.to_vec();
    expected.push(columns.div_ceil(kind.values) * kind.bytes);
    if columns.is_multiple_of(kind.values) && stored.shape == expected {
        return Ok(());
    }
    Err(PlanError::Shape { tensor: name.to_owned(), expected, found: stored.shape.clone() })
}

impl Reader for Gguf {
    fn is_gguf(&self) -> bool {
        true
    }

    fn find(&self, tensors: &Tensors, module: &str, shape: Shape) -> Result<Option<Packed>, PlanError> {
        let name = format!("{module}.weight");
        let Some(stored) = tensors.get(&name) else { return Ok(None) };
        let Some(kind) = Kind::of(stored.dtype) else { return Ok(None) };
        check(&name, &stored, kind, &[shape.rows], shape.columns)?;
        Ok(Some(Packed::new(module, shape, vec![name], Decoder(kind))))
    }

    fn find_stack(
        &self,
        tensors: &Tensors,
        name: &str,
        experts: usize,
        shape: Shape,
    ) -> Result<Option<Vec<Packed>>, PlanError> {
        let Some(stored) = tensors.get(name) else { return Ok(None) };
        let Some(kind) = Kind::of(stored.dtype) else { return Ok(None) };
        check(name, &stored, kind, &[experts, shape.rows], shape.columns)?;
        let bytes = shape.rows * (shape.columns / kind.values) * kind.bytes;
        let expert = |expert: usize| {
            let part = expert * bytes..(expert + 1) * bytes;
            let module = format!("{name}.{expert}");
            Packed {
                parts: Vec::from([part]),
                ..Packed::new(&module, shape, vec![name.to_owned()], Decoder(kind))
            }
        };
        Ok(Some((0..experts).map(expert).collect()))
    }
}

#[derive(Debug)]
struct Decoder(&'static Kind);

impl Decode for Decoder {
    fn coding(&self, _: Shape) -> Option<Coding> {
        let Kind { bits, group: run, .. } = *self.0;
        let book = match self.0.level {
            Level::Book(_) => &E2M1,
            // A block of the type that has two bits for a trit may hold a fourth code.
            Level::Less(1) if self.0.dtype == Dtype::Tq1x0 => &TRITS,
            Level::Less(1) => &AROUND_1,
            Level::Less(8) => &AROUND_8,
            Level::Less(32) => &AROUND_32,
            Level::Less(128) => &AROUND_128,
            Level::Less(_) => &COUNT,
        };
        Some(Coding { book, bits, run })
    }

    fn open<'a>(&self, shape: Shape, bytes: &[&'a [u8]]) -> Result<Box<dyn Rows + 'a>, Refusal> {
        let blocks = bytes[0].chunks_exact(self.0.bytes).enumerate();
        if let Some((at, (byte, scale))) =
            blocks.filter_map(|(at, block)| Some((at, self.0.flaw(block)?))).next()
        {
            let reason = format!("expected finite scales, found {scale} at byte {byte} of block {at}");
            return Err(Refusal { tensor: 0, reason });
        }
        let row_bytes = shape.columns / self.0.values * self.0.bytes;
        Ok(Box::new(Blocks { kind: self.0, blocks: bytes[0], row_bytes }))
    }
}

struct Blocks<'a> {
    kind: &'static Kind,
    blocks: &'a [u8],
    row_bytes: usize,
}

impl Rows for Blocks<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let Kind { values, bytes, .. } = *self.kind;
        let blocks = self.blocks[row * self.row_bytes..].chunks_exact(bytes);
        let mut parts = Parts { codes: [0; _], scales: [0.0; _], minima: [0.0; _] };
        for (block, out) in blocks.zip(out.chunks_exact_mut(values)) {
            self.kind.block(block, &mut parts, out);
        }
    }

    fn codes(&self, row: usize, out: &mut CodeRow) {
        let Kind { values, bytes, split, .. } = *self.kind;
        let blocks = self.blocks[row * self.row_bytes..].chunks_exact(bytes);
        let mut parts = Parts { codes: [0; _], scales: [0.0; _], minima: [0.0; _] };
        let per_block = values / out.block;
        let scales = out.scales.chunks_exact_mut(per_block).zip(out.zeros.chunks_exact_mut(per_block));
        for ((block, codes), (scales, zeros)) in blocks.zip(out.codes.chunks_exact_mut(values)).zip(scales) {
            split(block, &mut parts);
            codes.copy_from_slice(&parts.codes[..values]);
            for (i, codes) in codes.chunks_exact_mut(out.block).enumerate() {
                let group = i * out.block / self.kind.group;
                (scales[i], zeros[i]) = self.kind.scale(&parts, group, codes);
            }
        }
    }
}
