//! What was lost and what was won, as it is printed and written beside the weights.
//!
//! The file says nothing about the time or the machine: the same work gives the same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use bantam_model::checkpoint::writer;
use bantam_model::inventory::Role;
use serde_json::{Value, json};

use crate::error::QuantizeError;
use crate::parts::Loss;
use crate::run::Run;

/// The name of the file.
pub const FILE: &str = "bantam_report.json";

/// Matrices of one kind together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kind {
    /// How many.
    pub matrices: usize,
    /// Their weights.
    pub weights: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was lost.
    pub loss: Loss,
    /// The largest relative squared error of one of them.
    pub worst: f64,
}

impl Kind {
    /// Bits of a weight, scales and the like included.
    pub fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.weights.max(1) as f64
    }
}

/// The report.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The form.
    pub form: String,
    /// What was chosen about it.
    pub settings: Value,
    /// How it was made, with what it was calibrated on.
    pub method: Value,
    /// Quantized matrices, by kind.
    pub kinds: BTreeMap<String, Kind>,
    /// All of them, but for the head.
    pub all: Kind,
    /// The head, where it is quantized too.
    pub head: Option<Kind>,
    /// Weights that stay as they were, without embedding and head: norms, biases, routers.
    pub other: [u64; 2],
    /// Embedding and head: weights, bytes.
    pub embedding: [u64; 2],
    /// Weight bytes that are read for a token, as another verb tells it.
    pub bytes_per_token: Option<u64>,
    /// Before and after, where it was measured.
    pub evaluation: Option<Value>,
}

impl Report {
    /// Of what is done.
    pub fn new(run: &Run) -> Report {
        let blueprint = run.blueprint;
        let mut report = Report {
            form: blueprint.form.name().to_owned(),
            settings: blueprint.form.settings(),
            method: run.method.clone(),
            ..Report::default()
        };
        for (unit, part) in run.parts() {
            let shape = blueprint.shape(unit);
            let bytes = part.tensors.iter().map(|tensor| tensor.bytes() as u64).sum();
            let one = Kind {
                matrices: 1,
                weights: (shape.rows * shape.columns) as u64,
                bytes,
                loss: part.loss.clone(),
                worst: part.loss.relative(),
            };
            if blueprint.is_head(unit) {
                report.embedding[0] += one.weights;
                report.embedding[1] += one.bytes;
                let head = report.head.get_or_insert_default();
                head.add(&one);
                head.matrices = 1;
                continue;
            }
            report.all.add(&one);
            report.kinds.entry(blueprint.kind(unit)).or_default().add(&one);
        }
        let replaced = blueprint.replaced();
        let is_apart = |name: &str| {
            blueprint.left.iter().any(|module| {
                matches!(module.role, Role::Embedding | Role::Head) && module.tensors().contains(&name)
            })
        };
        for tensor in blueprint.source.checkpoint.tensors().filter(|tensor| !replaced.contains(tensor.name)) {
            let sum = if is_apart(tensor.name) { &mut report.embedding } else { &mut report.other };
            sum[0] += tensor.elements() as u64;
            sum[1] += tensor.data.len() as u64;
        }
        report
    }

    /// Bits of a weight, with everything that is not embedding or head.
    pub fn bits_per_weight(&self) -> f64 {
        (self.all.bytes + self.other[1]) as f64 * 8.0 / (self.all.weights + self.other[0]).max(1) as f64
    }

    /// What makes the work repeatable, and the few numbers that stand in the configuration.
    pub fn summary(&self) -> Value {
        json!({
            "form": self.form,
            "settings": self.settings,
            "method": self.method,
            "bits_per_weight": rounded(self.bits_per_weight()),
            "quantized_bits_per_weight": rounded(self.all.bits()),
            "relative_squared_error": rounded(self.all.loss.relative()),
        })
    }

    /// All of it.
    pub fn json(&self) -> Value {
        let kind = |kind: &Kind| {
            // Methods tell relative losses of single matrices.
            let mean =
                |(name, loss): &(String, f64)| (name.clone(), json!(rounded(loss / kind.matrices as f64)));
            let stages: serde_json::Map<String, Value> = kind.loss.stages.iter().map(mean).collect();
            json!({
                "matrices": kind.matrices,
                "weights": kind.weights,
                "bytes": kind.bytes,
                "bits_per_weight": rounded(kind.bits()),
                "relative_squared_error": rounded(kind.loss.relative()),
                "worst_matrix": rounded(kind.worst),
                "stages": stages,
            })
        };
        let kinds: serde_json::Map<String, Value> =
            self.kinds.iter().map(|(name, of)| (name.clone(), kind(of))).collect();
        let of = |[weights, bytes]: [u64; 2]| json!({ "weights": weights, "bytes": bytes });
        let mut report = self.summary();
        report["bytes_per_token"] = json!(self.bytes_per_token);
        report["quantized"] = kind(&self.all);
        report["kinds"] = Value::Object(kinds);
        report["head"] = json!(self.head.as_ref().map(kind));
        report["embedding_and_head"] = of(self.embedding);
        report["other"] = of(self.other);
        report["evaluation"] = json!(self.evaluation);
        report
    }

    /// Writes it into a checkpoint's folder.
    pub fn write(&self, folder: &Path) -> Result<(), QuantizeError> {
        let text = format!("{:#}\n", self.json());
        Ok(writer::write_file(&folder.join(FILE), text.as_bytes())?)
    }
}

impl Kind {
    fn add(&mut self, other: &Kind) {
        self.matrices += other.matrices;
        self.weights += other.weights;
        self.bytes += other.bytes;
        self.loss.error += other.loss.error;
        self.loss.square += other.loss.square;
        self.worst = self.worst.max(other.worst);
        for (stage, loss) in &other.loss.stages {
            match self.loss.stages.iter_mut().find(|(found, _)| found == stage) {
                Some((_, sum)) => *sum += loss,
                None => self.loss.stages.push((stage.clone(), *loss)),
            }
        }
    }
}

/// Six digits.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(5 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}
