//! The work itself: matrix by matrix, then the checkpoint from its parts.

use std::fs;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bantam_model::checkpoint::Dtype;
use bantam_model::source::Source;
use half::{bf16, f16};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::assembly;
use crate::blueprint::{Blueprint, Unit};
use crate::error::{QuantizeError, at, refused};
use crate::layerwise::{Hand, Layerwise, MethodError, Scales};
use crate::matrix::{Dense, Quantized};
use crate::nearest;
use crate::parts::{self, Loss, Part};
use crate::share::share;
use crate::work::{Begin, STATE_ASIDE, Work};
use crate::writers::{self, Piece};

/// How the work is done; none of it changes a byte of the result but the size of shards.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Threads that compute.
    pub threads: usize,
    /// The most bytes of a shard, if it can be cut so.
    pub shard_bytes: u64,
    /// What is done with earlier work.
    pub begin: Begin,
}

/// Bytes of a shard as transformers saves them.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// The native file of a model that has no other weights.
const NATIVE: &str = "native.safetensors";

/// What is going on.
#[derive(Debug, Clone, Copy)]
pub enum Event<'e> {
    /// A matrix is done, or was by an earlier run.
    Matrix {
        /// Its name.
        name: &'e str,
        /// Its relative squared error.
        loss: f64,
        /// Bytes that it takes now.
        bytes: u64,
        /// Weights that are done, and all.
        weights: [u64; 2],
        /// Whether an earlier run did it.
        again: bool,
    },
    /// The checkpoint is being put together: bytes that are written, and all.
    Writing {
        /// These.
        bytes: [u64; 2],
    },
}

/// Work under way.
#[derive(Debug)]
pub struct Run<'a> {
    /// What is done.
    pub blueprint: &'a Blueprint<'a>,
    /// How it is done, as a report tells it.
    pub(crate) method: Value,
    work: Work,
    manner: Manner,
    units: Vec<Unit>,
    /// By unit.
    done: Vec<Option<Part>>,
    weights_done: u64,
}

