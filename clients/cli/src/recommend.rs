//! `bantam doctor --recommend`: the settings of a run that suit the memory that is free, found by planning.

use bantam_core::{Cpu, KvKind};
use bantam_model::checkpoint::Dtype;
use bantam_model::engine::synthetic_plan;
use bantam_model::families::SHAPES;
use bantam_model::formats::on_load::{OnLoad, way};
use bantam_model::memory;
use bantam_model::plan::{Options, Plan};
use bantam_model::pool::Threads;
use bantam_model::source::Source;
use bantam_model::spec::ModelSpec;
use serde_json::{Value, json};

use crate::engine_flags::{kv_name, usual_options};
use crate::failure::Failure;
use crate::output;

/// Ways to hold weights, the one that loses least first.
const WAYS: [Option<&str>; 3] = [None, Some("int8"), Some("nf4")];
/// What is to be left for everything else: a tenth.
const SPARE: u64 = 10;
/// Shorter contexts than this are no use.
const CONTEXT_MIN: usize = 512;

/// What suits a model.
struct Suited {
    model: String,
    /// The plan of the settings; what is wrong where none is found.
    found: Result<Plan, String>,
}

impl Suited {
    fn of(
        model: String,
        spec: &ModelSpec,
        free: u64,
        plan: impl Fn(Options) -> Result<Plan, String>,
    ) -> Suited {
        let mut least = None;
        for way in WAYS.map(|name| name.and_then(way)) {
            for options in contexts(spec, way) {
                match plan(options) {
                    Ok(plan) if plan.bytes() as u64 <= free => return Suited { model, found: Ok(plan) },
                    Ok(plan) => least = Some(plan.bytes() as u64),
                    Err(error) => return Suited { model, found: Err(error) },
                }
            }
        }
        let least = least.map_or(String::new(), |bytes| format!("needs {} at least", output::bytes(bytes)));
        Suited { model, found: Err(least) }
    }

    fn flags(plan: &Plan) -> String {
        let Options { quantization, kv, context, .. } = plan.options;
        let way = quantization.map_or(String::new(), |way| format!("--quantization {} ", way.name));
        format!("{way}--kv {} --context {context}", kv_name(kv))
    }

    fn as_json(&self) -> Value {
        match &self.found {
            Err(reason) => json!({ "model": self.model, "reason": reason }),
            Ok(plan) => json!({
                "model": self.model,
                "flags": Suited::flags(plan),
                "quantization": plan.options.quantization.map(|way| way.name),
                "kv": kv_name(plan.options.kv),
                "context": plan.options.context,
                "bytes": plan.bytes(),
            }),
        }
    }

    fn row(&self) -> Vec<String> {
        match &self.found {
            Ok(plan) => {
                vec![format!("  {}", self.model), Suited::flags(plan), output::bytes(plan.bytes() as u64)]
            }
            Err(reason) => {
                vec![format!("  {}", self.model), format!("does not fit: {reason}"), "-".to_owned()]
            }
        }
    }
}

/// The usual context, then smaller caches.
fn contexts(spec: &ModelSpec, way: Option<&'static OnLoad>) -> Vec<Options> {
    let usual = usual_options(spec, way);
    let mut all = vec![usual, Options { kv: KvKind::Int8, ..usual }];
    let mut context = usual.context / 2;
    while context >= CONTEXT_MIN {
        all.push(Options { kv: KvKind::Int8, context, chunk: usual.chunk.min(context), ..usual });
        context /= 2;
    }
    all
}

/// Shows the settings for a model, or for published shapes.
pub(crate) fn show(source: Option<&Source>, as_json: bool) -> Result<(), Failure> {
    let available = memory::available();
    let free = available.map_or(u64::MAX, |bytes| bytes - bytes / SPARE);
    let cpu = Cpu::detect();
    let suited = match source {
        Some(source) => {
            let plan = |options| source.plan(options, cpu).map_err(|error| error.to_string());
            vec![Suited::of(source.folder().display().to_string(), &source.spec, free, plan)]
        }
        None => SHAPES.iter().filter_map(|(name, config)| of_shape(name, config, free, cpu)).collect(),
    };
    if as_json {
        let models: Vec<Value> = suited.iter().map(Suited::as_json).collect();
        let threads = Threads::available();
        return Ok(output::json(
            &json!({ "available_bytes": available, "threads": threads, "models": models }),
        )?);
    }
    let told = available.map_or("cannot be told".to_owned(), output::bytes);
    let mut rows = vec![["  model", "settings", "memory"].map(str::to_owned).to_vec()];
    rows.extend(suited.iter().map(Suited::row));
    output::line(&format!(
        "Memory that is free: {told}; a tenth of it is left to others. Threads: {}, as without --threads.\n\n{}\n\n\
         Weights stay as they are where that fits, then become int8, then nf4. An adapter needs no more than its own \
         size beside the model (--adapter); `bantam merge` needs some rows of a tensor at a time, and says so.",
        Threads::available(),
        output::table(&rows, &[false, false, true])
    ))?;
    Ok(())
}

fn of_shape(name: &str, config: &str, free: u64, cpu: Cpu) -> Option<Suited> {
    let spec = ModelSpec::parse(config.as_bytes()).ok()?;
    let plan = |options| synthetic_plan(&spec, Dtype::Bf16, options, cpu).map_err(|error| error.to_string());
    Some(Suited::of(name.to_owned(), &spec, free, plan))
}
