//! `cargo xtask card`: the tests that meet a card and the report of `benches/card`, in one command; with `--pack` as a
//! folder of programs for a machine that has neither Rust nor a network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::steps::{self, cargo, command};

/// Tests that meet a card: program, package, cards that it takes, and what it is given.
const SUITES: [(&str, &str, usize, &[&str]); 4] = [
    ("cuda", "tests", 1, &[]),
    ("card", "cuda", 1, &[]),
    ("cards", "tests", 2, &[]),
    ("cli", "clients/cli", 1, &["cards::"]),
];
/// What the last of them starts.
const PROGRAM: &str = "bantam";
const REPORT: &str = "card";
const LIST: &str = "suites.txt";
/// Tiny sizes; nobody looks at a figure, so that programs are built as tests are.
const QUICK: &str = "--quick";

/// Builds all of it and runs it here.
pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    let folder = target(root).join("card-report");
    let built = Built::build(root, arguments.contains(&QUICK))?;
    built.write(&folder, false)?;
    let report = folder.join(REPORT);
    let report = report.to_str().context("the path of the target folder is no UTF-8")?;
    let records = root.join("benches/record");
    let mut all = command(&std::env::current_dir()?, report, &["--commit", &built.commit]);
    all.arg("--suites").arg(folder.join(LIST)).args(arguments);
    if !arguments.iter().any(|argument| ["--out", "--record"].contains(argument)) {
        all.arg("--record").arg(records);
    }
    steps::run(&mut all)
}

/// Builds all of it into a folder.
pub(crate) fn pack(root: &Path, folder: &Path, is_quick: bool) -> Result<()> {
    let built = Built::build(root, is_quick)?;
    built.write(folder, true)?;
    built.write_script(root, folder)?;
    let bytes = size(folder)?;
    println!(
        "{}: {:.1} MiB; run.sh says how it is used",
        folder.display(),
        bytes as f64 / f64::from(1 << 20)
    );
    Ok(())
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}

/// Programs, and where they were built.
struct Built {
    /// In the order of [`SUITES`], each with the folder that it runs in.
    suites: Vec<(PathBuf, PathBuf)>,
    report: PathBuf,
    program: PathBuf,
    commit: String,
}

impl Built {
    fn build(root: &Path, is_quick: bool) -> Result<Built> {
        let profile = ["--profile", if is_quick { "dev" } else { "release" }];
        let tests: Vec<&str> = SUITES.iter().flat_map(|(name, ..)| ["--test", name]).collect();
        let common = ["--workspace", "--locked", "--no-run", "--message-format", "json-render-diagnostics"];
        let tests = executables(root, &[&["test"][..], &profile, &common, &tests].concat())?;
        let benches = executables(root, &[&["bench", "--bench", REPORT][..], &profile, &common].concat())?;
        let find = |list: &[Executable], kind: &str, name: &str| {
            let found = list.iter().find(|found| found.kind == kind && found.name == name);
            let found =
                found.with_context(|| format!("expected cargo to name the {kind} {name}, found none"))?;
            Ok::<PathBuf, anyhow::Error>(found.path.clone())
        };
        let suite = |(name, folder, ..): &(&str, &str, usize, &[&str])| {
            Ok((find(&tests, "test", name)?, root.join(folder)))
        };
        Ok(Built {
            suites: SUITES.iter().map(suite).collect::<Result<_>>()?,
            report: find(&benches, "bench", REPORT)?,
            program: find(&tests, "bin", PROGRAM)?,
            commit: commit(root)?,
        })
    }

