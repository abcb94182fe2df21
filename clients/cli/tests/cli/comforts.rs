//! What makes the program pleasant and changes no result: the doctor, completions, the manual, colours, suggestions.

use crate::{Folder, answer, bantam, golden, json, list, program};

#[test]
fn the_doctor_tells_what_fits_and_how_fast() {
    let report = json(&["doctor", "--json"]);
    assert!(report["processor"]["cores_logical"].as_u64() > Some(0));
    let read = report["measured"]["read_gb_per_s"]["median"].as_f64().unwrap();
    assert!(read > 0.1, "{read}");
    assert!(list(&report["models"]).len() >= 10);
    for model in list(&report["models"]) {
        let expected = read * 1e9 / model["bytes_per_token"].as_f64().unwrap();
        let found = model["expected_tokens_per_s_most"].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 1e-9, "{model}");
        if let Some(available) = report["memory"]["available_bytes"].as_u64() {
            assert_eq!(model["fits"], model["bytes"].as_u64().unwrap() <= available, "{model}");
        }
    }
    let folder = golden("qwen2");
    let own = json(&["doctor", &folder, "--json"]);
    let plan = json(&["plan", &folder, "--json"]);
    assert_eq!(own["models"][0]["bytes"], plan["bytes"]);
    let shown = answer(bantam(&["doctor"]));
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let shown = answer(bantam(&["doctor", &folder]));
    assert!(shown.contains("GB/s") && shown.contains("graphics card"), "{shown}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_doctor_minds_the_limit_of_a_shell() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -v 700000 && exec \"$0\" doctor --json", env!("CARGO_BIN_EXE_bantam")]);
    command.env("XDG_CACHE_HOME", crate::cache());
    let report: serde_json::Value = serde_json::from_str(&answer(command.output().unwrap())).unwrap();
    assert_eq!(report["memory"]["limit_bytes"], 700_000 << 10);
    assert!(report["memory"]["available_bytes"].as_u64().unwrap() < 700_000 << 10);
    assert!(list(&report["models"]).iter().all(|model| model["fits"] == false));
}

#[test]
fn help_tells_what_a_missing_model_means() {
    let help =
        |verb: &str| answer(bantam(&[verb, "--help"])).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help("plan").contains("without it, the small model that bantam carries"));
    assert!(help("bench").contains("without it, the machine alone"));
    assert!(help("doctor").contains("without it, published shapes are judged"));
}

#[test]
fn completions_and_manual_know_every_verb() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = answer(bantam(&["completions", shell]));
        assert!(script.contains("perplexity") && script.contains("max-new-tokens"), "{shell}");
    }
    assert!(answer(bantam(&["man"])).contains(".TH bantam 1"));
    let folder = Folder::new();
    assert_eq!(answer(bantam(&["man", "--output", &folder.path("a/b")])), "");
    for page in ["bantam", "bantam-run", "bantam-eval-perplexity", "bantam-doctor"] {
        let text = std::fs::read_to_string(folder.path(&format!("a/b/{page}.1"))).unwrap();
        assert!(text.starts_with(".ie") && text.contains("SYNOPSIS"), "{page}");
    }
}

#[test]
fn colours_come_when_they_are_asked_for() {
    let is_coloured = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = program(arguments);
        ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"].iter().for_each(|name| {
            command.env_remove(name);
        });
        let output = command.envs(variables.iter().copied()).output().unwrap();
        [output.stdout, output.stderr].concat().contains(&0x1b)
    };
    for verb in [&["plan"][..], &["--help"], &["run", "--help"], &["fly"], &["plan", "./none"]] {
        let with = |more: &[&'static str]| [verb, more].concat();
        assert!(!is_coloured(verb, &[]), "{verb:?}: nobody watches");
        assert!(is_coloured(verb, &[("CLICOLOR_FORCE", "1")]), "{verb:?}");
        assert!(is_coloured(&with(&["--color", "always"]), &[]), "{verb:?}");
        assert!(is_coloured(&with(&["--color=always"]), &[("NO_COLOR", "1")]), "{verb:?}: flags win");
        assert!(!is_coloured(&with(&["--color=never"]), &[("CLICOLOR_FORCE", "1")]), "{verb:?}");
    }
}

#[test]
fn a_slip_of_the_finger_is_answered_with_the_nearest() {
    let said = |arguments: &[&str]| {
        let output = bantam(arguments);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(&["docter"]).contains("'doctor'"));
    assert!(said(&["run", "x", "--to-k", "3"]).contains("'--top-k'"));
    let help = said(&[]);
    assert!(help.contains("This machine:") && help.contains("bantam help run"), "{help}");
}
