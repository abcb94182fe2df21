//! Files nobody honest wrote: every malformed checkpoint of the fault list is refused, with a message that names the
//! file and, where there is one, the tensor.
//!
//! Time is not asserted, because test machines are shared: the promise of 100 ms and 64 MiB is measured elsewhere.
//! Fuzzing looks for what this list forgot (tests/fuzz).
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use bantam_model::checkpoint::header::{self, PREFIX_BYTES};
use bantam_model::checkpoint::{Checkpoint, Dtype, writer::write_safetensors};
use bantam_model::files::ModelFiles;
use proptest::prelude::*;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const MODEL: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A folder that is gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bantam-hostile-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A small good shard with one U8 tensor for each name.
    fn shard(&self, file: &str, tensors: &[&str]) -> PathBuf {
        let path = self.0.join(file);
        let tensors: Vec<_> = tensors.iter().map(|&name| (name, Dtype::U8, &[1][..], &[7][..])).collect();
        write_safetensors(&path, &tensors, &[]).unwrap();
        path
    }

    fn index(&self, pairs: &[(&str, &str)]) {
        let pairs: Vec<_> = pairs.iter().map(|(tensor, shard)| format!("{tensor:?}:{shard:?}")).collect();
        self.write(INDEX, format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", pairs.join(",")));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The one assertion: refused, and the message holds each of `expected`.
fn check(path: &Path, expected: &[&str]) {
    let message = Checkpoint::open(path).expect_err("must be refused").to_string();
    for part in expected {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
    assert!(message.len() < 4096, "a message is for people: {} bytes", message.len());
    assert!(!message.chars().any(char::is_control), "a message must not drive the terminal: {message:?}");
}

fn file(text: &[u8], data_len: usize) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text, &vec![0; data_len]].concat()
}

/// A file whose header is `text`, followed by `data_len` zeros, is refused.
fn check_header(text: &str, data_len: usize, expected: &[&str]) {
    let folder = Folder::new();
    let path = folder.write(MODEL, file(text.as_bytes(), data_len));
    check(&path, &[&[MODEL], expected].concat());
    check(&folder.0, &[&[MODEL], expected].concat());
}

fn goldens() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/models");
    let folders = fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path().join(MODEL));
    let found: Vec<_> = folders.filter(|path| path.is_file()).collect();
    assert!(!found.is_empty(), "no golden checkpoint to cut");
    found
}

#[test]
fn goldens_are_accepted() {
    for path in goldens() {
        let checkpoint = Checkpoint::open(path.parent().unwrap()).unwrap();
        assert!(checkpoint.tensors().len() > 10);
        assert_eq!(checkpoint.file_bytes(), fs::metadata(path).unwrap().len());
    }
    let sharded = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/models/llama-untied");
    let checkpoint = Checkpoint::open(&sharded).unwrap();
    assert_eq!(
        checkpoint.tensor("lm_head.weight").unwrap().file,
        sharded.join("model-00005-of-00005.safetensors")
    );
}

#[test]
fn a_file_cut_at_any_byte_of_its_header_is_refused() {
    for golden in goldens() {
        let bytes = fs::read(&golden).unwrap();
        let folder = Folder::new();
        let path = folder.write(MODEL, &bytes);
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let cut = OpenOptions::new().write(true).open(&path).unwrap();
        for len in (0..PREFIX_BYTES + length).rev() {
            cut.set_len(len).unwrap();
            check(&path, &[MODEL, "download"]);
        }
    }
}

#[test]
fn a_file_cut_at_any_tensor_is_refused_by_name() {
    for golden in goldens() {
        let bytes = fs::read(&golden).unwrap();
        let header = header::parse(&bytes, bytes.len() as u64).unwrap();
        let folder = Folder::new();
        let path = folder.write(MODEL, &bytes);
        let cut = OpenOptions::new().write(true).open(&path).unwrap();
        for i in (0..header.len()).rev() {
            let entry = header.entry(i);
            for len in [entry.end - 1, entry.start] {
                cut.set_len(len).unwrap();
                check(&path, &[MODEL, "tensor \"", "cut short"]);
            }
        }
        // A byte too many is refused as well: nobody knows what it is.
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        check(&path, &[MODEL, "end with the last tensor"]);
    }
}

