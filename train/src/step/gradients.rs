//! Where gradients are summed up.
//!
//! Those of matrices are made in blocks of rows. In bfloat16 a block is rounded when it is done, and no more than that
//! ever stands in float32: for runs in which one batch makes a step, as their gradients are bfloat16 products anyway.

use std::ops::Range;

use bantam_core::ops::share::{each_part, each_row};
use bantam_model::pool::Threads;

use super::parameters::Target;
use super::streams::{rounded, widened};

/// Numbers that are summed by themselves, whatever the threads are.
const BLOCK: usize = 1 << 16;

#[derive(Debug)]
enum Store {
    Floats(Vec<f32>),
    Halves(Vec<u16>),
}

/// A number for each of all parameters.
#[derive(Debug)]
pub struct Gradients {
    store: Store,
    /// What they are multiplied by when they are read.
    factor: f32,
    /// Of the squares of each block.
    sums: Vec<f64>,
    /// Where parameters begin of which something may be none of a step's, and whether something came there.
    rare: Vec<(usize, bool)>,
}

impl Gradients {
    pub(crate) fn new(count: usize) -> Gradients {
        let sums = vec![0.0; count.div_ceil(BLOCK)];
        Gradients { store: Store::Floats(vec![0.0; count]), factor: 1.0, sums, rare: Vec::new() }
    }

    /// Watches parameters that begin at these places, in ascending order.
    pub(crate) fn watch(&mut self, starts: Vec<usize>) {
        self.rare = starts.into_iter().map(|start| (start, false)).collect();
    }

    pub(crate) fn watches(&self) -> bool {
        !self.rare.is_empty()
    }

    /// Something comes to the parameter that begins there.
    pub(crate) fn reach(&mut self, start: usize) {
        if let Ok(at) = self.rare.binary_search_by_key(&start, |(start, _)| *start) {
            self.rare[at].1 = true;
        }
    }

    /// Whether a parameter is watched, and nothing came there.
    pub(crate) fn is_missed(&self, start: usize) -> bool {
        let found = self.rare.binary_search_by_key(&start, |(start, _)| *start);
        found.is_ok_and(|at| !self.rare[at].1)
    }

    /// Keeps them in bfloat16 from now on.
    pub(crate) fn halve(&mut self) {
        self.store = Store::Halves(vec![0; self.count()]);
    }

    /// Bytes of so many.
    pub(crate) fn bytes(count: usize, are_short: bool) -> usize {
        (if are_short { 2 } else { 4 }) * count + 8 * count.div_ceil(BLOCK)
    }

    fn count(&self) -> usize {
        match &self.store {
            Store::Floats(all) => all.len(),
            Store::Halves(all) => all.len(),
        }
    }

    pub(crate) fn clear(&mut self, pool: &Threads) {
        self.factor = 1.0;
        self.rare.iter_mut().for_each(|(_, is_reached)| *is_reached = false);
        match &mut self.store {
            Store::Floats(all) => each_part(pool, (all, BLOCK), |_, part| part.fill(0.0)),
            Store::Halves(all) => each_part(pool, (all, BLOCK), |_, part| part.fill(0)),
        }
    }

    /// Copies some of them.
    pub fn read(&self, range: Range<usize>, out: &mut [f32]) {
        match &self.store {
            Store::Floats(all) => out.copy_from_slice(&all[range]),
            Store::Halves(all) => out.iter_mut().zip(&all[range]).for_each(|(out, x)| *out = widened(*x)),
        }
        if self.factor != 1.0 {
            out.iter_mut().for_each(|x| *x *= self.factor);
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.count()];
        self.read(0..self.count(), &mut all);
        all
    }

    /// The length of all together.
    pub(crate) fn length(&mut self, pool: &Threads) -> f64 {
        let (count, store) = (self.count(), &self.store);
        each_row(pool, &mut self.sums, 1, 2, |number, sum| {
            let range = number * BLOCK..count.min((number + 1) * BLOCK);
            sum[0] = match store {
                Store::Floats(all) => squares(&all[range], |x| *x),
                Store::Halves(all) => squares(&all[range], |x| widened(*x)),
            };
        });
        f64::from(self.factor) * self.sums.iter().sum::<f64>().sqrt()
    }

    /// Multiplies all.
    pub(crate) fn scale(&mut self, factor: f32) {
        self.factor *= factor;
    }

    /// Adds to one.
    pub(crate) fn add(&mut self, place: usize, x: f32) {
        match &mut self.store {
            Store::Floats(all) => all[place] += x,
            Store::Halves(all) => all[place] = rounded(widened(all[place]) + x),
        }
    }

    /// Adds to some that follow one another.
    pub(crate) fn add_all(&mut self, first: usize, x: &[f32]) {
        match &mut self.store {
            Store::Floats(all) => add(&mut all[first..], x),
            Store::Halves(all) => add_rounded(&mut all[first..], x),
        }
    }

    /// The numbers of rows that stand as they are, if they are float32: there products may be summed.
    pub(crate) fn floats(&mut self, target: &Target, rows: usize) -> Option<&mut [f32]> {
        match (&mut self.store, target.straight(rows)) {
            (Store::Floats(all), Some(range)) => Some(&mut all[range]),
            _ => None,
        }
    }

    /// Adds rows of so many numbers.
    pub(crate) fn add_rows(&mut self, pool: &Threads, target: &Target, columns: usize, rows: &[f32]) {
        let row = |number: usize| &rows[number * columns..][..columns];
        let count = rows.len() / columns;
        match (&mut self.store, target.straight(count)) {
            (Store::Floats(all), Some(range)) => {
                each_row(pool, &mut all[range], columns, 16, |number, out| add(out, row(number)));
            }
            (Store::Halves(all), Some(range)) => {
                each_row(pool, &mut all[range], columns, 16, |number, out| add_rounded(out, row(number)));
            }
            (_, None) => {
                for (number, row) in rows.chunks_exact(columns).enumerate() {
                    let (first, step) = target.of_row(number);
                    match step {
                        1 => self.add_all(first, row),
                        _ => row.iter().enumerate().for_each(|(at, x)| self.add(first + at * step, *x)),
                    }
                }
            }
        }
    }
}

fn add(out: &mut [f32], x: &[f32]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
}

fn add_rounded(out: &mut [u16], x: &[f32]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out = rounded(widened(*out) + x));
}

/// The sum of the squares, in eight sums, so that none waits for the one before.
fn squares<T>(all: &[T], number: impl Fn(&T) -> f32) -> f64 {
    let mut sums = [0.0f64; 8];
    let (whole, rest) = all.as_chunks::<8>();
    for eight in whole {
        for (sum, x) in sums.iter_mut().zip(eight) {
            let x = f64::from(number(x));
            *sum += x * x;
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(number(x)).powi(2)).sum::<f64>()
}
