//! A run of SwanLab as its client keeps one that was offline: `run-ID.swanlab`, records of protocol buffers in frames
//! (`frames.rs`), and what was asked for as YAML beside it. `swanlab sync FOLDER` sends it, from version 0.8 on: older
//! ones had another form. Not here: the database that `swanlab watch` shows, and the cloud itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::frames::Frames;
use super::wire::Message;
use super::{Begin, Reporter, grouped, now, stamp, unique, variable};
use crate::settings::Settings;

/// `:SWL`, the low half of the CRC-32 of `SwanLab`, and the version of the form.
const HEADER: &[u8; 7] = b":SWL\xd6\xe1\x02";
/// Numbers of records of which a run has one; the others are counted from one.
const START: i64 = -1;
const FINISH: i64 = -2;
const CONFIG: i64 = -3;
/// Fields of a record, by what it holds.
const STARTED: u32 = 10;
const FINISHED: u32 = 11;
const COLUMN: u32 = 12;
const SCALAR: u32 = 13;
const SAVED: u32 = 20;
/// A column of numbers, of those that a user logs, in a section for all.
const NUMBERS: u64 = 1;
const CUSTOM: u64 = 1;
const PUBLIC: u64 = 3;
/// A file that holds the configuration.
const OF_CONFIG: u64 = 1;
/// How a run ended.
const DONE: u64 = 1;
const ABORTED: u64 = 3;

/// Whether somebody wants no such run, by the client's own variable.
pub(super) fn is_disabled() -> bool {
    variable("SWANLAB_MODE").as_deref() == Some("disabled")
}

/// Where the client keeps its runs.
pub(super) fn folder(settings: &Settings) -> PathBuf {
    let named = settings.text("swanlab_logdir").or_else(|| variable("SWANLAB_LOG_DIR"));
    settings.root().join(named.as_deref().unwrap_or("swanlog"))
}

/// A run in a folder.
#[derive(Debug)]
pub(super) struct Offline {
    frames: Frames,
    folder: PathBuf,
    records: i64,
    /// Names that have a column.
    known: BTreeSet<String>,
}

impl Offline {
    pub(super) fn new(runs: &Path, begin: &Begin<'_>) -> io::Result<Offline> {
        let id = unique(8);
        let folder = runs.join(format!("run-{}-{id}", stamp("%Y%m%d_%H%M%S")));
        fs::create_dir_all(folder.join("files"))?;
        let folder = fs::canonicalize(folder)?;
        let config = folder.join("files/config.yaml");
        fs::write(&config, configuration(begin.settings))?;
        let frames = Frames::new(&folder.join(format!("run-{id}.swanlab")), HEADER)?;
        let mut run = Offline { frames, folder, records: 0, known: BTreeSet::new() };
        let time = now();
        run.write(START, time, STARTED, start(begin, &id, time))?;
        let config = Message::default().text(1, "config").text(2, &config.to_string_lossy());
        run.write(CONFIG, time, SAVED, config.number(5, OF_CONFIG))?;
        Ok(run)
    }

    fn write(&mut self, number: i64, time: Duration, field: u32, held: Message) -> io::Result<()> {
        self.frames.write(&record(number, time, field, held).0)
    }

    fn count(&mut self) -> i64 {
        self.records += 1;
        self.records
    }

    fn tell(&mut self, step: u64, name: String, value: f64, time: Duration) -> io::Result<()> {
        if !self.known.contains(&name) {
            let number = self.count();
            self.write(number, time, COLUMN, column(&name))?;
            self.known.insert(name.clone());
        }
        let number = self.count();
        self.write(number, time, SCALAR, scalar(&name, step, value, time))
    }
}

