//! `bantam tokenize`: a text or a conversation as the model's token ids.

use bantam_model::source::Source;
use bantam_proto::v1;
use bantam_proto::v1::tokenize_request::Input;
use clap::Args;
use serde_json::{Value, json};

use crate::chosen_model::ChosenModel;
use crate::conversation::ConversationFlags;
use crate::daemon::{DaemonFlags, Link, Step};
use crate::failure::{Failure, usage};
use crate::output;

/// Writes a text or a conversation as the model's token ids
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam tokenize --text \"Once upon a time\"\n  \
                        bantam tokenize ./my-model --text \"Once upon a time\" --no-special --json\n  \
                        bantam tokenize ./my-model --chat messages.json --json")]
pub(crate) struct Tokenize {
    #[command(flatten)]
    model: ChosenModel,
    /// The text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// Leaves out the special tokens that the tokenizer would add
    #[arg(long)]
    no_special: bool,
    /// Writes a JSON object with the ids, and their tokens or the rendered conversation
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    conversation: ConversationFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Tokenize {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if self.conversation.chat.is_some() {
            // Files that are here are as quickly read by us.
            if let Some(link) = self.daemon.elsewhere()? {
                return self.chat_by_daemon(&link);
            }
            let source = self.model.open()?;
            let tokenizer = source.text()?.tokenizer;
            let prompt = self.conversation.prompt(&source, &tokenizer)?;
            let ids = prompt.ids(&tokenizer).map_err(|error| source.tokenizer_error(error))?;
            return match self.json {
                true => Ok(output::json(&json!({ "ids": ids, "rendered": prompt.text() }))?),
                false => write_ids(&ids),
            };
        }
        if let Some(flag) = self.conversation.needs_chat() {
            return Err(usage(format!(
                "{flag} belongs to a conversation; give one with --chat messages.json"
            )));
        }
        let Some(text) = &self.text else {
            return Err(usage(
                "--text or --chat is missing; write: bantam tokenize [MODEL] --text \"Once upon a time\"",
            ));
        };
        if let Some(link) = self.daemon.find()?
            && let Step::Done(told) = self.text_by_daemon(&link, text)?
        {
            // A piece without letters is an id that nobody spelled.
            let piece = |piece: String| if piece.is_empty() { Value::Null } else { piece.into() };
            let tokens: Vec<Value> = told.pieces.into_iter().map(piece).collect();
            return match self.json {
                true => Ok(output::json(&json!({ "ids": told.ids, "tokens": tokens }))?),
                false => write_ids(&told.ids),
            };
        }
        let source = self.model.open()?;
        let (ids, tokens) = encode(&source, text, !self.no_special)?;
        match self.json {
            true => Ok(output::json(&json!({ "ids": ids, "tokens": tokens }))?),
            false => write_ids(&ids),
        }
    }
}

impl Tokenize {
    fn text_by_daemon(&self, link: &Link, text: &str) -> Result<Step<v1::TokenizeResponse>, Failure> {
        let request = v1::TokenizeRequest {
            model: link.model(self.model.path()),
            input: Some(Input::Text(text.to_owned())),
            special: Some(!self.no_special),
            pieces: self.json,
            ..v1::TokenizeRequest::default()
        };
        let mut client = link.generation();
        let told = link.wait(client.tokenize(link.request(request)));
        link.or_without(told.map(tonic::Response::into_inner))
    }

    /// A conversation, by a daemon whose files are not here.
    fn chat_by_daemon(&self, link: &Link) -> Result<(), Failure> {
        let request = v1::TokenizeRequest {
            model: link.model(self.model.path()),
            generation_prompt: Some(self.conversation.ends_with_prompt()),
            input: Some(Input::Conversation(self.conversation.message()?)),
            ..v1::TokenizeRequest::default()
        };
        let mut client = link.generation();
        let told = link.wait(client.tokenize(link.request(request)));
        let told = told.map_err(|status| link.failure(&status))?.into_inner();
        match self.json {
            true => Ok(output::json(&json!({ "ids": told.ids, "rendered": told.rendered }))?),
            false => write_ids(&told.ids),
        }
    }
}

fn encode(source: &Source, text: &str, special: bool) -> Result<(Vec<u32>, Vec<Option<String>>), Failure> {
    let tokenizer = source.text()?.tokenizer;
    let ids = tokenizer.encode(text, special).map_err(|error| source.tokenizer_error(error))?;
    let tokens = ids.iter().map(|&id| tokenizer.token(id)).collect();
    Ok((ids, tokens))
}

fn write_ids(ids: &[u32]) -> Result<(), Failure> {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    Ok(output::line(&ids.join(" "))?)
}
