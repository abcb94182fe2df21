//! A run told to a server of Weights & Biases, where `WANDB_MODE` is `online`: what its own client sends, which is a
//! question of GraphQL that makes the run, and then lines of its history.
//!
//! At the beginning the server must answer. A run does not end because of a server that is gone later (`waiting.rs`).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::line::{Line, in_64, percented, shown};
use super::waiting::Waiting;
use super::{Begin, Reporter, grouped, host, now, unique, variable};

/// The server that the client asks where no other is named.
const SERVER: &str = "https://api.wandb.ai";
/// Lines come no more often than this: the server counts its questions.
const OFTEN: Duration = Duration::from_secs(5);

const UPSERT: &str = "mutation UpsertBucket($name: String, $project: String, $entity: String, $displayName: String, \
    $config: JSONString, $host: String) { upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, \
    displayName: $displayName, config: $config, host: $host}) { bucket { name historyLineCount project { name entity \
    { name } } } } }";

/// Whether somebody asks for it, by the client's own variable.
pub(super) fn is_asked() -> bool {
    variable("WANDB_MODE").as_deref() == Some("online")
}

/// The key of an account.
pub(super) fn key() -> Option<String> {
    variable("WANDB_API_KEY")
}

/// The address of the server.
pub(super) fn address() -> String {
    variable("WANDB_BASE_URL").unwrap_or_else(|| SERVER.to_owned())
}

/// A run there.
#[derive(Debug)]
pub(super) struct Online {
    line: Line,
    place: PathBuf,
    /// Where its lines go.
    stream: String,
    /// Lines of its history that are sent, and those that are not.
    sent: usize,
    waiting: Waiting<String>,
    summary: Map<String, Value>,
    begun: f64,
}

impl Online {
    pub(super) fn new(address: &str, key: &str, begin: &Begin<'_>) -> io::Result<Online> {
        let base = address.trim_end_matches('/');
        let mut run = Online {
            line: Line::new(address, Some(format!("Basic {}", in_64(format!("api:{key}").as_bytes())))),
            place: PathBuf::new(),
            stream: String::new(),
            sent: 0,
            waiting: Waiting::new(OFTEN),
            summary: Map::new(),
            begun: now().as_secs_f64(),
        };
        let config: Map<String, Value> =
            begin.settings.given().map(|(key, value)| (key.to_owned(), json!({ "value": value }))).collect();
        let variables = json!({
            "name": variable("WANDB_RUN_ID").unwrap_or_else(|| unique(8)),
            "project": variable("WANDB_PROJECT").unwrap_or_else(|| "llamafactory".to_owned()),
            "entity": variable("WANDB_ENTITY"),
            "displayName": variable("WANDB_NAME").unwrap_or_else(|| begin.name.clone()),
            "config": Value::Object(config).to_string(),
            "host": host(),
        });
        let question = json!({ "query": UPSERT, "variables": variables });
        let answer = run.line.post(&format!("{base}/graphql"), &question)?;
        let bucket = &answer["data"]["upsertBucket"]["bucket"];
        let names = [&bucket["project"]["entity"]["name"], &bucket["project"]["name"], &bucket["name"]];
        let [Some(entity), Some(project), Some(name)] = names.map(Value::as_str) else {
            let errors = bantam_model::foreign::clipped(&answer["errors"]);
            return Err(io::Error::other(format!("expected a run, found none: {errors}")));
        };
        let [entity, project, name] = [entity, project, name].map(percented);
        run.sent =
            bucket["historyLineCount"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        run.stream = format!("{base}/files/{entity}/{project}/{name}/file_stream");
        let site = shown(base).replacen("//api.", "//", 1);
        run.place = format!("{site}/{entity}/{project}/runs/{name}").into();
        Ok(run)
    }

    fn send(&mut self, is_last: bool) {
        let Online { line, stream, sent, waiting, summary, .. } = self;
        waiting.send(is_last, |lines| {
            let summary = Value::Object(summary.clone()).to_string();
            let told = json!({ "files": {
                "wandb-history.jsonl": { "offset": *sent, "content": lines },
                "wandb-summary.json": { "offset": 0, "content": [summary] },
            } });
            line.post(stream, &told)?;
            *sent += lines.len();
            Ok(())
        });
    }
}

impl Reporter for Online {
    fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let now = now().as_secs_f64();
        let named = figures.iter().map(|(name, value)| (grouped(name), Value::from(*value)));
        let mut line: Map<String, Value> = named.collect();
        let number = self.sent + self.waiting.len();
        line.insert("train/global_step".to_owned(), step.into());
        line.insert("_step".to_owned(), number.into());
        line.insert("_runtime".to_owned(), (now - self.begun).into());
        line.insert("_timestamp".to_owned(), now.into());
        self.summary.extend(line.clone());
        self.waiting.push([Value::Object(line).to_string()]);
        self.send(false);
        Ok(())
    }

