//! `cargo xtask ci`: exactly what CI runs, in the order in which it is cheapest to fail.
//! It is not a list of rules: those are lints in Cargo.toml and ordinary tests in `tests/`.

use std::path::Path;

use anyhow::Result;

use crate::fuzz;
use crate::grpcurl;
use crate::proto;
use crate::python;
use crate::steps::{self, Steps, cargo, is_installed};

/// Enough for every seed and some thousand mutations of each; `cargo xtask fuzz` is the long run.
const FUZZ_SECONDS: u32 = 5;

/// Runs every step; the first failure ends it.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut steps = Steps::new();
    every_step(root, &mut steps)?;
    steps.print();
    Ok(())
}

fn every_step(root: &Path, steps: &mut Steps) -> Result<()> {
    steps.step("fetch", || {
        // All platforms: the checks of licences read every package, not only those that are built here.
        steps::run(&mut cargo(root, &["fetch", "--locked", "--quiet"]))
    })?;
    steps.step("format", || {
        steps::run(&mut cargo(root, &["fmt", "--all", "--check"]))?;
        if fuzz::is_present(root) {
            steps::run(&mut cargo(root, &["fmt", "--manifest-path", fuzz::MANIFEST, "--check"]))?;
        }
        Ok(())
    })?;
    steps.step("lints", || {
        let clippy =
            ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
        steps::run(&mut cargo(root, &clippy))
    })?;
    steps.step("documentation", || {
        let mut doc = cargo(root, &["doc", "--workspace", "--no-deps", "--locked", "--quiet"]);
        steps::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if is_installed("cargo-deny", &["--version"]) {
        steps.step("dependencies", || {
            steps::run(&mut cargo(root, &["deny", "--offline", "check", "licenses", "bans", "sources"]))
        })?;
    } else {
        let reason = "cargo-deny is not installed; tests/dependencies.rs holds licences, bans and sources";
        steps.skip("dependencies", reason);
    }
    match proto::obstacle() {
        None => steps.step("proto", || proto::lint(root))?,
        Some(reason) => steps.skip("proto", &reason),
    }
    match fuzz::obstacle(root) {
        None => steps.step("fuzz", || fuzz::run(root, FUZZ_SECONDS))?,
        Some(reason) => steps.skip("fuzz", &reason),
    }
    match python::obstacle(root) {
        None => steps.step("python", || python::run(root))?,
        Some(reason) => steps.skip("python", &reason),
    }
    match grpcurl::obstacle(root) {
        None => steps.step("grpcurl", || grpcurl::run(root))?,
        Some(reason) => steps.skip("grpcurl", &reason),
    }
    // Last, so that its closing lines are the last that a reader of the log meets before the table.
    steps.step("tests", || {
        steps::run(&mut cargo(root, &["test", "--workspace", "--locked", "--no-fail-fast"]))
    })
}
