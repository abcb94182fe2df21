//! A new adapter: which modules it is for, and the numbers that it begins with, both as PEFT has them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use bantam_model::adapter::{CONFIG, WEIGHTS};
use bantam_model::checkpoint::Dtype;
use bantam_model::checkpoint::writer::{Tensor, write_file, write_safetensors};
use bantam_model::families::{Part, Stack};
use bantam_model::foreign::clipped;
use bantam_model::spec::{LayerSpec, ModelSpec};
use serde_json::json;

use super::RunError;
use super::choices::Lora;
use super::output::failed;
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
    let inputs = [(names.query, query), (names.key, kv), (names.value, kv)];
    inputs.into_iter().for_each(|(part, rows)| add(part.module, rows, hidden, false));
    add(names.output.module, hidden, query, false);
    let mut block = |name: &dyn Fn(Part) -> String| {
        let inner = names.gate.into_iter().chain([names.up]);
        inner.for_each(|part| add(&name(part), mlp.width, hidden, true));
        add(&name(names.down), hidden, mlp.width, true);
    };
    match (mlp.experts, names.experts) {
        (Some(experts), Some((router, Stack::Apart))) => {
            (0..experts.choice.experts)
                .for_each(|expert| block(&|part: Part| part.module.replace("{}", &expert.to_string())));
            add(router, experts.choice.experts, hidden, true);
        }
        // Neither such experts nor their router are linear layers where they were trained.
        (Some(_), _) => {}
        (None, _) => block(&|part: Part| part.module.to_owned()),
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

/// Writes an adapter that changes nothing yet: the second matrix is zero, the first is drawn as torch draws it for this
/// seed. A DoRA's lengths are ones, until the model's own are known.
pub(super) fn begin(
    folder: &Path,
    lora: &Lora,
    spec: &ModelSpec,
    base: &Path,
    seed: u64,
) -> Result<(), RunError> {
    let all = modules(spec);
    let targets = targets(&all, &lora.targets)?;
    let is_target =
        |name: &str| targets.iter().any(|target| name == target || name.ends_with(&format!(".{target}")));
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let mut generator = Twister::new(seed);
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for module in all.iter().filter(|module| is_target(&module.name)) {
        let Module { name, outputs, inputs, .. } = module;
        let mut add = |what: &str, shape: Vec<usize>, values: Vec<f32>| {
            let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
            tensors.push((format!("base_model.model.{name}.{what}"), shape, bytes));
        };
        // Both layers are drawn when they are made, and the first once more.
        for _ in 0..lora.rank * (inputs + outputs) {
            generator.bits32();
        }
        let first = (0..lora.rank * inputs).map(|_| uniform(&mut generator, *inputs)).collect();
        add("lora_A.weight", vec![lora.rank, *inputs], first);
        add("lora_B.weight", vec![*outputs, lora.rank], vec![0.0; outputs * lora.rank]);
        if lora.dora {
            add("lora_magnitude_vector", vec![*outputs], vec![1.0; *outputs]);
        }
    }
    let tensors: Vec<Tensor<'_>> = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), Dtype::F32, shape.as_slice(), bytes.as_slice()))
        .collect();
    write_safetensors(&folder.join(WEIGHTS), &tensors, &[("format", "pt")])?;
    Ok(write_file(&folder.join(CONFIG), config(lora, &targets, base).as_bytes())?)
}

/// A number as `kaiming_uniform_` of torch draws it for a layer of so many inputs.
fn uniform(generator: &mut Twister, inputs: usize) -> f32 {
    let bound = (3f64.sqrt() * ((2.0 / 6.0f64).sqrt() / (inputs as f64).sqrt())) as f32;
    let unit = (generator.bits32() & 0x00ff_ffff) as f32 / 16_777_216.0;
    unit * (bound + bound) - bound
}

fn config(lora: &Lora, targets: &[String], base: &Path) -> String {
    let config = json!({
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
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    });
    format!("{config:#}\n")
}
