//! A mutable slice that the tasks of one job write at the same time, each its own part.

use crate::pool::Pool;
use core::marker::PhantomData;

/// A slice whose parts are handed to several threads. Rust cannot see that tasks write different elements when the
/// pieces are strided, so whoever takes a part promises it.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shared` gives access only through `part`, whose callers promise that no two threads take overlapping
// elements; values of `T` move between threads, hence `T: Send`.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Takes the slice for the time of a job.
    pub fn new(slice: &'a mut [T]) -> Self {
        Shared {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            slice: PhantomData,
        }
    }

    /// The elements from `from`, `len` of them. Panics outside the slice.
    ///
    /// # Safety
    /// While the result lives, nothing else may read or write these elements.
    #[allow(clippy::mut_from_ref)] // That is the purpose; the contract above replaces the borrow checker.
    pub unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(
            from <= self.len && len <= self.len - from,
            "part {from}+{len} of a slice of {}",
            self.len
        );
        // SAFETY: in bounds by the assertion; unaliased by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

/// Calls `work` for every row of `width` elements, on several threads where there are at least `rows_min` rows.
pub fn each_row<T: Send, P: Pool>(
    pool: &P,
    slice: &mut [T],
    width: usize,
    rows_min: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let rows = slice.len() / width;
    if rows < rows_min || pool.threads() == 1 {
        slice
            .chunks_exact_mut(width)
            .enumerate()
            .for_each(|(row, part)| work(row, part));
        return;
    }
    // A few runs per thread: whoever is late leaves the rest to others.
    let run = rows.div_ceil(4 * pool.threads());
    let shared = Shared::new(slice);
    pool.run(rows.div_ceil(run), &|task| {
        for row in task * run..((task + 1) * run).min(rows) {
            // SAFETY: every row belongs to one task.
            work(row, unsafe { shared.part(row * width, width) });
        }
    });
}
