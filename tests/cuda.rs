//! Whole models on a card beside the goldens, and whether the kernels' texts are those of their sources. Operations,
//! and what goes wrong on a card, stand in `cuda/tests`; how a test meets a driver, in `tests/cusim`.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::arena::ALIGNMENT;
use bantam_core::backend::Feed;
use bantam_core::{Backend, Batch, Cpu, CpuBackend, KvKind, Precision, Region, Serial};
use bantam_cuda::{Card, CudaBackend, OneOf, Sizes};
use bantam_cusim::{child, is_child, requires_card, skips_card};
use bantam_model::card::{Card as _, Manner, NoCard, Passage, Stretch};
use bantam_model::decoder::Decoder;
use bantam_model::engine::{Chunk, Engine, ExpertsMet, Placed, StepError, stored};
use bantam_model::formats::on_load::WAYS;
use bantam_model::plan::{Options, Plan};
use bantam_model::{memory, weights};
use bantam_tests::{
    MODELS, check_close, floats, ids, model_folder, open, options, replies, replies_meanwhile, repository,
};

/// A prompt in two chunks, then single tokens: the logits of every position.
fn logits<B: Backend>(decoder: &Decoder, plan: &Plan, backend: &mut B, tokens: &[u32]) -> Vec<f32> {
    let tables: Vec<u32> = (0..plan.pages_per_sequence as u32).rev().collect();
    let mut all = Vec::new();
    let middle = tokens.len() / 2;
    let mut at = 0;
    for count in [middle].into_iter().chain([1; 4]).chain([tokens.len() - middle - 4]) {
        let length = tokens.len();
        let feed = Feed { first_row: 0, rows: count, first_position: at, sequence: 0, length };
        let batch = Batch { feeds: &[feed], tables: &tables, pages_per_sequence: plan.pages_per_sequence };
        assert!(decoder.forward(backend, &batch, &tokens[at..at + count], &|| false));
        let rows: Vec<usize> = (0..count).collect();
        let slot = decoder.logits(backend, &rows);
        all.extend_from_slice(backend.read(slot));
        at += count;
    }
    all
}

/// Tokens of a prompt that are read.
const TOKENS: usize = 16;

/// A golden's decoder and plan, the processor with all of it, and a card with all of it.
fn on_card(model: &str, options: Options, cpu: Cpu) -> (Decoder, Plan, impl Backend, CudaBackend) {
    let (spec, checkpoint) = open(&model_folder(model));
    let plan = Plan::new(&spec, stored(&checkpoint), options, cpu).expect("the golden has a plan");
    let weights = memory::region(plan.weight_bytes).expect("memory");
    let mut arena = memory::arena(weights, plan.cache_bytes, plan.work_bytes).expect("memory");
    weights::load(&plan, &checkpoint, None, &mut arena, &Serial, &mut |_| {}).expect("the golden is sound");
    let sizes = Sizes {
        weights: plan.weight_bytes,
        cache: plan.cache_bytes,
        work: plan.work_bytes,
        rows: options.chunk,
        tables: options.sequences * plan.pages_per_sequence,
        results: plan.work.logits.bytes + 64,
    };
    let card = Card::open(0).expect("the driver that this test was started with");
    let mut card =
        CudaBackend::new(card, options.precision, sizes, plan.work.panels).expect("a card with room");
    card.upload(Region::Weights, 0, &arena.weights[..plan.weight_bytes]);
    let processor = CpuBackend::new(cpu, options.precision, Serial, arena, plan.work.panels);
    (Decoder::new(spec, &plan), plan, processor, card)
}

/// The logits of a golden's first prompt, on the processor and on the card.
fn both(model: &str, options: Options, cpu: Cpu) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (decoder, plan, mut processor, mut card) = on_card(model, options, cpu);
    let golden = model_folder(model).join("golden.safetensors");
    let golden = bantam_model::checkpoint::Checkpoint::open(&golden).expect("it is sound");
    // Fibers take their time; what comes later changes nothing about the first positions.
    let mut tokens = ids(&golden, "prompt0.input_ids");
    tokens.truncate(TOKENS);
    let wanted = logits(&decoder, &plan, &mut processor, &tokens);
    let found = logits(&decoder, &plan, &mut card, &tokens);
    assert_eq!(card.fault(), None, "{model}");
    let mut golden = floats(&golden, "prompt0.logits");
    golden.truncate(found.len());
    (wanted, found, golden)
}

#[test]
fn goldens_of_every_family_are_met_on_the_card() {
    if !is_child("goldens_of_every_family_are_met_on_the_card", &[]) {
        return;
    }
    for model in MODELS {
        let (_, found, golden) = both(model, options(), Cpu::detect());
        check_close(&format!("{model} on the card"), &found, &golden);
    }
}

/// What the stand-in was asked since its log had so many lines; and how many it has now.
fn calls_since(log: &Path, first: usize) -> (Vec<String>, usize) {
    let text = fs::read_to_string(log).expect("the stand-in writes it");
    let calls: Vec<String> = text.lines().skip(first).map(str::to_owned).collect();
    let lines = first + calls.len();
    (calls, lines)
}

