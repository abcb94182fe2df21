//! Pulling from a stand-in on loopback that breaks, lies and falls silent. What only the built program shows (exit
//! statuses, a full disk, sudden death) stands in `tests/cli/pulls.rs`.
#![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

#[path = "../../tests/cli/stand_in.rs"]
mod stand_in;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::error::PullError;
use super::home::Cache;
use super::hub::{Hub, Token};
use super::listing::Repository;
use super::web::{Patience, Web, WebError};
use super::{Asked, Choice, Plan};
use stand_in::{COMMIT, Files, REPOSITORY, Reply, StandIn};

/// Long enough for a busy machine, where a server that answers must not seem dead.
const SILENCE: Duration = Duration::from_millis(1500);
const WEIGHTS: &str = "model.safetensors";

/// A folder that is gone when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bantam-pull-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn cache(&self) -> PathBuf {
        self.0.join("hub/models--owner--model")
    }

    fn blob(&self, files: &Files, path: &str) -> PathBuf {
        self.cache().join("blobs").join(files.0[path].hash())
    }

    fn incomplete(&self, files: &Files, path: &str) -> PathBuf {
        self.blob(files, path).with_extension("incomplete")
    }

    /// Begins a file as an earlier, interrupted pull has.
    fn begin(&self, files: &Files, path: &str, bytes: &[u8]) {
        fs::create_dir_all(self.cache().join("blobs")).unwrap();
        fs::write(self.incomplete(files, path), bytes).unwrap();
    }

    /// Everything in it but locks, as paths.
    fn content(&self) -> Vec<String> {
        let (mut found, mut folders) = (Vec::new(), vec![self.0.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() && !path.is_symlink() {
                    true => folders.push(path),
                    false => found.push(path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned()),
                }
            }
        }
        found.retain(|path| !path.ends_with(".lock"));
        found.sort();
        found
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A repository like many.
fn files() -> Files {
    let weights: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Files::new(&[("config.json", b"{}".to_vec()), (WEIGHTS, weights), ("a b/ä.txt", b"text\n".to_vec())])
        .named("a b/ä.txt", "sub/deep/more.txt")
}

impl Files {
    fn named(mut self, from: &str, to: &str) -> Self {
        let file = self.0.remove(from).unwrap();
        self.0.insert(to.to_owned(), file);
        self
    }

    fn weights(&self) -> &[u8] {
        &self.0[WEIGHTS].bytes
    }
}

/// One pull, with a token and little patience.
struct Order<'a> {
    scratch: &'a Scratch,
    server: &'a StandIn,
    out: Option<PathBuf>,
    variables: Vec<(&'static str, String)>,
    token: Option<&'static str>,
}

impl<'a> Order<'a> {
    fn new(scratch: &'a Scratch, server: &'a StandIn) -> Self {
        Order { scratch, server, out: None, variables: Vec::new(), token: Some("secret") }
    }

    fn web(&self) -> Web {
        let token = self.token.map(|text| Token { text: text.to_owned(), origin: "HF_TOKEN".to_owned() });
        let hub = Hub { endpoint: self.server.address.clone(), token, silence: SILENCE };
        let patience = Patience { silence: SILENCE, pause: Duration::from_millis(5), attempts: 4 };
        let variable = |name: &str| {
            let found = self.variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Web::new(hub, patience, &variable).unwrap()
    }

    fn pull_revision(&self, revision: &str) -> Result<Plan, PullError> {
        let repository = Repository { endpoint: self.server.address.clone(), name: REPOSITORY.to_owned() };
        let cache = Some(Cache::new(self.scratch.0.join("hub"), REPOSITORY));
        let asked =
            Asked { revision: revision.to_owned(), out: self.out.clone(), cache, choice: Choice::default() };
        let web = self.web();
        let plan = asked.plan(&web, &repository)?;
        plan.carry_out(&web, &repository, revision)?;
        Ok(plan)
    }

    fn pull(&self) -> Result<Plan, PullError> {
        self.pull_revision("main")
    }

    /// A pull that must fail; its message is looked at too.
    #[track_caller]
    fn fail(&self, expected: &[&str]) -> PullError {
        let Err(error) = self.pull() else { panic!("it went well") };
        let message = error.to_string();
        for words in expected {
            assert!(message.contains(words), "{words:?} is not in: {message}");
        }
        assert!(!message.contains("secret"), "{message}");
        error
    }
}

#[track_caller]
fn check_whole(scratch: &Scratch, files: &Files) {
    for (path, file) in &files.0 {
        let here = fs::read(scratch.cache().join("snapshots").join(COMMIT).join(path)).unwrap();
        assert!(here == file.bytes, "{path}");
    }
    assert_eq!(fs::read_to_string(scratch.cache().join("refs/main")).unwrap(), COMMIT);
    let left = scratch.content();
    assert!(!left.iter().any(|path| path.ends_with(".incomplete") || path.ends_with(".tmp")), "{left:?}");
}

/// A server that is honest but for the weights.
fn weights(otherwise: impl Fn(&stand_in::Asked) -> Option<Reply> + Send + Sync + 'static) -> StandIn {
    StandIn::new(files(), move |asked| otherwise(asked).filter(|_| asked.is_for(WEIGHTS)))
}

#[test]
fn the_cache_is_laid_out_as_huggingface_hub_has_it_and_nothing_comes_twice() {
    let (scratch, files) = (Scratch::new(), files());
    let server = StandIn::honest(files.clone());
    let order = Order::new(&scratch, &server);
    order.pull().unwrap();
    check_whole(&scratch, &files);
    let link = |path: &str| fs::read_link(scratch.cache().join("snapshots").join(COMMIT).join(path)).unwrap();
    let hash = |path: &str| files.0[path].hash();
    assert_eq!(link(WEIGHTS), Path::new("../../blobs").join(hash(WEIGHTS)));
    let deep = "sub/deep/more.txt";
    assert_eq!(link(deep), Path::new("../../../../blobs").join(hash(deep)));
    let lock = scratch.0.join("hub/.locks/models--owner--model").join(format!("{}.lock", hash(WEIGHTS)));
    assert!(lock.is_file());
    assert_eq!(server.downloads().len(), 3);
    assert!(server.seen().iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    let plan = order.pull_revision("v1").unwrap();
    assert_eq!((server.downloads().len(), plan.needed()), (3, 0));
    // Links are made again from what is there.
    fs::remove_dir_all(scratch.cache().join("snapshots")).unwrap();
    order.pull().unwrap();
    check_whole(&scratch, &files);
    assert_eq!(server.downloads().len(), 3);
    let cache = Cache::new(scratch.0.join("hub"), REPOSITORY);
    let expected = scratch.cache().join("snapshots").join(COMMIT);
    for revision in ["main", "v1", COMMIT] {
        assert_eq!(cache.find(revision).as_ref(), Some(&expected), "{revision}");
    }
    assert_eq!(cache.find("v2"), None);
}

#[test]
fn a_plain_folder_gets_files_and_takes_them_from_the_cache() {
    let (scratch, files) = (Scratch::new(), files());
    let server = StandIn::honest(files.clone());
    let mut order = Order::new(&scratch, &server);
    order.pull().unwrap();
    let folder = scratch.0.join("plain");
    order.out = Some(folder.clone());
    order.pull().unwrap();
    assert_eq!(server.downloads().len(), 3);
    for (path, file) in &files.0 {
        assert!(!folder.join(path).is_symlink());
        assert!(fs::read(folder.join(path)).unwrap() == file.bytes);
    }
    let note = fs::read_to_string(folder.join(".cache/huggingface/download/config.json.metadata")).unwrap();
    let lines: Vec<&str> = note.lines().collect();
    assert_eq!(lines[..2], [COMMIT, &*files.0["config.json"].hash()]);
    // What was changed by hand is the hub's again, also without notes.
    fs::remove_dir_all(folder.join(".cache")).unwrap();
    fs::remove_dir_all(scratch.0.join("hub")).unwrap();
    fs::write(folder.join("config.json"), "[]").unwrap();
    order.pull().unwrap();
    assert_eq!(fs::read_to_string(folder.join("config.json")).unwrap(), "{}");
    assert_eq!(server.downloads().len(), 4);
    assert!(!scratch.0.join("hub").exists());
    let file = scratch.0.join("file");
    fs::write(&file, "").unwrap();
    order.out = Some(file);
    order.fail(&["expected a folder", "--out"]);
}

#[test]
fn an_interrupted_file_goes_on_where_it_stopped() {
    let (scratch, files) = (Scratch::new(), files());
    let server = StandIn::honest(files.clone());
    scratch.begin(&files, WEIGHTS, &files.weights()[..1_000_000]);
    let plan = Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
    assert_eq!(plan.needed(), 2_000_000 + 2 + 5);
    let weights: Vec<_> = server.downloads().into_iter().filter(|asked| asked.is_for(WEIGHTS)).collect();
    assert_eq!(weights[0].header("range"), Some("bytes=1000000-"));
    // In a plain folder the unfinished file has the name that huggingface_hub gives it.
    let mut order = Order::new(&scratch, &server);
    fs::remove_dir_all(scratch.0.join("hub")).unwrap();
    order.out = Some(scratch.0.join("plain"));
    let notes = scratch.0.join("plain/.cache/huggingface/download");
    fs::create_dir_all(&notes).unwrap();
    let name = format!(
        "{}.{}.incomplete",
        super::checksum::short_hash("model.safetensors.metadata"),
        files.0[WEIGHTS].hash()
    );
    fs::write(notes.join(name), &files.weights()[..2_999_999]).unwrap();
    assert_eq!(order.pull().unwrap().needed(), 1 + 2 + 5);
    assert!(fs::read(scratch.0.join("plain").join(WEIGHTS)).unwrap() == files.weights());
}

#[test]
fn what_is_all_here_but_its_name_is_checked_and_not_fetched() {
    let (scratch, files) = (Scratch::new(), files());
    let server = StandIn::honest(files.clone());
    scratch.begin(&files, WEIGHTS, files.weights());
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
    assert!(!server.downloads().iter().any(|asked| asked.is_for(WEIGHTS)));
}

#[test]
fn wrong_bytes_of_an_earlier_time_are_fetched_anew() {
    for wrong in [vec![7; 1_000_000], vec![7; 3_000_000], vec![7; 3_000_001]] {
        let (scratch, files) = (Scratch::new(), files());
        let server = StandIn::honest(files.clone());
        scratch.begin(&files, WEIGHTS, &wrong);
        Order::new(&scratch, &server).pull().unwrap();
        check_whole(&scratch, &files);
    }
}

#[test]
fn broken_connections_are_taken_up_again() {
    let (scratch, files) = (Scratch::new(), files());
    let content = files.clone();
    // Every one of them breaks, more often than there are attempts: what counts is that each brings something.
    let server = weights(move |asked| {
        let reply = content.reply(asked);
        (asked.before < 2).then_some(Reply { cut: Some(1_200_000), ..reply })
    });
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
    let weights: Vec<_> = server.downloads().into_iter().filter(|asked| asked.is_for(WEIGHTS)).collect();
    let ranges: Vec<_> = weights.iter().map(|asked| asked.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=1200000-"), Some("bytes=2400000-")]);
    let etag = format!("\"{}\"", files.0[WEIGHTS].hash());
    assert_eq!(weights[1].header("if-range"), Some(&*etag));
}

#[test]
fn a_server_that_breaks_always_is_given_up_and_what_came_is_kept() {
    let (scratch, files) = (Scratch::new(), files());
    let content = files.clone();
    let server = weights(move |asked| Some(Reply { cut: Some(1000), ..content.reply(asked) }));
    Order::new(&scratch, &server).fail(&[WEIGHTS, "the connection broke", "start again"]);
    let kept = fs::read(scratch.incomplete(&files, WEIGHTS)).unwrap();
    assert!(kept.len() >= 1000 && files.weights().starts_with(&kept));
    assert!(!scratch.blob(&files, WEIGHTS).exists() && !scratch.cache().join("refs/main").exists());
}

#[test]
fn a_server_without_parts_is_asked_for_the_whole() {
    type Twist = fn(&stand_in::Asked, &Files) -> Option<Reply>;
    let twists: [Twist; 4] = [
        // It ignores the question, it denies it, it sends another part, it sends one of another file.
        |_, files| Some(Reply::new(200, files.weights())),
        |asked, _| asked.header("range").map(|_| Reply::new(416, "")),
        |asked, files| {
            let part =
                Reply::new(206, &files.weights()[5..]).with("content-range", "bytes 5-2999999/3000000");
            asked.header("range").map(|_| part)
        },
        |asked, files| {
            let part = Reply::new(206, &files.weights()[9..]).with("content-range", "bytes 1000000-8/9");
            asked.header("range").map(|_| part)
        },
    ];
    for twist in twists {
        let (scratch, files) = (Scratch::new(), files());
        let content = files.clone();
        let server = weights(move |asked| twist(asked, &content));
        scratch.begin(&files, WEIGHTS, &files.weights()[..1_000_000]);
        Order::new(&scratch, &server).pull().unwrap();
        check_whole(&scratch, &files);
    }
}

#[test]
fn wrong_bytes_are_not_kept() {
    let (scratch, files) = (Scratch::new(), files());
    let mut wrong = files.weights().to_vec();
    wrong[1_234_567] ^= 1;
    let server = weights(move |_| Some(Reply::new(200, wrong.clone())));
    let error =
        Order::new(&scratch, &server).fail(&[WEIGHTS, "sha256", &files.0[WEIGHTS].hash(), "not kept"]);
    assert!(matches!(error, PullError::Content { .. }));
    assert!(!scratch.blob(&files, WEIGHTS).exists() && !scratch.incomplete(&files, WEIGHTS).exists());
    let (scratch, small) = (
        Scratch::new(),
        StandIn::new(files.clone(), |asked| asked.is_for("config.json").then(|| Reply::new(200, "[]"))),
    );
    Order::new(&scratch, &small).fail(&["config.json", "git's sha1", &files.0["config.json"].hash()]);
    assert!(!scratch.blob(&files, "config.json").exists());
}

#[test]
fn wrong_lengths_and_web_pages_are_named() {
    let files = files();
    let long: Vec<u8> = [files.weights(), b"x"].concat();
    let replies = [
        (Reply::new(200, &files.weights()[1..]), "expected 3000000 bytes"),
        (Reply::new(200, long.clone()), "found 3000001"),
        (Reply { is_chunked: true, ..Reply::new(200, long) }, "found more"),
        (Reply { is_chunked: true, ..Reply::new(200, &files.weights()[1..]) }, "ended early"),
        (Reply::new(206, files.weights()), "status 206 for the whole file"),
        (Reply::new(200, "<html>").with("content-type", "text/html; charset=utf-8"), "found a web page"),
        (Reply::new(200, files.weights()).with("content-encoding", "gzip"), "encoded as \"gzip\""),
        (Reply::new(404, "").with("x-error-code", "EntryNotFound"), "has it not"),
        (Reply::new(302, "").with("location", "ftp://x/y"), "expected a redirect to an http address"),
        (Reply::new(302, ""), "found 302"),
    ];
    for (reply, words) in replies {
        let scratch = Scratch::new();
        let server = weights(move |_| Some(reply.clone()));
        Order::new(&scratch, &server).fail(&[words]);
        assert!(!scratch.blob(&files, WEIGHTS).exists(), "{words}");
    }
}

#[test]
fn a_chunked_body_is_as_good() {
    let (scratch, files) = (Scratch::new(), files());
    let content = files.clone();
    let server = weights(move |_| Some(Reply { is_chunked: true, ..Reply::new(200, content.weights()) }));
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
}

#[test]
fn silence_is_waited_for_only_so_long() {
    let (scratch, files) = (Scratch::new(), files());
    let content = files.clone();
    let server = weights(move |asked| {
        let stall = Some((100_000, SILENCE * 3));
        (asked.before == 0).then(|| Reply { stall, ..content.reply(asked) })
    });
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
    assert_eq!(server.downloads().len(), 4);
    let silent = StandIn::new(files, |_| {
        std::thread::sleep(SILENCE * 2);
        None
    });
    let mut order = Order::new(&scratch, &silent);
    order.token = None;
    let error = order.web().get(&silent.address, &[]).err().unwrap();
    assert!(matches!(error, WebError::Silent { .. }), "{error}");
}

#[test]
fn busy_and_failing_servers_are_asked_again() {
    let (scratch, files) = (Scratch::new(), files());
    let server = StandIn::new(files.clone(), |asked| match (asked.is_listing(), asked.before) {
        (true, 0) => Some(Reply::new(429, "").with("retry-after", "0")),
        (true, 1) | (false, 0) => Some(Reply::new(503, "")),
        _ => None,
    });
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
    let busy = StandIn::new(files.clone(), |_| Some(Reply::new(429, "").with("retry-after", "3600")));
    Order::new(&scratch, &busy).fail(&["429", "pause of 3600 s"]);
    let mut order = Order::new(&scratch, &busy);
    order.token = None;
    order.fail(&["HF_TOKEN"]);
    let down = StandIn::new(files, |_| Some(Reply::new(500, "")));
    Order::new(&scratch, &down).fail(&["status 500"]);
    assert_eq!(down.seen().len(), 4);
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let (scratch, files) = (Scratch::new(), files());
    let content = files.clone();
    let store = StandIn::new(Files::default(), move |asked| {
        let asked = asked.clone().at(asked.path.replace("/cdn/", "/owner/model/resolve/"));
        Some(content.reply(&asked))
    });
    let elsewhere = format!("{}/cdn/{COMMIT}", store.address);
    let server = StandIn::new(files.clone(), move |asked| {
        let file = asked.path.split_once(COMMIT)?.1;
        match asked.path.starts_with("/moved") {
            true => Some(Reply::new(302, "").with("location", format!("{elsewhere}{file}"))),
            false => Some(Reply::new(307, "").with("location", format!("/moved/{COMMIT}{file}"))),
        }
    });
    scratch.begin(&files, WEIGHTS, &files.weights()[..1_000_000]);
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
    assert!(server.seen().iter().all(|asked| asked.header("authorization").is_some()));
    assert!(store.seen().iter().all(|asked| asked.header("authorization").is_none()));
    let part = store.seen().into_iter().find(|asked| asked.path.ends_with(WEIGHTS)).unwrap();
    assert_eq!(part.header("range"), Some("bytes=1000000-"));
}

#[test]
fn redirects_end() {
    let scratch = Scratch::new();
    let server = weights(|asked| Some(Reply::new(302, "").with("location", asked.path.clone())));
    Order::new(&scratch, &server).fail(&["at most 10 redirects"]);
}

#[test]
fn refusals_say_what_to_do() {
    let code = |status: u16, code: &str| Reply::new(status, "").with("x-error-code", code);
    let cases: [(Reply, Option<&'static str>, &[&str]); 9] = [
        (code(401, "RepoNotFound"), None, &["no such repository", "set HF_TOKEN"]),
        (code(401, "RepoNotFound"), Some("secret"), &["no such repository", "HF_TOKEN must hold"]),
        (Reply::new(401, ""), None, &["no such repository", "set HF_TOKEN"]),
        (code(401, "BadToken"), Some("secret"), &["expected a token", "found another in HF_TOKEN"]),
        (
            code(401, "GatedRepo"),
            None,
            &["terms must be accepted", "/owner/model in a browser", "set HF_TOKEN"],
        ),
        (code(403, "GatedRepo"), Some("secret"), &["terms must be accepted", "HF_TOKEN must hold"]),
        (Reply::new(403, "").with("x-error-message", "blocked"), Some("secret"), &["403: blocked"]),
        (Reply::new(404, ""), None, &["no such repository"]),
        (Reply::new(418, ""), None, &["expected status 200, found 418"]),
    ];
    for (reply, token, words) in cases {
        let scratch = Scratch::new();
        let server = StandIn::new(files(), move |_| Some(reply.clone()));
        Order { token, ..Order::new(&scratch, &server) }.fail(words);
        assert_eq!(scratch.content(), [""; 0]);
        assert_eq!(server.seen().len(), 1);
    }
    let (scratch, server) = (Scratch::new(), StandIn::honest(files()));
    let error = Order::new(&scratch, &server).pull_revision("nope").err().unwrap();
    assert!(matches!(&error, PullError::NoRevision { revision, .. } if revision == "nope"), "{error}");
    // Files can be gated where their list is not.
    let server = StandIn::new(files(), move |asked| (!asked.is_listing()).then(|| code(403, "GatedRepo")));
    Order::new(&scratch, &server).fail(&["terms must be accepted"]);
}

#[test]
fn a_listing_is_not_trusted() {
    let entry = |path: &str| format!(r#"{{"rfilename":{path:?},"size":1,"blobId":"{COMMIT}"}}"#);
    let listing = |entries: &[String]| format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, entries.join(","));
    let paths = |paths: &[&str]| listing(&paths.iter().map(|path| entry(path)).collect::<Vec<_>>());
    let many: Vec<String> = (0..50_001).map(|n| entry(&format!("f{n}"))).collect();
    let cases: Vec<(String, &str)> = vec![
        (paths(&["../../.bashrc"]), "leads out of the folder"),
        (paths(&["/etc/passwd"]), "an absolute path"),
        (paths(&["ok", "a/./b"]), "no plain path"),
        (paths(&["a", "a"]), "twice"),
        (paths(&["a", "a/b"]), "whose folder is a file"),
        (paths(&[".git/hooks/post-checkout"]), "a place of other programs"),
        (paths(&[]), "no file is left"),
        (listing(&many), "at most 50000 files"),
        (format!(r#"{{"sha":"../..","siblings":[{}]}}"#, entry("a")), "for a commit"),
        (r#"{"siblings":[]}"#.to_owned(), "as JSON"),
        ("<html>".to_owned(), "as JSON"),
        ("[".repeat(1 << 20), "as JSON"),
        (" ".repeat(17 << 20), "at most 16.0 MiB"),
        (
            listing(&[format!(r#"{{"rfilename":"a","size":{},"blobId":"{COMMIT}"}}"#, 1_u64 << 60)]),
            "of free disk",
        ),
        (listing(&[r#"{"rfilename":"a","size":-1}"#.to_owned()]), "as JSON"),
    ];
    for (body, words) in cases {
        let scratch = Scratch::new();
        let server = StandIn::new(files(), move |_| Some(Reply::new(200, body.clone())));
        Order::new(&scratch, &server).fail(&[words]);
        assert_eq!(scratch.content(), [""; 0], "{words}");
    }
    let scratch = Scratch::new();
    let page = StandIn::new(files(), |_| Some(Reply::new(200, "<html>").with("content-type", "text/html")));
    Order::new(&scratch, &page).fail(&["found a web page", "HF_ENDPOINT"]);
}

#[test]
fn what_a_list_leaves_out_is_asked_of_the_files() {
    let (scratch, files) = (Scratch::new(), files());
    let names: Vec<String> = files.0.keys().map(|path| format!(r#"{{"rfilename":{path:?}}}"#)).collect();
    let listing = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, names.join(","));
    let (bare, content) = (listing.clone(), files.clone());
    let server = StandIn::new(files.clone(), move |asked| match asked.is_listing() {
        true => Some(Reply::new(200, bare.clone())),
        // A hub sends on to where large files lie, and tells what it knows of them.
        false if asked.method == "HEAD" && asked.is_for(WEIGHTS) => {
            let reply = content.reply(asked);
            Some(
                Reply { status: 302, body: Vec::new(), ..reply }.with("location", "http://127.0.0.1:9/store"),
            )
        }
        false => None,
    });
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
    let server = StandIn::new(files, move |asked| match asked.is_listing() {
        true => Some(Reply::new(200, listing.clone())),
        false => Some(Reply::new(200, "x")),
    });
    Order::new(&scratch, &server).fail(&["expected the hash (ETag)"]);
}

#[test]
fn two_pulls_do_not_disturb_each_other() {
    let (scratch, files) = (Scratch::new(), files());
    let content = files.clone();
    let server = weights(move |asked| {
        Some(Reply { stall: Some((1_000_000, Duration::from_millis(300))), ..content.reply(asked) })
    });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| Order::new(&scratch, &server).pull().unwrap());
        }
    });
    check_whole(&scratch, &files);
    assert_eq!(server.downloads().iter().filter(|asked| asked.is_for(WEIGHTS)).count(), 1);
}

#[test]
fn the_same_content_under_two_names_comes_once() {
    let weights = vec![1; 100_000];
    let files = Files::new(&[("a.safetensors", weights.clone()), ("b/c.safetensors", weights)]);
    let (scratch, server) = (Scratch::new(), StandIn::honest(files.clone()));
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
    assert_eq!(server.downloads().len(), 1);
}

#[test]
fn an_empty_file_needs_no_question() {
    let files = Files::new(&[("config.json", b"{}".to_vec()), ("empty", Vec::new())]);
    let (scratch, server) = (Scratch::new(), StandIn::honest(files.clone()));
    Order::new(&scratch, &server).pull().unwrap();
    check_whole(&scratch, &files);
}

#[test]
fn a_proxy_is_used_where_the_environment_names_one() {
    let (scratch, server) = (Scratch::new(), StandIn::honest(files()));
    let proxy = StandIn::new(files(), |_| Some(Reply::new(502, "")));
    let mut order = Order::new(&scratch, &server);
    order.variables =
        vec![("http_proxy", proxy.address.clone()), ("HTTPS_PROXY", "http://127.0.0.1:9".to_owned())];
    assert!(order.pull().is_err());
    assert!(server.seen().is_empty() && !proxy.seen().is_empty());
    order.variables = vec![("HTTP_PROXY", "gopher://me:secret@host".to_owned())];
    let hub = Hub { endpoint: server.address.clone(), token: None, silence: SILENCE };
    let variable = |name: &str| (name == "HTTP_PROXY").then(|| OsString::from("gopher://me:secret@host"));
    let error = Web::new(hub, Patience::new(SILENCE), &variable).err().unwrap().to_string();
    assert!(error.contains("HTTP_PROXY: expected a proxy") && !error.contains("secret"), "{error}");
}

#[test]
fn nobody_there_is_said_at_once() {
    let (scratch, mut server) = (Scratch::new(), StandIn::honest(files()));
    server.address = "http://127.0.0.1:9".to_owned();
    Order::new(&scratch, &server).fail(&[
        "http://127.0.0.1:9: cannot be reached",
        "HTTPS_PROXY",
        "HF_ENDPOINT",
    ]);
}
