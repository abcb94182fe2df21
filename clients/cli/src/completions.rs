//! `bantam completions` and `bantam man`: what shells and `man` want to know, made from the same arguments that are
//! parsed, so that they cannot disagree.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::failure::{Failure, refused};
use crate::{arguments, output};

/// Writes a script that completes commands in a shell
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        bantam completions bash > ~/.local/share/bash-completion/completions/bantam\n  \
                        bantam completions zsh > ~/.zfunc/_bantam        # a folder of fpath\n  \
                        bantam completions fish > ~/.config/fish/completions/bantam.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut visible(&arguments::command()), "bantam", &mut script);
        Ok(output::text(&script)?)
    }
}

/// A command without what is hidden: the generator would offer that too.
fn visible(command: &Command) -> Command {
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(visible);
    // Names are compiled in; leaking a dozen of them once is what the type asks for.
    let mut copy = Command::new(command.get_name().to_owned().leak() as &'static str);
    if let Some(about) = command.get_about() {
        copy = copy.about(about.clone());
    }
    copy.args(arguments.cloned()).subcommands(verbs)
}

/// Writes the manual, or a page for every verb to a folder
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam man | man -l -\n  bantam man --output ~/.local/share/man/man1")]
pub(crate) struct Manual {
    /// A folder for all pages; it is made where it does not exist
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Manual {
    pub(crate) fn run(self) -> Result<(), Failure> {
        // The groups of verbs are for the screen; a page has a section for them.
        let command = arguments::command().disable_help_subcommand(true);
        let Some(folder) = &self.output else {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            return Ok(output::text(&page)?);
        };
        let failed = |error| refused(format!("{}: {error}; choose another folder", folder.display()));
        fs::create_dir_all(folder).map_err(failed)?;
        clap_mangen::generate_to(command, folder).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    #[test]
    fn what_is_hidden_is_not_completed() {
        let hidden = |name: &'static str| Arg::new(name).long(name).hide(true);
        let verb = Command::new("verb").arg(Arg::new("shown").long("shown")).arg(hidden("secret"));
        let command = Command::new("bantam").subcommand(verb).subcommand(Command::new("ghost").hide(true));
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut visible(&command), "bantam", &mut script);
            let script = String::from_utf8(script).expect("scripts are text");
            assert!(script.contains("shown"), "{shell}");
            assert!(!script.contains("secret") && !script.contains("ghost"), "{shell}");
        }
    }
}
