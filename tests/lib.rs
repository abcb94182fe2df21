//! Shared by the tests that cross crates: where the goldens lie, and how a model is loaded for a test.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Chunk, Engine};
use bantam_model::plan::Options;
use bantam_model::spec::ModelSpec;

/// Every model with goldens.
pub const MODELS: &[&str] = &[
    "gpt_neox",
    "gpt_neox-seq",
    "llama-tied",
    "llama-untied",
    "qwen2",
    "qwen3",
    "mistral",
    "mixtral",
    "phi3",
    "gemma2",
    "gemma3",
    "gpt_oss-bf16",
    "gpt_oss-mxfp4",
];

/// A path below the repository's root.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").join(path)
}

/// The folder of a golden model.
pub fn model_folder(name: &str) -> PathBuf {
    repository("tests/goldens/models").join(name)
}

/// A small model that was trained, with goldens of the original tools.
pub fn trained() -> PathBuf {
    repository("tests/goldens/real/llama")
}

/// A specification and its weights.
pub fn open(folder: &Path) -> (ModelSpec, Checkpoint) {
    let config = std::fs::read(folder.join("config.json")).expect("the golden has a config.json");
    let spec = ModelSpec::parse(&config).expect("the golden's config.json is sound");
    (spec, Checkpoint::open(folder).expect("the golden's weights are sound"))
}

/// Options for tests: exact, float32 cache.
pub fn options() -> Options {
    Options {
        context: 256,
        sequences: 1,
        chunk: 128,
        logits_rows: 128,
        kv: KvKind::F32,
        precision: Precision::Exact,
        quantization: None,
        head: None,
        cache_positions: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    }
}

/// Steps of two sequences side by side, a prompt each and then greedy tokens: all logits, and the tokens.
pub fn replies(engine: &mut Engine, prompts: [&[u32]; 2], count: usize) -> (Vec<f32>, Vec<u32>) {
    replies_meanwhile(engine, prompts, count, |_, _| {})
}

/// The same, with something that happens before every step.
pub fn replies_meanwhile(
    engine: &mut Engine,
    prompts: [&[u32]; 2],
    count: usize,
    mut before: impl FnMut(&mut Engine, usize),
) -> (Vec<f32>, Vec<u32>) {
    let sequences = [0; 2].map(|_| engine.open().expect("there is room for two"));
    let (mut all, mut tokens) = (Vec::new(), Vec::new());
    let mut next = prompts.map(<[u32]>::to_vec);
    for step in 0..count {
        before(engine, step);
        let chunk = |i: usize| Chunk { sequence: sequences[i], tokens: &next[i] };
        engine.step(&[chunk(0), chunk(1)]).expect("a step as planned");
        let rows = [next[0].len() - 1, next[0].len() + next[1].len() - 1];
        let logits = engine.try_logits(&rows).expect("the cards are well").to_vec();
        for (next, logits) in next.iter_mut().zip(logits.chunks_exact(logits.len() / 2)) {
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            *next = vec![best.expect("a vocabulary") as u32];
            tokens.extend_from_slice(next);
        }
        all.extend(logits);
    }
    sequences.iter().for_each(|&sequence| engine.close(sequence));
    (all, tokens)
}

/// Loads a model.
pub fn load(folder: &Path, options: Options, cpu: Cpu, threads: usize) -> Engine {
    let (spec, checkpoint) = open(folder);
    Engine::load(spec, &checkpoint, options, cpu, threads).expect("the golden loads")
}

/// A tensor of a golden file as numbers.
pub fn floats(golden: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = golden.tensor(name).unwrap_or_else(|| panic!("golden without {name}"));
    let mut out = vec![0.0; tensor.elements()];
    tensor.read_f32(0, &mut out);
    out
}

/// A tensor of a golden file as token ids, which are small enough for float32.
pub fn ids(golden: &Checkpoint, name: &str) -> Vec<u32> {
    floats(golden, name).into_iter().map(|id| id as u32).collect()
}

/// Within 1e-3 everywhere, and 1e-4 of the golden's root mean square.
pub fn check_close(what: &str, found: &[f32], golden: &[f32]) {
    assert_eq!(found.len(), golden.len(), "{what}");
    let square = |x: f64| x * x;
    let (mut worst, mut error, mut size) = (0.0f64, 0.0, 0.0);
    for (&a, &b) in found.iter().zip(golden) {
        let difference = (f64::from(a) - f64::from(b)).abs();
        worst = worst.max(difference);
        error += square(difference);
        size += square(f64::from(b));
    }
    let relative = (error / size).sqrt();
    println!("{what}: worst {worst:.2e}, relative {relative:.2e}");
    assert!(worst <= 1e-3 && relative <= 1e-4, "{what}: worst {worst:.2e}, relative {relative:.2e}");
}

/// Numbers that look random and are the same in every run, so that a failure can be seen again.
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// Begins a series; every seed has its own.
    pub fn new(seed: u64) -> Self {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        // Knuth's multiplier; the high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    /// Token ids below `vocab`.
    pub fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab) as u32).collect()
    }
}
