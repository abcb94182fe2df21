//! `adapter_config.json`, value by value.
//!
//! What only training needs is not looked at. Whatever would change what is computed, and is not done here, is refused
//! with its key; so is every key that this build does not know, unless it says nothing.

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::config::{Config, ConfigError, kind};

/// Ranks above this are no adapter's.
const RANK_MAX: usize = 1 << 16;
/// Lists longer than this are no adapter's.
const LIST_MAX: usize = 1 << 16;

/// Keys that are read below.
const READ: &[&str] = &[
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "bias",
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "init_lora_weights",
    "base_model_name_or_path",
];

/// Keys that say where an adapter is from, or how it was or will be trained. `fan_in_fan_out` is for layers that no
/// family here has: PEFT ignores it for all others.
const TOLD: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Which modules an adapter is for.
#[derive(Debug)]
enum Targets {
    /// Names, or ends of them.
    Names(Vec<String>),
    /// A pattern of whole names.
    Pattern(Box<Regex>),
    /// Not said, or in words that only PEFT knows.
    Any,
}

/// An adapter's configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    rank: usize,
    alpha: f64,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    rslora: bool,
    pub(crate) dora: bool,
    /// Whether every second product adds a vector.
    pub(crate) lora_bias: bool,
    targets: Targets,
    excluded: Targets,
    parameters: Vec<String>,
    /// Modules that the adapter brings whole.
    pub(crate) saved: Vec<String>,
    layers: Vec<usize>,
    layers_patterns: Vec<Regex>,
    /// The model that it was trained over, as its trainer named it.
    pub(crate) base: Option<String>,
}

impl Settings {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| ConfigError::NotAnObject { found: crate::foreign::clipped(error) })?;
        let Value::Object(map) = value else {
            return Err(ConfigError::NotAnObject { found: kind(&value).to_owned() });
        };
        let config = Config(&map);
        config.refuse_other_adapters()?;
        config.refuse_unknown()?;
        let layers_patterns = config.names("layers_pattern")?;
        let layers_patterns = layers_patterns
            .iter()
            .map(|name| regex(config, "layers_pattern", &format!(r"^.*\.{name}\.(\d+)\.")));
        Ok(Settings {
            rank: config.size("r", RANK_MAX)?.unwrap_or(8),
            alpha: config.finite("lora_alpha", 8.0)?,
            ranks: config.pattern("rank_pattern")?,
            alphas: config.pattern("alpha_pattern")?,
            rslora: config.flag("use_rslora", false)?,
            dora: config.flag("use_dora", false)?,
            lora_bias: config.flag("lora_bias", false)?,
            targets: config.targets("target_modules")?,
            excluded: config.targets("exclude_modules")?,
            parameters: config.names("target_parameters")?,
            saved: config.names("modules_to_save")?,
            layers: config.layers()?,
            layers_patterns: layers_patterns.collect::<Result<_, _>>()?,
            base: config.text("base_model_name_or_path")?.map(str::to_owned),
        })
    }

    /// The rank that the tensors of a module or parameter have.
    pub(crate) fn rank(&self, name: &str) -> usize {
        matching(&self.ranks, name).map_or(self.rank, |rank| rank as usize)
    }

    /// What its product is multiplied by.
    pub(crate) fn scale(&self, name: &str) -> f64 {
        let alpha = matching(&self.alphas, name).unwrap_or(self.alpha);
        let rank = self.rank(name) as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Whether a parameter is one of `target_parameters`.
    pub(crate) fn targets_parameter(&self, name: &str) -> bool {
        self.parameters.iter().any(|target| is_end(target, name))
    }

    /// Whether a module, by its name in the model, is one that the adapter says that it is for.
    pub(crate) fn targets_module(&self, name: &str) -> bool {
        if self
            .parameters
            .iter()
            .any(|target| target.rsplit_once('.').is_some_and(|(of, _)| is_end(of, name)))
        {
            return true;
        }
        let is_excluded = match &self.excluded {
            Targets::Any => false,
            excluded => excluded.has(name),
        };
        let is_saved = self.saved.iter().any(|saved| {
            let parts: Vec<&str> = name.split('.').collect();
            let saved: Vec<&str> = saved.split('.').collect();
            parts.windows(saved.len()).any(|window| window == saved)
        });
        !is_excluded && !is_saved && self.targets.has(name) && self.has_layer(name)
    }

    /// `layers_to_transform`, which only counts where modules are named one by one.
    fn has_layer(&self, name: &str) -> bool {
        if self.layers.is_empty() || !matches!(self.targets, Targets::Names(_)) {
            return true;
        }
        let number = |pattern: &Regex| {
            let found = pattern.captures(name).ok().flatten()?;
            found.get(1)?.as_str().parse::<usize>().ok()
        };
        let layer = match self.layers_patterns.as_slice() {
            [] => Regex::new(r"^.*\.[^.]*\.(\d+)\.").ok().as_ref().and_then(number),
            patterns => patterns.iter().find_map(number),
        };
        layer.is_some_and(|layer| self.layers.contains(&layer))
    }
}

