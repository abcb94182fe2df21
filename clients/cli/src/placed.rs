//! `bantam plan --machine`: what of a model stands where on a machine that is described, and how fast it will be.

use bantam_daemon::cards::Device;
use bantam_model::card::{CARDS_MOST, Manner};
use bantam_model::engine;
use bantam_model::placement::{
    Forecast, MACHINES, Machine, POSITIONS_READ, Parts, Prefill, Question, Stand, THIS, Trace, stands,
};
use bantam_model::plan::Plan;
use bantam_model::spec::ModelSpec;
use clap::Args;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, refused, usage};
use crate::{device_flags, models, output, style, this_machine};

/// What is asked once more.
const MORE_BYTES: u64 = 512 << 20;
/// Longer traces tell no more.
const TRACE_BYTES_MAX: u64 = 256 << 20;

/// A machine that need not be this one.
#[derive(Args)]
#[command(next_help_heading = "Placement")]
pub(crate) struct PlacementFlags {
    /// Shows what stands where on a described machine, or on `this` one as it is measured once, and how fast it is
    /// expected to be; `list` names those that are described [default: this where a card is found]
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// Its VRAM, such as 4GiB, or 4GiB,8GiB of two such cards [without --machine: of the first that is described]
    #[arg(long, value_name = "BYTES", value_parser = models::bytes, value_delimiter = ',')]
    vram: Vec<u64>,
    /// Its main memory, such as 24GiB
    #[arg(long, value_name = "BYTES", value_parser = models::bytes)]
    ram: Option<u64>,
    /// A recorded trace of routing; without it all experts are equally probable
    #[arg(long, value_name = "FILE")]
    routing: Option<PathBuf>,
}

/// A model on a machine.
pub(crate) struct Placed {
    model: String,
    machine: Machine,
    parts: Parts,
    forecasts: Vec<Forecast>,
    auto: Forecast,
    more: Option<f64>,
    /// Bytes of every card, and tokens per second with the first, the first two and so on.
    cards: Vec<(u64, f64)>,
    prefill: Prefill,
    plan: Plan,
    is_traced: bool,
}

impl PlacementFlags {
    /// The names of all machines, where they were asked for.
    pub(crate) fn list(&self) -> Option<String> {
        let row = |machine: &Machine| vec![machine.name.to_owned(), machine.about.to_owned()];
        let rows: Vec<Vec<String>> = MACHINES.iter().map(row).collect();
        let this = vec![THIS.to_owned(), "this machine, measured once".to_owned()];
        let rows: Vec<Vec<String>> = rows.into_iter().chain([this]).collect();
        (self.machine.as_deref() == Some("list")).then(|| output::table(&rows, &[false, false]))
    }

    /// Whether a placement is wanted at all.
    pub(crate) fn is_asked(&self) -> bool {
        self.machine.is_some() || !self.vram.is_empty() || self.ram.is_some() || self.routing.is_some()
    }

    /// Whether that machine has a card.
    pub(crate) fn has_card(&self) -> bool {
        match self.machine.as_deref() {
            Some(THIS) => Device::Auto.is_there(),
            Some(name) => Machine::named(name).is_some_and(|machine| machine.card.is_some()),
            None => true,
        }
    }

    /// Of this one's card, the kernels that a layer of the plan runs count.
    fn machine(&self, plan: &Plan) -> Result<Machine, Failure> {
        let this = || this_machine::machine(plan.calls_per_layer());
        let mut machine = match self.machine.as_deref() {
            Some(THIS) => this()?,
            None if Device::Auto.is_there() => this()?,
            None => MACHINES[0],
            Some(name) => Machine::named(name).ok_or_else(|| {
                usage(format!("--machine {name}: not a machine that is described; see --machine list"))
            })?,
        };
        if !self.vram.is_empty() {
            if self.vram.len() > CARDS_MOST {
                let found = self.vram.len();
                return Err(usage(format!(
                    "--vram: expected at most {CARDS_MOST} cards, found {found}; leave some out"
                )));
            }
            if machine.card.is_none() {
                let name = machine.name;
                return Err(usage(format!("--vram: {name} has no card; choose another of --machine list")));
            }
            machine = machine.with_cards(&self.vram);
        }
        machine.ram_bytes = self.ram.unwrap_or(machine.ram_bytes);
        Ok(machine)
    }

