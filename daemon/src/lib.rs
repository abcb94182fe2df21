//! The daemon: it owns the models of a machine and serves them to programs in any language.
#![forbid(unsafe_code)]

pub mod cards;
pub mod carried;
pub mod daemon;
pub mod doors;
mod hands;
mod jobs;
pub mod logs;
pub mod metrics;
mod models;
pub mod residency;
pub mod scheduler;
pub mod server;
mod services;
pub mod settings;
pub mod status;

pub use daemon::{Daemon, RunError, run};
