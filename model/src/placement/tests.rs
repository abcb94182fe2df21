//! The policies on described machines: two shapes of twenty billion weights, written down as sizes, and routing that is
//! made up. What is checked are relations between policies that hold on every machine, not speeds.

use super::*;

/// A generator whose whole state is a number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn part(weights: f64, bits: f64, units: usize) -> Part {
    let bytes = weights * bits / 8.0;
    Part { held: bytes, read: bytes, ops: 2.0 * weights, units }
}

/// 44 layers of 6144 channels side by side with 1024 positions in eight bits; the head in four.
fn dense(bits: f64) -> Parts {
    let square = 6144.0 * 6144.0;
    let cache = 2.0 * 6144.0 * 1024.0 * 1.03;
    let layer = LayerParts {
        attention: part(4.0 * square, bits, 64),
        cache: Part { held: cache, read: cache, ops: 0.0, units: 64 },
        block: Block::Dense(part(8.0 * square, bits, 768)),
        parallel: true,
    };
    let head = part(50432.0 * 6144.0, 4.25, 1576);
    Parts {
        layers: vec![layer; 44],
        head,
        embedding: 310_000_000,
        small: 10_000_000,
        work: 200_000_000,
        kept: 0,
    }
}

/// 24 layers of 2880 channels, 32 experts of which a token is sent to four.
fn mixture(bits: f64) -> Parts {
    let cache = 48.0 * 1024.0 * 1024.0 / 24.0;
    let layer = LayerParts {
        attention: part(2880.0 * 4096.0 * 2.0 + 2.0 * 2880.0 * 512.0, bits, 8),
        cache: Part { held: cache, read: cache, ops: 0.0, units: 8 },
        block: Block::Experts { count: 32, chosen: 4, each: part(3.0 * 2880.0 * 2880.0, 4.25, 1) },
        parallel: false,
    };
    let head = part(201_088.0 * 2880.0, bits, 6284);
    Parts {
        layers: vec![layer; 24],
        head,
        embedding: 580_000_000,
        small: 20_000_000,
        work: 200_000_000,
        kept: 0,
    }
}

fn rate(parts: &Parts, machine: &Machine, trace: Option<&Trace>, policy: Policy) -> Option<f64> {
    let forecast = Question { parts, machine, trace }.forecast(policy)?;
    let card = machine.card.map_or(0, |card| card.free_vram());
    assert!(forecast.vram <= card, "{policy:?} on {}: {} of {card} bytes", machine.name, forecast.vram);
    Some(1.0 / forecast.seconds)
}

/// Tokens whose experts are the more popular the lower their rank is, in an order that drifts; each that was chosen is
/// chosen again with probability `again`.
fn routing(tokens: usize, zipf: f64, again: f64) -> Trace {
    let routes = Routes { layers: 24, experts: 32, chosen: 4 };
    let mut random = Random(7);
    let mut ranks: Vec<Vec<usize>> =
        (0..24).map(|layer| (0..32).map(|e| (e * 5 + layer) % 32).collect()).collect();
    let mut before: Vec<Vec<u16>> = vec![Vec::new(); 24];
    let mut trace = Trace::new(routes).unwrap();
    for token in 0..tokens {
        let mut all = Vec::new();
        for (ranks, before) in ranks.iter_mut().zip(&mut before) {
            if token % 256 == 255 {
                (0..10).for_each(|_| ranks.swap(random.below(32), random.below(32)));
            }
            let odds: Vec<f64> = ranks.iter().map(|&rank| (rank as f64 + 1.0).powf(-zipf)).collect();
            before.retain(|_| random.unit() < again);
            while before.len() < 4 {
                let mut left = random.unit() * odds.iter().sum::<f64>();
                let found = odds.iter().position(|odd| {
                    left -= odd;
                    left < 0.0
                });
                let expert = found.unwrap_or(31) as u16;
                if !before.contains(&expert) {
                    before.push(expert);
                }
            }
            all.extend_from_slice(before);
        }
        trace.push(&all).unwrap();
    }
    trace
}

