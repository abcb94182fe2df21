//! `cargo xtask fuzz`: libFuzzer on stable Rust, without cargo-fuzz.
//! It is not the targets (those are the package `tests/fuzz`, outside the workspace because it is compiled with
//! coverage counters) and it keeps no corpus: only the seeds, `seeds/TARGET/` and a
//! dictionary `seeds/TARGET.dict` where there is one, are committed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::steps::{cargo, is_installed, run as run_loud};

/// The nested package, from the root.
pub(crate) const MANIFEST: &str = "tests/fuzz/Cargo.toml";

/// Coverage as `cargo fuzz` asks for it, through LLVM's pass by name, since `-Zsanitizer` needs nightly.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// A file of a few kilobytes must never cost more than this, nor take longer than ten seconds.
const LIMITS: &[&str] = &["-rss_limit_mb=512", "-timeout=10", "-print_final_stats=1"];

pub(crate) fn is_present(root: &Path) -> bool {
    root.join(MANIFEST).is_file()
}

/// Why fuzzing cannot run here, if it cannot.
pub(crate) fn obstacle(root: &Path) -> Option<String> {
    if !is_present(root) {
        return Some("tests/fuzz is not in this tree".to_owned());
    }
    if !is_installed("c++", &["--version"]) {
        return Some("no C++ compiler (c++), which libFuzzer is built with".to_owned());
    }
    None
}

/// Builds every target and runs each for `seconds`, from its seeds and what earlier runs found.
pub(crate) fn run(root: &Path, seconds: u32) -> Result<()> {
    if let Some(obstacle) = obstacle(root) {
        bail!("cannot fuzz: {obstacle}");
    }
    let host = host()?;
    let folder = root.join("tests/fuzz");
    // `--target` even for the host: without it RUSTFLAGS would reach the build scripts, which have no counters.
    let build = ["build", "--release", "--locked", "--quiet", "--manifest-path", MANIFEST, "--target", &host];
    let mut build = cargo(root, &build);
    build.arg("--target-dir").arg(folder.join("target"));
    run_loud(build.env("RUSTFLAGS", COVERAGE).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    let programs = folder.join("target").join(&host).join("release");
    for target in targets(root)? {
        fuzz(&folder, &programs, &target, seconds).with_context(|| format!("fuzz target {target}"))?;
    }
    Ok(())
}

fn fuzz(folder: &Path, programs: &Path, target: &str, seconds: u32) -> Result<()> {
    let seeds = folder.join("seeds").join(target);
    let (corpus, artifacts) = (folder.join("corpus").join(target), folder.join("artifacts").join(target));
    let seed_count = fs::read_dir(&seeds).map(Iterator::count).unwrap_or(0);
    ensure!(
        seed_count > 0,
        "tests/fuzz/seeds/{target} is empty or missing: put at least one valid input there"
    );
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let mut command = Command::new(programs.join(target));
    // New inputs go to the first folder, so the committed seeds stay as they are.
    command.args([&corpus, &seeds]).args(LIMITS).arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    // Words that mutation alone does not find: libFuzzer sees no comparison inside `memcmp` without ASan.
    let words = seeds.with_extension("dict");
    if words.is_file() {
        command.arg(format!("-dict={}", words.display()));
    }
    let output = command.stdin(Stdio::null()).output().context("cannot start it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{said}");
        bail!(
            "{}; the input lies in tests/fuzz/artifacts/{target}: make it a test before the fix",
            output.status
        );
    }
    println!(
        "{target}: {seed_count} seeds, {} runs, {} MB at most",
        stat(&said, "executed"),
        stat(&said, "rss")
    );
    Ok(())
}

/// A number from libFuzzer's closing lines, such as `stat::number_of_executed_units: 12`.
fn stat(said: &str, name: &str) -> String {
    let line = said.lines().rfind(|line| line.starts_with("stat::") && line.contains(name));
    line.and_then(|line| line.rsplit(' ').next()).unwrap_or("?").to_owned()
}

/// The binaries of the nested package.
fn targets(root: &Path) -> Result<Vec<String>> {
    let arguments =
        ["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path", MANIFEST];
    let output = cargo(root, &arguments).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo metadata for {MANIFEST} ended with {}", output.status);
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let targets = metadata["packages"][0]["targets"].as_array().context("the package has targets")?;
    let binaries = targets.iter().filter(|target| target["kind"][0] == "bin");
    let names: Vec<String> =
        binaries.filter_map(|target| target["name"].as_str()).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "{MANIFEST} has no binaries");
    Ok(names)
}

/// The target triple of this machine's compiler.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let said = String::from_utf8(output.stdout)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::stat;

    #[test]
    fn closing_numbers_are_read() {
        let said = "stat::number_of_executed_units: 1071\nstat::peak_rss_mb:              44\n";
        assert_eq!((stat(said, "executed"), stat(said, "rss")), ("1071".to_owned(), "44".to_owned()));
        assert_eq!(stat("", "executed"), "?");
    }
}
