//! Whether an adapter was trained over weights in four bits: then it corrects their rounding too, and belongs to the
//! rounded weights and not to those that they were rounded from.
//!
//! What says so is looked for in this order: the settings of the training, the model card, names, the configuration of
//! the model that it was trained over. The first that says yes or no counts.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::adapter::Adapter;
use crate::checkpoint::map;

/// Larger files are no settings.
const BYTES_MAX: u64 = 1 << 20;
/// Files of a folder that are looked at.
const FILES_MAX: usize = 64;

/// How weights were held while an adapter was trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// Whether in four bits.
    pub in_four_bits: bool,
    /// Whether the scales were quantized again, as is usual.
    pub nested: bool,
    /// Whether by the book FP4 and not NF4.
    pub fp4: bool,
    /// What says so.
    pub because: String,
}

impl Trained {
    /// As somebody says who knows.
    pub fn told(in_four_bits: bool) -> Self {
        let because = format!("--trained-in-4bit {}", if in_four_bits { "yes" } else { "no" });
        Trained { in_four_bits, nested: true, fp4: false, because }
    }

    /// As the files beside an adapter say, and the model's own configuration.
    pub fn find(adapter: &Adapter, base_config: &[u8]) -> Self {
        let mut details = (true, false);
        // Whatever says that it was so, configurations say how.
        let configured = of_configs(adapter, base_config, &mut details);
        let found = of_settings(adapter.folder(), &mut details)
            .or_else(|| of_card(adapter.folder()))
            .or_else(|| of_names(adapter))
            .or(configured);
        let (in_four_bits, because) = found.unwrap_or((false, "nothing says that it was".to_owned()));
        Trained { in_four_bits, nested: details.0, fp4: details.1, because }
    }
}

/// Yes or no, and why.
type Said = Option<(bool, String)>;

/// A file beside the adapter, if it is small and text.
fn text(path: &Path) -> Option<String> {
    String::from_utf8(map::read_regular(path, BYTES_MAX).ok()?).ok()
}

/// What the training was started with: JSON or YAML of LLaMA-Factory, axolotl and others.
fn of_settings(folder: &Path, details: &mut (bool, bool)) -> Said {
    let entries = fs::read_dir(folder).ok()?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).take(FILES_MAX * 16).collect();
    names.sort();
    // The first is read as what it is, below; the others are no settings of a training.
    let others =
        ["adapter_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
    let is_settings = |name: &&String| {
        let ends = [".json", ".yaml", ".yml"];
        ends.iter().any(|end| name.ends_with(end)) && !others.contains(&name.as_str())
    };
    for name in names.iter().filter(is_settings).take(FILES_MAX) {
        let Some(text) = text(&folder.join(name)) else { continue };
        let said = match serde_json::from_str::<Value>(&text) {
            Ok(value) => of_json(&value, details, 0),
            Err(_) => text.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                of_key(key.trim(), &Value::String(value.trim().trim_matches(['"', '\'']).to_owned()))
            }),
        };
        if let Some((yes, key)) = said {
            return Some((yes, format!("{name} says {key}")));
        }
    }
    None
}

fn of_json(value: &Value, details: &mut (bool, bool), depth: usize) -> Said {
    const DEPTH_MAX: usize = 8;
    let Value::Object(map) = value else { return None };
    let flag = |key: &str| map.get(key).and_then(Value::as_bool);
    details.0 = flag("bnb_4bit_use_double_quant").unwrap_or(details.0);
    details.1 = map.get("bnb_4bit_quant_type").map_or(details.1, |book| *book == "fp4");
    map.iter().find_map(|(key, value)| of_key(key, value)).or_else(|| {
        let mut inner = map.values().filter(|_| depth < DEPTH_MAX);
        inner.find_map(|value| of_json(value, details, depth + 1))
    })
}

