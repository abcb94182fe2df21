//! A new adapter: which modules it is for, and the numbers that it begins with, both as PEFT has them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use bantam_core::Cpu;
use bantam_model::adapter::{CONFIG, WEIGHTS};
use bantam_model::checkpoint::writer::{Outline, write_file, write_streamed};
use bantam_model::checkpoint::{Dtype, TensorView};
use bantam_model::families::{Part, Stack};
use bantam_model::foreign::clipped;
use bantam_model::pool::Threads;
use bantam_model::source::Source;
use bantam_model::spec::{LayerSpec, ModelSpec};
use serde_json::json;

use super::RunError;
use super::choices::{Lora, Pissa};
use super::output::failed;
use super::svd::{self, Matrix};
use crate::data::Twister;

/// A linear layer as PEFT finds it in the model.
#[derive(Debug, PartialEq, Eq)]
struct Module {
    name: String,
    outputs: usize,
    inputs: usize,
    is_mlp: bool,
}

/// Names for groups of targets, and whether the feed-forward block is all of it.
const PRESETS: &[(&str, bool)] =
    &[("mlp_only", true), ("mlp_mamba", true), ("attn_mlp_ssm", false), ("llama", false)];

/// Groups of targets that no family here has.
const OF_OTHERS: &[&str] = &["mamba_only"];

/// Parameters at once, of a tensor of the model that is copied.
const COPIED: usize = 1 << 20;

/// All linear layers, in the order of their layers; the head last, where it has weights of its own.
fn modules(spec: &ModelSpec) -> Vec<Module> {
    let mut all = Vec::new();
    for (number, layer) in spec.layers.iter().enumerate() {
        let prefix = spec.trained.layer.replace("{}", &number.to_string());
        of_layer(spec, layer, &mut |module: &str, outputs, inputs, is_mlp| {
            let name = format!("{prefix}{module}");
            // Parts of one tensor are one module.
            match all.iter_mut().rev().take(8).find(|known: &&mut Module| known.name == name) {
                Some(known) => known.outputs += outputs,
                None => all.push(Module { name, outputs, inputs, is_mlp }),
            }
        });
    }
    if !spec.tied {
        let name = spec.trained.head.to_owned();
        all.push(Module { name, outputs: spec.vocab, inputs: spec.hidden, is_mlp: false });
    }
    all
}

fn of_layer(spec: &ModelSpec, layer: &LayerSpec, add: &mut dyn FnMut(&str, usize, usize, bool)) {
    let (names, hidden, attention, mlp) = (spec.trained, spec.hidden, &layer.attention, &layer.mlp);
    let (query, kv) = (attention.heads * attention.head_width, attention.kv_heads * attention.head_width);
    let output =
        |add: &mut dyn FnMut(&str, usize, usize, bool)| add(names.output.module, hidden, query, false);
    if names.output_first {
        output(add);
    }
    let inputs = [(names.query, query), (names.key, kv), (names.value, kv)];
    inputs.into_iter().for_each(|(part, rows)| add(part.module, rows, hidden, false));
    if !names.output_first {
        output(add);
    }
    match (mlp.experts, names.experts) {
        // The router comes first, and of an expert w1, w2, w3: new numbers are drawn in the order of the modules.
        (Some(experts), Some((router, Stack::Apart))) => {
            add(router, experts.choice.experts, hidden, true);
            for expert in 0..experts.choice.experts {
                let name = |part: Part| part.module.replace("{}", &expert.to_string());
                names.gate.into_iter().for_each(|part| add(&name(part), mlp.width, hidden, true));
                add(&name(names.down), hidden, mlp.width, true);
                add(&name(names.up), mlp.width, hidden, true);
            }
        }
        // Neither such experts nor their router are linear layers where they were trained.
        (Some(_), _) => {}
        (None, _) => {
            let inner = names.gate.into_iter().chain([names.up]);
            inner.for_each(|part| add(part.module, mlp.width, hidden, true));
            add(names.down.module, hidden, mlp.width, true);
        }
    }
}

