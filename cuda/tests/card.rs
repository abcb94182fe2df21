//! The CUDA backend beside the processor's: without a card its kernels run under a stand-in for the driver
//! (`tests/cusim`), with one and `REQUIRE_GPU=1` the same tests run on it.
#![forbid(unsafe_code)]

#[path = "card/backward.rs"]
mod backward;
#[path = "card/both.rs"]
mod both;
#[path = "card/faults.rs"]
mod faults;
#[path = "card/many.rs"]
mod many;
#[path = "card/operations.rs"]
mod operations;
