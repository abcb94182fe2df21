//! The built program, used as a script would use it: what it answers, and what it refuses with which exit status.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure is a failed test")]

mod adapters;
mod answers;
mod cards;
mod chats;
mod clients;
mod comforts;
mod fake;
mod native;
mod placed;
mod pulls;
mod quantize;
mod refusals;
mod serving;
mod stand_in;
mod train;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// Every model with goldens.
const MODELS: [&str; 5] = ["gpt_neox", "gpt_neox-seq", "llama-tied", "llama-untied", "qwen2"];

/// A path below the repository's root, as an argument.
fn repository(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    root.to_str().expect("the checkout's path is UTF-8").to_owned()
}

fn golden(model: &str) -> String {
    repository(&format!("tests/goldens/models/{model}"))
}

/// A folder for native files, empty when the tests begin: none may be left by an earlier state of the program, and
/// none may lie where the user's are.
fn cache() -> &'static Path {
    static CACHE: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
        let _ = std::fs::remove_dir_all(&folder);
        folder
    });
    &CACHE
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bantam"));
    command.args(arguments).stdin(Stdio::null()).env("XDG_CACHE_HOME", cache());
    command.env_remove("BANTAM_CONNECT").env("BANTAM_CONFIG", "/dev/null");
    match serving::socket() {
        Some(socket) => command.env("BANTAM_SOCKET", socket),
        // A daemon that the developer runs is none of the tests' business.
        None => command.env("BANTAM_LOCAL", "1"),
    };
    command
}

fn bantam(arguments: &[&str]) -> Output {
    program(arguments).output().expect("the program starts")
}

/// The same with something on standard input.
fn bantam_with(input: &str, arguments: &[&str]) -> Output {
    let mut command = program(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("it was piped");
    // One that refuses its arguments does not read.
    let written = stdin.write_all(input.as_bytes());
    assert!(written.is_ok() || written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe));
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

/// Standard output of a run that must succeed, and say nothing else.
#[track_caller]
fn answer(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    String::from_utf8(output.stdout).expect("text is UTF-8")
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&answer(bantam(arguments))).expect("--json writes JSON and nothing else")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn ids(value: &Value) -> Vec<u32> {
    list(value).iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn joined(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(",")
}

/// A folder that is gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bantam-cli-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// A copy of a golden model, without the goldens.
    fn model(name: &str) -> Self {
        Folder::copy(&golden(name))
    }

    /// The same of any folder.
    fn copy(path: &str) -> Self {
        let folder = Folder::new();
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            // Weights that are no model's would be taken for some.
            if !["golden", "hidden"].iter().any(|of| name.to_str().unwrap().starts_with(of)) {
                std::fs::copy(entry.path(), folder.0.join(entry.file_name())).unwrap();
            }
        }
        folder
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.join(name)).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
