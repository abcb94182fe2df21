//! The matrices of a checkpoint under the names and in the shapes of its files: what a quantizer makes smaller.
//!
//! A plan cuts tensors into the matrices of a decoder; this puts the cuts together again. Values are read one matrix at
//! a time, of a stack one expert at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use bantam_core::Cpu;
use bantam_core::layouts::Shape;

use crate::checkpoint::{Checkpoint, TensorView};
use crate::formats::Packed;
use crate::plan::{Fill, Options, Origin, Plan};
use crate::source::{Source, SourceError};
use crate::weights::{Unpacked, WeightsError, check_notes, not_finite, quantized, unreadable};

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A product in a layer.
    Layer,
    /// The choice of experts.
    Router,
    /// Tokens to vectors; also the head, where the two are one.
    Embedding,
    /// Vectors to logits.
    Head,
}

/// A matrix, or the matrices of all experts in one tensor.
#[derive(Debug, Clone)]
pub struct Module {
    /// As in the checkpoint, without `.weight`; of a stack, the tensor.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The layer that it stands in.
    pub layer: Option<usize>,
    /// Outputs and inputs, of one expert where there are several.
    pub shape: Shape,
    /// How many matrices there are, where the tensor holds several.
    pub experts: Option<usize>,
    held: Held,
}

#[derive(Debug, Clone)]
enum Held {
    /// Numbers; `turned` where inputs come first.
    Tensor { name: String, turned: bool },
    /// One per matrix.
    Packed(Vec<Packed>),
}

impl Module {
    /// Names of all tensors that hold it.
    pub fn tensors(&self) -> Vec<&str> {
        match &self.held {
            Held::Tensor { name, .. } => vec![name],
            Held::Packed(packed) => packed.iter().flat_map(Packed::names).collect(),
        }
    }

    /// Whether it is quantized already.
    pub fn is_quantized(&self) -> bool {
        matches!(self.held, Held::Packed(_))
    }

    /// The tensor, where it is one of numbers.
    pub fn tensor<'a>(&self, checkpoint: &'a Checkpoint) -> Option<TensorView<'a>> {
        match &self.held {
            Held::Tensor { name, .. } => checkpoint.tensor(name),
            Held::Packed(_) => None,
        }
    }

    /// Its weights without the experts' number.
    pub fn weights(&self) -> usize {
        self.shape.rows * self.shape.columns * self.experts.unwrap_or(1)
    }

    /// Bytes that reading a matrix takes for a while, beside its values.
    pub fn scratch_bytes(&self, checkpoint: &Checkpoint) -> usize {
        match &self.held {
            Held::Tensor { .. } => 2 * STEP.min(self.shape.rows * self.shape.columns) * 8,
            Held::Packed(packed) => {
                let views = packed[0].sources(checkpoint);
                views.iter().map(|view| view.data.len()).sum::<usize>() / self.experts.unwrap_or(1) * 3
            }
        }
    }

    /// Reads the values of expert number `expert`, row by row; of a matrix that stands alone, number 0.
    pub fn read(
        &self,
        checkpoint: &Checkpoint,
        expert: usize,
        values: &mut Vec<f32>,
    ) -> Result<(), WeightsError> {
        values.clear();
        values.resize(self.shape.rows * self.shape.columns, 0.0);
        let view = match &self.held {
            Held::Packed(packed) => {
                self.read_packed(&packed[expert], checkpoint, values)?;
                packed[expert].sources(checkpoint)[0]
            }
            Held::Tensor { name, turned } => {
                let view = checkpoint.tensor(name).expect("the module was found in this checkpoint");
                match turned {
                    true => self.read_turned(&view, expert, values)?,
                    false => read_plain(&view, expert * values.len(), values)?,
                }
                view
            }
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(not_finite(&view, at / self.shape.columns, at % self.shape.columns)),
            None => Ok(()),
        }
    }

    /// Reads some rows of a matrix that stands alone: a vocabulary has too many to be read at once.
    ///
    /// # Panics
    /// If it is quantized, or its inputs come first.
    pub fn read_rows(
        &self,
        checkpoint: &Checkpoint,
        rows: Range<usize>,
        values: &mut Vec<f32>,
    ) -> Result<(), WeightsError> {
        let Held::Tensor { name, turned: false } = &self.held else {
            panic!("{}: no matrix of numbers, row by row", self.name);
        };
        let (view, columns) =
            (checkpoint.tensor(name).expect("the module was found in this checkpoint"), self.shape.columns);
        values.clear();
        values.resize(rows.len() * columns, 0.0);
        read_plain(&view, rows.start * columns, values)?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(not_finite(&view, rows.start + at / columns, at % columns)),
            None => Ok(()),
        }
    }

    fn read_turned(&self, view: &TensorView, expert: usize, values: &mut [f32]) -> Result<(), WeightsError> {
        let Shape { rows, columns } = self.shape;
        let together = (STEP / rows).clamp(1, columns);
        let (mut stored, mut scratch) = (vec![0.0; together * rows], Vec::new());
        for first in (0..columns).step_by(together) {
            let count = together.min(columns - first);
            let stored = &mut stored[..count * rows];
            let start = (expert * columns + first) * rows;
            view.load_f32(start, stored, &mut scratch).map_err(|error| unreadable(view, error))?;
            for (row, out) in values.chunks_exact_mut(columns).enumerate() {
                for (column, out) in out[first..first + count].iter_mut().enumerate() {
                    *out = stored[column * rows + row];
                }
            }
        }
        Ok(())
    }

    fn read_packed(
        &self,
        packed: &Packed,
        checkpoint: &Checkpoint,
        values: &mut [f32],
    ) -> Result<(), WeightsError> {
        check_notes(packed, checkpoint)?;
        let sources = packed.sources(checkpoint);
        let unpacked = Unpacked::read(packed, &sources)?;
        let rows = unpacked.rows()?;
        let columns = self.shape.columns;
        values.chunks_exact_mut(columns).enumerate().for_each(|(row, out)| rows.row(row, out));
        let Some(name) = &packed.divisors else { return Ok(()) };
        let view = checkpoint.tensor(name).expect("the module was found in this checkpoint");
        let mut divisors = vec![0.0; columns];
        view.load_f32(0, &mut divisors, &mut Vec::new()).map_err(|error| unreadable(&view, error))?;
        if let Some(at) = divisors.iter().position(|divisor| !divisor.is_finite() || *divisor == 0.0) {
            let reason = format!("expected numbers to divide by, found {} at element {at}", divisors[at]);
            return Err(quantized(&view, reason));
        }
        for row in values.chunks_exact_mut(columns) {
            row.iter_mut().zip(&divisors).for_each(|(value, divisor)| *value /= divisor);
        }
        Ok(())
    }
}

