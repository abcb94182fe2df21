//! Many short texts in rows of one length: a greedy knapsack for conversations, blocks for running text.

use std::collections::HashMap;

use super::{Example, IGNORED};

/// Numbers in groups whose sums fit: the largest that fits goes first, again and again.
fn knapsacks(mut lengths: Vec<usize>, capacity: usize) -> Vec<Vec<usize>> {
    lengths.sort_unstable();
    let mut sacks = Vec::new();
    while !lengths.is_empty() {
        let mut sack = Vec::new();
        let mut left = capacity;
        loop {
            let fitting = lengths.partition_point(|&length| length <= left);
            if fitting == 0 {
                break;
            }
            let length = lengths.remove(fitting - 1);
            left -= length;
            sack.push(length);
        }
        if sack.is_empty() {
            // Only for lengths that never fit, which the caller has taken out.
            break;
        }
        sacks.push(sack);
    }
    sacks
}

/// Conversations of at most `cutoff` tokens, packed into rows of `cutoff + 1` with padding at the end.
pub(super) fn packed(examples: Vec<Example>, cutoff: usize, is_apart: bool, pad: u32) -> Vec<Example> {
    let lengths = examples.iter().map(|example| example.ids.len()).collect();
    let mut of_length: HashMap<usize, Vec<usize>> = HashMap::new();
    for (index, example) in examples.iter().enumerate() {
        of_length.entry(example.ids.len()).or_default().push(index);
    }
    let sacks = knapsacks(lengths, cutoff);
    let rows = sacks.into_iter().map(|sack| {
        let mut row = Example {
            ids: Vec::with_capacity(cutoff + 1),
            labels: Vec::with_capacity(cutoff + 1),
            pieces: Vec::with_capacity(sack.len()),
            is_apart,
        };
        for length in sack {
            // The last of that length first: the order in which others take them.
            let index = of_length.get_mut(&length).and_then(Vec::pop);
            let example = &examples[index.expect("every length of a sack is one of the examples'")];
            row.ids.extend(&example.ids);
            row.labels.extend(&example.labels);
            row.pieces.push(length as u32);
        }
        row.ids.resize(cutoff + 1, pad);
        row.labels.resize(cutoff + 1, IGNORED);
        row
    });
    rows.collect()
}

/// One stream of ids in blocks of `length`; the rest is dropped. With `bos`, it takes the place of every block's first.
pub(super) fn blocks(stream: &[u32], length: usize, bos: Option<u32>) -> Vec<Vec<u32>> {
    let blocks = stream.chunks_exact(length).map(|block| {
        let mut block = block.to_vec();
        if let Some(bos) = bos {
            block[0] = bos;
        }
        block
    });
    blocks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sacks_are_filled_greedily() {
        // Computed with greedy_knapsack of LLaMA-Factory 0.9.3.
        let found = knapsacks(vec![5, 1, 7, 3, 3, 9, 2, 10, 4], 10);
        assert_eq!(found, [vec![10], vec![9, 1], vec![7, 3], vec![5, 4], vec![3, 2]]);
        assert_eq!(knapsacks(vec![], 4), Vec::<Vec<usize>>::new());
        assert_eq!(knapsacks(vec![5], 4), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn rows_are_full_and_numbered() {
        let example = |ids: &[u32]| Example::alone(ids.to_vec(), ids.iter().map(|&id| id as i32).collect());
        let examples = vec![example(&[1, 2]), example(&[3, 4]), example(&[5, 6, 7])];
        let rows = packed(examples, 5, true, 0);
        assert_eq!(rows[0].ids, [5, 6, 7, 3, 4, 0]);
        assert_eq!(rows[0].labels, [5, 6, 7, 3, 4, IGNORED]);
        assert_eq!(rows[0].segments().collect::<Vec<_>>(), [1, 1, 1, 2, 2, 0]);
        assert_eq!(rows[0].positions().collect::<Vec<_>>(), [0, 1, 2, 0, 1, 0]);
        assert_eq!(rows[1].ids, [1, 2, 0, 0, 0, 0]);
        assert_eq!(rows[1].positions().collect::<Vec<_>>(), [0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn blocks_drop_the_rest() {
        assert_eq!(blocks(&[1, 2, 3, 4, 5], 2, None), [[1, 2], [3, 4]]);
        assert_eq!(blocks(&[1, 2, 3, 4, 5], 2, Some(9)), [[9, 2], [9, 4]]);
    }
}
