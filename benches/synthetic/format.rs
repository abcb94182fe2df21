//! The forms that tools write their checkpoints in: for every matrix, which tensors hold it. `model/src/formats` draws
//! their bits; nothing here reads or computes a weight.

use bantam_model::checkpoint::Dtype;
use bantam_model::formats::encode::{FOUR_BIT_BLOCK, FP4, MX_BLOCK, NESTED_BLOCK, NF4, dynamic_map};
use serde_json::{Value, json};

use super::noise::Content;

/// A tensor to write.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) content: Content,
}

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of FORMATS")]
pub enum Format {
    Bf16,
    Nf4 { nested: bool },
    Fp4,
    Int8,
    Gptq { by_activation: bool },
    Awq,
    Mxfp4,
}

/// Every format by its name on the command line.
pub const FORMATS: &[(&str, Format)] = &[
    ("bf16", Format::Bf16),
    ("nf4", Format::Nf4 { nested: true }),
    ("nf4-plain", Format::Nf4 { nested: false }),
    ("fp4", Format::Fp4),
    ("int8", Format::Int8),
    ("gptq", Format::Gptq { by_activation: false }),
    ("gptq-act", Format::Gptq { by_activation: true }),
    ("awq", Format::Awq),
    ("mxfp4", Format::Mxfp4),
];

/// Inputs under one scale in GPTQ and AWQ.
const GROUP: usize = 128;
impl Format {
    /// Type of whatever is not quantized.
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Format::Int8 | Format::Gptq { .. } | Format::Awq => Dtype::F16,
            _ => Dtype::Bf16,
        }
    }

    /// `quantization_config`.
    pub(super) fn config(self) -> Option<Value> {
        let bitsandbytes = |four: bool, kind: &str, nested: bool| {
            Some(json!({
                "quant_method": "bitsandbytes", "load_in_4bit": four, "load_in_8bit": !four,
                "_load_in_4bit": four, "_load_in_8bit": !four, "bnb_4bit_quant_type": kind,
                "bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": "bfloat16",
                "bnb_4bit_quant_storage": "uint8", "llm_int8_threshold": 6.0, "llm_int8_skip_modules": null,
                "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
            }))
        };
        match self {
            Format::Bf16 => None,
            Format::Nf4 { nested } => bitsandbytes(true, "nf4", nested),
            Format::Fp4 => bitsandbytes(true, "fp4", true),
            Format::Int8 => bitsandbytes(false, "fp4", false),
            Format::Gptq { by_activation } => Some(json!({
                "quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": by_activation, "sym": true,
                "checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": false, "true_sequential": true,
            })),
            Format::Awq => Some(json!({
                "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": true,
                "modules_to_not_convert": null,
            })),
            Format::Mxfp4 => Some(json!({
                "quant_method": "mxfp4", "modules_to_not_convert": [
                    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
                ],
            })),
        }
    }

    /// The tensors of a matrix of a layer, or why there are none.
    pub(super) fn matrix(self, module: &str, rows: usize, columns: usize) -> Result<Vec<Tensor>, String> {
        let parts = Parts { module, rows, columns, largest: largest(columns) };
        let unit = match self {
            Format::Gptq { .. } | Format::Awq => (8, GROUP),
            _ => (1, 1),
        };
        if !rows.is_multiple_of(unit.0) || !columns.is_multiple_of(unit.1) {
            return Err(format!(
                "{module} has {rows} outputs and {columns} inputs; the format takes multiples of {} and {}",
                unit.0, unit.1
            ));
        }
        Ok(match self {
            Format::Bf16 | Format::Mxfp4 => {
                vec![plain(&format!("{module}.weight"), &[rows, columns], self.dtype())]
            }
            Format::Nf4 { nested } => parts.codes("nf4", NF4, nested),
            Format::Fp4 => parts.codes("fp4", FP4, true),
            Format::Int8 => parts.int8(),
            Format::Gptq { by_activation } => parts.gptq(by_activation),
            Format::Awq => parts.awq(),
        })
    }

    /// The tensors of experts that stand in one, experts x inputs x outputs.
    pub(super) fn stack(self, name: &str, shape: &[usize]) -> Result<Vec<Tensor>, String> {
        let &[experts, columns, rows] = shape else {
            return Err(format!("{name}: expected three dimensions, found {shape:?}"));
        };
        match self {
            Format::Bf16 => Ok(vec![plain(name, shape, self.dtype())]),
            Format::Mxfp4 if columns.is_multiple_of(MX_BLOCK) => {
                let blocks = columns / MX_BLOCK;
                let bytes = |suffix: &str, shape: &[usize], content| Tensor {
                    name: format!("{name}_{suffix}"),
                    dtype: Dtype::U8,
                    shape: shape.to_vec(),
                    content,
                };
                // The code book ends at 6; of two scales, the larger is the one.
                let exponent = (largest(columns) / 6.0).log2().round() as i32;
                let scales = Content::Bytes { keep: 1, plus: (126 + exponent) as u8 };
                let any = Content::Bytes { keep: 0xff, plus: 0 };
                Ok(vec![
                    bytes("blocks", &[experts, rows, blocks, MX_BLOCK / 2], any),
                    bytes("scales", &[experts, rows, blocks], scales),
                ])
            }
            Format::Mxfp4 => Err(format!("{name} has {columns} inputs; the format takes multiples of {MX_BLOCK}")),
            _ => Err("its experts stand in one tensor, which the tool of this format leaves alone; bf16 and mxfp4 \
                can be had"
                .to_owned()),
        }
    }
}

