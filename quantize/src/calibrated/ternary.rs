//! Ternary weights that are fitted to what the model computes, in two stages.
//!
//! Stage 1 finds a scale, and with it a threshold, for every group of a row by a search that weighs columns by what of
//! their inputs no other column can stand in for. Stage 2 rounds with feedback from column to column, and then takes
//! turns: trits one at a time, each to the value that leaves the smallest error of the outputs, until none changes;
//! scales of all groups of a row at once, by least squares. `columns.rs` adds factors of columns to that.
//!
//! With two planes a weight is the sum of two trits with a scale each; nothing else differs.
//!
//! What costs time is products with the Hessian, so a row's error times the Hessian (its `pull`) is never computed
//! twice: trits that move correct it, and after a refit it follows from the products that the refit needed.

use bantam_core::layouts::Shape;
use bantam_core::ops::share::each_row;

use super::feedback::{self, Grid, Hessian, Row};
use super::linear::{Packed, Work};
use crate::matrix::{Trits, as_f16};

pub(super) mod columns;
mod refit;
mod search;

/// How far the search goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Columns under a scale; `None` is a whole row.
    pub group: Option<usize>,
    /// See [`Hessian::new`].
    pub damp: f32,
    /// Turns of trits and scales.
    pub turns: usize,
    /// Times that a turn looks at every trit at most.
    pub sweeps: usize,
    /// Whether columns have factors, fitted with the trits and scales.
    pub columns: bool,
    /// Whether inputs that come from a norm are scaled there so that less is lost.
    pub equalise: bool,
    /// Whether the mean of the inputs goes into the bias of matrices that have one, and trits answer for the rest.
    pub mean_removal: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            group: Some(64),
            damp: 0.01,
            turns: 4,
            sweeps: 10,
            columns: false,
            equalise: false,
            mean_removal: false,
        }
    }
}

/// Losses after each stage, relative to outputs of nothing at all; the last is that of the result.
pub type Stages = Vec<(&'static str, f64)>;

/// Rows that are fitted together: bounds the memory of products.
pub(super) const ROWS: usize = 512;
/// Rows of a thread that look at the same column one after another, while its part of the Hessian is near.
const TOGETHER: usize = 16;

/// Names of the stages.
const NAMES: [&str; 4] = ["scales", "feedback", "trits", "refit"];

/// Trits of a matrix.
pub fn quantize(
    work: Work,
    settings: &Settings,
    hessian: &Hessian,
    shape: Shape,
    planes: usize,
    values: &[f32],
) -> (Trits, Stages) {
    let width = shape.columns;
    let fit = Fit::new(work, settings, hessian, planes);
    let by_group = fit.by_group();
    let (mut trits, mut scales) = (Vec::new(), Vec::new());
    let (mut whole, mut losses) = (0.0, [0.0; NAMES.len()]);
    for rows in values.chunks(ROWS * width) {
        let targets = ordered(hessian, rows);
        let aims = fit.times(&targets);
        whole += dots(&targets, &aims, width);
        let lines = fit.lines(&targets, &aims, &by_group, &mut losses);
        for line in &lines {
            line.write(&fit, &mut trits, &mut scales);
        }
    }
    let stages = NAMES.into_iter().zip(losses.map(|loss| relative(loss, whole))).collect();
    (Trits { shape, planes, group: fit.group, trits, scales, columns: None }, stages)
}

/// What a second plane takes off the relative loss, before anything is made good.
pub fn gain(work: Work, settings: &Settings, hessian: &Hessian, shape: Shape, values: &[f32]) -> f64 {
    let [(one, whole), (two, _)] = [1, 2].map(|planes| {
        let fit = Fit::new(work, settings, hessian, planes);
        let (mut loss, mut whole) = (0.0, 0.0);
        for rows in values.chunks(ROWS * shape.columns) {
            let targets = ordered(hessian, rows);
            let mut lines = fit.new_lines(&targets);
            fit.search(&mut lines);
            loss += fit.pulled(&lines).1;
            whole += if planes == 1 { dots(&targets, &fit.times(&targets), shape.columns) } else { 0.0 };
        }
        (loss, whole)
    });
    relative(one - two, whole)
}

/// The relative loss after rounding with feedback alone: foretells that of the whole way.
pub(super) fn foretold(
    work: Work,
    settings: &Settings,
    hessian: &Hessian,
    planes: usize,
    values: &[f32],
) -> f64 {
    let fit = Fit::new(work, settings, hessian, planes);
    let (mut loss, mut whole) = (0.0, 0.0);
    for rows in values.chunks(ROWS * hessian.width) {
        let targets = ordered(hessian, rows);
        whole += dots(&targets, &fit.times(&targets), hessian.width);
        let mut lines = fit.new_lines(&targets);
        fit.search(&mut lines);
        fit.feed_back(&mut lines);
        loss += fit.pulled(&lines).1;
    }
    relative(loss, whole)
}

fn relative(loss: f64, whole: f64) -> f64 {
    if whole > 0.0 { loss / whole } else { 0.0 }
}

/// The sum over all rows of the products of their values.
fn dots(a: &[f32], b: &[f32], width: usize) -> f64 {
    let row = |(a, b): (&[f32], &[f32])| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    a.chunks_exact(width).zip(b.chunks_exact(width)).map(row).sum()
}

fn ordered(hessian: &Hessian, rows: &[f32]) -> Vec<f32> {
    rows.chunks_exact(hessian.width).flat_map(|row| hessian.ordered(row)).collect()
}

/// What the rows of a matrix share.
struct Fit<'a> {
    work: Work<'a>,
    settings: &'a Settings,
    hessian: &'a Hessian,
    planes: usize,
    /// Columns under a scale.
    group: usize,
    /// By group, the places of its columns in the order of the Hessian.
    places: Vec<Vec<usize>>,
    /// By place, the group.
    group_of: Vec<usize>,
    /// By place: what is left of the input's square when all others have had their say.
    own: Vec<f32>,
    /// By place: the input's square.
    squares: Vec<f32>,
    /// The Hessian, for products.
    packed: Packed,
}

