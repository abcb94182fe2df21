//! `cargo xtask grpcurl`: every script of clients/grpcurl.md, run with the real grpcurl against a daemon of its own,
//! and its output held against the page. A script is a block marked `sh`, what it prints the block marked `text` below
//! it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::daemon::{self, Daemon};
use crate::steps::is_installed;

const PAGE: &str = "clients/grpcurl.md";
/// What the page says too.
const PACKAGE: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4";
/// Of a page that lost its marks nothing would be run.
const SCRIPTS_MIN: usize = 8;
/// In an expected text: anything. Alone in a line, any number of lines, none as well.
const ANYTHING: &str = "...";

/// Runs the page.
pub(crate) fn run(root: &Path) -> Result<()> {
    let grpcurl = install(root).map_err(|reason| anyhow::anyhow!("cannot run the page: {reason}"))?;
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    ensure!(page.contains(PACKAGE), "{PAGE}: expected the version that is used, {PACKAGE}, found another");
    let scripts = scripts(&page)?;
    ensure!(
        scripts.len() >= SCRIPTS_MIN,
        "{PAGE}: expected {SCRIPTS_MIN} scripts at least, found {}",
        scripts.len()
    );
    let daemon = Daemon::start(&daemon::build(root)?)?;
    let mut wrong = Vec::new();
    for script in &scripts {
        match check(script, &grpcurl, &daemon.socket()) {
            Ok(()) => println!("{PAGE}:{}: as expected", script.line),
            Err(error) => wrong.push(format!("{PAGE}:{}: {error:#}", script.line)),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    println!("{} scripts of {PAGE} print what it says", scripts.len());
    Ok(())
}

/// Why the page cannot be run here.
pub(crate) fn obstacle(root: &Path) -> Option<String> {
    install(root).err()
}

/// The real grpcurl: one that an earlier run installed, or a new one by Go, or whatever the machine has.
fn install(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join("target/tools");
    let ours = folder.join("grpcurl");
    if is_installed(&ours.to_string_lossy(), &["--version"]) {
        return Ok(ours);
    }
    let mut go = Command::new("go");
    let failure = match go.args(["install", PACKAGE]).env("GOBIN", &folder).current_dir(root).output() {
        Ok(output) if output.status.success() => return Ok(ours),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("go cannot install it: {}", said.lines().last().unwrap_or("it does not say why"))
        }
        Err(_) => "there is no go to install it with".to_owned(),
    };
    if is_installed("grpcurl", &["--version"]) {
        return Ok("grpcurl".into());
    }
    Err(format!("grpcurl is not installed, and {failure}"))
}

/// What a reader would type, and what they would see.
#[derive(Debug, PartialEq, Eq)]
struct Script {
    line: usize,
    commands: String,
    expected: String,
}

fn scripts(page: &str) -> Result<Vec<Script>> {
    let mut scripts: Vec<Script> = Vec::new();
    let mut is_open = false;
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let body: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let body = body.join("\n");
        match (kind, is_open, scripts.last_mut()) {
            ("sh", false, _) => {
                scripts.push(Script { line: number + 1, commands: body, expected: String::new() });
            }
            ("text", true, Some(script)) => script.expected = body,
            _ => bail!(
                "{PAGE}:{}: expected a block sh, then a block text, in turns; found {kind:?}",
                number + 1
            ),
        }
        is_open = kind == "sh";
    }
    ensure!(!is_open, "{PAGE}: the last script says nothing of what it prints");
    Ok(scripts)
}

fn check(script: &Script, grpcurl: &Path, socket: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-euc", &script.commands]).env("SOCKET", socket);
    if let Some(folder) = grpcurl.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
        shell.env("PATH", std::env::join_paths(folders)?);
    }
    let output = shell.output().context("cannot start sh")?;
    let (found, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "expected success, found {}\n{errors}", output.status);
    if let Err(missing) = matches(&script.expected, found.trim_end()) {
        bail!("expected\n{missing}\nfound\n{found}");
    }
    Ok(())
}

/// Whether a text is what was expected; else the first part of the expectation that it does not hold in its place.
fn matches<'a>(expected: &'a str, found: &str) -> Result<(), &'a str> {
    let mut parts = parts(expected).into_iter();
    let first = parts.next().unwrap_or_default();
    let mut rest = found.strip_prefix(first).ok_or(first)?;
    let mut parts = parts.peekable();
    let mut is_whole = rest.is_empty();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let at = if is_last { rest.len().checked_sub(part.len()) } else { rest.find(part) };
        let after = at.and_then(|at| rest.get(at..)).and_then(|rest| rest.strip_prefix(part));
        rest = after.ok_or(part)?;
        is_whole = is_last;
    }
    if is_whole { Ok(()) } else { Err(expected) }
}

/// The parts between what may be anything.
fn parts(expected: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = expected.split(ANYTHING).collect();
    for at in 1..parts.len() {
        // Where it stands alone in a line, one of the line's two ends belongs to it.
        let alone = parts[at - 1].is_empty() && at == 1 || parts[at - 1].ends_with('\n');
        if let Some(next) = parts[at].strip_prefix('\n').filter(|_| alone) {
            parts[at] = next;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{Script, matches, scripts};

    fn check(expected: &str, found: &str, is_match: bool) {
        assert_eq!(matches(expected, found).is_ok(), is_match, "{expected:?} and {found:?}");
    }

    #[test]
    fn dots_are_anything_and_the_rest_is_itself() {
        check("a", "a", true);
        check("a", "ab", false);
        check("a", "", false);
        check("", "", true);
        check("", "a", false);
        check("a...c", "abc", true);
        check("a...c", "ac", true);
        check("a...c", "abcd", false);
        check("a...b...", "a1b2", true);
        check("a...b...", "a1c2", false);
        check("...b", "aab", true);
        check("a...a", "a", false);
    }

    #[test]
    fn dots_alone_in_a_line_are_any_number_of_lines() {
        check("a\n...\nb", "a\nb", true);
        check("a\n...\nb", "a\n1\n2\nb", true);
        check("a\n...\nb", "a\n1\n2", false);
        check("...\nb", "b", true);
        check("...\nb", "a\nb", true);
        check("a\n...", "a\nb", true);
        check("a\n  ...\nb", "a\n  1,\n  2\nb", true);
    }

    #[test]
    fn a_page_is_scripts_and_what_they_print() {
        let found = scripts("# Page\n\n```sh\na\nb\n```\n\nwords\n\n```text\nc\n```\n").expect("it is sound");
        let script = Script { line: 3, commands: "a\nb".to_owned(), expected: "c".to_owned() };
        assert_eq!(found, [script]);
        for wrong in ["```sh\na\n```\n", "```text\na\n```\n", "```sh\na\n```\n```sh\nb\n```\n"] {
            assert!(scripts(wrong).is_err(), "{wrong:?}");
        }
    }
}
