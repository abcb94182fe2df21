//! Native files: the weights region of a plan, written once it is filled, and mapped by the next start.
//!
//! A native file is safetensors. Its data is the region byte for byte, one tensor of bytes for every fill of the plan,
//! with its padding; its `__metadata__` says what each is and what the file was made from. It is used only where its
//! whole header, checksums and date apart, is the one that would be written now: same plan, same sources, same
//! version. [`Native`] is the file of one model and plan; `store.rs` is the folder of all.
//!
//! One that stands alone, in a model's folder and in the place of its weights, also says what tensors it was made of,
//! so that the same plan can be made without them; it depends neither on where it lies nor on when it was written.

mod form;
mod store;

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bantam_core::ops::matmul::IN_ORDER;
use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint::map::Image;
use crate::checkpoint::writer::{self, Temporary, WriteError};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::engine::Engine;
use crate::plan::{Options, Plan};
use crate::source::Source;

pub(crate) use form::{FORMAT, OUTLINE, OUTLINE_BYTES};
use form::{Form, Origins};
pub use store::{Details, Kept, State, Store};

/// To be raised whenever the same checkpoint becomes other bytes: a layout's words, a format's decoding, the rules of
/// this module. Files of other versions are not used.
pub const VERSION: u32 = 2;

/// Weights smaller than this are repacked in less time than anybody notices, unless they are quantized.
const BYTES_MIN: usize = 64 << 20;
/// What is hashed, written and told of at a time.
const STEP_BYTES: usize = 4 << 20;
/// What is asked of the disk at a time.
const AHEAD_BYTES: usize = 64 << 20;

