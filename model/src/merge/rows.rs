//! The tensors of a merged model, row by row: read, rounded to four bits where they were trained so, changed, written.

use std::io::{self, Write};
use std::path::Path;

use bantam_core::layouts::Shape;
use bantam_core::ops::share::each_row;
use half::{bf16, f16};

use super::cascade::Way;
use super::trained::Trained;
use super::{Made, MergeError, Output, ROWS, Taken};
use crate::adapter::{Adapter, Change, Loader, Values, square};
use crate::checkpoint::writer::{Outline, WriteError, write_streamed};
use crate::checkpoint::{Dtype, TensorView};
use crate::formats::Packed;
use crate::formats::encode::{self, FOUR_BIT_BLOCK, nest};
use crate::pool::Threads;
use crate::source::Source;
use crate::weights::{Unpacked, check_notes, divisors, unreadable};

/// What is copied at a time.
const STEP_BYTES: usize = 4 << 20;

/// Rows of a tensor and elements of one, all matrices of a stack together.
pub(super) fn rows_of(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [.., columns] => (shape[..shape.len() - 1].iter().product(), *columns),
    }
}

/// Makes outputs.
pub(super) struct Maker<'a, 't> {
    source: &'a Source,
    adapter: &'a Adapter,
    loader: Loader<'a>,
    trained: &'a Trained,
    way: Way,
    pool: Threads,
    tell: &'t mut dyn FnMut(u64),
    done: u64,
}

/// One matrix of an output.
struct Job<'j> {
    output: &'j Output,
    /// Which, of a stack.
    number: usize,
    rows: usize,
    columns: usize,
    values: Option<Values>,
    /// Whether its rows are inputs.
    turned: bool,
}

/// Where the rows of a matrix are read from.
type Read<'r> = dyn Fn(usize, &mut [f32]) -> Result<(), MergeError> + 'r;

impl<'a, 't> Maker<'a, 't> {
    pub(super) fn new(
        source: &'a Source,
        adapter: &'a Adapter,
        trained: &'a Trained,
        way: Way,
        threads: usize,
        tell: &'t mut dyn FnMut(u64),
    ) -> Result<Self, MergeError> {
        let pool = Threads::start(threads).map_err(|error| MergeError::Model {
            model: source.folder().to_owned(),
            reason: format!("{threads} threads: {error}; give fewer with --threads"),
        })?;
        let loader = Loader::new(adapter);
        Ok(Maker { source, adapter, loader, trained, way, pool, tell, done: 0 })
    }

    /// Writes a file with these outputs.
    pub(super) fn write(&mut self, path: &Path, outputs: &[&Output]) -> Result<(), MergeError> {
        let outlines: Vec<Outline> = outputs
            .iter()
            .map(|output| (output.name.as_str(), output.dtype, output.shape.as_slice()))
            .collect();
        // The writer knows errors of the disk alone.
        let mut failed = None;
        let written = write_streamed(path, &outlines, &[("format", "pt")], |index, out| {
            self.make(outputs[index], out).map_err(|error| match error {
                MergeError::Write(WriteError::Io { source, .. }) => source,
                other => {
                    failed = Some(other);
                    io::ErrorKind::Other.into()
                }
            })
        });
        failed.map_or_else(|| Ok(written?), Err)
    }

    fn make(&mut self, output: &Output, out: &mut dyn Write) -> Result<(), MergeError> {
        match &output.made {
            Made::Copied => self.copy(&self.tensor(&output.from), out),
            Made::Vector(change) => self.vector(output, change, out),
            Made::Rows(changes) => {
                for (number, change) in changes.iter().enumerate() {
                    self.matrix(output, number, change.as_ref(), out)?;
                }
                Ok(())
            }
        }
    }

