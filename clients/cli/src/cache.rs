//! `bantam cache`: the native files that earlier runs have written, so that later ones map them, and the models that
//! `bantam prepare` has made.

use std::path::PathBuf;
use std::time::Duration;

use bantam_model::native::{Kept, State, Store};
use bantam_model::prepared::{Entry, Prepared};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::failure::{Failure, refused, usage};
use crate::output;
use crate::progress::Progress;

/// Lists, checks and removes what is kept for quick starts
#[derive(Args)]
#[command(after_help = "Examples:\n  bantam cache ls\n  bantam cache verify\n  bantam cache rm --stale")]
pub(crate) struct Cache {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Lists the files: of which model, in which layouts, how large, of use or not
    Ls(Listed),
    /// Adds up their bytes
    Du(Listed),
    /// Removes files; the next run of the model writes its own again
    Rm(Removed),
    /// Reads every byte of native files and compares it with what was written, and headers and sizes of prepared
    /// models; exit status 1 where one is damaged
    Verify(Verified),
}

#[derive(Args)]
struct Listed {
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Removed {
    /// Names, as `ls` shows them
    #[arg(value_name = "NAME", conflicts_with_all = ["all", "stale"])]
    names: Vec<String>,
    /// Removes all of them
    #[arg(long, conflicts_with = "stale")]
    all: bool,
    /// Removes those that will not be used again: damaged, of a model that changed or is gone, of another version
    #[arg(long)]
    stale: bool,
}

#[derive(Args)]
struct Verified {
    /// A name, as `ls` shows it; without it, all of them
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
}

/// Models that were made from others, beside the native files.
pub(crate) fn prepared() -> Option<Prepared> {
    Some(Prepared::new(store()?.folder().join("prepared")))
}

/// Native files, where the system keeps what can be made again; `None` where no variable says where that is.
pub(crate) fn store() -> Option<Store> {
    // A place that depends on where the program was started is none.
    let folder =
        |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(Store::new(cache.join("bantam")))
}

impl Cache {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let store = store().ok_or_else(|| {
            refused("no cache: neither XDG_CACHE_HOME nor HOME names a folder; set one of them")
        })?;
        let failed = |error| refused(format!("{}: {error}", store.folder().display()));
        let kept = store.list().map_err(failed)?;
        let made = prepared().map_or(Ok(Vec::new()), |prepared| prepared.list()).map_err(failed)?;
        match self.action {
            Action::Ls(listed) => listed.list(&store, &kept, &made),
            Action::Du(listed) => listed.sum(&store, &kept, &made),
            Action::Rm(removed) => removed.remove(&store, &kept, &made),
            Action::Verify(verified) => verified.verify(&store, &kept, &made),
        }
    }
}

/// In one word, and for people.
fn state(kept: &Kept) -> (&'static str, &'static str) {
    match kept.details.as_ref().map(|details| details.state) {
        Ok(State::Current) => ("current", "of use"),
        Ok(State::Changed) => ("changed", "stale: the model was changed"),
        Ok(State::Gone) => ("gone", "stale: the model is gone"),
        Ok(State::OtherVersion) => ("version", "stale: of another version of bantam"),
        Err(_) => ("damaged", "stale: damaged"),
    }
}

impl Listed {
    fn list(&self, store: &Store, kept: &[Kept], made: &[Entry]) -> Result<(), Failure> {
        if self.json {
            let files: Vec<Value> = kept.iter().map(as_json).collect();
            let made: Vec<Value> = made.iter().map(made_as_json).collect();
            let folder = store.folder().display().to_string();
            return Ok(output::json(&json!({ "folder": folder, "files": files, "prepared": made }))?);
        }
        let mut rows =
            vec![["name", "model", "layouts", "made", "state", "size"].map(str::to_owned).to_vec()];
        rows.extend(kept.iter().map(row));
        match kept {
            [] => output::say(&format!("{}: no native files yet", store.folder().display())),
            _ => output::line(&output::table(&rows, &[false, false, false, false, false, true]))?,
        }
        if !made.is_empty() {
            let mut rows = vec![
                ["prepared", "model", "adapter", "made as", "state", "size"].map(str::to_owned).to_vec(),
            ];
            rows.extend(made.iter().map(made_row));
            output::line(&output::table(&rows, &[false, false, false, false, false, true]))?;
        }
        Ok(())
    }

