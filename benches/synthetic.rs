//! Checkpoints of published shapes with made-up weights, in the form that a format's own tool writes, for measuring
//! this program and others on files that are as large as the real ones. They say nothing of how good a format is.

mod format;
mod noise;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::checkpoint::Dtype;
use bantam_model::checkpoint::writer::{self, Outline, WriteError};
use bantam_model::plan::{Options, Plan, Stored};
use bantam_model::spec::ModelSpec;
use serde_json::{Map, Value, json};

pub use format::{FORMATS, Format};
use format::{Tensor, plain};
use noise::{Content, Noise};

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum SyntheticError {
    /// The shape's configuration.
    #[error("{0}")]
    Shape(String),
    /// More layers than the shape has, or none.
    #[error("--layers {asked}: the shape has {most}; choose 1 to {most}")]
    Layers {
        /// Asked for.
        asked: usize,
        /// Possible.
        most: usize,
    },
    /// The format's tool does not do this shape.
    #[error("this format cannot hold this shape: {0}")]
    Format(String),
    /// Something is there already.
    #[error("{}: there are files in it; give a new folder, or remove them first", .0.display())]
    Taken(PathBuf),
    /// The folder.
    #[error("{}: {source}", .folder.display())]
    Folder {
        /// Where.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A checkpoint to make.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The shape as a `config.json` of 16-bit weights.
    pub config: &'a str,
    /// Fewer layers than that.
    pub layers: Option<usize>,
    /// How matrices are stored.
    pub format: Format,
    /// Another seed, other weights.
    pub seed: u64,
}

impl Request<'_> {
    /// Writes `model.safetensors` and then `config.json`, without which it is no model, into a new or empty folder.
    pub fn write(&self, folder: &Path) -> Result<(), SyntheticError> {
        let mut config: Map<String, Value> =
            serde_json::from_str(self.config).map_err(|error| SyntheticError::Shape(error.to_string()))?;
        self.cut(&mut config)?;
        let tensors = self.tensors(&config)?;
        let dtype = if self.format.dtype() == Dtype::F16 { "float16" } else { "bfloat16" };
        config.insert("torch_dtype".to_owned(), json!(dtype));
        config.extend(self.format.config().map(|settings| ("quantization_config".to_owned(), settings)));
        let is_new = claim(folder)?;
        let written = self.write_files(folder, &tensors, &config);
        if written.is_err() && is_new {
            // The first failure is the one to tell.
            let _ = fs::remove_dir(folder);
        }
        written
    }

    fn cut(&self, config: &mut Map<String, Value>) -> Result<(), SyntheticError> {
        let key = "num_hidden_layers";
        if let Some(asked) = self.layers {
            let most = config.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
            if !(1..=most).contains(&asked) {
                return Err(SyntheticError::Layers { asked, most });
            }
            config.insert(key.to_owned(), json!(asked));
        }
        Ok(())
    }

    fn write_files(
        &self,
        folder: &Path,
        tensors: &[Tensor],
        config: &Map<String, Value>,
    ) -> Result<(), SyntheticError> {
        let outlines: Vec<Outline> =
            tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype, &*tensor.shape)).collect();
        let weights = folder.join("model.safetensors");
        let mut noise = Noise::new(self.seed);
        writer::write_streamed(&weights, &outlines, &[("format", "pt")], |index, out| {
            let Tensor { name, dtype, shape, content } = &tensors[index];
            noise.write(name, (content, *dtype), shape.iter().product(), out)
        })?;
        let text = serde_json::to_string_pretty(config).expect("a map of JSON is JSON");
        writer::write_file(&folder.join("config.json"), text.as_bytes()).inspect_err(|_| {
            let _ = fs::remove_file(&weights);
        })?;
        Ok(())
    }

    /// Every tensor of the checkpoint. A plan asks for each that the model needs, whatever the family.
    fn tensors(&self, config: &Map<String, Value>) -> Result<Vec<Tensor>, SyntheticError> {
        let shape_error = |error: &dyn std::error::Error| SyntheticError::Shape(error.to_string());
        let text = Value::Object(config.clone()).to_string();
        let spec = ModelSpec::parse(text.as_bytes()).map_err(|error| shape_error(&error))?;
        if self.format == Format::Awq && config.get("hidden_act") == Some(&json!("gelu_fast")) {
            let reason = "AutoAWQ refuses hidden_act \"gelu_fast\"; gptq can be had".to_owned();
            return Err(SyntheticError::Format(reason));
        }
        let asked = RefCell::new(BTreeMap::new());
        let stored = |name: &str, shape: &[usize]| {
            asked.borrow_mut().insert(name.to_owned(), shape.to_vec());
            Some(Stored { dtype: Dtype::Bf16, shape: shape.to_vec() })
        };
        Plan::new(&spec, stored, options(), Cpu::detect()).map_err(|error| shape_error(&error))?;
        let asked = asked.into_inner();
        if self.format == Format::Mxfp4 && !asked.values().any(|shape| shape.len() == 3) {
            let reason = "mxfp4 is for experts that stand in one tensor, and it has none".to_owned();
            return Err(SyntheticError::Format(reason));
        }
        let mut tensors = Vec::new();
        for (name, shape) in asked {
            tensors.extend(self.stored(&spec, &name, &shape).map_err(SyntheticError::Format)?);
        }
        Ok(tensors)
    }

    /// The tensors for one of a 16-bit checkpoint.
    fn stored(&self, spec: &ModelSpec, name: &str, shape: &[usize]) -> Result<Vec<Tensor>, String> {
        let (names, dtype) = (spec.names, self.format.dtype());
        let module = name.strip_suffix(".weight");
        let is_router = |module: &str| names.experts.is_some_and(|(router, _)| module.ends_with(router));
        let stays = |module: &str| module == names.embedding || module == names.head || is_router(module);
        Ok(match (shape.len(), module) {
            (3, _) => self.format.stack(name, shape)?,
            (2, Some(module)) if !stays(module) => {
                let mut tensors = self.format.matrix(module, shape[0], shape[1])?;
                tensors.extend(self.divisors(spec, module, shape[1]));
                tensors
            }
            (2, Some(_)) => vec![plain(name, shape, dtype)],
            // Norms multiply by about one; biases and the like are small.
            _ => {
                let shift = spec.final_norm.weight_shift;
                let is_norm = module.is_some();
                let center = if is_norm { 1.0 - shift } else { 0.0 };
                let spread = if is_norm { 0.25 } else { 0.05 };
                let content = Content::Floats { center, spread };
                vec![Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), content }]
            }
        })
    }

    /// What AWQ leaves between an ungated block's bend and its second matrix.
    fn divisors(&self, spec: &ModelSpec, module: &str, inputs: usize) -> Option<Tensor> {
        let down = spec.names.down.module;
        if self.format != Format::Awq || spec.names.gate.is_some() || !module.ends_with(down) {
            return None;
        }
        let (parent, _) = module.rsplit_once('.')?;
        let content = Content::Floats { center: 1.0, spread: 0.25 };
        Some(Tensor { name: format!("{parent}.act.scales"), dtype: Dtype::F16, shape: vec![inputs], content })
    }
}

/// The least that can be planned: only names and shapes count.
fn options() -> Options {
    Options {
        context: 1,
        sequences: 1,
        chunk: 1,
        logits_rows: 1,
        kv: KvKind::F32,
        precision: Precision::Exact,
        quantization: None,
        head: None,
        cache_positions: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    }
}

/// Makes the folder, or sees that it is empty; says whether it is new.
fn claim(folder: &Path) -> Result<bool, SyntheticError> {
    let error = |source| SyntheticError::Folder { folder: folder.to_owned(), source };
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(false),
            Some(_) => Err(SyntheticError::Taken(folder.to_owned())),
        },
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(error).map(|()| true)
        }
        Err(other) => Err(error(other)),
    }
}
