//! Puts an adapter's numbers where the plan has room for them.

use std::sync::Mutex;

use bantam_core::layouts::{FLOAT32, NotFinite, Shape, TILE_ROWS};
use bantam_core::ops::matmul::IN_ORDER;
use bantam_core::ops::share::each_row;
use bantam_core::{Arena, Matrix, Pool, Slot};
use memmap2::MmapMut;

use super::values::square;
use super::{Adapter, Change, Loader, Values};
use crate::plan::{LowFill, LowSide};
use crate::weights::{WeightsError, not_finite};

/// Fills one slot of a change, or of those of all experts.
pub(crate) fn fill(
    to: &LowFill,
    adapter: &Adapter,
    arena: &mut Arena<MmapMut>,
    pool: &impl Pool,
) -> Result<(), WeightsError> {
    let mut loader = Loader::new(adapter);
    for (number, change) in to.changes.iter().enumerate() {
        let values = change.as_ref().map(|change| loader.values(change)).transpose()?;
        let part = part(to.slot, to.changes.len(), number);
        match (to.side, values) {
            // Zeroes are what an expert without a change has; its rows keep their lengths.
            (LowSide::Factors, None) => arena.floats_mut(part).fill(1.0),
            (_, None) => arena.write(part).fill(0),
            (LowSide::Down, Some(values)) => down(to, &values, arena.write(part)),
            (LowSide::Table, Some(values)) => table(to, &values, arena.write(part)),
            (LowSide::Up, Some(values)) => {
                let factors = to.factors.map(|slot| of_expert(arena, slot, to.changes.len(), number));
                let done = up(to, &values, factors.as_deref(), arena.write(part));
                done.map_err(|found| overflow(adapter, change, found))?;
            }
            (LowSide::Bias, Some(values)) => {
                let out = arena.floats_mut(part).iter_mut().enumerate();
                out.for_each(|(row, out)| *out = values.bias(to.cut.source_row(row)));
            }
            (LowSide::Factors, Some(values)) => {
                let factors = match change.as_ref().is_some_and(|change| change.is_table) {
                    true => factors_of_table(&to.base, &values, arena),
                    false => factors(to, number, &values, arena, pool),
                };
                if let Some(row) = factors.iter().position(|factor| !factor.is_finite()) {
                    return Err(overflow(adapter, change, NotFinite { row, column: 0 }));
                }
                arena.floats_mut(part).copy_from_slice(&factors);
            }
        }
    }
    Ok(())
}

/// One of as many parts of equal size.
fn part(slot: Slot, count: usize, number: usize) -> Slot {
    let bytes = slot.bytes / count;
    Slot { offset: slot.offset + number * bytes, bytes, ..slot }
}

/// Numbers that are finite and become others when they are scaled: by too large a scale, or by a row's length of zero.
fn overflow(adapter: &Adapter, change: &Option<Change>, found: NotFinite) -> WeightsError {
    let change = change.as_ref().expect("what has no change has no numbers");
    not_finite(&adapter.tensor(change.magnitude.as_ref().unwrap_or(change.up())), found.row, found.column)
}

fn of_expert(arena: &Arena<MmapMut>, slot: Slot, count: usize, number: usize) -> Vec<f32> {
    arena.floats(part(slot, count, number)).to_vec()
}

/// Packs rows tile by tile; `row` writes one of them.
fn pack(
    Shape { rows, columns }: Shape,
    out: &mut [u8],
    mut row: impl FnMut(usize, &mut [f32]),
) -> Result<(), NotFinite> {
    let mut values = vec![0.0; TILE_ROWS * columns];
    for (tile, out) in out.chunks_exact_mut(FLOAT32.tile_bytes(columns)).enumerate() {
        let count = TILE_ROWS.min(rows - tile * TILE_ROWS);
        let values = &mut values[..count * columns];
        values.fill(0.0);
        for (at, values) in values.chunks_exact_mut(columns).enumerate() {
            row(tile * TILE_ROWS + at, values);
        }
        let first = tile * TILE_ROWS;
        let place = |NotFinite { row, column }| NotFinite { row: first + row, column };
        FLOAT32.pack(columns, values, out).map_err(place)?;
    }
    Ok(())
}

