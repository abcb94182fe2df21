//! The files that say what to train, in which every key is known.
//!
//! A file is LLaMA-Factory's YAML or JSON (version 0.9.3), or has the sections model, lora, dataset and training
//! (`sections.rs`); `key=value` overrides both. `table.rs` says of every key what it may be and what becomes of it: it
//! is done, it changes nothing here, or it is refused with what to do instead. An unknown key is an error. What cannot
//! stand together is refused in `conflicts.rs`. All that is wrong is said at once, with file and line.

mod conflicts;
mod key;
mod sections;
mod table;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bantam_model::foreign::clipped;

pub use key::{Fate, Key, Kind, Value};
pub(crate) use key::{flag, number};
pub use table::keys;
use yaml::{Content, Node};

const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Running text.
    Pretrain,
    /// Conversations, of which answers are learnt.
    Sft,
}

/// How several data sets become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// One after the other.
    Concat,
    /// By turns, until the first has no more rows.
    Under,
    /// By turns, until each has had all its rows once.
    Over,
}

/// What is read, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSettings {
    /// Names in `dataset_info.json`.
    pub datasets: Vec<String>,
    /// Names of those that the model is measured with.
    pub eval_datasets: Vec<String>,
    /// Where `dataset_info.json` is.
    pub folder: PathBuf,
    /// Instead of names: a file, and what form it has.
    pub file: Option<(PathBuf, String)>,
    /// Where examples are kept that are ready: read where it is there, else written.
    pub tokenized: Option<PathBuf>,
    /// The name of a template; without one, the model's own.
    pub template: Option<String>,
    /// The most tokens of an example; already one less where conversations are packed, as in LLaMA-Factory.
    pub cutoff_len: usize,
    /// Whether questions are learnt as well.
    pub train_on_prompt: bool,
    /// Whether only the last answer is learnt.
    pub mask_history: bool,
    /// Whether several examples share a row.
    pub packing: bool,
    /// Whether those do not see each other.
    pub neat_packing: bool,
    /// Whether a conversation that does not end with eos gets one, where there is room.
    pub append_eos: bool,
    /// The most rows of each data set.
    pub max_samples: Option<usize>,
    /// How much is put aside for measuring: a share below 1, or so many rows.
    pub val_size: f64,
    /// How many rows are packed together.
    pub group: usize,
    /// How data sets are mixed.
    pub mix: Mix,
    /// By which chances.
    pub interleave_probs: Option<Vec<f64>>,
    /// How tools are spelled, if not as the template does.
    pub tool_format: Option<String>,
    /// What the system says, if not what the template has.
    pub default_system: Option<String>,
    /// Whether answers think; `None` reads empty thoughts without learning them.
    pub enable_thinking: Option<bool>,
    /// Whether what fills rows is not learnt.
    pub ignore_pad: bool,
}

/// What to train, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The stage.
    pub stage: Stage,
    /// The data.
    pub data: DataSettings,
    /// Keys that change nothing here, with the reason.
    pub notes: Vec<String>,
    chosen: Chosen,
    root: PathBuf,
}

/// Everything that is wrong with a file of settings.
#[derive(Debug)]
pub struct SettingsError {
    complaints: Vec<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.complaints.join("\n"))
    }
}

impl std::error::Error for SettingsError {}

impl SettingsError {
    fn one(complaint: String) -> Self {
        Self { complaints: vec![complaint] }
    }

    /// All of these, each with its place.
    pub(crate) fn of(complaints: Vec<String>) -> Self {
        Self { complaints }
    }
}

/// Values by key, for those that somebody gave, and where they stood.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chosen {
    given: BTreeMap<&'static str, (Value, String)>,
}

