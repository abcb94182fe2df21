//! Ternary weights that are fitted to what the model computes, in two stages.
//!
//! Stage 1 finds a scale, and with it a threshold, for every group of a row by a search that weighs columns by what of
//! their inputs no other column can stand in for. Stage 2 rounds with feedback from column to column, and then takes
//! turns: trits one at a time, each to the value that leaves the smallest error of the outputs, until none changes;
//! scales of all groups of a row at once, by least squares.
//!
//! With two planes a weight is the sum of two trits with a scale each; nothing else differs.

use bantam_core::layouts::Shape;
use bantam_core::ops::share::each_row;

use super::feedback::{self, Grid, Hessian, Row};
use super::linear::Work;
use crate::matrix::{Trits, as_f16};

/// How far the search goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Columns under a scale.
    pub group: usize,
    /// See [`Hessian::new`].
    pub damp: f32,
    /// Turns of trits and scales.
    pub turns: usize,
    /// Times that a turn looks at every trit at most.
    pub sweeps: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { group: 64, damp: 0.01, turns: 4, sweeps: 10 }
    }
}

/// Losses after each stage, relative to outputs of nothing at all; the last is that of the result.
pub type Stages = Vec<(&'static str, f64)>;

/// Rows that are fitted together: bounds the memory of products.
const ROWS: usize = 256;

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
    let (mut trits, mut scales) = (Vec::new(), Vec::new());
    let (mut whole, mut losses) = (0.0, [0.0; NAMES.len()]);
    for rows in values.chunks(ROWS * width) {
        let targets = ordered(hessian, rows);
        whole += hessian.losses(work, &targets).iter().sum::<f64>();
        let lines = fit.lines(&targets, &mut losses);
        for line in &lines {
            line.write(&fit, &mut trits, &mut scales);
        }
    }
    let relative = |loss: f64| if whole > 0.0 { loss / whole } else { 0.0 };
    let stages = NAMES.into_iter().zip(losses.map(relative)).collect();
    (Trits { shape, planes, group: fit.group, trits, scales, columns: None }, stages)
}

/// What a second plane takes off the relative loss, before anything is made good.
pub fn gain(work: Work, settings: &Settings, hessian: &Hessian, shape: Shape, values: &[f32]) -> f64 {
    let whole = hessian.losses(work, &ordered(hessian, values)).iter().sum::<f64>();
    let [one, two] = [1, 2].map(|planes| {
        let fit = Fit::new(work, settings, hessian, planes);
        let rows = values.chunks(ROWS * shape.columns).map(|rows| {
            let mut lines = fit.new_lines(&ordered(hessian, rows));
            each_row(work.pool, &mut lines, 1, 2, |_, line| line[0].search(&fit));
            fit.loss(&lines)
        });
        rows.sum::<f64>()
    });
    if whole > 0.0 { (one - two) / whole } else { 0.0 }
}

fn ordered(hessian: &Hessian, rows: &[f32]) -> Vec<f32> {
    rows.chunks_exact(hessian.width).flat_map(|row| hessian.ordered(row)).collect()
}

