//! What reports ask of a card beside a model: how long queued work took by the card's own clock, copies, and how often
//! anybody asked a driver for memory. A model that runs uses none of it.

use std::sync::atomic::{AtomicU64, Ordering};

use bantam_core::{Region, Slot};

use crate::backend::CudaBackend;
use crate::fault::Fault;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// What this process asked of drivers so far, whatever came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Memory of a card, pinned memory, streams, events, graphs and texts of kernels.
    pub allocations: u64,
    /// Kernels that were queued or written down one by one; what a graph does again is not counted.
    pub launches: u64,
}

impl Counts {
    /// Until now.
    pub fn now() -> Counts {
        let [allocations, launches] = [&ALLOCATIONS, &LAUNCHES].map(|count| count.load(Ordering::Relaxed));
        Counts { allocations, launches }
    }
}

pub(crate) fn count_allocation() {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn count_launch() {
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
}

impl CudaBackend {
    /// Seconds that the card takes for what is queued, by its own clock; waits for it. It is queued twice, and the
    /// second time counts: the host is ahead then, and the card does not wait for it.
    pub fn seconds(&mut self, mut queue: impl FnMut(&mut Self)) -> Result<f64, Fault> {
        queue(self);
        let clock = self.card.start_clock()?;
        queue(self);
        let seconds = self.card.stop_clock(clock);
        self.fault().map_or(seconds, Err)
    }

    /// Queues a copy between two slots of one region, as many bytes as the first has.
    pub fn copy(&mut self, from: Slot, to: Slot) {
        assert!(from.region == to.region && from.bytes <= to.bytes, "{from:?} to {to:?}");
        let done = self.card.copy_within(self.region(from.region), from.offset, to.offset, from.bytes);
        self.note(done);
    }

    /// Seconds of a copy of so many bytes from pinned memory to the beginning of a region.
    pub fn upload_seconds(&mut self, region: Region, bytes: usize) -> Result<f64, Fault> {
        let pinned = self.card.pin(bytes)?;
        let send = || self.card.send(self.region(region), &pinned, 0..bytes / 4);
        let seconds = send().and_then(|()| self.card.start_clock()).and_then(|clock| {
            let sent = send();
            let seconds = self.card.stop_clock(clock);
            sent.and(seconds)
        });
        self.card.unpin(&pinned);
        seconds
    }

    /// From how many rows on tensor cores are asked, whatever it costs.
    pub fn set_tensor_from(&mut self, rows: usize) {
        self.tensor_from = rows;
    }
}
