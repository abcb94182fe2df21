//! Blocks on their own: one after another they compute what the whole model computes, and what the tap sees and what
//! stands in a block are the module's.

use bantam_core::layouts::coded::{Coding, TRITS};
use bantam_core::{Cpu, NormKind};
use bantam_model::block::{Block, Replaced, Seen, Streams, Tap};
use bantam_model::source::Source;
use bantam_model::spec::NormSpec;
use bantam_tests::{MODELS, Noise, check_close, floats, load, model_folder, options, trained};

const LENGTH: usize = 24;

fn normed(source: &Source, spec: &NormSpec, values: &mut [f32]) {
    let names = source.spec.names;
    let read = |kind: &str| floats(&source.checkpoint, &format!("{}.{kind}", names.final_norm));
    let weight = read(names.norm_weight);
    let bias = if spec.bias { read("bias") } else { vec![0.0; weight.len()] };
    for row in values.chunks_exact_mut(weight.len()) {
        let mean = |row: &[f32]| row.iter().map(|&x| f64::from(x)).sum::<f64>() / row.len() as f64;
        let middle = if spec.kind == NormKind::Layer { mean(row) as f32 } else { 0.0 };
        row.iter_mut().for_each(|x| *x -= middle);
        let squares: Vec<f32> = row.iter().map(|x| x * x).collect();
        let by = 1.0 / (mean(&squares) + f64::from(spec.epsilon)).sqrt() as f32;
        for ((x, weight), bias) in row.iter_mut().zip(&weight).zip(&bias) {
            *x = *x * by * (weight + spec.weight_shift) + bias;
        }
    }
}

#[test]
fn blocks_one_after_another_are_the_model() {
    for &model in MODELS {
        let folder = model_folder(model);
        let source = Source::open(&folder).expect("the golden opens");
        let tokens = Noise::new(7).tokens(3 * LENGTH, source.spec.vocab);
        let mut streams = Streams::embed(&source, &tokens, LENGTH).expect("the golden has an embedding");
        for layer in 0..source.spec.layers.len() {
            let mut block =
                Block::load(&source, layer, LENGTH, Cpu::detect(), 2, None).expect("the block loads");
            let (_, plan) =
                Block::plan(&source, layer, LENGTH, Cpu::detect(), None).expect("the block has a plan");
            assert_eq!(block.bytes(), plan.bytes(), "{model}");
            block.run(&mut streams, &mut ());
        }
        normed(&source, &source.spec.final_norm, &mut streams.values);
        let mut engine = load(&folder, options(), Cpu::detect(), 2);
        for (tokens, found) in tokens.chunks(LENGTH).zip(streams.values.chunks(LENGTH * streams.width)) {
            let sequence = engine.open().expect("one is free");
            engine
                .prefill::<bantam_model::engine::StepError>(sequence, tokens, |_, _, _| Ok(()))
                .expect("it fits");
            let rows: Vec<usize> = (0..LENGTH).collect();
            check_close(model, found, engine.hidden(&rows));
            engine.close(sequence);
        }
    }
}

/// Multiplies what it sees with a module's weights.
struct Rows {
    module: usize,
    rows: Vec<f32>,
    seen: usize,
}

impl Tap for Rows {
    fn wants(&self, module: usize) -> bool {
        module == self.module
    }

    fn see(&mut self, seen: &Seen) {
        assert_eq!(seen.modules, [self.module]);
        self.rows.extend_from_slice(seen.rows);
        self.seen += seen.rows.len() / seen.columns;
    }
}

#[test]
fn a_tap_sees_every_row_once_and_weights_come_back_as_they_were_put() {
    for &model in MODELS {
        let source = Source::open(&model_folder(model)).expect("the golden opens");
        let tokens = Noise::new(8).tokens(2 * LENGTH, source.spec.vocab);
        let start = Streams::embed(&source, &tokens, LENGTH).expect("the golden has an embedding");
        let mut block = Block::load(&source, 0, LENGTH, Cpu::detect(), 1, None).expect("the block loads");
        let mut plain = start.clone();
        block.run(&mut plain, &mut ());
        let choice = source.spec.layers[0].mlp.experts.map(|experts| experts.choice);
        let mut by_experts = 0;
        for module in 0..block.modules().len() {
            let mut tap = Rows { module, rows: Vec::new(), seen: 0 };
            let mut streams = start.clone();
            block.run(&mut streams, &mut tap);
            assert_eq!(streams, plain, "{model}: looking changes nothing");
            assert!(tap.rows.iter().all(|value| value.is_finite()));
            let mut looked = Rows { module, rows: Vec::new(), seen: 0 };
            block.look(&start, &mut looked);
            assert!(looked.rows == tap.rows, "{model}: what is left out is not needed");
            match block.modules()[module].is_expert {
                true => by_experts += tap.seen,
                false => assert_eq!(tap.seen, tokens.len(), "{model}: {}", block.modules()[module].name),
            }
            let weights = block.weights(module);
            let zeros = vec![0.0; weights.len()];
            block.set_weights(module, &zeros).expect("zeros are finite");
            assert_eq!(block.weights(module), zeros);
            block.set_weights(module, &weights).expect("they were finite");
            assert_eq!(block.weights(module), weights);
        }
        let projections =
            if source.spec.names.gate.is_some_and(|gate| gate.module != source.spec.names.up.module) {
                3
            } else {
                2
            };
        assert_eq!(
            by_experts,
            choice.map_or(0, |choice| projections * choice.chosen * tokens.len()),
            "{model}"
        );
        let mut streams = start.clone();
        block.run(&mut streams, &mut ());
        assert_eq!(streams, plain, "{model}: everything is where it was");
    }
}