impl Reporter for Offline {
    fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let time = now();
        for (name, value) in figures {
            self.tell(step, named(name), *value, time)?;
        }
        self.tell(step, "train/global_step".to_owned(), step as f64, time)
    }

    fn sum_up(&mut self, step: u64, figures: &[(&str, f64)]) -> io::Result<()> {
        let time = now();
        figures.iter().try_for_each(|(name, value)| self.tell(step, named(name), *value, time))
    }

    fn end(&mut self, is_done: bool) -> io::Result<()> {
        let time = now();
        let state = if is_done { DONE } else { ABORTED };
        let finish = Message::default().number(1, state).message(3, instant(time));
        self.write(FINISH, time, FINISHED, finish)?;
        self.frames.sync()
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

/// What a run is called.
fn start(begin: &Begin<'_>, id: &str, time: Duration) -> Message {
    let text = |key: &str| begin.settings.text(key);
    let project = text("swanlab_project").unwrap_or_else(|| "llamafactory".to_owned());
    let mut start = Message::default().text(1, &project);
    if let Some(workspace) = text("swanlab_workspace") {
        start = start.text(2, &workspace);
    }
    let name = text("swanlab_run_name").unwrap_or_else(|| begin.name.clone());
    start.text(4, &name).text(10, id).message(12, instant(time))
}

fn record(number: i64, time: Duration, field: u32, held: Message) -> Message {
    // Signed numbers are written as their two's complement.
    Message::default().number(1, number as u64).message(2, instant(time)).message(field, held)
}

fn column(name: &str) -> Message {
    let section = name.split('/').next().unwrap_or(name);
    Message::default().number(1, CUSTOM).number(2, NUMBERS).text(3, name).text(5, section).number(6, PUBLIC)
}

fn scalar(name: &str, step: u64, value: f64, time: Duration) -> Message {
    let value = Message::default().double(1, value);
    let scalar = Message::default().text(1, name).number(2, step).number(3, NUMBERS);
    scalar.message(4, instant(time)).message(5, value)
}

fn instant(time: Duration) -> Message {
    Message::default().number(1, time.as_secs()).number(2, time.subsec_nanos().into())
}

/// A figure's name as SwanLab's callback for the Trainer has it.
fn named(name: &str) -> String {
    match name {
        "train_runtime"
        | "train_samples_per_second"
        | "train_steps_per_second"
        | "train_loss"
        | "total_flos" => format!("single_value/{name}"),
        _ => grouped(name),
    }
}

/// What was asked for, as the client writes it.
fn configuration(settings: &Settings) -> String {
    let entry = |(sort, (key, value)): (usize, (&str, Value))| {
        format!("{key}:\n  desc: ''\n  sort: {sort}\n  value: {}\n", yaml(&value))
    };
    let text: String = settings.given().enumerate().map(entry).collect();
    if text.is_empty() { "{}\n".to_owned() } else { text }
}

/// JSON is YAML, but for numbers such as `5e-5`, which YAML 1.1 takes for text: Rust's own have no exponent.
fn yaml(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Number(number) => number
            .as_f64()
            .filter(|_| number.is_f64())
            .map_or_else(|| number.to_string(), |number| format!("{number}")),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(yaml).collect())),
        Value::Object(entries) => {
            let entry =
                |(key, value): (&String, &Value)| format!("{}: {}", Value::from(&key[..]), yaml(value));
            format!("{{{}}}", joined(entries.iter().map(entry).collect()))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::super::frames::read;
    use super::*;

    const TIME: Duration = Duration::new(1_700_000_000, 5_000_000);

    fn of(settings: &str) -> Settings {
        Settings::of_text("x", &format!("model_name_or_path: m\ndataset_path: d\n{settings}"), &[]).unwrap()
    }

    /// The same records as SwanLab 0.10.3 serializes them.
    #[test]
    fn records_are_those_of_the_client() {
        let settings = of("swanlab_project: a project\nswanlab_workspace: we\nswanlab_run_name: first\n");
        let begin = Begin { name: "output".to_owned(), settings: &settings, step: 0 };
        let finish = Message::default().number(1, DONE).message(3, instant(TIME));
        for (record, wanted) in [
            (record(START, TIME, STARTED, start(&begin, "0a1b2c3d", TIME)), GOLDEN[0]),
            (record(1, TIME, COLUMN, column("train/loss")), GOLDEN[1]),
            (record(300, TIME, SCALAR, scalar("train/loss", 7, 2.5, TIME)), GOLDEN[2]),
            (record(FINISH, TIME, FINISHED, finish), GOLDEN[3]),
        ] {
            let found: String = record.0.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, wanted);
        }
    }

    const GOLDEN: [&str; 4] = [
        "08ffffffffffffffffff01120b0880e2cfaa0610c096b102522d0a09612070726f6a65637412027765220566697273745208\
         3061316232633364620b0880e2cfaa0610c096b102",
        "0801120b0880e2cfaa0610c096b1026219080110011a0a747261696e2f6c6f73732a05747261696e3003",
        "08ac02120b0880e2cfaa0610c096b1026a280a0a747261696e2f6c6f737310071801220b0880e2cfaa0610c096b1022a0909\
         0000000000000440",
        "08feffffffffffffffff01120b0880e2cfaa0610c096b1025a0f08011a0b0880e2cfaa0610c096b102",
    ];

    #[test]
    fn what_was_asked_for_is_yaml() {
        let settings =
            of("learning_rate: 5e-5\nlora_target: [a, b]\nlora_rank: 4\nswanlab_api_key: secret\n");
        let text = configuration(&settings);
        assert!(text.contains("learning_rate:\n  desc: ''\n  sort: "), "{text}");
        for value in ["  value: 0.00005\n", "  value: [\"a\", \"b\"]\n", "  value: 4\n"] {
            assert!(text.contains(value), "{text}");
        }
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(
            yaml(&serde_json::json!({ "a": 1e300, "b": true })).len(),
            "{\"a\": , \"b\": true}".len() + 301
        );
    }

    #[test]
    fn a_run_stands_in_its_folder() {
        let folder = std::env::temp_dir().join(format!("bantam-swanlab-{}", std::process::id()));
        let settings = of("lora_rank: 4\n");
        let begin = Begin { name: "a run".to_owned(), settings: &settings, step: 0 };
        let mut run = Offline::new(&folder, &begin).unwrap();
        run.log(1, &[("loss", 2.5), ("eval_loss", 3.0)]).unwrap();
        run.log(2, &[("loss", 2.0)]).unwrap();
        run.sum_up(2, &[("train_loss", 2.25)]).unwrap();
        run.end(false).unwrap();
        let place = run.folder().to_owned();
        assert!(fs::read_to_string(place.join("files/config.yaml")).unwrap().contains("lora_rank"));
        let kept = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|end| end == "swanlab");
        let file = fs::read_dir(&place).unwrap().map(Result::unwrap).find(kept).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(&bytes[..7], HEADER);
        let records = read(&bytes[7..], 7);
        // What a record holds stands last: two that begin, four columns, six numbers, and the end.
        let fields = records.iter().map(|record| held(record).0).collect::<Vec<_>>();
        let wanted = [
            STARTED, SAVED, COLUMN, SCALAR, COLUMN, SCALAR, COLUMN, SCALAR, SCALAR, SCALAR, COLUMN, SCALAR,
            FINISHED,
        ];
        assert_eq!(fields, wanted);
        let told = |at: usize, name: &str| {
            let held = held(&records[at]).1;
            assert!(held.windows(name.len()).any(|part| part == name.as_bytes()), "{name}: {held:?}");
        };
        told(3, "train/loss");
        told(5, "eval/loss");
        told(7, "train/global_step");
        told(11, "single_value/train_loss");
        assert_eq!(held(&records[12]).1[..2], [8, ABORTED as u8]);
    }

    /// The last field of a record, and its bytes.
    fn held(mut record: &[u8]) -> (u32, &[u8]) {
        let varint = |bytes: &mut &[u8]| {
            let mut value = 0;
            for shift in (0..70).step_by(7) {
                let (&byte, rest) = bytes.split_first().unwrap();
                *bytes = rest;
                value |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
                if byte < 128 {
                    break;
                }
            }
            value
        };
        let mut last = (0, &record[..0]);
        while !record.is_empty() {
            let key = varint(&mut record);
            let length = varint(&mut record);
            if key & 7 == 2 {
                let (bytes, rest) = record.split_at(length as usize);
                last = ((key >> 3) as u32, bytes);
                record = rest;
            }
        }
        last
    }
}
