//! Logits to one token id: penalties, then filters, then one draw. Allocates at construction only.
//!
//! Each step has the semantics of the Hugging Face `LogitsProcessor` named in its comment, including what happens
//! to ties. The vocabulary is never sorted as a whole: filters work on a shrinking list of candidates, and cuts
//! in cumulative mass are found by partial selection. It decides nothing about defaults; that is `generation.rs`.
//!
//! Results are the same on every machine and with every version of Rust: sums run in the order of ids, `exp` is
//! our own, and so is the generator.

use std::cmp::Ordering;

/// What to do to a distribution before drawing from it. `default` leaves it as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the largest logit and ignores all filters below.
    pub temperature: f64,
    /// Keeps the k largest logits and all that equal the k-th; 0 is off.
    pub top_k: usize,
    /// Keeps the smallest set of most probable tokens whose mass reaches this; 1 is off.
    pub top_p: f64,
    /// Keeps tokens at least this probable relative to the most probable one; 0 is off.
    pub min_p: f64,
    /// Keeps the tokens closest to the expected surprise, up to this mass; 1 is off.
    pub typical_p: f64,
    /// Removes tokens less probable than this; 0 is off.
    pub epsilon_cutoff: f64,
    /// Removes tokens less probable than an entropy-dependent bound; 0 is off.
    pub eta_cutoff: f64,
    /// Divides positive and multiplies negative logits of every token in the history; 1 is off.
    pub repetition_penalty: f64,
    /// Subtracted once from the logit of every token that was generated; 0 is off.
    pub presence_penalty: f64,
    /// Subtracted for every time the token was generated; 0 is off.
    pub frequency_penalty: f64,
    /// Forbids repeating a sequence of this many tokens; 0 is off.
    pub no_repeat_ngram: usize,
    /// Added to single logits before everything else. Minus infinity forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the generator: same seed, same logits, same tokens.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram: 0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// Why parameters are refused, or why no token could be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// A parameter is out of its range.
    #[error("expected {name} {expected}, found {found}; correct it")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Its range in words.
        expected: &'static str,
        /// What was given.
        found: f64,
    },
    /// A bias for a token that does not exist, or not a usable number.
    #[error(
        "expected logit_bias for ids below {vocab_size}, finite or minus infinity, found {bias} for id {id}; correct it"
    )]
    Bias {
        /// The token.
        id: u32,
        /// The number.
        bias: f32,
        /// The number of logits.
        vocab_size: usize,
    },
    /// The vocabulary is empty or longer than ids can count.
    #[error("expected a vocabulary of 1 to {} tokens, found {found}; check the model's vocab_size", u32::MAX)]
    VocabSize {
        /// What was given.
        found: usize,
    },
    /// The logits do not fit the sampler.
    #[error("expected {expected} logits, found {found}; make the sampler with the model's vocab_size")]
    Length {
        /// What the sampler was made for.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A logit is not a number.
    #[error("expected numbers as logits, found NaN for id {id}; the weights or the computation are broken")]
    NotANumber {
        /// The first such token.
        id: u32,
    },
    /// Every token is forbidden.
    #[error(
        "expected at least one possible token, found every logit at minus infinity; relax logit_bias or no_repeat_ngram"
    )]
    NothingLeft,
}

impl SamplingParams {
    /// Checks every range.
    pub fn check(&self) -> Result<(), SamplerError> {
        let refuse = |name, expected, found| Err(SamplerError::Parameter { name, expected, found });
        // Written so that NaN fails.
        let ranges = [
            ("temperature", "of 0 or more", self.temperature, self.temperature >= 0.0),
            ("top_p", "from 0 to 1", self.top_p, (0.0..=1.0).contains(&self.top_p)),
            ("min_p", "from 0 to 1", self.min_p, (0.0..=1.0).contains(&self.min_p)),
            (
                "typical_p",
                "above 0 and up to 1",
                self.typical_p,
                self.typical_p > 0.0 && self.typical_p <= 1.0,
            ),
            (
                "epsilon_cutoff",
                "from 0 to below 1",
                self.epsilon_cutoff,
                (0.0..1.0).contains(&self.epsilon_cutoff),
            ),
            ("eta_cutoff", "from 0 to below 1", self.eta_cutoff, (0.0..1.0).contains(&self.eta_cutoff)),
            ("repetition_penalty", "above 0", self.repetition_penalty, self.repetition_penalty > 0.0),
            ("presence_penalty", "as a finite number", self.presence_penalty, true),
            ("frequency_penalty", "as a finite number", self.frequency_penalty, true),
        ];
        for (name, expected, found, within) in ranges {
            // Finite as float32 too: that is what the logits are.
            if !within || !(found as f32).is_finite() {
                return refuse(name, expected, found);
            }
        }
        // A temperature or penalty that underflows to zero as float32 would divide by zero.
        if self.temperature > 0.0 && (self.temperature as f32) == 0.0 {
            return refuse("temperature", "of 0, or at least 1e-45", self.temperature);
        }
        if (self.repetition_penalty as f32) == 0.0 {
            return refuse("repetition_penalty", "of at least 1e-45", self.repetition_penalty);
        }
        Ok(())
    }
}

