//! Attention over a cache of keys and values in pages.
//!
//! Pages are drawn in `layouts/page.rs`.
//!
//! Softmax runs page by page with a running maximum. A row (one query head of one token) sees its pages in ascending
//! order and its positions in ascending order, whatever other rows stand beside it: its result depends on the stored
//! keys and values alone, not on chunks, batch or threads.

use super::math::{exp, largest, sum};
use super::share::Shared;
use super::vector::{Kernel, Vector, launch, unroll};
use crate::backend::{Attention, Batch, KvCache};
use crate::cpu::Cpu;
use crate::layouts::page::{KvKind, POSITIONS, PageShape, store};
use crate::ops::crew::Pool;

/// The widest head that the kernel's registers and stack are laid out for.
pub const HEAD_WIDTH_MAX: usize = 512;

/// Stores the keys and values of a batch (`rows x heads x width`) in their pages.
pub fn store_batch<P: Pool>(
    pool: &P,
    cache: &KvCache,
    memory: &mut [u8],
    batch: &Batch,
    keys: &[f32],
    values: &[f32],
) {
    let (width, bytes) = (cache.shape.width, cache.shape.bytes());
    let stride = cache.heads * width;
    let memory = Shared::new(memory);
    let work = |head: usize| {
        for feed in batch.feeds {
            let pages = batch.pages(feed);
            for i in 0..feed.rows {
                let position = feed.first_position + i;
                let at = pages[position / POSITIONS] as usize * cache.page_bytes() + head * bytes;
                let x = (feed.first_row + i) * stride + head * width;
                // SAFETY: a head's part of a page is touched by that head's task alone.
                let page = unsafe { memory.part(at, bytes) };
                store(cache.shape, page, position % POSITIONS, &keys[x..x + width], &values[x..x + width]);
            }
        }
    };
    if batch.rows() < 8 {
        (0..cache.heads).for_each(work);
    } else {
        pool.run(cache.heads, &work);
    }
}

/// Rows (query heads of tokens) that one task computes for one key head.
const TASK_ROWS: usize = 64;

/// Attention of a batch: every feed, key head and block of rows is a task of its own.
#[allow(clippy::too_many_arguments)] // The operands of one operation, each with its own memory.
pub fn attend_batch<P: Pool>(
    cpu: Cpu,
    pool: &P,
    attention: &Attention,
    sinks: Option<&[f32]>,
    cache: &KvCache,
    memory: &[u8],
    batch: &Batch,
    queries: &[f32],
    out: &mut [f32],
) {
    batch.check();
    let heads = attention.heads;
    assert!(heads.count.is_multiple_of(cache.heads) && heads.width == cache.shape.width);
    let group = heads.count / cache.heads;
    let stride = heads.channels();
    let out = Shared::new(out);
    let blocks = |rows: usize| (rows * group).div_ceil(TASK_ROWS);
    let total: usize = batch.feeds.iter().map(|feed| blocks(feed.rows)).sum();
    pool.run(total * cache.heads, &|task| {
        let (mut block, head) = (task / cache.heads, task % cache.heads);
        let mut feeds = batch.feeds.iter();
        let mut feed = feeds.next().expect("there is a feed for every block");
        while block >= blocks(feed.rows) {
            block -= blocks(feed.rows);
            feed = feeds.next().expect("there is a feed for every block");
        }
        let job = HeadJob {
            shape: cache.shape,
            cache: memory,
            pages: batch.pages(feed),
            page_stride: cache.page_bytes(),
            head_offset: head * cache.shape.bytes(),
            queries,
            first_token: feed.first_row,
            token_stride: stride,
            group,
            first_head: head * group,
            first_position: feed.first_position,
            rows: (block * TASK_ROWS, ((block + 1) * TASK_ROWS).min(feed.rows * group)),
            window: attention.window.unwrap_or(usize::MAX),
            scale: attention.scale,
            softcap: attention.softcap.unwrap_or(0.0),
            sinks,
            out,
        };
        // SAFETY: tasks have rows of their own.
        unsafe { attend(cpu, &job) };
    });
}

