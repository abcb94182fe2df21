//! A token's logits depend on the tokens before it and on nothing else: not on how the prompt was cut into chunks, on
//! the sequences beside it, on the number of threads, or on what a cache page held before. Compared bit by bit.
//!
//! It does not compare processor levels with one another: they may round differently. Whether the logits are right is
//! the business of `goldens.rs`.

use bantam_core::{Cpu, KvKind, Precision, Region, Trits};
use bantam_model::engine::{Chunk, Engine};
use bantam_model::formats::on_load::{OnLoad, way};
use bantam_model::plan::Options;
use bantam_tests::{MODELS, Noise, load, model_folder};

/// More than a page of the cache, and no multiple of anything.
const PROMPT: usize = 75;
const CHUNK: usize = 128;

/// The first position whose logits differ, if any.
fn check(what: &str, found: &[f32], wanted: &[f32], vocab: usize) {
    assert_eq!(found.len(), wanted.len(), "{what}: number of logits");
    let differs = found.iter().zip(wanted).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = differs {
        panic!(
            "{what}: token {}, logit {}: {:e}, but {:e} when the whole prompt is read at once on one thread",
            at / vocab,
            at % vocab,
            found[at],
            wanted[at]
        );
    }
}

/// One way to run: a model on a processor level with a number of threads.
struct Runner<'a> {
    engine: Engine,
    prompt: &'a [u32],
    noise: Noise,
}

impl Runner<'_> {
    fn vocab(&self) -> usize {
        self.engine.spec().vocab
    }

    /// Appends chunks in one step and takes the logits of one of them.
    fn step(&mut self, chunks: &[Chunk], wanted: usize, into: &mut Vec<f32>) {
        self.engine.step(chunks).expect("the step fits");
        let before: usize = chunks[..wanted].iter().map(|chunk| chunk.tokens.len()).sum();
        let rows: Vec<usize> = (before..before + chunks[wanted].tokens.len()).collect();
        into.extend_from_slice(self.engine.logits(&rows));
    }

    /// Appends tokens in chunks of sizes that `size` chooses.
    fn feed(&mut self, sequence: usize, tokens: &[u32], size: impl Fn(&mut Noise) -> usize) -> Vec<f32> {
        let (mut rest, mut logits) = (tokens, Vec::new());
        while !rest.is_empty() {
            let (tokens, later) = rest.split_at(size(&mut self.noise).min(rest.len()));
            self.step(&[Chunk { sequence, tokens }], 0, &mut logits);
            rest = later;
        }
        logits
    }

    /// The prompt in one new sequence.
    fn alone(&mut self, size: impl Fn(&mut Noise) -> usize) -> Vec<f32> {
        let sequence = self.engine.open().expect("a free sequence");
        let logits = self.feed(sequence, self.prompt, size);
        self.engine.close(sequence);
        logits
    }

    /// The last quarter token by token, across the border of a page. Chunks of one token elsewhere are drawn by chance.
    fn decoded(&mut self) -> Vec<f32> {
        let sequence = self.engine.open().expect("a free sequence");
        let (first, rest) = self.prompt.split_at(PROMPT * 3 / 4);
        let mut logits = self.feed(sequence, first, |_| CHUNK);
        logits.extend(self.feed(sequence, rest, |_| 1));
        self.engine.close(sequence);
        logits
    }

    /// The prompt beside three other sequences at other positions: steps with several chunks, in any order.
    fn beside_others(&mut self) -> Vec<f32> {
        let vocab = self.vocab();
        let sequences: Vec<usize> = (0..4).map(|_| self.engine.open().expect("a free sequence")).collect();
        let others: Vec<Vec<u32>> = (0..4).map(|_| self.noise.tokens(PROMPT, vocab)).collect();
        // The others begin first, so that positions differ.
        for other in 1..4 {
            self.feed(sequences[other], &others[other][..7 * other], |_| 21);
        }
        let (mut rest, mut logits) = (self.prompt, Vec::new());
        while !rest.is_empty() {
            let (mine, later) = rest.split_at((1 + self.noise.below(40)).min(rest.len()));
            let place = self.noise.below(4);
            let mut chunks = Vec::new();
            for other in 1..4 {
                let length = self.engine.length(sequences[other]);
                let count = self.noise.below(20).min(PROMPT - length);
                if count > 0 {
                    chunks.push(Chunk {
                        sequence: sequences[other],
                        tokens: &others[other][length..length + count],
                    });
                }
            }
            let place = place.min(chunks.len());
            chunks.insert(place, Chunk { sequence: sequences[0], tokens: mine });
            self.step(&chunks, place, &mut logits);
            rest = later;
        }
        sequences.into_iter().for_each(|sequence| self.engine.close(sequence));
        logits
    }

    /// Half the prompt, then other tokens that are taken back twice, then the rest of the prompt.
    fn after_rewinding(&mut self) -> Vec<f32> {
        let half = PROMPT / 2;
        let sequence = self.engine.open().expect("a free sequence");
        let mut logits = self.feed(sequence, &self.prompt[..half], |_| CHUNK);
        for extra in [1, 60] {
            let vocab = self.vocab();
            let tokens = self.noise.tokens(extra, vocab);
            self.feed(sequence, &tokens, |_| CHUNK);
            self.engine.rewind(sequence, half);
        }
        logits.extend(self.feed(sequence, &self.prompt[half..], |_| CHUNK));
        self.engine.close(sequence);
        logits
    }

    /// Every way of reading the prompt gives the bits of `wanted`.
    fn check_all(&mut self, what: &str, wanted: &[f32]) {
        let vocab = self.vocab();
        type Read<'a> = fn(&mut Runner<'a>) -> Vec<f32>;
        let ways: [(&str, Read); 6] = [
            ("whole", |run| run.alone(|_| CHUNK)),
            ("in random chunks", |run| run.alone(|noise| 1 + noise.below(40))),
            ("token by token", Self::decoded),
            ("beside three sequences", Self::beside_others),
            ("after rewinding", Self::after_rewinding),
            ("in a cache full of NaN", |run| {
                run.engine.poison(Region::Cache);
                run.alone(|noise| 1 + noise.below(40))
            }),
        ];
        for (way, read) in ways {
            // Every slot of a cache was used by another sequence before, except on the first way.
            check(&format!("{what}, {way}"), &read(self), wanted, vocab);
        }
    }
}

