//! One suite for every layout: packing, and every processor variant against the definition in float64.

extern crate std;

use super::*;
use crate::layouts::panels::Taken;
use crate::ops::crew::Serial;
use crate::ops::matmul::{Input, Output, Segment, multiply, panel_bytes};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// A small generator, so that a failure names everything that it depends on.
pub(crate) fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
    }
}

/// Memory aligned as an arena's.
fn aligned(bytes: usize) -> Vec<[u64; 8]> {
    vec![[0; 8]; bytes.div_ceil(64)]
}

struct Case {
    layout: &'static dyn Layout,
    shape: Shape,
    tiles: Vec<[u64; 8]>,
}

impl Case {
    fn new(layout: &'static dyn Layout, rows: usize, columns: usize, seed: u64) -> Self {
        let shape = Shape { rows, columns };
        let mut next = noise(seed);
        let tile_bytes = layout.tile_bytes(columns);
        assert_eq!(tile_bytes % 64, 0, "tiles are whole cache lines");
        let mut tiles = aligned(shape.tiles() * tile_bytes);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut tiles);
        for (tile, bytes) in bytes.chunks_exact_mut(tile_bytes).enumerate() {
            let count = TILE_ROWS.min(rows - tile * TILE_ROWS);
            let weights: Vec<f32> = (0..count * columns).map(|_| next()).collect();
            layout.pack(columns, &weights, bytes).expect("finite");
        }
        Case { layout, shape, tiles }
    }

    fn tiles(&self) -> &[u8] {
        bytemuck::cast_slice(&self.tiles)
    }

    fn row(&self, row: usize) -> Vec<f32> {
        let bytes = self.layout.tile_bytes(self.shape.columns);
        let mut out = vec![0.0; self.shape.columns];
        self.layout.unpack(
            self.shape.columns,
            &self.tiles()[row / TILE_ROWS * bytes..][..bytes],
            row % TILE_ROWS,
            &mut out,
        );
        out
    }

    fn multiply(
        &self,
        cpu: Cpu,
        precision: Precision,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        add: bool,
    ) {
        let tokens = x.len() / self.shape.columns;
        let form = self.layout.form(precision, cpu);
        let mut panels = aligned(panel_bytes(form, self.shape.columns, tokens));
        let Case { layout, shape, .. } = *self;
        let output = Output { layout, shape, tiles: self.tiles(), taken: Taken::PLAIN, bias, out, add };
        let input = Input { x, columns: self.shape.columns, order: None };
        let panels = bytemuck::cast_slice_mut(&mut panels);
        multiply(cpu, precision, &Serial, input, &[[0, 0, tokens as u32]], panels, &mut [output]);
    }
}

/// The product in float64, from the definition of the layout.
fn reference(case: &Case, x: &[f32], token: usize, row: usize) -> (f64, f64) {
    let columns = case.shape.columns;
    let x = &x[token * columns..][..columns];
    case.row(row).iter().zip(x).fold((0.0, 0.0), |(sum, size), (&w, &x)| {
        let term = f64::from(w) * f64::from(x);
        (sum + term, size + term.abs())
    })
}

fn check(layout: &'static dyn Layout, rows: usize, columns: usize, tokens: usize, seed: u64) {
    let case = Case::new(layout, rows, columns, seed);
    let mut next = noise(seed ^ 0x5555);
    let x: Vec<f32> = (0..tokens * columns).map(|_| next()).collect();
    let bias: Vec<f32> = (0..rows).map(|_| next()).collect();
    for precision in [Precision::Exact, Precision::Fast] {
        // Relative to the sum of magnitudes: float32 order of summation; bfloat16 and int8 roundings of one side.
        let mut integer: Option<Vec<f32>> = None;
        for cpu in Cpu::detect().variants() {
            let tolerance = match layout.form(precision, cpu) {
                Form::Float => 2e-6,
                Form::Bf16 => 1.0 / 256.0,
                Form::Int8 { .. } => 1.0 / 64.0,
            };
            let mut out = vec![7.0; tokens * rows];
            case.multiply(cpu, precision, &x, Some(&bias), &mut out, false);
            for token in 0..tokens {
                for row in 0..rows {
                    let (want, size) = reference(&case, &x, token, row);
                    let want = want + f64::from(bias[row]);
                    let got = f64::from(out[token * rows + row]);
                    let error = (got - want).abs();
                    assert!(
                        error <= tolerance * (size + 1.0),
                        "{} {precision:?} {} {rows}x{columns} token {token} row {row}: {got}, not {want}",
                        layout.name(),
                        cpu.name()
                    );
                }
            }
            if let Form::Int8 { .. } = layout.form(precision, cpu) {
                assert_eq!(integer.get_or_insert_with(|| out.clone()), &out, "{} differs", cpu.name());
            }
            same_bits_alone(&case, cpu, precision, &x, &out, &bias);
        }
    }
}

