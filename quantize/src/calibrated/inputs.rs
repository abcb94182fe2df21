//! What is gathered of the inputs of a block's matrices: sums over all rows, never the rows themselves; and those of
//! the original, row by row, where targets are made of them.

use bantam_model::block::{Block, Seen, Streams, Tap};

use super::feedback::Hessian;
use super::linear::{Work, turned_over};

/// Sums over the rows of an input.
#[derive(Debug)]
pub(super) struct Squares {
    width: usize,
    /// x^T x.
    pub(super) own: Vec<f32>,
    /// Where the original's inputs are known.
    original: Option<Crossed>,
    /// Sums of magnitudes.
    sums: Vec<f64>,
    /// Sums.
    signed: Vec<f64>,
    /// Rows so far.
    rows: usize,
    /// Rows that wait for others: a product with few rows takes as long as one with many.
    waiting: Vec<f32>,
}

/// Rows that wait at most, where they come in small numbers, as those of experts do.
pub(super) const WAITING: usize = 256;

/// What connects inputs with the original's.
#[derive(Debug)]
struct Crossed {
    /// x^T o, where o is what the original has in x's place.
    inputs: Vec<f32>,
    /// d^T x, where d is what the stream lacks of the original's before the product is added to it.
    lacking: Option<Vec<f32>>,
    /// Sums of o.
    signed: Vec<f64>,
    /// Sums of d.
    signed_lacking: Vec<f64>,
}

fn add_signed(sums: &mut [f64], rows: &[f32]) {
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
}

/// How much of what the stream lacks a product is to bring. All of it would be as well as nothing where it follows from
/// the inputs by chance alone.
const BROUGHT: f32 = 0.5;

impl Squares {
    fn new(width: usize) -> Self {
        let (own, sums, signed) = (vec![0.0; width * width], vec![0.0; width], vec![0.0; width]);
        Squares { width, own, original: None, sums, signed, rows: 0, waiting: Vec::new() }
    }

