//! `bantam plan`: every byte of a run before it begins. It reads headers and never weights.

use bantam_core::{Cpu, KvKind, Region};
use bantam_model::engine::synthetic_plan;
use bantam_model::memory;
use bantam_model::native::Native;
use bantam_model::plan::{Options, Plan};
use bantam_model::spec::ModelSpec;
use clap::Args;
use serde_json::{Value, json};

use crate::chosen_model::ChosenModel;
use crate::engine_flags::{ContextFlag, EngineFlags, kv_name, precision_name, size};
use crate::failure::{Failure, refused};
use crate::synthetic_shape::SyntheticShape;
use crate::{output, style};

/// Shows how many bytes a run will take, before anything is loaded
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam plan ./my-model --context 8192\n  \
                        bantam plan ./my-model --quantization int8 --kv int8 --json\n  \
                        bantam plan --synthetic list")]
pub(crate) struct PlanRun {
    #[command(flatten)]
    model: ChosenModel,
    #[command(flatten)]
    synthetic: SyntheticShape,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    /// Sequences that are open at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    sequences: u64,
    #[command(flatten)]
    context: ContextFlag,
    #[command(flatten)]
    engine: EngineFlags,
}

impl PlanRun {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(names) = self.synthetic.list() {
            return Ok(output::line(&names)?);
        }
        let (name, plan, native) = self.plan()?;
        let available = memory::available();
        match self.json {
            true => output::json(&as_json(&plan, available, native.as_ref()))?,
            false => output::line(&as_text(&plan, &name, available, native.as_ref()))?,
        }
        Ok(())
    }

    /// The model's name, its plan, and its native file.
    fn plan(&self) -> Result<(String, Plan, Option<Native>), Failure> {
        let cpu = Cpu::detect();
        if let Some((name, spec)) = self.synthetic.spec()? {
            let plan = synthetic_plan(&spec, self.synthetic.dtype(), self.options(&spec), cpu);
            let plan = plan.map_err(|error| refused(format!("{name}: {error}")))?;
            return Ok((name.to_owned(), plan, None));
        }
        let source = self.model.open()?;
        let plan = source.plan(self.options(&source.spec), cpu)?;
        let native = self.engine.native(&source, &plan);
        Ok((source.folder().display().to_string(), plan, native))
    }

    fn options(&self, spec: &ModelSpec) -> Options {
        let sequences = size(self.sequences);
        self.engine.options(self.context.of(spec), sequences, sequences)
    }
}

fn region_name(region: Region) -> &'static str {
    match region {
        Region::Weights => "weights",
        Region::Cache => "cache",
        Region::Work => "work",
    }
}

/// Whether the run fits, where that can be told.
fn fits(plan: &Plan, available: Option<u64>) -> Option<bool> {
    available.map(|available| plan.bytes() as u64 <= available)
}

/// What makes a run smaller and is not done yet.
fn smaller(options: &Options) -> String {
    let ways = [
        ("a shorter --context", true),
        ("--kv int8", options.kv != KvKind::Int8),
        ("--quantization int8", options.quantization.is_none()),
    ];
    let ways: Vec<&str> = ways.iter().filter(|(_, helps)| *helps).map(|(way, _)| *way).collect();
    ways.join(" or ")
}

fn as_json(plan: &Plan, available: Option<u64>, native: Option<&Native>) -> Value {
    let lines = plan.lines.iter().map(|line| {
        json!({
            "name": line.name,
            "region": region_name(line.region),
            "lifetime": line.lifetime,
            "shape": line.shape,
            "bytes": line.bytes,
        })
    });
    let options = &plan.options;
    json!({
        "lines": lines.collect::<Vec<_>>(),
        "bytes": plan.bytes(),
        "weight_bytes": plan.weight_bytes,
        "cache_bytes": plan.cache_bytes,
        "work_bytes": plan.work_bytes,
        "bytes_per_token": plan.bytes_per_token,
        "generation_bytes": plan.generation_bytes,
        "available_bytes": available,
        "fits": fits(plan, available),
        "native": native.map(|native| {
            json!({ "path": native.path().display().to_string(), "is_there": native.is_there() })
        }),
        "options": {
            "context": options.context,
            "sequences": options.sequences,
            "chunk": options.chunk,
            "kv": kv_name(options.kv),
            "precision": precision_name(options.precision),
            "quantization": options.quantization.map(|way| way.name),
            "head": options.head.map(|way| way.name),
            "experts": options.experts.map(|way| way.name),
        },
    })
}

fn as_text(plan: &Plan, model: &str, available: Option<u64>, native: Option<&Native>) -> String {
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["buffer", "region", "lives a", "shape", "bytes"])];
    for line in plan.lines.iter().filter(|line| line.bytes > 0) {
        let bytes = line.bytes.to_string();
        rows.push(row([&line.name, region_name(line.region), line.lifetime, &line.shape, &bytes]));
    }
    for (name, bytes) in [
        ("weights", plan.weight_bytes),
        ("cache", plan.cache_bytes),
        ("work", plan.work_bytes),
        ("all", plan.bytes()),
    ] {
        let name = format!("sum of {name}");
        let people = output::bytes(bytes as u64);
        rows.push(row([&name, "", "", &people, &bytes.to_string()]));
    }
    let options = &plan.options;
    let verdict = match (fits(plan, available), available) {
        (Some(true), Some(available)) => format!(
            "{} {} of memory are free",
            style::on_stdout(style::GOOD, "fits:"),
            output::bytes(available)
        ),
        (Some(false), Some(available)) => format!(
            "{} {} of memory are free; try {}",
            style::on_stdout(style::BAD, "does not fit:"),
            output::bytes(available),
            smaller(options)
        ),
        _ => "how much memory is free cannot be told on this system".to_owned(),
    };
    let mapped = match native.map(|native| (native.path().display(), native.is_there())) {
        Some((path, true)) => format!("the weights are mapped from {path}\n"),
        Some((path, false)) => format!("the weights are repacked, and kept in {path}\n"),
        None => String::new(),
    };
    format!(
        "{model}\ncontext {}, {} at once, chunks of {}, keys and values {}, {} precision\n\n{}\n\n\
         {} of weights are read for every token\n\
         {} more on the heap for every generation (logits, sampler, history)\n{mapped}{verdict}",
        options.context,
        options.sequences,
        options.chunk,
        kv_name(options.kv),
        precision_name(options.precision),
        output::table(&rows, &[false, false, false, false, true]),
        output::bytes(plan.bytes_per_token as u64),
        output::bytes(plan.generation_bytes as u64),
    )
}