impl<'a> Run<'a> {
    /// Begins, or goes on. `method` tells apart what other settings would make of the same weights. `None`: an earlier
    /// start has finished it, but for the tidying up.
    pub fn open(
        blueprint: &'a Blueprint<'a>,
        output: &Path,
        method: &Value,
        manner: Manner,
    ) -> Result<Option<Run<'a>>, QuantizeError> {
        check_apart(blueprint.source, output)?;
        let settings = json!({
            "version": 2,
            "form": format!("{:?}", blueprint.form),
            "head": blueprint.head.map(|head| format!("{head:?}")),
            "method": method,
            "shard_bytes": manner.shard_bytes,
            "source": identity(blueprint)?,
        });
        let Some(work) = Work::open(output, &settings, manner.begin)? else { return Ok(None) };
        let bytes = blueprint.output_bytes();
        work.check_room(bytes + bytes.min(manner.shard_bytes))?;
        let units = blueprint.units();
        let done = units.iter().map(|_| None).collect();
        Ok(Some(Run { blueprint, method: method.clone(), work, manner, units, done, weights_done: 0 }))
    }

    /// Where the checkpoint grows.
    pub fn folder(&self) -> PathBuf {
        self.work.result()
    }

    /// A file for whoever measures.
    pub fn scratch(&self) -> PathBuf {
        self.work.parts().join("predictions")
    }

    /// What is done of it, by matrix.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Unit, &Part)> {
        self.units.iter().zip(&self.done).filter_map(|(unit, part)| Some((*unit, part.as_ref()?)))
    }

    fn part_path(&self, unit: Unit) -> PathBuf {
        self.work.parts().join(format!("{:05}-{:05}.safetensors", unit.module, unit.expert))
    }

    /// Quantizes every matrix to the nearest that its form has.
    pub fn nearest(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), QuantizeError> {
        (0..self.units.len()).try_for_each(|number| self.nearest_of(number, tell))?;
        self.blueprint.source.checkpoint.check_unchanged()?;
        Ok(())
    }

    fn nearest_of(&mut self, number: usize, tell: &mut dyn FnMut(Event)) -> Result<(), QuantizeError> {
        if self.recall(number, tell) {
            return Ok(());
        }
        let (unit, blueprint, threads) = (self.units[number], self.blueprint, self.manner.threads);
        let dense = blueprint.read(unit)?;
        let made = match blueprint.head.filter(|_| blueprint.is_head(unit)) {
            Some(head) => nearest::head(head, &dense, threads),
            None => nearest::quantize(blueprint.form, &dense, blueprint.dtype(unit), threads),
        };
        self.keep(number, &dense, (&made, &Scales::default()), Vec::new(), tell)
    }

    /// Quantizes them with a method that goes by layers.
    pub fn layerwise(
        &mut self,
        method: &mut dyn Layerwise,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(), QuantizeError> {
        let layers =
            self.blueprint.taken.iter().filter_map(|module| module.layer).max().map_or(0, |last| last + 1);
        let from = self.restore(method)?;
        for number in 0..self.units.len() {
            let layer = self.blueprint.taken[self.units[number].module].layer;
            if layer.is_some_and(|layer| layer < from) && !self.recall(number, tell) {
                return Err(refused(format!(
                    "{}: expected all matrices of {from} layers, found {} missing or damaged: begin \
                     anew with --restart",
                    self.work.parts().display(),
                    self.blueprint.name(self.units[number])
                )));
            }
        }
        for layer in from..layers {
            let listed = self.blueprint.listed(layer);
            let mut hand = Taking { run: self, tell, failed: None };
            let result = method.layer(layer, &listed, &mut hand);
            // What the writing said is nearer to the cause than what the method made of it.
            if let Some(error) = hand.failed.take() {
                return Err(error);
            }
            result?;
            if let Some(missing) = listed.iter().find(|listed| !self.is_done(&listed.name)) {
                return Err(MethodError(format!("{}: the method has forgotten it", missing.name)).into());
            }
            self.save(method, layer + 1)?;
        }
        for number in 0..self.units.len() {
            if self.blueprint.is_head(self.units[number]) {
                self.nearest_of(number, tell)?;
            }
        }
        self.blueprint.source.checkpoint.check_unchanged()?;
        Ok(())
    }

    fn is_done(&self, name: &str) -> bool {
        self.number(name).is_some_and(|number| self.done[number].is_some())
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.units.iter().position(|unit| self.blueprint.name(*unit) == name)
    }

    /// The state of a method: the number of layers that are done, then what it wrote itself.
    fn save(&self, method: &dyn Layerwise, layers: usize) -> Result<(), QuantizeError> {
        let path = self.work.state();
        let aside = path.with_file_name(STATE_ASIDE);
        let write = || {
            let mut out = BufWriter::with_capacity(1 << 20, fs::File::create(&aside)?);
            out.write_all(&(layers as u64).to_le_bytes())?;
            method.save(&mut out)?;
            out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
            fs::rename(&aside, &path)
        };
        write().map_err(at(&path))
    }

    /// Layers that are done.
    fn restore(&self, method: &mut dyn Layerwise) -> Result<usize, QuantizeError> {
        let path = self.work.state();
        let Ok(file) = fs::File::open(&path) else { return Ok(0) };
        let mut input = BufReader::with_capacity(1 << 20, file);
        let mut layers = [0; 8];
        std::io::Read::read_exact(&mut input, &mut layers).map_err(at(&path))?;
        let layers = u64::from_le_bytes(layers) as usize;
        method.restore(layers, &mut input).map_err(at(&path))?;
        Ok(layers)
    }

    /// Takes a matrix that an earlier run has made.
    fn recall(&mut self, number: usize, tell: &mut dyn FnMut(Event)) -> bool {
        let Some(part) = parts::read(&self.part_path(self.units[number])) else { return false };
        self.count(number, part, true, tell);
        true
    }

    fn keep(
        &mut self,
        number: usize,
        dense: &Dense,
        (made, scales): (&Quantized, &Scales),
        stages: Vec<(String, f64)>,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(), QuantizeError> {
        let (unit, blueprint) = (self.units[number], self.blueprint);
        let (error, square) = squared_error(dense, made, scales, self.manner.threads);
        let name = &blueprint.taken[unit.module].name;
        let pieces = match blueprint.is_head(unit) {
            true => writers::head(name, made),
            false => writers::pieces(&blueprint.form, name, made, blueprint.dtype(unit)),
        };
        let part = parts::write(&self.part_path(unit), &pieces, Loss { error, square, stages })?;
        self.count(number, part, false, tell);
        Ok(())
    }

    fn count(&mut self, number: usize, part: Part, again: bool, tell: &mut dyn FnMut(Event)) {
        let unit = self.units[number];
        let shape = self.blueprint.shape(unit);
        self.weights_done += (shape.rows * shape.columns) as u64;
        tell(Event::Matrix {
            name: &self.blueprint.name(unit),
            loss: part.loss.relative(),
            bytes: part.tensors.iter().map(|tensor| tensor.bytes() as u64).sum(),
            weights: [self.weights_done, self.blueprint.weights() as u64],
            again,
        });
        self.done[number] = Some(part);
    }

    /// Puts the checkpoint together.
    pub fn assemble(&self, damp: f64, tell: &mut dyn FnMut(Event)) -> Result<(), QuantizeError> {
        let changed = self.changed()?;
        assembly::write(self, &changed, self.manner.shard_bytes, tell)?;
        assembly::write_small_files(self, damp)
    }

    fn changed_path(&self, tensor: &str) -> PathBuf {
        self.work.parts().join(format!("changed-{:016x}.safetensors", xxh3_64(tensor.as_bytes())))
    }

    /// Tensors that a method has changed.
    fn changed(&self) -> Result<Vec<Part>, QuantizeError> {
        let folder = self.work.parts();
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let path = entry.map_err(at(&folder))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("changed-") {
                found.push(parts::read(&path).ok_or_else(|| {
                    refused(format!(
                        "{}: expected a sound part, found a damaged one: begin anew with --restart",
                        path.display()
                    ))
                })?);
            }
        }
        Ok(found)
    }

    /// Brings what is assembled into the native form, which is published in its place: all files but the weights as
    /// they are, and what `write` puts at a path.
    pub fn publish_native<E: From<QuantizeError>>(
        self,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let native = self.work.native();
        assembly::copy_without_weights(&self.folder(), &native)?;
        write(&native.join(NATIVE))?;
        Ok(self.work.publish_as(&native)?)
    }

    /// Gives the checkpoint its final name.
    pub fn publish(self) -> Result<(), QuantizeError> {
        self.work.publish()
    }
}

