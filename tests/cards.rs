//! A model on several cards: whole layers on each, in any division, with and without straight copies between them, and
//! what happens when one of them fails. The cards are stand-ins (`tests/cusim`); one card alone stands in `cuda.rs`.

use std::fs;
use std::path::Path;

use bantam_core::{Cpu, KvKind, Precision};
use bantam_cuda::{Card, OneOf};
use bantam_cusim::{child, is_child, skips_card};
use bantam_model::card::{Cards, Manner, NoCard, Passage};
use bantam_model::checkpoint::Dtype;
use bantam_model::engine::{Chunk, Engine, Placed, StepError, synthetic_plan};
use bantam_model::families::SHAPES;
use bantam_model::formats::on_load::way;
use bantam_model::plan::Options;
use bantam_model::spec::ModelSpec;
use bantam_tests::{MODELS, check_close, model_folder, options, replies_meanwhile};

const PROMPTS: [&[u32]; 2] = [&[5, 9, 2, 7, 1, 3], &[8, 4, 6]];

fn for_two() -> Options {
    Options { sequences: 2, chunk: 16, context: 64, logits_rows: 2, ..options() }
}

fn load(model: &str) -> Engine {
    bantam_tests::load(&model_folder(model), for_two(), Cpu::detect(), 2)
}

/// See [`bantam_tests::replies_meanwhile`].
fn replies(engine: &mut Engine, count: usize) -> (Vec<f32>, Vec<u32>) {
    bantam_tests::replies(engine, PROMPTS, count)
}

/// So many bytes of each of the first cards.
fn place<'a>(engine: &'a mut Engine, vram: &[usize]) -> Result<&'a Placed, NoCard> {
    let cards: Vec<OneOf> = (0..vram.len()).map(OneOf).collect();
    let asked: Vec<(&dyn Cards, Option<u64>)> =
        cards.iter().zip(vram).map(|(card, &bytes)| (card as &dyn Cards, Some(bytes as u64))).collect();
    engine.place_on(&asked)
}

/// Bytes that hold so large a part of a model, and all that a card needs beside it.
fn vram(engine: &Engine, part: f64) -> usize {
    let whole = Placed::forecast(engine.plan(), usize::MAX).expect("it fits");
    let divided = whole.weight_bytes + whole.cache_bytes;
    whole.bytes - divided - whole.kept_bytes + (part * divided as f64) as usize
}

fn free(card: usize) -> usize {
    Card::open(card).expect("the driver that this test was started with").memory().expect("it tells").0
}

/// In every division the processor's results up to rounding, and no byte more than was granted.
#[test]
fn a_model_stands_on_two_cards_in_any_part() {
    const TEST: &str = "a_model_stands_on_two_cards_in_any_part";
    if skips_card() || !is_child(TEST, &[("CUSIM_DEVICES", "2")]) {
        return;
    }
    let mut is_whole = 0;
    for model in MODELS {
        let (wanted, tokens) = replies(&mut load(model), 4);
        for parts in [[0.8, 0.8], [0.45, 0.3]] {
            let mut engine = load(model);
            let vram = parts.map(|part| vram(&engine, part));
            let before = [0, 1].map(free);
            for passage in [Passage::Never, Passage::From(3)] {
                engine.set_passage(passage);
                let found = place(&mut engine, &vram).cloned().expect("there is room");
                let bytes: Vec<usize> = found.each.iter().map(|portion| portion.bytes).collect();
                println!(
                    "{model} at {parts:?}, {passage:?}: {bytes:?} of {vram:?}, blocks {:?}",
                    found.blocks
                );
                assert_eq!(found.each.len(), 2, "{model}: {found:?}");
                assert!(found.without.is_empty(), "{model}: {found:?}");
                let [a, b] = [&found.each[0].layers, &found.each[1].layers];
                assert!(
                    a.start == 0 && a.end == b.start && b.end == engine.spec().layers.len(),
                    "{a:?} {b:?}"
                );
                for (at, portion) in found.each.iter().enumerate() {
                    assert!(portion.bytes <= vram[at], "{model}: {found:?} within {vram:?}");
                    assert_eq!(portion.card[0], OneOf(at).label());
                    assert_eq!(before[at] - free(at), portion.bytes, "{model} on {at}");
                }
                assert_eq!(found.bytes, bytes.iter().sum::<usize>());
                is_whole += usize::from(found.is_whole);
                let (logits, same) = replies(&mut engine, 4);
                check_close(&format!("{model} at {parts:?}, {passage:?}"), &logits, &wanted);
                assert_eq!(same, tokens, "{model} at {parts:?}, {passage:?}");
            }
            drop(engine);
            assert_eq!([0, 1].map(free), before, "{model}: all is given back");
        }
    }
    assert!(is_whole > MODELS.len(), "{is_whole} times both had all of a model");
}

