//! The daemon: it owns the models of a machine and serves them to programs in any language.
#![forbid(unsafe_code)]

pub mod residency;
pub mod scheduler;
