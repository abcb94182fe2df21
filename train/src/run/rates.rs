//! How rates change over a run, by the settings: `lr_scheduler_type` with `lr_scheduler_kwargs`, whose names are those
//! of the arguments of transformers' schedules, and the warmup.

use bantam_model::foreign::clipped;

use crate::optimizer::schedule::{Bend, Schedule, Shape, Stages};
use crate::settings::{Settings, number};

const KWARGS: &str = "lr_scheduler_kwargs";
/// The end of a polynomial, where nobody says anything.
const RATE_LEAST: f64 = 1e-7;

/// What an argument may be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum May {
    /// A number in a range, both ends included.
    Number(f64, f64),
    /// A whole number of steps.
    Steps,
    /// The form of a way up or down.
    Bend,
}

const WAVES: (&str, May) = ("num_cycles", May::Number(0.0, 1e6));
const RATE: May = May::Number(0.0, f64::MAX);
const SHARE: May = May::Number(0.0, 1.0);

/// What each schedule can be told.
const ARGUMENTS: &[(&str, &[(&str, May)])] = &[
    ("cosine", &[WAVES]),
    ("cosine_with_restarts", &[WAVES]),
    ("polynomial", &[("lr_end", RATE), ("power", May::Number(0.0, 1e3))]),
    ("cosine_with_min_lr", &[WAVES, ("min_lr", RATE), ("min_lr_rate", SHARE)]),
    (
        "cosine_warmup_with_min_lr",
        &[WAVES, ("min_lr", RATE), ("min_lr_rate", SHARE), ("warmup_lr_rate", SHARE)],
    ),
    (
        "warmup_stable_decay",
        &[
            ("num_stable_steps", May::Steps),
            ("num_decay_steps", May::Steps),
            ("warmup_type", May::Bend),
            ("decay_type", May::Bend),
            ("min_lr_ratio", SHARE),
            WAVES,
        ],
    ),
];

const BENDS: &[(&str, Bend)] = &[("linear", Bend::Linear), ("cosine", Bend::Cosine), ("1-sqrt", Bend::Root)];

/// A schedule's own arguments, as they were given.
struct Given {
    entries: Vec<(String, String)>,
}

impl Given {
    fn new(settings: &Settings) -> Given {
        Given { entries: settings.table(KWARGS).unwrap_or_default() }
    }

    /// The last one wins, as in JSON.
    fn text(&self, name: &str) -> Option<&str> {
        self.entries.iter().rev().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.text(name).and_then(number)
    }

    fn steps(&self, name: &str) -> Option<u64> {
        self.number(name).map(|steps| steps as u64)
    }

    fn bend(&self, name: &str) -> Option<Bend> {
        let text = self.text(name)?;
        BENDS.iter().find(|(known, _)| *known == text).map(|(_, bend)| *bend)
    }
}

fn kind(settings: &Settings) -> String {
    settings.text("lr_scheduler_type").unwrap_or_default()
}

fn rate(settings: &Settings) -> f64 {
    settings.number("learning_rate").unwrap_or_default()
}

/// What a schedule cannot be told, and what it must be told.
pub(super) fn complaints(settings: &Settings) -> Vec<(&'static str, String)> {
    let (kind, given, rate) = (kind(settings), Given::new(settings), rate(settings));
    let arguments = ARGUMENTS.iter().find(|(name, _)| *name == kind).map_or(&[][..], |(_, of)| *of);
    let mut found = Vec::new();
    for (name, text) in &given.entries {
        found.extend(wrong(&kind, arguments, name, text));
    }
    if kind == "polynomial" {
        let end = given.number("lr_end").unwrap_or(RATE_LEAST);
        if end >= rate && rate > 0.0 {
            found.push(format!("expected lr_end below learning_rate ({rate}), found {end}; lower it"));
        }
    }
    if kind.ends_with("_with_min_lr") {
        match (given.text("min_lr").is_some(), given.text("min_lr_rate").is_some()) {
            (true, true) => {
                found.push("min_lr and min_lr_rate cannot stand together; leave one out".to_owned())
            }
            (false, false) => found.push(format!(
                "expected min_lr or min_lr_rate for {kind}, found neither; write {{min_lr_rate: 0.1}}"
            )),
            _ => {}
        }
        if let Some(least) = given.number("min_lr").filter(|least| *least > rate) {
            found.push(format!("expected min_lr of at most learning_rate ({rate}), found {least}; lower it"));
        }
    }
    found.into_iter().map(|words| (KWARGS, words)).collect()
}

