//! Simulations: an engine that computes nothing, a clock that stands still, and readers of every kind.
#![allow(clippy::unwrap_used)] // A failure is a failed test.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bantam_model::embedding::Pooling;
use bantam_model::engine::StepError;
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags};
use bantam_model::turn::{Limits, Turn};

use super::paced::{Pace, Paced, Virtual, next_token, summed};
use super::*;

mod reuse;

const STEP: Duration = Duration::from_micros(500);
const TOKEN: Duration = Duration::from_micros(100);

pub(super) const LIMITS: StepLimits = StepLimits {
    chunk: 64,
    context: 256,
    positions: 1024,
    vocab: 32,
    sequences: 8,
    logits_rows: 5,
    hidden: 4,
};

/// Numbers that look random and are the same in every run.
pub(super) struct Noise(pub(super) u64);

impl Noise {
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    pub(super) fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(LIMITS.vocab) as u32).collect()
    }
}

fn turn(prompt: &[u32], new_tokens: usize) -> Turn {
    let flags = GenerationFlags { temperature: Some(0.0), ignore_eos: true, ..GenerationFlags::default() };
    let mut settings = GenerationDefaults::default().settings(&flags, EosSources::default()).unwrap();
    // No flag may say 0; the end of a model's `max_length` may.
    settings.max_new_tokens = new_tokens;
    let limits = Limits { context: LIMITS.context, vocab: LIMITS.vocab };
    Turn::new(limits, None, settings, prompt, None).unwrap()
}

fn request(client: u64, work: Work) -> Request {
    Request { client: ClientId(client), work, adapter: None, timeout: None, reuse: Some(Reuse::default()) }
}

fn reply(client: u64, prompt: usize, new_tokens: usize) -> Request {
    request(client, Work::Generate(Box::new(turn(&vec![1; prompt], new_tokens))))
}

/// What comes without waiting.
fn poll(answer: &mut Answer) -> Option<Event> {
    match answer.poll_event(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(event) => event,
        Poll::Pending => None,
    }
}

fn outcome(event: Option<Event>) -> Result<Ended, String> {
    match event {
        Some(Event::Ended(ended)) => match ended.outcome {
            Ok(()) => Ok(*ended),
            Err(failure) => Err(failure.to_string()),
        },
        other => panic!("expected an end, found {other:?}"),
    }
}

fn clocked(limits: StepLimits, options: Options) -> (Desk, Batch<Paced>, Arc<Virtual>) {
    let clock = Arc::new(Virtual::default());
    let (desk, batch) =
        pair(Paced::new(limits, Pace::Simulated(clock.clone(), STEP, TOKEN)), options, clock.clone());
    (desk, batch, clock)
}

fn one_at_a_time() -> (Desk, Batch<Paced>, Arc<Virtual>) {
    clocked(StepLimits { sequences: 1, ..LIMITS }, Options::default())
}

/// The token that an engine of nothing gives next.
pub(super) fn following(tokens: &[u32]) -> u32 {
    next_token(tokens.iter().fold(0, |sum, &token| summed(sum, token)), LIMITS.vocab)
}

/// How a reader behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    /// Takes everything at once.
    Prompt,
    /// Takes a piece now and then.
    Slow,
    /// Takes nothing.
    Stuck,
    /// Goes away after so many looks.
    Leaves(usize),
}

struct Client {
    id: ClientId,
    answer: Answer,
    manner: Manner,
    prompt: Vec<u32>,
    new_tokens: usize,
    has_timeout: bool,
    found: Vec<u32>,
    looks: usize,
}

impl Client {
    /// Checks the next token against what a stream of its own would be.
    fn take(&mut self, piece: &Piece) {
        assert_eq!(
            piece.id,
            following(&[&self.prompt[..], &self.found].concat()),
            "a token of another stream"
        );
        self.found.push(piece.id);
    }

