//! Examples: what happened on the left, what the owner has to do on the right. A budget is RAM unless it says both.

mod hit_rates;
mod simulation;
mod world;

use std::time::Duration;

use super::*;

fn bytes(text: &str) -> Bytes {
    match text.split_once('+') {
        Some((ram, vram)) => Bytes::new(ram.parse().unwrap(), vram.parse().unwrap()),
        None => Bytes::ram(text.parse().unwrap()),
    }
}

fn model(text: &str) -> ModelId {
    ModelId(u64::from(text.as_bytes()[0]))
}

fn ticket(text: &str) -> Ticket {
    Ticket(text.parse().unwrap())
}

fn want(words: &[&str]) -> Want {
    let mut want =
        Want { ticket: ticket(words[0]), id: model(words[1]), bytes: bytes(words[2]), ttl: None, pin: false };
    for word in &words[3..] {
        match word.split_once('=') {
            Some(("ttl", ms)) => want.ttl = Some(Duration::from_millis(ms.parse().unwrap())),
            _ => want.pin = *word == "pin",
        }
    }
    want
}

fn event(line: &str, now: &mut Duration) -> Event {
    let words: Vec<_> = line.split_whitespace().collect();
    match words[0] {
        "want" => Event::Acquire(want(&words[1..])),
        "cancel" => Event::Cancel(ticket(words[1])),
        "release" => Event::Release(ticket(words[1])),
        "unload" => Event::Unload { ticket: ticket(words[1]), id: model(words[2]) },
        "pin" => Event::Pin { ticket: ticket(words[1]), id: model(words[2]), pinned: true },
        "unpin" => Event::Pin { ticket: ticket(words[1]), id: model(words[2]), pinned: false },
        "budget" => Event::SetBudget(bytes(words[1])),
        "loaded" => Event::Loaded(model(words[1])),
        "failed" => Event::LoadFailed(model(words[1])),
        "evicted" => Event::Evicted(model(words[1])),
        "tick" => {
            *now = Duration::from_millis(words[1].parse().unwrap());
            Event::Tick
        }
        _ => panic!("{line}: no such event"),
    }
}

fn spelled(action: &Action) -> Option<String> {
    let name = |id: &ModelId| char::from(u8::try_from(id.0).unwrap());
    Some(match action {
        Action::StartLoad { id, .. } => format!("load {}", name(id)),
        Action::CancelLoad { id } => format!("stop {}", name(id)),
        Action::StartEvict { id } => format!("evict {}", name(id)),
        Action::Granted { ticket, .. } => format!("grant {}", ticket.0),
        Action::Refused { ticket, why, .. } => {
            let why = format!("{why:?}");
            let kind = why.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            format!("refuse {} {kind}", ticket.0)
        }
        Action::Done { ticket, .. } => format!("done {}", ticket.0),
        Action::SetDeadline(Some(at)) => format!("wake {}", at.as_millis()),
        Action::SetDeadline(None) => "wake never".to_owned(),
        Action::Note(_) => return None,
    })
}

/// Runs `event => action, action` line by line, with room for three who wait.
#[track_caller]
fn check(budget: &str, script: &str) -> Residency {
    let (mut residency, mut now) = (Residency::new(bytes(budget), 3), Duration::ZERO);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (event_text, expected) = line.split_once("=>").unwrap();
        let event = event(event_text, &mut now);
        let found: Vec<_> = residency.step(now, event).iter().filter_map(spelled).collect();
        assert_eq!(found.join(", "), expected.trim(), "after {line}");
    }
    residency
}

#[test]
fn a_model_is_loaded_for_the_first_and_there_for_the_second() {
    check(
        "10",
        "want 1 A 4  => load A
         loaded A    => grant 1
         want 2 A 4  => grant 2
         release 1   =>
         release 2   =>
         want 3 A 4  => grant 3",
    );
}

#[test]
fn a_load_under_way_is_joined() {
    check(
        "10",
        "want 1 A 4  => load A
         want 2 A 4  =>
         loaded A    => grant 1, grant 2",
    );
}

#[test]
fn the_least_recently_used_idle_model_goes_first() {
    check(
        "10",
        "want 1 A 4  => load A
         loaded A    => grant 1
         want 2 B 4  => load B
         loaded B    => grant 2
         release 2   =>
         release 1   =>
         want 3 C 4  => evict B
         evicted B   => load C
         loaded C    => grant 3
         want 4 A 4  => grant 4",
    );
}

