//! A card beside the processor: the same answers, and what is said where there is none. The card is a stand-in
//! (`tests/cusim`), which the built program finds where it would find the driver.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Output, Stdio};

/// Variables of the environment.
type Pairs<'a> = &'a [(&'a str, &'a str)];

use bantam_cusim::{FOLDER, requires_card, skips_card};
use bantam_proto::v1;
use bantam_proto::v1::job_service_client::JobServiceClient;
use bantam_proto::v1::watch_response::Event;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::serving::{self, Served};
use crate::{answer, bantam, golden, json, program};

/// A reply of every kind that goes through the engine, as long as the stand-in is patient.
const REPLY: [&str; 9] =
    ["--precision", "exact", "--temperature", "0", "--ignore-eos", "--max-new-tokens", "6", "--chunk", "16"];

/// The program with a card that is as `variables` say; nothing where there is no stand-in.
fn with_card(arguments: &[&str], variables: &[(&str, &str)]) -> Option<Output> {
    if skips_card() {
        return None;
    }
    let folder = FOLDER.or_else(|| {
        println!("skipped: no C++ compiler made a stand-in for the driver");
        None
    })?;
    let mut command = program(arguments);
    command.env("LD_LIBRARY_PATH", folder).envs(variables.iter().copied());
    Some(command.output().expect("the program starts"))
}

/// The program with a card, which is the machine's own where tests are to meet that.
fn with_any_card(arguments: &[&str]) -> Option<Output> {
    match requires_card() {
        true => Some(program(arguments).output().expect("the program starts")),
        false => with_card(arguments, &[]),
    }
}

fn run<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--model", model, "--ids", "3,1,4,1,5", "--context", "32"], &REPLY[..], more].concat()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn replies_are_the_same_on_a_card_and_with_a_part_of_the_model_there() {
    for model in ["gpt_neox", "mixtral", "qwen3"] {
        let model = golden(model);
        let wanted = json(&run(&model, &["--json", "--device", "cpu"]));
        assert_eq!(wanted["on_card"], Value::Null);
        let streamed = answer(bantam(&run(&model, &["--device", "cpu"])));
        let Some(whole) = with_any_card(&run(&model, &["--json", "--device", "cuda"])) else { return };
        let errors = said(&whole);
        let name = if requires_card() { "cuda:0 (" } else { "cuda:0 (cusim)" };
        assert!(whole.status.success() && errors.contains(name), "{errors}");
        assert!(errors.contains("it computes everything"), "{errors}");
        let found: Value = serde_json::from_slice(&whole.stdout).unwrap();
        assert_eq!((&found["ids"], &found["on_card"]["is_whole"]), (&wanted["ids"], &Value::Bool(true)));
        let bytes = |key: &str| found["on_card"][key].as_u64().unwrap();
        let beside = bytes("bytes") - bytes("weight_bytes") - bytes("cache_bytes") - bytes("kept_bytes");
        for part in [4, 2] {
            let vram = (beside + (bytes("weight_bytes") + bytes("cache_bytes")) * part / 5).to_string();
            // Nobody need ask for a card that is there.
            let divided = with_any_card(&run(&model, &["--vram", &vram])).unwrap();
            let errors = said(&divided);
            assert_eq!(String::from_utf8_lossy(&divided.stdout), streamed, "{errors}");
            assert!(errors.contains("the processor computes the rest"), "{errors}");
        }
        let vram = (beside + (bytes("weight_bytes") + bytes("cache_bytes")) * 3 / 5).to_string();
        for residency in ["pinned", "lru"] {
            let passing = with_any_card(&run(&model, &["--vram", &vram, "--residency", residency])).unwrap();
            let errors = said(&passing);
            assert_eq!(String::from_utf8_lossy(&passing.stdout), streamed, "{errors}");
            assert!(errors.contains("in every step, its weights pass through"), "{errors}");
        }
    }
}

