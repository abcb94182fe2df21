//! What a checkpoint is, in numbers, from its headers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bantam_core::layouts::Shape;

use crate::checkpoint::{Checkpoint, Dtype, TensorView};
use crate::formats::Packed;
use crate::plan::{Cut, Fill, Origin, Plan};
use crate::weights::{Unpacked, WeightsError, check_notes};

/// Tensors of one element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DtypeShare {
    /// The type.
    pub dtype: Dtype,
    /// Tensors of it.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Which of a checkpoint's tensors a model uses, and what they add up to.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// Weights that the model has of the tensors that are used, scales and the like not counted.
    pub parameters: u64,
    /// Their bytes in the files.
    pub weight_bytes: u64,
    /// The same by type, largest first.
    pub dtypes: Vec<DtypeShare>,
    /// Tensors that the model does not use, such as buffers that old tools wrote.
    pub unused: Vec<String>,
    /// Those of them that look like weights: biases, and what lies in layers that the configuration does not count.
    pub overlooked: Vec<String>,
}

impl Inspection {
    /// Compares a checkpoint with what a plan takes from it.
    pub fn new(checkpoint: &Checkpoint, plan: &Plan) -> Self {
        let used: BTreeSet<&str> = plan
            .fills
            .iter()
            .flat_map(|fill| match fill {
                Fill::Matrix { origin, .. } => origin.tensors(),
                Fill::Vector { tensor, .. } => std::slice::from_ref(tensor),
                Fill::Values { .. } | Fill::Low(_) => &[],
            })
            .map(String::as_str)
            .chain(plan.fills.iter().filter_map(Fill::packed).flat_map(Packed::names))
            .collect();
        let layers: BTreeSet<_> = used.iter().filter_map(|name| layer(name)).collect();
        let stacks: BTreeSet<&str> = layers.iter().map(|&(stack, _)| stack).collect();
        let is_beyond = |name: &str| {
            layer(name).is_some_and(|layer| stacks.contains(layer.0) && !layers.contains(&layer))
        };
        let mut inspection = Inspection {
            parameters: 0,
            weight_bytes: 0,
            dtypes: Vec::new(),
            unused: Vec::new(),
            overlooked: Vec::new(),
        };
        // Experts, and the parts of a fused matrix, share tensors or modules: each is counted once.
        let mut modules: BTreeSet<&str> = BTreeSet::new();
        let mut quantized: BTreeSet<&str> = BTreeSet::new();
        for packed in plan.fills.iter().filter_map(Fill::packed) {
            quantized.extend(packed.names());
            if modules.insert(&packed.module) {
                inspection.parameters += (packed.shape.rows * packed.shape.columns) as u64;
            }
        }
        for tensor in checkpoint.tensors() {
            if used.contains(tensor.name) {
                inspection.count(&tensor, !quantized.contains(tensor.name));
            } else {
                inspection.unused.push(tensor.name.to_owned());
                // A mask that an old tool stored under the name of a bias has more dimensions.
                if is_beyond(tensor.name) || (tensor.name.ends_with(".bias") && tensor.shape.len() == 1) {
                    inspection.overlooked.push(tensor.name.to_owned());
                }
            }
        }
        inspection.dtypes.sort_by_key(|share| (std::cmp::Reverse(share.bytes), share.dtype.name()));
        inspection
    }

    fn count(&mut self, tensor: &TensorView, are_parameters: bool) {
        let (elements, bytes) = (tensor.elements() as u64, tensor.data.len() as u64);
        self.parameters += if are_parameters { elements } else { 0 };
        self.weight_bytes += bytes;
        match self.dtypes.iter_mut().find(|share| share.dtype == tensor.dtype) {
            Some(share) => {
                share.tensors += 1;
                share.elements += elements;
                share.bytes += bytes;
            }
            None => self.dtypes.push(DtypeShare { dtype: tensor.dtype, tensors: 1, elements, bytes }),
        }
    }

    /// Bits of the files for every parameter, scales and the like included.
    pub fn bits_per_weight(&self) -> f64 {
        self.weight_bytes as f64 * 8.0 / self.parameters as f64
    }
}

