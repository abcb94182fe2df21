//! What stands where on machines that are described, and traces of routing.

use serde_json::Value;

use crate::{Folder, answer, bantam, golden, json, list};

/// Twenty billion weights as they are held in four bits, on a card of 4 GB.
const LAPTOP: [&str; 13] = [
    "plan",
    "--synthetic",
    "gpt-oss-20b",
    "--quantization",
    "nf4",
    "--head",
    "nf4",
    "--experts",
    "mxfp4",
    "--vram",
    "4GiB",
    "--ram",
    "24GiB",
];

fn error(arguments: &[&str]) -> String {
    let output = bantam(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_placement_fits_adds_up_and_takes_the_fastest_policy() {
    let plan = json(&[&LAPTOP[..], &["--json"]].concat());
    let sum = |key: &str| list(&plan["stands"]).iter().filter_map(|line| line[key].as_u64()).sum::<u64>();
    let policies = list(&plan["policies"]);
    let auto = policies.iter().find(|policy| policy["name"] == plan["auto"]).unwrap();
    for key in ["vram_bytes", "ram_bytes"] {
        assert!(sum(key).abs_diff(auto[key].as_u64().unwrap()) < 8, "{key}");
        assert!(sum(key) < plan["machine"][key].as_u64().unwrap());
    }
    let rate = |value: &Value| value["tokens_per_s"].as_f64().unwrap();
    assert!(policies.len() > 4 && policies.iter().all(|policy| rate(policy) <= rate(&plan)));
    assert!(rate(&plan["more_vram"]) > rate(&plan));
    let shown = answer(bantam(&LAPTOP));
    for words in ["of 32 experts in each of 24 layers", "<- auto", "512 MiB more VRAM: ", "and not measured"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

#[test]
fn a_placement_over_two_cards_tells_what_each_has() {
    let two: Vec<&str> =
        LAPTOP.iter().map(|word| if *word == "4GiB" { "4GiB,4GiB" } else { *word }).collect();
    let (one, two) = (json(&[&LAPTOP[..], &["--json"]].concat()), json(&[&two[..], &["--json"]].concat()));
    let rates: Vec<f64> = list(&two["by_cards"]).iter().filter_map(Value::as_f64).collect();
    assert_eq!(rates[0], one["tokens_per_s"].as_f64().unwrap());
    assert!(rates.len() == 2 && rates[1] > rates[0], "{rates:?}");
    assert_eq!(two["tokens_per_s"].as_f64(), rates.last().copied());
    let bytes = |plan: &Value| plan["on_card"]["weight_bytes"].as_u64().unwrap();
    let cards = list(&two["on_card"]["cards"]);
    assert!(cards.len() == 2 && bytes(&two) > bytes(&one) * 17 / 10, "{cards:?}");
    for card in cards {
        assert!(card["bytes"].as_u64().unwrap() <= 4 << 30, "{card}");
    }
    let layers: Vec<u64> =
        cards.iter().flat_map(|card| list(&card["layers"])).filter_map(Value::as_u64).collect();
    assert!(layers[0] == 0 && layers[1] == layers[2] && layers[3] == 24, "{layers:?}");
    let shown = answer(bantam(&["plan", "--synthetic", "gpt-oss-20b", "--vram", "4GiB,8GiB"]));
    for words in ["`--device cuda:0,1` computes on cards", "cuda:1: ", "tokens/s by the number of cards: "] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

#[test]
fn machines_are_listed_and_what_none_has_is_refused() {
    let names = answer(bantam(&["plan", "--machine", "list"]));
    assert!(names.starts_with("laptop-3050-ddr4 ") && names.contains("\ncpu-only "), "{names}");
    assert!(error(&["plan", "--machine", "fridge"]).contains("see --machine list"));
    assert!(error(&["plan", "--machine", "cpu-only", "--vram", "1GiB"]).contains("has no card"));
    assert!(error(&["plan", "--vram", "lots"]).contains("expected bytes"));
    let large = answer(bantam(&["plan", "--synthetic", "gpt-oss-20b", "--ram", "8GiB"]));
    assert!(large.contains("does not fit: "), "{large}");
}

#[test]
fn routing_is_recorded_and_plans_take_it() {
    let folder = Folder::new();
    let trace = folder.0.join("trace").display().to_string();
    let run =
        ["run", &golden("gpt_oss-bf16"), "--ids", "1,2,3", "--temperature", "0", "--ignore-eos", "--json"];
    let run = [&run[..], &["--max-new-tokens", "20"]].concat();
    let recorded = json(&[&run[..], &["--record-routing", &trace]].concat());
    assert_eq!(recorded["ids"], json(&run)["ids"]);
    // A header, then of 22 tokens that were read, in two layers, four experts each.
    assert_eq!(std::fs::metadata(&trace).unwrap().len(), 16 + 22 * 2 * 4);
    let plan = ["plan", &golden("gpt_oss-bf16"), "--machine", "laptop-3050-ddr4", "--routing", &trace];
    assert!(!answer(bantam(&plan)).contains("equally probable"));
    let other = bantam(&[&LAPTOP[..], &["--routing", &trace]].concat());
    let message = String::from_utf8(other.stderr).unwrap();
    assert!(
        message.contains("24 layers that choose 4 of 32, found 2 layers that choose 4 of 8"),
        "{message}"
    );
    std::fs::write(&trace, "no trace").unwrap();
    assert_eq!(bantam(&plan).status.code(), Some(1));
    assert!(error(&["run", "x", "--record-routing", &trace]).contains("a model with experts"));
}