    fn sum(&self, store: &Store, kept: &[Kept], made: &[Entry]) -> Result<(), Failure> {
        let folder = store.folder().display();
        let bytes = store.bytes().map_err(|error| refused(format!("{folder}: {error}")))?;
        let stale: u64 = kept.iter().filter(|kept| kept.is_stale()).map(|kept| kept.bytes).sum();
        let of_made: u64 = made.iter().map(|entry| entry.bytes).sum();
        let text = match self.json {
            true => {
                let (folder, files) = (folder.to_string(), kept.len());
                json!({ "folder": folder, "files": files, "bytes": bytes, "stale_bytes": stale,
                        "prepared": made.len(), "prepared_bytes": of_made })
                .to_string()
            }
            false => format!(
                "{} in {} files, {} of them stale; {} in {} prepared models\n{folder}",
                output::bytes(bytes),
                kept.len(),
                output::bytes(stale),
                output::bytes(of_made),
                made.len()
            ),
        };
        Ok(output::line(&text)?)
    }
}

fn as_json(kept: &Kept) -> Value {
    let details = kept.details.as_ref();
    let layouts = details.map(|details| {
        let layouts = details.layouts.iter().map(|(name, count)| json!({ "name": name, "matrices": count }));
        layouts.collect::<Vec<_>>()
    });
    json!({
        "name": kept.name,
        "path": kept.path.display().to_string(),
        "bytes": kept.bytes,
        "state": state(kept).0,
        "model": details.map(|details| &details.model).ok(),
        "layouts": layouts.ok(),
        "made": details.map(|details| details.made).ok(),
        "damage": details.err(),
    })
}

fn row(kept: &Kept) -> Vec<String> {
    let (model, layouts, made) = match &kept.details {
        Ok(details) => {
            let layouts: Vec<&str> = details.layouts.iter().map(|(name, _)| name.as_str()).collect();
            (details.model.clone(), layouts.join(", "), details.made_when())
        }
        Err(_) => Default::default(),
    };
    let row = [kept.name.clone(), model, layouts, made, state(kept).1.to_owned(), output::bytes(kept.bytes)];
    row.map(|cell| output::harmless(&cell).into_owned()).to_vec()
}

fn made_state(entry: &Entry) -> &'static str {
    match (&entry.note, entry.is_stale()) {
        (Err(_), _) => "stale: damaged",
        (Ok(_), true) => "stale: what it was made from is gone",
        (Ok(_), false) => "of use",
    }
}

fn made_as_json(entry: &Entry) -> Value {
    let note = entry.note.as_ref();
    json!({
        "name": entry.name,
        "path": entry.path.display().to_string(),
        "bytes": entry.bytes,
        "stale": entry.is_stale(),
        "model": note.map(|note| &note.base).ok(),
        "adapter": note.ok().and_then(|note| note.adapter.as_ref()),
        "to": note.map(|note| &note.to).ok(),
        "made": note.map(|note| note.made).ok(),
        "damage": note.err(),
    })
}

fn made_row(entry: &Entry) -> Vec<String> {
    let (model, adapter, to) = match &entry.note {
        Ok(note) => (note.base.clone(), note.adapter.clone().unwrap_or_default(), note.to.clone()),
        Err(_) => Default::default(),
    };
    let row =
        [entry.name.clone(), model, adapter, to, made_state(entry).to_owned(), output::bytes(entry.bytes)];
    row.map(|cell| output::harmless(&cell).into_owned()).to_vec()
}

/// The file of that name.
fn named<'a>(store: &Store, kept: &'a [Kept], name: &str) -> Result<&'a Kept, Failure> {
    let name = name.strip_suffix(".safetensors").unwrap_or(name);
    kept.iter().find(|kept| kept.name == name).ok_or_else(|| {
        let folder = store.folder().display();
        refused(format!("{folder}: no native file {name:?}; `bantam cache ls` lists them"))
    })
}