/// A row on its way.
#[derive(Debug, Clone)]
struct Line {
    /// By place.
    target: Vec<f32>,
    /// By place: a digit of base three for each plane, the trit plus one.
    codes: Vec<u8>,
    /// Groups x planes, not negative.
    scales: Vec<f32>,
}

/// The values that a code of a group stands for.
#[derive(Clone, Copy)]
struct Levels<'a>(&'a [f32]);

impl Levels<'_> {
    fn value(self, code: u8) -> f32 {
        let (mut code, mut value) = (code, 0.0);
        for scale in self.0 {
            value += (f32::from(code % 3) - 1.0) * scale;
            code /= 3;
        }
        value
    }

    /// The nearest code; of equals the first.
    fn nearest(self, wanted: f32) -> u8 {
        if let [scale] = self.0 {
            return 1 + u8::from(wanted > scale / 2.0) - u8::from(wanted < -scale / 2.0);
        }
        let codes = 0..3u8.pow(self.0.len() as u32);
        let distance = |code: &u8| (self.value(*code) - wanted).abs();
        codes.min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("there are codes")
    }
}

/// The grid of a row whose scales are known.
struct Known<'a> {
    fit: &'a Fit<'a>,
    scales: Vec<f32>,
    codes: Vec<u8>,
}

impl Grid for Known<'_> {
    fn begin(&mut self, _: usize, _: &[f32]) {}

    fn take(&mut self, place: usize, value: f32) -> f32 {
        let levels = self.fit.levels(&self.scales, place);
        let code = levels.nearest(value);
        self.codes.push(code);
        levels.value(code)
    }
}

