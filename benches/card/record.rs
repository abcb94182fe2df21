//! The record: a text whose head names command, commit and machine, and then a section for each part of the report,
//! which ends with what was asked beside what was reached. A later run of one part writes that section anew and leaves
//! the others.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use super::arguments::{Arguments, today};
use super::seen::Seen;
use super::{Problem, at};

/// A part of the report.
pub(crate) struct Part {
    /// As it is asked for.
    pub(crate) name: &'static str,
    /// What it is.
    title: &'static str,
    /// What is asked in it, for as long as it was not run.
    asked: &'static [[&'static str; 2]],
}

/// All of them, in their order.
pub(crate) static PARTS: &[Part] = &[
    Part {
        name: "tests",
        title: "the tests that meet a card, with REQUIRE_GPU=1",
        asked: &[["all suites", "pass"]],
    },
    Part {
        name: "matvec",
        title: "products of a matrix with one token, and with many",
        asked: &[["every layout, 64 MB and more, of copies", "85 %"]],
    },
    Part {
        name: "models",
        title: "whole models with made-up weights, all on the card",
        asked: &[
            ["gpt-neox-20b nf4, tokens/s", "250"],
            ["gpt-oss-20b mxfp4, tokens/s", "400"],
            ["allocations after load", "0"],
        ],
    },
    Part {
        name: "policies",
        title: "4 GiB of the card: ours beside what other programs do, in turns",
        asked: &[
            ["gpt-neox-20b nf4, ours by whole layers", "1.12"],
            ["gpt-neox-20b ternary, ours by whole layers", "1.35"],
            ["gpt-oss-20b mxfp4, ours by whole layers", "1.00"],
            ["every forecast", "within 15 %"],
        ],
    },
];

/// Above the last table of every section.
const ASKED: &str = "asked and reached";
/// A section begins with it.
const SECTION: &str = "\n== ";

/// How something that was asked came out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Reached,
    Missed,
    /// It was not measured: why.
    Pending(String),
}

impl Verdict {
    /// Of something that was measured.
    pub(crate) fn of(is_reached: bool) -> Verdict {
        if is_reached { Verdict::Reached } else { Verdict::Missed }
    }

    fn text(&self) -> String {
        match self {
            Verdict::Reached => "reached".to_owned(),
            Verdict::Missed => "missed".to_owned(),
            Verdict::Pending(why) => format!("pending: {}", plain(why)),
        }
    }
}

/// Words in one line, without the two spaces that divide a table's columns.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What was asked, beside what was reached.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    what: String,
    asked: String,
    reached: String,
    verdict: Verdict,
}

/// A part that was run, or is still to be.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    name: &'static str,
    lines: String,
    asked: Vec<Asked>,
    is_broken: bool,
}

impl Section {
    pub(crate) fn new(name: &'static str) -> Section {
        Section { name, lines: String::new(), asked: Vec::new(), is_broken: false }
    }

    /// Of a part that was not run: all that it asks is pending.
    fn pending(part: &'static Part, why: &str) -> Section {
        let mut section = Section::new(part.name);
        for [what, asked] in part.asked {
            section.pend(what, asked, why);
        }
        section
    }

    /// Of a part that could not be run.
    pub(crate) fn failed(name: &'static str, why: &str) -> Section {
        let part = PARTS.iter().find(|part| part.name == name).expect("a part is asked for by its name");
        let mut section = Section::pending(part, "this part could not be run");
        section.line(&format!("could not be run: {}", plain(why)));
        section.is_broken = true;
        section
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, text: &str) {
        self.lines += text;
        self.lines.push('\n');
    }

    /// Adds a table: a line of names, then rows, the first column to the left and the others to the right.
    pub(crate) fn table(&mut self, rows: &[Vec<String>]) {
        let text = table(rows, &[]);
        self.lines += &text;
    }

    /// Says that something asked for was measured.
    pub(crate) fn ask(&mut self, what: &str, asked: &str, reached: String, is_reached: bool) {
        self.put(what, asked, reached, Verdict::of(is_reached));
    }

    /// Says that it was not.
    pub(crate) fn pend(&mut self, what: &str, asked: &str, why: &str) {
        self.put(what, asked, "-".to_owned(), Verdict::Pending(why.to_owned()));
    }

    fn put(&mut self, what: &str, asked: &str, reached: String, verdict: Verdict) {
        self.asked.push(Asked { what: what.to_owned(), asked: asked.to_owned(), reached, verdict });
    }

    /// Whether nothing was missed, and the part could be run. What is pending was not tried.
    pub(crate) fn is_sound(&self) -> bool {
        !self.is_broken && self.asked.iter().all(|asked| asked.verdict != Verdict::Missed)
    }

    pub(crate) fn text(&self) -> String {
        let mut rows = vec![[ASKED, "asked", "reached", "verdict"].map(str::to_owned).to_vec()];
        rows.extend(self.asked.iter().map(|asked| {
            vec![asked.what.clone(), asked.asked.clone(), asked.reached.clone(), asked.verdict.text()]
        }));
        format!("{}\n{}", self.lines, table(&rows, &[3]))
    }
}