/// What a setting says about four bits.
fn of_key(key: &str, value: &Value) -> Said {
    let word = match value {
        Value::String(word) => word.to_lowercase(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let said = match key {
        "load_in_4bit" | "use_4bit" | "use_qlora" | "qlora" | "is_4bit" => {
            ["true", "false", "yes", "no"].contains(&word.as_str()).then(|| word == "true" || word == "yes")
        }
        "quantization_bit" | "bits" | "quant_bits" => word.parse::<u32>().ok().map(|bits| bits == 4),
        "finetuning_type" | "adapter" | "training_type" => (word == "qlora").then_some(true),
        "quantization" | "base_quantization" => {
            (word.contains("4bit") || word.contains("nf4")).then_some(true)
        }
        _ => None,
    }?;
    Some((said, format!("{key}: {word}")))
}

/// The model card: what is between its first lines of dashes, and what older versions of PEFT wrote below.
fn of_card(folder: &Path) -> Said {
    let card = text(&folder.join("README.md"))?;
    let mut lines = card.lines();
    if lines.next().is_some_and(|line| line.trim() == "---") {
        for line in lines.take_while(|line| line.trim() != "---") {
            let lower = line.trim().to_lowercase();
            let is_tag = ["- 4-bit", "- 4bit", "- qlora"].contains(&lower.as_str());
            let is_base = lower.strip_prefix("base_model:").is_some_and(is_four_bit_name);
            if is_tag || is_base {
                return Some((true, format!("README.md says {:?}", line.trim())));
            }
        }
    }
    card.lines().find_map(|line| {
        let line = line.trim().trim_start_matches("- ").to_lowercase();
        let (yes, no) = (line == "load_in_4bit: true", line == "load_in_4bit: false");
        (yes || no).then(|| (yes, format!("README.md says {line}")))
    })
}

/// Whether a name is one that people give to what is in four bits: one of its words says so. Of a path the last name
/// counts; folders above say nothing about a model.
fn is_four_bit_name(name: &str) -> bool {
    const WORDS: [&str; 5] = ["4bit", "nf4", "qlora", "bnb4", "bnb4bit"];
    let name = name.trim().trim_end_matches('/').to_lowercase();
    let last = name.rsplit('/').next().unwrap_or_default();
    let words: Vec<&str> = last.split(|letter: char| !letter.is_alphanumeric()).collect();
    // "4-bit" is two.
    words.iter().any(|word| WORDS.contains(word)) || words.windows(2).any(|two| two == ["4", "bit"])
}

fn of_names(adapter: &Adapter) -> Said {
    let own = fs::canonicalize(adapter.folder()).unwrap_or_else(|_| adapter.folder().to_owned());
    let own = own.file_name().map(|name| name.to_string_lossy().into_owned());
    if let Some(base) = adapter.base().filter(|base| is_four_bit_name(base)) {
        return Some((true, format!("a word of {base:?}, which it was trained over, says four bits")));
    }
    let own = own.filter(|own| is_four_bit_name(own))?;
    Some((true, format!("a word of its name, {own:?}, says four bits")))
}

/// Configurations: of the model that is given, and of the one that it was trained over where that is a folder here.
fn of_configs(adapter: &Adapter, base_config: &[u8], details: &mut (bool, bool)) -> Said {
    let quantized = |config: &[u8], details: &mut (bool, bool)| {
        let config: Value = serde_json::from_slice(config).ok()?;
        let settings = config.get("quantization_config")?.clone();
        of_json(&settings, details, 0).filter(|(yes, _)| *yes)
    };
    if let Some((yes, key)) = quantized(base_config, details) {
        return Some((yes, format!("the model's config.json says {key}")));
    }
    let trained = adapter.base().map(Path::new)?;
    let near = adapter.folder().join(trained);
    let config = [near.as_path(), trained].iter().find_map(|folder| text(&folder.join("config.json")))?;
    let (yes, key) = quantized(config.as_bytes(), details)?;
    Some((yes, format!("config.json of {} says {key}", trained.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails says where")]
    use super::*;

    #[test]
    fn settings_of_many_tools_are_understood() {
        let json = |text: &str| of_json(&serde_json::from_str(text).unwrap(), &mut (true, false), 0);
        let said = |text: &str| json(text).map(|(yes, _)| yes);
        assert_eq!(said(r#"{"load_in_4bit":true}"#), Some(true));
        assert_eq!(said(r#"{"model":{"load_in_4bit":false}}"#), Some(false));
        assert_eq!(said(r#"{"quantization_bit":8}"#), Some(false));
        assert_eq!(said(r#"{"training":{"adapter":"qlora"}}"#), Some(true));
        assert_eq!(said(r#"{"adapter":"lora","lr":1}"#), None);
        let mut details = (true, false);
        let bnb = r#"{"bnb_4bit_use_double_quant":false,"bnb_4bit_quant_type":"fp4","load_in_4bit":true}"#;
        assert!(of_json(&serde_json::from_str(bnb).unwrap(), &mut details, 0).unwrap().0);
        assert_eq!(details, (false, true));
        for (name, yes) in [
            ("unsloth/llama-3-8b-bnb-4bit", true),
            ("Llama-3-8B", false),
            ("my-qlora", true),
            ("My_QLoRA_run", true),
            ("llama-4bit/", true),
            ("qlorax", false),
            ("not-an-nf4x", false),
            ("runs/qlora/llama-lora", false),
            ("model-24-bit", false),
        ] {
            assert_eq!(is_four_bit_name(name), yes, "{name}");
        }
    }

    #[test]
    fn cards_are_read_where_they_say_it() {
        let folder = std::env::temp_dir().join(format!("bantam-card-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let card = |text: &str| {
            fs::write(folder.join("README.md"), text).unwrap();
            of_card(&folder).map(|(yes, _)| yes)
        };
        assert_eq!(card("---\nbase_model: unsloth/x-bnb-4bit\n---\nA model."), Some(true));
        assert_eq!(card("---\nbase_model: x\ntags:\n- 4-bit\n---\n"), Some(true));
        assert_eq!(
            card("---\nbase_model: x\n---\n- load_in_8bit: False\n- load_in_4bit: True\n"),
            Some(true)
        );
        assert_eq!(card("Not a word about 4bit training."), None);
        fs::write(folder.join("config_good_doctor.json"), r#"{"model":{"load_in_4bit":true}}"#).unwrap();
        let (yes, why) = of_settings(&folder, &mut (true, false)).unwrap();
        assert!(yes && why.contains("config_good_doctor.json"), "{why}");
        fs::remove_dir_all(folder).unwrap();
    }
}
