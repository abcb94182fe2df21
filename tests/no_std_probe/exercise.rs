//! What the link probe runs: every operation of the core, every layout, with answers known beforehand.
//! It is not a test of their precision (those stand beside the operations): a generic function that nobody
//! calls is never compiled, so whatever is missing here is not proven free of `std` and `alloc`.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bantam_core::arena::Layouter;
use bantam_core::layouts::page::PageShape;
use bantam_core::layouts::{LAYOUTS, Layout, Shape};
use bantam_core::ops::backward::activation::activate as bend;
use bantam_core::ops::backward::attention;
use bantam_core::ops::backward::loss::{Entropy, Smooth};
use bantam_core::ops::backward::norm::norm_row;
use bantam_core::ops::backward::numbers::{self, Lying, Numbers, Rows};
use bantam_core::ops::backward::products::{self, Part};
use bantam_core::ops::ceiling;
use bantam_core::ops::crew::Crew;
use bantam_core::ops::matmul::panel_bytes;
use bantam_core::ops::norm::RowNorm;
use bantam_core::{
    Activation, Arena, Attention, Backend, Batch, Choice, Cpu, CpuBackend, Feed, Heads, KvCache, KvKind,
    Matrix, Norm, NormKind, Precision, Product, Region, Rope, Routed, RowPer, Serial, Slot,
};

/// Memory of a region, aligned as an arena demands.
#[repr(align(64))]
struct Block([u8; 16 * 1024]);

/// Channels of everything here: one tile of rows, one block of `code8`.
const WIDTH: usize = 32;
const HEADS: Heads = Heads { count: 2, width: WIDTH / 2 };

/// Runs everything; the error names what gave a wrong answer.
pub(crate) fn exercise() -> Result<(), &'static str> {
    for cpu in Cpu::detect().variants() {
        for precision in [Precision::Exact, Precision::Fast] {
            for &layout in LAYOUTS {
                layout_and_product(cpu, precision, layout)?;
            }
            for kind in [KvKind::F32, KvKind::F16, KvKind::Int8] {
                attention(cpu, precision, kind)?;
            }
            rows(cpu, precision)?;
            experts(cpu, precision)?;
        }
        ceilings(cpu)?;
        backward(cpu)?;
    }
    crew()
}

type Probe<'a> = CpuBackend<&'a mut [u8], Serial>;

/// The slots of a probe: a matrix and two vectors, four activations, room for prepared input.
struct Slots {
    matrix: Slot,
    vectors: [Slot; 2],
    rows: [Slot; 4],
    panels: Slot,
}

impl Slots {
    fn new() -> Result<Self, &'static str> {
        let (mut weights, mut work) = (Layouter::new(Region::Weights), Layouter::new(Region::Work));
        let mut vector = || weights.slot(WIDTH * 4).ok_or("a slot for a vector");
        let vectors = [vector()?, vector()?];
        let matrix = weights.slot(8 * 1024).ok_or("a slot for a matrix")?;
        let mut row = || work.slot(2 * WIDTH * 4).ok_or("a slot for activations");
        let rows = [row()?, row()?, row()?, row()?];
        let panels = work.slot(8 * 1024).ok_or("a slot for prepared input")?;
        Ok(Slots { matrix, vectors, rows, panels })
    }
}

/// A backend over three blocks, its activations filled with -1, 0, 1, 0, -1 …
fn probe<'a>(cpu: Cpu, precision: Precision, blocks: &'a mut [Block; 3], slots: &Slots) -> Probe<'a> {
    let [weights, cache, work] = blocks;
    let arena = Arena::new(&mut weights.0[..], &mut cache.0[..], &mut work.0[..]);
    let mut probe = CpuBackend::new(cpu, precision, Serial, arena, slots.panels);
    for slot in slots.rows {
        for (i, x) in probe.arena_mut().floats_mut(slot).iter_mut().enumerate() {
            *x = pattern(i);
        }
    }
    probe
}

fn pattern(i: usize) -> f32 {
    [-1.0, 0.0, 1.0, 0.0][i % 4]
}

fn blocks() -> [Block; 3] {
    [const { Block([0; 16 * 1024]) }; 3]
}

