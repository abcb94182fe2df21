//! The thread of one model. It owns the engine: nobody else touches it until it is given back.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::batch::{Advance, Batch};
use super::clock::{Clock, Monotonic};
use super::desk::{Desk, Options, Shared};
use super::steps::Steps;

/// A running thread. Dropped, it sends everybody away and waits for the end of the step.
#[derive(Debug)]
pub struct Worker {
    thread: Option<JoinHandle<()>>,
    desk: Desk,
}

/// A desk and the batch behind it, without a thread: whoever holds the batch drives it.
pub fn pair<S: Steps>(steps: S, options: Options, clock: Arc<dyn Clock>) -> (Desk, Batch<S>) {
    let shared = Arc::new(Shared::new(steps.limits(), options, clock));
    (Desk { shared: shared.clone() }, Batch::new(steps, shared))
}

impl Worker {
    /// Starts a thread of this name for an engine.
    pub fn start(name: &str, steps: impl Steps, options: Options) -> io::Result<Worker> {
        let (desk, batch) = pair(steps, options, Arc::new(Monotonic::default()));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || serve(batch))?;
        Ok(Worker { thread: Some(thread), desk })
    }

    /// Where its requests are handed in.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Sends everybody away, waits for the thread, and with it for the engine's memory. `false` where it had panicked.
    pub fn end(mut self) -> bool {
        self.join()
    }

    fn join(&mut self) -> bool {
        self.desk.stop();
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.join();
    }
}

fn serve(mut batch: Batch<impl Steps>) {
    let shared = batch.shared().clone();
    shared.bell.listen();
    loop {
        match batch.advance() {
            Advance::Stepped => {}
            Advance::Idle(until) => {
                shared.bell.wait(until.map(|until| until.saturating_sub(shared.clock.now())));
            }
            Advance::Over => return,
        }
    }
}
