//! Every operation of the backend beside the processor's, on shapes with ragged ends.

use bantam_core::backend::Feed;
use bantam_core::layouts::page::PageShape;
use bantam_core::layouts::{FLOAT32, LAYOUTS, Shape};
use bantam_core::ops::matmul::{IN_ORDER, panel_bytes};
use bantam_core::{
    Activation, Attention, Backend, Batch, Choice, Cpu, Heads, KvCache, KvKind, Norm, NormKind, Precision,
    Product, Rope, Routed, RowPer,
};
use bantam_cusim::is_child;

use crate::both::{Layouters, noise, pack, with};

/// A panel slot for products of so many stored columns and rows.
pub(crate) fn panels(
    plan: &mut Layouters,
    precision: Precision,
    columns: usize,
    rows: usize,
) -> bantam_core::Slot {
    let bytes =
        LAYOUTS.iter().map(|layout| panel_bytes(layout.form(precision, Cpu::detect()), columns, rows));
    let float = 4 * columns * rows;
    plan.work.slot(bytes.max().expect("layouts").max(float)).expect("small")
}

/// Whether a layout's product with int8 is the processor's, bit for bit.
pub(crate) fn is_exact(layout: &dyn bantam_core::layouts::Layout, precision: Precision) -> bool {
    use bantam_core::cuda::{Codes, Stored};
    let integers = matches!(layout.stored(), Stored::Rows | Stored::Coded(Codes { integer: Some(_), .. }));
    precision == Precision::Fast && integers
}

#[test]
fn products_of_every_layout_match_the_processor() {
    if !is_child("operations::products_of_every_layout_match_the_processor", &[]) {
        return;
    }
    for precision in [Precision::Fast, Precision::Exact] {
        for (n, layout) in LAYOUTS.iter().enumerate() {
            for (rows, columns, tokens, bias) in [(33, 130, 1, true), (5, 72, 9, false), (64, 640, 3, true)] {
                let mut plan = Layouters::new();
                let shape = Shape { rows, columns };
                let matrix = plan.matrix(*layout, shape, 1, 1);
                let bias = bias.then(|| plan.weights(rows));
                let (x, out) = (plan.work(tokens * columns), plan.work(tokens * rows));
                let panels = panels(&mut plan, precision, columns, tokens);
                let what = format!("{} {precision:?} {rows} x {columns}, {tokens} tokens", layout.name());
                let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
                    pack(arena, &matrix, 1, 7 + n as u64);
                    arena.floats_mut(x).copy_from_slice(&noise(3, tokens * columns));
                    arena.floats_mut(out).copy_from_slice(&noise(4, tokens * rows));
                    if let Some(bias) = bias {
                        arena.floats_mut(bias).copy_from_slice(&noise(5, rows));
                    }
                };
                with(&plan, panels, precision, fill, |both| {
                    let product = Product { matrix, bias, out, add: tokens == 3 };
                    both.cpu.matmul(tokens, x, &[product]);
                    both.card.matmul(tokens, x, &[product]);
                    if is_exact(*layout, precision) {
                        both.check_same(&what, out);
                    } else {
                        both.check_close(&what, out, 4e-3);
                    }
                });
            }
        }
    }
}

