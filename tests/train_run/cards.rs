//! Runs with a card beside the processor, beside runs without. The card is a stand-in (`tests/cusim`) unless
//! `REQUIRE_GPU=1`; it is slow, so what is to be computed there is said instead of measured.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_cuda::OneOf;
use bantam_cusim::{child, is_child, requires_card, skips_card};
use bantam_model::card::Passage;
use bantam_model::checkpoint::Checkpoint;
use bantam_tests::{floats, model_folder, repository};
use bantam_train::run::{self, Machine, RunError, Share};

use crate::scratch::{Run, Scratch};

/// Two steps whose changes are as long as their gradients: with Adam's first steps a gradient's sign would count.
const STEPS: &str = "optim: sgd\nlearning_rate: 0.5\nlora_rank: 4\nmax_steps: 2\nlogging_steps: 1\n\
    gradient_accumulation_steps: 1\nper_device_train_batch_size: 1\n";
/// Of the largest number: float32 sums in another order, through two steps.
const TOLERANCE: f32 = 2e-4;

/// Everything goes there that may.
fn with_card() -> Machine<'static> {
    Machine { passage: Passage::From(1), ..Machine::from((Cpu::detect(), 2)).beside(Some(&OneOf(0))) }
}

fn share(scratch: &Scratch, model: &Path, yaml: &str) -> Share {
    let (settings, source, prepared) = scratch.begin(model, "share", yaml);
    let forecast = run::forecast(&settings, &source, &prepared, with_card()).unwrap();
    forecast.card.unwrap_or_else(|| panic!("{:?}", forecast.no_card)).1
}

/// A setting with which a third of the weights stand there, and the rest passes.
fn tiny(scratch: &Scratch, model: &Path, yaml: &str) -> String {
    let all = share(scratch, model, yaml);
    assert_eq!((all.frozen[0], part(&all, "weights that pass")), (all.frozen[1], 0));
    for least in 1..200 {
        let vram = all.bytes() - all.frozen[0] * 2 / 3 + all.frozen[0] * least / 10;
        let yaml = format!("{yaml}vram: {vram}\n");
        let some = share(scratch, model, &yaml);
        if part(&some, "weights that pass") > 0 {
            assert!(some.bytes() <= vram && some.frozen[1] < some.frozen[0], "{some:?}");
            return yaml;
        }
    }
    panic!("nothing passes in any memory")
}

fn part(share: &Share, name: &str) -> u64 {
    share.parts.iter().find(|(what, _)| *what == name).unwrap().1
}

fn adapter(run: &Run) -> Vec<(String, Vec<f32>)> {
    let of = Checkpoint::open(&run.output.join("adapter_model.safetensors")).unwrap();
    let names: Vec<String> = of.tensors().map(|tensor| tensor.name.to_owned()).collect();
    names.into_iter().map(|name| (name.clone(), floats(&of, &name))).collect()
}

/// Losses and adapters within what sums in another order make.
fn check_close(what: &str, found: &Run, wanted: &Run) {
    for (found, wanted) in found.seen.losses.iter().zip(&wanted.seen.losses) {
        assert!(
            (found - wanted).abs() < f64::from(TOLERANCE) * wanted.abs(),
            "{what}: {found}, not {wanted}"
        );
    }
    assert_eq!(found.seen.losses.len(), wanted.seen.losses.len(), "{what}");
    let (found, wanted) = (adapter(found), adapter(wanted));
    assert!(!wanted.is_empty() && found.len() == wanted.len(), "{what}");
    for ((name, found), (_, wanted)) in found.iter().zip(&wanted) {
        let most = wanted.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
        let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE * most, "{what}: {name}: {worst} of {most}");
    }
}

/// A file that the stand-in writes.
fn file(test: &str, kind: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.{kind}", test.replace("::", "-")))
}

fn notes(run: &Run, words: &str) -> bool {
    run.seen.notes.iter().any(|note| note.contains(words))
}

/// In a process of its own, whose calls of the driver are written down.
fn is_watched(test: &str, kind: &str, variable: &str) -> bool {
    let file = file(test, kind);
    let _ = fs::remove_file(&file);
    is_child(test, &[(variable, file.to_str().unwrap())])
}

fn check_model(test: &str, model: &Path, yaml: &str, kernel: &str) {
    if !is_watched(test, "calls", "CUSIM_CALLS") {
        return;
    }
    let scratch = Scratch::new(&test.replace("::", "-"));
    let yaml = format!("{STEPS}{yaml}");
    let wanted = scratch.train_over(model, "wanted", &yaml, None).unwrap();
    for (name, yaml) in [("whole", yaml.clone()), ("ring", tiny(&scratch, model, &yaml))] {
        let before = calls(test);
        let found = scratch.train_on(model, name, &yaml, None, with_card()).unwrap();
        assert!(notes(&found, "stand there; it computes"), "{:?}", found.seen.notes);
        check_close(name, &found, &wanted);
        if !requires_card() {
            let [there, back] = [kernel, "float_product"].map(|kernel| {
                let count = |calls: &str| calls.matches(kernel).count();
                count(&calls(test)) - count(&before)
            });
            assert!(there > 0 && back > 0, "{name}: {there} and {back} products");
        }
    }
}

