//! The numbers of a change, and what they make of a matrix's rows: the same for an adapter that is applied beside a
//! matrix and for one that is merged into it.

use super::{Adapter, Change};
use crate::weights::{WeightsError, not_finite, unreadable};

/// Reads tensors of an adapter. It keeps those that it read last: experts may share theirs.
pub(crate) struct Loader<'a> {
    adapter: &'a Adapter,
    kept: Vec<(String, Vec<f32>)>,
}

/// Tensors kept: both sides of a change.
const KEPT: usize = 2;

/// A change in numbers.
#[derive(Debug)]
pub(crate) struct Values {
    rank: usize,
    inputs: usize,
    scale: f32,
    /// Rank x inputs.
    down: Vec<f32>,
    /// Outputs x rank.
    up: Vec<f32>,
    /// Of the outputs.
    pub(crate) bias: Option<Vec<f32>>,
    /// Of the outputs.
    magnitude: Option<Vec<f32>>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(adapter: &'a Adapter) -> Self {
        Loader { adapter, kept: Vec::new() }
    }

    pub(super) fn tensor(&mut self, key: &str) -> Result<&[f32], WeightsError> {
        if let Some(at) = self.kept.iter().position(|(kept, _)| kept == key) {
            return Ok(&self.kept[at].1);
        }
        let source = self.adapter.tensor(key);
        let mut values = vec![0.0; source.elements()];
        source.load_f32(0, &mut values, &mut Vec::new()).map_err(|error| unreadable(&source, error))?;
        let columns = source.shape.last().copied().unwrap_or(1).max(1);
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(not_finite(&source, at / columns, at % columns));
        }
        if self.kept.len() == KEPT {
            self.kept.remove(0);
        }
        self.kept.push((key.to_owned(), values));
        Ok(&self.kept.last().expect("it was pushed").1)
    }

    /// The numbers of a change.
    pub(crate) fn values(&mut self, change: &Change) -> Result<Values, WeightsError> {
        let (rank, scale) = (change.rank, change.scale);
        let (outputs, inputs) = match change.is_table {
            true => (change.shape.columns, change.shape.rows),
            false => (change.shape.rows, change.shape.columns),
        };
        // Experts in one tensor: rows of an expert follow one another, its columns stand among those of all others.
        let (part, count) = change.part.unwrap_or((0, 1));
        let down = self.tensor(&change.down)?[part * rank * inputs..][..rank * inputs].to_vec();
        let all = self.tensor(&change.up)?;
        let up = (0..outputs * rank).map(|at| all[at * count + part]).collect();
        let mut vector = |key: &Option<String>| match key {
            Some(key) => Ok(Some(self.tensor(key)?.to_vec())),
            None => Ok(None),
        };
        let (bias, magnitude) = (vector(&change.bias)?, vector(&change.magnitude)?);
        Ok(Values { rank, inputs, scale, down, up, bias, magnitude })
    }
}

impl Values {
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// A row from the inputs to the rank.
    pub(crate) fn down(&self, row: usize) -> &[f32] {
        &self.down[row * self.inputs..][..self.inputs]
    }

    /// The same of a table: the numbers of a token.
    pub(crate) fn of_token(&self, token: usize, out: &mut [f32]) {
        out.iter_mut().enumerate().for_each(|(row, x)| *x = self.down[row * self.inputs + token]);
    }

    /// An output's row of the other side, scaled.
    pub(crate) fn up(&self, output: usize, out: &mut [f32]) {
        let row = &self.up[output * self.rank..][..self.rank];
        out.iter_mut().zip(row).for_each(|(out, x)| *out = x * self.scale);
    }

    /// What is added to an output, whatever the inputs are.
    pub(crate) fn bias(&self, output: usize) -> f32 {
        self.bias.as_ref().map_or(0.0, |bias| bias[output] * self.scale)
    }

    /// What is added to an output's row of the matrix.
    pub(crate) fn add_to_row(&self, output: usize, row: &mut [f32]) {
        self.add(&self.up[output * self.rank..][..self.rank], |at| self.down(at), row);
    }

    /// What is added to an input's column of the matrix, as it stands as a row in tables and turned matrices.
    pub(crate) fn add_to_input(&self, input: usize, row: &mut [f32]) {
        let down: Vec<f32> = (0..self.rank).map(|at| self.down[at * self.inputs + input]).collect();
        for (x, up) in row.iter_mut().zip(self.up.chunks_exact(self.rank)) {
            let sum = up.iter().zip(&down).fold(0.0, |sum, (up, down)| fused(sum, *up, *down));
            *x += sum * self.scale;
        }
    }

    fn add<'b>(&self, weights: &[f32], down: impl Fn(usize) -> &'b [f32], row: &mut [f32]) {
        // The product first, then the scale, then the sum, as the reference does it; in pieces that stay in the cache.
        let mut sum = [0.0; 256];
        for (piece, row) in row.chunks_mut(sum.len()).enumerate() {
            let (first, sum) = (piece * 256, &mut sum[..row.len()]);
            sum.fill(0.0);
            for (at, weight) in weights.iter().enumerate() {
                let down = &down(at)[first..][..sum.len()];
                sum.iter_mut().zip(down).for_each(|(sum, x)| *sum = fused(*sum, *weight, *x));
            }
            row.iter_mut().zip(sum).for_each(|(row, sum)| *row += *sum * self.scale);
        }
    }

    /// Whether rows get new lengths.
    pub(crate) fn has_magnitudes(&self) -> bool {
        self.magnitude.is_some()
    }

    /// What an output's row is multiplied by once the change is added to it, given the square of its length then.
    pub(crate) fn factor(&self, output: usize, square: f64) -> f32 {
        self.magnitude.as_ref().map_or(1.0, |magnitude| magnitude[output] / square.sqrt() as f32)
    }
}

/// `sum + a * b`, rounded once, as the reference's products do it: where a weight and its change nearly cancel, another
/// rounding would be most of what is left. The product is exact in float64; the processor's own is not everywhere.
fn fused(sum: f32, a: f32, b: f32) -> f32 {
    (f64::from(a) * f64::from(b) + f64::from(sum)) as f32
}

/// The square of a row's length.
pub(crate) fn square(row: &[f32]) -> f64 {
    row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}
