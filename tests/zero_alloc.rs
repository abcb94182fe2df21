//! After loading, nothing allocates: not the decoder, not the sampler, not the detokenizer, on no thread; nor does
//! training after its first step.
//!
//! What is counted: every call of the program's global allocator (allocations, reallocations, frees), whichever thread
//! makes it, the workers of the pool included. And on Linux the number of mappings of the process, because a mapping
//! that is made or given back does not pass the allocator. What is not counted: the checkpoint's page faults, and
//! what the system keeps for itself.
//!
//! What stays on the heap after loading and after the beginning of a generation is measured as well: it is bounded by
//! what the comments below add up.
//!
//! It has no test harness: the harness has threads of its own that allocate when they like.

#[path = "house/counting.rs"]
mod counting;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::adapter::Guest;
use bantam_model::detokenizer::ByteTable;
use bantam_model::engine::{Chunk, Engine, StepError};
use bantam_model::formats::on_load::way;
use bantam_model::generate::{Finish, Generation, Turn};
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags};
use bantam_model::gguf::restore::Restored;
use bantam_model::native::{Native, Store};
use bantam_model::placement::{Action, Event, Habits, HotExperts, Ticket};
use bantam_model::plan::Options;
use bantam_model::reply::reader::Reader;
use bantam_model::source::Source;
use bantam_model::tokenizer::Tokenizer;
use bantam_tests::{Noise, model_folder, open, repository, trained};
use bantam_train::optimizer::{AdamW, Group, Muon, Optimizer, Rule, Variant, clip};
use bantam_train::step::outline::{Load, Measured, Outline};
use bantam_train::step::parameters::Parameter;
use bantam_train::step::{Batch, Training};
use counting::{ALIVE, PEAK, counters};

/// Allocations, frees and mappings so far. Reading the mappings allocates, so the counters are read on the inside.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    allocations: usize,
    frees: usize,
    mappings: usize,
}

/// Lines of the process's map; 0 where the system has none to show.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").map_or(0, |text| text.lines().count())
}

/// Runs `work`, which must leave all counts as they are.
fn check(what: &str, work: impl FnOnce()) {
    let maps = mappings();
    let (allocations, frees) = counters();
    work();
    let after = counters();
    let found = Counts {
        allocations: after.0 - allocations,
        frees: after.1 - frees,
        mappings: mappings().abs_diff(maps),
    };
    println!(
        "{what}: {} allocations, {} frees on all threads, {} mappings more or fewer ({allocations} allocations before)",
        found.allocations, found.frees, found.mappings
    );
    let none = Counts { allocations: 0, frees: 0, mappings: 0 };
    assert_eq!(found, none, "{what}");
    // If loading had counted nothing, the counter would not be the program's allocator, and zeros would mean nothing.
    assert!(allocations > 0 && frees > 0, "{what}: the counter counts nothing");
}

/// What stays on the heap of `make`, and is at most `most` bytes: no buffer of a run may hide there.
fn check_heap<T>(what: &str, most: usize, make: impl FnOnce() -> T) -> T {
    let before = ALIVE.load(SeqCst);
    let made = make();
    let stays = ALIVE.load(SeqCst) - before;
    println!("{what}: {stays} bytes stay on the heap, at most {most} may");
    assert!(stays <= most, "{what}: {stays} bytes stay on the heap, more than {most}");
    made
}

/// The policy that moves experts: tokens, copies, a smaller budget and a lost card.
fn experts() {
    let mut policy = HotExperts::new(4, 16, 20, Habits::default());
    let mut under_way: Vec<Ticket> = Vec::with_capacity(20);
    let mut copies = 0;
    check("experts, 2000 tokens", || {
        policy.fill();
        for token in 0..2000u32 {
            for layer in 0..4 {
                let first = (token / 50 + token % 3) % 15;
                policy.step(Event::Routed { layer, experts: &[first as u16, 15] });
                policy.step(Event::Computed { layer });
            }
            policy.step(Event::TokenEnded);
            for action in policy.actions() {
                if let Action::Upload { ticket, .. } = action {
                    under_way.push(ticket);
                    copies += 1;
                }
            }
            under_way.drain(..).for_each(|ticket| policy.step(Event::Uploaded(ticket)));
            match token {
                1000 => policy.step(Event::Budget(7)),
                1500 => policy.step(Event::Lost),
                1501 => policy.step(Event::Budget(20)),
                _ => {}
            }
        }
    });
    assert!(copies > 100, "{copies} copies: nothing was tried");
}

