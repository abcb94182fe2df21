//! Steps of training against those of torch, transformers and peft in float32: losses, gradients of every parameter,
//! and weights after steps of AdamW and Muon.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::Chunk;
use bantam_model::formats::on_load::{OnLoad, way};
use bantam_model::source::Source;
use bantam_tests::{floats, options, repository};
use bantam_train::optimizer::schedule::{Schedule, Shape};
use bantam_train::optimizer::{AdamW, Group, Memory, Muon, Optimizer, Rule, Variant, clip, is_decayed};
use bantam_train::step::outline::Outline;
use bantam_train::step::parameters::{Parameter, Role};
use bantam_train::step::{Batch, IGNORED, TrainError, Training};
use serde_json::{Value, json};

/// Relative, of a tensor's length.
const TOLERANCE: f64 = 1e-4;

/// Batches without their padding: tokens, labels, lengths.
struct Batches(Vec<(Vec<u32>, Vec<i32>, Vec<usize>)>);

impl Batches {
    fn read(golden: &Checkpoint) -> Batches {
        let shape = golden.tensor("input_ids").expect("golden ids").shape.to_vec();
        let [ids, labels, mask] = ["input_ids", "labels", "attention_mask"].map(|name| floats(golden, name));
        let (count, rows, length) = (shape[0], shape[1], shape[2]);
        let batch = |batch: usize| {
            let mut all = (vec![], vec![], vec![]);
            for row in 0..rows {
                let at = (batch * rows + row) * length;
                let used = mask[at..][..length].iter().filter(|&&used| used > 0.0).count();
                all.0.extend(ids[at..][..used].iter().map(|&id| id as u32));
                // Each token predicts the next one.
                all.1.extend(labels[at + 1..][..used - 1].iter().map(|&label| label as i32));
                all.1.push(IGNORED);
                all.2.push(used);
            }
            all
        };
        Batches((0..count).map(batch).collect())
    }

