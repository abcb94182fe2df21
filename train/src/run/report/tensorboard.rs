//! Event files of TensorBoard: records with masked CRC-32C, each an `Event` as protocol buffer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::wire::Message;
use super::{Begin, Reporter, grouped, host, now, stamp};
use crate::settings::Settings;

/// A file of events.
#[derive(Debug)]
pub(super) struct Events {
    file: File,
    folder: PathBuf,
}

/// Where events go: `logging_dir`, or a folder of this run below the output. A run that goes on writes where it wrote.
pub(super) fn folder(settings: &Settings, output: &Path, step: u64) -> PathBuf {
    if let Some(folder) = settings.text("logging_dir") {
        return folder.into();
    }
    let runs = output.join("runs");
    let known = fs::read_dir(&runs).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let last = known
        .filter(|_| step > 0)
        .max_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok());
    last.unwrap_or_else(|| runs.join(format!("{}_{}", stamp("%b%d_%H-%M-%S"), host())))
}

impl Events {
    pub(super) fn new(folder: PathBuf, begin: &Begin<'_>) -> io::Result<Events> {
        fs::create_dir_all(&folder)?;
        let (seconds, host, process) = (now().as_secs(), host(), std::process::id());
        let mut number = 0;
        let file = loop {
            let name = format!("events.out.tfevents.{seconds}.{host}.{process}.{number}");
            match OpenOptions::new().write(true).create_new(true).open(folder.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                other => break other?,
            }
        };
        let mut events = Events { file, folder };
        events.write(Message::default().text(3, "brain.Event:2"))?;
        if begin.step > 0 {
            // Readers then forget what an earlier process told of later steps.
            let start = Message::default().number(1, 1);
            events.write(Message::default().number(2, begin.step + 1).message(7, start))?;
        }
        Ok(events)
    }

    fn write(&mut self, event: Message) -> io::Result<()> {
        let event = Message::default().double(1, now().as_secs_f64()).0.into_iter().chain(event.0);
        self.file.write_all(&record(&event.collect::<Vec<u8>>()))
    }
}

impl Reporter for Events {
    fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let summary = figures.iter().fold(Message::default(), |summary, (name, value)| {
            let value = Message::default().text(1, &grouped(name)).float(2, *value as f32);
            summary.message(1, value)
        });
        self.write(Message::default().number(2, step).message(5, summary))
    }

    fn sum_up(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        self.log(step, figures)
    }

    fn end(&mut self, _: bool) -> io::Result<()> {
        self.file.sync_all()
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Bytes with their length and both checksums.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), bytes, &masked(bytes).to_le_bytes()].concat()
}

/// The checksum as it stands in files that are themselves summed up.
fn masked(bytes: &[u8]) -> u32 {
    checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_checksums() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        // The first record of a file that tensorboard 2.21 wrote, but for its time.
        let found = record(b"\x1a\x0dbrain.Event:2");
        assert_eq!(found[..8], [15, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(found.len(), 8 + 4 + 15 + 4);
    }
}
