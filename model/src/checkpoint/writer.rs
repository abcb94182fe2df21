//! Writes a safetensors file.
//!
//! It is not a converter: it takes bytes as they are to lie in the file. A file is visible under its final name
//! only when it is complete and on the disk.

use super::Dtype;
use super::header::{self, DIMS_MAX, HeaderError, NAME_BYTES_MAX};
use super::json::quote;
use super::map;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use thiserror::Error;

/// Why a file was not written.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum WriteError {
    #[error("{}: expected the name of a file", .path.display())]
    NoName { path: PathBuf },
    #[error("{}: tensor {tensor}: expected {expected} bytes for its shape and dtype, found \
        {found}", .path.display())]
    Size { path: PathBuf, tensor: Box<str>, expected: u64, found: u64 },
    #[error("{}: tensor {tensor}: expected a name of 1 to {NAME_BYTES_MAX} bytes that is not \
        __metadata__, and at most {DIMS_MAX} dimensions below 2^63 bytes", .path.display())]
    Tensor { path: PathBuf, tensor: Box<str> },
    #[error("{}: {source}", .path.display())]
    Header { path: PathBuf, source: HeaderError },
    #[error("{}: expected the name of a new file or of a regular file to replace, found {found}; give another \
        name, or remove it first", .path.display())]
    Taken { path: PathBuf, found: &'static str },
    #[error("{}: {source}; nothing was written under that name: check space and \
        permissions", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A tensor to write: name, dtype, shape and bytes.
pub type Tensor<'a> = (&'a str, Dtype, &'a [usize], &'a [u8]);

/// A tensor without its bytes: name, dtype and shape.
pub type Outline<'a> = (&'a str, Dtype, &'a [usize]);

/// Whether [`write_safetensors`] would replace what stands at `path`: nothing, or a regular file. The rename that
/// ends the writing would put a file in the place of a device, a FIFO or a link as well.
pub fn check_place(path: &Path) -> Result<(), WriteError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(metadata) => Err(WriteError::Taken { path: path.into(), found: map::kind(&metadata) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(WriteError::Io { path: path.into(), source }),
    }
}

