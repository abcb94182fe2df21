//! `bantam bench`: what this machine can do at best, and how near a model comes to it.
//!
//! Machine and model are measured in turns, because the machine's speed drifts with whatever else runs on it; every
//! round's fraction is taken from that round's own bandwidth.

use std::time::Instant;

use bantam_core::Cpu;
use bantam_model::engine::{Engine, synthetic_plan};
use bantam_model::memory;
use bantam_model::plan::Options;
use bantam_model::source::Source;
use bantam_model::spec::ModelSpec;
use bantam_model::speed::{Machine, Spread, decode, prefill};
use clap::Args;
use serde_json::{Value, json};

use crate::adapter_flag::AdapterFlag;
use crate::chosen_model::ChosenModel;
use crate::device_flags::DeviceFlags;
use crate::engine_flags::{EngineFlags, kv_name, precision_name, size};
use crate::failure::{Failure, refused};
use crate::output;
use crate::progress::Progress;
use crate::synthetic_shape::SyntheticShape;

/// Memory that bandwidth is measured on: more than the caches of any laptop.
const BLOCK_BYTES: usize = 1 << 30;

/// Where the carried model is not what a missing MODEL stands for.
const MODEL_HELP: &str = "Folder or .safetensors file in Hugging Face form; without it, the machine alone";

/// Measures this machine's ceilings, and a model's speed beside them
#[derive(Args)]
#[command(mut_arg("place", |model| model.help(MODEL_HELP)))]
#[command(after_help = "Examples:\n  bantam bench                             # the machine alone\n  \
                        bantam bench ./my-model --rounds 9\n  \
                        bantam bench --synthetic tinyllama --quantization int8 --json")]
pub(crate) struct Bench {
    #[command(flatten)]
    model: ChosenModel,
    #[command(flatten)]
    synthetic: SyntheticShape,
    /// Measurements of each kind; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    prompt_tokens: u64,
    /// Tokens that are generated in each measurement
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    tokens: u64,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    adapter: AdapterFlag,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    device: DeviceFlags,
}

/// What is measured beside the machine.
enum Subject {
    Synthetic(&'static str, ModelSpec),
    Model(Source),
}

/// All that is known in the end.
struct Found {
    name: String,
    engine: Engine,
    cpu: Cpu,
    ceilings: Ceilings,
    start: Start,
    rounds: Vec<Round>,
}

/// What a start costs.
struct Start {
    /// Seconds until weights are there, or mapped: headers read, planned, loaded.
    ready: f64,
    /// The same and one token, which waits for pages that are only mapped.
    first_token: f64,
    /// The most memory of the whole run, without the block that bandwidth is measured on.
    peak_bytes: Option<u64>,
}

/// One measurement of everything.
struct Round {
    read: f64,
    decode: f64,
    prefill: f64,
}

impl Bench {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(names) = self.synthetic.list() {
            return Ok(output::line(&names)?);
        }
        self.device.check(None)?;
        let cpu = Cpu::detect();
        let threads = self.engine.threads();
        let began = Instant::now();
        let subject = self.subject(cpu)?;
        let opened = began.elapsed().as_secs_f64();
        let machine = Machine::new(cpu, threads, BLOCK_BYTES)
            .map_err(|error| refused(format!("1 GiB of memory or {threads} threads: {error}")))?;
        let progress = Progress::waiting("measuring this machine".to_owned());
        let ceilings = Ceilings::measure(&machine);
        drop(progress);
        let Some(subject) = subject else {
            return match self.json {
                true => Ok(output::json(&ceilings.as_json(cpu, threads))?),
                false => Ok(output::line(&ceilings.as_text(cpu, threads))?),
            };
        };
        let began = Instant::now();
        let (name, mut engine) = self.load(subject, cpu, threads)?;
        let ready = opened + began.elapsed().as_secs_f64();
        prefill(&mut engine, 1)?;
        let first_token = opened + began.elapsed().as_secs_f64();
        let rounds = self.rounds(&machine, &mut engine)?;
        let peak_bytes = memory::peak().map(|peak| peak.saturating_sub(BLOCK_BYTES as u64));
        let found =
            Found { name, engine, cpu, ceilings, start: Start { ready, first_token, peak_bytes }, rounds };
        match self.json {
            true => output::json(&self.as_json(&found))?,
            false => output::line(&self.as_text(&found))?,
        }
        Ok(())
    }

