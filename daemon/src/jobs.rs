//! Jobs: work that outlives the call that asked for it. One trains at a time, in a thread beside the engines, and
//! others wait in line. What happens is told to whoever watches, and nobody who watches slowly makes a job wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use bantam_core::Cpu;
use bantam_model::card::{Backwards, Card, Cards, Found, Needs, NoCard, Seen};
use bantam_model::source::Source;
use bantam_proto::v1;
use bantam_proto::v1::JobState;
use bantam_proto::v1::watch_response::Event;
use bantam_train::run::{self, Machine, Progress, RunError, Watch};
use bantam_train::settings::Settings;
use tokio::sync::broadcast;

use crate::cards::Device;
use crate::models::views::{duration, timestamp};
use crate::models::{Keeper, ReservedVram};

/// Jobs that wait, at most.
const WAITING_MAX: usize = 16;
/// Jobs that are over and still told of.
const OVER_MAX: usize = 100;
/// Events that a slow watcher may be behind.
const BEHIND_MAX: usize = 256;

/// What a job is to do.
pub(crate) struct Training {
    pub(crate) settings: Settings,
    pub(crate) source: Source,
    pub(crate) threads: usize,
    /// Who makes room for it beside the models.
    pub(crate) keeper: Keeper,
}

/// A job that nobody knows.
#[derive(Debug)]
pub(crate) struct Unknown;

/// All jobs. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Jobs(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    made: u64,
    /// Who works, while there is work.
    worker: Option<JoinHandle<()>>,
    is_working: bool,
    is_ending: bool,
}

struct Entry {
    job: v1::Job,
    /// What is to be done, until it is begun.
    training: Option<Box<Training>>,
    is_asked_to_end: Arc<AtomicBool>,
    events: broadcast::Sender<Event>,
}

impl Entry {
    fn set(&mut self, state: JobState) {
        self.job.set_state(state);
        if is_over(state) {
            self.job.ended_at = Some(timestamp(SystemTime::now()));
        }
        // Nobody needs to watch.
        let _ = self.events.send(Event::Job(self.job.clone()));
    }
}

/// Whether nothing more happens to a job.
pub(crate) fn is_over(state: JobState) -> bool {
    matches!(state, JobState::Done | JobState::Failed | JobState::Cancelled)
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("count", &self.list().entries.len()).finish()
    }
}

