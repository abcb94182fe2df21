//! Methods that look at a model at work: each block is loaded on its own, sees the hidden states of calibration text,
//! and is quantized matrix by matrix; what the quantized block makes of the states is what the next one sees.
//!
//! In memory are one block in float32, the states, the squares of inputs of as many matrices as the budget allows, and
//! where targets are corrected, the original's inputs of one block.

pub mod awq;
pub mod feedback;
pub mod gptq;
pub mod linear;
pub mod ternary;
