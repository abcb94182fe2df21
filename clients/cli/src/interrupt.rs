//! Signals. Ctrl-C: ends the program as it always does, unless an answer is being written; then it ends the answer.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Whether somebody pressed Ctrl-C. While that stands, once more ends the program.
#[derive(Debug)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Nothing changes before [`Interrupt::note`].
    pub(crate) fn install() -> io::Result<Self> {
        Self::of(&[SIGINT])
    }

    /// The same for SIGTERM as well, by which service managers and schedulers end what runs for long.
    pub(crate) fn install_for_long() -> io::Result<Self> {
        Self::of(&[SIGINT, SIGTERM])
    }

    fn of(signals: &[c_int]) -> io::Result<Self> {
        let (asked, noted) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(SIGINT as usize)));
        for &signal in signals {
            // In this order: the first signal finds the flag down and raises it, the next finds it up. The program then
            // ends by the signal itself, so that a shell sees 130 and ends a loop around it too.
            flag::register_conditional_default(signal, Arc::clone(&asked))?;
            flag::register_usize(signal, Arc::clone(&noted), signal as usize)?;
            flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Interrupt { asked, signal: noted })
    }

    /// Ends the program as the signal would have, now that everything is in order.
    pub(crate) fn end_by_signal(&self) -> io::Result<()> {
        let signal = c_int::try_from(self.signal.load(SeqCst)).unwrap_or(SIGINT);
        low_level::emulate_default_handler(signal)
    }

    /// From here on, Ctrl-C is noted.
    pub(crate) fn note(&self) {
        self.asked.store(false, SeqCst);
    }

    /// From here on, it ends the program.
    pub(crate) fn end_program(&self) {
        self.asked.store(true, SeqCst);
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(SeqCst)
    }
}

/// Does something during which a file that grows beyond the shell's limit (`ulimit -f`) is an error like a full disk,
/// and not the end of the program.
pub(crate) fn without_file_size_signal<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(unix)]
    let noted = flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    let result = work();
    #[cfg(unix)]
    if let Ok(noted) = noted {
        signal_hook::low_level::unregister(noted);
    }
    result
}
