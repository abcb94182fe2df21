//! A checkpoint: the named tensors of one safetensors or GGUF file, of several, or of bytes in the program itself.
//!
//! It is not a model: it neither knows which tensors an architecture needs nor what they mean. Everything a file
//! claims is checked when it is opened, at the cost of its headers alone; from then on a [`TensorView`] cannot be
//! wrong. Tensor data stays in the file's map until somebody reads it.

mod dtype;
pub(crate) mod folder;
pub mod header;
pub mod index;
pub mod json;
pub mod map;
pub mod writer;

pub use dtype::Dtype;
pub(crate) use dtype::f16_to_f32;

use crate::gguf::{self, GgufError, Part};
use crate::native;
use folder::Weights;
use header::{Entry, HEADER_BYTES_MAX, Header, HeaderError, PREFIX_BYTES, TENSORS_MAX};
use index::{INDEX_BYTES_MAX, IndexError, ShardIndex};
use json::quote;
use map::{Map, MapError};
use memmap2::MmapMut;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;
use writer::WriteError;

/// Index and headers of all shards together. Published models of 90,000 tensors stay below 24 MiB.
const HEADERS_BYTES_MAX: u64 = 32 << 20;

/// Why a checkpoint was refused.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum CheckpointError {
    #[error("{}: nothing there; expected a model folder or a .safetensors or .gguf file: check the \
        path", .path.display())]
    NoPath { path: PathBuf },
    #[error("{}: {source}; check the permissions and the disk", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{}: no weights; looked for model.safetensors, {} and any one .safetensors or .gguf file: download \
        the model again, with its weights", .folder.display(), index::INDEX_NAME)]
    NoWeights { folder: PathBuf },
    #[error("{}: expected one .safetensors or .gguf file or a {}, found {}: add the index, or give the path of \
        one file", .folder.display(), index::INDEX_NAME, list(.found))]
    Ambiguous { folder: PathBuf, found: Vec<String> },
    #[error("{}: expected safetensors or GGUF, found {}; pickles can run code and are never read: fetch the \
        model's safetensors, or convert it with transformers' save_pretrained", .path.display(), list(.found))]
    Foreign { path: PathBuf, found: Vec<String> },
    #[error("{}: expected a folder or a file ending in .safetensors or .gguf", .path.display())]
    NotSafetensors { path: PathBuf },
    #[error(transparent)]
    File(#[from] MapError),
    #[error("{}: {source}; the file is damaged or incomplete: download or convert it again", .file.display())]
    Header { file: PathBuf, source: HeaderError },
    #[error("{}: {source}; if others read the file, report it; if not, it is damaged: download it again", .file.display())]
    Gguf { file: PathBuf, source: GgufError },
    #[error("{}: expected the weights themselves, found {found}; {advice}", .file.display())]
    StandIn { file: PathBuf, found: &'static str, advice: &'static str },
    #[error("{}: {source}; the index is damaged or not from this model: download it again", .file.display())]
    Index { file: PathBuf, source: IndexError },
    #[error("{}: tensor {tensor} is listed in {shard}, but {shard} has no tensor of that name: download \
        both again", .file.display())]
    Unlisted { file: PathBuf, tensor: Box<str>, shard: String },
    #[error("tensor {tensor}: expected in one shard, found in {} and in {}: remove files of another \
        model from the folder", .first.display(), .second.display())]
    TwoShards { tensor: Box<str>, first: PathBuf, second: PathBuf },
    #[error("{}: changed while in use: load the model again", .file.display())]
    Changed { file: PathBuf },
}

/// The first few of many names.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| quote(name)).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// One tensor, where it lies.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its dimensions, slowest first.
    pub shape: &'a [usize],
    /// Its elements, row by row, little-endian; exactly as many as the shape says. No alignment is promised.
    pub data: &'a [u8],
    /// The file it came from.
    pub file: &'a Path,
    source: Place<'a>,
}

