//! Rows times matrices: prepares the input once per form that the matrices ask for, then shares tiles among threads.

use super::share::Shared;
use super::vector::group;
use crate::cpu::Cpu;
use crate::layouts::panels::{Form, Panels, fill_group};
use crate::layouts::{Layout, Precision, Shape, Sink};
use crate::ops::crew::Pool;

/// One matrix of a product, with its memory.
#[derive(Debug)]
pub struct Output<'a> {
    /// How the matrix is stored.
    pub layout: &'static dyn Layout,
    /// Its size.
    pub shape: Shape,
    /// Its tiles.
    pub tiles: &'a [u8],
    /// Added to every row.
    pub bias: Option<&'a [f32]>,
    /// `rows x shape.rows` values.
    pub out: &'a mut [f32],
    /// Whether to add to `out`.
    pub add: bool,
}

/// Bytes that [`multiply`] needs for prepared input.
pub fn panel_bytes(form: Form, columns: usize, tokens: usize) -> usize {
    4 * form.memory_words(columns, tokens)
}

/// `out = x * matrix^T (+ bias) (+ out)` for every output; all share the input `x` of `tokens` rows.
pub fn multiply<P: Pool>(
    cpu: Cpu,
    precision: Precision,
    pool: &P,
    tokens: usize,
    x: &[f32],
    panels: &mut [f32],
    outputs: &mut [Output],
) {
    if tokens == 0 {
        return;
    }
    let columns = x.len() / tokens;
    assert!(outputs.len() <= 3 && outputs.iter().all(|output| output.shape.columns == columns));
    let panels: &mut [u32] = bytemuck::cast_slice_mut(panels);
    let mut done: heapless::Vec<Form, 3> = heapless::Vec::new();
    for i in 0..outputs.len() {
        let form = outputs[i].layout.form(precision, cpu);
        if done.contains(&form) {
            continue;
        }
        prepare(cpu, pool, form, columns, x, panels);
        let prepared = Panels::new(form, cpu, columns, tokens, panels);
        let same = |output: &&mut Output| output.layout.form(precision, cpu) == form;
        share_tiles(cpu, pool, &prepared, outputs.iter_mut().filter(same));
        let _ = done.push(form);
    }
}

fn prepare<P: Pool>(cpu: Cpu, pool: &P, form: Form, columns: usize, x: &[f32], panels: &mut [u32]) {
    let groups = (x.len() / columns).div_ceil(group(cpu));
    let memory = Shared::new(panels);
    let work = |index| {
        // SAFETY: every group is filled by one task.
        unsafe { fill_group(form, cpu, columns, x, index, &memory) }
    };
    if groups == 1 { work(0) } else { pool.run(groups, &work) }
}

/// A matrix while several threads write its product.
struct Part<'a> {
    layout: &'static dyn Layout,
    shape: Shape,
    tile_bytes: usize,
    tiles: &'a [u8],
    sink: Sink<'a>,
}

fn share_tiles<'a, 'b: 'a, P: Pool>(
    cpu: Cpu,
    pool: &P,
    x: &Panels,
    outputs: impl Iterator<Item = &'a mut Output<'b>>,
) {
    let mut parts: heapless::Vec<Part, 3> = heapless::Vec::new();
    for output in outputs {
        let rows = output.shape.rows;
        assert_eq!(output.out.len(), x.tokens * rows);
        let sink =
            Sink { out: Shared::new(output.out), stride: rows, rows, bias: output.bias, add: output.add };
        let tile_bytes = output.layout.tile_bytes(output.shape.columns);
        let part = Part { layout: output.layout, shape: output.shape, tile_bytes, tiles: output.tiles, sink };
        assert!(parts.push(part).is_ok(), "three outputs at most");
    }
    let total: usize = parts.iter().map(|part| part.shape.tiles()).sum();
    // One token: long runs, each an ascending stream, yet a few per thread, so that a thread that lost its core
    // does not keep the others waiting. Many tokens: tile by tile.
    let runs = if x.tokens == 1 { pool.threads() * 4 } else { total };
    let run_tiles = total.div_ceil(runs.max(1)).max(1);
    let work = |index: usize| {
        let end = ((index + 1) * run_tiles).min(total);
        for at in index * run_tiles..end {
            let mut tile = at;
            let mut parts = parts.iter();
            let mut part = parts.next().expect("there is a part for every tile");
            while tile >= part.shape.tiles() {
                tile -= part.shape.tiles();
                part = parts.next().expect("there is a part for every tile");
            }
            let bytes = &part.tiles[tile * part.tile_bytes..][..part.tile_bytes];
            let first_row = tile * crate::layouts::TILE_ROWS;
            // SAFETY: every tile is multiplied by one task, and tiles have rows of their own.
            unsafe { part.layout.multiply(cpu, part.shape.columns, bytes, x, &part.sink, first_row) };
        }
    };
    pool.run(total.div_ceil(run_tiles), &work);
}
