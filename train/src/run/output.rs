//! What a run leaves on the disk: the trained tensors with what belongs beside them, checkpoints to go on from, and
//! the log. Folders appear whole under their names, files too.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bantam_model::adapter::{CONFIG, WEIGHTS};
use bantam_model::checkpoint::writer::{Outline, left_of, write_file, write_streamed};
use bantam_model::checkpoint::{Checkpoint, Dtype, TensorView};
use bantam_model::source::Source;
use serde_json::{Map, Value, json};

use super::choices::{Choices, Lora, Method};
use super::state::State;
use super::{PISSA, RunError, START, absolute, shards};
use crate::optimizer::{Memory, MemoryMut, Optimizer};
use crate::step::{Training, rounded};

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "bantam_state.json";
const PREFIX: &str = "checkpoint-";
const LOG: &str = "trainer_log.jsonl";
const TRAINER_STATE: &str = "trainer_state.json";
/// More than the numbers of any run take.
const STATE_BYTES_MAX: u64 = 1 << 30;

/// The folder of a run.
#[derive(Debug)]
pub(super) struct Output {
    folder: PathBuf,
    /// Small files that belong beside the weights: the model's, or the adapter's configuration.
    beside: Vec<(&'static str, Vec<u8>)>,
    is_adapter: bool,
    /// Where tensors are that are not trained, and belong to what is written.
    frozen: Option<Arc<Checkpoint>>,
    /// What checkpoints keep of an adapter that began as parts of the model: where that is.
    first: Option<PathBuf>,
}

/// What is written as what.
struct Form {
    /// Of what is trained.
    dtype: Dtype,
    /// Whether a change has beside it, with the other sign, what it was when it began.
    is_whole: bool,
}

impl Output {
    pub(super) fn new(source: Source, choices: &Choices<'_>) -> Result<Output, RunError> {
        let (folder, method) = (&choices.output, &choices.method);
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        sweep(folder);
        let (files, mut beside) = (&source.files, Vec::new());
        let error = |error| RunError::Source(bantam_model::source::SourceError::Files(error).into());
        for (name, bytes) in [
            ("tokenizer.json", files.tokenizer().map_err(error)?),
            ("tokenizer_config.json", files.tokenizer_config().map_err(error)?),
            ("special_tokens_map.json", files.special_tokens_map().map_err(error)?),
            ("chat_template.jinja", files.chat_template().map_err(error)?),
        ] {
            beside.extend(bytes.map(|bytes| (name, bytes.into_owned())));
        }
        match &source.adapter {
            Some(adapter) => {
                let path = adapter.folder().join(CONFIG);
                beside.push((CONFIG, fs::read(&path).map_err(|error| failed(&path, error))?));
            }
            None => {
                beside.push(("config.json", files.require_config().map_err(error)?.into_owned()));
                let generation = files.generation_config().map_err(error)?;
                beside.extend(generation.map(|bytes| ("generation_config.json", bytes.into_owned())));
            }
        }
        if let Method::Lora(Lora { pissa: Some(pissa), .. }) = method {
            let way = pissa.powers.map_or("pissa".to_owned(), |powers| format!("pissa_niter_{powers}"));
            edit(&mut beside, |config| drop(config.insert("init_lora_weights".to_owned(), json!(way))));
        }
        // An adapter over rounded weights corrects their rounding too: whoever merges it looks for this.
        let is_rounded = choices.quantization.filter(|_| !source.spec.format.is_quantized());
        if let Some(settings) = is_rounded.and_then(|_| choices.four_bits()) {
            beside.push(("quantization_config.json", format!("{settings:#}\n").into_bytes()));
        }
        let is_adapter = source.adapter.is_some();
        let frozen = matches!(method, Method::Freeze(_)).then_some(source.checkpoint);
        let has_parts = matches!(method, Method::Lora(Lora { pissa: Some(_), .. }));
        let first = has_parts.then(|| folder.join(PISSA));
        Ok(Output { folder: folder.into(), beside, is_adapter, frozen, first })
    }