    fn finish(&self, ended: &mut Ended) {
        match &ended.outcome {
            Ok(()) => self.check(ended.work.as_mut().unwrap()),
            Err(Failure::Deadline { .. }) => assert!(self.has_timeout),
            Err(Failure::SlowReader { .. }) => assert_ne!(self.manner, Manner::Prompt),
            Err(other) => panic!("{other}"),
        }
    }

    fn check(&self, work: &mut Work) {
        match work {
            Work::Generate(turn) => {
                assert_eq!((turn.ids(), self.found.len()), (&self.found[..], self.new_tokens));
            }
            Work::Score(score) => {
                let found = score.log_probabilities();
                assert_eq!(found.len(), self.prompt.len() - 1);
                for (i, (&value, pair)) in found.iter().zip(self.prompt.windows(2)).enumerate() {
                    let is_next = following(&self.prompt[..=i]) == pair[1];
                    assert_eq!(value > -1.0, is_next, "the row of another token");
                }
            }
            Work::Embed(embed) => {
                let mean = (self.prompt.len() - 1) as f32 / 2.0;
                let vector = embed.vector().unwrap();
                assert_eq!(vector[0], mean);
                let sum: u32 = self.prompt.iter().sum();
                assert!((vector[1] * self.prompt.len() as f32 - sum as f32).abs() < 0.1);
            }
        }
    }
}

