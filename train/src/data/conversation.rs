//! A row becomes a conversation, or a reason why not.
//!
//! The rules are LLaMA-Factory's, with one exception: an answer without any letter is dropped, where there one learns
//! to say nothing.

use serde_json::{Map, Value};

use super::info::{Attributes, Formatting};

/// Why a row is dropped, as the summary says it.
pub(super) type Reason = &'static str;

const NO_TEXT: Reason = "holds something else than text where text belongs";
const BAD_HISTORY: Reason = "has a history that is no list of pairs of question and answer";
const NO_ANSWER: Reason = "has no answer";
pub(super) const EMPTY_ANSWER: Reason = "has an empty answer";
const NO_MESSAGES: Reason = "has no messages";
const WRONG_ROLE: Reason =
    "has messages in another order than user, assistant, user, assistant (by their tags)";
const ODD_TURNS: Reason = "has an odd number of turns: the last has no answer";
const PREFERENCE: Reason = "has a mark of preference; the stage kto is for it";
const PICTURES: Reason = "has pictures, video or sound, of which only text is read";
const OPENAI_CALLS: Reason = "has tool calls that are no list of functions";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    User,
    Assistant,
    /// What a tool said.
    Observation,
    /// A call of tools, as JSON.
    Function,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) content: String,
}

/// Questions and answers in turn, an answer last, except where only text is learnt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conversation {
    pub(super) messages: Vec<Message>,
    pub(super) system: String,
    /// Tools as JSON, or nothing.
    pub(super) tools: String,
}

type Row = Map<String, Value>;

/// The first message of a row alone: text to be learnt as it stands.
pub(super) fn text(row: &Row, attributes: &Attributes) -> Result<String, Reason> {
    let (mut messages, _) = match attributes.formatting {
        Formatting::Alpaca => (questions(row, attributes)?, String::new()),
        _ => turns(row, attributes)?,
    };
    match messages.is_empty() {
        true => Err(NO_MESSAGES),
        false => Ok(messages.swap_remove(0).content),
    }
}

/// A conversation that ends with an answer.
pub(super) fn conversation(row: &Row, attributes: &Attributes) -> Result<Conversation, Reason> {
    let (messages, system) = match attributes.formatting {
        Formatting::Alpaca => {
            let mut messages = questions(row, attributes)?;
            if let Some(Value::Bool(_)) = at(row, attributes.column("kto_tag")) {
                return Err(PREFERENCE);
            }
            let answer = at(row, attributes.column("response")).and_then(Value::as_str).ok_or(NO_ANSWER)?;
            messages.push(Message { role: Role::Assistant, content: answer.to_owned() });
            (messages, text_at(row, attributes.column("system"))?)
        }
        _ => turns(row, attributes)?,
    };
    for column in ["images", "videos", "audios"] {
        match at(row, attributes.column(column)) {
            None => {}
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(_) => return Err(PICTURES),
        }
    }
    match messages.last() {
        None => Err(NO_MESSAGES),
        Some(last) if last.content.trim().is_empty() => Err(EMPTY_ANSWER),
        Some(_) => Ok(Conversation { messages, system, tools: tools(row, attributes)? }),
    }
}

/// The value of a column, where the row has one.
fn at<'r>(row: &'r Row, column: Option<&str>) -> Option<&'r Value> {
    row.get(column?).filter(|value| !value.is_null())
}

/// A column's text; nothing where there is none.
fn text_at(row: &Row, column: Option<&str>) -> Result<String, Reason> {
    match at(row, column) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(NO_TEXT),
    }
}

/// Tools are JSON in a string; the list itself is as good.
fn tools(row: &Row, attributes: &Attributes) -> Result<String, Reason> {
    match at(row, attributes.column("tools")) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(list)) if list.is_empty() => Ok(String::new()),
        Some(list @ Value::Array(_)) => Ok(list.to_string()),
        Some(_) => Err(NO_TEXT),
    }
}

/// Alpaca's turns up to the last question, which is the instruction and what belongs to it.
fn questions(row: &Row, attributes: &Attributes) -> Result<Vec<Message>, Reason> {
    let mut messages = Vec::new();
    if let Some(Value::Array(pairs)) = at(row, attributes.column("history")) {
        for pair in pairs {
            let pair = pair.as_array().map(Vec::as_slice);
            let Some([Value::String(question), Value::String(answer)]) = pair else {
                return Err(BAD_HISTORY);
            };
            messages.push(Message { role: Role::User, content: question.clone() });
            messages.push(Message { role: Role::Assistant, content: answer.clone() });
        }
    }
    let parts = [text_at(row, attributes.column("prompt"))?, text_at(row, attributes.column("query"))?];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    messages.push(Message { role: Role::User, content: parts.join("\n") });
    Ok(messages)
}