#[test]
fn header_lengths_that_lie_are_refused() {
    let folder = Folder::new();
    let good = file(br#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    for length in [0, 1, good.len() as u64 - 7, 1 << 31, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 7] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        check(&folder.write(MODEL, bytes), &[MODEL, &length.to_string()]);
    }
    // One that the (sparse) file does have, but that nobody should read.
    let path = folder.write(MODEL, (1u64 << 33).to_le_bytes());
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 34).unwrap();
    check(&path, &[MODEL, "16777216"]);
}

#[test]
fn what_downloads_leave_in_the_place_of_weights_is_called_by_its_name() {
    let folder = Folder::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n";
    check(&folder.write(MODEL, pointer), &[MODEL, "a Git LFS pointer", "git lfs pull"]);
    for page in ["<!DOCTYPE html>\n<html>", "<html><head><title>é", "\n  <html lang=\"en\">"] {
        check(&folder.write(MODEL, page), &[MODEL, "a web page", "download the file itself"]);
    }
    // A header's length may begin with the byte of '<'.
    check(&folder.write(MODEL, b"<\0\0\0\0\0\0\0{}"), &[MODEL, "header length is 60"]);
    for length in 0..10 {
        let found = format!("found a file of {length} bytes");
        check(&folder.write(MODEL, &[0; 9][..length]), &[MODEL, "at least 2 of header", &found]);
    }
}

#[test]
fn hostile_json_is_refused() {
    check_header(&"[".repeat(10_000), 0, &["expected '{'"]);
    check_header(&"{\"a\":".repeat(10_000), 0, &["tensor \"a\"", "expected the keys"]);
    check_header(
        &format!("{{\"w\":{{\"shape\":{}", "[".repeat(10_000)),
        0,
        &["tensor \"w\"", "whole number"],
    );
    check_header(&format!("{{\"__metadata__\":{{\"w\":{}", "[".repeat(10_000)), 0, &["__metadata__"]);
    check_header(&" ".repeat(1 << 20), 0, &["expected '{'"]);
    check_header(&format!("{{\"{}", "a".repeat(1 << 20)), 0, &["closing quote"]);
    check_header(
        &format!("{{\"{}\":{{}}}}", "a".repeat(1 << 20)),
        0,
        &["1048576 bytes", "tensor name \"aaa"],
    );
    check_header(&format!("{{\"{}\":{{}}}}", "\\u001b[2J".repeat(5)), 0, &["tensor \"\\u{1b}[2J"]);
    // A million tensors do not fit the longest header: they are refused by its length, as many as fit by their number.
    let tensors = |n: u32| -> String {
        let tensors =
            (0..n).map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"));
        format!("{{{}}}", tensors.collect::<Vec<_>>().join(","))
    };
    check_header(&tensors(1_000_000), 0, &["at most 16777216"]);
    check_header(&tensors(200_000), 0, &["at most 50000 tensors"]);
}

#[test]
fn hostile_tensors_are_refused_by_name() {
    let w = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let named = "tensor \"w\"";
    check_header(&w("F32", "[3]", "[0,8]"), 8, &[named, "expected 12 bytes", "found 8"]);
    check_header(&w("F16", "[2]", "[0,8]"), 8, &[named, "expected 4 bytes", "found 8"]);
    check_header(&w("Q4", "[8]", "[0,8]"), 8, &[named, "found \"Q4\""]);
    check_header(&w("U8", "[8]", "[8,0]"), 8, &[named, "found 8 before 0"]);
    check_header(&w("U8", "[8]", "[8,16]"), 8, &[named, "cut short"]);
    check_header(&w("U8", "[4]", "[4,8]"), 8, &[named, "a gap"]);
    check_header(&w("F32", "[1]", "[2,6]"), 6, &[named, "multiple of 4"]);
    check_header(&w("U8", "[18446744073709551615]", "[0,18446744073709551615]"), 8, &[named, "below 2^63"]);
    check_header(&w("U8", "[9223372036854775807]", "[0,9223372036854775807]"), 8, &[named, "cut short"]);
    check_header(&w("F64", "[4294967296,4294967296]", "[0,0]"), 8, &[named, "below 2^63"]);
    check_header(&w("U8", "[1,1,1,1,1,1,1,1,8]", "[0,8]"), 8, &[named, "at most 8 dimensions"]);
    for number in ["-8", "8.0", "8e0", "08", "18446744073709551616", "NaN"] {
        check_header(&w("U8", &format!("[{number}]"), "[0,8]"), 8, &[named, "whole number"]);
        check_header(&w("U8", "[8]", &format!("[0,{number}]")), 8, &[named]);
    }
    let duplicate = w("U8", "[4]", "[0,4]").replace("}}", "},") + &w("U8", "[4]", "[4,8]")[1..];
    check_header(&duplicate, 8, &["\"w\" twice"]);
    let overlap =
        w("U8", "[5]", "[0,5]").replace("}}", "},") + &w("U8", "[4]", "[4,8]")[1..].replace("w", "v");
    check_header(&overlap, 8, &["tensor \"v\"", "overlaps tensor \"w\""]);
}

