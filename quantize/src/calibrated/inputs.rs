//! What is gathered of the inputs of a block's matrices: sums over all rows, never the rows themselves; and those of the
//! original, row by row, where targets are made of them.

use bantam_model::block::{Block, Streams, Tap};

use super::feedback::Hessian;
use super::linear::{Work, turned_over};

/// Sums over the rows of an input.
#[derive(Debug)]
pub(super) struct Squares {
    width: usize,
    /// x^T x.
    pub(super) own: Vec<f32>,
    /// x^T o, where o is what the original has in x's place.
    cross: Option<Vec<f32>>,
    /// Sums of magnitudes.
    sums: Vec<f64>,
    /// Rows so far.
    rows: usize,
}

impl Squares {
    fn new(width: usize, crossed: bool) -> Self {
        let square = || vec![0.0; width * width];
        Squares { width, own: square(), cross: crossed.then(square), sums: vec![0.0; width], rows: 0 }
    }

    fn add(&mut self, work: Work, rows: &[f32], original: Option<&[f32]>) {
        let width = self.width;
        work.add_cross(rows, width, rows, width, &mut self.own);
        if let (Some(cross), Some(original)) = (&mut self.cross, original) {
            let from = self.rows * width;
            work.add_cross(rows, width, &original[from..from + rows.len()], width, cross);
        }
        for row in rows.chunks_exact(width) {
            self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(value.abs()));
        }
        self.rows += rows.len() / width;
    }

    /// Mean magnitude of every column.
    pub(super) fn means(&self) -> Vec<f32> {
        self.sums.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }

    /// The weights that make of these inputs what the module's own make of the original's, as far as that is possible.
    pub(super) fn wanted(&self, work: Work, hessian: &Hessian, weights: Vec<f32>) -> Vec<f32> {
        let Some(cross) = &self.cross else { return weights };
        let width = self.width;
        let mut made = work.times(&weights, cross, width);
        // What was added to the squares counts for the original too: where inputs say little, weights stay.
        made.iter_mut().zip(&weights).for_each(|(made, weight)| *made += hessian.added * weight);
        let ordered: Vec<f32> = made.chunks_exact(width).flat_map(|row| hessian.ordered(row)).collect();
        let half = work.times(&ordered, &hessian.upper, width);
        let solved = work.times(&half, &turned_over(&hessian.upper, width), width);
        let mut wanted = weights;
        for (out, row) in wanted.chunks_exact_mut(width).zip(solved.chunks_exact(width)) {
            hessian.order.iter().zip(row).for_each(|(&column, value)| out[column] = *value);
        }
        wanted
    }
}

/// The original's inputs of a block, for modules that every row passes through: experts see other rows once weights
/// have changed.
#[derive(Debug, Default)]
pub(super) struct Targets {
    wanted: Vec<usize>,
    inputs: Vec<(Vec<usize>, Vec<f32>)>,
}

impl Targets {
    /// Runs the original's streams through its block.
    pub(super) fn take(block: &mut Block, original: &mut Streams, listed: &[usize]) -> Self {
        let plain = |module: &usize| !block.modules()[*module].is_expert;
        let mut targets = Targets { wanted: listed.iter().copied().filter(plain).collect(), inputs: Vec::new() };
        block.run(original, &mut targets);
        targets
    }

    fn of(&self, module: usize) -> Option<&[f32]> {
        let found = self.inputs.iter().find(|(modules, _)| modules.contains(&module));
        found.map(|(_, rows)| rows.as_slice())
    }
}

impl Tap for Targets {
    fn wants(&self, module: usize) -> bool {
        self.wanted.contains(&module)
    }

    fn rows(&mut self, modules: &[usize], rows: &[f32], _: usize) {
        match self.inputs.iter_mut().find(|(known, _)| known == modules) {
            Some((_, known)) => known.extend_from_slice(rows),
            None => self.inputs.push((modules.to_vec(), rows.to_vec())),
        }
    }
}

/// Sums for some of a block's modules; those that share an input share them.
pub(super) struct Kept<'a> {
    work: Work<'a>,
    modules: &'a [usize],
    targets: Option<&'a Targets>,
    squares: Vec<(Vec<usize>, Squares)>,
}

impl<'a> Kept<'a> {
    /// Runs a copy of the streams through the block as it is now.
    pub(super) fn gather(
        work: Work<'a>,
        block: &mut Block,
        streams: &Streams,
        modules: &'a [usize],
        targets: Option<&'a Targets>,
    ) -> Self {
        let mut kept = Kept { work, modules, targets, squares: Vec::new() };
        block.run(&mut streams.clone(), &mut kept);
        // An expert that no row was sent to.
        for &module in modules {
            if !kept.squares.iter().any(|(known, _)| known.contains(&module)) {
                let squares = Squares::new(block.modules()[module].shape.columns, false);
                kept.squares.push((vec![module], squares));
            }
        }
        kept
    }

    pub(super) fn of(&self, module: usize) -> &Squares {
        let found = self.squares.iter().find(|(modules, _)| modules.contains(&module));
        &found.expect("gathered for these modules").1
    }
}

impl Tap for Kept<'_> {
    fn wants(&self, module: usize) -> bool {
        self.modules.contains(&module)
    }

    fn rows(&mut self, modules: &[usize], rows: &[f32], columns: usize) {
        let original = self.targets.and_then(|targets| targets.of(modules[0]));
        let known = self.squares.iter().position(|(known, _)| known == modules);
        let at = known.unwrap_or_else(|| {
            self.squares.push((modules.to_vec(), Squares::new(columns, original.is_some())));
            self.squares.len() - 1
        });
        self.squares[at].1.add(self.work, rows, original);
    }
}