#[test]
fn keys_and_values_beside_a_card_are_stored_as_suits_the_family() {
    let model = golden("gpt_neox");
    let kv = |flags: &[&str]| {
        let plan = with_any_card(&[&["plan", &model, "--json"][..], flags].concat())?;
        let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
        Some((plan["options"]["kv"].clone(), plan["bytes"].clone()))
    };
    let Some((usual, bytes)) = kv(&["--context", "100"]) else { return };
    assert_eq!((usual, &bytes), ("int8".into(), &kv(&["--context", "100", "--kv", "int8"]).unwrap().1));
    assert_eq!(kv(&["--kv", "f16"]).unwrap().0, "f16");
    assert_eq!(kv(&["--precision", "exact"]).unwrap().0, "f32");
    // What is planned is what is taken.
    let taken = |more: &[&str]| {
        let run =
            ["run", "--model", &model, "--ids", "1,2", "--max-new-tokens", "1", "--json", "--device", "cuda"];
        let run = with_any_card(&[&run[..], more].concat()).unwrap();
        let run: Value = serde_json::from_slice(&run.stdout).unwrap();
        run["on_card"]["cache_bytes"].as_u64().unwrap()
    };
    assert_eq!(taken(&[]), taken(&["--kv", "int8"]));
    assert!(taken(&[]) < taken(&["--kv", "f16"]));
}

#[test]
fn this_machine_is_measured_once() {
    let model = golden("llama-tied");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("measured-machine");
    let _ = fs::remove_dir_all(&cache);
    let kept = cache.join("bantam/machine.json");
    let of_cache = [("XDG_CACHE_HOME", cache.to_str().unwrap())];
    let arguments = ["plan", &model, "--machine", "this", "--json"];
    let machine = |output: Output| {
        assert!(output.status.success(), "{}", said(&output));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&told["machine"]["name"], &told["machine"]["measured"]), (&"this".into(), &true.into()));
        assert!(
            told["tokens_per_s"].as_f64().unwrap() > 0.0
                && told["machine"]["ram_bytes_per_s"].as_f64() > Some(1e8)
        );
        let of = |key: &str| told["machine"][key].clone();
        ["ram_bytes_per_s", "vram_bytes_per_s", "upload_bytes_per_s", "exchange_s"].map(of)
    };
    let Some(first) = with_card(&arguments, &of_cache) else { return };
    let first = machine(first);
    assert!(first[1].as_f64() > Some(0.0) && first[3].as_f64() > Some(0.0), "{first:?}");
    assert_eq!(machine(with_card(&arguments, &of_cache).unwrap()), first);
    // Where a card is found nobody need name this machine; what is asked of its memory counts.
    let asked = with_card(&["plan", &model, "--vram", "1MiB", "--json"], &of_cache).unwrap();
    let asked: Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(
        (&asked["machine"]["name"], &asked["machine"]["vram_bytes"]),
        (&"this".into(), &(1 << 20).into())
    );
    // What is damaged is measured again, and so is another machine.
    fs::write(&kept, "{\"of\": ").unwrap();
    machine(with_card(&arguments, &of_cache).unwrap());
    let without = program(&arguments).envs(of_cache).output().unwrap();
    assert_eq!(machine(without)[1], Value::Null);
    let without =
        program(&["plan", &model, "--machine", "this", "--vram", "1GiB"]).envs(of_cache).output().unwrap();
    assert!(
        without.status.code() == Some(2) && said(&without).contains("this has no card"),
        "{}",
        said(&without)
    );
}

/// Bytes of one card that a model does not fit into, and two hold.
fn of_two(model: &str) -> Option<String> {
    let whole = with_card(&run(model, &["--json", "--device", "cuda"]), &[])?;
    let found: Value = serde_json::from_slice(&whole.stdout).unwrap();
    let bytes = |key: &str| found["on_card"][key].as_u64().unwrap();
    let divided = bytes("weight_bytes") + bytes("cache_bytes");
    Some((bytes("bytes") - divided - bytes("kept_bytes") + divided * 4 / 5).to_string())
}

