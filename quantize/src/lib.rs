//! Makes smaller checkpoints, in the forms that the original tools read.
//!
//! A [`Blueprint`](blueprint::Blueprint) knows what will be done; a [`Run`](run::Run) does it, matrix by matrix, so
//! that no more than one is in memory, and each is kept on the disk as soon as it is done: whatever ends the process,
//! the next start goes on behind it and ends with the same bytes.
//!
//! ```text
//! checkpoint -> Dense -> a method (nearest, hqq, or one that goes by layers) -> Quantized -> writers/ -> part
//! parts, and what stays as it is -> assembly -> shards, config.json, report -> the folder gets its name
//! ```
#![forbid(unsafe_code)]

mod assembly;
pub mod blueprint;
pub mod calibrated;
pub mod error;
pub mod evaluate;
pub mod form;
pub mod hqq;
pub mod layerwise;
pub mod matrix;
pub mod nearest;
#[cfg(test)]
mod noise;
pub mod parts;
pub mod report;
pub mod restored;
pub mod run;
mod share;
pub mod work;
pub mod writers;
