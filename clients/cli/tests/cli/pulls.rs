//! `bantam pull` as a script uses it, against a stand-in on loopback: exit statuses, what is written where, and that a
//! model that was pulled is found by its name. What can go wrong on the way stands in `src/pull/tests.rs`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::stand_in::{COMMIT, Files, REPOSITORY, Reply, StandIn};
use super::{Folder, answer, golden, program};

const WEIGHTS: &str = "model.safetensors";

/// The program with a hub and a cache of its own, and none of the user's settings.
fn at(server: &StandIn, home: &Folder, arguments: &[&str]) -> Command {
    let mut command = program(arguments);
    for name in
        ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"]
    {
        command.env_remove(name);
    }
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &server.address).env("HF_HOME", &home.0);
    command
}

/// What a run says beside its result, and its exit status.
fn ended(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A model with goldens, and weights in another form beside it.
fn model() -> Files {
    let names = ["config.json", "tokenizer.json", WEIGHTS];
    let mut files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .map(|name| (*name, fs::read(PathBuf::from(golden("llama-tied")).join(name)).unwrap()))
        .collect();
    files.push(("pytorch_model.bin", vec![0; 1000]));
    Files::new(&files)
}

#[test]
fn a_pulled_model_is_found_by_its_name() {
    let (server, home) = (StandIn::honest(model()), Folder::new());
    let (status, out, said) = ended(at(&server, &home, &["pull", REPOSITORY]));
    assert_eq!(status, Some(0), "{said}");
    let snapshot = home.0.join("hub/models--owner--model/snapshots").join(COMMIT);
    assert_eq!(out.trim_end(), snapshot.to_str().unwrap());
    assert!(
        said.contains("3 files") && said.contains("left out") && said.contains("pytorch_model.bin"),
        "{said}"
    );
    let by_name = |name| answer(at(&server, &home, &["inspect", name, "--json"]).output().unwrap());
    assert_eq!(by_name(REPOSITORY), by_name(snapshot.to_str().unwrap()));
    assert_eq!(by_name("owner/model@main"), by_name(REPOSITORY));
    let asked = server.seen().len();
    let run = ["run", REPOSITORY, "--ids", "1,2,3", "--max-new-tokens", "2"];
    assert_eq!(ended(at(&server, &home, &run)).0, Some(0));
    let (status, _, said) = ended(at(&server, &home, &["inspect", "owner/other"]));
    assert!(status == Some(1) && said.contains("no model there"), "{said}");
    assert_eq!(server.seen().len(), asked, "nothing but pull asks a hub");
}

#[test]
fn a_dry_run_fetches_nothing_and_says_all() {
    let (server, home) = (StandIn::honest(model()), Folder::new());
    let (status, out, said) =
        ended(at(&server, &home, &["pull", REPOSITORY, "--dry-run", "--exclude", "tok*"]));
    assert_eq!(status, Some(0), "{said}");
    assert!(out.contains(WEIGHTS) && out.contains("config.json") && !out.contains("tokenizer.json"), "{out}");
    let (_, out, _) =
        ended(at(&server, &home, &["pull", REPOSITORY, "--dry-run", "--json", "--include", "*.bin"]));
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["commit"], &told["bytes_to_fetch"]), (&COMMIT.into(), &1000.into()));
    assert_eq!((&told["files"][0]["path"], &told["excluded"]), (&"pytorch_model.bin".into(), &3.into()));
    assert_eq!((server.downloads().len(), fs::read_dir(&home.0).unwrap().count()), (0, 0));
}

#[test]
fn commands_that_make_no_sense_ask_nobody() {
    let (server, home) = (StandIn::honest(model()), Folder::new());
    for (arguments, words) in [
        (&["pull", "https://huggingface.co/a/b"][..], "expected a repository's name"),
        (&["pull", "../a"], "expected a repository's name"),
        (&["pull", REPOSITORY, "--revision", "../x"], "expected a branch"),
        (&["pull"], "REPO"),
    ] {
        let (status, _, said) = ended(at(&server, &home, arguments));
        assert!(status == Some(2) && said.contains(words), "{said}");
    }
    let refusals = [("HF_HUB_OFFLINE", "1", "unset it"), ("HF_ENDPOINT", "hub", "expected an address")];
    for (name, value, words) in refusals {
        let mut command = at(&server, &home, &["pull", REPOSITORY]);
        command.env(name, value);
        let (status, _, said) = ended(command);
        assert!(status == Some(1) && said.contains(words), "{said}");
    }
    assert!(server.seen().is_empty());
    let (status, _, said) = ended(at(&server, &home, &["pull", "nobody/nothing"]));
    assert!(status == Some(1) && said.contains("no such repository"), "{said}");
}

#[test]
#[cfg(unix)]
fn a_full_disk_is_named_and_the_beginning_kept() {
    let files = Files::new(&[("config.json", b"{}".to_vec()), (WEIGHTS, vec![3; 3 << 20])]);
    let (server, home) = (StandIn::honest(files.clone()), Folder::new());
    let pull = at(&server, &home, &["pull", REPOSITORY]);
    // A limit of the shell is what a test can have for a full disk: of 1 MiB, in blocks of 512 bytes.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 2048; exec \"$0\" \"$@\""]).arg(pull.get_program()).args(pull.get_args());
    for (name, value) in pull.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let (status, _, said) = ended(limited);
    assert!(status == Some(1) && said.contains("the disk is full"), "{said}");
    let blobs = home.0.join("hub/models--owner--model/blobs");
    let incomplete = blobs.join(format!("{}.incomplete", files.0[WEIGHTS].hash()));
    assert!(fs::metadata(&incomplete).unwrap().len() >= 1 << 19);
    assert!(!blobs.join(files.0[WEIGHTS].hash()).exists());
    assert_eq!(ended(pull).0, Some(0));
    assert!(!incomplete.exists());
}

#[test]
fn sudden_death_costs_only_what_was_not_written() {
    let files =
        Files::new(&[("config.json", b"{}".to_vec()), (WEIGHTS, (0..4_000_000).map(|n| n as u8).collect())]);
    let content = files.clone();
    let server = StandIn::new(files.clone(), move |asked| {
        let stall = Some((2_000_000, Duration::from_secs(20)));
        (asked.is_for(WEIGHTS) && asked.before == 0).then(|| Reply { stall, ..content.reply(asked) })
    });
    let home = Folder::new();
    let mut killed = at(&server, &home, &["pull", REPOSITORY]);
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let hash = files.0[WEIGHTS].hash();
    let incomplete = home.0.join("hub/models--owner--model/blobs").join(format!("{hash}.incomplete"));
    let begun = || fs::metadata(&incomplete).map_or(0, |metadata| metadata.len());
    let patience = Instant::now() + Duration::from_secs(15);
    while begun() < 1_500_000 {
        assert!(Instant::now() < patience, "the beginning does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let kept = begun();
    let (status, out, said) = ended(at(&server, &home, &["pull", REPOSITORY]));
    assert_eq!(status, Some(0), "{said}");
    assert!(fs::read(PathBuf::from(out.trim_end()).join(WEIGHTS)).unwrap() == files.0[WEIGHTS].bytes);
    let ranges: Vec<_> = server.downloads().into_iter().filter(|asked| asked.is_for(WEIGHTS)).collect();
    assert_eq!(ranges[1].header("range"), Some(&*format!("bytes={kept}-")));
}
