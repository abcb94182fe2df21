//! What will be done, known before it is: which matrices become what, what stays, how much memory and disk it takes.

use std::collections::BTreeSet;
use std::ops::Range;

use bantam_core::layouts::Shape;
use bantam_model::checkpoint::Dtype;
use bantam_model::inventory::{self, Module, Role};
use bantam_model::source::Source;

use crate::error::{QuantizeError, refused};
use crate::form::{Form, Head};
use crate::layerwise::Listed;
use crate::matrix::Dense;

/// The program itself, its tables, headers and buffers.
pub(crate) const BASE_BYTES: usize = 24 << 20;
/// Bytes of what a method makes of a weight, and of the tensors that it is written as, at most.
const MADE_BYTES: usize = 4;
/// A vocabulary has too many rows to be in memory together.
const HEAD_ROWS: usize = 1 << 13;

/// A matrix that is quantized: a module, and which expert of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// The place among the modules.
    pub module: usize,
    /// 0 where there is one matrix; of a head, which stretch of its rows.
    pub expert: usize,
}

/// All that will be done.
#[derive(Debug)]
pub struct Blueprint<'a> {
    /// The model.
    pub source: &'a Source,
    /// What its matrices become.
    pub form: Form,
    /// Modules that are quantized.
    pub taken: Vec<Module>,
    /// Modules that stay as they are.
    pub left: Vec<Module>,
    /// What the head becomes, where it does not stay either.
    pub head: Option<Head>,
    /// Rows of it that are done at once.
    pub head_rows: usize,
}

impl<'a> Blueprint<'a> {
    /// Looks at the headers; refuses what the form cannot hold.
    pub fn new(source: &'a Source, form: Form) -> Result<Self, QuantizeError> {
        let shown = source.folder().display();
        source.check_tensors()?;
        if source.checkpoint.files().any(|file| file.extension().is_some_and(|ending| ending == "gguf")) {
            return Err(refused(format!(
                "{shown}: expected a checkpoint in safetensors, found a GGUF file: quantize the model that it was \
                 made from"
            )));
        }
        let (taken, left): (Vec<_>, Vec<_>) =
            inventory::modules(source)?.into_iter().partition(|module| form.takes(module));
        let name = form.name();
        if taken.is_empty() {
            return Err(refused(format!(
                "{shown}: expected matrices that {name} has a form for, found none: {name} is for stacked experts; \
                 choose nf4, gptq or ternary"
            )));
        }
        if let Some(module) = left.iter().find(|module| module.is_quantized()) {
            return Err(refused(format!(
                "{shown}: {}: expected numbers, because {name} leaves it as it is, found it quantized already: start \
                 from the original model, or choose ternary, which has a form for stacked experts",
                module.name
            )));
        }
        for module in &taken {
            if let Some(reason) = form.refusal(module.shape) {
                return Err(refused(format!("{shown}: {}: {reason}", module.name)));
            }
        }
        Ok(Blueprint { source, form, taken, left, head: None, head_rows: HEAD_ROWS })
    }

    /// With a head that is quantized too. One that is the embedding gets codes of its own; the embedding stays.
    pub fn with_head(mut self, head: Head) -> Result<Self, QuantizeError> {
        let (name, shown) = (self.form.name(), self.source.folder().display());
        if !matches!(self.form, Form::Ternary { .. }) {
            return Err(refused(format!(
                "{shown}: expected a form with a place for a head of eight bits or four, which is ternary, found \
                 {name}: its tools leave the head as it is"
            )));
        }
        let at = self.left.iter().position(|module| module.role == Role::Head);
        let module = match (at, self.left.iter().find(|module| module.role == Role::Embedding)) {
            (Some(at), _) => self.left.remove(at),
            (None, Some(embedding)) => {
                let mut head = embedding.clone();
                (head.name, head.role) = (self.source.spec.names.head.to_owned(), Role::Head);
                head
            }
            (None, None) => return Err(refused(format!("{shown}: expected a head, found none"))),
        };
        self.taken.push(module);
        self.head = Some(head);
        Ok(self)
    }

    /// Whether head and embedding were one, and are no longer.
    pub fn is_untied(&self) -> bool {
        self.head.is_some() && self.source.spec.tied
    }

    /// Whether it is a part of the head.
    pub fn is_head(&self, unit: Unit) -> bool {
        self.taken[unit.module].role == Role::Head
    }

    /// The matrices in the order in which they are done.
    pub fn units(&self) -> Vec<Unit> {
        let count = |of: &Module| match of.role {
            Role::Head => of.shape.rows.div_ceil(self.head_rows),
            _ => of.experts.unwrap_or(1),
        };
        let each = |(module, of)| (0..count(of)).map(move |expert| Unit { module, expert });
        self.taken.iter().enumerate().flat_map(each).collect()
    }

    /// The rows of its module that it is.
    fn rows(&self, unit: Unit) -> Range<usize> {
        let rows = self.taken[unit.module].shape.rows;
        match self.is_head(unit) {
            true => unit.expert * self.head_rows..((unit.expert + 1) * self.head_rows).min(rows),
            false => 0..rows,
        }
    }

