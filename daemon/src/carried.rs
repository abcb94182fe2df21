//! The small model that is part of the program: what an empty name means.

use bantam_model::files::EmbeddedFiles;
use bantam_model::source::{Source, SourceError};

/// Its name in messages.
pub const LABEL: &str = "the carried model";

/// A file of the carried model.
macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../model/carried/", $name)).as_slice()
    };
}

/// Opens it.
///
/// # Errors
/// Where the files that were built in are no model: a mistake of the build.
pub fn open() -> Result<Source, SourceError> {
    let files = EmbeddedFiles {
        config: Some(file!("config.json")),
        generation_config: Some(file!("generation_config.json")),
        tokenizer: Some(file!("tokenizer.json")),
        tokenizer_config: Some(file!("tokenizer_config.json")),
        special_tokens_map: Some(file!("special_tokens_map.json")),
        chat_template: Some(file!("chat_template.jinja")),
    };
    Source::embedded(LABEL, files, file!("model.safetensors"))
}