    /// Places a model that is planned.
    pub(crate) fn place(&self, model: String, spec: &ModelSpec, plan: Plan) -> Result<Placed, Failure> {
        let (machine, parts) = (self.machine(&plan)?, Parts::new(spec, &plan));
        let trace = self.routing.as_deref().map(|path| trace_of(path, spec)).transpose()?;
        let question = Question { parts: &parts, machine: &machine, trace: trace.as_ref() };
        let auto = question.auto();
        let vram = if self.vram.is_empty() {
            machine.card.iter().map(|card| card.vram_bytes).collect()
        } else {
            self.vram.clone()
        };
        let cards = vram.iter().enumerate().map(|(at, &bytes)| {
            let machine = machine.with_cards(&vram[..=at]);
            (bytes, 1.0 / Question { machine: &machine, ..question }.auto().seconds)
        });
        let more = machine.card.map(|card| {
            let machine = machine.with_vram(card.vram_bytes.saturating_add(MORE_BYTES));
            1.0 / Question { machine: &machine, ..question }.auto().seconds
        });
        Ok(Placed {
            model,
            forecasts: question.forecasts(),
            prefill: question.prefill(&auto, plan.options.chunk),
            cards: cards.collect(),
            machine,
            more,
            auto,
            plan,
            is_traced: trace.is_some(),
            parts,
        })
    }
}

/// A trace of the model's own routing.
fn trace_of(path: &Path, spec: &ModelSpec) -> Result<Trace, Failure> {
    let expected = "a routing trace";
    let failed = |source| Failure::Read { path: path.to_owned(), expected, source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(TRACE_BYTES_MAX).read_to_end(&mut bytes)).map_err(failed)?;
    let trace = Trace::parse(&bytes).map_err(|error| refused(format!("{}: {error}", path.display())))?;
    let choices = spec.layers.iter().filter_map(|layer| layer.mlp.experts).map(|experts| experts.choice);
    let (layers, choice) = (choices.clone().count(), choices.clone().next());
    let routes = trace.routes;
    let fits = choice.is_some_and(|choice| {
        let found = (usize::from(routes.layers), usize::from(routes.experts), usize::from(routes.chosen));
        found == (layers, choice.experts, choice.chosen)
    });
    let choice = choice.map_or("no experts".to_owned(), |choice| {
        format!("{layers} layers that choose {} of {}", choice.chosen, choice.experts)
    });
    match fits {
        true => Ok(trace),
        false => Err(refused(format!(
            "{}: expected routing of this model, {choice}, found {} layers that choose {} of {}: record it with this \
             model",
            path.display(),
            routes.layers,
            routes.chosen,
            routes.experts
        ))),
    }
}

impl Placed {
    fn stands(&self) -> Vec<Stand> {
        stands(&self.parts, &self.auto, &self.machine)
    }

