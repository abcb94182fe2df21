//! Where requests are handed in, from any thread, and answers come out. It knows the queue, not the engine.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bantam_model::adapter::Guest;
use bantam_model::card::NoCard;
use bantam_model::engine::{Placed, Seated, StepError};

use super::bell::Bell;
use super::clock::Clock;
use super::figures::{Cells, Figures, add, set};
use super::queue::{ClientId, Full, Waiting, Wish};
use super::resting::Reuse;
use super::ring::{self, Begun, Ended, Event, Found, Reader, Room, Timings, Writer};
use super::steps::StepLimits;
use super::work::{Failure, Work};
use crate::cards::Device;

/// The bounds of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Requests that may wait.
    pub queue: usize,
    /// Of these, how many of one client.
    pub queue_per_client: usize,
    /// Tokens of prompts in a step while replies are running.
    pub prefill_chunk: usize,
    /// Tokens that a reader may be behind before its stream pauses.
    pub tokens_in_flight: usize,
    /// How long a stream may be paused without a token being taken.
    pub slow_reader: Duration,
    /// Whether sequences rest when their replies are over, for others to go on with.
    pub prefix_cache: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            queue: 256,
            queue_per_client: 64,
            prefill_chunk: 64,
            tokens_in_flight: 64,
            slow_reader: Duration::from_secs(30),
            prefix_cache: true,
        }
    }
}

/// What is asked for, and by whom.
#[derive(Debug)]
pub struct Request {
    /// Whose it is.
    pub client: ClientId,
    /// What is to be done.
    pub work: Work,
    /// What is to stand beside the model for it, opened for this engine.
    pub adapter: Option<Arc<Guest>>,
    /// How long it may take, the time in the queue included.
    pub timeout: Option<Duration>,
    /// What its reply shares beginnings with; where it is nothing, it neither uses nor leaves any. Only replies do.
    pub reuse: Option<Reuse>,
}

/// Why a request is not accepted. Nothing of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many wait.
    #[error(
        "{waiting} requests wait, {bound} may; try again in {retry_after:.1?}, or raise the bound of the queue"
    )]
    QueueFull {
        /// That wait.
        waiting: usize,
        /// That may.
        bound: usize,
        /// When there is likely to be room.
        retry_after: Duration,
    },
    /// Too many of this client wait.
    #[error("{waiting} requests of this client wait, {bound} may; try again in {retry_after:.1?}")]
    ClientFull {
        /// That wait.
        waiting: usize,
        /// That may.
        bound: usize,
        /// When there is likely to be room.
        retry_after: Duration,
    },
    /// It would never fit.
    #[error(
        "expected at most {most} positions of the cache for a sequence, found that the request needs {asked}; shorten \
         the prompt, ask for fewer new tokens, or load the model with more"
    )]
    TooLong {
        /// That it needs.
        asked: usize,
        /// That there are.
        most: usize,
    },
    /// No token of this model.
    #[error("expected ids below {vocab} in the prompt, found {found}; use this model's tokenizer")]
    UnknownToken {
        /// The token.
        found: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The daemon, or this model, is about to end.
    #[error("the model is being taken down; try again later, or elsewhere")]
    Draining,
    /// The engine failed for good.
    #[error("{0}")]
    Broken(StepError),
    /// The engine's thread has ended although nobody said so.
    #[error("the model's thread has ended, which is a mistake of ours; try again: it is loaded anew")]
    Gone,
}

/// Whether requests are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// Who has a sequence may end by then; nobody else gets one.
    Draining(Duration),
    /// The engine's weights are gone.
    Broken(StepError),
    /// All are sent away.
    Stopped,
    /// The thread has ended although nobody said so.
    Gone,
}

/// A request on its way, with what will be its result.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) ended: Box<Ended>,
    pub(super) writer: Writer,
    /// What stands beside the model for it.
    pub(super) adapter: Option<Arc<Guest>>,
}

impl Job {
    pub(super) fn work(&mut self) -> &mut Work {
        self.ended.work.as_mut().expect("a job has its work until it has ended")
    }

    pub(super) fn wanted(&self) -> &[u32] {
        self.ended.work.as_ref().map_or(&[], Work::wanted)
    }

    pub(super) fn end(mut self, outcome: Result<(), Failure>) {
        self.ended.outcome = outcome;
        self.writer.end(self.ended);
    }
}

/// A word that what stands on a card is to move; whoever waits for it hears what stands there then.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) device: Device,
    pub(super) bytes: Vec<Option<u64>>,
    pub(super) done: Sender<Result<(), NoCard>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) waiting: Waiting<Job>,
    pub(super) phase: Phase,
    /// The latest, where the engine has not seen to it.
    pub(super) movement: Option<Move>,
    /// What stands on a card.
    pub(super) placed: Option<Placed>,
    /// What stands beside the model.
    pub(super) adapters: Vec<Seated>,
    next_id: u64,
}

