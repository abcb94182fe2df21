//! `bantam quantize`: a smaller checkpoint, in a form that the original tools read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bantam_core::{Cpu, Precision, Trits};
use bantam_model::engine::Engine;
use bantam_model::memory;
use bantam_model::native::Native;
use bantam_model::plan::Options;
use bantam_model::pool::Threads;
use bantam_model::source::Source;
use bantam_quantize::blueprint::Blueprint;
use bantam_quantize::calibrated;
use bantam_quantize::calibrated::sample::{self, Written};
use bantam_quantize::error::QuantizeError;
use bantam_quantize::evaluate;
use bantam_quantize::form::{Fit, Form, Head, NAMES};
use bantam_quantize::report::{self, Kind, Report};
use bantam_quantize::restored::{Outcome, outline};
use bantam_quantize::run::{Event, Manner, Run, SHARD_BYTES, fingerprint};
use bantam_quantize::work::Begin;
use clap::{Args, Command, FromArgMatches, ValueEnum};
use serde_json::{Value, json};

use crate::calibration::{Calibration, Fitting};
use crate::failure::{Failure, refused, usage};
use crate::progress::Progress;
use crate::restored::restored;
use crate::{chosen_model, interrupt, models, output, token_ids};

/// Positions whose logits are computed together.
const LOGITS_ROWS: usize = 64;

/// Windows of text that a model writes to be measured with, from seeds far from those of calibration.
const WRITTEN_WINDOWS: usize = 32;
const WRITTEN_SEED: u64 = 1 << 32;

/// Makes a smaller checkpoint, as the original tools read it
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam quantize ./my-model --to nf4 --output ./my-model-nf4\n  \
                  bantam quantize ./my-model --to gptq --bits 4 --group-size 64 --output ./my-model-gptq\n  \
                  bantam quantize ./gpt-oss-20b --to ternary --ram 4GiB --output ./gpt-oss-20b-ternary\n  \
                  bantam quantize ./my-model --to int8 --evaluate held-out.txt --output ./my-model-int8\n\n\
                  What was begun and not finished stands in DIR.partial; the same command goes on with it.")]
pub(crate) struct Quantize {
    /// Folder or .safetensors file in Hugging Face form, or a .gguf file, which is written out beside the output first
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// What it becomes: nf4, fp4, int8 (bitsandbytes), mxfp4 (stacked experts), hqq, gptq, awq, ternary
    #[arg(long = "to", value_name = "FORMAT", value_parser = NAMES.to_vec())]
    form: String,
    /// The new checkpoint's folder
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The most memory that may be taken, such as 4GiB; refused at once where it is too little
    #[arg(long, value_name = "BYTES", value_parser = models::bytes)]
    ram: Option<u64>,
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Replaces the model that stands at DIR, once the new one is complete
    #[arg(long)]
    force: bool,
    /// Throws away what an earlier start has done
    #[arg(long)]
    restart: bool,
    /// Writes weights as bantam has them in memory, and not as the original tools read them: DIR is then mapped by
    /// every start, and for nothing else than running
    #[arg(long)]
    native: bool,
    /// Measures perplexity before and after on a text, and how far predictions moved; without FILE the model writes the
    /// text, another than to calibrate with
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    evaluate: Option<Option<PathBuf>>,
    /// Tokens of a window of that text [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1 << 20), requires = "evaluate")]
    context: Option<u64>,
    /// How it is measured [default: fast]
    #[arg(long, value_enum, requires = "evaluate")]
    precision: Option<PrecisionName>,
    /// Writes a JSON object for every matrix that is done, and the report as the last one
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    calibration: Calibration,
    /// Everything is told on standard error: another verb has the result.
    #[arg(skip)]
    is_part: bool,
}

