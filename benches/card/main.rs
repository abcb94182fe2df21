//! `cargo xtask card` runs this: what a card does, beside what was asked of it. How to read it stands in
//! benches/README.md. It belongs to the package `bantam-cuda`, which drives cards.
#![forbid(unsafe_code)]

#[path = "mod.rs"]
mod card;

fn main() -> std::process::ExitCode {
    card::main(std::env::args().skip(1))
}
