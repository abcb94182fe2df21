//! Who is told of a run besides its own files: TensorBoard, Weights & Biases and SwanLab (folders to send later),
//! MLflow. Each is files in the form of that program; only where the user names an MLflow server (`server.rs`) or wants
//! a run of Weights & Biases to be online (`online.rs`), a server is told.

mod frames;
mod line;
mod mlflow;
mod online;
mod server;
mod swanlab;
mod tensorboard;
mod waiting;
mod wandb;
mod wire;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Zoned;
use serde_json::{Map, Value};

use super::RunError;
use super::output::failed;
use crate::settings::Settings;

/// What one of them is told.
trait Reporter: fmt::Debug {
    /// Figures of a step.
    fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()>;
    /// Figures of the whole run.
    fn sum_up(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()>;
    /// That the run is over, whether all steps were taken or not.
    fn end(&mut self, is_done: bool) -> io::Result<()>;
    /// Where it writes.
    fn folder(&self) -> &Path;
    /// What went wrong, in spite of which the run went on.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// All that are told.
#[derive(Debug, Default)]
pub(super) struct Reports {
    list: Vec<Box<dyn Reporter>>,
    notes: Vec<String>,
}

/// What a run is called and began with.
struct Begin<'a> {
    name: String,
    settings: &'a Settings,
    /// The step that it goes on from.
    step: u64,
}

impl Reports {
    /// Those that `report_to` names, for a run that goes on from a step.
    pub(super) fn new(settings: &Settings, output: &Path, step: u64) -> Result<Reports, RunError> {
        let name = settings.text("run_name").unwrap_or_else(|| output.display().to_string());
        let begin = Begin { name, settings, step };
        let mut reports = Reports::default();
        let server = server::address();
        for name in names(settings) {
            let (folder, made): (PathBuf, io::Result<Box<dyn Reporter>>) = match name.as_str() {
                "mlflow" if server.is_some() => {
                    let address = server.clone().unwrap_or_default();
                    let made = server::Server::new(&address, &begin).map(|made| Box::new(made) as _);
                    (address.into(), made)
                }
                "tensorboard" => {
                    let folder = tensorboard::folder(settings, output, step);
                    (folder.clone(), tensorboard::Events::new(folder, &begin).map(|made| Box::new(made) as _))
                }
                "mlflow" => {
                    let folder = settings.root().join(mlflow::folder().unwrap_or_default());
                    (folder.clone(), mlflow::Store::new(&folder, &begin).map(|made| Box::new(made) as _))
                }
                "swanlab" if swanlab::is_disabled() => {
                    reports.notes.push("report_to: swanlab is off by SWANLAB_MODE".to_owned());
                    continue;
                }
                "swanlab" => {
                    let folder = swanlab::folder(settings);
                    (folder.clone(), swanlab::Offline::new(&folder, &begin).map(|made| Box::new(made) as _))
                }
                _ if wandb::is_disabled() => {
                    reports.notes.push("report_to: wandb is off by WANDB_DISABLED or WANDB_MODE".to_owned());
                    continue;
                }
                _ if online::is_asked() => {
                    let (address, key) = (online::address(), online::key().unwrap_or_default());
                    let made = online::Online::new(&address, &key, &begin).map(|made| Box::new(made) as _);
                    (line::shown(&address).into(), made)
                }
                _ => {
                    let folder = settings.root().join(wandb::folder());
                    (folder.clone(), wandb::Offline::new(&folder, &begin).map(|made| Box::new(made) as _))
                }
            };
            let made = made.map_err(|error| failed(&folder, error))?;
            let place = made.folder().display();
            reports.notes.push(match name.as_str() {
                "wandb" if !online::is_asked() => {
                    format!("wandb: nothing is sent; afterwards, `wandb sync {place}` does that")
                }
                "swanlab" => {
                    format!("swanlab: nothing is sent; afterwards, `swanlab sync {place}` does that (0.8 or newer)")
                }
                _ => format!("{name}: {place}"),
            });
            reports.list.push(made);
        }
        Ok(reports)
    }

