//! `cargo bench -p bantam-benches -- [--quick] [--csv FILE] [FILTER...]`: every kernel beside its rivals, one table.
//! How to read it stands in README.md.

mod rival;

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use bantam_benches::case::{Case, Effort, Filter, measure};
use bantam_benches::ceilings::Ceilings;
use bantam_benches::{attention, matrix, table};
use bantam_core::Cpu;

const FULL: Effort = Effort { each: Duration::from_millis(300), rounds_least: 5, rounds_most: 31 };
const QUICK: Effort = Effort { each: Duration::from_millis(1), rounds_least: 3, rounds_most: 5 };

#[derive(Default)]
struct Arguments {
    quick: bool,
    csv: Option<String>,
    filter: Filter,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Arguments::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                // What cargo adds by itself.
                "--bench" => {}
                "--quick" => arguments.quick = true,
                "--csv" => arguments.csv = Some(words.next().ok_or("--csv needs a file")?),
                option if option.starts_with('-') => {
                    return Err(format!("{option}: the options are [--quick] [--csv FILE] [FILTER...]"));
                }
                _ => arguments.filter.0.push(word),
            }
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    let found = Arguments::read(std::env::args().skip(1));
    match found.and_then(|arguments| run(&arguments).map_err(|error| error.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("kernels: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let cpu = Cpu::detect();
    let ceilings = Ceilings::new(cpu)?;
    let (effort, products, heads) = match arguments.quick {
        true => (QUICK, matrix::TINY, attention::TINY),
        false => (FULL, matrix::FULL, attention::FULL),
    };
    let mut csv = arguments.csv.as_deref().map(File::create).transpose()?;
    if let Some(file) = &mut csv {
        file.write_all(table::CSV_HEAD.as_bytes())?;
    }
    let mut text = io::stdout().lock();
    writeln!(text, "{}\none thread\n\n{}", machine(cpu), table::head())?;
    let mut show = |mut case: Case| {
        let rows = measure(&mut case, &ceilings, effort);
        writeln!(text, "{}", table::lines(&rows))?;
        match &mut csv {
            Some(file) => file.write_all(table::csv(&rows).as_bytes()),
            None => Ok(()),
        }
    };
    matrix::visit(products, rival::RIVAL, &arguments.filter, &mut show)?;
    attention::visit(heads, &arguments.filter, &mut show)
}

/// What stands above a record. A load above the number of running benches says that the figures are worth little.
fn machine(cpu: Cpu) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("processor", |name| name.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().filter(|load| !load.is_empty());
    format!("{model}, {cores} cores, {}, load average {}", cpu.name(), load.unwrap_or("unknown"))
}
