//! What `top` knows of a daemon: events in, lines out. No terminal and no clock.

use std::collections::{BTreeMap, VecDeque};

use bantam_proto::v1;
use bantam_proto::v1::watch_residency_response::Event;
use serde_json::{Value, json};

use crate::models::{bytes_of, device_json, label, model_json, state_name, stay};
use crate::{output, style};

/// Events that are remembered.
const EVENTS_MAX: usize = 200;
/// Characters of a budget's bar.
const BAR: usize = 30;
/// Lines besides models and events: two headings, an empty line, the keys.
const OTHER_LINES: usize = 5;

/// A daemon, as far as it has told.
#[derive(Debug, Default)]
pub(super) struct View {
    /// By handle; handles are given in the order in which models come.
    models: BTreeMap<String, v1::Model>,
    figures: BTreeMap<String, v1::ModelFigures>,
    devices: Vec<v1::DeviceUse>,
    events: VecDeque<String>,
    sequence: u64,
    figures_seen: usize,
    chosen: usize,
}

impl View {
    /// Takes what the daemon tells.
    pub(super) fn apply(&mut self, message: v1::WatchResidencyResponse) {
        self.sequence = message.sequence;
        let at = message.time.map(|time| clock(time.seconds)).unwrap_or_default();
        let words = match message.event {
            Some(Event::Snapshot(snapshot)) => {
                self.models = snapshot.models.into_iter().map(|model| (model.id.clone(), model)).collect();
                self.devices = snapshot.devices;
                None
            }
            Some(Event::Figures(figures)) => {
                self.figures_seen += 1;
                self.devices = figures.devices;
                self.figures = figures.models.into_iter().map(|of| (of.model_id.clone(), of)).collect();
                None
            }
            Some(Event::Loading(event)) => event.model.map(|model| self.put(model, "is being loaded", "")),
            Some(Event::Loaded(event)) => {
                let took =
                    event.duration.map(|span| format!(" in {}.{} s", span.seconds, span.nanos / 100_000_000));
                event.model.map(|model| self.put(model, "is loaded", &took.unwrap_or_default()))
            }
            Some(Event::Failed(event)) => {
                Some(self.left(&event.model_id, &format!("was not loaded: {}", event.reason)))
            }
            Some(Event::Evicted(event)) => {
                let freed: u64 = event.freed.iter().map(|device| device.total_bytes).sum();
                let why = reason(event.reason());
                Some(self.left(&event.model_id, &format!("left, {why}: {} are free", output::bytes(freed))))
            }
            Some(Event::Hit(event)) if event.resident => None,
            Some(Event::Hit(event)) => {
                Some(format!("{} was asked for and is not there", self.label(&event.model_id)))
            }
            Some(Event::Moved(event)) => {
                let (label, bytes) = (self.label(&event.model_id), output::bytes(event.bytes));
                Some(format!("{label}: {bytes} from {} to {}", event.source, event.target))
            }
            Some(Event::Pinned(event)) => {
                if let Some(options) =
                    self.models.get_mut(&event.model_id).and_then(|model| model.options.as_mut())
                {
                    options.pin = Some(event.pinned);
                }
                let what = if event.pinned { "is pinned" } else { "is no longer pinned" };
                Some(format!("{} {what}", self.label(&event.model_id)))
            }
            Some(Event::Budget(event)) => {
                self.devices = event.devices;
                Some("the budget was changed".to_owned())
            }
            Some(Event::Lost(event)) => Some(format!("{} events were missed", event.events)),
            None => None,
        };
        if let Some(words) = words {
            self.note(format!("{at} {words}"));
        }
    }

    /// Adds a line to the events.
    pub(super) fn note(&mut self, words: String) {
        self.events.push_front(output::harmless(&words.replace('\n', " ")).into_owned());
        self.events.truncate(EVENTS_MAX);
    }

    pub(super) fn figures_seen(&self) -> usize {
        self.figures_seen
    }

    fn put(&mut self, model: v1::Model, what: &str, more: &str) -> String {
        let words = format!("{} {what}{more}, {}", label(&model), output::bytes(bytes_of(&model)));
        self.models.insert(model.id.clone(), model);
        words
    }

    /// The model is not there, or no longer.
    fn left(&mut self, id: &str, what: &str) -> String {
        let words = format!("{} {what}", self.label(id));
        if let Some(model) = self.models.get_mut(id) {
            model.set_state(v1::ModelState::Absent);
            model.bytes.clear();
            model.references = 0;
        }
        words
    }

    fn label(&self, id: &str) -> String {
        self.models.get(id).map_or_else(|| id.to_owned(), label)
    }

