//! A model in memory: its thread with the engine, and the desk where requests for it are handed in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use bantam_core::Cpu;
use bantam_core::layouts::page::POSITIONS;
use bantam_model::adapter::{self, Guest};
use bantam_model::engine::{Engine, LoadError};
use bantam_model::native::{Native, Store};
use bantam_model::plan::Options as PlanOptions;
use bantam_model::source::SourceError;

use super::opened::{Opened, Unusable};
use super::recipe::Recipe;
use crate::scheduler::paced::{Pace, Paced};
use crate::scheduler::{Desk, Options, StepLimits, Steps, Worker};
use crate::settings::Settings;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) opened: Arc<Opened>,
    pub(crate) desk: Desk,
    /// Whether its weights are a mapped native file.
    pub(crate) is_mapped: bool,
    pub(crate) loaded_at: SystemTime,
    /// From the beginning of the read.
    pub(crate) duration: Duration,
    worker: Mutex<Option<Worker>>,
    /// What its engine was planned with.
    options: PlanOptions,
    /// Adapters that were opened for it, as long as anybody has them.
    guests: Mutex<Vec<(Stamp, Weak<Guest>)>>,
}

/// What tells an adapter's files from those that stand in their place later.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    folder: PathBuf,
    files: [Option<FileStamp>; 2],
}

/// Copies keep lengths and times of change; which file it is, and when the system changed it last, they cannot keep.
#[derive(Debug, PartialEq, Eq)]
struct FileStamp {
    length: u64,
    modified: SystemTime,
    #[cfg(unix)]
    own: [i64; 4],
}

impl FileStamp {
    fn of(path: &Path) -> Option<FileStamp> {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(path).ok()?;
        Some(FileStamp {
            length: found.len(),
            modified: found.modified().ok()?,
            #[cfg(unix)]
            own: [found.dev().cast_signed(), found.ino().cast_signed(), found.ctime(), found.ctime_nsec()],
        })
    }
}

impl Stamp {
    fn of(folder: &Path) -> Stamp {
        let files = [adapter::CONFIG, adapter::WEIGHTS].map(|name| FileStamp::of(&folder.join(name)));
        Stamp { folder: folder.to_owned(), files }
    }
}

/// What a desk is told of the settings.
pub(crate) fn desk_options(settings: &Settings) -> Options {
    Options {
        queue: settings.queue,
        // Nobody fills the queue alone.
        queue_per_client: settings.queue.div_ceil(4),
        prefill_chunk: settings.prefill_chunk,
        tokens_in_flight: settings.tokens_in_flight,
        slow_reader: settings.slow_reader,
        prefix_cache: settings.prefix_cache,
    }
}

/// Bytes of every card that the settings name, where they do.
fn vram(settings: &Settings) -> Vec<u64> {
    Some(settings.vram.0).filter(|&bytes| bytes > 0).into_iter().collect()
}

impl Resident {
    /// Reads the weights, lets `place` put them on a card, and starts the thread; `tell` hears how many bytes of the
    /// weights are there.
    pub(crate) fn load(
        opened: Arc<Opened>,
        recipe: &Recipe,
        options: Options,
        settings: &Settings,
        store: Option<&Store>,
        tell: &mut dyn FnMut(usize),
        place: &mut dyn FnMut(&mut Engine) -> Result<(), Unusable>,
    ) -> Result<Self, Unusable> {
        let began = Instant::now();
        let (source, cpu) = (&opened.source, Cpu::detect());
        let plan = source.plan(recipe.options, cpu)?;
        settings.device.check(&vram(settings)).map_err(|error| SourceError::Load(LoadError::Card(error)))?;
        let native = store.filter(|_| !recipe.no_cache).and_then(|store| Native::of(source, &plan, store));
        let mut engine = source.load(recipe.options, cpu, recipe.threads, native.as_ref(), tell)?;
        let is_mapped = engine.is_mapped();
        if let Some(native) = native.filter(|_| !is_mapped)
            && let Err(error) = source.keep(&engine, &native, &mut |_| {})
        {
            tracing::warn!(%error, "the next load repacks the weights again; models.native_files = false: do not try");
        }
        place(&mut engine)?;
        let planned = engine.plan().options;
        Self::start(opened, engine, planned, options, is_mapped, began)
    }

    /// The same with an engine that computes nothing: what is left is the daemon's own cost.
    pub(crate) fn paced(
        opened: Arc<Opened>,
        recipe: &Recipe,
        options: Options,
        pace: Pace,
    ) -> Result<Self, Unusable> {
        let (began, spec) = (Instant::now(), &opened.source.spec);
        let positions = recipe.options.context.next_multiple_of(POSITIONS) * recipe.options.sequences;
        let PlanOptions { chunk, context, sequences, logits_rows, .. } = recipe.options;
        let (vocab, hidden) = (spec.vocab, spec.hidden);
        let limits = StepLimits { chunk, context, positions, vocab, sequences, logits_rows, hidden };
        Self::start(opened, Paced::new(limits, pace), recipe.options, options, false, began)
    }

    fn start(
        opened: Arc<Opened>,
        steps: impl Steps,
        planned: PlanOptions,
        options: Options,
        is_mapped: bool,
        began: Instant,
    ) -> Result<Self, Unusable> {
        // What a first request would have to wait for. Where something is wrong with it, the request is told.
        let _ = (opened.text_if_any(), opened.template(), opened.defaults());
        let worker = Worker::start("engine", steps, options).map_err(|source| {
            SourceError::Load(LoadError::System { what: "a thread for the engine".to_owned(), source })
        })?;
        let (desk, loaded_at) = (worker.desk().clone(), SystemTime::now());
        let (duration, worker) = (began.elapsed(), Mutex::new(Some(worker)));
        let guests = Mutex::default();
        Ok(Resident { opened, desk, is_mapped, loaded_at, duration, worker, options: planned, guests })
    }

    /// The adapter in a folder, opened for this engine: the one that others have, as long as its files are the same.
    pub(crate) fn guest(&self, folder: &Path) -> Result<Arc<Guest>, SourceError> {
        // Whoever comes meanwhile waits: two would take two places.
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.retain(|(_, guest)| guest.strong_count() > 0);
        // Taken before the files are read: what changes in between is opened again.
        let stamp = Stamp::of(folder);
        let known = guests.iter().find(|(known, _)| *known == stamp);
        if let Some(guest) = known.and_then(|(_, guest)| guest.upgrade()) {
            return Ok(guest);
        }
        let guest = Guest::open(folder, &self.opened.source, self.options, Cpu::detect())?;
        guests.push((stamp, Arc::downgrade(&guest)));
        Ok(guest)
    }

    /// Sends away who is left, and frees the engine's memory. Waits for the end of a step.
    pub(crate) fn end(&self) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if worker.is_some_and(|worker| !worker.end()) {
            tracing::error!("an engine's thread had panicked; please report this");
        }
    }
}