    fn get(&self, at: usize) -> Batch<'_> {
        let (tokens, labels, documents) = &self.0[at];
        Batch { tokens, labels, documents, pieces: &[] }
    }

    /// The mean loss, and its gradients.
    fn step(&self, training: &mut Training, at: usize) -> f64 {
        let batch = self.get(at);
        let labelled = batch.labelled() as f64;
        training.clear();
        training.step(&batch, (1.0 / labelled) as f32).expect("a sound batch") / labelled
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn check_number(what: &str, found: f64, wanted: &Value) {
    let wanted = number(wanted);
    assert!((found - wanted).abs() <= 1e-5 * wanted.abs(), "{what}: {found}, not {wanted}");
}

/// What is known of all tensors: sum, length, projection on a cosine.
fn check_statistics(what: &str, values: &[f32], wanted: &Value) -> f64 {
    let sum = |f: &dyn Fn(usize, f64) -> f64| -> f64 {
        values.iter().enumerate().map(|(at, &x)| f(at, f64::from(x))).sum()
    };
    let length = number(&wanted["l2"]);
    // An error of so much, all in one direction.
    let most = TOLERANCE * length * (values.len() as f64).sqrt();
    let of = [
        ("l2", sum(&|_, x| x * x).sqrt(), TOLERANCE * length),
        ("sum", sum(&|_, x| x), most),
        ("cosproj", sum(&|at, x| x * (0.37 * at as f64).cos()), most),
    ];
    let mut worst = 0.0f64;
    for (name, found, most) in of {
        let wanted = number(&wanted[name]);
        assert!((found - wanted).abs() <= most, "{what}: {name} {found}, not {wanted}");
        worst = worst.max((found - wanted).abs() / most.max(f64::MIN_POSITIVE) * TOLERANCE);
    }
    for (found, wanted) in values.iter().zip(wanted["first4"].as_array().expect("numbers")) {
        let error = (f64::from(*found) - number(wanted)).abs();
        assert!(error <= TOLERANCE * length, "{what}: {found}, not {wanted}");
    }
    worst
}

/// A golden run, and the largest error that was seen in it.
struct Golden {
    name: String,
    json: Value,
    tensors: Checkpoint,
    worst: f64,
}

impl Golden {
    fn open(folder: &Path) -> Golden {
        let json = fs::read(folder.join("golden.json")).expect("golden.json");
        Golden {
            name: folder.file_name().expect("a name").to_string_lossy().into_owned(),
            json: serde_json::from_slice(&json).expect("golden.json is JSON"),
            tensors: Checkpoint::open(&folder.join("golden.safetensors")).expect("golden.safetensors"),
            worst: 0.0,
        }
    }

    /// Compares a parameter's numbers with the rows of it that are golden, and with its statistics.
    fn check(&mut self, kind: &str, parameter: &Parameter, values: &[f32], statistics: &Value) {
        let name = in_golden(parameter);
        let what = format!("{}: {kind}.{name}", self.name);
        self.worst = self.worst.max(check_statistics(&what, values, &statistics[&name]));
        let stored = [format!("{kind}.{name}"), format!("{kind}.{name}.rows")];
        let Some(stored) = stored.iter().find(|name| self.tensors.tensor(name).is_some()) else { return };
        let wanted = floats(&self.tensors, stored);
        let square = |x: f64| x * x;
        let (mut error, mut size) = (0.0, 0.0);
        for (found, wanted) in values.iter().zip(&wanted) {
            error += square(f64::from(*found) - f64::from(*wanted));
            size += square(f64::from(*wanted));
        }
        let error = (error / size).sqrt();
        self.worst = self.worst.max(error);
        assert!(error <= TOLERANCE, "{what}: relative error {error:.2e}");
    }

    fn check_gradients(&mut self, training: &Training, statistics: &Value) {
        let gradients = training.gradients().all();
        for parameter in training.parameters() {
            self.check("grad", parameter, &gradients[parameter.range()], statistics);
        }
        let count = statistics.as_object().expect("a gradient for each parameter").len();
        assert_eq!(count, training.parameters().len(), "{}", self.name);
    }

    fn check_values(&mut self, kind: &str, training: &Training, statistics: &Value) {
        for (at, parameter) in training.parameters().iter().enumerate() {
            let mut values = vec![0.0; parameter.range().len()];
            training.read(at, &mut values);
            self.check(kind, parameter, &values, statistics);
        }
    }

    /// Steps of a run as its golden lists them.
    fn run(
        &mut self,
        training: &mut Training,
        batches: &Batches,
        run: &Value,
        optimizer: &mut Optimizer,
        factor: impl Fn(u64) -> f64,
    ) {
        for (at, wanted) in run["steps"].as_array().expect("steps").iter().enumerate() {
            let what = format!("{} step {at}", self.name);
            check_number(&format!("{what}: loss"), batches.step(training, at), &wanted["loss"]);
            let norm = clip(training, number(&run["clip"]));
            check_number(&format!("{what}: gradient norm"), norm, &wanted["grad_norm"]);
            assert!(training.length() <= number(&run["clip"]) * 1.0001, "{what}");
            optimizer.step(training, factor(at as u64));
        }
    }
}

/// Parameters are known there as modules of the model in memory have them.
fn in_golden(parameter: &Parameter) -> String {
    let name = parameter.name.strip_prefix("base_model.model.").unwrap_or(&parameter.name);
    match parameter.role {
        Role::Magnitude => format!("{name}.weight"),
        _ => name.to_owned(),
    }
}

fn adamw(run: &Value) -> Rule {
    let betas = [number(&run["betas"][0]), number(&run["betas"][1])];
    Rule::AdamW(AdamW { betas, epsilon: number(&run["eps"]), is_early: false })
}

fn open(base: &str, adapter: Option<&str>) -> Source {
    let goldens = repository("tests/goldens");
    let source = Source::open(&goldens.join(base)).expect("the golden model opens");
    match adapter {
        None => source,
        Some(adapter) => source.adapted(&goldens.join(adapter)).expect("the golden adapter opens"),
    }
}

fn check_full(golden: &mut Golden) {
    let json = golden.json.clone();
    let base = format!("models/{}", json["base"].as_str().expect("a model"));
    let begin = || Training::full(&open(&base, None), Cpu::detect(), 2).expect("it can be trained");
    let batches = Batches::read(&golden.tensors);
    let mut training = begin();
    let loss = batches.step(&mut training, 0);
    check_number(&golden.name, loss, &json["full"]["loss"]);
    check_number(&golden.name, training.length(), &json["full"]["grad_norm"]);
    golden.check_gradients(&training, &json["full"]["grads"]);

    if !json["adamw"].is_object() {
        return;
    }
    let run = &json["adamw"];
    let undecayed: Vec<&str> =
        run["no_decay"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    let mut optimizer = Optimizer::new(&training, |parameter| {
        assert_eq!(is_decayed(parameter), !undecayed.contains(&&*parameter.name), "{}", parameter.name);
        let decay = if is_decayed(parameter) { number(&run["weight_decay"]) } else { 0.0 };
        Group { rule: adamw(run), rate: number(&run["lr"]), decay }
    });
    let schedule = Schedule { shape: Shape::Cosine { waves: 0.5, least: 0.0 }, warmup: 2, steps: 6 };
    for (at, step) in run["steps"].as_array().expect("steps").iter().enumerate() {
        check_number("rate", number(&run["lr"]) * schedule.factor(at as u64), &step["lr"]);
    }
    golden.run(&mut training, &batches, run, &mut optimizer, |step| schedule.factor(step));
    golden.check_values("adamw", &training, &run["params"]);

    let (mut training, run) = (begin(), &json["muon"]);
    let muon = Muon {
        variant: Variant::KellerJordan,
        momentum: number(&run["momentum"]),
        nesterov: true,
        iterations: 5,
    };
    let listed = |list: &Value| {
        list.as_array()
            .expect("names")
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let mut optimizer = Optimizer::new(&training, |parameter| {
        let rest = &run["adamw"];
        let rate = match parameter.role {
            Role::Matrix => {
                assert!(listed(&run["muon_params"]).contains(&parameter.name), "{}", parameter.name);
                return Group { rule: Rule::Muon(muon), rate: number(&run["lr"]), decay: 0.0 };
            }
            Role::Embedding => "lr_embeddings",
            Role::Head => "lr_lm_head",
            _ => "lr_rest",
        };
        Group { rule: adamw(rest), rate: number(&rest[rate]), decay: 0.0 }
    });
    golden.run(&mut training, &batches, run, &mut optimizer, |_| 1.0);
    golden.check_values("muon", &training, &run["params"]);
}

fn check_adapter(golden: &mut Golden) {
    let json = golden.json.clone();
    let base = format!("models/{}", json["base"].as_str().expect("a model"));
    match json["quant_base"].as_str() {
        None => check_over(golden, &json, &base, None),
        // Codes that a tool wrote, and those that come of the model itself, are the same.
        Some(quantized) => {
            check_over(golden, &json, quantized, None);
            check_over(golden, &json, &base, way("bnb-4bit"));
        }
    }
}

fn check_over(golden: &mut Golden, json: &Value, base: &str, quantization: Option<&'static OnLoad>) {
    let source = open(base, json["adapter"].as_str());
    let mut training = Training::adapter(&source, quantization, Cpu::detect(), 2).expect("it can be trained");
    let batches = Batches::read(&golden.tensors);
    let loss = batches.step(&mut training, 0);
    check_number(&golden.name, loss, &json["loss"]);
    golden.check_gradients(&training, &json["grads"]);
    if !json["adamw"].is_object() {
        return;
    }
    let run = &json["adamw"];
    let group = Group { rule: adamw(run), rate: number(&run["lr"]), decay: number(&run["weight_decay"]) };
    let mut optimizer = Optimizer::new(&training, |_| group);
    golden.run(&mut training, &batches, run, &mut optimizer, |_| 1.0);
    golden.check_values("adamw", &training, &run["params"]);
}

#[test]
fn losses_gradients_and_steps_match_the_original_tools() {
    check_folder(&repository("tests/goldens/train"));
}

#[test]
fn losses_and_gradients_of_other_families_and_adapters_match() {
    check_folder(&repository("tests/goldens/train-made"));
}

fn check_folder(folder: &Path) {
    let mut folders: Vec<_> = fs::read_dir(folder)
        .expect("goldens of training")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty());
    for folder in folders {
        let mut golden = Golden::open(&folder);
        match golden.json["full"].is_object() {
            true => check_full(&mut golden),
            false => check_adapter(&mut golden),
        }
        println!("{}: worst relative error {:.1e}", golden.name, golden.worst);
    }
}

/// Three pieces in one row that see those before them, as `packing` without `neat_packing` has it. The loss is that of
/// transformers 4.57 with the same `position_ids` and a mask of ones.
#[test]
fn pieces_without_walls_have_positions_of_their_own_and_see_each_other() {
    let pieces = [6_usize, 5, 4];
    let rows =
        (0..3_usize).flat_map(|row| (0..pieces[row]).map(move |at| (at, 5 + (row * 31 + at * 7) % 90)));
    let (places, tokens): (Vec<usize>, Vec<u32>) = rows.map(|(at, id)| (at, id as u32)).unzip();
    let own: Vec<i32> =
        places.iter().zip(&tokens).map(|(at, id)| if *at < 2 { IGNORED } else { *id as i32 }).collect();
    let labels: Vec<i32> = (0..own.len()).map(|at| own.get(at + 1).copied().unwrap_or(IGNORED)).collect();
    let source = open("models/llama-tied", None);
    let mut training = Training::full(&source, Cpu::detect(), 2).expect("it can be trained");
    let mut mean = |documents: &[usize], pieces: &[usize]| {
        let batch = Batch { tokens: &tokens, labels: &labels, documents, pieces };
        training.loss(&batch).expect("a sound batch") / batch.labelled() as f64
    };
    let found = mean(&[15], &pieces);
    assert!((found - 7.122_274).abs() < 2e-6, "{found}");
    assert!((mean(&[15], &[]) - found).abs() > 1e-5 && (mean(&pieces, &[]) - found).abs() > 1e-5);
}

#[test]
fn the_same_bits_come_on_any_number_of_threads() {
    let source = open("models/mixtral", None);
    let (tokens, documents) = ((1..60).collect::<Vec<u32>>(), [20, 39]);
    let labels: Vec<i32> = tokens.iter().map(|&id| if id % 5 == 0 { IGNORED } else { id as i32 }).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    let run = |threads: usize| {
        let mut training = Training::full(&source, Cpu::detect(), threads).expect("it can be trained");
        let loss = training.step(&batch, 0.1).expect("a sound batch");
        (loss, training.gradients().all())
    };
    let (one, three) = (run(1), run(3));
    assert!(one == three, "losses {} and {}", one.0, three.0);
}

/// Operands in bfloat16: the same bits on any number of threads, and nearly the gradients of float32.
#[test]
fn gradients_in_bfloat16_are_nearly_those_in_float32() {
    let (tokens, documents) = ((1..60).collect::<Vec<u32>>(), [20, 39]);
    let labels: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    let run = |what: &str, threads: usize, halves: bool| {
        let cpu = Cpu::detect();
        let training = match what {
            "full" => Training::full(&open("models/mixtral", None), cpu, threads),
            _ => Training::adapter(&open("models/llama-tied", Some(what)), None, cpu, threads),
        };
        let mut training = training.expect("it can be trained");
        if halves {
            training.in_halves();
        }
        loss_and_gradients(&mut training, &batch)
    };
    for what in ["full", "lora/lora-llama", "lora/lora-dora-llama"] {
        let (exact, one, three) = (run(what, 1, false), run(what, 1, true), run(what, 3, true));
        assert!(one == three, "{what}: losses {} and {}", one.0, three.0);
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
        let (a, b) = (&exact.1, &one.1);
        let along = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        println!("{what}: losses {} and {}, gradients along one another to {along}", exact.0, one.0);
        assert!(
            (exact.0 - one.0).abs() < 1e-2 * exact.0 && exact.0 != one.0,
            "{what}: {}, not {}",
            one.0,
            exact.0
        );
        assert!(along > 0.99, "{what}: {along}");
    }
}

/// Gradients that are kept in bfloat16 are those of float32, rounded, and one step on all threads takes the same path.
#[test]
fn gradients_that_are_kept_in_bfloat16_are_rounded() {
    let (tokens, documents) = ((1..60).collect::<Vec<u32>>(), [20, 39]);
    let labels: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    let constants = AdamW { betas: [0.9, 0.999], epsilon: 1e-8, is_early: false };
    for model in ["mixtral", "gpt_neox", "gpt_oss-bf16", "llama-tied"] {
        let source = open(&format!("models/{model}"), None);
        let run = |threads: usize, are_short: bool| {
            let mut training = Training::full(&source, Cpu::detect(), threads).expect("it can be trained");
            training.in_halves();
            if are_short {
                training.shorten_gradients();
            }
            let rule = if are_short { Rule::HalfAdamW(constants) } else { Rule::AdamW(constants) };
            let mut optimizer = Optimizer::new(&training, |_| Group { rule, rate: 1e-3, decay: 0.1 });
            let (_, gradients) = loss_and_gradients(&mut training, &batch);
            let length = clip(&mut training, 0.5);
            optimizer.step(&mut training, 1.0);
            let weights: Vec<Vec<f32>> = (0..training.parameters().len())
                .map(|at| {
                    let mut values = vec![0.0; training.parameters()[at].range().len()];
                    training.read(at, &mut values);
                    values
                })
                .collect();
            (gradients, length, weights)
        };
        let (exact, one, three) = (run(1, false), run(1, true), run(3, true));
        assert!(one == three && exact != one, "{model}");
        let wanted = exact.0.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((exact.1 / wanted - 1.0).abs() < 1e-6, "{model}: {} is not {wanted}", exact.1);
        assert!((one.1 / exact.1 - 1.0).abs() < 1e-3, "{model}: {} is not {}", one.1, exact.1);
        let largest = exact.0.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (found, wanted) in one.0.iter().zip(&exact.0) {
            // Where a table has several tokens of a kind, and is the head too, it is rounded with each of them.
            let error = (found - wanted).abs();
            assert!(error <= 0.01 * wanted.abs() + 1e-3 * largest, "{model}: {found}, not {wanted}");
        }
        for (found, wanted) in one.2.iter().flatten().zip(exact.2.iter().flatten()) {
            assert!((found - wanted).abs() <= 2.1e-3, "{model}: {found}, not {wanted}");
        }
    }
}

/// torch has no gradient of an expert that no token came to, and AdamW passes it by: neither decay nor a step counted.
#[test]
fn experts_that_no_token_reaches_take_no_step() {
    let constants = AdamW { betas: [0.9, 0.999], epsilon: 1e-8, is_early: false };
    let (rate, decay) = (1e-3, 0.1);
    let source = open("models/mixtral", None);
    let mut training = Training::full(&source, Cpu::detect(), 2).expect("it can be trained");
    let mut optimizer = Optimizer::new(&training, |_| Group { rule: Rule::AdamW(constants), rate, decay });
    let all: Vec<u32> = (1..100).collect();
    let mut step = |training: &mut Training, count: usize| -> Vec<[Vec<f32>; 3]> {
        let (tokens, labels) = (&all[..count], all[..count].iter().map(|&id| id as i32).collect::<Vec<_>>());
        let batch = Batch { tokens, labels: &labels, documents: &[count], pieces: &[] };
        let read = |training: &Training| -> Vec<Vec<f32>> {
            let numbers = |at: usize| {
                let mut values = vec![0.0; training.parameters()[at].range().len()];
                training.read(at, &mut values);
                values
            };
            (0..training.parameters().len()).map(numbers).collect()
        };
        let before = read(training);
        let (_, gradients) = loss_and_gradients(training, &batch);
        optimizer.step(training, 1.0);
        let ranges = training.parameters().iter().map(|parameter| gradients[parameter.range()].to_vec());
        let (ranges, after) = (ranges.collect::<Vec<_>>(), read(training));
        before.into_iter().zip(after).zip(ranges).map(|((old, new), of)| [old, new, of]).collect()
    };
    let of_experts: Vec<bool> =
        training.parameters().iter().map(|parameter| parameter.name.contains(".experts.")).collect();
    let few = step(&mut training, 2);
    let missed: Vec<usize> = (0..few.len()).filter(|&at| few[at][0] == few[at][1]).collect();
    assert!(missed.iter().all(|&at| of_experts[at] && few[at][2].iter().all(|x| *x == 0.0)), "{missed:?}");
    let reached = of_experts.iter().filter(|is_one| **is_one).count() - missed.len();
    assert!(!missed.is_empty() && reached > 0, "{missed:?} of {reached} more");
    let many = step(&mut training, 99);
    let mut first = 0;
    for [old, new, gradient] in missed.iter().map(|&at| &many[at]) {
        for ((old, new), _) in old.iter().zip(new).zip(gradient).filter(|(_, x)| x.abs() > 1e-4) {
            let moved = f64::from((new - old).abs());
            assert!((moved / rate - 1.0).abs() < 0.1 * f64::from(old.abs()) + 0.01, "{moved}");
            first += 1;
        }
    }
    assert!(first > 100, "few of these were reached then: {first}");
}

/// The first mean comes back from bfloat16 in every step; nothing else is less than float32.
#[test]
fn first_means_in_bfloat16_are_rounded_between_steps() {
    let (tokens, documents) = ((1..60).collect::<Vec<u32>>(), [20, 39]);
    let labels: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    let constants = AdamW { betas: [0.9, 0.999], epsilon: 1e-8, is_early: false };
    let [follow, take] = constants.betas.map(|beta| (1.0 - beta) as f32);
    for model in ["gpt_neox", "llama-tied"] {
        let source = open(&format!("models/{model}"), None);
        let mut training = Training::full(&source, Cpu::detect(), 2).expect("it can be trained");
        let group = Group { rule: Rule::HalfAdamW(constants), rate: 1e-2, decay: 0.0 };
        let mut optimizer = Optimizer::new(&training, |_| group);
        let weights = |training: &Training| -> Vec<f32> {
            let all = training.parameters().iter().enumerate().map(|(at, parameter)| {
                let mut values = vec![0.0; parameter.range().len()];
                training.read(at, &mut values);
                values
            });
            all.collect::<Vec<_>>().concat()
        };
        let mut wanted = weights(&training);
        let mut means = vec![[0.0f32; 2]; wanted.len()];
        for step in 1..=3 {
            let (_, gradients) = loss_and_gradients(&mut training, &batch);
            optimizer.step(&mut training, 1.0);
            let rate = (1e-2 / (1.0 - constants.betas[0].powi(step))) as f32;
            let root = (1.0 - constants.betas[1].powi(step)).sqrt() as f32;
            for ((value, [first, second]), gradient) in wanted.iter_mut().zip(&mut means).zip(&gradients) {
                *first += follow * (gradient - *first);
                *second = *second * 0.999 + take * gradient * gradient;
                *value -= rate * (*first / (second.sqrt() / root + 1e-8));
                *first = half::bf16::from_f32(*first).to_f32();
            }
        }
        assert_eq!(weights(&training), wanted, "{model}");
        let mut kept = 0;
        for memory in optimizer.memory() {
            match memory {
                Memory::Halves(_, found) => {
                    let mut pairs = found.iter().zip(&means);
                    assert!(
                        pairs.all(|(found, [first, _])| half::bf16::from_bits(*found).to_f32() == *first)
                    );
                    kept += 2 * found.len();
                }
                Memory::Floats(_, found) => kept += 4 * found.len(),
                Memory::Codes(_, found) => kept += found.len(),
            }
        }
        assert_eq!(kept, 6 * wanted.len(), "{model}: bytes that are remembered");
    }
}

/// A folder with a golden model whose numbers are rounded to bfloat16, which is removed with this.
struct Rounded(PathBuf);

impl Rounded {
    /// In files of bfloat16, or of float32.
    fn of(model: &str, label: &str, halves: bool) -> Rounded {
        let folder =
            std::env::temp_dir().join(format!("bantam-train-{}-{label}-{halves}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let from = repository("tests/goldens/models").join(model);
        fs::copy(from.join("config.json"), folder.join("config.json")).expect("its configuration");
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        let checkpoint = Checkpoint::open(&from).expect("the golden model opens");
        for tensor in checkpoint.tensors() {
            let start = data.len();
            for x in floats(&checkpoint, tensor.name) {
                let rounded = half::bf16::from_f32(x);
                match halves {
                    true => data.extend(rounded.to_le_bytes()),
                    false => data.extend(rounded.to_f32().to_le_bytes()),
                }
            }
            let dtype = if halves { "BF16" } else { "F32" };
            let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, data.len()] });
            header.insert(tensor.name.to_owned(), entry);
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        fs::write(folder.join("model.safetensors"), file).expect("weights");
        Rounded(folder)
    }

    fn adapted(&self, adapter: &str) -> Source {
        let source = Source::open(&self.0).expect("it opens");
        source.adapted(&repository("tests/goldens/lora").join(adapter)).expect("the golden adapter opens")
    }

    fn weights(&self) -> fs::File {
        let options = fs::OpenOptions::new().write(true).open(self.0.join("model.safetensors"));
        options.expect("the file is ours")
    }
}

impl Drop for Rounded {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const TOKENS: [u32; 50] = [7; 50];
const LABELS: [i32; 50] = [9; 50];
const BATCH: Batch = Batch { tokens: &TOKENS, labels: &LABELS, documents: &[20, 30], pieces: &[] };

/// Matrices that stay in their files give the bits of those that are held, fused ones and tied tables included.
#[test]
fn matrices_in_files_are_trained_on_as_those_in_memory() {
    let cpu = Cpu::detect();
    for (model, adapter) in
        [("llama-tied", "lora-dora-llama"), ("gpt_neox", "lora-gpt_neox"), ("gpt_oss-bf16", "lora-gpt_oss")]
    {
        let folders = [true, false].map(|halves| Rounded::of(model, model, halves));
        let sources = [&folders[0], &folders[1]].map(|folder| folder.adapted(adapter));
        let bytes = [&sources[0], &sources[1]].map(|source| {
            let opened = source.adapter.as_deref().expect("it was opened");
            Outline::adapter(source, opened, None, cpu).expect("it has a plan").mapped_bytes()
        });
        assert!(2 * bytes[0] < bytes[1], "{model}: {bytes:?} bytes");
        for halves in [false, true] {
            let [mut lying, mut held] = [&sources[0], &sources[1]]
                .map(|source| Training::adapter(source, None, cpu, 2).expect("it can be trained"));
            if halves {
                lying.in_halves();
                held.in_halves();
            }
            for _ in 0..2 {
                let (one, other) =
                    (loss_and_gradients(&mut held, &BATCH), loss_and_gradients(&mut lying, &BATCH));
                assert!(one == other, "{model}: losses {} and {}", one.0, other.0);
            }
        }
    }
}

/// Layers that are kept give the bits of layers that are run once more.
#[test]
fn layers_that_are_kept_are_those_that_are_run_again() {
    let cpu = Cpu::detect();
    for (base, adapter) in [
        ("models/mixtral", None),
        ("models/gemma2", None),
        ("models/gpt_neox", Some("lora/lora-gpt_neox")),
        ("models/llama-tied", Some("lora/lora-dora-llama")),
    ] {
        let source = open(base, adapter);
        let begin = || match adapter {
            None => Training::full(&source, cpu, 2).expect("it can be trained"),
            Some(_) => Training::adapter(&source, None, cpu, 2).expect("it can be trained"),
        };
        let (mut again, mut kept) = (begin(), begin());
        kept.keep_layers();
        for _ in 0..2 {
            assert!(
                loss_and_gradients(&mut again, &BATCH) == loss_and_gradients(&mut kept, &BATCH),
                "{base}"
            );
        }
    }
}

/// What stays in a file is checked when it is opened, and a file that is cut is noticed.
#[test]
fn files_that_are_damaged_or_cut_are_noticed() {
    let folder = Rounded::of("llama-tied", "cut", true);
    let begin = || Training::adapter(&folder.adapted("lora-llama"), None, Cpu::detect(), 2);
    let mut training = begin().expect("it is sound");
    training.step(&BATCH, 1.0).expect("it is sound");
    let bytes = folder.weights().metadata().expect("it is there").len();
    folder.weights().set_len(bytes / 2).expect("it is ours");
    if cfg!(target_os = "linux") {
        let error = training.step(&BATCH, 1.0).expect_err("half of it is gone");
        assert!(matches!(error, TrainError::Files), "{error}");
    }
    let folder = Rounded::of("llama-tied", "damaged", true);
    let checkpoint = Checkpoint::open(&folder.0).expect("it opens");
    let matrix = checkpoint.tensors().find(|tensor| tensor.name.contains("up_proj")).expect("llama's name");
    let start = bytes as usize - checkpoint.tensors().map(|tensor| tensor.data.len()).sum::<usize>();
    let before = checkpoint.tensors().take_while(|tensor| tensor.name != matrix.name);
    let at = start + before.map(|tensor| tensor.data.len()).sum::<usize>() + 2 * (3 * matrix.shape[1] + 5);
    let mut weights = folder.weights();
    std::io::Seek::seek(&mut weights, std::io::SeekFrom::Start(at as u64)).expect("it is long enough");
    std::io::Write::write_all(&mut weights, &half::bf16::NAN.to_le_bytes()).expect("it is ours");
    let begin = Training::adapter(&folder.adapted("lora-llama"), None, Cpu::detect(), 2);
    let error = begin.expect_err("a weight is no number").to_string();
    assert!(error.contains("up_proj") && error.contains("row 3, column 5"), "{error}");
}

/// The loss of a step, and its gradients.
fn loss_and_gradients(training: &mut Training, batch: &Batch) -> (f64, Vec<f32>) {
    training.clear();
    let loss = training.step(batch, 1.0).expect("a sound batch");
    (loss, training.gradients().all())
}

/// Along the gradient of some parameters, a loss changes by that gradient's square.
fn check_along(what: &str, training: &mut Training, batch: &Batch, is_moved: impl Fn(&Parameter) -> bool) {
    let (_, mut gradients) = loss_and_gradients(training, batch);
    let parameters = training.parameters().iter().enumerate();
    let (moved, left): (Vec<_>, Vec<_>) =
        parameters.map(|(at, known)| (at, known.range(), is_moved(known))).partition(|(_, _, moved)| *moved);
    left.into_iter().for_each(|(_, range, _)| gradients[range].fill(0.0));
    let square: f64 = gradients.iter().map(|x| f64::from(*x).powi(2)).sum();
    let move_by = |training: &mut Training, step: f32| {
        for (parameter, range, _) in &moved {
            let mut values = vec![0.0; range.len()];
            training.read(*parameter, &mut values);
            values.iter_mut().zip(&gradients[range.clone()]).for_each(|(x, d)| *x += step * d);
            training.write(*parameter, &values);
        }
        training.settle();
    };
    let step = (2e-3 / square.sqrt()) as f32;
    move_by(training, step);
    let above = training.step(batch, 0.0).expect("a sound batch");
    move_by(training, -2.0 * step);
    let below = training.step(batch, 0.0).expect("a sound batch");
    move_by(training, step);
    let found = (above - below) / (2.0 * f64::from(step));
    assert!((found - square).abs() < 2e-2 * square, "{what}: {found}, not {square}");
}

#[test]
fn dropped_inputs_are_the_same_ones_backwards_and_again() {
    let (tokens, documents) = ((1..50).collect::<Vec<u32>>(), [20, 29]);
    let labels: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    for (base, adapter) in [
        ("models/llama-tied", "lora/lora-llama"),
        ("models/gpt_neox", "lora/lora-gpt_neox"),
        ("models/llama-tied", "lora/lora-dora-llama"),
    ] {
        let source = open(base, Some(adapter));
        let mut training = Training::adapter(&source, None, Cpu::detect(), 2).expect("it can be trained");
        let plain = training.loss(&batch).expect("a sound batch");
        training.drop_inputs(0.3, 42);
        training.at_moment(5, 29);
        let (loss, gradients) = loss_and_gradients(&mut training, &batch);
        assert!(loss != plain, "{adapter}: nothing is dropped");
        assert_eq!(training.loss(&batch).expect("a sound batch"), plain, "{adapter}: measured without");
        assert!((loss, gradients) == loss_and_gradients(&mut training, &batch), "{adapter}");
        // The lengths of a DoRA's rows are constants to its gradient, but for those that are trained.
        let has_lengths = training.parameters().iter().any(|known| known.role == Role::Magnitude);
        let is_moved = |known: &Parameter| !has_lengths || known.role == Role::Magnitude;
        check_along(adapter, &mut training, &batch, is_moved);
        training.at_moment(6, 29);
        assert!(loss != loss_and_gradients(&mut training, &batch).0, "{adapter}: moments differ");
        // Where all is dropped, the model is left.
        training.drop_inputs(1.0, 42);
        let mut bare = Training::full(&open(base, None), Cpu::detect(), 2).expect("it can be trained");
        let (alone, wanted) = (training.step(&batch, 1.0), bare.loss(&batch).expect("a sound batch"));
        assert!((alone.expect("a sound batch") - wanted).abs() < 1e-5 * wanted, "{adapter}");
    }
}

/// transformers' LabelSmoother, in float64 over the logits of the engine that serves: the mean of all tokens' losses
/// counts beside that of the label.
fn smoothed(source: &Source, tokens: &[u32], labels: &[i32], share: f64) -> f64 {
    let mut engine = source.load(options(), Cpu::detect(), 1, None, &mut |_| {}).expect("it loads");
    let sequence = engine.open().expect("there is room");
    engine.step(&[Chunk { sequence, tokens }]).expect("sound tokens");
    let rows: Vec<usize> = (0..tokens.len()).collect();
    let logits = engine.logits(&rows).to_vec();
    let rows = logits.chunks(source.spec.vocab).zip(labels).filter(|(_, label)| **label != IGNORED);
    let losses = rows.map(|(logits, &label)| {
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let losses: Vec<f64> = logits.iter().map(|x| total.ln() - f64::from(*x)).collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        (1.0 - share) * losses[label as usize] + share * mean
    });
    losses.sum()
}

#[test]
fn smooth_labels_have_the_loss_of_transformers_and_its_gradient() {
    let tokens: Vec<u32> = (1..50).collect();
    let labels: Vec<i32> =
        tokens.iter().map(|&id| if id % 6 == 0 { IGNORED } else { id as i32 + 1 }).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &[49], pieces: &[] };
    for model in ["llama-tied", "gemma2"] {
        let source = open(&format!("models/{model}"), None);
        let mut training = Training::full(&source, Cpu::detect(), 2).expect("it can be trained");
        let plain = training.loss(&batch).expect("a sound batch");
        for share in [0.1, 1.0] {
            training.smooth_labels(share);
            let wanted = smoothed(&source, &tokens, &labels, f64::from(share));
            let found = training.loss(&batch).expect("a sound batch");
            assert!((found - wanted).abs() < 1e-6 * wanted, "{model}, {share}: {found}, not {wanted}");
            assert!((found - plain).abs() > 1e-4 * plain, "{model}, {share}: as without");
            check_along(&format!("{model}, {share}"), &mut training, &batch, |_| true);
        }
    }
}

#[test]
fn noise_stands_on_embeddings_in_steps_alone() {
    let (tokens, documents) = ((1..50).collect::<Vec<u32>>(), [20, 29]);
    let labels: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    let source = open("models/llama-tied", None);
    let mut training = Training::full(&source, Cpu::detect(), 2).expect("it can be trained");
    let plain = loss_and_gradients(&mut training, &batch);
    training.disturb(5.0, 42);
    training.at_moment(5, 32);
    let noisy = loss_and_gradients(&mut training, &batch);
    assert!(noisy.0 != plain.0, "nothing is added");
    assert_eq!(training.loss(&batch).expect("a sound batch"), plain.0, "measured without");
    assert!(noisy == loss_and_gradients(&mut training, &batch), "the same moment again");
    training.at_moment(6, 32);
    assert!(noisy.0 != loss_and_gradients(&mut training, &batch).0, "moments differ");
    training.at_moment(5, 64);
    assert!(noisy.0 != loss_and_gradients(&mut training, &batch).0, "wider rows have less");
    training.disturb(0.0, 42);
    assert!(plain == loss_and_gradients(&mut training, &batch), "without it");
    training.disturb(5.0, 42);
    check_along("noise", &mut training, &batch, |_| true);
}

#[test]
fn frozen_weights_leave_the_gradients_of_others_as_they_are() {
    let source = open("models/mixtral", None);
    let (tokens, documents) = ((1..50).collect::<Vec<u32>>(), [20, 29]);
    let labels: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let batch = Batch { tokens: &tokens, labels: &labels, documents: &documents, pieces: &[] };
    let mut full = Training::full(&source, Cpu::detect(), 2).expect("it can be trained");
    let (loss, gradients) = loss_and_gradients(&mut full, &batch);
    let last = source.spec.layers.len() - 1;
    let is_trained = |name: &str| name.contains(&format!("layers.{last}.")) || name == "lm_head.weight";
    let mut some = Training::some(&source, &is_trained, Cpu::detect(), 2).expect("it can be trained");
    let (found, of_some) = loss_and_gradients(&mut some, &batch);
    assert!((found - loss).abs() < 1e-6 * loss, "{found}, not {loss}");
    assert!(some.parameters().len() > 10 && some.parameters().len() < full.parameters().len());
    for parameter in some.parameters() {
        assert!(is_trained(&parameter.name), "{}", parameter.name);
        let whole = full.parameter(&parameter.name).expect("a parameter of the model").range();
        let (a, b) = (&of_some[parameter.range()], &gradients[whole]);
        let size = b.iter().fold(0.0f32, |size, x| size.max(x.abs()));
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5 * size, "{}: {worst} of {size}", parameter.name);
    }
}
