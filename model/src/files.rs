//! What a model folder holds beside its weights: the JSON files and the chat template, as bytes.
//!
//! It parses none of them and opens no weights, unless these are a GGUF file, which holds what the others say. It opens
//! these files (and
//! `additional_chat_templates/*.jinja`) and no others: Python code in a model folder, and whatever `auto_map` names, is
//! never touched.

use crate::checkpoint::map::{self, MapError};
use crate::checkpoint::{CheckpointError, folder};
use crate::gguf::{GgufError, Metadata};
use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Why a file of the folder could not be had.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum FilesError {
    #[error("{}: no model there; looked for a folder with config.json, tokenizer.json and \
        model.safetensors, or for one .safetensors or .gguf file: check the path, \
        or fetch it with `bantam pull OWNER/NAME`", .path.display())]
    NoPath { path: PathBuf },
    #[error("{}: expected a model folder or a .safetensors or .gguf file, found something else: give the folder \
        that holds config.json", .path.display())]
    NotAModel { path: PathBuf },
    #[error("{}: expected {name}, found none; {advice}", .folder.display())]
    Missing { folder: PathBuf, name: &'static str, advice: &'static str },
    #[error(transparent)]
    File(#[from] MapError),
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    #[error("{}: {source}; if others read the file, report it; if not, it is damaged: download it again", .file.display())]
    Gguf { file: PathBuf, source: GgufError },
}

/// The files, by name, with the most that each may hold. A published tokenizer of 260,000 tokens has 35 MB.
const CONFIG: Kind = Kind { name: "config.json", bytes_max: 1 << 20 };
const GENERATION_CONFIG: Kind = Kind { name: "generation_config.json", bytes_max: 1 << 20 };
const TOKENIZER: Kind = Kind { name: "tokenizer.json", bytes_max: 64 << 20 };
const TOKENIZER_CONFIG: Kind = Kind { name: "tokenizer_config.json", bytes_max: 16 << 20 };
const SPECIAL_TOKENS_MAP: Kind = Kind { name: "special_tokens_map.json", bytes_max: 1 << 20 };
const CHAT_TEMPLATE: Kind = Kind { name: "chat_template.jinja", bytes_max: 1 << 20 };

const ADDITIONAL_TEMPLATES: &str = "additional_chat_templates";
const ADDITIONAL_TEMPLATES_MAX: usize = 64;

#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    bytes_max: u64,
}

/// The same files as bytes of the program.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each is the file of that name")]
pub struct EmbeddedFiles {
    pub config: Option<&'static [u8]>,
    pub generation_config: Option<&'static [u8]>,
    pub tokenizer: Option<&'static [u8]>,
    pub tokenizer_config: Option<&'static [u8]>,
    pub special_tokens_map: Option<&'static [u8]>,
    pub chat_template: Option<&'static [u8]>,
}

/// The files beside the weights.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The folder, or what stands for it in messages.
    folder: PathBuf,
    home: Home,
    /// What stands for `config.json`, where that is to be another.
    config: Option<Arc<[u8]>>,
}

#[derive(Clone, Debug)]
enum Home {
    Folder,
    Program(EmbeddedFiles),
    Gguf(Arc<Metadata>),
}

type Bytes<'a> = Result<Option<Cow<'a, [u8]>>, FilesError>;

