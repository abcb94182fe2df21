//! Native files: written by the first run, mapped by the second, never believed when anything does not fit.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use bantam_model::checkpoint::Checkpoint;
use serde_json::Value;

use crate::{Folder, answer, list, program};

/// A quantized model and a cache of its own.
struct Place {
    model: Folder,
    cache: Folder,
}

impl Place {
    fn new() -> Self {
        Place { model: Folder::model("gpt_oss-mxfp4"), cache: Folder::new() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(arguments);
        command.env("XDG_CACHE_HOME", &self.cache.0);
        command
    }

    fn bantam(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&answer(self.bantam(&[arguments, &["--json"]].concat()))).unwrap()
    }

    /// Bytes of the logits of some tokens.
    fn score(&self, flags: &[&str]) -> (Vec<u8>, String) {
        let (model, out) = (self.model.path(""), self.cache.path("logits.safetensors"));
        let scored = self.bantam(&[&["score", &model, "--ids", "1,2,3,4", "--logits", &out], flags].concat());
        let errors = String::from_utf8(scored.stderr).unwrap();
        assert!(scored.status.success(), "{errors}");
        (fs::read(&out).unwrap(), errors)
    }

    /// Whether the next run would map a file, and the file.
    fn plan(&self, flags: &[&str]) -> (bool, PathBuf) {
        let plan = self.json(&[&["plan", &self.model.path("")], flags].concat());
        let native = &plan["native"];
        (native["is_there"].as_bool().unwrap(), native["path"].as_str().unwrap().into())
    }

    /// Everything in the cache's folder.
    fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.cache.0.join("bantam")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Makes a file writable, changes it, and gives it its time back: what a failing disk does.
fn damage(path: &Path, at: u64, bytes: &[u8]) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    writable(path);
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
    file.set_modified(time).unwrap();
}

