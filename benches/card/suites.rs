//! The tests that meet a card, as programs that were built before: a list of them is handed in.
//!
//! A line is a suite: its name, how many cards it needs, the folder that it runs in, its program (from the list's own
//! folder on, where it is no whole path), and what it is given, with tabs between them.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{iter, thread};

use super::arguments::Arguments;
use super::record::Section;
use super::seen::Seen;
use super::{Problem, Scale, at};

/// A program with tests.
#[derive(Debug, PartialEq)]
struct Suite {
    name: String,
    cards: usize,
    folder: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
}

/// What became of one.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    passed: usize,
    /// Of those: what they ask only a stand-in can be asked.
    skipped: usize,
    failed: Vec<String>,
    /// How it ended, where that is not how tests end.
    ended: Option<String>,
}

pub(crate) fn section(arguments: &Arguments, seen: &Seen, scale: Scale) -> Result<Section, Problem> {
    let mut section = Section::new("tests");
    let Some(list) = &arguments.suites else {
        section.pend("all suites", "pass", "no list of suites was handed in: cargo xtask card makes one");
        return Ok(section);
    };
    let text = fs::read_to_string(list).map_err(at(list))?;
    let suites: Vec<Suite> = text.lines().map(|line| suite(list, line)).collect::<Result<_, _>>()?;
    section.line(
        "With REQUIRE_GPU=1: tests that can be asked of a card meet it. Those that need a card to fail in some way, which\n\
         only a stand-in does, have skipped it.\n",
    );
    for (place, suite) in suites.iter().enumerate() {
        let words: Vec<&str> = iter::once(&suite.name).chain(&suite.arguments).map(String::as_str).collect();
        let what = words.join(" ");
        if seen.cards < suite.cards {
            section.pend(&what, "pass", &format!("it takes {} cards, here is {}", suite.cards, seen.cards));
        } else if scale.is_over() {
            section.pend(&what, "pass", "the time was over");
        } else {
            let outcome = run(suite, scale.part(suites.len() - place))?;
            tell(&mut section, &what, &outcome);
        }
    }
    Ok(section)
}

fn suite(list: &Path, line: &str) -> Result<Suite, Problem> {
    let mut words = line.split('\t').map(str::to_owned);
    let mut read = || {
        let (name, cards) = (words.next()?, words.next()?.parse().ok()?);
        let (folder, program) = (words.next()?.into(), words.next()?);
        let program = list.parent().unwrap_or(Path::new("")).join(program);
        Some(Suite { name, cards, folder, program, arguments: words.by_ref().collect() })
    };
    read().ok_or_else(|| Problem::Other {
        path: list.to_owned(),
        expected: "a name, a number of cards, a folder and a program with tabs between them".to_owned(),
        found: format!("\"{line}\""),
    })
}

/// What they have said and how they ended are files, so that none waits for a reader.
fn run(suite: &Suite, scale: Scale) -> Result<Outcome, Problem> {
    let log = std::env::temp_dir().join(format!("bantam-card-{}.log", std::process::id()));
    let program = fs::canonicalize(&suite.program).map_err(at(&suite.program))?;
    let file = File::create(&log).map_err(at(&log))?;
    let mut command = Command::new(&program);
    command.args(&suite.arguments).arg("--show-output").current_dir(&suite.folder).stdin(Stdio::null());
    command.env("REQUIRE_GPU", "1").env("CARGO_MANIFEST_DIR", &suite.folder);
    command.stdout(file.try_clone().map_err(at(&log))?).stderr(file);
    command.process_group(0);
    let mut child = command.spawn().map_err(at(&suite.folder))?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(at(&program))? {
            Some(status) => break Some(status),
            None if scale.is_over() => {
                // Its own, and those that it has started: they have no other end than this one.
                let group = format!("-{}", child.id());
                let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => thread::sleep(Duration::from_millis(50)),
        }
    };
    let said = fs::read(&log).map_err(at(&log))?;
    let _ = fs::remove_file(&log);
    let mut outcome = outcome(&String::from_utf8_lossy(&said));
    outcome.ended = match status {
        None => Some(format!("not over after {:.0} s", began.elapsed().as_secs_f64())),
        Some(status) if status.success() || !outcome.failed.is_empty() => outcome.ended,
        Some(status) => Some(format!("ended with {status}")),
    };
    Ok(outcome)
}

/// What a test program says of itself.
fn outcome(said: &str) -> Outcome {
    let failed = |line: &str| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(name.to_owned())
    };
    let result = said.lines().rev().find_map(|line| line.strip_prefix("test result: "));
    let passed =
        result.and_then(|line| line.split(' ').zip(line.split(' ').skip(1)).find(|pair| pair.1 == "passed;"));
    let is_done = |line: &&str| line.starts_with("test ") && line.ends_with(" ... ok");
    let done = said.lines().filter(is_done).count();
    Outcome {
        // A program that was ended says what it has done so far.
        passed: passed.and_then(|(count, _)| count.parse().ok()).unwrap_or(done),
        skipped: said.lines().filter(|line| line.starts_with("skipped: ")).count(),
        failed: said.lines().filter_map(failed).collect(),
        ended: result.is_none().then(|| "no result".to_owned()),
    }
}

fn tell(section: &mut Section, what: &str, outcome: &Outcome) {
    let Outcome { passed, skipped, failed, ended } = outcome;
    let met = passed.saturating_sub(*skipped);
    let is_reached = failed.is_empty() && ended.is_none() && met > 0;
    let mut said = format!("{met} passed");
    if *skipped > 0 {
        said += &format!(", {skipped} skipped");
    }
    if !failed.is_empty() {
        said += &format!(", {} failed", failed.len());
    }
    section.ask(what, "pass", said, is_reached);
    failed.iter().for_each(|name| section.line(&format!("failed: {what}: {name}")));
    ended.iter().for_each(|how| section.line(&format!("failed: {what}: {how}")));
}

#[cfg(test)]
#[allow(unused_imports, reason = "a bench is compiled with its tests, and without what is marked as one")]
mod tests {
    use super::*;

    #[test]
    fn what_test_programs_say_is_understood() {
        let said = "running 3 tests\ntest a ... ok\ntest b::c ... FAILED\n\nfailures:\n\n\
                    test result: FAILED. 2 passed; 1 failed; 0 ignored";
        let wanted = Outcome { passed: 2, skipped: 0, failed: vec!["b::c".to_owned()], ended: None };
        assert_eq!(outcome(said), wanted);
        let shown =
            "successes:\n\n---- a stdout ----\nskipped: it is a card\n\ntest result: ok. 3 passed; 0 failed";
        assert_eq!((outcome(shown).passed, outcome(shown).skipped), (3, 1));
        let broken = outcome("test a ... ok\ntest b ... ok\nSegmentation fault");
        assert_eq!((broken.passed, broken.ended.as_deref()), (2, Some("no result")));
    }

    #[test]
    fn a_line_of_the_list_is_a_suite() {
        let found = suite(Path::new("/pack/suites.txt"), "cli\t1\t/here\ttests/cli\tcards::").ok();
        let wanted = Suite {
            name: "cli".to_owned(),
            cards: 1,
            folder: "/here".into(),
            program: "/pack/tests/cli".into(),
            arguments: vec!["cards::".to_owned()],
        };
        assert_eq!(found, Some(wanted));
        assert!(suite(Path::new("suites.txt"), "cli\tmany").is_err());
    }
}
