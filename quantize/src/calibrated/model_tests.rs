//! Methods over the small trained model that the program carries: the same on any threads, resumed from any layer, and
//! nearer to the original than what knows no inputs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use bantam_core::Cpu;
use bantam_model::block::{Block, Streams};
use bantam_model::source::Source;

use super::sample::{self, Written};
use super::{Calibrated, Method, Planes, Settings, awq, gptq, ternary};
use crate::layerwise::{Hand, Layerwise, Listed, MethodError, Scales};
use crate::matrix::Quantized;

const LENGTH: usize = 48;

fn trained() -> Source {
    Source::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/real/llama")).unwrap()
}

fn written(source: &Source, seed: u64, threads: usize) -> Vec<u32> {
    let written = Written { sequences: 24, length: LENGTH, seed, threads };
    sample::write(source, &written, Cpu::detect()).unwrap()
}

fn settings(method: Method, correct: bool, threads: usize) -> Settings {
    Settings { method, length: LENGTH, squares_bytes: 1 << 20, correct, threads }
}

/// Keeps what it is handed.
#[derive(Debug, Default, PartialEq)]
struct Kept {
    matrices: BTreeMap<String, Quantized>,
    vectors: BTreeMap<String, Vec<f32>>,
    stages: Vec<f64>,
    scales: BTreeMap<String, Scales>,
}

