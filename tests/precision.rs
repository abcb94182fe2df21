//! What precision costs, on a small trained model and real text: exact arithmetic beside `transformers` in float32,
//! and every cheaper way beside exact arithmetic.
//!
//! Untrained models (`goldens.rs`) cannot tell this: their distributions are almost flat.

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Chunk, Engine};
use bantam_model::formats::on_load::{OnLoad, way};
use bantam_model::plan::Options;
use bantam_tests::{floats, ids, load, model_folder, repository, trained};

/// Tokens of a window; all but the first are scored.
const WINDOW: usize = 256;
/// Windows that are read in one step, each a sequence of its own.
const BESIDE: usize = 4;

/// What a way of computing may cost.
struct Bounds {
    /// Kullback-Leibler divergence from exact, in nats per token.
    divergence: f64,
    /// Perplexity, relative to exact.
    perplexity: f64,
}

/// The promise of fast precision.
const FAST: Bounds = Bounds { divergence: 1e-3, perplexity: 5e-3 };
/// Rounding all matrices to eight bits: the reference (per row, symmetric, round to nearest) loses 8e-5 of perplexity
/// over the whole text; a few windows scatter around that.
const INT8_WEIGHTS: Bounds = Bounds { divergence: 2e-3, perplexity: 5e-3 };

/// Rounding all matrices to four bits, of a model as small as this.
const FOUR_BIT_WEIGHTS: Bounds = Bounds { divergence: 2.5e-2, perplexity: 2.5e-2 };

fn options(kv: KvKind, precision: Precision, quantization: Option<&'static OnLoad>) -> Options {
    Options {
        context: WINDOW,
        sequences: BESIDE,
        chunk: BESIDE * WINDOW,
        logits_rows: WINDOW,
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

/// The text as token ids, and the mean loss of every window by `transformers`.
fn golden() -> (Vec<u32>, Vec<f32>) {
    let file = Checkpoint::open(&repository("tests/goldens/real/golden_ppl.safetensors")).expect("sound");
    (ids(&file, "ids"), floats(&file, "window_nll"))
}

/// A model that reads window after window.
struct Reader {
    engine: Engine,
}

impl Reader {
    fn new(options: Options, cpu: Cpu) -> Self {
        Reader { engine: load(&trained(), options, cpu, 2) }
    }

    /// Reads [`BESIDE`] windows in one step; calls `each` with a window's number and its logits.
    fn read(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) {
        let windows: Vec<&[u32]> = tokens.chunks_exact(WINDOW).collect();
        let open = |_: &&[u32]| self.engine.open().expect("a free sequence");
        let sequences: Vec<usize> = windows.iter().map(open).collect();
        let chunks = sequences.iter().zip(&windows);
        let chunks: Vec<Chunk> = chunks.map(|(&sequence, &tokens)| Chunk { sequence, tokens }).collect();
        self.engine.step(&chunks).expect("the windows fit");
        for window in 0..windows.len() {
            let rows: Vec<usize> = (window * WINDOW..(window + 1) * WINDOW).collect();
            each(window, self.engine.logits(&rows));
        }
        sequences.into_iter().for_each(|sequence| self.engine.close(sequence));
    }
}

/// Logarithms of the probabilities that logits stand for.
fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|&x| f64::from(x) - f64::from(largest));
    let total: f64 = shifted.clone().map(f64::exp).sum();
    shifted.map(|x| x - total.ln()).collect()
}

/// Losses of a window's tokens, and the distributions that they come from.
fn score(tokens: &[u32], logits: &[f32], vocab: usize) -> (f64, Vec<Vec<f64>>) {
    let rows: Vec<Vec<f64>> = logits.chunks_exact(vocab).take(WINDOW - 1).map(log_probabilities).collect();
    let loss = |(row, &next): (&Vec<f64>, &u32)| -row[next as usize];
    (rows.iter().zip(&tokens[1..]).map(loss).sum(), rows)
}

fn divergence(of: &[Vec<f64>], from: &[Vec<f64>]) -> f64 {
    let row = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    of.iter().zip(from).map(row).sum()
}

