//! What a method that needs to see the model at work has to offer, and how it hands over what it made.
//!
//! Methods without calibration take one matrix at a time and need none of this.

use std::io::{self, Read, Write};

use crate::matrix::Quantized;

/// Why a method could not go on, in its own words: expected, found, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MethodError(pub String);

/// A method that takes the layers in their order, because what becomes of one changes what the next is given.
pub trait Layerwise {
    /// Quantizes the matrices of a layer: all that are listed, each once, in any order that is the same every time.
    fn layer(&mut self, number: usize, matrices: &[Listed], hand: &mut dyn Hand) -> Result<(), MethodError>;

    /// Writes down what the next layer needs. An interrupted run goes on behind the last layer that was saved.
    fn save(&self, out: &mut dyn Write) -> io::Result<()>;

    /// Reads it again; `layers` are done.
    fn restore(&mut self, layers: usize, input: &mut dyn Read) -> io::Result<()>;
}

/// A matrix that is to be quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As [`Dense::name`](crate::matrix::Dense::name).
    pub name: String,
    /// The tensor or module that it stands in: the same for the experts of one tensor.
    pub origin: String,
    /// Which expert of that tensor.
    pub expert: Option<usize>,
}

/// Scales that stand in a matrix, and their inverse in what is before or behind it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scales {
    /// By which every input's weights are multiplied.
    pub columns: Option<Vec<f32>>,
    /// By which every output's weights are divided.
    pub rows: Option<Vec<f32>>,
}

impl Scales {
    /// What a row of the stored matrix is to a model: without the scales.
    pub fn fold_back(&self, row: usize, values: &mut [f32]) {
        if let Some(columns) = &self.columns {
            values.iter_mut().zip(columns).for_each(|(value, by)| *value /= by);
        }
        if let Some(by) = self.rows.as_ref().and_then(|rows| rows.get(row)) {
            values.iter_mut().for_each(|value| *value *= by);
        }
    }
}

/// Takes what a method made.
pub trait Hand {
    /// A matrix with scales in it, and the loss after each stage that the method knows, by the stage's name. What is
    /// lost is told of the matrix without the scales.
    fn quantized(
        &mut self,
        name: &str,
        matrix: Quantized,
        scales: &Scales,
        stages: &[(&'static str, f64)],
    ) -> Result<(), MethodError>;

    /// A tensor that is not quantized but is another one now, such as a norm into which scales were folded; as many
    /// values as before, kept in the type that it had.
    fn changed(&mut self, tensor: &str, values: &[f32]) -> Result<(), MethodError>;
}