/// A quantized matrix, or the stack of all experts, as float32.
#[derive(Debug, Clone)]
pub struct Unquantized<'a> {
    name: &'a str,
    file: &'a Path,
    /// Outputs and inputs; of a stack experts, inputs and outputs, as 16-bit checkpoints have them.
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Unquantized<'_> {
    /// As if a file held it.
    pub fn view(&self) -> TensorView<'_> {
        TensorView::in_memory(self.name, Dtype::F32, &self.shape, &self.data, self.file)
    }
}

/// What a quantized checkpoint has under the name that a matrix had before, `.weight` included.
pub fn unquantized<'a>(
    checkpoint: &'a Checkpoint,
    plan: &Plan,
    name: &'a str,
) -> Result<Option<Unquantized<'a>>, WeightsError> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let packed = || plan.fills.iter().filter_map(Fill::packed);
    // Where the rows of heads are stored in pairs, they are told in the order that they have everywhere else.
    let order = plan.fills.iter().find_map(|fill| match fill {
        Fill::Matrix { origin: Origin::Packed(packed), cut, .. } if packed.module == module => cut.pairs,
        _ => None,
    });
    let order = Cut { pairs: order, ..Cut::WHOLE };
    let experts = packed().filter_map(|packed| {
        let number = packed.module.strip_prefix(module)?.strip_prefix('.')?;
        Some((number.parse::<usize>().ok()?, packed))
    });
    // Parts of a matrix that several projections share each bring the whole.
    let experts: BTreeMap<usize, &Packed> = experts.collect();
    let (packed, count) = match packed().find(|packed| packed.module == module) {
        Some(packed) => (vec![packed], None),
        None if experts.is_empty() => return Ok(None),
        None => (experts.values().copied().collect::<Vec<_>>(), Some(experts.len())),
    };
    let (Shape { rows: outputs, columns: inputs }, mut row) = (packed[0].shape, Vec::new());
    row.resize(inputs, 0.0f32);
    let mut data = vec![0; packed.len() * outputs * inputs * 4];
    let mut file = Path::new("");
    for (packed, data) in packed.iter().zip(data.chunks_exact_mut(outputs * inputs * 4)) {
        let sources = packed.sources(checkpoint);
        file = sources[0].file;
        check_notes(packed, checkpoint)?;
        let read = Unpacked::read(packed, &sources)?;
        let rows = read.rows()?;
        for output in 0..outputs {
            rows.row(order.source_row(output), &mut row);
            for (input, value) in row.iter().enumerate() {
                let at = if count.is_some() { input * outputs + output } else { output * inputs + input };
                data[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    let shape = count.map_or(vec![outputs, inputs], |count| vec![count, inputs, outputs]);
    Ok(Some(Unquantized { name, file, shape, data }))
}

/// The first number in a tensor's name, and what stands before it.
fn layer(name: &str) -> Option<(&str, u32)> {
    let mut at = 0;
    for part in name.split('.') {
        if let Ok(number) = part.parse() {
            return Some((&name[..at], number));
        }
        at += part.len() + 1;
    }
    None
}

/// The values of one tensor at a glance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Values {
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Values that are NaN or infinite; the others are counted above.
    pub not_finite: u64,
}

/// Looks at every value of a tensor; `None` where there is no finite one.
pub fn values(tensor: &TensorView) -> Option<Values> {
    let mut all = Values { min: f64::INFINITY, max: f64::NEG_INFINITY, mean: 0.0, not_finite: 0 };
    let mut block = [0.0; 1024];
    for start in (0..tensor.elements()).step_by(block.len()) {
        let block = &mut block[..(tensor.elements() - start).min(1024)];
        tensor.read_f32(start, block);
        for &mut x in block {
            if x.is_finite() {
                all.min = all.min.min(f64::from(x));
                all.max = all.max.max(f64::from(x));
                all.mean += f64::from(x);
            } else {
                all.not_finite += 1;
            }
        }
    }
    let finite = tensor.elements() as u64 - all.not_finite;
    all.mean /= finite as f64;
    (finite > 0).then_some(all)
}