const KINDS: [KvKind; 3] = [KvKind::F32, KvKind::F16, KvKind::Int8];
const THREADS: [usize; 4] = [1, 2, 3, 5];

/// A model with one precision, on every processor level, with every kind of cache. The numbers of threads go round, so
/// that over models and levels each meets every kind of cache.
fn hold(model: &str, precision: Precision, way: Option<&'static OnLoad>) {
    let round = MODELS.iter().position(|name| *name == model).expect("one of MODELS");
    for (level, cpu) in Cpu::detect().variants().into_iter().enumerate() {
        for (i, kv) in KINDS.into_iter().enumerate() {
            let (context, sequences, chunk, quantization) = (128, 4, CHUNK, way);
            let logits_rows = CHUNK;
            let options = Options {
                context,
                sequences,
                chunk,
                logits_rows,
                kv,
                precision,
                quantization,
                head: way,
                cache_positions: None,
                experts: None,
                trits: Trits::Packed,
                adapter_bytes: 0,
            };
            let threads = THREADS[(round + level + i) % THREADS.len()];
            let begin =
                |threads, trits| load(&model_folder(model), Options { trits, ..options }, cpu, threads);
            let engine = begin(1, Trits::Packed);
            let prompt = Noise::new(77).tokens(PROMPT, engine.spec().vocab);
            let run = |engine, seed| Runner { engine, prompt: &prompt, noise: Noise::new(seed) };
            let wanted = run(engine, 0).alone(|_| CHUNK);
            assert!(wanted.iter().all(|logit| logit.is_finite()));
            let what = format!(
                "{model}, {precision:?}, {}, {kv:?}, {}, {threads} threads",
                way.map_or("as it is", |way| way.name),
                cpu.name()
            );
            let trits = [Trits::Spread, Trits::Packed][i % 2];
            run(begin(threads, trits), threads as u64).check_all(&what, &wanted);
        }
    }
}

#[test]
fn exact_logits_depend_on_the_tokens_alone() {
    MODELS.iter().for_each(|model| hold(model, Precision::Exact, None));
}

/// Models with bfloat16 matrices: for the others both precisions are the same computation.
#[test]
fn fast_logits_depend_on_the_tokens_alone() {
    for model in ["llama-tied", "qwen2", "mixtral", "gemma3", "gpt_oss-bf16"] {
        hold(model, Precision::Fast, None);
    }
}

#[test]
fn logits_of_quantized_weights_depend_on_the_tokens_alone() {
    hold("qwen2", Precision::Exact, way("int8"));
    hold("gpt_neox", Precision::Fast, way("int8"));
    // Experts apart and together, norms after blocks.
    hold("mixtral", Precision::Exact, way("bnb-4bit"));
    hold("mixtral", Precision::Fast, way("nf4"));
    hold("gpt_oss-bf16", Precision::Fast, way("mxfp4"));
    hold("gemma2", Precision::Fast, way("gptq"));
    hold("mixtral", Precision::Fast, way("ternary"));
}
