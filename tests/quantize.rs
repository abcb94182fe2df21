//! Checkpoints that are quantized here, beside those that the original tools made of the same weights.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Engine, StepError, stored};
use bantam_model::inspect::unquantized;
use bantam_model::plan::Plan;
use bantam_model::source::Source;
use bantam_quantize::blueprint::Blueprint;
use bantam_quantize::form::{Fit, Form, Head};
use bantam_quantize::report::Report;
use bantam_quantize::run::{Manner, Run, SHARD_BYTES};
use bantam_quantize::work::Begin;
use bantam_tests::{floats, model_folder, open, options, repository};
use serde_json::Value;

const MANNER: Manner =
    Manner { threads: 2, shard_bytes: SHARD_BYTES, begin: Begin { force: false, restart: false } };

const NF4: Form = Form::FourBit { normal: true, nested: true };

/// A folder for one test, gone when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("quantize-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the target folder can be written");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn quantize(base: &Path, form: Form, output: &Path, manner: Manner) -> Result<Report, String> {
    quantize_with(base, form, None, output, manner)
}

/// Heads are made in stretches that do not divide any vocabulary.
fn quantize_with(
    base: &Path,
    form: Form,
    head: Option<Head>,
    output: &Path,
    manner: Manner,
) -> Result<Report, String> {
    let source = Source::open(base).map_err(|error| error.to_string())?;
    let work = || -> Result<Report, bantam_quantize::error::QuantizeError> {
        let mut blueprint = Blueprint::new(&source, form)?;
        if let Some(head) = head {
            blueprint = blueprint.with_head(head)?;
            blueprint.head_rows = 37;
        }
        let mut run = Run::open(&blueprint, output, &Value::Null, manner)?.expect("it is not finished");
        run.nearest(&mut |_| ())?;
        run.assemble(0.0, &mut |_| ())?;
        let report = Report::new(&run);
        run.publish()?;
        Ok(report)
    };
    work().map_err(|error| error.to_string())
}

/// The tensors of `found` that `golden` has too are the same, and it has all of those; nothing is asked of tensors
/// that no tool quantizes.
fn check_same_bytes(name: &str, found: &Checkpoint, golden: &Checkpoint, endings: &[&str]) {
    let of = |checkpoint: &Checkpoint| -> BTreeSet<String> {
        checkpoint.tensors().map(|tensor| tensor.name.to_owned()).collect()
    };
    assert_eq!(of(found), of(golden), "{name}");
    let mut seen = 0;
    for wanted in golden.tensors().filter(|tensor| endings.iter().any(|ending| tensor.name.ends_with(ending)))
    {
        let made = found.tensor(wanted.name).expect("both have the same names");
        assert_eq!((made.dtype, made.shape), (wanted.dtype, wanted.shape), "{name} {}", wanted.name);
        if made.data != wanted.data {
            let at = made.data.iter().zip(wanted.data).position(|(a, b)| a != b);
            panic!("{name} {}: byte {at:?} differs", wanted.name);
        }
        seen += 1;
    }
    assert!(seen >= 8, "{name}: {seen} tensors");
}

fn settings(folder: &Path) -> Value {
    let config = std::fs::read(folder.join("config.json")).expect("a config.json");
    let config: Value = serde_json::from_slice(&config).expect("sound JSON");
    config["quantization_config"].clone()
}

