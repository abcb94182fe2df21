//! Fuzzes `config.json`: an architecture comes of it and a plan for it, or an error.
#![no_main]

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::checkpoint::Dtype;
use bantam_model::engine::synthetic_plan;
use bantam_model::formats::on_load::way;
use bantam_model::plan::Options;
use bantam_model::spec::ModelSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(spec) = ModelSpec::parse(input) else {
        return;
    };
    let _ = spec.parameters();
    let options = Options {
        context: 100,
        sequences: 1,
        chunk: 16,
        logits_rows: 1,
        kv: KvKind::F16,
        precision: Precision::Fast,
        quantization: way("int8").filter(|_| input.len() % 2 == 0),
        head: None,
        cache_positions: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    };
    // The lists of a plan grow with layers and experts, as they should.
    let experts = spec.layers.first().and_then(|layer| layer.mlp.experts).map_or(1, |e| e.choice.experts);
    if spec.layers.len() * experts < 1000 {
        let _ = synthetic_plan(&spec, Dtype::Bf16, options, Cpu::PORTABLE);
    }
});
