//! A mutable slice that the tasks of one job write at the same time, each its own part.

use crate::ops::crew::Pool;
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
        Shared { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The same for some of the elements. Panics outside the slice.
    pub fn narrow(&self, from: usize, len: usize) -> Shared<'a, T> {
        assert!(from <= self.len && len <= self.len - from, "part {from}+{len} of a slice of {}", self.len);
        // SAFETY: in bounds by the assertion; nothing is read or written here.
        Shared { start: unsafe { self.start.add(from) }, len, slice: PhantomData }
    }

    /// The part of this number where parts have `width` elements, as far as they are there.
    ///
    /// # Safety
    /// As for [`part`](Self::part).
    #[allow(clippy::mut_from_ref)] // As there.
    unsafe fn number(&self, number: usize, width: usize) -> &mut [T] {
        let first = (number * width).min(self.len);
        // SAFETY: the caller's promise.
        unsafe { self.part(first, width.min(self.len - first)) }
    }

    /// The elements from `from`, `len` of them. Panics outside the slice.
    ///
    /// # Safety
    /// While the result lives, nothing else may read or write these elements.
    #[allow(clippy::mut_from_ref)] // That is the purpose; the contract above replaces the borrow checker.
    pub unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from, "part {from}+{len} of a slice of {}", self.len);
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
    each_rows(pool, [slice], width, rows_min, |row, [part]| work(row, part));
}

/// The same for the rows of several slices, all of one size.
pub fn each_rows<T: Send, P: Pool, const N: usize>(
    pool: &P,
    slices: [&mut [T]; N],
    width: usize,
    rows_min: usize,
    work: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let size = slices.first().map_or(0, |slice| slice.len());
    assert!(slices.iter().all(|slice| slice.len() == size), "slices of as many rows");
    let rows = size / width;
    // A few runs per thread: whoever is late leaves the rest to others.
    let is_alone = rows < rows_min || pool.threads() == 1;
    let run = if is_alone { rows.max(1) } else { rows.div_ceil(4 * pool.threads()).max(1) };
    let shared = slices.map(Shared::new);
    let work = |task: usize| {
        for row in task * run..((task + 1) * run).min(rows) {
            // SAFETY: every row belongs to one task.
            work(row, shared.each_ref().map(|shared| unsafe { shared.part(row * width, width) }));
        }
    };
    let tasks = rows.div_ceil(run);
    if is_alone { (0..tasks).for_each(work) } else { pool.run(tasks, &work) }
}

/// Calls `work` for every part of `width` elements, on all threads. The last one may have fewer.
pub fn each_part<T: Send, P: Pool>(
    pool: &P,
    (slice, width): (&mut [T], usize),
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    each_part_beside(pool, (slice, width), ([], [], 0), |number, part, [], []: [&mut [u8]; 0]| {
        work(number, part);
    });
}

/// The same with parts of other slices beside it, of the same kind and of another. Where one ends within a part, that
/// has fewer elements.
pub fn each_part_beside<T: Send, U: Send, P: Pool, const N: usize, const M: usize>(
    pool: &P,
    (slice, width): (&mut [T], usize),
    (others, more, other_width): ([&mut [T]; N], [&mut [U]; M], usize),
    work: impl Fn(usize, &mut [T], [&mut [T]; N], [&mut [U]; M]) + Sync,
) {
    let tasks = slice.len().div_ceil(width);
    let (slice, others, more) = (Shared::new(slice), others.map(Shared::new), more.map(Shared::new));
    pool.run(tasks, &|number| {
        // SAFETY: parts do not overlap, and each belongs to one task.
        unsafe {
            let beside = others.each_ref().map(|other| other.number(number, other_width));
            let more = more.each_ref().map(|other| other.number(number, other_width));
            work(number, slice.number(number, width), beside, more);
        }
    });
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::sync::Mutex;
    use std::vec;
    use std::vec::Vec;

    /// Runs tasks backwards and says that it has several threads: what no order may change.
    struct Backwards(usize);
    // SAFETY: a plain loop on the calling thread.
    unsafe impl Pool for Backwards {
        fn threads(&self) -> usize {
            self.0
        }
        fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
            (0..tasks).rev().for_each(work);
        }
    }

    #[test]
    fn every_row_is_visited_once_with_its_own_elements() {
        for threads in 1..6 {
            for (rows, width, rows_min) in
                [(0, 3, 1), (1, 1, 1), (7, 3, 64), (40, 5, 4), (41, 1, 1), (129, 2, 16)]
            {
                let mut slice: Vec<usize> = (0..rows * width).collect();
                let visits = Mutex::new(vec![0; rows]);
                each_row(&Backwards(threads), &mut slice, width, rows_min, |row, part| {
                    visits.lock().expect("no holder panics")[row] += 1;
                    assert_eq!(part.len(), width);
                    for (i, x) in part.iter_mut().enumerate() {
                        assert_eq!(*x, row * width + i, "row {row} got another row's elements");
                        *x += 1000;
                    }
                });
                let visits = visits.into_inner().expect("no holder panics");
                assert!(visits.iter().all(|&n| n == 1), "{threads} threads, {rows} rows: {visits:?}");
                assert!(slice.iter().enumerate().all(|(i, &x)| x == i + 1000));
            }
        }
    }

    #[test]
    fn every_part_is_visited_once_with_those_beside_it() {
        for (len, width, other_len, other_width) in [(0, 4, 0, 4), (12, 4, 7, 3), (9, 4, 9, 4), (3, 8, 2, 8)]
        {
            let (mut slice, mut other, mut bytes) = (vec![0; len], vec![0; other_len], vec![0u8; other_len]);
            let beside = ([&mut other[..]], [&mut bytes[..]], other_width);
            each_part_beside(&Backwards(2), (&mut slice, width), beside, |number, part, [other], [bytes]| {
                part.iter_mut().for_each(|x| *x += number + 1);
                other.iter_mut().for_each(|x| *x += number + 1);
                bytes.iter_mut().for_each(|x| *x += number as u8 + 1);
            });
            assert!(bytes.iter().zip(&other).all(|(&byte, &x)| usize::from(byte) == x), "{bytes:?}");
            assert!(slice.iter().enumerate().all(|(i, &x)| x == i / width + 1), "{slice:?}");
            each_part(&Backwards(2), (&mut slice, width), |number, part| {
                part.iter_mut().for_each(|x| *x -= number + 1);
            });
            assert!(slice.iter().all(|&x| x == 0), "{slice:?}");
            assert!(other.iter().enumerate().all(|(i, &x)| x == i / other_width + 1), "{other:?}");
        }
    }

    #[test]
    #[should_panic(expected = "part 3+2 of a slice of 4")]
    fn a_part_outside_the_slice_is_refused() {
        let mut slice = [0u8; 4];
        let shared = Shared::new(&mut slice);
        // SAFETY: nothing else touches the slice.
        let _ = unsafe { shared.part(3, 2) };
    }
}
