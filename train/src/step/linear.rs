//! A product of the decoder with what an adapter adds, forwards and backwards.

use std::cell::RefCell;

use bantam_core::layouts::panels::Form;
use bantam_core::layouts::{Precision, Shape};
use bantam_core::ops::activation::scale;
use bantam_core::ops::backward::numbers::{Matrix, Numbers};
use bantam_core::ops::backward::products::{
    BLOCK, Part, cross, cross_floats, floats, multiply, sum_rows, transposed, transposed_floats,
};
use bantam_core::ops::backward::small::{Left, add_product};
use bantam_core::ops::crew::Pool;
use bantam_core::ops::matmul::{self, Input, Output, panel_bytes};
use bantam_model::bare::Bare;

use super::beside::Beside;
use super::dropout::Dropout;
use super::gradients::Gradients;
use super::low::{Low, LowSite, Lows};
use super::outline::Room;
use super::parameters::Target;
use super::sites::Site;

/// Memory for products, which grows to what is needed and then stays.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    words: Vec<f32>,
    /// Of a change: its second matrix, what stands between both, its gradient.
    up: Vec<f32>,
    between: Vec<f32>,
    dbetween: Vec<f32>,
    /// Gradients of a part that does not stand as it is in its tensor, and of results with other lengths.
    part: Vec<f32>,
    scaled: Vec<f32>,
    /// Inputs of changes, and their gradients, of which some are dropped.
    dropped: Vec<f32>,
    ddropped: Vec<f32>,
}

impl Scratch {
    /// Takes all that a step will need, whatever comes in it.
    pub(crate) fn make_room(&mut self, all: &Room) {
        room(&mut self.words, all.words);
        room(&mut self.up, all.up);
        room(&mut self.part, all.part);
        room(&mut self.scaled, all.scaled);
        room(&mut self.between, all.between);
        room(&mut self.dbetween, all.behind);
        room(&mut self.dropped, all.dropped);
        room(&mut self.ddropped, all.dropped);
    }
}

impl Scratch {
    /// Zeros, for sums of a few numbers.
    pub(crate) fn sums(&mut self, count: usize) -> &mut [f32] {
        let sums = room(&mut self.part, count);
        sums.fill(0.0);
        sums
    }
}

/// The first elements, of as many as are needed.
pub(crate) fn room(buffer: &mut Vec<f32>, floats: usize) -> &mut [f32] {
    if buffer.len() < floats {
        // No more than that: what a run takes is said beforehand.
        buffer.reserve_exact(floats - buffer.len());
        buffer.resize(floats, 0.0);
    }
    &mut buffer[..floats]
}

/// What products are made with.
#[derive(Clone, Copy)]
pub(crate) struct Products<'a> {
    pub(crate) bare: &'a Bare,
    pub(crate) lows: &'a Lows,
    /// What changes do not see of their inputs, while they are trained.
    pub(crate) dropout: Option<Dropout>,
    /// What products of numbers are made in.
    pub(crate) form: Form,
    /// A card that computes those with matrices that are not trained, where there is one.
    pub(crate) beside: Option<&'a RefCell<Beside>>,
}

/// A product's change: where it is, and the change.
type Changed<'a> = (LowSite, &'a Low);

