//! A matrix before and after it is quantized, as methods and writers hand it to one another.
//!
//! It knows no tool's bytes: a writer lays codes out (`writers/`), a method finds them.

use bantam_core::layouts::Shape;
use bantam_model::formats::CodeRow;
use bantam_model::formats::encode::Nested;
use half::f16;

/// A linear module's weights while it is quantized: output rows, float32.
#[derive(Debug, Clone)]
pub struct Dense {
    /// The module; of experts in one tensor, the tensor with the expert's number behind a dot.
    pub name: String,
    /// Outputs and inputs.
    pub shape: Shape,
    /// Row by row.
    pub values: Vec<f32>,
}

/// What a method makes of a matrix. Scales and zeros are already rounded to what the form stores.
#[derive(Debug, Clone, PartialEq)]
pub enum Quantized {
    /// GPTQ, AWQ.
    Grouped(Grouped),
    /// bitsandbytes, HQQ, MXFP4.
    Flat(Flat),
    /// Ternary.
    Trits(Trits),
}

/// Counting codes in groups of the inputs of a row: value = (code - zero) * scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Grouped {
    /// Outputs and inputs.
    pub shape: Shape,
    /// Of a code.
    pub bits: usize,
    /// Inputs in a group; the last one may have fewer. All of them where a row is one group.
    pub group: usize,
    /// Row by row, inputs in the checkpoint's order.
    pub codes: Vec<u8>,
    /// Rows x groups.
    pub scales: Vec<f32>,
    /// The same.
    pub zeros: Vec<u8>,
    /// The group of every input, where it is not `input / group` (act-order).
    pub group_of: Option<Vec<u32>>,
}

/// Codes of a matrix taken as one row of values after another, in blocks that may span rows: `value = book[code] *
/// scale`, or (code - zero) * scale where there is no book.
#[derive(Debug, Clone, PartialEq)]
pub struct Flat {
    /// Outputs and inputs.
    pub shape: Shape,
    /// Values in a block; the last one may have fewer.
    pub block: usize,
    /// Values of codes.
    pub book: Option<&'static [f32; 16]>,
    /// One per value.
    pub codes: Vec<u8>,
    /// One per block.
    pub scales: Vec<f32>,
    /// One per block, none where there is a book.
    pub zeros: Vec<f32>,
    /// What stands in the file in their place.
    pub told: Told,
}

/// Numbers that say what scales are.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The scales themselves.
    Scales,
    /// Scales that are quantized again.
    Nested(Nested),
    /// The largest magnitude of every block.
    Largest(Vec<f32>),
}

/// Trits: `value = columns[input] * sum over planes of trit * scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Trits {
    /// Outputs and inputs; a multiple of 64 inputs.
    pub shape: Shape,
    /// 1 or 2. The experts of one stack have the same number.
    pub planes: usize,
    /// Inputs in a group: a multiple of 64, or all.
    pub group: usize,
    /// Rows x planes x inputs: -1, 0, 1.
    pub trits: Vec<i8>,
    /// Rows x planes x groups, numbers of float16.
    pub scales: Vec<f32>,
    /// One per input.
    pub columns: Option<Vec<f32>>,
}

impl Quantized {
    /// Outputs and inputs.
    pub fn shape(&self) -> Shape {
        match self {
            Quantized::Grouped(Grouped { shape, .. })
            | Quantized::Flat(Flat { shape, .. })
            | Quantized::Trits(Trits { shape, .. }) => *shape,
        }
    }

    /// One row of values: what the codes stand for.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            Quantized::Grouped(grouped) => grouped.row(row, out),
            Quantized::Flat(flat) => flat.row(row, out),
            Quantized::Trits(trits) => trits.row(row, out),
        }
    }

    /// All of them.
    pub fn values(&self) -> Vec<f32> {
        let Shape { rows, columns } = self.shape();
        let mut values = vec![0.0; rows * columns];
        values.chunks_exact_mut(columns).enumerate().for_each(|(row, out)| self.row(row, out));
        values
    }
}

impl Grouped {
    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.shape.columns.div_ceil(self.group)
    }

    fn row(&self, row: usize, out: &mut [f32]) {
        let (columns, groups) = (self.shape.columns, self.groups());
        for (input, (value, code)) in out.iter_mut().zip(&self.codes[row * columns..]).enumerate() {
            let group = self.group_of.as_ref().map_or(input / self.group, |of| of[input] as usize);
            let at = row * groups + group;
            *value = (f32::from(*code) - f32::from(self.zeros[at])) * self.scales[at];
        }
    }
}

impl Flat {
    fn row(&self, row: usize, out: &mut [f32]) {
        let first = row * self.shape.columns;
        for (at, value) in (first..).zip(out) {
            let (code, block) = (self.codes[at], at / self.block);
            *value = match self.book {
                Some(book) => book[usize::from(code)] * self.scales[block],
                None => (f32::from(code) - self.zeros[block]) * self.scales[block],
            };
        }
    }
}

impl Trits {
    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.shape.columns.div_ceil(self.group)
    }

    /// All values.
    pub fn values(&self) -> Vec<f32> {
        let columns = self.shape.columns;
        let mut values = vec![0.0; self.shape.rows * columns];
        values.chunks_exact_mut(columns).enumerate().for_each(|(row, out)| self.row(row, out));
        values
    }

    /// One row as codes around one, plane by plane; where there is room for more planes, these stay zero.
    pub fn codes(&self, row: usize, out: &mut CodeRow) {
        let (columns, groups) = (self.shape.columns, self.groups());
        let blocks = columns / out.block;
        out.codes.fill(1);
        out.scales.fill(0.0);
        out.zeros.fill(1.0);
        for plane in 0..self.planes {
            let line = row * self.planes + plane;
            let trits = &self.trits[line * columns..][..columns];
            let codes = &mut out.codes[plane * columns..];
            codes.iter_mut().zip(trits).for_each(|(code, trit)| *code = (trit + 1).cast_unsigned());
            for (block, scale) in out.scales[plane * blocks..][..blocks].iter_mut().enumerate() {
                *scale = self.scales[line * groups + block * out.block / self.group];
            }
        }
    }

    fn row(&self, row: usize, out: &mut [f32]) {
        let (columns, groups) = (self.shape.columns, self.groups());
        out.fill(0.0);
        for plane in row * self.planes..(row + 1) * self.planes {
            let trits = &self.trits[plane * columns..];
            let scales = &self.scales[plane * groups..];
            for (input, value) in out.iter_mut().enumerate() {
                *value += f32::from(trits[input]) * scales[input / self.group];
            }
        }
        if let Some(factors) = &self.columns {
            out.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        }
    }
}

/// The nearest number of float16.
pub fn as_f16(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}
