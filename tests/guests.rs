//! Adapters that come to a loaded model: every step gives the bits of the model that was loaded with the adapter,
//! whatever else comes and goes meanwhile; and what has no place is refused before anything is read.

use std::path::PathBuf;
use std::sync::Arc;

use bantam_core::{Cpu, Precision, Region};
use bantam_cuda::OneOf;
use bantam_cusim::is_child;
use bantam_model::adapter::Guest;
use bantam_model::card::Passage;
use bantam_model::engine::{Chunk, Engine, Placed, StepError};
use bantam_model::formats::on_load::way;
use bantam_model::plan::Options;
use bantam_model::source::Source;
use bantam_tests::{Noise, check_close, model_folder, options, repository};

/// Adapters that bring no whole tensors, by their folders, and the models that they are for.
const GUESTS: &[(&str, &str)] = &[
    ("lora/lora-llama", "llama-tied"),
    ("lora/lora-dora-llama", "llama-tied"),
    ("lora-made/head-llama", "llama-tied"),
    ("lora/lora-embed-llama", "llama-untied"),
    ("lora/lora-patterns-qwen2", "qwen2"),
    ("lora/lora-dora-rslora-gpt_neox", "gpt_neox"),
    ("lora-made/lora_bias-gpt_neox", "gpt_neox"),
    ("lora-made/experts-gpt_oss", "gpt_oss-bf16"),
    ("lora-made/some-mixtral", "mixtral"),
    ("lora-made/dora-embed-gemma2", "gemma2"),
    ("lora-made/fused-phi3", "phi3"),
];

const ROOM: usize = 8 << 20;

fn adapter(name: &str) -> PathBuf {
    repository("tests/goldens").join(name)
}

fn source(model: &str) -> Source {
    Source::open(&model_folder(model)).expect("the golden model opens")
}

fn load(source: &Source, options: Options) -> Engine {
    source.load(options, Cpu::detect(), 2, None, &mut |_| {}).expect("the golden loads")
}

fn guest(source: &Source, name: &str, options: Options) -> Arc<Guest> {
    Guest::open(&adapter(name), source, options, Cpu::detect()).expect("the golden adapter opens")
}

/// A sequence with an adapter that was read, or without one.
fn open(engine: &mut Engine, guest: Option<&Arc<Guest>>) -> Option<usize> {
    let sequence = match guest {
        Some(guest) => engine.open_with(100, guest)?,
        None => engine.open_for(100)?,
    };
    engine.seat(sequence).expect("the golden is sound");
    Some(sequence)
}

/// Logits of a prompt and of some greedy tokens behind it.
fn reply(engine: &mut Engine, guest: Option<&Arc<Guest>>, tokens: &[u32]) -> Vec<f32> {
    let sequence = open(engine, guest).expect("there is room");
    let (mut all, mut next) = (Vec::new(), tokens.to_vec());
    for _ in 0..4 {
        next = vec![step(engine, sequence, &next, &mut all)];
    }
    engine.close(sequence);
    all
}

/// Adds the last token's logits to `all`; the token that follows.
fn step(engine: &mut Engine, sequence: usize, tokens: &[u32], all: &mut Vec<f32>) -> u32 {
    engine.step(&[Chunk { sequence, tokens }]).expect("the step fits");
    let logits = engine.logits(&[tokens.len() - 1]);
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary");
    all.extend_from_slice(logits);
    best as u32
}

#[test]
fn an_adapter_that_comes_later_gives_the_bits_of_one_that_was_loaded_with_the_model() {
    for &(name, model) in GUESTS {
        let plain = source(model);
        let with = source(model).adapted(&adapter(name)).expect("the golden adapter opens");
        for (precision, quantization) in [(Precision::Exact, None), (Precision::Fast, way("int8"))] {
            let options = Options { precision, quantization, sequences: 2, ..options() };
            let with_room = Options { adapter_bytes: ROOM, ..options };
            let tokens = Noise::new(3).tokens(40, plain.spec.vocab);
            let wanted = reply(&mut load(&with, options), None, &tokens);
            let base = reply(&mut load(&plain, options), None, &tokens);
            let mut engine = load(&plain, with_room);
            // What nobody has written must not be read.
            [Region::Work, Region::Cache, Region::Adapters].into_iter().for_each(|of| engine.poison(of));
            let guest = guest(&plain, name, with_room);
            let what = format!("{name}, {precision:?}");
            assert!(guest.bytes() > 0 && engine.plan().bytes() >= engine.plan().weight_bytes + ROOM);
            assert_eq!(engine.memory_bytes(), engine.plan().bytes(), "{what}");
            assert_eq!(reply(&mut engine, None, &tokens), base, "{what}: the model alone, before");
            assert_eq!(reply(&mut engine, Some(&guest), &tokens), wanted, "{what}");
            assert_eq!(reply(&mut engine, None, &tokens), base, "{what}: the model alone, after");
            assert_ne!(wanted, base, "{what}: the adapter changes nothing");
        }
    }
}

