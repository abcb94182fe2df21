//! `bantam`, the command line. This file reads arguments and reports failures; every verb has a file of its own.
#![forbid(unsafe_code)]

mod adapter_flag;
mod arguments;
mod bench;
mod cache;
mod calibration;
mod chat;
mod chosen_model;
mod completions;
mod conversation;
mod daemon;
mod device_flags;
mod doctor;
mod engine_flags;
mod eval;
mod failure;
mod hardware;
mod inspect;
mod interrupt;
mod merge;
mod models;
mod output;
mod placed;
mod plan;
mod prepare;
mod progress;
mod pull;
mod quantize;
mod recommend;
mod restored;
mod run;
mod sampling_flags;
mod score;
mod serve;
mod style;
mod synthetic_shape;
mod this_machine;
mod token_ids;
mod tokenize;
mod top;
mod train;
mod train_needs;
mod written_file;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::FromArgMatches;

use arguments::Arguments;

fn main() -> ExitCode {
    style::choose(std::env::args_os());
    let arguments = match Arguments::from_arg_matches(&arguments::command().get_matches()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
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
            output::error(&failure.to_string());
            ExitCode::from(failure.exit_status())
        }
        Err(panic) => {
            let place = place.lock().map(|place| place.clone()).unwrap_or_default();
            let words = words(&*panic);
            output::error(&format!("this is a bug in bantam, please report it: {words} ({place})"));
            ExitCode::from(101)
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words")
}
