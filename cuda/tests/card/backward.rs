//! Operations backwards beside the processor's.

use bantam_core::layouts::{LAYOUTS, Shape};
use bantam_core::ops::backward::{activation, attention, experts, loss, norm};
use bantam_core::ops::experts::Routing;
use bantam_core::ops::norm::RowNorm;
use bantam_core::{
    Activation, Backend, Choice, Cpu, Heads, Norm, NormKind, Precision, Product, Routed, Serial, Slot,
};
use bantam_cuda::{CudaBackend, Documents};
use bantam_cusim::is_child;
use bantam_model::card::Passing;

use crate::both::{Both, Layouters, noise, pack, with};

/// Numbers within `tolerance` of the largest.
fn check(what: &str, card: &CudaBackend, slot: Slot, wanted: &[f32], tolerance: f32) {
    let found = card.read(slot).to_vec();
    assert_eq!((card.fault(), found.len()), (None, wanted.len()), "{what}");
    let most = wanted.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
    for (i, (wanted, found)) in wanted.iter().zip(&found).enumerate() {
        assert!(
            (wanted - found).abs() <= tolerance * most,
            "{what}: {found}, not {wanted}, at {i} of {most}"
        );
    }
}

/// Slots of the work region full of noise, on the card; their values.
fn work<const N: usize>(counts: [usize; N], test: impl FnOnce(&mut CudaBackend, [Slot; N], [Vec<f32>; N])) {
    let mut plan = Layouters::new();
    let slots = counts.map(|count| plan.work(count));
    let panels = plan.work(16);
    let mut seed = 0;
    let values = counts.map(|count| {
        seed += 1;
        noise(seed, count)
    });
    let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
        for (slot, values) in slots.iter().zip(&values) {
            arena.floats_mut(*slot).copy_from_slice(values);
        }
    };
    with(&plan, panels, Precision::Exact, fill, |both: &mut Both| {
        test(&mut both.card, slots, values.clone())
    });
}

/// Words as they lie in a slot of floats.
fn words(list: impl IntoIterator<Item = usize>) -> Vec<f32> {
    list.into_iter().map(|word| f32::from_bits(word as u32)).collect()
}

fn put(card: &mut CudaBackend, slot: Slot, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    card.upload(slot.region, slot.offset, &bytes);
}

#[test]
fn bends_and_caps_backwards_match_the_processor() {
    if !is_child("backward::bends_and_caps_backwards_match_the_processor", &[]) {
        return;
    }
    use Activation::{ClampedSwish, Gelu, GeluTanh, Relu, Silu};
    for kind in [Silu, Gelu, GeluTanh, Relu, ClampedSwish] {
        for gated in [false, true] {
            work([300, 300, 300, 300], |card, [gate, up, dup, d], [mut x, mut y, mut dy_up, mut dy]| {
                for values in [&mut x, &mut y] {
                    values.iter_mut().for_each(|x| *x *= 9.0);
                }
                put(card, gate, &x);
                put(card, up, &y);
                card.activate_back(kind, 300, gate, gated.then_some((up, dup)), d);
                let ups = gated.then_some((&y[..], &mut dy_up[..]));
                activation::activate(Cpu::detect(), kind, &x, ups, &mut dy);
                check(&format!("{kind:?} of gate"), card, d, &dy, 1e-5);
                check(&format!("{kind:?} of up"), card, dup, &dy_up, 1e-5);
            });
        }
    }
    work([100, 100], |card, [y, d], [values, mut dy]| {
        card.cap_back(3.0, 100, y, d);
        activation::cap(3.0, &values, &mut dy);
        check("cap", card, d, &dy, 1e-6);
    });
}

