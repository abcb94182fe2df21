//! Bytes that look random: a block of each kind is made once and written over and over, every tensor from another
//! place, so that a checkpoint costs no arithmetic for each of its weights. It is no source of good random numbers.

use std::io::{self, Write};

use bantam_model::checkpoint::Dtype;
use half::{bf16, f16};

/// Elements of a block. A prime: no row of a matrix begins where the row before it began.
const BLOCK: usize = 1_048_573;

/// What a tensor holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// Numbers within `spread` of `center`.
    Floats { center: f32, spread: f32 },
    /// Bytes of the bits in `keep`, with `plus` added.
    Bytes { keep: u8, plus: u8 },
    /// Bytes as numbers from -127 to 127.
    Signed,
    /// These bytes, again and again.
    Literal(Vec<u8>),
}

/// The blocks made so far.
pub(super) struct Noise {
    seed: u64,
    blocks: Vec<(Content, Dtype, Vec<u8>)>,
}

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Noise { seed, blocks: Vec::new() }
    }

    /// Writes the bytes of a tensor; its name decides where in the block it begins.
    pub(super) fn write(
        &mut self,
        name: &str,
        (content, dtype): (&Content, Dtype),
        elements: usize,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut left = elements * dtype.bytes();
        if let Content::Literal(bytes) = content {
            return repeat(bytes, 0, &mut left, out);
        }
        let start = mix(name.bytes().fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte))));
        let start = start as usize % BLOCK * dtype.bytes();
        let found = self.blocks.iter().position(|(of, as_type, _)| (of, *as_type) == (content, dtype));
        let at = found.unwrap_or_else(|| {
            self.blocks.push((content.clone(), dtype, block(self.seed, content, dtype)));
            self.blocks.len() - 1
        });
        repeat(&self.blocks[at].2, start, &mut left, out)
    }
}

fn repeat(block: &[u8], start: usize, left: &mut usize, out: &mut dyn Write) -> io::Result<()> {
    let mut rest = &block[start..];
    while *left > 0 {
        let part = &rest[..rest.len().min(*left)];
        out.write_all(part)?;
        *left -= part.len();
        rest = block;
    }
    Ok(())
}

fn block(seed: u64, content: &Content, dtype: Dtype) -> Vec<u8> {
    let mut state = mix(seed ^ 0x5eed);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(state)
    };
    let mut bytes = Vec::with_capacity(BLOCK * dtype.bytes());
    match *content {
        Content::Floats { center, spread } => {
            for _ in 0..BLOCK {
                let unit = (next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
                let value = unit.mul_add(spread, center);
                match dtype {
                    Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                    Dtype::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                    _ => bytes.extend(value.to_le_bytes()),
                }
            }
        }
        _ => {
            while bytes.len() < BLOCK * dtype.bytes() {
                bytes.extend(next().to_le_bytes());
            }
            bytes.truncate(BLOCK * dtype.bytes());
            match *content {
                Content::Bytes { keep, plus } => {
                    bytes.iter_mut().for_each(|byte| *byte = (*byte & keep) + plus);
                }
                _ => bytes.iter_mut().for_each(|byte| *byte = (*byte as i8).max(-127) as u8),
            }
        }
    }
    bytes
}

/// The finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