impl<'a> Fit<'a> {
    fn new(work: Work<'a>, settings: &'a Settings, hessian: &'a Hessian, planes: usize) -> Self {
        let width = hessian.width;
        let group = settings.group.unwrap_or(width).min(width);
        let group_of: Vec<usize> = hessian.order.iter().map(|column| column / group).collect();
        let mut places = vec![Vec::new(); width.div_ceil(group)];
        group_of.iter().enumerate().for_each(|(place, &group)| places[group].push(place));
        let mut inverse = vec![0.0f64; width];
        for row in hessian.upper.chunks_exact(width) {
            inverse.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value) * f64::from(value));
        }
        let own = inverse.into_iter().map(|inverse| (1.0 / inverse) as f32).collect();
        let squares = hessian.values.iter().step_by(width + 1).copied().collect();
        let row = |at: usize, out: &mut [f32]| out.copy_from_slice(&hessian.values[at * width..][..width]);
        let packed = work.pack(width, width, row);
        Fit { work, settings, hessian, planes, group, places, group_of, own, squares, packed }
    }

    fn levels<'s>(&self, scales: &'s [f32], place: usize) -> Levels<'s> {
        Levels(&scales[self.group_of[place] * self.planes..][..self.planes])
    }

    fn new_lines(&self, targets: &[f32]) -> Vec<Line> {
        let new = |target: &[f32]| Line { target: target.to_vec(), codes: Vec::new(), scales: Vec::new() };
        targets.chunks_exact(self.hessian.width).map(new).collect()
    }

    /// Rows times the Hessian.
    fn times(&self, rows: &[f32]) -> Vec<f32> {
        self.work.times_packed(rows, &self.packed)
    }

    fn search(&self, lines: &mut [Line]) {
        each_row(self.work.pool, lines, 1, 2, |_, line| line[0].search(self));
    }

    /// `aims` are the targets times the Hessian.
    fn lines(&self, targets: &[f32], aims: &[f32], by_group: &[Packed], losses: &mut [f64; 4]) -> Vec<Line> {
        let mut lines = self.new_lines(targets);
        self.search(&mut lines);
        losses[0] += self.pulled(&lines).1;
        self.feed_back(&mut lines);
        let (mut pulls, loss) = self.pulled(&lines);
        losses[1] += loss;
        for turn in 0..self.settings.turns {
            if turn > 0 {
                self.refit(&mut lines, aims, by_group, &mut pulls, |scale| scale);
            }
            self.turn_trits(&mut lines, &mut pulls);
            losses[2] += if turn == 0 { self.loss(&lines, &pulls) } else { 0.0 };
        }
        // Scales as they are stored.
        self.refit(&mut lines, aims, by_group, &mut pulls, as_f16);
        losses[3] += self.loss(&lines, &pulls);
        lines
    }

    fn errors(&self, lines: &[Line]) -> Vec<f32> {
        let width = self.hessian.width;
        let mut errors = vec![0.0; lines.len() * width];
        each_row(self.work.pool, &mut errors, width, 8, |row, out| lines[row].errors(self, out));
        errors
    }

    /// Errors times the Hessian, and the loss.
    fn pulled(&self, lines: &[Line]) -> (Vec<f32>, f64) {
        let errors = self.errors(lines);
        let pulls = self.times(&errors);
        let loss = dots(&errors, &pulls, self.hessian.width);
        (pulls, loss)
    }

    fn loss(&self, lines: &[Line], pulls: &[f32]) -> f64 {
        dots(&self.errors(lines), pulls, self.hessian.width)
    }

    /// Rounds with feedback at the scales that are there.
    fn feed_back(&self, lines: &mut [Line]) {
        let new = |line: &mut Line| {
            let grid = Known {
                fit: self,
                scales: line.scales.clone(),
                codes: Vec::with_capacity(line.target.len()),
            };
            Row::new(line.target.clone(), grid)
        };
        let mut rows: Vec<Row<Known>> = lines.iter_mut().map(new).collect();
        feedback::round(self.work, self.hessian, self.hessian.width, &mut rows);
        lines.iter_mut().zip(rows).for_each(|(line, row)| line.codes = row.grid.codes);
    }

    /// Moves trits one at a time to where the outputs err least.
    fn turn_trits(&self, lines: &mut [Line], pulls: &mut [f32]) {
        let width = self.hessian.width;
        let mut parts: Vec<(&mut [Line], &mut [f32])> =
            lines.chunks_mut(TOGETHER).zip(pulls.chunks_mut(TOGETHER * width)).collect();
        each_row(self.work.pool, &mut parts, 1, 2, |_, part| {
            let (lines, pulls) = &mut part[0];
            let mut is_moving = [true; TOGETHER];
            for _ in 0..self.settings.sweeps {
                self.sweep(lines, pulls, &mut is_moving);
                if !is_moving.contains(&true) {
                    break;
                }
            }
        });
    }

    /// Looks at every trit once, of the rows that still move.
    fn sweep(&self, lines: &mut [Line], pulls: &mut [f32], is_moving: &mut [bool; TOGETHER]) {
        let width = self.hessian.width;
        let looked_at = std::mem::take(is_moving);
        for place in 0..width {
            let row = &self.hessian.values[place * width..][..width];
            let each = lines.iter_mut().zip(pulls.chunks_exact_mut(width)).zip(looked_at).enumerate();
            for (number, ((line, pull), is_looked_at)) in each {
                if is_looked_at && line.turn(self, place, row, pull) {
                    is_moving[number] = true;
                }
            }
        }
        // Lines that are not there move no more.
        is_moving[lines.len()..].fill(false);
    }
}

fn trit(code: u8, plane: usize) -> f32 {
    f32::from(code / 3u8.pow(plane as u32) % 3) - 1.0
}

impl Line {
    fn errors(&self, fit: &Fit, out: &mut [f32]) {
        for (place, out) in out.iter_mut().enumerate() {
            *out = self.target[place] - fit.levels(&self.scales, place).value(self.codes[place]);
        }
    }

    /// Moves one trit to where the outputs err least; whether it was elsewhere. `row` is its row of the Hessian.
    fn turn(&mut self, fit: &Fit, place: usize, row: &[f32], pull: &mut [f32]) -> bool {
        let levels = Levels(&self.scales[fit.group_of[place] * fit.planes..][..fit.planes]);
        let value = levels.value(self.codes[place]);
        let code = levels.nearest(value + pull[place] / fit.squares[place]);
        let by = levels.value(code) - value;
        if by != 0.0 {
            self.codes[place] = code;
            pull.iter_mut().zip(row).for_each(|(pull, &h)| *pull -= by * h);
        }
        by != 0.0
    }

    fn write(&self, fit: &Fit, trits: &mut Vec<i8>, scales: &mut Vec<f32>) {
        let width = self.codes.len();
        for plane in 0..fit.planes {
            let start = trits.len();
            trits.resize(start + width, 0);
            for (place, &column) in fit.hessian.order.iter().enumerate() {
                trits[start + column] = trit(self.codes[place], plane) as i8;
            }
            scales.extend(self.scales.iter().skip(plane).step_by(fit.planes));
        }
    }
}