/// What is wrong with an argument.
fn wrong(kind: &str, arguments: &[(&str, May)], name: &str, text: &str) -> Option<String> {
    let Some((_, may)) = arguments.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = arguments.iter().map(|(name, _)| *name).collect();
        let known = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        return Some(format!("expected {known} for {kind}, found {}; leave it out", clipped(name)));
    };
    let number = number(text);
    let (is_right, expected) = match *may {
        May::Number(least, most) => {
            let is_within = number.is_some_and(|number| (least..=most).contains(&number));
            let end = if most == f64::MAX { String::new() } else { format!(" to {most}") };
            (is_within, format!("a number from {least}{end}"))
        }
        May::Steps => {
            let is_whole =
                number.is_some_and(|number| number.fract() == 0.0 && (0.0..1e15).contains(&number));
            (is_whole, "a whole number of steps".to_owned())
        }
        May::Bend => {
            let names: Vec<&str> = BENDS.iter().map(|(name, _)| *name).collect();
            (names.contains(&text), format!("one of {}", names.join(", ")))
        }
    };
    (!is_right).then(|| format!("expected {expected} for {name}, found {}", clipped(text)))
}

/// How rates change over so many steps.
pub(super) fn schedule(settings: &Settings, steps: u64) -> Schedule {
    let told = settings.count("warmup_steps").and_then(|steps| u64::try_from(steps).ok());
    let share = settings.number("warmup_ratio").unwrap_or_default();
    let warmup = told.filter(|&steps| steps > 0).unwrap_or((steps as f64 * share).ceil() as u64);
    let (kind, given) = (kind(settings), Given::new(settings));
    let rate = rate(settings).max(f64::MIN_POSITIVE);
    let waves = given.number("num_cycles");
    let least =
        given.number("min_lr_rate").or(given.number("min_lr").map(|least| least / rate)).unwrap_or(0.0);
    let shape = match kind.as_str() {
        // By that name, transformers warms nothing up.
        "constant" => return Schedule { shape: Shape::Constant, warmup: 0, steps },
        "constant_with_warmup" => Shape::Constant,
        "cosine" | "cosine_with_min_lr" => Shape::Cosine { waves: waves.unwrap_or(0.5), least },
        "cosine_with_restarts" => Shape::Restarts { times: waves.unwrap_or(1.0) },
        "cosine_warmup_with_min_lr" => {
            let start = given.number("warmup_lr_rate");
            Shape::CosineAhead { waves: waves.unwrap_or(0.5), least, start }
        }
        "polynomial" => {
            let end = given.number("lr_end").unwrap_or(RATE_LEAST) / rate;
            Shape::Polynomial { end: end.min(1.0), power: given.number("power").unwrap_or(1.0) }
        }
        "inverse_sqrt" => Shape::InverseRoot,
        "warmup_stable_decay" => Shape::WarmupStableDecay(stages(&given, warmup, steps)),
        _ => Shape::Linear,
    };
    Schedule { shape, warmup, steps }
}

