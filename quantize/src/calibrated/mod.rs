//! Methods that look at a model at work: each block is loaded on its own, sees the hidden states of calibration text,
//! and is quantized matrix by matrix; what the quantized block makes of the states is what the next one sees.
//!
//! In memory are one block in float32 (of experts that become ternary, the codes that they are stored in and those that
//! they get), the states, the squares of inputs of as many matrices as the budget allows, and where targets are
//! corrected, the original's inputs of one block. [`memory::bytes`] says how much that is.

pub mod awq;
pub mod feedback;
pub mod gptq;
pub mod linear;
pub mod memory;
pub mod sample;
pub mod ternary;

mod inputs;
#[cfg(test)]
mod model_tests;
mod planes;
mod scaled;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};

use bantam_core::Cpu;
use bantam_core::layouts::Shape;
use bantam_core::layouts::coded::{Coding, TRITS};
use bantam_model::block::{Block, BlockInput, Module, Replaced, Streams};
use bantam_model::formats::ternary::BLOCK;
use bantam_model::pool::Threads;
use bantam_model::source::Source;

use crate::layerwise::{Hand, Layerwise, Listed, MethodError, Scales};
use crate::matrix::Quantized;
use feedback::{Hessian, Order};
use inputs::{Kept, Targets};
use linear::Work;
pub use planes::plane_bits;

/// What becomes of the matrices.
#[derive(Debug, Clone)]
pub enum Method {
    /// Codes of few bits, rounded with feedback.
    Gptq(gptq::Settings),
    /// Four bits after a search for scales and ends.
    Awq(awq::Settings),
    /// Trits.
    Ternary(ternary::Settings, Planes),
}

impl Method {
    /// What becomes of a mixture's experts before the block is done, where that takes less memory than float32.
    /// Codes alone: with factors of columns they are float32.
    fn replaced(&self) -> Option<Replaced> {
        let Method::Ternary(ternary::Settings { columns: false, .. }, planes) = self else { return None };
        let times = match planes {
            Planes::All(planes) => *planes,
            Planes::Bits(_) => 2,
        };
        Some(Replaced { coding: Coding { book: &TRITS, bits: 2, run: BLOCK }, times })
    }
}

/// How many trits a weight is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Planes {
    /// As many for all: 1 or 2.
    All(usize),
    /// Two for the matrices that gain most, by so many bits for a weight of all blocks, side data included.
    Bits(f64),
}

/// How a model is calibrated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What becomes of the matrices.
    pub method: Method,
    /// Positions of a sequence of calibration text.
    pub length: usize,
    /// Bytes for the squares of inputs that are gathered at once; one matrix's are always.
    pub squares_bytes: usize,
    /// Whether matrices are fitted to what the original's make of the original's inputs, so that errors of earlier
    /// blocks are made good where they can be. It takes the original's inputs of one block in memory.
    pub correct: bool,
    /// Threads that compute.
    pub threads: usize,
}

/// Sequences that show which matrices gain most from a second plane.
const PLANES_SEQUENCES: usize = 16;

/// A model on its way through a method.
#[derive(Debug)]
pub struct Calibrated<'a> {
    source: &'a Source,
    settings: Settings,
    cpu: Cpu,
    pool: Threads,
    /// What the blocks that are quantized make of the text.
    streams: Streams,
    /// What the original's make of it, where that is asked for.
    original: Option<Streams>,
    /// Of matrices that have another number of planes than one.
    planes: planes::Chosen,
}

impl<'a> Calibrated<'a> {
    /// A model with the tokens that calibrate it.
    pub fn new(
        source: &'a Source,
        settings: Settings,
        tokens: &[u32],
        cpu: Cpu,
    ) -> Result<Self, MethodError> {
        if tokens.len() < settings.length {
            return Err(MethodError(format!(
                "expected calibration text of at least {} tokens, found {}; give more text",
                settings.length,
                tokens.len()
            )));
        }
        let streams = Streams::embed(source, tokens, settings.length).map_err(|error| said(&error))?;
        let pool = Threads::start(settings.threads).map_err(|error| said(&error))?;
        let is_corrected = settings.correct && !matches!(settings.method, Method::Awq(_));
        let original = is_corrected.then(|| streams.clone());
        let planes = match settings.method {
            Method::Ternary(of, Planes::Bits(bits)) => {
                let sequences = PLANES_SEQUENCES.min(streams.sequences()) * streams.length * streams.width;
                let few = Streams { values: streams.values[..sequences].to_vec(), ..streams };
                let work = Work { cpu, pool: &pool };
                planes::choose(source, &of, bits, few, cpu, work, settings.threads)?
            }
            _ => planes::Chosen::new(),
        };
        Ok(Calibrated { source, settings, cpu, pool, streams, original, planes })
    }