fn last(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// What the configuration's `target_modules` will say.
fn targets(all: &[Module], asked: &[String]) -> Result<Vec<String>, RunError> {
    let mut found = BTreeSet::new();
    for target in asked {
        let is_named =
            |module: &&Module| module.name == *target || module.name.ends_with(&format!(".{target}"));
        let preset = PRESETS.iter().find(|(name, _)| name == target);
        if all.iter().any(|module| is_named(&module)) {
            found.insert(target.clone());
        } else if target == "all" || preset.is_some() {
            let is_mlp_only = preset.is_some_and(|(_, mlp_only)| *mlp_only);
            let chosen = all.iter().filter(|module| !module.name.contains("lm_head"));
            let chosen = chosen.filter(|module| {
                (!is_mlp_only || module.is_mlp) && (target == "all" || module.name.contains('.'))
            });
            found.extend(chosen.map(|module| last(&module.name).to_owned()));
        } else if OF_OTHERS.contains(&target.as_str()) {
            return Err(RunError::Target { found: clipped(target), known: "no state spaces".to_owned() });
        } else {
            let known: BTreeSet<&str> = all.iter().map(|module| last(&module.name)).collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            return Err(RunError::Target { found: clipped(target), known });
        }
    }
    match found.is_empty() {
        false => Ok(found.into_iter().collect()),
        true => Err(RunError::Target { found: asked.join(","), known: "all".to_owned() }),
    }
}

/// Tensors of an adapter that have the model's own in them: all experts' of a layer.
struct Parameter {
    name: String,
    /// Around it, where there is another.
    module: String,
    experts: usize,
    outputs: usize,
    inputs: usize,
}

/// The parameters that targets mean, by ends of their names.
fn parameters(spec: &ModelSpec, asked: &[String]) -> Result<Vec<Parameter>, RunError> {
    let mut all: Vec<Parameter> = Vec::new();
    for (number, layer) in spec.layers.iter().enumerate() {
        let prefix = spec.trained.layer.replace("{}", &number.to_string());
        let (mlp, hidden, names) = (&layer.mlp, spec.hidden, spec.trained);
        let (Some(experts), Some((_, Stack::Together { .. }))) = (mlp.experts, names.experts) else {
            continue;
        };
        let inner = names.gate.into_iter().chain([names.up]).map(|part| (part, mlp.width, hidden));
        for (part, outputs, inputs) in inner.chain([(names.down, hidden, mlp.width)]) {
            let name = format!("{prefix}{}", part.module);
            match all.iter_mut().find(|known| known.name == name) {
                Some(known) => known.outputs += outputs,
                None => {
                    let (experts, module) = (experts.choice.experts, String::new());
                    all.push(Parameter { name, module, experts, outputs, inputs });
                }
            }
        }
    }
    let is_named = |name: &str, target: &str| name == target || name.ends_with(&format!(".{target}"));
    if let Some(missing) = asked.iter().find(|target| !all.iter().any(|known| is_named(&known.name, target)))
    {
        let known: BTreeSet<&str> = all.iter().map(|known| last(&known.name)).collect();
        return Err(RunError::Parameter {
            found: clipped(missing),
            known: match known.is_empty() {
                true => "none".to_owned(),
                false => known.into_iter().collect::<Vec<_>>().join(", "),
            },
        });
    }
    all.retain(|known| asked.iter().any(|target| is_named(&known.name, target)));
    // Those of one module are wrapped around it one after another; the last is the outermost.
    for at in 0..all.len() {
        let module = all[at].name.rsplit_once('.').map_or("", |(module, _)| module).to_owned();
        let later = all[at + 1..].iter().filter(|other| other.name.starts_with(&format!("{module}.")));
        all[at].module = module.clone() + &".base_layer".repeat(later.count());
    }
    Ok(all)
}

/// Whether a tensor is one of a module, by the end of its name, or below one. PEFT does not look for dots: `norm` is
/// every norm of every layer.
fn is_in(tensor: &str, module: &str) -> bool {
    tensor.match_indices('.').any(|(dot, _)| !module.is_empty() && tensor[..dot].ends_with(module))
}

/// Tensors of the model that the adapter brings whole: those of modules, or below them, by the ends of their names.
fn saved<'a>(source: &'a Source, asked: &[String]) -> Result<Vec<TensorView<'a>>, RunError> {
    let refused = |found: &str, why: &'static str| RunError::Whole { found: clipped(found), why };
    for module in asked {
        if !source.checkpoint.tensors().any(|tensor| is_in(tensor.name, module)) {
            let is_head = source.spec.tied && is_in(&format!("{}.weight", source.spec.names.head), module);
            let embedding = "found the embedding in its place (tie_word_embeddings)";
            return Err(refused(
                module,
                if is_head { embedding } else { "found no tensors of such a module" },
            ));
        }
    }
    let all = source.checkpoint.tensors();
    let all = all.filter(|tensor| asked.iter().any(|module| is_in(tensor.name, module)));
    let all: Vec<TensorView<'a>> = all.collect();
    let is_float = |dtype: Dtype| matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    match all.iter().find(|tensor| !is_float(tensor.dtype)) {
        Some(tensor) => Err(refused(tensor.name, "found a quantized tensor")),
        None => Ok(all),
    }
}

