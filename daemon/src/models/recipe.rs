//! How a model is to be loaded: what a request asked for, over the daemon's settings, as the numbers of a plan.

use std::time::Duration;

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::formats::on_load::{OnLoad, way};
use bantam_model::plan::Options;
use bantam_model::pool::Threads;
use bantam_model::spec::ModelSpec;

use crate::settings::{KvName, PrecisionName, Settings};

/// Positions where nobody asks for fewer or more.
const CONTEXT: usize = 4096;
/// Tokens of a prompt that are computed together, where nobody says.
const CHUNK: usize = 512;

/// A way to quantize while loading; nothing leaves the matrices as they are.
type Way = Option<&'static OnLoad>;

/// What a request says of a load, each value within its range; what is absent is left to the settings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Asked {
    pub(crate) precision: Option<Precision>,
    pub(crate) kv: Option<KvKind>,
    pub(crate) context: Option<usize>,
    pub(crate) slots: Option<usize>,
    pub(crate) chunk: Option<usize>,
    pub(crate) quantization: Option<Way>,
    pub(crate) head: Option<Way>,
    pub(crate) experts: Option<Way>,
    pub(crate) threads: Option<usize>,
    pub(crate) no_cache: Option<bool>,
    pub(crate) cache_positions: Option<usize>,
    pub(crate) adapter_bytes: Option<usize>,
    pub(crate) pin: Option<bool>,
    /// Nothing inside is for ever.
    pub(crate) ttl: Option<Option<Duration>>,
}

/// The same with everything filled in, but for what may change while the model is resident.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Recipe {
    pub(crate) options: Options,
    pub(crate) threads: usize,
    pub(crate) no_cache: bool,
}

impl Recipe {
    pub(crate) fn new(asked: &Asked, settings: &Settings, spec: &ModelSpec) -> Self {
        let precision = asked.precision.unwrap_or(match settings.load_precision {
            PrecisionName::Exact => Precision::Exact,
            PrecisionName::Fast => Precision::Fast,
        });
        let kv = asked.kv.unwrap_or(match settings.load_kv {
            KvName::F32 => KvKind::F32,
            KvName::F16 => KvKind::F16,
            KvName::Int8 => KvKind::Int8,
            KvName::Auto => spec.usual_kv(precision, || settings.device.is_there()),
        });
        let usual = Some(settings.context).filter(|&context| context > 0).unwrap_or(CONTEXT);
        let context = asked.context.unwrap_or(usual.min(spec.context));
        let sequences = asked.slots.unwrap_or(settings.slots);
        // A step never has more tokens than all sequences together, and always room for one of each.
        let most = context.saturating_mul(sequences).max(1);
        let chunk = asked.chunk.unwrap_or(CHUNK).min(most).max(sequences);
        let usual_adapters = usize::try_from(settings.adapter_bytes.0).unwrap_or(usize::MAX);
        let usual = Some(settings.threads).filter(|&threads| threads > 0);
        let threads = asked.threads.or(usual).unwrap_or_else(Threads::available);
        let options = Options {
            context,
            sequences,
            cache_positions: asked.cache_positions,
            chunk,
            logits_rows: sequences,
            kv,
            precision,
            quantization: asked.quantization.unwrap_or(way(&settings.load_quantization)),
            head: asked.head.unwrap_or(way(&settings.load_head)),
            experts: asked.experts.unwrap_or(way(&settings.load_experts)),
            trits: Trits::of(Cpu::detect(), threads),
            adapter_bytes: asked.adapter_bytes.unwrap_or(usual_adapters),
        };
        Recipe { options, threads, no_cache: asked.no_cache.unwrap_or(!settings.native_files) }
    }

    /// The fields of `options` in a request that ask for something else than this.
    pub(crate) fn differences(&self, asked: &Asked) -> Vec<&'static str> {
        fn differs<T: PartialEq>(asked: Option<T>, is: T) -> bool {
            asked.is_some_and(|asked| asked != is)
        }
        let name = |way: Way| way.map(|way| way.name);
        let o = &self.options;
        let fields = [
            ("precision", differs(asked.precision, o.precision)),
            ("kv", differs(asked.kv, o.kv)),
            ("context", differs(asked.context, o.context)),
            ("slots", differs(asked.slots, o.sequences)),
            // A chunk is cut to what the slots can use.
            ("chunk", differs(asked.chunk.map(|chunk| self.chunk(chunk)), o.chunk)),
            ("quantization", differs(asked.quantization.map(name), name(o.quantization))),
            ("head", differs(asked.head.map(name), name(o.head))),
            ("experts", differs(asked.experts.map(name), name(o.experts))),
            ("threads", differs(asked.threads, self.threads)),
            ("no_cache", differs(asked.no_cache, self.no_cache)),
            ("cache_positions", differs(asked.cache_positions.map(Some), o.cache_positions)),
            ("adapter_bytes", differs(asked.adapter_bytes, o.adapter_bytes)),
        ];
        fields.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    fn chunk(&self, asked: usize) -> usize {
        let Options { context, sequences, .. } = self.options;
        asked.min(context.saturating_mul(sequences).max(1)).max(sequences)
    }
}