    /// Writes an adapter that began as parts of the model so that it fits the model as it is, as PEFT does it.
    pub(super) fn write_converted(&self, training: &Training, rslora: bool) -> Result<(), RunError> {
        let folder = self.folder.join("pissa_converted");
        fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
        let mut beside = self.beside.clone();
        edit(&mut beside, |config| {
            let number = |key: &str| config[key].as_f64().unwrap_or_default();
            let alpha = number("lora_alpha") * if rslora { 2f64.sqrt() } else { 2.0 };
            let rank = 2 * config["r"].as_u64().unwrap_or_default();
            config.insert("r".to_owned(), json!(rank));
            config.insert("lora_alpha".to_owned(), if rslora { json!(alpha) } else { json!(alpha as u64) });
            config.insert("init_lora_weights".to_owned(), json!(true));
        });
        self.write_tensors(&folder, &beside, training, &Form { dtype: Dtype::F32, is_whole: true })
    }

    /// Writes what is trained, so that others can load it.
    pub(super) fn write_model(
        &self,
        folder: &Path,
        training: &Training,
        dtype: Dtype,
    ) -> Result<(), RunError> {
        let dtype = if self.is_adapter { Dtype::F32 } else { dtype };
        self.write_tensors(folder, &self.beside, training, &Form { dtype, is_whole: false })
    }

    fn write_tensors(
        &self,
        folder: &Path,
        beside: &[(&'static str, Vec<u8>)],
        training: &Training,
        form: &Form,
    ) -> Result<(), RunError> {
        let dtype = form.dtype;
        for (name, bytes) in beside {
            match *name == "config.json" {
                true => write_file(&folder.join(name), &typed(bytes, dtype))?,
                false => write_file(&folder.join(name), bytes)?,
            }
        }
        let parameters = training.parameters();
        let held = |at: usize| if form.is_whole { training.change(at) } else { None };
        let shapes: Vec<Vec<usize>> = (0..parameters.len())
            .map(|at| held(at).map_or_else(|| parameters[at].shape.clone(), |(shape, _)| shape))
            .collect();
        let frozen = self.frozen.iter().flat_map(|checkpoint| checkpoint.tensors());
        let frozen: Vec<TensorView<'_>> =
            frozen.filter(|tensor| training.parameter(tensor.name).is_none()).collect();
        let trained = parameters.iter().zip(&shapes).map(|(known, shape)| (&*known.name, dtype, &shape[..]));
        let others = frozen.iter().map(|tensor| (tensor.name, tensor.dtype, tensor.shape));
        let outlines: Vec<Outline<'_>> = trained.chain(others).collect();
        let mut values = Vec::new();
        let fill = |at: usize, out: &mut dyn Write| {
            if let Some(tensor) = at.checked_sub(parameters.len()).map(|at| &frozen[at]) {
                return copy(tensor, out);
            }
            if let Some((_, values)) = held(at) {
                return put(&values, dtype, out);
            }
            values.resize(parameters[at].range().len(), 0.0);
            training.read(at, &mut values);
            put(&values, dtype, out)
        };
        match self.is_adapter {
            true => write_streamed(&folder.join(WEIGHTS), &outlines, &[("format", "pt")], fill)?,
            false => shards::write(folder, &outlines, shards::BYTES_MAX, fill)?,
        }
        Ok(())
    }

    /// The same in the run's own folder.
    pub(super) fn write_result(&self, training: &Training, dtype: Dtype) -> Result<(), RunError> {
        self.write_model(&self.folder, training, dtype)
    }

    /// A checkpoint, with all that a resumed run needs unless `only_model`.
    pub(super) fn checkpoint(
        &self,
        training: &Training,
        optimizer: &Optimizer,
        state: &State,
        only_model: bool,
    ) -> Result<PathBuf, RunError> {
        let place = self.place(state.step);
        let (partial, old) = (place.with_extension("partial"), place.with_extension("old"));
        let io = |path: &Path, result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, error)),
            _ => Ok(()),
        };
        io(&partial, fs::remove_dir_all(&partial))?;
        fs::create_dir(&partial).map_err(|error| failed(&partial, error))?;
        if let Err(error) = self.fill(&partial, training, optimizer, state, only_model) {
            // A full disk needs the room, and the error says it all.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        io(&old, fs::remove_dir_all(&old))?;
        io(&place, fs::rename(&place, &old))?;
        fs::rename(&partial, &place).map_err(|error| failed(&place, error))?;
        io(&old, fs::remove_dir_all(&old))?;
        sync(&self.folder)?;
        Ok(place)
    }

