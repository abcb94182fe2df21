//! A model's tensors in one file, or in several of a bearable size with an index, as transformers writes them.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bantam_model::checkpoint::index::INDEX_NAME;
use bantam_model::checkpoint::writer::{Outline, WriteError, write_file, write_streamed};
use serde_json::{Map, Value, json};

/// The file of a model that needs no second.
const WHOLE: &str = "model.safetensors";
/// The most bytes of tensors in one file.
pub(super) const BYTES_MAX: u64 = 5_000_000_000;

/// Where the weights of a model begin to be read: its file, or its index.
pub(super) fn first(folder: &Path) -> PathBuf {
    let whole = folder.join(WHOLE);
    if whole.exists() { whole } else { folder.join(INDEX_NAME) }
}

/// Writes tensors; `fill` is asked for the bytes of one after another, by its place in `outlines`. Files of another
/// model that stood there are gone at the end.
pub(super) fn write(
    folder: &Path,
    outlines: &[Outline<'_>],
    most: u64,
    mut fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let bytes: Vec<u64> = outlines.iter().map(bytes).collect();
    let ranges = ranges(&bytes, most);
    let name = |number: usize| match ranges.len() {
        1 => WHOLE.to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    // Files are whole one by one: without their index, nobody takes some of them for a model.
    if ranges.len() > 1 {
        for known in [INDEX_NAME, WHOLE].map(|name| folder.join(name)) {
            match fs::remove_file(&known) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(WriteError::Io { path: known, source });
                }
                _ => {}
            }
        }
    }
    let mut places = Map::new();
    for (number, range) in ranges.iter().enumerate() {
        let tensors = &outlines[range.clone()];
        write_streamed(&folder.join(name(number)), tensors, &[("format", "pt")], |at, out| {
            fill(range.start + at, out)
        })?;
        places.extend(tensors.iter().map(|(tensor, ..)| ((*tensor).to_owned(), name(number).into())));
    }
    let mut kept: Vec<String> = (0..ranges.len()).map(name).collect();
    if ranges.len() > 1 {
        let total: u64 = bytes.iter().sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": Value::Object(places) });
        write_file(&folder.join(INDEX_NAME), format!("{index:#}\n").as_bytes())?;
        kept.push(INDEX_NAME.to_owned());
    }
    forget(folder, &kept).map_err(|source| WriteError::Io { path: folder.into(), source })
}

fn bytes((_, dtype, shape): &Outline<'_>) -> u64 {
    (shape.iter().product::<usize>() * dtype.bytes()) as u64
}

/// Tensors one after another, as many to a file as go into it, and one at least.
fn ranges(bytes: &[u64], most: u64) -> Vec<Range<usize>> {
    let (mut ranges, mut start, mut sum) = (Vec::new(), 0, 0);
    for (at, bytes) in bytes.iter().enumerate() {
        if at > start && sum + bytes > most {
            ranges.push(start..at);
            (start, sum) = (at, 0);
        }
        sum += bytes;
    }
    ranges.push(start..bytes.len());
    ranges
}

/// Removes files of weights, and an index, that no longer belong to the model.
fn forget(folder: &Path, kept: &[String]) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_shard = name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
        if (is_shard || name == WHOLE || name == INDEX_NAME) && !kept.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use bantam_model::checkpoint::{Checkpoint, Dtype};

    use super::*;

    #[test]
    fn files_are_as_full_as_they_may_be() {
        assert_eq!(ranges(&[4, 4, 4, 9, 1], 8), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(ranges(&[4, 4], 8), [0..2; 1]);
        assert_eq!(ranges(&[], 8), [0..0; 1]);
    }

    #[test]
    fn a_model_in_several_files_is_read_and_takes_the_place_of_another() {
        let folder = std::env::temp_dir().join(format!("bantam-shards-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let outlines: [Outline<'_>; 3] =
            [("c", Dtype::F32, &[2]), ("a", Dtype::F32, &[3]), ("b", Dtype::Bf16, &[2])];
        for (most, files) in [(100, 1), (12, 3), (16, 2), (100, 1)] {
            write(&folder, &outlines, most, |at, out| {
                let (_, dtype, shape) = outlines[at];
                out.write_all(&vec![at as u8; shape[0] * dtype.bytes()])
            })
            .unwrap();
            let found = fs::read_dir(&folder).unwrap().count();
            assert_eq!(found, if files == 1 { 1 } else { files + 1 });
            for opened in [folder.clone(), first(&folder)] {
                let checkpoint = Checkpoint::open(&opened).unwrap();
                for (at, (name, dtype, shape)) in outlines.iter().enumerate() {
                    let tensor = checkpoint.tensor(name).unwrap();
                    assert_eq!((tensor.dtype, tensor.shape), (*dtype, *shape));
                    assert!(tensor.data.iter().all(|&byte| byte == at as u8));
                }
            }
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
