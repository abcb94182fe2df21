//! Threads, as the kernels see them: a trait. Who owns the threads, and how they wait, is the caller's affair.

/// One piece of a divided job.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Which piece, from 0 to the number of tasks.
    pub index: usize,
    /// Which thread carries it out, from 0 to [`Pool::threads`]; scratch memory is chosen by it.
    pub worker: usize,
}

/// Carries out the tasks of a job on several threads and returns when all are done.
///
/// Implementations must not allocate in `run`, and must run every index exactly once. Which thread runs which index
/// may differ from call to call; results never depend on it.
pub trait Pool {
    /// The number of threads that work, the caller's own included.
    fn threads(&self) -> usize;
    /// Runs `work` for every task index below `tasks`.
    fn run(&self, tasks: usize, work: &(dyn Fn(Task) + Sync));
}

/// The pool of one: everything on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Pool for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, work: &(dyn Fn(Task) + Sync)) {
        for index in 0..tasks {
            work(Task { index, worker: 0 });
        }
    }
}

impl<P: Pool + ?Sized> Pool for &P {
    fn threads(&self) -> usize {
        (**self).threads()
    }

    fn run(&self, tasks: usize, work: &(dyn Fn(Task) + Sync)) {
        (**self).run(tasks, work);
    }
}
