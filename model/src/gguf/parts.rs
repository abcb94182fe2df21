//! The files of a model: one, or the numbered parts of a split one; and what their tensors are called in the house.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::container::HEAD_BYTES_MAX;
use super::settings::family;
use super::{Container, GgufError};
use crate::checkpoint::header::{Entry, Header, TENSORS_MAX};
use crate::checkpoint::index::SHARDS_MAX;
use crate::checkpoint::json::quote;
use crate::checkpoint::map::{Map, MapError};
use crate::checkpoint::{CheckpointError, Dtype};
use crate::families::{Family, Names, Stack};
use crate::formats::gguf::Kind;

/// A file of a model, open and mapped.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) map: Map,
    pub(crate) file: File,
    pub(crate) head: Container,
}

fn refused(path: &Path, source: GgufError) -> CheckpointError {
    CheckpointError::Gguf { file: path.into(), source }
}

/// Opens a file, and where it is the first part of a model, the others.
pub(crate) fn open(path: &Path) -> Result<Vec<Part>, CheckpointError> {
    let first = open_part(path)?;
    let count = first.head.size("split.count").map_err(|error| refused(path, error))?.unwrap_or(1);
    let mut parts = vec![first];
    let mut head_bytes = parts[0].head.head_bytes();
    for (number, path) in siblings(path, count)?.into_iter().enumerate() {
        let part = open_part(&path)?;
        let own = part.head.size("split.no").map_err(|error| refused(&path, error))?;
        if own != Some(number as u64 + 1) {
            let what = format!("expected split.no to be {}, as the file's name says", number + 1);
            return Err(refused(&path, GgufError::Meaning(what.into())));
        }
        head_bytes += part.head.head_bytes();
        if head_bytes > HEAD_BYTES_MAX {
            return Err(refused(
                &path,
                GgufError::TooLong { place: "the heads of all parts together".into() },
            ));
        }
        parts.push(part);
    }
    Ok(parts)
}