fn near(found: &[f32], wanted: impl Fn(usize) -> f32, what: &'static str) -> Result<(), &'static str> {
    let within = |(i, found): (usize, &f32)| (found - wanted(i)).abs() <= 0.02 * (1.0 + wanted(i).abs());
    if found.iter().enumerate().all(within) { Ok(()) } else { Err(what) }
}

/// Twice the identity: packed, read back as embeddings, multiplied with and without bias, added.
fn layout_and_product(
    cpu: Cpu,
    precision: Precision,
    layout: &'static dyn Layout,
) -> Result<(), &'static str> {
    let (slots, mut blocks) = (Slots::new()?, blocks());
    let mut probe = probe(cpu, precision, &mut blocks, &slots);
    let shape = Shape { rows: WIDTH, columns: WIDTH };
    let mut identity = [0.0f32; WIDTH * WIDTH];
    identity.iter_mut().step_by(WIDTH + 1).for_each(|x| *x = 2.0);
    let bytes = Matrix::bytes(layout, shape).ok_or("the size of a matrix")?;
    let slot = Slot { bytes, ..slots.matrix };
    let matrix = Matrix::plain(layout, shape, slot);
    if panel_bytes(layout.form(precision, cpu), WIDTH, 2) > slots.panels.bytes || bytes > slots.matrix.bytes {
        return Err(layout.name());
    }
    let arena = probe.arena_mut();
    if layout.pack(WIDTH, &identity, arena.write(slot)).is_err() {
        return Err(layout.name());
    }
    arena.floats_mut(slots.vectors[0]).fill(0.5);
    let [x, a, b, c] = slots.rows;
    let product = |out, bias, add| Product { matrix, bias, out, add };
    probe.embed(&matrix, &[3, 31], 1.5, a);
    let embedded = |i: usize| if i == 3 || i == WIDTH + 31 { 3.0 } else { 0.0 };
    near(probe.read(a), embedded, layout.name())?;
    probe.matmul(2, x, &[product(a, Some(slots.vectors[0]), false)]);
    near(probe.read(a), |i| 2.0 * pattern(i) + 0.5, layout.name())?;
    probe.matmul(1, x, &[product(a, None, true), product(b, None, false)]);
    near(&probe.read(a)[..WIDTH], |i| 4.0 * pattern(i) + 0.5, layout.name())?;
    probe.matmul(2, x, &[product(a, None, false), product(b, None, false), product(c, None, true)]);
    near(probe.read(b), |i| 2.0 * pattern(i), layout.name())?;
    near(probe.read(c), |i| 3.0 * pattern(i), layout.name())
}

/// Two tokens that see themselves and what came before; a sink, a cap and a window leave the first one's value.
fn attention(cpu: Cpu, precision: Precision, kind: KvKind) -> Result<(), &'static str> {
    let (slots, mut blocks) = (Slots::new()?, blocks());
    let mut probe = probe(cpu, precision, &mut blocks, &slots);
    let shape = PageShape { width: HEADS.width, kind };
    let cache =
        KvCache { slot: Slot { region: Region::Cache, offset: 0, bytes: shape.bytes() }, heads: 1, shape };
    let feed = Feed { first_row: 0, rows: 2, first_position: 0, sequence: 0, length: 2 };
    let batch = Batch { feeds: &[feed], tables: &[0], pages_per_sequence: 1 };
    let [queries, keys, values, out] = slots.rows;
    // One key head with equal keys: every position weighs the same. The values of the two positions are 1 and 3.
    probe.arena_mut().floats_mut(keys).fill(0.25);
    let all = probe.arena_mut().floats_mut(values);
    all[..HEADS.width].fill(1.0);
    all[HEADS.width..].fill(3.0);
    probe.store(&cache, &batch, keys.first(2 * HEADS.width), values.first(2 * HEADS.width));
    let plain = Attention { heads: HEADS, scale: 0.25, window: None, softcap: None, sinks: None };
    probe.attend(&plain, &cache, &batch, queries, out);
    let second = |i: usize| i >= WIDTH;
    near(probe.read(out), |i| if second(i) { 2.0 } else { 1.0 }, "attention")?;
    probe.arena_mut().floats_mut(slots.vectors[0]).fill(0.0);
    let bent = Attention { window: Some(1), softcap: Some(20.0), sinks: Some(slots.vectors[0]), ..plain };
    probe.arena_mut().floats_mut(queries).fill(0.0);
    probe.attend(&bent, &cache, &batch, queries, out);
    // A sink of zero weighs as much as a score of zero: half of the value is left.
    near(probe.read(out), |i| if second(i) { 1.5 } else { 0.5 }, "attention with a sink")
}