impl ModelFiles {
    /// The files at `path`: a folder, or a `.safetensors` file (or its index) whose folder holds the rest, or a GGUF
    /// file, alone or in a folder without safetensors.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        let metadata = fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => FilesError::NoPath { path: path.into() },
            _ => FilesError::File(MapError::Io { path: path.into(), source }),
        })?;
        if let Some(file) = folder::gguf(path) {
            let home = Home::Gguf(Arc::new(Metadata::open(&file)?));
            return Ok(Self { folder: file, home, config: None });
        }
        if metadata.is_dir() {
            return Ok(Self { folder: path.into(), home: Home::Folder, config: None });
        }
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        if !metadata.is_file()
            || !(name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"))
        {
            return Err(FilesError::NotAModel { path: path.into() });
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { folder: folder.into(), home: Home::Folder, config: None })
    }

    /// The files carried in the program; `label` stands for their folder in messages.
    pub fn embedded(label: &str, files: EmbeddedFiles) -> Self {
        Self { folder: label.into(), home: Home::Program(files), config: None }
    }

    /// The same files but for `config.json`, which is this.
    pub(crate) fn with_config(self, config: Vec<u8>) -> Self {
        Self { config: Some(config.into()), ..self }
    }

    /// Whether `config.json` is another than the model's own.
    pub fn is_edited(&self) -> bool {
        self.config.is_some()
    }

    /// The folder or the GGUF file, or the label of embedded files: for messages.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where on the disk the files would lie, whether they are there or not.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let kinds =
            [CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, CHAT_TEMPLATE];
        let paths = match &self.home {
            Home::Folder => kinds.iter().map(|kind| self.folder.join(kind.name)).collect(),
            Home::Program(_) => Vec::new(),
            Home::Gguf(metadata) => vec![metadata.path().to_owned()],
        };
        paths.into_iter()
    }

    /// `config.json`.
    pub fn config(&self) -> Bytes<'_> {
        if let Some(config) = &self.config {
            return Ok(Some(Cow::Borrowed(config)));
        }
        self.get(CONFIG, |files| files.config, |metadata| metadata.config().map(Some))
    }

    /// `generation_config.json`.
    pub fn generation_config(&self) -> Bytes<'_> {
        self.get(GENERATION_CONFIG, |files| files.generation_config, |_| Ok(None))
    }

    /// `tokenizer.json`.
    pub fn tokenizer(&self) -> Bytes<'_> {
        self.get(TOKENIZER, |files| files.tokenizer, Metadata::tokenizer)
    }

    /// `tokenizer_config.json`.
    pub fn tokenizer_config(&self) -> Bytes<'_> {
        self.get(
            TOKENIZER_CONFIG,
            |files| files.tokenizer_config,
            |metadata| metadata.tokenizer_config().map(Some),
        )
    }

    /// `special_tokens_map.json`.
    pub fn special_tokens_map(&self) -> Bytes<'_> {
        self.get(SPECIAL_TOKENS_MAP, |files| files.special_tokens_map, |_| Ok(None))
    }

    /// `chat_template.jinja`. Older models keep the template inside `tokenizer_config.json`.
    pub fn chat_template(&self) -> Bytes<'_> {
        self.get(CHAT_TEMPLATE, |files| files.chat_template, |_| Ok(None))
    }

    /// The templates of `additional_chat_templates/`, by name without `.jinja`, sorted.
    pub fn additional_chat_templates(&self) -> Result<Vec<(String, Vec<u8>)>, FilesError> {
        let folder = self.folder.join(ADDITIONAL_TEMPLATES);
        // A folder that cannot be listed holds nothing for us: most models have none.
        let Some(entries) = fs::read_dir(&folder).ok().filter(|_| matches!(self.home, Home::Folder)) else {
            return Ok(Vec::new());
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let jinja = paths.filter(|path| path.extension().is_some_and(|extension| extension == "jinja"));
        let mut paths: Vec<PathBuf> = jinja.take(ADDITIONAL_TEMPLATES_MAX).collect();
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push((name, map::read_regular(&path, CHAT_TEMPLATE.bytes_max)?));
        }
        Ok(found)
    }

    /// [`config`](Self::config), where a model without one cannot be used.
    pub fn require_config(&self) -> Result<Cow<'_, [u8]>, FilesError> {
        let advice = "it says which architecture the weights are: download it from where the weights came";
        self.config()?.ok_or_else(|| self.missing(CONFIG, advice))
    }

    /// [`tokenizer`](Self::tokenizer), where a model without one cannot be used.
    pub fn require_tokenizer(&self) -> Result<Cow<'_, [u8]>, FilesError> {
        let advice = "it turns text into tokens: download it, or convert tokenizer.model with \
            transformers' AutoTokenizer and save_pretrained";
        self.tokenizer()?.ok_or_else(|| self.missing(TOKENIZER, advice))
    }

    fn missing(&self, kind: Kind, advice: &'static str) -> FilesError {
        FilesError::Missing { folder: self.folder.clone(), name: kind.name, advice }
    }

    /// The key of a GGUF file's metadata that one of `config.json` was made of.
    pub(crate) fn origin(&self, key: &str) -> Option<String> {
        match &self.home {
            Home::Gguf(metadata) => metadata.origin(key),
            _ => None,
        }
    }

    /// What a GGUF file says, where the model is one.
    pub(crate) fn gguf(&self) -> Option<&Metadata> {
        match &self.home {
            Home::Gguf(metadata) => Some(metadata),
            _ => None,
        }
    }

    fn get(
        &self,
        kind: Kind,
        pick: impl Fn(&EmbeddedFiles) -> Option<&'static [u8]>,
        make: impl Fn(&Metadata) -> Result<Option<Vec<u8>>, GgufError>,
    ) -> Bytes<'_> {
        match &self.home {
            Home::Folder => {}
            Home::Program(files) => return Ok(pick(files).map(Cow::Borrowed)),
            Home::Gguf(metadata) => {
                let made = make(metadata)
                    .map_err(|source| FilesError::Gguf { file: self.folder.clone(), source })?;
                return Ok(made.map(Cow::Owned));
            }
        }
        match map::read_regular(&self.folder.join(kind.name), kind.bytes_max) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(MapError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
