//! Models with made-up weights, put on a card in several ways that take turns.

use std::time::{Duration, Instant};

use bantam_core::{Cpu, Precision, Trits};
use bantam_cuda::{Card, Counts, OneOf};
use bantam_model::card::{Manner, NoCard, Residency};
use bantam_model::checkpoint::Dtype;
use bantam_model::engine::{Chunk, Engine, ExpertsMet, Placed, StepError};
use bantam_model::families::SHAPES;
use bantam_model::formats::on_load::way;
use bantam_model::plan::Options;
use bantam_model::spec::ModelSpec;
use bantam_model::speed::Spread;

use super::{Problem, Scale};

/// A published shape, how it is quantized, and what is asked of it.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    shape: &'static str,
    /// Matrices of layers.
    quantization: &'static str,
    /// Experts, where there are any.
    experts: Option<&'static str>,
    /// Tokens per second with all of it on an H200.
    pub(crate) asked: Option<f64>,
    /// By whole layers, with 4 GiB.
    pub(crate) asked_ratio: f64,
}

/// In tiny runs they stand for the shapes.
const TINY: &[(&str, &str)] = &[
    (
        "gpt-neox-20b",
        r#"{"model_type":"gpt_neox","hidden_size":128,"intermediate_size":256,"num_hidden_layers":4,
        "num_attention_heads":4,"vocab_size":96,"max_position_embeddings":64,"hidden_act":"gelu_fast"}"#,
    ),
    (
        "gpt-oss-20b",
        r#"{"model_type":"gpt_oss","hidden_size":64,"intermediate_size":64,"num_hidden_layers":2,
        "num_attention_heads":2,"num_key_value_heads":1,"head_dim":32,"vocab_size":96,
        "max_position_embeddings":64,"num_local_experts":4,"num_experts_per_tok":2,"sliding_window":16}"#,
    ),
];

pub(crate) static MODELS: &[Model] = &[
    Model {
        name: "gpt-neox-20b nf4",
        shape: "gpt-neox-20b",
        quantization: "nf4",
        experts: None,
        asked: Some(250.0),
        asked_ratio: 1.12,
    },
    Model {
        name: "gpt-oss-20b mxfp4",
        shape: "gpt-oss-20b",
        quantization: "int8",
        experts: Some("mxfp4"),
        asked: Some(400.0),
        asked_ratio: 1.0,
    },
    Model {
        name: "gpt-neox-20b ternary",
        shape: "gpt-neox-20b",
        quantization: "ternary",
        experts: None,
        asked: None,
        asked_ratio: 1.35,
    },
];

/// How long is measured.
#[derive(Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) prompt: usize,
    tokens: usize,
    /// No more tokens once they take longer.
    patience: Duration,
    pub(crate) rounds: usize,
}

const FULL: Lengths = Lengths { prompt: 512, tokens: 64, patience: Duration::from_secs(3), rounds: 5 };
const QUICK: Lengths = Lengths { prompt: 4, tokens: 2, patience: Duration::ZERO, rounds: 1 };
/// At least so many, however long they take.
const TOKENS_LEAST: usize = 2;
/// Of a prompt that does not count.
const WARM: usize = 16;

impl Lengths {
    pub(crate) fn of(scale: Scale) -> Lengths {
        if scale.quick { QUICK } else { FULL }
    }

    /// For people.
    pub(crate) fn told(&self) -> String {
        let Lengths { prompt, tokens, patience, .. } = self;
        let seconds = patience.as_secs_f64();
        format!(
            "A prompt has {prompt} tokens; after it {tokens} are made, or fewer once {seconds:.0} s are over.\n"
        )
    }

    fn options(&self, model: &Model, spec: &ModelSpec, cpu: Cpu, threads: usize) -> Options {
        Options {
            context: self.prompt + 2 * self.tokens,
            chunk: self.prompt,
            kv: spec.usual_kv(Precision::Fast, || true),
            precision: Precision::Fast,
            quantization: way(model.quantization),
            head: way("int8"),
            experts: model.experts.and_then(way),
            trits: Trits::of(cpu, threads),
            adapter_bytes: 0,
            ..Options::SMALLEST
        }
    }
}

impl Model {
    /// Its weights in main memory.
    pub(crate) fn load(&self, scale: Scale) -> Result<Engine, Problem> {
        let (cpu, threads) = (Cpu::detect(), threads(scale));
        let shapes = if scale.quick { TINY } else { SHAPES };
        let config = shapes.iter().find(|(name, _)| *name == self.shape).map(|(_, config)| config);
        let spec = config.and_then(|config| ModelSpec::parse(config.as_bytes()).ok());
        let spec = spec.expect("a shape of the table is a model");
        let options = Lengths::of(scale).options(self, &spec, cpu, threads);
        Ok(Engine::synthesize(spec, Dtype::Bf16, options, cpu, threads)?)
    }
}

pub(crate) fn threads(scale: Scale) -> usize {
    if scale.quick { 2 } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

/// How a model is put on a card, and who computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As Bantam does it.
    Ours,
    /// The same, kernel by kernel where it would keep steps.
    Launched,
    /// Whole layers there, the others here.
    Layers,
    /// The card computes all matrices; those that do not stand there pass through it for every token.
    Pinned,
    /// The same, and none of a layer stands there.
    Lru,
    /// The processor alone.
    Cores,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Ours => "ours",
            Way::Launched => "ours, no graphs",
            Way::Layers => "whole layers",
            Way::Pinned => "pinned",
            Way::Lru => "lru",
            Way::Cores => "processor",
        }
    }

    fn place(self, engine: &mut Engine, vram: Option<u64>) -> Result<Option<Placed>, NoCard> {
        let plain = Manner::default();
        engine.set_manner(match self {
            Way::Ours | Way::Cores => plain,
            Way::Launched => Manner { keeps: false, ..plain },
            Way::Layers => Manner { whole_layers: true, ..plain },
            Way::Pinned => Residency::Pinned.into(),
            Way::Lru => Residency::Lru.into(),
        });
        if self == Way::Cores {
            engine.leave_card();
            return Ok(None);
        }
        engine.place(&OneOf(0), vram).cloned().map(Some)
    }
}