/// Two adapters and the model alone, step by step in turns: each as it is alone.
#[test]
fn adapters_in_turns_do_not_see_one_another() {
    for (model, names) in [
        ("llama-tied", ["lora/lora-llama", "lora/lora-dora-llama"]),
        ("gpt_oss-bf16", ["lora-made/experts-gpt_oss", "lora/lora-gpt_oss"]),
    ] {
        let source = source(model);
        let options = Options { sequences: 3, adapter_bytes: ROOM, ..options() };
        let mut engine = load(&source, options);
        let guests = names.map(|name| guest(&source, name, options));
        let sets = [None, Some(&guests[0]), Some(&guests[1])];
        let prompts = [5, 6, 7].map(|seed| Noise::new(seed).tokens(30, source.spec.vocab));
        let alone = [0, 1, 2].map(|i| reply(&mut engine, sets[i], &prompts[i]));
        let sequences = sets.map(|guest| open(&mut engine, guest).expect("there is room"));
        let numbers = sequences.map(|sequence| engine.set_of(sequence));
        assert!(numbers[0] == 0 && numbers[1] != numbers[2] && numbers[1..].iter().all(|&n| n > 0));
        let (mut found, mut next) = ([const { Vec::new() }; 3], prompts.clone());
        for _ in 0..4 {
            for i in [1, 0, 2] {
                next[i] = vec![step(&mut engine, sequences[i], &next[i], &mut found[i])];
            }
        }
        assert_eq!(found, alone, "{model}");
        // One step is for one set.
        let chunks = [0, 1].map(|i| Chunk { sequence: sequences[i], tokens: &prompts[0][..1] });
        let before = sequences.map(|sequence| engine.length(sequence));
        assert_eq!(engine.step(&chunks), Err(StepError::Adapters));
        assert_eq!(sequences.map(|sequence| engine.length(sequence)), before);
        sequences.into_iter().for_each(|sequence| engine.close(sequence));
    }
}

/// A room for one and a half: who is used stays, who is not leaves, and comes back as it was.
#[test]
fn the_least_recently_used_adapter_leaves_for_another() {
    let source = source("llama-tied");
    // The same folder opened twice is two: its files may have changed meanwhile.
    let names = ["lora/lora-llama", "lora/lora-dora-llama", "lora/lora-llama"];
    let most = Options { sequences: 3, adapter_bytes: ROOM, ..options() };
    let bytes = names.map(|name| guest(&source, name, most).bytes());
    let room = bytes.into_iter().max().expect("three") * 3 / 2;
    assert!(bytes[0] + bytes[1] > room && bytes.iter().all(|&bytes| bytes <= room), "{bytes:?}");
    let options = Options { adapter_bytes: room, ..most };
    let (mut engine, mut wide) = (load(&source, options), load(&source, most));
    let guests = names.map(|name| guest(&source, name, options));
    let wides = names.map(|name| guest(&source, name, most));
    let tokens = Noise::new(4).tokens(20, source.spec.vocab);
    for round in 0..2 {
        for (guest, wide_guest) in guests.iter().zip(&wides) {
            let wanted = reply(&mut wide, Some(wide_guest), &tokens);
            assert_eq!(reply(&mut engine, Some(guest), &tokens), wanted, "round {round}");
            let there: Vec<_> = engine.guests().map(|seated| (seated.guest, seated.uses)).collect();
            assert!(there.len() == 1 && Arc::ptr_eq(&there[0].0, guest) && there[0].1 == 0);
        }
    }
    assert_eq!(wide.guests().count(), 3);
    let first = open(&mut engine, Some(&guests[0])).expect("there is room");
    let again = open(&mut engine, Some(&guests[0])).expect("it is there");
    assert_eq!(engine.open_with(10, &guests[1]), None, "the other is in use");
    let free = engine.free_positions();
    engine.close(first);
    assert_eq!(engine.open_with(10, &guests[1]), None, "still in use");
    engine.close(again);
    assert!(engine.free_positions() > free);
    let other = engine.open_with(10, &guests[1]).expect("nobody uses it");
    // Nobody has read it.
    let early = engine.step(&[Chunk { sequence: other, tokens: &tokens }]);
    assert!(matches!(early, Err(StepError::Adapters | StepError::ContextFull { .. })), "{early:?}");
    let early = engine.step(&[Chunk { sequence: other, tokens: &tokens[..2] }]);
    assert_eq!(early, Err(StepError::Adapters));
    engine.close(other);
    assert_eq!(engine.guests().count(), 0, "what was never read does not stay");
}

