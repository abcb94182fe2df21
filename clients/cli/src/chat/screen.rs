//! An answer as it comes, for eyes, for pipes, or for nobody.

use std::borrow::Cow;
use std::io::{self, Write};

use bantam_model::generate::Token;
use bantam_model::reply::part::{Channel, Part};

use crate::output::harmless;
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
pub(super) struct Screen<W> {
    manner: Manner,
    is_coloured: bool,
    out: W,
    /// The message that was written last.
    message: Option<usize>,
    ends_line: bool,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(manner: Manner, is_coloured: bool, out: W) -> Self {
        Screen { manner, is_coloured, out, message: None, ends_line: false }
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
        if self.message != Some(part.message) {
            self.begin(&part, is_thinking)?;
        }
        if token.text.is_empty() {
            return self.out.flush();
        }
        let text = match self.manner {
            Manner::Terminal { .. } => harmless(token.text),
            _ => Cow::Borrowed(token.text),
        };
        match is_thinking && self.is_coloured {
            true => write!(self.out, "{}{text}{:#}", style::FAINT, style::FAINT)?,
            false => self.out.write_all(text.as_bytes())?,
        }
        self.ends_line = text.ends_with('\n');
        self.out.flush()
    }

    /// What stands before a message: an empty line, and what it is where that cannot be seen.
    fn begin(&mut self, part: &Part<'_>, is_thinking: bool) -> io::Result<()> {
        match (self.message, self.ends_line) {
            (None, _) => {}
            (Some(_), true) => self.out.write_all(b"\n")?,
            (Some(_), false) => self.out.write_all(b"\n\n")?,
        }
        self.message = Some(part.message);
        self.ends_line = false;
        match (part.tool(), self.is_coloured) {
            (Some(tool), true) => {
                write!(self.out, "{}[calls {}]{:#} ", style::WARNING, harmless(tool), style::WARNING)
            }
            (Some(tool), false) => write!(self.out, "[calls {}] ", harmless(tool)),
            (None, false) if is_thinking => self.out.write_all(b"[thinking] "),
            (None, _) => Ok(()),
        }
    }

    /// Ends the answer's last line; for scripts always by a line break of its own.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.manner == Manner::Silent {
            return Ok(());
        }
        if !self.ends_line || self.manner == Manner::Plain {
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply that thinks, calls a tool and answers.
    fn shown(manner: Manner, is_coloured: bool) -> String {
        let mut screen = Screen::new(manner, is_coloured, Vec::new());
        let messages = [
            (Channel::Analysis, None, "hm\u{7}"),
            (Channel::Commentary, Some("functions.f"), "{}\n"),
            (Channel::Final, None, "**yes**"),
        ];
        for (message, (channel, recipient, text)) in messages.into_iter().enumerate() {
            let (channel_name, role, content_type) = (channel.name(), "assistant", None);
            let part = Part {
                message,
                channel,
                channel_name,
                role,
                recipient,
                content_type,
                begins: true,
                ends: None,
            };
            for text in ["", text] {
                let part = Some(Part { begins: text.is_empty(), ..part });
                screen
                    .token(&Token {
                        id: 0,
                        text,
                        part,
                        finish: None,
                        log_probability: None,
                        alternatives: &[],
                    })
                    .expect("memory takes all");
            }
        }
        screen.end().expect("memory takes all");
        String::from_utf8(screen.out).expect("texts are text")
    }

    #[test]
    fn messages_are_told_apart() {
        let terminal = |hide_thinking| Manner::Terminal { hide_thinking };
        assert_eq!(
            shown(terminal(false), false),
            "[thinking] hm\u{fffd}\n\n[calls functions.f] {}\n\n**yes**\n"
        );
        assert_eq!(shown(terminal(true), false), "[calls functions.f] {}\n\n**yes**\n");
        assert!(shown(terminal(false), true).starts_with("\u{1b}[2mhm\u{fffd}\u{1b}[0m\n\n\u{1b}["));
        assert_eq!(shown(Manner::Plain, false), "[calls functions.f] {}\n\n**yes**\n");
        assert_eq!(shown(Manner::Silent, false), "");
    }
}
