//! Threads for work that keeps a processor or a disk busy (tokenizing, templates, headers), so that no reactor waits
//! for it; so many at once and no more.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Where such work is handed in.
#[derive(Debug, Clone)]
pub(crate) struct Hands(Arc<Semaphore>);

impl Hands {
    /// So many at once.
    pub(crate) fn new(count: usize) -> Self {
        Hands(Arc::new(Semaphore::new(count.max(1))))
    }

    /// Does it when a hand is free. Whoever does not wait any more has not begun it, or lets it end for nothing.
    /// Nothing where it panicked, which the hook for panics has told.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let hand = self.0.clone().acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let _hand = hand;
            work()
        });
        done.await.ok()
    }
}
