//! The CUDA backend beside the processor's: without a card its kernels run under a stand-in for the driver
//! (`tests/cusim`), with one and `REQUIRE_GPU=1` the same tests run on it.
//!
//! A library is looked for once in a process, and a fault stays: so every test that needs the driver starts this
//! program again, for itself alone, and says what the driver should be like.

#[path = "cuda/both.rs"]
mod both;
#[path = "cuda/faults.rs"]
mod faults;
#[path = "cuda/models.rs"]
mod models;
#[path = "cuda/operations.rs"]
mod operations;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bantam_tests::repository;

/// Says to a process that it is the one that a test started.
const CHILD: &str = "BANTAM_TEST_CHILD";

/// Whether the real driver is to be met, and a skip a failure.
fn requires_card() -> bool {
    std::env::var_os("REQUIRE_GPU").is_some_and(|value| value == "1")
}

/// Runs the rest of a test in a process of its own. `true` in that process; elsewhere it has passed there, or there is
/// nothing to run it with.
#[must_use]
fn is_child(test: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    if let Some((passed, said)) = child(test, variables) {
        assert!(passed, "{test} in its own process:\n{said}");
    }
    false
}

/// Starts a test of this program; whether it passed, and what it said.
fn child(test: &str, variables: &[(&str, &str)]) -> Option<(bool, String)> {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).env(CHILD, "1");
    command.envs(variables.iter().copied());
    if !requires_card() {
        let Some(folder) = bantam_cusim::FOLDER else {
            println!("skipped: no C++ compiler made a stand-in for the driver");
            return None;
        };
        command.env("LD_LIBRARY_PATH", folder);
    }
    let output = command.output().expect("this program starts again");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(said.contains("1 passed") || said.contains("1 failed"), "no test is called {test}:\n{said}");
    Some((output.status.success(), said))
}

/// The texts are those of the sources: nobody needs CUDA to see it.
#[test]
fn texts_were_made_of_these_sources() {
    let lock = fs::read_to_string(repository("core/src/cuda/kernels.lock")).expect("kernels.lock is there");
    let mut found: Vec<String> =
        kernel_files(&repository("core/src")).iter().map(|path| hashed(path)).collect();
    found.sort();
    let mut locked: Vec<String> =
        lock.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    locked.sort();
    let wrong: Vec<_> = found.iter().filter(|line| !locked.contains(line)).collect();
    let gone: Vec<_> = locked.iter().filter(|line| !found.contains(line)).collect();
    assert!(
        wrong.is_empty() && gone.is_empty(),
        "kernels and their texts are not of one making: run `cargo xtask ptx`\nnow: {wrong:#?}\nlocked: {gone:#?}"
    );
}

/// A line of the lock.
fn hashed(path: &Path) -> String {
    let bytes = fs::read(path).expect("a kernel can be read");
    let name =
        path.strip_prefix(repository("")).expect("below the root").to_string_lossy().replace('\\', "/");
    format!("{:016x} {name}", xxhash_rust::xxh3::xxh3_64(&bytes))
}

fn kernel_files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for path in
            fs::read_dir(&folder).expect("a folder of ours").map(|entry| entry.expect("an entry").path())
        {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|kind| kind == "cu" || kind == "cuh" || kind == "ptx") {
                found.push(path);
            }
        }
    }
    found
}