/// What a new adapter is made with.
pub(super) struct Maker<'a> {
    pub(super) source: &'a Source,
    pub(super) lora: &'a Lora,
    /// The model's folder, as the configuration names it.
    pub(super) base: &'a Path,
    pub(super) seed: u64,
    pub(super) cpu: Cpu,
    pub(super) threads: usize,
}

/// A tensor's name and shape.
pub(super) type Shaped = (String, Vec<usize>);

/// What a new adapter is for.
struct Wanted<'a> {
    /// As the configuration names them.
    targets: Vec<String>,
    modules: Vec<Module>,
    parameters: Vec<Parameter>,
    saved: Vec<TensorView<'a>>,
}

impl<'a> Wanted<'a> {
    fn new(source: &'a Source, lora: &Lora) -> Result<Self, RunError> {
        let all = modules(&source.spec);
        let has_none = lora.targets.is_empty() || lora.targets == ["none"];
        let targets = match has_none && !(lora.parameters.is_empty() && lora.saved.is_empty()) {
            true => Vec::new(),
            false => targets(&all, &lora.targets)?,
        };
        let (parameters, saved) = (parameters(&source.spec, &lora.parameters)?, saved(source, &lora.saved)?);
        let is_end = |name: &str, target: &String| name == target || name.ends_with(&format!(".{target}"));
        let is_saved = |name: &str| lora.saved.iter().any(|module| is_in(&format!("{name}."), module));
        let is_target = |name: &str| targets.iter().any(|target| is_end(name, target)) && !is_saved(name);
        let modules = all.into_iter().filter(|module| is_target(&module.name)).collect();
        Ok(Wanted { targets, modules, parameters, saved })
    }
}

/// What [`Maker::begin`] writes, without its numbers: targets for the configuration, and tensors.
pub(super) fn shapes(source: &Source, lora: &Lora) -> Result<(Vec<String>, Vec<Shaped>), RunError> {
    let Wanted { targets, modules, parameters, saved } = Wanted::new(source, lora)?;
    let mut tensors = Vec::new();
    let mut pair = |module: &str, experts: usize, outputs: usize, inputs: usize| {
        let (ranks, name) =
            (lora.rank * experts, |side| format!("base_model.model.{module}.lora_{side}.weight"));
        tensors.push((name("A"), vec![ranks, inputs]));
        tensors.push((name("B"), vec![outputs, ranks]));
    };
    modules.iter().for_each(|module| pair(&module.name, 1, module.outputs, module.inputs));
    for Parameter { module, experts, outputs, inputs, .. } in &parameters {
        pair(module, *experts, *outputs, *inputs);
    }
    if lora.dora {
        let length = |Module { name, outputs, .. }: &Module| {
            (format!("base_model.model.{name}.lora_magnitude_vector"), vec![*outputs])
        };
        tensors.extend(modules.iter().map(length));
    }
    let whole = |tensor: &TensorView| (format!("base_model.model.{}", tensor.name), tensor.shape.to_vec());
    tensors.extend(saved.iter().map(whole));
    Ok((targets, tensors))
}

/// A tensor with its name and shape.
type Named = (String, Vec<usize>, Vec<f32>);

