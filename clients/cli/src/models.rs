//! `bantam models`, `load`, `unload` and `budget`: what lives in a daemon's memory, from a shell.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bantam_daemon::carried;
use bantam_daemon::settings::{self, Flags, Surroundings};
use bantam_proto::v1;
use clap::Args;
use serde_json::{Value, json};

use crate::daemon::{DaemonPlace, Link, Step};
use crate::engine_flags::{ContextFlag, EngineFlags};
use crate::failure::{Failure, refused, usage};
use crate::output;

/// Main memory, as the daemon names it.
pub(crate) const RAM: &str = "ram";

/// Lists a daemon's models and memory
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam models\n  bantam models --json")]
pub(crate) struct Models {
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonPlace,
}

/// Loads a model into a daemon's memory
#[derive(Args)]
#[command(
    after_help = "Examples:\n  bantam load ./my-model\n  bantam load ./my-model --pin --context 8192 --slots 4"
)]
pub(crate) struct Load {
    /// Folder or file in Hugging Face form, or a name that the daemon knows; without it, the small model that bantam
    /// carries
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Keeps the model when others need room and when its time is over
    #[arg(long, conflicts_with = "unpin")]
    pin: bool,
    /// Takes that back
    #[arg(long)]
    unpin: bool,
    /// How long the model may stand idle, such as 90s, 10m or 2h; 0s is for ever
    #[arg(long, value_name = "SPAN", value_parser = span)]
    ttl: Option<Duration>,
    /// Sequences that can run at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    slots: Option<u32>,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    context: ContextFlag,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    daemon: DaemonPlace,
}

/// Takes a model out of a daemon's memory
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam unload ./my-model")]
pub(crate) struct Unload {
    /// The model as it was loaded, or its id; without it, the small model that bantam carries
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonPlace,
}

/// Shows or changes how much memory a daemon's models may take
#[derive(Args)]
#[command(
    after_help = "Examples:\n  bantam budget\n  bantam budget 6GiB\n  bantam budget 2GiB --device cuda:0"
)]
pub(crate) struct Budget {
    /// Bytes, such as 6GiB; without it, shows what holds. Models leave a card of which they may take 0
    #[arg(value_name = "SIZE", value_parser = some_or_no_bytes)]
    size: Option<u64>,
    /// Whose: ram, or a card such as cuda:0; models move off it and back without being loaded again
    #[arg(long, value_name = "DEVICE", default_value = RAM, requires = "size")]
    device: String,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonPlace,
}

/// Spans and sizes are spelled as in the daemon's settings, by the same parser.
fn span(text: &str) -> Result<Duration, String> {
    let told = setting("models.idle", text).map(|settings| settings.idle);
    told.ok_or_else(|| "expected a span from 1s to 24h, or 0s".to_owned())
}

pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    // The setting takes a share of the machine's memory too, and a message has no such thing.
    let told = setting("models.ram_budget", text).and_then(|settings| match settings.ram_budget {
        settings::Budget::Bytes(bytes) => Some(bytes).filter(|bytes| *bytes > 0),
        settings::Budget::Percent(_) => None,
    });
    told.ok_or_else(|| "expected bytes such as 6GiB".to_owned())
}