fn options(kv: KvKind, precision: Precision, int8: bool) -> Options {
    let quantization = way("int8").filter(|_| int8);
    Options {
        context: 256,
        sequences: 3,
        chunk: 64,
        logits_rows: 3,
        kv,
        precision,
        quantization,
        head: None,
        cache_positions: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    }
}

fn text_of(folder: &Path) -> (Tokenizer, Arc<ByteTable>) {
    let read = |name: &str| std::fs::read(folder.join(name)).expect("the model has a tokenizer");
    let (config, map) = (read("tokenizer_config.json"), read("special_tokens_map.json"));
    let tokenizer = Tokenizer::from_bytes(&read("tokenizer.json"), Some(&config), Some(&map)).expect("sound");
    let table = Arc::new(ByteTable::new(&tokenizer).expect("sound"));
    (tokenizer, table)
}

/// A hundred tokens of text with everything on that a request can ask for.
fn generated_tokens(what: &str, engine: &mut Engine, flags: &GenerationFlags) {
    let (tokenizer, table) = text_of(&trained());
    let settings = GenerationDefaults::of_model(None)
        .and_then(|defaults| defaults.settings(flags, EosSources::default()))
        .expect("sound flags");
    let prompt = tokenizer.encode("The history of the city", true).expect("plain text");
    // What the plan says, and some kilobytes of text held back and stop strings.
    let most = engine.plan().generation_bytes + 16384;
    let mut generation = check_heap(&format!("{what}: one generation"), most, || {
        Generation::begin(engine, Some(Reader::plain(table)), settings, &prompt).expect("a prompt that fits")
    });
    generation.next(engine).expect("a warm token");
    let mut text_bytes = 0;
    let mut finish = None;
    check(&format!("{what}: 100 generated tokens, the last included"), || {
        while finish.is_none() {
            let token = generation.next(engine).expect("a token").expect("not the end yet");
            text_bytes += token.text.len();
            finish = token.finish;
        }
    });
    assert_eq!((generation.ids().len(), finish), (101, Some(Finish::Length)));
    assert!(text_bytes > 100, "only {text_bytes} bytes of text came out");
    generation.end(engine);
}

/// Replies in channels, sound and broken ones: the model knows nothing of them, so its dice are loaded with the marks
/// of another one's vocabulary.
fn replies_in_channels(engine: &mut Engine) {
    let (tokenizer, table) = text_of(&model_folder("gpt_oss-bf16"));
    let marks = ["channel", "message", "end", "start", "constrain", "call", "return"];
    let marks = marks.map(|name| tokenizer.id(&format!("<|{name}|>")).expect("a mark"));
    let flags = GenerationFlags {
        max_new_tokens: Some(201),
        temperature: Some(1.5),
        logit_bias: marks.into_iter().map(|id| (id, 14.0)).chain((20..400).map(|id| (id, 7.0))).collect(),
        seed: Some(7),
        stop: vec!["\u{1F9FF}\u{1F9FF} the".to_owned(), "\u{1}".to_owned()],
        ignore_eos: true,
        ..GenerationFlags::default()
    };
    let settings = GenerationDefaults::of_model(None)
        .and_then(|defaults| defaults.settings(&flags, EosSources::default()))
        .expect("sound flags");
    // Beside what all generations have, the words of headers, each as long as a header may be, and the long bias.
    let most = engine.plan().generation_bytes + 2 * 16384;
    let mut generation = check_heap("one generation in channels", most, || {
        let reader = Reader::for_chat(&tokenizer, table);
        Generation::begin(engine, Some(reader), settings, &marks).expect("a prompt that fits")
    });
    generation.next(engine).expect("a warm token");
    let (mut messages, mut bytes, mut finish) = (0, 0, None);
    check("200 tokens in channels", || {
        while finish.is_none() {
            let token = generation.next(engine).expect("a token").expect("not the end yet");
            messages += usize::from(token.part.is_some_and(|part| part.begins));
            bytes += token.text.len();
            finish = token.finish;
        }
    });
    println!("{messages} messages with {bytes} bytes of text");
    assert!(messages > 5 && bytes > 20, "{messages} messages with {bytes} bytes of text");
    generation.end(engine);
}

