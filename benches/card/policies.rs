//! A model that is larger than what may be taken of the card: put there as Bantam does it and as other programs do, in
//! turns, and beside each what the planner foretells for it from what this machine was measured to do.

use bantam_model::engine::{Engine, Placed};
use bantam_model::placement::{Parts, Policy, Question, RING_BYTES, step_seconds};

use super::rates::Rates;
use super::record::Section;
use super::turns::{Lengths, MODELS, Model, Turns, Way, median, take};
use super::{Problem, Scale};

/// Of the card, for a whole run.
const BUDGET: u64 = 4 << 30;
/// Of what a tiny model needs of it.
const QUICK_PART: f64 = 0.7;
const WAYS: [Way; 5] = [Way::Ours, Way::Layers, Way::Pinned, Way::Lru, Way::Cores];
/// By how much a forecast may be wrong.
const TOLERANCE: f64 = 0.15;

/// What was measured of one way, and what was foretold: tokens per second, decoding and of prompts.
struct Found {
    way: Way,
    turns: Turns,
    foretold: [Option<f64>; 2],
}

pub(crate) fn section(scale: Scale) -> Result<Section, Problem> {
    let mut section = Section::new("policies");
    let rates = Rates::measure(scale)?;
    rates.tell(&mut section);
    section.line(
        "\nTokens per second of one sequence after its prompt, and of prompts; medians and extremes of turns. Made-up\n\
         weights route as they do: `on card` is the part of the experts that a token was sent to and found there.\n\
         `same token` is one token over and over, which meets much the same experts: the most locality that these\n\
         weights have. `by it`: ours by that way. `foretold`: by the planner for this machine as measured above, all\n\
         experts alike. `pinned`: what fits stays on the card, all other matrices pass through it for every token;\n\
         `lru`: all of them do. Of `whole layers` nothing passes while prompts are read either. Kernels for a token,\n\
         which a forecast takes at the speed that was measured, are those that were counted.",
    );
    section.line(&Lengths::of(scale).told());
    let names = [
        "model",
        "way",
        "decode",
        "by it",
        "foretold",
        "prompt",
        "by it",
        "foretold",
        "same token",
        "by it",
        "on card",
        "turns",
        "GiB",
    ];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    let mut refused = Vec::new();
    for (at, model) in MODELS.iter().enumerate() {
        let what = format!("{}, ours by whole layers", model.name);
        let asked = format!("{:.2}", model.asked_ratio);
        let found = match scale.is_over() {
            true => None,
            false => Some(of(model, &rates, scale.part(MODELS.len() - at))),
        };
        match found {
            Some(Ok(found)) => {
                rows.extend(found.iter().map(|way| row(model, way, &found[0])));
                ask(&mut section, model, &found);
                let said = |way: &Found| Some((way.way, way.turns.refused.clone()?));
                refused.extend(
                    found
                        .iter()
                        .filter_map(said)
                        .map(|(way, why)| format!("{}, {}: {why}", model.name, way.name())),
                );
            }
            Some(Err(problem)) => section.ask(&what, &asked, problem.to_string(), false),
            None => section.pend(&what, &asked, "the time was over"),
        }
    }
    section.table(&rows);
    refused.iter().for_each(|line| section.line(line));
    Ok(section)
}

fn of(model: &Model, rates: &Rates, scale: Scale) -> Result<Vec<Found>, Problem> {
    let mut engine = model.load(scale)?;
    let vram = match scale.quick {
        false => BUDGET,
        true => {
            let whole = Placed::forecast(engine.plan(), usize::MAX)
                .map_or(0, |placed| placed.bytes - placed.kept_bytes);
            (QUICK_PART * whole as f64) as u64
        }
    };
    let turns = take(&mut engine, &WAYS, Some(vram), scale)?;
    let prompt = Lengths::of(scale).prompt;
    let found = WAYS.into_iter().zip(turns).map(|(way, turns)| {
        // The planner always sets a whole ring apart, which a tiny model's budget does not hold.
        let vram = if scale.quick { vram + RING_BYTES } else { vram };
        let foretold = foretold(&engine, rates, vram, way, turns.launches, prompt);
        Found { way, turns, foretold }
    });
    Ok(found.collect())
}

