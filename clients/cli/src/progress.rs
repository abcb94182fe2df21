//! What a terminal shows while something takes longer than a second; nothing anywhere else.

use std::fmt::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::output;

const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// A line on standard error that appears after a second and is gone when the value is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Dropping the sender ends the thread.
    watch: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Work of unknown length.
    pub(crate) fn waiting(message: String) -> Self {
        Progress::start(ProgressBar::no_length(), "{spinner} {msg} ({elapsed})", message)
    }

    /// Work of `total` steps.
    pub(crate) fn counting(message: String, total: usize) -> Self {
        let style = "{msg} {wide_bar} {pos}/{len}{left}";
        Progress::start(ProgressBar::new(total as u64), style, message)
    }

    /// Work of `total` bytes.
    pub(crate) fn bytes(message: String, total: usize) -> Self {
        let style = "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}{left}";
        Progress::start(ProgressBar::new(total as u64), style, message)
    }

    /// Bytes that come from elsewhere: how fast they do matters as much.
    pub(crate) fn transfer(message: String, total: u64) -> Self {
        let style = "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}{left}";
        Progress::start(ProgressBar::new(total), style, message)
    }

    fn start(bar: ProgressBar, style: &str, message: String) -> Self {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(style).expect("the templates of this file are sound");
        bar.set_style(style.with_key("left", left));
        bar.set_message(message);
        // Without a thread there is no progress to see, and no harm done.
        let watch = output::is_watched()
            .then(|| {
                let (sender, receiver) = mpsc::channel::<()>();
                let shown = bar.clone();
                let appear = move || {
                    if receiver.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                        shown.set_draw_target(ProgressDrawTarget::stderr());
                        shown.enable_steady_tick(TICK);
                    }
                };
                let thread = thread::Builder::new().name("progress".to_owned());
                Some((sender, thread.spawn(appear).ok()?))
            })
            .flatten();
        Progress { bar, watch }
    }

    /// Says what is being done.
    pub(crate) fn say(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Says how much is done.
    pub(crate) fn at(&self, done: usize) {
        self.bar.set_position(done as u64);
    }

    /// Says how much more is done.
    pub(crate) fn advance(&self, done: u64) {
        self.bar.inc(done);
    }

    /// Says that some of what was done must be done again.
    pub(crate) fn expect_more(&self, more: u64) {
        self.bar.inc_length(more);
    }

    /// Says something without writing into the line.
    pub(crate) fn beside(&self, say: impl FnOnce()) {
        self.bar.suspend(say);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.watch.take() {
            drop(sender);
            // It cannot panic, and if it did, the bar is gone all the same.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

/// How long it will take, once something is done to tell it from.
fn left(state: &ProgressState, out: &mut dyn Write) {
    if state.pos() > 0 {
        // What cannot be shown is not missed.
        let _ = write!(out, ", {:#} left", HumanDuration(state.eta()));
    }
}
