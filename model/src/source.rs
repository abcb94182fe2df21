//! A model before it is loaded: its small files, its specification, and the checked headers of its weights.
//!
//! Opening costs the configuration and the headers, so whatever is wrong with them is known at once. The tokenizer is
//! read only by those who have text; the weights only by [`Source::load`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bantam_core::{Cpu, Trits};

use crate::adapter::{Adapter, AdapterError};
use crate::checkpoint::{Checkpoint, CheckpointError, GONE};
use crate::config::ConfigError;
use crate::detokenizer::{ByteTable, DetokenizerError};
use crate::engine::{Engine, LoadError, stored};
use crate::files::{EmbeddedFiles, FilesError, ModelFiles};
use crate::generation::{GenerationDefaults, GenerationError};
use crate::native::{Native, NativeError};
use crate::plan::{GuestPlan, Options, Plan, PlanError};
use crate::spec::ModelSpec;
use crate::template::{ChatTemplate, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file is missing or cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The weights' headers are wrong.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter is not usable.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// `config.json` describes nothing that can be run.
    #[error("{}: {source}", .folder.display())]
    Spec {
        /// The model.
        folder: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// The same, where it was made of a GGUF file's metadata.
    #[error("{}: key {origin}, as part of a configuration: {source}", .file.display())]
    Metadata {
        /// The model.
        file: PathBuf,
        /// The key in the file.
        origin: Box<str>,
        /// What is wrong.
        source: Box<ConfigError>,
    },
    /// Configuration, weights and options do not go together.
    #[error("{}: {source}", .folder.display())]
    Plan {
        /// The model.
        folder: PathBuf,
        /// What is wrong.
        source: PlanError,
    },
    /// The tokenizer is not usable.
    #[error("{}: {source}", .folder.display())]
    Tokenizer {
        /// The model.
        folder: PathBuf,
        /// What is wrong.
        source: TokenizerError,
    },
    /// The tokenizer cannot turn tokens back into text.
    #[error("{}: {source}", .folder.display())]
    Detokenizer {
        /// The model.
        folder: PathBuf,
        /// What is wrong.
        source: DetokenizerError,
    },
    /// `generation_config.json` is wrong.
    #[error("{}: {source}", .folder.display())]
    Generation {
        /// The model.
        folder: PathBuf,
        /// What is wrong.
        source: GenerationError,
    },
    /// The chat template gives no text.
    #[error("{}: {source}", .folder.display())]
    Template {
        /// The model.
        folder: PathBuf,
        /// What is wrong.
        source: TemplateError,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its native form, which is all there is, cannot be used.
    #[error(transparent)]
    Native(#[from] Box<NativeError>),
    /// The same for what needs more than to run it.
    #[error("{}: {GONE}", .folder.display())]
    Gone {
        /// The model.
        folder: PathBuf,
    },
}

/// A tokenizer with the table for the way back.
#[derive(Debug)]
pub struct Text {
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// Tokens to text.
    pub table: Arc<ByteTable>,
}

/// A model on the disk or in the program, checked as far as that is cheap.
#[derive(Debug)]
pub struct Source {
    /// The files beside the weights.
    pub files: ModelFiles,
    /// What the model is.
    pub spec: ModelSpec,
    /// Its weights, where they lie.
    pub checkpoint: Arc<Checkpoint>,
    /// What stands beside it.
    pub adapter: Option<Arc<Adapter>>,
}

impl Source {
    /// Opens the model at `path`: a folder in Hugging Face's form, a weights file in such a folder, or a GGUF file.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let files = ModelFiles::open(path)?;
        let spec = read_spec(&files)?;
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        Ok(Source { files, spec, checkpoint, adapter: None })
    }

    /// The same for a model that is part of the program; `label` stands for its folder in messages.
    pub fn embedded(label: &str, files: EmbeddedFiles, weights: &'static [u8]) -> Result<Self, SourceError> {
        let files = ModelFiles::embedded(label, files);
        let spec = read_spec(&files)?;
        let checkpoint = Checkpoint::from_bytes(&format!("{label}/model.safetensors"), weights)?;
        let checkpoint = Arc::new(checkpoint);
        Ok(Source { files, spec, checkpoint, adapter: None })
    }

    /// The model at `path` as far as its configuration goes, whatever weights are there.
    pub fn without_weights(path: &Path) -> Result<Self, SourceError> {
        let files = ModelFiles::open(path)?;
        let spec = read_spec(&files)?;
        Ok(Source { files, spec, checkpoint: Arc::new(Checkpoint::none()), adapter: None })
    }

    /// The same weights by another `config.json`.
    pub fn with_config(self, config: Vec<u8>) -> Result<Self, SourceError> {
        let files = self.files.with_config(config);
        let spec = read_spec(&files)?;
        Ok(Source { files, spec, ..self })
    }

    /// A model that is yet to be written, by its configuration and the headers of its weights.
    pub(crate) fn outlined(
        files: ModelFiles,
        config: Vec<u8>,
        checkpoint: Checkpoint,
    ) -> Result<Self, SourceError> {
        let files = files.with_config(config);
        let spec = read_spec(&files)?;
        Ok(Source { files, spec, checkpoint: Arc::new(checkpoint), adapter: None })
    }

    /// The same model with the adapter in a folder beside it.
    pub fn adapted(self, folder: &Path) -> Result<Self, SourceError> {
        let adapter = Some(Arc::new(Adapter::open(folder)?));
        Ok(Source { adapter, ..self })
    }

    /// Refuses a model of which only the native form is there, for what reads its tensors.
    pub fn check_tensors(&self) -> Result<(), SourceError> {
        match self.checkpoint.native() {
            None => Ok(()),
            Some(_) => Err(SourceError::Gone { folder: self.folder().into() }),
        }
    }

    /// The folder, for messages.
    pub fn folder(&self) -> &Path {
        self.files.folder()
    }

    /// The tokenizer; an error where there is none.
    pub fn text(&self) -> Result<Text, SourceError> {
        self.build_text(&self.files.require_tokenizer()?)
    }

    /// The tokenizer, where there is one.
    pub fn text_if_any(&self) -> Result<Option<Text>, SourceError> {
        match self.files.tokenizer()? {
            Some(bytes) => Ok(Some(self.build_text(&bytes)?)),
            None => Ok(None),
        }
    }

    fn build_text(&self, tokenizer: &[u8]) -> Result<Text, SourceError> {
        let (config, map) = (self.files.tokenizer_config()?, self.files.special_tokens_map()?);
        let tokenizer = Tokenizer::from_bytes(tokenizer, config.as_deref(), map.as_deref());
        let tokenizer = tokenizer.map_err(|source| self.tokenizer_error(source))?;
        let table = ByteTable::new(&tokenizer)
            .map_err(|source| SourceError::Detokenizer { folder: self.folder().into(), source })?;
        Ok(Text { tokenizer, table: Arc::new(table) })
    }

    /// An error of this model's tokenizer, with the model's name.
    pub fn tokenizer_error(&self, source: TokenizerError) -> SourceError {
        let folder = self.folder().into();
        SourceError::Tokenizer { folder, source }
    }

    /// The chat template, where the model has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, SourceError> {
        ChatTemplate::of_model(&self.files).map_err(|source| self.template_error(source))
    }

    /// An error of this model's chat template, with the model's name.
    pub fn template_error(&self, source: TemplateError) -> SourceError {
        let folder = self.folder().into();
        SourceError::Template { folder, source }
    }

    /// How this model generates unless flags say otherwise.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults, SourceError> {
        let bytes = self.files.generation_config()?;
        GenerationDefaults::of_model(bytes.as_deref()).map_err(|source| {
            let folder = self.folder().into();
            SourceError::Generation { folder, source }
        })
    }

    /// Every byte of a run, from the headers alone.
    pub fn plan(&self, mut options: Options, cpu: Cpu) -> Result<Plan, SourceError> {
        let adapter = self.adapter.as_deref();
        if self.checkpoint.native().is_some() {
            // Such a file is mapped as it was written, for every processor.
            options.trits = Trits::Packed;
        }
        Plan::adapted(&self.spec, stored(&self.checkpoint), adapter, options, cpu).map_err(|source| {
            let folder = match (&source, adapter) {
                (PlanError::Adapter { .. }, Some(adapter)) => adapter.folder(),
                _ => self.folder(),
            };
            SourceError::Plan { folder: folder.into(), source }
        })
    }

    /// What an adapter adds that comes to the model once that is loaded.
    pub(crate) fn guest(
        &self,
        adapter: &Adapter,
        mut options: Options,
        cpu: Cpu,
    ) -> Result<GuestPlan, SourceError> {
        if self.checkpoint.native().is_some() {
            options.trits = Trits::Packed;
        }
        let refused = |source| SourceError::Plan { folder: adapter.folder().into(), source };
        if let Some(own) = &self.adapter {
            let reason = "expected a model without an adapter of its own, to which another is to come, found one that \
                          was loaded with it; load the model alone";
            let tensor = own.folder().display().to_string();
            return Err(refused(PlanError::Adapter { tensor, reason: reason.to_owned() }));
        }
        Plan::guest(&self.spec, stored(&self.checkpoint), adapter, options, cpu).map_err(refused)
    }

    /// Takes the memory and reads the weights, and tells how many bytes of them are there. Where there is a native file
    /// for this very plan, it is mapped and nothing is read.
    pub fn load(
        &self,
        options: Options,
        cpu: Cpu,
        threads: usize,
        native: Option<&Native>,
        tell: &mut dyn FnMut(usize),
    ) -> Result<Engine, SourceError> {
        if let Some(file) = self.checkpoint.native() {
            let plan = self.plan(options, cpu)?;
            let native = Native::alone(self, &plan, file);
            let weights = match self.adapter {
                None => native.map(tell),
                Some(_) => Err(NativeError::Alone { file: file.into() }),
            };
            let weights = weights.map_err(Box::new)?;
            return Ok(Engine::over(self.spec.clone(), plan, weights, cpu, threads)?);
        }
        // Whatever is wrong with a native file, the model itself is there.
        if let Some(weights) = native.and_then(|native| native.map(tell).ok()) {
            return Ok(Engine::over(self.spec.clone(), self.plan(options, cpu)?, weights, cpu, threads)?);
        }
        let (spec, adapter) = (self.spec.clone(), self.adapter.as_deref());
        Ok(Engine::load_adapted(spec, &self.checkpoint, adapter, options, cpu, threads, tell)?)
    }

    /// Writes the weights of an engine that was loaded from here, for the next start to map, and tells how many bytes
    /// are written. An error leaves nothing behind.
    pub fn keep(
        &self,
        engine: &Engine,
        native: &Native,
        tell: &mut dyn FnMut(usize),
    ) -> Result<(), NativeError> {
        native.write(engine, &self.checkpoint, tell)
    }
}

fn read_spec(files: &ModelFiles) -> Result<ModelSpec, SourceError> {
    ModelSpec::parse(&files.require_config()?).map_err(|source| {
        let folder = files.folder().into();
        match source.key().and_then(|key| files.origin(key)) {
            Some(origin) => {
                SourceError::Metadata { file: folder, origin: origin.into(), source: Box::new(source) }
            }
            None => SourceError::Spec { folder, source },
        }
    })
}
