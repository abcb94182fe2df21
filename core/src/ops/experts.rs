//! A mixture of experts: every row chooses a few of many feed-forward blocks, and rows that chose the same one are
//! computed together, so that an expert's weights are read once, and those of experts that nobody chose not at all.
//!
//! A *place* is one row's part with one expert. Places are sorted by expert, then by row; products over them take
//! the experts as a stack of matrices. What a row gets back is summed in the order of its experts, whatever stood
//! beside it.

use super::math::{Lanewise, load_padded, map_in_place};
use super::matmul::Segment;
use super::vector::{Kernel, Vector, launch};
use crate::cpu::Cpu;

/// How many experts there are, and how many of them a row chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Experts.
    pub experts: usize,
    /// Chosen by every row: 1 to [`CHOSEN_MAX`], at most `experts`.
    pub chosen: usize,
}

/// No published model chooses more.
pub const CHOSEN_MAX: usize = 32;

impl Choice {
    /// Places of `rows` rows.
    pub fn places(self, rows: usize) -> usize {
        rows * self.chosen
    }

    /// Bytes of a [`Routing`] of `rows` rows.
    pub fn bytes(self, rows: usize) -> Option<usize> {
        let words = self.experts.checked_mul(4)?.checked_add(1)?;
        rows.checked_mul(self.chosen)?.checked_mul(3)?.checked_add(words)?.checked_mul(4)
    }
}

/// Who goes where, in memory that the caller owns.
#[derive(Debug)]
pub struct Routing<'a> {
    /// Number of segments in use, then scratch for every expert.
    counts: &'a mut [u32],
    segments: &'a mut [Segment],
    /// The row of every place.
    rows: &'a mut [u32],
    /// The places of every row, ascending.
    places: &'a mut [u32],
    /// What they count, in the same order.
    shares: &'a mut [f32],
}

impl<'a> Routing<'a> {
    /// Cuts memory of [`Choice::bytes`] into its parts.
    pub fn over(choice: Choice, rows: usize, memory: &'a mut [f32]) -> Self {
        let places = choice.places(rows);
        let (counts, memory) = memory.split_at_mut(1 + choice.experts);
        let (segments, memory) = memory.split_at_mut(3 * choice.experts);
        let (of_places, memory) = memory.split_at_mut(places);
        let (of_rows, shares) = memory.split_at_mut(places);
        Routing {
            counts: bytemuck::cast_slice_mut(counts),
            segments: bytemuck::cast_slice_mut(segments),
            rows: bytemuck::cast_slice_mut(of_places),
            places: bytemuck::cast_slice_mut(of_rows),
            shares: &mut shares[..places],
        }
    }