impl Settings {
    /// Reads a file, and what overrides it, each `key=value`.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, SettingsError> {
        let text = text_of(path)?;
        Self::of_text(&path.display().to_string(), &text, overrides)
    }

    /// The same from the text of a file; `name` stands for it in messages.
    pub fn of_text(name: &str, text: &str, overrides: &[String]) -> Result<Self, SettingsError> {
        let root = yaml::parse(text).map_err(|broken| {
            let (line, reason) = (broken.line, broken.reason);
            SettingsError::one(format!("{name}:{line}: expected YAML, found {reason}; mend the line"))
        })?;
        let Content::Map(entries) = root.content else {
            let found = root.content.kind();
            let advice = "write lines such as `stage: sft`";
            return Err(SettingsError::one(format!(
                "{name}: expected keys with values, found {found}; {advice}"
            )));
        };
        let mut collected = Collected::default();
        for (key, node) in sections::flat(entries, &mut |line, words| {
            collected.complaints.push(format!("{name}:{line}: {words}"));
        }) {
            let place = format!("{name}:{}", node.line);
            collected.take(&key, &node, &place);
        }
        for given in overrides {
            collected.take_override(given);
        }
        collected.settings()
    }

    /// The same for a process that stands elsewhere: relative paths begin at a folder.
    pub fn below(mut self, folder: &Path) -> Self {
        self.root = folder.into();
        self.data.folder = folder.join(&self.data.folder);
        self.data.tokenized = self.data.tokenized.map(|path| folder.join(path));
        self.data.file = self.data.file.map(|(path, form)| (folder.join(path), form));
        let within = |path: &str| folder.join(path).display().to_string();
        for key in ["output_dir", "logging_dir", "resume_from_checkpoint"] {
            if let Some((Value::Text(path), _)) = self.chosen.given.get_mut(key)
                && !path.is_empty()
                && (key != "resume_from_checkpoint" || flag(path).is_none())
            {
                *path = within(path);
            }
        }
        // Names of models and adapters may stand for something else than paths.
        for path in self.chosen.given.get_mut("adapter_name_or_path").into_iter().flat_map(|given| {
            match &mut given.0 {
                Value::Names(names) => names.iter_mut(),
                _ => [].iter_mut(),
            }
        }) {
            if folder.join(&path).exists() {
                *path = within(path);
            }
        }
        self
    }

    /// Where relative paths begin, if not where the process stands.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether somebody said anything of a key but null.
    pub fn is_given(&self, key: &str) -> bool {
        self.chosen.is_given(key)
    }

    /// Whether somebody said anything else of a key than what its default is.
    pub(crate) fn differs(&self, key: &str) -> bool {
        let default = table::find(key).expect("keys that are asked for are in the table").default_value();
        self.is_given(key) && self.chosen.value(key) != default
    }

    /// What somebody said, without what only the owner is to know.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, serde_json::Value)> {
        let is_secret =
            |key: &str| ["_token", "_key", "_secret", "_url"].iter().any(|end| key.ends_with(end));
        let open = self.chosen.given.iter().filter(move |(key, _)| !is_secret(key));
        open.filter_map(|(key, (value, _))| Some((*key, value.json()?)))
    }

    /// All keys that are executed with what they are, also where nobody said anything.
    pub(crate) fn in_force(&self) -> impl Iterator<Item = (&'static str, serde_json::Value)> {
        let done = table::keys().filter(|key| key.fate == Fate::Done);
        done.map(|key| (key.name, self.chosen.value(key.name).json().unwrap_or_default()))
    }

    /// Where a key stood.
    pub(crate) fn place(&self, key: &str) -> &str {
        self.chosen.place(key)
    }

    /// A flag's value.
    pub fn flag(&self, key: &str) -> bool {
        self.chosen.flag(key).unwrap_or(false)
    }

    /// A whole number, where there is one.
    pub fn count(&self, key: &str) -> Option<i64> {
        self.chosen.count(key)
    }

    /// A number, where there is one.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.chosen.number(key)
    }

    /// A word or text, where there is one.
    pub fn text(&self, key: &str) -> Option<String> {
        self.chosen.text(key)
    }

    /// Names with what stands behind them, where there are any.
    pub(crate) fn table(&self, key: &str) -> Option<Vec<(String, String)>> {
        self.chosen.table(key)
    }

    /// Names, where there are any.
    pub fn names(&self, key: &str) -> Option<Vec<String>> {
        self.chosen.names(key)
    }
}

