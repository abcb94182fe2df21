//! MXFP4, as transformers saves gpt-oss: see the reader in `bantam-model`, `formats/mxfp4.rs`.

use bantam_model::checkpoint::Dtype;
use serde_json::{Value, json};

use super::Piece;
use crate::matrix::Flat;

pub(super) fn pieces(name: &str, flat: &Flat) -> Vec<Piece> {
    let blocks = flat.shape.columns / flat.block;
    let codes: Vec<u8> = flat.codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect();
    let scales = flat.scales.iter().map(|scale| exponent(*scale)).collect();
    let shape = [flat.shape.rows, blocks];
    vec![
        Piece::new(format!("{name}_blocks"), Dtype::U8, &[shape[0], blocks, flat.block / 2], codes),
        Piece::new(format!("{name}_scales"), Dtype::U8, &shape, scales),
    ]
}

/// Of a power of two, plus 127. The smallest is below the normal numbers.
fn exponent(scale: f32) -> u8 {
    (scale.to_bits() >> 23) as u8
}

pub(super) fn settings(head: Option<&str>, left: &[String]) -> Value {
    let left: Vec<&str> = left.iter().map(String::as_str).chain(head).collect();
    json!({ "modules_to_not_convert": left, "quant_method": "mxfp4" })
}