/// Where elements are read.
#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    /// The open file and where in it they begin.
    File(&'a File, u64),
    /// In memory.
    Here,
    /// Nowhere: what they became stands in their place.
    Gone,
}

/// What is said of tensors that are nowhere.
pub(crate) const GONE: &str = "expected its numbers, found only the native form that they were brought into, which is \
    run and nothing else: start from the model that it was made of";

impl<'a> TensorView<'a> {
    /// One whose elements are not in a file as they are here.
    pub(crate) fn in_memory(
        name: &'a str,
        dtype: Dtype,
        shape: &'a [usize],
        data: &'a [u8],
        file: &'a Path,
    ) -> Self {
        debug_assert_eq!(data.len(), shape.iter().product::<usize>() * dtype.bytes());
        TensorView { name, dtype, shape, data, file, source: Place::Here }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.data.len() / self.dtype.bytes()
    }

    /// Widens elements `[start, start + out.len())` to f32: exactly, but for F64 and integers of more than 24 bits,
    /// which are rounded to nearest.
    ///
    /// # Panics
    /// If the tensor does not have these elements.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) {
        let end = start.checked_add(out.len()).filter(|&end| end <= self.elements());
        let end = end.expect("the caller asks for elements that the shape has");
        let size = self.dtype.bytes();
        self.dtype.widen(&self.data[start * size..end * size], out);
    }

    /// As [`read_f32`](Self::read_f32), but through a read of the file into `scratch`: where the file was cut short or
    /// the disk fails, this is an error, and a touch of the map would end the process.
    pub fn load_f32(&self, start: usize, out: &mut [f32], scratch: &mut Vec<u8>) -> io::Result<()> {
        self.check_there()?;
        #[cfg(unix)]
        if let Place::File(file, offset) = self.source {
            use std::os::unix::fs::FileExt;
            let end = start.checked_add(out.len()).filter(|&end| end <= self.elements());
            end.expect("the caller asks for elements that the shape has");
            let size = self.dtype.bytes();
            scratch.resize(out.len() * size, 0);
            file.read_exact_at(scratch, offset + (start * size) as u64)?;
            self.dtype.widen(scratch, out);
            return Ok(());
        }
        let _ = scratch;
        self.read_f32(start, out);
        Ok(())
    }

    /// Some of its bytes, read like [`load_f32`](Self::load_f32).
    pub fn load(&self, part: std::ops::Range<usize>) -> io::Result<Vec<u8>> {
        self.check_there()?;
        #[cfg(unix)]
        if let Place::File(file, offset) = self.source {
            use std::os::unix::fs::FileExt;
            assert!(part.end <= self.data.len(), "the caller asks for bytes that the shape has");
            let mut bytes = vec![0; part.len()];
            file.read_exact_at(&mut bytes, offset + part.start as u64)?;
            return Ok(bytes);
        }
        Ok(self.data[part].to_vec())
    }

    fn check_there(&self) -> io::Result<()> {
        match self.source {
            Place::Gone => Err(io::Error::other(GONE)),
            Place::File(..) | Place::Here => Ok(()),
        }
    }

    /// The first element that is NaN or infinite: never to be found in a sound checkpoint.
    pub fn first_non_finite(&self) -> Option<usize> {
        if !self.dtype.is_float() {
            return None;
        }
        let mut values = [0.0; 1024];
        for start in (0..self.elements()).step_by(values.len()) {
            let values = &mut values[..(self.elements() - start).min(1024)];
            self.read_f32(start, values);
            // A sum of zeros cannot hide a NaN, and unlike a search it compiles to SIMD.
            if values.iter().map(|v| v * 0.0).sum::<f32>() != 0.0 {
                return values.iter().position(|v| !v.is_finite()).map(|i| start + i);
            }
        }
        None
    }
}

