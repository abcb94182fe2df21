//! A terminal for as long as a view is drawn on it: keys one by one, another screen, and all as before at the end.

use std::io::{self, Read, Write};
use std::thread;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// The other screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Up,
    Down,
    Pin,
    Unload,
}

/// The terminal; dropping it gives it back.
pub(super) struct Terminal {
    before: Termios,
}

impl Terminal {
    pub(super) fn open() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut modes = before.clone();
        // Ctrl-C comes as a key, or the terminal would stay as it is now.
        modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
        let terminal = Terminal { before };
        terminal.write(ENTER)?;
        Ok(terminal)
    }

    /// Shows lines in the place of what was there. Nothing is cleared beforehand, which would flicker.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        self.write(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")))
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = self.write(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Columns and lines.
pub(super) fn size() -> (usize, usize) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// Keys as they are pressed. The thread ends with the process: nothing wakes it from its read.
pub(super) fn keys() -> UnboundedReceiver<Key> {
    let (sender, receiver) = unbounded_channel();
    thread::spawn(move || {
        let mut bytes = [0; 16];
        while let Ok(count @ 1..) = io::stdin().read(&mut bytes) {
            if read(&bytes[..count]).into_iter().any(|key| sender.send(key).is_err()) {
                return;
            }
        }
    });
    receiver
}

/// The keys of some bytes; arrows are three.
fn read(bytes: &[u8]) -> Vec<Key> {
    let (mut keys, mut rest) = (Vec::new(), bytes);
    while let Some((&first, after)) = rest.split_first() {
        let (key, after) = match (first, after) {
            (0x1b, [b'[' | b'O', b'A', after @ ..]) => (Some(Key::Up), after),
            (0x1b, [b'[' | b'O', b'B', after @ ..]) => (Some(Key::Down), after),
            (b'k', after) => (Some(Key::Up), after),
            (b'j', after) => (Some(Key::Down), after),
            (b'p', after) => (Some(Key::Pin), after),
            (b'u', after) => (Some(Key::Unload), after),
            (b'q' | 3 | 4, after) => (Some(Key::Quit), after),
            (_, after) => (None, after),
        };
        keys.extend(key);
        rest = after;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_bytes() {
        assert_eq!(read(b"\x1b[A\x1bOBp"), [Key::Up, Key::Down, Key::Pin]);
        assert_eq!(read(b"kxj\x1b\x03"), [Key::Up, Key::Down, Key::Quit]);
    }
}
