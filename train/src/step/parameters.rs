//! What is trained: tensors by their names in files, and where the numbers of each are.
//!
//! A tensor of the model lives in the decoder's own float32 tiles, cut into the matrices that it is made of; one of an
//! adapter lives here. Gradients, and what optimizers keep, have the order of the tensor in its file: shapes mean
//! something to an optimizer, and files are written so.

use std::collections::HashMap;
use std::ops::Range;

use bantam_core::layouts::{FLOAT32, TILE_ROWS};
use bantam_core::ops::share::each_part_beside;
use bantam_core::{Matrix, Slot};
use bantam_model::adapter::Adapter;
use bantam_model::bare::Memory;
use bantam_model::checkpoint::{Checkpoint, TensorView};
use bantam_model::plan::{Cut, Fill, Origin, Plan};
use bantam_model::pool::Threads;
use bantam_model::spec::ModelSpec;

use super::TrainError;
use super::gradients::Gradients;
use super::room;

/// What a tensor is to those who choose rates and decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A matrix of a layer, or several in one tensor.
    Matrix,
    /// The table of embeddings; also where it is the head too.
    Embedding,
    /// The head, where it has a tensor of its own.
    Head,
    /// Weight or bias of a norm.
    Norm,
    /// Added to the outputs of a matrix.
    Bias,
    /// Another vector.
    Vector,
    /// Of an adapter: from the inputs to the rank.
    Down,
    /// Of an adapter: from the rank to the outputs.
    Up,
    /// Of an adapter: the lengths of rows.
    Magnitude,
}

/// Where numbers of a tensor are.
#[derive(Debug, Clone)]
enum Home {
    /// In matrices and vectors of the decoder.
    Decoder(Vec<Piece>),
    /// Here.
    Own(Vec<f32>),
}

#[derive(Debug, Clone, Copy)]
enum Piece {
    Matrix(Matrix, Cut),
    Vector(Slot, Cut),
}

/// A tensor that is trained.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in the file that it is saved in.
    pub name: String,
    /// Its dimensions there.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
    range: Range<usize>,
    home: Home,
}

impl Parameter {
    /// Its numbers' places in whatever holds a number for each of all parameters.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// How many matrices are in it, with their rows and columns; the biases of all experts are one. `None` for vectors
    /// and tables.
    pub fn matrices(&self) -> Option<(usize, usize, usize)> {
        let is_matrix = matches!(self.role, Role::Matrix | Role::Down | Role::Up | Role::Bias);
        match self.shape[..] {
            [rows, columns] if is_matrix => Some((1, rows, columns)),
            [count, rows, columns] if is_matrix => Some((count, rows, columns)),
            _ => None,
        }
    }
}

/// Where the gradient of a part of the decoder belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    start: usize,
    cut: Cut,
    columns: usize,
    /// Rows of the part before its first.
    first: usize,
}

impl Target {
    /// The same from a row on.
    pub(crate) fn starting_at(self, row: usize) -> Target {
        Target { first: self.first + row, ..self }
    }

    /// Where its parameter begins.
    pub(crate) fn parameter(&self) -> usize {
        self.start
    }

    /// The place of an element of a vector.
    pub(crate) fn of_element(&self, at: usize) -> usize {
        self.start + self.cut.source_row(self.first + at)
    }

    /// The place of a row's first element, and the distance from one element to the next.
    pub(crate) fn of_row(&self, row: usize) -> (usize, usize) {
        let row = self.cut.source_row(self.first + row);
        match self.cut.turned {
            None => (self.start + self.cut.start + row * self.columns, 1),
            Some(pitch) => (self.start + self.cut.start + row, pitch),
        }
    }

    /// Where so many rows stand, if they stand as they are.
    pub(crate) fn straight(&self, rows: usize) -> Option<Range<usize>> {
        let of = |row: usize| self.cut.source_row(self.first + row);
        let is_straight =
            self.cut.turned.is_none() && self.cut.pairs.is_none() && of(rows - 1) == of(0) + rows - 1;
        let start = self.of_row(0).0;
        is_straight.then(|| start..start + rows * self.columns)
    }
}

/// All that is trained.
#[derive(Debug, Default)]
pub(crate) struct Parameters {
    pub(crate) list: Vec<Parameter>,
    by_name: HashMap<String, usize>,
    /// Targets of matrices and vectors of the decoder, by their offsets.
    targets: HashMap<usize, Target>,
    pub(crate) count: usize,
}

