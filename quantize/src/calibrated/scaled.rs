//! Scales of a block's inputs. AWQ: all inputs are those of the original, scales go into the norms and matrices before
//! them, then every matrix is cut and rounded. Ternary: norms alone, and what follows sees what came before.
//!
//! Scaled are, as the tool does it: the inputs of queries, keys and values and those of gate and up, by their norms;
//! those of the output projection by the rows of values, where there are as many; those of down by the rows of up,
//! where what stands between multiplies with them. Not scaled are inputs that experts share with their router.

use bantam_core::Activation;
use bantam_model::block::{Block, BlockInput};
use bantam_model::families::Rows;

use super::awq::{self, Inputs};
use super::feedback::{Hessian, Order};
use super::inputs::Kept;
use super::{Calibrated, Work, ternary};
use crate::layerwise::{Hand, MethodError, Scales};
use crate::matrix::Quantized;

/// What stands before the matrices of an input, and takes the inverse of their scales.
enum Before {
    /// A norm.
    Norm(String),
    /// The rows of a module.
    Rows(usize),
}

/// Modules with one input.
struct Group {
    modules: Vec<usize>,
    before: Option<Before>,
}

/// Quantizes a block, and lets the original's results be what the next one sees.
pub(super) fn layer(
    calibrated: &mut Calibrated,
    settings: &awq::Settings,
    number: usize,
    block: &mut Block,
    listed: &[usize],
    hand: &mut dyn Hand,
) -> Result<(), MethodError> {
    let work = Work { cpu: calibrated.cpu, pool: &calibrated.pool };
    let kept = Kept::gather(work, block, &calibrated.streams, listed, None);
    block.run(&mut calibrated.streams, &mut ());
    let spec = &calibrated.source.spec;
    let prefix = spec.names.layer.replace("{}", &number.to_string());
    let of_block = Scaled { names: spec.names, layer: &spec.layers[number], prefix };
    let groups = of_block.groups(block, listed);
    let mut changed = Vec::new();
    let mut scales_of = vec![Scales::default(); block.modules().len()];
    for Group { modules, before } in &groups {
        let (Some(before), true) = (before, settings.scale_search) else { continue };
        let squares = kept.of(modules[0]);
        let inputs = Inputs { squares: &squares.own, means: &squares.means() };
        let width = block.modules()[modules[0]].shape.columns;
        let weights: Vec<Vec<f32>> = modules.iter().map(|&module| block.weights(module)).collect();
        let slices: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let scales = awq::scales(work, settings, inputs, width, &slices);
        for (&module, mut weights) in modules.iter().zip(weights) {
            let row =
                |row: &mut [f32]| row.iter_mut().zip(&scales).for_each(|(value, scale)| *value *= scale);
            weights.chunks_exact_mut(width).for_each(row);
            put(block, module, &weights)?;
            scales_of[module].columns = Some(scales.clone());
        }
        if let Before::Rows(module) = before {
            scales_of[*module].rows = Some(scales.clone());
        }
        of_block.fold(block, before, &scales, &mut changed)?;
    }
    changed.sort();
    changed.dedup();
    for tensor in changed {
        let values = block.vector(&tensor).expect("it was changed").to_vec();
        hand.changed(&tensor, &values)?;
    }
    for &module in listed {
        let shape = block.modules()[module].shape;
        let mut squares = kept.of(module).own.clone();
        if let Some(scales) = &scales_of[module].columns {
            for (row, by) in squares.chunks_exact_mut(shape.columns).zip(scales) {
                row.iter_mut().zip(scales).for_each(|(value, scale)| *value /= by * scale);
            }
        }
        let clip =
            block.modules()[module].input != BlockInput::Attention || is_value(&of_block, block, module);
        let found = awq::quantize(work, settings, &squares, shape, &block.weights(module), clip);
        hand.quantized(&block.modules()[module].name, Quantized::Grouped(found), &scales_of[module], &[])?;
    }
    Ok(())
}

/// Powers of inputs' magnitudes and of weights' that scales are tried from; the first changes nothing.
const TRIED: [[f32; 2]; 7] =
    [[0.0, 0.0], [0.25, 0.0], [0.5, 0.0], [0.0, 0.5], [0.25, 0.5], [0.5, 0.5], [0.0, 1.0]];
/// Rows of a matrix that are looked at while it is tried.
const TRIED_ROWS: usize = 64;

