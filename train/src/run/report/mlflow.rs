//! A run in MLflow's folder of files: `mlruns/EXPERIMENT/RUN`, with a file for every metric, parameter and tag.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Begin, Reporter, now, unique, variable};

const META: &str = "meta.yaml";
/// As MLflow counts how a run stands.
const RUNNING: u32 = 1;
const FINISHED: u32 = 3;
const KILLED: u32 = 5;
/// What a parameter may be long.
const PARAMETER_MAX: usize = 500;

/// The folder of files; none where a server is named.
pub(super) fn folder() -> Option<PathBuf> {
    match variable("MLFLOW_TRACKING_URI") {
        None => Some(PathBuf::from("mlruns")),
        Some(place) => match place.strip_prefix("file://") {
            Some(path) => Some(path.into()),
            None if place.contains("://") || place == "databricks" => None,
            None => Some(place.into()),
        },
    }
}

/// A run.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    experiment: String,
    id: String,
    name: String,
    begun: u128,
}

impl Store {
    pub(super) fn new(store: &Path, begin: &Begin<'_>) -> io::Result<Store> {
        fs::create_dir_all(store)?;
        let store = fs::canonicalize(store)?;
        let wanted = variable("MLFLOW_EXPERIMENT_NAME").unwrap_or_else(|| "Default".to_owned());
        let experiment = experiment(&store, &wanted)?;
        let id = unique(32);
        let folder = store.join(&experiment).join(&id);
        for name in ["metrics", "params", "tags", "artifacts"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let run = Store { folder, experiment, id, name: begin.name.clone(), begun: now().as_millis() };
        run.meta(RUNNING, None)?;
        fs::write(run.folder.join("tags/mlflow.runName"), &run.name)?;
        for (key, value) in begin.settings.given() {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let text: String = text.chars().take(PARAMETER_MAX).collect();
            fs::write(run.folder.join("params").join(key), text)?;
        }
        Ok(run)
    }

    fn meta(&self, status: u32, ended: Option<u128>) -> io::Result<()> {
        let Store { folder, experiment, id, name, begun } = self;
        let ended = ended.map_or_else(|| "null".to_owned(), |time| time.to_string());
        let artifacts = quoted(&format!("file://{}", folder.join("artifacts").display()));
        let user = quoted(&variable("USER").unwrap_or_else(|| "unknown".to_owned()));
        let name = quoted(name);
        let text = format!(
            "artifact_uri: {artifacts}\ndeleted_time: null\nend_time: {ended}\nentry_point_name: ''\n\
             experiment_id: '{experiment}'\nlifecycle_stage: active\nrun_id: {id}\nrun_name: {name}\nrun_uuid: {id}\n\
             source_name: ''\nsource_type: 4\nsource_version: ''\nstart_time: {begun}\nstatus: {status}\ntags: []\n\
             user_id: {user}\n"
        );
        let temporary = folder.join(".meta.tmp");
        fs::write(&temporary, text)?;
        fs::rename(temporary, folder.join(META))
    }
}

impl Reporter for Store {
    fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let time = now().as_millis();
        for (name, value) in figures {
            let path = self.folder.join("metrics").join(name);
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(format!("{time} {value} {step}\n").as_bytes())?;
        }
        Ok(())
    }

    fn sum_up(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        self.log(step, figures)
    }

    fn end(&mut self, is_done: bool) -> io::Result<()> {
        self.meta(if is_done { FINISHED } else { KILLED }, Some(now().as_millis()))
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The experiment of a name, made where it is not there.
fn experiment(store: &Path, wanted: &str) -> io::Result<String> {
    for entry in fs::read_dir(store)?.filter_map(Result::ok) {
        let text = fs::read_to_string(entry.path().join(META)).unwrap_or_default();
        let named = text.lines().filter_map(|line| line.strip_prefix("name: "));
        if named.map(unquoted).any(|name| name == wanted) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    // The first one that MLflow makes has this number.
    let id = if wanted == "Default" { "0".to_owned() } else { now().as_nanos().to_string() };
    let folder = store.join(&id);
    fs::create_dir_all(&folder)?;
    let (place, time) = (quoted(&format!("file://{}", folder.display())), now().as_millis());
    let text = format!(
        "artifact_location: {place}\ncreation_time: {time}\nexperiment_id: '{id}'\nlast_update_time: {time}\n\
         lifecycle_stage: active\nname: {}\n",
        quoted(wanted)
    );
    fs::write(folder.join(META), text)?;
    Ok(id)
}

/// A text that YAML reads as one: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn unquoted(text: &str) -> String {
    serde_json::from_str(text).unwrap_or_else(|_| text.trim_matches('\'').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_yaml() {
        for name in ["plain", "with: colon", "a \"quote\"", "'single'"] {
            assert_eq!(unquoted(&quoted(name)), name);
        }
        assert_eq!(unquoted("Default"), "Default");
    }
}
