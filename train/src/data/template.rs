//! How a conversation is spelled for a kind of model, from a table of data.
//!
//! `templates.json` holds LLaMA-Factory's templates for text (0.9.3, and gpt_oss of 0.9.4; Apache-2.0), one to a line,
//! without what is the same for most. A template is bound to a vocabulary before it is used, which settles what ends a
//! text. Tokens that a message spells become those tokens, there and therefore here; in prompts of people they do not.

use std::sync::LazyLock;

use bantam_model::tokenizer::TokenizerError;
use serde::Deserialize;

use super::conversation::{Conversation, Message, Reason, Role};
use super::error::DataError;
use super::spoken::{Ends, Spoken};
use super::tools::ToolFormat;

static TEMPLATES: LazyLock<Vec<Template>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("templates.json"))
        .expect("our own table is well formed, a test reads it")
});

const CONTENT: &str = "{{content}}";
/// What ends texts of vocabularies that name no end.
const LAST_RESORT: &str = "<|endoftext|>";

/// A piece of a template: text is made ids for itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Slot {
    Text(String),
    Token { token: String },
    Named { named: Named },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Named {
    Bos,
    Eos,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    #[default]
    Plain,
    /// The system's words stand in the first question.
    SystemInUser,
    /// Answers without a thought get an empty one.
    Thinking,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Template {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) prefix: Vec<Slot>,
    pub(super) system: Option<Vec<Slot>>,
    pub(super) user: Option<Vec<Slot>>,
    pub(super) assistant: Option<Vec<Slot>>,
    pub(super) function: Option<Vec<Slot>>,
    pub(super) observation: Option<Vec<Slot>>,
    pub(super) calls: ToolFormat,
    pub(super) tools: ToolFormat,
    pub(super) default_system: String,
    /// The first is the end of an answer where `replace_eos` says so.
    pub(super) stop_words: Vec<String>,
    pub(super) thought: Option<[String; 2]>,
    pub(super) empty_thought: Option<String>,
    /// Answers end with nothing of their own; eos stands once behind the conversation.
    pub(super) efficient_eos: bool,
    pub(super) replace_eos: bool,
}

/// The names of all templates.
pub fn template_names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|template| template.name.as_str())
}

/// Turns of a conversation as ids: what is read, and what is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) source: Vec<u32>,
    pub(super) target: Vec<u32>,
}

/// Why a conversation has no ids.
#[derive(Debug)]
pub(super) enum Trouble {
    Row(Reason),
    Text(TokenizerError),
}

impl From<Reason> for Trouble {
    fn from(reason: Reason) -> Self {
        Trouble::Row(reason)
    }
}

impl From<TokenizerError> for Trouble {
    fn from(error: TokenizerError) -> Self {
        Trouble::Text(error)
    }
}

impl Template {
    /// The template of a name.
    pub(super) fn named(name: &str) -> Result<Self, DataError> {
        match TEMPLATES.iter().find(|template| template.name == name) {
            Some(template) => Ok(template.clone()),
            None => Err(DataError::Template {
                expected: "a name that is known",
                found: bantam_model::foreign::clipped(format_args!("{name:?}")),
                advice: format!("the names are {}", template_names().collect::<Vec<_>>().join(", ")),
            }),
        }
    }

    fn slots(&self, role: Role) -> Vec<Slot> {
        let content = || vec![Slot::Text(CONTENT.to_owned())];
        let user = || self.user.clone().unwrap_or_else(content);
        let assistant = || {
            self.assistant.clone().unwrap_or_else(|| match self.efficient_eos {
                true => content(),
                false => vec![Slot::Text(CONTENT.to_owned()), Slot::Named { named: Named::Eos }],
            })
        };
        match role {
            Role::User => user(),
            Role::Assistant => assistant(),
            Role::Function => self.function.clone().unwrap_or_else(assistant),
            Role::Observation => self.observation.clone().unwrap_or_else(user),
        }
    }

    fn all_slots(&self) -> Vec<Slot> {
        let roles = [Role::User, Role::Assistant, Role::Function, Role::Observation];
        let said = roles.into_iter().flat_map(|role| self.slots(role));
        said.chain(self.prefix.clone()).chain(self.system.clone().unwrap_or_default()).collect()
    }
}

