//! CUDA without a card, for tests: the kernels compiled as plain C++, under a stand-in for the driver.
//!
//! `cusim.h` has the words of CUDA, `fibers.cpp` runs a grid and watches its memory, `driver.cpp` answers for
//! `libcuda.so.1`, `planted.cu` has kernels with faults that must be caught. A program that is started with
//! [`FOLDER`] in `LD_LIBRARY_PATH` finds the stand-in where it would find the driver. What it shows is that kernels
//! compute what they should and that the host calls in order; nothing about speed.
#![forbid(unsafe_code)]

/// Where the stand-in lies; `None` where there is no C++ compiler that could make it.
#[cfg(not(no_compiler))]
pub const FOLDER: Option<&str> = Some(env!("CUSIM_FOLDER"));
/// Where the stand-in lies; `None` where there is no C++ compiler that could make it.
#[cfg(no_compiler)]
pub const FOLDER: Option<&str> = None;

/// Texts of the planted kernels, as far as the stand-in reads them.
pub const PLANTED: &str = include_str!("planted.ptx");
