//! Makes `libcuda.so.1` of the kernels, compiled as plain C++, and the stand-in for the driver. Without a C++ compiler
//! there is none, and tests say so.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Sources of ours, without the kernels' check of memory.
const MACHINE: [&str; 2] = ["driver.cpp", "fibers.cpp"];

fn main() {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it"));
    let kernels = here.join("../../core/src");
    println!("cargo::rerun-if-changed={}", here.display());
    println!("cargo::rerun-if-changed={}", kernels.join("cuda").display());
    println!("cargo::rustc-check-cfg=cfg(no_compiler)");
    let mut sources = vec![here.join("planted.cu")];
    find(&kernels, &mut sources);
    sources.iter().for_each(|source| println!("cargo::rerun-if-changed={}", source.display()));
    println!("cargo::rustc-env=CUSIM_FOLDER={}", out.display());
    if let Err(why) = build(&here, &out, &sources) {
        println!("cargo::warning=no stand-in for CUDA: {why}; tests that need it are skipped");
        println!("cargo::rustc-cfg=no_compiler");
    }
}

fn find(folder: &Path, sources: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the kernels' folder can be listed").flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            sources.push(path);
        }
    }
    sources.sort();
}

fn build(here: &Path, out: &Path, sources: &[PathBuf]) -> Result<(), String> {
    let mut tool = cc::Build::new();
    tool.cpp(true).cargo_metadata(false).cargo_warnings(false).std("c++17").opt_level(1).pic(true);
    let tool = tool.try_get_compiler().map_err(|error| error.to_string())?;
    let mut objects = Vec::new();
    for source in MACHINE.iter().map(|name| here.join(name)) {
        objects.push(compile(tool.to_command(), &source, out, &[])?);
    }
    let include = here.to_string_lossy();
    let watched = ["-x", "c++", "-fsanitize=thread", "-ffp-contract=off", "-DBANTAM_SIM", "-I", &*include];
    for source in
        sources.iter().filter(|source| source.extension().is_some_and(|extension| extension == "cu"))
    {
        objects.push(compile(tool.to_command(), source, out, &watched)?);
    }
    for name in ["libcuda.so.1", "libcuda.so"] {
        let mut link = tool.to_command();
        link.args(["-shared", "-Wl,-soname,libcuda.so.1", "-o"]).arg(out.join(name)).args(&objects);
        run(link)?;
    }
    Ok(())
}

fn compile(mut tool: Command, source: &Path, out: &Path, flags: &[&str]) -> Result<PathBuf, String> {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let object = out.join(format!("{name}.o"));
    run(tool.args(flags).arg("-c").arg(source).arg("-o").arg(&object)).map(|()| object)
}

fn run(mut command: impl std::borrow::BorrowMut<Command>) -> Result<(), String> {
    let output = command.borrow_mut().output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
