//! Codes from values: the other direction of this folder's decoders, for weights that are quantized while they are
//! loaded. Every function is what the tool it is named after does on a CPU, bit by bit; where codes then lie is a
//! layout's business. Values must be finite: the caller refuses others.

/// Values of NF4's codes: quantiles of the normal distribution, as bitsandbytes has them.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Values of FP4's codes, as bitsandbytes has them: a sign, two bits of exponent, one of mantissa, over 12.
pub const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// Values of the eight-bit codes of bitsandbytes' nested scales: seven decades with ever finer steps, in ascending
/// order. Its CPU code puts -1 in the place of the lowest.
pub fn dynamic_map() -> [f32; 256] {
    let mut map = [0.0f32; 256];
    map[255] = 1.0;
    let mut at = 127;
    for decade in 0..7 {
        let count = 1 << decade;
        let factor = 10f64.powi(decade - 6) as f32;
        // As torch spaces points evenly: from both ends, with fused products.
        let step = 0.9 / count as f32;
        let point = |i: usize| match i <= count / 2 && i * 2 < count + 1 {
            true => step.mul_add(i as f32, 0.1),
            false => (-step).mul_add((count - i) as f32, 1.0),
        };
        for i in 0..count {
            let value = factor * ((point(i) + point(i + 1)) / 2.0);
            at += 1;
            map[at] = value;
            map[254 - at] = -value;
        }
    }
    map[0] = -1.0;
    map
}
