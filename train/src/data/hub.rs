//! Data sets of the Hugging Face hub that are in its cache already: which files of a snapshot are rows. Nothing is
//! fetched, and no script is run.
//!
//! The rules are those of `datasets`: what the README names as the files of a configuration; otherwise
//! `data/SPLIT-00000-of-00001…`, otherwise files, and then folders, whose names hold a word for the split, otherwise
//! all.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use bantam_model::foreign::clipped;
use bantam_model::hub;

use super::error::DataError;
use crate::settings::yaml::{self, Content, Node};

const README_BYTES_MAX: u64 = 4 << 20;
const FILES_MAX: usize = 100_000;
const DEPTH_MAX: usize = 16;
/// What files of rows end with.
const ENDINGS: &[&str] = &["json", "jsonl", "csv", "txt", "parquet", "arrow"];
/// Files that describe others.
const DESCRIPTIONS: &[&str] = &["dataset_info.json", "dataset_infos.json", "config.json", "state.json"];
/// Words for a split in names.
const WORDS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// A data set of the hub, as `dataset_info.json` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hub {
    pub(super) repository: String,
    /// The configuration.
    pub(super) subset: Option<String>,
    pub(super) split: String,
    /// Where in the repository files are looked for.
    pub(super) folder: Option<String>,
}

impl Hub {
    /// The files with the rows.
    pub(super) fn files(&self, name: &str) -> Result<Vec<PathBuf>, DataError> {
        let cache = hub::cache(&|name| env::var_os(name));
        self.files_in(name, &cache.unwrap_or_default())
    }

    fn files_in(&self, name: &str, cache: &Path) -> Result<Vec<PathBuf>, DataError> {
        let refused = |found: String, advice: String| {
            Err(DataError::set(name, "a data set of the hub in its cache", found, advice))
        };
        let Some(snapshot) = self.snapshot(cache) else {
            let repository = clipped(&self.repository);
            let advice = format!(
                "fetch it (`hf download --repo-type dataset {repository}`), or name files with file_name instead"
            );
            return refused(format!("no snapshot of {repository} in {}", cache.display()), advice);
        };
        let mut all = Vec::new();
        let inside =
            self.folder.as_ref().map_or_else(String::new, |folder| format!("{}/", folder.trim_matches('/')));
        gather(&snapshot, String::new(), 0, &mut all);
        all.retain(|path| path.starts_with(&inside));
        all.sort();
        let files = match self.configured(&snapshot, &all) {
            Ok(Some(files)) => files,
            Ok(None) if self.subset.as_ref().is_none_or(|subset| subset == "default") => {
                self.by_names(&all, &inside)
            }
            Ok(None) => Vec::new(),
            Err(known) => {
                let subset = self.subset.as_deref().unwrap_or("default");
                let found = format!("no configuration {} in its README", clipped(format_args!("{subset:?}")));
                return refused(found, format!("name one with \"subset\": {}", known.join(", ")));
            }
        };
        match files.is_empty() {
            false => Ok(files.into_iter().map(|file| snapshot.join(file)).collect()),
            true => {
                let found = format!("no files of the split {:?} in {}", self.split, snapshot.display());
                let advice =
                    "name another with \"split\", or the files with file_name instead; scripts are never run";
                refused(clipped(&found), advice.to_owned())
            }
        }
    }

    /// The folder of what `main` is, or of the only revision that is there.
    fn snapshot(&self, cache: &Path) -> Option<PathBuf> {
        let is_plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\\');
        let is_sound = self.repository.split('/').all(is_plain) && self.repository.matches('/').count() < 2;
        let folder =
            is_sound.then(|| cache.join(format!("datasets--{}", self.repository.replace('/', "--"))))?;
        let main = fs::read_to_string(folder.join("refs/main")).ok();
        let main = main.as_deref().map(str::trim).filter(|main| is_plain(main) && !main.contains('/'));
        let snapshots = folder.join("snapshots");
        if let Some(main) = main.map(|main| snapshots.join(main)).filter(|main| main.is_dir()) {
            return Some(main);
        }
        let mut known = fs::read_dir(snapshots).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        known.next().filter(|_| known.next().is_none())
    }

    /// What the README says; nothing where it names no files. The error are the configurations that there are.
    fn configured(&self, snapshot: &Path, all: &[String]) -> Result<Option<Vec<String>>, Vec<String>> {
        let Some(configurations) = configurations(&snapshot.join("README.md")) else { return Ok(None) };
        let wanted = self.subset.as_deref();
        let is_wanted = |node: &&Node| match (text(get(node, "config_name")), wanted) {
            (Some(name), Some(wanted)) => name == wanted,
            (name, None) => name.is_none_or(|name| name == "default") || flag(get(node, "default")),
            (None, Some(wanted)) => wanted == "default",
        };
        let only = configurations.first().filter(|_| configurations.len() == 1 && wanted.is_none());
        let Some(chosen) = configurations.iter().find(is_wanted).or(only) else {
            return Err(configurations
                .iter()
                .filter_map(|node| text(get(node, "config_name")))
                .map(clipped)
                .collect());
        };
        let Some(files) = get(chosen, "data_files") else { return Ok(None) };
        let mut patterns = Vec::new();
        patterns_of(files, &self.split, &mut patterns);
        let inside = text(get(chosen, "data_dir"))
            .map_or_else(String::new, |folder| format!("{}/", folder.trim_matches('/')));
        let patterns: Vec<String> =
            patterns.into_iter().map(|pattern| format!("{inside}{pattern}")).collect();
        let is_meant =
            |path: &&String| patterns.iter().any(|pattern| matches(pattern.as_bytes(), path.as_bytes()));
        Ok(Some(all.iter().filter(is_meant).cloned().collect()))
    }

