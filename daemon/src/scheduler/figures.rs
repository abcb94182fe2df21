//! What a scheduler has done so far, counted where it happens and read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

macro_rules! figures {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The figures of one model.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Figures {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        /// The same, while they are counted.
        #[derive(Debug, Default)]
        pub(super) struct Cells {
            $(pub(super) $name: AtomicU64,)+
        }

        impl Cells {
            /// As they are now. They are read one by one: a sum may be ahead of its count.
            pub(super) fn read(&self) -> Figures {
                Figures { $($name: self.$name.load(Relaxed),)+ }
            }
        }
    };
}

figures! {
    /// Requests that wait for a place.
    waiting,
    /// Sequences that are open.
    running,
    /// Of these, how many wait for their reader.
    paused,
    /// Sequences that rest: what they hold is there for whoever goes on with it, their room for whoever needs it.
    resting,
    /// Positions of the cache that are free, those of resting sequences among them.
    free_positions,
    /// Steps of the engine.
    steps,
    /// Nanoseconds in steps, choosing of tokens included.
    busy_ns,
    /// Sequences in all steps together: by steps, the mean batch.
    batch_sequences,
    /// Tokens read, those of prompts and chosen ones.
    read_tokens,
    /// Tokens of prompts that were there already.
    reused_tokens,
    /// Tokens chosen.
    new_tokens,
    /// Requests that were accepted.
    accepted,
    /// Requests that were refused.
    refused,
    /// Requests that came to their end.
    finished,
    /// Requests whose reader went away.
    cancelled,
    /// Requests that failed.
    failed,
    /// Requests that got a sequence.
    admitted,
    /// Nanoseconds that these waited for it.
    queue_ns,
    /// Requests that got a first token, or a result.
    first_results,
    /// Nanoseconds from the sequence to there.
    prefill_ns,
    /// Nanoseconds from a sequence to its end: a moving mean, for hints when to try again.
    service_ns,
}

pub(super) fn add(cell: &AtomicU64, value: u64) {
    cell.fetch_add(value, Relaxed);
}

pub(super) fn add_time(cell: &AtomicU64, time: Duration) {
    add(cell, nanoseconds(time));
}

pub(super) fn set(cell: &AtomicU64, value: usize) {
    cell.store(value as u64, Relaxed);
}

/// A moving mean over about eight values.
pub(super) fn average(cell: &AtomicU64, time: Duration) {
    let (new, old) = (nanoseconds(time), cell.load(Relaxed));
    cell.store(if old == 0 { new } else { old - old / 8 + new / 8 }, Relaxed);
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