#[test]
fn norms_backwards_match_the_processor() {
    if !is_child("backward::norms_backwards_match_the_processor", &[]) {
        return;
    }
    for (kind, width, add) in [(NormKind::Rms, 70, false), (NormKind::Layer, 300, true)] {
        let rows = 3;
        let counts = [rows * width, rows * width, rows * width, width, width, width, 2 * rows];
        work(counts, |card, [x, dy, dx, weight, dweight, dbias, stats], values| {
            let norm_of = Norm { kind, width, epsilon: 1e-5, weight_shift: 0.5, weight, bias: None };
            card.norm_back(&norm_of, rows, x, dy, dx, add, stats);
            card.norm_back_weights([rows, width], x, dy, stats, [Some(dweight), Some(dbias)]);
            let [vx, vdy, mut vdx, vw, mut vdw, mut vdb, _] = values;
            let row = RowNorm { kind, epsilon: 1e-5, weight_shift: 0.5, weight: &vw, bias: None };
            for ((x, dy), dx) in
                vx.chunks_exact(width).zip(vdy.chunks_exact(width)).zip(vdx.chunks_exact_mut(width))
            {
                norm::norm_row(&row, x, dy, dx, add, Some(&mut vdw), Some(&mut vdb));
            }
            check("rows", card, dx, &vdx, 1e-5);
            check("weight", card, dweight, &vdw, 1e-5);
            check("bias", card, dbias, &vdb, 1e-5);
        });
    }
}

#[test]
fn experts_backwards_match_the_processor() {
    if !is_child("backward::experts_backwards_match_the_processor", &[]) {
        return;
    }
    let (choice, rows, width) = (Choice { experts: 5, chosen: 3 }, 4, 70);
    let places = choice.places(rows) * width;
    let memory = choice.bytes(rows).expect("small") / 4;
    let counts = [rows * choice.experts, memory, places, rows * width, places, rows * choice.experts];
    work(counts, |card, [logits, slot, parts, dy, dparts, dlogits], values| {
        let routed = Routed { choice, slot, part: None };
        card.route(&routed, rows, logits);
        card.combine_back(&routed, [rows, width], [parts, dy], [dparts, dlogits]);
        let [vlogits, mut memory, vparts, vdy, mut vdparts, mut vdlogits] = values;
        let mut routing = Routing::over(choice, rows, &mut memory);
        routing.route(choice, &vlogits);
        experts::combine(&routing, choice, width, &vparts, &vdy, &mut vdparts, &mut vdlogits);
        check("parts", card, dparts, &vdparts, 1e-5);
        check("logits", card, dlogits, &vdlogits, 1e-5);
    });
}

#[test]
fn the_loss_and_its_gradient_match_the_processor() {
    if !is_child("backward::the_loss_and_its_gradient_match_the_processor", &[]) {
        return;
    }
    // A vocabulary of two chunks; the last row has no label.
    let (rows, width) = (3, 200);
    let labels = [7, 301, usize::MAX];
    let counts = [rows * width, rows * width, rows, rows, 3 * rows];
    work(counts, |card, [a, b, own, scales, known], [mut va, mut vb, ..]| {
        put(card, own, &words(labels));
        let factors = [0.5, 2.0, 0.0];
        put(card, scales, &factors);
        for (values, slot) in [(&mut va, a), (&mut vb, b)] {
            values.iter_mut().for_each(|x| *x *= 12.0);
            put(card, slot, values);
        }
        card.entropy_see([rows, width, 0], a, own, known);
        card.entropy_see([rows, width, width], b, own, known);
        card.entropy_back([rows, width, 0], a, [own, scales], known);
        card.entropy_back([rows, width, width], b, [own, scales], known);
        let known = card.read(known).to_vec();
        let cpu = Cpu::PORTABLE;
        for row in 0..rows {
            let (part, label) = (row * width..(row + 1) * width, labels[row]);
            let mut entropy = loss::Entropy::default();
            for (first, values) in [(0, &va), (width, &vb)] {
                entropy.see(cpu, first, label, &values[part.clone()]);
            }
            if label < 2 * width {
                let found = known[3 * row] + known[3 * row + 1].ln() - known[3 * row + 2];
                let wanted = entropy.loss(loss::Smooth::NONE);
                assert!((f64::from(found) - wanted).abs() < 1e-4, "{found}, not {wanted}");
            }
            for (first, values) in [(0, &mut va), (width, &mut vb)] {
                let (values, plain) = (&mut values[part.clone()], loss::Smooth::NONE);
                entropy.gradient(cpu, (first, label), plain, factors[row], values);
            }
        }
        check("first chunk", card, a, &va, 1e-5);
        check("second chunk", card, b, &vb, 1e-5);
    });
}

