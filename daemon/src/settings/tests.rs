//! Order of the sources, refusals, and that what is printed reads as the same settings.
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

use super::*;

fn around(variables: &[(&str, &str)]) -> Surroundings {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Surroundings { variables: variables.iter().map(owned).collect(), uid: 7 }
}

fn flags(values: &[(&str, &[&str])]) -> Flags {
    let owned = |(name, items): &(&str, &[&str])| {
        ((*name).to_owned(), items.iter().map(|&item| item.to_owned()).collect())
    };
    Flags { config: None, values: values.iter().map(owned).collect() }
}

/// A file of this process and thread, gone with the guard.
struct Written(PathBuf);

impl Written {
    fn new(text: &str) -> Self {
        let id = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
        let path = std::env::temp_dir().join(format!("bantam-settings-{}-{id}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn flags(&self, values: &[(&str, &[&str])]) -> Flags {
        Flags { config: Some(self.0.clone()), ..flags(values) }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn defaults_hold_and_every_row_describes_itself() {
    let read = read(&Flags::default(), &around(&[])).unwrap();
    assert_eq!(read.settings.socket, Path::new("/tmp/bantam-7/bantam.sock"));
    assert_eq!(read.settings.message_bytes, Bytes(4 << 20));
    assert!(read.settings.tcp_listen.is_empty());
    for key in KEYS {
        assert!(key.doc.trim().len() > 10 && !key.expected.is_empty(), "{key:?}");
        let mut settings = Settings::default();
        let shown = (key.show)(&settings);
        let path = Path::new("default");
        let entry = &file::entries(path, &format!("{} = {shown}", key.name)).unwrap()[0];
        assert!((key.put)(&mut settings, &entry.items), "{key:?} refuses its own default {shown}");
    }
}

#[test]
fn the_later_source_decides() {
    let file = Written::new("[schedule]\nslots = 2\nqueue = 3\nprefill_chunk = 0x10\n");
    let environment =
        around(&[("BANTAM_SCHEDULE_SLOTS", "4"), ("BANTAM_SCHEDULE_CONTEXT", "99"), ("PATH", "/bin")]);
    let read = read(&file.flags(&[("schedule.context", &["100"])]), &environment).unwrap();
    let settings = &read.settings;
    assert_eq!((settings.slots, settings.queue, settings.context, settings.prefill_chunk), (4, 3, 100, 16));
    let printed = read.print();
    assert!(printed.contains("# From: $BANTAM_SCHEDULE_SLOTS\nslots = 4"), "{printed}");
    assert!(printed.contains(", line 3\nqueue = 3"), "{printed}");
    assert!(printed.contains("# From: --schedule-context\ncontext = 100"), "{printed}");
    assert!(printed.contains("# From: default\nstreams = 100"), "{printed}");
}

#[test]
fn what_is_printed_reads_as_the_same() {
    let odd = flags(&[
        ("socket", &["/run/a \"b\"\\c/s.sock"]),
        ("tcp.listen", &["127.0.0.1:1", "[::1]:2"]),
        ("tcp.tokens", &["tokens with = # signs"]),
        ("models.folders", &["/a,b", "/c"]),
        ("models.ram_budget", &["1025"]),
        ("models.idle", &["0s"]),
        ("limits.drain", &["1500ms"]),
        ("metrics.listen", &["unix:/run/m.sock"]),
        ("log.format", &["json"]),
        ("models.quantization", &["nf4"]),
    ]);
    let first = read(&odd, &around(&[])).unwrap();
    let file = Written::new(&first.print());
    let again = read(&file.flags(&[]), &around(&[])).unwrap();
    assert_eq!(first.settings, again.settings);
}

/// The refusal's words, for a file, variables and flags.
fn refusal(text: &str, variables: &[(&str, &str)], values: &[(&str, &[&str])]) -> String {
    let file = Written::new(text);
    let error = read(&file.flags(values), &around(variables)).unwrap_err().to_string();
    error.replace(&file.0.display().to_string(), "FILE")
}

#[test]
fn refusals_name_the_key_the_place_and_what_to_do() {
    let unknown = refusal("\n[limits]\nstraems = 4\n", &[], &[]);
    assert!(unknown.starts_with(
        "FILE, line 3: there is no setting \"limits.straems\"; did you mean \"limits.streams\"?"
    ));
    let variable = refusal("", &[("BANTAM_LIMIT_STREAMS", "4")], &[]);
    assert!(variable.contains("did you mean \"BANTAM_LIMITS_STREAMS\""), "{variable}");
    let flag = refusal("", &[], &[("limits.streams", &["0"])]);
    assert_eq!(
        flag,
        "--limits-streams: limits.streams: expected a whole number from 1 to 10000, found \"0\""
    );
    for (text, part) in [
        ("threads = 4.5", "line 1: threads: expected text"),
        ("threads = [1, 2]", "line 1: threads: expected a whole number from 0 to 1024, found \"1, 2\""),
        ("threads = -1", "found \"-1\""),
        ("threads = 4\nthreads = 5", "line 2: expected TOML"),
        ("[limits", "line 1: expected TOML"),
        ("socket = \"relative.sock\"", "expected an absolute path"),
        ("metrics.listen = \"0.0.0.0:1\"", "expected off, a loopback address"),
        ("models.quantization = \"nf5\"", "models.quantization: expected a way"),
        ("[tls]\nkey = \"k\"", "expected both or neither"),
        ("[tls]\nclient_ca = \"k\"", "clients' certificates need TLS"),
        ("log.level = \"loud=very\"", "log.level: expected a level"),
    ] {
        let found = refusal(text, &[], &[]);
        assert!(found.contains(part), "{text}: {found}");
    }
    let missing = Flags { config: Some("/nowhere/at/all.toml".into()), values: Vec::new() };
    assert!(read(&missing, &around(&[])).unwrap_err().to_string().contains("--config"));
}
