//! Weights that are quantized here, beside the checkpoints that the original tools made of the same weights.

use bantam_core::Cpu;
use bantam_model::checkpoint::{Checkpoint, Dtype};
use bantam_model::engine::stored;
use bantam_model::formats::encode::{self, FOUR_BIT_BLOCK, FP4, MX_BLOCK, NF4, Scale};
use bantam_model::inspect::unquantized;
use bantam_model::plan::Plan;
use bantam_tests::{floats, model_folder, open, options, repository};
use half::f16;

/// A folder below `tests/goldens/quant`, and the model that was quantized.
const CHECKPOINTS: &[(&str, &str)] = &[
    ("bnb-nf4-dq-llama", "llama-tied"),
    ("bnb-nf4-dq-qwen2", "qwen2"),
    ("bnb-nf4-dq-gpt_neox", "gpt_neox"),
    ("bnb-nf4-llama", "llama-tied"),
    ("bnb-fp4-llama", "llama-tied"),
    ("bnb-int8-llama", "llama-tied"),
    ("bnb-int8-gpt_neox", "gpt_neox"),
];

/// An encoder.
type Encode = fn(&[f32], &mut [u8]) -> Scale;

/// What a matrix of four bits decodes to.
fn four_bits(values: &[f32], encode: Encode, book: &[f32; 16], nested: bool) -> Vec<f32> {
    let mut codes = vec![0; values.len()];
    let blocks = values.chunks(FOUR_BIT_BLOCK).zip(codes.chunks_mut(FOUR_BIT_BLOCK));
    let mut scales: Vec<f32> = blocks.map(|(values, codes)| encode(values, codes).scale).collect();
    if nested {
        encode::nest(&mut scales);
    }
    let value = |(at, code): (usize, &u8)| book[usize::from(*code)] * scales[at / FOUR_BIT_BLOCK];
    codes.iter().enumerate().map(value).collect()
}

fn eight_bits(values: &[f32], columns: usize) -> Vec<f32> {
    let values: Vec<f32> = values.iter().map(|value| f16::from_f32(*value).to_f32()).collect();
    let mut codes = vec![0; columns];
    let mut decoded = Vec::new();
    for row in values.chunks(columns) {
        let Scale { scale, .. } = encode::int8(row, &mut codes);
        decoded.extend(codes.iter().map(|code| f32::from(code.cast_signed()) * scale));
    }
    decoded
}

#[test]
fn bitsandbytes_makes_the_same_bits() {
    for (name, base) in CHECKPOINTS {
        let (spec, checkpoint) = open(&repository("tests/goldens/quant").join(name));
        let plan =
            Plan::new(&spec, stored(&checkpoint), options(), Cpu::detect()).expect("it can be planned");
        let original = Checkpoint::open(&model_folder(base)).expect("the golden opens");
        let mut seen = 0;
        for tensor in original.tensors().filter(|tensor| tensor.shape.len() == 2) {
            let Some(found) = unquantized(&checkpoint, &plan, tensor.name).expect("sound weights") else {
                continue;
            };
            let mut wanted = vec![0.0; tensor.elements()];
            found.view().read_f32(0, &mut wanted);
            let values = floats(&original, tensor.name);
            let made = match (name.contains("nf4"), name.contains("fp4")) {
                (true, _) => four_bits(&values, encode::nf4, &NF4, name.contains("-dq-")),
                (_, true) => four_bits(&values, encode::fp4, &FP4, false),
                _ => eight_bits(&values, tensor.shape[1]),
            };
            let differs = made.iter().zip(&wanted).position(|(a, b)| a.to_bits() != b.to_bits());
            if let Some(at) = differs {
                panic!("{name} {}, element {at}: {}, not {}", tensor.name, made[at], wanted[at]);
            }
            seen += 1;
        }
        assert!(seen >= 8, "{name}: matrices");
    }
}

#[test]
fn experts_get_the_same_codes() {
    let original = Checkpoint::open(&model_folder("gpt_oss-bf16")).expect("the golden opens");
    let checkpoint = Checkpoint::open(&model_folder("gpt_oss-mxfp4")).expect("the golden opens");
    let mut blocks = 0;
    for tensor in checkpoint.tensors().filter(|tensor| tensor.name.ends_with("_blocks")) {
        let name = tensor.name.strip_suffix("_blocks").expect("it ends so");
        let scales = checkpoint.tensor(&format!("{name}_scales")).expect("beside its blocks");
        let source = original.tensor(name).expect("the same model");
        assert_eq!((source.dtype, source.shape.len()), (Dtype::Bf16, 3));
        let values = floats(&original, name);
        let (columns, rows) = (source.shape[1], source.shape[2]);
        let (mut block, mut codes) = ([0.0; MX_BLOCK], [0; MX_BLOCK]);
        for (at, (bytes, scale)) in tensor.data.chunks(MX_BLOCK / 2).zip(scales.data).enumerate() {
            let (row, column) = (at / (columns / MX_BLOCK), at % (columns / MX_BLOCK) * MX_BLOCK);
            let (expert, row) = (row / rows, row % rows);
            for (i, value) in block.iter_mut().enumerate() {
                *value = values[(expert * columns + column + i) * rows + row];
            }
            let made = encode::mxfp4(&block, &mut codes);
            assert_eq!(made.scale, 2f32.powi(i32::from(*scale) - 127), "{name}, block {at}");
            let wanted: Vec<u8> = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
            assert_eq!(codes, *wanted, "{name}, block {at}");
            blocks += 1;
        }
    }
    assert!(blocks > 1000, "{blocks} blocks");
}
