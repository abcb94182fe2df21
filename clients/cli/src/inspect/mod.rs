//! `bantam inspect`: what a checkpoint is, or what one of its tensors holds.

mod by_daemon;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bantam_core::{Cpu, KvKind, Precision};
use bantam_daemon::carried;
use bantam_model::checkpoint::writer::write_safetensors;
use bantam_model::checkpoint::{Checkpoint, Dtype, TensorView};
use bantam_model::files::ModelFiles;
use bantam_model::inspect::{self, Inspection};
use bantam_model::plan::{Options, Plan};
use bantam_model::source::{Source, SourceError};
use bantam_model::spec::{ExpertsSpec, ModelSpec};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::chosen_model::{self, ChosenModel};
use crate::daemon::DaemonFlags;
use crate::failure::{Failure, refused};
use crate::progress::Progress;
use crate::{output, written_file};

/// Names shown where a tensor is not found, or not used.
const NAMES_SHOWN: usize = 8;

/// How the weights will lie in memory is all that is asked of a plan here.
const SMALLEST: Options = Options { kv: KvKind::F16, precision: Precision::Fast, ..Options::SMALLEST };

/// Shows what a model is: family, shapes, types, bits per weight
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam inspect ./my-model\n  bantam inspect ./my-model --tensors\n  \
                        bantam inspect ./my-model --tensor model.norm.weight --out norm.safetensors")]
pub(crate) struct Inspect {
    #[command(flatten)]
    model: ChosenModel,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    /// Lists every tensor too
    #[arg(long)]
    tensors: bool,
    /// Shows one tensor, named as in the checkpoint; of a quantized matrix, by its name before, what it stands for
    #[arg(long, value_name = "NAME", conflicts_with = "tensors")]
    tensor: Option<String>,
    /// Writes that tensor to a safetensors file as float32, rows as they are stored or outputs of a quantized one
    #[arg(long, value_name = "F.safetensors", requires = "tensor")]
    out: Option<PathBuf>,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<(), Failure> {
        // Headers that are here are as quickly read by us.
        if let Some(link) = self.daemon.elsewhere()? {
            return self.by_daemon(&link);
        }
        if let Some(name) = &self.tensor {
            return self.one_tensor(name);
        }
        let source = self.model.open()?;
        let plan = source.plan(SMALLEST, Cpu::detect())?;
        let inspection = Inspection::new(&source.checkpoint, &plan);
        match self.json {
            true => output::json(&as_json(&source, &plan, &inspection))?,
            false => output::line(&self.as_text(&source, &plan, &inspection))?,
        }
        Ok(())
    }

    /// Needs no config.json: any safetensors file will do. Where there is one, it says what is quantized.
    fn one_tensor(&self, name: &str) -> Result<(), Failure> {
        let (checkpoint, plan) = self.planned()?;
        let found = match &plan {
            Ok(plan) => inspect::unquantized(&checkpoint, plan, name),
            Err(_) => Ok(None),
        };
        let found = found.map_err(|error| refused(error.to_string()))?;
        let place = self.model.path().unwrap_or(Path::new(carried::LABEL));
        let tensor = found.as_ref().map(|found| found.view()).or_else(|| checkpoint.tensor(name));
        // Codes must not be taken for weights because nobody could say what they are.
        let tensor = match (tensor, plan) {
            (Some(tensor), Ok(_) | Err(SourceError::Files(_))) => tensor,
            (Some(tensor), Err(_)) if tensor.dtype.is_float() => tensor,
            (None, Ok(_) | Err(SourceError::Files(_))) => return Err(no_tensor(&checkpoint, place, name)),
            (_, Err(error)) => return Err(error.into()),
        };
        if let Some(out) = &self.out {
            let files = self
                .model
                .path()
                .map(|path| ModelFiles::open(&chosen_model::found(path)))
                .transpose()
                .map_err(SourceError::from)?;
            written_file::check(out, &checkpoint, files.as_ref())?;
            write_tensor(&tensor, out)?;
            if !self.json {
                return Ok(());
            }
        }
        let progress = Progress::waiting(format!("reading {name}"));
        let values = inspect::values(&tensor);
        drop(progress);
        let (shape, dtype) = (tensor.shape, tensor.dtype.name());
        if self.json {
            let mut object = Map::from_iter([
                ("name".to_owned(), json!(name)),
                ("dtype".to_owned(), json!(dtype)),
                ("shape".to_owned(), json!(shape)),
                ("bytes".to_owned(), json!(tensor.data.len())),
            ]);
            if let Some(values) = values {
                object.insert("min".to_owned(), json!(values.min));
                object.insert("max".to_owned(), json!(values.max));
                object.insert("mean".to_owned(), json!(values.mean));
                object.insert("not_finite".to_owned(), json!(values.not_finite));
            }
            return Ok(output::json(&Value::Object(object))?);
        }
        let values = match values {
            None => "no finite value".to_owned(),
            Some(values) => {
                let bad = match values.not_finite {
                    0 => String::new(),
                    bad => format!(", {bad} values are NaN or infinite"),
                };
                format!("min {:.6}, max {:.6}, mean {:.6}{bad}", values.min, values.max, values.mean)
            }
        };
        let bytes = output::bytes(tensor.data.len() as u64);
        Ok(output::line(&format!("{}: {dtype} {shape:?}, {bytes}\n{values}", output::harmless(name)))?)
    }

