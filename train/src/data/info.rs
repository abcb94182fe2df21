//! `dataset_info.json`: which file is a data set, and what its columns and tags are called.

use std::path::{Path, PathBuf};

use bantam_model::foreign::clipped;
use serde_json::{Map, Value};

use super::error::DataError;
use super::hub::Hub;
use super::rows;

const FILE: &str = "dataset_info.json";
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Rows that are drawn lie in memory.
const SAMPLES_MAX: u64 = 10_000_000;

/// How rows are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Formatting {
    Alpaca,
    Sharegpt,
    Openai,
    /// Our own: rows that hold token ids already.
    Tokenized,
}

const FORMATTINGS: &[(&str, Formatting)] = &[
    ("alpaca", Formatting::Alpaca),
    ("sharegpt", Formatting::Sharegpt),
    ("openai", Formatting::Openai),
    ("tokenized", Formatting::Tokenized),
];

/// Where rows are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A file or folder, from the folder of the description.
    File(String),
    Hub(Hub),
}

/// One data set as it is described.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) formatting: Formatting,
    pub(super) num_samples: Option<usize>,
    columns: Vec<(&'static str, Option<String>)>,
    tags: Vec<(&'static str, Option<String>)>,
    has_columns: bool,
}

const KEYS: &[&str] = &[
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
    "file_name",
    "file_sha1",
    "formatting",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
    "columns",
    "tags",
];

/// Columns and what they are called unless somebody says otherwise. As soon as one is named, the others are none.
const COLUMNS: &[(&str, Option<&str>)] = &[
    ("prompt", Some("instruction")),
    ("query", Some("input")),
    ("response", Some("output")),
    ("history", None),
    ("messages", Some("conversations")),
    ("system", None),
    ("tools", None),
    ("images", None),
    ("videos", None),
    ("audios", None),
    ("chosen", None),
    ("rejected", None),
    ("kto_tag", None),
    ("input_ids", Some("input_ids")),
    ("labels", Some("labels")),
];

const TAGS: &[(&str, Option<&str>)] = &[
    ("role_tag", Some("from")),
    ("content_tag", Some("value")),
    ("user_tag", Some("human")),
    ("assistant_tag", Some("gpt")),
    ("observation_tag", Some("observation")),
    ("function_tag", Some("function_call")),
    ("system_tag", Some("system")),
];

/// What OpenAI's messages are called.
const OPENAI: &[(&str, &str)] = &[
    ("messages", "messages"),
    ("role_tag", "role"),
    ("content_tag", "content"),
    ("user_tag", "user"),
    ("assistant_tag", "assistant"),
    ("observation_tag", "tool"),
    ("function_tag", "function_call"),
    ("system_tag", "system"),
];

impl Attributes {
    /// A file without a description, in one of the forms by name. `text` is a file of text alone.
    pub(super) fn of_file(file: &str, form: &str) -> Result<Self, DataError> {
        let entry = match form {
            "text" => serde_json::json!({ "file_name": file, "columns": { "prompt": "text" } }),
            form => serde_json::json!({ "file_name": file, "formatting": form }),
        };
        Self::of_entry(file, &entry)
    }

    fn of_entry(name: &str, entry: &Value) -> Result<Self, DataError> {
        let wrong =
            |expected, found: String, advice: &str| Err(DataError::set(name, expected, found, advice));
        let Some(entry) = entry.as_object() else {
            return wrong("an object that describes it", clipped(entry), "write {\"file_name\": …}");
        };
        if let Some(key) = entry.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return wrong("known keys", clipped(key), &format!("the keys are {}", KEYS.join(", ")));
        }
        let place = place(name, entry)?;
        if entry.get("ranking").and_then(Value::as_bool) == Some(true) {
            let advice = "the stages dpo and rm are for it; choose another data set";
            return wrong("examples with one answer", "\"ranking\": true".to_owned(), advice);
        }
        let formatting = match text_at(name, entry, "formatting")? {
            None => Formatting::Alpaca,
            Some(word) => match FORMATTINGS.iter().find(|(known, _)| *known == word) {
                Some((_, formatting)) => *formatting,
                None => {
                    let advice = "use alpaca, sharegpt, openai or tokenized";
                    return wrong("a known formatting", clipped(format_args!("{word:?}")), advice);
                }
            },
        };
        let num_samples = match entry.get("num_samples") {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_u64().filter(|count| (1..=SAMPLES_MAX).contains(count)) {
                Some(count) => Some(count as usize),
                None => {
                    return wrong(
                        "num_samples from 1 to 10 million",
                        clipped(value),
                        "give a number of rows",
                    );
                }
            },
        };
        let columns = named(name, entry, "columns", COLUMNS, formatting)?;
        let tags = named(name, entry, "tags", TAGS, formatting)?;
        let has_columns = entry.contains_key("columns");
        Ok(Self { name: name.to_owned(), place, formatting, num_samples, columns, tags, has_columns })
    }

    /// The files with the rows; paths begin at a folder.
    pub(super) fn files(&self, folder: &Path) -> Result<Vec<PathBuf>, DataError> {
        match &self.place {
            Place::File(file) => rows::files(&folder.join(file)),
            Place::Hub(hub) => hub.files(&self.name),
        }
    }

    /// What a column is called in the file, if it has one.
    pub(super) fn column(&self, column: &str) -> Option<&str> {
        find(&self.columns, column)
    }

    /// What a tag is.
    pub(super) fn tag(&self, tag: &str) -> Option<&str> {
        find(&self.tags, tag)
    }

    /// Columns that must be somewhere: those without which there is nothing to read and, in files that were read to the
    /// end, all that somebody named.
    pub(super) fn required(&self, is_whole: bool) -> impl Iterator<Item = &str> {
        let needed: &[&str] = match self.formatting {
            Formatting::Alpaca => &["prompt", "response"],
            Formatting::Sharegpt | Formatting::Openai => &["messages"],
            Formatting::Tokenized => &["input_ids"],
        };
        let of_this_form = move |column: &&str| match self.formatting {
            Formatting::Tokenized => matches!(*column, "input_ids" | "labels"),
            _ => !matches!(*column, "input_ids" | "labels"),
        };
        let columns = self.columns.iter().filter(move |(column, _)| {
            of_this_form(column) && ((self.has_columns && is_whole) || needed.contains(column))
        });
        columns.filter_map(|(_, called)| called.as_deref())
    }
}

