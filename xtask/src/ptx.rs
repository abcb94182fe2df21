//! `cargo xtask ptx`: the texts of `core/src/cuda/ptx` anew from the kernels' sources, with compilers that pip fetches
//! by their hashes; every target is assembled, what each kernel takes is written down, and one that spills is refused.
//! Nothing here is needed to build or test: `tests/cuda.rs` holds sources and texts together by `kernels.lock`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use xxhash_rust::xxh3::xxh3_64;

use crate::steps::{self, within_minutes};

const SOURCES: &str = "core/src";
const TEXTS: &str = "core/src/cuda/ptx";
const LOCK: &str = "core/src/cuda/kernels.lock";
const RESOURCES: &str = "core/src/cuda/kernels.resources.txt";
const COMPILERS: &str = "xtask/ptx-compilers.txt";
/// What a text is made for, and the processors that it is assembled for.
const TARGETS: [(&str, &[&str]); 2] = [("75", &["75"]), ("80", &["80", "86", "89", "90"])];

/// Writes texts, lock and table.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tools = fetch(root)?;
    fs::create_dir_all(root.join(TEXTS))?;
    let mut table = Table::new();
    for source in files(&root.join(SOURCES), &["cu"])? {
        let name = source.file_stem().context("a source has a name")?.to_string_lossy().into_owned();
        for (target, processors) in TARGETS {
            let text = root.join(TEXTS).join(format!("{name}.{target}.ptx"));
            compile(root, &tools, &source, target, &text)?;
            for processor in processors {
                assemble(&tools, &text, processor, &mut table)?;
            }
        }
        println!("{name}");
    }
    fs::write(root.join(RESOURCES), resources(&table)?)?;
    fs::write(root.join(LOCK), lock(root)?)?;
    println!("{RESOURCES} says what each takes");
    Ok(())
}

/// The compilers, unpacked where cargo puts what it builds.
fn fetch(root: &Path) -> Result<PathBuf> {
    let wanted = fs::read(root.join(COMPILERS)).with_context(|| format!("cannot read {COMPILERS}"))?;
    let folder = root.join("target").join(format!("ptx-compilers-{:016x}", xxh3_64(&wanted)));
    if !folder.join("nvidia/cuda_nvcc/bin/ptxas").is_file() {
        let mut pip = within_minutes("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--require-hashes", "--only-binary", ":all:", "--requirement", COMPILERS, "--target"]);
        steps::run(pip.arg(&folder).current_dir(root)).context("the compilers could not be fetched")?;
    }
    Ok(folder)
}

/// Files below a folder with one of these extensions, sorted.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn compile(root: &Path, tools: &Path, source: &Path, target: &str, text: &Path) -> Result<()> {
    let library = tools.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
    let mut nvrtc = Command::new("python3");
    nvrtc.arg(root.join("xtask/src/nvrtc.py")).arg(library).arg(source);
    nvrtc.arg(format!("compute_{target}")).arg(text);
    let output = nvrtc.output().context("cannot start python3")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} for compute_{target}: {said}", source.display());
    // What the compiler warns of is put right, not passed by.
    ensure!(said.trim().is_empty(), "{} for compute_{target}: {said}", source.display());
    Ok(())
}

/// By kernel and processor: registers, bytes of stack.
type Table = BTreeMap<(String, String), (u32, u32)>;

fn assemble(tools: &Path, text: &Path, processor: &str, table: &mut Table) -> Result<()> {
    let mut ptxas = Command::new(tools.join("nvidia/cuda_nvcc/bin/ptxas"));
    ptxas
        .args(["--verbose", "--output-file", "/dev/null", "--gpu-name"])
        .arg(format!("sm_{processor}"))
        .arg(text);
    let output = ptxas.output().context("cannot start ptxas")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} for sm_{processor}: {said}", text.display());
    note(&said, processor, table).with_context(|| format!("{} for sm_{processor}", text.display()))
}

/// Reads what the assembler says of every kernel.
fn note(said: &str, processor: &str, table: &mut Table) -> Result<()> {
    let (mut kernel, mut stack) = (String::new(), 0);
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernel = rest.split('\'').next().unwrap_or_default().to_owned();
        } else if line.contains("bytes stack frame") {
            let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [frame, stores, loads] = numbers[..] else { bail!("not understood: {line}") };
            ensure!(stores == 0 && loads == 0, "{kernel} spills {stores} bytes: have it hold less at once");
            stack = frame;
        } else if let Some(rest) = line.split("Used ").nth(1) {
            let registers = rest.split_whitespace().next().and_then(|word| word.parse().ok());
            let registers = registers.with_context(|| format!("not understood: {line}"))?;
            table.insert((kernel.clone(), processor.to_owned()), (registers, stack));
        }
    }
    Ok(())
}

fn resources(table: &Table) -> Result<String> {
    let processors: Vec<&str> =
        TARGETS.iter().flat_map(|(_, processors)| processors.iter().copied()).collect();
    let mut text =
        String::from("# By `cargo xtask ptx`: registers of a thread and bytes of its stack, by processor.\n");
    write!(text, "{:20}", "kernel")?;
    processors.iter().try_for_each(|processor| write!(text, "{:>10}", format!("sm_{processor}")))?;
    let mut kernels: Vec<&str> = table.keys().map(|(kernel, _)| kernel.as_str()).collect();
    kernels.dedup();
    for kernel in kernels {
        write!(text, "\n{kernel:20}")?;
        for processor in &processors {
            let key = (kernel.to_owned(), (*processor).to_owned());
            let (registers, stack) = table.get(&key).context("every text is assembled for its processors")?;
            write!(text, "{:>10}", format!("{registers} +{stack}"))?;
        }
    }
    Ok(text + "\n")
}

/// A line for every source and text: the hash of its bytes, its path.
fn lock(root: &Path) -> Result<String> {
    let mut text =
        String::from("# By `cargo xtask ptx`: XXH3 of what the texts were made of, and of the texts.\n");
    for path in files(&root.join(SOURCES), &["cu", "cuh", "ptx"])? {
        let name = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        writeln!(text, "{:016x} {name}", xxh3_64(&fs::read(&path)?))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'norm' for 'sm_75'\n\
        ptxas info    : Function properties for norm\n\
        \x20   32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 26 registers, 400 bytes cmem[0]\n";

    #[test]
    fn what_the_assembler_says_is_read() {
        let mut table = Table::new();
        note(SAID, "75", &mut table).expect("sound");
        assert_eq!(table[&("norm".to_owned(), "75".to_owned())], (26, 32));
    }

    #[test]
    fn spills_are_refused() {
        let said = SAID.replace("0 bytes spill stores", "8 bytes spill stores");
        let refusal = note(&said, "75", &mut Table::new()).expect_err("it spills").to_string();
        assert!(refusal.contains("norm spills 8 bytes"), "{refusal}");
    }
}