fn text_of(path: &Path) -> Result<String, SettingsError> {
    let failed = |words: String| SettingsError::one(format!("{}: {words}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| failed(format!("{error}; give a YAML file")))?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(failed(format!("expected at most 1 MiB of settings, found {} bytes", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(format!("{error}; give a YAML file")))?;
    String::from_utf8(bytes).map_err(|_| failed("expected text in UTF-8; convert the file".to_owned()))
}

/// Values on their way, and what is wrong with them.
#[derive(Default)]
struct Collected {
    chosen: Chosen,
    notes: Vec<String>,
    complaints: Vec<String>,
}

impl Collected {
    /// `key=value` as people type it; the value is a line of YAML.
    fn take_override(&mut self, given: &str) {
        let Some((key, text)) = given.split_once('=') else {
            let found = clipped(given);
            self.complaints
                .push(format!("{found}: expected key=value, found no =; write learning_rate=1e-5"));
            return;
        };
        let words = Node { line: 0, content: Content::Scalar(text.to_owned(), true) };
        let node = yaml::parse(text).unwrap_or(words.clone());
        // An empty value is no empty block, and braces may be part of a text.
        let node = if matches!(node.content, Content::Map(_)) { words } else { node };
        let (place, key) = (format!("{}=", clipped(key)), key.trim());
        if let Some((table, part)) = key.split_once('.')
            && table::find(table).is_some_and(|key| key.kind == Kind::Table)
        {
            return self.take_part(table, part, node, &place);
        }
        if let Some((whole, _)) = key.split_once('.')
            && table::find(whole).is_some()
        {
            self.complaints.push(format!("{place}: expected {whole} without parts; write {whole}=VALUE"));
            return;
        }
        self.take(sections::own_name(key), &node, &place);
    }

    /// One entry of a block, beside those that are there.
    fn take_part(&mut self, table: &str, part: &str, node: Node, place: &str) {
        let mut entries = vec![(part.to_owned(), node)];
        if let Some((Value::Table(known), _)) = self.chosen.given.get(table) {
            let kept = known.iter().filter(|(name, _)| name != part);
            let node = |words: &String| Node { line: 0, content: Content::Scalar(words.clone(), false) };
            entries.extend(kept.map(|(name, words)| (name.clone(), node(words))));
        }
        self.take(table, &Node { line: 0, content: Content::Map(entries) }, place);
    }

    fn take(&mut self, name: &str, node: &Node, place: &str) {
        let Some(key) = table::find(name) else {
            let advice = match table::nearest(name) {
                Some(near) => format!("did you mean {near}?"),
                None => "`bantam train --keys` lists them".to_owned(),
            };
            self.complaints.push(format!("{place}: expected a known key, found {}; {advice}", clipped(name)));
            return;
        };
        let value = match key.value(node) {
            Ok(value) => value,
            Err(expected) => {
                let found = key::shown(node);
                self.complaints.push(format!("{place}: expected {expected} for {name}, found {found}"));
                return;
            }
        };
        let says_something = value != Value::Null && value != key.default_value();
        match key.fate {
            Fate::Refused(instead) if says_something => {
                let found = key::shown(node);
                self.complaints.push(format!("{place}: {name}: {found} is not done here; {instead}"));
            }
            Fate::Idle(why) if says_something => self.notes.push(format!("{name} changes nothing: {why}")),
            _ => {}
        }
        self.chosen.given.insert(key.name, (value, place.to_owned()));
    }

    fn settings(mut self) -> Result<Settings, SettingsError> {
        self.complaints.extend(conflicts::complaints(&self.chosen));
        let stage = match self.chosen.text("stage").as_deref() {
            Some("pt") => Stage::Pretrain,
            _ => Stage::Sft,
        };
        let probabilities = self.probabilities();
        if !self.complaints.is_empty() {
            return Err(SettingsError { complaints: self.complaints });
        }
        let data = self.chosen.data(stage, probabilities);
        Ok(Settings { stage, data, notes: self.notes, chosen: self.chosen, root: PathBuf::new() })
    }

    fn probabilities(&mut self) -> Option<Vec<f64>> {
        let names = self.chosen.names("interleave_probs")?;
        let place = self.chosen.place("interleave_probs");
        let shares: Option<Vec<f64>> = names
            .iter()
            .map(|share| share.trim().parse().ok().filter(|share: &f64| share.is_finite() && *share > 0.0))
            .collect();
        let count = |key: &str| self.chosen.names(key).map_or(0, |names| names.len());
        let (sets, measured) = (count("dataset"), count("eval_dataset"));
        match shares.filter(|shares| shares.len() == sets && (measured == 0 || measured == sets)) {
            Some(shares) => Some(shares),
            None => {
                self.complaints.push(format!(
                    "{place}: expected a share above 0 for each of {sets} data sets, and as many sets for eval, found {}",
                    clipped(names.join(","))
                ));
                None
            }
        }
    }
}

impl Chosen {
    /// What a key says, its default where nobody says anything.
    fn value(&self, name: &str) -> Value {
        match self.given.get(name) {
            Some((value, _)) if *value != Value::Null => value.clone(),
            _ => table::find(name).expect("keys that are asked for are in the table").default_value(),
        }
    }

    fn is_given(&self, name: &str) -> bool {
        self.given.get(name).is_some_and(|(value, _)| *value != Value::Null)
    }

    /// Where a key stood.
    fn place(&self, name: &str) -> &str {
        self.given.get(name).map_or("settings", |(_, place)| place)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        match self.value(name) {
            Value::Flag(flag) => Some(flag),
            _ => None,
        }
    }

    fn is_set(&self, name: &str) -> bool {
        self.flag(name) == Some(true)
    }

    fn count(&self, name: &str) -> Option<i64> {
        match self.value(name) {
            Value::Count(count) => Some(count),
            _ => None,
        }
    }

    fn number(&self, name: &str) -> Option<f64> {
        match self.value(name) {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.value(name) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn names(&self, name: &str) -> Option<Vec<String>> {
        match self.value(name) {
            Value::Names(names) => Some(names),
            _ => None,
        }
    }

    fn table(&self, name: &str) -> Option<Vec<(String, String)>> {
        match self.value(name) {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    fn data(&self, stage: Stage, interleave_probs: Option<Vec<f64>>) -> DataSettings {
        let size = |name: &str| self.count(name).map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        let neat_packing = self.is_set("neat_packing");
        let packing = self.flag("packing").or(neat_packing.then_some(true));
        // Only who asks for packing gets a token less: the rule of the original, in which pt's own packing comes later.
        let less = usize::from(packing == Some(true));
        let file = self.text("dataset_path").map(|path| {
            let form = self.text("dataset_type").expect("it has a default");
            (PathBuf::from(path), form)
        });
        let is_null = |name: &str| self.given.get(name).is_some_and(|(value, _)| *value == Value::Null);
        DataSettings {
            datasets: self.names("dataset").unwrap_or_default(),
            eval_datasets: self.names("eval_dataset").unwrap_or_default(),
            folder: self.text("dataset_dir").expect("it has a default").into(),
            file,
            tokenized: self.text("tokenized_path").map(PathBuf::from),
            template: self.text("template"),
            cutoff_len: size("cutoff_len").expect("it has a default") - less,
            train_on_prompt: self.is_set("train_on_prompt"),
            mask_history: self.is_set("mask_history"),
            packing: packing.unwrap_or(stage == Stage::Pretrain),
            neat_packing,
            append_eos: self.is_set("append_eos"),
            max_samples: size("max_samples"),
            val_size: self.number("val_size").unwrap_or(0.0),
            group: size("preprocessing_batch_size").expect("it has a default"),
            mix: match self.text("mix_strategy").as_deref() {
                Some("interleave_under") => Mix::Under,
                Some("interleave_over") => Mix::Over,
                _ => Mix::Concat,
            },
            interleave_probs,
            tool_format: self.text("tool_format"),
            default_system: self.text("default_system"),
            enable_thinking: self.flag("enable_thinking").filter(|_| !is_null("enable_thinking")),
            ignore_pad: self.is_set("ignore_pad_token_for_loss"),
        }
    }
}

#[cfg(test)]
mod tests;