/// A desk, an engine, and everybody who reads.
struct Simulation {
    desk: Desk,
    batch: Batch<Paced>,
    clock: Arc<Virtual>,
    noise: Noise,
    clients: Vec<Client>,
    /// What was said lately, and to whom.
    said: Vec<(ClientId, Vec<u32>)>,
    refused: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let options = Options { queue: 24, queue_per_client: 12, prefill_chunk: 16, ..Options::default() };
        let (desk, batch, clock) = clocked(LIMITS, options);
        Simulation {
            desk,
            batch,
            clock,
            noise: Noise(seed),
            clients: Vec::new(),
            said: Vec::new(),
            refused: 0,
        }
    }

    fn arrive(&mut self) {
        let noise = &mut self.noise;
        let long = noise.below(20) == 0;
        let count = 1 + noise.below(if long { 200 } else { 24 });
        let mut prompt = noise.tokens(count);
        // One client asks for as much as all others.
        let mut client = ClientId(noise.below(8).saturating_sub(4) as u64);
        if let Some((whose, said)) = self.said.get(noise.below(64)) {
            // A conversation goes on, or from somewhere in the middle; now and then another client says the same.
            let kept = if noise.below(3) == 0 { noise.below(said.len()) } else { said.len() };
            prompt = [&said[..kept.min(200 - count.min(200))], &prompt].concat();
            client = if noise.below(8) == 0 { client } else { *whose };
        }
        let count = prompt.len();
        let kind = noise.below(10);
        let most = if noise.below(8) == 0 { 100 } else { 12 };
        let new_tokens = if kind < 8 { noise.below(most) } else { 0 };
        let new_tokens = new_tokens.min(LIMITS.context + 1 - count);
        let work = match kind {
            8 if count > 1 => Work::Score(Score::new(&LIMITS, &prompt, 1).unwrap()),
            9 => Work::Embed(Embed::new(&LIMITS, prompt.clone(), Pooling::Mean).unwrap()),
            _ => Work::Generate(Box::new(turn(&prompt, new_tokens))),
        };
        let manner = match noise.below(16) {
            0 => Manner::Slow,
            1 => Manner::Stuck,
            2 | 3 => Manner::Leaves(noise.below(30)),
            _ => Manner::Prompt,
        };
        let has_timeout = noise.below(10) == 0;
        let timeout = has_timeout.then(|| Duration::from_micros(noise.below(200_000) as u64));
        match self.desk.submit(Request {
            client,
            work,
            adapter: None,
            timeout,
            reuse: Some(Reuse::default()),
        }) {
            Ok(answer) => {
                let (found, looks) = (Vec::new(), 0);
                let id = client;
                self.clients.push(Client {
                    id,
                    answer,
                    manner,
                    prompt,
                    new_tokens,
                    has_timeout,
                    found,
                    looks,
                });
            }
            Err(Refusal::QueueFull { waiting: 24, bound: 24, .. }) => self.refused += 1,
            Err(Refusal::ClientFull { waiting: 12, bound: 12, .. }) => self.refused += 1,
            Err(other) => panic!("{other}"),
        }
    }

    /// Everybody looks. `has_stepped`: a reply that had begun must have gone on.
    fn read(&mut self, has_stepped: bool, is_closing: bool) {
        let noise = &mut self.noise;
        self.clients.retain_mut(|client| {
            client.looks += 1;
            let most = match client.manner {
                Manner::Leaves(looks) if client.looks > looks => return false,
                Manner::Slow if noise.below(6) == 0 => 1,
                Manner::Slow | Manner::Stuck if !is_closing => 0,
                _ => usize::MAX,
            };
            let before = client.found.len();
            for _ in 0..most {
                match poll(&mut client.answer) {
                    None => break,
                    Some(Event::Piece(piece)) => client.take(&piece),
                    Some(Event::Ended(mut ended)) => {
                        client.finish(&mut ended);
                        self.said.truncate(31);
                        self.said.insert(0, (client.id, [&client.prompt[..], &client.found].concat()));
                        assert!(poll(&mut client.answer).is_none(), "answered twice");
                        return false;
                    }
                }
            }
            let is_running = before > 0 && client.manner == Manner::Prompt;
            assert!(
                !is_running || !has_stepped || client.found.len() == before + 1,
                "a step without a token"
            );
            true
        });
    }

    fn advance(&mut self, is_closing: bool) {
        let begun = self.clock.now();
        match self.batch.advance() {
            Advance::Stepped => {
                let most = 16 + LIMITS.sequences as u32;
                let took = self.clock.now() - begun;
                self.read(true, is_closing);
                // Who has two tokens now waited for the second.
                let is_awaited = self.clients.iter().any(|c| c.manner == Manner::Prompt && c.found.len() > 1);
                assert!(!is_awaited || took <= STEP + TOKEN * most, "a chunk of {took:?}");
            }
            Advance::Idle(until) => {
                self.clock.advance(until.map_or(STEP, |until| until.saturating_sub(begun)));
                self.read(false, is_closing);
                // Nobody who could go on is left behind.
                assert!(!self.clients.iter().any(|c| c.manner == Manner::Prompt && !c.found.is_empty()));
            }
            Advance::Over => panic!("nobody said so"),
        }
        let figures = self.desk.figures();
        assert!(figures.running <= LIMITS.sequences as u64 && figures.waiting <= 24);
    }

    fn run(mut self, requests: usize) -> Figures {
        let mut arrived = 0;
        while arrived < requests {
            // Now and then a storm, now and then nobody.
            let storm = self.noise.below(128) == 0;
            let count = if storm { 20 } else { self.noise.below(8) / 7 };
            (0..count).for_each(|_| self.arrive());
            arrived += count;
            self.advance(false);
        }
        while !self.clients.is_empty() || !self.desk.is_idle() {
            self.advance(true);
        }
        self.batch.advance();
        let figures = self.desk.figures();
        assert_eq!((figures.running, figures.waiting, figures.paused), (0, 0, 0));
        assert_eq!(figures.free_positions, LIMITS.positions as u64, "positions are lost");
        assert_eq!(figures.accepted, figures.finished + figures.cancelled + figures.failed);
        assert_eq!((figures.accepted + figures.refused, figures.refused), (arrived as u64, self.refused));
        figures
    }
}

#[test]
fn a_hundred_thousand_requests_are_each_answered_once() {
    let mut accepted = 0;
    for seed in 0..5 {
        println!("seed {seed}");
        let figures = Simulation::new(seed).run(25_000);
        println!("{figures:?}");
        assert!(figures.reused_tokens > 15_000, "conversations go on");
        assert!(figures.finished > 15_000 && figures.cancelled > 500 && figures.failed > 100);
        assert!(figures.refused > 100 && 2 * figures.batch_sequences > 3 * figures.steps);
        accepted += figures.accepted;
    }
    assert!(accepted > 100_000, "{accepted}");
}