#[test]
fn bitsandbytes_writes_the_same_bytes() {
    let folder = Folder::new("bitsandbytes");
    let plain = |normal| Form::FourBit { normal, nested: false };
    for (name, base, form) in [
        ("bnb-nf4-dq-llama", "llama-tied", NF4),
        ("bnb-nf4-dq-qwen2", "qwen2", NF4),
        ("bnb-nf4-dq-gpt_neox", "gpt_neox", NF4),
        ("bnb-nf4-llama", "llama-tied", plain(true)),
        ("bnb-fp4-llama", "llama-tied", plain(false)),
        ("bnb-int8-llama", "llama-tied", Form::Int8),
        ("bnb-int8-gpt_neox", "gpt_neox", Form::Int8),
    ] {
        let output = folder.0.join(name);
        quantize(&model_folder(base), form, &output, MANNER).expect("it can be quantized");
        let found = Checkpoint::open(&output).expect("it opens");
        let golden = repository("tests/goldens/quant").join(name);
        let endings: &[&str] = match form {
            Form::Int8 => &["_proj.weight", ".SCB", ".weight_format"],
            _ => &["_proj.weight", "absmax", "quant_map", "__nf4", "__fp4"],
        };
        let golden_file = Checkpoint::open(&golden.join("model.safetensors")).expect("the golden opens");
        // An old tool's buffers are copied, and tools leave them out.
        if base != "gpt_neox" {
            check_same_bytes(name, &found, &golden_file, endings);
            assert_eq!(settings(&output), settings(&golden), "{name}");
        } else {
            for wanted in golden_file.tensors().filter(|tensor| tensor.dtype.bytes() == 1) {
                let made = found.tensor(wanted.name).expect("the tensor was made");
                assert_eq!((made.shape, made.data), (wanted.shape, wanted.data), "{name} {}", wanted.name);
            }
        }
    }
}

#[test]
fn stacked_experts_become_the_same_mxfp4() {
    let folder = Folder::new("mxfp4");
    let output = folder.0.join("made");
    quantize(&model_folder("gpt_oss-bf16"), Form::Mxfp4, &output, MANNER).expect("it can be quantized");
    let found = Checkpoint::open(&output).expect("it opens");
    let golden =
        Checkpoint::open(&model_folder("gpt_oss-mxfp4").join("model.safetensors")).expect("it opens");
    check_same_bytes("mxfp4", &found, &golden, &["_blocks", "_scales", "norm.weight", "bias"]);
}

#[test]
fn hqq_finds_nearly_the_same() {
    let folder = Folder::new("hqq");
    for (name, base, bits, group) in [
        ("hqq-4b-g64-llama", "llama-tied", 4, 64),
        ("hqq-3b-g64-llama", "llama-tied", 3, 64),
        ("hqq-2b-g32-llama", "llama-tied", 2, 32),
    ] {
        let output = folder.0.join(name);
        quantize(&model_folder(base), Form::Hqq { bits, group }, &output, MANNER)
            .expect("it can be quantized");
        let found = Checkpoint::open(&output).expect("it opens");
        let golden = repository("tests/goldens/quant").join(name);
        assert_eq!(settings(&output), settings(&golden), "{name}");
        let golden = Checkpoint::open(&golden.join("model.safetensors")).expect("the golden opens");
        for wanted in golden.tensors() {
            let made = found.tensor(wanted.name).unwrap_or_else(|| panic!("{name} without {}", wanted.name));
            assert_eq!(made.shape, wanted.shape, "{name} {}", wanted.name);
            let is_norm = wanted.name.contains("norm") || wanted.name.contains("embed");
            if wanted.name.ends_with(".scale") || wanted.name.ends_with(".zero") {
                let (a, b) = (floats(&found, wanted.name), floats(&golden, wanted.name));
                let off = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > 1e-3 * b.abs().max(1.0)).count();
                assert!(off * 30 <= a.len(), "{name} {}: {off} of {}", wanted.name, a.len());
            } else if wanted.name.ends_with(".W_q") {
                let off = made.data.iter().zip(wanted.data).filter(|(a, b)| a != b).count();
                assert!(off * 30 <= made.data.len(), "{name} {}: {off} of {}", wanted.name, made.data.len());
            } else if !is_norm {
                assert_eq!(made.data, wanted.data, "{name} {}", wanted.name);
            }
        }
    }
}

