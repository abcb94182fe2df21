//! What a planner asks of a card, measured on it.

use std::time::Instant;

use bantam_core::layouts::{INT8_ROWS, TILE_ROWS};
use bantam_core::{Backend, Region, Slot};
use bantam_model::placement::CardRates;
use bantam_model::speed::Spread;

use crate::desk::{Desk, Extent, Unmeasured};
use crate::driver;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Size {
    extent: Extent,
    /// Rows of a matrix.
    rows: usize,
    kernels: usize,
    /// Times that something short is done.
    times: usize,
    rounds: usize,
}

const FULL: Size = Size {
    extent: Extent { weights: 640 << 20, copied: 256 << 20, tokens: 512, columns: 4096, out: 512 * 16_384 },
    rows: 16_384,
    kernels: 400,
    times: 50,
    rounds: 5,
};
/// For a card with little room; larger than its caches all the same.
const HALF: Size = Size { extent: Extent { weights: 256 << 20, copied: 64 << 20, ..FULL.extent }, ..FULL };
/// For one that takes its time, which is no card but a stand-in.
const TINY: Size = Size {
    extent: Extent { weights: 1 << 16, copied: 1 << 14, tokens: 16, columns: 128, out: 1 << 13 },
    rows: 64,
    kernels: 10,
    times: 2,
    rounds: 1,
};
/// Seconds of its product by which such a one is known: a card needs some microseconds.
const SLOW: f64 = 3e-4;

impl Size {
    /// Bytes of a card, about.
    fn bytes(&self) -> usize {
        let Extent { weights, copied, tokens, columns, out } = self.extent;
        weights + 2 * copied + 4 * (2 * tokens * columns + out)
    }
}

/// Measures the card with this number, in seconds, with memory that it gives back.
pub fn rates(number: usize) -> Result<CardRates, Unmeasured> {
    let mut tiny = Desk::new(number, TINY.extent)?;
    let matrices = tiny.matrices(INT8_ROWS, TINY.rows);
    let tokens = TINY.extent.tokens;
    // What is done for the first time takes longer.
    tiny.seconds(tokens, &matrices[..1])?;
    if tiny.seconds(tokens, &matrices[..1])? > SLOW {
        return of(&mut tiny, TINY);
    }
    drop(tiny);
    let free = driver::Card::open(number)?.memory()?.0;
    let size = if free / 2 > FULL.bytes() { FULL } else { HALF };
    of(&mut Desk::new(number, size.extent)?, size)
}

fn of(desk: &mut Desk, size: Size) -> Result<CardRates, Unmeasured> {
    let Size { extent, rows, kernels, times, rounds } = size;
    let matrices = desk.matrices(INT8_ROWS, rows.max(TILE_ROWS));
    let weights = (rows * extent.columns) as f64;
    let sizes = [extent.tokens / 8, extent.tokens];
    let mut found: [Vec<f64>; 7] = Default::default();
    for round in 0..=rounds {
        let one = desk.seconds(1, &matrices)? / matrices.len() as f64;
        let many = [desk.seconds(sizes[0], &matrices[..1])?, desk.seconds(sizes[1], &matrices[..1])?];
        let values = [
            desk.copy_rate()?,
            matrices[0].slot.bytes as f64 / one,
            extent.copied as f64 / desk.backend().upload_seconds(Region::Cache, extent.copied)?,
            exchange(desk, times)?,
            kernel(desk, kernels)?,
            2.0 * weights * sizes[0] as f64 / many[0],
            2.0 * weights * sizes[1] as f64 / many[1],
        ];
        // The first round wakes the card.
        if round > 0 {
            found.iter_mut().zip(values).for_each(|(found, value)| found.push(value));
        }
    }
    let [copy, read, upload, exchange, kernel, few, many] = found.map(|values| Spread::of(&values).median);
    Ok(CardRates { copy, read, upload, exchange, kernel, many: [(sizes[0], few), (sizes[1], many)] })
}

/// Half of the seconds that floats take to the card, through a kernel and back.
fn exchange(desk: &mut Desk, times: usize) -> Result<f64, Unmeasured> {
    const FLOATS: usize = 32;
    let slot = Slot { region: Region::Work, offset: 0, bytes: 4 * FLOATS };
    let values = [1.0f32; FLOATS];
    let start = Instant::now();
    for _ in 0..times {
        desk.backend().upload(Region::Work, 0, bytemuck::cast_slice(&values));
        desk.backend().cap(1.0, 1, FLOATS, slot);
        desk.backend().fetch(slot, &mut |_, values| {
            std::hint::black_box(values);
        });
    }
    desk.check()?;
    Ok(start.elapsed().as_secs_f64() / (2 * times) as f64)
}

fn kernel(desk: &mut Desk, count: usize) -> Result<f64, Unmeasured> {
    let slot = Slot { region: Region::Work, offset: 0, bytes: 4 * 32 };
    let seconds = desk.backend().seconds(|card| (0..count).for_each(|_| card.cap(1.0, 1, 32, slot)))?;
    Ok(seconds / count as f64)
}
