//! Steps that run one after the other, each with its time, and a table of the times at the end.
//! It is not a build system: no step knows another, and the first failure ends the run.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What became of one step.
enum Outcome {
    Passed(Duration),
    /// With the reason, which is also in the table, so that a skip is never silent.
    Skipped(String),
}

/// The steps so far.
pub(crate) struct Steps {
    began: Instant,
    done: Vec<(String, Outcome)>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), done: Vec::new() }
    }

    /// Runs one step and prints its time; the error carries the step's name.
    pub(crate) fn step(&mut self, name: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n== {name}");
        let began = Instant::now();
        let result = action();
        let elapsed = began.elapsed();
        let word = if result.is_ok() { "passed" } else { "FAILED" };
        println!("== {name}: {word} in {:.1} s", elapsed.as_secs_f64());
        // The table is printed only when every step has passed, so a failed one never stands in it.
        self.done.push((name.to_owned(), Outcome::Passed(elapsed)));
        result.with_context(|| format!("step \"{name}\" failed"))
    }

    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        println!("\n== {name}: skipped: {reason}");
        self.done.push((name.to_owned(), Outcome::Skipped(reason.to_owned())));
    }

    /// The table of all steps.
    pub(crate) fn print(&self) {
        println!("\nall steps passed in {:.1} s", self.began.elapsed().as_secs_f64());
        for (name, outcome) in &self.done {
            match outcome {
                Outcome::Passed(elapsed) => println!("  {:8.1} s  {name}", elapsed.as_secs_f64()),
                Outcome::Skipped(reason) => println!("   skipped   {name}: {reason}"),
            }
        }
    }
}

/// A program by name with its arguments, standing in `folder`.
pub(crate) fn command(folder: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments);
    command
}

/// A program that asks a network, which may never answer: the system's `timeout` ends it after three minutes.
pub(crate) fn within_minutes(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["180", program]);
    command
}

/// The cargo that started this program: the one of the same toolchain.
pub(crate) fn cargo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command =
        command(folder, &std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()), arguments);
    // Cargo sets these for the program it runs; its children would take them for the caller's wishes.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs with our own output; an unsuccessful exit is an error that repeats the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let spelled = spell(command);
    println!("$ {spelled}");
    let status = command.status().with_context(|| format!("cannot start `{spelled}`"))?;
    if !status.success() {
        bail!("`{spelled}` ended with {status}");
    }
    Ok(())
}

/// Whether a program can be started at all.
pub(crate) fn is_installed(program: &str, arguments: &[&str]) -> bool {
    succeeds(Command::new(program).args(arguments))
}

/// Runs without output.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// The command as one would type it, with the program's file name only.
fn spell(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