/// What works row by row: norms, rotary positions, activations, gathering.
fn rows(cpu: Cpu, precision: Precision) -> Result<(), &'static str> {
    let (slots, mut blocks) = (Slots::new()?, blocks());
    let mut probe = probe(cpu, precision, &mut blocks, &slots);
    let [weight, bias] = slots.vectors;
    probe.arena_mut().floats_mut(weight).fill(1.0);
    probe.arena_mut().floats_mut(bias).fill(0.25);
    let [x, a, b, angles] = slots.rows;
    for kind in [NormKind::Rms, NormKind::Layer] {
        let norm = Norm { kind, width: WIDTH, epsilon: 1e-6, weight_shift: 1.0, weight, bias: Some(bias) };
        // Mean 0, mean square 1/2, and a weight of two.
        probe.norm(&norm, 2, x, a);
        near(probe.read(a), |i| 2.828_427 * pattern(i) + 0.25, "norm")?;
    }
    // A quarter turn per position: the second token's pairs (a, b) become (-b, a).
    let frequencies = weight.first(HEADS.width / 2);
    probe.arena_mut().floats_mut(frequencies).fill(core::f32::consts::FRAC_PI_2);
    let rope = Rope { frequencies, scale: 1.0, longer: None };
    let feed = Feed { first_row: 0, rows: 2, first_position: 0, sequence: 0, length: 2 };
    let batch = Batch { feeds: &[feed], tables: &[0], pages_per_sequence: 1 };
    let angles = angles.first(2 * HEADS.width);
    probe.angles(&rope, &batch, angles);
    probe.gather(&[1, 0], WIDTH, x, b);
    probe.rotate(2, angles, HEADS, b);
    let turned = |i: usize| match (i >= WIDTH, i % HEADS.width < HEADS.width / 2) {
        (false, _) => pattern(i),
        (true, true) => -pattern(i + HEADS.width / 2),
        (true, false) => pattern(i - HEADS.width / 2),
    };
    near(probe.read(b), turned, "rotary positions")?;
    let functions: [(Activation, f32, f32); 5] = [
        (Activation::ClampedSwish, 0.845_796, -0.154_204),
        (Activation::Silu, 0.731_059, -0.268_941),
        (Activation::Gelu, 0.841_345, -0.158_655),
        (Activation::GeluTanh, 0.841_192, -0.158_808),
        (Activation::Relu, 1.0, 0.0),
    ];
    for (function, of_one, of_minus_one) in functions {
        probe.arena_mut().floats_mut(b).fill(3.0);
        for up in [None, Some(b)] {
            probe.gather(&[0, 1], WIDTH, x, a);
            probe.activate(function, 2, WIDTH, a, up);
            let times = match (up, function) {
                (None, _) => 1.0,
                (Some(_), Activation::ClampedSwish) => 4.0,
                (Some(_), _) => 3.0,
            };
            let bent = |i: usize| times * [of_minus_one, 0.0, of_one, 0.0][i % 4];
            near(probe.read(a), bent, "activation")?;
        }
    }
    Ok(())
}

