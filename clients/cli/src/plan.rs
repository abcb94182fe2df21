//! `bantam plan`: every byte of a run before it begins. It reads headers and never weights.

use bantam_core::{Cpu, Region};
use bantam_daemon::cards::Device;
use bantam_daemon::carried;
use bantam_model::engine::synthetic_plan;
use bantam_model::formats::on_load::OnLoad;
use bantam_model::memory;
use bantam_model::native::Native;
use bantam_model::plan::{Options, Plan};
use bantam_model::spec::ModelSpec;
use bantam_proto::v1;
use clap::Args;
use serde_json::{Value, json};

use crate::adapter_flag::AdapterFlag;
use crate::chosen_model::ChosenModel;
use crate::daemon::{DaemonFlags, Link, Step};
use crate::engine_flags::{ContextFlag, EngineFlags, kv_name, precision_name, size};
use crate::failure::{Failure, refused};
use crate::models::{self, RAM};
use crate::placed::PlacementFlags;
use crate::synthetic_shape::SyntheticShape;
use crate::{output, style};

/// Shows how many bytes a run will take, before anything is loaded
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam plan ./my-model --context 8192\n  \
                        bantam plan ./my-model --quantization int8 --kv int8 --json\n  \
                        bantam plan ./my-model --vram 4GiB --ram 24GiB\n  \
                        bantam plan ./my-model --machine list\n  bantam plan --synthetic list")]
pub(crate) struct PlanRun {
    #[command(flatten)]
    model: ChosenModel,
    #[command(flatten)]
    synthetic: SyntheticShape,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    /// Sequences that are open at once [default: 1; of a daemon, its setting]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    sequences: Option<u64>,
    /// Room for adapters that requests name [default: 0; of a daemon, its setting]
    #[arg(long, value_name = "BYTES", value_parser = models::bytes)]
    adapter_bytes: Option<u64>,
    #[command(flatten)]
    context: ContextFlag,
    #[command(flatten)]
    adapter: AdapterFlag,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    placement: PlacementFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

/// What a run takes, whoever will run it.
struct Needs {
    model: String,
    lines: Vec<Line>,
    weight_bytes: u64,
    cache_bytes: u64,
    work_bytes: u64,
    /// Room for adapters that requests name.
    adapter_bytes: u64,
    generation_bytes: u64,
    bytes_per_token: u64,
    /// What is free for it: of this machine's memory, or of a daemon's budget for that.
    available: Option<u64>,
    /// A daemon's cards.
    cards: Vec<OnCard>,
    fits: Option<bool>,
    /// Models of a daemon that would have to make room.
    leaving: usize,
    /// The repacked weights, and whether they are there.
    native: Option<(String, bool)>,
    options: Told,
    is_daemon: bool,
}

/// A buffer.
struct Line {
    name: String,
    region: String,
    lifetime: String,
    shape: String,
    bytes: u64,
}

/// A card of a daemon: nothing of it is memory of the machine.
struct OnCard {
    device: String,
    /// What models have left of their budget there.
    free: u64,
    /// What the plan takes there, where the daemon knows.
    bytes: u64,
}

/// Options by the names of their flags.
struct Told {
    context: u64,
    sequences: u64,
    chunk: u64,
    kv: &'static str,
    precision: &'static str,
    quantization: Option<String>,
    head: Option<String>,
    experts: Option<String>,
}

impl PlanRun {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(names) = self.synthetic.list().or_else(|| self.placement.list()) {
            return Ok(output::line(&names)?);
        }
        if self.placement.is_asked() {
            return self.place();
        }
        let needs = self.needs()?;
        match self.json {
            true => output::json(&as_json(&needs))?,
            false => output::line(&as_text(&needs))?,
        }
        Ok(())
    }

    /// A machine that is described is no daemon's.
    fn place(&self) -> Result<(), Failure> {
        let cpu = Cpu::detect();
        let (name, spec, plan) = match self.synthetic.spec()? {
            Some((name, spec)) => {
                let plan = synthetic_plan(&spec, self.synthetic.dtype(), self.options(&spec), cpu);
                (name.to_owned(), spec, plan.map_err(|error| refused(format!("{name}: {error}")))?)
            }
            None => {
                let source = self.adapter.beside(self.model.open()?)?;
                let plan = source.plan(self.options(&source.spec), cpu)?;
                (source.folder().display().to_string(), source.spec.clone(), plan)
            }
        };
        let placed = self.placement.place(name, &spec, plan)?;
        match self.json {
            true => output::json(&placed.as_json())?,
            false => output::line(&placed.as_text())?,
        }
        Ok(())
    }