fn calls(test: &str) -> String {
    fs::read_to_string(file(test, "calls")).unwrap_or_default()
}

/// In bfloat16, in the model's files: tiles are made on the way.
#[test]
fn adapters_of_a_llama_are_the_processors() {
    check_model("cards::adapters_of_a_llama_are_the_processors", &model_folder("llama-tied"), "", "wide_");
}

/// Codes of four bits, two of which are a scale's (QLoRA), and lengths: the products before they get them count, too.
#[test]
fn adapters_over_four_bits_with_lengths_are_the_processors() {
    const TEST: &str = "cards::adapters_over_four_bits_with_lengths_are_the_processors";
    let yaml = "quantization_bit: 4\nuse_dora: true\nlora_dropout: 0.1\n";
    check_model(TEST, &model_folder("llama-untied"), yaml, "coded_float");
}

#[test]
fn adapters_of_a_mixture_in_mxfp4_are_the_processors() {
    const TEST: &str = "cards::adapters_of_a_mixture_in_mxfp4_are_the_processors";
    check_model(TEST, &model_folder("gpt_oss-mxfp4"), "lora_target: q_proj,o_proj\n", "coded_float");
}

#[test]
fn adapters_of_a_mixtures_experts_are_the_processors() {
    const TEST: &str = "cards::adapters_of_a_mixtures_experts_are_the_processors";
    check_model(TEST, &model_folder("mixtral"), "lora_target: mlp_only\n", "wide_");
}

/// Parts of one tensor, in float16.
#[test]
fn adapters_of_a_gpt_neox_are_the_processors() {
    check_model("cards::adapters_of_a_gpt_neox_are_the_processors", &model_folder("gpt_neox"), "", "wide_");
}

/// A quantized matrix whose columns stand in an order of their own.
#[test]
fn adapters_over_columns_in_another_order_are_the_processors() {
    const TEST: &str = "cards::adapters_over_columns_in_another_order_are_the_processors";
    check_model(TEST, &repository("tests/goldens/quant/gptq-4b-g128-desc-llama"), "", "coded_float");
}

/// What is said is what is taken, and nothing is taken later.
#[test]
fn the_bytes_that_are_said_are_those_that_are_taken() {
    const TEST: &str = "cards::the_bytes_that_are_said_are_those_that_are_taken";
    if skips_card() || !is_watched(TEST, "log", "CUSIM_LOG") {
        return;
    }
    let (scratch, model) = (Scratch::new("said-on-card"), model_folder("llama-tied"));
    let whole = STEPS.to_owned();
    for (name, yaml) in [("whole", whole.clone()), ("ring", tiny(&scratch, &model, &whole))] {
        let share = share(&scratch, &model, &yaml);
        let log = file(TEST, "log");
        assert!(!log.exists(), "nothing is taken to know that");
        let run = scratch.train_on(&model, name, &yaml, None, with_card()).unwrap();
        assert_eq!(run.seen.losses.len(), 2);
        let log_text = fs::read_to_string(&log).unwrap();
        let taken = |kind: &str| -> u64 {
            let lines =
                log_text.lines().filter_map(|line| line.strip_prefix(kind)?.trim().parse::<u64>().ok());
            lines.sum()
        };
        assert_eq!([taken("device"), taken("host")], [share.bytes(), share.host_bytes], "{name}: {log_text}");
        fs::remove_file(&log).unwrap();
    }
}

#[test]
fn a_run_that_goes_on_with_the_same_card_has_the_same_bits() {
    const TEST: &str = "cards::a_run_that_goes_on_with_the_same_card_has_the_same_bits";
    if !is_child(TEST, &[]) {
        return;
    }
    let (scratch, model) = (Scratch::new("card-again"), model_folder("llama-tied"));
    let yaml =
        "learning_rate: 0.01\nlora_rank: 4\nmax_steps: 2\nsave_steps: 1\nper_device_train_batch_size: 1\n";
    let yaml = tiny(&scratch, &model, yaml);
    let train = |name: &str, end| scratch.train_on(&model, name, &yaml, end, with_card()).unwrap();
    let whole = train("whole", None);
    train("parts", Some(1));
    // From how many rows on the card computes was measured then, and not now.
    let otherwise = Machine { passage: Passage::From(1000), ..with_card() };
    let resumed = scratch.train_on(&model, "parts", &yaml, None, otherwise).unwrap();
    assert_eq!(resumed.seen.losses, whole.seen.losses[1..]);
    let weights = "adapter_model.safetensors";
    assert!(whole.bytes(weights) == resumed.bytes(weights), "a resumed run differs");
    // What stands there and what passes has the same bits, too.
    let all = yaml.lines().filter(|line| !line.starts_with("vram")).collect::<Vec<_>>().join("\n");
    let all = scratch.train_on(&model, "all", &all, None, with_card()).unwrap();
    assert!(whole.bytes(weights) == all.bytes(weights), "where a matrix stands makes other bits");
    let state = whole.json("checkpoint-2/bantam_state.json");
    assert_eq!((&state["card"]["from"][0], &state["card"]["from"][1]), (&1.into(), &1.into()), "{state}");
}

