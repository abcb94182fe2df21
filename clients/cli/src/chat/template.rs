//! The model's chat template, with what the user gave it.

use bantam_model::prompt::Prompt;
use bantam_model::source::Source;
use bantam_model::template::{ChatTemplate, Conversation, Data, Now};
use bantam_model::tokenizer::Tokenizer;
use clap::Args;
use serde_json::Value;

use crate::conversation::{TemplateArgument, chat_template, now, template_argument};
use crate::failure::{Failure, refused};

/// What a template is told beside the messages.
#[derive(Args)]
pub(super) struct TemplateFlags {
    /// A variable for the chat template, its value in JSON, such as enable_thinking=false; can be repeated
    #[arg(long, value_name = "KEY=JSON", value_parser = template_argument)]
    pub(super) template_arg: Vec<TemplateArgument>,
    /// The time that the chat template prints, such as 2025-01-31T12:34:56 [default: when the chat began]
    #[arg(long, value_name = "TIME", value_parser = now)]
    pub(super) now: Option<Now>,
}

/// A template and what it is told. The time stands still, or a conversation would have to be read anew.
#[derive(Debug)]
pub(super) struct Template {
    template: ChatTemplate,
    arguments: Vec<(String, Data)>,
    now: Now,
}

impl Template {
    pub(super) fn of(source: &Source, flags: &TemplateFlags) -> Result<Self, Failure> {
        let arguments = flags.template_arg.iter().map(TemplateArgument::pair).collect();
        let now = flags.now.unwrap_or(Now::LOCAL).frozen();
        Ok(Template { template: chat_template(source)?, arguments, now })
    }

    /// The conversation up to where the model is to answer.
    pub(super) fn prompt(
        &self,
        source: &Source,
        tokenizer: &Tokenizer,
        messages: &[Value],
    ) -> Result<Prompt, Failure> {
        let data = |message: &Value| Data::from_json(message.to_string().as_bytes());
        let messages = messages.iter().map(data).collect::<Result<_, _>>();
        let messages =
            messages.map_err(|error| refused(format!("a message that cannot be rendered: {error}")))?;
        let mut conversation = Conversation::new(messages);
        conversation.arguments.clone_from(&self.arguments);
        conversation.now = self.now;
        let prompt = Prompt::of(&conversation, &self.template, tokenizer);
        Ok(prompt.map_err(|error| source.template_error(error))?)
    }
}