    fn work(&self) -> Work<'_> {
        Work { cpu: self.cpu, pool: &self.pool }
    }

    /// Quantizes the modules of one input, and puts what they have become in their place.
    fn stage(
        &self,
        block: &mut Block,
        modules: &[usize],
        targets: Option<&Targets>,
        scales: &Scales,
        hand: &mut dyn Hand,
    ) -> Result<(), MethodError> {
        for modules in self.batches(block, modules) {
            let kept = Kept::gather(self.work(), block, &self.streams, &modules, targets);
            let mut shared: Option<(usize, Hessian)> = None;
            for &module in &modules {
                let (squares, number) = (kept.of(module), kept.shared(module));
                let weights = block.weights(module);
                let bias = self.bias_without_mean(block, module);
                let centred = bias.as_ref().map(|_| squares.centred());
                let squares_of = centred.as_ref().unwrap_or(squares);
                let known = shared.take().filter(|(of, _)| *of == number && centred.is_none());
                let hessian =
                    known.map_or_else(|| self.hessian(block, module, squares_of), |(_, known)| known);
                let (quantized, stages) = self.quantize(block, module, squares_of, &hessian, &weights);
                let name = block.modules()[module].name.clone();
                if let Some(bias) = bias {
                    let lacking = squares.bias_lacks(&weights, &quantized.values());
                    let values = block.vector_mut(&bias).expect("it was found there");
                    values.iter_mut().zip(&lacking).for_each(|(value, lacking)| *value += lacking);
                    hand.changed(&bias, values)?;
                } else {
                    shared = Some((number, hessian));
                }
                place(block, module, &quantized)?;
                hand.quantized(&name, quantized, scales, &stages)?;
            }
        }
        Ok(())
    }

    /// The bias of a module that answers for the mean of its inputs. Experts' lie together, and stay.
    fn bias_without_mean(&self, block: &Block, module: usize) -> Option<String> {
        let Method::Ternary(ternary::Settings { mean_removal: true, .. }, _) = self.settings.method else {
            return None;
        };
        let Module { name, shape, is_expert, .. } = &block.modules()[module];
        let bias = format!("{name}.bias");
        let is_whole = block.vector(&bias).is_some_and(|values| values.len() == shape.rows);
        (is_whole && !is_expert).then_some(bias)
    }

    /// Modules whose squares fit into the budget together. Those that share an input stay together.
    fn batches(&self, block: &Block, modules: &[usize]) -> Vec<Vec<usize>> {
        let mut batches: Vec<Vec<usize>> = vec![Vec::new()];
        let mut bytes = 0;
        for &module in modules {
            let Module { shape: Shape { columns: width, .. }, is_expert, .. } = block.modules()[module];
            let more = 4 * width * width * if self.original.is_some() && !is_expert { 2 } else { 1 };
            if bytes > 0 && bytes + more > self.settings.squares_bytes {
                batches.push(Vec::new());
                bytes = 0;
            }
            bytes += more;
            batches.last_mut().expect("there is one").push(module);
        }
        batches
    }

    /// Scales the inputs of some modules where that is asked for and of use.
    fn equalise(
        &self,
        number: usize,
        block: &mut Block,
        modules: &[usize],
        targets: Option<&mut Targets>,
        hand: &mut dyn Hand,
    ) -> Result<Scales, MethodError> {
        let Method::Ternary(settings @ ternary::Settings { equalise: true, .. }, _) = &self.settings.method
        else {
            return Ok(Scales::default());
        };
        let columns = scaled::equalise(self, settings, number, block, modules, hand)?;
        if let (Some(columns), Some(targets)) = (&columns, targets) {
            targets.divide(modules, columns);
        }
        Ok(Scales { columns, rows: None })
    }

    fn hessian(&self, block: &Block, module: usize, squares: &inputs::Squares) -> Hessian {
        let width = block.modules()[module].shape.columns;
        match &self.settings.method {
            Method::Gptq(settings) => settings.hessian(self.work(), &squares.own, width),
            Method::Ternary(ternary::Settings { damp, .. }, _) => {
                Hessian::new(self.work(), &squares.own, width, Order::LargestFirst, *damp)
            }
            Method::Awq(_) => unreachable!("AWQ has a way of its own"),
        }
    }

    fn quantize(
        &self,
        block: &Block,
        module: usize,
        squares: &inputs::Squares,
        hessian: &Hessian,
        weights: &[f32],
    ) -> (Quantized, ternary::Stages) {
        let Module { name, shape, .. } = &block.modules()[module];
        let work = self.work();
        let wanted = squares.wanted(work, hessian, weights.to_vec());
        match &self.settings.method {
            Method::Gptq(settings) => {
                let found = Quantized::Grouped(gptq::quantize(work, *settings, hessian, *shape, &wanted));
                let loss = relative_loss(work, hessian, &wanted, &found.values());
                (found, vec![("feedback", loss)])
            }
            Method::Ternary(settings, planes) => {
                let planes = match planes {
                    Planes::All(planes) => *planes,
                    Planes::Bits(_) => self.planes.get(name).copied().unwrap_or(1),
                };
                let fit = if settings.columns { ternary::columns::fitted } else { ternary::quantize };
                let (found, stages) = fit(work, settings, hessian, *shape, planes, &wanted);
                (Quantized::Trits(found), stages)
            }
            Method::Awq(_) => unreachable!("AWQ has a way of its own"),
        }
    }
}