    /// Which places meet which expert.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..self.counts[0] as usize]
    }

    /// The row of every place.
    pub fn rows(&self) -> &[u32] {
        self.rows
    }

    /// The places of every row, ascending.
    pub fn places(&self) -> &[u32] {
        self.places
    }

    /// What they count, in the same order.
    pub fn shares(&self) -> &[f32] {
        self.shares
    }

    /// The expert that a place meets.
    pub fn expert_of(&self, place: u32) -> usize {
        let after = self.segments().partition_point(|&[_, first, _]| first <= place);
        self.segments()[after - 1][0] as usize
    }

    /// Sends every row to the experts with the largest logits, the first of equals; a softmax over those gives their
    /// shares.
    pub fn route(&mut self, choice: Choice, logits: &[f32]) {
        let Choice { experts, chosen } = choice;
        assert!((1..=CHOSEN_MAX.min(experts)).contains(&chosen), "{chosen} of {experts} experts");
        let (used, counts) = self.counts.split_at_mut(1);
        counts.fill(0);
        for (row, logits) in logits.chunks_exact(experts).enumerate() {
            let places = &mut self.places[row * chosen..][..chosen];
            choose(logits, places);
            share(logits, places, &mut self.shares[row * chosen..][..chosen]);
            places.iter().for_each(|&expert| counts[expert as usize] += 1);
        }
        let (mut next, mut segments) = (0, 0);
        for (expert, count) in counts.iter_mut().enumerate() {
            if *count > 0 {
                self.segments[segments] = [expert as u32, next, *count];
                segments += 1;
            }
            // From here on, the next free place of the expert.
            next += core::mem::replace(count, next);
        }
        used[0] = segments as u32;
        for (at, place) in self.places.iter_mut().enumerate() {
            let free = &mut counts[*place as usize];
            self.rows[*free as usize] = (at / chosen) as u32;
            *place = *free;
            *free += 1;
        }
    }

    /// Divides places between two sides, of which each gets its own, counted from 0 and beginning with those of its
    /// first expert: `elsewhere` says which experts the other side has, and as which of its matrices. Here all are
    /// counted on, those of the other side first, and segments are gone. Returns how many these are.
    pub fn divide<'b>(
        &mut self,
        elsewhere: impl Fn(usize) -> Option<u32>,
        there: &mut Routing<'b>,
        here: &mut Routing<'b>,
    ) -> usize {
        let is_there = |segment: &Segment| elsewhere(segment[0] as usize).is_some();
        let counts = |segment: &&Segment| is_there(segment);
        let first_here: u32 = self.segments().iter().filter(counts).map(|segment| segment[2]).sum();
        (there.counts[0], here.counts[0]) = (0, 0);
        let mut next = [0, 0];
        for i in 0..self.counts[0] as usize {
            let [expert, first, count] = self.segments[i];
            let found = elsewhere(expert as usize);
            let (side, next, before) = match found {
                Some(_) => (&mut *there, &mut next[0], 0),
                None => (&mut *here, &mut next[1], first_here),
            };
            side.segments[side.counts[0] as usize] = [found.unwrap_or(expert), *next, count];
            side.counts[0] += 1;
            let (old, new) = (first as usize..(first + count) as usize, *next as usize);
            side.rows[new..][..old.len()].copy_from_slice(&self.rows[old.clone()]);
            // The other lists of a side are free: what a place is now.
            for (place, now) in old.zip(before + *next..) {
                here.places[place] = now;
            }
            *next += count;
        }
        self.places.iter_mut().for_each(|place| *place = here.places[*place as usize]);
        let (of_there, of_here) = self.rows.split_at_mut(first_here as usize);
        of_there.copy_from_slice(&there.rows[..of_there.len()]);
        of_here.copy_from_slice(&here.rows[..of_here.len()]);
        self.counts[0] = 0;
        first_here as usize
    }

    /// Adds to a row what its places hold in `parts`, each by its share.
    pub fn combine(&self, cpu: Cpu, chosen: usize, row: usize, parts: &[f32], out: &mut [f32]) {
        let width = out.len();
        let mut weighted: heapless::Vec<(&[f32], f32), CHOSEN_MAX> = heapless::Vec::new();
        for at in row * chosen..(row + 1) * chosen {
            let part = &parts[self.places[at] as usize * width..][..width];
            assert!(weighted.push((part, self.shares[at])).is_ok(), "more places than a row may have");
        }
        launch(cpu, Add { x: out, weighted: &weighted });
    }
}

/// The experts of the largest logits, ascending. A logit that is no number is chosen last.
fn choose(logits: &[f32], chosen: &mut [u32]) {
    for n in 0..chosen.len() {
        let (taken, rest) = chosen.split_at_mut(n);
        let free = (0..logits.len()).filter(|&expert| !taken.contains(&(expert as u32)));
        let best = free.reduce(|best, expert| {
            let better = logits[expert] > logits[best] || logits[best].is_nan();
            if better { expert } else { best }
        });
        rest[0] = best.unwrap_or(0) as u32;
    }
    chosen.sort_unstable();
}

/// Softmax over the logits of the chosen experts.
fn share(logits: &[f32], chosen: &[u32], shares: &mut [f32]) {
    let of = |expert: u32| logits[expert as usize];
    let most = chosen.iter().fold(f32::NEG_INFINITY, |most, &expert| most.max(of(expert)));
    let mut total = 0.0;
    for (share, &expert) in shares.iter_mut().zip(chosen) {
        *share = libm::expf(of(expert) - most);
        total += *share;
    }
    shares.iter_mut().for_each(|share| *share /= total);
}

/// `x += y`.
pub fn add(cpu: Cpu, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    launch(cpu, Add { x, weighted: &[(y, 1.0)] });
}

struct Add<'a> {
    x: &'a mut [f32],
    weighted: &'a [(&'a [f32], f32)],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: launched with a proven vector.
        unsafe { map_in_place::<V>(self.x, &Plus(self.weighted)) }
    }
}

