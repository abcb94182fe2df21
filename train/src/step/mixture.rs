//! The feed-forward block of a layer: one, or several of which a router chooses for every row.

use bantam_core::Activation;
use bantam_core::ops::activation::activate;
use bantam_core::ops::backward::activation::activate as activate_backward;
use bantam_core::ops::backward::experts::combine as combine_backward;
use bantam_core::ops::experts::Routing;
use bantam_core::ops::matmul::Segment;
use bantam_core::ops::share::{each_row, each_rows};
use bantam_model::bare::Bare;
use bantam_model::spec::{ExpertsSpec, LayerSpec};

use super::gradients::Gradients;
use super::linear::{Products, Scratch, room};
use super::sites::LayerSites;

/// What the block's forward keeps for its backward. Where there are experts, rows are places.
#[derive(Debug, Default)]
pub(crate) struct Block {
    router: Vec<f32>,
    routing: Vec<f32>,
    /// Rows of the input, in the order of places.
    sent: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    bent: Vec<f32>,
    parts: Vec<f32>,
    dparts: Vec<f32>,
    drouter: Vec<f32>,
    dbent: Vec<f32>,
    dup: Vec<f32>,
    dsent: Vec<f32>,
}

/// The only segment of a block that stands alone.
fn whole(rows: usize) -> [Segment; 1] {
    [[0, 0, rows as u32]]
}

/// `out` is the block's result for the rows of `input`; without it, only what is kept is wanted.
pub(crate) fn forward(
    products: &Products,
    spec: &LayerSpec,
    sites: &LayerSites,
    input: &[f32],
    b: &mut Block,
    out: Option<&mut [f32]>,
    s: &mut Scratch,
) {
    let width = sites.up[0].shape().columns;
    let rows = input.len() / width;
    let (Some(ExpertsSpec { choice, .. }), Some(router)) = (&spec.mlp.experts, &sites.router) else {
        return experts_forward(products, spec, sites, &whole(rows), input, b.lend(), out, s);
    };
    let logits = room(&mut b.router, rows * choice.experts);
    products.forward(router, input, logits, s);
    let words = choice.bytes(rows).expect("rows were planned") / 4;
    let mut routing = std::mem::take(&mut b.routing);
    let mut routed = Routing::over(*choice, rows, room(&mut routing, words));
    routed.route(*choice, logits);
    let mut sent = std::mem::take(&mut b.sent);
    let mut parts = std::mem::take(&mut b.parts);
    let places = choice.places(rows);
    for (out, &row) in room(&mut sent, places * width).chunks_exact_mut(width).zip(routed.rows()) {
        out.copy_from_slice(&input[row as usize * width..][..width]);
    }
    let made = room(&mut parts, places * width);
    let input = &sent[..places * width];
    experts_forward(products, spec, sites, routed.segments(), input, b.lend(), Some(&mut *made), s);
    let (cpu, made) = (products.bare.cpu, &*made);
    if let Some(out) = out {
        each_row(&products.bare.pool, out, width, 16, |row, out| {
            out.fill(0.0);
            routed.combine(cpu, choice.chosen, row, made, out);
        });
    }
    (b.routing, b.sent, b.parts) = (routing, sent, parts);
}

/// The buffers of the bend.
struct Bend<'a> {
    gate: &'a mut Vec<f32>,
    up: &'a mut Vec<f32>,
    bent: &'a mut Vec<f32>,
    dbent: &'a mut Vec<f32>,
    dup: &'a mut Vec<f32>,
}

impl Block {
    /// Exchanges gradients.
    pub(crate) fn exchange(&mut self, other: &mut Block) {
        let Block { dparts, drouter, dbent, dup, dsent, .. } = self;
        let mine = [dparts, drouter, dbent, dup, dsent];
        let Block { dparts, drouter, dbent, dup, dsent, .. } = other;
        mine.into_iter().zip([dparts, drouter, dbent, dup, dsent]).for_each(|(a, b)| std::mem::swap(a, b));
    }

    fn lend(&mut self) -> Bend<'_> {
        let Block { gate, up, bent, dbent, dup, .. } = self;
        Bend { gate, up, bent, dbent, dup }
    }
}

/// Rows of every segment through their expert.
#[allow(clippy::too_many_arguments, reason = "a phase of a layer: its data, its weights, its memory")]
fn experts_forward(
    products: &Products,
    spec: &LayerSpec,
    sites: &LayerSites,
    segments: &[Segment],
    input: &[f32],
    b: Bend,
    mut out: Option<&mut [f32]>,
    s: &mut Scratch,
) {
    let (width, hidden) = (sites.up[0].shape().columns, spec.mlp.width);
    let rows = input.len() / width;
    let gate = room(b.gate, rows * hidden);
    let up = room(b.up, if sites.gate.is_some() { rows * hidden } else { 0 });
    let bent = room(b.bent, rows * hidden);
    for segment in segments {
        let [expert, first, count] = segment.map(|word| word as usize);
        let of = |width: usize| first * width..(first + count) * width;
        let input = &input[of(width)];
        match &sites.gate {
            Some(gates) => {
                products.forward(&gates[expert], input, &mut gate[of(hidden)], s);
                products.forward(&sites.up[expert], input, &mut up[of(hidden)], s);
            }
            None => products.forward(&sites.up[expert], input, &mut gate[of(hidden)], s),
        }
        bent[of(hidden)].copy_from_slice(&gate[of(hidden)]);
        let (cpu, up) = (products.bare.cpu, &*up);
        each_row(&products.bare.pool, &mut bent[of(hidden)], hidden, 4, |row, bent| {
            let up = sites.gate.as_ref().map(|_| &up[(first + row) * hidden..][..hidden]);
            activate(cpu, spec.mlp.activation, bent, up);
        });
        if let Some(out) = &mut out {
            products.forward(&sites.down[expert], &bent[of(hidden)], &mut out[of(width)], s);
        }
    }
}

