//! What a machine may lack, and what goes wrong on a card; the kernels with planted faults.

use bantam_core::{Backend, Precision};
use bantam_cuda::{Absent, Argument, Card, Fault, Shape};
use bantam_cusim::{child, is_child, requires_card, skips_card};

use crate::both::{Layouters, with};

#[test]
fn a_driver_without_a_card_is_told_apart() {
    if !requires_card()
        && is_child("faults::a_driver_without_a_card_is_told_apart", &[("CUSIM_DEVICES", "0")])
    {
        assert_eq!(Card::open(0).map(|_| ()), Err(Absent::NoDevice));
    }
}

#[test]
fn an_old_driver_is_told_apart() {
    if !requires_card() && is_child("faults::an_old_driver_is_told_apart", &[("CUSIM_VERSION", "12000")]) {
        let absent = Card::open(0).map(|_| ()).expect_err("it reads no text of 12.2");
        assert_eq!(absent, Absent::OldDriver(12_000));
        assert!(absent.to_string().contains("for CUDA 12.0, needed is 12.2"), "{absent}");
    }
}

#[test]
fn a_card_that_is_not_there_is_told_apart() {
    if is_child("faults::a_card_that_is_not_there_is_told_apart", &[]) {
        let absent = Card::open(99).map(|_| ()).expect_err("no machine has a hundred");
        assert!(matches!(absent, Absent::NoSuchDevice { number: 99, cards: 1.. }), "{absent}");
    }
}

/// A backend takes six allocations; whichever is refused, it says for what, and all that it took is given back.
#[test]
fn memory_that_is_refused_is_an_error_and_leaves_nothing_behind() {
    const TEST: &str = "faults::memory_that_is_refused_is_an_error_and_leaves_nothing_behind";
    if std::env::var_os("CUSIM_REFUSED").is_none() {
        for n in ["1", "2", "3", "4", "5", "6"] {
            if let Some((passed, said)) = child(TEST, &[("CUSIM_REFUSED", n)]).filter(|_| !requires_card()) {
                assert!(passed, "allocation {n}:\n{said}");
            }
        }
        return;
    }
    let card = Card::open(0).expect("the stand-in");
    let (free, _) = card.memory().expect("it tells");
    let sizes =
        bantam_cuda::Sizes { weights: 4096, cache: 4096, work: 4096, rows: 8, tables: 8, results: 4096 };
    let panels = Layouters::new().work(16);
    let refused = bantam_cuda::CudaBackend::new(card, Precision::Fast, sizes, panels);
    let fault = refused.map(|_| ()).expect_err("an allocation was refused");
    let is_named = matches!(fault, Fault::OutOfMemory { .. } | Fault::Lost { what: "pinning memory", .. });
    assert!(is_named, "{fault}");
    let after = Card::open(0).expect("the stand-in").memory().expect("it tells").0;
    assert_eq!(after, free, "all is given back");
}

#[test]
fn a_card_that_is_lost_is_a_fault_that_stays() {
    if skips_card() || !is_child("faults::a_card_that_is_lost_is_a_fault_that_stays", &[("CUSIM_LOST", "1")])
    {
        return;
    }
    let mut plan = Layouters::new();
    let (x, y, panels) = (plan.work(64), plan.work(64), plan.work(16));
    with(
        &plan,
        panels,
        Precision::Exact,
        |arena| arena.floats_mut(x).fill(1.0),
        |both| {
            both.card.add(1, 64, x, y);
            assert_eq!(both.card.fault(), None);
            assert_eq!(both.card.read(y)[0], 1.0);
            both.card.add(1, 64, x, y);
            let lost = both.card.fault().expect("the second launch loses it");
            assert_eq!(lost, Fault::Lost { what: "waiting", code: "CUDA_ERROR_LAUNCH_FAILED" });
            both.card.add(1, 64, x, y);
            assert_eq!((both.card.read(y)[0], both.card.fault()), (0.0, Some(lost)));
        },
    );
}

