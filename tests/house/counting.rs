//! A global allocator that counts, for the two programs that hold the promise of no allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static FREES: AtomicUsize = AtomicUsize::new(0);
/// Bytes allocated and not freed.
pub(crate) static ALIVE: AtomicUsize = AtomicUsize::new(0);
/// The most of them at once, since somebody last put another number there.
pub(crate) static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let alive = ALIVE.fetch_add(bytes, SeqCst) + bytes;
    PEAK.fetch_max(alive, SeqCst);
}

// SAFETY: every call is passed on to the system's allocator with its arguments unchanged; counting touches no memory
// of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        grow(layout.size());
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        grow(layout.size());
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        FREES.fetch_add(1, SeqCst);
        grow(bytes);
        ALIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: passed on.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        FREES.fetch_add(1, SeqCst);
        ALIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and frees so far, on all threads.
pub(crate) fn counters() -> (usize, usize) {
    (ALLOCATIONS.load(SeqCst), FREES.load(SeqCst))
}
