//! GPTQ, the first version of the form: see the reader in `bantam-model`, `formats/gptq.rs`.
//!
//! Three bits are written as the second version (`gptq_v2`), because tools do not agree on what the first one is.

use bantam_model::checkpoint::Dtype;
use serde_json::{Value, json};

use super::{Piece, f16_bytes, stream, word_bytes};
use crate::form::Form;
use crate::matrix::Grouped;

pub(super) fn pieces(name: &str, grouped: &Grouped) -> Vec<Piece> {
    let tensor = |suffix: &str| format!("{name}.{suffix}");
    let (rows, columns, bits) = (grouped.shape.rows, grouped.shape.columns, grouped.bits);
    let groups = grouped.groups();
    let height = (columns * bits).div_ceil(32);
    let mut words = vec![0u32; height * rows];
    for (row, codes) in grouped.codes.chunks_exact(columns).enumerate() {
        for (at, word) in stream(bits, codes.iter().copied()).into_iter().enumerate() {
            words[at * rows + row] = word;
        }
    }
    let less = first_version(bits);
    let mut zeros = Vec::new();
    for group in 0..groups {
        let zero = |row: usize| grouped.zeros[row * groups + group];
        zeros.extend(stream(bits, (0..rows).map(zero)).into_iter().map(|word| word.wrapping_sub(less)));
    }
    let scale = |at: usize| grouped.scales[at % rows * groups + at / rows];
    let scales = f16_bytes((0..groups * rows).map(scale));
    let group_of: Vec<u32> = match &grouped.group_of {
        Some(group_of) => group_of.clone(),
        None => (0..columns).map(|input| (input / grouped.group) as u32).collect(),
    };
    let width = zeros.len() / groups;
    vec![
        Piece::new(tensor("qweight"), Dtype::I32, &[height, rows], word_bytes(&words)),
        Piece::new(tensor("qzeros"), Dtype::I32, &[groups, width], word_bytes(&zeros)),
        Piece::new(tensor("scales"), Dtype::F16, &[groups, rows], scales),
        Piece::new(tensor("g_idx"), Dtype::I32, &[columns], word_bytes(&group_of)),
    ]
}

/// What the first version subtracts from words of zeros.
fn first_version(bits: usize) -> u32 {
    match bits {
        2 => 0x5555_5555,
        4 => 0x1111_1111,
        8 => 0x0101_0101,
        _ => 0,
    }
}

pub(super) fn settings(form: &Form, left: &[String], damp: f64) -> Value {
    let Form::Gptq { bits, group, symmetric, act_order } = *form else { unreachable!("GPTQ's own settings") };
    let version = if first_version(bits) == 0 { "gptq_v2" } else { "gptq" };
    let mut settings = json!({
        "bits": bits,
        "checkpoint_format": version,
        "desc_act": act_order,
        "format": version,
        "group_size": group.map_or(json!(-1), |group| json!(group)),
        "lm_head": false,
        "meta": {
            "damp_percent": damp,
            "quantizer": [concat!("bantam:", env!("CARGO_PKG_VERSION"))],
            "static_groups": false,
            "true_sequential": true,
        },
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": symmetric,
    });
    if !left.is_empty() {
        // GPTQModel's way to leave modules as they are.
        let rules = left.iter().map(|name| (format!("-:^{}$", name.replace('.', "\\.")), json!({})));
        settings["dynamic"] = Value::Object(rules.collect());
    }
    settings
}