/// Memory of another card is not there for a kernel, unless both may touch each other's.
#[test]
fn a_kernel_that_touches_another_cards_memory_is_caught() {
    const TEST: &str = "faults::a_kernel_that_touches_another_cards_memory_is_caught";
    if skips_card() {
        return;
    }
    let Ok(case) = std::env::var("CASE") else {
        for (case, peers) in [("met", ""), ("met", "refused"), ("strangers", "")] {
            let variables = [("CUSIM_DEVICES", "2"), ("CASE", case), ("CUSIM_PEERS", peers)];
            let Some((passed, said)) = child(TEST, &variables) else { return };
            let is_caught = said.contains("outside of what was allocated");
            assert!(
                passed && is_caught == (case == "strangers" || peers == "refused"),
                "{case} {peers}:\n{said}"
            );
        }
        return;
    };
    let sizes =
        bantam_cuda::Sizes { weights: 4096, cache: 4096, work: 4096, rows: 8, tables: 8, results: 4096 };
    let mut plan = Layouters::new();
    let (panels, slot) = (plan.work(16), plan.work(64));
    let backend = |number| {
        let card = Card::open(number).expect("the stand-in");
        bantam_cuda::CudaBackend::new(card, Precision::Fast, sizes, panels).expect("there is room")
    };
    let [mut first, mut second] = [0, 1].map(backend);
    if case == "met" {
        first.meet(&mut second, slot).expect("copies arrive");
    }
    let memory = second.card().allocate("a test", 256).expect("small");
    let (done, _) = planted_at("planted_sound", 256, Some(memory.at(0, 256)));
    let may_touch = case == "met" && std::env::var("CUSIM_PEERS").is_ok_and(|peers| peers.is_empty());
    assert_eq!(done.is_ok(), may_touch, "{done:?}");
}

/// Runs a planted kernel over 64 values; what the card said of it.
fn planted(kernel: &str, shared: usize) -> (Result<(), Fault>, Vec<f32>) {
    planted_at(kernel, shared, None)
}

/// The same over values at an address, if there is one.
fn planted_at(kernel: &str, shared: usize, at: Option<u64>) -> (Result<(), Fault>, Vec<f32>) {
    let names = ["planted_sound", "planted_no_barrier", "planted_early_end", "planted_beyond"];
    let mut card = Card::open(0).expect("the stand-in");
    let first = card.load(bantam_cusim::PLANTED, names.into_iter()).expect("the stand-in has them");
    let number = first + names.iter().position(|name| *name == kernel).expect("one of them");
    let memory = card.allocate("a test", 256).expect("small");
    let values: Vec<f32> = (0..64).map(|i| i as f32).collect();
    card.write(&memory, 0, &values).expect("it fits");
    let shape = Shape { grid: (1, 1), threads: 64, shared };
    let at = at.unwrap_or(memory.at(0, 256));
    let launched = card.launch_number(number, "planted", shape, &[Argument::of(&at)]);
    (launched.and_then(|()| card.wait()), values)
}

#[test]
fn planted_faults_are_caught() {
    const TEST: &str = "faults::planted_faults_are_caught";
    if skips_card() {
        return;
    }
    if let Ok(kernel) = std::env::var("PLANTED") {
        let (kernel, shared) = kernel.split_once(' ').expect("a kernel and its bytes");
        let (done, _) = planted(kernel, shared.parse().expect("a number"));
        assert_eq!(done.is_ok(), kernel == "planted_sound" && shared == "256", "{kernel}: {done:?}");
        return;
    }
    let cases = [
        ("planted_sound 256", ""),
        ("planted_sound 128", "an access beyond shared memory"),
        ("planted_no_barrier 256", "a race in shared memory"),
        ("planted_early_end 0", "63 threads wait at a barrier, 0 in their warps, 1 have ended"),
        ("planted_beyond 0", "outside of what was allocated"),
    ];
    for (kernel, wanted) in cases {
        let Some((passed, said)) = child(TEST, &[("PLANTED", kernel)]) else { return };
        assert!(passed && said.contains(wanted), "{kernel}: \"{wanted}\" is not in\n{said}");
    }
}
