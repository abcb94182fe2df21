//! Positions beyond those that a model was made for: `rope_scaling`, as LLaMA-Factory 0.9.3 sets it in the model's
//! configuration. The factor is how often the old context goes into `cutoff_len`, rounded up.

use bantam_model::config::ConfigError;
use bantam_model::source::{Source, SourceError};
use serde_json::{Map, Value, json};

use crate::settings::Settings;

/// Where a configuration says how positions are bent, the newer name first.
const PLACES: [&str; 2] = ["rope_parameters", "rope_scaling"];
/// What stands there and is no bend.
const KEPT: [&str; 2] = ["rope_theta", "partial_rotary_factor"];
/// What stands there by kind of layer, in the newest files.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// The model with the bend that the settings ask for, where its context is too short for `cutoff_len`.
pub(super) fn bent(settings: &Settings, source: Source) -> Result<Source, SourceError> {
    let (Some(kind), cutoff) = (settings.text("rope_scaling"), settings.data.cutoff_len) else {
        return Ok(source);
    };
    if cutoff <= source.spec.context {
        return Ok(source);
    }
    let bytes = source.files.require_config()?;
    let mut config: Map<String, Value> = serde_json::from_slice(&bytes).expect("it was read before");
    drop(bytes);
    let place = PLACES.into_iter().find(|place| config.get(*place).is_some_and(|old| !old.is_null()));
    let place = place.unwrap_or("rope_scaling");
    let old = config.get(place).and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(kind) = KINDS.iter().find(|kind| old.contains_key(**kind)) {
        let key = format!("{place}.{kind}");
        let supported = "one for all layers; set it in config.json and leave rope_scaling out".to_owned();
        let reason = ConfigError::Unsupported { key, found: "a bend by kind of layer".to_owned(), supported };
        return Err(SourceError::Spec { folder: source.folder().into(), source: reason });
    }
    let mut new: Map<String, Value> =
        old.into_iter().filter(|(key, _)| KEPT.contains(&key.as_str())).collect();
    let (context, factor) = (source.spec.context, cutoff.div_ceil(source.spec.context));
    new.insert("rope_type".to_owned(), json!(kind));
    new.insert("factor".to_owned(), json!(factor as f64));
    if kind != "linear" {
        new.insert("original_max_position_embeddings".to_owned(), json!(context));
    }
    if kind == "llama3" {
        new.insert("low_freq_factor".to_owned(), json!(1.0));
        new.insert("high_freq_factor".to_owned(), json!(4.0));
    }
    config.insert(place.to_owned(), Value::Object(new));
    config.insert("max_position_embeddings".to_owned(), json!(context.saturating_mul(factor)));
    source.with_config(format!("{:#}\n", Value::Object(config)).into_bytes())
}

/// What is to be known of it, of a model that was opened by these settings.
pub(super) fn notes(settings: &Settings, source: &Source) -> Option<String> {
    settings.text("rope_scaling")?;
    let (context, cutoff) = (source.spec.context, settings.data.cutoff_len);
    if !source.files.is_edited() {
        return Some(format!(
            "rope_scaling changes nothing: the model has {context} positions, and cutoff_len is {cutoff}"
        ));
    }
    let config: Map<String, Value> = serde_json::from_slice(&source.files.config().ok()??).ok()?;
    let (place, told) =
        PLACES.into_iter().find_map(|place| Some((place, config.get(place)?.as_object()?)))?;
    let after = match settings.text("finetuning_type").as_deref() {
        Some("full" | "freeze") => "the new config.json says so",
        _ => "no adapter says so: use it with a model whose config.json does",
    };
    let told = json!(told);
    Some(format!("rope_scaling: \"{place}\": {told}, \"max_position_embeddings\": {context}; {after}"))
}