/// One head's queries over one sequence: what a task of the attention operation computes.
pub struct HeadJob<'a> {
    /// Shape of the pages.
    pub shape: PageShape,
    /// All pages of this layer and head region; page `p` of the sequence lies at `page_offset(pages[p])`.
    pub cache: &'a [u8],
    /// The sequence's page numbers, ascending in position.
    pub pages: &'a [u32],
    /// Bytes from one page number to the next, and the offset of this layer and head within a page.
    pub page_stride: usize,
    /// See `page_stride`.
    pub head_offset: usize,
    /// Query rows: row `i` is token `first_token + i / group`, query head `first_head + i % group`.
    pub queries: &'a [f32],
    /// See `queries`.
    pub first_token: usize,
    /// Floats from one token's queries to the next.
    pub token_stride: usize,
    /// Query heads that share this key head, and the first of them.
    pub group: usize,
    /// See `group`.
    pub first_head: usize,
    /// Position of `first_token`.
    pub first_position: usize,
    /// Rows to compute: `rows.0..rows.1`.
    pub rows: (usize, usize),
    /// Positions that a row sees, its own included; `usize::MAX` for all.
    pub window: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Scores are bent by `cap * tanh(score / cap)` where this is not zero.
    pub softcap: f32,
    /// A score per query head that takes part in the softmax and carries no value.
    pub sinks: Option<&'a [f32]>,
    /// Where results go, in the layout of `queries`.
    pub out: Shared<'a, f32>,
}

/// Computes a [`HeadJob`].
///
/// # Safety
/// No other thread may touch the rows of `out` that the job writes.
pub unsafe fn attend(cpu: Cpu, job: &HeadJob) {
    assert!(
        job.shape.width <= HEAD_WIDTH_MAX,
        "heads wider than {HEAD_WIDTH_MAX} channels are not supported"
    );
    launch(cpu, Rows(job));
}

struct Rows<'a, 'b>(&'a HeadJob<'b>);

impl Kernel for Rows<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (mut at, end) = self.0.rows;
        // SAFETY: launched with a proven vector; the rows are the caller's alone.
        unsafe {
            while at < end {
                if end - at >= V::QUERIES {
                    match V::QUERIES {
                        6 => tile::<V, 6>(self.0, at),
                        4 => tile::<V, 4>(self.0, at),
                        _ => tile::<V, 2>(self.0, at),
                    }
                    at += V::QUERIES;
                } else {
                    tile::<V, 1>(self.0, at);
                    at += 1;
                }
            }
        }
    }
}

/// The running state of one row.
#[derive(Clone, Copy)]
struct RowState {
    highest: f32,
    total: f32,
    out: [f32; HEAD_WIDTH_MAX],
}

/// The positions of a page that a row sees.
#[derive(Clone, Copy)]
struct Span {
    from: usize,
    to: usize,
}

#[inline(always)]
unsafe fn tile<V: Vector, const R: usize>(job: &HeadJob, first_row: usize) {
    let width = job.shape.width;
    let mut states = [RowState { highest: f32::NEG_INFINITY, total: 0.0, out: [0.0; HEAD_WIDTH_MAX] }; R];
    let mut seen = [Span { from: 0, to: 0 }; R];
    let mut offsets = [0usize; R];
    for r in 0..R {
        let (token, head) = ((first_row + r) / job.group, job.first_head + (first_row + r) % job.group);
        offsets[r] = (job.first_token + token) * job.token_stride + head * width;
        let to = job.first_position + token + 1;
        seen[r] = Span { from: to.saturating_sub(job.window), to };
        if let Some(sinks) = job.sinks {
            // The sink takes part as a position of its own, before all others.
            states[r].highest = sinks[head];
            states[r].total = 1.0;
        }
    }
    let queries: [&[f32]; R] = core::array::from_fn(|r| &job.queries[offsets[r]..offsets[r] + width]);
    let first_page = seen.iter().map(|span| span.from).min().map_or(0, |from| from / POSITIONS);
    let end_page = seen.iter().map(|span| span.to).max().map_or(0, |to| to.div_ceil(POSITIONS));
    for page in first_page..end_page {
        let at = job.pages[page] as usize * job.page_stride + job.head_offset;
        let bytes = &job.cache[at..at + job.shape.bytes()];
        let start = page * POSITIONS;
        let spans = seen.map(|span| Span {
            from: span.from.saturating_sub(start).min(POSITIONS),
            to: span.to.saturating_sub(start).min(POSITIONS),
        });
        // SAFETY: the page has the bytes of its shape; the spans lie inside it.
        unsafe {
            if spans.iter().all(|span| span.from < span.to) {
                step::<V, R>(job, bytes, &queries, &spans, &mut states);
            } else {
                // Some rows do not see this page at all; the others go alone. Same arithmetic, row by row.
                for r in 0..R {
                    if spans[r].from < spans[r].to {
                        step::<V, 1>(job, bytes, &[queries[r]], &[spans[r]], &mut states[r..]);
                    }
                }
            }
        }
    }
    for r in 0..R {
        // SAFETY: rows are distinct, and the caller promised that they are ours.
        let out = unsafe { job.out.part(offsets[r], width) };
        let inverse = 1.0 / states[r].total;
        for (out, x) in out.iter_mut().zip(&states[r].out) {
            *out = x * inverse;
        }
    }
}

