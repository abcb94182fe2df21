//! HQQ, as transformers saves it: see the reader in `bantam-model`, `formats/hqq.rs`.

use bantam_model::checkpoint::Dtype;
use serde_json::{Value, json};

use super::{Piece, f32_bytes, word_bytes};
use crate::matrix::Flat;

pub(super) fn pieces(name: &str, flat: &Flat, bits: usize) -> Vec<Piece> {
    let tensor = |suffix: &str| format!("{name}.{suffix}");
    let groups = flat.scales.len();
    let (packing, view) = match bits {
        3 => ("3bit_32".to_owned(), "torch.int32"),
        _ => (format!("{bits}bit_u8"), "torch.uint8"),
    };
    let mut pieces = vec![packed(tensor("W_q"), flat, bits)];
    pieces.extend([
        Piece::new(tensor("scale"), Dtype::F32, &[groups, 1], f32_bytes(&flat.scales)),
        Piece::new(tensor("zero"), Dtype::F32, &[groups, 1], f32_bytes(&flat.zeros)),
    ]);
    let shape = [flat.shape.rows, flat.shape.columns];
    let bytes = shape.iter().flat_map(|size| (*size as u64).to_le_bytes()).collect();
    pieces.push(Piece::new(tensor("shape"), Dtype::I64, &[2], bytes));
    for (key, number) in [("nbits", bits), ("group_size", flat.block), ("axis", 1)] {
        let number = (number as u32).to_le_bytes().to_vec();
        pieces.push(Piece::new(tensor(key), Dtype::I32, &[], number));
    }
    // That of the scales.
    for (key, text) in
        [("compute_dtype", "torch.float32"), ("packing", &*packing), ("unpack_view_dtype", view)]
    {
        pieces.push(Piece::new(tensor(key), Dtype::U8, &[text.len()], text.as_bytes().to_vec()));
    }
    let flags = [
        ("channel_wise", true),
        ("encoded_state_dict", true),
        ("offload_meta", false),
        ("optimize", true),
        ("quant_scale", false),
        ("quant_zero", false),
        ("round_zero", bits == 4),
        ("stores_quant_config", true),
        ("view_as_float", false),
    ];
    pieces.extend(flags.map(|(key, flag)| Piece::new(tensor(key), Dtype::U8, &[], vec![u8::from(flag)])));
    pieces
}

/// Rows of groups that lie far apart share a row of the tensor, the first in the high bits.
fn packed(name: String, flat: &Flat, bits: usize) -> Piece {
    let group = flat.block;
    let groups = flat.codes.len() / group;
    let together = if bits == 3 { 10 } else { 8 / bits };
    let rows = groups.div_ceil(together);
    let mut words = vec![0u32; rows * group];
    for (number, codes) in flat.codes.chunks_exact(group).enumerate() {
        let shift = bits * (together - 1 - number / rows);
        for (word, code) in words[number % rows * group..].iter_mut().zip(codes) {
            *word |= u32::from(*code) << shift;
        }
    }
    match bits {
        3 => Piece::new(name, Dtype::I32, &[rows, group], word_bytes(&words)),
        _ => {
            let bytes = words.into_iter().map(|word| word as u8).collect();
            Piece::new(name, Dtype::U8, &[rows, group], bytes)
        }
    }
}

pub(super) fn settings(bits: usize, group: usize, head: Option<&str>, left: &[String]) -> Value {
    // The tool always names one, and a head of another name too.
    let others = head.filter(|head| *head != "lm_head").into_iter().chain(left.iter().map(String::as_str));
    let skipped: Vec<&str> = std::iter::once("lm_head").chain(others).collect();
    json!({
        "quant_config": {
            "offload_meta": false,
            "scale_quant_params": null,
            "weight_quant_params": {
                "axis": 1,
                "channel_wise": true,
                "group_size": group,
                "nbits": bits,
                "optimize": true,
                "round_zero": bits == 4,
                "view_as_float": false,
            },
            "zero_quant_params": null,
        },
        "quant_method": "hqq",
        "skip_modules": skipped,
    })
}
