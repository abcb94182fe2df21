//! What the daemon adds to a token: an engine that computes nothing, behind the real socket, gate, services and
//! scheduler, in turns with a bare server that streams the same messages.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bantam_daemon::scheduler::paced::{Beat, Pace};

use crate::Failed;
use crate::bare::Bare;
use crate::served::{self, Client, Folder, ask, ask_all, request};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    rounds: usize,
    /// Tokens of a reply.
    tokens: u32,
    /// Replies one after the other, where nothing sets the pace.
    replies: usize,
}

pub(crate) const FULL: Effort = Effort { rounds: 15, tokens: 400, replies: 25 };
pub(crate) const QUICK: Effort = Effort { rounds: 3, tokens: 20, replies: 2 };

/// Sets the pace of an engine, busily as one would, and notes when each step was over.
#[derive(Debug)]
struct Metronome {
    began: Instant,
    interval_ns: AtomicU64,
    count: AtomicUsize,
    stamps_ns: Vec<AtomicU64>,
}

impl Metronome {
    fn new(most: u32) -> Self {
        let stamps_ns = (0..most).map(|_| AtomicU64::new(0)).collect();
        let (interval_ns, count) = (AtomicU64::new(0), AtomicUsize::new(0));
        Metronome { began: Instant::now(), interval_ns, count, stamps_ns }
    }

    fn set(&self, interval: Duration) {
        self.interval_ns.store(interval.as_nanos() as u64, Ordering::SeqCst);
        self.count.store(0, Ordering::SeqCst);
    }

    fn stamp(&self, step: usize) -> Instant {
        self.began + Duration::from_nanos(self.stamps_ns[step].load(Ordering::SeqCst))
    }
}

impl Beat for Metronome {
    fn beat(&self) {
        let (begin, interval) = (Instant::now(), self.interval_ns.load(Ordering::Relaxed));
        while (begin.elapsed().as_nanos() as u64) < interval {
            spin_loop();
        }
        let step = self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(stamp) = self.stamps_ns.get(step) {
            stamp.store(self.began.elapsed().as_nanos() as u64, Ordering::SeqCst);
        }
    }
}

/// Microseconds of one side, a value per round.
#[derive(Debug, Default)]
struct Side {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// Median and extremes.
fn spread(values: impl IntoIterator<Item = f64>, digits: usize) -> String {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.digits$} ({least:.digits$} .. {most:.digits$})", quantile(&values, 0.5))
}

fn row(name: &str, bare: &[f64], ours: &[f64]) {
    let ratios = bare.iter().zip(ours).map(|(bare, ours)| ours / bare);
    let (b, o) = (bare.iter().copied(), ours.iter().copied());
    println!("| {name} | {} | {} | {} |", spread(b, 1), spread(o, 1), spread(ratios, 2));
}

struct Bench {
    effort: Effort,
    metronome: Arc<Metronome>,
    is_ready: Arc<AtomicBool>,
    bare: Client,
    ours: Client,
}

impl Bench {
    /// From the end of a step to the client, the first token left out: response headers travel with it.
    async fn latency(&self, client: &Client, interval: Duration, side: &mut Side) -> Result<(), Failed> {
        self.metronome.set(interval);
        let reply = ask(client.clone(), request("", vec![1], self.effort.tokens)).await?;
        let came = reply.tokens.iter().enumerate().skip(1);
        let micros =
            |(step, came): (usize, &Instant)| (*came - self.metronome.stamp(step)).as_secs_f64() * 1e6;
        let mut micros: Vec<f64> = came.map(micros).collect();
        micros.sort_by(f64::total_cmp);
        side.p50.push(quantile(&micros, 0.5));
        side.p99.push(quantile(&micros, 0.99));
        Ok(())
    }

    /// Microseconds per token of all streams together.
    async fn cost(&self, client: &Client, streams: usize) -> Result<f64, Failed> {
        self.metronome.set(Duration::ZERO);
        let (begin, tokens) = (Instant::now(), self.effort.tokens);
        let mut count = 0;
        for _ in 0..self.effort.replies {
            let requests = (0..streams).map(|_| request("", vec![1], tokens)).collect();
            count += ask_all(client, requests).await?.iter().map(|reply| reply.tokens.len()).sum::<usize>();
        }
        Ok(begin.elapsed().as_secs_f64() * 1e6 / count as f64)
    }

    async fn run(&self) -> Result<(), Failed> {
        println!(
            "| microseconds: median (extremes) of {} rounds | bare tonic | bantam | ratio |",
            self.effort.rounds
        );
        println!("|---|---|---|---|");
        for milliseconds in [1, 5] {
            let interval = Duration::from_millis(milliseconds);
            let (mut bare, mut ours) = (Side::default(), Side::default());
            for _ in 0..self.effort.rounds {
                self.latency(&self.bare, interval, &mut bare).await?;
                self.latency(&self.ours, interval, &mut ours).await?;
            }
            row(&format!("a step in {milliseconds} ms, step to client, p50"), &bare.p50, &ours.p50);
            row(&format!("a step in {milliseconds} ms, step to client, p99"), &bare.p99, &ours.p99);
        }
        for streams in [1, 8] {
            let (mut ready, mut bare, mut ours) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.effort.rounds {
                bare.push(self.cost(&self.bare, streams).await?);
                ours.push(self.cost(&self.ours, streams).await?);
                self.is_ready.store(true, Ordering::Relaxed);
                ready.push(self.cost(&self.bare, streams).await?);
                self.is_ready.store(false, Ordering::Relaxed);
            }
            row(&format!("no pause, {streams} at once, per token"), &bare, &ours);
            row(&format!("no pause, {streams} at once, per token; bare: all ready"), &ready, &ours);
        }
        Ok(())
    }
}

pub(crate) fn run(effort: Effort) -> Result<(), Failed> {
    let folder = Folder::new()?;
    let metronome = Arc::new(Metronome::new(effort.tokens));
    let quiet = vec![("log.level".to_owned(), vec!["error".to_owned()])];
    let daemon = served::daemon(&folder, Some(Pace::Beaten(metronome.clone())), quiet)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ours, reply) = runtime.block_on(async {
        let ours = daemon.client().await?;
        let reply = ask(ours.clone(), request("", vec![1], effort.tokens)).await?;
        Ok::<_, Failed>((ours, reply))
    })?;
    let is_ready = Arc::new(AtomicBool::new(false));
    let bare = Bare::new(reply.messages, metronome.clone(), is_ready.clone());
    let server = served::bare(&folder, bare)?;
    runtime.block_on(async {
        let bare = server.client().await?;
        Bench { effort, metronome, is_ready, bare, ours }.run().await
    })
}