/// Reads stored codes as float32 lanes.
trait Codes {
    const BYTES: usize;
    unsafe fn load<V: Vector>(from: *const u8) -> V;
}
struct F32Codes;
struct F16Codes;
struct Int8Codes;
impl Codes for F32Codes {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's pointer is valid for the lanes.
        unsafe { V::load(from.cast()) }
    }
}
impl Codes for F16Codes {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's pointer is valid for the lanes.
        unsafe { V::load_f16(from.cast()) }
    }
}
impl Codes for Int8Codes {
    const BYTES: usize = 1;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's pointer is valid for the lanes.
        unsafe { V::load_i8(from.cast()) }
    }
}

#[inline(always)]
unsafe fn step<V: Vector, const R: usize>(
    job: &HeadJob,
    page: &[u8],
    queries: &[&[f32]; R],
    spans: &[Span; R],
    states: &mut [RowState],
) {
    // SAFETY: passed on.
    unsafe {
        match job.shape.kind {
            KvKind::F32 => step_of::<V, F32Codes, R>(job, page, queries, spans, states),
            KvKind::F16 => step_of::<V, F16Codes, R>(job, page, queries, spans, states),
            KvKind::Int8 => step_of::<V, Int8Codes, R>(job, page, queries, spans, states),
        }
    }
}

/// Scores, softmax and values of one page for `R` rows.
#[inline(always)]
unsafe fn step_of<V: Vector, C: Codes, const R: usize>(
    job: &HeadJob,
    page: &[u8],
    queries: &[&[f32]; R],
    spans: &[Span; R],
    states: &mut [RowState],
) {
    let shape = job.shape;
    let (keys, values) = page.split_at(shape.value_offset());
    let scales = |side: &'_ [u8], codes: usize| side[codes..].as_ptr().cast::<f32>();
    let mut weights = [[0.0f32; POSITIONS]; R];
    // SAFETY: `scores` and `accumulate` stay inside the page by its shape; the scales of int8 lie behind the codes,
    // one per position; all arrays hold POSITIONS values, a multiple of every vector's lanes.
    unsafe {
        scores::<V, C, R>(keys.as_ptr(), shape.width, queries, &mut weights);
        for r in 0..R {
            let state = &mut states[r];
            let row = &mut weights[r];
            let key_scales = (shape.kind == KvKind::Int8).then(|| scales(keys, shape.key_bytes()));
            let value_scales = (shape.kind == KvKind::Int8).then(|| scales(values, shape.value_bytes()));
            for at in (0..POSITIONS).step_by(V::LANES) {
                let mut score = V::load(row.as_ptr().add(at)).mul(V::splat(job.scale));
                if let Some(key_scales) = key_scales {
                    score = score.mul(V::load(key_scales.add(at)));
                }
                if job.softcap != 0.0 {
                    score = super::math::tanh(score.div(V::splat(job.softcap))).mul(V::splat(job.softcap));
                }
                score.store(row.as_mut_ptr().add(at));
            }
            row[..spans[r].from].fill(f32::NEG_INFINITY);
            row[spans[r].to..].fill(f32::NEG_INFINITY);
            let correction = soften::<V>(row, state);
            if correction != 1.0 {
                let factor = V::splat(correction);
                for at in (0..shape.padded_width()).step_by(V::LANES) {
                    let out = state.out.as_mut_ptr().add(at);
                    V::load(out).mul(factor).store(out);
                }
            }
            if let Some(value_scales) = value_scales {
                for at in (0..POSITIONS).step_by(V::LANES) {
                    let p = row.as_mut_ptr().add(at);
                    V::load(p).mul(V::load(value_scales.add(at))).store(p);
                }
            }
        }
        weigh::<V, C, R>(values.as_ptr(), shape.padded_width(), &weights, spans, states);
    }
}

/// Raw scores of all positions of a page: lanes are positions, summed along channels.
#[inline(always)]
unsafe fn scores<V: Vector, C: Codes, const R: usize>(
    keys: *const u8,
    width: usize,
    queries: &[&[f32]; R],
    out: &mut [[f32; POSITIONS]; R],
) {
    for pass in (0..POSITIONS).step_by(4 * V::LANES) {
        // SAFETY: channel `c` has POSITIONS codes at `c * POSITIONS`; queries have `width` values.
        unsafe {
            let mut acc = [[V::splat(0.0); 4]; R];
            for c in 0..width {
                let from = keys.add((c * POSITIONS + pass) * C::BYTES);
                let mut key = [V::splat(0.0); 4];
                unroll!(4: v < 4, { key[v] = C::load(from.add(v * V::LANES * C::BYTES)); });
                unroll!(6: r < R, {
                    let query = V::splat(*queries[r].get_unchecked(c));
                    unroll!(4: v < 4, { acc[r][v] = key[v].mul_add(query, acc[r][v]); });
                });
            }
            unroll!(6: r < R, {
                let row = out[r].as_mut_ptr().add(pass);
                unroll!(4: v < 4, { acc[r][v].store(row.add(v * V::LANES)); });
            });
        }
    }
}

