//! Kernel benches and the report beside other programs.
#![forbid(unsafe_code)]
