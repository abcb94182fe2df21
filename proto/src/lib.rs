//! The messages and services of `bantam.v1`.
#![forbid(unsafe_code)]
