//! Where messages come from: a terminal with an editable line and a history, or lines of standard input.
//!
//! A message is a line; `\` at a line's end goes on in the next, and `"""` begins and ends one with line breaks.

use std::env;
use std::fs;
use std::io::{self, BufRead};
use std::path::PathBuf;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};

use super::commands::COMMANDS;
use crate::failure::Failure;
use crate::{output, style};

const PROMPT: &str = "> ";
const QUOTES: &str = "\"\"\"";
/// Messages that are remembered.
const HISTORY_ENTRIES_MAX: usize = 1000;

/// The message in what was typed so far; `None` while it goes on.
fn whole(typed: &str) -> Option<String> {
    if let Some(rest) = typed.trim_start().strip_prefix(QUOTES) {
        let block = rest.trim_end().strip_suffix(QUOTES)?;
        let block = block.strip_prefix('\n').unwrap_or(block);
        return Some(block.strip_suffix('\n').unwrap_or(block).to_owned());
    }
    let goes_on = |line: &str| line.chars().rev().take_while(|&c| c == '\\').count() % 2 == 1;
    if typed.lines().last().is_some_and(goes_on) {
        return None;
    }
    let line = |line: &str| match goes_on(line) {
        true => line[..line.len() - 1].to_owned(),
        false => line.to_owned(),
    };
    Some(typed.lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// The message where no more will come: what is open counts as whole.
fn closed(typed: &str) -> String {
    let rest = match typed.trim_start().starts_with(QUOTES) {
        true => format!("{typed}{QUOTES}"),
        false => typed.strip_suffix('\\').unwrap_or(typed).to_owned(),
    };
    whole(&rest).unwrap_or(rest)
}

/// What the line editor knows of chats.
struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match whole(context.input()) {
            Some(_) => ValidationResult::Valid(None),
            None => ValidationResult::Incomplete,
        })
    }
}

impl Completer for Lines {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..position];
        let fits = COMMANDS.iter().filter(|(name, ..)| typed.starts_with('/') && name.starts_with(typed));
        let name = |(name, argument, _): &(&str, &str, &str)| match argument.is_empty() {
            true => (*name).to_owned(),
            false => format!("{name} "),
        };
        Ok((0, fits.map(name).collect()))
    }
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {}

impl Helper for Lines {}

/// What comes in.
pub(super) enum Typed {
    Message(String),
    /// Ctrl-C where nothing is under way.
    Nothing,
    End,
}

/// The source of messages.
pub(super) enum Input {
    Terminal(Box<Terminal>),
    Lines,
}

/// A line editor with its history.
pub(super) struct Terminal {
    editor: Editor<Lines, FileHistory>,
    history: Option<PathBuf>,
}

impl Input {
    /// A terminal, with the history of earlier chats where that is wanted.
    pub(super) fn terminal(with_history: bool) -> Result<Self, Failure> {
        let config = Config::builder().max_history_size(HISTORY_ENTRIES_MAX).map_err(failed)?;
        let config = config.history_ignore_space(true).auto_add_history(false).build();
        let mut editor: Editor<Lines, FileHistory> = Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(Lines));
        let history = if with_history { history_place() } else { None };
        if let Some(place) = &history {
            // The first chat finds none.
            let _ = editor.load_history(place);
        }
        Ok(Input::Terminal(Box::new(Terminal { editor, history })))
    }

    /// The next message, without the marks that hold its lines together.
    pub(super) fn next(&mut self) -> Result<Typed, Failure> {
        match self {
            Input::Terminal(terminal) => terminal.next(),
            Input::Lines => lines(),
        }
    }
}

impl Terminal {
    fn next(&mut self) -> Result<Typed, Failure> {
        let styled = style::on_stdout(style::GOOD, PROMPT);
        let typed = match self.editor.readline(&(PROMPT, styled.as_str())) {
            Ok(typed) => typed,
            Err(ReadlineError::Interrupted) => return Ok(Typed::Nothing),
            Err(ReadlineError::Eof) => return Ok(Typed::End),
            // Ctrl-D before the prompt: some systems keep it as the end of a file.
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Typed::End);
            }
            Err(error) => return Err(failed(error)),
        };
        if !typed.trim().is_empty() {
            let _ = self.editor.add_history_entry(typed.as_str());
            self.remember();
        }
        Ok(Typed::Message(whole(&typed).unwrap_or(typed)))
    }

    /// Appends to the file, which other chats append to as well.
    fn remember(&mut self) {
        let Some(place) = &self.history else { return };
        let made = place.parent().map_or(Ok(()), fs::create_dir_all);
        let written = made.map_err(ReadlineError::from).and_then(|()| self.editor.append_history(place));
        if let Err(error) = written.and_then(|()| Ok(keep_private(place)?)) {
            let place = place.display();
            output::warning(&format!("{place}: {error}: what you type is not remembered; see --no-history"));
            self.history = None;
        }
    }
}

/// The file may have been made by somebody who did not care.
fn keep_private(place: &PathBuf) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(place, fs::Permissions::from_mode(0o600))?;
    }
    let _ = place;
    Ok(())
}

/// Where what was typed is kept, as the desktop's base directories say.
fn history_place() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("bantam/chat_history"))
}

/// A message from lines; what is open at the end counts as whole.
fn lines() -> Result<Typed, Failure> {
    let failed =
        |source| Failure::Read { path: "standard input".into(), expected: "messages in UTF-8", source };
    let mut typed = String::new();
    loop {
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).map_err(failed)? == 0 {
            return Ok(match typed.is_empty() {
                true => Typed::End,
                false => Typed::Message(closed(&typed)),
            });
        }
        let line = line.trim_end_matches('\n').trim_end_matches('\r');
        typed = if typed.is_empty() { line.to_owned() } else { format!("{typed}\n{line}") };
        if let Some(message) = whole(&typed) {
            return Ok(Typed::Message(message));
        }
    }
}

fn failed(error: ReadlineError) -> Failure {
    let source = match error {
        ReadlineError::Io(source) => source,
        other => io::Error::other(other),
    };
    Failure::Read { path: "the terminal".into(), expected: "lines in UTF-8", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_may_have_several_lines() {
        for (typed, message) in [
            ("one", Some("one")),
            ("", Some("")),
            ("one\\", None),
            ("one\\\ntwo", Some("one\ntwo")),
            ("one\\\ntwo\\", None),
            ("a path\\\\", Some("a path\\\\")),
            ("pasted\nlines", Some("pasted\nlines")),
            ("\"\"\"", None),
            ("\"\"\"one\ntwo\\", None),
            ("\"\"\"\none\\\n  two\n\"\"\"", Some("one\\\n  two")),
            ("\"\"\"one\"\"\"", Some("one")),
        ] {
            assert_eq!(whole(typed).as_deref(), message, "{typed:?}");
        }
        assert_eq!(["a\\", "\"\"\"a\nb", "b\\\na\\"].map(closed), ["a", "a\nb", "b\na"]);
    }
}