/// Names of the stages.
const NAMES: [&str; 4] = ["scales", "feedback", "trits", "refit"];

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
        let group = settings.group.min(width);
        let group_of: Vec<usize> = hessian.order.iter().map(|column| column / group).collect();
        let mut places = vec![Vec::new(); width.div_ceil(group)];
        group_of.iter().enumerate().for_each(|(place, &group)| places[group].push(place));
        let mut inverse = vec![0.0f64; width];
        for row in hessian.upper.chunks_exact(width) {
            inverse.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value) * f64::from(value));
        }
        let own = inverse.into_iter().map(|inverse| (1.0 / inverse) as f32).collect();
        Fit { work, settings, hessian, planes, group, places, group_of, own }
    }

    fn levels<'s>(&self, scales: &'s [f32], place: usize) -> Levels<'s> {
        Levels(&scales[self.group_of[place] * self.planes..][..self.planes])
    }

    fn new_lines(&self, targets: &[f32]) -> Vec<Line> {
        let new = |target: &[f32]| Line { target: target.to_vec(), codes: Vec::new(), scales: Vec::new() };
        targets.chunks_exact(self.hessian.width).map(new).collect()
    }

    fn lines(&self, targets: &[f32], losses: &mut [f64; 4]) -> Vec<Line> {
        let mut lines = self.new_lines(targets);
        each_row(self.work.pool, &mut lines, 1, 2, |_, line| line[0].search(self));
        losses[0] += self.loss(&lines);
        self.feed_back(&mut lines);
        losses[1] += self.loss(&lines);
        for turn in 0..self.settings.turns {
            if turn > 0 {
                self.refit(&mut lines);
            }
            self.turn_trits(&mut lines);
            losses[2] += if turn == 0 { self.loss(&lines) } else { 0.0 };
        }
        self.refit(&mut lines);
        lines.iter_mut().flat_map(|line| &mut line.scales).for_each(|scale| *scale = as_f16(*scale));
        losses[3] += self.loss(&lines);
        lines
    }

    fn errors(&self, lines: &[Line]) -> Vec<f32> {
        let width = self.hessian.width;
        let mut errors = vec![0.0; lines.len() * width];
        each_row(self.work.pool, &mut errors, width, 8, |row, out| {
            let line = &lines[row];
            for (place, out) in out.iter_mut().enumerate() {
                *out = line.target[place] - self.levels(&line.scales, place).value(line.codes[place]);
            }
        });
        errors
    }

    fn loss(&self, lines: &[Line]) -> f64 {
        self.hessian.losses(self.work, &self.errors(lines)).iter().sum()
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
    fn turn_trits(&self, lines: &mut [Line]) {
        let width = self.hessian.width;
        let mut pulls = self.work.times(&self.errors(lines), &self.hessian.values, width);
        let mut both: Vec<(&mut Line, &mut [f32])> =
            lines.iter_mut().zip(pulls.chunks_exact_mut(width)).collect();
        each_row(self.work.pool, &mut both, 1, 2, |_, both| {
            let (line, pull) = &mut both[0];
            for _ in 0..self.settings.sweeps {
                if !line.sweep(self, pull) {
                    break;
                }
            }
        });
    }

    /// The scales of each row that leave the smallest error with its trits.
    fn refit(&self, lines: &mut [Line]) {
        let (width, planes) = (self.hessian.width, self.planes);
        let unknowns = self.places.len() * planes;
        let mut systems = vec![System::new(unknowns); lines.len()];
        for (group, places) in self.places.iter().enumerate() {
            for plane in 0..planes {
                let trits: Vec<f32> = lines
                    .iter()
                    .flat_map(|line| places.iter().map(move |&place| trit(line.codes[place], plane)))
                    .collect();
                let products = self.work.times_rows(&trits, &self.hessian.values, width, places);
                each_row(self.work.pool, &mut systems, 1, 2, |row, system| {
                    let product = &products[row * width..][..width];
                    system[0].put(self, &lines[row], group * planes + plane, product);
                });
            }
        }
        for (line, system) in lines.iter_mut().zip(systems) {
            let Some(scales) = system.solve() else { continue };
            line.scales.iter_mut().zip(scales).for_each(|(scale, found)| *scale = found as f32);
            line.turn_positive(self);
        }
    }
}

fn trit(code: u8, plane: usize) -> f32 {
    f32::from(code / 3u8.pow(plane as u32) % 3) - 1.0
}

impl Line {
    /// Stage 1: the scale of every group, and the nearest trits.
    fn search(&mut self, fit: &Fit) {
        for places in &fit.places {
            let pairs: Vec<(f32, f32)> =
                places.iter().map(|&place| (self.target[place], fit.own[place])).collect();
            let finest = search_scale(&pairs, if fit.planes == 1 { 1.0 } else { 4.0 });
            // Planes begin as digits: three times as large each.
            self.scales.extend((0..fit.planes).map(|plane| finest * 3f32.powi(plane as i32)));
        }
        let nearest = |(place, &value): (usize, &f32)| fit.levels(&self.scales, place).nearest(value);
        self.codes = self.target.iter().enumerate().map(nearest).collect();
    }