/// Takes what a method makes of a layer.
struct Taking<'t, 'a> {
    run: &'t mut Run<'a>,
    tell: &'t mut dyn FnMut(Event),
    failed: Option<QuantizeError>,
}

impl Taking<'_, '_> {
    fn note(&mut self, result: Result<(), QuantizeError>) -> Result<(), MethodError> {
        result.map_err(|error| {
            let words = error.to_string();
            self.failed = Some(error);
            MethodError(words)
        })
    }

    fn take(
        &mut self,
        name: &str,
        made: (&Quantized, &Scales),
        stages: Vec<(String, f64)>,
    ) -> Result<(), QuantizeError> {
        let number = self.run.number(name);
        let number =
            number.ok_or_else(|| refused(format!("{name}: expected a matrix of the list, found another")))?;
        let dense = self.run.blueprint.read(self.run.units[number])?;
        self.run.keep(number, &dense, made, stages, self.tell)
    }

    fn change(&mut self, name: &str, values: &[f32]) -> Result<(), QuantizeError> {
        let tensor = self.run.blueprint.source.checkpoint.tensor(name);
        let tensor = tensor.filter(|tensor| tensor.elements() == values.len());
        let tensor = tensor.ok_or_else(|| {
            refused(format!("{name}: expected a tensor of {} values, found none", values.len()))
        })?;
        let (dtype, bytes) = narrowed(tensor.dtype, values);
        let piece = Piece { name: name.to_owned(), dtype, shape: tensor.shape.to_vec(), bytes };
        parts::write(&self.run.changed_path(name), &[piece], Loss::default()).map(|_| ())
    }
}

