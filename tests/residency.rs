//! What people choose to stand on a card that does not hold a model: the processor's logits, within the bytes that were
//! given, whatever it is.
#![forbid(unsafe_code)]

use bantam_core::Cpu;
use bantam_cuda::OneOf;
use bantam_cusim::is_child;
use bantam_model::card::{Manner, Residency};
use bantam_model::engine::{Engine, Placed};
use bantam_model::plan::Options;
use bantam_tests::{check_close, model_folder, options, replies};

const PROMPTS: [&[u32]; 2] = [&[5, 9, 2, 7, 1, 3], &[8, 4, 6]];

fn load(model: &str) -> Engine {
    let options = Options { sequences: 2, chunk: 16, context: 64, logits_rows: 2, ..options() };
    bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2)
}

#[test]
fn every_residency_gives_the_processors_logits() {
    if !is_child("every_residency_gives_the_processors_logits", &[]) {
        return;
    }
    for model in ["gpt_neox", "llama-tied", "gemma2", "mixtral", "gpt_oss-mxfp4"] {
        let (wanted, tokens) = replies(&mut load(model), PROMPTS, 4);
        for (name, residency) in Residency::ALL {
            let (mut engine, what) = (load(model), format!("{model}, {name}"));
            engine.set_manner(residency.into());
            let whole = Placed::forecast(engine.plan(), usize::MAX).expect("it fits");
            let parts = whole.weight_bytes + whole.cache_bytes;
            let vram = whole.bytes - whole.kept_bytes - parts + parts * 7 / 10;
            let placed = engine.place(&OneOf(0), Some(vram as u64)).cloned().expect("some of it has room");
            assert!(placed.bytes <= vram && !placed.is_whole, "{what}: {placed:?} within {vram}");
            let stands = placed.attention[0] + placed.blocks[0];
            let is_as_said = match residency {
                Residency::Auto => stands > 0,
                Residency::Pinned => stands > 0 && placed.passes_from == Some(1),
                Residency::Lru => stands == 0 && placed.passes_from == Some(1),
            };
            assert!(is_as_said, "{what}: {placed:?}");
            let (logits, same) = replies(&mut engine, PROMPTS, 4);
            check_close(&what, &logits, &wanted);
            assert_eq!(same, tokens, "{what}");
            // What holds all of it has nothing to choose.
            let all = engine.place(&OneOf(0), None).cloned().expect("it has room");
            assert!(all.is_whole && all.ring_bytes == 0, "{what}: {all:?}");
        }
    }
}

/// A second card would hold layers for good: with nothing to stay there is one.
#[test]
fn where_nothing_stays_there_is_one_card() {
    const TEST: &str = "where_nothing_stays_there_is_one_card";
    if bantam_cusim::skips_card() || !is_child(TEST, &[("CUSIM_DEVICES", "2")]) {
        return;
    }
    let mut engine = load("gpt_neox");
    engine.set_manner(Manner::from(Residency::Lru));
    let whole = Placed::forecast(engine.plan(), usize::MAX).expect("it fits");
    let parts = whole.weight_bytes + whole.cache_bytes;
    let vram = (whole.bytes - whole.kept_bytes - parts + parts * 7 / 10) as u64;
    let placed = engine.place_on(&[(&OneOf(0), Some(vram)), (&OneOf(1), Some(vram))]).expect("one has room");
    assert_eq!((placed.each.len(), placed.passes_from), (1, Some(1)), "{placed:?}");
    assert_eq!(placed.without.len(), 1, "{placed:?}");
}
