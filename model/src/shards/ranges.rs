//! Which layers each of several cards has: so many in a row that all cards are filled alike, the first with the tables
//! that a step begins with, the last with the head.

use std::iter;
use std::ops::Range;

use bantam_core::Slot;
use bantam_core::arena::ALIGNMENT;

use super::on_card::{slots_of, small};
use super::passing::linears;
use crate::plan::Plan;

/// Halvings until a share is known.
const HALVINGS: usize = 50;

/// The layers of cards with so many bytes for weights and cache; `None` where some card would have none.
pub(super) fn ranges(plan: &Plan, budgets: &[usize]) -> Option<Vec<Range<usize>>> {
    let count = plan.weights.layers.len();
    if budgets.len() < 2 {
        return (!budgets.is_empty()).then(|| iter::once(0..count).collect());
    }
    let sizes = sizes(plan);
    let total: f64 = sizes.iter().sum();
    // The least part of every budget that holds all: it may be more than one, and then every card has parts of layers.
    let (mut none, mut all) = (0.0, total / budgets.iter().copied().min()?.max(1) as f64);
    for _ in 0..HALVINGS {
        let part = (none + all) / 2.0;
        match packed(&sizes, budgets, part).is_some() {
            true => all = part,
            false => none = part,
        }
    }
    packed(&sizes, budgets, all)
}

/// As many layers on each card as so large a part of it holds; `None` where some are left, or a card has none.
fn packed(sizes: &[f64], budgets: &[usize], part: f64) -> Option<Vec<Range<usize>>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut first = 0;
    for (at, &budget) in budgets.iter().enumerate() {
        // Every card behind it has one layer at least.
        let most = sizes.len().checked_sub(budgets.len() - 1 - at)?;
        let (mut end, mut left) = (first, part * budget as f64);
        while end < most && sizes[end] <= left {
            left -= sizes[end];
            end += 1;
        }
        found.push(first..end);
        first = end;
    }
    let has_each = found.iter().all(|range| !range.is_empty());
    (has_each && first == sizes.len()).then_some(found)
}

/// Bytes of every layer, with what stands before the first and after the last.
fn sizes(plan: &Plan) -> Vec<f64> {
    let of = &plan.weights;
    let aligned = |slot: Slot| slot.bytes.next_multiple_of(ALIGNMENT);
    let layer = |at: usize| {
        let weights = linears(&of.layers[at]).flat_map(slots_of).chain([plan.caches[at].slot]);
        let ends = [(0, of.embedding.slot), (of.layers.len() - 1, of.head.matrix.slot)];
        let ends = ends.into_iter().filter(|(layer, _)| *layer == at).map(|(_, slot)| slot);
        let bytes: usize = weights.chain(small(plan, &(at..at + 1))).chain(ends).map(aligned).sum();
        bytes as f64
    };
    (0..of.layers.len()).map(layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sizes: &[f64], budgets: &[usize], wanted: Option<&[Range<usize>]>, part: f64) {
        assert_eq!(packed(sizes, budgets, part).as_deref(), wanted, "{sizes:?} in {part} of {budgets:?}");
    }

    #[test]
    fn layers_are_packed_in_a_row() {
        check(&[1.0; 4], &[2, 2], Some(&[0..2, 2..4]), 1.0);
        check(&[1.0; 4], &[1, 3], Some(&[0..1, 1..4]), 1.0);
        check(&[1.0; 4], &[3, 3], Some(&[0..3, 3..4]), 1.0);
        // The last card has a layer even where the first could have all.
        check(&[1.0; 2], &[9, 9], Some(&[0..1, 1..2]), 1.0);
        check(&[1.0; 4], &[1, 2], None, 1.0);
        check(&[1.0; 4], &[1, 2], Some(&[0..1, 1..4]), 1.5);
        check(&[1.0], &[5, 5], None, 1.0);
        check(&[3.0, 1.0], &[2, 2], None, 1.0);
    }
}