    /// The tensors, and what they are for, as far as there is a config.json that says so.
    fn planned(&self) -> Result<(Arc<Checkpoint>, Result<Plan, SourceError>), Failure> {
        let opened = chosen_model::open(self.model.path()).and_then(|source| {
            let plan = source.plan(SMALLEST, Cpu::detect())?;
            Ok((source.checkpoint, plan))
        });
        match (opened, self.model.path()) {
            (Ok((checkpoint, plan)), _) => Ok((checkpoint, Ok(plan))),
            (Err(error), Some(path)) => {
                Ok((Checkpoint::open(&chosen_model::found(path))?.into(), Err(error)))
            }
            (Err(error), None) => Err(error.into()),
        }
    }

    fn as_text(&self, source: &Source, plan: &Plan, inspection: &Inspection) -> String {
        let spec = &source.spec;
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
        row("family", spec.family.to_owned());
        row("parameters", format!("{} ({})", output::count(inspection.parameters), inspection.parameters));
        row("layers", spec.layers.len().to_string());
        row("hidden", spec.hidden.to_string());
        for (name, value) in layer_rows(spec) {
            row(name, value);
        }
        let head = if spec.tied { "the embedding" } else { "its own matrix" };
        row("vocabulary", spec.vocab.to_string());
        row("head", head.to_owned());
        row("context", spec.context.to_string());
        for share in &inspection.dtypes {
            row(share.dtype.name(), format!("{} tensors, {}", share.tensors, output::bytes(share.bytes)));
        }
        row("bits per weight", format!("{:.3}", inspection.bits_per_weight()));
        row("read per token", output::bytes(plan.bytes_per_token as u64));
        row("files", output::bytes(source.checkpoint.file_bytes()));
        if !inspection.unused.is_empty() {
            row("not used", names(&inspection.unused));
        }
        let mut text = format!("{}\n\n{}", source.folder().display(), output::table(&rows, &[false, false]));
        if self.tensors {
            let row = |tensor: TensorView| {
                let shape = format!("{:?}", tensor.shape);
                vec![output::harmless(tensor.name).into_owned(), tensor.dtype.name().to_owned(), shape]
            };
            let rows: Vec<Vec<String>> = source.checkpoint.tensors().map(row).collect();
            text += "\n\n";
            text += &output::table(&rows, &[false, false, false]);
        }
        text
    }
}

/// What the layers have: heads, windows, experts.
fn layer_rows(spec: &ModelSpec) -> Vec<(&'static str, String)> {
    let Some(layer) = spec.layers.first() else { return Vec::new() };
    let (attention, mlp) = (&layer.attention, &layer.mlp);
    let (heads, width, kv_heads) = (attention.heads, attention.head_width, attention.kv_heads);
    let mut rows = vec![("heads", format!("{heads} of {width}, {kv_heads} for keys and values"))];
    for (window, layers) in windows(spec) {
        rows.push(("window", format!("{window} positions in {layers} of {} layers", spec.layers.len())));
    }
    rows.push(("feed-forward", mlp.width.to_string()));
    if let Some(ExpertsSpec { choice, .. }) = mlp.experts {
        rows.push(("experts", format!("{}, of which a token takes {}", choice.experts, choice.chosen)));
    }
    let caps = [("of scores", attention.cap), ("of logits", spec.logits_cap)];
    let caps: Vec<String> =
        caps.iter().filter_map(|(what, cap)| Some(format!("{} {what}", (*cap)?))).collect();
    if !caps.is_empty() {
        rows.push(("soft caps", caps.join(", ")));
    }
    rows
}