fn find<'a>(names: &'a [(&'static str, Option<String>)], name: &str) -> Option<&'a str> {
    names.iter().find(|(known, _)| *known == name).and_then(|(_, called)| called.as_deref())
}

/// The names of a block, or what they are without one.
fn named(
    set: &str,
    entry: &Map<String, Value>,
    block: &'static str,
    known: &[(&'static str, Option<&str>)],
    formatting: Formatting,
) -> Result<Vec<(&'static str, Option<String>)>, DataError> {
    let openai = |name: &str| OPENAI.iter().find(|(known, _)| *known == name).map(|(_, called)| *called);
    let Some(given) = entry.get(block).filter(|given| !given.is_null()) else {
        let unnamed = known.iter().map(|&(name, called)| match (formatting, openai(name)) {
            (Formatting::Openai, Some(called)) => (name, Some(called.to_owned())),
            _ => (name, called.map(str::to_owned)),
        });
        return Ok(unnamed.collect());
    };
    let Some(given) = given.as_object() else {
        let found = clipped(given);
        return Err(DataError::set(set, "an object of names", found, format!("mend its {block}")));
    };
    if let Some(unknown) = given.keys().find(|key| !known.iter().any(|(name, _)| name == key)) {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let found = format!("{} in its {block}", clipped(unknown));
        return Err(DataError::set(set, "known names", found, format!("they are {}", names.join(", "))));
    }
    let mut names = Vec::new();
    for (name, _) in known {
        names.push((*name, text_at(set, given, name)?));
    }
    Ok(names)
}

fn text_at(set: &str, entry: &Map<String, Value>, key: &str) -> Result<Option<String>, DataError> {
    match entry.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => {
            let found = format!("{} at {}", clipped(other), clipped(key));
            Err(DataError::set(set, "text", found, "write it in quotes"))
        }
    }
}

/// The file, or the hub's cache, which goes first as in LLaMA-Factory; what would have to be fetched is refused.
fn place(name: &str, entry: &Map<String, Value>) -> Result<Place, DataError> {
    const ELSEWHERE: &[&str] = &["ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"];
    let split = text_at(name, entry, "split")?.unwrap_or_else(|| "train".to_owned());
    if let Some(repository) = text_at(name, entry, "hf_hub_url")? {
        let (subset, folder) = (text_at(name, entry, "subset")?, text_at(name, entry, "folder")?);
        return Ok(Place::Hub(Hub { repository, subset, split, folder }));
    }
    if let Some(key) = ELSEWHERE.iter().find(|key| entry.contains_key(**key)) {
        let advice = "fetch it, and name the file or folder with file_name instead; scripts are never run";
        return Err(DataError::set(name, "a local file", (*key).to_owned(), advice));
    }
    if split != "train" {
        let advice = "local files are one split; choose rows with num_samples or by files of their own";
        return Err(DataError::set(name, "the split \"train\"", clipped(format_args!("{split:?}")), advice));
    }
    match text_at(name, entry, "file_name")? {
        Some(file) => Ok(Place::File(file)),
        None => {
            Err(DataError::set(name, "file_name", "none".to_owned(), "name the file or folder with its data"))
        }
    }
}

/// The data sets of these names, as the folder describes them.
pub(super) fn read(folder: &Path, names: &[String]) -> Result<Vec<Attributes>, DataError> {
    let path = folder.join(FILE);
    let advice = "name the folder that holds it with dataset_dir";
    if folder.as_os_str() == "ONLINE" || folder.to_string_lossy().starts_with("REMOTE:") {
        let found = folder.display().to_string();
        let advice = "fetch the data sets and give a folder";
        return Err(DataError::set("dataset_dir", "a folder on this machine", found, advice));
    }
    let failed = |source| DataError::Read { path: path.clone(), expected: "a list of data sets", source };
    let file = |found: String, advice: &str| DataError::File {
        path: path.clone(),
        expected: "a JSON object of data sets",
        found,
        advice: advice.to_owned(),
    };
    let bytes = std::fs::metadata(&path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(file(format!("{bytes} bytes"), advice));
    }
    let text = std::fs::read(&path).map_err(failed)?;
    let sets: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| file(clipped(error), "mend the file"))?;
    let one = |name: &String| match sets.get(name) {
        Some(entry) => Attributes::of_entry(name, entry),
        None => {
            let known: Vec<String> = sets.keys().take(20).map(clipped).collect();
            let advice = format!("{} has {}", path.display(), known.join(", "));
            Err(DataError::set(name, "a name in dataset_info.json", "none".to_owned(), advice))
        }
    };
    names.iter().map(one).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;
    use serde_json::json;

    fn attributes(entry: Value) -> Result<Attributes, String> {
        Attributes::of_entry("x", &entry).map_err(|error| error.to_string())
    }

    #[test]
    fn a_block_takes_away_what_it_does_not_name() {
        let plain = attributes(json!({"file_name": "a.json"})).unwrap();
        assert_eq!((plain.column("query"), plain.column("system")), (Some("input"), None));
        assert_eq!(plain.required(true).collect::<Vec<_>>(), ["instruction", "output"]);
        let named = attributes(json!({"file_name": "a", "columns": {"prompt": "text"}})).unwrap();
        assert_eq!((named.column("prompt"), named.column("response")), (Some("text"), None));
        assert_eq!((named.tag("role_tag"), named.required(true).count()), (Some("from"), 1));
        let tagged = attributes(json!({"file_name": "a", "tags": {"role_tag": "role"}})).unwrap();
        assert_eq!((tagged.tag("role_tag"), tagged.tag("user_tag")), (Some("role"), None));
        let openai = attributes(json!({"file_name": "a", "formatting": "openai"})).unwrap();
        assert_eq!((openai.tag("user_tag"), openai.column("messages")), (Some("user"), Some("messages")));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_advice() {
        let refused = |entry: Value, words: &str| {
            let error = attributes(entry).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        refused(json!({"ms_hub_url": "a/b"}), "fetch it");
        refused(json!({"file_name": "a", "ranking": true}), "dpo");
        refused(json!({"file_name": "a", "split": "test"}), "num_samples");
        refused(json!({"file_name": "a", "formating": "x"}), "formating");
        refused(json!({"file_name": "a", "formatting": "chatml"}), "sharegpt");
        refused(json!({"file_name": "a", "columns": {"promt": "x"}}), "promt");
        refused(json!({"file_name": 3}), "quotes");
        refused(json!({}), "file_name");
        refused(json!([]), "an object");
    }
}
