//! The daemon: it owns the models of a machine and serves them to programs in any language.
#![forbid(unsafe_code)]

pub mod doors;
pub mod logs;
pub mod metrics;
pub mod residency;
pub mod server;
pub mod settings;
pub mod status;