    /// What the user should know.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Tells the figures of a step.
    pub(super) fn log(&mut self, step: u64, entry: &Map<String, Value>) -> Result<(), RunError> {
        self.each(|reporter| reporter.log(step, &figures(entry)))
    }

    /// Tells the figures of the whole run.
    pub(super) fn sum_up(&mut self, step: u64, entry: &Map<String, Value>) -> Result<(), RunError> {
        self.each(|reporter| reporter.sum_up(step, &figures(entry)))
    }

    /// What went wrong on the way.
    pub(super) fn troubles(&self) -> impl Iterator<Item = String> + '_ {
        self.list.iter().filter_map(|reporter| reporter.trouble())
    }

    /// Tells that it is over.
    pub(super) fn end(&mut self, is_done: bool) -> Result<(), RunError> {
        self.each(|reporter| reporter.end(is_done))
    }

    fn each(&mut self, mut tell: impl FnMut(&mut dyn Reporter) -> io::Result<()>) -> Result<(), RunError> {
        for reporter in &mut self.list {
            tell(&mut **reporter).map_err(|error| failed(reporter.folder(), error))?;
        }
        Ok(())
    }
}

/// The figures of an entry; its step is told apart.
fn figures(entry: &Map<String, Value>) -> Vec<(&str, f64)> {
    let numbers = entry.iter().filter(|(name, _)| *name != "step");
    numbers.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?))).collect()
}

/// How the Trainer groups a figure's name.
fn grouped(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(name) => format!("eval/{name}"),
        None => format!("train/{name}"),
    }
}

fn names(settings: &Settings) -> Vec<String> {
    let mut names = settings.names("report_to").unwrap_or_default();
    names.retain(|name| !matches!(name.as_str(), "none" | "null" | ""));
    if settings.flag("use_swanlab") {
        names.push("swanlab".to_owned());
    }
    let mut known = std::collections::BTreeSet::new();
    names.retain(|name| known.insert(name.clone()));
    names
}

/// What is wrong with the names in the settings.
pub(super) fn complaints(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for name in names(settings) {
        let instead = match name.as_str() {
            "wandb" if online::is_asked() && !wandb::is_disabled() && online::key().is_none() => {
                "WANDB_MODE=online without WANDB_API_KEY; set it, or leave WANDB_MODE out, which sends nothing"
                    .to_owned()
            }
            "tensorboard" | "wandb" | "swanlab" => continue,
            "mlflow" if mlflow::folder().is_some() || server::address().is_some() => continue,
            "mlflow" => {
                "an MLFLOW_TRACKING_URI that is neither http nor a folder; leave it out, which writes ./mlruns"
                    .to_owned()
            }
            "all" => "all: name those that are to be told".to_owned(),
            other => format!("{}: none writes its form", bantam_model::foreign::clipped(other)),
        };
        found.push((
            "report_to",
            format!("expected tensorboard, wandb, swanlab, mlflow or none, found {instead}"),
        ));
    }
    let is_swanlab = names(settings).iter().any(|name| name == "swanlab") && !swanlab::is_disabled();
    let is_cloud =
        settings.is_given("swanlab_mode") && settings.text("swanlab_mode").as_deref() == Some("cloud");
    if is_swanlab && is_cloud {
        let words =
            "expected local, found cloud: SwanLab's own is not told; `swanlab sync` sends the run's folder";
        found.push(("swanlab_mode", words.to_owned()));
    }
    found
}

/// An environment variable that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time here, as names have it.
fn stamp(format: &str) -> String {
    Zoned::now().strftime(format).to_string()
}

/// What this machine is called.
fn host() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let told = told.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    told.or_else(|| variable("HOSTNAME")).unwrap_or_else(|| "localhost".to_owned())
}

/// Letters and digits that no other run has.
fn unique(count: usize) -> String {
    use std::hash::{BuildHasher, Hasher};
    let mut text = String::new();
    while text.len() < count {
        // Every state has keys of its own, drawn by the system.
        let mut bits = std::hash::RandomState::new().build_hasher().finish();
        for _ in 0..8 {
            text.push(char::from(b"0123456789abcdef"[(bits % 16) as usize]));
            bits /= 16;
        }
    }
    text.truncate(count);
    text
}
