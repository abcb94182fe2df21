//! From gradients to other weights: clipping, and the rules that take a step, with the arithmetic of the tools that
//! people know them from.
//!
//! A rule is chosen for each parameter, with its own rate and decay; rates that follow a schedule are factors of those.

mod elementwise;
pub mod muon;
pub mod schedule;
mod short;

use crate::step::parameters::{Parameter, RUN, Remembered};
use crate::step::{Training, room, rounded, widened};
use elementwise::{adamw, sgd};
pub use muon::{Muon, Variant};

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// How slowly the mean of gradients, and that of their squares, follow.
    pub betas: [f64; 2],
    /// Added to the root.
    pub epsilon: f64,
    /// Whether that is added before the root is corrected for the mean's beginning, as Moonlight does it; torch adds it
    /// after.
    pub is_early: bool,
}

/// SGD's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// What is kept of the last step; nothing is remembered where it is zero.
    pub momentum: f64,
    /// Whether the gradient is looked at where the momentum leads.
    pub nesterov: bool,
}

/// How a parameter takes a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Adam with decay apart from the gradient.
    AdamW(AdamW),
    /// The same, of whose first mean bfloat16 is kept, in which gradients come there.
    HalfAdamW(AdamW),
    /// The same, of whose memory eight bits are kept.
    ShortAdamW(AdamW),
    /// The gradient, with momentum.
    Sgd(Sgd),
    /// Orthogonalized momentum. For matrices alone.
    Muon(Muon),
}

/// A parameter's rule with its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// How it takes a step.
    pub rule: Rule,
    /// Of the schedule's factor 1.
    pub rate: f64,
    /// Weights shrink by rate times this.
    pub decay: f64,
}

/// Whether weight decay is for a parameter: neither for norms nor for biases, as the Trainer of transformers has it.
pub fn is_decayed(parameter: &Parameter) -> bool {
    use crate::step::parameters::Role;
    !matches!(parameter.role, Role::Norm | Role::Bias) && !parameter.name.contains("bias")
}

/// Whether what is remembered of a parameter is short where that is asked for: neither of small ones nor of embeddings,
/// as bitsandbytes and the Trainer have it.
pub fn is_shortened(parameter: &Parameter) -> bool {
    use crate::step::parameters::Role;
    parameter.range().len() >= short::SMALLEST && parameter.role != Role::Embedding
}

/// A part of what is remembered, with its name.
#[derive(Debug, PartialEq)]
pub enum Memory<'a> {
    /// Numbers.
    Floats(&'static str, &'a [f32]),
    /// The same in bfloat16.
    Halves(&'static str, &'a [u16]),
    /// Codes of numbers.
    Codes(&'static str, &'a [u8]),
}

/// The same, to be filled.
#[derive(Debug)]
pub enum MemoryMut<'a> {
    /// Numbers.
    Floats(&'static str, &'a mut [f32]),
    /// The same in bfloat16.
    Halves(&'static str, &'a mut [u16]),
    /// Codes of numbers.
    Codes(&'static str, &'a mut [u8]),
}

/// Where what is remembered of a parameter begins.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    first: usize,
    half: usize,
    second: usize,
    short: short::Place,
}

/// What is remembered from step to step.
#[derive(Debug)]
pub struct Optimizer {
    groups: Vec<Group>,
    /// Means of gradients, or momentum; then means of squares, of those that have them.
    first: Vec<f32>,
    /// The first of them where they are bfloat16.
    halves: Vec<u16>,
    second: Vec<f32>,
    short: short::Means,
    places: Vec<Place>,
    steps: u64,
    /// Of every parameter, the steps that it took no part in, as bytes; empty where all take part in all.
    missed: Vec<[u8; 8]>,
    values: Vec<f32>,
    gradient: Vec<f32>,
    work: muon::Work,
}

impl Optimizer {
    /// Chooses for every parameter.
    pub fn new(training: &Training, group: impl Fn(&Parameter) -> Group) -> Optimizer {
        let groups: Vec<Group> = training.parameters().iter().map(group).collect();
        let (mut first, mut half, mut second) = (0, 0, 0);
        let (mut short, mut places) = (short::Means::new(), Vec::new());
        for (parameter, group) in training.parameters().iter().zip(&groups) {
            let mut place = Place { first, half, second, ..Place::default() };
            let count = parameter.range().len();
            match group.rule {
                Rule::HalfAdamW(_) => (half, second) = (half + count, second + count),
                Rule::ShortAdamW(_) => place.short = short.place(count),
                Rule::AdamW(_) => (first, second) = (first + count, second + count),
                Rule::Sgd(_) | Rule::Muon(_) => first += count,
            }
            places.push(place);
        }
        short.fit();
        Optimizer {
            groups,
            first: vec![0.0; first],
            halves: vec![0; half],
            second: vec![0.0; second],
            short,
            places,
            steps: 0,
            missed: vec![[0; 8]; if training.may_miss() { training.parameters().len() } else { 0 }],
            values: Vec::new(),
            gradient: Vec::new(),
            work: muon::Work::default(),
        }
    }