/// What was measured of a way, turn by turn.
#[derive(Default)]
pub(crate) struct Turns {
    pub(crate) decode: Vec<f64>,
    /// The same token over and over, which meets much the same experts.
    pub(crate) same: Vec<f64>,
    pub(crate) prompt: Vec<f64>,
    pub(crate) placed: Option<Placed>,
    /// Why there is nothing.
    pub(crate) refused: Option<String>,
    /// Asked of the driver while tokens were made, at most in a turn.
    pub(crate) allocations: u64,
    /// Bytes of the card that were gone after that, at most.
    pub(crate) bytes_gone: usize,
    /// Kernels for a token.
    pub(crate) launches: f64,
    /// Part of the experts that tokens were sent to and found on the card; various tokens, and the same one.
    pub(crate) hits: [Option<f64>; 2],
}

impl Turns {
    /// `median (least to most)`.
    pub(crate) fn told(values: &[f64]) -> String {
        match values {
            [] => "-".to_owned(),
            _ => {
                let Spread { median, least, most } = Spread::of(values);
                format!("{median:.2} ({least:.2} to {most:.2})")
            }
        }
    }
}

/// The middle of several values, if there are any.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| Spread::of(values).median)
}

/// Puts the model there in every way by turns, and measures it each time; until the time is over, once at least.
pub(crate) fn take(
    engine: &mut Engine,
    ways: &[Way],
    vram: Option<u64>,
    scale: Scale,
) -> Result<Vec<Turns>, Problem> {
    let lengths = Lengths::of(scale);
    // Beside the model, to ask how much memory is free.
    let card = Card::open(0)?;
    let mut found: Vec<Turns> = ways.iter().map(|_| Turns::default()).collect();
    for round in 0..lengths.rounds {
        if round > 0 && scale.is_over() {
            break;
        }
        for (way, turns) in ways.iter().zip(&mut found).filter(|(_, turns)| turns.refused.is_none()) {
            match way.place(engine, vram) {
                Ok(placed) => turns.placed = placed,
                Err(error) => {
                    turns.refused = Some(error.to_string());
                    continue;
                }
            }
            turn(engine, &card, lengths, turns)?;
        }
    }
    engine.leave_card();
    Ok(found)
}

fn turn(engine: &mut Engine, card: &Card, lengths: Lengths, turns: &mut Turns) -> Result<(), Problem> {
    let (before, free) = (Counts::now(), card.memory()?.0);
    // What is touched for the first time takes longer.
    let short = Lengths { prompt: lengths.prompt.min(WARM), ..lengths };
    reply(engine, short, TOKENS_LEAST, Tokens::Various)?;
    let various = reply(engine, lengths, lengths.tokens, Tokens::Various)?;
    let after = Counts::now();
    turns.allocations = turns.allocations.max(after.allocations - before.allocations);
    turns.bytes_gone = turns.bytes_gone.max(free.saturating_sub(card.memory()?.0));
    turns.launches = various.launches;
    turns.prompt.push(various.prompt);
    turns.decode.push(various.decode);
    turns.hits[0] = various.hits;
    if engine.spec().layers.iter().any(|layer| layer.mlp.experts.is_some()) {
        let same = reply(engine, lengths, lengths.tokens, Tokens::Same)?;
        turns.same.push(same.decode);
        turns.hits[1] = same.hits;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Tokens {
    Various,
    Same,
}

/// A prompt, and tokens after it.
struct Reply {
    prompt: f64,
    decode: f64,
    launches: f64,
    hits: Option<f64>,
}

fn reply(engine: &mut Engine, lengths: Lengths, tokens: usize, which: Tokens) -> Result<Reply, StepError> {
    let vocab = engine.spec().vocab;
    let token = |i: usize| if which == Tokens::Same { 1 } else { (i * 7919 % vocab) as u32 };
    let prompt: Vec<u32> = (0..lengths.prompt).map(token).collect();
    let sequence = engine.open().ok_or(StepError::Sequence(0))?;
    let start = Instant::now();
    engine.prefill::<StepError>(sequence, &prompt, |_, _, _| Ok(()))?;
    let last = engine.rows() - 1;
    std::hint::black_box(engine.try_logits(&[last])?);
    let prompt_seconds = start.elapsed().as_secs_f64();
    let (before, met) = (Counts::now(), engine.experts_met());
    let start = Instant::now();
    let mut count = 0;
    while count < tokens && (count < TOKENS_LEAST || start.elapsed() < lengths.patience) {
        engine.step(&[Chunk { sequence, tokens: &[token(count)] }])?;
        std::hint::black_box(engine.try_logits(&[0])?);
        count += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    engine.close(sequence);
    Ok(Reply {
        prompt: lengths.prompt as f64 / prompt_seconds,
        decode: count as f64 / seconds,
        launches: (Counts::now().launches - before.launches) as f64 / count as f64,
        hits: met.zip(engine.experts_met()).and_then(|(before, after)| hits(before, after)),
    })
}

fn hits(before: ExpertsMet, after: ExpertsMet) -> Option<f64> {
    let places = after.places.checked_sub(before.places).filter(|&places| places > 0)?;
    Some(after.on_card.saturating_sub(before.on_card) as f64 / places as f64)
}
