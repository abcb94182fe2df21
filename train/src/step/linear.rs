//! A product of the decoder with what an adapter adds, forwards and backwards.

use bantam_core::layouts::{FLOAT32, Precision, Shape};
use bantam_core::ops::activation::scale;
use bantam_core::ops::backward::products::{
    Rows, cross, cross_floats, pack, product, sum_rows, tile_floats, transposed, transposed_floats,
};
use bantam_core::ops::matmul::{Input, Output, multiply, panel_bytes};
use bantam_model::bare::Bare;

use super::low::{Low, LowSite, Lows};
use super::sites::Site;

/// Memory for products, which grows to what is needed and then stays.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    words: Vec<f32>,
    /// Of a change: its second matrix, its tiles, what stands between both, its gradient.
    up: Vec<f32>,
    tiles: Vec<f32>,
    between: Vec<f32>,
    dbetween: Vec<f32>,
    /// Gradients of a part that does not stand as it is in its tensor, and of results with other lengths.
    part: Vec<f32>,
    scaled: Vec<f32>,
}

/// The first elements, of as many as are needed.
pub(crate) fn room(buffer: &mut Vec<f32>, floats: usize) -> &mut [f32] {
    if buffer.len() < floats {
        buffer.resize(floats, 0.0);
    }
    &mut buffer[..floats]
}

/// What products are made with.
#[derive(Clone, Copy)]
pub(crate) struct Products<'a> {
    pub(crate) bare: &'a Bare,
    pub(crate) lows: &'a Lows,
}

