//! `bantam`, the command line. This file reads arguments and reports failures; every verb has a file of its own.
#![forbid(unsafe_code)]

mod bench;
mod carried;
mod chosen_model;
mod conversation;
mod engine_flags;
mod eval;
mod failure;
mod inspect;
mod output;
mod plan;
mod progress;
mod run;
mod sampling_flags;
mod score;
mod synthetic_shape;
mod token_ids;
mod tokenize;
mod written_file;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::{Parser, Subcommand};

use failure::Failure;

/// Runs, measures and inspects language models on small machines.
#[derive(Parser)]
#[command(name = "bantam", version, arg_required_else_help = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Run(run::Run),
    Score(score::Score),
    Tokenize(tokenize::Tokenize),
    Inspect(inspect::Inspect),
    Plan(plan::PlanRun),
    Eval(eval::Eval),
    Bench(bench::Bench),
}

impl Verb {
    fn run(self) -> Result<(), Failure> {
        match self {
            Verb::Run(verb) => verb.run(),
            Verb::Score(verb) => verb.run(),
            Verb::Tokenize(verb) => verb.run(),
            Verb::Inspect(verb) => verb.run(),
            Verb::Plan(verb) => verb.run(),
            Verb::Eval(verb) => verb.run(),
            Verb::Bench(verb) => verb.run(),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Libraries below may panic on a strange file, and their caller turns that into an error; only a panic that
    // arrives here is worth words on the screen.
    let place = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&place);
    std::panic::set_hook(Box::new(move |panic| {
        if let (Ok(mut seen), Some(location)) = (seen.lock(), panic.location()) {
            *seen = location.to_string();
        }
    }));
    match catch_unwind(AssertUnwindSafe(|| arguments.verb.run())) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            output::warn(&format!("error: {failure}"));
            ExitCode::from(failure.exit_status())
        }
        Err(panic) => {
            let place = place.lock().map(|place| place.clone()).unwrap_or_default();
            let words = words(&*panic);
            output::warn(&format!("error: this is a bug in bantam, please report it: {words} ({place})"));
            ExitCode::from(101)
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
