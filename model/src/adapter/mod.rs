//! An adapter beside a model: a PEFT folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Two things can stand in one. A `Change` is a product of two narrow matrices that is added to a matrix of the model
//! (with factors for its rows, where it is a DoRA). A whole tensor takes the place of one of the model's. `plan/low.rs`
//! finds room for changes beside the matrices, `fill.rs` puts them there, and `merge/` adds them up for good.

mod fill;
pub(crate) mod guest;
mod keys;
pub(crate) mod room;
mod settings;
mod values;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bantam_core::layouts::Shape;

use crate::checkpoint::map::{self, MapError};
use crate::checkpoint::{Checkpoint, CheckpointError, Dtype, TensorView};
use crate::plan::{PlanError, Stored};
use crate::weights::WeightsError;
pub(crate) use fill::fill;
pub use guest::Guest;
use keys::{Key, Side};
pub(crate) use settings::Settings;
pub(crate) use values::{Loader, Values, square};

/// The configuration's file.
pub const CONFIG: &str = "adapter_config.json";
/// The tensors' file.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// More than any configuration has; long lists of layers and patterns included.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum AdapterError {
    #[error(
        "{}: expected a folder with {CONFIG} and {WEIGHTS}, as PEFT's save_pretrained writes them, found {found}",
        .folder.display()
    )]
    NotAnAdapter { folder: PathBuf, found: String },
    #[error(transparent)]
    File(#[from] MapError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: {reason}", .file.display())]
    Settings { file: PathBuf, reason: String },
    #[error("{}: tensor {tensor}: {reason}", .file.display())]
    Tensor { file: PathBuf, tensor: String, reason: String },
}

/// The tensors of a change, by their parts.
type Sides = BTreeMap<Side, String>;

/// An opened adapter.
#[derive(Debug)]
pub struct Adapter {
    folder: PathBuf,
    checkpoint: Checkpoint,
    pub(crate) settings: Settings,
    changes: BTreeMap<String, Sides>,
    /// Whole tensors of the model, with their names in the adapter's file.
    wholes: BTreeMap<String, String>,
    /// Weights that were saved beside their changes, and are the base's own.
    copies: BTreeSet<String>,
}

/// A change of one matrix, whose tensors are there and of the right shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    down: String,
    up: String,
    bias: Option<String>,
    pub(crate) magnitude: Option<String>,
    /// Inputs of the second product.
    pub rank: usize,
    /// The product is multiplied by this.
    pub scale: f32,
    /// Outputs and inputs of the matrix; of a table tokens and width.
    pub shape: Shape,
    /// Which of how many matrices, where the tensors are those of a stack.
    pub part: Option<(usize, usize)>,
    /// Whether it changes a table.
    pub is_table: bool,
}

impl Change {
    /// The tensor that all changes of one input share.
    pub fn down(&self) -> &str {
        &self.down
    }

    /// The tensor that is each output's own.
    pub fn up(&self) -> &String {
        &self.up
    }

    /// The tensor of the lengths that rows get, where there is one.
    pub fn magnitude(&self) -> Option<&String> {
        self.magnitude.as_ref()
    }

    /// Whether something is added to the outputs, whatever the inputs are.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }
}

/// What of an adapter a model has made use of: the rest belongs to another model.
#[derive(Debug, Default)]
pub(crate) struct Used(RefCell<BTreeSet<String>>);

/// What is asked of an adapter for one matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The module, as PEFT finds it in the model.
    pub(crate) module: &'a str,
    /// Which of how many.
    pub(crate) part: Option<(usize, usize)>,
    /// The name that patterns are compared with.
    pub(crate) name: &'a str,
    /// Outputs and inputs; of a table tokens and width.
    pub(crate) shape: Shape,
    pub(crate) is_table: bool,
}

