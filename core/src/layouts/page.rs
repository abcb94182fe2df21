//! How keys and values lie in the cache: in pages of some positions.
//!
//! A page holds [`POSITIONS`] positions of one head in one layer:
//!
//! ```text
//! keys    [channel][position]         one lane per position, so a score is a sum along channels in one lane
//! key scales   [position] f32         int8 only: value = code * scale
//! values  [position][channel, padded to 16]   one lane per channel, summed along positions
//! value scales [position] f32         int8 only
//! ```

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvKind {
    /// float32.
    F32,
    /// float16.
    F16,
    /// int8 with a scale per position and head.
    Int8,
}

impl KvKind {
    /// Bytes of a code.
    pub fn bytes(self) -> usize {
        match self {
            KvKind::F32 => 4,
            KvKind::F16 => 2,
            KvKind::Int8 => 1,
        }
    }
}

/// Positions in a page.
pub const POSITIONS: usize = 64;
/// Where things stand inside a page of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// Channels of a head.
    pub width: usize,
    /// How values are stored.
    pub kind: KvKind,
}

impl PageShape {
    /// Channels of a value, as they lie.
    pub fn padded_width(self) -> usize {
        self.width.next_multiple_of(16)
    }

    fn scale_bytes(self) -> usize {
        if self.kind == KvKind::Int8 { POSITIONS * 4 } else { 0 }
    }

    pub(crate) fn key_bytes(self) -> usize {
        self.width * POSITIONS * self.kind.bytes()
    }

    pub(crate) fn value_bytes(self) -> usize {
        self.padded_width() * POSITIONS * self.kind.bytes()
    }

    /// Bytes of a page of one head, a multiple of 64.
    pub fn bytes(self) -> usize {
        self.key_bytes() + self.value_bytes() + 2 * self.scale_bytes()
    }

    /// Where values begin.
    pub fn value_offset(self) -> usize {
        self.key_bytes() + self.scale_bytes()
    }
}

/// Stores the key and the value of one head at a position of its page.
pub fn store(shape: PageShape, page: &mut [u8], position: usize, key: &[f32], value: &[f32]) {
    assert!(page.len() == shape.bytes() && position < POSITIONS);
    assert!(key.len() == shape.width && value.len() == shape.width);
    let (keys, values) = page.split_at_mut(shape.value_offset());
    store_side(shape, keys, key, shape.key_bytes(), position, |channel| channel * POSITIONS + position);
    let padded = shape.padded_width();
    store_side(shape, values, value, shape.value_bytes(), position, |channel| position * padded + channel);
}

fn store_side(
    shape: PageShape,
    side: &mut [u8],
    x: &[f32],
    code_bytes: usize,
    position: usize,
    at: impl Fn(usize) -> usize,
) {
    let (codes, scales) = side.split_at_mut(code_bytes);
    match shape.kind {
        KvKind::F32 => {
            let codes: &mut [f32] = bytemuck::cast_slice_mut(codes);
            x.iter().enumerate().for_each(|(i, &x)| codes[at(i)] = x);
        }
        KvKind::F16 => {
            let codes: &mut [u16] = bytemuck::cast_slice_mut(codes);
            x.iter().enumerate().for_each(|(i, &x)| codes[at(i)] = half::f16::from_f32(x).to_bits());
        }
        KvKind::Int8 => {
            let peak = x.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
            let scale = peak / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let scales: &mut [f32] = bytemuck::cast_slice_mut(scales);
            scales[position] = scale;
            x.iter().enumerate().for_each(|(i, &x)| codes[at(i)] = libm::rintf(x * inverse) as i8 as u8);
        }
    }
}
