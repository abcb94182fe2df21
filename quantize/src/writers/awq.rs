//! AWQ, gemm: see the reader in `bantam-model`, `formats/awq.rs`.

use bantam_model::checkpoint::Dtype;
use serde_json::{Value, json};

use super::{Piece, f16_bytes, word_bytes};
use crate::matrix::Grouped;

/// The output of each four bits of a word, from the low ones.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

pub(super) fn pieces(name: &str, grouped: &Grouped) -> Vec<Piece> {
    let tensor = |suffix: &str| format!("{name}.{suffix}");
    let (rows, columns, groups) = (grouped.shape.rows, grouped.shape.columns, grouped.groups());
    let width = rows.div_ceil(8);
    let words = |lines: usize, of_row: &[u8]| -> Vec<u8> {
        let mut words = vec![0u32; lines * width];
        for (row, codes) in of_row.chunks_exact(lines).enumerate() {
            let place = ORDER.iter().position(|output| *output == row % 8).expect("all eight are there");
            for (line, code) in codes.iter().enumerate() {
                words[line * width + row / 8] |= u32::from(*code) << (4 * place);
            }
        }
        word_bytes(&words)
    };
    let scale = |at: usize| grouped.scales[at % rows * groups + at / rows];
    let scales = f16_bytes((0..groups * rows).map(scale));
    vec![
        Piece::new(tensor("qweight"), Dtype::I32, &[columns, width], words(columns, &grouped.codes)),
        Piece::new(tensor("qzeros"), Dtype::I32, &[groups, width], words(groups, &grouped.zeros)),
        Piece::new(tensor("scales"), Dtype::F16, &[groups, rows], scales),
    ]
}

pub(super) fn settings(group: Option<usize>, zero_point: bool, left: &[String]) -> Value {
    json!({
        "bits": 4,
        "group_size": group.map_or(json!(-1), |group| json!(group)),
        "modules_to_not_convert": (!left.is_empty()).then_some(left),
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": zero_point,
    })
}
