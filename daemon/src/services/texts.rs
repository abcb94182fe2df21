//! `Tokenize` and `Detokenize`: the model's tokenizer alone, which needs no engine.

use bantam_model::template::Conversation;
use bantam_proto::v1;
use bantam_proto::v1::tokenize_request::Input as Of;

use super::conversation::conversation;
use super::generation::{encode, prompt};
use super::request::check_bytes;
use super::{Caller, Services};
use crate::status::Trouble;

enum Asked {
    /// With the special tokens that the tokenizer adds, or without.
    Text(String, bool),
    Chat(Conversation),
}

fn asked(
    found: Option<Of>,
    special: Option<bool>,
    generation_prompt: Option<bool>,
) -> Result<Asked, Trouble> {
    match found {
        None => {
            Err(Trouble::field("text", "expected a text or a conversation, found neither; give one of them"))
        }
        Some(Of::Text(_)) if generation_prompt.is_some() => {
            Err(Trouble::field("generation_prompt", "belongs to a conversation, found a text; leave it out"))
        }
        Some(Of::Text(text)) => {
            check_bytes("text", &text)?;
            Ok(Asked::Text(text, special.unwrap_or(true)))
        }
        Some(Of::Conversation(_)) if special.is_some() => Err(Trouble::field(
            "special",
            "belongs to a text, a template writes its own tokens; leave it out",
        )),
        Some(Of::Conversation(found)) => {
            Ok(Asked::Chat(conversation(found, generation_prompt.unwrap_or(true))?))
        }
    }
}

/// Refuses an answer that is longer than a message: clients would not take it.
fn fits<T: prost::Message>(answer: T, field: &str, most: u64) -> Result<T, Trouble> {
    let found = answer.encoded_len() as u64;
    if found <= most {
        return Ok(answer);
    }
    let why = format!("expected an answer of at most {most} bytes, found {found}; send it in parts");
    Err(Trouble::field(field, why))
}

impl Services {
    pub(super) async fn tokenized(
        &self,
        caller: &Caller,
        request: v1::TokenizeRequest,
    ) -> Result<v1::TokenizeResponse, Trouble> {
        let v1::TokenizeRequest { model, input, special, generation_prompt, pieces } = request;
        let asked = asked(input, special, generation_prompt)?;
        let (known, most) = (self.find(model, caller).await?, self.settings.message_bytes.0);
        let tokenized = self.work(move || {
            let opened = known.open()?;
            let (ids, rendered) = match asked {
                Asked::Text(text, special) => (encode(&opened, &text, special, "text")?, None),
                Asked::Chat(conversation) => {
                    let (rendered, ids) = prompt(&opened, &conversation)?;
                    (ids, Some(rendered))
                }
            };
            let tokenizer = &opened.text()?.tokenizer;
            let spelled = |&id: &u32| tokenizer.token(id).unwrap_or_default();
            let pieces = if pieces { ids.iter().map(spelled).collect() } else { Vec::new() };
            fits(v1::TokenizeResponse { ids, pieces, rendered }, "text", most)
        });
        tokenized.await?
    }

    pub(super) async fn detokenized(
        &self,
        caller: &Caller,
        request: v1::DetokenizeRequest,
    ) -> Result<v1::DetokenizeResponse, Trouble> {
        let v1::DetokenizeRequest { model, ids, special } = request;
        let (known, most) = (self.find(model, caller).await?, self.settings.message_bytes.0);
        let detokenized = self.work(move || {
            let opened = known.open()?;
            let vocab = opened.source.spec.vocab;
            if let Some((place, found)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
                let why =
                    format!("expected ids below {vocab}, found {found} at place {place}; use this model's");
                return Err(Trouble::field("ids", why));
            }
            let text = opened.text()?.tokenizer.decode(&ids, !special);
            fits(v1::DetokenizeResponse { text }, "ids", most)
        });
        detokenized.await?
    }
}