    /// Looks at every trit once; whether one has moved. `pull` is the error times the Hessian.
    fn sweep(&mut self, fit: &Fit, pull: &mut [f32]) -> bool {
        let (width, mut moved) = (pull.len(), false);
        for place in 0..width {
            let row = &fit.hessian.values[place * width..][..width];
            let levels = Levels(&self.scales[fit.group_of[place] * fit.planes..][..fit.planes]);
            let value = levels.value(self.codes[place]);
            let code = levels.nearest(value + pull[place] / row[place]);
            let by = levels.value(code) - value;
            if by != 0.0 {
                self.codes[place] = code;
                pull.iter_mut().zip(row).for_each(|(pull, &h)| *pull -= by * h);
                moved = true;
            }
        }
        moved
    }

    /// Least squares may find a negative scale: its trits change sides.
    fn turn_positive(&mut self, fit: &Fit) {
        for (group, places) in fit.places.iter().enumerate() {
            for plane in 0..fit.planes {
                let scale = &mut self.scales[group * fit.planes + plane];
                if *scale < 0.0 {
                    *scale = -*scale;
                    let digit = 3u8.pow(plane as u32);
                    places.iter().for_each(|&place| {
                        let code = &mut self.codes[place];
                        *code = *code + 2 * digit - *code / digit % 3 * 2 * digit;
                    });
                }
            }
        }
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

/// The distance of neighbouring levels, `most` of them to each side, that suits weighted values best.
fn search_scale(pairs: &[(f32, f32)], most: f32) -> f32 {
    const STEPS: usize = 48;
    let largest = pairs.iter().fold(0.0f32, |largest, (value, _)| largest.max(value.abs()));
    let mut best = (f64::NEG_INFINITY, 0.0);
    for step in 1..=STEPS {
        let scale = largest * step as f32 / (STEPS as f32 * most);
        if scale <= 0.0 {
            continue;
        }
        let (mut along, mut square) = (0.0f64, 0.0f64);
        for &(value, weight) in pairs {
            let level = f64::from((value / scale).round().clamp(-most, most));
            along += f64::from(weight) * f64::from(value) * level;
            square += f64::from(weight) * level * level;
        }
        // The best multiple of these levels takes so much off the loss.
        if square > 0.0 && along * along / square > best.0 {
            best = (along * along / square, (along / square) as f32);
        }
    }
    best.1
}

/// The equations of a row's scales.
#[derive(Debug, Clone)]
struct System {
    unknowns: usize,
    squares: Vec<f64>,
    along: Vec<f64>,
}

impl System {
    fn new(unknowns: usize) -> Self {
        System { unknowns, squares: vec![0.0; unknowns * unknowns], along: vec![0.0; unknowns] }
    }

    /// Fills in the row of one unknown; `product` is its trits times the Hessian.
    fn put(&mut self, fit: &Fit, line: &Line, unknown: usize, product: &[f32]) {
        for (group, places) in fit.places.iter().enumerate() {
            for plane in 0..fit.planes {
                let sum =
                    places.iter().map(|&place| trit(line.codes[place], plane) * product[place]).sum::<f32>();
                self.squares[unknown * self.unknowns + group * fit.planes + plane] = f64::from(sum);
            }
        }
        let along =
            line.target.iter().zip(product).map(|(&value, &product)| f64::from(value) * f64::from(product));
        self.along[unknown] = along.sum();
    }

    /// Gauss's elimination of a symmetric positive system; groups of zeros alone keep zero.
    fn solve(mut self) -> Option<Vec<f64>> {
        let n = self.unknowns;
        let mean = (0..n).map(|at| self.squares[at * n + at]).sum::<f64>() / n as f64;
        if mean <= 0.0 {
            return None;
        }
        (0..n).for_each(|at| self.squares[at * n + at] += mean * 1e-7);
        for pivot in 0..n {
            let (above, below) = self.squares.split_at_mut((pivot + 1) * n);
            let top = &above[pivot * n..];
            if top[pivot] <= 0.0 {
                return None;
            }
            for (number, row) in below.chunks_exact_mut(n).enumerate() {
                let factor = row[pivot] / top[pivot];
                row[pivot..].iter_mut().zip(&top[pivot..]).for_each(|(value, top)| *value -= factor * top);
                self.along[pivot + 1 + number] -= factor * self.along[pivot];
            }
        }
        for row in (0..n).rev() {
            let known: f64 = (row + 1..n).map(|at| self.squares[row * n + at] * self.along[at]).sum();
            self.along[row] = (self.along[row] - known) / self.squares[row * n + row];
        }
        Some(self.along)
    }
}