    /// Outputs and inputs.
    pub fn shape(&self, unit: Unit) -> Shape {
        Shape { rows: self.rows(unit).len(), ..self.taken[unit.module].shape }
    }

    /// A matrix's name: the module's, with the expert's number where it is one of several.
    pub fn name(&self, unit: Unit) -> String {
        let module = &self.taken[unit.module];
        match module.experts {
            Some(_) => format!("{}.{}", module.name, unit.expert),
            None if unit.expert > 0 => format!("{} from row {}", module.name, self.rows(unit).start),
            None => module.name.clone(),
        }
    }

    /// What a method that goes by layers is told of a layer.
    pub fn listed(&self, layer: usize) -> Vec<Listed> {
        let of_layer = |unit: &Unit| self.taken[unit.module].layer == Some(layer);
        let listed = |unit: Unit| {
            let module = &self.taken[unit.module];
            let expert = module.experts.map(|_| unit.expert);
            Listed { name: self.name(unit), origin: module.name.clone(), expert }
        };
        self.units().into_iter().filter(of_layer).map(listed).collect()
    }

    /// The kind of a matrix: its name without numbers, as reports group them.
    pub fn kind(&self, unit: Unit) -> String {
        let is_number = |part: &&str| part.parse::<usize>().is_ok();
        let name = &self.taken[unit.module].name;
        let parts: Vec<&str> = name.split('.').collect();
        let after_layer = parts.iter().position(is_number).map_or(0, |at| at + 1);
        let kind = parts[after_layer..].iter().map(|part| if is_number(part) { "*" } else { part });
        kind.collect::<Vec<_>>().join(".")
    }

    /// Reads a matrix.
    pub fn read(&self, unit: Unit) -> Result<Dense, QuantizeError> {
        let module = &self.taken[unit.module];
        let mut values = Vec::new();
        match self.is_head(unit) {
            true => module.read_rows(&self.source.checkpoint, self.rows(unit), &mut values)?,
            false => module.read(&self.source.checkpoint, unit.expert, &mut values)?,
        }
        Ok(Dense { name: self.name(unit), shape: self.shape(unit), values })
    }

    /// What a matrix was stored as; where it was quantized, what tools compute with.
    pub fn dtype(&self, unit: Unit) -> Dtype {
        let tensor = self.taken[unit.module].tensor(&self.source.checkpoint);
        tensor.map_or(Dtype::Bf16, |tensor| tensor.dtype)
    }

    /// Names of the tensors that are not written again.
    pub fn replaced(&self) -> BTreeSet<&str> {
        // The embedding is still one where the head has left it.
        let stays = |module: &&Module| module.role == Role::Head && self.is_untied();
        self.taken.iter().filter(|module| !stays(module)).flat_map(Module::tensors).collect()
    }

    /// The head, where it is a matrix of its own.
    pub fn head(&self) -> Option<&str> {
        self.left.iter().find(|module| module.role == Role::Head).map(|module| module.name.as_str())
    }

    /// Other matrices that stay as they are, without the embedding.
    pub fn left_names(&self) -> Vec<String> {
        let is_told = |module: &&Module| !matches!(module.role, Role::Head | Role::Embedding);
        self.left.iter().filter(is_told).map(|module| module.name.clone()).collect()
    }

    /// Weights that are quantized.
    pub fn weights(&self) -> usize {
        self.taken.iter().map(Module::weights).sum()
    }

    /// The most memory that is taken at once, without calibration.
    pub fn memory_bytes(&self) -> usize {
        let planes = if let Form::Ternary { planes, .. } = self.form { planes } else { 1 };
        let bytes = |module: &Module| {
            let rows = if module.role == Role::Head { self.head_rows } else { module.shape.rows };
            let weights = rows.min(module.shape.rows) * module.shape.columns;
            weights * (4 + MADE_BYTES * planes) + module.scratch_bytes(&self.source.checkpoint)
        };
        BASE_BYTES + self.copied_bytes() + self.taken.iter().map(bytes).max().unwrap_or(0)
    }

    /// Bytes of the largest small file, which is copied at once.
    pub fn copied_bytes(&self) -> usize {
        match std::fs::metadata(self.source.folder().join("tokenizer.json")) {
            Ok(file) => usize::try_from(file.len()).unwrap_or(usize::MAX),
            // One that will be made of a GGUF file's vocabulary.
            Err(_) => self.source.files.tokenizer().ok().flatten().map_or(0, |bytes| bytes.len()),
        }
    }

    /// About how many bytes the result has.
    pub fn output_bytes(&self) -> u64 {
        let replaced = self.replaced();
        let copied = self.source.checkpoint.tensors().filter(|tensor| !replaced.contains(tensor.name));
        let copied: u64 = copied.map(|tensor| tensor.data.len() as u64).sum();
        let head = self.taken.iter().find(|module| module.role == Role::Head).map_or(0, Module::weights);
        let head_bits = self.head.map_or(0.0, |head| head.bits() as f64 + 0.5);
        let bits = (self.weights() - head) as f64 * self.form.bits() + head as f64 * head_bits;
        copied + (bits / 8.0) as u64
    }
}
