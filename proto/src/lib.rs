//! What the daemon speaks: the messages and services of `bantam.v1`, made from the files in `bantam/v1`, which
//! describe every field. The code is generated and committed (`cargo xtask proto`); nothing is decided here.
#![forbid(unsafe_code)]

/// The package `bantam.v1`: messages, clients and servers.
#[rustfmt::skip]
#[allow(missing_docs, clippy::all, reason = "generated; the .proto files are held to rules of their own")]
#[path = "generated/bantam.v1.rs"]
pub mod v1;

/// All files of `bantam.v1` and those that they import, with their comments: a `google.protobuf.FileDescriptorSet`
/// for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
