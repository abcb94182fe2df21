//! Writing: results to standard output, everything else to standard error; and numbers as people read them.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::style;

/// Writes a result and a line break.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a result that is a text already, line breaks and all.
pub(crate) fn text(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

/// Writes a result as JSON, for scripts on one line.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

/// Says something beside the result. A closed standard error is nobody's loss.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says what the user should know though the verb goes on.
pub(crate) fn warning(text: &str) {
    say(&format!("{} {}", style::on_stderr(style::WARNING, "warning:"), harmless(text)));
}

/// Says why a verb ended, or why one thing of many was not done.
pub(crate) fn error(text: &str) {
    say(&format!("{} {}", style::on_stderr(style::ERROR, "error:"), harmless(text)));
}

/// Whether somebody watches standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// A text that cannot steer a terminal: models write escape sequences that they have read somewhere, and files hold
/// names that somebody made up. Nor can it turn the direction of what stands beside it.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| {
        let is_kept = matches!(c, '\n' | '\t');
        (c.is_control() && !is_kept) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    match text.contains(steers) {
        false => Cow::Borrowed(text),
        true => text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect(),
    }
}

/// Bytes with a binary unit and three digits: `1.50 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.*} {}", digits(value), UNITS[unit]),
    }
}

/// A count with three digits: `5.77 M`.
pub(crate) fn count(count: u64) -> String {
    const UNITS: [&str; 5] = ["", " k", " M", " B", " T"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => count.to_string(),
        _ => format!("{value:.*}{}", digits(value), UNITS[unit]),
    }
}

/// Places after the point so that three digits are shown.
fn digits(value: f64) -> usize {
    match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    }
}

/// Rows as columns: the first to the left, the others to the right where `right` says so.
pub(crate) fn table(rows: &[Vec<String>], right: &[bool]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..right.len()).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .zip(right)
            .map(|((cell, &width), right)| match right {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_steered() {
        assert_eq!(harmless("a\n\tb ä"), "a\n\tb ä");
        assert_eq!(harmless("a\u{1b}[2Jb\u{9b}c\r"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(harmless("👩\u{200d}👧 \u{202e}x"), "👩\u{200d}👧 \u{fffd}x");
    }

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let found = [0, 999, 1000, 1536, 10 << 20, 300 << 30].map(bytes);
        assert_eq!(found, ["0 B", "999 B", "0.98 KiB", "1.50 KiB", "10.0 MiB", "300 GiB"]);
        assert_eq!([7, 5_771_520, 20_554_568_208].map(count), ["7", "5.77 M", "20.6 B"]);
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [["a", "10"], ["bcd", "2"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows, &[false, true]), "a    10\nbcd   2");
    }
}
