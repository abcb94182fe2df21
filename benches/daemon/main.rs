//! The daemon's benches: what it adds to every token (`overhead`), and many streams of a real model (`streams`, driven
//! by `streams.py`, which has the rival). How to run and to read them stands in ../README.md.

mod bare;
mod overhead;
mod served;
mod streams;

use std::process::ExitCode;

/// What a bench cannot go on after.
type Failed = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // What cargo adds by itself.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["overhead"] => overhead::run(overhead::FULL),
        ["overhead", "--quick"] => overhead::run(overhead::QUICK),
        ["streams", model, rest @ ..] => streams::run(model, rest),
        // A plain `cargo bench` is for the kernels.
        [] => Ok(()),
        _ => Err("expected `overhead [--quick]` or `streams MODEL [KEY=VALUE...]`".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("daemon: {problem}");
            ExitCode::FAILURE
        }
    }
}
