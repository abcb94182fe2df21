//! Kernel benches and the report beside other programs.
