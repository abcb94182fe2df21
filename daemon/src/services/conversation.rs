//! A conversation of the protocol as chat templates read it.

use bantam_model::template::{Conversation, Data, Now};
use bantam_proto::v1;

use super::request::check_bytes;
use crate::status::Trouble;

const MESSAGES_MAX: usize = 4096;
const TOOLS_MAX: usize = 1024;
const ARGUMENTS_MAX: usize = 256;

/// Checks a conversation and puts it together.
pub(super) fn conversation(
    found: v1::Conversation,
    generation_prompt: bool,
) -> Result<Conversation, Trouble> {
    let count = found.messages.len();
    if count == 0 || count > MESSAGES_MAX {
        let why = format!("expected 1 to {MESSAGES_MAX} messages, found {count}; correct it");
        return Err(Trouble::field("messages", why));
    }
    let messages =
        found.messages.iter().enumerate().map(|(at, one)| message(one, &format!("messages[{at}]")));
    let mut conversation = Conversation::new(messages.collect::<Result<_, _>>()?);
    if found.tools.len() > TOOLS_MAX {
        let why = format!("expected at most {TOOLS_MAX} tools, found {}; leave some out", found.tools.len());
        return Err(Trouble::field("tools", why));
    }
    let tools = found.tools.iter().enumerate().map(|(at, one)| tool(one, &format!("tools[{at}]")));
    let tools: Vec<Data> = tools.collect::<Result<_, _>>()?;
    // No tools are none to speak of.
    conversation.tools = (!tools.is_empty()).then_some(tools);
    conversation.arguments = arguments(found.template_arguments)?;
    conversation.add_generation_prompt = generation_prompt;
    if let Some(text) = found.now {
        let why = "expected a time such as 2025-01-31T12:34:56, found something else; correct it";
        conversation.now = Now::parse(&text).ok_or_else(|| Trouble::field("now", why))?;
    }
    Ok(conversation)
}

fn arguments(found: std::collections::HashMap<String, String>) -> Result<Vec<(String, Data)>, Trouble> {
    if found.len() > ARGUMENTS_MAX {
        let why = format!("expected at most {ARGUMENTS_MAX}, found {}; leave some out", found.len());
        return Err(Trouble::field("template_arguments", why));
    }
    // A map has no order; a template gets one.
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort();
    let argument = |(key, value): (String, String)| {
        let name: String = key.chars().take(60).collect();
        let value = json(&format!("template_arguments[{name:?}]"), &value)?;
        Ok((key, value))
    };
    found.into_iter().map(argument).collect()
}

fn json(field: &str, text: &str) -> Result<Data, Trouble> {
    Data::from_json(text.as_bytes()).map_err(|error| {
        Trouble::field(field, format!("expected JSON, found {error}; correct it (text needs quotes)"))
    })
}

/// Keys without a value are left out: templates ask whether they are there.
fn message(found: &v1::ChatMessage, field: &str) -> Result<Data, Trouble> {
    if found.role.is_empty() || found.role.len() > 64 {
        let why = format!("expected a role such as \"user\", found {} bytes; name one", found.role.len());
        return Err(Trouble::field(format!("{field}.role"), why));
    }
    let mut entries = vec![("role", Data::text(&found.role))];
    if let Some(content) = &found.content {
        check_bytes(&format!("{field}.content"), content)?;
        entries.push(("content", Data::text(content)));
    } else if found.tool_calls.is_empty() {
        let why = "expected some, found none; a message without calls of tools has words";
        return Err(Trouble::field(format!("{field}.content"), why));
    }
    if let Some(thinking) = &found.thinking {
        check_bytes(&format!("{field}.thinking"), thinking)?;
        // Both of its usual names.
        entries.push(("reasoning_content", Data::text(thinking)));
        entries.push(("thinking", Data::text(thinking)));
    }
    if !found.tool_calls.is_empty() {
        let calls = found.tool_calls.iter().enumerate();
        let calls = calls.map(|(at, one)| call(one, &format!("{field}.tool_calls[{at}]")));
        entries.push(("tool_calls", Data::list(calls.collect::<Result<Vec<_>, _>>()?)));
    }
    let others = [("tool_call_id", &found.tool_call_id), ("name", &found.name)];
    entries.extend(others.into_iter().filter_map(|(key, value)| Some((key, Data::text(value.as_ref()?)))));
    Ok(Data::object(entries))
}

fn call(found: &v1::ToolCall, field: &str) -> Result<Data, Trouble> {
    named(&found.name, field)?;
    // As templates expect it: the arguments are an object, where they are one.
    let arguments = Data::from_json(found.arguments.as_bytes());
    let arguments = arguments.ok().filter(|arguments| arguments.entries().is_some());
    let arguments = arguments.unwrap_or_else(|| Data::text(&found.arguments));
    let function = Data::object([("name", Data::text(&found.name)), ("arguments", arguments)]);
    let mut entries = vec![("type", Data::text("function")), ("function", function)];
    if !found.id.is_empty() {
        entries.push(("id", Data::text(&found.id)));
    }
    Ok(Data::object(entries))
}

fn tool(found: &v1::Tool, field: &str) -> Result<Data, Trouble> {
    named(&found.name, field)?;
    let mut entries =
        vec![("name", Data::text(&found.name)), ("description", Data::text(&found.description))];
    if !found.parameters.is_empty() {
        let name = format!("{field}.parameters");
        let parameters = json(&name, &found.parameters)?;
        if parameters.entries().is_none() {
            let why = format!("expected a JSON object, found {}; correct it", parameters.kind());
            return Err(Trouble::field(name, why));
        }
        entries.push(("parameters", parameters));
    }
    Ok(Data::object([("type", Data::text("function")), ("function", Data::object(entries))]))
}

fn named(name: &str, field: &str) -> Result<(), Trouble> {
    match name.len() {
        1..=256 => Ok(()),
        found => {
            let why = format!("expected a name of 1 to 256 bytes, found {found}; correct it");
            Err(Trouble::field(format!("{field}.name"), why))
        }
    }
}