impl Products<'_> {
    fn changed(&self, site: &Site) -> Option<Changed<'_>> {
        site.low.map(|at| (at, &self.lows.list[at.low]))
    }

    /// `out = x * W^T + bias`, and what the adapter adds.
    pub(crate) fn forward(&self, site: &Site, x: &[f32], out: &mut [f32], s: &mut Scratch) {
        let bias = site.bias.map(|slot| self.bare.arena.floats(slot));
        let Some((at, low)) = self.changed(site) else { return self.base(site, x, bias, out, s) };
        let rows = site.shape().rows;
        let is_here = !self.is_beside(site, out.len() / rows);
        let is_alone = !low.has_lengths() && self.dropout.is_none();
        if let Some(matrix) = self.matrix(site, false).filter(|_| is_here && is_alone) {
            let between = room(&mut s.between, x.len() / low.inputs * low.ranks);
            let of_base = Part { matrix, bias, out: &mut *out, add: false };
            let matrix = as_rows(&low.down, low.down_shape());
            let of_low = Part { matrix, bias: None, out: between, add: false };
            self.multiply(x, &mut [of_base, of_low], &mut s.words);
            return self.raise(at, low, rows, x.len() / low.inputs, false, out, s);
        }
        let mut dropped = std::mem::take(&mut s.dropped);
        let seen = self.seen(at, x, &mut dropped);
        match (low.has_lengths(), self.dropout) {
            (false, _) => self.base(site, x, bias, out, s),
            (true, None) => {
                self.base(site, x, None, out, s);
                rescale(at, low, 0.0, bias, out, rows, &mut s.part);
            }
            // As PEFT has it: the matrix's own product sees all, what lengths add to it does not.
            (true, Some(_)) => {
                let mut whole = std::mem::take(&mut s.scaled);
                let whole_out = room(&mut whole, out.len());
                self.base(site, x, bias, whole_out, s);
                self.base(site, seen, None, out, s);
                rescale(at, low, -1.0, None, out, rows, &mut s.part);
                out.iter_mut().zip(&*whole_out).for_each(|(out, x)| *out += x);
                s.scaled = whole;
            }
        }
        self.add_low(at, low, rows, seen, low.has_lengths(), out, s);
        s.dropped = dropped;
    }

    /// What a change sees of its input.
    fn seen<'x>(&self, at: LowSite, x: &'x [f32], dropped: &'x mut Vec<f32>) -> &'x [f32] {
        let Some(dropout) = self.dropout else { return x };
        let out = room(dropped, x.len());
        out.copy_from_slice(x);
        dropout.apply(at.low, out);
        out
    }

    /// Whether the decoder's own product is a card's, with so many rows.
    fn is_beside(&self, site: &Site, rows: usize) -> bool {
        self.beside.is_some_and(|beside| beside.borrow().takes(site, rows))
    }

    /// Whether a matrix is read here where so many rows meet it: of what stands on a card nothing is.
    pub(crate) fn reads(&self, site: &Site, rows: usize) -> bool {
        !self.beside.is_some_and(|beside| beside.borrow().has(site, rows))
    }

    /// The decoder's own product.
    pub(super) fn base(
        &self,
        site: &Site,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        s: &mut Scratch,
    ) {
        let Shape { rows, columns } = site.shape();
        let done = self.beside.map_or(0, |beside| beside.borrow_mut().forward(self.bare, site, x, bias, out));
        // What a card left, of which nothing is kept beyond the product.
        let (x, out) = (&x[done * columns..], &mut out[done * rows..]);
        if x.is_empty() {
            return;
        }
        if let Some(matrix) = self.matrix(site, false) {
            return self.multiply(x, &mut [Part { matrix, bias, out, add: false }], &mut s.words);
        }
        let Bare { arena, cpu, pool, .. } = self.bare;
        let (shape, layout) = (site.shape(), site.matrix.layout);
        let tokens = x.len() / shape.columns;
        let form = layout.form(Precision::Exact, *cpu);
        let panels = room(&mut s.words, panel_bytes(form, site.matrix.width(), tokens).div_ceil(4));
        let (tiles, taken) = (arena.read(site.matrix.slot), site.taken(arena));
        let output = Output { layout, shape, tiles, taken, bias, out, add: false };
        let input = Input { x, columns: shape.columns, order: None };
        let segments = [[0, 0, tokens as u32]];
        matmul::multiply(*cpu, Precision::Exact, pool, input, &segments, panels, &mut [output]);
    }

    /// A matrix that is not in codes.
    fn matrix(&self, site: &Site, turned: bool) -> Option<Matrix<'_>> {
        Some(Matrix { shape: site.shape(), numbers: site.numbers(self.bare)?, turned })
    }

    fn multiply(&self, x: &[f32], parts: &mut [Part], words: &mut Vec<f32>) {
        let Bare { cpu, pool, .. } = self.bare;
        let Shape { rows, columns } = parts[0].matrix.shape;
        let columns = if parts[0].matrix.turned { rows } else { columns };
        let words = room(words, floats(self.form, columns, x.len() / columns, pool.threads()));
        multiply((*cpu, self.form), pool, x, parts, words);
    }

    /// `between = x A^T`.
    fn lower(&self, low: &Low, x: &[f32], s: &mut Scratch) {
        let tokens = x.len() / low.inputs;
        let between = room(&mut s.between, tokens * low.ranks);
        let matrix = as_rows(&low.down, low.down_shape());
        self.multiply(x, &mut [Part { matrix, bias: None, out: between, add: false }], &mut s.words);
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
        self.raise(at, low, rows, x.len() / low.inputs, lengthened, out, s);
    }

    /// The second half of that, from what stands between.
    #[allow(clippy::too_many_arguments, reason = "a product with its operands")]
    fn raise(
        &self,
        at: LowSite,
        low: &Low,
        rows: usize,
        tokens: usize,
        lengthened: bool,
        out: &mut [f32],
        s: &mut Scratch,
    ) {
        let Bare { cpu, pool, .. } = self.bare;
        let up = room(&mut s.up, rows * low.ranks);
        raised(at, low, lengthened, low.scale, up);
        let between = Left { x: &s.between[..tokens * low.ranks], row: low.ranks, step: 1 };
        add_product(*cpu, pool, [tokens, rows, low.ranks], between, up, out);
    }

    /// The gradient of a matrix, `dy^T * x`, in blocks of rows where it is not summed where it belongs.
    fn cross(
        &self,
        (target, shape): (Target, Shape),
        dy: &[f32],
        x: &[f32],
        gradients: &mut Gradients,
        s: &mut Scratch,
    ) {
        let Bare { cpu, pool, .. } = self.bare;
        let Shape { rows, columns } = shape;
        let machine = (*cpu, self.form);
        let words = room(&mut s.words, cross_floats(self.form, rows, x.len() / columns, pool.threads()));
        if let Some(sum) = gradients.floats(&target, rows) {
            return cross(machine, pool, (dy, rows, 0), x, columns, sum, words);
        }
        for first in (0..rows).step_by(BLOCK) {
            let part = room(&mut s.part, BLOCK.min(rows - first) * columns);
            part.fill(0.0);
            cross(machine, pool, (dy, rows, first), x, columns, part, words);
            gradients.add_rows(pool, &target.starting_at(first), columns, part);
        }
    }

    /// From `dy` to the gradients of everything that is trained here, and, added where `dx` is, of the input.
    pub(crate) fn backward(
        &self,
        site: &Site,
        x: &[f32],
        dy: &[f32],
        dx: Option<(&mut [f32], bool)>,
        gradients: &mut Gradients,
        s: &mut Scratch,
    ) {
        let shape = site.shape();
        if let Some(target) = site.bias_to {
            let sums = room(&mut s.part, shape.rows);
            sums.fill(0.0);
            sum_rows(dy, sums);
            let sums = sums.iter().enumerate();
            sums.for_each(|(row, sum)| gradients.add(target.of_element(row), *sum));
        }
        if let Some(target) = site.weight_to {
            self.cross((target, shape), dy, x, gradients, s);
        }
        self.inputs_backward(site, x, dy, dx, gradients, s);
    }

    /// Gradients of the input, and of a change.
    fn inputs_backward(
        &self,
        site: &Site,
        x: &[f32],
        dy: &[f32],
        mut dx: Option<(&mut [f32], bool)>,
        gradients: &mut Gradients,
        s: &mut Scratch,
    ) {
        let rows = site.shape().rows;
        let Some((at, low)) = self.changed(site) else {
            let Some((dx, add)) = dx else { return };
            return self.turned(site, dy, dx, add, s);
        };
        let mut buffers = [&mut s.scaled, &mut s.dropped, &mut s.ddropped].map(std::mem::take);
        let [scaled, dropped, ddropped] = &mut buffers;
        let seen = self.seen(at, x, dropped);
        let mut lengthened = dy;
        if low.has_lengths() {
            self.lengths_backward(site, at, low, seen, dy, gradients, s);
            lengthened = stretched(at, low, 0.0, rows, dy, scaled);
        }
        match (&mut dx, self.dropout) {
            (Some((dx, add)), None) => {
                match self.matrix(site, true).filter(|_| !self.is_beside(site, dy.len() / rows)) {
                    Some(matrix) => {
                        let of_base = Part { matrix, bias: None, out: dx, add: *add };
                        self.between_backward(at, low, rows, lengthened, Some(of_base), s);
                    }
                    None => {
                        self.turned(site, lengthened, dx, *add, s);
                        self.between_backward(at, low, rows, lengthened, None, s);
                    }
                }
                self.low_backward(at, low, rows, seen, lengthened, Some(dx), gradients, s);
            }
            (Some((dx, add)), Some(dropout)) => {
                self.turned(site, dy, dx, *add, s);
                let of_seen = room(ddropped, x.len());
                of_seen.fill(0.0);
                self.between_backward(at, low, rows, lengthened, None, s);
                self.low_backward(at, low, rows, seen, lengthened, Some(of_seen), gradients, s);
                if low.has_lengths() {
                    let more = stretched(at, low, -1.0, rows, dy, scaled);
                    self.turned(site, more, of_seen, true, s);
                }
                dropout.apply(at.low, of_seen);
                dx.iter_mut().zip(&*of_seen).for_each(|(dx, x)| *dx += x);
            }
            (None, _) => {
                self.between_backward(at, low, rows, lengthened, None, s);
                self.low_backward(at, low, rows, seen, lengthened, None, gradients, s);
            }
        }
        [s.scaled, s.dropped, s.ddropped] = buffers;
    }

    /// `dx = dy * W`, or added to it.
    pub(super) fn turned(&self, site: &Site, dy: &[f32], dx: &mut [f32], add: bool, s: &mut Scratch) {
        let Shape { rows, columns } = site.shape();
        let done = self.beside.map_or(0, |beside| beside.borrow_mut().backward(self.bare, site, dy, dx, add));
        let (dy, dx) = (&dy[done * rows..], &mut dx[done * columns..]);
        if dy.is_empty() {
            return;
        }
        if let Some(matrix) = self.matrix(site, true) {
            return self.multiply(dy, &mut [Part { matrix, bias: None, out: dx, add }], &mut s.words);
        }
        let Bare { cpu, pool, .. } = self.bare;
        let (rows, shape) = (site.rows(self.bare), site.shape());
        let tokens = dx.len() / shape.columns;
        let words = transposed_floats(self.form, &rows, shape, tokens, pool.threads());
        transposed((*cpu, self.form), pool, &rows, shape, dy, dx, add, room(&mut s.words, words));
    }

    /// The gradient of what stands between both matrices of a change, with what else comes of `dy`, its products',
    /// lengthened already.
    fn between_backward(
        &self,
        at: LowSite,
        low: &Low,
        rows: usize,
        dy: &[f32],
        beside: Option<Part>,
        s: &mut Scratch,
    ) {
        let up = room(&mut s.up, rows * low.ranks);
        raised(at, low, false, low.scale, up);
        let shape = Shape { rows: low.ranks, columns: rows };
        let out = room(&mut s.dbetween, dy.len() / rows * low.ranks);
        let part = Part { matrix: as_rows(up, shape), bias: None, out, add: false };
        match beside {
            None => self.multiply(dy, &mut [part], &mut s.words),
            Some(beside) => self.multiply(dy, &mut [beside, part], &mut s.words),
        }
    }

    /// Gradients of a change, behind that.
    #[allow(clippy::too_many_arguments, reason = "a product with its operands")]
    fn low_backward(
        &self,
        at: LowSite,
        low: &Low,
        rows: usize,
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        gradients: &mut Gradients,
        s: &mut Scratch,
    ) {
        let Bare { cpu, pool, .. } = self.bare;
        let (tokens, rank, ranks, inputs) = (x.len() / low.inputs, low.rank, low.ranks, low.inputs);
        self.lower(low, x, s);
        let [between, dbetween] = [&s.between, &s.dbetween].map(|x| &x[..tokens * ranks]);
        let part = room(&mut s.part, ranks * rows);
        part.fill(0.0);
        let turned = |x| Left { x, row: 1, step: ranks };
        add_product(*cpu, pool, [ranks, rows, tokens], turned(between), dy, part);
        // Scaled when it is put where it belongs.
        for (rank, part) in part.chunks_exact(rows).take(rank).enumerate() {
            let part = part.iter().enumerate();
            part.for_each(|(row, x)| gradients.add(low.up_place(at.output(row), rank), low.scale * x));
        }
        let part = room(&mut s.part, ranks * inputs);
        part.fill(0.0);
        add_product(*cpu, pool, [ranks, inputs, tokens], turned(dbetween), x, part);
        gradients.add_all(low.down_start(), &part[..rank * inputs]);
        if let Some(dx) = dx {
            let left = Left { x: dbetween, row: ranks, step: 1 };
            add_product(*cpu, pool, [tokens, inputs, ranks], left, &low.down, dx);
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
        gradients: &mut Gradients,
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
            gradients.add(low.length_place(output), (along * f64::from(low.inverse[output])) as f32);
        }
        s.part = products;
    }
}