/// What our own readers make of a file is what the method meant, which its loss tells.
#[test]
fn every_form_is_read_as_it_was_meant() {
    let folder = Folder::new("read");
    let gptq = |bits, group, symmetric| Form::Gptq { bits, group, symmetric, act_order: false };
    let ternary = |group, planes, fit| Form::Ternary { group, planes, fit };
    let awq = |group| Form::Awq { group, zero_point: true };
    let symmetric = Form::Awq { group: Some(64), zero_point: false };
    for (number, (base, form, most)) in [
        ("llama-untied", NF4, 0.05),
        ("mixtral", NF4, 0.05),
        ("phi3", Form::Int8, 0.002),
        ("qwen3", gptq(4, Some(32), true), 0.05),
        ("llama-tied", gptq(2, Some(64), false), 0.6),
        ("llama-tied", gptq(3, None, true), 0.4),
        ("gpt_neox", gptq(8, Some(128), false), 0.002),
        ("gemma2", awq(Some(64)), 0.05),
        ("llama-tied", awq(None), 0.2),
        ("gemma2", symmetric, 0.05),
        ("gemma3", Form::Hqq { bits: 8, group: 64 }, 0.002),
        ("llama-tied", ternary(Some(64), 1, Fit::Absmean), 0.7),
        ("llama-tied", ternary(Some(64), 1, Fit::Optimal), 0.5),
        ("mistral", ternary(Some(64), 2, Fit::Optimal), 0.25),
        ("gpt_oss-bf16", ternary(None, 1, Fit::Optimal), 0.5),
        ("gpt_oss-mxfp4", ternary(Some(64), 1, Fit::Optimal), 0.5),
    ]
    .into_iter()
    .enumerate()
    {
        let (base_folder, output) = (model_folder(base), folder.0.join(number.to_string()));
        let name = format!("{base} as {form:?}");
        let report =
            quantize(&base_folder, form, &output, MANNER).unwrap_or_else(|error| panic!("{name}: {error}"));
        let found = error_as_read(&base_folder, &output);
        let told = report.all.loss.relative();
        println!("{name}: {told:.3e}, {:.3} bits", report.all.bits());
        assert!((found / told - 1.0).abs() < 1e-4, "{name}: {found} as read, {told} as told");
        assert!(told < most, "{name}: {told}");
        let (spec, checkpoint) = open(&output);
        let mut engine = Engine::load(spec, &checkpoint, options(), Cpu::detect(), 2).expect("it loads");
        let sequence = engine.open().expect("a free sequence");
        engine.prefill::<StepError>(sequence, &[1, 2, 3], |_, _, _| Ok(())).expect("it runs");
        assert!(engine.logits(&[2]).iter().all(|logit| logit.is_finite()), "{name}");
    }
}