#[test]
fn a_load_waits_until_evicted_bytes_are_free() {
    check(
        "10",
        "want 1 A 4  => load A
         loaded A    => grant 1
         want 2 B 4  => load B
         loaded B    => grant 2
         release 1   =>
         release 2   =>
         want 3 C 10 => evict A, evict B
         evicted B   =>
         evicted A   => load C",
    );
}

#[test]
fn what_was_evicted_is_loaded_again_when_it_is_wanted() {
    check(
        "10",
        "want 1 A 6  => load A
         loaded A    => grant 1
         release 1   =>
         want 2 B 6  => evict A
         want 3 A 6  =>
         evicted A   => load B
         loaded B    => grant 2
         release 2   => evict B
         evicted B   => load A
         loaded A    => grant 3",
    );
}

#[test]
fn those_who_come_later_cannot_hold_off_the_first_who_waits() {
    check(
        "10",
        "want 1 A 6  => load A
         loaded A    => grant 1
         want 2 B 6  =>
         want 3 A 6  =>
         release 1   => evict A
         evicted A   => load B
         loaded B    => grant 2
         release 2   => evict B
         evicted B   => load A
         loaded A    => grant 3",
    );
}

#[test]
fn when_the_first_who_waits_goes_its_claim_goes_too() {
    check(
        "10",
        "want 1 A 6  => load A
         loaded A    => grant 1
         want 2 B 6  =>
         want 3 A 6  =>
         cancel 2    => refuse 2 Cancelled, grant 3",
    );
}

#[test]
fn a_small_model_overtakes_with_bytes_that_the_first_does_not_need() {
    check(
        "10",
        "want 1 A 6  => load A
         loaded A    => grant 1
         want 2 B 8  =>
         want 3 C 3  =>
         want 4 D 2  => load D
         loaded D    => grant 4
         release 4   =>
         release 1   => evict A
         evicted A   => load B",
    );
}

#[test]
fn two_big_loads_take_turns() {
    check(
        "10",
        "want 1 A 10 => load A
         want 2 B 10 =>
         want 3 C 10 =>
         loaded A    => grant 1
         release 1   => evict A
         evicted A   => load B
         loaded B    => grant 2
         release 2   => evict B
         evicted B   => load C",
    );
}

#[test]
fn pinned_models_stay_and_what_cannot_fit_beside_them_is_refused() {
    check(
        "10",
        "want 1 A 6 pin => load A
         loaded A    => grant 1
         release 1   =>
         want 2 B 6  => refuse 2 Pinned
         unload 3 A  => refuse 3 StaysPinned
         budget 3    =>
         unpin 4 A   => done 4, evict A",
    );
}

#[test]
fn a_pin_that_leaves_no_room_refuses_those_who_wait() {
    check(
        "10",
        "want 1 A 6  => load A
         loaded A    => grant 1
         want 2 B 6  =>
         pin 3 A     => done 3, refuse 2 Pinned",
    );
}

#[test]
fn a_model_above_the_whole_budget_is_refused_at_once() {
    check("10", "want 1 A 11 => refuse 1 TooLarge");
    check("10+4", "want 1 A 4+5 => refuse 1 TooLarge");
}

#[test]
fn devices_are_counted_apart() {
    check(
        "10+4",
        "want 1 A 6    => load A
         want 2 B 1+4  => load B
         loaded A      => grant 1
         loaded B      => grant 2
         release 1     =>
         release 2     =>
         want 3 C 1+1  => evict B
         evicted B     => load C",
    );
}

#[test]
fn only_so_many_may_wait() {
    check(
        "10",
        "want 1 A 10 => load A
         want 2 A 10 =>
         want 3 B 1  =>
         want 4 A 10 => refuse 4 QueueFull",
    );
}

#[test]
fn an_idle_model_leaves_when_its_time_is_over() {
    check(
        "10",
        "want 1 A 4 ttl=50 => load A
         loaded A    => grant 1
         tick 100    =>
         release 1   => wake 150
         tick 149    =>
         want 2 A 4 ttl=80 => grant 2, wake never
         release 2   => wake 229
         tick 400    => evict A, wake never
         evicted A   =>",
    );
}

#[test]
fn a_time_to_live_of_nothing_is_until_the_last_reference() {
    check(
        "10",
        "want 1 A 4 ttl=0 => load A
         loaded A    => grant 1
         release 1   => evict A",
    );
}

#[test]
fn an_unload_drains() {
    check(
        "10",
        "want 1 A 4  => load A
         loaded A    => grant 1
         unload 2 A  =>
         pin 3 A     => refuse 3 Leaving
         want 4 A 4  =>
         release 1   => evict A
         unload 5 A  =>
         evicted A   => done 2, done 5, load A
         loaded A    => grant 4",
    );
}