#[test]
fn attention_over_documents_matches_the_processor_both_ways() {
    if !is_child("backward::attention_over_documents_matches_the_processor_both_ways", &[]) {
        return;
    }
    let documents = [5usize, 140];
    let rows: usize = documents.iter().sum();
    let bounds = bounds(&documents);
    for (heads, kv_heads, width, window, softcap, has_sinks) in
        [(2, 1, 12, None, None, false), (4, 2, 8, Some(9), Some(2.0), true)]
    {
        let (wide, narrow) = (rows * heads * width, rows * kv_heads * width);
        let logs = heads * rows;
        let counts = [
            wide,
            narrow,
            narrow,
            heads,
            wide,
            wide,
            logs,
            rows,
            rows,
            wide,
            narrow,
            narrow,
            heads,
            3 * logs,
        ];
        work(counts, |card, slots, values| {
            let [q, k, v, sink, dy, out, log, starts, ends, dq, dk, dv, dsink, known] = slots;
            put(card, starts, &words(bounds.iter().map(|(start, _)| *start)));
            put(card, ends, &words(bounds.iter().map(|(_, end)| *end)));
            let of = Documents {
                x: [q, k, v],
                sinks: has_sinks.then_some(sink),
                bounds: [starts, ends],
                rows,
                heads: Heads { count: heads, width },
                kv_heads,
                scale: 0.7,
                window,
                softcap,
            };
            card.documents(&of, out, log);
            card.documents_back(&of, [log, dy, known], [dq, dk, dv], has_sinks.then_some(dsink));
            let [q, k, v, sink, dy, .., dsinks, _] = values;
            let shape = attention::Shape {
                heads,
                kv_heads,
                width,
                scale: of.scale,
                window,
                softcap,
                sinks: has_sinks.then_some(&sink),
                documents: &documents,
            };
            let x = attention::Operands { queries: &q, keys: &k, values: &v };
            let wanted = processor(&shape, x, &dy, dsinks);
            for (n, (slot, wanted)) in [out, log, dq, dk, dv, dsink].into_iter().zip(&wanted).enumerate() {
                check(&format!("{heads} heads, result {n}"), card, slot, wanted, 2e-5);
            }
        });
    }
}

/// Of every row the first of its document and the one after its last.
fn bounds(documents: &[usize]) -> Vec<(usize, usize)> {
    let mut bounds: Vec<(usize, usize)> = Vec::new();
    for &rows in documents {
        let start = bounds.len();
        bounds.resize(start + rows, (start, start + rows));
    }
    bounds
}

/// Results, logarithms, and the gradients of queries, keys, values and sinks.
fn processor(
    shape: &attention::Shape,
    x: attention::Operands,
    dy: &[f32],
    mut sinks: Vec<f32>,
) -> [Vec<f32>; 6] {
    let rows: usize = shape.documents.iter().sum();
    let room = |count: usize| vec![0.0; count];
    let (mut out, mut logs) = (room(dy.len()), room(shape.heads * rows));
    let [mut queries, mut keys, mut values] = [dy, x.keys, x.values].map(|like| room(like.len()));
    let (cpu, mut scratch) = (Cpu::PORTABLE, room(shape.scratch_floats(1)));
    attention::attend(cpu, &Serial, shape, x, &mut out, &mut logs, &mut scratch);
    let has_sinks = shape.sinks.is_some();
    let (queries_of, keys_of, values_of) = (&mut queries[..], &mut keys[..], &mut values[..]);
    let sinks_of = has_sinks.then_some(&mut sinks[..]);
    let d = attention::Gradients { queries: queries_of, keys: keys_of, values: values_of, sinks: sinks_of };
    attention::attend_backward(cpu, &Serial, shape, x, &logs, dy, d, &mut scratch);
    [out, logs, queries, keys, values, sinks]
}