#[test]
fn orders_factors_and_inputs_taken_twice_match_the_processor() {
    if !is_child("operations::orders_factors_and_inputs_taken_twice_match_the_processor", &[]) {
        return;
    }
    let coded = || LAYOUTS.iter().filter(|layout| layout.coded().is_some());
    for precision in [Precision::Fast, Precision::Exact] {
        for layout in coded() {
            let (shape, tokens) = (Shape { rows: 40, columns: 192 }, 2);
            let mut plan = Layouters::new();
            let (order, factors) = (plan.weights(shape.columns), plan.weights(shape.columns));
            let twice = plan.matrix(*layout, shape, 1, 2);
            let matrix = bantam_core::Matrix { order: Some(order), factors: Some(factors), ..twice };
            let (x, out) = (plan.work(tokens * shape.columns), plan.work(tokens * shape.rows));
            let panels = panels(&mut plan, precision, matrix.width(), tokens);
            let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
                pack(arena, &matrix, 1, 11);
                let turned = (0..shape.columns).map(|i| f32::from_bits((i * 5 % shape.columns) as u32));
                arena.floats_mut(order).iter_mut().zip(turned).for_each(|(to, from)| *to = from);
                arena.floats_mut(factors).copy_from_slice(&noise(12, shape.columns));
                arena.floats_mut(x).copy_from_slice(&noise(13, tokens * shape.columns));
            };
            with(&plan, panels, precision, fill, |both| {
                let product = Product { matrix, bias: None, out, add: false };
                both.cpu.matmul(tokens, x, &[product]);
                both.card.matmul(tokens, x, &[product]);
                let what = format!("{} {precision:?}", layout.name());
                match is_exact(*layout, precision) {
                    true => both.check_same(&what, out),
                    false => both.check_close(&what, out, 1e-5),
                }
            });
        }
    }
}

#[test]
fn rows_of_tables_are_the_processors() {
    if !is_child("operations::rows_of_tables_are_the_processors", &[]) {
        return;
    }
    for layout in LAYOUTS {
        let shape = Shape { rows: 70, columns: 136 };
        let mut plan = Layouters::new();
        let table = plan.matrix(*layout, shape, 1, 1);
        let tokens = [0u32, 69, 31, 32, 33];
        let out = plan.work(tokens.len() * shape.columns);
        let panels = plan.work(16);
        with(
            &plan,
            panels,
            Precision::Fast,
            |arena| pack(arena, &table, 1, 21),
            |both| {
                both.cpu.embed(&table, &tokens, 1.5, out);
                both.card.embed(&table, &tokens, 1.5, out);
                both.check_same(layout.name(), out);
            },
        );
    }
}

#[test]
fn norms_activations_and_rows_match_the_processor() {
    if !is_child("operations::norms_activations_and_rows_match_the_processor", &[]) {
        return;
    }
    let (rows, width) = (5, 77);
    let mut plan = Layouters::new();
    let (weight, bias) = (plan.weights(width), plan.weights(width));
    let [x, y, z] = [0; 3].map(|_| plan.work(rows * width));
    let panels = plan.work(16);
    let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
        for (seed, slot) in [(1, x), (2, y), (3, z), (4, weight), (5, bias)] {
            let values = noise(seed, slot.bytes / 4);
            arena.floats_mut(slot).iter_mut().zip(values).for_each(|(to, x)| *to = 4.0 * x);
        }
    };
    with(&plan, panels, Precision::Exact, fill, |both| {
        for kind in [NormKind::Rms, NormKind::Layer] {
            let norm = Norm { kind, width, epsilon: 1e-5, weight_shift: 1.0, weight, bias: Some(bias) };
            both.cpu.norm(&norm, rows, x, y);
            both.card.norm(&norm, rows, x, y);
            both.check_close("norm", y, 3e-6);
            both.cpu.norm(&norm, rows, y, y);
            both.card.norm(&norm, rows, y, y);
            both.check_close("norm in its place", y, 3e-6);
        }
        let kinds = [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
            Activation::ClampedSwish,
        ];
        for kind in kinds {
            for up in [None, Some(z)] {
                both.cpu.gather(&[3, 0, 4, 1, 2], width, x, y);
                both.card.gather(&[3, 0, 4, 1, 2], width, x, y);
                both.cpu.activate(kind, rows, width, y, up);
                both.card.activate(kind, rows, width, y, up);
                both.check_close(&format!("{kind:?}"), y, 1e-6);
            }
        }
        both.cpu.add(rows, width, x, z);
        both.card.add(rows, width, x, z);
        both.check_same("sums", z);
        both.cpu.scale(None, rows, width, weight, Some(bias), z);
        both.card.scale(None, rows, width, weight, Some(bias), z);
        both.check_same("scaled rows", z);
        both.cpu.cap(30.0, rows, width, z);
        both.card.cap(30.0, rows, width, z);
        both.check_close("caps", z, 1e-6);
    });
}

