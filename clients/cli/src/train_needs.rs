//! What a run of training takes, and what a card would hold of it, as a table and as JSON.

use bantam_model::placement::MACHINES;
use bantam_train::run::Forecast;
use bantam_train::step::outline::{Moment, Part};
use serde_json::{Map, Value, json};

use crate::output;

/// The memory of a run, or why it is not known.
pub(crate) struct Needs<'a> {
    pub(crate) forecast: Result<&'a Forecast, &'a String>,
    /// Bytes of a card.
    pub(crate) card: Option<u64>,
}

/// A step on a card.
struct Card {
    bytes: u64,
    /// What driver and desktop keep of it.
    reserved: u64,
    slots: usize,
    moments: Vec<Moment>,
}

impl Card {
    fn new(forecast: &Forecast, bytes: u64) -> Card {
        let reserved = MACHINES.iter().find_map(|machine| machine.card).map_or(0, |card| card.reserved_bytes);
        let (slots, moments) = forecast.on_card(bytes.saturating_sub(reserved));
        Card { bytes, reserved, slots, moments }
    }

    fn largest(&self) -> Option<&Moment> {
        self.moments.iter().max_by_key(|moment| moment.bytes())
    }

    fn fits(&self) -> bool {
        self.largest().is_none_or(|most| most.bytes() <= self.bytes.saturating_sub(self.reserved))
    }

    fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self.moments.iter().map(moment_row).collect();
        let mut text = format!(
            "a plan of a card of {}, no run: layers come through {} slots, inputs of layers, gradients and optimizer \
             stay in main memory\n{}\n",
            output::bytes(self.bytes),
            self.slots,
            output::table(&rows, &[false, true])
        );
        if let Some(largest) = self.largest() {
            text += &format!("\nlargest moment: {}\n{}\n", largest.name, parts_table(&largest.parts));
        }
        let verdict = if self.fits() { "stays within" } else { "does not fit into" };
        text + &format!(
            "{verdict} {} of {}; driver and desktop keep {}",
            output::bytes(self.bytes.saturating_sub(self.reserved)),
            output::bytes(self.bytes),
            output::bytes(self.reserved)
        )
    }

    fn json(&self) -> Value {
        let moment = |moment: &Moment| {
            let parts = parts_json(&moment.parts);
            json!({ "name": moment.name, "bytes": moment.bytes(), "parts": parts })
        };
        json!({
            "is_plan_only": true,
            "vram_bytes": self.bytes,
            "reserved_bytes": self.reserved,
            "slots": self.slots,
            "largest_bytes": self.largest().map(Moment::bytes),
            "fits": self.fits(),
            "moments": self.moments.iter().map(moment).collect::<Vec<_>>(),
        })
    }
}

fn moment_row(moment: &Moment) -> Vec<String> {
    vec![format!("  {}", moment.name), output::bytes(moment.bytes())]
}

fn parts_table(parts: &[Part]) -> String {
    let rows: Vec<Vec<String>> =
        parts.iter().map(|(what, bytes)| vec![format!("  {what}"), output::bytes(*bytes)]).collect();
    output::table(&rows, &[false, true])
}

fn parts_json(parts: &[Part]) -> Value {
    Value::Object(parts.iter().map(|(what, bytes)| ((*what).to_owned(), json!(bytes))).collect::<Map<_, _>>())
}

impl Needs<'_> {
    pub(crate) fn text(&self) -> String {
        let forecast = match self.forecast {
            Ok(forecast) => forecast,
            Err(why) => return format!("memory: not known: {why}"),
        };
        let load = forecast.load;
        let mut parts = forecast.parts.clone();
        parts.push(("in all", forecast.bytes()));
        let mut text = format!(
            "memory, beside the program; largest batch {} tokens, {} learnt\n{}",
            load.tokens,
            load.labelled,
            parts_table(&parts)
        );
        if let Some(card) = self.card {
            text += &format!("\n\n{}", Card::new(forecast, card).text());
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let forecast = match self.forecast {
            Ok(forecast) => forecast,
            Err(why) => return json!({ "unknown": why }),
        };
        json!({
            "bytes": forecast.bytes(),
            "budget_bytes": forecast.budget,
            "parts": parts_json(&forecast.parts),
            "tokens": forecast.load.tokens,
            "learnt": forecast.load.labelled,
            "card": self.card.map(|bytes| Card::new(forecast, bytes).json()),
        })
    }
}
