//! Flags that decide how a model is held in memory and computed, the same for every verb.

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_daemon::cards::Device;
use bantam_model::engine::Engine;
use bantam_model::formats::on_load::{OnLoad, WAYS, way};
use bantam_model::native::Native;
use bantam_model::plan::{Options, Plan};
use bantam_model::pool::Threads;
use bantam_model::source::Source;
use bantam_model::spec::ModelSpec;
use bantam_proto::v1;
use clap::{Args, ValueEnum};

use crate::device_flags::DeviceFlags;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{cache, interrupt, output};

/// Positions where neither the model nor a flag asks for fewer or more.
const CONTEXT: usize = 4096;
/// Tokens of a prompt that are computed together.
pub(crate) const CHUNK: usize = 512;
/// More threads than this are a typing error.
const THREADS_MAX: u64 = 1024;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionName {
    Exact,
    Fast,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KvName {
    F32,
    F16,
    Int8,
}

/// How to compute.
#[derive(Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineFlags {
    /// How to compute: exact is float32 throughout, fast is bfloat16 and integer products [default: fast]
    #[arg(long, value_enum)]
    precision: Option<PrecisionName>,
    /// How keys and values are stored [default: f32 for exact; for fast f16, or int8 where a card computes and
    /// the family is gpt_neox]
    #[arg(long, value_enum, value_name = "TYPE")]
    kv: Option<KvName>,
    /// Quantizes the matrices of the layers that are not yet: int8, nf4, bnb-4bit (nf4 with double quantization), fp4,
    /// bnb-fp4 (the same), mxfp4, gptq (four bits in groups of 128, without calibration), ternary (-1, 0 and 1 in
    /// groups of 128, each with its best scale)
    #[arg(long, value_parser = way_of, value_name = "TYPE")]
    quantization: Option<&'static OnLoad>,
    /// The same for the head, which otherwise stays as it is
    #[arg(long, value_parser = way_of, value_name = "TYPE")]
    head: Option<&'static OnLoad>,
    /// The same for the experts of a mixture [default: as --quantization]
    #[arg(long, value_parser = way_of, value_name = "TYPE")]
    experts: Option<&'static OnLoad>,
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// Tokens of a prompt that are computed together [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    chunk: Option<u64>,
    /// Neither maps nor writes a native file: the repacked weights, kept for the next start (see `bantam cache`)
    #[arg(long)]
    no_cache: bool,
}

fn way_of(name: &str) -> Result<&'static OnLoad, String> {
    let names: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
    way(name).ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

/// How long a sequence may become.
#[derive(Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct ContextFlag {
    /// Tokens that a sequence may have [default: what the model knows, at most 4096]
    #[arg(long = "context", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    tokens: Option<u64>,
}

impl ContextFlag {
    /// The flag, or the model's own within reason.
    pub(crate) fn of(&self, spec: &ModelSpec) -> usize {
        match self.tokens {
            Some(tokens) => size(tokens),
            None => usual_context(spec),
        }
    }
}

/// Positions where no flag says how many.
pub(crate) fn usual_context(spec: &ModelSpec) -> usize {
    spec.context.min(CONTEXT)
}

/// How a model is run if no flag says otherwise.
pub(crate) fn usual_options(spec: &ModelSpec, quantization: Option<&'static OnLoad>) -> Options {
    let context = usual_context(spec);
    Options {
        context,
        sequences: 1,
        chunk: CHUNK.min(context),
        logits_rows: 1,
        kv: spec.usual_kv(Precision::Fast, || Device::Auto.is_there()),
        precision: Precision::Fast,
        quantization,
        head: None,
        cache_positions: None,
        experts: None,
        trits: Trits::of(Cpu::detect(), Threads::available()),
        adapter_bytes: 0,
    }
}

