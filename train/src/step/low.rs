//! What an adapter adds to matrices: LoRA with its scales, and DoRA.
//!
//! Where a matrix is changed, `y = f * (x W^T + s (x A^T) B^T) + bias`. Without DoRA, `f` is one; with it, `f` gives
//! every row of `W + s B A` the length that the adapter has for it. That row's own length is taken as a constant by the
//! gradient, as PEFT does it.

use std::collections::HashMap;

use bantam_core::layouts::Shape;
use bantam_model::adapter::Adapter;
use bantam_model::adapter::Change;
use bantam_model::bare::Bare;
use bantam_model::plan::{Cut, Fill, LowSide, Plan};

use super::TrainError;
use super::parameters::{Parameters, Role};
use super::sites::Site;

/// A change of one matrix, whatever parts that is cut into.
#[derive(Debug)]
pub(crate) struct Low {
    /// Rows of `down` that are trained.
    pub(crate) rank: usize,
    /// Rows of `down` with those that are not: see [`Lows::hold`].
    pub(crate) ranks: usize,
    pub(crate) inputs: usize,
    pub(crate) scale: f32,
    /// Which of how many in the tensors.
    part: (usize, usize),
    /// Parameters: down, up, lengths.
    of: [Option<usize>; 3],
    /// Where their gradients begin.
    starts: [usize; 3],
    /// `ranks x inputs`.
    pub(crate) down: Vec<f32>,
    /// `outputs x ranks`.
    pub(crate) up: Vec<f32>,
    /// Of all outputs; none where it is no DoRA.
    pub(crate) lengths: Vec<f32>,
    /// One over the lengths of the rows as they are.
    pub(crate) inverse: Vec<f32>,
}

impl Low {
    /// Where its parameters begin.
    pub(crate) fn begins(&self) -> impl Iterator<Item = usize> {
        self.of.iter().zip(self.starts).filter_map(|(of, start)| of.map(|_| start))
    }

    /// Where the gradient of `down` begins.
    pub(crate) fn down_start(&self) -> usize {
        self.starts[0] + self.part.0 * self.rank * self.inputs
    }

    /// The place of an element of `up`.
    pub(crate) fn up_place(&self, output: usize, at: usize) -> usize {
        let (part, count) = self.part;
        self.starts[1] + (output * self.rank + at) * count + part
    }

    pub(crate) fn length_place(&self, output: usize) -> usize {
        self.starts[2] + output
    }

    /// The parameter of its lengths, and those that its rows have as they are.
    pub(crate) fn lengths_of_rows(&self) -> Option<(usize, Vec<f32>)> {
        Some((self.of[2]?, self.inverse.iter().map(|inverse| 1.0 / inverse).collect()))
    }

    pub(crate) fn down_shape(&self) -> Shape {
        Shape { rows: self.ranks, columns: self.inputs }
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.down.len() + self.up.len() + 2 * self.lengths.len())
    }

    pub(crate) fn has_lengths(&self) -> bool {
        !self.lengths.is_empty()
    }

    /// What the products of an output are multiplied by.
    pub(crate) fn factor(&self, output: usize) -> f32 {
        match self.has_lengths() {
            true => self.lengths[output] * self.inverse[output],
            false => 1.0,
        }
    }
}

/// Which change a part of a matrix has, and which of its outputs are the part's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LowSite {
    pub(crate) low: usize,
    cut: Cut,
    first: usize,
}

impl LowSite {
    pub(crate) fn starting_at(self, row: usize) -> LowSite {
        LowSite { first: self.first + row, ..self }
    }

    pub(crate) fn output(&self, row: usize) -> usize {
        self.cut.source_row(self.first + row)
    }
}

type Key = (String, Option<(usize, usize)>);

/// All changes.
#[derive(Debug, Default)]
pub(crate) struct Lows {
    pub(crate) list: Vec<Low>,
    by_tensor: HashMap<Key, usize>,
}

impl Lows {
    /// Every change of an adapter that a plan has room for; their tensors become parameters.
    pub(crate) fn of_adapter(
        plan: &Plan,
        adapter: &Adapter,
        parameters: &mut Parameters,
    ) -> Result<Lows, TrainError> {
        let mut lows = Lows::default();
        for fill in &plan.fills {
            let Fill::Low(fill) = fill else { continue };
            if fill.side == LowSide::Table || fill.side == LowSide::Bias {
                let what = if fill.side == LowSide::Table { "embeddings" } else { "biases" };
                return Err(TrainError::Adapter { what });
            }
            for change in fill.changes().iter().flatten().filter(|_| fill.side == LowSide::Up) {
                let key = (change.up().clone(), change.part);
                if !lows.by_tensor.contains_key(&key) {
                    lows.by_tensor.insert(key, lows.list.len());
                    lows.list.push(Low::new(change, adapter, parameters)?);
                }
            }
        }
        lows.refresh(parameters);
        Ok(lows)
    }

