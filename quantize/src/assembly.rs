//! The checkpoint from its parts: shards, their index, and the small files beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use bantam_model::checkpoint::writer::{self, Outline as Written};
use bantam_model::checkpoint::{Checkpoint, Dtype};
use bantam_model::source::Source;
use serde_json::{Value, json};

use crate::error::{QuantizeError, at, refused};
use crate::parts::{self, Outline, Part};
use crate::report::Report;
use crate::run::{Event, Run};
use crate::writers;

/// A tensor of the checkpoint and where its bytes are.
#[derive(Debug)]
pub(crate) struct Tensor<'p> {
    /// As it stands there.
    pub(crate) outline: Outline,
    from: From<'p>,
}

#[derive(Debug)]
enum From<'p> {
    /// The model, where it is as it was.
    Source,
    /// Parts, one after another.
    Parts(Vec<&'p Part>),
}

/// Every tensor, in the order of names with numbers in theirs.
pub(crate) fn tensors<'p>(run: &'p Run, changed: &'p [Part]) -> Result<Vec<Tensor<'p>>, QuantizeError> {
    let blueprint = run.blueprint;
    let mut all: BTreeMap<Vec<Name>, Tensor<'p>> = BTreeMap::new();
    let replaced = blueprint.replaced();
    for tensor in blueprint.source.checkpoint.tensors().filter(|tensor| !replaced.contains(tensor.name)) {
        let (name, shape) = (tensor.name.to_owned(), tensor.shape.to_vec());
        let outline = Outline { name, dtype: tensor.dtype, shape };
        all.insert(natural(tensor.name), Tensor { outline, from: From::Source });
    }
    for part in changed {
        let outline = part.tensors[0].clone();
        all.insert(natural(&outline.name), Tensor { outline, from: From::Parts(vec![part]) });
    }
    for (unit, part) in run.parts() {
        let (experts, is_head) = (blueprint.taken[unit.module].experts, blueprint.is_head(unit));
        for piece in &part.tensors {
            let mut outline = piece.clone();
            outline.shape.splice(0..0, experts);
            match all.get_mut(&natural(&piece.name)) {
                Some(Tensor { outline: first, from: From::Parts(parts) }) if unit.expert > 0 => {
                    if is_head {
                        first.shape[0] += outline.shape[0];
                    } else if *first != outline {
                        return Err(refused(format!(
                            "{}: expected the same shape for all experts, found {:?} and {:?}",
                            piece.name, first.shape, outline.shape
                        )));
                    }
                    parts.push(part);
                }
                _ => {
                    all.insert(natural(&piece.name), Tensor { outline, from: From::Parts(vec![part]) });
                }
            }
        }
    }
    Ok(all.into_values().collect())
}

/// A stretch of a name: digits count as their number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Number(u64, String),
    Text(String),
}

/// A name cut so that 2 comes before 10.
fn natural(name: &str) -> Vec<Name> {
    let part = |part: &str| match part.parse() {
        Ok(number) => Name::Number(number, part.to_owned()),
        Err(_) => Name::Text(part.to_owned()),
    };
    name.split('.').map(part).collect()
}

/// Writes the shards and their index. Those that are there already are whole.
pub(crate) fn write(
    run: &Run,
    changed: &[Part],
    shard_bytes: u64,
    tell: &mut dyn FnMut(Event),
) -> Result<(), QuantizeError> {
    let tensors = tensors(run, changed)?;
    let shards = shards(&tensors, shard_bytes);
    let folder = run.folder();
    let total: u64 = tensors.iter().map(|tensor| tensor.outline.bytes() as u64).sum();
    let mut map = serde_json::Map::new();
    let mut bytes = 0;
    for (number, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let path = folder.join(&name);
        if Checkpoint::open(&path).is_err() {
            write_shard(&run.blueprint.source.checkpoint, shard, &path, &mut |more| {
                tell(Event::Writing { bytes: [bytes + more, total] });
            })?;
        }
        give_back(shard, shards.get(number + 1).copied().unwrap_or_default())?;
        bytes += shard.iter().map(|tensor| tensor.outline.bytes() as u64).sum::<u64>();
        tell(Event::Writing { bytes: [bytes, total] });
        map.extend(shard.iter().map(|tensor| (tensor.outline.name.clone(), json!(name))));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// Empties the parts of a shard that is written, but for those that the next one needs too. Changed tensors are small
/// and stay.
fn give_back(shard: &[Tensor], next: &[Tensor]) -> Result<(), QuantizeError> {
    let paths = |tensors: &[Tensor]| -> BTreeSet<PathBuf> {
        let of = |tensor: &Tensor| match &tensor.from {
            From::Source => Vec::new(),
            From::Parts(parts) => parts.iter().map(|part| part.path.clone()).collect(),
        };
        tensors.iter().flat_map(of).collect()
    };
    let mut kept = paths(next);
    for tensor in shard {
        let From::Parts(parts) = &tensor.from else { continue };
        for part in parts {
            let is_changed =
                part.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("changed-"));
            if !is_changed && kept.insert(part.path.clone()) {
                parts::empty(part)?;
            }
        }
    }
    Ok(())
}

/// Tensors in stretches of at most so many bytes, or of one.
fn shards<'t, 'p>(tensors: &'t [Tensor<'p>], shard_bytes: u64) -> Vec<&'t [Tensor<'p>]> {
    let (mut shards, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (at, tensor) in tensors.iter().enumerate() {
        let more = tensor.outline.bytes() as u64;
        if at > first && bytes + more > shard_bytes {
            shards.push(&tensors[first..at]);
            (first, bytes) = (at, 0);
        }
        bytes += more;
    }
    shards.push(&tensors[first..]);
    shards
}

fn write_shard(
    source: &Checkpoint,
    shard: &[Tensor],
    path: &Path,
    tell: &mut dyn FnMut(u64),
) -> Result<(), QuantizeError> {
    let outlines: Vec<Written<'_>> = shard
        .iter()
        .map(|Tensor { outline: o, .. }| (o.name.as_str(), o.dtype, o.shape.as_slice()))
        .collect();
    let mut written = 0;
    writer::write_streamed(path, &outlines, &[("format", "pt")], |index, out| {
        let Tensor { outline, from } = &shard[index];
        let mut to = |bytes: &[u8]| {
            written += bytes.len() as u64;
            tell(written);
            out.write_all(bytes)
        };
        match from {
            From::Source => {
                let tensor = source.tensor(&outline.name).expect("it was listed from this checkpoint");
                parts::copy(&tensor, &mut to)
            }
            From::Parts(of) => of.iter().try_for_each(|part| {
                let part = Checkpoint::open(&part.path).map_err(std::io::Error::other)?;
                let tensor = part.tensor(&outline.name).ok_or(std::io::ErrorKind::NotFound)?;
                parts::copy(&tensor, &mut to)
            }),
        }
    })?;
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), QuantizeError> {
    Ok(writer::write_file(path, format!("{value:#}\n").as_bytes())?)
}

/// Files beside the weights that are copied as they are, where they are there.
const COPIED: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
];
/// Templates for other uses.
const TEMPLATES: &str = "additional_chat_templates";
/// More than any such file has.
const COPIED_BYTES_MAX: u64 = 64 << 20;

