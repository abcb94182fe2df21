//! Conversations as ids and labels: what is cut where there are too many, and what is learnt.

use super::IGNORED;
use super::template::Turn;

/// How prompts and earlier answers are treated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masking {
    pub(super) cutoff_len: usize,
    pub(super) train_on_prompt: bool,
    pub(super) mask_history: bool,
    /// The eos of a template that ends a conversation by one of its own.
    pub(super) efficient_eos: Option<u32>,
}

/// What stays of a question and its answer within `budget` tokens: the shorter half is kept whole, where both are long
/// they are cut in proportion.
pub(super) fn lengths_within(source: usize, target: usize, budget: usize) -> (usize, usize) {
    let target_max = if target * 2 < budget {
        budget
    } else if source * 2 < budget {
        budget - source
    } else {
        // In this order and precision, because others round here.
        (budget as f64 * (target as f64 / (source + target) as f64)) as usize
    };
    let target = target.min(target_max);
    (source.min(budget.saturating_sub(target)), target)
}

/// Ids and labels of a conversation, and whether something was cut.
pub(super) fn masked(turns: &[Turn], masking: &Masking) -> (Vec<u32>, Vec<i32>, bool) {
    let mut total = usize::from(masking.efficient_eos.is_some());
    let mut is_cut = false;
    let mut kept: Vec<(Vec<u32>, Vec<i32>)> = Vec::with_capacity(turns.len());
    let order: Vec<&Turn> = match masking.mask_history {
        // The last turn is the one that is learnt, so it gets its room first.
        true => turns.iter().rev().collect(),
        false => turns.iter().collect(),
    };
    for (index, turn) in order.into_iter().enumerate() {
        if total >= masking.cutoff_len {
            is_cut = true;
            break;
        }
        let (source, target) =
            lengths_within(turn.source.len(), turn.target.len(), masking.cutoff_len - total);
        is_cut |= source < turn.source.len() || target < turn.target.len();
        total += source + target;
        kept.push(labelled(turn, source, target, masking, index > 0 && masking.mask_history));
    }
    if masking.mask_history {
        kept.reverse();
    }
    let (mut ids, mut labels) = (Vec::with_capacity(total), Vec::with_capacity(total));
    for (turn_ids, turn_labels) in kept {
        ids.extend(turn_ids);
        labels.extend(turn_labels);
    }
    if let Some(eos) = masking.efficient_eos {
        ids.push(eos);
        labels.push(eos as i32);
    }
    (ids, labels, is_cut)
}

fn labelled(
    turn: &Turn,
    source: usize,
    target: usize,
    masking: &Masking,
    is_history: bool,
) -> (Vec<u32>, Vec<i32>) {
    let (source, target) = (&turn.source[..source], &turn.target[..target]);
    let as_labels = |ids: &[u32]| ids.iter().map(|&id| id as i32).collect::<Vec<i32>>();
    let mut labels = match masking.train_on_prompt {
        true => as_labels(source),
        false => vec![IGNORED; source.len()],
    };
    // Where no answer ends with eos, the beginning of the next question stands for the end of the one before.
    if let (Some(eos), Some(first), false) =
        (masking.efficient_eos, labels.first_mut(), masking.train_on_prompt)
    {
        *first = eos as i32;
    }
    match is_history {
        true => labels.resize(source.len() + target.len(), IGNORED),
        false => labels.extend(as_labels(target)),
    }
    ([source, target].concat(), labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_cut() {
        // Computed with infer_seqlen of LLaMA-Factory 0.9.3.
        for ((source, target, budget), expected) in [
            ((3000, 2000, 1000), (600, 400)),
            ((2000, 3000, 1000), (400, 600)),
            ((1000, 100, 1000), (900, 100)),
            ((100, 1000, 1000), (100, 900)),
            ((100, 500, 1000), (100, 500)),
            ((500, 100, 1000), (500, 100)),
            ((10, 10, 10), (5, 5)),
            ((7, 3, 5), (4, 1)),
            ((0, 9, 4), (0, 4)),
        ] {
            assert_eq!(lengths_within(source, target, budget), expected, "{source} {target} {budget}");
        }
    }

    fn turns() -> Vec<Turn> {
        vec![Turn { source: vec![1, 2], target: vec![3, 9] }, Turn { source: vec![4, 5], target: vec![6, 9] }]
    }

    fn check(masking: Masking, ids: &[u32], labels: &[i32], is_cut: bool) {
        let (found_ids, found_labels, found_cut) = masked(&turns(), &masking);
        assert_eq!((&found_ids[..], &found_labels[..], found_cut), (ids, labels, is_cut), "{masking:?}");
    }

    #[test]
    fn prompts_and_history_are_masked_as_told() {
        let plain =
            Masking { cutoff_len: 100, train_on_prompt: false, mask_history: false, efficient_eos: None };
        const X: i32 = IGNORED;
        let all = [1, 2, 3, 9, 4, 5, 6, 9];
        check(plain, &all, &[X, X, 3, 9, X, X, 6, 9], false);
        check(Masking { train_on_prompt: true, ..plain }, &all, &[1, 2, 3, 9, 4, 5, 6, 9], false);
        check(Masking { mask_history: true, ..plain }, &all, &[X, X, X, X, X, X, 6, 9], false);
        let efficient = Masking { efficient_eos: Some(7), ..plain };
        check(efficient, &[1, 2, 3, 9, 4, 5, 6, 9, 7], &[7, X, 3, 9, 7, X, 6, 9, 7], false);
        check(Masking { cutoff_len: 4, ..plain }, &all[..4], &[X, X, 3, 9], true);
        check(Masking { cutoff_len: 4, mask_history: true, ..plain }, &all[4..], &[X, X, 6, 9], true);
    }
}