impl Targets {
    fn has(&self, name: &str) -> bool {
        match self {
            Targets::Names(names) => names.iter().any(|target| is_end(target, name)),
            // A pattern that gives up decides nothing.
            Targets::Pattern(pattern) => pattern.is_match(name).unwrap_or(true),
            Targets::Any => true,
        }
    }
}

/// Whether a name is, or ends in, some of its parts.
fn is_end(end: &str, name: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The value of the first pattern that a name ends in.
fn matching(patterns: &[(Regex, f64)], name: &str) -> Option<f64> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(name).unwrap_or(false)).map(|(_, value)| *value)
}

fn regex(config: Config, key: &str, pattern: &str) -> Result<Regex, ConfigError> {
    Regex::new(pattern).or_else(|_| config.wrong(key, "names, or patterns as Python's `re` takes them"))
}

impl Config<'_> {
    fn unsupported<T>(self, key: &str, supported: &str) -> Result<T, ConfigError> {
        let found = self.get(key).map_or("null".to_owned(), Value::to_string);
        let (key, found) = (key.to_owned(), found.chars().take(80).collect());
        Err(ConfigError::Unsupported { key, found, supported: supported.to_owned() })
    }

    fn refuse_other_adapters(self) -> Result<(), ConfigError> {
        match self.text("peft_type")? {
            Some("LORA") => {}
            None => return Err(ConfigError::Missing { key: "peft_type".to_owned(), expected: "\"LORA\"" }),
            Some(_) => return self.unsupported("peft_type", "LORA"),
        }
        if self.text("task_type")?.is_some_and(|task| task != "CAUSAL_LM") {
            return self.unsupported("task_type", "CAUSAL_LM");
        }
        if !matches!(self.text("bias")?, None | Some("none" | "all" | "lora_only")) {
            return self.unsupported("bias", "none, all, lora_only");
        }
        // Some ways to begin take something off the base's weights, which are then others than the model's.
        match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(name)) if matches!(name.as_str(), "gaussian" | "eva" | "orthogonal") => {}
            Some(_) => {
                let ways = "true, false, gaussian, eva, orthogonal; write the adapter as a plain one: `bantam train` \
                            does so with pissa_convert: true, PEFT with path_initial_model_for_weight_conversion";
                return self.unsupported("init_lora_weights", ways);
            }
        }
        if self.flag("lora_bias", false)? && self.flag("use_dora", false)? {
            return self.unsupported("lora_bias", "false where \"use_dora\" is true");
        }
        Ok(())
    }

    /// Keys that this build does not know may be there with nothing to say.
    fn refuse_unknown(self) -> Result<(), ConfigError> {
        for (key, value) in self.0 {
            let is_known = READ.contains(&key.as_str()) || TOLD.contains(&key.as_str());
            let says_nothing = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if !is_known && !says_nothing {
                return self.unsupported(key, "null or false");
            }
        }
        Ok(())
    }

    /// A finite number of any sign.
    fn finite(self, key: &str, default: f64) -> Result<f64, ConfigError> {
        match self.get(key).map(Value::as_f64) {
            None => Ok(default),
            Some(Some(number)) if number.is_finite() => Ok(number),
            Some(_) => self.wrong(key, "a number"),
        }
    }

    /// A list of names, or one.
    fn names(self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(name)) => Ok(vec![name.clone()]),
            Some(Value::Array(names)) if names.len() <= LIST_MAX => {
                let name = |name: &Value| name.as_str().map(str::to_owned);
                names
                    .iter()
                    .map(name)
                    .collect::<Option<_>>()
                    .map_or_else(|| self.wrong(key, "a list of names"), Ok)
            }
            Some(_) => self.wrong(key, "a list of names"),
        }
    }

    fn targets(self, key: &str) -> Result<Targets, ConfigError> {
        match self.get(key) {
            None => Ok(Targets::Any),
            Some(Value::String(name)) if name == "all-linear" => Ok(Targets::Any),
            Some(Value::String(pattern)) => {
                Ok(Targets::Pattern(Box::new(regex(self, key, &format!("^(?:{pattern})$"))?)))
            }
            Some(Value::Array(names)) if names.is_empty() => Ok(Targets::Any),
            Some(_) => Ok(Targets::Names(self.names(key)?)),
        }
    }

    /// Layers by number: a list, or one.
    fn layers(self) -> Result<Vec<usize>, ConfigError> {
        let key = "layers_to_transform";
        let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
        let layers = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) if list.len() <= LIST_MAX => list.iter().map(number).collect(),
            Some(value) => number(value).map(|layer| vec![layer]),
        };
        layers.map_or_else(|| self.wrong(key, "a layer's number, or a list of them"), Ok)
    }

    /// Values by patterns of names, in their order.
    fn pattern(self, key: &str) -> Result<Vec<(Regex, f64)>, ConfigError> {
        let none = Map::new();
        let map = self.object(key)?.unwrap_or(Config(&none));
        let is_rank = key == "rank_pattern";
        map.0
            .iter()
            .map(|(name, value)| {
                let number = value.as_f64().filter(|number| {
                    let is_size = *number >= 1.0 && *number <= RANK_MAX as f64 && number.fract() == 0.0;
                    number.is_finite() && (is_size || !is_rank)
                });
                let pattern = regex(self, key, &format!(r"^(?:.*\.)?(?:{name})$"))?;
                let expected =
                    if is_rank { "ranks by names of modules" } else { "numbers by names of modules" };
                number.map_or_else(|| self.wrong(key, expected), |number| Ok((pattern, number)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails says where")]
    use super::*;

    fn settings(extra: &str) -> Result<Settings, String> {
        let json = format!(r#"{{"peft_type":"LORA","task_type":"CAUSAL_LM","r":8,"lora_alpha":16{extra}}}"#);
        Settings::parse(json.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn patterns_are_ends_of_names_and_the_first_counts() {
        let s = settings(
            r#","rank_pattern":{"layers.1.mlp.down_proj":2,"q_proj":16,"^model.layers.0.*k_proj":4,"down_proj":64},
            "alpha_pattern":{"v_proj":32}"#,
        );
        let s = s.unwrap();
        for (name, rank, scale) in [
            ("model.layers.1.mlp.down_proj", 2, 8.0),
            ("model.layers.11.mlp.down_proj", 64, 0.25),
            ("model.layers.3.self_attn.q_proj", 16, 1.0),
            ("model.layers.0.self_attn.k_proj", 4, 4.0),
            ("model.layers.0.self_attn.v_proj", 8, 4.0),
            ("model.layers.0.self_attn.xq_proj", 8, 2.0),
        ] {
            assert_eq!((s.rank(name), s.scale(name)), (rank, scale), "{name}");
        }
        assert_eq!(settings(r#","use_rslora":true"#).unwrap().scale("x"), 16.0 / 8f64.sqrt());
    }

    #[test]
    fn modules_are_targeted_as_peft_does_it() {
        let named =
            settings(r#","target_modules":["q_proj","mlp.up_proj"],"layers_to_transform":[1]"#).unwrap();
        for (name, is_targeted) in [
            ("model.layers.1.self_attn.q_proj", true),
            ("model.layers.0.self_attn.q_proj", false),
            ("model.layers.1.mlp.up_proj", true),
            ("model.layers.1.up_proj", false),
            ("model.layers.1.self_attn.xq_proj", false),
        ] {
            assert_eq!(named.targets_module(name), is_targeted, "{name}");
        }
        let pattern =
            settings(r#","target_modules":".*\\.(q|v)_proj","exclude_modules":["0.v_proj"]"#).unwrap();
        assert!(pattern.targets_module("a.1.v_proj") && !pattern.targets_module("a.0.v_proj"));
        assert!(!pattern.targets_module("a.1.k_proj"));
        let parameters = settings(r#","target_parameters":["mlp.experts.down_proj"]"#).unwrap();
        assert!(parameters.targets_parameter("model.layers.0.mlp.experts.down_proj"));
        assert!(!parameters.targets_parameter("model.layers.0.mlp.experts.gate_up_proj"));
        assert!(parameters.targets_module("model.layers.0.mlp.experts"));
    }

    #[test]
    fn what_is_not_done_is_refused_with_its_key() {
        for (extra, word) in [
            (r#","use_qalora":true"#, "use_qalora"),
            (r#","layer_replication":[[0,4]]"#, "layer_replication"),
            (r#","trainable_token_indices":[1]"#, "trainable_token_indices"),
            (r#","something_new":3"#, "something_new"),
            (r#","something_new":null"#, "accepted"),
            (r#","init_lora_weights":"pissa_niter_4""#, "init_lora_weights"),
            (r#","init_lora_weights":"gaussian""#, "accepted"),
            (r#","lora_bias":true,"use_dora":true"#, "lora_bias"),
            (r#","bias":"some""#, "bias"),
            (r#","rank_pattern":{"q_proj":0}"#, "rank_pattern"),
            (r#","rank_pattern":{"(":4}"#, "rank_pattern"),
            (r#","layers_to_transform":["x"]"#, "layers_to_transform"),
            (r#","target_modules":7"#, "target_modules"),
        ] {
            let found = settings(extra).map_or_else(|error| error, |_| "accepted".to_owned());
            assert!(found.contains(word), "{extra}: {found}");
        }
        for (json, word) in [("[]", "an array"), ("{}", "peft_type"), (r#"{"peft_type":"IA3"}"#, "IA3")] {
            let found = Settings::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(found.contains(word), "{json}: {found}");
        }
        let other =
            Settings::parse(br#"{"peft_type":"LORA","task_type":"SEQ_CLS"}"#).unwrap_err().to_string();
        assert!(other.contains("task_type"), "{other}");
    }
}