/// What the desk shares with the engine's thread.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Set when the state has changed in a way that the thread must look at.
    pub(super) is_news: AtomicBool,
    pub(super) bell: Arc<Bell>,
    pub(super) cells: Cells,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: StepLimits,
    pub(super) options: Options,
}

impl Shared {
    pub(super) fn new(limits: StepLimits, options: Options, clock: Arc<dyn Clock>) -> Self {
        let waiting = Waiting::new(options.queue, options.queue_per_client);
        Shared {
            state: Mutex::new(State {
                waiting,
                phase: Phase::Serving,
                movement: None,
                placed: None,
                adapters: Vec::new(),
                next_id: 0,
            }),
            is_news: AtomicBool::new(false),
            bell: Arc::new(Bell::default()),
            cells: Cells::default(),
            clock,
            limits,
            options,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the thread know.
    fn tell(&self) {
        self.is_news.store(true, Ordering::Release);
        self.bell.ring();
    }

    fn retry_after(&self, waiting: usize) -> Duration {
        let service = Duration::from_nanos(self.cells.service_ns.load(Ordering::Relaxed));
        let wait = service * (waiting as u32 + 1) / self.limits.sequences.max(1) as u32;
        wait.clamp(Duration::from_millis(100), Duration::from_secs(60))
    }

    fn judge(&self, state: &State, client: ClientId) -> Result<(), Refusal> {
        match state.phase {
            Phase::Serving => {}
            Phase::Broken(error) => return Err(Refusal::Broken(error)),
            Phase::Gone => return Err(Refusal::Gone),
            Phase::Draining(_) | Phase::Stopped => return Err(Refusal::Draining),
        }
        state.waiting.admits(client).map_err(|full| self.refusal(full))
    }

    fn refusal(&self, Full { waiting, bound, is_own }: Full) -> Refusal {
        let retry_after = self.retry_after(waiting);
        match is_own {
            true => Refusal::ClientFull { waiting, bound, retry_after },
            false => Refusal::QueueFull { waiting, bound, retry_after },
        }
    }

    fn check(&self, work: &Work) -> Result<(), Refusal> {
        let (asked, most) = (work.positions_max(), self.limits.context.min(self.limits.positions));
        if asked > most {
            return Err(Refusal::TooLong { asked, most });
        }
        let vocab = self.limits.vocab;
        match work.wanted().iter().find(|&&token| token as usize >= vocab) {
            Some(&found) => Err(Refusal::UnknownToken { found, vocab }),
            None => Ok(()),
        }
    }
}

/// Hands requests to one model. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk {
    pub(super) shared: Arc<Shared>,
}

impl Desk {
    /// The sizes that requests are made for.
    pub fn limits(&self) -> StepLimits {
        self.shared.limits
    }

    /// Accepts a request or refuses it, at once. The answer is read from any task; dropping it cancels the request.
    pub fn submit(&self, request: Request) -> Result<Answer, Refusal> {
        let accepted = self.accept(request);
        let cells = &self.shared.cells;
        add(if accepted.is_ok() { &cells.accepted } else { &cells.refused }, 1);
        accepted
    }

    fn accept(&self, Request { client, work, adapter, timeout, reuse }: Request) -> Result<Answer, Refusal> {
        let shared = &self.shared;
        shared.check(&work)?;
        shared.judge(&shared.lock(), client)?;
        let (is_over, positions) = (is_over(&work), work.positions_max());
        // Of the others every row is looked at, and none is asked for twice.
        let reuse = reuse.filter(|_| shared.options.prefix_cache && matches!(work, Work::Generate(_)));
        let (writer, reader) = ring::ring(room(&work, shared.options.tokens_in_flight), shared.bell.clone());
        let ended =
            Ended { outcome: Ok(()), work: Some(work), reused_tokens: 0, timings: Timings::default() };
        let job = Job { ended: Box::new(ended), writer, adapter };
        let mut state = shared.lock();
        // Others may have come meanwhile.
        shared.judge(&state, client)?;
        state.next_id += 1;
        let id = state.next_id;
        let arrived = shared.clock.now();
        let deadline = timeout.and_then(|timeout| arrived.checked_add(timeout));
        let mut position = 0;
        if is_over {
            job.writer.begin(Begun { queue: Duration::ZERO, reused_tokens: 0 });
            job.end(Ok(()));
            add(&shared.cells.finished, 1);
        } else {
            let wish = Wish { id, client, reuse, positions, arrived, deadline };
            position = state.waiting.join(wish, job).map_err(|full| shared.refusal(full))?;
            set(&shared.cells.waiting, state.waiting.len());
            shared.tell();
        }
        drop(state);
        Ok(Answer { reader, shared: shared.clone(), id, position, is_over: false })
    }

