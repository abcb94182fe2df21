//! Attention over whole documents, forwards and backwards: what training needs, where nothing is read from a cache.
//!
//! Rows are tokens of one document after another; a token sees those before it in its own, as far as the window goes.
//! Forward keeps one number per row and head, the logarithm of the sum that the softmax divides by, from which backward
//! makes the shares again: no matrix of scores is ever there.
//!
//! Documents being whole, a head's keys stand in rows and not in pages; the sums therefore run in another order than
//! those of the cached attention, which is why the two are apart. Some rows are treated together, so that all there is
//! are products of small matrices, filled up with zeros to whole vectors.

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::small::{Left, MULTIPLE, multiply};
use crate::cpu::Cpu;
use crate::ops::crew::Pool;
use crate::ops::math::{Lanewise, exp, map_in_place};
use crate::ops::share::Shared;
use crate::ops::vector::{Kernel, Vector, launch};

/// Rows that are treated together.
const ROWS: usize = 32;

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

    /// Scratch floats of both directions, with so many threads.
    pub fn scratch_floats(&self, threads: usize) -> usize {
        threads.min(self.heads) * self.room().iter().sum::<usize>()
    }

    /// Rows of the longest document, filled up.
    fn longest(&self) -> usize {
        self.documents.iter().max().copied().unwrap_or(0).next_multiple_of(MULTIPLE)
    }

    /// Floats of the parts of a [`Desk`].
    fn room(&self) -> [usize; 11] {
        let (width, longest) = (self.width.next_multiple_of(MULTIPLE), self.longest());
        let (turned, straight) = (self.width * longest, width * longest);
        let (rows, scores) = (ROWS * width, ROWS * longest);
        [turned, turned, straight, straight, straight, rows, rows, rows, scores, scores, longest]
    }

    /// The rows that a row sees, of the document that begins at `start`.
    fn seen(&self, start: usize, row: usize) -> Range<usize> {
        let first = self.window.map_or(start, |window| start.max((row + 1).saturating_sub(window)));
        first..row + 1
    }

    fn documents(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.documents.iter().scan(0, |end, &rows| {
            let start = *end;
            *end += rows;
            Some(start..*end)
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
    let (out, logs) = (Shared::new(out), Shared::new(logs));
    each(pool, shape, shape.heads, scratch, |head, desk| {
        // SAFETY: every head has its own logarithms.
        let logs = unsafe { logs.part(head * rows, rows) };
        launch(cpu, Forward { shape, x, head, out, logs, desk });
    });
}

/// Goes through heads, each at a desk that nobody else is at.
fn each<P: Pool>(
    pool: &P,
    shape: &Shape,
    heads: usize,
    scratch: &mut [f32],
    work: impl Fn(usize, Desk) + Sync,
) {
    let (places, floats) = (pool.threads().min(shape.heads), shape.room().iter().sum());
    let (next, scratch) = (AtomicUsize::new(0), Shared::new(scratch));
    pool.run(places, &|place| {
        loop {
            let head = next.fetch_add(1, Relaxed);
            if head >= heads {
                return;
            }
            // SAFETY: every task has a place of its own.
            work(head, Desk::new(shape, unsafe { scratch.part(place * floats, floats) }));
        }
    });
}

/// What is needed for a head and a document. Rows have a multiple of [`MULTIPLE`] floats.
struct Desk<'a> {
    /// Channels in rows, positions in columns.
    keys_turned: &'a mut [f32],
    values_turned: &'a mut [f32],
    /// Positions in rows, of keys or values.
    straight: &'a mut [f32],
    dkeys: &'a mut [f32],
    dvalues: &'a mut [f32],
    /// Rows of a block, and what comes of them.
    queries: &'a mut [f32],
    dy: &'a mut [f32],
    sums: &'a mut [f32],
    /// Of a block's rows with all positions.
    scores: &'a mut [f32],
    alongs: &'a mut [f32],
    /// How steep the bend of each score of a row is.
    slopes: &'a mut [f32],
}

impl<'a> Desk<'a> {
    fn new(shape: &Shape, memory: &'a mut [f32]) -> Desk<'a> {
        let mut rest = memory;
        let mut take = |floats: usize| {
            let (part, after) = core::mem::take(&mut rest).split_at_mut(floats);
            rest = after;
            part
        };
        let [keys_turned, values_turned, straight, dkeys, dvalues, queries, dy, sums, scores, alongs, slopes] =
            shape.room().map(&mut take);
        Desk {
            keys_turned,
            values_turned,
            straight,
            dkeys,
            dvalues,
            queries,
            dy,
            sums,
            scores,
            alongs,
            slopes,
        }
    }
}

/// Rows of a head, one of `heads`, that stand `width` floats apart in `out` afterwards, and zeros.
#[inline(always)]
fn straighten(x: &[f32], rows: Range<usize>, heads: usize, head: usize, width: usize, out: &mut [f32]) {
    let mut out = out.chunks_exact_mut(width.next_multiple_of(MULTIPLE));
    for row in rows {
        let out = out.next().expect("there is room for every row");
        out[..width].copy_from_slice(&x[(row * heads + head) * width..][..width]);
        out[width..].fill(0.0);
    }
    out.for_each(|out| out.fill(0.0));
}

/// The same, turned over: `length` floats for every channel.
#[inline(always)]
fn turn(
    x: &[f32],
    rows: Range<usize>,
    heads: usize,
    head: usize,
    width: usize,
    length: usize,
    out: &mut [f32],
) {
    for (at, row) in rows.clone().enumerate() {
        let from = &x[(row * heads + head) * width..][..width];
        out[at..].iter_mut().step_by(length).zip(from).for_each(|(out, x)| *out = *x);
    }
    out.chunks_exact_mut(length).for_each(|channel| channel[rows.len()..].fill(0.0));
}

/// Some rows of a document, with what they see of it, counted from its beginning.
struct Block {
    rows: Range<usize>,
    /// Whole vectors, which reach beyond what is seen.
    columns: Range<usize>,
}

impl Block {
    #[inline(always)]
    fn all<'a>(shape: &'a Shape, document: &Range<usize>) -> impl Iterator<Item = Block> + 'a {
        let (start, end) = (document.start, document.end);
        (start..end).step_by(ROWS).map(move |first| {
            let rows = first..end.min(first + ROWS);
            let from = (shape.seen(start, first).start - start) / MULTIPLE * MULTIPLE;
            let to = (rows.end - start).next_multiple_of(MULTIPLE);
            Block { rows, columns: from..to }
        })
    }
}

