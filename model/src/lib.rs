//! A checkpoint becomes a running decoder.
#![deny(unsafe_code)]

pub mod checkpoint;
pub mod detokenizer;
pub mod files;
pub mod generation;
pub mod sampler;
pub mod stop;
pub mod tokenizer;