    fn add(&mut self, work: Work, seen: &Seen, original: Option<&Original>) {
        let (width, rows) = (self.width, seen.rows);
        if self.waiting.is_empty() && rows.len() >= WAITING * width {
            work.add_cross(rows, width, rows, width, &mut self.own);
        } else {
            self.waiting.extend_from_slice(rows);
            if self.waiting.len() >= WAITING * width {
                self.settle(work);
            }
        }
        if let Some(original) = original {
            self.add_original(work, seen, original);
        }
        for row in rows.chunks_exact(width) {
            self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(value.abs()));
        }
        add_signed(&mut self.signed, rows);
        self.rows += rows.len() / width;
    }

    /// Adds the rows that wait.
    fn settle(&mut self, work: Work) {
        if !self.waiting.is_empty() {
            work.add_cross(&self.waiting, self.width, &self.waiting, self.width, &mut self.own);
            self.waiting.clear();
        }
    }

    fn add_original(&mut self, work: Work, seen: &Seen, original: &Original) {
        let (width, count) = (self.width, seen.rows.len() / self.width);
        let new = || Crossed {
            inputs: vec![0.0; width * width],
            lacking: None,
            signed: vec![0.0; width],
            signed_lacking: Vec::new(),
        };
        let crossed = self.original.get_or_insert_with(new);
        let inputs = &original.rows[self.rows * width..][..seen.rows.len()];
        work.add_cross(seen.rows, width, inputs, width, &mut crossed.inputs);
        add_signed(&mut crossed.signed, inputs);
        let Some(stream) = seen.stream.filter(|_| !original.stream.is_empty()) else { return };
        let hidden = stream.len() / count;
        let wanted = &original.stream[self.rows * hidden..][..stream.len()];
        let lacking: Vec<f32> = wanted.iter().zip(stream).map(|(wanted, found)| wanted - found).collect();
        let sum = crossed.lacking.get_or_insert_with(|| vec![0.0; hidden * width]);
        work.add_cross(&lacking, hidden, seen.rows, width, sum);
        crossed.signed_lacking.resize(hidden, 0.0);
        add_signed(&mut crossed.signed_lacking, &lacking);
    }

    /// The same of inputs without their mean.
    pub(super) fn centred(&self) -> Squares {
        let less = |values: &[f32], of_rows: &[f64], of_columns: &[f64]| -> Vec<f32> {
            let rows = values.chunks_exact(of_columns.len()).zip(of_rows);
            let row = |(row, of_row): (&[f32], &f64)| -> Vec<f32> {
                let by = of_row / self.rows.max(1) as f64;
                row.iter().zip(of_columns).map(|(value, of)| (f64::from(*value) - by * of) as f32).collect()
            };
            rows.flat_map(row).collect()
        };
        let original = self.original.as_ref().map(|crossed| Crossed {
            inputs: less(&crossed.inputs, &self.signed, &crossed.signed),
            lacking: crossed.lacking.as_ref().map(|all| less(all, &crossed.signed_lacking, &self.signed)),
            signed: Vec::new(),
            signed_lacking: Vec::new(),
        });
        let own = less(&self.own, &self.signed, &self.signed);
        let (sums, signed, waiting) = (Vec::new(), Vec::new(), Vec::new());
        Squares { width: self.width, own, original, sums, signed, rows: self.rows, waiting }
    }

    /// What is to be added to a bias, where `found` is in the place of `weights`: what the mean input no longer makes,
    /// and half of what the stream lacks on the mean.
    pub(super) fn bias_lacks(&self, weights: &[f32], found: &[f32]) -> Vec<f32> {
        let wanted = self.original.as_ref().map_or(&self.signed, |crossed| &crossed.signed);
        let lacking = self.original.as_ref().map_or(&[][..], |crossed| &crossed.signed_lacking);
        let dot = |row: &[f32], sums: &[f64]| -> f64 {
            row.iter().zip(sums).map(|(value, sum)| f64::from(*value) * sum).sum()
        };
        let rows = weights.chunks_exact(self.width).zip(found.chunks_exact(self.width)).enumerate();
        let of_row = |(row, (weights, found)): (usize, (&[f32], &[f32]))| {
            let brought = f64::from(BROUGHT) * lacking.get(row).copied().unwrap_or(0.0);
            ((dot(weights, wanted) - dot(found, &self.signed) + brought) / self.rows.max(1) as f64) as f32
        };
        rows.map(of_row).collect()
    }

    /// Mean magnitude of every column.
    pub(super) fn means(&self) -> Vec<f32> {
        self.sums.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }

    /// The weights that make of these inputs what the module's own make of the original's, and half of what the stream
    /// lacks by then, as far as that follows from these inputs.
    pub(super) fn wanted(&self, work: Work, hessian: &Hessian, weights: Vec<f32>) -> Vec<f32> {
        let Some(crossed) = &self.original else { return weights };
        let width = self.width;
        let mut made = work.times(&weights, &crossed.inputs, width);
        // What was added to the squares counts for the original too: where inputs say little, weights stay.
        made.iter_mut().zip(&weights).for_each(|(made, weight)| *made += hessian.added * weight);
        if let Some(lacking) = &crossed.lacking {
            made.iter_mut().zip(lacking).for_each(|(made, lacking)| *made += BROUGHT * lacking);
        }
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

/// The original's inputs of modules, and the stream that their result is added to.
#[derive(Debug)]
struct Original {
    modules: Vec<usize>,
    rows: Vec<f32>,
    stream: Vec<f32>,
}

/// The original's inputs of a block, for modules that every row passes through: experts see other rows once weights
/// have changed.
#[derive(Debug, Default)]
pub(super) struct Targets {
    wanted: Vec<usize>,
    inputs: Vec<Original>,
}

impl Targets {
    /// Runs the original's streams through its block.
    pub(super) fn take(block: &mut Block, original: &mut Streams, listed: &[usize]) -> Self {
        let plain = |module: &usize| !block.modules()[*module].is_expert;
        let mut targets =
            Targets { wanted: listed.iter().copied().filter(plain).collect(), inputs: Vec::new() };
        block.run(original, &mut targets);
        targets
    }

    /// Gives back what is no longer needed: the modules are done.
    pub(super) fn forget(&mut self, modules: &[usize]) {
        self.inputs.retain(|original| original.modules.iter().all(|module| !modules.contains(module)));
    }

    /// Divides the inputs of modules: their columns were multiplied.
    pub(super) fn divide(&mut self, modules: &[usize], by: &[f32]) {
        let of_them =
            |original: &&mut Original| original.modules.iter().any(|module| modules.contains(module));
        for original in self.inputs.iter_mut().filter(of_them) {
            for row in original.rows.chunks_exact_mut(by.len()) {
                row.iter_mut().zip(by).for_each(|(value, by)| *value /= by);
            }
        }
    }

    fn of(&self, module: usize) -> Option<&Original> {
        self.inputs.iter().find(|original| original.modules.contains(&module))
    }
}

impl Tap for Targets {
    fn wants(&self, module: usize) -> bool {
        self.wanted.contains(&module)
    }

    fn see(&mut self, seen: &Seen) {
        let known = self.inputs.iter().position(|original| original.modules == seen.modules);
        let at = known.unwrap_or_else(|| {
            let modules = seen.modules.to_vec();
            self.inputs.push(Original { modules, rows: Vec::new(), stream: Vec::new() });
            self.inputs.len() - 1
        });
        self.inputs[at].rows.extend_from_slice(seen.rows);
        self.inputs[at].stream.extend_from_slice(seen.stream.unwrap_or_default());
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
    /// Runs the streams through the block as it is now.
    pub(super) fn gather(
        work: Work<'a>,
        block: &mut Block,
        streams: &Streams,
        modules: &'a [usize],
        targets: Option<&'a Targets>,
    ) -> Self {
        let mut kept = Kept { work, modules, targets, squares: Vec::new() };
        block.look(streams, &mut kept);
        kept.squares.iter_mut().for_each(|(_, squares)| {
            squares.settle(work);
            squares.waiting = Vec::new();
        });
        // An expert that no row was sent to.
        for &module in modules {
            if !kept.squares.iter().any(|(known, _)| known.contains(&module)) {
                kept.squares.push((vec![module], Squares::new(block.modules()[module].shape.columns)));
            }
        }
        kept
    }

    pub(super) fn of(&self, module: usize) -> &Squares {
        &self.squares[self.shared(module)].1
    }

    /// The same number for modules that share their squares.
    pub(super) fn shared(&self, module: usize) -> usize {
        let found = self.squares.iter().position(|(modules, _)| modules.contains(&module));
        found.expect("gathered for these modules")
    }
}

impl Tap for Kept<'_> {
    fn wants(&self, module: usize) -> bool {
        self.modules.contains(&module)
    }

    fn see(&mut self, seen: &Seen) {
        let original = self.targets.and_then(|targets| targets.of(seen.modules[0]));
        let known = self.squares.iter().position(|(known, _)| known == seen.modules);
        let at = known.unwrap_or_else(|| {
            self.squares.push((seen.modules.to_vec(), Squares::new(seen.columns)));
            self.squares.len() - 1
        });
        self.squares[at].1.add(self.work, seen, original);
    }
}
