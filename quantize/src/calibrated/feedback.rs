//! Rounding with feedback: columns of a matrix are rounded one after another, and what rounding a column does to the
//! outputs is made good, as far as that is possible, by the columns that are still to come (GPTQ).
//!
//! With H = X^T X of the inputs and U the upper triangular factor of its inverse (H^-1 = U^T U), the error e of column
//! i moves every later column j by `-e / U[i][i] * U[i][j]`: then those are the best there are, given what is rounded.

use bantam_core::ops::share::each_row;

use super::linear::Work;

/// Columns that are rounded before later ones learn of all their errors in one product.
const BLOCK: usize = 128;

/// The squares of a matrix's inputs, in the order in which its columns are rounded.
#[derive(Debug, Clone)]
pub struct Hessian {
    /// Columns.
    pub width: usize,
    /// Place by place, the column; then `values` are in this order.
    pub order: Vec<usize>,
    /// `width x width`, damped.
    pub values: Vec<f32>,
    /// What was added to the squares of every column.
    pub added: f32,
    /// U, `width x width`; zeros below the diagonal.
    pub upper: Vec<f32>,
}

/// How columns follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they are.
    Given,
    /// Those with the largest inputs first (act-order).
    LargestFirst,
}

impl Hessian {
    /// From sums of squares of the inputs. `damp` is a part of the mean square that is added to all of them; more where
    /// that is not enough for a factor. Inputs that were always zero count as one.
    pub fn new(work: Work, squares: &[f32], width: usize, order: Order, damp: f32) -> Hessian {
        let square = |column: usize| squares[column * width + column];
        let mut places: Vec<usize> = (0..width).collect();
        if order == Order::LargestFirst {
            // Equal ones stay in their order.
            places.sort_by(|&a, &b| square(b).total_cmp(&square(a)));
        }
        let mean = places.iter().map(|&column| f64::from(square(column))).sum::<f64>() / width as f64;
        let mut values: Vec<f32> = Vec::with_capacity(width * width);
        for &row in &places {
            values.extend(places.iter().map(|&column| squares[row * width + column]));
        }
        (0..width).filter(|&at| values[at * width + at] == 0.0).collect::<Vec<_>>().into_iter().for_each(
            |at| {
                values[at * width + at] = 1.0;
            },
        );
        let mut damp = damp.max(1e-6) * mean.max(f64::MIN_POSITIVE) as f32;
        let mut added = 0.0;
        loop {
            (0..width).for_each(|at| values[at * width + at] += damp);
            added += damp;
            if let Some(upper) = upper(work, &values, width) {
                return Hessian { width, order: places, values, added, upper };
            }
            damp *= 10.0;
        }
    }

    /// A row of a matrix with its columns in this order.
    pub fn ordered(&self, row: &[f32]) -> Vec<f32> {
        self.order.iter().map(|&column| row[column]).collect()
    }

    /// `e H e^T` of rows of errors in this order: the sum of squares of what they do to the outputs.
    pub fn losses(&self, work: Work, errors: &[f32]) -> Vec<f64> {
        let products = work.times(errors, &self.values, self.width);
        let rows = errors.chunks_exact(self.width).zip(products.chunks_exact(self.width));
        let dot =
            |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        rows.map(dot).collect()
    }
}

/// The factor U of a matrix's inverse: the factor of the matrix itself from its last row upwards, inverted.
fn upper(work: Work, values: &[f32], width: usize) -> Option<Vec<f32>> {
    let reversed: Vec<f32> = values.iter().rev().copied().collect();
    let lower = work.cholesky(&reversed, width)?;
    let mut inverse = work.invert_lower(&lower, width);
    inverse.reverse();
    Some(inverse)
}

/// What the values of one row are rounded to.
pub trait Grid: Send {
    /// A group begins: its values as they are now, made good for all that was rounded before.
    fn begin(&mut self, group: usize, values: &[f32]);
    /// The nearest value that there is for a place, which is taken.
    fn take(&mut self, place: usize, value: f32) -> f32;
}

/// A row on its way.
#[derive(Debug)]
pub struct Row<G> {
    /// Its values in the order of the Hessian; those that are rounded are as they were when it was their turn.
    pub values: Vec<f32>,
    /// What they are rounded to.
    pub grid: G,
    errors: Vec<f32>,
}

impl<G: Grid> Row<G> {
    /// A row with its values in the order of the Hessian.
    pub fn new(values: Vec<f32>, grid: G) -> Self {
        Row { values, grid, errors: Vec::new() }
    }

    /// Rounds the columns of a block; later ones outside of it do not know of it yet.
    fn round(&mut self, hessian: &Hessian, first: usize, end: usize, group: usize) {
        self.errors.clear();
        for place in first..end {
            if place.is_multiple_of(group) {
                let end = (place + group).min(hessian.width);
                self.grid.begin(place / group, &self.values[place..end]);
            }
            let factors = &hessian.upper[place * hessian.width..][place..end];
            let value = self.values[place];
            let error = (value - self.grid.take(place, value)) / factors[0];
            for (later, factor) in self.values[place..end].iter_mut().zip(factors).skip(1) {
                *later -= error * factor;
            }
            self.errors.push(error);
        }
    }
}

/// Rounds rows. Groups are of `group` columns in the order of the Hessian.
pub fn round<G: Grid>(work: Work, hessian: &Hessian, group: usize, rows: &mut [Row<G>]) {
    let width = hessian.width;
    let mut first = 0;
    while first < width {
        let end = block_end(first, group, width);
        each_row(work.pool, rows, 1, 2, |_, row| row[0].round(hessian, first, end, group));
        if end < width {
            let errors: Vec<f32> = rows.iter().flat_map(|row| &row.errors).copied().collect();
            let moves = work.times_columns(&errors, end - first, &hessian.upper, width, first, end);
            let moves = &moves;
            each_row(work.pool, rows, 1, 64, |at, row| {
                let moves = &moves[at * (width - end)..][..width - end];
                row[0].values[end..].iter_mut().zip(moves).for_each(|(value, by)| *value -= by);
            });
        }
        first = end;
    }
}

/// Blocks are whole groups, or parts of one: a group that begins is then up to date.
fn block_end(first: usize, group: usize, width: usize) -> usize {
    let end = if group <= BLOCK {
        first + BLOCK / group * group
    } else {
        (first + BLOCK).min((first / group + 1) * group)
    };
    end.min(width)
}
