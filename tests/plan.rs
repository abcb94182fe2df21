//! A plan's bytes are the bytes that are taken: added up from its lines and slots, asked of the engine, and seen from
//! outside the program, in the system's list of its mappings. And a plan that cannot be carried out is refused with
//! a reason that names what is wrong.
//!
//! It has no test harness: the harness maps stacks for its threads when it likes. What stays on the heap is counted in
//! `zero_alloc.rs`.

use bantam_core::layouts::TILE_ROWS;
use bantam_core::{Choice, Cpu, KvKind, Precision, Region, Slot, Trits};
use bantam_model::checkpoint::Dtype;
use bantam_model::engine::{Engine, stored};
use bantam_model::formats::on_load::way;
use bantam_model::inspect::Inspection;
use bantam_model::plan::{Fill, Options, Plan, PlanError, Stored};
use bantam_model::spec::ModelSpec;
use bantam_tests::{MODELS, load, model_folder, open, options, trained};

fn main() {
    for model in MODELS {
        for options in [options(), small(KvKind::F16), small(KvKind::Int8)] {
            plan_equals_memory(model, options);
        }
        parameters_equal_the_files(model);
    }
    // Large enough that the regions are asked for in large pages.
    plan_equals_memory("trained", options());
    plan_equals_memory("llama-tied", Options { cache_positions: Some(100), ..small(KvKind::F16) });
    caches();
    loading_tells_how_far_it_is();
    refusals();
}

fn small(kv: KvKind) -> Options {
    Options {
        context: 70,
        sequences: 3,
        chunk: 9,
        logits_rows: 2,
        kv,
        precision: Precision::Fast,
        quantization: way("int8"),
        head: None,
        cache_positions: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    }
}

/// Pages are whole, and no more than all sequences can own.
fn caches() {
    let (spec, checkpoint) = open(&model_folder("llama-tied"));
    let pages = |cache_positions| {
        let options = Options { cache_positions, ..small(KvKind::F32) };
        let plan =
            Plan::new(&spec, stored(&checkpoint), options, Cpu::detect()).expect("the golden has a plan");
        let pages: usize = plan.caches.iter().map(|cache| cache.slot.bytes / cache.page_bytes()).sum();
        assert_eq!(pages, plan.pages * spec.layers.len());
        plan.pages
    };
    let found = [None, Some(70), Some(129), Some(100_000)].map(pages);
    assert_eq!(found, [6, 2, 3, 6]);
}

/// Bytes of private writable memory that belongs to no file: every region is such a mapping. The heap and the stack
/// have names and do not count. `None` where the system does not tell.
fn anonymous_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/maps").ok()?;
    let bytes = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (from, to) = words.first()?.split_once('-')?;
        let size = usize::from_str_radix(to, 16).ok()? - usize::from_str_radix(from, 16).ok()?;
        (words.len() == 5 && words[1] == "rw-p").then_some(size)
    };
    Some(text.lines().filter_map(bytes).sum())
}

/// The size in which the system maps memory.
fn page_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("KernelPageSize:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok());
    kilobytes.map_or(4096, |kilobytes| kilobytes * 1024)
}

fn plan_equals_memory(model: &str, options: Options) {
    let folder = if model == "trained" { trained() } else { model_folder(model) };
    let what = format!("{model}, {:?}", options.kv);
    // The text of the map itself must not be allocated between the two readings for the first time.
    let _ = anonymous_bytes();
    let before = anonymous_bytes();
    // One thread: the others would map stacks, which `--threads` decides and the plan does not.
    let engine = load(&folder, options, Cpu::detect(), 1);
    let loaded = anonymous_bytes();
    let plan = engine.plan();
    assert_eq!(engine.memory_bytes(), plan.bytes(), "{what}: the engine's regions");
    lines_and_slots_add_up(&what, plan);
    bytes_of_a_token(&what, engine.spec(), plan);
    let regions = [plan.weight_bytes, plan.cache_bytes, plan.work_bytes];
    let wanted: usize = regions.iter().map(|bytes| bytes.next_multiple_of(page_bytes())).sum();
    match (before, loaded) {
        (Some(before), Some(loaded)) => {
            let grown = loaded - before;
            println!("{what}: {} bytes planned, {grown} mapped: {regions:?} in whole pages", plan.bytes());
            assert_eq!(grown, wanted, "{what}: bytes mapped by loading");
        }
        _ => println!("{what}: skipped the view from outside: this system does not list its mappings"),
    }
    drop(engine);
    assert_eq!(anonymous_bytes(), before, "{what}: dropping the engine gives everything back");
}

fn loading_tells_how_far_it_is() {
    let (spec, checkpoint) = open(&trained());
    let mut told = Vec::new();
    let mut tell = |bytes| told.push(bytes);
    let engine = Engine::load_telling(spec, &checkpoint, options(), Cpu::detect(), 1, &mut tell);
    let all = engine.expect("the trained model loads").plan().weight_bytes;
    assert!(told.len() > 10 && told.is_sorted(), "{told:?}");
    // Between slots lie a few bytes that nothing fills.
    let last = told.last().copied().unwrap_or(0);
    assert!(last <= all && last > all - all / 100, "{last} of {all}");
}