#[derive(Debug)]
enum Bytes {
    Mapped(Map, File),
    Carried(PathBuf, &'static [u8]),
    /// A native file that stands alone: tensors are told of, and were somewhere else. As many zeros stand for them.
    Told(Map, MmapMut),
    /// The same for files that are yet to be written; the path is that of what they will be made of.
    Outlined(PathBuf, MmapMut),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(map, _) => map.bytes(),
            Self::Carried(_, bytes) => bytes,
            Self::Told(_, zeros) | Self::Outlined(_, zeros) => zeros,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Mapped(map, _) | Self::Told(map, _) => map.path(),
            Self::Carried(label, _) | Self::Outlined(label, _) => label,
        }
    }
}

#[derive(Debug)]
struct Shard {
    bytes: Bytes,
    header: Header,
}

/// A checked checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file that lists the shards, where there is one.
    index: Option<PathBuf>,
    shards: Vec<Shard>,
    /// Shard and entry of every tensor, sorted by name.
    by_name: Vec<(u16, u32)>,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`: a folder with `model.safetensors`, with an index and its shards, or with any
    /// one `.safetensors` file; or such a file, or such an index, itself.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut limits = Limits::default();
        match folder::find(path)? {
            Weights::Single(file) => {
                let shard = told(&file, open_shard(&file, &mut limits)?, &mut limits)?;
                Ok(Self::new(None, vec![shard]))
            }
            Weights::Sharded(file) => open_sharded(&file, &mut limits),
            Weights::Gguf(file) => open_gguf(&file),
        }
    }

    /// One file, of which a native one does not speak for others.
    pub(crate) fn open_as_it_is(file: &Path) -> Result<Self, CheckpointError> {
        Ok(Self::new(None, vec![open_shard(file, &mut Limits::default())?]))
    }

    /// The checkpoint in `bytes`, such as the model carried in the program; `label` stands for its path in messages.
    pub fn from_bytes(label: &str, bytes: &'static [u8]) -> Result<Self, CheckpointError> {
        let file = PathBuf::from(label);
        match header::parse(bytes, bytes.len() as u64) {
            Ok(header) => Ok(Self::new(None, vec![Shard { bytes: Bytes::Carried(file, bytes), header }])),
            Err(source) => Err(CheckpointError::Header { file, source }),
        }
    }

    /// No tensors: of a model whose weights are still to be made.
    pub fn none() -> Self {
        Self::new(None, Vec::new())
    }

    /// Tensors that are yet to be made of those in `file`: what they are called and how large they will be.
    pub(crate) fn outlined(file: &Path, tensors: &[writer::Outline<'_>]) -> Result<Self, WriteError> {
        let (prefix, all) = writer::header_of(file, tensors)?;
        let header = header::parse(&prefix, all);
        let header = header.map_err(|source| WriteError::Header { path: file.into(), source })?;
        let zeros = zeros(all).map_err(|source| WriteError::Io { path: file.into(), source })?;
        Ok(Self::new(None, vec![Shard { bytes: Bytes::Outlined(file.into(), zeros), header }]))
    }

    /// Takes shards in which no two tensors have one name.
    fn new(index: Option<PathBuf>, shards: Vec<Shard>) -> Self {
        let mut by_name = Vec::new();
        for (s, shard) in shards.iter().enumerate() {
            let s = u16::try_from(s).expect("at most SHARDS_MAX shards");
            let entries = u32::try_from(shard.header.len()).expect("at most TENSORS_MAX tensors");
            by_name.extend((0..entries).map(|i| (s, i)));
        }
        let mut checkpoint = Self { index, shards, by_name: Vec::new() };
        by_name.sort_unstable_by_key(|&place| checkpoint.entry(place).name);
        checkpoint.by_name = by_name;
        checkpoint
    }

    fn entry(&self, (shard, i): (u16, u32)) -> Entry<'_> {
        self.shards[usize::from(shard)].header.entry(i as usize)
    }

    fn view(&self, place: (u16, u32)) -> TensorView<'_> {
        let Entry { name, dtype, shape, start, end } = self.entry(place);
        let bytes = &self.shards[usize::from(place.0)].bytes;
        let source = match bytes {
            Bytes::Mapped(_, file) => Place::File(file, start),
            Bytes::Carried(..) => Place::Here,
            Bytes::Told(..) | Bytes::Outlined(..) => Place::Gone,
        };
        // The header was checked against the length of these very bytes, so both ends fit in usize and lie inside.
        TensorView {
            name,
            dtype,
            shape,
            data: &bytes.get()[start as usize..end as usize],
            file: bytes.path(),
            source,
        }
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let found = self.by_name.binary_search_by_key(&name, |&place| self.entry(place).name).ok()?;
        Some(self.view(self.by_name[found]))
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.by_name.iter().map(|&place| self.view(place))
    }

    /// The `__metadata__` of the first file, in its order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.shards.first().into_iter().flat_map(|shard| shard.header.metadata())
    }

    /// Its files on the disk, the index included.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let mapped = self.shards.iter().filter_map(|shard| match &shard.bytes {
            Bytes::Mapped(map, _) | Bytes::Told(map, _) => Some(map.path()),
            Bytes::Carried(..) | Bytes::Outlined(..) => None,
        });
        self.index.as_deref().into_iter().chain(mapped)
    }

    /// The native file that is all there is of the weights, if so.
    pub fn native(&self) -> Option<&Path> {
        match self.shards.as_slice() {
            [Shard { bytes: Bytes::Told(map, _), .. }] => Some(map.path()),
            _ => None,
        }
    }

    /// Header, map and file of every shard, in their order; `None` for one that is carried in the program.
    pub(crate) fn parts(&self) -> Option<Vec<(&Header, &Map, &File)>> {
        let mut parts = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            let Bytes::Mapped(map, file) = &shard.bytes else { return None };
            parts.push((&shard.header, map, file));
        }
        Some(parts)
    }

    /// Whether the mapped files are as they were when they were opened, wherever they are by now. Allocates nothing.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.shards.iter().all(|shard| match &shard.bytes {
            Bytes::Mapped(map, file) => map.is_unwritten(file),
            Bytes::Carried(..) | Bytes::Told(..) | Bytes::Outlined(..) => true,
        })
    }

    /// The shard that holds a tensor, and where in it the elements are; `None` where it is not a mapped file.
    pub(crate) fn place(&self, name: &str) -> Option<(usize, std::ops::Range<usize>)> {
        let found = self.by_name.binary_search_by_key(&name, |&place| self.entry(place).name).ok()?;
        let (shard, Entry { start, end, .. }) = (self.by_name[found].0, self.entry(self.by_name[found]));
        let shard = usize::from(shard);
        self.map(shard)?;
        Some((shard, start as usize..end as usize))
    }

    /// A shard that is a mapped file.
    pub(crate) fn map(&self, shard: usize) -> Option<&Map> {
        match &self.shards[shard].bytes {
            Bytes::Mapped(map, _) => Some(map),
            Bytes::Carried(..) | Bytes::Told(..) | Bytes::Outlined(..) => None,
        }
    }

    /// Size of all files, headers included.
    pub fn file_bytes(&self) -> u64 {
        let bytes = |shard: &Shard| match &shard.bytes {
            Bytes::Told(map, _) => map.bytes().len(),
            bytes => bytes.get().len(),
        };
        self.shards.iter().map(|shard| bytes(shard) as u64).sum()
    }

    /// Fails if a mapped file was replaced, cut or written to since it was opened. Costs one `stat` for each.
    pub fn check_unchanged(&self) -> Result<(), CheckpointError> {
        for shard in &self.shards {
            if let Bytes::Mapped(map, _) | Bytes::Told(map, _) = &shard.bytes
                && !map.unchanged()
            {
                return Err(CheckpointError::Changed { file: map.path().into() });
            }
        }
        Ok(())
    }
}

/// What the files of one checkpoint may cost together; a thousand shards must not each use the limit of one.
struct Limits {
    header_bytes: u64,
    tensors: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_bytes: HEADERS_BYTES_MAX, tensors: TENSORS_MAX }
    }
}

fn open_shard(path: &Path, limits: &mut Limits) -> Result<Shard, CheckpointError> {
    let (map, mut file) = Map::open(path)?;
    let header_error = |source| CheckpointError::Header { file: path.into(), source };
    let io_error = |source| CheckpointError::File(MapError::Io { path: path.into(), source });
    let file_len = map.bytes().len() as u64;
    // The header is read, not mapped: names and shapes must not change under us, whatever happens to the file.
    let mut prefix = Vec::new();
    file.by_ref().take(PREFIX_BYTES).read_to_end(&mut prefix).map_err(io_error)?;
    let Ok(prefix) = prefix.try_into() else {
        return Err(header_error(HeaderError::NoLength { found: file_len }));
    };
    let length = match header::text_len(prefix, file_len, limits.header_bytes.min(HEADER_BYTES_MAX)) {
        Ok(length) => length,
        Err(source) => {
            let mut start = prefix.to_vec();
            file.take(STAND_IN_BYTES).read_to_end(&mut start).map_err(io_error)?;
            return Err(stand_in(path, &start).unwrap_or_else(|| header_error(source)));
        }
    };
    let mut text = Vec::with_capacity(length as usize);
    let read = (&file).take(length).read_to_end(&mut text).map_err(io_error)?;
    if read as u64 != length {
        return Err(header_error(HeaderError::Length { declared: length, available: read as u64 }));
    }
    let header = Header::from_text(text, file_len, limits.tensors).map_err(header_error)?;
    limits.header_bytes -= header.bytes();
    limits.tensors -= header.len();
    Ok(Shard { bytes: Bytes::Mapped(map, file), header })
}

/// A native file that stands alone speaks for the tensors that it was made of.
fn told(path: &Path, shard: Shard, limits: &mut Limits) -> Result<Shard, CheckpointError> {
    let Shard { bytes: Bytes::Mapped(map, file), header } = shard else { return Ok(shard) };
    let value = |key: &str| Some(header.metadata().find(|(found, _)| *found == key)?.1.to_owned());
    let is_native = value("format").is_some_and(|format| format == native::FORMAT);
    let Some(text) = value(native::OUTLINE).filter(|_| is_native) else {
        return Ok(Shard { bytes: Bytes::Mapped(map, file), header });
    };
    let header_error = |source| CheckpointError::Header { file: path.into(), source };
    let data = value(native::OUTLINE_BYTES).and_then(|bytes| bytes.parse::<u64>().ok());
    let start = PREFIX_BYTES + text.len() as u64;
    let all = data.and_then(|data| data.checked_add(start)).filter(|all| usize::try_from(*all).is_ok());
    let Some(all) = all else {
        return Err(header_error(HeaderError::Length { declared: start, available: 0 }));
    };
    let outline = Header::from_text(text.into_bytes(), all, limits.tensors).map_err(header_error)?;
    limits.tensors -= outline.len();
    let zeros = zeros(all);
    let zeros = zeros.map_err(|source| CheckpointError::File(MapError::Io { path: path.into(), source }))?;
    Ok(Shard { bytes: Bytes::Told(map, zeros), header: outline })
}

/// Nobody writes there, so it takes addresses alone.
fn zeros(bytes: u64) -> io::Result<MmapMut> {
    let bytes = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    memmap2::MmapOptions::new().len(bytes).no_reserve_swap().map_anon()
}

/// How much of a file that is no checkpoint is looked at.
const STAND_IN_BYTES: u64 = 24;

/// What a download often leaves in the place of the weights. Only asked of files whose header was refused: text reads
/// as a header length far beyond any.
pub(crate) fn stand_in(path: &Path, start: &[u8]) -> Option<CheckpointError> {
    let is_text = start.iter().take(8).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    let (found, advice) = if start.starts_with(b"version https://git-lfs") {
        ("a Git LFS pointer", "run `git lfs pull` in the model's folder, or download the file itself")
    } else if is_text && start.trim_ascii_start().starts_with(b"<") {
        ("a web page", "download the file itself, not the page that shows it")
    } else {
        return None;
    };
    Some(CheckpointError::StandIn { file: path.into(), found, advice })
}

fn open_gguf(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let parts = gguf::open(path)?;
    let headers = gguf::named(&parts);
    let headers = headers.map_err(|source| CheckpointError::Gguf { file: path.into(), source })?;
    let shards = parts.into_iter().zip(headers).map(|(part, header)| {
        let Part { map, file, .. } = part;
        Shard { bytes: Bytes::Mapped(map, file), header }
    });
    Ok(Checkpoint::new(None, shards.collect()))
}

fn open_sharded(file: &Path, limits: &mut Limits) -> Result<Checkpoint, CheckpointError> {
    let bytes = map::read_regular(file, INDEX_BYTES_MAX)?;
    limits.header_bytes = limits.header_bytes.saturating_sub(bytes.len() as u64);
    let index =
        index::from_vec(bytes).map_err(|source| CheckpointError::Index { file: file.into(), source })?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut shards = Vec::new();
    for name in index.shards() {
        shards.push(open_shard(&folder.join(name), limits)?);
    }
    check_index(file, &index, &shards)?;
    Ok(Checkpoint::new(Some(file.into()), shards))
}

/// Every listed tensor is in its shard, and no tensor is in two. A tensor that is in a shard but not in the index
/// is let pass: published checkpoints have such buffers, and it is found under its name like any other.
fn check_index(file: &Path, index: &ShardIndex, shards: &[Shard]) -> Result<(), CheckpointError> {
    let mut places = HashMap::with_capacity(shards.iter().map(|shard| shard.header.len()).sum());
    for (s, shard) in shards.iter().enumerate() {
        for entry in shard.header.entries() {
            if let Some(first) = places.insert(entry.name, s) {
                let (first, second): (&Shard, &Shard) = (&shards[first], shard);
                return Err(CheckpointError::TwoShards {
                    tensor: quote(entry.name),
                    first: first.bytes.path().into(),
                    second: second.bytes.path().into(),
                });
            }
        }
    }
    for (name, shard) in index.tensors() {
        if places.get(name) != Some(&shard) {
            let shard = index.shards().nth(shard).expect("tensors() numbers shards()").to_owned();
            return Err(CheckpointError::Unlisted { file: file.into(), tensor: quote(name), shard });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(dtype: Dtype, shape: &'a [usize], data: &'a [u8]) -> TensorView<'a> {
        TensorView { name: "w", dtype, shape, data, file: Path::new("f"), source: Place::Here }
    }

    #[test]
    fn non_finite_values_are_found_at_any_place() {
        for place in [0, 1023, 1024, 2999] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![1.5f32; 3000];
                values[place] = bad;
                let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                assert_eq!(view(Dtype::F32, &[3000], &data).first_non_finite(), Some(place));
            }
        }
        assert_eq!(view(Dtype::F32, &[1], &f32::MAX.to_le_bytes()).first_non_finite(), None);
        assert_eq!(view(Dtype::U8, &[1], &[255]).first_non_finite(), None);
    }

    #[test]
    fn ranges_of_elements_are_widened() {
        let data: Vec<u8> = (0..6i16).flat_map(|v| v.to_le_bytes()).collect();
        let mut out = [9.0; 3];
        view(Dtype::I16, &[2, 3], &data).read_f32(2, &mut out);
        assert_eq!(out, [2.0, 3.0, 4.0]);
        view(Dtype::I16, &[2, 3], &data).read_f32(6, &mut []);
    }

    #[test]
    fn the_carried_model_opens() {
        let bytes = include_bytes!("../../carried/model.safetensors");
        let checkpoint = Checkpoint::from_bytes("the model carried in the program", bytes).unwrap();
        assert!(checkpoint.tensors().len() > 10);
        assert!(checkpoint.tensors().all(|tensor| tensor.first_non_finite().is_none()));
        assert!(checkpoint.tensors().is_sorted_by_key(|tensor| tensor.name));
    }
}