/// Twenty steps over three sequences, and a prefill of several chunks.
fn batched_steps(what: &str, engine: &mut Engine) {
    let vocab = engine.spec().vocab;
    let sequences = [(); 3].map(|()| engine.open().expect("a free sequence"));
    let tokens = Noise::new(5).tokens(200, vocab);
    let step = |engine: &mut Engine, at: usize, count: usize| {
        let chunks = sequences.map(|sequence| Chunk { sequence, tokens: &tokens[at..at + count] });
        engine.step(&chunks).expect("room");
        let rows = [count - 1, 2 * count - 1, 3 * count - 1];
        assert!(engine.logits(&rows).iter().all(|logit| logit.is_finite()));
    };
    step(engine, 0, 1);
    check(&format!("{what}: 20 steps of three sequences"), || {
        (0..20).for_each(|i| step(engine, 3 * i, 1 + i % 3));
    });
    check(&format!("{what}: a sequence closed, opened and read in chunks"), || {
        engine.close(sequences[1]);
        let sequence = engine.open().expect("the one just closed");
        engine
            .prefill::<StepError>(sequence, &tokens, |engine, _, rows| {
                engine.logits(&[rows - 1]);
                Ok(())
            })
            .expect("room");
        engine.rewind(sequence, 10);
    });
    sequences.into_iter().for_each(|sequence| engine.close(sequence));
}

/// Steps of a model and of one with an adapter that came to it, in turns.
fn steps_with_a_guest(model: &str, adapter: &str, options: Options) {
    let options = Options { adapter_bytes: 8 << 20, ..options };
    let source = Source::open(&model_folder(model)).expect("the model opens");
    let mut engine = source.load(options, Cpu::detect(), 3, None, &mut |_| {}).expect("the model loads");
    let folder = repository("tests/goldens/lora-made").join(adapter);
    let guest = Guest::open(&folder, &source, options, Cpu::detect()).expect("the adapter opens");
    let base = engine.open_for(100).expect("room");
    let with = engine.open_with(100, &guest).expect("room");
    engine.seat(with).expect("a sound adapter");
    let tokens = Noise::new(5).tokens(100, source.spec.vocab);
    let step = |engine: &mut Engine, sequence: usize, at: usize, count: usize| {
        engine.step(&[Chunk { sequence, tokens: &tokens[at..at + count] }]).expect("room");
        assert!(engine.logits(&[count - 1]).iter().all(|logit| logit.is_finite()));
    };
    [base, with].into_iter().for_each(|sequence| step(&mut engine, sequence, 0, 1));
    check(&format!("{adapter}: 20 steps of the model, and 20 with an adapter"), || {
        for i in 0..20 {
            [base, with].into_iter().for_each(|sequence| step(&mut engine, sequence, 2 * i, 1 + i % 3));
        }
    });
    check(&format!("{adapter}: a sequence with it closed, and another opened"), || {
        engine.close(with);
        let with = engine.open_with(100, &guest).expect("room");
        engine.seat(with).expect("it is there");
        step(&mut engine, with, 0, 10);
    });
}

const TURNS: usize = 8;

/// Turns in one engine that come one after another, their prompts cut beside the tokens of those before.
struct Crowd {
    turns: Vec<Turn>,
    arrived: usize,
    sequences: [Option<usize>; TURNS],
    noise: Noise,
    most_at_once: usize,
    text_bytes: usize,
}

impl Crowd {
    fn step(&mut self, engine: &mut Engine) {
        if self.arrived < TURNS && self.noise.below(2) == 0 {
            self.sequences[self.arrived] = engine.open_for(self.turns[self.arrived].positions_max());
            self.arrived += 1;
        }
        let (mut chunks, mut count) = ([Chunk { sequence: 0, tokens: &[] }; TURNS], 0);
        // Where a history ends with its chunk: the chunk's last row, and whose logits it has.
        let (mut rows, mut whose, mut asked, mut row) = ([0; TURNS], [0; TURNS], 0, 0);
        for (i, turn) in self.turns.iter().enumerate() {
            let Some(sequence) = self.sequences[i] else { continue };
            let (length, history) = (engine.length(sequence), turn.history());
            let left = engine.plan().options.chunk - row;
            let end = history.len().min(length + (1 + self.noise.below(20)).min(left));
            if end == length {
                continue;
            }
            chunks[count] = Chunk { sequence, tokens: &history[length..end] };
            count += 1;
            row += end - length;
            if end == history.len() {
                (rows[asked], whose[asked]) = (row - 1, i);
                asked += 1;
            }
        }
        engine.step(&chunks[..count]).expect("the step fits");
        self.most_at_once = self.most_at_once.max(count);
        if asked > 0 {
            let vocab = engine.spec().vocab;
            let logits = engine.logits(&rows[..asked]).chunks_exact_mut(vocab);
            for (logits, &i) in logits.zip(&whose[..asked]) {
                self.text_bytes += self.turns[i].choose(logits).expect("a token").text.len();
            }
        }
        for (turn, sequence) in self.turns.iter().zip(&mut self.sequences) {
            if turn.is_over()
                && let Some(sequence) = sequence.take()
            {
                engine.close(sequence);
            }
        }
    }
}