#[allow(clippy::permissions_set_readonly_false, reason = "a test's own file")]
fn writable(path: &Path) {
    let mut permissions = fs::metadata(path).unwrap().permissions();
    permissions.set_readonly(false);
    fs::set_permissions(path, permissions).unwrap();
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn the_second_run_maps_what_the_first_has_written_and_computes_the_same() {
    let place = Place::new();
    assert!(!place.plan(&[]).0);
    let (first, said) = place.score(&[]);
    assert_eq!(said, "");
    let (is_there, file) = place.plan(&[]);
    assert!(is_there && place.files().len() == 1, "{file:?}");
    let time = modified(&file);
    assert_eq!(place.score(&[]).0, first);
    assert_eq!(place.score(&["--no-cache"]).0, first, "repacking gives the same bits");
    assert_eq!((modified(&file), place.files().len()), (time, 1), "nothing was written again");
    let (model, ids) = (place.model.path(""), "1,2,3");
    let run = |more: &[&str]| {
        let run = ["run", &model, "--ids", ids, "--temperature", "0", "--max-new-tokens", "20"];
        place.json(&[&run, more].concat())["ids"].clone()
    };
    assert_eq!(run(&[]), run(&["--no-cache"]));
    // Other weights in memory are another file; the cache of keys and values has no part in it.
    place.score(&["--quantization", "int8"]);
    place.score(&["--quantization", "int8", "--kv", "f32"]);
    assert_eq!(place.files().len(), 2);
    // Nothing that is another in every process, as an address is, goes into a file's key.
    place.score(&["--quantization", "nf4"]);
    place.score(&["--quantization", "nf4"]);
    assert_eq!(place.files().len(), 3);
}

#[test]
fn a_native_file_is_safetensors_whose_data_begins_at_a_page() {
    let place = Place::new();
    place.score(&[]);
    let file = Checkpoint::open(&place.plan(&[]).1).unwrap();
    let metadata: Vec<_> = file.metadata().collect();
    assert!(metadata.contains(&("format", "bantam")));
    let note = |name: &str| metadata.iter().find(|(key, _)| *key == name).unwrap().1;
    assert!(file.tensors().all(|tensor| note(tensor.name).split(' ').count() == 3));
    let data: usize = file.tensors().map(|tensor| tensor.data.len()).sum();
    assert_eq!((file.file_bytes() as usize - data) % (64 << 10), 0);
}

#[test]
fn small_plain_models_and_the_carried_one_are_not_kept() {
    let place = Place { model: Folder::model("qwen2"), cache: Folder::new() };
    place.score(&[]);
    assert!(place.json(&["plan", &place.model.path("")])["native"].is_null());
    answer(place.bantam(&["run", "--prompt", "Once", "--max-new-tokens", "2", "--quantization", "int8"]));
    assert!(place.files().is_empty());
    place.score(&["--quantization", "int8"]);
    assert_eq!(place.files().len(), 1);
}

#[test]
fn what_does_not_fit_is_not_used_but_replaced() {
    let place = Place::new();
    let (wanted, _) = place.score(&[]);
    let (_, file) = place.plan(&[]);
    let sound = fs::read(&file).unwrap();
    let text = String::from_utf8_lossy(&sound[8..64 << 10]).into_owned();
    let at = |words: &str| 8 + text.find(words).unwrap() as u64;
    let shape = at("\"shape\":[") + 9;
    let changes: [(&str, u64, &[u8]); 5] = [
        ("a header that is no JSON", 8, b"?"),
        ("the length of the header", 0, &[0xff]),
        ("a shape", shape, b"9"),
        ("a checksum that is none", at("\"version\"") - 3, b"!"),
        ("the version", at("\"version\":\"") + 11, b"7"),
    ];
    for (what, at, bytes) in changes {
        damage(&file, at, bytes);
        assert!(!place.plan(&[]).0, "{what}");
        assert_eq!(place.score(&[]), (wanted.clone(), String::new()), "{what}");
        assert!(place.plan(&[]).0 && place.files().len() == 1, "{what}");
    }
    for length in [0, 7, 100, sound.len() - 1, sound.len() + 1] {
        let time = modified(&file);
        writable(&file);
        let changed = OpenOptions::new().write(true).open(&file).unwrap();
        changed.set_len(length as u64).unwrap();
        changed.set_modified(time).unwrap();
        assert!(!place.plan(&[]).0, "{length} bytes");
        assert_eq!(place.score(&[]).0, wanted, "{length} bytes");
        assert!(place.plan(&[]).0, "{length} bytes");
    }
    // Whoever writes into it changes its time.
    writable(&file);
    OpenOptions::new().write(true).open(&file).unwrap().set_modified(SystemTime::now()).unwrap();
    assert!(!place.plan(&[]).0);
}

#[test]
fn a_changed_model_is_read_again_and_its_old_file_goes() {
    let place = Place::new();
    place.score(&[]);
    let (_, file) = place.plan(&[]);
    let weights = File::open(place.model.path("model.safetensors")).unwrap();
    let later = SystemTime::now() + Duration::from_secs(7);
    weights.set_modified(later).unwrap();
    assert!(!place.plan(&[]).0, "another time");
    let listed = place.json(&["cache", "ls"]);
    assert_eq!(listed["files"][0]["state"], "changed");
    place.score(&[]);
    let (is_there, new) = place.plan(&[]);
    assert!(is_there && new != file && place.files().len() == 1, "the old one is gone");
    let config = fs::read_to_string(place.model.path("config.json")).unwrap();
    place.model.write("config.json", format!("{config}\n"));
    assert!(!place.plan(&[]).0, "another configuration");
    place.model.remove("model.safetensors");
    assert_eq!(place.json(&["cache", "ls"])["files"][0]["state"], "gone");
    assert!(place.bantam(&["cache", "rm", "--stale"]).status.success());
    assert!(place.files().is_empty());
}

#[test]
fn verify_finds_a_damaged_body_and_names_the_tensor() {
    let place = Place::new();
    let verify = |expected: i32| {
        let output = place.bantam(&["cache", "verify", "--json"]);
        assert_eq!(output.status.code(), Some(expected));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["files"][0].clone()
    };
    place.score(&[]);
    assert_eq!(verify(0)["sound"], true);
    let (_, file) = place.plan(&[]);
    let length = fs::metadata(&file).unwrap().len();
    let last = fs::read(&file).unwrap()[length as usize - 1];
    damage(&file, length - 1, &[!last]);
    assert!(place.plan(&[]).0, "opening reads no weights");
    let report = verify(1);
    assert_eq!((report["sound"].as_bool(), list(&report["tensors"]).len()), (Some(false), 1));
    let name = report["tensors"][0].as_str().unwrap();
    let said = place.bantam(&["cache", "verify"]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(text.contains(name) && text.contains("expected the bytes that were written"), "{text}");
    damage(&file, 8, b"?");
    assert_eq!(verify(1)["sound"], false);
    assert_eq!(place.json(&["cache", "ls"])["files"][0]["state"], "damaged");
}

#[test]
fn the_cache_is_listed_measured_and_emptied() {
    let place = Place::new();
    assert_eq!(list(&place.json(&["cache", "ls"])["files"]).len(), 0);
    assert_eq!(place.json(&["cache", "du"])["bytes"], 0);
    place.score(&[]);
    let listed = &place.json(&["cache", "ls"])["files"][0];
    assert_eq!(listed["state"], "current");
    assert_eq!(listed["model"].as_str().map(Path::new), fs::canonicalize(&place.model.0).ok().as_deref());
    assert!(!list(&listed["layouts"]).is_empty(), "{listed}");
    assert_eq!(place.json(&["cache", "du"])["bytes"], listed["bytes"]);
    let shown = answer(place.bantam(&["cache", "ls"]));
    let name = listed["name"].as_str().unwrap();
    assert!(shown.contains(name) && shown.contains("of use"), "{shown}");
    // Files of others stay, and a temporary file is left to whoever writes it.
    let folder = place.cache.0.join("bantam");
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    let temporary = |number: u32| folder.join(format!(".{name}.safetensors.1.{number}.tmp"));
    fs::write(temporary(0), "half").unwrap();
    let writer = File::create(temporary(1)).unwrap();
    writer.lock().unwrap();
    for (arguments, status) in [(&["x"][..], 1), (&["../notes.txt"], 1), (&[], 2), (&["--stale"], 0)] {
        let output = place.bantam(&[&["cache", "rm"], arguments].concat());
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
    }
    assert!(folder.join(format!("{name}.safetensors")).exists(), "it is of use");
    assert!(!temporary(0).exists() && temporary(1).exists());
    assert!(place.bantam(&["cache", "rm", name]).status.success());
    drop(writer);
    assert!(place.bantam(&["cache", "rm", "--all"]).status.success());
    assert_eq!(place.files(), ["notes.txt"]);
}

#[test]
#[cfg(target_os = "linux")]
fn what_cannot_be_written_is_a_warning_and_leaves_nothing() {
    let place = Place::new();
    let warned = |mut command: Command, words: &str| {
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.contains("warning") && said.contains(words), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    let model = place.model.path("");
    let run = ["run", &model, "--ids", "1,2", "--max-new-tokens", "2", "--temperature", "0"];
    // A limit of the shell acts as a full disk does.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 100 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_bantam")]);
    limited.args(run).env("XDG_CACHE_HOME", &place.cache.0);
    warned(limited, "nothing was written");
    assert!(place.files().is_empty());
    // A place where no folder can be made.
    let mut nowhere = place.command(&run);
    nowhere.env("XDG_CACHE_HOME", place.model.path("config.json"));
    warned(nowhere, "XDG_CACHE_HOME");
    // A name that something else has.
    let (_, file) = place.plan(&[]);
    fs::create_dir_all(&file).unwrap();
    warned(place.command(&run), "a directory");
}

#[test]
fn two_at_once_do_each_other_no_harm() {
    let place = Place::new();
    let wanted = place.score(&["--no-cache"]).0;
    let model = place.model.path("");
    let runs = (0..4).map(|number| {
        let out = place.cache.path(&format!("{number}.safetensors"));
        let run = place.command(&["score", &model, "--ids", "1,2,3,4", "--logits", &out]).spawn().unwrap();
        (run, out)
    });
    for (mut run, out) in runs.collect::<Vec<_>>() {
        assert!(run.wait().unwrap().success());
        assert_eq!(fs::read(out).unwrap(), wanted);
    }
    assert!(place.plan(&[]).0 && place.files().len() == 1);
    assert_eq!(place.json(&["cache", "verify"])["damaged"], 0);
}
