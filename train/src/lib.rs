//! Fine-tuning: the decoder that serves, backwards.
//!
//! What people write, down to batches of token ids, is read by `settings` and `data`; a step over such a batch is in
//! `step` and its neighbours, which know nothing of files that people write. `run` leads from the one to the other.
#![forbid(unsafe_code)]

pub mod data;
pub mod optimizer;
mod product;
pub mod run;
pub mod settings;
pub mod step;