/// The largest magnitude of a weight: a product of inputs of size 1 then has about this size too.
pub(super) fn largest(columns: usize) -> f32 {
    2.0 / (columns as f32).sqrt()
}

/// A matrix, or several, that is not quantized; its inputs are the next to last dimension of three.
pub(super) fn plain(name: &str, shape: &[usize], dtype: Dtype) -> Tensor {
    let spread = largest(shape[1]);
    Tensor {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        content: Content::Floats { center: 0.0, spread },
    }
}

/// A matrix on its way into its tensors.
struct Parts<'a> {
    module: &'a str,
    rows: usize,
    columns: usize,
    largest: f32,
}

impl Parts<'_> {
    fn tensor(&self, suffix: &str, dtype: Dtype, shape: &[usize], content: Content) -> Tensor {
        Tensor { name: format!("{}.{suffix}", self.module), dtype, shape: shape.to_vec(), content }
    }

    fn floats(&self, suffix: &str, values: &[f32]) -> Tensor {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(suffix, Dtype::F32, &[values.len()], Content::Literal(bytes))
    }

    /// Scales around one, for codes whose largest magnitude is `code`.
    fn scales(&self, code: f32) -> Content {
        let center = self.largest / code;
        Content::Floats { center, spread: center / 4.0 }
    }

    fn codes(&self, kind: &str, book: [f32; 16], nested: bool) -> Vec<Tensor> {
        let any = || Content::Bytes { keep: 0xff, plus: 0 };
        let blocks = (self.rows * self.columns).div_ceil(FOUR_BIT_BLOCK);
        let mut state = json!({
            "quant_type": kind, "blocksize": FOUR_BIT_BLOCK, "dtype": "bfloat16", "shape": [self.rows, self.columns],
        });
        let mut tensors = vec![
            self.tensor("weight", Dtype::U8, &[(self.rows * self.columns).div_ceil(2), 1], any()),
            self.floats("weight.quant_map", &book),
        ];
        if nested {
            state["nested_blocksize"] = json!(NESTED_BLOCK);
            state["nested_dtype"] = json!("float32");
            state["nested_offset"] = json!(f64::from(self.largest));
            tensors.push(self.tensor("weight.absmax", Dtype::U8, &[blocks], any()));
            tensors.push(self.floats("weight.nested_quant_map", &dynamic_map()));
            // A quarter of the offset: codes go from -1 to 1.
            let shape = &[blocks.div_ceil(NESTED_BLOCK)];
            tensors.push(self.tensor("weight.nested_absmax", Dtype::F32, shape, self.scales(4.0)));
        } else {
            tensors.push(self.tensor("weight.absmax", Dtype::F32, &[blocks], self.scales(1.0)));
        }
        let state = state.to_string().into_bytes();
        let name = format!("weight.quant_state.bitsandbytes__{kind}");
        tensors.push(self.tensor(&name, Dtype::U8, &[state.len()], Content::Literal(state)));
        tensors
    }

    fn int8(&self) -> Vec<Tensor> {
        vec![
            self.tensor("weight", Dtype::I8, &[self.rows, self.columns], Content::Signed),
            self.tensor("SCB", Dtype::F32, &[self.rows], self.scales(1.0)),
            self.tensor("weight_format", Dtype::U8, &[], Content::Literal(vec![0])),
        ]
    }

    fn gptq(&self, by_activation: bool) -> Vec<Tensor> {
        let (rows, columns, groups) = (self.rows, self.columns, self.columns / GROUP);
        // Groups of inputs in their order, or by turns: as many in each, and neighbours apart.
        let group = |input: usize| if by_activation { input % groups } else { input / GROUP };
        let indices = (0..columns).flat_map(|input| (group(input) as i32).to_le_bytes()).collect();
        vec![
            self.tensor("qweight", Dtype::I32, &[columns / 8, rows], Content::Bytes { keep: 0xff, plus: 0 }),
            // The zero point is 8, stored one too small.
            self.tensor("qzeros", Dtype::I32, &[groups, rows / 8], Content::Literal(vec![0x77])),
            self.tensor("scales", Dtype::F16, &[groups, rows], self.scales(8.0)),
            self.tensor("g_idx", Dtype::I32, &[columns], Content::Literal(indices)),
        ]
    }

    fn awq(&self) -> Vec<Tensor> {
        let (rows, columns, groups) = (self.rows, self.columns, self.columns / GROUP);
        vec![
            self.tensor("qweight", Dtype::I32, &[columns, rows / 8], Content::Bytes { keep: 0xff, plus: 0 }),
            // Zero points of 7 and 8.
            self.tensor("qzeros", Dtype::I32, &[groups, rows / 8], Content::Bytes { keep: 0x11, plus: 0x77 }),
            self.tensor("scales", Dtype::F16, &[groups, rows], self.scales(8.0)),
        ]
    }
}