/// Whatever takes the same input and lies alike: queries with keys and values, gates with what they open.
#[test]
fn products_of_one_input_are_one_launch() {
    const TEST: &str = "products_of_one_input_are_one_launch";
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("launches.log");
    if skips_card() || !is_child(TEST, &[("CUSIM_CALLS", path.to_str().expect("the path is UTF-8"))]) {
        return;
    }
    const PRODUCTS: [&str; 6] = ["wide", "rows8", "coded", "table4", "count", "trits"];
    for model in MODELS {
        let (decoder, plan, _, mut card) = on_card(model, options(), Cpu::detect());
        let mut seen = calls_since(&path, 0).1;
        let tables: Vec<u32> = (0..plan.pages_per_sequence as u32).collect();
        for position in 0..2 {
            let feed = Feed { first_row: 0, rows: 1, first_position: position, sequence: 0, length: 2 };
            let batch =
                Batch { feeds: &[feed], tables: &tables, pages_per_sequence: plan.pages_per_sequence };
            assert!(decoder.forward(&mut card, &batch, &[1], &|| false));
            let slot = decoder.logits(&mut card, &[0]);
            assert!(card.read(slot).iter().all(|x| x.is_finite()));
            let (calls, lines) = calls_since(&path, seen);
            seen = lines;
            let launched = calls.iter().filter_map(|call| call.strip_prefix("cuLaunchKernel "));
            let products = launched.filter(|kernel| PRODUCTS.iter().any(|name| kernel.starts_with(name)));
            // Of every layer: what attention takes and gives, the first half of the block and the second, and who
            // goes to which expert; then the head.
            let of_layer = |layer: &bantam_model::plan::LayerWeights| 4 + usize::from(layer.router.is_some());
            let wanted = plan.weights.layers.iter().map(of_layer).sum::<usize>() + 1;
            assert_eq!(products.count(), wanted, "{model}");
        }
    }
    fs::remove_file(&path).expect("it is there");
}

