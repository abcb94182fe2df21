//! Ternary checkpoints of the house: a model whose matrices were made ternary, in all forms that they can have,
//! computes as one that holds the same values in float32.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::layouts::Layout;
use bantam_core::layouts::coded::{TRITS_64, TRITS_128, TRITS_ROW};
use bantam_core::{Cpu, Precision};
use bantam_model::checkpoint::writer::write_safetensors;
use bantam_model::checkpoint::{Checkpoint, Dtype};
use bantam_model::engine::{Engine, StepError};
use bantam_model::formats::encode;
use bantam_model::formats::ternary::{COLUMNS, SCALES, TRITS, pack, settings};
use bantam_model::plan::Options;
use bantam_model::spec::ModelSpec;
use bantam_tests::{check_close, floats, ids, model_folder, options};
use half::f16;
use serde_json::Value;

/// How matrices are made ternary.
#[derive(Clone, Copy)]
struct Form {
    planes: usize,
    group: Option<usize>,
    factors: bool,
}

/// A folder that is gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("bantam-ternary-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn write(folder: &Path, tensors: &[Tensor]) -> Checkpoint {
    let tensors: Vec<_> = tensors.iter().map(|(n, d, s, b)| (n.as_str(), *d, &s[..], &b[..])).collect();
    write_safetensors(&folder.join("model.safetensors"), &tensors, &[]).unwrap();
    Checkpoint::open(folder).unwrap()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The tensors of matrices of `columns` columns, row after row, and their values.
fn ternary(form: Form, columns: usize, values: &[f32], factors: &[f32]) -> ([Vec<u8>; 2], Vec<f32>) {
    let group = form.group.unwrap_or(columns);
    let (mut trits, mut scales, mut decoded) = (Vec::new(), Vec::new(), Vec::new());
    for row in values.chunks(columns) {
        let mut rest: Vec<f32> = row.iter().zip(factors).map(|(value, factor)| value / factor).collect();
        let mut sums = vec![0.0f32; columns];
        for _ in 0..form.planes {
            let mut codes = vec![0; columns];
            for (at, codes) in codes.chunks_mut(group).enumerate() {
                let range = at * group..at * group + codes.len();
                let scale = f16::from_f32(encode::ternary(&rest[range.clone()], codes).scale);
                scales.extend(scale.to_le_bytes());
                for (column, code) in range.zip(codes) {
                    let value = (f32::from(*code) - 1.0) * scale.to_f32();
                    sums[column] += value;
                    rest[column] -= value;
                }
            }
            pack(&codes.iter().map(|code| code.cast_signed() - 1).collect::<Vec<_>>(), &mut trits);
        }
        decoded.extend(sums.iter().zip(factors).map(|(sum, factor)| sum * factor));
    }
    ([trits, scales], decoded)
}

/// Rows and columns of stacked experts in the other order.
fn turned(matrices: usize, [rows, columns]: [usize; 2], values: &[f32]) -> Vec<f32> {
    let at = |i: usize| {
        let (matrix, row, column) = (i / (rows * columns), i / rows % columns, i % rows);
        values[matrix * rows * columns + row + column * columns]
    };
    assert_eq!(values.len(), matrices * rows * columns);
    (0..values.len()).map(at).collect()
}

/// The matrices of a model's layers as ternary tensors, and as values.
fn made(checkpoint: &Checkpoint, form: Form) -> [Vec<Tensor>; 2] {
    let [mut house, mut plain] = [Vec::new(), Vec::new()];
    for tensor in checkpoint.tensors() {
        let name = tensor.name.to_owned();
        let (module, stacked) = match (name.strip_suffix(".weight"), name.ends_with("proj")) {
            (Some(module), _) if module.ends_with("proj") => (module.to_owned(), false),
            (_, true) => (name.clone(), true),
            _ => {
                let kept = (name, tensor.dtype, tensor.shape.to_vec(), tensor.data.to_vec());
                house.push(kept.clone());
                plain.push(kept);
                continue;
            }
        };
        let mut values = floats(checkpoint, &name);
        let (outer, shape) = tensor.shape.split_at(tensor.shape.len() - 2);
        let matrices = outer.iter().product();
        // Experts stand with their inputs as rows.
        let [rows, columns] = if stacked { [shape[1], shape[0]] } else { [shape[0], shape[1]] };
        if stacked {
            values = turned(matrices, [columns, rows], &values);
        }
        let factor = |at: usize| if form.factors { 0.75 + (at % 5) as f32 / 8.0 } else { 1.0 };
        let factors: Vec<f32> = (0..matrices * columns).map(factor).collect();
        let parts = values.chunks(rows * columns).zip(factors.chunks(columns));
        let parts = parts.map(|(values, factors)| ternary(form, columns, values, factors));
        let (parts, decoded): (Vec<_>, Vec<_>) = parts.unzip();
        let [trits, scales] = [0, 1].map(|at| parts.iter().flat_map(|part| part[at].clone()).collect());
        let shape = |of_matrix: &[usize]| [outer, of_matrix].concat();
        let groups = form.group.map_or(1, |group| columns.div_ceil(group));
        let sizes = [form.planes, columns / 64 * 13];
        house.push((format!("{module}{TRITS}"), Dtype::U8, shape(&[rows, sizes[0], sizes[1]]), trits));
        house.push((format!("{module}{SCALES}"), Dtype::F16, shape(&[rows, form.planes, groups]), scales));
        if form.factors {
            house.push((format!("{module}{COLUMNS}"), Dtype::F32, shape(&[columns]), bytes(&factors)));
        }
        let mut decoded = decoded.concat();
        if stacked {
            decoded = turned(matrices, [rows, columns], &decoded);
        }
        plain.push((name, Dtype::F32, tensor.shape.to_vec(), bytes(&decoded)));
    }
    [house, plain]
}