#[test]
fn what_has_no_place_is_refused_by_its_headers() {
    let refused = |model: &str, name: &str, adapter_bytes: usize| {
        let options = Options { adapter_bytes, ..options() };
        let error = Guest::open(&adapter(name), &source(model), options, Cpu::detect());
        error.expect_err("no place").to_string()
    };
    for (model, name, bytes, words) in [
        ("llama-untied", "lora/lora-modules_to_save-llama", ROOM, ["whole tensor", "bantam merge"]),
        ("mistral", "lora-made/saved-norms-mistral", ROOM, ["whole tensor", "--adapter"]),
        ("qwen2", "lora-made/bias-qwen2", ROOM, ["whole tensor", "k_proj.bias"]),
        ("llama-tied", "lora/lora-llama", 0, ["at most 0 bytes", "models-adapter-bytes"]),
        ("llama-tied", "lora/lora-llama", 64, ["at most 64 bytes", "models-adapter-bytes"]),
        ("gpt_neox", "lora/lora-llama", ROOM, ["expected a module that the model has", "lora-llama"]),
        ("llama-tied", "models/llama-tied", ROOM, ["adapter_config.json", "found"]),
    ] {
        let error = refused(model, name, bytes);
        println!("{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{name} over {model}: {error}");
    }
    let with = source("llama-tied").adapted(&adapter("lora/lora-llama")).expect("the golden adapter opens");
    let options = Options { adapter_bytes: ROOM, ..options() };
    let error = Guest::open(&adapter("lora/lora-llama"), &with, options, Cpu::detect());
    assert!(error.expect_err("it has one").to_string().contains("without an adapter of its own"));
}

/// Beside a card that has some of a model, or all of it and keeps steps, what an adapter adds is the processor's.
#[test]
fn an_adapter_beside_a_card_gives_the_processors_logits() {
    const TEST: &str = "an_adapter_beside_a_card_gives_the_processors_logits";
    if !is_child(TEST, &[]) {
        return;
    }
    for (model, name) in [
        ("llama-tied", "lora/lora-dora-llama"),
        ("gpt_neox", "lora/lora-dora-rslora-gpt_neox"),
        ("gpt_oss-bf16", "lora-made/experts-gpt_oss"),
        ("mixtral", "lora-made/some-mixtral"),
        ("gemma2", "lora-made/dora-embed-gemma2"),
    ] {
        let source = source(model);
        let sizes = Options { sequences: 2, chunk: 16, context: 100, logits_rows: 2, ..options() };
        let options = Options { adapter_bytes: ROOM, ..sizes };
        let tokens = Noise::new(6).tokens(12, source.spec.vocab);
        let mut engine = load(&source, options);
        let guest = guest(&source, name, options);
        let wanted = [None, Some(&guest)].map(|guest| reply(&mut engine, guest, &tokens));
        let whole = Placed::forecast(engine.plan(), usize::MAX).expect("it fits");
        let parts = whole.weight_bytes + whole.cache_bytes;
        for (part, passage) in
            [(1.0, Passage::Never), (0.6, Passage::Never), (0.6, Passage::From(3)), (0.3, Passage::Never)]
        {
            engine.set_passage(passage);
            let bytes = whole.bytes - whole.kept_bytes - parts + (part * parts as f64) as usize;
            let vram = if part < 1.0 { bytes } else { whole.bytes };
            let placed = engine.place(&OneOf(0), Some(vram as u64)).cloned().expect("some of it has room");
            assert_eq!((placed.is_whole, placed.kept_rows > 0), (part == 1.0, part == 1.0), "{placed:?}");
            for _ in 0..2 {
                for (guest, wanted) in [None, Some(&guest)].into_iter().zip(&wanted) {
                    let what = format!("{name}, {part} of it, {passage:?}, {}", guest.is_some());
                    check_close(&what, &reply(&mut engine, guest, &tokens), wanted);
                }
            }
        }
        // It goes on where the card is left in the middle of a reply.
        let sequence = open(&mut engine, Some(&guest)).expect("there is room");
        let (mut found, mut next) = (Vec::new(), tokens.clone());
        for at in 0..4 {
            if at == 2 {
                engine.leave_card();
            }
            next = vec![step(&mut engine, sequence, &next, &mut found)];
        }
        engine.close(sequence);
        check_close(&format!("{name}, the card is left"), &found, &wanted[1]);
    }
}