    fn tensor(&self, from: &Taken) -> TensorView<'a> {
        let found = match from {
            Taken::Base(name) => self.source.checkpoint.tensor(name),
            Taken::Whole(name) => self.adapter.whole(name),
            Taken::Packed(_) => None,
        };
        found.expect("outputs were listed from these files")
    }

    fn copy(&mut self, tensor: &TensorView, out: &mut dyn Write) -> Result<(), MergeError> {
        for start in (0..tensor.data.len()).step_by(STEP_BYTES) {
            let end = (start + STEP_BYTES).min(tensor.data.len());
            let bytes = tensor.load(start..end).map_err(|error| unreadable(tensor, error))?;
            self.emit(&bytes, out)?;
        }
        Ok(())
    }

    fn emit(&mut self, bytes: &[u8], out: &mut dyn Write) -> Result<(), MergeError> {
        // What the disk says is the writer's to tell.
        let failed = |source| WriteError::Io { path: "".into(), source };
        out.write_all(bytes).map_err(failed)?;
        self.done += bytes.len() as u64;
        (self.tell)(self.done);
        Ok(())
    }

    /// A bias to which something is added.
    fn vector(&mut self, output: &Output, change: &Change, out: &mut dyn Write) -> Result<(), MergeError> {
        let tensor = self.tensor(&output.from);
        let mut row = vec![0.0; tensor.elements()];
        tensor.load_f32(0, &mut row, &mut Vec::new()).map_err(|error| unreadable(&tensor, error))?;
        let values = self.loader.values(change)?;
        row.iter_mut().enumerate().for_each(|(at, x)| *x += values.bias(at));
        let mut bytes = Vec::new();
        narrow(output, 0, row.len(), &row, &mut bytes)?;
        self.emit(&bytes, out)
    }

    fn matrix(
        &mut self,
        output: &Output,
        number: usize,
        change: Option<&Change>,
        out: &mut dyn Write,
    ) -> Result<(), MergeError> {
        let values = change.map(|change| self.loader.values(change)).transpose()?;
        let Made::Rows(changes) = &output.made else { unreachable!("only rows come here") };
        let (all, columns) = rows_of(&output.shape);
        let is_stack = output.shape.len() == 3;
        let (rows, turned) = (all / changes.len(), is_stack || change.is_some_and(|change| change.is_table));
        let job = Job { output, number, rows, columns, values, turned };
        match &output.from {
            Taken::Packed(packed) => self.packed(&job, &packed[number], is_stack, out),
            from => {
                let tensor = self.tensor(from);
                let read = |first: usize, rows: &mut [f32]| -> Result<(), MergeError> {
                    let start = (number * job.rows + first) * columns;
                    let read = tensor.load_f32(start, rows, &mut Vec::new());
                    Ok(read.map_err(|error| unreadable(&tensor, error))?)
                };
                self.rows(&job, &read, out)
            }
        }
    }

    /// A matrix that is quantized. Of a stack the rows are inputs, which stand as columns here.
    fn packed(
        &mut self,
        job: &Job,
        packed: &Packed,
        is_stack: bool,
        out: &mut dyn Write,
    ) -> Result<(), MergeError> {
        let checkpoint = &self.source.checkpoint;
        check_notes(packed, checkpoint)?;
        let sources = packed.sources(checkpoint);
        let unpacked = Unpacked::read(packed, &sources)?;
        let rows = unpacked.rows()?;
        let factors = divisors(packed, checkpoint)?;
        let row = |row: usize, out: &mut [f32]| {
            rows.row(row, out);
            out.iter_mut().zip(&factors).for_each(|(value, factor)| *value /= factor);
        };
        if !is_stack {
            let read = |first: usize, out: &mut [f32]| -> Result<(), MergeError> {
                out.chunks_exact_mut(job.columns).enumerate().for_each(|(at, out)| row(first + at, out));
                Ok(())
            };
            return self.rows(job, &read, out);
        }
        let Shape { rows: outputs, columns: inputs } = packed.shape;
        let mut all = vec![0.0; outputs * inputs];
        all.chunks_exact_mut(inputs).enumerate().for_each(|(at, out)| row(at, out));
        let read = |first: usize, out: &mut [f32]| -> Result<(), MergeError> {
            for (at, out) in out.chunks_exact_mut(outputs).enumerate() {
                out.iter_mut().enumerate().for_each(|(output, x)| *x = all[output * inputs + first + at]);
            }
            Ok(())
        };
        self.rows(job, &read, out)
    }

    /// Reads rows, makes of them what they are to be, and writes them.
    fn rows(&mut self, job: &Job, read: &Read, out: &mut dyn Write) -> Result<(), MergeError> {
        let Job { output, rows, columns, .. } = *job;
        let step = match self.way {
            Way::Whole => rows.next_multiple_of(ROWS).max(ROWS),
            Way::Rows => ROWS,
        };
        let trained = self.trained;
        let mut buffer = vec![0.0; step.min(rows) * columns];
        let scales = match output.rounded {
            true => Some(self.scales(job, read, &mut buffer)?),
            false => None,
        };
        let round = |first: usize, rows: &mut [f32]| {
            if let Some(scales) = &scales {
                trained.round(first * columns, scales, rows);
            }
        };
        let of_columns = match &job.values {
            Some(values) if values.has_magnitudes() && job.turned => {
                Some(factors_of_columns(job, values, read, &round, &mut buffer)?)
            }
            _ => None,
        };
        let mut bytes = Vec::new();
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            let part = &mut buffer[..count * columns];
            read(first, part)?;
            round(first, part);
            each_row(&self.pool, part, columns, 2, |at, row| {
                job.change(first + at, of_columns.as_deref(), row)
            });
            bytes.clear();
            narrow(output, job.number * rows + first, columns, part, &mut bytes)?;
            self.emit(&bytes, out)?;
        }
        Ok(())
    }

    /// The scales of all blocks of a matrix that is rounded to four bits.
    fn scales(&self, job: &Job, read: &Read, buffer: &mut [f32]) -> Result<Vec<f32>, MergeError> {
        let step = (buffer.len() / job.columns).max(1);
        let mut scales = Vec::with_capacity((job.rows * job.columns).div_ceil(FOUR_BIT_BLOCK));
        let mut codes = [0; FOUR_BIT_BLOCK];
        for first in (0..job.rows).step_by(step) {
            let count = step.min(job.rows - first);
            let part = &mut buffer[..count * job.columns];
            read(first, part)?;
            if let Some(at) = part.iter().position(|x| !x.is_finite()) {
                let (row, value) = (first + at / job.columns, part[at]);
                return Err(overflow(job.output, row, value));
            }
            let blocks = part.chunks(FOUR_BIT_BLOCK);
            scales.extend(blocks.map(|block| self.trained.encode(block, &mut codes[..block.len()]).scale));
        }
        if self.trained.nested {
            nest(&mut scales);
        }
        Ok(scales)
    }
}