impl Hand for Kept {
    fn quantized(
        &mut self,
        name: &str,
        matrix: Quantized,
        scales: &Scales,
        stages: &[(&'static str, f64)],
    ) -> Result<(), MethodError> {
        assert!(self.matrices.insert(name.to_owned(), matrix).is_none(), "{name} is handed over once");
        self.scales.insert(name.to_owned(), scales.clone());
        self.stages.extend(stages.iter().map(|stage| stage.1));
        Ok(())
    }

    fn changed(&mut self, tensor: &str, values: &[f32]) -> Result<(), MethodError> {
        self.vectors.insert(tensor.to_owned(), values.to_vec());
        Ok(())
    }
}

fn listed(source: &Source, layer: usize) -> Vec<Listed> {
    let block = Block::load(source, layer, LENGTH, Cpu::detect(), 1, None).unwrap();
    let list = |name: &String| Listed { name: name.clone(), origin: name.clone(), expert: None };
    block.modules().iter().map(|module| list(&module.name)).collect()
}

fn quantized(source: &Source, settings: Settings, layers: usize) -> Kept {
    let tokens = written(source, 1, 2);
    let mut kept = Kept::default();
    let mut calibrated = Calibrated::new(source, settings, &tokens, Cpu::detect()).unwrap();
    for layer in 0..layers {
        calibrated.layer(layer, &listed(source, layer), &mut kept).unwrap();
    }
    kept
}

/// How far the streams behind some layers are from the original's, on other text.
fn distance(source: &Source, kept: &Kept, layers: usize) -> f64 {
    distance_on(1000, source, kept, layers)
}

fn distance_on(seed: u64, source: &Source, kept: &Kept, layers: usize) -> f64 {
    let tokens = written(source, seed, 2);
    let mut original = Streams::embed(source, &tokens, LENGTH).unwrap();
    let mut streams = original.clone();
    for layer in 0..layers {
        let mut block = Block::load(source, layer, LENGTH, Cpu::detect(), 2, None).unwrap();
        block.run(&mut original, &mut ());
        for (tensor, values) in &kept.vectors {
            if let Some(vector) = block.vector_mut(tensor) {
                vector.copy_from_slice(values);
            }
        }
        for module in 0..block.modules().len() {
            let matrix = &kept.matrices[&block.modules()[module].name];
            block.set_weights(module, &matrix.values()).unwrap();
        }
        block.run(&mut streams, &mut ());
    }
    let square = |value: f32| f64::from(value) * f64::from(value);
    let apart = original.values.iter().zip(&streams.values).map(|(a, b)| square(a - b)).sum::<f64>();
    apart / original.values.iter().map(|&value| square(value)).sum::<f64>()
}

fn in_trits(planes: Planes) -> Method {
    Method::Ternary(ternary::Settings { group: Some(128), ..ternary::Settings::default() }, planes)
}

#[test]
fn a_model_writes_the_same_on_any_threads() {
    let source = trained();
    let tokens = written(&source, 5, 1);
    assert_eq!(tokens.len(), 24 * LENGTH);
    assert_eq!(tokens, written(&source, 5, 3));
    assert_ne!(tokens, written(&source, 50, 3));
}

#[test]
fn corrected_ternary_is_nearer_than_ternary_alone_and_threads_change_nothing() {
    let source = trained();
    let [corrected, alone] =
        [true, false].map(|correct| quantized(&source, settings(in_trits(Planes::All(1)), correct, 2), 2));
    // On the text that it is calibrated with: there is too little of it here to say more.
    let distances = [&corrected, &alone].map(|kept| distance_on(1, &source, kept, 2));
    assert!(distances[0] < distances[1], "{distances:?}");
    let single = quantized(&source, settings(in_trits(Planes::All(1)), true, 1), 1);
    for (name, matrix) in &single.matrices {
        assert_eq!(matrix, &corrected.matrices[name], "{name}");
    }
}

#[test]
fn a_budget_of_bits_is_kept_and_brings_the_result_nearer() {
    let source = trained();
    let budget = settings(in_trits(Planes::Bits(2.6)), true, 2);
    let made = Calibrated::new(&source, budget.clone(), &written(&source, 1, 2), Cpu::detect()).unwrap();
    let (mut bits, mut weights) = (0.0, 0.0);
    for layer in 0..source.spec.layers.len() {
        let block = Block::load(&source, layer, LENGTH, Cpu::detect(), 1, None).unwrap();
        for module in block.modules() {
            let planes = made.planes.get(&module.name).copied().unwrap_or(1);
            let count = (module.shape.rows * module.shape.columns) as f64;
            weights += count;
            bits += count * planes as f64 * (1.625 + 16.0 / 128.0);
        }
    }
    assert!((2.5..=2.6).contains(&(bits / weights)), "{}", bits / weights);
    let [few, many] = [in_trits(Planes::All(1)), in_trits(Planes::All(2))]
        .map(|method| distance(&source, &quantized(&source, settings(method, true, 2), 1), 1));
    let some = distance(&source, &quantized(&source, budget, 1), 1);
    assert!(many < some && some <= few, "{many}, {some}, {few}");
    let few = Calibrated::new(
        &source,
        settings(in_trits(Planes::Bits(1.5)), true, 1),
        &written(&source, 1, 1),
        Cpu::detect(),
    );
    let message = few.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("1.750 bits for one plane, found 1.5"), "{message}");
}

#[test]
fn what_was_saved_goes_on_where_it_was() {
    let source = trained();
    let tokens = written(&source, 1, 2);
    let new = || {
        Calibrated::new(&source, settings(in_trits(Planes::All(1)), true, 2), &tokens, Cpu::detect()).unwrap()
    };
    let (mut first, mut saved) = (new(), Vec::<u8>::new());
    first.layer(0, &listed(&source, 0), &mut Kept::default()).unwrap();
    first.save(&mut saved).unwrap();
    let (mut wanted, mut found) = (Kept::default(), Kept::default());
    first.layer(1, &listed(&source, 1), &mut wanted).unwrap();
    let mut second = new();
    second.restore(1, &mut saved.as_slice()).unwrap();
    second.layer(1, &listed(&source, 1), &mut found).unwrap();
    assert!(wanted == found, "a resumed run is the same");
}

#[test]
fn gptq_and_awq_stay_near_and_awq_changes_norms() {
    let source = trained();
    let gptq = gptq::Settings { group: Some(128), symmetric: false, ..gptq::Settings::default() };
    let kept = quantized(&source, settings(Method::Gptq(gptq), false, 2), 1);
    assert!(kept.vectors.is_empty());
    assert!(kept.stages.iter().all(|loss| *loss < 0.02), "{:?}", kept.stages);
    let fed = distance(&source, &kept, 1);
    assert!(fed < 0.02, "{fed}");
    let kept = quantized(&source, settings(Method::Awq(awq::Settings::default()), false, 2), 1);
    assert_eq!(kept.vectors.len(), 2, "{:?}", kept.vectors.keys());
    let scaled = distance(&source, &kept, 1);
    assert!(scaled < 0.02, "{scaled}");
    // Without the scales, the weights are the original's but for rounding.
    let block = Block::load(&source, 0, LENGTH, Cpu::detect(), 1, None).unwrap();
    for (at, module) in block.modules().iter().enumerate() {
        let (mut made, wanted) = (kept.matrices[&module.name].values(), block.weights(at));
        let rows = made.chunks_exact_mut(module.shape.columns).enumerate();
        rows.for_each(|(row, values)| kept.scales[&module.name].fold_back(row, values));
        let error: f32 = wanted.iter().zip(&made).map(|(a, b)| (a - b).powi(2)).sum();
        let error = error / wanted.iter().map(|a| a * a).sum::<f32>();
        assert!(error < 0.05, "{}: {error}", module.name);
    }
    assert!(kept.scales.values().any(|scales| scales.columns.is_some() && scales.rows.is_some()));
}

#[test]
fn scaled_inputs_and_columns_stay_near_and_means_go_into_biases() {
    let source = trained();
    let with = |change: fn(&mut ternary::Settings)| {
        let mut of = ternary::Settings { group: Some(128), ..ternary::Settings::default() };
        change(&mut of);
        settings(Method::Ternary(of, Planes::All(1)), false, 2)
    };
    let plain = quantized(&source, with(|_| ()), 1);
    let near = distance(&source, &plain, 1);
    let equalised = quantized(&source, with(|of| of.equalise = true), 1);
    assert!(equalised.vectors.keys().all(|name| name.contains("norm")), "{:?}", equalised.vectors.keys());
    let scaled = equalised.scales.values().filter(|scales| scales.columns.is_some()).count();
    assert_eq!(scaled > 0, !equalised.vectors.is_empty());
    let found = distance(&source, &equalised, 1);
    assert!(found < 1.1 * near, "{found}, {near}");
    let fitted = quantized(&source, with(|of| (of.group, of.columns) = (None, true)), 1);
    let found = distance(&source, &fitted, 1);
    assert!(found < 1.3 * near, "{found}, {near}");

    let biased = Source::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/models/qwen2"));
    let biased = biased.unwrap();
    let kept = quantized(&biased, with(|of| of.mean_removal = true), 1);
    let names: Vec<&String> = kept.vectors.keys().collect();
    assert!(names.len() == 3 && names.iter().all(|name| name.ends_with("proj.bias")), "{names:?}");
    let plain = quantized(&biased, with(|_| ()), 1);
    let [found, near] = [&kept, &plain].map(|kept| distance(&biased, kept, 1));
    assert!(found < 1.1 * near, "{found} without means, {near} with them");
}

#[test]
fn too_little_text_is_refused() {
    let source = trained();
    let made =
        Calibrated::new(&source, settings(in_trits(Planes::All(1)), true, 1), &[1, 2, 3], Cpu::detect());
    let message = made.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("expected calibration text of at least 48 tokens, found 3"), "{message}");
    let made =
        Calibrated::new(&source, settings(in_trits(Planes::All(1)), true, 1), &[1; LENGTH], Cpu::detect());
    let stray = [Listed { name: "model.layers.0.zebra".into(), origin: String::new(), expert: None }];
    let message = made.unwrap().layer(0, &stray, &mut Kept::default()).unwrap_err().to_string();
    assert!(message.contains("zebra"), "{message}");
}