/// Two experts that double, of which two tokens choose one each: the shares are whole. Then sums and limits.
fn experts(cpu: Cpu, precision: Precision) -> Result<(), &'static str> {
    let (slots, mut blocks) = (Slots::new()?, blocks());
    let mut probe = probe(cpu, precision, &mut blocks, &slots);
    let (layout, shape) = (LAYOUTS[0], Shape { rows: 1, columns: WIDTH });
    let bytes = 2 * Matrix::bytes(layout, shape).ok_or("the size of a stack")?;
    let slot = Slot { bytes, ..slots.matrix };
    for expert in 0..2 {
        let of_one = Slot { offset: slot.offset + expert * bytes / 2, bytes: bytes / 2, ..slot };
        let row = [2.0 + expert as f32; WIDTH];
        layout.pack(WIDTH, &row, probe.arena_mut().write(of_one)).map_err(|_| "packing a stack")?;
    }
    let choice = Choice { experts: 2, chosen: 1 };
    let [x, logits, out, routing] = slots.rows;
    let places = routing.first(choice.bytes(2).ok_or("the size of a routing")? / 4);
    let routed = Routed { choice, slot: places, part: None };
    probe.arena_mut().floats_mut(x).fill(1.0);
    probe.arena_mut().floats_mut(logits)[..4].copy_from_slice(&[0.0, 1.0, 1.0, 0.0]);
    probe.route(&routed, 2, logits.first(4));
    let stack = Product { matrix: Matrix::plain(layout, shape, slot), bias: None, out: logits, add: false };
    probe.matmul_experts(&routed, 2, RowPer::Token, x, &[stack]);
    probe.arena_mut().floats_mut(out).fill(0.5);
    probe.combine(&routed, 2, 1, logits, out);
    let width = WIDTH as f32;
    near(&probe.read(out)[..2], |row| [3.0 * width + 0.5, 2.0 * width + 0.5][row], "experts")?;
    probe.add(1, 2, x, out);
    near(&probe.read(out)[..2], |row| [3.0 * width + 1.5, 2.0 * width + 1.5][row], "sums")?;
    // One channel: of the first expert's place doubled, of the second's tripled and one more.
    let [factors, bias] = slots.vectors;
    probe.arena_mut().floats_mut(factors)[..2].copy_from_slice(&[2.0, 3.0]);
    probe.arena_mut().floats_mut(bias)[..2].copy_from_slice(&[0.0, 1.0]);
    probe.arena_mut().floats_mut(logits)[..2].fill(1.0);
    probe.scale(Some(&routed), 2, 1, factors, Some(bias), logits);
    near(&probe.read(logits)[..2], |place| [2.0, 4.0][place], "factors of experts")?;
    probe.cap(1.0, 1, 2, x);
    near(&probe.read(x)[..2], |_| 0.761_594_2, "limits")
}

