//! The services, asked by a client over the unix socket of a daemon in this process, with the carried model and small
//! golden ones.
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

#[path = "../support/mod.rs"]
mod support;

mod adapters;
mod ends;
mod generation;
mod jobs;
mod models;
mod refusals;
mod reuse;

use support::served::{Served, asked, fields, generate, goldens};