/// A template with what people changed about it, and a vocabulary.
#[derive(Debug)]
pub(super) struct Bound<'s> {
    template: Template,
    pub(super) spoken: &'s Spoken<'s>,
    pub(super) ends: Ends,
    /// Whether answers may think: `None` leaves thoughts and learns no empty ones.
    enable_thinking: Option<bool>,
    /// What the vocabulary lacks, in sentences.
    pub(super) notes: Vec<String>,
}

/// What people may change about a template.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    pub(super) tool_format: Option<ToolFormat>,
    pub(super) default_system: Option<String>,
    pub(super) enable_thinking: Option<bool>,
}

impl<'s> Bound<'s> {
    pub(super) fn new(
        mut template: Template,
        spoken: &'s Spoken<'s>,
        changes: Changes,
    ) -> Result<Self, DataError> {
        let tokenizer = spoken.tokenizer;
        if let Some(format) = changes.tool_format {
            template.function = Template { efficient_eos: template.efficient_eos, ..Template::default() }
                .slots(Role::Function)
                .into();
            (template.calls, template.tools) = (format, format);
        }
        if let Some(system) = changes.default_system {
            template.default_system = system;
        }
        let mut notes = Vec::new();
        let slots = template.all_slots();
        for word in &template.stop_words {
            let is_spelled =
                slots.iter().any(|slot| matches!(slot, Slot::Text(text) if text.contains(word.as_str())));
            if is_spelled && tokenizer.id(word).is_none() {
                let name = &template.name;
                notes.push(format!(
                    "the vocabulary has no {word} of the template {name}: it is spelled in pieces"
                ));
            }
        }
        for slot in &slots {
            if let Slot::Token { token } = slot
                && tokenizer.id(token).is_none()
            {
                return Err(DataError::Template {
                    expected: "a vocabulary with all of its tokens",
                    found: format!("none called {token}"),
                    advice: "choose the template that belongs to the model".to_owned(),
                });
            }
        }
        let replaced = template.stop_words.first().filter(|_| template.replace_eos);
        let eos = replaced.and_then(|word| tokenizer.id(word)).or(tokenizer.eos());
        let eos = eos.or_else(|| tokenizer.id(LAST_RESORT)).ok_or_else(|| DataError::Template {
            expected: "a vocabulary that names the end of a text (eos_token)",
            found: "none".to_owned(),
            advice: "name it in tokenizer_config.json".to_owned(),
        })?;
        let pad = tokenizer.pad().filter(|_| spoken.names_pad).unwrap_or(eos);
        let ends = Ends { bos: tokenizer.bos(), eos, pad };
        Ok(Self { template, spoken, ends, enable_thinking: changes.enable_thinking, notes })
    }

    /// The eos that a conversation ends with, where its answers end without.
    pub(super) fn efficient_eos(&self) -> Option<u32> {
        self.template.efficient_eos.then_some(self.ends.eos)
    }