/// A matrix of a change.
fn as_rows(rows: &[f32], shape: Shape) -> Matrix<'_> {
    Matrix { shape, numbers: Numbers::Rows(rows), turned: false }
}

/// The rows of the second matrix that belong to a part, times `scale`, turned over.
fn raised(at: LowSite, low: &Low, lengthened: bool, scale: f32, out: &mut [f32]) {
    let rows = out.len() / low.ranks;
    for row in 0..rows {
        let output = at.output(row);
        let factor = if lengthened { low.factor(output) } else { 1.0 };
        let from = &low.up[output * low.ranks..][..low.ranks];
        let out = out[row..].iter_mut().step_by(rows);
        out.zip(from).for_each(|(out, x)| *out = x * factor * scale);
    }
}

/// Results of the matrix alone, times factors with `more` added.
fn rescale(
    at: LowSite,
    low: &Low,
    more: f32,
    bias: Option<&[f32]>,
    out: &mut [f32],
    rows: usize,
    buffer: &mut Vec<f32>,
) {
    let factors = room(buffer, rows);
    factors.iter_mut().enumerate().for_each(|(row, x)| *x = low.factor(at.output(row)) + more);
    out.chunks_exact_mut(rows).for_each(|out| scale(out, factors, bias));
}

/// Gradients of results, times the same.
fn stretched<'b>(
    at: LowSite,
    low: &Low,
    more: f32,
    rows: usize,
    dy: &[f32],
    buffer: &'b mut Vec<f32>,
) -> &'b [f32] {
    let out = room(buffer, dy.len());
    for (out, dy) in out.chunks_exact_mut(rows).zip(dy.chunks_exact(rows)) {
        let out = out.iter_mut().zip(dy).enumerate();
        out.for_each(|(row, (out, dy))| *out = dy * (low.factor(at.output(row)) + more));
    }
    out
}
