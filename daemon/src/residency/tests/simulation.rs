//! A million random events, in several kinds of weather, against the books of [`World`]; and least recently used
//! against a model of it that fits on a screen.

use std::time::Duration;

use bantam_model::sampler::Random;

use super::super::*;
use super::world::{Place, World};

/// How often what happens, and on what. The eight weights: acquire, release, something ends, cancel, unload, pin,
/// budget, time.
struct Weather {
    name: &'static str,
    weights: [u64; 8],
    models: u64,
    vram: bool,
    /// How many models may be there; 0 is any number.
    places: u64,
    /// Loads out of a hundred that fail.
    failures: u64,
    waiting_max: usize,
}

const WEATHERS: &[Weather] = &[
    Weather {
        name: "calm",
        weights: [20, 20, 50, 1, 1, 1, 0, 5],
        models: 6,
        vram: false,
        places: 0,
        failures: 1,
        waiting_max: 16,
    },
    Weather {
        name: "storm",
        weights: [60, 12, 25, 8, 8, 1, 0, 2],
        models: 20,
        vram: false,
        places: 0,
        failures: 5,
        waiting_max: 64,
    },
    Weather {
        name: "swings",
        weights: [30, 20, 30, 2, 2, 2, 8, 5],
        models: 9,
        vram: false,
        places: 0,
        failures: 3,
        waiting_max: 16,
    },
    Weather {
        name: "failing",
        weights: [30, 15, 30, 15, 3, 1, 1, 5],
        models: 9,
        vram: false,
        places: 0,
        failures: 60,
        waiting_max: 8,
    },
    Weather {
        name: "pins",
        weights: [30, 25, 30, 2, 4, 15, 2, 5],
        models: 9,
        vram: false,
        places: 0,
        failures: 3,
        waiting_max: 16,
    },
    Weather {
        name: "two devices",
        weights: [30, 20, 30, 3, 3, 3, 3, 5],
        models: 12,
        vram: true,
        places: 0,
        failures: 5,
        waiting_max: 16,
    },
    Weather {
        name: "few places",
        weights: [30, 20, 30, 3, 3, 3, 3, 5],
        models: 12,
        vram: false,
        places: 2,
        failures: 5,
        waiting_max: 16,
    },
    Weather {
        name: "no waiting",
        weights: [30, 25, 30, 3, 3, 3, 3, 5],
        models: 6,
        vram: true,
        places: 0,
        failures: 5,
        waiting_max: 1,
    },
];
const EVENTS: u64 = 1_000_000;
/// Events of one life of a daemon.
const EVENTS_PER_LIFE: u64 = 20_000;
/// References out at once.
const REFERENCES_MAX: usize = 40;
const BUDGET: u64 = 100;

/// Says which life ended badly.
struct Epitaph<'a>(&'a Weather, u64);

impl Drop for Epitaph<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this was {:?}, seed {}", self.0.name, self.1);
        }
    }
}

fn below(random: &mut Random, end: u64) -> u64 {
    random.bits() % end
}

/// The bytes of a model: small ones, halves of the budget, and now and then one that never fits.
fn size(weather: &Weather, id: u64) -> Bytes {
    let ram = [7, 55, 30, 12, 100, 45, 101, 1, 20][usize::try_from(id % 9).unwrap()];
    let vram = [0, 60, 10, 0, 30, 100, 1][usize::try_from(id % 7).unwrap()];
    Bytes::new(ram, if weather.vram { vram } else { 0 }).places(weather.places.min(1))
}

fn budget(weather: &Weather, random: &mut Random) -> Bytes {
    let mut one = || [0, 10, 50, 80, 100, 100, 130][usize::try_from(random.bits() % 7).unwrap()];
    Bytes::new(one(), if weather.vram { one() } else { 0 }).places(weather.places)
}

fn live(weather: &Weather, seed: u64) -> World {
    let _epitaph = Epitaph(weather, seed);
    let mut random = Random::new(seed);
    let whole = Bytes::new(BUDGET, if weather.vram { BUDGET } else { 0 }).places(weather.places);
    let mut world = World::new(whole, weather.waiting_max);
    while world.steps < EVENTS_PER_LIFE {
        let mut draw = below(&mut random, weather.weights.iter().sum());
        let chosen = weather.weights.iter().position(|&weight| {
            let here = draw < weight;
            draw = draw.wrapping_sub(weight);
            here
        });
        happen(weather, chosen.unwrap(), &mut world, &mut random);
    }
    world.close(whole);
    world
}

