//! The header of a native file: made from a plan and the files that its weights come from.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::{VERSION, hex, sum_of};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::header::{self, Header, PREFIX_BYTES};
use crate::checkpoint::writer::json;
use crate::plan::{Fill, Plan};
use crate::source::Source;

/// `format` in the metadata.
pub(crate) const FORMAT: &str = "bantam";
/// Of a file that stands alone: the header of the tensors that it was made of, and their bytes.
pub(crate) const OUTLINE: &str = "outline";
pub(crate) const OUTLINE_BYTES: &str = "outline_bytes";
/// The data begins at a multiple of this, the largest page of any system that we know: it can be mapped alone.
const PAGE_BYTES: usize = 64 << 10;
/// Hexadecimal digits of a checksum.
const SUM_DIGITS: usize = 32;

/// What weights are made from, as the metadata has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origins {
    /// The model's folder, without links.
    pub(super) model: String,
    /// Checksum of config.json.
    pub(super) config: String,
    /// The weights, in the order of the shards.
    pub(super) files: Vec<Origin>,
}

/// One file of weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) modified_ns: i64,
    /// Checksum of its header.
    pub(super) header: String,
}

impl Origins {
    /// `None` where nothing would tell that a file has changed, or a path is no text.
    pub(super) fn of(source: &Source) -> Option<Origins> {
        let parts = source.checkpoint.parts()?;
        let path = |path: &std::path::Path| Some(fs::canonicalize(path).ok()?.to_str()?.to_owned());
        let origin = |(header, map, _): &(&Header, &crate::checkpoint::map::Map, &fs::File)| {
            Some(Origin {
                path: path(map.path())?,
                bytes: map.bytes().len() as u64,
                modified_ns: map.modified_ns()?,
                header: sum_of(header.text().as_bytes()),
            })
        };
        let files = parts.iter().map(origin).collect::<Option<_>>()?;
        let config = sum_of(&source.files.config().ok()??);
        Some(Origins { model: path(source.folder())?, config, files })
    }
}

/// A tensor of a native file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    /// Its bytes in the weights region, with the padding behind them.
    pub(super) range: Range<usize>,
    /// Layout and shape.
    what: String,
}

/// All of a header but the checksums and the date.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) origins: Origins,
    /// Tells this from every other form: a checksum of origins, plan and version.
    pub(super) key: String,
    /// Whose versions of the program use it.
    program: &'static str,
    pub(super) tensors: Vec<Part>,
    /// Places of the region whose words are indices below a number.
    pub(super) orders: Vec<(Range<usize>, usize)>,
    /// Bytes of the data.
    pub(super) bytes: usize,
    /// Where the file stands alone: the header of what it was made of, and the bytes of that.
    pub(super) outline: Option<(String, u64)>,
}

/// A sum of what is written to it.
struct Sum(Xxh3);

impl Write for Sum {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

impl Form {
    pub(super) fn new(origins: Origins, plan: &Plan) -> Form {
        Form::with(origins, plan, None, env!("CARGO_PKG_VERSION"))
    }

    /// Of a file that stands alone: it depends on no place, and on no program but by what its bytes mean.
    pub(super) fn alone(checkpoint: &Checkpoint, plan: &Plan) -> Form {
        let origins = Origins { model: String::new(), config: String::new(), files: Vec::new() };
        Form::with(origins, plan, Some(outline(checkpoint)), "any")
    }

    fn with(origins: Origins, plan: &Plan, outline: Option<(String, u64)>, program: &'static str) -> Form {
        let mut sum = Sum(Xxh3::new());
        let mut add = |text: std::fmt::Arguments| sum.write_fmt(text).expect("a sum takes anything");
        add(format_args!("{VERSION} {program} {}\n", plan.weight_bytes));
        add(format_args!("{origins:?}\n"));
        // All that a fill says, whatever it will say one day: where from, where to, how.
        plan.fills.iter().for_each(|fill| add(format_args!("{} {fill:?}\n", what(fill))));
        let key = hex(sum.0.digest128());
        let (tensors, orders) = (parts(plan), orders(plan));
        Form { origins, key, tensors, orders, bytes: plan.weight_bytes, program, outline }
    }

    /// The header's text, padded so that the data begins at a page.
    pub(super) fn header(&self, made: u64, sums: &[u128]) -> String {
        let origins = serde_json::to_string(&self.origins).expect("text and numbers");
        let mut text = String::from("{\"__metadata__\":{");
        for (key, value) in [
            ("format", FORMAT),
            ("version", &VERSION.to_string()),
            ("program", self.program),
            ("key", &self.key),
            ("made", &format!("{made:020}")),
            ("origins", &origins),
        ] {
            text += &format!("{}:{},", json(key), json(value));
        }
        if let Some((outline, bytes)) = &self.outline {
            for (key, value) in [(OUTLINE, outline.as_str()), (OUTLINE_BYTES, &bytes.to_string())] {
                text += &format!("{}:{},", json(key), json(value));
            }
        }
        let notes = self.tensors.iter().zip(sums);
        let notes =
            notes.map(|(part, sum)| format!("{}:{}", json(&part.name), json(&note(&part.what, *sum))));
        text += &notes.collect::<Vec<_>>().join(",");
        text.push('}');
        for Part { name, range: Range { start, end }, .. } in &self.tensors {
            let bytes = end - start;
            text += &format!(
                ",{}:{{\"dtype\":\"U8\",\"shape\":[{bytes}],\"data_offsets\":[{start},{end}]}}",
                json(name)
            );
        }
        text.push('}');
        let length =
            (PREFIX_BYTES as usize + text.len()).next_multiple_of(PAGE_BYTES) - PREFIX_BYTES as usize;
        text += &" ".repeat(length - text.len());
        text
    }

