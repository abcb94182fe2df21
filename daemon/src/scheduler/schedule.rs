//! What the next step reads: how many tokens of which sequence. A pure decision.
//!
//! Every reply that can go on gets its token in every step. What is left of the step reads prompts: all of it while
//! nobody waits for a token, else `prefill_chunk`, so that nobody waits longer than for one such chunk. Half of it
//! belongs to the prompt that came first, so that each ends; the other half to the one that ends soonest, so that short
//! prompts do not wait for long ones.

/// A sequence as this decision sees it. They stand in the order of their arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// Tokens that it has still to read before one can be chosen: at least one.
    pub(super) unread: usize,
    /// Somebody has begun to read its reply.
    pub(super) is_replying: bool,
    /// Its reader does not keep up: it gets nothing.
    pub(super) is_paused: bool,
}

/// How much a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Tokens in all; at least as many as there are sequences.
    pub(super) chunk: usize,
    /// Tokens of prompts while a reply is running.
    pub(super) prefill_chunk: usize,
}

/// Writes to `tokens` how many each sequence reads; says how many in all.
pub(super) fn share(views: &[View], budget: Budget, tokens: &mut [usize]) -> usize {
    assert_eq!(views.len(), tokens.len(), "one number for every sequence");
    assert!(views.len() <= budget.chunk, "a step holds a token of every sequence");
    tokens.fill(0);
    let can_read = |view: &View| !view.is_paused && view.unread > 0;
    let mut used = 0;
    for (view, tokens) in views.iter().zip(tokens.iter_mut()) {
        if can_read(view) && view.unread == 1 {
            *tokens = 1;
            used += 1;
        }
    }
    let is_awaited = views.iter().any(|view| can_read(view) && view.is_replying);
    let most = if is_awaited { budget.prefill_chunk.max(1) } else { budget.chunk };
    let mut left = most.min(budget.chunk - used);
    let prompts = || (0..views.len()).filter(|&i| can_read(&views[i]) && views[i].unread > 1);
    let mut give = |i: usize, most: usize, left: &mut usize| {
        let given = most.min(*left).min(views[i].unread - tokens[i]);
        tokens[i] += given;
        *left -= given;
        used += given;
    };
    if let Some(first) = prompts().next() {
        give(first, left.div_ceil(2), &mut left);
    }
    // The shortest first, by repeated search: there are few, and nothing is allocated here.
    let mut last = None;
    while left > 0 {
        let next = prompts().map(|i| (views[i].unread, i)).filter(|&at| last < Some(at)).min();
        let Some((unread, i)) = next else { break };
        give(i, unread, &mut left);
        last = next;
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(views: &[(usize, bool, bool)], chunk: usize, prefill_chunk: usize) -> Vec<usize> {
        let view =
            |&(unread, is_replying, is_paused): &(usize, bool, bool)| View { unread, is_replying, is_paused };
        let views: Vec<View> = views.iter().map(view).collect();
        let mut tokens = vec![9; views.len()];
        let used = share(&views, Budget { chunk, prefill_chunk }, &mut tokens);
        assert_eq!(used, tokens.iter().sum::<usize>());
        assert!(used <= chunk);
        tokens
    }

    #[test]
    fn replies_go_on_beside_a_prompt_which_gets_one_chunk() {
        assert_eq!(shared(&[(1, true, false), (1000, false, false), (1, true, false)], 512, 64), [1, 64, 1]);
        assert_eq!(shared(&[(1000, false, false)], 512, 64), [512]);
        // Nobody waits for a token of one that is paused.
        assert_eq!(shared(&[(1, true, true), (1000, false, false)], 512, 64), [0, 512]);
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one_which_goes_on() {
        assert_eq!(shared(&[(1000, false, false), (40, false, false)], 512, 64), [472, 40]);
        assert_eq!(
            shared(&[(1000, false, false), (40, false, false), (1, true, false)], 512, 64),
            [32, 32, 1]
        );
        assert_eq!(shared(&[(20, false, false), (1000, false, false)], 512, 64), [20, 492]);
    }

    #[test]
    fn a_step_is_never_too_long() {
        assert_eq!(shared(&[(1, true, false), (1, true, false), (5, false, false)], 3, 64), [1, 1, 1]);
        assert_eq!(shared(&[(1, true, false), (7, false, false)], 2, 0), [1, 1]);
        assert_eq!(shared(&[], 4, 4), [0; 0]);
        assert_eq!(shared(&[(0, false, false)], 4, 4), [0]);
    }

    #[test]
    fn a_reply_that_is_read_again_counts_as_awaited() {
        assert_eq!(shared(&[(1000, true, false)], 512, 64), [64]);
    }
}