#[test]
fn the_largest_value_of_a_row_is_found() {
    if !is_child("operations::the_largest_value_of_a_row_is_found", &[]) {
        return;
    }
    let (rows, width) = (3, 1000);
    let mut plan = Layouters::new();
    let (x, out, panels) = (plan.work(rows * width), plan.work(rows), plan.work(16));
    let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
        let x = arena.floats_mut(x);
        x.copy_from_slice(&noise(31, rows * width));
        // Of equals the first; a row without numbers.
        (x[width + 700], x[width + 301]) = (5.0, 5.0);
        x[2 * width..].fill(f32::NEG_INFINITY);
    };
    with(&plan, panels, Precision::Exact, fill, |both| {
        both.card.argmax(rows, width, x, out);
        let (wanted, _) = both.read(x);
        let best = |row: &[f32]| {
            row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
        };
        let (_, found) = both.read(out);
        for (row, found) in wanted.chunks(width).zip(found) {
            assert_eq!(found.to_bits() as usize, best(row));
        }
    });
}

/// Two sequences over pages that lie in no order.
const TABLES: [u32; 8] = [3, 6, 1, 9, 5, 0, 4, 2];
const PAGES: usize = 10;

#[test]
fn attention_matches_the_processor() {
    if !is_child("operations::attention_matches_the_processor", &[]) {
        return;
    }
    for (kind, tolerance) in [(KvKind::F32, 1e-5), (KvKind::F16, 1e-5), (KvKind::Int8, 1e-5)] {
        for (width, kv_heads, group, window, extras) in [(24, 2, 2, None, false), (80, 1, 4, Some(70), true)]
        {
            attention(kind, tolerance, Heads { count: kv_heads * group, width }, kv_heads, window, extras);
        }
    }
}

fn attention(
    kind: KvKind,
    tolerance: f32,
    heads: Heads,
    kv_heads: usize,
    window: Option<usize>,
    extras: bool,
) {
    let mut plan = Layouters::new();
    let shape = PageShape { width: heads.width, kind };
    let slot = plan.cache.slot(PAGES * kv_heads * shape.bytes()).expect("small");
    let cache = KvCache { slot, heads: kv_heads, shape };
    let frequencies = plan.weights(heads.width / 4);
    let sinks = plan.weights(heads.count);
    let rows = 40;
    let [keys, values] = [0; 2].map(|_| plan.work(rows * kv_heads * heads.width));
    let (queries, out) = (plan.work(rows * heads.channels()), plan.work(rows * heads.channels()));
    let angles = plan.work(rows * 2 * (heads.width / 4));
    let panels = plan.work(16);
    let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
        for (seed, slot) in [(41, keys), (42, values), (43, queries), (44, sinks), (45, frequencies)] {
            arena.floats_mut(slot).copy_from_slice(&noise(seed, slot.bytes / 4));
        }
    };
    let attention = Attention {
        heads,
        scale: 0.3,
        window,
        softcap: extras.then_some(20.0),
        sinks: extras.then_some(sinks),
    };
    let rope = Rope { frequencies, scale: 1.1, longer: None };
    with(&plan, panels, Precision::Exact, fill, |both| {
        for step in 0..4 {
            // One sequence grows by much, the other by a token.
            let feed = |first_row, rows, first_position, sequence| Feed {
                first_row,
                rows,
                first_position,
                sequence,
                length: first_position + rows,
            };
            let feeds = [feed(0, 39, step * 39, 0), feed(39, 1, step, 1)];
            let batch = Batch { feeds: &feeds, tables: &TABLES, pages_per_sequence: 4 };
            let what = format!("{kind:?}, {} channels, step {step}", heads.width);
            let turned = bantam_core::Slot { bytes: rows * (heads.width / 4) * 8, ..angles };
            both.cpu.angles(&rope, &batch, turned);
            both.card.angles(&rope, &batch, turned);
            both.check_close(&format!("angles, {what}"), turned, 1e-5);
            let key_heads = Heads { count: kv_heads, width: heads.width };
            both.cpu.rotate(rows, turned, key_heads, keys);
            both.card.rotate(rows, turned, key_heads, keys);
            both.check_close(&format!("turned keys, {what}"), keys, 1e-5);
            both.cpu.store(&cache, &batch, keys, values);
            both.card.store(&cache, &batch, keys, values);
            both.cpu.attend(&attention, &cache, &batch, queries, out);
            both.card.attend(&attention, &cache, &batch, queries, out);
            // A key beside the middle of two codes may be rounded to the other one.
            let tolerance = if kind == KvKind::F32 { tolerance } else { 2e-3 };
            both.check_close(&what, out, tolerance);
        }
    });
}

