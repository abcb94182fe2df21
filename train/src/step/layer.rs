//! A layer, forwards and backwards. Forward does what the decoder does, in its order, and keeps what backward reads;
//! the decoder itself overwrites that. Nothing is kept beyond the layer but its input: backward begins with forward.

use bantam_core::ops::backward::attention::{self, Operands};
use bantam_core::ops::backward::norm::norm_row as norm_row_backward;
use bantam_core::ops::crew::Pool;
use bantam_core::ops::experts::add;
use bantam_core::ops::norm::norm_row;
use bantam_core::ops::rope;
use bantam_core::ops::share::each_row;
use bantam_model::bare::Bare;
use bantam_model::spec::{AttentionSpec, LayerSpec, Residual};

use super::gradients::Gradients;
use super::linear::{Products, Scratch, room};
use super::mixture::{self, Block};
use super::sites::{LayerSites, NormSite};

/// Rows of all documents of a batch, one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Documents<'a> {
    /// Rows of each.
    pub(crate) lengths: &'a [usize],
    /// Rows of stretches at whose beginning positions begin anew.
    pub(crate) pieces: &'a [usize],
}

impl Documents<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// What a layer's forward keeps for its backward, and gradients on their way.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    normed: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Queries and keys before their norms.
    raw: [Vec<f32>; 2],
    angles: Vec<f32>,
    attended: Vec<f32>,
    logs: Vec<f32>,
    /// Results of both blocks before their norms.
    results: [Vec<f32>; 2],
    middle: Vec<f32>,
    normed_for_mlp: Vec<f32>,
    pub(crate) block: Block,
    out: Vec<f32>,
    scores: Vec<f32>,
    dout: Vec<f32>,
    dnormed: Vec<f32>,
    dqueries: Vec<f32>,
    dkeys: Vec<f32>,
    dvalues: Vec<f32>,
    dattended: Vec<f32>,
    scratch: Scratch,
}

impl Kept {
    /// Exchanges what no layer keeps: what the next one writes over, and gradients.
    pub(crate) fn exchange(&mut self, other: &mut Kept) {
        self.block.exchange(&mut other.block);
        std::mem::swap(&mut self.scratch, &mut other.scratch);
        let Kept { out, scores, dout, dnormed, dqueries, dkeys, dvalues, dattended, .. } = self;
        let mine = [out, scores, dout, dnormed, dqueries, dkeys, dvalues, dattended];
        let Kept { out, scores, dout, dnormed, dqueries, dkeys, dvalues, dattended, .. } = other;
        let others = [out, scores, dout, dnormed, dqueries, dkeys, dvalues, dattended];
        mine.into_iter().zip(others).for_each(|(a, b)| std::mem::swap(a, b));
    }

    /// Memory of products, for those beside the layers.
    pub(crate) fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
}

/// A layer with its weights.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) products: Products<'a>,
    pub(crate) spec: &'a LayerSpec,
    pub(crate) sites: &'a LayerSites,
}