#[test]
fn dividing_layers_beats_dealing_them_out_which_beats_copying_them() {
    for bits in [4.25, 2.0625, 1.625] {
        let parts = dense(bits);
        // Where all fits, there is nothing to divide.
        for machine in MACHINES.iter().filter(|machine| machine.card.is_some()) {
            let machine = machine.with_vram(4 << 30);
            let of = |policy| rate(&parts, &machine, None, policy).unwrap();
            let [divided, layers, cores] = [Policy::Divided, Policy::Layers, Policy::Cores].map(of);
            let copied = [Policy::Pinned, Policy::Streamed, Policy::Lru].map(of);
            println!(
                "{bits} bits, {}: divided {divided:.2}, layers {layers:.2}, cores {cores:.2}, copied {copied:.2?}",
                machine.name
            );
            // The faster the card is beside the memory, the less there is to win.
            let margin = if machine.name.starts_with("laptop") { 1.1 } else { 1.0 };
            assert!(divided > margin * layers && layers > cores, "{bits} bits on {}", machine.name);
            assert!(copied.is_sorted_by(|a, b| a >= b) && copied[0] < layers, "{copied:?}");
        }
    }
}

#[test]
fn the_best_is_never_slower_than_a_simple_one() {
    let uniform = routing(400, 0.0, 0.0);
    for parts in [dense(16.5), dense(4.25), dense(1.625), mixture(8.5), mixture(4.5)] {
        let trace = (parts.experts() > 0).then_some(&uniform);
        for machine in MACHINES {
            let mut last = 0.0;
            for gib in [1, 2, 3, 4, 6, 8, 12, 24, 80] {
                let machine = machine.with_vram(gib << 30);
                let question = Question { parts: &parts, machine: &machine, trace: None };
                let (auto, all) = (question.auto(), question.forecasts());
                for other in all.iter().filter(|other| other.fits || !auto.fits) {
                    assert!(auto.seconds <= other.seconds || !auto.fits, "{gib} GiB: {other:?}");
                }
                // More memory is never a loss.
                assert!(!auto.fits || 1.0 / auto.seconds >= 0.999 * last, "{} {gib} GiB", machine.name);
                last = if auto.fits { 1.0 / auto.seconds } else { last };
                assert!(
                    trace.is_none() || gib != 4 || Question { trace, ..question }.auto().fits == auto.fits
                );
            }
        }
    }
}

