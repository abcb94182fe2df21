//! Many requests, one engine: what waits for a model, what runs in it, and what the next step reads.
//!
//! A [`Worker`] is the thread that owns an engine. At its [`Desk`] requests are handed in from any task; an [`Answer`]
//! is read from any task, and dropping it cancels. Between the two: `queue.rs` (who is next), `schedule.rs` (what a
//! step reads), `batch.rs` (the step), `ring.rs` (tokens on their way to a reader), `resting.rs` (sequences whose
//! replies are over, for whoever goes on where they stopped).
//!
//! **Invariant**: a reader never makes the engine wait, and a paused stream costs the others nothing.
//! **Invariant**: every accepted request ends once, with an outcome; its sequence is free before the next step.
//! **Invariant**: the engine's thread allocates nothing per token.
//! **Invariant**: what a client has asked is met by its own requests alone.
//!
//! Not yet here: speculation (a view with more than one unread token and a reply is read as a chunk), an adapter and a
//! mask per row of a step.

mod batch;
mod bell;
mod clock;
mod desk;
mod figures;
#[doc(hidden)]
pub mod paced;
mod queue;
mod resting;
mod ring;
mod schedule;
mod steps;
#[cfg(test)]
mod tests;
mod work;
mod worker;

pub use batch::{Advance, Batch, SEQUENCES_MAX};
pub use clock::{Clock, Monotonic};
pub use desk::{Answer, Desk, Options, Refusal, Request};
pub use figures::Figures;
pub use queue::ClientId;
pub(crate) use resting::Resting;
pub use resting::Reuse;
pub use ring::{Begun, Ended, Event, Head, Message, Piece, Timings};
pub use steps::{StepLimits, Steps};
pub use work::{Embed, Failure, Score, Work, WorkError};
pub use worker::{Worker, pair};
