//! The program as a client: which daemon it asks, what it asks, and when it goes on without.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use bantam_proto::v1;
use serde_json::Value;
use tonic::Code;

use crate::fake::{Fake, Script};
use crate::{Folder, answer, bantam, golden, program};

/// The program where a daemon may be at that socket, with something on standard input.
fn beside(socket: &str, input: &str, arguments: &[&str]) -> Output {
    let mut command = program(arguments);
    command.env_remove("BANTAM_LOCAL").env("BANTAM_SOCKET", socket);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Nobody reads it where no input is asked for.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn with(fake: &Fake, arguments: &[&str]) -> Output {
    beside(fake.socket().to_str().unwrap(), "", arguments)
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const HI: [&str; 5] = ["run", "Hi", "--max-new-tokens", "3", "--greedy"];

#[test]
fn a_run_is_the_daemons_and_tells_it_what_was_given() {
    let fake = Fake::start(Script::default());
    assert_eq!(answer(with(&fake, &HI)), "<0><1><2>\n");
    let (load, request) = fake.asked(|script| (script.loads[0].clone(), script.generations[0].clone()));
    assert_eq!((load.model.as_str(), load.options), ("", Some(v1::LoadOptions::default())));
    assert_eq!((request.model.as_str(), request.max_new_tokens), ("m1", Some(3)));
    let options = request.options.unwrap();
    assert_eq!((options.do_sample, options.temperature), (Some(false), None));
    let model = golden("llama-tied");
    let whole = std::fs::canonicalize(&model).unwrap();
    let flags = ["--json", "--seed", "9", "--precision", "exact", "--context", "64", "--threads", "1"];
    let output = with(&fake, &[&["run", &model, "--ids", "1,2"], &flags[..]].concat());
    let object: Value = serde_json::from_str(&answer(output)).unwrap();
    assert_eq!(object["ids"], serde_json::json!([0, 1, 2]));
    assert_eq!((&object["text"], &object["finish_reason"]), (&"<0><1><2>".into(), &"length".into()));
    assert_eq!((&object["prompt_tokens"], &object["memory_bytes"]), (&3.into(), &9.into()));
    let load = fake.asked(|script| script.loads[1].clone());
    assert_eq!(Some(load.model.as_str()), whole.to_str(), "an absolute path");
    let options = load.options.unwrap();
    assert_eq!(
        (options.precision(), options.context, options.threads),
        (v1::Precision::Exact, Some(64), Some(1))
    );
}

#[test]
fn what_makes_no_sense_is_refused_as_without_a_daemon() {
    let fake = Fake::start(Script::default());
    for arguments in
        [&["run", "x", "--top-p", "3"][..], &["run", "--ids", "99999999"], &["chat", "--top-p", "3"]]
    {
        let (one, other) = (with(&fake, arguments), bantam(arguments));
        assert_eq!(one.status.code(), other.status.code(), "{arguments:?}: {}", said(&one));
        assert!(said(&one).ends_with(&said(&other)), "{arguments:?}: {} for {}", said(&one), said(&other));
    }
    assert_eq!(fake.asked(|script| script.generations.len() + script.chats.len()), 0);
}

#[test]
fn without_a_daemon_that_can_the_program_does_it_itself() {
    let expected = answer(bantam(&HI));
    let folder = Folder::new();
    let socket = folder.path("bantam.sock");
    assert_eq!(answer(beside(&socket, "", &HI)), expected, "there is no socket");
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(answer(beside(&socket, "", &HI)), expected, "nobody listens any more");
    for (code, words) in [
        (Code::FailedPrecondition, "precision: expected fast"),
        (Code::Unimplemented, "no such thing"),
        (Code::ResourceExhausted, "3 GiB are missing"),
    ] {
        let fake = Fake::start(Script { refuses_load: Some((code, words)), ..Script::default() });
        let output = with(&fake, &HI);
        assert_eq!(String::from_utf8(output.stdout.clone()).unwrap(), expected);
        assert!(
            said(&output).contains(words) && said(&output).contains("going on without"),
            "{}",
            said(&output)
        );
        let named = format!("unix:{}", fake.socket().display());
        let output = bantam(&[&HI[..], &["--connect", &named]].concat());
        assert_eq!(output.status.code(), Some(1), "one that was named is not replaced");
        assert!(said(&output).contains(words), "{}", said(&output));
    }
    let fake = Fake::start(Script::default());
    assert_eq!(answer(with(&fake, &[&HI[..], &["--local"]].concat())), expected);
    assert_eq!(answer(bantam(&HI)), expected, "BANTAM_LOCAL");
    assert_eq!(fake.asked(|script| script.loads.len()), 0);
    let plan = with(&fake, &["plan"]);
    assert!(said(&plan).contains("another version") && plan.status.success(), "{}", said(&plan));
}

#[test]
fn a_daemon_that_is_not_there_is_said_with_what_to_do() {
    let folder = Folder::new();
    let socket = format!("unix:{}", folder.path("none.sock"));
    for arguments in [&["run", "x"][..], &["models"], &["top", "--once"], &["unload"], &["budget"], &["load"]]
    {
        let output = bantam(&[arguments, &["--connect", &socket]].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = said(&output);
        assert!(said.contains("expected a daemon, found none") && said.contains("bantam serve"), "{said}");
    }
    let output = bantam(&["models", "--connect", "localhost"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("unix:/path"), "{}", said(&output));
    let output = bantam(&["models", "--connect", "https://localhost:1"]);
    assert!(said(&output).contains("--tls-ca"), "{}", said(&output));
    let output = beside(&folder.path("none.sock"), "", &["models"]);
    assert!(said(&output).contains("bantam serve"), "{}", said(&output));
    assert_eq!(bantam(&["top"]).status.code(), Some(2), "no terminal");
}

#[test]
fn a_chat_sends_all_that_was_said_and_shows_what_comes() {
    let fake = Fake::start(Script::default());
    let socket = fake.socket();
    let flags =
        ["chat", "--json", "--system", "s", "--seed", "5", "--template-arg", "a=[1]", "--now", "2025-01-31"];
    let output = beside(socket.to_str().unwrap(), "one\ntwo\n", &flags);
    let turns: Vec<Value> = answer(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(turns.len(), 2);
    assert_eq!((&turns[0]["content"], &turns[0]["new_tokens"]), (&"<0><1><2>".into(), &3.into()));
    let asked = fake.asked(|script| script.chats[1].clone());
    let said: Vec<_> =
        asked.messages.iter().map(|of| (of.role.as_str(), of.content.as_deref().unwrap())).collect();
    assert_eq!(said, [("system", "s"), ("user", "one"), ("assistant", "<0><1><2>"), ("user", "two")]);
    assert_eq!(asked.template_arguments["a"], "[1]");
    assert_eq!(asked.now.as_deref(), Some("2025-01-31T00:00:00"));
    assert_ne!(turns[0]["seed"], turns[1]["seed"]);
    assert_eq!(asked.options.unwrap().seed, turns[1]["seed"].as_u64());
}

#[test]
fn a_reader_who_leaves_ends_the_stream() {
    use std::io::Read;
    let fake = Fake::start(Script { endless: true, ..Script::default() });
    let mut command = program(&HI);
    command.env_remove("BANTAM_LOCAL").env("BANTAM_SOCKET", fake.socket());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 100]).unwrap();
    drop(out);
    assert!(child.wait().unwrap().success());
    let began = Instant::now();
    while fake.asked(|script| script.ended) == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "the stream goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_lives_in_a_daemon_is_shown_and_changed() {
    let fake = Fake::start(Script::default());
    let object =
        |arguments: &[&str]| -> Value { serde_json::from_str(&answer(with(&fake, arguments))).unwrap() };
    let top = object(&["top", "--once", "--json"]);
    assert_eq!((&top["models"][0]["figures"]["running"], &top["sequence"]), (&2.into(), &5.into()));
    assert_eq!(top["devices"][0]["used_bytes"], 10);
    let shown = answer(with(&fake, &["top", "--once"]));
    assert!(shown.contains("2/8") && shown.contains("the carried model"), "{shown}");
    assert_eq!(object(&["models", "--json"])["models"][0]["state"], "resident");
    assert!(answer(with(&fake, &["models"])).contains("10 B of 100 B in use, 10 B pinned"));
    let load = ["load", "./x", "--pin", "--ttl", "2m", "--slots", "3"];
    assert!(answer(with(&fake, &load)).contains("pinned"));
    let loaded = fake.asked(|script| script.loads[0].clone());
    let options = loaded.options.unwrap();
    assert_eq!((loaded.model.as_str(), options.pin, options.slots), ("./x", Some(true), Some(3)));
    assert_eq!(options.ttl.map(|ttl| ttl.seconds), Some(120));
    answer(with(&fake, &["unload", "m1"]));
    answer(with(&fake, &["budget", "6GiB"]));
    let (unloads, budgets) = fake.asked(|script| (script.unloads.clone(), script.budgets.clone()));
    assert_eq!((unloads, budgets.len(), budgets[0].bytes), (vec!["m1".to_owned()], 1, 6 << 30));
    assert!(answer(with(&fake, &["budget"])).contains("10 B of 100 B"));
}
