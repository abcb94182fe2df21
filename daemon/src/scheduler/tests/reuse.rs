//! What one request has read, and what another need not read again.

use super::*;

/// A request that has been answered: what its client has then, and how much was there before.
struct Said {
    history: Vec<u32>,
    reused: usize,
}

/// Drives a request to its end, whoever else is there.
fn say(desk: &Desk, batch: &mut Batch<Paced>, request: Request) -> Said {
    let mut history = request.work.wanted().to_vec();
    let mut answer = desk.submit(request).unwrap();
    loop {
        match poll(&mut answer) {
            Some(Event::Piece(piece)) => {
                assert_eq!(piece.id, following(&history));
                history.push(piece.id);
            }
            None => drop(batch.advance()),
            event => return Said { history, reused: outcome(event).unwrap().reused_tokens },
        }
    }
}

fn of(client: u64, prompt: &[u32], new_tokens: usize) -> Request {
    request(client, Work::Generate(Box::new(turn(prompt, new_tokens))))
}

fn pair_of(sequences: usize, options: Options) -> (Desk, Batch<Paced>) {
    let (desk, batch, _) = clocked(StepLimits { sequences, ..LIMITS }, options);
    (desk, batch)
}

#[test]
fn a_next_turn_reads_only_what_is_new() {
    let (desk, mut batch) = pair_of(2, Options::default());
    let mut noise = Noise(3);
    let mut history = noise.tokens(30);
    for turn in 0..5 {
        let before = desk.figures().read_tokens;
        let said = say(&desk, &mut batch, of(1, &history, 10));
        // The last token of a reply was chosen and not read.
        let known = if turn == 0 { 0 } else { history.len() - 12 - 1 };
        assert_eq!(said.reused, known, "turn {turn}");
        assert_eq!(desk.figures().read_tokens - before, (history.len() - known + 9) as u64);
        history = [&said.history[..], &noise.tokens(12)].concat();
    }
    let figures = desk.figures();
    assert_eq!((figures.running, figures.resting, figures.free_positions), (0, 1, LIMITS.positions as u64));
    // The same prompt again: its last token is read for what comes after it.
    let said = say(&desk, &mut batch, of(1, &history[..40], 10));
    assert_eq!(said.reused, 0, "not worth a conversation of two pages");
    assert_eq!(say(&desk, &mut batch, of(1, &history[..40], 10)).reused, 39);
}

#[test]
fn nobody_meets_what_another_has_asked() {
    let (desk, mut batch) = pair_of(8, Options::default());
    let prompt = Noise(5).tokens(100);
    let with = |reuse| Request { reuse, ..of(1, &prompt, 5) };
    say(&desk, &mut batch, with(Some(Reuse::default())));
    for other in [
        of(2, &prompt, 5),
        with(Some(Reuse { set: 0, scope: 1 })),
        with(Some(Reuse { set: 1, scope: 0 })),
        with(None),
        request(1, Work::Score(Score::new(&LIMITS, &prompt, 99).unwrap())),
    ] {
        assert_eq!(say(&desk, &mut batch, other).reused, 0);
    }
    assert_eq!(desk.figures().resting, 4, "what wants none leaves none");
    assert_eq!(say(&desk, &mut batch, with(Some(Reuse { set: 1, scope: 0 }))).reused, 99);
    let (desk, mut batch) = pair_of(8, Options { prefix_cache: false, ..Options::default() });
    for _ in 0..2 {
        assert_eq!(say(&desk, &mut batch, of(1, &prompt, 5)).reused, 0);
    }
    assert_eq!(desk.figures().resting, 0);
}