#[test]
fn an_unload_stops_a_load() {
    check(
        "10",
        "want 1 A 4  => load A
         unload 2 A  => stop A, refuse 1 Unloaded
         failed A    => done 2
         unload 3 A  => refuse 3 NotLoaded
         want 4 A 4  => load A
         unload 5 A  => stop A, refuse 4 Unloaded
         loaded A    => evict A
         evicted A   => done 5",
    );
}

#[test]
fn a_load_that_nobody_waits_for_any_more_goes_on_while_there_is_room() {
    check(
        "10",
        "want 1 A 4  => load A
         cancel 1    => refuse 1 Cancelled
         want 2 B 8  => stop A
         failed A    => load B
         cancel 2    => refuse 2 Cancelled
         loaded B    =>
         want 3 B 8  => grant 3",
    );
}

#[test]
fn a_load_that_fails_is_told_to_all_and_frees_its_bytes() {
    check(
        "10",
        "want 1 A 10 => load A
         want 2 A 10 =>
         want 3 B 10 =>
         failed A    => refuse 1 LoadFailed, refuse 2 LoadFailed, load B",
    );
}

#[test]
fn a_smaller_budget_takes_idle_models_at_once_and_others_as_references_end() {
    check(
        "10",
        "want 1 A 4  => load A
         loaded A    => grant 1
         want 2 B 4  => load B
         loaded B    => grant 2
         want 3 C 2  => load C
         loaded C    => grant 3
         release 3   =>
         budget 4    => evict C
         want 4 D 1  => refuse 4 OverBudget
         want 5 A 4  => refuse 5 OverBudget
         want 6 B 4  => grant 6
         release 1   => evict A
         evicted C   =>
         evicted A   =>
         want 7 D 1  =>
         budget 5    => load D",
    );
}

#[test]
fn a_smaller_budget_stops_loads_that_do_not_fit() {
    check(
        "10",
        "want 1 A 4  => load A
         want 2 B 4  => load B
         want 3 C 4  =>
         budget 4    => stop B, refuse 2 OverBudget
         budget 3    => stop A, refuse 1 OverBudget, refuse 3 TooLarge
         failed A    =>
         failed B    =>",
    );
}

#[test]
fn a_refusal_says_what_is_missing() {
    let mut residency = check(
        "10",
        "want 1 A 6 pin => load A
         loaded A    => grant 1",
    );
    let bytes = Bytes::ram(7);
    let want = Want { ticket: Ticket(2), id: ModelId(7), bytes, ttl: None, pin: false };
    let actions = residency.step(Duration::ZERO, Event::Acquire(want));
    let [Action::Refused { why, .. }] = actions[..] else { panic!("{actions:?}") };
    assert_eq!(
        why.to_string(),
        "the model needs 7 bytes of RAM, but pinned models hold 6 of the budget of 10: unpin some, or raise the \
         budget by 3 bytes of RAM"
    );
}

#[test]
fn those_who_watch_see_what_moved_and_why() {
    let mut residency = check("10", "want 1 A 6 => load A");
    let (a, now) = (model("A"), Duration::from_secs(1));
    let loaded = residency.step(now, Event::Loaded(a));
    assert_eq!(loaded[0], Action::Note(Note::Loaded(a, Bytes::ram(6))));
    residency.step(now, Event::Release(Ticket(1)));
    let budget = residency.step(now, Event::SetBudget(Bytes::ram(5)));
    let expected = [
        Action::Note(Note::Budget(Bytes::ram(5))),
        Action::Note(Note::Evicting(a, Why::Budget)),
        Action::StartEvict { id: a },
    ];
    assert_eq!(budget, expected);
    let evicted = residency.step(now, Event::Evicted(a));
    assert_eq!(evicted, [Action::Note(Note::Evicted(a, Bytes::ram(6), Why::Budget))]);
    let counters = residency.snapshot().counters;
    assert_eq!((counters.hits, counters.misses, counters.loads, counters.evictions), (0, 1, 1, 1));
    assert_eq!((counters.loaded, counters.evicted), (Bytes::ram(6), Bytes::ram(6)));
}

#[test]
#[should_panic(expected = "only granted references are released, once")]
fn a_reference_is_released_once() {
    check(
        "10",
        "want 1 A 6  => load A
         loaded A    => grant 1
         release 1   =>
         release 1   =>",
    );
}