/// Scales the inputs of modules where a norm makes them for these alone, and the modules, so that trits lose less;
/// gives the scales. What is foretold of rounding decides, which may be that nothing is changed.
pub(super) fn equalise(
    calibrated: &Calibrated,
    settings: &ternary::Settings,
    number: usize,
    block: &mut Block,
    modules: &[usize],
    hand: &mut dyn Hand,
) -> Result<Option<Vec<f32>>, MethodError> {
    let spec = &calibrated.source.spec;
    let prefix = spec.names.layer.replace("{}", &number.to_string());
    let of_block = Scaled { names: spec.names, layer: &spec.layers[number], prefix };
    let groups = of_block.groups(block, modules);
    let [Group { modules, before: Some(before @ Before::Norm(_)) }] = groups.as_slice() else {
        return Ok(None);
    };
    let input = block.modules()[modules[0]].input;
    // A norm that others read too cannot change.
    if block.modules().iter().filter(|module| module.input == input).count() > modules.len() {
        return Ok(None);
    }
    let work = calibrated.work();
    let kept = Kept::gather(work, block, &calibrated.streams, modules, None);
    let squares = &kept.of(modules[0]).own;
    let width = block.modules()[modules[0]].shape.columns;
    let hessian = Hessian::new(work, squares, width, Order::LargestFirst, settings.damp);
    let weights: Vec<Vec<f32>> = modules.iter().map(|&module| block.weights(module)).collect();
    let Some(scales) = tried(work, settings, &hessian, squares, &weights) else { return Ok(None) };
    for (&module, mut weights) in modules.iter().zip(weights) {
        let row = |row: &mut [f32]| row.iter_mut().zip(&scales).for_each(|(value, scale)| *value *= scale);
        weights.chunks_exact_mut(width).for_each(row);
        put(block, module, &weights)?;
    }
    let mut changed = Vec::new();
    of_block.fold(block, before, &scales, &mut changed)?;
    for tensor in changed {
        let values = block.vector(&tensor).expect("it was changed").to_vec();
        hand.changed(&tensor, &values)?;
    }
    Ok(Some(scales))
}

/// The best of the scales that are tried; `None` where none is better than nothing.
fn tried(
    work: Work,
    settings: &ternary::Settings,
    hessian: &Hessian,
    squares: &[f32],
    weights: &[Vec<f32>],
) -> Option<Vec<f32>> {
    let width = hessian.width;
    let inputs: Vec<f32> = squares.iter().step_by(width + 1).map(|square| square.sqrt()).collect();
    let mut own = vec![0.0f32; width];
    for row in weights.iter().flat_map(|weights| weights.chunks_exact(width)) {
        own.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * value);
    }
    let some = |weights: &Vec<f32>| -> Vec<f32> {
        let step = (weights.len() / width).div_ceil(TRIED_ROWS);
        weights.chunks_exact(width).step_by(step).flatten().copied().collect()
    };
    let some: Vec<Vec<f32>> = weights.iter().map(some).collect();
    let mut best = (f64::INFINITY, None);
    for powers in TRIED {
        let scales = scales(&inputs, &own, powers);
        let inverse: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
        let hessian = ternary::columns::scaled(hessian, &inverse);
        let loss = |rows: &Vec<f32>| {
            let scaled = rows.chunks_exact(width).flat_map(|row| row.iter().zip(&scales).map(|(a, b)| a * b));
            ternary::foretold(work, settings, &hessian, 1, &scaled.collect::<Vec<f32>>())
        };
        let loss: f64 = some.iter().map(loss).sum();
        if loss < best.0 {
            best = (loss, (powers != TRIED[0]).then_some(scales));
        }
    }
    best.1
}

/// Around one, and none so far from it that float16 or bfloat16 would suffer.
fn scales(inputs: &[f32], own: &[f32], [of_inputs, of_own]: [f32; 2]) -> Vec<f32> {
    let scale = |(input, own): (&f32, &f32)| {
        input.max(f32::MIN_POSITIVE).powf(of_inputs) / own.max(f32::MIN_POSITIVE).powf(of_own / 2.0)
    };
    let scales: Vec<f32> = inputs.iter().zip(own).map(scale).collect();
    let mean = scales.iter().map(|scale| f64::from(scale.ln())).sum::<f64>() / scales.len() as f64;
    scales.iter().map(|scale| (scale / mean.exp() as f32).clamp(1.0 / 64.0, 64.0)).collect()
}