/// Rows with columns of equal width, two spaces apart; the first and those of `left` to the left.
fn table(rows: &[Vec<String>], left: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            // Writing into a text cannot fail.
            let _ = match column == 0 || left.contains(&column) {
                true => write!(line, "{gap}{cell:<width$}"),
                false => write!(line, "{gap}{cell:>width$}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The whole file.
pub(crate) struct Record {
    head: String,
    /// The text of every part.
    parts: Vec<String>,
}

impl Record {
    /// The record at a path, if it is one of this machine and this program, or a new one.
    pub(crate) fn open(path: &Path, seen: &Seen, arguments: &Arguments) -> Result<Record, Problem> {
        let mut head = format!("$ {}    # bantam at {}\n", arguments.command, arguments.commit);
        let extent =
            if arguments.quick { "quick: tiny sizes, which say nothing about speed" } else { "full sizes" };
        let mut lines = seen.lines();
        lines.push(["extent", extent].map(str::to_owned));
        for [name, said] in lines {
            let _ = writeln!(head, "{name:<12}{said}");
        }
        let parts = PARTS.iter().map(|part| Section::pending(part, "this part was not run").text()).collect();
        let mut record = Record { head, parts };
        match fs::read_to_string(path) {
            Ok(text) => record.take(path, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(path)(error)),
        }
        Ok(record)
    }

    /// Takes over what an earlier run wrote.
    fn take(&mut self, path: &Path, text: &str) -> Result<(), Problem> {
        let (head, parts) = sections(text);
        if head != self.head {
            let differing = |(a, b): &(&str, &str)| a != b;
            let found = self.head.lines().zip(head.lines()).find(differing);
            let (expected, found) = found.unwrap_or(("a record of this program", "something else"));
            let [expected, found] = [expected, found].map(|line| format!("\"{line}\""));
            return Err(Problem::Other { path: path.to_owned(), expected, found });
        }
        for (name, text) in parts {
            if let Some(at) = PARTS.iter().position(|part| part.name == name) {
                self.parts[at] = text;
            }
        }
        Ok(())
    }

    /// Puts a section into its place.
    pub(crate) fn put(&mut self, section: Section) {
        let at = PARTS.iter().position(|part| part.name == section.name).expect("a part is one of the table");
        let measured = if section.is_broken { String::new() } else { format!("measured {}\n", today()) };
        self.parts[at] = format!("{measured}{}", section.text());
    }

    pub(crate) fn text(&self) -> String {
        let mut text = self.head.clone();
        for (part, section) in PARTS.iter().zip(&self.parts) {
            let _ = write!(text, "{SECTION}{}: {}\n\n{}\n", part.name, part.title, section.trim());
        }
        text
    }
}

/// A record's head, and its sections by their names.
fn sections(text: &str) -> (String, Vec<(String, String)>) {
    let mut parts = text.split(SECTION);
    let head = parts.next().unwrap_or_default().to_owned();
    let named = parts.filter_map(|part| {
        let (title, text) = part.split_once('\n')?;
        Some((title.split(':').next()?.to_owned(), text.trim().to_owned()))
    });
    (head, named.collect())
}

/// What a record lacks to be one; nothing where it is whole. Its file is `path`.
#[allow(dead_code, reason = "what tests ask of a record, and the report itself does not")]
pub(crate) fn faults(path: &Path, text: &str) -> Vec<String> {
    let (head, found) = sections(text);
    let mut faults = Vec::new();
    let mut expect = |is_so: bool, what: String| {
        if !is_so {
            faults.push(what);
        }
    };
    for word in ["$ ", "card ", "its memory ", "driver ", "processor ", "extent "] {
        expect(head.lines().any(|line| line.starts_with(word)), format!("the head has no \"{word}\""));
    }
    let is_among_records = path.components().any(|part| part.as_os_str() == "record");
    let is_measured = !head.contains("stand-in") && !head.contains("quick");
    expect(!is_among_records || is_measured, "a stand-in's figures stand among records".to_owned());
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    expect(
        names == PARTS.iter().map(|part| part.name).collect::<Vec<_>>(),
        format!("its parts are {names:?}"),
    );
    for (name, text) in &found {
        let mut lines = text.lines().skip_while(|line| !line.starts_with(ASKED)).skip(1).peekable();
        expect(lines.peek().is_some(), format!("{name} says nothing of what was asked"));
        for line in lines {
            let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            let is_told = match cells[..] {
                [_, _, "-", why] => why.strip_prefix("pending: ").is_some_and(|why| !why.is_empty()),
                [_, asked, _, verdict] => asked != "-" && ["reached", "missed"].contains(&verdict),
                _ => false,
            };
            expect(is_told, format!("{name}: \"{line}\" is neither reached, missed nor pending"));
        }
    }
    faults
}
