//! The element types of a checkpoint and their widening to f32.
//!
//! It is not a quantisation format: formats give codes a meaning, a dtype only says how a number is spelled. Where a
//! file has blocks of quantized values, their bytes are the elements, and a dtype only tells blocks of one kind from
//! another.

/// How one element is stored, always little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each name is its own description")]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    F8E4m3,
    F8E5m2,
    Q4x0,
    Q4x1,
    Q5x0,
    Q5x1,
    Q8x0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Tq1x0,
    Tq2x0,
    Mxfp4,
}

/// Every dtype with its name in a safetensors header and its size.
const TABLE: [(Dtype, &str, usize); 28] = [
    (Dtype::F64, "F64", 8),
    (Dtype::F32, "F32", 4),
    (Dtype::F16, "F16", 2),
    (Dtype::Bf16, "BF16", 2),
    (Dtype::I64, "I64", 8),
    (Dtype::I32, "I32", 4),
    (Dtype::I16, "I16", 2),
    (Dtype::I8, "I8", 1),
    (Dtype::U64, "U64", 8),
    (Dtype::U32, "U32", 4),
    (Dtype::U16, "U16", 2),
    (Dtype::U8, "U8", 1),
    (Dtype::Bool, "BOOL", 1),
    (Dtype::F8E4m3, "F8_E4M3", 1),
    (Dtype::F8E5m2, "F8_E5M2", 1),
    (Dtype::Q4x0, "Q4_0", 1),
    (Dtype::Q4x1, "Q4_1", 1),
    (Dtype::Q5x0, "Q5_0", 1),
    (Dtype::Q5x1, "Q5_1", 1),
    (Dtype::Q8x0, "Q8_0", 1),
    (Dtype::Q2K, "Q2_K", 1),
    (Dtype::Q3K, "Q3_K", 1),
    (Dtype::Q4K, "Q4_K", 1),
    (Dtype::Q5K, "Q5_K", 1),
    (Dtype::Q6K, "Q6_K", 1),
    (Dtype::Tq1x0, "TQ1_0", 1),
    (Dtype::Tq2x0, "TQ2_0", 1),
    (Dtype::Mxfp4, "MXFP4", 1),
];

/// How many of them safetensors files have; the others are blocks.
const PLAIN: usize = 15;

impl Dtype {
    /// Size of one element in bytes.
    pub fn bytes(self) -> usize {
        TABLE[self as usize].2
    }

    /// The name that its files use.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// How configurations spell what a model is computed in.
    pub(crate) fn python_name(self) -> &'static str {
        match self {
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
            _ => "float32",
        }
    }

    /// The dtype of that name in a safetensors header.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE[..PLAIN].iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Every dtype of plain numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE[..PLAIN].iter().map(|row| row.0)
    }

    /// Whether elements are bytes of blocks, and no numbers.
    pub fn is_blocks(self) -> bool {
        self as usize >= PLAIN
    }

    /// Whether a value may be NaN or infinite.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4m3 | Self::F8E5m2)
    }

    /// Widens (for 64-bit types: rounds) `out.len()` elements to f32. `data` is exactly as long as those elements.
    pub(crate) fn widen(self, data: &[u8], out: &mut [f32]) {
        assert_eq!(data.len(), out.len() * self.bytes(), "the caller cuts the elements it asks for");
        match self {
            Self::F64 => each(data, out, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => each(data, out, f32::from_le_bytes),
            Self::F16 => each(data, out, |b| f16_to_f32(u16::from_le_bytes(b))),
            Self::Bf16 => each(data, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Self::I64 => each(data, out, |b| i64::from_le_bytes(b) as f32),
            Self::I32 => each(data, out, |b| i32::from_le_bytes(b) as f32),
            Self::I16 => each(data, out, |b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => each(data, out, |b| f32::from(i8::from_le_bytes(b))),
            Self::U64 => each(data, out, |b| u64::from_le_bytes(b) as f32),
            Self::U32 => each(data, out, |b| u32::from_le_bytes(b) as f32),
            Self::U16 => each(data, out, |b| f32::from(u16::from_le_bytes(b))),
            Self::Bool => each(data, out, |[b]: [u8; 1]| f32::from(u8::from(b != 0))),
            Self::F8E4m3 => each(data, out, |[b]: [u8; 1]| e4m3_to_f32(b)),
            // E5M2 is the upper half of an F16.
            Self::F8E5m2 => each(data, out, |[b]: [u8; 1]| f16_to_f32(u16::from(b) << 8)),
            // Of blocks, the bytes.
            _ => each(data, out, |[b]: [u8; 1]| f32::from(b)),
        }
    }
}

fn each<const N: usize>(data: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    let (elements, []) = data.as_chunks::<N>() else {
        unreachable!("widen asserts whole elements");
    };
    for (value, &element) in out.iter_mut().zip(elements) {
        *value = f(element);
    }
}

/// F16 to f32 without a branch, so that the compiler turns the loop into SIMD: shifted into place, an F16 is an f32
/// whose exponent is 112 too small, and the multiplication mends normals and subnormals alike, exactly.
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7FFF);
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = 0x7F80_0000 | magnitude << 13;
    let bits_abs = if magnitude >= 0x7C00 { special } else { finite.to_bits() };
    f32::from_bits(bits_abs | u32::from(bits & 0x8000) << 16)
}

