//! bitsandbytes, as transformers saves it: see the reader in `bantam-model`, `formats/bitsandbytes.rs`.

use bantam_model::checkpoint::Dtype;
use bantam_model::formats::encode::{NESTED_BLOCK, dynamic_map};
use serde_json::{Value, json};

use super::{Piece, f32_bytes, type_name};
use crate::matrix::{Flat, Told};

pub(super) fn four_bits(name: &str, flat: &Flat, kind: &str, dtype: Dtype) -> Vec<Piece> {
    let tensor = |suffix: &str| format!("{name}.weight{suffix}");
    let codes: Vec<u8> =
        flat.codes.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or_default()).collect();
    let book = flat.book.expect("four bits have a book");
    let blocks = flat.scales.len();
    let shape = format!("[{}, {}]", flat.shape.rows, flat.shape.columns);
    let mut state = format!(
        "{{\"quant_type\": \"{kind}\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": {shape}",
        flat.block,
        type_name(dtype)
    );
    let mut pieces = vec![
        Piece::new(tensor(""), Dtype::U8, &[codes.len(), 1], codes),
        Piece::new(tensor(".quant_map"), Dtype::F32, &[16], f32_bytes(book)),
    ];
    match &flat.told {
        Told::Nested(nested) => {
            let (map, absmax) = (dynamic_map(), &nested.scales);
            pieces.extend([
                Piece::new(tensor(".absmax"), Dtype::U8, &[blocks], nested.codes.clone()),
                Piece::new(tensor(".nested_absmax"), Dtype::F32, &[absmax.len()], f32_bytes(absmax)),
                Piece::new(tensor(".nested_quant_map"), Dtype::F32, &[map.len()], f32_bytes(&map)),
            ]);
            let offset = python_float(f64::from(nested.offset));
            state += &format!(
                ", \"nested_blocksize\": {NESTED_BLOCK}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset}"
            );
        }
        _ => pieces.push(Piece::new(tensor(".absmax"), Dtype::F32, &[blocks], f32_bytes(&flat.scales))),
    }
    state.push('}');
    let (name, len) = (tensor(&format!(".quant_state.bitsandbytes__{kind}")), state.len());
    pieces.push(Piece::new(name, Dtype::U8, &[len], state.into_bytes()));
    pieces
}

pub(super) fn eight_bits(name: &str, flat: &Flat) -> Vec<Piece> {
    let Told::Largest(largest) = &flat.told else { unreachable!("eight bits have the largest of every row") };
    let shape = [flat.shape.rows, flat.shape.columns];
    // They were stored plus 128.
    let codes = flat.codes.iter().map(|code| code ^ 0x80).collect();
    vec![
        Piece::new(format!("{name}.weight"), Dtype::I8, &shape, codes),
        Piece::new(format!("{name}.SCB"), Dtype::F32, &[shape[0]], f32_bytes(largest)),
        Piece::new(format!("{name}.weight_format"), Dtype::U8, &[], vec![0]),
    ]
}

/// A number as Python prints it: with as few digits as tell it apart, of two such the nearer, of two as near the even.
fn python_float(value: f64) -> String {
    let exponent_of = |text: &str| -> (usize, i32) {
        let (digits, exponent) = text.split_once('e').expect("the form asks for an exponent");
        let digits = digits.chars().filter(char::is_ascii_digit).count();
        (digits, exponent.parse().expect("an exponent is a number"))
    };
    // The shortest form settles how many digits; only the exact one settles which.
    let (digits, exponent) = exponent_of(&format!("{value:e}"));
    match exponent {
        -4..16 => format!("{value:.*}", (digits as i32 - 1 - exponent).max(1) as usize),
        _ => {
            let text = format!("{value:.*e}", digits - 1);
            let (digits, _) = text.split_once('e').expect("the form asks for an exponent");
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
    }
}

/// Without a kind of four bits, eight.
pub(super) fn settings(
    four: Option<(&str, bool)>,
    head: Option<&str>,
    left: &[String],
    dtype: Dtype,
) -> Value {
    // The tool leaves the head by itself, unless it is told of other modules.
    let skipped = (!left.is_empty()).then(|| left.iter().map(String::as_str).chain(head).collect::<Vec<_>>());
    let (kind, nested) = four.unwrap_or(("fp4", false));
    json!({
        "_load_in_4bit": four.is_some(),
        "_load_in_8bit": four.is_none(),
        "bnb_4bit_compute_dtype": if four.is_some() { type_name(dtype) } else { "float32" },
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four.is_some(),
        "load_in_8bit": four.is_none(),
        "quant_method": "bitsandbytes",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spelled_as_python_spells_them() {
        for (value, text) in [
            (0.605_361_938_476_562_5, "0.6053619384765625"),
            (f64::from(f32::from_bits(0x3f02_9680)), "0.5101089477539062"),
            (1.0, "1.0"),
            (0.0001, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (0.0, "0.0"),
            (1e-100, "1e-100"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }
}