#[test]
fn a_cancelled_stream_frees_its_place_before_the_next_step() {
    let (desk, mut batch, _) = one_at_a_time();
    let mut first = desk.submit(reply(1, 3, 50)).unwrap();
    let mut second = desk.submit(reply(2, 3, 2)).unwrap();
    assert_eq!((first.position(), second.position()), (0, 1));
    (0..5).for_each(|_| assert_eq!(batch.advance(), Advance::Stepped));
    assert!(matches!(poll(&mut first), Some(Event::Piece(_))) && poll(&mut second).is_none());
    drop(first);
    assert_eq!(batch.advance(), Advance::Stepped);
    assert!(matches!(poll(&mut second), Some(Event::Piece(_))));
    batch.advance();
    assert!(matches!(poll(&mut second), Some(Event::Piece(_))));
    let ended = outcome(poll(&mut second)).unwrap();
    assert_eq!((ended.timings.queue, ended.timings.decode), ((STEP + TOKEN) * 5 + TOKEN * 2, STEP + TOKEN));
    assert_eq!((desk.figures().cancelled, desk.figures().steps), (1, 7));
}

#[test]
fn who_waits_can_leave_and_be_too_late() {
    let (desk, mut batch, clock) = one_at_a_time();
    let _runs = desk.submit(reply(1, 3, 50)).unwrap();
    let leaves = desk.submit(reply(1, 3, 50)).unwrap();
    let timeout = Some(Duration::from_millis(10));
    let mut late = desk.submit(Request { timeout, ..reply(1, 3, 50) }).unwrap();
    batch.advance();
    drop(leaves);
    assert_eq!(desk.figures().waiting, 1);
    clock.advance(Duration::from_millis(10));
    batch.advance();
    let failure = outcome(poll(&mut late)).unwrap_err();
    assert!(failure.contains("deadline") && failure.contains("waited for a place"), "{failure}");
    assert_eq!((desk.figures().cancelled, desk.figures().failed), (1, 1));
}

#[test]
fn a_deadline_is_met_within_one_token() {
    let (desk, mut batch, clock) = one_at_a_time();
    let timeout = Some(Duration::from_millis(10));
    let mut answer = desk.submit(Request { timeout, ..reply(1, 3, 200) }).unwrap();
    while desk.figures().failed == 0 {
        batch.advance();
    }
    assert!(clock.now() < Duration::from_millis(10) + 2 * (STEP + TOKEN));
    let mut pieces = 0;
    let end = loop {
        match poll(&mut answer) {
            Some(Event::Piece(_)) => pieces += 1,
            other => break outcome(other).unwrap_err(),
        }
    };
    assert!(pieces >= 15 && end.contains("in the middle"), "{pieces} pieces, then: {end}");
}

#[test]
fn a_reader_that_takes_nothing_pauses_alone_and_is_given_up() {
    let (desk, mut batch, clock) = clocked(LIMITS, Options::default());
    let mut stuck = desk.submit(reply(1, 3, 200)).unwrap();
    let mut reads = desk.submit(reply(2, 3, 200)).unwrap();
    for _ in 0..200 {
        assert_eq!(batch.advance(), Advance::Stepped);
        assert!(matches!(poll(&mut reads), Some(Event::Piece(_))));
    }
    outcome(poll(&mut reads)).unwrap();
    assert_eq!((desk.figures().new_tokens, desk.figures().paused), (264, 1), "64 wait");
    let Advance::Idle(Some(until)) = batch.advance() else { panic!("something to do") };
    clock.advance(until - clock.now());
    assert_eq!(batch.advance(), Advance::Idle(None));
    assert_eq!((desk.figures().failed, desk.figures().free_positions), (1, LIMITS.positions as u64));
    for _ in 0..64 {
        assert!(matches!(poll(&mut stuck), Some(Event::Piece(_))));
    }
    let end = outcome(poll(&mut stuck)).unwrap_err();
    assert!(end.contains("64 tokens waited for 30.0s"), "{end}");
}