impl Parameters {
    /// Tensors of a model, by their names.
    pub(crate) fn of_model(
        (spec, plan): (&ModelSpec, &Plan),
        checkpoint: &Checkpoint,
        is_trained: &dyn Fn(&str) -> bool,
    ) -> Result<Self, TrainError> {
        let mut all = Parameters::default();
        for fill in &plan.fills {
            let named = |name: &str| checkpoint.tensor(name).expect("the plan was made from this checkpoint");
            match fill {
                Fill::Matrix { origin: Origin::Tensor(name), .. } | Fill::Vector { tensor: name, .. } => {
                    if is_trained(name) {
                        all.add(spec, fill, name, named(name));
                    }
                }
                Fill::Matrix { origin, .. } if is_trained(&origin.tensors()[0]) => {
                    return Err(TrainError::Quantized { tensor: origin.tensors()[0].clone() });
                }
                Fill::Matrix { .. } | Fill::Values { .. } | Fill::Low(_) => {}
            }
        }
        Ok(all)
    }

    /// The whole tensors that an adapter has in the place of the model's.
    pub(crate) fn of_wholes(
        (spec, plan): (&ModelSpec, &Plan),
        adapter: &Adapter,
    ) -> Result<Self, TrainError> {
        let mut all = Parameters::default();
        for fill in &plan.fills {
            let named = |name: &str| adapter.whole(name).expect("the plan was made with this adapter");
            match fill {
                Fill::Matrix { origin: Origin::Whole(name), matrix, .. } => {
                    if matrix.layout.name() != FLOAT32.name() {
                        return Err(TrainError::Adapter { what: "whole tensors in less than float32" });
                    }
                    all.add(spec, fill, name, named(name));
                }
                Fill::Vector { tensor, whole: true, .. } => all.add(spec, fill, tensor, named(tensor)),
                _ => {}
            }
        }
        Ok(all)
    }

    /// A part of the decoder and the tensor that it is from: `name` in the model, `stored` in the file.
    fn add(&mut self, spec: &ModelSpec, fill: &Fill, name: &str, stored: TensorView) {
        let (cut, columns, piece) = match fill {
            Fill::Matrix { matrix, cut, .. } => (*cut, matrix.shape.columns, Piece::Matrix(*matrix, *cut)),
            Fill::Vector { slot, cut, .. } => (*cut, 1, Piece::Vector(*slot, *cut)),
            Fill::Values { .. } | Fill::Low(_) => unreachable!("these are from no tensor"),
        };
        let at = self.by_name.get(stored.name).copied().unwrap_or_else(|| {
            let role = role(spec, name, matches!(piece, Piece::Vector(..)));
            self.push(stored.name.to_owned(), stored.shape.to_vec(), role, Home::Decoder(Vec::new()))
        });
        let start = self.list[at].range.start;
        self.targets.insert(fill.slot().offset, Target { start, cut, columns, first: 0 });
        match &mut self.list[at].home {
            Home::Decoder(pieces) => pieces.push(piece),
            Home::Own(_) => unreachable!("only sides of changes stand by themselves"),
        }
    }

    fn push(&mut self, name: String, shape: Vec<usize>, role: Role, home: Home) -> usize {
        let size: usize = shape.iter().product();
        let range = self.count..self.count + size;
        self.count = range.end;
        self.by_name.insert(name.clone(), self.list.len());
        self.list.push(Parameter { name, shape, role, range, home });
        self.list.len() - 1
    }

    /// Adds a tensor of an adapter, once.
    pub(crate) fn own(
        &mut self,
        name: &str,
        role: Role,
        read: impl FnOnce() -> Result<(Vec<usize>, Vec<f32>), TrainError>,
    ) -> Result<usize, TrainError> {
        match self.by_name.get(name) {
            Some(&at) => Ok(at),
            None => {
                let (shape, values) = read()?;
                Ok(self.push(name.to_owned(), shape, role, Home::Own(values)))
            }
        }
    }

    /// The numbers of a tensor that stands by itself.
    pub(crate) fn own_values(&self, at: usize) -> &[f32] {
        match &self.list[at].home {
            Home::Own(values) => values,
            Home::Decoder(_) => unreachable!("sides of changes stand by themselves"),
        }
    }

