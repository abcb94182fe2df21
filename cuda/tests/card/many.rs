//! Products of many rows, which are the tensor cores': of integers the processor's bits, however ragged.

use bantam_core::cuda::{Codes, Stored};
use bantam_core::layouts::{LAYOUTS, Layout, Shape, TILE_ROWS};
use bantam_core::ops::matmul::IN_ORDER;
use bantam_core::{Arena, Backend, Choice, Matrix, Precision, Product, Routed, RowPer, Slot};
use bantam_cusim::{is_child, skips_card};

use crate::both::{Block, Both, Layouters, noise, pack, with};
use crate::operations::{is_exact, panels};

/// Layouts whose products are the tensor cores', and in which precision.
fn layouts() -> impl Iterator<Item = (&'static dyn Layout, Precision)> {
    LAYOUTS.iter().filter_map(|layout| match layout.stored() {
        Stored::Plain { many: Some(_), .. } => Some((*layout, Precision::Exact)),
        _ => is_exact(*layout, Precision::Fast).then_some((*layout, Precision::Fast)),
    })
}

/// Floats within rounding, integers to the bit.
fn compare(both: &Both, precision: Precision, what: &str, slot: Slot) {
    match precision {
        Precision::Exact => both.check_close(what, slot, 1e-5),
        Precision::Fast => both.check_same(what, slot),
    }
}