    fn sum_up(&mut self, _: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        self.summary.extend(figures.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
        Ok(())
    }

    fn end(&mut self, is_done: bool) -> io::Result<()> {
        self.send(true);
        let summary = Value::Object(self.summary.clone()).to_string();
        // A run that was ended by a signal is what the client calls one that crashed.
        let told = json!({
            "files": { "wandb-summary.json": { "offset": 0, "content": [summary] } },
            "complete": true,
            "exitcode": if is_done { 0 } else { 255 },
        });
        if !self.waiting.has_failed() {
            let told = self.line.post(&self.stream, &told);
            self.waiting.note(told);
        }
        Ok(())
    }

    fn folder(&self) -> &Path {
        &self.place
    }

    fn trouble(&self) -> Option<String> {
        self.waiting.trouble("wandb", &self.place, "lines")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::super::line::stand_in::{Heard, answering};
    use super::*;
    use crate::settings::Settings;

    fn answer(what: &str) -> (&'static str, Value) {
        let bucket = json!({
            "name": "r1", "historyLineCount": 3, "project": { "name": "a project", "entity": { "name": "me" } }
        });
        match what {
            "/graphql" => ("200 OK", json!({ "data": { "upsertBucket": { "bucket": bucket } } })),
            _ => ("200 OK", json!({})),
        }
    }

    #[test]
    fn a_run_is_told_as_the_client_tells_it() {
        let heard = Heard::default();
        let (address, served) = answering(&heard, answer);
        let settings = "model_name_or_path: m\ndataset_path: d\nlora_rank: 4\nhf_hub_token: secret\n";
        let settings = Settings::of_text("x", settings, &[]).unwrap();
        let begin = Begin { name: "a run".to_owned(), settings: &settings, step: 0 };
        let mut run = Online::new(&address, "k", &begin).unwrap();
        assert!(run.folder().ends_with("me/a%20project/runs/r1"), "{run:?}");
        run.log(1, &[("loss", 2.5), ("eval_loss", 3.0)]).unwrap();
        run.log(2, &[("loss", 2.0)]).unwrap();
        run.sum_up(2, &[("train_loss", 2.25)]).unwrap();
        run.end(true).unwrap();
        assert_eq!((run.trouble(), run.waiting.len()), (None, 0));
        let all = heard.lock().unwrap().clone();
        assert_eq!(all.len(), 4, "{all:?}");
        let variables = &all[0].1["variables"];
        assert_eq!(variables["displayName"], "a run");
        let config = variables["config"].as_str().unwrap();
        let config: Value = serde_json::from_str(config).unwrap();
        assert_eq!((&config["lora_rank"]["value"], config.get("hf_hub_token")), (&json!(4), None));
        assert!(all[1..].iter().all(|(what, _)| what == "/files/me/a%20project/r1/file_stream"), "{all:?}");
        let line = |at: usize| {
            let history = &all[at].1["files"]["wandb-history.jsonl"];
            let content = history["content"][0].as_str().unwrap();
            (history["offset"].as_u64(), serde_json::from_str::<Value>(content).unwrap())
        };
        let (offset, first) = line(1);
        assert_eq!((offset, &first["train/loss"], &first["eval/loss"]), (Some(3), &json!(2.5), &json!(3.0)));
        let (offset, second) = line(2);
        assert_eq!((offset, &second["_step"], &second["train/global_step"]), (Some(4), &json!(4), &json!(2)));
        let summary = all[3].1["files"]["wandb-summary.json"]["content"][0].as_str().unwrap();
        let summary: Value = serde_json::from_str(summary).unwrap();
        assert_eq!((&summary["train_loss"], &summary["train/loss"]), (&json!(2.25), &json!(2.0)));
        assert_eq!((&all[3].1["complete"], &all[3].1["exitcode"]), (&json!(true), &json!(0)));
        // The agent lets go of its connection, and nobody is there for another.
        run.line = Line::new(&address, None);
        served.join().unwrap();
        run.log(3, &[("loss", 1.0)]).unwrap();
        run.end(false).unwrap();
        assert!(run.trouble().unwrap().contains("1 lines were not sent"));
        assert!(Online::new(&address, "k", &begin).is_err());
    }

    #[test]
    fn a_server_that_makes_no_run_is_said() {
        let heard = Heard::default();
        let refusing = |_: &str| ("200 OK", json!({ "errors": [{ "message": "permission denied" }] }));
        let (address, _served) = answering(&heard, refusing);
        let settings = Settings::of_text("x", "model_name_or_path: m\ndataset_path: d\n", &[]).unwrap();
        let begin = Begin { name: "a run".to_owned(), settings: &settings, step: 0 };
        let error = Online::new(&address, "k", &begin).unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{error}");
    }
}