    /// How many numbers stand by themselves.
    pub(crate) fn own_count(&self) -> usize {
        let own = self.list.iter().filter(|known| matches!(known.home, Home::Own(_)));
        own.map(|known| known.range.len()).sum()
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Parameter> {
        self.by_name.get(name).map(|&at| &self.list[at])
    }

    pub(crate) fn target(&self, slot: Slot) -> Option<Target> {
        self.targets.get(&slot.offset).copied()
    }

    /// Copies a tensor's numbers, in its own order.
    pub(crate) fn read(&self, at: usize, arena: &Memory, out: &mut [f32]) {
        let pieces = match &self.list[at].home {
            Home::Own(values) => return out.copy_from_slice(values),
            Home::Decoder(pieces) => pieces,
        };
        for piece in pieces {
            match piece {
                Piece::Vector(slot, cut) => {
                    let values = arena.floats(*slot).iter().enumerate();
                    values.for_each(|(row, value)| out[cut.source_row(row)] = *value);
                }
                Piece::Matrix(matrix, cut) => {
                    let tiles = arena.floats(matrix.slot);
                    each_element(matrix, cut, |tile, place| out[place] = tiles[tile]);
                }
            }
        }
    }

    /// Puts other numbers in a tensor's place.
    pub(crate) fn write(&mut self, at: usize, arena: &mut Memory, values: &[f32]) {
        let pieces = match &mut self.list[at].home {
            Home::Own(own) => return own.copy_from_slice(values),
            Home::Decoder(pieces) => pieces,
        };
        for piece in pieces {
            match piece {
                Piece::Vector(slot, cut) => {
                    let out = arena.floats_mut(*slot).iter_mut().enumerate();
                    out.for_each(|(row, out)| *out = values[cut.source_row(row)]);
                }
                Piece::Matrix(matrix, cut) => {
                    let tiles = arena.floats_mut(matrix.slot);
                    each_element(matrix, cut, |tile, place| tiles[tile] = values[place]);
                }
            }
        }
    }
}

/// Numbers that a rule is given at once.
pub(crate) const RUN: usize = 256;
/// Numbers of a tensor that lie one after another and are one thread's task.
const PART: usize = 1 << 14;

/// What is remembered of some numbers, in float32 and in bfloat16.
pub(crate) struct Remembered<'a, const N: usize, const M: usize> {
    pub(crate) floats: [&'a mut [f32]; N],
    pub(crate) halves: [&'a mut [u16]; M],
}

impl<const N: usize, const M: usize> Remembered<'_, N, M> {
    fn part(&mut self, range: Range<usize>) -> Remembered<'_, N, M> {
        Remembered {
            floats: self.floats.each_mut().map(|all| &mut all[range.clone()]),
            halves: self.halves.each_mut().map(|all| &mut all[range.clone()]),
        }
    }

    /// Of how many numbers, at least.
    fn count(&self) -> usize {
        let floats = self.floats.iter().map(|all| all.len());
        floats.chain(self.halves.iter().map(|all| all.len())).min().unwrap_or(0)
    }
}

