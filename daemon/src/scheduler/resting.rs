//! What rests: sequences whose replies are over, with what they hold, for whoever goes on there. Who goes on in which
//! one, and who leaves when room is wanted, is decided here, of what is told and of nothing else.
//!
//! A request meets what requests of its own client left, that said the same of themselves ([`Whose`]), and never
//! another's: how soon a first token comes would tell one client what another has asked. Of these it takes what shares
//! the longest beginning with its prompt. Where hardly more than that is held, it goes on in that very sequence. Where
//! more would be lost, a page's worth and up, it begins a new one with whole pages of it: so one beginning serves many
//! conversations, and what a wrong guess costs is less than a page of tokens read again.
//!
//! The least recently used leave first, no more of them than are in the way, and none for a request that would not fit
//! even then. What is in use is not listed here, so it cannot leave.

use bantam_core::layouts::page::POSITIONS;

use super::queue::ClientId;
use super::steps::Steps;

/// What requests have in common that share what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whose {
    pub(super) client: ClientId,
    pub(super) reuse: Reuse,
}

/// What a request says of its prompt: it shares beginnings with those of its client that say the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Which weights read it; 0 is the model as it was loaded.
    pub set: u64,
    /// A number for the client's own words.
    pub scope: u64,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    whose: Whose,
    tokens: usize,
    /// Later ones have greater numbers.
    since: u64,
}

/// What shares most with a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    sequence: usize,
    shared: usize,
    /// Tokens that would be forgotten.
    lost: usize,
}

impl Found {
    fn is_taken_over(self) -> bool {
        self.lost <= POSITIONS.min(self.shared)
    }

    fn is_worth_it(self) -> bool {
        self.is_taken_over() || self.shared >= POSITIONS
    }
}

/// All that rests. It takes its memory when it is made.
#[derive(Debug)]
pub(crate) struct Resting {
    context: usize,
    /// Ids of tokens, `context` of them for each sequence.
    ids: Vec<u32>,
    kept: Vec<Option<Kept>>,
    count: usize,
    clock: u64,
}

impl Resting {
    /// Room for so many sequences of up to `context` tokens.
    pub(super) fn new(sequences: usize, context: usize) -> Self {
        Resting {
            context,
            ids: vec![0; sequences * context],
            kept: vec![None; sequences],
            count: 0,
            clock: 0,
        }
    }

    /// Bytes that the same takes.
    pub(crate) fn bytes(sequences: usize, context: usize) -> u64 {
        (sequences as u64).saturating_mul(context as u64).saturating_mul(size_of::<u32>() as u64)
    }

    /// How many rest.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Lets a sequence rest that holds these tokens.
    pub(super) fn rest(&mut self, steps: &mut impl Steps, sequence: usize, whose: Whose, tokens: &[u32]) {
        assert_eq!(tokens.len(), steps.length(sequence), "what the sequence holds");
        steps.rest(sequence);
        self.ids[sequence * self.context..][..tokens.len()].copy_from_slice(tokens);
        self.clock += 1;
        let before = self.kept[sequence].replace(Kept { whose, tokens: tokens.len(), since: self.clock });
        assert!(before.is_none(), "a sequence rests once");
        self.count += 1;
    }

    /// A sequence for a request of so many positions that begins with `prompt`; it may hold some of that already.
    /// `None` where all that rests would not be room enough: then nobody has left for it.
    pub(super) fn begin(
        &mut self,
        steps: &mut impl Steps,
        whose: Option<Whose>,
        prompt: &[u32],
        positions: usize,
    ) -> Option<usize> {
        self.drop_lost(steps);
        let pages = positions.div_ceil(POSITIONS) * POSITIONS;
        if pages > steps.free_positions() + steps.resting_positions() {
            return None;
        }
        let mut found = whose.and_then(|whose| self.best(steps, whose, prompt));
        loop {
            let begun = match found {
                None => steps.open_for(positions),
                Some(Found { sequence, shared, .. }) if found.is_some_and(Found::is_taken_over) => {
                    steps.resume(sequence, shared, positions).map(|_| self.leave(sequence))
                }
                Some(Found { sequence, shared, .. }) => steps.branch(sequence, shared, positions),
            };
            if let (Some(_), Some(Found { sequence, .. })) = (begun, found) {
                self.touch(sequence);
            }
            if begun.is_some() {
                return begun;
            }
            found = self.make_room(steps, found)?;
        }
    }

    /// Makes one step towards room, and says what to go on with; `None` where there is nothing left to do.
    fn make_room(&mut self, steps: &mut impl Steps, found: Option<Found>) -> Option<Option<Found>> {
        match (self.oldest(), found) {
            (None, _) => None,
            (Some(oldest), Some(of)) if oldest == of.sequence && !of.is_taken_over() => {
                // Its own end is what is in the way.
                Some(Some(Found { lost: 0, ..of }))
            }
            (Some(oldest), Some(of)) if oldest == of.sequence => {
                let next = self.oldest_but(oldest);
                self.drop(steps, next.unwrap_or(oldest));
                Some(next.and(found))
            }
            (Some(oldest), _) => {
                self.drop(steps, oldest);
                Some(found)
            }
        }
    }