/// Published shapes over one to four cards: never more of a card than it may, every layer on one of them, no card more
/// than it takes, and never less of the model for one more.
#[test]
fn shares_of_published_shapes_stay_within_budgets() {
    for (name, config) in SHAPES {
        let spec = ModelSpec::parse(config.as_bytes()).expect("a published shape");
        let (precision, kv, quantization) = (Precision::Fast, KvKind::Int8, way("nf4"));
        let options = Options { context: 1024, chunk: 64, precision, kv, quantization, ..Options::SMALLEST };
        let plan = synthetic_plan(&spec, Dtype::Bf16, options, Cpu::detect()).expect("it can be planned");
        let whole = Placed::forecast(&plan, usize::MAX).expect("it fits");
        let divided = whole.weight_bytes + whole.cache_bytes;
        let budgets = |parts: &[f64]| -> Vec<(&str, usize)> {
            let beside = whole.bytes - divided - whole.kept_bytes;
            let bytes = |part: &f64| beside + (part * divided as f64) as usize;
            parts.iter().map(|part| ("", bytes(part))).collect()
        };
        for parts in [[0.45; 4], [0.1, 0.2, 0.1, 0.2], [0.6, 0.05, 0.6, 0.6], [0.03; 4]] {
            let (mut before, mut was_whole) = (0, false);
            for count in 1..=parts.len() {
                let budgets = budgets(&parts[..count]);
                let Some(found) = Placed::forecast_on(&plan, &budgets, Manner::default()) else { continue };
                let held: usize = found.weight_bytes + found.cache_bytes;
                assert!(held >= before, "{name} on {count} of {parts:?}: {held} after {before}");
                assert!(!was_whole || held == before, "{name}: no other card is needed");
                (before, was_whole) =
                    (held, found.attention[0] == found.attention[1] && found.blocks[0] == found.blocks[1]);
                let most = |at: usize| budgets[at].1;
                let mut allowed = (0..count).collect::<Vec<_>>().into_iter();
                let mut next = 0;
                for portion in &found.each {
                    // Cards that are not taken are left out, the order stays.
                    assert!(allowed.any(|at| portion.bytes <= most(at)), "{name}: {found:?} in {parts:?}");
                    assert_eq!(portion.layers.start, next, "{name}: {found:?}");
                    next = portion.layers.end;
                }
                assert_eq!(next, spec.layers.len(), "{name}: {found:?}");
            }
            assert_eq!(was_whole, parts[0] > 0.4, "{name} on {parts:?}");
        }
    }
}

/// A model of five layers, whose weights are noise.
fn five_layers() -> Engine {
    let config =
        fs::read_to_string(model_folder("llama-untied").join("config.json")).expect("the golden has one");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("it is JSON");
    config["num_hidden_layers"] = 5.into();
    let spec = ModelSpec::parse(config.to_string().as_bytes()).expect("five layers are as good as two");
    Engine::synthesize(spec, Dtype::Bf16, for_two(), Cpu::detect(), 2).expect("it is small")
}

