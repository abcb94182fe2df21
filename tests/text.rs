//! Text in and out against goldens of the original tools: tokenizers, streamed detokenizing, sampling.
//!
//! Chat templates stand in the same golden files and are tested in `templates.rs`.

// Helpers of a test may unwrap: a failure is a failed test.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use bantam_model::detokenizer::{ByteTable, Detokenizer};
use bantam_model::sampler::{Candidates, no_repeat_ngram, repetition_penalty};
use bantam_model::tokenizer::Tokenizer;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;

/// Some share a tokenizer, and their goldens say so.
const MODELS: [&str; 11] = [
    "gemma2",
    "gemma3",
    "gpt_neox",
    "gpt_neox-seq",
    "gpt_oss-bf16",
    "llama-tied",
    "llama-untied",
    "mistral",
    "mixtral",
    "phi3",
    "qwen2",
];

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

fn read(path: &str) -> Vec<u8> {
    let path = goldens().join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&read(path)).unwrap()
}

fn tokenizer(model: &str) -> Tokenizer {
    let file = |name: &str| read(&format!("models/{model}/{name}"));
    let config = file("tokenizer_config.json");
    let map = file("special_tokens_map.json");
    Tokenizer::from_bytes(&file("tokenizer.json"), Some(&config), Some(&map)).unwrap()
}

fn golden_text(model: &str) -> Value {
    let golden = json(&format!("models/{model}/golden_text.json"));
    match golden.get("same_as") {
        Some(other) => golden_text(other.as_str().unwrap()),
        None => golden,
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn stream(table: &Arc<ByteTable>, ids: &[u32], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(Arc::clone(table), skip_special);
    let mut all = String::new();
    for &id in ids {
        all.push_str(detokenizer.push(id));
    }
    all.push_str(detokenizer.finish());
    all
}

#[test]
fn roles_and_size_are_the_originals() {
    for model in MODELS {
        let (tokenizer, golden) = (tokenizer(model), golden_text(model));
        let id = |key: &str| golden[key].as_u64().map(|id| id as u32);
        assert_eq!(tokenizer.vocab_size() as u64, golden["vocab_size"].as_u64().unwrap(), "{model}");
        assert_eq!(
            (tokenizer.bos(), tokenizer.eos(), tokenizer.pad()),
            (id("bos"), id("eos"), id("pad")),
            "{model}"
        );
    }
}

#[test]
fn encoding_and_decoding_equal_the_original() {
    for model in MODELS {
        let (tokenizer, golden) = (tokenizer(model), golden_text(model));
        let table = Arc::new(ByteTable::new(&tokenizer).unwrap());
        assert!(list(&golden["encode"]).len() >= 50);
        for case in list(&golden["encode"]) {
            let given = text(&case["text"]);
            let with_special = tokenizer.encode(given, true).unwrap();
            assert_eq!(with_special, ids(&case["ids"]), "{model} {given:?}");
            assert_eq!(
                tokenizer.encode(given, false).unwrap(),
                ids(&case["ids_no_special"]),
                "{model} {given:?}"
            );
            check_offsets(&tokenizer, case);
            for (skip_special, key) in [(false, "decoded"), (true, "decoded_skip_special")] {
                assert_eq!(
                    tokenizer.decode(&with_special, skip_special),
                    text(&case[key]),
                    "{model} {given:?}"
                );
                assert_eq!(
                    stream(&table, &with_special, skip_special),
                    text(&case[key]),
                    "{model} {given:?}"
                );
            }
        }
    }
}

fn check_offsets(tokenizer: &Tokenizer, case: &Value) {
    let encoding = tokenizer.encode_with_offsets(text(&case["text"]), false).unwrap();
    let tokens: Vec<&str> = list(&case["tokens_no_special"]).iter().map(text).collect();
    let place = |value: &Value| value.as_u64().unwrap() as usize;
    let offsets: Vec<_> =
        list(&case["offsets_no_special"]).iter().map(|pair| (place(&pair[0]), place(&pair[1]))).collect();
    assert_eq!(encoding.ids, ids(&case["ids_no_special"]));
    assert_eq!(encoding.offsets, offsets, "{:?}", case["text"]);
    let spelled: Vec<String> = encoding.ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
    assert_eq!(spelled, tokens);
}

#[test]
fn every_prefix_decodes_as_the_original() {
    for model in MODELS {
        let (tokenizer, golden) = (tokenizer(model), golden_text(model));
        let table = Arc::new(ByteTable::new(&tokenizer).unwrap());
        let ids = ids(&golden["incremental"]["ids"]);
        for (length, expected) in list(&golden["incremental"]["prefix_texts"]).iter().enumerate() {
            assert_eq!(tokenizer.decode(&ids[..length], false), text(expected), "{model} {length}");
            assert_eq!(stream(&table, &ids[..length], false), text(expected), "{model} {length}");
        }
    }
}

#[test]
fn arbitrary_ids_decode_as_the_original() {
    for model in MODELS {
        let (tokenizer, golden) = (tokenizer(model), golden_text(model));
        let table = Arc::new(ByteTable::new(&tokenizer).unwrap());
        for case in list(&golden["decode_arbitrary"]) {
            let ids = ids(&case["ids"]);
            for (skip_special, key) in [(false, "decoded"), (true, "decoded_skip_special")] {
                assert_eq!(tokenizer.decode(&ids, skip_special), text(&case[key]), "{model} {ids:?}");
                assert_eq!(stream(&table, &ids, skip_special), text(&case[key]), "{model} {ids:?}");
            }
        }
    }
}

#[test]
fn streams_of_random_ids_equal_decode() {
    for model in MODELS {
        let tokenizer = tokenizer(model);
        let table = Arc::new(ByteTable::new(&tokenizer).unwrap());
        let ids = proptest::collection::vec(0..tokenizer.id_end() + 3, 0..60);
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
        let result = TestRunner::new(config).run(&(ids, any::<bool>()), |(ids, skip_special)| {
            prop_assert_eq!(stream(&table, &ids, skip_special), tokenizer.decode(&ids, skip_special));
            Ok(())
        });
        result.unwrap_or_else(|failure| panic!("{model}: {failure}"));
    }
}

#[test]
fn a_text_of_megabytes_encodes() {
    let long = "The quick brown fox, 12345 — jumps.\n\tüber 日本 ".repeat(40_000);
    assert!(long.len() > 1 << 20);
    for model in MODELS {
        let tokenizer = tokenizer(model);
        let ids = tokenizer.encode(&long, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).trim_start(), long, "{model}");
    }
}

/// A tensor of a safetensors file as 32-bit floats, or as integers where it has 64 bits.
struct Tensors {
    header: Value,
    data: Vec<u8>,
}

impl Tensors {
    fn open(path: &str) -> Self {
        let bytes = read(path);
        let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
        Tensors { header, data: bytes[8 + header_bytes..].to_vec() }
    }

    fn bytes(&self, name: &str, dtype: &str) -> &[u8] {
        let entry = &self.header[name];
        assert_eq!(entry["dtype"], dtype, "{name}");
        let place = |index: usize| entry["data_offsets"][index].as_u64().unwrap() as usize;
        &self.data[place(0)..place(1)]
    }

    fn columns(&self, name: &str) -> usize {
        self.header[name]["shape"][1].as_u64().unwrap() as usize
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name, "F32").chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.bytes(name, "I64")
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
            .collect()
    }
}