    /// The header with its length, as our own reader takes it.
    pub(super) fn prefix(&self, made: u64, sums: &[u128]) -> io::Result<Vec<u8>> {
        let text = self.header(made, sums);
        let bytes = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        match header::parse(&bytes, (bytes.len() + self.bytes) as u64) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// The header of all tensors, one behind the other, and their bytes. Each begins at a multiple of its own numbers'
/// size, without gaps: where odd sizes are in the way of that, those of wide numbers come first.
fn outline(checkpoint: &Checkpoint) -> (String, u64) {
    let mut start = 0;
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    let mut before = 0;
    let is_aligned = tensors.iter().all(|tensor| {
        let at = before;
        before += tensor.data.len();
        at.is_multiple_of(tensor.dtype.bytes())
    });
    // Not always: folders that could be opened before would be others.
    if !is_aligned {
        tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bytes()));
    }
    let tensors = tensors.into_iter().map(|tensor| {
        let end = start + tensor.data.len() as u64;
        let (name, dtype, shape) = (json(tensor.name), tensor.dtype.name(), tensor.shape);
        let entry =
            format!("{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}");
        start = end;
        entry
    });
    let text = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    (text, start)
}

fn note(what: &str, sum: u128) -> String {
    format!("{what} {}", hex(sum))
}

/// Layout and shape of what a fill becomes.
fn what(fill: &Fill) -> String {
    match fill {
        Fill::Matrix { matrix, .. } => {
            format!("{} {}x{}", matrix.layout.name(), matrix.shape.rows, matrix.width())
        }
        Fill::Vector { .. } | Fill::Values { .. } | Fill::Low(_) => format!("f32 {}", fill.slot().bytes / 4),
    }
}

/// Every fill as a tensor that reaches to the next, and what matrices have for their columns as tensors of their own.
fn parts(plan: &Plan) -> Vec<Part> {
    let mut slots = Vec::with_capacity(plan.fills.len());
    for fill in &plan.fills {
        let name = match fill {
            Fill::Matrix { origin, cut, matrix, .. } => {
                let name = format!("{}{cut}", origin.tensors().first().map_or("", String::as_str));
                let of_columns = [(matrix.order, "order", "u32"), (matrix.factors, "factors", "f32")];
                for (slot, what, dtype) in of_columns {
                    let Some(slot) = slot else { continue };
                    let name = format!("{name} ({what} of columns)");
                    slots.push((slot.offset, name, format!("{dtype} {}", slot.bytes / 4)));
                }
                name
            }
            Fill::Vector { tensor, cut, .. } => format!("{tensor}{cut}"),
            Fill::Values { .. } | Fill::Low(_) => "values".to_owned(),
        };
        slots.push((fill.slot().offset, name, what(fill)));
    }
    slots.sort();
    let ends: Vec<usize> = slots.iter().skip(1).map(|slot| slot.0).chain([plan.weight_bytes]).collect();
    let mut names = HashSet::new();
    let part = |((start, name, what), end): ((usize, String, String), usize)| {
        // Experts may share a tensor, of which each has a part that no cut tells.
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let name = [name.clone()].into_iter().chain(numbered).find(|name| !names.contains(name));
        let name = name.expect("numbers do not end");
        names.insert(name.clone());
        Part { name, range: start..end, what }
    };
    slots.into_iter().zip(ends).map(part).collect()
}

/// Where orders of columns are, with how many columns there are.
fn orders(plan: &Plan) -> Vec<(Range<usize>, usize)> {
    let order = |fill: &Fill| match fill {
        Fill::Matrix { matrix, .. } => Some((matrix.order?.range(), matrix.shape.columns)),
        _ => None,
    };
    plan.fills.iter().filter_map(order).collect()
}

/// Date and checksums of a native file's header, in the order of its data; `None` where it has none.
pub(super) fn read_written(header: &Header) -> Option<(u64, Vec<u128>)> {
    let metadata: std::collections::HashMap<&str, &str> = header.metadata().collect();
    let made = metadata.get("made")?.parse().ok()?;
    let sum = |name: &str| sum_in(metadata.get(name)?);
    let sums = header.entries().map(|entry| sum(entry.name)).collect::<Option<_>>()?;
    Some((made, sums))
}

/// The checksum that a tensor's note ends with.
pub(super) fn sum_in(note: &str) -> Option<u128> {
    let (_, digits) = note.rsplit_once(' ')?;
    // The parser would let a sign pass.
    let is_sum = digits.len() == SUM_DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_sum.then(|| u128::from_str_radix(digits, 16).ok()).flatten()
}
