//! The engine's side: one call is one step over all sequences that can go on. No thread and no clock of its own; what
//! drives it is `worker.rs`, or a simulation.
//!
//! Before each step it looks who has gone or is too late, and gives their places to who waits. So a cancelled request
//! costs no further step, and a deadline is met within one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bantam_model::engine::{Chunk, StepError};

use super::desk::{Job, Move, Phase, Shared, State};
use super::figures::{add, add_time, average, set};
use super::queue::{Fit, Wish};
use super::resting::Resting;
use super::ring::{Begun, Flow};
use super::schedule::{Budget, View, next_set, share};
use super::steps::Steps;
use super::work::{Failure, Work};

/// Sequences that one engine may have: the list of a step's chunks lies on the stack.
pub const SEQUENCES_MAX: usize = 256;

/// What a call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// The engine has made a step.
    Stepped,
    /// There is nothing to do before the bell rings, or before this time.
    Idle(Option<Duration>),
    /// All has been sent away; nothing will come any more.
    Over,
}

/// A request that has a sequence.
#[derive(Debug)]
struct Run {
    wish: Wish,
    job: Job,
    sequence: usize,
    admitted: Duration,
    first_result: Option<Duration>,
    /// Since when its reader has taken nothing, and what it had taken until then.
    stalled: Option<(Duration, u64)>,
    /// Since when it waits for its reader.
    paused: Option<Duration>,
    /// Set where the last step has ended it.
    outcome: Option<Result<(), Failure>>,
}

/// An engine with everybody that it serves.
pub struct Batch<S: Steps> {
    steps: S,
    /// Whether something stands on a card, as far as the desk knows.
    is_placed: bool,
    shared: Arc<Shared>,
    phase: Phase,
    /// In the order of their admission.
    runs: Vec<Run>,
    resting: Resting,
    views: Vec<View>,
    tokens: Vec<usize>,
    rows: Vec<usize>,
    owners: Vec<usize>,
    budget: Budget,
    /// What the last step was computed with.
    set: usize,
}

