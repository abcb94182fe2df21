//! Each processor beside its definition, and the properties of a draw.

use super::*;
use proptest::prelude::*;

fn sampler(params: SamplingParams, vocab_size: usize) -> Sampler {
    Sampler::new(params, vocab_size).unwrap()
}

/// Pseudo-random logits with ties.
fn logits(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| ((random.unit() * 40.0).round() / 4.0 - 5.0) as f32).collect()
}

#[test]
fn the_generator_is_the_published_one() {
    // First outputs of the authors' C code for the state 1, 2, 3, 4.
    let mut random = Random { state: [1, 2, 3, 4] };
    let expected = [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386];
    assert_eq!([(); 4].map(|()| random.bits()), expected);
    assert_eq!(Random::new(0).state[0], 0xE220_A839_7B1D_CDAF, "SplitMix64 of 0");
}

#[test]
fn exp_is_more_exact_than_the_weights() {
    for step in 0..200_000 {
        let x = -f64::from(step) * 0.003_5;
        assert!((exp(x) - x.exp()).abs() <= x.exp() * 1e-11, "{x}");
    }
    assert_eq!(exp(f64::NEG_INFINITY), 0.0);
}

#[test]
fn temperature_zero_is_argmax_with_the_lowest_id() {
    let params = SamplingParams { temperature: 0.0, top_k: 1, ..SamplingParams::default() };
    assert_eq!(sampler(params, 4).sample(&mut [1.0, 3.0, 3.0, -1.0], &[1]), Ok(1));
}

#[test]
fn argmax_finds_the_first_of_the_largest_wherever_it_lies() {
    for count in 1..70_u32 {
        for at in 0..count {
            let mut logits: Vec<f32> = (0..count).map(|id| if id < at { -0.5 } else { 0.0 }).collect();
            assert_eq!(argmax(&logits), Ok(at), "{count} logits");
            logits[at as usize] = f32::NAN;
            assert_eq!(argmax(&logits), Err(SamplerError::NotANumber { id: at }), "{count} logits");
        }
    }
    assert_eq!(argmax(&[]), Err(SamplerError::NothingLeft));
}

#[test]
fn broken_logits_are_errors() {
    for temperature in [0.0, 1.0] {
        let params = SamplingParams { temperature, top_p: 0.9, ..SamplingParams::default() };
        let mut sampler = sampler(params, 3);
        let nothing = f32::NEG_INFINITY;
        assert_eq!(sampler.sample(&mut [0.0, f32::NAN, 1.0], &[]), Err(SamplerError::NotANumber { id: 1 }));
        assert_eq!(sampler.sample(&mut [nothing; 3], &[]), Err(SamplerError::NothingLeft));
        assert_eq!(sampler.sample(&mut [0.0; 2], &[]), Err(SamplerError::Length { expected: 3, found: 2 }));
        assert_eq!(sampler.sample(&mut [0.0, f32::INFINITY, 1.0], &[]), Ok(1));
        assert_eq!(sampler.sample(&mut [nothing, nothing, -3e38], &[]), Ok(2));
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let refused = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        Sampler::new(params, 8).unwrap_err().to_string()
    };
    assert!(refused(|p| p.temperature = -1.0).starts_with("expected temperature of 0 or more, found -1"));
    assert!(refused(|p| p.temperature = f64::NAN).contains("temperature"));
    assert!(refused(|p| p.temperature = 1e-60).contains("temperature"));
    assert!(refused(|p| p.top_p = 1.5).contains("top_p"));
    assert!(refused(|p| p.repetition_penalty = 0.0).contains("repetition_penalty"));
    assert!(refused(|p| p.logit_bias = vec![(8, 0.0)]).contains("id 8"));
}

#[test]
fn presence_and_frequency_count_only_what_was_generated() {
    let params =
        SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingParams::default() };
    let mut sampler = sampler(params, 4);
    sampler.begin(2);
    let mut logits = [0.0, 0.0, 0.0, 0.0];
    sampler.sample(&mut logits, &[0, 1, 1, 2, 2, 2, 900]).unwrap();
    assert_eq!(logits, [0.0, -0.75, -1.25, 0.0]);
    assert!(sampler.counts.iter().all(|&count| count == 0));
}

#[test]
fn a_bias_forces_and_forbids() {
    let params =
        SamplingParams { logit_bias: vec![(0, f32::NEG_INFINITY), (2, 100.0)], ..SamplingParams::default() };
    assert_eq!(sampler(params, 3).sample(&mut [50.0, 0.0, 0.0], &[]), Ok(2));
}

#[test]
fn draws_follow_the_distribution() {
    let mut sampler = sampler(SamplingParams::default(), 3);
    let mut counts = [0_u32; 3];
    for _ in 0..20_000 {
        counts[sampler.sample(&mut [0.0, 1.0, 2.0], &[]).unwrap() as usize] += 1;
    }
    for (count, expected) in counts.iter().zip([0.0900, 0.2447, 0.6652]) {
        assert!((f64::from(*count) / 20_000.0 - expected).abs() < 0.01, "{counts:?}");
    }
}

/// Top-p by a full sort, as the original.
fn top_p_by_sort(logits: &[f32], p: f64) -> Vec<u32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|&l| f64::from(l - largest).exp() as f32).collect();
    let mass: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let mut sum = 0.0;
    let last = order[order.len() - 1];
    order.retain(|&id| {
        sum += f64::from((f64::from(weights[id]) / mass) as f32);
        sum as f32 > (1.0 - p) as f32 || id == last
    });
    let mut kept: Vec<u32> = order.into_iter().map(|id| id as u32).collect();
    kept.sort_unstable();
    kept
}

proptest! {
    #[test]
    fn same_seed_same_tokens(seed in any::<u64>(), top_p in 0.1..1.0_f64, top_k in 0..20_usize) {
        let params = SamplingParams { seed, top_p, top_k, temperature: 0.7, ..SamplingParams::default() };
        let (mut one, mut other) = (sampler(params.clone(), 50), sampler(params, 50));
        for step in 0..20 {
            let mut first = logits(step, 50);
            let mut second = first.clone();
            prop_assert_eq!(one.sample(&mut first, &[]), other.sample(&mut second, &[]));
        }
    }

    #[test]
    fn top_p_equals_a_full_sort(seed in any::<u64>(), count in 1..400_usize, p in 0.0..1.0_f64) {
        let logits = logits(seed, count);
        let mut candidates = Candidates::new(count);
        candidates.load(&logits).unwrap();
        candidates.top_p(p);
        let kept: Vec<u32> = candidates.list.iter().map(|candidate| candidate.id).collect();
        prop_assert_eq!(kept, top_p_by_sort(&logits, p));
    }

    #[test]
    fn every_combination_chooses_a_possible_token(
        seed in any::<u64>(), count in 1..60_usize, temperature in 0.0..3.0_f64, top_p in 0.0..=1.0_f64,
        min_p in 0.0..=1.0_f64, typical_p in 0.01..=1.0_f64,
        eta in 0.0..0.5_f64, history in proptest::collection::vec(0..60_u32, 0..30),
    ) {
        let params = SamplingParams {
            temperature, top_p, min_p, typical_p, eta_cutoff: eta, epsilon_cutoff: eta, seed,
            repetition_penalty: 1.3,
            frequency_penalty: 0.2, ..SamplingParams::default()
        };
        let mut sampler = sampler(params, count);
        let chosen = sampler.sample(&mut logits(seed, count), &history).unwrap();
        prop_assert!((chosen as usize) < count);
    }
}
