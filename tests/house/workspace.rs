//! What cargo and git say about this workspace, for the tests that hold the house rules.
//! It is not a build tool: it only asks (`cargo metadata`, `cargo tree`, `git ls-files`).
#![allow(dead_code, reason = "each test program includes this file and uses its own part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The folder that holds the workspace's Cargo.toml.
pub(crate) fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the package of the tests stands inside the workspace").to_path_buf()
}

/// Where cargo builds this workspace; `CARGO_TARGET_TMPDIR` is its folder `tmp`.
pub(crate) fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp has a parent").to_path_buf()
}

/// The cargo that runs this test, standing in the root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs cargo without the network; a fresh machine has fetched only its own platform's packages, so what is
/// missing offline is tried once more with the network.
fn cargo_output(arguments: &[&str]) -> Vec<u8> {
    let offline = run(cargo().args(arguments).arg("--offline"));
    if offline.status.success() {
        return offline.stdout;
    }
    let online = run(cargo().args(arguments));
    assert!(
        online.status.success(),
        "cargo {} failed; run `cargo fetch --locked` once with a network.\noffline: {}\nonline: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&offline.stderr),
        String::from_utf8_lossy(&online.stderr),
    );
    online.stdout
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// `cargo tree` as sorted, deduplicated lines "name version", without paths and marks.
pub(crate) fn tree(package: &str) -> Vec<String> {
    let arguments = ["tree", "--locked", "-p", package, "-e", "normal", "--prefix", "none"];
    let text = String::from_utf8(cargo_output(&arguments)).expect("cargo tree writes UTF-8");
    let mut lines: Vec<String> = text.lines().filter_map(name_of_tree_line).collect();
    lines.sort();
    lines.dedup();
    lines
}

fn name_of_tree_line(line: &str) -> Option<String> {
    line.split_whitespace().next().map(str::to_owned)
}

/// One package of the resolved graph.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// The SPDX expression, empty where the package names none.
    pub(crate) license: String,
    /// None for the packages of this workspace.
    pub(crate) source: Option<String>,
    /// Declared dependencies by package name, optional and development ones included.
    pub(crate) declared: Vec<String>,
    /// Ids of what it really pulls in, over all kinds.
    pub(crate) resolved: Vec<String>,
    /// (kind, path from the root) of every target, for workspace packages.
    pub(crate) targets: Vec<(String, String)>,
}

/// Every package that the workspace can pull in on any platform, by id.
pub(crate) fn packages() -> BTreeMap<String, Package> {
    let output = cargo_output(&["metadata", "--locked", "--format-version", "1"]);
    let metadata: Value = serde_json::from_slice(&output).expect("cargo metadata writes JSON");
    let mut packages: BTreeMap<String, Package> =
        items(&metadata["packages"]).map(package).map(|package| (package.id.clone(), package)).collect();
    for node in items(&metadata["resolve"]["nodes"]) {
        let resolved = items(&node["dependencies"]).map(text).collect();
        let package = packages.get_mut(&text(&node["id"])).expect("a node of the graph is a package");
        package.resolved = resolved;
    }
    packages
}

fn package(value: &Value) -> Package {
    let root = root().display().to_string();
    let inside = |path: String| path.trim_start_matches(&root).trim_start_matches('/').to_owned();
    Package {
        id: text(&value["id"]),
        name: text(&value["name"]),
        version: text(&value["version"]),
        license: text(&value["license"]),
        source: value["source"].as_str().map(str::to_owned),
        declared: items(&value["dependencies"]).map(|dependency| text(&dependency["name"])).collect(),
        resolved: Vec::new(),
        targets: items(&value["targets"])
            .map(|target| (text(&target["kind"][0]), inside(text(&target["src_path"]))))
            .collect(),
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Every file that is committed or about to be, as paths from the root with `/`. Without git (an unpacked
/// archive) it is every file outside the build folders.
pub(crate) fn files() -> Vec<String> {
    let listing = Command::new("git")
        .current_dir(root())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output();
    let mut files = match listing {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let listed = String::from_utf8(output.stdout).expect("committed paths are UTF-8");
            listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect()
        }
        _ => walked(&root(), ""),
    };
    // A deleted file stays in git's index until the deletion is staged.
    files.retain(|path| root().join(path).is_file());
    files.sort();
    files.dedup();
    files
}

fn walked(folder: &Path, prefix: &str) -> Vec<String> {
    const BUILT: &[&str] = &["target", ".git", "corpus", "artifacts"];
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of the workspace can be read") {
        let entry = entry.expect("a folder entry can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.path().is_dir() {
            if !BUILT.contains(&name.as_str()) {
                found.extend(walked(&entry.path(), &format!("{path}/")));
            }
        } else {
            found.push(path);
        }
    }
    found
}