/// Copies go straight, by way of the host where cards may not touch one another, and also where what goes straight does
/// not arrive.
#[test]
fn values_arrive_however_cards_are_joined() {
    const TEST: &str = "values_arrive_however_cards_are_joined";
    if skips_card() {
        return;
    }
    let Ok(case) = std::env::var("CUSIM_PEERS") else {
        for peers in ["granted", "refused", "torn"] {
            let done = child(TEST, &[("CUSIM_DEVICES", "3"), ("CUSIM_PEERS", peers)]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{peers}: {done:?}");
        }
        return;
    };
    let (wanted, tokens) = replies(&mut five_layers(), 6);
    for (parts, cards) in [(vec![0.3, 0.9, 0.4], 2), (vec![0.4; 3], 3), (vec![0.25, 0.2, 0.15], 3)] {
        let mut engine = five_layers();
        let vram: Vec<usize> = parts.iter().map(|&part| vram(&engine, part)).collect();
        let found = place(&mut engine, &vram).cloned().expect("there is room");
        println!("{case} {parts:?}: {:?}", found.each);
        // No more cards than it takes, and every layer on one of them.
        assert_eq!(found.each.len(), cards, "{found:?}");
        let layers: usize = found.each.iter().map(|portion| portion.layers.len()).sum();
        assert_eq!((layers, found.is_whole), (5, parts.iter().sum::<f64>() > 1.0), "{found:?}");
        let (logits, same) = replies(&mut engine, 6);
        check_close(&case, &logits, &wanted);
        assert_eq!(same, tokens, "{case} {parts:?}");
    }
}

/// A copy that one of both streams does not wait for is seen: the stand-in can be deaf to either.
#[test]
fn both_streams_wait_for_a_copy() {
    const TEST: &str = "both_streams_wait_for_a_copy";
    if skips_card() {
        return;
    }
    let Ok(case) = std::env::var("CUSIM_DEAF") else {
        for case in ["none", "second"] {
            let done = child(TEST, &[("CUSIM_DEVICES", "2"), ("CUSIM_DEAF", case)]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{case}: {done:?}");
        }
        return;
    };
    let (_, tokens) = replies(&mut five_layers(), 3);
    let mut engine = five_layers();
    let vram = [vram(&engine, 0.6); 2];
    let found = place(&mut engine, &vram).cloned();
    if case == "second" {
        // What the first card sends is not there yet when it is looked at.
        let failed = found.map(|placed| placed.without).expect("one of them does it");
        assert!(matches!(&failed[..], [(_, NoCard::Failed(_))]), "{failed:?}");
        return;
    }
    assert_eq!(found.expect("there is room").each.len(), 2);
    assert_eq!(replies(&mut engine, 3).1, tokens);
}

/// Sequences go on while the model moves between the processor, one card, and both.
#[test]
fn a_model_moves_among_cards_between_two_steps() {
    const TEST: &str = "a_model_moves_among_cards_between_two_steps";
    if skips_card() || !is_child(TEST, &[("CUSIM_DEVICES", "2")]) {
        return;
    }
    for (model, kv) in [("gpt_neox", KvKind::F32), ("gpt_oss-mxfp4", KvKind::F16)] {
        let load = || {
            let options = Options { kv, ..for_two() };
            bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2)
        };
        let before = [0, 1].map(free);
        let (wanted, tokens) = replies(&mut load(), 6);
        let mut engine = load();
        let whole = vram(&engine, 1.0);
        let (half, less) = (vram(&engine, 0.7), vram(&engine, 0.3));
        let mut stood = Vec::new();
        let found = replies_meanwhile(&mut engine, PROMPTS, 6, |engine, step| {
            match step {
                0 => place(engine, &[half, half]).map(|_| ()).expect("there is room"),
                1 => place(engine, &[less, less]).map(|_| ()).expect("there is room"),
                2 => engine.leave_card(),
                3 => place(engine, &[whole]).map(|_| ()).expect("there is room"),
                4 => place(engine, &[less, half]).map(|_| ()).expect("there is room"),
                _ => {}
            }
            stood.push(engine.placed().map_or(0, |placed| placed.each.len()));
        });
        assert_eq!(stood, [2, 2, 0, 1, 2, 2], "{model}");
        check_close(model, &found.0, &wanted);
        assert_eq!(found.1, tokens, "{model}");
        drop(engine);
        assert_eq!([0, 1].map(free), before, "{model}");
    }
}

/// What rests moves along, goes on, and begins others by whole pages, wherever it stands meanwhile.
#[test]
fn what_rests_moves_among_cards_and_goes_on() {
    const TEST: &str = "what_rests_moves_among_cards_and_goes_on";
    if skips_card() || !is_child(TEST, &[("CUSIM_DEVICES", "2")]) {
        return;
    }
    fn read(engine: &mut Engine, sequence: usize, tokens: &[u32]) -> Vec<f32> {
        let unread = &tokens[engine.length(sequence)..];
        engine.prefill::<StepError>(sequence, unread, |_, _, _| Ok(())).expect("there is room");
        engine.logits(&[engine.rows() - 1]).to_vec()
    }
    for (model, kv) in [("gpt_neox", KvKind::F32), ("gpt_oss-mxfp4", KvKind::F16)] {
        let options = Options { kv, context: 192, sequences: 3, ..for_two() };
        let load = || bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2);
        let first: Vec<u32> = (0..150).map(|i| i * i % 199).collect();
        let other = [&first[..130], &[7, 8, 9, 7]].concat();
        let [wanted_first, wanted_other] = [&first, &other].map(|tokens| {
            let mut engine = load();
            let sequence = engine.open().expect("it is free");
            read(&mut engine, sequence, tokens)
        });
        let mut engine = load();
        let (less, half) = (vram(&engine, 0.3), vram(&engine, 0.7));
        place(&mut engine, &[half, half]).expect("there is room");
        let kept = engine.open().expect("it is free");
        read(&mut engine, kept, &first[..140]);
        engine.rest(kept);
        place(&mut engine, &[less, half]).expect("there is room");
        let branch = engine.branch(kept, 130, 192).expect("it is free");
        assert_eq!(engine.length(branch), 128);
        check_close(model, &read(&mut engine, branch, &other), &wanted_other);
        engine.leave_card();
        assert_eq!(engine.resume(kept, 140, 192), Some(140));
        check_close(model, &read(&mut engine, kept, &first), &wanted_first);
        place(&mut engine, &[half]).expect("there is room");
        engine.rewind(branch, 129);
        check_close(model, &read(&mut engine, branch, &other), &wanted_other);
    }
}

