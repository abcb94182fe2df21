//! Records in the frames of LevelDB's log with CRC-32, as clients of Weights & Biases and of SwanLab keep them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::super::picture::checksum;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
/// Kinds of frames: a whole record, or its beginning, middle and end.
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// Records in blocks.
#[derive(Debug)]
pub(super) struct Frames {
    file: File,
    at: usize,
}

impl Frames {
    /// A new file, which begins with its kind.
    pub(super) fn new(path: &Path, kind: &[u8; HEADER]) -> io::Result<Frames> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(kind)?;
        Ok(Frames { file, at: HEADER })
    }

    pub(super) fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let (bytes, at) = framed(record, self.at);
        self.at = at;
        self.file.write_all(&bytes)
    }

    /// Until the disk has all of it.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// A record in frames that begin at a place of the file, and the place behind them.
fn framed(mut record: &[u8], mut at: usize) -> (Vec<u8>, usize) {
    let (begun, mut bytes) = (at, Vec::new());
    let mut is_first = true;
    loop {
        let room = BLOCK - at % BLOCK;
        if room < HEADER {
            bytes.resize(bytes.len() + room, 0);
            at = begun + bytes.len();
            continue;
        }
        let (part, rest) = record.split_at(record.len().min(room - HEADER));
        let kind = match (is_first, rest.is_empty()) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        let summed = checksum(&[&[kind], part].concat());
        bytes.extend(summed.to_le_bytes());
        bytes.extend((part.len() as u16).to_le_bytes());
        bytes.push(kind);
        bytes.extend(part);
        at = begun + bytes.len();
        if rest.is_empty() {
            return (bytes, at);
        }
        (record, is_first) = (rest, false);
    }
}

/// Frames from a place of the file on, read as the client reads them.
#[cfg(test)]
pub(super) fn read(mut bytes: &[u8], mut at: usize) -> Vec<Vec<u8>> {
    let (mut records, mut open) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        let room = BLOCK - at % BLOCK;
        let taken = match room < HEADER {
            true => room,
            false => {
                let length = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
                let (kind, part) = (bytes[6], &bytes[HEADER..HEADER + length]);
                assert_eq!(bytes[..4], checksum(&[&[kind], part].concat()).to_le_bytes());
                open.extend(part);
                if kind == FULL || kind == LAST {
                    records.push(std::mem::take(&mut open));
                }
                HEADER + length
            }
        };
        at += taken;
        bytes = &bytes[taken..];
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_any_length_are_framed() {
        let lengths = [0, 1, BLOCK - 7 - 7 - 8, 3, BLOCK - 7, 1, 3 * BLOCK, BLOCK - 14 - 5, 20];
        let records: Vec<Vec<u8>> = lengths.iter().map(|&length| vec![length as u8; length]).collect();
        let (mut bytes, mut at) = (Vec::new(), 0);
        for record in &records {
            let (more, next) = framed(record, at);
            bytes.extend(more);
            at = next;
        }
        assert!(read(&bytes, 0) == records);
        assert_eq!(at, bytes.len());
    }
}
