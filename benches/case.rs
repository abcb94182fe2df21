//! A case is one computation on one input; its variants are the ways to carry it out. They are timed in turns, so
//! that a machine whose speed drifts treats all alike, and the ceilings take their turn in the same rounds.

use std::time::{Duration, Instant};

use crate::ceilings::{Ceilings, Unit};

/// Computes a whole output.
pub type Run<'a> = Box<dyn FnMut(&mut [f32]) + 'a>;

/// One way to compute a case.
pub struct Variant<'a> {
    /// The last part of the name in the table.
    pub name: String,
    /// What limits it at best.
    pub unit: Unit,
    /// Bytes of weights or cache that one run reads.
    pub bytes: usize,
    /// Computes the whole output.
    pub run: Run<'a>,
}

/// One computation on one input.
pub struct Case<'a> {
    /// `operation/layout/shape`.
    pub name: String,
    /// Multiply-adds of one run.
    pub macs: u64,
    /// Values of the output.
    pub outputs: usize,
    /// The ways to compute it; all give the same output but for rounding.
    pub variants: Vec<Variant<'a>>,
}

/// Words that a full name, `operation/layout/shape/variant`, must hold; none for all.
#[derive(Debug, Default)]
pub struct Filter(pub Vec<String>);

impl Filter {
    /// Whether a variant is wanted.
    pub fn keeps(&self, case: &str, variant: &str) -> bool {
        let name = format!("{case}/{variant}");
        self.0.iter().all(|word| name.contains(word.as_str()))
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// A variant rests once it has run for this long, and for `rounds_least` rounds.
    pub each: Duration,
    /// See `each`. A variant that takes several times `each` in one run is not held to it.
    pub rounds_least: usize,
    /// No variant runs more often.
    pub rounds_most: usize,
}

/// What was measured of a variant.
#[derive(Clone, Debug)]
pub struct Row {
    /// `operation/layout/shape/variant`.
    pub name: String,
    /// Runs that count.
    pub rounds: usize,
    /// Seconds of one run: the median.
    pub median: f64,
    /// The shortest.
    pub least: f64,
    /// Bytes per second where reading limits, else multiply-adds per second.
    pub speed: f64,
    /// What limits it at best.
    pub unit: Unit,
    /// `speed` by the ceiling, measured in the same rounds.
    pub share: f64,
    /// `median` by that of the best variant.
    pub ratio: f64,
    /// Of the output: tells that something was computed, and that variants agree.
    pub checksum: f64,
}

/// Times every variant of a case, in turns.
pub fn measure(case: &mut Case, ceilings: &Ceilings, effort: Effort) -> Vec<Row> {
    let mut out = vec![0.0f32; case.outputs];
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); case.variants.len()];
    let mut sums = vec![0.0; case.variants.len()];
    let mut best: Vec<(Unit, Vec<f64>)> = Vec::new();
    for variant in &case.variants {
        if !best.iter().any(|(unit, _)| *unit == variant.unit) {
            best.push((variant.unit, Vec::new()));
        }
    }
    for round in 0.. {
        if times.iter().all(|times| is_enough(times, effort)) {
            break;
        }
        for turn in 0..case.variants.len() {
            // Each round begins with another variant: the first finds the input out of the caches.
            let i = (round + turn) % case.variants.len();
            if is_enough(&times[i], effort) {
                continue;
            }
            let start = Instant::now();
            (case.variants[i].run)(&mut out);
            times[i].push(start.elapsed().as_secs_f64());
            sums[i] = checksum(&out);
        }
        for (unit, speeds) in &mut best {
            speeds.push(ceilings.speed(*unit));
        }
    }
    let times: Vec<Vec<f64>> = times.into_iter().map(counted).collect();
    let medians: Vec<f64> = times.iter().map(|times| middle(times)).collect();
    let fastest = medians.iter().copied().fold(f64::INFINITY, f64::min);
    let rows = case.variants.iter().enumerate().map(|(i, variant)| {
        let amount = match variant.unit {
            Unit::Read => variant.bytes as f64,
            _ => case.macs as f64,
        };
        let ceiling = best.iter().find(|(unit, _)| *unit == variant.unit);
        let ceiling = ceiling.map_or(f64::NAN, |(_, speeds)| middle(speeds));
        Row {
            name: format!("{}/{}", case.name, variant.name),
            rounds: times[i].len(),
            median: medians[i],
            least: times[i].iter().copied().fold(f64::INFINITY, f64::min),
            speed: amount / medians[i],
            unit: variant.unit,
            share: amount / medians[i] / ceiling,
            ratio: medians[i] / fastest,
            checksum: sums[i],
        }
    });
    rows.collect()
}

fn is_enough(times: &[f64], effort: Effort) -> bool {
    let (spent, each) = (times.iter().sum::<f64>(), effort.each.as_secs_f64());
    let long = times.len() > effort.rounds_least && spent >= each;
    // The first run does not count, hence one more; a very slow variant gets what it has.
    long || times.len() > effort.rounds_most || (!times.is_empty() && spent >= 4.0 * each)
}

/// Without the first run, which pays for page faults and sleeping cores; unless it is the only one.
fn counted(mut times: Vec<f64>) -> Vec<f64> {
    if times.len() > 1 {
        times.remove(0);
    }
    times
}

fn middle(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A weighted sum, so that values in each other's places are noticed.
pub fn checksum(out: &[f32]) -> f64 {
    let weight = |i: usize| (i * 37 % 64) as f64 / 32.0 - 1.0;
    out.iter().enumerate().map(|(i, &y)| f64::from(y) * weight(i)).sum()
}
