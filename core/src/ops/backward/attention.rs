//! Attention over whole documents, forwards and backwards: what training needs, where nothing is read from a cache.
//!
//! Rows are tokens of one document after another; a token sees those before it in its own, as far as the window goes.
//! Forward keeps one number per row and head, the logarithm of the sum that the softmax divides by, from which backward
//! makes the shares again: no matrix of scores is ever there.
//!
//! Documents being whole, a head's keys stand in rows and not in pages; the sums therefore run in another order than
//! those of the cached attention, which is why the two are apart.

use crate::cpu::Cpu;
use crate::ops::crew::Pool;
use crate::ops::math::{Lanewise, exp, load_padded, map_in_place, sum};
use crate::ops::share::Shared;
use crate::ops::vector::{Kernel, Vector, launch};

/// What attention is, beside its operands.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub width: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Positions that a token sees, its own included.
    pub window: Option<usize>,
    /// Bends scores by `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// One score per query head, of which nothing comes.
    pub sinks: Option<&'a [f32]>,
    /// Rows of each document, in their order.
    pub documents: &'a [usize],
}

impl Shape<'_> {
    fn rows(&self) -> usize {
        self.documents.iter().sum()
    }

    /// Scratch floats of both directions.
    pub fn scratch_floats(&self) -> usize {
        3 * self.heads * self.documents.iter().max().copied().unwrap_or(0)
    }

    /// Every row, after the first that it sees.
    #[inline(always)]
    fn seen(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let documents = self.documents.iter().scan(0, |end, &rows| {
            let start = *end;
            *end += rows;
            Some(start..*end)
        });
        documents.flat_map(move |rows| {
            let start = rows.start;
            let first = move |row: usize| match self.window {
                Some(window) => start.max((row + 1).saturating_sub(window)),
                None => start,
            };
            rows.map(move |row| (first(row), row))
        })
    }
}

/// Queries, keys and values, rows one after another.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `heads x width` channels.
    pub queries: &'a [f32],
    /// `kv_heads x width` channels.
    pub keys: &'a [f32],
    /// The same.
    pub values: &'a [f32],
}

/// Writes what every row gathers, and the logarithm of the softmax's sum, `rows` of them for each head.
pub fn attend<P: Pool>(
    cpu: Cpu,
    pool: &P,
    shape: &Shape,
    x: Operands,
    out: &mut [f32],
    logs: &mut [f32],
    scratch: &mut [f32],
) {
    let rows = shape.rows();
    assert!(logs.len() == shape.heads * rows && out.len() == rows * shape.heads * shape.width);
    let room = scratch.len() / shape.heads;
    let (out, logs, scratch) = (Shared::new(out), Shared::new(logs), Shared::new(scratch));
    pool.run(shape.heads, &|head| {
        // SAFETY: every head has its own logarithms and scratch.
        let (logs, scores) = unsafe { (logs.part(head * rows, rows), scratch.part(head * room, room)) };
        launch(cpu, Forward { shape, x, head, out, logs, scores });
    });
}

struct Forward<'a> {
    shape: &'a Shape<'a>,
    x: Operands<'a>,
    head: usize,
    out: Shared<'a, f32>,
    logs: &'a mut [f32],
    scores: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Forward { shape, x, head, out, logs, scores } = self;
        let sink = shape.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        for (first, row) in shape.seen() {
            let scores = &mut scores[..=row - first];
            // SAFETY: launched with a proven vector; this row of this head is written here alone.
            unsafe {
                score::<V>(shape, &x, head, first, row, scores);
                let most = scores.iter().fold(sink, |most, score| most.max(*score));
                map_in_place::<V>(scores, &Exponential(most));
                let rest = libm::exp(f64::from(sink) - f64::from(most));
                let total = rest + scores.iter().map(|share| f64::from(*share)).sum::<f64>();
                logs[row] = (f64::from(most) + libm::log(total)) as f32;
                let out = out.part((row * shape.heads + head) * shape.width, shape.width);
                out.fill(0.0);
                for (at, share) in scores.iter().enumerate() {
                    let value = kv_row(shape, x.values, first + at, head);
                    add::<V>(*share / total as f32, value, out);
                }
            }
        }
    }
}

/// Gradients of the operands; all are written.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Like [`Operands::queries`].
    pub queries: &'a mut [f32],
    /// Like [`Operands::keys`].
    pub keys: &'a mut [f32],
    /// Like [`Operands::values`].
    pub values: &'a mut [f32],
    /// One for each query head, added to what is there.
    pub sinks: Option<&'a mut [f32]>,
}