#[test]
fn experts_match_the_processor() {
    if !is_child("operations::experts_match_the_processor", &[]) {
        return;
    }
    for (layout, precision) in
        LAYOUTS.iter().flat_map(|layout| [(layout, Precision::Fast), (layout, Precision::Exact)])
    {
        for (experts, chosen, rows) in [(4, 2, 1), (8, 3, 7)] {
            let shape = Shape { rows: 36, columns: 128 };
            let back = Shape { rows: 128, columns: 36 };
            let choice = Choice { experts, chosen };
            let places = choice.places(rows);
            let mut plan = Layouters::new();
            let (up, down) =
                (plan.matrix(*layout, shape, experts, 1), plan.matrix(FLOAT32, back, experts, 1));
            let bias = plan.weights(experts * shape.rows);
            let order = layout.coded().map(|_| plan.weights(experts * shape.columns));
            let routing = plan.work.slot(choice.bytes(rows).expect("small")).expect("small");
            let routed = Routed { choice, slot: routing, part: None };
            let (logits, x) = (plan.work(rows * experts), plan.work(rows * shape.columns));
            let (middle, out) = (plan.work(places * shape.rows), plan.work(places * back.rows));
            let panels = panels(&mut plan, precision, shape.columns, places);
            let up = bantam_core::Matrix { order, ..up };
            let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
                pack(arena, &up, experts, 51);
                pack(arena, &down, experts, 61);
                for (seed, slot) in [(71, bias), (72, logits), (73, x)] {
                    arena.floats_mut(slot).copy_from_slice(&noise(seed, slot.bytes / 4));
                }
                let Some(order) = order else { return };
                for (i, to) in arena.floats_mut(order).iter_mut().enumerate() {
                    // Every other expert has an order of its own.
                    let (expert, column) = (i / shape.columns, i % shape.columns);
                    let turned = (column * 3 % shape.columns) as u32;
                    *to = f32::from_bits(if expert.is_multiple_of(2) { IN_ORDER } else { turned });
                }
            };
            with(&plan, panels, precision, fill, |both| {
                let first = [Product { matrix: up, bias: Some(bias), out: middle, add: false }];
                let second = [Product { matrix: down, bias: None, out, add: false }];
                let what = format!("{} {precision:?}, {chosen} of {experts}, {rows} rows", layout.name());
                for backend in [&mut both.cpu as &mut dyn Backend, &mut both.card] {
                    backend.route(&routed, rows, logits);
                    backend.matmul_experts(&routed, rows, RowPer::Token, x, &first);
                    backend.matmul_experts(&routed, rows, RowPer::Place, middle, &second);
                    backend.combine(&routed, rows, back.rows, out, x);
                }
                match is_exact(*layout, precision) {
                    true => both.check_same(&what, middle),
                    false => both.check_close(&what, middle, 4e-3),
                }
                both.check_close(&what, x, 4e-3);
            });
        }
    }
}
