//! Steps that a card keeps take memory of it. It is set aside beforehand, measured, and never more than that: where the
//! driver takes more or refuses some, fewer steps are kept, and the others are computed as they would be.

use bantam_core::Cpu;
use bantam_cuda::{Card, OneOf};
use bantam_cusim::{child, is_child, skips_card};
use bantam_model::engine::{Engine, Placed};
use bantam_model::plan::Options;
use bantam_tests::{MODELS, model_folder, options, replies};

const PROMPTS: [&[u32]; 2] = [&[5, 9, 2, 7, 1, 3], &[8, 4, 6]];
/// What is set aside for a call of a kernel.
const SET_ASIDE: usize = 64 << 10;
/// What the stand-in takes for one unless a test says otherwise.
const TAKEN: usize = 1 << 10;

fn load(model: &str, sequences: usize) -> Engine {
    let options = Options { sequences, chunk: 16, context: 64, logits_rows: sequences, ..options() };
    bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2)
}

/// What a card would have of a model with all the memory there is.
fn forecast(engine: &Engine) -> Placed {
    let whole = Placed::forecast(engine.plan(), usize::MAX).expect("it fits");
    assert!(whole.is_whole && whole.kept_bytes > 0, "{whole:?}");
    whole
}

/// Bytes of the card that are free.
fn free() -> usize {
    Card::open(0).expect("the driver that this test was started with").memory().expect("it tells").0
}

/// Places a model within so many bytes; of them no more are gone than it says.
fn place(engine: &mut Engine, vram: usize) -> Placed {
    engine.leave_card();
    let before = free();
    let placed = engine.place(&OneOf(0), Some(vram as u64)).cloned().expect("it has room");
    assert!(placed.is_whole && placed.bytes <= vram, "{placed:?} within {vram}");
    assert_eq!((placed.each[0].bytes, before - free()), (placed.bytes, placed.bytes), "{placed:?}");
    placed
}

/// The amount follows from the plan alone, for every family: no step has more calls, and none so few that it would be
/// said twice over.
#[test]
fn what_is_set_aside_holds_every_call() {
    if skips_card() || !is_child("what_is_set_aside_holds_every_call", &[]) {
        return;
    }
    let before = free();
    for model in MODELS {
        let mut engine = load(model, 3);
        let whole = forecast(&engine);
        let placed = place(&mut engine, whole.bytes);
        let [most, calls] = [whole.kept_bytes / SET_ASIDE, placed.kept_bytes / TAKEN];
        println!("{model}: {calls} calls in steps of up to {} rows, {most} at most", placed.kept_rows);
        assert_eq!((placed.kept_rows, placed.not_kept), (3, None), "{model}");
        assert!(calls <= most && most <= 2 * calls, "{model}: {calls} calls, {most} at most");
        assert_eq!(whole.bytes - whole.kept_bytes, placed.bytes - placed.kept_bytes, "{model}");
        drop(engine);
        assert_eq!(free(), before, "{model}: all is given back");
    }
}

/// A driver that takes three times as much, and a budget that leaves little or nothing beside the model.
#[test]
fn fewer_steps_are_kept_where_they_take_more_than_there_is() {
    const TEST: &str = "fewer_steps_are_kept_where_they_take_more_than_there_is";
    if skips_card() || !is_child(TEST, &[("CUSIM_CALL_BYTES", "196608")]) {
        return;
    }
    let before = free();
    let mut engine = load("gpt_neox", 8);
    let (wanted, tokens) = replies(&mut engine, PROMPTS, 3);
    let whole = forecast(&engine);
    let bare = whole.bytes - whole.kept_bytes;
    let mut rows = Vec::new();
    for (part, code) in [
        (1.0, "it takes more of the card than was set aside"),
        (0.6, "it takes more of the card than was set aside"),
        (0.01, "it takes more of the card than was set aside"),
        (0.0, "no bytes of the card are left for it"),
    ] {
        let placed = place(&mut engine, bare + (part * whole.kept_bytes as f64) as usize);
        println!("{part} of what is set aside: steps of up to {} rows", placed.kept_rows);
        assert!(placed.kept_bytes <= (part * whole.kept_bytes as f64) as usize, "{placed:?}");
        assert_eq!(placed.not_kept.expect("it says so").code, code);
        rows.push(placed.kept_rows);
        let (logits, same) = replies(&mut engine, PROMPTS, 3);
        bantam_tests::check_close("with fewer", &logits, &wanted);
        assert_eq!(same, tokens);
    }
    assert!(8 > rows[0] && rows[0] > rows[1] && rows[1] > rows[2] && rows[2..] == [0, 0], "{rows:?}");
    drop(engine);
    assert_eq!(free(), before, "all is given back");
}

/// Whichever allocation the driver refuses while graphs are made, those before it are kept.
#[test]
fn graphs_that_are_refused_are_done_without() {
    const TEST: &str = "graphs_that_are_refused_are_done_without";
    if skips_card() {
        return;
    }
    let Ok(case) = std::env::var("CUSIM_REFUSED") else {
        // Six are all else's; then layers and logits of one row, two and three.
        for n in 7..=13 {
            let done = child(TEST, &[("CUSIM_REFUSED", &n.to_string())]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{n}: {done:?}");
        }
        return;
    };
    let refused: usize = case.parse().expect("a number");
    let before = free();
    let mut engine = load("gpt_neox", 3);
    let (wanted, tokens) = replies(&mut engine, PROMPTS, 3);
    let whole = forecast(&engine);
    let placed = place(&mut engine, whole.bytes);
    assert_eq!(placed.kept_rows, (refused - 7) / 2);
    let code = placed.not_kept.map(|fault| fault.code);
    assert_eq!(code, (refused < 13).then_some("CUDA_ERROR_OUT_OF_MEMORY"));
    let (logits, same) = replies(&mut engine, PROMPTS, 3);
    bantam_tests::check_close("without some", &logits, &wanted);
    assert_eq!(same, tokens);
    drop(engine);
    assert_eq!(free(), before, "all is given back");
}
