//! The house's own form of ternary weights: see `bantam-model`, `formats/ternary.rs`.

use bantam_model::checkpoint::Dtype;
use bantam_model::formats::ternary::{self, BLOCK, BLOCK_BYTES, COLUMNS, SCALES, TRITS};
use serde_json::Value;

use super::{Piece, f16_bytes, f32_bytes};
use crate::matrix::Trits;

pub(super) fn pieces(name: &str, trits: &Trits) -> Vec<Piece> {
    let (rows, columns, planes) = (trits.shape.rows, trits.shape.columns, trits.planes);
    let bytes = columns / BLOCK * BLOCK_BYTES;
    let mut packed = Vec::with_capacity(rows * planes * bytes);
    ternary::pack(&trits.trits, &mut packed);
    let scales = f16_bytes(trits.scales.iter().copied());
    let mut pieces = vec![
        Piece::new(format!("{name}{TRITS}"), Dtype::U8, &[rows, planes, bytes], packed),
        Piece::new(format!("{name}{SCALES}"), Dtype::F16, &[rows, planes, trits.groups()], scales),
    ];
    if let Some(factors) = &trits.columns {
        pieces.push(Piece::new(format!("{name}{COLUMNS}"), Dtype::F32, &[columns], f32_bytes(factors)));
    }
    pieces
}

pub(super) fn settings(group: Option<usize>, head: Option<&str>, left: &[String]) -> Value {
    let left: Vec<String> = left.iter().cloned().chain(head.map(str::to_owned)).collect();
    ternary::settings(group, &left)
}