    /// By what files and folders are called.
    fn by_names(&self, all: &[String], inside: &str) -> Vec<String> {
        let relative = |path: &str| path[inside.len()..].to_owned();
        let shard = format!("data/{}-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*", self.split);
        let is_shard = |path: &str| matches(shard.as_bytes(), relative(path).as_bytes());
        let has_word = |part: &str, split: &str| {
            let mut own = [split];
            let words = WORDS
                .iter()
                .find(|(known, _)| *known == split)
                .map_or(&mut own[..] as &[&str], |(_, words)| words);
            part.split(|letter: char| "-._ ".contains(letter) || letter.is_ascii_digit())
                .any(|part| words.contains(&part))
        };
        let file_has =
            |path: &str, split: &str| path.rsplit('/').next().is_some_and(|file| has_word(file, split));
        let folder_has = |path: &str, split: &str| {
            relative(path)
                .rsplit_once('/')
                .is_some_and(|(folders, _)| folders.split('/').any(|part| has_word(part, split)))
        };
        let taken = |is_meant: &dyn Fn(&str) -> bool| -> Vec<String> {
            all.iter().filter(|path| is_meant(path)).cloned().collect()
        };
        if all.iter().any(|path| is_shard(path)) {
            return taken(&is_shard);
        }
        for has in [&file_has as &dyn Fn(&str, &str) -> bool, &folder_has] {
            if all
                .iter()
                .any(|path| WORDS.iter().any(|(split, _)| has(path, split)) || has(path, &self.split))
            {
                return taken(&|path| has(path, &self.split));
            }
        }
        if self.split == "train" { all.to_vec() } else { Vec::new() }
    }
}

/// Files of rows below a folder, by their paths from the snapshot. Links lead to the cache's blobs.
fn gather(folder: &Path, prefix: String, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if name.starts_with('.') || found.len() >= FILES_MAX {
            continue;
        }
        if path.is_dir() {
            if depth < DEPTH_MAX {
                gather(&path, format!("{prefix}{name}/"), depth + 1, found);
            }
            continue;
        }
        let is_known = name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending));
        if is_known && !DESCRIPTIONS.contains(&name.as_str()) {
            found.push(format!("{prefix}{name}"));
        }
    }
}

/// The configurations that a README's head names.
fn configurations(readme: &Path) -> Option<Vec<Node>> {
    let length = fs::metadata(readme).ok()?.len();
    let text = (length <= README_BYTES_MAX).then(|| fs::read_to_string(readme).ok()).flatten()?;
    let head = text.strip_prefix("---\n")?.split("\n---").next()?;
    let root = yaml::parse(head).ok()?;
    match &get(&root, "configs")?.content {
        Content::List(list) => Some(list.clone()),
        _ => None,
    }
}

fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    match &node.content {
        Content::Map(entries) => entries.iter().find(|(known, _)| known == key).map(|(_, value)| value),
        _ => None,
    }
}

fn text(node: Option<&Node>) -> Option<&str> {
    match &node?.content {
        Content::Scalar(text, _) => Some(text),
        _ => None,
    }
}

fn flag(node: Option<&Node>) -> bool {
    text(node) == Some("true")
}

/// The patterns of a split: `data_files` is one, a list of them, or a list of splits with theirs.
fn patterns_of(node: &Node, split: &str, patterns: &mut Vec<String>) {
    match &node.content {
        Content::Scalar(pattern, _) if split == "train" => patterns.push(pattern.clone()),
        Content::List(list) => list.iter().for_each(|node| patterns_of(node, split, patterns)),
        Content::Map(_) if text(get(node, "split")) == Some(split) => {
            get(node, "path").into_iter().for_each(|path| patterns_of(path, "train", patterns));
        }
        _ => {}
    }
}

