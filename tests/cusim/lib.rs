//! CUDA without a card, for tests: the kernels compiled as plain C++, under a stand-in for the driver.
//!
//! `cusim.h` has the words of CUDA, `fibers.cpp` runs a grid and watches its memory, `driver.cpp` answers for
//! `libcuda.so.1`, `planted.cu` has kernels with faults that must be caught. A program that is started with
//! [`FOLDER`] in `LD_LIBRARY_PATH` finds the stand-in where it would find the driver. What it shows is that kernels
//! compute what they should and that the host calls in order; nothing about speed.
//!
//! A library is looked for once in a process, and a fault stays: so every test that needs the driver starts its program
//! again, for itself alone ([`is_child`]), and says what the driver should be like. With `REQUIRE_GPU=1` the same
//! tests meet the machine's own.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

/// Where the stand-in lies; `None` where there is no C++ compiler that could make it.
#[cfg(not(no_compiler))]
pub const FOLDER: Option<&str> = Some(env!("CUSIM_FOLDER"));
/// Where the stand-in lies; `None` where there is no C++ compiler that could make it.
#[cfg(no_compiler)]
pub const FOLDER: Option<&str> = None;

/// Texts of the planted kernels, as far as the stand-in reads them.
pub const PLANTED: &str = include_str!("planted.ptx");

/// Says to a process that it is the one that a test started.
const CHILD: &str = "BANTAM_TEST_CHILD";

/// Whether the real driver is to be met, and a skip a failure.
pub fn requires_card() -> bool {
    std::env::var_os("REQUIRE_GPU").is_some_and(|value| value == "1")
}

/// Whether a test cannot meet the real driver, since it tells the stand-in what to be like; it says so then.
#[must_use]
pub fn skips_card() -> bool {
    if requires_card() {
        println!("skipped: only a stand-in is like that when it is told to");
    }
    requires_card()
}

/// Runs the rest of a test in a process of its own. `true` in that process; elsewhere it has passed there, or there is
/// nothing to run it with.
#[must_use]
pub fn is_child(test: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    if let Some((passed, said)) = child(test, variables) {
        assert!(passed, "{test} in its own process:\n{said}");
    }
    false
}

/// Starts a test of this program; whether it passed, and what it said.
pub fn child(test: &str, variables: &[(&str, &str)]) -> Option<(bool, String)> {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).env(CHILD, "1");
    if !requires_card() {
        let Some(folder) = FOLDER else {
            println!("skipped: no C++ compiler made a stand-in for the driver");
            return None;
        };
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.envs(variables.iter().copied());
    let output = command.output().expect("this program starts again");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(said.contains("1 passed") || said.contains("1 failed"), "no test is called {test}:\n{said}");
    Some((output.status.success(), said))
}

/// Puts a stand-in into a folder that lacks one of its functions, if there is a stand-in.
pub fn lacking(function: &str, folder: &Path) {
    let Some(from) = FOLDER else { return };
    let renamed = [&function[..function.len() - 1], "_\0"].concat();
    std::fs::create_dir_all(folder).expect("the folder can be made");
    for name in ["libcuda.so.1", "libcuda.so"] {
        let mut bytes = std::fs::read(Path::new(from).join(name)).expect("the stand-in can be read");
        let places = 0..bytes.len() - renamed.len();
        let is_name = |at: &usize| {
            let rest = &bytes[*at..];
            rest.starts_with(function.as_bytes()) && rest[function.len()] == 0
        };
        let places: Vec<usize> = places.filter(is_name).collect();
        assert!(!places.is_empty(), "{name} has no {function}");
        places.iter().for_each(|&at| bytes[at..][..renamed.len()].copy_from_slice(renamed.as_bytes()));
        std::fs::write(folder.join(name), bytes).expect("the folder can be written");
    }
}
