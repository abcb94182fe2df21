//! Rows times matrices: prepares the input once per form that the matrices ask for, then shares tiles among threads.
//!
//! A matrix may be one of a *stack*, matrices of one shape one after another, of which every row of the input meets
//! its own: a [`Segment`] says which rows meet which. A single matrix is a stack of one, met by all rows.

use super::share::Shared;
use super::vector::group;
use crate::cpu::Cpu;
use crate::layouts::panels::{Form, Panels, Taken, fill_group};
use crate::layouts::{Layout, Precision, Shape, Sink};
use crate::ops::crew::Pool;

/// One stack of a product, with its memory.
#[derive(Debug)]
pub struct Output<'a> {
    /// How the matrices are stored.
    pub layout: &'static dyn Layout,
    /// The size of one.
    pub shape: Shape,
    /// The tiles of all.
    pub tiles: &'a [u8],
    /// How they take the input: orders and factors of `shape.columns` per matrix, see [`IN_ORDER`]; a matrix has
    /// `times` as many columns as its shape says.
    pub taken: Taken<'a>,
    /// Added to every row, `shape.rows` values per matrix.
    pub bias: Option<&'a [f32]>,
    /// `rows x shape.rows` values.
    pub out: &'a mut [f32],
    /// Whether to add to `out`.
    pub add: bool,
}

/// Instead of the first column of an order: columns are as they are.
pub const IN_ORDER: u32 = u32::MAX;

/// The rows of a product's input.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Rows one after another.
    pub x: &'a [f32],
    /// Values of one.
    pub columns: usize,
    /// Which of them is taken as the product's `i`-th; all in their order where there is none.
    pub order: Option<&'a [u32]>,
}

impl<'a> Input<'a> {
    fn row(&self, token: usize) -> &'a [f32] {
        let row = self.order.map_or(token, |order| order[token] as usize);
        &self.x[row * self.columns..][..self.columns]
    }
}

/// Rows of a product that meet one matrix of a stack: its number, the first of the rows, how many.
pub type Segment = [u32; 3];

/// Bytes that [`multiply`] needs for prepared input, of as many columns as matrices have.
pub fn panel_bytes(form: Form, columns: usize, tokens: usize) -> usize {
    4 * form.memory_words(columns, tokens)
}

/// `out = x * matrix^T (+ bias) (+ out)` for every output; all share the input. Segments follow one another without
/// gaps; every row of the product is in one.
pub fn multiply<'a, P: Pool>(
    cpu: Cpu,
    precision: Precision,
    pool: &P,
    input: Input,
    segments: &[Segment],
    panels: &mut [f32],
    outputs: &mut [Output<'a>],
) {
    let columns = input.columns;
    assert!(outputs.len() <= 3 && outputs.iter().all(|output| output.shape.columns == columns));
    // Segments are written by several threads at once.
    segments.iter().fold(0, |next, &[_, first, count]| {
        assert_eq!(first as usize, next, "segments must follow one another");
        next + count as usize
    });
    let panels: &mut [u32] = bytemuck::cast_slice_mut(panels);
    let mut done: heapless::Vec<(Form, Taken), 3> = heapless::Vec::new();
    for i in 0..outputs.len() {
        let key = |output: &Output<'a>| (output.layout.form(precision, cpu), taken(output));
        let (form, taken) = key(&outputs[i]);
        if done.contains(&(form, taken)) {
            continue;
        }
        prepare(cpu, pool, form, &input, taken, segments, panels);
        let prepared = Prepared { form, cpu, columns: taken.times * columns, memory: panels, segments };
        let same = |output: &&mut Output<'a>| key(output) == (form, taken);
        share_tiles(pool, &prepared, outputs.iter_mut().filter(same));
        let _ = done.push((form, taken));
    }
}

/// With an order only where a matrix of the stack has another than its own.
fn taken<'a>(output: &Output<'a>) -> Taken<'a> {
    let columns = output.shape.columns;
    let order = output.taken.order;
    let order = order.filter(|order| order.iter().step_by(columns).any(|&first| first != IN_ORDER));
    Taken { order, ..output.taken }
}

pub(super) fn prepare<P: Pool>(
    cpu: Cpu,
    pool: &P,
    form: Form,
    input: &Input,
    taken: Taken,
    segments: &[Segment],
    panels: &mut [u32],
) {
    let groups_of = |segment: &Segment| (segment[2] as usize).div_ceil(group(cpu));
    let groups: usize = segments.iter().map(groups_of).sum();
    let token_words = form.memory_words(taken.times * input.columns, 1);
    let memory = Shared::new(panels);
    let work = |index: usize| {
        let mut index = index;
        for segment in segments {
            let [matrix, first, count] = segment.map(|word| word as usize);
            if index < groups_of(segment) {
                let memory = memory.narrow(first * token_words, count * token_words);
                let row = |token| input.row(first + token);
                let range = matrix * input.columns..(matrix + 1) * input.columns;
                let order = taken.order.map(|order| &order[range.clone()]);
                let order = order.filter(|order| order[0] != IN_ORDER);
                let factors = taken.factors.map(|factors| &factors[range]);
                let taken = Taken { order, factors, ..taken };
                // SAFETY: every group of every segment is filled by one task.
                unsafe { fill_group(form, cpu, input.columns, count, row, taken, index, &memory) }
                return;
            }
            index -= groups_of(segment);
        }
    };
    if groups <= 1 { (0..groups).for_each(work) } else { pool.run(groups, &work) }
}

