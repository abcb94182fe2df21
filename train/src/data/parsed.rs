//! A template found out from the model's own: by letting that write conversations with a mark in place of words.
//!
//! It works for templates that write turn after turn, which is most of them.

use bantam_model::template::{ChatTemplate, Conversation, Data, TemplateError};

use super::error::DataError;
use super::spoken::Spoken;
use super::template::{Kind, Slot, Template};

const MARK: &str = "{{content}}";

/// The template of a model that has its own; one that writes nothing but the words, where it has none.
pub(super) fn parsed(spoken: &Spoken<'_>) -> Result<Template, DataError> {
    let Some(own) = &spoken.chat_template else { return Template::named("empty") };
    let prefix_ids = spoken.tokenizer.encode("", true)?;
    let prefix = spoken.tokenizer.decode(&prefix_ids, false);
    let length = prefix.chars().count();
    let written = |messages: &[(&str, &str)], is_asked: bool| {
        let text = rendered(own, messages, is_asked).map_err(|error| refused(error.to_string()))?;
        Ok::<String, DataError>(text.chars().skip(length).collect())
    };
    let system = written(&[("system", MARK)], false)?;
    let user_alone = written(&[("system", ""), ("user", MARK)], true)?;
    let mut user = written(&[("user", MARK)], true)?;
    let both = written(&[("user", MARK), ("assistant", MARK)], false)?;
    let assistant: String = both.chars().skip(user.chars().count()).collect();
    let kind = if assistant.contains("<think>") { Kind::Thinking } else { Kind::Plain };
    let assistant = assistant.replace("<think>", "").replace("</think>", "");
    let assistant = assistant.trim_start_matches('\n').to_owned();
    let mut default_system = String::new();
    if user.chars().count() > user_alone.chars().count() {
        // The template has a system's words of its own where nobody gives any.
        default_system = added(&user_alone, &user);
        let in_front = system.replacen(MARK, &default_system, 1).chars().count();
        user = user.chars().skip(in_front).collect();
    }
    for (slot, who) in [(&system, "the system"), (&user, "a question"), (&assistant, "an answer")] {
        if !slot.contains(MARK) {
            return Err(refused(format!("none that could be taken apart: the words of {who} went missing")));
        }
    }
    let slots = |text: String| Some(vec![Slot::Text(text)]);
    let prefix = if prefix.is_empty() { Vec::new() } else { vec![Slot::Text(prefix)] };
    Ok(Template {
        name: "of the model".to_owned(),
        kind,
        prefix,
        system: slots(system),
        user: slots(user),
        assistant: slots(assistant),
        default_system,
        ..Template::default()
    })
}

fn refused(found: String) -> DataError {
    DataError::Template {
        expected: "a chat template that writes system, question and answer in turn",
        found,
        advice: "name a template, such as `template: default`".to_owned(),
    }
}

fn rendered(own: &ChatTemplate, messages: &[(&str, &str)], is_asked: bool) -> Result<String, TemplateError> {
    let messages = messages.iter().map(|(role, content)| Data::message(role, content)).collect();
    own.render(&Conversation { add_generation_prompt: is_asked, ..Conversation::new(messages) })
}

/// What the longer text has that the shorter has not.
fn added(shorter: &str, longer: &str) -> String {
    let mut expected = shorter.chars().peekable();
    let mut added = String::new();
    for letter in longer.chars() {
        match expected.peek() {
            None => break,
            Some(next) if *next == letter => {
                expected.next();
            }
            Some(_) => added.push(letter),
        }
    }
    added
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found() {
        assert_eq!(added("<s></s><u>", "<s>Be nice.</s><u>"), "Be nice.");
        assert_eq!(added("ab", "ab"), "");
    }
}
