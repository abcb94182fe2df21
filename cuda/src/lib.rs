//! `bantam-cuda`: a decoder's operations on a card.
//!
//! The kernels and their texts stand in `bantam-core` beside what they are for; here is the host's half: `driver.rs`
//! calls the driver (the only file here with `unsafe`), `backend.rs` finds the slots' memory and launches, `one_of.rs`
//! is what an engine is handed, `desk.rs`, `measured.rs` and `rates.rs` measure it for planners and reports. A package
//! of its own, because a driver is loaded by the standard library, and `core` does without.
//!
//! A machine without a driver, without a card, or with one that is too old is told apart by [`Absent`]; nothing
//! panics. What goes wrong while a model runs stays with the backend, see [`CudaBackend::fault`].
#![deny(unsafe_code)]

mod backend;
mod backward;
mod desk;
mod driver;
mod fault;
mod kept;
mod measured;
mod one_of;
mod peers;
mod product;
mod rates;
mod ring;
mod steps;
mod texts;

pub use backend::{CudaBackend, Sizes};
pub use backward::{Documents, UNPACKED_ROWS};
pub use desk::{Desk, Extent, Unmeasured};
#[doc(hidden)]
pub use driver::{Argument, Shape};
pub use driver::{Card, Seen, look};
pub use fault::{Absent, Fault};
pub use measured::Counts;
pub use one_of::OneOf;
pub use product::TENSOR_FROM;
pub use rates::rates;
