//! Where a model keeps its templates, in transformers' order, and the special tokens they are given.

use std::sync::Arc;

use super::value::{Kind, Value};
use super::{DEFAULT, Data, TemplateError};
use crate::files::ModelFiles;
use crate::foreign::clipped;
use crate::tokenizer;

const CONFIG: &str = "tokenizer_config.json";

pub(super) struct Found {
    pub(super) sources: Vec<Source>,
    pub(super) tokens: Vec<(Arc<str>, Value)>,
}

pub(super) struct Source {
    pub(super) name: String,
    pub(super) label: String,
    pub(super) text: String,
}

pub(super) fn find(files: &ModelFiles) -> Result<Found, TemplateError> {
    let config = files.tokenizer_config()?;
    let mut sources = from_files(files)?;
    if sources.is_empty()
        && let Some(config) = &config
    {
        sources = from_config(config)?;
    }
    let map = files.special_tokens_map()?;
    let tokens =
        tokenizer::special_tokens(config.as_deref(), map.as_deref()).map_err(|error| match error {
            tokenizer::TokenizerError::Malformed { file, expected, found, .. } => {
                TemplateError::Malformed { file, expected, found }
            }
            other => TemplateError::Malformed { file: CONFIG, expected: "tokens", found: other.to_string() },
        })?;
    Ok(Found { sources, tokens: named(tokens) })
}

/// `chat_template.jinja` is the default; `additional_chat_templates/` may hold more.
fn from_files(files: &ModelFiles) -> Result<Vec<Source>, TemplateError> {
    let mut sources = Vec::new();
    if let Some(bytes) = files.chat_template()? {
        let label = "chat_template.jinja".to_owned();
        sources.push(Source { name: DEFAULT.to_owned(), label, text: utf8(&bytes, "chat_template.jinja")? });
    }
    for (name, bytes) in files.additional_chat_templates()? {
        let label = format!("additional_chat_templates/{}.jinja", clipped(&name));
        sources.push(Source { name, label, text: utf8(&bytes, "additional_chat_templates/*.jinja")? });
    }
    Ok(sources)
}

fn utf8(bytes: &[u8], file: &'static str) -> Result<String, TemplateError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    String::from_utf8(bytes.to_vec()).map_err(|error| TemplateError::Malformed {
        file,
        expected: "a text in UTF-8",
        found: format!("other bytes at {}", error.utf8_error().valid_up_to()),
    })
}

/// `chat_template` as a string, or as a list of `{"name": …, "template": …}`.
fn from_config(config: &[u8]) -> Result<Vec<Source>, TemplateError> {
    let malformed = |expected, found: String| TemplateError::Malformed { file: CONFIG, expected, found };
    let config = config.strip_prefix(b"\xef\xbb\xbf").unwrap_or(config);
    let config = Data::from_json(config).map_err(|error| malformed("a JSON object", clipped(error)))?;
    let Some(template) = config.get("chat_template").filter(|template| !template.is_null()) else {
        return Ok(Vec::new());
    };
    let label = |name: &str| format!("chat template `{}` of {CONFIG}", clipped(name));
    if let Some(text) = template.as_str() {
        let label = format!("chat_template of {CONFIG}");
        return Ok(vec![Source { name: DEFAULT.to_owned(), label, text: text.to_owned() }]);
    }
    let expected = "chat_template as a string or a list of objects with `name` and `template`";
    let Some(items) = template.items() else { return Err(malformed(expected, template.kind().to_owned())) };
    let sources = items.iter().map(|item| {
        let field = |key| item.get(key).and_then(|value| value.as_str().map(str::to_owned));
        match (field("name"), field("template")) {
            (Some(name), Some(text)) => Ok(Source { label: label(&name), name, text }),
            _ => Err(malformed(expected, "an entry without them".to_owned())),
        }
    });
    sources.collect()
}

/// The tokens as template variables: strings, and `additional_special_tokens` as a list.
fn named(tokens: Vec<(String, String)>) -> Vec<(Arc<str>, Value)> {
    let (mut made, mut more) = (Vec::new(), Vec::new());
    for (name, token) in tokens {
        let value = Value::paid(token);
        match name.split_once('[') {
            Some(_) => more.push(value),
            None => made.push((name.into(), value)),
        }
    }
    if !more.is_empty()
        && let Ok(list) = Value::list(Kind::List, more, &super::budget::Budget::new())
    {
        made.push(("additional_special_tokens".into(), list));
    }
    made
}
