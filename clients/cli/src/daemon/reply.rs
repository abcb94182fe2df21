//! What a daemon's tokens say, in the words of the model crate: verbs then treat them like tokens of their own.

use bantam_model::generate::{Finish, Token};
use bantam_model::reply::part::{Channel, End, Part};
use bantam_proto::v1;

/// The head of the message that is under way: it comes once, with the message's first token.
#[derive(Debug, Default)]
pub(crate) struct Words {
    head: Option<v1::MessageHead>,
}

impl Words {
    /// A token as a generation of this process would give it. `finish` comes with a message of its own, later.
    pub(crate) fn token<'a>(&'a mut self, token: &'a v1::Token) -> Token<'a> {
        if let Some(head) = &token.begins {
            self.head = Some(head.clone());
        }
        let is_told = token.begins.is_some() || token.ends != 0 || !token.text.is_empty();
        let part = self.head.as_ref().filter(|_| is_told).map(|head| Part {
            message: token.message as usize,
            channel: channel(head.channel()),
            channel_name: &head.channel_name,
            role: if head.role.is_empty() { "assistant" } else { &head.role },
            recipient: Some(head.recipient.as_str()).filter(|name| !name.is_empty()),
            content_type: Some(head.content_type.as_str()).filter(|name| !name.is_empty()),
            begins: token.begins.is_some(),
            ends: end(token.ends()),
        });
        let (text, log_probability) = (token.text.as_str(), token.log_probability);
        Token { id: token.id, text, part, finish: None, log_probability, alternatives: &[] }
    }
}

fn channel(channel: v1::Channel) -> Channel {
    match channel {
        v1::Channel::Analysis => Channel::Analysis,
        v1::Channel::Commentary => Channel::Commentary,
        v1::Channel::Final | v1::Channel::Unspecified => Channel::Final,
        v1::Channel::Other => Channel::Other,
    }
}

fn end(end: v1::MessageEnd) -> Option<End> {
    match end {
        v1::MessageEnd::Unspecified => None,
        v1::MessageEnd::Closed => Some(End::Closed),
        v1::MessageEnd::Return => Some(End::Return),
        v1::MessageEnd::Call => Some(End::Call),
        v1::MessageEnd::Cut => Some(End::Cut),
    }
}

/// What ended a generation.
pub(crate) fn finish_of(reason: v1::FinishReason) -> Finish {
    match reason {
        v1::FinishReason::Length | v1::FinishReason::Unspecified => Finish::Length,
        v1::FinishReason::Stop => Finish::Stop,
        v1::FinishReason::ToolCalls => Finish::ToolCalls,
    }
}

/// A span in seconds; none is none.
pub(crate) fn seconds(span: Option<&prost_types::Duration>) -> f64 {
    span.map_or(0.0, |span| span.seconds as f64 + f64::from(span.nanos) * 1e-9)
}