    fn best(&self, steps: &impl Steps, whose: Whose, prompt: &[u32]) -> Option<Found> {
        // A token is read for its logits.
        let most = prompt.len().saturating_sub(1);
        let of = |(sequence, kept): (usize, &Option<Kept>)| {
            let kept = kept.filter(|kept| kept.whose == whose)?;
            let ids = &self.ids[sequence * self.context..][..kept.tokens];
            let shared = ids.iter().zip(&prompt[..most]).take_while(|(a, b)| a == b).count();
            let found = Found { sequence, shared, lost: kept.tokens - shared };
            let is_of_use = found.is_worth_it() && shared > 0 && !steps.must_restart(sequence, prompt.len());
            is_of_use.then_some((found, kept.since))
        };
        let all = self.kept.iter().enumerate().filter_map(of);
        // Of those that share as much, the one that is taken over, or else the oldest: it would leave first.
        all.max_by_key(|(found, since)| (found.shared, found.is_taken_over(), std::cmp::Reverse(*since)))
            .map(|(found, _)| found)
    }

    fn oldest(&self) -> Option<usize> {
        self.oldest_but(usize::MAX)
    }

    fn oldest_but(&self, but: usize) -> Option<usize> {
        let all = self.kept.iter().enumerate().filter(|(sequence, _)| *sequence != but);
        all.filter_map(|(sequence, kept)| Some((kept.as_ref()?.since, sequence)))
            .min()
            .map(|(_, sequence)| sequence)
    }

    /// It was of use now, where it still rests.
    fn touch(&mut self, sequence: usize) {
        self.clock += 1;
        if let Some(kept) = &mut self.kept[sequence] {
            kept.since = self.clock;
        }
    }

    /// Somebody goes on in it.
    fn leave(&mut self, sequence: usize) -> usize {
        self.kept[sequence] = None;
        self.count -= 1;
        sequence
    }

    fn drop(&mut self, steps: &mut impl Steps, sequence: usize) {
        self.leave(sequence);
        steps.close(sequence);
    }

