//! `bantam serve`: the daemon, in this process. Its flags are made from the daemon's own table of settings.

use std::path::PathBuf;

use bantam_daemon::RunError;
use bantam_daemon::settings::{self, Flags, KEYS, Key, Origin, SettingsError, Surroundings};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::failure::{Failure, refused, usage};
use crate::output;

const EXAMPLES: &str = "Examples:\n  bantam serve\n  bantam serve --models-ram-budget 6GiB --models-idle 1h\n  \
                        bantam serve --print-config > ~/.config/bantam/bantam.toml\n\n\
                        It stays in the foreground and ends at SIGTERM or Ctrl-C, when running answers are finished \
                        (limits.drain). Settings come from the file, then BANTAM_… variables, then flags. While it \
                        runs, run, chat, plan and tokenize use it by themselves.";

/// Serves models to other programs over gRPC
#[derive(Debug)]
pub(crate) struct Serve {
    flags: Flags,
    print_config: bool,
}

impl Args for Serve {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("The settings' file [default: bantam/bantam.toml in $XDG_CONFIG_HOME or ~/.config]");
        let print = Arg::new("print-config")
            .long("print-config")
            .action(ArgAction::SetTrue)
            .help("Writes the settings that hold here as a file, and ends");
        let foreground = Arg::new("foreground")
            .long("foreground")
            .action(ArgAction::SetTrue)
            .help("Stays in the foreground, as it always does");
        let command = command.about("Serves models to other programs over gRPC").after_help(EXAMPLES);
        command.args([config, print, foreground]).args(KEYS.iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Serve::augment_args(command)
    }
}

/// A setting as a flag, under its section's heading.
fn flag(key: &Key) -> Arg {
    let heading = match key.name.split_once('.') {
        Some((section, _)) => format!("Settings of {section}"),
        None => "Settings".to_owned(),
    };
    // Names are compiled in; leaking some dozens of them once is what the type asks for.
    let heading: &'static str = heading.leak();
    let name: &'static str = key.flag().leak();
    let doc = key.lines().collect::<Vec<_>>().join(" ");
    let argument = match key.list {
        // As in variables; nothing between commas is nothing.
        true => Arg::new(key.name).action(ArgAction::Append).value_delimiter(','),
        false => Arg::new(key.name).action(ArgAction::Set),
    };
    let more = if key.list { ", with commas between them" } else { "" };
    argument.long(name).value_name("VALUE").allow_hyphen_values(true).help_heading(heading).help(format!(
        "{} [{}{more}]",
        doc.trim_end_matches('.'),
        key.expected
    ))
}

impl FromArgMatches for Serve {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |key: &Key| {
            let given = matches.get_many::<String>(key.name)?.map(|item| item.trim().to_owned());
            // An empty list is said by an empty value.
            let given = given.filter(|item| !key.list || !item.is_empty()).collect();
            Some((key.name.to_owned(), given))
        };
        let flags = Flags {
            config: matches.get_one("config").cloned(),
            values: KEYS.iter().filter_map(value).collect(),
        };
        Ok(Serve { flags, print_config: matches.get_flag("print-config") })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Serve::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Serve {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let around = Surroundings::of_process();
        if self.print_config {
            let told = settings::read(&self.flags, &around).map_err(|error| wrong(&error))?;
            return Ok(output::text(told.print().as_bytes())?);
        }
        bantam_daemon::run(&self.flags, &around).map_err(|error| match error {
            RunError::Settings(error) => wrong(&error),
            other => refused(other.to_string()),
        })
    }
}

/// A flag that makes no sense is a matter of the command line, a file that does not is none.
fn wrong(error: &SettingsError) -> Failure {
    let is_flag = matches!(
        error,
        SettingsError::Unknown { origin: Origin::Flag(_), .. }
            | SettingsError::Value { origin: Origin::Flag(_), .. }
    );
    match is_flag {
        true => usage(error.to_string()),
        false => refused(error.to_string()),
    }
}