/// Lines add up to regions; the slots of a region follow one another without overlap and end where it ends.
fn lines_and_slots_add_up(what: &str, plan: &Plan) {
    let work_slots = plan.work.named().map(|(_, slot)| slot);
    let weight_slots = plan.fills.iter().map(|fill| match fill {
        Fill::Matrix { matrix, .. } => {
            let tiles = matrix.shape.rows.div_ceil(TILE_ROWS);
            assert_eq!(matrix.slot.bytes, tiles * matrix.layout.tile_bytes(matrix.shape.columns), "{what}");
            matrix.slot
        }
        Fill::Vector { .. } | Fill::Values { .. } | Fill::Low(_) => fill.slot(),
    });
    let regions: [(Region, usize, Vec<Slot>); 3] = [
        (Region::Weights, plan.weight_bytes, weight_slots.collect()),
        (Region::Cache, plan.cache_bytes, plan.caches.iter().map(|cache| cache.slot).collect()),
        (Region::Work, plan.work_bytes, work_slots.to_vec()),
    ];
    for (region, bytes, mut slots) in regions {
        let lines = plan.lines.iter().filter(|line| line.region == region);
        assert_eq!(lines.map(|line| line.bytes).sum::<usize>(), bytes, "{what}: lines of {region:?}");
        slots.sort_by_key(|slot| (slot.offset, slot.bytes));
        let mut end = 0;
        for slot in slots {
            assert_eq!((slot.region, slot.offset), (region, end), "{what}: a gap or an overlap");
            end = (slot.offset + slot.bytes).next_multiple_of(64);
        }
        assert_eq!(end, bytes, "{what}: slots of {region:?}");
    }
}

/// A token reads all weights but those of experts that it is not sent to, and the embedding's other rows.
fn bytes_of_a_token(what: &str, spec: &ModelSpec, plan: &Plan) {
    let bytes = |name: &str| -> usize {
        plan.lines.iter().filter(|line| line.name == name).map(|line| line.bytes).sum()
    };
    let mut wanted = plan.weight_bytes - if spec.tied { 0 } else { bytes("embedding") };
    if let Some(experts) = spec.layers[0].mlp.experts {
        let (all, Choice { experts, chosen }) = (bytes("layers: feed-forward, experts"), experts.choice);
        assert!(all > 0 && chosen < experts, "{what}: nothing to leave unread");
        wanted -= all / experts * (experts - chosen);
    }
    assert_eq!(plan.bytes_per_token, wanted, "{what}: bytes per token");
}

/// The specification counts what the file has.
fn parameters_equal_the_files(model: &str) {
    let (spec, checkpoint) = open(&model_folder(model));
    let plan = Plan::new(&spec, stored(&checkpoint), options(), Cpu::detect()).expect("a plan for a golden");
    assert_eq!(spec.parameters(), Inspection::new(&checkpoint, &plan).parameters, "{model}");
}

/// A plan with one thing wrong is refused, and the message has these words.
fn check(change: impl FnOnce(&mut Options), tensor: impl Fn(&str) -> Change, words: &[&str]) {
    let (spec, checkpoint) = open(&model_folder("gpt_neox"));
    let there = stored(&checkpoint);
    let mut options = options();
    change(&mut options);
    let stored = |name: &str, shape: &[usize]| {
        let found = there(name, shape)?;
        match tensor(name) {
            Change::None => Some(found),
            Change::Missing => None,
            Change::Shape => Some(Stored { shape: shape.iter().map(|n| n + 1).collect(), ..found }),
            Change::Dtype(dtype) => Some(Stored { dtype, ..found }),
        }
    };
    let error: PlanError = match Plan::new(&spec, stored, options, Cpu::detect()) {
        Err(error) => error,
        Ok(_) => panic!("a plan was made that should say {words:?}"),
    };
    let message = error.to_string();
    println!("refused: {message}");
    for word in words {
        assert!(message.contains(word), "\"{message}\" does not say \"{word}\"");
    }
}

enum Change {
    None,
    Missing,
    Shape,
    Dtype(Dtype),
}

fn refusals() {
    let no_change = |_: &str| Change::None;
    check(|o| o.context = 513, no_change, &["found 513", "512"]);
    check(|o| o.context = 0, no_change, &["--context is 0"]);
    check(|o| o.sequences = 0, no_change, &["sequences is 0"]);
    let small = ["a cache of at least the context's", "found 69", "--context"];
    check(|o| (o.context, o.cache_positions) = (70, Some(69)), no_change, &small);
    check(|o| o.chunk = 0, no_change, &["chunk is 0"]);
    check(|o| o.logits_rows = 0, no_change, &["logits_rows is 0"]);
    check(|o| o.sequences = usize::MAX / 2, no_change, &["keys and values", "does not fit into"]);
    check(|o| o.chunk = usize::MAX / 2, no_change, &["does not fit into"]);
    check(|o| o.logits_rows = usize::MAX / 2, no_change, &["does not fit into"]);
    let bias = "gpt_neox.layers.1.attention.dense.bias";
    let fused = "gpt_neox.layers.2.attention.query_key_value.weight";
    for name in [bias, fused, "embed_out.weight", "gpt_neox.final_layer_norm.bias"] {
        let only =
            |change: fn() -> Change| move |tensor: &str| if tensor == name { change() } else { Change::None };
        check(|_| (), only(|| Change::Missing), &[name, "not in the checkpoint"]);
        check(|_| (), only(|| Change::Shape), &[name, "expected shape", "found"]);
        check(|_| (), only(|| Change::Dtype(Dtype::I32)), &[name, "expected F32", "found I32"]);
    }
}
