//! A conversation from files and flags, for a model's chat template.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bantam_model::prompt::Prompt;
use bantam_model::source::Source;
use bantam_model::template::{ChatTemplate, Conversation, Data, Now};
use bantam_model::tokenizer::Tokenizer;
use bantam_proto::v1;
use clap::Args;
use serde_json::Value;

use crate::daemon::conversation_of;
use crate::failure::{Failure, refused};

/// More than any context holds, pictures included.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What to render, and how.
#[derive(Args)]
pub(crate) struct ConversationFlags {
    /// Messages as JSON, rendered by the model's chat template: a list such as [{"role": "user", "content": "Hi"}],
    /// or an object with `messages` and perhaps `tools`; - reads them from standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "no_special"])]
    pub(crate) chat: Option<PathBuf>,
    /// The tools that the model may call, as a JSON list
    #[arg(long, value_name = "FILE", requires = "chat")]
    tools: Option<PathBuf>,
    /// Ends after the last message instead of at the beginning of an answer
    #[arg(long, requires = "chat")]
    no_generation_prompt: bool,
    /// A variable for the chat template, its value in JSON, such as enable_thinking=false; can be repeated
    #[arg(long, value_name = "KEY=JSON", requires = "chat", value_parser = template_argument)]
    template_arg: Vec<TemplateArgument>,
    /// The time that the chat template prints, such as 2025-01-31T12:34:56; without it, the local time
    #[arg(long, value_name = "TIME", requires = "chat", value_parser = now)]
    now: Option<Now>,
}

/// A variable for a template.
#[derive(Debug, Clone)]
pub(crate) struct TemplateArgument {
    pub(crate) key: String,
    pub(crate) value: Data,
    /// As it was given.
    pub(crate) json: String,
}

impl TemplateArgument {
    /// As the model crate takes it.
    pub(crate) fn pair(&self) -> (String, Data) {
        (self.key.clone(), self.value.clone())
    }

    /// As the daemon takes it.
    pub(crate) fn told(&self) -> (String, String) {
        (self.key.clone(), self.json.clone())
    }
}

pub(crate) fn template_argument(argument: &str) -> Result<TemplateArgument, String> {
    let Some((key, value)) = argument.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return Err("expected KEY=JSON, such as enable_thinking=false".to_owned());
    };
    match Data::from_json(value.as_bytes()) {
        Ok(json) => Ok(TemplateArgument { key: key.to_owned(), value: json, json: value.to_owned() }),
        Err(_) => {
            let start: String = value.chars().take(40).collect();
            Err(format!("the value is not JSON; a string needs quotes: '{key}={}'", serde_json::json!(start)))
        }
    }
}

pub(crate) fn now(text: &str) -> Result<Now, String> {
    Now::parse(text).ok_or_else(|| "expected a time such as 2025-01-31T12:34:56".to_owned())
}

impl ConversationFlags {
    /// The first flag that means something with `--chat` alone. (Where `--text` is given too, clap does not ask for
    /// what it excludes.)
    pub(crate) fn needs_chat(&self) -> Option<&'static str> {
        let flags = [
            ("--tools", self.tools.is_some()),
            ("--no-generation-prompt", self.no_generation_prompt),
            ("--template-arg", !self.template_arg.is_empty()),
            ("--now", self.now.is_some()),
        ];
        flags.into_iter().find_map(|(name, used)| used.then_some(name))
    }

    /// The conversation `--chat`, as the model reads it.
    pub(crate) fn prompt(self, source: &Source, tokenizer: &Tokenizer) -> Result<Prompt, Failure> {
        let template = chat_template(source)?;
        let mut conversation = match &self.chat {
            Some(path) => read_conversation(path)?,
            None => return Err(refused("--chat is missing; write: --chat messages.json")),
        };
        if let Some(path) = &self.tools {
            let expected = "a JSON list of tools, each an object with `type` and `function`";
            let (place, tools, _) = read_json(path, expected)?;
            let tools = tools.items().ok_or_else(|| wrong(&place, expected, &tools))?;
            conversation.tools = Some(objects(tools, &place, "a list of tools, each an object")?);
        }
        conversation.arguments = self.template_arg.iter().map(TemplateArgument::pair).collect();
        conversation.add_generation_prompt = !self.no_generation_prompt;
        conversation.now = self.now.unwrap_or(Now::LOCAL);
        let prompt = Prompt::of(&conversation, &template, tokenizer);
        Ok(prompt.map_err(|error| source.template_error(error))?)
    }
}

impl ConversationFlags {
    /// Whether the text ends where an answer begins.
    pub(crate) fn ends_with_prompt(&self) -> bool {
        !self.no_generation_prompt
    }