/// Sums over windows.
#[derive(Default)]
struct Sums {
    tokens: f64,
    exact_loss: f64,
    loss: f64,
    divergence: f64,
}

/// The text's first windows by exact arithmetic: loss and distributions of each.
type Exact = Vec<(f64, Vec<Vec<f64>>)>;

fn window(tokens: &[u32], window: usize) -> &[u32] {
    &tokens[window * WINDOW..(window + 1) * WINDOW]
}

fn exact(text: &[u32]) -> Exact {
    let mut reader = Reader::new(options(KvKind::F32, Precision::Exact, None), Cpu::detect());
    let vocab = reader.engine.spec().vocab;
    let mut scores = Vec::new();
    for tokens in text.chunks_exact(BESIDE * WINDOW) {
        reader.read(tokens, |at, logits| scores.push(score(window(tokens, at), logits, vocab)));
    }
    scores
}

/// Reads text in another way than exactly, and holds that way to its bounds.
fn check(what: &str, text: &[u32], exact: &Exact, options: Options, cpu: Cpu, bounds: &Bounds) {
    let mut reader = Reader::new(options, cpu);
    let vocab = reader.engine.spec().vocab;
    let mut sums = Sums::default();
    for (tokens, exact) in text.chunks_exact(BESIDE * WINDOW).zip(exact.chunks(BESIDE)) {
        reader.read(tokens, |at, logits| {
            let (loss, rows) = score(window(tokens, at), logits, vocab);
            let (exact_loss, exact_rows) = &exact[at];
            sums.tokens += rows.len() as f64;
            sums.exact_loss += exact_loss;
            sums.loss += loss;
            sums.divergence += divergence(exact_rows, &rows);
        });
    }
    let divergence = sums.divergence / sums.tokens;
    let perplexity = [sums.exact_loss, sums.loss].map(|loss| (loss / sums.tokens).exp());
    let change = perplexity[1] / perplexity[0] - 1.0;
    let found = format!(
        "{what} on {}: {divergence:.2e} nats per token off, perplexity {:.4}, exactly {:.4} ({:+.3} %), {} tokens",
        cpu.name(),
        perplexity[1],
        perplexity[0],
        change * 100.0,
        sums.tokens
    );
    println!("{found}");
    assert!(divergence < bounds.divergence && change.abs() < bounds.perplexity, "{found}");
}

#[test]
fn exact_losses_are_those_of_transformers() {
    let (text, wanted) = golden();
    let scores = exact(&text[..20 * WINDOW]);
    assert_eq!(scores.len(), 20);
    for (at, ((found, _), wanted)) in scores.iter().zip(wanted).enumerate() {
        let off = found / f64::from(wanted) - 1.0;
        println!("window {at}: {found:.4} nats, {off:+.1e} off");
        assert!(off.abs() < 1e-4, "window {at}: {found} nats, not {wanted}");
    }
}

#[test]
fn cheaper_arithmetic_stays_within_its_bounds() {
    let (text, _) = golden();
    let text = &text[..2 * BESIDE * WINDOW];
    let exact = exact(text);
    let cpu = Cpu::detect();
    let fast = |kv, way| options(kv, Precision::Fast, way);
    let ways = [
        ("fast, f16 cache", fast(KvKind::F16, None), FAST),
        ("fast, int8 cache", fast(KvKind::Int8, None), FAST),
        ("fast, int8 weights", fast(KvKind::F16, way("int8")), INT8_WEIGHTS),
        ("fast, nf4 weights", fast(KvKind::F16, way("nf4")), FOUR_BIT_WEIGHTS),
        ("exact, nf4 weights", options(KvKind::F32, Precision::Exact, way("nf4")), FOUR_BIT_WEIGHTS),
        ("fast, mxfp4 weights", fast(KvKind::F16, way("mxfp4")), FOUR_BIT_WEIGHTS),
        ("fast, gptq weights", fast(KvKind::F16, way("gptq")), FOUR_BIT_WEIGHTS),
        ("exact, int8 weights", options(KvKind::F32, Precision::Exact, way("int8")), INT8_WEIGHTS),
    ];
    for (what, options, bounds) in &ways {
        check(what, text, &exact, *options, cpu, bounds);
    }
    // The lesser levels have other kernels for the same promise.
    for cpu in cpu.variants().into_iter().skip(1) {
        let (what, options, bounds) = &ways[0];
        check(what, &text[..BESIDE * WINDOW], &exact, *options, cpu, bounds);
    }
}