fn logits(spec: ModelSpec, checkpoint: &Checkpoint, options: Options, tokens: &[u32]) -> Vec<f32> {
    let mut engine = Engine::load(spec, checkpoint, options, Cpu::detect(), 2).unwrap();
    let sequence = engine.open().unwrap();
    engine.prefill::<StepError>(sequence, tokens, |_, _, _| Ok(())).unwrap();
    let rows: Vec<usize> = (tokens.len() - 8..tokens.len()).collect();
    engine.logits(&rows).to_vec()
}

fn check(model: &str, form: Form) {
    let Form { planes, group, factors } = form;
    let what = format!("{model}, {planes} planes, groups of {group:?}, factors: {factors}");
    let source = model_folder(model);
    let checkpoint = Checkpoint::open(&source).unwrap();
    let [house, plain] = made(&checkpoint, form);
    assert!(house.len() > plain.len(), "{what}: something became ternary");
    let mut config: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    let spec = ModelSpec::parse(config.to_string().as_bytes()).unwrap();
    config["quantization_config"] = settings(group, &["lm_head".to_owned()]);
    let quantized = ModelSpec::parse(config.to_string().as_bytes()).unwrap();
    let golden = Checkpoint::open(&source.join("golden.safetensors")).unwrap();
    let tokens = ids(&golden, "prompt1.input_ids");
    let folders = ["house", "plain"].map(|kind| Folder::new(&format!("{kind}-{}", what.replace(' ', "_"))));
    let (house, plain) = (write(&folders[0].0, &house), write(&folders[1].0, &plain));
    let wanted = logits(spec, &plain, options(), &tokens);
    check_close(&what, &logits(quantized.clone(), &house, options(), &tokens), &wanted);
    // Activations of eight bits are near.
    let fast = logits(quantized, &house, Options { precision: Precision::Fast, ..options() }, &tokens);
    let errors: f32 = fast.iter().zip(&wanted).map(|(a, b)| (a - b) * (a - b)).sum();
    let relative = (errors / wanted.iter().map(|x| x * x).sum::<f32>()).sqrt();
    assert!(relative < 0.15, "{what}: {relative}");
}

#[test]
fn ternary_models_compute_as_their_values_do() {
    for (planes, group, factors) in
        [(1, Some(64), false), (1, None, true), (2, Some(64), true), (2, Some(128), false), (2, None, false)]
    {
        check("llama-untied", Form { planes, group, factors });
    }
}

#[test]
fn ternary_experts_compute_as_their_values_do() {
    check("gpt_oss-bf16", Form { planes: 1, group: Some(64), factors: false });
    check("gpt_oss-bf16", Form { planes: 2, group: Some(64), factors: true });
    check("mixtral", Form { planes: 2, group: Some(128), factors: false });
}

/// 13 bytes for 64 weights, and what scales take: nothing is kept beside them but a word per row.
#[test]
fn bytes_of_a_tile_are_those_of_its_trits() {
    for (layout, scales) in [(&TRITS_64, 12 * 8), (&TRITS_128, 12 * 4), (&TRITS_ROW, 0)] {
        // 45 blocks in 12 units: the last one has one, and room for the scales of four.
        let words = 45 * 12 + 12 * 4;
        assert_eq!(layout.tile_bytes(2880), 32 * (words + scales + 4), "{}", layout.name());
    }
}