struct Plus<'a>(&'a [(&'a [f32], f32)]);

impl Lanewise for Plus<'_> {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, at: usize) -> V {
        // SAFETY: lane arithmetic; `load_padded` stays inside the slices.
        unsafe {
            let mut total = V::splat(0.0);
            for (part, weight) in self.0 {
                total = load_padded::<V>(part, at).mul_add(V::splat(*weight), total);
            }
            x.add(total)
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn noise(i: usize) -> f32 {
        libm::sinf(i as f32 * 12.9898) * 3.0
    }

    #[test]
    fn rows_meet_their_largest_experts_and_get_back_their_shares() {
        for (experts, chosen, rows) in [(1, 1, 3), (4, 2, 1), (8, 4, 13), (8, 8, 5), (128, 4, 40)] {
            let choice = Choice { experts, chosen };
            let logits: Vec<f32> = (0..rows * experts).map(noise).collect();
            let mut memory = vec![f32::NAN; choice.bytes(rows).expect("small") / 4];
            let mut routing = Routing::over(choice, rows, &mut memory);
            routing.route(choice, &logits);
            let mut seen = vec![vec![]; rows];
            let mut next = 0;
            for &[expert, first, count] in routing.segments() {
                assert_eq!((first, count > 0), (next, true), "segments follow one another");
                next += count;
                for place in first..next {
                    seen[routing.rows()[place as usize] as usize].push(expert as usize);
                }
            }
            assert_eq!(next as usize, rows * chosen);
            for (row, found) in seen.iter().enumerate() {
                let logits = &logits[row * experts..][..experts];
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
                let mut wanted = order[..chosen].to_vec();
                wanted.sort_unstable();
                assert_eq!(*found, wanted, "row {row}");
                let total: f64 = wanted.iter().map(|&e| libm::exp(f64::from(logits[e]))).sum();
                for cpu in Cpu::detect().variants() {
                    // A place's part says which expert made it.
                    let expert_of = |place: usize| {
                        let of = |s: &&Segment| (s[1]..s[1] + s[2]).contains(&(place as u32));
                        routing.segments().iter().find(of).expect("every place has one")[0] as usize
                    };
                    let width = 19;
                    let parts: Vec<f32> =
                        (0..rows * chosen * width).map(|i| noise(expert_of(i / width) + i % width)).collect();
                    let mut out = vec![1.0; width];
                    routing.combine(cpu, chosen, row, &parts, &mut out);
                    for (i, y) in out.iter().enumerate() {
                        let part =
                            |&e: &usize| libm::exp(f64::from(logits[e])) / total * f64::from(noise(e + i));
                        let want = 1.0 + wanted.iter().map(part).sum::<f64>();
                        assert!((f64::from(*y) - want).abs() < 1e-5, "{y}, not {want}, {}", cpu.name());
                    }
                }
            }
        }
    }

    #[test]
    fn divided_places_are_the_same_in_another_order() {
        for (experts, chosen, rows) in [(4, 2, 1), (8, 4, 13), (32, 4, 3)] {
            let choice = Choice { experts, chosen };
            let logits: Vec<f32> = (0..rows * experts).map(noise).collect();
            let words = choice.bytes(rows).expect("small") / 4;
            // None, some in another order, all.
            let sides: [fn(usize) -> bool; 3] = [|_| false, |expert| expert % 3 == 1, |_| true];
            for has in sides {
                let [mut whole, mut left, mut right, mut as_it_was] = [(); 4].map(|()| vec![f32::NAN; words]);
                let mut before = Routing::over(choice, rows, &mut as_it_was);
                before.route(choice, &logits);
                let mut all = Routing::over(choice, rows, &mut whole);
                all.route(choice, &logits);
                let mut there = Routing::over(choice, rows, &mut left);
                let mut here = Routing::over(choice, rows, &mut right);
                let elsewhere = |expert| has(expert).then_some((experts - expert) as u32);
                let count = all.divide(elsewhere, &mut there, &mut here);
                // Expert and row of every place, as its side has it.
                let mut found = vec![];
                for (side, is_there) in [(&there, true), (&here, false)] {
                    let mut next = 0;
                    for &[matrix, first, count] in side.segments() {
                        assert_eq!(first, next, "segments follow one another");
                        next += count;
                        let expert = if is_there { experts - matrix as usize } else { matrix as usize };
                        assert_eq!(has(expert), is_there);
                        found.extend((first..next).map(|place| (expert, side.rows()[place as usize])));
                    }
                    assert_eq!(found.len(), if is_there { count } else { rows * chosen });
                }
                for at in 0..rows * chosen {
                    let now = found[all.places()[at] as usize];
                    let was = before.places()[at];
                    assert_eq!(now, (before.expert_of(was), before.rows()[was as usize]));
                    assert_eq!(all.rows()[all.places()[at] as usize] as usize, at / chosen);
                }
                assert_eq!(all.shares(), before.shares());
            }
        }
    }

    #[test]
    fn equal_logits_go_to_the_first_and_strange_ones_to_somebody() {
        let mut chosen = [9; 2];
        choose(&[1.0, 2.0, 2.0, 2.0], &mut chosen);
        assert_eq!(chosen, [1, 2]);
        choose(&[f32::NAN, f32::NEG_INFINITY, 0.0, f32::NAN], &mut chosen);
        assert_eq!(chosen, [1, 2]);
        choose(&[f32::NAN; 4], &mut chosen);
        assert!(chosen[0] < chosen[1] && chosen[1] < 4, "{chosen:?}");
    }
}
