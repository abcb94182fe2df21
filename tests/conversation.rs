//! A sequence that is kept between generations: only what is new is read, and the answers are those of a cold start.

use std::cell::Cell;

use bantam_core::Cpu;
use bantam_model::engine::{Chunk, Engine, StepError};
use bantam_model::generate::{GenerateError, Generation, Held};
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags, GenerationSettings};
use bantam_model::plan::Options;
use bantam_model::spec::ModelSpec;
use bantam_tests::{Noise, load, model_folder, open, options, trained};

fn settings() -> GenerationSettings {
    let flags = GenerationFlags {
        max_new_tokens: Some(12),
        seed: Some(7),
        ignore_eos: true,
        ..GenerationFlags::default()
    };
    GenerationDefaults::default().settings(&flags, EosSources::default()).expect("the settings are sound")
}

/// The answer, and how much of the prompt was there already.
fn warm(engine: &mut Engine, held: &mut Held, prompt: &[u32], tokens: usize) -> (Vec<u32>, usize) {
    let begun = Generation::begin_in(engine, held, None, settings(), prompt, &|| false);
    let mut generation = begun.expect("the prompt fits");
    for _ in 0..tokens {
        generation.next(engine).expect("the context has room");
    }
    let answer = generation.ids().to_vec();
    let reused = generation.reused_tokens();
    generation.leave(engine, held);
    (answer, reused)
}

fn cold(prompt: &[u32]) -> Vec<u32> {
    answer(&mut load(&trained(), options(), Cpu::detect(), 1), prompt)
}

/// The answer in a new sequence.
fn answer(engine: &mut Engine, prompt: &[u32]) -> Vec<u32> {
    let mut generation = Generation::begin(engine, None, settings(), prompt).expect("the prompt fits");
    while generation.next(engine).expect("the context has room").is_some() {}
    let answer = generation.ids().to_vec();
    generation.end(engine);
    answer
}

#[test]
fn a_kept_sequence_answers_as_a_new_one_and_reads_only_what_is_new() {
    let mut engine = load(&trained(), options(), Cpu::detect(), 2);
    let mut noise = Noise::new(3);
    let mut held = Held::open(&mut engine).expect("a sequence is free");
    let first = noise.tokens(70, 4096);
    let (answer, reused) = warm(&mut engine, &mut held, &first, 12);
    assert_eq!((&answer, reused), (&cold(&first), 0));

    // The last token that was chosen has not been read.
    let second = [&first[..], &answer, &noise.tokens(20, 4096)].concat();
    let (answer, reused) = warm(&mut engine, &mut held, &second, 12);
    assert_eq!((&answer, reused), (&cold(&second), first.len() + 11));

    // Cut short, and then something else is asked from the middle on.
    let third = [&first[..40], &noise.tokens(30, 4096)].concat();
    let (part, reused) = warm(&mut engine, &mut held, &third, 5);
    assert_eq!((&part[..], reused), (&cold(&third)[..5], 40));

    // The same again: one token is read for its logits.
    let (answer, reused) = warm(&mut engine, &mut held, &third, 12);
    assert_eq!((answer, reused), (cold(&third), third.len() - 1));
}

#[test]
fn a_prompt_that_is_stopped_or_too_long_leaves_a_sequence_that_can_go_on() {
    let mut engine = load(&trained(), options(), Cpu::detect(), 2);
    let mut noise = Noise::new(5);
    let mut held = Held::open(&mut engine).expect("a sequence is free");
    let prompt = noise.tokens(200, 4096);
    let at_once = Generation::begin_in(&mut engine, &mut held, None, settings(), &prompt, &|| true);
    assert!(matches!(at_once, Err(GenerateError::Stopped)) && held.tokens().is_empty());
    // Every layer asks: this stops in the middle of the second chunk.
    let (asked, layers) = (Cell::new(0), engine.spec().layers.len());
    let is_stopped = || asked.replace(asked.get() + 1) > layers + 2;
    let stopped = Generation::begin_in(&mut engine, &mut held, None, settings(), &prompt, &is_stopped);
    assert!(matches!(stopped, Err(GenerateError::Stopped)));
    assert_eq!(held.tokens(), &prompt[..128], "one chunk was read");
    let long = noise.tokens(257, 4096);
    let refused = Generation::begin_in(&mut engine, &mut held, None, settings(), &long, &|| false);
    assert!(matches!(refused, Err(GenerateError::Step(_))));
    assert_eq!(warm(&mut engine, &mut held, &prompt, 12).0, cold(&prompt));
}