/// Elements that are read at a time.
const STEP: usize = 1 << 20;

/// Elements of a tensor from number `at` on.
fn read_plain(view: &TensorView, mut at: usize, values: &mut [f32]) -> Result<(), WeightsError> {
    let mut scratch = Vec::new();
    for part in values.chunks_mut(STEP) {
        view.load_f32(at, part, &mut scratch).map_err(|error| unreadable(view, error))?;
        at += part.len();
    }
    Ok(())
}

/// All matrices of a model, in the order in which a decoder meets them.
pub fn modules(source: &Source) -> Result<Vec<Module>, SourceError> {
    let plan = source.plan(Options::SMALLEST, Cpu::detect())?;
    let (before, after) = source.spec.names.layer.split_once("{}").unwrap_or((source.spec.names.layer, ""));
    let layer = |name: &str| {
        let rest = name.strip_prefix(before)?;
        let (number, _) = rest.split_once(after)?;
        number.parse().ok()
    };
    let mut found: Vec<Module> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for fill in &plan.fills {
        let Fill::Matrix { origin, cut, .. } = fill else { continue };
        let role = role(&plan, fill);
        let mut module = match origin {
            Origin::Tensor(name) | Origin::Whole(name) => {
                of_tensor(&source.checkpoint, name, cut.turned.is_some())
            }
            Origin::Packed(packed) => of_packed(packed),
        };
        (module.role, module.layer) = (role, layer(&module.name));
        match places.get(&module.name) {
            // The parts of a fused matrix name it several times, experts in one tensor once for each.
            Some(&place) => found[place].add(module),
            None => {
                places.insert(module.name.clone(), found.len());
                found.push(module);
            }
        }
    }
    Ok(found)
}

fn role(plan: &Plan, fill: &Fill) -> Role {
    let (slot, weights) = (fill.slot(), &plan.weights);
    let is_router =
        |layer: &crate::plan::LayerWeights| layer.router.is_some_and(|router| router.matrix.slot == slot);
    match () {
        () if slot == weights.embedding.slot => Role::Embedding,
        () if slot == weights.head.matrix.slot => Role::Head,
        () if weights.layers.iter().any(is_router) => Role::Router,
        () => Role::Layer,
    }
}

fn of_tensor(checkpoint: &Checkpoint, name: &str, turned: bool) -> Module {
    let view = checkpoint.tensor(name).expect("the plan was made from this checkpoint");
    let (experts, [a, b]) = match *view.shape {
        [experts, a, b] => (Some(experts), [a, b]),
        [a, b] => (None, [a, b]),
        _ => unreachable!("the plan checked the dimensions of {name}"),
    };
    let shape = if turned { Shape { rows: b, columns: a } } else { Shape { rows: a, columns: b } };
    let module = name.strip_suffix(".weight").unwrap_or(name).to_owned();
    let held = Held::Tensor { name: name.to_owned(), turned };
    Module { name: module, role: Role::Layer, layer: None, shape, experts, held }
}

fn of_packed(packed: &Packed) -> Module {
    // Experts in one tensor are modules with a number.
    let stack = packed.module.rsplit_once('.').filter(|_| !packed.parts.is_empty());
    let name = stack.map_or(packed.module.as_str(), |(stack, _)| stack).to_owned();
    let (shape, experts) = (packed.shape, stack.map(|_| 1));
    let held = Held::Packed(vec![packed.clone()]);
    Module { name, role: Role::Layer, layer: None, shape, experts, held }
}

impl Module {
    /// Takes another expert, or what is already there.
    fn add(&mut self, other: Module) {
        let (Held::Packed(packed), Held::Packed(mut more)) = (&mut self.held, other.held) else { return };
        more.retain(|more| packed.iter().all(|packed| packed.module != more.module));
        packed.append(&mut more);
        self.experts = self.experts.map(|_| packed.len());
    }
}
