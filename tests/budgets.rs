//! Whatever the model and whatever the budgets, what is planned for cards stays within them: weights, cache,
//! activations, the ring that weights pass through and the steps that are kept, all of it together.

use bantam_core::{Cpu, KvKind, Precision};
use bantam_model::card::{Manner, Passage, RING_SLOTS};
use bantam_model::checkpoint::Dtype;
use bantam_model::engine::{Placed, synthetic_plan};
use bantam_model::formats::on_load::WAYS;
use bantam_model::placement::{MACHINES, Parts, Policy, Question};
use bantam_model::plan::{Options, Plan};
use bantam_model::spec::ModelSpec;
use proptest::prelude::*;

/// A model that no maker would choose.
#[derive(Debug, Clone)]
struct Model {
    family: &'static str,
    hidden: usize,
    layers: usize,
    key_heads: usize,
    group: usize,
    width: usize,
    vocab: usize,
    tied: bool,
}

impl Model {
    fn spec(&self) -> ModelSpec {
        let Model { family, hidden, layers, key_heads, group, width, vocab, tied } = self;
        let json = format!(
            r#"{{"model_type":"{family}","hidden_size":{},"intermediate_size":{width},"num_hidden_layers":{layers},
            "num_attention_heads":{},"num_key_value_heads":{key_heads},"vocab_size":{vocab},"num_local_experts":5,
            "num_experts_per_tok":2,"tie_word_embeddings":{tied}}}"#,
            hidden * key_heads * group,
            key_heads * group,
        );
        ModelSpec::parse(json.as_bytes()).expect("it is sound")
    }
}

fn model() -> impl Strategy<Value = Model> {
    let family = prop::sample::select(vec!["gpt_neox", "llama", "qwen3", "mixtral", "gemma2"]);
    let hidden = prop::sample::select(vec![32usize, 64, 96]);
    (family, hidden, 1..6usize, 1..4usize, 1..4usize, 1..20usize, 10..3000usize, any::<bool>()).prop_map(
        |(family, hidden, layers, key_heads, group, width, vocab, tied)| {
            let width = 64 * width;
            Model { family, hidden, layers, key_heads, group, width, vocab, tied }
        },
    )
}

fn plan(spec: &ModelSpec) -> impl Strategy<Value = Plan> + use<> {
    let spec = spec.clone();
    let kv = prop::sample::select(vec![KvKind::F32, KvKind::F16, KvKind::Int8]);
    let way = prop::option::of(prop::sample::select(WAYS.iter().collect::<Vec<_>>()));
    (1..2000usize, 1..12usize, 1..600usize, kv, way, any::<bool>()).prop_map(
        move |(context, sequences, chunk, kv, quantization, exact)| {
            let precision = if exact { Precision::Exact } else { Precision::Fast };
            let chunk = chunk.min(context * sequences).max(sequences);
            let logits_rows = sequences.min(chunk);
            let options = Options {
                context,
                sequences,
                chunk,
                logits_rows,
                kv,
                precision,
                quantization,
                ..Options::SMALLEST
            };
            synthetic_plan(&spec, Dtype::Bf16, options, Cpu::detect()).expect("it can be planned")
        },
    )
}

fn case() -> impl Strategy<Value = (ModelSpec, Plan, Vec<f64>)> {
    let parts = prop::collection::vec(0.0..1.5f64, 1..4);
    model().prop_flat_map(move |model| {
        let spec = model.spec();
        (Just(spec.clone()), plan(&spec), parts.clone())
    })
}

/// What a forecast says of every card, within its budget; says whether there is a ring.
fn check(plan: &Plan, budgets: &[usize]) -> Result<bool, TestCaseError> {
    let labels: Vec<String> = (0..budgets.len()).map(|at| at.to_string()).collect();
    let cards: Vec<(&str, usize)> = labels.iter().map(String::as_str).zip(budgets.iter().copied()).collect();
    let Some(found) = Placed::forecast_on(plan, &cards, Manner::default()) else { return Ok(false) };
    for portion in &found.each {
        let at: usize = portion.card[0].parse().expect("a number");
        prop_assert!(portion.bytes <= budgets[at], "{found:?} within {budgets:?}");
        // All that was named is in it.
        let ring = found.ring_bytes / found.each.len();
        let parts = portion.weight_bytes + portion.cache_bytes + ring;
        prop_assert!(parts < portion.bytes, "{found:?}");
    }
    prop_assert_eq!(found.bytes, found.each.iter().map(|portion| portion.bytes).sum::<usize>());
    // The ring's slots are pinned here too, which is what the host is told; it may be a sixteenth of a card.
    prop_assert!(found.ring_bytes.is_multiple_of(found.each.len() * RING_SLOTS), "{:?}", found);
    let taken: Vec<usize> = found
        .each
        .iter()
        .map(|portion| budgets[portion.card[0].parse::<usize>().expect("a number")])
        .collect();
    prop_assert!(found.ring_bytes <= Placed::host_bytes(plan, &taken, Passage::Measured), "{:?}", found);
    prop_assert!(found.ring_bytes <= taken.iter().sum::<usize>() / 16, "{:?} within {:?}", found, budgets);
    prop_assert!(
        found.ring_bytes == 0 || found.kept_bytes == 0,
        "either it passes or it is kept: {:?}",
        found
    );
    Ok(found.ring_bytes > 0)
}

#[test]
fn no_plan_takes_more_of_a_card_than_its_budget() {
    let mut rings = 0;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let counted = std::cell::Cell::new(0);
    let done = runner.run(&case(), |(_, plan, parts)| {
        let whole = Placed::forecast(&plan, usize::MAX).expect("it fits");
        let divided = whole.weight_bytes + whole.cache_bytes;
        let beside = whole.bytes - divided - whole.kept_bytes;
        let budget = |part: &f64| beside + (part * divided as f64) as usize;
        let budgets: Vec<usize> = parts.iter().map(budget).collect();
        // And where there is too little for anything, or all but the last byte.
        for budgets in [budgets, vec![beside / 2, beside], vec![beside + divided - 1], vec![whole.bytes - 1]]
        {
            counted.set(counted.get() + usize::from(check(&plan, &budgets)?));
        }
        Ok(())
    });
    rings += counted.get();
    done.expect("every case");
    assert!(rings > 20, "a ring was planned {rings} times");
}

/// The same of the machines that are described, for every way to place a model.
#[test]
fn no_policy_takes_more_vram_than_a_described_machine_has() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let vram = 0..2_000_000_000u64;
    let done = runner.run(&(case(), vram), |((spec, plan, parts), vram)| {
        let sizes: Vec<u64> = parts.iter().map(|_| vram).collect();
        let parts = Parts::new(&spec, &plan);
        for machine in MACHINES.iter().filter(|machine| machine.card.is_some()) {
            for machine in [machine.with_vram(vram), machine.with_cards(&sizes)] {
                let most = machine.card.map_or(0, |card| card.free_vram());
                let question = Question { parts: &parts, machine: &machine, trace: None };
                for forecast in [Policy::Divided, Policy::Layers, Policy::ExpertLayers]
                    .into_iter()
                    .filter_map(|policy| question.forecast(policy))
                {
                    prop_assert!(forecast.vram <= most, "{:?} within {}", forecast, most);
                }
            }
        }
        Ok(())
    });
    done.expect("every case");
}