/// Chooses tokens for one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    random: Random,
    /// How often each token occurs; all zero between calls.
    counts: Vec<u32>,
    candidates: Candidates,
    prompt_tokens: usize,
}

impl Sampler {
    /// Checks the parameters and allocates for `vocab_size` logits, about 28 bytes each.
    pub fn new(params: SamplingParams, vocab_size: usize) -> Result<Self, SamplerError> {
        params.check()?;
        if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
            return Err(SamplerError::VocabSize { found: vocab_size });
        }
        for &(id, bias) in &params.logit_bias {
            if id as usize >= vocab_size || bias.is_nan() || bias == f32::INFINITY {
                return Err(SamplerError::Bias { id, bias, vocab_size });
            }
        }
        let random = Random::new(params.seed);
        let counts = vec![0; vocab_size];
        Ok(Sampler { params, random, counts, candidates: Candidates::new(vocab_size), prompt_tokens: 0 })
    }

    /// Bytes that a sampler for `vocab_size` logits keeps.
    pub fn heap_bytes(vocab_size: usize) -> usize {
        vocab_size.saturating_mul(size_of::<u32>() + 2 * size_of::<Candidate>())
    }

    /// Begins a sequence: the generator starts again from the seed. The first `prompt_tokens` of every history
    /// count for the repetition penalty (as in Hugging Face) but not for presence and frequency (as in OpenAI's
    /// interface, which defines them over generated text).
    pub fn begin(&mut self, prompt_tokens: usize) {
        self.random = Random::new(self.params.seed);
        self.prompt_tokens = prompt_tokens;
    }

    /// Chooses the next token after `history` (prompt and generated tokens). `logits` are overwritten.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32, SamplerError> {
        if logits.len() != self.counts.len() {
            return Err(SamplerError::Length { expected: self.counts.len(), found: logits.len() });
        }
        self.penalize(logits, history);
        if self.params.temperature == 0.0 {
            return argmax(logits);
        }
        let (params, candidates) = (&self.params, &mut self.candidates);
        candidates.load(logits)?;
        candidates.temperature(params.temperature);
        if params.top_k > 0 {
            candidates.top_k(params.top_k);
        }
        if params.top_p < 1.0 {
            candidates.top_p(params.top_p);
        }
        if params.min_p > 0.0 {
            candidates.min_p(params.min_p);
        }
        if params.typical_p < 1.0 {
            candidates.typical_p(params.typical_p);
        }
        if params.epsilon_cutoff > 0.0 {
            candidates.epsilon_cutoff(params.epsilon_cutoff);
        }
        if params.eta_cutoff > 0.0 {
            candidates.eta_cutoff(params.eta_cutoff);
        }
        Ok(candidates.draw(self.random.unit()))
    }

    fn penalize(&mut self, logits: &mut [f32], history: &[u32]) {
        let params = &self.params;
        for &(id, bias) in &params.logit_bias {
            logits[id as usize] += bias;
        }
        if params.repetition_penalty != 1.0 {
            repetition_penalty(logits, history, params.repetition_penalty, &mut self.counts);
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            let generated = &history[self.prompt_tokens.min(history.len())..];
            let (presence, frequency) = (params.presence_penalty, params.frequency_penalty);
            count_penalties(logits, generated, presence, frequency, &mut self.counts);
        }
        if params.no_repeat_ngram > 0 {
            no_repeat_ngram(logits, history, params.no_repeat_ngram);
        }
    }
}

