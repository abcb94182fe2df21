//! The report of a card: its tests, products of matrices in every layout, whole models, and the ways to place a model
//! that is larger than what may be taken of the card. `record.rs` is the file that comes out.

pub(crate) mod arguments;
mod models;
mod policies;
mod products;
mod rates;
pub(crate) mod record;
mod seen;
mod suites;
mod turns;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bantam_cuda::{Absent, Fault, Unmeasured};
use bantam_model::card::NoCard;
use bantam_model::engine::{LoadError, StepError};

use arguments::Arguments;
use record::{PARTS, Record, Section};
use seen::Seen;

/// Why there is no report, or a part of it ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// It was asked for in a way that is not understood.
    #[error("{0}")]
    Usage(String),
    /// No card.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// It takes no part of a model.
    #[error(transparent)]
    NoCard(#[from] NoCard),
    /// It failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It could not be measured.
    #[error(transparent)]
    Unmeasured(#[from] Unmeasured),
    /// The model does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It does not run.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A file or a program.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A record that this one cannot be written into.
    #[error("{path}: expected {expected}, found {found}; choose another --out")]
    Other {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// Puts a path beside what the system says of it.
pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> Problem + '_ {
    move |source| Problem::File { path: path.to_owned(), source }
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Tiny sizes: whether it runs, nothing else.
    pub(crate) quick: bool,
    /// When measuring should be over.
    pub(crate) until: Instant,
}

impl Scale {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// The same with a share of the time that is left.
    fn part(&self, of: usize) -> Scale {
        let left = self.until.saturating_duration_since(Instant::now());
        Scale { until: Instant::now() + left / of.max(1) as u32, ..*self }
    }
}

/// Runs the report; failure where it could not, or something that was asked for is missed.
pub(crate) fn main(words: impl Iterator<Item = String>) -> ExitCode {
    match Arguments::read(words).and_then(|arguments| run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("card: {problem}");
            ExitCode::from(if matches!(problem, Problem::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// Runs it; whether all tests passed and nothing was missed.
pub(crate) fn run(arguments: &Arguments) -> Result<bool, Problem> {
    let seen = Seen::look()?;
    let path = arguments.path(&seen)?;
    let mut record = Record::open(&path, &seen, arguments)?;
    let minutes = Duration::from_secs_f64(60.0 * arguments.minutes);
    let all = Scale { quick: arguments.quick, until: Instant::now() + minutes };
    let wanted: Vec<&str> = PARTS.iter().map(|part| part.name).filter(|name| arguments.wants(name)).collect();
    // What cannot be written is better known before anything is measured.
    write(&path, &record.text())?;
    let mut is_sound = true;
    for (at, name) in wanted.iter().enumerate() {
        println!("card: {name}");
        let scale = all.part(wanted.len() - at);
        // A part that fails is in the record, and the others go on.
        let section = match section(name, arguments, &seen, scale) {
            Ok(section) => section,
            Err(problem) => Section::failed(name, &problem.to_string()),
        };
        is_sound &= section.is_sound();
        println!("{}", section.text());
        record.put(section);
        // After every part: whatever ends this process leaves those that are done.
        write(&path, &record.text())?;
    }
    println!("card: {}", path.display());
    Ok(is_sound)
}

fn section(name: &'static str, arguments: &Arguments, seen: &Seen, scale: Scale) -> Result<Section, Problem> {
    match name {
        "tests" => suites::section(arguments, seen, scale),
        "matvec" => products::section(scale),
        "models" => models::section(scale),
        _ => policies::section(scale),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Problem> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    // Whatever ends this, what stands there is whole.
    let making = path.with_extension("txt.making");
    fs::write(&making, text).map_err(at(&making))?;
    fs::rename(&making, path).map_err(at(path))
}
