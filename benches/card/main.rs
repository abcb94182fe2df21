//! `cargo xtask card` runs this: what a card does, beside what was asked of it. benches/README.md says how to
//! read it.
#![forbid(unsafe_code)]

#[path = "mod.rs"]
mod card;

fn main() -> std::process::ExitCode {
    card::main(std::env::args().skip(1))
}