/// A flag's number; one that does not fit is refused further on as too large.
pub(crate) fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl EngineFlags {
    /// The options of a run, before a plan has judged them.
    pub(crate) fn options(
        &self,
        spec: &ModelSpec,
        has_card: impl FnOnce() -> bool,
        context: usize,
        sequences: usize,
        logits_rows: usize,
    ) -> Options {
        let precision = match self.precision {
            Some(PrecisionName::Exact) => Precision::Exact,
            Some(PrecisionName::Fast) | None => Precision::Fast,
        };
        let kv = match self.kv {
            Some(KvName::F32) => KvKind::F32,
            Some(KvName::F16) => KvKind::F16,
            Some(KvName::Int8) => KvKind::Int8,
            None => spec.usual_kv(precision, has_card),
        };
        // A step never has more tokens than all sequences together.
        let most = context.saturating_mul(sequences).max(1);
        let chunk = self.chunk.map_or(CHUNK, size).min(most).max(sequences);
        Options {
            context,
            sequences,
            chunk,
            logits_rows: logits_rows.min(chunk),
            kv,
            precision,
            quantization: self.quantization,
            head: self.head,
            cache_positions: None,
            experts: self.experts,
            trits: Trits::of(Cpu::detect(), self.threads()),
            adapter_bytes: 0,
        }
    }

    /// What a daemon is to load a model with: only what was given, so that a model that is loaded can answer.
    pub(crate) fn load_options(&self, context: &ContextFlag) -> v1::LoadOptions {
        let precision = match self.precision {
            Some(PrecisionName::Exact) => v1::Precision::Exact,
            Some(PrecisionName::Fast) => v1::Precision::Fast,
            None => v1::Precision::Unspecified,
        };
        let kv = match self.kv {
            Some(KvName::F32) => v1::KvType::F32,
            Some(KvName::F16) => v1::KvType::F16,
            Some(KvName::Int8) => v1::KvType::Int8,
            None => v1::KvType::Unspecified,
        };
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let name = |way: Option<&OnLoad>| way.map(|way| way.name.to_owned());
        v1::LoadOptions {
            precision: precision.into(),
            kv: kv.into(),
            context: context.tokens.map(count),
            chunk: self.chunk.map(count),
            quantization: name(self.quantization),
            head: name(self.head),
            experts: name(self.experts),
            threads: self.threads.map(count),
            no_cache: self.no_cache.then_some(true),
            ..v1::LoadOptions::default()
        }
    }

    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        self.threads.map_or_else(Threads::available, size)
    }

    /// Where the model's native file is or would be, if it is to have one.
    pub(crate) fn native(&self, source: &Source, plan: &Plan) -> Option<Native> {
        let store = if self.no_cache { None } else { cache::store() };
        Native::of(source, plan, &store?)
    }

    /// Loads the model, with something to look at where it takes long, keeps what the next start can map, and puts it
    /// where it is to be computed.
    pub(crate) fn load(
        &self,
        source: &Source,
        options: Options,
        device: &DeviceFlags,
    ) -> Result<Engine, Failure> {
        let cpu = Cpu::detect();
        let plan = source.plan(options, cpu)?;
        device.check(Some(&plan))?;
        let native = self.native(source, &plan);
        let shown = source.folder().display();
        let progress = Progress::bytes(format!("loading {shown}"), plan.weight_bytes);
        let mut tell = |done| progress.at(done);
        let mut engine = source.load(options, cpu, self.threads(), native.as_ref(), &mut tell)?;
        drop(progress);
        if let Some(native) = native.filter(|_| !engine.is_mapped()) {
            let progress = Progress::bytes(format!("writing the native form of {shown}"), plan.weight_bytes);
            let kept = interrupt::without_file_size_signal(|| {
                source.keep(&engine, &native, &mut |done| progress.at(done))
            });
            drop(progress);
            if let Err(error) = kept {
                output::warning(&format!(
                    "{error}; the next start repacks the weights again (--no-cache: do not try)"
                ));
            }
        }
        device.place(&mut engine)?;
        Ok(engine)
    }
}

/// How the options of a plan are spelled on the command line.
pub(crate) fn kv_name(kv: KvKind) -> &'static str {
    match kv {
        KvKind::F32 => "f32",
        KvKind::F16 => "f16",
        KvKind::Int8 => "int8",
    }
}

/// The same for the precision.
pub(crate) fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::Exact => "exact",
        Precision::Fast => "fast",
    }
}
