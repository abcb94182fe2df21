//! The model's chat template, with what the user gave it.

use std::str::FromStr;

use bantam_model::source::Source;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// KEY=JSON.
#[derive(Debug, Clone)]
pub(super) struct TemplateArgument {
    key: String,
    value: Value,
}

impl FromStr for TemplateArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |found: &str| {
            format!(
                "expected KEY=JSON such as enable_thinking=false or reasoning_effort=\\\"low\\\", found {found}"
            )
        };
        let (key, value) = text.split_once('=').ok_or_else(|| wrong("no `=`"))?;
        let value = serde_json::from_str(value).map_err(|error| wrong(&error.to_string()))?;
        Ok(TemplateArgument { key: key.to_owned(), value })
    }
}

pub(super) struct Template {
    arguments: Map<String, Value>,
}

impl Template {
    pub(super) fn of(_source: &Source, arguments: &[TemplateArgument]) -> Result<Self, Failure> {
        let pair = |argument: &TemplateArgument| (argument.key.clone(), argument.value.clone());
        Ok(Template { arguments: arguments.iter().map(pair).collect() })
    }

    pub(super) fn render(&self, messages: &[Value]) -> Result<String, Failure> {
        let _ = &self.arguments;
        let mut text = String::new();
        for message in messages {
            let (role, content) = (&message["role"], &message["content"]);
            text += &format!(
                "<|im_start|>{}\n{}<|im_end|>\n",
                role.as_str().unwrap_or(""),
                content.as_str().unwrap_or("").trim()
            );
        }
        Ok(text + "<|im_start|>assistant\n")
    }
}