    /// The same conversation for a daemon.
    pub(crate) fn message(&self) -> Result<v1::Conversation, Failure> {
        let read = |path: &Path, expected| {
            let (place, _, bytes) = read_json(path, expected)?;
            let value: Value = serde_json::from_slice(json_of(&bytes))
                .map_err(|error| refused(format!("{place}: expected {expected}, found: {error}")))?;
            Ok::<_, Failure>(value)
        };
        let Some(path) = &self.chat else {
            return Err(refused("--chat is missing; write: --chat messages.json"));
        };
        let chat = read(path, "a JSON list of messages")?;
        let tools = match &self.tools {
            Some(path) => read(path, "a JSON list of tools")?,
            None => chat["tools"].clone(),
        };
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let messages = if chat.is_array() { list(&chat) } else { list(&chat["messages"]) };
        let told = conversation_of(&messages, &list(&tools));
        let mut told =
            told.map_err(|found| refused(format!("a daemon cannot be told {found}; give --local")))?;
        told.template_arguments = self.template_arg.iter().map(TemplateArgument::told).collect();
        told.now = self.now.and_then(Now::text);
        Ok(told)
    }
}

/// The model's template; an error where it has none.
pub(crate) fn chat_template(source: &Source) -> Result<ChatTemplate, Failure> {
    source.chat_template()?.ok_or_else(|| {
        refused(format!(
            "{}: expected a chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json), found \
             none; this model was not made to chat, or the file was not downloaded: fetch it, or use `bantam run`",
            source.folder().display()
        ))
    })
}

fn read_conversation(path: &Path) -> Result<Conversation, Failure> {
    let expected = "a JSON list of messages such as [{\"role\": \"user\", \"content\": \"Hi\"}], or an object with \
        `messages`";
    let (place, data, _) = read_json(path, expected)?;
    let messages = data.items().or_else(|| data.get("messages").and_then(|messages| messages.items()));
    let messages = messages.ok_or_else(|| wrong(&place, expected, &data))?;
    let mut conversation =
        Conversation::new(objects(messages, &place, "a list of messages, each an object")?);
    if let Some(tools) = data.get("tools").filter(|tools| !tools.is_null()) {
        let items = tools.items().ok_or_else(|| wrong(&place, "`tools` as a list", &tools))?;
        conversation.tools = Some(objects(items, &place, "a list of tools, each an object")?);
    }
    Ok(conversation)
}

fn objects(items: Vec<Data>, place: &str, expected: &str) -> Result<Vec<Data>, Failure> {
    match items.iter().find(|item| item.entries().is_none()) {
        Some(other) => Err(wrong(place, expected, other)),
        None => Ok(items),
    }
}

fn wrong(place: &str, expected: &str, found: &Data) -> Failure {
    refused(format!("{place}: expected {expected}, found {}; correct the file", found.kind()))
}

/// All bytes of a conversation, and no more than that: a device may have no end.
pub(crate) fn read_bytes(
    reader: io::Result<impl Read>,
    place: &str,
    expected: &'static str,
) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = reader.and_then(|reader| reader.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|source| Failure::Read { path: PathBuf::from(place), expected, source })?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(refused(format!(
            "{place}: expected at most {} MiB, found more; shorten the conversation",
            FILE_BYTES_MAX >> 20
        ))),
        false => Ok(bytes),
    }
}

/// Without the mark that some editors put first.
fn json_of(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The JSON of a file, the file's name for messages, and its bytes.
fn read_json(path: &Path, expected: &'static str) -> Result<(String, Data, Vec<u8>), Failure> {
    let is_standard = path.as_os_str() == "-";
    let place = if is_standard { "standard input".to_owned() } else { path.display().to_string() };
    let reader: io::Result<Box<dyn Read>> = match is_standard {
        true => Ok(Box::new(io::stdin().lock())),
        false => File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
    };
    let bytes = read_bytes(reader, &place, expected)?;
    match Data::from_json(json_of(&bytes)) {
        Ok(data) => Ok((place, data, bytes)),
        Err(error) => Err(refused(format!("{place}: expected {expected}, found: {error}; correct the file"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_arguments_are_json_and_a_bare_string_is_shown_quoted() {
        let found = template_argument("effort=\"high\"").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((found.key.as_str(), found.value.as_str()), ("effort", Some("high")));
        assert_eq!(found.told(), ("effort".to_owned(), "\"high\"".to_owned()));
        let message = template_argument("effort=high").err();
        assert!(message.is_some_and(|message| message.contains("'effort=\"high\"'")));
        assert!(template_argument("effort").is_err() && template_argument("=1").is_err());
    }
}