#[test]
fn who_waits_gets_the_place_of_a_reader_that_is_given_up() {
    let (desk, mut batch, clock) = one_at_a_time();
    let _stuck = desk.submit(reply(1, 3, 200)).unwrap();
    let mut waits = desk.submit(reply(2, 3, 5)).unwrap();
    while batch.advance() == Advance::Stepped {}
    let Advance::Idle(Some(until)) = batch.advance() else { panic!("something to do") };
    clock.advance(until - clock.now());
    // Nobody rings: the step in which the place is freed is the last one that would see who waits for it.
    assert_eq!(batch.advance(), Advance::Stepped);
    assert_eq!((desk.figures().failed, desk.figures().waiting), (1, 0));
    assert!(matches!(poll(&mut waits), Some(Event::Piece(_))));
}

#[test]
fn a_slow_reader_goes_on_where_it_paused() {
    let (desk, mut batch, clock) = one_at_a_time();
    let mut slow = desk.submit(reply(1, 3, 200)).unwrap();
    while batch.advance() == Advance::Stepped {}
    // Slower than the limit in all, but never without taking one.
    for taken in 1..=32 {
        clock.advance(Duration::from_secs(20));
        assert!(matches!(poll(&mut slow), Some(Event::Piece(_))));
        assert_eq!(batch.advance() == Advance::Stepped, taken == 32, "half of the queue is empty at 32");
    }
    let mut pieces = 32;
    loop {
        match poll(&mut slow) {
            Some(Event::Piece(_)) => pieces += 1,
            Some(other) => break drop(outcome(Some(other)).unwrap()),
            None => assert_eq!(batch.advance(), Advance::Stepped),
        }
    }
    assert_eq!(pieces, 200);
}

#[test]
fn a_long_prompt_never_stalls_a_reply_for_more_than_a_chunk() {
    let options = Options { prefill_chunk: 16, ..Options::default() };
    let (desk, mut batch, clock) = clocked(LIMITS, options);
    let mut reply_first = desk.submit(reply(1, 3, 100)).unwrap();
    batch.advance();
    poll(&mut reply_first).unwrap();
    let mut long = desk.submit(reply(2, 200, 4)).unwrap();
    for _ in 0..200_usize.div_ceil(16) {
        let begun = clock.now();
        assert!(poll(&mut long).is_none());
        batch.advance();
        assert!(clock.now() - begun <= STEP + TOKEN * 17);
        assert!(matches!(poll(&mut reply_first), Some(Event::Piece(_))));
    }
    assert!(matches!(poll(&mut long), Some(Event::Piece(_))));
}

#[test]
fn what_never_fits_is_refused_with_numbers() {
    let (desk, _batch, _) = clocked(StepLimits { positions: 100, ..LIMITS }, Options::default());
    let refused = desk.submit(reply(1, 90, 12)).err().unwrap();
    assert_eq!(refused, Refusal::TooLong { asked: 101, most: 100 });
    let answer = desk.submit(reply(1, 90, 11));
    assert!(answer.is_ok());
    assert_eq!((desk.figures().accepted, desk.figures().refused), (1, 1));
}

#[test]
fn a_reply_of_no_tokens_ends_at_once() {
    let (desk, mut batch, _) = one_at_a_time();
    let mut answer = desk.submit(reply(1, 3, 0)).unwrap();
    outcome(poll(&mut answer)).unwrap();
    assert_eq!(batch.advance(), Advance::Idle(None));
}