    fn fill(
        &self,
        partial: &Path,
        training: &Training,
        optimizer: &Optimizer,
        state: &State,
        only_model: bool,
    ) -> Result<(), RunError> {
        self.write_model(partial, training, Dtype::F32)?;
        write_file(&partial.join(TRAINER_STATE), state.for_trainer().as_bytes())?;
        if !only_model {
            write_memory(&partial.join(OPTIMIZER), &optimizer.memory())?;
            write_file(&partial.join(STATE), state.to_json().as_bytes())?;
            self.first.iter().try_for_each(|first| copied(first, &partial.join(PISSA)))?;
        }
        Ok(())
    }

    /// Where the checkpoint of a step stands.
    pub(super) fn place(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step}"))
    }

    /// Removes the oldest checkpoints above `limit`, but neither that of this step nor the best, which may make it two
    /// where one was asked for.
    pub(super) fn forget(&self, state: &State, limit: Option<usize>) -> Result<(), RunError> {
        let mut known = checkpoints(&self.folder);
        // The oldest by time: higher numbers may be of an earlier run.
        let written = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        known.sort_by_cached_key(|(_, path)| written(path));
        let more = limit.map_or(0, |limit| known.len().saturating_sub(limit.max(1)));
        let best = state.best.map(|best| best.step);
        let removable = known.iter().filter(|(step, _)| *step != state.step && Some(*step) != best);
        for (_, path) in removable.take(more) {
            fs::remove_dir_all(path).map_err(|error| failed(path, error))?;
        }
        Ok(())
    }

    /// Removes all checkpoints but the best, where there is one: of one that was asked for, it is the one.
    pub(super) fn keep_best(&self, state: &State) -> Result<(), RunError> {
        let Some(best) = state.best.filter(|best| self.place(best.step).is_dir()) else { return Ok(()) };
        for (_, path) in checkpoints(&self.folder).iter().filter(|(step, _)| *step != best.step) {
            fs::remove_dir_all(path).map_err(|error| failed(path, error))?;
        }
        Ok(())
    }

    /// Puts the numbers of a checkpoint in the place of those that are trained.
    pub(super) fn restore(&self, checkpoint: &Path, training: &mut Training) -> Result<(), RunError> {
        match self.is_adapter {
            true => read_parameters(checkpoint, training),
            false => read_from(checkpoint, &shards::first(checkpoint), training),
        }
    }

    /// One more line of the log, whole or not at all.
    pub(super) fn log(&self, line: &Value) -> Result<(), RunError> {
        let path = self.folder.join(LOG);
        let written = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
            let length = file.metadata()?.len();
            file.write_all(format!("{line}\n").as_bytes()).inspect_err(|_| {
                // Half a line would be the first thing that a reader stumbles over.
                let _ = file.set_len(length);
            })
        };
        written().map_err(|error| failed(&path, error))
    }

    /// Leaves in the log what was there up to a step.
    pub(super) fn keep_log(&self, step: u64) -> Result<(), RunError> {
        let path = self.folder.join(LOG);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| failed(&path, error))?,
        };
        let is_before = |line: &&str| {
            let line: Option<Value> = serde_json::from_str(line).ok();
            line.and_then(|line| line["current_steps"].as_u64())
                .is_some_and(|found| found <= step && step > 0)
        };
        let kept: String = text.lines().filter(is_before).map(|line| format!("{line}\n")).collect();
        Ok(write_file(&path, kept.as_bytes())?)
    }

    /// Something to look at.
    pub(super) fn picture(&self, name: &str, png: &[u8]) -> Result<(), RunError> {
        Ok(write_file(&self.folder.join(name), png)?)
    }

    /// How it went, once it is over: `part` is train or eval, and everything so far stands in one more file.
    pub(super) fn results(&self, part: &str, results: &Value, all: &Value) -> Result<(), RunError> {
        let name = format!("{part}_results.json");
        for (name, results) in [(name.as_str(), results), ("all_results.json", all)] {
            write_file(&self.folder.join(name), format!("{results:#}\n").as_bytes())?;
        }
        Ok(())
    }

    /// The whole run as the Trainer keeps it.
    pub(super) fn trainer_state(&self, state: &State) -> Result<(), RunError> {
        Ok(write_file(&self.folder.join(TRAINER_STATE), state.for_trainer().as_bytes())?)
    }
}