/// The largest logit's id, the lowest among equals.
pub fn argmax(logits: &[f32]) -> Result<u32, SamplerError> {
    // In lanes that do not wait for each other: a vocabulary at one number a time costs more than sending the token.
    const LANES: usize = 16;
    let (pieces, rest) = logits.as_chunks::<LANES>();
    let (mut most, mut not_a_number) = ([f32::NEG_INFINITY; LANES], [0_u32; LANES]);
    for piece in pieces {
        for ((most, not_a_number), &logit) in most.iter_mut().zip(&mut not_a_number).zip(piece) {
            *most = if logit > *most { logit } else { *most };
            *not_a_number |= u32::from(logit.is_nan());
        }
    }
    if not_a_number != [0; LANES] || rest.iter().any(|logit| logit.is_nan()) {
        let id = logits.iter().position(|logit| logit.is_nan()).expect("one was seen");
        return Err(SamplerError::NotANumber { id: id as u32 });
    }
    let best = most.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &logit| best.max(logit));
    if best == f32::NEG_INFINITY {
        return Err(SamplerError::NothingLeft);
    }
    let holds = |piece: &[f32; LANES]| piece.iter().fold(false, |holds, &logit| holds | (logit == best));
    let begin = pieces.iter().position(holds).unwrap_or(pieces.len()) * LANES;
    let id = logits[begin..].iter().position(|&logit| logit == best).expect("the largest is one of them");
    Ok((begin + id) as u32)
}

/// `RepetitionPenaltyLogitsProcessor`: once per distinct token. `counts` is all zero before and after.
pub fn repetition_penalty(logits: &mut [f32], history: &[u32], penalty: f64, counts: &mut [u32]) {
    let penalty = penalty as f32;
    for_each_counted(
        logits,
        history,
        counts,
        |logit, _| {
            if logit < 0.0 { logit * penalty } else { logit / penalty }
        },
    );
}

/// OpenAI's presence and frequency penalties. `counts` is all zero before and after.
pub fn count_penalties(
    logits: &mut [f32],
    generated: &[u32],
    presence: f64,
    frequency: f64,
    counts: &mut [u32],
) {
    for_each_counted(logits, generated, counts, |logit, count| {
        logit - (presence + frequency * f64::from(count)) as f32
    });
}

/// Applies `change` once to the logit of every distinct token, with its count. Ids beyond the logits are ignored.
fn for_each_counted(
    logits: &mut [f32],
    tokens: &[u32],
    counts: &mut [u32],
    change: impl Fn(f32, u32) -> f32,
) {
    for &id in tokens {
        if let Some(count) = counts.get_mut(id as usize) {
            *count += 1;
        }
    }
    for &id in tokens {
        if let (Some(count), Some(logit)) = (counts.get_mut(id as usize), logits.get_mut(id as usize))
            && *count > 0
        {
            *logit = change(*logit, *count);
            *count = 0;
        }
    }
}

