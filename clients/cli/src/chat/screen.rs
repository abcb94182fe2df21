//! An answer as it comes, for eyes, for pipes, or for nobody.

use std::borrow::Cow;
use std::io::{self, Write};

use bantam_model::generate::Token;
use bantam_model::part::{Channel, Part};

use crate::style;

/// How an answer is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// With thinking, dimmed where there are colours, and nothing that would steer the terminal.
    Terminal { hide_thinking: bool },
    /// The answer and calls of tools, byte for byte.
    Plain,
    /// Not at all: it is told as JSON at the end.
    Silent,
}

/// Writes one answer.
#[derive(Debug)]
pub(super) struct Screen {
    manner: Manner,
    /// The message that was written last.
    message: Option<usize>,
    ends_line: bool,
}

impl Screen {
    pub(super) fn new(manner: Manner) -> Self {
        Screen { manner, message: None, ends_line: false }
    }

    /// Shows what a token made certain.
    pub(super) fn token(&mut self, token: &Token<'_>) -> io::Result<()> {
        let Some(part) = token.part else { return Ok(()) };
        let is_thinking = part.channel == Channel::Analysis && part.tool().is_none();
        let is_shown = match self.manner {
            Manner::Terminal { hide_thinking } => !(is_thinking && hide_thinking),
            Manner::Plain => !is_thinking,
            Manner::Silent => false,
        };
        if !is_shown || (token.text.is_empty() && part.tool().is_none()) {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.message != Some(part.message) {
            self.begin(&mut out, &part, is_thinking)?;
        }
        let text = match self.manner {
            Manner::Terminal { .. } => harmless(token.text),
            _ => Cow::Borrowed(token.text),
        };
        match is_thinking {
            true => out.write_all(style::on_stdout(style::FAINT, &text).as_bytes())?,
            false => out.write_all(text.as_bytes())?,
        }
        if !text.is_empty() {
            self.ends_line = text.ends_with('\n');
        }
        out.flush()
    }

    /// What stands before a message: an empty line, and what it is where that cannot be seen.
    fn begin(&mut self, out: &mut impl Write, part: &Part<'_>, is_thinking: bool) -> io::Result<()> {
        match (self.message, self.ends_line) {
            (None, _) => {}
            (Some(_), true) => out.write_all(b"\n")?,
            (Some(_), false) => out.write_all(b"\n\n")?,
        }
        self.message = Some(part.message);
        if let Some(tool) = part.tool() {
            let head = format!("[calls {}] ", harmless(tool));
            out.write_all(style::on_stdout(style::WARNING, &head).as_bytes())?;
        } else if is_thinking && !style::is_stdout_coloured() {
            out.write_all(b"[thinking] ")?;
        }
        Ok(())
    }

    /// Ends the answer's last line; for scripts always by a line break of its own.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.manner == Manner::Silent {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if !self.ends_line || self.manner == Manner::Plain {
            out.write_all(b"\n")?;
        }
        out.flush()
    }
}

/// A text that cannot steer a terminal: a model may write escape sequences that it has read somewhere.
fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(steers) {
        false => Cow::Borrowed(text),
        true => text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_steered() {
        assert_eq!(harmless("a\n\tb ä"), "a\n\tb ä");
        assert_eq!(harmless("a\u{1b}[2Jb\u{9b}c\r"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
    }
}
