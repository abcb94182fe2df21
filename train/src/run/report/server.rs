//! A run told to MLflow's server by its REST interface, where `MLFLOW_TRACKING_URI` names one.
//!
//! At the beginning the server must answer. A run does not end because of a server that is gone later (`waiting.rs`).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::line::{Line, in_64, percented, read, shown};
use super::waiting::Waiting;
use super::{Begin, Reporter, now, variable};

/// What the server takes at once.
const PARAMETERS_MAX: usize = 100;
/// What a parameter may be long.
const PARAMETER_MAX: usize = 500;

/// The address of a server, where one is named.
pub(super) fn address() -> Option<String> {
    variable("MLFLOW_TRACKING_URI")
        .filter(|place| place.starts_with("http://") || place.starts_with("https://"))
}

/// A run there.
#[derive(Debug)]
pub(super) struct Server {
    line: Line,
    address: PathBuf,
    base: String,
    run: String,
    /// Figures that are not sent yet.
    waiting: Waiting<Value>,
}

impl Server {
    pub(super) fn new(address: &str, begin: &Begin<'_>) -> io::Result<Server> {
        let mut server = Server {
            line: Line::new(address, pass()),
            address: shown(address).into(),
            base: format!("{}/api/2.0/mlflow", address.trim_end_matches('/')),
            run: String::new(),
            waiting: Waiting::new(Duration::ZERO),
        };
        let experiment = server.experiment()?;
        let user = variable("USER").unwrap_or_else(|| "unknown".to_owned());
        let told = json!({
            "experiment_id": experiment, "start_time": now().as_millis() as u64, "run_name": begin.name,
            "user_id": user, "tags": [{ "key": "mlflow.user", "value": user }],
        });
        let answer = server.told("runs/create", &told)?;
        let run = answer["run"]["info"]["run_id"].as_str();
        server.run = run.ok_or_else(|| io::Error::other("expected the id of a run, found none"))?.to_owned();
        let parameters = begin.settings.given().map(|(key, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            json!({ "key": key, "value": text.chars().take(PARAMETER_MAX).collect::<String>() })
        });
        let parameters: Vec<Value> = parameters.collect();
        for parameters in parameters.chunks(PARAMETERS_MAX) {
            server.told("runs/log-batch", &json!({ "run_id": server.run, "params": parameters }))?;
        }
        Ok(server)
    }

    /// The experiment that the environment names, made where it is not there.
    fn experiment(&self) -> io::Result<String> {
        let name = variable("MLFLOW_EXPERIMENT_NAME").unwrap_or_else(|| "Default".to_owned());
        // Names may have any letters: the client writes them as an address has them.
        let query = format!("{}/experiments/get-by-name?experiment_name={}", self.base, percented(&name));
        let answer = self.line.get(&query)?;
        let told = match answer.status().as_u16() {
            404 => {
                // To the end, or the next question needs another connection.
                let _ = read(answer);
                self.told("experiments/create", &json!({ "name": name }))?
            }
            _ => read(answer)?.get_mut("experiment").map(Value::take).unwrap_or_default(),
        };
        let found = told["experiment_id"].as_str().map(str::to_owned);
        found.ok_or_else(|| io::Error::other("expected the id of an experiment, found none"))
    }

    /// Posts something, and reads the answer.
    fn told(&self, what: &str, body: &Value) -> io::Result<Value> {
        self.line.post(&format!("{}/{what}", self.base), body)
    }

    fn send(&mut self, is_last: bool) {
        let (line, address) = (&self.line, format!("{}/runs/log-batch", self.base));
        self.waiting.send(is_last, |metrics| {
            line.post(&address, &json!({ "run_id": self.run, "metrics": metrics })).map(drop)
        });
    }
}

impl Reporter for Server {
    fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let time = now().as_millis() as u64;
        let told = figures
            .iter()
            .map(|(name, value)| json!({ "key": name, "value": value, "timestamp": time, "step": step }));
        self.waiting.push(told);
        self.send(false);
        Ok(())
    }

    fn sum_up(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        self.log(step, figures)
    }

    fn end(&mut self, is_done: bool) -> io::Result<()> {
        self.send(true);
        let status = if is_done { "FINISHED" } else { "KILLED" };
        let told = json!({ "run_id": self.run, "status": status, "end_time": now().as_millis() as u64 });
        let told = self.told("runs/update", &told);
        self.waiting.note(told);
        Ok(())
    }

    fn folder(&self) -> &Path {
        &self.address
    }

    fn trouble(&self) -> Option<String> {
        self.waiting.trouble("mlflow", &self.address, "figures")
    }
}

/// Who asks, as MLflow's own client says it.
fn pass() -> Option<String> {
    let token = variable("MLFLOW_TRACKING_TOKEN").map(|token| format!("Bearer {token}"));
    let user = variable("MLFLOW_TRACKING_USERNAME").map(|user| {
        let word = variable("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
        format!("Basic {}", in_64(format!("{user}:{word}").as_bytes()))
    });
    user.or(token)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::super::line::stand_in::{Heard, answering};
    use super::*;
    use crate::settings::Settings;

    fn answer(what: &str) -> (&'static str, Value) {
        match what.trim_start_matches("/api/2.0/mlflow/").split('?').next() {
            Some("experiments/get-by-name") => ("404 Not Found", json!({})),
            Some("experiments/create") => ("200 OK", json!({ "experiment_id": "7" })),
            Some("runs/create") => ("200 OK", json!({ "run": { "info": { "run_id": "r1" } } })),
            _ => ("200 OK", json!({})),
        }
    }

    #[test]
    fn a_run_is_told_and_outlives_its_server() {
        let heard = Heard::default();
        let (address, served) = answering(&heard, answer);
        let settings = "model_name_or_path: m\ndataset_path: d\nlora_rank: 4\nhf_hub_token: secret\n";
        let settings = Settings::of_text("x", settings, &[]).unwrap();
        let begin = Begin { name: "a run".to_owned(), settings: &settings, step: 0 };
        let mut server = Server::new(&address, &begin).unwrap();
        server.log(1, &[("loss", 2.5), ("learning_rate", 0.1)]).unwrap();
        server.end(true).unwrap();
        assert_eq!(server.trouble(), None);
        let all: Vec<(String, Value)> = heard
            .lock()
            .unwrap()
            .iter()
            .map(|(what, body)| (what.replace("/api/2.0/mlflow/", ""), body.clone()))
            .collect();
        let told =
            |what: &str| all.iter().find(|(known, _)| known == what).map(|(_, body)| body.clone()).unwrap();
        assert_eq!(told("experiments/get-by-name?experiment_name=Default"), Value::Null);
        assert_eq!(told("runs/create")["experiment_id"], "7");
        let batches: Vec<&Value> =
            all.iter().filter(|(what, _)| what == "runs/log-batch").map(|(_, body)| body).collect();
        assert!(
            batches[0]["params"].as_array().unwrap().contains(&json!({ "key": "lora_rank", "value": "4" }))
        );
        assert!(!batches[0].to_string().contains("secret"));
        assert_eq!(batches[1]["metrics"][0]["value"], 2.5);
        assert_eq!(batches[1]["metrics"][0]["step"], 1);
        assert_eq!(told("runs/update")["status"], "FINISHED");
        // The agent lets go of its connection, and nobody is there for another.
        server.line = Line::new(&address, None);
        served.join().unwrap();
        server.log(2, &[("loss", 2.0)]).unwrap();
        server.end(false).unwrap();
        assert!(server.trouble().unwrap().contains("1 figures were not sent"));
        assert!(Server::new(&address, &begin).is_err());
    }
}
