//! What a client asks for, checked: every number within its range before anything is computed, every refusal with the
//! field's path. What only a model can tell (its vocabulary, its context) is told by the model.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bantam_core::{KvKind, Precision};
use bantam_model::embedding::Pooling;
use bantam_model::engine::StepError;
use bantam_model::formats::on_load::{OnLoad, WAYS, way};
use bantam_model::generate::GenerateError;
use bantam_model::generation::{
    EosSources, GenerationDefaults, GenerationError, GenerationFlags, TOKENS_MAX,
};
use bantam_model::likelihood::ALTERNATIVES_MAX;
use bantam_model::sampler::SamplerError;
use bantam_proto::v1;

use crate::models::Asked;
use crate::scheduler::WorkError;
use crate::status::Trouble;

/// Longer texts are longer than any context, and keep the tokenizer busy for nothing.
pub(super) const TEXT_BYTES_MAX: usize = 4 << 20;
const BIASES_MAX: usize = 1024;
const INPUTS_MAX: usize = 256;
const SCOPE_BYTES_MAX: usize = 256;
/// The longest span that a setting may have, too.
const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);

/// A text, or token ids as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Text(String),
    Ids(Vec<u32>),
}

/// How to generate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sampling {
    pub(super) flags: GenerationFlags,
    pub(super) seed: u64,
    /// Log-probabilities, with so many others.
    pub(super) alternatives: Option<usize>,
    /// The words by which it shares beginnings with others of its client; nothing where it shares none.
    pub(super) scope: Option<String>,
    /// What is beside the model for this request alone; empty for nothing.
    pub(super) adapter: String,
}

fn size(number: u32) -> usize {
    // Lossless: there are no 16-bit machines here.
    number as usize
}

/// Refuses a text that is too long.
pub(super) fn check_bytes(field: &str, text: &str) -> Result<(), Trouble> {
    match text.len() {
        0..=TEXT_BYTES_MAX => Ok(()),
        found => {
            let why = format!("expected at most {TEXT_BYTES_MAX} bytes, found {found}; shorten it");
            Err(Trouble::field(field, why))
        }
    }
}

fn input(text: Result<String, v1::TokenIds>, names: [&str; 2]) -> Result<Input, Trouble> {
    let empty = |field| Trouble::field(field, "expected some, found none; give a text or token ids");
    match text {
        Ok(text) if text.is_empty() => Err(empty(names[0])),
        Ok(text) => check_bytes(names[0], &text).map(|()| Input::Text(text)),
        Err(ids) if ids.ids.is_empty() => Err(empty(names[1])),
        Err(ids) => Ok(Input::Ids(ids.ids)),
    }
}

fn missing(field: &str) -> Trouble {
    Trouble::field(field, "expected a text or token ids, found neither; give one of them")
}

/// What `Generate` continues.
pub(super) fn prompt(found: Option<v1::generate_request::Input>) -> Result<Input, Trouble> {
    use v1::generate_request::Input as Of;
    let found = match found.ok_or_else(|| missing("prompt"))? {
        Of::Prompt(text) => Ok(text),
        Of::PromptIds(ids) => Err(ids),
    };
    input(found, ["prompt", "prompt_ids"])
}

/// What `Score` reads.
pub(super) fn scored(found: Option<v1::score_request::Input>) -> Result<Input, Trouble> {
    use v1::score_request::Input as Of;
    let found = match found.ok_or_else(|| missing("text"))? {
        Of::Text(text) => Ok(text),
        Of::Ids(ids) => Err(ids),
    };
    input(found, ["text", "ids"])
}

/// What `Embed` reads.
pub(super) fn embedded(found: Vec<v1::EmbedInput>) -> Result<Vec<Input>, Trouble> {
    use v1::embed_input::Input as Of;
    if found.is_empty() || found.len() > INPUTS_MAX {
        let why = format!("expected 1 to {INPUTS_MAX} texts, found {}; send them in parts", found.len());
        return Err(Trouble::field("inputs", why));
    }
    let one = |(number, one): (usize, v1::EmbedInput)| {
        let (text, ids) = (format!("inputs[{number}].text"), format!("inputs[{number}].ids"));
        let found = match one.input.ok_or_else(|| missing(&text))? {
            Of::Text(text) => Ok(text),
            Of::Ids(ids) => Err(ids),
        };
        input(found, [&text, &ids])
    };
    found.into_iter().enumerate().map(one).collect()
}

/// How `Embed` pools.
pub(super) fn pooling(found: i32) -> Result<Pooling, Trouble> {
    match v1::Pooling::try_from(found) {
        Ok(v1::Pooling::Unspecified | v1::Pooling::Mean) => Ok(Pooling::Mean),
        Ok(v1::Pooling::Last) => Ok(Pooling::Last),
        Err(_) => Err(unknown("pooling", found)),
    }
}

/// A number that is no value of its enum.
pub(super) fn unknown(field: &str, found: i32) -> Trouble {
    Trouble::field(
        field,
        format!("expected a value of its enum, found {found}; this daemon does not know it"),
    )
}

