//! The nearest codes of float32 rows: for weights that no tool has quantized.

use super::{Coded, Row, Side, TILE_ROWS, exponent};

/// Columns of a block at most.
const BLOCK_MAX: usize = 128;

/// Encodes and packs one row, block by block: the multiple of the row's scales is known after a first pass.
pub(super) fn pack_row(layout: &Coded, row: &[f32], r: usize, words: &mut [u32]) {
    let run = layout.run();
    let most = row.chunks(run).map(|values| scale(layout, values).0).fold(0.0, f32::max);
    let multiple = layout.multiple(most);
    let last = words.len() - TILE_ROWS;
    for (number, values) in row.chunks(run).enumerate() {
        let (scale, zero) = scale(layout, values);
        for (b, block) in values.chunks(layout.block).enumerate() {
            let mut codes = [0; BLOCK_MAX];
            for (code, x) in codes.iter_mut().zip(block) {
                *code = nearest(layout, if scale > 0.0 { x / scale + zero } else { zero });
            }
            // A row of one block, beside a scale that gives it the whole row's multiple.
            let one = Row { codes: &codes[..block.len()], scales: &[scale], zeros: &[zero] };
            layout.pack_block_of(&one, number * (run / layout.block) + b, multiple, r, words);
        }
    }
    words[last + r] = multiple.to_bits();
}

/// Scale and zero of values that share them.
fn scale(layout: &Coded, block: &[f32]) -> (f32, f32) {
    let peak = block.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
    let steps = ((1u32 << layout.bits) - 1) as f32;
    match (layout.side, layout.book.table) {
        (Side::Exponents, _) if peak == 0.0 => (libm::scalbnf(1.0, -127), 0.0),
        (Side::Exponents, _) => (libm::scalbnf(1.0, (exponent(peak) - 2).max(-127)), 0.0),
        (_, Some(_)) => (peak, 0.0),
        (Side::Float | Side::Zero, None) => {
            let low = block.iter().fold(0.0f32, |low, &x| low.min(x));
            let high = block.iter().fold(0.0f32, |high, &x| high.max(x));
            let scale = (high - low) / steps;
            (scale, if scale > 0.0 { libm::rintf(-low / scale) } else { 0.0 })
        }
        (_, None) => (peak / f32::from(layout.book.bias - 1).max(1.0), 0.0),
    }
}

/// The code whose value is nearest to a value in units of the scale.
fn nearest(layout: &Coded, x: f32) -> u8 {
    let book = layout.book;
    match book.table {
        Some((values, _)) => {
            let far = |code: &u8| (values[usize::from(*code)] - x).abs();
            (0..16).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(0)
        }
        None => {
            let most = if book.trits { 2.0 } else { ((1u32 << layout.bits) - 1) as f32 };
            libm::rintf(x + f32::from(book.bias)).clamp(0.0, most) as u8
        }
    }
}
