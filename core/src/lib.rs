//! `bantam-core`: kernels for language models over memory that the caller owns.
//!
//! `no_std`, no `alloc`, no input or output. The caller says which instruction sets may be used (a [`Cpu`] value),
//! lends memory (an [`Arena`]), and lends threads (a [`Pool`]). From these, [`CpuBackend`] carries out the
//! operations of [`Backend`] on matrices stored in one of the [`layouts`].
//!
//! What is not here: files, tokens as text, model families, allocation, threads.
#![no_std]

pub mod arena;
pub mod backend;
pub mod cpu;
pub mod cpu_backend;
pub mod cuda;
pub mod layouts;
pub mod ops;

pub use arena::{Arena, Region, Slot};
pub use backend::{
    Activation, Attention, Backend, Batch, Feed, Heads, KvCache, Matrix, Norm, NormKind, Product, Rope,
    Routed, RowPer,
};
pub use cpu::{Cpu, Level};
pub use cpu_backend::CpuBackend;
pub use layouts::Precision;
pub use layouts::coded::Trits;
pub use layouts::page::KvKind;
pub use ops::crew::{Pool, Serial};
pub use ops::experts::Choice;
