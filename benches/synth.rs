//! The command line of `synthetic.rs`, started as `cargo xtask synth`.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bantam_benches::synthetic::{FORMATS, Request};
use bantam_model::families::SHAPES;

const USAGE: &str = "\
cargo xtask synth SHAPE --format FORMAT --out DIR [--layers N] [--seed N]

Writes config.json and model.safetensors with the tensors of the published SHAPE, as the tool of FORMAT writes them,
and with made-up weights. There is no tokenizer: run, score and bench take token ids. DIR must be new or empty.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}\n\nSHAPE: {}\nFORMAT: {}", names(SHAPES), names(FORMATS));
        return ExitCode::SUCCESS;
    }
    let (request, folder) = match parse(&arguments) {
        Ok(parsed) => parsed,
        Err(wrong) => {
            eprintln!("synth: {wrong}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    if let Err(error) = request.write(&folder) {
        eprintln!("synth: {error}");
        return ExitCode::FAILURE;
    }
    let bytes = std::fs::metadata(folder.join("model.safetensors")).map_or(0, |file| file.len());
    let (gigabytes, seconds) = (bytes as f64 / 1e9, began.elapsed().as_secs_f64());
    println!("{}: {gigabytes:.2} GB in {seconds:.1} s", folder.display());
    ExitCode::SUCCESS
}

fn names<T>(table: &[(&str, T)]) -> String {
    table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn find<T: Copy>(what: &str, name: &str, table: &[(&str, T)]) -> Result<T, String> {
    let found = table.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("{what} \"{name}\" is not known; choose of {}", names(table)))
}

fn parse(arguments: &[String]) -> Result<(Request<'static>, PathBuf), String> {
    let (mut shape, mut format, mut folder) = (None, None, None);
    let (mut layers, mut seed) = (None, 0);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: &String| {
            text.parse::<u64>().map_err(|_| format!("{argument} takes a whole number, found \"{text}\""))
        };
        match argument.as_str() {
            "--format" => format = Some(find("--format", value()?, FORMATS)?),
            "--out" => folder = Some(Path::new(value()?).to_owned()),
            "--layers" => layers = Some(number(value()?)? as usize),
            "--seed" => seed = number(value()?)?,
            name if shape.is_none() && !name.starts_with('-') => shape = Some(find("SHAPE", name, SHAPES)?),
            other => return Err(format!("\"{other}\" is not understood")),
        }
    }
    let config = shape.ok_or("SHAPE is missing")?;
    let format = format.ok_or("--format is missing")?;
    let folder = folder.ok_or("--out is missing")?;
    Ok((Request { config, layers, format, seed }, folder))
}