    /// The model to measure, judged before anything takes time; `None` for the machine alone.
    fn subject(&self, cpu: Cpu) -> Result<Option<Subject>, Failure> {
        if let Some((name, spec)) = self.synthetic.spec()? {
            synthetic_plan(&spec, self.synthetic.dtype(), self.options(&spec), cpu)
                .map_err(|error| refused(format!("{name}: {error}")))?;
            return Ok(Some(Subject::Synthetic(name, spec)));
        }
        if self.model.path().is_none() {
            return Ok(None);
        }
        let source = self.adapter.beside(self.model.open()?)?;
        source.plan(self.options(&source.spec), cpu)?;
        Ok(Some(Subject::Model(source)))
    }

    fn load(&self, subject: Subject, cpu: Cpu, threads: usize) -> Result<(String, Engine), Failure> {
        match subject {
            Subject::Synthetic(name, spec) => {
                let _progress = Progress::waiting(format!("making weights for {name}"));
                let dtype = self.synthetic.dtype();
                let options = self.options(&spec);
                let mut engine = Engine::synthesize(spec, dtype, options, cpu, threads)
                    .map_err(|error| refused(format!("{name}: {error}")))?;
                self.device.place(&mut engine)?;
                Ok((name.to_owned(), engine))
            }
            Subject::Model(source) => {
                let name = source.folder().display().to_string();
                Ok((name, self.engine.load(&source, self.options(&source.spec), &self.device)?))
            }
        }
    }

    fn options(&self, spec: &ModelSpec) -> Options {
        self.engine.options(
            spec,
            || self.device.has_card(),
            size(self.prompt_tokens.max(self.tokens + 1)),
            1,
            1,
        )
    }

    fn rounds(&self, machine: &Machine, engine: &mut Engine) -> Result<Vec<Round>, Failure> {
        let progress = Progress::counting("measuring".to_owned(), size(self.rounds));
        // The first pass through the weights pays for page faults and sleeping cores.
        decode(engine, 2)?;
        (0..size(self.rounds))
            .map(|done| {
                progress.at(done);
                let before = machine.read_bandwidth();
                let decode = decode(engine, size(self.tokens))?;
                let read = (before + machine.read_bandwidth()) / 2.0;
                Ok(Round { read, decode, prefill: prefill(engine, size(self.prompt_tokens))? })
            })
            .collect()
    }

    fn as_json(&self, found: &Found) -> Value {
        let Found { name, engine, cpu, ceilings, start, rounds } = found;
        let options = engine.plan().options;
        let bytes = engine.plan().bytes_per_token as f64;
        json!({
            "machine": ceilings.as_json(*cpu, engine.threads()),
            "model": name,
            "precision": precision_name(options.precision),
            "kv": kv_name(options.kv),
            "bytes_per_token": engine.plan().bytes_per_token,
            "memory_bytes": engine.memory_bytes(),
            "weight_bytes": engine.plan().weight_bytes,
            "cache_bytes": engine.plan().cache_bytes,
            "peak_bytes": start.peak_bytes,
            "is_mapped": engine.is_mapped(),
            "seconds_to_ready": start.ready,
            "seconds_to_first_token": start.first_token,
            "quantization": {
                "layers": options.quantization.map(|way| way.name),
                "experts": options.experts.map(|way| way.name),
                "head": options.head.map(|way| way.name),
            },
            "prompt_tokens": self.prompt_tokens,
            "read_gb_per_s": spread(rounds, |round| round.read / 1e9),
            "decode_tokens_per_s": spread(rounds, |round| round.decode),
            "decode_gb_per_s": spread(rounds, |round| round.decode * bytes / 1e9),
            "decode_fraction_of_read": spread(rounds, |round| round.decode * bytes / round.read),
            "prefill_tokens_per_s": spread(rounds, |round| round.prefill),
            "rounds": rounds.len(),
        })
    }

