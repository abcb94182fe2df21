//! The first weights of a model that has only a configuration: drawn for a seed, with the spread that it names.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use bantam_core::Cpu;
use bantam_model::checkpoint::Dtype;
use bantam_model::checkpoint::writer::{Outline, write_file, write_streamed};
use bantam_model::plan::{Fill, Options, Origin, Plan, Stored};
use bantam_model::source::{Source, SourceError};
use serde_json::Value;

use super::RunError;
use super::output::failed;
use super::targets::Shaped;
use crate::data::Twister;
use crate::step::parameters::{Role, role};

/// The spread of configurations that name none, in transformers.
const SPREAD: f64 = 0.02;
/// Numbers drawn at once.
const DRAWN: usize = 1 << 16;

/// Writes a model in float32 that has learnt nothing: norms do nothing, biases are zero, all else is drawn from one
/// normal distribution.
pub(super) fn begin(folder: &Path, source: &Source, seed: u64, cpu: Cpu) -> Result<(), RunError> {
    let config = source.files.require_config().map_err(SourceError::Files)?;
    let json: Value = serde_json::from_slice(&config).unwrap_or_default();
    let spread = json["initializer_range"].as_f64().filter(|spread| spread.is_finite() && *spread > 0.0);
    let tensors = tensors(source, cpu)?;
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let outlines: Vec<Outline<'_>> =
        tensors.iter().map(|(name, shape, _)| (name.as_str(), Dtype::F32, shape.as_slice())).collect();
    let shift = source.spec.final_norm.weight_shift;
    let spread = spread.unwrap_or(SPREAD);
    write_streamed(&folder.join("model.safetensors"), &outlines, &[("format", "pt")], |at, out| {
        let (name, shape, role) = &tensors[at];
        let same = match role {
            _ if name.ends_with("bias") => Some(0.0),
            Role::Norm => Some(1.0 - shift),
            _ => None,
        };
        let count: usize = shape.iter().product();
        let mut normal = Normal { generator: Twister::new(seed.wrapping_add(at as u64)), spread };
        (0..count).step_by(DRAWN).try_for_each(|first| {
            let values = (first..count.min(first + DRAWN)).map(|_| same.unwrap_or_else(|| normal.draw()));
            out.write_all(&values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
        })
    })?;
    Ok(write_file(&folder.join("config.json"), &config)?)
}

/// Name and shape of every tensor that is written.
pub(super) fn shapes(source: &Source, cpu: Cpu) -> Result<Vec<Shaped>, RunError> {
    Ok(tensors(source, cpu)?.into_iter().map(|(name, shape, _)| (name, shape)).collect())
}

/// Name, shape and kind of every tensor that the model is made of: whatever its plan asks for.
fn tensors(source: &Source, cpu: Cpu) -> Result<Vec<(String, Vec<usize>, Role)>, RunError> {
    let asked: RefCell<BTreeMap<String, Vec<usize>>> = RefCell::default();
    let stored = |name: &str, shape: &[usize]| {
        // What formats look for is in no such model.
        let shape = Some(shape).filter(|shape| !shape.is_empty())?.to_vec();
        asked.borrow_mut().insert(name.to_owned(), shape.clone());
        Some(Stored { dtype: Dtype::F32, shape })
    };
    let plan = Plan::in_floats(&source.spec, stored, &|_| true, Options::SMALLEST, cpu);
    let folder = source.folder().to_owned();
    let plan = plan.map_err(|source| SourceError::Plan { folder, source })?;
    let known = |fill: &Fill| match fill {
        Fill::Matrix { origin: Origin::Tensor(name), .. } => Some((name.clone(), false)),
        Fill::Vector { tensor, .. } => Some((tensor.clone(), true)),
        _ => None,
    };
    let known: BTreeMap<String, bool> = plan.fills.iter().filter_map(known).collect();
    let asked = asked.into_inner();
    let all = known.iter().map(|(name, is_vector)| {
        let role = role(&source.spec, name, *is_vector);
        (name.clone(), asked[name].clone(), role)
    });
    Ok(all.collect())
}

/// Numbers of a normal distribution.
struct Normal {
    generator: Twister,
    spread: f64,
}

impl Normal {
    /// By the formula of Box and Muller.
    fn draw(&mut self) -> f32 {
        // None is zero, whose logarithm there is not.
        let mut unit = || (f64::from(self.generator.bits32()) + 0.5) / 4_294_967_296.0;
        let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), TAU * unit());
        (radius * angle.cos() * self.spread) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_spread() {
        let mut normal = Normal { generator: Twister::new(1), spread: 0.5 };
        let values: Vec<f64> = (0..20_000).map(|_| f64::from(normal.draw())).collect();
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let square = values.iter().map(|x| x * x).sum::<f64>() / 20_000.0;
        let within = values.iter().filter(|x| x.abs() < 0.5).count();
        assert!(mean.abs() < 0.02 && (square - 0.25).abs() < 0.01, "{mean} {square}");
        assert!((13_400..13_900).contains(&within), "{within}");
    }
}
