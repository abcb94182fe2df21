//! What a run of training takes, and what a card has of it, as a table and as JSON.

use bantam_model::placement::MACHINES;
use bantam_train::run::{Forecast, Share};
use bantam_train::step::outline::Part;
use serde_json::{Map, Value, json};

use crate::output;

/// The memory of a run, or why it is not known.
pub(crate) struct Needs<'a> {
    pub(crate) forecast: Result<&'a Forecast, &'a String>,
    /// Bytes of a card that may not be there.
    pub(crate) card: Option<u64>,
}

/// A run on a card that is described, not asked.
struct Described {
    bytes: u64,
    /// What driver and desktop keep of it.
    reserved: u64,
    share: Option<Share>,
}

impl Described {
    fn new(forecast: &Forecast, bytes: u64) -> Described {
        let reserved = MACHINES.iter().find_map(|machine| machine.card).map_or(0, |card| card.reserved_bytes);
        Described { bytes, reserved, share: forecast.on_card(bytes.saturating_sub(reserved)) }
    }

    fn text(&self) -> String {
        let (bytes, reserved) = (output::bytes(self.bytes), output::bytes(self.reserved));
        match &self.share {
            Some(share) => {
                format!(
                    "a card of {bytes}, of which driver and desktop keep {reserved}, {}",
                    share_text(share)
                )
            }
            None => format!(
                "a card of {bytes}, of which driver and desktop keep {reserved}, has nothing to do here: too little is \
                 left for rows and a matrix that is not trained, or everything is trained"
            ),
        }
    }

    fn json(&self) -> Value {
        json!({
            "is_plan_only": true,
            "vram_bytes": self.bytes,
            "reserved_bytes": self.reserved,
            "fits": self.share.is_some(),
            "share": self.share.as_ref().map(share_json),
        })
    }
}

/// What a card has of a run.
fn share_text(share: &Share) -> String {
    let [all, there] = share.frozen.map(output::bytes);
    let mut parts = share.parts.clone();
    parts.push(("in all", share.bytes()));
    let host = output::bytes(share.host_bytes);
    format!(
        "has {there} of {all} of the matrices that are not trained, and computes their products; {host} of main memory \
         are for what goes there and comes back\n{}",
        parts_table(&parts)
    )
}

fn share_json(share: &Share) -> Value {
    json!({
        "bytes": share.bytes(),
        "parts": parts_json(&share.parts),
        "frozen_bytes": share.frozen[0],
        "standing_bytes": share.frozen[1],
        "host_bytes": share.host_bytes,
    })
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
        if let Some((told, share)) = &forecast.card {
            text += &format!("\n\n{told} {}", share_text(share));
        }
        forecast.no_card.iter().for_each(|why| text += &format!("\n\n{why}"));
        if let Some(card) = self.card {
            text += &format!("\n\n{}", Described::new(forecast, card).text());
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
            "on_card": forecast.card.as_ref().map(|(told, share)| {
                let mut json = share_json(share);
                json["card"] = told.as_str().into();
                json
            }),
            "no_card": forecast.no_card,
            "card": self.card.map(|bytes| Described::new(forecast, bytes).json()),
        })
    }
}