fn is_value(of_block: &Scaled, block: &Block, module: usize) -> bool {
    let value = of_block.names.value;
    value.rows == Rows::All && block.modules()[module].name == format!("{}{}", of_block.prefix, value.module)
}

fn put(block: &mut Block, module: usize, values: &[f32]) -> Result<(), MethodError> {
    block.set_weights(module, values).map_err(|_| {
        let name = &block.modules()[module].name;
        MethodError(format!("{name}: expected finite weights after scaling; leave the search for scales out"))
    })
}

/// What a layer's names say about which modules stand before which.
struct Scaled<'a> {
    names: &'a bantam_model::families::Names,
    layer: &'a bantam_model::spec::LayerSpec,
    prefix: String,
}

impl Scaled<'_> {
    fn groups(&self, block: &Block, listed: &[usize]) -> Vec<Group> {
        let norm = |module: &str| Some(Before::Norm(format!("{}{module}", self.prefix)));
        let of = |input: BlockInput| -> Vec<usize> {
            listed.iter().copied().filter(|&module| block.modules()[module].input == input).collect()
        };
        let mut groups =
            vec![Group { modules: of(BlockInput::Attention), before: norm(self.names.attention_norm) }];
        let before = self.whole(block, self.names.value, None);
        for module in of(BlockInput::Attended) {
            let same = |value: &usize| block.modules()[*value].shape == block.modules()[module].shape;
            groups.push(Group { modules: vec![module], before: before.filter(same).map(Before::Rows) });
        }
        if self.layer.mlp.experts.is_none() {
            groups.push(Group { modules: of(BlockInput::FeedForward), before: norm(self.names.mlp_norm) });
        }
        let multiplies = self.layer.mlp.gated && self.layer.mlp.activation != Activation::ClampedSwish;
        for module in of(BlockInput::Bent) {
            let before = self.up_before(block, module).filter(|_| multiplies).map(Before::Rows);
            groups.push(Group { modules: vec![module], before });
        }
        groups.retain(|group| !group.modules.is_empty());
        groups
    }

    /// The module that is one whole projection.
    fn whole(
        &self,
        block: &Block,
        part: bantam_model::families::Part,
        expert: Option<usize>,
    ) -> Option<usize> {
        let module = match expert {
            Some(expert) => part.module.replace("{}", &expert.to_string()),
            None => part.module.to_owned(),
        };
        let name = format!("{}{module}", self.prefix);
        block.modules().iter().position(|module| module.name == name).filter(|_| part.rows == Rows::All)
    }

    /// The projection up that feeds a projection down, of the same expert.
    fn up_before(&self, block: &Block, down: usize) -> Option<usize> {
        let experts = self.layer.mlp.experts.map(|experts| experts.choice.experts);
        let Some(experts) = experts else { return self.whole(block, self.names.up, None) };
        let expert =
            (0..experts).find(|&expert| self.whole(block, self.names.down, Some(expert)) == Some(down))?;
        self.whole(block, self.names.up, Some(expert))
    }

    /// Divides what stands before, and its bias.
    fn fold(
        &self,
        block: &mut Block,
        before: &Before,
        scales: &[f32],
        changed: &mut Vec<String>,
    ) -> Result<(), MethodError> {
        let bias = match before {
            Before::Norm(norm) => {
                let weight = format!("{norm}.{}", self.names.norm_weight);
                let shift = self.layer.norm.weight_shift;
                if let Some(values) = block.vector_mut(&weight) {
                    values
                        .iter_mut()
                        .zip(scales)
                        .for_each(|(value, by)| *value = (*value + shift) / by - shift);
                    changed.push(weight);
                }
                format!("{norm}.bias")
            }
            Before::Rows(module) => {
                let width = block.modules()[*module].shape.columns;
                let mut weights = block.weights(*module);
                for (row, by) in weights.chunks_exact_mut(width).zip(scales) {
                    row.iter_mut().for_each(|value| *value /= by);
                }
                put(block, *module, &weights)?;
                format!("{}.bias", block.modules()[*module].name)
            }
        };
        if let Some(values) = block.vector_mut(&bias) {
            values.iter_mut().zip(scales).for_each(|(value, by)| *value /= by);
            changed.push(bias);
        }
        Ok(())
    }
}