    /// Asks whoever will run the model: a daemon loads it for more sequences and into a budget.
    fn needs(&self) -> Result<Needs, Failure> {
        let cpu = Cpu::detect();
        if let Some((name, spec)) = self.synthetic.spec()? {
            let plan = synthetic_plan(&spec, self.synthetic.dtype(), self.options(&spec), cpu);
            let plan = plan.map_err(|error| refused(format!("{name}: {error}")))?;
            return Ok(Needs::here(name.to_owned(), &plan, None));
        }
        if let Some(link) = self.adapter.find(&self.daemon)?
            && let Step::Done(needs) = self.by_daemon(&link)?
        {
            return Ok(needs);
        }
        let source = self.adapter.beside(self.model.open()?)?;
        let plan = source.plan(self.options(&source.spec), cpu)?;
        let native = self.engine.native(&source, &plan);
        Ok(Needs::here(source.folder().display().to_string(), &plan, native.as_ref()))
    }

    fn by_daemon(&self, link: &Link) -> Result<Step<Needs>, Failure> {
        let path = self.model.path();
        let mut options = self.engine.load_options(&self.context);
        options.slots = self.sequences.map(|slots| u32::try_from(slots).unwrap_or(u32::MAX));
        options.adapter_bytes = self.adapter_bytes;
        let request = v1::PlanRequest { model: link.model(path), options: Some(options) };
        let mut client = link.models();
        let answer = link.wait(client.plan(link.request(request)));
        let name = path.map_or(carried::LABEL.to_owned(), |path| path.display().to_string());
        Ok(match link.or_without(answer)? {
            Step::Done(answer) => Step::Done(Needs::of_daemon(name, answer.into_inner())),
            Step::Without => Step::Without,
        })
    }

    /// On the machine that is described, or on this one as a run would be.
    fn options(&self, spec: &ModelSpec) -> Options {
        let sequences = self.sequences.map_or(1, size);
        let has_card = || match self.placement.is_asked() {
            true => self.placement.has_card(),
            false => Device::Auto.is_there(),
        };
        let options = self.engine.options(spec, has_card, self.context.of(spec), sequences, sequences);
        Options { adapter_bytes: self.adapter_bytes.map_or(0, size), ..options }
    }
}

impl Needs {
    fn here(model: String, plan: &Plan, native: Option<&Native>) -> Self {
        let line = |line: &bantam_model::plan::Line| Line {
            name: line.name.clone(),
            region: region_name(line.region).to_owned(),
            lifetime: line.lifetime.to_string(),
            shape: line.shape.clone(),
            bytes: line.bytes as u64,
        };
        let (options, available) = (&plan.options, memory::available());
        let name = |way: Option<&OnLoad>| way.map(|way| way.name.to_owned());
        Needs {
            model,
            lines: plan.lines.iter().map(line).collect(),
            weight_bytes: plan.weight_bytes as u64,
            cache_bytes: plan.cache_bytes as u64,
            work_bytes: plan.work_bytes as u64,
            adapter_bytes: plan.adapter_bytes as u64,
            generation_bytes: plan.generation_bytes as u64,
            bytes_per_token: plan.bytes_per_token as u64,
            available,
            cards: Vec::new(),
            // Where that can be told.
            fits: available.map(|available| plan.bytes() as u64 <= available),
            leaving: 0,
            native: native.map(|native| (native.path().display().to_string(), native.is_there())),
            options: Told {
                context: options.context as u64,
                sequences: options.sequences as u64,
                chunk: options.chunk as u64,
                kv: kv_name(options.kv),
                precision: precision_name(options.precision),
                quantization: name(options.quantization),
                head: name(options.head),
                experts: name(options.experts),
            },
            is_daemon: false,
        }
    }