/// Whether a path is what a pattern means: `*` within a name, `**` across folders, `?`, and letters in brackets.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    // Places to come back to: behind the last star of either kind, and what it has not taken yet.
    let (mut at, mut from, mut narrow, mut wide) = (0, 0, None, None);
    while from < path.len() {
        let (taken, is_met) = match pattern.get(at) {
            Some(b'*') => {
                let count = pattern[at..].iter().take_while(|&&letter| letter == b'*').count();
                let is_wide = count > 1;
                // `**/` may also stand for no folder at all.
                at += count + usize::from(is_wide && pattern.get(at + count) == Some(&b'/'));
                // What is behind a wide star begins anew with it.
                (narrow, wide) = if is_wide { (None, Some((at, from))) } else { (Some((at, from)), wide) };
                continue;
            }
            Some(b'?') => (1, path[from] != b'/'),
            Some(b'[') => bracket(&pattern[at..], path[from]),
            Some(letter) => (1, *letter == path[from]),
            None => (0, false),
        };
        if is_met {
            (at, from) = (at + taken, from + 1);
            continue;
        }
        match (narrow, wide) {
            (Some((star, taken)), _) if path[taken] != b'/' => {
                (at, from) = (star, taken + 1);
                narrow = Some((star, taken + 1));
            }
            (_, Some((star, taken))) => {
                (at, from) = (star, taken + 1);
                (narrow, wide) = (None, Some((star, taken + 1)));
            }
            _ => return false,
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

/// How long letters in brackets are, and whether one of them is meant.
fn bracket(pattern: &[u8], letter: u8) -> (usize, bool) {
    let Some(end) = pattern.iter().position(|letter| *letter == b']') else { return (1, letter == b'[') };
    let inside = &pattern[1..end];
    let is_met = match inside {
        [low, b'-', high] => (*low..=*high).contains(&letter),
        letters => letters.contains(&letter),
    };
    (end + 1, is_met)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean() {
        for (pattern, path, expected) in [
            ("data/*.parquet", "data/a.parquet", true),
            ("data/*.parquet", "data/b/a.parquet", false),
            ("data/**", "data/b/a.parquet", true),
            ("**/train*", "train.csv", true),
            ("**/train*", "a/b/train-0.csv", true),
            ("**/train*", "train/a/train-0.csv", true),
            ("**/*.json", "a/b.json", true),
            ("**/*.json", "a/b/c.json", true),
            ("**/*.json", "a/b/c.csv", false),
            ("data/*/*.json", "data/a/b/c.json", false),
            ("data/**/*.jsonl", "data/x/y.jsonl", true),
            ("train-[0-9][0-9]?of*", "train-01-of-02.x", true),
            ("train-[0-9]", "train-a", false),
            ("a", "ab", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
    }

    fn check(
        files: &[&str],
        readme: &str,
        hub: (Option<&str>, &str, Option<&str>),
        expected: Result<&[&str], &str>,
    ) {
        use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let place = format!("bantam-hub-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let root = env::temp_dir().join(place);
        let snapshot = root.join("datasets--a--b/snapshots/0f");
        for file in files {
            let path = snapshot.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        fs::write(snapshot.join("README.md"), readme).unwrap();
        let (subset, split, folder) = hub;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let repository = "a/b".to_owned();
        let hub = Hub { repository, subset: owned(subset), split: split.to_owned(), folder: owned(folder) };
        let found = hub.files_in("set", &root).map_err(|error| error.to_string());
        fs::remove_dir_all(&root).unwrap();
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                let expected: Vec<PathBuf> = expected.iter().map(|file| snapshot.join(file)).collect();
                assert_eq!(found, expected, "{hub:?}");
            }
            (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
            (found, expected) => panic!("{found:?} {expected:?}"),
        }
    }

    #[test]
    fn files_of_a_split_are_found() {
        let shards = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001-ab.parquet", "x.json"];
        check(&shards, "", (None, "train", None), Ok(&shards[1..2]));
        check(&["train.jsonl", "dev.jsonl", "a.txt"], "", (None, "train", None), Ok(&["train.jsonl"]));
        check(&["train.jsonl", "dev.jsonl"], "", (None, "validation", None), Ok(&["dev.jsonl"]));
        check(&["train/a.csv", "test/a.csv"], "", (None, "test", None), Ok(&["test/a.csv"]));
        check(
            &["b.json", "a.json", "dataset_infos.json"],
            "",
            (None, "train", None),
            Ok(&["a.json", "b.json"]),
        );
        check(&["a.json", "c/b.json"], "", (None, "train", Some("c")), Ok(&["c/b.json"]));
        check(&["a.py"], "", (None, "train", None), Err("no files of the split"));
        check(&["train.json"], "", (None, "train_sft", None), Err("no files of the split"));
    }

    #[test]
    fn the_readme_goes_before_names() {
        let readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_sft\n    path: data/sft*\n\
                      - config_name: other\n  data_files: \"other/*.json\"\n---\n# words\n";
        let files = ["data/sft-0.parquet", "other/a.json", "train.json"];
        check(&files, readme, (None, "train_sft", None), Ok(&files[..1]));
        check(&files, readme, (Some("other"), "train", None), Ok(&files[1..2]));
        check(&files, readme, (Some("none"), "train", None), Err("\"subset\": default, other"));
        check(&files, readme, (None, "train", None), Err("no files of the split"));
    }

    #[test]
    fn what_is_not_there_is_refused_with_the_way_to_fetch_it() {
        let hub = |repository: &str| {
            let (repository, split) = (repository.to_owned(), "train".to_owned());
            Hub { repository, subset: None, split, folder: None }
                .files_in("x", Path::new("/nowhere"))
                .unwrap_err()
        };
        assert!(hub("a/b").to_string().contains("hf download --repo-type dataset a/b"));
        hub("../../etc");
        hub("a/b/c");
    }
}
