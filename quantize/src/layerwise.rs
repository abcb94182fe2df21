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

/// Takes what a method made.
pub trait Hand {
    /// A matrix, and the loss after each stage that the method knows, by the stage's name.
    fn quantized(
        &mut self,
        name: &str,
        matrix: Quantized,
        stages: &[(&'static str, f64)],
    ) -> Result<(), MethodError>;

    /// A tensor that is not quantized but is another one now, such as a norm into which scales were folded; as many
    /// values as before, kept in the type that it had.
    fn changed(&mut self, tensor: &str, values: &[f32]) -> Result<(), MethodError>;
}