/// Turns scores into weights relative to the highest score so far. Returns the factor that earlier results of the row
/// must be multiplied by.
#[inline(always)]
unsafe fn soften<V: Vector>(row: &mut [f32; POSITIONS], state: &mut RowState) -> f32 {
    let start = row.as_mut_ptr();
    // SAFETY: POSITIONS is a multiple of the lanes.
    unsafe {
        let mut peak = V::load(start);
        for at in (V::LANES..POSITIONS).step_by(V::LANES) {
            peak = peak.max(V::load(start.add(at)));
        }
        let highest = state.highest.max(largest(peak));
        let mut lanes = [state.highest - highest; 16];
        exp(V::load(lanes.as_ptr())).store(lanes.as_mut_ptr());
        let correction = lanes[0];
        let mut total = V::splat(0.0);
        for at in (0..POSITIONS).step_by(V::LANES) {
            let weight = exp(V::load(start.add(at)).sub(V::splat(highest)));
            weight.store(start.add(at));
            total = total.add(weight);
        }
        state.total = state.total * correction + sum(total);
        state.highest = highest;
        correction
    }
}

/// Adds weighted values to each row, every row over its own span in ascending order.
#[inline(always)]
unsafe fn weigh<V: Vector, C: Codes, const R: usize>(
    values: *const u8,
    padded: usize,
    weights: &[[f32; POSITIONS]; R],
    spans: &[Span; R],
    states: &mut [RowState],
) {
    let common = spans
        .iter()
        .fold(Span { from: 0, to: POSITIONS }, |a, b| Span { from: a.from.max(b.from), to: a.to.min(b.to) });
    let together = R > 1 && common.from < common.to;
    // Before the common part, the common part, after it. One call for each shape, so that all of it stays inlined.
    for phase in 0..3 {
        if phase == 1 {
            if together {
                // SAFETY: spans lie inside the page.
                unsafe { accumulate::<V, C, R>(values, padded, weights, common, states) };
            }
            continue;
        }
        for (r, span) in spans.iter().enumerate() {
            let alone = match (phase, together) {
                (0, true) => Span { from: span.from, to: common.from },
                (0, false) => *span,
                (_, true) => Span { from: common.to, to: span.to },
                (_, false) => Span { from: 0, to: 0 },
            };
            // SAFETY: as above.
            unsafe { accumulate::<V, C, 1>(values, padded, &weights[r..=r], alone, &mut states[r..=r]) };
        }
    }
}

#[inline(always)]
unsafe fn accumulate<V: Vector, C: Codes, const R: usize>(
    values: *const u8,
    padded: usize,
    weights: &[[f32; POSITIONS]],
    span: Span,
    states: &mut [RowState],
) {
    if span.from >= span.to {
        return;
    }
    assert!(weights.len() == R && states.len() >= R);
    let mut channel = 0;
    // SAFETY: channels stay below the padded width, positions inside the page.
    unsafe {
        while channel + 4 * V::LANES <= padded {
            channels::<V, C, R, 4>(values, padded, channel, weights, span, states);
            channel += 4 * V::LANES;
        }
        while channel < padded {
            channels::<V, C, R, 1>(values, padded, channel, weights, span, states);
            channel += V::LANES;
        }
    }
}

/// `N` vectors of channels from `channel`, positions `from..to`.
#[inline(always)]
unsafe fn channels<V: Vector, C: Codes, const R: usize, const N: usize>(
    values: *const u8,
    padded: usize,
    channel: usize,
    weights: &[[f32; POSITIONS]],
    span: Span,
    states: &mut [RowState],
) {
    // SAFETY: as in `accumulate`; `states` has R rows.
    unsafe {
        let mut acc = [[V::splat(0.0); N]; R];
        unroll!(6: r < R, {
            unroll!(4: v < N, {
                acc[r][v] = V::load(states.get_unchecked(r).out.as_ptr().add(channel + v * V::LANES))
            });
        });
        for position in span.from..span.to {
            let at = values.add((position * padded + channel) * C::BYTES);
            let mut value = [V::splat(0.0); N];
            unroll!(4: v < N, { value[v] = C::load(at.add(v * V::LANES * C::BYTES)); });
            unroll!(6: r < R, {
                let weight = V::splat(*weights.get_unchecked(r).get_unchecked(position));
                unroll!(4: v < N, { acc[r][v] = value[v].mul_add(weight, acc[r][v]); });
            });
        }
        unroll!(6: r < R, {
            unroll!(4: v < N, {
                acc[r][v].store(states.get_unchecked_mut(r).out.as_mut_ptr().add(channel + v * V::LANES))
            });
        });
    }
}

#[cfg(test)]
mod tests;