/// Whichever allocation is refused, first less of that card is taken and then none: the others go on.
#[test]
fn memory_that_one_card_refuses_is_done_without() {
    const TEST: &str = "memory_that_one_card_refuses_is_done_without";
    if skips_card() {
        return;
    }
    let Ok(case) = std::env::var("CUSIM_CASE") else {
        // Six of each card.
        let refused = (1..=12).map(|n| ("smaller", "CUSIM_REFUSED", n.to_string()));
        let full = [
            ("one", "CUSIM_FULL_DEVICE", "0"),
            ("one", "CUSIM_FULL_DEVICE", "1"),
            ("none", "CUSIM_FULL", "1"),
        ];
        for (case, variable, value) in refused.chain(full.map(|(a, b, c)| (a, b, c.to_owned()))) {
            let done = child(TEST, &[("CUSIM_DEVICES", "2"), ("CUSIM_CASE", case), (variable, &value)]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{variable}={value}: {done:?}");
        }
        return;
    };
    let before = [0, 1].map(free);
    let (wanted, tokens) = replies(&mut load("gpt_neox"), 3);
    let mut engine = load("gpt_neox");
    let vram = [vram(&engine, 0.7); 2];
    match (case.as_str(), place(&mut engine, &vram).cloned()) {
        ("smaller", Ok(placed)) => {
            assert!(placed.each.len() == 2 && placed.without.is_empty(), "{placed:?}");
            assert!(placed.each.iter().any(|portion| portion.bytes <= vram[0] / 4 * 3), "{placed:?}");
        }
        ("one", Ok(placed)) => {
            let refused = matches!(&placed.without[..], [(_, NoCard::Memory(_))]);
            assert!(placed.each.len() == 1 && refused, "{placed:?}");
            assert_ne!(placed.each[0].card[0], placed.without[0].0);
        }
        ("none", Err(NoCard::Memory(_))) => assert!(engine.placed().is_none()),
        (_, found) => panic!("{case}: {found:?}"),
    }
    let (logits, same) = replies(&mut engine, 3);
    check_close(&case, &logits, &wanted);
    assert_eq!(same, tokens, "{case}");
    drop(engine);
    assert_eq!([0, 1].map(free), before, "{case}: all is given back");
}

/// A card that is lost ends what was under way with an error; read again, it goes on where it was.
#[test]
fn a_card_of_two_that_is_lost_leaves_the_processor() {
    const TEST: &str = "a_card_of_two_that_is_lost_leaves_the_processor";
    if skips_card() {
        return;
    }
    if std::env::var_os("CUSIM_LOST").is_none() {
        // The first or the second, in a prompt or later.
        for lost in ["9,", "31,", ",8", ",33"] {
            let done = child(TEST, &[("CUSIM_DEVICES", "2"), ("CUSIM_LOST", lost)]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{lost}: {done:?}");
        }
        return;
    }
    let (wanted, tokens) = replies(&mut load("qwen3"), 3);
    let mut engine = load("qwen3");
    let vram = [vram(&engine, 0.7); 2];
    let placed = place(&mut engine, &vram).cloned().expect("there is room");
    assert_eq!(placed.each.len(), 2, "{placed:?}");
    let sequence = engine.open().expect("there is room");
    let mut history = PROMPTS[0].to_vec();
    let error = loop {
        let unread = &history[engine.length(sequence)..];
        let rows = unread.len();
        let result = engine.step(&[Chunk { sequence, tokens: unread }]);
        match result.and_then(|()| engine.try_logits(&[rows - 1]).map(|_| ())) {
            Ok(()) => history.push(7),
            Err(error) => break error,
        }
        assert!(history.len() < 60, "it was never lost");
    };
    assert!(matches!(error, StepError::Card(_)) && engine.placed().is_none(), "{error}");
    engine.close(sequence);
    let (logits, same) = replies(&mut engine, 3);
    assert!(logits == wanted && same == tokens, "the processor computes as it does alone");
}

#[test]
fn nothing_is_allocated_on_any_card_after_loading() {
    const TEST: &str = "nothing_is_allocated_on_any_card_after_loading";
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cusim-cards.log");
    let variables = [("CUSIM_DEVICES", "2"), ("CUSIM_LOG", log.to_str().expect("the path is UTF-8"))];
    if skips_card() || !is_child(TEST, &variables) {
        return;
    }
    let allocations = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    for (part, passage) in [(0.7, Passage::Never), (0.3, Passage::From(1))] {
        let before = allocations();
        let mut engine = load("mixtral");
        engine.set_passage(passage);
        let vram = [vram(&engine, part); 2];
        assert_eq!(place(&mut engine, &vram).expect("there is room").each.len(), 2);
        let loaded = allocations();
        assert!(loaded >= before + 12, "{loaded} allocations after loading, {before} before");
        let (_, tokens) = replies(&mut engine, 6);
        assert_eq!((tokens.len(), allocations()), (12, loaded), "at {part}");
    }
    fs::remove_file(&log).expect("it is there");
}