/// Making a turn may allocate: a daemon does it on other threads. Choosing its tokens may not.
fn turns_among_others(what: &str, engine: &mut Engine, flags: &GenerationFlags) {
    let (tokenizer, table) = text_of(&trained());
    let mut noise = Noise::new(11);
    let words = tokenizer.encode("The history of the city, and of the river", true).expect("plain text");
    let prompts = [(); TURNS].map(|()| words.repeat(1 + noise.below(4)));
    let settings = |i: usize| {
        let (max_new_tokens, seed) = (Some(20 + 3 * i), Some(i as u64));
        let flags = GenerationFlags { max_new_tokens, seed, ..flags.clone() };
        let defaults = GenerationDefaults::of_model(None).expect("the program's");
        defaults.settings(&flags, EosSources::default()).expect("sound flags")
    };
    let turn = |i: usize| {
        let alternatives = [None, Some(0), Some(5), Some(64)][i % 4];
        let reader = Some(Reader::plain(table.clone()));
        Turn::new(engine.limits(), reader, settings(i), &prompts[i], alternatives)
            .expect("a prompt that fits")
    };
    let turns = (0..TURNS).map(turn).collect();
    let (sequences, arrived) = ([None; TURNS], 0);
    let mut crowd = Crowd { turns, arrived, sequences, noise, most_at_once: 0, text_bytes: 0 };
    check(&format!("{what}: {TURNS} turns at once"), || {
        while !crowd.turns.iter().all(Turn::is_over) {
            crowd.step(engine);
        }
    });
    let (at_once, bytes) = (crowd.most_at_once, crowd.text_bytes);
    assert!(at_once >= 4 && bytes > 100, "{at_once} at once, {bytes} bytes of text");
    for (i, turn) in crowd.turns.iter().enumerate() {
        let alone = Generation::begin(engine, None, settings(i), &prompts[i]);
        let mut alone = alone.expect("a prompt that fits");
        while alone.next(engine).expect("a token").is_some() {}
        assert_eq!(turn.ids(), alone.ids(), "{what}: turn {i} beside others and alone");
        alone.end(engine);
    }
}

/// Weights that are a native file's.
fn mapped(options: Options) {
    let folder = std::env::temp_dir().join(format!("bantam-zero-alloc-{}", std::process::id()));
    let source = Source::open(&trained()).expect("the model opens");
    let plan = source.plan(options, Cpu::detect()).expect("the model has a plan");
    let native = Native::of(&source, &plan, &Store::new(folder.clone())).expect("it is worth a file");
    let load =
        || source.load(options, Cpu::detect(), 2, Some(&native), &mut |_| {}).expect("the model loads");
    source.keep(&load(), &native, &mut |_| {}).expect("the native file is written");
    let mut engine = load();
    assert!(engine.is_mapped());
    batched_steps("mapped from a native file", &mut engine);
    drop(engine);
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}

