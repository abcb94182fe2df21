//! Which matrices get a second plane, where bits are given for all of them together.
//!
//! A second plane takes most of a matrix's error away. What that is worth to the stream: the part of the output that
//! was wrong, times what the output's half of the block (attention, feed-forward) adds to the stream, in squares.
//! Matrices are taken by worth per bit until the bits are spent; the experts of one stack together.

use std::collections::HashMap;

use bantam_core::Cpu;
use bantam_model::block::{Block, BlockInput, Module, Streams};
use bantam_model::source::Source;

use super::feedback::{Hessian, Order};
use super::inputs::Kept;
use super::linear::Work;
use super::{said, ternary};
use crate::layerwise::MethodError;

/// Planes of every matrix by its name; those that are not there have one.
pub(super) type Chosen = HashMap<String, usize>;

/// Bits of a weight with all that stands beside it, in one plane.
pub fn plane_bits(group: Option<usize>, columns: usize) -> f64 {
    13.0 * 8.0 / 64.0 + 16.0 / group.unwrap_or(columns).min(columns) as f64
}

/// Matrices that have the same number of planes.
struct Candidate {
    names: Vec<String>,
    weights: usize,
    /// Of a plane.
    bits: f64,
    /// Of what stands beside planes, however many they are.
    beside: f64,
    worth: f64,
}

impl Candidate {
    fn join(&mut self, other: Candidate) {
        self.names.extend(other.names);
        self.weights += other.weights;
        self.bits += other.bits;
        self.beside += other.beside;
        self.worth += other.worth;
    }
}

/// Experts whose squares are gathered at once.
const TOGETHER: usize = 8;

/// What the names of experts that lie side by side have in common.
fn without_numbers(name: &str) -> String {
    name.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
}

/// Chooses by what a few sequences show. `bits` is the mean over all matrices of the blocks.
pub(super) fn choose(
    source: &Source,
    settings: &ternary::Settings,
    bits: f64,
    mut streams: Streams,
    cpu: Cpu,
    work: Work,
    threads: usize,
) -> Result<Chosen, MethodError> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for layer in 0..source.spec.layers.len() {
        let load = Block::load(source, layer, streams.length, cpu, threads, None);
        let mut block = load.map_err(|error| said(&error))?;
        of_block(work, settings, &mut block, &mut streams, &mut candidates);
    }
    let weights: usize = candidates.iter().map(|candidate| candidate.weights).sum();
    let spent: f64 = candidates.iter().map(|candidate| candidate.bits + candidate.beside).sum();
    let mut left = bits * weights as f64 - spent;
    if left < 0.0 {
        let least = spent / weights.max(1) as f64;
        return Err(MethodError(format!(
            "expected at least {least:.3} bits for one plane, found {bits}; raise --bits, or choose a larger group"
        )));
    }
    candidates.sort_by(|a, b| (b.worth / b.bits).total_cmp(&(a.worth / a.bits)));
    let mut chosen = Chosen::new();
    for candidate in candidates {
        // What no longer fits leaves its room to smaller ones.
        if candidate.bits <= left {
            left -= candidate.bits;
            chosen.extend(candidate.names.into_iter().map(|name| (name, 2)));
        }
    }
    Ok(chosen)
}

fn of_block(
    work: Work,
    settings: &ternary::Settings,
    block: &mut Block,
    streams: &mut Streams,
    candidates: &mut Vec<Candidate>,
) {
    let is_mixture = block.modules().iter().any(|module| module.is_expert);
    let is_router =
        |module: &Module| is_mixture && module.input == BlockInput::FeedForward && !module.is_expert;
    let modules = (0..block.modules().len()).filter(|&at| !is_router(&block.modules()[at]));
    let (experts, plain): (Vec<usize>, Vec<usize>) = modules.partition(|&at| block.modules()[at].is_expert);
    let mut of_layer: Vec<(String, Candidate, BlockInput)> = Vec::new();
    for modules in std::iter::once(plain.as_slice()).chain(experts.chunks(TOGETHER)) {
        let kept = Kept::gather(work, block, streams, modules, None);
        for &module in modules {
            let Module { name, shape, input, is_expert } = block.modules()[module].clone();
            let squares = &kept.of(module).own;
            let hessian = Hessian::new(work, squares, shape.columns, Order::Given, settings.damp);
            let worth = ternary::gain(work, settings, &hessian, shape, &block.weights(module));
            let weights = shape.rows * shape.columns;
            let bits = weights as f64 * plane_bits(settings.group, shape.columns);
            let key = if is_expert { without_numbers(&name) } else { name.clone() };
            let beside = if settings.columns { shape.columns as f64 * 32.0 } else { 0.0 };
            let one = Candidate { names: vec![name], weights, bits, beside, worth };
            match of_layer.iter_mut().find(|(known, ..)| *known == key) {
                Some((_, candidate, _)) => candidate.join(one),
                None => of_layer.push((key, one, input)),
            }
        }
    }
    let shares = shares(block, streams);
    for (_, mut candidate, input) in of_layer {
        let is_attention = matches!(input, BlockInput::Attention | BlockInput::Attended);
        // Of experts the mean: a row passes through few of them.
        candidate.worth *= shares[usize::from(!is_attention)] / candidate.names.len() as f64;
        candidates.push(candidate);
    }
}

/// What attention and the feed-forward block add to the stream, as a part of its squares; then the streams have passed
/// the block.
fn shares(block: &mut Block, streams: &mut Streams) -> [f64; 2] {
    let before = streams.clone();
    // Attention alone: without what comes after it.
    let last: Vec<usize> =
        (0..block.modules().len()).filter(|&at| block.modules()[at].input == BlockInput::Bent).collect();
    let weights: Vec<Vec<f32>> = last.iter().map(|&module| block.weights(module)).collect();
    let mut between = streams.clone();
    for (&module, weights) in last.iter().zip(&weights) {
        block.set_weights(module, &vec![0.0; weights.len()]).expect("zeros are finite");
    }
    block.run(&mut between, &mut ());
    for (&module, weights) in last.iter().zip(&weights) {
        block.set_weights(module, weights).expect("they were finite");
    }
    block.run(streams, &mut ());
    let square = |a: &[f32], b: Option<&[f32]>| -> f64 {
        let pairs = a.iter().enumerate().map(|(at, a)| f64::from(a - b.map_or(0.0, |b| b[at])));
        pairs.map(|difference| difference * difference).sum()
    };
    let whole = square(&streams.values, None).max(f64::MIN_POSITIVE);
    [
        square(&between.values, Some(&before.values)) / whole,
        square(&streams.values, Some(&between.values)) / whole,
    ]
}
