//! Fuzzes chat templates: up to the first NUL a template, after it a conversation as JSON. A text comes of both
//! within the limits, or an error.
#![no_main]

use bantam_model::template::{ChatTemplate, Conversation, Data, Now, OUTPUT_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let (source, json) = match input.iter().position(|&byte| byte == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &b"[{\"role\": \"user\", \"content\": \"Hi\"}]"[..]),
    };
    let Ok(template) = ChatTemplate::from_text(&String::from_utf8_lossy(source)) else { return };
    let messages = Data::from_json(json).ok().and_then(|data| data.items()).unwrap_or_default();
    let mut conversation = Conversation::new(messages.clone());
    conversation.now = Now::parse("2025-01-31T12:34:56").unwrap_or(Now::LOCAL);
    conversation.tools = Some(messages);
    if let Ok(text) = template.render(&conversation) {
        assert!(text.len() <= OUTPUT_MAX);
    }
});
