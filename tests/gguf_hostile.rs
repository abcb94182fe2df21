//! GGUF files that nobody honest wrote: what a head, its settings, its vocabulary and its blocks can get wrong is
//! refused, with a message that names the key or the tensor.
//!
//! Every case is a golden with some bytes changed, or a head written here.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use bantam_core::Cpu;
use bantam_model::gguf::Container;
use bantam_model::source::Source;
use bantam_tests::{options, repository};

/// A file that is gone when the test ends.
struct Written(PathBuf);

impl Written {
    fn new(bytes: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bantam-gguf-{}-{number}.gguf", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Written(path)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(repository("tests/goldens").join(name)).unwrap()
}

const SMALL: &str = "quant-made/gguf-families/model-llama.gguf";
const BLOCKS: &str = "quant/gguf-llama/model-Q4_0.gguf";

/// The message with which a file is refused, whoever of those that read it refuses it; `None` where all is well.
fn refusal(bytes: &[u8]) -> Option<String> {
    let file = Written::new(bytes);
    let source = match Source::open(&file.0) {
        Ok(source) => source,
        Err(error) => return Some(error.to_string()),
    };
    if let Err(error) = source.load(options(), Cpu::detect(), 1, None, &mut |_| {}) {
        return Some(error.to_string());
    }
    source.text().err().map(|error| error.to_string())
}

#[track_caller]
fn check(what: &str, bytes: &[u8], words: &[&str]) {
    let Some(message) = refusal(bytes) else { panic!("{what}: accepted") };
    for word in words {
        assert!(message.contains(word), "{what}: expected {word:?} in: {message}");
    }
    assert!(message.len() < 4096 && !message.chars().any(char::is_control), "{what}: {message:?}");
}

/// A text as the file has it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Where a key's value begins, its type first.
fn value_of(bytes: &[u8], key: &str) -> usize {
    let key = text(key);
    bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len()
}

/// The file with some bytes at a distance from where a name ends changed.
fn changed(bytes: &[u8], name: &str, distance: usize, new: &[u8]) -> Vec<u8> {
    let at = value_of(bytes, name) + distance;
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn settings_that_lie_are_refused_by_their_key() {
    let good = golden(SMALL);
    assert_eq!(refusal(&good), None, "the golden itself loads");
    let word = |n: u32| n.to_le_bytes();
    for (key, value, expected) in [
        ("llama.block_count", word(0), "llama.block_count"),
        ("llama.block_count", word(3), "blk.2"),
        ("llama.block_count", word(1 << 20), "llama.block_count"),
        ("llama.embedding_length", word(0), "llama.embedding_length"),
        ("llama.embedding_length", word(64), "model.embed_tokens"),
        ("llama.attention.head_count", word(0), "llama.attention.head_count"),
        ("llama.attention.head_count", word(3), "head"),
        ("llama.attention.head_count_kv", word(3), "llama.attention.head_count_kv"),
        ("llama.attention.key_length", word(7), "llama.attention.value_length"),
        ("llama.feed_forward_length", word(u32::MAX), "llama.feed_forward_length"),
        ("llama.context_length", word(0), "llama.context_length"),
        ("llama.rope.dimension_count", word(8), "llama.rope.dimension_count"),
        ("llama.rope.freq_base", f32::NAN.to_le_bytes(), "llama.rope.freq_base"),
        ("llama.attention.layer_norm_rms_epsilon", f32::INFINITY.to_le_bytes(), "layer_norm_rms_epsilon"),
        ("tokenizer.ggml.bos_token_id", word(1 << 30), "tokenizer.ggml.bos_token_id"),
    ] {
        // A layer more is a layer that is not there, under its usual name.
        let expected = expected.replace("blk.", "model.layers.");
        check(key, &changed(&good, key, 4, &value), &[&expected]);
    }
    check("another type", &changed(&good, "llama.block_count", 0, &word(6)), &["llama.block_count"]);
    check("no type", &changed(&good, "llama.block_count", 0, &word(13)), &["llama.block_count", "13"]);
    check(
        "another family",
        &changed(&good, "general.architecture", 12, b"camel"),
        &["general.architecture", "camel"],
    );
    check("another split", &changed(&good, "tokenizer.ggml.pre", 12, b"x"), &["tokenizer.ggml.pre"]);
    check("another tokenizer", &changed(&good, "tokenizer.ggml.model", 12, b"x"), &["tokenizer.ggml.model"]);
    let at = value_of(&good, "tokenizer.ggml.tokens");
    let mut nested = good.clone();
    nested[at + 4..at + 8].copy_from_slice(&word(9));
    check("arrays of arrays", &nested, &["tokenizer.ggml.tokens", "arrays"]);
    let mut endless = good.clone();
    endless[at + 8..at + 16].copy_from_slice(&u64::MAX.to_le_bytes());
    check("endless array", &endless, &["tokenizer.ggml.tokens"]);
    let mut broken = good.clone();
    broken[at + 24] = 0xff;
    check("bytes that are no text", &broken, &["tokenizer.ggml.tokens", "UTF-8"]);
    check(
        "no types",
        &changed(&good, "tokenizer.ggml.token_type", 4, &word(8)),
        &["tokenizer.ggml.token_type"],
    );
}

#[test]
fn tensors_that_lie_are_refused_by_their_name() {
    let good = golden(BLOCKS);
    let name = "blk.1.ffn_up.weight";
    let ours = "model.layers.1.mlp.up_proj.weight";
    let (word, long) = (|n: u32| n.to_le_bytes(), |n: u64| n.to_le_bytes());
    // Dimensions, sizes (128, 256), type, offset.
    check("no dimensions", &changed(&good, name, 0, &word(0)), &[name, "dimensions"]);
    check("five dimensions", &changed(&good, name, 0, &word(5)), &[name, "dimensions"]);
    check("a wider row", &changed(&good, name, 4, &long(160)), &["blk.1", "overlap"]);
    check("no whole block", &changed(&good, name, 4, &long(130)), &[name, "130", "Q4_0"]);
    check("fewer rows", &changed(&good, name, 12, &long(128)), &[ours, "shape"]);
    check("no rows", &changed(&good, name, 12, &long(0)), &[ours, "shape"]);
    check("too many rows", &changed(&good, name, 12, &long(1 << 62)), &[name, "2^63"]);
    check(
        "zero times too many",
        &changed(&good, name, 4, &[long(0), long(1 << 62)].concat()),
        &[name, "2^63"],
    );
    check("rows past the end", &changed(&good, name, 12, &long(1 << 40)), &[name, "cut short"]);
    check("an unknown type", &changed(&good, name, 20, &word(99)), &[name, "99"]);
    check("a type that was given up", &changed(&good, name, 20, &word(4)), &[name, "4"]);
    check("a type that is not read", &changed(&good, name, 20, &word(20)), &[name, "IQ4_NL"]);
    check("a type of integers", &changed(&good, name, 20, &word(24)), &["blk.1", "overlap"]);
    check("an odd offset", &changed(&good, name, 24, &long(33)), &[name, "multiple of 32"]);
    check("an offset past the end", &changed(&good, name, 24, &long(1 << 40)), &[name, "cut short"]);
    check("an offset beyond numbers", &changed(&good, name, 24, &long(u64::MAX - 31)), &[name, "cut short"]);
    check("the first tensor's place", &changed(&good, name, 24, &long(0)), &["overlap"]);
    let twice = changed(&good, "blk.1.ffn_up.weight", 0, &[]);
    let at = value_of(&twice, "blk.1.ffn_up.weight") - 13;
    let mut twice = twice;
    twice[at - 2..at - 1].copy_from_slice(b"0");
    check("a name twice", &twice, &["blk.0.ffn_up.weight", "twice"]);
    let missing = changed(&good, "blk.1.ffn_up.weight", 0, &[]);
    let at = value_of(&missing, "blk.1.ffn_up.weight") - 1;
    let mut missing = missing;
    missing[at] = b'T';
    check("not there", &missing, &[ours, "not in the checkpoint"]);
}

#[test]
fn scales_that_are_no_numbers_are_refused() {
    for kind in ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "TQ2_0", "MXFP4"] {
        let good = golden(&format!("quant/gguf-llama/model-{kind}.gguf"));
        // Of the last matrix, every byte.
        let at = value_of(&good, "blk.0.ffn_down.weight");
        let offset = u64::from_le_bytes(good[at + 24..at + 32].try_into().unwrap());
        let head = value_of(&good, "output_norm.weight") + 24;
        let start = head.next_multiple_of(32) + offset as usize;
        let mut bad = good.clone();
        bad[start..start + 2048].fill(0xff);
        check(kind, &bad, &["model.layers.0.mlp.down_proj.weight"]);
    }
}

#[test]
fn every_cut_of_a_head_is_refused() {
    let good = golden(SMALL);
    for end in (0..good.len()).step_by(97).chain(0..200) {
        let cut = &good[..end];
        assert!(Container::parse(cut, cut.len() as u64).is_err(), "cut at {end}");
    }
    for end in [0, 3, 4, 8, 24, 5000, good.len() - 1] {
        assert!(refusal(&good[..end]).is_some(), "cut at {end}");
    }
    check("another file", b"PK\x03\x04 and more than a few bytes of it", &["GGUF"]);
    check("another version", &[b"GGUF".as_slice(), &[1, 0, 0, 0], &[0; 64]].concat(), &["version", "1"]);
    check("big-endian", &[b"GGUF".as_slice(), &[0, 0, 0, 3], &[0; 64]].concat(), &["little-endian"]);
    let many = [b"GGUF".as_slice(), &[3, 0, 0, 0], &u64::MAX.to_le_bytes(), &[0; 64]].concat();
    check("many tensors", &many, &["tensors", "50000"]);
}

#[test]
fn parts_of_a_split_file_must_all_be_there_and_in_order() {
    let home = repository("tests/goldens/quant-made/gguf-families");
    let folder = std::env::temp_dir().join(format!("bantam-gguf-parts-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let name = |number: u32| format!("model-qwen3-0000{number}-of-00003.gguf");
    for number in 1..=3 {
        fs::copy(home.join(name(number)), folder.join(name(number))).unwrap();
    }
    assert!(Source::open(&folder).is_ok(), "a folder that holds one model, in parts");
    let message = Source::open(&folder.join(name(2))).unwrap_err().to_string();
    assert!(message.contains("first"), "{message}");
    fs::copy(home.join(name(2)), folder.join(name(3))).unwrap();
    let message = Source::open(&folder).unwrap_err().to_string();
    assert!(message.contains("split.no") && message.contains(&name(3)), "{message}");
    fs::remove_file(folder.join(name(3))).unwrap();
    let message = Source::open(&folder).unwrap_err().to_string();
    assert!(message.contains(&name(3)), "{message}");
    fs::remove_dir_all(&folder).unwrap();
}
