//! A product of float32 by itself: what optimizers and decompositions take that multiply, outside of a step.

use bantam_core::Cpu;
use bantam_core::layouts::Shape;
use bantam_core::layouts::panels::Form;
use bantam_core::ops::backward::numbers::Matrix;
use bantam_core::ops::backward::products::{Part, floats, multiply};
use bantam_core::ops::crew::Pool;
use bantam_model::pool::Threads;

/// Rows times a matrix. `words` is memory for it, which grows as needed.
pub(crate) fn product(
    cpu: Cpu,
    pool: &Threads,
    x: &[f32],
    matrix: Matrix,
    out: &mut [f32],
    words: &mut Vec<f32>,
) {
    let Shape { rows, columns } = matrix.shape;
    let columns = if matrix.turned { rows } else { columns };
    let needed = floats(Form::Float, columns, x.len() / columns, pool.threads());
    sized(words, words.len().max(needed));
    multiply((cpu, Form::Float), pool, x, &mut [Part { matrix, bias: None, out, add: false }], words);
}

/// Gives a buffer a length, and no more memory than that takes.
pub(crate) fn sized(buffer: &mut Vec<f32>, floats: usize) {
    buffer.reserve_exact(floats.saturating_sub(buffer.len()));
    buffer.resize(floats, 0.0);
}
