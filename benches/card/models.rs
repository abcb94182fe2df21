//! Whole models with made-up weights, all of them on the card: tokens per second, with steps kept as graphs and
//! without.

use super::record::Section;
use super::turns::{Lengths, MODELS, Model, Turns, Way, median, take};
use super::{Problem, Scale};

const WAYS: [Way; 2] = [Way::Ours, Way::Launched];

pub(crate) fn section(scale: Scale) -> Result<Section, Problem> {
    let mut section = Section::new("models");
    section.line(
        "Tokens per second of one sequence, logits on the host; medians and extremes of turns. Allocations are what\n\
         the driver was asked for from the first prompt after loading on: memory, pinned memory, streams, events,\n\
         graphs. Bytes gone are what the card had less of after that, whoever took them.",
    );
    section.line(&Lengths::of(scale).told());
    let names = [
        "model",
        "steps",
        "decode, tokens/s",
        "prompt, tokens/s",
        "turns",
        "allocations",
        "bytes gone",
        "launches/token",
        "",
    ];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    let mut allocations = None;
    let wanted: Vec<&Model> = MODELS.iter().filter(|model| model.asked.is_some()).collect();
    for (at, model) in wanted.iter().enumerate() {
        let what = format!("{}, tokens/s", model.name);
        let asked = model.asked.map_or_else(String::new, |asked| format!("{asked:.0}"));
        if scale.is_over() {
            section.pend(&what, &asked, "the time was over");
            continue;
        }
        let found = match of(model, scale.part(wanted.len() - at)) {
            Ok(found) => found,
            Err(problem) => {
                section.ask(&what, &asked, problem.to_string(), false);
                continue;
            }
        };
        for (way, turns) in WAYS.iter().zip(&found) {
            rows.push(row(model, *way, turns));
            if turns.placed.as_ref().is_some_and(|placed| placed.is_whole) {
                allocations = allocations.max(Some(turns.allocations));
            }
        }
        ask(&mut section, model, &what, &asked, &found[0]);
    }
    section.table(&rows);
    match allocations {
        Some(count) => section.ask("allocations after load", "0", count.to_string(), count == 0),
        None => section.pend("allocations after load", "0", "no model stood there whole"),
    }
    Ok(section)
}

fn of(model: &Model, scale: Scale) -> Result<Vec<Turns>, Problem> {
    let mut engine = model.load(scale)?;
    take(&mut engine, &WAYS, None, scale)
}

fn ask(section: &mut Section, model: &Model, what: &str, asked: &str, ours: &Turns) {
    let is_whole = ours.placed.as_ref().is_some_and(|placed| placed.is_whole);
    match (median(&ours.decode), model.asked) {
        (Some(rate), Some(least)) if is_whole => {
            section.ask(what, asked, format!("{rate:.1}"), rate >= least)
        }
        (Some(_), _) => section.pend(what, asked, "the card does not hold all of the model"),
        (None, _) => section.pend(what, asked, ours.refused.as_deref().unwrap_or("nothing was measured")),
    }
}

fn row(model: &Model, way: Way, turns: &Turns) -> Vec<String> {
    let placed = turns.placed.as_ref();
    let steps = match (way, placed.map(|placed| (placed.is_whole, placed.not_kept))) {
        (Way::Ours, Some((true, None))) => "graphs",
        _ => "kernel by kernel",
    };
    let said = match (&turns.refused, placed) {
        (Some(why), _) => why.clone(),
        (None, Some(placed)) if placed.is_whole => {
            format!("{:.2} GiB", placed.bytes as f64 / f64::from(1 << 30))
        }
        (None, _) => "in part on the card".to_owned(),
    };
    vec![
        model.name.to_owned(),
        steps.to_owned(),
        Turns::told(&turns.decode),
        Turns::told(&turns.prompt),
        turns.decode.len().to_string(),
        turns.allocations.to_string(),
        turns.bytes_gone.to_string(),
        format!("{:.0}", turns.launches),
        said,
    ]
}
