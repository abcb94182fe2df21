//! How often a model is there when it is wanted, by budget: a change of the policy shows here as a difference.

use bantam_model::sampler::Random;

use super::super::*;
use super::world::World;

const REQUESTS: usize = 20_000;
const MODELS: u64 = 8;

/// A name, and which model is wanted next, given a random number and the number of the request.
type Trace = (&'static str, fn(&mut Random, u64) -> u64);

const TRACES: &[Trace] = &[
    // Nine of ten requests are an editor's, the others go to a chat.
    ("editor and chat", |random, _| u64::from(random.unit() > 0.9)),
    // Each model is wanted twice as often as the next.
    ("few favourites", |random, _| u64::from(random.bits().trailing_zeros()).min(MODELS - 1)),
    ("no favourites", |random, _| random.bits() % MODELS),
    // The worst case of least recently used.
    ("one after another", |_, request| request % MODELS),
    // Three models for an hour, then three others.
    ("phases", |random, request| (request / 500 * 3 + random.bits() % 3) % MODELS),
];

fn hits_percent(trace: &Trace, budget: u64, size: impl Fn(u64) -> u64) -> f64 {
    let (mut world, mut random) = (World::new(Bytes::ram(budget), 1), Random::new(1));
    for request in 0..REQUESTS as u64 {
        let number = trace.1(&mut random, request);
        let ticket = world.acquire(ModelId(number), Bytes::ram(size(number)), None, false);
        while let Some(&id) = world.under_way().first() {
            world.finish(id, false);
        }
        if world.references.contains_key(&ticket) {
            world.release(ticket);
        }
    }
    100.0 * world.residency.snapshot().counters.hits as f64 / REQUESTS as f64
}

fn table(size: impl Fn(u64) -> u64 + Copy) -> String {
    let mut lines = vec![format!("{:<18}{}", "budget", row((1..=MODELS).map(|budget| budget as f64)))];
    for trace in TRACES {
        let rates = (1..=MODELS).map(|budget| hits_percent(trace, budget, size));
        lines.push(format!("{:<18}{}", trace.0, row(rates)));
    }
    lines.join("\n")
}

fn row(values: impl Iterator<Item = f64>) -> String {
    values.map(|value| format!("{value:5.0}")).collect()
}

#[test]
fn hit_rates_of_equal_models() {
    assert_eq!(table(|_| 1), EQUAL.trim());
}

/// Sizes 1, 2, 3, 1, …: what is larger than the budget is refused, which is no hit.
#[test]
fn hit_rates_of_unequal_models() {
    assert_eq!(table(|number| 1 + number % 3), UNEQUAL.trim());
}

const EQUAL: &str = "
budget                1    2    3    4    5    6    7    8
editor and chat      82  100  100  100  100  100  100  100
few favourites       33   60   78   88   94   97   99  100
no favourites        12   25   37   50   62   75   87  100
one after another     0    0    0    0    0    0    0  100
phases               34   67   99   99   99  100  100  100
";

const UNEQUAL: &str = "
budget                1    2    3    4    5    6    7    8
editor and chat      90   82  100  100  100  100  100  100
few favourites       45   40   53   67   68   79   86   88
no favourites        13   15   19   28   32   39   46   52
one after another     0    0    0    0    0    0    0    0
phases               33   35   50   71   75   99   99   99
";