/// `NoRepeatNGramLogitsProcessor`: forbids every token that would complete `size` tokens seen before.
pub fn no_repeat_ngram(logits: &mut [f32], history: &[u32], size: usize) {
    if size == 0 || history.len() + 1 < size {
        return;
    }
    let last = &history[history.len() + 1 - size..];
    for window in history.windows(size) {
        if let Some((&next, before)) = window.split_last()
            && before == last
            && let Some(logit) = logits.get_mut(next as usize)
        {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// One token that is still possible.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    id: u32,
    /// Proportional to the probability: `exp(logit - largest logit)`.
    weight: f32,
}

/// The tokens that are still possible, in the order of ids; every other logit counts as minus infinity.
///
/// The methods are the filters one by one, so that tests can compare each with the original.
#[derive(Debug, Clone)]
pub struct Candidates {
    list: Vec<Candidate>,
    /// Room for partial selection, which scrambles the order.
    scratch: Vec<Candidate>,
    /// Sum of all weights.
    mass: f64,
    /// Whether `weight` and `mass` belong to the present list.
    weighed: bool,
}

impl Candidates {
    /// Allocates for `vocab_size` tokens.
    pub fn new(vocab_size: usize) -> Self {
        let room = || Vec::with_capacity(vocab_size);
        Candidates { list: room(), scratch: room(), mass: 0.0, weighed: false }
    }

    /// Takes the logits, at most as many as there is room for.
    pub fn load(&mut self, logits: &[f32]) -> Result<(), SamplerError> {
        assert!(logits.len() <= self.list.capacity(), "more logits than the vocabulary has tokens");
        self.list.clear();
        self.weighed = false;
        for (id, &logit) in (0_u32..).zip(logits) {
            if logit.is_nan() {
                return Err(SamplerError::NotANumber { id });
            }
            if logit > f32::NEG_INFINITY {
                self.list.push(Candidate { logit, id, weight: 0.0 });
            }
        }
        if self.list.is_empty() { Err(SamplerError::NothingLeft) } else { Ok(()) }
    }

    /// Writes the logits back, minus infinity for every token that was removed.
    pub fn write_logits(&self, logits: &mut [f32]) {
        logits.fill(f32::NEG_INFINITY);
        for candidate in &self.list {
            logits[candidate.id as usize] = candidate.logit;
        }
    }

    /// Writes the probability of every token.
    pub fn write_probabilities(&mut self, probabilities: &mut [f32]) {
        self.weigh();
        probabilities.fill(0.0);
        for candidate in &self.list {
            probabilities[candidate.id as usize] = self.probability(candidate);
        }
    }

    /// `TemperatureLogitsWarper`.
    pub fn temperature(&mut self, temperature: f64) {
        let temperature = temperature as f32;
        for candidate in &mut self.list {
            candidate.logit /= temperature;
        }
        self.weighed = false;
    }

    /// `TopKLogitsWarper`: keeps everything that is not below the k-th largest.
    pub fn top_k(&mut self, k: usize) {
        if k == 0 || k >= self.list.len() {
            return;
        }
        self.scratch.clone_from(&self.list);
        let (_, kth, _) = self.scratch.select_nth_unstable_by(k - 1, |a, b| b.logit.total_cmp(&a.logit));
        let least = kth.logit;
        self.retain(|candidate| candidate.logit >= least);
    }

    /// `TopPLogitsWarper`: removes from the least probable up while the removed mass is at most 1 - p. Of equal
    /// logits the lower ids go first; the original's sort does so mostly, and promises nothing.
    pub fn top_p(&mut self, p: f64) {
        self.weigh();
        let limit = (1.0 - p) as f32;
        // Tokens so improbable that even all together they stay below the limit go first, unsorted: mostly all
        // but some hundreds. The factor keeps clear of rounding.
        let negligible = 0.99 * f64::from(limit) / self.list.len() as f64;
        let mut before = 0.0;
        self.scratch.clear();
        for candidate in &self.list {
            let probability = f64::from(self.probability(candidate));
            if probability < negligible {
                before += probability;
            } else {
                self.scratch.push(*candidate);
            }
        }
        let order = |a: &Candidate, b: &Candidate| a.logit.total_cmp(&b.logit).then(a.id.cmp(&b.id));
        let first = first_beyond(&mut self.scratch, self.mass, before, order, |sum| sum as f32 > limit);
        self.retain(|candidate| order(candidate, &first) != Ordering::Less);
    }

    /// `MinPLogitsWarper`.
    pub fn min_p(&mut self, min_p: f64) {
        self.weigh();
        let most = self.list.iter().map(|candidate| self.probability(candidate)).fold(0.0, f32::max);
        let least = most * min_p as f32;
        self.keep_probable(least);
    }

    /// `TypicalLogitsWarper`: keeps the tokens whose surprise is closest to the entropy, up to the mass.
    pub fn typical_p(&mut self, mass: f64) {
        self.weigh();
        let (largest, log_mass) = (self.largest(), self.mass.ln() as f32);
        let surprise = |candidate: &Candidate| log_mass - (candidate.logit - largest);
        let entropy = self.entropy();
        let distance = |candidate: &Candidate| (surprise(candidate) - entropy).abs();
        let order = |a: &Candidate, b: &Candidate| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id));
        self.scratch.clone_from(&self.list);
        let mass = mass as f32;
        let last = first_beyond(&mut self.scratch, self.mass, 0.0, order, |sum| sum as f32 >= mass);
        let most = distance(&last);
        self.retain(|candidate| distance(candidate) <= most);
    }

    /// `EpsilonLogitsWarper`: removes what is less probable than `epsilon`, never the most probable.
    pub fn epsilon_cutoff(&mut self, epsilon: f64) {
        self.weigh();
        self.keep_probable(epsilon as f32);
    }

    /// `EtaLogitsWarper`: as `epsilon_cutoff`, with a bound that falls as the entropy grows.
    pub fn eta_cutoff(&mut self, epsilon: f64) {
        self.weigh();
        let epsilon = epsilon as f32;
        let bound = epsilon.sqrt() * exp(-f64::from(self.entropy())) as f32;
        self.keep_probable(epsilon.min(bound));
    }

    /// The token at `unit` (from 0 to below 1) of the cumulative distribution in the order of ids.
    pub fn draw(&mut self, unit: f64) -> u32 {
        self.weigh();
        let target = unit * self.mass;
        let mut sum = 0.0;
        let mut chosen = self.list.first().map_or(0, |candidate| candidate.id);
        for candidate in &self.list {
            if candidate.weight > 0.0 {
                chosen = candidate.id;
                sum += f64::from(candidate.weight);
                if sum > target {
                    break;
                }
            }
        }
        chosen
    }

    fn largest(&self) -> f32 {
        self.list.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max)
    }

    /// Computes weights and mass where the list has changed so that they no longer hold.
    fn weigh(&mut self) {
        if self.weighed {
            return;
        }
        let largest = self.largest();
        self.mass = 0.0;
        for candidate in &mut self.list {
            // An infinite logit (a bias, or an overflow by a tiny temperature) takes everything.
            candidate.weight = if candidate.logit == largest {
                1.0
            } else {
                exp(f64::from(candidate.logit - largest)) as f32
            };
            self.mass += f64::from(candidate.weight);
        }
        self.weighed = true;
    }

    fn probability(&self, candidate: &Candidate) -> f32 {
        (f64::from(candidate.weight) / self.mass) as f32
    }

    /// Expected surprise, in nats.
    fn entropy(&self) -> f32 {
        let (largest, log_mass) = (self.largest(), self.mass.ln());
        let mut entropy = 0.0;
        for candidate in self.list.iter().filter(|candidate| candidate.weight > 0.0) {
            let surprise = log_mass - f64::from(candidate.logit - largest);
            entropy += f64::from(candidate.weight) / self.mass * surprise;
        }
        entropy as f32
    }

    /// Keeps what is at least this probable, and the largest logit in any case.
    fn keep_probable(&mut self, least: f32) {
        let (largest, mass) = (self.largest(), self.mass);
        self.retain(|candidate| {
            (f64::from(candidate.weight) / mass) as f32 >= least || candidate.logit == largest
        });
    }

    /// Keeps what the test accepts, in order. Weights stay relative to the largest logit; if that one went, they
    /// are computed anew, since all others could have underflowed.
    fn retain(&mut self, test: impl Fn(&Candidate) -> bool) {
        let largest = self.largest();
        self.list.retain(|candidate| test(candidate));
        if self.weighed {
            self.weighed = self.largest() == largest;
            self.mass = self.list.iter().map(|candidate| f64::from(candidate.weight)).sum();
        }
    }
}

