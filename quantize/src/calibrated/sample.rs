//! Tokens to calibrate with: from text, or written by the model itself.
//!
//! What a model writes when nobody asks is close to what it was trained on, in its own proportions of languages and
//! formats, and needs no text to be carried or fetched.

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::engine::Chunk;
use bantam_model::plan::Options;
use bantam_model::sampler::{Sampler, SamplingParams};
use bantam_model::source::Source;

use super::said;
use crate::layerwise::MethodError;

/// Tokens of a text, as it stands.
pub fn of_text(source: &Source, text: &str) -> Result<Vec<u32>, MethodError> {
    let tokenizer = source.text().map_err(|error| said(&error))?.tokenizer;
    tokenizer.encode(text, false).map_err(|error| said(&source.tokenizer_error(error)))
}

/// How much the model writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Sequences.
    pub sequences: usize,
    /// Tokens of each.
    pub length: usize,
    /// Same seed, same tokens.
    pub seed: u64,
    /// Threads that compute.
    pub threads: usize,
}

/// Sequences at once: what a step costs is mostly reading weights.
const TOGETHER: usize = 64;

/// Options of a run that writes, for whoever plans its memory.
pub fn options(written: &Written) -> Options {
    let sequences = written.sequences.clamp(1, TOGETHER);
    Options {
        context: written.length,
        sequences,
        cache_positions: None,
        chunk: sequences,
        logits_rows: sequences,
        kv: KvKind::F32,
        precision: Precision::Exact,
        quantization: None,
        head: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    }
}

/// Lets the model write: every sequence begins with a token drawn from the whole vocabulary and goes on at temperature
/// 1, ends of text included.
pub fn write(source: &Source, written: &Written, cpu: Cpu) -> Result<Vec<u32>, MethodError> {
    let options = options(written);
    let mut engine =
        source.load(options, cpu, written.threads, None, &mut |_| {}).map_err(|error| said(&error))?;
    let vocab = source.spec.vocab;
    let mut tokens = Vec::with_capacity(written.sequences * written.length);
    for first in (0..written.sequences).step_by(options.sequences) {
        let count = options.sequences.min(written.sequences - first);
        let mut sequences = Vec::with_capacity(count);
        for number in first..first + count {
            let seed = written.seed.wrapping_add(number as u64);
            let sampler = Sampler::new(SamplingParams { seed, ..SamplingParams::default() }, vocab);
            let mut sampler = sampler.map_err(|error| said(&error))?;
            sampler.begin(0);
            let start = sampler.sample(&mut vec![0.0; vocab], &[]).map_err(|error| said(&error))?;
            let slot = engine.open().expect("as many sequences as were planned");
            sequences.push((slot, sampler, vec![start]));
        }
        let rows: Vec<usize> = (0..count).collect();
        for _ in 1..written.length {
            let last: Vec<[u32; 1]> =
                sequences.iter().map(|(_, _, tokens)| [tokens[tokens.len() - 1]]).collect();
            let chunks = sequences
                .iter()
                .zip(&last)
                .map(|((sequence, ..), tokens)| Chunk { sequence: *sequence, tokens });
            engine.step(&chunks.collect::<Vec<_>>()).map_err(|error| said(&error))?;
            let logits = engine.logits(&rows);
            for ((_, sampler, tokens), logits) in sequences.iter_mut().zip(logits.chunks_exact_mut(vocab)) {
                tokens.push(sampler.sample(logits, &[]).map_err(|error| said(&error))?);
            }
        }
        for (slot, _, written) in sequences {
            engine.close(slot);
            tokens.extend(written);
        }
    }
    Ok(tokens)
}
