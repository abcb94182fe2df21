//! Threads that work for the kernels, and how they wait: spinning for a moment, because the next job usually follows
//! within microseconds, then asleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bantam_core::ops::crew::{Crew, Crewed};

/// How long a thread spins for the next job before it sleeps. A token's serial parts are shorter, so threads stay
/// awake while text is generated; where threads outnumber cores, spinning would only keep others from working.
const SPIN: Duration = Duration::from_micros(200);

#[derive(Debug, Default)]
struct Meeting {
    crew: Crew,
    /// Threads that run: starting one allocates, in that thread, whenever the system lets it.
    begun: AtomicUsize,
    sleepers: AtomicUsize,
    stop: AtomicBool,
}

/// A fixed set of threads.
#[derive(Debug)]
pub struct Threads {
    meeting: Arc<Meeting>,
    workers: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts `count` threads less the caller's own, and waits until they run.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let meeting = Arc::new(Meeting::default());
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let spin = if count <= cores { SPIN } else { Duration::ZERO };
        let mut threads = Threads { meeting, workers: Vec::new() };
        for number in 1..count {
            let meeting = Arc::clone(&threads.meeting);
            let name = format!("bantam-{number}");
            threads.workers.push(thread::Builder::new().name(name).spawn(move || work(&meeting, spin))?);
        }
        while threads.meeting.begun.load(SeqCst) < threads.workers.len() {
            thread::yield_now();
        }
        Ok(threads)
    }

    /// As many as this machine runs at once.
    pub fn available() -> usize {
        thread::available_parallelism().map_or(1, usize::from)
    }
}

impl Crewed for Threads {
    fn crew(&self) -> &Crew {
        &self.meeting.crew
    }

    fn followers(&self) -> usize {
        self.workers.len()
    }

    fn wake(&self) {
        // A worker counts itself among the sleepers before it looks for work a last time, so either it sees this job
        // or we see it asleep.
        if self.meeting.sleepers.load(SeqCst) > 0 {
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.meeting.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks, so there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

fn work(meeting: &Meeting, spin: Duration) {
    meeting.begun.fetch_add(1, SeqCst);
    while !meeting.stop.load(SeqCst) {
        wait(meeting, spin);
        // The leader learns of a panic from the crew and carries it on.
        let _ = catch_unwind(AssertUnwindSafe(|| meeting.crew.follow()));
    }
}

fn wait(meeting: &Meeting, spin: Duration) {
    let ready = || meeting.crew.has_work() || meeting.stop.load(SeqCst);
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= spin {
            break;
        }
    }
    meeting.sleepers.fetch_add(1, SeqCst);
    while !ready() {
        thread::park();
    }
    meeting.sleepers.fetch_sub(1, SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bantam_core::Pool;

    #[test]
    fn tasks_run_once_awake_or_asleep_and_panics_come_back() {
        let threads = Threads::start(3).expect("threads start");
        for round in 0..200 {
            let done = AtomicUsize::new(0);
            threads.run(round % 7, &|_| {
                done.fetch_add(1, SeqCst);
            });
            assert_eq!(done.load(SeqCst), round % 7);
            if round % 50 == 0 {
                thread::sleep(2 * SPIN);
            }
        }
        let result = catch_unwind(AssertUnwindSafe(|| threads.run(64, &|task| assert!(task != 13))));
        assert!(result.is_err());
        let done = AtomicUsize::new(0);
        threads.run(5, &|_| {
            done.fetch_add(1, SeqCst);
        });
        assert_eq!(done.load(SeqCst), 5, "the pool works on after a panic");
    }
}