/// The length of a difference, as a part of the first.
fn error_of(wanted: &[f32], found: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = wanted.iter().zip(found).map(|(a, b)| square(a - b)).sum();
    (error / wanted.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// In fast precision both round activations (some processors those of bfloat16 weights too, not the one here);
/// what is left are sums of floats in another order, which a key or an
/// activation beside the middle of two codes can make a code of.
#[test]
fn fast_precision_is_the_processors_up_to_rounding() {
    if !is_child("fast_precision_is_the_processors_up_to_rounding", &[]) {
        return;
    }
    for kv in [KvKind::F16, KvKind::Int8] {
        for model in ["gpt_neox", "gpt_oss-mxfp4"] {
            let fast = Options { precision: Precision::Fast, kv, ..options() };
            let (wanted, found, _) = both(model, fast, Cpu::PORTABLE);
            let relative = error_of(&wanted, &found);
            println!("{model} {kv:?}: relative {relative:.2e}");
            assert!(relative < 1e-2, "{model} {kv:?}: relative {relative:.2e}");
        }
    }
}

/// What each of some steps reads, by sequences: a prompt of more rows than are kept, then one row, two of two
/// sequences, two of one, and one again.
const STEPS: [&[(usize, &[u32])]; 6] = [
    &[(0, &[5, 9, 2])],
    &[(0, &[7])],
    &[(0, &[1]), (1, &[8])],
    &[(0, &[3]), (1, &[4])],
    &[(1, &[6, 2])],
    &[(0, &[1])],
];

/// The last row of each part of a step.
fn last_rows(step: &[(usize, &[u32])]) -> Vec<usize> {
    let ends = step.iter().scan(0, |end, (_, tokens)| {
        *end += tokens.len();
        Some(*end - 1)
    });
    ends.collect()
}

/// The logits of these steps by a backend that is asked for one operation after another.
fn by_operations(decoder: &Decoder, plan: &Plan, backend: &mut impl Backend) -> Vec<f32> {
    let pages_per_sequence = plan.pages_per_sequence;
    let tables: Vec<u32> = (0..(2 * pages_per_sequence) as u32).rev().collect();
    let mut lengths = [0; 2];
    let mut all = Vec::new();
    for step in STEPS {
        let (mut feeds, mut read) = (Vec::new(), Vec::new());
        for &(sequence, tokens) in step {
            let (rows, first_position) = (tokens.len(), lengths[sequence]);
            let length = first_position + rows;
            feeds.push(Feed { first_row: read.len(), rows, first_position, sequence, length });
            read.extend_from_slice(tokens);
            lengths[sequence] = length;
        }
        let batch = Batch { feeds: &feeds, tables: &tables, pages_per_sequence };
        assert!(decoder.forward(backend, &batch, &read, &|| false));
        let slot = decoder.logits(backend, &last_rows(step));
        all.extend_from_slice(backend.read(slot));
    }
    all
}

/// The same by an engine; `after` is called after each step.
fn by_engine(engine: &mut Engine, mut after: impl FnMut()) -> Vec<f32> {
    let open = [0; 2].map(|_| engine.open().expect("there is room for two"));
    let mut all = Vec::new();
    for step in STEPS {
        let chunk = |&(sequence, tokens): &(usize, _)| Chunk { sequence: open[sequence], tokens };
        engine.step(&step.iter().map(chunk).collect::<Vec<_>>()).expect("a step as planned");
        all.extend_from_slice(engine.try_logits(&last_rows(step)).expect("the card is well"));
        after();
    }
    open.iter().for_each(|&sequence| engine.close(sequence));
    all
}

fn is_same(wanted: &[f32], found: &[f32]) -> bool {
    let is_any = wanted.iter().any(|&x| x != 0.0);
    is_any && wanted.iter().map(|x| x.to_bits()).eq(found.iter().map(|x| x.to_bits()))
}

fn for_two() -> Options {
    Options { sequences: 2, chunk: 16, context: 64, logits_rows: 2, ..options() }
}

fn load_for_two(model: &str) -> Engine {
    bantam_tests::load(&model_folder(model), for_two(), Cpu::detect(), 2)
}

/// An engine whose card has all of a golden, with room for two sequences.
fn whole_on_card(model: &str) -> Engine {
    let mut engine = load_for_two(model);
    let placed = engine.place(&OneOf(0), None).expect("it has room");
    assert!(placed.is_whole, "{model}: {placed:?}");
    engine
}

/// A card that has all of a model keeps the steps of its replies, of one sequence and of both: they give the bits of
/// the same operations asked one by one.
#[test]
fn steps_that_a_card_keeps_give_the_same_bits() {
    if !is_child("steps_that_a_card_keeps_give_the_same_bits", &[]) {
        return;
    }
    for model in MODELS {
        let mut engine = whole_on_card(model);
        assert_eq!(engine.placed().and_then(|placed| placed.not_kept), None, "{model}");
        let (decoder, plan, _, mut card) = on_card(model, for_two(), Cpu::detect());
        let wanted = by_operations(&decoder, &plan, &mut card);
        assert_eq!(card.fault(), None, "{model}");
        assert!(is_same(&wanted, &by_engine(&mut engine, || {})), "{model}");
    }
}

/// Whoever queues steps need not wait between them: the words of each have left before those of the next are put down.
#[test]
fn kept_steps_may_follow_one_another_at_once() {
    if !is_child("kept_steps_may_follow_one_another_at_once", &[]) {
        return;
    }
    let (decoder, plan, _, mut card) = on_card("gpt_neox", for_two(), Cpu::detect());
    let pages_per_sequence = plan.pages_per_sequence;
    let tables: Vec<u32> = (0..(2 * pages_per_sequence) as u32).collect();
    let stream = decoder.stream().first(decoder.spec.hidden);
    // The sequences take turns: where a row stands changes with every step, the token with every other.
    let mut run = |step: &mut dyn FnMut(&mut CudaBackend, &Batch, &[u32])| {
        for at in 0..7 {
            let (sequence, first_position) = (at % 2, at / 2);
            let feed = Feed { first_row: 0, rows: 1, first_position, sequence, length: first_position + 1 };
            let batch = Batch { feeds: &[feed], tables: &tables, pages_per_sequence };
            step(&mut card, &batch, &[3 + (at / 2) as u32]);
        }
        let mut found = Vec::new();
        card.fetch(stream, &mut |_, values| found.extend_from_slice(values));
        assert_eq!(card.fault(), None);
        found
    };
    // First, or keys and values that it should have stored would be there.
    let mut is_kept = false;
    let found = run(&mut |card, batch, tokens| {
        let stretch = Stretch::Layers { tokens, batch };
        if !std::mem::replace(&mut is_kept, true) {
            card.begin();
            assert!(decoder.forward(card, batch, &[0], &|| false));
            card.keep(stretch, usize::MAX).expect("it can be kept");
        }
        assert!(card.again(stretch));
    });
    let wanted = run(&mut |card, batch, tokens| {
        assert!(decoder.forward(card, batch, tokens, &|| false));
        assert_eq!(card.fault(), None);
    });
    assert!(is_same(&wanted, &found));
}

/// Whatever the model: its layers are one call, and so are its logits. What was kept is given back with it.
#[test]
fn a_step_is_a_few_calls_of_the_driver() {
    const TEST: &str = "a_step_is_a_few_calls_of_the_driver";
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("calls.log");
    // A run that failed leaves it, and all of it is counted.
    let _ = fs::remove_file(&path);
    if skips_card() || !is_child(TEST, &[("CUSIM_CALLS", path.to_str().expect("the path is UTF-8"))]) {
        return;
    }
    let count = |calls: &[String], name| calls.iter().filter(|call| call.starts_with(name)).count();
    for model in MODELS {
        let mut engine = whole_on_card(model);
        let mut seen = calls_since(&path, 0).1;
        let mut steps = Vec::new();
        by_engine(&mut engine, || {
            let (calls, lines) = calls_since(&path, seen);
            seen = lines;
            steps.push(calls);
        });
        // Prompts are of more rows than are kept.
        assert!(count(&steps[0], "cuLaunchKernel") > 0, "{model}: {:?}", steps[0]);
        for calls in &steps[1..] {
            let found = ["cuGraphLaunch", "cuLaunchKernel", "cuMemcpyDtoH"].map(|name| count(calls, name));
            assert_eq!((found, calls.len()), ([2, 0, 1], 12), "{model}: {calls:?}");
        }
    }
    let all = calls_since(&path, 0).0;
    let made = count(&all, "cuGraphInstantiate");
    // Of one row and of two, layers and logits.
    assert_eq!((made, count(&all, "cuGraphExecDestroy")), (4 * MODELS.len(), made));
    fs::remove_file(&path).expect("it is there");
}

/// A driver that makes no graphs is said to, and the card computes as it would.
#[test]
fn a_card_that_keeps_no_steps_computes_them() {
    const TEST: &str = "a_card_that_keeps_no_steps_computes_them";
    if skips_card() {
        return;
    }
    let Ok(wanted) = std::env::var("CUSIM_CASE") else {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lacking");
        bantam_cusim::lacking("cuGraphLaunch", &folder);
        let (variable, folder) = ("CUSIM_NO_GRAPH", folder.to_str().expect("the path is UTF-8"));
        for (variable, value, code) in [
            (variable, "1", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
            (variable, "2", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"),
            (variable, "3", "CUDA_ERROR_OUT_OF_MEMORY"),
            (variable, "4", "CUDA_ERROR_OUT_OF_MEMORY"),
            ("LD_LIBRARY_PATH", folder, "the driver lacks functions for it"),
        ] {
            let done = child(TEST, &[(variable, value), ("CUSIM_CASE", code)]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{variable}={value}: {done:?}");
        }
        return;
    };
    let mut engine = whole_on_card("gpt_neox");
    assert_eq!(engine.placed().and_then(|placed| placed.not_kept).expect("it says so").code, wanted);
    let (decoder, plan, _, mut card) = on_card("gpt_neox", for_two(), Cpu::detect());
    let wanted = by_operations(&decoder, &plan, &mut card);
    assert!(is_same(&wanted, &by_engine(&mut engine, || {})));
}

/// A card that is lost while it is to keep steps is none: nobody hears of it by a step that fails.
#[test]
fn a_card_that_is_lost_before_the_first_step_leaves_the_processor() {
    const TEST: &str = "a_card_that_is_lost_before_the_first_step_leaves_the_processor";
    if skips_card() || !is_child(TEST, &[("CUSIM_NO_GRAPH", "5")]) {
        return;
    }
    let mut engine = load_for_two("gpt_neox");
    let wanted = by_engine(&mut engine, || {});
    let sequence = engine.open().expect("there is room");
    let step = |engine: &mut Engine, tokens: &[u32]| engine.step(&[Chunk { sequence, tokens }]);
    step(&mut engine, &[1, 2]).expect("a step as planned");
    let found = engine.place(&OneOf(0), None).cloned();
    assert!(matches!(found, Err(NoCard::Failed(_))) && engine.placed().is_none(), "{found:?}");
    // Its keys and values had moved.
    assert!(engine.must_restart(sequence, 3));
    engine.rewind(sequence, 0);
    step(&mut engine, &[1, 2, 3]).expect("the sequence goes on");
    engine.close(sequence);
    assert!(is_same(&wanted, &by_engine(&mut engine, || {})));
}

const PROMPTS: [&[u32]; 2] = [&[5, 9, 2, 7, 1, 3], &[8, 4, 6]];

/// Whatever part of a model has room on the card, its results are the processor's up to rounding.
#[test]
fn a_model_stands_on_the_card_in_any_part() {
    if !is_child("a_model_stands_on_the_card_in_any_part", &[]) {
        return;
    }
    let (mut by_heads, mut by_experts, mut by_layers) = (0, 0, 0);
    for model in MODELS {
        let options = Options { sequences: 2, chunk: 16, context: 64, logits_rows: 2, ..options() };
        let load = || bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2);
        let (wanted, tokens) = replies(&mut load(), PROMPTS, 4);
        let plan = load().plan().clone();
        let whole = Placed::forecast(&plan, usize::MAX).expect("it fits");
        assert!(whole.is_whole && whole.attention[0] == whole.attention[1], "{model}: {whole:?}");
        let divided = whole.weight_bytes + whole.cache_bytes;
        let beside = whole.bytes - divided - whole.kept_bytes;
        let vram = |part: f64| beside + (part * divided as f64) as usize;
        let has_mixture = plan.weights.layers.iter().any(|layer| layer.router.is_some());
        // The most that leaves some heads, or of a mixture some experts, to the processor.
        let is_part = |[there, all]: [usize; 2]| 0 < there && there < all;
        let most = |which: &dyn Fn(&Placed) -> [usize; 2]| {
            let mut parts = (1..100).rev().map(|part| f64::from(part) / 100.0);
            parts.find(|&part| Placed::forecast(&plan, vram(part)).is_some_and(|of| is_part(which(&of))))
        };
        let heads = most(&|placed| placed.attention);
        let experts = most(&|placed| placed.blocks).filter(|_| has_mixture);
        (by_heads, by_experts) = (by_heads + heads.iter().count(), by_experts + experts.iter().count());
        for part in [Some(0.5), heads, experts].into_iter().flatten() {
            let mut engine = load();
            let vram = vram(part);
            let found = engine.place(&OneOf(0), Some(vram as u64)).cloned().expect("it is there");
            println!("{model} at {part}: attention {:?}, blocks {:?}", found.attention, found.blocks);
            assert!(found.bytes <= vram, "{model}: {found:?} within {vram}");
            let (logits, same) = replies(&mut engine, PROMPTS, 4);
            check_close(&format!("{model} at {part}"), &logits, &wanted);
            assert_eq!(same, tokens, "{model} at {part}");
            // Prompts pass through the card, and single tokens do not.
            engine.set_passage(Passage::From(3));
            let found = engine.place(&OneOf(0), Some(vram as u64)).cloned().expect("it is there");
            assert!(found.bytes <= vram && found.ring_bytes > 0, "{model}: {found:?} within {vram}");
            assert_eq!(found.passes_from, Some(3), "{model}");
            let (logits, same) = replies(&mut engine, PROMPTS, 4);
            check_close(&format!("{model} at {part}, passing"), &logits, &wanted);
            assert_eq!(same, tokens, "{model} at {part}, passing");
        }
        let mut engine = load();
        engine.set_manner(Manner { whole_layers: true, ..Manner::default() });
        if let Ok(found) = engine.place(&OneOf(0), Some(vram(0.7) as u64)).cloned() {
            let blocks = found.blocks;
            assert!(
                found.bytes <= vram(0.7) && is_part(found.attention) && is_part(blocks),
                "{model}: {found:?}"
            );
            by_layers += 1;
            let (logits, same) = replies(&mut engine, PROMPTS, 4);
            check_close(&format!("{model} by layers"), &logits, &wanted);
            assert_eq!(same, tokens, "{model} by layers");
        }
    }
    println!("{by_heads} families divided by heads, {by_experts} by experts");
    // Where a layer has a single key head, its attention stands on one side.
    assert!(by_layers >= 10, "{by_layers} by layers");
    assert!(by_heads >= 8 && by_experts == 3, "{by_heads} by heads, {by_experts} by experts");
}

/// A card that has room for half of the experts comes to have those that are asked for: few at a time, and with the
/// processor's results all the while.
#[test]
fn experts_that_are_met_often_move_to_the_card() {
    if !is_child("experts_that_are_met_often_move_to_the_card", &[]) {
        return;
    }
    const STEPS: usize = 40;
    for model in ["mixtral", "gpt_oss-mxfp4"] {
        let options = Options { sequences: 1, chunk: 16, context: 128, logits_rows: 1, ..options() };
        let load = || bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2);
        let run = |engine: &mut Engine| {
            let sequence = engine.open().expect("there is room");
            let mut met = Vec::new();
            let mut logits = Vec::new();
            for _ in 0..STEPS {
                // The same token, so mostly the same experts.
                engine.step(&[Chunk { sequence, tokens: &[3] }]).expect("a step as planned");
                logits.extend_from_slice(engine.try_logits(&[0]).expect("the card is well"));
                met.push(engine.experts_met());
            }
            (logits, met)
        };
        let (wanted, none) = run(&mut load());
        assert!(none.iter().all(Option::is_none), "the processor has all of them");
        let mut engine = load();
        let whole = Placed::forecast(engine.plan(), usize::MAX).expect("it fits");
        // Less and less, until half of the experts have no room.
        let half = |vram: &usize| {
            let placed = Placed::forecast(engine.plan(), *vram);
            placed.is_some_and(|placed| placed.attention[0] > 0 && placed.blocks[0] <= placed.blocks[1] / 2)
        };
        let bytes = whole.bytes - whole.kept_bytes;
        let vram = (1..400).rev().map(|part| bytes / 400 * part).find(half).expect("some have");
        engine.place(&OneOf(0), Some(vram as u64)).expect("the stand-in has room");
        let (found, met) = run(&mut engine);
        check_close(model, &found, &wanted);
        let met: Vec<ExpertsMet> = met.into_iter().map(|met| met.expect("some stand there")).collect();
        let share = |from: usize, to: usize| {
            let (a, b) = (met[from], met[to]);
            (b.on_card - a.on_card) as f64 / (b.places - a.places) as f64
        };
        let (early, late) = (share(0, 8), share(STEPS - 9, STEPS - 1));
        let moved = met[STEPS - 1].moved;
        println!("{model}: {early:.2} of the places on the card at first, {late:.2} later, {moved} moved");
        assert!(moved > 0 && moved as f64 <= 1.4 * STEPS as f64 + 4.0, "{model}: {moved} moved");
        assert!(late >= early && late > 0.5, "{model}: {early:.2}, then {late:.2}");
        let last_moves = met[STEPS - 1].moved - met[STEPS / 2].moved;
        assert!(last_moves <= 4, "{model}: {last_moves} still moved for what does not change");
    }
}

/// A model whose layers are all on the card, and with about half of its feed-forward blocks there while the others pass
/// through it: the logits of both, and what stood there. Where the embedding has a place of its own, it stands here.
fn all_and_passing(model: &str, options: Options) -> (Vec<f32>, Vec<f32>, Placed) {
    let load = || {
        let mut engine = bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2);
        // Who goes where is found out here, whether it is needed or not.
        engine.record_routing();
        engine
    };
    let mut engine = load();
    engine.set_passage(Passage::From(1));
    let whole = engine.place(&OneOf(0), None).cloned().expect("it is there");
    assert!(whole.is_whole && whole.ring_bytes == 0, "{whole:?}");
    let bare = whole.bytes - whole.kept_bytes;
    // What is computed here first has other last bits.
    let least = engine.place(&OneOf(0), Some((bare - ALIGNMENT) as u64)).cloned().expect("most of it fits");
    if least.blocks[0] < least.blocks[1] {
        engine.place(&OneOf(0), None).expect("it is there");
    }
    let (wanted, _) = replies(&mut engine, PROMPTS, 3);
    // Less and less, until a half has no room; with a ring there is less than is foretold without.
    for part in (1..50).rev() {
        let placed = engine.place(&OneOf(0), Some((whole.bytes / 50 * part) as u64)).cloned();
        let placed = placed.expect("the stand-in has room");
        if placed.blocks[0] <= placed.blocks[1] / 2 {
            let (found, _) = replies(&mut engine, PROMPTS, 3);
            return (wanted, found, placed);
        }
    }
    panic!("{model}: half of the blocks never had room");
}

/// What passes through the card meets the same kernels as what stands there: the same bits, whatever the layout.
#[test]
fn what_passes_through_the_card_is_computed_as_what_stands_there() {
    if !is_child("what_passes_through_the_card_is_computed_as_what_stands_there", &[]) {
        return;
    }
    let least = Options { sequences: 2, chunk: 16, context: 64, logits_rows: 2, ..options() };
    let (exact, fast) = (Precision::Exact, Precision::Fast);
    let mut cases = vec![("gpt_neox", None, exact), ("qwen3", None, fast), ("llama-untied", None, exact)];
    cases.extend([("mixtral", None, exact), ("gpt_oss-mxfp4", None, fast)]);
    cases.extend(WAYS.iter().map(|way| ("llama-untied", Some(way), fast)));
    for (model, quantization, precision) in cases {
        let options = Options { quantization, precision, ..least };
        let (wanted, found, placed) = all_and_passing(model, options);
        println!("{model} {quantization:?}: blocks {:?}, a ring of {}", placed.blocks, placed.ring_bytes);
        assert!(placed.attention[0] == placed.attention[1] && placed.passes_from == Some(1), "{placed:?}");
        assert!(found == wanted, "{model} {quantization:?}: relative {:.2e}", error_of(&wanted, &found));
    }
}

/// A copy that nobody waits for is seen: the stand-in can be deaf to the events of one stream or the other, or to those
/// that the host waits for.
#[test]
fn every_event_of_the_ring_is_needed() {
    const TEST: &str = "every_event_of_the_ring_is_needed";
    if skips_card() {
        return;
    }
    let Ok(case) = std::env::var("CUSIM_DEAF") else {
        for case in ["none", "first", "second", "host"] {
            let done = child(TEST, &[("CUSIM_DEAF", case)]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{case}: {done:?}");
        }
        return;
    };
    let options = Options { sequences: 2, chunk: 16, context: 64, logits_rows: 2, ..options() };
    let (wanted, found, placed) = all_and_passing("gpt_neox", options);
    assert!(placed.ring_bytes > 0, "{placed:?}");
    assert_eq!(found == wanted, case == "none", "deaf: {case}");
}

/// Memory that is refused to the ring is done without, and nothing of it is kept.
#[test]
fn without_memory_for_a_ring_all_else_goes_on() {
    const TEST: &str = "without_memory_for_a_ring_all_else_goes_on";
    if skips_card() {
        return;
    }
    if std::env::var_os("CUSIM_REFUSED").is_none() {
        // Six are all else's; then each of three slots takes two.
        for n in ["7", "8", "9", "10", "11", "12"] {
            let done = child(TEST, &[("CUSIM_REFUSED", n)]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{n}: {done:?}");
        }
        return;
    }
    let before = free();
    let (mut engine, wanted, tokens) = placed_with(0.75, Passage::From(3));
    let placed = engine.placed().cloned().expect("it stands there");
    assert_eq!((placed.ring_bytes, placed.passes_from), (0, None));
    assert!(placed.ring_refused > 0, "{placed:?}");
    assert_eq!(before - free(), placed.bytes, "nothing of the ring is kept");
    let (logits, same) = replies(&mut engine, PROMPTS, 4);
    check_close("without a ring", &logits, &wanted);
    assert_eq!(same, tokens);
    drop(engine);
    assert_eq!(free(), before);
}

/// Whether weights pass is measured where a ring has room, and then either is right; memory is what is told.
#[test]
fn whether_weights_pass_is_measured() {
    if !is_child("whether_weights_pass_is_measured", &[]) {
        return;
    }
    let before = free();
    for model in ["gpt_neox", "mixtral"] {
        // Many sequences make a budget of which a sixteenth holds a ring.
        let options = Options { sequences: 16, chunk: 16, context: 512, logits_rows: 2, ..options() };
        let load = || bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2);
        let (wanted, tokens) = replies(&mut load(), PROMPTS, 3);
        let mut engine = load();
        let whole = Placed::forecast(engine.plan(), usize::MAX).expect("it fits");
        let vram = whole.bytes - whole.kept_bytes - whole.weight_bytes / 3;
        let planned = Placed::forecast(engine.plan(), vram).expect("some of it fits");
        assert!(planned.ring_bytes > 0 && planned.bytes <= vram, "{planned:?} within {vram}");
        let placed = engine.place(&OneOf(0), Some(vram as u64)).cloned().expect("it is there");
        println!("{model}: weights pass from {:?} on", placed.passes_from);
        assert_eq!(placed.ring_bytes, placed.passes_from.map_or(0, |_| planned.ring_bytes));
        let most = engine.plan().bytes() + Placed::host_bytes(engine.plan(), &[vram], Passage::Measured);
        assert!(
            placed.ring_refused == 0 && engine.memory_bytes() <= most,
            "{} of {most}",
            engine.memory_bytes()
        );
        assert!(requires_card() || before - free() == placed.bytes, "{placed:?}");
        let (logits, same) = replies(&mut engine, PROMPTS, 3);
        check_close(model, &logits, &wanted);
        assert_eq!(same, tokens, "{model}");
    }
    assert!(requires_card() || free() == before);
}

/// Bytes of the card that are free.
fn free() -> usize {
    Card::open(0).expect("the driver that this test was started with").memory().expect("it tells").0
}

/// Sequences go on wherever the model moves meanwhile, and what it leaves is given back to the last byte.
#[test]
fn a_model_moves_between_two_steps() {
    if !is_child("a_model_moves_between_two_steps", &[]) {
        return;
    }
    let before = free();
    for (model, kv) in [("gpt_neox", KvKind::Int8), ("gemma2", KvKind::F32), ("gpt_oss-mxfp4", KvKind::F16)] {
        let options = Options { sequences: 2, chunk: 16, context: 64, logits_rows: 2, kv, ..options() };
        let load = || bantam_tests::load(&model_folder(model), options, Cpu::detect(), 2);
        let (wanted, tokens) = replies(&mut load(), PROMPTS, 8);
        let mut engine = load();
        let whole = Placed::forecast(engine.plan(), usize::MAX).expect("it fits");
        let divided = whole.weight_bytes + whole.cache_bytes;
        let beside = whole.bytes - divided - whole.kept_bytes;
        let vram = |part: f64| beside + (part * divided as f64) as usize;
        let mut stood = Vec::new();
        let found = replies_meanwhile(&mut engine, PROMPTS, 8, |engine, step| {
            match [Some(1.0), Some(0.4), None, Some(0.7), Some(1.0), None, Some(0.5), None][step] {
                None => engine.leave_card(),
                Some(part) => {
                    let placed = engine.place(&OneOf(0), Some(vram(part) as u64)).expect("it has room");
                    assert!(placed.bytes <= vram(part) && placed.is_whole == (part == 1.0), "{placed:?}");
                }
            }
            stood.push(engine.placed().map_or(0, |placed| placed.bytes));
            if !requires_card() {
                assert!(before - free() >= stood[step] && (stood[step] > 0 || before == free()), "{model}");
            }
        });
        assert!(stood[0] > stood[3] && stood[3] > stood[1] && stood[4] == stood[0], "{model}: {stood:?}");
        // Codes of a byte may differ by one where sums of floats differ in their last bit.
        let relative = error_of(&wanted, &found.0);
        println!("{model} {kv:?}: relative {relative:.2e}");
        assert!(relative < if kv == KvKind::Int8 { 1e-2 } else { 1e-4 }, "{model}: relative {relative:.2e}");
        assert_eq!(found.1, tokens, "{model}");
        drop(engine);
        assert!(requires_card() || free() == before, "{model}: {} of {before} bytes are free", free());
    }
}

/// A card that is full again when a model is to move there, or was lost meanwhile, leaves the processor with all of it.
#[test]
fn a_move_that_fails_leaves_the_processor() {
    const TEST: &str = "a_move_that_fails_leaves_the_processor";
    if skips_card() {
        return;
    }
    let Ok(case) = std::env::var("CUSIM_CASE") else {
        // Allocations of the first placement are six, and four for the steps that it keeps; the first of the second is
        // refused, or all from there on.
        for (case, variable, value) in
            [("smaller", "CUSIM_REFUSED", "11"), ("none", "CUSIM_FULL", "11"), ("lost", "CUSIM_LOST", "200")]
        {
            let done = child(TEST, &[("CUSIM_CASE", case), (variable, value)]);
            assert!(done.as_ref().is_none_or(|(passed, _)| *passed), "{case}: {done:?}");
        }
        return;
    };
    let (mut engine, wanted, tokens) = placed(2.0);
    let vram = engine.placed().expect("it stands there").bytes as u64;
    let before = engine.placed().cloned();
    let sequence = engine.open().expect("there is room");
    let mut history = PROMPTS[0].to_vec();
    while engine.placed().is_some() && history.len() < 60 {
        let unread = history[engine.length(sequence)..].to_vec();
        let read = engine.step(&[Chunk { sequence, tokens: &unread }]);
        assert!(read.is_ok() || case == "lost", "{read:?}");
        history.push(7);
        if case != "lost" {
            break;
        }
    }
    let moved = engine.place(&OneOf(0), Some(vram)).cloned();
    match (case.as_str(), moved) {
        ("smaller", Ok(placed)) => {
            assert!(Some(&placed) != before.as_ref() && !placed.is_whole, "{placed:?}")
        }
        ("none", Err(NoCard::Memory(_))) | ("lost", Err(NoCard::Failed(_) | NoCard::Absent(_))) => {
            assert!(engine.placed().is_none());
        }
        (_, moved) => panic!("{case}: {moved:?}"),
    }
    let length = history.len();
    if engine.must_restart(sequence, length) {
        engine.rewind(sequence, 0);
    }
    let unread = history[engine.length(sequence)..].to_vec();
    engine.step(&[Chunk { sequence, tokens: &unread }]).expect("the sequence goes on");
    engine.close(sequence);
    let (logits, same) = replies(&mut engine, PROMPTS, 4);
    check_close(&case, &logits, &wanted);
    assert_eq!(same, tokens, "{case}");
}

/// Steps of an engine that stands on the card in part; `end` says how it goes on.
fn placed(part: f64) -> (Engine, Vec<f32>, Vec<u32>) {
    placed_with(part, Passage::default())
}

/// The same, where weights pass through the card as is said.
fn placed_with(part: f64, passage: Passage) -> (Engine, Vec<f32>, Vec<u32>) {
    let options = Options { sequences: 2, chunk: 16, context: 64, logits_rows: 2, ..options() };
    let load = || bantam_tests::load(&model_folder("gpt_neox"), options, Cpu::detect(), 2);
    let (wanted, tokens) = replies(&mut load(), PROMPTS, 4);
    let mut engine = load();
    engine.set_passage(passage);
    let needs = engine.plan().bytes() as f64;
    engine.place(&OneOf(0), Some((part * needs) as u64)).expect("the stand-in has room");
    (engine, wanted, tokens)
}

#[test]
fn nothing_is_allocated_on_the_card_after_loading() {
    const TEST: &str = "nothing_is_allocated_on_the_card_after_loading";
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cusim.log");
    if skips_card() || !is_child(TEST, &[("CUSIM_LOG", log.to_str().expect("the path is UTF-8"))]) {
        return;
    }
    let allocations = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    for (part, passage) in [(2.0, Passage::Never), (0.75, Passage::Never), (0.75, Passage::From(1))] {
        let before = allocations();
        let (mut engine, ..) = placed_with(part, passage);
        let loaded = allocations();
        assert!(loaded >= before + 6, "{loaded} allocations after loading, {before} before");
        let (_, tokens) = replies(&mut engine, PROMPTS, 8);
        assert_eq!((tokens.len(), allocations()), (16, loaded), "at {part}");
    }
    fs::remove_file(&log).expect("it is there");
}

/// A card that is lost ends what was under way with an error; read again, it goes on where it was.
#[test]
fn a_lost_card_leaves_the_processor() {
    const TEST: &str = "a_lost_card_leaves_the_processor";
    if skips_card() {
        return;
    }
    let Ok(part) = std::env::var("CUSIM_PART") else {
        // In the prompt, between layers, in the head of a step, later.
        let cases = [
            ("2.0", "3", "0"),
            ("2.0", "70", "0"),
            ("2.0", "150", "0"),
            ("0.75", "40", "0"),
            ("0.75", "111", "0"),
            ("0.75", "40", "1"),
            ("0.75", "111", "1"),
        ];
        for (part, lost, passes) in cases {
            let lost = child(TEST, &[("CUSIM_PART", part), ("CUSIM_LOST", lost), ("CUSIM_PASSES", passes)]);
            assert!(lost.as_ref().is_none_or(|(passed, _)| *passed), "{lost:?}");
        }
        return;
    };
    let passes = std::env::var("CUSIM_PASSES").is_ok_and(|passes| passes == "1");
    let passage = if passes { Passage::From(1) } else { Passage::Never };
    let (mut engine, wanted, tokens) = placed_with(part.parse().expect("a number"), passage);
    let sequence = engine.open().expect("there is room");
    let other = engine.open().expect("there is room");
    let begun = engine.step(&[Chunk { sequence: other, tokens: &[1] }]);
    let mut history = PROMPTS[0].to_vec();
    let error = loop {
        if let Err(error) = begun {
            break error;
        }
        let unread = &history[engine.length(sequence)..];
        let rows = unread.len();
        let result = engine.step(&[Chunk { sequence, tokens: unread }]);
        match result.and_then(|()| engine.try_logits(&[rows - 1]).map(|_| ())) {
            Ok(()) => history.push(7),
            Err(error) => break error,
        }
        assert!(history.len() < 60, "it was never lost");
    };
    assert!(error.to_string().contains("the card failed"), "{error}");
    assert!(matches!(error, StepError::Card(_)) && engine.placed().is_none(), "{error}");
    assert!(engine.try_logits(&[0]).is_err(), "there are none");
    if engine.length(other) > 0 {
        assert!(engine.must_restart(other, 2));
        assert!(matches!(
            engine.step(&[Chunk { sequence: other, tokens: &[2] }]),
            Err(StepError::MustRestart(_))
        ));
    }
    for sequence in [sequence, other] {
        engine.close(sequence);
    }
    let (logits, same) = replies(&mut engine, PROMPTS, 4);
    assert!(logits == wanted && same == tokens, "the processor computes as it does alone");
}

/// The texts are those of the sources: nobody needs CUDA to see it.
#[test]
fn texts_were_made_of_these_sources() {
    let lock = fs::read_to_string(repository("core/src/cuda/kernels.lock")).expect("kernels.lock is there");
    let mut found: Vec<String> =
        kernel_files(&repository("core/src")).iter().map(|path| hashed(path)).collect();
    found.sort();
    let mut locked: Vec<String> =
        lock.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    locked.sort();
    let wrong: Vec<_> = found.iter().filter(|line| !locked.contains(line)).collect();
    let gone: Vec<_> = locked.iter().filter(|line| !found.contains(line)).collect();
    assert!(
        wrong.is_empty() && gone.is_empty(),
        "kernels and their texts are not of one making: run `cargo xtask ptx`\nnow: {wrong:#?}\nlocked: {gone:#?}"
    );
}

/// A line of the lock.
fn hashed(path: &Path) -> String {
    let bytes = fs::read(path).expect("a kernel can be read");
    let name =
        path.strip_prefix(repository("")).expect("below the root").to_string_lossy().replace('\\', "/");
    format!("{:016x} {name}", xxhash_rust::xxh3::xxh3_64(&bytes))
}

fn kernel_files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for path in
            fs::read_dir(&folder).expect("a folder of ours").map(|entry| entry.expect("an entry").path())
        {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|kind| kind == "cu" || kind == "cuh" || kind == "ptx") {
                found.push(path);
            }
        }
    }
    found
}