fn happen(weather: &Weather, what: usize, world: &mut World, random: &mut Random) {
    // Some models are wanted much more often than others.
    let number = below(random, weather.models).min(below(random, weather.models));
    let (id, bytes) = (ModelId(number), size(weather, number));
    let one_of = |random: &mut Random, count: usize| usize::try_from(random.bits() % count as u64).unwrap();
    // Users end some time, or a model in use would never be free for others.
    let what = if world.references.len() > REFERENCES_MAX { 1 } else { what };
    match what {
        0 => {
            let ttl = [None, Some(0), Some(20), Some(500)][one_of(random, 4)];
            let pin = below(random, 50) == 0;
            world.acquire(id, bytes, ttl.map(Duration::from_millis), pin);
        }
        1 if !world.references.is_empty() => {
            let at = one_of(random, world.references.len());
            let ticket = *world.references.keys().nth(at).unwrap();
            world.release(ticket);
        }
        2 => {
            let under_way = world.under_way();
            if !under_way.is_empty() {
                let id = under_way[one_of(random, under_way.len())];
                let stopped = world.memory[&id].0 == Place::Stopping;
                let fails = below(random, 100) < if stopped { 80 } else { weather.failures };
                world.finish(id, fails);
            }
        }
        3 => {
            let waiting = world.waiting();
            if !waiting.is_empty() {
                world.feed(Event::Cancel(waiting[one_of(random, waiting.len())]));
            }
        }
        4 => world.unload(id),
        5 => world.pin(id, below(random, 3) == 0),
        6 => {
            let budget = budget(weather, random);
            world.set_budget(budget);
        }
        _ => {
            world.now += Duration::from_millis(below(random, 30));
            world.feed(Event::Tick);
            assert!(world.deadline.is_none_or(|at| at > world.now), "late for {:?}", world.deadline);
        }
    }
}

#[test]
fn a_million_events_break_no_rule() {
    let (mut events, mut seed) = (0, 0);
    let mut total = Counters::default();
    while events < EVENTS {
        for weather in WEATHERS {
            let world = live(weather, seed);
            let counters = world.residency.snapshot().counters;
            // Nobody is forgotten while others are served: lives are much longer than this.
            assert!(
                world.waited_max < EVENTS_PER_LIFE / 4,
                "{}, seed {seed}: {}",
                weather.name,
                world.waited_max
            );
            events += world.steps;
            total.hits += counters.hits;
            total.loads += counters.loads;
            total.refused += counters.refused;
            seed += 1;
        }
    }
    let floor = EVENTS / 100;
    assert!(
        total.hits > floor && total.loads > floor && total.refused > floor,
        "too little happened: {total:?}"
    );
}

#[test]
fn a_life_can_be_lived_again() {
    let lives = [0, 0].map(|seed| live(&WEATHERS[2], seed).residency.snapshot());
    assert_eq!(lives[0], lives[1]);
}

/// Models in the order of their last use, oldest first.
struct Obvious(Vec<(ModelId, u64)>);

impl Obvious {
    fn wanted(&mut self, id: ModelId, bytes: u64) -> bool {
        let hit = self.0.iter().any(|one| one.0 == id);
        self.0.retain(|one| one.0 != id);
        let mut over = (self.0.iter().map(|one| one.1).sum::<u64>() + bytes).saturating_sub(BUDGET);
        let mut out = Vec::new();
        while over > 0 {
            let one = self.0.remove(0);
            over = over.saturating_sub(one.1);
            out.push(one);
        }
        // Back come those that fit after all, the latest used first.
        for one in out.into_iter().rev() {
            if self.0.iter().map(|one| one.1).sum::<u64>() + bytes + one.1 <= BUDGET {
                self.0.insert(0, one);
            }
        }
        self.0.push((id, bytes));
        hit
    }
}

/// Everything ends at once, and one at a time uses a model: then it is a plain cache.
#[test]
fn without_concurrency_it_is_least_recently_used() {
    let (mut random, mut obvious) = (Random::new(5), Obvious(Vec::new()));
    let mut world = World::new(Bytes::ram(BUDGET), 1);
    for request in 0..100_000 {
        let number = below(&mut random, 12).min(below(&mut random, 12));
        let bytes = 1 + number * 37 % 60;
        let before = world.residency.snapshot().counters.hits;
        let ticket = world.acquire(ModelId(number), Bytes::ram(bytes), None, false);
        while let Some(&id) = world.under_way().first() {
            world.finish(id, false);
        }
        world.release(ticket);
        let hit = world.residency.snapshot().counters.hits > before;
        assert_eq!(hit, obvious.wanted(ModelId(number), bytes), "request {request}");
        let mut expected: Vec<_> = obvious.0.iter().map(|one| one.0).collect();
        expected.sort();
        assert_eq!(world.memory.keys().copied().collect::<Vec<_>>(), expected, "request {request}");
    }
}

/// A stream of requests for one model, always at least one under way, and one request for another.
#[test]
fn a_stream_of_hits_starves_nobody() {
    let mut world = World::new(Bytes::ram(10), 64);
    let (popular, other) = (ModelId(1), ModelId(2));
    let mut held = vec![world.acquire(popular, Bytes::ram(8), None, false)];
    world.finish(popular, false);
    held.push(world.acquire(popular, Bytes::ram(8), None, false));
    let patient = world.acquire(other, Bytes::ram(8), None, false);
    for _ in 0..20 {
        world.acquire(popular, Bytes::ram(8), None, false);
        if let Some(ticket) = held.pop() {
            world.release(ticket);
        }
        if let Some(&id) = world.under_way().first() {
            world.finish(id, false);
        }
    }
    assert!(world.references.contains_key(&patient));
}