    pub(crate) fn site(&self, change: &Change, cut: Cut) -> LowSite {
        let low = self.by_tensor[&(change.up().clone(), change.part)];
        LowSite { low, cut, first: 0 }
    }

    /// Takes the parameters' numbers as they are now.
    pub(crate) fn refresh(&mut self, parameters: &Parameters) {
        for low in &mut self.list {
            let values = |at: Option<usize>| at.map(|at| parameters.own_values(at));
            let (part, count) = low.part;
            let (rank, ranks) = (low.rank, low.ranks);
            if let Some(down) = values(low.of[0]) {
                let size = rank * low.inputs;
                low.down[..size].copy_from_slice(&down[part * size..][..size]);
            }
            if let Some(up) = values(low.of[1]) {
                for (row, out) in low.up.chunks_exact_mut(ranks).enumerate() {
                    let out = out[..rank].iter_mut().enumerate();
                    out.for_each(|(at, x)| *x = up[(row * rank + at) * count + part]);
                }
            }
            if let Some(lengths) = values(low.of[2]) {
                low.lengths.copy_from_slice(lengths);
            }
        }
    }

    /// Takes every change as it is now off its matrix for good: what is trained begins there, and the model as it is.
    /// Beside the matrices that are trained stand the same ones, with the other sign.
    pub(crate) fn hold(&mut self) {
        for low in &mut self.list {
            let (rank, ranks) = (low.rank, 2 * low.rank);
            low.down.truncate(rank * low.inputs);
            low.down.extend_from_within(..);
            let turned = |row: &[f32]| {
                let row = &row[..rank];
                row.iter().copied().chain(row.iter().map(|x| -x)).collect::<Vec<_>>()
            };
            low.up = low.up.chunks_exact(low.ranks).flat_map(turned).collect();
            low.ranks = ranks;
        }
    }

    /// Bytes of all changes.
    pub(crate) fn bytes(&self) -> usize {
        self.list.iter().map(Low::bytes).sum()
    }

    /// Both parts of a side that was held.
    pub(crate) fn held(&self, parameter: usize) -> Option<(Vec<usize>, Vec<f32>)> {
        let is_held = |low: &&Low| low.ranks > low.rank && low.of[..2].contains(&Some(parameter));
        let low = self.list.iter().find(is_held)?;
        Some(match low.of[0] == Some(parameter) {
            true => (vec![low.ranks, low.inputs], low.down.clone()),
            false => (vec![low.up.len() / low.ranks, low.ranks], low.up.clone()),
        })
    }

    /// The lengths of the rows of a matrix with its change, where they are needed.
    pub(crate) fn measure(&mut self, site: &Site, bare: &Bare, scratch: &mut Vec<f32>) {
        let Some(at) = site.low else { return };
        let low = &mut self.list[at.low];
        if !low.has_lengths() {
            return;
        }
        let (rows, columns) = (site.rows(bare), site.shape().columns);
        scratch.resize((2 + site.matrix.times) * columns, 0.0);
        for row in 0..site.shape().rows {
            let output = at.output(row);
            let (change, held) = scratch.split_at_mut(columns);
            rows.read(row, columns, held);
            change.fill(0.0);
            for (up, down) in low.up[output * low.ranks..].iter().zip(low.down.chunks_exact(columns)) {
                change.iter_mut().zip(down).for_each(|(sum, x)| *sum += up * x);
            }
            let square = |(x, change): (&f32, &f32)| f64::from(x + low.scale * change).powi(2);
            let sum: f64 = held[..columns].iter().zip(&*change).map(square).sum();
            low.inverse[output] = (1.0 / sum.sqrt()) as f32;
        }
    }
}

impl Low {
    fn new(change: &Change, adapter: &Adapter, parameters: &mut Parameters) -> Result<Low, TrainError> {
        let mut own = |name: &str, role| {
            let at = parameters.own(name, role, || Ok(adapter.read(name)?))?;
            Ok::<_, TrainError>((at, parameters.list[at].range().start))
        };
        let (down, up) = (own(change.down(), Role::Down)?, own(change.up(), Role::Up)?);
        let length = change.magnitude().map(|name| own(name, Role::Magnitude)).transpose()?;
        let (outputs, inputs, rank) = (change.shape.rows, change.shape.columns, change.rank);
        let lengths = if length.is_some() { outputs } else { 0 };
        Ok(Low {
            rank,
            ranks: rank,
            inputs,
            scale: change.scale,
            part: change.part.unwrap_or((0, 1)),
            of: [Some(down.0), Some(up.0), length.map(|(at, _)| at)],
            starts: [down.1, up.1, length.map_or(0, |(_, start)| start)],
            down: vec![0.0; rank * inputs],
            up: vec![0.0; outputs * rank],
            lengths: vec![0.0; lengths],
            inverse: vec![0.0; lengths],
        })
    }
}