#[test]
fn hot_experts_are_level_with_whole_layers_until_routing_has_favourites() {
    let parts = mixture(8.5);
    let machine = Machine::named("laptop-3050-ddr4").unwrap();
    let of = |trace: &Trace, policy| rate(&parts, &machine, Some(trace), policy).unwrap();
    let traces =
        [(0.0, 0.0), (0.5, 0.2), (0.8, 0.3), (1.1, 0.5)].map(|(zipf, again)| routing(1200, zipf, again));
    let whole = of(&traces[0], Policy::ExpertLayers);
    let hot = [0, 1, 2, 3].map(|at| of(&traces[at], Policy::Divided) / whole);
    let fetched = of(&traces[3], Policy::Lru) / whole;
    println!("whole layers {whole:.1} tokens/s; hot experts, from uniform to strong favourites: {hot:.2?}");
    assert!((0.95..1.15).contains(&hot[0]), "{hot:?}");
    assert!(hot.is_sorted() && hot[2] > 1.1, "{hot:?}");
    assert!(fetched < 0.8, "{fetched}");
    for trace in &traces {
        let found = replay(trace, 150, Habits::default(), 256);
        assert!(found.uploads <= 1.4 && (found.hits.0.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{found:?}");
    }
}

#[test]
fn equal_experts_are_found_as_often_as_they_are_there() {
    for (count, cached, chosen) in [(32, 6, 4), (8, 0, 2), (8, 8, 2), (8, 7, 3), (128, 30, 8)] {
        let hits = Hits::uniform(count, cached, chosen);
        assert_eq!(hits.0.len(), chosen + 1);
        assert!((hits.0.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((hits.rate() - cached as f64 / count as f64).abs() < 1e-9, "{cached} of {count}");
    }
}

#[test]
fn prompts_pass_through_the_card_from_a_length_that_follows_from_the_machine() {
    let [fast, slow] = ["laptop-3050-ddr4", "laptop-3050-ddr4-pcie3"].map(|name| {
        let (parts, machine) = (dense(4.25), Machine::named(name).unwrap());
        let question = Question { parts: &parts, machine: &machine, trace: None };
        question.prefill(&question.auto(), 512)
    });
    println!("{fast:?} {slow:?}");
    assert!(fast.is_streamed && slow.is_streamed);
    let [from, later] = [fast, slow].map(|prefill| prefill.streams_from.unwrap());
    assert!(1 < from && from < later && later < 512, "{from} {later}");
    // The longest copies are hidden behind so many tokens.
    assert!((fast.rate() / slow.rate() - 1.0).abs() < 0.01);
    let (parts, machine) = (dense(4.25), Machine::named("cpu-only").unwrap());
    let question = Question { parts: &parts, machine: &machine, trace: None };
    assert_eq!(question.prefill(&question.auto(), 512).streams_from, None);
}

/// What the owner of a card knows of it: memory per place, what is copied there, what is used.
struct Owner {
    policy: HotExperts,
    under_way: Vec<Ticket>,
    has_memory: Vec<bool>,
    bytes: usize,
    used: Vec<(usize, u16)>,
}

const LAYERS: usize = 5;
const EXPERTS: usize = 12;
const PLACES: usize = 17;

impl Owner {
    /// Carries out what is asked, and counts bytes of its own.
    fn carry_out(&mut self) {
        for action in self.policy.actions() {
            match action {
                Action::Free(place) => {
                    assert!(std::mem::replace(&mut self.has_memory[place.0 as usize], false), "freed twice");
                    self.bytes -= 1;
                }
                Action::Upload { ticket, is_new, .. } => {
                    let at = ticket.place.0 as usize;
                    assert_eq!(std::mem::replace(&mut self.has_memory[at], true), !is_new);
                    assert!(!self.under_way.contains(&ticket), "two copies to one place");
                    self.bytes += usize::from(is_new);
                    self.under_way.push(ticket);
                }
            }
        }
    }

    fn event(&mut self, random: &mut Random, stale: &mut Vec<Ticket>) {
        let layer = random.below(LAYERS);
        match random.below(1000) {
            0..400 => {
                let mut experts: Vec<u16> =
                    (0..3).map(|_| (random.below(EXPERTS).min(random.below(EXPERTS))) as u16).collect();
                experts.sort_unstable();
                experts.dedup();
                self.policy.step(Event::Routed { layer, experts: &experts });
                let there = experts.iter().filter(|&&expert| self.policy.place(layer, expert).is_some());
                self.used.extend(there.map(|&expert| (layer, expert)));
            }
            400..700 => {
                self.used.retain(|&(used, _)| used != layer);
                self.policy.step(Event::Computed { layer });
            }
            700..850 => self.policy.step(Event::TokenEnded),
            850..990 if !self.under_way.is_empty() => {
                let ticket = self.under_way.swap_remove(random.below(self.under_way.len()));
                self.policy.step(Event::Uploaded(ticket));
            }
            990..996 => self.policy.step(Event::Budget(random.below(PLACES + 3))),
            996 => self.policy.step(Event::Unload),
            997 => {
                self.policy.step(Event::Lost);
                stale.append(&mut self.under_way);
                self.has_memory.fill(false);
                self.bytes = 0;
                self.used.clear();
            }
            998 if !stale.is_empty() => self.policy.step(Event::Uploaded(stale.remove(0))),
            999 => self.policy.fill(),
            _ => {}
        }
    }
}

#[test]
fn a_million_events_never_break_the_budget_nor_what_is_in_use() {
    let mut random = Random(1);
    let policy = HotExperts::new(LAYERS, EXPERTS, PLACES, Habits::default());
    let has_memory = vec![false; PLACES];
    let mut owner = Owner { policy, under_way: Vec::new(), has_memory, bytes: 0, used: Vec::new() };
    let mut stale = Vec::new();
    let mut most = 0;
    for at in 0..1_000_000 {
        let before = owner.bytes;
        owner.event(&mut random, &mut stale);
        owner.carry_out();
        let (shelf, budget) = (owner.policy.shelf(), owner.policy.shelf().budget());
        assert_eq!((shelf.open(), shelf.loading()), (owner.bytes, owner.under_way.len()), "event {at}");
        // Above a budget that became smaller it only goes down, and only what is used or on its way keeps it there.
        assert!(owner.bytes <= budget.max(before), "event {at}: {} of {budget}", owner.bytes);
        let held = owner.under_way.len() + owner.used.len();
        assert!(owner.bytes <= budget.max(held), "event {at}: {} of {budget}, {held} in use", owner.bytes);
        for &(layer, expert) in &owner.used {
            assert!(owner.policy.place(layer, expert).is_some(), "event {at}: {layer}/{expert} left in use");
        }
        most = most.max(owner.bytes);
    }
    assert_eq!(most, PLACES);
    owner.policy.step(Event::Unload);
    (0..LAYERS).for_each(|layer| owner.policy.step(Event::Computed { layer }));
    owner.under_way.drain(..).for_each(|ticket| owner.policy.step(Event::Uploaded(ticket)));
    owner.carry_out();
    assert_eq!((owner.bytes, owner.policy.shelf().open()), (0, 0), "all is given back");
}