/// What a rule changes by the gradient: what is remembered, and the numbers.
pub(crate) trait Rule<const N: usize, const M: usize>:
    Fn(&[f32], Remembered<'_, N, M>, &mut [f32]) + Sync
{
}
impl<const N: usize, const M: usize, F: Fn(&[f32], Remembered<'_, N, M>, &mut [f32]) + Sync> Rule<N, M>
    for F
{
}

impl Parameter {
    /// Whether its numbers can be changed where they lie; where not, all are copied.
    pub(crate) fn is_in_place(&self) -> bool {
        let is_straight = |piece: &Piece| match piece {
            Piece::Matrix(matrix, cut) => stretch(matrix, cut).is_some(),
            Piece::Vector(..) => false,
        };
        match &self.home {
            Home::Own(_) => true,
            Home::Decoder(pieces) => pieces.iter().all(is_straight),
        }
    }
}

/// Where all rows of a matrix lie in its tensor, if they do one after another.
fn stretch(matrix: &Matrix, cut: &Cut) -> Option<Range<usize>> {
    let columns = matrix.shape.columns;
    Target { start: 0, cut: *cut, columns, first: 0 }.straight(matrix.shape.rows)
}

impl Parameters {
    /// Changes a tensor by a rule, part by part on all threads.
    pub(crate) fn update<const N: usize, const M: usize>(
        &mut self,
        at: usize,
        (arena, pool): (&mut Memory, &Threads),
        gradients: &Gradients,
        mut memory: Remembered<'_, N, M>,
        buffer: &mut Vec<f32>,
        rule: impl Rule<N, M>,
    ) {
        let parameter = &mut self.list[at];
        let (start, is_in_place) = (parameter.range.start, parameter.is_in_place());
        let in_parts = |values: &mut [f32], memory: Remembered<'_, N, M>| {
            let beside = (memory.floats, memory.halves, PART);
            each_part_beside(pool, (values, PART), beside, |number, values, floats, halves| {
                let memory = Remembered { floats, halves };
                in_runs(gradients, start + number * PART, memory, values, &rule);
            });
        };
        match &mut parameter.home {
            Home::Own(values) => in_parts(values, memory),
            Home::Decoder(_) if !is_in_place => {
                let values = room(buffer, parameter.range.len());
                self.read(at, arena, values);
                in_parts(values, memory);
                self.write(at, arena, values);
            }
            Home::Decoder(pieces) => {
                for piece in pieces {
                    let Piece::Matrix(matrix, cut) = piece else { unreachable!("vectors are copied") };
                    let range = stretch(matrix, cut).expect("its rows lie one after another");
                    let memory = memory.part(range.clone());
                    let (columns, tiles) = (matrix.shape.columns, arena.floats_mut(matrix.slot));
                    let width = TILE_ROWS * columns;
                    let beside = (memory.floats, memory.halves, width);
                    each_part_beside(pool, (tiles, width), beside, |number, tile, floats, halves| {
                        let first = start + range.start + number * width;
                        let memory = Remembered { floats, halves };
                        of_tile(gradients, (first, columns), memory, tile, &rule);
                    });
                }
            }
        }
    }
}

fn in_runs<const N: usize, const M: usize>(
    gradients: &Gradients,
    start: usize,
    mut memory: Remembered<'_, N, M>,
    values: &mut [f32],
    rule: &impl Rule<N, M>,
) {
    let mut gradient = [0.0; RUN];
    for (number, values) in values.chunks_mut(RUN).enumerate() {
        let (first, gradient) = (number * RUN, &mut gradient[..values.len()]);
        gradients.read(start + first..start + first + values.len(), gradient);
        rule(gradient, memory.part(first..first + values.len()), values);
    }
}

/// The same of a float32 tile, whose rows are turned over for it.
fn of_tile<const N: usize, const M: usize>(
    gradients: &Gradients,
    (start, columns): (usize, usize),
    mut memory: Remembered<'_, N, M>,
    tile: &mut [f32],
    rule: &impl Rule<N, M>,
) {
    let count = memory.count();
    let mut rows = [[0.0; RUN]; TILE_ROWS];
    for (number, words) in tile.chunks_mut(RUN * TILE_ROWS).enumerate() {
        let words = words.as_chunks_mut::<TILE_ROWS>().0;
        for (column, word) in words.iter().enumerate() {
            rows.iter_mut().zip(word).for_each(|(row, x)| row[column] = *x);
        }
        // Of the last tile of a matrix not all rows are there.
        for (row, values) in rows.iter_mut().enumerate() {
            let first = row * columns + number * RUN;
            if first + words.len() > count {
                break;
            }
            let memory = memory.part(first..first + words.len());
            in_runs(gradients, start + first, memory, &mut values[..words.len()], rule);
        }
        for (column, word) in words.iter_mut().enumerate() {
            word.iter_mut().zip(&rows).for_each(|(x, row)| *x = row[column]);
        }
    }
}

/// Visits the places of a matrix's elements, in its float32 tiles and in its tensor.
fn each_element(matrix: &Matrix, cut: &Cut, mut visit: impl FnMut(usize, usize)) {
    let columns = matrix.shape.columns;
    let target = Target { start: 0, cut: *cut, columns, first: 0 };
    for row in 0..matrix.shape.rows {
        let (first, step) = target.of_row(row);
        let tile = row / TILE_ROWS * TILE_ROWS * columns + row % TILE_ROWS;
        (0..columns).for_each(|column| visit(tile + column * TILE_ROWS, first + column * step));
    }
}

/// What a tensor of a model is, by its name.
pub(crate) fn role(spec: &ModelSpec, name: &str, is_vector: bool) -> Role {
    let names = spec.names;
    let is = |module: &str| name.strip_suffix(".weight") == Some(module);
    if is(names.embedding) {
        return Role::Embedding;
    }
    if is(names.head) {
        return Role::Head;
    }
    if !is_vector {
        return Role::Matrix;
    }
    let of_pairs = [names.head_norms, names.post_norms].into_iter().flatten().flatten();
    let norms = of_pairs.chain([names.attention_norm, names.mlp_norm, names.final_norm]);
    let module = name.rsplit_once('.').map_or("", |(module, _)| module);
    let is_norm = |norm: &str| module == norm || module.ends_with(&format!(".{norm}"));
    match () {
        () if norms.into_iter().any(is_norm) => Role::Norm,
        () if name.ends_with("bias") => Role::Bias,
        () => Role::Vector,
    }
}
