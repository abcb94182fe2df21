//! Conversations through pipes: turns, commands, Ctrl-C, files of messages, and what is kept between turns.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Folder, answer, bantam_with, json, list, program, repository};

/// Flags that make answers short and the same every time.
const SHORT: [&str; 4] = ["--max-new-tokens", "8", "--seed", "5"];

/// The JSON objects of a chat.
#[track_caller]
fn turns(input: &str, more: &[&str]) -> Vec<Value> {
    let output = bantam_with(input, &[&["chat", "--json"], &SHORT[..], more].concat());
    answer(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn refusal(input: &str, more: &[&str], words: &[&str]) {
    let output = bantam_with(input, &[&["chat", "--json"], &SHORT[..], more].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    for word in words {
        assert!(message.contains(word), "expected {word:?} in: {message}");
    }
}

fn number(turn: &Value, key: &str) -> u64 {
    turn[key].as_u64().unwrap_or_else(|| panic!("no {key} in {turn}"))
}

#[test]
fn a_conversation_repeats_and_reads_only_what_is_new() {
    let said = turns("What is a file?\n\nAnd a folder?\n", &[]);
    assert_eq!(said.len(), 2, "an empty line says nothing");
    assert_eq!((number(&said[0], "seed"), number(&said[0], "reused_tokens")), (5, 0));
    let (first, second) = (number(&said[0], "prompt_tokens"), number(&said[1], "prompt_tokens"));
    assert!(second > first + 8);
    assert!(number(&said[1], "reused_tokens") >= first, "the first turn is known: {}", said[1]);
    assert_ne!(said[0]["seed"], said[1]["seed"]);
    let again = turns("What is a file?\nAnd a folder?\n", &[]);
    let contents = |turns: &[Value]| turns.iter().map(|turn| turn["content"].clone()).collect::<Vec<_>>();
    assert_eq!(contents(&said), contents(&again));
    let plain = bantam_with("What is a file?\nAnd a folder?", &[&["chat"], &SHORT[..]].concat());
    let lines: String = contents(&said).iter().map(|text| format!("{}\n", text.as_str().unwrap())).collect();
    assert_eq!(answer(plain), lines);
}

#[test]
pub(crate) fn a_new_conversation_knows_nothing_of_the_old() {
    let said = turns("What is a file?\n/clear\nWhat is a file?\nclear\nWhat is a file?\nexit\nnever\n", &[]);
    assert_eq!(said.len(), 3);
    assert!(said.iter().all(|turn| turn["prompt_tokens"] == said[0]["prompt_tokens"]));
    let retried = turns("What is a file?\n/retry\n/undo\nWhat is a file?\n/set seed 5\n/retry\n", &[]);
    assert!(retried.iter().all(|turn| turn["prompt_tokens"] == said[0]["prompt_tokens"]));
    assert_eq!(retried[3]["content"], said[0]["content"], "the seed begins anew");
    let system = turns("/system Be brief.\nWhat is a file?\n", &[]);
    assert!(number(&system[0], "prompt_tokens") > number(&said[0], "prompt_tokens"));
    let flag = turns("What is a file?\n", &["--system", "Be brief."]);
    assert_eq!(system[0]["content"], flag[0]["content"]);
    let greedy = turns("/set max_new_tokens 3\n/set greedy\nWhat is a file?\n", &[]);
    assert_eq!(number(&greedy[0], "new_tokens"), 3);
}

#[test]
pub(crate) fn conversations_are_saved_and_gone_on_with() {
    let folder = Folder::new();
    let file = folder.path("chat.json");
    let whole = turns(&format!("one \\\ntwo\n/save {file}\nthree\n"), &[]);
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(list(&saved).len(), 2);
    assert_eq!(saved[0], serde_json::json!({ "role": "user", "content": "one \ntwo" }));
    assert_eq!(saved[1]["content"], whole[0]["content"]);
    for (input, more) in [
        ("three\n".to_owned(), vec!["--messages", file.as_str()]),
        (format!("/load {file}\nthree\n"), vec![]),
    ] {
        let resumed = turns(&input, &more);
        assert_eq!(resumed[0]["prompt_tokens"], whole[1]["prompt_tokens"]);
    }
    refusal(&format!("x\n/save {file}\n"), &[], &["there is a file by that name", "/save !"]);
    turns(&format!("x\n/save ! {file}\n"), &[]);
    refusal(&format!("x\n/save {}\n", folder.path("no/such/folder")), &[], &["no/such/folder"]);
    let asked = folder.write("asked.json", r#"[{"role": "user", "content": "What is a file?"}]"#);
    assert_eq!(turns("", &["--messages", &asked])[0]["content"], turns("What is a file?", &[])[0]["content"]);
    let tokens = json(&["tokenize", "--chat", &asked, "--json"]);
    assert_eq!(list(&tokens["ids"]).len() as u64, number(&turns("What is a file?", &[])[0], "prompt_tokens"));
    assert!(!list(&json(&["tokenize", "--chat", &file, "--json"])["ids"]).is_empty());
    let block = turns("\"\"\"one \ntwo\"\"\"\n", &[]);
    assert_eq!(block[0]["content"], whole[0]["content"]);
}

#[test]
pub(crate) fn what_cannot_be_done_is_said() {
    let folder = Folder::new();
    refusal("/claer\n", &[], &["/claer is not a command", "/clear"]);
    refusal("/set warmth 3\n", &[], &["warmth", "temperature"]);
    refusal("/set top_p 3\n", &[], &["top_p"]);
    refusal("/undo\n", &[], &["nothing was said yet"]);
    refusal(&"word ".repeat(600), &[], &["tokens", "room for 512", "/clear"]);
    refusal("", &["--messages", &folder.write("m.json", "{}")], &["m.json", "found something else"]);
    refusal("", &["--messages", &folder.write("m.json", "[{}]")], &["no `role` in message 0"]);
    #[cfg(target_os = "linux")]
    refusal("", &["--messages", "/dev/zero"], &["/dev/zero", "at most 64 MiB"]);
    let model = Folder::model("qwen2");
    let _ = std::fs::remove_file(model.path("chat_template.jinja"));
    let config = std::fs::read_to_string(model.path("tokenizer_config.json")).unwrap();
    model.write("tokenizer_config.json", config.replace("\"chat_template\"", "\"other\""));
    refusal("x", &[&model.path("")], &["expected a chat template", "bantam run"]);
    let output = bantam_with("x", &["chat", "--template-arg", "effort=low"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("KEY=JSON"));
}

/// The carried model with room for an answer that takes minutes: there is time to interrupt it on any machine.
fn long_winded() -> Folder {
    let folder = Folder::new();
    for entry in std::fs::read_dir(repository("tests/goldens/real/llama")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path(entry.file_name().to_str().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(folder.path("config.json")).unwrap();
    let longer = config.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 32768");
    assert_ne!(longer, config);
    folder.write("config.json", longer);
    folder
}

const LONG: [&str; 6] = ["--context", "32768", "--max-new-tokens", "32000", "--seed", "5"];

/// A chat that is typed into while it answers.
struct Live {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Live {
    fn new(arguments: &[&str]) -> Self {
        let mut command = program(&[&["chat", "--ignore-eos"], arguments].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Live { child, out }
    }

    fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn interrupt(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    }
}

#[test]
#[cfg(unix)]
pub(crate) fn an_interrupt_stops_the_answer_and_not_the_chat() {
    let folder = long_winded();
    let file = folder.path("chat.json");
    let mut chat = Live::new(&[&[folder.path("").as_str()], &LONG[..]].concat());
    chat.say("Hi\n");
    // The first letter of an answer is there, the last one is far away.
    let mut letter = [0];
    chat.out.read_exact(&mut letter).unwrap();
    chat.interrupt();
    chat.say(&format!("/save {file}\n/set max_new_tokens 4\nAnd now?\n/save ! {file}.2\n"));
    drop(chat.child.stdin.take());
    let mut rest = String::new();
    chat.out.read_to_string(&mut rest).unwrap();
    assert!(chat.child.wait().unwrap().success());
    let saved = |file: &str| -> Value { serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap() };
    let (first, both) = (saved(&file), saved(&format!("{file}.2")));
    assert_eq!(first[1]["partial"], true, "the answer that was stopped says so");
    assert_eq!((list(&first).len(), list(&both).len()), (2, 4));
    assert_eq!(both[3].get("partial"), None);
    let whole = first[1]["content"].as_str().unwrap();
    assert!(format!("{}{rest}", letter[0] as char).starts_with(whole.trim_end()), "{whole:?} of {rest:?}");
}

#[test]
#[cfg(unix)]
pub(crate) fn an_interrupt_between_answers_ends_the_chat() {
    use std::os::unix::process::ExitStatusExt;

    let mut chat = Live::new(&["--max-new-tokens", "1", "--json"]);
    chat.say("Hi\n");
    let mut line = String::new();
    chat.out.read_line(&mut line).unwrap();
    assert!(line.starts_with('{'), "{line}");
    // The program may still be on its way back to its input.
    let start = Instant::now();
    loop {
        chat.interrupt();
        std::thread::sleep(Duration::from_millis(20));
        if let Some(status) = chat.child.try_wait().unwrap() {
            assert_eq!(status.signal(), Some(2), "a shell makes 130 of it");
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it does not end");
    }
}

/// What a terminal shows, up to the first of some words.
#[cfg(target_os = "linux")]
fn read_until(out: &mut impl Read, words: &str) -> String {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(words.as_bytes()) {
        match out.read(&mut byte) {
            Ok(1) => seen.push(byte[0]),
            _ => panic!("expected {words:?} in {:?}", String::from_utf8_lossy(&seen)),
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
#[cfg(target_os = "linux")]
fn at_a_terminal_keys_work_as_people_expect() {
    let folder = long_winded();
    let (model, file) = (folder.path(""), folder.path("chat.json"));
    let bantam = env!("CARGO_BIN_EXE_bantam");
    // The status is written down where it is fresh: what `script` makes of it differs between its versions.
    // Ctrl-C reaches the shell too; without a trap some shells end there (dash), others go on (bash).
    let line = format!(
        "trap : INT; {bantam} chat {model} --ignore-eos --hide-thinking {}; echo status $?.",
        LONG.join(" ")
    );
    let mut command = Command::new("script");
    command.args(["-qfc", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    command.env("XDG_CACHE_HOME", crate::cache()).env("BANTAM_LOCAL", "1");
    command.env("XDG_STATE_HOME", folder.path("state")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        println!("skipped: no `script` to make a terminal with");
        return;
    };
    let (mut keys, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut press = |text: &str| keys.write_all(text.as_bytes()).unwrap();
    let prompt = "> ";
    read_until(&mut out, "/help lists the commands");
    read_until(&mut out, prompt);
    press("not this\u{3}");
    read_until(&mut out, prompt);
    press("\"\"\"one\r");
    press("two\"\"\"\r");
    // What is typed is shown many times over; the answer is longer than all of it.
    read_until(&mut out, "two\"\"\"");
    let mut begun = [0; 2000];
    out.read_exact(&mut begun).unwrap();
    press("\u{3}");
    read_until(&mut out, "[stopped]");
    press("/claer\r");
    read_until(&mut out, "did you mean /clear?");
    press(&format!("/save {file}\r"));
    // Before the next prompt the terminal is not the editor's, and an end of input is the system's business.
    read_until(&mut out, "[2 messages saved to");
    read_until(&mut out, prompt);
    press("\u{4}");
    let end = read_until(&mut out, ".");
    assert!(end.ends_with("status 0."), "{end:?}");
    child.wait().unwrap();
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(saved[0]["content"], "one\ntwo");
    assert_eq!(saved[1]["partial"], true);
    let history = folder.path("state/bantam/chat_history");
    assert!(std::fs::read_to_string(&history).unwrap().contains("/claer"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&history).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
