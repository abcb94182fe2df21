//! Flags as the daemon takes them: only what was given, so that the rest stays the daemon's or the model's.

use bantam_model::generation::GenerationFlags;
use bantam_proto::v1;

/// How to choose tokens. (The number of tokens stands in the request itself.)
pub(crate) fn generation_options(flags: GenerationFlags) -> v1::GenerationOptions {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    v1::GenerationOptions {
        do_sample: flags.do_sample,
        temperature: flags.temperature,
        top_k: flags.top_k.map(count),
        top_p: flags.top_p,
        min_p: flags.min_p,
        typical_p: flags.typical_p,
        repetition_penalty: flags.repetition_penalty,
        presence_penalty: flags.presence_penalty,
        frequency_penalty: flags.frequency_penalty,
        no_repeat_ngram: flags.no_repeat_ngram.map(count),
        logit_bias: flags.logit_bias.into_iter().map(|(id, bias)| v1::LogitBias { id, bias }).collect(),
        seed: flags.seed,
        stop: flags.stop,
        ignore_eos: flags.ignore_eos,
        ..v1::GenerationOptions::default()
    }
}
