//! `config.json` while it is being read: values by key, each of a type and in a range, and what is said where one is
//! not.
//!
//! What the keys mean is not known here.

use serde_json::{Map, Value};

/// Why a `config.json` does not describe a model that can be run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not an object.
    #[error("config.json: expected a JSON object, found {found}; is this a Hugging Face model folder?")]
    NotAnObject {
        /// What stands there.
        found: String,
    },
    /// No table entry for this family.
    #[error("config.json: model_type is \"{found}\"; this build knows {known}")]
    UnknownFamily {
        /// What stands there.
        found: String,
        /// What could.
        known: String,
    },
    /// A key without which nothing can be said.
    #[error("config.json: \"{key}\" is missing; expected {expected}")]
    Missing {
        /// The key.
        key: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// A value of the wrong type or out of range.
    #[error("config.json: \"{key}\" is {found}; expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// Something that the house does not do yet.
    #[error("config.json: \"{key}\" is {found}, which is not supported yet; supported: {supported}")]
    Unsupported {
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What works.
        supported: String,
    },
}

impl ConfigError {
    /// The key that it is about.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            ConfigError::NotAnObject { .. } => None,
            ConfigError::UnknownFamily { .. } => Some("model_type"),
            ConfigError::Missing { key, .. }
            | ConfigError::Value { key, .. }
            | ConfigError::Unsupported { key, .. } => Some(key),
        }
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A configuration file while it is being read. Absent and `null` are the same, as in Hugging Face's tools.
#[derive(Clone, Copy)]
pub(crate) struct Config<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Config<'a> {
    pub(crate) fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn wrong<T>(self, key: &str, expected: impl Into<String>) -> Result<T, ConfigError> {
        let found: String =
            self.get(key).map_or("null".to_owned(), Value::to_string).chars().take(80).collect();
        Err(ConfigError::Value { key: key.to_owned(), found, expected: expected.into() })
    }

    pub(crate) fn text(self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.wrong(key, "a string"),
        }
    }

    pub(crate) fn flag(self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => self.wrong(key, "true or false"),
        }
    }

    /// A size: 1 to `most`.
    pub(crate) fn size(self, key: &str, most: usize) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=most).contains(&n) => Ok(Some(n)),
            _ => self.wrong(key, format!("a whole number from 1 to {most}")),
        }
    }

    pub(crate) fn needed_size(self, key: &str, most: usize) -> Result<usize, ConfigError> {
        self.size(key, most)?.ok_or(ConfigError::Missing { key: key.to_owned(), expected: "a whole number" })
    }

    /// An object, whose values are then read the same way.
    pub(crate) fn object(self, key: &str) -> Result<Option<Config<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config(map))),
            Some(_) => self.wrong(key, "an object"),
        }
    }

    /// A positive number.
    pub(crate) fn number(self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 && x < 1e12 => Ok(Some(x)),
            _ => self.wrong(key, "a positive number"),
        }
    }

    pub(crate) fn first_number(self, keys: &[&str], default: f64) -> Result<f64, ConfigError> {
        for key in keys {
            if let Some(x) = self.number(key)? {
                return Ok(x);
            }
        }
        Ok(default)
    }
}