    fn of_daemon(model: String, answer: v1::PlanResponse) -> Self {
        let here = answer.bytes.iter().find(|of| of.device == RAM).cloned().unwrap_or_default();
        let free = |device: &v1::DeviceUse| device.budget_bytes.saturating_sub(device.used_bytes);
        let on_card = |device: &v1::DeviceUse| OnCard {
            device: device.device.clone(),
            free: free(device),
            bytes: answer.bytes.iter().filter(|of| of.device == device.device).map(|of| of.total_bytes).sum(),
        };
        let options = answer.options.clone().unwrap_or_default();
        let way = |name: &Option<String>| name.clone().filter(|name| name != "none" && !name.is_empty());
        Needs {
            model,
            weight_bytes: here.weight_bytes,
            cache_bytes: here.cache_bytes,
            work_bytes: here.work_bytes,
            adapter_bytes: here.adapter_bytes,
            generation_bytes: here.generation_bytes,
            bytes_per_token: answer.bytes_per_token,
            available: answer.devices.iter().find(|of| of.device == RAM).map(free),
            cards: answer.devices.iter().filter(|of| of.device != RAM).map(on_card).collect(),
            fits: Some(answer.fits),
            leaving: answer.leaving.len(),
            native: answer.native.map(|native| (native.path, native.is_there)),
            options: Told {
                context: options.context().into(),
                sequences: options.slots().into(),
                chunk: options.chunk().into(),
                kv: match options.kv() {
                    v1::KvType::F32 => "f32",
                    v1::KvType::Int8 => "int8",
                    v1::KvType::F16 | v1::KvType::Unspecified => "f16",
                },
                precision: match options.precision() {
                    v1::Precision::Exact => "exact",
                    v1::Precision::Fast | v1::Precision::Unspecified => "fast",
                },
                quantization: way(&options.quantization),
                head: way(&options.head),
                experts: way(&options.experts),
            },
            // What generations take is told apart, as without a daemon.
            lines: answer
                .lines
                .into_iter()
                .filter(|line| line.region != "generation" && line.device == RAM)
                .map(Line::from)
                .collect(),
            is_daemon: true,
        }
    }

    fn bytes(&self) -> u64 {
        self.weight_bytes + self.cache_bytes + self.work_bytes + self.adapter_bytes
    }

    fn verdict(&self) -> String {
        let free = |bytes| match self.is_daemon {
            true => format!("{} of the daemon's budget of memory are free", output::bytes(bytes)),
            false => format!("{} of memory are free", output::bytes(bytes)),
        };
        match (self.fits, self.available) {
            (Some(true), Some(available)) => {
                let leaving = match self.leaving {
                    0 => String::new(),
                    models => format!(", and {models} idle models make room"),
                };
                format!("{} {}{leaving}", style::on_stdout(style::GOOD, "fits:"), free(available))
            }
            (Some(false), Some(available)) => {
                let no = style::on_stdout(style::BAD, "does not fit:");
                format!("{no} {}; try {}", free(available), smaller(&self.options))
            }
            _ => "how much memory is free cannot be told on this system".to_owned(),
        }
    }
}

impl From<v1::PlanLine> for Line {
    fn from(line: v1::PlanLine) -> Self {
        let v1::PlanLine { name, region, lifetime, shape, bytes, .. } = line;
        Line { name, region, lifetime, shape, bytes }
    }
}

fn region_name(region: Region) -> &'static str {
    match region {
        Region::Weights => "weights",
        Region::Cache => "cache",
        Region::Work => "work",
        Region::Adapters => "adapters",
    }
}

/// What makes a run smaller and is not done yet.
fn smaller(options: &Told) -> String {
    let ways = [
        ("a shorter --context", true),
        ("--kv int8", options.kv != "int8"),
        ("--quantization int8", options.quantization.is_none()),
    ];
    let ways: Vec<&str> = ways.iter().filter(|(_, helps)| *helps).map(|(way, _)| *way).collect();
    ways.join(" or ")
}

fn as_json(needs: &Needs) -> Value {
    let lines = needs.lines.iter().map(|line| {
        json!({
            "name": line.name,
            "region": line.region,
            "lifetime": line.lifetime,
            "shape": line.shape,
            "bytes": line.bytes,
        })
    });
    let options = &needs.options;
    json!({
        "lines": lines.collect::<Vec<_>>(),
        "bytes": needs.bytes(),
        "weight_bytes": needs.weight_bytes,
        "cache_bytes": needs.cache_bytes,
        "work_bytes": needs.work_bytes,
        "adapter_bytes": needs.adapter_bytes,
        "bytes_per_token": needs.bytes_per_token,
        "generation_bytes": needs.generation_bytes,
        "available_bytes": needs.available,
        "cards": needs.cards.iter().map(|card| json!({
            "device": card.device,
            "bytes": card.bytes,
            "available_bytes": card.free,
        })).collect::<Vec<_>>(),
        "fits": needs.fits,
        "native": needs.native.as_ref().map(|(path, is_there)| json!({ "path": path, "is_there": is_there })),
        "options": {
            "context": options.context,
            "sequences": options.sequences,
            "chunk": options.chunk,
            "kv": options.kv,
            "precision": options.precision,
            "quantization": options.quantization,
            "head": options.head,
            "experts": options.experts,
        },
    })
}