/// Writes `tensors` to `path`, replacing the regular file that was there, with the given `__metadata__`.
pub fn write_safetensors(
    path: &Path,
    tensors: &[Tensor<'_>],
    metadata: &[(&str, &str)],
) -> Result<(), WriteError> {
    check_place(path)?;
    for &(name, dtype, shape, data) in tensors {
        check_size(path, &(name, dtype, shape), data.len() as u64)?;
    }
    let plain: Vec<Outline<'_>> =
        tensors.iter().map(|&(name, dtype, shape, _)| (name, dtype, shape)).collect();
    write_streamed(path, &plain, metadata, |index, out| out.write_all(tensors[index].3))
}

/// The same for tensors that need not be in memory: `write` is asked for the bytes of one after another, by its place
/// in `tensors`.
pub fn write_streamed(
    path: &Path,
    tensors: &[Outline<'_>],
    metadata: &[(&str, &str)],
    mut write: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    check_place(path)?;
    let order = order(tensors);
    let sorted: Vec<Outline<'_>> = order.iter().map(|&index| tensors[index]).collect();
    let prefix = prefix(path, &sorted, metadata)?;
    let io_error = |source| WriteError::Io { path: path.into(), source };
    let (temporary, file) = Temporary::create(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&prefix).map_err(io_error)?;
    for index in order {
        let mut counted = Counted { out: &mut out, bytes: 0 };
        write(index, &mut counted).map_err(io_error)?;
        let bytes = counted.bytes;
        check_size(path, &tensors[index], bytes)?;
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).map_err(io_error)?;
    file.sync_all().map_err(io_error)?;
    temporary.rename(path).map_err(io_error)
}

/// Wide types first, then by name, as the reference implementation does: then every offset is aligned.
fn order(tensors: &[Outline<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(tensors[index].1.bytes()), tensors[index].0));
    order
}

/// The header of a file of such tensors, and how many bytes the file would have.
pub(crate) fn header_of(path: &Path, tensors: &[Outline<'_>]) -> Result<(Vec<u8>, u64), WriteError> {
    let sorted: Vec<Outline<'_>> = order(tensors).into_iter().map(|index| tensors[index]).collect();
    let prefix = prefix(path, &sorted, &[])?;
    let data: u64 = sorted.iter().map(|tensor| size_bytes(path, tensor)).sum::<Result<u64, _>>()?;
    let all = prefix.len() as u64 + data;
    Ok((prefix, all))
}

/// Knows how many bytes passed through it.
struct Counted<'a, W> {
    out: &'a mut W,
    bytes: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes any file as carefully: whole or not at all, replacing the regular file that was there.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    check_place(path)?;
    let io_error = |source| WriteError::Io { path: path.into(), source };
    let (temporary, mut file) = Temporary::create(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error)?;
    temporary.rename(path).map_err(io_error)
}

/// Bytes that a tensor has by its shape.
fn size_bytes(path: &Path, &(name, dtype, shape): &Outline<'_>) -> Result<u64, WriteError> {
    let dimensions: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
    let bytes = header::size_bytes(&dimensions, dtype).filter(|_| name != "__metadata__");
    bytes.ok_or_else(|| WriteError::Tensor { path: path.into(), tensor: quote(name) })
}

fn check_size(path: &Path, tensor: &Outline<'_>, found: u64) -> Result<(), WriteError> {
    let expected = size_bytes(path, tensor)?;
    if expected == found {
        return Ok(());
    }
    Err(WriteError::Size { path: path.into(), tensor: quote(tensor.0), expected, found })
}

/// The header with its length, checked by our own reader: what we write we can read.
fn prefix(path: &Path, tensors: &[Outline<'_>], metadata: &[(&str, &str)]) -> Result<Vec<u8>, WriteError> {
    let mut text = String::from("{");
    if !metadata.is_empty() {
        let pairs: Vec<_> =
            metadata.iter().map(|(key, value)| format!("{}:{}", json(key), json(value))).collect();
        text += &format!("\"__metadata__\":{{{}}},", pairs.join(","));
    }
    let mut start = 0u64;
    for tensor in tensors {
        let &(name, dtype, shape) = tensor;
        let (key, end) = (json(name), start + size_bytes(path, tensor)?);
        text += &format!(
            "{key}:{{\"dtype\":\"{}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}},",
            dtype.name()
        );
        start = end;
    }
    if text.len() > 1 {
        text.pop();
    }
    text.push('}');
    // The data then begins at a multiple of 8, so a reader may use it in place.
    text += &" ".repeat(text.len().next_multiple_of(8) - text.len());
    let bytes = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    match header::parse(&bytes, bytes.len() as u64 + start) {
        Ok(_) => Ok(bytes),
        Err(source) => Err(WriteError::Header { path: path.into(), source }),
    }
}

/// A string as JSON spells it.
pub(crate) fn json(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\0'..' ' => out += &format!("\\u{:04x}", u32::from(c)),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Of the name of what a killed process left beside a file that it was writing, that file's name.
pub fn left_of(name: &str) -> Option<&str> {
    let inner = name.strip_prefix('.')?.strip_suffix(".tmp")?;
    let (inner, number) = inner.rsplit_once('.')?;
    let (name, process) = inner.rsplit_once('.')?;
    [process, number].iter().all(|part| part.parse::<u32>().is_ok()).then_some(name)
}

/// A file under a name nobody looks for, `.NAME.PROCESS.NUMBER.tmp`; removed unless it is renamed.
pub(crate) struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    /// In the same folder, because a rename across file systems is a copy. A name that is taken belongs to a
    /// process that was killed, perhaps with our own id: in a container every run has the same one.
    pub(crate) fn create(path: &Path) -> Result<(Self, File), WriteError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        const TRIES: u32 = 1000;
        let name =
            path.file_name().ok_or_else(|| WriteError::NoName { path: path.into() })?.to_string_lossy();
        let io_error = |source| WriteError::Io { path: path.into(), source };
        for _ in 0..TRIES {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let temporary = path.with_file_name(format!(".{name}.{}.{number}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    return Ok((Self { path: Some(temporary) }, file));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(io_error(source)),
            }
        }
        Err(io_error(io::ErrorKind::AlreadyExists.into()))
    }

    pub(crate) fn rename(mut self, to: &Path) -> io::Result<()> {
        let from = self.path.as_ref().expect("taken only below");
        fs::rename(from, to)?;
        self.path = None;
        sync_folder(to)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The write has failed already; a second failure has nobody to tell.
            let _ = fs::remove_file(path);
        }
    }
}

/// A rename is on the disk only when its folder is. Windows has no such call.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Checkpoint;
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("bantam-writer-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = folder("round-trip");
        let path = folder.join("model.safetensors");
        let tensors: [Tensor<'_>; 4] = [
            ("b\"\n", Dtype::U8, &[3], &[1, 2, 3]),
            ("a", Dtype::F16, &[1, 2], &[0, 0x3C, 0, 0xC0]),
            ("scalar", Dtype::F32, &[], &[0, 0, 0x80, 0x3F]),
            ("empty", Dtype::F64, &[0, 5], &[]),
        ];
        write_safetensors(&path, &tensors, &[("format", "pt"), ("é\t", "\\")]).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(checkpoint.metadata().collect::<Vec<_>>(), [("format", "pt"), ("é\t", "\\")]);
        assert_eq!(
            checkpoint.tensors().map(|t| t.name).collect::<Vec<_>>(),
            ["a", "b\"\n", "empty", "scalar"]
        );
        for (name, dtype, shape, data) in tensors {
            let read = checkpoint.tensor(name).unwrap();
            assert_eq!((read.dtype, read.shape, read.data), (dtype, shape, data));
        }
        let mut pair = [0.0; 2];
        checkpoint.tensor("a").unwrap().read_f32(0, &mut pair);
        assert_eq!(pair, [1.0, -2.0]);
        assert_eq!(checkpoint.file_bytes(), fs::metadata(&path).unwrap().len());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
        checkpoint.check_unchanged().unwrap();
        write_safetensors(&path, &tensors[..1], &[]).unwrap();
        assert!(checkpoint.check_unchanged().is_err());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn wrong_tensors_leave_nothing_behind() {
        let folder = folder("wrong");
        let path = folder.join("model.safetensors");
        let wrong: [(&[Tensor<'_>], &str); 5] = [
            (&[("w", Dtype::F32, &[2], &[0; 7])], "expected 8 bytes"),
            (&[("w", Dtype::U8, &[1], &[0]), ("w", Dtype::U8, &[1], &[0])], "\"w\" twice"),
            (&[("__metadata__", Dtype::U8, &[1], &[0])], "not __metadata__"),
            (&[("", Dtype::U8, &[1], &[0])], "1 to 1024"),
            (&[("w", Dtype::U8, &[1; 9], &[0])], "at most 8 dimensions"),
        ];
        for (tensors, expected) in wrong {
            let message = write_safetensors(&path, tensors, &[]).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("model.safetensors"), "{message}");
        }
        let no_folder = write_safetensors(&folder.join("none/x.safetensors"), &[], &[]).unwrap_err();
        assert!(no_folder.to_string().contains("nothing was written"));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_made_on_the_way_is_counted() {
        let folder = folder("streamed");
        let path = folder.join("model.safetensors");
        let outlines: [Outline<'_>; 2] = [("narrow", Dtype::U8, &[3]), ("wide", Dtype::F32, &[2])];
        write_streamed(&path, &outlines, &[], |index, out| {
            (0..[3, 8][index]).try_for_each(|byte| out.write_all(&[byte]))
        })
        .unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(checkpoint.tensor("wide").unwrap().data, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(checkpoint.tensor("narrow").unwrap().data, [0, 1, 2]);
        fs::remove_file(&path).unwrap();
        let short = write_streamed(&path, &outlines, &[], |_, out| out.write_all(&[0; 3])).unwrap_err();
        assert!(short.to_string().contains("\"wide\": expected 8 bytes"), "{short}");
        let full = |_: usize, _: &mut dyn Write| Err(io::ErrorKind::StorageFull.into());
        assert!(write_streamed(&path, &outlines, &[], full).is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_leftovers_of_a_killed_process_are_no_obstacle() {
        let folder = folder("leftovers");
        let path = folder.join("w.safetensors");
        for number in 0..200 {
            fs::write(folder.join(format!(".w.safetensors.{}.{number}.tmp", std::process::id())), "half")
                .unwrap();
        }
        let all =
            || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(all().all(|name| left_of(&name) == Some("w.safetensors")));
        write_safetensors(&path, &[], &[]).unwrap();
        assert!(Checkpoint::open(&folder).is_ok(), "leftovers are not taken for checkpoints");
        for other in ["w.safetensors", ".w.tmp", ".w.1.tmp", "w.1.2.tmp", ".w.1.x.tmp"] {
            assert_eq!(left_of(other), None, "{other}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_write_that_fails_at_the_rename_removes_its_temporary() {
        let folder = folder("rename");
        let path = folder.join("taken.safetensors");
        let (temporary, _file) = Temporary::create(&path).unwrap();
        fs::create_dir_all(path.join("full")).unwrap();
        assert!(temporary.rename(&path).is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_a_regular_file_is_replaced() {
        let folder = folder("taken");
        let refused = |name: &str, found: &str| {
            let message = write_safetensors(&folder.join(name), &[], &[]).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(found), "{message}");
        };
        fs::create_dir(folder.join("directory")).unwrap();
        refused("directory", "found a directory");
        #[cfg(unix)]
        {
            use std::os::unix::fs::symlink;
            fs::write(folder.join("target"), "kept").unwrap();
            symlink(folder.join("target"), folder.join("link")).unwrap();
            symlink(folder.join("nothing"), folder.join("broken")).unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
            refused("link", "found a symbolic link");
            refused("broken", "found a symbolic link");
            refused("socket", "found a socket");
            assert_eq!(fs::read(folder.join("target")).unwrap(), b"kept");
            assert!(fs::symlink_metadata(folder.join("link")).unwrap().is_symlink());
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 5, "nothing was written");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