    /// The models in the order in which they are shown: those in memory first.
    fn shown(&self) -> Vec<&v1::Model> {
        let mut models: Vec<_> = self.models.values().collect();
        models.sort_by_key(|model| (model.state() == v1::ModelState::Absent, label(model)));
        models
    }

    /// Moves the choice up or down.
    pub(super) fn choose(&mut self, by: isize) {
        self.chosen = self.chosen.saturating_add_signed(by).min(self.models.len().saturating_sub(1));
    }

    pub(super) fn chosen(&self) -> Option<&v1::Model> {
        self.shown().get(self.chosen.min(self.models.len().saturating_sub(1))).copied()
    }

    /// Everything as lines of a width, as many as there is room for.
    pub(super) fn lines(&self, width: usize, height: usize, with_keys: bool) -> Vec<String> {
        let mut lines: Vec<String> = self.devices.iter().map(|device| cut(&bar(device), width)).collect();
        let models = self.table(with_keys);
        let room = height.saturating_sub(lines.len() + OTHER_LINES);
        lines.push(String::new());
        let heading = models.first().cloned().unwrap_or_default();
        lines.push(style::on_stdout(style::HEADING, &cut(&heading, width)));
        // The chosen model stays in sight; a third of the room belongs to the events.
        let most = (room - room / 3).max(1);
        let first = self.chosen.saturating_sub(most - 1).min(self.models.len().saturating_sub(most));
        for (at, row) in models.iter().skip(1).enumerate().skip(first).take(most) {
            let row = cut(row, width);
            let is_faint = self.shown()[at].state() == v1::ModelState::Absent;
            lines.push(if is_faint { style::on_stdout(style::FAINT, &row) } else { row });
        }
        let events = height.saturating_sub(lines.len() + if with_keys { 3 } else { 2 });
        if !self.events.is_empty() && events > 0 {
            lines.push(String::new());
            lines.extend(self.events.iter().take(events).map(|event| cut(event, width)));
        }
        if with_keys {
            lines.push(String::new());
            lines.push(style::on_stdout(style::FAINT, &cut("up/down choose  p pin  u unload  q end", width)));
        }
        lines
    }

    fn table(&self, with_choice: bool) -> Vec<String> {
        let heading =
            ["", "model", "state", "bytes", "running", "waiting", "paused", "tokens/s", "cache", "stays"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        let chosen = self.chosen().map(|model| model.id.clone());
        for model in self.shown() {
            let bytes = Some(bytes_of(model)).filter(|bytes| *bytes > 0).map(output::bytes);
            let mut row = vec![
                if with_choice && chosen.as_ref() == Some(&model.id) { ">" } else { "" }.to_owned(),
                label(model),
                state_name(model.state()).to_owned(),
                bytes.unwrap_or_default(),
            ];
            row.extend(match self.figures.get(&model.id) {
                Some(figures) => [
                    format!("{}/{}", figures.running, figures.slots),
                    figures.waiting.to_string(),
                    figures.paused.to_string(),
                    format!("{:.1}", figures.tokens_per_second),
                    format!("{} %", figures.cache_positions_used * 100 / figures.cache_positions.max(1)),
                ],
                None => Default::default(),
            });
            row.push(stay(model));
            rows.push(row);
        }
        let right = [false, false, false, true, true, true, true, true, true, false];
        let table = output::table(&rows, &right);
        table.lines().map(str::to_owned).collect()
    }

    /// Everything for scripts.
    pub(super) fn json(&self) -> Value {
        let models = self.shown().into_iter().map(|model| {
            let mut object = model_json(model);
            object["figures"] = self.figures.get(&model.id).map_or(Value::Null, figures_json);
            object
        });
        json!({
            "models": models.collect::<Vec<_>>(),
            "devices": self.devices.iter().map(device_json).collect::<Vec<_>>(),
            "sequence": self.sequence,
        })
    }
}

fn figures_json(figures: &v1::ModelFigures) -> Value {
    json!({
        "running": figures.running,
        "waiting": figures.waiting,
        "paused": figures.paused,
        "resting": figures.resting,
        "slots": figures.slots,
        "cache_positions_used": figures.cache_positions_used,
        "cache_positions": figures.cache_positions,
        "prompt_tokens": figures.prompt_tokens,
        "cached_tokens": figures.cached_tokens,
        "new_tokens": figures.new_tokens,
        "steps": figures.steps,
        "tokens_per_second": figures.tokens_per_second,
    })
}

fn reason(reason: v1::LeaveReason) -> &'static str {
    match reason {
        v1::LeaveReason::Unspecified => "for a reason unknown here",
        v1::LeaveReason::Room => "others needed room",
        v1::LeaveReason::Ttl => "its time was over",
        v1::LeaveReason::Asked => "as somebody asked",
        v1::LeaveReason::Budget => "the budget shrank",
        v1::LeaveReason::Fault => "its memory or file broke",
        v1::LeaveReason::Shutdown => "the daemon ends",
    }
}