const FINITE: &str = "numbers are finite as they are read";

fn down(to: &LowFill, values: &Values, out: &mut [u8]) {
    let rank = values.rank();
    let done = pack(to.shape, out, |row, out| {
        // The ranks of experts may differ; a stack has the largest.
        if row < rank {
            out.copy_from_slice(values.down(row));
        }
    });
    done.expect(FINITE);
}

fn table(to: &LowFill, values: &Values, out: &mut [u8]) {
    pack(to.shape, out, |token, out| values.of_token(token, out)).expect(FINITE);
}

fn up(to: &LowFill, values: &Values, factors: Option<&[f32]>, out: &mut [u8]) -> Result<(), NotFinite> {
    let rank = values.rank();
    pack(to.shape, out, |row, out| {
        values.up(to.cut.source_row(row), &mut out[..rank]);
        let factor = factors.map_or(1.0, |factors| factors[row]);
        out.iter_mut().for_each(|x| *x *= factor);
    })
}

/// New lengths over the old ones, of the rows of a matrix as it is held in memory, with the change added to it.
fn factors(
    to: &LowFill,
    number: usize,
    values: &Values,
    arena: &Arena<MmapMut>,
    pool: &impl Pool,
) -> Vec<f32> {
    let Matrix { layout, shape, slot, times, .. } = to.base;
    let of_expert = |slot: Slot| arena.read(part(slot, to.changes.len(), number));
    let tiles = of_expert(slot);
    let order: Option<&[u32]> = to.base.order.map(|slot| bytemuck::cast_slice(of_expert(slot)));
    let order = order.filter(|order| order.first() != Some(&IN_ORDER));
    let of_inputs: Option<&[f32]> = to.base.factors.map(|slot| bytemuck::cast_slice(of_expert(slot)));
    let (columns, width) = (shape.columns, to.base.width());
    let tile_bytes = layout.tile_bytes(width);
    let mut factors = vec![0.0; shape.rows];
    let buffers: Mutex<Vec<[Vec<f32>; 2]>> = Mutex::new(Vec::new());
    each_row(pool, &mut factors, 1, 2 * TILE_ROWS, |row, factor| {
        let kept = buffers.lock().expect("no holder panics").pop();
        let [mut held, mut weights] = kept.unwrap_or_else(|| [vec![0.0; width], vec![0.0; columns]]);
        let tile = &tiles[row / TILE_ROWS * tile_bytes..][..tile_bytes];
        layout.unpack(width, tile, row % TILE_ROWS, &mut held);
        // What the matrix does to each of its inputs, in their order.
        weights.fill(0.0);
        for time in held.chunks_exact(columns).take(times) {
            for (column, x) in time.iter().enumerate() {
                let input = order.map_or(column, |order| order[column] as usize);
                weights[input] += x * of_inputs.map_or(1.0, |factors| factors[input]);
            }
        }
        let output = to.cut.source_row(row);
        values.add_to_row(output, &mut weights);
        factor[0] = values.factor(output, square(&weights));
        buffers.lock().expect("no holder panics").push([held, weights]);
    });
    factors
}

/// The same of a table, whose columns have lengths and not its rows.
fn factors_of_table(base: &Matrix, values: &Values, arena: &Arena<MmapMut>) -> Vec<f32> {
    let Matrix { layout, shape, slot, .. } = *base;
    let (tiles, tile_bytes) = (arena.read(slot), layout.tile_bytes(shape.columns));
    let (mut row, mut squares) = (vec![0.0; shape.columns], vec![0.0; shape.columns]);
    for token in 0..shape.rows {
        let tile = &tiles[token / TILE_ROWS * tile_bytes..][..tile_bytes];
        layout.unpack(shape.columns, tile, token % TILE_ROWS, &mut row);
        values.add_to_input(token, &mut row);
        squares.iter_mut().zip(&row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    squares.iter().enumerate().map(|(output, square)| values.factor(output, *square)).collect()
}