/// The input of all segments, each prepared for itself.
struct Prepared<'a> {
    form: Form,
    cpu: Cpu,
    /// Of the matrices.
    columns: usize,
    memory: &'a [u32],
    segments: &'a [Segment],
}

impl<'a> Prepared<'a> {
    fn panels(&self, first: usize, count: usize) -> Panels<'a> {
        let token_words = self.form.memory_words(self.columns, 1);
        let memory = &self.memory[first * token_words..(first + count) * token_words];
        Panels::new(self.form, self.cpu, self.columns, count, memory)
    }

    fn tokens(&self) -> usize {
        self.segments.iter().map(|segment| segment[2] as usize).sum()
    }
}

/// A stack while several threads write its product.
struct Part<'a> {
    layout: &'static dyn Layout,
    shape: Shape,
    tile_bytes: usize,
    tiles: &'a [u8],
    bias: Option<&'a [f32]>,
    out: Shared<'a, f32>,
    add: bool,
}

impl Part<'_> {
    /// Multiplies one tile of one matrix with the rows that meet it.
    ///
    /// # Safety
    /// No other thread may multiply this tile.
    unsafe fn multiply(&self, x: &Prepared, segment: Segment, tile: usize) {
        let [matrix, first, count] = segment.map(|word| word as usize);
        let rows = self.shape.rows;
        let sink = Sink {
            out: self.out.narrow(first * rows, count * rows),
            stride: rows,
            rows,
            bias: self.bias.map(|bias| &bias[matrix * rows..][..rows]),
            add: self.add,
        };
        let at = (matrix * self.shape.tiles() + tile) * self.tile_bytes;
        let (bytes, panels) = (&self.tiles[at..][..self.tile_bytes], x.panels(first, count));
        let first_row = tile * crate::layouts::TILE_ROWS;
        // SAFETY: tiles have rows of their own, and this one is ours by the caller's promise.
        unsafe { self.layout.multiply(x.cpu, x.columns, bytes, &panels, &sink, first_row) };
    }
}

fn share_tiles<'a, 'b: 'a, P: Pool>(
    pool: &P,
    x: &Prepared,
    outputs: impl Iterator<Item = &'a mut Output<'b>>,
) {
    let mut parts: heapless::Vec<Part, 3> = heapless::Vec::new();
    for output in outputs {
        assert_eq!(output.out.len(), x.tokens() * output.shape.rows);
        let Output { layout, shape, tiles, bias, add, .. } = *output;
        let (tile_bytes, out) = (layout.tile_bytes(x.columns), Shared::new(output.out));
        let part = Part { layout, shape, tile_bytes, tiles, bias, out, add };
        assert!(parts.push(part).is_ok(), "three outputs at most");
    }
    let per_segment: usize = parts.iter().map(|part| part.shape.tiles()).sum();
    let total = per_segment * x.segments.len();
    // One token each: long runs, each an ascending stream, yet a few per thread, so that a thread that lost its core
    // does not keep the others waiting. Many tokens: tile by tile.
    let single = x.segments.iter().all(|segment| segment[2] == 1);
    let runs = if single { pool.threads() * 4 } else { total };
    let run_tiles = total.div_ceil(runs.max(1)).max(1);
    let work = |index: usize| {
        let end = ((index + 1) * run_tiles).min(total);
        for at in index * run_tiles..end {
            let mut tile = at % per_segment;
            let mut parts = parts.iter();
            let mut part = parts.next().expect("there is a part for every tile");
            while tile >= part.shape.tiles() {
                tile -= part.shape.tiles();
                part = parts.next().expect("there is a part for every tile");
            }
            // SAFETY: every tile of every segment is multiplied by one task.
            unsafe { part.multiply(x, x.segments[at / per_segment], tile) };
        }
    };
    pool.run(total.div_ceil(run_tiles), &work);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::layouts::FLOAT32;
    use crate::ops::crew::Serial;

    #[test]
    #[should_panic(expected = "segments must follow one another")]
    fn segments_that_overlap_are_refused() {
        let shape = Shape { rows: 1, columns: 1 };
        let layout = FLOAT32;
        let tiles = std::vec![0; 2 * layout.tile_bytes(1)];
        let (mut out, mut panels) = ([0.0; 2], [0.0; 64]);
        let output = Output {
            layout,
            shape,
            tiles: &tiles,
            taken: Taken::PLAIN,
            bias: None,
            out: &mut out,
            add: false,
        };
        let input = Input { x: &[1.0, 2.0], columns: 1, order: None };
        let segments = [[0, 0, 1], [1, 0, 1]];
        let cpu = Cpu::detect();
        multiply(cpu, Precision::Exact, &Serial, input, &segments, &mut panels, &mut [output]);
    }
}