/// From `dy`, the gradient of what rows gathered, to those of the operands. `logs` are forward's.
#[allow(clippy::too_many_arguments, reason = "who computes, the operands, and the memory")]
pub fn attend_backward<P: Pool>(
    cpu: Cpu,
    pool: &P,
    shape: &Shape,
    x: Operands,
    logs: &[f32],
    dy: &[f32],
    d: Gradients,
    scratch: &mut [f32],
) {
    let group = shape.heads / shape.kv_heads;
    let room = scratch.len() / shape.heads;
    d.keys.fill(0.0);
    d.values.fill(0.0);
    let sinks = d.sinks.map(Shared::new);
    let (queries, keys, values) = (Shared::new(d.queries), Shared::new(d.keys), Shared::new(d.values));
    let scratch = Shared::new(scratch);
    // Heads of a group share keys and values, whose gradients are added up in the heads' order.
    pool.run(shape.kv_heads, &|kv_head| {
        for head in kv_head * group..(kv_head + 1) * group {
            // SAFETY: every head has its own scratch.
            let scores = unsafe { scratch.part(head * room, room) };
            let d = [queries, keys, values];
            launch(cpu, Backward { shape, x, logs, dy, head, d, sinks, scores });
        }
    });
}

struct Backward<'a> {
    shape: &'a Shape<'a>,
    x: Operands<'a>,
    logs: &'a [f32],
    dy: &'a [f32],
    head: usize,
    /// Of queries, keys, values.
    d: [Shared<'a, f32>; 3],
    sinks: Option<Shared<'a, f32>>,
    scores: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Backward { shape, x, logs, dy, head, d: [dqueries, dkeys, dvalues], sinks, scores } = self;
        let (width, rows) = (shape.width, shape.rows());
        let kv_head = head / (shape.heads / shape.kv_heads);
        let mut dsink = 0.0f64;
        for (first, row) in shape.seen() {
            let seen = row - first + 1;
            let (scores, rest) = scores.split_at_mut(seen);
            let (alongs, bends) = rest.split_at_mut(seen);
            let at = (row * shape.heads + head) * width;
            let (query, dy) = (&x.queries[at..][..width], &dy[at..][..width]);
            let log = logs[head * rows + row];
            // SAFETY: launched with a proven vector; the gradients of this head, and of its keys and values, are
            // written by one task.
            unsafe {
                score::<V>(shape, &x, head, first, row, scores);
                let bends = shape.softcap.map(|_| {
                    let bends = &mut bends[..seen];
                    bends.copy_from_slice(scores);
                    bends
                });
                map_in_place::<V>(scores, &Exponential(log));
                // Shares of one row, made to add up: the gradients of its scores then cancel, as they must where a
                // bias of all keys changes nothing.
                let sink =
                    shape.sinks.map_or(0.0, |sinks| libm::exp(f64::from(sinks[head]) - f64::from(log)));
                let total = sink + scores.iter().map(|share| f64::from(*share)).sum::<f64>();
                let mut mean = 0.0f64;
                for (n, share) in scores.iter_mut().enumerate() {
                    *share = (f64::from(*share) / total) as f32;
                    alongs[n] = dot::<V>(dy, kv_row(shape, x.values, first + n, head));
                    mean += f64::from(*share) * f64::from(alongs[n]);
                }
                dsink -= sink / total * mean;
                let dquery = dqueries.part(at, width);
                dquery.fill(0.0);
                for (n, share) in scores.iter().enumerate() {
                    let kv_at = ((first + n) * shape.kv_heads + kv_head) * width;
                    add::<V>(*share, dy, dvalues.part(kv_at, width));
                    let bend = match (&bends, shape.softcap) {
                        (Some(bends), Some(cap)) => 1.0 - (bends[n] / cap) * (bends[n] / cap),
                        _ => 1.0,
                    };
                    let d = share * (f64::from(alongs[n]) - mean) as f32 * bend * shape.scale;
                    add::<V>(d, &x.keys[kv_at..][..width], dquery);
                    add::<V>(d, query, dkeys.part(kv_at, width));
                }
            }
        }
        if let Some(sinks) = sinks {
            // SAFETY: every head has its own.
            let sink = unsafe { sinks.part(head, 1) };
            sink[0] += dsink as f32;
        }
    }
}

/// Scores of a row, scaled and bent.
#[inline(always)]
unsafe fn score<V: Vector>(
    shape: &Shape,
    x: &Operands,
    head: usize,
    first: usize,
    row: usize,
    scores: &mut [f32],
) {
    let query = &x.queries[(row * shape.heads + head) * shape.width..][..shape.width];
    for (at, score) in scores.iter_mut().enumerate() {
        // SAFETY: as the caller promises.
        *score = unsafe { dot::<V>(query, kv_row(shape, x.keys, first + at, head)) } * shape.scale;
    }
    if let Some(cap) = shape.softcap {
        scores.iter_mut().for_each(|score| *score = cap * libm::tanhf(*score / cap));
    }
}

/// A row of keys or values, of the head that a query head reads.
#[inline(always)]
fn kv_row<'a>(shape: &Shape, x: &'a [f32], row: usize, head: usize) -> &'a [f32] {
    let head = head / (shape.heads / shape.kv_heads);
    &x[(row * shape.kv_heads + head) * shape.width..][..shape.width]
}