/// Why a native file was not written, or not used.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// A header that is not the one that would be written.
    #[error("{}: expected the native form of {}, found that of another version, plan or state of it", .file.display(), .model)]
    Other {
        /// The native file.
        file: PathBuf,
        /// The model's folder.
        model: String,
    },
    /// The file cannot be read, or the model was changed meanwhile.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file that is all there is of a model, and not for this.
    #[error(
        "{}: expected the native form for these settings, found another: it is run as it was written, in fast precision \
         without adapters, placement or quantization while loading, by versions of bantam that use its form; leave \
         those out, or make it anew from the model that it was made of",
        .file.display()
    )]
    Alone {
        /// The native file.
        file: PathBuf,
    },
    /// The disk would be too full.
    #[error(
        "{}: expected {needed} free bytes, twice what the native file takes, found {free}; make room (`bantam cache rm \
         --stale`), or give another folder in XDG_CACHE_HOME",
        .folder.display()
    )]
    Room {
        /// The cache.
        folder: PathBuf,
        /// Bytes that must be free.
        needed: u64,
        /// Bytes that are.
        free: u64,
    },
    /// The cache's folder cannot be made.
    #[error("{}: {source}; give another folder in XDG_CACHE_HOME", .folder.display())]
    Folder {
        /// The cache.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Where the native file of a model and a plan is, or would be.
#[derive(Debug)]
pub struct Native {
    store: Store,
    path: PathBuf,
    form: Form,
}

impl Native {
    /// `None` where none would be worth its bytes, or nothing tells a changed model from an unchanged one, as for a
    /// model that the program carries. With an adapter beside it a model has none: its weights would stand on the disk
    /// once more for every adapter.
    pub fn of(source: &Source, plan: &Plan, store: &Store) -> Option<Native> {
        if source.adapter.is_some() {
            return None;
        }
        let Options { quantization, head, experts, .. } = plan.options;
        let is_quantized = [quantization, head, experts].iter().any(Option::is_some)
            || plan.fills.iter().any(|fill| fill.packed().is_some());
        if !is_quantized && plan.weight_bytes < BYTES_MIN {
            return None;
        }
        let form = Form::new(Origins::of(source)?, plan);
        let path = store.folder().join(store::file_name(Path::new(&form.origins.model), &form.key));
        Some(Native { store: store.clone(), path, form })
    }

    /// The one that stands alone for the weights of `source`, to be written at `path` or read there.
    pub fn alone(source: &Source, plan: &Plan, path: &Path) -> Native {
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        let form = Form::alone(&source.checkpoint, plan);
        Native { store: Store::new(folder), path: path.to_owned(), form }
    }

    /// The file, whether it is there or not.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it would be mapped.
    pub fn is_there(&self) -> bool {
        self.open().is_ok()
    }

    /// Its header, which is the expected one; its data is as long as that says.
    fn open(&self) -> Result<Checkpoint, NativeError> {
        let file = Checkpoint::open_as_it_is(&self.path)?;
        let parts = file.parts().unwrap_or_default();
        let same = parts.first().is_some_and(|(header, map, _)| {
            let written = form::read_written(header);
            let expected = written.map(|(made, sums)| (made, self.form.header(made, &sums)));
            expected.is_some_and(|(made, text)| {
                // The date is also the file's own: who writes into it later changes that.
                let time = map.modified_ns().and_then(|time| u64::try_from(time).ok());
                let is_dated = self.form.outline.is_some() || time == made.checked_mul(1_000_000_000);
                text == header.text() && is_dated
            })
        });
        match same {
            true => Ok(file),
            false => Err(self.other()),
        }
    }

    fn other(&self) -> NativeError {
        if self.form.outline.is_some() {
            return NativeError::Alone { file: self.path.clone() };
        }
        NativeError::Other { file: self.path.clone(), model: self.form.origins.model.clone() }
    }

    /// Maps the weights, and tells how many of their bytes the system was asked for.
    pub(crate) fn map(&self, tell: &mut dyn FnMut(usize)) -> Result<Image, NativeError> {
        let checkpoint = self.open()?;
        let parts = checkpoint.parts().unwrap_or_default();
        let (header, map, file) = parts.first().expect("it was opened");
        let start = header.bytes() + crate::checkpoint::header::PREFIX_BYTES;
        let mut weights = map.image(file, start, self.form.bytes).map_err(CheckpointError::from)?;
        for (range, columns) in &self.form.orders {
            if !own_order(&mut weights.map[range.clone()], *columns) {
                return Err(self.other());
            }
        }
        weights.ask_for(AHEAD_BYTES, tell);
        Ok(weights)
    }

    /// Writes the weights of an engine that was loaded from this source, and tells how many bytes are written.
    pub(crate) fn write(
        &self,
        engine: &Engine,
        checkpoint: &Checkpoint,
        tell: &mut dyn FnMut(usize),
    ) -> Result<(), NativeError> {
        self.store.make()?;
        self.store.sweep(store::ABANDONED);
        self.store.check_room(self.form.bytes as u64)?;
        writer::check_place(&self.path)?;
        let (temporary, file) = Temporary::create(&self.path)?;
        // An even second, which all file systems can keep as a file's time.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() & !1);
        // One that stands alone is the same whenever it is written.
        let made = if self.form.outline.is_some() { 0 } else { now };
        let io_error = |source| WriteError::Io { path: self.path.clone(), source };
        self.write_image(file, made, engine.weights(), tell).map_err(io_error)?;
        // What changed while it was read must not be taken for what it is now.
        checkpoint.check_unchanged()?;
        temporary.rename(&self.path).map_err(io_error)?;
        if let Err(error) = self.open() {
            // Where times or modes are not kept as they were set, every start would write it again.
            let _ = fs::remove_file(&self.path);
            return Err(error);
        }
        if self.form.outline.is_none() {
            self.store.remove_outdated(&self.form.origins.model);
        }
        Ok(())
    }

    fn write_image(
        &self,
        file: File,
        made: u64,
        weights: &[u8],
        tell: &mut dyn FnMut(usize),
    ) -> io::Result<()> {
        // Held until the file is closed: tells others that its writer lives. Some file systems know no locks.
        let _ = file.try_lock();
        let none = vec![0; self.form.tensors.len()];
        let start = self.form.prefix(made, &none)?.len();
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.seek(SeekFrom::Start(start as u64))?;
        let (mut sums, mut done) = (Vec::with_capacity(none.len()), 0);
        for tensor in &self.form.tensors {
            let mut sum = Xxh3::new();
            for bytes in weights[tensor.range.clone()].chunks(STEP_BYTES) {
                sum.update(bytes);
                out.write_all(bytes)?;
                done += bytes.len();
                tell(done);
            }
            sums.push(sum.digest128());
        }
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&self.form.prefix(made, &sums)?)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if self.form.outline.is_some() {
            return file.sync_all();
        }
        let mut permissions = file.metadata()?.permissions();
        permissions.set_readonly(true);
        // A file that is only read is not changed by mistake. Elsewhere it could not be removed either.
        if cfg!(unix) {
            file.set_permissions(permissions)?;
        }
        file.set_modified(UNIX_EPOCH + std::time::Duration::from_secs(made))?;
        file.sync_all()
    }
}

/// Whether an order of columns leads nowhere else. It is written back, and with that memory of our own: all other
/// weights may be any numbers, an index must not change once it was checked.
fn own_order(bytes: &mut [u8], columns: usize) -> bool {
    let own = std::hint::black_box(bytes.to_vec());
    bytes.copy_from_slice(&own);
    let words = own.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    words.clone().all(|column| (column as usize) < columns) || words.take(1).all(|first| first == IN_ORDER)
}

/// The checksum of something small.
fn sum_of(bytes: &[u8]) -> String {
    hex(xxhash_rust::xxh3::xxh3_128(bytes))
}

fn hex(sum: u128) -> String {
    format!("{sum:032x}")
}

/// Whether a source is as it was, by size and time.
fn is_unchanged(path: &Path, bytes: u64, modified_ns: i64) -> bool {
    fs::metadata(path).is_ok_and(|now| {
        let time = now.modified().ok().and_then(crate::checkpoint::map::nanoseconds);
        now.len() == bytes && time == Some(modified_ns)
    })
}
