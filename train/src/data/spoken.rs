//! A tokenizer as training sees it: ids of pieces of text, and the tokens that begin, end and fill.

use bantam_model::template::ChatTemplate;
use bantam_model::tokenizer::{Tokenizer, TokenizerError};
use serde_json::Value;

/// Tokenizer classes whose Python code puts a bos before every text unless their configuration says no.
const BEGINNING: &[&str] = &["Llama", "CodeLlama", "Gemma", "Cohere"];
/// Those that do so only where it says yes.
const BEGINNING_IF_TOLD: &[&str] = &["GPTNeoX", "GPT2"];

/// A model's language.
#[derive(Debug)]
pub struct Spoken<'t> {
    /// Text to ids.
    pub tokenizer: &'t Tokenizer,
    /// The model's own template, where it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Whether texts of the pre-training stage begin with bos.
    pub begins_texts: bool,
    /// Whether the vocabulary names a token that fills; eos does it where none is named.
    pub names_pad: bool,
}

impl<'t> Spoken<'t> {
    /// The language of a model; `tokenizer_config` is the file of that name.
    pub fn new(
        tokenizer: &'t Tokenizer,
        chat_template: Option<ChatTemplate>,
        tokenizer_config: Option<&[u8]>,
    ) -> Self {
        let config: Option<Value> = tokenizer_config.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let config = config.unwrap_or_default();
        let names_pad = config.get("pad_token").is_some_and(|token| !token.is_null());
        Self { tokenizer, chat_template, begins_texts: begins_texts(&config), names_pad }
    }

    /// Ids of a text in which control tokens may be spelled.
    pub(super) fn ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match text.is_empty() {
            true => Ok(Vec::new()),
            false => self.tokenizer.encode(text, false),
        }
    }
}

/// `add_bos_token` as LLaMA-Factory finds it on the tokenizer: only some classes have it.
fn begins_texts(config: &Value) -> bool {
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let class = class.trim_end_matches("Fast").trim_end_matches("Tokenizer");
    let told = config.get("add_bos_token").and_then(Value::as_bool);
    match (BEGINNING.contains(&class), BEGINNING_IF_TOLD.contains(&class)) {
        (true, _) => told.unwrap_or(true),
        (_, true) => told.unwrap_or(false),
        _ => false,
    }
}

/// The tokens with a role, as a template may change them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) bos: Option<u32>,
    pub(super) eos: u32,
    pub(super) pad: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn some_classes_begin_their_texts() {
        let check = |class: &str, told: Option<bool>, expected: bool| {
            let config = json!({ "tokenizer_class": class, "add_bos_token": told });
            assert_eq!(begins_texts(&config), expected, "{config}");
        };
        check("LlamaTokenizerFast", None, true);
        check("GemmaTokenizer", Some(false), false);
        check("PreTrainedTokenizerFast", Some(true), false);
        check("GPTNeoXTokenizerFast", Some(true), true);
        check("Qwen2TokenizerFast", None, false);
    }
}
