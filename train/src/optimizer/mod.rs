//! From gradients to other weights: clipping, and the rules that take a step, with the arithmetic of the tools that
//! people know them from.
//!
//! A rule is chosen for each parameter, with its own rate and decay; rates that follow a schedule are factors of those.

mod elementwise;
pub mod muon;
pub mod schedule;

use crate::step::Training;
use crate::step::parameters::Parameter;
use elementwise::{adamw, sgd};
pub use muon::{Muon, Variant};

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// How slowly the mean of gradients, and that of their squares, follow.
    pub betas: [f64; 2],
    /// Added to the root.
    pub epsilon: f64,
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

/// What is remembered from step to step.
#[derive(Debug)]
pub struct Optimizer {
    groups: Vec<Group>,
    /// Means of gradients, or momentum; then means of squares, of those that have them.
    first: Vec<f32>,
    second: Vec<f32>,
    /// Where a parameter's squares are.
    second_at: Vec<usize>,
    steps: u64,
    values: Vec<f32>,
    work: muon::Work,
}

impl Optimizer {
    /// Chooses for every parameter.
    pub fn new(training: &Training, group: impl Fn(&Parameter) -> Group) -> Optimizer {
        let groups: Vec<Group> = training.parameters().iter().map(group).collect();
        let (mut squares, mut second_at) = (0, Vec::new());
        for (parameter, group) in training.parameters().iter().zip(&groups) {
            second_at.push(squares);
            if matches!(group.rule, Rule::AdamW(_)) {
                squares += parameter.range().len();
            }
        }
        Optimizer {
            groups,
            first: vec![0.0; training.gradients().len()],
            second: vec![0.0; squares],
            second_at,
            steps: 0,
            values: Vec::new(),
            work: muon::Work::default(),
        }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What is remembered: means of gradients, or momentum; means of squares.
    pub fn memory(&self) -> [&[f32]; 2] {
        [&self.first, &self.second]
    }

    /// The same, to be filled with what was remembered after so many steps.
    pub fn resume(&mut self, steps: u64) -> [&mut [f32]; 2] {
        self.steps = steps;
        [&mut self.first, &mut self.second]
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
            let rate = rate * factor;
            if self.values.len() < range.len() {
                self.values.resize(range.len(), 0.0);
            }
            let values = &mut self.values[..range.len()];
            training.read(at, values);
            let (gradient, first) = (&training.gradients()[range.clone()], &mut self.first[range.clone()]);
            match rule {
                Rule::AdamW(constants) => {
                    let second = &mut self.second[self.second_at[at]..][..range.len()];
                    adamw(&constants, rate, decay, self.steps, gradient, first, second, values);
                }
                Rule::Sgd(constants) => {
                    sgd(&constants, rate, decay, self.steps, gradient, first, values);
                }
                Rule::Muon(constants) => {
                    let matrices = matrices.expect("muon is for matrices");
                    let machine = training.machine();
                    muon::step(
                        machine,
                        &constants,
                        rate,
                        decay,
                        matrices,
                        gradient,
                        first,
                        values,
                        &mut self.work,
                    );
                }
            }
            training.write(at, values);
        }
        training.settle();
    }
}

/// Shortens all gradients together to a length of at most `most`, and says how long they were.
pub fn clip(training: &mut Training, most: f64) -> f64 {
    let length = length(training);
    let factor = (most / (length + 1e-6)).min(1.0) as f32;
    training.gradients_mut().iter_mut().for_each(|x| *x *= factor);
    length
}

/// The length of all gradients together.
pub fn length(training: &Training) -> f64 {
    training.gradients().iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}
