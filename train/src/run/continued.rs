//! An adapter that is trained on: what it is stands in its own configuration, as with PEFT, whatever settings say.

use std::fs;
use std::path::Path;

use bantam_model::adapter::CONFIG;
use serde_json::{Value, json};

use super::choices::{Choices, Method};

/// Settings of new adapters, and what an adapter calls them.
const KEYS: [(&str, &str); 5] = [
    ("lora_rank", "r"),
    ("lora_alpha", "lora_alpha"),
    ("lora_dropout", "lora_dropout"),
    ("use_rslora", "use_rslora"),
    ("use_dora", "use_dora"),
];

/// The share of inputs that an adapter does not see.
pub(super) fn dropout(choices: &Choices<'_>) -> f32 {
    match &choices.method {
        Method::Adapter(folder) => {
            config(folder)["lora_dropout"].as_f64().unwrap_or(0.0).clamp(0.0, 1.0) as f32
        }
        _ => choices.dropout,
    }
}

/// What settings say and the adapter does not.
pub(super) fn notes(choices: &Choices<'_>) -> Vec<String> {
    let Method::Adapter(folder) = &choices.method else { return Vec::new() };
    let config = config(folder);
    let note = |(key, name): (&str, &str)| {
        let said = choices.settings().given().find(|(given, _)| *given == key)?.1;
        let is_same = match (said.as_f64(), config[name].as_f64()) {
            (Some(said), Some(found)) => said == found,
            _ => said == config[name] || (said == json!(false) && config[name].is_null()),
        };
        let found = &config[name];
        let words = format!(
            "{key}: {said} changes nothing: the adapter that is trained on has {found}; create_new_adapter: true begins \
             another"
        );
        (!is_same).then_some(words)
    };
    KEYS.into_iter().filter_map(note).collect()
}

/// Nothing where there is none: whoever opens the adapter says what is wrong with it.
fn config(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join(CONFIG)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}
