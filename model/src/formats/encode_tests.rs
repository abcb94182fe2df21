//! The encoders beside what they are meant to be, written the slow way.

use super::*;

/// Values of many sizes, with zeros and ties among them.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let size = [1.0, 3e-3, 2.5e4, 1e-30][seed as usize % 4];
    (0..count)
        .map(|i| match i % 7 {
            0 => 0.0,
            1 => (next() * 4.0).round() / 4.0 * size,
            _ => next() * next() * size,
        })
        .collect()
}

fn encoded(encode: fn(&[f32], &mut [u8]) -> Scale, values: &[f32]) -> (Vec<u8>, Scale) {
    let mut codes = vec![0xaa; values.len()];
    let scale = encode(values, &mut codes);
    (codes, scale)
}

/// The first of the least distances, all in float32.
fn first_nearest(book: &[f32; 16], value: f32) -> u8 {
    let distance = |code: &usize| (value - book[*code]).abs();
    (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("sixteen codes") as u8
}

#[test]
fn books_are_searched_as_the_tool_searches_them() {
    for (encode, book, steps) in
        [(nf4 as fn(&[f32], &mut [u8]) -> Scale, &NF4, &NF4_BOOK), (fp4, &FP4_SEARCHED, &FP4_BOOK)]
    {
        for seed in 0..400 {
            let values = noise(seed, FOUR_BIT_BLOCK);
            let (codes, Scale { scale, zero }) = encoded(encode, &values);
            assert_eq!((scale, zero), (values.iter().fold(0.0, |most: f32, x| most.max(x.abs())), 0));
            let wanted: Vec<u8> =
                values.iter().map(|x| first_nearest(book, (x * (1.0 / scale)).clamp(-1.0, 1.0))).collect();
            assert_eq!(codes, wanted, "seed {seed}");
        }
        // Around every bound, where one rounding more would show. The largest magnitude is 1: nothing is scaled.
        for bound in steps.bounds.iter().filter(|bound| bound.is_finite()) {
            let values = [bound.next_down().next_down(), bound.next_down(), *bound, bound.next_up(), 1.0];
            let wanted: Vec<u8> = values.iter().map(|x| first_nearest(book, *x)).collect();
            assert_eq!(encoded(encode, &values).0, wanted, "{bound}");
            assert_ne!(wanted[1], wanted[2], "{bound}");
        }
        let (codes, scale) = encoded(encode, &[0.0, -0.0, 0.0]);
        assert!(codes.iter().all(|code| book[usize::from(*code)] == 0.0) && scale.scale == 0.0);
    }
}

#[test]
fn rows_of_eight_bits_are_rounded_to_even() {
    let (codes, scale) = encoded(int8, &[127.0, 0.5, 1.5, -2.5, -127.0, 0.0]);
    assert_eq!(codes, [127, 0, 2, -2i8 as u8, -127i8 as u8, 0]);
    assert_eq!(scale, Scale { scale: 1.0, zero: 0 });
    assert_eq!(encoded(int8, &[0.0, -0.0]), (vec![0, 0], Scale { scale: 0.0, zero: 0 }));
    for seed in 0..100 {
        let values = noise(seed, 300);
        let (codes, Scale { scale, .. }) = encoded(int8, &values);
        for (code, value) in codes.iter().zip(&values) {
            assert!((f32::from(*code as i8) * scale - value).abs() <= scale * 0.5001, "seed {seed}");
        }
    }
}

#[test]
fn powers_of_two_bring_blocks_into_range_and_ties_are_even() {
    let ties = [4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, 7.9, -7.9, 0.0];
    let (codes, scale) = encoded(mxfp4, &ties);
    assert_eq!(codes, [6, 0, 2, 2, 4, 4, 6, 6, 8, 10, 7, 15, 0]);
    assert_eq!(scale, Scale { scale: 1.0, zero: 0 });
    for seed in 0..400 {
        let values = noise(seed, MX_BLOCK);
        let (codes, Scale { scale, .. }) = encoded(mxfp4, &values);
        let most = f64::from(values.iter().fold(0.0, |most: f32, x| most.max(x.abs())));
        assert_eq!(f64::from(scale), (most.log2().floor() - 2.0).exp2(), "seed {seed}");
        for (code, value) in codes.iter().zip(&values) {
            let distance = |code: u8| (MXFP4[usize::from(code)] - value / scale).abs();
            let least = (0..16).map(distance).fold(f32::INFINITY, f32::min);
            assert_eq!(distance(*code), least, "seed {seed}");
        }
    }
    for (values, expected) in [
        ([0.0, -0.0], [0.0, 0.0]),
        ([f32::MAX, f32::MIN], [1.5 * 2f32.powi(127), -1.5 * 2f32.powi(127)]),
        ([f32::from_bits(1), f32::MIN_POSITIVE], [0.0, f32::MIN_POSITIVE]),
    ] {
        let (codes, Scale { scale, .. }) = encoded(mxfp4, &values);
        assert_eq!([0, 1].map(|at: usize| MXFP4[usize::from(codes[at])] * scale), expected);
    }
}

#[test]
fn groups_of_four_bits_reach_from_extreme_to_extreme() {
    let (codes, scale) = encoded(int4, &[-5.0, 10.0, 0.0, 0.5, 1.5, -0.5]);
    assert_eq!((codes, scale), (vec![0, 15, 5, 5, 7, 5], Scale { scale: 1.0, zero: 5 }));
    assert_eq!(encoded(int4, &[3.0, 15.0]), (vec![3, 15], Scale { scale: 1.0, zero: 0 }));
    assert_eq!(encoded(int4, &[0.0, -0.0]), (vec![0, 0], Scale { scale: 0.0, zero: 0 }));
    for values in [[f32::MAX, f32::MIN], [f32::from_bits(9), 0.0]] {
        let (codes, Scale { scale, zero }) = encoded(int4, &values);
        assert!(scale.is_finite() && zero < 16 && codes.iter().all(|code| *code < 16));
    }
    for seed in 0..100 {
        let values = noise(seed, INT4_GROUP);
        let (codes, Scale { scale, zero }) = encoded(int4, &values);
        for (code, value) in codes.iter().zip(&values) {
            let decoded = (f32::from(*code) - f32::from(zero)) * scale;
            assert!((decoded - value).abs() <= scale * 1.0001, "seed {seed}");
        }
    }
}

#[test]
fn nested_scales_are_the_nearest_of_their_map() {
    let map = dynamic_map();
    assert!(map.is_sorted() && map[127] == 0.0);
    let scales: Vec<f32> = noise(1, 700).iter().map(|x| x.abs()).collect();
    let nested = nested_around(0.25, &scales).values();
    for (block, (found, scales)) in nested.chunks(NESTED_BLOCK).zip(scales.chunks(NESTED_BLOCK)).enumerate() {
        let most = scales.iter().fold(0.0, |most: f32, x| most.max((x - 0.25).abs()));
        for (found, scale) in found.iter().zip(scales) {
            let normed = (scale - 0.25) * (1.0 / most);
            let distance = |entry: &f32| (entry - normed).abs();
            let first = map.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("256 values");
            assert_eq!(*found, first * most + 0.25, "block {block}");
        }
    }
    let mut alike = [0.5; 300];
    nest(&mut alike);
    assert_eq!(alike, [0.5; 300]);
    nest(&mut []);
}

/// Of all thresholds the best, with the mean of what is above it as the scale.
#[test]
fn trits_leave_the_least_error() {
    let error = |values: &[f32], codes: &[u8], scale: f32| {
        let error =
            |(value, code): (&f32, &u8)| f64::from(*value) - f64::from(scale) * (f64::from(*code) - 1.0);
        values.iter().zip(codes).map(error).map(|error| error * error).sum::<f64>()
    };
    for seed in 0..200 {
        let values = noise(seed, TERNARY_GROUP);
        let (codes, Scale { scale, zero }) = encoded(ternary, &values);
        assert!(zero == 1 && codes.iter().all(|code| *code < 3));
        let found = error(&values, &codes, scale);
        for threshold in &values {
            let kept: Vec<f32> = values.iter().map(|x| x.abs()).filter(|x| *x >= threshold.abs()).collect();
            let mean = kept.iter().sum::<f32>() / kept.len() as f32;
            let code = |x: &f32| match x.abs() >= threshold.abs() {
                true => 1 + u8::from(*x > 0.0) - u8::from(*x < 0.0),
                false => 1,
            };
            let codes: Vec<u8> = values.iter().map(code).collect();
            assert!(found <= error(&values, &codes, mean) * (1.0 + 1e-5), "seed {seed}");
        }
    }
    assert_eq!(encoded(ternary, &[0.0, -0.0, 0.0]), (vec![1; 3], Scale { scale: 0.0, zero: 1 }));
    assert_eq!(encoded(ternary, &[-2.0, 2.0, 0.5]), (vec![0, 2, 1], Scale { scale: 2.0, zero: 1 }));
}

#[test]
fn means_are_rounded_as_torch_rounds_them() {
    for (count, bits) in [
        (1, 0x3e80_0000),
        (7, 0x3f2c_ef91),
        (8, 0x3f29_c22a),
        (100, 0x3f3e_206e),
        (777, 0x3f3f_f8c3),
        (4096, 0x3f40_01cb),
        (10_000, 0x3f3f_fa8f),
        (32_768, 0x3f3f_fe84),
    ] {
        let value = |i: u64| (f64::from((i * 2_654_435_761) as u32) / 4_294_967_296.0) as f32 + 0.25;
        let values: Vec<f32> = (0..count).map(value).collect();
        assert_eq!(mean(&values).to_bits(), bits, "{count} values");
    }
}

#[test]
fn scales_that_are_all_alike_get_the_first_code() {
    for scale in [0.0, 0.5] {
        let Nested { codes, scales, offset } = nested(&[scale; 300]);
        assert!(codes == [0; 300] && scales == [0.0; 2] && offset == scale, "as bitsandbytes 0.49.2 does it");
    }
}