/// Takes away what a process left that was killed while it wrote. What cannot be removed is in nobody's way.
fn sweep(folder: &Path) {
    let is_left = |name: &str| {
        let is_half = name.starts_with(PREFIX) && (name.ends_with(".partial") || name.ends_with(".old"));
        is_half || left_of(name).is_some()
    };
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_str().is_some_and(is_left) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

/// Checkpoints of a folder, the oldest first.
pub(super) fn checkpoints(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok();
    let mut found: Vec<(u64, PathBuf)> =
        entries.map(|entry| entry.path()).filter_map(|path| Some((step(&path)?, path))).collect();
    found.sort();
    found
}

/// The furthest checkpoint of the run that began then, or that began last, of those that a run can go on from: higher
/// numbers may be of an earlier run, and times of files change when they are copied.
pub(super) fn latest(folder: &Path, began: Option<u64>) -> Option<PathBuf> {
    let whole = checkpoints(folder).into_iter().filter(|(_, path)| is_whole(path));
    // One that cannot be read comes last, to be refused by its name.
    let begun = |path: &Path| read_state(path).map_or(u64::MAX, |state| state.begun);
    let known = whole.map(|(step, path)| (begun(&path), step, path));
    let own = known.filter(|(begun, ..)| *begun == u64::MAX || began.is_none_or(|began| began == *begun));
    own.max().map(|(_, _, path)| path)
}

/// Whether a run can go on from a checkpoint.
pub(super) fn is_whole(checkpoint: &Path) -> bool {
    [OPTIMIZER, STATE].iter().all(|name| checkpoint.join(name).is_file())
}

/// Whether a folder holds trained tensors already.
pub(super) fn is_taken(folder: &Path) -> bool {
    [shards::first(folder), folder.join(WEIGHTS)].iter().any(|path| path.exists())
}

/// What a checkpoint remembers, put where it belongs.
pub(super) fn resume(checkpoint: &Path, step: u64, optimizer: &mut Optimizer) -> Result<(), RunError> {
    let refused = |found: String| RunError::Checkpoint { checkpoint: checkpoint.into(), found };
    let tensors =
        Checkpoint::open(&checkpoint.join(OPTIMIZER)).map_err(|error| damaged(checkpoint, &error))?;
    for memory in optimizer.resume(step) {
        let (name, count, dtype) = match &memory {
            MemoryMut::Floats(name, values) => (*name, values.len(), Dtype::F32),
            MemoryMut::Halves(name, values) => (*name, values.len(), Dtype::Bf16),
            MemoryMut::Codes(name, codes) => (*name, codes.len(), Dtype::U8),
        };
        if count == 0 {
            continue;
        }
        let tensor = tensors.tensor(name).filter(|tensor| tensor.dtype == dtype && tensor.shape == [count]);
        let tensor = tensor.ok_or_else(|| refused(format!("no {count} numbers called {name}")))?;
        load(&tensor, memory).map_err(|error| failed(checkpoint, error))?;
    }
    Ok(())
}

/// Gives a folder another name, instead of what had it.
pub(super) fn moved(folder: &Path, name: &str) -> Result<PathBuf, RunError> {
    let place = folder.with_file_name(name);
    match fs::remove_dir_all(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&place, error)),
        _ => {}
    }
    fs::rename(folder, &place).map_err(|error| failed(&place, error))?;
    Ok(place)
}

