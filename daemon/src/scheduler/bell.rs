//! What wakes an engine's thread when it has nothing to do. Ringing allocates nothing and waits for nobody.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// A bell that one thread listens to.
#[derive(Debug, Default)]
pub(super) struct Bell {
    listener: OnceLock<Thread>,
    is_rung: AtomicBool,
}

impl Bell {
    /// The calling thread is the one to be woken.
    pub(super) fn listen(&self) {
        let _ = self.listener.set(thread::current());
    }

    /// Wakes the listener, now or when it next waits.
    pub(super) fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::AcqRel)
            && let Some(listener) = self.listener.get()
        {
            listener.unpark();
        }
    }

    /// Sleeps until it rings, or for at most `most`. One ring is enough for all that rang before it was heard.
    pub(super) fn wait(&self, most: Option<Duration>) {
        if self.is_rung.swap(false, Ordering::AcqRel) {
            return;
        }
        match most {
            Some(most) => thread::park_timeout(most),
            None => thread::park(),
        }
        self.is_rung.swap(false, Ordering::AcqRel);
    }
}