impl Maker<'_> {
    /// Writes an adapter that changes nothing yet: the second matrix is zero, the first is drawn as torch draws it for
    /// this seed. A DoRA's lengths are ones, until the model's own are known. With PiSSA, both are the largest parts of
    /// the model's own matrix, which are to be taken off that.
    pub(super) fn begin(&self, folder: &Path) -> Result<(), RunError> {
        let Maker { source, lora, .. } = *self;
        let Wanted { targets, modules, parameters, saved } = Wanted::new(source, lora)?;
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        let mut generator = Twister::new(self.seed);
        let mut tensors: Vec<Named> = Vec::new();
        let pool = Threads::start(self.threads).map_err(|error| failed(folder, error))?;
        for module in &modules {
            match lora.pissa {
                None => {
                    self.drawn(&module.name, 1, module.outputs, module.inputs, &mut generator, &mut tensors)
                }
                Some(pissa) => self.largest(module, pissa, &pool, &mut tensors)?,
            }
            if lora.dora {
                let name = format!("base_model.model.{}.lora_magnitude_vector", module.name);
                tensors.push((name, vec![module.outputs], vec![1.0; module.outputs]));
            }
        }
        for Parameter { module, experts, outputs, inputs, .. } in &parameters {
            self.drawn(module, *experts, *outputs, *inputs, &mut generator, &mut tensors);
        }
        write(&folder.join(WEIGHTS), &tensors, &saved)?;
        Ok(write_file(&folder.join(CONFIG), config(lora, &targets, self.base).as_bytes())?)
    }

    fn drawn(
        &self,
        module: &str,
        experts: usize,
        outputs: usize,
        inputs: usize,
        generator: &mut Twister,
        tensors: &mut Vec<Named>,
    ) {
        let ranks = self.lora.rank * experts;
        // Both layers are drawn when they are made, and the first once more.
        for _ in 0..ranks * (inputs + outputs) {
            generator.bits32();
        }
        let first = (0..ranks * inputs).map(|_| uniform(generator, inputs)).collect();
        let name = |side: &str| format!("base_model.model.{module}.lora_{side}.weight");
        tensors.push((name("A"), vec![ranks, inputs], first));
        tensors.push((name("B"), vec![outputs, ranks], vec![0.0; outputs * ranks]));
    }

    /// The largest parts of a module's matrix: each side has the root of a value, over the adapter's scale.
    fn largest(
        &self,
        module: &Module,
        pissa: Pissa,
        pool: &Threads,
        tensors: &mut Vec<Named>,
    ) -> Result<(), RunError> {
        let Module { name, outputs, inputs, .. } = module;
        let (rank, shape) = (self.lora.rank, [*outputs, *inputs]);
        let stored = format!("{name}.weight");
        let tensor = self.source.checkpoint.tensor(&stored);
        let Some(tensor) = tensor.filter(|tensor| tensor.shape == shape && rank <= shape[0].min(shape[1]))
        else {
            return Err(RunError::Pissa { tensor: stored, rank, shape });
        };
        let mut values = vec![0.0; tensor.elements()];
        tensor.load_f32(0, &mut values, &mut Vec::new()).map_err(|error| failed(tensor.file, error))?;
        let matrix = Matrix { values: &values, rows: *outputs, columns: *inputs };
        let parts = svd::largest((self.cpu, pool), matrix, rank, pissa.powers);
        let scale = self.lora.scale();
        let roots: Vec<f64> = parts.values.iter().map(|value| (value / scale).sqrt()).collect();
        let down =
            parts.right.iter().zip(&roots).flat_map(|(row, root)| row.iter().map(move |x| (x * root) as f32));
        let down = down.collect();
        let up = (0..*outputs).flat_map(|row| {
            let sides = parts.left.iter().zip(&roots);
            sides.map(move |(side, root)| (side[row] * root) as f32)
        });
        let side = |side: &str| format!("base_model.model.{name}.lora_{side}.weight");
        let up = up.collect();
        tensors.push((side("A"), vec![rank, *inputs], down));
        tensors.push((side("B"), vec![*outputs, rank], up));
        Ok(())
    }
}

/// Writes an adapter's tensors in float32; whole ones are copied piece by piece.
fn write(path: &Path, tensors: &[Named], saved: &[TensorView<'_>]) -> Result<(), RunError> {
    let names: Vec<String> = saved.iter().map(|tensor| format!("base_model.model.{}", tensor.name)).collect();
    let own = tensors.iter().map(|(name, shape, _)| (name.as_str(), Dtype::F32, shape.as_slice()));
    let whole = names.iter().zip(saved).map(|(name, tensor)| (name.as_str(), Dtype::F32, tensor.shape));
    let outlines: Vec<Outline<'_>> = own.chain(whole).collect();
    let put = |values: &[f32], out: &mut dyn Write| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        out.write_all(&bytes)
    };
    Ok(write_streamed(path, &outlines, &[("format", "pt")], |at, out| {
        let Some(tensor) = at.checked_sub(tensors.len()).map(|at| &saved[at]) else {
            return put(&tensors[at].2, out);
        };
        let (mut values, mut scratch, count) = (Vec::new(), Vec::new(), tensor.elements());
        for first in (0..count).step_by(COPIED) {
            values.resize(COPIED.min(count - first), 0.0);
            tensor.load_f32(first, &mut values, &mut scratch)?;
            put(&values, out)?;
        }
        Ok(())
    })?)
}

/// A number as `kaiming_uniform_` of torch draws it for a layer of so many inputs.
fn uniform(generator: &mut Twister, inputs: usize) -> f32 {
    let bound = (3f64.sqrt() * ((2.0 / 6.0f64).sqrt() / (inputs as f64).sqrt())) as f32;
    let unit = (generator.bits32() & 0x00ff_ffff) as f32 / 16_777_216.0;
    unit * (bound + bound) - bound
}

pub(super) fn config(lora: &Lora, targets: &[String], base: &Path) -> String {
    let mut config = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base.display().to_string(),
        "bias": "none",
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": if lora.saved.is_empty() { json!(null) } else { json!(lora.saved) },
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    });
    // Older versions of PEFT do not know the key.
    if !lora.parameters.is_empty() {
        config["target_parameters"] = json!(lora.parameters);
    }
    format!("{config:#}\n")
}