/// The first candidate, in `order`, at which the cumulative probability, counted on from `before`, is `beyond` the
/// limit; the last one if it never is. The list is halved around its median and only the half with the answer is
/// looked at again, so the
/// work is linear in its length.
fn first_beyond(
    list: &mut [Candidate],
    mass: f64,
    mut before: f64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    beyond: impl Fn(f64) -> bool,
) -> Candidate {
    let probability = |candidate: &Candidate| f64::from((f64::from(candidate.weight) / mass) as f32);
    let mut range = &mut list[..];
    while range.len() > 1 {
        let middle = range.len() / 2;
        range.select_nth_unstable_by(middle, &order);
        let (low, high) = range.split_at_mut(middle);
        let sum = before + low.iter().map(probability).sum::<f64>();
        if beyond(sum) {
            range = low;
        } else {
            before = sum;
            range = high;
        }
    }
    range[0]
}

/// e to the power `x` for `x` of at most 0: the same bits on every machine, which the system's `exp` does not
/// promise. Cody-Waite reduction to |r| <= ln(2)/2, then Taylor's series to r^9, whose rest is below 1e-11: four
/// more digits than the float32 weights hold.
pub(crate) fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
    /// Adding this rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const INVERSE_FACTORIALS: [f64; 10] = {
        let mut inverses = [1.0; 10];
        let mut k = 1;
        while k < 10 {
            inverses[k] = inverses[k - 1] / k as f64;
            k += 1;
        }
        inverses
    };
    if x < -700.0 {
        return 0.0;
    }
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut sum = INVERSE_FACTORIALS[9];
    for &inverse in INVERSE_FACTORIALS[..9].iter().rev() {
        sum = sum * r + inverse;
    }
    // Two to the power n: n lies within -1010..=0, so the exponent field cannot overflow.
    sum * f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52)
}

/// xoshiro256++ 1.0 of Blackman and Vigna, seeded by SplitMix64 as they advise. Small, fast, and written out here
/// so that a seed means the same in every version; not for secrets.
#[derive(Debug, Clone)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// Any seed is good, also 0.
    pub fn new(mut seed: u64) -> Self {
        let mut next = || {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        Random { state: [next(), next(), next(), next()] }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number from 0 to below 1, of 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests;
