//! Which form a checkpoint is to get, with all that people can choose about it, and what a form can hold.

use bantam_core::layouts::Shape;
use bantam_model::formats::ternary::CODES_GROUP;
use bantam_model::inventory::{Module, Role};
use serde_json::{Value, json};

/// The forms, by the names that people give them.
pub const NAMES: &[&str] = &["nf4", "fp4", "int8", "mxfp4", "hqq", "gptq", "awq", "ternary"];

/// A form and its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// bitsandbytes' four bits.
    FourBit {
        /// By the book NF4, else FP4.
        normal: bool,
        /// Whether scales are quantized again.
        nested: bool,
    },
    /// bitsandbytes' LLM.int8.
    Int8,
    /// gpt-oss's experts.
    Mxfp4,
    /// HQQ, axis 1.
    Hqq {
        /// 1, 2, 3, 4 or 8.
        bits: usize,
        /// Values under one scale.
        group: usize,
    },
    /// GPTQ.
    Gptq {
        /// 2, 3, 4 or 8.
        bits: usize,
        /// `None` is a group of all inputs.
        group: Option<usize>,
        /// Whether zeros are in the middle.
        symmetric: bool,
        /// Whether inputs may have an order.
        act_order: bool,
    },
    /// AWQ, gemm.
    Awq {
        /// `None` is a group of all inputs.
        group: Option<usize>,
        /// Whether there are zeros.
        zero_point: bool,
    },
    /// Ternary.
    Ternary {
        /// A multiple of 64, `None` for whole rows.
        group: Option<usize>,
        /// 1 or 2.
        planes: usize,
        /// How scales and trits are found.
        fit: Fit,
    },
}

/// How ternary weights are found without looking at the model at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The scale is the mean magnitude, weights are rounded.
    Absmean,
    /// Threshold and scale with the least squared error.
    Optimal,
}

/// What a head becomes that is quantized too. It is not calibrated: it has no errors of others to make good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Eight bits with a scale per row.
    Int8,
    /// Four bits with a scale and a zero per 64 inputs.
    Int4,
}

impl Head {
    /// Of a code.
    pub fn bits(self) -> usize {
        match self {
            Head::Int8 => 8,
            Head::Int4 => 4,
        }
    }

    /// Inputs under one scale; `None` for a row.
    pub fn group(self) -> Option<usize> {
        match self {
            Head::Int8 => None,
            Head::Int4 => Some(CODES_GROUP),
        }
    }
}

impl Form {
    /// What can be chosen about it, as a report tells it. A group of `null` is a whole row.
    pub fn settings(&self) -> Value {
        match *self {
            Form::FourBit { nested, .. } => json!({ "double_quantization": nested }),
            Form::Int8 | Form::Mxfp4 => json!({}),
            Form::Hqq { bits, group } => json!({ "bits": bits, "group_size": group }),
            Form::Gptq { bits, group, symmetric, act_order } => {
                json!({ "bits": bits, "group_size": group, "symmetric": symmetric, "act_order": act_order })
            }
            Form::Awq { group, zero_point } => {
                json!({ "bits": 4, "group_size": group, "zero_point": zero_point })
            }
            Form::Ternary { group, planes, .. } => json!({ "group_size": group, "planes": planes }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Form::FourBit { normal: true, .. } => "nf4",
            Form::FourBit { normal: false, .. } => "fp4",
            Form::Int8 => "int8",
            Form::Mxfp4 => "mxfp4",
            Form::Hqq { .. } => "hqq",
            Form::Gptq { .. } => "gptq",
            Form::Awq { .. } => "awq",
            Form::Ternary { .. } => "ternary",
        }
    }

    /// Whether it has a place for a matrix of this kind.
    pub fn takes(&self, module: &Module) -> bool {
        let is_stack = module.experts.is_some();
        module.role == Role::Layer
            && match self {
                Form::Mxfp4 => is_stack,
                Form::Ternary { .. } => true,
                _ => !is_stack,
            }
    }

    /// Why a matrix of this size cannot be held, if so: expected, found, what to do.
    pub fn refusal(&self, shape: Shape) -> Option<String> {
        let Shape { rows, columns } = shape;
        let multiple = |what: &str, of: usize, found: usize, advice: &str| {
            (!found.is_multiple_of(of))
                .then(|| format!("expected a multiple of {of} {what}, found {found}; {advice}"))
        };
        let another = "choose another form, such as nf4";
        match *self {
            Form::FourBit { .. } => multiple("weights", 2, rows * columns, another),
            Form::Int8 => None,
            Form::Mxfp4 => multiple("inputs", 32, columns, another),
            Form::Hqq { bits, group } => {
                let of = group * if bits == 3 { 1 } else { 8 / bits };
                multiple("weights", of, rows * columns, "choose another --group-size")
            }
            Form::Gptq { .. } => {
                multiple("outputs", 32, rows, another).or_else(|| multiple("inputs", 32, columns, another))
            }
            Form::Awq { group, .. } => multiple("outputs", 8, rows, another).or_else(|| {
                multiple("inputs", group.unwrap_or(1), columns, "choose a --group-size that divides it")
            }),
            Form::Ternary { .. } => multiple("inputs", 64, columns, another),
        }
    }
}

impl Form {
    /// About how many bits a weight takes, with scales.
    pub fn bits(&self) -> f64 {
        let of_group = |bits: f64, group: Option<usize>| group.map_or(0.0, |group| bits / group as f64);
        match *self {
            Form::FourBit { nested: true, .. } => 4.2,
            Form::FourBit { nested: false, .. } => 4.6,
            Form::Int8 => 8.1,
            Form::Mxfp4 => 4.25,
            Form::Hqq { bits, group } => {
                let codes = if bits == 3 { 3.2 } else { bits as f64 };
                codes + 64.0 / group as f64
            }
            Form::Gptq { bits, group, .. } => bits as f64 + of_group(16.0 + bits as f64, group) + 0.05,
            Form::Awq { group, .. } => 4.0 + of_group(20.0, group) + 0.05,
            Form::Ternary { group, planes, .. } => planes as f64 * (1.625 + of_group(16.0, group)),
        }
    }
}