#[test]
fn one_beginning_serves_many_conversations() {
    let (desk, mut batch) = pair_of(8, Options::default());
    let mut noise = Noise(7);
    let system = noise.tokens(140);
    let mut talks: Vec<Vec<u32>> = Vec::new();
    for number in 0..4 {
        let prompt = [&system[..], &noise.tokens(40)].concat();
        let said = say(&desk, &mut batch, of(1, &prompt, 40));
        assert_eq!(said.reused, if number == 0 { 0 } else { 128 }, "whole pages of it");
        talks.push(said.history);
    }
    // All at once, and none of them has lost anything.
    let next: Vec<_> = talks.iter().map(|talk| [&talk[..], &noise.tokens(3)].concat()).collect();
    let mut answers: Vec<Answer> = next.iter().map(|next| desk.submit(of(1, next, 6)).unwrap()).collect();
    while batch.advance() == Advance::Stepped {}
    for (answer, next) in answers.iter_mut().zip(&next) {
        let mut history = next.clone();
        let ended = loop {
            match poll(answer) {
                Some(Event::Piece(piece)) => {
                    assert_eq!(piece.id, following(&history));
                    history.push(piece.id);
                }
                event => break outcome(event).unwrap(),
            }
        };
        assert_eq!(ended.reused_tokens, next.len() - 4);
    }
    // Sixteen pages: two that all have, and two of each.
    assert_eq!((desk.figures().resting, desk.figures().free_positions), (4, LIMITS.positions as u64));
}

#[test]
fn who_waits_gets_what_rests_the_least_recently_used_first() {
    let (desk, mut batch) = pair_of(3, Options::default());
    let mut noise = Noise(9);
    let talks: Vec<Vec<u32>> =
        (0..3).map(|client| say(&desk, &mut batch, of(client, &noise.tokens(60), 30)).history).collect();
    let again = |client: u64| of(client, &talks[client as usize], 5);
    assert_eq!(say(&desk, &mut batch, again(0)).reused, 89);
    assert_eq!(desk.figures().resting, 3);
    // Client 1 was not there for the longest time.
    say(&desk, &mut batch, of(7, &[1, 2, 3], 5));
    assert_eq!(say(&desk, &mut batch, again(2)).reused, 89);
    assert_eq!(say(&desk, &mut batch, again(1)).reused, 0);
    // Of room that is wanted for one, no more leaves than is in its way; who runs stays.
    let running = desk.submit(of(5, &[1; 100], 100)).unwrap();
    batch.advance();
    say(&desk, &mut batch, of(6, &[2; 200], 50));
    assert_eq!((desk.figures().running, desk.figures().resting), (1, 2));
    drop(running);
    batch.advance();
    assert_eq!((desk.figures().running, desk.figures().resting), (0, 3));
}

#[test]
fn ends_that_leave_a_sequence_sound_leave_what_it_holds() {
    let (desk, mut batch, clock) = clocked(LIMITS, Options::default());
    let prompt = Noise(11).tokens(150);
    // Who goes while the prompt is read leaves what was read.
    let leaves = desk.submit(of(1, &prompt, 50)).unwrap();
    batch.advance();
    drop(leaves);
    batch.advance();
    assert_eq!(say(&desk, &mut batch, of(1, &prompt, 5)).reused, 64);
    let timeout = Some(Duration::from_millis(30));
    let mut late = desk.submit(Request { timeout, ..of(2, &prompt, 100) }).unwrap();
    while desk.figures().failed == 0 {
        batch.advance();
    }
    while matches!(poll(&mut late), Some(Event::Piece(_))) {}
    assert!(clock.now() > Duration::from_millis(30));
    assert_eq!(say(&desk, &mut batch, of(2, &prompt, 5)).reused, 149);
    desk.drain(Duration::from_secs(1));
    batch.advance();
    assert_eq!((desk.figures().resting, desk.figures().free_positions), (0, LIMITS.positions as u64));
}

#[test]
fn what_was_lost_with_a_card_is_read_again() {
    // Two steps read the first prompt and five choose; the third of the second request is the one that fails.
    let paced = Paced::new(LIMITS, Pace::Instant).losing_at(10);
    let (desk, mut batch) = pair(paced, Options::default(), Arc::new(Virtual::default()));
    let prompt = Noise(13).tokens(100);
    say(&desk, &mut batch, of(1, &prompt, 6));
    assert_eq!(desk.figures().resting, 1);
    let mut fails = desk.submit(of(2, &[5; 20], 50)).unwrap();
    while desk.figures().failed == 0 {
        assert_eq!(batch.advance(), Advance::Stepped);
    }
    while matches!(poll(&mut fails), Some(Event::Piece(_))) {}
    assert_eq!((desk.figures().resting, desk.figures().free_positions), (0, LIMITS.positions as u64));
    assert_eq!(say(&desk, &mut batch, of(1, &prompt, 6)).reused, 0);
    assert_eq!(say(&desk, &mut batch, of(1, &prompt, 6)).reused, 99);
}
