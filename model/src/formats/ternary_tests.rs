//! Ternary weights, there and back, and what is refused.

use half::f16;

use super::*;
use crate::formats::decode;
use crate::plan::Stored;

fn trits(count: usize) -> Vec<i8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as i8 % 2 + (state >> 23 & 1) as i8 - (state >> 22 & 1) as i8
    };
    (0..count).map(|_| next().clamp(-1, 1)).collect()
}

/// A module of `planes`, with factors of columns or without, and its values by the definition.
struct Module {
    shape: Shape,
    config: Value,
    tensors: Vec<(&'static str, Stored, Vec<u8>)>,
    values: Vec<f32>,
}

impl Module {
    /// Of so many experts; none is a plain matrix.
    fn new(experts: &[usize], shape: Shape, planes: usize, group: Option<usize>, factors: bool) -> Module {
        let Shape { rows, columns } = shape;
        let (of, count) = (group.unwrap_or(columns), experts.iter().product::<usize>());
        let groups = columns.div_ceil(of);
        let all = trits(count * rows * planes * columns);
        let scale = |at: usize| f16::from_f32(0.01 + (at * 37 % 101) as f32 / 64.0);
        let factor = |at: usize| if factors { 0.5 + (at % 7) as f32 } else { 1.0 };
        let value = |at: usize| {
            let (row, column) = (at / columns, at % columns);
            let plane = |plane: usize| {
                let line = row * planes + plane;
                f32::from(all[line * columns + column]) * scale(line * groups + column / of).to_f32()
            };
            let factor = factor(row / rows * columns + column);
            (0..planes).map(plane).fold(0.0, |sum, x| sum + x) * factor
        };
        let mut bytes = Vec::new();
        pack(&all, &mut bytes);
        let stored = |dtype, dimensions: &[usize]| Stored { dtype, shape: [experts, dimensions].concat() };
        let scales = (0..count * rows * planes * groups).flat_map(|at| scale(at).to_le_bytes()).collect();
        let trits_shape = [rows, planes, columns / BLOCK * BLOCK_BYTES];
        let mut tensors = vec![
            ("m.weight_trits", stored(Dtype::U8, &trits_shape), bytes),
            ("m.weight_scales", stored(Dtype::F16, &[rows, planes, groups]), scales),
        ];
        if factors {
            let factors = (0..count * columns).flat_map(|at| factor(at).to_le_bytes()).collect();
            tensors.push(("m.weight_columns", stored(Dtype::F32, &[columns]), factors));
        }
        let values = (0..count * rows * columns).map(value).collect();
        Module { shape, config: settings(group, &["lm_head".to_owned()]), tensors, values }
    }

    fn decode(&self) -> Result<Option<Vec<f32>>, String> {
        let tensors = self.tensors.iter().map(|(name, stored, bytes)| (*name, stored.clone(), &bytes[..]));
        decode(self.config.to_string().as_bytes(), &tensors.collect::<Vec<_>>(), "m", self.shape)
    }

