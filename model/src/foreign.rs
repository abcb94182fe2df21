//! Words that are not ours, made fit for a message: what a library says of a file may hold the file itself.

use std::fmt::{self, Display, Write};

/// How many characters a message passes on.
const CHARACTERS_MAX: usize = 200;

/// The beginning of `words`, which are not spelled out any further, with control characters escaped so that a file
/// cannot write to the terminal.
pub fn clipped(words: impl Display) -> String {
    let mut clip = Clip { text: String::new(), left: CHARACTERS_MAX };
    // The only error is our own: enough.
    let _ = write!(clip, "{words}");
    clip.text
}

struct Clip {
    text: String,
    left: usize,
}

impl Write for Clip {
    fn write_str(&mut self, words: &str) -> fmt::Result {
        for c in words.chars() {
            if self.left == 0 {
                self.text.push('…');
                return Err(fmt::Error);
            }
            self.left -= 1;
            match c.is_control() {
                true => self.text.extend(c.escape_debug()),
                false => self.text.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_words_pass_and_long_ones_are_cut() {
        assert_eq!(clipped("an é at line 1"), "an é at line 1");
        let whole = "é".repeat(CHARACTERS_MAX);
        assert_eq!(clipped(&whole), whole);
        assert_eq!(clipped(format_args!("{whole}{whole}")), whole + "…");
        assert_eq!(clipped("\u{1b}[2J\n"), "\\u{1b}[2J\\n");
    }
}