#[test]
fn a_head_of_few_bits_is_read_and_told_apart() {
    let folder = Folder::new("head");
    let form = Form::Ternary { group: Some(64), planes: 1, fit: Fit::Optimal };
    let plain = quantize(&model_folder("llama-untied"), form, &folder.0.join("plain"), MANNER);
    let plain = plain.expect("it can be quantized");
    for (base, embedding, head, most, bits) in [
        ("llama-untied", "lm_head", Head::Int8, 5e-4, 8.6),
        ("llama-untied", "lm_head", Head::Int4, 0.02, 4.4),
        // One table is two from now on.
        ("llama-tied", "model.embed_tokens", Head::Int8, 5e-4, 8.6),
        ("gpt_oss-mxfp4", "lm_head", Head::Int4, 0.02, 4.4),
    ] {
        let name = format!("{base}, {head:?}");
        let (base, output) = (model_folder(base), folder.0.join(&name));
        let report = quantize_with(&base, form, Some(head), &output, MANNER).expect("it can be quantized");
        let told = report.head.as_ref().expect("the report knows a head");
        assert!(told.bits() < bits && told.loss.relative() < most, "{name}: {told:?}");
        assert!(!report.kinds.contains_key("lm_head"), "{name}: it is no matrix of the layers");
        if base == model_folder("llama-untied") {
            assert_eq!((&report.all, report.bits_per_weight()), (&plain.all, plain.bits_per_weight()));
        }
        let (original, (spec, made)) = (Source::open(&base).expect("the golden opens"), open(&output));
        assert!(!spec.tied, "{name}");
        let wanted = floats(&original.checkpoint, &format!("{embedding}.weight"));
        let plan = Plan::new(&spec, stored(&made), options(), Cpu::detect()).expect("it can be planned");
        let found = unquantized(&made, &plan, "lm_head").expect("sound weights").expect("it is quantized");
        let mut read = vec![0.0; wanted.len()];
        found.view().read_f32(0, &mut read);
        let square = |value: f32| f64::from(value).powi(2);
        let error: f64 = wanted.iter().zip(&read).map(|(a, b)| square(a - b)).sum();
        let found = error / wanted.iter().map(|value| square(*value)).sum::<f64>();
        let told = told.loss.relative();
        assert!((found / told - 1.0).abs() < 1e-4, "{name}: {found} as read, {told} as told");
        let mut engine = Engine::load(spec, &made, options(), Cpu::detect(), 2).expect("it loads");
        let sequence = engine.open().expect("a free sequence");
        engine.prefill::<StepError>(sequence, &[1, 2, 3], |_, _, _| Ok(())).expect("it runs");
        assert!(engine.logits(&[2]).iter().all(|logit| logit.is_finite()), "{name}");
    }
    let refused =
        quantize_with(&model_folder("llama-tied"), NF4, Some(Head::Int8), &folder.0.join("no"), MANNER);
    let message = refused.expect_err("bitsandbytes leaves heads");
    assert!(message.contains("nf4") && message.contains("ternary"), "{message}");
}

/// The relative squared error of all quantized matrices, as the readers tell it.
fn error_as_read(base: &Path, output: &Path) -> f64 {
    let source = Source::open(base).expect("the golden opens");
    let (spec, checkpoint) = open(output);
    let plan = Plan::new(&spec, stored(&checkpoint), options(), Cpu::detect()).expect("it can be planned");
    let (mut error, mut square) = (0.0, 0.0);
    for module in bantam_model::inventory::modules(&source).expect("the golden is sound") {
        let Some(found) = unquantized(&checkpoint, &plan, &module.name).expect("sound weights") else {
            continue;
        };
        let mut read = vec![0.0; found.view().elements()];
        found.view().read_f32(0, &mut read);
        let (rows, columns) = (module.shape.rows, module.shape.columns);
        let mut values = Vec::new();
        for expert in 0..module.experts.unwrap_or(1) {
            module.read(&source.checkpoint, expert, &mut values).expect("sound weights");
            for (at, value) in values.iter().enumerate() {
                // Experts are told with inputs first.
                let at = match module.experts {
                    Some(_) => expert * rows * columns + at % columns * rows + at / columns,
                    None => at,
                };
                error += f64::from(value - read[at]).powi(2);
                square += f64::from(*value).powi(2);
            }
        }
    }
    error / square
}

#[test]
fn shards_and_threads_change_nothing_but_files() {
    let folder = Folder::new("shards");
    let base = model_folder("llama-tied");
    let [one, many] = ["one", "many"].map(|name| folder.0.join(name));
    quantize(&base, NF4, &one, Manner { threads: 1, ..MANNER }).expect("it can be quantized");
    quantize(&base, NF4, &many, Manner { shard_bytes: 100_000, threads: 3, ..MANNER })
        .expect("it can be quantized");
    assert!(many.join("model.safetensors.index.json").is_file() && !many.join("model.safetensors").exists());
    let (one, many) = (Checkpoint::open(&one).expect("it opens"), Checkpoint::open(&many).expect("it opens"));
    assert_eq!(one.tensors().len(), many.tensors().len());
    for (a, b) in one.tensors().zip(many.tensors()) {
        assert_eq!((a.name, a.dtype, a.shape, a.data), (b.name, b.dtype, b.shape, b.data));
    }
    assert!(many.files().count() > 3);
}