/// What forms leave to choose.
#[derive(Args)]
#[command(next_help_heading = "Form")]
struct Settings {
    /// nf4, fp4: keeps scales in float32
    #[arg(long)]
    no_double_quantization: bool,
    /// Bits of a code: gptq 2, 3, 4, 8; hqq 1, 2, 3, 4, 8 [default: 4]; of ternary weights with --method ptbitnet on
    /// average: matrices that gain most get a second trit, such as for 2.2
    #[arg(long, value_name = "N")]
    bits: Option<f64>,
    /// Inputs under one scale, -1 for whole rows [default: gptq, awq 128; hqq, ternary 64, by --method ptbitnet 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    group_size: Option<i64>,
    /// gptq: zeros wherever they fit best, and not in the middle
    #[arg(long)]
    asymmetric: bool,
    /// gptq: inputs with the largest activations first
    #[arg(long)]
    act_order: bool,
    /// gptq, awq: calibrated, as the tools do it, or rounded to the nearest; ternary: absmean is the plain definition,
    /// optimal has the least squared error, ptbitnet is calibrated [default: calibrated; ternary optimal]
    #[arg(long, value_enum)]
    method: Option<MethodName>,
    /// ternary: bits of the head, which else stays as it is, as embeddings do; one that is the embedding gets weights
    /// of its own
    #[arg(long, value_enum)]
    head: Option<HeadName>,
    /// awq: whether groups have a zero; without, codes lie around 8, and every reader of zeros still reads the file
    /// [default: yes]
    #[arg(long, value_enum, value_name = "YES|NO")]
    zero_point: Option<Answer>,
    /// awq: whether the ends of groups are searched [default: yes]
    #[arg(long, value_enum, value_name = "YES|NO")]
    clip_search: Option<Answer>,
    /// awq: whether scales of inputs are searched, and put into what comes before [default: yes]
    #[arg(long, value_enum, value_name = "YES|NO")]
    scale_search: Option<Answer>,
    /// ternary: what has a scale: whole rows, groups of their inputs, or, by --method ptbitnet, rows and columns, which
    /// are fitted together [default: group]
    #[arg(long, value_enum, value_name = "WHAT")]
    scales: Option<ScalesName>,
    /// ptbitnet: puts what the inputs' mean makes into the biases of matrices that have one
    #[arg(long)]
    mean_removal: bool,
    /// ptbitnet: scales inputs in the norms before them, where trits lose less so
    #[arg(long)]
    equalise: bool,
    /// ternary: 1 or 2 trits for every weight [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=2))]
    planes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodName {
    Nearest,
    Calibrated,
    Absmean,
    Optimal,
    Ptbitnet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Answer {
    Yes,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScalesName {
    Row,
    Group,
    RowColumn,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HeadName {
    Int8,
    Int4,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionName {
    Exact,
    Fast,
}

impl Settings {
    fn form(&self, name: &str) -> Result<Form, Failure> {
        self.check(name)?;
        let group = |usual: usize| match self.group_size {
            None => Ok(Some(usual)),
            Some(-1) => Ok(None),
            Some(group) => match usize::try_from(group) {
                Ok(group) if (1..=1 << 20).contains(&group) => Ok(Some(group)),
                _ => Err(usage(format!("--group-size: expected -1 or a number of inputs, found {group}"))),
            },
        };
        let bits = |known: &[usize]| {
            let bits = self.bits.unwrap_or(4.0);
            match known.iter().find(|known| **known as f64 == bits) {
                Some(bits) => Ok(*bits),
                None => Err(usage(format!("--bits: expected one of {known:?} for {name}, found {bits}"))),
            }
        };
        Ok(match name {
            "nf4" | "fp4" => Form::FourBit { normal: name == "nf4", nested: !self.no_double_quantization },
            "int8" => Form::Int8,
            "mxfp4" => Form::Mxfp4,
            "hqq" => {
                let group = group(64)?
                    .ok_or_else(|| usage("--group-size: expected a number of inputs for hqq, found -1"))?;
                Form::Hqq { bits: bits(&[1, 2, 3, 4, 8])?, group }
            }
            "gptq" => Form::Gptq {
                bits: bits(&[2, 3, 4, 8])?,
                group: group(128)?,
                symmetric: !self.asymmetric,
                act_order: self.act_order,
            },
            "awq" => Form::Awq { group: group(128)?, zero_point: self.zero_point != Some(Answer::No) },
            _ => {
                let is_calibrated = self.method == Some(MethodName::Ptbitnet);
                let group = match self.scales {
                    None | Some(ScalesName::Group) => group(if is_calibrated { 128 } else { 64 })?,
                    Some(ScalesName::Row | ScalesName::RowColumn) => None,
                };
                if let Some(group) = group.filter(|group| !group.is_multiple_of(64)) {
                    return Err(usage(format!(
                        "--group-size: expected -1 or a multiple of 64 for ternary, found {group}"
                    )));
                }
                let fit = match self.method {
                    Some(MethodName::Absmean) => Fit::Absmean,
                    _ => Fit::Optimal,
                };
                Form::Ternary { group, planes: self.planes.unwrap_or(1) as usize, fit }
            }
        })
    }

    fn blueprint<'s>(&self, source: &'s Source, form: Form) -> Result<Blueprint<'s>, Failure> {
        let blueprint = Blueprint::new(source, form)?;
        let head = match self.head {
            None => return Ok(blueprint),
            Some(HeadName::Int8) => Head::Int8,
            Some(HeadName::Int4) => Head::Int4,
        };
        Ok(blueprint.with_head(head)?)
    }

    /// Whether the method looks at the model at work.
    fn is_calibrated(&self, form: &Form) -> Result<bool, Failure> {
        use MethodName::{Absmean, Calibrated, Nearest, Optimal, Ptbitnet};
        let (known, is_calibrated): (&[MethodName], _) = match form {
            Form::Gptq { .. } | Form::Awq { .. } => {
                (&[Nearest, Calibrated], self.method.is_none_or(|method| method == Calibrated))
            }
            Form::Ternary { .. } => (&[Absmean, Optimal, Ptbitnet], self.method == Some(Ptbitnet)),
            _ => (&[], false),
        };
        if let Some(method) = self.method.filter(|method| !known.contains(method)) {
            return Err(usage(
                format!("--method: expected one of {known:?} for --to {}, found {method:?}", form.name())
                    .to_lowercase(),
            ));
        }
        if matches!(form, Form::Ternary { .. }) && self.bits.is_some() && !is_calibrated {
            return Err(usage("--bits: expected --method ptbitnet beside it for ternary: leave it out"));
        }
        if let Form::Ternary { group, .. } = form {
            self.check_planes(*group)?;
            self.check_fit(is_calibrated)?;
        }
        let searches = self.clip_search.or(self.scale_search);
        if searches.is_some() && !is_calibrated {
            return Err(usage(
                "--clip-search, --scale-search: expected --method calibrated, found nearest: leave them out",
            ));
        }
        if self.act_order && !is_calibrated {
            return Err(usage("--act-order: expected --method calibrated, found nearest: leave it out"));
        }
        Ok(is_calibrated)
    }

    /// How matrices are made without calibration, as a report tells it.
    fn told(&self, form: &Form) -> Value {
        let name = match form {
            Form::Ternary { fit: Fit::Absmean, .. } => "absmean",
            Form::Ternary { .. } => "optimal",
            Form::Hqq { .. } => "hqq",
            _ => "nearest",
        };
        json!({ "name": name })
    }

    /// Refuses what only a method that sees the model at work can do, and two words for one thing.
    fn check_fit(&self, is_calibrated: bool) -> Result<(), Failure> {
        let of_rows = matches!(self.scales, Some(ScalesName::Row | ScalesName::RowColumn));
        if of_rows && self.group_size.is_some_and(|group| group != -1) {
            return Err(usage("--group-size: expected it without --scales row or row-column: leave one out"));
        }
        if self.scales == Some(ScalesName::Group) && self.group_size == Some(-1) {
            return Err(usage("--scales group: expected a group, found --group-size -1: leave one out"));
        }
        let given = [
            ("--scales row-column", self.scales == Some(ScalesName::RowColumn)),
            ("--mean-removal", self.mean_removal),
            ("--equalise", self.equalise),
        ];
        match given.iter().find(|(_, is_given)| *is_given && !is_calibrated) {
            Some((flag, _)) => {
                Err(usage(format!("{flag}: expected --method ptbitnet beside it: leave it out")))
            }
            None => Ok(()),
        }
    }

    /// What a calibrated method is told beside the form.
    fn fit(&self) -> Fitting {
        Fitting {
            bits: self.bits,
            clip_search: self.clip_search != Some(Answer::No),
            scale_search: self.scale_search != Some(Answer::No),
            columns: self.scales == Some(ScalesName::RowColumn),
            mean_removal: self.mean_removal,
            equalise: self.equalise,
        }
    }

    /// Refuses bits that no choice of one or two planes has.
    fn check_planes(&self, group: Option<usize>) -> Result<(), Failure> {
        let Some(bits) = self.bits else { return Ok(()) };
        if self.planes.is_some() {
            return Err(usage(
                "--planes: expected it without --bits, which says who gets two: leave one of them out",
            ));
        }
        let one = calibrated::plane_bits(group, usize::MAX);
        let shown = group.map_or(-1, |group| group as i64);
        match (one..=2.0 * one).contains(&bits) {
            true => Ok(()),
            false => Err(usage(format!(
                "--bits: expected {one} to {} for ternary with --group-size {shown}, found {bits}; for two trits \
                 everywhere give --planes 2",
                2.0 * one
            ))),
        }
    }

    /// Refuses what a form knows nothing of: it would be ignored.
    fn check(&self, name: &str) -> Result<(), Failure> {
        let given = [
            ("--no-double-quantization", self.no_double_quantization, &["nf4", "fp4"][..]),
            ("--bits", self.bits.is_some(), &["gptq", "hqq", "ternary"]),
            ("--act-order", self.act_order, &["gptq"]),
            ("--group-size", self.group_size.is_some(), &["gptq", "awq", "hqq", "ternary"]),
            ("--asymmetric", self.asymmetric, &["gptq"]),
            ("--method", self.method.is_some(), &["gptq", "awq", "ternary"]),
            ("--planes", self.planes.is_some(), &["ternary"]),
            ("--head", self.head.is_some(), &["ternary"]),
            ("--scales", self.scales.is_some(), &["ternary"]),
            ("--mean-removal", self.mean_removal, &["ternary"]),
            ("--equalise", self.equalise, &["ternary"]),
            ("--zero-point", self.zero_point.is_some(), &["awq"]),
            ("--clip-search", self.clip_search.is_some(), &["awq"]),
            ("--scale-search", self.scale_search.is_some(), &["awq"]),
        ];
        match given.iter().find(|(_, is_given, forms)| *is_given && !forms.contains(&name)) {
            Some((flag, _, forms)) => Err(usage(format!(
                "{flag}: expected --to {}, found --to {name}: leave it out",
                forms.join(" or ")
            ))),
            None => Ok(()),
        }
    }
}

impl Quantize {
    pub(crate) fn run(self) -> Result<(), Failure> {
        interrupt::without_file_size_signal(|| self.work())
    }

    /// The verb as a part of another one, with the arguments that were given for it; ends the program, as arguments
    /// always do, where they make no sense.
    pub(crate) fn part(form: &str, given: &[String]) -> Result<Quantize, Failure> {
        const NAME: &str = "bantam quantize";
        let named = [NAME, "MODEL", "--to", form, "--force", "--output", "DIR"];
        let arguments = named.into_iter().chain(given.iter().map(String::as_str));
        let matches = Quantize::augment_args(Command::new(NAME)).try_get_matches_from(arguments);
        let parsed = matches.and_then(|matches| Quantize::from_arg_matches(&matches));
        let part = Quantize { is_part: true, ..parsed.unwrap_or_else(|error| error.exit()) };
        part.chosen()?;
        Ok(part)
    }

    /// Texts that the result depends on.
    pub(crate) fn texts(&self) -> Vec<&Path> {
        let measured = self.evaluate.as_ref().and_then(|text| text.as_deref());
        measured.into_iter().chain(self.calibration.file()).collect()
    }

    /// Does the part's work.
    pub(crate) fn make(self, model: &Path, output: &Path) -> Result<(), Failure> {
        Quantize { model: model.into(), output: output.into(), ..self }.run()
    }

    /// Refuses what would be refused once the model is there, where one of its shape is.
    pub(crate) fn check(&self, source: &Source) -> Result<(), Failure> {
        let (form, is_calibrated) = self.chosen()?;
        check_length("--context", self.context, source)?;
        let outlined = outline(source)?;
        let source = outlined.as_ref().map_or(source, |outlined| &outlined.source);
        if source.spec.format.is_quantized() {
            // What becomes of it with an adapter in it is not known yet.
            if is_calibrated {
                self.calibration.settings(source, form, &self.settings.fit(), self.threads(), None)?;
            }
            return self.text(source).map(drop);
        }
        self.planned(source, (form, is_calibrated), None).map(drop)
    }

    /// The form, and whether its method looks at the model at work.
    fn chosen(&self) -> Result<(Form, bool), Failure> {
        let form = self.settings.form(&self.form)?;
        let is_calibrated = self.settings.is_calibrated(&form)?;
        if self.calibration.is_asked() && !is_calibrated {
            return Err(usage(
                "--calibration and its kin: expected a calibrated method, found none: leave them out",
            ));
        }
        self.calibration.damp()?;
        Ok((form, is_calibrated))
    }

    fn line(&self, text: &str) -> Result<(), Failure> {
        match self.is_part {
            true => output::say(text),
            false => output::line(text)?,
        }
        Ok(())
    }

    fn work(&self) -> Result<(), Failure> {
        let started = Instant::now();
        let (form, is_calibrated) = self.chosen()?;
        let mut source = chosen_model::open(Some(&self.model))?;
        check_length("--context", self.context, &source)?;
        let limit = self.ram.or_else(memory::available);
        let outlined = outline(&source)?;
        if let Some(outlined) = &outlined {
            // Whatever is wrong is said before anything is written out.
            let planned = self.planned(&outlined.source, (form, is_calibrated), limit)?;
            self.check_memory(&planned, limit, outlined.memory_bytes)?;
            let bytes = planned.blueprint.output_bytes();
            let later = bytes + bytes.min(SHARD_BYTES);
            match restored(&source, &self.output, self.begin(), later, self.json)? {
                Outcome::NotNeeded => {}
                Outcome::Finished => return self.tell_finished(),
                // Given back at once: the work itself takes the folder again.
                Outcome::Ready(restored) => source = restored.open()?,
            }
        }
        let planned = self.planned(&source, (form, is_calibrated), limit)?;
        if outlined.is_none() {
            self.check_memory(&planned, limit, 0)?;
        }
        let Planned { blueprint, text, settings } = planned;
        let manner = Manner { threads: self.threads(), shard_bytes: SHARD_BYTES, begin: self.begin() };
        let mut ready = settings.map(|settings| self.calibration.ready(&source, settings)).transpose()?;
        let told = ready.as_ref().map_or_else(|| self.settings.told(&form), |ready| ready.told.clone());
        let Some(mut run) = Run::open(&blueprint, &self.output, &told, manner)? else {
            return self.tell_finished();
        };
        self.told(|tell| match &mut ready {
            Some(ready) => run.layerwise(&mut ready.method, tell),
            None => run.nearest(tell),
        })?;
        drop(ready);
        let damp = f64::from(self.calibration.damp()?);
        self.told(|tell| run.assemble(damp, tell))?;
        let mut report = Report::new(&run);
        let made = Source::open(&run.folder())?;
        report.bytes_per_token =
            Some(made.plan(options(&made, 2, Precision::Fast), Cpu::detect())?.bytes_per_token as u64);
        if self.evaluate.is_some() {
            report.evaluation = Some(self.evaluate(&source, &made, text, &run)?);
        }
        report.write(&run.folder())?;
        match self.native {
            true => run.publish_native(|path| self.write_native(&made, path, limit))?,
            false => run.publish()?,
        }
        self.tell_report(&report, started)
    }

    fn begin(&self) -> Begin {
        Begin { force: self.force, restart: self.restart }
    }

    fn threads(&self) -> usize {
        self.threads.map_or_else(Threads::available, |threads| threads as usize)
    }

    /// What can be said of the work once the model's headers are known.
    fn planned<'s>(
        &self,
        source: &'s Source,
        (form, is_calibrated): (Form, bool),
        limit: Option<u64>,
    ) -> Result<Planned<'s>, Failure> {
        let blueprint = self.settings.blueprint(source, form)?;
        let (text, threads) = (self.text(source)?, self.threads());
        let settings = match is_calibrated {
            true => {
                let settings =
                    self.calibration.settings(source, form, &self.settings.fit(), threads, limit)?;
                self.calibration.check_text(source, threads)?;
                Some(settings)
            }
            false => None,
        };
        Ok(Planned { blueprint, text, settings })
    }

    /// Says what will be taken, and refuses what is too much; `before` is what is taken before the work begins.
    fn check_memory(&self, planned: &Planned, limit: Option<u64>, before: u64) -> Result<(), Failure> {
        let Planned { blueprint, settings, .. } = planned;
        let (mut needed, mut what) = (blueprint.memory_bytes() as u64, "the largest matrix");
        if let Some(settings) = settings {
            (needed, what) = self.calibration.memory_bytes(blueprint, settings)?;
        }
        if let Some(text) = &self.evaluate {
            let bytes = self.measuring_bytes(blueprint.source, text.is_none())?;
            if bytes > needed {
                (needed, what) = (bytes, "measuring the model as it is, which is done with --evaluate alone");
            }
        }
        if before > needed {
            (needed, what) = (before, "writing the model out as safetensors");
        }
        if let Some(limit) = limit.filter(|limit| needed > *limit) {
            return Err(refused(format!(
                "{}: expected at least {} of memory for {what}, found {}: give more with --ram, or close other \
                 programs",
                self.model.display(),
                output::bytes(needed),
                output::bytes(limit)
            )));
        }
        if !self.json {
            output::say(&format!(
                "{}: {} weights become {}, about {} in all; takes at most {} of memory",
                self.model.display(),
                output::count(blueprint.weights() as u64),
                blueprint.form.name(),
                output::bytes(blueprint.output_bytes()),
                output::bytes(needed)
            ));
            self.tell_what_stays(blueprint);
        }
        Ok(())
    }

    /// What the model takes when it is measured, or writes the text for it.
    fn measuring_bytes(&self, source: &Source, is_written: bool) -> Result<u64, Failure> {
        let mut bytes =
            source.plan(options(source, self.window(source), self.precision()), Cpu::detect())?.bytes();
        if is_written {
            bytes = bytes.max(source.plan(sample::options(&self.written(source)), Cpu::detect())?.bytes());
        }
        Ok(bytes as u64 + (64 << 20))
    }

    /// What the model is asked to write where no text is given.
    fn written(&self, source: &Source) -> Written {
        let (length, threads) = (self.window(source), self.threads());
        Written { sequences: WRITTEN_WINDOWS, length, seed: WRITTEN_SEED, threads }
    }

    fn tell_what_stays(&self, blueprint: &Blueprint) {
        let stacks = blueprint.left.iter().filter(|module| module.experts.is_some());
        let weights: usize = stacks.map(|module| module.weights()).sum();
        if weights > 0 {
            output::warning(&format!(
                "{} weights of stacked experts stay as they are: {} has no form for them; ternary and mxfp4 have",
                output::count(weights as u64),
                blueprint.form.name()
            ));
        }
    }

    /// Does something that takes long, with something to look at.
    fn told<T, E: Into<Failure>>(
        &self,
        work: impl FnOnce(&mut dyn FnMut(Event)) -> Result<T, E>,
    ) -> Result<T, Failure> {
        let progress = Progress::counting(String::new(), 1000);
        let mut tell = |event: Event| match event {
            Event::Matrix { name, loss, bytes, weights: [done, all], again } => {
                if self.json {
                    // A reader who has left is noticed at the end.
                    let told = json!({
                        "event": "matrix", "name": name, "relative_squared_error": loss, "bytes": bytes,
                        "weights_done": done, "weights": all, "again": again,
                    });
                    let _ = self.line(&told.to_string());
                }
                progress.say(format!("{name}, loss {loss:.2e}"));
                progress.at(share(done, all));
            }
            Event::Writing { bytes: [done, all] } => {
                progress.say(format!("writing {} of {}", output::bytes(done), output::bytes(all)));
                progress.at(share(done, all));
            }
        };
        work(&mut tell).map_err(Into::into)
    }

    fn precision(&self) -> Precision {
        match self.precision {
            Some(PrecisionName::Exact) => Precision::Exact,
            _ => Precision::Fast,
        }
    }

    fn window(&self, source: &Source) -> usize {
        (self.context.unwrap_or(256) as usize).min(source.spec.context)
    }

    /// The tokens of the text to measure with, where one is given.
    fn text(&self, source: &Source) -> Result<Option<Vec<u32>>, Failure> {
        let Some(Some(path)) = &self.evaluate else { return Ok(None) };
        let text = fs::read_to_string(path).map_err(|source| Failure::Read {
            path: path.clone(),
            expected: "a text in UTF-8",
            source,
        })?;
        let ids = source.text()?.tokenizer.encode(&text, false);
        let ids = ids.map_err(|error| source.tokenizer_error(error))?;
        token_ids::check(source, &ids)?;
        let window = self.window(source);
        match ids.len() >= window {
            true => Ok(Some(ids)),
            false => Err(refused(format!(
                "{}: expected at least one window of {window} tokens, found {} tokens: give a longer text or a \
                 smaller --context",
                path.display(),
                ids.len()
            ))),
        }
    }

    /// Measures both models, one after the other.
    fn evaluate(
        &self,
        source: &Source,
        made: &Source,
        text: Option<Vec<u32>>,
        run: &Run,
    ) -> Result<Value, Failure> {
        let is_given = text.is_some();
        let ids = match text {
            Some(ids) => ids,
            None => {
                let _progress = Progress::waiting("the model writes text to measure with".to_owned());
                sample::write(source, &self.written(source), Cpu::detect()).map_err(QuantizeError::from)?
            }
        };
        let text = evaluate::Text { ids: &ids, width: self.window(source) };
        let kept = run.scratch();
        let load = |source: &Source| -> Result<Engine, Failure> {
            let options = options(source, text.width, self.precision());
            Ok(source.load(options, Cpu::detect(), self.threads(), None, &mut |_| {})?)
        };
        let progress = Progress::counting("measuring the model as it was".to_owned(), text.windows());
        let before = evaluate::before(&mut load(source)?, &text, &kept, &mut |done| progress.at(done))?;
        drop(progress);
        let progress = Progress::counting("measuring the new model".to_owned(), text.windows());
        let (after, distance) =
            evaluate::after(&mut load(made)?, &text, &kept, &mut |done| progress.at(done))?;
        let mut told = evaluate::json(before, after, distance, text.width);
        told["text"] = json!(if is_given { "given" } else { "written by the model" });
        told["tokens_xxh3"] = json!(fingerprint(&ids));
        Ok(told)
    }

    /// Loads the new model once, as every start will have it.
    fn write_native(&self, made: &Source, path: &Path, limit: Option<u64>) -> Result<(), Failure> {
        let options = options(made, 2, Precision::Fast);
        let plan = made.plan(options, Cpu::detect())?;
        if let Some(limit) = limit.filter(|limit| plan.bytes() as u64 > *limit) {
            return Err(refused(format!(
                "{}: expected at least {} of memory to bring it into its native form, found {}: start again with more \
                 --ram, or without --native, what is done already is kept",
                self.output.display(),
                output::bytes(plan.bytes() as u64),
                output::bytes(limit)
            )));
        }
        let native = Native::alone(made, &plan, path);
        let engine = made.load(options, Cpu::detect(), self.threads(), None, &mut |_| {})?;
        made.keep(&engine, &native, &mut |_| {}).map_err(|error| refused(error.to_string()))
    }

    /// An earlier start has done it all but for the tidying up.
    fn tell_finished(&self) -> Result<(), Failure> {
        let path = self.output.join(report::FILE);
        if !self.json {
            let (output, path) = (self.output.display(), path.display());
            return self.line(&format!("{output}: an earlier start has finished it; its report is {path}"));
        }
        let expected = "the report of an earlier start";
        let told = fs::read(&path).map_err(|source| Failure::Read { path, expected, source })?;
        let mut told: Value = serde_json::from_slice(&told).unwrap_or_else(|_| json!({}));
        told["event"] = json!("report");
        self.line(&told.to_string())
    }

    fn tell_report(&self, report: &Report, started: Instant) -> Result<(), Failure> {
        let (seconds, peak) = (started.elapsed().as_secs_f64(), memory::peak());
        if self.json {
            let mut told = report.json();
            told["event"] = json!("report");
            told["seconds"] = json!(seconds);
            told["peak_memory_bytes"] = json!(peak);
            return self.line(&told.to_string());
        }
        let row = |name: &str, kind: &Kind| {
            let relative = kind.loss.relative();
            vec![
                name.to_owned(),
                kind.matrices.to_string(),
                output::count(kind.weights),
                output::bytes(kind.bytes),
                format!("{:.3}", kind.bits()),
                format!("{relative:.3e}"),
                format!("{:.3e}", kind.worst),
            ]
        };
        let head = ["matrices", "count", "weights", "bytes", "bits/weight", "squared error", "worst"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(report.kinds.iter().map(|(name, kind)| row(name, kind)));
        rows.push(row("all", &report.all));
        rows.extend(report.head.as_ref().map(|head| row("head", head)));
        self.line(&output::table(&rows, &[false, true, true, true, true, true, true]))?;
        self.line(&format!(
            "{:.3} bits per weight without embedding and head, which take {}; {} are read for a token",
            report.bits_per_weight(),
            output::bytes(report.embedding[1]),
            report.bytes_per_token.map_or_else(String::new, output::bytes)
        ))?;
        if let Some(found) = &report.evaluation {
            let number = |key: &str| found[key].as_f64().unwrap_or(f64::NAN);
            let (compared, tokens) = (number("compared_positions"), number("tokens"));
            let kept = output::bytes(evaluate::KEPT_BYTES_MAX);
            let of = match compared < tokens {
                true => format!(
                    " over the first {compared} of {tokens} tokens, of which {kept} of predictions are kept"
                ),
                false => String::new(),
            };
            self.line(&format!(
                "perplexity {:.4} before, {:.4} after ({:.4} times); divergence {:.5} nats, same first token in \
                 {:.2} %{of}",
                number("perplexity_before"),
                number("perplexity_after"),
                number("perplexity_ratio"),
                number("kl_divergence"),
                number("top1_agreement") * 100.0
            ))?;
        }
        let peak =
            peak.map_or_else(String::new, |peak| format!(", at most {} of memory", output::bytes(peak)));
        self.line(&format!("{}: {seconds:.1} s{peak}", self.output.display()))?;
        Ok(())
    }
}

/// The work as far as headers tell.
struct Planned<'s> {
    blueprint: Blueprint<'s>,
    /// Tokens of the text to measure with.
    text: Option<Vec<u32>>,
    /// Of a calibrated method.
    settings: Option<calibrated::Settings>,
}

/// Refuses windows that are longer than the model's.
pub(crate) fn check_length(flag: &str, asked: Option<u64>, source: &Source) -> Result<(), Failure> {
    let most = source.spec.context;
    match asked.filter(|asked| *asked > most as u64) {
        None => Ok(()),
        Some(asked) => Err(usage(format!(
            "{flag}: expected at most the {most} tokens of the model's context, found {asked}: give less"
        ))),
    }
}

/// Thousandths.
fn share(done: u64, all: u64) -> usize {
    (done as f64 * 1000.0 / all.max(1) as f64) as usize
}

/// How a model is run to be measured.
fn options(source: &Source, window: usize, precision: Precision) -> Options {
    let context = window.min(source.spec.context);
    let chunk = context.min(512);
    Options {
        context,
        sequences: 1,
        cache_positions: None,
        chunk,
        logits_rows: LOGITS_ROWS.min(chunk),
        kv: source.spec.usual_kv(precision, || false),
        precision,
        quantization: None,
        head: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    }
}