impl Jobs {
    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a training at the end of the line.
    pub(crate) fn train(&self, training: Training) -> Result<v1::Job, &'static str> {
        let mut list = self.list();
        if list.is_ending {
            return Err("the daemon is ending; ask again when it is back");
        }
        let waiting = list.entries.iter().filter(|entry| entry.training.is_some()).count();
        if waiting >= WAITING_MAX {
            return Err(
                "expected at most 16 jobs that wait, found as many; wait for one to end, or cancel one",
            );
        }
        list.made += 1;
        let text = |key: &str| training.settings.text(key).unwrap_or_default();
        let mut job = v1::Job {
            id: format!("job-{}", list.made),
            model: text("model_name_or_path"),
            output: text("output_dir"),
            created_at: Some(timestamp(SystemTime::now())),
            ..v1::Job::default()
        };
        job.set_kind(v1::JobKind::Train);
        job.set_state(JobState::Waiting);
        list.entries.push(Entry {
            job: job.clone(),
            training: Some(Box::new(training)),
            is_asked_to_end: Arc::default(),
            events: broadcast::channel(BEHIND_MAX).0,
        });
        list.forget();
        if !list.is_working {
            let jobs = self.clone();
            let worker = thread::Builder::new().name("jobs".to_owned()).spawn(move || jobs.work());
            list.worker = Some(worker.map_err(|_| "the system gives no thread; end other programs")?);
            list.is_working = true;
        }
        Ok(job)
    }

    /// All jobs, the youngest first.
    pub(crate) fn all(&self) -> Vec<v1::Job> {
        self.list().entries.iter().rev().map(|entry| entry.job.clone()).collect()
    }

    /// A job as it is.
    pub(crate) fn job(&self, id: &str) -> Result<v1::Job, Unknown> {
        self.list().find(id).map(|entry| entry.job.clone()).ok_or(Unknown)
    }

    /// A job as it is, and what happens to it from there.
    pub(crate) fn watch(&self, id: &str) -> Result<(v1::Job, broadcast::Receiver<Event>), Unknown> {
        let mut list = self.list();
        let entry = list.find(id).ok_or(Unknown)?;
        Ok((entry.job.clone(), entry.events.subscribe()))
    }

    /// Ends a job: at once if it waits, else after the step that it takes, with a checkpoint.
    pub(crate) fn cancel(&self, id: &str) -> Result<v1::Job, Unknown> {
        let mut list = self.list();
        let entry = list.find(id).ok_or(Unknown)?;
        entry.is_asked_to_end.store(true, SeqCst);
        if entry.training.take().is_some() {
            entry.set(JobState::Cancelled);
        }
        Ok(entry.job.clone())
    }

    /// Ends all, and waits for that.
    pub(crate) fn end(&self) {
        let worker = {
            let mut list = self.list();
            list.is_ending = true;
            for entry in &mut list.entries {
                entry.is_asked_to_end.store(true, SeqCst);
                if entry.training.take().is_some() {
                    entry.set(JobState::Cancelled);
                }
            }
            list.worker.take()
        };
        if let Some(worker) = worker {
            // It catches what a job may do.
            let _ = worker.join();
        }
    }

    /// Does what waits, until nothing does.
    fn work(&self) {
        while let Some((id, training, ended)) = self.next() {
            let mut told = Told { jobs: self, id: &id, ended };
            let result = catch_unwind(AssertUnwindSafe(|| training.run(&mut told)));
            self.change(&id, |entry| match result {
                Ok(Ok(is_done)) => entry.set(if is_done { JobState::Done } else { JobState::Cancelled }),
                Ok(Err(error)) => {
                    entry.job.error = error;
                    entry.set(JobState::Failed);
                }
                Err(_) => {
                    entry.job.error =
                        "it stopped half way, by a mistake of its own; please report this".to_owned();
                    entry.set(JobState::Failed);
                }
            });
        }
    }

    /// What is to be done next; the worker is gone where that is nothing.
    fn next(&self) -> Option<(String, Box<Training>, Arc<AtomicBool>)> {
        let mut list = self.list();
        let next = list.entries.iter_mut().find(|entry| entry.training.is_some());
        let begun = next.and_then(|entry| {
            let training = entry.training.take()?;
            entry.set(JobState::Running);
            Some((entry.job.id.clone(), training, entry.is_asked_to_end.clone()))
        });
        list.is_working = begun.is_some();
        begun
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.list().find(id) {
            change(entry);
        }
    }
}

impl List {
    fn find(&mut self, id: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.job.id == id)
    }

    /// Of what is over, the oldest is told of no longer.
    fn forget(&mut self) {
        let over = self.entries.iter().filter(|entry| is_over(entry.job.state())).count();
        for _ in OVER_MAX..over {
            let oldest = self.entries.iter().position(|entry| is_over(entry.job.state()));
            oldest.map(|oldest| self.entries.remove(oldest));
        }
    }
}

impl Training {
    /// Whether it came to its end; the error says why it did not even come so far as to be ended.
    fn run(self, told: &mut Told<'_>) -> Result<bool, String> {
        let words = |error: RunError| error.to_string();
        told.stage("reads data");
        let prepared = run::prepared(&self.settings, &self.source).map_err(words)?;
        prepared.summary.to_string().lines().for_each(|line| told.note(line));
        told.stage("waits for memory");
        // Before anybody looks what is free of it.
        let card = granted(&self.settings, &self.keeper)?;
        let machine = Machine::from((Cpu::detect(), self.threads));
        let beside = machine.beside(lent(&card));
        let forecast = run::forecast(&self.settings, &self.source, &prepared, beside).map_err(words)?;
        forecast.no_card.iter().for_each(|words| told.note(words));
        // What it has no use for is the models' again.
        let card = card.filter(|_| forecast.card.is_some());
        let bytes = forecast.bytes();
        let Some(_reserved) = self.keeper.reserve(bytes, &|| told.is_ended())? else { return Ok(false) };
        told.stage("loads the model");
        let machine = machine.beside(lent(&card));
        let outcome = run::train(&self.settings, self.source, &prepared, machine, told).map_err(words)?;
        told.note(&outcome.to_string());
        Ok(outcome.is_done)
    }
}

