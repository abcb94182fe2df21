//! Ways to quantize matrices of 16 or 32 bits while they are loaded, by the names that people give them.

use std::fmt;

use bantam_core::Trits;
use bantam_core::layouts::coded::{COUNT, Coded, CodedRows, Coding, E2M1, FP4, NF4, TRITS, WHOLE_ROW};
use bantam_core::layouts::{INT8_ROWS, Layout, NotFinite, Precision, Shape};

use super::encode::{self, FOUR_BIT_BLOCK, INT4_GROUP, MX_BLOCK, Scale, TERNARY_GROUP};

/// A way to quantize.
pub struct OnLoad {
    /// As people ask for it.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    /// `None` is eight bits with a scale per row, which their layout makes itself.
    blocks: Option<Blocks>,
    /// Whether the scales of a matrix are quantized again.
    pub(crate) nested: bool,
}

impl PartialEq for OnLoad {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for OnLoad {}

/// The name says all, and is the same in every run of the program: an address would not be.
impl fmt::Debug for OnLoad {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

struct Blocks {
    coding: Coding,
    /// Codes and scale of a block.
    encode: fn(&[f32], &mut [u8]) -> Scale,
}

const NF4_BLOCKS: Blocks =
    Blocks { coding: Coding { book: &NF4, bits: 4, run: FOUR_BIT_BLOCK }, encode: encode::nf4 };
const FP4_BLOCKS: Blocks =
    Blocks { coding: Coding { book: &FP4, bits: 4, run: FOUR_BIT_BLOCK }, encode: encode::fp4 };

/// All ways.
pub static WAYS: &[OnLoad] = &[
    OnLoad { name: "int8", about: "eight bits with a scale per row", blocks: None, nested: false },
    OnLoad { name: "nf4", about: "bitsandbytes' NF4", blocks: Some(NF4_BLOCKS), nested: false },
    OnLoad {
        name: "bnb-4bit",
        about: "NF4 with double quantization",
        blocks: Some(NF4_BLOCKS),
        nested: true,
    },
    OnLoad { name: "fp4", about: "bitsandbytes' FP4", blocks: Some(FP4_BLOCKS), nested: false },
    OnLoad { name: "bnb-fp4", about: "FP4 with double quantization", blocks: Some(FP4_BLOCKS), nested: true },
    OnLoad {
        name: "mxfp4",
        about: "four bits under powers of two",
        blocks: Some(Blocks {
            coding: Coding { book: &E2M1, bits: 4, run: MX_BLOCK },
            encode: encode::mxfp4,
        }),
        nested: false,
    },
    OnLoad {
        name: "gptq",
        about: "four bits in groups of 128, rounded to the nearest: no calibration",
        blocks: Some(Blocks {
            coding: Coding { book: &COUNT, bits: 4, run: INT4_GROUP },
            encode: encode::int4,
        }),
        nested: false,
    },
    OnLoad {
        name: "ternary",
        about: "-1, 0 and 1 in groups of 128, each with its best threshold and scale: no calibration",
        blocks: Some(Blocks {
            coding: Coding { book: &TRITS, bits: 2, run: TERNARY_GROUP },
            encode: encode::ternary,
        }),
        nested: false,
    },
];

/// The way of a name.
pub fn way(name: &str) -> Option<&'static OnLoad> {
    WAYS.iter().find(|way| way.name == name)
}

/// Sums of a row's products, at most 255 * 127 each, must fit into 32 bits.
const INT8_COLUMNS_MAX: usize = 1 << 16;

impl OnLoad {
    /// The layout of a matrix; `None` where none holds it.
    pub(crate) fn layout(
        &self,
        shape: Shape,
        precision: Precision,
        trits: Trits,
    ) -> Option<&'static dyn Layout> {
        match &self.blocks {
            None => (shape.columns <= INT8_COLUMNS_MAX).then_some(INT8_ROWS),
            Some(blocks) => blocks.coding.layout(precision, trits).map(|layout| layout as &dyn Layout),
        }
    }

    /// Scales of a row's blocks, before they are quantized again.
    pub(crate) fn scales(&self, row: &[f32], scales: &mut Vec<f32>) {
        let Some(Blocks { coding, encode }) = &self.blocks else { return };
        let mut codes = [0; INT4_GROUP];
        scales.extend(row.chunks(coding.run).map(|block| encode(block, &mut codes[..block.len()]).scale));
    }

    /// Encodes whole rows and packs them into a tile. `scales` gives the scales of a row where they were quantized
    /// again.
    pub(crate) fn pack<'a>(
        &self,
        layout: &Coded,
        columns: usize,
        rows: &[f32],
        scales: impl Fn(usize) -> Option<&'a [f32]>,
        tile: &mut [u8],
    ) -> Result<(), NotFinite> {
        let Some(Blocks { coding, encode }) = &self.blocks else {
            unreachable!("rows of eight bits are no codes");
        };
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            return Err(NotFinite { row: at / columns, column: at % columns });
        }
        debug_assert!(coding.run < WHOLE_ROW);
        let (per_scale, blocks) = (coding.run / layout.block(), layout.blocks(columns));
        let mut codes = vec![0; rows.len()];
        let (mut of_blocks, mut zeros) = (Vec::new(), Vec::new());
        for (number, (row, codes)) in rows.chunks(columns).zip(codes.chunks_mut(columns)).enumerate() {
            let nested = scales(number);
            let before = of_blocks.len();
            for (b, (row, codes)) in row.chunks(coding.run).zip(codes.chunks_mut(coding.run)).enumerate() {
                let Scale { scale, zero } = encode(row, codes);
                of_blocks.extend(vec![nested.map_or(scale, |nested| nested[b]); per_scale]);
                zeros.extend(vec![f32::from(zero); per_scale]);
            }
            of_blocks.truncate(before + blocks);
            zeros.truncate(before + blocks);
        }
        let rows = CodedRows { codes: &codes, scales: &of_blocks, zeros: &zeros };
        layout.pack_codes(columns, rows, tile)
    }
}