    /// The ids of a conversation, turn by turn.
    pub(super) fn turns(&self, conversation: &Conversation) -> Result<Vec<Turn>, Trouble> {
        let mut messages = conversation.messages.clone();
        let is_thinking = self.template.kind == Kind::Thinking;
        if is_thinking && self.enable_thinking == Some(false) {
            let answers = messages.iter_mut().skip(1).step_by(2);
            answers.for_each(|message| message.content = self.without_thought(&message.content));
        }
        let mut said = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            said.push(self.message_ids(index, message, conversation)?);
        }
        let mut turns = Vec::with_capacity(messages.len() / 2);
        let mut said = said.into_iter();
        for pair in messages.chunks_exact(2) {
            let (Some(mut source), Some(mut target)) = (said.next(), said.next()) else { break };
            if is_thinking && !self.has_thought(&pair[1].content) {
                let empty = self.spoken.ids(&self.empty_thought())?;
                match self.enable_thinking {
                    Some(true) => target.splice(0..0, empty).for_each(drop),
                    _ => source.extend(empty),
                }
            }
            turns.push(Turn { source, target });
        }
        Ok(turns)
    }

    fn message_ids(
        &self,
        index: usize,
        message: &Message,
        conversation: &Conversation,
    ) -> Result<Vec<u32>, Trouble> {
        let template = &self.template;
        let mut slots = Vec::new();
        let mut in_front = String::new();
        if index == 0 {
            slots.extend(template.prefix.iter().cloned());
            let system = match conversation.system.as_str() {
                "" => &template.default_system,
                system => system,
            };
            if !system.is_empty() || !conversation.tools.is_empty() {
                let mut system = system.to_owned();
                if !conversation.tools.is_empty() {
                    system += &template.tools.tools(&conversation.tools)?;
                }
                let content = [Slot::Text(CONTENT.to_owned())];
                let format = template.system.as_deref().unwrap_or(&content);
                match (template.kind, format.first()) {
                    (Kind::SystemInUser, Some(Slot::Text(first))) => in_front = filled(first, &system, None),
                    _ => slots.extend(format.iter().map(|slot| fill(slot, &system, None))),
                }
            }
        }
        let content = match message.role {
            Role::User => in_front + &message.content,
            Role::Function => template.calls.calls(&message.content)?,
            Role::Assistant | Role::Observation => message.content.clone(),
        };
        // Only questions are numbered, and not where the system speaks in them.
        let is_numbered = message.role == Role::User && template.kind != Kind::SystemInUser;
        let number = is_numbered.then_some(index / 2);
        slots.extend(template.slots(message.role).iter().map(|slot| fill(slot, &content, number)));
        Ok(self.slot_ids(&slots)?)
    }

    fn slot_ids(&self, slots: &[Slot]) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        for slot in slots {
            match slot {
                Slot::Text(text) => ids.extend(self.spoken.ids(text)?),
                Slot::Token { token } => ids.extend(self.spoken.tokenizer.id(token)),
                Slot::Named { named: Named::Bos } => ids.extend(self.ends.bos),
                Slot::Named { named: Named::Eos } => ids.push(self.ends.eos),
            }
        }
        Ok(ids)
    }

    fn thought(&self) -> [&str; 2] {
        match &self.template.thought {
            Some([open, close]) => [open, close],
            None => ["<think>", "</think>"],
        }
    }

    fn has_thought(&self, content: &str) -> bool {
        self.thought().iter().any(|word| content.contains(word))
    }

    fn empty_thought(&self) -> String {
        let [open, close] = self.thought();
        self.template.empty_thought.clone().unwrap_or_else(|| format!("{open}\n\n{close}\n\n"))
    }

    /// Without what stands between the words of a thought, these included, nor the line breaks that are then in front.
    fn without_thought(&self, content: &str) -> String {
        let [open, close] = self.thought();
        let mut kept = String::new();
        let mut rest = content;
        while let Some(start) = rest.find(open)
            && let Some(length) = rest[start + open.len()..].find(close)
        {
            kept.push_str(&rest[..start]);
            rest = &rest[start + open.len() + length + close.len()..];
        }
        kept.push_str(rest);
        kept.trim_start_matches('\n').to_owned()
    }
}

fn fill(slot: &Slot, content: &str, number: Option<usize>) -> Slot {
    match slot {
        Slot::Text(text) => Slot::Text(filled(text, content, number)),
        other => other.clone(),
    }
}

/// A slot's text with the content in its place; afterwards, as others do it, the number of the question.
fn filled(text: &str, content: &str, number: Option<usize>) -> String {
    let text = text.replacen(CONTENT, content, 1);
    match number {
        Some(number) => text.replacen("{{idx}}", &number.to_string(), 1),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_well_formed() {
        let names: BTreeSet<_> = template_names().collect();
        assert_eq!(names.len(), TEMPLATES.len());
        for template in TEMPLATES.iter() {
            let speaks = |role| {
                let slots = template.slots(role);
                slots.iter().any(|slot| matches!(slot, Slot::Text(text) if text.contains(CONTENT)))
            };
            let roles = [Role::User, Role::Assistant, Role::Function, Role::Observation];
            assert!(roles.into_iter().all(speaks), "{}", template.name);
            assert!(!template.replace_eos || !template.stop_words.is_empty(), "{}", template.name);
        }
        assert!(Template::named("llama4711").is_err());
    }
}