/// What the planner says of a way that launches so many kernels for a token.
fn foretold(
    engine: &Engine,
    rates: &Rates,
    vram: u64,
    way: Way,
    launches: f64,
    prompt: usize,
) -> [Option<f64>; 2] {
    let parts = Parts::new(engine.spec(), engine.plan());
    let mut machine = rates.machine(vram, launches / parts.layers.len() as f64);
    let policy = match way {
        Way::Ours | Way::Launched => Policy::Divided,
        Way::Layers => Policy::Layers,
        Way::Pinned => Policy::Pinned,
        // Copied ahead, unlike what the planner has by this name.
        Way::Lru => Policy::Streamed,
        Way::Cores => Policy::Cores,
    };
    if way == Way::Cores {
        machine.card = None;
    }
    let question = Question { parts: &parts, machine: &machine, trace: None };
    let Some(forecast) = question.forecast(policy) else { return [None; 2] };
    let tokens = prompt as f64;
    let of_prompt = match way {
        // Nothing passes there.
        Way::Layers | Way::Cores => tokens / step_seconds(&parts, &forecast.shares, &machine, prompt, None),
        _ => question.prefill(&forecast, prompt).rate(),
    };
    [Some(1.0 / forecast.seconds), Some(of_prompt)]
}

fn ratio(ours: &[f64], other: &[f64]) -> Option<f64> {
    // Round by round, since both stand side by side in time.
    let ratios: Vec<f64> = ours.iter().zip(other).map(|(ours, other)| ours / other).collect();
    median(&ratios)
}

fn told(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.2}"))
}

fn row(model: &Model, found: &Found, ours: &Found) -> Vec<String> {
    let (turns, first) = (&found.turns, &ours.turns);
    let by = |ours: &[f64], other: &[f64]| told(ratio(ours, other).filter(|_| found.way != Way::Ours));
    let hits: Vec<String> =
        turns.hits.iter().flatten().map(|part| format!("{:.0} %", 100.0 * part)).collect();
    let gib = turns.placed.as_ref().map(|placed| placed.bytes as f64 / f64::from(1 << 30));
    vec![
        model.name.to_owned(),
        found.way.name().to_owned(),
        Turns::told(&turns.decode),
        by(&first.decode, &turns.decode),
        told(found.foretold[0]),
        Turns::told(&turns.prompt),
        by(&first.prompt, &turns.prompt),
        told(found.foretold[1]),
        Turns::told(&turns.same),
        by(&first.same, &turns.same),
        if hits.is_empty() { "-".to_owned() } else { hits.join(", ") },
        turns.decode.len().to_string(),
        told(gib),
    ]
}

/// Ours by whole layers, and every forecast.
fn ask(section: &mut Section, model: &Model, found: &[Found]) {
    let (ours, layers) = (&found[0].turns, &found[1].turns);
    let mut by_layers = |what: String, asked: f64, ours: &[f64], layers: &[f64]| {
        let said = format!("{asked:.2}");
        match ratio(ours, layers) {
            Some(ratio) => section.ask(&what, &said, format!("{ratio:.2}"), ratio >= asked),
            None => section.pend(&what, &said, "one of both was refused; see above"),
        }
    };
    by_layers(
        format!("{}, ours by whole layers", model.name),
        model.asked_ratio,
        &ours.decode,
        &layers.decode,
    );
    if !ours.same.is_empty() {
        let what = format!("{}, the same with locality", model.name);
        by_layers(what, LOCAL_RATIO, &ours.same, &layers.same);
    }
    // What the planner has no forecast for, such as all of a mixture passing, has a dash in the table.
    let is_asked = |way: &&Found| way.foretold != [None; 2] || way.turns.refused.is_some();
    for way in found.iter().filter(is_asked) {
        let turns = &way.turns;
        let kinds = [("decode", &turns.decode), ("prompt", &turns.prompt)];
        for ((kind, measured), foretold) in kinds.into_iter().zip(way.foretold) {
            let what = format!("{}, {}, {kind}: measured by foretold", model.name, way.way.name());
            match median(measured).zip(foretold) {
                Some((measured, foretold)) => {
                    let error = measured / foretold - 1.0;
                    section.ask(
                        &what,
                        "within 15 %",
                        format!("{:+.1} %", 100.0 * error),
                        error.abs() <= TOLERANCE,
                    );
                }
                None => section.pend(&what, "within 15 %", "not placed so, or not foretold"),
            }
        }
    }
}

/// What the simulation says where tokens meet much the same experts.
const LOCAL_RATIO: f64 = 1.15;