#[test]
fn what_cannot_be_done_is_refused_with_words() {
    let folder = Folder::new("refused");
    let output = folder.0.join("made");
    let base = model_folder("llama-tied");
    let refused = |base: &Path, form: Form, output: &Path, words: &[&str]| {
        let message = quantize(base, form, output, MANNER).expect_err("it is refused");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    let awq = Form::Awq { group: Some(96), zero_point: true };
    refused(&base, awq, &output, &["q_proj", "multiple of 96", "--group-size"]);
    refused(&base, Form::Mxfp4, &output, &["mxfp4", "choose"]);
    refused(&model_folder("gpt_oss-mxfp4"), NF4, &output, &["experts", "already", "original"]);
    refused(&base, NF4, &folder.0.join("none/made"), &["create it first"]);
    std::fs::write(folder.0.join("file"), "x").expect("written");
    refused(&base, NF4, &folder.0.join("file"), &["new folder", "another file"]);
    assert!(!output.exists() && !folder.0.join("made.partial").exists(), "nothing was begun");

    std::fs::create_dir(&output).expect("made");
    std::fs::write(output.join("letter.txt"), "kept").expect("written");
    refused(&base, NF4, &output, &["--force"]);
    let force = Manner { begin: Begin { force: true, restart: false }, ..MANNER };
    let message = quantize(&base, NF4, &output, force).expect_err("no model stands there");
    assert!(message.contains("config.json"), "{message}");
    assert_eq!(std::fs::read(output.join("letter.txt")).expect("still there"), b"kept");
    std::fs::remove_file(output.join("letter.txt")).expect("removed");

    quantize(&base, NF4, &output, MANNER).expect("an empty folder is no obstacle");
    quantize(&base, Form::Int8, &output, force).expect("a model is replaced where that is asked for");
    assert_eq!(settings(&output)["load_in_8bit"], true);
    assert!(!folder.0.join("made.partial").exists(), "nothing is left");
}

#[test]
fn unfinished_work_is_taken_up_only_with_the_same_settings() {
    let folder = Folder::new("unfinished");
    let output = folder.0.join("made");
    let source = Source::open(&model_folder("llama-tied")).expect("the golden opens");
    let blueprint = Blueprint::new(&source, NF4).expect("it can be done");
    let mut run =
        Run::open(&blueprint, &output, &Value::Null, MANNER).expect("it begins").expect("unfinished");
    run.nearest(&mut |_| ()).expect("it is done");
    let busy = Run::open(&blueprint, &output, &Value::Null, MANNER).expect_err("one at a time");
    assert!(busy.to_string().contains("another process"), "{busy}");
    drop(run);
    let message =
        quantize(&model_folder("llama-tied"), Form::Int8, &output, MANNER).expect_err("another form");
    assert!(message.contains("--restart") && message.contains("Int8"), "{message}");

    // A damaged part is made again, a sound one is not.
    let parts = folder.0.join("made.partial/parts");
    let path = parts.join("00003-00000.safetensors");
    let mut bytes = std::fs::read(&path).expect("the part is there");
    *bytes.last_mut().expect("it has bytes") ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let mut again = Vec::new();
    let mut run =
        Run::open(&blueprint, &output, &Value::Null, MANNER).expect("it goes on").expect("unfinished");
    run.nearest(&mut |event| {
        if let bantam_quantize::run::Event::Matrix { again: false, name, .. } = event {
            again.push(name.to_owned());
        }
    })
    .expect("it is done");
    assert_eq!(again.len(), 1, "{again:?}");
    drop(run);
    let restart = Manner { begin: Begin { force: false, restart: true }, ..MANNER };
    quantize(&model_folder("llama-tied"), Form::Int8, &output, restart).expect("it begins anew");
    assert_eq!(settings(&output)["load_in_8bit"], true);
}