    fn as_text(&self, found: &Found) -> String {
        let Found { name, engine, cpu, ceilings, start, rounds } = found;
        let options = engine.plan().options;
        let bytes = engine.plan().bytes_per_token as f64;
        let row = |what: String, spread: Spread, digits: usize| {
            let number = |x: f64| format!("{x:.digits$}");
            vec![what, number(spread.median), number(spread.least), number(spread.most)]
        };
        let of = |f: &dyn Fn(&Round) -> f64| Spread::of(&rounds.iter().map(f).collect::<Vec<_>>());
        let rows = [
            ["", "median", "least", "most"].map(str::to_owned).to_vec(),
            row("memory read, GB/s".to_owned(), of(&|round| round.read / 1e9), 1),
            row("decode, tokens/s".to_owned(), of(&|round| round.decode), 2),
            row("decode, GB/s of weights".to_owned(), of(&|round| round.decode * bytes / 1e9), 1),
            row("decode, fraction of read".to_owned(), of(&|round| round.decode * bytes / round.read), 2),
            row(format!("prefill {}, tokens/s", self.prompt_tokens), of(&|round| round.prefill), 1),
        ];
        let peak =
            start.peak_bytes.map_or(String::new(), |bytes| format!(", {} at most", output::bytes(bytes)));
        format!(
            "{}\n\n{name}, {} precision, keys and values {}, {} per token, {} in all; {} rounds\n\
             ready in {:.2} s, first token after {:.2} s{peak}\n\n{}",
            ceilings.as_text(*cpu, engine.threads()),
            precision_name(options.precision),
            kv_name(options.kv),
            output::bytes(engine.plan().bytes_per_token as u64),
            output::bytes(engine.memory_bytes() as u64),
            rounds.len(),
            start.ready,
            start.first_token,
            output::table(&rows, &[false, true, true, true]),
        )
    }
}

fn spread(rounds: &[Round], f: impl Fn(&Round) -> f64) -> Value {
    let Spread { median, least, most } = Spread::of(&rounds.iter().map(f).collect::<Vec<_>>());
    json!({ "median": median, "least": least, "most": most })
}

/// The machine at its best, in operations or bytes per second.
struct Ceilings {
    read: Spread,
    float32: Spread,
    bfloat16: Option<Spread>,
    int8: Option<Spread>,
}

impl Ceilings {
    fn measure(machine: &Machine) -> Self {
        let spread = |f: &dyn Fn() -> f64| Spread::of(&(0..5).map(|_| f()).collect::<Vec<_>>());
        let maybe = |f: &dyn Fn() -> Option<f64>| f().map(|_| spread(&|| f().unwrap_or(f64::NAN)));
        Ceilings {
            read: spread(&|| machine.read_bandwidth()),
            float32: spread(&|| machine.float32()),
            bfloat16: maybe(&|| machine.bfloat16()),
            int8: maybe(&|| machine.int8()),
        }
    }

    fn as_json(&self, cpu: Cpu, threads: usize) -> Value {
        let giga = |spread: Spread| json!({ "median": spread.median / 1e9, "most": spread.most / 1e9 });
        json!({
            "cpu": cpu.name(),
            "threads": threads,
            "read_gb_per_s": giga(self.read),
            "f32_gflop_per_s": giga(self.float32),
            "bf16_gflop_per_s": self.bfloat16.map(giga),
            "int8_gop_per_s": self.int8.map(giga),
        })
    }

    fn as_text(&self, cpu: Cpu, threads: usize) -> String {
        let row = |what: &str, spread: Spread| {
            let number = |x: f64| format!("{:.1}", x / 1e9);
            vec![what.to_owned(), number(spread.median), number(spread.least), number(spread.most)]
        };
        let mut rows = vec![
            ["ceilings", "median", "least", "most"].map(str::to_owned).to_vec(),
            row("memory read, GB/s", self.read),
            row("float32, Gflop/s", self.float32),
        ];
        rows.extend(self.bfloat16.map(|spread| row("bfloat16 dots, Gflop/s", spread)));
        rows.extend(self.int8.map(|spread| row("int8 dots, Gop/s", spread)));
        format!("{}, threads: {threads}\n\n{}", cpu.name(), output::table(&rows, &[false, true, true, true]))
    }
}