impl Hand for Taking<'_, '_> {
    fn quantized(
        &mut self,
        name: &str,
        matrix: Quantized,
        scales: &Scales,
        stages: &[(&'static str, f64)],
    ) -> Result<(), MethodError> {
        let stages = stages.iter().map(|(stage, loss)| ((*stage).to_owned(), *loss)).collect();
        let taken = self.take(name, (&matrix, scales), stages);
        self.note(taken)
    }

    fn changed(&mut self, tensor: &str, values: &[f32]) -> Result<(), MethodError> {
        let changed = self.change(tensor, values);
        self.note(changed)
    }
}

/// Values in the type that a tensor has; wide ones become float32.
fn narrowed(dtype: Dtype, values: &[f32]) -> (Dtype, Vec<u8>) {
    let each = values.iter();
    match dtype {
        Dtype::Bf16 => (dtype, each.flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()),
        Dtype::F16 => (dtype, each.flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()),
        _ => (Dtype::F32, each.flat_map(|value| value.to_le_bytes()).collect()),
    }
}

/// Sums of squares: of the errors, and of the weights. Rows are added in their order, whoever sums each.
fn squared_error(dense: &Dense, made: &Quantized, scales: &Scales, threads: usize) -> (f64, f64) {
    let columns = dense.shape.columns;
    let rows = Mutex::new(vec![(0.0, 0.0); dense.shape.rows]);
    const TOGETHER: usize = 16;
    let parts = dense.values.chunks(columns * TOGETHER).enumerate();
    share(threads, parts, |(number, values)| {
        let mut out = vec![0.0; columns];
        let mut sums = [(0.0, 0.0); TOGETHER];
        for (at, (values, sums)) in values.chunks(columns).zip(&mut sums).enumerate() {
            made.row(number * TOGETHER + at, &mut out);
            scales.fold_back(number * TOGETHER + at, &mut out);
            for (value, made) in values.iter().zip(&out) {
                let error = f64::from(*value) - f64::from(*made);
                sums.0 += error * error;
                sums.1 += f64::from(*value) * f64::from(*value);
            }
        }
        let count = values.len() / columns;
        let first = number * TOGETHER;
        rows.lock().expect("no holder panics")[first..first + count].copy_from_slice(&sums[..count]);
    });
    let rows = rows.into_inner().expect("no holder panics");
    rows.iter().fold((0.0, 0.0), |sums, row| (sums.0 + row.0, sums.1 + row.1))
}

/// A few digits that tell a list of tokens from another one.
pub fn fingerprint(tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    format!("{:016x}", xxh3_64(&bytes))
}

/// What tells a model from another one: its files, their sizes and dates, and its configuration.
fn identity(blueprint: &Blueprint) -> Result<Value, QuantizeError> {
    let config = blueprint.source.files.config()?.unwrap_or_default();
    Ok(json!({ "config": format!("{:016x}", xxh3_64(&config)), "files": files_of(blueprint.source)? }))
}

/// A model's files with their sizes and dates.
pub(crate) fn files_of(source: &Source) -> Result<Value, QuantizeError> {
    let mut files = serde_json::Map::new();
    for file in source.checkpoint.files() {
        let metadata = fs::metadata(file).map_err(at(file))?;
        let date = metadata.modified().ok().and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
        let date = date.map(|date| date.as_nanos() as u64);
        let file = fs::canonicalize(file).map_err(at(file))?;
        files.insert(file.to_string_lossy().into_owned(), json!([metadata.len(), date]));
    }
    Ok(files.into())
}

/// Refuses to put a model in its own place.
pub(crate) fn check_apart(source: &Source, output: &Path) -> Result<(), QuantizeError> {
    let Ok(place) = fs::canonicalize(output) else { return Ok(()) };
    let home = |file: &Path| fs::canonicalize(file).ok().and_then(|file| Some(file.parent()?.to_owned()));
    match source.checkpoint.files().filter_map(home).any(|home| home.starts_with(&place)) {
        true => Err(refused(format!(
            "{}: expected another folder than the model's own: give a new one",
            output.display()
        ))),
        false => Ok(()),
    }
}
