//! `cargo xtask python`: the Python client in an environment of its own: whether its generated half is fresh, its
//! types, its tests against the real daemon. `--stubs` writes the generated half.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::daemon;
use crate::steps::{self, command};

const CLIENT: &str = "clients/python";
/// The generated half; its folder below `src` is that of the protocol's package.
const STUBS: &str = "clients/python/src/bantam/v1";
const SOURCES: &str = "proto/bantam/v1";
/// What decides about the environment.
const WANTED: &str = "clients/python/requirements.txt";

/// Everything that a change of the client must pass.
pub(crate) fn run(root: &Path) -> Result<()> {
    let python = Python::prepare(root).map_err(|reason| anyhow::anyhow!("cannot run Python: {reason}"))?;
    python.check_stubs(root)?;
    let client = root.join(CLIENT);
    steps::run(&mut command(&client, &python.program("mypy"), &[]))?;
    // The tests meet the package as it is installed: what it leaves out is missed.
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--force-reinstall"];
    let package = ["--no-deps", "--no-build-isolation", "."];
    steps::run(&mut command(&client, &python.program("python"), &[&install[..], &package].concat()))?;
    steps::run(&mut command(&client, &python.program("python"), &["-m", "pip", "check"]))?;
    let bantamd = daemon::build(root)?;
    let mut tests =
        command(&client, &python.program("python"), &["-m", "unittest", "discover", "--start", "tests"]);
    tests.env_remove("PYTHONPATH").env("PYTHONDONTWRITEBYTECODE", "1").env("BANTAM_BIN", bantamd);
    steps::run(&mut tests)
}

/// Writes the generated half.
pub(crate) fn write_stubs(root: &Path) -> Result<()> {
    let python = Python::prepare(root).map_err(|reason| anyhow::anyhow!("cannot run Python: {reason}"))?;
    let folder = root.join(STUBS);
    for name in files(&folder)?.into_keys() {
        fs::remove_file(folder.join(name))?;
    }
    for (name, bytes) in python.generate(root)? {
        fs::write(folder.join(&name), bytes).with_context(|| format!("cannot write {STUBS}/{name}"))?;
    }
    println!("{STUBS}: written");
    Ok(())
}

/// Why the client cannot be tried here.
pub(crate) fn obstacle(root: &Path) -> Option<String> {
    Python::prepare(root).err()
}

/// An environment with what the client needs.
struct Python {
    folder: PathBuf,
}

impl Python {
    /// Makes it, unless it is there already and was made from the same files.
    fn prepare(root: &Path) -> Result<Self, String> {
        let python = Self { folder: root.join("target/python") };
        let wanted = fs::read_to_string(root.join(WANTED)).map_err(|error| format!("{WANTED}: {error}"))?;
        let stamp = python.folder.join("made-from");
        if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
            return Ok(python);
        }
        let new_enough = "import sys; sys.exit(sys.version_info < (3, 10))";
        if !steps::is_installed("python3", &["-c", new_enough]) {
            return Err("python3 is not installed, or older than 3.10".to_owned());
        }
        let folder = python.folder.to_string_lossy().into_owned();
        quietly(&mut command(root, "python3", &["-m", "venv", "--clear", &folder]))?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"];
        let wants = [&install[..], &["--requirement", WANTED]].concat();
        quietly(&mut command(root, &python.program("python"), &wants))?;
        fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))?;
        Ok(python)
    }

    fn program(&self, name: &str) -> String {
        self.folder.join("bin").join(name).to_string_lossy().into_owned()
    }

    fn check_stubs(&self, root: &Path) -> Result<()> {
        let (there, made) = (files(&root.join(STUBS))?, self.generate(root)?);
        for name in there.keys().chain(made.keys()) {
            let is_fresh = there.get(name) == made.get(name);
            ensure!(
                is_fresh,
                "{STUBS}/{name}: not what the .proto files say; run `cargo xtask python --stubs`"
            );
        }
        println!("{STUBS}: {} files are those of the .proto files", there.len());
        Ok(())
    }

    /// The generated half: names of files and their bytes.
    fn generate(&self, root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
        let target = root.join("target/python-stubs");
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        fs::create_dir_all(&target)?;
        let sources: Vec<String> = files(&root.join(SOURCES))?.into_keys().collect();
        self.protoc(root, &target, &["python", "mypy"], sources.iter())?;
        // Only services have stubs of calls.
        let services = sources.iter().filter(|name| name.ends_with("_service.proto"));
        self.protoc(root, &target, &["grpc_python", "mypy_grpc"], services)?;
        files(&target.join("bantam/v1"))
    }

    fn protoc<'a>(
        &self,
        root: &Path,
        target: &Path,
        kinds: &[&str],
        sources: impl Iterator<Item = &'a String>,
    ) -> Result<()> {
        let mut protoc =
            command(&root.join("proto"), &self.program("python"), &["-m", "grpc_tools.protoc", "-I."]);
        for kind in kinds {
            protoc.arg(format!("--{kind}_out={}", target.display()));
            if kind.starts_with("mypy") {
                protoc.arg(format!(
                    "--plugin=protoc-gen-{kind}={}",
                    self.program(&format!("protoc-gen-{kind}"))
                ));
            }
        }
        protoc.args(sources.map(|name| format!("bantam/v1/{name}")));
        quietly(&mut protoc).or_else(|reason| bail!("protoc: {reason}"))
    }
}

/// Runs without output; its last error, where it failed.
fn quietly(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // pip has hints after its errors.
    let is_error = |line: &&str| line.to_lowercase().starts_with("error");
    let last = said.lines().rfind(is_error).or_else(|| said.lines().rfind(|line| !line.trim().is_empty()));
    Err(last.map_or_else(|| format!("it ended with {}", output.status), str::to_owned))
}

/// Every file of a folder and its bytes; folders in it (such as Python's caches) are passed over.
fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            found.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
        }
    }
    Ok(found)
}