/// GGUF files are written out within the memory that is said beforehand.
fn restoring() {
    let folder = std::env::temp_dir().join(format!("bantam-restored-{}", std::process::id()));
    let families = ["gpt_oss", "mixtral", "llama", "phi3", "gpt_neox"];
    let families = families.map(|family| format!("quant-made/gguf-families/model-{family}.gguf"));
    let blocks = ["Q4_K", "TQ2_0"].map(|kind| format!("quant/gguf-llama/model-{kind}.gguf"));
    for file in families.iter().chain(&blocks) {
        let source = Source::open(&repository(&format!("tests/goldens/{file}"))).expect("the model opens");
        std::fs::create_dir_all(&folder).expect("a folder of our own");
        let before = ALIVE.load(SeqCst);
        PEAK.store(before, SeqCst);
        let restoring = Restored::new(&source).expect("it can be written out").expect("it is a GGUF file");
        restoring.write(&folder, 1 << 40, &mut |_| {}).expect("there is room");
        let (found, said) = (PEAK.load(SeqCst) - before, restoring.memory_bytes() as usize);
        println!("{file}: at most {found} bytes on the heap while it is written out, {said} were said");
        assert!(found <= said && said < 3 * found, "{file}: {found}, not {said}");
        std::fs::remove_dir_all(&folder).expect("it is ours");
    }
}

fn main() {
    experts();
    training();
    restoring();
    let everything = GenerationFlags {
        max_new_tokens: Some(101),
        temperature: Some(1.3),
        top_k: Some(200),
        top_p: Some(0.98),
        min_p: Some(0.001),
        typical_p: Some(0.99),
        repetition_penalty: Some(1.1),
        presence_penalty: Some(0.1),
        frequency_penalty: Some(0.1),
        no_repeat_ngram: Some(6),
        logit_bias: vec![(7, -1.0)],
        seed: Some(3),
        // Neither can come: the first is no text of this model, the second has a byte that it never makes.
        stop: vec!["\u{1F9FF}\u{1F9FF} the".to_owned(), "\u{1}".to_owned()],
        ignore_eos: true,
        ..GenerationFlags::default()
    };
    let greedy = GenerationFlags {
        max_new_tokens: Some(101),
        temperature: Some(0.0),
        ignore_eos: true,
        ..GenerationFlags::default()
    };
    let runs = [
        ("exact, f32 cache", options(KvKind::F32, Precision::Exact, false)),
        ("fast, f16 cache", options(KvKind::F16, Precision::Fast, false)),
        ("fast, int8 cache and weights", options(KvKind::Int8, Precision::Fast, true)),
    ];
    for (what, options) in runs {
        let mut engine = loaded(what, "trained", options, 2);
        generated_tokens(what, &mut engine, &everything);
        generated_tokens(&format!("{what}, greedy"), &mut engine, &greedy);
        batched_steps(what, &mut engine);
        replies_in_channels(&mut engine);
        let options = Options { sequences: 8, logits_rows: 8, cache_positions: Some(8 * 128), ..options };
        turns_among_others(what, &mut loaded(what, "trained", options, 2), &everything);
    }
    mapped(options(KvKind::F16, Precision::Fast, true));
    // A parallel residual, layer norms, fused inputs with biases.
    let options = options(KvKind::F32, Precision::Exact, false);
    for model in ["gpt_neox", "gemma3", "gpt_oss-bf16"] {
        batched_steps(model, &mut loaded(model, model, options, 3));
    }
    for (adapter, model) in [("dora-embed-gemma2", "gemma2"), ("experts-mixtral", "mixtral")] {
        batched_steps(adapter, &mut adapted(model, adapter, options));
        steps_with_a_guest(model, adapter, options);
    }
}

/// What names, plans and lists of a small model take on the heap, in training.
const LISTS: usize = 200_000;

/// The first step makes all buffers of training; those behind it, the optimizer's included, allocate nothing.
/// And what it made is what was said beforehand.
fn training_steps(what: &str, outline: &Outline, load: Load, make: impl FnOnce() -> Training) {
    let before = ALIVE.load(SeqCst);
    let mut training = make();
    let (tokens, documents) = ((1..60).collect::<Vec<u32>>(), [20, 39]);
    let labels: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    let rule = Rule::AdamW(AdamW { betas: [0.9, 0.999], epsilon: 1e-8, is_early: false });
    let muon = Muon { variant: Variant::Moonlight, momentum: 0.95, nesterov: true, iterations: 5 };
    let group = |parameter: &Parameter| {
        let rule = if parameter.matrices().is_some() { Rule::Muon(muon) } else { rule };
        Group { rule, rate: 1e-3, decay: 0.1 }
    };
    let mut optimizer = Optimizer::new(&training, group);
    // A batch that is only measured may be the larger one.
    let (tokens, documents) = ((1..151).collect::<Vec<u32>>(), [70, 80]);
    let labels: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    let measured = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    let mut step = || {
        training.clear();
        training.loss(&measured).expect("a sound batch");
        training.step(&batch, 0.1).expect("a sound batch");
        clip(&mut training, 1.0);
        optimizer.step(&mut training, 1.0);
    };
    step();
    let measured = Measured { tokens: 150, labelled: 150, longest: 80 };
    let load = Load { tokens: 59, labelled: 59, longest: 39, threads: 3, measured, ..load };
    let parts = outline.memory(&load);
    let said: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let optimizer_bytes: u64 = Optimizer::bytes_for(outline.parameters(), 3, group).iter().sum();
    let said = (said + optimizer_bytes) as usize - outline.mapped_bytes();
    let found = ALIVE.load(SeqCst) - before;
    println!("{what}: {found} bytes stay on the heap, {said} were said: {parts:?}");
    assert!((said..said + LISTS).contains(&found), "{what}: {found}, not {said}");
    check(&format!("{what}: 3 steps of training"), || (0..3).for_each(|_| step()));
}