/// ShareGPT's messages in order, and the system's.
fn turns(row: &Row, attributes: &Attributes) -> Result<(Vec<Message>, String), Reason> {
    let Some(Value::Array(messages)) = at(row, attributes.column("messages")) else {
        return Err(NO_MESSAGES);
    };
    let tag = |message: &'_ Value| -> Option<String> {
        message.get(attributes.tag("role_tag")?)?.as_str().map(str::to_owned)
    };
    let mut messages = messages.as_slice();
    let mut system = text_at(row, attributes.column("system"))?;
    if let [first, rest @ ..] = messages
        && attributes.tag("system_tag").is_some()
        && tag(first).as_deref() == attributes.tag("system_tag")
    {
        system = content(first, attributes)?;
        messages = rest;
    }
    let mut turns = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let tag = tag(message).ok_or(WRONG_ROLE)?;
        let is = |name: &str| attributes.tag(name) == Some(tag.as_str());
        let calls = (attributes.formatting == Formatting::Openai).then(|| openai_calls(message)).flatten();
        let (role, content) = match (index % 2, calls) {
            (1, Some(calls)) if is("assistant_tag") => (Role::Function, calls?),
            (0, _) if is("user_tag") => (Role::User, content(message, attributes)?),
            (0, _) if is("observation_tag") => (Role::Observation, content(message, attributes)?),
            (1, _) if is("assistant_tag") => (Role::Assistant, content(message, attributes)?),
            (1, _) if is("function_tag") => (Role::Function, content(message, attributes)?),
            _ => return Err(WRONG_ROLE),
        };
        turns.push(Message { role, content });
    }
    match turns.len() % 2 {
        0 => Ok((turns, system)),
        _ => Err(ODD_TURNS),
    }
}

fn content(message: &Value, attributes: &Attributes) -> Result<String, Reason> {
    let content = attributes.tag("content_tag").and_then(|tag| message.get(tag));
    content.and_then(Value::as_str).map(str::to_owned).ok_or(NO_TEXT)
}

/// OpenAI's way to call tools, as the list of calls that others write into the message.
fn openai_calls(message: &Value) -> Option<Result<String, Reason>> {
    let calls = message.get("tool_calls")?.as_array().filter(|calls| !calls.is_empty())?;
    let functions: Option<Vec<Value>> = calls.iter().map(|call| call.get("function").cloned()).collect();
    Some(functions.map(|functions| Value::Array(functions).to_string()).ok_or(OPENAI_CALLS))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;
    use serde_json::json;

    /// Roles as letters, with the contents.
    fn check(form: &str, row: Value, expected: Result<&str, Reason>) {
        let attributes = Attributes::of_file("x", form).unwrap();
        let found = conversation(row.as_object().unwrap(), &attributes).map(|found| {
            let turns = found.messages.iter().map(|message| {
                let letter = match message.role {
                    Role::User => 'u',
                    Role::Assistant => 'a',
                    Role::Observation => 'o',
                    Role::Function => 'f',
                };
                format!("{letter}:{}", message.content)
            });
            let turns: Vec<String> = turns.collect();
            format!("[{}] {}", found.system, turns.join(" "))
        });
        assert_eq!(found.as_deref().map_err(|reason| *reason), expected, "{row}");
    }

    #[test]
    fn alpaca() {
        check("alpaca", json!({"instruction": "a", "input": "b", "output": "c"}), Ok("[] u:a\nb a:c"));
        check("alpaca", json!({"instruction": "a", "input": "", "output": "c"}), Ok("[] u:a a:c"));
        check("alpaca", json!({"instruction": "a", "input": null, "output": "c"}), Ok("[] u:a a:c"));
        check("alpaca", json!({"instruction": "a", "output": null}), Err(NO_ANSWER));
        check("alpaca", json!({"instruction": "a", "output": " "}), Err(EMPTY_ANSWER));
        check("alpaca", json!({"instruction": 3, "output": "c"}), Err(NO_TEXT));
    }

    #[test]
    fn sharegpt() {
        let said = |turns: &[(&str, &str)]| {
            let turns: Vec<Value> =
                turns.iter().map(|(from, value)| json!({"from": from, "value": value})).collect();
            json!({ "conversations": turns })
        };
        check("sharegpt", said(&[("human", "a"), ("gpt", "b")]), Ok("[] u:a a:b"));
        check("sharegpt", said(&[("system", "s"), ("human", "a"), ("gpt", "b")]), Ok("[s] u:a a:b"));
        let tools = [("human", "a"), ("function_call", "{}"), ("observation", "1"), ("gpt", "b")];
        check("sharegpt", said(&tools), Ok("[] u:a f:{} o:1 a:b"));
        check("sharegpt", said(&[("human", "a"), ("gpt", "b"), ("human", "c")]), Err(ODD_TURNS));
        check("sharegpt", said(&[("gpt", "a"), ("human", "b")]), Err(WRONG_ROLE));
        check("sharegpt", said(&[("human", "a"), ("gpt", "")]), Err(EMPTY_ANSWER));
        check("sharegpt", said(&[]), Err(NO_MESSAGES));
        check("sharegpt", json!({}), Err(NO_MESSAGES));
        check("sharegpt", json!({"conversations": [1, 2]}), Err(WRONG_ROLE));
        check("sharegpt", json!({"conversations": [{"from": "human", "value": 1}]}), Err(NO_TEXT));
    }

    #[test]
    fn openai() {
        let call = json!({"messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "b"},
        ]});
        check("openai", call, Ok(r#"[] u:a f:[{"name":"f","arguments":"{}"}] o:1 a:b"#));
    }
}
