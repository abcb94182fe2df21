//! Codes in the bytes of the tools that read them: for every form the tensors of a matrix, and what the configuration
//! says about all.

mod awq;
mod bitsandbytes;
mod gptq;
mod hqq;
mod mxfp4;
mod ternary;

use bantam_model::checkpoint::Dtype;
use serde_json::Value;

use crate::form::Form;
use crate::matrix::Quantized;

/// A tensor, or one expert's part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The tensor's name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its dimensions, without the experts'.
    pub shape: Vec<usize>,
    /// Its elements.
    pub bytes: Vec<u8>,
}

impl Piece {
    fn new(name: String, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Piece {
        debug_assert_eq!(bytes.len(), shape.iter().product::<usize>() * dtype.bytes(), "{name}");
        Piece { name, dtype, shape: shape.to_vec(), bytes }
    }
}

/// The tensors of a matrix. `name` is the module's, of experts the stack's; `dtype` is what the weights were stored as.
///
/// # Panics
/// If a method made something else of the matrix than its form holds.
pub fn pieces(form: &Form, name: &str, matrix: &Quantized, dtype: Dtype) -> Vec<Piece> {
    match (form, matrix) {
        (Form::FourBit { normal, .. }, Quantized::Flat(flat)) => {
            bitsandbytes::four_bits(name, flat, if *normal { "nf4" } else { "fp4" }, dtype)
        }
        (Form::Int8, Quantized::Flat(flat)) => bitsandbytes::eight_bits(name, flat),
        (Form::Mxfp4, Quantized::Flat(flat)) => mxfp4::pieces(name, flat),
        (Form::Hqq { bits, .. }, Quantized::Flat(flat)) => hqq::pieces(name, flat, *bits),
        (Form::Gptq { .. }, Quantized::Grouped(grouped)) => gptq::pieces(name, grouped),
        (Form::Awq { .. }, Quantized::Grouped(grouped)) => awq::pieces(name, grouped),
        (Form::Ternary { .. }, Quantized::Trits(trits)) => ternary::pieces(name, trits),
        _ => panic!("{name}: no matrix of {}", form.name()),
    }
}

/// The tensors of a head, or of some rows of it, in the form that has a place for one.
///
/// # Panics
/// If a method made something else of it.
pub fn head(name: &str, matrix: &Quantized) -> Vec<Piece> {
    match matrix {
        Quantized::Grouped(grouped) => ternary::head(name, grouped),
        _ => panic!("{name}: no codes that count"),
    }
}

/// `quantization_config`. `left` are the matrices that stay as they are, without the head and the embedding;
/// `damp` is what GPTQ was told.
pub fn settings(form: &Form, head: Option<&str>, left: &[String], dtype: Dtype, damp: f64) -> Value {
    match form {
        Form::FourBit { normal, nested } => {
            let kind = if *normal { "nf4" } else { "fp4" };
            bitsandbytes::settings(Some((kind, *nested)), head, left, dtype)
        }
        Form::Int8 => bitsandbytes::settings(None, head, left, dtype),
        Form::Mxfp4 => mxfp4::settings(head, left),
        Form::Hqq { bits, group } => hqq::settings(*bits, *group, head, left),
        Form::Gptq { .. } => gptq::settings(form, left, damp),
        Form::Awq { group, zero_point } => awq::settings(*group, *zero_point, left),
        Form::Ternary { group, .. } => ternary::settings(*group, head, left),
    }
}

/// How Python spells a type.
fn type_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::F32 | Dtype::F64 => "float32",
        _ => "bfloat16",
    }
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Values that float16 holds.
fn f16_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect()
}

fn word_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Codes as a stream of words, the first in the low bits.
fn stream(bits: usize, codes: impl ExactSizeIterator<Item = u8>) -> Vec<u32> {
    let mut words = vec![0u32; (codes.len() * bits).div_ceil(32)];
    for (number, code) in codes.enumerate() {
        let (word, shift) = (number * bits / 32, number * bits % 32);
        words[word] |= u32::from(code) << shift;
        if shift + bits > 32 {
            words[word + 1] |= u32::from(code) >> (32 - shift);
        }
    }
    words
}
