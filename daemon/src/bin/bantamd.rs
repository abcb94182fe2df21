//! `bantamd`: the daemon as a program of its own. `bantam serve` is the same with help and completions.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use bantam_daemon::settings::{self, Flags, KEYS, Surroundings};

const USAGE: &str = "Usage: bantamd [--config FILE] [--print-config] [--SETTING VALUE]...\n\
    --print-config lists all settings";

/// What the arguments say, and whether to print the settings.
fn read(mut arguments: impl Iterator<Item = String>) -> Result<(Flags, bool), String> {
    let (mut flags, mut prints) = (Flags::default(), false);
    while let Some(argument) = arguments.next() {
        let name =
            argument.strip_prefix("--").ok_or(format!("expected a flag, found {argument:?}\n{USAGE}"))?;
        if name == "print-config" {
            prints = true;
            continue;
        }
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                (name, arguments.next().ok_or(format!("--{name}: expected a value, found none\n{USAGE}"))?)
            }
        };
        if name == "config" {
            flags.config = Some(value.into());
            continue;
        }
        let key = KEYS.iter().find(|key| key.flag() == name);
        let key = key.ok_or(format!("there is no setting --{name}\n{USAGE}"))?;
        let items = match key.list {
            true => {
                value.split(',').filter(|item| !item.is_empty()).map(|item| item.trim().to_owned()).collect()
            }
            false => vec![value],
        };
        flags.values.push((key.name.to_owned(), items));
    }
    Ok((flags, prints))
}

fn main() -> ExitCode {
    let around = Surroundings::of_process();
    let done = read(std::env::args().skip(1)).and_then(|(flags, prints)| {
        if prints {
            let effective = settings::read(&flags, &around).map_err(|error| error.to_string())?;
            print!("{}", effective.print());
            return Ok(());
        }
        bantam_daemon::run(&flags, &around).map_err(|error| error.to_string())
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bantamd: {error}");
            ExitCode::FAILURE
        }
    }
}
