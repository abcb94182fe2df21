//! Many sequences in one engine, as a daemon steps them: they arrive when they like, their prompts are cut anywhere and
//! stand in steps beside single tokens of others, some end early, and their pages are used again by whoever comes next.
//! Logits, scores and embeddings are those of the sequence alone, bit by bit.

use bantam_core::{Cpu, Precision, Region};
use bantam_model::embedding::{Embedding, Pooling, embed};
use bantam_model::engine::{Chunk, Engine, StepError};
use bantam_model::plan::Options;
use bantam_model::score::{self, Scoring, log_probabilities};
use bantam_tests::{Noise, load, model_folder, options};

const SEQUENCES: usize = 16;
const STREAMS: usize = 28;
/// Tokens of a step.
const CHUNK: usize = 64;
/// Too few for sixteen of the longest.
const CACHE_PAGES: usize = 26;

/// A text and what comes of it alone.
struct Text {
    tokens: Vec<u32>,
    prompt_tokens: usize,
    pooling: Pooling,
    logits: Vec<f32>,
    scores: Vec<f64>,
    embedding: Vec<f32>,
}

impl Text {
    fn alone(engine: &mut Engine, noise: &mut Noise, number: usize) -> Text {
        let vocab = engine.spec().vocab;
        let (prompt_tokens, more) = (1 + noise.below(160), 1 + noise.below(20));
        let tokens = noise.tokens(prompt_tokens + more, vocab);
        let pooling = if number.is_multiple_of(2) { Pooling::Mean } else { Pooling::Last };
        let mut logits = Vec::new();
        let read = score::logits(engine, &tokens, |rows, _| {
            logits.extend_from_slice(rows);
            Ok::<(), score::ScoreError>(())
        });
        read.expect("the text fits");
        let scores = log_probabilities(engine, &tokens, prompt_tokens).expect("the text fits");
        let embedding = embed(engine, &tokens, pooling).expect("the text fits");
        Text { tokens, prompt_tokens, pooling, logits, scores, embedding }
    }
}

/// A text that is being read.
struct Running {
    text: usize,
    sequence: usize,
    scoring: Scoring,
    embedding: Embedding,
}

struct Crowd<'a> {
    what: String,
    engine: Engine,
    texts: &'a [Text],
    waiting: Vec<usize>,
    running: Vec<Running>,
    noise: Noise,
    most_at_once: usize,
}

impl Crowd<'_> {
    fn arrive(&mut self) {
        let Some(text) = self.waiting.pop() else { return };
        let Text { tokens, prompt_tokens, pooling, .. } = &self.texts[text];
        let Some(sequence) = self.engine.open_for(tokens.len()) else {
            return self.waiting.push(text);
        };
        let embedding = Embedding::new(*pooling, tokens.len(), self.engine.spec().hidden);
        let embedding = embedding.expect("a text has tokens");
        let scoring = Scoring::new(tokens, *prompt_tokens, self.engine.spec().vocab);
        let scoring = scoring.expect("the vocabulary's tokens");
        self.running.push(Running { text, sequence, scoring, embedding });
    }

    /// Ends one before its time: it comes again later.
    fn abandon(&mut self) {
        let gone = self.running.swap_remove(self.noise.below(self.running.len()));
        self.engine.close(gone.sequence);
        self.waiting.insert(0, gone.text);
    }

    /// How many tokens of each are read in this step, in a random order.
    fn counts(&mut self) -> Vec<(usize, usize)> {
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        (1..order.len()).for_each(|i| order.swap(i, self.noise.below(i + 1)));
        let mut left = CHUNK;
        let mut counts = Vec::new();
        for i in order {
            let Running { text, sequence, .. } = self.running[i];
            let length = self.engine.length(sequence);
            let prompt = self.texts[text].prompt_tokens.saturating_sub(length);
            let count = if prompt > 0 { (1 + self.noise.below(30)).min(prompt) } else { 1 };
            let count = count.min(left);
            if count > 0 && self.noise.below(6) > 0 {
                counts.push((i, count));
                left -= count;
            }
        }
        counts
    }

    fn step(&mut self) {
        let counts = self.counts();
        let firsts: Vec<usize> =
            counts.iter().map(|&(i, _)| self.engine.length(self.running[i].sequence)).collect();
        let chunk = |(&(i, count), &first): (&(usize, usize), &usize)| {
            let Running { text, sequence, .. } = self.running[i];
            Chunk { sequence, tokens: &self.texts[text].tokens[first..first + count] }
        };
        let chunks: Vec<Chunk> = counts.iter().zip(&firsts).map(chunk).collect();
        self.engine.step(&chunks).expect("the step fits");
        self.most_at_once = self.most_at_once.max(chunks.len());
        let vocab = self.engine.spec().vocab;
        let mut row = 0;
        for (&(i, count), &first) in counts.iter().zip(&firsts) {
            let running = &mut self.running[i];
            let rows = |positions: std::ops::Range<usize>| -> Vec<usize> {
                positions.map(|position| row + position - first).collect()
            };
            let wanted = rows(running.embedding.positions(first, count));
            running.embedding.take(self.engine.hidden(&wanted));
            let wanted = rows(running.scoring.positions(first, count));
            running.scoring.take(self.engine.logits(&wanted)).expect("finite logits");
            let found = &*self.engine.logits(&rows(first..first + count));
            let alone = &self.texts[running.text].logits[first * vocab..][..count * vocab];
            let same = found.iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: text {}, positions {first} to {}", self.what, running.text, first + count);
            row += count;
        }
    }

    fn leave(&mut self) {
        for i in (0..self.running.len()).rev() {
            let Running { text, sequence, .. } = self.running[i];
            if self.engine.length(sequence) == self.texts[text].tokens.len() {
                let mut gone = self.running.swap_remove(i);
                let (what, text) = (format!("{}: text {text}", self.what), &self.texts[text]);
                assert!(gone.scoring.is_over(), "{what}");
                assert_eq!(gone.scoring.log_probabilities(), text.scores, "{what}: scores");
                let embedding = gone.embedding.finish().expect("it is finite");
                assert_eq!(embedding, text.embedding, "{what}: embedding");
                self.engine.close(sequence);
            }
        }
    }
}