fn some_or_no_bytes(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

fn setting(name: &str, text: &str) -> Option<settings::Settings> {
    let flags = Flags { config: None, values: vec![(name.to_owned(), vec![text.to_owned()])] };
    settings::read(&flags, &Surroundings::default()).ok().map(|told| told.settings)
}

impl Models {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let link = self.daemon.need()?;
        let (models, devices) = all(&link)?;
        match self.json {
            true => Ok(output::json(&json!({
                "models": models.iter().map(model_json).collect::<Vec<_>>(),
                "devices": devices.iter().map(device_json).collect::<Vec<_>>(),
            }))?),
            false => {
                let mut rows =
                    vec![["model", "state", "bytes", "in use", "stays"].map(str::to_owned).to_vec()];
                rows.extend(models.iter().map(|model| {
                    let bytes = Some(bytes_of(model)).filter(|bytes| *bytes > 0).map(output::bytes);
                    let on_cards = on_cards(model).map(|(card, bytes)| {
                        format!("{} on {}", output::bytes(bytes), output::harmless(card))
                    });
                    let bytes: Vec<String> = bytes.into_iter().chain(on_cards).collect();
                    vec![
                        label(model),
                        state_name(model.state()).to_owned(),
                        bytes.join(", "),
                        Some(model.references).filter(|n| *n > 0).map(|n| n.to_string()).unwrap_or_default(),
                        stay(model),
                    ]
                }));
                let table = output::table(&rows, &[false, false, true, true, false]);
                let devices = devices.iter().map(device_line).collect::<Vec<_>>().join("\n");
                Ok(output::line(&format!("{table}\n\n{devices}"))?)
            }
        }
    }
}

impl Load {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let link = self.daemon.need()?;
        let mut options = self.engine.load_options(&self.context);
        options.slots = self.slots;
        options.pin = (self.pin || self.unpin).then_some(self.pin);
        options.ttl = self.ttl.and_then(|ttl| prost_types::Duration::try_from(ttl).ok());
        let name = link.model(self.model.as_deref());
        let shown = self.model.as_ref().map_or(carried::LABEL.to_owned(), |path| path.display().to_string());
        match link.load(&name, &shown, options)? {
            Step::Done(model) if self.json => Ok(output::json(&model_json(&model))?),
            Step::Done(model) => Ok(output::line(&format!(
                "{}: {}, {}",
                label(&model),
                output::bytes(bytes_of(&model)),
                stay(&model)
            ))?),
            Step::Without => Err(refused("the daemon did not load it")),
        }
    }
}

impl Unload {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let link = self.daemon.need()?;
        let request = v1::UnloadRequest { model: link.model(self.model.as_deref()) };
        let mut client = link.models();
        let answer = link.wait(client.unload(link.request(request)));
        let answer = answer.map_err(|status| link.failure(&status))?.into_inner();
        let freed: u64 = answer.freed.iter().map(|device| device.total_bytes).sum();
        let model = answer.model.unwrap_or_default();
        match self.json {
            true => Ok(output::json(&json!({ "model": model_json(&model), "freed_bytes": freed }))?),
            false => Ok(output::line(&format!("{}: {} are free", label(&model), output::bytes(freed)))?),
        }
    }
}

impl Budget {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let link = self.daemon.need()?;
        if self.size == Some(0) && self.device == RAM {
            return Err(usage("budget 0: models need some; unload those that are not needed"));
        }
        let budget = |bytes| v1::DeviceBudget { device: self.device.clone(), bytes };
        let request = v1::SetBudgetRequest { budgets: self.size.map(budget).into_iter().collect() };
        let mut client = link.models();
        let answer = link.wait(client.set_budget(link.request(request)));
        let devices = answer.map_err(|status| link.failure(&status))?.into_inner().devices;
        match self.json {
            true => {
                Ok(output::json(&json!({ "devices": devices.iter().map(device_json).collect::<Vec<_>>() }))?)
            }
            false => Ok(output::line(&devices.iter().map(device_line).collect::<Vec<_>>().join("\n"))?),
        }
    }
}

/// All models, and the devices.
fn all(link: &Link) -> Result<(Vec<v1::Model>, Vec<v1::DeviceUse>), Failure> {
    let mut client = link.models();
    let listed = link.wait(client.list(link.request(v1::ModelServiceListRequest::default())));
    let listed = listed.map_err(|status| link.failure(&status))?.into_inner();
    // Naming no budget changes none, and tells all.
    let told = link.wait(client.set_budget(link.request(v1::SetBudgetRequest::default())));
    Ok((listed.models, told.map_err(|status| link.failure(&status))?.into_inner().devices))
}