    fn refusal(&self) -> String {
        self.decode().expect_err("it must be refused")
    }
}

fn plain() -> Module {
    Module::new(&[], Shape { rows: 5, columns: 192 }, 2, Some(128), true)
}

#[test]
fn what_is_packed_is_read() {
    for (columns, group) in [(64, Some(64)), (192, Some(64)), (192, Some(128)), (320, None)] {
        for (planes, factors) in [(1, false), (1, true), (2, false), (2, true)] {
            let module = Module::new(&[], Shape { rows: 5, columns }, planes, group, factors);
            assert_eq!(module.decode(), Ok(Some(module.values.clone())), "{columns} {group:?} {planes}");
            // Of two experts, the second is decoded.
            let module = Module::new(&[2], Shape { rows: 3, columns }, planes, group, factors);
            assert_eq!(module.decode(), Ok(Some(module.values[3 * columns..].to_vec())));
        }
    }
}

/// The first digit is the highest; all 243 values have bytes of their own, whose digits come out by multiplying.
#[test]
fn a_byte_is_five_digits() {
    for value in 0..243usize {
        let digits: [u8; OF_BYTE] = std::array::from_fn(|at| (value / 3usize.pow(4 - at as u32) % 3) as u8);
        let mut block = [0i8; BLOCK];
        block.iter_mut().zip(digits).for_each(|(trit, digit)| *trit = digit.cast_signed() - 1);
        let mut bytes = Vec::new();
        pack(&block, &mut bytes);
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert_eq!((DIGITS[usize::from(bytes[0])], bytes[1], bytes[12]), (digits, 128, 128), "{value}");
        let mut rest = bytes[0];
        for digit in digits {
            assert_eq!((u16::from(rest) * 3) >> 8, u16::from(digit));
            rest = rest.wrapping_mul(3);
        }
    }
    assert_eq!(DIGITS.iter().filter(|digits| digits[0] == NONE).count(), 256 - 243);
}

#[test]
fn what_is_no_ternary_matrix_is_refused() {
    let with = |change: &dyn Fn(&mut Module)| {
        let mut module = plain();
        change(&mut module);
        module.refusal()
    };
    type Lie<'a> = (&'a str, &'a dyn Fn(&mut Module));
    let cases: [Lie; 11] = [
        ("\"version\" is 2; expected 1", &|m| m.config["version"] = json!(2)),
        ("\"group_size\" is 96; expected a multiple of 64", &|m| m.config["group_size"] = json!(96)),
        ("\"group_size\" is 0; expected", &|m| m.config["group_size"] = json!(0)),
        ("expected a byte of five trits, found 20 at element 7", &|m| m.tensors[0].2[7] = 20),
        ("expected a byte of four trits and a 0, found 129 at element 25", &|m| m.tensors[0].2[25] = 129),
        ("expected finite numbers, found NaN at element 3", &|m| m.tensors[1].2[7] = 0x7e),
        ("expected finite numbers, found inf at element 1", &|m| {
            m.tensors[2].2[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
        }),
        ("m.weight_trits: expected shape [5, 1, 39]", &|m| m.tensors[0].1.shape[1] = 3),
        ("m.weight_scales: expected shape [5, 2, 2]", &|m| m.tensors[1].1.shape[2] = 3),
        ("m.weight_scales: expected F16, found BF16", &|m| m.tensors[1].1.dtype = Dtype::Bf16),
        ("expected shape [5, 2, 192] from config.json, found [5, 2, 190]", &|m| m.shape.columns = 190),
    ];
    for (expected, change) in cases {
        let found = with(change);
        assert!(found.contains(expected), "{found}, not {expected}");
    }
    let without = |at: usize| {
        let mut module = plain();
        module.tensors.remove(at);
        module.decode()
    };
    assert_eq!(without(0), Ok(None), "it stands as it is");
    assert!(without(1).is_err_and(|refusal| refusal.contains("m.weight_scales: not in the checkpoint")));
}

/// Of eight bits, or of four, the second of two columns in the high half.
fn counted(eight: bool) -> Module {
    let (rows, columns) = (3, 96);
    let stored = |dtype, shape: &[usize]| Stored { dtype, shape: shape.to_vec() };
    let code = |at: usize| if eight { (at * 37 % 256) as u8 } else { (at * 7 % 16) as u8 };
    let (scale, zero) = (|at: usize| f16::from_f32(0.25 + at as f32), |at: usize| (at * 5 % 16) as u8);
    let groups = if eight { 1 } else { 2 };
    let value = |at: usize| {
        let group = at / columns * groups + at % columns / if eight { columns } else { CODES_GROUP };
        let zero = if eight { 128 } else { zero(group) };
        (f32::from(code(at)) - f32::from(zero)) * scale(group).to_f32()
    };
    let codes: Vec<u8> = (0..rows * columns).map(code).collect();
    let codes = if eight { codes } else { codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect() };
    let scales = (0..rows * groups).flat_map(|at| scale(at).to_le_bytes()).collect();
    let mut tensors = vec![
        ("m.weight_codes", stored(Dtype::U8, &[rows, codes.len() / rows]), codes),
        ("m.weight_scales", stored(Dtype::F16, &[rows, groups]), scales),
    ];
    if !eight {
        let zeros = (0..rows * groups).map(zero).collect();
        tensors.push(("m.weight_zeros", stored(Dtype::U8, &[rows, groups]), zeros));
    }
    let values = (0..rows * columns).map(value).collect();
    Module { shape: Shape { rows, columns }, config: settings(Some(64), &[]), tensors, values }
}

#[test]
fn codes_of_eight_bits_and_four_are_read() {
    for eight in [true, false] {
        let module = counted(eight);
        assert_eq!(module.decode(), Ok(Some(module.values.clone())), "{eight}");
    }
    let mut module = counted(false);
    module.tensors[2].2[1] = 16;
    assert!(module.refusal().contains("four bits"), "{}", module.refusal());
    let mut module = counted(false);
    module.tensors[0].1.shape[1] = 47;
    assert!(module.refusal().contains("[3, 48]"), "{}", module.refusal());
    let mut module = counted(true);
    module.tensors[1].2[..2].copy_from_slice(&f16::NAN.to_le_bytes());
    assert!(module.refusal().contains("finite"), "{}", module.refusal());
}
