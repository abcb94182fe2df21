//! What a server is yet to be told of a run. That does not end because of a server that is gone: entries wait, are sent
//! with the next ones, and what could not be sent at the end is said.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// When a server that failed is asked again.
const PAUSE: Duration = Duration::from_secs(30);
/// What is sent at once, and what is kept.
const AT_ONCE: usize = 1000;
const KEPT_MAX: usize = 1_000_000;

/// Entries in their order.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    entries: Vec<T>,
    /// They are sent no more often than this.
    often: Duration,
    last: Option<Instant>,
    failed: Option<(Instant, String)>,
}

impl<T> Waiting<T> {
    pub(super) fn new(often: Duration) -> Self {
        Waiting { entries: Vec::new(), often, last: None, failed: None }
    }

    pub(super) fn push(&mut self, more: impl IntoIterator<Item = T>) {
        self.entries.extend(more.into_iter().take(KEPT_MAX - self.entries.len()));
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Tells what waits, unless that was done or failed a moment ago.
    pub(super) fn send(&mut self, is_last: bool, mut tell: impl FnMut(&[T]) -> io::Result<()>) {
        let failed = self.failed.as_ref().map(|(at, _)| *at);
        let is_early = [(self.last, self.often), (failed, PAUSE)]
            .iter()
            .any(|(at, pause)| at.is_some_and(|at| at.elapsed() < *pause));
        if is_early && !is_last {
            return;
        }
        self.last = Some(Instant::now());
        self.failed = None;
        while !self.entries.is_empty() && self.failed.is_none() {
            let count = self.entries.len().min(AT_ONCE);
            let told = tell(&self.entries[..count]);
            if told.is_ok() {
                self.entries.drain(..count);
            }
            self.note(told);
        }
    }

    /// What became of something that the server was told.
    pub(super) fn note<R>(&mut self, told: io::Result<R>) {
        if let Err(error) = told {
            self.failed = Some((Instant::now(), error.to_string()));
        }
    }

    /// What went wrong last, and what was not sent.
    pub(super) fn trouble(&self, server: &str, place: &Path, what: &str) -> Option<String> {
        let (_, why) = self.failed.as_ref()?;
        let (count, place) = (self.entries.len(), place.display());
        Some(format!("{server}: {place}: {why}; {count} {what} were not sent, trainer_log.jsonl has them"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_wait_for_a_server_that_failed_and_are_told_once() {
        let mut waiting = Waiting::new(Duration::ZERO);
        let mut told = Vec::new();
        waiting.push(0..AT_ONCE + 3);
        // The first part is taken, the second is not.
        waiting.send(false, |part| {
            if part.len() < AT_ONCE {
                return Err(io::Error::other("gone"));
            }
            told.extend_from_slice(part);
            Ok(())
        });
        assert_eq!((waiting.len(), waiting.has_failed()), (3, true));
        let trouble = waiting.trouble("x", Path::new("there"), "lines");
        let wanted = "x: there: gone; 3 lines were not sent, trainer_log.jsonl has them";
        assert_eq!(trouble.as_deref(), Some(wanted));
        waiting.send(false, |_| panic!("it failed a moment ago"));
        waiting.push([AT_ONCE + 3]);
        waiting.send(true, |part| {
            told.extend_from_slice(part);
            Ok(())
        });
        assert_eq!((waiting.len(), waiting.trouble("x", Path::new(""), "")), (0, None));
        assert_eq!(told, (0..AT_ONCE + 4).collect::<Vec<_>>());
    }

    #[test]
    fn entries_come_no_more_often_than_they_may() {
        let mut waiting = Waiting::new(Duration::from_secs(1000));
        let mut count = 0;
        for is_last in [false, false, true] {
            waiting.push([1]);
            waiting.send(is_last, |part| {
                count += part.len();
                Ok(())
            });
            assert_eq!(count, if is_last { 3 } else { 1 });
        }
    }

    #[test]
    fn no_more_is_kept_than_fits() {
        let mut waiting = Waiting::new(Duration::ZERO);
        waiting.push(0..KEPT_MAX + 5);
        waiting.push([1]);
        assert_eq!(waiting.len(), KEPT_MAX);
    }
}