/// Where that stands which a run began with, as parts of the model: a checkpoint has it, in case that another run has
/// been there meanwhile, or the run goes on elsewhere.
pub(super) fn first_parts(checkpoint: &Path) -> PathBuf {
    let kept = checkpoint.join(PISSA);
    if kept.is_dir() { kept } else { checkpoint.with_file_name(PISSA) }
}

/// Puts that into a run's folder, unless it stands there.
pub(super) fn take_first_parts(first: &Path, output: &Path) -> Result<(), RunError> {
    if absolute(first) == absolute(&output.join(PISSA)) {
        return Ok(());
    }
    copied(first, &output.join(START))?;
    moved(&output.join(START), PISSA).map(drop)
}

/// Copies an adapter.
fn copied(from: &Path, to: &Path) -> Result<(), RunError> {
    fs::create_dir_all(to).map_err(|error| failed(to, error))?;
    for name in [CONFIG, WEIGHTS] {
        let path = to.join(name);
        let copied = fs::copy(from.join(name), &path).and_then(|_| fs::File::open(&path)?.sync_all());
        copied.map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// Files of a run's own were not downloaded: what is wrong with them is said without that advice.
pub(super) fn damaged(checkpoint: &Path, error: &dyn Error) -> RunError {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    RunError::Damaged { checkpoint: checkpoint.into(), found: cause.to_string() }
}

/// How far a checkpoint's run was, or what was found instead.
pub(super) fn read_state(checkpoint: &Path) -> Result<State, String> {
    let path = checkpoint.join(STATE);
    let length = fs::metadata(&path).map_err(|error| format!("{STATE}: {error}"))?.len();
    if length > STATE_BYTES_MAX {
        return Err(format!("{STATE} of {length} bytes"));
    }
    let text = fs::read_to_string(&path).map_err(|error| format!("{STATE}: {error}"))?;
    State::of_json(&text).ok_or_else(|| format!("{STATE} that says something else"))
}

/// Fills a part of what is remembered, some of it at a time.
fn load(tensor: &TensorView<'_>, memory: MemoryMut<'_>) -> io::Result<()> {
    const STEP: usize = 1 << 18;
    match memory {
        MemoryMut::Floats(_, values) => {
            let mut scratch = Vec::new();
            let mut parts = values.chunks_mut(STEP).enumerate();
            parts.try_for_each(|(at, part)| tensor.load_f32(at * STEP, part, &mut scratch))
        }
        MemoryMut::Halves(_, values) => values.chunks_mut(STEP).enumerate().try_for_each(|(at, part)| {
            let bytes = tensor.load(2 * at * STEP..2 * (at * STEP + part.len()))?;
            let pairs = bytes.as_chunks().0.iter();
            part.iter_mut().zip(pairs).for_each(|(value, pair)| *value = u16::from_le_bytes(*pair));
            Ok(())
        }),
        MemoryMut::Codes(_, codes) => codes.chunks_mut(STEP).enumerate().try_for_each(|(at, part)| {
            part.copy_from_slice(&tensor.load(at * STEP..at * STEP + part.len())?);
            Ok(())
        }),
    }
}

/// What an optimizer remembers.
fn write_memory(path: &Path, memory: &[Memory<'_>]) -> Result<(), RunError> {
    let known = memory.iter().map(|memory| match memory {
        Memory::Floats(name, values) => (*name, Dtype::F32, [values.len()]),
        Memory::Halves(name, values) => (*name, Dtype::Bf16, [values.len()]),
        Memory::Codes(name, codes) => (*name, Dtype::U8, [codes.len()]),
    });
    let known: Vec<(&str, Dtype, [usize; 1])> = known.collect();
    // Parts that nothing is kept in would only be names.
    let is_there = |at: &usize| known[*at].2 != [0];
    let places: Vec<usize> = (0..known.len()).filter(is_there).collect();
    let outline = |&at: &usize| (known[at].0, known[at].1, &known[at].2[..]);
    let outlines: Vec<Outline<'_>> = places.iter().map(outline).collect();
    Ok(write_streamed(path, &outlines, &[], |at, out| match &memory[places[at]] {
        Memory::Floats(_, values) => put(values, Dtype::F32, out),
        Memory::Halves(_, values) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes())),
        Memory::Codes(_, codes) => out.write_all(codes),
    })?)
}

/// Reads what is trained from a checkpoint's adapter, whatever its configuration says.
pub(super) fn read_parameters(checkpoint: &Path, training: &mut Training) -> Result<(), RunError> {
    read_from(checkpoint, &checkpoint.join(WEIGHTS), training)
}

fn read_from(checkpoint: &Path, weights: &Path, training: &mut Training) -> Result<(), RunError> {
    let refused = |found: String| RunError::Checkpoint { checkpoint: checkpoint.into(), found };
    let tensors = Checkpoint::open(weights).map_err(|error| damaged(checkpoint, &error))?;
    let names: Vec<(String, Vec<usize>)> =
        training.parameters().iter().map(|known| (known.name.clone(), known.shape.clone())).collect();
    for (at, (name, shape)) in names.iter().enumerate() {
        let tensor =
            tensors.tensor(name).filter(|tensor| tensor.dtype == Dtype::F32 && tensor.shape == shape);
        let tensor = tensor.ok_or_else(|| refused(format!("no tensor {name} of shape {shape:?} in F32")))?;
        let mut values = vec![0.0; tensor.elements()];
        tensor.load_f32(0, &mut values, &mut Vec::new()).map_err(|error| failed(checkpoint, error))?;
        training.write(at, &values);
    }
    training.settle();
    Ok(())
}

/// Changes an adapter's configuration.
fn edit(beside: &mut [(&'static str, Vec<u8>)], change: impl FnOnce(&mut Map<String, Value>)) {
    let Some((_, bytes)) = beside.iter_mut().find(|(name, _)| *name == CONFIG) else { return };
    let mut config: Map<String, Value> = serde_json::from_slice(bytes).expect("it was read before");
    change(&mut config);
    *bytes = format!("{:#}\n", Value::Object(config)).into_bytes();
}

/// A tensor as it is, piece by piece.
fn copy(tensor: &TensorView<'_>, out: &mut dyn Write) -> io::Result<()> {
    const PIECE: usize = 1 << 20;
    let bytes = tensor.data.len();
    (0..bytes).step_by(PIECE).try_for_each(|at| out.write_all(&tensor.load(at..bytes.min(at + PIECE))?))
}

pub(super) fn failed(path: &Path, source: io::Error) -> RunError {
    RunError::Io { path: path.into(), source }
}

fn sync(folder: &Path) -> Result<(), RunError> {
    match cfg!(unix) {
        true => {
            fs::File::open(folder).and_then(|file| file.sync_all()).map_err(|error| failed(folder, error))
        }
        false => Ok(()),
    }
}

/// The configuration of weights that are of another type now.
fn typed(config: &[u8], dtype: Dtype) -> Vec<u8> {
    let mut config: Map<String, Value> = serde_json::from_slice(config).expect("it was read before");
    let name = if dtype == Dtype::Bf16 { "bfloat16" } else { "float32" };
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.to_owned(), json!(name));
    format!("{:#}\n", Value::Object(config)).into_bytes()
}

/// Numbers as a file has them; bfloat16 is rounded to the nearest, ties to even.
fn put(values: &[f32], dtype: Dtype, out: &mut dyn Write) -> io::Result<()> {
    for values in values.chunks(1 << 14) {
        let bytes: Vec<u8> = match dtype {
            Dtype::Bf16 => values.iter().flat_map(|value| rounded(*value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        out.write_all(&bytes)?;
    }
    Ok(())
}
