//! Whole models on a card beside the goldens, and whether the kernels' texts are those of their sources. Operations,
//! and what goes wrong on a card, stand in `cuda/tests`; how a test meets a driver, in `tests/cusim`.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::backend::Feed;
use bantam_core::{Backend, Batch, Cpu, CpuBackend, KvKind, Precision, Region, Serial};
use bantam_cuda::{Card, CudaBackend, Sizes};
use bantam_cusim::is_child;
use bantam_model::decoder::Decoder;
use bantam_model::engine::stored;
use bantam_model::plan::{Options, Plan};
use bantam_model::{memory, weights};
use bantam_tests::{MODELS, check_close, floats, ids, model_folder, open, options, repository};

/// A prompt in two chunks, then single tokens: the logits of every position.
fn logits<B: Backend>(decoder: &Decoder, plan: &Plan, backend: &mut B, tokens: &[u32]) -> Vec<f32> {
    let tables: Vec<u32> = (0..plan.pages_per_sequence as u32).rev().collect();
    let mut all = Vec::new();
    let middle = tokens.len() / 2;
    let mut at = 0;
    for count in [middle].into_iter().chain([1; 4]).chain([tokens.len() - middle - 4]) {
        let length = tokens.len();
        let feed = Feed { first_row: 0, rows: count, first_position: at, sequence: 0, length };
        let batch = Batch { feeds: &[feed], tables: &tables, pages_per_sequence: plan.pages_per_sequence };
        assert!(decoder.forward(backend, &batch, &tokens[at..at + count], &|| false));
        let rows: Vec<usize> = (0..count).collect();
        let slot = decoder.logits(backend, &rows);
        all.extend_from_slice(backend.read(slot));
        at += count;
    }
    all
}

/// Tokens of a prompt that are read.
const TOKENS: usize = 16;

/// The logits of a golden's first prompt, on the processor and on the card.
fn both(model: &str, options: Options, cpu: Cpu) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let folder = model_folder(model);
    let (spec, checkpoint) = open(&folder);
    let plan = Plan::new(&spec, stored(&checkpoint), options, cpu).expect("the golden has a plan");
    let weights = memory::region(plan.weight_bytes).expect("memory");
    let mut arena = memory::arena(weights, plan.cache_bytes, plan.work_bytes).expect("memory");
    weights::load(&plan, &checkpoint, None, &mut arena, &Serial, &mut |_| {}).expect("the golden is sound");
    let sizes = Sizes {
        weights: plan.weight_bytes,
        cache: plan.cache_bytes,
        work: plan.work_bytes,
        rows: options.chunk,
        tables: plan.pages_per_sequence,
        results: plan.work.logits.bytes + 64,
    };
    let card = Card::open(0).expect("the driver that this test was started with");
    let mut card =
        CudaBackend::new(card, options.precision, sizes, plan.work.panels).expect("a card with room");
    card.upload(Region::Weights, 0, &arena.weights[..plan.weight_bytes]);
    let mut processor = CpuBackend::new(cpu, options.precision, Serial, arena, plan.work.panels);
    let decoder = Decoder::new(spec, &plan);
    let golden =
        bantam_model::checkpoint::Checkpoint::open(&folder.join("golden.safetensors")).expect("it is sound");
    // Fibers take their time; what comes later changes nothing about the first positions.
    let mut tokens = ids(&golden, "prompt0.input_ids");
    tokens.truncate(TOKENS);
    let wanted = logits(&decoder, &plan, &mut processor, &tokens);
    let found = logits(&decoder, &plan, &mut card, &tokens);
    assert_eq!(card.fault(), None, "{model}");
    let mut golden = floats(&golden, "prompt0.logits");
    golden.truncate(found.len());
    (wanted, found, golden)
}

#[test]
fn goldens_of_every_family_are_met_on_the_card() {
    if !is_child("goldens_of_every_family_are_met_on_the_card", &[]) {
        return;
    }
    for model in MODELS {
        let (_, found, golden) = both(model, options(), Cpu::detect());
        check_close(&format!("{model} on the card"), &found, &golden);
    }
}

/// In fast precision both round activations (some processors those of bfloat16 weights too, not the one here);
/// what is left are sums of floats in another order, which a key or an
/// activation beside the middle of two codes can make a code of.
#[test]
fn fast_precision_is_the_processors_up_to_rounding() {
    if !is_child("fast_precision_is_the_processors_up_to_rounding", &[]) {
        return;
    }
    for kv in [KvKind::F16, KvKind::Int8] {
        for model in ["gpt_neox", "gpt_oss-mxfp4"] {
            let fast = Options { precision: Precision::Fast, kv, ..options() };
            let (wanted, found, _) = both(model, fast, Cpu::PORTABLE);
            let square = |x: f32| f64::from(x) * f64::from(x);
            let error: f64 = wanted.iter().zip(&found).map(|(a, b)| square(a - b)).sum();
            let relative = (error / wanted.iter().map(|&x| square(x)).sum::<f64>()).sqrt();
            println!("{model} {kv:?}: relative {relative:.2e}");
            assert!(relative < 1e-2, "{model} {kv:?}: relative {relative:.2e}");
        }
    }
}

/// The texts are those of the sources: nobody needs CUDA to see it.
#[test]
fn texts_were_made_of_these_sources() {
    let lock = fs::read_to_string(repository("core/src/cuda/kernels.lock")).expect("kernels.lock is there");
    let mut found: Vec<String> =
        kernel_files(&repository("core/src")).iter().map(|path| hashed(path)).collect();
    found.sort();
    let mut locked: Vec<String> =
        lock.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    locked.sort();
    let wrong: Vec<_> = found.iter().filter(|line| !locked.contains(line)).collect();
    let gone: Vec<_> = locked.iter().filter(|line| !found.contains(line)).collect();
    assert!(
        wrong.is_empty() && gone.is_empty(),
        "kernels and their texts are not of one making: run `cargo xtask ptx`\nnow: {wrong:#?}\nlocked: {gone:#?}"
    );
}

/// A line of the lock.
fn hashed(path: &Path) -> String {
    let bytes = fs::read(path).expect("a kernel can be read");
    let name =
        path.strip_prefix(repository("")).expect("below the root").to_string_lossy().replace('\\', "/");
    format!("{:016x} {name}", xxhash_rust::xxh3::xxh3_64(&bytes))
}

fn kernel_files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for path in
            fs::read_dir(&folder).expect("a folder of ours").map(|entry| entry.expect("an entry").path())
        {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|kind| kind == "cu" || kind == "cuh" || kind == "ptx") {
                found.push(path);
            }
        }
    }
    found
}
