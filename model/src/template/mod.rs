//! Chat templates: a conversation becomes the text that a model was trained on.
//!
//! A template is a program in Jinja, written by whoever made the model, so it is run by an interpreter of our own
//! that gives it nothing but the conversation, and ends it when it takes too many steps, makes too much text or
//! nests too deeply. The dialect is that of transformers' `apply_chat_template`: blocks take their line's white
//! space with them, values print as Python's, `tojson` writes as `json.dumps`.
//!
//! Not here, because no chat template needs them: other files (`include`, `import`, `extends`), escaping for HTML,
//! and methods that change a list or a dict.

mod budget;
mod checks;
mod clock;
mod data;
mod evaluation;
mod expressions;
mod filters;
mod formatting;
mod lexer;
mod machine;
mod methods;
mod operators;
mod parser;
mod source;
mod syntax;
mod text;
mod value;

use std::sync::Arc;

use crate::files::{FilesError, ModelFiles};
use crate::foreign::clipped;

pub use clock::Now;
pub use data::Data;

/// The most a template may print, in bytes: eight conversations of 128k tokens.
pub const OUTPUT_MAX: usize = 16 << 20;
/// The stack of parsing and rendering. Both nest no deeper than fits here.
const STACK_BYTES: usize = 16 << 20;

/// Why a template gave no text.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A file that should hold a template, or tokens for it, holds something else.
    #[error("{file}: expected {expected}, found {found}; fetch the file again, or correct it by hand")]
    Malformed {
        /// The file.
        file: &'static str,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// The model has several templates and none that is meant here.
    #[error("expected a chat template named `default`, found only: {}; add {{\"name\": \"default\", …}} to \
        `chat_template` in tokenizer_config.json", .names.join(", "))]
    NoDefault {
        /// Those that are there.
        names: Vec<String>,
    },
    /// The template itself refuses the conversation, in its own words.
    #[error("the model's chat template refuses this conversation: {0}")]
    Raised(String),
    /// The template is no template, or does not fit the conversation.
    #[error("{name}, line {line}: {reason}; correct the template or the conversation")]
    Failed {
        /// Which template.
        name: String,
        /// Where in it.
        line: u32,
        /// What is wrong there.
        reason: String,
    },
    /// The template does more than a template may.
    #[error(
        "{name}, line {line}: the template was stopped: {reason}; shorten the conversation, or report the model \
        if others render it"
    )]
    Stopped {
        /// Which template.
        name: String,
        /// Where in it.
        line: u32,
        /// Which limit.
        reason: String,
    },
    /// A name was given that the template receives anyway.
    #[error("the template argument `{0}` is set by the conversation itself; leave it out")]
    Reserved(String),
}

/// Why something inside a template failed; the machine knows the line.
#[derive(Debug)]
enum Fault {
    Raised(String),
    Error(String),
    Limit(String),
}

fn fault(reason: impl Into<String>) -> Fault {
    Fault::Error(reason.into())
}

impl Fault {
    fn reason(&self) -> &str {
        match self {
            Fault::Raised(reason) | Fault::Error(reason) | Fault::Limit(reason) => reason,
        }
    }

    fn at(self, name: &str, line: u32) -> TemplateError {
        let name = name.to_owned();
        match self {
            // The template's words are kept whole up to a length that is still a message.
            Fault::Raised(message) => TemplateError::Raised(message.chars().take(4000).collect()),
            Fault::Error(reason) => TemplateError::Failed { name, line, reason: clipped(reason) },
            Fault::Limit(reason) => TemplateError::Stopped { name, line, reason },
        }
    }
}

/// A conversation, and what else the template is told.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// The messages, objects with `role` and mostly `content`.
    pub messages: Vec<Data>,
    /// The tools the model may call, as JSON schemas; `None` says that tools are not spoken of.
    pub tools: Option<Vec<Data>>,
    /// More variables, such as `enable_thinking`. They win over the model's special tokens.
    pub arguments: Vec<(String, Data)>,
    /// Whether the text ends with the beginning of the model's answer.
    pub add_generation_prompt: bool,
    /// The time that the template may print.
    pub now: Now,
}

impl Conversation {
    /// Messages to be answered, without tools or arguments, at the local time.
    pub fn new(messages: Vec<Data>) -> Self {
        Self { messages, tools: None, arguments: Vec::new(), add_generation_prompt: true, now: Now::LOCAL }
    }

