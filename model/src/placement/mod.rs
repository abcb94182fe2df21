//! What of a model stands where, and how fast that will be: a card's small, fast memory and the machine's large, slow
//! one are read at the same time, and nothing is moved between them while tokens are made.
//!
//! Everything here is arithmetic over a [`Plan`](crate::plan::Plan) and a [`Machine`]: no card is needed or asked. What
//! runs on a card does what this says. [`Parts`] is the model, [`Question::forecasts`] compares the ways to place
//! it, and [`Question::auto`] is the best. [`HotExperts`] and [`Shelf`] go on while it runs: events in, actions out.

mod experts;
mod machine;
mod parts;
mod policy;
mod prefill;
mod recorder;
mod replay;
mod routing;
mod shares;
mod shelf;
mod stands;
mod sweep;
mod time;

pub use experts::{Event, Habits, HotExperts};
pub use machine::{Card, CardRates, MACHINES, Machine, THIS};
pub use parts::{Block, LayerParts, POSITIONS_READ, Part, Parts};
pub use policy::{Forecast, Policy, Question, RING_BYTES};
pub use prefill::Prefill;
pub(crate) use recorder::Recorder;
pub use replay::{Replayed, replay};
pub use routing::{Routes, Trace, TraceError};
pub use shares::{LayerShare, Share, Shares};
pub use shelf::{Action, Place, Shelf, Ticket};
pub use stands::{Stand, stands};
pub use sweep::{Keep, LayerCost, Swept, sweep};
pub use time::{Hits, step_seconds};

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests;
