//! A run told to MLflow's server by its REST interface, where `MLFLOW_TRACKING_URI` names one.
//!
//! At the beginning the server must answer. A run does not end because of a server that is gone later: figures wait and
//! are sent with the next ones, and what could not be sent at the end is said.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use ureq::{Agent, http};

use super::line::{PAUSE, agent, in_64, percented, read, shown};
use super::{Begin, Reporter, now, variable};

/// What the server takes at once, and what is kept for it.
const METRICS_MAX: usize = 1000;
const PARAMETERS_MAX: usize = 100;
const WAITING_MAX: usize = 1_000_000;
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
    agent: Agent,
    address: PathBuf,
    base: String,
    pass: Option<String>,
    run: String,
    /// Figures that are not sent yet.
    waiting: Vec<Value>,
    failed: Option<(Instant, String)>,
}

impl Server {
    pub(super) fn new(address: &str, begin: &Begin<'_>) -> io::Result<Server> {
        let mut server = Server {
            agent: agent(address),
            address: shown(address).into(),
            base: format!("{}/api/2.0/mlflow", address.trim_end_matches('/')),
            pass: pass(),
            run: String::new(),
            waiting: Vec::new(),
            failed: None,
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
        let query = format!("{}/experiments/get-by-name", self.base);
        let request = self.signed(http::Request::get(query)).body(()).map_err(io::Error::other)?;
        // Names may have any letters: the client writes them as an address has them.
        let answer = self.agent.run(named(request, &name)?).map_err(io::Error::other)?;
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

    fn signed(&self, request: http::request::Builder) -> http::request::Builder {
        match &self.pass {
            Some(pass) => request.header("authorization", pass),
            None => request,
        }
    }

    /// Posts something, and reads the answer.
    fn told(&self, what: &str, body: &Value) -> io::Result<Value> {
        let request =
            http::Request::post(format!("{}/{what}", self.base)).header("content-type", "application/json");
        let request = self.signed(request).body(body.to_string()).map_err(io::Error::other)?;
        read(self.agent.run(request).map_err(io::Error::other)?)
    }

    /// Sends what waits, unless the server failed a moment ago.
    fn send(&mut self, is_last: bool) {
        let is_early = self.failed.as_ref().is_some_and(|(at, _)| at.elapsed() < PAUSE);
        if is_early && !is_last {
            return;
        }
        while !self.waiting.is_empty() {
            let count = self.waiting.len().min(METRICS_MAX);
            let told = json!({ "run_id": self.run, "metrics": self.waiting[..count] });
            match self.told("runs/log-batch", &told) {
                Ok(_) => drop(self.waiting.drain(..count)),
                Err(error) => {
                    self.failed = Some((Instant::now(), error.to_string()));
                    return;
                }
            }
        }
        self.failed = None;
    }
}

impl Reporter for Server {
    fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let time = now().as_millis() as u64;
        let told = figures
            .iter()
            .map(|(name, value)| json!({ "key": name, "value": value, "timestamp": time, "step": step }));
        self.waiting.extend(told);
        self.waiting.truncate(WAITING_MAX);
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
        if let Err(error) = self.told("runs/update", &told) {
            self.failed = Some((Instant::now(), error.to_string()));
        }
        Ok(())
    }

    fn folder(&self) -> &Path {
        &self.address
    }

    fn trouble(&self) -> Option<String> {
        let (_, why) = self.failed.as_ref()?;
        let (count, place) = (self.waiting.len(), self.address.display());
        Some(format!("mlflow: {place}: {why}; {count} figures were not sent, trainer_log.jsonl has them"))
    }
}

/// A request for something by its name.
fn named(mut request: http::Request<()>, name: &str) -> io::Result<http::Request<()>> {
    let query = format!("{}?experiment_name={}", request.uri(), percented(name));
    *request.uri_mut() = query.parse().map_err(io::Error::other)?;
    Ok(request)
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
        server.agent = agent(&address);
        served.join().unwrap();
        server.log(2, &[("loss", 2.0)]).unwrap();
        server.end(false).unwrap();
        assert!(server.trouble().unwrap().contains("1 figures were not sent"));
        assert!(Server::new(&address, &begin).is_err());
    }
}