    pub(crate) fn as_json(&self) -> Value {
        let stand = |stand: Stand| {
            let Stand { name, vram, ram, how } = stand;
            json!({ "name": name, "vram_bytes": vram, "ram_bytes": ram, "how": how })
        };
        let policies = self.forecasts.iter().map(|forecast| {
            json!({
                "name": forecast.policy.name(),
                "tokens_per_s": 1.0 / forecast.seconds,
                "vram_bytes": forecast.vram,
                "ram_bytes": forecast.ram,
                "uploads_per_token": forecast.uploads,
                "fits": forecast.fits,
            })
        });
        let (card, prefill) = (self.machine.card, &self.prefill);
        json!({
            "model": self.model,
            "machine": {
                "name": self.machine.name,
                "measured": self.is_measured(),
                "vram_bytes": card.map(|card| card.vram_bytes),
                "cards": self.cards.iter().map(|(bytes, _)| bytes).collect::<Vec<_>>(),
                "ram_bytes": self.machine.ram_bytes,
                "ram_bytes_per_s": self.machine.read,
                "vram_bytes_per_s": card.map(|card| card.read),
                "upload_bytes_per_s": card.map(|card| card.upload),
                "exchange_s": card.map(|card| card.exchange),
            },
            "positions": self.positions(),
            "stands": self.stands().into_iter().map(stand).collect::<Vec<_>>(),
            "policies": policies.collect::<Vec<_>>(),
            "on_card": self.on_card().as_ref().map(device_flags::as_json),
            "by_cards": self.cards.iter().map(|(_, rate)| rate).collect::<Vec<_>>(),
            "auto": self.auto.policy.name(),
            "fits": self.auto.fits,
            "tokens_per_s": 1.0 / self.auto.seconds,
            "more_vram": self.more.map(|rate| json!({ "bytes": MORE_BYTES, "tokens_per_s": rate })),
            "prefill": {
                "tokens": prefill.tokens,
                "tokens_per_s": prefill.rate(),
                "streamed": prefill.is_streamed,
                "streams_from_tokens": prefill.streams_from,
            },
        })
    }

    fn positions(&self) -> usize {
        self.plan.options.context.min(POSITIONS_READ)
    }

    /// What the engine itself would put on those cards.
    fn on_card(&self) -> Option<engine::Placed> {
        let labels: Vec<String> = (0..self.cards.len()).map(|at| format!("cuda:{at}")).collect();
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let cards: Vec<(&str, usize)> =
            labels.iter().zip(&self.cards).map(|(label, card)| (label.as_str(), bytes(card.0))).collect();
        engine::Placed::forecast_on(&self.plan, &cards, Manner::default())
    }

    /// Card by card, where there are several.
    fn cards_told(&self, placed: &engine::Placed) -> String {
        let portion = |portion: &engine::Portion| {
            let engine::Portion { card: [label, _], bytes, layers, .. } = portion;
            let bytes = output::bytes(*bytes as u64);
            format!("  {label}: {bytes} for layers {} to {}\n", layers.start + 1, layers.end)
        };
        let rate = |(at, (_, rate)): (usize, &(u64, f64))| format!("{rate:.2} with {}", at + 1);
        let rates: Vec<String> = self.cards.iter().enumerate().map(rate).collect();
        let portions: String = placed.each.iter().map(portion).collect();
        format!("{portions}tokens/s by the number of cards: {}\n", rates.join(", "))
    }

    fn on_card_told(&self) -> String {
        let Some(placed) = self.on_card().filter(|_| self.cards.len() > 1) else { return self.on_one_told() };
        let numbers: Vec<String> = (0..self.cards.len()).map(|at| at.to_string()).collect();
        let what = if placed.is_whole { "all of it".to_owned() } else { device_flags::shares(&placed) };
        format!(
            "`--device cuda:{}` computes on cards: {what}\n{}",
            numbers.join(","),
            self.cards_told(&placed)
        )
    }

    fn on_one_told(&self) -> String {
        match self.on_card() {
            Some(placed) if placed.is_whole => {
                let kept = match placed.kept_bytes {
                    0 => String::new(),
                    bytes => format!("; up to {} for graphs of a reply's step", output::bytes(bytes as u64)),
                };
                format!("`--device cuda` computes all of it on the card{kept}\n")
            }
            Some(placed) => {
                let ring = match placed.ring_bytes {
                    0 => String::new(),
                    bytes => format!(
                        "; up to {} on either side for weights that pass through",
                        output::bytes(bytes as u64)
                    ),
                };
                format!("`--device cuda` computes on the card: {}{ring}\n", device_flags::shares(&placed))
            }
            None => String::new(),
        }
    }

    pub(crate) fn as_text(&self) -> String {
        let faint = |text: &str| style::on_stdout(style::FAINT, text);
        format!(
            "{} on {}: {}\n{}\n\n{}\n\n{}\n\n{}{}{}\n{}",
            output::harmless(&self.model),
            self.machine.name,
            self.machine.about,
            self.memories(),
            self.table(),
            self.policies(),
            self.on_card_told(),
            if self.auto.fits { self.more_told() } else { String::new() },
            if self.auto.fits { self.prefill_told() } else { self.lacking() },
            faint(&self.source()),
        )
    }