    /// Forgets all that is to be read again in any case: what was lost with a card.
    pub(super) fn drop_lost(&mut self, steps: &mut impl Steps) {
        for sequence in 0..self.kept.len() {
            if self.kept[sequence].is_some_and(|kept| steps.must_restart(sequence, kept.tokens)) {
                self.drop(steps, sequence);
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self, steps: &mut impl Steps) {
        while let Some(sequence) = self.oldest() {
            self.drop(steps, sequence);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use bantam_model::engine::Chunk;

    use super::super::paced::{Pace, Paced};
    use super::super::steps::StepLimits;
    use super::super::tests::{LIMITS, Noise, following};
    use super::*;

    /// What a sequence in use is for.
    #[derive(Debug, Clone)]
    struct Use {
        sequence: usize,
        whose: Option<Whose>,
        tokens: Vec<u32>,
        positions: usize,
    }

    struct Simulation {
        steps: Paced,
        resting: Resting,
        running: Vec<Use>,
        said: Vec<Vec<u32>>,
        noise: Noise,
        /// Tokens that were met, sequences that left, requests for whom there was no room.
        counts: [usize; 3],
    }

    impl Simulation {
        fn arrive(&mut self) {
            let client = ClientId(self.noise.below(2) as u64);
            let reuse = Reuse { set: self.noise.below(2) as u64, scope: 0 };
            let whose = (self.noise.below(9) > 0).then_some(Whose { client, reuse });
            // Whoever said it first.
            let said = self.said.get(self.noise.below(12)).cloned().unwrap_or_default();
            let kept = if self.noise.below(2) == 0 { said.len() } else { self.noise.below(said.len() + 1) };
            let new = 1 + self.noise.below(40);
            let prompt = [&said[..kept.min(200)], &self.noise.tokens(new)].concat();
            let positions = (prompt.len() + self.noise.below(80)).min(LIMITS.context);
            self.begin(whose, prompt, positions);
        }

        fn begin(&mut self, whose: Option<Whose>, prompt: Vec<u32>, positions: usize) {
            let before = self.resting.kept.clone();
            let room = [self.steps.free_positions(), self.steps.resting_positions()];
            let begun = self.resting.begin(&mut self.steps, whose, &prompt, positions);
            let Some(sequence) = begun else {
                assert!(positions > room[0] + room[1], "there was room");
                assert_eq!(format!("{before:?}"), format!("{:?}", self.resting.kept), "left for nothing");
                self.counts[2] += 1;
                return;
            };
            assert!(self.running.iter().all(|other| other.sequence != sequence), "it is in use");
            let met = self.steps.length(sequence);
            let same = |tokens: &[u32]| tokens.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
            let is_there = |(of, kept): (usize, &Option<Kept>)| {
                // Its tokens are still written there: nobody has rested since.
                let ids = |kept: Kept| &self.resting.ids[of * LIMITS.context..][..kept.tokens];
                kept.is_some_and(|kept| Some(kept.whose) == whose && same(ids(kept)) >= met)
            };
            assert!(met < prompt.len() && (met == 0 || before.iter().enumerate().any(is_there)), "another's");
            let left = |of: usize| before[of].filter(|_| self.resting.kept[of].is_none() && of != sequence);
            let left: Vec<Kept> = (0..LIMITS.sequences).filter_map(left).collect();
            if let Some(last) = left.iter().map(|kept| kept.since).max() {
                assert!(self.resting.kept.iter().flatten().all(|kept| kept.since > last), "a later one left");
                let is_full = self.running.len() + before.iter().flatten().count() == LIMITS.sequences;
                assert!(is_full || positions > room[0], "nobody was in the way");
            }
            self.counts[0] += met;
            self.counts[1] += left.len();
            self.running.push(Use { sequence, whose, tokens: prompt, positions });
            self.read(self.running.len() - 1);
        }

        /// Reads a prompt, or a part of it, and checks that a reply would follow from all of it.
        fn read(&mut self, i: usize) {
            let Use { sequence, tokens, .. } = self.running[i].clone();
            let most = if self.noise.below(6) == 0 { 1 } else { usize::MAX };
            for _ in 0..most {
                let length = self.steps.length(sequence);
                let tokens = &tokens[length..tokens.len().min(length + LIMITS.chunk)];
                if tokens.is_empty() {
                    break;
                }
                self.steps.step(&[Chunk { sequence, tokens }]).unwrap();
                let logits = self.steps.logits(&[tokens.len() - 1]).unwrap().to_vec();
                let chosen = logits.iter().position(|&logit| logit > 0.0).unwrap();
                let read = &self.running[i].tokens[..self.steps.length(sequence)];
                assert_eq!(chosen, following(read) as usize, "it holds something else");
            }
        }

        fn go_on(&mut self, i: usize) {
            let of = &mut self.running[i];
            let more = self.noise.below(30).min(of.positions - of.tokens.len());
            of.tokens.extend(self.noise.tokens(more));
            self.read(i);
        }

        fn end(&mut self, i: usize) {
            let Use { sequence, whose, tokens, .. } = self.running.swap_remove(i);
            let held = &tokens[..self.steps.length(sequence)];
            match whose.filter(|_| self.noise.below(6) > 0) {
                Some(whose) => self.resting.rest(&mut self.steps, sequence, whose, held),
                None => self.steps.close(sequence),
            }
            self.said.truncate(11);
            self.said.insert(0, tokens);
        }

        fn event(&mut self) {
            let i = self.noise.below(self.running.len().max(1));
            match self.noise.below(12) {
                0..5 if self.running.len() < LIMITS.sequences => self.arrive(),
                5..7 if !self.running.is_empty() => self.go_on(i),
                7..12 if !self.running.is_empty() => self.end(i),
                _ if self.noise.below(300) == 0 => self.resting.clear(&mut self.steps),
                _ => {}
            }
            let count = self.resting.kept.iter().flatten().count();
            assert_eq!(self.resting.count(), count);
            for of in &self.running {
                assert!(self.resting.kept[of.sequence].is_none(), "it rests and is in use");
            }
        }
    }

    #[test]
    fn whatever_rests_is_met_by_its_own_and_nobody_in_use_leaves() {
        let mut counts = [0; 3];
        for seed in 0..4 {
            println!("seed {seed}");
            // Less than all could fill, and then as many as there are.
            let limits = StepLimits { positions: if seed % 2 == 0 { 640 } else { 2048 }, ..LIMITS };
            let mut simulation = Simulation {
                steps: Paced::new(limits, Pace::Instant),
                resting: Resting::new(LIMITS.sequences, LIMITS.context),
                running: Vec::new(),
                said: Vec::new(),
                noise: Noise(seed),
                counts,
            };
            (0..30_000).for_each(|_| simulation.event());
            while !simulation.running.is_empty() {
                simulation.end(0);
            }
            let all = simulation.steps.free_positions() + simulation.steps.resting_positions();
            assert_eq!(all, limits.positions, "what rests is to be had");
            simulation.resting.clear(&mut simulation.steps);
            assert_eq!(simulation.steps.free_positions(), limits.positions, "a page is lost");
            counts = simulation.counts;
        }
        println!("{counts:?}");
        assert!(counts.iter().all(|&count| count > 500), "{counts:?}");
    }
}