#[test]
fn replies_are_the_same_on_two_cards() {
    let model = golden("qwen3");
    let wanted = json(&run(&model, &["--json", "--device", "cpu"]));
    let Some(vram) = of_two(&model) else { return };
    let both = format!("{vram},{vram}");
    let two: Pairs = &[("CUSIM_DEVICES", "2")];
    for (device, vram, order) in
        [("cuda:0,1", &vram, [0, 1]), ("cuda:1,0", &both, [1, 0]), ("auto", &vram, [0, 1])]
    {
        let found = with_card(&run(&model, &["--json", "--device", device, "--vram", vram]), two).unwrap();
        let errors = said(&found);
        assert!(found.status.success() && errors.contains("they compute everything"), "{errors}");
        let found: Value = serde_json::from_slice(&found.stdout).unwrap();
        assert_eq!(found["ids"], wanted["ids"], "{device}");
        let cards = found["on_card"]["cards"].as_array().unwrap();
        let labels: Vec<&str> = cards.iter().map(|card| card["device"].as_str().unwrap()).collect();
        assert_eq!(labels, order.map(|number| format!("cuda:{number}")), "{device}: {errors}");
    }
    for (flags, why) in [
        (["--device", "cuda:0,2", "--vram", "1MiB"], "finds no card 2, only those up to cuda:1"),
        (["--device", "cuda:0,0", "--vram", "1MiB"], "several with commas between them"),
        (["--device", "cuda:0,1", "--vram", "1MiB,1MiB,1MiB"], "of which there are 2, found 3"),
        (["--device", "cuda:0,1", "--vram", "1MiB,257MiB"], "all that cuda:1 (cusim) has"),
        (["--device", "cuda:0", "--residency", "mru"], "expected auto, pinned or lru"),
    ] {
        let refused = with_card(&run(&model, &flags), two).unwrap();
        assert!(
            refused.status.code() == Some(2) && said(&refused).contains(why),
            "{flags:?}: {}",
            said(&refused)
        );
    }
}

#[test]
fn a_daemon_computes_on_two_cards_and_leaves_one() {
    let Some(folder) = FOLDER.filter(|_| !skips_card()) else { return };
    let model = golden("qwen3");
    let ask = || json(&run(&model, &["--json"]))["ids"].clone();
    let wanted = ask();
    let flags = ["--models-device", "cuda:0,1"];
    let two = [("LD_LIBRARY_PATH", folder), ("CUSIM_DEVICES", "2")];
    let _served = Served::start_with(&flags, &two);
    assert_eq!(ask(), wanted);
    let stands = || {
        let models = json(&["models", "--json"]);
        let on_cards = &models["models"][0]["on_cards"];
        ["cuda:0", "cuda:1"].map(|card| on_cards[card].as_u64().unwrap_or(0))
    };
    let [whole, none] = stands();
    assert!(whole > 0 && none == 0, "one card holds it");
    // Less of the first card: the rest goes to the second.
    let less = (whole * 6 / 10).to_string();
    json(&["budget", &less, "--device", "cuda:0", "--json"]);
    let [first, second] = stands();
    assert!(first > 0 && first <= whole * 6 / 10 && second > 0, "{first} and {second} of {whole}");
    assert_eq!(ask(), wanted);
    json(&["budget", "0", "--device", "cuda:0", "--json"]);
    assert_eq!(stands(), [0, whole]);
    assert_eq!(ask(), wanted);
    json(&["budget", "0", "--device", "cuda:1", "--json"]);
    assert_eq!(stands(), [0, 0]);
    let refused = bantam(&["budget", "1GiB", "--device", "cuda:7"]);
    assert!(said(&refused).contains("expected \"ram\" or \"cuda:0\" or \"cuda:1\""), "{}", said(&refused));
}