    fn is_measured(&self) -> bool {
        self.machine.name == THIS
    }

    /// Where the speeds come from.
    fn source(&self) -> String {
        let machine = match self.is_measured() {
            true => "expected from what this machine was measured to do",
            false => "expected for a machine that is described, and not measured",
        };
        match self.is_traced || self.parts.experts() == 0 {
            true => machine.to_owned(),
            false => format!("{machine}; all experts are taken as equally probable"),
        }
    }

    fn memories(&self) -> String {
        let kept = |kept, what: &str| match kept {
            0 => String::new(),
            kept => format!(", of which {} are {what}", output::bytes(kept)),
        };
        let vram = self.machine.card.map_or("no VRAM".to_owned(), |card| {
            let kept = kept(card.reserved_bytes, "the driver's");
            format!("{} of VRAM{kept}", output::bytes(card.vram_bytes))
        });
        let ram = output::bytes(self.machine.ram_bytes);
        format!("{vram}; {ram} of RAM{}", kept(self.machine.reserved_bytes, "other programs'"))
    }

    fn table(&self) -> String {
        let mut rows = vec![["what", "VRAM", "RAM", "how"].map(str::to_owned).to_vec()];
        let row = |name: &str, vram: u64, ram: u64, how: String| {
            let cell = |bytes: u64| if bytes == 0 { "-".to_owned() } else { output::bytes(bytes) };
            vec![name.to_owned(), cell(vram), cell(ram), how]
        };
        let stands = self.stands().into_iter().filter(|stand| stand.vram + stand.ram > 0);
        rows.extend(stands.map(|stand| row(stand.name, stand.vram, stand.ram, stand.how)));
        rows.push(row("all", self.auto.vram, self.auto.ram, String::new()));
        output::table(&rows, &[false, true, true, false])
    }

    fn policies(&self) -> String {
        let mut rows = vec![["policy", "tokens/s", "VRAM", "RAM", ""].map(str::to_owned).to_vec()];
        rows.extend(self.forecasts.iter().map(|forecast| {
            let is_auto = forecast.policy == self.auto.policy;
            let note = match (is_auto, forecast.fits) {
                (_, false) => "does not fit into RAM",
                (true, true) => "<- auto",
                (false, true) => "",
            };
            let about = format!("{}  {note}", forecast.policy.about());
            let name = forecast.policy.name().to_owned();
            let rate = format!("{:.2}", 1.0 / forecast.seconds);
            vec![name, rate, output::bytes(forecast.vram), output::bytes(forecast.ram), about]
        }));
        format!(
            "{}\n(one sequence, after {} tokens)",
            output::table(&rows, &[false, true, true, true, false]),
            self.positions()
        )
    }

    fn lacking(&self) -> String {
        let (needed, free) = (output::bytes(self.auto.ram), output::bytes(self.machine.free_ram()));
        let no = style::on_stdout(style::BAD, "does not fit:");
        format!(
            "{no} {needed} of RAM are needed, {free} are free; try --quantization, --kv int8 or a shorter --context"
        )
    }

    fn more_told(&self) -> String {
        let Some(more) = self.more else { return String::new() };
        let now = 1.0 / self.auto.seconds;
        let bytes = output::bytes(MORE_BYTES);
        match more > now * 1.001 {
            true => format!("{bytes} more VRAM: {more:.2} tokens/s instead of {now:.2}\n"),
            false => format!("{bytes} more VRAM would buy nothing\n"),
        }
    }

    fn prefill_told(&self) -> String {
        let Prefill { tokens, streams_from, .. } = self.prefill;
        let from = match streams_from {
            Some(from) => format!("; weights pass through the card from {from} tokens on"),
            None => String::new(),
        };
        format!("prompts, {tokens} tokens at a time: {:.0} tokens/s{from}", self.prefill.rate())
    }
}
