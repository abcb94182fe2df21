//! Makes smaller checkpoints, in the forms that the original tools read.
#![deny(unsafe_code)]

pub mod calibrated;
pub mod layerwise;
pub mod matrix;
