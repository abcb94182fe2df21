//! Which message of a reply a piece of text belongs to. Words only: what finds it out is `reader.rs` and `harmony/`.

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Thinking aloud, which is not the answer.
    Analysis,
    /// Tool calls, and what is said about them beforehand.
    Commentary,
    /// The answer. All text of a model without channels.
    Final,
    /// A channel by another name, or words that the model puts in the mouth of somebody else.
    Other,
}

impl Channel {
    /// As formats and clients know it.
    pub fn name(self) -> &'static str {
        match self {
            Channel::Analysis => "analysis",
            Channel::Commentary => "commentary",
            Channel::Final => "final",
            Channel::Other => "other",
        }
    }
}

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// By its own end mark; another may follow.
    Closed,
    /// With it the whole reply.
    Return,
    /// As a call: a tool has the word.
    Call,
    /// In the middle: by the limit of tokens, by a stop string, or because the model began something else.
    Cut,
}

/// A message, and where in it a token stands. Its words are those of the header, as the model wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// Messages of a reply are counted from 0.
    pub message: usize,
    /// What it is for.
    pub channel: Channel,
    /// The channel's name as written, empty where none was.
    pub channel_name: &'a str,
    /// Who speaks: `assistant`, unless the model plays somebody else.
    pub role: &'a str,
    /// Who is spoken to: a tool, mostly.
    pub recipient: Option<&'a str>,
    /// What the text is, such as `json`.
    pub content_type: Option<&'a str>,
    /// Whether this is the first that is told of the message.
    pub begins: bool,
    /// Set where it is the last.
    pub ends: Option<End>,
}

impl<'a> Part<'a> {
    /// The tool that this message calls.
    pub fn tool(&self) -> Option<&'a str> {
        self.recipient.filter(|name| is_tool(self.role, name))
    }
}

/// Whether a message of `role` to `recipient` calls a tool: models also write `to=assistant`, which means nothing.
pub(crate) fn is_tool(role: &str, recipient: &str) -> bool {
    role == ASSISTANT && !matches!(recipient, "" | ASSISTANT | "user" | "all")
}

/// The role whose words a model is asked for.
pub(crate) const ASSISTANT: &str = "assistant";

/// A `Part` without its words, which stay where the reader keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) message: usize,
    pub(crate) channel: Channel,
    /// Words that had no place in a header: neither its recipient nor its content type is theirs.
    pub(crate) bare: bool,
    pub(crate) begins: bool,
    pub(crate) ends: Option<End>,
}

/// What one token made certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Absent between messages, and then there is no text either.
    pub part: Option<Part<'a>>,
    /// Whole characters, possibly none.
    pub text: &'a str,
}