impl Products<'_> {
    /// `out = x * W^T + bias`, and what the adapter adds.
    pub(crate) fn forward(&self, site: &Site, x: &[f32], out: &mut [f32], s: &mut Scratch) {
        let low = site.low.map(|at| (at, &self.lows.list[at.low]));
        let has_lengths = low.is_some_and(|(_, low)| low.has_lengths());
        let bias = site.bias.map(|slot| self.bare.arena.floats(slot));
        self.base(site, x, bias.filter(|_| !has_lengths), out, s);
        let Some((at, low)) = low else { return };
        if has_lengths {
            let rows = site.shape().rows;
            let factors = room(&mut s.part, rows);
            factors.iter_mut().enumerate().for_each(|(row, x)| *x = low.factor(at.output(row)));
            out.chunks_exact_mut(rows).for_each(|out| scale(out, factors, bias));
        }
        self.add_low(at, low, site.shape().rows, x, has_lengths, out, s);
    }

    /// The decoder's own product.
    fn base(&self, site: &Site, x: &[f32], bias: Option<&[f32]>, out: &mut [f32], s: &mut Scratch) {
        let Bare { arena, cpu, pool, .. } = self.bare;
        let (shape, layout) = (site.shape(), site.matrix.layout);
        let tokens = x.len() / shape.columns;
        let form = layout.form(Precision::Exact, *cpu);
        let panels = room(&mut s.words, panel_bytes(form, site.matrix.width(), tokens).div_ceil(4));
        let (tiles, taken) = (arena.read(site.matrix.slot), site.taken(arena));
        let output = Output { layout, shape, tiles, taken, bias, out, add: false };
        let input = Input { x, columns: shape.columns, order: None };
        let segments = [[0, 0, tokens as u32]];
        multiply(*cpu, Precision::Exact, pool, input, &segments, panels, &mut [output]);
    }

    /// `between = x A^T`.
    fn lower(&self, low: &Low, x: &[f32], s: &mut Scratch) {
        let tokens = x.len() / low.inputs;
        let shape = Shape { rows: low.rank, columns: low.inputs };
        let tiles = room(&mut s.tiles, tile_floats(shape));
        pack(&low.down, low.inputs, 1.0, tiles);
        let between = room(&mut s.between, tokens * low.rank);
        self.product(x, shape, tiles, between, false, &mut s.words);
    }

    /// Adds the change's products, times factors where `lengthened`.
    #[allow(clippy::too_many_arguments, reason = "a product with its operands")]
    fn add_low(
        &self,
        at: LowSite,
        low: &Low,
        rows: usize,
        x: &[f32],
        lengthened: bool,
        out: &mut [f32],
        s: &mut Scratch,
    ) {
        self.lower(low, x, s);
        let tokens = x.len() / low.inputs;
        let up = room(&mut s.up, rows * low.rank);
        raise(at, low, lengthened, up);
        let shape = Shape { rows, columns: low.rank };
        let tiles = room(&mut s.tiles, tile_floats(shape));
        pack(up, low.rank, low.scale, tiles);
        self.product(&s.between[..tokens * low.rank], shape, tiles, out, true, &mut s.words);
    }

    fn product(
        &self,
        x: &[f32],
        shape: Shape,
        tiles: &[f32],
        out: &mut [f32],
        add: bool,
        words: &mut Vec<f32>,
    ) {
        let Bare { cpu, pool, .. } = self.bare;
        let form = FLOAT32.form(Precision::Exact, *cpu);
        let panels = room(words, panel_bytes(form, shape.columns, x.len() / shape.columns).div_ceil(4));
        product(*cpu, pool, x, shape, tiles, out, add, panels);
    }

    /// From `dy` to the gradients of everything that is trained here, and, added where `dx` is, of the input.
    pub(crate) fn backward(
        &self,
        site: &Site,
        x: &[f32],
        dy: &[f32],
        dx: Option<(&mut [f32], bool)>,
        gradients: &mut [f32],
        s: &mut Scratch,
    ) {
        let Bare { arena, cpu, pool, .. } = self.bare;
        let shape = site.shape();
        let tokens = x.len() / shape.columns;
        if let Some(target) = site.bias_to {
            let sums = room(&mut s.part, shape.rows);
            sums.fill(0.0);
            sum_rows(dy, sums);
            let sums = sums.iter().enumerate();
            sums.for_each(|(row, sum)| gradients[target.of_element(row)] += sum);
        }
        if let Some(target) = site.weight_to {
            let words = room(&mut s.words, cross_floats(shape.columns, tokens));
            match target.straight(shape.rows) {
                Some(range) => cross(*cpu, pool, dy, x, shape.columns, &mut gradients[range], words),
                None => {
                    let part = room(&mut s.part, shape.rows * shape.columns);
                    part.fill(0.0);
                    cross(*cpu, pool, dy, x, shape.columns, part, words);
                    for (row, part) in part.chunks_exact(shape.columns).enumerate() {
                        let (first, step) = target.of_row(row);
                        let out = gradients[first..].iter_mut().step_by(step);
                        out.zip(part).for_each(|(out, x)| *out += x);
                    }
                }
            }
        }
        let mut scaled = std::mem::take(&mut s.scaled);
        let low = site.low.map(|at| (at, &self.lows.list[at.low]));
        let dy = match low.filter(|(_, low)| low.has_lengths()) {
            None => dy,
            Some((at, low)) => {
                self.lengths_backward(site, at, low, x, dy, gradients, s);
                let scaled = room(&mut scaled, dy.len());
                for (out, dy) in scaled.chunks_exact_mut(shape.rows).zip(dy.chunks_exact(shape.rows)) {
                    let out = out.iter_mut().zip(dy).enumerate();
                    out.for_each(|(row, (out, dy))| *out = dy * low.factor(at.output(row)));
                }
                &*scaled
            }
        };
        let mut dx = dx;
        if let Some((dx, add)) = &mut dx {
            let rows = site.rows(arena);
            let words = room(&mut s.words, transposed_floats(&rows, shape, tokens));
            transposed(*cpu, pool, &rows, shape, dy, dx, *add, words);
        }
        if let Some((at, low)) = low {
            self.low_backward(at, low, shape.rows, x, dy, dx.map(|(dx, _)| dx), gradients, s);
        }
        s.scaled = scaled;
    }

    /// Gradients of a change; `dy` is that of its products, lengthened already.
    #[allow(clippy::too_many_arguments, reason = "a product with its operands")]
    fn low_backward(
        &self,
        at: LowSite,
        low: &Low,
        rows: usize,
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        gradients: &mut [f32],
        s: &mut Scratch,
    ) {
        let Bare { cpu, pool, .. } = self.bare;
        let tokens = x.len() / low.inputs;
        self.lower(low, x, s);
        // Up: scaled when it is put where it belongs.
        let part = room(&mut s.part, rows * low.rank);
        part.fill(0.0);
        let words = room(&mut s.words, cross_floats(low.rank, tokens));
        cross(*cpu, pool, dy, &s.between[..tokens * low.rank], low.rank, part, words);
        for (row, part) in part.chunks_exact(low.rank).enumerate() {
            let part = part.iter().enumerate();
            part.for_each(|(rank, x)| gradients[low.up_place(at.output(row), rank)] += low.scale * x);
        }
        let up = room(&mut s.up, rows * low.rank);
        raise(at, low, false, up);
        let dbetween = room(&mut s.dbetween, tokens * low.rank);
        let (matrix, shape) = (Rows::Plain(up), Shape { rows, columns: low.rank });
        let words = room(&mut s.words, transposed_floats(&matrix, shape, tokens));
        transposed(*cpu, pool, &matrix, shape, dy, dbetween, false, words);
        dbetween.iter_mut().for_each(|x| *x *= low.scale);
        let down = &mut gradients[low.down_start()..][..low.down.len()];
        let words = room(&mut s.words, cross_floats(low.inputs, tokens));
        cross(*cpu, pool, dbetween, x, low.inputs, down, words);
        if let Some(dx) = dx {
            let (matrix, shape) = (Rows::Plain(&low.down), Shape { rows: low.rank, columns: low.inputs });
            let words = room(&mut s.words, transposed_floats(&matrix, shape, tokens));
            transposed(*cpu, pool, &matrix, shape, dbetween, dx, true, words);
        }
    }

    /// Gradients of the lengths: the products before they get them, made once more.
    #[allow(clippy::too_many_arguments, reason = "a product with its operands")]
    fn lengths_backward(
        &self,
        site: &Site,
        at: LowSite,
        low: &Low,
        x: &[f32],
        dy: &[f32],
        gradients: &mut [f32],
        s: &mut Scratch,
    ) {
        let rows = site.shape().rows;
        let mut products = std::mem::take(&mut s.part);
        let out = room(&mut products, dy.len());
        self.base(site, x, None, out, s);
        self.add_low(at, low, rows, x, false, out, s);
        for row in 0..rows {
            let pairs = dy[row..].iter().step_by(rows).zip(out[row..].iter().step_by(rows));
            let along: f64 = pairs.map(|(dy, y)| f64::from(*dy) * f64::from(*y)).sum();
            let output = at.output(row);
            gradients[low.length_place(output)] += (along * f64::from(low.inverse[output])) as f32;
        }
        s.part = products;
    }
}

/// The rows of the second matrix that belong to a part.
fn raise(at: LowSite, low: &Low, lengthened: bool, out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(low.rank).enumerate() {
        let output = at.output(row);
        let factor = if lengthened { low.factor(output) } else { 1.0 };
        let from = &low.up[output * low.rank..][..low.rank];
        out.iter_mut().zip(from).for_each(|(out, x)| *out = x * factor);
    }
}