#[test]
fn a_shard_index_is_held_to_its_shards() {
    let folder = Folder::new();
    folder.shard("m1.safetensors", &["a", "b"]);
    folder.shard("m2.safetensors", &["c"]);
    folder.index(&[("a", "m1.safetensors"), ("b", "m1.safetensors"), ("c", "m2.safetensors")]);
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    assert_eq!(checkpoint.tensors().map(|t| t.name).collect::<Vec<_>>(), ["a", "b", "c"]);

    folder.index(&[("a", "m1.safetensors"), ("c", "m3.safetensors")]);
    check(&folder.0, &["m3.safetensors", "no such file"]);
    folder.index(&[("a", "m1.safetensors"), ("d", "m2.safetensors")]);
    check(&folder.0, &[INDEX, "tensor \"d\"", "m2.safetensors"]);
    folder.index(&[("a", "m2.safetensors"), ("b", "m1.safetensors")]);
    check(&folder.0, &[INDEX, "tensor \"a\"", "m2.safetensors"]);
    folder.shard("m2.safetensors", &["b", "c"]);
    folder.index(&[("a", "m1.safetensors"), ("c", "m2.safetensors")]);
    check(&folder.0, &["tensor \"b\"", "m1.safetensors", "m2.safetensors"]);
}

#[test]
fn a_shard_index_cannot_lead_out_of_its_folder() {
    let outside = Folder::new();
    let target = outside.shard("outside.safetensors", &["w"]);
    let folder = Folder::new();
    let up = format!("../{}/outside.safetensors", outside.0.file_name().unwrap().to_str().unwrap());
    let absolute = target.to_str().unwrap();
    for shard in
        [&up, absolute, "x/../m.safetensors", "..", ".", "", "C:\\m.safetensors", "m.safetensors\0", INDEX]
    {
        folder.index(&[("w", shard)]);
        let json = fs::read_to_string(folder.0.join(INDEX)).unwrap().replace("\\0", "\\u0000");
        folder.write(INDEX, json);
        check(&folder.0, &[INDEX, "tensor \"w\"", "plain name"]);
    }
    for json in [
        "",
        "{",
        "[]",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{\"w\":1}}",
        "{\"metadata\":{}}",
        "\u{feff}{}",
    ] {
        folder.write(INDEX, json);
        check(&folder.0, &[INDEX]);
    }
    folder.write(INDEX, "{\"weight_map\":{\"w\":\"m.safetensors\",\"w\":\"m.safetensors\"}}");
    check(&folder.0, &[INDEX, "\"w\" twice"]);
    folder.write(INDEX, format!("{{\"metadata\":{}", "[".repeat(10_000)));
    check(&folder.0, &[INDEX, "32 levels"]);
    let path = folder.write(INDEX, "");
    OpenOptions::new().write(true).open(path).unwrap().set_len((32 << 20) + 1).unwrap();
    check(&folder.0, &[INDEX, "33554432"]);
}

#[test]
fn many_shards_share_the_limits_of_one() {
    let folder = Folder::new();
    let metadata = "x".repeat(11 << 20);
    let pairs: Vec<_> = (0..4).map(|i| (format!("t{i}"), format!("m{i}.safetensors"))).collect();
    for (tensor, shard) in &pairs {
        write_safetensors(&folder.0.join(shard), &[(tensor, Dtype::U8, &[1], &[0])], &[("k", &metadata)])
            .unwrap();
    }
    let pairs: Vec<_> = pairs.iter().map(|(tensor, shard)| (tensor.as_str(), shard.as_str())).collect();
    folder.index(&pairs);
    check(&folder.0, &["m2.safetensors", "all of a checkpoint together"]);
}

#[test]
fn folders_without_one_clear_checkpoint_are_refused() {
    let folder = Folder::new();
    check(&folder.0.join("none"), &["none", "check the path"]);
    check(&folder.0, &["no weights", MODEL, INDEX]);
    folder.write("pytorch_model.bin", "\u{80}\u{2}canary");
    check(&folder.0, &["pytorch_model.bin", "never read", "safetensors"]);
    check(&folder.0.join("pytorch_model.bin"), &["pytorch_model.bin", "never read"]);
    check(&folder.write("model.gguf", "GGUF"), &["model.gguf", "end of the file"]);
    fs::remove_file(folder.0.join("model.gguf")).unwrap();
    check(&folder.write("config.json", "{}"), &["config.json", "ending in .safetensors"]);
    folder.shard("one.safetensors", &["w"]);
    assert!(Checkpoint::open(&folder.0).is_ok(), "one safetensors file is clear, whatever its name");
    folder.shard("two.safetensors", &["w"]);
    check(&folder.0, &["one.safetensors", "two.safetensors", INDEX]);
}

#[test]
fn a_directory_in_place_of_a_file_is_refused() {
    let folder = Folder::new();
    fs::create_dir(folder.0.join(MODEL)).unwrap();
    check(&folder.0, &[MODEL, "a directory"]);
    fs::create_dir(folder.0.join("config.json")).unwrap();
    let message = ModelFiles::open(&folder.0).unwrap().config().unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("a directory"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_fifo_or_device_is_refused_and_never_blocks() {
    let folder = Folder::new();
    let path = folder.0.join(MODEL);
    match std::process::Command::new("mkfifo").arg(&path).status() {
        Ok(status) if status.success() => {}
        other => return println!("skipped: mkfifo: {other:?}"),
    }
    check(&path, &[MODEL, "a FIFO"]);
    check(&folder.0, &[MODEL, "a FIFO"]);
    folder.index(&[("w", "pipe.safetensors")]);
    fs::rename(&path, folder.0.join("pipe.safetensors")).unwrap();
    check(&folder.0, &["pipe.safetensors", "a FIFO"]);
    fs::rename(folder.0.join("pipe.safetensors"), folder.0.join("tokenizer.json")).unwrap();
    let message = ModelFiles::open(&folder.0).unwrap().tokenizer().unwrap_err().to_string();
    assert!(message.contains("tokenizer.json") && message.contains("a FIFO"), "{message}");
    fs::remove_file(folder.0.join(INDEX)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.0.join(MODEL)).unwrap();
    check(&folder.0, &[MODEL, "/dev/zero"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_only_inside_a_hub_repository() {
    use std::os::unix::fs::symlink;
    let hub = Folder::new();
    fs::create_dir_all(hub.0.join("models--a--b/snapshots/rev")).unwrap();
    fs::create_dir_all(hub.0.join("models--a--b/blobs")).unwrap();
    hub.shard("models--a--b/blobs/0123abcd", &["w"]);
    let snapshot = hub.0.join("models--a--b/snapshots/rev");
    symlink("../../blobs/0123abcd", snapshot.join(MODEL)).unwrap();
    assert_eq!(Checkpoint::open(&snapshot).unwrap().tensors().len(), 1);

    // The folder itself may be a link: the user named it.
    let folder = Folder::new();
    symlink(&snapshot, folder.0.join("linked")).unwrap();
    assert!(Checkpoint::open(&folder.0.join("linked")).is_ok());

    let refuse = |target: &Path| {
        fs::remove_file(snapshot.join(MODEL)).unwrap();
        symlink(target, snapshot.join(MODEL)).unwrap();
        check(&snapshot, &[MODEL]);
    };
    let outside = folder.shard("outside.safetensors", &["w"]);
    refuse(&outside);
    refuse(Path::new("../../blobs"));
    refuse(Path::new("../../blobs/missing"));
    check(&snapshot, &["../../blobs/missing", "finish the download"]);
    refuse(Path::new("../../blobs/\u{1b}[2J"));
    refuse(Path::new("/dev/zero"));
    refuse(Path::new(MODEL));
    symlink(&outside, hub.0.join("models--a--b/blobs/relay")).unwrap();
    refuse(Path::new("../../blobs/relay"));

    symlink(&outside, folder.0.join(MODEL)).unwrap();
    check(&folder.0, &[MODEL, "symbolic link", "outside.safetensors"]);
    fs::remove_file(folder.0.join(MODEL)).unwrap();
    symlink(&outside, folder.0.join("m1.safetensors")).unwrap();
    folder.index(&[("w", "m1.safetensors")]);
    check(&folder.0, &["m1.safetensors", "symbolic link"]);
}

#[test]
fn the_files_beside_the_weights_have_limits() {
    let folder = Folder::new();
    let files = ModelFiles::open(&folder.0).unwrap();
    assert!(files.config().unwrap().is_none());
    let message = files.require_config().unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("download"), "{message}");
    folder.write("config.json", vec![b' '; (1 << 20) + 1]);
    let message = files.config().unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("1048576"), "{message}");
    folder.write("config.json", "{}");
    assert_eq!(&*files.config().unwrap().unwrap(), b"{}");
    let shard = folder.shard(MODEL, &["w"]);
    assert_eq!(&*ModelFiles::open(&shard).unwrap().config().unwrap().unwrap(), b"{}");
    let message = ModelFiles::open(&folder.0.join("none")).unwrap_err().to_string();
    assert!(message.contains("none") && message.contains("looked for"), "{message}");
    assert!(ModelFiles::open(&folder.0.join("config.json")).is_err());
}

/// A change to a file: flip a bit, delete a byte, insert a byte, or put a byte of JSON.
#[derive(Clone, Debug)]
enum Edit {
    Flip(usize, u8),
    Delete(usize),
    Insert(usize, u8),
    Json(usize, usize),
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        const JSON: &[u8] = br#"{}[]",:0123456789\- "#;
        let len = bytes.len().max(1);
        match *self {
            Self::Insert(at, byte) => bytes.insert(at % len, byte),
            _ if bytes.is_empty() => {}
            Self::Flip(at, bit) => bytes[at % len] ^= 1 << (bit % 8),
            Self::Delete(at) => drop(bytes.remove(at % len)),
            Self::Json(at, which) => bytes[at % len] = JSON[which % JSON.len()],
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        any::<usize>().prop_map(Edit::Delete),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, which)| Edit::Json(at, which)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn changed_indexes_never_panic(edits in prop::collection::vec(edit(), 1..6)) {
        let text = concat!(
            r#"{"metadata":{"total_size":7,"x":[null,{"y":-1.5e3}]},"#,
            r#""weight_map":{"a":"m1.safetensors","b\u00e9":"m2.safetensors"}}"#
        );
        let mut bytes = text.as_bytes().to_vec();
        for edit in &edits {
            edit.apply(&mut bytes);
        }
        if let Ok(index) = bantam_model::checkpoint::index::parse(&bytes) {
            prop_assert!(index.shards().all(|shard| !shard.contains(['/', '\\', ':', '\0'])));
            prop_assert!(index.tensors().all(|(_, shard)| shard < index.shards().count()));
        }
    }

    #[test]
    fn changed_headers_never_panic(edits in prop::collection::vec(edit(), 1..6), data_len in 0..40u64) {
        let text = concat!(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
            r#""b\u00e9":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}"#
        );
        let mut bytes = file(text.as_bytes(), 0);
        for edit in &edits {
            edit.apply(&mut bytes);
        }
        let file_len = bytes.len() as u64 + data_len;
        if let Ok(header) = header::parse(&bytes, file_len) {
            // What was accepted is sound: inside the file, of the declared size, each byte in one tensor.
            let mut at = PREFIX_BYTES + header.bytes();
            for entry in header.entries() {
                let size = entry.shape.iter().product::<usize>() * entry.dtype.bytes();
                prop_assert_eq!((entry.start, entry.end), (at, at + size as u64));
                at = entry.end;
            }
            prop_assert_eq!(at, file_len);
        }
    }
}

/// A download that is restarted, or another program that writes: what was mapped is gone. Touching it would kill the
/// process, so weights are read.
#[cfg(unix)]
#[test]
fn a_file_that_shrinks_while_it_is_loaded_is_an_error_with_the_tensor() {
    // Rows of the tensor, and columns of it.
    for model in ["qwen2", "gpt_oss-bf16"] {
        let folder = Folder::new();
        let golden = bantam_tests::model_folder(model);
        let path = folder.0.join(MODEL);
        fs::copy(golden.join(MODEL), &path).unwrap();
        let checkpoint = Checkpoint::open(&path).expect("still whole");
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(500_000).unwrap();
        let (spec, _) = bantam_tests::open(&golden);
        let cpu = bantam_core::Cpu::detect();
        let loaded = bantam_model::engine::Engine::load(spec, &checkpoint, bantam_tests::options(), cpu, 2);
        let message = loaded.expect_err("the weights are cut off").to_string();
        for part in [MODEL, "tensor model.", "while it was being loaded"] {
            assert!(message.contains(part), "expected {part:?} in: {message}");
        }
    }
}

/// Loads a golden with one tensor's bytes changed, or without it, and gives the message.
fn refusal(model: &str, changed: &str, change: impl Fn(&mut Vec<u8>)) -> String {
    let folder = Folder::new();
    let (spec, golden) = bantam_tests::open(&bantam_tests::model_folder(model));
    let data: Vec<Vec<u8>> = golden
        .tensors()
        .map(|tensor| {
            let mut data = tensor.data.to_vec();
            if tensor.name == changed {
                change(&mut data);
            }
            data
        })
        .collect();
    let all = golden.tensors().zip(&data).filter(|(_, data)| !data.is_empty());
    let all: Vec<_> =
        all.map(|(tensor, data)| (tensor.name, tensor.dtype, tensor.shape, &data[..])).collect();
    let path = folder.0.join(MODEL);
    write_safetensors(&path, &all, &[]).unwrap();
    let checkpoint = Checkpoint::open(&path).expect("a sound file");
    let cpu = bantam_core::Cpu::detect();
    let loaded = bantam_model::engine::Engine::load(spec, &checkpoint, bantam_tests::options(), cpu, 2);
    loaded.expect_err("one tensor is damaged").to_string()
}

#[test]
fn damage_in_an_expert_is_found_at_its_place() {
    let (_, golden) = bantam_tests::open(&bantam_tests::model_folder("gpt_oss-bf16"));
    let stack = |name: &str| golden.tensor(name).expect("a stack of experts").shape.to_vec();
    let layer = "model.layers.1.mlp.experts.";
    for part in ["gate_up_proj", "down_proj"] {
        let name = format!("{layer}{part}");
        let shape = stack(&name);
        let (inputs, outputs) = (shape[1], shape[2]);
        // Gates and ups alternate: an output of each kind.
        for (expert, input, output) in
            [(0, 0, 0), (2, 3, 4), (1, 5, 7), (shape[0] - 1, inputs - 1, outputs - 1)]
        {
            let row = expert * inputs + input;
            let message = refusal("gpt_oss-bf16", &name, |data| {
                data[2 * (row * outputs + output)..][..2].copy_from_slice(&[0xc0, 0x7f]);
            });
            let place = format!(
                "{name}: expected finite numbers, found NaN or infinity at row {row}, column {output}:"
            );
            assert!(message.contains(&place), "expected {place:?} in: {message}");
        }
        let missing = refusal("gpt_oss-bf16", &name, Vec::clear);
        assert!(missing.contains(&format!("{name}: not in the checkpoint")), "{missing}");
    }
    let name = "model.layers.0.block_sparse_moe.experts.3.w2.weight";
    let message = refusal("mixtral", name, |data| data[2..4].copy_from_slice(&[0x80, 0x7f]));
    assert!(message.contains(name) && message.contains("at row 0, column 1:"), "{message}");
    let missing = refusal("mixtral", name, Vec::clear);
    assert!(missing.contains(&format!("{name}: not in the checkpoint")), "{missing}");
}