/// Paths of the parts after the first of so many.
fn siblings(path: &Path, count: u64) -> Result<Vec<PathBuf>, CheckpointError> {
    if count <= 1 {
        return Ok(Vec::new());
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(&format!("-00001-of-{count:05}.gguf"));
    match stem {
        Some(stem) if count <= SHARDS_MAX as u64 => Ok((2..=count)
            .map(|number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf")))
            .collect()),
        _ => {
            let what = format!(
                "expected the first of its {count} parts, a name that ends in -00001-of-{count:05}.gguf, and at most \
                 {SHARDS_MAX} parts"
            );
            Err(refused(path, GgufError::Meaning(what.into())))
        }
    }
}

/// The head is read, not mapped: names and sizes must not change under us. How long it is nobody says before it ends.
fn open_part(path: &Path) -> Result<Part, CheckpointError> {
    let (map, file) = Map::open(path)?;
    let file_len = map.bytes().len() as u64;
    let mut bytes = Vec::new();
    let mut wanted = 1 << 20;
    loop {
        let more = wanted - bytes.len() as u64;
        let read = (&file).take(more).read_to_end(&mut bytes);
        let read = read.map_err(|source| MapError::Io { path: path.into(), source })?;
        match Container::parse(&bytes, file_len) {
            Ok(head) => return Ok(Part { map, file, head }),
            Err(GgufError::Cut { .. }) if read as u64 == more && wanted < HEAD_BYTES_MAX => {
                wanted = (wanted * 4).min(HEAD_BYTES_MAX);
            }
            Err(error) => {
                let stand_in = crate::checkpoint::stand_in(path, &bytes[..bytes.len().min(32)]);
                return Err(stand_in.unwrap_or_else(|| refused(path, error)));
            }
        }
    }
}

/// What a tensor of the file is called in the house.
enum Called {
    Whole(String),
    /// One for every expert, whose number stands for `{}`.
    Experts(String),
}

/// Names within a layer that mean the same: the file's, and ours.
fn modules(stored: &Names, ours: &Names) -> Vec<[&'static str; 2]> {
    let mut pairs = vec![[stored.attention_norm, ours.attention_norm], [stored.mlp_norm, ours.mlp_norm]];
    for norms in [(stored.post_norms, ours.post_norms), (stored.head_norms, ours.head_norms)] {
        if let (Some(stored), Some(ours)) = norms {
            pairs.extend([[stored[0], ours[0]], [stored[1], ours[1]]]);
        }
    }
    let linears = [
        (stored.query, ours.query),
        (stored.key, ours.key),
        (stored.value, ours.value),
        (stored.output, ours.output),
    ];
    pairs.extend(linears.map(|(stored, ours)| [stored.module, ours.module]));
    pairs.extend(stored.experts.zip(ours.experts).map(|(stored, ours)| [stored.0, ours.0]));
    pairs
}

/// The name of a tensor in the house; none where the family does not know it.
fn called(family: &Family, name: &str) -> Option<Called> {
    let (stored, ours) = (&family.gguf.stored, family.gguf.names.as_ref().unwrap_or(&family.names));
    let (before, after) = stored.layer.split_once("{}")?;
    let (module, suffix) = name.rsplit_once('.')?;
    let Some((number, rest)) = name.strip_prefix(before).and_then(|rest| rest.split_once(after)) else {
        let outside = [
            [stored.embedding, ours.embedding],
            [stored.head, ours.head],
            [stored.final_norm, ours.final_norm],
        ];
        let found = outside.into_iter().find(|[stored, _]| *stored == module)?[1];
        return Some(Called::Whole(format!("{found}.{suffix}")));
    };
    number.parse::<u32>().ok()?;
    let prefix = ours.layer.replace("{}", number);
    if let (Some(sinks), Some(ours)) = (stored.sinks, ours.sinks)
        && rest == sinks
    {
        return Some(Called::Whole(format!("{prefix}{ours}")));
    }
    let (module, suffix) = rest.rsplit_once('.')?;
    if let Some([_, ours]) = modules(stored, ours).into_iter().find(|[stored, _]| *stored == module) {
        return Some(Called::Whole(format!("{prefix}{ours}.{suffix}")));
    }
    let mlp =
        [(stored.gate, ours.gate), (Some(stored.up), Some(ours.up)), (Some(stored.down), Some(ours.down))];
    let mlp = mlp.into_iter().filter_map(|(stored, ours)| stored.zip(ours));
    let (_, part) = mlp.into_iter().find(|(stored, _)| stored.module == module)?;
    let name = format!("{prefix}{}", part.module);
    Some(match (ours.experts, suffix) {
        (None, _) => Called::Whole(format!("{name}.{suffix}")),
        (Some((_, Stack::Apart)), _) => Called::Experts(format!("{name}.{suffix}")),
        (Some(_), "weight") => Called::Whole(name),
        (Some(_), _) => Called::Whole(format!("{name}_{suffix}")),
    })
}

/// The headers of all parts, their tensors under the names of the house. Those that the family does not know keep
/// theirs; those that belong to the configuration are left out.
pub(crate) fn named(parts: &[Part]) -> Result<Vec<Header>, GgufError> {
    let family = family(&parts[0].head)?;
    let mut seen = HashSet::new();
    let mut headers = Vec::new();
    for part in parts {
        let mut tensors = Vec::new();
        for tensor in part.head.tensors() {
            if FACTORS.contains(&tensor.name) {
                continue;
            }
            let mut shape = Vec::new();
            for &size in tensor.dims {
                shape.push(usize::try_from(size).map_err(|_| GgufError::Overflow {
                    tensor: quote(tensor.name),
                    found: tensor.dims.to_vec(),
                })?);
            }
            if let (Some(kind), Some(columns)) = (Kind::of(tensor.dtype), shape.last_mut()) {
                *columns = *columns / kind.values * kind.bytes;
            }
            let whole = Tensor {
                name: String::new(),
                dtype: tensor.dtype,
                shape,
                start: tensor.start,
                end: tensor.end,
            };
            match called(family, tensor.name) {
                Some(Called::Experts(name)) if tensor.dims.len() == 3 => whole.apart(&name, &mut tensors),
                Some(Called::Whole(name) | Called::Experts(name)) => tensors.push(Tensor { name, ..whole }),
                None => tensors.push(Tensor { name: tensor.name.to_owned(), ..whole }),
            }
            if seen.len() + tensors.len() > TENSORS_MAX {
                let (what, limit) = ("tensors, experts counted", TENSORS_MAX as u64);
                return Err(GgufError::TooMany { what, limit, found: limit + 1 });
            }
        }
        if let Some(twice) = tensors.iter().find(|tensor| !seen.insert(tensor.name.clone())) {
            return Err(GgufError::Twice { what: "tensor", name: quote(&twice.name) });
        }
        let entries = tensors.iter().map(|tensor| Entry {
            name: &tensor.name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
            start: tensor.start,
            end: tensor.end,
        });
        headers.push(Header::from_entries(part.head.head_bytes(), entries));
    }
    Ok(headers)
}

/// A tensor on its way into a header.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    end: u64,
}

impl Tensor {
    /// Its slices along the slowest dimension.
    fn apart(self, name: &str, tensors: &mut Vec<Tensor>) {
        let experts = self.shape[0];
        let bytes = (self.end - self.start) / experts.max(1) as u64;
        // One more than may be is enough to be refused.
        for expert in 0..experts.min(TENSORS_MAX + 1) {
            let start = self.start + expert as u64 * bytes;
            let name = name.replace("{}", &expert.to_string());
            tensors.push(Tensor { name, shape: self.shape[1..].to_vec(), start, end: start + bytes, ..self });
        }
    }
}

/// Divisors of rotary frequencies that files hold as tensors, since they come from code and not from settings.
#[derive(Debug, Default)]
pub(super) struct RopeFactors {
    /// For all positions.
    pub(super) all: Option<Vec<f32>>,
    /// For sequences up to the first context, and for longer ones.
    pub(super) short: Option<Vec<f32>>,
    pub(super) long: Option<Vec<f32>>,
}

const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// No head has more pairs of channels.
const PAIRS_MAX: u64 = 1 << 12;

impl RopeFactors {
    pub(super) fn read(parts: &[Part]) -> Result<Self, CheckpointError> {
        let read = |name: &str| {
            let found = |part: &'_ Part| part.head.tensors().any(|tensor| tensor.name == name);
            match parts.iter().find(|part| found(part)) {
                None => Ok(None),
                Some(part) => factors(part, name).map(Some),
            }
        };
        let [all, short, long] = FACTORS;
        Ok(RopeFactors { all: read(all)?, short: read(short)?, long: read(long)? })
    }
}

fn factors(part: &Part, name: &str) -> Result<Vec<f32>, CheckpointError> {
    use std::io::{Seek, SeekFrom};
    let tensor = part.head.tensors().find(|tensor| tensor.name == name).expect("the caller has found it");
    let (dtype, dims) = (tensor.dtype, tensor.dims);
    if dtype != Dtype::F32 || dims.len() != 1 || dims[0] > PAIRS_MAX {
        let what = format!(
            "tensor {name}: expected F32 and one dimension of at most {PAIRS_MAX}, found {} and {dims:?}",
            dtype.name()
        );
        return Err(refused(part.map.path(), GgufError::Meaning(what.into())));
    }
    let mut bytes = vec![0; dims[0] as usize * 4];
    let mut file = &part.file;
    let read = file.seek(SeekFrom::Start(tensor.start)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(|source| MapError::Io { path: part.map.path().into(), source })?;
    let mut values = vec![0.0; dims[0] as usize];
    dtype.widen(&bytes, &mut values);
    Ok(values)
}