/// The card of a job, with what it may take of it. Here cards are the models' first: a job has a part of one only where
/// it says so.
fn granted(settings: &Settings, keeper: &Keeper) -> Result<Option<Granted>, String> {
    let vram = run::vram(settings);
    let device = Device::parse(&settings.text("device").unwrap_or_default());
    let card = device.filter(|&device| device != Device::Auto || vram.is_some()).and_then(Device::card);
    let Some(card) = card else { return Ok(None) };
    let reserved = keeper.reserve_vram(&card.label(), vram)?;
    Ok(Some(Granted { card, reserved }))
}

fn lent(card: &Option<Granted>) -> Option<&dyn Cards> {
    card.as_ref().map(|card| card as &dyn Cards)
}

/// A card with what is there for a job: of more it hears nothing, so that models may have it.
#[derive(Debug)]
struct Granted {
    card: Box<dyn Cards>,
    reserved: Option<ReservedVram>,
}

impl Cards for Granted {
    fn look(&self) -> Result<Seen, NoCard> {
        self.card.look()
    }

    fn find(&self) -> Result<Box<dyn Found>, NoCard> {
        let found = self.card.find()?;
        let bytes =
            self.reserved.as_ref().map(|reserved| usize::try_from(reserved.bytes()).unwrap_or(usize::MAX));
        Ok(match bytes {
            Some(bytes) => Box::new(Within { found, bytes }),
            None => found,
        })
    }

    fn label(&self) -> String {
        self.card.label()
    }
}

/// A card that was found, of which no more than so many bytes are free.
struct Within {
    found: Box<dyn Found>,
    bytes: usize,
}

impl Found for Within {
    fn name(&self) -> String {
        self.found.name()
    }

    fn free_bytes(&self) -> Result<usize, NoCard> {
        Ok(self.found.free_bytes()?.min(self.bytes))
    }

    fn take(self: Box<Self>, needs: &Needs) -> Result<Box<dyn Card>, NoCard> {
        self.found.take(needs)
    }

    fn take_backwards(self: Box<Self>, needs: &Needs) -> Result<Box<dyn Backwards>, NoCard> {
        self.found.take_backwards(needs)
    }
}

/// Tells whoever watches.
struct Told<'a> {
    jobs: &'a Jobs,
    id: &'a str,
    ended: Arc<AtomicBool>,
}

impl Told<'_> {
    fn progress(&self, change: impl FnOnce(&mut v1::JobProgress)) {
        self.jobs.change(self.id, |entry| {
            let mut progress = entry.job.progress.take().unwrap_or_default();
            change(&mut progress);
            let _ = entry.events.send(Event::Progress(progress.clone()));
            entry.job.progress = Some(progress);
        });
    }

    fn stage(&self, words: &str) {
        self.progress(|progress| progress.stage = words.to_owned());
    }
}

impl Watch for Told<'_> {
    fn note(&mut self, words: &str) {
        self.jobs.change(self.id, |entry| drop(entry.events.send(Event::Log(words.to_owned()))));
    }

    fn step(&mut self, at: &Progress) {
        self.progress(|progress| {
            progress.stage = "trains".to_owned();
            (progress.done, progress.total) = (at.step, at.steps);
            let left = Duration::try_from_secs_f64(at.seconds_left).unwrap_or(Duration::MAX);
            progress.left = Some(duration(left));
            for (name, value) in [
                ("loss", at.loss),
                ("learning_rate", at.rate),
                ("grad_norm", at.gradient),
                ("epoch", at.epoch),
                ("tokens_per_second", at.tokens_per_second),
            ] {
                progress.figures.insert(name.to_owned(), value);
            }
        });
    }

    fn measured(&mut self, _: u64, loss: f64) {
        self.progress(|progress| {
            progress.figures.insert("eval_loss".to_owned(), loss);
        });
    }

    fn is_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }
}