#[inline(always)]
unsafe fn dot<V: Vector>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: `load_padded` stays inside the slices.
    unsafe {
        let mut lanes = V::splat(0.0);
        for at in (0..a.len()).step_by(V::LANES) {
            lanes = load_padded::<V>(a, at).mul_add(load_padded(b, at), lanes);
        }
        sum(lanes)
    }
}

/// `out += factor * x`.
#[inline(always)]
unsafe fn add<V: Vector>(factor: f32, x: &[f32], out: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { map_in_place::<V>(out, &Plus { factor, x }) }
}

struct Plus<'a> {
    factor: f32,
    x: &'a [f32],
}

impl Lanewise for Plus<'_> {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, y: V, at: usize) -> V {
        // SAFETY: `load_padded` stays inside the slice.
        unsafe { load_padded::<V>(self.x, at).mul_add(V::splat(self.factor), y) }
    }
}

/// `exp(x - most)`.
struct Exponential(f32);

impl Lanewise for Exponential {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
        // SAFETY: lane arithmetic.
        unsafe { exp(x.sub(V::splat(self.0))) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::ops::backward::tests::{check, noise};
    use crate::ops::crew::Serial;
    use std::vec;
    use std::vec::Vec;

    fn forward(cpu: Cpu, shape: &Shape, x: Operands) -> [Vec<f32>; 2] {
        let rows = shape.rows();
        let mut out = vec![f32::NAN; rows * shape.heads * shape.width];
        let mut logs = vec![f32::NAN; rows * shape.heads];
        let mut scratch = vec![f32::NAN; shape.scratch_floats()];
        attend(cpu, &Serial, shape, x, &mut out, &mut logs, &mut scratch);
        [out, logs]
    }

    fn check_shape(cpu: Cpu, shape: &Shape) {
        let rows = shape.rows();
        let (q, kv) = (rows * shape.heads * shape.width, rows * shape.kv_heads * shape.width);
        let (queries, keys, values, dy) = (noise(1, q), noise(2, kv), noise(3, kv), noise(4, q));
        let x = Operands { queries: &queries, keys: &keys, values: &values };
        let [_, logs] = forward(cpu, shape, x);
        let (mut dq, mut dk, mut dv) = (vec![f32::NAN; q], vec![f32::NAN; kv], vec![f32::NAN; kv]);
        let mut ds = vec![0.0; shape.heads];
        let sinks = shape.sinks.map(|_| &mut ds[..]);
        let d = Gradients { queries: &mut dq, keys: &mut dk, values: &mut dv, sinks };
        let mut scratch = vec![f32::NAN; shape.scratch_floats()];
        attend_backward(cpu, &Serial, shape, x, &logs, &dy, d, &mut scratch);
        let of = |x: Operands| {
            let [y, _] = forward(cpu, shape, x);
            y
        };
        check("queries", &queries, &dy, &dq, |queries| of(Operands { queries, ..x }));
        check("keys", &keys, &dy, &dk, |keys| of(Operands { keys, ..x }));
        check("values", &values, &dy, &dv, |values| of(Operands { values, ..x }));
        if let Some(sinks) = shape.sinks {
            check("sinks", sinks, &dy, &ds, |sinks| {
                let [y, _] = forward(cpu, &Shape { sinks: Some(sinks), ..*shape }, x);
                y
            });
        }
    }

    #[test]
    fn gradients_of_attention_are_differences() {
        let sinks = [0.5, -0.3, 1.0, 0.0];
        let plain = Shape {
            heads: 4,
            kv_heads: 2,
            width: 6,
            scale: 0.8,
            window: None,
            softcap: None,
            sinks: None,
            documents: &[5],
        };
        for cpu in Cpu::detect().variants() {
            check_shape(cpu, &plain);
            check_shape(cpu, &Shape { documents: &[1, 4, 3], window: Some(2), ..plain });
            check_shape(cpu, &Shape { sinks: Some(&sinks), documents: &[3, 2], ..plain });
            check_shape(cpu, &Shape { softcap: Some(0.7), kv_heads: 4, ..plain });
            check_shape(cpu, &Shape { heads: 1, kv_heads: 1, width: 17, ..plain });
        }
    }

    #[test]
    fn documents_do_not_see_one_another() {
        let shape = Shape {
            heads: 2,
            kv_heads: 1,
            width: 8,
            scale: 0.5,
            window: None,
            softcap: None,
            sinks: None,
            documents: &[3, 4],
        };
        let (q, kv) = (noise(1, 7 * 16), noise(2, 7 * 8));
        let [both, _] = forward(Cpu::detect(), &shape, Operands { queries: &q, keys: &kv, values: &kv });
        let (q, kv) = (&q[3 * 16..], &kv[3 * 8..]);
        let alone = Shape { documents: &[4], ..shape };
        let [second, _] = forward(Cpu::detect(), &alone, Operands { queries: q, keys: kv, values: kv });
        assert_eq!(both[3 * 16..], second);
    }
}