#[test]
fn without_a_card_the_processor_computes_or_it_is_said_why_not() {
    let model = golden("gpt_neox");
    let wanted = answer(bantam(&run(&model, &["--device", "cpu"])));
    let cases: [(Pairs, &str, i32); 3] = [
        (&[("CUSIM_DEVICES", "0")], "finds no card", 2),
        (&[("CUSIM_VERSION", "12000")], "is for CUDA 12.0, needed is 12.2", 2),
        (&[("CUSIM_BYTES", "200000")], "lower --chunk", 1),
    ];
    for (variables, why, code) in cases {
        let Some(refused) = with_card(&run(&model, &["--device", "cuda:0"]), variables) else { return };
        assert_eq!(refused.status.code(), Some(code));
        assert!(
            said(&refused).contains(why) && said(&refused).contains("--device cpu"),
            "{}",
            said(&refused)
        );
        let auto = with_card(&run(&model, &["--device", "auto"]), variables).unwrap();
        assert_eq!(String::from_utf8_lossy(&auto.stdout), wanted);
        let line = said(&auto);
        assert!(line.contains(why) && line.ends_with("the processor computes\n"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    let usual = with_card(&run(&model, &[]), &[("CUSIM_DEVICES", "0")]).unwrap();
    assert_eq!(answer(usual), wanted, "most machines have no card, and nothing to say about it");
    for (flags, why) in [
        (&["--device", "gpu"][..], "expected auto, cpu, cuda or cuda:N"),
        (&["--device", "cpu", "--vram", "1MiB"], "uses none"),
    ] {
        let refused = bantam(&run(&model, flags));
        assert!(refused.status.code() == Some(2) && said(&refused).contains(why), "{}", said(&refused));
    }
}

/// A folder with a golden's model whose weights nobody may read: they are no numbers.
fn unreadable() -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cards-unreadable");
    fs::create_dir_all(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        let from = Path::new(&golden("gpt_neox")).join(name);
        let mut bytes = fs::read(from).unwrap();
        if name == "model.safetensors" {
            let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
            bytes[header..].fill(0xff);
        }
        fs::write(folder.join(name), bytes).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[test]
fn what_no_card_of_this_machine_can_do_is_refused_before_weights_are_read() {
    let model = unreadable();
    let read = bantam(&run(&model, &["--device", "cpu"]));
    assert_eq!(read.status.code(), Some(1), "{}", said(&read));
    let none: &[(&str, &str)] = &[("CUSIM_DEVICES", "0")];
    let cases: [(&[&str], Pairs, &str); 8] = [
        (&["--device", "cuda"], none, "finds no card"),
        (&["--device", "cuda:3"], &[], "finds no card 3, only those up to cuda:0"),
        (&["--device", "cuda:x"], &[], "expected auto, cpu, cuda or cuda:N"),
        (&["--device", "cuda", "--vram", "257MiB"], &[], "expected at most 268435456 bytes"),
        (&["--vram", "257MiB"], &[], "expected at most 268435456 bytes"),
        (&["--device", "cpu", "--vram", "1MiB"], &[], "uses none"),
        (&["--vram", "0"], &[], "expected bytes such as 6GiB"),
        (&["--vram", "4 gigs"], &[], "expected bytes such as 6GiB"),
    ];
    for (flags, variables, why) in cases {
        let Some(refused) = with_card(&run(&model, flags), variables) else { return };
        let error = said(&refused);
        assert!(refused.status.code() == Some(2) && error.contains(why), "{flags:?}: {error}");
    }
    let small = with_card(&run(&model, &["--device", "cuda", "--vram", "100000"]), &[]).unwrap();
    assert!(small.status.code() == Some(1) && said(&small).contains("raise --vram"), "{}", said(&small));
}

/// One allocation that is refused leads to a smaller share, all that are refused to the processor.
#[test]
fn memory_that_is_refused_leaves_the_processor() {
    let model = golden("gpt_neox");
    let wanted = answer(bantam(&run(&model, &["--device", "cpu"])));
    for n in ["1", "2", "3", "4", "5", "6"] {
        for (variable, who) in [("CUSIM_REFUSED", "cuda:0 (cusim)"), ("CUSIM_FULL", "the processor computes")]
        {
            let Some(run) = with_card(&run(&model, &["--device", "auto"]), &[(variable, n)]) else { return };
            assert_eq!(String::from_utf8_lossy(&run.stdout), wanted, "{variable} {n}: {}", said(&run));
            assert!(said(&run).contains(who), "{variable} {n}: {}", said(&run));
        }
    }
}

/// Every card with its memory, and what is not used with the reason.
#[test]
fn the_doctor_names_every_card() {
    let three =
        [("CUSIM_DEVICES", "3"), ("CUSIM_BYTES", "4294967296,,1073741824"), ("CUSIM_CAPABILITY", "8,6,9")];
    let Some(found) = with_card(&["doctor", "--json"], &three) else { return };
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    let cards = found["gpus"].as_array().unwrap();
    assert_eq!((cards.len(), &found["gpu"]), (3, &cards[0]));
    for (card, bytes) in [(0, 4u64 << 30), (2, 1 << 30)] {
        let expected =
            serde_json::json!({ "device": format!("cuda:{card}"), "name": "cusim", "bytes": bytes });
        assert_eq!(cards[card], expected);
    }
    assert!(
        cards[1]["absent"].as_str().unwrap().contains("compute capability 6.0, needed is 7.5"),
        "{found}"
    );
    let shown = answer(with_card(&["doctor"], &three).unwrap());
    for line in [
        "cuda:0: cusim, 4.00 GiB",
        "cuda:1: not used: cusim has compute capability 6.0,",
        "cuda:2: cusim, 1.00 GiB",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let none = with_card(&["doctor", "--json"], &[("CUSIM_DEVICES", "0")]).unwrap();
    let none: Value = serde_json::from_slice(&none.stdout).unwrap();
    assert!(none["gpu"]["absent"].as_str().unwrap().contains("finds no card"), "{none}");
    assert_eq!(none["gpus"], serde_json::json!([]));
}

/// What the driver does not do is said once, and costs nothing but time.
#[test]
fn a_driver_without_graphs_is_told_of_once() {
    let model = golden("gpt_neox");
    let wanted = answer(bantam(&run(&model, &["--device", "cpu"])));
    let cases: [(Pairs, usize); 2] = [(&[], 0), (&[("CUSIM_NO_GRAPH", "1")], 1)];
    for (variables, times) in cases {
        let Some(found) = with_card(&run(&model, &["--device", "cuda"]), variables) else { return };
        assert_eq!(String::from_utf8_lossy(&found.stdout), wanted, "{}", said(&found));
        let told = said(&found).matches("kernel by kernel (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)").count();
        assert_eq!(told, times, "{}", said(&found));
    }
}

#[test]
fn a_card_that_is_lost_ends_the_reply_with_an_error() {
    let model = golden("gpt_neox");
    let wanted = answer(bantam(&run(&model, &["--device", "cpu"])));
    // In the prompt, and after some tokens.
    for launches in ["5", "150"] {
        let lost = with_card(&run(&model, &["--device", "cuda"]), &[("CUSIM_LOST", launches)]);
        let Some(lost) = lost else { return };
        assert_eq!(lost.status.code(), Some(1));
        assert!(said(&lost).contains("the card failed at"), "{}", said(&lost));
        let begun = String::from_utf8_lossy(&lost.stdout).into_owned();
        assert!(wanted.starts_with(begun.trim_end()), "{begun} is the beginning of {wanted}");
    }
}

/// Bytes of the card by the daemon's own word: of its models, used, and those that may be.
fn on_card() -> [u64; 3] {
    let told = json(&["models", "--json"]);
    let models = told["models"].as_array().unwrap().iter();
    let of = |device: &Value| (device["device"] == "cuda:0").then(|| device.clone());
    let card = told["devices"].as_array().unwrap().iter().find_map(of).unwrap_or_default();
    let bytes = |value: &Value| value.as_u64().unwrap_or(0);
    let stands = models.map(|model| bytes(&model["on_cards"]["cuda:0"])).sum();
    [stands, bytes(&card["used_bytes"]), bytes(&card["budget_bytes"])]
}

#[test]
fn a_reply_goes_on_while_its_model_leaves_the_card_and_comes_back() {
    let Some(folder) = FOLDER.filter(|_| !skips_card()) else { return };
    let model = golden("gpt_neox");
    let mut long = run(&model, &[]);
    let count = long.iter().position(|flag| *flag == "--max-new-tokens").unwrap();
    long[count + 1] = "400";
    let context = long.iter().position(|flag| *flag == "--context").unwrap();
    long[context + 1] = "512";
    let wanted = answer(bantam(&long));
    let _served = Served::start_with(&["--models-device", "cuda"], &[("LD_LIBRARY_PATH", folder)]);
    let mut reply = program(&long).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut begun = [0];
    reply.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    let [whole, used, all] = on_card();
    assert!(whole > 0 && used == whole && all == 256 << 20, "{whole} {used} {all}");
    let part = (whole * 3 / 4).to_string();
    let mut was_running = false;
    for (budget, [least, most]) in
        [(part.as_str(), [1, whole * 3 / 4]), ("0", [0, 0]), ("256MiB", [whole, whole])]
    {
        let told = json(&["budget", budget, "--device", "cuda:0", "--json"]);
        was_running |= reply.try_wait().unwrap().is_none();
        let [stands, used, all] = on_card();
        assert!((least..=most).contains(&stands) && used == stands, "{budget}: {stands}, {told}");
        assert_eq!(told["devices"][1]["budget_bytes"].as_u64(), Some(all));
    }
    assert!(was_running, "it had ended before its model moved");
    let reply = reply.wait_with_output().unwrap();
    assert!(reply.status.success(), "{}", said(&reply));
    let text = String::from_utf8([&begun[..], &reply.stdout].concat()).unwrap();
    assert_eq!(text, wanted);
    for (arguments, why) in [
        (["budget", "1GiB", "--device", "cuda:0"], "expected at most 268435456, all that cuda:0 has"),
        (["budget", "1GiB", "--device", "cuda:7"], "expected \"ram\" or \"cuda:0\""),
        (["budget", "0", "--device", "ram"], "models need some"),
    ] {
        let refused = bantam(&arguments);
        assert!(!refused.status.success() && said(&refused).contains(why), "{}", said(&refused));
    }
    answer(bantam(&["unload", &model]));
    assert_eq!(on_card()[..2], [0, 0], "all is given back");
}

/// Room that is not needed changes nothing: what stands there stays, and nothing is taken anew.
#[test]
fn a_larger_budget_moves_no_model_that_has_room() {
    let Some(folder) = FOLDER.filter(|_| !skips_card()) else { return };
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("larger-budget.log");
    for (residency, budgets) in [("auto", ["64MiB", "65MiB"]), ("lru", ["5500KiB", "5500KiB"])] {
        let _ = fs::remove_file(&log);
        let flags = ["--models-device", "cuda", "--models-residency", residency];
        let variables = [("LD_LIBRARY_PATH", folder), ("CUSIM_LOG", log.to_str().unwrap())];
        let _served = Served::start_with(&flags, &variables);
        json(&["budget", budgets[0], "--device", "cuda:0", "--json"]);
        let models = if residency == "auto" { &["gpt_neox", "qwen3", "mixtral"][..] } else { &["gpt_neox"] };
        for model in models {
            answer(bantam(&["load", &golden(model), "--context", "64"]));
        }
        let allocations = || fs::read_to_string(&log).unwrap().lines().count();
        let before = (on_card()[0], allocations());
        assert!(before.0 > 0 && before.1 > 0, "{residency}: {before:?}");
        json(&["budget", budgets[1], "--device", "cuda:0", "--json"]);
        assert_eq!((on_card()[0], allocations()), before, "{residency}");
    }
}

#[test]
fn models_share_the_card() {
    let Some(folder) = FOLDER.filter(|_| !skips_card()) else { return };
    let [first, second] = ["gpt_neox", "qwen3"].map(golden);
    let _served = Served::start_with(&[], &[("LD_LIBRARY_PATH", folder)]);
    let load = |model: &str| {
        answer(bantam(&["load", model, "--context", "64"]));
        on_card()[0]
    };
    let one = load(&first);
    // What a card takes of main memory counts there.
    let plan = json(&["plan", &first, "--context", "64", "--json"]);
    let lines = plan["lines"].as_array().unwrap().iter();
    let beside = lines.filter(|line| line["name"].as_str().unwrap().contains("the card"));
    let beside: u64 = beside.map(|line| line["bytes"].as_u64().unwrap()).sum();
    let planned = plan["bytes"].as_u64().unwrap() + plan["generation_bytes"].as_u64().unwrap();
    let told = json(&["models", "--json"]);
    let [used, bytes] = [&told["devices"][0]["used_bytes"], &told["models"][0]["bytes"]];
    assert_eq!((used.as_u64(), bytes.as_u64()), (Some(planned), Some(planned)), "{told}");
    assert!(beside > 1 << 20, "{plan}");
    json(&["budget", &one.to_string(), "--device", "cuda:0", "--json"]);
    assert_eq!(load(&second), one, "the first has left nothing");
    json(&["budget", "200MiB", "--device", "cuda:0", "--json"]);
    let both = on_card()[0];
    assert!(both > one, "{both}");
    // The last used comes first.
    answer(bantam(&["load", &first]));
    json(&["budget", &one.to_string(), "--device", "cuda:0", "--json"]);
    assert_eq!(on_card()[..2], [one, one]);
}

#[test]
fn a_daemon_computes_on_a_card_and_outlives_it() {
    let Some(folder) = FOLDER.filter(|_| !skips_card()) else { return };
    let model = golden("gpt_neox");
    let ask = || bantam(&run(&model, &["--json"]));
    let ids = |output: Output| serde_json::from_str::<Value>(&answer(output)).unwrap()["ids"].clone();
    let wanted = json(&run(&model, &["--json", "--device", "cpu"]))["ids"].clone();
    let flags = ["--models-device", "cuda"];
    {
        let _served = Served::start_with(&flags, &[("LD_LIBRARY_PATH", folder)]);
        assert_eq!(ids(ask()), wanted);
        let models = json(&["models", "--json"]);
        let on_card = &models["models"][0]["on_cards"]["cuda:0"];
        assert!(on_card.as_u64().is_some_and(|bytes| bytes > 0), "{models}");
    }
    {
        let _served = Served::start_with(&flags, &[("LD_LIBRARY_PATH", folder), ("CUSIM_LOST", "150")]);
        let lost = ask();
        assert_eq!(lost.status.code(), Some(1));
        assert!(said(&lost).contains("the card failed at"), "{}", said(&lost));
        assert_eq!(on_card()[0], 0, "nothing stands on a card that is lost");
        assert_eq!(ids(ask()), wanted, "the next one is the processor's");
    }
    let _served = Served::start_with(&flags, &[("LD_LIBRARY_PATH", folder), ("CUSIM_DEVICES", "0")]);
    let refused = bantam(&["load", &model]);
    assert!(!refused.status.success() && said(&refused).contains("finds no card"), "{}", said(&refused));
}

/// Rows of ids and a file that trains an adapter on them.
fn training(folder: &Path) -> String {
    fs::create_dir_all(folder).unwrap();
    let row = |row: u32| {
        let ids: Vec<u32> = (0..10).map(|at| 5 + (row * 31 + at * 7) % 90).collect();
        format!("{}\n", serde_json::json!({ "input_ids": ids, "labels": ids }))
    };
    fs::write(folder.join("rows.jsonl"), (0..2).map(row).collect::<String>()).unwrap();
    let yaml = format!(
        "model_name_or_path: {}\ndataset_path: {}\ndataset_type: tokenized\noutput_dir: {}\nmax_steps: 1\n\
         overwrite_output_dir: true\nper_device_train_batch_size: 1\n",
        golden("llama-tied"),
        folder.join("rows.jsonl").display(),
        folder.join("out").display()
    );
    let file = folder.join("train.yaml");
    fs::write(&file, yaml).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A job of the daemon that asks is over.
fn over(runtime: &Runtime, client: &mut JobServiceClient<Channel>, job: &v1::Job) -> v1::Job {
    runtime.block_on(async {
        let watch = v1::WatchRequest { job_id: job.id.clone() };
        let (mut stream, mut last) = (client.watch(watch).await.unwrap().into_inner(), job.clone());
        while let Some(response) = stream.message().await.unwrap() {
            if let Some(Event::Job(job)) = response.event {
                last = job;
            }
        }
        last
    })
}

/// What a job may take of a card is off what models may have there, for as long as it is there.
#[test]
fn a_training_job_has_its_part_of_the_card_from_the_models() {
    let Some(driver) = FOLDER.filter(|_| !skips_card()) else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cards-job");
    let yaml =
        fs::read_to_string(training(&folder)).unwrap().replace("max_steps: 1\n", "max_steps: 100000\n");
    let _served = Served::start_with(&["--models-device", "cuda"], &[("LD_LIBRARY_PATH", driver)]);
    json(&["budget", "64MiB", "--device", "cuda:0", "--json"]);
    answer(bantam(&["load", &golden("gpt_neox"), "--context", "64"]));
    let [whole, used, all] = on_card();
    assert!(whole > 0 && used == whole && all == 64 << 20, "{whole} {used} {all}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = format!("unix:{}", serving::socket().unwrap().display());
    let mut client = runtime.block_on(async {
        let channel = Endpoint::new(socket).unwrap().connect().await.unwrap();
        JobServiceClient::new(channel)
    });
    let train = |client: &mut JobServiceClient<Channel>, vram: u64| {
        let settings =
            [("device", "cuda".to_owned()), ("vram", vram.to_string()), ("save_strategy", "no".to_owned())];
        let request = v1::TrainRequest {
            yaml: yaml.clone(),
            overrides: settings.map(|(key, value)| (key.to_owned(), value)).into(),
            folder: folder.display().to_string(),
        };
        runtime.block_on(client.train(request)).unwrap().into_inner().job.unwrap()
    };
    let refused = train(&mut client, all + 1);
    let refused = over(&runtime, &mut client, &refused);
    assert_eq!(refused.state(), v1::JobState::Failed);
    let why =
        format!("at most {all} bytes of cuda:0 (the {all} that models and runs may take of it together");
    assert!(
        refused.error.contains(&why) && refused.error.contains(&(all + 1).to_string()),
        "{}",
        refused.error
    );
    assert_eq!(on_card(), [whole, whole, all]);
    // Of what the model had, a half is left to it.
    let vram = all - whole / 2;
    let job = train(&mut client, vram);
    runtime.block_on(async {
        let watch = v1::WatchRequest { job_id: job.id.clone() };
        let mut stream = client.watch(watch).await.unwrap().into_inner();
        loop {
            match stream.message().await.unwrap().expect("it goes on").event {
                Some(Event::Progress(progress)) if progress.done > 0 => break,
                Some(Event::Job(job)) => assert_eq!(job.error, ""),
                _ => {}
            }
        }
    });
    let [stands, used, _] = on_card();
    assert!(stands <= whole / 2 && used == stands + vram, "{stands} and {vram} of {all}: {used}");
    runtime.block_on(client.cancel(v1::CancelRequest { job_id: job.id.clone() })).unwrap();
    assert_eq!(over(&runtime, &mut client, &job).state(), v1::JobState::Cancelled);
    assert_eq!(on_card(), [whole, whole, all], "the model is back");
}

#[test]
fn training_tells_of_its_card_beforehand_and_does_without() {
    let file = training(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("cards-training"));
    let show = |more: &[&str], variables: Pairs| {
        with_card(&[&["train", &file, "--dry-run", "--json"], more].concat(), variables)
    };
    let Some(shown) = show(&["--vram", "64MiB"], &[]) else { return };
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let (memory, there) = (&shown["memory"], &shown["memory"]["on_card"]);
    assert_eq!(there["card"], "cuda:0 (cusim)", "{memory}");
    assert_eq!(there["standing_bytes"], there["frozen_bytes"], "{memory}");
    assert_eq!(memory["parts"]["beside the card"], there["host_bytes"], "{memory}");
    assert!(there["bytes"].as_u64().is_some_and(|bytes| bytes < 64 << 20), "{memory}");
    let small = show(&["--vram", "1000"], &[]).unwrap();
    let small: Value = serde_json::from_slice(&small.stdout).unwrap();
    let why = small["memory"]["no_card"].as_str().unwrap_or_default();
    assert!(why.contains("no room") && why.ends_with("the processor computes"), "{small}");
    let without = json(&["train", &file, "--dry-run", "--json", "--device", "cpu"]);
    assert_eq!((&without["memory"]["on_card"], &without["memory"]["no_card"]), (&Value::Null, &Value::Null));
    // What stands in for a card is slower than anything.
    let trained = with_card(&["train", &file, "--device", "cuda"], &[]).unwrap();
    let told = said(&trained);
    assert!(trained.status.success(), "{told}");
    assert!(told.contains("is no faster with these matrices: the processor computes"), "{told}");
    for (variables, flags, why) in [
        (&[("CUSIM_DEVICES", "0")][..], &["--device", "cuda"][..], "finds no card"),
        (&[], &["--device", "cuda:7"], "finds no card 7"),
        (&[], &["--device", "cuda", "--vram", "1000"], "has no room"),
        (&[], &["--device", "gpu"], "expected auto, cpu, cuda or cuda:N"),
    ] {
        let refused = with_card(&[&["train", &file], flags].concat(), variables).unwrap();
        assert!(!refused.status.success() && said(&refused).contains(why), "{flags:?}: {}", said(&refused));
    }
}