impl Adapter {
    /// Opens the adapter in a folder.
    pub fn open(folder: &Path) -> Result<Adapter, AdapterError> {
        let not_there = |found: String| AdapterError::NotAnAdapter { folder: folder.into(), found };
        if !folder.is_dir() {
            let found = if folder.exists() { "a file" } else { "nothing there" };
            return Err(not_there(found.to_owned()));
        }
        let file = folder.join(CONFIG);
        let json = match map::read_regular(&file, CONFIG_BYTES_MAX) {
            Ok(json) => json,
            Err(MapError::Missing { .. }) => return Err(not_there(format!("no {CONFIG}"))),
            Err(error) => return Err(error.into()),
        };
        let settings = Settings::parse(&json).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.strip_prefix("config.json: ").unwrap_or(&reason).to_owned();
            AdapterError::Settings { file: file.clone(), reason }
        })?;
        let weights = folder.join(WEIGHTS);
        if !weights.exists() {
            let is_pickle = folder.join("adapter_model.bin").exists();
            let pickle = "adapter_model.bin, which can run code and is never read: save it again with \
                          safe_serialization";
            return Err(not_there(if is_pickle { pickle.to_owned() } else { format!("no {WEIGHTS}") }));
        }
        let checkpoint = Checkpoint::open(&weights)?;
        let adapter = Adapter::new(folder, settings, checkpoint)?;
        adapter.check_complete()?;
        Ok(adapter)
    }

    /// Refuses an adapter that would change nothing, or less than its configuration says.
    fn check_complete(&self) -> Result<(), AdapterError> {
        let file = self.folder.join(WEIGHTS);
        if self.changes.is_empty() && self.wholes.is_empty() {
            let reason =
                "expected tensors that change a model, found none: save the adapter again".to_owned();
            return Err(AdapterError::Settings { file, reason });
        }
        if !self.settings.lora_bias {
            return Ok(());
        }
        match self
            .changes
            .values()
            .find(|sides| sides.contains_key(&Side::Up) && !sides.contains_key(&Side::Bias))
        {
            None => Ok(()),
            Some(sides) => Err(AdapterError::Tensor {
                file,
                tensor: sides[&Side::Up].clone(),
                reason: format!(
                    "expected a lora_B.bias beside it, as lora_bias of {CONFIG} says, found none: save the adapter again"
                ),
            }),
        }
    }

    fn new(folder: &Path, settings: Settings, checkpoint: Checkpoint) -> Result<Adapter, AdapterError> {
        let mut changes: BTreeMap<String, Sides> = BTreeMap::new();
        let (mut wholes, mut copies) = (BTreeMap::new(), BTreeSet::new());
        let file = folder.join(WEIGHTS);
        let refused = |tensor: &str, reason: &str| AdapterError::Tensor {
            file: file.clone(),
            tensor: tensor.to_owned(),
            reason: reason.to_owned(),
        };
        for tensor in checkpoint.tensors() {
            if !matches!(tensor.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
                return Err(refused(
                    tensor.name,
                    "expected F32, F16, BF16 or F64: save the adapter in one of these",
                ));
            }
            let key = tensor.name.to_owned();
            let is_new = match keys::read(tensor.name) {
                None => {
                    let reason = "expected a name that PEFT gives to a tensor of a LoRA (base_model.model., then \
                                  lora_A, lora_B, lora_embedding_A, lora_embedding_B, lora_magnitude_vector or a \
                                  whole tensor of the model); other kinds of adapters are not supported";
                    return Err(refused(tensor.name, reason));
                }
                Some(Key::Change(module, side)) => {
                    changes.entry(module).or_default().insert(side, key).is_none()
                }
                Some(Key::Whole(name, true)) if name.ends_with(".weight") => copies.insert(key),
                Some(Key::Whole(name, _)) => wholes.insert(name, key).is_none(),
            };
            if !is_new {
                return Err(refused(
                    tensor.name,
                    "expected one tensor for this part, found two spellings of its name",
                ));
            }
        }
        for (module, sides) in &changes {
            let first = sides.values().next().map_or("", String::as_str);
            let has = |side: Side| sides.contains_key(&side);
            let is_pair = has(Side::Down) && has(Side::Up) || has(Side::Table) && has(Side::FromTable);
            if !is_pair || (has(Side::Down) && has(Side::Table)) {
                return Err(refused(
                    first,
                    "expected its pair, lora_A and lora_B, found one of them: is the file cut?",
                ));
            }
            if has(Side::Magnitude) != settings.dora {
                let reason = "expected a lora_magnitude_vector for every module where use_dora is true, and none where \
                              it is false";
                return Err(refused(first, reason));
            }
            let name = module.replace(".base_layer", "");
            if !settings.targets_module(&name) {
                let reason = "its module is none that adapter_config.json names: see target_modules, \
                              layers_to_transform and exclude_modules";
                return Err(refused(first, reason));
            }
        }
        Ok(Adapter { folder: folder.into(), checkpoint, settings, changes, wholes, copies })
    }

    /// The shape and the numbers of one of its tensors.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn read(&self, key: &str) -> Result<(Vec<usize>, Vec<f32>), WeightsError> {
        let shape = self.tensor(key).shape.to_vec();
        Ok((shape, Loader::new(self).tensor(key)?.to_vec()))
    }

    /// The folder that it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The model that it was trained over, as its trainer named it.
    pub fn base(&self) -> Option<&str> {
        self.settings.base.as_deref()
    }

    /// Modules that it changes, and whole tensors that it brings.
    pub fn counts(&self) -> (usize, usize) {
        (self.changes.len(), self.wholes.len())
    }

    /// Bytes of its tensors as float32.
    pub fn value_bytes(&self) -> u64 {
        self.checkpoint.tensors().map(|tensor| tensor.elements() as u64 * 4).sum()
    }

    /// A tensor by its name in the adapter's file.
    pub(crate) fn tensor(&self, key: &str) -> TensorView<'_> {
        self.checkpoint.tensor(key).expect("names were taken from this file")
    }

    /// The tensor that takes the place of one of the model's.
    pub fn whole(&self, name: &str) -> Option<TensorView<'_>> {
        Some(self.tensor(self.wholes.get(name)?))
    }

    /// Names of all these.
    pub(crate) fn wholes(&self) -> impl Iterator<Item = &str> {
        self.wholes.keys().map(String::as_str)
    }

    /// The same as a plan sees it.
    pub(crate) fn stored(&self, name: &str) -> Option<Stored> {
        self.whole(name).map(|tensor| Stored { dtype: tensor.dtype, shape: tensor.shape.to_vec() })
    }

    /// Whether a module is changed.
    pub(crate) fn changes(&self, module: &str) -> bool {
        self.changes.contains_key(module)
    }

    /// Whether a module's change adds something whatever its inputs are.
    pub(crate) fn has_bias(&self, module: &str) -> bool {
        self.changes.get(module).is_some_and(|sides| sides.contains_key(&Side::Bias))
    }

    /// The change of one matrix, if there is one. `used` remembers that somebody asked for it.
    pub(crate) fn change(&self, asked: &Asked, used: &Used) -> Result<Option<Change>, PlanError> {
        let Some(sides) = self.changes.get(asked.module) else { return Ok(None) };
        used.0.borrow_mut().extend(sides.values().cloned());
        let (down, up) = match asked.is_table {
            true => (Side::Table, Side::FromTable),
            false => (Side::Down, Side::Up),
        };
        let (Some(down), Some(up)) = (sides.get(&down), sides.get(&up)) else {
            let key = sides.values().next().expect("a change has tensors");
            let expected = if asked.is_table { "lora_embedding_A and _B" } else { "lora_A and lora_B" };
            return Err(other_model(key, format!("expected {expected} for this module, found others")));
        };
        // A matrix that was named as a parameter is known by that name.
        let parameter = format!("{}.weight", asked.name);
        let name: &str = if self.settings.targets_parameter(&parameter) { &parameter } else { asked.name };
        let rank = self.settings.rank(name);
        let ranks = rank * asked.part.map_or(1, |(_, count)| count);
        let Shape { rows, columns } = asked.shape;
        let (outputs, inputs) = if asked.is_table { (columns, rows) } else { (rows, columns) };
        self.expect(down, &[ranks, inputs], rank)?;
        self.expect(up, &[outputs, ranks], rank)?;
        let (bias, magnitude) = (sides.get(&Side::Bias).cloned(), sides.get(&Side::Magnitude).cloned());
        for key in bias.iter().chain(&magnitude) {
            self.expect(key, &[outputs], rank)?;
        }
        if asked.part.is_some() && (bias.is_some() || magnitude.is_some()) {
            return Err(other_model(
                down,
                "expected no bias and no magnitudes for experts in one tensor".to_owned(),
            ));
        }
        let scale = self.settings.scale(name) as f32;
        let (down, up) = (down.clone(), up.clone());
        let Asked { part, shape, is_table, .. } = *asked;
        Ok(Some(Change { down, up, bias, magnitude, rank, scale, shape, part, is_table }))
    }

    fn expect(&self, key: &str, shape: &[usize], rank: usize) -> Result<(), PlanError> {
        let found = self.tensor(key).shape;
        if found == shape {
            return Ok(());
        }
        Err(other_model(
            key,
            format!(
                "expected shape {shape:?}, from the model's config.json and the rank {rank} of {CONFIG}, found \
                 {found:?}: is the adapter another model's?"
            ),
        ))
    }

    /// Remembers that a whole tensor is in use.
    pub(crate) fn use_whole(&self, name: &str, used: &Used) {
        used.0.borrow_mut().extend(self.wholes.get(name).cloned());
    }

    /// Refuses an adapter of which the model has no use for a part.
    pub(crate) fn check_used(&self, used: &Used) -> Result<(), PlanError> {
        let used = used.0.borrow();
        let is_left = |name: &str| !used.contains(name) && !self.copies.contains(name);
        match self.checkpoint.tensors().find(|tensor| is_left(tensor.name)) {
            None => Ok(()),
            Some(left) => Err(other_model(
                left.name,
                "expected a module that the model has and that adapters are supported for; is the adapter another \
                 model's?"
                    .to_owned(),
            )),
        }
    }
}

/// A part of an adapter that does not go with the model.
pub(crate) fn other_model(tensor: &str, reason: String) -> PlanError {
    PlanError::Adapter { tensor: tensor.to_owned(), reason }
}