    /// Programs and the list of suites, which names them from its own folder on.
    fn write(&self, folder: &Path, is_small: bool) -> Result<()> {
        let tests = folder.join("tests");
        fs::create_dir_all(&tests).with_context(|| format!("cannot make {}", tests.display()))?;
        copy(&self.report, &folder.join(REPORT), is_small)?;
        copy(&self.program, &tests.join(PROGRAM), is_small)?;
        let mut list = String::new();
        for ((name, _, cards, arguments), (program, place)) in SUITES.iter().zip(&self.suites) {
            copy(program, &tests.join(name), is_small)?;
            let place = place.display();
            list += &format!("{name}\t{cards}\t{place}\ttests/{name}");
            arguments.iter().for_each(|argument| list += &format!("\t{argument}"));
            list.push('\n');
        }
        let path = folder.join(LIST);
        fs::write(&path, list).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_script(&self, root: &Path, folder: &Path) -> Result<()> {
        let target =
            self.program.parent().and_then(Path::parent).context("a program lies in a target folder")?;
        let text = script(root, target, &self.program, &self.commit)?;
        let path = folder.join("run.sh");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        // What was copied keeps its mode, what was written has none to keep.
        steps::run(&mut command(folder, "chmod", &["+x", "run.sh"]))
    }
}

/// Tests look for their files, and for the program that they start, at the paths of the machine that built them.
fn script(root: &Path, target: &Path, program: &Path, commit: &str) -> Result<String> {
    let quoted = |path: &Path| {
        let text = path.to_str().filter(|text| !text.contains('\'')).with_context(|| {
            format!("expected a path that a shell takes in quotes, found {}: build elsewhere", path.display())
        })?;
        Ok::<String, anyhow::Error>(format!("'{text}'"))
    };
    let (root, tmp, program) = (quoted(root)?, quoted(&target.join("tmp"))?, quoted(program)?);
    Ok(format!(
        "#!/bin/sh\n\
         # What a card does: tests and figures, by programs that were built elsewhere, at {commit}. Run it in a\n\
         # checkout of that commit, which tests take their files from, or name one as CHECKOUT. It is linked to\n\
         # where the tests were built, so that must be a path that can be made here.\n\
         #\n\
         #   ./run.sh --out FILE                                all of it; 40 minutes at most, or --minutes N\n\
         #   ./run.sh --out FILE --only matvec --minutes 9      a part: tests, matvec, models or policies; the same\n\
         #                                                      FILE takes up one after the other\n\
         set -eu\n\
         here=$(cd \"$(dirname \"$0\")\" && pwd)\n\
         checkout=$(cd \"${{CHECKOUT:-.}}\" && pwd)\n\
         for program in \"$here\"/*.gz \"$here\"/tests/*.gz; do\n\
         \x20   [ ! -e \"$program\" ] || gzip -df \"$program\"\n\
         done\n\
         link() {{\n\
         \x20   [ -e \"$2\" ] && [ ! -L \"$2\" ] || {{ mkdir -p \"$(dirname \"$2\")\" && ln -sfn \"$1\" \"$2\"; }}\n\
         \x20   [ \"$1\" -ef \"$2\" ] || {{ echo \"run.sh: $2 is not $1; move it away\" >&2; exit 2; }}\n\
         }}\n\
         link \"$checkout\" {root}\n\
         link \"$here/tests/{PROGRAM}\" {program}\n\
         mkdir -p {tmp}\n\
         exec \"$here/{REPORT}\" --suites \"$here/{LIST}\" --commit '{commit}' \\\n\
         \x20   --as 'run.sh of cargo xtask card --pack' \"$@\"\n"
    ))
}

/// Copies a program; without what only a debugger reads, and compressed, where it has to be small and this system can
/// do that.
fn copy(from: &Path, to: &Path, is_small: bool) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    let path = to.to_str().context("expected a path that is UTF-8")?;
    for (program, options) in [("strip", &[][..]), ("gzip", &["--best", "--no-name", "--force"])] {
        if is_small && steps::is_installed(program, &["--version"]) {
            steps::run(&mut command(Path::new("."), program, &[options, &[path]].concat()))?;
        }
    }
    Ok(())
}

/// A program that cargo built.
struct Executable {
    kind: String,
    name: String,
    path: PathBuf,
}

fn executables(root: &Path, arguments: &[&str]) -> Result<Vec<Executable>> {
    println!("$ cargo {}", arguments.join(" "));
    let output = cargo(root, arguments).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`cargo {}` ended with {}", arguments.join(" "), output.status);
    let text = String::from_utf8(output.stdout).context("expected cargo to write UTF-8")?;
    Ok(text.lines().filter_map(executable).collect())
}

/// The program that a line of cargo's is about, if it is about one.
fn executable(line: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message["executable"].as_str()?.into();
    let target = &message["target"];
    let (kind, name) = (target["kind"][0].as_str()?.to_owned(), target["name"].as_str()?.to_owned());
    Some(Executable { kind, name, path })
}

/// The commit that is built, and whether anything differs from it.
fn commit(root: &Path) -> Result<String> {
    let ask = |arguments: &[&str]| {
        let output = command(root, "git", arguments).output().context("cannot start git")?;
        if !output.status.success() {
            bail!("`git {}` ended with {}: expected a checkout", arguments.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = ask(&["rev-parse", "--short", "HEAD"])?;
    // Files that the repository does not have do not count: the record of today is one.
    let is_changed = !ask(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(if is_changed { format!("{commit} with changes") } else { commit })
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let line = r#"{"target":{"kind":["test"],"name":"cuda"},"executable":"/t/cuda-1"}"#;
        let found = executable(line).map(|found| (found.kind, found.name, found.path));
        assert_eq!(found, Some(("test".to_owned(), "cuda".to_owned(), "/t/cuda-1".into())));
        let library =
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"x"},"executable":null}"#;
        assert!(executable(library).is_none() && executable("Compiling").is_none());
    }

    #[test]
    fn the_script_links_the_checkout_to_where_it_was_built() {
        let [root, target, program] = ["/b/x", "/t", "/t/release/bantam"].map(Path::new);
        let text = script(root, target, program, "c0ffee").unwrap_or_default();
        for line in [
            "link \"$checkout\" '/b/x'",
            "link \"$here/tests/bantam\" '/t/release/bantam'",
            "mkdir -p '/t/tmp'",
            "exec \"$here/card\" --suites \"$here/suites.txt\" --commit 'c0ffee' \\",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        assert!(script(Path::new("/it's"), target, program, "c0ffee").is_err());
    }
}
