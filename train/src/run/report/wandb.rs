//! A run of Weights & Biases as its client keeps one that was offline: `run-ID.wandb`, records of protocol buffers in
//! frames (`frames.rs`). `wandb sync FOLDER` sends it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::frames::Frames;
use super::wire::Message;
use super::{Begin, Reporter, grouped, host, now, stamp, unique, variable};

const HEADER: &[u8; 7] = b":W&B\xe1\xbe\x00";
/// How the client's own versions that read this form call themselves.
const PRODUCER: &str = "0.18.0";

/// Whether somebody wants no such run, by the client's own variables.
pub(super) fn is_disabled() -> bool {
    let says_so = |word: String| matches!(word.to_ascii_lowercase().as_str(), "1" | "true" | "on");
    variable("WANDB_DISABLED").is_some_and(says_so) || variable("WANDB_MODE").as_deref() == Some("disabled")
}

/// Where the client keeps its runs.
pub(super) fn folder() -> PathBuf {
    PathBuf::from(variable("WANDB_DIR").unwrap_or_default()).join("wandb")
}

/// A run in a folder.
#[derive(Debug)]
pub(super) struct Offline {
    frames: Frames,
    folder: PathBuf,
    records: u64,
    /// Entries of the history; the client counts these, not steps.
    entries: u64,
    begun: f64,
}

impl Offline {
    pub(super) fn new(runs: &Path, begin: &Begin<'_>) -> io::Result<Offline> {
        let id = variable("WANDB_RUN_ID").filter(|id| is_plain(id)).unwrap_or_else(|| unique(8));
        let folder = runs.join(format!("offline-run-{}-{id}", stamp("%Y%m%d_%H%M%S")));
        fs::create_dir_all(folder.join("files"))?;
        let frames = Frames::new(&folder.join(format!("run-{id}.wandb")), HEADER)?;
        let begun = now();
        let mut run = Offline { frames, folder, records: 0, entries: 0, begun: begun.as_secs_f64() };
        let version = Message::default().text(1, PRODUCER).text(2, PRODUCER);
        run.write(21, Message::default().message(1, version))?;
        let config = begin
            .settings
            .given()
            .fold(Message::default(), |config, (key, value)| config.message(1, item(key, &value)));
        let started = Message::default().number(1, begun.as_secs()).number(2, begun.subsec_nanos().into());
        let project = variable("WANDB_PROJECT").unwrap_or_else(|| "llamafactory".to_owned());
        let mut record = Message::default().text(1, &id);
        if let Some(entity) = variable("WANDB_ENTITY") {
            record = record.text(2, &entity);
        }
        let name = variable("WANDB_NAME").unwrap_or_else(|| begin.name.clone());
        let record = record.text(3, &project).message(4, config).text(8, &name).text(13, &host());
        run.write(17, record.message(17, started))?;
        Ok(run)
    }

    fn write(&mut self, field: u32, record: Message) -> io::Result<()> {
        self.records += 1;
        self.frames.write(&Message::default().number(1, self.records).message(field, record).0)
    }
}

impl Reporter for Offline {
    fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let now = now().as_secs_f64();
        let named = figures.iter().map(|(name, value)| (grouped(name), Value::from(*value)));
        let own = [
            ("train/global_step", Value::from(step)),
            ("_step", self.entries.into()),
            ("_runtime", (now - self.begun).into()),
            ("_timestamp", now.into()),
        ];
        let all = named.chain(own.map(|(name, value)| (name.to_owned(), value)));
        let history = all.fold(Message::default(), |all, (name, value)| all.message(1, item(&name, &value)));
        let number = Message::default().number(1, self.entries);
        self.entries += 1;
        self.write(2, history.message(2, number))
    }

    fn sum_up(&mut self, _: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let summary = figures
            .iter()
            .fold(Message::default(), |all, (name, value)| all.message(1, item(name, &Value::from(*value))));
        self.write(3, summary)
    }

    fn end(&mut self, is_done: bool) -> io::Result<()> {
        let seconds = (now().as_secs_f64() - self.begun).max(0.0) as u64;
        // A run that was ended by a signal is what the client calls one that crashed.
        let exit = Message::default().number(1, if is_done { 0 } else { 255 }).number(2, seconds);
        self.write(18, exit)?;
        self.frames.sync()
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A value under its name, as JSON.
fn item(name: &str, value: &Value) -> Message {
    Message::default().text(1, name).text(16, &value.to_string())
}

/// Whether a name can be part of a file's.
fn is_plain(name: &str) -> bool {
    name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs_lead_nowhere() {
        assert!(is_plain("a-B_9") && !is_plain("../x") && !is_plain("a/b"));
    }
}