#[test]
fn a_card_that_is_lost_leaves_the_run_to_the_processor() {
    const TEST: &str = "cards::a_card_that_is_lost_leaves_the_run_to_the_processor";
    if skips_card() {
        return;
    }
    let (scratch, model) = (Scratch::new("card-lost"), model_folder("llama-tied"));
    if env::var_os("CUSIM_LOST").is_none() {
        // Before the first product, on the way there, on the way back, in a later step.
        for launches in ["0", "3", "40", "110"] {
            if let Some((passed, said)) = child(TEST, &[("CUSIM_LOST", launches)]) {
                assert!(passed, "after {launches} launches:\n{said}");
            }
        }
        return;
    }
    let wanted = scratch.train_over(&model, "wanted", STEPS, None).unwrap();
    let yaml = tiny(&scratch, &model, STEPS);
    let found = scratch.train_on(&model, "lost", &yaml, None, with_card()).unwrap();
    assert!(notes(&found, "the card failed at"), "{:?}", found.seen.notes);
    assert!(notes(&found, "the processor computes from here on"), "{:?}", found.seen.notes);
    check_close("lost", &found, &wanted);
    assert!(found.outcome.is_done && found.output.join("adapter_config.json").exists());
}

/// One allocation that is refused, and all from one on: whichever it is, the run is whole.
#[test]
fn memory_that_a_card_refuses_leaves_the_run_to_the_processor() {
    const TEST: &str = "cards::memory_that_a_card_refuses_leaves_the_run_to_the_processor";
    if skips_card() {
        return;
    }
    if env::var_os("CUSIM_REFUSED").or_else(|| env::var_os("CUSIM_FULL")).is_none() {
        for variable in ["CUSIM_REFUSED", "CUSIM_FULL"] {
            for n in 1..=12 {
                if let Some((passed, said)) = child(TEST, &[(variable, &n.to_string())]) {
                    assert!(passed, "{variable} {n}:\n{said}");
                }
            }
        }
        return;
    }
    let (scratch, model) = (Scratch::new("card-full"), model_folder("llama-tied"));
    let once = STEPS.replace("max_steps: 2", "max_steps: 1");
    let wanted = scratch.train_over(&model, "wanted", &once, None).unwrap();
    let yaml = tiny(&scratch, &model, &once);
    let found = scratch.train_on(&model, "full", &yaml, None, with_card()).unwrap();
    check_close("full", &found, &wanted);
    let is_there = notes(&found, "stand there; it computes");
    assert!(is_there || notes(&found, "the processor computes"), "{:?}", found.seen.notes);
    // A ring that is refused leaves what stands there; all else the processor, with the bits that it has alone.
    let first: usize =
        ["CUSIM_REFUSED", "CUSIM_FULL"].iter().find_map(|name| env::var(name).ok()?.parse().ok()).unwrap();
    assert_eq!(is_there, first > 6, "{:?}", found.seen.notes);
    if !is_there {
        let weights = "adapter_model.safetensors";
        assert!(found.bytes(weights) == wanted.bytes(weights), "other bits");
        let must = format!("{yaml}device: cuda\n");
        let refused = scratch.train_on(&model, "must", &must, None, with_card());
        // The one that was refused is behind us.
        assert_eq!(refused.is_err(), env::var_os("CUSIM_FULL").is_some());
        if let Err(error) = refused {
            assert!(matches!(error, RunError::Card(_)), "{error}");
            assert!(error.to_string().contains("or compute with device: cpu"), "{error}");
        }
    }
}

#[test]
fn without_a_card_the_processor_computes_or_it_is_said_why_not() {
    const TEST: &str = "cards::without_a_card_the_processor_computes_or_it_is_said_why_not";
    if skips_card() || !is_child(TEST, &[("CUSIM_DEVICES", "0")]) {
        return;
    }
    let (scratch, model) = (Scratch::new("card-none"), model_folder("llama-tied"));
    let wanted = scratch.train_over(&model, "wanted", STEPS, None).unwrap();
    let found = scratch.train_on(&model, "auto", STEPS, None, with_card()).unwrap();
    let weights = "adapter_model.safetensors";
    assert!(found.bytes(weights) == wanted.bytes(weights) && found.seen.losses == wanted.seen.losses);
    let must = scratch.train_on(&model, "must", &format!("{STEPS}device: cuda:0\n"), None, with_card());
    let error = must.unwrap_err().to_string();
    assert!(error.contains("finds no card") && error.contains("device: cpu"), "{error}");
    assert!(!scratch.0.join("must").join("checkpoint-2").exists());
    for (yaml, words) in [
        ("device: gpu\n", "expected auto, cpu, cuda or cuda:N"),
        ("device: cuda:x\n", "expected auto, cpu, cuda or cuda:N"),
        ("vram: much\n", "expected bytes, found much"),
        ("device: cpu\nvram: 1GiB\n", "device: cpu uses none"),
    ] {
        let said = scratch.refused(yaml);
        assert!(said.contains(words), "{yaml}: {said}");
    }
}