impl<S: Steps> Batch<S> {
    pub(super) fn new(steps: S, shared: Arc<Shared>) -> Self {
        let limits = steps.limits();
        assert!(limits.sequences <= SEQUENCES_MAX, "more sequences than a step can list");
        assert!(limits.sequences <= limits.chunk, "a step holds a token of every sequence");
        let sequences = limits.sequences;
        set(&shared.cells.free_positions, steps.free_positions());
        let placed = steps.placed().cloned();
        let is_placed = placed.is_some();
        shared.lock().placed = placed;
        Batch {
            steps,
            is_placed,
            phase: Phase::Serving,
            runs: Vec::with_capacity(sequences),
            resting: Resting::new(sequences, if shared.options.prefix_cache { limits.context } else { 0 }),
            views: Vec::with_capacity(sequences),
            tokens: Vec::with_capacity(sequences),
            rows: Vec::with_capacity(limits.chunk),
            owners: Vec::with_capacity(sequences),
            budget: Budget { chunk: limits.chunk, prefill_chunk: shared.options.prefill_chunk },
            set: 0,
            shared,
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Makes a step, if there is one to make.
    pub fn advance(&mut self) -> Advance {
        let now = self.shared.clock.now();
        self.hear(now);
        self.sweep(now);
        self.admit(now);
        if self.phase == Phase::Stopped {
            return Advance::Over;
        }
        // Whoever is thrown out makes room for those who wait.
        while self.look(now) {
            self.admit(now);
        }
        self.set = next_set(&self.views, self.set);
        if share(&self.views, self.set, self.budget, &mut self.tokens) == 0 {
            self.gauge();
            return Advance::Idle(self.next_event(now));
        }
        self.step();
        self.gauge();
        Advance::Stepped
    }

    /// What was said at the desk.
    fn hear(&mut self, now: Duration) {
        if self.shared.is_news.swap(false, Ordering::AcqRel) {
            let mut state = self.shared.lock();
            self.phase = state.phase;
            let movement = state.movement.take();
            drop(state);
            if let Some(movement) = movement {
                self.place(movement);
            }
        }
        let is_over = match self.phase {
            Phase::Serving => return,
            Phase::Draining(until) => until <= now,
            Phase::Stopped | Phase::Broken(_) | Phase::Gone => true,
        };
        self.dismiss_waiting();
        self.resting.clear(&mut self.steps);
        if is_over {
            (0..self.runs.len()).rev().for_each(|i| self.end(i, Err(Failure::Draining), now));
        }
    }

    /// Moves what stands on a card.
    fn place(&mut self, Move { device, bytes, done }: Move) {
        let placed = self.steps.place(device, &bytes);
        self.tell_placed();
        // Who asked may have gone.
        let _ = done.send(placed);
    }

    /// Lets the desk know what stands on a card.
    fn tell_placed(&mut self) {
        let placed = self.steps.placed().cloned();
        self.is_placed = placed.is_some();
        self.shared.lock().placed = placed;
    }

    /// Sends away all who wait.
    fn dismiss_waiting(&mut self) {
        let phase = self.phase;
        let failure = |_| match phase {
            Phase::Broken(error) => Failure::Step(error),
            _ => Failure::Draining,
        };
        self.leave_queue(|state| state.waiting.dismissed(), failure);
    }

    fn leave_queue(
        &self,
        mut next: impl FnMut(&mut State) -> Option<(Wish, Job)>,
        failure: impl Fn(Duration) -> Failure,
    ) {
        while self.shared.cells.waiting.load(Ordering::Relaxed) > 0 {
            let mut state = self.shared.lock();
            let Some((wish, mut job)) = next(&mut state) else { return };
            set(&self.shared.cells.waiting, state.waiting.len());
            drop(state);
            let waited = self.shared.clock.now().saturating_sub(wish.arrived);
            job.ended.timings.queue = waited;
            add(&self.shared.cells.failed, 1);
            job.end(Err(failure(waited)));
        }
    }

    /// Ends all who have gone or are too late.
    fn sweep(&mut self, now: Duration) {
        for i in (0..self.runs.len()).rev() {
            let run = &self.runs[i];
            let is_late = run.wish.deadline.is_some_and(|deadline| deadline <= now);
            if run.job.writer.is_dropped() {
                let run = self.close(i, true);
                add(&self.shared.cells.cancelled, 1);
                drop(run);
            } else if is_late {
                let state = if run.first_result.is_some() {
                    "in the middle of the reply"
                } else {
                    "while the prompt was read"
                };
                let waited = now.saturating_sub(run.wish.arrived);
                self.end(i, Err(Failure::Deadline { waited, state }), now);
            }
        }
        let deadline = |state: &mut State| state.waiting.expired(now);
        let state = "while it waited for a place";
        self.leave_queue(deadline, |waited| Failure::Deadline { waited, state });
    }

    /// Gives free sequences to who waits.
    fn admit(&mut self, now: Duration) {
        while self.phase == Phase::Serving
            && self.runs.len() < self.runs.capacity()
            && self.shared.cells.waiting.load(Ordering::Relaxed) > 0
        {
            let mut state = self.shared.lock();
            let mut opened = None;
            let taken = state.waiting.take(|wish, job, is_claimed| {
                // Nobody leaves for whoever has to wait for another's adapter.
                let has_room = |adapter| !is_claimed && self.steps.has_room_for(adapter);
                if !job.adapter.as_ref().is_none_or(has_room) {
                    return Fit::NoAdapterYet;
                }
                opened = self.resting.begin(&mut self.steps, wish.whose(), job.wanted(), wish.positions);
                if let (Some(sequence), Some(adapter)) = (opened, &job.adapter) {
                    self.steps.attach(sequence, adapter);
                }
                if opened.is_some() { Fit::Now } else { Fit::NotYet }
            });
            set(&self.shared.cells.waiting, state.waiting.len());
            drop(state);
            let (Some((wish, job)), Some(sequence)) = (taken, opened) else { return };
            self.seat(wish, job, sequence, now);
        }
    }

    /// Lets a request begin once its adapter is there, which is read now if it was not.
    fn seat(&mut self, wish: Wish, mut job: Job, sequence: usize, now: Duration) {
        let has_adapter = job.adapter.is_some();
        match self.steps.seat(sequence) {
            Ok(()) => self.begin(wish, job, sequence, now),
            Err(error) => {
                self.steps.close(sequence);
                job.ended.timings.queue = now.saturating_sub(wish.arrived);
                add(&self.shared.cells.failed, 1);
                job.end(Err(Failure::Adapter(error)));
            }
        }
        if has_adapter {
            self.tell_adapters();
        }
    }

    /// Lets the desk know what stands beside the model.
    fn tell_adapters(&self) {
        let adapters = self.steps.adapters();
        self.shared.lock().adapters = adapters;
    }

    fn begin(&mut self, wish: Wish, mut job: Job, sequence: usize, now: Duration) {
        // What a sequence brings along is kept as far as it is of use.
        let reusable = job.work().reusable();
        if self.steps.length(sequence) > reusable {
            self.steps.rewind(sequence, reusable);
        }
        let reused = self.steps.length(sequence);
        let queue = now.saturating_sub(wish.arrived);
        job.ended.reused_tokens = reused;
        job.ended.timings.queue = queue;
        job.writer.begin(Begun { queue, reused_tokens: reused });
        let cells = &self.shared.cells;
        add(&cells.admitted, 1);
        add(&cells.reused_tokens, reused as u64);
        add_time(&cells.queue_ns, queue);
        let (first_result, stalled, paused, outcome) = (None, None, None, None);
        self.runs.push(Run { wish, job, sequence, admitted: now, first_result, stalled, paused, outcome });
    }

    /// How far everybody is; ends those whose readers are too slow, and says whether there were any.
    fn look(&mut self, now: Duration) -> bool {
        let before = self.runs.len();
        for i in (0..self.runs.len()).rev() {
            let run = &self.runs[i];
            let (sequence, length) = (run.sequence, run.job.wanted().len());
            if self.steps.must_restart(sequence, length) {
                self.steps.rewind(sequence, 0);
            }
            let announced = self.steps.announce(sequence, length).err().map(Failure::Step);
            if let Some(failure) = announced.or_else(|| self.stall(i, now)) {
                self.end(i, Err(failure), now);
            }
        }
        self.views.clear();
        for run in &self.runs {
            let unread = run.job.wanted().len() - self.steps.length(run.sequence);
            let (is_replying, is_paused) = (run.first_result.is_some(), run.stalled.is_some());
            let set = self.steps.set_of(run.sequence);
            self.views.push(View { unread, is_replying, is_paused, set });
        }
        self.tokens.clear();
        self.tokens.resize(self.runs.len(), 0);
        self.runs.len() < before
    }

    /// Notes whether a stream is paused; says when that has lasted too long.
    fn stall(&mut self, i: usize, now: Duration) -> Option<Failure> {
        let run = &mut self.runs[i];
        let Flow::Paused { tokens, taken } = run.job.writer.flow() else {
            run.stalled = None;
            let paused = run.paused.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
            run.job.ended.timings.paused += paused;
            return None;
        };
        run.paused.get_or_insert(now);
        match run.stalled {
            Some((since, before)) if before == taken => {
                let waited = now.saturating_sub(since);
                (waited >= self.shared.options.slow_reader).then_some(Failure::SlowReader { tokens, waited })
            }
            _ => {
                run.stalled = Some((now, taken));
                None
            }
        }
    }

    /// When something is to be done although nobody rings.
    fn next_event(&self, now: Duration) -> Option<Duration> {
        let stalled = |run: &Run| Some(run.stalled?.0.saturating_add(self.shared.options.slow_reader));
        let runs = self.runs.iter().flat_map(|run| [run.wish.deadline, stalled(run)]);
        let drain = match self.phase {
            Phase::Draining(until) if !self.runs.is_empty() => Some(until),
            _ => None,
        };
        let waiting = self.shared.lock().waiting.next_deadline();
        let next = runs.chain([drain, waiting]).flatten().min();
        next.map(|next| next.max(now))
    }

    fn step(&mut self) {
        let begun = self.shared.clock.now();
        if let Err(error) = self.run_engine() {
            self.fail(error, begun);
            return;
        }
        self.take_rows();
        let now = self.shared.clock.now();
        let chosen = self.choose(now);
        // Rows of a request may have met a card that was lost.
        if self.is_placed && self.steps.placed().is_none() {
            self.tell_placed();
        }
        let now = self.shared.clock.now();
        add_time(&self.shared.cells.busy_ns, now.saturating_sub(begun));
        for i in (0..self.runs.len()).rev() {
            if let Some(outcome) = self.runs[i].outcome.take() {
                self.end(i, outcome, now);
            }
        }
        if let Err(error) = chosen {
            self.fail(error, now);
        }
    }

    fn run_engine(&mut self) -> Result<(), StepError> {
        let mut chunks = [Chunk { sequence: 0, tokens: &[] }; SEQUENCES_MAX];
        let (mut count, mut read) = (0, 0);
        for (run, &tokens) in self.runs.iter().zip(&self.tokens).filter(|(_, tokens)| **tokens > 0) {
            let length = self.steps.length(run.sequence);
            let tokens = &run.job.wanted()[length..length + tokens];
            chunks[count] = Chunk { sequence: run.sequence, tokens };
            (count, read) = (count + 1, read + tokens.len());
        }
        self.steps.step(&chunks[..count])?;
        let cells = &self.shared.cells;
        add(&cells.steps, 1);
        add(&cells.batch_sequences, count as u64);
        add(&cells.read_tokens, read as u64);
        Ok(())
    }

    /// The engine has failed: so has everybody in it. Where its weights are gone, so has everybody after them.
    fn fail(&mut self, error: StepError, now: Duration) {
        // First, so that whoever hears of the end finds it so.
        if let StepError::Card(fault) = error {
            tracing::error!(%fault, "the card is lost: the processor computes");
            self.resting.drop_lost(&mut self.steps);
            self.tell_placed();
        }
        if error == StepError::Fault {
            self.phase = Phase::Broken(error);
            let mut state = self.shared.lock();
            // Who was told to stop stops.
            if state.phase != Phase::Stopped {
                state.phase = self.phase;
            }
        }
        (0..self.runs.len()).rev().for_each(|i| self.end(i, Err(Failure::Step(error)), now));
        if error == StepError::Fault {
            self.dismiss_waiting();
        }
    }

    /// Hands the step's rows to those who need them all, and notes the rows of replies that go on.
    fn take_rows(&mut self) {
        self.owners.clear();
        let mut first_row = 0;
        for (i, (run, &tokens)) in self.runs.iter_mut().zip(&self.tokens).enumerate() {
            if tokens == 0 {
                continue;
            }
            let length = self.steps.length(run.sequence);
            let is_read = length == run.job.wanted().len();
            match run.job.work() {
                Work::Generate(_) if is_read => self.owners.push(i),
                Work::Generate(_) => {}
                work => {
                    let rows = (first_row, tokens);
                    let taken = work.take_rows(&mut self.steps, rows, length - tokens, &mut self.rows);
                    if is_read || taken.is_err() {
                        run.outcome = Some(taken);
                    }
                }
            }
            first_row += tokens;
        }
    }

    /// Chooses a token for every reply whose last row has come.
    fn choose(&mut self, now: Duration) -> Result<(), StepError> {
        let limits = self.steps.limits();
        for owners in self.owners.chunks(limits.logits_rows) {
            self.rows.clear();
            // A reply's last row stands before the next one's first.
            let last_row = |&owner: &usize| self.tokens[..=owner].iter().sum::<usize>() - 1;
            self.rows.extend(owners.iter().map(last_row));
            let logits = self.steps.logits(&self.rows)?;
            for (&owner, logits) in owners.iter().zip(logits.chunks_exact_mut(limits.vocab)) {
                let run = &mut self.runs[owner];
                run.choose(logits, now);
                add(&self.shared.cells.new_tokens, 1);
            }
        }
        for run in self.runs.iter_mut().filter(|run| run.first_result.is_none()) {
            let has_ended = run.outcome.is_some();
            let has_token = matches!(run.job.work(), Work::Generate(turn) if !turn.ids().is_empty());
            if has_ended || has_token {
                run.first_result = Some(now);
                let prefill = now.saturating_sub(run.admitted);
                run.job.ended.timings.prefill = prefill;
                add(&self.shared.cells.first_results, 1);
                add_time(&self.shared.cells.prefill_ns, prefill);
            }
        }
        Ok(())
    }

    /// Ends a request.
    fn end(&mut self, i: usize, outcome: Result<(), Failure>, now: Duration) {
        let is_sound = !matches!(outcome, Err(Failure::Step(_) | Failure::Generate(_) | Failure::Score(_)));
        let mut run = self.close(i, is_sound);
        let cells = &self.shared.cells;
        match &outcome {
            Ok(()) => {
                add(&cells.finished, 1);
                average(&cells.service_ns, now.saturating_sub(run.admitted));
            }
            Err(_) => add(&cells.failed, 1),
        }
        let since = run.first_result.unwrap_or(now);
        run.job.ended.timings.decode = now.saturating_sub(since);
        run.job.end(outcome);
    }

    /// Frees the sequence, or lets it rest where what it holds can be of use.
    fn close(&mut self, i: usize, is_sound: bool) -> Run {
        let run = self.runs.remove(i);
        let length = self.steps.length(run.sequence);
        let can_rest = is_sound && length > 0 && self.phase == Phase::Serving;
        match run.wish.whose().filter(|_| can_rest) {
            Some(whose) => {
                self.resting.rest(&mut self.steps, run.sequence, whose, &run.job.wanted()[..length]);
            }
            None => self.steps.close(run.sequence),
        }
        if run.job.adapter.is_some() {
            self.tell_adapters();
        }
        // Who hears of the end finds it in the figures.
        self.gauge();
        run
    }

    fn gauge(&self) {
        let cells = &self.shared.cells;
        set(&cells.running, self.runs.len());
        set(&cells.paused, self.runs.iter().filter(|run| run.stalled.is_some()).count());
        set(&cells.resting, self.resting.count());
        set(&cells.free_positions, self.steps.free_positions() + self.steps.resting_positions());
    }
}

impl Run {
    fn choose(&mut self, logits: &mut [f32], now: Duration) {
        let Job { ended, writer, .. } = &mut self.job;
        let Some(Work::Generate(turn)) = &mut ended.work else { return };
        self.outcome = match turn.choose(logits) {
            Ok(token) => {
                writer.push(&token, now);
                token.finish.map(|_| Ok(()))
            }
            Err(error) => Some(Err(Failure::Generate(error))),
        };
    }
}

impl<S: Steps> Drop for Batch<S> {
    /// However it ends, nobody is left without an answer.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.phase != Phase::Stopped {
            state.phase = Phase::Gone;
        }
        (state.movement, state.placed) = (None, None);
        state.adapters.clear();
        drop(state);
        self.leave_queue(|state| state.waiting.dismissed(), |_| Failure::Gone);
        set(&self.shared.cells.running, 0);
        set(&self.shared.cells.resting, 0);
        set(&self.shared.cells.paused, 0);
    }
}
