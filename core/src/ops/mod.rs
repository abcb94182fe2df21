//! The operations of a decoder, each written once over [`vector::Vector`] and run at the level that a `Cpu` allows.
//!
//! Every operation works row by row (a row is one token), so that its result for a row does not depend on which
//! other rows are computed beside it, nor on the thread.

pub mod activation;
pub mod attention;
pub mod backward;
pub mod ceiling;
pub mod crew;
pub mod experts;
pub mod math;
pub mod matmul;
pub mod norm;
pub mod rope;
pub mod share;
pub mod vector;