/// What people call a model.
pub(crate) fn label(model: &v1::Model) -> String {
    let name = match (model.name.as_str(), model.path.as_str()) {
        ("", "") => carried::LABEL,
        ("", path) => path,
        (name, _) => name,
    };
    output::harmless(name).into_owned()
}

pub(crate) fn state_name(state: v1::ModelState) -> &'static str {
    match state {
        v1::ModelState::Unspecified => "unknown",
        v1::ModelState::Absent => "absent",
        v1::ModelState::Waiting => "waiting",
        v1::ModelState::Loading => "loading",
        v1::ModelState::Resident => "resident",
        v1::ModelState::Leaving => "leaving",
    }
}

/// What it takes of main memory.
pub(crate) fn bytes_of(model: &v1::Model) -> u64 {
    model.bytes.iter().filter(|device| device.device == RAM).map(|device| device.total_bytes).sum()
}

/// What it takes of cards.
fn on_cards(model: &v1::Model) -> impl Iterator<Item = (&str, u64)> {
    let cards = model.bytes.iter().filter(|device| device.device != RAM);
    cards.map(|device| (device.device.as_str(), device.total_bytes))
}

fn ttl_seconds(model: &v1::Model) -> Option<i64> {
    model.options.as_ref()?.ttl.as_ref().map(|ttl| ttl.seconds).filter(|seconds| *seconds > 0)
}

pub(crate) fn is_pinned(model: &v1::Model) -> bool {
    model.options.as_ref().is_some_and(|options| options.pin())
}

/// How long it stays.
pub(crate) fn stay(model: &v1::Model) -> String {
    match (model.state(), is_pinned(model), ttl_seconds(model)) {
        (v1::ModelState::Absent, ..) => String::new(),
        (_, true, _) => "pinned".to_owned(),
        (_, false, Some(seconds)) if seconds % 3600 == 0 => format!("for {} h idle", seconds / 3600),
        (_, false, Some(seconds)) if seconds % 60 == 0 => format!("for {} min idle", seconds / 60),
        (_, false, Some(seconds)) => format!("for {seconds} s idle"),
        (_, false, None) => "until others need room".to_owned(),
    }
}

pub(crate) fn model_json(model: &v1::Model) -> Value {
    json!({
        "id": model.id,
        "name": model.name,
        "path": model.path,
        "state": state_name(model.state()),
        "bytes": bytes_of(model),
        "on_cards": on_cards(model).collect::<BTreeMap<_, _>>(),
        "pinned": is_pinned(model),
        "ttl_seconds": ttl_seconds(model),
        "references": model.references,
        "adapters": model.adapters.iter().map(|adapter| json!({
            "name": adapter.name,
            "bytes": adapter.bytes,
            "references": adapter.references,
        })).collect::<Vec<_>>(),
        "context": model.options.as_ref().and_then(|options| options.context),
        "slots": model.options.as_ref().and_then(|options| options.slots),
        "native": model.native,
        "can_chat": model.can_chat,
    })
}

pub(crate) fn device_json(device: &v1::DeviceUse) -> Value {
    json!({
        "device": device.device,
        "budget_bytes": device.budget_bytes,
        "used_bytes": device.used_bytes,
        "pinned_bytes": device.pinned_bytes,
        "referenced_bytes": device.referenced_bytes,
    })
}

fn device_line(device: &v1::DeviceUse) -> String {
    let bytes = output::bytes;
    let (used, budget, pinned) =
        (bytes(device.used_bytes), bytes(device.budget_bytes), bytes(device.pinned_bytes));
    format!("{}: {used} of {budget} in use, {pinned} pinned", output::harmless(&device.device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_those_of_the_settings() {
        assert_eq!((span("10m"), span("0s")), (Ok(Duration::from_secs(600)), Ok(Duration::ZERO)));
        assert_eq!(bytes("6GiB"), Ok(6 << 30));
        assert!(span("soon").is_err() && bytes("75%").is_err() && bytes("0B").is_err());
    }
}