    /// Accepts nothing more; who has a sequence may end within `time`, who waits is sent away.
    pub fn drain(&self, time: Duration) {
        let until = self.shared.clock.now().saturating_add(time);
        self.set_phase(|phase| (phase == Phase::Serving).then_some(Phase::Draining(until)));
    }

    /// Sends everybody away.
    pub fn stop(&self) {
        self.set_phase(|_| Some(Phase::Stopped));
    }

    fn set_phase(&self, next: impl FnOnce(Phase) -> Option<Phase>) {
        let mut state = self.shared.lock();
        if let Some(phase) = next(state.phase) {
            state.phase = phase;
        }
        drop(state);
        self.shared.tell();
    }

    /// Asks for so many bytes of each card of a device to be what the model stands on, between two steps. Whoever reads
    /// the answer waits for it; there is none where the engine ends first.
    pub(crate) fn place(&self, device: Device, bytes: Vec<Option<u64>>) -> Receiver<Result<(), NoCard>> {
        let (done, answer) = channel();
        let mut state = self.shared.lock();
        if !matches!(state.phase, Phase::Stopped | Phase::Gone) {
            state.movement = Some(Move { device, bytes, done });
        }
        drop(state);
        self.shared.tell();
        answer
    }

    /// What of the model stands on a card.
    pub(crate) fn placed(&self) -> Option<Placed> {
        self.shared.lock().placed.clone()
    }

    /// Adapters that stand beside the model.
    pub(crate) fn adapters(&self) -> Vec<Seated> {
        self.shared.lock().adapters.clone()
    }

    /// Whether the engine has failed for good, or its thread has ended.
    pub fn is_broken(&self) -> bool {
        matches!(self.shared.lock().phase, Phase::Broken(_) | Phase::Gone)
    }

    /// Whether nobody waits and nobody runs.
    pub fn is_idle(&self) -> bool {
        let Figures { waiting, running, .. } = self.figures();
        waiting == 0 && running == 0
    }

    /// What it has done so far.
    pub fn figures(&self) -> Figures {
        self.shared.cells.read()
    }
}

/// A turn that may have no tokens.
fn is_over(work: &Work) -> bool {
    matches!(work, Work::Generate(turn) if turn.is_over())
}

fn room(work: &Work, tokens: usize) -> Room {
    match work {
        Work::Generate(turn) => {
            let alternatives = turn.alternatives_max();
            Room { tokens: tokens.min(turn.tokens_max()), piece_bytes: turn.piece_bytes_max(), alternatives }
        }
        _ => Room { tokens: 1, piece_bytes: 0, alternatives: 0 },
    }
}

/// The answer to one request: pieces, then how it ended.
#[derive(Debug)]
pub struct Answer {
    reader: Reader,
    shared: Arc<Shared>,
    id: u64,
    position: usize,
    is_over: bool,
}

impl Answer {
    /// How many stood before it when it was accepted.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How it got its sequence, once it has; `None` where it ends without. Events come whether this was asked or not.
    pub fn poll_begun(&mut self, context: &mut Context<'_>) -> Poll<Option<Begun>> {
        self.reader.poll_begun(context)
    }

    /// The next event; `None` after the end.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_event(context)).await
    }

    /// Comes when the engine is done with the request, though nobody reads what it has said.
    pub fn over(&self) -> impl Future<Output = ()> + Send + 'static {
        let watch = self.reader.watch();
        async move { poll_fn(|context| watch.poll(context)).await }
    }

    /// [`Answer::next`] for who polls.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let event = match self.reader.poll(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Found::Event(event)) => event,
            Poll::Ready(Found::Gone) => {
                let timings = Timings::default();
                let outcome = Err(Failure::Gone);
                Event::Ended(Box::new(Ended { outcome, work: None, reused_tokens: 0, timings }))
            }
        };
        self.is_over = matches!(event, Event::Ended(_));
        Poll::Ready(Some(event))
    }
}

impl tokio_stream::Stream for Answer {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.get_mut().poll_event(context)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // Who still waits leaves here; for who runs, the reader's own drop is seen before the next step.
        let mut state = self.shared.lock();
        let left = state.waiting.leave(self.id);
        set(&self.shared.cells.waiting, state.waiting.len());
        drop(state);
        if left.is_some() {
            add(&self.shared.cells.cancelled, 1);
        }
    }
}