/// Gradients of what has simple ones: products of a row of ones, a token that sees itself alone.
fn backward(cpu: Cpu) -> Result<(), &'static str> {
    let shape = Shape { rows: 2, columns: 3 };
    let (mut scratch, mut out) = ([0.0f32; 16 * 1024], [0.0f32; 6]);
    // One to six in bfloat16.
    let bytes = [0x80, 0x3f, 0x00, 0x40, 0x40, 0x40, 0x80, 0x40, 0xa0, 0x40, 0xc0, 0x40];
    let lying = Lying { bytes: &bytes, columns: 3, first: 0, skip: 0, run: 2, every: 2 };
    let (rows, form) = (Rows::Lying(lying), products::form(cpu, true));
    let enough = products::transposed_floats(form, &rows, shape, 1, 1)
        .max(products::cross_floats(form, 2, 1, 1))
        .max(products::floats(form, 2, 1, 1));
    if enough > scratch.len() {
        return Err("scratch of a small product");
    }
    let machine = (cpu, form);
    products::transposed(machine, &Serial, &rows, shape, &[1.0, 1.0], &mut out[..3], false, &mut scratch);
    near(&out[..3], |column| [5.0, 7.0, 9.0][column], "gradients of inputs")?;
    let matrix = numbers::Matrix { shape, numbers: Numbers::Lying(lying), turned: true };
    let part = Part { matrix, bias: None, out: &mut out[..3], add: true };
    products::multiply(machine, &Serial, &[1.0, 1.0], &mut [part], &mut scratch);
    near(&out[..3], |column| [10.0, 14.0, 18.0][column], "gradients of inputs by tiles")?;
    out.fill(0.0);
    products::cross(machine, &Serial, (&[1.0, 2.0], 2, 0), &[1.0; 3], 3, &mut out, &mut scratch);
    near(&out, |at| [1.0, 2.0][at / 3], "gradients of weights")?;
    products::sum_rows(&[1.0, 2.0, 3.0, 4.0], &mut out[..2]);
    near(&out[..2], |at| [5.0, 7.0][at], "gradients of biases")?;

    let (weight, mut d) = ([1.0; 2], [0.0; 2]);
    let norm =
        RowNorm { kind: NormKind::Layer, epsilon: 1e-5, weight_shift: 0.0, weight: &weight, bias: None };
    norm_row(&norm, &[1.0, -1.0], &[3.0, 3.0], &mut d, false, None, None);
    near(&d, |_| 0.0, "gradients of norms")?;
    let mut d = [2.0, 2.0];
    bend(cpu, Activation::Relu, &[-1.0, 1.0], None, &mut d);
    near(&d, |at| [0.0, 2.0][at], "gradients of bends")?;

    let shape = attention::Shape {
        heads: 1,
        kv_heads: 1,
        width: 2,
        scale: 1.0,
        window: None,
        softcap: None,
        sinks: None,
        documents: &[1],
    };
    let (x, mut out, mut logs, mut grown) = ([1.0, 2.0], [0.0; 2], [0.0; 1], [[0.0f32; 2]; 3]);
    let x = attention::Operands { queries: &x, keys: &x, values: &x };
    attention::attend(cpu, &Serial, &shape, x, &mut out, &mut logs, &mut scratch);
    near(&out, |at| [1.0, 2.0][at], "attention to oneself")?;
    let [queries, keys, values] = &mut grown;
    let d = attention::Gradients { queries, keys, values, sinks: None };
    attention::attend_backward(cpu, &Serial, &shape, x, &logs, &[3.0, 4.0], d, &mut scratch);
    near(grown.as_flattened(), |at| [0.0, 0.0, 0.0, 0.0, 3.0, 4.0][at], "gradients of attention")?;

    let (mut entropy, mut logits) = (Entropy::default(), [0.0; 2]);
    entropy.see(cpu, 0, 1, &mut logits);
    entropy.add_up(cpu, &logits);
    entropy.gradient(cpu, (0, 1), Smooth { share: 0.5, vocab: 2 }, 1.0, &mut logits);
    near(&logits, |at| [0.25, -0.25][at], "gradients of a loss")?;
    near(&[entropy.loss(Smooth::NONE) as f32], |_| core::f32::consts::LN_2, "a loss")
}

/// What measures a processor. One round is 24 instructions on 12 sums of 16 lanes.
fn ceilings(cpu: Cpu) -> Result<(), &'static str> {
    let mut block = Block([0; 16 * 1024]);
    block.0[4 * 1024..][..4].copy_from_slice(&7.5f32.to_le_bytes());
    if ceiling::read(cpu, &block.0) != 7.5 {
        return Err("the largest number of a block");
    }
    let (sum, operations) = ceiling::multiply_add(cpu, 1);
    if (sum - 0.9998).abs() > 1e-4 || operations < 24 {
        return Err("multiply-adds");
    }
    // Two products of four ones in each lane; two of two squares of 2^-7.
    if ceiling::dot_int8(cpu, 1).is_some_and(|(sum, _)| sum != 12 * 16 * 2 * 4) {
        return Err("int8 dots");
    }
    if ceiling::dot_bf16(cpu, 1).is_some_and(|(sum, _)| sum != 12.0 * 16.0 * 2.0 * 2.0 / 16384.0) {
        return Err("bfloat16 dots");
    }
    Ok(())
}

/// A follower that is there when the job opens takes all its tasks.
fn crew() -> Result<(), &'static str> {
    let (crew, sum) = (Crew::default(), AtomicUsize::new(0));
    let work = |task: usize| {
        sum.fetch_add(task + 1, SeqCst);
    };
    crew.lead(4, &work, || {
        crew.follow();
    });
    if sum.load(SeqCst) == 10 && !crew.has_work() { Ok(()) } else { Err("the crew's tasks") }
}
