//! A whole reply, collected from its tokens: for the next turn's prompt, and for clients that want it in one piece.
//!
//! Unlike everything before it on the way of a token, it keeps text and so allocates.

pub mod harmony;
pub mod part;
pub mod reader;

use serde_json::{Map, Value, json};

use crate::generate::Token;
use crate::reply::part::{ASSISTANT, Channel, End, Part, is_tool};

/// One message of a reply; its words are those of `Part`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: String,
    /// What it is for.
    pub channel: Channel,
    /// The channel as written.
    pub channel_name: String,
    /// Who is spoken to.
    pub recipient: Option<String>,
    /// What the text is.
    pub content_type: Option<String>,
    /// All of it.
    pub text: String,
    /// How it ended; absent while it goes on.
    pub end: Option<End>,
}

impl Message {
    fn new(part: &Part<'_>) -> Self {
        Message {
            role: part.role.to_owned(),
            channel: part.channel,
            channel_name: part.channel_name.to_owned(),
            recipient: part.recipient.map(str::to_owned),
            content_type: part.content_type.map(str::to_owned),
            text: String::new(),
            end: None,
        }
    }

    /// The tool that it calls, complete or not.
    pub fn tool(&self) -> Option<&str> {
        self.recipient.as_deref().filter(|name| is_tool(&self.role, name))
    }

    /// Whether it speaks to the user: the answer, what is said before a call, and channels that nobody knows, because
    /// a mistyped name must not make an answer vanish.
    pub fn is_content(&self) -> bool {
        self.role_is_known() && self.channel != Channel::Analysis && self.tool().is_none()
    }

    fn is_thinking(&self) -> bool {
        self.role_is_known() && self.channel == Channel::Analysis && self.tool().is_none()
    }

    /// Others' words have their own role and are nobody's answer.
    fn role_is_known(&self) -> bool {
        self.channel != Channel::Other || self.role == ASSISTANT
    }
}

/// A call of a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolCall<'a> {
    /// Without the name space of a user's functions.
    pub name: &'a str,
    /// As the model wrote them: mostly JSON, never checked.
    pub arguments: &'a str,
}

impl ToolCall<'_> {
    /// As templates expect it: the arguments are an object, where they are one.
    fn json(&self) -> Value {
        let arguments = match serde_json::from_str::<Map<String, Value>>(self.arguments) {
            Ok(object) => Value::Object(object),
            Err(_) => Value::from(self.arguments),
        };
        json!({ "type": "function", "function": { "name": self.name, "arguments": arguments } })
    }
}

/// All messages of a reply, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    messages: Vec<Message>,
}

impl Reply {
    /// Takes the next token of a generation. One without messages adds nothing.
    pub fn push(&mut self, token: &Token<'_>) {
        if let Some(part) = &token.part {
            self.push_part(part, token.text);
        }
    }

    /// The same, where there is a part at hand.
    pub fn push_part(&mut self, part: &Part<'_>, text: &str) {
        if part.begins || self.messages.is_empty() {
            self.messages.push(Message::new(part));
        }
        if let Some(message) = self.messages.last_mut() {
            message.text.push_str(text);
            message.end = part.ends;
        }
    }

    /// What was said, message by message.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// What the user reads.
    pub fn content(&self) -> String {
        joined(self.messages.iter().filter(|message| message.is_content()))
    }

    /// What the model thought before.
    pub fn thinking(&self) -> String {
        joined(self.messages.iter().filter(|message| message.is_thinking()))
    }

    /// Complete calls: one that was cut off must not be made.
    pub fn tool_calls(&self) -> impl Iterator<Item = ToolCall<'_>> {
        self.messages.iter().filter(|message| !matches!(message.end, None | Some(End::Cut))).filter_map(
            |message| {
                let name = message.tool()?;
                let name = name.strip_prefix("functions.").unwrap_or(name);
                Some(ToolCall { name, arguments: &message.text })
            },
        )
    }

    /// The message for the next prompt, with the keys that chat templates read. Keys without a value are left out:
    /// templates ask whether they are there. The thinking stands under both of its usual names.
    pub fn message(&self) -> Value {
        let mut message = Map::new();
        message.insert("role".to_owned(), ASSISTANT.into());
        let (content, thinking) = (self.content(), self.thinking());
        let calls: Vec<Value> = self.tool_calls().map(|call| call.json()).collect();
        // Beside a call, templates of this format take either words or thoughts, and refuse both.
        let is_content_known = calls.is_empty() || thinking.is_empty();
        message.insert("content".to_owned(), if is_content_known { content.into() } else { "".into() });
        if !thinking.is_empty() {
            message.insert("reasoning_content".to_owned(), thinking.as_str().into());
            message.insert("thinking".to_owned(), thinking.into());
        }
        if !calls.is_empty() {
            message.insert("tool_calls".to_owned(), calls.into());
        }
        Value::Object(message)
    }
}

