//! Conversations in JSON as messages of the daemon: all of it or nothing, because a template may print any key.

use bantam_proto::v1;
use serde_json::{Map, Value};

/// Keys of a message that the daemon's messages have.
const KEYS: [&str; 6] = ["role", "content", "thinking", "tool_calls", "tool_call_id", "name"];
/// Says that an answer was cut off by Ctrl-C: for files of chats, and no template asks for it.
const PARTIAL: &str = "partial";
/// Replies say their thinking twice, by the two names that templates know; the daemon does so too.
const REASONING: &str = "reasoning_content";

/// A message, or the reason why it cannot be one.
pub(crate) fn message_of(message: &Value) -> Result<v1::ChatMessage, String> {
    let object = message.as_object().ok_or("a message that is no object")?;
    let is_known = |key: &str| match key {
        PARTIAL => true,
        REASONING => object.get(key) == object.get("thinking"),
        key => KEYS.contains(&key),
    };
    if let Some(key) = object.keys().find(|key| !is_known(key)) {
        return Err(format!("messages with `{}`", key.chars().take(40).collect::<String>()));
    }
    let text = |key: &str| match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("messages whose `{key}` is no text")),
    };
    let calls = match object.get("tool_calls") {
        None => Vec::new(),
        Some(Value::Array(calls)) => calls.iter().map(call_of).collect::<Result<_, _>>()?,
        Some(_) => return Err("messages whose `tool_calls` are no list".to_owned()),
    };
    Ok(v1::ChatMessage {
        role: text("role")?.ok_or("messages without `role`")?,
        content: text("content")?,
        thinking: text("thinking")?,
        tool_calls: calls,
        tool_call_id: text("tool_call_id")?,
        name: text("name")?,
    })
}

/// A call as `Reply::message` writes it, with an id or without.
fn call_of(call: &Value) -> Result<v1::ToolCall, String> {
    let wrong = || "tool calls of another form than {\"type\": \"function\", \"function\": …}".to_owned();
    let object = call.as_object().ok_or_else(wrong)?;
    let function = function_of(object, &["name", "arguments"]).ok_or_else(wrong)?;
    let id = match object.get("id") {
        None => String::new(),
        Some(Value::String(id)) => id.clone(),
        Some(_) => return Err(wrong()),
    };
    let arguments = match function.get("arguments") {
        Some(Value::String(text)) => text.clone(),
        Some(object @ Value::Object(_)) => object.to_string(),
        _ => return Err(wrong()),
    };
    Ok(v1::ToolCall { id, name: text_of(function, "name").ok_or_else(wrong)?, arguments })
}

/// A tool in the form that templates expect.
fn tool_of(tool: &Value) -> Result<v1::Tool, String> {
    let wrong = || "tools of another form than {\"type\": \"function\", \"function\": …}".to_owned();
    let object = tool.as_object().filter(|object| !object.contains_key("id")).ok_or_else(wrong)?;
    let function = function_of(object, &["name", "description", "parameters"]).ok_or_else(wrong)?;
    Ok(v1::Tool {
        name: text_of(function, "name").ok_or_else(wrong)?,
        description: text_of(function, "description").ok_or_else(wrong)?,
        parameters: function.get("parameters").ok_or_else(wrong)?.to_string(),
    })
}

/// The function of `{"type": "function", "function": {…}}`, where nothing else stands there.
fn function_of<'a>(object: &'a Map<String, Value>, keys: &[&str]) -> Option<&'a Map<String, Value>> {
    let is_known = object.keys().all(|key| ["id", "type", "function"].contains(&key.as_str()));
    let function = object.get("function")?.as_object()?;
    let is_plain = function.keys().all(|key| keys.contains(&key.as_str()));
    (is_known && is_plain && object.get("type")? == "function").then_some(function)
}

fn text_of(object: &Map<String, Value>, key: &str) -> Option<String> {
    object.get(key)?.as_str().map(str::to_owned)
}

/// Messages and tools of a conversation, or why they cannot be sent.
pub(crate) fn conversation_of(messages: &[Value], tools: &[Value]) -> Result<v1::Conversation, String> {
    Ok(v1::Conversation {
        messages: messages.iter().map(message_of).collect::<Result<_, _>>()?,
        tools: tools.iter().map(tool_of).collect::<Result<_, _>>()?,
        ..v1::Conversation::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_daemon_can_be_told_is_told_and_the_rest_is_named() {
        let call =
            json!({ "type": "function", "function": { "name": "f", "arguments": { "b": 1, "a": 2 } } });
        let said = json!({ "role": "assistant", "content": "x", "tool_calls": [call],
            "thinking": "t", "reasoning_content": "t", "partial": true });
        let message = message_of(&said).expect("it can be told");
        assert_eq!((message.content.as_deref(), message.thinking.as_deref()), (Some("x"), Some("t")));
        assert_eq!(message.tool_calls[0].arguments, "{\"b\":1,\"a\":2}", "in their order");
        for (wrong, words) in [
            (json!("x"), "no object"),
            (json!({ "content": "x" }), "without `role`"),
            (json!({ "role": "user", "content": [] }), "`content` is no text"),
            (json!({ "role": "user", "mood": 1 }), "`mood`"),
            (json!({ "role": "user", "tool_calls": [{ "name": "f" }] }), "another form"),
        ] {
            let said = message_of(&wrong).expect_err("it cannot be told");
            assert!(said.contains(words), "{said}");
        }
        let tool =
            json!({ "type": "function", "function": { "name": "f", "description": "d", "parameters": {} } });
        assert_eq!(tool_of(&tool).expect("it can be told").parameters, "{}");
        assert!(tool_of(&json!({ "name": "f" })).is_err());
    }
}