    /// Bytes of what would be remembered of parameters, and of what a step takes beside it.
    pub fn bytes_for(
        parameters: &[Parameter],
        threads: usize,
        group: impl Fn(&Parameter) -> Group,
    ) -> [u64; 2] {
        let (mut means, mut largest, mut muon) = (0, 0, 0);
        for parameter in parameters {
            let count = parameter.range().len();
            let (remembered, copies) = match group(parameter).rule {
                Rule::ShortAdamW(_) => (short::bytes(count), 2),
                Rule::HalfAdamW(_) => (6 * count, usize::from(!parameter.is_in_place())),
                Rule::AdamW(_) if parameter.is_in_place() => (8 * count, 0),
                Rule::AdamW(_) => (8 * count, 1),
                Rule::Sgd(_) if parameter.is_in_place() => (4 * count, 0),
                Rule::Sgd(_) => (4 * count, 1),
                Rule::Muon(_) => (4 * count, 2),
            };
            means += remembered;
            largest = largest.max(4 * copies * count);
            if let (Rule::Muon(_), Some((_, rows, columns))) = (group(parameter).rule, parameter.matrices()) {
                muon = muon.max(muon::work_bytes(threads, rows, columns));
            }
        }
        [means as u64, (largest + muon) as u64]
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What is remembered: means of gradients, or momentum; means of squares; then the same of what is kept short.
    pub fn memory(&self) -> Vec<Memory<'_>> {
        let [first, second] = &self.short.codes;
        let [first_scales, second_scales] = &self.short.scales;
        vec![
            Memory::Floats("first", &self.first),
            Memory::Halves("first_halves", &self.halves),
            Memory::Floats("second", &self.second),
            Memory::Codes("first_codes", first),
            Memory::Codes("second_codes", second),
            Memory::Floats("first_scales", first_scales),
            Memory::Floats("second_scales", second_scales),
            Memory::Codes("missed", self.missed.as_flattened()),
        ]
    }

    /// The same, to be filled with what was remembered after so many steps.
    pub fn resume(&mut self, steps: u64) -> Vec<MemoryMut<'_>> {
        self.steps = steps;
        let [first, second] = &mut self.short.codes;
        let [first_scales, second_scales] = &mut self.short.scales;
        vec![
            MemoryMut::Floats("first", &mut self.first),
            MemoryMut::Halves("first_halves", &mut self.halves),
            MemoryMut::Floats("second", &mut self.second),
            MemoryMut::Codes("first_codes", first),
            MemoryMut::Codes("second_codes", second),
            MemoryMut::Floats("first_scales", first_scales),
            MemoryMut::Floats("second_scales", second_scales),
            MemoryMut::Codes("missed", self.missed.as_flattened_mut()),
        ]
    }

    /// The steps of a parameter, this one included, if it takes part: what is an expert's stays as it is where no token
    /// came there, as with torch, whose gradients of it are none.
    fn steps_of(&mut self, at: usize, training: &Training) -> Option<u64> {
        let Some(missed) = self.missed.get_mut(at) else { return Some(self.steps) };
        let count = u64::from_le_bytes(*missed);
        if training.is_missed(at) {
            *missed = (count + 1).to_le_bytes();
            return None;
        }
        Some(self.steps.saturating_sub(count).max(1))
    }

    /// Moves every parameter by its gradient; all rates are multiplied by `factor`.
    pub fn step(&mut self, training: &mut Training, factor: f64) {
        self.steps += 1;
        for at in 0..self.groups.len() {
            let (range, matrices) = {
                let parameter = &training.parameters()[at];
                (parameter.range(), parameter.matrices())
            };
            let Group { rule, rate, decay } = self.groups[at];
            let Some(steps) = self.steps_of(at, training) else { continue };
            let (rate, place) = (rate * factor, self.places[at]);
            let size = range.len();
            let first = |all| &mut Vec::<f32>::as_mut_slice(all)[place.first..][..size];
            match rule {
                Rule::AdamW(constants) => {
                    let second = &mut self.second[place.second..][..size];
                    let memory = Remembered { floats: [first(&mut self.first), second], halves: [] };
                    training.update(at, memory, &mut self.values, |gradient, memory, values| {
                        let [first, second] = memory.floats;
                        adamw(&constants, rate, decay, steps, gradient, first, second, values);
                    });
                }
                Rule::HalfAdamW(constants) => {
                    let second = &mut self.second[place.second..][..size];
                    let halves = [&mut self.halves[place.half..][..size]];
                    let memory = Remembered { floats: [second], halves };
                    training.update(at, memory, &mut self.values, |gradient, memory, values| {
                        let ([second], [halves]) = (memory.floats, memory.halves);
                        let first = &mut [0.0; RUN][..values.len()];
                        first.iter_mut().zip(&*halves).for_each(|(first, half)| *first = widened(*half));
                        adamw(&constants, rate, decay, steps, gradient, first, second, values);
                        halves.iter_mut().zip(first).for_each(|(half, first)| *half = rounded(*first));
                    });
                }
                Rule::Sgd(constants) => {
                    let memory = Remembered { floats: [first(&mut self.first)], halves: [] };
                    training.update(at, memory, &mut self.values, |gradient, memory, values| {
                        let [momentum] = memory.floats;
                        sgd(&constants, rate, decay, steps, gradient, momentum, values);
                    });
                }
                Rule::ShortAdamW(_) | Rule::Muon(_) => {
                    let (values, gradient) = (room(&mut self.values, size), room(&mut self.gradient, size));
                    training.read(at, values);
                    training.gradients().read(range, gradient);
                    if let Rule::ShortAdamW(constants) = rule {
                        self.short.step(place.short, &constants, rate, decay, steps, gradient, values);
                    }
                    if let Rule::Muon(constants) = rule {
                        let matrices = matrices.expect("muon is for matrices");
                        let (machine, work) = (training.machine(), &mut self.work);
                        let momentum = first(&mut self.first);
                        muon::step(
                            machine, &constants, rate, decay, matrices, gradient, momentum, values, work,
                        );
                    }
                    training.write(at, values);
                }
            }
        }
        training.settle();
    }
}

/// Shortens all gradients together to a length of at most `most`, and says how long they were.
pub fn clip(training: &mut Training, most: f64) -> f64 {
    let length = training.length();
    training.scale((most / (length + 1e-6)).min(1.0) as f32);
    length
}