/// Writes the configuration, the report, and the files that are copied.
pub(crate) fn write_small_files(run: &Run, damp: f64) -> Result<(), QuantizeError> {
    let (blueprint, folder) = (run.blueprint, run.folder());
    copy_files(blueprint.source, &folder)?;
    let config = blueprint.source.files.config()?.unwrap_or_default();
    let mut config: Value = serde_json::from_slice(&config).unwrap_or_default();
    let dtype =
        blueprint.source.checkpoint.tensors().map(|tensor| tensor.dtype).find(|dtype| dtype.is_float());
    let dtype = dtype.unwrap_or(Dtype::Bf16);
    let settings = writers::settings(&blueprint.form, blueprint.head(), &blueprint.left_names(), dtype, damp);
    if blueprint.form.name() == "gptq" {
        write_json(&folder.join("quantize_config.json"), &settings)?;
    }
    let report = Report::new(run);
    if let Some(config) = config.as_object_mut() {
        config.insert("quantization_config".to_owned(), settings);
        config.insert("bantam_report".to_owned(), report.summary());
        if blueprint.is_untied() {
            config.insert("tie_word_embeddings".to_owned(), json!(false));
        }
    }
    write_json(&folder.join("config.json"), &config)?;
    report.write(&folder)
}

fn copy_files(source: &Source, folder: &Path) -> Result<(), QuantizeError> {
    let files = &source.files;
    // Files that the program carries are not in any folder.
    let known = [
        files.generation_config()?,
        files.tokenizer()?,
        files.tokenizer_config()?,
        files.special_tokens_map()?,
        files.chat_template()?,
    ];
    for (name, bytes) in COPIED.iter().zip(known) {
        if let Some(bytes) = bytes {
            writer::write_file(&folder.join(name), &bytes)?;
        }
    }
    let home = source.folder();
    for name in &COPIED[5..] {
        copy_file(&home.join(name), &folder.join(name))?;
    }
    let Ok(templates) = fs::read_dir(home.join(TEMPLATES)) else { return Ok(()) };
    let to = folder.join(TEMPLATES);
    fs::create_dir_all(&to).map_err(at(&to))?;
    for template in templates {
        let template = template.map_err(at(&to))?;
        if template.path().extension().is_some_and(|ending| ending == "jinja") {
            copy_file(&template.path(), &to.join(template.file_name()))?;
        }
    }
    Ok(())
}

/// Copies a regular file of usual size, if there is one.
fn copy_file(from: &Path, to: &Path) -> Result<(), QuantizeError> {
    match fs::symlink_metadata(from) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= COPIED_BYTES_MAX => {
            let bytes = fs::read(from).map_err(at(from))?;
            Ok(writer::write_file(to, &bytes)?)
        }
        _ => Ok(()),
    }
}

/// Copies a finished folder anew, but for its weights.
pub(crate) fn copy_without_weights(from: &Path, to: &Path) -> Result<(), QuantizeError> {
    if to.exists() {
        fs::remove_dir_all(to).map_err(at(to))?;
    }
    fs::create_dir(to).map_err(at(to))?;
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            copy_without_weights(&path, &to)?;
        } else if !name.ends_with(".safetensors") && !name.ends_with(".safetensors.index.json") {
            copy_file(&path, &to)?;
        }
    }
    Ok(())
}
