//! `serve --print-config`: the effective settings as a file that gives the same settings when read.

use std::fmt::Write;

use super::{Effective, KEYS};

impl Effective {
    /// A commented TOML file.
    #[must_use]
    pub fn print(&self) -> String {
        let mut text = String::from("# The settings of bantam serve, as they hold here.\n");
        let mut section = "";
        for (key, origin) in KEYS.iter().zip(&self.origins) {
            let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if of != section {
                section = of;
                let _ = write!(text, "\n[{section}]");
            }
            text.push('\n');
            for line in key.lines() {
                let _ = writeln!(text, "# {line}");
            }
            let _ =
                writeln!(text, "# Expected: {}. Also {}, --{}.", key.expected, key.variable(), key.flag());
            let _ = writeln!(text, "# From: {}", origin.to_string().replace(['\n', '\r'], " "));
            let _ = writeln!(text, "{name} = {}", (key.show)(&self.settings));
        }
        text
    }
}
