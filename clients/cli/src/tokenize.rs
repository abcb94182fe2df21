//! `bantam tokenize`: a text as the model's token ids.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;

use crate::chosen_model::ChosenModel;
use crate::failure::{Failure, refused, usage};
use crate::output;

/// Writes a text as token ids
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam tokenize --text \"Once upon a time\"\n  \
                        bantam tokenize ./my-model --text \"Once upon a time\" --no-special --json")]
pub(crate) struct Tokenize {
    #[command(flatten)]
    model: ChosenModel,
    /// The text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// Leaves out the special tokens that the tokenizer would add
    #[arg(long)]
    no_special: bool,
    /// Writes a JSON object with the ids and their tokens
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    chat: Chat,
}

/// Spellings that the chat templates will answer to.
#[derive(Args)]
struct Chat {
    #[arg(long, hide = true)]
    chat: Option<OsString>,
    #[arg(long, hide = true)]
    tools: Option<OsString>,
    #[arg(long, hide = true)]
    no_generation_prompt: bool,
    #[arg(long, hide = true)]
    template_arg: Vec<OsString>,
    #[arg(long, hide = true)]
    now: Option<OsString>,
}

impl Chat {
    /// The first of them that was used.
    fn asked(&self) -> Option<&'static str> {
        let flags = [
            ("--chat", self.chat.is_some()),
            ("--tools", self.tools.is_some()),
            ("--no-generation-prompt", self.no_generation_prompt),
            ("--template-arg", !self.template_arg.is_empty()),
            ("--now", self.now.is_some()),
        ];
        flags.into_iter().find_map(|(name, used)| used.then_some(name))
    }
}

impl Tokenize {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(flag) = self.chat.asked() {
            return Err(refused(format!(
                "{flag}: chat templates are not supported yet; give the rendered text with --text and --no-special"
            )));
        }
        let Some(text) = &self.text else {
            return Err(usage(
                "--text is missing; write: bantam tokenize [MODEL] --text \"Once upon a time\"",
            ));
        };
        let source = self.model.open()?;
        let tokenizer = source.text()?.tokenizer;
        let ids = tokenizer.encode(text, !self.no_special);
        let ids = ids.map_err(|error| source.tokenizer_error(error))?;
        if self.json {
            let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.token(id)).collect();
            output::json(&json!({ "ids": ids, "tokens": tokens }))?;
        } else {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            output::line(&ids.join(" "))?;
        }
        Ok(())
    }
}