/// From `dout` to `dinput`, which is written.
#[allow(clippy::too_many_arguments, reason = "a phase of a layer: its data, its weights, its memory")]
pub(crate) fn backward(
    products: &Products,
    spec: &LayerSpec,
    sites: &LayerSites,
    input: &[f32],
    b: &mut Block,
    dout: &[f32],
    dinput: &mut [f32],
    gradients: &mut Gradients,
    s: &mut Scratch,
) {
    let width = sites.up[0].shape().columns;
    let rows = input.len() / width;
    let (Some(ExpertsSpec { choice, .. }), Some(router)) = (&spec.mlp.experts, &sites.router) else {
        let (segments, bend) = (whole(rows), b.lend());
        return experts_backward(products, spec, sites, &segments, input, bend, dout, dinput, gradients, s);
    };
    let places = choice.places(rows);
    let [mut routing, parts, mut dparts, mut dsent] =
        [&mut b.routing, &mut b.parts, &mut b.dparts, &mut b.dsent].map(std::mem::take);
    let (sent, mut drouter) = (std::mem::take(&mut b.sent), std::mem::take(&mut b.drouter));
    let words = choice.bytes(rows).expect("rows were planned") / 4;
    let routed = Routing::over(*choice, rows, &mut routing[..words]);
    let made = room(&mut dparts, places * width);
    let dlogits = room(&mut drouter, rows * choice.experts);
    combine_backward(&routed, *choice, width, &parts[..places * width], dout, made, dlogits);
    let from = room(&mut dsent, places * width);
    let (segments, input_of) = (routed.segments(), &sent[..places * width]);
    experts_backward(products, spec, sites, segments, input_of, b.lend(), made, from, gradients, s);
    products.backward(router, input, dlogits, Some((&mut *dinput, false)), gradients, s);
    for (from, &row) in from.chunks_exact(width).zip(routed.rows()) {
        let out = dinput[row as usize * width..][..width].iter_mut();
        out.zip(from).for_each(|(out, from)| *out += from);
    }
    (b.routing, b.parts, b.dparts, b.dsent) = (routing, parts, dparts, dsent);
    (b.sent, b.drouter) = (sent, drouter);
}

#[allow(clippy::too_many_arguments, reason = "a phase of a layer: its data, its weights, its memory")]
fn experts_backward(
    products: &Products,
    spec: &LayerSpec,
    sites: &LayerSites,
    segments: &[Segment],
    input: &[f32],
    b: Bend,
    dout: &[f32],
    dinput: &mut [f32],
    gradients: &mut Gradients,
    s: &mut Scratch,
) {
    let (width, hidden) = (sites.up[0].shape().columns, spec.mlp.width);
    let activation = spec.mlp.activation;
    // All rows may go to one expert.
    let most = input.len() / width / spec.mlp.experts.map_or(1, |experts| experts.choice.chosen) * hidden;
    room(b.dbent, most);
    room(b.dup, if sites.gate.is_some() { most } else { 0 });
    for segment in segments {
        let [expert, first, count] = segment.map(|word| word as usize);
        let of = |width: usize| first * width..(first + count) * width;
        let (input, dinput) = (&input[of(width)], &mut dinput[of(width)]);
        let dbent = room(b.dbent, count * hidden);
        let reached = sites.gate.iter().chain([&sites.up, &sites.down]).map(|sites| &sites[expert]);
        reached.flat_map(|site| site.begins(products.lows)).for_each(|start| gradients.reach(start));
        let (down, bent) = (&sites.down[expert], &b.bent[of(hidden)]);
        products.backward(down, bent, &dout[of(width)], Some((&mut *dbent, false)), gradients, s);
        let gate = &b.gate[of(hidden)];
        match &sites.gate {
            Some(gates) => {
                let (up, dup) = (&b.up[of(hidden)], room(b.dup, count * hidden));
                bend_backward(products.bare, (activation, hidden), gate, Some((up, &mut *dup)), dbent);
                products.backward(&gates[expert], input, dbent, Some((&mut *dinput, false)), gradients, s);
                products.backward(&sites.up[expert], input, dup, Some((dinput, true)), gradients, s);
            }
            None => {
                bend_backward(products.bare, (activation, hidden), gate, None, dbent);
                products.backward(&sites.up[expert], input, dbent, Some((dinput, false)), gradients, s);
            }
        }
    }
}

/// As [`activate_backward`], rows of `hidden` on several threads.
fn bend_backward(
    bare: &Bare,
    (activation, hidden): (Activation, usize),
    gate: &[f32],
    up: Option<(&[f32], &mut [f32])>,
    d: &mut [f32],
) {
    let (cpu, pool) = (bare.cpu, &bare.pool);
    let of = |row: usize| row * hidden..(row + 1) * hidden;
    match up {
        None => each_row(pool, d, hidden, 4, |row, d| {
            activate_backward(cpu, activation, &gate[of(row)], None, d);
        }),
        Some((up, dup)) => each_rows(pool, [d, dup], hidden, 4, |row, [d, dup]| {
            activate_backward(cpu, activation, &gate[of(row)], Some((&up[of(row)], dup)), d);
        }),
    }
}