/// Applies the processors that a golden case names, left to right.
fn process(case: &str, params: &Value, logits: &mut [f32], history: &[u32]) -> Candidates {
    let param = |name: &str| params[name].as_f64().unwrap();
    let mut candidates = Candidates::new(logits.len());
    let mut loaded = false;
    for step in case.split('+') {
        match step {
            "repetition" | "repetition_penalty" => {
                assert!(!loaded);
                let mut counts = vec![0; logits.len()];
                repetition_penalty(logits, history, param("repetition_penalty"), &mut counts);
                continue;
            }
            "ngram" | "no_repeat_ngram_3" => {
                assert!(!loaded);
                no_repeat_ngram(logits, history, param("no_repeat_ngram") as usize);
                continue;
            }
            _ => {}
        }
        if !loaded {
            candidates.load(logits).unwrap();
            loaded = true;
        }
        match step {
            "temperature" => candidates.temperature(param(step)),
            "top_k" => candidates.top_k(param(step) as usize),
            "top_p" => candidates.top_p(param(step)),
            "min_p" => candidates.min_p(param(step)),
            "typical_p" => candidates.typical_p(param(step)),
            "epsilon_cutoff" => candidates.epsilon_cutoff(param(step)),
            "eta_cutoff" => candidates.eta_cutoff(param(step)),
            unknown => panic!("the golden names a processor that is not covered: {unknown}"),
        }
    }
    if !loaded {
        candidates.load(logits).unwrap();
    }
    candidates
}

/// Asserts equality bit for bit and returns the ids that are left open: where top-p cuts between *equal* logits,
/// which of them stay depends on torch's sort, which is unstable (its AVX-512 version drops one in the middle).
/// There, as many of them must stay.
fn check_logits(ours: &[f32], theirs: &[f32], has_top_p: bool, place: &str) -> Vec<usize> {
    let differ: Vec<usize> =
        (0..ours.len()).filter(|&id| ours[id].to_bits() != theirs[id].to_bits()).collect();
    assert!(has_top_p || differ.is_empty(), "{place}: {differ:?}");
    let least = theirs.iter().copied().filter(|logit| logit.is_finite()).fold(f32::INFINITY, f32::min);
    for &id in &differ {
        let (one, other) = (ours[id].max(theirs[id]), ours[id].min(theirs[id]));
        assert_eq!((one, other), (least, f32::NEG_INFINITY), "{place} id {id}: not a tie at the cut");
    }
    let kept = |logits: &[f32]| logits.iter().filter(|logit| logit.is_finite()).count();
    assert_eq!(kept(ours), kept(theirs), "{place}");
    differ
}

#[test]
fn every_sampling_processor_equals_the_original() {
    let golden = json("sampling/golden.json");
    let tensors = Tensors::open("sampling/golden.safetensors");
    let (vocab, history) = (tensors.columns("logits"), tensors.columns("prev_tokens"));
    let (logits, previous) = (tensors.floats("logits"), tensors.ids("prev_tokens"));
    let cases = list(&golden["cases"]);
    assert_eq!(cases.len(), 13);
    for case in cases.iter().map(text) {
        let processed = tensors.floats(&format!("processed.{case}"));
        let probabilities = tensors.floats(&format!("probs.{case}"));
        for row in 0..logits.len() / vocab {
            let cells = row * vocab..(row + 1) * vocab;
            let mut ours = logits[cells.clone()].to_vec();
            let tokens = &previous[row * history..(row + 1) * history];
            let mut candidates = process(case, &golden["params"], &mut ours, tokens);
            candidates.write_logits(&mut ours);
            let theirs = &processed[cells.clone()];
            let open = check_logits(&ours, theirs, case.contains("top_p"), &format!("{case} row {row}"));
            candidates.write_probabilities(&mut ours);
            for (id, (ours, theirs)) in ours.iter().zip(&probabilities[cells]).enumerate() {
                let near = (ours - theirs).abs() <= 1e-6;
                assert!(near || open.contains(&id), "{case} row {row} id {id}: {ours} is not {theirs}");
            }
        }
    }
}
