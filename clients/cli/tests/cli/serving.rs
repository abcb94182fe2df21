//! The daemon itself, as a child: what other tests of this program show holds through it as well.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Folder, answer, answers, bantam, chats, golden, json, program};

thread_local! {
    /// The daemon that this test's programs ask.
    static SOCKET: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Where the programs of this thread find a daemon.
pub(crate) fn socket() -> Option<PathBuf> {
    SOCKET.with_borrow(Clone::clone)
}

/// A daemon of one test's own. While it lives, all programs of the test's thread find it.
pub(crate) struct Served {
    child: Child,
    _folder: Folder,
}

impl Served {
    fn start(flags: &[&str]) -> Self {
        Served::start_in(Folder::new(), flags)
    }

    fn start_in(folder: Folder, flags: &[&str]) -> Self {
        let command = serve(&folder.path("bantam.sock"), flags);
        Served::start_as(folder, command)
    }

    /// The same with variables of the environment.
    pub(crate) fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let mut command = serve(&folder.path("bantam.sock"), flags);
        command.envs(variables.iter().copied());
        Served::start_as(folder, command)
    }

    fn start_as(folder: Folder, mut command: Command) -> Self {
        let place = folder.path("bantam.sock");
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut served = Served { child, _folder: folder };
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&place).is_err() {
            assert!(served.child.try_wait().unwrap().is_none(), "it ended: {}", served.words());
            assert!(began.elapsed() < Duration::from_secs(60), "no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        SOCKET.set(Some(place.into()));
        served
    }

    fn words(&mut self) -> String {
        let mut words = String::new();
        let _ = std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut words);
        words
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        SOCKET.set(None);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(place: &str, flags: &[&str]) -> Command {
    let mut command = program(&[&["serve", "--socket", place, "--log-level", "warn"], flags].concat());
    command.env_remove("BANTAM_LOCAL").env_remove("BANTAM_SOCKET");
    command
}

fn said(arguments: &[&str]) -> (Option<i32>, String) {
    let output = bantam(arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Something is in the daemon's memory: what a test said was the daemon's word.
fn assert_was_used() {
    let top = json(&["top", "--once", "--json"]);
    let used = |model: &Value| model["figures"]["new_tokens"].as_u64() > Some(0);
    assert!(top["models"].as_array().unwrap().iter().any(used), "{top}");
}

#[test]
fn runs_are_the_same_through_a_daemon() {
    let _served = Served::start(&[]);
    answers::every_way_to_say_a_prompt_says_the_same();
    answers::stop_strings_end_the_text_before_them();
    answers::a_newcomer_needs_no_model();
    answers::a_model_without_a_tokenizer_runs_on_ids();
    answers::a_reader_who_leaves_early_is_no_error();
    assert_was_used();
}

#[test]
fn exact_runs_are_the_same_through_a_daemon() {
    let _served = Served::start(&[]);
    answers::greedy_ids_are_those_of_transformers();
    assert_was_used();
}

#[test]
fn tokens_are_the_same_through_a_daemon() {
    let _served = Served::start(&[]);
    answers::tokens_are_those_of_the_original();
    answers::conversations_are_those_of_the_original();
}

#[test]
fn chats_are_the_same_through_a_daemon() {
    let _served = Served::start(&[]);
    chats::a_new_conversation_knows_nothing_of_the_old();
    chats::conversations_are_saved_and_gone_on_with();
    chats::what_cannot_be_done_is_said();
    assert_was_used();
}

#[test]
fn an_interrupt_is_the_same_through_a_daemon() {
    let _served = Served::start(&["--schedule-slots", "1"]);
    chats::an_interrupt_stops_the_answer_and_not_the_chat();
    chats::an_interrupt_between_answers_ends_the_chat();
    assert_was_used();
}

#[test]
fn a_sampled_text_is_the_same_with_a_daemon_and_without() {
    let arguments =
        ["run", "The function", "--seed", "11", "--max-new-tokens", "20", "--precision", "exact", "--json"];
    let alone = json(&arguments);
    let _served = Served::start(&[]);
    let served = json(&arguments);
    for key in ["ids", "text", "finish_reason", "prompt_tokens", "seed"] {
        assert_eq!(served[key], alone[key], "{key}");
    }
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&served), keys(&alone));
    assert_eq!(keys(&served["timings"]), keys(&alone["timings"]));
    assert_was_used();
}

#[test]
fn a_plan_is_what_a_load_takes() {
    let _served = Served::start(&[]);
    let model = golden("llama-tied");
    let plan = json(&["plan", &model, "--sequences", "2", "--context", "64", "--json"]);
    assert_eq!(plan["options"]["sequences"], 2);
    assert_eq!(plan["fits"], true);
    json(&["load", &model, "--slots", "2", "--context", "64", "--json"]);
    let run = json(&["run", &model, "--ids", "1", "--max-new-tokens", "1", "--json"]);
    assert_eq!(run["memory_bytes"], plan["bytes"]);
    let lines: u64 =
        plan["lines"].as_array().unwrap().iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["bytes"], lines);
    assert!(answer(bantam(&["plan", &model])).contains("of the daemon's budget"));
    // The daemon stores keys and values as the program alone would on this machine.
    let kv = |model: &str, flags: &[&str]| {
        json(&[&["plan", &golden(model), "--json"][..], flags].concat())["options"]["kv"].clone()
    };
    assert_eq!(kv("llama-tied", &[]), "f16");
    let alone = json(&["plan", &golden("gpt_neox"), "--json", "--local"]);
    assert_eq!(kv("gpt_neox", &[]), alone["options"]["kv"]);
    assert_eq!(kv("gpt_neox", &["--precision", "exact"]), "f32");
    assert_eq!(kv("gpt_neox", &["--kv", "f16"]), "f16");
}

#[test]
fn models_come_stay_and_go() {
    let _served = Served::start(&[]);
    let model = std::fs::canonicalize(golden("llama-tied")).unwrap();
    let model = model.to_str().unwrap().to_owned();
    assert!(answer(bantam(&["load", &model, "--pin"])).contains("pinned"));
    let listed = json(&["models", "--json"]);
    let of = |listed: &Value| -> Value {
        let models = listed["models"].as_array().unwrap();
        models
            .iter()
            .find(|found| found["path"].as_str() == Some(model.as_str()))
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(
        (&of(&listed)["state"], &of(&listed)["pinned"]),
        (&"resident".into(), &true.into()),
        "{listed}"
    );
    answer(bantam(&["load", &model, "--unpin", "--ttl", "1h"]));
    let top = json(&["top", "--once", "--json"]);
    assert_eq!((&of(&top)["pinned"], &of(&top)["ttl_seconds"]), (&false.into(), &3600.into()), "{top}");
    assert!(json(&["unload", &model, "--json"])["freed_bytes"].as_u64() > Some(0));
    assert_ne!(of(&json(&["models", "--json"]))["state"], "resident");
    let (status, words) = said(&["unload", &model]);
    assert_eq!(status, Some(1), "{words}");
    let budget = json(&["budget", "123MiB", "--json"]);
    assert_eq!(budget["devices"][0]["budget_bytes"], 123 << 20);
    assert!(answer(bantam(&["budget"])).contains("123 MiB"));
}

#[test]
fn other_options_than_those_that_are_loaded_are_this_process_own() {
    let _served = Served::start(&[]);
    let run = ["run", "x", "--greedy", "--max-new-tokens", "2"];
    answer(bantam(&run));
    let output = bantam(&[&run[..], &["--precision", "exact"]].concat());
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && words.contains("precision") && words.contains("going on"), "{words}");
    let (status, words) = said(&["run", "./nowhere", "x"]);
    assert!(status == Some(1) && words.contains("nowhere"), "{words}");
}

#[test]
fn a_daemon_ends_when_it_is_asked_and_leaves_no_socket() {
    let mut served = Served::start(&[]);
    let place = socket().unwrap();
    let second = serve(place.to_str().unwrap(), &[]).output().unwrap();
    assert_eq!(second.status.code(), Some(1), "one daemon to a socket");
    served.signal("-TERM");
    let status = served.child.wait().unwrap();
    assert!(status.success(), "{status}: {}", served.words());
    assert!(!place.exists());
    assert!(answer(bantam(&["run", "x", "--max-new-tokens", "1"])).len() > 1, "the program works without");
}

#[test]
fn a_socket_that_nobody_listens_at_is_replaced() {
    let folder = Folder::new();
    drop(std::os::unix::net::UnixListener::bind(Path::new(&folder.path("bantam.sock"))).unwrap());
    let _served = Served::start_in(folder, &[]);
    json(&["models", "--json"]);
}

#[test]
fn settings_come_from_flags_and_are_printed() {
    let shown = answer(
        serve("/x/y.sock", &["--tcp-listen", "127.0.0.1:1,127.0.0.1:2", "--print-config"]).output().unwrap(),
    );
    assert!(shown.contains("socket = \"/x/y.sock\"") && shown.contains("127.0.0.1:2\"]"), "{shown}");
    let folder = Folder::new();
    let file = folder.write("bantam.toml", &shown);
    let mut again = program(&["serve", "--config", &file, "--print-config"]);
    let again = answer(again.env_remove("BANTAM_SOCKET").env_remove("BANTAM_LOCAL").output().unwrap());
    assert!(again.contains("socket = \"/x/y.sock\""), "{again}");
    assert_eq!(said(&["serve", "--limits-streams", "none"]).0, Some(2));
    assert_eq!(said(&["serve", "--limits-strems", "1"]).0, Some(2));
    folder.write("bantam.toml", "[limits]\nstrems = 1\n");
    let (status, words) = said(&["serve", "--config", &file]);
    assert!(status == Some(1) && words.contains("limits.streams"), "{words}");
}