/// The products of a block. Rows of positions have `length` floats, rows of channels `width`.
#[derive(Clone, Copy)]
struct Sizes {
    length: usize,
    width: usize,
}

impl Sizes {
    fn of(shape: &Shape) -> Sizes {
        Sizes { length: shape.longest(), width: shape.width.next_multiple_of(MULTIPLE) }
    }

    /// Rows of channels with rows of channels: a number for every position.
    #[inline(always)]
    unsafe fn meet<V: Vector>(self, block: &Block, channels: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
        let Range { start, end } = block.columns;
        let left = Left { x: a, row: self.width, step: 1 };
        let sizes = [block.rows.len(), end - start, channels];
        // SAFETY: passed on from the caller.
        unsafe {
            multiply::<V>(sizes, left, (&b[start..], self.length), (&mut out[start..], self.length), false)
        };
    }

    /// Numbers of positions with their rows of channels.
    #[inline(always)]
    unsafe fn gather<V: Vector>(self, block: &Block, a: &[f32], b: &[f32], out: &mut [f32]) {
        let Range { start, end } = block.columns;
        let left = Left { x: &a[start..], row: self.length, step: 1 };
        let sizes = [block.rows.len(), self.width, end - start];
        // SAFETY: passed on from the caller.
        unsafe {
            multiply::<V>(sizes, left, (&b[start * self.width..], self.width), (out, self.width), false)
        };
    }

    /// The same the other way: adds to positions what rows of channels give them.
    #[inline(always)]
    unsafe fn scatter<V: Vector>(self, block: &Block, a: &[f32], b: &[f32], out: &mut [f32]) {
        let Range { start, end } = block.columns;
        let left = Left { x: &a[start..], row: 1, step: self.length };
        let sizes = [end - start, self.width, block.rows.len()];
        let out = &mut out[start * self.width..];
        // SAFETY: passed on from the caller.
        unsafe { multiply::<V>(sizes, left, (b, self.width), (out, self.width), true) };
    }
}

/// In eight sums, so that they run side by side.
#[inline(always)]
fn total(x: impl ExactSizeIterator<Item = f64>) -> f64 {
    let mut sums = [0.0f64; 8];
    x.enumerate().for_each(|(at, x)| sums[at % 8] += x);
    sums.iter().sum()
}