/// All weights of a mixture; an adapter with lengths.
fn training() {
    let open = |model: &str| Source::open(&model_folder(model)).expect("the model opens");
    let cpu = Cpu::detect();
    for model in ["gpt_oss-bf16", "gpt_neox", "gemma2"] {
        let source = open(model);
        let outline = Outline::some(&source, &|_| true, cpu).expect("it has a plan");
        let full = || Training::full(&source, cpu, 3).expect("it can be trained");
        training_steps(model, &outline, Load::default(), full);
    }
    for model in ["gpt_oss-bf16", "gemma2"] {
        let source = open(model);
        let outline = Outline::some(&source, &|_| true, cpu).expect("it has a plan");
        let load = Load { layers: true, ..Load::default() };
        training_steps(&format!("{model} with kept layers"), &outline, load, || {
            let mut training = Training::full(&source, cpu, 3).expect("it can be trained");
            training.keep_layers();
            training
        });
    }
    let source = open("gpt_neox");
    let outline = Outline::some(&source, &|_| true, cpu).expect("it has a plan");
    let load = Load { halves: true, short_gradients: true, ..Load::default() };
    training_steps("gpt_neox with short gradients", &outline, load, || {
        let mut training = Training::full(&source, cpu, 3).expect("it can be trained");
        training.in_halves();
        training.shorten_gradients();
        training
    });
    let adapter = repository("tests/goldens/lora/lora-dora-llama");
    let source = open("llama-tied").adapted(&adapter).expect("the adapter opens");
    let nested = way("bnb-4bit");
    let opened = source.adapter.as_deref().expect("it was opened");
    let outline = Outline::adapter(&source, opened, nested, cpu).expect("it has a plan");
    let load = Load { halves: true, drops: true, ..Load::default() };
    training_steps("lora-dora-llama over four bits", &outline, load, || {
        let mut training = Training::adapter(&source, nested, cpu, 3).expect("it can be trained");
        training.drop_inputs(0.1, 42);
        training.in_halves();
        training
    });
}

/// An engine with an adapter beside its model: every product has two more.
fn adapted(model: &str, adapter: &str, options: Options) -> Engine {
    let source = Source::open(&model_folder(model)).expect("the model opens");
    let source =
        source.adapted(&repository("tests/goldens/lora-made").join(adapter)).expect("the adapter opens");
    source.load(options, Cpu::detect(), 3, None, &mut |_| {}).expect("the model loads")
}

/// An engine, of which the heap holds tables of offsets and names of tensors: the buffers are in the plan's regions.
fn loaded(what: &str, model: &str, options: Options, threads: usize) -> Engine {
    let folder = if model == "trained" { trained() } else { model_folder(model) };
    let (spec, checkpoint) = open(&folder);
    // Some 60 tensors of 450 bytes each, layer by layer; a page number takes four bytes, a token of a chunk too.
    let tensors = checkpoint.tensors().len();
    // A matrix has room for what an adapter adds to it, whether there is one or not.
    let most = 8192 + 1200 * tensors + 4 * options.chunk;
    let make = || Engine::load(spec, &checkpoint, options, Cpu::detect(), threads).expect("the model loads");
    let engine = check_heap(&format!("{what}: loading"), most, make);
    assert_eq!(engine.threads(), threads);
    engine
}
