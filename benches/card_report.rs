//! `cargo xtask card` at tiny sizes on the stand-in for a driver: that it runs, and that its record is whole. Nothing
//! here looks at a figure.
#![forbid(unsafe_code)]

#[path = "card/mod.rs"]
mod card;

use std::fs;
use std::path::{Path, PathBuf};

use bantam_cuda::Counts;
use bantam_cusim::{is_child, skips_card};
use card::record::faults;

fn words(list: &[&str]) -> impl Iterator<Item = String> {
    list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>().into_iter()
}

/// What a record says was asked in a part, line by line.
fn asked(text: &str, part: &str) -> Vec<String> {
    let part = text.split("\n== ").find(|section| section.starts_with(part)).expect("the part is there");
    part.lines()
        .skip_while(|line| !line.starts_with("asked and reached"))
        .skip(1)
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_tiny_report_on_a_stand_in_is_whole() {
    if skips_card() || !is_child("a_tiny_report_on_a_stand_in_is_whole", &[]) {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("card-report");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder for the test");
    let path = folder.join("tiny.txt");
    let out = path.to_str().expect("the path is UTF-8");
    // This very program is a suite, of which one test is asked for, and another suite takes more cards.
    let program = std::env::current_exe().expect("this program has a path");
    let (here, program) = (env!("CARGO_MANIFEST_DIR"), program.display());
    let suites = folder.join("suites.txt");
    let name = "arguments::tests::days";
    fs::write(&suites, format!("report\t1\t{here}\t{program}\t{name}\ncards\t9\t{here}\t{program}\n"))
        .expect("it can be written");
    let suites = suites.to_str().expect("the path is UTF-8");
    let common = ["--quick", "--out", out, "--commit", "c0ffee", "--suites", suites];
    // One part alone leaves the others pending; they come into the same record later.
    card::main(words(&[&common[..], &["--only", "matvec"]].concat()));
    let text = fs::read_to_string(&path).expect("it was written");
    assert_eq!(faults(&path, &text), [""; 0], "{text}");
    assert!(
        asked(&text, "models").iter().all(|line| line.contains("pending: this part was not run")),
        "{text}"
    );
    let matvec = asked(&text, "matvec");
    assert!(matvec.len() > 3 && matvec.iter().all(|line| !line.contains("pending")), "{text}");
    card::main(words(
        &[&common[..], &["--only", "tests", "--only", "models", "--only", "policies"]].concat(),
    ));
    let text = fs::read_to_string(&path).expect("it was written");
    println!("{text}");
    assert_eq!(faults(&path, &text), [""; 0], "{text}");
    assert_eq!(asked(&text, "matvec"), matvec, "what was measured before stays");
    assert!(text.contains("cusim") && text.contains("stand-in") && text.contains("c0ffee"), "{text}");
    let tests = asked(&text, "tests");
    assert!(
        tests[0].ends_with("1 passed  reached") && tests[1].contains("pending: it takes 9 cards"),
        "{text}"
    );
    let allocations = asked(&text, "models").into_iter().find(|line| line.starts_with("allocations"));
    assert!(allocations.is_some_and(|line| line.ends_with("0        0  reached")), "{text}");
    // That none are counted after loading means something only where they are counted while loading.
    let counts = Counts::now();
    assert!(counts.allocations > 100 && counts.launches > 1000, "{counts:?}");
    let policies = asked(&text, "policies");
    assert!(policies.len() > 20 && policies.iter().all(|line| !line.contains("pending")), "{text}");
    // Another commit's figures do not mix with these, and a stand-in's do not come among records.
    let before = text;
    card::main(words(&["--quick", "--out", out, "--commit", "another", "--only", "tests"]));
    assert_eq!(fs::read_to_string(&path).expect("it is there"), before);
    let records = folder.join("record");
    card::main(words(&["--quick", "--record", records.to_str().expect("UTF-8"), "--only", "tests"]));
    assert!(!records.exists());
    fs::remove_dir_all(&folder).expect("it is there");
}

#[test]
fn records_of_cards_are_whole_and_measured() {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/record")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("records can be listed").flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with("-card.txt") {
                let text = fs::read_to_string(&path).expect("a record is a text");
                assert_eq!(faults(&path, &text), [""; 0], "{}", path.display());
            }
        }
    }
}

#[test]
fn what_is_no_record_is_found() {
    let whole = Path::new("benches/record/h200/2026-11-22-card.txt");
    let said = faults(
        whole,
        "$ cargo xtask card\ncard        cusim, a stand-in\n\n== tests: x\n\nasked and reached\na  b  c  maybe\n",
    );
    for wanted in ["no \"driver \"", "stand-in's", "its parts are [\"tests\"]", "neither reached"] {
        assert!(said.iter().any(|fault| fault.contains(wanted)), "{wanted}: {said:?}");
    }
}