/// Puts what a module has become in its place.
fn place(block: &mut Block, module: usize, quantized: &Quantized) -> Result<(), MethodError> {
    let is_set = match quantized {
        Quantized::Trits(trits) if block.takes_codes(module) => {
            block.set_codes(module, &|row, out| trits.codes(row, out))
        }
        _ => block.set_weights(module, &quantized.values()),
    };
    is_set.map_err(|_| {
        let name = &block.modules()[module].name;
        MethodError(format!("{name}: expected finite weights after quantizing; raise --damp"))
    })
}

fn relative_loss(work: Work, hessian: &Hessian, wanted: &[f32], found: &[f32]) -> f64 {
    let width = hessian.width;
    let errors: Vec<f32> = wanted.iter().zip(found).map(|(a, b)| a - b).collect();
    let sum = |rows: &[f32]| -> f64 {
        let ordered: Vec<f32> = rows.chunks_exact(width).flat_map(|row| hessian.ordered(row)).collect();
        hessian.losses(work, &ordered).iter().sum()
    };
    let whole = sum(wanted);
    if whole > 0.0 { sum(&errors) / whole } else { 0.0 }
}

/// An error of another room, in its own words.
fn said(error: &dyn std::error::Error) -> MethodError {
    MethodError(error.to_string())
}

impl Layerwise for Calibrated<'_> {
    fn layer(&mut self, number: usize, matrices: &[Listed], hand: &mut dyn Hand) -> Result<(), MethodError> {
        let (length, threads) = (self.settings.length, self.settings.threads);
        let replaced = self.settings.method.replaced();
        let load = Block::load(self.source, number, length, self.cpu, threads, replaced);
        let mut block = load.map_err(|error| said(&error))?;
        let is_listed =
            |module: &usize| matrices.iter().any(|listed| listed.name == block.modules()[*module].name);
        let listed: Vec<usize> = (0..block.modules().len()).filter(is_listed).collect();
        if listed.len() < matrices.len() {
            let missing =
                matrices.iter().find(|&one| block.modules().iter().all(|module| module.name != one.name));
            let name = missing.map_or("", |listed| &listed.name);
            return Err(MethodError(format!(
                "expected matrix {name} in layer {number}, found none of that name"
            )));
        }
        let mut targets = self.original.as_mut().map(|original| Targets::take(&mut block, original, &listed));
        if let Method::Awq(settings) = self.settings.method.clone() {
            return scaled::layer(self, &settings, number, &mut block, &listed, hand);
        }
        for input in [BlockInput::Attention, BlockInput::Attended, BlockInput::FeedForward, BlockInput::Bent]
        {
            let of_input = |module: &usize| block.modules()[*module].input == input;
            let modules: Vec<usize> = listed.iter().copied().filter(of_input).collect();
            let scales = self.equalise(number, &mut block, &modules, targets.as_mut(), hand)?;
            self.stage(&mut block, &modules, targets.as_ref(), &scales, hand)?;
            targets.iter_mut().for_each(|targets| targets.forget(&modules));
        }
        block.run(&mut self.streams, &mut ());
        Ok(())
    }

    fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        for streams in [Some(&self.streams), self.original.as_ref()].into_iter().flatten() {
            out.write_all(bytemuck::cast_slice(&streams.values))?;
        }
        Ok(())
    }

    fn restore(&mut self, _: usize, input: &mut dyn Read) -> io::Result<()> {
        for streams in [Some(&mut self.streams), self.original.as_mut()].into_iter().flatten() {
            input.read_exact(bytemuck::cast_slice_mut(&mut streams.values))?;
        }
        Ok(())
    }
}