impl Layer<'_> {
    fn bare(&self) -> &Bare {
        self.products.bare
    }

    /// Runs the stream through the layer.
    pub(crate) fn forward(&self, documents: Documents, x: &mut [f32], k: &mut Kept) {
        self.run(documents, x, true, k);
        self.add_result(1, x, k);
    }

    /// The same once more, for what it keeps: the stream is not brought to its end.
    pub(crate) fn again(&self, documents: Documents, x: &mut [f32], k: &mut Kept) {
        let is_normed = self.sites.post_norms.is_some();
        self.run(documents, x, is_normed, k);
        if is_normed {
            self.add_result(1, x, k);
        }
    }

    /// As far as the second block's result, if that is wanted.
    fn run(&self, documents: Documents, x: &mut [f32], to_end: bool, k: &mut Kept) {
        let (sites, size) = (self.sites, x.len());
        let normed = room(&mut k.normed, size);
        norm(self.bare(), &sites.attention_norm, x, normed);
        let normed_for_mlp = room(&mut k.normed_for_mlp, size);
        if self.spec.residual == Residual::Parallel {
            norm(self.bare(), &sites.mlp_norm, x, normed_for_mlp);
        }
        self.attention(documents, x.len(), k);
        self.add_result(0, x, k);
        room(&mut k.middle, size).copy_from_slice(x);
        if self.spec.residual == Residual::Sequential {
            norm(self.bare(), &sites.mlp_norm, x, &mut k.normed_for_mlp[..size]);
        }
        let out = room(&mut k.out, size);
        let input = &k.normed_for_mlp[..size];
        let out = Some(out).filter(|_| to_end);
        mixture::forward(&self.products, self.spec, sites, input, &mut k.block, out, &mut k.scratch);
    }

    /// Adds a block's result to the stream, normed where that is.
    fn add_result(&self, block: usize, x: &mut [f32], k: &mut Kept) {
        let out = &mut k.out[..x.len()];
        if let Some(norms) = &self.sites.post_norms {
            let raw = room(&mut k.results[block], x.len());
            raw.copy_from_slice(out);
            norm(self.bare(), &norms[block], raw, out);
        }
        add(self.bare().cpu, x, out);
    }

    fn shape<'a>(&'a self, documents: &Documents<'a>) -> attention::Shape<'a> {
        let AttentionSpec { heads, kv_heads, head_width, scale, cap, window, .. } = self.spec.attention;
        let sinks = self.sites.sinks.map(|(slot, _)| self.bare().arena.floats(slot));
        attention::Shape {
            heads,
            kv_heads,
            width: head_width,
            scale,
            window,
            softcap: cap,
            sinks,
            documents: documents.lengths,
        }
    }

    /// From `normed` to `out`.
    fn attention(&self, documents: Documents, size: usize, k: &mut Kept) {
        let a = &self.spec.attention;
        let (rows, bare) = (documents.rows(), self.bare());
        let channels = [a.heads, a.kv_heads, a.kv_heads].map(|heads| heads * a.head_width);
        let normed = &k.normed[..size];
        for ((site, out), channels) in
            self.sites.inputs.iter().zip([&mut k.queries, &mut k.keys, &mut k.values]).zip(channels)
        {
            self.products.forward(site, normed, room(out, rows * channels), &mut k.scratch);
        }
        let pairs = self.angles(documents, &mut k.angles);
        for (at, x) in [&mut k.queries, &mut k.keys].into_iter().enumerate() {
            let x = &mut x[..rows * channels[at]];
            if let Some(norms) = &self.sites.head_norms {
                let raw = room(&mut k.raw[at], x.len());
                raw.copy_from_slice(x);
                norm(bare, &norms[at], raw, x);
            }
            turn(bare, &k.angles, pairs, a.head_width, channels[at], x, rope::rotate);
        }
        let shape = self.shape(&documents);
        let x = Operands {
            queries: &k.queries[..rows * channels[0]],
            keys: &k.keys[..rows * channels[1]],
            values: &k.values[..rows * channels[2]],
        };
        let attended = room(&mut k.attended, rows * channels[0]);
        let logs = room(&mut k.logs, rows * a.heads);
        let scores = room(&mut k.scores, shape.scratch_floats(bare.pool.threads()));
        attention::attend(bare.cpu, &bare.pool, &shape, x, attended, logs, scores);
        self.products.forward(&self.sites.output, attended, room(&mut k.out, size), &mut k.scratch);
    }

    /// Cosines and sines of every row; says how many there are for one.
    fn angles(&self, documents: Documents, out: &mut Vec<f32>) -> usize {
        let rope = &self.bare().plan.weights.ropes[self.spec.attention.rope];
        let width = 2 * rope.pairs();
        let out = room(out, documents.rows() * width);
        let mut rows = out.chunks_exact_mut(width.max(1));
        for &length in documents.pieces {
            let frequencies = self.bare().arena.floats(rope.frequencies_at(length));
            for position in 0..length {
                let row = rows.next().expect("a row for every position");
                rope::angles(frequencies, position as u32, rope.scale, row);
            }
        }
        width
    }

    /// From the gradient of the layer's result to that of its input `x`, in place. Forward ran before, over the same.
    pub(crate) fn backward(
        &self,
        documents: Documents,
        x: &[f32],
        d: &mut [f32],
        gradients: &mut Gradients,
        k: &mut Kept,
    ) {
        let size = x.len();
        room(&mut k.dout, size).copy_from_slice(d);
        self.out_of_stream(1, size, gradients, k);
        let (input, dinput) = (&k.normed_for_mlp[..size], room(&mut k.dnormed, size));
        let dout = &k.dout[..size];
        let (products, block, s) = (&self.products, &mut k.block, &mut k.scratch);
        mixture::backward(products, self.spec, self.sites, input, block, dout, dinput, gradients, s);
        let is_parallel = self.spec.residual == Residual::Parallel;
        if is_parallel {
            k.dout[..size].copy_from_slice(d);
        }
        let before = if is_parallel { x } else { &k.middle[..size] };
        norm_backward(
            self.bare(),
            &self.sites.mlp_norm,
            before,
            &k.dnormed[..size],
            d,
            true,
            gradients,
            &mut k.scratch,
        );
        if !is_parallel {
            k.dout[..size].copy_from_slice(d);
        }
        self.out_of_stream(0, size, gradients, k);
        self.attention_backward(documents, size, gradients, k);
        norm_backward(
            self.bare(),
            &self.sites.attention_norm,
            x,
            &k.dnormed[..size],
            d,
            true,
            gradients,
            &mut k.scratch,
        );
    }

    /// From the gradient of what a block added to the stream to that of its result, in `dout`.
    fn out_of_stream(&self, block: usize, size: usize, gradients: &mut Gradients, k: &mut Kept) {
        let Some(norms) = &self.sites.post_norms else { return };
        let dnormed = room(&mut k.dnormed, size);
        dnormed.copy_from_slice(&k.dout[..size]);
        let raw = &k.results[block][..size];
        norm_backward(
            self.bare(),
            &norms[block],
            raw,
            dnormed,
            &mut k.dout[..size],
            false,
            gradients,
            &mut k.scratch,
        );
    }

    /// From `dout` to `dnormed`.
    fn attention_backward(&self, documents: Documents, size: usize, gradients: &mut Gradients, k: &mut Kept) {
        let a = &self.spec.attention;
        let (rows, bare) = (documents.rows(), self.bare());
        let channels = [a.heads, a.kv_heads, a.kv_heads].map(|heads| heads * a.head_width);
        let attended = &k.attended[..rows * channels[0]];
        let dattended = room(&mut k.dattended, attended.len());
        let (output, dout) = (&self.sites.output, &k.dout[..size]);
        self.products.backward(output, attended, dout, Some((dattended, false)), gradients, &mut k.scratch);
        let shape = self.shape(&documents);
        let sinks = self.sites.sinks.and_then(|(_, target)| target);
        let of_sinks = k.scratch.sums(a.heads);
        let d = attention::Gradients {
            queries: room(&mut k.dqueries, rows * channels[0]),
            keys: room(&mut k.dkeys, rows * channels[1]),
            values: room(&mut k.dvalues, rows * channels[2]),
            sinks: sinks.map(|_| &mut *of_sinks),
        };
        let x = Operands {
            queries: &k.queries[..rows * channels[0]],
            keys: &k.keys[..rows * channels[1]],
            values: &k.values[..rows * channels[2]],
        };
        let logs = &k.logs[..rows * a.heads];
        let scores = room(&mut k.scores, shape.scratch_floats(bare.pool.threads()));
        attention::attend_backward(
            bare.cpu,
            &bare.pool,
            &shape,
            x,
            logs,
            &k.dattended[..attended.len()],
            d,
            scores,
        );
        if let Some(target) = sinks {
            gradients.add_rows(&bare.pool, &target, 1, of_sinks);
        }
        let pairs = 2 * bare.plan.weights.ropes[a.rope].pairs();
        for (at, d) in [&mut k.dqueries, &mut k.dkeys].into_iter().enumerate() {
            let d = &mut d[..rows * channels[at]];
            turn(bare, &k.angles, pairs, a.head_width, channels[at], d, rope::rotate_backward);
            if let Some(norms) = &self.sites.head_norms {
                let dy = room(&mut k.dattended, d.len());
                dy.copy_from_slice(d);
                norm_backward(
                    bare,
                    &norms[at],
                    &k.raw[at][..d.len()],
                    dy,
                    d,
                    false,
                    gradients,
                    &mut k.scratch,
                );
            }
        }
        let dnormed = room(&mut k.dnormed, size);
        let parts = [&k.dqueries, &k.dkeys, &k.dvalues];
        for (at, (site, d)) in self.sites.inputs.iter().zip(parts).enumerate() {
            let dx = Some((&mut *dnormed, at > 0));
            let d = &d[..rows * channels[at]];
            self.products.backward(site, &k.normed[..size], d, dx, gradients, &mut k.scratch);
        }
    }
}