/// Refuses what has its place and does nothing yet.
fn check_not_yet(options: &v1::GenerationOptions) -> Result<(), Trouble> {
    let fields = [
        (options.structured_output.is_some(), "structured_output is not yet: leave it out"),
        (
            options.prefix_cache.as_ref().is_some_and(|prefix| prefix.keep.is_some()),
            "prefix_cache.keep is not yet: leave it out, the least recently used leave first",
        ),
        (options.speculation.is_some(), "speculation is not yet: leave it out"),
        (options.priority != 0, "priorities are not yet: leave `priority` out"),
    ];
    match fields.iter().find(|(is_set, _)| *is_set) {
        Some((_, what)) => Err(Trouble::NotYet(what)),
        None => Ok(()),
    }
}

/// The words by which a request shares beginnings, unless it wants none.
fn scope(found: Option<v1::PrefixCache>) -> Result<Option<String>, Trouble> {
    let v1::PrefixCache { off, scope, .. } = found.unwrap_or_default();
    match scope.len() {
        0..=SCOPE_BYTES_MAX => Ok((!off).then_some(scope)),
        found => {
            let why = format!("expected at most {SCOPE_BYTES_MAX} bytes, found {found}; shorten it");
            Err(Trouble::field("options.prefix_cache.scope", why))
        }
    }
}

fn biases(found: &[v1::LogitBias]) -> Result<Vec<(u32, f32)>, Trouble> {
    const FIELD: &str = "options.logit_bias";
    if found.len() > BIASES_MAX {
        let why = format!("expected at most {BIASES_MAX}, found {}; leave some out", found.len());
        return Err(Trouble::field(FIELD, why));
    }
    let mut all: Vec<(u32, f32)> = found.iter().map(|one| (one.id, one.bias)).collect();
    if let Some((id, bias)) = all.iter().find(|(_, bias)| !bias.is_finite() && *bias != f32::NEG_INFINITY) {
        let why = format!("expected finite numbers or minus infinity, found {bias} for id {id}; correct it");
        return Err(Trouble::field(FIELD, why));
    }
    all.sort_by_key(|(id, _)| *id);
    match all.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => {
            let why = format!("expected every token once, found id {} twice; leave one out", pair[0].0);
            Err(Trouble::field(FIELD, why))
        }
        None => Ok(all),
    }
}

/// How `Generate` and `Chat` generate.
pub(super) fn sampling(
    options: Option<v1::GenerationOptions>,
    max_new_tokens: Option<u32>,
) -> Result<Sampling, Trouble> {
    let options = options.unwrap_or_default();
    check_not_yet(&options)?;
    if let Some(found) = max_new_tokens.filter(|&found| found == 0 || size(found) > TOKENS_MAX) {
        let why = format!("expected 1 to {TOKENS_MAX}, found {found}; correct it");
        return Err(Trouble::field("max_new_tokens", why));
    }
    let alternatives = size(options.alternatives);
    if alternatives > ALTERNATIVES_MAX {
        let why = format!("expected 0 to {ALTERNATIVES_MAX}, found {alternatives}; ask for fewer");
        return Err(Trouble::field("options.alternatives", why));
    }
    let seed = options.seed.unwrap_or_else(drawn_seed);
    let flags = GenerationFlags {
        max_new_tokens: max_new_tokens.map(size),
        do_sample: options.do_sample,
        temperature: options.temperature,
        top_k: options.top_k.map(size),
        top_p: options.top_p,
        min_p: options.min_p,
        typical_p: options.typical_p,
        repetition_penalty: options.repetition_penalty,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        no_repeat_ngram: options.no_repeat_ngram.map(size),
        logit_bias: biases(&options.logit_bias)?,
        seed: Some(seed),
        stop: options.stop,
        ignore_eos: options.ignore_eos,
    };
    // The ranges are the sampler's own, whatever the model.
    let checked = GenerationDefaults::default().settings(&flags, EosSources::default());
    checked.map_err(of_settings)?;
    let alternatives = (options.log_probabilities || alternatives > 0).then_some(alternatives);
    Ok(Sampling { flags, seed, alternatives, adapter: options.adapter, scope: scope(options.prefix_cache)? })
}

/// A seed that differs from request to request, short enough to be typed again.
fn drawn_seed() -> u64 {
    RandomState::new().hash_one(0) % 1_000_000_000
}

/// What a model's file and the request come to, where they come to nothing.
pub(super) fn of_settings(error: GenerationError) -> Trouble {
    match error {
        GenerationError::MaxNewTokens { .. } => Trouble::field("max_new_tokens", error),
        GenerationError::Stop(_) => Trouble::field("options.stop", error),
        GenerationError::Sampling(error) => of_sampler(&error),
        GenerationError::NotJson { .. } | GenerationError::Value { .. } => {
            Trouble::Precondition(error.to_string())
        }
    }
}

fn of_sampler(error: &SamplerError) -> Trouble {
    match error {
        SamplerError::Parameter { name, .. } => Trouble::field(format!("options.{name}"), error),
        SamplerError::Bias { .. } | SamplerError::NothingLeft => Trouble::field("options.logit_bias", error),
        _ => Trouble::Precondition(error.to_string()),
    }
}