fn as_text(needs: &Needs) -> String {
    let row = |cells: [&str; 5]| cells.map(|cell| output::harmless(cell).into_owned()).to_vec();
    let mut rows = vec![row(["buffer", "region", "lives a", "shape", "bytes"])];
    for line in needs.lines.iter().filter(|line| line.bytes > 0) {
        rows.push(row([&line.name, &line.region, &line.lifetime, &line.shape, &line.bytes.to_string()]));
    }
    for (name, bytes) in [
        ("weights", needs.weight_bytes),
        ("cache", needs.cache_bytes),
        ("work", needs.work_bytes),
        ("adapters", needs.adapter_bytes),
        ("all", needs.bytes()),
    ] {
        if name == "adapters" && bytes == 0 {
            continue;
        }
        rows.push(row([&format!("sum of {name}"), "", "", &output::bytes(bytes), &bytes.to_string()]));
    }
    let mapped = match &needs.native {
        Some((path, true)) => format!("the weights are mapped from {path}\n"),
        Some((path, false)) => format!("the weights are repacked, and kept in {path}\n"),
        None => String::new(),
    };
    let on_card = |card: &OnCard| {
        let takes =
            if card.bytes > 0 { format!("{} are taken, ", output::bytes(card.bytes)) } else { String::new() };
        let (device, free) = (output::harmless(&card.device), output::bytes(card.free));
        format!("\non {device}: {takes}{free} of the daemon's budget are free")
    };
    let cards: String = needs.cards.iter().map(on_card).collect();
    let Told { context, sequences, chunk, kv, precision, .. } = &needs.options;
    format!(
        "{}\ncontext {context}, {sequences} at once, chunks of {chunk}, keys and values {kv}, {precision} \
         precision\n\n{}\n\n{} of weights are read for every token\n\
         {} more on the heap for every generation (logits, sampler, history)\n{mapped}{}{cards}",
        needs.model,
        output::table(&rows, &[false, false, false, false, true]),
        output::bytes(needs.bytes_per_token),
        output::bytes(needs.generation_bytes),
        needs.verdict(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_machine_and_of_cards_is_not_added_up() {
        let bytes = |device: &str, weights, cache| v1::DeviceBytes {
            device: device.to_owned(),
            weight_bytes: weights,
            cache_bytes: cache,
            work_bytes: 1,
            generation_bytes: 2,
            total_bytes: weights + cache + 3,
            adapter_bytes: 0,
        };
        let of_use = |device: &str, budget_bytes, used_bytes| v1::DeviceUse {
            device: device.to_owned(),
            budget_bytes,
            used_bytes,
            ..v1::DeviceUse::default()
        };
        let line = |name: &str, device: &str| v1::PlanLine {
            name: name.to_owned(),
            device: device.to_owned(),
            bytes: 5,
            ..v1::PlanLine::default()
        };
        let needs = Needs::of_daemon(
            "m".to_owned(),
            v1::PlanResponse {
                lines: vec![line("here", "ram"), line("there", "cuda:0")],
                bytes: vec![bytes("ram", 100, 10), bytes("cuda:1", 70, 7)],
                devices: vec![
                    of_use("ram", 1 << 30, 1 << 20),
                    of_use("cuda:0", 4 << 30, 5 << 30),
                    of_use("cuda:1", 3 << 30, 1 << 30),
                ],
                fits: true,
                ..v1::PlanResponse::default()
            },
        );
        assert_eq!((needs.bytes(), needs.generation_bytes), (111, 2));
        assert_eq!(needs.available, Some((1 << 30) - (1 << 20)));
        assert_eq!(needs.lines.len(), 1);
        let told = as_json(&needs);
        assert_eq!(
            told["cards"][1],
            json!({ "device": "cuda:1", "bytes": 80, "available_bytes": 2u64 << 30 })
        );
        let shown = as_text(&needs);
        assert!(
            shown.contains("of memory are free\non cuda:0: 0 B of the daemon's budget are free"),
            "{shown}"
        );
        assert!(
            shown.contains("\non cuda:1: 80 B are taken, 2.00 GiB of the daemon's budget are free"),
            "{shown}"
        );
    }
}
