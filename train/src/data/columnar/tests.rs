//! The same rows in all ways that pyarrow and `datasets` write them (`tests/goldens/train-data/tables/make.py`), and
//! files that are broken.

#![allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::*;

const FILES: &[&str] = &[
    "snappy.parquet",
    "gzip.parquet",
    "lz4.parquet",
    "zstd.parquet",
    "delta.parquet",
    "datasets.parquet",
    "datasets.arrow",
    "lz4.arrow",
    "zstd.arrow",
    "delta.arrow",
];

/// Those with some of the columns.
const LESS: &[&str] = &["zstd.parquet", "datasets.arrow"];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/train-data/tables").join(name)
}

fn form(name: &str) -> Form {
    if name.ends_with("parquet") { Form::Parquet } else { Form::Arrow }
}

fn expected() -> Vec<Map<String, Value>> {
    serde_json::from_slice(&fs::read(path("rows.json")).unwrap()).unwrap()
}

#[test]
fn rows_are_those_that_were_written() {
    let expected = expected();
    for name in FILES {
        for limit in [usize::MAX, 7] {
            let mut found = Vec::new();
            rows(form(name), &path(name), limit, &mut |at, values| found.push((at, values)))
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found.len(), expected.len().min(limit), "{name}");
            for ((at, values), (place, expected)) in found.iter().zip((1..).zip(&expected)) {
                assert_eq!(*at, place, "{name}");
                let columns = expected.iter().filter(|(name, _)| values.contains_key(*name));
                for (column, value) in columns {
                    // Single precision is what the file has.
                    let value = match column.as_str() {
                        "short" => &Value::from(value.as_f64().unwrap() as f32),
                        _ => value,
                    };
                    assert_eq!(&values[column], value, "{name}:{at} {column}");
                }
                assert!(values.keys().all(|column| expected.contains_key(column)), "{name}");
                assert!(values.len() == expected.len() || LESS.contains(name), "{name}");
            }
        }
    }
}

/// The fault of some bytes, within what `times` their size is; none where they can be read.
fn fault(form: Form, bytes: &[u8], left: u64) -> Option<Fault> {
    let mut rows = Rows { limit: usize::MAX, budget: Budget { left }, add: &mut |_| {}, count: 0 };
    rows.read(form, &mut Cursor::new(bytes), bytes.len() as u64).err()
}

#[test]
fn no_bytes_stop_it() {
    for name in FILES {
        let bytes = fs::read(path(name)).unwrap();
        for at in (0..bytes.len()).step_by(11) {
            // Arrow's end may be missing.
            let cut = fault(form(name), &bytes[..at], 1 << 18);
            assert!(cut.is_some() || form(name) == Form::Arrow, "{name} cut at {at}");
        }
        for at in (0..bytes.len()).step_by(5) {
            let mut bytes = bytes.clone();
            bytes[at] ^= [1, 0x80, 0xff][at % 3];
            fault(form(name), &bytes, 1 << 18);
        }
    }
}

#[test]
fn what_grows_beyond_its_budget_is_refused() {
    for name in FILES {
        let fault = fault(form(name), &fs::read(path(name)).unwrap(), 2000).unwrap();
        assert!(fault.found.contains("far more bytes"), "{name}: {}", fault.found);
    }
}

#[test]
fn faults_say_file_and_row() {
    let folder = std::env::temp_dir().join(format!("bantam-columnar-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("a.parquet");
    let refused = |bytes: &[u8], words: &str| {
        fs::write(&file, bytes).unwrap();
        let error = rows(Form::Parquet, &file, 99, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.starts_with(&file.display().to_string()) && error.contains(words), "{error}");
    };
    refused(b"", "a file of 0 bytes");
    refused(b"PAR1PAR1PAR1", ":1: expected the rows of a parquet file, found");
    refused(b"PAR1    \x04\0\0\0PARE", "encrypted");
    // The pages of the second group.
    let mut bytes = fs::read(path("snappy.parquet")).unwrap();
    let half = bytes.len() / 2;
    bytes[half..half + 64].fill(0xff);
    refused(&bytes, ":7: expected");
    fs::remove_dir_all(folder).unwrap();
}
