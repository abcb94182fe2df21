//! A model before it is loaded, with what is made of its small files once somebody needs it.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use bantam_model::files::FilesError;
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags, GenerationSettings};
use bantam_model::source::{Source, SourceError, Text};
use bantam_model::template::ChatTemplate;

use crate::carried;

/// Why a checkpoint is of no use. Shared, as one failed load is told to all who wait for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Unusable(pub(crate) Arc<SourceError>);

impl From<SourceError> for Unusable {
    fn from(error: SourceError) -> Self {
        Unusable(Arc::new(error))
    }
}

type Lazy<T> = OnceLock<Result<T, Unusable>>;

/// The model, opened. All that is read later is read once.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) source: Source,
    text: Lazy<Option<Text>>,
    template: Lazy<Option<ChatTemplate>>,
    defaults: Lazy<GenerationDefaults>,
}

fn once<T>(cell: &Lazy<T>, make: impl FnOnce() -> Result<T, SourceError>) -> Result<&T, Unusable> {
    cell.get_or_init(|| make().map_err(Unusable::from)).as_ref().map_err(Clone::clone)
}

impl Opened {
    /// Opens the model at a path, or the carried one.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Unusable> {
        let source = match path {
            Some(path) => Source::open(path)?,
            None => carried::open()?,
        };
        Ok(Opened { source, text: Lazy::new(), template: Lazy::new(), defaults: Lazy::new() })
    }

    /// Its tokenizer, where it has one.
    pub(crate) fn text_if_any(&self) -> Result<Option<&Text>, Unusable> {
        once(&self.text, || self.source.text_if_any()).map(Option::as_ref)
    }

    /// Its tokenizer; an error where it has none.
    pub(crate) fn text(&self) -> Result<&Text, Unusable> {
        self.text_if_any()?.ok_or_else(|| {
            let (folder, advice) =
                (self.source.folder().into(), "it turns text into tokens; give token ids, or fetch it");
            SourceError::Files(FilesError::Missing { folder, name: "tokenizer.json", advice }).into()
        })
    }

    /// Its chat template, where it has one.
    pub(crate) fn template(&self) -> Result<Option<&ChatTemplate>, Unusable> {
        once(&self.template, || self.source.chat_template()).map(Option::as_ref)
    }

    /// How it generates unless a request says otherwise.
    pub(crate) fn defaults(&self) -> Result<&GenerationDefaults, Unusable> {
        once(&self.defaults, || self.source.generation_defaults())
    }

    /// A request's wishes laid over what the model's files say.
    pub(crate) fn settings(
        &self,
        flags: &GenerationFlags,
    ) -> Result<Result<GenerationSettings, bantam_model::generation::GenerationError>, Unusable> {
        let tokenizer = self.text_if_any()?.and_then(|text| text.tokenizer.eos());
        let eos = EosSources { config: &self.source.spec.eos, tokenizer };
        Ok(self.defaults()?.settings(flags, eos))
    }
}
