//! Threads, as the kernels see them: a trait. Who owns the threads, and how they wait, is the caller's affair.

/// Carries out the tasks of a job on several threads and returns when all are done.
///
/// Implementations must not allocate in `run`, and must run every index exactly once. Which thread runs which index
/// may differ from call to call; results never depend on it.
pub trait Pool {
    /// The number of threads that work, the caller's own included.
    fn threads(&self) -> usize;
    /// Runs `work` for every task index below `tasks`.
    fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync));
}

/// The pool of one: everything on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Pool for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        for index in 0..tasks {
            work(index);
        }
    }
}

impl<P: Pool + ?Sized> Pool for &P {
    fn threads(&self) -> usize {
        (**self).threads()
    }

    fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        (**self).run(tasks, work);
    }
}
