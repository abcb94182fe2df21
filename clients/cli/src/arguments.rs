//! All arguments of the program: its verbs, in groups, and what is common to them.

use clap::{Command, CommandFactory, Parser, Subcommand};

use crate::failure::Failure;
use crate::{
    bench, cache, chat, completions, doctor, eval, inspect, merge, models, plan, prepare, pull, quantize,
    run, score, serve, style, tokenize, top, train,
};

/// Runs, measures and inspects language models on small machines.
#[derive(Parser)]
#[command(
    name = "bantam",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    styles = style::HELP,
    after_help = "Examples:\n  bantam run \"Once upon a time\"\n  bantam chat\n  bantam doctor\n  bantam help run"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    /// Whether to use colours; auto asks the terminal, NO_COLOR and CLICOLOR_FORCE
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Global"
    )]
    color: style::Choice,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    Run(run::Run),
    Chat(chat::Chat),
    Score(score::Score),
    Tokenize(tokenize::Tokenize),
    Inspect(inspect::Inspect),
    Plan(plan::PlanRun),
    Eval(eval::Eval),
    Quantize(quantize::Quantize),
    Train(train::Train),
    Merge(merge::MergeAdapter),
    Prepare(prepare::Prepare),
    Cache(cache::Cache),
    Pull(pull::Pull),
    Serve(serve::Serve),
    Top(top::Top),
    Models(models::Models),
    Load(models::Load),
    Unload(models::Unload),
    Budget(models::Budget),
    Doctor(doctor::Doctor),
    Bench(bench::Bench),
    Completions(completions::Completions),
    #[command(name = "man")]
    Manual(completions::Manual),
}

/// The order in which help shows the verbs.
const GROUPS: &[(&str, &[&str])] = &[
    ("Text", &["run", "chat"]),
    (
        "Models",
        &[
            "pull", "plan", "inspect", "score", "tokenize", "eval", "quantize", "train", "merge", "prepare",
            "cache",
        ],
    ),
    ("Daemon", &["serve", "top", "models", "load", "unload", "budget"]),
    ("This machine", &["doctor", "bench"]),
    ("This program", &["completions", "man", "help"]),
];

impl Verb {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Verb::Run(verb) => verb.run(),
            Verb::Chat(verb) => verb.run(),
            Verb::Score(verb) => verb.run(),
            Verb::Tokenize(verb) => verb.run(),
            Verb::Inspect(verb) => verb.run(),
            Verb::Plan(verb) => verb.run(),
            Verb::Eval(verb) => verb.run(),
            Verb::Quantize(verb) => verb.run(),
            Verb::Train(verb) => verb.run(),
            Verb::Merge(verb) => verb.run(),
            Verb::Prepare(verb) => verb.run(),
            Verb::Cache(verb) => verb.run(),
            Verb::Pull(verb) => verb.run(),
            Verb::Serve(verb) => verb.run(),
            Verb::Top(verb) => verb.run(),
            Verb::Models(verb) => verb.run(),
            Verb::Load(verb) => verb.run(),
            Verb::Unload(verb) => verb.run(),
            Verb::Budget(verb) => verb.run(),
            Verb::Doctor(verb) => verb.run(),
            Verb::Bench(verb) => verb.run(),
            Verb::Completions(verb) => verb.run(),
            Verb::Manual(verb) => verb.run(),
        }
    }
}

/// The whole command, with its verbs in groups.
pub(crate) fn command() -> Command {
    let command = Arguments::command();
    let template = format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{}\n{{options}}{{after-help}}",
        groups(&command)
    );
    command.help_template(template)
}

fn groups(command: &Command) -> String {
    let about = |name: &str| match command.find_subcommand(name) {
        Some(verb) => verb.get_about().map(ToString::to_string).unwrap_or_default(),
        None => "Shows the help of a verb".to_owned(),
    };
    let (heading, literal) = (style::HELP.get_header(), style::HELP.get_literal());
    let mut text = String::new();
    for (title, verbs) in GROUPS {
        text += &format!("{heading}{title}:{heading:#}\n");
        for verb in *verbs {
            text += &format!("  {literal}{verb:<12}{literal:#} {}\n", about(verb));
        }
        text += "\n";
    }
    text += &format!("{heading}Options:{heading:#}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_arguments_are_consistent_and_every_verb_stands_in_a_group() {
        command().debug_assert();
        let grouped: BTreeSet<_> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        let mut verbs = command();
        verbs.build();
        let verbs: BTreeSet<_> = verbs.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
        assert_eq!(grouped, verbs.iter().map(String::as_str).collect());
    }

    #[test]
    fn the_list_of_verbs_fits_a_terminal() {
        for line in command().render_help().to_string().lines().take_while(|line| *line != "Options:") {
            assert!(line.chars().count() <= 80, "{line:?}");
        }
    }
}
