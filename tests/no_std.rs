//! Locks 2 of "the core is no_std and uses no alloc": a program without `std` and without an allocator links
//! the core and runs it, and the two planted failures show that the lock closes.
//! It is not the allow-list of dependencies (`tests/dependencies.rs`) nor the count of allocations at run time
//! (`tests/zero_alloc.rs`).

#[path = "house/workspace.rs"]
mod workspace;

use std::process::Output;

/// Builds the probe into its own folder, so that its features and profile never mix with the workspace's.
fn build(feature: &str) -> Output {
    let folder = workspace::target().join("probe");
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--offline", "--locked", "--package", "bantam-no-std-probe", "--profile", "probe"]);
    cargo.args(["--features", feature, "--color", "never", "--target-dir"]).arg(&folder);
    // The outer cargo's choices for its own build, such as the coverage build's, mean `std`.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    workspace::run(&mut cargo)
}

fn assert_refused(feature: &str, expected: &str) {
    let output = build(feature);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "the probe with the planted failure `{feature}` was built");
    assert!(said.contains(expected), "`{feature}` failed, but not by \"{expected}\":\n{said}");
}

#[test]
fn core_links_and_runs_without_std_and_alloc() {
    let built = build("probe");
    assert!(
        built.status.success(),
        "the probe did not link. \"no global memory allocator\" means that core or what it uses calls `alloc`; \
         \"duplicate lang item\" means `std`: look for a dependency that lost default-features = false.\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let program = workspace::target().join("probe/probe/bantam-no-std-probe");
    let ran = workspace::run(&mut std::process::Command::new(&program));
    assert!(ran.status.success(), "{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn planted_alloc_is_refused() {
    assert_refused("plant-alloc", "no global memory allocator");
}

#[test]
fn planted_std_is_refused() {
    assert_refused("plant-std", "duplicate lang item `panic_impl`");
}

/// `alloc` behind a feature or a `cfg` would slip past the probe, which has the default features only.
#[test]
fn core_names_neither_std_nor_alloc() {
    let mut wrong = Vec::new();
    for path in workspace::files() {
        if !path.starts_with("core/src/") || path.starts_with("core/src/cuda/") || !path.ends_with(".rs") {
            continue;
        }
        let text = std::fs::read_to_string(workspace::root().join(&path)).expect("a source file is UTF-8");
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("extern crate alloc") {
                wrong.push(format!("{path}:{}: `extern crate alloc`: use a slice of the arena", number + 1));
            }
        }
        if path == "core/src/lib.rs" && !text.lines().any(|line| line == "#![no_std]") {
            wrong.push(format!("{path}:1: add `#![no_std]`, alone on its line"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
