//! Colour, in one place: whether it is wanted, and what it stands for. What is written stays readable without.
//!
//! `--color` decides; without it NO_COLOR, CLICOLOR_FORCE, CLICOLOR, TERM=dumb and whether a terminal reads along,
//! as the library below clap knows them.

use std::ffi::OsString;
use std::io;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Effects, Style};
use clap::builder::Styles;

/// What has failed.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().effects(Effects::BOLD);
/// What the user should know.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().effects(Effects::BOLD);
/// Above a group of lines.
pub(crate) const HEADING: Style = Style::new().effects(Effects::BOLD);
/// What is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What is not.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// What may be skipped by the eye.
pub(crate) const FAINT: Style = Style::new().effects(Effects::DIMMED);

/// The same for the help that clap writes.
pub(crate) const HELP: Styles = Styles::styled()
    .header(HEADING)
    .usage(HEADING)
    .literal(AnsiColor::Cyan.on_default().effects(Effects::BOLD))
    .placeholder(AnsiColor::Cyan.on_default())
    .error(ERROR)
    .valid(GOOD)
    .invalid(AnsiColor::Yellow.on_default());

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Choice {
    Auto,
    Always,
    Never,
}

/// Takes the choice from the arguments before they are parsed, because errors of parsing are coloured too.
pub(crate) fn choose(arguments: impl Iterator<Item = OsString>) {
    let mut arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    while let Some(argument) = arguments.next() {
        let choice = match argument.split_once('=') {
            _ if argument == "--" => return,
            Some(("--color", choice)) => Some(choice.to_owned()),
            _ if argument == "--color" => arguments.next(),
            _ => None,
        };
        match choice.as_deref() {
            Some("always") => ColorChoice::Always.write_global(),
            Some("never") => ColorChoice::Never.write_global(),
            Some("auto") => ColorChoice::Auto.write_global(),
            _ => {}
        }
    }
}

/// Whether standard output is coloured.
pub(crate) fn is_stdout_coloured() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// A text for standard output.
pub(crate) fn on_stdout(style: Style, text: &str) -> String {
    painted(is_stdout_coloured(), style, text)
}

/// A text for standard error.
pub(crate) fn on_stderr(style: Style, text: &str) -> String {
    painted(AutoStream::choice(&io::stderr()) != ColorChoice::Never, style, text)
}

fn painted(coloured: bool, style: Style, text: &str) -> String {
    match coloured {
        true => format!("{style}{text}{style:#}"),
        false => text.to_owned(),
    }
}