#[test]
fn a_drain_lets_who_runs_end_within_its_time() {
    let (desk, mut batch, clock) = one_at_a_time();
    let mut runs = desk.submit(reply(1, 3, 200)).unwrap();
    let mut waits = desk.submit(reply(1, 3, 5)).unwrap();
    batch.advance();
    desk.drain(Duration::from_secs(10));
    assert_eq!(desk.submit(reply(1, 3, 5)).err(), Some(Refusal::Draining));
    batch.advance();
    assert!(outcome(poll(&mut waits)).unwrap_err().contains("taken down"));
    assert!(matches!(poll(&mut runs), Some(Event::Piece(_))));
    clock.advance(Duration::from_secs(10));
    assert_eq!(batch.advance(), Advance::Idle(None));
    assert!(matches!(poll(&mut runs), Some(Event::Piece(_))));
    assert!(outcome(poll(&mut runs)).unwrap_err().contains("taken down"));
    desk.stop();
    assert_eq!(batch.advance(), Advance::Over);
}

#[test]
fn lost_weights_fail_everybody_and_the_desk_says_so() {
    let paced = Paced::new(StepLimits { sequences: 2, ..LIMITS }, Pace::Instant).failing_at(3);
    let (desk, mut batch) = pair(paced, Options::default(), Arc::new(Virtual::default()));
    let answers: Vec<Answer> = (0..4).map(|_| desk.submit(reply(1, 3, 20)).unwrap()).collect();
    while batch.advance() == Advance::Stepped && desk.figures().failed == 0 {}
    for (i, mut answer) in answers.into_iter().enumerate() {
        let pieces = if i < 2 { 2 } else { 0 };
        (0..pieces).for_each(|_| assert!(matches!(poll(&mut answer), Some(Event::Piece(_)))));
        assert_eq!(outcome(poll(&mut answer)).unwrap_err(), StepError::Fault.to_string());
    }
    assert_eq!(batch.advance(), Advance::Idle(None));
    assert_eq!(desk.submit(reply(1, 3, 20)).err(), Some(Refusal::Broken(StepError::Fault)));
    desk.stop();
    assert_eq!(batch.advance(), Advance::Over);
}

#[test]
fn a_batch_that_vanishes_leaves_nobody_waiting() {
    let (desk, mut batch, _) = one_at_a_time();
    let answers = [desk.submit(reply(1, 3, 0)), desk.submit(reply(1, 3, 20)), desk.submit(reply(1, 3, 20))];
    batch.advance();
    drop(batch);
    let [none, runs, waits] = answers.map(Result::unwrap);
    for (mut answer, pieces) in [(runs, 1), (waits, 0)] {
        (0..pieces).for_each(|_| assert!(matches!(poll(&mut answer), Some(Event::Piece(_)))));
        assert!(outcome(poll(&mut answer)).unwrap_err().contains("thread has ended"));
        assert!(poll(&mut answer).is_none());
    }
    drop(none);
    assert_eq!(desk.submit(reply(1, 3, 5)).err(), Some(Refusal::Gone));
    assert!(desk.is_broken());
}

#[test]
fn a_thread_serves_tasks_sleeps_and_ends() {
    let worker = Worker::start("paced", Paced::new(LIMITS, Pace::Instant), Options::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        for _ in 0..20 {
            let tasks: Vec<_> = (0..40_u64).map(|i| tokio::spawn(talk(worker.desk().clone(), i))).collect();
            for task in tasks {
                task.await.unwrap();
            }
        }
    });
    let mut endless = worker.desk().submit(reply(1, 3, 254)).unwrap();
    assert!(worker.end());
    runtime.block_on(async {
        while let Some(event) = endless.next().await {
            if let Event::Ended(ended) = event {
                assert!(ended.outcome.is_ok() || matches!(ended.outcome, Err(Failure::Draining)));
            }
        }
    });
}

/// One request; every fifth leaves early.
async fn talk(desk: Desk, i: u64) {
    let mut answer = desk.submit(reply(i % 7, 1 + i as usize, 100)).unwrap();
    let mut pieces = 0;
    while let Some(event) = answer.next().await {
        match event {
            Event::Piece(_) => pieces += 1,
            Event::Ended(ended) => ended.outcome.unwrap(),
        }
        if i.is_multiple_of(5) && pieces == 10 {
            return;
        }
    }
    assert_eq!(pieces, 100);
}