/// What the cache of models whose family stores it in eight bits costs, beside sixteen bits: of all logits the root of
/// the mean square of what they are off by, over that of the logits, and the loss of a token. These models are not
/// trained and sure of what is not so: perplexity is e to the 31st, and a third of a percent of it a hundredth of one
/// of the loss.
#[test]
fn eight_bits_of_keys_and_values_cost_little_where_they_are_usual() {
    let kinds = [("f16", KvKind::F16), ("int8", KvKind::Int8)];
    for model in ["gpt_neox", "gpt_neox-seq"] {
        let golden = Checkpoint::open(&model_folder(model).join("golden.safetensors")).expect("sound");
        let prompts = [0, 1, 2].map(|prompt| ids(&golden, &format!("prompt{prompt}.input_ids")));
        let (exact_rows, exact_loss) = read_prompts(model, &prompts, KvKind::F32, Precision::Exact);
        for precision in [Precision::Exact, Precision::Fast] {
            for (name, kind) in kinds {
                let (rows, loss) = read_prompts(model, &prompts, kind, precision);
                let off = relative(&rows, &exact_rows);
                let change = loss - exact_loss;
                let of = prompts.iter().map(Vec::len).sum::<usize>();
                let same = same_best(&rows, &exact_rows, rows.len() / of);
                let found = format!(
                    "{model}, {precision:?}, {name} cache: logits {off:.2e} off, {loss:.4} nats per token, exactly \
                     {exact_loss:.4}, perplexity {:+.3} %, the best token of {same} of {of} is the same",
                    (change.exp() - 1.0) * 100.0,
                );
                println!("{found}");
                let (most_off, most_change) = match (precision, kind) {
                    (Precision::Exact, KvKind::F16) => (4e-4, 1e-3),
                    (Precision::Exact, _) => (1e-2, 8e-3),
                    // Arithmetic in bfloat16 is more than the cache.
                    (Precision::Fast, _) => (2e-2, 3e-2),
                };
                assert!(0.0 < off && off < most_off && change.abs() < most_change, "{found}");
                assert!(100 * same >= 97 * of, "{found}");
            }
        }
    }
}

/// All logits of prompts, and their mean loss in nats per token.
fn read_prompts(model: &str, prompts: &[Vec<u32>], kv: KvKind, precision: Precision) -> (Vec<f32>, f64) {
    let options = Options { sequences: 1, chunk: WINDOW, ..options(kv, precision, None) };
    let mut engine = load(&model_folder(model), options, Cpu::detect(), 2);
    let vocab = engine.spec().vocab;
    let (mut all, mut loss, mut scored) = (Vec::new(), 0.0, 0);
    for tokens in prompts {
        let sequence = engine.open().expect("a free sequence");
        engine.step(&[Chunk { sequence, tokens }]).expect("the prompt fits");
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let logits = engine.logits(&rows);
        for (row, &next) in logits.chunks_exact(vocab).zip(&tokens[1..]) {
            loss -= log_probabilities(row)[next as usize];
            scored += 1;
        }
        all.extend_from_slice(logits);
        engine.close(sequence);
    }
    (all, loss / f64::from(scored))
}

/// Rows of logits whose largest is the same.
fn same_best(a: &[f32], b: &[f32], vocab: usize) -> usize {
    let best = |row: &[f32]| (0..vocab).max_by(|&i, &j| row[i].total_cmp(&row[j]));
    a.chunks_exact(vocab).zip(b.chunks_exact(vocab)).filter(|(a, b)| best(a) == best(b)).count()
}

/// The root of the mean square of a difference over that of what it should be.
fn relative(found: &[f32], wanted: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = found.iter().zip(wanted).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let size: f64 = wanted.iter().map(|&b| square(f64::from(b))).sum();
    (off / size).sqrt()
}