struct Forward<'a> {
    shape: &'a Shape<'a>,
    x: Operands<'a>,
    head: usize,
    out: Shared<'a, f32>,
    logs: &'a mut [f32],
    desk: Desk<'a>,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Forward { shape, x, head, out, logs, desk } = self;
        let Shape { heads, kv_heads, width, .. } = *shape;
        let (kv_head, sizes) = (head / (heads / kv_heads), Sizes::of(shape));
        let sink = shape.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        for document in shape.documents() {
            turn(x.keys, document.clone(), kv_heads, kv_head, width, sizes.length, desk.keys_turned);
            straighten(x.values, document.clone(), kv_heads, kv_head, width, desk.straight);
            for block in Block::all(shape, &document) {
                straighten(x.queries, block.rows.clone(), heads, head, width, desk.queries);
                // SAFETY: launched with a proven vector; the rows of this head are written here alone.
                unsafe {
                    sizes.meet::<V>(&block, width, desk.queries, desk.keys_turned, desk.scores);
                    for (at, row) in block.rows.clone().enumerate() {
                        let scores = &mut desk.scores[at * sizes.length..][..sizes.length];
                        let seen = shape.seen(document.start, row);
                        let seen = seen.start - document.start..seen.end - document.start;
                        logs[row] = share::<V>(shape, &block.columns, &seen, sink, scores);
                    }
                    sizes.gather::<V>(&block, desk.scores, desk.straight, desk.sums);
                    for (row, sums) in block.rows.clone().zip(desk.sums.chunks_exact(sizes.width)) {
                        out.part((row * heads + head) * width, width).copy_from_slice(&sums[..width]);
                    }
                }
            }
        }
    }
}

/// From scores of a row to shares, zeros where it sees nothing; the logarithm of what they were divided by.
#[inline(always)]
unsafe fn share<V: Vector>(
    shape: &Shape,
    columns: &Range<usize>,
    seen: &Range<usize>,
    sink: f32,
    scores: &mut [f32],
) -> f32 {
    scores[columns.start..seen.start].fill(0.0);
    scores[seen.end..columns.end].fill(0.0);
    let scores = &mut scores[seen.clone()];
    scale(shape, scores);
    let most = scores.iter().fold(sink, |most, score| most.max(*score));
    // SAFETY: as the caller promises.
    unsafe { map_in_place::<V>(scores, &Exponential(most)) };
    let rest = libm::exp(f64::from(sink) - f64::from(most));
    let sum = rest + total(scores.iter().map(|share| f64::from(*share)));
    scores.iter_mut().for_each(|share| *share = (f64::from(*share) / sum) as f32);
    (f64::from(most) + libm::log(sum)) as f32
}

/// Scales scores, and bends them.
#[inline(always)]
fn scale(shape: &Shape, scores: &mut [f32]) {
    scores.iter_mut().for_each(|score| *score *= shape.scale);
    if let Some(cap) = shape.softcap {
        scores.iter_mut().for_each(|score| *score = cap * libm::tanhf(*score / cap));
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
    d.keys.fill(0.0);
    d.values.fill(0.0);
    let sinks = d.sinks.map(Shared::new);
    let d = [d.queries, d.keys, d.values].map(Shared::new);
    // Heads of a group share keys and values, whose gradients are added up in the heads' order.
    each(pool, shape, shape.kv_heads, scratch, |kv_head, desk| {
        launch(cpu, Backward { shape, x, logs, dy, kv_head, d, sinks, desk });
    });
}

struct Backward<'a> {
    shape: &'a Shape<'a>,
    x: Operands<'a>,
    logs: &'a [f32],
    dy: &'a [f32],
    kv_head: usize,
    /// Of queries, keys, values.
    d: [Shared<'a, f32>; 3],
    sinks: Option<Shared<'a, f32>>,
    desk: Desk<'a>,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        let Shape { heads, kv_heads, width, .. } = *self.shape;
        let (group, sizes) = (heads / kv_heads, Sizes::of(self.shape));
        for head in self.kv_head * group..(self.kv_head + 1) * group {
            let mut dsink = 0.0f64;
            for document in self.shape.documents() {
                let (of, rows) = (self.kv_head, document.clone());
                turn(self.x.keys, rows.clone(), kv_heads, of, width, sizes.length, self.desk.keys_turned);
                turn(self.x.values, rows.clone(), kv_heads, of, width, sizes.length, self.desk.values_turned);
                straighten(self.x.keys, rows.clone(), kv_heads, of, width, self.desk.straight);
                self.desk.dkeys.fill(0.0);
                self.desk.dvalues.fill(0.0);
                for block in Block::all(self.shape, &document) {
                    // SAFETY: launched with a proven vector.
                    dsink += unsafe { self.block::<V>(head, document.start, &block) };
                }
                for (d, made) in self.d[1..].iter().zip([&self.desk.dkeys, &self.desk.dvalues]) {
                    for (row, made) in rows.clone().zip(made.chunks_exact(sizes.width)) {
                        // SAFETY: keys and values of this head are written by one task.
                        let d = unsafe { d.part((row * kv_heads + of) * width, width) };
                        d.iter_mut().zip(made).for_each(|(d, made)| *d += made);
                    }
                }
            }
            if let Some(sinks) = self.sinks {
                // SAFETY: every head has its own.
                let sink = unsafe { sinks.part(head, 1) };
                sink[0] += dsink as f32;
            }
        }
    }
}