/// Why a turn cannot begin, where the request's prompt is this field.
pub(super) fn of_turn(error: GenerateError, field: &str) -> Trouble {
    match error {
        GenerateError::Sampler(error) => of_sampler(&error),
        GenerateError::Stop(_) => Trouble::field("options.stop", error),
        GenerateError::Alternatives { .. } => Trouble::field("options.alternatives", error),
        // The library speaks of its flags.
        GenerateError::Step(StepError::UnknownToken { token, vocab }) => {
            let why = format!("expected ids below {vocab}, found {token}; use this model's tokenizer");
            Trouble::field(field, why)
        }
        GenerateError::Step(StepError::ContextFull { asked, context }) => {
            let why = format!(
                "expected at most {context} tokens, the model's context here, found {asked}; shorten it, or load the \
                 model with a longer context"
            );
            Trouble::field(field, why)
        }
        _ => Trouble::field(field, error),
    }
}

/// Why given tokens cannot be read, where they are this field of the request.
pub(super) fn of_work(error: WorkError, field: &str) -> Trouble {
    match error {
        WorkError::First { .. } => Trouble::field("first_scored", error),
        _ => Trouble::field(field, error),
    }
}

fn ranged(field: &str, found: Option<u32>, most: usize) -> Result<Option<usize>, Trouble> {
    match found.map(size) {
        Some(found) if found == 0 || found > most => {
            let why = format!("expected 1 to {most}, found {found}; correct it");
            Err(Trouble::field(format!("options.{field}"), why))
        }
        found => Ok(found),
    }
}

fn way_of(field: &str, found: Option<String>) -> Result<Option<Option<&'static OnLoad>>, Trouble> {
    let Some(name) = found else { return Ok(None) };
    if name == "none" {
        return Ok(Some(None));
    }
    match way(&name) {
        Some(way) => Ok(Some(Some(way))),
        None => {
            let names: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
            let found: String = name.chars().take(40).collect();
            let why = format!("expected none or one of {}, found {found:?}; choose one", names.join(", "));
            Err(Trouble::field(format!("options.{field}"), why))
        }
    }
}

/// A span of a request, zero or more.
pub(super) fn span(field: &str, found: prost_types::Duration, most: Duration) -> Result<Duration, Trouble> {
    let (seconds, nanos) = (u64::try_from(found.seconds), u32::try_from(found.nanos));
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && Duration::new(seconds, nanos) <= most => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => {
            let (seconds, nanos, most) = (found.seconds, found.nanos, most.as_secs());
            let why = format!("expected 0 to {most} seconds, found {seconds} s and {nanos} ns; correct it");
            Err(Trouble::field(field, why))
        }
    }
}

/// How `Load` and `Plan` load.
pub(super) fn load_options(found: Option<v1::LoadOptions>) -> Result<Asked, Trouble> {
    let found = found.unwrap_or_default();
    let precision = match v1::Precision::try_from(found.precision) {
        Ok(v1::Precision::Unspecified) => None,
        Ok(v1::Precision::Exact) => Some(Precision::Exact),
        Ok(v1::Precision::Fast) => Some(Precision::Fast),
        Err(_) => return Err(unknown("options.precision", found.precision)),
    };
    let kv = match v1::KvType::try_from(found.kv) {
        Ok(v1::KvType::Unspecified) => None,
        Ok(v1::KvType::F32) => Some(KvKind::F32),
        Ok(v1::KvType::F16) => Some(KvKind::F16),
        Ok(v1::KvType::Int8) => Some(KvKind::Int8),
        Err(_) => return Err(unknown("options.kv", found.kv)),
    };
    let large = |field: &str, found: Option<u64>, least: usize| match found.map(usize::try_from) {
        None => Ok(None),
        Some(Ok(number)) if (least..=1 << 40).contains(&number) => Ok(Some(number)),
        Some(_) => {
            let found = found.unwrap_or_default();
            let why = format!("expected {least} to {}, found {found}; correct it", 1_u64 << 40);
            Err(Trouble::field(format!("options.{field}"), why))
        }
    };
    let ttl = found.ttl.map(|ttl| span("options.ttl", ttl, TTL_MAX)).transpose()?;
    Ok(Asked {
        precision,
        kv,
        context: ranged("context", found.context, 1 << 30)?,
        slots: ranged("slots", found.slots, crate::scheduler::SEQUENCES_MAX)?,
        chunk: ranged("chunk", found.chunk, 1 << 20)?,
        quantization: way_of("quantization", found.quantization)?,
        head: way_of("head", found.head)?,
        experts: way_of("experts", found.experts)?,
        threads: ranged("threads", found.threads, 1024)?,
        no_cache: found.no_cache,
        cache_positions: large("cache_positions", found.cache_positions, 1)?,
        adapter_bytes: large("adapter_bytes", found.adapter_bytes, 0)?,
        pin: found.pin,
        ttl: ttl.map(|ttl| Some(ttl).filter(|ttl| !ttl.is_zero())),
    })
}