fn hold(model: &str, precision: Precision, threads: usize) {
    let folder = model_folder(model);
    let options = Options { precision, context: 180, chunk: 180, logits_rows: 180, ..options() };
    let mut alone = load(&folder, options, Cpu::detect(), 1);
    let mut noise = Noise::new(41 + threads as u64);
    let texts: Vec<Text> = (0..STREAMS).map(|i| Text::alone(&mut alone, &mut noise, i)).collect();
    let options = Options {
        sequences: SEQUENCES,
        chunk: CHUNK,
        logits_rows: CHUNK,
        cache_positions: Some(CACHE_PAGES * 64),
        ..options
    };
    let mut engine = load(&folder, options, Cpu::detect(), threads);
    engine.poison(Region::Cache);
    let what = format!("{model}, {precision:?}, {threads} threads");
    let (waiting, running) = ((0..STREAMS).collect(), Vec::new());
    let mut crowd = Crowd { what, engine, texts: &texts, waiting, running, noise, most_at_once: 0 };
    let mut abandoned = 0;
    while !(crowd.waiting.is_empty() && crowd.running.is_empty()) {
        if crowd.noise.below(2) == 0 {
            crowd.arrive();
        }
        if abandoned < 12 && crowd.running.len() > 3 && crowd.noise.below(8) == 0 {
            crowd.abandon();
            abandoned += 1;
        }
        crowd.step();
        crowd.leave();
    }
    assert!(crowd.most_at_once >= 8 && abandoned > 4, "{} at once, {abandoned} ended", crowd.most_at_once);
    assert_eq!(crowd.engine.free_positions(), CACHE_PAGES * 64, "{}: pages came back", crowd.what);
}

#[test]
fn a_stream_among_many_is_a_stream_alone() {
    for (model, threads) in [("llama-untied", 3), ("mixtral", 2), ("gemma3", 1)] {
        hold(model, Precision::Exact, threads);
        hold(model, Precision::Fast, 4 - threads);
    }
}

#[test]
fn a_sequence_has_the_room_that_was_asked_for() {
    let options = Options { sequences: 4, cache_positions: Some(256), ..options() };
    let mut engine = load(&model_folder("llama-tied"), options, Cpu::detect(), 1);
    let tokens = Noise::new(1).tokens(71, engine.spec().vocab);
    assert_eq!(engine.free_positions(), 256);
    let sequence = engine.open_for(70).expect("a free sequence");
    assert_eq!(engine.free_positions(), 128);
    let full = StepError::ContextFull { asked: 71, context: 70 };
    assert_eq!(engine.step(&[Chunk { sequence, tokens: &tokens }]), Err(full));
    assert_eq!(engine.step(&[Chunk { sequence, tokens: &tokens[..70] }]), Ok(()));
    assert_eq!(engine.step(&[Chunk { sequence, tokens: &tokens[..1] }]), Err(full));
    assert_eq!(engine.open(), None, "a whole context has four pages, two are free");
    assert_eq!(engine.open_for(257), None, "longer than the context");
    let other = engine.open_for(128).expect("two pages are free");
    assert_eq!((engine.open_for(1), engine.free_positions()), (None, 0));
    engine.close(other);
    engine.close(sequence);
    assert!(engine.open().is_some());
}