/// A third of what follows the warmup is stable, as LLaMA-Factory divides a run, where nobody divides it otherwise.
fn stages(given: &Given, warmup: u64, steps: u64) -> Stages {
    let rest = steps.saturating_sub(warmup);
    Stages {
        stable: given.steps("num_stable_steps").unwrap_or(rest / 3),
        decay: given.steps("num_decay_steps").unwrap_or(rest - rest / 3),
        rise: given.bend("warmup_type").unwrap_or(Bend::Linear),
        fall: given.bend("decay_type").unwrap_or(Bend::Cosine),
        least: given.number("min_lr_ratio").unwrap_or(0.0),
        waves: given.number("num_cycles").unwrap_or(0.5),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    fn settings(yaml: &str) -> Settings {
        let usual = "model_name_or_path: m\ndataset_path: d\noutput_dir: o\nlearning_rate: 1e-4\n";
        Settings::of_text("x.yaml", &format!("{usual}{yaml}"), &[]).unwrap()
    }

    fn check(yaml: &str, expected: Schedule) {
        let settings = settings(yaml);
        assert_eq!(complaints(&settings), [], "{yaml}");
        assert_eq!(schedule(&settings, expected.steps), expected, "{yaml}");
    }

    fn check_refused(yaml: &str, word: &str) {
        let found = complaints(&settings(yaml));
        assert!(found.iter().any(|(_, words)| words.contains(word)), "{yaml}: {found:?}");
    }

    #[test]
    fn arguments_are_those_of_transformers() {
        let of = |shape, warmup| Schedule { shape, warmup, steps: 100 };
        let kwargs = |kind, kwargs| format!("lr_scheduler_type: {kind}\nlr_scheduler_kwargs: {kwargs}\n");
        check("", of(Shape::Linear, 0));
        check("lr_scheduler_type: constant\nwarmup_steps: 5\n", of(Shape::Constant, 0));
        check("lr_scheduler_type: constant_with_warmup\nwarmup_ratio: 0.05\n", of(Shape::Constant, 5));
        check("lr_scheduler_type: cosine\n", of(Shape::Cosine { waves: 0.5, least: 0.0 }, 0));
        check(&kwargs("cosine", "'{\"num_cycles\": 1.5}'"), of(Shape::Cosine { waves: 1.5, least: 0.0 }, 0));
        check(&kwargs("cosine_with_restarts", "{num_cycles: 3}"), of(Shape::Restarts { times: 3.0 }, 0));
        let polynomial = Shape::Polynomial { end: 1e-5 / 1e-4, power: 2.0 };
        check(&kwargs("polynomial", "\n  lr_end: 1e-5\n  power: 2\n"), of(polynomial, 0));
        let least = Shape::Cosine { waves: 0.5, least: 1e-5 / 1e-4 };
        check(&kwargs("cosine_with_min_lr", "{min_lr: 1e-5}"), of(least, 0));
        let ahead = Shape::CosineAhead { waves: 0.5, least: 0.1, start: Some(0.2) };
        let given = "{min_lr_rate: 0.1, warmup_lr_rate: 0.2}";
        check(&kwargs("cosine_warmup_with_min_lr", given), of(ahead, 0));
        let stages =
            Stages { stable: 30, decay: 60, rise: Bend::Linear, fall: Bend::Cosine, least: 0.0, waves: 0.5 };
        check(
            "lr_scheduler_type: warmup_stable_decay\nwarmup_steps: 10\n",
            of(Shape::WarmupStableDecay(stages), 10),
        );
        let told =
            Stages { stable: 50, fall: Bend::Root, rise: Bend::Cosine, least: 0.1, decay: 67, ..stages };
        let given = "{num_stable_steps: 50, decay_type: 1-sqrt, warmup_type: cosine, min_lr_ratio: 0.1}";
        check(&kwargs("warmup_stable_decay", given), of(Shape::WarmupStableDecay(told), 0));
    }

    #[test]
    fn what_a_schedule_cannot_be_told_is_refused() {
        for (kind, kwargs, word) in [
            ("linear", "{power: 2}", "expected nothing for linear, found power"),
            ("constant", "{num_cycles: 2}", "expected nothing for constant"),
            ("cosine", "{power: 2}", "expected num_cycles for cosine, found power"),
            (
                "cosine",
                "{num_cycles: many}",
                "expected a number from 0 to 1000000 for num_cycles, found many",
            ),
            ("cosine_with_min_lr", "{}", "found neither"),
            ("cosine_with_min_lr", "null", "found neither"),
            ("cosine_with_min_lr", "{min_lr: 1e-5, min_lr_rate: 0.1}", "cannot stand together"),
            ("cosine_with_min_lr", "{min_lr: 1}", "at most learning_rate"),
            ("polynomial", "{lr_end: 1e-4}", "below learning_rate"),
            ("warmup_stable_decay", "{decay_type: exponential}", "one of linear, cosine, 1-sqrt"),
            ("warmup_stable_decay", "{num_stable_steps: 1.5}", "a whole number of steps"),
        ] {
            check_refused(&format!("lr_scheduler_type: {kind}\nlr_scheduler_kwargs: {kwargs}\n"), word);
        }
    }
}
