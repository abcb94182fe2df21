//! Everything that is not cargo: `cargo xtask card`, `carried`, `ci`, `fuzz`, `goldens`, `grpcurl`, `proto`, `ptx`,
//! `python`, `synth`.
//! It is not part of the program: nothing here is shipped, and nothing depends on it.
#![forbid(unsafe_code)]

mod card;
mod carried;
mod ci;
mod daemon;
mod fuzz;
mod goldens;
mod grpcurl;
mod proto;
mod ptx;
mod python;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
cargo xtask VERB

  card [--only PART]    on a machine with an NVIDIA card: its tests, and what it does beside what is asked of it, as a
                        record below benches/record; --minutes N, --out FILE, parts tests, matvec, models, policies
  card --pack DIR       the same as programs with a script, for a machine that has neither Rust nor a network
  carried [--quick]     the model that the program carries, trained anew by model/carried/recipe; --quick: two steps
                        of each part, and the model stays as it is; --ask: how much of its lessons it knows;
                        --documents: its recipe takes over this project's documents as they are now
  ci                    all that a change must pass: format, lints, documentation, fuzz seeds, tests
  fuzz [--seconds 60]   every target of tests/fuzz, that many seconds each
  goldens PATH          tests/goldens anew from a folder of reference files; says what changed
  grpcurl               every script of clients/grpcurl.md, with the real grpcurl and the real daemon
  proto [--lint]        the generated half of proto/ anew from its .proto files; with --lint, what buf says of them too
  proto --release       the same, and takes the present messages as those that must not break from here on
  ptx                   the texts of core/src/cuda/ptx anew from the kernels' sources, and what each kernel takes
  python [--stubs]      the Python client: generated half, types, tests with the real daemon; --stubs writes that half
  synth SHAPE --format FORMAT --out DIR
                        a checkpoint of a published shape with made-up weights; `synth --help` says more";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Asked for something that is not there: exit status 2.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n\n{USAGE}", self.0)
    }
}

impl std::error::Error for Usage {}

fn dispatch(arguments: &[&str]) -> Result<()> {
    let root = root()?;
    match arguments {
        ["card", "--pack", folder] => card::pack(&root, folder.as_ref(), false),
        ["card", "--pack", folder, "--quick"] => card::pack(&root, folder.as_ref(), true),
        ["card", rest @ ..] => card::run(&root, rest),
        ["carried"] => carried::run(&root, false),
        ["carried", "--quick"] => carried::run(&root, true),
        ["carried", "--ask"] => carried::ask(&root),
        ["carried", "--documents"] => carried::documents(&root),
        ["ci"] => ci::run(&root),
        ["fuzz"] => fuzz::run(&root, 60),
        ["fuzz", "--seconds", seconds] => {
            let seconds = seconds.parse().map_err(|_| {
                Usage(format!("--seconds takes a whole number of seconds, found \"{seconds}\""))
            })?;
            fuzz::run(&root, seconds)
        }
        ["goldens", path] => goldens::run(&root, path.as_ref()),
        ["grpcurl"] => grpcurl::run(&root),
        ["proto"] => proto::run(&root),
        ["proto", "--lint"] => proto::run(&root).and_then(|()| proto::lint(&root)),
        ["proto", "--release"] => proto::run(&root).and_then(|()| proto::release(&root)),
        ["ptx"] => ptx::run(&root),
        ["python"] => python::run(&root),
        ["python", "--stubs"] => python::write_stubs(&root),
        // A program of its own: the model is compiled only for those who want this.
        ["synth", rest @ ..] => {
            let build = ["run", "--quiet", "--package", "bantam-benches", "--bin", "synth", "--"];
            steps::run(&mut steps::cargo(&std::env::current_dir()?, &[&build[..], rest].concat()))
        }
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [] => bail!(Usage("a verb is missing".to_owned())),
        _ => bail!(Usage(format!("\"{}\" is not understood", arguments.join(" ")))),
    }
}

/// The folder that holds the workspace's Cargo.toml. Cargo tells where this package stands today; the path at
/// compile time would be that of another checkout with the same target folder.
fn root() -> Result<PathBuf> {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").context("start it as `cargo xtask`, not by its path")?;
    let package = PathBuf::from(package);
    Ok(package.parent().context("the package xtask stands inside the workspace")?.to_path_buf())
}
