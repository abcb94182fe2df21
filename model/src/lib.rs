//! A checkpoint becomes a running decoder.
#![deny(unsafe_code)]

pub mod adapter;
pub mod bare;
pub mod block;
pub mod card;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod detokenizer;
pub mod embedding;
pub mod engine;
pub mod families;
pub mod files;
pub mod foreign;
pub mod formats;
pub mod generate;
pub mod generation;
pub mod gguf;
pub mod hub;
pub mod inspect;
pub mod inventory;
pub mod likelihood;
pub mod memory;
pub mod merge;
pub mod native;
pub mod placement;
pub mod plan;
pub mod pool;
pub mod prepared;
pub mod prompt;
pub mod reply;
pub mod rope;
pub mod sampler;
pub mod score;
#[doc(hidden)]
pub mod sequences;
mod shards;
pub mod source;
pub mod spec;
pub mod speed;
pub mod stop;
pub mod template;
pub mod tokenizer;
pub mod turn;
pub mod weights;