/// A model with one rotary table up to 64 positions, and another beyond.
fn two_tables() -> Engine {
    let folder = model_folder("phi3");
    let config = std::fs::read_to_string(folder.join("config.json")).expect("the golden has a config.json");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("it is JSON");
    let number = |key: &str| config[key].as_u64().expect("a number") as usize;
    let half = number("hidden_size") / number("num_attention_heads") / 2;
    config["original_max_position_embeddings"] = 64.into();
    config["rope_scaling"] = serde_json::json!({
        "type": "longrope", "short_factor": vec![1.0; half], "long_factor": vec![4.0; half],
    });
    let spec = ModelSpec::parse(config.to_string().as_bytes()).expect("the configuration is sound");
    let options = Options { sequences: 2, ..options() };
    let (_, checkpoint) = open(&folder);
    let engine = Engine::load(spec, &checkpoint, options, Cpu::detect(), 1);
    engine.expect("the golden loads")
}

#[test]
fn a_sequence_that_outgrows_its_rotary_tables_is_read_anew() {
    let mut engine = two_tables();
    let long = Noise::new(9).tokens(84, engine.spec().vocab);
    let mut held = Held::open(&mut engine).expect("a sequence is free");
    for (tokens, known) in [(40, 0), (50, 40), (84, 0), (40, 0)] {
        let prompt = &long[..tokens];
        // Few tokens, so that the border at 64 is not passed while the answer is written.
        let (found, reused) = warm(&mut engine, &mut held, prompt, 4);
        assert_eq!((&found[..], reused), (&answer(&mut engine, prompt)[..4], known), "{tokens} tokens");
    }
}

#[test]
fn a_step_that_outgrows_rotary_tables_is_refused_and_the_others_go_on() {
    let mut engine = two_tables();
    let tokens = Noise::new(4).tokens(80, engine.spec().vocab);
    let mut alone = |length: usize| {
        let sequence = engine.open().expect("a sequence is free");
        engine.prefill::<StepError>(sequence, &tokens[..length], |_, _, _| Ok(())).expect("there is room");
        let logits = engine.logits(&[length - 1]).to_vec();
        engine.close(sequence);
        logits
    };
    let (long, short) = (alone(80), alone(12));
    let [first, second] = [(); 2].map(|()| engine.open().expect("a sequence is free"));
    let chunk = |sequence, from: usize, to: usize| Chunk { sequence, tokens: &tokens[from..to] };
    engine.step(&[chunk(first, 0, 60), chunk(second, 0, 10)]).expect("there is room");
    let refused = engine.step(&[chunk(first, 60, 70), chunk(second, 10, 11)]);
    assert_eq!(refused, Err(StepError::MustRestart(first)));
    assert_eq!((engine.length(first), engine.length(second)), (60, 10), "nothing has changed");
    assert!(engine.must_restart(first, 65) && !engine.must_restart(first, 64));
    assert!(!engine.must_restart(second, 11));
    assert_eq!(engine.announce(first, 80), refused);
    engine.rewind(first, 0);
    engine.announce(first, 80).expect("there is room");
    engine.step(&[chunk(first, 0, 50), chunk(second, 10, 11)]).expect("there is room");
    engine.step(&[chunk(second, 11, 12), chunk(first, 50, 80)]).expect("it was announced");
    assert_eq!(engine.logits(&[0, 30]), [short, long].concat());
}
