//! What was said so far, as the JSON messages that chat templates read.

use std::fs::{self, File};
use std::path::Path;

use bantam_model::checkpoint::writer;
use serde_json::{Value, json};

use crate::conversation::read_bytes;
use crate::failure::{Failure, refused};

/// Messages, the system's first where there is one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Conversation {
    messages: Vec<Value>,
}

impl Conversation {
    pub(super) fn messages(&self) -> &[Value] {
        &self.messages
    }

    pub(super) fn push(&mut self, message: Value) {
        self.messages.push(message);
    }

    pub(super) fn push_user(&mut self, text: &str) {
        self.messages.push(json!({ "role": "user", "content": text }));
    }

    /// Sets the system message, or takes it away.
    pub(super) fn set_system(&mut self, text: &str) {
        if self.has_system() {
            self.messages.remove(0);
        }
        if !text.is_empty() {
            self.messages.insert(0, json!({ "role": "system", "content": text }));
        }
    }

    fn has_system(&self) -> bool {
        self.messages.first().is_some_and(|message| message["role"] == "system")
    }

    /// Forgets all but the system message.
    pub(super) fn clear(&mut self) {
        self.messages.truncate(usize::from(self.has_system()));
    }

    /// Takes back the last message of the user with all that follows, or only what follows. Says whether there is one.
    pub(super) fn undo(&mut self, keep_message: bool) -> bool {
        let at = self.messages.iter().rposition(|message| message["role"] == "user");
        if let Some(at) = at {
            self.messages.truncate(at + usize::from(keep_message));
        }
        at.is_some()
    }

    /// Reads what [`Conversation::save`] or another program wrote.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let expected = "JSON messages as /save writes them";
        let wrong = |found: String| {
            refused(format!("{}: expected {expected}, found {found}: give another file", path.display()))
        };
        let bytes = read_bytes(File::open(path), &path.display().to_string(), expected)?;
        let mut value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if value["messages"].is_array() {
            value = value["messages"].take();
        }
        let Value::Array(messages) = value else {
            return Err(wrong("something else than a list".to_owned()));
        };
        for (number, message) in messages.iter().enumerate() {
            if !message["role"].is_string() {
                return Err(wrong(format!("no `role` in message {number}")));
            }
        }
        Ok(Conversation { messages })
    }

    /// Writes the messages, whole or not at all.
    pub(super) fn save(&self, path: &Path, replace: bool) -> Result<(), Failure> {
        if !replace && fs::symlink_metadata(path).is_ok() {
            return Err(refused(format!(
                "{}: there is a file by that name; give another, or replace it with: /save ! {}",
                path.display(),
                path.display()
            )));
        }
        let text = serde_json::to_string_pretty(&self.messages).unwrap_or_default() + "\n";
        Ok(writer::write_file(path, text.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_message_comes_first_and_stays() {
        let mut conversation = Conversation::default();
        conversation.push_user("one");
        conversation.set_system("be brief");
        conversation.push(json!({ "role": "assistant", "content": "1" }));
        conversation.push_user("two");
        assert!(conversation.undo(true) && conversation.messages().len() == 4);
        assert!(conversation.undo(false) && conversation.messages().len() == 3);
        assert!(conversation.undo(true) && conversation.messages().len() == 2);
        assert!(conversation.undo(false) && conversation.messages().len() == 1);
        assert!(!conversation.undo(false));
        conversation.push_user("three");
        conversation.clear();
        assert_eq!(conversation.messages(), [json!({ "role": "system", "content": "be brief" })]);
        conversation.set_system("");
        assert!(conversation.messages().is_empty());
    }
}