/// Messages with an empty line between them; one that was cut off goes on in the next.
fn joined<'a>(messages: impl Iterator<Item = &'a Message>) -> String {
    let mut all = String::new();
    let mut was_cut = true;
    for message in messages {
        if !was_cut && !message.text.is_empty() {
            all.push_str("\n\n");
        }
        all.push_str(&message.text);
        was_cut = message.end == Some(End::Cut) || all.is_empty();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(messages: &[(Channel, Option<&str>, &str, End)]) -> Reply {
        let mut reply = Reply::default();
        for (message, &(channel, recipient, text, end)) in messages.iter().enumerate() {
            let channel_name = channel.name();
            let (role, content_type) = (ASSISTANT, None);
            let part = |begins, ends| Part {
                message,
                channel,
                channel_name,
                role,
                recipient,
                content_type,
                begins,
                ends,
            };
            let (first, second) = text.split_at(text.len() / 2);
            reply.push_part(&part(true, None), first);
            reply.push_part(&part(false, Some(end)), second);
        }
        reply
    }

    #[test]
    fn the_next_prompt_gets_what_templates_read() {
        let answer = reply(&[
            (Channel::Analysis, None, "Hm.", End::Closed),
            (Channel::Analysis, None, "So.", End::Closed),
            (Channel::Final, None, "Yes", End::Cut),
            (Channel::Final, None, " yes.", End::Return),
        ]);
        let expected = json!({ "role": "assistant", "content": "Yes yes.", "thinking": "Hm.\n\nSo.",
            "reasoning_content": "Hm.\n\nSo." });
        assert_eq!(answer.message(), expected);
        assert_eq!(reply(&[]).message(), json!({ "role": "assistant", "content": "" }));
    }

    #[test]
    fn calls_are_told_apart_from_words() {
        let call = "{\"city\": \"Paris\", \"days\": 2}";
        let found = reply(&[
            (Channel::Analysis, None, "Look.", End::Closed),
            (Channel::Commentary, None, "I look.", End::Closed),
            (Channel::Commentary, Some("functions.get_weather"), call, End::Call),
        ]);
        assert_eq!(found.content(), "I look.");
        let expected = [ToolCall { name: "get_weather", arguments: call }];
        assert_eq!(found.tool_calls().collect::<Vec<_>>(), expected);
        let expected = json!({ "role": "assistant", "content": "", "thinking": "Look.",
            "reasoning_content": "Look.",
            "tool_calls": [{ "type": "function", "function": { "name": "get_weather",
                "arguments": { "city": "Paris", "days": 2 } } }] });
        assert_eq!(found.message(), expected);
    }

    #[test]
    fn broken_calls_stay_what_they_are() {
        let cut = reply(&[(Channel::Commentary, Some("functions.x"), "{\"a\": ", End::Cut)]);
        assert_eq!((cut.tool_calls().count(), cut.content()), (0, String::new()));
        assert_eq!(cut.messages()[0].tool(), Some("functions.x"));
        let no_json = reply(&[(Channel::Analysis, Some("python"), "1 + 1", End::Call)]);
        assert_eq!(
            no_json.message()["tool_calls"][0]["function"],
            json!({ "name": "python", "arguments": "1 + 1" })
        );
        assert_eq!(no_json.thinking(), "");
        let to_nobody = reply(&[(Channel::Commentary, Some("assistant"), "Words.", End::Closed)]);
        assert_eq!((to_nobody.tool_calls().count(), to_nobody.content()), (0, "Words.".to_owned()));
        let unknown = reply(&[(Channel::Other, None, "Yes.", End::Return)]);
        assert_eq!(unknown.content(), "Yes.");
    }
}