/// Matrices of so many rows each, in one launch.
fn check(
    (layout, precision): (&'static dyn Layout, Precision),
    rows: &[usize],
    columns: usize,
    tokens: usize,
) {
    let mut plan = Layouters::new();
    let mut products = Vec::new();
    for (n, &rows) in rows.iter().enumerate() {
        let matrix = plan.matrix(layout, Shape { rows, columns }, 1, 1);
        let bias = (n != 1).then(|| plan.weights(rows));
        products.push(Product { matrix, bias, out: plan.work(tokens * rows), add: n == 2 });
    }
    let x = plan.work(tokens * columns);
    let panels = panels(&mut plan, precision, columns, tokens);
    let fill = |arena: &mut Arena<Block>| {
        arena.floats_mut(x).copy_from_slice(&noise(3, tokens * columns));
        for (n, product) in products.iter().enumerate() {
            pack(arena, &product.matrix, 1, 7 + n as u64);
            for slot in [Some(product.out), product.bias].into_iter().flatten() {
                arena.floats_mut(slot).copy_from_slice(&noise(5, slot.bytes / 4));
            }
        }
    };
    with(&plan, panels, precision, fill, |both| {
        both.cpu.matmul(tokens, x, &products);
        both.card.matmul(tokens, x, &products);
        for product in &products {
            let Shape { rows, columns } = product.matrix.shape;
            let what = format!("{} {rows} x {columns}, {tokens} tokens", layout.name());
            compare(both, precision, &what, product.out);
        }
    });
}

#[test]
fn products_of_many_rows_are_the_processors() {
    if !is_child("many::products_of_many_rows_are_the_processors", &[]) {
        return;
    }
    // Tiles of one, two and three matrices beside one another in a block; tokens that fill a block's warps or do not.
    for (rows, columns, tokens) in [
        (&[33, 70, 5][..], 130, 16),
        (&[64, 97], 72, 65),
        (&[128], 640, 33),
        (&[5], 16, 200),
        (&[161, 31, 32], 196, 128),
    ] {
        layouts().for_each(|layout| check(layout, rows, columns, tokens));
    }
}

/// Sums of integers beyond what float32 holds are of fewer blocks.
#[test]
fn rows_wider_than_float32_counts_are_the_processors() {
    if !is_child("many::rows_wider_than_float32_counts_are_the_processors", &[]) {
        return;
    }
    let is_grouped = |layout: &dyn Layout| matches!(layout.stored(), Stored::Coded(Codes { bits: 2, .. }));
    layouts()
        .filter(|(layout, _)| is_grouped(*layout))
        .for_each(|layout| check(layout, &[3], (1 << 16) + 70, 16));
}

/// Of every expert so many places, in no order.
const PLACES: [usize; 7] = [17, 0, 1, 100, 15, 16, 130];

/// Logits that send rows so.
fn logits() -> Vec<f32> {
    let mut left = PLACES;
    let rows: usize = PLACES.iter().sum();
    let mut all = Vec::new();
    for row in 0..rows {
        let first = row * 5 % PLACES.len();
        let mut from_there = (first..first + PLACES.len()).map(|expert| expert % PLACES.len());
        let expert = from_there.find(|&expert| left[expert] > 0).expect("as many as there are rows");
        left[expert] -= 1;
        all.extend((0..PLACES.len()).map(|other| if other == expert { 1.0 } else { 0.0 }));
    }
    all
}

/// Every other expert has an order of its own.
fn orders(order: &mut [f32], columns: usize) {
    for (i, to) in order.iter_mut().enumerate() {
        let turned = (i % columns * 3 % columns) as u32;
        *to = f32::from_bits(if (i / columns).is_multiple_of(2) { IN_ORDER } else { turned });
    }
}

#[test]
fn experts_of_many_rows_are_the_processors() {
    if !is_child("many::experts_of_many_rows_are_the_processors", &[]) {
        return;
    }
    let experts = PLACES.len();
    let (shape, back) = (Shape { rows: 70, columns: 40 }, Shape { rows: 33, columns: 70 });
    for (layout, precision) in layouts() {
        for chosen in [1, 2] {
            let is_ordered = chosen == 2 && layout.coded().is_some();
            let rows = if chosen == 1 { PLACES.iter().sum() } else { 19 };
            let choice = Choice { experts, chosen };
            let places = choice.places(rows);
            let mut plan = Layouters::new();
            let up = plan.matrix(layout, shape, experts, 1);
            let (gate, down) =
                (plan.matrix(layout, shape, experts, 1), plan.matrix(layout, back, experts, 1));
            let bias = plan.weights(experts * shape.rows);
            let order = is_ordered.then(|| plan.weights(experts * shape.columns));
            let routing = plan.work.slot(choice.bytes(rows).expect("small")).expect("small");
            let routed = Routed { choice, slot: routing, part: None };
            let (scores, x) = (plan.work(rows * experts), plan.work(rows * shape.columns));
            let [middle, other] = [0; 2].map(|_| plan.work(places * shape.rows));
            let out = plan.work(places * back.rows);
            let panels = panels(&mut plan, precision, shape.rows.max(shape.columns), places);
            let [up, gate] = [up, gate].map(|matrix| Matrix { order, ..matrix });
            let fill = |arena: &mut Arena<Block>| {
                [(up, 51), (gate, 61), (down, 71)]
                    .iter()
                    .for_each(|(matrix, seed)| pack(arena, matrix, experts, *seed));
                arena.floats_mut(bias).copy_from_slice(&noise(81, experts * shape.rows));
                arena.floats_mut(x).copy_from_slice(&noise(82, rows * shape.columns));
                let found = if chosen == 1 { logits() } else { noise(83, rows * experts) };
                arena.floats_mut(scores).copy_from_slice(&found);
                if let Some(order) = order {
                    orders(arena.floats_mut(order), shape.columns);
                }
            };
            with(&plan, panels, precision, fill, |both| {
                let first = [
                    Product { matrix: up, bias: Some(bias), out: middle, add: false },
                    Product { matrix: gate, bias: None, out: other, add: false },
                ];
                let second = [Product { matrix: down, bias: None, out, add: false }];
                for backend in [&mut both.cpu as &mut dyn Backend, &mut both.card] {
                    backend.route(&routed, rows, scores);
                    backend.matmul_experts(&routed, rows, RowPer::Token, x, &first);
                    backend.matmul_experts(&routed, rows, RowPer::Place, middle, &second);
                }
                let what = format!("{}, {chosen} of {experts}, {rows} rows", layout.name());
                [middle, other, out].iter().for_each(|slot| compare(both, precision, &what, *slot));
            });
        }
    }
}

/// Numbers that differ in their last bits alone take turns with their sign: nothing of them is left out of a sum.
#[test]
fn floats_keep_every_bit_on_tensor_cores() {
    if !is_child("many::floats_keep_every_bit_on_tensor_cores", &[]) {
        return;
    }
    for (layout, precision) in layouts().filter(|(_, precision)| *precision == Precision::Exact) {
        let (shape, tokens) = (Shape { rows: TILE_ROWS, columns: 66 }, 16);
        let mut plan = Layouters::new();
        let matrix = plan.matrix(layout, shape, 1, 1);
        let (x, out) = (plan.work(tokens * shape.columns), plan.work(tokens * shape.rows));
        let panels = panels(&mut plan, precision, shape.columns, tokens);
        let fill = |arena: &mut Arena<Block>| {
            let ones = [1.0; TILE_ROWS * 66];
            layout.pack(shape.columns, &ones, arena.write(matrix.slot)).expect("finite numbers");
            for (i, x) in arena.floats_mut(x).iter_mut().enumerate() {
                let value = f32::from_bits(1.3f32.to_bits() + (i * i % 251) as u32);
                *x = if i.is_multiple_of(2) { value } else { -value };
            }
        };
        with(&plan, panels, precision, fill, |both| {
            let product = Product { matrix, bias: None, out, add: false };
            both.cpu.matmul(tokens, x, &[product]);
            both.card.matmul(tokens, x, &[product]);
            both.check_same(layout.name(), out);
            assert!(both.read(out).0.iter().all(|&sum| sum != 0.0 && sum.abs() < 1e-3));
        });
    }
}

/// From sixteen rows on, and from there on alone.
#[test]
fn many_rows_are_the_tensor_cores() {
    const TEST: &str = "many::many_rows_are_the_tensor_cores";
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("many.log");
    // A run that failed leaves it.
    let _ = std::fs::remove_file(&path);
    if skips_card() || !is_child(TEST, &[("CUSIM_CALLS", path.to_str().expect("the path is UTF-8"))]) {
        return;
    }
    let mut seen = 0;
    for (layout, tokens) in layouts().flat_map(|layout| [15, 16].map(|tokens| (layout, tokens))) {
        check(layout, &[40], 64, tokens);
        let calls = std::fs::read_to_string(&path).expect("the stand-in writes it");
        let all: Vec<_> = calls.lines().filter_map(|call| call.strip_prefix("cuLaunchKernel ")).collect();
        let kernels = &all[std::mem::replace(&mut seen, all.len())..];
        let [.., product] = kernels else { panic!("no kernel for {}", layout.0.name()) };
        assert_eq!(product.ends_with("_64"), tokens == 16, "{} {tokens}: {product}", layout.0.name());
    }
}
