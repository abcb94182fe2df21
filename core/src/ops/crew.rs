//! Threads, as the kernels see them (a [`Pool`]), and where the threads of one meet (a [`Crew`]).
//!
//! The crew is the part of a pool that borrows a closure across threads, which Rust cannot check: one leader offers a
//! job, followers join it, the leader waits for those who did. The threads themselves, and how they sleep, belong to
//! whoever owns them; they are [`Crewed`]. A follower that comes late, because the system gave its core to somebody
//! else, is not waited for: the others take its share.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// Carries out the tasks of a job on several threads and returns when all are done. Which thread runs which index may
/// differ from call to call; results never depend on it.
///
/// # Safety
/// `run` must call `work` with every index below `tasks` exactly once, and return only when all calls have returned:
/// tasks write memory that they take to be theirs alone.
pub unsafe trait Pool {
    /// The number of threads that work, the caller's own included.
    fn threads(&self) -> usize;
    /// Runs `work` for every task index below `tasks`. Allocates nothing.
    fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync));
}

/// The pool of one: everything on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

// SAFETY: a plain loop on the calling thread.
unsafe impl Pool for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(work);
    }
}

/// Threads that follow a crew, which makes them a pool. Nothing that an owner of threads says here can break a pool's
/// promise: the crew keeps it, whoever comes.
pub trait Crewed {
    /// Where they meet.
    fn crew(&self) -> &Crew;
    /// How many follow.
    fn followers(&self) -> usize;
    /// Called once a job is open: wakes those who sleep.
    fn wake(&self);
}

// SAFETY: `Crew::lead` claims every index once by an atomic counter and returns when all who joined have left.
unsafe impl<C: Crewed> Pool for C {
    fn threads(&self) -> usize {
        self.followers() + 1
    }

    fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        self.crew().lead(tasks, work, || self.wake());
    }
}

type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// A meeting point for one leader and any number of followers.
#[derive(Debug, Default)]
pub struct Crew {
    /// The closure of the open job. Written by the leader only while `open` is false and `inside` is zero.
    work: UnsafeCell<Option<*const Work<'static>>>,
    /// Whether followers may enter. Rules of entry: count yourself in `inside`, then look at `open`.
    open: AtomicBool,
    /// A leader is between opening a job and its end.
    led: AtomicBool,
    /// Followers that have counted themselves in.
    inside: AtomicUsize,
    /// The next task to be claimed, and how many there are.
    next: AtomicUsize,
    tasks: AtomicUsize,
    /// A follower's task panicked.
    broken: AtomicBool,
}

// SAFETY: `work` is written only by the leader while nobody else can read it (see its field), and the closure that it
// points to is `Sync`. Everything else is atomic.
unsafe impl Sync for Crew {}
// SAFETY: the pointer is never dereferenced outside a `lead` call, which outlives all its followers' use of it.
unsafe impl Send for Crew {}

impl Crew {
    /// Runs `tasks` tasks, some of them here, the rest on followers that join, and returns when all are done.
    /// `wake` is called once the job is open. While one job is under way, another (from a second thread, or from
    /// inside a task) is carried out by its caller alone.
    pub fn lead(&self, tasks: usize, work: &Work<'_>, wake: impl FnOnce()) {
        if self.led.swap(true, SeqCst) {
            (0..tasks).for_each(work);
            return;
        }
        // The job is closed and left by all when this is dropped, also when a task panics.
        struct Close<'a>(&'a Crew, &'a mut bool);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.open.store(false, SeqCst);
                while self.0.inside.load(SeqCst) != 0 {
                    core::hint::spin_loop();
                }
                // Before the next leader may begin and forget it.
                *self.1 = self.0.broken.load(SeqCst);
                self.0.led.store(false, SeqCst);
            }
        }
        let mut broken = false;
        let work: *const Work<'_> = work;
        // SAFETY: only the lifetime is erased. Followers use the pointer between entering and leaving, and `Close`
        // keeps this frame, hence the closure, alive until all have left.
        let work: *const Work<'static> = unsafe { core::mem::transmute(work) };
        // SAFETY: `led` makes us the only leader; no job is open and the last one was left by all, so nobody reads
        // the cell.
        unsafe { *self.work.get() = Some(work) };
        self.tasks.store(tasks, SeqCst);
        self.next.store(0, SeqCst);
        self.broken.store(false, SeqCst);
        let close = Close(self, &mut broken);
        self.open.store(true, SeqCst);
        wake();
        self.take_tasks();
        drop(close);
        assert!(!broken, "a task panicked on another thread of the pool");
    }

    /// Whether a job is open that still has tasks: what a follower watches while it spins.
    pub fn has_work(&self) -> bool {
        self.open.load(SeqCst) && self.next.load(SeqCst) < self.tasks.load(SeqCst)
    }

    /// Joins the open job, if there is one, until its tasks are taken. Says whether there was one.
    pub fn follow(&self) -> bool {
        struct Leave<'a>(&'a Crew, bool);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                if self.1 {
                    self.0.broken.store(true, SeqCst);
                }
                self.0.inside.fetch_sub(1, SeqCst);
            }
        }
        self.inside.fetch_add(1, SeqCst);
        let mut leave = Leave(self, false);
        // Sequential consistency: either the leader sees us inside and waits, or we see that it has closed.
        if !self.open.load(SeqCst) {
            return false;
        }
        leave.1 = true;
        self.take_tasks();
        leave.1 = false;
        true
    }

    fn take_tasks(&self) {
        // SAFETY: the caller is the leader, or a follower inside an open job: the cell was written before the job
        // was opened and is not written again until all have left.
        let Some(work) = (unsafe { *self.work.get() }) else {
            return;
        };
        let tasks = self.tasks.load(SeqCst);
        loop {
            let index = self.next.fetch_add(1, SeqCst);
            if index >= tasks {
                return;
            }
            // SAFETY: the closure lives until the leader has seen everybody leave.
            unsafe { (*work)(index) };
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn every_task_runs_once_whoever_comes() {
        let crew = Crew::default();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 1..4 {
                let (crew, stop) = (&crew, &stop);
                scope.spawn(move || {
                    while !stop.load(SeqCst) {
                        if !crew.follow() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            for round in 0..2000 {
                let tasks = round % 17;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let work = |task: usize| {
                    counts[task].fetch_add(1, SeqCst);
                    // A job inside a job is carried out at once.
                    let inner = AtomicUsize::new(0);
                    crew.lead(3, &|_| assert!(inner.fetch_add(1, SeqCst) < 3), || ());
                    assert_eq!(inner.load(SeqCst), 3);
                };
                crew.lead(tasks, &work, || ());
                assert!(counts.iter().all(|count| count.load(SeqCst) == 1));
            }
            stop.store(true, SeqCst);
        });
    }
}
