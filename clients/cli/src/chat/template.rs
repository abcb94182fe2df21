//! The model's chat template, with what the user gave it.

use std::str::FromStr;

use bantam_model::source::Source;
use bantam_model::template::{ChatTemplate, Conversation, Data};
use serde_json::Value;

use crate::failure::{Failure, refused};

/// KEY=JSON.
#[derive(Debug, Clone)]
pub(super) struct TemplateArgument {
    key: String,
    value: Data,
}

impl FromStr for TemplateArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |found: &str| {
            format!(
                "expected KEY=JSON, such as enable_thinking=false or effort=\"low\" with its quotes, found {found}"
            )
        };
        let (key, value) = text.split_once('=').ok_or_else(|| wrong("no `=`"))?;
        let value = Data::from_json(value.as_bytes()).map_err(|error| wrong(&error.to_string()))?;
        Ok(TemplateArgument { key: key.to_owned(), value })
    }
}

/// A template and its arguments.
#[derive(Debug)]
pub(super) struct Template {
    template: ChatTemplate,
    arguments: Vec<(String, Data)>,
}

impl Template {
    pub(super) fn of(source: &Source, arguments: &[TemplateArgument]) -> Result<Self, Failure> {
        let Some(template) = source.chat_template()? else {
            return Err(refused(format!(
                "{}: the model has no chat template, so it was hardly trained to chat: let it continue a text with \
                 `bantam run`, or put the chat_template.jinja that belongs to it beside its config.json",
                source.folder().display()
            )));
        };
        let pair = |argument: &TemplateArgument| (argument.key.clone(), argument.value.clone());
        Ok(Template { template, arguments: arguments.iter().map(pair).collect() })
    }

    /// The text up to where the model is to answer.
    pub(super) fn render(&self, source: &Source, messages: &[Value]) -> Result<String, Failure> {
        let data = |message: &Value| Data::from_json(message.to_string().as_bytes());
        let messages = messages.iter().map(data).collect::<Result<_, _>>();
        let messages = messages.map_err(|error| refused(format!("a message that is no JSON: {error}")))?;
        let mut conversation = Conversation::new(messages);
        conversation.arguments.clone_from(&self.arguments);
        Ok(self.template.render(&conversation).map_err(|error| source.template_error(error))?)
    }
}