/// `ram [####----] 1.00 GiB of 2.00 GiB, 0 B pinned`
fn bar(device: &v1::DeviceUse) -> String {
    let part = |bytes: u64| {
        (bytes.min(device.budget_bytes) as u128 * BAR as u128 / u128::from(device.budget_bytes.max(1)))
            as usize
    };
    let pinned = part(device.pinned_bytes.min(device.used_bytes));
    let used = part(device.used_bytes).max(pinned);
    let bar = "#".repeat(pinned) + &"=".repeat(used - pinned) + &"-".repeat(BAR - used);
    let bytes = output::bytes;
    format!(
        "{} [{bar}] {} of {}, {} pinned",
        output::harmless(&device.device),
        bytes(device.used_bytes),
        bytes(device.budget_bytes),
        bytes(device.pinned_bytes)
    )
}

/// The time of day, in UTC: the daemon may live in another zone.
fn clock(seconds: i64) -> String {
    let second = seconds.rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

fn cut(line: &str, width: usize) -> String {
    line.chars().take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, name: &str) -> v1::Model {
        let bytes =
            vec![v1::DeviceBytes { device: "ram".to_owned(), total_bytes: 1 << 30, ..Default::default() }];
        let (id, name, options) = (id.to_owned(), name.to_owned(), Some(v1::LoadOptions::default()));
        v1::Model { id, name, bytes, options, state: v1::ModelState::Resident.into(), ..v1::Model::default() }
    }

    fn tell(view: &mut View, event: Event) {
        let time = Some(prost_types::Timestamp { seconds: 3_661, nanos: 0 });
        view.apply(v1::WatchResidencyResponse { time, sequence: 7, event: Some(event) });
    }

    fn device() -> v1::DeviceUse {
        let (budget_bytes, used_bytes, pinned_bytes) = (4 << 30, 2 << 30, 1 << 30);
        v1::DeviceUse {
            device: "ram".to_owned(),
            budget_bytes,
            used_bytes,
            pinned_bytes,
            referenced_bytes: 0,
        }
    }

    fn seen() -> View {
        anstream::ColorChoice::Never.write_global();
        let mut view = View::default();
        let models = vec![model("1", "b\x1b[2J"), model("2", "a")];
        tell(&mut view, Event::Snapshot(v1::ResidencySnapshot { models, devices: vec![device()] }));
        let figures =
            v1::ModelFigures { model_id: "2".to_owned(), running: 3, slots: 8, ..Default::default() };
        tell(&mut view, Event::Figures(v1::Figures { models: vec![figures], devices: vec![device()] }));
        view
    }

    #[test]
    fn events_change_what_is_shown() {
        let mut view = seen();
        let text = view.lines(100, 40, true).join("\n");
        assert!(
            text.starts_with("ram [#######========---------------] 2.00 GiB of 4.00 GiB, 1.00 GiB pinned"),
            "{text}"
        );
        assert!(text.contains("> ") && text.contains("3/8") && !text.contains('\x1b'), "{text}");
        view.choose(5);
        assert_eq!(view.chosen().map(|model| model.id.as_str()), Some("1"));
        view.choose(-9);
        assert_eq!(view.chosen().map(|model| model.id.as_str()), Some("2"));
        tell(&mut view, Event::Pinned(v1::ModelPinned { model_id: "2".to_owned(), pinned: true }));
        assert!(view.lines(100, 40, true).join("\n").contains("pinned\n"), "{view:?}");
        let reason = v1::LeaveReason::Ttl.into();
        let (model_id, freed) = ("2".to_owned(), model("2", "a").bytes);
        tell(&mut view, Event::Evicted(v1::ModelEvicted { model_id, reason, freed }));
        let text = view.lines(100, 40, false).join("\n");
        assert!(text.contains("01:01:01Z a left, its time was over: 1.00 GiB are free"), "{text}");
        assert!(text.contains("absent") && !text.contains("> a"), "{text}");
        let found = view.json();
        assert_eq!((&found["models"][0]["id"], &found["sequence"]), (&"1".into(), &7.into()));
        assert_eq!(found["models"][1]["figures"]["running"], 3);
    }

    #[test]
    fn lines_fit_the_terminal() {
        let mut view = seen();
        for id in 10..60 {
            let model = Some(model(&id.to_string(), &format!("m{id}")));
            tell(&mut view, Event::Loading(v1::ModelLoading { model }));
        }
        for (width, height) in [(40, 12), (80, 24), (10, 8), (200, 200)] {
            let lines = view.lines(width, height, true);
            assert!(lines.len() <= height, "{} lines of {height}", lines.len());
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:?}");
        }
    }
}