/// A token's result does not depend on the tokens beside it; adding equals adding afterwards.
fn same_bits_alone(case: &Case, cpu: Cpu, precision: Precision, x: &[f32], out: &[f32], bias: &[f32]) {
    let Shape { rows, columns } = case.shape;
    for (token, x) in x.chunks_exact(columns).enumerate() {
        let mut alone = vec![0.0; rows];
        case.multiply(cpu, precision, x, Some(bias), &mut alone, false);
        assert_eq!(alone, out[token * rows..][..rows], "{} {} alone", case.layout.name(), cpu.name());
        let mut added = vec![1.5; rows];
        case.multiply(cpu, precision, x, Some(bias), &mut added, true);
        let wanted: Vec<f32> = alone.iter().map(|y| 1.5 + y).collect();
        assert_eq!(added, wanted, "{} {} added", case.layout.name(), cpu.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_variant_multiplies_as_defined(
        rows in 1usize..80, columns in 1usize..150, tokens in 1usize..27, seed: u64,
    ) {
        for &layout in LAYOUTS {
            check(layout, rows, columns, tokens, seed);
        }
    }
}

/// Wider than what is opened at once, and than what shares side words.
#[test]
fn units_of_blocks_follow_one_another() {
    for &layout in LAYOUTS {
        for tokens in [1, 3, 13] {
            check(layout, 33, 610, tokens, 7);
        }
    }
}

/// Every row of a stack's product is what its own matrix alone makes of it.
fn check_stack(layout: &'static dyn Layout, columns: usize, counts: &[usize], order: &[u32], seed: u64) {
    let rows = 37;
    let cases: Vec<Case> =
        (0..counts.len() as u64).map(|i| Case::new(layout, rows, columns, seed + i)).collect();
    let bytes: Vec<u8> = cases.iter().flat_map(|case| case.tiles().iter().copied()).collect();
    let mut stack = aligned(bytes.len());
    bytemuck::cast_slice_mut(&mut stack).copy_from_slice(&bytes);
    let mut next = noise(seed ^ 0x77);
    let x: Vec<f32> = (0..order.len() * columns).map(|_| next()).collect();
    let bias: Vec<f32> = (0..rows * counts.len()).map(|_| next()).collect();
    let mut segments: Vec<Segment> = Vec::new();
    let mut first = 0;
    for (matrix, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        segments.push([matrix as u32, first, count as u32]);
        first += count as u32;
    }
    let places = first as usize;
    for precision in [Precision::Exact, Precision::Fast] {
        for cpu in Cpu::detect().variants() {
            let mut panels = aligned(panel_bytes(layout.form(precision, cpu), columns, places));
            let panels = bytemuck::cast_slice_mut(&mut panels);
            let mut out = vec![0.0; places * rows];
            let (shape, tiles) = (Shape { rows, columns }, &bytemuck::cast_slice(&stack)[..bytes.len()]);
            let biases = Some(&bias[..]);
            let output =
                Output { layout, shape, tiles, taken: Taken::PLAIN, bias: biases, out: &mut out, add: false };
            let input = Input { x: &x, columns, order: Some(&order[..places]) };
            multiply(cpu, precision, &Serial, input, &segments, panels, &mut [output]);
            for &[matrix, first, count] in &segments {
                let (matrix, bias) = (matrix as usize, &bias[matrix as usize * rows..][..rows]);
                for place in first as usize..(first + count) as usize {
                    let x = &x[order[place] as usize * columns..][..columns];
                    let mut alone = vec![0.0; rows];
                    cases[matrix].multiply(cpu, precision, x, Some(bias), &mut alone, false);
                    assert_eq!(alone, out[place * rows..][..rows], "{} place {place}", layout.name());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stacks_multiply_as_their_matrices_do(
        columns in 1usize..90,
        counts in proptest::collection::vec(0usize..15, 1..6),
        seed: u64,
    ) {
        let places: usize = counts.iter().sum();
        // Any order of rows, some of them several times.
        let order: Vec<u32> = (0..places.max(1)).map(|i| (i * 7 % places.max(1)) as u32).collect();
        for &layout in LAYOUTS {
            check_stack(layout, columns, &counts, &order, seed >> 1);
        }
    }
}

#[test]
fn wide_layouts_keep_what_they_can_hold() {
    for &layout in &LAYOUTS[..3] {
        let values = [0.0f32, 1.0, -1.5, 0.25, 96.0, -0.007_812_5, 3.0];
        let mut tile = aligned(layout.tile_bytes(7));
        layout.pack(7, &values, bytemuck::cast_slice_mut(&mut tile)).expect("finite");
        let mut out = [9.0; 7];
        layout.unpack(7, bytemuck::cast_slice(&tile), 0, &mut out);
        assert_eq!(out, values, "{}", layout.name());
    }
}

#[test]
fn code8_rounds_to_within_half_a_step() {
    let mut next = noise(3);
    let row: Vec<f32> = (0..100).map(|_| next()).collect();
    for layout in [INT8_ROWS, &coded::AROUND_128_32] {
        let mut tile = aligned(layout.tile_bytes(100));
        layout.pack(100, &row, bytemuck::cast_slice_mut(&mut tile)).expect("finite");
        let mut out = vec![0.0; 100];
        layout.unpack(100, bytemuck::cast_slice(&tile), 0, &mut out);
        for (a, b) in row.iter().zip(&out) {
            assert!((a - b).abs() <= 0.5 / 127.0 + 1e-6, "{} {a} {b}", layout.name());
        }
    }
}

#[test]
fn a_weight_that_is_no_number_is_found() {
    for &layout in LAYOUTS {
        let mut rows = [1.0f32; 30];
        rows[23] = f32::NAN;
        let mut tile = aligned(layout.tile_bytes(10));
        let found = layout.pack(10, &rows, bytemuck::cast_slice_mut(&mut tile));
        assert_eq!(found, Err(NotFinite { row: 2, column: 3 }), "{layout:?}");
    }
}

/// Codes come back as the values that they stand for, and an order is the same as a shuffled input.
#[test]
fn codes_are_kept_and_orders_followed() {
    let (rows, columns) = (37, 256);
    for layout in LAYOUTS.iter().filter_map(|layout| layout.coded()) {
        let mut next = noise(11);
        let blocks = layout.blocks(columns);
        let book = layout.book();
        let name = layout.name();
        let tops = [("trit", 3.0), ("code2", 4.0), ("code4", 16.0), ("code8", 256.0)];
        let top = tops.iter().find(|(start, _)| name.starts_with(start)).expect("one of these").1;
        let codes: Vec<u8> = (0..rows * columns).map(|_| ((next() + 1.0) * top / 2.0) as u8).collect();
        // Blocks that must have the same scale have it.
        let run = match name {
            "trit-row" | "code2-around1-row" => blocks,
            "trit-128" | "code2-around1-128" => 2,
            _ => 1,
        };
        let scale = |i: usize| libm::scalbnf(1.0, (i / run) as i32 % 7 - 9);
        let scales: Vec<f32> = (0..rows * blocks).map(scale).collect();
        let zeros: Vec<f32> = (0..rows * blocks).map(|i| (i % 9) as f32).collect();
        let mut tiles = aligned(2 * layout.tile_bytes(columns));
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut tiles);
        for (tile, bytes) in bytes.chunks_exact_mut(layout.tile_bytes(columns)).enumerate() {
            let of = |width: usize| tile * 32 * width..rows.min(tile * 32 + 32) * width;
            let coded = coded::CodedRows {
                codes: &codes[of(columns)],
                scales: &scales[of(blocks)],
                zeros: &zeros[of(blocks)],
            };
            layout.pack_codes(columns, coded, bytes).expect("finite");
        }
        let case = Case { layout, shape: Shape { rows, columns }, tiles };
        for row in 0..rows {
            let values = case.row(row);
            for (column, value) in values.iter().enumerate() {
                let block = row * blocks + column / layout.block();
                let zero = if name.contains("zero") || name.contains("f32") { zeros[block] } else { 0.0 };
                let want = (book.value(codes[row * columns + column]) - zero) * scales[block];
                assert_eq!(*value, want, "{name} {row} {column}");
            }
        }
        follow(&case, columns);
    }
}

fn follow(case: &Case, columns: usize) {
    let mut next = noise(5);
    let x: Vec<f32> = (0..3 * columns).map(|_| next()).collect();
    let order: Vec<u32> = (0..columns as u32).map(|i| i * 5 % columns as u32).collect();
    let shuffled: Vec<f32> = x.chunks(columns).flat_map(|x| order.iter().map(|&i| x[i as usize])).collect();
    for precision in [Precision::Exact, Precision::Fast] {
        let cpu = Cpu::detect();
        let mut want = vec![0.0; 3 * case.shape.rows];
        case.multiply(cpu, precision, &shuffled, None, &mut want, false);
        let mut out = want.clone();
        out.fill(0.0);
        let Case { layout, shape, .. } = *case;
        let mut panels = aligned(panel_bytes(layout.form(precision, cpu), columns, 3));
        let taken = Taken { order: Some(&order[..]), ..Taken::PLAIN };
        let output =
            Output { layout, shape, tiles: case.tiles(), taken, bias: None, out: &mut out, add: false };
        let input = Input { x: &x, columns, order: None };
        let panels = bytemuck::cast_slice_mut(&mut panels);
        multiply(cpu, precision, &Serial, input, &[[0, 0, 3]], panels, &mut [output]);
        assert_eq!(out, want, "{}", layout.name());
    }
}

/// Taking the input twice, each column with a factor, is the product with an input that is twice as wide.
#[test]
fn an_input_is_taken_twice_with_factors() {
    let (rows, columns, tokens) = (37, 192, 5);
    for layout in LAYOUTS.iter().filter(|layout| layout.coded().is_some()) {
        let case = Case::new(*layout, rows, 2 * columns, 3);
        let mut next = noise(4);
        let x: Vec<f32> = (0..tokens * columns).map(|_| next()).collect();
        let factors: Vec<f32> = (0..columns).map(|_| next() + 1.5).collect();
        let order: Vec<u32> = (0..columns as u32).map(|i| i * 5 % columns as u32).collect();
        for order in [None, Some(&order[..])] {
            let at = |i: usize| order.map_or(i, |order| order[i] as usize);
            let wide = |x: &[f32]| -> Vec<f32> {
                (0..2 * columns).map(|i| at(i % columns)).map(|i| x[i] * factors[i]).collect()
            };
            let wide: Vec<f32> = x.chunks(columns).flat_map(wide).collect();
            for precision in [Precision::Exact, Precision::Fast] {
                let cpu = Cpu::detect();
                let (mut want, mut out) = (vec![0.0; tokens * rows], vec![0.0; tokens * rows]);
                case.multiply(cpu, precision, &wide, None, &mut want, false);
                let mut panels = aligned(panel_bytes(layout.form(precision, cpu), 2 * columns, tokens));
                let taken = Taken { order, factors: Some(&factors), times: 2 };
                let (shape, tiles) = (Shape { rows, columns }, case.tiles());
                let output =
                    Output { layout: *layout, shape, tiles, taken, bias: None, out: &mut out, add: false };
                let input = Input { x: &x, columns, order: None };
                let panels = bytemuck::cast_slice_mut(&mut panels);
                multiply(cpu, precision, &Serial, input, &[[0, 0, tokens as u32]], panels, &mut [output]);
                assert_eq!(out, want, "{} {precision:?}", layout.name());
            }
        }
    }
}