/// Every length of sliding windows, and how many layers have it.
fn windows(spec: &ModelSpec) -> BTreeMap<usize, usize> {
    let mut windows = BTreeMap::new();
    for window in spec.layers.iter().filter_map(|layer| layer.attention.window) {
        *windows.entry(window).or_insert(0) += 1;
    }
    windows
}

/// The first few of many names.
fn names(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).map(|name| output::harmless(name));
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn as_json(source: &Source, plan: &Plan, inspection: &Inspection) -> Value {
    let spec = &source.spec;
    let first = spec.layers.first();
    let attention = first.map(|layer| layer.attention);
    let experts = first.and_then(|layer| layer.mlp.experts);
    let windows = windows(spec).into_iter();
    let windows = windows.map(|(positions, layers)| json!({ "positions": positions, "layers": layers }));
    let dtypes: Map<String, Value> = inspection
        .dtypes
        .iter()
        .map(|share| {
            let numbers = json!({
                "tensors": share.tensors,
                "elements": share.elements,
                "bytes": share.bytes,
            });
            (share.dtype.name().to_owned(), numbers)
        })
        .collect();
    let tensors = source.checkpoint.tensors().map(|tensor| {
        json!({
            "name": tensor.name,
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "bytes": tensor.data.len(),
        })
    });
    json!({
        "family": spec.family,
        "layers": spec.layers.len(),
        "hidden": spec.hidden,
        "heads": attention.map(|attention| attention.heads),
        "kv_heads": attention.map(|attention| attention.kv_heads),
        "head_width": attention.map(|attention| attention.head_width),
        "windows": windows.collect::<Vec<_>>(),
        "attention_cap": attention.and_then(|attention| attention.cap),
        "feed_forward": first.map(|layer| layer.mlp.width),
        "experts": experts.map(|experts| experts.choice.experts),
        "experts_per_token": experts.map(|experts| experts.choice.chosen),
        "logits_cap": spec.logits_cap,
        "vocab": spec.vocab,
        "context": spec.context,
        "tied_head": spec.tied,
        "parameters": inspection.parameters,
        "weight_bytes": inspection.weight_bytes,
        "file_bytes": source.checkpoint.file_bytes(),
        "dtypes": dtypes,
        "bits_per_weight": inspection.bits_per_weight(),
        "bytes_per_token": plan.bytes_per_token,
        "unused_tensors": inspection.unused,
        "tensors": tensors.collect::<Vec<_>>(),
    })
}

/// Says which names come near.
fn no_tensor(checkpoint: &Checkpoint, place: &Path, name: &str) -> Failure {
    let last = name.rsplit('.').find(|part| *part != "weight" && *part != "bias");
    let near = |tensor: &TensorView| last.is_some_and(|last| !last.is_empty() && tensor.name.contains(last));
    let mut found: Vec<String> =
        checkpoint.tensors().filter(near).map(|tensor| tensor.name.to_owned()).collect();
    if found.is_empty() {
        found = checkpoint.tensors().map(|tensor| tensor.name.to_owned()).collect();
    }
    refused(format!(
        "{}: no tensor {name:?}; there are {}: `bantam inspect --tensors` lists all of them",
        place.display(),
        names(&found)
    ))
}

fn write_tensor(tensor: &TensorView, out: &Path) -> Result<(), Failure> {
    let mut bytes = Vec::with_capacity(tensor.elements() * 4);
    let mut block = [0.0; 1024];
    for start in (0..tensor.elements()).step_by(block.len()) {
        let block = &mut block[..(tensor.elements() - start).min(1024)];
        tensor.read_f32(start, block);
        bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
    }
    write_safetensors(out, &[(tensor.name, Dtype::F32, tensor.shape, &bytes)], &[])?;
    Ok(())
}
