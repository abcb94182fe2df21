//! The house's own form of ternary weights: see `bantam-model`, `formats/ternary.rs`.

use bantam_core::layouts::Shape;
use bantam_model::checkpoint::Dtype;
use bantam_model::formats::ternary::{self, BLOCK, BLOCK_BYTES, CODES, COLUMNS, SCALES, TRITS, ZEROS};
use serde_json::Value;

use super::{Piece, f16_bytes, f32_bytes};
use crate::matrix::{Grouped, Trits};

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

/// A head of eight bits or four, or some rows of it.
pub(super) fn head(name: &str, grouped: &Grouped) -> Vec<Piece> {
    let Shape { rows, columns } = grouped.shape;
    let scales = f16_bytes(grouped.scales.iter().copied());
    let scales = Piece::new(format!("{name}{SCALES}"), Dtype::F16, &[rows, grouped.groups()], scales);
    let codes =
        |bytes: Vec<u8>| Piece::new(format!("{name}{CODES}"), Dtype::U8, &[rows, bytes.len() / rows], bytes);
    if grouped.bits == 8 {
        return vec![codes(grouped.codes.clone()), scales];
    }
    let two = |pair: &[u8]| pair[0] | pair.get(1).copied().unwrap_or_default() << 4;
    let bytes = grouped.codes.chunks(columns).flat_map(|row| row.chunks(2).map(two)).collect();
    let zeros = grouped.zeros.clone();
    let zeros = Piece::new(format!("{name}{ZEROS}"), Dtype::U8, &[rows, grouped.groups()], zeros);
    vec![codes(bytes), scales, zeros]
}

pub(super) fn settings(group: Option<usize>, head: Option<&str>, left: &[String]) -> Value {
    let left: Vec<String> = left.iter().cloned().chain(head.map(str::to_owned)).collect();
    ternary::settings(group, &left)
}