impl Removed {
    fn remove(&self, store: &Store, kept: &[Kept], made: &[Entry]) -> Result<(), Failure> {
        if self.names.is_empty() && !self.all && !self.stale {
            return Err(usage("NAME is missing; give one, or --stale, or --all"));
        }
        let mut chosen: Vec<&Kept> = Vec::new();
        let mut models: Vec<&Entry> = Vec::new();
        for name in &self.names {
            match made.iter().find(|entry| entry.name == *name) {
                Some(entry) => models.push(entry),
                None => chosen.push(named(store, kept, name)?),
            }
        }
        chosen.extend(kept.iter().filter(|kept| self.all || (self.stale && kept.is_stale())));
        models.extend(made.iter().filter(|entry| self.all || (self.stale && entry.is_stale())));
        for entry in &models {
            let failed = |error| refused(format!("{}: {error}; check its permissions", entry.path.display()));
            entry.remove().map_err(failed)?;
        }
        for kept in &chosen {
            let failed = |error| refused(format!("{}: {error}; check its permissions", kept.path.display()));
            kept.remove().map_err(failed)?;
        }
        if self.all || self.stale {
            store.sweep(Duration::ZERO);
        }
        if let Some(prepared) = prepared().filter(|_| self.all) {
            prepared.remove_unfinished();
        }
        let bytes = chosen.iter().map(|kept| kept.bytes).sum();
        output::say(&format!("removed {} files, {}", chosen.len(), output::bytes(bytes)));
        if !models.is_empty() {
            let bytes = models.iter().map(|entry| entry.bytes).sum();
            output::say(&format!("removed {} prepared models, {}", models.len(), output::bytes(bytes)));
        }
        Ok(())
    }
}

impl Verified {
    fn verify(&self, store: &Store, kept: &[Kept], made: &[Entry]) -> Result<(), Failure> {
        let models: Vec<&Entry> =
            made.iter().filter(|entry| self.name.as_ref().is_none_or(|name| *name == entry.name)).collect();
        let chosen = match &self.name {
            Some(name) if models.is_empty() => vec![named(store, kept, name)?],
            Some(_) => Vec::new(),
            None => kept.iter().collect(),
        };
        let found: Vec<_> = chosen.iter().map(|kept| (*kept, Checked::of(kept))).collect();
        let bad = found.iter().filter(|(_, checked)| !checked.is_sound()).count();
        let bad_models = models.iter().filter(|entry| entry.note.is_err()).count();
        if self.json {
            let files = found.iter().map(|(kept, checked)| {
                json!({ "name": kept.name, "sound": checked.is_sound(), "tensors": checked.tensors,
                        "damage": checked.reason })
            });
            let models = models.iter().map(|entry| {
                json!({ "name": entry.name, "sound": entry.note.is_ok(), "damage": entry.note.as_ref().err() })
            });
            output::json(&json!({ "files": files.collect::<Vec<_>>(), "damaged": bad + bad_models,
                                  "prepared": models.collect::<Vec<_>>() }))?;
        } else {
            found.iter().try_for_each(|(kept, checked)| output::line(&checked.as_text(kept)))?;
            models.iter().try_for_each(|entry| output::line(&made_as_text(entry)))?;
        }
        match bad + bad_models {
            0 => Ok(()),
            _ => Err(refused(format!(
                "{bad} of {} native files and {bad_models} of {} prepared models are damaged: check the disk; \
                 `bantam cache rm NAME` removes one, and the next run of the model, or the same `bantam prepare`, \
                 writes it again",
                found.len(),
                models.len()
            ))),
        }
    }
}

/// Of a prepared model: its bytes were never added up.
fn made_as_text(entry: &Entry) -> String {
    let damage = entry.note.as_ref().err().map_or("headers and sizes are sound", String::as_str);
    output::harmless(&format!("{}: {damage}", entry.name)).into_owned()
}

/// What reading a file has shown.
struct Checked {
    /// Damaged ones.
    tensors: Vec<String>,
    /// Why it cannot be read as a whole.
    reason: Option<String>,
}

impl Checked {
    fn of(kept: &Kept) -> Checked {
        let total = usize::try_from(kept.bytes).unwrap_or(usize::MAX);
        let progress = Progress::bytes(format!("reading {}", kept.name), total);
        match kept.verify(&mut |done| progress.at(done)) {
            Ok(tensors) => Checked { tensors, reason: None },
            Err(reason) => Checked { tensors: Vec::new(), reason: Some(reason) },
        }
    }

    fn is_sound(&self) -> bool {
        self.tensors.is_empty() && self.reason.is_none()
    }

    fn as_text(&self, kept: &Kept) -> String {
        const SHOWN: usize = 8;
        let damage = match (&self.reason, self.tensors.as_slice()) {
            (Some(reason), _) => reason.clone(),
            (None, []) => "sound".to_owned(),
            (None, tensors) => {
                let shown: Vec<&str> = tensors.iter().take(SHOWN).map(String::as_str).collect();
                let more = tensors.len().saturating_sub(SHOWN);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("expected the bytes that were written, found others in {}{more}", shown.join(", "))
            }
        };
        output::harmless(&format!("{}: {damage}", kept.name)).into_owned()
    }
}
