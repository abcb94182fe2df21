#![no_std]
//! Fixed-arena kernels.