/// Turns every head of every row by its angles, one way or the other.
fn turn(
    bare: &Bare,
    angles: &[f32],
    pairs: usize,
    head: usize,
    channels: usize,
    x: &mut [f32],
    by: fn(&mut [f32], &[f32]),
) {
    each_row(&bare.pool, x, channels, 64, |row, x| {
        x.chunks_exact_mut(head).for_each(|head| by(head, &angles[row * pairs..][..pairs]));
    });
}

/// Normalizes rows.
pub(crate) fn norm(bare: &Bare, site: &NormSite, x: &[f32], out: &mut [f32]) {
    let (of_row, width) = (site.row(&bare.arena), site.norm.width);
    each_row(&bare.pool, out, width, 16, |row, out| {
        out.copy_from_slice(&x[row * width..][..width]);
        norm_row(bare.cpu, &of_row, out);
    });
}

/// From the gradients of normalized rows to those of the rows `x`.
#[allow(clippy::too_many_arguments, reason = "a norm with its operands")]
pub(crate) fn norm_backward(
    bare: &Bare,
    site: &NormSite,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    add: bool,
    gradients: &mut Gradients,
    s: &mut Scratch,
) {
    let (of_row, width) = (site.row(&bare.arena), site.norm.width);
    if site.weight_to.is_none() && site.bias_to.is_none() {
        return each_row(&bare.pool, dx, width, 16, |row, dx| {
            let [x, dy] = [x, dy].map(|all| &all[row * width..][..width]);
            norm_row_backward(&of_row, x, dy, dx, add, None, None);
        });
    }
    let (dweight, dbias) = s.sums(2 * width).split_at_mut(width);
    for ((dx, x), dy) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width)) {
        norm_row_backward(&of_row, x, dy, dx, add, Some(&mut *dweight), Some(&mut *dbias));
    }
    for (target, sums) in [(site.weight_to, dweight), (site.bias_to, dbias)] {
        if let Some(target) = target {
            gradients.add_rows(&bare.pool, &target, 1, sums);
        }
    }
}