/// The "fn" variant that checkpoints use: bias 7, no infinity, one NaN per sign.
fn e4m3_to_f32(byte: u8) -> f32 {
    let sign = u32::from(byte & 0x80) << 24;
    let magnitude = u32::from(byte & 0x7F);
    let bits_abs = match magnitude {
        0x7F => f32::NAN.to_bits(),
        0..8 => (magnitude as f32 / 512.0).to_bits(),
        _ => (magnitude << 20) + ((127 - 7) << 23),
    };
    f32::from_bits(bits_abs | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widen_one(dtype: Dtype, data: &[u8]) -> f32 {
        let mut out = [0.0];
        dtype.widen(data, &mut out);
        out[0]
    }

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (at, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, at);
            assert_eq!(Dtype::from_name(row.1), (!row.0.is_blocks()).then_some(row.0));
        }
        assert_eq!(Dtype::all().last(), Some(Dtype::F8E5m2));
        assert_eq!(Dtype::from_name("F4"), None);
    }

    #[test]
    fn every_f16_and_e5m2_widens_as_half_does() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            let ours = f16_to_f32(bits);
            assert!(ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan(), "{bits:#x}");
        }
        assert_eq!(widen_one(Dtype::F8E5m2, &[0x3C]), 1.0);
    }

    #[test]
    fn e4m3_follows_its_definition() {
        for byte in 0..=u8::MAX {
            let (e, m) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
            let sign = if byte >= 0x80 { -1.0 } else { 1.0 };
            let expected = match (e, byte & 7) {
                (15, 7) => f32::NAN,
                (0, _) => sign * m / 8.0 * 2f32.powi(-6),
                _ => sign * (1.0 + m / 8.0) * 2f32.powi(e - 7),
            };
            let ours = e4m3_to_f32(byte);
            assert!(ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan(), "{byte:#x}");
        }
    }

    #[test]
    fn integers_and_wide_floats_widen() {
        assert_eq!(widen_one(Dtype::I64, &(-3i64).to_le_bytes()), -3.0);
        assert_eq!(widen_one(Dtype::U64, &u64::MAX.to_le_bytes()), 18_446_744_073_709_551_615.0);
        assert_eq!(widen_one(Dtype::I8, &[0xFF]), -1.0);
        assert_eq!(widen_one(Dtype::Bool, &[2]), 1.0);
        assert_eq!(widen_one(Dtype::F64, &1e300f64.to_le_bytes()), f32::INFINITY);
        assert_eq!(widen_one(Dtype::Bf16, &half::bf16::from_f32(-2.5).to_le_bytes()), -2.5);
    }
}