impl Job<'_> {
    /// Adds the change to a row, and gives it its new length.
    fn change(&self, at: usize, of_columns: Option<&[f32]>, row: &mut [f32]) {
        let Some(values) = &self.values else { return };
        match self.turned {
            true => values.add_to_input(at, row),
            false => values.add_to_row(at, row),
        }
        if let Some(factors) = of_columns {
            row.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        } else if values.has_magnitudes() {
            let factor = values.factor(at, square(row));
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// New lengths over the old ones, of the columns of a table.
fn factors_of_columns(
    job: &Job,
    values: &Values,
    read: &Read,
    round: &dyn Fn(usize, &mut [f32]),
    buffer: &mut [f32],
) -> Result<Vec<f32>, MergeError> {
    let step = (buffer.len() / job.columns).max(1);
    let mut squares = vec![0.0; job.columns];
    for first in (0..job.rows).step_by(step) {
        let part = &mut buffer[..step.min(job.rows - first) * job.columns];
        read(first, part)?;
        round(first, part);
        for (at, row) in part.chunks_exact_mut(job.columns).enumerate() {
            values.add_to_input(first + at, row);
            squares.iter_mut().zip(&*row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
    }
    Ok(squares.iter().enumerate().map(|(column, square)| values.factor(column, *square)).collect())
}

impl Trained {
    fn encode(&self, block: &[f32], codes: &mut [u8]) -> encode::Scale {
        if self.fp4 { encode::fp4(block, codes) } else { encode::nf4(block, codes) }
    }

    /// Rounds elements to what four bits hold of them; `start` is the first one's place in its matrix.
    fn round(&self, start: usize, scales: &[f32], values: &mut [f32]) {
        let book = if self.fp4 { &encode::FP4 } else { &encode::NF4 };
        let mut codes = [0; FOUR_BIT_BLOCK];
        let scales = &scales[start / FOUR_BIT_BLOCK..];
        for (block, scale) in values.chunks_mut(FOUR_BIT_BLOCK).zip(scales) {
            let codes = &mut codes[..block.len()];
            self.encode(block, codes);
            block.iter_mut().zip(codes).for_each(|(x, code)| *x = book[usize::from(*code)] * scale);
        }
    }
}

fn overflow(output: &Output, row: usize, value: f32) -> MergeError {
    MergeError::Overflow { tensor: output.name.clone(), dtype: output.dtype.name(), value, row }
}

/// Rounds to the nearest number of the output's type.
fn narrow(
    output: &Output,
    first: usize,
    columns: usize,
    values: &[f32],
    bytes: &mut Vec<u8>,
) -> Result<(), MergeError> {
    let is_held = |x: &f32| match output.dtype {
        Dtype::F16 => f16::from_f32(*x).is_finite(),
        Dtype::Bf16 => bf16::from_f32(*x).is_finite(),
        _ => x.is_finite(),
    };
    if let Some(at) = values.iter().position(|x| !is_held(x)) {
        return Err(overflow(output, first + at / columns.max(1), values[at]));
    }
    match output.dtype {
        Dtype::F64 => put(bytes, values, |x| f64::from(x).to_le_bytes()),
        Dtype::F32 => put(bytes, values, f32::to_le_bytes),
        Dtype::F16 => put(bytes, values, |x| f16::from_f32(x).to_le_bytes()),
        Dtype::Bf16 => put(bytes, values, |x| bf16::from_f32(x).to_le_bytes()),
        _ => unreachable!("a plan takes no weights of other types"),
    }
    Ok(())
}

fn put<const BYTES: usize>(bytes: &mut Vec<u8>, values: &[f32], to: impl Fn(f32) -> [u8; BYTES]) {
    bytes.resize(values.len() * BYTES, 0);
    let places = bytes.chunks_exact_mut(BYTES).zip(values);
    places.for_each(|(place, x)| place.copy_from_slice(&to(*x)));
}
