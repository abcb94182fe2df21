//! What the report is asked for.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Problem;
use super::record::PARTS;
use super::seen::Seen;

const USAGE: &str = "\
options: [--out FILE | --record FOLDER] [--only tests|matvec|models|policies]... [--minutes N] [--suites FILE]
[--commit NAME] [--as COMMAND] [--quick]";

/// Long enough for all.
const MINUTES: f64 = 40.0;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Arguments {
    /// The record.
    pub(crate) out: Option<PathBuf>,
    /// Or the folder of records, by machine.
    pub(crate) folder: Option<PathBuf>,
    /// Parts; none for all.
    pub(crate) only: Vec<String>,
    /// For all of them together.
    pub(crate) minutes: f64,
    /// Which tests are run: see `suites.rs`.
    pub(crate) suites: Option<PathBuf>,
    /// Of the program.
    pub(crate) commit: String,
    /// The command that repeats it.
    pub(crate) command: String,
    /// Tiny sizes.
    pub(crate) quick: bool,
}

impl Default for Arguments {
    fn default() -> Self {
        Arguments {
            out: None,
            folder: None,
            only: Vec::new(),
            minutes: MINUTES,
            suites: None,
            commit: "a commit that nobody named".to_owned(),
            command: "cargo xtask card".to_owned(),
            quick: false,
        }
    }
}

impl Arguments {
    pub(crate) fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Problem> {
        let mut found = Arguments::default();
        let usage = |said: String| Problem::Usage(format!("{said}\n{USAGE}"));
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| usage(format!("{word} needs a value")));
            match word.as_str() {
                // What cargo adds by itself.
                "--bench" => {}
                "--quick" => found.quick = true,
                "--out" => found.out = Some(value()?.into()),
                "--record" => found.folder = Some(value()?.into()),
                "--suites" => found.suites = Some(value()?.into()),
                "--commit" => found.commit = value()?,
                "--as" => found.command = value()?,
                "--only" => found.only.push(value()?),
                "--minutes" => {
                    let said = value()?;
                    let minutes = said.parse().ok().filter(|&minutes: &f64| minutes > 0.0 && minutes < 1e6);
                    found.minutes = minutes.ok_or_else(|| {
                        usage(format!("--minutes: expected a number above zero, found \"{said}\""))
                    })?;
                }
                _ => return Err(usage(format!("\"{word}\" is not understood"))),
            }
        }
        let strange = found.only.iter().find(|name| PARTS.iter().all(|part| part.name != **name));
        match strange {
            Some(name) => Err(usage(format!("--only: expected one of the four parts, found \"{name}\""))),
            None => Ok(found),
        }
    }

    pub(crate) fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == part)
    }

    /// Where the record is to be: among the others only if it is one of a real card.
    pub(crate) fn path(&self, seen: &Seen) -> Result<PathBuf, Problem> {
        let path = match (&self.out, &self.folder) {
            (Some(_), Some(_)) => {
                return Err(Problem::Usage(format!("--out or --record, not both\n{USAGE}")));
            }
            (Some(file), None) => file.clone(),
            (None, Some(folder)) => folder.join(seen.folder()).join(format!("{}-card.txt", today())),
            (None, None) => format!("{}-card.txt", today()).into(),
        };
        let is_among_records =
            self.folder.is_some() || path.components().any(|part| part.as_os_str() == "record");
        match is_among_records && (seen.is_stand_in() || self.quick) {
            true => Err(Problem::Usage(format!(
                "expected a real card and full sizes for a record, found {}{}; choose a place with --out\n{USAGE}",
                seen.name,
                if self.quick { " and --quick" } else { "" },
            ))),
            false => Ok(path),
        }
    }
}

/// `2026-11-22`, of UTC.
pub(crate) fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds / 86_400)
}

/// A day after 1970 began, of the calendar in which every fourth year is longer, up to 2099.
fn date(mut days: u64) -> String {
    let is_long = |year: u64| year.is_multiple_of(4);
    let mut year = 1970;
    while days >= 365 + u64::from(is_long(year)) {
        days -= 365 + u64::from(is_long(year));
        year += 1;
    }
    let february = 28 + u64::from(is_long(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, days + 1)
}

#[cfg(test)]
#[allow(unused_imports, reason = "a bench is compiled with its tests, and without what is marked as one")]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, wanted) in
            [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_779, "2026-11-22")]
        {
            assert_eq!(date(days), wanted);
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let read = |words: &[&str]| Arguments::read(words.iter().map(|word| (*word).to_owned()));
        assert!(read(&["--only", "matvec", "--minutes", "9", "--quick"]).is_ok());
        for wrong in [&["--only", "all"][..], &["--minutes", "no"], &["--out"], &["more"]] {
            assert!(matches!(read(wrong), Err(Problem::Usage(_))), "{wrong:?}");
        }
    }
}