impl Backward<'_> {
    /// Some rows; returns the gradient of the sink.
    #[inline(always)]
    unsafe fn block<V: Vector>(&mut self, head: usize, start: usize, block: &Block) -> f64 {
        let Backward { shape, x, logs, dy, d, desk, .. } = self;
        let Shape { heads, width, .. } = **shape;
        let (sizes, rows, mut dsink) = (Sizes::of(shape), shape.rows(), 0.0);
        straighten(x.queries, block.rows.clone(), heads, head, width, desk.queries);
        straighten(dy, block.rows.clone(), heads, head, width, desk.dy);
        // SAFETY: passed on from the caller; the rows of this head are written here alone.
        unsafe {
            sizes.meet::<V>(block, width, desk.queries, desk.keys_turned, desk.scores);
            sizes.meet::<V>(block, width, desk.dy, desk.values_turned, desk.alongs);
            let pairs =
                desk.scores.chunks_exact_mut(sizes.length).zip(desk.alongs.chunks_exact_mut(sizes.length));
            for (row, (shares, alongs)) in block.rows.clone().zip(pairs) {
                let seen = shape.seen(start, row);
                let seen = seen.start - start..seen.end - start;
                for x in [&mut *shares, &mut *alongs] {
                    x[block.columns.start..seen.start].fill(0.0);
                    x[seen.end..block.columns.end].fill(0.0);
                }
                let (shares, alongs) = (&mut shares[seen.clone()], &mut alongs[seen]);
                let sink = shape.sinks.map(|sinks| sinks[head]);
                dsink += row_backward::<V>(shape, logs[head * rows + row], sink, shares, alongs, desk.slopes);
            }
            sizes.scatter::<V>(block, desk.scores, desk.dy, desk.dvalues);
            sizes.scatter::<V>(block, desk.alongs, desk.queries, desk.dkeys);
            sizes.gather::<V>(block, desk.alongs, desk.straight, desk.sums);
            for (row, sums) in block.rows.clone().zip(desk.sums.chunks_exact(sizes.width)) {
                d[0].part((row * heads + head) * width, width).copy_from_slice(&sums[..width]);
            }
        }
        dsink
    }
}

/// From a row's scores to its shares, and from the gradients of these, `d`, to those of the scores before they were
/// scaled; returns the gradient of the sink.
#[inline(always)]
unsafe fn row_backward<V: Vector>(
    shape: &Shape,
    log: f32,
    sink: Option<f32>,
    scores: &mut [f32],
    d: &mut [f32],
    slopes: &mut [f32],
) -> f64 {
    scale(shape, scores);
    let slopes = &mut slopes[..scores.len()];
    if let Some(cap) = shape.softcap {
        let pairs = slopes.iter_mut().zip(&*scores);
        pairs.for_each(|(slope, score)| *slope = 1.0 - (score / cap) * (score / cap));
    }
    // SAFETY: as the caller promises.
    unsafe { map_in_place::<V>(scores, &Exponential(log)) };
    // Shares of one row, made to add up: the gradients of its scores then cancel, as they must where a bias of all keys
    // changes nothing.
    let sink = sink.map_or(0.0, |sink| libm::exp(f64::from(sink) - f64::from(log)));
    let sum = sink + total(scores.iter().map(|share| f64::from(*share)));
    scores.iter_mut().for_each(|share| *share = (f64::from(*share) / sum) as f32);
    let mean = total(scores.iter().zip(&*d).map(|(share, along)| f64::from(*share) * f64::from(*along)));
    for (d, share) in d.iter_mut().zip(&*scores) {
        *d = share * (f64::from(*d) - mean) as f32 * shape.scale;
    }
    if shape.softcap.is_some() {
        d.iter_mut().zip(slopes).for_each(|(d, slope)| *d *= *slope);
    }
    -sink / sum * mean
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
        let mut scratch = vec![f32::NAN; shape.scratch_floats(1)];
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
        let mut scratch = vec![f32::NAN; shape.scratch_floats(1)];
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
        // Beyond a block, and beyond what its window sees of the one before.
        let long = Shape { heads: 1, kv_heads: 1, width: 3, documents: &[70, 2, 33], ..plain };
        check_shape(Cpu::detect(), &long);
        check_shape(Cpu::detect(), &Shape { window: Some(35), ..long });
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
