//! A sequence that is kept between generations: only what is new is read, and the answers are those of a cold start.

use bantam_core::Cpu;
use bantam_model::engine::Engine;
use bantam_model::generate::{GenerateError, Generation, Held};
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags, GenerationSettings};
use bantam_tests::{Noise, carried, load, options};

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
    let mut engine = load(&carried(), options(), Cpu::detect(), 1);
    let mut generation = Generation::begin(&mut engine, None, settings(), prompt).expect("the prompt fits");
    while generation.next(&mut engine).expect("the context has room").is_some() {}
    generation.ids().to_vec()
}

#[test]
fn a_kept_sequence_answers_as_a_new_one_and_reads_only_what_is_new() {
    let mut engine = load(&carried(), options(), Cpu::detect(), 2);
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
    let mut engine = load(&carried(), options(), Cpu::detect(), 2);
    let mut noise = Noise::new(5);
    let mut held = Held::open(&mut engine).expect("a sequence is free");
    let prompt = noise.tokens(200, 4096);
    let stopped = Generation::begin_in(&mut engine, &mut held, None, settings(), &prompt, &|| true);
    assert!(matches!(stopped, Err(GenerateError::Stopped)));
    assert_eq!(held.tokens(), &prompt[..128], "one chunk was read");
    let long = noise.tokens(257, 4096);
    let refused = Generation::begin_in(&mut engine, &mut held, None, settings(), &long, &|| false);
    assert!(matches!(refused, Err(GenerateError::Step(_))));
    assert_eq!(warm(&mut engine, &mut held, &prompt, 12).0, cold(&prompt));
}