#[test]
fn a_trained_models_blocks_have_their_names() {
    let source = Source::open(&trained()).expect("the trained model opens");
    let block = Block::load(&source, 1, LENGTH, Cpu::detect(), 1, None).expect("the block loads");
    let names: Vec<&str> = block.modules().iter().map(|module| module.name.as_str()).collect();
    assert!(names.contains(&"model.layers.1.self_attn.q_proj"), "{names:?}");
}

/// Trits with a scale per row, of whatever weights.
fn trits(columns: usize, row: &[f32]) -> (Vec<u8>, f32) {
    let scale = row.iter().map(|value| value.abs()).sum::<f32>() / columns as f32;
    let code = |value: &f32| 1 + u8::from(*value > scale) - u8::from(*value < -scale);
    (row.iter().map(code).collect(), scale)
}

#[test]
fn experts_that_are_replaced_compute_as_those_that_are_float32() {
    for (model, times) in [("gpt_oss-mxfp4", 1), ("gpt_oss-bf16", 2), ("mixtral", 1), ("llama-tied", 1)] {
        let source = Source::open(&model_folder(model)).expect("the golden opens");
        let tokens = Noise::new(9).tokens(2 * LENGTH, source.spec.vocab);
        let mut streams = Streams::embed(&source, &tokens, LENGTH).expect("the golden has an embedding");
        let replaced = Replaced { coding: Coding { book: &TRITS, bits: 2, run: 64 }, times };
        let load =
            |replaced| Block::load(&source, 0, LENGTH, Cpu::detect(), 2, replaced).expect("the block loads");
        let (mut plain, mut lean) = (load(None), load(Some(replaced)));
        let compare = |plain: &mut Block, lean: &mut Block, streams: &Streams| {
            let mut both = [streams.clone(), streams.clone()];
            plain.run(&mut both[0], &mut ());
            lean.run(&mut both[1], &mut ());
            check_close(model, &both[1].values, &both[0].values);
        };
        compare(&mut plain, &mut lean, &streams);
        let has_experts = source.spec.layers[0].mlp.experts.is_some();
        assert_eq!(has_experts, (0..lean.modules().len()).any(|module| lean.takes_codes(module)), "{model}");
        for module in (0..lean.modules().len()).filter(|&module| lean.takes_codes(module)).collect::<Vec<_>>()
        {
            let columns = lean.modules()[module].shape.columns;
            let weights = lean.weights(module);
            assert_eq!(weights, plain.weights(module), "{model}: as it is stored");
            let rows: Vec<_> = weights.chunks(columns).map(|row| trits(columns, row)).collect();
            let put = lean.set_codes(module, &|row, out| {
                let (codes, scale) = &rows[row];
                out.codes.fill(1);
                out.codes[..columns].copy_from_slice(codes);
                out.scales.fill(0.0);
                out.scales[..columns / out.block].fill(*scale);
                out.zeros.fill(1.0);
            });
            put.expect("scales are finite");
            let value = |(codes, scale): &(Vec<u8>, f32)| -> Vec<f32> {
                codes.iter().map(|code| (f32::from(*code) - 1.0) * scale).collect()
            };
            let values: Vec<f32> = rows.iter().flat_map(value).collect();
            plain.set_weights(module, &values).expect("scales are finite");
        }
        compare(&mut plain, &mut lean, &streams);
        // The tap still finds the experts where they are now.
        let module = (0..lean.modules().len()).rev().find(|&module| lean.modules()[module].is_expert);
        if let Some(module) = module {
            let mut taps = [(); 2].map(|()| Rows { module, rows: Vec::new(), seen: 0 });
            plain.look(&streams, &mut taps[0]);
            lean.run(&mut streams, &mut taps[1]);
            check_close(model, &taps[1].rows, &taps[0].rows);
        }
    }
}