#[test]
fn products_of_every_layout_go_backwards() {
    if !is_child("backward::products_of_every_layout_go_backwards", &[]) {
        return;
    }
    for layout in LAYOUTS {
        let (outputs, columns, rows) = (70, 96, 5);
        let mut plan = Layouters::new();
        let matrix = plan.matrix(*layout, Shape { rows: outputs, columns }, 1, 1);
        let [dy, x, dx] = [outputs, columns, columns].map(|width| plan.work(rows * width));
        let (dw, unpacked) = (plan.work(outputs * columns), plan.work(64 * columns));
        let panels = plan.work(16);
        let [vdy, vx, before] =
            [(1, outputs), (2, columns), (3, columns)].map(|(seed, width)| noise(seed, rows * width));
        let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
            pack(arena, &matrix, 1, 7);
            arena.floats_mut(dy).copy_from_slice(&vdy);
            arena.floats_mut(x).copy_from_slice(&vx);
            arena.floats_mut(dx).copy_from_slice(&before);
        };
        let (mut wanted, mut gradient) = (before.clone(), vec![0.0; outputs * columns]);
        with(&plan, panels, Precision::Exact, fill, |both| {
            let tile_bytes = layout.tile_bytes(columns);
            let mut weights = vec![0.0; outputs * columns];
            for (row, out) in weights.chunks_exact_mut(columns).enumerate() {
                let tile = &both.cpu.arena().read(matrix.slot)[row / 32 * tile_bytes..][..tile_bytes];
                layout.unpack(columns, tile, row % 32, out);
            }
            put(&mut both.card, dw, &gradient);
            both.card.product_back(&matrix, rows, dy, dx, true, unpacked);
            both.card.matrix_back([outputs, columns], rows, dy, x, dw);
            for row in 0..rows {
                for o in 0..outputs {
                    let d = vdy[row * outputs + o];
                    for c in 0..columns {
                        wanted[row * columns + c] += d * weights[o * columns + c];
                        gradient[o * columns + c] += d * vx[row * columns + c];
                    }
                }
            }
            check(&format!("{} of the input", layout.name()), &both.card, dx, &wanted, 1e-5);
            check(&format!("{} of the matrix", layout.name()), &both.card, dw, &gradient, 1e-5);
        });
    }
}

/// Whether pieces were sent before they were asked for, of this matrix, of another, or not at all.
#[test]
fn matrices_that_pass_go_backwards_with_the_bits_of_those_that_stand() {
    if !is_child("backward::matrices_that_pass_go_backwards_with_the_bits_of_those_that_stand", &[]) {
        return;
    }
    for layout in LAYOUTS {
        // Seven tiles: two pieces.
        let (outputs, columns, rows) = (200, 96, 5);
        let mut plan = Layouters::new();
        let [matrix, other] = [(); 2].map(|()| plan.matrix(*layout, Shape { rows: outputs, columns }, 1, 1));
        let [dy, stands, passes] = [outputs, columns, columns].map(|width| plan.work(rows * width));
        let (unpacked, panels) = (plan.work(64 * columns), plan.work(16));
        let values = noise(1, rows * outputs);
        let fill = |arena: &mut bantam_core::Arena<crate::both::Block>| {
            pack(arena, &matrix, 1, 7);
            pack(arena, &other, 1, 8);
            arena.floats_mut(dy).copy_from_slice(&values);
        };
        with(&plan, panels, Precision::Exact, fill, |both| {
            let weights = both.cpu.arena().weights.to_vec();
            let mut fill = |at: usize, to: &mut [u8]| to.copy_from_slice(&weights[at..at + to.len()]);
            both.card.product_back(&matrix, rows, dy, stands, false, unpacked);
            let wanted = both.card.read(stands).to_vec();
            assert!(both.card.take_ring(4 * layout.tile_bytes(columns)), "memory for a ring");
            let product = Product { matrix, bias: None, out: passes, add: false };
            for ahead in [None, Some(matrix), Some(other), Some(matrix)] {
                if let Some(ahead) = ahead {
                    both.card.send_ahead(&ahead, &mut fill);
                }
                both.card.upload(passes.region, passes.offset, &vec![0xff; passes.bytes]);
                let passing = Passing { stands: false, ..Passing::plain(&product) };
                both.card.pass_back(rows, dy, &passing, unpacked, &mut fill);
                let found = both.card.read(passes).to_vec();
                assert_eq!((both.card.fault(), &found), (None, &wanted), "{} {ahead:?}", layout.name());
            }
        });
    }
}