    /// The same with other strings everywhere: those for which `change` has none stay.
    pub(crate) fn mapped(&self, change: &mut dyn FnMut(&str) -> Option<String>) -> Self {
        let mut list = |items: &[Data]| items.iter().map(|item| item.mapped(change)).collect();
        let messages = list(&self.messages);
        let tools = self.tools.as_deref().map(list);
        let arguments =
            self.arguments.iter().map(|(name, value)| (name.clone(), value.mapped(change))).collect();
        Self { messages, tools, arguments, ..*self }
    }
}

/// The chat template of a model, parsed once and good for any number of conversations.
#[derive(Debug)]
pub struct ChatTemplate {
    variants: Vec<Variant>,
    /// `bos_token` and its kind.
    tokens: Vec<(Arc<str>, value::Value)>,
}

#[derive(Debug)]
struct Variant {
    /// `default`, `tool_use` or the model's own.
    name: String,
    /// What to call it in messages.
    label: String,
    body: syntax::Body,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// The template of a model; `None` where the model has none.
    pub fn of_model(files: &ModelFiles) -> Result<Option<Self>, TemplateError> {
        let found = source::find(files)?;
        if found.sources.is_empty() {
            return Ok(None);
        }
        let variants = found.sources.into_iter().map(|source| parse(source.name, source.label, &source.text));
        Ok(Some(Self { variants: variants.collect::<Result<_, _>>()?, tokens: found.tokens }))
    }

    /// A template by its text, without special tokens.
    pub fn from_text(text: &str) -> Result<Self, TemplateError> {
        let variant = parse(DEFAULT.to_owned(), "the chat template".to_owned(), text)?;
        Ok(Self { variants: vec![variant], tokens: Vec::new() })
    }

    /// The text of a conversation. With tools it is the template named `tool_use`, where there is one.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let variant = self.variant(conversation.tools.is_some())?;
        let mut variables = self.tokens.clone();
        let list = |items: &[Data]| Data::list(items.iter().cloned()).0;
        let tools = conversation.tools.as_deref().map_or(value::Value::None, list);
        variables.push(("documents".into(), value::Value::None));
        for (name, value) in &conversation.arguments {
            if ["messages", "tools", "add_generation_prompt"].contains(&name.as_str()) {
                return Err(TemplateError::Reserved(clipped(name)));
            }
            variables.push((name.as_str().into(), value.0.clone()));
        }
        variables.push(("messages".into(), list(&conversation.messages)));
        variables.push(("tools".into(), tools));
        variables
            .push(("add_generation_prompt".into(), value::Value::Bool(conversation.add_generation_prompt)));
        let now = conversation.now.frozen();
        let rendered = on_own_stack(|| {
            let mut machine = machine::Machine::new(variables, now, OUTPUT_MAX);
            machine.run(&variant.body).map_err(|fault| (machine.line, fault))
        });
        rendered.map_err(|(line, fault)| fault.at(&variant.label, line))
    }

    fn variant(&self, has_tools: bool) -> Result<&Variant, TemplateError> {
        let named = |name: &str| self.variants.iter().find(|variant| variant.name == name);
        let for_tools = if has_tools { named(TOOL_USE) } else { None };
        for_tools.or_else(|| named(DEFAULT)).ok_or_else(|| {
            let names = self.variants.iter().map(|variant| clipped(&variant.name)).collect();
            TemplateError::NoDefault { names }
        })
    }
}

fn parse(name: String, label: String, text: &str) -> Result<Variant, TemplateError> {
    match on_own_stack(|| parser::parse(text)) {
        Ok(body) => Ok(Variant { name, label, body }),
        Err((line, fault)) => Err(fault.at(&label, line)),
    }
}

/// Runs with a stack whose size is known, whoever calls. A panic in there, which would be our mistake, becomes an
/// error of the template.
fn on_own_stack<T: Send>(run: impl FnOnce() -> Result<T, (u32, Fault)> + Send) -> Result<T, (u32, Fault)> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        let failed = |reason: &str| Err((1, fault(reason)));
        match builder.spawn_scoped(scope, run).map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => failed("the renderer stopped; this is a mistake of ours, please report it"),
            Err(_) => failed("no thread could be started; close other programs"),
        }
    })
}

#[cfg(test)]
mod tests;
